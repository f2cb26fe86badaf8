"""Run directories: everything that a run leaves, written early and atomically."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from harness import __version__
from harness.context import Context
from harness.errors import EnvironmentFailure, HarnessError
from harness.fs import disk_errors, lock, write_json

METADATA = "metadata.json"
LOCK = ".lock"
LATEST = "latest"


@dataclasses.dataclass
class RunDirectory:
    """A directory of its own for one run, with a metadata.json that is true at every moment.

    As a context manager it records how the run ended, an interruption and an error included. It holds the lock of the
    directory until then, and however the process ends: `harness clean` asks for it.
    """

    path: Path
    metadata: dict[str, Any]
    _held: contextlib.ExitStack = dataclasses.field(default_factory=contextlib.ExitStack)
    _started: float = dataclasses.field(default_factory=time.monotonic)

    @staticmethod
    def create(context: Context, verb: str) -> RunDirectory:
        """``<runs>/<UTC time>-<verb>[-n]``. Raises EnvironmentFailure when it cannot be written."""
        now = datetime.now(UTC)
        base = f"{now:%Y%m%dT%H%M%SZ}-{verb}"
        with disk_errors(context.runs):
            context.runs.mkdir(parents=True, exist_ok=True)
            for n in range(1, 1000):
                path = context.runs / (base if n == 1 else f"{base}-{n}")
                try:
                    path.mkdir()
                    break
                except FileExistsError:
                    continue
            else:
                raise EnvironmentFailure(f"no free name for a run below {context.runs}", hint="harness clean runs")
        run = RunDirectory(
            path,
            {
                "harness": __version__,
                "verb": verb,
                "command": ["harness", *sys.argv[1:]],
                "started": now.isoformat(timespec="seconds"),
                "state": "running",
                "pid": os.getpid(),
                "host": {
                    "machine": platform.machine(),
                    "kernel": platform.release(),
                    "cpus": len(os.sched_getaffinity(0)),
                    "python": platform.python_version(),
                },
                "settings": dict(context.settings.values),
            },
        )
        run._held.enter_context(lock(path / LOCK, f"the run directory {path}"))
        run.write()
        _point(context.runs / LATEST, path)
        return run

    def write(self) -> None:
        """Write metadata.json, atomically."""
        write_json(self.path / METADATA, self.metadata)

    def update(self, values: Mapping[str, Any]) -> None:
        """Add to the metadata and write it. Mappings are merged, so that each architecture can add its own."""
        _merge(self.metadata, values)
        self.write()

    def part(self, name: str) -> Path:
        """A directory inside, e.g. one for each architecture."""
        directory = self.path / name
        with disk_errors(self.path):
            directory.mkdir(exist_ok=True)
        return directory

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if value is None:
            self.metadata.setdefault("exit_code", 0)
            state = "finished"
        elif isinstance(value, KeyboardInterrupt):
            state = "interrupted"
            self.metadata["exit_code"] = 130
        else:
            state = "failed"
            self.metadata["error"] = value.message if isinstance(value, HarnessError) else repr(value)
            self.metadata["exit_code"] = int(value.exit_code) if isinstance(value, HarnessError) else None
        self.metadata["state"] = state
        self.metadata["seconds"] = round(time.monotonic() - self._started, 1)
        with self._held:
            if value is None:
                self.write()
            else:
                with contextlib.suppress(HarnessError):  # the first failure is the one to report
                    self.write()


def is_running(directory: Path) -> bool:
    """Whether the metadata of a run directory says so; the lock knows better, as a killed run cannot say otherwise."""
    try:
        return bool(json.loads((directory / METADATA).read_text())["state"] == "running")
    except (OSError, ValueError, KeyError, TypeError):
        return False


def forget_latest(context: Context) -> None:
    """Remove ``latest`` when the run that it names is gone."""
    link = context.runs / LATEST
    if link.is_symlink() and not link.exists():
        with contextlib.suppress(OSError):
            link.unlink()


def _merge(into: dict[str, Any], values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def _point(link: Path, target: Path) -> None:
    """``latest`` names the newest run; where links cannot be made, nothing does."""
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    with contextlib.suppress(OSError):
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target.name)
        temporary.replace(link)
