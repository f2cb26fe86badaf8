"""``harness run``: all of it, from the pinned source to a verdict per test, for every architecture."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TypeVar

from harness import options
from harness.context import Context
from harness.errors import HarnessError
from harness.guest import session
from harness.report import Stopwatch, table
from harness.results.model import ArchResult
from harness.results.run import RunDirectory
from harness.verbs.test import add_backend, add_results

NAME = "run"
DESCRIPTION = """\
Fetches the pinned kernel, applies the series, builds kernel and selftests, boots them and runs the tests, for every
architecture, one after the other; when one fails, the next is still done. What is there already is not done again.

Prints the stages with their times, a table with a line for each test program, and a line for each architecture. The
exit code is that of the worst: a stage that failed goes before a crash, a crash before failed tests.
"""

T = TypeVar("T")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See DESCRIPTION."""
    options.add_guest(parser)
    add_backend(parser)
    add_results(parser)
    options.add_guests(parser)
    parser.add_argument(
        "--timeout", dest="test_timeout", type=float, metavar="SECONDS", help="deadline of all tests of one boot"
    )


def run(context: Context, args: argparse.Namespace) -> int:
    """Fetch, apply, build, boot, judge, print; see DESCRIPTION."""
    from harness.source.fetch import fetch
    from harness.source.repo import KernelRepo
    from harness.source.series import Series

    watch = Stopwatch()
    options.check_files(args.json, args.junit)
    archs = options.archs(context, args)
    flavour = options.flavour(context, args)
    guests = options.guests(context, args)
    patched = not args.unpatched
    if context.dry_run:
        context.report.result("harness fetch")
        for arch in archs:
            session.dry_run(context, arch, flavour, patched=patched, backend=args.backend, guests=guests)
        return 0
    stages: list[tuple[str, str, float]] = []
    with RunDirectory.create(context, NAME) as directory:
        session.describe(context, directory, flavour=flavour, patched=patched, backend=args.backend)

        def stage(name: str, what: Callable[[], T]) -> T:
            clock = Stopwatch()
            context.report.step(f"{name} ...")
            try:
                value = what()
            except HarnessError:
                stages.append((name, "FAILED", clock.seconds))
                _record(directory, stages)
                raise
            stages.append((name, "ok", clock.seconds))
            _record(directory, stages)
            return value

        series = Series.load(context.patches)
        repo = KernelRepo(context)
        if not repo.has_base():
            stage("fetch", lambda: fetch(context, context.pin(), series))
        stage("import", repo.ensure_base)
        if patched:
            stage("apply", lambda: repo.apply(series))
        results: list[ArchResult] = []
        for arch in archs:
            for result in session.test_arch(
                context, arch, flavour, directory, patched=patched, backend=args.backend, guests=guests
            ):
                results.append(result)
                stages += [(f"{result.arch} {name}", "ok", seconds) for name, seconds in result.stages.items()]
                if result.exit_code != 0:
                    missing = [name for name in ("build", "selftests", "guest") if name not in result.stages]
                    name = missing[0] if missing and result.arch == arch.name else "test"
                    late = max(0.0, result.seconds - sum(result.stages.values()))
                    stages.append((f"{result.arch} {name}", "FAILED", late))
            _record(directory, stages)
        code = session.finish(
            context,
            directory,
            results,
            json_to=args.json,
            junit_to=args.junit,
            require_pass=args.require_pass,
        )
        if args.json != "-":
            rows = [(name, state, f"{seconds:.1f} s") for name, state, seconds in stages]
            context.report.result("")
            context.report.result(table([*rows, ("total", "ok" if code == 0 else "FAILED", str(watch))]))
        return code


def _record(directory: RunDirectory, stages: list[tuple[str, str, float]]) -> None:
    directory.update({"stages": [{"stage": name, "state": state, "seconds": round(s, 1)} for name, state, s in stages]})
