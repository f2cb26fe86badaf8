"""The selftests: static, for the guest's architecture, always from the patched tree."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from harness.build import kernel, selftests
from harness.build import make as kbuild
from harness.context import Context
from harness.errors import BuildError, EnvironmentFailure, UsageError
from tests.conftest import add_commit, export_series, said
from tests.test_kernel_build import build, no_make

DIRECTORY = "tools/testing/selftests/agent_latency"


def make_tests(context: Context, arch: str = "x86_64") -> selftests.SelftestBuild:
    return selftests.build_for(context, context.arch(arch))


def change(context: Context, tree: Path, files: dict[str, str]) -> None:
    add_commit(tree, "selftests: Change something", files, replace=True)
    export_series(tree, context.patches)


@pytest.mark.parametrize(("arch", "machine"), [("x86_64", "Advanced Micro Devices X86-64"), ("arm64", "AArch64")])
def test_cold_then_unchanged(context: Context, arch: str, machine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    built = make_tests(context, arch)
    assert built.programs == ("abi", "inherit")
    assert built.timeouts == {"abi": 90.0, "inherit": 90.0}
    assert built.config == ("CONFIG_AGENT_LATENCY=y", "CONFIG_SMP=y")
    assert not built.cached
    for name in built.programs:
        text = (built.directory / name).read_text()
        assert text.startswith(f"Machine: {machine}\n")
        assert "INTERP" not in text
    base = context.builds / f"{arch}-selftests"
    assert (base / "headers/usr/include/linux/agent_latency.h").is_file()
    assert f"KHDR_INCLUDES=-isystem {base}/headers/usr/include" in built.log.read_text().replace("'", "")
    monkeypatch.setattr(kbuild, "make", no_make)
    again = make_tests(context, arch)
    assert again.cached
    assert (again.programs, again.timeouts, again.commit) == (built.programs, built.timeouts, built.commit)


def test_unpatched_and_off_kernels_get_the_patched_tests(context: Context) -> None:
    unpatched = build(context, patched=False)
    built = selftests.build_selftests(context, unpatched)
    assert built.commit != unpatched.commit
    off = build(context, flavour="off")
    again = selftests.build_selftests(context, off)
    assert (again.cached, again.commit) == (True, off.commit)
    # The tree of the unpatched kernel was not disturbed.
    assert build(context, patched=False).cached


def test_headers_are_made_again_only_when_they_changed(context: Context, fake_kernel: Path) -> None:
    make_tests(context)
    stamp = context.builds / "x86_64-selftests/headers" / selftests.STAMP
    before = stamp.stat().st_mtime_ns
    change(context, fake_kernel, {f"{DIRECTORY}/abi.c": "/* More. */\n"})
    built = make_tests(context)
    assert not built.cached
    assert "More" in (built.directory / "abi").read_text()
    assert stamp.stat().st_mtime_ns == before
    change(context, fake_kernel, {"include/uapi/linux/agent_latency.h": "#define PR_AGENT_WINDOW 2\n"})
    assert not make_tests(context).cached
    assert stamp.stat().st_mtime_ns > before
    header = context.builds / "x86_64-selftests/headers/usr/include/linux/agent_latency.h"
    assert "PR_AGENT_WINDOW 2" in header.read_text()


def test_other_selftests_and_kernel_code_do_not_count(context: Context, fake_kernel: Path) -> None:
    make_tests(context)
    files = {"tools/testing/selftests/other/Makefile": "# other\n", "kernel/sched.c": "/* Other. */\n"}
    change(context, fake_kernel, files)
    assert make_tests(context).cached
    change(context, fake_kernel, {"tools/testing/selftests/kselftest.h": "/* Other. */\n"})
    assert not make_tests(context).cached


def test_error_names_the_source_and_keeps_the_old_programs(context: Context, fake_kernel: Path) -> None:
    old = make_tests(context)
    change(context, fake_kernel, {f"{DIRECTORY}/abi.c": "\n/* FAIL */\n"})
    with pytest.raises(BuildError, match=r"x86_64: agent_latency selftests: .*abi\.c:2:5: error") as caught:
        make_tests(context)
    assert str(old.log) in caught.value.hint
    assert (old.directory / "abi").is_file()
    assert not (old.directory.parent / "agent_latency.new").exists()


def test_dynamic_program_is_refused(context: Context, fake_kernel: Path) -> None:
    change(context, fake_kernel, {f"{DIRECTORY}/abi.c": "/* DYNAMIC */\n"})
    with pytest.raises(BuildError, match="abi is not static"):
        make_tests(context)


def test_wrong_architecture_is_refused(context: Context) -> None:
    arch = dataclasses.replace(context.arch("arm64"), elf_machine="RISC-V")
    with pytest.raises(BuildError, match="abi is AArch64, not RISC-V"):
        selftests.build_for(context, arch)


def test_series_without_selftests(context: Context, fake_kernel: Path) -> None:
    with pytest.raises(EnvironmentFailure, match="the series has no selftests"):
        selftests.build_for(context, context.arch("x86_64"), collection="agent")


def test_makefile_without_programs(context: Context, fake_kernel: Path) -> None:
    change(context, fake_kernel, {f"{DIRECTORY}/Makefile": "TEST_GEN_PROGS :=\ninclude ../lib.mk\n"})
    with pytest.raises(BuildError, match="names no TEST_GEN_PROGS"):
        make_tests(context)


def test_script_is_installed_as_it_is(context: Context, fake_kernel: Path) -> None:
    makefile = "TEST_GEN_PROGS := abi\nTEST_PROGS := run.sh\ninclude ../lib.mk\n"
    change(context, fake_kernel, {f"{DIRECTORY}/Makefile": makefile, f"{DIRECTORY}/run.sh": "#!/bin/sh\n"})
    built = make_tests(context)
    assert built.programs == ("abi", "run.sh")
    assert (built.directory / "run.sh").read_text() == "#!/bin/sh\n"


def test_missing_static_library_is_found_before(context: Context, fake_bin: Path) -> None:
    compiler = fake_bin / "aarch64-linux-gnu-gcc"
    compiler.write_text(compiler.read_text().replace("\t-static) static=1 ;;", "\t-static) exit 1 ;;"))
    with pytest.raises(EnvironmentFailure, match="aarch64-linux-gnu-gcc cannot link a static program") as caught:
        make_tests(context, "arm64")
    assert "libc6-dev-arm64-cross" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "seconds"), [("timeout=90\n", 90.0), ("# x\n timeout=1\n", 45.0), ("timeout=0", 45.0), ("", 45.0)]
)
def test_settings(text: str, seconds: float) -> None:
    assert selftests.timeout_of(text) == seconds


def test_listing() -> None:
    listing = "# make\nagent_latency:abi\nother:x\nagent_latency:abi\nagent_latency:b\n"
    assert selftests.programs_of(listing, "agent_latency") == ["abi", "b"]


def test_dry_run(context: Context) -> None:
    dry = dataclasses.replace(context, dry_run=True)
    built = selftests.build_for(dry, context.arch("arm64"))
    assert built.programs == ()
    assert "USERLDFLAGS=-static" in said(context)
    assert not context.cache.exists()


def test_lock_is_the_builds_own(context: Context) -> None:
    assert kernel.build_lock(context, "arm64-selftests").name == "build-arm64-selftests.lock"


def test_what_the_makefile_lists() -> None:
    text = "CFLAGS += -O2\nTEST_GEN_PROGS := b \\\n\ta\nTEST_GEN_PROGS_EXTENDED := bench\nTEST_PROGS += c.sh\n"
    assert selftests.listed(text) == ("a", "b", "c.sh")
    assert selftests.listed("TEST_GEN_PROGS := $(wildcard *.c)\n") == ()


def test_a_program_that_is_not_there_is_known_before_a_build(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kbuild, "make", no_make)
    selftests.check(context, ["abi", "inherit"])
    with pytest.raises(UsageError, match="there is no test program 'abbi'") as caught:
        selftests.check(context, ["abi", "abbi"])
    assert caught.value.hint == "known: abi, inherit"
