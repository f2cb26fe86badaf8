"""What a chain says in numbers: the gaps of each link, and of each step their distribution and where it ran. Pure.

The order of a completion's events depends on how it is waited for: a plain io_uring posts its entry when the task runs
again, one with a polling thread before it is woken. So each gap is between two named points and can be negative; one
whose points were not both recorded is None.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from harness.trace.join import Link, Step


def _cqe_device(link: Link) -> int | None:
    if link.cqe is None:
        return None
    device = link.cqe.device_ns or link.device_ns
    return link.cqe.at_ns - device if device else None


def _wakeup_cqe(link: Link) -> int | None:
    return link.woken_ns - link.cqe.at_ns if link.cqe else None


def _wakeup_device(link: Link) -> int | None:
    return link.wakeup.completion_to_runnable_ns if link.wakeup.chain else None


def _device_request(link: Link) -> int | None:
    return link.device_ns - link.request.time_ns if link.request and link.device_ns else None


def _oncpu_wakeup(link: Link) -> int | None:
    return link.oncpu.runnable_to_oncpu_ns if link.oncpu else None


def _cqe_oncpu(link: Link) -> int | None:
    return link.cqe.at_ns - link.oncpu_ns if link.cqe and link.oncpu_ns is not None else None


def _posted_oncpu(link: Link) -> int | None:
    return link.posted.time_ns - link.oncpu_ns if link.posted and link.oncpu_ns is not None else None


def _issue_oncpu(link: Link) -> int | None:
    return link.issue.time_ns - link.oncpu_ns if link.issue and link.oncpu_ns is not None else None


def _block_oncpu(link: Link) -> int | None:
    return link.blocked.time_ns - link.oncpu_ns if link.blocked and link.oncpu_ns is not None else None


# Name in JSON -> heading in tables, what it is, how it is computed. In the order of the design.
GAPS: Mapping[str, tuple[str, str, Callable[[Link], int | None]]] = {
    "device_minus_request": ("req>dev", "block request issued to device completes", _device_request),
    "cqe_visible_minus_device": ("dev>cqe", "device completes to CQE visible", _cqe_device),
    "wakeup_minus_cqe_visible": ("cqe>wake", "CQE visible to wakeup (negative: the wakeup came first)", _wakeup_cqe),
    "wakeup_minus_device": ("dev>wake", "device completes to wakeup", _wakeup_device),
    "oncpu_minus_wakeup": ("wake>cpu", "wakeup to on-CPU", _oncpu_wakeup),
    "cqe_visible_minus_oncpu": ("cpu>cqe", "on-CPU to CQE visible", _cqe_oncpu),
    "cqe_posted_minus_oncpu": ("cpu>post", "on-CPU to the CQE being filled, before it is visible", _posted_oncpu),
    "next_issue_minus_oncpu": ("cpu>issue", "on-CPU to the next submission", _issue_oncpu),
    "block_minus_oncpu": ("cpu>block", "on-CPU to the next block", _block_oncpu),
}


def gaps(link: Link) -> dict[str, int | None]:
    """All gaps of a link in ns."""
    return {name: compute(link) for name, (_, _, compute) in GAPS.items()}


@dataclass(frozen=True)
class Spread:
    """Of some values: how many, the middle one, the smallest and the largest."""

    count: int
    median: float
    least: int
    most: int


def spread(values: Sequence[int]) -> Spread | None:
    """None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    half = len(ordered) // 2
    median = float(ordered[half]) if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2
    return Spread(len(ordered), median, ordered[0], ordered[-1])


@dataclass(frozen=True)
class Metrics:
    """Of a task in a step.

    ``remote_irq`` is the share of the completions with a known CPU that another one handled than that on which the task
    ran then; None if there was none. ``stayed`` wakeups found the task on its CPU: it had no latency.
    """

    wakeups: int
    stayed: int
    sources: Mapping[str, int]
    gaps: Mapping[str, Spread | None]
    migrations: int
    off_home: int
    attributed: int
    remote_irq: float | None
    boosts: Mapping[str, int]
    placements: Mapping[str, int]
    blocked_ns: int


def of_links(links: Sequence[Link]) -> Metrics:
    """What ``links`` come to."""
    each = [gaps(link) for link in links]
    ran = [link.oncpu for link in links if link.oncpu]
    attributed = [one for one in ran if one.chain]
    return Metrics(
        wakeups=len(links),
        stayed=sum(link.stayed for link in links),
        sources=dict(Counter(link.wakeup.src for link in links).most_common()),
        gaps={name: spread([value for one in each if (value := one[name]) is not None]) for name in GAPS},
        migrations=sum(one.cpu != one.prev_cpu for one in ran),
        off_home=sum(one.home_cpu not in (-1, one.cpu) for one in ran),
        attributed=len(attributed),
        remote_irq=sum(one.remote_irq for one in attributed) / len(attributed) if attributed else None,
        boosts=dict(Counter(boost.what for link in links for boost in link.boosts).most_common()),
        placements=dict(Counter(link.placement.reason for link in links if link.placement).most_common()),
        blocked_ns=sum(link.wait.blocked_ns for link in links if link.wait),
    )


def of_step(step: Step) -> Metrics:
    """What a task did in a step."""
    return of_links(step.links)
