"""trace: events out of text, the join, the numbers, the writers, and the verb with a QEMU that replays a boot."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from harness import cli
from harness.errors import EnvironmentFailure
from harness.guest import init
from harness.trace import asjson, events, guest, join, metrics, perfetto, table
from harness.trace.events import Cqe, Issue, Recording, Wakeup
from harness.trace.join import Joined, Link

ROOT = Path(__file__).resolve().parent.parent
HERE = Path(__file__).resolve().parent
LOG = HERE / "logs/trace.log"
LOST = HERE / "logs/trace-lost.log"
NONCE = "5ca1ab1e0ddba115"
CHAIN = 0x1000000000007


@pytest.fixture(scope="module")
def recorded() -> Recording:
    """A demonstration of three steps, recorded on x86_64 (TCG)."""
    return events.read(guest.lines_of(LOG))


@pytest.fixture(scope="module")
def joined(recorded: Recording) -> Joined:
    return join.join(recorded.events)


class Script:
    """Writes a trace, its times in us."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, us: int, name: str, task: str = "<idle>-0", /, **fields: object) -> Script:
        said = " ".join(f"{key}={value}" for key, value in fields.items())
        self.lines.append(f"{task:>22}   [000] d..3. {us // 10**6:5}.{us % 10**6:06}: {name}: {said}")
        return self

    def wakeup(self, us: int, pid: int = 44, step: int = 1, chain: int = 0, delay_us: int = 20) -> Script:
        source: dict[str, object] = {"src": "task", "comp_cpu": -1, "device_ns": 0, "completion_to_runnable_ns": 0}
        if chain:
            started = (us - delay_us) * 1000
            source = {"src": "irq", "irq": 24, "comp_cpu": 1, "device_ns": started}
            source["completion_to_runnable_ns"] = delay_us * 1000
        who = {"pid": pid, "agent_id": 3, "step_id": step, "chain": hex(chain)}
        return self.say(us, "agent_wakeup", **who, **source, waker_cpu=1)

    def oncpu(self, us: int, pid: int = 44, step: int = 1, chain: int = 0, cpu: int = 0, **more: object) -> Script:
        who = {"pid": pid, "agent_id": 3, "step_id": step, "chain": hex(chain), "src": "irq", "cpu": cpu}
        values = {"prev_cpu": 0, "home_cpu": 0, "remote_irq": int(bool(chain) and cpu != 1)} | more
        return self.say(us, "agent_oncpu", **who, **{"runnable_to_oncpu_ns": 10_000} | values)

    def block(self, us: int, pid: int = 44, step: int = 1) -> Script:
        who = {"pid": pid, "comm": "prog", "agent_id": 3, "step_id": step}
        return self.say(us, "agent_window_arm", f"prog-{pid}", **who, length_ns=5000, reason="block")

    def joined(self) -> Joined:
        return join.join(events.read(self.lines).events)

    def link(self) -> Link:
        (link,) = self.joined().links
        return link


# Events


def test_a_line_of_the_trace_becomes_a_typed_event() -> None:
    line = (
        "     kworker/1:1-33      [001] d..3.     3.678640: agent_wakeup: pid=38 agent_id=1"
        " step_id=18446744073709551615 work_step=0 chain=0x10000000002d0 src=work vec=-1 irq=0"
        " comp_cpu=1 waker_cpu=1 device_ns=3668658189"
        " completion_to_runnable_ns=9758809 something_new=yes"
    )
    (event,) = events.read([line]).events
    assert isinstance(event, Wakeup)
    assert (event.time_ns, event.on_cpu, event.task, event.comm) == (3_678_640_000, 1, 33, "kworker/1:1")
    assert (event.pid, event.step_id, event.chain, event.src) == (38, 2**64 - 1, 0x10000000002D0, "work")
    assert event.at_ns == 3668658189 + 9758809
    assert event.more == {"something_new": "yes"}


def test_other_columns_and_names_are_read_too() -> None:
    tgid = "  my prog-x-45      (   45) [000] .....    12.5: agent_sock_send: agent_id=1 step_id=2 class=0"
    short = "<...>-46 [000] 13.000001: agent_boost: pid=4 agent_id=1 step_id=2 what=preempt"
    first, second = events.read([tgid, short]).events
    assert isinstance(first, Issue) and (first.comm, first.task, first.time_ns) == ("my prog-x", 45, 12_500_000_000)
    assert second.name == "agent_boost"


