"""Getting the source: what counts, what is continued, what is refused, and what is left behind."""

from __future__ import annotations

import errno
import http.server
import io
import os
import re
import signal
import ssl
import subprocess
import sys
import tarfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from harness import cli
from harness.errors import ApplyError, EnvironmentFailure, ExitCode, UsageError
from harness.fs import lock
from harness.source import fetch, tarball
from harness.source.series import Series
from tests import minikernel
from tests.minikernel import Mini, sha


@dataclass
class Server:
    """A web server of one file; ``plan`` says per request what goes wrong, afterwards nothing does."""

    data: bytes
    plan: list[str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    honours_ranges: bool = True
    pause: float = 0.0
    url: str = ""

    def handle(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        wanted = handler.headers.get("Range", "")
        self.ranges.append(wanted)
        fault = self.plan.pop(0) if self.plan else ""
        if fault.isdigit():
            handler.send_error(int(fault))
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.honours_ranges else 0
        if start and start >= len(self.data):
            handler.send_response(416)
            handler.send_header("Content-Range", f"bytes */{len(self.data)}")
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(self.data) - 1}/{len(self.data)}")
        handler.send_header("Content-Length", str(len(self.data) - start))
        handler.end_headers()
        rest = self.data[start:]
        if fault == "cut":
            rest = rest[: len(rest) // 2]
        for at in range(0, len(rest), 512):
            handler.wfile.write(rest[at : at + 512])
            handler.wfile.flush()
            time.sleep(self.pause)


@pytest.fixture
def project(tmp_path: Path) -> Mini:
    return minikernel.mini(tmp_path)


@pytest.fixture
def server(project: Mini) -> Iterator[Server]:
    made = Server(project.tarball.read_bytes())

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            made.handle(self)

        def log_message(self, *_: object) -> None:
            pass

    class Web(http.server.ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """A client that was killed is what some tests are about."""

    with Web(("127.0.0.1", 0), Handler) as web:
        web.daemon_threads = True
        made.url = f"http://127.0.0.1:{web.server_address[1]}/linux.tar.gz"
        thread = threading.Thread(target=web.serve_forever, daemon=True)
        thread.start()
        yield made
        web.shutdown()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(fetch, "SOCKET_TIMEOUT", 5.0)
    monkeypatch.setattr(fetch, "BACKOFF", 0.01)


def enlarge(project: Mini, server: Server) -> None:
    """A download that takes a while; tar ignores what follows its end."""
    server.data += os.urandom(40000)
    project.tarball.write_bytes(server.data)


def by_url(project: Mini, server: Server, sha256: str | None = None) -> None:
    digest = sha(project.tarball) if sha256 is None else sha256
    project.pin(f"{{kind: url, source: '{server.url}', sha256: '{digest}'}}")


def get(project: Mini, **flags: object) -> fetch.Source:
    context = project.context(**{"kernel_source": "", **flags})
    return fetch.fetch(context, context.pin(), Series.load(context.patches))


def left(project: Mini) -> list[str]:
    downloads = project.directory / "cache/downloads"
    return sorted(p.name for p in downloads.iterdir() if p.name != ".lock") if downloads.exists() else []


# By URL


def test_download_is_whole_and_found_again_without_network(project: Mini, server: Server) -> None:
    by_url(project, server)
    source = get(project)
    assert source.exact
    assert source.path.read_bytes() == server.data
    assert left(project) == [source.path.name]
    assert get(project) == source
    assert server.ranges == [""]


def test_broken_connection_continues_where_it_was(project: Mini, server: Server) -> None:
    by_url(project, server)
    server.plan = ["cut", "cut", "503"]
    source = get(project)
    assert source.path.read_bytes() == server.data
    half = len(server.data) // 2
    assert server.ranges[:2] == ["", f"bytes={half}-"]
    assert len(server.ranges) == 4
    assert left(project) == [source.path.name]


def test_server_without_ranges_begins_anew(project: Mini, server: Server) -> None:
    by_url(project, server)
    server.honours_ranges, server.plan = False, ["cut"]
    assert get(project).path.read_bytes() == server.data


def part(project: Mini) -> Path:
    pin = project.context().pin()
    path = project.directory / f"cache/downloads/linux-6.18.15-{fetch.way_key(pin.ways[0])}.tar.gz.part"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def test_part_that_is_whole_or_too_long(project: Mini, server: Server) -> None:
    by_url(project, server)
    part(project).write_bytes(server.data)
    assert get(project).path.read_bytes() == server.data
    get(project).path.unlink()
    part(project).write_bytes(server.data + b"more")
    assert get(project).path.read_bytes() == server.data
    assert not part(project).exists()


def test_endless_truncation_keeps_the_part_and_says_so(project: Mini, server: Server) -> None:
    by_url(project, server)
    server.plan = ["cut", *["503"] * fetch.ATTEMPTS]
    with pytest.raises(EnvironmentFailure) as caught:
        get(project)
    assert "503" in caught.value.message
    assert "bytes are kept" in caught.value.message
    assert left(project) == [part(project).name]
    server.plan = []
    assert get(project).path.read_bytes() == server.data
    assert server.ranges[-1] == f"bytes={len(server.data) // 2}-"


def test_wrong_hash_names_both_and_leaves_nothing(project: Mini, server: Server) -> None:
    by_url(project, server, "0" * 64)
    with pytest.raises(EnvironmentFailure) as caught:
        get(project)
    assert "0" * 64 in caught.value.message
    assert sha(project.tarball) in caught.value.message
    assert caught.value.exit_code == ExitCode.ENVIRONMENT
    assert left(project) == []


def test_damaged_part_is_not_continued_for_ever(project: Mini, server: Server) -> None:
    by_url(project, server)
    part(project).write_bytes(b"x" * 100)
    with pytest.raises(EnvironmentFailure, match="wrong SHA-256"):
        get(project)
    assert get(project).path.read_bytes() == server.data


def test_damaged_file_in_the_cache_is_replaced(project: Mini, server: Server) -> None:
    by_url(project, server)
    path = get(project).path
    path.write_bytes(server.data[:-1])
    assert get(project).path.read_bytes() == server.data
    assert "wrong SHA-256" in project.err.getvalue()


def test_file_without_pinned_hash_must_be_the_version(project: Mini, server: Server) -> None:
    by_url(project, server, "")
    assert not get(project).exact
    project.pin(f"{{kind: url, source: '{server.url}?other'}}", version="6.18.16")
    with pytest.raises(EnvironmentFailure, match=r"holds Linux 6\.18\.15, the pin is 6\.18\.16"):
        get(project)
    assert all("6.18.16" not in name for name in left(project))


def test_file_without_pinned_hash_that_is_truncated(project: Mini, server: Server) -> None:
    server.data = server.data[:400]
    by_url(project, server, "")
    with pytest.raises(EnvironmentFailure, match="is truncated or no tar archive"):
        get(project)
    assert left(project) == []


def test_all_ways_fail_in_one_line(project: Mini, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(project.directory))
    server.plan = ["404"]
    project.pin(
        "{kind: debian-source, suite: sid, source: linux=1, sha256: abc}",
        f"{{kind: url, source: '{server.url}'}}",
        "{kind: url, source: 'no address'}",
        "{kind: carrier-pigeon, source: x}",
    )
    with pytest.raises(EnvironmentFailure) as caught:
        get(project)
    message = caught.value.message
    assert "\n" not in message
    for text in ("debian-source linux=1: apt-get is not installed", "404 Not Found", "is no address", "carrier-pigeon"):
        assert text in message
    assert "--kernel-source" in caught.value.hint


def test_refused_connection(project: Mini, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "ATTEMPTS", 1)
    with pytest.raises(EnvironmentFailure, match="cannot connect"):
        get(project)


def test_deadline(project: Mini, server: Server) -> None:
    enlarge(project, server)
    by_url(project, server)
    server.pause = 0.2
    started = time.monotonic()
    with pytest.raises(EnvironmentFailure, match=r"did not finish within 0\.3 s"):
        get(project, fetch_timeout=0.3)
    assert time.monotonic() - started < 5


def test_full_disk_is_one_line_and_no_other_way_is_tried(
    project: Mini, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_url(project, server)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fetch, "require_space", full)
    with pytest.raises(EnvironmentFailure, match="no space left on the disk") as caught:
        get(project)
    assert "HARNESS_CACHE_DIR" in caught.value.hint
    monkeypatch.undo()
    assert get(project).path.read_bytes() == server.data


def test_full_disk_costs_no_good_download(project: Mini, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    by_url(project, server, "")

    def full(*_: object) -> None:
        raise EnvironmentFailure("no space left on the disk that holds it")

    monkeypatch.setattr(fetch, "atomic_write", full)
    with pytest.raises(EnvironmentFailure, match="no space left"):
        get(project)
    assert part(project).read_bytes() == server.data
    monkeypatch.undo()
    path = get(project).path
    for note in path.parent.glob("accepted-*"):
        note.unlink()
    monkeypatch.setattr(fetch, "atomic_write", full)
    with pytest.raises(EnvironmentFailure, match="no space left"):
        get(project)
    assert path.read_bytes() == server.data


class Breaking:
    """An answer whose connection breaks on the second read."""

    def __init__(self, answer: Any, error: OSError) -> None:
        self.answer, self.error, self.reads = answer, error, 0

    def __enter__(self) -> Breaking:
        return self

    def __exit__(self, *_: object) -> None:
        self.answer.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.answer, name)

    def read1(self, _size: int) -> bytes:
        self.reads += 1
        if self.reads > 1:
            raise self.error
        return bytes(self.answer.read1(100))


@pytest.mark.parametrize("while_", ["reading", "connecting"])
@pytest.mark.parametrize(
    "error",
    [
        ssl.SSLError(1, "[SSL: BAD_RECORD_MAC] bad record mac"),
        OSError(errno.EHOSTUNREACH, "No route to host"),
        PermissionError(errno.EPERM, "Operation not permitted"),
        TimeoutError("timed out"),
    ],
)
def test_whatever_breaks_a_connection_is_tried_again(
    project: Mini, server: Server, monkeypatch: pytest.MonkeyPatch, error: OSError, while_: str
) -> None:
    by_url(project, server)
    opened, faults = urllib.request.urlopen, [error]

    def urlopen(*arguments: Any, **named: Any) -> Any:
        if not faults:
            return opened(*arguments, **named)
        if while_ == "connecting":
            raise faults.pop()
        return Breaking(opened(*arguments, **named), faults.pop())

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    assert get(project).path.read_bytes() == server.data
    assert server.ranges == (["", "bytes=100-"] if while_ == "reading" else [""])


KILLED = """
import sys
from harness import cli
sys.exit(cli.main(["fetch"]))
"""


def start(project: Mini) -> subprocess.Popen[bytes]:
    env = {
        **os.environ,
        "HARNESS_PROJECT": str(project.root),
        "HARNESS_CACHE_DIR": str(project.directory / "cache"),
        "HARNESS_KERNEL_SOURCE": "",
    }
    return subprocess.Popen([sys.executable, "-c", KILLED], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_killed_in_the_middle_and_started_again(project: Mini, server: Server, number: int) -> None:
    enlarge(project, server)
    by_url(project, server)
    server.pause = 0.05
    with start(project) as process:
        for _ in range(200):
            if part(project).exists() and part(project).stat().st_size > 1000:
                break
            time.sleep(0.05)
        process.send_signal(number)
        process.communicate(timeout=20)
    assert process.returncode == (-signal.SIGKILL if number == signal.SIGKILL else ExitCode.INTERRUPTED)
    assert left(project) == [part(project).name]
    server.pause = 0
    assert get(project).path.read_bytes() == server.data
    assert re.fullmatch(r"bytes=[1-9]\d{3,}-", server.ranges[-1])


def test_two_at_once_download_once(project: Mini, server: Server) -> None:
    enlarge(project, server)
    by_url(project, server)
    server.pause = 0.05
    with start(project) as one, start(project) as two:
        said = [process.communicate(timeout=30) for process in (one, two)]
    assert [one.returncode, two.returncode] == [0, 0], said
    assert len(server.ranges) == 1
    assert said[0][0] == said[1][0] != b""
    assert sum(b": waiting" in err for _, err in said) == 1


def test_wait_for_the_other_has_a_deadline(project: Mini, server: Server) -> None:
    by_url(project, server)
    with (
        lock(project.directory / "cache/downloads/.lock", "it"),
        pytest.raises(EnvironmentFailure, match=f"in use by pid {os.getpid()}"),
    ):
        get(project, fetch_timeout=0.3)


# The user's own source


def test_own_tarball_with_the_pinned_hash(project: Mini) -> None:
    source = get(project, kernel_source=str(project.tarball))
    assert (source.path, source.exact) == (project.tarball, True)
    assert left(project) == []


@pytest.mark.parametrize("name", ["other.tar", "other.tar.xz", "other.tar.bz2"])
def test_own_tarball_with_another_hash_is_judged_by_its_files(project: Mini, name: str) -> None:
    minikernel.store(project)
    other = minikernel.tarball(project.directory / name, {"firmware/more.bin": b"x"})
    source = get(project, kernel_source=str(other))
    assert not source.exact
    assert get(project, kernel_source=str(other)) == source


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kernel/sched/core.c": b"int other;\n"}, "kernel/sched/core.c has the blob"),
        ({"include/linux/agent.h": b"int there;\n"}, "0001-sched-Add-a-header.patch makes it anew"),
    ],
)
def test_own_tarball_of_another_tree(project: Mini, changes: dict[str, bytes], said: str) -> None:
    minikernel.store(project)
    other = minikernel.tarball(project.directory / "other.tar", changes)
    with pytest.raises(ApplyError) as caught:
        get(project, kernel_source=str(other))
    assert said in caught.value.message
    # The series decides: with an empty one the same tree will do.
    (project.root / "patches/series").unlink()
    for patch in (project.root / "patches").glob("*.patch"):
        patch.unlink()
    assert get(project, kernel_source=str(other)).path == other


@pytest.mark.parametrize(
    ("makefile", "said"),
    [
        (b"VERSION = 6\nPATCHLEVEL = 18\nSUBLEVEL = 14\nEXTRAVERSION =\n", "holds Linux 6.18.14, the pin is 6.18.15"),
        (b"VERSION = 6\nPATCHLEVEL = 18\nSUBLEVEL = 15\nEXTRAVERSION = -rt\n", "holds Linux 6.18.15-rt"),
        (b"all:\n", "is no kernel source"),
    ],
)
def test_own_tarball_of_another_version(project: Mini, makefile: bytes, said: str) -> None:
    other = minikernel.tarball(project.directory / "other.tar", {"Makefile": makefile})
    with pytest.raises(EnvironmentFailure) as caught:
        get(project, kernel_source=str(other))
    assert said in caught.value.message


def test_own_source_that_is_none(project: Mini) -> None:
    (project.directory / "folder").mkdir()
    (project.directory / "text").write_text("no tarball")
    for name, error, said in (
        ("absent", UsageError, "does not exist"),
        ("folder", UsageError, "is no git tree with a commit"),
        ("text", EnvironmentFailure, "is truncated or no tar archive"),
    ):
        with pytest.raises(error, match=said):
            get(project, kernel_source=str(project.directory / name))


def test_own_tarball_that_is_truncated(project: Mini) -> None:
    cut = project.directory / "cut.tar.gz"
    cut.write_bytes(project.tarball.read_bytes()[:-40])
    with pytest.raises(EnvironmentFailure, match="is truncated"):
        get(project, kernel_source=str(cut))


@pytest.mark.parametrize("tops", [("linux", "other"), ("../linux",), ("/linux",)])
def test_tarball_with_names_outside_of_one_directory(tmp_path: Path, tops: tuple[str, ...]) -> None:
    path = tmp_path / "bad.tar"
    with tarfile.open(path, "w") as archive:
        for top in tops:
            member = tarfile.TarInfo(f"{top}/Makefile")
            member.size = 1
            archive.addfile(member, io.BytesIO(b"x"))
    with pytest.raises(EnvironmentFailure, match=r"outside of its tree|is no kernel tarball"):
        list(tarball.entries(path))


def test_own_git_tree_by_tag_then_head(project: Mini) -> None:
    tree = minikernel.store(project)  # HEAD has the series on top, the tag has not
    source = get(project, kernel_source=str(tree))
    assert source.commit == minikernel.sh(tree, "git", "rev-parse", "v6.18.15")
    minikernel.sh(tree, "git", "tag", "-d", "v6.18.15")
    with pytest.raises(ApplyError, match=r"include/linux/agent\.h has the blob"):
        get(project, kernel_source=str(tree))
    minikernel.sh(tree, "git", "checkout", "-q", "HEAD~3")
    assert get(project, kernel_source=str(tree)).commit == source.commit


def test_git_tree_of_a_hook(project: Mini, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = minikernel.git_tree(project.directory / "tree")
    other = minikernel.git_tree(project.directory / "other")
    minikernel.commit(other, "x", {"x": "x"})
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", "/nonexistent/index")
    assert get(project, kernel_source=str(tree)).commit == minikernel.sh(tree, "git", "rev-parse", "HEAD")


# The verb


def run(project: Mini, monkeypatch: pytest.MonkeyPatch, *argv: str) -> int:
    monkeypatch.setenv("HARNESS_PROJECT", str(project.root))
    monkeypatch.setenv("HARNESS_CACHE_DIR", str(project.directory / "cache"))
    return cli.main(["fetch", *argv])


def test_verb_prints_the_path(
    project: Mini, server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    by_url(project, server)
    assert run(project, monkeypatch) == 0
    assert sha(Path(capsys.readouterr().out.strip())) == sha(project.tarball)


def test_verb_fails_with_its_exit_code(
    project: Mini, server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    by_url(project, server, "1" * 64)
    assert run(project, monkeypatch) == ExitCode.ENVIRONMENT
    err = capsys.readouterr().err
    assert re.search(r"error: no way to get Linux 6\.18\.15 worked: .*expected 1{64}", err)
    assert "next: " in err
    assert "Traceback" not in err


def test_dry_run_changes_nothing(
    project: Mini, server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    by_url(project, server)
    assert run(project, monkeypatch, "-n") == 0
    assert f"curl -fL -C - -o {project.directory}/cache/downloads/linux-6.18.15-" in capsys.readouterr().out
    assert not (project.directory / "cache").exists()
    assert server.ranges == []


# Pure parts


@pytest.mark.parametrize(
    ("stated", "pinned", "same"),
    [
        ("6.18.15", "6.18.15", True),
        ("6.18.1", "6.18.15", False),
        ("6.19.0-rc1", "6.19-rc1", True),
        ("6.18.0", "6.18", True),
        ("6.18.0", "6.18.1", False),
        ("6.18.15-rt1", "6.18.15", False),
    ],
)
def test_versions(stated: str, pinned: str, same: bool) -> None:
    assert tarball.same_version(stated, pinned) == same


def test_version_of_a_makefile() -> None:
    text = "VERSION = 6\nPATCHLEVEL = 19\nSUBLEVEL = 0\nEXTRAVERSION = -rc1\nNAME = x\n"
    assert tarball.version_of(text) == "6.19.0-rc1"
    assert tarball.version_of("all:\n") == ""


def test_a_users_file_is_never_to_be_removed(project: Mini, tmp_path: Path) -> None:
    mine = tmp_path / "mine.tar.gz"
    mine.write_text("root:x:0:0")
    with pytest.raises(EnvironmentFailure, match="no tar archive") as caught:
        fetch.fetch(project.context(kernel_source=str(mine)), project.context().pin(), Series(()))
    assert "remove" not in caught.value.hint
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(UsageError, match="is neither a file nor a directory"):
        fetch.own_source(project.context(kernel_source=str(tmp_path / "fifo")), project.context().pin())
