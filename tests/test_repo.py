"""The kernel repository: the same files give the same commits, and what is killed is as if it had not begun."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from harness import cli, proc
from harness.errors import ApplyError, EnvironmentFailure, ExitCode, StageTimeout, UsageError
from harness.source import repo as repo_module
from harness.source import tarball
from harness.source.git import git
from harness.source.repo import KernelRepo
from harness.source.series import Series
from tests import minikernel
from tests.minikernel import Mini, git_tree, sh


@pytest.fixture
def project(tmp_path: Path) -> Mini:
    return minikernel.mini(tmp_path)


def repo_of(project: Mini, **flags: object) -> KernelRepo:
    return KernelRepo(project.context(**flags))


def refs(project: Mini) -> str:
    return sh(project.directory / "cache/linux.git", "git", "for-each-ref")


def load(project: Mini) -> Series:
    return Series.load(project.root / "patches")


# The base


def test_tarballs_of_any_kind_and_a_git_tree_give_one_commit(project: Mini) -> None:
    tree = minikernel.git_tree(project.directory / "tree")
    sources = [project.tarball, tree]
    for name in ("a.tar", "a.tar.xz", "a.tar.bz2"):
        sources.append(minikernel.tarball(project.directory / name, top="some-name"))
    commits = set()
    for number, source in enumerate(sources):
        repo = repo_of(project, kernel_source=str(source), cache_dir=str(project.directory / f"cache{number}"))
        commit = repo.ensure_base()
        commits.add(commit)
        assert repo.git("rev-parse", f"{commit}^{{tree}}") == sh(tree, "git", "rev-parse", "HEAD^{tree}")
        assert repo.git("log", "-1", "--format=%s", commit) == "Linux 6.18.15"
    assert len(commits) == 1


def test_import_happens_once_and_needs_no_source_afterwards(project: Mini) -> None:
    commit = repo_of(project).ensure_base()
    (project.root / "patches/broken.patch").write_text("the series is not even looked at")
    assert repo_of(project, kernel_source="").ensure_base() == commit
    assert project.err.getvalue().count("imported Linux 6.18.15") == 1


def test_private_index_of_another_run_outlives_an_import(project: Mini) -> None:
    repo = repo_of(project)
    base = repo.ensure_base()
    left = [repo.path / name for name in ("agent-index-999999999-x", "agent-index-999999999-x.lock", "agent-index-old")]
    for path in left:
        path.touch()
    other = minikernel.tarball(project.directory / "other.tar.gz", {"more": b"x"})
    with repo._private_index() as env:
        repo.git("read-tree", base, env=env)
        assert repo_of(project, kernel_source=str(other)).ensure_base() != base
        assert repo.git("write-tree", env=env) == repo.git("rev-parse", f"{base}^{{tree}}")
    assert list(repo.path.glob("agent-index-*")) == []


def test_another_pin_is_another_base(project: Mini) -> None:
    first = repo_of(project).ensure_base()
    other = minikernel.tarball(project.directory / "other.tar.gz", {"more": b"x"})
    second = repo_of(project, kernel_source=str(other)).ensure_base()
    assert first != second
    assert repo_of(project).ensure_base() == first


def test_hard_links_and_odd_names(project: Mini, tmp_path: Path) -> None:
    path = tmp_path / "odd.tar"
    with tarfile.open(path, "w") as archive:
        for name, data in (("Makefile", minikernel.FILES["Makefile"][0]), ('a"b\\c\nd', b"odd"), ("-x", b"dash")):
            member = tarfile.TarInfo(f"./linux/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        link = tarfile.TarInfo("./linux/linked")
        link.type, link.linkname = tarfile.LNKTYPE, "./linux/-x"
        archive.addfile(link)
    repo = repo_of(project, kernel_source=str(path))
    listed = repo.git("ls-tree", "-r", "-z", "--name-only", repo.ensure_base()).split("\0")
    assert sorted(filter(None, listed)) == ["-x", "Makefile", 'a"b\\c\nd', "linked"]
    assert repo.git("show", f"{repo.ensure_base()}:linked") == "dash"


def test_truncated_source_leaves_no_base(project: Mini) -> None:
    whole = project.tarball.read_bytes()
    project.tarball.write_bytes(whole[:-30])
    with pytest.raises(EnvironmentFailure, match="is truncated"):
        repo_of(project).ensure_base()
    project.tarball.write_bytes(whole)
    assert len(repo_of(project).ensure_base()) == 40


def test_import_that_breaks_off_is_as_if_it_had_not_begun(project: Mini, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = tarball.entries

    def broken(path: Path, progress: tarball.Progress) -> object:
        for number, entry in enumerate(entries(path, progress)):
            if number == 4:
                raise KeyboardInterrupt
            yield entry

    monkeypatch.setattr(tarball, "entries", broken)
    with pytest.raises(KeyboardInterrupt):
        repo_of(project).ensure_base()
    monkeypatch.undo()
    assert refs(project) == ""
    (project.directory / "cache/linux.git/objects/pack/tmp_pack_left").write_text("x")
    assert len(repo_of(project).ensure_base()) == 40
    assert not list((project.directory / "cache/linux.git").rglob("tmp_*"))


KILLED = """
import sys, time
from harness import cli
from harness.source import tarball
entries = tarball.entries
def slow(path, progress):
    for entry in entries(path, progress):
        print("entry", flush=True)
        time.sleep(float(sys.argv[1]))
        yield entry
