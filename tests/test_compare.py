"""Two runs of the same tests: what is lost is told, whatever way it was lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.errors import UsageError
from harness.guest.ktap import Status
from harness.results import compare


def results(**programs: Any) -> dict[str, Any]:
    """Results of one boot; a program is its status, or its status and its subtests."""
    tests = []
    for name, said in programs.items():
        status, subtests = (said, {}) if isinstance(said, str) else said
        children = [{"name": child, "status": how} for child, how in subtests] if subtests else []
        tests.append({"name": name, "status": status, "reason": "because", "subtests": children})
    return {"architectures": [{"arch": "x86_64-timers", "tests": tests}]}


def lost(before: dict[str, Any], after: dict[str, Any]) -> list[tuple[str, Status | None]]:
    found = compare.regressions(compare.outcomes(before), compare.outcomes(after))
    return [("/".join(change.where[1:]), change.now) for change in found]


@pytest.mark.parametrize(
    ("before", "after", "is_lost"),
    [
        ("passed", "passed", False),
        ("passed", "xfail", False),
        ("passed", "failed", True),
        ("passed", "skipped", True),
        ("passed", "never ran", True),
        ("passed", "crashed", True),
        ("passed", "timeout", True),
        ("failed", "failed", False),
        ("failed", "passed", False),
        ("skipped", "failed", False),
        ("never ran", "failed", False),
    ],
)
def test_only_what_passed_can_be_lost(before: str, after: str, is_lost: bool) -> None:
    assert lost(results(a=before), results(a=after)) == ([("a", Status(after))] if is_lost else [])


def test_subtests_are_named_instead_of_their_program() -> None:
    before = results(a=("passed", [("one", "passed"), ("two", "passed"), ("three", "failed")]))
    after = results(a=("failed", [("one", "passed"), ("two", "failed"), ("three", "failed")]))
    assert lost(before, after) == [("a/two", Status.FAILED)]


def test_a_program_that_failed_anyway_can_lose_a_subtest() -> None:
    before = results(a=("failed", [("one", "passed"), ("two", "failed")]))
    after = results(a=("failed", [("one", "failed"), ("two", "failed")]))
    assert lost(before, after) == [("a/one", Status.FAILED)]


def test_a_subtest_that_is_gone_is_lost() -> None:
    assert lost(results(a=("passed", [("one", "passed")])), results(a=("passed", []))) == [("a/one", None)]


def test_subtests_of_one_name_are_told_apart() -> None:
    before = results(a=("passed", [("same", "passed"), ("same", "passed")]))
    after = results(a=("failed", [("same", "passed"), ("same", "failed")]))
    assert lost(before, after) == [("a/same (2)", Status.FAILED)]


def test_programs_that_were_not_run_again_are_left_out() -> None:
    assert lost(results(a="passed", b="passed"), results(a="passed")) == []


def test_a_program_that_was_not_there_before_is_not_excused() -> None:
    before = compare.outcomes(results(a="failed"))
    after = compare.outcomes(results(a="failed", b=("failed", [("one", "failed")]), c="passed", d="never ran"))
    added = compare.additions(before, after)
    assert [(change.where[1], change.now) for change in added] == [("b", Status.FAILED), ("d", Status.NEVER_RAN)]
    assert compare.common(before, after) == {("x86_64-timers", "a")}
    assert "not there before" in compare.render(before, after, [], added)


def test_the_table_counts_and_names() -> None:
    before = compare.outcomes(results(a="passed", b="passed", c="failed", d="failed"))
    after = compare.outcomes(results(a="passed", b="failed", c="passed", d="failed"))
    found = compare.regressions(before, after)
    text = compare.render(before, after, found, [])
    assert text.splitlines()[-1] == "compared: 1 passed in both, 1 in neither, 1 only now, 1 only before"
    assert "b" in text
    assert "because" in text
    assert [change.as_json() for change in found] == [
        {"test": ["x86_64-timers", "b"], "now": "failed", "reason": "because"}
    ]
    assert compare.render(before, before, [], []) == (
        "compared: 2 passed in both, 2 in neither, 0 only now, 0 only before"
    )


def test_reading_a_file_or_a_run_directory(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    file.write_text(json.dumps(results(a="passed")))
    assert compare.read(file) == compare.read(tmp_path)
    assert list(compare.read(file)) == [("x86_64-timers", "a")]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"architectures": [{"arch": "a", "tests": [{"name": "x"}]}]}'])
def test_what_holds_no_results_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "r.json"
    file.write_text(text)
    with pytest.raises(UsageError, match=r"r\.json holds no results"):
        compare.read(file)
    with pytest.raises(UsageError, match="cannot read"):
        compare.read(tmp_path / "none.json")
