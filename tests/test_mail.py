"""Patches as mails: read as git am reads them, refused when they are not whole."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from harness.errors import UsageError
from harness.source.mail import NO_BLOB, decode, parse
from tests import minikernel

A, B = "a" * 40, "b" * 40
HEAD = f"""\
From {NO_BLOB} Mon Sep 17 00:00:00 2001
From: Agent Latency Project <agent-latency@example.org>
Date: Fri, 20 Nov 2026 10:00:00 +0100
Subject: [PATCH] sched: Do it

Why.

Signed-off-by: Agent Latency Project <agent-latency@example.org>
---
 f | 2 +-

"""
DIFF = f"""\
diff --git a/f b/f
index {A}..{B} 100644
--- a/f
+++ b/f
@@ -3,3 +3,3 @@ int x;
 a
-b
+c
 d
"""


def mail(**changes: str) -> str:
    text = HEAD + DIFF
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    return text


def test_all_fields() -> None:
    patch = parse(HEAD + DIFF, "0001-x.patch")
    assert (patch.name, patch.subject, patch.author) == ("0001-x.patch", "sched: Do it", "Agent Latency Project")
    assert patch.email == "agent-latency@example.org"
    assert patch.message == "Why.\n\nSigned-off-by: Agent Latency Project <agent-latency@example.org>"
    assert patch.commit_message == f"sched: Do it\n\n{patch.message}\n"
    assert patch.git_date == "@1795165200 +0100"
    assert patch.diff == DIFF
    (diff,) = patch.diffs
    assert (diff.old_path, diff.new_path, diff.old_blob, diff.new_blob) == ("f", "f", A, B)
    assert (diff.hunks, diff.hunk_lines) == (1, (3,))


def test_signature_of_a_mailer_is_no_part_of_the_diff() -> None:
    assert len(parse(HEAD + DIFF + "-- \n2.39.5\n\n", "p").diffs) == 1


@pytest.mark.parametrize(
    ("header", "subject"),
    [
        ("[PATCH] sched: Do it", "sched: Do it"),
        ("[RFC PATCH v2 03/12] sched: Do it", "sched: Do it"),
        ("[PATCH] [tip] sched: Do it", "sched: Do it"),
        ("Re: [PATCH] sched: Do it", "sched: Do it"),
        ("[PATCH] sched: Do it\n now", "sched: Do it now"),
        ("[PATCH] =?UTF-8?q?sched:_Gr=C3=BC=C3=9Fe?=", "sched: Grüße"),
        ("[PATCH] sched: Grüße", "sched: Grüße"),
        ("[PATCH] sched: keep [this] tag", "sched: keep [this] tag"),
    ],
)
def test_subjects_as_git_reads_them(header: str, subject: str, tmp_path: Path) -> None:
    text = mail(**{"[PATCH] sched: Do it": header})
    assert parse(text, "p").subject == subject
    env = {"GIT_CONFIG_GLOBAL": "/dev/null", "PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
    argv = ["git", "mailinfo", str(tmp_path / "m"), str(tmp_path / "p")]
    done = subprocess.run(argv, input=text.encode(), capture_output=True, check=True, env=env)
    assert f"Subject: {subject}\n" in done.stdout.decode()


def test_new_removed_mode_binary_and_empty_files() -> None:
    diff = f"""\
diff --git a/new b/new
new file mode 100644
index {NO_BLOB}..{B}
--- /dev/null
+++ b/new
@@ -0,0 +1 @@
+x
diff --git a/gone b/gone
deleted file mode 100644
index {A}..{NO_BLOB}
--- a/gone
+++ /dev/null
@@ -1 +0,0 @@
-x
\\ No newline at end of file
diff --git a/mode b/mode
old mode 100644
new mode 100755
diff --git a/empty name b/empty name
new file mode 100644
index {NO_BLOB}..e69de29bb2d1d6434b8b29ae775ad8c2e48c5391
diff --git a/bin b/bin
index {A}..{B} 100644
GIT binary patch
literal 3
Kcmxxx

literal 2
Jcmyyy

diff --git a/last b/last
index {A}..{B} 100644
--- a/last
+++ b/last
@@ -1 +1 @@
-x
+y
"""
    diffs = parse(HEAD + diff, "p").diffs
    assert [(d.old_path, d.new_path, d.hunks) for d in diffs] == [
        (None, "new", 1),
        ("gone", None, 1),
        ("mode", "mode", 0),
        (None, "empty name", 0),
        ("bin", "bin", 0),
        ("last", "last", 1),
    ]
    assert diffs[2].old_blob == ""
    assert diffs[4].old_blob == A


def test_lines_of_a_hunk_that_look_like_something_else() -> None:
    diff = f"""\
diff --git a/f b/f
index {A}..{B} 100644
--- a/f
+++ b/f
@@ -1,3 +1,3 @@
--- a/f
--- 
+++ b/x
+-- 
 diff --git a/f b/f
