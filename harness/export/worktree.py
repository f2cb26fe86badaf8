"""The worktree in which patches are checked one after the other: kept between runs, thrown away at will."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from harness.fs import lock
from harness.source.repo import KernelRepo, worktree_git


@dataclass
class CheckTree:
    """A worktree of the kernel repository at ``path``; :meth:`at` moves it. Nothing in it is the user's."""

    repo: KernelRepo
    path: Path
    _here: str = field(default="", init=False)

    def at(self, commit: str) -> Path:
        """The tree at ``commit``. Only files that differ are rewritten, so make rebuilds only what changed.

        Whatever an interrupted run left (an index lock, half a checkout, stray files) is put right first.
        """
        if self._here == commit:
            return self.path
        if self.repo.is_worktree(self.path):
            (Path(self._git("rev-parse", "--absolute-git-dir")) / "index.lock").unlink(missing_ok=True)
            self._git("checkout", "-q", "--detach", "--force", commit)
            self._git("clean", "-q", "-ffdx")
        else:
            self.repo.add_worktree(self.path, "--detach", commit)
        self._here = commit
        return self.path

    def _git(self, *arguments: str) -> str:
        return worktree_git(self.path, *arguments, timeout=self.repo.timeout)


@contextlib.contextmanager
def check_tree(repo: KernelRepo, path: Path) -> Iterator[CheckTree]:
    """The check worktree, locked: raises EnvironmentFailure when another check runs in the same cache."""
    with lock(path.with_name(f"{path.name}.lock"), "the check worktree"):
        yield CheckTree(repo, path)
