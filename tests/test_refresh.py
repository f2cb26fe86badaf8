"""The developer's tree and the stored series: one becomes the other and back without changing a byte."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from harness import cli
from harness.errors import ApplyError, EnvironmentFailure, ExitCode, UsageError
from harness.source import refresh
from harness.source.refresh import DeveloperTree, default_tree
from harness.source.repo import KernelRepo
from harness.source.series import UNFINISHED, Series
from tests import minikernel
from tests.minikernel import AUTHOR, SIGNED, Mini, sh


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Mini:
    """A stored series with a cover letter, its base imported and the series applied."""
    made = minikernel.mini(tmp_path_factory.mktemp("imported"))
    minikernel.store(made)
    (made.root / "patches/cover-letter.md").write_text("# Cover\n\nText.\n")
    KernelRepo(made.context()).apply(Series.load(made.root / "patches"))
    minikernel.compact(made.directory / "cache/linux.git")
    return made


@pytest.fixture
def project(imported: Mini, tmp_path: Path) -> Mini:
    return imported.copy(tmp_path)


def tree_of(project: Mini, **flags: object) -> DeveloperTree:
    context = project.context(**flags)
    return DeveloperTree(context, default_tree(context))


def stored(project: Mini) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in (project.root / "patches").iterdir()}


def commit(tree: Path, subject: str, body: str = SIGNED, *, env: dict[str, str] | None = None) -> str:
    """Commit what is in the tree as the identity that the tree is configured with."""
    bare = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    bare |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", **(env or {})}
    for argv in (["git", "add", "-A"], ["git", "commit", "-q", "-m", f"{subject}\n\n{body}"]):
        subprocess.run(argv, cwd=tree, env=bare, check=True, timeout=30)
    return sh(tree, "git", "rev-parse", "HEAD")


# Round trips


def test_apply_then_refresh_changes_no_byte(project: Mini) -> None:
    before = stored(project)
    inodes = {p.name: p.stat().st_mtime_ns for p in (project.root / "patches").iterdir()}
    tree = tree_of(project)
    tree.make()
    changes = tree.export()
    assert (changes.added, changes.changed, changes.removed, changes.kept) == ((), (), (), 3)
    assert not changes
    assert stored(project) == before
    assert {p.name: p.stat().st_mtime_ns for p in (project.root / "patches").iterdir()} == inodes


def test_refresh_then_git_am_gives_the_same_trees(project: Mini) -> None:
    tree = tree_of(project)
    tree.make()
    (tree.path / "kernel/sched/core.c").write_text(minikernel.replaced(40, "int ä; \t"))
    (tree.path / "raw.bin").write_bytes(bytes(range(256)) * 8)
    (tree.path / "scripts/run.sh").chmod(0o644)
    (tree.path / "Documentation/new name ü.rst").write_text("no newline at the end")
    commit(tree.path, "sched: Change everything", f"Why.\n\n    ---\n    indented\n\n{SIGNED}")
    assert tree.export().added == ("0004-sched-Change-everything.patch",)
    pristine = minikernel.git_tree(project.directory / "pristine")
    names = (project.root / "patches/series").read_text().split()
    sh(pristine, "git", "am", "-q", *(str(project.root / "patches" / name) for name in names))
    layout = "--format=%T %an %ae %aI%n%B"
    mine = sh(tree.path, "git", "log", layout, f"{tree.repo.ensure_base()}..HEAD")
    assert sh(pristine, "git", "log", layout, "v6.18.15..HEAD") == mine
    # And what is stored gives that tree without a worktree, too.
    head = KernelRepo(project.context()).apply(Series.load(project.root / "patches"))
    assert tree.repo.git("rev-parse", f"{head}^{{tree}}") == sh(pristine, "git", "rev-parse", "HEAD^{tree}")


def test_bytes_do_not_depend_on_the_user(project: Mini, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = tree_of(project)
    tree.make()
    before = stored(project)
    (project.directory / ".gitconfig").write_text(
        "[diff]\n\tnoprefix = true\n\talgorithm = patience\n\trenames = copies\n\tcontext = 1\n"
        "[format]\n\tsignature = me\n\tnumbered = true\n\tsubjectPrefix = MINE\n\tattach\n\tto = l@example.org\n"
        "\tuseAutoBase = true\n\tfrom = true\n[core]\n\tabbrev = 7\n\tattributesFile = /tmp/x\n[log]\n\tdate = iso\n"
    )
    monkeypatch.setenv("HOME", str(project.directory))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(project.directory / ".gitconfig"))
    monkeypatch.setenv("GIT_DIFF_OPTS", "-u1")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("LC_ALL", "C")
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    sh(tree.path, "git", "config", "format.signature", "theirs")  # into the repository itself
    sh(tree.path, "git", "config", "diff.noprefix", "true")
    assert not tree.export()
    assert stored(project) == before


def test_heads_of_hunks_name_functions_whatever_the_attributes_say(project: Mini) -> None:
    tree = tree_of(project)
    tree.make()
    body = "\tif (x)\n\t\treturn;\nout:\n\ta;\n\tb;\n\tc;\n"
    text = "".join(f"static int f{n}(void)\n{{\n{body}\treturn {n};\n}}\n\n" for n in range(9))
    (tree.path / "kernel/long.c").write_text(text)
    (tree.path / ".gitattributes").write_text("*.c diff=python\n")
    commit(tree.path, "sched: Add a file")
    (tree.path / "kernel/long.c").write_text(text.replace("return 7", "return 8"))
    commit(tree.path, "sched: Change it")
    tree.export()
    assert "@@ static int f7(void)\n" in stored(project)["0005-sched-Change-it.patch"].decode()


# tree


def test_tree_has_branch_identity_and_commits(project: Mini) -> None:
    tree = tree_of(project)
    head = tree.make()
    assert sh(tree.path, "git", "symbolic-ref", "HEAD") == "refs/heads/agent"
    assert sh(tree.path, "git", "rev-parse", "HEAD") == head
    assert sh(tree.path, "git", "config", "user.email", env={"GIT_AUTHOR_EMAIL": ""}) == AUTHOR[1]
    assert len(sh(tree.path, "git", "log", "--oneline", f"{tree.repo.ensure_base()}..").splitlines()) == 3
    with tree.repo.checkout(head) as source:
        assert sh(source, "git", "config", "user.email", ok=False) == ""


def test_unmodified_tree_follows_the_store(project: Mini) -> None:
    tree = tree_of(project)
    tree.make()
    patches = project.root / "patches"
    names = (patches / "series").read_text().split()
    (patches / names.pop()).unlink()
    (patches / "series").write_text("\n".join(names))
    head = tree.make()
    assert sh(tree.path, "git", "rev-parse", "HEAD") == head
    assert len(sh(tree.path, "git", "log", "--oneline", f"{tree.repo.ensure_base()}..").splitlines()) == 2
    assert sh(tree.path, "git", "status", "--porcelain") == ""


def test_exported_tree_may_be_made_again_and_keeps_mtimes(project: Mini) -> None:
    tree = tree_of(project)
    tree.make()
    (tree.path / "new.c").write_text("int x;\n")
    mine = commit(tree.path, "sched: Add a file")
    tree.export()
    os.utime(tree.path / "new.c", (1e9, 1e9))
    tree.make()
    # The same content as other commits: nothing is written.
    assert sh(tree.path, "git", "rev-parse", "HEAD^{tree}") == sh(tree.path, "git", "rev-parse", f"{mine}^{{tree}}")
    assert (tree.path / "new.c").stat().st_mtime == 1e9
    assert not tree.export()


def changed(tree: DeveloperTree) -> None:
    (tree.path / "Makefile").write_text("mine\n")


def untracked(tree: DeveloperTree) -> None:
    (tree.path / "forgotten.c").write_text("mine\n")


def committed(tree: DeveloperTree) -> None:
    changed(tree)
    commit(tree.path, "sched: Mine")


def rebasing(tree: DeveloperTree) -> None:
    sh(tree.path, "git", "rebase", "-q", "--exec", "false", "HEAD~1", ok=False)


def conflicted(tree: DeveloperTree) -> None:
    untracked(tree)
    for text in ("theirs", "ours"):
        (tree.path / "Makefile").write_text(f"{text}\n")
        sh(tree.path, "git", "commit", "-q", "-a", "-m", text)
        if text == "theirs":
            sh(tree.path, "git", "branch", "theirs")
            sh(tree.path, "git", "reset", "-q", "--hard", "HEAD~1")
    sh(tree.path, "git", "cherry-pick", "theirs", ok=False)
    assert sh(tree.path, "git", "ls-files", "-u")


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (changed, "1 files are changed and not committed, first Makefile"),
        (untracked, "not committed, first forgotten.c"),
        (committed, "commits that are not exported"),
        (rebasing, "a rebase is in progress"),
        (conflicted, "a cherry-pick is in progress"),
    ],
)
def test_work_is_not_lost(project: Mini, what: object, said: str) -> None:
    tree = tree_of(project)
    head = tree.make()
    assert callable(what)
    what(tree)
    here = sh(tree.path, "git", "rev-parse", "HEAD")
    with pytest.raises(UsageError) as caught:
        tree.make()
    assert said in caught.value.message
    assert "harness refresh" in caught.value.hint
    assert sh(tree.path, "git", "rev-parse", "HEAD") == here
    tree.make(force=True)
    assert sh(tree.path, "git", "rev-parse", "HEAD") == head
    assert sh(tree.path, "git", "symbolic-ref", "HEAD") == "refs/heads/agent"
    assert sh(tree.path, "git", "status", "--porcelain", "--untracked-files=no") == ""
    saved = sh(tree.path, "git", "for-each-ref", "--format=%(objectname)", "refs/agent/saved").split()
    assert len(saved) == 1
    if what in (changed, committed):
        assert sh(tree.path, "git", "show", f"{saved[-1]}:Makefile") == "mine"
    if what in (untracked, conflicted):
        assert sh(tree.path, "git", "show", f"{saved[0]}:forgotten.c") == "mine"
    if what is conflicted:
        kept = sh(tree.path, "git", "show", f"{saved[0]}:Makefile")
        assert kept.startswith("<<<<<<<")
        assert "ours\n=======\ntheirs" in kept
    assert "refs/agent/saved/" in project.err.getvalue()


def test_commits_of_a_removed_tree_are_not_lost(project: Mini) -> None:
    tree = tree_of(project)
    tree.make()
    committed(tree)
    sh(project.directory, "rm", "-rf", str(tree.path))
    with pytest.raises(UsageError, match="removed tree holds commits that are not exported"):
        tree.make()
    tree.make(force=True)
    (saved,) = sh(tree.path, "git", "for-each-ref", "--format=%(objectname)", "refs/agent/saved").split()
    assert sh(tree.path, "git", "show", f"{saved}:Makefile") == "mine"


def test_removed_unmodified_tree_is_made_again(project: Mini) -> None:
    tree = tree_of(project)
    tree.make()
    sh(project.directory, "rm", "-rf", str(tree.path))
    tree.make()
    assert (tree.path / "include/linux/agent.h").is_file()


def test_second_tree_and_foreign_directory(project: Mini) -> None:
    tree = tree_of(project)
    tree.make()
    other = DeveloperTree(project.context(), project.directory / "other")
    with pytest.raises(UsageError, match=f"agent is checked out in {tree.path}"):
        other.make()
    assert not other.path.exists()
    other.path.mkdir()
    (other.path / "file").write_text("the user's own")
    with pytest.raises(UsageError, match="exists and is not a worktree"):
        other.make()
    assert (other.path / "file").read_text() == "the user's own"


def test_conflict_is_mended_in_the_tree_before_it(project: Mini) -> None:
    patch = sorted((project.root / "patches").glob("0002*"))[0]
    patch.write_text(patch.read_text().replace(" int line9;", " int other9;"))
    tree = tree_of(project)
    with pytest.raises(ApplyError, match="hunk 1 of 2") as caught:
        tree.make()
    assert "--until 0002" in caught.value.hint
    assert not tree.path.exists()
    tree.make(until="0002")
    assert len(sh(tree.path, "git", "log", "--oneline", f"{tree.repo.ensure_base()}..").splitlines()) == 1
    with pytest.raises(UsageError, match="made with --until 0002 and nothing was added"):
        tree.export()
    assert len(list((project.root / "patches").glob("*.patch"))) == 3
    (tree.path / "kernel/sched/core.c").write_text(minikernel.replaced(10, "int ten;"))
    commit(tree.path, "sched: Change one place")
    third = sorted((project.root / "patches").glob("0003*"))[0]
    sh(tree.path, "git", "am", "-q", str(third))
    changes = tree.export()
    assert changes.added == ("0002-sched-Change-one-place.patch",)
    assert changes.removed == ("0002-sched-Change-two-places.patch",)
    assert len(Series.load(project.root / "patches").patches) == 3


# refresh


def test_added_changed_removed_and_the_cover_letter(project: Mini) -> None:
    tree = tree_of(project)
    tree.make()
    sh(tree.path, "git", "reset", "-q", "--hard", "HEAD~1")
    (tree.path / "kernel/sched/core.c").write_text(minikernel.replaced(20, "int twenty;"))
    sh(tree.path, "git", "commit", "-q", "-a", "--amend", "--no-edit")
    (tree.path / "one.c").write_text("int one;\n")
    commit(tree.path, "sched: Add one")
    before = stored(project)
    changes = tree.export(dry_run=True)
    assert stored(project) == before
    assert tree.export() == changes
    assert changes.added == ("0003-sched-Add-one.patch",)
    assert changes.changed == ("0002-sched-Change-two-places.patch",)
    assert len(changes.removed) == 1
    assert changes.kept == 1
    now = stored(project)
    assert sorted(now) == [
        "0001-sched-Add-a-header.patch",
        "0002-sched-Change-two-places.patch",
        "0003-sched-Add-one.patch",
        "cover-letter.md",
        "series",
    ]
    assert now["series"].decode().split() == sorted(now)[:3]
    assert now["cover-letter.md"] == before["cover-letter.md"]
    text = now["0002-sched-Change-two-places.patch"].decode()
    assert text.startswith(f"From {'0' * 40} Mon Sep 17 00:00:00 2001\nFrom: {AUTHOR[0]} <{AUTHOR[1]}>\nDate: ")
    assert "\n-- \n" not in text
    assert " kernel/sched/core.c | 2 +-\n" in text


def test_whole_series_dropped(project: Mini) -> None:
    tree = tree_of(project)
    tree.make()
    sh(tree.path, "git", "reset", "-q", "--hard", "HEAD~3")
    assert len(tree.export().removed) == 3
    assert Series.load(project.root / "patches").patches == ()


def empty(tree: Path) -> None:
    sh(tree, "git", "commit", "-q", "--allow-empty", "-m", f"sched: Nothing\n\n{SIGNED}")


def merge(tree: Path) -> None:
    sh(tree, "git", "checkout", "-q", "-b", "side", "HEAD~1")
    (tree / "side.c").write_text("int side;\n")
    commit(tree, "sched: Aside")
    sh(tree, "git", "checkout", "-q", "agent")
    sh(tree, "git", "merge", "-q", "--no-edit", "side")


def unsigned(tree: Path) -> None:
    (tree / "x.c").write_text("x\n")
    commit(tree, "sched: Unsigned", "Why.")


def someone(tree: Path) -> None:
    (tree / "x.c").write_text("x\n")
    commit(tree, "sched: Theirs", env={"GIT_AUTHOR_EMAIL": "they@example.com"})


def fixup(tree: Path) -> None:
    (tree / "x.c").write_text("x\n")
    commit(tree, "fixup! sched: Add a header")


def separator(tree: Path) -> None:
    (tree / "x.c").write_text("x\n")
    commit(tree, "sched: Cut", f"Before.\n\n---\nafter\n\n{SIGNED}")


def brackets(tree: Path) -> None:
    (tree / "x.c").write_text("x\n")
    commit(tree, "[tag] sched: Cut")


def header(tree: Path) -> None:
    (tree / "x.c").write_text("x\n")
    commit(tree, "sched: Cut", f"From: Someone <s@example.com>\n\nText.\n\n{SIGNED}")


def elsewhere(tree: Path) -> None:
    sh(tree, "git", "checkout", "-q", "--orphan", "new")
    sh(tree, "git", "commit", "-q", "-m", "new")


def dirty(tree: Path) -> None:
    (tree / "Makefile").write_text("x\n")


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (empty, "(sched: Nothing) is empty"),
        (merge, "is a merge"),
        (unsigned, f"(sched: Unsigned) lacks `{SIGNED}`"),
        (someone, "they@example.com>, configs/identity.yaml says"),
        (fixup, "waits to be squashed"),
        (separator, "(sched: Cut) would not survive as a mail"),
        (brackets, "([tag] sched: Cut) would not survive as a mail"),
        (header, "begins with a mail header"),
        (elsewhere, "is not built on the pinned base"),
        (dirty, "not committed, first Makefile"),
    ],
)
def test_what_could_not_be_sent_is_refused(project: Mini, what: object, said: str) -> None:
    tree = tree_of(project)
    tree.make()
    before = stored(project)
    assert callable(what)
    what(tree.path)
    with pytest.raises(UsageError) as caught:
        tree.export()
    assert said in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint
    assert stored(project) == before


def test_hint_for_missing_sign_off_works(project: Mini) -> None:
    tree = tree_of(project)
    tree.make()
    unsigned(tree.path)
    with pytest.raises(UsageError) as caught:
        tree.export()
    sh(tree.path, *caught.value.hint.split())
    assert tree.export().added == ("0004-sched-Unsigned.patch",)


def test_interrupted_refresh_is_finished_by_the_next(project: Mini, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = tree_of(project)
    tree.make()
    sh(tree.path, "git", "reset", "-q", "--hard", "HEAD~3")
    for number in range(3):
        (tree.path / f"{number}.c").write_text("int x;\n")
        commit(tree.path, f"sched: Number {number}")
    write = refresh.atomic_write
    written: list[str] = []

    def killed(path: Path, data: bytes) -> None:
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(path.name)
        write(path, data)

    monkeypatch.setattr(refresh, "atomic_write", killed)
    with pytest.raises(KeyboardInterrupt):
        tree.export()
    monkeypatch.undo()
    assert (project.root / "patches" / UNFINISHED).exists()
    with pytest.raises(UsageError, match="a refresh was interrupted"):
        Series.load(project.root / "patches")
    tree.export()
    series = Series.load(project.root / "patches")
    assert [p.subject for p in series.patches] == [f"sched: Number {n}" for n in range(3)]
    assert len(list((project.root / "patches").iterdir())) == 5


def test_refresh_without_a_tree(project: Mini) -> None:
    with pytest.raises(UsageError, match="is no tree of this cache") as caught:
        tree_of(project).export()
    assert "harness tree" in caught.value.hint


# The verbs


def run(project: Mini, monkeypatch: pytest.MonkeyPatch, *argv: str) -> int:
    monkeypatch.setenv("HARNESS_PROJECT", str(project.root))
    monkeypatch.setenv("HARNESS_CACHE_DIR", str(project.directory / "cache"))
    monkeypatch.setenv("HARNESS_KERNEL_SOURCE", str(project.tarball))
    return cli.main(argv)


def test_verbs(project: Mini, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    place = project.directory / "elsewhere"
    shutil.rmtree(project.directory / "cache")
    assert run(project, monkeypatch, "tree", "-n", str(place)) == 0
    assert f"worktree add -B agent {place}" in capsys.readouterr().out
    assert not (project.directory / "cache").exists()
    assert run(project, monkeypatch, "tree", str(place)) == 0
    assert capsys.readouterr().out == f"{place}\n"
    (place / "x.c").write_text("int x;\n")
    commit(place, "sched: Add x")
    assert run(project, monkeypatch, "refresh", "-n", str(place)) == 0
    out = capsys.readouterr().out
    assert "format-patch" in out
    assert "# + 0004-sched-Add-x.patch" in out
    assert not (project.root / "patches/0004-sched-Add-x.patch").exists()
    assert run(project, monkeypatch, "refresh", str(place)) == 0
    said = capsys.readouterr()
    assert said.out == "+ 0004-sched-Add-x.patch\n"
    assert "1 added, 0 changed, 0 removed, 3 kept" in said.err
    (place / "x.c").write_text("int y;\n")
    assert run(project, monkeypatch, "refresh", str(place)) == ExitCode.USAGE
    assert "error: " in capsys.readouterr().err


def test_what_cannot_be_kept_is_not_moved(project: Mini) -> None:
    tree = tree_of(project)
    tree.make()
    changed(tree)
    (tree.path / "nested").mkdir()
    sh(tree.path / "nested", "git", "init", "-q")  # git add refuses a repository without a commit
    (tree.path / "nested/file").write_text("mine\n")
    with pytest.raises(EnvironmentFailure, match="git add failed"):
        tree.make(force=True)
    assert (tree.path / "Makefile").read_text() == "mine\n"
