"""``harness boot``: the built kernel in a guest, bare or with a program of the host."""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

from harness import options
from harness.context import Context
from harness.data import Arch, Flavour, Reports
from harness.errors import HarnessError, UsageError
from harness.guest import runner, session
from harness.guest.init import NAME as PROGRAM_NAME
from harness.guest.init import Program
from harness.report import Stopwatch
from harness.results.model import ArchResult, Problem
from harness.results.run import RunDirectory
from harness.verbs.test import add_backend, add_results

NAME = "boot"
DESCRIPTION = """\
Builds the kernel if it is not built and boots it in a guest of each architecture: power-on, our init, power-off. Prints
the kernel's own banner and the seconds it took.

With `-- PROGRAM ARG...` a program of this machine (static, of the guest's architecture: the guest has no libraries) is
copied in and run as root; its output is shown, and its exit status is the verdict.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See DESCRIPTION."""
    options.add_guest(parser)
    add_backend(parser)
    add_results(parser)
    parser.add_argument("--timeout", dest="test_timeout", type=float, metavar="SECONDS", help="deadline of the program")
    parser.add_argument("--image", type=Path, metavar="FILE", help="boot this kernel image in place of the built one")
    parser.add_argument("command", nargs="*", metavar="PROGRAM", help="a static program of this machine, and arguments")


def program(command: list[str], timeout: float) -> Program:
    """The guest's program for a command of the host. Raises UsageError when it is no file that can run there."""
    path = Path(command[0])
    if os.sep not in command[0] and not path.is_file():
        found = shutil.which(command[0])
        path = Path(found) if found else path
    if not path.is_file():
        raise UsageError(f"{command[0]} is no file of this machine", hint="name a static program: ./prog or /path/prog")
    with path.open("rb") as source:
        magic = source.read(4)
    if magic[:2] == b"#!":
        raise UsageError(
            f"{path} is a script, and this guest has no interpreter",
            hint=f"harness shell -- {path} runs it on the host's files",
        )
    if magic != b"\x7fELF":
        raise UsageError(f"{path} is no ELF program", hint="name a static program of the guest's architecture")
    name = path.name if PROGRAM_NAME.fullmatch(path.name) else "program"
    return Program(name, path, arguments=tuple(command[1:]), timeout=timeout, reports=Reports.STATUS)


def run(context: Context, args: argparse.Namespace) -> int:
    """Build, boot, print; see DESCRIPTION."""
    options.check_files(args.json, args.junit)
    archs = options.archs(context, args)
    flavour = options.flavour(context, args)
    patched = not args.unpatched
    programs = [program(args.command, context.settings.seconds("test_timeout"))] if args.command else []
    if args.image and len(archs) != 1:
        raise UsageError("--image is of one architecture", hint=f"harness boot --arch {archs[0].name} --image ...")
    options.check_image(args.image)
    if context.dry_run:
        for arch in archs:
            session.dry_run(context, arch, flavour, patched=patched, backend=args.backend, selftests=False)
        return 0
    with RunDirectory.create(context, NAME) as directory:
        if not args.image:
            session.describe(context, directory, flavour=flavour, patched=patched, backend=args.backend)
        results = [_boot(context, arch, flavour, patched, args, programs, directory) for arch in archs]
        code = session.finish(
            context,
            directory,
            results,
            json_to=args.json,
            junit_to=args.junit,
            require_pass=args.require_pass,
        )
        if args.json != "-":
            for result in results:
                _say(context, result)
        return code


def _boot(
    context: Context,
    arch: Arch,
    flavour: Flavour,
    patched: bool,
    args: argparse.Namespace,
    programs: list[Program],
    directory: RunDirectory,
) -> ArchResult:
    watch = Stopwatch()
    try:
        image = args.image
        if image is None:
            from harness.build import kernel as kernels

            built = kernels.build_to_boot(context, arch, flavour, patched=patched)
            image = built.image
            shutil.copyfile(built.config, directory.part(arch.name) / "config")
        return session.boot_image(
            context, arch, image, programs, directory, backend=args.backend, factor=flavour.timeout_factor
        )
    except HarnessError as exc:
        log = directory.path / arch.name / runner.CONSOLE_LOG
        return ArchResult(
            arch.name,
            args.backend,
            problem=Problem(exc.exit_code, exc.message, exc.hint, exc.detail),
            log=log if log.is_file() else None,
            seconds=watch.seconds,
        )


def _say(context: Context, result: ArchResult) -> None:
    if result.verdict is None:
        return
    for name, lines in result.verdict.outputs.items():
        for line in lines:
            context.report.result(f"{result.arch}: {name}: {line}")
    if result.verdict.banner:
        context.report.result(f"{result.arch}: {result.verdict.banner}")