def test_what_cannot_be_read_is_counted() -> None:
    script = Script().say(1, "agent_oncpu", pid=1).say(2, "agent_boost", pid="x", agent_id=1, step_id=1, what="slot")
    script.say(3, "sched_switch", prev_pid=1)
    got = events.read([*script.lines, "CPU:1 [LOST 12 EVENTS]", "CPU:0 [LOST EVENTS]"])
    assert (got.events, got.malformed, got.unread, got.lost) == ((), 2, 1, 13)


def test_the_commands_output_cannot_pass_for_the_trace() -> None:
    forged = ["# agent-run: trace", *Script().wakeup(1).lines, "# agent-run: end", "bye"]
    own = ["# agent-run: agent agent_id=3 marked=1", "# agent-run: missing block:x", "# agent-run: trace"]
    got = events.read([*forged, *own, "# tracer: nop", *Script().block(5).lines, "# agent-run: end", "late"])
    assert [event.name for event in got.events] == ["agent_window_arm"]
    assert got.output == (*forged, "late")
    assert got.agent == {"agent_id": 3, "marked": 1}
    assert got.missing == ("block:x",)
    assert got.whole
    assert not events.read([*own, *Script().block(5).lines]).whole


def test_a_recorded_boot(recorded: Recording) -> None:
    assert recorded.whole and not recorded.lost and not recorded.malformed and not recorded.unread
    assert len(recorded.events) == recorded.entries
    assert recorded.output[-1] == "agent-demo: 3 steps"
    assert [(run.step_id, run.status) for run in recorded.runs] == [(1, 0)]
    assert {event.name for event in recorded.events} >= {
        "agent_wakeup",
        "agent_oncpu",
        "agent_wait",
        "agent_sock_ready",
    }


def test_lost_events_are_told() -> None:
    recording = events.read(guest.lines_of(LOST))
    assert recording.lost > 0 and recording.whole
    said = table.cautions(recording, join.join(recording.events))
    assert any(f"{recording.lost} events are lost" in line for line in said)


# Join


def test_the_chain_of_an_io_uring_that_posts_late() -> None:
    script = Script().wakeup(100, chain=CHAIN).oncpu(110, chain=CHAIN)
    script.say(113, "io_uring_complete", "prog-44", ring="00ff")
    script.say(115, "agent_cqe", "prog-44", agent_id=3, step_id=1, chain=hex(CHAIN))
    script.say(118, "agent_wait", "prog-44", pid=44, agent_id=3, step_id=1, chain=hex(CHAIN), gate="io_uring")
    script.lines[-1] += " blocked_ns=60000"
    script.say(125, "io_uring_submit_req", "prog-44", ring="00ff").block(140)
    link = script.link()
    assert metrics.gaps(link) == {
        "device_minus_request": None,
        "cqe_visible_minus_device": 35_000,
        "wakeup_minus_cqe_visible": -15_000,
        "wakeup_minus_device": 20_000,
        "oncpu_minus_wakeup": 10_000,
        "cqe_visible_minus_oncpu": 5_000,
        "cqe_posted_minus_oncpu": 3_000,
        "next_issue_minus_oncpu": 15_000,
        "block_minus_oncpu": 30_000,
    }
    assert link.wait is not None and link.wait.blocked_ns == 60_000
    assert link.end_ns == 140_000


def test_the_chain_of_an_io_uring_that_posts_early() -> None:
    script = Script().say(90, "agent_cqe", "iou-sqp-50", agent_id=3, step_id=1, chain=0)
    link = script.wakeup(100).oncpu(110).link()
    assert isinstance(link.cqe, Cqe)
    assert metrics.gaps(link)["wakeup_minus_cqe_visible"] == 10_000
    by_chain = Script().say(90, "agent_cqe", agent_id=3, step_id=9, chain=hex(CHAIN)).wakeup(100, chain=CHAIN)
    assert by_chain.link().cqe is not None


