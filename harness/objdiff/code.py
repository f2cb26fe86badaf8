"""The code of an object file, a list of lines a function, in which only what a reader would call a change shows.

Offsets are gone: a jump goes to a numbered label, a call and an operand to a name. So are the numbers by which the
compiler tells local names apart. Pure but for objdump itself.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import proc
from harness.objdiff.elf import ObjectFile, Relocation, Symbol

OBJDUMP_ARGUMENTS = ("-d", "-w", "-z", "--no-show-raw-insn")
# Code that no symbol covers: replacements of alternatives, and what assembly did not name.
UNNAMED = "(unnamed)"
_SECTION = re.compile(r"Disassembly of section (.*):")
_INSTRUCTION = re.compile(r" *([0-9a-f]+):\t(.*)")
_COMMENT = re.compile(r"\s+(?:# |// ?).*")
# The address that objdump worked out, with its own idea of what is there.
_ADDRESS = re.compile(r"\b(?:0x)?([0-9a-f]+) <[^>]*>")
_RIP = re.compile(r"-?0x[0-9a-f]+\(%rip\)(.*?)\s+# ([0-9a-f]+) <.*")
_PADDING = re.compile(r"(?:data16 |cs )*(?:nop[wl]?\b.*|int3|xchg +%ax,%ax|udf\b.*)")
_NUMBERS = (
    (re.compile(r"\.\d+"), ""),  # x.12 of a function's static, .constprop.0 of a clone
    (re.compile(r"(__UNIQUE_ID_\w*?)\d+$"), r"\1"),
    (re.compile(r"__\d+_\d+_"), "__"),  # __initcall__kmod_NAME__COUNTER_LINE_FUNCTION
    (re.compile(r"^\.L\w*?\d+$"), ".L"),
)


@dataclass(frozen=True)
class Key:
    """By what a function is found again: ``ordinal`` counts those of one name, whose order is the file's."""

    section: str
    name: str
    ordinal: int = 0


@dataclass(frozen=True)
class Function:
    """The size in bytes and the normalized lines of a function."""

    size: int
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Instruction:
    """An instruction as objdump writes it; ``end`` is the offset behind it."""

    offset: int
    end: int
    text: str


def plain(name: str) -> str:
    """A symbol's name without what the compiler numbers."""
    for pattern, text in _NUMBERS:
        name = pattern.sub(text, name)
    return name


def keys(obj: ObjectFile) -> list[tuple[Key, Symbol]]:
    """The functions of an object file, each with its key."""
    seen: Counter[tuple[str, str]] = Counter()
    found = []
    for symbol in sorted(obj.functions, key=lambda symbol: (symbol.section, symbol.offset)):
        section = obj.sections[symbol.section].name
        # With -ffunction-sections each has a section of its name.
        section, name = plain(section.removesuffix(f".{symbol.name}")), plain(symbol.name)
        found.append((Key(section, name, seen[section, name]), symbol))
        seen[section, name] += 1
    return found


def disassemble(objdump: str, path: Path, obj: ObjectFile) -> dict[int, list[Instruction]]:
    """The instructions of each section. Raises EnvironmentFailure when objdump is missing or refuses."""
    argv = [objdump, *OBJDUMP_ARGUMENTS, str(path)]
    return parse(proc.run(argv, timeout=120, env={"LC_ALL": "C"}, check=True).output, obj)


def parse(text: str, obj: ObjectFile) -> dict[int, list[Instruction]]:
    """What objdump printed, by the number of the section; sections of one name come in their order."""
    numbers: dict[str, list[int]] = {}
    for number, section in enumerate(obj.sections):
        if section.code:
            numbers.setdefault(section.name, []).append(number)
    lines: dict[int, list[tuple[int, str]]] = {}
    current: list[tuple[int, str]] = []
    for line in text.splitlines():
        if match := _SECTION.fullmatch(line):
            current = lines.setdefault(numbers[match[1]].pop(0), []) if numbers.get(match[1]) else []
        elif match := _INSTRUCTION.fullmatch(line):
            current.append((int(match[1], 16), match[2]))
    return {
        number: [
            Instruction(offset, following, words)
            for (offset, words), following in zip(
                found, [*(offset for offset, _ in found[1:]), obj.sections[number].size], strict=True
            )
        ]
        for number, found in lines.items()
    }


