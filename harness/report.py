"""What a person reads: results on stdout, progress on stderr, a bar only on a terminal."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from typing import TextIO


class Reporter:
    """Progress and results. ``verbosity`` is -1 (quiet), 0 or higher; ``color`` is auto, always or never."""

    def __init__(self, verbosity: int = 0, color: str = "auto", out: TextIO | None = None, err: TextIO | None = None):
        self.verbosity = verbosity
        self.out = out or sys.stdout
        self.err = err or sys.stderr
        self._color = color == "always" or (color == "auto" and self.err.isatty() and "NO_COLOR" not in os.environ)
        self._bar_width = 0
        self._last_percent: tuple[str, int] = ("", -1)

    def result(self, text: str = "") -> None:
        """A line of the result, on stdout."""
        print(text, file=self.out, flush=True)

    def step(self, text: str) -> None:
        """A line of progress, on stderr; silent with -q."""
        if self.verbosity >= 0:
            self.end_bar()
            print(self._paint("36", text), file=self.err, flush=True)

    def debug(self, text: str) -> None:
        """A line shown only with -v."""
        if self.verbosity >= 1:
            self.end_bar()
            print(self._paint("2", text), file=self.err, flush=True)

    def warn(self, text: str) -> None:
        """A line that is shown whatever the verbosity."""
        self.end_bar()
        print(self._paint("33", f"warning: {text}"), file=self.err, flush=True)

    def error(self, message: str, detail: str = "", hint: str = "") -> None:
        """An error: one line, its detail, the next thing to do."""
        self.end_bar()
        print(self._paint("31", f"error: {message}"), file=self.err)
        if detail:
            print(detail.rstrip("\n"), file=self.err)
        if hint:
            print(f"  next: {hint}", file=self.err)
        self.err.flush()

    def progress(self, what: str, done: int, total: int, unit: str = "MiB", scale: int = 1 << 20) -> None:
        """``done`` of ``total``: a bar on a terminal, else one line for every tenth."""
        if self.verbosity < 0 or total <= 0:
            return
        percent = min(100, 100 * done // total)
        if self.err.isatty():
            filled = "#" * (percent * 30 // 100)
            line = f"\r{what} [{filled:<30}] {percent:3d} %  {done / scale:.0f}/{total / scale:.0f} {unit}"
            self._bar_width = max(self._bar_width, len(line))
            self.err.write(line.ljust(self._bar_width))
            self.err.flush()
        elif self._last_percent[0] != what or percent // 10 > self._last_percent[1] // 10:
            self._last_percent = (what, percent)
            print(f"{what} {percent} %  {done / scale:.0f}/{total / scale:.0f} {unit}", file=self.err, flush=True)

    def end_bar(self) -> None:
        """Leave the line of a bar, if there is one."""
        if self._bar_width:
            self.err.write("\n")
            self._bar_width = 0

    def _paint(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._color else text


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
