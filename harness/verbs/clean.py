"""``harness clean``: removes what can be made again, and only that."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness import fs, proc
from harness.build.kernel import kept_kernels, kept_lock
from harness.context import Context
from harness.errors import ExitCode, HarnessError, UsageError
from harness.report import table
from harness.results import run as runs
from harness.source.git import git

NAME = "clean"
DESCRIPTION = """\
Removes what the other verbs can make again and prints how much that frees:

  builds     output directories of kernels and selftests, and the copies that guests boot (the default)
  trees      source trees that builds and checks read; never a developer's worktree of `harness tree`
  downloads  tarballs
  runs       result directories of the project
  ccache     the compiler cache
  all        all of these and the rest of the cache; a developer's worktree, and the repository that holds commits
             which no stored series has, stay and are named

What another run is using is left alone and named (exit code 3). --dry-run prints sizes and commands.
"""

KINDS = ("builds", "trees", "downloads", "runs", "ccache", "all")
TRASH = ".trash-"
GIT_SECONDS = 120.0
# References that `harness apply` makes again from patches/ and the source.
STORED = ("refs/agent/series/", "refs/agent/base/", "refs/agent/importing")


@dataclass(frozen=True)
class Item:
    """Something to remove: its kind, where it is, and the lock files of whoever may be using it."""

    kind: str
    path: Path
    locks: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Work:
    """What a developer has made: worktrees, and names of commits of the kernel repository that no series has."""

    trees: tuple[Path, ...] = ()
    commits: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.trees or self.commits)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to remove."""
    parser.add_argument("what", nargs="*", metavar="WHAT", help=f"any of: {', '.join(KINDS)}")


def run(context: Context, args: argparse.Namespace) -> int:
    """Remove and print; see DESCRIPTION."""
    kinds = set(args.what or ["builds"])
    if unknown := sorted(kinds - set(KINDS)):
        raise UsageError(f"nothing is called {unknown[0]!r} here", hint=f"one of: {', '.join(KINDS)}")
    _check_cache(context)
    kept = developers_work(context)
    rows = []
    problems: list[HarnessError] = []
    freed = 0
    for item in items(context, kinds, kept):
        if not item.path.exists() and not item.path.is_symlink():
            continue
        if item.path.is_symlink():
            rows.append((item.kind, str(item.path), "", "left alone: it is a link to another place"))
            continue
        size = disk_use(item.path)
        if context.dry_run:
            context.report.result(f"{proc.quoted(['rm', '-rf', str(item.path)])}  # {mib(size)}")
            continue
        try:
            remove(context, item)
        except HarnessError as exc:
            problems.append(exc)
            rows.append((item.kind, str(item.path), mib(size), f"left alone: {exc.message}"))
            continue
        freed += size
        rows.append((item.kind, str(item.path), mib(size), "removed"))
    if context.dry_run:
        return ExitCode.OK
    runs.forget_latest(context)
    if not kept:
        _prune(context)
    for tree in kept.trees if kinds & {"trees", "all"} else ():
        rows.append(("tree", str(tree), "", "kept: a developer's worktree; `rm -r` it yourself when it is exported"))
    if kept.commits and "all" in kinds:
        more = f" and {len(kept.commits) - 1} more" if len(kept.commits) > 1 else ""
        why = f"kept: no stored series has {kept.commits[0]}{more}; `rm -r` it yourself when nobody needs it"
        rows.append(("repository", str(context.kernel_repo), "", why))
    if rows:
        context.report.result(table(rows, header=("what", "where", "size", "")))
    context.report.result(f"{mib(freed)} freed" if rows else "nothing to remove")
    return problems[0].exit_code if problems else ExitCode.OK


def items(context: Context, kinds: set[str], kept: Work) -> Iterator[Item]:
    """What there is to remove of ``kinds``. Nothing that comes out is or holds a developer's worktree."""
    # git prints real paths, and the cache may be reached through a link.
    trees = [tree.resolve() for tree in kept.trees]
    for item in _everything(context, kinds, kept):
        path = item.path.resolve()
        if not any(tree == path or path in tree.parents for tree in trees):
            yield item


