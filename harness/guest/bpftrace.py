"""The bpftrace scripts of the series, each on a small workload, in a guest with bpftrace and its compiler."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from harness import proc
from harness.context import Context
from harness.data import Arch, Flavour
from harness.errors import EnvironmentFailure, HarnessError
from harness.guest import rootfs, session, vng
from harness.guest.init import Program
from harness.report import Stopwatch
from harness.results.model import ArchResult
from harness.results.run import RunDirectory

FLAVOUR = "bpf"
# qemu/rootfs-NAME.yaml
USER_LAND = "bpftrace"
# Of the share, in the guest.
TOOLS = "tools"
CHECK = "check.sh"
SUFFIX = ".bt"
# To compile and attach a script, and to end it, in an emulated guest.
ATTACH_SECONDS = 120
# Of a script with its workload.
SECONDS = 3.0 * ATTACH_SECONDS + 60.0


def scripts_of(tools: Path) -> list[str]:
    """The names of the scripts in the directory of the guest's tools. Raises EnvironmentFailure if there are none."""
    from harness.build import guesttools

    directory = tools / guesttools.SCRIPTS
    names = sorted(path.name.removesuffix(SUFFIX) for path in directory.glob(f"*{SUFFIX}"))
    if not names:
        raise EnvironmentFailure("the series has no bpftrace scripts", hint="harness apply")
    return names


def programs_of(names: Sequence[str], only: Sequence[str], factor: float) -> list[Program]:
    """What the guest runs: the check of each script, as a program of its own."""
    from harness.build import guesttools

    path = f"{vng.SHARE}/{TOOLS}/{guesttools.SCRIPTS}/{CHECK}"
    seconds = str(round(ATTACH_SECONDS * factor))
    return [
        Program(name, path=path, arguments=("-t", seconds, f"{name}{SUFFIX}"), timeout=SECONDS * factor)
        for name in session.chosen(names, only)
    ]


def test_arch(
    context: Context,
    arch: Arch,
    flavour: Flavour,
    run: RunDirectory,
    *,
    patched: bool = True,
    only: Sequence[str] = (),
) -> list[ArchResult]:
    """Build the kernel of ``arch``, boot it and check the scripts; an expected error becomes the result's problem."""
    from harness.build import guesttools
    from harness.build import kernel as kernels

    watch = Stopwatch()
    stages: dict[str, float] = {}
    try:
        kernel = kernels.build_to_boot(context, arch, flavour, patched=patched)
        stages["build"] = kernel.seconds
        tools = guesttools.build_tools(context, kernel)
        programs = programs_of(scripts_of(tools), only, flavour.timeout_factor)
        root = rootfs.ensure(context, arch, USER_LAND)
        shutil.copyfile(kernel.config, run.part(arch.name) / "config")
        session.describe_kernel(run, arch.name, kernel, {"programs": [program.name for program in programs]})
        result = session.boot_image(
            context,
            arch,
            kernel.image,
            programs,
            run,
            backend="vng",
            factor=flavour.timeout_factor,
            root=root,
            files={TOOLS: tools},
            least=sum(program.timeout for program in programs),
        )
        stages["guest"] = result.seconds
        return [replace(result, stages=stages, seconds=watch.seconds)]
    except HarnessError as exc:
        failed = session.without_verdict(run, arch.name, exc)
        return [replace(failed, backend="vng", stages=stages, seconds=watch.seconds)]


def dry_run(context: Context, arch: Arch, flavour: Flavour, *, patched: bool) -> None:
    """Print what :func:`test_arch` would run; nothing is built, booted or written."""
    from harness.build import guesttools
    from harness.build import kernel as kernels

    built = kernels.build_to_boot(context, arch, flavour, patched=patched)
    guesttools.build_tools(context, built)
    root = rootfs.path_of(context, arch, USER_LAND)
    context.report.result(proc.quoted(vng.argv(context, arch, built.image, script="SCRIPT", root=root)))
