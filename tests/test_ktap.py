"""KTAP in every dialect that the kernel prints becomes the right tree, and every breach of it a failure."""

from __future__ import annotations

import pytest

from harness.guest.ktap import Status, Test, parse


def tree(text: str, **options: bool) -> Test:
    return parse(text.strip("\n").split("\n"), "prog", **options)


GOOD = """
TAP version 13
1..4
# a diagnostic
ok 1 first
ok 2 - second
ok 3 # SKIP no such option
not ok 4 fourth # TODO not yet
# 1 skipped test(s) detected. Consider enabling relevant config options to improve coverage.
# Totals: pass:2 fail:0 xfail:1 xpass:0 skip:1 error:0
"""


def test_prose_is_no_result() -> None:
    assert tree("TAP version 13\n1..1\nok then, starting\nok 1 a").status == Status.PASSED
    assert tree("ok so far", plan_required=False).status == Status.NEVER_RAN
    assert tree("1..\u0663\nok 1 a", plan_required=True).problems == ("no plan",)
    failed = tree("TAP version 13\n1..1\nok 1 a\nnot ok: lost a wakeup")
    assert failed.status == Status.FAILED
    assert failed.problems == ("a failure without a number: not ok: lost a wakeup",)


def test_good_program() -> None:
    test = tree(GOOD)
    assert (test.status, test.problems, test.reason) == (Status.PASSED, (), "")
    assert [(t.name, t.status, t.number) for t in test.children] == [
        ("first", Status.PASSED, 1),
        ("second", Status.PASSED, 2),
        ("no such option", Status.SKIPPED, 3),
        ("fourth", Status.XFAIL, 4),
    ]
    assert test.children[2].reason == "no such option"
    assert test.counts() == {Status.PASSED: 2, Status.SKIPPED: 1, Status.XFAIL: 1}


@pytest.mark.parametrize(
    ("line", "status", "name", "reason"),
    [
        ("ok 1", Status.PASSED, "test 1", ""),
        ("ok", Status.NEVER_RAN, "test 1", "promised by the plan"),
        ("ok then, starting", Status.NEVER_RAN, "test 1", "promised by the plan"),
        ("not okay", Status.NEVER_RAN, "test 1", "promised by the plan"),
        ("ok \u0661 a", Status.NEVER_RAN, "test 1", "promised by the plan"),
        ("ok 1 a # ERROR x", Status.FAILED, "a", "x"),
        ("ok 1 a name # SKIP why", Status.SKIPPED, "a name", "why"),
        ("ok 1 a name # skip: why", Status.SKIPPED, "a name", "why"),
        ("ok 1 a name # XFAIL known", Status.XFAIL, "a name", "known"),
        ("ok 1 # XFAIL known", Status.XFAIL, "known", "known"),
        ("ok 1 # XPASS surprise", Status.FAILED, "surprise", "passed though it was expected to fail: surprise"),
        ("ok 1 a name #  remark", Status.PASSED, "a name", "remark"),
        ("ok 1 number # 5 of 6", Status.PASSED, "number # 5 of 6", ""),
        ("not ok 1 bad", Status.FAILED, "bad", ""),
        ("not ok 1 # error no memory", Status.FAILED, "no memory", "no memory"),
        ("not ok 1 selftests: a: b # TIMEOUT 45 seconds", Status.TIMEOUT, "selftests: a: b", "45 seconds"),
        ("not ok 1 selftests: a: b # SKIP", Status.SKIPPED, "selftests: a: b", ""),
        ("not ok 1 selftests: a: b # exit=1", Status.FAILED, "selftests: a: b # exit=1", ""),
        ("ok 1 2 numbers", Status.PASSED, "2 numbers", ""),
        ("ok 1 skipping # the sharp", Status.PASSED, "skipping # the sharp", ""),
    ],
)
def test_one_line(line: str, status: Status, name: str, reason: str) -> None:
    child = tree(f"TAP version 13\n1..1\n{line}").children[0]
    assert (child.status, child.name, child.reason) == (status, name, reason)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no KTAP output"),
        ("just words", "no KTAP output"),
        ("TAP version 13\nok 1 a", "no plan"),
        ("TAP version 13", "no plan"),
        ("1..0", "a plan of no tests"),
        ("1..3\nok 1 a", "2 of 3 planned tests never reported"),
        ("1..2", "2 of 2 planned tests never reported"),
        ("1..2\nok 1 a\nok 1 b\nok 2 c", "test 1 reported twice"),
        ("1..2\nok 2 b\nok 1 a", "test 1 reported after test 2"),
        ("1..1\nok 1 a\nok 2 b", "test 2 is beyond the plan of 1"),
        ("1..1\nok 1 a\n1..1", "a second plan: 1..1"),
        ("TAP version 13\n1..1\nok 1 a\nTAP version 13\n", "a second version line: the program started over"),
        ("1..2\nok 1 a\nBail out! no memory", "bailed out: no memory"),
        ("Bail out!", "bailed out: no reason given"),
        ("1..1\nok 1 a\n# Totals: pass:2 fail:0 xfail:0 xpass:0 skip:0 error:0", "its totals"),
        ("1..1\n    ok 1 inner\n", "subtests without a result line"),
    ],
)
def test_breaches_fail_though_every_result_is_ok(text: str, problem: str) -> None:
    test = tree(text)
    assert test.status == Status.FAILED
    assert any(problem in said for said in test.problems), test.problems
    assert test.reason


