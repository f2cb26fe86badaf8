"""Mails: numbering, threading, headers that every mailer reads, and the same bytes each time."""

from __future__ import annotations

import email
import email.policy
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

from harness.data import Identity
from harness.errors import UsageError
from harness.export import mails
from harness.export.mails import Mail
from harness.export.recipients import Recipient, Recipients
from harness.source.mail import Patch, parse

PROJECT = Identity("Agent Latency Project", "agent-latency@example.org")
SENDER = Identity("Zoë P. Sender", "zoe@kernel.test")
DIFF = """\
diff --git a/kernel/x.c b/kernel/x.c
index 1111111111111111111111111111111111111111..2222222222222222222222222222222222222222 100644
--- a/kernel/x.c
+++ b/kernel/x.c
@@ -1 +1,2 @@
 int x;
+int y;
"""


def patch(subject: str = "sched: Do it", body: str = "Because.", author: str = str(PROJECT), day: int = 2) -> Patch:
    """A stored patch."""
    text = (
        f"From {'0' * 40} Mon Sep 17 00:00:00 2001\nFrom: {author}\nDate: Mon, {day} Mar 2026 10:00:00 +0100\n"
        f"Subject: [PATCH] {subject}\n\n{body}\n\nSigned-off-by: {PROJECT}\n---\n kernel/x.c | 1 +\n"
        f" 1 file changed, 1 insertion(+)\n\n{DIFF}"
    )
    return parse(text, "0001-x.patch")


def made(patches: list[Patch], *, revision: int = 1, rfc: bool = True, sender: Identity = SENDER) -> list[Mail]:
    """Cover letter and mails, threaded."""
    pieces = mails.patch_mails(patches, project=PROJECT, sender=sender, revision=revision, rfc=rfc)
    date = mails.newest_date(patches)
    letter = mails.cover_mail(
        "sched: All", "Text\n", total=len(patches), sender=sender, date=date, revision=revision, rfc=rfc
    )
    return mails.thread([letter, *pieces], name="agent-latency", revision=revision)


@pytest.mark.parametrize(
    ("number", "total", "revision", "rfc", "expected"),
    [
        (1, 7, 1, True, "[RFC PATCH 1/7]"),
        (0, 7, 1, True, "[RFC PATCH 0/7]"),
        (3, 12, 2, True, "[RFC PATCH v2 03/12]"),
        (0, 12, 3, False, "[PATCH v3 00/12]"),
        (100, 100, 1, False, "[PATCH 100/100]"),
    ],
)
def test_subject_prefix(number: int, total: int, revision: int, rfc: bool, expected: str) -> None:
    assert mails.subject_prefix(number, total, revision=revision, rfc=rfc) == expected


@pytest.mark.parametrize(
    ("number", "subject", "revision", "expected"),
    [
        (0, "anything", 1, "0000-cover-letter.patch"),
        (2, "sched/agent: Mark tasks with `x`...", 1, "0002-sched-agent-Mark-tasks-with-x.patch"),
        (12, "prctl: Ünicode ../../etc", 4, "v4-0012-prctl-nicode-.-.-etc.patch"),
        (1, "w" * 90, 1, f"0001-{'w' * 52}.patch"),
    ],
)
def test_file_names(number: int, subject: str, revision: int, expected: str) -> None:
    assert mails.file_name(number, subject, revision=revision) == expected


def test_two_exports_are_the_same_bytes_and_a_change_is_a_new_thread() -> None:
    one, two = made([patch(), patch("sched: More")]), made([patch(), patch("sched: More")])
    assert [m.render() for m in one] == [m.render() for m in two]
    changed = made([patch(), patch("sched: More", body="Because of that.")])
    assert not {m.message_id for m in one} & {m.message_id for m in changed}
    reroll = made([patch(), patch("sched: More")], revision=2)
    assert not {m.message_id for m in one} & {m.message_id for m in reroll}


def test_threading() -> None:
    thread = [email.message_from_bytes(m.render().partition(b"\n")[2]) for m in made([patch(), patch(), patch()])]
    ids = [m["Message-ID"] for m in thread]
    assert len(set(ids)) == 4
    assert all(re.fullmatch(r"<20260302-agent-latency-v1-\d-[0-9a-f]{16}@kernel\.test>", i) for i in ids)
    assert thread[0]["In-Reply-To"] is None
    assert [m["In-Reply-To"] for m in thread[1:]] == [ids[0]] * 3
    assert [m["References"] for m in thread[1:]] == [ids[0]] * 3


def test_dates_grow_from_the_newest_patch() -> None:
    thread = made([patch(day=9), patch(day=2)])
    assert [m.date.isoformat() for m in thread] == [
        "2026-03-09T10:00:00+01:00",
        "2026-03-09T10:00:01+01:00",
        "2026-03-09T10:00:02+01:00",
    ]


