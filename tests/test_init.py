"""The guest's init: rendered from names that may be anything, compiled, packed into an archive that cpio reads."""

from __future__ import annotations

import concurrent.futures
import gzip
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from harness.context import Context
from harness.data import Reports
from harness.errors import EnvironmentFailure, UsageError
from harness.guest import init
from harness.guest.init import Archive, Program, c_string, render
from harness.report import Reporter
from harness.settings import resolve

ROOT = Path(__file__).resolve().parent.parent
TEMPLATE = ROOT / "qemu/init.c.j2"
NASTY = 'a"b\\c\n%s ?? \x01 \u00e9 $x `y`'


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context(ROOT, resolve(ROOT, {"cache_dir": str(tmp_path / "cache")}, {}), Reporter(-1))


def test_c_strings_hold_anything(tmp_path: Path) -> None:
    if not shutil.which("gcc"):
        pytest.skip("needs gcc")
    source = tmp_path / "s.c"
    source.write_text(f"#include <stdio.h>\nint main(void) {{ fputs({c_string(NASTY)}, stdout); return 0; }}\n")
    subprocess.run(["gcc", "-o", str(tmp_path / "s"), str(source)], check=True)
    assert subprocess.run([str(tmp_path / "s")], capture_output=True, check=True).stdout == NASTY.encode()


def test_c_strings_hold_what_is_no_text() -> None:
    assert c_string("a\udcff") == '"a\\377"'


@pytest.mark.parametrize("seconds", [float("inf"), float("nan"), 0.0, -1.0])
def test_what_is_no_deadline(seconds: float) -> None:
    with pytest.raises(UsageError, match="the deadline of abi is "):
        Program("abi", timeout=seconds)


def test_deadlines_fit_into_an_int() -> None:
    assert Program("abi", timeout=3e6).timeout_ms == 2**31 - 1


def test_rendering_names_every_program() -> None:
    text = render(
        TEMPLATE, [Program("abi", timeout=1.5), Program("c", path="/x", arguments=(NASTY,), reports=Reports.STATUS)]
    )
    assert '{ "abi", "ktap", 1500, argv_0 }' in text
    assert '{ "c", "status", 45000, argv_1 }' in text
    assert '"/tests/abi"' in text
    assert "{%" not in text
    assert "{{" not in text.replace("{{ 0", "")


@pytest.mark.parametrize("name", ["", "a b", "../x", "a/b", "a|b", "a!b", "-x", "x" * 65, "a\nb", "a=b", "a:b"])
def test_names_that_the_markers_could_not_carry(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be the name"):
        Program(name)


def test_broken_and_missing_templates(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        render(tmp_path / "none.j2", [])
    (tmp_path / "b.j2").write_text("line\n{% for %}\n")
    with pytest.raises(UsageError, match=r"b\.j2:2: "):
        render(tmp_path / "b.j2", [])
    (tmp_path / "u.j2").write_text("{{ nobody }}")
    with pytest.raises(UsageError, match="nobody"):
        render(tmp_path / "u.j2", [])


def test_missing_and_refusing_compilers(context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    arch = context.arch("arm64")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    with pytest.raises(EnvironmentFailure, match="aarch64-linux-gnu-gcc is not installed") as caught:
        init.compile_init(context, arch, "int main;")
    assert "gcc-aarch64-linux-gnu" in caught.value.hint
    fake = tmp_path / "aarch64-linux-gnu-gcc"
    fake.write_text("#!/bin/sh\n[ \"$1\" = --version ] && exit 0\necho 'x.c:1: error: no' >&2\nexit 1\n")
    fake.chmod(0o755)
    with pytest.raises(EnvironmentFailure, match="does not compile for arm64") as caught:
        init.compile_init(context, arch, "int main;")
    assert "x.c:1: error: no" in caught.value.detail
    assert not [p for p in (context.cache / "guest").iterdir() if not p.name.endswith(".c")]


def test_the_binary_is_cached_by_what_it_is_made_from(context: Context) -> None:
    if not shutil.which("gcc"):
        pytest.skip("needs gcc")
    arch = next(
        context.arch(name)
        for name in ("x86_64", "arm64")
        if not context.arch(name).toolchain_prefix(os.uname().machine)
    )
    first = init.compile_init(context, arch, render(TEMPLATE, [Program("a")]))
    stamp = first.stat().st_mtime_ns
    assert init.compile_init(context, arch, render(TEMPLATE, [Program("a")])) == first
    assert first.stat().st_mtime_ns == stamp
    assert init.compile_init(context, arch, render(TEMPLATE, [Program("b")])) != first


def test_two_boots_may_want_different_inits_at_once(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    if not shutil.which("gcc"):
        pytest.skip("needs gcc")
    monkeypatch.setattr(init, "KEPT_INITS", 1)
    arch = next(
        context.arch(name)
        for name in ("x86_64", "arm64")
        if not context.arch(name).toolchain_prefix(os.uname().machine)
    )
    sources = [f"int main(void) {{ return {n}; }}" for n in range(4)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda source: init.compile_init(context, arch, source), sources * 2))
    assert len(set(made)) == len(sources)
    left = sorted(path.name for path in (context.cache / "guest").iterdir())
    assert left and all(name.startswith(f"init-{arch.name}-") for name in left)


def test_the_archive_is_what_cpio_reads(tmp_path: Path) -> None:
    if not shutil.which("cpio"):
        pytest.skip("needs cpio")
    tree = tmp_path / "tree"
    (tree / "etc/d").mkdir(parents=True)
    (tree / "etc/d/file").write_text("text\n")
    (tree / "etc/link").symlink_to("d/file")
    (tree / "bin").mkdir()
    (tree / "bin/run").write_text("#!/bin/sh\n")
    (tree / "bin/run").chmod(0o755)
    (tree / "tmp").mkdir()
    program = tmp_path / "abi"
    program.write_bytes(b"\x7fELF" + bytes(range(256)))
    (tmp_path / "init").write_bytes(b"init")
    out = init.pack(tmp_path / "init", [Program("abi", program), Program("x", path="/bin/x")], tmp_path / "i.gz", tree)
    raw = gzip.decompress(out.read_bytes())
    listed = subprocess.run(["cpio", "-itv", "--quiet"], input=raw, capture_output=True, check=True).stdout.decode()
    assert {line.split()[-1] for line in listed.splitlines()} >= {"init", "tests/abi", "etc/d/file", "bin/run"}
    assert "etc/link -> d/file" in listed
    assert "5,   1" in listed
    (tmp_path / "x").mkdir()
    subprocess.run(["cpio", "-id", "--quiet", "tests/abi", "bin/run"], input=raw, cwd=tmp_path / "x", check=True)
    assert (tmp_path / "x/tests/abi").read_bytes() == program.read_bytes()
    assert (tmp_path / "x/bin/run").stat().st_mode & 0o777 == 0o755
    again = init.pack(
        tmp_path / "init", [Program("abi", program), Program("x", path="/bin/x")], tmp_path / "j.gz", tree
    )
    assert again.read_bytes() == out.read_bytes()


def test_two_files_of_one_name_and_a_missing_one(tmp_path: Path) -> None:
    archive = Archive()
    archive.file("a", b"")
    with pytest.raises(UsageError, match="twice"):
        archive.file("a", b"")
    (tmp_path / "init").write_bytes(b"")
    with pytest.raises(UsageError, match="cannot read the program"):
        init.pack(tmp_path / "init", [Program("gone", tmp_path / "gone")], tmp_path / "i.gz")
    assert not (tmp_path / "i.gz").exists()
