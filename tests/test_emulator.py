"""Where a recent QEMU comes from: the installed one if it will do, else packages unpacked into the cache."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import pytest

from harness import data
from harness.context import Context
from harness.errors import EnvironmentFailure, HarnessError, StageTimeout
from harness.guest import emulator
from harness.report import Reporter
from harness.settings import resolve
from harness.source.apt import PrivateApt

ROOT = Path(__file__).resolve().parent.parent


def script(path: Path, version: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho 'QEMU emulator version {version}'\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    settings = resolve(ROOT, {"cache_dir": str(tmp_path / "cache")}, {})
    return Context(ROOT, settings, Reporter(-1))


def wanted(context: Context, machine: str = "x86_64-icount") -> emulator.Emulator:
    return emulator.ensure(context, context.arch("x86_64"), context.machine(machine))


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was asked of apt; the packages hold a QEMU of the version in the first place of ``versions``."""
    asked: list[str] = []

    def download(_: PrivateApt, names: tuple[str, ...], place: Path, suite: str = "") -> list[Path]:
        asked.append(suite)
        return [place / name for name in names]

    def extract(_: PrivateApt, files: list[Path], root: Path) -> None:
        if "emulator-libraries" in str(files[0]):
            (root / "usr/lib/x86_64-linux-gnu").mkdir(parents=True)
        else:
            script(root / "usr/bin/qemu-system-x86_64", "10.0.2 (Debian 1:10.0.2+ds)")

    monkeypatch.setattr(PrivateApt, "download", download)
    monkeypatch.setattr(PrivateApt, "extract", extract)
    return asked


@pytest.mark.parametrize(
    ("version", "minimum", "good"),
    [
        ("10.0.2", "10.0", True),
        ("10.0", "10.0", True),
        ("7.2.22", "10.0", False),
        ("9.2.0+ds-5", "10.0", False),
        ("11.0.0", "10.0", True),
        ("", "10.0", False),
    ],
)
def test_versions(version: str, minimum: str, good: bool) -> None:
    assert emulator.at_least(version, minimum) is good


def test_missing_libraries() -> None:
    said = "\tlibaio.so.1 => not found\n\tlibc.so.6 => /lib/libc.so.6 (0x0)\n\tlibaio.so.1 => not found\n"
    assert emulator.missing_libraries(said) == ["libaio.so.1"]


def test_the_installed_one_if_it_will_do(context: Context, tmp_path: Path, packages: list[str]) -> None:
    program = script(tmp_path / "bin/qemu-system-x86_64", "10.1.0")
    assert wanted(context) == emulator.Emulator(str(program), "10.1.0")
    assert packages == []


def test_else_one_from_packages_once(context: Context, tmp_path: Path, packages: list[str]) -> None:
    script(tmp_path / "bin/qemu-system-x86_64", "7.2.22")
    found = wanted(context)
    assert found.version == "10.0.2"
    assert found.program.startswith(str(tmp_path / "cache"))
    text = Path(found.program).read_text()
    assert ' -L "$root/usr/share/qemu"' in text
    assert "LD_LIBRARY_PATH" not in text
    assert wanted(context) == found
    assert packages == ["bookworm-backports"]


def test_libraries_that_are_missing_come_with_it(
    context: Context, packages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emulator, "missing_libraries", lambda _: ["libaio.so.1"])
    found = wanted(context)
    assert packages == ["bookworm-backports", "bookworm"]
    assert 'LD_LIBRARY_PATH="$root/usr/lib/x86_64-linux-gnu" exec' in Path(found.program).read_text()


def test_one_that_does_not_run_is_told(context: Context, packages: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PrivateApt, "extract", lambda _, __, root: script(root / "usr/bin/qemu-system-x86_64", "8.2.0"))
    with pytest.raises(EnvironmentFailure, match=r"older than 10\.0"):
        wanted(context)


def test_a_version_that_nobody_knows_is_not_called_old(
    context: Context, tmp_path: Path, packages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    script(tmp_path / "bin/qemu-system-x86_64", "")
    monkeypatch.setattr(PrivateApt, "extract", lambda _, __, root: script(root / "usr/bin/qemu-system-x86_64", ""))
    told = io.StringIO()
    assert wanted(dataclasses.replace(context, report=Reporter(-1, err=told)), "x86_64").version == ""
    assert "using a QEMU that does not say whether it is at least" in told.getvalue()


def test_a_better_one_if_it_can_be_had(context: Context, tmp_path: Path, packages: list[str]) -> None:
    script(tmp_path / "bin/qemu-system-x86_64", "7.2.22")
    assert wanted(context, "x86_64").version == "10.0.2"
    assert packages == ["bookworm-backports"]


@pytest.mark.parametrize("error", [EnvironmentFailure, StageTimeout])
def test_else_the_installed_one_with_a_warning(
    context: Context,
    tmp_path: Path,
    packages: list[str],
    monkeypatch: pytest.MonkeyPatch,
    error: type[HarnessError],
) -> None:
    tried = []

    def download(*_: object, **__: object) -> list[Path]:
        tried.append(1)
        raise error("no network")

    monkeypatch.setattr(PrivateApt, "download", download)
    warned: list[str] = []
    monkeypatch.setattr(context.report, "warn", warned.append)
    program = script(tmp_path / "bin/qemu-system-x86_64", "7.2.22")
    assert wanted(context, "x86_64") == emulator.Emulator(str(program), "7.2.22")
    assert "7.2.22" in warned[0]
    assert "no network" in warned[0]
    # Not waited for, nor told, by the next boot.
    assert wanted(context, "x86_64") == emulator.Emulator(str(program), "7.2.22")
    assert len(warned) == 1
    with pytest.raises(error, match="no network"):
        wanted(context)
    assert 1 <= len(tried) <= 2  # a version for each of the two machines


def test_the_projects_own_file_loads() -> None:
    spec = data.load(ROOT / "qemu/emulator.yaml", emulator.Packages)
    assert "qemu-system-x86" in spec.packages
    assert not set(spec.packages) & set(spec.libraries)