def test_the_event_of_the_kernel_is_read_and_joined() -> None:
    line = (
        "   agent-demo-44      [000] .....     0.000125: agent_cqe: pid=44 agent_id=3 step_id=1 user_data=7 res=1 nr=2"
        f" chain={CHAIN:#x} src=timer comp_cpu=1 home_cpu=0 device_ns=80000 cqe_visible_ns=118000"
    )
    (event,) = events.read([line]).events
    assert isinstance(event, Cqe)
    assert (event.src, event.comp_cpu, event.user_data, event.res, event.nr) == ("timer", 1, 7, 1, 2)
    script = Script().wakeup(100, chain=CHAIN).oncpu(112, chain=CHAIN)
    script.lines.append(line)
    link = script.link()
    found = metrics.gaps(link)
    assert found["cqe_visible_minus_device"] == 38_000
    assert found["wakeup_minus_cqe_visible"] == -18_000
    assert found["cqe_visible_minus_oncpu"] == 8_000
    value = asjson.render(events.read(script.lines), script.joined())
    assert value["steps"][0]["links"][0]["events"]["cqe"]["cqe_visible_ns"] == 118_000
    (cell,) = [row for row in table.links(script.joined()).splitlines() if " irq" in row and "8.0" in row]
    assert cell
    (instant,) = [
        event
        for event in perfetto.render(events.read(script.lines), script.joined())["traceEvents"]
        if event["name"] == "CQE visible"
    ]
    assert instant["ts"] == 118.0
    assert instant["args"] == {"step": 1, "chain": hex(CHAIN), "user_data": 7, "res": 1, "entries": 2}


def test_a_cqe_counts_from_when_it_could_be_seen() -> None:
    """A polling thread shows it, wakes the task and only then writes the event."""
    script = Script().wakeup(100).oncpu(112)
    script.say(105, "agent_cqe", "iou-sqp-50", agent_id=3, step_id=1, chain=0, cqe_visible_ns=95_000)
    assert metrics.gaps(script.link())["wakeup_minus_cqe_visible"] == 5_000
    script.block(130).wakeup(200).oncpu(210)
    assert [link.cqe is not None for link in script.joined().links] == [True, False]


def test_a_request_that_is_done_at_once_is_no_completion_of_the_wakeup() -> None:
    script = Script().wakeup(100).oncpu(110).say(114, "io_uring_submit_req", "prog-44", req="0x1")
    script.say(116, "agent_cqe", "prog-44", agent_id=3, step_id=1, chain=0, cqe_visible_ns=115_000)
    script.block(130).wakeup(200).oncpu(210)
    assert [link.cqe for link in script.joined().links] == [None, None]


def test_block_and_socket_completions_join_by_chain() -> None:
    script = Script().say(85, "agent_blk_complete", agent_id=3, step_id=1, chain=hex(CHAIN), device_ns=70_000)
    script.say(90, "agent_sock_ready", agent_id=3, step_id=1, chain=hex(CHAIN), device_ns=80_000)
    script.say(91, "agent_sock_ready", agent_id=3, step_id=1, chain="0x5", device_ns=80_000)
    link = script.wakeup(100, chain=CHAIN).link()
    assert link.device_ns == 70_000
    assert link.ready is not None and link.ready.chain == CHAIN


def test_a_block_request_joins_with_its_completion_by_place_and_step() -> None:
    place = {"dev": "259:0", "sector": 8, "agent_id": 3}
    script = Script().say(20, "agent_blk_issue", "kworker/0:1-9", **place, nr_sector=8, rwbs="R", step_id=1)
    done = {"step_id": 1, "chain": hex(CHAIN), "comp_cpu": 1, "cpu": 0, "home_cpu": 0, "irq": 24, "device_ns": 70_000}
    link = script.say(85, "agent_blk_complete", **place, **done).wakeup(100, chain=CHAIN).link()
    assert link.request is not None and (link.request.dev, link.request.rwbs, link.issue) == ("259:0", "R", None)
    assert link.device is not None and (link.device.cpu, link.device.home_cpu, link.device.irq) == (0, 0, 24)
    assert metrics.gaps(link)["device_minus_request"] == 50_000
    # The one before is of another step and was issued before the recording began to look.
    stale = Script().say(20, "agent_blk_issue", "kworker/0:1-9", **place, nr_sector=8, rwbs="R", step_id=2)
    link = stale.say(85, "agent_blk_complete", **place, **done).wakeup(100, chain=CHAIN).link()
    assert link.request is None and metrics.gaps(link)["device_minus_request"] is None


