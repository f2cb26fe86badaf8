"""``harness parse``: the verdict on a console log that was saved."""

from __future__ import annotations

import argparse
from pathlib import Path

from harness import options
from harness.context import Context
from harness.errors import UsageError
from harness.fs import deliver
from harness.guest import runner, session
from harness.guest.verdict import End, Ending, Expected, judge
from harness.results import junit, model
from harness.results.model import ArchResult
from harness.verbs.test import add_results

NAME = "parse"
DESCRIPTION = """\
Reads a console log (of a run directory, or any kernel log with KTAP in it) and prints the table, the splats and the
exit code that the run itself would have given, as far as a log can tell. What was to run is what the guest announced,
or --expect. The nonce is the one on the kernel command line in the log. `-` reads standard input.

A log alone does not tell how QEMU ended: a guest that did not power off after its tests passes here. Nor does it tell
which reports a test provokes on purpose (`provoked` in configs/upstream-selftests.yaml): here they count.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See DESCRIPTION."""
    parser.add_argument("log", metavar="LOG", help="console log, or - for standard input")
    parser.add_argument("--expect", metavar="PROGRAM,...", help="programs that must have run")
    parser.add_argument("--kunit", metavar="SUITE,...", help="KUnit suites that must have run")
    parser.add_argument("--arch", metavar="NAME", help="architecture to name in the table (default: as the log says)")
    add_results(parser)


def run(context: Context, args: argparse.Namespace) -> int:
    """Read, judge, print; see DESCRIPTION."""
    options.check_files(args.json, args.junit)
    text = _read(args.log)
    verdict = judge(
        text,
        Ending(End.UNKNOWN),
        runner.rules(context),
        expected=[Expected(name) for name in options.words(args.expect)] if args.expect else None,
        suites=options.words(args.kunit or ""),
    )
    log = None if args.log == "-" else Path(args.log)
    result = ArchResult(args.arch or verdict.machine or "-", "saved log", verdict=verdict, log=log)
    value = model.as_json([result])
    session.show(context, [result], json_to=args.json, value=value)
    if args.junit:
        deliver(args.junit, junit.render([result]))
    if args.require_pass and not session.passed_something(result):
        context.report.error("nothing passed, as --require-pass forbids")
        return max(1, int(result.exit_code))
    return int(result.exit_code)


def _read(name: str) -> str:
    path = Path("/dev/stdin" if name == "-" else name)
    try:
        raw = path.read_bytes()
    except OSError as exc:
        hint = "harness parse runs/latest/x86_64/console.log"
        raise UsageError(f"cannot read {name}: {exc.strerror}", hint=hint) from None
    text = raw.decode(errors="replace").replace("\r", "")
    if not text.strip():
        raise UsageError(f"{name} is empty", hint="a guest that printed nothing leaves an empty log: nothing to judge")
    return text