def test_headers_survive_a_mailer() -> None:
    people = Recipients(
        to=(
            Recipient("Slice, Amos P.", "amos@kernel.test", "maintainer"),
            Recipient("Ödön", "o@kernel.test", "reviewer"),
        ),
        cc=(Recipient("", "linux-kernel@vger.kernel.org", "list"),),
    )
    subject = "[RFC PATCH 1/1] prctl: Überlange Überschrift with words enough to need more than one line of the header"
    raw = Mail(1, 1, subject, SENDER, SENDER, datetime(2026, 1, 1, tzinfo=UTC), "Ünicode body\n", people).render()
    head, _, body = raw.partition(b"\n\n")
    assert head.isascii()
    assert all(len(line) <= 78 for line in head.split(b"\n"))
    parsed = email.message_from_bytes(raw.partition(b"\n")[2], policy=email.policy.default)
    assert parsed["Subject"] == subject
    assert parsed["From"].addresses[0].display_name == SENDER.name
    assert [(a.display_name, a.addr_spec) for a in parsed["To"].addresses] == [
        ("Slice, Amos P.", "amos@kernel.test"),
        ("Ödön", "o@kernel.test"),
    ]
    assert [a.addr_spec for a in parsed["Cc"].addresses] == ["linux-kernel@vger.kernel.org"]
    assert parsed["Content-Transfer-Encoding"] == "8bit"
    assert parsed.get_content_charset() == "utf-8"
    assert body.decode() == "Ünicode body\n"


def test_a_long_ascii_subject_is_folded_and_comes_back() -> None:
    subject = "[RFC PATCH v2 03/12] " + " ".join(["scheduler"] * 12)
    text = mails.header("Subject", subject)
    assert all(len(line) <= 78 for line in text.split("\n"))
    assert re.sub(r"\n ", " ", text) == f"Subject: {subject}"
    assert mails.header("Subject", "w" * 100) == f"Subject: {'w' * 100}"


def test_a_line_break_cannot_smuggle_a_header() -> None:
    with pytest.raises(ValueError, match="line break"):
        mails.header("Subject", "x\nBcc: everybody@kernel.test")


def test_the_sender_takes_the_place_of_the_project() -> None:
    body = f"Because.\n\nCo-developed-by: {PROJECT}\nReviewed-by: Ren <ren@kernel.test>\nSigned-off-by: {SENDER}"
    text = made([patch(body=body)])[1].render().decode()
    assert "example.org" not in text
    assert text.count(f"Signed-off-by: {SENDER}") == 1
    assert f"Co-developed-by: {SENDER}" in text
    assert "Reviewed-by: Ren <ren@kernel.test>" in text
    assert text.partition("\n\n")[2].startswith("Because.")


def test_another_author_stays_and_is_named_in_the_body() -> None:
    text = made([patch(author="Ren Reader <ren@kernel.test>")])[1].render().decode()
    head, _, body = text.partition("\n\n")
    assert "zoe@kernel.test" in head
    assert body.startswith("From: Ren Reader <ren@kernel.test>\n\nBecause.")


def test_the_address_of_the_project_in_prose_stays() -> None:
    message = f"Write to {PROJECT}.\n\nSigned-off-by: {PROJECT}"
    assert mails.replace_identity(message, PROJECT, SENDER) == f"Write to {PROJECT}.\n\nSigned-off-by: {SENDER}"


def test_a_patch_without_a_message_or_a_separator() -> None:
    empty = parse(patch().text.replace(f"Because.\n\nSigned-off-by: {PROJECT}\n", ""), "0001-x.patch")
    assert mails.split(empty)[0] == ""
    assert mails.split(empty)[1].startswith("---\n kernel/x.c")
    assert made([empty])[1].render().decode().partition("\n\n")[2].startswith("---\n kernel/x.c")
    cut = Patch(**{**vars(patch()), "text": patch().text.replace("\n---\n", "\n")})
    with pytest.raises(UsageError, match="no `---` line"):
        mails.split(cut)


def test_padding_and_cover_of_twelve() -> None:
    thread = made([patch(f"sched: Number {n}") for n in range(1, 13)], revision=2)
    assert thread[0].subject == "[RFC PATCH v2 00/12] sched: All"
    assert thread[9].subject == "[RFC PATCH v2 09/12] sched: Number 9"


def test_mailbox_of_the_mails_has_as_many(tmp_path: Path) -> None:
    import mailbox

    path = tmp_path / "x.mbox"
    path.write_bytes(b"".join(m.render() for m in made([patch(), patch(), patch()])))
    box = mailbox.mbox(path)
    try:
        assert len(box) == 4
    finally:
        box.close()