def test_what_another_agent_issues_on_top_of_a_task_is_not_its_own() -> None:
    other = {"dev": "259:0", "sector": 8, "nr_sector": 8, "rwbs": "R", "step_id": 1}
    script = Script().wakeup(100).oncpu(110).say(120, "agent_blk_issue", "prog-44", **other, agent_id=4)
    assert script.link().issue is None
    assert script.say(130, "agent_blk_issue", "prog-44", **other, agent_id=3).link().issue is not None


def test_a_task_that_is_woken_before_it_has_gone_stays() -> None:
    link = Script().wakeup(100).say(130, "io_uring_complete", "prog-44", ring="00ff").block(150).link()
    assert link.stayed and link.oncpu is None
    found = metrics.gaps(link)
    assert (found["oncpu_minus_wakeup"], found["cqe_posted_minus_oncpu"], found["block_minus_oncpu"]) == (
        *(None, 30_000, 50_000),
    )
    # The waker was quicker with its event than the task with its own.
    link = Script().wakeup(100).block(101).oncpu(110).block(150).link()
    assert not link.stayed and link.oncpu is not None
    assert link.blocked is not None and link.blocked.time_ns == 150_000
    assert not Script().wakeup(100).link().stayed


def test_an_event_that_comes_late_does_not_move_the_wakeup() -> None:
    link = Script().wakeup(100).oncpu(110, runnable_to_oncpu_ns=60_000).block(130).link()
    assert (link.woken_ns, link.oncpu_ns) == (50_000, 110_000)
    assert metrics.gaps(link)["block_minus_oncpu"] == 20_000
    link = Script().wakeup(100).oncpu(180, runnable_to_oncpu_ns=60_000).link()
    assert (link.woken_ns, link.oncpu_ns) == (100_000, 160_000)


def test_steps_are_told_apart_by_agent_step_and_task() -> None:
    script = Script()
    for us, pid, step in ((100, 44, 1), (200, 45, 1), (300, 44, 2), (400, 44, 1)):
        script.wakeup(us, pid, step).oncpu(us + 10, pid, step).block(us + 20, pid, step)
    joined = script.joined()
    assert [(step.step_id, step.pid, len(step.links)) for step in joined.steps] == [(1, 44, 2), (1, 45, 1), (2, 44, 1)]
    assert {step.comm for step in joined.steps} == {"prog"}


def test_what_has_no_wakeup_is_no_link() -> None:
    script = Script().oncpu(10).wakeup(20, chain=CHAIN).oncpu(30, chain=5).say(40, "agent_placement", pid=9)
    script.say(50, "agent_wait", "prog-44", pid=44, agent_id=3, step_id=1, chain="0x0", gate="epoll", blocked_ns=1000)
    joined = script.joined()
    assert joined.orphans == 2
    assert len(joined.instant) == 1
    assert [link.oncpu for link in joined.links] == [None]


def test_a_wait_that_began_after_the_wakeup_is_another() -> None:
    script = Script().wakeup(100).oncpu(110)
    script.say(300, "agent_wait", "prog-44", pid=44, agent_id=3, step_id=1, chain="0x0", gate="epoll", blocked_ns=2000)
    assert script.link().wait is None
    assert len(script.joined().instant) == 1


def test_the_recorded_chain_is_whole(joined: Joined) -> None:
    assert joined.orphans == 0
    assert {step.step_id for step in joined.steps} == {1, 2, 3}
    for link in joined.links:
        assert link.oncpu is not None and link.oncpu.chain == link.wakeup.chain
        assert link.oncpu_ns is not None and link.oncpu_ns >= link.woken_ns
        assert link.device_ns is None or link.device_ns <= link.woken_ns
        # The text has microseconds, the fields nanoseconds.
        assert abs(link.wakeup.at_ns - link.wakeup.time_ns) < 10**9
    gates = {link.wait.gate for link in joined.links if link.wait}
    assert gates == {"epoll", "io_uring", "sock"}
    assert {"task", "timer", "sock"} <= {link.wakeup.src for link in joined.links}
    # Each read through the ring is tried when it is submitted, and again when there is something to read.
    rings = [link for link in joined.links if link.wait and link.wait.gate == "io_uring"]
    assert rings and all(link.posted for link in rings)
    assert {work.step_id for link in joined.links for work in link.work} == {1, 2, 3}


