"""measure: statistics against known values, cells and their answers, the verb with a QEMU that replays a boot."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from harness import cli, data
from harness.data import Machine
from harness.errors import UsageError
from harness.guest import init
from harness.guest import machine as machines
from harness.measure import cells, statistics, summary
from harness.measure.cells import Cell, Reading

ROOT = Path(__file__).resolve().parent.parent
HERE = Path(__file__).resolve().parent
LOG = HERE / "logs/measure.log"
NONCE = "5ca1ab1e0ddba115"
SMALL = ("--steps", "20", "--arms", "default,placebo,rr", "--threads", "both", "--loads", "hogs:2")


# Statistics


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (19, 2.0930), (200, 1.9719)]
)
def test_students_t(freedom: int, quantile: float) -> None:
    assert statistics.t_quantile(0.975, freedom) == pytest.approx(quantile, abs=1e-4)


def test_there_is_no_quantile_of_nothing() -> None:
    for probability, freedom in ((1.0, 3), (0.4, 3), (0.9, 0)):
        with pytest.raises(ValueError, match="no such quantile"):
            statistics.t_quantile(probability, freedom)
    with pytest.raises(ValueError, match="empty"):
        statistics.quantile({}, 0.5)
    for values in ([], [1.0, 0.0]):
        with pytest.raises(ValueError, match="positive"):
            statistics.geometric_mean(values)


def test_pairs_are_compared_by_seed() -> None:
    ratio = statistics.paired_ratio({1: 2.0, 2: 8.0, 3: 5.0}, {2: 4.0, 1: 1.0, 9: 7.0})
    assert ratio is not None
    assert (ratio.mean, ratio.low, ratio.high, ratio.pairs) == (pytest.approx(2.0),) * 3 + (2,)
    assert ratio.differs


def test_an_interval_by_hand() -> None:
    ratio = statistics.paired_ratio({1: 1.0, 2: math.e}, {1: 1.0, 2: 1.0})
    assert ratio is not None
    # Logarithms 0 and 1: mean 0.5, standard error 0.5, one degree of freedom.
    assert math.log(ratio.mean) == pytest.approx(0.5)
    assert math.log(ratio.high) == pytest.approx(0.5 + 12.7062 * 0.5, abs=1e-3)
    assert math.log(ratio.low) == pytest.approx(0.5 - 12.7062 * 0.5, abs=1e-3)
    assert not ratio.differs


def test_one_pair_has_no_interval_and_none_no_ratio() -> None:
    ratio = statistics.paired_ratio({1: 3.0}, {1: 1.0})
    assert ratio == statistics.Ratio(pytest.approx(3.0), 0.0, math.inf, 1)
    assert ratio is not None and not ratio.differs
    assert statistics.paired_ratio({1: 3.0}, {2: 1.0}) is None
    assert statistics.paired_ratio({1: 0.0}, {1: 1.0}) is None


def guest_bucket(ns: int) -> int:
    """As the benchmark does it."""
    eighths, shift = ns * 8 // 1000, 0
    while eighths >> shift >= 16:
        shift += 1
    return shift * 8 + (eighths >> shift)


@pytest.mark.parametrize("ns", [0, 124, 125, 1999, 2000, 2001, 14841, 100_000, 2_097_929, 9_999_999_999])
def test_buckets_are_those_of_the_guest(ns: int) -> None:
    bucket = guest_bucket(ns)
    assert statistics.bucket_start(bucket) <= ns / 1000 < statistics.bucket_start(bucket + 1)
    if bucket >= 16:
        assert statistics.bucket_start(bucket + 1) <= statistics.bucket_start(bucket) * 1.125


def test_pooled_quantiles() -> None:
    total = statistics.pooled([{8: 98, 40: 1}, {8: 1}])
    assert total == {8: 99, 40: 1}
    assert statistics.quantile(total, 0.5) == 1.0
    assert statistics.quantile(total, 0.98) == 1.0
    assert statistics.quantile(total, 0.99) == 16.0
    assert statistics.quantile(total, 1.0) == 16.0


# Cells


def test_the_plan_leaves_out_what_says_nothing() -> None:
    asked = cells.plan(["default", "placebo", "rr", "idle"], ["orch", "both"], ["udp"])
    assert [(cell.arm, cell.threads) for cell in asked] == [
        ("default", "orch"),
        ("placebo", "orch"),
        ("rr", "orch"),
        ("rr", "both"),
        ("idle", "orch"),
    ]
    assert asked[1].argument == asked[0].argument == "step/default/orch/udp"
    with pytest.raises(UsageError, match="unknown threads"):
        cells.plan(["rr"], ["all"], ["udp"])


def test_order_depends_on_the_seed_alone() -> None:
    asked = cells.plan(cells.ARMS, cells.THREADS, cells.LOADS)
    assert cells.shuffled(asked, 3) == cells.shuffled(reversed(asked), 3)
    assert sorted(cells.shuffled(asked, 3)) == sorted(asked)
    assert cells.shuffled(asked, 3) != cells.shuffled(asked, 4)


def line(arm: str = "rr", **changed: object) -> str:
    values = {**dict.fromkeys(cells.FIELDS, 7), "hist": "3:1,9:2", "tool_hist": "4:6", **changed}
    return f"step arm={arm} threads=both load=udp " + " ".join(f"{name}={value}" for name, value in values.items())


ASKED = [Cell("udp", "both", "rr"), Cell("udp", "both", "nice")]


def test_answers() -> None:
    answers = cells.read(["bench cpus=2", line(mean=12), "stat a=1", line("nice"), "bench done=2"], ASKED, 5)
    assert answers.complete
    assert answers.errors == []
    assert answers.others == ["bench cpus=2", "stat a=1"]
    reading = answers.readings[ASKED[0]]
    assert (reading.seed, reading.values["mean"], reading.wakes, reading.tool_wakes) == (5, 12, {3: 1, 9: 2}, {4: 6})


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([line()], "did not finish: 1 of 2 cells are missing"),
        ([line(), "bench done=1"], "did not finish"),
        ([], "did not finish: 2 of 2"),
        ([line("nice"), line(), "bench done=2"], "not asked for"),
        ([line(mean="x"), line("nice"), "bench done=2"], "step/rr/both/udp: cannot be read"),
        (
            ["step arm=rr threads=both load=udp failed=tool error=EPERM", line("nice"), "bench done=2"],
            "step/rr/both/udp: tool: EPERM",
        ),
    ],
)
def test_what_is_missing_or_refused_is_told(lines: list[str], said: str) -> None:
    answers = cells.read(lines, ASKED, 1)
    assert any(said in error for error in answers.errors), answers.errors


# The summary


def readings(means: list[int], work: int = 10, late: int = 0) -> list[Reading]:
    common = dict.fromkeys(cells.FIELDS, 0) | {"wakes": 10, "tool_wakes": 20, "elapsed": 1000, "work": work}
    return [
        Reading(seed, common | {"mean": mean, "late100": late, "max": 9000}, {8: 10}, {8: 20})
        for seed, mean in enumerate(means)
    ]


def test_rows_are_ratios_of_the_same_boots() -> None:
    default, rr = Cell("udp", "orch", "default"), Cell("udp", "both", "rr")
    found = summary.rows({rr: readings([500, 1000], work=5, late=1), default: readings([1000, 2000])})
    assert [row.cell for row in found] == [default, rr]
    base, other = found
    assert base.step_ratio is None
    assert other.step_ratio is not None and other.work_ratio is not None
    assert other.step_ratio.mean == pytest.approx(0.5)
    assert other.work_ratio.mean == pytest.approx(0.5)
    assert (other.late_100us, other.boots, other.wakes, other.max_us) == (0.1, 2, 20, 9.0)
    swapped = summary.rows({rr: readings([500]), default: readings([1000])}, against=("rr", "both"))
    assert swapped[0].step_ratio is not None and swapped[0].step_ratio.mean == pytest.approx(2.0)
    json.dumps(summary.as_json(swapped), allow_nan=False)


def test_what_both_do_together_is_weighed_by_what_it_costs() -> None:
    default, rr = Cell("udp", "orch", "default"), Cell("udp", "both", "rr")
    common = dict.fromkeys(cells.FIELDS, 0) | {"wakes": 10, "tool_wakes": 20, "mean": 1000}
    # 10 for a message and 2 for an iteration: 900 of 1000 are used; then all of 2000, for 3 % less of both.
    one = common | {"elapsed": 1000, "work": 80, "load_cpu": 800, "agent_work": 50, "orch_cpu": 60, "tool_cpu": 40}
    two = common | {"elapsed": 2000, "work": 97, "load_cpu": 1000, "agent_work": 388, "orch_cpu": 800}
    found = summary.rows({default: [Reading(1, one, {8: 10}, {8: 20})], rr: [Reading(1, two, {8: 10}, {8: 20})]})
    assert found[0].together_ratio is None and found[1].together_ratio is not None
    assert found[1].together_ratio.mean == pytest.approx((97 * 10 + 388 * 2) / 2000 / 0.9)
    # A step takes 1000 of which a tenth, and then 4 of 10, is its own CPU time.
    assert found[1].wait_ratio is not None and found[1].wait_ratio.mean == pytest.approx(0.6 / 0.9)
    assert [row.wait_us for row in found] == pytest.approx([0.9, 0.6])
    idle = summary.rows({default: readings([1000], work=0), rr: readings([1000], work=0)})
    assert idle[1].together_ratio is None


def test_few_boots_and_a_placebo_that_works_are_told() -> None:
    default, placebo = Cell("udp", "orch", "default"), Cell("udp", "orch", "placebo")
    same = summary.rows({default: readings([1000] * 20), placebo: readings([990, 1010] * 10)})
    assert summary.cautions(same) == []
    other = summary.rows({default: readings([1000] * 20), placebo: readings([1100, 1110] * 10)})
    assert any("placebo differs" in said for said in summary.cautions(other))
    assert any("too few" in said for said in summary.cautions(same[:0]))
    text = summary.render(other)
    assert "placebo" in text and "1.1" in text


# The machines


@pytest.mark.parametrize("name", ["x86_64-icount", "arm64-icount"])
def test_the_machine_counts_instructions(name: str) -> None:
    machine = data.by_name(ROOT / "qemu/machines", name, Machine, "machine")
    words = machines.argv(machine, kernel=Path("K"), initrd=Path("I"), cmdline="c", serial=Path("a,b"))
    assert words[words.index("-accel") + 1] == "tcg"
    assert words[words.index("-icount") + 1] == "shift=0,sleep=off"
    assert "file,id=console,path=a,,b" in words
    assert machine.minimum == "10.0"


# The verb


@pytest.fixture
def harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    """Calls the command line with a fake QEMU and a kernel image of its own."""
    binaries = tmp_path / "bin"
    binaries.mkdir()
    (binaries / "qemu-system-x86_64").write_text(f'#!/bin/sh\nexec {sys.executable} {HERE}/fakeqemu.py "$@"\n')
    (binaries / "qemu-system-x86_64").chmod(0o755)
    monkeypatch.setenv("PATH", f"{binaries}:/usr/bin:/bin")
    monkeypatch.setenv("HARNESS_PROJECT", str(ROOT))
    monkeypatch.setenv("HARNESS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("HARNESS_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setattr(init, "compile_init", lambda *_: ROOT / "qemu/init.c.j2")
    (tmp_path / "image").write_bytes(b"kernel")
    (tmp_path / "bench").write_bytes(b"\x7fELF")

    class Built:
        directory = tmp_path

    monkeypatch.setattr("harness.build.selftests.build_for", lambda *_, **__: Built)

    def call(*argv: str, log: Path = LOG, qemu: str = "") -> tuple[int, str, str, dict[str, Any]]:
        monkeypatch.setenv("FAKE_QEMU", f"log={log} {qemu}")
        words = ("measure", "-a", "x86_64", "--image", str(tmp_path / "image"), "--boots", "1", *argv)
        code = cli.main(words)
        record = tmp_path / "runs/latest/measure.json"
        return code, *capsys.readouterr(), json.loads(record.read_text()) if record.is_file() else {}

    return call


def test_a_boot_becomes_a_table(harness) -> None:  # type: ignore[no-untyped-def]
    code, out, err, value = harness(*SMALL)
    assert code == 0, err
    assert "TCG counting instructions, QEMU 99.1: 1 of 1 boots counted" in out
    assert "caution: 1 boots are too few" in out
    found = value["architectures"]["x86_64"]
    steps = {(row["cell"]["arm"], row["cell"]["threads"]): round(row["step_us"]) for row in found["summary"]}
    assert steps == {("default", "orch"): 1207, ("placebo", "orch"): 1418, ("rr", "both"): 715}
    assert len(found["readings"]) == 3
    assert found["failures"] == []


@pytest.mark.parametrize(
    ("edit", "code", "said"),
    [
        (("bench status=0", "bench status=1"), 1, "does not count"),
        ((f"harness!{NONCE}!done", "gone"), 8, "does not count"),
        (("] harness|bench|bench done", "] Kernel panic - not syncing: x\n[ 2.0] no|"), 7, "does not count"),
        (("load=hogs:2 steps", "load=hogs:3 steps"), 1, "not asked for"),
        (("p99=20835 max=20835", "p99=20835"), 1, "cannot be read"),
    ],
)
def test_a_boot_that_went_wrong_is_told_and_never_counted(  # type: ignore[no-untyped-def]
    harness, tmp_path: Path, edit: tuple[str, str], code: int, said: str
) -> None:
    text = LOG.read_text()
    assert edit[0] in text
    (tmp_path / "edited.log").write_text(text.replace(*edit))
    got, out, err, value = harness(*SMALL, log=tmp_path / "edited.log")
    assert got == code, err
    assert said in err
    assert value["architectures"]["x86_64"]["failures"]
    if "does not count" in said:
        assert "0 of 1 boots counted" in out


def test_a_guest_that_hangs_is_lost(harness) -> None:  # type: ignore[no-untyped-def]
    code, _, err, value = harness(*SMALL, "--timeout", "2", log=HERE / "logs/silent.log", qemu="then=hang")
    assert code == 8, err
    assert value["architectures"]["x86_64"]["summary"] == []


def test_usage(harness) -> None:  # type: ignore[no-untyped-def]
    for argv in (("--boots", "0"), ("--arms", ","), ("--against", "rr/all"), ("-a", "arm64")):
        assert harness(*argv)[0] == 2, argv


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        *(("--timeout", value) for value in ("nan", "inf", "-5")),
        *(("--seed", "-1"), ("--steps", "0"), ("--steps", "200001"), ("--seconds", "-1"), ("--arms", "nope")),
        *(("--arms", "rr:x"), ("--loads", "hogs:x"), ("--share", "zzz"), ("--share", "spin+"), ("--against", "nope")),
        ("--against", "pin"),
    ],
)
def test_what_the_guest_would_refuse_is_refused_before_a_boot(harness, flag: str, value: str) -> None:  # type: ignore[no-untyped-def]
    code, out, err, record = harness(f"{flag}={value}")
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert record == {}


def test_what_the_benchmark_takes_is_taken() -> None:
    arms = ["default", "placebo", "nice:-5", "slice:100:-10", "rr:3", "window:500:100:3000", "pin", "idle"]
    assert cells.plan(arms, ["both"], ["none", "hogs:4", "storm", "udp:2"])
    cells.check_shares(["4xspin+1xburst:480:20@window", "spin%a/b+spin@nice:-10%b"])


def test_dry_run_prints_what_can_be_pasted(harness) -> None:  # type: ignore[no-untyped-def]
    code, out, _, value = harness(*SMALL, "-n", "--", "--uid", "65534")
    assert code == 0
    assert "-icount 'shift=0,sleep=off'" in out or "-icount shift=0,sleep=off" in out
    assert "--uid 65534" in out
    assert value == {}
