"""Machines become QEMU command lines: pure, quoted for reproduce.sh, the same for both architectures but for data."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest

from harness import data
from harness.data import Machine
from harness.errors import EnvironmentFailure
from harness.guest import machine as machines
from harness.guest.runner import write_reproducer

ROOT = Path(__file__).resolve().parent.parent
MACHINES = [data.by_name(ROOT / "qemu/machines", name, Machine, "machine") for name in ("x86_64", "arm64")]


def after(words: list[str], option: str) -> str:
    assert words.count(option) == 1, option
    return words[words.index(option) + 1]


def argv(machine: Machine, **options: object) -> list[str]:
    values: dict[str, object] = {"kernel": Path("K"), "initrd": Path("I"), "cmdline": "a b", **options}
    return machines.argv(machine, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize("machine", MACHINES, ids=lambda m: m.name)
def test_a_guest_that_ends_in_place_of_a_reset(machine: Machine) -> None:
    words = argv(machine)
    assert words[0] == machine.qemu
    assert "-no-reboot" in words
    assert (after(words, "-kernel"), after(words, "-initrd"), after(words, "-append")) == ("K", "I", "a b")
    assert after(words, "-accel") == "tcg,thread=multi"
    assert after(words, "-cpu") == machine.cpu
    assert after(words, "-display") == "none"
    assert after(words, "-monitor") == "none"
    assert after(words, "-serial") == "chardev:console"
    assert "signal=off" in after(words, "-chardev")
    assert after(words, "-smp") == machine.smp
    assert after(words, "-m") == f"{machine.memory_mib}M"


@pytest.mark.parametrize("machine", MACHINES, ids=lambda m: m.name)
def test_kvm_and_extras(machine: Machine) -> None:
    words = argv(machine, accel="kvm", qemu="/opt/qemu", extra=["-device", "x"], initrd=None)
    assert words[0] == "/opt/qemu"
    assert (after(words, "-accel"), after(words, "-cpu")) == ("kvm", machine.kvm_cpu)
    assert words[-2:] == ["-device", "x"]
    assert "-initrd" not in words


def test_an_interactive_guest_can_be_left() -> None:
    words = argv(MACHINES[0], interactive=True)
    assert "mux=on" in after(words, "-chardev")
    assert "chardev=console" in after(words, "-mon")
    assert "-monitor" not in words


@pytest.mark.parametrize("machine", MACHINES, ids=lambda m: m.name)
def test_kernel_command_line(machine: Machine) -> None:
    words = machines.cmdline(machine, "n0nce", ["nokaslr"]).split()
    assert words[0] == f"console={machine.console}"
    assert {"panic=-1", "oops=panic", "printk.devkmsg=on", "harness.nonce=n0nce", "nokaslr"} <= set(words)
    assert "harness.nonce" not in machines.cmdline(machine)
    assert len(machines.cmdline(machine, "n" * 16)) < 1024


def test_missing_qemu_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    arch = data.by_name(ROOT / "configs/arch", "arm64", data.Arch, "architecture")
    with pytest.raises(EnvironmentFailure, match="qemu-system-aarch64 is not installed") as caught:
        machines.find_qemu(MACHINES[1], arch)
    assert "qemu-system-arm" in caught.value.hint


def test_the_reproducer_is_the_command(tmp_path: Path) -> None:
    words = ["printf", "%s\\n", "-append", "a 'b' \"c\" $d", "-x", "e\\f"]
    script = tmp_path / "reproduce.sh"
    write_reproducer(script, words)
    assert script.stat().st_mode & 0o111
    done = subprocess.run([str(script)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == words[2:]
    joined = script.read_text().split("exec ", 1)[1].replace("\\\n", "")
    assert shlex.split(joined) == words
