"""./bootstrap: what it says when there is nothing to do, and how fast it gets out of the way."""

from __future__ import annotations

import fcntl
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


def environment(**more: str) -> dict[str, str]:
    return {n: v for n, v in os.environ.items() if not n.startswith(("HARNESS_", "BOOTSTRAP_"))} | more


def bootstrap(project: Path, *argv: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(project / "bootstrap"), *argv],
        env=environment(**env),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def make_tools(project: Path, missing: str = "") -> Path:
    """Programs that stand for the machine's own and write what they are called with; returns that file."""
    calls, tools = project / "calls", project / "tools"
    for name in ("python3", "apt-get"):
        script(tools / name, f'echo "{name} $*" >> {calls}')
    # It has Python, and an environment that it makes has pip.
    venv = f"mkdir -p $3/bin; cp {tools}/whole $3/bin/python; cp {tools}/harness $3/bin/harness"
    script(tools / "python3", f'echo "python3 $*" >> {calls}\ncase "$*" in "-m venv"*) {venv} ;; esac')
    script(tools / "whole", f'echo "python $*" >> {calls}')
    script(tools / "harness", f"echo {missing}")
    script(tools / "sudo", 'exec "$@"')
    return calls


def stub_path(project: Path) -> str:
    return f"{project / 'tools'}{os.pathsep}{os.environ['PATH']}"


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
    script(project / ".venv/bin/python", '[ "$3" != install ] || { echo pip says no >&2; exit 9; }')
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


def test_half_an_environment_is_made_anew(tmp_path: Path) -> None:
    project = make_project(tmp_path)
    calls = make_tools(project)
    (project / ".venv/.bootstrapped").unlink()
    script(project / ".venv/bin/python", '[ "$1" = -c ] || { echo "No module named pip" >&2; exit 1; }')
    done = bootstrap(project, "echo", "done", PATH=stub_path(project))
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    assert f"python3 -m venv {project}/.venv" in calls.read_text()
    calls.unlink()
    assert bootstrap(project, "true", PATH=stub_path(project)).returncode == 0
    assert not calls.exists()


def test_packages_left_out_are_installed_once_they_may_be(tmp_path: Path) -> None:
    project = make_project(tmp_path)
    calls = make_tools(project, missing="bison")
    (project / ".venv/.bootstrapped").unlink()
    script(project / ".venv/bin/harness", "echo bison")
    script(project / ".venv/bin/python", "")
    lean = {"PATH": stub_path(project), "BOOTSTRAP_NO_PACKAGES": "1"}
    done = bootstrap(project, "sh", "-c", "echo $HARNESS_PROJECT", **lean)
    assert (done.returncode, done.stdout) == (0, f"{project}\n"), done.stderr
    assert "missing packages, not installed as asked: bison" in done.stderr
    assert bootstrap(project, "true", **lean).stderr == ""
    assert "apt-get" not in calls.read_text()
    for said in ("installing bison", ""):
        done = bootstrap(project, "true", PATH=stub_path(project))
        assert done.returncode == 0
        assert said in done.stderr
    assert done.stderr == ""
    asked = [line for line in calls.read_text().splitlines() if line.startswith("apt-get")]
    assert len(asked) == 2
    assert all("-o DPkg::Lock::Timeout=300" in line for line in asked)
    assert asked[1].endswith(" bison")


def test_what_the_one_before_has_set_up_is_not_set_up_again(tmp_path: Path) -> None:
    project = make_project(tmp_path)
    calls = make_tools(project)
    stamp = project / ".venv/.bootstrapped"
    good = stamp.read_text()
    stamp.unlink()
    script(project / ".venv/bin/python", f'echo "python $*" >> {calls}')
    with (project / ".bootstrap.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with subprocess.Popen(
            [str(project / "bootstrap"), "sh", "-c", "[ ! -e /proc/self/fd/9 ]"],
            env=environment(PATH=stub_path(project)),
        ) as waiting:
            while not calls.exists():
                time.sleep(0.02)
            time.sleep(0.2)
            stamp.write_text(good)
            fcntl.flock(lock, fcntl.LOCK_UN)
            assert waiting.wait(20) == 0
    assert " -m " not in calls.read_text()
