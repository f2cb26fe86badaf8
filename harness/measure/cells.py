"""Cells: what is asked of the guest's benchmark, in which order, and what it answers. Pure."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from harness.errors import UsageError

PLACEBO = "placebo"
ARMS = ("default", PLACEBO, "nice", "slice", "rr", "window")
LOADS = ("hogs:2", "storm", "udp")
OPERATIONS = ("getppid", "yield", "eventfd", "pipe", "futex")
THREADS = ("orch", "both")
# Of the benchmark, and of QEMU.
MOST_STEPS, MOST_SEED = 200_000, 2**63 - 1
_ARM = r"(default|idle|pin|nice(:-?\d+)?|slice(:\d+(:-?\d+)?)?|rr(:\d+)?|window(:\d+){0,3})"
_LOAD = r"(none|(hogs|storm|udp)(:\d+)?)"
_TASK = rf"(\d+x)?(spin|burst:\d+:\d+)(@{_ARM})?(%[^+%@]+)?"
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


@dataclass(frozen=True)
class Share:
    """What one task of a share cell got: ``share`` of one CPU."""

    cell: str
    kind: str
    arm: str
    cgroup: str
    share: float


@dataclass
class Answers:
    """What the benchmark said in one boot.

    Readings by cell, shares of tasks, ns of operations, what went wrong, and all lines of other kinds.
    """

    seed: int
    complete: bool = False
    readings: dict[Cell, Reading] = field(default_factory=dict)
    shares: list[Share] = field(default_factory=list)
    operations: dict[str, float] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


def plan(arms: Sequence[str], threads: Sequence[str], loads: Sequence[str]) -> list[Cell]:
    """Every combination that says something, in a fixed order. Raises UsageError for what the benchmark has not."""
    for arm in arms:
        _check("arm", arm, rf"{PLACEBO}|{_ARM}", "default, placebo, nice, slice, rr, idle, pin, window")
    for load in loads:
        _check("load", load, _LOAD, "none, hogs:N, storm:N, udp:N")
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


def check_shares(shares: Sequence[str]) -> None:
    """Raise UsageError for tasks of a share cell that the benchmark has not."""
    for tasks in shares:
        _check("tasks", tasks, rf"{_TASK}(\+{_TASK})*", "[COUNTx]spin or burst:RUN:SLEEP[@ARM][%CGROUP], joined by +")


def _check(what: str, word: str, pattern: str, known: str) -> None:
    if not re.fullmatch(pattern, word, re.ASCII):
        raise UsageError(f"unknown {what} {word!r}", hint=f"known: {known}")


def shuffled(cells: Iterable[Cell], seed: int) -> list[Cell]:
    """The order for the boot with this seed, so that no arm always comes first."""
    order = sorted(cells)
    random.Random(seed).shuffle(order)
    return order


def read(lines: Iterable[str], asked: Sequence[Cell | str], seed: int) -> Answers:
    """What the lines of one boot say about the cells that were ``asked``, in that order.

    A cell that is not one of steps is given as the benchmark calls it: ``share/TASKS`` or ``op/NAME``.
    """
    answers = Answers(seed)
    remaining = list(asked)
    tasks: list[dict[str, str]] = []
    for line in lines:
        kind, _, rest = line.partition(" ")
        words = dict(word.split("=", 1) for word in rest.split() if "=" in word)
        if kind == "bench" and "done" in words:
            answers.complete = not remaining
        elif kind == "share":
            tasks.append(words)
        elif kind not in ("step", "shares", "op"):
            answers.others.append(line)
        elif not remaining or _named(kind, words) != argument(remaining[0]):
            answers.errors.append(f"an answer that was not asked for: {line[:100]}")
        else:
            cell = remaining.pop(0)
            try:
                if isinstance(cell, Cell):
                    answers.readings[cell] = _reading(words, seed)
                elif kind == "op":
                    answers.operations[words["name"]] = float(words["ns"])
                else:
                    answers.shares += _shares(cell, tasks, int(words["tasks"]))
                    tasks = []
            except (KeyError, ValueError):
                refused = next((task for task in [words, *tasks] if "error" in task), {})
                why = f"{refused.get('failed', 'a task')}: {refused['error']}" if refused else "cannot be read"
                answers.errors.append(f"{argument(cell)}: {why}")
                tasks = []
    if not answers.complete:
        answers.errors.append(f"the benchmark did not finish: {len(remaining)} of {len(asked)} cells are missing")
    return answers


def argument(cell: Cell | str) -> str:
    """What the benchmark calls a cell."""
    return cell.argument if isinstance(cell, Cell) else cell


def _named(kind: str, words: Mapping[str, str]) -> str:
    if kind == "shares":
        return words.get("cell", "")
    if kind == "op":
        return f"op/{words.get('name')}"
    return f"step/{words.get('arm')}/{words.get('threads')}/{words.get('load')}"


def _shares(cell: str, tasks: Sequence[Mapping[str, str]], count: int) -> list[Share]:
    if len(tasks) != count or any("error" in task for task in tasks):
        raise ValueError(cell)
    return [Share(cell, task["kind"], task["arm"], task["cgroup"], float(task["share"])) for task in tasks]


def _reading(words: Mapping[str, str], seed: int) -> Reading:
    values = {name: int(words[name]) for name in FIELDS}
    return Reading(seed, values, _histogram(words["hist"]), _histogram(words["tool_hist"]))


def _histogram(text: str) -> dict[int, int]:
    pairs = (word.split(":") for word in text.split(","))
    return {int(bucket): int(count) for bucket, count in pairs}
