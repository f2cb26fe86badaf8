"""One make: its log, its deadline, and what becomes of it when it is interrupted or fails."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.build import make as kbuild
from harness.context import Context
from harness.errors import BuildError, EnvironmentFailure, HarnessError, StageTimeout
from harness.kconfig import assemble
from tests.test_proc import alive


@pytest.fixture
def out(context: Context, fake_kernel: Path) -> Path:
    """A configured output directory."""
    directory = context.builds / "x86_64-test"
    assemble.configure(context, fake_kernel, context.arch("x86_64"), context.flavour("test"), directory, True)
    return directory


def make(context: Context, tree: Path, out: Path, **more: object) -> kbuild.Made:
    arch = context.arch("x86_64")
    return kbuild.make(context, arch, tree, out, [arch.image_target], out / "build.log", what="job", **more)  # type: ignore[arg-type]


def compiled(out: Path) -> list[str]:
    lines = (out / "build.log").read_text().splitlines()
    return sorted(line.split()[1] for line in lines if line.startswith("  CC "))


ALL = ["arch/x86/setup.o", "init/main.o", "kernel/agent_latency.o", "kernel/sched.o", "kernel/smp.o", "lib/string.o"]


def test_builds_and_only_what_changed(context: Context, fake_kernel: Path, out: Path) -> None:
    seen: list[int] = []
    made = make(context, fake_kernel, out, watch=lambda files, seconds: seen.append(files))
    assert made.files == len(ALL) == max(seen)
    assert compiled(out) == ALL
    assert "Arms windows" in (out / "arch/x86/boot/bzImage").read_text()
    assert make(context, fake_kernel, out).files == 0
    (fake_kernel / "kernel/sched.c").write_text("/* Changed. */\n")
    assert make(context, fake_kernel, out).files == 1
    assert compiled(out) == ["kernel/sched.o"]


def test_log_begins_with_a_command_that_can_be_pasted(context: Context, fake_kernel: Path, out: Path) -> None:
    make(context, fake_kernel, out)
    command = (out / "build.log").read_text().splitlines()[0].removeprefix("# ")
    (out / "init/main.o").unlink()
    subprocess.run(["bash", "-c", command], check=True, timeout=60, capture_output=True)
    assert (out / "init/main.o").is_file()


def test_compiler_cache_is_shared_and_paths_do_not_show(
    context: Context, fake_kernel: Path, out: Path, tmp_path: Path, fake_bin: Path
) -> None:
    env = kbuild.environment(context, fake_kernel, out)
    assert env["CCACHE_DIR"] == str(tmp_path / "cache/ccache")
    assert env["CCACHE_BASEDIR"] == str(tmp_path)
    assert env["CCACHE_MAXSIZE"] == context.settings.text("ccache_size")
    arch = context.arch("arm64")
    argv = kbuild.command(context, arch, fake_kernel, out, ["Image"], tools=kbuild.toolchain(context, arch))
    assert f"KCPPFLAGS=-fmacro-prefix-map={os.path.relpath(fake_kernel, out)}/=" in argv
    assert not any("ccache" in word for word in argv)
    (fake_bin / "ccache").symlink_to(fake_bin / "bc")
    argv = kbuild.command(context, arch, fake_kernel, out, ["Image"], tools=kbuild.toolchain(context, arch))
    assert "CC=ccache aarch64-linux-gnu-gcc" in argv


@pytest.mark.parametrize(
    ("text", "kind", "said", "detail"),
    [
        ("int x; /* FAIL */", BuildError, "job: kernel/sched.c:1:5: error: what is this?", "FAIL"),
        ("/* UNDEFINED home_cpu */", BuildError, "undefined reference to `home_cpu'", "in function"),
        ("/* DISK */", EnvironmentFailure, "no space left", "No space left on device"),
        ("/* MEMORY */", EnvironmentFailure, "ran out of memory", "Killed"),
    ],
)
def test_failures(
    context: Context,
    fake_kernel: Path,
    out: Path,
    text: str,
    kind: type[HarnessError],
    said: str,
    detail: str,
) -> None:
    (fake_kernel / "kernel/sched.c").write_text(f"{text}\n")
    with pytest.raises(HarnessError, match="job: ") as caught:
        make(context, fake_kernel, out)
    assert type(caught.value) is kind
    assert said in caught.value.message
    assert detail in caught.value.detail
    assert len(caught.value.detail.splitlines()) <= 20
    assert caught.value.hint
    assert str(fake_kernel) not in caught.value.message


def test_missing_source_is_named(context: Context, fake_kernel: Path, out: Path) -> None:
    (fake_kernel / "lib/string.c").unlink()
    with pytest.raises(BuildError, match="No rule to make target"):
        make(context, fake_kernel, out)


def test_full_disk_of_the_log_itself(context: Context, fake_kernel: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    arch = context.arch("x86_64")
    with pytest.raises(EnvironmentFailure, match="no space left"):
        kbuild.make(context, arch, fake_kernel, context.builds / "x", ["kernelversion"], Path("/dev/full"), what="job")


def test_deadline_ends_the_compilers(context: Context, fake_kernel: Path, out: Path) -> None:
    (fake_kernel / "kernel/sched.c").write_text("/* SLEEP 60 */\n")
    started = time.monotonic()
    with pytest.raises(StageTimeout, match=r"did not finish within 1\.5 s"):
        make(context, fake_kernel, out, timeout=1.5)
    assert time.monotonic() - started < 30
    assert not (out / "kernel/sched.o").exists()


INTERRUPTED = """
import sys
from pathlib import Path
from harness.build import make as kbuild
from harness.context import Context
from harness.report import Reporter
from harness.settings import resolve
root, tree, out = map(Path, sys.argv[1:])
context = Context(root=root, settings=resolve(root, {}), report=Reporter())
arch = context.arch("x86_64")
kbuild.make(context, arch, tree, out, [arch.image_target], out / "build.log", what="job")
"""


def descendants(pid: int) -> set[int]:
    """Processes below ``pid``, from /proc."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_build_leaves_no_process_and_continues(
    context: Context, fake_kernel: Path, out: Path, tmp_path: Path, signum: signal.Signals
) -> None:
    (fake_kernel / "kernel/sched.c").write_text("/* SLEEP 30 */\n")
    script = [sys.executable, "-c", INTERRUPTED, str(context.root), str(fake_kernel), str(out)]
    env = {**os.environ, "HARNESS_CACHE_DIR": str(context.cache), "HARNESS_JOBS": "2"}
    with subprocess.Popen(script, env=env, stderr=subprocess.DEVNULL, start_new_session=True) as process:
        for _ in range(200):
            if any("sleep" in name for name in names(descendants(process.pid))):
                break
            time.sleep(0.1)
        started = descendants(process.pid)
        assert any("sleep" in name for name in names(started))
        if signum == signal.SIGKILL:
            # Nobody is left to end what a compiler itself started; make, which would start more, has to go.
            started = {pid for pid in started if any("make" in name.split("\0")[0] for name in names({pid}))}
            assert started
        process.send_signal(signum)
        process.wait(20)
    for _ in range(50):
        if not any(map(alive, started)):
            break
        time.sleep(0.1)
    assert not any(map(alive, started))
    (fake_kernel / "kernel/sched.c").write_text("/* Quick. */\n")
    made = make(context, fake_kernel, out)
    assert 1 <= made.files <= len(ALL)
    assert "Quick" in (out / "arch/x86/boot/bzImage").read_text()


def names(pids: set[int]) -> list[str]:
    found = []
    for pid in pids:
        try:
            found.append(Path(f"/proc/{pid}/cmdline").read_text())
        except OSError:
            continue
    return found


def test_jobs_are_passed_on(context: Context, fake_kernel: Path, out: Path) -> None:
    arch = context.arch("x86_64")
    settings = dataclasses.replace(context.settings, values={**context.settings.values, "jobs": 7})
    argv = kbuild.command(
        dataclasses.replace(context, settings=settings),
        arch,
        fake_kernel,
        out,
        [],
        tools=kbuild.toolchain(context, arch),
    )
    assert "-j7" in argv
