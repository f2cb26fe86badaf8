"""A throw-away repository that borrows the objects of another and checks out only the files that are needed.

It takes a second where a worktree of the kernel takes ten, and whatever is done in it (git am, scripts of the tree)
leaves the repository it borrows from, the user's worktrees and the user's git configuration alone.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from harness import proc
from harness.errors import EnvironmentFailure
from harness.fs import disk_errors
from harness.source.git import git

_PREFIX = "scratch-"

# Whoever commits in a scratch repository: the commits go away with it.
_COMMITTER = {
    "GIT_COMMITTER_NAME": "harness",
    "GIT_COMMITTER_EMAIL": "harness@example.org",
    "GIT_COMMITTER_DATE": "2000-01-01T00:00:00Z",
}


@dataclass(frozen=True)
class Scratch:
    """A scratch repository: ``tree`` is its working tree, ``home`` an empty directory to use as HOME."""

    tree: Path
    home: Path
    commit: str
    timeout: float

    def git(self, *arguments: str, check: bool = True, stdin: bytes | None = None) -> proc.Completed:
        """Run git in it."""
        return git(self.tree, *arguments, timeout=self.timeout, env=_COMMITTER, check=check, stdin=stdin)


@contextlib.contextmanager
def scratch(
    lender: Path, commit: str, paths: Iterable[str], where: Path, *, directories: bool = False, timeout: float = 300.0
) -> Iterator[Scratch]:
    """A scratch repository at ``commit`` of the bare repository ``lender``, holding only the files ``paths``.

    With ``directories`` all directories of the commit exist, empty: get_maintainer.pl asks whether a pattern names one.
    It lives below ``where`` and is removed at the end; what a killed process left there is removed by the next one.
    """
    with disk_errors(where):
        where.mkdir(parents=True, exist_ok=True)
        _remove_stale(where)
        root = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=where))
    try:
        tree, home = root / "tree", root / "home"
        home.mkdir()
        tree.mkdir()
        made = Scratch(tree, home, commit, timeout)
        made.git("init", "-q", "--template=", "--initial-branch=scratch")
        info = tree / ".git" / "info"
        info.mkdir(exist_ok=True)
        objects = tree / ".git" / "objects" / "info"
        objects.mkdir(parents=True, exist_ok=True)
        (objects / "alternates").write_text(f"{_objects_of(lender, timeout)}\n", encoding="utf-8")
        # Blobs are checked out as they are: what git am compares is what the patches name.
        for key, value in (("core.sparseCheckout", "true"), ("core.autocrlf", "false"), ("gc.auto", "0")):
            made.git("config", key, value)
        patterns = "".join(f"/{_escaped(path)}\n" for path in sorted(set(paths)))
        (info / "sparse-checkout").write_text(patterns, encoding="utf-8")
        made.git("update-ref", "HEAD", commit)
        made.git("read-tree", "-m", "-u", "HEAD")
        if directories:
            listing = made.git("ls-tree", "-r", "-d", "-z", "--name-only", commit).output
            for name in filter(None, listing.split("\0")):
                (tree / name).mkdir(parents=True, exist_ok=True)
        yield made
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _objects_of(lender: Path, timeout: float) -> Path:
    found = git(lender, "rev-parse", "--git-path", "objects", timeout=timeout, check=False)
    if found.status != 0:
        raise EnvironmentFailure(f"{lender} is no git repository", hint="run `harness apply` first")
    return (lender / found.output.strip()).resolve()


def _escaped(path: str) -> str:
    return re.sub(r"([\\*?\[\]!# ])", r"\\\1", path)


def _remove_stale(where: Path) -> None:
    for left in where.glob(f"{_PREFIX}*"):
        pid = left.name.removeprefix(_PREFIX).partition("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(left, ignore_errors=True)
