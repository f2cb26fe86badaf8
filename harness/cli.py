"""The command line: maps arguments to verbs, and expected failures to one line and an exit code."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from harness import __version__, verbs
from harness.context import Context, find_project
from harness.errors import EnvironmentFailure, ExitCode, HarnessError
from harness.fs import disk_errors
from harness.report import Reporter
from harness.settings import resolve

DESCRIPTION = """\
Fetches the pinned kernel, applies the agent latency window series, builds it for x86_64 and arm64, boots it under
QEMU, runs its selftests in the guest and exports it for the mailing lists. `harness run` does all of it.
"""

EPILOG = """\
exit codes: 0 ok, 1 tests failed, 2 usage, 3 environment, 4 apply, 5 config mismatch, 6 build, 7 guest crash,
8 timeout or lost VM, 130 interrupted
"""


def parser() -> argparse.ArgumentParser:
    """The parser of all verbs."""
    common = argparse.ArgumentParser(add_help=False)
    group = common.add_argument_group("common")
    group.add_argument("-v", "--verbose", action="count", default=0, help="say more")
    group.add_argument("-q", "--quiet", action="store_true", help="results and errors only")
    group.add_argument("-n", "--dry-run", action="store_true", help="print commands that can be pasted, change nothing")
    group.add_argument("--color", choices=("auto", "always", "never"), default="auto")
    group.add_argument("--cache-dir", metavar="DIR", help="cache of sources and builds (HARNESS_CACHE_DIR)")
    top = argparse.ArgumentParser(
        prog="harness", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    top.add_argument("--version", action="version", version=f"harness {__version__}")
    sub = top.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name in verbs.VERBS:
        verb = verbs.load(name)
        child = sub.add_parser(
            verb.NAME,
            help=verb.HELP,
            description=verb.DESCRIPTION,
            parents=[common],
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        verb.add_arguments(child)
        child.set_defaults(_run=verb.run)
    return top


def _on_sigterm(_signum: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns its exit code. Ctrl-C and SIGTERM end children first and give 130."""
    args = parser().parse_args(argv)
    with _sigterm_interrupts():
        return _run(args)


@contextlib.contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """SIGTERM unwinds like Ctrl-C, so that whatever owns a child ends it."""
    try:
        before = signal.signal(signal.SIGTERM, _on_sigterm)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(args: argparse.Namespace) -> int:
    report = Reporter(verbosity=-1 if args.quiet else args.verbose, color=args.color)
    try:
        root = find_project()
        settings = resolve(root, vars(args))
        context = Context(root=root, settings=settings, report=report, dry_run=args.dry_run)
        with disk_errors(Path(settings.text("cache_dir"))):
            code: int = args._run(context, args)
        return int(code)
    except HarnessError as exc:
        report.error(exc.message, exc.detail, exc.hint)
        return int(exc.exit_code)
    except KeyboardInterrupt:
        report.error("interrupted", hint="run the same command again: finished stages are kept")
        return int(ExitCode.INTERRUPTED)
    except BrokenPipeError:
        # The reader of our stdout is gone (`harness ... | head`); there is nobody left to tell.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(EnvironmentFailure.exit_code)


def with_reporter(context: Context, report: Reporter) -> Context:
    """The same context with another reporter."""
    return dataclasses.replace(context, report=report)
