"""The series as mails: numbered, threaded below the cover letter, and the same bytes whenever they are made.

Everything here is a pure function of its arguments. Dates and Message-IDs are made from the content, never from the
clock: two exports of one series are identical, and a changed one has Message-IDs of its own.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from email.header import Header
from email.utils import format_datetime

from harness.data import Identity
from harness.errors import UsageError
from harness.export.recipients import Recipients
from harness.source.mail import Patch

# The line that begins each mail of a mailbox; git recognises its own by this date.
MBOX_LINE = f"From {'0' * 40} Mon Sep 17 00:00:00 2001"

_TRAILER = re.compile(r"(?P<key>[A-Za-z][A-Za-z-]*): (?P<value>.+)")
_SPECIALS = re.compile(r'[()<>@,;:\\".\[\]]')


@dataclass(frozen=True)
class Mail:
    """One mail. ``number`` 0 is the cover letter. ``body`` ends in a newline; ``message_id`` has no brackets."""

    number: int
    total: int
    subject: str
    author: Identity
    sender: Identity
    date: datetime
    body: str
    recipients: Recipients = field(default_factory=Recipients)
    message_id: str = ""
    parent_id: str = ""

    def render(self) -> bytes:
        """The mail as a file of its own, its mailbox line first; joined with the others it is a mailbox."""
        lines = [MBOX_LINE]
        if self.message_id:
            lines.append(f"Message-ID: <{self.message_id}>")
        if self.parent_id:
            lines += [f"In-Reply-To: <{self.parent_id}>", f"References: <{self.parent_id}>"]
        lines += [
            f"From: {address(self.sender.name, self.sender.email)}",
            f"Date: {format_datetime(self.date)}",
            header("Subject", self.subject),
        ]
        for name, people in (("To", self.recipients.to), ("Cc", self.recipients.cc)):
            if people:
                lines.append(f"{name}: " + ",\n    ".join(address(p.name, p.email) for p in people))
        lines += [
            "MIME-Version: 1.0",
            "Content-Type: text/plain; charset=UTF-8",
            "Content-Transfer-Encoding: 8bit",
        ]
        # A mail has one author for mailers and another for git am, which takes the one in the body.
        other = f"From: {self.author}\n\n" if self.author != self.sender else ""
        return ("\n".join(lines) + "\n\n" + other + self.body).encode("utf-8", "surrogateescape")


def header(name: str, value: str) -> str:
    """A header line, folded; RFC 2047 words where the value is not ASCII. Raises ValueError on a line break in it."""
    if "\n" in value or "\r" in value:
        raise ValueError(f"line break in the header {name}")
    if not value.isascii():
        return f"{name}: {Header(value, 'utf-8', maxlinelen=76, header_name=name).encode()}"
    lines, line = [], f"{name}:"
    for word in value.split():
        if len(line) + 1 + len(word) > 78 and line.strip() not in ("", f"{name}:"):
            lines.append(line)
            line = ""
        line += f" {word}"
    return "\n".join([*lines, line])


def address(name: str, email: str) -> str:
    """An address for a header: the name is quoted or encoded where it must be."""
    if not name:
        return email
    if not name.isascii():
        return f"{Header(name, 'utf-8', maxlinelen=0).encode()} <{email}>"
    if _SPECIALS.search(name):
        escaped = name.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}" <{email}>'
    return f"{name} <{email}>"


def subject_prefix(number: int, total: int, *, revision: int, rfc: bool) -> str:
    """``[RFC PATCH v2 03/12]`` as git writes it: the first revision goes without ``v1``, numbers are padded alike."""
    version = f" v{revision}" if revision > 1 else ""
    return f"[{'RFC ' if rfc else ''}PATCH{version} {number:0{len(str(total))}d}/{total}]"


def file_name(number: int, subject: str, *, revision: int) -> str:
    """The name that git format-patch would give the file."""
    version = f"v{revision}-" if revision > 1 else ""
    if number == 0:
        return f"{version}0000-cover-letter.patch"
    slug = re.sub(r"\.{2,}", ".", re.sub(r"[^A-Za-z0-9._]+", "-", subject)).strip("-.")[:52].rstrip("-.")
    return f"{version}{number:04d}-{slug}.patch"


def split(patch: Patch) -> tuple[str, str]:
    """The commit message below the subject, and everything from the ``---`` line on, of a stored patch."""
    body = "\n" + patch.text.partition("\n\n")[2]  # without a message the separator comes first
    message, separator, rest = body.partition("\n---\n")
    if not separator:
        raise UsageError(f"{patch.name}: no `---` line between message and diff", hint="`harness refresh` writes it")
    return message.strip("\n"), "---\n" + rest


def replace_identity(message: str, old: Identity, new: Identity) -> str:
    """The message with each trailer of ``old`` made out to ``new``, and none of them twice."""
    lines: list[str] = []
    for line in message.split("\n"):
        found = _TRAILER.fullmatch(line)
        if found and found["value"] == str(old):
            line = f"{found['key']}: {new}"
        if found and found["key"].lower().endswith("-by") and line in lines:
            continue
        lines.append(line)
    return "\n".join(lines)


def newest_date(patches: Sequence[Patch]) -> datetime:
    """The newest author date."""
    return max(patch.when for patch in patches)


def patch_mails(
    patches: Sequence[Patch], *, project: Identity, sender: Identity, revision: int, rfc: bool
) -> list[Mail]:
    """The mails of the patches, without recipients and threading.

    Where ``project`` is the author, or has signed off, the sender takes its place; another author stays, and is named
    in the body. Mail k is k seconds younger than the newest patch, so that readers that sort by date keep the order.
    """
    newest, total, mails = newest_date(patches), len(patches), []
    for number, patch in enumerate(patches, 1):
        author = Identity(patch.author, patch.email)
        message, rest = split(patch)
        message = replace_identity(message, project, sender)
        mails.append(
            Mail(
                number=number,
                total=total,
                subject=f"{subject_prefix(number, total, revision=revision, rfc=rfc)} {patch.subject}",
                author=sender if author == project else author,
                sender=sender,
                date=newest + timedelta(seconds=number),
                body=f"{message}\n{rest}" if message else rest,
            )
        )
    return mails


def cover_mail(
    subject: str, body: str, *, total: int, sender: Identity, date: datetime, revision: int, rfc: bool
) -> Mail:
    """The cover letter as mail 0."""
    prefix = subject_prefix(0, total, revision=revision, rfc=rfc)
    return Mail(0, total, f"{prefix} {subject}", sender, sender, date, body.rstrip("\n") + "\n")


def thread(mails: Sequence[Mail], *, name: str, revision: int) -> list[Mail]:
    """The mails with their Message-IDs, each an answer to the cover letter (the first of them).

    An ID is made of date, series, revision, number and a hash of all mails: any change makes a new thread.
    """
    digest = hashlib.sha256(f"{name} {revision}\n".encode())
    for mail in mails:
        raw = mail.render()
        digest.update(f"{len(raw)}\n".encode() + raw)
    cover = mails[0]
    stem = f"{cover.date:%Y%m%d}-{name}-v{revision}"
    tail = f"{digest.hexdigest()[:16]}@{cover.sender.email.rpartition('@')[2]}"
    first = f"{stem}-0-{tail}"
    return [
        replace(mail, message_id=f"{stem}-{mail.number}-{tail}", parent_id=first if mail.number else "")
        for mail in mails
    ]


def mbox_hazards(text: str) -> list[int]:
    """Line numbers that a reader of mailboxes could take for the beginning of another mail."""
    return [number for number, line in enumerate(text.split("\n"), 1) if line.startswith("From ")]
