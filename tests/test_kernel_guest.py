"""Real guests: boots, crashes that are provoked, commands in a shell, and no QEMU left behind. ``tox -e kernel``.

Boots the kernels of ``harness build`` (built if they are not); HARNESS_IMAGE_X86_64 and HARNESS_IMAGE_ARM64 name
others.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness import cli
from harness.context import Context, find_project
from harness.report import Reporter
from harness.settings import resolve

pytestmark = pytest.mark.kernel
ROOT = Path(__file__).resolve().parent.parent

# Writes its argument to sysrq-trigger, having reported half of its plan.
TRIGGER = r"""
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>
int main(int argc, char **argv)
{
	int fd = open("/proc/sysrq-trigger", O_WRONLY);

	printf("about to\n");
	fflush(stdout);
	sleep(1);
	return argc < 2 || write(fd, argv[1], 1) != 1 || sleep(60);
}
"""


@pytest.fixture(params=["x86_64", "arm64"])
def arch(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def image(arch: str) -> Path:
    if given := os.environ.get(f"HARNESS_IMAGE_{arch.upper()}"):
        return Path(given)
    from harness.build import kernel

    root = find_project(ROOT)
    context = Context(root, resolve(root, {}), Reporter())
    return kernel.build(context, context.arch(arch), context.flavour("test")).image


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HARNESS_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("HARNESS_PROJECT", str(ROOT))
    return tmp_path / "runs/latest"


def compiled(arch: str, source: str, out: Path) -> Path:
    context = Context(ROOT, resolve(ROOT, {}), Reporter())
    prefix = context.arch(arch).toolchain_prefix(context.host_machine)
    (out.with_suffix(".c")).write_text(source)
    subprocess.run([f"{prefix}gcc", "-static", "-o", str(out), str(out.with_suffix(".c"))], check=True)
    return out


def guests_with(word: str) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().decode(errors="replace")
                if word in words and "qemu-system" in str((entry / "exe").readlink()):
                    found.append(entry.name)
            except OSError:
                continue
    return found


def test_boot_to_power_off(arch: str, image: Path, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["boot", "-a", arch, "--image", str(image)]) == 0
    assert "Linux version 6.18" in capsys.readouterr().out
    assert guests_with(str(runs.resolve())) == []


@pytest.mark.parametrize(("key", "code", "kind"), [("c", 7, "panic"), ("b", 7, "reboot"), ("o", 8, "power off")])
def test_provoked_ends(arch: str, image: Path, runs: Path, tmp_path: Path, key: str, code: int, kind: str) -> None:
    program = compiled(arch, TRIGGER, tmp_path / "trigger")
    assert cli.main(["boot", "-a", arch, "--image", str(image), "--", str(program), key]) == code
    result = json.loads((runs / "results.json").read_text())["architectures"][0]
    assert result["failure"]["kind"] == kind
    assert result["tests"][0]["status"] == "crashed"
    assert "about to" in (runs / arch / "ktap/trigger.ktap").read_text()


@pytest.mark.bpftrace
@pytest.mark.parametrize("state", [[], ["--unpatched"]], ids=["series", "unpatched"])
def test_the_bpftrace_scripts_find_a_workload(arch: str, state: list[str], runs: Path) -> None:
    assert cli.main(["test", "-a", arch, "--bpftrace", *state]) == 0
    tests = json.loads((runs / "results.json").read_text())["architectures"][0]["tests"]
    scripts = {test["name"]: test["status"] for test in tests if not test["name"].startswith("kunit")}
    assert len(scripts) == 15
    for name, status in scripts.items():
        assert status == ("skipped" if state and name.endswith("-step") else "passed"), name
    steps = "".join(path.read_text() for path in (runs / arch / "ktap").glob("*-step.ktap"))
    assert ("100000" in steps) == (not state)


def test_a_trace_has_whole_chains(arch: str, image: Path, runs: Path) -> None:
    assert cli.main(["trace", "-a", arch, "--image", str(image), "--steps", "3"]) == 0
    value = json.loads((runs / arch / "trace.json").read_text())
    assert value["complete"] and value["orphans"] == 0 and value["malformed"] == 0
    steps = {step["step_id"] for step in value["steps"]}
    assert steps == {1, 2, 3}
    links = [link for step in value["steps"] for link in step["links"]]
    assert {"task", "timer", "sock"} <= {link["source"] for link in links}
    seen = [link for link in links if "cqe" in link["events"]]
    assert seen, "a wait that ended with a CQE"
    for link in seen:
        assert link["gaps_ns"]["cqe_visible_minus_oncpu"] is not None
    for link in links:
        assert link["wakeup_ns"] >= (link["device_ns"] or 0)
        assert link["oncpu_ns"] is None or link["oncpu_ns"] >= link["wakeup_ns"]
    assert sum(link["oncpu_ns"] is None for link in links) <= 2, "at most the last wakeup of each task"
    assert json.loads((runs / arch / "chain.json").read_text())["traceEvents"]


def test_a_trace_of_a_guest_that_panics(
    arch: str, image: Path, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = compiled(arch, TRIGGER, tmp_path / "trigger")
    assert cli.main(["trace", "-a", arch, "--image", str(image), "--", str(program), "c"]) == 7
    assert "panic" in capsys.readouterr().err
    assert (runs / arch / "trace.txt").is_file()


def test_a_file_that_is_no_kernel(arch: str, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad").write_bytes(b"no kernel" * 1000)
    os.environ["HARNESS_BOOT_TIMEOUT"] = "5"
    try:
        code = cli.main(["boot", "-a", arch, "--accel", "tcg", "--image", str(tmp_path / "bad")])
    finally:
        del os.environ["HARNESS_BOOT_TIMEOUT"]
    assert code in (3, 7, 8)
    assert "error" in capsys.readouterr().err or code != 3
    assert guests_with(str(runs.resolve())) == []


@pytest.mark.parametrize("number", [2, 15, 9])
def test_no_guest_outlives_the_harness(arch: str, image: Path, runs: Path, tmp_path: Path, number: int) -> None:
    program = compiled(arch, TRIGGER.replace("write(fd, argv[1], 1) != 1", "0"), tmp_path / "sleeper")
    command = [sys.executable, "-m", "harness", "boot", "-a", arch, "--image", str(image), "--", str(program), "x"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        log = runs / arch / "console.log"
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline and not (log.is_file() and b"about to" in log.read_bytes()):
            time.sleep(0.1)
        mine = str(runs.resolve())
        assert guests_with(mine)
        process.send_signal(number)
        process.wait(30)
    assert process.returncode in (130, -9)
    deadline = time.monotonic() + 10
    while guests_with(mine) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert guests_with(mine) == []


@pytest.mark.parametrize("backend", ["vng", "qemu"])
def test_commands_in_a_shell(
    arch: str, image: Path, runs: Path, backend: str, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert runs
    if backend == "vng" and not shutil.which("vng", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}"):
        pytest.skip("virtme-ng is not installed")
    words = ["shell", "-a", arch, "--backend", backend, "--image", str(image), "--", "sh", "-c", "uname -m; exit 7"]
    assert cli.main(words) == 7
    assert capfdbinary.readouterr().out.strip() == {"x86_64": b"x86_64", "arm64": b"aarch64"}[arch]
