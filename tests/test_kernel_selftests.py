"""The selftests on real kernels: they pass with the option on, and nowhere else."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
ARCHS = ("x86_64", "arm64")

pytestmark = pytest.mark.kernel


def harness(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "harness", *argv], cwd=ROOT, capture_output=True, text=True, timeout=3000, check=False
    )


def statuses(tmp_path: Path, arch: str, *argv: str) -> dict[str, dict[str, Any]]:
    """``harness test`` on one architecture: the selftests of all its guests by name."""
    results = tmp_path / "results.json"
    done = harness("test", "-a", arch, "--json", str(results), *argv)
    assert done.returncode == 0, done.stdout + done.stderr
    guests = json.loads(results.read_text())["architectures"]
    return {test["name"]: test for guest in guests for test in guest["tests"]}


@pytest.mark.parametrize("arch", ARCHS)
def test_option_on_every_selftest_passes(tmp_path: Path, arch: str) -> None:
    tests = statuses(tmp_path, arch)
    assert tests.pop("off")["status"] == "skipped"
    assert len(tests) >= 5
    assert {name: test["status"] for name, test in tests.items()} == dict.fromkeys(tests, "passed")


@pytest.mark.parametrize(
    ("arch", "kernel"),
    [("x86_64", ("-f", "off")), ("arm64", ("-f", "off")), ("x86_64", ("-f", "off", "--unpatched"))],
    ids=["x86_64-off", "arm64-off", "x86_64-unpatched"],
)
def test_option_off_or_no_patch_every_selftest_skips_with_a_reason(
    tmp_path: Path, arch: str, kernel: tuple[str, ...]
) -> None:
    tests = statuses(tmp_path, arch, *kernel)
    assert tests.pop("off")["status"] == "passed"
    assert len(tests) >= 5
    for test in tests.values():
        assert test["status"] == "skipped", test
        assert "CONFIG_AGENT_LATENCY" in test["reason"] or "no emulated" in test["reason"], test


@pytest.mark.parametrize("arch", ARCHS)
def test_second_build_without_changes_takes_under_five_seconds(arch: str) -> None:
    assert harness("build", "-a", arch, "--kernel-only").returncode == 0
    started = time.monotonic()
    done = harness("build", "-a", arch, "--kernel-only")
    assert time.monotonic() - started < 5
    assert "unchanged" in done.stdout, done.stdout
