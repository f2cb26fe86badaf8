"""The private apt directory: mirrors are read from the machine, nothing of the machine is changed."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import time
from pathlib import Path

import pytest

from harness.errors import EnvironmentFailure, StageTimeout
from harness.report import Reporter
from harness.source import apt
from harness.source.apt import Mirror, PrivateApt

TARGETS = """\
http://mirror.test/debian|bookworm-updates|main|Debian|Debian|bookworm-updates
http://mirror.test/debian|bookworm|main|Debian|Debian|bookworm
http://mirror.test/debian|bookworm|contrib|Debian|Debian|bookworm
http://mirror.test/security|bookworm-security|main|Debian|Debian-Security|bookworm-security
https://tools.test/apt|stable|main|Tools Inc.|Tools|stable
http://ubuntu.test/ubuntu|noble|main|Ubuntu|Ubuntu|noble
garbage
"""
DEB822 = """\
# comment
Types: deb deb-src
URIs: http://mirror.test/debian/
 http://second.test/debian
Suites: trixie trixie-updates
# in between
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.test/debian-security
Suites: trixie-security
Components: main

Enabled: no
Types: deb
URIs: http://off.test/debian
Suites: trixie
Components: main

Types: deb-src
URIs: http://src.test/debian
Suites: trixie
Components: main
"""
LINES = """\
# deb http://off.test/debian bookworm main
deb [arch=amd64 signed-by=/x] http://mirror.test/debian bookworm main contrib # note
deb-src http://src.test/debian bookworm main
deb cdrom:[Debian]/ bookworm main
deb http://mirror.test/debian-security bookworm-security main
deb http://contrib.test/debian bookworm contrib
"""


def test_mirrors_of_the_lists() -> None:
    assert apt.mirrors_of_targets(TARGETS) == [
        Mirror("http://mirror.test/debian", "bookworm"),
        Mirror("http://mirror.test/debian", "bookworm-updates"),
    ]
    assert apt.mirrors_of_targets("") == []


def test_mirrors_of_sources_of_either_format() -> None:
    assert apt.mirrors_of_sources(DEB822, deb822=True) == [
        Mirror("http://mirror.test/debian", "trixie"),
        Mirror("http://second.test/debian", "trixie"),
    ]
    assert apt.mirrors_of_sources(LINES, deb822=False) == [Mirror("http://mirror.test/debian", "bookworm")]


def test_what_print_uris_prints() -> None:
    text = "Reading lists...\n'http://m.test/a%20b.orig.tar.xz' a_1.orig.tar.xz 12 SHA256:ab\n'http://m.test/b' b 3 \n"
    found = apt.remotes(text)
    assert [(r.name, r.size, r.digest) for r in found] == [("a_1.orig.tar.xz", 12, "SHA256:ab"), ("b", 3, "")]


# A package client that serves the files of $SERVED, and writes what it was asked for to $CALLS.
FAKE = r"""#!/bin/bash
echo "$*" >> "$CALLS"
[ -n "$APT_CONFIG" ] && cp "$APT_CONFIG" "$CALLS.conf" && cp "$(dirname "$APT_CONFIG")/sources.list" "$CALLS.list"
[ "$2" = update ] && [ -e "$CALLS.locked" ] && {
  rm "$CALLS.locked"; echo "E: Could not get lock /x/lists/lock" >&2; exit 100; }
uri=$(cat "$SERVED/uri" 2>/dev/null)
case "$*" in
*indextargets*) cat "$SERVED/targets" 2>/dev/null; exit 0 ;;
*update*) grep -q "$uri" "$(dirname "$APT_CONFIG")/sources.list" && exit 0
  echo "Err:1 nothing here" >&2; echo "E: The repository does not have a Release file." >&2; exit 100 ;;
esac
for last; do :; done
name=${last%%=*}
list=""
for word; do
  file=$(cd "$SERVED" && ls -d "${word%%=*}"_* 2>/dev/null)
  [ -n "$file" ] && list="$list $file"
done
[ -n "$list" ] || { echo "E: Unable to locate package $name" >&2; exit 100; }
for file in $list; do
  case "$*" in
  *print-uris*) echo "'http://m.test/$file' $file $(stat -c %s "$SERVED/$file") SHA256:x" ;;
  *) [ -e "$SERVED/bad" ] && rm "$SERVED/bad" && { echo half > "$file"; echo "E: Hash Sum mismatch" >&2; exit 100; }
     [ -e "$SERVED/full" ] && { echo "E: You don't have enough free space in .." >&2; exit 100; }
     [ -e "$SERVED/hang" ] && sleep 60
     cp "$SERVED/$file" . ;;
  esac
