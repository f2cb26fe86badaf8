"""Files that are whole or absent, locks that name their holder."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from harness import fs
from harness.errors import EnvironmentFailure, UsageError


def test_atomic_write_replaces_and_keeps_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "sub" / "file"
    fs.atomic_write(target, "one")
    fs.atomic_write(target, b"two", mode=0o755)
    assert target.read_text() == "two"
    assert target.stat().st_mode & 0o777 == 0o755
    assert [p.name for p in target.parent.iterdir()] == ["file"]


def test_a_users_link_stays_and_its_target_is_written(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    link.symlink_to(target)
    fs.deliver(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    fs.deliver(tmp_path / "sub/fresh", "x")
    assert (tmp_path / "sub/fresh").read_text() == "x"


def test_a_fifo_is_written_and_stays_one(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    fs.deliver(fifo, "through")
    assert os.read(reader, 100) == b"through"
    os.close(reader)
    assert fifo.is_fifo()


def test_a_fifo_that_nobody_reads_is_one_line(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(EnvironmentFailure, match=r"cannot write .*fifo: ") as caught:
        fs.deliver(tmp_path / "fifo", "x")
    assert "reader" in caught.value.hint


def test_a_fifo_takes_more_than_it_holds(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with subprocess.Popen(["wc", "-c", str(tmp_path / "fifo")], stdout=subprocess.PIPE) as reader:
        reader_is_there = os.open(tmp_path / "fifo", os.O_RDWR)
        fs.deliver(tmp_path / "fifo", "x" * 1_000_000)
        os.close(reader_is_there)
        assert reader.communicate(timeout=10)[0].split()[0] == b"1000000"


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="there is no /dev/shm")
def test_files_below_dev_are_files() -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as place:
        fs.deliver(Path(place) / "x.json", "one")
        fs.deliver(Path(place) / "x.json", "two")
        assert (Path(place) / "x.json").read_text() == "two"


def test_a_pipe_that_has_no_name_is_written() -> None:
    out, into = os.pipe()
    fs.deliver(Path(f"/dev/fd/{into}"), "through")
    assert os.read(out, 100) == b"through"
    os.close(out)
    os.close(into)


def test_what_another_program_has_open_is_not_replaced(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w+") as file:
        fs.deliver(Path(f"/dev/fd/{file.fileno()}"), "x")
        assert os.fstat(file.fileno()).st_ino == (tmp_path / "out").stat().st_ino
    assert (tmp_path / "out").read_text() == "x"


def test_destinations_that_can_be_none(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    fs.require_destination(tmp_path / "file")
    fs.require_destination(tmp_path / "not/yet/there")
    for path, said in (
        (tmp_path, "is a directory"),
        (Path(), "is a directory"),
        (tmp_path / "file/x", "no directory"),
    ):
        with pytest.raises(UsageError, match=said):
            fs.require_destination(path)


def test_names_that_are_no_utf8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = os.fsdecode(b"c\xff")
    monkeypatch.setattr("sys.argv", ["harness", "--cache-dir", name])
    with fs.lock(tmp_path / name / "lock", "x"), pytest.raises(EnvironmentFailure, match="in use by"):
        fs.lock(tmp_path / name / "lock", "x").__enter__()
    fs.atomic_write(tmp_path / name / "file", name)
    assert (tmp_path / name / "file").read_bytes() == b"c\xff"


def test_full_disk_leaves_the_old_file_and_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "file"
    fs.atomic_write(target, "old")

    def full(_fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EnvironmentFailure, match="no space left"):
        fs.atomic_write(target, "new")
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_other_disk_errors_pass_unchanged(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="bad"), fs.disk_errors(tmp_path):
        raise OSError(errno.EIO, "bad")


def test_what_lies_elsewhere_was_not_written(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), fs.disk_errors(tmp_path / "cache"):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "patch"))
    told = fs.failure(PermissionError(errno.EACCES, "Permission denied", "/p/patch"), tmp_path)
    assert told.message == "cannot access /p/patch: Permission denied"
    assert "HARNESS" not in told.hint


def test_read_only_names_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFailure) as caught, fs.disk_errors(tmp_path):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "x"))
    assert "HARNESS_CACHE_DIR" in caught.value.hint


def test_write_if_changed_keeps_the_mtime(tmp_path: Path) -> None:
    target = tmp_path / "config"
    assert fs.write_if_changed(target, "a")
    os.utime(target, (1, 1))
    assert not fs.write_if_changed(target, "a")
    assert target.stat().st_mtime == 1
    assert fs.write_if_changed(target, "b")


def test_require_space_asks_before(tmp_path: Path) -> None:
    fs.require_space(tmp_path / "not" / "yet", 1, "a test")
    with pytest.raises(EnvironmentFailure, match="a test needs"):
        fs.require_space(tmp_path, 1 << 40, "a test")


HOLDER = """
import sys, time
from pathlib import Path
from harness import fs
with fs.lock(Path(sys.argv[1]), "the cache"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_lock_names_the_holder_and_is_free_after_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        started = time.monotonic()
        with pytest.raises(EnvironmentFailure, match=f"the cache is in use by pid {holder.pid}"):
            fs.lock(path, "the cache", wait_seconds=0.3).__enter__()
        assert time.monotonic() - started >= 0.3
        holder.kill()
    with fs.lock(path, "the cache"):
        pass


def test_a_directory_is_whole_or_as_it_was(tmp_path: Path) -> None:
    root = tmp_path / "tree"
    with fs.whole_directory(root, "one") as new:
        assert not root.exists()
        (new / "file").write_text("1")
    assert fs.is_whole(root, "one")
    assert not fs.is_whole(root, "two")
    left = tmp_path / ".tree.new-killed"
    left.mkdir()
    with pytest.raises(RuntimeError, match="half way"), fs.whole_directory(root, "two") as new:
        (new / "file").write_text("2")
        raise RuntimeError("half way")
    assert fs.is_whole(root, "one")
    assert (root / "file").read_text() == "1"
    with fs.whole_directory(root, "two") as new:
        (new / "file").write_text("2")
    assert fs.is_whole(root, "two")
    assert (root / "file").read_text() == "2"
    assert [path.name for path in tmp_path.iterdir()] == ["tree"]


def test_an_interruption_while_the_old_directory_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "tree"
    with fs.whole_directory(root, "one") as new:
        (new / "file").write_text("1")

    def interrupted(path: Path, **_: object) -> None:
        # Of the new one there is nothing left to remove.
        if path.exists():
            raise KeyboardInterrupt

    monkeypatch.setattr(fs.shutil, "rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt), fs.whole_directory(root, "two") as new:
        (new / "file").write_text("2")
    assert fs.is_whole(root, "two")
    assert (root / "file").read_text() == "2"
    monkeypatch.undo()
    with fs.whole_directory(root, "three"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["tree"]


def test_a_new_directory_that_cannot_take_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "tree"
    with fs.whole_directory(root, "one"):
        pass
    rename = Path.rename

    def interrupted(path: Path, target: Path) -> Path:
        if target == root and not path.name.endswith("old"):
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), fs.whole_directory(root, "two"):
        pass
    assert fs.is_whole(root, "one")
    assert [path.name for path in tmp_path.iterdir()] == ["tree"]
