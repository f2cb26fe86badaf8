"""What a run leaves: a directory that is true at every moment, a table, JSON and JUnit that hold any output."""

from __future__ import annotations

import io
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from harness.context import Context
from harness.errors import BuildError, EnvironmentFailure, ExitCode
from harness.guest import log
from harness.guest.ktap import Status, Test
from harness.guest.splat import Rules
from harness.guest.verdict import End, Ending, Verdict, judge
from harness.report import Reporter
from harness.results import junit, model, table
from harness.results.model import ArchResult, Problem, worst
from harness.results.run import RunDirectory
from harness.settings import resolve

ROOT = Path(__file__).resolve().parent.parent
LOGS = Path(__file__).resolve().parent / "logs"
RULES = Rules.load(ROOT / "qemu/splats.yaml")


def verdict(name: str, ending: Ending | None = None) -> Verdict:
    return judge(log.load(LOGS / f"{name}.log"), ending or Ending(End.EXITED, 0), RULES)


def result(name: str, arch: str = "x86_64") -> ArchResult:
    return ArchResult(
        arch, accel="tcg", accel_reason="as asked", verdict=verdict(name), log=Path("/r/console.log"), boot_seconds=1.25
    )


@pytest.fixture
def context(tmp_path: Path) -> Context:
    settings = resolve(ROOT, {"runs_dir": str(tmp_path / "runs"), "cache_dir": str(tmp_path / "cache")}, {})
    return Context(ROOT, settings, Reporter(-1, out=io.StringIO(), err=io.StringIO()))


def metadata(run: RunDirectory) -> dict[str, object]:
    value: dict[str, object] = json.loads((run.path / "metadata.json").read_text())
    return value


def test_metadata_is_there_from_the_first_moment(context: Context) -> None:
    run = RunDirectory.create(context, "test")
    said = metadata(run)
    assert said["state"] == "running"
    assert said["verb"] == "test"
    assert {"harness", "command", "started", "pid", "host", "settings"} <= set(said)
    run.update({"architectures": {"a": {"x": 1}}})
    run.update({"architectures": {"a": {"y": 2}, "b": {}}})
    assert metadata(run)["architectures"] == {"a": {"x": 1, "y": 2}, "b": {}}


def test_two_runs_in_one_second_have_two_directories(context: Context) -> None:
    runs = [RunDirectory.create(context, "test") for _ in range(3)]
    assert len({run.path for run in runs}) == 3
    assert (context.runs / "latest").resolve() == runs[-1].path.resolve()


@pytest.mark.parametrize(
    ("error", "state", "code"),
    [
        (None, "finished", 0),
        (KeyboardInterrupt(), "interrupted", 130),
        (BuildError("no"), "failed", 6),
        (ZeroDivisionError("defect"), "failed", None),
    ],
)
def test_how_it_ended(context: Context, error: BaseException | None, state: str, code: int | None) -> None:
    run = RunDirectory.create(context, "test")
    try:
        with run:
            if error:
                raise error
    except BaseException as caught:
        assert caught is error
    assert (metadata(run)["state"], metadata(run)["exit_code"]) == (state, code)


def test_runs_that_cannot_be_written(context: Context, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises((EnvironmentFailure, FileExistsError, NotADirectoryError)):
        RunDirectory.create(context, "test")


def test_the_worst_of_several() -> None:
    order = [0, 1, 8, 7, 6, 5, 4, 3, 2, 130]
    for i, better in enumerate(order):
        for worse in order[i:]:
            assert worst([ExitCode(better), ExitCode(worse)]) == worse
    assert worst([]) == 0


def test_table_of_a_good_run() -> None:
    text = table.render([result("patched-x86_64"), result("unpatched-arm64", "arm64")])
    rows = [line.split() for line in text.splitlines()]
    assert rows[0][:6] == ["arch", "test", "status", "passed", "failed", "skipped"]
    assert len(rows) == 2 + 7 + 6
    assert rows[8][:3] == ["x86_64", "kunit/agent_latency", "pass"]
    assert "kernel with CONFIG_AGENT_LATENCY" in text
    assert all(len(line) < 200 for line in text.splitlines())


def test_table_of_crashes_and_problems() -> None:
    broken = ArchResult("arm64", problem=Problem(ExitCode.BUILD, "the compiler refused"))
    crashed = result("panic-x86_64")
    text = table.render([crashed, broken])
    assert "CRASH" in text
    assert "NEVER RAN" in text
    assert "ERROR" in text
    assert "the compiler refused" in text
    details = table.details(crashed)
    assert "sysrq triggered crash" in details
    assert "/r/console.log" in details
    assert table.details(result("patched-x86_64")) == ""
    assert worst([crashed.exit_code, broken.exit_code]) == ExitCode.BUILD


@pytest.mark.parametrize("name", sorted(path.stem for path in LOGS.glob("*.log")))
def test_every_recorded_log_can_be_reported(name: str) -> None:
    one = result(name)
    text = junit.render([one])
    tree = ET.fromstring(text)
    assert tree.tag == "testsuites"
    bad = int(tree.get("failures", "0")) + int(tree.get("errors", "0"))
    assert (bad > 0) == (one.exit_code != 0)
    value = json.loads(json.dumps(model.as_json([one])))
    assert value["exit_code"] == one.exit_code
    assert table.render([one])
    assert table.summary(one)
    shown = table.details(one)
    assert len(shown.splitlines()) < 250
    assert bool(shown) == (one.exit_code != 0)


def test_junit_counts_and_content() -> None:
    tree = ET.fromstring(junit.render([result("kunit-fails")]))
    names = [suite.get("name") for suite in tree]
    assert names == [
        "x86_64.guest",
        "x86_64.trig",
        "x86_64.later",
        "x86_64.kunit/agent_latency",
        "x86_64.kunit/agent_second",
    ]
    last = tree[-1]
    assert (last.get("tests"), last.get("failures"), last.get("errors")) == ("2", "1", "0")
    assert "Expected a == b" in (last.find(".//failure").text or "")  # type: ignore[union-attr]
    skipped = tree.findall(".//skipped")
    assert len(skipped) == 1
    assert tree.get("tests") == str(len(tree.findall(".//testcase")))


def test_junit_survives_any_character() -> None:
    nasty = "".join(map(chr, range(0x20))) + "<&>]]>\x7f\ufffe\U0001f600"
    bad = Test(nasty, Status.FAILED, 1, nasty, log=(nasty,))
    program = Test("p", Status.FAILED, children=(bad,), reason=nasty)
    text = junit.render([ArchResult("x", verdict=Verdict(tests=(program,)))])
    tree = ET.fromstring(text)
    name = tree.find(".//failure/..").get("name")  # type: ignore[union-attr]
    assert name
    assert "\\x00" in name
    assert "<&>]]>" in name


def test_a_program_that_failed_though_its_subtests_passed_is_a_case() -> None:
    program = Test("p", Status.FAILED, children=(Test("a", Status.PASSED, 1),), reason="exit status 3")
    tree = ET.fromstring(junit.render([ArchResult("x", verdict=Verdict(tests=(program,)))]))
    assert [case.get("message") for case in tree.iter("failure")] == ["exit status 3"]
