"""``harness mutate``: does each test notice when what it tests is broken?"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import data, options
from harness.build import kernel as kernels
from harness.build import selftests
from harness.build.selftests import SelftestBuild
from harness.context import Context
from harness.data import Arch, Flavour, Guest
from harness.errors import EnvironmentFailure, ExitCode, HarnessError, TestsFailedError
from harness.fs import write_json
from harness.guest import session
from harness.guest.ktap import Status, Test
from harness.guest.verdict import Verdict
from harness.mutation import mutants as mutation
from harness.mutation.mutants import Mutant, Mutants
from harness.report import Stopwatch, table
from harness.results.model import ArchResult
from harness.results.run import RunDirectory
from harness.source.repo import KernelRepo

NAME = "mutate"
FLAVOUR = "mutants"
CONTROL = "none"
# Failures of the host, which a mutant cannot be the cause of, and those that are only if the kernel never spoke.
_HOST = ("lost", "lost lines", "no end")
_HANGS = ("no boot", "silence", "deadline")
DESCRIPTION = """\
Mutation testing. Each mutant of configs/mutants.yaml breaks one thing that the series does. All are built into one
kernel, where a parameter of the command line switches one of them on; for each, the kernel is booted and the test that
should notice runs in it. The same tests run first with none switched on, and have to pass.

A mutant is caught when its test fails, or the kernel complains or hangs. One that survives is a test that cannot fail,
or a thing that is not tested: exit code 1. One that is lost (QEMU died, the guest never said a word) has to be tried
again, with the same exit code.

