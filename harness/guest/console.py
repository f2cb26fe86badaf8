"""A virtual machine's console under deadlines: everything it prints goes to a file as it comes, and it always ends."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pexpect

from harness.errors import EnvironmentFailure
from harness.fs import disk_errors
from harness.guest.verdict import End, Ending

READ_SIZE = 1 << 16
LOG_LIMIT = 64 << 20
# After a panic, or after the end marker, the guest has this long to go.
GRACE_SECONDS = 15.0
POLL_SECONDS = 0.25
_PR_SET_PDEATHSIG = 1

_START = re.compile(rb"harness!(\w*)!start ")
_DONE = re.compile(rb"harness!(\w*)!done ")
_PANIC = re.compile(rb"(?:^|\] )Kernel panic - not syncing")
_BEGIN = re.compile(rb"harness!\w*!begin (\S+)")
_BANNER = re.compile(rb"(?:^|\] )Linux version ")


@dataclass(frozen=True)
class Deadlines:
    """Seconds: ``boot`` from power-on to the first marker, ``silence`` between two lines, ``total`` for everything."""

    boot: float
    silence: float
    total: float

    def scaled(self, factor: float) -> Deadlines:
        """For a slower kernel."""
        return Deadlines(self.boot * factor, self.silence * factor, self.total * factor)

    def patient(self) -> Deadlines:
        """For what may be quiet as long as it runs."""
        return replace(self, silence=self.total)


@dataclass(frozen=True)
class ConsoleResult:
    """``boot_seconds`` is host time from power-on to the guest's first marker, ``seconds`` to the end of QEMU."""

    ending: Ending
    log: Path
    seconds: float
    boot_seconds: float | None
    guest_spoke: bool


def _die_with_parent() -> None:
    """In the child, before exec: a harness that is killed outright takes its virtual machine with it."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _end(child: pexpect.spawn[bytes]) -> None:
    """Kill the child's whole process group and reap it; a guest has nothing to lose."""
    pid = int(child.pid or 0)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while _peek(pid) is None and time.monotonic() < deadline:
        time.sleep(0.01)
    with contextlib.suppress(pexpect.ExceptionPexpect, OSError):
        child.close(force=True)


def run(
    argv: Sequence[str],
    log: Path,
    deadlines: Deadlines,
    *,
    nonce: str = "",
    on_program: Callable[[str], None] | None = None,
    on_poll: Callable[[], None] | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    serial: Path | None = None,
) -> ConsoleResult:
    """Run ``argv`` until it ends or a deadline passes, its output going to ``log`` as it comes.

    The program has a session of its own and is dead, with its process group, when this returns or raises.
    ``on_program`` is called with the name of each program that the guest begins, ``on_poll`` several times a
    second. ``env`` is added to the environment. ``serial`` is a file that the program writes the console to; it is
    emptied first, and goes to ``log`` like the program's own output. Raises EnvironmentFailure when the program
    cannot be started.
    """
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        with disk_errors(log.parent):
            log.parent.mkdir(parents=True, exist_ok=True)
            sink = stack.enter_context(log.open("wb", buffering=0))
            more: Callable[[], bytes] = bytes
            if serial is not None:
                serial.write_bytes(b"")
                more = stack.enter_context(serial.open("rb", buffering=0)).readall
        try:
            child: pexpect.spawn[bytes] = pexpect.spawn(
                argv[0],
                list(argv[1:]),
                timeout=None,
                echo=False,
                dimensions=(50, 4096),
                preexec_fn=_die_with_parent,
                cwd=str(cwd) if cwd else None,
                env={**os.environ, **env} if env else None,
            )
        except (pexpect.ExceptionPexpect, OSError) as exc:
            raise EnvironmentFailure(
                f"{argv[0]} could not be started: {_first_line(exc)}", hint="run `harness doctor`"
            ) from None
        stack.callback(_end, child)
        watch = _Watch(deadlines, nonce, started, on_program)
        with disk_errors(log.parent):
            ending = _follow(child, sink.write, watch, on_poll or (lambda: None), more)
    return ConsoleResult(ending, log, time.monotonic() - started, watch.boot_seconds, watch.guest_spoke)