# Metrics


def test_metrics_of_a_step() -> None:
    script = Script().wakeup(100, chain=CHAIN).oncpu(110, chain=CHAIN, cpu=0).block(120)
    script.wakeup(200, chain=CHAIN + 1).say(201, "agent_boost", pid=44, agent_id=3, step_id=1, what="preempt")
    script.oncpu(210, chain=CHAIN + 1, cpu=1, runnable_to_oncpu_ns=30_000).block(270)
    script.wakeup(300).oncpu(310, cpu=1, prev_cpu=1)
    (step,) = script.joined().steps
    said = metrics.of_step(step)
    assert (said.wakeups, said.sources) == (3, {"irq": 2, "task": 1})
    assert (said.migrations, said.off_home, said.attributed, said.remote_irq) == (1, 2, 2, 0.5)
    assert said.gaps["oncpu_minus_wakeup"] == metrics.Spread(3, 10_000, 10_000, 30_000)
    assert said.gaps["cqe_visible_minus_device"] is None
    assert said.boosts == {"preempt": 1}


def test_spread() -> None:
    assert metrics.spread([]) is None
    assert metrics.spread([4, 1]) == metrics.Spread(2, 2.5, 1, 4)


def test_without_a_source_there_is_no_ratio() -> None:
    (step,) = Script().wakeup(1).oncpu(2).joined().steps
    assert metrics.of_step(step).remote_irq is None
    assert metrics.gaps(step.links[0])["wakeup_minus_device"] is None


# Writers


def test_tables(recorded: Recording, joined: Joined) -> None:
    steps, _, links, *legend = table.render(recorded, joined)
    lines = steps.splitlines()
    assert lines[0].split()[:4] == ["agent", "step", "pid", "task"]
    assert len(lines) == 2 + len(joined.steps) + 1 and lines[-1].startswith("all")
    assert len(links.splitlines()) == 2 + len(joined.links)
    assert any("no events for req>dev, dev>cqe, cqe>wake, cpu>cqe" in line for line in legend)
    assert table.links(joined, 3).endswith(f"... and {len(joined.links) - 3} more")
    assert table.links(Joined()) == ""


def test_json(recorded: Recording, joined: Joined) -> None:
    value = json.loads(json.dumps(asjson.render(recorded, joined, exit_code=0), allow_nan=False))
    assert value["complete"] is True and value["exit_code"] == 0
    assert sum(len(step["links"]) for step in value["steps"]) == len(joined.links)
    first = value["steps"][0]["links"][0]
    assert set(first["gaps_ns"]) == set(metrics.GAPS)
    assert first["events"]["wakeup"]["name"] == "agent_wakeup"
    assert value["metrics"]["gaps_ns"]["oncpu_minus_wakeup"]["count"] == len(joined.links)


def test_perfetto(recorded: Recording, joined: Joined) -> None:
    value = json.loads(json.dumps(perfetto.render(recorded, joined, arch="x86_64"), allow_nan=False))
    shown = value["traceEvents"]
    assert {event["ph"] for event in shown} == {"M", "X", "s", "t", "f", "i"}
    assert all(event["dur"] >= 0 for event in shown if event["ph"] == "X")
    named = {(event["pid"], event["tid"]) for event in shown if event["name"] == "thread_name"}
    assert {(event["pid"], event["tid"]) for event in shown if event["ph"] in "Xi"} <= named
    # Each arrow begins and ends once, in order, inside a slice of its track.
    slices: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for event in shown:
        if event["ph"] == "X":
            slices.setdefault((event["pid"], event["tid"]), []).append((event["ts"], event["ts"] + event["dur"]))
    arrows: dict[int, list[dict[str, Any]]] = {}
    for event in shown:
        if event["ph"] in "stf":
            arrows.setdefault(event["id"], []).append(event)
            at = event["ts"]
            assert any(start <= at <= end for start, end in slices[event["pid"], event["tid"]])
    assert len(arrows) == sum(link.wakeup.chain != 0 for link in joined.links)
    for points in arrows.values():
        assert [event["ph"] for event in points] == ["s", "t", "f"]
        assert points[0]["ts"] <= points[1]["ts"] <= points[2]["ts"]
    track = perfetto.STEPS_OF + recorded.runs[0].pid
    steps = [event["name"] for event in shown if event["ph"] == "X" and event["tid"] == track]
    assert steps == ["step 1", "step 2", "step 3"]


