"""The bpftrace scripts in a guest: what it runs, its user land, the options that do not go together."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from harness import cli
from harness.context import Context
from harness.data import Arch
from harness.errors import EnvironmentFailure, UsageError
from harness.guest import bpftrace, rootfs, vng
from harness.report import Reporter
from harness.settings import resolve

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def context(tmp_path: Path) -> Context:
    settings = resolve(ROOT, {"cache_dir": str(tmp_path / "cache")}, {})
    return Context(ROOT, settings, Reporter(out=io.StringIO(), err=io.StringIO()))


def test_each_script_is_a_program(tmp_path: Path) -> None:
    (tmp_path / "bpftrace").mkdir()
    for name in ("work-pid.bt", "irq-step.bt", "run.sh", "check.sh"):
        (tmp_path / "bpftrace" / name).write_text("")
    names = bpftrace.scripts_of(tmp_path)
    assert names == ["irq-step", "work-pid"]
    first, second = bpftrace.programs_of(names, [], 2.0)
    assert first.argv == ("/run/harness/tools/bpftrace/check.sh", "-t", "240", "irq-step.bt")
    assert second.timeout > 2 * 240
    assert [program.name for program in bpftrace.programs_of(names, ["work-pid"], 1.0)] == ["work-pid"]
    with pytest.raises(UsageError, match="no test program 'work'"):
        bpftrace.programs_of(names, ["work"], 1.0)


def test_a_series_without_scripts(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFailure, match="no bpftrace scripts"):
        bpftrace.scripts_of(tmp_path)


@pytest.mark.parametrize("name", ["x86_64", "arm64"])
def test_the_user_land_has_bpftrace_on_top(context: Context, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    asked: list[list[str]] = []

    class Apt:
        def __init__(self, *_: object, **__: object) -> None:
            pass

        def download(self, packages: list[str], place: Path, suite: str = "") -> list[Path]:
            asked.append(packages)
            return [place / name for name in packages]

        def extract(self, files: list[Path], root: Path) -> None:
            (root / "usr/lib").mkdir(parents=True)

    monkeypatch.setattr("harness.source.apt.PrivateApt", Apt)
    monkeypatch.setattr("harness.fs.require_space", lambda *_: None)
    arch: Arch = context.arch(name)
    root = rootfs.ensure(context, arch, bpftrace.USER_LAND)
    assert root == rootfs.path_of(context, arch, bpftrace.USER_LAND) != rootfs.path_of(context, arch)
    assert {"bash", "libc6", "bpftrace", "libllvm14"} <= set(asked[0])
    assert rootfs.ensure(context, arch, bpftrace.USER_LAND) == root
    rootfs.ensure(context, arch)
    assert len(asked) == 2
    assert "bpftrace" not in asked[1]


def test_a_user_land_of_the_own_architecture_has_the_name_that_vng_knows(context: Context) -> None:
    words = vng.argv(context, context.arch("x86_64"), Path("/k"), root=Path("/r"), script="/s")
    assert words[words.index("--arch") + 1] == "amd64"


def test_the_flavour_has_what_bpftrace_needs(context: Context) -> None:
    assert "bpf" in context.flavour(bpftrace.FLAVOUR).fragments


@pytest.mark.parametrize("more", [["--upstream"], ["--backend", "vng"], ["-g", "numa"]])
def test_what_does_not_go_together(more: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["test", "-a", "x86_64", "--bpftrace", *more]) == 2
    assert "--bpftrace has a guest of its own" in capsys.readouterr().err