done
"""


class Client:
    """The fake client, an empty /etc/apt and a private directory."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        self.served = directory / "served"
        self.etc = directory / "etc"
        self.calls_file = directory / "calls"
        programs = directory / "programs"
        for path in (self.served, self.etc / "sources.list.d", programs):
            path.mkdir(parents=True)
        (programs / "apt-get").write_text(FAKE)
        (programs / "apt-config").write_text(
            '#!/bin/sh\ncat <<\'END\'\nDir "/";\nAcquire::http::Proxy "http://proxy.test:3128";\n'
            'Acquire::http::No-Cache "1";\nAPT::Update::Post-Invoke:: "rm -rf /";\nEND\n'
        )
        for program in programs.iterdir():
            program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
        monkeypatch.setenv("CALLS", str(self.calls_file))
        monkeypatch.setenv("SERVED", str(self.served))
        (self.served / "targets").write_text(TARGETS)
        (self.served / "uri").write_text("http://mirror.test/debian ")
        self.serve("linux_6.18.15.orig.tar.xz")

    def serve(self, name: str) -> None:
        (self.served / name).write_bytes(name.encode() * 100)

    def private(self, *, arch: str = "", timeout: float = 20.0) -> PrivateApt:
        report = Reporter(out=io.StringIO(), err=io.StringIO())
        return PrivateApt(self.directory / "private", report, timeout=timeout, sources=self.etc, arch=arch)

    def source(self, **options: float) -> Path:
        place = self.directory / "place"
        place.mkdir(exist_ok=True)
        return self.private(**options).source("linux=6.18.15-1~bpo13+1", "trixie-backports", place)

    def calls(self) -> list[str]:
        return self.calls_file.read_text().splitlines()


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Client:
    return Client(tmp_path, monkeypatch)


def test_source_package(client: Client) -> None:
    path = client.source()
    assert path.read_bytes() == (client.served / path.name).read_bytes()
    assert (
        (client.calls_file.with_name("calls.list"))
        .read_text()
        .endswith("http://mirror.test/debian trixie-backports main\n")
    )
    assert [call.split()[1] for call in client.calls()[1:]] == ["update", "source", "source"]
    assert client.calls()[-1].endswith("--download-only --tar-only --only-source linux=6.18.15-1~bpo13+1")


def test_configuration_is_private_and_keeps_the_proxy(client: Client) -> None:
    client.source()
    text = (client.directory / "private/apt.conf").read_text()
    assert 'Acquire::http::Proxy "http://proxy.test:3128";' in text
    assert "Post-Invoke" not in text
    assert '"/var' not in text and "/etc/apt" not in text
    for name in ("State", "State::lists", "State::status", "Cache", "Etc::sourcelist"):
        assert f'Dir::{name} "{client.directory}/private' in text


