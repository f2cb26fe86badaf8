"""./bootstrap: what it says when there is nothing to do, and how fast it gets out of the way."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def make_project(tmp_path: Path) -> Path:
    """A project whose environment is already set up."""
    for name in ("bootstrap", "pyproject.toml", "configs/tools.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "bootstrap").chmod(0o755)
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\necho python was called >&2\nexit 9\n")
    python.chmod(0o755)
    command = "cat bootstrap pyproject.toml configs/tools.yaml | cksum"
    cksum = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    (tmp_path / ".venv/.bootstrapped").write_text(cksum.rstrip("\n") + str(tmp_path))
    return tmp_path


def bootstrap(project: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("HARNESS_")}
    return subprocess.run(
        [str(project / "bootstrap"), *argv], env=env, capture_output=True, text=True, timeout=60, check=False
    )


def test_second_call_adds_under_a_second(tmp_path: Path) -> None:
    project = make_project(tmp_path)
    started = time.monotonic()
    done = bootstrap(project, "sh", "-c", "echo $HARNESS_PROJECT; exit 4")
    assert time.monotonic() - started < 1
    assert (done.returncode, done.stdout.strip(), done.stderr) == (4, str(project), "")


def test_changed_requirements_are_set_up_again(tmp_path: Path) -> None:
    project = make_project(tmp_path)
    with (project / "pyproject.toml").open("a") as out:
        out.write("# more\n")
    (project / ".venv/bin/python").write_text("#!/bin/sh\n[ $1 = -c ] || { echo pip says no >&2; exit 9; }\n")
    done = bootstrap(project, "true")
    assert done.returncode == 3
    assert "pip could not install the harness" in done.stderr
    assert "pip says no" in done.stderr


@pytest.mark.parametrize("argv", [(), ("--help",)])
def test_usage(tmp_path: Path, argv: tuple[str, ...]) -> None:
    done = bootstrap(make_project(tmp_path), *argv)
    assert "./bootstrap harness run" in done.stdout + done.stderr
    assert done.returncode == (0 if argv else 2)


def test_unknown_command(tmp_path: Path) -> None:
    done = bootstrap(make_project(tmp_path), "no-such-command")
    assert done.returncode == 3
    assert "no such command" in done.stderr
