"""Cells: what is asked of the guest's benchmark, in which order, and what it answers. Pure."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from harness.errors import UsageError

PLACEBO = "placebo"
ARMS = ("default", PLACEBO, "nice", "slice", "rr", "window")
LOADS = ("hogs:2", "storm", "udp")
THREADS = ("orch", "both")
# Arms that leave the agent's threads as they are: which of them are meant makes no difference.
_NO_THREADS = ("default", "idle", PLACEBO)
# Whole numbers of each cell that the summary is made from.
FIELDS = (
    *("steps", "mean", "elapsed", "wakes", "late100", "late1000", "max", "tool_wakes", "tool_late100"),
    *("work", "agent_work", "orch_cpu", "tool_cpu", "load_cpu", "load_min", "load_max", "tasks"),
)


@dataclass(frozen=True, order=True)
class Cell:
    """An arm under a load. ``placebo`` is the default once more: what differs from the default there is chance."""

    load: str
    threads: str
    arm: str

    @property
    def argument(self) -> str:
        """What the benchmark calls it."""
        return f"step/{'default' if self.arm == PLACEBO else self.arm}/{self.threads}/{self.load}"


@dataclass(frozen=True)
class Reading:
    """What a cell gave in one boot: whole numbers by name, times in ns, and histograms of wake latencies."""

    seed: int
    values: Mapping[str, int]
    wakes: Mapping[int, int]
    tool_wakes: Mapping[int, int]


@dataclass
class Answers:
    """What the benchmark said in one boot: readings by cell, what went wrong, and all lines of other kinds."""

    seed: int
    complete: bool = False
    readings: dict[Cell, Reading] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


def plan(arms: Sequence[str], threads: Sequence[str], loads: Sequence[str]) -> list[Cell]:
    """Every combination that says something, in a fixed order. Raises UsageError for threads there are not."""
    for name in threads:
        if name not in THREADS:
            raise UsageError(f"unknown threads {name!r}", hint=f"known: {', '.join(THREADS)}")
    cells = [
        Cell(load, which, arm)
        for load in loads
        for arm in arms
        for which in (THREADS[:1] if arm in _NO_THREADS else threads)
    ]
    return list(dict.fromkeys(cells))


def shuffled(cells: Iterable[Cell], seed: int) -> list[Cell]:
    """The order for the boot with this seed, so that no arm always comes first."""
    order = sorted(cells)
    random.Random(seed).shuffle(order)
    return order


def read(lines: Iterable[str], asked: Sequence[Cell], seed: int) -> Answers:
    """What the lines of one boot say about the cells that were ``asked``, in that order."""
    answers = Answers(seed)
    remaining = list(asked)
    for line in lines:
        kind, _, rest = line.partition(" ")
        words = dict(word.split("=", 1) for word in rest.split() if "=" in word)
        if kind == "bench" and "done" in words:
            answers.complete = not remaining
        elif kind != "step":
            answers.others.append(line)
        elif not remaining or _named(words) != remaining[0].argument:
            answers.errors.append(f"an answer that was not asked for: {line[:100]}")
        else:
            cell = remaining.pop(0)
            try:
                answers.readings[cell] = _reading(words, seed)
            except (KeyError, ValueError):
                why = f"{words['failed']}: {words['error']}" if "error" in words else "cannot be read"
                answers.errors.append(f"{cell.argument}: {why}")
    if not answers.complete:
        answers.errors.append(f"the benchmark did not finish: {len(remaining)} of {len(asked)} cells are missing")
    return answers


def _named(words: Mapping[str, str]) -> str:
    return f"step/{words.get('arm')}/{words.get('threads')}/{words.get('load')}"


def _reading(words: Mapping[str, str], seed: int) -> Reading:
    values = {name: int(words[name]) for name in FIELDS}
    return Reading(seed, values, _histogram(words["hist"]), _histogram(words["tool_hist"]))


def _histogram(text: str) -> dict[int, int]:
    pairs = (word.split(":") for word in text.split(","))
    return {int(bucket): int(count) for bucket, count in pairs}
