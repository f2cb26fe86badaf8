"""The worktree in which patches are checked one after the other: kept between runs, thrown away at will."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from harness.fs import lock
from harness.source.repo import KernelRepo


@dataclass
class CheckTree:
    """A worktree of the kernel repository at ``path``; :meth:`at` moves it. Nothing in it is the user's."""

    repo: KernelRepo
    path: Path
    _here: str = field(default="", init=False)

    def at(self, commit: str) -> Path:
        """The tree at ``commit``. Only files that differ are rewritten, so make rebuilds only what changed."""
        if self._here == commit:
            return self.path
        if self.repo.is_worktree(self.path):
            self.repo.switch(self.path, commit)
        else:
            self.repo.add_worktree(self.path, "--detach", commit)
        self._here = commit
        return self.path


@contextlib.contextmanager
def check_tree(repo: KernelRepo, path: Path) -> Iterator[CheckTree]:
    """The check worktree, locked: raises EnvironmentFailure when another check runs in the same cache."""
    with lock(path.with_name(f"{path.name}.lock"), "the check worktree"):
        yield CheckTree(repo, path)
