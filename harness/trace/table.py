"""The chain for a person: a line for each task in each step, then a line for each wakeup. Times in us. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from harness.report import table
from harness.trace import metrics
from harness.trace.events import Recording
from harness.trace.join import Joined, Link
from harness.trace.metrics import GAPS, Metrics, Spread

STEP_HEADER = (
    *("agent", "step", "pid", "task", "wakeups", "woken by"),
    *(heading for heading, _, _ in GAPS.values()),
    *("migrations", "remote irq"),
)
LINK_HEADER = (
    *("at ms", "step", "pid", "woken by", "on", "dev>wake", "wake>cpu", "cpu", "from", "home", "placed", "boost"),
    *("waited in", "for", "cpu>cqe", "cpu>post", "cpu>issue", "cpu>block"),
)
MOST_LINKS = 40
NONE = "n/a"


def us(ns: float | None) -> str:
    """Nanoseconds as microseconds, with a digit where it matters."""
    if ns is None:
        return NONE
    value = ns / 1000
    return f"{value:.1f}" if abs(value) < 100 else f"{value:.0f}"


def _spread(value: Spread | None) -> str:
    if value is None:
        return NONE
    return us(value.median) if value.count == 1 else f"{us(value.median)}/{us(value.most)}"


def _counts(counts: Mapping[str, int]) -> str:
    return " ".join(f"{name}:{count}" for name, count in counts.items())


def _wakeups(said: Metrics) -> str:
    return f"{said.wakeups}, {said.stayed} stayed" if said.stayed else str(said.wakeups)


def _of_step(said: Metrics) -> tuple[str, ...]:
    return (
        *(_spread(said.gaps[name]) for name in GAPS),
        str(said.migrations),
        NONE if said.remote_irq is None else f"{said.remote_irq:.2f} of {said.attributed}",
    )


def steps(joined: Joined) -> str:
    """The table of steps: of each gap the median, and the largest where there are several."""
    rows: list[tuple[str, ...]] = []
    for step in joined.steps:
        said = metrics.of_step(step)
        who = (str(step.agent_id or "-"), str(step.step_id or "-"), str(step.pid), step.comm)
        rows.append((*who, _wakeups(said), _counts(said.sources), *_of_step(said)))
    if len(rows) > 1:
        said = metrics.of_links(joined.links)
        rows.append(("all", "", "", "", _wakeups(said), _counts(said.sources), *_of_step(said)))
    return table(rows, header=STEP_HEADER)


def _source(link: Link) -> str:
    wakeup = link.wakeup
    return f"{wakeup.src} {wakeup.irq}" if wakeup.irq else wakeup.src


def _link(link: Link, start_ns: int) -> tuple[str, ...]:
    wakeup, ran, placed = link.wakeup, link.oncpu, link.placement
    found = metrics.gaps(link)
    return (
        f"{(link.woken_ns - start_ns) / 10**6:.3f}",
        str(wakeup.step_id or "-"),
        str(wakeup.pid),
        _source(link),
        str(wakeup.comp_cpu if wakeup.chain else wakeup.waker_cpu),
        us(found["wakeup_minus_device"]),
        us(found["oncpu_minus_wakeup"]),
        str(ran.cpu) if ran else "stayed" if link.stayed else NONE,
        str(ran.prev_cpu) if ran else NONE,
        str(ran.home_cpu) if ran and ran.home_cpu >= 0 else "-",
        placed.reason if placed else "-",
        " ".join(boost.what for boost in link.boosts) or "-",
        link.wait.gate if link.wait else "-",
        us(link.wait.blocked_ns) if link.wait else "-",
        us(found["cqe_visible_minus_oncpu"]),
        us(found["cqe_posted_minus_oncpu"]),
        us(found["next_issue_minus_oncpu"]),
        us(found["block_minus_oncpu"]),
    )


def links(joined: Joined, most: int | None = MOST_LINKS) -> str:
    """The table of wakeups in their order, the first ``most`` of them (None: all)."""
    every = joined.links
    if not every:
        return ""
    shown = every if most is None else every[:most]
    text = table([_link(link, every[0].woken_ns) for link in shown], header=LINK_HEADER)
    return text if len(shown) == len(every) else f"{text}\n... and {len(every) - len(shown)} more"


def cautions(recording: Recording, joined: Joined) -> list[str]:
    """What a reader of the tables must be told."""
    said = []
    if recording.lost:
        said.append(f"{recording.lost} events are lost, what is shown has holes: use a larger --buffer or fewer steps")
    if recording.runs and not recording.whole:
        said.append("the end of the trace is missing")
    if recording.malformed:
        said.append(f"{recording.malformed} lines of the trace cannot be read")
    if joined.orphans:
        said.append(f"{joined.orphans} times a task ran whose wakeup is not in the trace")
    said += [f"the kernel has no event {name}" for name in recording.missing]
    return said


def legend(joined: Joined) -> list[str]:
    """What the headings mean, and why some gaps are n/a."""
    known = metrics.of_links(joined.links).gaps
    lines = [
        "times in us, median/largest; woken by: what completed, with its irq; on: the CPU of that; n/a: not recorded"
    ]
    unknown = [heading for name, (heading, _, _) in GAPS.items() if known[name] is None]
    if unknown:
        lines.append(f"no events for {', '.join(unknown)}: the kernel lacks them, or nothing caused them")
    return lines


def render(recording: Recording, joined: Joined, most: int | None = MOST_LINKS) -> Sequence[str]:
    """All of it, as blocks of text."""
    return [steps(joined), "", links(joined, most), *legend(joined)]
