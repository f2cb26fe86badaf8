"""virtme-ng: its command line, its traps, and the user land of another architecture."""

from __future__ import annotations

import io
import os
import shutil
import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.context import Context
from harness.errors import EnvironmentFailure, GuestCrash, StageTimeout, UsageError
from harness.guest import rootfs, runner, shells, vng
from harness.guest.elf import needed
from harness.guest.ktap import Status, Test
from harness.guest.splat import Splat
from harness.guest.verdict import Verdict
from harness.report import Reporter
from harness.settings import resolve

ROOT = Path(__file__).resolve().parent.parent
HERE = Path(__file__).resolve().parent


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    settings = resolve(ROOT, {"cache_dir": str(tmp_path / "cache"), "accel": "tcg", "boot_timeout": 5.0}, {})
    return Context(ROOT, settings, Reporter(out=io.StringIO(), err=io.StringIO()))


def test_command_lines(context: Context) -> None:
    native = vng.argv(
        context, context.arch("x86_64"), Path("/k"), root=Path("/"), script="/s", nonce="n", share=Path("/j")
    )
    assert {"--force-9p", "--disable-kvm", "--verbose"} <= set(native)
    assert "--arch" not in native
    assert "--root" not in native
    assert native[native.index("--exec") + 1] == "/s"
    assert native[native.index("--rwdir") + 1] == "/run/harness=/j"
    assert "harness.nonce=n" in native
    assert "root=/dev/root" in native
    assert any(word.startswith(f"PATH={vng.shim_directory(context)}:") for word in native)
    foreign = vng.argv(context, context.arch("arm64"), Path("/k"), root=Path("/r"), host_files=Path("/h"), kvm=True)
    assert foreign[foreign.index("--arch") + 1] == "arm64"
    assert foreign[foreign.index("--root") + 1] == "/r"
    assert foreign[foreign.index("--rodir") + 1] == "/mnt=/h"
    assert not {"--disable-kvm", "--exec", "--verbose"} & set(foreign)
    # Never a verb that writes a configuration or builds.
    assert not {"--build", "-b", "--kconfig", "-k", "--config"} & {*native, *foreign}


def test_missing_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(EnvironmentFailure, match="vng"):
        vng.tool()


def test_shims_are_made_beside_the_hosts_own_programs(context: Context) -> None:
    assert vng.prepare(context, context.arch("x86_64")) == Path("/")
    shims = vng.shim_directory(context)
    assert {path.name for path in shims.iterdir()} == {"udevd", "udevadm", "systemd-tmpfiles"}
    assert all(os.access(path, os.X_OK) for path in shims.iterdir())


FAKE_VNG = """#!{python}
import os, re, subprocess, sys
words = sys.argv[1:]
share = next(w.split("=", 1)[1] for w in words if w.startswith("/run/harness="))
script = open(share + "/run.sh").read().replace("/run/harness", share).replace("/dev/kmsg", "/dev/stdout")
mode = os.environ.get("FAKE_VNG", "")
if mode == "no-start":
    sys.stderr.write("qemu: could not open kernel file\\n"); sys.exit(255)
print("[    0.000000] Linux version 6.18.15", flush=True)
if mode == "panic":
    print("[    1.000000] Kernel panic - not syncing: VFS", flush=True); sys.exit(255)
if mode == "hang":
    import time; time.sleep(60)
script = script.replace("'<6>harness", "'[    1.0] harness").replace('"<6>harness', '"[    1.0] harness')
subprocess.run(["sh", "-c", script], check=False)
if mode == "warn":
    print("[    2.000000] WARNING: CPU: 0 PID: 1 at f+0x1/0x2\\n[    2.0] ---[ end trace 0 ]---", flush=True)
sys.exit(255 if mode == "odd" else 0)
"""


@pytest.fixture
def command(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
):  # type: ignore[no-untyped-def]
    fake = tmp_path / "vng"
    fake.write_text(FAKE_VNG.format(python=sys.executable))
    fake.chmod(0o755)
    image = tmp_path / "image"
    image.touch()
    monkeypatch.setattr(vng, "tool", lambda: str(fake))
    monkeypatch.setattr("harness.guest.machine.find_qemu", lambda *_: "qemu")

    def run(*words: str, mode: str = "") -> tuple[int, bytes, bytes]:
        monkeypatch.setenv("FAKE_VNG", mode)
        status = vng.command(context, context.arch("x86_64"), image, words, keep=tmp_path / "keep", factor=0.4)
        return status, *capfdbinary.readouterr()

    return run


def test_status_and_both_streams_of_a_command(command) -> None:  # type: ignore[no-untyped-def]
    assert command("sh", "-c", "echo out; echo err >&2; exit 5") == (5, b"out\n", b"err\n")
    assert command("printf", "%s|", "a b", "$HOME", "'q'") == (0, b"a b|$HOME|'q'|", b"")
    status, out, _ = command("head", "-c", "300000", "/dev/zero")
    assert (status, len(out)) == (0, 300000)


def test_255_is_only_the_commands_when_the_command_said_it(command) -> None:  # type: ignore[no-untyped-def]
    assert command("sh", "-c", "exit 255")[0] == 255
    assert command("true", mode="odd")[0] == 0


