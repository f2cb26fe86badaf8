"""One boot that records: agent-run and its command in a guest, and what came of it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.context import Context
from harness.data import Arch, Reports
from harness.errors import ExitCode
from harness.fs import atomic_write, disk_errors
from harness.guest import log, runner
from harness.guest.init import Program
from harness.guest.ktap import Test

RUNNER = "agent-run"
DEMO = "agent-demo"
TRACE = "trace.txt"
# Of the command, in the guest.
PLACE = "/bin"
# The feature is on from the start, and KUnit suites are for other verbs.
CMDLINE = ("agent_latency=1", "kunit.enable=0")
# agent-run's own failures, as env(1) and timeout(1) have them: of itself, of a command that cannot be run.
OWN_FAILURE = 125
NOT_RUN = (126, 127)


@dataclass(frozen=True)
class Outcome:
    """``lines`` are what agent-run and its command printed; ``failure`` is why the boot does not count, or empty."""

    lines: tuple[str, ...]
    failure: str
    detail: str
    hint: str
    code: ExitCode
    log: Path
    accel: str
    seconds: float


def arguments(options: Sequence[str], name: str, rest: Sequence[str]) -> tuple[str, ...]:
    """For agent-run, to run the command ``name``. The guest goes off anyway: its trace instance may stay, as taking
    it away patches code under whatever the command has left running."""
    return ("--keep", *options, "--", f"{PLACE}/{name}", *rest)


def boot(
    context: Context,
    arch: Arch,
    image: Path,
    directory: Path,
    *,
    program: Path,
    command: tuple[str, Path],
    words: Sequence[str],
    timeout: float,
    factor: float = 1.0,
) -> Outcome:
    """Boot ``image`` and run ``program``, which is agent-run, with ``words``; ``command`` is the name and the file of
    what it is to run. Leaves trace.txt in ``directory`` beside what every boot leaves there."""
    root = directory / "root"
    with disk_errors(directory):
        shutil.rmtree(root, ignore_errors=True)
        (root / PLACE.strip("/")).mkdir(parents=True)
        shutil.copyfile(command[1], root / PLACE.strip("/") / command[0])
        (root / PLACE.strip("/") / command[0]).chmod(0o755)
    started = Program(RUNNER, program, arguments=tuple(words), timeout=timeout, reports=Reports.STATUS)
    try:
        booted = runner.boot(context, arch, image, [started], directory, factor=factor, root=root, cmdline=CMDLINE)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    judged = booted.verdict
    lines = judged.outputs.get(RUNNER, ())
    atomic_write(directory / TRACE, "\n".join([*lines, ""]))
    failure, detail, hint, code = "", "", "", judged.exit_code
    if judged.failure:
        failure, hint = judged.failure.message, f"see {booted.log}"
    elif code != ExitCode.OK:
        failure, detail, hint, code = _explain(judged.tests[0], lines, code)
    return Outcome(lines, failure, detail, hint, code, booted.log, booted.accel.name, booted.seconds)


def _explain(test: Test, lines: Sequence[str], code: ExitCode) -> tuple[str, str, str, ExitCode]:
    """Why agent-run has failed, itself or its command: a message, its detail, what to do, the exit code."""
    said = [line.removeprefix(f"{RUNNER}: ") for line in lines if line.startswith(f"{RUNNER}: ")]
    if test.exit_status == OWN_FAILURE and said:
        lacking = "without" in said[-1] or "no trace" in said[-1]
        hint = "boot a kernel with the series: harness build" if lacking else ""
        return said[-1], "", hint, ExitCode.ENVIRONMENT
    if test.exit_status in NOT_RUN and said:
        hint = "it must be a static program of the guest's architecture"
        return f"the command cannot be run: {said[-1]}", "", hint, ExitCode.USAGE
    if test.exit_status:
        last = next((line for line in reversed(lines) if line and not line.startswith("#")), "")
        return f"the command ended with exit status {test.exit_status}", last, "", code
    return f"the command: {test.reason}", "", "", code


def lines_of(path: Path) -> tuple[str, ...]:
    """The lines of a saved trace: trace.txt, a copy of tracefs, or the console log of a boot."""
    text = log.load(path)
    lines = log.read(text)
    if any(line.program == RUNNER for line in lines):
        return tuple(log.output(lines, RUNNER))
    return tuple(text.split("\n"))
