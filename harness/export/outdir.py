"""The directory of an export: whole or absent, and never in the place of something that is not ours."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.errors import UsageError
from harness.fs import disk_errors

MANIFEST = "manifest.json"
_KIND = "agent-latency series export"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def check_replaceable(target: Path) -> None:
    """Raise UsageError unless ``target`` is absent, empty, or an export of ours that nobody has edited."""
    if not target.exists() and not target.is_symlink():
        return
    if not target.is_dir():
        raise UsageError(f"{target} is no directory", hint="choose another one with --output-dir")
    present = {p.name for p in target.iterdir()}
    if not present:
        return
    try:
        manifest = json.loads((target / MANIFEST).read_text(encoding="utf-8"))
        files: dict[str, str] = dict(manifest["files"]) if manifest["kind"] == _KIND else {}
    except (OSError, ValueError, KeyError, TypeError):
        files = {}
    other = "choose another directory with --output-dir, or remove this one"
    if not files:
        raise UsageError(f"{target} holds something that is no export: nothing was written", hint=other)
    edited = sorted(
        name
        for name in present - {MANIFEST}
        if not (target / name).is_file() or files.get(name) != _digest((target / name).read_bytes())
    )
    if edited:
        raise UsageError(f"{target / edited[0]} was added or edited by hand: nothing was written", hint=other)


def write(target: Path, files: Mapping[str, bytes], facts: Mapping[str, Any]) -> None:
    """Write ``files`` and a manifest with ``facts`` as the directory ``target``, replacing an older export of ours.

    It is written beside its place and renamed, so a full disk or a bad moment leaves the old one as it was.
    Raises UsageError as :func:`check_replaceable` does, EnvironmentFailure when it cannot be written.
    """
    target = Path(os.path.abspath(target))  # noqa: PTH100 - resolve() would follow a link at the target itself
    check_replaceable(target)
    with disk_errors(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            fresh, old = stage / "new", stage / "old"
            fresh.mkdir()
            for name, data in files.items():
                (fresh / name).write_bytes(data)
            manifest = {**facts, "kind": _KIND, "files": {name: _digest(data) for name, data in files.items()}}
            (fresh / MANIFEST).write_text(
                json.dumps(manifest, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8"
            )
            if target.exists():
                target.rename(old)
            try:
                fresh.rename(target)
            except BaseException:
                if old.exists():
                    old.rename(target)
                raise
        finally:
            shutil.rmtree(stage, ignore_errors=True)
