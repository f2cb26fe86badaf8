"""``harness objdiff``: what the series changes in the kernel's code while its option is off."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import data, fs, options
from harness.build import kernel as kernels
from harness.build import tools as needed
from harness.build.kernel import KernelBuild
from harness.context import Context
from harness.data import Arch
from harness.errors import ExitCode, TestsFailedError
from harness.proc import quoted
from harness.report import Stopwatch, table

if TYPE_CHECKING:
    from harness.objdiff.compare import Comparison, Difference
    from harness.objdiff.expected import Expected, Judged

NAME = "objdiff"
FLAVOUR = "off"
_WIDTH = 72
DESCRIPTION = """\
Shows that the series costs nothing while it is configured out. Builds the kernel of flavour `off` with the series and
without, and compares every built-in object that was compiled from C or assembly, function by function: instructions
and what they refer to. Addresses do not count, nor do the numbers by which a compiler tells local names apart; jumps go
to labels, calls and operands to names. Data is not compared, only its size per object. A line number that is an operand
counts as a difference, the ones that WARN and BUG keep in a table do not.

Differences that have a reason are listed in configs/objdiff.yaml, and any other fails the run: exit code 1, and a table
of what was added, removed or changed, with sizes in bytes and the first pair of instructions. An entry of that list
that is not seen is told, and fails nothing. -v shows the code of what is not expected as a diff, -vv also of the rest,
and why it is expected.

Builds are kept as with `harness build -f off`; the comparison itself takes seconds.
"""


@dataclass(frozen=True)
class Outcome:
    """One architecture: what was built, what differs, which of it is expected."""

    arch: Arch
    before: KernelBuild
    after: KernelBuild
    comparison: Comparison
    judged: Judged
    seconds: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See DESCRIPTION."""
    options.add_arch(parser)
    options.add_jobs(parser)
    options.add_source(parser)
    parser.add_argument(
        "--timeout", dest="build_timeout", type=float, metavar="SECONDS", help="deadline of one kernel build"
    )
    parser.add_argument(
        "--json", nargs="?", const="-", metavar="FILE", help="results as JSON to FILE, or to stdout without the tables"
    )


def run(context: Context, args: argparse.Namespace) -> int:
    """Build twice, compare, print; see DESCRIPTION."""
    options.check_files(args.json)
    archs = options.archs(context, args)
    flavour = context.flavour(FLAVOUR)
    needed.require(context, archs, NAME)
    expected = _expected(context.configs / "objdiff.yaml")
    outcomes = []
    for arch in archs:
        # In this order the source tree is left with the series in it, which other verbs build.
        before, after = (kernels.build(context, arch, flavour, patched=patched) for patched in (False, True))
        if context.dry_run:
            context.report.result(f"# each object of {before.directory} and {after.directory} that differs:")
            context.report.result(quoted([_objdump(context, arch), *_arguments(), "OBJECT"]))
            continue
        outcomes.append(_compare(context, arch, before, after, expected))
    if context.dry_run:
        return ExitCode.OK
    bad = [(outcome.arch.name, one) for outcome in outcomes for one in outcome.judged.unknown]
    code = ExitCode.TESTS_FAILED if bad else ExitCode.OK
    text = fs.json_text({"architectures": {o.arch.name: _as_json(o) for o in outcomes}, "exit_code": int(code)})
    if args.json == "-":
        context.report.result(text.rstrip("\n"))
    else:
        for outcome in outcomes:
            _show(context, outcome)
        if args.json:
            fs.deliver(Path(args.json), text)
    if bad:
        arch_name, first = bad[0]
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        raise TestsFailedError(
            f"{arch_name}: {first.object}: {first.function} {first.what} with the option off{more}",
            hint="harness objdiff -v shows the code; mend the patch, or give the reason in configs/objdiff.yaml",
        )
    return code


def _expected(path: Path) -> Expected:
    from harness.objdiff import expected

    known = data.load(path, expected.Expected)
    expected.check(known, str(path))
    return known


def _objdump(context: Context, arch: Arch) -> str:
    return f"{arch.toolchain_prefix(context.host_machine)}objdump"


def _arguments() -> tuple[str, ...]:
    from harness.objdiff.code import OBJDUMP_ARGUMENTS

    return OBJDUMP_ARGUMENTS


def _compare(context: Context, arch: Arch, before: KernelBuild, after: KernelBuild, expected: Expected) -> Outcome:
    from harness.objdiff import compare
    from harness.objdiff.expected import judge

    watch = Stopwatch()
    with ExitStack() as stack:
        for build in (before, after):
            lock = kernels.build_lock(context, build.name)
            stack.enter_context(fs.lock(lock, f"the build directory {build.directory}"))
        context.report.step(f"{arch.name}: comparing {before.directory} and {after.directory}")
        found = compare.compare(before.directory, after.directory, _objdump(context, arch), context.jobs)
    return Outcome(arch, before, after, found, judge(found.differences, expected, arch.name), watch.seconds)


def _show(context: Context, outcome: Outcome) -> None:
    name, judged, found = outcome.arch.name, outcome.judged, outcome.comparison
    say = context.report.result
    if judged.unknown:
        say(_table(judged.unknown))
    if context.report.verbosity >= 2:
        for difference, why in judged.known:
            _show_code(context, difference, why)
    if context.report.verbosity >= 1:
        for difference in judged.unknown:
            _show_code(context, difference)
    if found.sizes:
        sizes = ", ".join(f"{one.object} {one.kind} {one.before} -> {one.after}" for one in found.sizes)
        say(f"{name}: data of another size: {sizes}")
    for obj, function in judged.unseen:
        say(f"{name}: expected and not seen: {obj}: {function}")
    say(
        f"{name}: {found.objects} objects, {found.functions} functions compared, "
        f"{len(judged.known)} expected differences, {len(judged.unknown)} others"
    )


def _show_code(context: Context, difference: Difference, why: str = "") -> None:
    context.report.result(f"# {difference.object}: {difference.function} {difference.what}{f': {why}' if why else ''}")
    for line in difference.diff:
        context.report.result(line)
    context.report.result()


def _table(differences: Sequence[Difference]) -> str:
    return table(
        [
            [one.object, one.function, one.what, str(one.before), str(one.after), _short(one.first)]
            for one in differences
        ],
        ["object", "function", "what", "before", "after", "first difference"],
    )


def _short(text: str) -> str:
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 3]}..."


def _as_json(outcome: Outcome) -> dict[str, Any]:
    judged = outcome.judged
    return {
        "before": {"commit": outcome.before.commit, "directory": str(outcome.before.directory)},
        "after": {"commit": outcome.after.commit, "directory": str(outcome.after.directory)},
        "objects": outcome.comparison.objects,
        "functions": outcome.comparison.functions,
        "differences": [dataclasses.asdict(one) for one in judged.unknown],
        "expected": [{**dataclasses.asdict(one), "why": why} for one, why in judged.known],
        "unseen": [{"object": obj, "function": function} for obj, function in judged.unseen],
        "sizes": [dataclasses.asdict(one) for one in outcome.comparison.sizes],
        "seconds": round(outcome.seconds, 1),
    }
