"""What a maintainer would send back before reading."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.data import Identity
from harness.export import hygiene
from harness.source.mail import Patch, parse

PROJECT = Identity("Agent Latency Project", "agent-latency@example.org")
NAME = "0001-x.patch"


def patch(
    *,
    subject: str = "sched: Do it",
    body: str = "Because it was not done.",
    author: str = str(PROJECT),
    trailers: str = f"Signed-off-by: {PROJECT}",
    added: str = "int y;",
) -> Patch:
    """A stored patch; what is not given is good."""
    lines = added.split("\n")
    plus = "".join(f"+{line}\n" for line in lines)
    text = (
        f"From {'0' * 40} Mon Sep 17 00:00:00 2001\nFrom: {author}\nDate: Mon, 2 Mar 2026 10:00:00 +0100\n"
        f"Subject: [PATCH] {subject}\n\n{body}\n\n{trailers}\n---\n kernel/x.c | 1 +\n\n"
        f"diff --git a/kernel/x.c b/kernel/x.c\nindex {'1' * 40}..{'2' * 40} 100644\n--- a/kernel/x.c\n"
        f"+++ b/kernel/x.c\n@@ -1 +1,{len(lines) + 1} @@\n int x;\n{plus}"
    )
    return parse(text, NAME)


def test_a_good_patch_has_no_finding() -> None:
    assert hygiene.check(patch(), PROJECT) == []
    assert hygiene.check(patch(subject="s" * 60 + ": " + "x" * 13), PROJECT) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"subject": "sched: " + "x" * 69}, "the subject has 76 characters"),
        ({"subject": "Do it"}, "names no subsystem"),
        ({"subject": "sched: Do it."}, "full stop"),
        ({"author": "Ren <ren@kernel.test>"}, "the author is Ren <ren@kernel.test>"),
        ({"trailers": "Reviewed-by: Ren <ren@kernel.test>"}, "no Signed-off-by: Agent Latency Project"),
        ({"trailers": f"Signed-off-by: {PROJECT}\nPS: one more\nline"}, "no Signed-off-by"),
        ({"body": ""}, "no body"),
        ({"body": "a word " * 12}, "longer than 75 characters"),
        ({"body": "Fine.   \nMore."}, "trailing white space in the message"),
        ({"body": "Yes.\n\nFrom here on it is another mail."}, "line 3 of the message begins with `From `"),
        ({"added": "int y; "}, "adds trailing white space"),
        ({"added": "ok\n\t"}, "adds trailing white space"),
        ({"added": "<<<<<<< HEAD"}, "adds a conflict marker"),
        ({"added": ">>>>>>> theirs"}, "adds a conflict marker"),
    ],
)
def test_faults(changes: dict[str, str], said: str) -> None:
    found = hygiene.faults(hygiene.check(patch(**changes), PROJECT))
    assert any(said in str(finding) for finding in found), found
    assert all(str(finding).startswith(NAME) for finding in found)


@pytest.mark.parametrize(
    "body",
    [
        "See https://lore.kernel.org/" + "x" * 80,
        "Output:\n\n  " + "column " * 15 + "last",
        "w" * 90,
        "> " + "quoted " * 15 + "last",
    ],
)
def test_what_may_be_long(body: str) -> None:
    assert hygiene.check(patch(body=body), PROJECT) == []


def test_a_heading_of_seven_is_no_conflict() -> None:
    assert hygiene.check(patch(added="Heading\n======="), PROJECT) == []


def test_notes_do_not_fail() -> None:
    big = hygiene.check(patch(added="\n".join(["int z;"] * 301)), PROJECT)
    assert ["301 lines" in str(f) for f in big] == [True]
    named = hygiene.check(patch(added=f"M:\t{PROJECT}"), PROJECT)
    assert ["placeholder" in str(f) for f in named] == [True]
    assert hygiene.faults([*big, *named]) == []


def test_lines_are_counted_in_hunks_only() -> None:
    tricky = patch(body="+ a list in the message\n- of two\n--- a/x\n+++ b/x", added="-- SQL\n++ C++")
    assert hygiene.changed_lines(tricky) == (2, 0)


MAINTAINERS = """\
AGENT LATENCY WINDOW
M:	A <a@k.test>
F:	include/linux/agent_latency*
F:	kernel/sched/agent*
F:	tools/testing/selftests/agent_latency/
F:	fs/*/agent.c
F:	Documentation/scheduler

THE REST
F:	*
F:	*/
"""


@pytest.mark.parametrize(
    ("path", "covered"),
    [
        ("include/linux/agent_latency_types.h", True),
        ("kernel/sched/agent.c", True),
        ("kernel/sched/agents/x.c", False),
        ("kernel/agent.c", False),
        ("tools/testing/selftests/agent_latency/deep/x.c", True),
        ("tools/testing/selftests/agent_latency", False),
        ("fs/ext4/agent.c", True),
        ("fs/ext4/sub/agent.c", False),
        ("Documentation/scheduler/agent.rst", True),
        ("README", False),
    ],
)
def test_who_maintains_a_new_file(path: str, covered: bool) -> None:
    assert hygiene.unmaintained(MAINTAINERS, [path]) == ([] if covered else [path])


def test_the_project_s_own_patches_are_clean() -> None:
    directory = Path(__file__).resolve().parent.parent / "patches"
    names = (directory / "series").read_text(encoding="utf-8").split() if (directory / "series").is_file() else []
    names = [name for name in names if not name.startswith("#")]
    if not names:
        pytest.skip("the series is empty")
    found = [f for n in names for f in hygiene.check(parse((directory / n).read_text(encoding="utf-8"), n), PROJECT)]
    assert hygiene.faults(found) == []
