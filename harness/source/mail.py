"""Patches as mails: what one says, and whether it is whole. Pure: text in, frozen values out.

The reading agrees with ``git am``: where a message ends, which parts of a subject are tags, how paths are quoted. What
the two would read differently is refused here rather than guessed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from email.utils import parseaddr, parsedate_to_datetime

from harness.errors import UsageError

NO_BLOB = "0" * 40
EMPTY_BLOB = "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"

_MBOX_LINE = re.compile(r"From \S+ .*\d{4}$")
_HEADER = re.compile(r"([!-9;-~]+):[ \t]*(.*)")
_TAGS = re.compile(r"(?:\s*\[[^\]]*\])+\s*|(?:\s*[Rr][Ee]:)+\s*")
_INDEX = re.compile(r"index ([0-9a-f]+)\.\.([0-9a-f]+)(?: \d{6})?$")
_HUNK = re.compile(r"@@ -(\d{1,9})(?:,(\d{1,9}))? \+(\d{1,9})(?:,(\d{1,9}))? @@")
# Where git am takes the message to end.
_BREAK = re.compile(r"diff -|Index: |---(?:$|[ \t]+$| (?=\S))")
_OCTAL = re.compile("[0-3][0-7]{2}")
_ESCAPES = {"a": 7, "b": 8, "t": 9, "n": 10, "v": 11, "f": 12, "r": 13, '"': 34, "\\": 92}


@dataclass(frozen=True)
class FileDiff:
    """What a patch does to one file.

    ``old_path`` is None for a new file, ``new_path`` for a removed one. The blobs are 40 hex digits, zeros where there
    is no file, and empty when only mode or name change. ``hunk_lines`` holds, per hunk, its first line in the old file.
    """

    old_path: str | None
    new_path: str | None
    old_blob: str
    new_blob: str
    hunk_lines: tuple[int, ...] = ()

    @property
    def hunks(self) -> int:
        """Number of hunks; 0 for a binary file, an empty one or a change of mode."""
        return len(self.hunk_lines)

    @property
    def path(self) -> str:
        """The name to speak of."""
        return self.new_path or self.old_path or ""


@dataclass(frozen=True)
class Patch:
    """A mail with a patch. ``message`` is the commit message below the subject; ``date`` is as in the mail (RFC 2822).

    ``text`` is the whole mail; bytes that are not UTF-8 are surrogate escapes, so that encoding it with
    ``surrogateescape`` gives the bytes of the file.
    """

    name: str
    subject: str
    author: str
    email: str
    date: str
    message: str
    diffs: tuple[FileDiff, ...]
    text: str
    diff_offset: int = 0

    @property
    def commit_message(self) -> str:
        """Subject and message as a commit has them, ending in a newline."""
        return f"{self.subject}\n\n{self.message}\n" if self.message else f"{self.subject}\n"

    @property
    def diff(self) -> str:
        """The part from the first ``diff --git`` line on."""
        return self.text[self.diff_offset :]

    @property
    def when(self) -> datetime:
        """The author date, with its time zone."""
        value = parsedate_to_datetime(self.date)
        return value if value.tzinfo else value.replace(tzinfo=UTC)

    @property
    def git_date(self) -> str:
        """The author date as GIT_AUTHOR_DATE takes it without guessing: ``@SECONDS ZONE``."""
        return f"@{int(self.when.timestamp())} {self.when:%z}"


def decode(raw: bytes) -> str:
    """Bytes of a mail as text that can be encoded again without loss."""
    return raw.decode("utf-8", "surrogateescape")


def parse(text: str, name: str) -> Patch:
    """The patch in a mail; ``name`` is what messages call it.

    Raises UsageError naming the line when headers are missing, blob ids are abbreviated, or a hunk is cut short.
    """
    lines = text.split("\n")
    headers, body = _headers(lines, name)
    for wanted in ("from", "date", "subject"):
        if not headers.get(wanted):
            raise _malformed(name, 1, f"there is no {wanted.capitalize()}: header")
    author, email = parseaddr(_decoded(headers["from"]))
    if "@" not in email:
        raise _malformed(name, 1, f"the From: header holds no address: {headers['from']!r}")
    try:
        parsedate_to_datetime(headers["date"])
    except (ValueError, TypeError):
        raise _malformed(name, 1, f"the Date: header is no date: {headers['date']!r}") from None
    subject = _TAGS.sub("", _decoded(headers["subject"]), count=1).strip()
    while found := _TAGS.match(subject):
        subject = subject[found.end() :].strip()
    if not subject:
        raise _malformed(name, 1, "the subject is empty")

    end = next((i for i in range(body, len(lines)) if _BREAK.match(lines[i])), len(lines))
    message = "\n".join(lines[body:end]).strip("\n")
    if message.startswith(("From: ", "Date: ", "Subject: ")):
        raise _malformed(name, body + 1, "the message begins with a mail header, which git am would take as such")
    first = next((i for i in range(end, len(lines)) if lines[i].startswith("diff --git ")), None)
    if first is None:
        raise _malformed(name, len(lines), "there is no `diff --git` line")
    return Patch(
        name=name,
        subject=subject,
        author=author or email,
        email=email,
        date=headers["date"],
        message=message,
        diffs=_diffs(lines, first, name),
        text=text,
        diff_offset=sum(len(line) + 1 for line in lines[:first]),
    )


def _malformed(name: str, line: int, what: str) -> UsageError:
    return UsageError(
        f"{name}:{line}: {what}", hint="take the file from version control, or write it anew with `harness refresh`"
    )


def _decoded(value: str) -> str:
    try:
        return str(make_header(decode_header(value))) if "=?" in value else value
    except (HeaderParseError, LookupError, UnicodeError, ValueError):
        return value


def _headers(lines: list[str], name: str) -> tuple[dict[str, str], int]:
    """The headers in lower case, unfolded, and the number of the line after them."""
    headers: dict[str, str] = {}
    last = ""
    for number, line in enumerate(lines):
        if number == 0 and _MBOX_LINE.match(line):
            continue
        if not line:
            return headers, number + 1
        if line[0] in " \t" and last:
            headers[last] += " " + line.strip()
            continue
        found = _HEADER.fullmatch(line)
        if not found:
            raise _malformed(name, number + 1, "this is no mail header")
        last = found[1].lower()
        headers.setdefault(last, found[2].strip())
    raise _malformed(name, len(lines), "the mail ends within its headers")


def _diffs(lines: list[str], first: int, name: str) -> tuple[FileDiff, ...]:
    diffs: list[FileDiff] = []
    number = first
    while number < len(lines):
        if lines[number].startswith("diff --git "):
            diff, number = _file_diff(lines, number, name)
            diffs.append(diff)
        elif lines[number] == "-- " or not lines[number]:
            break  # the signature of a mailer, or the end
        else:
            raise _malformed(name, number + 1, "this line belongs to no hunk")
    return tuple(diffs)


def _file_diff(lines: list[str], start: int, name: str) -> tuple[FileDiff, int]:
    old, new = _names(lines[start][len("diff --git ") :], name, start + 1)
    old_path: str | None = old
    new_path: str | None = new
    blobs: tuple[str, str] | None = None
    only_mode_or_name = binary = False
    hunks: list[int] = []
    number = start + 1
    while number < len(lines):
        line = lines[number]
        if line.startswith("diff --git ") or line in ("", "-- "):
            break
        if line.startswith("new file mode"):
            old_path = None
        elif line.startswith("deleted file mode"):
            new_path = None
        elif line.startswith(("old mode", "new mode", "similarity index", "dissimilarity index")):
            only_mode_or_name = True
        elif line.startswith(("rename from ", "copy from ")):
            old_path = _unquote(line.split(" ", 2)[2], name, number + 1)
        elif line.startswith(("rename to ", "copy to ")):
            new_path = _unquote(line.split(" ", 2)[2], name, number + 1)
        elif found := _INDEX.match(line):
            if len(found[1]) != 40 or len(found[2]) != 40:
                raise _malformed(name, number + 1, "blob ids must be whole (git format-patch --full-index)")
            blobs = (found[1], found[2])
        elif line == "GIT binary patch":
            binary = True
            number = _skip_binary(lines, number)
            continue
        elif line.startswith("Binary files "):
            raise _malformed(name, number + 1, "a binary file without its content (git format-patch --binary)")
        elif line.startswith("--- "):
            old_path = _side(line[4:], "a/", old_path, name, number + 1)
        elif line.startswith("+++ "):
            new_path = _side(line[4:], "b/", new_path, name, number + 1)
        elif found := _HUNK.match(line):
            hunks.append(int(found[1]))
            number = _skip_hunk(lines, number, found, name)
            continue
        else:
            raise _malformed(name, number + 1, "this line belongs to no hunk")
        number += 1
    if blobs is None and (hunks or not only_mode_or_name):
        raise _malformed(name, start + 1, "this diff has no `index` line (git format-patch --full-index)")
    if blobs and hunks and (old_path is None) != (blobs[0] == NO_BLOB):
        raise _malformed(name, start + 1, "the `index` line and the name of the old file contradict each other")
    if blobs and not hunks and not binary and set(blobs) != {NO_BLOB, EMPTY_BLOB}:
        raise _malformed(name, start + 1, "this diff is cut short: it has no hunk")
    old_blob, new_blob = blobs or ("", "")
    return FileDiff(old_path, new_path, old_blob, new_blob, tuple(hunks)), number


def _skip_hunk(lines: list[str], number: int, found: re.Match[str], name: str) -> int:
    """The number of the line after a hunk; its lines must be as many as its head says."""
    old, new = (int(count) if count is not None else 1 for count in (found[2], found[4]))
    head = number
    while old > 0 or new > 0:
        number += 1
        # The last element of the split is what follows the final newline: not a line.
        if number >= len(lines) - 1:
            raise _malformed(name, len(lines) - 1, f"the hunk of line {head + 1} is cut short")
        mark = lines[number][:1]
        if mark in (" ", ""):
            old, new = old - 1, new - 1
        elif mark == "-":
            old -= 1
        elif mark == "+":
            new -= 1
        elif mark != "\\":
            raise _malformed(name, number + 1, f"the hunk of line {head + 1} is cut short")
        if old < 0 or new < 0:
            raise _malformed(name, number + 1, f"the hunk of line {head + 1} is longer than its head says")
    number += 1
    while number < len(lines) and lines[number].startswith("\\"):
        number += 1
    return number


def _skip_binary(lines: list[str], number: int) -> int:
    """The number of the line after a binary patch: forward and backward part, each ended by an empty line."""
    number += 1
    while number < len(lines) and lines[number].startswith(("literal ", "delta ")):
        while number < len(lines) and lines[number]:
            number += 1
        number += 1
    return number


def _names(rest: str, name: str, line: int) -> tuple[str, str]:
    """Both names of a ``diff --git`` line. Unquoted names with spaces are only split when they are equal."""
    if rest.startswith('"'):
        end = _closing_quote(rest)
        if rest[end + 1 : end + 2] != " ":
            raise _malformed(name, line, "this `diff --git` line does not name two files")
        return _unquote(rest[: end + 1], name, line)[2:], _unquote(rest[end + 2 :], name, line)[2:]
    if rest.endswith('"'):
        old, found, new = rest.partition(' "')
        if not found:
            raise _malformed(name, line, "this `diff --git` line does not name two files")
        return old[2:], _unquote(f'"{new}', name, line)[2:]
    half = (len(rest) - 1) // 2
    if rest[:half][2:] == rest[half + 1 :][2:] and rest[half : half + 1] == " ":
        return rest[2:half], rest[half + 3 :]
    if rest.count(" ") == 1:
        old, new = rest.split(" ")
        return old[2:], new[2:]
    if " b/" not in rest:
        raise _malformed(name, line, "this `diff --git` line does not name two files")
    old, _, new = rest.partition(" b/")  # a rename: its own lines say it better
    return old[2:], new


def _side(value: str, prefix: str, otherwise: str | None, name: str, line: int) -> str | None:
    value = value.removesuffix("\t")
    if value == "/dev/null":
        return None
    path = _unquote(value, name, line)
    return path.removeprefix(prefix) if path.startswith(prefix) else otherwise


def _closing_quote(text: str) -> int:
    position = 1
    while position < len(text) and text[position] != '"':
        position += 2 if text[position] == "\\" else 1
    return position


def _unquote(text: str, name: str, line: int) -> str:
    """A path as git quotes it: in double quotes with C escapes, bytes above 127 in octal."""
    if not (text.startswith('"') and text.endswith('"') and len(text) > 1):
        return text
    raw, position, inner = bytearray(), 0, text[1:-1]
    while position < len(inner):
        char = inner[position]
        if char != "\\":
            raw += char.encode("utf-8", "surrogateescape")
            position += 1
        elif _OCTAL.fullmatch(inner[position + 1 : position + 4]):
            raw.append(int(inner[position + 1 : position + 4], 8))
            position += 4
        elif (char := inner[position + 1 : position + 2]) in _ESCAPES:
            raw.append(_ESCAPES[char])
            position += 2
        else:
            raise _malformed(name, line, f"git quotes no path like this: {text}")
    return decode(bytes(raw))
