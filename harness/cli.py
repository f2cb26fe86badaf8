"""The way in. Light on purpose: signals have their meaning before anything that takes time is imported."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType

from harness import verbs

INTERRUPTED = 130
# SIGHUP: the terminal, or the connection to it, is lost.
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_MESSAGE = "error: interrupted\n  next: run the same command again: finished stages are kept\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns its exit code. Ctrl-C, SIGTERM and SIGHUP end children first and give 130."""
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        _handle(_leave)
        from harness import command

        args = command.parser().parse_args(argv)
        _handle(_unwind)
        return command.run(args)
    except KeyboardInterrupt:  # while an earlier one, or an error, was being reported
        with contextlib.suppress(OSError, AttributeError):  # closed, or the terminal is gone
            sys.stderr.write(_MESSAGE)
        return INTERRUPTED
    finally:
        for number, handler in before.items():
            _set(number, handler)


def _handle(handler: Callable[[int, FrameType | None], None]) -> None:
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup and background jobs have it
            _set(number, handler)


def _set(number: int, handler: object) -> None:
    """Handlers are of the main thread; a thread that calls main() has the ones of its program."""
    with contextlib.suppress(ValueError):
        signal.signal(number, handler)  # type: ignore[arg-type]


def _leave(_signum: int, _frame: FrameType | None) -> None:
    """Before a verb runs there is nothing to end, and half an import is no place to unwind from."""
    try:
        os.write(2, _MESSAGE.encode())
    finally:
        os._exit(INTERRUPTED)


def _unwind(_signum: int, _frame: FrameType | None) -> None:
    """Each unwinds like Ctrl-C, so that whatever owns a child ends it."""
    raise KeyboardInterrupt


__all__ = ["main", "verbs"]
