"""Shells and commands in a guest, by either backend."""

from __future__ import annotations

import gzip
import tempfile
from collections.abc import Sequence
from pathlib import Path

from harness.context import Context
from harness.data import Arch, Reports
from harness.errors import GuestCrash, StageTimeout, UsageError
from harness.fs import atomic_write
from harness.guest import accel as accels
from harness.guest import emulator, init, rootfs, runner, vng
from harness.guest import machine as machines
from harness.guest.init import Program
from harness.guest.ktap import Status

SHELL_CMDLINE = ("panic=-1", "quiet", "loglevel=4", "printk.devkmsg=on")


def plan(context: Context, arch: Arch, image: Path, command: Sequence[str], *, backend: str) -> list[str]:
    """The command line that :func:`start` runs; nothing is made for it."""
    if backend == "vng":
        script = f"{vng.SHARE}/run.sh" if command else ""
        return vng.argv(context, arch, image, root=vng.root_path(context, arch), script=script, nonce="NONCE")
    return _qemu(context, arch, image, Path("INITRAMFS"), accel="tcg", qemu="")


def start(
    context: Context,
    arch: Arch,
    image: Path,
    command: Sequence[str],
    *,
    backend: str,
    factor: float = 1.0,
    keep: Path | None = None,
) -> int:
    """Run ``command`` and return its status (7 for a 0 of a kernel that complained), or give the terminal to a shell.

    Raises GuestCrash, StageTimeout or EnvironmentFailure when the guest is the trouble.
    """
    if not image.is_file():
        raise UsageError(f"there is no kernel image {image}", hint="harness build")
    if backend == "vng":
        if command:
            return vng.command(context, arch, image, command, factor=factor, keep=keep)
        return vng.shell(context, arch, image)
    root = rootfs.ensure(context, arch)
    if command:
        return _command(context, arch, image, root, command, factor, keep)
    return _shell(context, arch, image, root)


def _qemu(context: Context, arch: Arch, image: Path, initrd: Path, *, accel: str, qemu: str) -> list[str]:
    machine = context.machine(arch.machine)
    line = " ".join(
        [f"console={machine.console}", *machine.cmdline.split(), *SHELL_CMDLINE, f"harness.console={machine.console}"]
    )
    return machines.argv(machine, kernel=image, initrd=initrd, cmdline=line, accel=accel, qemu=qemu, interactive=True)


def _shell(context: Context, arch: Arch, image: Path, root: Path) -> int:
    machine = context.machine(arch.machine)
    qemu = emulator.ensure(context, arch, machine).program
    accel = accels.choose(context, arch, machine, qemu, image)
    with tempfile.TemporaryDirectory(prefix="harness-shell-") as name:
        archive = init.Archive()
        archive.tree(root)
        archive.device("dev/console", 5, 1)
        archive.device("dev/null", 1, 3)
        archive.file("init", (context.qemu / "shell-init.sh").read_bytes())
        initrd = Path(name) / runner.INITRAMFS
        atomic_write(initrd, gzip.compress(archive.data(), compresslevel=1, mtime=0))
        context.report.step(f"{arch.name}: starting QEMU with {accel.name}; leave with exit, or at once with Ctrl-A X")
        status = vng.foreground(_qemu(context, arch, image, initrd, accel=accel.name, qemu=qemu))
    if status != 0:
        raise GuestCrash(f"{arch.name}: QEMU ended with {status}", hint="harness boot shows the guest's console")
    return 0


def _command(
    context: Context,
    arch: Arch,
    image: Path,
    root: Path,
    command: Sequence[str],
    factor: float,
    keep: Path | None,
) -> int:
    seconds = context.settings.seconds("test_timeout") * factor
    program = Program(
        "command", path="/usr/bin/env", arguments=("--", *command), timeout=seconds, reports=Reports.STATUS
    )
    with tempfile.TemporaryDirectory(prefix="harness-shell-") as name:
        place, kept = keep or Path(name), keep is not None
        boot = runner.boot(context, arch, image, [program], place, factor=factor, root=root, kept=kept, quiet=True)
    judged = boot.verdict
    for line in judged.outputs.get("command", ()):
        context.report.result(line)
    test = judged.tests[0]
    for report in judged.splats:
        context.report.warn(f"{arch.name}: the kernel reported: {report.kind}: {report.headline}")
    if test.exit_status == 0 and judged.splats:
        return int(GuestCrash.exit_code)
    if test.exit_status is not None:
        return test.exit_status
    if test.status == Status.CRASHED and judged.failure is None:
        context.report.error(f"{arch.name}: {test.reason}")
        return 128
    message = judged.failure.message if judged.failure else f"{test.status}: {test.reason}"
    detail = "\n".join(report.shown() for report in judged.splats[:2])
    cls = GuestCrash if judged.failure and judged.failure.code == GuestCrash.exit_code else StageTimeout
    raise cls(
        f"{arch.name}: {message}", detail=detail, hint=f"console log: {boot.log}" if keep else "--log DIR keeps it"
    )
