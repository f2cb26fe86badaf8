"""The programs, headers and libraries that stages need: data in configs/tools.yaml, probes here.

Used by ``harness doctor`` for all of them and by a stage, before it starts, for its own. Imports nothing outside the
standard library but PyYAML, since it runs where little else is installed yet.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import data
from harness.context import Context
from harness.errors import EnvironmentFailure, UsageError

PROBES = ("command", "run", "header", "static", "python")


@dataclass(frozen=True)
class Tool:
    """One entry of configs/tools.yaml. Exactly one of the probes is given:

    ``command``  a program on PATH;
    ``run``      a command line that must end with status 0;
    ``header``   a header that the host's compiler must find;
    ``static``   a compiler that must link a static program;
    ``python``   a distribution package of this Python environment.

    ``package`` is what Debian calls it. ``stages`` are the verbs that need it. With ``per_arch`` the entry counts once
    for every architecture, and {prefix}, {compiler}, {binutils}, {libc}, {qemu} and {qemu_package} stand for what
    configs/arch and qemu/machines say. ``optional``: worth having, nothing fails without. ``minimum`` is compared with
    the first version number that ``version`` (arguments, default --version) prints.
    """

    name: str
    why: str
    stages: tuple[str, ...]
    package: str = ""
    command: str = ""
    run: tuple[str, ...] = ()
    header: str = ""
    static: str = ""
    python: str = ""
    per_arch: bool = False
    optional: bool = False
    minimum: str = ""
    version: tuple[str, ...] = ("--version",)

    @property
    def probe(self) -> str:
        """Which probe the entry gives."""
        return next(name for name in PROBES if getattr(self, name))


@dataclass(frozen=True)
class Catalogue:
    """The whole of configs/tools.yaml."""

    tools: tuple[Tool, ...]


@dataclass(frozen=True)
class Verdict:
    """What a probe found. ``arch`` is empty for what all architectures share; ``found`` a path, a version or nothing;
    ``problem`` is empty when all is well."""

    tool: Tool
    name: str
    package: str
    arch: str = ""
    found: str = ""
    version: str = ""
    problem: str = ""

    @property
    def ok(self) -> bool:
        """Whether the tool is there and new enough."""
        return not self.problem


def catalogue(context: Context) -> tuple[Tool, ...]:
    """The entries of configs/tools.yaml. Raises UsageError for a broken one."""
    path = context.configs / "tools.yaml"
    tools = data.load(path, Catalogue).tools
    for tool in tools:
        given = [name for name in PROBES if getattr(tool, name)]
        if len(given) != 1:
            raise UsageError(f"{path}: {tool.name}: exactly one of {', '.join(PROBES)} is needed, not {len(given)}")
        if not tool.package and tool.probe != "python":
            raise UsageError(f"{path}: {tool.name}: the field 'package' is missing")
    return tools


def placeholders(context: Context, arch: data.Arch) -> dict[str, str]:
    """What the {names} of a per-architecture entry stand for on this host."""
    prefix = arch.toolchain_prefix(context.host_machine)
    cross = "cross-" if prefix else ""
    machine = context.machine(arch.machine)
    return {
        "prefix": prefix,
        "compiler": arch.packages.get(f"{cross}compiler", ""),
        "binutils": arch.packages.get(f"{cross}binutils", "binutils"),
        "libc": arch.packages.get(f"{cross}libc", "libc6-dev"),
        "qemu": machine.qemu,
        "qemu_package": arch.packages.get("qemu", ""),
    }


def survey(
    context: Context, archs: Sequence[data.Arch], *, stages: Iterable[str] = (), versions: bool = False
) -> list[Verdict]:
    """A verdict for every entry (of ``stages``, if given) and, where it counts per architecture, for each of ``archs``.

    With ``versions`` the programs are asked for their version also where no minimum is set.
    """
    asked = set(stages)
    verdicts: dict[tuple[str, str], Verdict] = {}
    for tool in catalogue(context):
        if asked and not asked & set(tool.stages):
            continue
        for arch in archs if tool.per_arch else (None,):
            names = placeholders(context, arch) if arch else {}
            verdict = _probe(tool, names, arch.name if arch else "", versions)
            # A native compiler is both the host's and the architecture's: it is named once.
            verdicts.setdefault((verdict.name, verdict.package), verdict)
    return list(verdicts.values())


def require(context: Context, archs: Sequence[data.Arch], *stages: str) -> None:
    """Raise EnvironmentFailure naming everything that ``stages`` need and is missing; warn of what is optional."""
    verdicts = survey(context, archs, stages=stages)
    for verdict in verdicts:
        if not verdict.ok and verdict.tool.optional:
            context.report.warn(f"{verdict.problem}: {verdict.tool.why} ({_how(verdict)})")
    missing = [v for v in verdicts if not v.ok and not v.tool.optional]
    if not missing:
        return
    first = missing[0]
    more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
    raise EnvironmentFailure(
        f"{first.problem}: {first.tool.why}{more}",
        detail="\n".join(f"  {v.problem}: {v.tool.why} ({_how(v)})" for v in missing) if len(missing) > 1 else "",
        hint=install_command(missing) or "./bootstrap harness doctor",
    )


def _how(verdict: Verdict) -> str:
    return f"package {verdict.package}" if verdict.package else "./bootstrap installs it"


def packages(verdicts: Iterable[Verdict]) -> list[str]:
    """The Debian packages of what is missing, sorted, each once."""
    return sorted({v.package for v in verdicts if not v.ok and v.package})


def install_command(verdicts: Iterable[Verdict]) -> str:
    """The one command that installs what is missing; empty if no package would help."""
    names = packages(verdicts)
    if not names:
        return ""
    sudo = "" if os.geteuid() == 0 else "sudo "
    return f"{sudo}apt-get install {' '.join(names)}"


def _probe(tool: Tool, names: dict[str, str], arch: str, versions: bool) -> Verdict:
    def fill(text: str) -> str:
        try:
            return text.format_map(names) if names else text
        except (LookupError, ValueError, AttributeError):
            raise UsageError(
                f"configs/tools.yaml: {tool.name}: {text!r} has a name in braces that stands for nothing",
                hint=f"known: {', '.join(f'{{{name}}}' for name in names)}",
            ) from None

    base = Verdict(tool=tool, name=fill(tool.name), package=fill(tool.package), arch=arch)

    def verdict(found: str = "", problem: str = "", version: str = "") -> Verdict:
        return Verdict(tool, base.name, base.package, arch, found, version, problem)

    if tool.probe == "python":
        try:
            version = importlib.metadata.version(tool.python)
        except importlib.metadata.PackageNotFoundError:
            return verdict(problem=f"the Python package {tool.python} is not installed")
        return verdict(found=version, version=version)
    if tool.probe == "run":
        status, _ = _output([fill(word) for word in tool.run])
        return verdict(found="works") if status == 0 else verdict(problem=f"{base.name} does not work")
    if tool.probe == "header":
        return (
            verdict(found=f"<{tool.header}>")
            if _compiles("gcc", f"#include <{tool.header}>\n", ["-fsyntax-only"])
            else verdict(problem=f"the header {tool.header} is missing")
        )
    if tool.probe == "static":
        return (
            verdict(found="links")
            if _compiles(fill(tool.static), '#include <stdio.h>\nint main(void) { return puts(""); }\n', ["-static"])
            else verdict(problem=f"{fill(tool.static)} cannot link a static program")
        )
    program = fill(tool.command)
    path = shutil.which(program)
    if path is None:
        return verdict(problem=f"{program} is not installed")
    version = ""
    if tool.minimum or versions:
        version = _version([path, *tool.version])
        if tool.minimum and version and _numbers(version) < _numbers(tool.minimum):
            return verdict(found=path, version=version, problem=f"{program} {version} is older than {tool.minimum}")
    return verdict(found=path, version=version)


def _output(argv: Sequence[str]) -> tuple[int, str]:
    """Exit status and output of a quick program; 127 when it cannot be started or takes over 20 s."""
    try:
        done = subprocess.run(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=20,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return 127, ""
    return done.returncode, done.stdout.decode(errors="replace")


def _version(argv: Sequence[str]) -> str:
    match = re.search(r"\d+(?:\.\d+)+", _output(argv)[1])
    return match[0] if match else ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _compiles(compiler: str, source: str, flags: Sequence[str]) -> bool:
    if shutil.which(compiler) is None:
        return False
    with tempfile.TemporaryDirectory(prefix="harness-probe-") as directory:
        file = Path(directory, "probe.c")
        file.write_text(source)
        return _output([compiler, *flags, "-o", str(file.with_suffix("")), str(file)])[0] == 0