tarball.entries = slow
sys.exit(cli.main(["apply"]))
"""


def start(project: Mini, pause: float) -> subprocess.Popen[bytes]:
    env = {
        **os.environ,
        "HARNESS_PROJECT": str(project.root),
        "HARNESS_CACHE_DIR": str(project.directory / "cache"),
        "HARNESS_KERNEL_SOURCE": str(project.tarball),
    }
    argv = [sys.executable, "-c", KILLED, str(pause)]
    return subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_killed_import_is_done_again(project: Mini, number: int) -> None:
    minikernel.store(project)
    with start(project, 0.3) as process:
        assert process.stdout is not None
        for _ in range(3):
            process.stdout.readline()
        process.send_signal(number)
        process.communicate(timeout=20)
    assert process.returncode == (-signal.SIGKILL if number == signal.SIGKILL else ExitCode.INTERRUPTED)
    assert refs(project) == ""
    assert len(repo_of(project).apply(load(project))) == 40


def test_two_at_once_import_once(project: Mini) -> None:
    minikernel.store(project)
    with start(project, 0.1) as one, start(project, 0.1) as two:
        said = [process.communicate(timeout=60) for process in (one, two)]
    assert (one.returncode, two.returncode) == (0, 0), said
    assert sum(b"imported Linux" in err for _, err in said) == 1
    assert len({out.splitlines()[-1] for out, _ in said}) == 1


@pytest.mark.parametrize(
    "words", ["write error: No space left on device", "sha1 file 'x' write error. Out of diskspace"]
)
def test_full_disk_while_importing(project: Mini, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: str) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    real = shutil.which("git")
    script = (
        f'#!/bin/sh\ncase "$*" in *fast-import*) touch objects/pack/tmp_pack_x; echo "fatal: {words}" >&2; exit 128;; '
        f'esac\nexec {real} "$@"\n'
    )
    (programs / "git").write_text(script)
    (programs / "git").chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
        with pytest.raises(EnvironmentFailure, match="no space left on the disk") as caught:
            repo_of(project).ensure_base()
    assert "HARNESS_CACHE_DIR" in caught.value.hint
    assert refs(project) == ""
    assert not list((project.directory / "cache/linux.git").rglob("tmp_pack*"))
    assert len(repo_of(project).ensure_base()) == 40


def test_too_little_space_is_said_before(project: Mini, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repo_module, "_IMPORT_MIB", 1 << 40)
    with pytest.raises(EnvironmentFailure, match="MiB are free"):
        repo_of(project).ensure_base()


def test_the_users_git_configuration_and_a_hook_change_nothing(project: Mini, monkeypatch: pytest.MonkeyPatch) -> None:
    minikernel.store(project)
    clean = repo_of(project, cache_dir=str(project.directory / "other"))
    wanted = (clean.ensure_base(), clean.apply(load(project)))
    config = project.directory / ".gitconfig"
    config.write_text(
        "[core]\n\tautocrlf = true\n\thooksPath = /nonexistent\n\tquotePath = false\n[apply]\n\twhitespace = error\n"
        "[commit]\n\tgpgSign = true\n[user]\n\tname = Someone\n\temail = s@example.com\n"
        "[i18n]\n\tcommitEncoding = latin1\n"
    )
    monkeypatch.setenv("HOME", str(project.directory))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    monkeypatch.setenv("GIT_DIR", "/nonexistent")
    monkeypatch.setenv("GIT_INDEX_FILE", "/nonexistent/index")
    monkeypatch.setenv("GIT_AUTHOR_NAME", "Someone")
    monkeypatch.setenv("GIT_OBJECT_DIRECTORY", "/nonexistent")
    repo = repo_of(project)
    assert (repo.ensure_base(), repo.apply(load(project))) == wanted
    with repo.checkout(wanted[1]) as tree:
        assert (tree / "kernel/sched/crlf.txt").read_bytes() == b"one\r\ntwo\r\n"
        assert (tree / "kernel/sched/core.c").read_bytes().count(b"\r") == 0


# The series


def test_one_commit_per_patch_as_the_mails_say(project: Mini) -> None:
    made = minikernel.store(project)
    repo = repo_of(project)
    series = load(project)
    head = repo.apply(series)
    commits = repo.commits(series)
    assert len(commits) == len(series.patches) == 3
    assert commits[-1] == head
    layout = "--format=%an|%ae|%aI|%T|%B"
    wanted = sh(made, "git", "log", layout, "v6.18.15..HEAD")
    assert repo.git("log", layout, f"{repo.ensure_base()}..{head}") == wanted
    assert repo.git("log", "-1", "--format=%cI %cn", head) == repo.git("log", "-1", "--format=%aI %an", head)


def test_same_series_same_commit(project: Mini) -> None:
    minikernel.store(project)
    heads = {repo_of(project, cache_dir=str(project.directory / name)).apply(load(project)) for name in "ab"}
    assert len(heads) == 1
    assert heads == {repo_of(project, cache_dir=str(project.directory / "a")).apply(load(project))}


def test_empty_series_is_the_base(project: Mini) -> None:
    repo = repo_of(project)
    assert repo.apply(load(project)) == repo.ensure_base()
    assert repo.commits(load(project)) == []


def edit(project: Mini, number: int, old: str, new: str) -> None:
    path = sorted((project.root / "patches").glob("*.patch"))[number - 1]
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_conflict_names_patch_file_and_hunk_and_changes_nothing(project: Mini) -> None:
    minikernel.store(project)
    repo = repo_of(project)
    repo.apply(load(project))
    before = refs(project)
    edit(project, 2, "-int line70;", "-int other70;")
    with pytest.raises(ApplyError) as caught:
        repo.apply(load(project))
    assert caught.value.exit_code == ExitCode.APPLY
    assert "0002-sched-Change-two-places.patch does not apply: kernel/sched/core.c, hunk 2 of 2 (line 67)" in str(
        caught.value
    )
    assert "-int other70;" in caught.value.detail
    assert "-int line10;" not in caught.value.detail
    assert "harness tree --until 0002" in caught.value.hint
    assert refs(project) == before
    assert not list((project.directory / "cache/linux.git").glob("agent-index-*"))


@pytest.mark.parametrize(
    ("order", "said"),
    [
        ([0, 0], "include/linux/agent.h already exists"),
        ([2], "include/linux/agent.h does not exist"),
    ],
)
def test_files_that_are_there_or_not(project: Mini, order: list[int], said: str) -> None:
    minikernel.store(project)
    patches = load(project).patches
    with pytest.raises(ApplyError, match="does not apply") as caught:
        repo_of(project).apply(Series(tuple(patches[i] for i in order)))
    assert said in caught.value.message


def test_files_become_a_commit_without_a_worktree(project: Mini) -> None:
    repo = repo_of(project)
    head = repo.apply(load(project))
    path = repo.git("ls-tree", "-r", "--name-only", head).splitlines()[0]
    text = repo.read(head, path) + "more\n"
    commit = repo.commit_files(head, {path: text}, "More")
    assert repo.read(commit, path) == text
    assert repo.git("diff", "--name-only", head, commit) == path
    assert repo.git("log", "-1", "--format=%s %an %P", commit) == f"More Linux {head}"
    assert repo.commit_files(head, {path: text}, "More") == commit
    with pytest.raises(UsageError, match="there is no file none/such in the kernel"):
        repo.read(head, "none/such")
    assert not list(repo.path.glob("agent-index-*"))


def test_another_tree_is_refused_when_its_hash_is_not_pinned(project: Mini) -> None:
    other = minikernel.tarball(project.directory / "other.tar", {"kernel/sched/core.c": b"int other;\n"})
    repo = repo_of(project, kernel_source=str(other))
    repo.ensure_base()
    minikernel.store(project)
    with pytest.raises(ApplyError, match=r"kernel/sched/core\.c has the blob .* 0002-sched-Change-two-places\.patch"):
        repo.apply(load(project))


def test_bytes_that_are_not_utf8(project: Mini) -> None:
    minikernel.store(project, (("sched: Add bytes", {"raw.txt": "\udcff\udcfe\r\nx\n"}),))
    repo = repo_of(project)
    head = repo.apply(load(project))
    done = subprocess.run(
        ["git", "-C", str(repo.path), "show", f"{head}:raw.txt"], capture_output=True, check=True, timeout=20
    )
    assert done.stdout == b"\xff\xfe\r\nx\n"


# Worktrees


def mtimes(tree: Path) -> dict[str, int]:
    return {
        str(p.relative_to(tree)): p.lstat().st_mtime_ns for p in tree.rglob("*") if p.name != ".git" and not p.is_dir()
    }


def age(tree: Path) -> None:
    """Give all files an old mtime, as files have that nobody has touched for a while."""
    for path in tree.rglob("*"):
        if not path.is_symlink() and path.is_file():
            os.utime(path, (1e9, 1e9))


def states(project: Mini) -> tuple[KernelRepo, str, str]:
    minikernel.store(project)
    repo = repo_of(project)
    return repo, repo.ensure_base(), repo.apply(load(project))


def test_only_differing_files_are_rewritten(project: Mini) -> None:
    repo, base, head = states(project)
    with repo.checkout(base) as tree:
        first = mtimes(tree)
        assert (tree / "arch/link").readlink() == Path("../scripts/run.sh")
        assert os.access(tree / "scripts/run.sh", os.X_OK)
    with repo.checkout(head) as tree:
        second = mtimes(tree)
        assert (tree / "include/linux/agent.h").read_text() == "#pragma once\nint agent;\n"
        assert not (tree / "kernel/empty.h").exists()
    with repo.checkout(base) as tree:
        third = mtimes(tree)
    assert set(first) == set(third)
    assert {name for name in first if second.get(name) != first[name]} == {"kernel/sched/core.c", "kernel/empty.h"}
    assert {name for name in first if third[name] != first[name]} == {"kernel/sched/core.c", "kernel/empty.h"}


def test_same_commit_again_touches_nothing(project: Mini) -> None:
    repo, _, head = states(project)
    with repo.checkout(head) as tree:
        first = mtimes(tree)
    with repo.checkout(head) as tree:
        assert mtimes(tree) == first


def test_whatever_was_done_to_the_tree_is_undone(project: Mini) -> None:
    repo, base, head = states(project)
    with repo.checkout(base) as tree:
        pass
    age(tree)
    aged = mtimes(tree)
    (tree / "kernel/sched/core.c").write_text("int mine;\n")
    (tree / "scripts/run.sh").unlink()
    (tree / "stray.c").write_text("x")
    (tree / "stray.o").write_text("ignored by .gitignore")
    (tree / "dir/.git").mkdir(parents=True)
    lock = Path(sh(tree, "git", "rev-parse", "--absolute-git-dir")) / "index.lock"
    lock.touch()
    with repo.checkout(base) as tree:
        now = mtimes(tree)
        assert (tree / "kernel/sched/core.c").read_text() == minikernel.CORE
    assert not lock.exists()
    assert set(now) == set(aged)
    assert {name for name in now if now[name] != aged[name]} == {"kernel/sched/core.c", "scripts/run.sh"}
    with repo.checkout(head) as tree:
        assert sh(tree, "git", "status", "--porcelain", "--ignored") == ""


def test_checkout_killed_half_way(project: Mini) -> None:
    repo, base, head = states(project)
    with repo.checkout(base) as tree:
        git_dir = Path(sh(tree, "git", "rev-parse", "--absolute-git-dir"))
        saved = (git_dir / "index").read_bytes()
    with repo.checkout(head) as tree:
        pass
    # Files are of the new commit, index and HEAD still of the old one, the lock is left.
    (git_dir / "index").write_bytes(saved)
    (git_dir / "HEAD").write_text(base + "\n")
    (git_dir / "index.lock").write_bytes(b"half")
    with repo.checkout(head) as tree:
        assert sh(tree, "git", "rev-parse", "HEAD") == head
        assert sh(tree, "git", "status", "--porcelain", "--ignored") == ""
    (git_dir / "index").unlink()
    with repo.checkout(base) as tree:
        assert sh(tree, "git", "status", "--porcelain", "--ignored") == ""


def test_broken_worktree_is_made_anew(project: Mini) -> None:
    repo, base, _ = states(project)
    path = project.directory / "cache/src"
    path.mkdir(parents=True)
    (path / "rest").write_text("of a killed `worktree add`")
    with repo.checkout(base) as tree:
        assert not (tree / "rest").exists()
    shutil.rmtree(path)
    with repo.checkout(base) as tree:
        assert (tree / "Makefile").is_file()
    (path / ".git").write_text("gitdir: /nonexistent\n")
    with repo.checkout(base) as tree:
        assert sh(tree, "git", "rev-parse", "HEAD") == base


def test_checkout_waits_with_a_deadline(project: Mini) -> None:
    repo, base, head = states(project)
    with repo.checkout(base) as tree:
        with (
            pytest.raises(EnvironmentFailure, match=f"{tree} is in use by pid {os.getpid()}"),
            repo_of(project, build_timeout=0.3).checkout(head),
        ):
            pass
        assert sh(tree, "git", "rev-parse", "HEAD") == base


# The verb


def run(project: Mini, monkeypatch: pytest.MonkeyPatch, *argv: str) -> int:
    monkeypatch.setenv("HARNESS_PROJECT", str(project.root))
    monkeypatch.setenv("HARNESS_CACHE_DIR", str(project.directory / "cache"))
    monkeypatch.setenv("HARNESS_KERNEL_SOURCE", str(project.tarball))
    return cli.main(["apply", *argv])


def test_verb_prints_the_commits(
    project: Mini, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    minikernel.store(project)
    assert run(project, monkeypatch) == 0
    lines = capsys.readouterr().out.splitlines()
    repo = repo_of(project)
    assert lines[0] == f"{repo.ensure_base()[:12]}  Linux 6.18.15"
    assert [line.split()[1] for line in lines[1:-1]] == [patch.name for patch in load(project).patches]
    assert lines[-1] == repo.apply(load(project))
    assert run(project, monkeypatch, "--unpatched") == 0
    assert capsys.readouterr().out.splitlines()[-1] == repo.ensure_base()


def test_verb_conflict(project: Mini, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    minikernel.store(project)
    edit(project, 2, "-int line10;", "-int other10;")
    assert run(project, monkeypatch) == ExitCode.APPLY
    err = capsys.readouterr().err
    assert "kernel/sched/core.c, hunk 1 of 2 (line 7)" in err
    assert "Traceback" not in err


def test_dry_run_prints_commands_that_give_the_tree(
    project: Mini, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    minikernel.store(project)
    assert run(project, monkeypatch, "-n") == 0
    lines = capsys.readouterr().out.splitlines()
    assert not (project.directory / "cache").exists()
    repo = repo_of(project)
    wanted = repo.git("rev-parse", f"{repo.apply(load(project))}^{{tree}}")
    assert lines[0] == "harness fetch"
    done = proc.run(["bash", "-e", "-c", "\n".join(lines[1:])], timeout=30, check=True)
    assert done.output.strip() == wanted


def test_feed_has_a_deadline_and_says_why(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(StageTimeout, match="cat did not finish within"):
        proc.feed(["sh", "-c", "sleep 60"], lambda out: None, timeout=0.3, what="cat")
    assert time.monotonic() - started < 20
    with pytest.raises(EnvironmentFailure, match="failed with status 3") as caught:
        proc.feed(["sh", "-c", "echo why; exit 3"], lambda out: None, timeout=10)
    assert caught.value.detail == "why"

    def large(out: object) -> None:
        for _ in range(1000):
            out.write(b"x" * 65536)  # type: ignore[attr-defined]

    with pytest.raises(EnvironmentFailure, match="failed with status 1"):
        proc.feed(["false"], large, timeout=10)
    with pytest.raises(StageTimeout):
        proc.feed(["sleep", "60"], large, timeout=0.3)

    def broken(out: object) -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        proc.feed(["cat"], broken, timeout=10)
    with pytest.raises(EnvironmentFailure, match="is not installed"):
        proc.feed(["/no/such"], large, timeout=1)
    assert proc.feed(["wc", "-c"], large, timeout=60).output.strip() == str(1000 * 65536)


def test_cache_that_is_relative(project: Mini, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project.directory)
    for number, source in enumerate((project.tarball, git_tree(project.directory / "own"))):
        context = project.context(cache_dir=f"rel{number}", kernel_source=str(source))
        assert len(KernelRepo(context).ensure_base()) == 40
        assert (project.directory / f"rel{number}/linux.git/HEAD").is_file()


def test_git_names_its_command(project: Mini) -> None:
    with pytest.raises(EnvironmentFailure, match="git rev-parse failed"):
        git(project.directory, "-c", "core.x=1", "rev-parse", "none", timeout=60)


def test_missing_git_is_not_a_missing_tree(project: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/env").symlink_to("/usr/bin/env")
    source = git_tree(project.directory / "own")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("GIT_EDITOR", "true")  # anything inherited: git is started through env(1) then
    with pytest.raises(EnvironmentFailure, match="git is not installed"):
        KernelRepo(project.context(kernel_source=str(source))).ensure_base()
    (tmp_path / ".git").touch()
    with pytest.raises(EnvironmentFailure, match="git is not installed"):
        repo_of(project).is_worktree(tmp_path)
