"""One make of the kernel's build system: its command line, its environment, its log, its deadline.

Everything that runs the kernel's Makefile goes through :func:`make` with an explicit tree and output directory, so that
the tree of `harness check` is built exactly as the ordinary one is, and shares its compiler cache.
"""

from __future__ import annotations

import ctypes
import os
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import fs, proc
from harness.build.log import compiled, first_failure
from harness.context import Context
from harness.data import Arch
from harness.errors import BuildError, EnvironmentFailure, HarnessError, StageTimeout, UsageError

# What the user's shell may hold and a reproducible build may not see.
_UNWANTED = (
    "ARCH",
    "CC",
    "CFLAGS",
    "CPPFLAGS",
    "CROSS_COMPILE",
    "HOSTCFLAGS",
    "INSTALL_HDR_PATH",
    "KAFLAGS",
    "KBUILD_OUTPUT",
    "KBUILD_VERBOSE",
    "KCFLAGS",
    "KCONFIG_ALLCONFIG",
    "KCONFIG_CONFIG",
    "KCPPFLAGS",
    "LDFLAGS",
    "LLVM",
    "LOCALVERSION",
    "MAKEFLAGS",
    "MAKELEVEL",
    "MFLAGS",
    "OUTPUT",
    "V",
    "W",
)
# The same in every build, so that equal sources give equal images.
_FIXED = {
    "KBUILD_BUILD_TIMESTAMP": "Thu Jan  1 00:00:00 UTC 2026",
    "KBUILD_BUILD_USER": "harness",
    "KBUILD_BUILD_HOST": "agent-latency",
    "KBUILD_BUILD_VERSION": "1",
}

_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


