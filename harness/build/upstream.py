"""The pinned kernel's own selftests: static programs from the tree without the series, whatever kernel they run on.

configs/upstream-selftests.yaml names them. They are compiled one by one and not by their Makefiles, some of which link
shared libraries, need libraries that no guest has, or build what cannot run without a shell.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import fs, proc
from harness.build import make as kbuild
from harness.build import selftests as own
from harness.build import tools as needed
from harness.build.kernel import build_lock, source_commit
from harness.context import Context
from harness.data import Arch, UpstreamDirectory, UpstreamProgram
from harness.errors import BuildError, UsageError
from harness.report import Stopwatch

COMPILE_SECONDS = 300.0
FLAGS = ("-static", "-O2", "-g", "-w", "-pthread", "-D_GNU_SOURCE=")
LIBRARIES = ("-lrt", "-lm")
HELPERS = Path(__file__).with_name("helpers")
LINE_BUFFERED = "line-buffered"
RECIPE = 1


@dataclass(frozen=True)
class UpstreamBuild:
    """Built programs of one directory, by name; ``seconds`` is how long this call took."""

    directory: UpstreamDirectory
    programs: dict[str, Path]
    commit: str
    seconds: float


def full_name(directory: UpstreamDirectory, program: UpstreamProgram) -> str:
    """What a program is called in tables: two directories may have programs of the same name."""
    return f"{directory.name}.{program.name}"


def chosen(directories: Sequence[UpstreamDirectory], only: Sequence[str]) -> dict[str, list[UpstreamProgram]]:
    """The programs asked for by directory (its path): ``only`` names directories and programs, nothing means all.

    Raises UsageError for a name that nothing has.
    """
    found: dict[str, list[UpstreamProgram]] = {}
    used: set[str] = set()
    for directory in directories:
        for program in directory.programs:
            names = {directory.path, directory.name, full_name(directory, program)}
            if only and not names & set(only):
                continue
            used |= names
            found.setdefault(directory.path, []).append(program)
    if unknown := [name for name in only if name not in used]:
        known = ", ".join(directory.path for directory in directories)
        raise UsageError(
            f"no directory or program of the pinned kernel's selftests is called {unknown[0]!r}",
            hint=f"known: {known}, and DIRECTORY.PROGRAM",
        )
    return found


def skipped(program: UpstreamProgram, arch: Arch) -> str:
    """Why a program is not run on an architecture; empty when it is."""
    return program.skip or program.skip_on.get(arch.name, "")


def helpers(directory: UpstreamDirectory, program: UpstreamProgram) -> list[Path]:
    """Our own sources that are linked to a program. Raises UsageError for one that there is not."""
    paths = [HELPERS / f"{name}.c" for name in (LINE_BUFFERED, *directory.helpers, *program.helpers)]
    for path in paths:
        if not path.is_file():
            raise UsageError(
                f"{full_name(directory, program)}: there is no helper {path.stem!r}",
                hint=f"known: {', '.join(sorted(known.stem for known in HELPERS.glob('*.c')))}",
            )
    return paths


def command(
    tools: kbuild.Toolchain, headers: Path, directory: UpstreamDirectory, program: UpstreamProgram, out: Path
) -> list[str]:
    """The compiler's command line for a program, to be run in its directory."""
    return [
        f"{tools.prefix}gcc",
        *FLAGS,
        *("-isystem", str(headers)),
        *directory.flags,
        *program.flags,
        *("-o", str(out)),
        program.source or f"{program.name}.c",
        *directory.sources,
        *map(str, helpers(directory, program)),
        *LIBRARIES,
    ]


def build(
    context: Context, arch: Arch, directory: UpstreamDirectory, programs: Sequence[UpstreamProgram]
) -> UpstreamBuild:
    """``programs`` of ``directory`` for ``arch``, built or found built.

    Raises BuildError with the compiler's first message when one does not compile or is not static.
    """
    watch = Stopwatch()
    # Not NAME of a flavour: the kernel of that is built in ARCH-NAME.
    base = context.builds / f"{arch.name}-selftests-upstream"
    tools = kbuild.toolchain(context, arch)
    headers = base / "headers/usr/include"
    selftests = base / "source" / own.SELFTESTS
    wanted = [program for program in programs if not skipped(program, arch)]
    if context.dry_run:
        context.report.result("harness apply --unpatched")
        for program in wanted:
            out = base / f"{full_name(directory, program)}"
            context.report.result(
                f"cd {selftests / directory.path} && {proc.quoted(command(tools, headers, directory, program, out))}"
            )
        return UpstreamBuild(directory, {}, "", watch.seconds)
    commit = source_commit(context, False)
    needed.require(context, [arch], "selftests")
    with fs.lock(build_lock(context, base.name), f"the selftests directory {base}"):
        files = {p.name: base / _name(commit, tools, directory, p) for p in wanted}
        missing = [p for p in wanted if not files[p.name].is_file()]
        if missing:
            context.report.step(
                f"building {len(missing)} {directory.path} selftests of the pinned kernel for {arch.name}"
            )
            own.headers(context, arch, tools, commit, base)
            paths = [*own.test_paths(directory.path), *directory.needs]
            with fs.disk_errors(base):
                own.extract(context, commit, paths, base / "source")
                try:
                    where = selftests / directory.path
                    with proc.pool(context.jobs or os.cpu_count() or 1) as pool:
                        jobs = [
                            pool.submit(_compile, arch, tools, headers, where, directory, p, files[p.name])
                            for p in missing
                        ]
                        for job in jobs:
                            job.result()
                finally:
                    shutil.rmtree(base / "source", ignore_errors=True)
    return UpstreamBuild(directory, files, commit, watch.seconds)


def _name(commit: str, tools: kbuild.Toolchain, directory: UpstreamDirectory, program: UpstreamProgram) -> str:
    """A file name that changes with whatever the program is made from."""
    made_from = [
        str(RECIPE),
        commit,
        *command(tools, Path("headers"), directory, program, Path("out")),
        tools.version,
        *directory.needs,
        *(path.read_text() for path in helpers(directory, program)),
    ]
    key = hashlib.sha256("\0".join(made_from).encode()).hexdigest()[:12]
    return f"{full_name(directory, program)}-{key}"


def _compile(
    arch: Arch,
    tools: kbuild.Toolchain,
    headers: Path,
    where: Path,
    directory: UpstreamDirectory,
    program: UpstreamProgram,
    out: Path,
) -> None:
    what = f"{arch.name}: {full_name(directory, program)}"
    partial = out.with_name(f"{out.name}.part")
    argv = command(tools, headers, directory, program, partial)
    done = proc.run(argv, timeout=COMPILE_SECONDS, cwd=where, env={"LC_ALL": "C"})
    log = out.with_name(f"{full_name(directory, program)}.log")
    fs.atomic_write(log, f"{proc.quoted(argv)}\n{done.output}{done.errors}")
    if done.status != 0:
        partial.unlink(missing_ok=True)
        words = [line for line in done.errors.splitlines() if "error" in line] or done.errors.splitlines()
        raise BuildError(
            f"{what}: {words[0] if words else f'the compiler ended with {done.status}'}",
            detail="\n".join(done.errors.splitlines()[:10]),
            hint=f"the full log is {log}; configs/upstream-selftests.yaml has its flags",
        )
    own.check_static(partial, arch, what)
    for old in out.parent.glob(f"{full_name(directory, program)}-*"):
        if old != partial:
            old.unlink(missing_ok=True)
    partial.replace(out)
