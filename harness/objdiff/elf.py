"""An object file as far as its code is concerned: sections, symbols and relocations. Pure but for reading it."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.construct.core import ConstructError
from elftools.elf.descriptions import describe_reloc_type
from elftools.elf.elffile import ELFFile
from elftools.elf.relocation import RelocationSection
from elftools.elf.sections import Symbol as ElfSymbol
from elftools.elf.sections import SymbolTableSection

from harness.errors import BuildError

_EXEC, _MERGE, _STRINGS = 0x4, 0x10, 0x20
_KIND = re.compile(r"^R_(?:X86_64|[^_]+)_")
# What a size is told of; the rest of a file's data are tables about its code, such as those of alternatives and bugs.
DATA = (".data", ".bss", ".rodata")
# Relocations whose field counts from the end of the instruction, not from the field: those of x86 do.
_FROM_END = {
    "EM_X86_64": {"PC8", "PC16", "PC32", "PC64", "PLT32", "GOTPCREL", "GOTPCRELX", "REX_GOTPCRELX"},
    "EM_386": {"PC8", "PC16", "PC32", "PLT32"},
}
# Bytes of the field that holds the addend, where the relocation has none of its own.
_FIELDS = {"8": 1, "PC8": 1, "16": 2, "PC16": 2, "32": 4, "PC32": 4, "PLT32": 4}


@dataclass(frozen=True)
class Section:
    """A section; ``content`` is kept of those that the linker merges, of which nothing else has a name."""

    name: str
    flags: int
    size: int
    entry: int = 0
    content: bytes = b""

    @property
    def code(self) -> bool:
        """Whether it holds instructions."""
        return bool(self.flags & _EXEC) and self.size > 0

    def literal(self, offset: int) -> str:
        """What stands at ``offset`` of a merged section, as text; empty when it cannot be told."""
        if not 0 <= offset < len(self.content):
            return ""
        if self.flags & _STRINGS:
            return repr(self.content[offset : self.content.find(b"\0", offset)].decode(errors="backslashreplace"))
        return self.content[offset : offset + self.entry].hex()


@dataclass(frozen=True)
class Symbol:
    """A name for a place; ``function`` if it is one, or code with an end that assembly gave a name."""

    name: str
    section: int
    offset: int
    size: int
    function: bool


@dataclass(frozen=True)
class Relocation:
    """What the linker puts at ``offset``: a symbol by name, or a place in section number ``section``.

    ``kind`` is PC32, CALL26, ...; with ``from_end`` it counts from the end of the instruction.
    """

    offset: int
    kind: str
    symbol: str
    section: int | None
    addend: int
    from_end: bool


@dataclass(frozen=True)
class ObjectFile:
    """What an object file says of its code; ``relocations`` go by section number, sorted by offset."""

    sections: tuple[Section, ...]
    symbols: tuple[Symbol, ...]
    relocations: Mapping[int, tuple[Relocation, ...]] = field(default_factory=dict)

    @property
    def functions(self) -> list[Symbol]:
        """Functions in the order of the file; where assembly gave no size, they end where the next begins."""
        return [
            symbol if symbol.size else Symbol(symbol.name, symbol.section, symbol.offset, self._rest(symbol), True)
            for symbol in self.symbols
            if symbol.function
        ]

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each kind of data."""
        return {kind: sum(s.size for s in self.sections if s.name.split(".")[1:2] == [kind[1:]]) for kind in DATA}

    def at(self, section: int, offset: int) -> Symbol | None:
        """The symbol that covers a place."""
        places, symbols = self._places.get(section, ([], []))
        # Aliases and inner labels stand between a place and what covers it; more than a few are not looked at.
        for index in reversed(range(max(0, bisect_right(places, offset) - 8), bisect_right(places, offset))):
            if offset < places[index] + max(1, symbols[index].size):
                return symbols[index]
        return None

    def _rest(self, symbol: Symbol) -> int:
        end = self.sections[symbol.section].size
        places = self._places[symbol.section][0]
        after = bisect_right(places, symbol.offset)
        return (places[after] if after < len(places) else end) - symbol.offset

    @cached_property
    def _places(self) -> dict[int, tuple[list[int], list[Symbol]]]:
        found: dict[int, list[Symbol]] = {}
        for symbol in self.symbols:
            found.setdefault(symbol.section, []).append(symbol)
        for symbols in found.values():
            symbols.sort(key=lambda symbol: (symbol.offset, symbol.size, symbol.name))
        return {section: ([s.offset for s in symbols], symbols) for section, symbols in found.items()}


def read(path: Path) -> ObjectFile:
    """The object file at ``path``. Raises BuildError when it is none."""
    try:
        with path.open("rb") as file:
            return _read(ELFFile(file))
    except (ELFError, ConstructError, OSError, ValueError, IndexError, KeyError, AttributeError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else str(exc) or type(exc).__name__
        raise BuildError(
            f"{path} is no object file that can be read: {why}", hint="remove it, and build again"
        ) from None


def _read(elf: ELFFile) -> ObjectFile:
    raw = list(elf.iter_sections())
    sections = tuple(
        Section(
            section.name,
            section["sh_flags"],
            section["sh_size"],
            section["sh_entsize"],
            section.data() if section["sh_flags"] & _MERGE else b"",
        )
        for section in raw
    )
    table = next((section for section in raw if isinstance(section, SymbolTableSection)), None)
    entries = list(table.iter_symbols()) if table else []
    symbols = []
    for entry in entries:
        kind, where = entry["st_info"]["type"], entry["st_shndx"]
        # $x and $d tell arm64's disassembler what is code; they name nothing.
        if not isinstance(where, int) or kind in ("STT_SECTION", "STT_FILE") or entry.name.startswith("$"):
            continue
        named = kind == "STT_FUNC" or (kind == "STT_NOTYPE" and entry["st_size"] > 0)
        code = sections[where].code
        symbols.append(Symbol(entry.name, where, entry["st_value"], entry["st_size"], named and code))
    relocations = {}
    for section in raw:
        if isinstance(section, RelocationSection) and sections[section["sh_info"]].code:
            content = raw[section["sh_info"]].data()
            found = _relocations(elf, section, entries, content)
            relocations[section["sh_info"]] = tuple(sorted(found, key=lambda one: one.offset))
    return ObjectFile(sections, tuple(symbols), relocations)


def _relocations(
    elf: ELFFile, section: RelocationSection, entries: list[ElfSymbol], content: bytes
) -> Iterator[Relocation]:
    machine = elf["e_machine"]
    for entry in section.iter_relocations():
        offset = entry["r_offset"]
        # R_X86_64_PC32, R_386_PC32, R_AARCH64_CALL26
        kind = _KIND.sub("", describe_reloc_type(entry["r_info_type"], elf))
        symbol = entries[entry["r_info_sym"]]
        if section.is_RELA():
            addend = entry["r_addend"]
        else:
            addend = int.from_bytes(content[offset : offset + _FIELDS.get(kind, 0)], "little", signed=True)
        where = symbol["st_shndx"] if symbol["st_info"]["type"] == "STT_SECTION" else None
        yield Relocation(offset, kind, symbol.name, where, addend, kind in _FROM_END.get(machine, ()))