def _end_with_parent() -> None:
    """Runs in the child: when the harness itself is killed, make is told to end, so that a restart finds no rival."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@dataclass(frozen=True)
class Toolchain:
    """The compiler for an architecture: CROSS_COMPILE prefix, first line of ``--version``, whether ccache is used."""

    prefix: str
    version: str
    ccache: bool

    @property
    def compiler(self) -> str:
        """The value of CC."""
        return f"{'ccache ' if self.ccache else ''}{self.prefix}gcc"


@dataclass(frozen=True)
class Made:
    """A make that went well: ``seconds`` it took, ``files`` of the kernel it compiled, its log."""

    seconds: float
    files: int
    log: Path | None
    output: str = ""


def toolchain(context: Context, arch: Arch) -> Toolchain:
    """The toolchain for ``arch`` here. Raises EnvironmentFailure naming the package of a missing compiler."""
    prefix = arch.toolchain_prefix(context.host_machine)
    package = arch.packages.get("cross-compiler" if prefix else "compiler", "gcc")
    path = proc.require_tool(f"{prefix}gcc", package=package, why=f"compiles for {arch.name}")
    version = proc.run([path, "--version"], timeout=60, check=True, env={"LC_ALL": "C"}).output
    return Toolchain(prefix, version.partition("\n")[0].strip(), shutil.which("ccache") is not None)


def environment(context: Context, tree: Path, out: Path) -> dict[str, str]:
    """What a build adds to the environment: a compiler cache that all trees and output directories share."""
    added = {
        "LC_ALL": "C",
        "CCACHE_DIR": str(context.cache / "ccache"),
        "CCACHE_MAXSIZE": context.settings.text("ccache_size"),
        "CCACHE_NOHASHDIR": "1",
        "CCACHE_COMPILERCHECK": "content",
        **_FIXED,
    }
    base = os.path.commonpath([tree.resolve(), out.resolve()])
    if base != "/":
        added["CCACHE_BASEDIR"] = base
    return added


def without_lines() -> dict[str, str]:
    """Environment for builds without debug information, in which ccache does not care about line numbers.

    A patch to a header that everything includes mostly moves lines, and what follows the moved lines would be compiled
    again. Needs no direct mode: that compares the headers themselves.
    """
    return {"CCACHE_NODIRECT": "1", "CCACHE_PREFIX_CPP": str(Path(__file__).with_name("cpp-without-lines"))}


def command(
    context: Context,
    arch: Arch,
    tree: Path,
    out: Path,
    targets: Sequence[str],
    *,
    tools: Toolchain,
    variables: Mapping[str, str] | None = None,
) -> list[str]:
    """The make command line for ``targets``; ``variables`` go on it as well.

    Raises UsageError for a path that the kernel's build system cannot stand.
    """
    for path in (tree, out):
        if any(c in str(path.resolve()) for c in " \t:"):
            raise UsageError(
                f"the kernel cannot be built below {path}: spaces and colons in paths break its Makefiles",
                hint="point HARNESS_CACHE_DIR at another directory",
            )
    given = {
        "O": str(out.resolve()),
        "ARCH": arch.kernel_arch,
        "CROSS_COMPILE": tools.prefix,
        "CC": tools.compiler,
        "HOSTCC": "ccache gcc" if tools.ccache else "gcc",
        # ccache turns absolute paths into relative ones, which would end up in __FILE__ and with it in every warning.
        "KCPPFLAGS": f"-fmacro-prefix-map={os.path.relpath(tree.resolve(), out.resolve())}/=",
        # Given and empty: the version does not depend on whether the tree is a git checkout.
        "LOCALVERSION": "",
        **(variables or {}),
    }
    return [
        "make",
        "-C",
        str(tree.resolve()),
        f"-j{context.jobs}",
        "--no-print-directory",
        "--output-sync=target",
        *(f"{name}={value}" for name, value in given.items()),
        *targets,
    ]


def pasteable(argv: Sequence[str], env: Mapping[str, str]) -> str:
    """The command with its environment, for --dry-run and for the head of a log."""
    return proc.quoted(["env", *(f"{name}={value}" for name, value in env.items()), *argv])


def make(
    context: Context,
    arch: Arch,
    tree: Path,
    out: Path,
    targets: Sequence[str],
    log: Path,
    *,
    what: str,
    tools: Toolchain | None = None,
    variables: Mapping[str, str] | None = None,
    env: Mapping[str, str] | None = None,
    append: bool = False,
    timeout: float | None = None,
    watch: Callable[[int, float], None] | None = None,
    argv: Sequence[str] | None = None,
) -> Made:
    """Run the kernel's Makefile in ``tree`` with the output directory ``out``, everything it says going into ``log``.

    ``what`` names the job in messages. ``watch(files, seconds)`` is called as files are compiled, and at least every
    second. ``timeout`` is in seconds (default: the setting build_timeout). ``argv`` replaces the command line.
    Raises BuildError with the first error's lines, EnvironmentFailure for a full disk, lack of memory or a missing
    program, StageTimeout past the deadline. In every case, Ctrl-C included, make and all it started have ended.
    """
    tools = tools or toolchain(context, arch)
    argv = list(argv or command(context, arch, tree, out, targets, tools=tools, variables=variables))
    added = {**environment(context, tree, out), **(env or {})}
    deadline = timeout if timeout is not None else context.settings.seconds("build_timeout")
    with fs.disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        log.parent.mkdir(parents=True, exist_ok=True)
        status, seconds, files = _run(argv, added, log, append, deadline, watch, what)
    if status != 0:
        roots = [str(tree.resolve()), str(out.resolve()), os.path.relpath(tree.resolve(), out.resolve())]
        raise failed(log, what, roots, status)
    return Made(seconds, files, log)


def _run(
    argv: Sequence[str],
    added: Mapping[str, str],
    log: Path,
    append: bool,
    timeout: float,
    watch: Callable[[int, float], None] | None,
    what: str,
) -> tuple[int, float, int]:
    """Run ``argv``, copying its output to ``log`` and counting compiled files: exit status, seconds, files."""
    full = {name: value for name, value in os.environ.items() if name not in _UNWANTED} | dict(added)
    started = time.monotonic()
    files = 0
    partial = b""
    with log.open("ab" if append else "wb") as sink, selectors.DefaultSelector() as selector:
        sink.write(f"# {pasteable(argv, added)}\n".encode())
        sink.flush()
        try:
            process = subprocess.Popen(
                list(argv),
                env=full,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )
        except OSError as exc:
            raise proc.not_started(argv, exc) from exc
        assert process.stdout is not None
        try:
            selector.register(process.stdout, selectors.EVENT_READ)
            while True:
                elapsed = time.monotonic() - started
                if elapsed >= timeout:
                    raise StageTimeout(f"{what}: make did not finish within {timeout:g} s", hint=f"see {log}")
                if selector.select(min(1.0, timeout - elapsed)):
                    chunk = os.read(process.stdout.fileno(), 1 << 16)
                    if not chunk:
                        break
                    sink.write(chunk)
                    sink.flush()
                    *whole, partial = (partial + chunk).split(b"\n")
                    files += sum(compiled(line.decode(errors="replace")) for line in whole)
                if watch:
                    watch(files, time.monotonic() - started)
            status = process.wait(timeout=max(1.0, timeout - (time.monotonic() - started)))
        except subprocess.TimeoutExpired:
            proc.end_group(process)
            raise StageTimeout(f"{what}: make did not finish within {timeout:g} s", hint=f"see {log}") from None
        except BaseException:
            proc.end_group(process)
            raise
        finally:
            process.stdout.close()
    return status, time.monotonic() - started, files


def failed(log: Path, what: str, roots: Sequence[str], status: int) -> HarnessError:
    """The error to raise for a make that ended with ``status``, from what it logged."""
    failure = first_failure(log.read_text(errors="replace"), roots)
    hint = f"the full log is {log}"
    if failure is None:
        return BuildError(f"{what}: make failed with status {status}", hint=hint)
    detail = "\n".join(failure.lines)
    if failure.kind == "disk":
        return EnvironmentFailure(
            f"{what}: no space left on the disk that holds the build",
            detail=detail,
            hint="free some space (`harness clean` removes old builds), then run the same command: it continues",
        )
    if failure.kind == "memory":
        return EnvironmentFailure(f"{what}: {failure.summary}", detail=detail, hint="build with fewer jobs: --jobs 1")
    if failure.kind == "tool":
        return EnvironmentFailure(f"{what}: {failure.summary}", detail=detail, hint="run `harness doctor`")
    more = f" (and {failure.errors - 1} more)" if failure.errors > 1 else ""
    return BuildError(f"{what}: {failure.summary}{more}", detail=detail, hint=hint)


def kbuild_environment(context: Context, arch: Arch, tree: Path, out: Path, tools: Toolchain) -> dict[str, str]:
    """The environment that the kernel's Makefile gives Kconfig, asked of the Makefile itself; empty if it will not say.

    A makefile named in MAKEFILES is read before the kernel's; its target ends in ``config`` because such targets need
    no .config.
    """
    extra = context.cache / "environment.mk"
    fs.write_if_changed(extra, "harness-environment-config: ; @env -0\n")
    argv = command(context, arch, tree, out, ["-s", "harness-environment-config"], tools=tools)
    env = {**environment(context, tree, out), "MAKEFILES": str(extra)}
    try:
        done = proc.run(argv, timeout=60, env=env, unset=_UNWANTED)
    except HarnessError:
        return {}
    if done.status != 0:
        return {}
    entries = done.output.split("\0")
    return dict(entry.split("=", 1) for entry in entries if "=" in entry and not entry.startswith("="))
