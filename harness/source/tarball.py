"""A kernel tarball as a stream of files: read once from end to end, never unpacked."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from harness.errors import EnvironmentFailure

# Who gave it is not known here: a download may go, a file of the user may not.
_WHOLE = "give a whole archive; a download in the cache goes with `harness clean downloads`"
Progress = Callable[[int, int], None]
FILE, EXECUTABLE, SYMLINK = "100644", "100755", "120000"


class BadSource(EnvironmentFailure):
    """A source is not what it should be, so that nothing but another one helps."""


@dataclass(frozen=True)
class Entry:
    """A file of the tree. ``mode`` is git's; ``data`` is the content, or the target of a symbolic link.

    ``copy_of`` names an earlier file that this one is a hard link to; ``data`` is empty then.
    """

    path: str
    mode: str
    data: bytes
    copy_of: str = ""


class _Counting(io.RawIOBase):
    """A file that tells how far it has been read."""

    def __init__(self, raw: IO[bytes], total: int, progress: Progress) -> None:
        self._raw, self._total, self._progress = raw, total, progress
        self._done = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._raw.read(len(buffer))
        buffer[: len(data)] = data
        before, self._done = self._done, self._done + len(data)
        if self._done >> 20 != before >> 20:
            self._progress(self._done, self._total)
        return len(data)


def _decompressed(raw: io.RawIOBase, magic: bytes) -> IO[bytes]:
    """The plain archive. tarfile's own decompression in stream mode copies its buffer for every member."""
    buffered = io.BufferedReader(raw, 1 << 18)
    if magic.startswith(b"\xfd7zXZ\0"):
        return lzma.LZMAFile(buffered)
    if magic.startswith(b"\x1f\x8b"):
        return cast(IO[bytes], gzip.GzipFile(fileobj=buffered))
    if magic.startswith(b"BZh"):
        return bz2.BZ2File(buffered)
    return buffered


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what the decompressors and tarfile raise about bad bytes into one line."""
    try:
        yield
    except (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError) as exc:
        raise BadSource(f"{path} is truncated or no tar archive: {exc}", hint=_WHOLE) from None
    except OSError as exc:
        if exc.errno is not None:
            raise
        raise BadSource(  # bz2 and gzip say it this way
            f"{path} is truncated or no tar archive: {exc}", hint=_WHOLE
        ) from None


def entries(path: Path, progress: Progress = lambda done, total: None) -> Iterator[Entry]:
    """The files below the archive's single top directory, in the order of the archive.

    ``progress`` is told the bytes read and their total, per MiB. Raises BadSource when the archive is
    truncated, has several top directories, or holds names outside of them.
    """
    top = ""
    with _readable(path), path.open("rb") as raw:
        magic = raw.read(6)
        raw.seek(0)
        plain = _decompressed(_Counting(raw, path.stat().st_size, progress), magic)
        with tarfile.open(fileobj=plain, mode="r|") as archive:
            for member in archive:
                parts = [part for part in member.name.split("/") if part not in ("", ".")]
                if member.name.startswith("/") or ".." in parts:
                    raise BadSource(f"{path} holds a name outside of its tree: {member.name!r}")
                if not parts:
                    continue
                top = top or parts[0]
                if parts[0] != top or (len(parts) == 1 and not member.isdir()):
                    raise BadSource(
                        f"{path} is no kernel tarball: {member.name!r} lies beside the top directory {top!r}",
                        hint="pack it as one directory: tar -cf linux.tar linux-VERSION/",
                    )
                name = "/".join(parts[1:])
                if member.isreg():
                    content = archive.extractfile(member)
                    mode = EXECUTABLE if member.mode & 0o100 else FILE
                    yield Entry(name, mode, content.read() if content else b"")
                elif member.issym():
                    yield Entry(name, SYMLINK, _bytes(member.linkname))
                elif member.islnk():
                    target = "/".join([p for p in member.linkname.split("/") if p not in ("", ".")][1:])
                    yield Entry(name, EXECUTABLE if member.mode & 0o100 else FILE, b"", target)


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def blob_id(data: bytes) -> str:
    """The id that git gives to a blob."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def version_of(makefile: str) -> str:
    """The version that a top Makefile states, as ``make kernelversion`` prints it; empty when there is none."""
    found = dict(re.findall(r"^(VERSION|PATCHLEVEL|SUBLEVEL|EXTRAVERSION)[ \t]*=[ \t]*(\S*)", makefile, re.MULTILINE))
    if not found.get("VERSION") or not found.get("PATCHLEVEL"):
        return ""
    return f"{found['VERSION']}.{found['PATCHLEVEL']}.{found.get('SUBLEVEL') or 0}{found.get('EXTRAVERSION', '')}"


def same_version(stated: str, pinned: str) -> bool:
    """Whether a Makefile's version is the pinned one: 6.19.0-rc1 is what upstream calls 6.19-rc1."""
    return stated == re.sub(r"^(\d+\.\d+)(?![\d.])", r"\1.0", pinned)


def write_import(out: IO[bytes], path: Path, ref: str, header: bytes, progress: Progress) -> int:
    """Write an archive as one commit for ``git fast-import``; returns the number of files.

    ``header`` holds the lines between ``commit`` and the files: committer and message.
    """
    out.write(b"feature done\ncommit " + ref.encode() + b"\n" + header)
    count = 0
    for entry in entries(path, progress):
        name = _quoted(entry.path)
        if entry.copy_of:
            out.write(b"C " + _quoted(entry.copy_of) + b" " + name + b"\n")
        else:
            out.write(b"M %s inline %s\ndata %d\n" % (entry.mode.encode(), name, len(entry.data)))
            out.write(entry.data)
            out.write(b"\n")
        count += 1
    out.write(b"done\n")
    return count


def _quoted(name: str) -> bytes:
    raw = _bytes(name).replace(b"\\", b"\\\\").replace(b'"', b'\\"').replace(b"\n", b"\\n")
    return b'"' + raw + b'"'