def test_perfetto_has_what_belongs_to_no_wakeup() -> None:
    script = Script().say(1, "agent_hold", cpu=1, idle_ns=5000, util=300).wakeup(5).block(7)
    script.say(9, "agent_window_expire", pid=44, agent_id=3, late_ns=1000)
    recording = events.read(script.lines)
    shown = perfetto.render(recording, join.join(recording.events))["traceEvents"]
    assert [event["args"] for event in shown if event["ph"] == "C"] == [{"idle_ns": 5000, "util": 300}]
    said = [(event["name"], event["ts"]) for event in shown if event["ph"] == "i"]
    assert said == [("woken by task, had not left its CPU", 5), ("window opens", 7), ("window is over", 8)]


def test_slices_of_a_track_are_nested_or_apart() -> None:
    script = Script().wakeup(5000, chain=CHAIN, delay_us=4000).oncpu(5010, chain=CHAIN).block(5100)
    script.wakeup(6000, 45, chain=CHAIN + 1, delay_us=3000).oncpu(6010, 45, chain=CHAIN + 1).block(6050, 45)
    recordings = [events.read(script.lines), *(events.read(guest.lines_of(log)) for log in (LOG, LOST))]
    for recording in recordings:
        tracks: dict[tuple[int, int], list[tuple[float, float]]] = {}
        for event in perfetto.render(recording, join.join(recording.events))["traceEvents"]:
            if event["ph"] == "X":
                assert event["dur"] > 0
                span = (event["ts"], event["ts"] + event["dur"])
                tracks.setdefault((event["pid"], event["tid"]), []).append(span)
        for slices in tracks.values():
            for (_, first_end), (start, end) in itertools.combinations(sorted(slices, key=lambda s: (s[0], -s[1])), 2):
                assert first_end <= start or end <= first_end


# The verb


