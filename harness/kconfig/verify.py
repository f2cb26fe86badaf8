"""Did every requested symbol take effect? Compares text; the Kconfig files are read only to explain what did not."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from harness.errors import ConfigMismatch
from harness.kconfig.fragments import Request

_LINE = re.compile(r"CONFIG_(\w+)=(.*)")
_MENTIONED = re.compile(r"^(?:# )?CONFIG_(\w+)(?:=| is not set$)", re.MULTILINE)


@dataclass(frozen=True)
class Unmet:
    """A request that did not take effect: wanted and resolved value, ``file:line``, and why."""

    symbol: str
    wanted: str
    got: str
    origin: str
    reason: str = ""

    def __str__(self) -> str:
        why = f": {self.reason}" if self.reason else ""
        return f"{self.origin}: CONFIG_{self.symbol}={self.wanted} became {self.got}{why}"


def resolved(text: str) -> dict[str, str]:
    """Symbol to value of a .config; a symbol that is not set has no entry."""
    values = {}
    for line in text.splitlines():
        if match := _LINE.fullmatch(line):
            values[match[1]] = match[2]
    return values


def _same(wanted: str, got: str) -> bool:
    if wanted == got:
        return True
    try:
        return int(wanted, 0) == int(got, 0)
    except ValueError:
        return False


def verify(requests: Iterable[Request], values: Mapping[str, str]) -> list[Unmet]:
    """The requests that ``values`` (see :func:`resolved`) does not meet, in the order of the requests.

    A request for n is met by a symbol that the configuration does not have; see :func:`unmentioned`.
    """
    unmet = []
    for request in requests:
        got = values.get(request.symbol, "n")
        if not _same(request.shown, got):
            unmet.append(Unmet(request.symbol, request.shown, got, request.origin))
    return unmet


def unmentioned(requests: Iterable[Request], text: str) -> list[Request]:
    """The requests for n whose symbol a .config does not name: off, but perhaps only because nobody knows the name."""
    named = set(_MENTIONED.findall(text))
    return [request for request in requests if request.value is None and request.symbol not in named]


def explained(unmet: Iterable[Unmet], explain: Callable[[str, str, str], str]) -> list[Unmet]:
    """The same with a reason each, from ``explain(symbol, wanted, got)``; those that others wait for come first."""
    told = [replace(item, reason=explain(item.symbol, item.wanted, item.got)) for item in unmet]
    symbols = {item.symbol for item in told}

    def waits(item: Unmet) -> bool:
        return bool(symbols & set(re.findall(r"(\w+)\[=", item.reason)))

    return sorted(told, key=waits)


def mismatch(unmet: list[Unmet], what: str) -> ConfigMismatch:
    """The error to raise for requests that were not met."""
    first = unmet[0]
    rest = f" (and {len(unmet) - 1} more)" if len(unmet) > 1 else ""
    why = f": {first.reason}" if first.reason else ""
    return ConfigMismatch(
        f"{what}: CONFIG_{first.symbol}={first.wanted} did not take effect{why}{rest}",
        detail="\n".join(map(str, unmet)),
        hint=f"mend {first.origin}, or add what it needs to a fragment",
    )
