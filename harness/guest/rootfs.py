"""User lands for guests, from the distribution's packages; qemu/rootfs.yaml says which.

qemu/rootfs-NAME.yaml is what a tree for a purpose of its own has on top.
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from harness import data, fs
from harness.context import Context
from harness.data import Arch
from harness.errors import EnvironmentFailure
from harness.guest.elf import needed

SPACE_MIB = 300
ADDITION_SPACE_MIB = 700
RECIPE = 1  # changes when this module builds another tree from the same data


@dataclass(frozen=True)
class Rootfs:
    """See qemu/rootfs.yaml."""

    suite: str
    packages: tuple[str, ...]
    needs: tuple[str, ...]
    applets: tuple[str, ...]
    files: dict[str, str]
    directories: tuple[str, ...]


@dataclass(frozen=True)
class Addition:
    """What a tree for a purpose of its own has on top of a :class:`Rootfs`."""

    packages: tuple[str, ...]
    needs: tuple[str, ...]


def path_of(context: Context, arch: Arch, addition: str = "") -> Path:
    """Where the tree of ``arch`` is, or will be."""
    return context.cache / "rootfs" / "-".join(filter(None, (arch.name, addition)))


def ensure(context: Context, arch: Arch, addition: str = "") -> Path:
    """The tree, made when it is not there or its data changed: beside its place, moved there when it is whole.

    ``addition`` names a qemu/rootfs-NAME.yaml. Raises EnvironmentFailure when a package cannot be had, a library is
    missing or the disk is full.
    """
    spec_path = context.qemu / "rootfs.yaml"
    spec = data.load(spec_path, Rootfs)
    raw = spec_path.read_bytes()
    if addition:
        more_path = context.qemu / f"rootfs-{addition}.yaml"
        more = data.load(more_path, Addition)
        spec = replace(spec, packages=(*spec.packages, *more.packages), needs=(*spec.needs, *more.needs))
        raw += more_path.read_bytes()
    root = path_of(context, arch, addition)
    key = hashlib.sha256(f"{RECIPE}{arch.debian_arch}".encode() + raw).hexdigest()
    if fs.is_whole(root, key):
        return root
    base = root.parent
    with fs.disk_errors(base):
        base.mkdir(parents=True, exist_ok=True)
    with fs.lock(base / f".{root.name}.lock", f"the user land of {root.name}", wait_seconds=600):
        if fs.is_whole(root, key):
            return root
        fs.require_space(base, ADDITION_SPACE_MIB if addition else SPACE_MIB, f"the user land of {root.name}")
        context.report.step(f"{root.name}: making a user land for the guest from {spec.suite}'s packages (once)")
        with fs.whole_directory(root, key) as new:
            _fill(context, arch, spec, new)
    return root


def _fill(context: Context, arch: Arch, spec: Rootfs, root: Path) -> None:
    from harness.source.apt import PrivateApt

    seconds = context.settings.seconds("fetch_timeout")
    apt = PrivateApt(context.cache / f"apt-{arch.debian_arch}", context.report, timeout=seconds, arch=arch.debian_arch)
    debs = apt.download([*spec.packages, *spec.needs], context.downloads / f"debs-{arch.debian_arch}", spec.suite)
    apt.extract(debs, root)
    with fs.disk_errors(root):
        merge_usr(root)
        shutil.rmtree(root / "usr/share", ignore_errors=True)  # manuals and translations: most of the size
        for name in spec.directories:
            (root / name).mkdir(parents=True, exist_ok=True)
        (root / "tmp").chmod(0o1777)
        for name, text in spec.files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        for name in spec.applets:
            if not any((root / place / name).exists() for place in ("usr/bin", "usr/sbin")):
                (root / "usr/bin" / name).symlink_to("busybox")
        # The same links that update-alternatives would make, as its scripts have not run.
        awk = root / "usr/bin/awk"
        if not awk.exists() and (root / "usr/bin/mawk").exists():
            awk.symlink_to("mawk")
        shim = (context.qemu / "udev-shim.sh").read_text()
        for place in ("usr/sbin/udevd", "usr/bin/udevadm"):
            (root / place).write_text(shim)
            (root / place).chmod(0o755)
    lacking = missing_libraries(root)
    if lacking:
        raise EnvironmentFailure(
            f"the user land of {arch.name} would lack {', '.join(lacking)}",
            hint="add the package that has it to `needs` in qemu/rootfs.yaml or the file on top of it",
        )


def merge_usr(root: Path) -> None:
    """/bin, /sbin and /lib become links into /usr, as on every installed system; files of both are kept."""
    for name in ("bin", "sbin", "lib"):
        old, new = root / name, root / "usr" / name
        new.mkdir(parents=True, exist_ok=True)
        if old.is_dir() and not old.is_symlink():
            shutil.copytree(old, new, symlinks=True, dirs_exist_ok=True)
            shutil.rmtree(old)
        if not old.is_symlink():
            old.symlink_to(f"usr/{name}")


def missing_libraries(root: Path) -> list[str]:
    """The libraries that programs below ``root`` name and that are not there, sorted."""
    have = {path.name for path in (root / "usr/lib").rglob("*.so*")}
    wanted: set[str] = set()
    for place in ("usr/bin", "usr/sbin", "usr/lib"):
        for path in (root / place).rglob("*"):
            if path.is_file() and not path.is_symlink():
                wanted.update(needed(path))
    return sorted(wanted - have)
