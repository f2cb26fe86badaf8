"""As much of ELF as is needed to know which libraries a file wants. Pure but for reading it."""

from __future__ import annotations

import struct
from pathlib import Path

_DYNAMIC = 2
_LOAD = 1
_NEEDED = 1
_STRTAB = 5


def needed(path: Path) -> list[str]:
    """The DT_NEEDED entries of a 64-bit little-endian ELF file; none for anything else."""
    with path.open("rb") as file:
        if file.read(6) != b"\x7fELF\x02\x01":
            return []
        file.seek(0)
        raw = file.read()
    try:
        return _needed(raw)
    except (struct.error, ValueError, IndexError, StopIteration):
        return []


def _needed(raw: bytes) -> list[str]:
    offset, size, count = struct.unpack_from("<Q", raw, 32)[0], *struct.unpack_from("<HH", raw, 54)
    loads: list[tuple[int, int, int]] = []
    dynamic: tuple[int, int] | None = None
    for i in range(count):
        kind, _, at, virtual, _, length, _, _ = struct.unpack_from("<IIQQQQQQ", raw, offset + i * size)
        if kind == _LOAD:
            loads.append((virtual, at, length))
        elif kind == _DYNAMIC:
            dynamic = (at, length)
    if dynamic is None:
        return []
    entries = [struct.unpack_from("<qQ", raw, dynamic[0] + i) for i in range(0, dynamic[1] - 15, 16)]
    table = next(value for tag, value in entries if tag == _STRTAB)
    start = next(table - virtual + at for virtual, at, length in loads if virtual <= table < virtual + length)
    return [raw[start + value : raw.index(b"\0", start + value)].decode() for tag, value in entries if tag == _NEEDED]