def _everything(context: Context, kinds: set[str], kept: Work) -> Iterator[Item]:
    everything = "all" in kinds
    named = {
        context.builds,
        context.downloads,
        context.cache / "ccache",
        kept_kernels(context),
        *_trees(context),
    }
    if everything or "builds" in kinds:
        for path in _children(context.builds):
            yield Item("build", path, (context.cache / "locks" / f"build-{path.name}.lock",))
        if kept_kernels(context).is_dir():
            yield Item("kernels", kept_kernels(context), (kept_lock(context), *_locks(context, kept_kernels(context))))
    if everything or "trees" in kinds:
        for path in _trees(context):
            yield Item("tree", path, (_beside(path),))
    if everything or "downloads" in kinds:
        lock = context.downloads / ".lock"
        for path in _children(context.downloads):
            if path != lock:
                yield Item("download", path, (lock,))
    if everything or "ccache" in kinds:
        yield Item("ccache", context.cache / "ccache")
    if everything or "runs" in kinds:
        for path in _children(context.runs):
            # Only what the harness made: the directory is the user's to point elsewhere.
            if path.is_symlink():
                continue
            if (path / runs.METADATA).is_file():
                yield Item("run", path, (path / runs.LOCK,))
            elif _is_trash(path):
                yield Item("run", path)
    if everything:
        for path in _children(context.cache):
            if path in named or path.name == "locks" or path.suffix == ".lock":
                continue
            if path == context.kernel_repo and kept:
                continue
            yield Item("cache", path, _locks(context, path))


def _locks(context: Context, path: Path) -> tuple[Path, ...]:
    """The locks of whoever may use something in the cache that is neither a build, nor a tree, nor a download."""
    if path == context.kernel_repo:
        # Whoever has a tree checked out reads the repository too.
        return tuple(map(_beside, (path, *_trees(context))))
    if path.name.partition("-")[0] == "apt":
        return tuple(directory / ".lock" for directory in (path, *_children(path)) if (directory / ".lock").exists())
    # Emulators, user lands and what else a guest is made from: a guest that runs has a run directory.
    guests = [directory / runs.LOCK for directory in _children(context.runs) if runs.is_running(directory)]
    made = [path.with_name(f".{path.name}.lock"), *path.glob(".*.lock")] if path.is_dir() else []
    return (*(lock for lock in made if lock.exists()), *guests)


def _is_trash(path: Path) -> bool:
    """Whether a removal that was killed has left it."""
    pid = path.name.removeprefix(TRASH).partition("-")[0]
    return path.name.startswith(TRASH) and pid.isdigit() and not Path(f"/proc/{pid}").exists()


def _children(directory: Path) -> list[Path]:
    return sorted(directory.iterdir()) if directory.is_dir() else []


def _trees(context: Context) -> list[Path]:
    """Worktrees in the cache that builds and checks use."""
    return [context.source_tree, context.cache / "check-src"]


def _beside(path: Path) -> Path:
    """The lock of a tree or repository in the cache."""
    return path.with_name(f"{path.name}.lock")


def developers_work(context: Context) -> Work:
    """What of the kernel repository is somebody's work, whatever a rebase, a detached HEAD or an ``rm`` left of it.

    Raises EnvironmentFailure when git cannot tell: what is not known to be expendable stays.
    """
    if not (context.kernel_repo / "HEAD").is_file():
        return Work()
    listed = git(context.kernel_repo, "worktree", "list", "--porcelain", timeout=GIT_SECONDS).output
    known = git(
        context.kernel_repo, "for-each-ref", "--format=%(objectname) %(refname)", timeout=GIT_SECONDS
    ).output.splitlines()
    refs = [(name, commit) for commit, _, name in (line.partition(" ") for line in known)]
    stored = {commit for name, commit in refs if name.startswith(STORED)}
    named = {commit: name for name, commit in refs if commit not in stored}
    trees = []
    for block in listed.split("\n\n"):
        lines = dict(line.partition(" ")[::2] for line in block.splitlines())
        path, head = Path(lines.get("worktree", "")), lines.get("HEAD", "")
        if "bare" in lines or not head or _is_ours(context, path):
            continue
        if path.is_dir():
            trees.append(path)
        elif head not in stored:
            named.setdefault(head, f"{head[:12]}, the HEAD of {path} which is gone")
    return Work(tuple(trees), tuple(named.values()))


