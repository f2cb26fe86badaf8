"""Programs run under a deadline, and end with everything they started."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness import proc
from harness.errors import EnvironmentFailure, StageTimeout


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_what_cannot_be_started_is_one_line(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_bytes(b"\x7fELF")
    broken.chmod(0o755)
    with pytest.raises(EnvironmentFailure, match="broken cannot be started: Exec format error"):
        proc.run([str(broken)], timeout=9)
    with pytest.raises(EnvironmentFailure, match="broken cannot be started: Exec format error"):
        proc.feed([str(broken)], lambda out: None, timeout=9)
    with pytest.raises(EnvironmentFailure, match=r"true cannot be started in .*none: No such file"):
        proc.run(["true"], timeout=9, cwd=tmp_path / "none")


def test_output_status_and_environment() -> None:
    done = proc.run(["sh", "-c", "echo $X; echo e >&2; exit 3"], timeout=10, env={"X": "y"})
    assert (done.status, done.output, done.errors) == (3, "y\n", "e\n")


def test_log_takes_both_streams(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("before\n")
    proc.run(["sh", "-c", "echo out; echo err >&2"], timeout=10, log=log)
    assert log.read_text() == "before\nout\nerr\n"


def test_stdin_is_passed_or_empty() -> None:
    assert proc.run(["cat"], timeout=10, stdin=b"in").output == "in"
    assert proc.run(["cat"], timeout=10).output == ""


def test_missing_program_and_failed_program() -> None:
    with pytest.raises(EnvironmentFailure, match="is not installed"):
        proc.run(["/no/such/program"], timeout=1)
    with pytest.raises(EnvironmentFailure, match="failed with status 1") as caught:
        proc.run(["sh", "-c", "echo why >&2; exit 1"], timeout=10, check=True)
    assert caught.value.detail == "why"


def test_missing_tool_names_its_package() -> None:
    with pytest.raises(EnvironmentFailure) as caught:
        proc.require_tool("no-such-tool", package="some-package", why="to test")
    assert "some-package" in caught.value.hint


def test_deadline_ends_grandchildren_that_ignore_sigterm(tmp_path: Path) -> None:
    pidfile = tmp_path / "pid"
    script = f"trap '' TERM; (trap '' TERM; echo $BASHPID > {pidfile}; sleep 60; sleep 60) & wait; sleep 60"
    started = time.monotonic()
    with pytest.raises(StageTimeout, match=r"did not finish within 0\.5 s"):
        proc.run(["bash", "-c", script], timeout=0.5)
    assert time.monotonic() - started < 20
    grandchild = int(pidfile.read_text())
    for _ in range(50):
        if not alive(grandchild):
            break
        time.sleep(0.1)
    assert not alive(grandchild)


INTERRUPTED = """
import sys
from harness import cli, proc
from harness.verbs import VERBS
class V:
    NAME, DESCRIPTION = "doctor", "d"
    add_arguments = staticmethod(lambda parser: None)
    @staticmethod
    def run(context, args):
        proc.run(["sh", "-c", "echo $$ > " + sys.argv[1] + "; sleep 60"], timeout=60)
        return 0
cli.verbs.load = lambda name: V
sys.exit(cli.main(["doctor"]))
"""


@pytest.mark.parametrize("signal_name", ["INT", "TERM", "HUP"])
def test_interrupt_ends_the_child_and_exits_130(tmp_path: Path, signal_name: str) -> None:
    pidfile = tmp_path / "pid"
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(pidfile)], stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        for _ in range(100):
            if pidfile.is_file() and pidfile.read_text().strip():
                break
            time.sleep(0.1)
        child = int(pidfile.read_text())
        os.kill(process.pid, {"INT": 2, "TERM": 15, "HUP": 1}[signal_name])
        _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert b"interrupted" in err
    assert b"Traceback" not in err
    assert not alive(child)