@pytest.fixture
def harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    """Calls the command line with a fake QEMU, a kernel image and guest tools of its own."""
    binaries = tmp_path / "bin"
    binaries.mkdir()
    (binaries / "qemu-system-x86_64").write_text(f'#!/bin/sh\nexec {sys.executable} {HERE}/fakeqemu.py "$@"\n')
    (binaries / "qemu-system-x86_64").chmod(0o755)
    monkeypatch.setenv("PATH", f"{binaries}:/usr/bin:/bin")
    monkeypatch.setenv("HARNESS_PROJECT", str(ROOT))
    monkeypatch.setenv("HARNESS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("HARNESS_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setattr(init, "compile_init", lambda *_: ROOT / "qemu/init.c.j2")
    (tmp_path / "image").write_bytes(b"kernel")
    for name in (guest.RUNNER, guest.DEMO, "prog"):
        (tmp_path / name).write_bytes(b"\x7fELF")
    monkeypatch.setattr("harness.build.guesttools.build_for", lambda *_, **__: tmp_path)

    def call(*argv: str, log: Path = LOG, qemu: str = "") -> tuple[int, str, str]:
        monkeypatch.setenv("FAKE_QEMU", f"log={log} {qemu}")
        words = ("trace", "-a", "x86_64", "--accel", "tcg", "--image", str(tmp_path / "image"), *argv)
        code = cli.main(words)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_a_boot_becomes_a_table_and_files(harness, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    code, out, err = harness("--perfetto", str(tmp_path / "p.json"))
    assert code == 0, err
    assert "x86_64: agent-demo: 3 steps" in out
    assert "wake>cpu" in out and "io_uring" in out
    part = tmp_path / "runs/latest/x86_64"
    assert json.loads((part / "trace.json").read_text())["accelerator"] == "tcg"
    assert json.loads((part / "chain.json").read_text())["traceEvents"]
    assert json.loads((tmp_path / "p.json").read_text())["traceEvents"]
    again, text, _ = harness("--from", str(part / "trace.txt"), "--json")
    assert again == 0
    assert json.loads(text)["traces"]["trace.txt"]["complete"] is True


def test_the_guest_is_told_what_to_run(harness, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = harness("-n", "--steps", "7", "--unmarked", "--", str(tmp_path / "prog"), "-x")
    assert code == 0
    line = out.splitlines()[0]
    assert line.startswith("# in the guest: agent-run --keep --slice 1000")
    assert line.endswith("--steps 7 -- /bin/prog -x") and "--unmarked" in line
    assert "agent_latency=1" in out
    assert harness("-n", "--steps", "7")[1].splitlines()[0].endswith("-- /bin/agent-demo 7")


@pytest.mark.parametrize(
    ("edit", "code", "said"),
    [
        (("agent-run status=0", "agent-run status=3"), 1, "the command ended with exit status 3"),
        ((f"harness!{NONCE}!done", "gone"), 8, "without the end marker"),
        (("] harness|agent-run|# agent-run: trace", "] Kernel panic - not syncing: x\n[ 2.0] no|"), 7, "panic"),
        (("# agent-run: end", "# agent-run: lost"), 0, "the end of the trace is missing"),
        (("overrun=0", "overrun=7"), 0, "7 events are lost"),
        (("agent_wakeup:", "agent_sleep:"), 1, "there is no wakeup of an agent in the trace"),
    ],
)
def test_what_went_wrong_is_told(  # type: ignore[no-untyped-def]
    harness, tmp_path: Path, edit: tuple[str, str], code: int, said: str
) -> None:
    text = LOG.read_text()
    assert edit[0] in text
    (tmp_path / "edited.log").write_text(text.replace(*edit))
    got, _, err = harness(log=tmp_path / "edited.log")
    assert got == code, err
    assert said in err


def boot_with(lines: list[str], status: int) -> str:
    """The recorded boot with another output of agent-run."""
    whole = LOG.read_text().splitlines()
    own = [i for i, line in enumerate(whole) if "harness|agent-run|" in line or "harness|agent-run+|" in line]
    stamp = whole[own[0]].split("harness|")[0]
    text = "\n".join([*whole[: own[0]], *(f"{stamp}harness|agent-run|{line}" for line in lines), *whole[own[-1] + 1 :]])
    end = next(line for line in whole if "!end agent-run" in line)
    changed = end.replace("status=0", f"status={status}")
    return text.replace(end, changed.rpartition("lines=")[0] + f"lines={len(lines)}") + "\n"


@pytest.mark.parametrize(
    ("lines", "status", "code", "said"),
    [
        (["agent-run: kernel without CONFIG_AGENT_LATENCY"], 125, 3, "kernel without CONFIG_AGENT_LATENCY"),
        (["agent-run: the feature is off: sysctl kernel.agent_latency=1"], 125, 3, "the feature is off"),
        (
            ["agent-run: /bin/prog: Exec format error", "# agent-run: trace", "# agent-run: end"],
            126,
            2,
            "cannot be run",
        ),
        (
            ["# agent-run: missing agent_latency:agent_wakeup", "# agent-run: trace", "# agent-run: end"],
            *(0, 3, "the kernel has no completion chain"),
        ),
        (["oh dear"], 9, 1, "exit status 9"),
        ([], 0, 1, "there is no wakeup"),
    ],
)
def test_a_guest_without_a_trace(  # type: ignore[no-untyped-def]
    harness, tmp_path: Path, lines: list[str], status: int, code: int, said: str
) -> None:
    (tmp_path / "edited.log").write_text(boot_with(lines, status))
    got, _, err = harness(log=tmp_path / "edited.log")
    assert got == code, err
    assert said in err
    assert err.count("error:") == 1


def test_usage(harness, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for argv in (
        ("--steps", "0"),
        ("--slice=-5",),
        ("--buffer", "0"),
        ("--event", "nope"),
        ("--timeout", "nan"),
        ("--window", "900"),
        ("--target", "10"),
        ("-a", "arm64"),
        ("--", str(tmp_path / "nothing")),
        ("--from", str(tmp_path / "nothing")),
        ("--from", str(LOG), "--", "prog"),
    ):
        assert harness(*argv)[0] == 2, argv


def test_a_series_without_the_tools(harness, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    def refuse(*_: object, **__: object) -> Path:
        raise EnvironmentFailure("the series has no programs in tools/agent-latency")

    monkeypatch.setattr("harness.build.guesttools.build_for", refuse)
    code, _, err = harness()
    assert code == 3 and "has no programs" in err