def test_what_the_plan_promised_and_never_came_is_never_ran() -> None:
    test = tree("1..5\nok 1 a\nok 3 c\nBail out! tired")
    assert [t.status for t in test.children] == [
        Status.PASSED,
        Status.NEVER_RAN,
        Status.PASSED,
        Status.NEVER_RAN,
        Status.NEVER_RAN,
    ]
    assert test.children[1].reason == "bailed out: tired"


def test_enormous_plan_is_bounded() -> None:
    test = tree("1..999999999\nok 1 a")
    assert test.status == Status.FAILED
    assert len(test.children) < 1000
    assert "999999998 of 999999999" in test.reason


@pytest.mark.parametrize(
    "line", ["1..{}", "ok {} b", "not ok {} b", "# Totals: pass:{} fail:0 xfail:0 xpass:0 skip:0 error:0"]
)
def test_a_number_of_thousands_of_digits_is_noise(line: str) -> None:
    test = tree(f"1..1\nok 1 a\n{line.format('9' * 5000)}")
    assert [(child.name, child.status) for child in test.children] == [("a", Status.PASSED)]


def test_a_directive_does_not_rescue_a_missing_plan_of_a_kunit_block_only() -> None:
    assert tree("KTAP version 1\nok 1 a", plan_required=False).status == Status.PASSED
    assert tree("KTAP version 1\nok 1 a").status == Status.FAILED


def test_skipping_everything() -> None:
    whole = tree("TAP version 13\n1..0 # SKIP kernel without the option")
    assert (whole.status, whole.reason, whole.children) == (Status.SKIPPED, "kernel without the option", ())
    each = tree("1..2\nok 1 # SKIP root only\nok 2 b # SKIP root only")
    assert (each.status, each.reason) == (Status.SKIPPED, "root only")
    assert tree("1..2\nok 1 # SKIP x\nok 2 b").status == Status.PASSED
    assert tree("1..0 # SKIP x\nnot ok 1 but").status == Status.FAILED


def test_failures_name_themselves_and_bring_their_diagnostics() -> None:
    test = tree("1..3\nok 1 a\n# expected 4, got 5\nnot ok 2 b\nnot ok 3 c")
    assert (test.status, test.reason) == (Status.FAILED, "b and 1 more")
    assert test.children[1].log == ("# expected 4, got 5",)


@pytest.mark.parametrize("indent", ["    ", "  ", "# "])
def test_nested_subtests(indent: str) -> None:
    inner = "\n".join(f"{indent}{line}" for line in ("TAP version 13", "1..2", "ok 1 x", "not ok 2 y"))
    test = tree(f"TAP version 13\n1..2\n{inner}\nnot ok 1 outer\nok 2 other")
    assert test.problems == ()
    assert [t.name for t in test.children] == ["outer", "other"]
    assert [(t.name, t.status) for t in test.children[0].children] == [("x", Status.PASSED), ("y", Status.FAILED)]
    assert test.counts() == {Status.PASSED: 2, Status.FAILED: 1}


def test_nested_three_deep_and_a_parent_that_lies() -> None:
    test = tree(
        """
KTAP version 1
1..1
    KTAP version 1
    # Subtest: suite
    1..1
        KTAP version 1
        # Subtest: case
        ok 1 param a
        not ok 2 param b
    # case: pass:1 fail:1 skip:0 total:2
    ok 1 case
# suite: pass:1 fail:0 skip:0 total:1
ok 1 suite
"""
    )
    suite = test.children[0]
    case = suite.children[0]
    assert [t.name for t in case.children] == ["param a", "param b"]
    assert (case.status, suite.status, test.status) == (Status.FAILED,) * 3
    assert "reported ok though a subtest did not pass" in case.problems


def test_subtests_that_were_cut_off_stay_in_the_tree() -> None:
    test = tree("KTAP version 1\n1..2\n    KTAP version 1\n    # Subtest: suite\n    1..3\n    ok 1 a")
    suite = test.children[0]
    assert (suite.name, suite.status) == ("suite", Status.FAILED)
    assert [t.status for t in suite.children] == [Status.PASSED, Status.NEVER_RAN, Status.NEVER_RAN]
    assert test.children[1].status == Status.NEVER_RAN


def test_junk_between_lines_is_kept_and_harmless() -> None:
    test = tree("hello\nTAP version 13\n1..1\nkernel: something\n  indented words\nok 1 a\nbye")
    assert test.status == Status.PASSED
    assert "hello" in test.log
    assert "bye" in test.log


def test_kselftest_runner_output() -> None:
    test = tree(
        """
TAP version 13
1..2
# timeout set to 45
# selftests: agent_latency: abi
# TAP version 13
# 1..1
# # details
# ok 1 inner
# # Totals: pass:1 fail:0 xfail:0 xpass:0 skip:0 error:0
ok 1 selftests: agent_latency: abi
# timeout set to 45
# selftests: agent_latency: other
# TAP version 13
# 1..1
# not ok 1 inner
not ok 2 selftests: agent_latency: other # exit=1
"""
    )
    assert test.problems == ()
    assert [(t.status, len(t.children)) for t in test.children] == [(Status.PASSED, 1), (Status.FAILED, 1)]


@pytest.mark.parametrize("cut", range(len(GOOD)))
def test_any_beginning_of_good_output_is_no_pass(cut: int) -> None:
    """Whatever a guest manages to say before it dies, only the whole is a pass."""
    text = GOOD.strip("\n")[:cut]
    reported = text.count("\nok ") + text.count("\nnot ok ")
    if reported < 4:
        assert tree(text).status != Status.PASSED
