"""The kernel of one architecture, flavour and state of the series: built once, continued when interrupted."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness import fs
from harness.build import make as kbuild
from harness.build import tools as needed
from harness.context import Context
from harness.data import Arch, Flavour
from harness.errors import BuildError, EnvironmentFailure
from harness.kconfig import assemble
from harness.report import Stopwatch
from harness.source.repo import KernelRepo
from harness.source.series import Series

STAMP = ".harness-build.json"
LOG = "build.log"
# A new value makes every finished build be looked at by make again.
RECIPE = 1
# Files of a cold build where none was finished before, only for the first progress bar.
GUESSED_FILES = 1200
# MiB of one output directory, measured with room to spare.
SPACE_MIB = 2048
TELL_SECONDS = 15.0
# How long a copy to boot from is kept after it was last asked for: longer than any run.
KEPT_SECONDS = 24 * 3600.0


@dataclass(frozen=True)
class KernelBuild:
    """A built kernel. ``directory`` is the output directory, ``image`` what QEMU boots, ``config`` the .config,
    ``commit`` the source in the kernel repository, ``seconds`` how long this call took, ``cached`` whether make did not
    have to run, ``files`` how many files were compiled, ``log`` what make said when it last ran."""

    arch: Arch
    flavour: Flavour
    patched: bool
    directory: Path
    image: Path
    config: Path
    commit: str
    seconds: float
    cached: bool
    log: Path
    files: int = 0

    @property
    def name(self) -> str:
        """``x86_64-test``, ``arm64-off``, ``x86_64-test-unpatched``."""
        return build_name(self.arch, self.flavour, self.patched)

    @property
    def vmlinux(self) -> Path:
        """The kernel with its symbols."""
        return self.directory / "vmlinux"


def build_name(arch: Arch, flavour: Flavour, patched: bool) -> str:
    """The name of an output directory."""
    return f"{arch.name}-{flavour.name}{'' if patched else '-unpatched'}"


def build_lock(context: Context, name: str) -> Path:
    """The lock that whoever changes the output directory ``name`` holds."""
    return context.cache / "locks" / f"build-{name}.lock"


def source_commit(context: Context, patched: bool) -> str:
    """The commit to build: the series on the pinned base, or the base. Applies or imports what is not there yet."""
    repo = KernelRepo(context)
    return repo.apply(Series.load(context.patches)) if patched else repo.ensure_base()


def build(
    context: Context, arch: Arch, flavour: Flavour, *, patched: bool = True, commit: str | None = None
) -> KernelBuild:
    """Build the image of one kernel, or find it built.

    ``commit`` is the source (default: :func:`source_commit`). A build that was killed continues; one whose source,
    configuration, compiler and result are what they were is not looked at again. Raises ApplyError, ConfigMismatch,
    BuildError, EnvironmentFailure (a missing tool, a full disk, another run in the same directory) and StageTimeout.
    """
    watch = Stopwatch()
    name = build_name(arch, flavour, patched)
    out = context.builds / name
    if context.dry_run:
        return _dry_run(context, arch, flavour, patched, out)
    commit = commit or source_commit(context, patched)
    tools = kbuild.toolchain(context, arch)
    key = _key(context, arch, flavour, patched, commit, tools)

    def found() -> KernelBuild | None:
        if _finished(out, arch).get("key") != key:
            return None
        return KernelBuild(
            arch, flavour, patched, out, out / arch.image, out / ".config", commit, watch.seconds, True, out / LOG
        )

    if ready := found():
        return ready
    needed.require(context, [arch], "build")
    fs.require_space(out, 0 if (out / "vmlinux").exists() else SPACE_MIB, f"building {name}")
    with fs.lock(build_lock(context, name), f"the build directory {out}"):
        if ready := found():  # by whoever held the lock
            return ready
        context.report.step(f"building {name} in {out}")
        files = _build(context, arch, flavour, patched, commit, tools, out, key)
    return KernelBuild(
        arch, flavour, patched, out, out / arch.image, out / ".config", commit, watch.seconds, False, out / LOG, files
    )


def build_to_boot(
    context: Context, arch: Arch, flavour: Flavour, *, patched: bool = True, commit: str | None = None
) -> KernelBuild:
    """:func:`build`, with ``image`` and ``config`` where no later build changes them while guests boot from them.

    Raises what that raises, and EnvironmentFailure when another run builds something else there each time.
    """
    for _ in range(3):
        built = build(context, arch, flavour, patched=patched, commit=commit)
        if context.dry_run:
            return built
        if (kept := _kept(context, built)) is not None:
            return kept
    raise EnvironmentFailure(
        f"another run goes on changing {built.directory}",
        hint="wait for it, or give one of them a HARNESS_CACHE_DIR of its own",
    )


def kept_kernels(context: Context) -> Path:
    """Where the copies are that guests boot from, one directory for each."""
    return context.cache / "kernels"


def kept_lock(context: Context) -> Path:
    """The lock that whoever adds or removes such copies holds."""
    return context.cache / "locks" / "kernels.lock"


def _kept(context: Context, built: KernelBuild) -> KernelBuild | None:
    """``built`` as a copy, or None if it is not there any more: a build first removes the stamp of the one before."""
    stamp = _finished(built.directory, built.arch)
    if stamp.get("commit") != built.commit:
        return None
    root = kept_kernels(context)
    key = hashlib.sha256(json.dumps([stamp["key"], stamp["results"]]).encode()).hexdigest()
    copy = root / f"{built.name}-{key[:16]}"
    with fs.lock(kept_lock(context), f"the kernels in {root}", wait_seconds=60.0), fs.disk_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        _forget(root)
        if not fs.is_whole(copy, key):
            try:
                with fs.whole_directory(copy, key) as new:
                    for path in (built.image, built.config):
                        shutil.copyfile(path, new / path.name)
                    if _finished(built.directory, built.arch) != stamp:
                        raise FileNotFoundError(built.image)
            except FileNotFoundError:
                return None
        os.utime(copy)
    return replace(built, image=copy / built.image.name, config=copy / built.config.name)


def _forget(root: Path) -> None:
    """Remove copies that nobody has asked for in a long time; the caller holds the lock."""
    for path in root.iterdir():
        if path.is_dir() and time.time() - path.stat().st_mtime > KEPT_SECONDS:
            # First, so that what is left of an interrupted removal is not taken for a copy.
            (path / fs.STAMP).unlink(missing_ok=True)
            shutil.rmtree(path, ignore_errors=True)


def _build(
    context: Context,
    arch: Arch,
    flavour: Flavour,
    patched: bool,
    commit: str,
    tools: kbuild.Toolchain,
    out: Path,
    key: str,
) -> int:
    name = build_name(arch, flavour, patched)
    earlier = _read_stamp(out)
    cold = not (out / "vmlinux").exists()
    with fs.disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        # What make left when it was killed, or somebody else since, looks up to date to make.
        for path, state in _results(out, arch).items():
            if path != ".config" and state != earlier.get("results", {}).get(path):
                (out / path).unlink(missing_ok=True)
        (out / STAMP).unlink(missing_ok=True)  # whatever is interrupted from here on is not finished
    with KernelRepo(context).checkout(commit) as tree:
        assemble.configure(context, tree, arch, flavour, out, patched, tools=tools)
        total = max(0, _estimate(context, arch) - _objects(out)) if cold else 0
        log = out / LOG
        if log.exists():
            log.replace(out / f"{LOG}.previous")
        made = kbuild.make(
            context,
            arch,
            tree,
            out,
            [arch.image_target],
            log,
            what=name,
            tools=tools,
            watch=_progress(context, name, total),
        )
    context.report.end_bar()
    results = _results(out, arch)
    if None in results.values():
        lacking = next(path for path, state in results.items() if state is None)
        raise BuildError(f"{name}: make succeeded and left no {lacking}", hint=f"the full log is {log}")
    stamp = {
        "key": key,
        "commit": commit,
        "results": results,
        "cold_files": _objects(out) if cold else earlier.get("cold_files", 0),
        "compiler": tools.version,
    }
    fs.write_json(out / STAMP, stamp)
    return made.files


def _key(context: Context, arch: Arch, flavour: Flavour, patched: bool, commit: str, tools: kbuild.Toolchain) -> str:
    """A hash of everything a build is made from."""
    parts = [
        str(RECIPE),
        commit,
        assemble.fingerprint(context, arch, flavour, patched),
        tools.prefix,
        tools.version,
        arch.kernel_arch,
        arch.image_target,
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _results(out: Path, arch: Arch) -> dict[str, Any]:
    """Size and mtime of what a build leaves, None for what is not there: a result that was touched is built again."""
    states: dict[str, Any] = {}
    for path in (arch.image, "vmlinux", ".config"):
        try:
            state = (out / path).stat()
            states[path] = [state.st_size, state.st_mtime_ns]
        except OSError:
            states[path] = None
    return states


def _finished(out: Path, arch: Arch) -> dict[str, Any]:
    """The stamp of a finished build whose results are what they were; empty if there is none."""
    stamp = _read_stamp(out)
    return stamp if stamp.get("results") == _results(out, arch) else {}


def _read_stamp(out: Path) -> dict[str, Any]:
    try:
        value = json.loads((out / STAMP).read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _objects(out: Path) -> int:
    """Compiled files that an output directory holds."""
    return sum(
        name.endswith(".o") and name != "built-in.o"
        for directory, _, names in os.walk(out)
        if "/scripts" not in directory
        for name in names
    )


def _estimate(context: Context, arch: Arch) -> int:
    """How many files a cold build compiles, from a finished build of the architecture."""
    known = [
        int(_read_stamp(path.parent).get("cold_files", 0)) for path in context.builds.glob(f"{arch.name}-*/{STAMP}")
    ]
    return max(known, default=0) or GUESSED_FILES


def _progress(context: Context, what: str, total: int) -> Callable[[int, float], None]:
    """A watcher for make: a bar where the number of files is known, a line now and then where not."""
    told = 0.0
    last = -1

    def watch(files: int, seconds: float) -> None:
        nonlocal told, last
        if total:
            if files != last:
                context.report.progress(what, files, max(total, files), unit="files", scale=1)
            last = files
        elif seconds - told >= TELL_SECONDS:
            told = seconds
            context.report.step(f"{what}: {files} files compiled in {seconds:.0f} s")

    return watch


def _dry_run(context: Context, arch: Arch, flavour: Flavour, patched: bool, out: Path) -> KernelBuild:
    """Print what a build would run."""
    tools = kbuild.toolchain(context, arch)
    tree = context.source_tree
    started = time.monotonic()
    context.report.result(f"harness apply{'' if patched else ' --unpatched'}")
    assemble.configure(context, tree, arch, flavour, out, patched, tools=tools)
    argv = kbuild.command(context, arch, tree, out, [arch.image_target], tools=tools)
    context.report.result(kbuild.pasteable(argv, kbuild.environment(context, tree, out)))
    seconds = time.monotonic() - started
    return KernelBuild(arch, flavour, patched, out, out / arch.image, out / ".config", "", seconds, False, out / LOG)
