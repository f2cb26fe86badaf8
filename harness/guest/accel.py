"""Which accelerator a guest gets: KVM when a guest has run to its end in it; that /dev/kvm opens proves nothing."""

from __future__ import annotations

import json
import os
import platform
import re
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from harness import proc
from harness.context import Context
from harness.data import Arch, Machine
from harness.errors import HarnessError, UsageError
from harness.fs import write_json
from harness.guest import console, init, log
from harness.guest import machine as machines

PROBE = console.Deadlines(boot=10.0, silence=10.0, total=12.0)
KVM = Path("/dev/kvm")
_NONCE = "probe"
# What failed in a way that another image might not: it holds for this process. By the file and key of the record.
_doubtful: dict[tuple[Path, str], Accel] = {}


@dataclass(frozen=True)
class Accel:
    """``name`` is kvm or tcg; ``reason`` says why, for the record."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})"


def qemu_version(qemu: str) -> str:
    """The version of a QEMU binary, e.g. ``7.2.22``; empty when it says nothing of the kind."""
    try:
        said = proc.run([qemu, "--version"], timeout=20).output
    except HarnessError:
        return ""
    match = re.search(r"version (\S+)", said)
    return match[1] if match else ""


def choose(context: Context, arch: Arch, machine: Machine, qemu: str, image: Path) -> Accel:
    """The accelerator for ``arch``, as the setting ``accel`` asks; ``auto`` probes KVM by booting ``image`` in it.

    The probe takes at most 12 s and its outcome is kept in the cache, by host kernel, QEMU and architecture; that of a
    kernel which started and failed is not, as it may be the kernel's fault. Raises UsageError when KVM is demanded for
    another machine's architecture.
    """
    wanted = context.settings.text("accel")
    if "-icount" in machine.args:
        return Accel("tcg", "it counts instructions")
    native = context.host_machine in arch.native_machines
    if wanted == "tcg":
        return Accel("tcg", "as asked")
    if wanted == "kvm":
        if not native:
            raise UsageError(
                f"KVM cannot run {arch.name} guests on {context.host_machine}",
                hint="leave --accel out: it becomes tcg where KVM cannot be",
            )
        return Accel("kvm", "as asked")
    if not native:
        return Accel("tcg", f"{arch.name} guest on {context.host_machine}")
    if not KVM.exists():
        return Accel("tcg", f"no {KVM}")
    if not os.access(KVM, os.R_OK | os.W_OK):
        return Accel("tcg", f"no permission for {KVM}")
    key = f"{platform.release()} | QEMU {qemu_version(qemu)} | {arch.name}"
    record = context.cache / "accel.json"
    known = _read(record)
    if key in known:
        return known[key]
    if (record, key) in _doubtful:
        return _doubtful[record, key]
    context.report.step(f"{arch.name}: trying KVM (once for this host and QEMU, at most {PROBE.total:g} s)")
    found, certain = probe(context, arch, machine, qemu, image)
    context.report.step(f"{arch.name}: accelerator {found}")
    if not certain:
        _doubtful[record, key] = found
        return found
    write_json(record, {name: asdict(accel) for name, accel in {**_read(record), key: found}.items()})
    return found


def _read(record: Path) -> dict[str, Accel]:
    try:
        return {key: Accel(**value) for key, value in json.loads(record.read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}  # a cache that cannot be read is an empty one


def probe(context: Context, arch: Arch, machine: Machine, qemu: str, image: Path) -> tuple[Accel, bool]:
    """Boot ``image`` with an init that does nothing, in KVM, and see whether it comes to its end.

    Also says whether that holds for any image: no kernel that never said a word has got as far as a fault of its own.
    """
    with tempfile.TemporaryDirectory(prefix="harness-accel-") as name:
        directory = Path(name)
        initrd = init.make_initramfs(context, arch, [], directory / "initramfs.cpio.gz")
        argv = machines.argv(
            machine,
            kernel=image,
            initrd=initrd,
            cmdline=machines.cmdline(machine, _NONCE, ["kunit.enable=0"]),
            accel="kvm",
            qemu=qemu,
        )
        result = console.run(argv, directory / "console.log", PROBE, nonce=_NONCE)
        text = log.load(result.log)
    lines = log.read(text)
    if any(line.marker == "done" and line.nonce == _NONCE for line in lines):
        return Accel("kvm", f"a guest booted in it in {result.seconds:.1f} s"), True
    certain = not result.guest_spoke
    if result.ending.status is not None:
        words = [line.message for line in lines if line.message.strip()]
        why = words[-1][:150] if words else f"QEMU ended with {result.ending.status}"
        return Accel("tcg", f"KVM failed: {why}"), certain
    what = f"last said: {lines[-1].message[:80]}" if lines else "silent"
    return Accel("tcg", f"{KVM} opens, but a guest did not come to its end in {PROBE.total:g} s ({what})"), certain
