"""``harness test``: the series' selftests and KUnit suites in a guest of each architecture."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from harness import options
from harness.context import Context
from harness.errors import UsageError
from harness.guest import bpftrace, session, upstream
from harness.results import compare
from harness.results.run import RunDirectory

NAME = "test"
DESCRIPTION = """\
Builds what is not built, boots each architecture and runs the selftests of the series in it, one after the other; those
that need a machine or a command line of their own run in a guest of qemu/guests, as a boot of its own.
KUnit suites that the kernel runs at boot are reported beside them. A program passes when it reported every test of its
plan, ended with a matching status, and the kernel neither warned nor crashed; a test that never reported is told as
such, and a guest that ends without its end marker never passes.

With --upstream it runs the pinned kernel's own selftests instead (configs/upstream-selftests.yaml), each of their
directories in a boot of its own; they are built from the tree without the series. With --against RESULTS, the
results.json or the run directory of an earlier run, a test fails this one only if it passed there, or if its program
was not there at all: `harness test --upstream --unpatched --json=before.json`, then
`harness test --upstream --against before.json`.

With --bpftrace it runs the bpftrace scripts of the series (tools/agent-latency/bpftrace), each on a small workload, in
a guest of flavour bpf with bpftrace from the distribution's packages. Those that go by step are skipped --unpatched.

PROGRAM names some of them (abi, window, ...). The run directory holds the console log, the KTAP output, the .config,
reproduce.sh, results.json and junit.xml. Exit code: 0 passed or skipped, 1 tests failed, 7 the kernel crashed or
complained, 8 a deadline passed or the machine was lost; the build's own codes when it fails.
"""


def add_results(parser: argparse.ArgumentParser) -> None:
    """--json, --junit, --require-pass."""
    parser.add_argument(
        "--json", nargs="?", const="-", metavar="FILE", help="results as JSON to FILE, or to stdout without the table"
    )
    parser.add_argument("--junit", type=Path, metavar="FILE", help="results as JUnit XML")
    parser.add_argument(
        "--require-pass", action="store_true", help="fail when an architecture has nothing that passed (all skipped)"
    )


def add_backend(parser: argparse.ArgumentParser, default: str = "qemu") -> None:
    """--backend."""
    parser.add_argument(
        "--backend",
        choices=session.BACKENDS,
        default=default,
        help=f"qemu: our own init, nothing else; vng: virtme-ng over the host's files (default: {default})",
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See DESCRIPTION."""
    options.add_guest(parser)
    add_backend(parser)
    add_results(parser)
    options.add_guests(parser)
    parser.add_argument(
        "--timeout", dest="test_timeout", type=float, metavar="SECONDS", help="deadline of all tests of one boot"
    )
    parser.add_argument("--upstream", action="store_true", help="the pinned kernel's own selftests")
    parser.add_argument(
        "--bpftrace", action="store_true", help="the bpftrace scripts of the series (flavour bpf, unless given)"
    )
    parser.add_argument(
        "--against", type=Path, metavar="RESULTS", help="fail only for what passed in this earlier run, and list it"
    )
    parser.add_argument(
        "programs", nargs="*", metavar="PROGRAM", help="test programs, with --upstream also directories (default: all)"
    )


def _check_json(context: Context, args: argparse.Namespace) -> None:
    """Raise UsageError when --json has taken a program for its FILE."""
    if not args.json or args.json == "-" or args.bpftrace:
        return
    if args.upstream:
        directories = context.upstream().directories
        known = {word for each in directories for word in (each.path, *upstream.guest_of(each, each.programs).programs)}
    elif {".", os.sep} & set(args.json):
        return
    else:
        from harness.build import selftests

        known = {*args.programs, *selftests.known_programs(context)}
    if args.json in known:
        raise UsageError(
            f"--json would write to a file called {args.json}, which is a test program",
            hint=f"--json=FILE {args.json}, or --json=./{args.json} for a file of that name",
        )


def run(context: Context, args: argparse.Namespace) -> int:
    """Build, boot, judge, print; see DESCRIPTION."""
    options.check_files(args.json, args.junit)
    archs = options.archs(context, args)
    if args.bpftrace and (args.upstream or args.guest or args.backend != "qemu"):
        raise UsageError("--bpftrace has a guest of its own", hint="leave --upstream, --guest and --backend out")
    own = args.bpftrace and not args.flavour
    flavour = context.flavour(bpftrace.FLAVOUR) if own else options.flavour(context, args)
    guests = options.guests(context, args)
    patched = not args.unpatched
    if args.upstream and (args.guest or args.backend != "qemu"):
        raise UsageError("--upstream has guests of its own", hint="leave --guest and --backend out")
    if args.upstream:
        upstream.check(context, args.programs)
    own_guests = not (args.upstream or args.bpftrace)
    if context.dry_run:
        if own_guests:
            session.check_guests(guests, args.programs)
        for arch in archs:
            if args.upstream:
                upstream.dry_run(context, arch, flavour, patched=patched, only=args.programs)
            elif args.bpftrace:
                bpftrace.dry_run(context, arch, flavour, patched=patched)
            else:
                session.dry_run(context, arch, flavour, patched=patched, backend=args.backend, guests=guests)
        return 0
    _check_json(context, args)
    if own_guests:
        from harness.build import selftests

        selftests.check(context, args.programs)
        session.check_guests(guests, args.programs)
    against = compare.read(args.against) if args.against else None
    with RunDirectory.create(context, NAME) as directory:
        session.describe(
            context,
            directory,
            flavour=flavour,
            patched=patched,
            backend="vng" if args.bpftrace else args.backend,
            tests="upstream" if args.upstream else "bpftrace" if args.bpftrace else "series",
        )
        results = []
        for arch in archs:
            if args.upstream:
                results += upstream.test_arch(context, arch, flavour, directory, patched=patched, only=args.programs)
                continue
            if args.bpftrace:
                results += bpftrace.test_arch(context, arch, flavour, directory, patched=patched, only=args.programs)
                continue
            results += session.test_arch(
                context,
                arch,
                flavour,
                directory,
                patched=patched,
                backend=args.backend,
                only=args.programs,
                guests=guests,
            )
        return session.finish(
            context,
            directory,
            results,
            json_to=args.json,
            junit_to=args.junit,
            require_pass=args.require_pass,
            against=against,
        )
