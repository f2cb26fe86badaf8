"""``harness shell``: a shell, or a command of the host, in the patched kernel."""

from __future__ import annotations

import argparse
from pathlib import Path

from harness import options, proc
from harness.context import Context
from harness.data import Arch
from harness.errors import UsageError
from harness.guest import shells, vng
from harness.verbs.test import add_backend

NAME = "shell"
DESCRIPTION = """\
Builds the kernel if it is not built and starts a root shell in it. With virtme-ng (the default) the guest of this
machine's own architecture has this machine's files, read-only below and writable in memory, so bpftrace, perf or fio
run in the new kernel as they are; another architecture gets a small user land made once from the distribution's
packages, and the working directory below /mnt. `--backend qemu` needs no virtme-ng and always uses that user land.

With `-- CMD ARG...` the command runs without a terminal, its output comes as it is printed, and its exit status is
that of `harness shell`; 7 if that is 0 and the kernel warned or crashed. When the guest dies instead, the code is 7 or
8 and the reason is shown.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See DESCRIPTION."""
    options.add_guest(parser)
    add_backend(parser, default="vng")
    parser.add_argument("--timeout", dest="test_timeout", type=float, metavar="SECONDS", help="deadline of the command")
    parser.add_argument("--image", type=Path, metavar="FILE", help="boot this kernel image in place of the built one")
    parser.add_argument("--log", type=Path, metavar="DIR", help="keep the console log there (with a command)")
    parser.add_argument("command", nargs="*", metavar="CMD", help="a command and its arguments, after --")


def run(context: Context, args: argparse.Namespace) -> int:
    """Build, boot, hand over; see DESCRIPTION."""
    arch = _arch(context, args)
    flavour = options.flavour(context, args)
    options.check_image(args.image)
    if not args.command and not context.dry_run:
        vng.require_terminal()
    image: Path | None = args.image
    if image is None:
        from harness.build import kernel as kernels

        image = kernels.build_to_boot(context, arch, flavour, patched=not args.unpatched).image
    if context.dry_run:
        context.report.result(proc.quoted(shells.plan(context, arch, image, args.command, backend=args.backend)))
        return 0
    return shells.start(
        context, arch, image, args.command, backend=args.backend, factor=flavour.timeout_factor, keep=args.log
    )


def _arch(context: Context, args: argparse.Namespace) -> Arch:
    """One architecture: the one given, else the machine's own, else the first."""
    known = options.archs(context, args)
    if args.arch and len(known) > 1:
        raise UsageError("a shell is of one architecture", hint="harness shell --arch " + known[0].name)
    return next((arch for arch in known if context.host_machine in arch.native_machines), known[0])
