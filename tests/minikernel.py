"""A kernel source of a few files as tarball and git tree, a project with a pin on it, and a series on top."""

from __future__ import annotations

import functools
import hashlib
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from harness.context import Context
from harness.report import Reporter
from harness.settings import resolve
from harness.source.refresh import ATTRIBUTES, FORMAT

VERSION = "6.18.15"
AUTHOR = ("Agent Latency Project", "agent-latency@example.org")
SIGNED = f"Signed-off-by: {AUTHOR[0]} <{AUTHOR[1]}>"
CORE = "".join(f"int line{n};\n" for n in range(1, 81))

# path -> (content, mode); a mode of 0 is a symbolic link
FILES: dict[str, tuple[bytes, int]] = {
    "Makefile": (b"# SPDX\nVERSION = 6\nPATCHLEVEL = 18\nSUBLEVEL = 15\nEXTRAVERSION =\nNAME = Test\n", 0o644),
    "kernel/sched/core.c": (CORE.encode(), 0o644),
    "kernel/sched/crlf.txt": (b"one\r\ntwo\r\n", 0o644),
    "kernel/empty.h": (b"", 0o644),
    "scripts/run.sh": (b"#!/bin/sh\nexit 0\n", 0o755),
    "arch/link": (b"../scripts/run.sh", 0),
    "Documentation/f\xc3\xbcr alle.rst": ("für alle\n".encode(), 0o644),
    ".gitignore": (b"*.o\n", 0o644),
    ".gitattributes": (b"*.c diff=cpp\n", 0o644),
    "firmware/kept.o": (b"\x00\x01binary\xff", 0o644),
}


