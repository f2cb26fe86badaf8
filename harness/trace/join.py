"""From single events to the chain of each wakeup, by step. Pure.

A link is one turn of the wheel: something completes, a task is woken by it, gets a CPU, finds what it waited for and
goes on until it submits or blocks again. Events belong to a link by task, and among the links of a task by chain:
what the kernel numbered at the interrupt is the same number at the wakeup, on the CPU and at the end of the wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from harness.trace.events import (
    BlockIssue,
    Boost,
    Cqe,
    CqePosted,
    DeviceComplete,
    Event,
    Hold,
    Issue,
    OnCpu,
    Placement,
    SockReady,
    UringWork,
    Wait,
    Wakeup,
    WindowArm,
    WindowClose,
    WindowExpire,
)

Key = tuple[int, int, int]
# Times of different events in the text are cut to microseconds.
SLACK_NS = 1000


@dataclass
class Link:
    """A wakeup and what belongs to it; None is what did not happen or has not been recorded.

    ``stayed``: the wakeup found the task on its CPU, about to block, and it went on there without a switch.
    """

    wakeup: Wakeup
    oncpu: OnCpu | None = None
    stayed: bool = False
    placement: Placement | None = None
    boosts: list[Boost] = field(default_factory=list)
    wait: Wait | None = None
    ready: SockReady | None = None
    device: DeviceComplete | None = None
    request: BlockIssue | None = None
    cqe: Cqe | None = None
    posted: CqePosted | None = None
    issue: Issue | None = None
    work: list[UringWork] = field(default_factory=list)
    blocked: WindowArm | None = None

    @property
    def key(self) -> Key:
        """The step and the task."""
        return (self.wakeup.agent_id, self.wakeup.step_id, self.wakeup.pid)

    @property
    def device_ns(self) -> int | None:
        """When the completion began."""
        if self.device and self.device.device_ns:
            return self.device.device_ns
        return self.wakeup.device_ns if self.wakeup.chain else None

    @property
    def woken_ns(self) -> int:
        """When the task was woken.

        To the nanosecond if the chain has a source. Else no later than its event, nor than what the kernel measured
        before the event of the task's running: the kernel looks at the clock first and traces then, which may take.
        """
        if self.wakeup.chain or self.oncpu is None:
            return self.wakeup.at_ns
        return min(self.wakeup.at_ns, self.oncpu.time_ns - self.oncpu.runnable_to_oncpu_ns)

    @property
    def oncpu_ns(self) -> int | None:
        """When the task ran again; None if it is not known to have done so."""
        if self.oncpu:
            return self.woken_ns + self.oncpu.runnable_to_oncpu_ns
        return self.woken_ns if self.stayed else None

    @property
    def end_ns(self) -> int:
        """The last that is known of it."""
        if self.blocked:
            return self.blocked.time_ns
        known = [self.wait, self.cqe, self.issue]
        return max([self.oncpu_ns or self.woken_ns, *(one.time_ns for one in known if one)])


@dataclass(frozen=True)
class Step:
    """The links of a task in a step, in order."""

    agent_id: int
    step_id: int
    pid: int
    comm: str
    links: tuple[Link, ...]


@dataclass(frozen=True)
class Joined:
    """``orphans`` are the events of a link whose wakeup is not there, ``instant`` the waits that found what they
    wanted at once; ``windows`` and ``holds`` belong to no link."""

    steps: tuple[Step, ...] = ()
    orphans: int = 0
    instant: tuple[Wait, ...] = ()
    windows: tuple[WindowArm | WindowExpire | WindowClose, ...] = ()
    holds: tuple[Hold, ...] = ()
    comms: dict[int, str] = field(default_factory=dict)

    @property
    def links(self) -> list[Link]:
        """All links, by the time of the wakeup."""
        return sorted((link for step in self.steps for link in step.links), key=lambda link: link.woken_ns)


class _Joiner:
    def __init__(self) -> None:
        self.links: list[Link] = []
        self.latest: dict[int, Link] = {}
        self.by_chain: dict[int, list[Link]] = {}
        # What comes before the wakeup that it belongs to.
        self.ready: dict[int, SockReady] = {}
        self.device: dict[int, DeviceComplete] = {}
        self.request: dict[int, BlockIssue] = {}
        # What devices work on, by where it begins.
        self.requests: dict[tuple[str, int], BlockIssue] = {}
        self.cqes: dict[int, Cqe] = {}
        self.cqes_of_step: dict[tuple[int, int], Cqe] = {}
        self.orphans = 0
        self.instant: list[Wait] = []
        self.windows: list[WindowArm | WindowExpire | WindowClose] = []
        self.holds: list[Hold] = []

    def take(self, event: Event) -> None:
        """The next event in time."""
        match event:
            case Wakeup():
                self._wakeup(event)
            case OnCpu():
                self._oncpu(event)
            case Placement():
                if link := self._latest(event.pid, running=False):
                    link.placement = event
            case Boost():
                if link := self.latest.get(event.pid):
                    link.boosts.append(event)
            case Wait():
                self._wait(event)
            case SockReady():
                self.ready[event.chain] = event
            case DeviceComplete():
                self._device(event)
            case Cqe():
                self._cqe(event)
            case CqePosted():
                link = self._latest(event.task, running=True)
                if link and link.posted is None and link.blocked is None:
                    link.posted = event
            case Issue():
                if isinstance(event, BlockIssue):
                    self.requests[event.dev, event.sector] = event
                link = self._latest(event.task, running=True)
                ours = link and event.agent_id in (0, link.wakeup.agent_id)
                if link and ours and link.issue is None and link.blocked is None:
                    link.issue = event
            case UringWork():
                if link := self._latest(event.pid, running=True):
                    link.work.append(event)
            case WindowArm() | WindowExpire() | WindowClose():
                self._window(event)
            case Hold():
                self.holds.append(event)

    def _latest(self, pid: int, *, running: bool) -> Link | None:
        """The last link of a task, if it has got a CPU or not yet, as asked for. Only a task that runs is asked about
        with ``running``: one that has not been switched to since it was woken has never left its CPU."""
        link = self.latest.get(pid)
        if link is None or running == (link.oncpu is not None or link.stayed):
            return link
        if not running:
            return None
        link.stayed = True
        return link

    def _device(self, event: DeviceComplete) -> None:
        """Several requests can complete in one interrupt; a wakeup belongs to the last one before it."""
        self.device[event.chain] = event
        request = self.requests.pop((event.dev, event.sector), None)
        if request and request.step_id == event.step_id:
            self.request[event.chain] = request
        else:
            self.request.pop(event.chain, None)

    def _oncpu(self, event: OnCpu) -> None:
        link = self.latest.get(event.pid)
        if link is None or link.oncpu is not None or link.wakeup.chain != event.chain:
            self.orphans += 1
            return
        if link.stayed:
            # It was woken while it was switched out: what was seen of it since is from before.
            link.stayed, link.wait, link.cqe, link.posted, link.issue, link.blocked = False, *[None] * 5
            link.work.clear()
        link.oncpu = event

    def _wakeup(self, event: Wakeup) -> None:
        link = Link(event)
        if event.chain:
            link.device = self.device.get(event.chain)
            link.request = self.request.get(event.chain)
            ready = self.ready.get(event.chain)
            if ready and ready.agent_id in (0, event.agent_id):
                link.ready = ready
            link.cqe = self.cqes.pop(event.chain, None)
            self.by_chain.setdefault(event.chain, []).append(link)
        if link.cqe is None:
            link.cqe = self.cqes_of_step.pop((event.agent_id, event.step_id), None)
        self.latest[event.pid] = link
        self.links.append(link)

    def _wait(self, event: Wait) -> None:
        link = self._latest(event.pid, running=True)
        began = event.time_ns - event.blocked_ns
        if link and link.wakeup.chain == event.chain and began <= link.woken_ns + SLACK_NS:
            # A wait can have gone on after a wakeup for nothing; the end of it is what counts.
            link.wait = event
        else:
            self.instant.append(event)

    def _cqe(self, event: Cqe) -> None:
        if event.chain:
            known = [link for link in self.by_chain.get(event.chain, ()) if link.wakeup.agent_id == event.agent_id]
            if known:
                known[-1].cqe = known[-1].cqe or event
            else:
                self.cqes[event.chain] = event
            return
        if event.task not in self.latest:
            # By a thread that works for others, which wakes the task then.
            self.cqes_of_step[event.agent_id, event.step_id] = event
            return
        link = self._latest(event.task, running=True)
        # After it has submitted or blocked again it may be a request that was done at once.
        if link and link.cqe is None and link.issue is None and link.blocked is None:
            link.cqe = event

    def _window(self, event: WindowArm | WindowExpire | WindowClose) -> None:
        self.windows.append(event)
        if isinstance(event, WindowArm) and event.reason == "block":
            link = self._latest(event.pid, running=True)
            if link and link.blocked is None:
                link.blocked = event


def _order(event: Event) -> int:
    """A CQE is told of when the waiter has been woken for it: what counts is when it could be seen."""
    return event.at_ns if isinstance(event, Cqe) else event.time_ns


def join(events: Sequence[Event]) -> Joined:
    """The chains in ``events``, which are in the order of their times."""
    joiner = _Joiner()
    comms: dict[int, str] = {}
    for event in sorted(events, key=_order):
        if event.task and event.comm != "<...>":
            comms[event.task] = event.comm
        if isinstance(event, WindowArm) and "comm" in event.more:
            comms.setdefault(event.pid, event.more["comm"])
        joiner.take(event)
    steps: dict[Key, list[Link]] = {}
    for link in joiner.links:
        steps.setdefault(link.key, []).append(link)
    return Joined(
        steps=tuple(Step(*key, comms.get(key[2], ""), tuple(links)) for key, links in sorted(steps.items())),
        orphans=joiner.orphans,
        instant=tuple(joiner.instant),
        windows=tuple(joiner.windows),
        holds=tuple(joiner.holds),
        comms=comms,
    )