NAME is a mutant, or a test program for all of its mutants; default: all.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See DESCRIPTION."""
    options.add_arch(parser)
    options.add_jobs(parser)
    options.add_accel(parser)
    options.add_source(parser)
    parser.add_argument("--timeout", dest="test_timeout", type=float, metavar="SECONDS", help="deadline of one boot")
    parser.add_argument("--list", action="store_true", help="list the mutants and do nothing")
    parser.add_argument("mutants", nargs="*", metavar="NAME", help="mutants, or test programs (default: all mutants)")


@dataclass(frozen=True)
class Trial:
    """One boot: the mutant (None: none is on), the ``state`` of it and the first thing that said so.

    ``state`` is caught, survived or lost (the guest did not get as far as a verdict); with no mutant passed or failed.
    """

    arch: str
    mutant: Mutant | None
    test: str
    state: str
    by: str
    seconds: float

    @property
    def name(self) -> str:
        """What the table calls it."""
        return self.mutant.name if self.mutant else CONTROL

    @property
    def good(self) -> bool:
        """Whether it is as it should be."""
        return self.state in ("caught", "passed")


def run(context: Context, args: argparse.Namespace) -> int:
    """Build, boot each mutant, print the table; see DESCRIPTION."""
    path = context.configs / "mutants.yaml"
    known = data.load(path, Mutants)
    mutation.check(known, str(path))
    chosen = known.select(args.mutants)
    if args.list:
        context.report.result(table([[m.name, m.test, m.breaks] for m in chosen], ["mutant", "test", "a kernel where"]))
        return ExitCode.OK
    archs = options.archs(context, args)
    flavour = context.flavour(FLAVOUR)
    if context.dry_run:
        for arch in archs:
            _dry_run(context, arch, flavour, known, chosen)
        return ExitCode.OK
    selftests.check(context, [mutant.test for mutant in chosen if not mutant.test.startswith(mutation.KUNIT)])
    with RunDirectory.create(context, NAME) as directory:
        session.describe(context, directory, flavour=flavour, patched=True, backend="qemu", tests=NAME)
        trials = [trial for arch in archs for trial in _test_arch(context, arch, flavour, known, chosen, directory)]
        write_json(directory.path / "mutants.json", [_as_json(trial) for trial in trials])
        context.report.result(_table(trials))
        context.report.step(f"results: {directory.path}")
    bad = [trial for trial in trials if not trial.good]
    if bad:
        first = f"{bad[0].arch}: {bad[0].name}: {bad[0].test}: {bad[0].state}"
        raise TestsFailedError(
            f"{first}{f' (and {len(bad) - 1} more)' if len(bad) > 1 else ''}",
            hint="a test that misses a defect has to look closer; one that fails without any is mended first",
        )
    return ExitCode.OK


def source(context: Context, mutants: Mutants) -> str:
    """The commit of the series with all mutants built in."""
    repo = KernelRepo(context)
    head = kernels.source_commit(context, patched=True)
    sources = {file: repo.read(head, file) for file in mutants.files()}
    return repo.commit_files(head, mutation.apply(mutants, sources), "Mutants, for harness mutate")


def guest_of(context: Context, test: str, mutant: Mutant | None, number: int, guest: str) -> Guest:
    """The guest in which ``mutant`` (None: none) is booted for ``test``."""
    word = f"{mutation.PARAMETER}={number}"
    name = f"{mutant.name if mutant else CONTROL}-{test.replace('/', '-')}"
    if test.startswith(mutation.KUNIT):
        return Guest(name, "a mutant", (), cmdline=word)
    if guest:
        known = context.guest(guest)
        return dataclasses.replace(known, name=name, programs=(test,), cmdline=f"{known.cmdline} {word}".strip())
    return Guest(name, "a mutant", (test,), cmdline=f"kunit.autorun=0 {word}")


def judge(arch: str, mutant: Mutant | None, test: str, result: ArchResult) -> Trial:
    """What a boot says of the mutant that was on in it. Pure."""
    verdict = result.verdict
    if result.problem is not None or verdict is None:
        said = result.problem.message if result.problem else "no verdict"
        return Trial(arch, mutant, test, "lost", said, result.seconds)
    noticed = ""
    if verdict.failure is not None:
        if mutant is not None and _is_host(verdict):
            return Trial(arch, mutant, test, "lost", verdict.failure.message, result.seconds)
        noticed = f"{verdict.failure.kind}: {verdict.failure.message}"
    suites = [suite for suite in verdict.suites if suite.name == test]
    tests = suites if test.startswith(mutation.KUNIT) else verdict.tests
    for program in tests:
        if failed := _first_failure(program):
            noticed = failed
            break
    if mutant is None:
        ran = any(leaf.status == Status.PASSED for program in tests for leaf in program.leaves())
        state = "passed" if ran and not noticed else "failed"
        return Trial(arch, None, test, state, noticed if ran else noticed or "skipped", result.seconds)
    return Trial(arch, mutant, test, "caught" if noticed else "survived", noticed, result.seconds)


def _is_host(verdict: Verdict) -> bool:
    kind = verdict.failure.kind if verdict.failure else ""
    return kind in _HOST or (kind in _HANGS and not verdict.banner)


def _first_failure(test: Test) -> str:
    """The name of the first leaf of ``test`` that is bad, or why the whole is; empty for a good one."""
    for leaf in test.leaves():
        if leaf.status.bad:
            return leaf.name or str(leaf.status)
    return f"{test.status}" if test.status.bad else ""


def _test_arch(
    context: Context, arch: Arch, flavour: Flavour, known: Mutants, chosen: Sequence[Mutant], run: RunDirectory
) -> list[Trial]:
    kernel = kernels.build_to_boot(context, arch, flavour, commit=source(context, known))
    plain = kernels.source_commit(context, patched=True)
    tests = selftests.build_selftests(context, dataclasses.replace(kernel, commit=plain))
    trials = []
    for test, guest in dict.fromkeys((mutant.test, mutant.guest) for mutant in chosen):
        controlled = _boot(context, arch, flavour, kernel.image, tests, None, 0, test, guest, run)
        trials.append(controlled)
        context.report.step(_line(controlled))
        for mutant in chosen:
            if (mutant.test, mutant.guest) != (test, guest) or not controlled.good:
                continue
            number = known.number(mutant)
            trial = _boot(context, arch, flavour, kernel.image, tests, mutant, number, test, guest, run)
            trials.append(trial)
            context.report.step(_line(trial))
    return trials


def _boot(
    context: Context,
    arch: Arch,
    flavour: Flavour,
    image: Path,
    tests: SelftestBuild,
    mutant: Mutant | None,
    number: int,
    test: str,
    guest: str,
    run: RunDirectory,
) -> Trial:
    where = guest_of(context, test, mutant, number, guest)
    programs = [] if test.startswith(mutation.KUNIT) else [session.program_of(tests, test, flavour)]
    watch = Stopwatch()
    try:
        result = session.boot_image(
            context, arch, image, programs, run, factor=flavour.timeout_factor * where.timeout_factor, guest=where
        )
    except EnvironmentFailure:
        raise
    except HarnessError as exc:
        failed = session.without_verdict(run, session.label_of(arch, where), exc)
        result = dataclasses.replace(failed, seconds=watch.seconds)
    return judge(arch.name, mutant, test, result)


def _line(trial: Trial) -> str:
    return f"{trial.arch}: {trial.name}: {trial.test}: {trial.state}{f' by {trial.by}' if trial.by else ''}"


def _table(trials: Sequence[Trial]) -> str:
    rows = [[t.arch, t.name, t.test, t.state, t.by[:60], f"{t.seconds:.0f} s"] for t in trials]
    return table(rows, ["arch", "mutant", "test", "", "by", "time"])


def _as_json(trial: Trial) -> dict[str, object]:
    return {
        "arch": trial.arch,
        "mutant": trial.name,
        "breaks": trial.mutant.breaks if trial.mutant else "",
        "test": trial.test,
        "state": trial.state,
        "by": trial.by,
        "seconds": round(trial.seconds, 1),
    }


def _dry_run(context: Context, arch: Arch, flavour: Flavour, known: Mutants, chosen: Sequence[Mutant]) -> None:
    """The build, and the command line of each boot."""
    kernel = kernels.build_to_boot(context, arch, flavour)
    for mutant in chosen:
        where = guest_of(context, mutant.test, mutant, known.number(mutant), mutant.guest)
        session.plan_boot(context, arch, kernel.image, where)
