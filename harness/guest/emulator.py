"""The QEMU that a machine needs: the one installed, or a later one unpacked into the cache; qemu/emulator.yaml."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from harness import data, fs, proc
from harness.context import Context
from harness.data import Arch, Machine
from harness.errors import EnvironmentFailure
from harness.guest.accel import qemu_version
from harness.guest.machine import find_qemu

SPACE_MIB = 400
RECIPE = 1  # changes when this module builds another tree from the same data


@dataclass(frozen=True)
class Packages:
    """See qemu/emulator.yaml."""

    suite: str
    packages: tuple[str, ...]
    data: tuple[str, ...]
    library_suite: str
    libraries: tuple[str, ...]


@dataclass(frozen=True)
class Emulator:
    """A QEMU: the program, arguments that go before all others, additions to its environment, its version."""

    program: str
    version: str
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


def at_least(version: str, minimum: str) -> bool:
    """Pure: whether a version is no older than another; one that nobody knows is."""

    def numbers(text: str) -> list[int]:
        return [int(number) for number in re.findall(r"\d+", text.partition("+")[0])]

    return bool(version) and numbers(version) >= numbers(minimum)


def missing_libraries(said: str) -> list[str]:
    """Pure: the libraries that ``ldd`` did not find, sorted."""
    return sorted(set(re.findall(r"^\s*(\S+) => not found", said, re.MULTILINE)))


def ensure(context: Context, arch: Arch, machine: Machine) -> Emulator:
    """The QEMU for ``machine``. Raises EnvironmentFailure when it cannot be had, or does not run here."""
    if not machine.minimum:
        program = find_qemu(machine, arch)
        return Emulator(program, qemu_version(program))
    installed = shutil.which(machine.qemu)
    if installed and at_least(version := qemu_version(installed), machine.minimum):
        return Emulator(installed, version)
    spec_path = context.qemu / "emulator.yaml"
    spec = data.load(spec_path, Packages)
    root = context.cache / "emulator"
    key = hashlib.sha256(str(RECIPE).encode() + spec_path.read_bytes()).hexdigest()
    with fs.disk_errors(root.parent):
        root.parent.mkdir(parents=True, exist_ok=True)
    with fs.lock(root.with_name(".emulator.lock"), "the private QEMU", wait_seconds=600):
        if not fs.is_whole(root, key):
            fs.require_space(root.parent, SPACE_MIB, "a private QEMU")
            context.report.step(f"getting a QEMU of at least {machine.minimum} from {spec.suite} (once)")
            with fs.whole_directory(root, key) as new:
                _fill(context, spec, new)
    found = _at(root, spec, machine)
    if not at_least(found.version, machine.minimum):
        raise EnvironmentFailure(
            f"{found.program} does not run, or is older than {machine.minimum}",
            detail=proc.run([found.program, "--version"], timeout=20, env=dict(found.environment)).errors.strip(),
            hint=f"install a QEMU of at least {machine.minimum}, or mend `libraries` in {spec_path}",
        )
    return found


def _at(root: Path, spec: Packages, machine: Machine) -> Emulator:
    program = str(root / "usr/bin" / machine.qemu)
    folders = sorted(str(path) for path in (root / "usr/lib").glob("*-linux-gnu*"))
    environment = {"LD_LIBRARY_PATH": ":".join(folders)} if (root / "libraries").exists() else {}
    words = tuple(word for name in spec.data for word in ("-L", str(root / name)))
    said = proc.run([program, "--version"], timeout=20, env=environment).output
    match = re.search(r"version (\S+)", said)
    return Emulator(program, match[1] if match else "", words, environment)


def _fill(context: Context, spec: Packages, root: Path) -> None:
    from harness.source.apt import PrivateApt

    seconds = context.settings.seconds("fetch_timeout")
    apt = PrivateApt(context.cache / "apt" / "emulator", context.report, timeout=seconds)
    apt.extract(apt.download(spec.packages, context.downloads / "debs-emulator", spec.suite), root)
    programs = [str(path) for path in sorted((root / "usr/bin").glob("qemu-system-*")) if not path.is_symlink()]
    said = proc.run(["ldd", *programs], timeout=seconds).output
    if lacking := missing_libraries(said):
        context.report.step(f"and its libraries, as this machine lacks {', '.join(lacking)}")
        place = context.downloads / "debs-emulator-libraries"
        apt.extract(apt.download(spec.libraries, place, spec.library_suite), root)
        _gather(root)
        (root / "libraries").write_text("".join(f"{name}\n" for name in lacking))


def _gather(root: Path) -> None:
    """Libraries that packages still have in /lib go to where the others are."""
    for folder in sorted((root / "lib").glob("*-linux-gnu*")):
        shutil.copytree(folder, root / "usr/lib" / folder.name, symlinks=True, dirs_exist_ok=True)