@@ -9 +9 @@
-x
+y
"""  # noqa: W291
    (found,) = parse(HEAD + diff, "p").diffs
    assert found.hunk_lines == (1, 9)


def test_names_that_git_quotes() -> None:
    diff = DIFF.replace("a/f", '"a/\\303\\274\\t\\"x"').replace("b/f", '"b/\\303\\274\\t\\"x"')
    (found,) = parse(HEAD + diff, "p").diffs
    assert found.old_path == found.new_path == 'ü\t"x'


def test_rename() -> None:
    diff = f"""\
diff --git a/old name b/new name
similarity index 90%
rename from old name
rename to new name
index {A}..{B} 100644
--- a/old name\t
+++ b/new name\t
@@ -1 +1 @@
-x
+y
"""
    (found,) = parse(HEAD + diff, "p").diffs
    assert (found.old_path, found.new_path) == ("old name", "new name")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("From: Agent Latency Project <agent-latency@example.org>\n", "", "no From: header"),
        ("From: Agent Latency Project <agent-latency@example.org>\n", "From: nobody\n", "no address"),
        ("Date: Fri, 20 Nov 2026 10:00:00 +0100\n", "", "no Date: header"),
        ("Fri, 20 Nov 2026 10:00:00 +0100", "yesterday", "is no date"),
        ("[PATCH] sched: Do it", "[PATCH]", "subject is empty"),
        ("Subject: ", "No header ", "p:4: this is no mail header"),
        (f"index {A}..{B} 100644\n", "", "no `index` line"),
        (f"index {A}..{B}", "index aaaaaaaaaaaa..bbbbbbbbbbbb", "p:13: blob ids must be whole"),
        (f"index {A}..", f"index {NO_BLOB}..", "contradict"),
        ("@@ -3,3 +3,3 @@", "@@ -3,4 +3,4 @@", "the hunk of line 16 is cut short"),
        ("@@ -3,3 +3,3 @@", "@@ -3,3 +3,2 @@", "longer than its head says"),
        ("@@ -3,3 +3,3 @@", "@@ -3,2 +3,2 @@", "p:20: this line belongs to no hunk"),
        (DIFF, "", "no `diff --git` line"),
        ("\nWhy.", "\nFrom: Other <o@example.org>\n\nWhy.", "begins with a mail header"),
    ],
)
def test_malformed_mails_name_the_line(old: str, new: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(mail(**{old: new}), "p")
    assert said in caught.value.message
    assert caught.value.message.startswith("p:")
    assert "refresh" in caught.value.hint


def test_every_truncation_is_noticed() -> None:
    text = HEAD + DIFF
    for length in range(len(text) - 1):
        with pytest.raises(UsageError):
            parse(text[:length], "p")


def test_binary_without_content() -> None:
    with pytest.raises(UsageError, match="binary file without its content"):
        parse(HEAD + f"diff --git a/x b/x\nindex {A}..{B} 100644\nBinary files a/x and b/x differ\n", "p")


def test_bytes_that_are_not_utf8_survive() -> None:
    raw = (HEAD + DIFF).encode().replace(b"+c\n", b"+\xe4\xff\n")
    patch = parse(decode(raw), "p")
    assert patch.text.encode("utf-8", "surrogateescape") == raw


@pytest.mark.parametrize("line", ["---", "--- a/x", "diff -u a b", "Index: x"])
def test_message_ends_where_git_am_ends_it(line: str) -> None:
    text = mail(Why=f"Why\n\n{line}\nmore")
    assert parse(text, "p").message == "Why"


def test_a_whole_series_made_by_git(tmp_path: Path) -> None:
    project = minikernel.mini(tmp_path)
    minikernel.store(project)
    patches = [parse(decode(p.read_bytes()), p.name) for p in sorted((project.root / "patches").glob("*.patch"))]
    assert [patch.subject for patch in patches] == [subject for subject, _ in minikernel.SERIES]
    assert patches[2].diffs[-1].path == "kernel/ünï.c"
    assert {d.path for d in patches[2].diffs} == set(minikernel.SERIES[2][1])


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("diff --git a/f b/f", 'diff --git a/x b"', "p:12: this `diff --git` line does not name two files"),
        ("diff --git a/f b/f", 'diff --git "a/x b/x', "p:12: this `diff --git` line does not name two files"),
        ("diff --git a/f b/f", r'diff --git "a\899" "b\899"', "p:12: git quotes no path like this"),
        ("--- a/f", r'--- "a/\q"', "p:14: git quotes no path like this"),
        ("+++ b/f", r'+++ "b/\400"', "p:15: git quotes no path like this"),
        ("@@ -3,3", f"@@ -3,{'3' * 5000}", "p:16: this line belongs to no hunk"),
    ],
)
def test_names_and_numbers_that_git_does_not_write(old: str, new: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(mail(**{old: new}), "p")
    assert said in caught.value.message


def test_quoted_names() -> None:
    diff = DIFF.replace("a/f b/f", r'"a/\303\244\t\"" "b/\303\244\t\""').replace("a/f", r'"a/\303\244\t\""')
    (found,) = parse(HEAD + diff.replace("b/f", r'"b/\303\244\t\""'), "p").diffs
    assert (found.old_path, found.new_path) == ('ä\t"', 'ä\t"')
