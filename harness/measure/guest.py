"""One boot of the machine that measures, and what its benchmark said."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.context import Context
from harness.data import Arch, Machine, Reports
from harness.errors import ExitCode
from harness.guest import console, init, runner, verdict
from harness.guest import machine as machines
from harness.guest.emulator import Emulator
from harness.guest.init import Program
from harness.guest.log import load

PROGRAM = "bench"
SERIAL = "serial.log"
# KUnit suites would take a minute of instructions.
CMDLINE = ("kunit.enable=0",)


@dataclass(frozen=True)
class Guest:
    """What the boots of one architecture share. ``timeout`` in seconds is for a whole boot."""

    arch: Arch
    machine: Machine
    emulator: Emulator
    image: Path
    program: Path
    timeout: float
    cmdline: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """``lines`` are the benchmark's; ``failure`` says why they cannot count, or is empty."""

    lines: tuple[str, ...]
    failure: str
    code: ExitCode
    log: Path
    seconds: float


def argv(guest: Guest, seed: int, initrd: Path, serial: Path, nonce: str) -> list[str]:
    """The QEMU command line of the boot with this seed."""
    line = machines.cmdline(guest.machine, nonce, [*CMDLINE, *guest.cmdline])
    return machines.argv(
        guest.machine,
        kernel=guest.image,
        initrd=initrd,
        cmdline=line,
        qemu=guest.emulator.program,
        serial=serial,
        extra=["-seed", str(seed)],
    )


def boot(
    context: Context,
    guest: Guest,
    seed: int,
    arguments: Sequence[str],
    directory: Path,
    on_poll: Callable[[], None] | None = None,
) -> Outcome:
    """Boot once with ``arguments`` for the benchmark; leaves console.log and reproduce.sh in ``directory``.

    The nonce is the seed: it is on the command line, and the same boot must be the same to the last byte. Raises
    EnvironmentFailure when QEMU does not start.
    """
    directory.mkdir(parents=True, exist_ok=True)
    program = Program(PROGRAM, guest.program, arguments=tuple(arguments), timeout=guest.timeout, reports=Reports.STATUS)
    initrd = init.make_initramfs(context, guest.arch, [program], directory / runner.INITRAMFS)
    nonce = f"seed{seed}"
    serial = directory / SERIAL
    words = argv(guest, seed, initrd, serial, nonce)
    runner.write_reproducer(directory / runner.REPRODUCE, words)
    log = directory / runner.CONSOLE_LOG
    # Lines come when a cell is done, and a cell may take as long as it likes.
    limits = console.Deadlines(boot=guest.timeout, silence=guest.timeout, total=guest.timeout)
    result = console.run(words, log, limits, nonce=nonce, on_poll=on_poll, serial=serial)
    with contextlib.suppress(OSError):
        serial.unlink()
    text = load(log)
    runner.require_start(result, words, text)
    expected = [verdict.Expected(PROGRAM, Reports.STATUS)]
    judged = verdict.judge(text, result.ending, runner.rules(context), nonce=nonce, expected=expected)
    failure = judged.failure.message if judged.failure else ""
    if not failure and judged.exit_code:
        failure = next(test.reason for test in judged.tests if test.status.bad)
    lines = judged.outputs.get(PROGRAM, ())
    if failure and lines and judged.exit_code == ExitCode.TESTS_FAILED:
        failure += f": {lines[-1]}"
    return Outcome(lines, failure, judged.exit_code, log, result.seconds)
