"""``harness check``: is each patch fit to be sent, and does each one build?"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness import options, proc
from harness.build import make as kbuild
from harness.build import tools as needed
from harness.context import Context
from harness.data import Arch
from harness.errors import BuildError, ExitCode, HarnessError, UsageError
from harness.export import checkpatch, cover, hygiene, perpatch
from harness.export.checkpatch import Report
from harness.export.hygiene import Finding
from harness.export.perpatch import Builder, Memory, Outcome, Step
from harness.export.worktree import CheckTree, check_tree
from harness.kconfig import assemble
from harness.report import Stopwatch, table
from harness.source.mail import Patch
from harness.source.repo import KernelRepo
from harness.source.series import Series

NAME = "check"
DESCRIPTION = """\
Judges the patches one by one: what a maintainer would send back unread (subject, Signed-off-by, wrapping, white space),
checkpatch.pl --strict in the tree as the patch leaves it, and a build of the patch on its predecessor for each
architecture with the option on and off. Warnings are errors; in the files of a patch also those of make W=1, unless the
predecessor has them.

It works in a worktree of its own in the cache and with a small configuration (configs/fragments/check.config): your
trees and builds are left alone. What passed is remembered by trees, architecture, configuration and compiler, so only
changed patches and those after them are built again. In the table, `*` marks a remembered result, `same` a patch that
changes nothing that is compiled, `n/a` one before the option exists.

PATCH is a number, a range (2-4) or the beginning of a file name; default: all. Exceptions from checkpatch, each with
its reason, are in configs/checkpatch.yaml. Exit code 6 when any patch fails.
"""

_COLUMNS = tuple(perpatch.OPTIONS)


@dataclass
class Verdict:
    """All that was found about one patch."""

    number: int
    patch: Patch
    findings: list[Finding] = field(default_factory=list)
    report: Report | None = None
    builds: dict[tuple[str, str], Outcome] = field(default_factory=dict)

    @property
    def problems(self) -> list[str]:
        """Everything that fails the check, one text each; a build's first line is the compiler's first error."""
        found = [str(finding) for finding in hygiene.faults(self.findings)]
        if self.report:
            found += [f"{self.patch.name}: {message}" for message in self.report.messages]
        found += ["\n".join(filter(None, (o.error, o.detail))) for o in self.builds.values() if o.state == "failed"]
        return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which patches, which checks."""
    parser.add_argument("patches", nargs="*", metavar="PATCH", help="number, range or beginning of a file name")
    parser.add_argument("--no-build", dest="build", action="store_false", help="do not build")
    parser.add_argument("--no-checkpatch", dest="checkpatch", action="store_false", help="do not run checkpatch.pl")
    options.add_arch(parser)
    options.add_jobs(parser)


def run(context: Context, args: argparse.Namespace) -> int:
    """Check, print the table, and raise BuildError naming what failed."""
    series = Series.load(context.patches)
    chosen = select(series.patches, args.patches)
    archs = options.archs(context, args) if args.build else []
    watch = Stopwatch()
    project = context.identity()
    verdicts = [Verdict(n, series.patches[n - 1], hygiene.check(series.patches[n - 1], project)) for n in chosen]
    general: list[str] = []
    if series.cover is None:
        general.append(f"{cover.COVER}: there is no cover letter")
    else:
        try:
            cover.parse(series.cover)
        except UsageError as exc:
            general.append(exc.message)
    if context.dry_run:
        return _dry_run(context, verdicts, archs, args)
    if args.checkpatch or args.build:
        _in_tree(context, series, verdicts, archs, args.checkpatch)
    context.report.result(_table(verdicts, archs, args.checkpatch))
    for verdict in verdicts:
        for finding in verdict.findings:
            if not finding.fault:
                context.report.result(str(finding))
    problems = general + [problem for verdict in verdicts for problem in verdict.problems]
    context.report.result(_summary(verdicts, len(problems), watch))
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        first = problems[0].splitlines()[0]
        raise BuildError(
            f"{first}{more}",
            detail="\n".join(problems) if len(problems) > 1 or "\n" in problems[0] else "",
            hint="mend the commit in `harness tree`, `harness refresh`, and check again",
        )
    return ExitCode.OK


def select(patches: Sequence[Patch], words: Sequence[str]) -> list[int]:
    """The numbers of the patches that ``words`` name, ascending. Raises UsageError for a word that names none."""
    if not patches:
        raise UsageError("the series has no patch", hint="`harness refresh` exports it")
    if not words:
        return list(range(1, len(patches) + 1))
    numbers: set[int] = set()
    for word in words:
        if re.fullmatch("[0-9]{1,3}", word):
            found = [int(word)]
        elif ends := re.fullmatch("([0-9]{1,9})-([0-9]{1,9})", word):
            first, last = int(ends[1]), int(ends[2])
            found = list(range(first, last + 1)) if last <= len(patches) else []
        else:
            name = Path(word).name
            found = [n for n, patch in enumerate(patches, 1) if patch.name.startswith(name)]
        if not found or not all(1 <= n <= len(patches) for n in found):
            raise UsageError(
                f"{word!r} names no patch of the series", hint=f"1 to {len(patches)}, see `harness series list`"
            )
        numbers.update(found)
    return sorted(numbers)


