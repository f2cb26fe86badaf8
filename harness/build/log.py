"""What went wrong in a make log: the first error, its file, and the compiler's own lines about it. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

MAX_LINES = 20


@dataclass(frozen=True)
class Failure:
    """The first error of a log.

    ``kind`` is compiler, linker, kconfig, make, check (objtool, modpost), tool (a program is missing), disk, memory or
    other; ``summary`` one line; ``lines`` at most 20 lines of the log; ``errors`` how many errors of that kind the log
    has; ``file``, ``line`` and ``column`` where it is, empty or 0 when not known.
    """

    kind: str
    summary: str
    lines: tuple[str, ...]
    file: str = ""
    line: int = 0
    column: int = 0
    errors: int = 1


_DISK = re.compile(r"No space left on device|Disk quota exceeded")
_MEMORY = re.compile(r"fatal error: Killed signal terminated program|virtual memory exhausted|Cannot allocate memory")
_TOOL = re.compile(r"(?:^|: )([\w.+/-]+): (?:command )?not found$")
_TOOL_MAKE = re.compile(r"make(?:\[\d+\])?: ([\w.+/-]+): No such file or directory$")
_COMPILER = re.compile(r"([^\s:][^:]*):(\d+):(?:(\d+):)? (?:fatal )?[Ee]rror: (.*)")
_KCONFIG = re.compile(r"((?:[\w./-]*/)?Kconfig[\w.-]*):(\d+):\s*(.*)")
_LINKER = re.compile(
    r".*: (?:undefined reference to|multiple definition of|relocation truncated to fit)|"
    r"(?:\S*[/-])?ld(?:\.\w+)?: (?!warning:|.*: warning:|.*: in function).+"
)
_LINKER_WHERE = re.compile(r"(?:\S*ld(?:\.\w+)?: )?([\w./-]+\.[chSo])(?=:)")
_CHECK = re.compile(r"ERROR: modpost: .*|.*error: objtool: .*|ld-check: .*|FAILED: .*|BTF: .*|Error: .*")
_NO_RULE = re.compile(r"make(?:\[\d+\])?: \*\*\* (No rule to make target .*?)(?:\.  Stop\.)?$")
_STOP = re.compile(r"(?:.*?:\d+: )?\*\*\* (.*)")
_MAKE_STATUS = re.compile(r"make(?:\[\d+\])?: \*\*\* \[(?:(.*?):\d+: )?([^\]]+)\] (?:Error \d+|.*)")
_QUIET = re.compile(r"  [A-Z][A-Z0-9_ .\[\]]{1,12} {1,}\S")
_MAKE_SAYS = re.compile(r"make(?:\[\d+\])?: ")
# Lines that belong to a diagnostic: what precedes it, source excerpts, notes, and continuation lines.
_BEFORE = re.compile(r"In file included from |\s+from |.*: In (?:member )?function |.*: At top level:|.*: note: ")


def compiled(line: str) -> bool:
    """Whether a line of the log says that one source file of the kernel is being compiled or assembled."""
    return line.startswith(("  CC ", "  AS ")) and not line.startswith(("  CC [U]", "  AS [U]"))


def shortened(text: str, roots: Sequence[str]) -> str:
    """``text`` with paths below ``roots`` (the tree, the output directory) made relative to them."""
    for root in sorted(roots, key=len, reverse=True):
        if root:
            text = text.replace(root.rstrip("/") + "/", "")
    return text


def first_failure(text: str, roots: Sequence[str] = ()) -> Failure | None:
    """The failure that a log tells of, None if it tells of none.

    A full disk or lack of memory explains the compiler errors around it, so these go first. Parallel make jobs may log
    after the first error; the earliest error is the one reported.
    """
    lines = shortened(text, roots).splitlines()
    for finder in (_disk, _memory, _sources, _tool, _make):
        failure = finder(lines)
        if failure:
            return failure
    return None


def _hits(lines: Sequence[str], matches: Callable[[str], object]) -> list[int]:
    return [number for number, line in enumerate(lines) if matches(line)]


def _disk(lines: Sequence[str]) -> Failure | None:
    hits = _hits(lines, _DISK.search)
    return Failure("disk", "no space left on the disk", (lines[hits[0]],), errors=len(hits)) if hits else None


def _memory(lines: Sequence[str]) -> Failure | None:
    hits = _hits(lines, _MEMORY.search)
    if not hits:
        return None
    return Failure("memory", "the compiler ran out of memory", (lines[hits[0]],), errors=len(hits))


def _tool(lines: Sequence[str]) -> Failure | None:
    for line in lines:
        if match := (_TOOL_MAKE.match(line) or _TOOL.search(line)):
            # `foo.c: not found` is no program; a program has no suffix of a source file.
            if re.search(r"\.[chSoad]$", match[1]):
                continue
            return Failure("tool", f"{match[1].rpartition('/')[2]} is not installed", (line,))
    return None


def _sources(lines: Sequence[str]) -> Failure | None:
    """The earliest of the errors that name a place in the source."""
    found: list[tuple[int, Failure]] = []
    for finder in (_compiler, _linker, _kconfig, _checks):
        at = finder(lines)
        if at:
            found.append(at)
    return min(found, key=lambda item: item[0])[1] if found else None


def _compiler(lines: Sequence[str]) -> tuple[int, Failure] | None:
    hits = [n for n in _hits(lines, _COMPILER.match) if not lines[n].startswith("make")]
    if not hits:
        return None
    at = hits[0]
    match = _COMPILER.match(lines[at])
    assert match is not None
    if _KCONFIG.match(lines[at]):
        return None
    return at, Failure(
        "compiler",
        lines[at].strip(),
        _block(lines, at),
        file=match[1],
        line=int(match[2]),
        column=int(match[3] or 0),
        errors=len(hits),
    )


def _block(lines: Sequence[str], at: int) -> tuple[str, ...]:
    """The diagnostic at ``at`` with what leads to it and what follows it."""
    start = at
    while start > 0 and at - start < MAX_LINES // 2 and _BEFORE.match(lines[start - 1]):
        start -= 1
    end = at + 1
    while end < len(lines) and end - start < MAX_LINES and not _QUIET.match(lines[end]):
        if _MAKE_SAYS.match(lines[end]):
            break
        end += 1
    return tuple(lines[start:end])


def _linker(lines: Sequence[str]) -> tuple[int, Failure] | None:
    hits = _hits(lines, _LINKER.fullmatch)
    if not hits:
        hits = _hits(lines, _LINKER.match)
    if not hits:
        return None
    at = hits[0]
    where = _LINKER_WHERE.match(lines[at])
    start = at - 1 if at and ": in function " in lines[at - 1] else at
    block = tuple(
        line for line in lines[start : start + MAX_LINES] if not _QUIET.match(line) and "make" not in line[:5]
    )
    return at, Failure("linker", lines[at].strip(), block, file=where[1] if where else "", errors=len(hits))


def _kconfig(lines: Sequence[str]) -> tuple[int, Failure] | None:
    hits = [n for n in _hits(lines, _KCONFIG.match) if ": warning:" not in lines[n] and ":warning:" not in lines[n]]
    if not hits:
        return None
    at = hits[0]
    match = _KCONFIG.match(lines[at])
    assert match is not None
    block = tuple(line for line in lines[at : at + MAX_LINES] if not _MAKE_SAYS.match(line))
    return at, Failure("kconfig", lines[at].strip(), block, file=match[1], line=int(match[2]), errors=len(hits))


def _checks(lines: Sequence[str]) -> tuple[int, Failure] | None:
    hits = _hits(lines, _CHECK.fullmatch)
    if not hits:
        return None
    return hits[0], Failure(
        "check", lines[hits[0]].strip(), tuple(lines[n] for n in hits[:MAX_LINES]), errors=len(hits)
    )


def _make(lines: Sequence[str]) -> Failure | None:
    """Errors of make itself, and of a recipe that printed nothing known: the lines before make gave up."""
    for number, line in enumerate(lines):
        if match := _NO_RULE.match(line):
            return Failure("make", match[1], (line,))
        if match := _MAKE_STATUS.match(line):
            start = number
            while start > 0 and number - start < MAX_LINES - 1 and not _QUIET.match(lines[start - 1]):
                start -= 1
            said = tuple(line for line in lines[start:number] if line.strip() and not _MAKE_SAYS.match(line))
            summary = said[-1].strip() if said else line
            return Failure("other", f"{match[2]}: {summary}" if said else line, (*said, line))
        if match := _STOP.match(line):
            block = tuple(entry for entry in lines[max(0, number - 5) : number + 5] if entry.strip("* "))
            return Failure("make", match[1], block)
    return None
