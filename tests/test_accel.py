"""The accelerator is one that a guest came to its end in, found once and kept."""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

import pytest

from harness.context import Context
from harness.errors import UsageError
from harness.guest import accel, init
from harness.guest.console import Deadlines
from harness.report import Reporter
from harness.settings import resolve

ROOT = Path(__file__).resolve().parent.parent
HERE = Path(__file__).resolve().parent


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    kvm = tmp_path / "kvm"
    kvm.touch()
    monkeypatch.setattr(accel, "KVM", kvm)
    monkeypatch.setattr(accel, "PROBE", Deadlines(2, 5, 5))
    monkeypatch.setattr(init, "compile_init", lambda *_: ROOT / "qemu/init.c.j2")
    return make(tmp_path)


def make(tmp_path: Path, **flags: str) -> Context:
    settings = resolve(ROOT, {"cache_dir": str(tmp_path / "cache"), **flags}, {})
    return Context(ROOT, settings, Reporter(out=io.StringIO(), err=io.StringIO()))


@pytest.fixture
def qemu(tmp_path: Path) -> str:
    path = tmp_path / "qemu"
    shutil.copy(HERE / "fakeqemu.py", tmp_path / "fakeqemu.py")
    path.write_text(f'#!/bin/sh\necho run >> {tmp_path}/calls\nexec {sys.executable} {tmp_path}/fakeqemu.py "$@"\n')
    path.chmod(0o755)
    return str(path)


def choose(context: Context, qemu: str, arch: str = "x86_64") -> accel.Accel:
    a = context.arch(arch)
    return accel.choose(context, a, context.machine(a.machine), qemu, Path("image"))


def log(tmp_path: Path, text: str) -> str:
    path = tmp_path / "probe.log"
    path.write_text(text)
    return f"log={path}"


GOOD = "Linux version 6\n[ 1.0] harness!probe!start \n[ 1.0] harness!probe!done ran=0\n"


def test_a_guest_that_comes_to_its_end(
    context: Context, qemu: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_QEMU", log(tmp_path, GOOD))
    assert choose(context, qemu).name == "kvm"


@pytest.mark.parametrize(
    ("words", "text", "reason"),
    [
        ("then=hang", None, "did not come to its end"),
        ("then=hang", "Linux version 6\n", "last said: Linux version 6"),
        ("status=1 message=qemu:_failed_to_initialize_kvm", None, "failed to initialize kvm"),
        ("status=0", "Linux version 6\n[ 1.0] Kernel panic - not syncing: x\n", "Kernel panic"),
        ("signal=6", None, "-6"),
        ("status=0", "[ 1.0] harness!other!done ran=0\n", "KVM failed"),
    ],
)
def test_everything_else_is_tcg_with_its_reason(
    context: Context,
    qemu: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: str,
    text: str | None,
    reason: str,
) -> None:
    monkeypatch.setenv("FAKE_QEMU", f"{words} {log(tmp_path, text) if text else ''}")
    found = choose(context, qemu)
    assert found.name == "tcg"
    assert reason in found.reason


def test_probed_once_for_each_qemu(
    context: Context, qemu: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_QEMU", "status=1")
    probes = []
    real = accel.probe
    monkeypatch.setattr(accel, "probe", lambda *args: probes.append(1) or real(*args))
    first = choose(context, qemu)
    assert choose(context, qemu) == first
    assert len(probes) == 1
    monkeypatch.setattr(accel, "qemu_version", lambda _: "100")
    choose(context, qemu)
    assert len(probes) == 2
    (context.cache / "accel.json").write_text("{broken")
    choose(context, qemu)
    assert len(probes) == 3


def test_what_may_be_the_kernels_fault_is_not_kept(
    context: Context, qemu: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_QEMU", log(tmp_path, "Linux version 6\n[ 1.0] Kernel panic - not syncing: x\n"))
    first = choose(context, qemu)
    assert first.name == "tcg"
    assert not (context.cache / "accel.json").exists()
    monkeypatch.setenv("FAKE_QEMU", log(tmp_path, GOOD))
    assert choose(context, qemu) == first  # each boot of this process would wait for it again
    accel._doubtful.clear()
    assert choose(context, qemu).name == "kvm"


def test_a_guest_that_never_speaks_is_remembered(
    context: Context, qemu: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_QEMU", "then=hang")
    first = choose(context, qemu)
    assert (context.cache / "accel.json").is_file()
    accel._doubtful.clear()
    monkeypatch.setenv("FAKE_QEMU", log(tmp_path, GOOD))
    assert choose(context, qemu) == first


def test_the_probe_runs_no_suites(context: Context, qemu: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    real = accel.console.run
    monkeypatch.setattr(
        accel.console, "run", lambda argv, *rest, **more: seen.extend(argv) or real(argv, *rest, **more)
    )
    monkeypatch.setenv("FAKE_QEMU", log(tmp_path, GOOD))
    choose(context, qemu)
    assert "kunit.enable=0" in seen[seen.index("-append") + 1].split()


def test_no_probe_where_kvm_cannot_be(context: Context, qemu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accel, "probe", lambda *_: pytest.fail("probed"))
    assert choose(context, qemu, "arm64").name == "tcg"
    monkeypatch.setattr(accel, "KVM", Path("/no/such/node"))
    assert choose(context, qemu) == accel.Accel("tcg", "no /no/such/node")


def test_as_asked(tmp_path: Path, qemu: str, context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    assert context
    monkeypatch.setattr(accel, "probe", lambda *_: pytest.fail("probed"))
    assert choose(make(tmp_path, accel="tcg"), qemu).name == "tcg"
    assert choose(make(tmp_path, accel="kvm"), qemu).name == "kvm"
    with pytest.raises(UsageError, match="cannot run arm64 guests"):
        choose(make(tmp_path, accel="kvm"), qemu, "arm64")
    with pytest.raises(UsageError, match="--accel must be one of auto, kvm, tcg"):
        make(tmp_path, accel="warp")
