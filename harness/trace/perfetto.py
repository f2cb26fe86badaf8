"""The chain as a file for ui.perfetto.dev or chrome://tracing: the JSON object format with traceEvents. Pure.

One process is the machine: for each CPU a track with who got it, one with what completed there, and a counter of what
it is held to.
Each agent is a process: a track a task with its waits and runs, and one with its steps. Arrows lead from a completion
to the wakeup and to the CPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from harness.trace import metrics
from harness.trace.events import Recording, WindowArm, WindowExpire
from harness.trace.join import Joined, Link

Json = dict[str, Any]
# Process ids of the file: the machine, and agents from here on.
MACHINE = 1
AGENTS = 1000
# A track of steps beside that of its task; process ids are below it.
STEPS_OF = 1 << 22
# The same of completions beside their CPU.
COMPLETIONS_OF = 1 << 20
# What is over at once needs a length to be seen, and to hold an arrow.
INSTANT_NS = 1000


def _us(ns: int) -> float:
    return ns / 1000


def _slice(pid: int, tid: int, name: str, start_ns: int, end_ns: int, category: str, /, **args: Any) -> Json:
    return {
        "ph": "X",
        "pid": pid,
        "tid": tid,
        "name": name,
        "cat": category,
        "ts": _us(start_ns),
        "dur": _us(max(end_ns - start_ns, 0)),
        "args": {key: value for key, value in args.items() if value is not None},
    }


def _instant(pid: int, tid: int, name: str, at_ns: int, category: str, **args: Any) -> Json:
    return {"ph": "i", "s": "t", "pid": pid, "tid": tid, "name": name, "cat": category, "ts": _us(at_ns), "args": args}


def _name(kind: str, pid: int, tid: int, **args: Any) -> Json:
    return {"ph": "M", "pid": pid, "tid": tid, "name": kind, "args": args}


def _arrow(number: int, points: Sequence[tuple[int, int, int]]) -> Iterable[Json]:
    """An arrow through slices: (process, track, time) of each."""
    for i, (pid, tid, at_ns) in enumerate(points):
        phase = "s" if i == 0 else "f" if i == len(points) - 1 else "t"
        event: Json = {"ph": phase, "pid": pid, "tid": tid, "name": "completion", "cat": "chain", "id": number}
        if phase == "f":
            event["bp"] = "e"
        yield {**event, "ts": _us(at_ns)}


def _source(link: Link) -> str:
    return f"{link.wakeup.src} {link.wakeup.irq}" if link.wakeup.irq else link.wakeup.src


def _link(link: Link, number: int, until_ns: int | None) -> Iterable[Json]:
    """The slices of a wakeup; the run ends where the task blocks or, if that is not known, where it is woken next."""
    wakeup, ran = link.wakeup, link.oncpu
    agent, task = AGENTS + wakeup.agent_id, wakeup.pid
    woken_ns, oncpu_ns = link.woken_ns, link.oncpu_ns
    chain = f"{wakeup.chain:#x}" if wakeup.chain else None
    points: list[tuple[int, int, int]] = []
    if wakeup.chain:
        at_ns = wakeup.device_ns
        end_ns = max(woken_ns, at_ns + INSTANT_NS)
        track = COMPLETIONS_OF + wakeup.comp_cpu
        yield _slice(MACHINE, track, _source(link), at_ns, end_ns, "completion", chain=chain, wakes=task)
        points.append((MACHINE, track, at_ns))
    if oncpu_ns is None or ran is None:
        what = f"woken by {_source(link)}{', had not left its CPU' if link.stayed else ''}"
        yield _instant(agent, task, what, woken_ns, "wakeup", chain=chain)
        return
    ready_ns = max(oncpu_ns, woken_ns + INSTANT_NS)
    found: Json = {name: value for name, value in metrics.gaps(link).items() if value is not None}
    found["placed"] = link.placement.reason if link.placement else None
    if link.wait:
        found |= {"gate": link.wait.gate, "blocked_ns": link.wait.blocked_ns}
    found |= {"chain": chain, "step": wakeup.step_id, "remote_irq": bool(ran.remote_irq)}
    yield _slice(agent, task, f"runnable: {_source(link)}", woken_ns, ready_ns, "runnable", **found)
    points.append((agent, task, woken_ns))
    end_ns = link.blocked.time_ns if link.blocked else min(link.end_ns, until_ns or link.end_ns)
    end_ns = max(end_ns, ready_ns + INSTANT_NS)
    yield _slice(agent, task, "running", ready_ns, end_ns, "running", cpu=ran.cpu, step=wakeup.step_id)
    yield _slice(MACHINE, ran.cpu, f"task {task}", ready_ns, end_ns, "running", step=wakeup.step_id)
    points.append((agent, task, ready_ns))
    if len(points) > 2:
        yield from _arrow(number, points)
    for boost in link.boosts:
        yield _instant(agent, task, f"boost: {boost.what}", boost.time_ns, "boost")
    for work in link.work:
        yield _instant(agent, task, f"io_uring works: opcode {work.opcode}", work.time_ns, "issue", step=work.step_id)
    if link.cqe:
        by = f"{link.cqe.chain:#x}" if link.cqe.chain else None
        of = {"step": link.cqe.step_id, "chain": by, "user_data": link.cqe.user_data, "res": link.cqe.res}
        yield _instant(agent, task, "CQE visible", link.cqe.at_ns, "cqe", **of, entries=link.cqe.nr)
    if link.posted:
        yield _instant(agent, task, "CQE posted", link.posted.time_ns, "cqe")
    if link.issue:
        yield _instant(agent, task, f"issue: {link.issue.name}", link.issue.time_ns, "issue")


def _steps(joined: Joined) -> Iterable[Json]:
    """A slice for each stretch in which a task stayed in one step."""
    tasks: dict[tuple[int, int], list[Link]] = {}
    for link in joined.links:
        tasks.setdefault((link.wakeup.agent_id, link.wakeup.pid), []).append(link)
    for (agent, pid), links in tasks.items():
        begin = 0
        for i in range(1, len(links) + 1):
            if i < len(links) and links[i].wakeup.step_id == links[begin].wakeup.step_id:
                continue
            first, last = links[begin], links[i - 1]
            start_ns = first.woken_ns
            end_ns = links[i].woken_ns if i < len(links) else last.end_ns
            end_ns = max(min(end_ns, last.end_ns), start_ns + INSTANT_NS)
            name = f"step {first.wakeup.step_id}" if first.wakeup.step_id else "no step"
            yield _slice(AGENTS + agent, STEPS_OF + pid, name, start_ns, end_ns, "step", wakeups=i - begin)
            begin = i


def _windows(joined: Joined) -> Iterable[Json]:
    for event in joined.windows:
        agent = AGENTS + event.agent_id
        if isinstance(event, WindowArm):
            args = {"length_ns": event.length_ns, "reason": event.reason}
            yield _instant(agent, event.pid, "window opens", event.time_ns, "window", **args)
        else:
            late = event.late_ns if isinstance(event, WindowExpire) else 0
            what = "window is over" if late else "window closed"
            yield _instant(agent, event.pid, what, event.time_ns - late, "window")


def _names(joined: Joined) -> Iterable[Json]:
    links = joined.links
    yield _name("process_name", MACHINE, 0, name="CPUs")
    yield _name("process_sort_index", MACHINE, 0, sort_index=1)
    for cpu in sorted({link.oncpu.cpu for link in links if link.oncpu}):
        yield _name("thread_name", MACHINE, cpu, name=f"CPU {cpu}")
        yield _name("thread_sort_index", MACHINE, cpu, sort_index=2 * cpu)
    for cpu in sorted({link.wakeup.comp_cpu for link in links if link.wakeup.chain}):
        yield _name("thread_name", MACHINE, COMPLETIONS_OF + cpu, name=f"completions on CPU {cpu}")
        yield _name("thread_sort_index", MACHINE, COMPLETIONS_OF + cpu, sort_index=2 * cpu + 1)
    for agent in sorted({step.agent_id for step in joined.steps}):
        yield _name("process_name", AGENTS + agent, 0, name=f"agent {agent}" if agent else "unmarked tasks")
    for agent, pid in sorted({(step.agent_id, step.pid) for step in joined.steps}):
        name = f"{joined.comms.get(pid, 'task')} {pid}"
        yield _name("thread_name", AGENTS + agent, pid, name=name)
        yield _name("thread_name", AGENTS + agent, STEPS_OF + pid, name=f"steps of {name}")


def _nest(events: Sequence[Json]) -> None:
    """Slices of a track must be nested or apart: where one would end inside a later one, it ends where that begins."""
    tracks: dict[tuple[int, int], list[Json]] = {}
    for event in events:
        if event["ph"] == "X":
            tracks.setdefault((event["pid"], event["tid"]), []).append(event)
    for slices in tracks.values():
        around: list[Json] = []
        for one in sorted(slices, key=lambda event: (event["ts"], -event["dur"])):
            while around and around[-1]["ts"] + around[-1]["dur"] <= one["ts"]:
                around.pop()
            while around and around[-1]["ts"] + around[-1]["dur"] < one["ts"] + one["dur"]:
                cut = around.pop()
                cut["dur"] = one["ts"] - cut["ts"]
            around.append(one)


def render(recording: Recording, joined: Joined, **more: Any) -> Json:
    """The whole file; ``more`` goes to its otherData."""
    links = joined.links
    following: dict[int, int] = {}
    until: list[int | None] = []
    for link in reversed(links):
        until.append(following.get(link.wakeup.pid))
        following[link.wakeup.pid] = link.woken_ns
    events: list[Json] = list(_names(joined))
    for number, (link, next_ns) in enumerate(zip(links, reversed(until), strict=True), 1):
        events += _link(link, number, next_ns)
    events += _steps(joined)
    events += _windows(joined)
    _nest(events)
    for hold in joined.holds:
        held = {"idle_ns": hold.idle_ns, "util": hold.util}
        events.append(
            {"ph": "C", "pid": MACHINE, "name": f"CPU {hold.cpu} held", "ts": _us(hold.time_ns), "args": held}
        )
    return {
        "displayTimeUnit": "ns",
        "otherData": {**more, "lost_events": recording.lost, "clock": "CLOCK_MONOTONIC"},
        "traceEvents": events,
    }
