"""Two output directories of the kernel's build, compared object by object and function by function."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from harness import proc
from harness.errors import BuildError
from harness.objdiff import code, elf
from harness.objdiff.code import Function, Key

# Programs of the host, wherever they are; and, at the top only, the archive that is built in as data.
_PROGRAMS = ("scripts", "tools")
_ARCHIVE = "usr"
ADDED, REMOVED, CHANGED = "added", "removed", "changed"


@dataclass(frozen=True)
class Difference:
    """A function that is not in both directories, or not the same; sizes in bytes, 0 where it is not.

    ``first`` is the first pair of lines that differ, ``diff`` all of them as ``diff -u`` has them.
    """

    object: str
    section: str
    function: str
    what: str
    before: int
    after: int
    first: str = ""
    diff: tuple[str, ...] = ()


@dataclass(frozen=True)
class Size:
    """Data of one kind in an object whose size differs, in bytes."""

    object: str
    kind: str
    before: int
    after: int


@dataclass(frozen=True)
class Comparison:
    """How many ``objects`` and ``functions`` were compared, and what differs."""

    objects: int
    functions: int
    differences: tuple[Difference, ...] = ()
    sizes: tuple[Size, ...] = ()


def objects(directory: Path) -> list[str]:
    """The built-in objects that were compiled from C or assembly, as paths below ``directory``, sorted.

    Raises BuildError when there are none.
    """
    found = []
    for where, directories, names in os.walk(directory):
        skipped = (*_PROGRAMS, _ARCHIVE) if Path(where) == directory else _PROGRAMS
        directories[:] = [name for name in directories if name not in skipped]
        found += [
            str((Path(where) / name).relative_to(directory))
            for name in names
            if name.endswith(".o") and _compiled(Path(where) / name)
        ]
    if not found:
        raise BuildError(f"{directory} holds no compiled object", hint="remove it, and build again")
    return sorted(found)


def _compiled(path: Path) -> bool:
    """Whether the kernel's build has noted a source file for it: what is linked or copied from objects has none."""
    try:
        return b"\nsource_" in path.with_name(f".{path.name}.cmd").read_bytes()
    except FileNotFoundError:
        return False


def compare(before: Path, after: Path, objdump: str, workers: int | None = None) -> Comparison:
    """What differs in ``after``. Raises BuildError for an object that cannot be read, and what objdump raises."""
    old, new = set(objects(before)), set(objects(after))
    names = sorted(old | new)

    def one(name: str) -> Comparison:
        return compare_object(name, before if name in old else None, after if name in new else None, objdump)

    with proc.pool(workers) as pool:
        parts = list(pool.map(one, names))
    return Comparison(
        len(names),
        sum(part.functions for part in parts),
        tuple(difference for part in parts for difference in part.differences),
        tuple(size for part in parts for size in part.sizes),
    )


def compare_object(name: str, before: Path | None, after: Path | None, objdump: str) -> Comparison:
    """One object, which may be missing on one side."""
    if before and after and (before / name).read_bytes() == (after / name).read_bytes():
        # No two functions of equal files differ, so they are counted and no more.
        return Comparison(1, len(elf.read(after / name).functions))
    old, old_sizes = _load(name, before, objdump)
    new, new_sizes = _load(name, after, objdump)
    kinds = [kind for kind in elf.DATA if old_sizes.get(kind, 0) != new_sizes.get(kind, 0)]
    named = sum(key.name != code.UNNAMED for key in old.keys() | new.keys())
    changed = tuple(Size(name, kind, old_sizes.get(kind, 0), new_sizes.get(kind, 0)) for kind in kinds)
    return Comparison(1, named, tuple(differences(name, old, new)), changed)


def _load(name: str, directory: Path | None, objdump: str) -> tuple[Mapping[Key, Function], Mapping[str, int]]:
    if directory is None:
        return {}, {}
    obj = elf.read(directory / name)
    found = code.normalize(obj, code.disassemble(objdump, directory / name, obj))
    if empty := next((key.name for key, function in found.items() if function.size and not function.lines), ""):
        raise BuildError(f"{objdump} shows no code of {empty} in {directory / name}", hint="it has to be that of GNU")
    return found, obj.sizes


def differences(name: str, old: Mapping[Key, Function], new: Mapping[Key, Function]) -> Iterator[Difference]:
    """What differs between the functions of an object. Pure."""
    for key in sorted(old.keys() | new.keys(), key=lambda key: (key.section, key.name, key.ordinal)):
        was, now = old.get(key), new.get(key)
        if was is None or now is None:
            what = ADDED if was is None else REMOVED
            size = (was.size if was else 0, now.size if now else 0)
            yield Difference(name, key.section, key.name, what, *size)
        elif was.lines != now.lines:
            diff = tuple(difflib.unified_diff(was.lines, now.lines, "unpatched", "series", lineterm=""))
            yield Difference(name, key.section, key.name, CHANGED, was.size, now.size, _first(diff), diff)


def _first(diff: tuple[str, ...]) -> str:
    """The first pair of lines that differ; a label that has moved says nothing when there is more."""
    lines = [line for line in diff[2:] if not line.endswith(":")]
    minus = next((line[1:] for line in lines if line.startswith("-")), "")
    plus = next((line[1:] for line in lines if line.startswith("+")), "")
    return f"{minus or '(none)'} -> {plus or '(none)'}"
