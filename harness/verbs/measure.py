"""``harness measure``: wake latency, step time and CPU shares, on a machine that counts instructions."""

from __future__ import annotations

import argparse
import dataclasses
import json
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import options
from harness.context import Context
from harness.data import Arch
from harness.errors import EnvironmentFailure, ExitCode, HarnessError, UsageError
from harness.fs import deliver, json_text, write_json
from harness.guest import emulator
from harness.measure import cells, guest, summary
from harness.measure.cells import Answers, Cell
from harness.measure.guest import Guest, Outcome
from harness.proc import quoted
from harness.report import Stopwatch
from harness.results import model
from harness.results.run import RunDirectory
from harness.settings import seconds

NAME = "measure"
DESCRIPTION = """\
Boots each architecture --boots times on a QEMU machine whose time is the number of instructions executed, runs the
benchmark of the series in it and prints a table: for each load and arm the share of wakes later than 100 us and 1 ms,
the pooled p50 and p99, the mean step, what it takes beyond its own CPU time (wait), the work of the load, and that of
load and agent together; with the latter each is weighed by the CPU time it takes under --against, so what is below 1
was lost to switching, interrupts or idling. An emulated CPU can be slower than another one in a boot: the mean step
depends on where it runs, its wait does not.
Ratios are to --against in the same boots. Times are us. Same seed, same kernel: same digits, on whatever host. These
are figures of an emulator (TCG): they compare arms, they do not predict any hardware; a difference below 30 us of wake
latency means nothing.

Arms: default, placebo (the default again), nice[:NICE], slice[:US[:NICE]], rr[:PRIORITY], idle (the load is
SCHED_IDLE), pin, window[:BURST[:TARGET[:WINDOW]]] in us. Loads: none, hogs:N per CPU, storm:N senders and receivers,
udp:N pairs per CPU.

--share TASKS measures CPU shares instead, e.g. 4xspin+1xburst:480:20@window (bursts of 480 us, sleeps of 20 us).
--operations measures, on one CPU and with the feature switched off, what short system calls cost; --before FILE takes
the measure.json of another kernel to compare with.

What stands after `--` goes to the benchmark as it is, to run the window arms in a cgroup and without privileges:
  harness measure -- --cgroup /sys/fs/cgroup/agent --set agent.latency.enable=1 --uid 65534

A boot that is lost, panics or does not finish is told and its cells do not count. measure.json in the run directory has
every reading. Exit code: 0, 1 when a cell was refused, 7 or 8 when a guest crashed or was lost.
"""
WANTED_BOOTS = 20


