"""The command line: every verb explains itself, and every expected failure is one line and a code."""

from __future__ import annotations

import argparse
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from harness import cli, command, errors, verbs
from harness.context import Context, find_project

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("name", verbs.VERBS)
def test_help_is_worth_reading(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    verb = verbs.load(name)
    assert name == verb.NAME
    assert "\n" not in verbs.VERBS[name]
    assert len(verb.DESCRIPTION) > len(verbs.VERBS[name])
    with pytest.raises(SystemExit) as caught:
        cli.main([name, "--help"])
    assert caught.value.code == 0
    assert "--dry-run" in capsys.readouterr().out


def test_every_module_is_registered() -> None:
    modules = {p.stem for p in (ROOT / "harness/verbs").glob("*.py")} - {"__init__"}
    assert modules == set(verbs.VERBS)


@pytest.mark.parametrize(
    "words",
    [
        ["-n", "--cache-dir", "X", "--color", "never", "-v", "series", "list"],
        ["series", "-n", "--cache-dir", "X", "--color", "never", "-v", "list"],
        ["series", "list", "-n", "--cache-dir", "X", "--color", "never", "-v"],
        ["-n", "--cache-dir", "Y", "series", "--cache-dir", "X", "-v", "list", "--color", "never"],
        ["-n", "series", "--cache-dir", "X", "--color", "never", "-v"],
    ],
)
def test_common_flags_stand_anywhere(words: list[str]) -> None:
    args = command.parser().parse_args(words)
    assert (args.dry_run, args.cache_dir, args.color, args.verbose) == (True, "X", "never", 1)
    assert (args.quiet, args.action) == (False, "list")


def test_overview_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    out = capsys.readouterr().out
    assert all(f"    {name} " in out and text in " ".join(out.split()) for name, text in verbs.VERBS.items())


def test_only_the_verb_that_is_asked_for_is_imported() -> None:
    code = "import sys\nfrom harness import cli\ncli.main(['parse', '/nowhere'])\nprint(*sys.modules, sep='\\n')\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    loaded = {name for name in done.stdout.splitlines() if name.startswith("harness.verbs.")}
    assert loaded <= {"harness.verbs.parse", "harness.verbs.test"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted_while_it_imports(tmp_path: Path, number: int) -> None:
    (tmp_path / "argparse.py").write_text("import time\nprint('here', flush=True)\ntime.sleep(60)\n")
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "harness", "parse", "x"]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"here\n"
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
    assert process.returncode == errors.ExitCode.INTERRUPTED
    assert err.decode().startswith("error: interrupted\n  next: ")
    assert b"Traceback" not in err


def test_signals_are_as_they_were_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_verb(monkeypatch, 0)
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert cli.main(["doctor"]) == 0
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_no_verb_and_unknown_verb_are_usage_errors() -> None:
    for argv in ([], ["brew"]):
        with pytest.raises(SystemExit) as caught:
            cli.main(argv)
        assert caught.value.code == errors.ExitCode.USAGE


def fake_verb(monkeypatch: pytest.MonkeyPatch, failure: BaseException | int) -> None:
    class Fake:
        NAME, DESCRIPTION = "doctor", "d"

        @staticmethod
        def add_arguments(parser: argparse.ArgumentParser) -> None:
            pass

        @staticmethod
        def run(_context: Context, _args: argparse.Namespace) -> int:
            if isinstance(failure, int):
                return failure
            raise failure

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


def test_a_reader_that_has_gone_leaves_the_verdict() -> None:
    log = ROOT / "tests/logs/kunit-fails.log"
    command = f"{sys.executable} -m harness parse {log} | true; exit ${{PIPESTATUS[0]}}"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(["bash", "-c", command], env=env, capture_output=True, timeout=60, check=False)
    assert (done.returncode, b"Traceback" in done.stderr) == (errors.ExitCode.TESTS_FAILED, False)


def test_a_name_that_the_terminal_has_no_characters_for() -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "harness", "parse", "/nowhere/ü"]
    done = subprocess.run(command, env=env, capture_output=True, timeout=60, check=False)
    assert done.returncode == errors.ExitCode.USAGE
    assert b"cannot read /nowhere/\\xfc" in done.stderr


def test_what_the_system_refuses_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_verb(monkeypatch, NotADirectoryError(errno.ENOTDIR, "Not a directory", "/etc/passwd/x"))
    assert cli.main(["doctor"]) == errors.ExitCode.ENVIRONMENT
    assert capsys.readouterr().err.startswith("error: cannot access /etc/passwd/x: Not a directory\n  next: ")


def test_unreadable_project_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_verb(monkeypatch, 0)
    monkeypatch.setenv("HARNESS_PROJECT", str(tmp_path / ("x" * 300)))
    assert cli.main(["doctor"]) in (errors.ExitCode.USAGE, errors.ExitCode.ENVIRONMENT)
    assert capsys.readouterr().err.startswith("error: ")


def test_project_is_found_from_below_and_named_when_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HARNESS_PROJECT", raising=False)
    assert find_project(ROOT / "harness/verbs") == ROOT
    monkeypatch.setenv("HARNESS_PROJECT", str(tmp_path))
    with pytest.raises(errors.UsageError, match="no project here"):
        find_project()
