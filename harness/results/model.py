"""The results of a run as plain data: what table, JSON and JUnit are made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.errors import ExitCode
from harness.guest.ktap import Status, Test
from harness.guest.splat import Splat
from harness.guest.verdict import Verdict

# From bad to good: what failed earliest is worst, as less has been tested.
_ORDER = (
    ExitCode.INTERRUPTED,
    ExitCode.USAGE,
    ExitCode.ENVIRONMENT,
    ExitCode.APPLY,
    ExitCode.CONFIG,
    ExitCode.BUILD,
    ExitCode.GUEST_CRASH,
    ExitCode.TIMEOUT,
    ExitCode.TESTS_FAILED,
    ExitCode.OK,
)


@dataclass(frozen=True)
class Problem:
    """A stage that ended in an expected error."""

    code: ExitCode
    message: str
    hint: str = ""
    detail: str = ""


@dataclass(frozen=True)
class ArchResult:
    """One architecture of a run: a verdict, or the problem that kept it from one. Times in seconds."""

    arch: str
    backend: str = "qemu"
    accel: str = ""
    accel_reason: str = ""
    verdict: Verdict | None = None
    problem: Problem | None = None
    log: Path | None = None
    reproduce: Path | None = None
    seconds: float = 0.0
    boot_seconds: float | None = None
    stages: dict[str, float] = field(default_factory=dict)

    @property
    def exit_code(self) -> ExitCode:
        """That of the problem, else that of the verdict."""
        if self.problem is not None:
            return self.problem.code
        return self.verdict.exit_code if self.verdict else ExitCode.TESTS_FAILED


def worst(codes: Sequence[ExitCode]) -> ExitCode:
    """The exit code of several parts."""
    return min(codes, key=_ORDER.index, default=ExitCode.OK)


def as_json(results: Sequence[ArchResult], **more: Any) -> dict[str, Any]:
    """The whole result for results.json and --json."""
    return {
        **more,
        "exit_code": int(worst([r.exit_code for r in results])),
        "architectures": [_arch(r) for r in results],
    }


def _arch(result: ArchResult) -> dict[str, Any]:
    verdict = result.verdict
    value: dict[str, Any] = {
        "arch": result.arch,
        "backend": result.backend,
        "accelerator": result.accel,
        "accelerator_reason": result.accel_reason,
        "exit_code": int(result.exit_code),
        "seconds": round(result.seconds, 3),
        "boot_seconds": None if result.boot_seconds is None else round(result.boot_seconds, 3),
        "stages": {name: round(seconds, 1) for name, seconds in result.stages.items()},
        "console": str(result.log) if result.log else None,
        "reproduce": str(result.reproduce) if result.reproduce else None,
    }
    if result.problem is not None:
        value["problem"] = {"message": result.problem.message, "hint": result.problem.hint}
    if verdict is not None:
        value |= {
            "kernel": verdict.banner,
            "failure": {"kind": verdict.failure.kind, "message": verdict.failure.message} if verdict.failure else None,
            "totals": totals(verdict),
            "tests": [_test(test) for test in verdict.tests],
            "kunit": [_test(test) for test in verdict.suites],
            "splats": [_splat(report) for report in verdict.splats],
            "excused_splats": [_splat(report) for report in verdict.excused],
            "notes": list(verdict.notes),
        }
    return value


def _splat(report: Splat) -> dict[str, Any]:
    value: dict[str, Any] = {
        "kind": report.kind,
        "headline": report.headline,
        "line": report.first,
        "lines": list(report.lines),
    }
    if report.excused:
        value["excused"] = report.excused
    return value


def _test(test: Test) -> dict[str, Any]:
    value: dict[str, Any] = {"name": test.name, "status": str(test.status)}
    if test.number is not None:
        value["number"] = test.number
    if test.reason:
        value["reason"] = test.reason
    if test.seconds is not None:
        value["seconds"] = test.seconds
    if test.problems:
        value["problems"] = list(test.problems)
    if test.log and test.status.bad:
        value["log"] = list(test.log)
    if test.children:
        value["subtests"] = [_test(child) for child in test.children]
    return value


def totals(verdict: Verdict) -> dict[str, int]:
    """How many programs and suites, and how many of their subtests, ended how."""
    everything = verdict.everything
    counts = dict.fromkeys(Status, 0)
    for test in everything:
        for status, n in test.counts().items():
            counts[status] += n
    return {
        "programs": len(everything),
        "programs_bad": sum(test.status.bad for test in everything),
        "subtests": sum(counts.values()),
        **{f"subtests_{status.name.lower()}": n for status, n in counts.items()},
    }
