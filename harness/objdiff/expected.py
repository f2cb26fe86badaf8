"""Differences that are expected with the option off (configs/objdiff.yaml), and what is left without them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from harness.errors import UsageError
from harness.objdiff.compare import CHANGED, Difference

_CALL = re.compile(r"[-+](?:call|jmp|bl|b) +(\[.*\])")
_PATTERN = re.compile(r"[*?[]")


@dataclass(frozen=True)
class Entry:
    """Functions of one ``object`` that differ, as names or shell patterns, and ``why`` they may.

    ``archs`` where it is not so on every architecture. ``grows`` is by how many bytes each of them may grow: a pattern
    would hide what has nothing to do with the reason. What a pattern names calls the same functions as before, too.
    """

    object: str
    functions: tuple[str, ...]
    why: str
    archs: tuple[str, ...] = ()
    grows: int | None = None


@dataclass(frozen=True)
class Expected:
    """The whole of configs/objdiff.yaml."""

    expected: tuple[Entry, ...]


@dataclass(frozen=True)
class Judged:
    """``known`` differences with the reason for each, ``unknown`` ones, and (object, function) that was not seen."""

    known: tuple[tuple[Difference, str], ...]
    unknown: tuple[Difference, ...]
    unseen: tuple[tuple[str, str], ...]


def check(expected: Expected, where: str) -> None:
    """Raises UsageError for an entry that names nothing, gives no reason, hides everything, or comes twice."""
    seen: set[tuple[str, str, str]] = set()
    for entry in expected.expected:
        if not entry.object.endswith(".o") or entry.object.startswith(("/", ".")):
            raise UsageError(f"{where}: {entry.object!r} is no object", hint="a path as in kernel/sched/core.o")
        if not entry.functions:
            raise UsageError(f"{where}: {entry.object}: the list of functions is empty")
        if not entry.why.strip():
            raise UsageError(f"{where}: {entry.object}: 'why' is empty", hint="say which patch, and for what")
        for function in entry.functions:
            if entry.grows is None and _PATTERN.search(function):
                raise UsageError(
                    f"{where}: {entry.object}: {function} is a pattern, which needs 'grows'",
                    hint="by how many bytes each of the functions may grow",
                )
            for arch in entry.archs or ("",):
                if seen & {(entry.object, function, arch), (entry.object, function, "")}:
                    raise UsageError(f"{where}: {entry.object}: {function} is listed twice")
                seen.add((entry.object, function, arch))


def judge(differences: Sequence[Difference], expected: Expected, arch: str) -> Judged:
    """Which differences are expected on an architecture, by the first entry that has them. Pure."""
    known: list[tuple[Difference, str]] = []
    unseen: list[tuple[str, str]] = []
    left = list(differences)
    for entry in expected.expected:
        if entry.archs and arch not in entry.archs:
            continue
        mine = [one for one in left if one.object == entry.object and _matches(one, entry.functions)]
        if entry.grows is not None:
            mine = [one for one in mine if one.after - one.before <= entry.grows]
        unseen += [
            (entry.object, function) for function in entry.functions if not any(_named(one, [function]) for one in mine)
        ]
        known += [(one, entry.why) for one in mine]
        left = [one for one in left if one not in mine]
    return Judged(tuple(known), tuple(left), tuple(unseen))


def _matches(difference: Difference, functions: Sequence[str]) -> bool:
    """Whether an entry names it; by a pattern only if it is there before and after, and calls what it called."""
    names = [function for function in functions if not _PATTERN.search(function)]
    return _named(difference, names) or (_named(difference, functions) and _same_calls(difference))


def _same_calls(difference: Difference) -> bool:
    calls = [(line[0], match[1]) for line in difference.diff if (match := _CALL.match(line))]
    before, after = (Counter(target for sign, target in calls if sign == wanted) for wanted in "-+")
    return difference.what == CHANGED and before == after


def _named(difference: Difference, functions: Sequence[str]) -> bool:
    return any(fnmatchcase(difference.function, function) for function in functions)
