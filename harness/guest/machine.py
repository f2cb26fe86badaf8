"""A machine of qemu/machines as a QEMU command line, and the kernel command line that every guest gets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness import proc
from harness.data import Arch, Machine

# Whatever the machine: a panic ends the guest at once (with -no-reboot QEMU exits), an oops is a panic once it is
# printed, every record of user space reaches the console, and KUnit suites run at boot.
GUEST_CMDLINE = (
    "panic=-1",
    "oops=panic",
    "printk.devkmsg=on",
    "printk.time=1",
    "ignore_loglevel",
    "log_buf_len=4M",
    "kunit.autorun=1",
    "kunit.stats_enabled=2",
)


def cmdline(machine: Machine, nonce: str = "", extra: Sequence[str] = ()) -> str:
    """The kernel command line; ``nonce`` is what the guest's end marker must carry."""
    words = [f"console={machine.console}", *machine.cmdline.split(), *GUEST_CMDLINE]
    if nonce:
        words.append(f"harness.nonce={nonce}")
    return " ".join([*words, *extra])


def argv(
    machine: Machine,
    *,
    kernel: Path,
    initrd: Path | None,
    cmdline: str,
    accel: str = "tcg",
    qemu: str = "",
    interactive: bool = False,
    serial: Path | None = None,
    extra: Sequence[str] = (),
) -> list[str]:
    """The QEMU command line: console on stdio, nothing else open, exit in place of a reset.

    ``interactive`` gives the guest the terminal, with QEMU's own escape (Ctrl-A X) to leave it. ``serial`` is a file
    that takes the console instead: it is never too slow for the guest, which a reader of stdio can be.
    """
    kvm = accel == "kvm"
    console = "stdio,id=console,mux=on,signal=off" if interactive else "stdio,id=console,signal=off"
    if serial is not None:
        console = f"file,id=console,path={str(serial).replace(',', ',,')}"
    tcg = f"tcg,{machine.tcg}" if machine.tcg else "tcg"
    words = [
        qemu or machine.qemu,
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        *("-machine", machine.type),
        *("-accel", "kvm" if kvm else tcg),
        *("-cpu", machine.kvm_cpu if kvm else machine.cpu),
        *("-smp", machine.smp),
        *("-m", f"{machine.memory_mib}M"),
        *("-display", "none"),
        *("-monitor", "chardev:console" if interactive else "none"),
        *("-chardev", console),
        *("-serial", "chardev:console"),
        *machine.args,
        *("-kernel", str(kernel)),
    ]
    if interactive:
        # One monitor and one serial port share the multiplexer; -monitor none would take the escape away.
        at = words.index("-monitor")
        words[at : at + 2] = ["-mon", "chardev=console,mode=readline"]
    if initrd is not None:
        words += ["-initrd", str(initrd)]
    return [*words, "-append", cmdline, *extra]


def find_qemu(machine: Machine, arch: Arch) -> str:
    """The full path of the machine's QEMU. Raises EnvironmentFailure naming its package."""
    return proc.require_tool(machine.qemu, package=arch.packages["qemu"], why=f"to boot {arch.name} guests")
