"""The text of the trace, as tracefs and agent-run print it, as typed events. Pure: lines in, a recording out.

An event is a dataclass whose fields are those that the kernel prints, with their types; fields that it does not know
are kept in ``more``, and one that lacks a field without a default is counted as malformed. To read a further event,
add a class to EVENTS.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

PREFIX = "# agent-run: "
_TRACE = f"{PREFIX}trace"
_END = f"{PREFIX}end"
_EVENT = re.compile(
    r"^\s*(?P<comm>.{1,16}?)-(?P<task>\d+)\s+(?:\(\s*[-\d]+\)\s+)?\[(?P<on>\d+)\]\s+(?:\S+\s+)?"
    r"(?P<seconds>\d+)\.(?P<fraction>\d+): (?P<name>\w+): ?(?P<rest>.*)$"
)
_LOST = re.compile(r"^CPU:\s*\d+ \[LOST (?:(\d+) )?EVENTS\]", re.IGNORECASE)
_FIELD = re.compile(r"(?:^|[ ,])([a-z_]\w*)[=:] ?([^ ,]+)")


@dataclass(frozen=True, kw_only=True)
class Event:
    """What all events have: time of the trace clock, the CPU and the task that it happened on top of."""

    name: str
    time_ns: int
    on_cpu: int
    task: int
    comm: str
    more: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class OfTask(Event):
    """Is about a task, which need not be the one that it happened on top of."""

    pid: int
    agent_id: int
    step_id: int


@dataclass(frozen=True, kw_only=True)
class WindowArm(OfTask):
    """A window opened or was made longer."""

    length_ns: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class WindowExpire(Event):
    """A window was found to be over."""

    pid: int
    agent_id: int
    late_ns: int


@dataclass(frozen=True, kw_only=True)
class WindowClose(Event):
    """A window was closed before its end."""

    pid: int
    agent_id: int


@dataclass(frozen=True, kw_only=True)
class Placement(OfTask):
    """Where a wakeup went; ``chosen_cpu`` -1: left to the normal path."""

    prev_cpu: int
    home_cpu: int
    chosen_cpu: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class Boost(OfTask):
    """A task goes ahead of others, or stops doing so."""

    what: str


@dataclass(frozen=True, kw_only=True)
class Hold(Event):
    """What a CPU is held to for a task that left it."""

    cpu: int
    idle_ns: int
    util: int


@dataclass(frozen=True, kw_only=True)
class Wakeup(OfTask):
    """A task was woken: by what, and how long after that began. ``chain`` 0: nobody knows."""

    chain: int
    src: str
    comp_cpu: int
    waker_cpu: int
    device_ns: int
    completion_to_runnable_ns: int
    vec: int = -1
    irq: int = 0
    work_step: int = 0

    @property
    def at_ns(self) -> int:
        """When: to the nanosecond if the chain has a source, else as well as the trace has it."""
        return self.device_ns + self.completion_to_runnable_ns if self.chain else self.time_ns


@dataclass(frozen=True, kw_only=True)
class OnCpu(OfTask):
    """The same task runs again. ``more_wakers`` came too late to be what it was woken by."""

    chain: int
    src: str
    cpu: int
    prev_cpu: int
    home_cpu: int
    remote_irq: int
    runnable_to_oncpu_ns: int
    completion_to_runnable_ns: int = 0
    comp_cpu: int = -1
    waker_cpu: int = -1
    irq: int = 0


@dataclass(frozen=True, kw_only=True)
class Wait(OfTask):
    """A task waited in epoll, io_uring or for a socket; ``chain`` ended the wait."""

    chain: int
    gate: str
    blocked_ns: int


@dataclass(frozen=True, kw_only=True)
class SockReady(Event):
    """A socket with a tag has something to read."""

    agent_id: int
    step_id: int
    chain: int
    device_ns: int
    comp_cpu: int = -1
    irq: int = 0


@dataclass(frozen=True, kw_only=True)
class Cqe(Event):
    """``nr`` completion queue entries of a request can be seen by the program, of its last result ``res``.

    The task on top of which it happens has posted them. ``chain`` 0: nobody knows what completed the request;
    ``cqe_visible_ns`` 0: they can be seen since the time of the event, which is written a little later than that.
    """

    agent_id: int
    step_id: int
    chain: int = 0
    cqe_visible_ns: int = 0
    device_ns: int = 0
    src: str = ""
    comp_cpu: int = -1
    user_data: int = 0
    res: int = 0
    nr: int = 1

    @property
    def at_ns(self) -> int:
        """When it could be seen."""
        return self.cqe_visible_ns or self.time_ns


@dataclass(frozen=True, kw_only=True)
class CqePosted(Event):
    """The task on top of which it happens fills a completion queue entry, which can be seen only after that."""


@dataclass(frozen=True, kw_only=True)
class DeviceComplete(Event):
    """The block layer learns that a request is done."""

    agent_id: int
    step_id: int
    chain: int = 0
    device_ns: int = 0
    dev: str = ""
    sector: int = -1
    comp_cpu: int = -1
    cpu: int = -1
    home_cpu: int = -1
    irq: int = 0


@dataclass(frozen=True, kw_only=True)
class Issue(Event):
    """Something is submitted by the task on top of which it happens."""

    agent_id: int = 0
    step_id: int = 0


@dataclass(frozen=True, kw_only=True)
class BlockIssue(Issue):
    """A request goes to its device, not necessarily from the task that it is done for."""

    dev: str = ""
    sector: int = -1
    nr_sector: int = 0
    rwbs: str = ""


@dataclass(frozen=True, kw_only=True)
class UringWork(OfTask):
    """A task begins to do the work of a request, not necessarily its own, and not necessarily for the first time."""

    opcode: int
    user_data: int = 0


# Events of the series, and those of io_uring that say when something is submitted or done.
EVENTS: Mapping[str, type[Event]] = {
    "agent_window_arm": WindowArm,
    "agent_window_expire": WindowExpire,
    "agent_window_close": WindowClose,
    "agent_placement": Placement,
    "agent_boost": Boost,
    "agent_hold": Hold,
    "agent_wakeup": Wakeup,
    "agent_oncpu": OnCpu,
    "agent_wait": Wait,
    "agent_sock_ready": SockReady,
    "agent_sock_send": Issue,
    "agent_cqe": Cqe,
    "agent_issue": Issue,
    "agent_uring_issue": UringWork,
    "agent_blk_issue": BlockIssue,
    "agent_blk_complete": DeviceComplete,
    "io_uring_submit_req": Issue,
    "io_uring_complete": CqePosted,
}


@dataclass(frozen=True)
class Run:
    """One run of the command: its first step, its process, how it ended, when."""

    step_id: int
    pid: int
    status: int
    signal: int
    start_ns: int
    end_ns: int


@dataclass(frozen=True)
class Recording:
    """All that a trace says. ``lost`` are events that did not fit the buffer; ``whole``: the end is there."""

    events: tuple[Event, ...] = ()
    runs: tuple[Run, ...] = ()
    agent: Mapping[str, int] = field(default_factory=dict)
    lost: int = 0
    entries: int = 0
    missing: tuple[str, ...] = ()
    malformed: int = 0
    unread: int = 0
    whole: bool = False
    output: tuple[str, ...] = ()


def split(lines: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """What the command printed, what agent-run says, the trace.

    The command's output comes first and may look like anything; the trace begins at the last line that says so. Lines
    without one are all taken for a trace, so that a plain copy of tracefs can be read.
    """
    begin = max((i for i, line in enumerate(lines) if line == _TRACE), default=None)
    if begin is None:
        own = [line for line in lines if line.startswith(PREFIX)]
        trace = [line for line in lines if _EVENT.match(line) or _LOST.match(line)]
        known = {*own, *trace}
        return [line for line in lines if line not in known and not line.startswith("#")], own, trace
    first = begin
    while first and lines[first - 1].startswith(PREFIX):
        first -= 1
    end = next((i for i in range(begin, len(lines)) if lines[i] == _END), len(lines))
    return (
        [*lines[:first], *lines[end + 1 :]],
        [*lines[first:begin], *lines[end : end + 1]],
        list(lines[begin + 1 : end]),
    )


def read(lines: Sequence[str]) -> Recording:
    """The recording in ``lines``, its events in the order of their times."""
    output, own, trace = split(lines)
    events: list[Event] = []
    malformed = unread = lost = 0
    for line in trace:
        if match := _LOST.match(line):
            lost += int(match[1] or 1)
        elif match := _EVENT.match(line):
            kind = EVENTS.get(match["name"])
            if kind is None:
                unread += 1
            elif event := _event(kind, match):
                events.append(event)
            else:
                malformed += 1
        elif line.strip() and not line.startswith("#"):
            malformed += 1
    said = [_words(line) for line in own]
    buffer = next((values for what, values in said if what == "buffer"), {})
    return Recording(
        events=tuple(sorted(events, key=lambda event: event.time_ns)),
        runs=tuple(_runs(said)),
        agent=next((values for what, values in said if what == "agent"), {}),
        lost=lost + buffer.get("overrun", 0) + buffer.get("dropped", 0),
        entries=buffer.get("entries", len(events)),
        missing=tuple(line.split()[3] for line in own if line.startswith(f"{PREFIX}missing ")),
        malformed=malformed,
        unread=unread,
        whole=_END in own,
        output=tuple(output),
    )


def _words(line: str) -> tuple[str, dict[str, int]]:
    what, *words = line.removeprefix(PREFIX).split() or [""]
    pairs = (word.partition("=") for word in words)
    return what, {name: int(value) for name, _, value in pairs if value.isdecimal()}


def _runs(said: Iterable[tuple[str, Mapping[str, int]]]) -> Iterable[Run]:
    names = [one.name for one in dataclasses.fields(Run)]
    for what, values in said:
        if what == "run" and all(name in values for name in names):
            yield Run(**{name: values[name] for name in names})


def _event(kind: type[Event], match: re.Match[str]) -> Event | None:
    """An event of ``kind``, or None if it lacks a field or one cannot be read."""
    said = dict(_FIELD.findall(match["rest"]))
    # The width of the fraction is that of the clock: microseconds, unless somebody has changed the kernel.
    time_ns = int(match["seconds"]) * 10**9 + int(match["fraction"].ljust(9, "0")[:9])
    values: dict[str, Any] = {
        "name": match["name"],
        "time_ns": time_ns,
        "on_cpu": int(match["on"]),
        "task": int(match["task"]),
        "comm": match["comm"].strip(),
    }
    types = _types(kind)
    try:
        values |= {name: types[name](said.pop(name)) for name in list(said) if name in types}
        return kind(**values, more=said)
    except (TypeError, ValueError):
        return None


def _integer(text: str) -> int:
    return int(text, 0)


_READERS: Mapping[type, Any] = {int: _integer, str: str}
_KNOWN: dict[type[Event], dict[str, Any]] = {}


def _types(kind: type[Event]) -> dict[str, Any]:
    """How the fields of ``kind`` that an event prints are read."""
    if kind not in _KNOWN:
        common = {one.name for one in dataclasses.fields(Event)}
        hints = typing.get_type_hints(kind)
        _KNOWN[kind] = {
            one.name: _READERS[hints[one.name]] for one in dataclasses.fields(kind) if one.name not in common
        }
    return _KNOWN[kind]
