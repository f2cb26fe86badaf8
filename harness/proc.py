"""Running other programs: always with a deadline, always in a process group that can be ended whole."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from harness.errors import EnvironmentFailure, StageTimeout


@dataclass(frozen=True)
class Completed:
    """What a program left behind: ``status`` is its exit status, ``output`` its stdout (and stderr when merged)."""

    argv: tuple[str, ...]
    status: int
    output: str
    errors: str
    seconds: float


def quoted(argv: Sequence[str]) -> str:
    """The command as one line that can be pasted into a shell."""
    return shlex.join(argv)


def require_tool(name: str, *, package: str = "", why: str = "") -> str:
    """The full path of a tool, or EnvironmentFailure naming the package and the command that installs it."""
    path = shutil.which(name)
    if path is None:
        purpose = f" ({why})" if why else ""
        hint = f"install it: sudo apt-get install {package}" if package else "run `harness doctor`"
        raise EnvironmentFailure(f"{name} is not installed{purpose}", hint=hint)
    return path


def not_started(argv: Sequence[str], error: OSError) -> EnvironmentFailure:
    """What to raise when a program cannot be started; a directory to start it in may be what is missing."""
    if isinstance(error, FileNotFoundError) and error.filename in (argv[0], None):
        return EnvironmentFailure(f"{argv[0]} is not installed", hint="run `harness doctor`")
    where = f" in {error.filename}" if error.filename not in (argv[0], None) else ""
    return EnvironmentFailure(
        f"{argv[0]} cannot be started{where}: {error.strerror}", hint="see what it is: ls -l, file; or `harness doctor`"
    )


def end_group(process: subprocess.Popen[bytes], grace_seconds: float = 3.0) -> None:
    """End a process started in its own session with everything it started: SIGTERM, then SIGKILL."""
    for sig, wait in ((signal.SIGTERM, grace_seconds), (signal.SIGKILL, 10.0)):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, sig)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(wait)
            if sig == signal.SIGTERM:
                continue  # the leader is gone; its children may not be
            return


@contextlib.contextmanager
def pool(workers: int | None) -> Iterator[ThreadPoolExecutor]:
    """Threads that each run programs. Whatever is raised, Ctrl-C included, nothing that still waits is begun."""
    with ThreadPoolExecutor(max_workers=workers) as executor:
        try:
            yield executor
        except BaseException:
            executor.shutdown(cancel_futures=True)
            raise


def run(
    argv: Sequence[str],
    *,
    timeout: float,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    unset: Collection[str] = (),
    stdin: bytes | None = None,
    log: Path | None = None,
    check: bool = False,
    what: str = "",
) -> Completed:
    """Run ``argv`` with a deadline of ``timeout`` seconds and return what it printed.

    ``env`` is added to the environment, which has none of ``unset`` otherwise. With ``log`` stdout and stderr go
    together into that file (appended) and ``output`` is empty. Raises EnvironmentFailure when the program is missing
    (or, with ``check``, when it fails) and StageTimeout past the deadline. Past it, and on Ctrl-C, its whole process
    group has ended; what a program that ended by itself left in the background goes on.
    """
    name = what or Path(argv[0]).name
    full_env = {name: value for name, value in os.environ.items() if name not in unset} | dict(env or {})
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        sink = stack.enter_context(log.open("ab")) if log else None
        try:
            process = subprocess.Popen(
                list(argv),
                cwd=cwd,
                env=full_env,
                stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
                stdout=sink or subprocess.PIPE,
                stderr=subprocess.STDOUT if sink else subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as exc:
            raise not_started(argv, exc) from exc
        try:
            out, err = process.communicate(stdin, timeout=timeout)
        except subprocess.TimeoutExpired:
            end_group(process)
            raise StageTimeout(
                f"{name} did not finish within {timeout:g} s",
                hint=f"see {log}" if log else f"run it by hand: {quoted(argv)}",
            ) from None
        except BaseException:
            end_group(process)
            raise
    done = Completed(
        argv=tuple(argv),
        status=process.returncode,
        output=(out or b"").decode(errors="replace"),
        errors=(err or b"").decode(errors="replace"),
        seconds=time.monotonic() - started,
    )
    if check and done.status != 0:
        tail = "\n".join((done.errors or done.output).strip().splitlines()[-10:])
        raise EnvironmentFailure(f"{name} failed with status {done.status}", detail=tail, hint=quoted(argv))
    return done


def feed(
    argv: Sequence[str],
    writer: Callable[[IO[bytes]], None],
    *,
    timeout: float,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    what: str = "",
) -> Completed:
    """Run ``argv`` while ``writer`` writes to its stdin: for what is too large to be held in memory.

    As :func:`run` with ``check``: raises EnvironmentFailure when the program is missing or fails and StageTimeout past
    ``timeout`` seconds; when the writer raises, the program is ended and the exception passes.
    """
    name = what or Path(argv[0]).name
    started = time.monotonic()
    late = threading.Event()
    with tempfile.TemporaryFile() as messages:
        try:
            process = subprocess.Popen(
                list(argv),
                cwd=cwd,
                env={**os.environ, **env} if env else None,
                stdin=subprocess.PIPE,
                stdout=messages,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as exc:
            raise not_started(argv, exc) from exc

        def end_late() -> None:
            late.set()
            end_group(process)

        timer = threading.Timer(timeout, end_late)
        timer.daemon = True
        timer.start()
        assert process.stdin is not None
        try:
            # A program that gives up early closes the pipe; its status and message say why.
            with contextlib.suppress(BrokenPipeError):
                writer(process.stdin)
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            process.wait()
        except BaseException:
            end_group(process)
            with contextlib.suppress(OSError):
                process.stdin.close()
            if late.is_set():
                raise StageTimeout(f"{name} did not finish within {timeout:g} s") from None
            raise
        finally:
            timer.cancel()
        messages.seek(0)
        output = messages.read().decode(errors="replace")
    if late.is_set():
        raise StageTimeout(f"{name} did not finish within {timeout:g} s", hint=f"run it by hand: {quoted(argv)}")
    if process.returncode != 0:
        tail = "\n".join(output.strip().splitlines()[-10:])
        raise EnvironmentFailure(f"{name} failed with status {process.returncode}", detail=tail, hint=quoted(argv))
    return Completed(tuple(argv), 0, output, "", time.monotonic() - started)
