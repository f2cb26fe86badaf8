"""The command line: maps arguments to verbs, and expected failures to one line and an exit code.

:mod:`harness.cli` is what a user starts.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from harness import __version__, options, verbs
from harness.context import Context, find_project
from harness.errors import ExitCode, HarnessError
from harness.fs import failure
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


class _VerbParser(argparse.ArgumentParser):
    """The parser of a verb, whose module is imported when its arguments are wanted: most of them never are."""

    verb = ""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As the base class has it, with the arguments of the verb."""
        if self.verb:
            verb, self.verb = verbs.load(self.verb), ""
            self.description = verb.DESCRIPTION
            verb.add_arguments(self)
            self.set_defaults(_run=verb.run)
        return super().parse_known_args(args, namespace)


def parser() -> argparse.ArgumentParser:
    """The parser of all verbs."""
    top = argparse.ArgumentParser(
        prog="harness", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    top.add_argument("--version", action="version", version=f"harness {__version__}")
    options.add_common(top, absent=False)
    sub = top.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=_VerbParser)
    for name, text in verbs.VERBS.items():
        child = sub.add_parser(name, help=text, formatter_class=argparse.RawDescriptionHelpFormatter)
        options.add_common(child)
        child.verb = name
    return top


def run(args: argparse.Namespace) -> int:
    """Run the verb of parsed arguments; returns its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A name or a message that the terminal has no characters for is no reason to fail.
            stream.reconfigure(errors="backslashreplace")
    report = Reporter(verbosity=-1 if args.quiet else args.verbose, color=args.color)
    try:
        root = find_project()
        settings = resolve(root, vars(args))
        context = Context(root=root, settings=settings, report=report, dry_run=args.dry_run)
        code: int = args._run(context, args)
        return int(code)
    except HarnessError as exc:
        report.error(exc.message, exc.detail, exc.hint)
        return int(exc.exit_code)
    except KeyboardInterrupt:
        report.error("interrupted", hint="run the same command again: finished stages are kept")
        return int(ExitCode.INTERRUPTED)
    except BrokenPipeError:  # the reader of what a guest's command prints has gone
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(ExitCode.INTERRUPTED)
    except OSError as exc:
        report.debug(traceback.format_exc())
        told = failure(exc, Path.cwd())
        report.error(told.message, told.detail, told.hint)
        return int(told.exit_code)
