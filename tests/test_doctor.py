"""What this machine lacks: probes, packages, the one command; data in configs/tools.yaml."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import pytest

from harness.build import tools
from harness.context import Context
from harness.errors import EnvironmentFailure, ExitCode, UsageError
from harness.verbs import doctor
from tests.conftest import said


def run(context: Context, *argv: str) -> int:
    parser = argparse.ArgumentParser()
    doctor.add_arguments(parser)
    return int(doctor.run(context, parser.parse_args(argv)))


def archs(context: Context, *names: str) -> list[object]:
    return [context.arch(name) for name in names]


def on(context: Context, machine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)


def test_all_there(context: Context, fake_bin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on(context, "x86_64", monkeypatch)
    (fake_bin / "ccache").symlink_to(fake_bin / "bc")
    assert run(context) == ExitCode.OK
    text = said(context)
    assert "MISSING" not in text
    assert "aarch64-linux-gnu-gcc" in text
    assert "12.2.0" in text
    assert "nothing is missing for x86_64, arm64" in text


def test_cache_that_is_a_file(context: Context, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    settings = dataclasses.replace(
        context.settings, values={**context.settings.values, "cache_dir": str(tmp_path / "file/x")}
    )
    assert run(dataclasses.replace(context, settings=settings)) == ExitCode.ENVIRONMENT
    assert "the cache cannot be written" in said(context)
    assert "nothing is missing" not in said(context)


@pytest.mark.parametrize(
    ("tool", "package"),
    [
        ("flex", "flex"),
        ("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu"),
        ("qemu-system-aarch64", "qemu-system-arm"),
        ("qemu-system-x86_64", "qemu-system-x86"),
        ("make", "make"),
        ("git", "git"),
    ],
)
def test_missing_tool_package_and_command(
    context: Context, fake_bin: Path, monkeypatch: pytest.MonkeyPatch, tool: str, package: str
) -> None:
    on(context, "x86_64", monkeypatch)
    (fake_bin / tool).unlink()
    assert run(context) == ExitCode.ENVIRONMENT
    text = said(context)
    row = next(line for line in text.splitlines() if line.startswith("MISSING"))
    assert tool in row
    assert package in row
    commands = [line for line in text.splitlines() if "apt-get install " in line]
    assert len(commands) == 1
    assert package in commands[0].split()


def test_only_the_architecture_asked_for(context: Context, fake_bin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on(context, "x86_64", monkeypatch)
    (fake_bin / "aarch64-linux-gnu-gcc").unlink()
    assert run(context, "-a", "x86_64") == ExitCode.OK
    assert run(context, "-a", "arm64") == ExitCode.ENVIRONMENT


def test_host_decides_what_is_a_cross_compiler(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    on(context, "aarch64", monkeypatch)
    missing = {v.name: v.package for v in tools.survey(context, archs(context, "x86_64", "arm64")) if not v.ok}  # type: ignore[arg-type]
    assert missing["x86_64-linux-gnu-gcc"] == "gcc-x86-64-linux-gnu"
    assert missing["static programs with x86_64-linux-gnu-gcc"] == "libc6-dev-amd64-cross"
    assert not any("aarch64" in name for name in missing)


def test_packages_for_bootstrap(context: Context, fake_bin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on(context, "x86_64", monkeypatch)
    for name in ("bison", "flex", "qemu-system-x86_64"):
        (fake_bin / name).unlink()
    assert run(context, "--packages") == ExitCode.OK
    # ccache is optional and not in the fake PATH: worth installing all the same.
    assert said(context).split() == ["bison", "ccache", "flex", "qemu-system-x86"]


def test_missing_optional_tool_is_no_failure(context: Context, fake_bin: Path) -> None:
    assert not (fake_bin / "ccache").exists()
    assert run(context) == ExitCode.OK
    assert any(line.startswith("optional") and "ccache" in line for line in said(context).splitlines())


def test_too_old_and_broken(context: Context, fake_bin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on(context, "x86_64", monkeypatch)
    (fake_bin / "gcc").write_text("#!/bin/sh\necho 'gcc (Old) 4.9.2'\n[ $1 = --version ]\n")
    assert run(context, "-a", "x86_64") == ExitCode.ENVIRONMENT
    text = said(context)
    assert "gcc 4.9.2 is older than 8.1" in text
    assert "cannot link a static program" in text
    assert "the header gelf.h is missing" in text
    assert {"gcc", "libc6-dev", "libelf-dev"} <= set(
        next(x for x in text.splitlines() if "apt-get install" in x).split()
    )


def test_python_packages(context: Context) -> None:
    tool = tools.Tool(name="x", why="y", stages=("z",), python="no-such-distribution-at-all")
    verdict = tools._probe(tool, {}, "", True)
    assert not verdict.ok
    assert verdict.package == ""
    present = tools._probe(dataclasses.replace(tool, python="pyyaml"), {}, "", True)
    assert present.ok
    assert present.version


def test_stage_names_all_it_lacks_before_it_starts(
    context: Context, fake_bin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(context, "x86_64", monkeypatch)
    tools.require(context, [context.arch("arm64")], "build")
    assert "ccache is not installed" in said(context)
    (fake_bin / "bc").unlink()
    (fake_bin / "bison").unlink()
    (fake_bin / "qemu-system-aarch64").unlink()
    with pytest.raises(EnvironmentFailure, match=r"bison is not installed.* \(and 1 more\)") as caught:
        tools.require(context, [context.arch("arm64")], "build")
    assert caught.value.hint.endswith("apt-get install bc bison")
    assert "qemu" not in caught.value.detail


@pytest.mark.parametrize(
    ("text", "said_"),
    [
        ("tools: [{name: a, why: b, stages: [c], package: d}]", "exactly one of command"),
        ("tools: [{name: a, why: b, stages: [c], package: d, command: e, header: f}]", "exactly one of command"),
        ("tools: [{name: a, why: b, stages: [c], command: e}]", "'package' is missing"),
        ("tools: [{name: a, why: b, stages: [c], comand: e}]", "unknown field 'comand'"),
        ("tools: {", "tools.yaml:1:"),
    ],
)
def test_broken_catalogue(context: Context, text: str, said_: str) -> None:
    (context.configs / "tools.yaml").write_text(text)
    with pytest.raises(UsageError, match=said_):
        tools.catalogue(context)


def test_every_entry_names_a_known_stage(context: Context) -> None:
    from harness.verbs import VERBS

    entries = tools.catalogue(context)
    assert len(entries) >= 20
    for entry in entries:
        assert set(entry.stages) <= {*VERBS, "checkpatch", "selftests"}, entry.name


def test_kvm_node(tmp_path: Path) -> None:
    assert "TCG" in doctor.kvm(tmp_path / "none")
    (tmp_path / "kvm").touch()
    assert "a boot will tell" in doctor.kvm(tmp_path / "kvm")


def test_disk_space_is_told(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "WANTED_MIB", 1 << 40)
    assert any("wants" in value for _, value in doctor.machine(context))


@pytest.mark.parametrize("command", ["{nosuch}gcc", "{prefix.x}gcc", "{", "{0}"])
def test_a_name_in_braces_that_stands_for_nothing(context: Context, command: str) -> None:
    entry = f"{{name: a, why: b, stages: [build], package: d, per_arch: true, command: '{command}'}}"
    (context.configs / "tools.yaml").write_text(f"tools: [{entry}]")
    with pytest.raises(UsageError, match=r"tools\.yaml: a: .* stands for nothing") as caught:
        tools.survey(context, [context.arch("x86_64")])
    assert "{prefix}" in caught.value.hint
