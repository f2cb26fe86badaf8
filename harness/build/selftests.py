"""The kernel selftests of the series: static programs for the guest's architecture.

Their sources and the headers they are built against always come from the patched tree, whatever kernel they run on.
They are taken out of the kernel repository into a directory of their own, so that building them neither waits for nor
disturbs the tree that kernels are built from.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import fs, proc
from harness.build import make as kbuild
from harness.build import tools as needed
from harness.build.kernel import KernelBuild, build_lock, source_commit
from harness.context import Context
from harness.data import Arch
from harness.errors import BuildError, EnvironmentFailure, UsageError
from harness.report import Stopwatch
from harness.source.git import git
from harness.source.repo import KernelRepo

COLLECTION = "agent_latency"
SELFTESTS = "tools/testing/selftests"
# Seconds that a program may take when its collection has no `settings` file: kselftest's own default.
DEFAULT_TIMEOUT = 45.0
STAMP = ".harness-selftests.json"
RECIPE = 1
GIT_SECONDS = 120.0


@dataclass(frozen=True)
class SelftestBuild:
    """Built selftests: ``directory`` holds a file for each name of ``programs``; ``timeouts`` are seconds by program;
    ``commit`` is the patched source, ``seconds`` how long this call took, ``cached`` whether nothing had to be done."""

    arch: Arch
    directory: Path
    programs: tuple[str, ...]
    timeouts: Mapping[str, float]
    commit: str
    seconds: float
    cached: bool
    log: Path
    collection: str = COLLECTION
    config: tuple[str, ...] = field(default=())


def build_selftests(context: Context, kernel: KernelBuild, *, collection: str = COLLECTION) -> SelftestBuild:
    """The selftests for ``kernel``, built or found built."""
    commit = kernel.commit if kernel.patched and kernel.commit else None
    return build_for(context, kernel.arch, commit=commit, collection=collection)


def build_for(
    context: Context, arch: Arch, *, commit: str | None = None, collection: str = COLLECTION
) -> SelftestBuild:
    """The selftests of ``collection`` for ``arch`` from the patched ``commit`` (default: the stored series).

    Raises BuildError when they do not compile, are not static or not of the architecture, EnvironmentFailure when a
    tool is missing or the series has no such selftests.
    """
    watch = Stopwatch()
    base = context.builds / f"{arch.name}-selftests"
    log = base / f"{collection}.log"
    install = base / collection
    if context.dry_run:
        tools = kbuild.toolchain(context, arch)
        argv, env = _command(context, arch, tools, context.source_tree, collection, base, install, ["all"])
        context.report.result(f"harness apply\n{kbuild.pasteable(argv, env)}")
        return SelftestBuild(arch, install, (), {}, "", watch.seconds, False, log, collection)
    commit = commit or source_commit(context, True)
    tools = kbuild.toolchain(context, arch)
    keys = _keys(context, arch, tools, commit, collection)

    def found() -> SelftestBuild | None:
        stamp = read_stamp(install / STAMP)
        programs = tuple(stamp.get("programs", ()))
        if stamp.get("key") != keys["programs"] or not programs or not all((install / p).is_file() for p in programs):
            return None
        timeouts = {name: float(seconds) for name, seconds in stamp["timeouts"].items()}
        return SelftestBuild(
            arch, install, programs, timeouts, commit, watch.seconds, True, log, collection, tuple(stamp["config"])
        )

    if ready := found():
        return ready
    needed.require(context, [arch], "selftests")
    with fs.lock(build_lock(context, base.name), f"the selftests directory {base}"):
        if ready := found():
            return ready
        context.report.step(f"building the {collection} selftests for {arch.name}")
        headers(context, arch, tools, commit, base)
        _programs(context, arch, tools, commit, base, collection, keys["programs"], log)
    done = found()
    if done is None:
        raise BuildError(f"{arch.name}: the {collection} selftests changed while they were built", hint="run it again")
    return SelftestBuild(**{**done.__dict__, "cached": False, "seconds": watch.seconds})


def check(context: Context, only: Sequence[str]) -> None:
    """Raise UsageError when ``only`` names a program that the series has not, before anything is built for it."""
    known = known_programs(context) if only else ()
    for name in only:
        if known and name not in known:
            raise UsageError(f"there is no test program {name!r}", hint=f"known: {', '.join(known)}")


def known_programs(context: Context, collection: str = COLLECTION) -> tuple[str, ...]:
    """What the Makefile of the stored series lists; empty when only make could tell."""
    commit = source_commit(context, True)
    return listed(KernelRepo(context).read(commit, f"{SELFTESTS}/{collection}/Makefile"))


def listed(makefile: str) -> tuple[str, ...]:
    """The programs that a selftest Makefile runs, sorted; empty when it computes them. Pure."""
    found = re.findall(r"^TEST_(?:GEN_)?PROGS\s*[:+]?=(.*)$", makefile.replace("\\\n", " "), re.MULTILINE)
    return () if any("$" in words for words in found) else tuple(sorted(" ".join(found).split()))


def srcarch(arch: Arch) -> str:
    """The directory of an architecture below ``arch/``."""
    return Path(arch.image).parts[1]


def _header_paths(arch: Arch) -> list[str]:
    """What ``make headers`` reads."""
    return ["Makefile", "scripts", "include", f"arch/{srcarch(arch)}"]


def test_paths(collection: str) -> list[str]:
    """What the selftests are built from, headers of the kernel aside; the glob takes the shared files only."""
    return [f":(glob){SELFTESTS}/*", f"{SELFTESTS}/{collection}", "tools/include"]


def _keys(context: Context, arch: Arch, tools: kbuild.Toolchain, commit: str, collection: str) -> dict[str, str]:
    """Hashes of what headers and programs are made from: object ids of the files, and the compiler."""
    tests = _ids(context, commit, [f"{SELFTESTS}/{collection}", f"{SELFTESTS}/", "tools/include"])
    if not re.search(rf"\t{SELFTESTS}/{re.escape(collection)}$", tests, re.MULTILINE):
        raise EnvironmentFailure(
            f"the series has no selftests {SELFTESTS}/{collection}",
            hint="see what it has with `harness apply`; `harness build --kernel-only` leaves selftests out",
        )
    # Of the directory that holds all collections only the shared files count.
    shared = [
        line for line in tests.splitlines() if " blob " in line or f"/{collection}" in line or "\ttools/i" in line
    ]
    common = _common(arch, tools)
    headers_key = _headers_key(context, arch, tools, commit)
    text = "\n".join([common, headers_key, *shared])
    return {"headers": headers_key, "programs": hashlib.sha256(text.encode()).hexdigest()}


def _common(arch: Arch, tools: kbuild.Toolchain) -> str:
    return "\0".join([str(RECIPE), arch.name, tools.prefix, tools.version])


def _headers_key(context: Context, arch: Arch, tools: kbuild.Toolchain, commit: str) -> str:
    made_from = _ids(
        context,
        commit,
        [
            "Makefile",
            "scripts",
            "include/uapi",
            f"arch/{srcarch(arch)}/include/uapi",
            f"arch/{srcarch(arch)}/entry",
            f"arch/{srcarch(arch)}/tools",
        ],
    )
    return hashlib.sha256(f"{_common(arch, tools)}\0{made_from}".encode()).hexdigest()


def _ids(context: Context, commit: str, paths: Sequence[str]) -> str:
    """Mode, kind, id and path of each of ``paths`` in ``commit``; those that are not there are left out."""
    return git(context.kernel_repo, "ls-tree", commit, *paths, timeout=GIT_SECONDS).output


def extract(context: Context, commit: str, paths: Sequence[str], directory: Path) -> None:
    """The files of ``commit`` below ``paths``, in a fresh ``directory``."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    archive = directory.with_name(f"{directory.name}.tar")
    try:
        arguments = ["archive", "--format=tar", f"--output={archive}", commit, "--", *paths]
        git(context.kernel_repo, *arguments, timeout=GIT_SECONDS)
        proc.run(["tar", "-C", str(directory), "-xf", str(archive)], timeout=GIT_SECONDS, check=True)
    finally:
        archive.unlink(missing_ok=True)


