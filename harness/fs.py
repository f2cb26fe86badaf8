"""Files that are whole or absent, locks that say who holds them, and space that is checked before it is needed."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.errors import EnvironmentFailure, UsageError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_REFUSED = (
    *(errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG),
)
_OPEN_FILES = ("/dev/fd", "/dev/stdout", "/dev/stderr", "/proc")


def failure(error: OSError, where: Path, *, doing: str = "access", hint: str = "") -> EnvironmentFailure:
    """What the system's refusal means, as one line; ``where`` is named when the error names no path."""
    if error.errno in _FULL:
        return EnvironmentFailure(
            f"no space left on the disk that holds {where}",
            hint="free some space, or point HARNESS_CACHE_DIR at another disk (`harness clean` removes old builds)",
        )
    return EnvironmentFailure(
        f"cannot {doing} {_path_of(error, where)}: {error.strerror or error}",
        hint=hint or "see what is there, and whose it is: ls -ld",
    )


def _path_of(error: OSError, where: Path) -> Path:
    return Path(os.fsdecode(error.filename)) if isinstance(error.filename, (str, bytes)) else where


@contextlib.contextmanager
def disk_errors(where: Path) -> Iterator[None]:
    """Turn a full disk below ``where``, or one that cannot be written, into one line; other errors pass."""
    try:
        yield
    except OSError as exc:
        path = _path_of(exc, where)
        inside = path == where or where in path.parents
        if exc.errno in _FULL or (exc.errno in _REFUSED and inside):
            hint = "point HARNESS_CACHE_DIR, HARNESS_RUNS_DIR or --output-dir at a directory of yours"
            raise failure(exc, where, doing="write", hint=hint) from exc
        raise


def require_destination(path: Path) -> None:
    """Raise unless a file can be written at ``path``, as far as can be told without doing it.

    UsageError for what can be no file, EnvironmentFailure for a directory that is not to be written.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a directory", hint="name a file in it")
    if path.exists() and not path.is_file():
        return
    parent = path.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise UsageError(f"there can be no file {path}: {parent} is no directory", hint="name another file")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise EnvironmentFailure(f"cannot write {path}: {parent} is not to be written", hint="name another file")


def atomic_write(path: Path, data: bytes | str, *, mode: int = 0o644) -> None:
    """Write ``data`` so that a reader sees the old file or the new one, also after a crash.

    Raises EnvironmentFailure when the disk is full or not writable; nothing is left behind then.
    """
    # A path that is no UTF-8 comes out as the bytes it is.
    raw = data.encode(errors="surrogateescape") if isinstance(data, str) else data
    with disk_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        fd, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        temporary = Path(name)
        try:
            with os.fdopen(fd, "wb") as out:
                out.write(raw)
                out.flush()
                os.fsync(out.fileno())
            temporary.chmod(mode)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def json_text(value: Any) -> str:
    """``value`` as indented JSON."""
    return json.dumps(value, indent=2, sort_keys=True, default=str) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    atomic_write(path, json_text(value))


def deliver(path: Path, text: str) -> None:
    """Write ``text`` to where a user wants it: what is no plain file (a device, a FIFO, /dev/fd/N) is never replaced.

    A link stays one and its target is written, atomically. Raises EnvironmentFailure as :func:`atomic_write` does, and
    for a FIFO that nobody reads.
    """
    if not _is_special(path):
        atomic_write(path.resolve(), text)
        return
    with disk_errors(path):
        try:
            # Without a reader a FIFO would be waited for, for ever.
            fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK)
        except OSError as exc:
            if exc.errno != errno.ENXIO:
                raise
            raise failure(exc, path, doing="write", hint="a FIFO needs a reader first; or name a file") from None
        os.set_blocking(fd, True)
        with os.fdopen(fd, "wb") as out:
            out.write(text.encode(errors="surrogateescape"))


def _is_special(path: Path) -> bool:
    """Whether a path is to be opened as it is: no plain file, or another name for what a program has open."""
    absolute = path.absolute()
    if any(absolute.is_relative_to(place) for place in _OPEN_FILES):
        return True
    return path.exists() and not path.is_file()


def write_if_changed(path: Path, data: str) -> bool:
    """Write ``data`` unless the file already holds it, so that make sees no new mtime; True when written."""
    if path.is_file() and path.read_bytes() == data.encode(errors="surrogateescape"):
        return False
    atomic_write(path, data)
    return True


def require_space(where: Path, need_mib: int, what: str) -> None:
    """Raise EnvironmentFailure unless ``need_mib`` MiB are free on the disk that will hold ``where``."""
    probe = where
    while not probe.exists():
        probe = probe.parent
    free_mib = shutil.disk_usage(probe).free // (1 << 20)
    if free_mib < need_mib:
        raise EnvironmentFailure(
            f"{what} needs {need_mib} MiB below {where}, {free_mib} MiB are free",
            hint="free some space, or point HARNESS_CACHE_DIR at another disk (`harness clean` removes old builds)",
        )


@contextlib.contextmanager
def lock(path: Path, what: str, *, wait_seconds: float = 0.0) -> Iterator[None]:
    """Hold an exclusive lock on ``path`` while the body runs; the kernel drops it if the process dies.

    Waits at most ``wait_seconds``. Raises EnvironmentFailure naming the holder's pid and command otherwise.
    """
    with disk_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = path.open("a+", encoding="utf-8", errors="surrogateescape")
    with handle:
        deadline = time.monotonic() + wait_seconds
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as exc:
                if exc.errno not in (errno.EAGAIN, errno.EACCES):
                    raise
                if time.monotonic() >= deadline:
                    handle.seek(0)
                    holder = handle.read().strip() or "another process"
                    raise EnvironmentFailure(
                        f"{what} is in use by {holder}",
                        hint="wait for it to finish, or give this run a cache of its own with HARNESS_CACHE_DIR",
                    ) from None
                time.sleep(min(0.2, max(0.0, deadline - time.monotonic())))
        handle.seek(0)
        handle.truncate()
        handle.write(f"pid {os.getpid()} ({shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])})")
        handle.flush()
        try:
            yield
        finally:
            handle.seek(0)
            handle.truncate()
            handle.flush()


STAMP = ".complete"


def is_whole(root: Path, key: str) -> bool:
    """Whether ``root`` was made to its end, by ``whole_directory`` and from what ``key`` stands for."""
    stamp = root / STAMP
    return stamp.is_file() and stamp.read_text() == key


@contextlib.contextmanager
def whole_directory(root: Path, key: str) -> Iterator[Path]:
    """A new directory beside ``root`` to fill, which takes the place of ``root`` at the end; the caller holds a lock.

    Whatever happens meanwhile leaves ``root`` as it was. What a killed run left beside it goes first.
    """
    prefix = f".{root.name}.new-"
    for stale in root.parent.glob(f"{prefix}*"):
        shutil.rmtree(stale, ignore_errors=True)
    new = Path(tempfile.mkdtemp(prefix=prefix, dir=root.parent))
    try:
        new.chmod(0o755)
        yield new
        (new / STAMP).write_text(key)
        old = root.with_name(f"{prefix}old")
        try:
            if root.exists():
                root.rename(old)
            new.rename(root)
        except BaseException:
            if old.exists() and not root.exists():
                old.rename(root)
            raise
        # Last: an interruption of this leaves what the next one begins with.
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
