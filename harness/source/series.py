"""The stored series: the patches that ``patches/series`` lists, in that order."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from harness.errors import UsageError
from harness.source.mail import Patch, decode, parse

SERIES_FILE = "series"
COVER_FILE = "cover-letter.md"
# Stands in the directory while ``harness refresh`` writes; one that stays behind says that it was interrupted.
UNFINISHED = ".refresh-unfinished"


@dataclass(frozen=True)
class Series:
    """Patches in order, and the cover letter (first line subject, rest body), if there is one."""

    patches: tuple[Patch, ...]
    cover: str | None = None

    @classmethod
    def load(cls, directory: Path) -> Series:
        """The series of a directory; an absent or empty directory is an empty series.

        Raises UsageError when the series file and the patches beside it do not agree, or a patch is malformed.
        """
        if directory.exists() and not directory.is_dir():
            raise UsageError(f"{directory} is a file, not the directory of the series", hint="move it out of the way")
        if (directory / UNFINISHED).exists():
            raise UsageError(
                f"{directory}: a refresh was interrupted, the patches are a mixture",
                hint="run `harness refresh` again, or `git checkout` that directory and remove " + UNFINISHED,
            )
        names = _listed(directory)
        _check_listing(directory, names)
        cover = directory / COVER_FILE
        return cls(
            patches=tuple(parse(decode((directory / name).read_bytes()), name) for name in names),
            cover=decode(cover.read_bytes()) if cover.is_file() else None,
        )

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over names and bytes of the patches, 64 hex digits. The cover letter changes no tree: left out."""
        digest = hashlib.sha256()
        for patch in self.patches:
            raw = patch.text.encode("utf-8", "surrogateescape")
            digest.update(f"{patch.name}\n{len(raw)}\n".encode() + raw)
        return digest.hexdigest()

    def touched(self) -> dict[str, str | None]:
        """The files of the base that the series changes, each with the blob it must have; None: it must not exist."""
        wanted: dict[str, str | None] = {}
        for patch in self.patches:
            for diff in patch.diffs:
                if diff.old_path is not None and diff.old_blob:
                    wanted.setdefault(diff.old_path, diff.old_blob)
                if diff.new_path is not None and diff.new_path != diff.old_path:
                    wanted.setdefault(diff.new_path, None)
        return wanted

    def before(self, name: str) -> Series:
        """The patches before the one called ``name`` (its number, or the beginning of its name, will do)."""
        found = [i for i, patch in enumerate(self.patches) if patch.name.startswith(name)]
        if re.fullmatch("[0-9]{1,9}", name) and not found:
            found = [i for i, patch in enumerate(self.patches) if patch.name.startswith(f"{int(name):04d}-")]
        if len(found) != 1:
            known = ", ".join(patch.name for patch in self.patches) or "none"
            raise UsageError(f"{name!r} names {len(found)} patches, not one", hint=f"the patches are: {known}")
        return Series(self.patches[: found[0]], self.cover)


def _listed(directory: Path) -> list[str]:
    file = directory / SERIES_FILE
    if not file.is_file():
        return []
    lines = (line.partition("#")[0].strip() for line in decode(file.read_bytes()).splitlines())
    return [line for line in lines if line]


def _check_listing(directory: Path, names: list[str]) -> None:
    file = directory / SERIES_FILE
    for name in names:
        if "/" in name or name in (SERIES_FILE, COVER_FILE):
            raise UsageError(f"{file}: {name!r} is not the name of a patch beside it", hint="remove that line")
        if names.count(name) > 1:
            raise UsageError(f"{file}: {name} is listed {names.count(name)} times", hint="list each patch once")
        if not (directory / name).is_file():
            raise UsageError(
                f"{file}: {name} is listed but does not exist", hint="restore the patch, or remove its line"
            )
    for path in sorted(directory.glob("*.patch")):
        if path.name not in names:
            raise UsageError(
                f"{path} is not listed in {SERIES_FILE}", hint=f"add its name to {file} in its place, or remove it"
            )
