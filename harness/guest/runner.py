"""One boot: an initramfs of the programs to run, a virtual machine under deadlines, a verdict on its console log."""

from __future__ import annotations

import secrets
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness.context import Context
from harness.data import Arch
from harness.errors import EnvironmentFailure, UsageError
from harness.fs import atomic_write
from harness.guest import accel as accels
from harness.guest import console, emulator, init, splat, verdict
from harness.guest import machine as machines
from harness.guest.accel import Accel
from harness.guest.init import Program
from harness.guest.log import load
from harness.proc import quoted

CONSOLE_LOG = "console.log"
REPRODUCE = "reproduce.sh"
INITRAMFS = "initramfs.cpio.gz"


@dataclass(frozen=True)
class Boot:
    """What one boot gave. ``qemu`` is its version, ``boot_seconds`` host time from power-on to the first marker."""

    arch: Arch
    backend: str
    qemu: str
    accel: Accel
    argv: tuple[str, ...]
    log: Path
    seconds: float
    boot_seconds: float | None
    verdict: verdict.Verdict


def deadlines(context: Context, factor: float = 1.0, least: float = 0.0) -> console.Deadlines:
    """The deadlines of the settings, for a kernel that is ``factor`` times slower than the usual.

    ``least`` is what the programs may take together, in seconds of such a kernel. Raises UsageError for a factor that
    is none.
    """
    init.require_deadline(factor, "the timeout_factor of the flavour and guest")
    settings = context.settings
    limits = console.Deadlines(
        boot=settings.seconds("boot_timeout"),
        silence=settings.seconds("silence_timeout"),
        total=settings.seconds("boot_timeout") + settings.seconds("test_timeout"),
    ).scaled(factor)
    return replace(limits, total=max(limits.total, limits.boot + least))


def new_nonce() -> str:
    """A word that no earlier boot has used."""
    return secrets.token_hex(8)


def rules(context: Context) -> splat.Rules:
    """What counts as a splat."""
    return splat.Rules.load(context.qemu / "splats.yaml")


def plan_argv(
    context: Context, arch: Arch, image: Path, initrd: Path, *, accel: str, nonce: str, extra: Sequence[str] = ()
) -> list[str]:
    """The QEMU command line of a boot."""
    machine = context.machine(arch.machine)
    line = machines.cmdline(machine, nonce, extra)
    return machines.argv(machine, kernel=image, initrd=initrd, cmdline=line, accel=accel)


def boot(
    context: Context,
    arch: Arch,
    image: Path,
    programs: Sequence[Program],
    directory: Path,
    *,
    factor: float = 1.0,
    root: Path | None = None,
    cmdline: Sequence[str] = (),
    least: float = 0.0,
    provoked: Mapping[str, str] | None = None,
    suites: Sequence[str] = (),
    kept: bool = True,
    quiet: bool = False,
) -> Boot:
    """Boot ``image`` with an init that runs ``programs`` in order, and judge its console.

    Leaves the initramfs, console.log and reproduce.sh in ``directory``. ``factor`` stretches every deadline; ``root``
    is a user land to put below the programs; ``least`` is for :func:`deadlines`; ``provoked`` names kinds of splats
    that do not count, each with the reason; ``suites`` are KUnit suites that have to report; ``kept`` says
    whether the directory outlives the call, ``quiet`` that the programs may print nothing for as long as they run.
    Raises EnvironmentFailure when QEMU is missing or does not start; whatever
    the guest does is in the verdict.
    """
    machine = context.machine(arch.machine)
    if not image.is_file():
        raise UsageError(f"there is no kernel image {image}", hint="harness build")
    checked = rules(context).excusing(provoked or {})
    qemu = emulator.ensure(context, arch, machine)
    accel = accels.choose(context, arch, machine, qemu.program, image)
    nonce = new_nonce()
    initrd = init.make_initramfs(context, arch, programs, directory / INITRAMFS, root)
    line = machines.cmdline(machine, nonce, cmdline)
    argv = machines.argv(machine, kernel=image, initrd=initrd, cmdline=line, accel=accel.name, qemu=qemu.program)
    write_reproducer(directory / REPRODUCE, argv)
    log = directory / CONSOLE_LOG
    context.report.step(f"{arch.name}: booting with {accel.name}, {_count(programs)}")
    limits = deadlines(context, factor, least)
    limits = limits.patient() if quiet else limits
    result = console.run(
        argv,
        log,
        limits,
        nonce=nonce,
        on_program=lambda name: context.report.debug(f"{arch.name}: {name}"),
    )
    text = load(log)
    require_start(result, argv, text, kept=kept)
    expected = [verdict.Expected(program.name, program.reports) for program in programs]
    judged = verdict.judge(text, result.ending, checked, nonce=nonce, expected=expected, suites=suites)
    return Boot(arch, "qemu", qemu.version, accel, tuple(argv), log, result.seconds, result.boot_seconds, judged)


def _count(programs: Sequence[Program]) -> str:
    return f"{len(programs)} program{'s' if len(programs) != 1 else ''}"


def require_start(result: console.ConsoleResult, argv: Sequence[str], text: str, *, kept: bool = True) -> None:
    """Raise EnvironmentFailure, with QEMU's own message, when it ended before the kernel said a word.

    The command line is in a reproducer beside the log, unless that is not ``kept``: the hint is the command then.
    """
    status = result.ending.status
    if result.ending.end != verdict.End.EXITED or result.guest_spoke or status == 0:
        return
    words = [line for line in text.replace("\r", "").split("\n") if line.strip()]
    raise EnvironmentFailure(
        f"{Path(argv[0]).name} did not start the guest: {words[-1].strip() if words else f'it ended with {status}'}",
        detail="\n".join(words[-10:-1]),
        hint=f"its command line is in {result.log.parent / REPRODUCE}" if kept else f"run it by hand: {quoted(argv)}",
    )


def write_reproducer(path: Path, argv: Sequence[str]) -> None:
    """A script that repeats the boot with the console on the terminal."""
    words: list[str] = []
    for word in argv:
        if word.startswith("-") and words:
            words.append("\\\n  " + shlex.quote(word))
        else:
            words.append(shlex.quote(word))
    text = "#!/bin/sh\n# Boots the same guest again; Ctrl-C does not reach it, `kill` or the power-off ends it.\n"
    if "-kernel" in argv:
        image = shlex.quote(argv[argv.index("-kernel") + 1])
        text += f"[ -f {image} ] || {{ echo {image} is no longer kept >&2; exit 3; }}\n"
    atomic_write(path, f"{text}exec {' '.join(words)}\n", mode=0o755)