def _is_ours(context: Context, tree: Path) -> bool:
    """Whether builds or checks have made a worktree, for themselves."""
    return tree.resolve() in [path.resolve() for path in _trees(context)]


def _check_cache(context: Context) -> None:
    """Refuse a cache directory that holds more than a cache."""
    cache = context.cache.resolve()
    home = Path.home().resolve()
    root = context.root.resolve()
    for precious, what in ((Path("/"), "the root directory"), (home, "your home directory"), (root, "the project")):
        if cache == precious or cache in precious.parents:
            raise UsageError(
                f"the cache directory {cache} holds {what}", hint="set HARNESS_CACHE_DIR to a directory of its own"
            )


def remove(context: Context, item: Item) -> None:
    """Remove one item, whole or not at all: it is renamed first, so that an interruption leaves nothing half there.

    Raises UsageError for a path outside cache and runs, EnvironmentFailure when it is in use.
    """
    path = item.path
    parents = [context.cache.resolve(), context.runs.resolve()]
    if path.parent.resolve() not in parents and not any(p in path.parent.resolve().parents for p in parents):
        raise UsageError(f"{path} is not in the cache", hint=f"the cache is {context.cache}")
    with contextlib.ExitStack() as stack:
        for lock in filter(_may_be_held, item.locks):
            stack.enter_context(fs.lock(lock, str(path)))
        with fs.disk_errors(path.parent):
            trash = path.with_name(f"{TRASH}{os.getpid()}-{path.name.lstrip('.')}")
            path.replace(trash)
            if trash.is_dir():
                shutil.rmtree(trash, onerror=_make_writable)
            else:
                trash.unlink()


def _may_be_held(lock: Path) -> bool:
    """A lock is made where there is none yet, but no directory for it: that of a run may have gone by now."""
    return lock.parent.is_dir()


def _make_writable(function: object, name: str, _info: object) -> None:
    """Retry a removal in a directory that is read-only; what then fails was not to be had."""
    with contextlib.suppress(OSError):
        parent = Path(name).parent
        parent.chmod(parent.stat().st_mode | stat.S_IRWXU)
        Path(name).unlink() if not Path(name).is_dir() else shutil.rmtree(name)


def _prune(context: Context) -> None:
    """Tell git which of its worktrees are gone."""
    if context.kernel_repo.is_dir():
        git(context.kernel_repo, "worktree", "prune", timeout=GIT_SECONDS, check=False)


def disk_use(path: Path) -> int:
    """Bytes on disk of a file or of everything below a directory; links are not followed, hard links count once."""
    seen: set[tuple[int, int]] = set()
    total = 0

    def add(entry: os.stat_result) -> None:
        nonlocal total
        if entry.st_nlink == 1 or (entry.st_dev, entry.st_ino) not in seen:
            seen.add((entry.st_dev, entry.st_ino))
            total += entry.st_blocks * 512

    with contextlib.suppress(OSError):
        add(path.lstat())
    for directory, below, names in os.walk(path):
        for name in (*below, *names):
            with contextlib.suppress(OSError):
                add(os.lstat(os.path.join(directory, name)))  # noqa: PTH118 - a hundred thousand of them
    return total


def mib(size: int) -> str:
    """A size in MiB, as text."""
    return f"{size / (1 << 20):.1f} MiB"
