"""The programs of tools/agent-latency: static, for the guest's architecture, from the patched tree; its scripts too."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from harness import fs
from harness.build import make as kbuild
from harness.build import selftests
from harness.build import tools as needed
from harness.build.kernel import KernelBuild, build_lock, source_commit
from harness.context import Context
from harness.data import Arch
from harness.errors import BuildError, EnvironmentFailure
from harness.source.git import git

SOURCE = "tools/agent-latency"
PROGRAMS = ("agent-run", "agent-demo")
# Scripts, as they are
SCRIPTS = "bpftrace"
RECIPE = 2


def build_tools(context: Context, kernel: KernelBuild) -> Path:
    """The directory of the programs for ``kernel``, built or found built."""
    return build_for(context, kernel.arch, commit=kernel.commit if kernel.patched and kernel.commit else None)


def build_for(context: Context, arch: Arch, *, commit: str | None = None) -> Path:
    """The directory of the programs for ``arch`` from the patched ``commit`` (default: the stored series).

    They need no headers of the kernel. Raises BuildError when they do not compile or are not static,
    EnvironmentFailure when a tool is missing or the series has no such programs.
    """
    base = context.builds / f"{arch.name}-tools"
    out = base / "programs"
    if context.dry_run:
        chain = kbuild.toolchain(context, arch)
        context.report.result(kbuild.pasteable(_argv(context.source_tree, chain, out), {"LC_ALL": "C"}))
        return out
    commit = commit or source_commit(context, True)
    listing = git(context.kernel_repo, "ls-tree", commit, f"{SOURCE}/", timeout=selftests.GIT_SECONDS).output
    if not listing.strip():
        raise EnvironmentFailure(f"the series has no programs in {SOURCE}", hint="harness apply")
    chain = kbuild.toolchain(context, arch)
    text = "\0".join([str(RECIPE), arch.name, chain.prefix, chain.version, listing])
    key = hashlib.sha256(text.encode()).hexdigest()
    if _found(out, key):
        return out
    needed.require(context, [arch], "selftests")
    with fs.lock(build_lock(context, base.name), f"the tools directory {base}"):
        if not _found(out, key):
            context.report.step(f"building {SOURCE} for {arch.name}")
            _build(context, arch, chain, commit, base, key)
    return out


def _found(out: Path, key: str) -> bool:
    stamp = selftests.read_stamp(out / selftests.STAMP)
    return stamp.get("key") == key and all((out / name).is_file() for name in PROGRAMS)


def _argv(tree: Path, chain: kbuild.Toolchain, out: Path) -> list[str]:
    variables = {"CC": f"{chain.prefix}gcc", "OUTPUT": str(out), "USERLDFLAGS": "-static"}
    words = [f"{name}={value}" for name, value in variables.items()]
    return ["make", "-C", str(tree / SOURCE), "--no-print-directory", *words, "all"]


def _build(context: Context, arch: Arch, chain: kbuild.Toolchain, commit: str, base: Path, key: str) -> None:
    """Build and check them: the old ones stay until the new ones are complete."""
    source, fresh = base / "source", base / "programs.new"
    what = f"{arch.name}: {SOURCE}"
    with fs.disk_errors(base):
        selftests.extract(context, commit, [SOURCE], source)
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        argv = _argv(source, chain, fresh)
        log = base / "tools.log"
        kbuild.make(context, arch, source, fresh, (), log, what=what, tools=chain, env={"LC_ALL": "C"}, argv=argv)
        for name in PROGRAMS:
            if not (fresh / name).is_file():
                raise BuildError(f"{what}: make succeeded and left no {name}", hint=f"the full log is {log}")
            selftests.check_static(fresh / name, arch, what)
        if (source / SOURCE / SCRIPTS).is_dir():
            shutil.copytree(source / SOURCE / SCRIPTS, fresh / SCRIPTS)
        fs.write_json(fresh / selftests.STAMP, {"key": key, "commit": commit})
        shutil.rmtree(base / "programs", ignore_errors=True)
        fresh.replace(base / "programs")