def headers(context: Context, arch: Arch, tools: kbuild.Toolchain, commit: str, base: Path) -> None:
    """The uapi headers of ``commit`` in ``base``/headers/usr/include, made again only when they changed."""
    out = base / "headers"
    key = _headers_key(context, arch, tools, commit)
    stamp = out / STAMP
    if read_stamp(stamp).get("key") == key:
        return
    source = base / "headers-source"
    with fs.disk_errors(base):
        stamp.unlink(missing_ok=True)
        try:
            extract(context, commit, _header_paths(arch), source)
            shutil.rmtree(out, ignore_errors=True)
            kbuild.make(
                context,
                arch,
                source,
                out,
                ["headers"],
                base / "headers.log",
                what=f"{arch.name}: headers for the selftests",
                tools=tools,
            )
        finally:
            shutil.rmtree(source, ignore_errors=True)
        fs.write_json(stamp, {"key": key})


def _command(
    context: Context,
    arch: Arch,
    tools: kbuild.Toolchain,
    source: Path,
    collection: str,
    base: Path,
    output: Path,
    targets: Sequence[str],
) -> tuple[list[str], dict[str, str]]:
    variables = {
        "ARCH": arch.kernel_arch,
        "CROSS_COMPILE": tools.prefix,
        "CC": f"{tools.prefix}gcc",
        "OUTPUT": str(output),
        "KHDR_INCLUDES": f"-isystem {base / 'headers/usr/include'}",
        "USERLDFLAGS": "-static",
        "COLLECTION": collection,
    }
    argv = [
        "make",
        "-C",
        str(source / SELFTESTS / collection),
        f"-j{context.jobs}",
        "--no-print-directory",
        "--output-sync=target",
        *(f"{name}={value}" for name, value in variables.items()),
        *targets,
    ]
    return argv, {"LC_ALL": "C"}


