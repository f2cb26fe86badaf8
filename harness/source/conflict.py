"""Why a patch does not apply, from what ``git apply`` says. Pure."""

from __future__ import annotations

import re
from pathlib import Path

from harness.errors import ApplyError, HarnessError
from harness.source.git import is_full, no_space
from harness.source.mail import Patch

_FAILED = re.compile(r"^error: patch failed: (?P<path>.+):(?P<line>\d+)$", re.MULTILINE)
_OTHER = re.compile(
    r"^error: (?P<path>.+): (?P<what>already exists in .*|does not exist in .*|No such file or directory|"
    r"patch does not apply|does not match index|wrong type)$",
    re.MULTILINE,
)


def explain(patch: Patch, said: str, where: Path) -> HarnessError:
    """The error of a patch that was refused: names patch, file, hunk and line, and shows the hunk."""
    if is_full(said):
        return no_space(where, said)
    hint = (
        f"`harness tree --until {patch.name[:4]}` gives the tree before it; `git am -3` this patch and the rest there, "
        "then `harness refresh`"
    )
    if found := _FAILED.search(said):
        path, line = found["path"], int(found["line"])
        number, total, text = _hunk(patch, path, line)
        which = f"hunk {number} of {total} (line {line})" if number else f"line {line}"
        return ApplyError(f"{patch.name} does not apply: {path}, {which}", detail=text, hint=hint)
    if found := _OTHER.search(said):
        what = found["what"].replace(" in index", "").replace("No such file or directory", "does not exist")
        return ApplyError(f"{patch.name} does not apply: {found['path']} {what}", detail=said.strip(), hint=hint)
    first = next(iter(said.strip().splitlines()), "git apply gives no reason").removeprefix("error: ")
    return ApplyError(f"{patch.name} does not apply: {first}", detail=said.strip(), hint=hint)


def _hunk(patch: Patch, path: str, line: int) -> tuple[int, int, str]:
    """Number (from 1), count and text of the hunk that begins at ``line`` of the old file; number 0 when none does."""
    diff = next((d for d in patch.diffs if path in (d.old_path, d.new_path)), None)
    if diff is None or line not in diff.hunk_lines:
        return 0, 0, ""
    number = diff.hunk_lines.index(line) + 1
    # The texts of all hunks stand in the order of the diffs.
    before = sum(d.hunks for d in patch.diffs[: patch.diffs.index(diff)])
    hunks = re.split(r"^(?=@@ -)", patch.diff, flags=re.MULTILINE)[1:]
    text = re.split(r"^(?:diff --git |-- $)", hunks[before + number - 1], flags=re.MULTILINE)[0]
    lines = text.rstrip("\n").split("\n")
    return number, diff.hunks, "\n".join(lines[:20] + (["..."] if len(lines) > 20 else []))