def test_real_apt_takes_the_configuration(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/usr/bin/apt-config").exists():
        pytest.skip("this machine has no apt")
    client.source()
    conf = client.directory / "private/apt.conf"
    env = {**os.environ, "APT_CONFIG": str(conf), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(["/usr/bin/apt-config", "dump"], env=env, capture_output=True, text=True, check=True)
    assert f'Dir::State::lists "{client.directory}/private/lists";' in done.stdout
    assert 'Acquire::http::Proxy "http://proxy.test:3128";' in done.stdout
    assert "Post-Invoke" not in done.stdout


def test_fresh_machine_without_lists_reads_its_sources(client: Client) -> None:
    (client.served / "targets").unlink()
    (client.etc / "sources.list").write_text(LINES)
    assert client.source().is_file()
    (client.etc / "sources.list").unlink()
    (client.etc / "sources.list.d/debian.sources").write_text(DEB822)
    assert client.private().mirrors() == apt.mirrors_of_sources(DEB822, deb822=True)


def test_next_mirror_when_one_fails(client: Client) -> None:
    (client.etc / "sources.list").write_text("deb http://other.test/debian bookworm main\n")
    (client.served / "uri").write_text("http://other.test/debian ")
    assert client.source().is_file()
    assert sum("update" in call for call in client.calls()) == 2


def test_machine_without_debian(client: Client) -> None:
    (client.served / "targets").write_text("http://ubuntu.test/ubuntu|noble|main|Ubuntu|Ubuntu|noble\n")
    with pytest.raises(EnvironmentFailure, match="name no Debian archive") as caught:
        client.source()
    assert "--kernel-source" in caught.value.hint


def test_failures_say_what_apt_says(client: Client) -> None:
    (client.served / "linux_6.18.15.orig.tar.xz").unlink()
    with pytest.raises(EnvironmentFailure, match="apt-get source failed: Unable to locate package linux"):
        client.source()
    (client.served / "uri").write_text("nowhere ")
    with pytest.raises(EnvironmentFailure, match="apt-get update failed: ") as caught:
        client.source()
    assert "APT_CONFIG=" in caught.value.hint


def test_full_disk(client: Client) -> None:
    (client.served / "full").touch()
    with pytest.raises(EnvironmentFailure, match="no space left on the disk") as caught:
        client.source()
    assert "HARNESS_CACHE_DIR" in caught.value.hint


def test_no_apt(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(client.served))
    with pytest.raises(EnvironmentFailure, match="apt-get is not installed"):
        client.source()


def test_lock_that_a_killed_run_left_is_waited_for(client: Client) -> None:
    client.calls_file.with_name("calls.locked").touch()
    assert client.source().is_file()
    assert sum("update" in call for call in client.calls()) == 2


def test_damaged_partial_file_begins_anew(client: Client) -> None:
    (client.served / "bad").touch()
    path = client.source()
    assert path.read_bytes() == (client.served / path.name).read_bytes()


def test_deadline(client: Client) -> None:
    (client.served / "hang").touch()
    started = time.monotonic()
    with pytest.raises(StageTimeout, match="did not finish within 2 s"):
        client.source(timeout=2.0)
    assert time.monotonic() - started < 30


def test_growth_is_reported(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    private = client.private()
    with private._watch(client.served, apt.Remote("u", "linux_6.18.15.orig.tar.xz", 5000, "")):
        time.sleep(0.8)
    err = private.report.err
    assert isinstance(err, io.StringIO)
    assert "downloading linux_6.18.15.orig.tar.xz 50 %" in err.getvalue()


def test_commands_to_paste_change_nothing_and_name_everything(client: Client) -> None:
    lines = client.private().source_commands("linux=1", "sid", client.directory / "place")
    assert any("apt-get source --download-only --tar-only --only-source linux=1" in line for line in lines)
    assert not (client.directory / "private").exists()
    done = subprocess.run(
        ["bash", "-e"], input="\n".join(lines), text=True, capture_output=True, check=False, timeout=30
    )
    assert done.returncode == 0, done.stderr
    assert (client.directory / "place/linux_6.18.15.orig.tar.xz").is_file()


# Binary packages


def test_foreign_packages_in_the_order_asked_for(client: Client) -> None:
    for name in ("bash_5_arm64.deb", "libc6_2_arm64.deb"):
        client.serve(name)
    place = client.directory / "debs"
    files = client.private(arch="arm64").download(["libc6", "bash"], place)
    assert [file.name for file in files] == ["libc6_2_arm64.deb", "bash_5_arm64.deb"]
    assert "[arch=arm64" in client.calls_file.with_name("calls.list").read_text()
    assert 'APT::Architecture "arm64";' in client.calls_file.with_name("calls.conf").read_text()
    assert client.calls_file.with_name("calls.list").read_text().endswith("/debian bookworm main\n")


def test_complete_set_needs_no_network_and_a_damaged_one_does(client: Client) -> None:
    client.serve("bash_5_arm64.deb")
    place = client.directory / "debs"
    (file,) = client.private(arch="arm64").download(["bash"], place)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    calls = len(client.calls())
    client.private(arch="arm64").download(["bash"], place)
    assert len(client.calls()) == calls
    file.write_text("damaged")
    (file,) = client.private(arch="arm64").download(["bash"], place)
    assert hashlib.sha256(file.read_bytes()).hexdigest() == digest
    assert len(client.calls()) > calls


def test_package_that_does_not_exist(client: Client) -> None:
    with pytest.raises(EnvironmentFailure, match="Unable to locate package nothing"):
        client.private(arch="arm64").download(["nothing"], client.directory / "debs")


def test_extract(tmp_path: Path) -> None:
    if not Path("/usr/bin/dpkg-deb").exists():
        pytest.skip("this machine has no dpkg")
    package = tmp_path / "package"
    (package / "DEBIAN").mkdir(parents=True)
    (package / "DEBIAN/control").write_text(
        "Package: x\nVersion: 1\nArchitecture: all\nMaintainer: A <a@example.org>\nDescription: x\n"
    )
    (package / "usr/bin").mkdir(parents=True)
    (package / "usr/bin/x").write_text("x")
    subprocess.run(["dpkg-deb", "-b", str(package), str(tmp_path / "x.deb")], check=True, capture_output=True)
    private = PrivateApt(tmp_path / "private", Reporter(), timeout=20)
    private.extract([tmp_path / "x.deb"], tmp_path / "root")
    assert (tmp_path / "root/usr/bin/x").read_text() == "x"
    (tmp_path / "x.deb").write_text("no package")
    with pytest.raises(EnvironmentFailure, match="dpkg-deb failed"):
        private.extract([tmp_path / "x.deb"], tmp_path / "root")
