"""configure(): fragments on allnoconfig, verified, with the reason why a symbol did not take effect."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness.build import make as kbuild
from harness.context import Context
from harness.errors import BuildError, ConfigMismatch, EnvironmentFailure, UsageError
from harness.kconfig import assemble, verify
from harness.kconfig.tree import Explainer, modernised
from tests.conftest import git, said


def write_fragment(context: Context, name: str, text: str) -> None:
    (context.configs / f"fragments/{name}.config").write_text(text)


def configure(context: Context, tree: Path, arch: str = "x86_64", flavour: str = "test", patched: bool = True) -> Path:
    out = context.builds / f"{arch}-{flavour}"
    return assemble.configure(context, tree, context.arch(arch), context.flavour(flavour), out, patched)


def test_words_of_6_18_are_rewritten_line_by_line() -> None:
    text = "config A\n\tbool\n\ttransitional\n\tmodules  \n\thelp\n\t  modules are\n"
    assert modernised(text) == "config A\n\tbool\n\n\toption modules\n\thelp\n\t  modules are\n"


@pytest.mark.parametrize("arch", ["x86_64", "arm64"])
def test_configuration_takes_effect(context: Context, fake_kernel: Path, arch: str) -> None:
    config = configure(context, fake_kernel, arch)
    values = verify.resolved(config.read_text())
    assert values["SMP"] == "y"
    assert values["NR_CPUS"] == "16"
    assert values["AGENT_LATENCY"] == "y"
    assert ("X86" in values, "ARM64" in values) == (arch == "x86_64", arch == "arm64")
    assert not list(config.parent.glob(f"{assemble.NEW}*"))


def test_series_fragments_only_with_the_series(context: Context, fake_kernel: Path) -> None:
    arch, flavour = context.arch("x86_64"), context.flavour("off")
    assert assemble.fragment_names(arch, flavour, True) == ("base", "x86_64", "agent-off")
    assert assemble.fragment_names(arch, flavour, False) == ("base", "x86_64")
    off = configure(context, fake_kernel, flavour="off")
    assert "# CONFIG_AGENT_LATENCY is not set" in off.read_text()
    git(fake_kernel, "checkout", "-q", "base")
    unpatched = configure(context, fake_kernel, flavour="off", patched=False)
    assert "AGENT_LATENCY" not in unpatched.read_text()


def test_unchanged_configuration_keeps_its_mtime(context: Context, fake_kernel: Path) -> None:
    config = configure(context, fake_kernel)
    os.utime(config, (1, 1))
    assert configure(context, fake_kernel).stat().st_mtime == 1
    write_fragment(context, "base", "CONFIG_SMP=y\n")
    assert configure(context, fake_kernel).stat().st_mtime > 1


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("CONFIG_SCHED_COER=y", "unknown symbol; close: SCHED_CORE"),
        ("# CONFIG_SCHED_COER is not set", "unknown symbol; close: SCHED_CORE"),
        ("CONFIG_SCHED_CORE=y", "needs SCHED_SMT[=n] (which needs HAVE_SMT[=n])"),
        ("CONFIG_HAVE_SMT=y", "it has no prompt"),
        ("CONFIG_LATER=n", None),
        ("CONFIG_SMP=m", "it is a bool, which cannot be a module"),
        ("CONFIG_NEEDS_SMP=y\n# CONFIG_SMP is not set", "selected by NEEDS_SMP"),
        ("CONFIG_NR_CPUS=4096", "the range is 2 to 64"),
        ('CONFIG_NR_CPUS="16"', "it is a int"),
        ("CONFIG_LOCALVERSION=5", "it is a string"),
        ("CONFIG_HZ_100=y\nCONFIG_HZ_250=y", "its choice has HZ_250 selected"),
        ("CONFIG_SMP=3", "it is a bool, which takes y or n"),
    ],
)
def test_unmet_request_is_explained(context: Context, fake_kernel: Path, line: str, reason: str | None) -> None:
    write_fragment(context, "x86_64", "CONFIG_X86=y\nCONFIG_SMP=y\n")
    write_fragment(context, "agent", f"CONFIG_AGENT_LATENCY=y\n{line}\n" if "SMP is" not in line else f"{line}\n")
    if reason is None:
        # Its prompt is hidden and its default is y, so n cannot be had.
        reason = "it has no prompt here, its default counts"
    with pytest.raises(ConfigMismatch) as caught:
        configure(context, fake_kernel)
    assert reason in caught.value.message
    assert "configs/fragments/agent.config:" in caught.value.detail
    assert "\n" not in caught.value.message


def test_hidden_symbol_names_what_shows_it(context: Context, fake_kernel: Path) -> None:
    text = (fake_kernel / "kernel/Kconfig").read_text().replace("\tdefault y\n", "")
    (fake_kernel / "kernel/Kconfig").write_text(text)
    write_fragment(context, "agent", "CONFIG_LATER=y\n")
    with pytest.raises(ConfigMismatch, match=r"can be set only with EXPERT\[=n\]"):
        configure(context, fake_kernel)


def test_unmet_configuration_leaves_the_old_one(context: Context, fake_kernel: Path) -> None:
    config = configure(context, fake_kernel)
    before = (config.read_bytes(), config.stat().st_mtime_ns)
    write_fragment(context, "agent", "CONFIG_SCHED_CORE=y\n")
    with pytest.raises(ConfigMismatch):
        configure(context, fake_kernel)
    assert (config.read_bytes(), config.stat().st_mtime_ns) == before
    assert not list(config.parent.glob(f"{assemble.NEW}*"))


def test_overrides_are_told(context: Context, fake_kernel: Path) -> None:
    context.report.verbosity = 1
    write_fragment(context, "base", "CONFIG_SMP=y\nCONFIG_NR_CPUS=2\nCONFIG_NR_CPUS=3\n")
    write_fragment(context, "x86_64", "CONFIG_X86=y\nCONFIG_NR_CPUS=8\n")
    configure(context, fake_kernel)
    assert "warning: configs/fragments/base.config:3: CONFIG_NR_CPUS=3 replaces 2 of" in said(context)
    assert "configs/fragments/x86_64.config:2: CONFIG_NR_CPUS=8 replaces 3 of configs/fragments/base.config:3" in said(
        context
    )


def test_broken_kconfig_file_is_a_build_error(context: Context, fake_kernel: Path) -> None:
    with (fake_kernel / "kernel/Kconfig").open("a") as out:
        out.write("\nbogus words here\n")
    with pytest.raises(BuildError) as caught:
        configure(context, fake_kernel)
    assert "kernel/Kconfig" in caught.value.message + caught.value.detail
    assert not (context.builds / "x86_64-test/.config").exists()


def test_explanation_does_not_need_a_working_compiler(context: Context, fake_kernel: Path) -> None:
    config = configure(context, fake_kernel)
    env = {"SRCARCH": "x86", "CC": "no-such-compiler", "LD": "no-such-linker", "PATH": os.environ["PATH"]}
    before = dict(os.environ)
    explain = Explainer(fake_kernel, env, config)
    assert explain("SCHED_CORE", "y", "n").startswith("needs SCHED_SMT[=n]")
    assert explain("CC_IS_FAKE", "y", "n") == "it has no prompt"
    assert dict(os.environ) == before


def test_environment_is_the_makefiles_own(context: Context, fake_kernel: Path) -> None:
    arch = context.arch("x86_64")
    out = context.builds / "x"
    env = kbuild.kbuild_environment(context, arch, fake_kernel, out, kbuild.toolchain(context, arch))
    assert (env["SRCARCH"], env["KERNELVERSION"], env["CC"]) == ("x86", "6.18.15", "gcc")
    assert env["srctree"] == str(fake_kernel)


def test_environment_of_a_makefile_that_fails_is_none(
    context: Context, fake_kernel: Path, fake_bin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arch, out = context.arch("x86_64"), context.builds / "x"
    tools = kbuild.toolchain(context, arch)
    monkeypatch.setenv("ARCH", "nonsense")
    for status, wanted in ((0, {"A": "1", "ARCH": ""}), (2, {})):
        (fake_bin / "make").unlink()
        (fake_bin / "make").write_text(f"#!/bin/sh\nprintf 'A=1\\0ARCH=%s\\0' \"$ARCH\"\nexit {status}\n")
        (fake_bin / "make").chmod(0o755)
        assert kbuild.kbuild_environment(context, arch, fake_kernel, out, tools) == wanted


def test_users_make_variables_do_not_leak(context: Context, fake_kernel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ARCH", "KCONFIG_CONFIG", "KCONFIG_ALLCONFIG", "KBUILD_OUTPUT", "MAKEFLAGS", "CROSS_COMPILE"):
        monkeypatch.setenv(name, "nonsense")
    assert configure(context, fake_kernel, "arm64").is_file()


def test_missing_cross_compiler_names_the_package(context: Context, fake_kernel: Path, fake_bin: Path) -> None:
    (fake_bin / "aarch64-linux-gnu-gcc").unlink()
    with pytest.raises(EnvironmentFailure, match="aarch64-linux-gnu-gcc is not installed") as caught:
        configure(context, fake_kernel, "arm64")
    assert "gcc-aarch64-linux-gnu" in caught.value.hint


def test_path_with_a_space_is_refused(context: Context, fake_kernel: Path, tmp_path: Path) -> None:
    out = tmp_path / "with space"
    with pytest.raises(UsageError, match="spaces and colons"):
        assemble.configure(context, fake_kernel, context.arch("x86_64"), context.flavour("test"), out, True)


def test_defined_symbols_of_all_architectures(fake_kernel: Path) -> None:
    assert assemble.defined(fake_kernel) >= {"X86", "ARM64", "SMP", "CFI_OLD", "AGENT_LATENCY"}