def _first_line(exc: BaseException) -> str:
    return str(exc).strip().split("\n", 1)[0]


class _Watch:
    """What has been seen so far, and which deadline is next."""

    def __init__(
        self, deadlines: Deadlines, nonce: str, started: float, on_program: Callable[[str], None] | None
    ) -> None:
        self.deadlines = deadlines
        self.nonce = nonce.encode()
        self.started = started
        self.on_program = on_program
        self.last = started
        self.boot_seconds: float | None = None
        self.finished: float | None = None
        self.doomed: float | None = None
        self.guest_spoke = False
        self.size = 0
        self._rest = b""

    def take(self, data: bytes) -> None:
        """Look at new output, whole lines only."""
        self.last = time.monotonic()
        self.size += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._rest = self._rest[-READ_SIZE:]
        for line in lines:
            self._line(line)

    def _line(self, line: bytes) -> None:
        now = time.monotonic()
        if _BANNER.search(line):
            self.guest_spoke = True
        if self.boot_seconds is None and (match := _START.search(line)) and self._ours(match.group(1)):
            self.boot_seconds = now - self.started
            self.guest_spoke = True
        elif self.finished is None and (match := _DONE.search(line)) and self._ours(match.group(1)):
            self.finished = now
        elif self.doomed is None and _PANIC.search(line):
            self.doomed = now
            self.guest_spoke = True
        elif self.on_program and (match := _BEGIN.search(line)):
            self.on_program(match.group(1).decode(errors="replace"))

    def _ours(self, nonce: bytes) -> bool:
        return not self.nonce or nonce == self.nonce

    def passed(self) -> Ending | None:
        """The deadline that has passed, if one has."""
        now = time.monotonic()
        limits = self.deadlines
        if self.size > LOG_LIMIT:
            return Ending(End.FLOOD)
        if self.finished is not None:
            return Ending(End.STUCK_OFF, None, GRACE_SECONDS) if now - self.finished > GRACE_SECONDS else None
        if self.doomed is not None and now - self.doomed > GRACE_SECONDS:
            return Ending(End.SILENT, None, GRACE_SECONDS)
        if now - self.started > limits.total:
            return Ending(End.DEADLINE, None, limits.total)
        if self.boot_seconds is None and now - self.started > limits.boot:
            return Ending(End.NO_BOOT, None, limits.boot)
        if now - self.last > limits.silence:
            return Ending(End.SILENT, None, limits.silence)
        return None


def _follow(
    child: pexpect.spawn[bytes],
    write: Callable[[bytes], object],
    watch: _Watch,
    poll: Callable[[], None],
    more: Callable[[], bytes],
) -> Ending:
    ended = False
    while True:
        poll()
        data = b""
        try:
            data = child.read_nonblocking(READ_SIZE, timeout=POLL_SECONDS)
        except pexpect.TIMEOUT:
            pass
        except pexpect.EOF:
            ended = True
        if data := data + more():
            write(data.replace(b"\r", b""))  # the line ends of a terminal, not the guest's words
            watch.take(data)
        if ended:
            return Ending(End.EXITED, _status(child))
        if ending := watch.passed():
            return ending


def _peek(pid: int) -> int | None:
    """The exit status of a child that has ended (minus the signal that killed it), left for others to reap.

    None while it runs. pexpect's own question waits for ever once the child has closed its terminal.
    """
    try:
        info = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return 0
    if info is None:
        return None
    return info.si_status if info.si_code == os.CLD_EXITED else -info.si_status


def _status(child: pexpect.spawn[bytes]) -> int | None:
    """The exit status after the end of output; None when it would not go."""
    deadline = time.monotonic() + GRACE_SECONDS
    while time.monotonic() < deadline:
        if child.terminated:  # a read that found the child gone has reaped it, and only pexpect knows the status now
            return -child.signalstatus if child.signalstatus is not None else child.exitstatus
        status = _peek(int(child.pid or 0))
        if status is not None:
            return status
        time.sleep(0.01)
    return None