@dataclass
class Measured:
    """What came of one architecture."""

    arch: Arch
    answers: list[Answers] = field(default_factory=list)
    failures: list[dict[str, Any]] = field(default_factory=list)
    codes: list[ExitCode] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    record: dict[str, Any] = field(default_factory=dict)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See DESCRIPTION."""
    options.add_guest(parser)
    parser.add_argument("--boots", type=int, default=WANTED_BOOTS, metavar="N", help="boots (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="of the first boot (default: 1)")
    parser.add_argument("--steps", type=int, default=200, metavar="N", help="steps of a cell (default: %(default)s)")
    parser.add_argument("--arms", default=",".join(cells.ARMS), metavar="ARM,...", help="(default: %(default)s)")
    parser.add_argument("--loads", default=",".join(cells.LOADS), metavar="LOAD,...", help="(default: %(default)s)")
    parser.add_argument(
        "--threads", default="orch,both", metavar="WHICH,...", help="orch, both: who is treated so (default: each)"
    )
    parser.add_argument("--against", metavar="ARM[/THREADS]", help="what ratios are to (default: default)")
    parser.add_argument("--share", action="append", default=[], metavar="TASKS", help="CPU shares (repeatable)")
    parser.add_argument("--seconds", type=int, default=10, metavar="T", help="of guest time for --share")
    parser.add_argument("--operations", action="store_true", help="cost of system calls when the feature is not used")
    parser.add_argument("--before", type=Path, metavar="FILE", help="measure.json to compare operations with")
    parser.add_argument("--image", type=Path, metavar="FILE", help="boot this kernel image in place of the built one")
    parser.add_argument("--append", default="", metavar="WORDS", help="more for the kernel command line")
    parser.add_argument("--json", type=Path, metavar="FILE", help="a copy of measure.json")
    parser.add_argument("--timeout", type=float, default=3600.0, metavar="SECONDS", help="deadline of one boot")
    parser.add_argument("bench", nargs="*", metavar="OPTION", help="options of the benchmark, after --")


def run(context: Context, args: argparse.Namespace) -> int:
    """Build, boot, count, print; see DESCRIPTION."""
    options.check_files(args.json)
    archs = options.archs(context, args)
    if args.image and len(archs) != 1:
        raise UsageError("--image is of one architecture", hint=f"harness measure --arch {archs[0].name} --image ...")
    options.check_least("--boots", args.boots, 1)
    options.check_least("--seed", args.seed, 0, cells.MOST_SEED)
    options.check_least("--steps", args.steps, 1, cells.MOST_STEPS)
    options.check_least("--seconds", args.seconds, 1)
    seconds(args.timeout, "--timeout")
    options.check_image(args.image)
    asked = _asked(args)
    if not asked:
        raise UsageError("nothing to measure", hint="give --arms, --threads and --loads at least one value each")
    against = _against(args.against or "default")
    arms = {(cell.arm, cell.threads) for cell in asked if isinstance(cell, Cell)}
    if args.against and against not in arms:
        raise UsageError(f"--against {args.against}: it is not among what is measured", hint="add it to --arms")
    before = {arch.name: _before(args.before, arch.name) for arch in archs if args.before}
    if context.dry_run:
        for arch in archs:
            _dry_run(context, args, arch, asked)
        return 0
    with RunDirectory.create(context, NAME) as directory:
        measured = [_measure(context, args, arch, asked, directory) for arch in archs]
        code = model.worst([code for one in measured for code in one.codes])
        value = {
            "method": "instruction counting (TCG -icount), virtual time",
            "boots": args.boots,
            "seed": args.seed,
            "steps": args.steps,
            "options": args.bench,
            "architectures": {one.arch.name: _as_json(one, against) for one in measured},
            "exit_code": int(code),
        }
        write_json(directory.path / "measure.json", value)
        directory.update({"exit_code": int(code)})
        for one in measured:
            _show(context, args, one, against, before.get(one.arch.name, {}))
        if args.json:
            deliver(args.json, json_text(value))
        context.report.step(f"results: {directory.path}")
        return code


def _asked(args: argparse.Namespace) -> list[Cell | str]:
    """The cells that were asked for. Raises UsageError for combinations that one machine cannot measure."""
    if args.operations and args.share:
        raise UsageError("--operations and --share are measured on different machines", hint="run it twice")
    if args.before and not args.operations:
        raise UsageError("--before is for --operations")
    if args.operations:
        return [f"op/{name}" for name in cells.OPERATIONS]
    if args.share:
        cells.check_shares(args.share)
        return [f"share/{tasks}" for tasks in args.share]
    return list(cells.plan(options.words(args.arms), options.words(args.threads), options.words(args.loads)))


def _order(asked: Sequence[Cell | str], seed: int) -> list[Cell | str]:
    """The cells in the order of the boot with this seed."""
    steps = [cell for cell in asked if isinstance(cell, Cell)]
    return [*(cell for cell in asked if not isinstance(cell, Cell)), *cells.shuffled(steps, seed)]


def _against(text: str) -> tuple[str, str]:
    arm, _, threads = text.partition("/")
    if threads not in ("", *cells.THREADS):
        raise UsageError(f"--against {text}: unknown threads {threads!r}", hint="e.g. --against rr/both")
    return arm, threads or cells.THREADS[0]


def _arguments(args: argparse.Namespace, asked: Sequence[Cell | str], seed: int) -> list[str]:
    """For the benchmark in the boot with this seed."""
    numbers = ["--steps", str(args.steps), "--seconds", str(args.seconds), "--seed", str(seed)]
    return [*numbers, *args.bench, *map(cells.argument, _order(asked, seed))]


def _guest(context: Context, args: argparse.Namespace, arch: Arch) -> Guest:
    from harness.build import kernel as kernels
    from harness.build import selftests

    machine = context.machine(f"{arch.machine}-icount")
    switch: tuple[str, ...] = ("agent_latency=1",)
    if args.operations:
        machine, switch = dataclasses.replace(machine, smp="1"), ()
    qemu = emulator.Emulator(machine.qemu, "") if context.dry_run else emulator.ensure(context, arch, machine)
    image, tests = args.image, None
    if image is None:
        built = kernels.build_to_boot(context, arch, options.flavour(context, args), patched=not args.unpatched)
        image, tests = built.image, selftests.build_selftests(context, built)
    program = (tests or selftests.build_for(context, arch)).directory / guest.PROGRAM
    if not program.is_file() and not context.dry_run:
        raise EnvironmentFailure(f"the series has no selftest program {guest.PROGRAM}", hint="harness apply")
    return Guest(arch, machine, qemu, image, program, args.timeout, (*switch, *args.append.split()))


def _dry_run(context: Context, args: argparse.Namespace, arch: Arch, asked: Sequence[Cell | str]) -> None:
    machine = _guest(context, args, arch)
    for seed in range(args.seed, args.seed + args.boots):
        part = context.runs / "RUN" / arch.name / str(seed)
        words = guest.argv(machine, seed, part / "initramfs.cpio.gz", part / guest.SERIAL, f"seed{seed}")
        arguments = _arguments(args, asked, seed)
        context.report.result(f"# in the guest: {quoted([guest.PROGRAM, *arguments])}\n{quoted(words)}")


def _measure(
    context: Context, args: argparse.Namespace, arch: Arch, asked: Sequence[Cell | str], directory: RunDirectory
) -> Measured:
    """All boots of an architecture, as many at once as there are jobs."""
    measured = Measured(arch)
    try:
        machine = _guest(context, args, arch)
        measured.record = {
            "machine": machine.machine.name,
            "qemu": machine.emulator.version,
            "image": str(machine.image),
            "program": str(machine.program),
        }
        directory.update({"architectures": {arch.name: measured.record}})
        _boots(context, args, machine, asked, directory.part(arch.name), measured)
    except HarnessError as exc:
        context.report.error(f"{arch.name}: {exc.message}", exc.detail, exc.hint)
        measured.failures.append({"seed": None, "why": exc.message})
        measured.codes.append(exc.exit_code)
    return measured


class _Stop(BaseException):
    """Ends a boot from within its own thread."""


def _boots(
    context: Context,
    args: argparse.Namespace,
    machine: Guest,
    asked: Sequence[Cell | str],
    part: Path,
    measured: Measured,
) -> None:
    stop = threading.Event()

    def poll() -> None:
        if stop.is_set():
            raise _Stop

    def one(seed: int) -> Outcome:
        return guest.boot(context, machine, seed, _arguments(args, asked, seed), part / str(seed), poll)

    seeds = range(args.seed, args.seed + args.boots)
    context.report.step(f"{machine.arch.name}: {len(seeds)} boots with {len(asked)} cells each")
    watch = Stopwatch()
    with ThreadPoolExecutor(max_workers=max(1, context.jobs)) as pool:
        futures: list[Future[Outcome]] = [pool.submit(one, seed) for seed in seeds]
        try:
            for done, (seed, future) in enumerate(zip(seeds, futures, strict=True), 1):
                _take(context, measured, seed, future.result(), asked)
                context.report.step(f"{machine.arch.name}: {done} of {len(seeds)} boots, {watch.seconds:.0f} s")
        except BaseException:
            stop.set()
            for future in futures:
                future.cancel()
            raise


def _take(context: Context, measured: Measured, seed: int, outcome: Outcome, asked: Sequence[Cell | str]) -> None:
    """Count a boot, or tell why it does not."""
    where = f"{measured.arch.name}: seed {seed}"
    if outcome.failure:
        context.report.error(f"{where} does not count: {outcome.failure}", hint=f"see {outcome.log}")
        measured.failures.append({"seed": seed, "why": outcome.failure, "log": str(outcome.log)})
        measured.codes.append(outcome.code)
        return
    answers = cells.read(outcome.lines, _order(asked, seed), seed)
    for error in answers.errors:
        context.report.error(f"{where}: {error}")
        measured.failures.append({"seed": seed, "why": error, "log": str(outcome.log)})
        measured.codes.append(ExitCode.TESTS_FAILED)
    measured.others += [f"seed {seed}: {line}" for line in answers.others if not line.startswith("bench ")]
    if answers.complete:
        measured.answers.append(answers)


def _rows(one: Measured, against: tuple[str, str]) -> list[summary.Row]:
    readings: dict[Cell, list[cells.Reading]] = {}
    for answers in one.answers:
        for cell, reading in answers.readings.items():
            readings.setdefault(cell, []).append(reading)
    return summary.rows(readings, against)


def _as_json(one: Measured, against: tuple[str, str]) -> dict[str, Any]:
    readings = [
        {
            "seed": answers.seed,
            "load": cell.load,
            "threads": cell.threads,
            "arm": cell.arm,
            **reading.values,
            "wake_histogram": {str(bucket): count for bucket, count in reading.wakes.items()},
        }
        for answers in one.answers
        for cell, reading in answers.readings.items()
    ]
    return {
        **one.record,
        "against": "/".join(against),
        "summary": summary.as_json(_rows(one, against)),
        "readings": readings,
        "shares": [dataclasses.asdict(row) for row in summary.share_rows([answers.shares for answers in one.answers])],
        "operations": summary.operations([answers.operations for answers in one.answers]),
        "other_lines": one.others,
        "failures": one.failures,
    }


def _show(
    context: Context, args: argparse.Namespace, one: Measured, against: tuple[str, str], before: dict[str, float]
) -> None:
    found = _rows(one, against)
    counted = f"{len(one.answers)} of {args.boots} boots counted"
    context.report.result(f"{one.arch.name}, TCG counting instructions, QEMU {one.record.get('qemu', '?')}: {counted}")
    if found:
        context.report.result(summary.render(found))
        context.report.result(f"times in us of virtual time; ratio and work: against {'/'.join(against)}, same boots")
        for caution in summary.cautions(found):
            context.report.result(f"caution: {caution}")
    if shares := summary.share_rows([answers.shares for answers in one.answers]):
        context.report.result(summary.render_shares(shares))
    if any(answers.operations for answers in one.answers):
        context.report.result(summary.render_operations([answers.operations for answers in one.answers], before))
    for line in one.others:
        context.report.result(line)


def _before(path: Path, arch: str) -> dict[str, float]:
    """The operations in another run's measure.json. Raises UsageError when it has none."""
    try:
        known = json.loads(path.read_text())["architectures"][arch]["operations"]
        return {str(name): float(ns) for name, ns in known.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UsageError(
            f"{path} has no operations of {arch}", hint="it is the measure.json of a run directory"
        ) from None