def normalize(obj: ObjectFile, code: Mapping[int, Sequence[Instruction]]) -> dict[Key, Function]:
    """Every function, and for each section the code that belongs to none."""
    found: dict[Key, Function] = {}
    covered: dict[int, set[int]] = {}
    for key, symbol in keys(obj):
        instructions = code.get(symbol.section, [])
        first = bisect_left(instructions, symbol.offset, key=lambda one: one.offset)
        last = bisect_left(instructions, symbol.offset + symbol.size, key=lambda one: one.offset)
        found[key] = Function(symbol.size, _lines(obj, symbol.section, instructions[first:last]))
        covered.setdefault(symbol.section, set()).update(range(first, last))
    for section, instructions in code.items():
        taken = covered.get(section, set())
        rest = [one for index, one in enumerate(instructions) if index not in taken]
        # What fills up to the next function is no code.
        rest = [one for one in rest if not _PADDING.fullmatch(one.text.strip())] if taken else rest
        if rest:
            size = sum(one.end - one.offset for one in rest)
            name = plain(obj.sections[section].name)
            ordinal = sum(key.section == name and key.name == UNNAMED for key in found)
            found[Key(name, UNNAMED, ordinal)] = Function(size, _lines(obj, section, rest, named=False))
    return found


@dataclass(frozen=True)
class _Stretch:
    """Where lines are made of: offsets ``inside`` of a section get labels. ``named``: it is a function."""

    obj: ObjectFile
    section: int
    inside: frozenset[int]
    named: bool


def _lines(
    obj: ObjectFile, section: int, instructions: Sequence[Instruction], *, named: bool = True
) -> tuple[str, ...]:
    """The lines of a stretch of code: labels where it jumps to, then each instruction with names for addresses."""
    here = _Stretch(obj, section, frozenset(one.offset for one in instructions), named)
    relocations = obj.relocations.get(section, ())
    texts: list[tuple[int, list[str | int]]] = []  # a number is an offset in this stretch
    for one in instructions:
        first = bisect_left(relocations, one.offset, key=lambda relocation: relocation.offset)
        last = bisect_left(relocations, one.end, key=lambda relocation: relocation.offset)
        texts.append((one.offset, _parts(here, one, relocations[first:last])))
    targets = sorted({part for _, parts in texts for part in parts if isinstance(part, int)})
    labels = {offset: f"L{number}" for number, offset in enumerate(targets, 1)}
    lines = []
    for offset, parts in texts:
        if offset in labels:
            lines.append(f"{labels[offset]}:")
        lines.append("".join(labels[part] if isinstance(part, int) else part for part in parts))
    return tuple(lines)


def _parts(here: _Stretch, one: Instruction, relocations: Sequence[Relocation]) -> list[str | int]:
    text = " ".join(one.text.split("\t"))
    if relocations:
        # Its address is the linker's to fill in: what objdump makes of the empty field means nothing.
        text = _COMMENT.sub("", _ADDRESS.sub("", text))
        parts: list[str | int] = [" ".join(text.split())]
        for relocation in relocations:
            parts += [f" [{relocation.kind} ", _target(here, one, relocation), "]"]
        return parts
    if match := _RIP.search(text):
        return [text[: match.start()], _place(here, here.section, int(match[2], 16)), f"(%rip){match[1]}"]
    text = _COMMENT.sub("", text)
    if match := _ADDRESS.search(text):
        place = _place(here, here.section, int(match[1], 16))
        return [" ".join(text[: match.start()].split()) + " ", place, text[match.end() :]]
    return [" ".join(text.split())]


def _target(here: _Stretch, one: Instruction, relocation: Relocation) -> str | int:
    addend = relocation.addend + (one.end - relocation.offset if relocation.from_end else 0)
    if relocation.section is not None:
        return _place(here, relocation.section, addend)
    return f"{plain(relocation.symbol)}{f'{addend:+#x}' if addend else ''}"


def _place(here: _Stretch, section: int, offset: int) -> str | int:
    """A place in a section by name; data that has none is told by its content, or its section alone."""
    if section == here.section and offset in here.inside:
        return offset
    if symbol := here.obj.at(section, offset):
        rest = offset - symbol.offset
        if symbol.function and not here.named:
            # An alternative jumps back into its function, which tells by itself that it has changed.
            return plain(symbol.name)
        return f"{plain(symbol.name)}{f'+{rest:#x}' if rest else ''}"
    name, literal = plain(here.obj.sections[section].name), here.obj.sections[section].literal(offset)
    return f"{name} {literal}" if literal else name
