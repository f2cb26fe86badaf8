"""A developer's worktree and the stored series: one becomes the other, and back, without changing a byte.

``patches/`` is always written by the same git command with every choice fixed, away from the user's configuration and
the tree's attributes. Before it is written, what would be stored is read back and applied: it must give the commits'
messages and their very tree.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from harness import proc
from harness.context import Context
from harness.data import Identity
from harness.errors import HarnessError, UsageError
from harness.fs import atomic_write, disk_errors, write_if_changed
from harness.source import fetch
from harness.source.git import git
from harness.source.mail import decode, parse
from harness.source.repo import KernelRepo, worktree_git
from harness.source.series import COVER_FILE, SERIES_FILE, UNFINISHED, Series

BRANCH = "agent"
_EMPTY_TREE = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
# Everything that git would otherwise take from a configuration, a terminal, attributes or its own version.
# What a hunk's head names: git's own idea of a function in C changes from version to version. Labels are none.
ATTRIBUTES = "*.[chS] diff=agent-c\n"
_FUNCTION = r"!^[A-Za-z_][A-Za-z_0-9]*:[ \t]*$" + "\n" + r"^([A-Za-z_$].*)$"
FORMAT = (
    *("-c", f"attr.tree={_EMPTY_TREE}", "-c", f"diff.agent-c.xfuncname={_FUNCTION}"),
    *("format-patch", "-q", "--zero-commit", "--full-index", "--binary", "--no-signature", "--no-numbered"),
    *("--start-number=1", "--suffix=.patch", "--filename-max-length=64", "--subject-prefix=PATCH"),
    *("--no-cover-letter", "--no-thread", "--no-attach", "--no-notes", "--no-to", "--no-cc", "--no-add-header"),
    *("--no-from", "--no-encode-email-headers", "-p", "--stat=72", "--summary", "--no-color", "--no-ext-diff"),
    *("--no-textconv", "--no-renames", "--no-relative", "--diff-algorithm=histogram", "--indent-heuristic"),
    *("--unified=3", "--inter-hunk-context=0", "--src-prefix=a/", "--dst-prefix=b/", "--submodule=short"),
)


@dataclass(frozen=True)
class Changes:
    """What a refresh does to ``patches/``: names of files."""

    added: tuple[str, ...]
    changed: tuple[str, ...]
    removed: tuple[str, ...]
    kept: int

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.removed)


@dataclass(frozen=True)
class Commit:
    """A commit of the developer."""

    id: str
    parents: tuple[str, ...]
    author: Identity
    subject: str
    message: str

    def __str__(self) -> str:
        return f"{self.id[:12]} ({self.subject})"


def default_tree(context: Context) -> Path:
    """Where ``harness tree`` puts the worktree unless told otherwise."""
    return context.cache / "tree"


class DeveloperTree:
    """The worktree at ``path`` with the series as commits of the branch ``agent``."""

    def __init__(self, context: Context, path: Path) -> None:
        self.context = context
        self.path = path
        self.repo = KernelRepo(context)
        self.timeout = self.repo.timeout

    def _git(self, *arguments: str) -> str:
        return worktree_git(self.path, *arguments, timeout=self.timeout)

    def _try(self, *arguments: str) -> str:
        return git(self.path, *arguments, timeout=self.timeout, check=False).output.strip()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        lock = self.context.cache / "tree.lock"
        with fetch.waiting_lock(self.context, lock, "the developer's tree", "apply_timeout"):
            yield

    # From the series to the tree

    def make(self, *, until: str = "", force: bool = False) -> str:
        """Make the tree, or bring it to the stored series; returns the commit it stands at.

        ``until`` leaves out the patch of that name and those after it. Raises UsageError when that would lose work
        that has not been exported; with ``force`` the work is kept under refs/agent/saved and the tree moves on.
        """
        series = Series.load(self.context.patches)
        wanted = series.before(until) if until else series
        base, head = self.repo.ensure_base(), self.repo.apply(wanted)
        with self._locked():
            if self.repo.is_worktree(self.path):
                self._move(series, base, head, force)
            else:
                self._add(series, base, head, force)
            self._configure(base, head, until)
        return head

    def _add(self, series: Series, base: str, head: str, force: bool) -> None:
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise UsageError(
                f"{self.path} exists and is not a worktree of {self.repo.path}",
                hint="name another directory: harness tree DIR",
            )
        self.repo.git("worktree", "prune")
        elsewhere = self._checked_out_at()
        if elsewhere:
            raise UsageError(
                f"the branch {BRANCH} is checked out in {elsewhere}",
                hint=f"use that tree (harness tree {elsewhere}), or remove the directory first",
            )
        left = self.repo.git("rev-parse", "-q", "--verify", f"refs/heads/{BRANCH}", check=False).strip()
        if left and not self._is_stored(left, series, base):
            if not force:
                raise UsageError(
                    f"the branch {BRANCH} of a removed tree holds commits that are not exported ({left[:12]})",
                    hint=f"see them: git -C {self.repo.path} log {left[:12]}; --force lets them go (they stay under "
                    "refs/agent/saved)",
                )
            self._save(left)
        self.context.report.step(f"checking the series out into {self.path}")
        # Git refuses a second name for the branch, so a worktree that lost its directory must be forgotten by now.
        self.repo.add_worktree(self.path, "-B", BRANCH, head)

    def _checked_out_at(self) -> str:
        place = ""
        for line in self.repo.git("worktree", "list", "--porcelain").splitlines():
            if line.startswith("worktree "):
                place = line.removeprefix("worktree ")
            if line == f"branch refs/heads/{BRANCH}":
                return place
        return ""

    def _move(self, series: Series, base: str, head: str, force: bool) -> None:
        here = self._git("rev-parse", "HEAD")
        problem = self._unfinished() or self._changes()
        if not problem and not self._is_stored(here, series, base):
            problem = f"it has commits that are not exported (HEAD is {here[:12]})"
        if problem and not force:
            raise UsageError(
                f"{self.path}: {problem}",
                hint="`harness refresh` exports them; --force lets them go (they stay under refs/agent/saved)",
            )
        if problem:
            self._save(self._snapshot(here))
            branch = self._try("rev-parse", "-q", "--verify", f"refs/heads/{BRANCH}")
            if branch and branch != here:  # amid a rebase the branch still has what was before it
                self._save(branch)
            for command in ("rebase", "am", "merge", "cherry-pick"):
                self._try(command, "--abort")
        self._git("checkout", "-q", "--force", "-B", BRANCH, head)

    def _snapshot(self, commit: str) -> str:
        """A commit on ``commit`` with what is in the tree and not ignored, untracked files and conflicts as they stand.

        ``commit`` itself when that is no more. The tree and its index stay as they are. Raises EnvironmentFailure when
        something cannot be kept.
        """
        own = Path(self._git("rev-parse", "--absolute-git-dir")) / "index"
        with tempfile.TemporaryDirectory(prefix="agent-saved-") as place, disk_errors(Path(place)):
            index = Path(place) / "index"
            if own.exists():
                # What the index knows need not be read again. Its mtime goes with it: git compares that with those of
                # the files, for a change that came too soon to show in them.
                shutil.copy2(own, index)
            env = {"GIT_INDEX_FILE": str(index)}
            git(self.path, "add", "-A", timeout=self.timeout, env=env)
            tree = git(self.path, "write-tree", timeout=self.timeout, env=env).output.strip()
        if tree == self._git("rev-parse", f"{commit}^{{tree}}"):
            return commit
        identity = self.context.identity()
        who = ("-c", f"user.name={identity.name}", "-c", f"user.email={identity.email}")
        return self._git(*who, "commit-tree", tree, "-p", commit, "-m", "What was in the tree and not committed")

    def _save(self, commit: str) -> None:
        """Keep a commit under a name of its own."""
        name = f"refs/agent/saved/{datetime.now(UTC):%Y%m%dT%H%M%S.%f}"
        self.repo.git("update-ref", name, commit)
        self.context.report.warn(f"what was in the tree is kept as {name} of {self.repo.path}")

    def _configure(self, base: str, head: str, until: str) -> None:
        identity = self.context.identity()
        settings = {
            "user.name": identity.name,
            "user.email": identity.email,
            "commit.gpgSign": "false",
            "core.autocrlf": "false",
            "core.hooksPath": "/dev/null",
            "agent.base": base,
            "agent.synced": head,
            "agent.until": until,
        }
        for name, value in settings.items():
            self._git("config", "--worktree", name, value)

    def _is_stored(self, commit: str, series: Series, base: str) -> bool:
        """Whether a commit holds nothing that is not in the store, or came from a store."""
        if commit == base or commit == self._try_synced():
            return True
        if self.repo.git("for-each-ref", "--points-at", commit, "refs/agent/series", "refs/agent/base"):
            return True
        try:
            with tempfile.TemporaryDirectory() as place:
                exported = self._render(base, commit, Path(place))
        except HarnessError:
            return False
        stored = {patch.name: patch.text.encode("utf-8", "surrogateescape") for patch in series.patches}
        return exported == stored

    def _try_synced(self) -> str:
        return self._try("config", "--worktree", "agent.synced") if self.repo.is_worktree(self.path) else ""

    def _unfinished(self) -> str:
        """An operation of git that waits for the developer, or an empty text."""
        git_dir = Path(self._git("rev-parse", "--absolute-git-dir"))
        for name, what in (
            ("rebase-merge", "a rebase"),
            ("rebase-apply", "a rebase or `git am`"),
            ("MERGE_HEAD", "a merge"),
            ("CHERRY_PICK_HEAD", "a cherry-pick"),
        ):
            if (git_dir / name).exists():
                return f"{what} is in progress"
        return ""

    def _changes(self) -> str:
        changed = self.repo.stray(self.path, ignored=False)
        return f"{len(changed)} files are changed and not committed, first {changed[0][3:]}" if changed else ""

    # From the tree to the series

    def export(self, *, dry_run: bool = False) -> Changes:
        """Write the commits of the tree to ``patches/``; only files that differ are written.

        Raises UsageError, naming the commit, when something could not be stored or would not be accepted; nothing is
        written then.
        """
        if not self.repo.is_worktree(self.path):
            raise UsageError(f"{self.path} is no tree of this cache", hint="`harness tree` makes it")
        with self._locked():
            if problem := self._unfinished() or self._changes():
                raise UsageError(f"{self.path}: {problem}", hint="finish or commit it, then refresh again")
            base, head = self._base(), self._git("rev-parse", "HEAD")
            until = self._try("config", "--worktree", "agent.until")
            if until and head == self._try_synced():
                raise UsageError(
                    f"{self.path} was made with --until {until} and nothing was added: the patches after it would go",
                    hint=f"`git am -3` the rest there first, or `harness tree {self.path}` for the whole series",
                )
            commits = self._commits(base, head)
            self._check(commits)
            with tempfile.TemporaryDirectory(prefix="agent-refresh-") as place:
                files = self._render(base, head, Path(place))
            series = Series(tuple(parse(decode(raw), name) for name, raw in files.items()))
            self._prove(series, commits, base, head)
            changes = self._compare(files)
            if not dry_run:
                self._write(files, changes)
                self._git("config", "--worktree", "agent.synced", head)
                self._git("config", "--worktree", "agent.until", "")
        return changes

    def format_command(self) -> list[str]:
        """The git command whose output is stored."""
        base, head = self._base(), self._git("rev-parse", "HEAD")
        return ["git", "-C", str(self.repo.path), *self._format(), "-o", str(self.context.patches), f"{base}..{head}"]

    def _format(self) -> list[str]:
        attributes = self.repo.path / "format-attributes"
        write_if_changed(attributes, ATTRIBUTES)
        return ["-c", f"core.attributesFile={attributes}", *FORMAT]

    def _base(self) -> str:
        base = self._try("config", "--worktree", "agent.base") or self.repo.ensure_base()
        if git(self.path, "merge-base", "--is-ancestor", base, "HEAD", timeout=self.timeout, check=False).status != 0:
            raise UsageError(
                f"{self.path}: HEAD is not built on the pinned base {base[:12]}", hint=f"git rebase --onto {base[:12]}"
            )
        return base

    def _commits(self, base: str, head: str) -> list[Commit]:
        layout = "%H%x00%P%x00%an%x00%ae%x00%s%x00%B%x01"
        said = self.repo.git("log", "--reverse", "--topo-order", f"--format={layout}", f"{base}..{head}")
        commits = []
        for record in filter(str.strip, said.split("\x01")):
            commit, parents, name, email, subject, message = record.lstrip("\n").split("\x00")
            commits.append(Commit(commit, tuple(parents.split()), Identity(name, email), subject, message))
        return commits

    def _check(self, commits: list[Commit]) -> None:
        identity = self.context.identity()
        again = "git rebase -i " + (commits[0].parents[0][:12] if commits and commits[0].parents else "")
        for commit in commits:
            if len(commit.parents) != 1:
                raise UsageError(f"{commit} is a merge: a series is a line of patches", hint="rebase it away")
            trees = self.repo.git("rev-parse", f"{commit.id}^{{tree}}", f"{commit.parents[0]}^{{tree}}").split()
            if trees[0] == trees[1]:
                raise UsageError(f"{commit} is empty: it changes no file", hint=f"drop it: {again}")
            if re.match(r"(fixup|squash|amend)! ", commit.subject):
                raise UsageError(f"{commit} waits to be squashed", hint=f"{again} --autosquash")
            if commit.author != identity:
                raise UsageError(
                    f"the author of {commit} is {commit.author}, configs/identity.yaml says {identity}",
                    hint=f"{again} --exec 'git commit --amend --no-edit --reset-author'",
                )
            if f"Signed-off-by: {identity}" not in commit.message.splitlines():
                raise UsageError(
                    f"{commit} lacks `Signed-off-by: {identity}`", hint=f"git rebase --signoff {commit.parents[0][:12]}"
                )

    def _render(self, base: str, head: str, place: Path) -> dict[str, bytes]:
        """The patches of ``base..head`` by name. Made in the bare repository, where no attribute file applies."""
        if base == head:
            return {}
        with disk_errors(place):
            self.repo.git(*self._format(), "-o", str(place), f"{base}..{head}")
        return {path.name: path.read_bytes() for path in sorted(place.iterdir())}

    def _prove(self, series: Series, commits: list[Commit], base: str, head: str) -> None:
        """The patches, read back, say what the commits say and give their tree."""
        for patch, commit in zip(series.patches, commits, strict=True):
            # A subject is one line in a mail, however many it had.
            body = commit.message.strip("\n").partition("\n\n")[2].strip("\n")
            if (patch.subject, patch.message) != (commit.subject, body):
                raise UsageError(
                    f"the message of {commit} would not survive as a mail: a subject in brackets, or a line that "
                    "begins with `---`, `diff -` or `Index: `",
                    hint="reword it, e.g. indent that line",
                )
        if self.repo.tree_of(base, series) != self.repo.git("rev-parse", f"{head}^{{tree}}"):
            raise UsageError(
                f"the patches of {self.path} do not give its tree again",
                hint=f"look at them: {proc.quoted(self.format_command())}",
            )

    def _compare(self, files: dict[str, bytes]) -> Changes:
        stored = {path.name: path.read_bytes() for path in sorted(self.context.patches.glob("*.patch"))}
        return Changes(
            added=tuple(name for name in files if name not in stored),
            changed=tuple(name for name in files if name in stored and stored[name] != files[name]),
            removed=tuple(name for name in stored if name not in files),
            kept=sum(stored.get(name) == raw for name, raw in files.items()),
        )

    def _write(self, files: dict[str, bytes], changes: Changes) -> None:
        directory = self.context.patches
        listing = "".join(f"{name}\n" for name in files)
        marker = directory / UNFINISHED
        if changes:
            atomic_write(marker, "")
        for name in (*changes.added, *changes.changed):
            atomic_write(directory / name, files[name])
        for name in changes.removed:
            (directory / name).unlink()
        write_if_changed(directory / SERIES_FILE, listing)
        marker.unlink(missing_ok=True)


__all__ = ["COVER_FILE", "Changes", "DeveloperTree", "default_tree"]