def sh(where: Path, *argv: str, env: dict[str, str] | None = None, ok: bool = True) -> str:
    """A command in a clean environment; its stdout."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    who = {f"GIT_{r}_{w}": v for r in ("AUTHOR", "COMMITTER") for w, v in zip(("NAME", "EMAIL"), AUTHOR, strict=True)}
    isolated = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull, "LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        argv, cwd=where, env={**clean, **who, **isolated, **(env or {})}, capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0 or not ok, (argv, done.stdout, done.stderr)
    return done.stdout.decode("utf-8", "surrogateescape").rstrip("\n")


def write_tree(tree: Path, changes: dict[str, bytes] | None = None) -> Path:
    """The files below ``tree``."""
    files = {**FILES, **{name: (data, 0o644) for name, data in (changes or {}).items()}}
    for name, (data, mode) in files.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if mode:
            path.write_bytes(data)
            path.chmod(mode)
        else:
            path.symlink_to(data.decode())
    return tree


def tarball(path: Path, changes: dict[str, bytes] | None = None, *, top: str = f"linux-{VERSION}") -> Path:
    """The files as a tarball whose compression is that of its name."""
    ending = path.suffix.removeprefix(".")
    files = {**FILES, **{name: (data, 0o644) for name, data in (changes or {}).items()}}
    kind = ending if ending in ("xz", "gz", "bz2") else ""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(str(path), f"w:{kind}") as archive:  # type: ignore[call-overload]
        head = tarfile.TarInfo(top)
        head.type, head.mode = tarfile.DIRTYPE, 0o755
        archive.addfile(head)
        for name, (data, mode) in files.items():
            member = tarfile.TarInfo(f"{top}/{name}")
            member.mode = mode or 0o777
            if mode:
                member.size = len(data)
            else:
                member.type, member.linkname = tarfile.SYMTYPE, data.decode()
            archive.addfile(member, io.BytesIO(data) if mode else None)
    return path


def git_tree(tree: Path) -> Path:
    """The files as a git tree with the tag v6.18.15."""
    write_tree(tree)
    sh(tree, "git", "init", "-q", "--template=", "-b", "main")
    sh(tree, "git", "add", "-A", "-f")
    sh(tree, "git", "commit", "-q", "-m", "Linux")
    sh(tree, "git", "tag", f"v{VERSION}")
    return tree


def compact(repository: Path) -> None:
    """Pack the objects of a git repository that is going to be copied: three files in place of hundreds."""
    sh(repository, "git", "repack", "-a", "-d", "-q")


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@dataclass
class Mini:
    """A project whose pin is a tarball given by the user; ``out`` and ``err`` hold what was reported."""

    directory: Path
    root: Path
    tarball: Path
    out: io.StringIO
    err: io.StringIO

    def copy(self, directory: Path) -> Mini:
        """The same below another directory; nothing in it knows where it is."""
        shutil.copytree(self.directory, directory, symlinks=True, dirs_exist_ok=True)
        root, archive = (directory / path.relative_to(self.directory) for path in (self.root, self.tarball))
        return Mini(directory, root, archive, io.StringIO(), io.StringIO())

    def context(self, *, dry_run: bool = False, **flags: object) -> Context:
        given = {"cache_dir": str(self.directory / "cache"), "kernel_source": str(self.tarball), **flags}
        settings = resolve(self.root, given, env={"HOME": str(self.directory)})
        return Context(self.root, settings, Reporter(out=self.out, err=self.err, color="never"), dry_run=dry_run)

    def pin(self, *ways: str, version: str = VERSION) -> None:
        """Write configs/kernel.yaml; each way is a YAML flow mapping."""
        lines = "".join(f"  - {way}\n" for way in ways)
        body = f"version: {version}\nways:\n{lines}" if ways else f"version: {version}\nways: []\n"
        (self.root / "configs/kernel.yaml").write_text(body)


def mini(directory: Path) -> Mini:
    """A project with an empty series; its source is exact by hash."""
    root = directory / "project"
    (root / "configs").mkdir(parents=True)
    (root / "patches").mkdir()
    (root / "configs/identity.yaml").write_text(f"name: {AUTHOR[0]}\nemail: {AUTHOR[1]}\n")
    archive = tarball(directory / f"linux-{VERSION}.tar.gz")
    made = Mini(directory, root, archive, io.StringIO(), io.StringIO())
    made.pin(f"{{kind: url, source: 'http://127.0.0.1:9/linux.tar.gz', sha256: {sha(archive)}}}")
    return made


def replaced(line: int, by: str, text: str = CORE) -> str:
    """A text with one line replaced (counted from 1)."""
    lines = text.split("\n")
    lines[line - 1] = by
    return "\n".join(lines)


def commit(
    tree: Path, subject: str, changes: dict[str, str | None], *, body: str = "Why.\n\n" + SIGNED, n: int = 0
) -> str:
    """Commit changes (None removes a file) in a git tree; returns the commit."""
    for name, text in changes.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if text is None:
            path.unlink()
        else:
            path.write_bytes(text.encode("utf-8", "surrogateescape"))
    sh(tree, "git", "add", "-A")
    date = f"2026-11-{10 + n:02d}T10:00:00+0100"
    dates = {"GIT_AUTHOR_DATE": date, "GIT_COMMITTER_DATE": "2026-11-20T00:00:00Z"}
    sh(tree, "git", "commit", "-q", "-m", f"{subject}\n\n{body}", env=dates)
    return sh(tree, "git", "rev-parse", "HEAD")


SERIES: tuple[tuple[str, dict[str, str | None]], ...] = (
    ("sched: Add a header", {"include/linux/agent.h": "#pragma once\n"}),
    ("sched: Change two places", {"kernel/sched/core.c": replaced(70, "int seventy;", replaced(10, "int ten;"))}),
    (
        "sched: Grüße, a subject so long that a mail has to fold it over more than a single line of its header",
        {"kernel/ünï.c": "int ä;\n", "include/linux/agent.h": "#pragma once\nint agent;\n", "kernel/empty.h": None},
    ),
)


def store(project: Mini, series: tuple[tuple[str, dict[str, str | None]], ...] = SERIES) -> Path:
    """Store a series, made with plain git in a tree of its own, in patches/; returns that tree."""
    place = Path(_stored().name) if series is SERIES else _store(project.directory, series)
    tree = project.directory / "made"
    if series is SERIES:
        shutil.copytree(place / "made", tree, symlinks=True)
    patches = project.root / "patches"
    for old in patches.glob("*.patch"):
        old.unlink()
    shutil.copytree(place / "stored", patches, dirs_exist_ok=True)
    return tree


@functools.cache
def _stored() -> tempfile.TemporaryDirectory[str]:
    """What :func:`_store` makes of SERIES, made once and copied from here."""
    place = tempfile.TemporaryDirectory(prefix="minikernel-")
    _store(Path(place.name), SERIES)
    compact(Path(place.name) / "made")
    return place


def _store(place: Path, series: tuple[tuple[str, dict[str, str | None]], ...]) -> Path:
    """A git tree with the series in ``place``/made and its patches in ``place``/stored; returns ``place``."""
    tree, patches = git_tree(place / "made"), place / "stored"
    for number, (subject, changes) in enumerate(series):
        commit(tree, subject, changes, n=number)
    (tree / ".git/info").mkdir(exist_ok=True)
    (tree / ".git/info/attributes").write_text(ATTRIBUTES)
    sh(tree, "git", *FORMAT, "-o", str(patches), f"v{VERSION}..HEAD")
    (patches / "series").write_text("".join(f"{path.name}\n" for path in sorted(patches.glob("*.patch"))))
    return place
