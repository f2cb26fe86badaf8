"""The kernel of one architecture and flavour: built once, continued, told apart by what it is made from."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest

from harness import fs
from harness.build import kernel
from harness.build import make as kbuild
from harness.context import Context
from harness.errors import BuildError, ConfigMismatch, EnvironmentFailure, ExitCode
from harness.kconfig import verify
from harness.verbs import build as build_verb
from harness.verbs import config as config_verb
from tests.conftest import add_commit, export_series, git, said


def build(context: Context, arch: str = "x86_64", flavour: str = "test", **more: bool) -> kernel.KernelBuild:
    return kernel.build(context, context.arch(arch), context.flavour(flavour), **more)


def compiled(built: kernel.KernelBuild) -> list[str]:
    return sorted(line.split()[1] for line in built.log.read_text().splitlines() if line.startswith("  CC "))


def no_make(*_args: object, **_more: object) -> None:
    raise AssertionError("make was run")


def change_series(context: Context, tree: Path, files: dict[str, str]) -> None:
    add_commit(tree, "sched: Change something", files, replace=True)
    export_series(tree, context.patches)


@pytest.mark.parametrize("arch", ["x86_64", "arm64"])
def test_cold_then_unchanged(context: Context, arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    built = build(context, arch)
    assert (built.cached, built.files, built.name) == (False, 6, f"{arch}-test")
    assert built.directory == context.builds / f"{arch}-test"
    for path in (built.image, built.vmlinux, built.config, built.log):
        assert path.is_file()
    assert "Arms windows" in built.image.read_text()
    assert len(built.commit) == 40
    monkeypatch.setattr(kbuild, "make", no_make)
    again = build(context, arch)
    assert (again.cached, again.files, again.commit) == (True, 0, built.commit)
    assert again.image == built.image


def test_states_of_the_series_have_directories_of_their_own(context: Context) -> None:
    builds = [build(context), build(context, flavour="off"), build(context, patched=False)]
    assert [b.directory.name for b in builds] == ["x86_64-test", "x86_64-off", "x86_64-test-unpatched"]
    assert ["Arms windows" in b.image.read_text() for b in builds] == [True, False, False]
    assert builds[0].commit == builds[1].commit != builds[2].commit
    assert all(build(context, flavour=f, patched=p).cached for f, p in (("test", True), ("off", True), ("test", False)))


def test_change_in_the_series_rebuilds_its_dependents(context: Context, fake_kernel: Path) -> None:
    before = build(context)
    change_series(context, fake_kernel, {"kernel/sched.c": "/* Places. */\n"})
    after = build(context)
    assert after.commit != before.commit
    assert compiled(after) == ["kernel/sched.o"]
    assert "Places" in after.image.read_text()


def test_change_outside_the_kernel_is_not_mistaken_for_one(context: Context, fake_kernel: Path) -> None:
    build(context)
    change_series(context, fake_kernel, {"Documentation/agent.rst": "Agents\n"})
    after = build(context)
    assert (after.cached, after.files) == (False, 0)


def test_fragment_compiler_and_result_count(context: Context, fake_bin: Path) -> None:
    assert not build(context).cached
    with (context.configs / "fragments/base.config").open("a") as out:
        out.write("CONFIG_EXPERT=y\n")
    changed = build(context)
    assert not changed.cached
    assert verify.resolved(changed.config.read_text())["EXPERT"] == "y"
    changed.image.write_text("spoilt")
    assert not build(context).cached
    assert "Arms windows" in changed.image.read_text()
    compiler = fake_bin / "gcc"
    compiler.write_text(compiler.read_text().replace("12.2.0-14", "13.1.0-1"))
    assert not build(context).cached
    assert build(context).cached


def test_what_guests_boot_from_stays(context: Context, fake_kernel: Path) -> None:
    arch, flavour = context.arch("x86_64"), context.flavour("test")
    first = kernel.build_to_boot(context, arch, flavour)
    assert first.directory not in first.image.parents
    assert "Arms windows" in first.image.read_text()
    assert first.config.read_text() == (first.directory / ".config").read_text()
    change_series(context, fake_kernel, {"kernel/sched.c": "/* Places. */\n"})
    second = kernel.build_to_boot(context, arch, flavour)
    assert "Places" in second.image.read_text()
    assert "Places" not in first.image.read_text()
    assert kernel.build_to_boot(context, arch, flavour).image == second.image
    os.utime(first.image.parent, (1, 1))
    kernel.build_to_boot(context, arch, flavour)
    assert not first.image.exists()
    assert list(second.image.parent.parent.glob(".*.new-*")) == []
    # Half a copy is none.
    (second.image.parent / fs.STAMP).unlink()
    second.image.write_text("half")
    assert "Places" in kernel.build_to_boot(context, arch, flavour).image.read_text()


def test_a_build_that_another_run_replaces_is_not_booted(
    context: Context, fake_kernel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = build(context)
    copyfile = shutil.copyfile

    def replaced(source: Path, to: Path) -> object:
        (built.directory / kernel.STAMP).unlink(missing_ok=True)
        return copyfile(source, to)

    monkeypatch.setattr(shutil, "copyfile", replaced)
    with pytest.raises(EnvironmentFailure, match="another run goes on changing"):
        kernel.build_to_boot(context, built.arch, built.flavour)
    assert [path.name for path in kernel.kept_kernels(context).iterdir()] == []


def test_spoilt_stamp_is_no_stamp(context: Context) -> None:
    built = build(context)
    (built.directory / kernel.STAMP).write_text("{")
    assert not build(context).cached
    (built.directory / kernel.STAMP).write_text("[]")
    assert not build(context).cached


def test_failed_build_is_never_taken_for_a_finished_one(context: Context, fake_kernel: Path) -> None:
    build(context)
    change_series(context, fake_kernel, {"kernel/sched.c": "int x; /* FAIL */\n"})
    for _ in range(2):
        with pytest.raises(BuildError, match=r"x86_64-test: kernel/sched\.c:1:5: error: what is this\?") as caught:
            build(context)
        assert str(context.builds / "x86_64-test/build.log") in caught.value.hint
    change_series(context, fake_kernel, {"kernel/sched.c": "/* Mended. */\n"})
    assert compiled(build(context)) == ["kernel/sched.o"]


def test_make_that_leaves_no_image(context: Context, fake_kernel: Path) -> None:
    text = (
        (fake_kernel / "Makefile").read_text().replace("bzImage: $(O)/arch/x86/boot/bzImage", "bzImage: $(O)/vmlinux")
    )
    change_series(context, fake_kernel, {"Makefile": text})
    with pytest.raises(BuildError, match="make succeeded and left no arch/x86/boot/bzImage"):
        build(context)


def test_unmet_configuration_stops_before_make(context: Context) -> None:
    with (context.configs / "fragments/base.config").open("a") as out:
        out.write("CONFIG_SCHED_CORE=y\n")
    with pytest.raises(ConfigMismatch, match="SCHED_CORE=y did not take effect: needs SCHED_SMT"):
        build(context)
    assert not (context.builds / "x86_64-test/build.log").exists()


def test_two_builds_in_one_directory(context: Context) -> None:
    with (
        fs.lock(kernel.build_lock(context, "x86_64-test"), "x"),
        pytest.raises(EnvironmentFailure, match=rf"x86_64-test is in use by pid {os.getpid()}"),
    ):
        build(context)
    assert not build(context).cached


def test_full_disk_is_asked_about_first(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "SPACE_MIB", 1 << 40)
    with pytest.raises(EnvironmentFailure, match="building x86_64-test needs"):
        build(context)
    monkeypatch.setattr(kernel, "SPACE_MIB", 1)
    build(context)
    monkeypatch.setattr(kernel, "SPACE_MIB", 1 << 40)
    assert build(context).cached


def test_missing_tool_is_found_before_anything_starts(context: Context, fake_bin: Path) -> None:
    (fake_bin / "flex").unlink()
    with pytest.raises(EnvironmentFailure, match="flex is not installed") as caught:
        build(context)
    assert "apt-get install flex" in caught.value.hint
    assert not context.builds.exists()


def test_previous_log_is_kept(context: Context, fake_kernel: Path) -> None:
    first = build(context)
    change_series(context, fake_kernel, {"lib/string.c": "/* Other. */\n"})
    build(context)
    previous = first.log.with_name("build.log.previous")
    assert "kernel/smp.o" in previous.read_text()
    assert "kernel/smp.o" not in first.log.read_text()


def test_progress_counts_against_the_last_cold_build(context: Context) -> None:
    built = build(context)
    assert json.loads((built.directory / kernel.STAMP).read_text())["cold_files"] == 6
    assert kernel._estimate(context, context.arch("x86_64")) == 6
    assert kernel._estimate(context, context.arch("arm64")) == kernel.GUESSED_FILES
    told: list[tuple[int, int]] = []
    context.report.progress = lambda what, done, total, **more: told.append((done, total))  # type: ignore[method-assign,assignment]
    watch = kernel._progress(context, "job", 6)
    for files in (1, 1, 7):
        watch(files, 1.0)
    assert told == [(1, 6), (7, 7)]


def test_progress_without_an_estimate_is_a_line_now_and_then(context: Context) -> None:
    watch = kernel._progress(context, "job", 0)
    for second in range(40):
        watch(second, float(second))
    assert [line for line in said(context).splitlines() if "job" in line] == [
        "job: 15 files compiled in 15 s",
        "job: 30 files compiled in 30 s",
    ]


def verb(module: object, context: Context, *argv: str) -> int:
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)  # type: ignore[attr-defined]
    return int(module.run(context, parser.parse_args(argv)))  # type: ignore[attr-defined]


def test_build_verb_prints_a_table(context: Context) -> None:
    assert verb(build_verb, context) == ExitCode.OK
    text = said(context)
    for arch, image in (("x86_64", "bzImage"), ("arm64", "Image")):
        row = next(line for line in text.splitlines() if line.startswith(f"{arch}-test "))
        assert "built, 6 files" in row
        assert row.split()[-2].endswith(f"boot/{image}")
        assert row.endswith("build.log")
        assert f"{arch} selftests" in text
    assert verb(build_verb, context, "-a", "arm64", "--kernel-only") == ExitCode.OK
    last = context.report.out.getvalue().splitlines()[-1]  # type: ignore[attr-defined]
    assert last.startswith("arm64-test")
    assert "unchanged" in last


def test_dry_run_prints_commands_and_changes_nothing(context: Context) -> None:
    dry = dataclasses.replace(context, dry_run=True)
    assert verb(build_verb, dry, "-a", "arm64") == ExitCode.OK
    assert verb(config_verb, dry, "-a", "arm64") == ExitCode.OK
    lines = said(context).splitlines()
    assert not context.cache.exists()
    assert sum(line.startswith("harness apply") for line in lines) >= 2
    assert any(line.startswith("env ") and line.endswith(" Image") for line in lines)
    assert any(line.endswith(" allnoconfig") for line in lines)


def test_config_verb_lists_what_was_asked_for(context: Context) -> None:
    assert verb(config_verb, context, "-a", "x86_64", "-a", "arm64") == ExitCode.OK
    lines = said(context).splitlines()
    assert sum("requested symbols took effect in" in line for line in lines) == 2
    row = next(line for line in lines if line.startswith("CONFIG_AGENT_LATENCY"))
    assert row.split() == ["CONFIG_AGENT_LATENCY", "y", "configs/fragments/agent.config:1"]
    assert (context.builds / "arm64-test/.config").is_file()
    mtime = (context.builds / "arm64-test/.config").stat().st_mtime_ns
    assert build(context, "arm64").config.stat().st_mtime_ns == mtime


def test_config_verb_shows_settings_and_their_origin(context: Context) -> None:
    assert verb(config_verb, context, "--show-origin") == ExitCode.OK
    rows = {line.split()[0]: line for line in said(context).splitlines()}
    assert "HARNESS_JOBS" in rows["jobs"]
    assert "built-in" in rows["boot_timeout"]
    assert rows["flavour"].split()[1] == "test"
    assert "configs/harness.yaml" in rows["flavour"]


def test_deleted_output_directory_is_built_again(context: Context) -> None:
    built = build(context)
    shutil.rmtree(built.directory)
    assert build(context).files == 6
    assert git(context.kernel_repo, "cat-file", "-t", built.commit).strip() == "commit"
