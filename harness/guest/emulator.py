"""The QEMU that a machine needs: the one installed, or a later one unpacked into the cache; qemu/emulator.yaml."""

from __future__ import annotations

import hashlib
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from harness import data, fs, proc
from harness.context import Context
from harness.data import Arch, Machine
from harness.errors import EnvironmentFailure, HarnessError, StageTimeout
from harness.guest.accel import qemu_version
from harness.guest.machine import find_qemu

SPACE_MIB = 400
RECIPE = 2  # changes when this module builds another tree from the same data
# Why there is no later QEMU, by cache and version: a deadline that has passed is not waited for again by each boot.
_failed: dict[tuple[Path, str], HarnessError] = {}


@dataclass(frozen=True)
class Packages:
    """See qemu/emulator.yaml."""

    better: str
    suite: str
    packages: tuple[str, ...]
    data: tuple[str, ...]
    library_suite: str
    libraries: tuple[str, ...]


@dataclass(frozen=True)
class Emulator:
    """A QEMU: the program and its version."""

    program: str
    version: str


def at_least(version: str, minimum: str) -> bool:
    """Pure: whether a version is no older than another; one that nobody knows is."""

    def numbers(text: str) -> list[int]:
        return [int(number) for number in re.findall(r"\d+", text.partition("+")[0])]

    return bool(version) and numbers(version) >= numbers(minimum)


def missing_libraries(said: str) -> list[str]:
    """Pure: the libraries that ``ldd`` did not find, sorted."""
    return sorted(set(re.findall(r"^\s*(\S+) => not found", said, re.MULTILINE)))


def ensure(context: Context, arch: Arch, machine: Machine) -> Emulator:
    """The QEMU for ``machine``.

    Raises EnvironmentFailure or StageTimeout when there is none, or none as late as the machine's ``minimum``. One that
    is only older than qemu/emulator.yaml's ``better`` is used, with a warning, where no later one can be had.
    """
    spec_path = context.qemu / "emulator.yaml"
    spec = data.load(spec_path, Packages)
    wanted = machine.minimum or spec.better
    installed = (shutil.which(machine.qemu) or "") if machine.minimum else find_qemu(machine, arch)
    version = qemu_version(installed) if installed else ""
    if installed and at_least(version, wanted):
        return Emulator(installed, version)
    failed = (context.cache, wanted)
    told = failed in _failed
    try:
        if told:
            raise _failed[failed]
        return _private(context, spec, spec_path, machine, wanted)
    except (EnvironmentFailure, StageTimeout) as error:
        _failed[failed] = error
        if machine.minimum:
            raise
        if told:
            return Emulator(installed, version)
        older = f"using QEMU {version}, which is older than {wanted}"
        what = older if version else f"using a QEMU that does not say whether it is at least {wanted}"
        context.report.warn(f"{what} and may crash guests: {error}")
        return Emulator(installed, version)


def _private(context: Context, spec: Packages, spec_path: Path, machine: Machine, wanted: str) -> Emulator:
    """The QEMU of the packages, unpacked into the cache if it is not there yet."""
    root = context.cache / "emulator"
    key = hashlib.sha256(str(RECIPE).encode() + spec_path.read_bytes()).hexdigest()
    with fs.disk_errors(root.parent):
        root.parent.mkdir(parents=True, exist_ok=True)
    with fs.lock(root.with_name(".emulator.lock"), "the private QEMU", wait_seconds=600):
        if not fs.is_whole(root, key):
            fs.require_space(root.parent, SPACE_MIB, "a private QEMU")
            context.report.step(f"getting a QEMU of at least {wanted} from {spec.suite} (once)")
            with fs.whole_directory(root, key) as new:
                _fill(context, spec, new)
    program = str(root / "bin" / machine.qemu)
    version = qemu_version(program)
    if not at_least(version, wanted):
        raise EnvironmentFailure(
            f"{program} does not run, or is older than {wanted}",
            detail=proc.run([program, "--version"], timeout=20).errors.strip(),
            hint=f"install a QEMU of at least {wanted}, or mend `libraries` in {spec_path}",
        )
    return Emulator(program, version)


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
    for path in programs:
        _wrap(root, Path(path).name, spec, own_libraries=bool(lacking))


def _gather(root: Path) -> None:
    """Libraries that packages still have in /lib go to where the others are."""
    for folder in sorted((root / "lib").glob("*-linux-gnu*")):
        shutil.copytree(folder, root / "usr/lib" / folder.name, symlinks=True, dirs_exist_ok=True)


def _wrap(root: Path, name: str, spec: Packages, *, own_libraries: bool) -> None:
    """A script that starts the program with its firmware, and libraries, from where it was unpacked to."""
    words = " ".join(f'-L "$root/{place}"' for place in spec.data)
    folders = ":".join(f"$root/usr/lib/{path.name}" for path in sorted((root / "usr/lib").glob("*-linux-gnu*")))
    setting = f'LD_LIBRARY_PATH="{folders}" ' if own_libraries else ""
    script = f'#!/bin/sh\nroot=$(dirname "$(dirname "$0")")\n{setting}exec "$root/usr/bin/{name}" {words} "$@"\n'
    path = root / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(script)
    path.chmod(0o755)