def test_a_guest_that_dies_is_told_apart(command) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(GuestCrash, match="Kernel panic - not syncing: VFS"):
        command("true", mode="panic")
    with pytest.raises(EnvironmentFailure, match="could not open kernel file") as caught:
        command("true", mode="no-start")
    assert "reproduce.sh" not in caught.value.hint
    assert caught.value.hint.startswith("run it by hand: ")
    with pytest.raises(StageTimeout, match="within 4 s"):
        command("true", mode="hang")


def test_a_report_beside_a_status_is_no_success(command, context: Context) -> None:  # type: ignore[no-untyped-def]
    assert command("true", mode="warn")[0] == 7
    assert command("sh", "-c", "exit 5", mode="warn")[0] == 5
    assert "warning: x86_64: the kernel reported: warning" in context.report.err.getvalue()  # type: ignore[attr-defined]


def test_a_command_may_be_quiet(command, context: Context) -> None:  # type: ignore[no-untyped-def]
    context.settings.values["silence_timeout"] = 1.0  # 0.8 s here
    assert command("sleep", "3")[0] == 0


@pytest.mark.parametrize(("status", "splats", "code"), [(0, True, 7), (5, True, 5), (0, False, 0)])
def test_a_command_by_qemu(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, splats: bool, code: int
) -> None:
    found = (Splat("warning", "WARNING: here", 1, ()),) if splats else ()
    judged = Verdict((Test("command", Status.PASSED, exit_status=status),), splats=found)
    asked: dict[str, object] = {}

    def boot(*_: object, **more: object) -> SimpleNamespace:
        asked.update(more)
        return SimpleNamespace(verdict=judged, log=tmp_path)

    monkeypatch.setattr("harness.guest.runner.boot", boot)
    monkeypatch.setattr(rootfs, "ensure", lambda *_: tmp_path)
    (tmp_path / "image").touch()
    arch = context.arch("x86_64")
    assert shells.start(context, arch, tmp_path / "image", ["true"], backend="qemu") == code
    assert asked["quiet"] is True


@pytest.mark.parametrize("factor", [float("inf"), float("nan"), 0.0])
def test_a_factor_that_is_none(context: Context, factor: float) -> None:
    with pytest.raises(UsageError, match="timeout_factor"):
        runner.deadlines(context, factor)


def test_an_interactive_shell_needs_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    with pytest.raises(UsageError, match="needs a terminal"):
        vng.foreground(["true"])


def test_needed_libraries_of_elf_files(tmp_path: Path) -> None:
    assert needed(HERE / "fakeqemu.py") == []
    (tmp_path / "cut").write_bytes(b"\x7fELF\x02\x01" + b"\0" * 20)
    assert needed(tmp_path / "cut") == []
    real = Path(shutil.which("ls") or sys.executable).resolve()
    assert any(name.startswith("libc.") for name in needed(real)) or needed(real) == []
    header = b"\x7fELF\x02\x01" + b"\0" * 26 + struct.pack("<Q", 64) + b"\0" * 14 + struct.pack("<HH", 56, 2)
    header = header.ljust(64, b"\0")
    load = struct.pack("<IIQQQQQQ", 1, 5, 0, 0x1000, 0, 0x400, 0x400, 0)
    dynamic = struct.pack("<IIQQQQQQ", 2, 5, 0x100, 0x1100, 0, 48, 48, 0)
    table = struct.pack("<qQqQqQ", 5, 0x1200, 1, 1, 0, 0)
    raw = (header + load + dynamic).ljust(0x100, b"\0") + table
    raw = raw.ljust(0x200, b"\0") + b"\0libx.so.1\0" + b"\0" * 0x200
    (tmp_path / "made").write_bytes(raw)
    assert needed(tmp_path / "made") == ["libx.so.1"]


class FakeApt:
    calls = 0

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def download(self, packages: list[str], place: Path, suite: str = "") -> list[Path]:
        assert suite
        FakeApt.calls += 1
        return [place / name for name in packages]

    def extract(self, files: list[Path], root: Path) -> None:
        assert files
        for name in ("bin/bash", "usr/bin/env", "usr/lib/x/libc.so.6"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text("")
        (root / "usr/share/doc").mkdir(parents=True)


def test_the_user_land_is_made_once_and_whole(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.source.apt.PrivateApt", FakeApt)
    monkeypatch.setattr("harness.fs.require_space", lambda *_: None)
    FakeApt.calls = 0
    arch = context.arch("arm64")
    root = rootfs.ensure(context, arch)
    assert rootfs.ensure(context, arch) == root
    assert FakeApt.calls == 1
    assert (root / "bin").is_symlink()
    assert (root / "bin/bash").is_file()
    assert (root / "etc/fstab").read_text() == ""
    assert "root:" in (root / "etc/passwd").read_text()
    assert os.access(root / "usr/sbin/udevd", os.X_OK)
    assert (root / "usr/bin/ip").readlink() == Path("busybox")
    assert not (root / "usr/share").exists()
    (root / ".complete").write_text("another recipe")
    rootfs.ensure(context, arch)
    assert FakeApt.calls == 2


def test_a_user_land_that_fails_leaves_nothing(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.source.apt.PrivateApt", FakeApt)
    monkeypatch.setattr("harness.fs.require_space", lambda *_: None)
    monkeypatch.setattr(rootfs, "missing_libraries", lambda _: ["libmissing.so.1"])
    with pytest.raises(EnvironmentFailure, match=r"would lack libmissing\.so\.1"):
        rootfs.ensure(context, context.arch("arm64"))
    assert [path for path in (context.cache / "rootfs").iterdir() if path.is_dir()] == []
