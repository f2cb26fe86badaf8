"""Recorded consoles and their verdicts: each way to go wrong is told apart, and none of them is a pass."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from harness.data import Reports
from harness.errors import ExitCode
from harness.guest import log
from harness.guest.ktap import Status, Test
from harness.guest.splat import Rules
from harness.guest.verdict import End, Ending, Expected, Failure, Verdict, judge, settle, to_settle

ROOT = Path(__file__).resolve().parent.parent
LOGS = Path(__file__).resolve().parent / "logs"
RULES = Rules.load(ROOT / "qemu/splats.yaml")
NONCE = "5ca1ab1e0ddba115"
OFF = Ending(End.EXITED, 0)
THREE = [Expected("good"), Expected("trig"), Expected("later")]


def text_of(name: str) -> str:
    return log.load(LOGS / f"{name}.log")


def verdict(name: str, ending: Ending = OFF, expected: list[Expected] | None = None) -> Verdict:
    return judge(text_of(name), ending, RULES, nonce=NONCE, expected=expected)


def statuses(judged: Verdict) -> list[str]:
    return [str(test.status) for test in judged.tests]


@pytest.mark.parametrize(
    ("name", "ending", "code", "kind", "tests"),
    [
        ("panic-x86_64", OFF, 7, "panic", ["passed", "crashed", "never ran"]),
        ("panic-arm64", OFF, 7, "panic", ["passed", "crashed", "never ran"]),
        ("bug-x86_64", OFF, 7, "oops", ["passed", "crashed", "never ran"]),
        ("bug-arm64", OFF, 7, "oops", ["passed", "crashed", "never ran"]),
        ("warn-x86_64", OFF, 7, "warning", ["passed", "failed", "passed"]),
        ("warn-arm64", OFF, 7, "warning", ["passed", "failed", "passed"]),
        ("hung-x86_64", OFF, 7, "hung task", ["passed", "failed", "passed"]),
        ("hung-arm64", OFF, 7, "hung task", ["passed", "failed", "passed"]),
        ("oom-x86_64", OFF, 7, "oom", ["passed", "crashed", "passed"]),
        ("oom-arm64", OFF, 7, "oom", ["passed", "crashed", "passed"]),
        ("atomic", OFF, 7, "atomic sleep", ["passed", "failed", "passed"]),
        ("rcu-x86_64", Ending(End.DEADLINE, None, 60), 7, "rcu stall", ["passed", "crashed", "never ran"]),
        ("rcu-arm64", Ending(End.DEADLINE, None, 60), 7, "rcu stall", ["passed", "crashed", "never ran"]),
        ("soft", Ending(End.DEADLINE, None, 60), 7, "soft lockup", ["passed", "crashed", "never ran"]),
        ("reboot", OFF, 7, "reboot", ["passed", "crashed", "never ran"]),
        ("triple", OFF, 7, "reboot", ["passed", "crashed", "never ran"]),
        ("second-kernel", Ending(End.DEADLINE, None, 14), 7, "reboot", ["failed", "crashed", "never ran"]),
        ("poweroff", OFF, 8, "power off", ["passed", "crashed", "never ran"]),
        ("silent", Ending(End.SILENT, None, 20), 8, "silence", ["passed", "timeout", "never ran"]),
        ("silent", Ending(End.DEADLINE, None, 20), 8, "deadline", ["passed", "timeout", "never ran"]),
        ("silent", Ending(End.FLOOD), 8, "flood", ["passed", "timeout", "never ran"]),
        ("lost", Ending(End.EXITED, -9), 8, "lost", ["passed", "crashed", "never ran"]),
        ("lost", Ending(End.EXITED, 1), 8, "lost", ["passed", "crashed", "never ran"]),
        ("lost", Ending(End.EXITED, None), 8, "lost", ["passed", "crashed", "never ran"]),
        ("lost", Ending(End.UNKNOWN), 8, "no end", ["passed", "crashed", "never ran"]),
        ("deadline", OFF, 1, None, ["passed", "timeout", "passed"]),
        ("segv", OFF, 1, None, ["passed", "crashed", "passed"]),
        ("exit", OFF, 1, None, ["passed", "failed", "passed"]),
        ("orphan", OFF, 0, None, ["passed", "passed", "passed"]),
    ],
)
def test_recorded_endings(name: str, ending: Ending, code: int, kind: str | None, tests: list[str]) -> None:
    for judged in (verdict(name, ending, THREE), verdict(name, ending)):
        assert int(judged.exit_code) == code
        assert (judged.failure.kind if judged.failure else None) == kind
        assert statuses(judged) == tests
        assert all(test.reason for test in judged.tests if test.status.bad)


@pytest.mark.parametrize("name", ["kasan", "lockdep", "waitcontext", "ubsan"])
def test_a_report_while_every_test_passes_is_no_pass(name: str) -> None:
    judged = verdict(name)
    assert judged.exit_code == ExitCode.GUEST_CRASH
    assert judged.failure
    assert judged.failure.kind == {"waitcontext": "lockdep"}.get(name, name)
    assert statuses(judged) == ["failed", "passed"]
    assert "while it ran" in judged.tests[0].reason


@pytest.mark.parametrize(
    ("name", "program", "reason"),
    [
        ("noplan", "noplan", "no plan"),
        ("missing", "gone", "could not be started: No such file or directory"),
        ("exit", "trig", "1 of 2 planned tests never reported; exit status 3"),
        ("segv", "trig", "killed by SIGSEGV"),
        ("deadline", "trig", "not done by its deadline"),
    ],
)
def test_programs_that_end_badly_say_how(name: str, program: str, reason: str) -> None:
    judged = verdict(name)
    test = next(test for test in judged.tests if test.name == program)
    assert test.status.bad
    assert test.reason == reason
    assert judged.exit_code == ExitCode.TESTS_FAILED


def test_the_patched_kernel_passes_with_its_kunit_suite() -> None:
    judged = verdict("patched-x86_64")
    assert judged.exit_code == ExitCode.OK
    assert len(judged.tests) == 6
    assert [test.status for test in judged.tests].count(Status.PASSED) == 5
    assert [test.name for test in judged.tests if test.status == Status.SKIPPED] == ["off"]
    (suite,) = judged.suites
    assert (suite.name, suite.status, suite.problems) == ("kunit/agent_latency", Status.PASSED, ())
    assert sum(1 for _ in suite.leaves()) > 50
    assert len(suite.children) == 14
    assert all(test.seconds is not None for test in judged.tests)
    assert judged.banner.startswith("Linux version 6.18.15")
    assert judged.machine == "x86_64"
    assert judged.boot_seconds
    assert judged.guest_seconds
    assert judged.guest_seconds > judged.boot_seconds


def test_the_unpatched_kernel_skips_with_reasons() -> None:
    judged = verdict("unpatched-arm64")
    assert judged.exit_code == ExitCode.OK
    skipped = [test for test in judged.tests if test.status == Status.SKIPPED]
    assert len(skipped) == 5
    assert all("kernel without CONFIG_AGENT_LATENCY" in test.reason for test in skipped)


def test_every_beginning_of_a_good_log_is_no_pass() -> None:
    """Cut anywhere, with whatever status QEMU ended: only the whole log passes."""
    whole = text_of("patched-x86_64").rstrip("\n")
    end = whole.index("!done ran=")
    lines = [match.start() for match in re.finditer("\n", whole[:end])]
    assert len(lines) > 100
    for cut in [*lines[::7], *lines[-20:], end]:
        for ending in (OFF, Ending(End.EXITED, 1), Ending(End.UNKNOWN), Ending(End.SILENT, None, 9)):
            judged = judge(whole[:cut], ending, RULES, nonce=NONCE)
            assert judged.exit_code in (ExitCode.GUEST_CRASH, ExitCode.TIMEOUT), whole[:cut][-200:]
            assert judged.failure


@pytest.mark.parametrize("dropped", ["!end good ", "!begin trig ", "!begin good ", "|trig|ok 2", "|good|1..1", "!done"])
def test_a_lost_line_is_no_pass(dropped: str) -> None:
    text = "\n".join(line for line in text_of("orphan").split("\n") if dropped not in line)
    assert text != text_of("orphan")
    assert judge(text, OFF, RULES, nonce=NONCE, expected=THREE).exit_code != ExitCode.OK


def test_the_nonce_must_be_that_of_this_boot() -> None:
    judged = judge(text_of("orphan"), OFF, RULES, nonce="another", expected=THREE)
    assert judged.exit_code == ExitCode.TIMEOUT  # the guest powered off, and this boot's end marker never came
    assert statuses(judged) == ["never ran"] * 3
    assert any("another nonce" in note for note in judged.notes)
    forged = text_of("panic-x86_64") + "[    9.0] harness!0000!done ran=3\n"
    assert judge(forged, OFF, RULES, nonce=NONCE, expected=THREE).exit_code == ExitCode.GUEST_CRASH


def test_a_program_cannot_forge_markers_by_printing_them() -> None:
    text = text_of("exit").replace(
        "harness|trig|ok 1 before", f"harness|trig|harness!{NONCE}!end trig status=0 lines=1"
    )
    assert judge(text, OFF, RULES, nonce=NONCE, expected=THREE).exit_code == ExitCode.TESTS_FAILED


def test_what_was_expected_and_is_not_in_the_log_never_ran() -> None:
    judged = verdict("orphan", OFF, [*THREE, Expected("forgotten")])
    assert statuses(judged)[-1] == "never ran"
    assert judged.exit_code == ExitCode.TESTS_FAILED
    assert judged.tests[-1].reason == "the guest never started it"
    extra = verdict("orphan", OFF, THREE[:2])
    assert any("later ran though nobody asked" in note for note in extra.notes)


@pytest.mark.parametrize(
    ("ending", "code"),
    [
        (Ending(End.STUCK_OFF, None, 15), 8),
        (Ending(End.SILENT, None, 15), 8),
        (Ending(End.EXITED, -6), 8),
        (Ending(End.EXITED, 1), 8),
        (Ending(End.FLOOD), 8),
        (Ending(End.UNKNOWN), 0),
    ],
)
def test_the_end_after_the_end_marker_counts_too(ending: Ending, code: int) -> None:
    judged = verdict("orphan", ending, THREE)
    assert int(judged.exit_code) == code
    assert statuses(judged) == ["passed"] * 3


@pytest.mark.parametrize(
    ("ending", "text", "kind"),
    [
        (Ending(End.NO_BOOT, None, 120), "", "no boot"),
        (Ending(End.NO_BOOT, None, 120), "[    0.0] Linux version 6.18.15\n[    0.1] waiting\n", "no boot"),
        (Ending(End.SILENT, None, 120), "", "silence"),
        (Ending(End.UNKNOWN), "nothing of ours\n", "no end"),
        (Ending(End.EXITED, 0), "", "reboot"),
    ],
)
def test_guests_that_say_nothing(ending: Ending, text: str, kind: str) -> None:
    judged = judge(text, ending, RULES, nonce=NONCE, expected=THREE)
    assert judged.failure
    assert judged.failure.kind == kind
    assert statuses(judged) == ["never ran"] * 3
    assert judged.exit_code != ExitCode.OK


def test_kunit_suites_at_boot() -> None:
    good = verdict("kunit-good")
    (suite,) = good.suites
    assert suite.status == Status.PASSED
    assert [leaf.status for leaf in suite.leaves()].count(Status.SKIPPED) == 1
    assert good.exit_code == ExitCode.OK
    fails = verdict("kunit-fails")
    assert [(s.name, s.status) for s in fails.suites] == [
        ("kunit/agent_latency", Status.PASSED),
        ("kunit/agent_second", Status.FAILED),
    ]
    assert fails.exit_code == ExitCode.TESTS_FAILED
    bad = next(leaf for leaf in fails.suites[1].leaves() if leaf.status == Status.FAILED)
    assert any("Expected a == b" in line for line in bad.log)


def test_a_crash_in_a_kunit_suite() -> None:
    judged = verdict("kunit-oops", OFF, THREE)
    assert judged.failure
    assert (judged.failure.kind, judged.exit_code) == ("oops", ExitCode.GUEST_CRASH)
    assert "then panic" in judged.failure.message
    assert any(suite.status.bad for suite in judged.suites)
    assert statuses(judged) == ["never ran"] * 3


def test_expected_suites_that_are_missing_never_ran() -> None:
    judged = judge(text_of("kunit-good"), OFF, RULES, nonce=NONCE, suites=["agent_latency", "another"])
    assert [(s.name, s.status) for s in judged.suites][-1] == ("kunit/another", Status.NEVER_RAN)
    assert judged.exit_code == ExitCode.TESTS_FAILED


def program(
    status: int, *output: str, extra: str = "", lines: int | None = None, reports: Reports = Reports.KTAP
) -> Verdict:
    body = "".join(f"[ 1.0] harness|p|{line}\n" for line in output)
    count = len(output) if lines is None else lines
    text = (
        f"[ 0.0] Linux version 6\n[ 1.0] harness!n!start \n[ 1.0] harness!n!begin p timeout=1\n{body}"
        f"[ 1.0] harness!n!end p status={status} signal=0 timeout=0 error=0 stuck=0 ms=10 lines={count} {extra}\n"
        "[ 1.0] harness!n!done ran=1\n"
    )
    return judge(text, OFF, RULES, nonce="n", expected=[Expected("p", reports)])


@pytest.mark.parametrize(
    ("reports", "status", "output", "verdict_is"),
    [
        (Reports.RESULTS, 0, ["ok 1 a"], Status.PASSED),
        (Reports.RESULTS, 0, ["ok 1 a", "not ok 2 b"], Status.FAILED),
        (Reports.RESULTS, 1, ["ok 1 a"], Status.FAILED),
        (Reports.RESULTS, 0, [], Status.FAILED),
        (Reports.RESULTS, 4, ["1..0 # SKIP why"], Status.SKIPPED),
        (Reports.KSELFTEST, 0, [], Status.PASSED),
        (Reports.KSELFTEST, 0, ["not ok 1 a"], Status.PASSED),
        (Reports.KSELFTEST, 1, [], Status.FAILED),
        (Reports.KSELFTEST, 4, ["why"], Status.SKIPPED),
        (Reports.STATUS, 0, ["why"], Status.PASSED),
        (Reports.STATUS, 4, ["why"], Status.FAILED),
    ],
)
def test_each_way_to_report(reports: Reports, status: int, output: list[str], verdict_is: Status) -> None:
    judged = program(status, *output, reports=reports)
    assert judged.tests[0].status == verdict_is
    if verdict_is == Status.SKIPPED:
        assert judged.tests[0].reason == "why"


def test_the_plan_of_the_guest_says_how_a_program_reports() -> None:
    text = (
        "[ 0.0] Linux version 6\n[ 1.0] harness!n!start \n[ 1.0] harness!n!plan a:kselftest b:results c:new\n"
        "[ 1.0] harness!n!begin a timeout=1\n[ 1.0] harness!n!end a status=4 lines=0\n[ 1.0] harness!n!done ran=1\n"
    )
    judged = judge(text, OFF, RULES, nonce="n")
    assert statuses(judged) == ["skipped", "never ran", "never ran"]


@pytest.mark.parametrize(
    ("status", "output", "verdict_is"),
    [
        (0, ["1..1", "ok 1 a"], Status.PASSED),
        (1, ["1..1", "ok 1 a"], Status.FAILED),
        (1, ["1..1", "not ok 1 a"], Status.FAILED),
        (0, ["1..1", "not ok 1 a"], Status.FAILED),
        (4, ["1..0 # SKIP why"], Status.SKIPPED),
        (0, ["1..0 # SKIP why"], Status.SKIPPED),
        (4, ["1..1", "ok 1 # SKIP why"], Status.SKIPPED),
        (4, ["1..1", "ok 1 a"], Status.FAILED),
        (4, ["1..2", "ok 1 # SKIP why"], Status.FAILED),
        (4, ["root needed"], Status.SKIPPED),
        (4, [], Status.SKIPPED),
        (4, ["ok 1 a"], Status.FAILED),
        (0, [], Status.FAILED),
        (0, ["all is well"], Status.FAILED),
        (0, ["ok 1 a"], Status.FAILED),
        (1, ["1..0 # SKIP why"], Status.FAILED),
    ],
)
def test_status_and_output_must_agree(status: int, output: list[str], verdict_is: Status) -> None:
    judged = program(status, *output)
    assert judged.tests[0].status == verdict_is
    assert (judged.exit_code == ExitCode.OK) == (verdict_is in (Status.PASSED, Status.SKIPPED))


def test_output_that_got_lost_is_no_pass() -> None:
    assert program(0, "1..1", "ok 1 a", lines=3).tests[0].status == Status.FAILED


def test_long_lines_are_whole_again() -> None:
    text = "[ 1.0] harness|p+|abc\n[ 1.0] harness|q|other\n[ 1.0] harness|p+|def\n[ 1.0] harness|p|ghi\n"
    assert log.output(log.read(text), "p") == ["abcdefghi"]


def test_single_commands_are_judged_by_their_status() -> None:
    text = "[ 1.0] harness!n!start \n[ 1.0] harness!n!plan c:status\n[ 1.0] harness!n!begin c\n"
    tail = "[ 1.0] harness!n!end c status={0} lines=0\n[ 1.0] harness!n!done ran=1\n"
    assert judge(text + tail.format(0), OFF, RULES, nonce="n").exit_code == ExitCode.OK
    failed = judge(text + tail.format(5), OFF, RULES, nonce="n")
    assert (failed.exit_code, failed.tests[0].reason) == (ExitCode.TESTS_FAILED, "exit status 5")
    assert failed.tests[0].exit_status == 5


def test_dropped_kernel_messages_are_no_pass() -> None:
    """What was dropped may have been the report of a defect."""
    dropped = "[    9.0] ** 12 printk messages dropped **\n"
    judged = verdict_of(text_of("orphan") + dropped)
    assert judged.failure == Failure(
        "lost lines", "the kernel lost messages: ** 12 printk messages dropped **", ExitCode.TIMEOUT
    )
    crashed = verdict_of(text_of("warn-x86_64") + dropped)
    assert crashed.failure and crashed.failure.kind == "warning"


def test_a_program_may_print_what_the_kernel_says_of_lost_messages() -> None:
    text = text_of("orphan")
    printed = text.replace("harness|good|ok 1 ", "harness|good|ok 1 ** 12 printk messages dropped ** ")
    assert printed != text
    assert verdict_of(printed).exit_code == ExitCode.OK


def verdict_of(text: str) -> Verdict:
    return judge(text, OFF, RULES, nonce=NONCE)


def made(name: str, *statuses: Status, problems: tuple[str, ...] = ()) -> Test:
    bad = any(status.bad for status in statuses)
    children = tuple(Test(f"{name} {number}", status) for number, status in enumerate(statuses, 1))
    status = Status.FAILED if bad or problems else Status.PASSED
    return Test(name, status, reason="too late" if bad else "", children=children, problems=problems)


GOOD = made("good", Status.PASSED)
LATE = made("late", Status.PASSED, Status.FAILED, Status.SKIPPED)


@pytest.mark.parametrize(
    ("judged", "names"),
    [
        (Verdict(tests=(GOOD, LATE)), ["late"]),
        (Verdict(tests=(GOOD,)), []),
        (Verdict(tests=(LATE, made("other", Status.FAILED))), []),
        (Verdict(tests=(LATE,), suites=(made("suite", Status.FAILED),)), []),
        (Verdict(tests=(made("late", Status.FAILED, problems=("no plan",)),)), []),
        (Verdict(tests=(Test("late", Status.TIMEOUT),)), []),
        (Verdict(tests=(LATE,), failure=Failure("oops", "oops", ExitCode.GUEST_CRASH)), []),
    ],
)
def test_what_can_be_settled_elsewhere(judged: Verdict, names: list[str]) -> None:
    assert to_settle(judged, ["good", "late"]) == names


def test_what_passed_elsewhere_is_an_expected_failure() -> None:
    settled = settle(Verdict(tests=(GOOD, LATE)), Verdict(tests=(made("late", *[Status.PASSED] * 3),)), "x-counted")
    assert settled.exit_code == ExitCode.OK
    assert settled.tests[0] is GOOD
    late = settled.tests[1]
    assert (late.status, late.reason) == (Status.XFAIL, "too late; passed in x-counted")
    assert [child.status for child in late.children] == [Status.PASSED, Status.XFAIL, Status.SKIPPED]


@pytest.mark.parametrize(
    "second",
    [
        Verdict(tests=(LATE,)),
        Verdict(tests=(Test("late", Status.SKIPPED),)),
        # The program passed there, but not what failed here: it was skipped, expected to fail, or is not there.
        Verdict(tests=(made("late", Status.PASSED, Status.SKIPPED, Status.PASSED),)),
        Verdict(tests=(made("late", Status.PASSED, Status.XFAIL, Status.PASSED),)),
        Verdict(tests=(made("late", Status.PASSED),)),
        Verdict(
            tests=(made("late", Status.PASSED, Status.PASSED),), failure=Failure("oops", "oops", ExitCode.GUEST_CRASH)
        ),
    ],
)
def test_what_did_not_pass_there_has_failed(second: Verdict) -> None:
    first = Verdict(tests=(GOOD, LATE))
    assert settle(first, second, "x-counted") == first
