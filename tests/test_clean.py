"""clean removes what can be made again, and only that."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from harness import fs
from harness.context import Context
from harness.errors import EnvironmentFailure, ExitCode, UsageError
from harness.results.run import RunDirectory
from harness.settings import resolve
from harness.verbs import clean
from tests.conftest import add_commit, git, said


def run(context: Context, *argv: str) -> int:
    parser = argparse.ArgumentParser()
    clean.add_arguments(parser)
    return int(clean.run(context, parser.parse_args(argv)))


@pytest.fixture
def full(context: Context, fake_kernel: Path) -> Context:
    """A cache with one of everything, a run and a file in the runs directory that is no run."""
    for name in ("build/x86_64-test", "build/arm64-off", "downloads", "ccache/0", "src", "check-src", "guest/x86_64"):
        (context.cache / name).mkdir(parents=True)
        (context.cache / name / "file").write_text("x" * 5000)
    git(fake_kernel, "clone", "-q", "--bare", str(fake_kernel), str(context.kernel_repo))
    for name, commit in (("base/6.18.15/x", "base"), ("series/x/y", "main")):
        git(context.kernel_repo, "update-ref", f"refs/agent/{name}", f"{commit}^{{commit}}")
    run_directory = context.runs / "20261120T000000Z-test"
    run_directory.mkdir(parents=True)
    (run_directory / "metadata.json").write_text("{}")
    (context.runs / "notes").mkdir()
    return context


def left(context: Context) -> set[str]:
    return {path.name for path in context.cache.iterdir() if path.suffix != ".lock"} - {"locks"}


EVERYTHING = {"build", "downloads", "ccache", "src", "check-src", "guest", "linux.git"}


def test_default_is_builds(full: Context) -> None:
    assert run(full) == ExitCode.OK
    assert left(full) == EVERYTHING
    assert list(full.builds.iterdir()) == []
    assert "x86_64-test" in said(full)
    assert "MiB freed" in said(full)
    assert run(full) == ExitCode.OK
    assert said(full).rstrip().endswith("nothing to remove")


@pytest.mark.parametrize(
    ("what", "gone"),
    [
        (["trees"], {"src", "check-src"}),
        (["ccache"], {"ccache"}),
        (["builds", "ccache", "trees"], {"ccache", "src", "check-src"}),
        (["all"], {"ccache", "src", "check-src", "guest", "linux.git"}),
    ],
)
def test_kinds(full: Context, what: list[str], gone: set[str]) -> None:
    assert run(full, *what) == ExitCode.OK
    assert left(full) == EVERYTHING - gone
    assert bool(list(full.builds.iterdir())) == (not {"builds", "all"} & set(what))
    assert (full.downloads / "file").exists() == ("all" not in what)


def test_runs_only_what_is_a_run(full: Context) -> None:
    assert run(full, "runs") == ExitCode.OK
    assert [path.name for path in full.runs.iterdir()] == ["notes"]


@pytest.mark.parametrize("what", ["runs", "all"])
def test_a_run_that_is_running_keeps_its_directory_and_the_cache(full: Context, what: str) -> None:
    for name in ("emulator", "rootfs/x86_64"):
        (full.cache / name).mkdir(parents=True)
    with RunDirectory.create(full, "boot") as running:
        assert run(full, what) == ExitCode.ENVIRONMENT
        assert json.loads((running.path / "metadata.json").read_text())["state"] == "running"
        assert {"emulator", "rootfs", "guest"} <= left(full)
        assert f"{running.path} is in use by pid" in said(full)
        assert not (full.runs / "20261120T000000Z-test").exists()
    assert run(full, what) == ExitCode.OK
    assert not running.path.exists()


def test_a_killed_run_is_removed(full: Context) -> None:
    (full.runs / "20261120T000000Z-test/metadata.json").write_text('{"state": "running"}')
    assert run(full, "all") == ExitCode.OK
    assert not (full.runs / "20261120T000000Z-test").exists()
    assert left(full) == {"build", "downloads"}


@pytest.mark.parametrize("lock", [".emulator.lock", "rootfs/.x86_64.lock", "apt/emulator/.lock", "apt-arm64/.lock"])
def test_what_is_being_made_in_the_cache_stays(full: Context, lock: str) -> None:
    for name in ("emulator", "rootfs/x86_64", "apt/emulator", "apt-arm64"):
        (full.cache / name).mkdir(parents=True)
    with fs.lock(full.cache / lock, "x"):
        assert run(full, "all") == ExitCode.ENVIRONMENT
    kept = {".emulator.lock": "emulator"}.get(lock, lock.partition("/")[0])
    assert left(full) == {"build", "downloads", kept}


def test_latest_goes_with_its_run(full: Context) -> None:
    with RunDirectory.create(full, "boot"):
        pass
    assert (full.runs / "latest").is_dir()
    assert run(full, "runs") == ExitCode.OK
    assert [path.name for path in full.runs.iterdir()] == ["notes"]
    assert "it is a link" not in said(full)


def test_what_a_killed_removal_of_a_run_left(full: Context) -> None:
    for name in (f"{clean.TRASH}999999999-x", f"{clean.TRASH}1-x", ".trash-mine"):
        (full.runs / name).mkdir()
    assert run(full, "runs") == ExitCode.OK
    assert {path.name for path in full.runs.iterdir()} == {"notes", f"{clean.TRASH}1-x", ".trash-mine"}


def test_dry_run_changes_nothing(full: Context) -> None:
    dry = dataclasses.replace(full, dry_run=True)
    before = sorted(p for p in full.cache.rglob("*"))
    assert run(dry, "all") == ExitCode.OK
    assert sorted(p for p in full.cache.rglob("*")) == before
    lines = said(full).splitlines()
    assert all(line.startswith("rm -rf ") and "MiB" in line for line in lines)
    assert len(lines) >= 8


def test_build_in_use_is_left_alone(full: Context) -> None:
    with fs.lock(full.cache / "locks/build-arm64-off.lock", "x"):
        assert run(full, "builds") == ExitCode.ENVIRONMENT
    assert [path.name for path in full.builds.iterdir()] == ["arm64-off"]
    assert "in use by pid" in said(full)
    assert (full.builds / "arm64-off/file").is_file()


@pytest.mark.parametrize(
    ("lock", "what", "stays"),
    [
        ("src.lock", "trees", {"src"}),
        ("src.lock", "all", {"src", "linux.git"}),
        ("linux.git.lock", "all", {"linux.git"}),
        ("check-src.lock", "trees", {"check-src"}),
        ("downloads/.lock", "downloads", {"downloads/file"}),
    ],
)
def test_tree_and_repository_in_use_stay(full: Context, lock: str, what: str, stays: set[str]) -> None:
    with fs.lock(full.cache / lock, "x"):
        assert run(full, what) == ExitCode.ENVIRONMENT
    assert all((full.cache / name).exists() for name in stays)
    assert said(full).count("in use by pid") == len(stays)


def test_developers_worktree_and_its_repository_stay(full: Context) -> None:
    tree = full.cache / "tree"
    git(full.kernel_repo, "worktree", "add", "-q", "-b", "agent", str(tree), "base")
    (tree / "kernel/new.c").write_text("unsaved work")
    assert run(full, "all") == ExitCode.OK
    assert left(full) == {"build", "downloads", "tree", "linux.git"}
    assert (tree / "kernel/new.c").read_text() == "unsaved work"
    assert "developer's worktree" in said(full)
    git(tree, "status")


def test_a_cache_behind_a_link_keeps_the_worktree(full: Context, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(full.cache)
    settings = resolve(full.root, {"cache_dir": str(tmp_path / "link")}, {"HOME": str(tmp_path)})
    linked = dataclasses.replace(full, settings=settings)
    shutil.rmtree(full.cache / "src")
    for name in ("tree", "src"):
        git(linked.kernel_repo, "worktree", "add", "-q", "--detach", str(linked.cache / name), "base")
    (full.cache / "tree/kernel/new.c").write_text("unsaved work")
    assert clean.developers_work(linked).trees == (full.cache / "tree",)
    assert run(linked, "all") == ExitCode.OK
    assert left(full) == {"build", "downloads", "tree", "linux.git"}
    assert (full.cache / "tree/kernel/new.c").read_text() == "unsaved work"
    assert said(full).count("a developer's worktree") == 1


def commit_in(tree: Path) -> str:
    """A commit of a developer that no series has."""
    return add_commit(tree, "kernel: More", {"kernel/more.c": "/* more */\n"})


def test_detached_worktree_is_a_developers_too(full: Context, tmp_path: Path) -> None:
    inside, outside = full.cache / "tree", tmp_path / "elsewhere/linux"
    for tree in (inside, outside):
        git(full.kernel_repo, "worktree", "add", "-q", "--detach", str(tree), "base")
    commit = commit_in(inside)
    assert run(full, "all") == ExitCode.OK
    assert left(full) == {"build", "downloads", "tree", "linux.git"}
    assert git(inside, "rev-parse", "HEAD").strip() == commit
    git(outside, "status")
    assert said(full).count("a developer's worktree") == 2


@pytest.mark.parametrize("state", ["branch", "detached", "saved"])
def test_commits_of_a_removed_worktree_stay(full: Context, state: str) -> None:
    tree = full.cache / "tree"
    how = ("-b", "agent") if state == "branch" else ("--detach",)
    git(full.kernel_repo, "worktree", "add", "-q", *how, str(tree), "base")
    commit = commit_in(tree)
    if state == "saved":
        git(full.kernel_repo, "update-ref", "refs/agent/saved/20261120T000000", commit)
    shutil.rmtree(tree)
    assert run(full, "all") == ExitCode.OK
    assert run(full, "all") == ExitCode.OK
    assert left(full) == {"build", "downloads", "linux.git"}
    assert git(full.kernel_repo, "cat-file", "-t", commit).strip() == "commit"
    assert "no stored series has" in said(full)


def test_nothing_goes_when_git_cannot_say_whose_it_is(full: Context, fake_bin: Path) -> None:
    (fake_bin / "git").unlink()
    with pytest.raises(EnvironmentFailure, match="git"):
        run(full, "all")
    assert left(full) == EVERYTHING


def test_branch_at_a_stored_series_needs_no_keeping(full: Context) -> None:
    git(full.kernel_repo, "branch", "agent", "main")
    assert run(full, "all") == ExitCode.OK
    assert left(full) == {"build", "downloads"}


def test_stale_worktrees_are_forgotten(full: Context) -> None:
    tree = full.cache / "src"
    (tree / "file").unlink()
    git(full.kernel_repo, "worktree", "add", "-q", "--detach", str(tree), "base")
    assert run(full, "trees") == ExitCode.OK
    assert not tree.exists()
    assert str(tree) not in git(full.kernel_repo, "worktree", "list")


def test_links_are_left_alone(full: Context, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").touch()
    clean.remove(full, clean.Item("ccache", full.cache / "ccache"))
    (full.cache / "ccache").symlink_to(elsewhere)
    assert run(full, "all") == ExitCode.OK
    assert (elsewhere / "precious").exists()
    assert "left alone: it is a link" in said(full)


def test_outside_is_refused(full: Context, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with pytest.raises(UsageError, match="is not in the cache"):
        clean.remove(full, clean.Item("x", tmp_path / "other"))
    with pytest.raises(UsageError, match="is not in the cache"):
        clean.remove(full, clean.Item("x", full.cache))
    assert (tmp_path / "other").is_dir()


@pytest.mark.parametrize("place", ["/", "home", "project", "above the project"])
def test_precious_directory_as_cache_is_refused(
    full: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    home = tmp_path / "somebody"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    cache = {"/": Path("/"), "home": home, "project": full.root, "above the project": full.root.parent}[place]
    settings = resolve(full.root, {}, {"HOME": str(home), "HARNESS_CACHE_DIR": str(cache)})
    with pytest.raises(UsageError, match="holds"):
        run(dataclasses.replace(full, settings=settings), "all")


def test_interrupted_removal_is_finished_by_the_next(full: Context) -> None:
    trash = full.builds / f"{clean.TRASH}123-arm64-debug"
    trash.mkdir()
    (trash / "file").touch()
    assert run(full, "builds") == ExitCode.OK
    assert list(full.builds.iterdir()) == []


def test_read_only_directories_go_too(full: Context) -> None:
    directory = full.builds / "x86_64-test/sub"
    directory.mkdir()
    (directory / "file").touch()
    directory.chmod(0o500)
    assert run(full, "builds") == ExitCode.OK
    assert list(full.builds.iterdir()) == []


def test_disk_use_counts_links_once(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 100_000)
    alone = clean.disk_use(tmp_path)
    (tmp_path / "b").hardlink_to(tmp_path / "a")
    (tmp_path / "c").symlink_to("/usr")
    assert 100_000 <= alone < 200_000
    assert clean.disk_use(tmp_path) <= alone + 8192


def test_unknown_kind(full: Context) -> None:
    with pytest.raises(UsageError, match="nothing is called 'everything'") as caught:
        run(full, "builds", "everything")
    assert "downloads" in caught.value.hint
    assert left(full) == EVERYTHING