def _in_tree(
    context: Context, series: Series, verdicts: Sequence[Verdict], archs: Sequence[Arch], run_checkpatch: bool
) -> None:
    """Everything that needs the kernel: apply the series, then go through the patches in the check worktree."""
    repo = KernelRepo(context)
    commits = repo.commits(series)
    steps = perpatch.steps(repo, repo.ensure_base(), series.patches, commits)
    _maintained(repo, verdicts, commits[-1])
    exceptions = checkpatch.load_exceptions(context.configs / "checkpatch.yaml")
    memory = Memory(context.cache / "check.json")
    with check_tree(repo, context.cache / "check-src") as tree:
        builder = Builder(context, tree, memory, series.patches)
        for verdict in verdicts:
            step = steps[verdict.number - 1]
            if run_checkpatch:
                verdict.report = _checkpatch(context, step, tree, memory, exceptions)
            verdict.builds = builder.build(step, archs)


def _checkpatch(
    context: Context,
    step: Step,
    tree: CheckTree,
    memory: Memory,
    exceptions: Sequence[checkpatch.Exception_],
) -> Report:
    text = step.patch.text.encode("utf-8", "surrogateescape")
    name = perpatch.key(
        "checkpatch, licences", step.tree, *checkpatch.ARGUMENTS, text.decode("utf-8", "backslashreplace")
    )
    output = memory.get(name)
    if not isinstance(output, str):
        needed.require(context, [], "checkpatch")
        context.report.step(f"checkpatch {step.patch.name}")
        with tempfile.TemporaryDirectory(prefix="harness-check-") as place:
            home = Path(place) / "home"
            home.mkdir()
            file = Path(place) / step.patch.name
            file.write_bytes(text)
            output = checkpatch.run(tree.at(step.commit), file, home)
        report = checkpatch.parse(output, exceptions)
        memory.put(name, output)
        return report
    return checkpatch.parse(output, exceptions)


def _maintained(repo: KernelRepo, verdicts: Sequence[Verdict], head: str) -> None:
    """Add a finding for each new file that no section of MAINTAINERS of the whole series covers."""
    maintainers = repo.git("show", f"{head}:MAINTAINERS", check=False)
    for verdict in verdicts:
        for path in hygiene.unmaintained(maintainers, hygiene.new_files(verdict.patch)):
            verdict.findings.append(
                Finding(verdict.patch.name, f"no section of MAINTAINERS covers the new file {path}")
            )


def _table(verdicts: Sequence[Verdict], archs: Sequence[Arch], ran_checkpatch: bool) -> str:
    header = ["#", "patch", "lines", "hygiene", *(["E/W/C"] if ran_checkpatch else [])]
    header += [f"{arch.name} {option}" for arch in archs for option in _COLUMNS]
    rows = []
    for verdict in verdicts:
        plus, minus = hygiene.changed_lines(verdict.patch)
        bad = len(hygiene.faults(verdict.findings))
        row = [str(verdict.number), verdict.patch.subject, f"+{plus} -{minus}", f"{bad} faults" if bad else "ok"]
        if ran_checkpatch:
            row.append(verdict.report.totals if verdict.report else "")
        row += [verdict.builds[arch.name, option].cell for arch in archs for option in _COLUMNS]
        rows.append(row)
    return table(rows, header)


def _summary(verdicts: Sequence[Verdict], problems: int, watch: Stopwatch) -> str:
    """The totals in one line."""
    reports = [verdict.report for verdict in verdicts if verdict.report]
    builds = [outcome for verdict in verdicts for outcome in verdict.builds.values()]
    parts = [f"{len(verdicts)} patches"]
    if reports:
        counts = [sum(report.count(level) for report in reports) for level in ("ERROR", "WARNING", "CHECK")]
        text = f"checkpatch --strict {counts[0]} errors, {counts[1]} warnings, {counts[2]} checks"
        excepted = sum(len(report.excepted) for report in reports)
        parts.append(f"{text} ({excepted} excepted)" if excepted else text)
    if builds:
        made = [outcome for outcome in builds if outcome.state in ("ok", "failed")]
        failed = sum(outcome.state == "failed" for outcome in made)
        known = sum(outcome.cached for outcome in made)
        parts.append(f"{len(made)} builds, {failed} failed, {known} remembered")
    return f"{'; '.join(parts)}: {f'{problems} problems' if problems else 'ok'} ({watch})"


def _dry_run(context: Context, verdicts: Sequence[Verdict], archs: Sequence[Arch], args: argparse.Namespace) -> int:
    """The commands, on one worktree; what hygiene says needs none."""
    tree = context.cache / "check-src"
    say = context.report.result
    say("harness apply")
    for verdict in verdicts:
        say(f"# {verdict.number}: {verdict.patch.subject}")
        if args.checkpatch:
            command = proc.quoted(checkpatch.command(context.patches / verdict.patch.name))
            say(f"cd {proc.quoted([str(tree)])} && {command}")
        for arch in archs:
            tools = _tools(context, arch)
            for option in _COLUMNS:
                out = context.builds / f"check-{arch.name}-{option}"
                flavour = context.flavour(perpatch.OPTIONS[option])
                assemble.configure(context, tree, arch, flavour, out, True, tools=tools)
                argv = kbuild.command(context, arch, tree, out, ["vmlinux"], tools=tools)
                say(kbuild.pasteable(argv, kbuild.environment(context, tree, out) | kbuild.without_lines()))
    return ExitCode.OK


def _tools(context: Context, arch: Arch) -> kbuild.Toolchain:
    """The toolchain, or what it would be called: printing a command needs no compiler."""
    try:
        return kbuild.toolchain(context, arch)
    except HarnessError:
        return kbuild.Toolchain(arch.toolchain_prefix(context.host_machine), "", ccache=False)
