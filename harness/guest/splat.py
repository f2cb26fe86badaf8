"""Kernel messages that say something is wrong, found by the rules in qemu/splats.yaml."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness import data
from harness.errors import UsageError
from harness.guest.log import BANNER, Line


@dataclass(frozen=True)
class Rule:
    """What begins a splat of ``kind`` and what ends it, at most ``lines`` messages long; ``trace``: its call trace."""

    kind: str
    start: str
    end: str = ""
    trace: bool = False
    lines: int = 40


@dataclass(frozen=True)
class Exclusion:
    """What looks like a splat and is none: by its first message, by the KUnit suite that provokes it, or because what
    would make it one is in none of its messages (``lacks``, a regular expression)."""

    why: str
    start: str = ""
    suite: str = ""
    lacks: str = ""
    kinds: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rules:
    """The whole file."""

    rules: tuple[Rule, ...]
    exclusions: tuple[Exclusion, ...] = ()

    @staticmethod
    def load(path: Path) -> Rules:
        """Read and check the file. Raises UsageError naming the rule whose expression does not compile."""
        rules = data.load(path, Rules)
        texts = [text for rule in rules.rules for text in (rule.start, rule.end)]
        texts += [
            text for exclusion in rules.exclusions for text in (exclusion.start, exclusion.suite, exclusion.lacks)
        ]
        for text in texts:
            try:
                re.compile(text)
            except re.error as exc:
                raise UsageError(f"{path}: {text!r} is no regular expression: {exc}", hint="mend that line") from None
        for exclusion in rules.exclusions:
            if not (exclusion.start or exclusion.suite or exclusion.lacks):
                raise UsageError(f"{path}: {exclusion.why!r}: an exclusion needs `start`, `suite` or `lacks`")
        return rules

    def excusing(self, provoked: Mapping[str, str]) -> Rules:
        """These rules with kinds of splats that do not count, each with the reason."""
        more = (Exclusion(why, start=".", kinds=(kind,)) for kind, why in provoked.items())
        return replace(self, exclusions=(*self.exclusions, *more))


@dataclass(frozen=True)
class Splat:
    """One report. ``first`` is the line of the log (from 1) that its first message is on; ``excused`` says why it does
    not count, and is empty when it does."""

    kind: str
    headline: str
    first: int
    lines: tuple[str, ...]
    excused: str = ""

    def shown(self, most: int = 25) -> str:
        """At most ``most`` lines of it."""
        rest = len(self.lines) - most
        return "\n".join([*self.lines[:most], *([f"[{rest} more lines in the log]"] if rest > 0 else [])])


_CUT = re.compile(r"-{4,}\[ cut here \]-{4,}|={20,}$")
_SUITE_START = re.compile(r"\s*# Subtest: (.*)$")
_SUITE_END = re.compile(r"(?:not )?ok \d+ (\S+)")


def find(lines: Sequence[Line], rules: Rules) -> list[Splat]:
    """Every splat among the kernel's own messages, in order. Test output between its messages is left out."""
    starts = [(re.compile(rule.start), re.compile(rule.end) if rule.end else None, rule) for rule in rules.rules]
    kernel = [line for line in lines if line.from_kernel]
    found: list[Splat] = []
    suite = ""
    index = 0
    while index < len(kernel):
        line = kernel[index]
        if match := _SUITE_START.match(line.message):
            suite = suite or match.group(1).strip()
        elif (match := _SUITE_END.match(line.message)) and match.group(1) == suite:
            suite = ""
        hit = next(((end, rule) for start, end, rule in starts if start.match(line.message)), None)
        if hit is None:
            index += 1
            continue
        end, rule = hit
        begin = index - 1 if index and _CUT.match(kernel[index - 1].message) else index
        stop = _last(kernel, index, end, rule, starts)
        body = tuple(entry.message for entry in kernel[begin : stop + 1])
        excused = _excuse(rules, rule.kind, line.message, suite, body)
        found.append(Splat(rule.kind, line.message.strip(), line.number, body, excused))
        index = stop + 1
    return found


def _last(
    kernel: Sequence[Line],
    index: int,
    end: re.Pattern[str] | None,
    rule: Rule,
    starts: Sequence[tuple[re.Pattern[str], re.Pattern[str] | None, Rule]],
) -> int:
    """The index of a splat's last message."""
    limit = min(len(kernel), index + rule.lines)
    traced = False
    for at in range(index + 1, limit):
        message = kernel[at].message
        if end is not None and end.search(message):
            return at
        if message.startswith(BANNER) or (_CUT.match(message) and at > index + 1):
            return at - 1
        # Another kind of report is a splat of its own; of the same kind it is a part of this one (an oops has several
        # headlines).
        if any(other.kind != rule.kind and start.match(message) for start, _, other in starts):
            return at - 1
        if rule.trace and "</TASK>" in message:
            return at
        # arm64 prints no closing tag: its trace is over when the lines are no longer indented.
        if rule.trace and traced and not message.startswith(" "):
            return at - 1
        traced = traced or message.startswith("Call trace:")
        if not rule.trace and end is None and not message.startswith(" "):
            return at - 1
    return limit - 1


def _excuse(rules: Rules, kind: str, message: str, suite: str, body: Sequence[str]) -> str:
    for exclusion in rules.exclusions:
        if exclusion.start and not re.match(exclusion.start, message):
            continue
        if exclusion.suite and not (suite and re.fullmatch(exclusion.suite, suite)):
            continue
        if exclusion.lacks and any(re.search(exclusion.lacks, text) for text in body):
            continue
        if exclusion.kinds and kind not in exclusion.kinds:
            continue
        return exclusion.why
    return ""
