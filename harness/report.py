"""What a person reads: results on stdout, progress on stderr, a bar only on a terminal."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import time
from collections.abc import Sequence
from typing import TextIO

from harness.errors import EnvironmentFailure


class Reporter:
    """Progress and results. ``verbosity`` is -1 (quiet), 0 or higher; ``color`` is auto, always or never."""

    def __init__(self, verbosity: int = 0, color: str = "auto", out: TextIO | None = None, err: TextIO | None = None):
        self.verbosity = verbosity
        # A stream that was closed before we began is None.
        self.out: TextIO = out or sys.stdout or io.StringIO()
        self.err: TextIO = err or sys.stderr or io.StringIO()
        self._color = color == "always" or (color == "auto" and self.err.isatty() and "NO_COLOR" not in os.environ)
        self._bar_width = 0
        self._last_percent: tuple[str, int] = ("", -1)

    def result(self, text: str = "") -> None:
        """A line of the result, on stdout; when its reader has gone (``| head``), nobody wants the rest.

        Raises EnvironmentFailure when it cannot be written for another reason.
        """
        try:
            print(text, file=self.out, flush=True)
        except OSError as exc:
            _silence(self.out)
            if not isinstance(exc, BrokenPipeError):
                raise EnvironmentFailure(
                    f"cannot write to standard output: {exc.strerror}", hint="send it somewhere else"
                ) from exc

    def step(self, text: str) -> None:
        """A line of progress, on stderr; silent with -q."""
        if self.verbosity >= 0:
            self.end_bar()
            self._tell(self._paint("36", text) + "\n")

    def debug(self, text: str) -> None:
        """A line shown only with -v."""
        if self.verbosity >= 1:
            self.end_bar()
            self._tell(self._paint("2", text) + "\n")

    def warn(self, text: str) -> None:
        """A line that is shown whatever the verbosity."""
        self.end_bar()
        self._tell(self._paint("33", f"warning: {text}") + "\n")

    def error(self, message: str, detail: str = "", hint: str = "") -> None:
        """An error: one line, its detail, the next thing to do."""
        self.end_bar()
        lines = [self._paint("31", f"error: {message}"), detail.rstrip("\n"), f"  next: {hint}" if hint else ""]
        self._tell("".join(f"{line}\n" for line in lines if line))

    def detail(self, text: str) -> None:
        """Lines that belong to a result, on stderr as they are."""
        self.end_bar()
        self._tell(f"{text}\n")

    def progress(self, what: str, done: int, total: int, unit: str = "MiB", scale: int = 1 << 20) -> None:
        """``done`` of ``total``: a bar on a terminal, else one line for every tenth."""
        if self.verbosity < 0 or total <= 0:
            return
        percent = min(100, 100 * done // total)
        if self.err.isatty():
            filled = "#" * (percent * 30 // 100)
            line = f"\r{what} [{filled:<30}] {percent:3d} %  {done / scale:.0f}/{total / scale:.0f} {unit}"
            self._bar_width = max(self._bar_width, len(line))
            self._tell(line.ljust(self._bar_width))
        elif self._last_percent[0] != what or percent // 10 > self._last_percent[1] // 10:
            self._last_percent = (what, percent)
            self._tell(f"{what} {percent} %  {done / scale:.0f}/{total / scale:.0f} {unit}\n")

    def end_bar(self) -> None:
        """Leave the line of a bar, if there is one."""
        if self._bar_width:
            self._tell("\n")
            self._bar_width = 0

    def _tell(self, text: str) -> None:
        """Write to stderr, if it can be written: what came of a run does not depend on who watches."""
        try:
            self.err.write(text)
            self.err.flush()
        except OSError:
            _silence(self.err)

    def _paint(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._color else text


def _silence(stream: TextIO) -> None:
    """Let a stream that cannot be written go nowhere, what it still holds included."""
    with contextlib.suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def table(rows: Sequence[Sequence[str]], header: Sequence[str] = ()) -> str:
    """Rows as aligned columns of plain text."""
    everything = [list(header), *map(list, rows)] if header else [list(r) for r in rows]
    if not everything:
        return ""
    widths = [max(len(row[i]) if i < len(row) else 0 for row in everything) for i in range(max(map(len, everything)))]
    lines = ["  ".join(cell.ljust(widths[i]) for i, cell in enumerate(row)).rstrip() for row in everything]
    if header:
        lines.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join(lines)


class Stopwatch:
    """Seconds since it was made, as ``str()`` for a person."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        """Elapsed seconds."""
        return time.monotonic() - self._start

    def __str__(self) -> str:
        s = self.seconds
        return f"{s:.1f} s" if s < 100 else f"{int(s) // 60} min {int(s) % 60} s"
