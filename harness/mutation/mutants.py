"""The mutants of configs/mutants.yaml as data, and the source in which each of them can be switched on.

All of them go into one kernel: what a mutant changes depends on ``agent_mutant``, a parameter of the kernel's command
line that holds the mutant's number, counted from 1. With 0 the kernel is what the series makes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.errors import UsageError

PARAMETER = "agent_mutant"
# Stands for "this mutant is on" in the replacement of an edit.
PLACEHOLDER = "MUTANT"
# Before the name of a KUnit suite, where no program is the test.
KUNIT = "kunit/"
# Where the parameter is defined: compiled in any configuration, and of no interest to a mutant.
HOME = "init/main.c"
_DEFINITION = f"\nint {PARAMETER};\ncore_param({PARAMETER}, {PARAMETER}, int, 0444);\n"
_DECLARATION = f"extern int {PARAMETER};\n"


@dataclass(frozen=True)
class Edit:
    """In ``file`` of the kernel, ``find``, which is there once, becomes ``replace``."""

    file: str
    find: str
    replace: str


@dataclass(frozen=True)
class Mutant:
    """A defect: what it ``breaks``, in words after "a kernel where", and the ``test`` that should notice.

    The test is a program or, after ``kunit/``, a suite. ``guest`` names the guest of qemu/guests in which the program
    runs; empty for the plain one.
    """

    name: str
    breaks: str
    test: str
    edits: tuple[Edit, ...]
    guest: str = ""


@dataclass(frozen=True)
class Mutants:
    """All of them; a mutant's number is its place."""

    mutants: tuple[Mutant, ...]

    def number(self, mutant: Mutant) -> int:
        """The value of the parameter that switches ``mutant`` on."""
        return self.mutants.index(mutant) + 1

    def select(self, names: Sequence[str]) -> list[Mutant]:
        """Those with these names or of these tests, all for none. Raises UsageError for a name that means none."""
        for name in names:
            if not any(name in (mutant.name, mutant.test) for mutant in self.mutants):
                known = ", ".join(mutant.name for mutant in self.mutants)
                raise UsageError(f"there is no mutant {name!r}, nor one for such a test", hint=f"known: {known}")
        return [mutant for mutant in self.mutants if not names or {mutant.name, mutant.test} & set(names)]

    def files(self) -> list[str]:
        """The files that are changed, sorted."""
        return sorted({HOME, *(edit.file for mutant in self.mutants for edit in mutant.edits)})


def check(mutants: Mutants, where: str) -> None:
    """Raises UsageError for what no kernel is needed to see: a name twice, a mutant that changes nothing."""
    names = [mutant.name for mutant in mutants.mutants]
    for mutant in mutants.mutants:
        if names.count(mutant.name) > 1:
            raise UsageError(f"{where}: two mutants are called {mutant.name!r}")
        if not any(PLACEHOLDER in edit.replace for edit in mutant.edits):
            raise UsageError(
                f"{where}: {mutant.name}: no replacement has {PLACEHOLDER}, so it would always be on",
                hint=f"write {PLACEHOLDER} where the mutant is to be switched on",
            )
        for edit in mutant.edits:
            if not edit.find.strip() or edit.file == HOME:
                raise UsageError(f"{where}: {mutant.name}: an edit finds nothing, or is in {HOME}")


def apply(mutants: Mutants, sources: Mapping[str, str]) -> dict[str, str]:
    """The texts of :meth:`Mutants.files` with every mutant built in; ``sources`` are what they are without.

    Raises UsageError naming the mutant when what it looks for is not there, or is there more than once.
    """
    texts = dict(sources)
    for number, mutant in enumerate(mutants.mutants, 1):
        for edit in mutant.edits:
            count = texts[edit.file].count(edit.find)
            if count != 1:
                raise UsageError(
                    f"mutant {mutant.name}: {edit.find.strip().splitlines()[0]!r} is {count} times in {edit.file}",
                    hint="adapt configs/mutants.yaml to the series",
                )
            on = edit.replace.replace(PLACEHOLDER, f"({PARAMETER} == {number})")
            texts[edit.file] = texts[edit.file].replace(edit.find, on)
    for file in texts:
        texts[file] = texts[file] + _DEFINITION if file == HOME else _DECLARATION + texts[file]
    return texts
