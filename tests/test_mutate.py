"""Mutants: data, the source they are built into, and what a boot says of one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from harness import data
from harness.build.selftests import listed
from harness.errors import ExitCode, UsageError
from harness.guest.ktap import Status, Test
from harness.guest.verdict import Failure, Verdict
from harness.mutation import mutants as mutation
from harness.mutation.mutants import Edit, Mutant, Mutants
from harness.results.model import ArchResult, Problem
from harness.verbs import mutate

ROOT = Path(__file__).resolve().parent.parent

FIRST = Mutant("first", "a is b", "abi", (Edit("a.c", "if (a)", "if (a && !MUTANT)"),))
SECOND = Mutant("second", "b is a", "window", (Edit("a.c", "b = 1;", "b = MUTANT;"), Edit("b.c", "x", "MUTANT")))
BOTH = Mutants((FIRST, SECOND))
SOURCES = {"a.c": "if (a)\n\tb = 1;\n", "b.c": "x\n", mutation.HOME: "main\n"}


def stored() -> Mutants:
    path = ROOT / "configs/mutants.yaml"
    known = data.load(path, Mutants)
    mutation.check(known, str(path))
    return known


def test_each_mutant_has_a_switch_of_its_own() -> None:
    texts = mutation.apply(BOTH, SOURCES)
    declared = "extern int agent_mutant;\n"
    assert texts["a.c"] == declared + "if (a && !(agent_mutant == 1))\n\tb = (agent_mutant == 2);\n"
    assert texts["b.c"] == declared + "(agent_mutant == 2)\n"
    assert texts[mutation.HOME].startswith("main\n")
    assert "core_param(agent_mutant, agent_mutant, int, 0444);" in texts[mutation.HOME]
    assert BOTH.files() == ["a.c", "b.c", mutation.HOME]
    assert [BOTH.number(mutant) for mutant in BOTH.mutants] == [1, 2]


@pytest.mark.parametrize(("text", "count"), [("none", 0), ("if (a) if (a)", 2)])
def test_what_a_mutant_looks_for_is_there_once(text: str, count: int) -> None:
    with pytest.raises(UsageError, match=rf"mutant first: 'if \(a\)' is {count} times in a\.c"):
        mutation.apply(Mutants((FIRST,)), {**SOURCES, "a.c": text})


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (FIRST, "two mutants are called 'first'"),
        (replace(SECOND, edits=(Edit("a.c", "b", "c"),)), "second: no replacement has MUTANT"),
        (replace(SECOND, edits=(Edit("a.c", " ", "MUTANT"),)), "second: an edit finds nothing"),
        (replace(SECOND, edits=(Edit(mutation.HOME, "x", "MUTANT"),)), "or is in init/main.c"),
    ],
)
def test_what_no_kernel_is_needed_to_see(wrong: Mutant, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        mutation.check(Mutants((FIRST, wrong)), "mutants.yaml")


def test_mutants_are_chosen_by_their_names_and_tests() -> None:
    assert BOTH.select([]) == [FIRST, SECOND]
    assert BOTH.select(["window"]) == [SECOND]
    assert BOTH.select(["first", "second"]) == [FIRST, SECOND]
    with pytest.raises(UsageError, match="no mutant 'third'") as caught:
        BOTH.select(["third"])
    assert caught.value.hint == "known: first, second"


def series_programs() -> set[str]:
    """What the patches put into the Makefile of the selftests."""
    found: set[str] = set()
    for patch in sorted((ROOT / "patches").glob("*.patch")):
        for part in patch.read_text().split("\ndiff --git ")[1:]:
            if part.startswith("a/tools/testing/selftests/agent_latency/Makefile "):
                added = [line[1:] for line in part.splitlines() if line.startswith(("+", " "))]
                found.update(listed("\n".join(added)))
    return found


def test_the_stored_mutants_are_sound() -> None:
    known = stored()
    guests = data.names(ROOT / "qemu/guests")
    suites = data.load(ROOT / "configs/flavours/mutants.yaml", data.Flavour).kunit
    tests = {*series_programs(), *(f"{mutation.KUNIT}{suite}" for suite in suites)}
    assert len(known.mutants) > 50
    for mutant in known.mutants:
        assert mutant.guest in ("", *guests)
        assert mutant.test in tests, mutant.name
        # What they look for is in the kernel, which test_source_kernel.py has.
        assert all(edit.find != edit.replace for edit in mutant.edits)


def result(*tests: Test, failure: Failure | None = None, banner: str = "") -> ArchResult:
    return ArchResult("x86_64", verdict=Verdict(tests, failure=failure, banner=banner), seconds=2.0)


PASSED = Test("abi", Status.PASSED, children=[Test("one", Status.PASSED), Test("two", Status.SKIPPED)])
FAILED = Test("abi", Status.FAILED, children=[Test("one", Status.PASSED), Test("two", Status.FAILED)])
SKIPPED = Test("abi", Status.SKIPPED)
CUT = Test("abi", Status.CRASHED)
HUNG = Test("abi", Status.TIMEOUT)
QEMU_DIED = Failure("lost", "QEMU ended with signal SIGKILL", ExitCode.TIMEOUT)
NO_BOOT = Failure("no boot", "printed nothing at all", ExitCode.TIMEOUT)
LOST_LINES = Failure("lost lines", "the log lacks the end of abi", ExitCode.TIMEOUT)
SILENCE = Failure("silence", "nothing for 60 s", ExitCode.TIMEOUT)
CRASH = Failure("oops", "BUG: unable to handle", ExitCode.GUEST_CRASH)


@pytest.mark.parametrize(
    ("mutant", "boot", "state", "by"),
    [
        (FIRST, result(FAILED), "caught", "two"),
        (FIRST, result(PASSED), "survived", ""),
        (FIRST, result(SKIPPED), "survived", ""),
        (FIRST, result(PASSED, failure=CRASH), "caught", "oops: BUG: unable to handle"),
        (FIRST, ArchResult("x86_64", problem=Problem(ExitCode.TIMEOUT, "late")), "lost", "late"),
        (FIRST, result(CUT, failure=QEMU_DIED), "lost", "QEMU ended with signal SIGKILL"),
        (FIRST, result(CUT, failure=NO_BOOT), "lost", "printed nothing at all"),
        (FIRST, result(CUT, failure=LOST_LINES), "lost", "the log lacks the end of abi"),
        (FIRST, result(CUT, failure=NO_BOOT, banner="Linux version 6"), "caught", "abi"),
        (FIRST, result(HUNG, failure=SILENCE, banner="Linux version 6"), "caught", "abi"),
        (FIRST, result(PASSED, failure=SILENCE, banner="Linux version 6"), "caught", "silence: nothing for 60 s"),
        (None, result(CUT, failure=QEMU_DIED), "failed", "abi"),
        (None, result(PASSED), "passed", ""),
        (None, result(FAILED), "failed", "two"),
        (None, result(SKIPPED), "failed", "skipped"),
        (None, result(PASSED, failure=CRASH), "failed", "oops: BUG: unable to handle"),
    ],
)
def test_what_a_boot_says(mutant: Mutant | None, boot: ArchResult, state: str, by: str) -> None:
    trial = mutate.judge("x86_64", mutant, "abi", boot)
    assert (trial.state, trial.by) == (state, by)
    assert trial.good == (state in ("caught", "passed"))


def test_a_suite_can_be_the_test() -> None:
    suite = Mutant("third", "c is d", "kunit/chain", (Edit("c.c", "c", "MUTANT"),))
    bad = replace(FAILED, name="kunit/chain")
    boot = ArchResult("x86_64", verdict=Verdict((), suites=(replace(PASSED, name="kunit/other"), bad)))
    assert mutate.judge("x86_64", suite, suite.test, boot).state == "caught"
    boot = ArchResult("x86_64", verdict=Verdict((), suites=(bad, replace(PASSED, name="kunit/none"))))
    assert mutate.judge("x86_64", suite, "kunit/none", boot).state == "survived"
    assert mutate.judge("x86_64", None, "kunit/gone", boot).state == "failed"
