"""Every kind of report that a kernel makes is found, told apart and bounded; what a test prints never is one."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import UsageError
from harness.guest import log
from harness.guest.splat import Rules, Splat, find

ROOT = Path(__file__).resolve().parent.parent
LOGS = Path(__file__).resolve().parent / "logs"
RULES = Rules.load(ROOT / "qemu/splats.yaml")


def splats(name: str) -> list[Splat]:
    return find(log.read(log.load(LOGS / f"{name}.log")), RULES)


@pytest.mark.parametrize(
    ("name", "kinds", "first"),
    [
        ("panic-x86_64", ["panic"], "Kernel panic - not syncing: sysrq triggered crash"),
        ("panic-arm64", ["panic"], "Kernel panic - not syncing: sysrq triggered crash"),
        ("bug-x86_64", ["oops", "panic"], "Oops: invalid opcode: 0000 [#1]"),
        ("bug-arm64", ["oops", "panic"], "Internal error: Oops - BUG:"),
        ("warn-x86_64", ["warning"], "WARNING: CPU: 0 PID: 39 at __x64_sys_getsid"),
        ("warn-arm64", ["warning"], "WARNING: CPU: 0 PID: 40 at __arm64_sys_getsid"),
        ("hung-x86_64", ["hung task"] * 4, "INFO: task trig:38 blocked for more than 30 seconds."),
        ("hung-arm64", ["hung task"] * 4, "INFO: task trig:38 blocked for more than 30 seconds."),
        ("oom-x86_64", ["oom", "page allocation"], "trig invoked oom-killer:"),
        ("oom-arm64", ["oom"], "trig invoked oom-killer:"),
        ("atomic", ["atomic sleep"] * 2, "BUG: scheduling while atomic: trig/39/0x00000002"),
        ("kasan", ["kasan"], "BUG: KASAN: slab-use-after-free in agent_window_renew"),
        ("lockdep", ["lockdep"], "WARNING: possible circular locking dependency detected"),
        ("waitcontext", ["lockdep"], "[ BUG: Invalid wait context ]"),
        ("ubsan", ["ubsan"], "UBSAN: array-index-out-of-bounds in kernel/sched/agent.c:118:21"),
        ("kunit-oops", ["oops", "panic"], "BUG: kernel NULL pointer dereference"),
    ],
)
def test_recorded_reports(name: str, kinds: list[str], first: str) -> None:
    found = splats(name)
    assert [splat.kind for splat in found] == kinds
    assert found[0].headline.startswith(first)
    assert all(1 < len(splat.lines) <= 120 for splat in found)
    assert not any("harness" in line for splat in found for line in splat.lines)
    text = log.load(LOGS / f"{name}.log").split("\n")
    assert found[0].headline in text[found[0].first - 1]


@pytest.mark.parametrize(
    ("name", "kind"), [("rcu-x86_64", "rcu stall"), ("rcu-arm64", "rcu stall"), ("soft", "soft lockup")]
)
def test_lockups_come_first(name: str, kind: str) -> None:
    assert splats(name)[0].kind == kind


@pytest.mark.parametrize(
    "name", ["patched-x86_64", "unpatched-arm64", "deadline", "segv", "exit", "noplan", "missing", "silent", "reboot"]
)
def test_healthy_kernels_report_nothing(name: str) -> None:
    assert splats(name) == []


def test_the_trace_is_whole_and_ends_where_it_ends() -> None:
    (report,) = splats("warn-x86_64")
    assert report.lines[-1] == "---[ end trace 0000000000000000 ]---"
    assert any("do_syscall_64" in line for line in report.lines)
    assert splats("hung-x86_64")[0].lines[-1].strip() == "</TASK>"
    assert splats("hung-arm64")[0].lines[-1].startswith(" ")
    (kasan,) = splats("kasan")
    assert (kasan.lines[0], kasan.lines[-1]) == ("=" * 66, "=" * 66)
    assert any("Freed by task" in line for line in kasan.lines)


SINGLE = [
    ("Kernel panic - not syncing: Attempted to kill init! exitcode=0x0000000b", "panic"),
    ("BUG: unable to handle page fault for address: ffffc90000a00000", "oops"),
    ("Unable to handle kernel NULL pointer dereference at virtual address 0000000000000000", "oops"),
    ("Oops: general protection fault, probably for non-canonical address 0x6b6b: 0000 [#1] SMP", "oops"),
    ("kernel BUG at kernel/sched/fair.c:1234!", "oops"),
    ("WARNING: CPU: 1 PID: 77 at kernel/sched/fair.c:99 select_task_rq_fair+0x1/0x2", "warning"),
    ("WARNING: kernel/sched/fair.c:99 at select_task_rq_fair+0x1/0x2, CPU#1: abi/77", "warning"),
    ("WARNING: suspicious RCU usage", "lockdep"),
    ("WARNING: possible recursive locking detected", "lockdep"),
    ("WARNING: inconsistent lock state", "lockdep"),
    ("WARNING: HARDIRQ-safe -> HARDIRQ-unsafe lock order detected", "lockdep"),
    ("WARNING: bad unlock balance detected!", "lockdep"),
    ("WARNING: abi/77 still has locks held!", "lockdep"),
    ("INFO: trying to register non-static key.", "lockdep"),
    ("BUG: MAX_LOCKDEP_ENTRIES too low!", "lockdep"),
    ("rcu: INFO: rcu_preempt self-detected stall on CPU", "rcu stall"),
    (
        "rcu: INFO: rcu_preempt detected expedited stalls on CPUs/tasks: { 0-... } 21 jiffies s: 57 root: 0x1/.",
        "rcu stall",
    ),
    (
        "rcu: rcu_preempt kthread starved for 5250 jiffies! g-995 f0x0 RCU_GP_WAIT_FQS(5) ->state=0x0 ->cpu=0",
        "rcu stall",
    ),
    ("INFO: rcu_tasks detected stalls on tasks:", "rcu stall"),
    ("watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [abi:77]", "soft lockup"),
    ("watchdog: CPU0: Watchdog detected hard LOCKUP on cpu 1", "hard lockup"),
    ("BUG: workqueue lockup - pool cpus=0 node=0 flags=0x0 nice=0 stuck for 31s!", "workqueue lockup"),
    ("Out of memory: Killed process 77 (abi) total-vm:1kB, anon-rss:1kB", "oom"),
    ("Memory cgroup out of memory: Killed process 77 (abi) total-vm:1kB", "oom"),
    ("BUG: sleeping function called from invalid context at kernel/locking/mutex.c:585", "atomic sleep"),
    ("BUG: using smp_processor_id() in preemptible [00000000] code: abi/77", "atomic sleep"),
    ("BUG: KCSAN: data-race in agent_a / agent_b", "kcsan"),
    ("BUG: KFENCE: out-of-bounds read in agent_a+0x1/0x2", "kfence"),
    ("KASAN: null-ptr-deref in range [0x0000000000000000-0x0000000000000007]", "kasan"),
    ("kmemleak: 3 new suspected memory leaks (see /sys/kernel/debug/kmemleak)", "kmemleak"),
    ("BUG: Bad page state in process abi  pfn:00001", "bad page"),
    ("list_add corruption. prev->next should be next (1), but was 2. (prev=3).", "corruption"),
    ("BUG: something that nobody has thought of", "bug"),
]


@pytest.mark.parametrize(("message", "kind"), SINGLE)
@pytest.mark.parametrize("prefix", ["[    1.000000] ", "[    1.000000][  T12] ", "<4>[    1.000000] ", ""])
def test_headlines(message: str, kind: str, prefix: str) -> None:
    assert [splat.kind for splat in find(log.read(f"{prefix}{message}\n"), RULES)] == [kind]


@pytest.mark.parametrize(("message", "kind"), SINGLE)
def test_what_a_test_prints_is_no_report(message: str, kind: str) -> None:
    assert kind
    assert find(log.read(f"[    1.000000] harness|abi|{message}\n"), RULES) == []
    assert find(log.read(f"[    1.000000] harness|abi|# {message}\n"), RULES) == []


@pytest.mark.parametrize(
    "message",
    [
        "INFO: lockdep is turned off.",
        "Command line: panic=-1 oops=panic",
        "rcu: Preemptible hierarchical RCU implementation.",
        "rcu: INFO: Stall ended before state dump start",
        "RAMDISK: [mem 0x1-0x2]",
        "Lock dependency validator: Copyright (c) 2006 Red Hat, Inc., Ingo Molnar",
        "kasan: KernelAddressSanitizer initialized",
        "x86/mm: Checked W+X mappings: passed, no W+X pages found.",
        "debug: BUG: not at the start",
    ],
)
def test_everyday_messages_are_no_report(message: str) -> None:
    assert find(log.read(f"[    1.000000] {message}\n"), RULES) == []


def test_suites_that_provoke_reports_are_excused_and_still_listed() -> None:
    text = (
        "[    1.0] KTAP version 1\n[    1.0] 1..2\n[    1.0]     # Subtest: kunit_fault\n[    1.0]     1..1\n"
        "[    1.0] BUG: kernel NULL pointer dereference, address: 0\n[    1.0] ---[ end trace 0 ]---\n"
        "[    1.0]     ok 1 x\n[    1.0] ok 1 kunit_fault\n[    1.1] BUG: kernel NULL pointer dereference, address: 0\n"
    )
    first, second = find(log.read(text), RULES)
    assert "NULL" in first.excused
    assert second.excused == ""


RACE = "[    1.0] {bar}\n[    1.0] BUG: KCSAN: data-race in {one} / {two}\n[    1.0]  {two}+0x1/0x2\n[    1.0] {bar}\n"


def test_races_without_a_function_of_the_series_are_listed_and_do_not_count() -> None:
    bar = "=" * 66
    (theirs,) = find(log.read(RACE.format(bar=bar, one="try_to_wake_up", two="__schedule")), RULES)
    assert theirs.kind == "kcsan"
    assert "without a function of the series" in theirs.excused
    (ours,) = find(log.read(RACE.format(bar=bar, one="__schedule", two="sched_agent_wake")), RULES)
    assert ours.excused == ""


def test_kinds_that_a_run_provokes_are_excused() -> None:
    text = "[    1.0] a.out invoked oom-killer: gfp_mask=0\n[    1.0] WARNING: CPU: 0 PID: 1 at a.c:1 f\n"
    oom, warning = find(log.read(text), RULES.excusing({"oom": "on purpose"}))
    assert (oom.kind, oom.excused) == ("oom", "on purpose")
    assert (warning.kind, warning.excused) == ("warning", "")


def test_long_reports_are_bounded_and_say_so() -> None:
    text = "".join(f"[    1.0] {line}\n" for line in ["Kernel panic - not syncing: x", *["more"] * 500])
    (report,) = find(log.read(text), RULES)
    assert len(report.lines) <= 60
    assert report.shown(5).count("\n") == 5
    assert "more lines in the log" in report.shown(5)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rules: [{kind: x, start: '('}]", "is no regular expression"),
        ("rules: [{kind: x}]", "the field 'start' is missing"),
        ("rules: [{kind: x, start: y}]\nexclusions: [{why: because}]", "needs `start`, `suite` or `lacks`"),
        ("rules: {", r":\d+:\d+: "),
    ],
)
def test_broken_rules_get_one_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "splats.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=said) as caught:
        Rules.load(path)
    assert "\n" not in caught.value.message
