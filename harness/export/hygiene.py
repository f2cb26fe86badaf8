"""What a maintainer would send back before reading: pure checks of one patch mail, and of who maintains new files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from harness.data import Identity
from harness.export.mails import mbox_hazards, split
from harness.source.mail import Patch

SUBJECT_MAX = 75
WRAP = 75
LINES_MAX = 300  # changed lines above which a reviewer would ask to split

_TRAILER = re.compile(r"[A-Z][A-Za-z-]+: \S")
_CONFLICT = re.compile(r"\+(<{7}|>{7})( |$)")


@dataclass(frozen=True)
class Finding:
    """Something about a patch; a ``fault`` fails the check, anything else is a remark."""

    patch: str
    text: str
    fault: bool = True

    def __str__(self) -> str:
        return f"{self.patch}: {'' if self.fault else 'note: '}{self.text}"


def changed_lines(patch: Patch) -> tuple[int, int]:
    """Lines that the patch adds and removes."""
    added = removed = 0
    for line in hunk_lines(patch):
        added += line.startswith("+")
        removed += line.startswith("-")
    return added, removed


def hunk_lines(patch: Patch) -> list[str]:
    """The lines of all hunks: context, added and removed, each with its first character."""
    lines: list[str] = []
    old = new = 0
    for line in patch.text.split("\n"):
        if old > 0 or new > 0:
            if not line.startswith("\\"):
                old -= not line.startswith("+")
                new -= not line.startswith("-")
                lines.append(line)
        elif found := re.match(r"@@ -\d+(?:,(\d+))? \+\d+(?:,(\d+))? @@", line):
            old, new = (int(count) if count is not None else 1 for count in found.groups())
    return lines


def check(patch: Patch, project: Identity) -> list[Finding]:
    """All findings about one stored patch, ``project`` being the identity that stored patches carry."""
    found: list[Finding] = []

    def fault(text: str) -> None:
        found.append(Finding(patch.name, text))

    def note(text: str) -> None:
        found.append(Finding(patch.name, text, fault=False))

    message, _ = split(patch)
    trailers, body = _parts(message)
    if len(patch.subject) > SUBJECT_MAX:
        fault(f"the subject has {len(patch.subject)} characters, {SUBJECT_MAX} are allowed")
    if ": " not in patch.subject:
        fault("the subject names no subsystem (`subsystem: what it does`)")
    if patch.subject.endswith("."):
        fault("the subject ends in a full stop")
    if Identity(patch.author, patch.email) != project:
        fault(f"the author is {patch.author} <{patch.email}>, configs/identity.yaml says {project}")
    if f"Signed-off-by: {project}" not in trailers:
        fault(f"there is no Signed-off-by: {project}")
    if not any(line.strip() for line in body):
        fault("the commit message has no body that says why")
    for line in body:
        if len(line) > WRAP and not line.startswith((" ", "\t", ">")) and " " in line.strip() and "://" not in line:
            fault(f"a line of the message is longer than {WRAP} characters: {line[:40]}...")
    for line in message.split("\n"):
        if line != line.rstrip():
            fault(f"trailing white space in the message: {line.strip()[:40]!r}")
    for number in mbox_hazards(message):
        fault(f"line {number} of the message begins with `From `, which begins another mail in a mailbox")
    added = [line for line in hunk_lines(patch) if line.startswith("+")]
    for line in added:
        if line[1:] != line[1:].rstrip():
            fault(f"adds trailing white space: {line.strip()[:60]!r}")
        if _CONFLICT.match(line):
            fault(f"adds a conflict marker: {line[:30]!r}")
    if any(project.email in line for line in added) and project.is_placeholder:
        note(f"adds the placeholder address {project.email} to a file, which export does not replace")
    plus, minus = changed_lines(patch)
    if plus + minus > LINES_MAX:
        note(f"changes {plus + minus} lines, more than {LINES_MAX}: could it be two patches?")
    return found


def _parts(message: str) -> tuple[list[str], list[str]]:
    """The trailers (the last paragraph, when it is made of them) and the lines above."""
    lines = message.split("\n")
    start = len(lines)
    while start and lines[start - 1].strip():
        start -= 1
    last = lines[start:]
    if last and all(_TRAILER.match(line) or line.startswith((" ", "\t", "[")) for line in last):
        return last, lines[:start]
    return [], lines


def new_files(patch: Patch) -> list[str]:
    """The files that a patch creates."""
    return [diff.new_path for diff in patch.diffs if diff.old_path is None and diff.new_path is not None]


def unmaintained(maintainers: str, paths: Iterable[str]) -> list[str]:
    """Those of ``paths`` that no section of MAINTAINERS but the one for everything covers.

    The patterns mean what get_maintainer.pl takes them for: a directory stands for all below, ``*`` for anything in a
    path of the same depth, and the end of a name may be left out.
    """
    # The section THE REST has the pattern `*`, which needs no patch to MAINTAINERS to match.
    values = [value for value in re.findall(r"^F:\s+(\S+)\s*$", maintainers, re.M) if value not in ("*", "*/")]
    return [path for path in paths if not any(_covers(value, path) for value in values)]


def _covers(value: str, path: str) -> bool:
    if path.startswith(value.rstrip("/") + "/"):
        return True
    pattern = re.escape(value).replace(r"\*", ".*").replace(r"\?", ".")
    return re.match(pattern, path) is not None and (value.endswith("/") or path.count("/") == value.count("/"))


def faults(findings: Sequence[Finding]) -> list[Finding]:
    """Those that fail the check."""
    return [finding for finding in findings if finding.fault]
