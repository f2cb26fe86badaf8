"""Kconfig fragments: text to requests, and several fragments to one, each request with the line it came from."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from harness.errors import UsageError

_SET = re.compile(r"CONFIG_(\w+)=(.*)")
_UNSET = re.compile(r"#\s*CONFIG_(\w+) is not set")
_NEARLY_UNSET = re.compile(r"#\s*CONFIG_\w+\s+is\b")
_VALUE = re.compile(r'[ymn]|"(?:[^"\\]|\\.)*"|-?\d+|0[xX][0-9a-fA-F]+')


@dataclass(frozen=True)
class Request:
    """One symbol (without ``CONFIG_``) and the value it is to have; None is n. ``origin`` is ``file:line``."""

    symbol: str
    value: str | None
    origin: str

    @property
    def shown(self) -> str:
        """The value as a person writes it."""
        return self.value if self.value is not None else "n"

    @property
    def line(self) -> str:
        """The request in the syntax of a .config."""
        if self.value is None:
            return f"# CONFIG_{self.symbol} is not set"
        return f"CONFIG_{self.symbol}={self.value}"


@dataclass(frozen=True)
class Merged:
    """Fragments put together: what counts, by symbol, and the pairs (earlier, later) that disagreed."""

    requests: dict[str, Request]
    overridden: tuple[tuple[Request, Request], ...]

    def render(self) -> str:
        """The fragment that Kconfig is given."""
        return "".join(f"{request.line}\n" for request in self.requests.values())


def parse(text: str, name: str) -> tuple[Request, ...]:
    """The requests of one fragment, in order. Raises UsageError naming file and line for anything else than requests,
    comments and blank lines."""
    found = []
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        origin = f"{name}:{number}"
        if match := _UNSET.fullmatch(line):
            found.append(Request(match[1], None, origin))
        elif match := _SET.fullmatch(line):
            if not _VALUE.fullmatch(match[2]):
                raise UsageError(
                    f"{origin}: {match[2]!r} is no value for CONFIG_{match[1]}",
                    hint='values are y, n, m, a number, 0x and hex digits, or a "string"; comments have their own line',
                )
            found.append(Request(match[1], None if match[2] == "n" else match[2], origin))
        elif (line and not line.startswith("#")) or _NEARLY_UNSET.match(line):
            raise UsageError(
                f"{origin}: not a line of a Kconfig fragment: {line!r}",
                hint="write CONFIG_NAME=value, `# CONFIG_NAME is not set`, or a comment",
            )
    return tuple(found)


def read(path: Path, shown: str = "") -> tuple[Request, ...]:
    """The requests of a fragment file; ``shown`` is the name that origins carry. Raises UsageError."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.config"))) or "none"
        raise UsageError(f"the Kconfig fragment {path} does not exist", hint=f"known: {known}") from None
    except UnicodeDecodeError as exc:
        raise UsageError(f"{path} is not UTF-8 text: {exc.reason} at byte {exc.start}") from None
    return parse(text, shown or str(path))


def merge(fragments: Iterable[Iterable[Request]]) -> Merged:
    """Later requests go before earlier ones; the pairs with different values are reported."""
    requests: dict[str, Request] = {}
    overridden = []
    for fragment in fragments:
        for request in fragment:
            earlier = requests.pop(request.symbol, None)
            if earlier is not None and earlier.value != request.value:
                overridden.append((earlier, request))
            requests[request.symbol] = request
    return Merged(requests, tuple(overridden))
