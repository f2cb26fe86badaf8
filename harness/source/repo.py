"""The kernel as a git repository in the cache: the pinned base, the series as commits on it, and worktrees of both.

The base is imported once, straight from the tarball, as a commit whose id depends on nothing but the files. The series
is applied without a worktree; the same patches give the same commits. References are written last, so whatever is
killed in between is as if it had not begun.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from harness import proc
from harness.context import Context
from harness.errors import ApplyError, EnvironmentFailure, HarnessError, UsageError
from harness.fs import disk_errors, require_space
from harness.report import Stopwatch
from harness.source import fetch, tarball
from harness.source.conflict import explain
from harness.source.git import ENVIRONMENT, argv, git, is_full, no_space
from harness.source.mail import Patch
from harness.source.series import Series

# Nobody's: the base is the tarball's, and its commit id must not depend on who imported it.
_BASE_PERSON = ("Linux", "linux@example.org", "@1104537600 +0000")

_SETTINGS = {
    "core.logAllRefUpdates": "always",  # a bare repository keeps no reflog otherwise: nothing committed may be lost
    "core.autocrlf": "false",
    "core.hooksPath": os.devnull,
    "extensions.worktreeConfig": "true",
    "gc.auto": "0",
    "maintenance.auto": "false",
}
_IMPORT_MIB, _TREE_MIB = 700, 1800
_INDEX = "agent-index-"


class KernelRepo:
    """The repository ``context.kernel_repo``. Every method may be called by two runs at once; one of them waits."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.path = context.kernel_repo
        self.timeout = context.settings.seconds("apply_timeout")

    def git(self, *arguments: str, check: bool = True, env: dict[str, str] | None = None) -> str:
        """Run git in the repository; its stdout without the final newline. Raises as :func:`source.git.git` does."""
        return git(self.path, *arguments, timeout=self.timeout, env=env, check=check).output.rstrip("\n")

    # The base

    def ensure_base(self) -> str:
        """The commit of the unpatched source; fetches and imports it if the repository has not got it."""
        return self._base()[0]

    def has_base(self) -> bool:
        """Whether the unpatched source has been imported, so that its tarball is not missed."""
        return self._imported() is not None

    def _imported(self) -> tuple[str, bool] | None:
        pin = self.context.pin()
        own = fetch.own_source(self.context, pin)
        keys = [(own.key, own.exact)] if own else [(fetch.way_key(way), bool(way.sha256)) for way in pin.ways]
        for key, exact in keys:
            if commit := self._resolve(f"refs/agent/base/{pin.version}/{key}"):
                return commit, exact
        return None

    def _base(self) -> tuple[str, bool]:
        """The base, and whether its hash is the pinned one (otherwise the series decides whether it fits)."""
        if found := self._imported():
            return found
        pin = self.context.pin()
        with self._locked():
            source = fetch.fetch(self.context, pin, Series.load(self.context.patches))
            ref = f"refs/agent/base/{pin.version}/{source.key}"
            return self._resolve(ref) or self._import(source, pin.version, ref), source.exact

    def _resolve(self, name: str) -> str:
        if not (self.path / "HEAD").is_file():
            return ""
        found = git(self.path, "rev-parse", "-q", "--verify", f"{name}^{{commit}}", timeout=self.timeout, check=False)
        return found.output.strip() if found.status == 0 else ""

    def _locked(self) -> contextlib.AbstractContextManager[None]:
        return fetch.waiting_lock(
            self.context, self.path.with_name(f"{self.path.name}.lock"), "the kernel repository", "apply_timeout"
        )

    def _import(self, source: fetch.Source, version: str, ref: str) -> str:
        watch = Stopwatch()
        report = self.context.report
        report.step(f"importing {source.path.name} into {self.path}")
        require_space(self.path, _IMPORT_MIB + (1600 if source.commit else 0), "importing the source")
        self._create()
        with contextlib.ExitStack() as stack:
            archive = source.path
            if source.commit:
                place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="archive-", dir=self.path)))
                archive = place / "linux.tar"
                arguments = ["archive", "--format=tar", "--prefix=linux/", "-o", str(archive), source.commit]
                git(source.path, "-c", "core.autocrlf=false", *arguments, timeout=self.timeout)
            coming = "refs/agent/importing"
            name, email, date = _BASE_PERSON
            message = f"Linux {version}\n".encode()
            header = f"committer {name} <{email}> {date.removeprefix('@')}\ndata {len(message)}\n".encode() + message

            def progress(done: int, total: int) -> None:
                report.progress(f"importing {source.path.name}", done, total)

            def write(out: IO[bytes]) -> None:
                tarball.write_import(out, archive, coming, header, progress)

            # Deltas would make it three times as slow for a third of the space.
            command = argv("-c", "core.compression=1", "fast-import", "--quiet", "--depth=0", "--force")
            try:
                with disk_errors(self.path):
                    proc.feed(command, write, timeout=self.timeout, cwd=self.path, env=ENVIRONMENT, what="the import")
            except EnvironmentFailure as exc:
                if is_full(exc.detail):
                    raise no_space(self.path, exc.detail) from None
                if exc.detail:
                    exc.hint = f"run it again; if it stays: rm -rf {self.path}"
                raise
            except BaseException:
                report.end_bar()
                raise
            finally:
                self._sweep()
        report.end_bar()
        fetch.check_version(str(source.path), self.git("show", f"{coming}:Makefile", check=False), self.context.pin())
        commit = self.git("rev-parse", coming)
        if source.commit:
            self._same_tree(source, commit)
        self.git("update-ref", ref, commit)
        self.git("update-ref", "-d", coming)
        report.step(f"imported Linux {version} as {commit[:12]} in {watch}")
        return commit

    def _same_tree(self, source: fetch.Source, commit: str) -> None:
        wanted = git(source.path, "rev-parse", f"{source.commit}^{{tree}}", timeout=self.timeout).output.strip()
        if self.git("rev-parse", f"{commit}^{{tree}}") != wanted:
            raise EnvironmentFailure(
                f"{source.path}: `git archive` changes files of {source.commit[:12]} (export attributes, submodules)",
                hint="give a tarball in place of the git tree",
            )

    def _create(self) -> None:
        """Make the repository, or mend what a killed import left in it."""
        with disk_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            git(self.path, "init", "-q", "--bare", "--template=", "--initial-branch=none", ".", timeout=self.timeout)
            self._sweep()
            for left in self.path.glob("archive-*"):
                shutil.rmtree(left)
        for name, value in _SETTINGS.items():
            self.git("config", name, value)
        # With settings per worktree, what makes this one bare must not hold for the others.
        self.git("config", "--worktree", "core.bare", "true")
        git(self.path, "config", "--unset", "core.bare", timeout=self.timeout, check=False)

    def _sweep(self) -> None:
        """Remove what runs that failed or were killed left; the caller holds the lock.

        A private index is made without it: only those of runs that are no more go.
        """
        for pattern in ("objects/pack/tmp_*", "fast_import_crash_*", "config.lock"):
            for left in self.path.glob(pattern):
                left.unlink(missing_ok=True)
        for left in self.path.glob(f"{_INDEX}*"):
            pid = left.name.removeprefix(_INDEX).partition("-")[0]
            if not (pid.isdigit() and Path(f"/proc/{pid}").exists()):
                left.unlink(missing_ok=True)

    # The series

    def apply(self, series: Series) -> str:
        """The commit of the series on the base; an empty series is the base.

        Raises ApplyError naming patch, file and hunk of the first conflict; nothing has changed then.
        """
        base, exact = self._base()
        if not series.patches:
            return base
        ref = f"refs/agent/series/{base[:16]}/{series.fingerprint[:40]}"
        if commit := self._resolve(ref):
            return commit
        with self._locked():
            if not exact:
                blobs = fetch.blobs_of(self.path, base, list(series.touched()), self.timeout)
                fetch.check_blobs(f"the imported source {base[:12]}", blobs, series)
            commit = self._commits(base, series.patches)[-1]
            self.git("update-ref", "-m", "harness apply", ref, commit)
        return commit

    def commits(self, series: Series) -> list[str]:
        """One commit per patch, in order; applies the series if that has not been done."""
        base, head = self.ensure_base(), self.apply(series)
        return self.git("rev-list", "--reverse", "--first-parent", f"{base}..{head}").split()

    def _commits(self, base: str, patches: Sequence[Patch]) -> list[str]:
        """Apply patches to a private index, one commit each. Author and date are also the committer's."""
        made: list[str] = []
        with self._private_index() as env:
            git(self.path, "read-tree", base, timeout=self.timeout, env=env)
            parent = base
            for patch in patches:
                self.context.report.debug(f"applying {patch.name}")
                raw = patch.diff.encode("utf-8", "surrogateescape")
                arguments = ("apply", "--cached", "--whitespace=nowarn", "-")
                done = git(self.path, *arguments, timeout=self.timeout, env=env, stdin=raw, check=False)
                if done.status != 0:
                    raise explain(patch, done.errors, self.path)
                tree = git(self.path, "write-tree", timeout=self.timeout, env=env).output.strip()
                parent = git(
                    self.path,
                    *("commit-tree", tree, "-p", parent, "-F", "-"),
                    timeout=self.timeout,
                    env={**env, **_person(patch.author, patch.email, patch.git_date)},
                    stdin=patch.commit_message.encode("utf-8", "surrogateescape"),
                ).output.strip()
                made.append(parent)
        return made

    def tree_of(self, base: str, series: Series) -> str:
        """The tree that the series gives on ``base``; no reference is written. Raises ApplyError."""
        commit = self._commits(base, series.patches)[-1] if series.patches else base
        return self.git("rev-parse", f"{commit}^{{tree}}")

    # Single files

    def read(self, commit: str, path: str) -> str:
        """The text of a file of ``commit``. Raises UsageError when it has none there."""
        found = git(self.path, "cat-file", "blob", f"{commit}:{path}", timeout=self.timeout, check=False)
        if found.status != 0:
            raise UsageError(f"there is no file {path} in the kernel {commit[:12]}")
        return found.output

    def commit_files(self, parent: str, texts: Mapping[str, str], subject: str) -> str:
        """A commit on ``parent`` in which the files of ``texts`` are these; the same ones give the same commit."""
        with self._private_index() as env:
            git(self.path, "read-tree", parent, timeout=self.timeout, env=env)
            for path, text in texts.items():
                blob = git(
                    self.path, "hash-object", "-w", "--stdin", timeout=self.timeout, stdin=text.encode(), env=env
                ).output.strip()
                entry = f"100644,{blob},{path}"
                git(self.path, "update-index", "--cacheinfo", entry, timeout=self.timeout, env=env)
            tree = git(self.path, "write-tree", timeout=self.timeout, env=env).output.strip()
            name, email, date = _BASE_PERSON
            return git(
                self.path,
                *("commit-tree", tree, "-p", parent, "-m", subject),
                timeout=self.timeout,
                env={**env, **_person(name, email, date)},
            ).output.strip()

    @contextlib.contextmanager
    def _private_index(self) -> Iterator[dict[str, str]]:
        """The environment for a git that works on an index of its own, which is removed at the end."""
        fd, name = tempfile.mkstemp(prefix=f"{_INDEX}{os.getpid()}-", dir=self.path)
        os.close(fd)
        index = Path(name)
        index.unlink()  # git wants to make it itself
        try:
            yield {"GIT_INDEX_FILE": str(index), "GIT_DIR": str(self.path)}
        finally:
            index.unlink(missing_ok=True)
            index.with_name(f"{index.name}.lock").unlink(missing_ok=True)

    # Worktrees

    @contextlib.contextmanager
    def checkout(self, commit: str) -> Iterator[Path]:
        """``context.source_tree`` at ``commit``, for as long as the body runs; others wait.

        Only files that differ are rewritten, whatever state a killed run left; what does not belong there is removed.
        """
        path = self.context.source_tree
        lock_file = path.with_name(f"{path.name}.lock")
        # Whoever holds it builds in it.
        with fetch.waiting_lock(self.context, lock_file, f"the source tree {path}", "build_timeout"):
            self._check_out(path, commit)
            yield path

    def _check_out(self, path: Path, commit: str) -> None:
        if not self.is_worktree(path):
            self.context.report.step(f"checking {commit[:12]} out into {path}")
            require_space(path, _TREE_MIB, "the source tree")
            self.add_worktree(path, "--detach", commit)
        here = worktree_git(path, "rev-parse", "HEAD", timeout=self.timeout)
        if here == commit and not self.stray(path):
            return
        if here != commit:
            self.context.report.step(f"switching {path} to {commit[:12]}")
        self.switch(path, commit)
        if left := self.stray(path):
            raise EnvironmentFailure(
                f"{path} is not clean after a checkout: {left[0]}",
                detail="\n".join(left[:10]),
                hint=f"remove it: rm -rf {path}",
            )

    def switch(self, path: Path, commit: str) -> None:
        """Move a worktree to ``commit``; the caller holds its lock.

        Only files that differ are rewritten. What a killed run left goes: an index lock, half a checkout, stray files.
        """
        git_dir = Path(worktree_git(path, "rev-parse", "--absolute-git-dir", timeout=self.timeout))
        (git_dir / "index.lock").unlink(missing_ok=True)  # the caller's lock is the one that counts
        # Files that were only touched are recognised by content first: a checkout would write them anew.
        git(path, "update-index", "-q", "--really-refresh", timeout=self.timeout, check=False)
        worktree_git(path, "checkout", "-q", "--detach", "--force", commit, timeout=self.timeout)
        worktree_git(path, "clean", "-q", "-ffdx", timeout=self.timeout)

    def stray(self, path: Path, *, ignored: bool = True) -> list[str]:
        """What differs from HEAD in a worktree, or does not belong there, as ``git status --porcelain`` says it."""
        arguments = ["status", "--porcelain", "--untracked-files=all", *(["--ignored"] if ignored else [])]
        return worktree_git(path, *arguments, timeout=self.timeout).splitlines()

    def is_worktree(self, path: Path) -> bool:
        """Whether ``path`` is a sound worktree of this repository."""
        if not (path / ".git").is_file():
            return False
        found = git(path, "rev-parse", "--git-common-dir", "HEAD", timeout=self.timeout, check=False)
        common = found.output.partition("\n")[0]
        return found.status == 0 and (path / common).resolve() == self.path.resolve()

    def add_worktree(self, path: Path, *arguments: str) -> None:
        """Add a worktree, in place of whatever unsound rest is at ``path``. Removes it again when that fails."""
        with self._locked(), disk_errors(path):
            if path.exists():
                shutil.rmtree(path)
            self.git("worktree", "prune")
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                *options, commit = arguments
                self.git("worktree", "add", "-q", "-f", *options, str(path), commit)
            except BaseException:
                shutil.rmtree(path, ignore_errors=True)
                with contextlib.suppress(HarnessError):
                    self.git("worktree", "prune")
                raise


def _person(name: str, email: str, date: str) -> dict[str, str]:
    """The environment in which git takes somebody for author and committer."""
    return {
        f"GIT_{role}_{what}": value
        for role in ("AUTHOR", "COMMITTER")
        for what, value in (("NAME", name), ("EMAIL", email), ("DATE", date))
    }


def worktree_git(path: Path, *arguments: str, timeout: float) -> str:
    """git in a worktree; its stdout without the final newline."""
    return git(path, *arguments, timeout=timeout).output.rstrip("\n")


__all__ = ["ApplyError", "KernelRepo", "worktree_git"]
