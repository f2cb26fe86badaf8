"""A console log as lines that know where they come from: the kernel, the guest's init or a test program. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_ESCAPE = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|[@-Z\\-_c])")
_STAMP = re.compile(r"(?:<\d+>)?\[\s*(\d+\.\d+)\](?:\[\s*[TC]\d+\])? ?(.*)$")
_OUTPUT = re.compile(r"harness\|([^|+]+)(\+?)\|(.*)$")
_MARKER = re.compile(r"harness!(\w*)!(\w+) ?(.*)$")
_NONCE = re.compile(r"harness\.nonce=([0-9a-zA-Z]+)")
BANNER = "Linux version "


@dataclass(frozen=True)
class Line:
    """A line of the log, its number from 1. ``message`` has no time; ``seconds`` is the guest's time or None."""

    number: int
    message: str
    seconds: float | None = None
    program: str = ""
    continued: bool = False
    marker: str = ""
    nonce: str = ""
    fields: dict[str, str] = field(default_factory=dict)
    words: tuple[str, ...] = ()

    @property
    def from_kernel(self) -> bool:
        """Neither a program's output nor a marker (so the kernel's, or QEMU's)."""
        return not self.program and not self.marker


def read(text: str) -> list[Line]:
    """The lines of a console log; escape sequences, carriage returns and NULs are dropped."""
    return list(_read(text))


def _read(text: str) -> Iterator[Line]:
    for number, raw in enumerate(text.split("\n"), 1):
        clean = _ESCAPE.sub("", raw).replace("\r", "").replace("\0", "")
        if not clean:
            continue
        seconds: float | None = None
        message = clean
        if match := _STAMP.match(clean):
            seconds, message = float(match.group(1)), match.group(2)
        if match := _OUTPUT.match(message):
            yield Line(number, match.group(3), seconds, program=match.group(1), continued=bool(match.group(2)))
        elif match := _MARKER.match(message):
            words = tuple(match.group(3).split())
            fields = dict(word.split("=", 1) for word in words if "=" in word)
            plain = tuple(word for word in words if "=" not in word)
            yield Line(
                number, message, seconds, marker=match.group(2), nonce=match.group(1), fields=fields, words=plain
            )
        else:
            yield Line(number, message, seconds)


def load(path: Path) -> str:
    """The text of a console log, whatever bytes are in it. Carriage returns go: they would count as line ends."""
    return path.read_bytes().decode(errors="replace").replace("\r", "")


def find_nonce(lines: list[Line]) -> str:
    """The nonce on the guest's kernel command line, empty when there is none."""
    for line in lines:
        if line.from_kernel and (match := _NONCE.search(line.message)):
            return match.group(1)
    return ""


def output(lines: list[Line], program: str) -> list[str]:
    """What a program printed, its long lines whole again."""
    whole: list[str] = []
    begun = ""
    for line in lines:
        if line.program != program:
            continue
        begun += line.message
        if not line.continued:
            whole.append(begun)
            begun = ""
    return [*whole, begun] if begun else whole
