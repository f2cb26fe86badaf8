"""The guest's tools: static, for its architecture, from the patched tree."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from harness.build import guesttools
from harness.build import make as kbuild
from harness.context import Context
from harness.errors import BuildError, EnvironmentFailure
from tests.conftest import add_commit, export_series, said
from tests.test_kernel_build import no_make

MAKEFILE = """\
PROGRAMS := agent-run agent-demo
all: $(addprefix $(OUTPUT)/,$(PROGRAMS))
$(OUTPUT)/%: %.c
\t$(CC) $(USERLDFLAGS) -o $@ $<
"""


@pytest.fixture
def tree(context: Context, fake_kernel: Path) -> Path:
    """The miniature tree with the tools in its series."""
    files = {"Makefile": MAKEFILE, "agent-run.c": "/* Runs. */\n", "agent-demo.c": "/* Shows. */\n"}
    change(context, fake_kernel, files)
    return fake_kernel


def change(context: Context, tree: Path, files: dict[str, str]) -> None:
    named = {f"{guesttools.SOURCE}/{name}": text for name, text in files.items()}
    add_commit(tree, "tools/agent-latency: Change something", named, replace=True)
    export_series(tree, context.patches)


@pytest.mark.parametrize(("arch", "machine"), [("x86_64", "Advanced Micro Devices X86-64"), ("arm64", "AArch64")])
def test_cold_then_unchanged(
    context: Context, tree: Path, arch: str, machine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = guesttools.build_for(context, context.arch(arch))
    for name in guesttools.PROGRAMS:
        text = (built / name).read_text()
        assert text.startswith(f"Machine: {machine}\n") and "INTERP" not in text
    monkeypatch.setattr(kbuild, "make", no_make)
    assert guesttools.build_for(context, context.arch(arch)) == built


def test_a_change_is_built_and_an_error_keeps_the_old_ones(context: Context, tree: Path) -> None:
    built = guesttools.build_for(context, context.arch("x86_64"))
    change(context, tree, {"agent-run.c": "/* Runs better. */\n"})
    guesttools.build_for(context, context.arch("x86_64"))
    assert "better" in (built / "agent-run").read_text()
    for text, why in (("/* FAIL */\n", "error"), ("/* DYNAMIC */\n", "not static")):
        change(context, tree, {"agent-run.c": text})
        with pytest.raises(BuildError, match=why):
            guesttools.build_for(context, context.arch("x86_64"))
        assert "better" in (built / "agent-run").read_text()
    change(context, tree, {"Makefile": MAKEFILE.replace("agent-run ", "")})
    with pytest.raises(BuildError, match="left no agent-run"):
        guesttools.build_for(context, context.arch("x86_64"))


def test_a_series_without_them_says_so(context: Context) -> None:
    with pytest.raises(EnvironmentFailure, match="no programs in tools/agent-latency"):
        guesttools.build_for(context, context.arch("x86_64"))


def test_dry_run_prints_the_command(context: Context) -> None:
    dry = dataclasses.replace(context, dry_run=True)
    guesttools.build_for(dry, dry.arch("arm64"))
    assert "CC=aarch64-linux-gnu-gcc" in said(context) and "USERLDFLAGS=-static" in said(context)
