"""Settings and where they come from."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.context import Context
from harness.data import Pin
from harness.errors import UsageError
from harness.report import Reporter
from harness.settings import resolve
from harness.source.fetch import own_source


def test_precedence_and_origin(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/harness.yaml").write_text("flavour: project\naccel: tcg\nccache_size: 1G\njobs: 3\n")
    user = tmp_path / "xdg/agent-latency"
    user.mkdir(parents=True)
    (user / "harness.yaml").write_text("flavour: user\nboot_timeout: 7\n")
    env = {"XDG_CONFIG_HOME": str(tmp_path / "xdg"), "HARNESS_ACCEL": "kvm", "HARNESS_JOBS": "5", "HOME": "/h"}
    settings = resolve(tmp_path, {"jobs": 9, "verb": "x", "flavour": None}, env)
    assert settings.text("flavour") == "project"
    assert settings.text("accel") == "kvm"
    assert settings.number("jobs") == 9
    assert settings.seconds("boot_timeout") == 7.0
    assert settings.origin["jobs"] == "command line"
    assert settings.origin["accel"] == "HARNESS_ACCEL"
    assert settings.origin["ccache_size"].endswith("configs/harness.yaml")
    assert settings.origin["boot_timeout"].endswith("agent-latency/harness.yaml")
    assert settings.origin["apply_timeout"] == "built-in"


def test_relative_cache_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/h")
    for given, wanted in (("rel", tmp_path / "rel"), ("~/c", Path("/h/c"))):
        settings = resolve(tmp_path, {"cache_dir": given}, {})
        assert Context(tmp_path, settings, Reporter()).kernel_repo == wanted / "linux.git"


def test_cache_follows_xdg(tmp_path: Path) -> None:
    assert resolve(tmp_path, {}, {"HOME": "/h"}).text("cache_dir") == "/h/.cache/agent-latency"
    assert resolve(tmp_path, {}, {"XDG_CACHE_HOME": "/c"}).text("cache_dir") == "/c/agent-latency"
    assert resolve(tmp_path, {}, {"HARNESS_CACHE_DIR": "/d"}).text("cache_dir") == "/d"


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"HARNESS_JOBS": "many"}, "HARNESS_JOBS must be a whole number"),
        ({"HARNESS_JOBS": "-1"}, "HARNESS_JOBS must be a whole number"),
        ({"HARNESS_BOOT_TIMEOUT": "-1"}, "HARNESS_BOOT_TIMEOUT must be seconds from 0 to 1000000, not '-1'"),
        ({"HARNESS_BOOT_TIMEOUT": "nan"}, "must be seconds"),
        ({"HARNESS_APPLY_TIMEOUT": "inf"}, "must be seconds"),
        ({"HARNESS_APPLY_TIMEOUT": "1e300"}, "must be seconds"),
        ({"HARNESS_ACCEL": "foo"}, "HARNESS_ACCEL must be one of auto, kvm, tcg"),
    ],
)
def test_bad_values(tmp_path: Path, env: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        resolve(tmp_path, {}, env)


def test_a_bad_flag_is_called_what_it_is_called(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^--timeout must be seconds"):
        resolve(tmp_path, {"build_timeout": float("nan")}, {})


@pytest.mark.parametrize(
    "text", ["cache_dir:", "cache_dir: [a]", "jobs: true", "jobs: 1.5", "boot_timeout: [1]", "accel: foo"]
)
def test_bad_values_in_a_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/harness.yaml").write_text(text)
    with pytest.raises(UsageError, match=rf"harness\.yaml: {text.partition(':')[0]} must be"):
        resolve(tmp_path, {}, {})


@pytest.mark.parametrize("text", ["", "# nothing is set\n"])
def test_a_settings_file_may_be_empty(tmp_path: Path, text: str) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/harness.yaml").write_text(text)
    assert resolve(tmp_path, {}, {}).origin["jobs"] == "built-in"


def test_unknown_setting_lists_the_known(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/harness.yaml").write_text("flavor: x\n")
    with pytest.raises(UsageError, match="unknown setting 'flavor'") as caught:
        resolve(tmp_path, {}, {})
    assert "flavour" in caught.value.hint


@pytest.mark.parametrize(
    ("env", "flags", "said"),
    [
        ({"HARNESS_CACHE_DIR": "~nosuch/c"}, {}, r"cache_dir \(HARNESS_CACHE_DIR\): .* '~nosuch/c'"),
        ({"HARNESS_RUNS_DIR": "~nosuch/r"}, {}, r"runs_dir \(HARNESS_RUNS_DIR\): "),
        ({}, {"kernel_source": "~nosuch/k"}, r"--kernel-source \(command line\): "),
    ],
)
def test_nobodys_home(tmp_path: Path, env: dict[str, str], flags: dict[str, str], said: str) -> None:
    context = Context(tmp_path, resolve(tmp_path, flags, env), Reporter())
    with pytest.raises(UsageError, match=said):
        _ = (context.cache, context.runs, own_source(context, Pin("1.2.3", ())))


def test_runs_in_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/h")
    for given, wanted in (("~/r", Path("/h/r")), ("r", tmp_path / "r")):
        assert Context(tmp_path, resolve(tmp_path, {"runs_dir": given}, {}), Reporter()).runs == wanted
