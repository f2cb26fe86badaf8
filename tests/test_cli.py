"""The command line: every verb explains itself, and every expected failure is one line and a code."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from harness import cli, errors, verbs
from harness.context import Context, find_project

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("name", verbs.VERBS)
def test_help_is_worth_reading(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    verb = verbs.load(name)
    assert name == verb.NAME
    assert "\n" not in verb.HELP
    assert len(verb.DESCRIPTION) > len(verb.HELP)
    with pytest.raises(SystemExit) as caught:
        cli.main([name, "--help"])
    assert caught.value.code == 0
    assert "--dry-run" in capsys.readouterr().out


def test_every_module_is_registered() -> None:
    modules = {p.stem for p in (ROOT / "harness/verbs").glob("*.py")} - {"__init__"}
    assert modules == set(verbs.VERBS)


def test_no_verb_and_unknown_verb_are_usage_errors() -> None:
    for argv in ([], ["brew"]):
        with pytest.raises(SystemExit) as caught:
            cli.main(argv)
        assert caught.value.code == errors.ExitCode.USAGE


def fake_verb(monkeypatch: pytest.MonkeyPatch, failure: BaseException | int) -> None:
    class Fake:
        NAME, HELP, DESCRIPTION = "doctor", "h", "d"

        @staticmethod
        def add_arguments(parser: argparse.ArgumentParser) -> None:
            pass

        @staticmethod
        def run(_context: Context, _args: argparse.Namespace) -> int:
            if isinstance(failure, int):
                return failure
            raise failure

    monkeypatch.setattr(verbs, "VERBS", ("doctor",))
    monkeypatch.setattr(verbs, "load", lambda _name: Fake)


@pytest.mark.parametrize(
    "cls",
    [
        errors.TestsFailedError,
        errors.UsageError,
        errors.EnvironmentFailure,
        errors.ApplyError,
        errors.ConfigMismatch,
        errors.BuildError,
        errors.GuestCrash,
        errors.StageTimeout,
    ],
)
def test_failures_have_a_line_a_hint_and_a_code(
    cls: type[errors.HarnessError], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_verb(monkeypatch, cls("what is wrong", detail="line 1\nline 2", hint="what to do"))
    assert cli.main(["doctor"]) == cls.exit_code
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "error: what is wrong\nline 1\nline 2\n  next: what to do\n"


def test_exit_codes_are_distinct() -> None:
    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.HarnessError)]
    codes = [c.exit_code for c in classes if c is not errors.HarnessError]
    assert len(set(codes)) == len(codes) == 8


def test_a_defect_shows_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_verb(monkeypatch, ZeroDivisionError("defect"))
    with pytest.raises(ZeroDivisionError):
        cli.main(["doctor"])


def test_broken_settings_file_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_verb(monkeypatch, 0)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/kernel.yaml").write_text("version: '1'\nways: []\n")
    (tmp_path / "configs/harness.yaml").write_text("a: [\n")
    monkeypatch.setenv("HARNESS_PROJECT", str(tmp_path))
    assert cli.main(["doctor"]) == errors.ExitCode.USAGE
    err = capsys.readouterr().err
    assert "configs/harness.yaml:2:1:" in err
    assert "Traceback" not in err


def test_project_is_found_from_below_and_named_when_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HARNESS_PROJECT", raising=False)
    assert find_project(ROOT / "harness/verbs") == ROOT
    monkeypatch.setenv("HARNESS_PROJECT", str(tmp_path))
    with pytest.raises(errors.UsageError, match="no project here"):
        find_project()
