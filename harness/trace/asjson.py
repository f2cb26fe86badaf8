"""The chain for a program: all links of all steps with their gaps in ns. Pure."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from harness.trace import metrics
from harness.trace.events import Event, Recording
from harness.trace.join import Joined, Link, Step
from harness.trace.metrics import GAPS, Metrics

FORMAT = 1


def _metrics(said: Metrics) -> dict[str, Any]:
    value = asdict(said)
    value["gaps_ns"] = value.pop("gaps")
    return value


def _event(event: Event | None) -> dict[str, Any] | None:
    if event is None:
        return None
    value = asdict(event)
    more = value.pop("more")
    return {**value, **{name: text for name, text in more.items() if name not in value}}


def _link(link: Link) -> dict[str, Any]:
    return {
        "chain": f"{link.wakeup.chain:#x}" if link.wakeup.chain else None,
        "source": link.wakeup.src,
        "stayed": link.stayed,
        "device_ns": link.device_ns,
        "wakeup_ns": link.woken_ns,
        "oncpu_ns": link.oncpu_ns,
        "gaps_ns": metrics.gaps(link),
        "events": {
            **{
                name: _event(getattr(link, name))
                for name in (
                    "wakeup",
                    "placement",
                    "oncpu",
                    "ready",
                    "device",
                    "request",
                    "cqe",
                    "posted",
                    "wait",
                    "issue",
                    "blocked",
                )
                if getattr(link, name) is not None
            },
            "boosts": [_event(boost) for boost in link.boosts],
            "work": [_event(work) for work in link.work],
        },
    }


def _step(step: Step) -> dict[str, Any]:
    return {
        "agent_id": step.agent_id,
        "step_id": step.step_id,
        "pid": step.pid,
        "comm": step.comm,
        "metrics": _metrics(metrics.of_step(step)),
        "links": [_link(link) for link in step.links],
    }


def render(recording: Recording, joined: Joined, **more: Any) -> dict[str, Any]:
    """The whole value; ``more`` is about where it comes from."""
    return {
        "format": FORMAT,
        **more,
        "agent": dict(recording.agent),
        "runs": [asdict(run) for run in recording.runs],
        "events": len(recording.events),
        "lost": recording.lost,
        "malformed": recording.malformed,
        "missing": list(recording.missing),
        "complete": recording.whole and not recording.lost,
        "orphans": joined.orphans,
        "gaps": {name: what for name, (_, what, _) in GAPS.items()},
        "metrics": _metrics(metrics.of_links(joined.links)),
        "steps": [_step(step) for step in joined.steps],
    }
