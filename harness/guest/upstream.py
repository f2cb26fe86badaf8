"""The pinned kernel's own selftests in a guest: a boot for each of their directories."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.context import Context
from harness.data import Arch, Flavour, Guest, UpstreamDirectory, UpstreamProgram
from harness.errors import HarnessError
from harness.guest import session
from harness.guest.init import Program
from harness.guest.ktap import Status, Test
from harness.report import Stopwatch
from harness.results.model import ArchResult
from harness.results.run import RunDirectory

if TYPE_CHECKING:
    from harness.build.kernel import KernelBuild
    from harness.build.upstream import UpstreamBuild

# KUnit suites ran in the boot of the series' own tests.
CMDLINE = "kunit.autorun=0"


def test_arch(
    context: Context,
    arch: Arch,
    flavour: Flavour,
    run: RunDirectory,
    *,
    patched: bool = True,
    only: Sequence[str] = (),
) -> list[ArchResult]:
    """Build the kernel of ``arch`` and boot it once a directory; an expected error becomes a result's ``problem``."""
    from harness.build import kernel as kernels
    from harness.build import upstream

    directories = context.upstream().directories
    chosen = upstream.chosen(directories, only)
    results: list[ArchResult] = []
    kernel: KernelBuild | None = None
    for directory in directories:
        programs = chosen.get(directory.path)
        if not programs:
            continue
        watch = Stopwatch()
        guest = guest_of(directory, programs)
        label = session.label_of(arch, guest)
        stages: dict[str, float] = {}
        try:
            if kernel is None:
                kernel = kernels.build_to_boot(context, arch, flavour, patched=patched)
                stages["build"] = kernel.seconds
            built = upstream.build(context, arch, directory, programs)
            stages["selftests"] = built.seconds
            result = _boot(context, arch, guest, flavour, run, kernel, built, programs)
            stages["guest"] = result.seconds
            results.append(dataclasses.replace(result, stages=stages, seconds=watch.seconds))
        except HarnessError as exc:
            failed = session.without_verdict(run, label, exc)
            results.append(dataclasses.replace(failed, stages=stages, seconds=watch.seconds))
            if kernel is None:
                break
    return results


def check(context: Context, only: Sequence[str]) -> None:
    """Raise UsageError when ``only`` names what there is not, before anything is built."""
    from harness.build import upstream

    upstream.chosen(context.upstream().directories, only)


def guest_of(directory: UpstreamDirectory, programs: Sequence[UpstreamProgram]) -> Guest:
    """The boot of a directory."""
    from harness.build import upstream

    return Guest(
        name=directory.name,
        description=f"tools/testing/selftests/{directory.path} of the pinned kernel",
        programs=tuple(upstream.full_name(directory, program) for program in programs),
        cmdline=f"{CMDLINE} {directory.cmdline}".strip(),
        machines=directory.machines,
    )


def _boot(
    context: Context,
    arch: Arch,
    guest: Guest,
    flavour: Flavour,
    run: RunDirectory,
    kernel: KernelBuild,
    built: UpstreamBuild,
    programs: Sequence[UpstreamProgram],
) -> ArchResult:
    from harness.build import upstream

    directory = built.directory
    label = session.label_of(arch, guest)
    shutil.copyfile(kernel.config, run.part(label) / "config")
    session.describe_kernel(run, label, kernel, {"programs": list(guest.programs), "commit": built.commit})
    here = [
        Program(
            upstream.full_name(directory, program),
            built.programs[program.name],
            arguments=program.arguments,
            timeout=program.timeout * flavour.timeout_factor,
            reports=program.reports,
        )
        for program in programs
        if not upstream.skipped(program, arch)
    ]
    left_out = tuple(
        Test(upstream.full_name(directory, program), Status.SKIPPED, reason=reason)
        for program in programs
        if (reason := upstream.skipped(program, arch))
    )
    result = session.boot_image(
        context,
        arch,
        kernel.image,
        here,
        run,
        factor=flavour.timeout_factor,
        guest=guest,
        least=sum(program.timeout for program in here),
        provoked=directory.provoked,
    )
    assert result.verdict is not None
    verdict = dataclasses.replace(result.verdict, tests=(*result.verdict.tests, *left_out))
    return dataclasses.replace(result, verdict=verdict)


def dry_run(context: Context, arch: Arch, flavour: Flavour, *, patched: bool, only: Sequence[str] = ()) -> None:
    """Print what :func:`test_arch` would run; nothing is built, booted or written."""
    from harness.build import kernel as kernels
    from harness.build import upstream

    directories = context.upstream().directories
    kernel = kernels.build_to_boot(context, arch, flavour, patched=patched)
    for path, programs in upstream.chosen(directories, only).items():
        directory = next(d for d in directories if d.path == path)
        upstream.build(context, arch, directory, programs)
        session.plan_boot(context, arch, kernel.image, guest_of(directory, programs))
