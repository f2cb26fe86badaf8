"""The console under its deadlines: every way to end is told, the log is whole, and nothing outlives its run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.errors import EnvironmentFailure
from harness.guest import console
from harness.guest.console import Deadlines, run
from harness.guest.verdict import End

HERE = Path(__file__).resolve().parent
LOGS = HERE / "logs"
QEMU = [sys.executable, str(HERE / "fakeqemu.py"), "-append", "harness.nonce=abc123"]
LONG = Deadlines(60, 60, 60)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_for(what: Path, seconds: float = 20) -> str:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if what.is_file() and what.read_text():
            return what.read_text()
        time.sleep(0.05)
    raise AssertionError(f"{what} did not appear")


def all_gone(pids: list[int], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not any(map(alive, pids)):
            return True
        time.sleep(0.05)
    return False


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    def set_words(*words: str) -> None:
        monkeypatch.setenv("FAKE_QEMU", " ".join(words))

    return set_words


def test_a_good_run(fake, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    fake(f"log={LOGS / 'orphan.log'}")
    begun: list[str] = []
    polls: list[int] = []
    result = run(
        QEMU,
        tmp_path / "d/console.log",
        LONG,
        nonce="abc123",
        on_program=begun.append,
        on_poll=lambda: polls.append(1),
    )
    assert (result.ending.end, result.ending.status) == (End.EXITED, 0)
    assert begun == ["good", "trig", "later"]
    assert polls
    assert result.guest_spoke
    assert result.boot_seconds is not None
    assert 0 <= result.boot_seconds <= result.seconds
    text = (LOGS / "orphan.log").read_bytes().replace(b"5ca1ab1e0ddba115", b"abc123")
    assert result.log.read_bytes() == text


@pytest.mark.parametrize(("words", "status"), [(["status=3"], 3), ([f"signal={int(signal.SIGABRT)}"], -6)])
def test_exit_status_and_signal(fake, tmp_path: Path, words: list[str], status: int) -> None:  # type: ignore[no-untyped-def]
    fake("message=qemu:_no_luck", *words)
    result = run(QEMU, tmp_path / "log", LONG, nonce="abc123")
    assert (result.ending.end, result.ending.status) == (End.EXITED, status)
    assert not result.guest_spoke
    assert result.log.read_text() == "qemu: no luck\n"


@pytest.mark.parametrize(
    ("log", "limits", "end"),
    [
        (None, Deadlines(0.6, 60, 60), End.NO_BOOT),
        ("silent.log", Deadlines(60, 0.6, 60), End.SILENT),
        ("silent.log", Deadlines(60, 60, 0.6), End.DEADLINE),
    ],
)
def test_each_deadline(fake, tmp_path: Path, log: str | None, limits: Deadlines, end: End) -> None:  # type: ignore[no-untyped-def]
    pids = tmp_path / "pids"
    fake(*([f"log={LOGS / log}"] if log else []), "then=hang", f"pids={pids}")
    started = time.monotonic()
    result = run(QEMU, tmp_path / "log", limits, nonce="abc123")
    assert result.ending.end == end
    assert result.ending.status is None
    assert result.ending.seconds == pytest.approx(0.6)
    assert time.monotonic() - started < 15
    assert all_gone([int(pid) for pid in wait_for(pids).split()])


def test_another_boots_marker_is_no_boot(fake, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    fake(f"log={LOGS / 'silent.log'}", "then=hang")
    result = run(QEMU, tmp_path / "log", Deadlines(0.8, 60, 60), nonce="another")
    assert result.ending.end == End.NO_BOOT


def test_a_finished_guest_that_stays_is_ended_soon(fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(console, "GRACE_SECONDS", 0.5)
    fake(f"log={LOGS / 'orphan.log'}", "then=hang")
    assert run(QEMU, tmp_path / "log", LONG, nonce="abc123").ending.end == End.STUCK_OFF


def test_a_panicked_guest_that_stays_is_ended_soon(fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(console, "GRACE_SECONDS", 0.5)
    fake(f"log={LOGS / 'panic-x86_64.log'}", "then=hang")
    started = time.monotonic()
    assert run(QEMU, tmp_path / "log", LONG, nonce="abc123").ending.end == End.SILENT
    assert time.monotonic() - started < 15


def test_endless_output_is_bounded(fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(console, "LOG_LIMIT", 1 << 20)
    fake("then=flood")
    result = run(QEMU, tmp_path / "log", LONG, nonce="abc123")
    assert result.ending.end == End.FLOOD
    assert result.log.stat().st_size < 4 << 20


def test_a_console_that_closes_while_the_machine_stays(fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(console, "GRACE_SECONDS", 0.5)
    pids = tmp_path / "pids"
    fake("then=close", f"pids={pids}")
    result = run(QEMU, tmp_path / "log", LONG, nonce="abc123")
    assert (result.ending.end, result.ending.status) == (End.EXITED, None)
    assert all_gone([int(wait_for(pids))])


def test_what_ignores_every_polite_signal_is_gone_with_its_children(fake, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    pids = tmp_path / "pids"
    fake("stubborn", f"pids={pids}", "then=hang")
    result = run(QEMU, tmp_path / "log", Deadlines(2.5, 60, 60), nonce="abc123")
    assert result.ending.end == End.NO_BOOT
    processes = [int(pid) for pid in wait_for(pids).split()]
    assert len(processes) == 2
    assert all_gone(processes)


def test_an_exception_ends_it_too(fake, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    pids = tmp_path / "pids"
    fake(f"log={LOGS / 'orphan.log'}", "slow=0.01", "stubborn", f"pids={pids}", "then=hang")

    def fail(name: str) -> None:
        raise ZeroDivisionError(name)

    with pytest.raises(ZeroDivisionError):
        run(QEMU, tmp_path / "log", LONG, nonce="abc123", on_program=fail)
    assert all_gone([int(pid) for pid in wait_for(pids).split()])
    assert (tmp_path / "log").read_bytes().startswith(b"[    0.000000] Linux version")


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFailure, match="could not be started"):
        run(["/no/such/qemu"], tmp_path / "log", LONG)


DRIVER = """
import sys
from pathlib import Path
from harness import cli
from harness.guest import console
class V:
    NAME, DESCRIPTION = "doctor", "d"
    add_arguments = staticmethod(lambda parser: None)
    @staticmethod
    def run(context, args):
        console.run(sys.argv[2:], Path(sys.argv[1]), console.Deadlines(60, 60, 60))
        return 0
cli.verbs.load = lambda name: V
sys.exit(cli.main(["doctor"]))
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -9)])
def test_interrupted_killed_or_shot_nothing_stays(tmp_path: Path, number: signal.Signals, code: int) -> None:
    """SIGKILL leaves no chance to clean up: QEMU dies with its parent all the same (its children are not QEMU's)."""
    pids = tmp_path / "pids"
    words = ["stubborn"] if number != signal.SIGKILL else []
    env = {**os.environ, "FAKE_QEMU": " ".join([*words, f"pids={pids}", "then=hang"])}
    command = [sys.executable, "-c", DRIVER, str(tmp_path / "log"), *QEMU]
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, start_new_session=True) as process:
        processes = [int(pid) for pid in wait_for(pids).split()]
        os.kill(process.pid, number)
        _, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert b"Traceback" not in err
    assert all_gone(processes)
