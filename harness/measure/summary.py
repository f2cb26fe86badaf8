"""From readings to a table: each cell's figures over all boots, and what they are of another arm's. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from harness.measure.cells import PLACEBO, Cell, Reading, Share
from harness.measure.statistics import ENOUGH_BOOTS, Ratio, geometric_mean, paired_ratio, pooled, quantile
from harness.report import table

DEFAULT = "default"
HEADER = (
    *("load", "arm", "threads", "boots", "wakes", ">100us", ">1ms", "p50", "p99", "max", "step", "ratio"),
    *("95 % interval", "wait", "ratio", "tool>100us", "work", "together", "load cpu", "agent cpu"),
)


@dataclass(frozen=True)
class Row:
    """A cell of steps over all boots.

    Shares are of 1, times in us, CPU times of one CPU. ``wait_us`` is what a step takes beyond its own CPU time: an
    emulated CPU can get through less in a second than another one, and the step depends on which it runs on.
    ``step_ratio``, ``wait_ratio`` and ``work_ratio`` are mean step, wait and the load's rate of work against those of
    another arm in the same boots, ``together_ratio`` the rate of the work of load and agent, each in the CPU time that
    it took there: 1 less what switching, interrupts and idling have cost more.
    """

    cell: Cell
    boots: int
    wakes: int
    late_100us: float
    late_1ms: float
    p50_us: float
    p99_us: float
    max_us: float
    step_us: float
    step_ratio: Ratio | None
    wait_us: float
    wait_ratio: Ratio | None
    tool_late_100us: float
    work_ratio: Ratio | None
    together_ratio: Ratio | None
    load_cpu: float
    agent_cpu: float


def rows(readings: Mapping[Cell, Sequence[Reading]], against: tuple[str, str] = (DEFAULT, "orch")) -> list[Row]:
    """A row for each cell that was read at least once, by load, threads and arm.

    ``against`` are arm and threads that the ratios are to; cells of a load without them have none.
    """
    steps = {cell: {one.seed: float(one.values["mean"]) for one in each} for cell, each in readings.items()}
    work = {
        cell: {one.seed: one.values["work"] / one.values["elapsed"] for one in each} for cell, each in readings.items()
    }
    waits = {cell: {one.seed: _wait(one) for one in each} for cell, each in readings.items()}
    found = []
    for cell in sorted(readings, key=_order):
        each = readings[cell]
        if not each:
            continue
        base = Cell(cell.load, against[1], against[0])
        pairs = {one.seed: one for one in readings.get(base, ())}
        together = {one.seed: _together(one, pairs[one.seed]) for one in each if one.seed in pairs}
        sums = {name: sum(one.values[name] for one in each) for name in each[0].values}
        wakes = pooled([one.wakes for one in each])
        ratio = paired_ratio(steps[cell], steps.get(base, {})) if cell != base else None
        work_ratio = paired_ratio(work[cell], work.get(base, {})) if cell != base else None
        found.append(
            Row(
                cell=cell,
                boots=len(each),
                wakes=sums["wakes"],
                late_100us=sums["late100"] / sums["wakes"],
                late_1ms=sums["late1000"] / sums["wakes"],
                p50_us=quantile(wakes, 0.5),
                p99_us=quantile(wakes, 0.99),
                max_us=max(one.values["max"] for one in each) / 1000,
                step_us=geometric_mean(list(steps[cell].values())) / 1000,
                step_ratio=ratio,
                wait_us=sum(waits[cell].values()) / len(each) / 1000,
                wait_ratio=paired_ratio(waits[cell], waits.get(base, {})) if cell != base else None,
                tool_late_100us=sums["tool_late100"] / sums["tool_wakes"],
                work_ratio=work_ratio,
                together_ratio=paired_ratio(together, dict.fromkeys(together, 1.0)) if cell != base else None,
                load_cpu=sums["load_cpu"] / sums["elapsed"],
                agent_cpu=(sums["orch_cpu"] + sums["tool_cpu"]) / sums["elapsed"],
            )
        )
    return found


def _wait(one: Reading) -> float:
    """What a step of a cell takes in ns, less the CPU time of orchestrator and tool."""
    values = one.values
    return values["mean"] * (1 - (values["orch_cpu"] + values["tool_cpu"]) / values["elapsed"])


def _together(one: Reading, base: Reading) -> float:
    """What load and agent did in a second against ``base``, weighed by the CPU time that took there; 0: no load."""
    there, here = base.values, one.values
    agent_cpu = there["orch_cpu"] + there["tool_cpu"]
    if not (there["work"] and there["agent_work"] and there["load_cpu"] and agent_cpu):
        return 0.0
    done = here["work"] / there["work"] * there["load_cpu"] + here["agent_work"] / there["agent_work"] * agent_cpu
    return done / here["elapsed"] / ((there["load_cpu"] + agent_cpu) / there["elapsed"])


def _order(cell: Cell) -> tuple[str, bool, bool, bool, str]:
    return (cell.load, cell.threads == "both", cell.arm != DEFAULT, cell.arm != PLACEBO, cell.arm)


def render(found: Sequence[Row]) -> str:
    """The table, shares in per cent."""
    return table([_line(row) for row in found], header=HEADER)


def _line(row: Row) -> tuple[str, ...]:
    ratio, wait, work, together = row.step_ratio, row.wait_ratio, row.work_ratio, row.together_ratio
    interval = "-" if ratio is None or ratio.pairs < 2 else f"{ratio.low:.3f}-{ratio.high:.3f}"
    return (
        row.cell.load,
        row.cell.arm,
        row.cell.threads if row.cell.arm not in (DEFAULT, PLACEBO) else "-",
        str(row.boots),
        str(row.wakes),
        f"{100 * row.late_100us:.2f} %",
        f"{100 * row.late_1ms:.2f} %",
        f"{row.p50_us:.0f}",
        f"{row.p99_us:.0f}",
        f"{row.max_us:.0f}",
        f"{row.step_us:.0f}",
        "-" if ratio is None else f"{ratio.mean:.3f}",
        interval,
        f"{row.wait_us:.0f}",
        "-" if wait is None else f"{wait.mean:.3f}",
        f"{100 * row.tool_late_100us:.2f} %",
        "-" if work is None else f"{work.mean:.3f}",
        "-" if together is None else f"{together.mean:.3f}",
        f"{row.load_cpu:.2f}",
        f"{row.agent_cpu:.2f}",
    )


@dataclass(frozen=True)
class ShareRow:
    """Tasks of one kind in a share cell over all boots: shares of one CPU, ``total`` of all its tasks in a boot."""

    cell: str
    kind: str
    arm: str
    cgroup: str
    tasks: int
    boots: int
    mean: float
    least: float
    most: float
    total: float


def share_rows(boots: Sequence[Sequence[Share]]) -> list[ShareRow]:
    """A row for each kind of task of each share cell, in the order in which they were asked for."""
    groups: dict[tuple[str, str, str, str], list[list[float]]] = {}
    for shares in boots:
        one: dict[tuple[str, str, str, str], list[float]] = {}
        for share in shares:
            one.setdefault((share.cell, share.kind, share.arm, share.cgroup), []).append(share.share)
        for key, values in one.items():
            groups.setdefault(key, []).append(values)
    found = []
    for key, each in groups.items():
        everything = [value for values in each for value in values]
        total = sum(everything) / len(each)
        mean = sum(everything) / len(everything)
        found.append(ShareRow(*key, len(each[0]), len(each), mean, min(everything), max(everything), total))
    return found


def render_shares(found: Sequence[ShareRow]) -> str:
    """The table of shares, in per cent of one CPU."""
    lines = [
        (
            *(row.cell.removeprefix("share/"), row.kind, row.arm, row.cgroup or "-", str(row.tasks), str(row.boots)),
            *(f"{100 * share:.2f} %" for share in (row.mean, row.least, row.most, row.total)),
        )
        for row in found
    ]
    header = ("cell", "task", "arm", "cgroup", "tasks", "boots", "mean", "least", "most", "together")
    return table(lines, header=header)


def render_operations(boots: Sequence[Mapping[str, float]], before: Mapping[str, float]) -> str:
    """The table of operations: the median over the boots in ns, with what it adds to that of ``before``."""
    lines = []
    for name, ns in operations(boots).items():
        old = before.get(name)
        added = ("-", "-", "-") if not old else (f"{old:.2f}", f"{ns - old:+.2f}", f"{100 * (ns / old - 1):+.3f} %")
        lines.append((name, f"{ns:.2f}", *added))
    return table(lines, header=("operation", "ns", "before", "added", "added"))


def operations(boots: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The median of each operation over the boots."""
    names = dict.fromkeys(name for boot in boots for name in boot)
    return {name: median([boot[name] for boot in boots if name in boot]) for name in names}


def cautions(found: Sequence[Row]) -> list[str]:
    """What a reader of the table must be told."""
    said = []
    boots = min((row.boots for row in found), default=0)
    if boots < ENOUGH_BOOTS:
        said.append(f"{boots} boots are too few to claim a difference: placebo intervals exclude 1 too often")
    for row in found:
        if row.cell.arm == PLACEBO and row.step_ratio and row.step_ratio.pairs > 1 and row.step_ratio.differs:
            said.append(f"{row.cell.load}: the placebo differs from the default: so may other intervals by chance")
    return said


def as_json(found: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows for measure.json; the ends of an interval that is none are null."""
    values = []
    for row in found:
        value = asdict(row)
        for name in ("step_ratio", "wait_ratio", "work_ratio", "together_ratio"):
            ratio = value[name]
            if ratio is not None and ratio["pairs"] < 2:
                ratio["low"] = ratio["high"] = None
        values.append(value)
    return values
