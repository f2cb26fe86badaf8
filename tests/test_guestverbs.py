"""boot, test, run, shell and parse as a user calls them, with a QEMU that replays recorded consoles."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from harness import cli
from harness.build.upstream import UpstreamBuild
from harness.context import Context
from harness.data import Flavour
from harness.errors import ApplyError, BuildError
from harness.guest import init

ROOT = Path(__file__).resolve().parent.parent
HERE = Path(__file__).resolve().parent
LOGS = HERE / "logs"
SERIES = {"abi", "inherit", "off", "window", "placement", "stress"}


@dataclass(frozen=True)
class Kernel:
    arch: Any
    flavour: Any
    patched: bool
    directory: Path
    image: Path
    config: Path
    commit: str = "c0ffee"
    seconds: float = 0.5
    cached: bool = True
    name: str = "name"
    log: Path = Path("log")


@dataclass(frozen=True)
class Selftests:
    directory: Path
    programs: tuple[str, ...]
    timeouts: dict[str, float] = field(default_factory=dict)
    commit: str = "c0ffee"
    seconds: float = 0.5


@pytest.fixture
def harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    """Calls the command line with fake builds and a fake QEMU; returns exit code, stdout, stderr."""
    binaries = tmp_path / "bin"
    binaries.mkdir()
    for name in ("qemu-system-x86_64", "qemu-system-aarch64"):
        (binaries / name).write_text(f'#!/bin/sh\nexec {sys.executable} {HERE}/fakeqemu.py "$@"\n')
        (binaries / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{binaries}:/usr/bin:/bin")
    monkeypatch.setenv("HARNESS_PROJECT", str(ROOT))
    monkeypatch.setenv("HARNESS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("HARNESS_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("HARNESS_ACCEL", "tcg")
    for name in ("HARNESS_ARCH", "HARNESS_FLAVOUR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(init, "compile_init", lambda *_: ROOT / "qemu/init.c.j2")
    built = tmp_path / "built"
    built.mkdir()
    (built / "image").write_bytes(b"kernel")
    (built / "config").write_text("CONFIG_AGENT_LATENCY=y\n")
    names = tuple(sorted(SERIES))

    def kernel(context: Any, arch: Any, flavour: Any, *, patched: bool = True, **_: Any) -> Kernel:
        if arch.name in os.environ.get("FAIL_BUILD", ""):
            raise BuildError("a.c:1:1: error: no", detail="a.c:1:1: error: no", hint="see the log")
        return Kernel(arch, flavour, patched, built, built / "image", built / "config")

    def tests(*_: Any, **__: Any) -> Selftests:
        chosen = tuple(os.environ.get("PROGRAMS", " ".join(names)).split())
        for name in chosen:
            (built / name).write_bytes(b"\x7fELF")
        return Selftests(built, chosen)

    known = Context.flavour

    def flavour(context: Context, name: str) -> Flavour:
        # The recorded logs are older than most suites: what has to report is up to each test.
        return dataclasses.replace(known(context, name), kunit=tuple(os.environ.get("KUNIT", "").split()))

    monkeypatch.setattr(Context, "flavour", flavour)
    monkeypatch.setattr("harness.build.kernel.build_to_boot", kernel)
    monkeypatch.setattr("harness.build.selftests.build_selftests", tests)
    monkeypatch.setattr("harness.build.selftests.known_programs", lambda *_: tests().programs)

    def call(*argv: str, log: str = "", qemu: str = "", **env: str) -> tuple[int, str, str]:
        monkeypatch.setenv("FAKE_QEMU", f"{f'log={LOGS / log}.log' if log else ''} {qemu}")
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        try:
            code = cli.main(argv)
        except SystemExit as exc:
            code = int(exc.code or 0)
        return code, *capsys.readouterr()

    call.runs = tmp_path / "runs"  # type: ignore[attr-defined]
    return call


def newest(call: Any) -> Path:
    return (call.runs / "latest").resolve()


def test_a_good_test_leaves_everything(harness, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    code, out, err = harness("test", "-a", "x86_64", "--junit", str(tmp_path / "j.xml"), log="patched-x86_64")
    assert code == 0, err
    assert "x86_64: pass: programs 6 passed/0 failed/1 skipped" in out
    assert out.count(" pass ") >= 6
    run = newest(harness)
    arch = run / "x86_64"
    assert {p.name for p in run.iterdir()} >= {"metadata.json", "results.json", "junit.xml", "x86_64"}
    assert {p.name for p in arch.iterdir()} >= {"console.log", "config", "reproduce.sh", "initramfs.cpio.gz", "ktap"}
    assert {p.stem for p in (arch / "ktap").iterdir()} == SERIES
    assert (arch / "ktap/abi.ktap").read_text().startswith("TAP version 13\n")
    assert (tmp_path / "j.xml").read_text() == (run / "junit.xml").read_text()
    ET.parse(run / "junit.xml")
    metadata = json.loads((run / "metadata.json").read_text())
    assert (metadata["state"], metadata["exit_code"], metadata["flavour"]) == ("finished", 0, "test")
    about = metadata["architectures"]["x86_64"]
    assert about["accelerator"] == {"name": "tcg", "reason": "as asked"}
    assert about["qemu"] == "99.1"
    assert about["kernel"]["commit"] == "c0ffee"
    assert "-no-reboot" in about["argv"]
    results = json.loads((run / "results.json").read_text())
    assert results["architectures"][0]["totals"]["programs"] == 7


def test_a_kunit_suite_that_did_not_report_never_ran(harness) -> None:  # type: ignore[no-untyped-def]
    command = ("test", "-a", "x86_64")
    code, out, err = harness(*command, log="patched-x86_64", KUNIT="agent_latency")
    assert code == 0, err
    code, out, err = harness(*command, log="patched-x86_64", KUNIT="agent_latency agent_latency_chain")
    assert code == 1
    assert any(line.split()[1:4] == ["kunit/agent_latency_chain", "NEVER", "RAN"] for line in out.splitlines())
    assert "kunit/agent_latency_chain: NEVER RAN" in err
    run = json.loads((newest(harness) / "results.json").read_text())
    assert [suite["status"] for suite in run["architectures"][0]["kunit"]] == ["passed", "never ran"]
    for more in (["--unpatched"], ["abi"]):
        assert harness(*command, *more, log="patched-x86_64")[0] == 0
    assert harness("boot", "-a", "x86_64", log="orphan")[0] == 0


def late_log(tmp_path: Path) -> Path:
    """A log of a guest in which one test of window failed."""
    text = (LOGS / "patched-x86_64.log").read_text()
    text = text.replace("harness|window|ok 4 ", "harness|window|not ok 4 ").replace("pass:12 fail:0", "pass:11 fail:1")
    path = tmp_path / "late.log"
    path.write_text(text.replace("end window status=0", "end window status=1"))
    return path


def only_window(tmp_path: Path) -> Path:
    """A log of a guest in which window alone ran, and passed."""
    others = "|".join(SERIES - {"window"})
    lines = (LOGS / "patched-x86_64.log").read_text().splitlines(keepends=True)
    path = tmp_path / "counted.log"
    kept = "".join(line for line in lines if not re.search(rf"[|!](begin |end )?({others})[| ]", line))
    path.write_text(kept.replace("ran=6", "ran=1"))
    return path


def test_a_failure_of_the_hosts_clock_is_settled_where_time_is_counted(harness, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    words = f"log={late_log(tmp_path)} counted={only_window(tmp_path)}"
    code, out, err = harness("test", "-a", "x86_64", "window", qemu=words, PROGRAMS="window")
    assert code == 0, out + err
    assert "window failed: once more in x86_64-counted" in err
    rows = [line.split() for line in out.splitlines() if " window " in line]
    assert [row[:3] for row in rows] == [["x86_64", "window", "xfail"], ["x86_64-counted", "window", "pass"]]
    assert "passed in x86_64-counted" in out
    run = newest(harness)
    assert (run / "x86_64-counted/console.log").is_file()
    assert json.loads((run / "results.json").read_text())["exit_code"] == 0


def stale_log(tmp_path: Path, before: str) -> Path:
    """A log of a guest that an int3 ended in window; ``before`` is the byte that it should be at."""
    text = (LOGS / "patched-x86_64.log").read_text()
    head, sep, _ = text.partition("harness|window|ok 4 ")
    assert sep
    path = tmp_path / f"int3-{before}.log"
    path.write_text(
        f"""{head[: head.rindex("[")]}[    3.518935] Oops: int3: 0000 [#1] SMP
[    3.519311] CPU: 0 UID: 0 PID: 0 Comm: swapper/0 Tainted: G                 N  6.18.15 #1 PREEMPT
[    3.519491] RIP: 0010:pick_task_fair+0x24/0x320
[    3.519739] Code: 00 90 55 48 89 e5 41 56 85 c9 0f 84 3a 01 00 00 {before} <55> 01 00 00 4c 89 eb 45 31 f6 eb 59
[    3.520211] Call Trace:
[    3.520482]  <TASK>
[    3.520776]  __pick_next_task+0x43/0x190
[    3.520931]  </TASK>
[    3.521117] ---[ end trace 0000000000000000 ]---
[    3.521333] Kernel panic - not syncing: Fatal exception in interrupt
"""
    )
    return path


def test_a_boot_that_the_emulator_has_spoilt_is_repeated_once(harness, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    stale = stale_log(tmp_path, "e9")
    good = tmp_path / "good.log"
    shutil.copy(LOGS / "patched-x86_64.log", good)
    code, out, err = harness("test", "-a", "x86_64", qemu=f"log={stale} again={good}")
    assert code == 0, out + err
    assert "ran code that had been replaced" in err
    assert "note: a first boot ended in code that the emulator should not have run" in out + err
    run = newest(harness)
    assert "int3" in (run / "x86_64/console.log").read_text()
    assert "int3" not in (run / "x86_64-again/console.log").read_text()
    code, out, err = harness("test", "-a", "x86_64", qemu=f"log={stale}")
    assert (code, "Oops: int3" in out + err) == (7, True)


def test_what_had_failed_before_the_emulator_did_has_failed(harness, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    log = stale_log(tmp_path, "e9")
    log.write_text(log.read_text().replace("harness|window|ok 3 ", "harness|window|not ok 3 "))
    ended = log.read_text().replace("harness|abi|ok 1 ", "harness|abi|not ok 1 ")
    for text in (
        ended,
        log.read_text().replace("Kernel panic", "BUG: kernel NULL pointer dereference\n[    3.6] Kernel panic"),
    ):
        log.write_text(text)
        code, _, err = harness("test", "-a", "x86_64", qemu=f"log={log}")
        assert (code, "once more" in err) == (7, False)


def test_an_int3_that_is_there_is_a_crash(harness, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    code, _, err = harness("test", "-a", "x86_64", qemu=f"log={stale_log(tmp_path, 'cc')}")
    assert code == 7
    assert "once more" not in err


def test_what_fails_there_too_has_failed(harness, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    late = late_log(tmp_path)
    code, out, _ = harness("test", "-a", "x86_64", "window", qemu=f"log={late} counted={late}", PROGRAMS="window")
    assert code == 1
    assert out.count("FAIL") >= 2


@pytest.mark.parametrize(
    ("log", "qemu", "code", "said"),
    [
        ("panic-x86_64", "", 7, "sysrq triggered crash"),
        ("bug-x86_64", "", 7, "Oops: invalid opcode"),
        ("warn-x86_64", "", 7, "WARNING: CPU: 0 PID: 39"),
        ("lockdep", "", 7, "possible circular locking dependency"),
        ("kasan", "", 7, "slab-use-after-free"),
        ("hung-x86_64", "", 7, "blocked for more than 30 seconds"),
        ("oom-x86_64", "", 7, "invoked oom-killer"),
        ("reboot", "", 7, "the guest rebooted while trig ran"),
        ("poweroff", "", 8, "powered off without the end marker"),
        ("lost", "signal=9", 8, "QEMU ended with signal SIGKILL"),
        ("lost", "status=1", 8, "QEMU ended with exit status 1"),
        ("silent", "then=hang", 8, "the guest printed nothing for 1 s while trig ran"),
        ("deadline", "", 1, "not done by its deadline"),
        ("segv", "", 1, "killed by SIGSEGV"),
        ("exit", "", 1, "1 of 2 planned tests never reported"),
        ("orphan", "", 0, ""),
    ],
)
def test_each_ending_has_its_code_and_its_words(harness, log: str, qemu: str, code: int, said: str) -> None:  # type: ignore[no-untyped-def]
    words = {"kasan": "trig later", "lockdep": "trig later"}.get(log, "good trig later")
    got, out, err = harness(*("test", "-a", "x86_64"), log=log, qemu=qemu, PROGRAMS=words, HARNESS_SILENCE_TIMEOUT="1")
    assert got == code, err
    assert said in err
    assert "Traceback" not in err
    if code:
        assert f"console log: {newest(harness) / 'x86_64/console.log'}" in err
        assert not out.startswith("x86_64: pass")
    assert json.loads((newest(harness) / "metadata.json").read_text())["exit_code"] == code


@pytest.fixture
def upstream(harness, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """The command line, with the pinned kernel's selftests of ptrace built; the log has them all."""

    def build(context: Any, arch: Any, directory: Any, programs: Any) -> UpstreamBuild:
        files = {program.name: ROOT / "qemu/init.c.j2" for program in programs if not program.skip}
        return UpstreamBuild(directory, files, "c0ffee", 0.5)

    monkeypatch.setattr("harness.build.upstream.build", build)
    return harness


def test_upstream_selftests_and_what_the_series_lost(upstream, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    before = tmp_path / "before.json"
    command = ("test", "-a", "x86_64", "--upstream", "ptrace")
    code, out, err = upstream(*command, "--unpatched", "--json", str(before), log="upstream")
    assert code == 1
    assert "ptrace.vmaccess: FAIL" in err
    rows = {line.split()[1]: line for line in out.splitlines() if line.startswith("x86_64-ptrace  ")}
    assert "pass" in rows["ptrace.peeksiginfo"]
    run = newest(upstream)
    assert (run / "x86_64-ptrace/console.log").is_file()
    assert json.loads((run / "metadata.json").read_text())["tests"] == "upstream"
    # It failed without the series, so the series is not to blame.
    code, out, _ = upstream(*command, "--against", str(before), log="upstream")
    assert code == 0
    assert "8 passed in both, 2 in neither, 0 only now, 0 only before" in out
    assert json.loads((newest(upstream) / "results.json").read_text())["regressions"] == []
    broken = tmp_path / "upstream-broken.log"
    text = (LOGS / "upstream.log").read_text()
    broken.write_text(text.replace("end ptrace.peeksiginfo status=0", "end ptrace.peeksiginfo status=1"))
    code, out, _ = upstream(*command, "--against", str(run), log=str(broken.with_suffix("")))
    assert code == 1
    assert "ptrace.peeksiginfo" in out.split("passed before")[1]
    assert out.splitlines()[-1].endswith("0 only now, 1 only before")
    # A run that has nothing in common with this one excuses nothing.
    other = tmp_path / "other.json"
    other.write_text(before.read_text().replace('"x86_64-ptrace"', '"arm64-ptrace"'))
    code, _, err = upstream(*command, "--against", str(other), log="upstream")
    assert code == 2
    assert "the earlier run has no test program of this one" in err
    assert (newest(upstream) / "results.json").is_file()
    fewer = json.loads(before.read_text())
    tests = fewer["architectures"][0]["tests"]
    fewer["architectures"][0]["tests"] = [test for test in tests if test["name"] != "ptrace.vmaccess"]
    other.write_text(json.dumps(fewer))
    code, out, _ = upstream(*command, "--against", str(other), log="upstream")
    assert code == 1
    assert "ptrace.vmaccess" in out.split("not there before")[1]
    # What makes the whole run worthless is no comparison's business.
    code, _, err = upstream(*command, "--against", str(before), log="upstream", qemu="signal=9")
    assert code == 8


def test_upstream_selftests_that_are_left_out_are_listed(upstream) -> None:  # type: ignore[no-untyped-def]
    _, out, _ = upstream("test", "-a", "arm64", "--upstream", "timers.leapcrash", log="unpatched-arm64")
    assert "has no end but its deadline" in out


def test_upstream_takes_no_other_guest(upstream) -> None:  # type: ignore[no-untyped-def]
    code, _, err = upstream("test", "--upstream", "-g", "power")
    assert code == 2
    assert "guests of its own" in err
    code, _, err = upstream("test", "--upstream", "nothing", "-a", "x86_64")
    assert code == 2
    assert "'nothing'" in err
    code, _, err = upstream("test", "--against", "/nowhere/results.json")
    assert code == 2
    assert "cannot read /nowhere/results.json" in err


def test_programs_that_never_ran_are_named(harness) -> None:  # type: ignore[no-untyped-def]
    _, out, _ = harness("test", "-a", "x86_64", log="panic-x86_64", PROGRAMS="good trig later more")
    rows = {line.split()[1]: line for line in out.splitlines() if line.startswith("x86_64  ")}
    assert "CRASH" in rows["trig"]
    assert "NEVER RAN" in rows["later"]
    assert "NEVER RAN" in rows["more"]
    assert "pass" in rows["good"]


def test_a_guest_that_never_boots(harness) -> None:  # type: ignore[no-untyped-def]
    code, _, err = harness("test", "-a", "x86_64", qemu="then=hang", HARNESS_BOOT_TIMEOUT="1")
    assert code == 8
    assert "printed nothing at all within 1 s" in err


def test_qemu_that_does_not_start_shows_its_words(harness) -> None:  # type: ignore[no-untyped-def]
    code, out, err = harness("test", "-a", "x86_64", qemu="status=1 message=qemu:_-machine_q36:_unsupported")
    assert code == 3
    assert "qemu: -machine q36: unsupported" in err
    assert "reproduce.sh" in err
    assert "ERROR" in out


def test_qemu_that_is_not_there_names_its_package(harness, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("PATH", "/nowhere")
    code, _, err = harness("test", "-a", "arm64")
    assert code == 3
    assert "qemu-system-aarch64 is not installed" in err
    assert "qemu-system-arm" in err


@pytest.mark.parametrize("verb", ["test", "run", "boot", "shell"])
def test_no_architecture_is_no_success(harness, verb: str) -> None:  # type: ignore[no-untyped-def]
    code, _, err = harness(verb, "-a", ",")
    assert code == 2
    assert err.startswith("error: no architecture is named\n  next: known: arm64, x86_64")
    assert harness(verb, HARNESS_ARCH="")[0] == 2
    assert not harness.runs.exists()


def test_no_results_are_no_success(harness, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("harness.guest.session.test_arch", lambda *_, **__: [])
    assert harness("test", "-a", "x86_64")[0] == 1


def test_two_architectures_and_the_worse_code(harness, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    code, out, err = harness("test", log="patched-x86_64", FAIL_BUILD="x86_64")
    assert code == 6
    assert "x86_64: a.c:1:1: error: no" in err
    assert "arm64: pass" in out
    run = newest(harness)
    assert (run / "arm64/console.log").is_file()
    assert ET.parse(run / "junit.xml").getroot().get("errors") == "1"


def test_all_skipped_is_said_and_can_be_forbidden(harness) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = harness("test", "-a", "arm64", "--unpatched", log="unpatched-arm64")
    assert code == 0
    assert "kernel without CONFIG_AGENT_LATENCY" in out
    text = (LOGS / "unpatched-arm64.log").read_text()
    assert text
    code, out, err = harness("test", "-a", "arm64", "--require-pass", log="unpatched-arm64", PROGRAMS="abi inherit")
    assert code == 1
    assert "nothing passed" in err


def test_json_on_stdout_is_all_of_it(harness, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = harness("test", "-a", "x86_64", "--json", log="patched-x86_64")
    value = json.loads(out)
    assert (code, value["exit_code"]) == (0, 0)
    assert [test["name"] for test in value["architectures"][0]["tests"]] == sorted(SERIES)
    harness("test", "-a", "x86_64", f"--json={tmp_path}/r.json", log="patched-x86_64")
    assert json.loads((tmp_path / "r.json").read_text())["exit_code"] == 0


@pytest.mark.parametrize("verb", ["test", "boot", "run", "parse", "trace", "measure"])
@pytest.mark.parametrize("name", ["", "directory", "file/x"])
def test_a_file_that_cannot_be_is_found_before_the_run(harness, tmp_path: Path, verb: str, name: str) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "directory").mkdir()
    (tmp_path / "file").touch()
    more = [str(LOGS / "kunit-good.log")] if verb == "parse" else []
    code, out, err = harness(verb, f"--json={tmp_path / name}", *more, log="patched-x86_64")
    assert code == 2
    assert err.startswith("error: ")
    assert out == ""
    assert not harness.runs.exists()


def test_runs_that_are_a_file(harness, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "runs").touch()
    code, _, err = harness("test", "-a", "x86_64", log="patched-x86_64")
    assert code == 3
    assert "cannot write" in err
    assert "HARNESS_RUNS_DIR" in err


@pytest.mark.parametrize("verb", ["apply", "tree", "config", "run", "check"])
def test_a_cache_that_is_a_file(harness, tmp_path: Path, verb: str) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "file").touch()
    code, _, err = harness(verb, "--cache-dir", str(tmp_path / "file"))
    assert code == 3, err
    assert "Traceback" not in err


def test_some_programs_only(harness) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = harness("test", "-a", "x86_64", "abi", log="patched-x86_64")
    assert code == 0
    assert "inherit" not in out.split("x86_64: ")[0].replace("kunit/", "")
    before = len(list(harness.runs.iterdir()))
    code, out, err = harness("test", "nobody", log="patched-x86_64")
    assert (code, out) == (2, "")
    assert err.startswith("error: there is no test program 'nobody'\n  next: known: abi")
    assert len(list(harness.runs.iterdir())) == before


def test_a_shell_without_a_terminal_builds_nothing(harness) -> None:  # type: ignore[no-untyped-def]
    code, _, err = harness("shell", "-a", "x86_64", FAIL_BUILD="x86_64")
    assert code == 2
    assert err.startswith("error: an interactive shell needs a terminal")


def test_dry_run_prints_and_leaves_nothing(harness) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = harness("test", "-n", "-a", "arm64")
    assert code == 0
    assert out.startswith("qemu-system-aarch64 ")
    assert not harness.runs.exists()


def test_boot_prints_the_banner(harness) -> None:  # type: ignore[no-untyped-def]
    code, out, err = harness("boot", "-a", "x86_64", log="orphan")
    assert code == 0, err
    assert "Linux version 6.18.15" in out
    assert "booted in" in out


def test_boot_with_a_program(harness, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    program = tmp_path / "prog"
    program.write_bytes(b"\x7fELF")
    log = tmp_path / "status.log"
    for status, code in ((0, 0), (9, 1)):
        log.write_text(
            "[ 0.0] Linux version 6\n[ 1.0] harness!5ca1ab1e0ddba115!start \n"
            "[ 1.0] harness!5ca1ab1e0ddba115!begin prog\n"
            f"[ 1.0] harness|prog|hello\n[ 1.0] harness!5ca1ab1e0ddba115!end prog status={status} lines=1\n"
            "[ 1.0] harness!5ca1ab1e0ddba115!done ran=1\n"
        )
        got, out, _ = harness("boot", "-a", "x86_64", "--", str(program), "-x", qemu=f"log={log}")
        assert got == code
        assert "x86_64: prog: hello" in out


def test_boot_with_an_argument_that_is_no_text(harness, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    program = tmp_path / "prog"
    program.write_bytes(b"\x7fELF")
    code, _, err = harness("boot", "-a", "x86_64", "--", str(program), "\udcff", log="orphan")
    assert "Traceback" not in err
    assert code == 1  # this log has no such program


@pytest.mark.parametrize(
    ("content", "said"), [(None, "is no file"), (b"#!/bin/sh\n", "is a script"), (b"text", "is no ELF program")]
)
def test_boot_with_what_cannot_run(harness, tmp_path: Path, content: bytes | None, said: str) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "thing"
    if content is not None:
        path.write_bytes(content)
    code, _, err = harness("boot", "-a", "x86_64", "--", str(path))
    assert code == 2
    assert said in err


def test_boot_image(harness, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    code, _, err = harness("boot", "-a", "x86_64", "--image", str(tmp_path / "none"))
    assert code == 2
    assert "there is no kernel image" in err
    assert not harness.runs.exists()
    code, _, err = harness("boot", "--image", str(tmp_path / "none"))
    assert code == 2
    assert "--image is of one architecture" in err


@pytest.fixture
def sources(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    done: list[str] = []

    class Repo:
        def __init__(self, _: Any) -> None:
            pass

        def has_base(self) -> bool:
            return "fetch" in done

        def ensure_base(self) -> str:
            done.append("import")
            return "base"

        def apply(self, _: Any) -> str:
            if os.environ.get("FAIL_APPLY"):
                raise ApplyError("0002-x.patch: kernel/a.c: hunk 1 does not apply", hint="harness tree")
            done.append("apply")
            return "c0ffee"

    monkeypatch.setattr("harness.source.fetch.fetch", lambda *_: done.append("fetch"))
    monkeypatch.setattr("harness.source.repo.KernelRepo", Repo)
    return done


def test_run_is_all_of_it(harness, sources: list[str]) -> None:  # type: ignore[no-untyped-def]
    code, out, err = harness("run", log="patched-x86_64")
    assert code == 0, err
    assert sources == ["fetch", "import", "apply"]
    stages = [line.split()[:-3] for line in out.split("\n\n")[-1].splitlines()]
    assert ["fetch"] in stages
    assert ["arm64", "guest"] in stages
    assert ["total"] in stages
    recorded = json.loads((newest(harness) / "metadata.json").read_text())["stages"]
    assert [stage["stage"] for stage in recorded][:3] == ["fetch", "import", "apply"]
    assert len(recorded) == 3 + 2 * 3

    # What is imported is not fetched again: its tarball may be gone.
    del sources[1:]
    code, _, err = harness("run", log="patched-x86_64")
    assert code == 0, err
    assert sources == ["fetch", "import", "apply"]
    recorded = json.loads((newest(harness) / "metadata.json").read_text())["stages"]
    assert recorded[0]["stage"] == "import"


def test_run_goes_on_with_the_other_architecture(harness, sources: list[str]) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = harness("run", log="patched-x86_64", FAIL_BUILD="x86_64")
    assert sources
    assert code == 6
    assert "arm64: pass" in out
    assert any(line.split()[:3] == ["x86_64", "build", "FAILED"] for line in out.splitlines())


def test_run_stops_when_the_series_does_not_apply(harness, sources: list[str]) -> None:  # type: ignore[no-untyped-def]
    code, _, err = harness("run", FAIL_APPLY="1")
    assert code == 4
    assert "0002-x.patch: kernel/a.c: hunk 1" in err
    metadata = json.loads((newest(harness) / "metadata.json").read_text())
    assert (metadata["state"], metadata["exit_code"]) == ("failed", 4)
    assert metadata["stages"][-1]["state"] == "FAILED"


@pytest.mark.parametrize(
    ("log", "options", "code"),
    [
        ("patched-x86_64", [], 0),
        ("patched-x86_64", ["--expect", "abi,absent"], 1),
        ("patched-x86_64", ["--expect", "abi,", "--kunit", "agent_latency,"], 0),
        ("patched-x86_64", ["--kunit", "agent_latency"], 0),
        ("patched-x86_64", ["--kunit", "absent"], 1),
        ("unpatched-arm64", ["--require-pass"], 0),
        ("panic-arm64", [], 7),
        ("soft", [], 7),
        ("lost", [], 8),
        ("silent", [], 8),
        ("deadline", [], 1),
        ("kunit-fails", [], 1),
    ],
)
def test_parse_judges_saved_logs(harness, log: str, options: list[str], code: int) -> None:  # type: ignore[no-untyped-def]
    got, out, err = harness("parse", str(LOGS / f"{log}.log"), *options)
    assert got == code, err
    assert out
    assert not harness.runs.exists()


def test_parse_writes_to_what_is_no_file_in_its_place(harness, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for flag in ("--json", "--junit"):
        fifo = tmp_path / flag
        os.mkfifo(fifo)
        reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        code, _, err = harness("parse", str(LOGS / "kunit-good.log"), flag, str(fifo))
        assert code in (0, 8), err
        assert os.read(reader, 1 << 20)
        os.close(reader)
        assert fifo.is_fifo()


def test_parse_of_nothing(harness, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    code, _, err = harness("parse", str(tmp_path / "none"))
    assert (code, "cannot read" in err) == (2, True)
    (tmp_path / "empty").write_text("\n")
    code, _, err = harness("parse", str(tmp_path / "empty"))
    assert (code, "is empty" in err) == (2, True)
    (tmp_path / "noise").write_bytes(os.urandom(5000))
    code, _, err = harness("parse", str(tmp_path / "noise"))
    assert code == 8
    assert "Traceback" not in err


def test_shell_of_one_architecture(harness) -> None:  # type: ignore[no-untyped-def]
    code, _, err = harness("shell", "-a", "x86_64", "-a", "arm64")
    assert code == 2
    assert "one architecture" in err
    code, out, _ = harness("shell", "-n", "-a", "arm64", "--", "uname", "-r")
    assert code == 0
    assert "--exec /run/harness/run.sh" in out
    code, out, _ = harness("shell", "-n", "-a", "x86_64", "--backend", "qemu")
    assert out.startswith("qemu-system-x86_64 ")


def test_interrupted_test_ends_its_guest_and_says_so(tmp_path: Path) -> None:
    """The whole command line in a process of its own, Ctrl-C while the guest runs."""
    pids = tmp_path / "pids"
    binaries = tmp_path / "bin"
    binaries.mkdir()
    (binaries / "qemu-system-x86_64").write_text(f'#!/bin/sh\nexec {sys.executable} {HERE}/fakeqemu.py "$@"\n')
    (binaries / "qemu-system-x86_64").chmod(0o755)
    (tmp_path / "image").touch()
    driver = (
        "import sys\nfrom pathlib import Path\nfrom harness import cli\nfrom harness.guest import init\n"
        f"init.compile_init = lambda *_: Path({str(ROOT / 'qemu/init.c.j2')!r})\nsys.exit(cli.main(sys.argv[1:]))\n"
    )
    env = {
        **os.environ,
        "PATH": f"{binaries}:{os.environ['PATH']}",
        "FAKE_QEMU": f"log={LOGS / 'silent.log'} then=hang stubborn pids={pids}",
        "HARNESS_CACHE_DIR": str(tmp_path / "cache"),
        "HARNESS_RUNS_DIR": str(tmp_path / "runs"),
        "HARNESS_PROJECT": str(ROOT),
        "HARNESS_ACCEL": "tcg",
    }
    command = [sys.executable, "-c", driver, "boot", "-a", "x86_64", "--image", str(tmp_path / "image")]
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, start_new_session=True) as process:
        log = tmp_path / "runs/latest/x86_64/console.log"
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and not (log.is_file() and b"begin trig" in log.read_bytes()):
            time.sleep(0.05)
        os.kill(process.pid, 2)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"interrupted" in err
    assert b"begin trig" in log.read_bytes()
    assert json.loads((tmp_path / "runs/latest/metadata.json").read_text())["state"] == "interrupted"
    for _ in range(200):
        if not any(Path(f"/proc/{pid}").exists() and _running(pid) for pid in pids.read_text().split()):
            break
        time.sleep(0.05)
    else:
        raise AssertionError("a process of the guest is left")


def _running(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_every_help_is_worth_reading(harness) -> None:  # type: ignore[no-untyped-def]
    for verb in ("boot", "test", "run", "shell", "parse"):
        code, out, _ = harness(verb, "--help")
        assert code == 0
        assert len(out.splitlines()) > 12


def test_programs_with_a_guest_of_their_own(harness) -> None:  # type: ignore[no-untyped-def]
    _, out, _ = harness("test", "-a", "x86_64", log="patched-x86_64", PROGRAMS="abi cpuidle")
    run = newest(harness)
    plain, power = (
        json.loads((run / "metadata.json").read_text())["architectures"][name] for name in ("x86_64", "x86_64-power")
    )
    assert "cpuidle_emul=1" not in plain["argv"][plain["argv"].index("-append") + 1]
    assert "cpuidle_emul=1" in power["argv"][power["argv"].index("-append") + 1].split()
    assert power["argv"][power["argv"].index("-cpu") + 1] == "Nehalem"
    assert (run / "x86_64-power/config").is_file()
    rows = [line.split()[:2] for line in out.splitlines()]
    assert ["x86_64-power", "cpuidle"] in rows
    assert ["x86_64", "cpuidle"] not in rows
    assert ["x86_64", "abi"] in rows


@pytest.mark.parametrize(
    ("argv", "booted"),
    [
        (["abi"], {"x86_64"}),
        (["cpuidle"], {"x86_64-power"}),
        (["-g", "power-slow"], {"x86_64-power-slow"}),
        (["-g", "power", "-g", "power-slow"], {"x86_64-power", "x86_64-power-slow"}),
        (["-g", "power", "-g", "power-slow", "cpuidle"], {"x86_64-power"}),
        (["abi", "cpuidle"], {"x86_64", "x86_64-power"}),
    ],
)
def test_which_guests_are_booted(harness, argv: list[str], booted: set[str]) -> None:  # type: ignore[no-untyped-def]
    harness("test", "-a", "x86_64", *argv, log="patched-x86_64", PROGRAMS="abi cpufreq cpuidle")
    assert {path.name for path in newest(harness).iterdir() if path.is_dir()} == booted


def test_a_program_that_runs_in_no_guest_of_those_named(harness) -> None:  # type: ignore[no-untyped-def]
    for more in ([], ["-n"]):
        code, _, err = harness("test", "-a", "x86_64", "-g", "numa", "abi", *more, PROGRAMS="abi numa")
        assert code == 2
        assert "abi does not run in guest numa\n" in err
        assert "name programs of: numa" in err
    assert not harness.runs.exists()


@pytest.mark.parametrize("verb", ["test", "run"])
def test_virtme_ng_makes_no_guests(harness, verb: str) -> None:  # type: ignore[no-untyped-def]
    code, _, err = harness(verb, "-a", "x86_64", "-g", "numa", "--backend", "vng")
    assert code == 2
    assert "guests of qemu/guests need --backend qemu" in err


def test_a_program_is_no_file_for_results(harness) -> None:  # type: ignore[no-untyped-def]
    code, _, err = harness("test", "-a", "x86_64", "--json", "abi")
    assert code == 2
    assert "a file called abi, which is a test program" in err
    assert "--json=FILE abi" in err
    assert not harness.runs.exists()


def test_an_unknown_guest_lists_the_known(harness) -> None:  # type: ignore[no-untyped-def]
    code, _, err = harness("test", "-a", "x86_64", "-g", "warp")
    assert code == 2
    assert "unknown guest 'warp'" in err
    assert "power-shared" in err
    code, out, _ = harness("test", "-n", "-a", "x86_64", "-g", "power-shared")
    assert code == 0
    assert "cpufreq_emul_shared=1" in out
    assert "Nehalem" in out


def test_a_mutant_that_nobody_notices(harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("harness.verbs.mutate.source", lambda *_: "c0ffee")
    monkeypatch.setattr("harness.build.kernel.source_commit", lambda *_, **__: "c0ffee")
    words = f"log={only_window(tmp_path)}"
    code, out, err = harness("mutate", "-a", "x86_64", "no-window", qemu=words, PROGRAMS="window")
    assert code == 1, out + err
    rows = [line.split() for line in out.splitlines() if line.startswith("x86_64")]
    assert [row[1:4] for row in rows] == [["none", "window", "passed"], ["no-window", "window", "survived"]]
    assert "x86_64: no-window: window: survived" in err
    run = newest(harness)
    assert [trial["state"] for trial in json.loads((run / "mutants.json").read_text())] == ["passed", "survived"]
    assert "agent_mutant=1" in (run / "x86_64-no-window-window/reproduce.sh").read_text()


def test_no_mutant_is_tried_where_the_test_fails_anyway(
    harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("harness.verbs.mutate.source", lambda *_: "c0ffee")
    monkeypatch.setattr("harness.build.kernel.source_commit", lambda *_, **__: "c0ffee")
    words = f"log={late_log(tmp_path)}"
    code, out, err = harness("mutate", "-a", "x86_64", "no-window", qemu=words, PROGRAMS="window")
    assert code == 1
    assert "none" in out and "no-window" not in out
    assert "x86_64: none: window: failed" in err


def test_mutants_are_listed(harness) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = harness("mutate", "--list", "window")
    assert code == 0
    assert "a task that blocks opens no window" in out
    assert "boost" not in out
    code, _, err = harness("mutate", "none-such")
    assert code == 2
    assert "there is no mutant 'none-such'" in err