def _programs(
    context: Context,
    arch: Arch,
    tools: kbuild.Toolchain,
    commit: str,
    base: Path,
    collection: str,
    key: str,
    log: Path,
) -> None:
    """Build, check and install the programs of a collection: the old ones stay until the new ones are complete."""
    source = base / "source"
    fresh = base / f"{collection}.new"
    what = f"{arch.name}: {collection} selftests"
    with fs.disk_errors(base):
        extract(context, commit, test_paths(collection), source)
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        try:
            argv, env = _command(context, arch, tools, source, collection, base, fresh, ["all"])
            kbuild.make(context, arch, source, fresh, (), log, what=what, tools=tools, env=env, argv=argv)
            argv, env = _command(context, arch, tools, source, collection, base, fresh, ["-s", "emit_tests"])
            listing = base / f"{collection}.list"
            kbuild.make(context, arch, source, fresh, (), listing, what=what, tools=tools, env=env, argv=argv)
            programs = programs_of(listing.read_text(), collection)
            if not programs:
                raise BuildError(f"{what}: the Makefile names no TEST_GEN_PROGS", hint=f"the full log is {log}")
            origin = source / SELFTESTS / collection
            for name in programs:
                if not (fresh / name).is_file():
                    if not (origin / name).is_file():
                        raise BuildError(f"{what}: make succeeded and left no {name}", hint=f"the full log is {log}")
                    shutil.copy2(origin / name, fresh / name)  # a script
                else:
                    check_static(fresh / name, arch, what)
            timeout = timeout_of((origin / "settings").read_text() if (origin / "settings").is_file() else "")
            config = (origin / "config").read_text().splitlines() if (origin / "config").is_file() else []
            stamp = {
                "key": key,
                "programs": programs,
                "timeouts": dict.fromkeys(programs, timeout),
                "config": [line for line in config if line.startswith("CONFIG_")],
            }
            fs.write_json(fresh / STAMP, stamp)
            shutil.rmtree(base / collection, ignore_errors=True)
            fresh.replace(base / collection)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)


def programs_of(listing: str, collection: str) -> list[str]:
    """The programs that ``make emit_tests`` names, as ``collection:program`` lines, in its order."""
    prefix = f"{collection}:"
    names = [line.removeprefix(prefix).strip() for line in listing.splitlines() if line.startswith(prefix)]
    return list(dict.fromkeys(filter(None, names)))


def timeout_of(settings: str) -> float:
    """Seconds that a program may take by a collection's ``settings``; kselftest's default when it names none."""
    match = re.search(r"^timeout\s*=\s*(\d+)\s*$", settings, re.MULTILINE)
    return float(match[1]) if match and int(match[1]) else DEFAULT_TIMEOUT


def check_static(program: Path, arch: Arch, what: str) -> None:
    """Raise BuildError unless ``program`` is a static program for ``arch``."""
    done = proc.run(["readelf", "-hlW", str(program)], timeout=30, env={"LC_ALL": "C"})
    machine = re.search(r"^\s*Machine:\s*(.*?)\s*$", done.output, re.MULTILINE)
    if not machine or machine[1] != arch.elf_machine:
        found = machine[1] if machine else "no ELF file"
        raise BuildError(f"{what}: {program.name} is {found}, not {arch.elf_machine}", hint="see CROSS_COMPILE and CC")
    if re.search(r"^\s*INTERP\b", done.output, re.MULTILINE):
        raise BuildError(
            f"{what}: {program.name} is not static, and the guest has no libraries",
            hint="its Makefile must honour USERLDFLAGS (see lib.mk)",
        )


def read_stamp(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
