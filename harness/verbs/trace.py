"""``harness trace``: a command as a marked agent in the guest, and the completion chain of each of its steps."""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import options
from harness.context import Context
from harness.data import Arch, Flavour
from harness.errors import EnvironmentFailure, ExitCode, HarnessError, TestsFailedError, UsageError
from harness.fs import deliver, json_text, write_json
from harness.guest import runner
from harness.proc import quoted
from harness.results import model
from harness.results.run import RunDirectory
from harness.trace import asjson, events, guest, join, perfetto, table
from harness.trace.events import Recording
from harness.trace.join import Joined
from harness.verbs import boot

NAME = "trace"
DESCRIPTION = """\
Boots the kernel, runs a command in it as a marked agent, records the trace events of the series and joins them: what
completed (interrupt, softirq, socket, timer, task), whom it woke, on which CPU that ran and when, what it had waited
in, when it submitted or blocked again. Prints a line for each task in each step, then a line for each wakeup.

    harness trace -a x86_64                           a demonstration: pipe, timer, UDP and io_uring
    harness trace -a arm64 --steps 20 -- ./prog ARG   a static program of this machine; each run is a step
    harness trace -a x86_64 --unmarked -- ./prog      the same without the window, to compare with
    harness trace --from runs/latest/x86_64/trace.txt --perfetto chain.json

The program may set further step ids itself, with prctl(PR_SET_AGENT_STEP_ID). In the tables gaps are medians with the
largest value, in us: `dev>wake` from the completion to the wakeup, `wake>cpu` from there to the CPU, and so on; a gap
whose events the kernel does not have or the program does not cause is n/a. Gaps with the CQE are negative where a ring
posts it after the wakeup. `stayed` is a wakeup that found the task on its CPU, about to block. `remote irq` is the
share of completions that another CPU handled than the one that the task ran on then, of those that are known.

The run directory has for each architecture trace.txt (the trace as the guest printed it), trace.json (every link with
all its events) and chain.json, which ui.perfetto.dev and chrome://tracing open. Times of an emulated guest show the
order of things, not what hardware takes.

Exit code: 0; 1 when the command failed or nothing was recorded; 2 when it cannot be run; 3 when the kernel has no
events; 7 or 8 when the guest crashed or was lost. Lost events are told, and are no failure.
"""
JSON_FILE = "trace.json"
PERFETTO_FILE = "chain.json"
# Without it there is nothing to join.
CHAIN_EVENT = "agent_latency:agent_wakeup"
# Of the kernel, not of the series: when something is submitted to a ring, when it is answered.
OF_RINGS = ("io_uring:io_uring_submit_req", "io_uring:io_uring_complete")


@dataclass
class Traced:
    """What came of one architecture, or of a file. ``error`` is a message and what to do."""

    name: str
    recording: Recording = field(default_factory=Recording)
    joined: Joined = field(default_factory=Joined)
    code: ExitCode = ExitCode.OK
    error: tuple[str, str, str] | None = None
    accel: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See DESCRIPTION."""
    options.add_guest(parser)
    parser.add_argument("--steps", type=int, default=5, metavar="N", help="runs of the command (default: %(default)s)")
    parser.add_argument("--slice", type=int, default=1000, metavar="US", help="of the mark (default: %(default)s)")
    parser.add_argument("--target", type=int, default=1000, metavar="US", help="of the mark (default: %(default)s)")
    parser.add_argument("--window", type=int, default=20000, metavar="US", help="of the mark (default: %(default)s)")
    parser.add_argument("--unmarked", action="store_true", help="step ids, but no mark")
    parser.add_argument("--all-agents", action="store_true", help="record agents that the command makes itself, too")
    parser.add_argument("--event", action="append", default=[], metavar="SYSTEM:EVENT", help="record this event, too")
    parser.add_argument("--buffer", type=int, default=4096, metavar="KIB", help="per CPU (default: %(default)s)")
    parser.add_argument("--all", action="store_true", help=f"print all wakeups, not the first {table.MOST_LINKS}")
    parser.add_argument("--from", dest="source", type=Path, metavar="FILE", help="read a saved trace or console log")
    parser.add_argument(
        "--json", nargs="?", const="-", metavar="FILE", help="as JSON to FILE, or in place of the table"
    )
    parser.add_argument("--perfetto", type=Path, metavar="FILE", help="a copy of chain.json")
    parser.add_argument("--timeout", dest="test_timeout", type=float, metavar="SECONDS", help="deadline of the command")
    parser.add_argument("--image", type=Path, metavar="FILE", help="boot this kernel image in place of the built one")
    parser.add_argument("command", nargs="*", metavar="COMMAND", help="a static program of this machine, and arguments")


def run(context: Context, args: argparse.Namespace) -> int:
    """Build, boot, record, join, print; see DESCRIPTION."""
    options.check_files(args.json, args.perfetto)
    if args.source:
        return _saved(context, args)
    archs = options.archs(context, args)
    flavour = options.flavour(context, args)
    for given, what in ((args.image, "--image"), (args.perfetto, "--perfetto")):
        if given and len(archs) != 1:
            raise UsageError(f"{what} is of one architecture", hint=f"harness trace --arch {archs[0].name} {what} ...")
    options.check_image(args.image)
    options.check_least("--steps", args.steps, 1)
    options.check_least("--slice", args.slice, 0)
    options.check_least("--buffer", args.buffer, 1)
    for event in args.event:
        if not re.fullmatch(r"[\w-]+:[\w*?-]+", event):
            raise UsageError(f"--event {event}: that is no event", hint="SYSTEM:EVENT, e.g. sched:sched_switch")
    if not args.unmarked and not 50 <= args.target <= args.window <= 100_000:
        raise UsageError("--target must be at least 50, and --window from there to 100000")
    if args.command:
        boot.program(args.command, 1.0)  # raises for what cannot run in a guest
    if context.dry_run:
        for arch in archs:
            _dry_run(context, args, arch, flavour)
        return 0
    with RunDirectory.create(context, NAME) as directory:
        traced = [_trace(context, args, arch, flavour, directory) for arch in archs]
        code = _show(context, args, traced)
        directory.update({"exit_code": int(code)})
        context.report.step(f"results: {directory.path}")
        return code


def _saved(context: Context, args: argparse.Namespace) -> int:
    """What a file has to say, without a boot."""
    if args.command:
        raise UsageError("--from reads a trace, it runs no command")
    if args.source.is_dir() or not args.source.exists():
        raise UsageError(f"there is no file {args.source}", hint="trace.txt or console.log of a run directory")
    one = Traced(args.source.name)
    _read(one, guest.lines_of(args.source))
    return _show(context, args, [one])


def _words(args: argparse.Namespace) -> tuple[str, ...]:
    """What the guest is to run, with all arguments."""
    number = {"--slice": args.slice, "--target": args.target, "--window": args.window, "--buffer": args.buffer}
    words = [word for name, value in number.items() for word in (name, str(value))]
    words += ["--unmarked"] if args.unmarked else []
    words += ["--all"] if args.all_agents else []
    words += [word for event in (*OF_RINGS, *args.event) for word in ("--event", event)]
    if not args.command:
        return guest.arguments(words, guest.DEMO, [str(args.steps)])
    return guest.arguments([*words, "--steps", str(args.steps)], _name(args.command), args.command[1:])


def _name(command: list[str]) -> str:
    return boot.program(command, 1.0).name


def _prepare(context: Context, args: argparse.Namespace, arch: Arch, flavour: Flavour) -> tuple[Path, Path]:
    """The image and the directory of the guest's tools."""
    from harness.build import guesttools
    from harness.build import kernel as kernels

    if args.image is None:
        built = kernels.build_to_boot(context, arch, flavour, patched=not args.unpatched)
        return built.image, guesttools.build_tools(context, built)
    return args.image, guesttools.build_for(context, arch)


def _dry_run(context: Context, args: argparse.Namespace, arch: Arch, flavour: Flavour) -> None:
    image, _ = _prepare(context, args, arch, flavour)
    initrd = context.runs / "RUN" / arch.name / runner.INITRAMFS
    argv = runner.plan_argv(context, arch, image, initrd, accel="tcg", nonce="NONCE", extra=guest.CMDLINE)
    context.report.result(f"# in the guest: {quoted([guest.RUNNER, *_words(args)])}\n{quoted(argv)}")


def _trace(context: Context, args: argparse.Namespace, arch: Arch, flavour: Flavour, directory: RunDirectory) -> Traced:
    one = Traced(arch.name)
    try:
        image, tools = _prepare(context, args, arch, flavour)
        given = boot.program(args.command, 1.0) if args.command else None
        command = (given.name, given.file) if given and given.file else (guest.DEMO, tools / guest.DEMO)
        part = directory.part(arch.name)
        outcome = guest.boot(
            context,
            arch,
            image,
            part,
            program=tools / guest.RUNNER,
            command=command,
            words=_words(args),
            timeout=context.settings.seconds("test_timeout") * flavour.timeout_factor,
            factor=flavour.timeout_factor,
        )
        one.accel = outcome.accel
        directory.update({"architectures": {arch.name: {"image": str(image), "accelerator": outcome.accel}}})
        if outcome.failure:
            one.code, one.error = outcome.code, (outcome.failure, outcome.detail, outcome.hint)
        _read(one, outcome.lines)
        write_json(part / JSON_FILE, _as_json(one))
        write_json(part / PERFETTO_FILE, perfetto.render(one.recording, one.joined, arch=arch.name))
    except HarnessError as exc:
        one.code, one.error = exc.exit_code, (exc.message, exc.detail, exc.hint)
    return one


def _read(one: Traced, lines: tuple[str, ...]) -> None:
    """Read and join; nothing at all is an error, unless there is one already."""
    one.recording = events.read(lines)
    one.joined = join.join(one.recording.events)
    if one.joined.steps or one.error:
        return
    why: HarnessError = TestsFailedError(
        "there is no wakeup of an agent in the trace",
        hint="the command never blocked, or it made agents of its own: --all-agents",
    )
    if CHAIN_EVENT in one.recording.missing:
        why = EnvironmentFailure(
            "the kernel has no completion chain", hint="build it with CONFIG_AGENT_LATENCY_CHAIN: harness build"
        )
    one.code, one.error = why.exit_code, (why.message, "", why.hint)


def _as_json(one: Traced) -> dict[str, Any]:
    more = {"exit_code": int(one.code), "accelerator": one.accel or None, "error": one.error[0] if one.error else None}
    return asjson.render(one.recording, one.joined, **more)


def _show(context: Context, args: argparse.Namespace, traced: list[Traced]) -> ExitCode:
    """The tables or the JSON on stdout, what went wrong on stderr, the files asked for; returns the exit code."""
    code = model.worst([one.code for one in traced])
    value = {"exit_code": int(code), "traces": {one.name: _as_json(one) for one in traced}}
    if args.json == "-":
        context.report.result(json.dumps(value, indent=2))
    for one in traced:
        if args.json != "-":
            _tables(context, args, one)
        for caution in table.cautions(one.recording, one.joined):
            context.report.warn(f"{one.name}: {caution}")
        if one.error:
            message, detail, hint = one.error
            context.report.error(f"{one.name}: {message}", detail, hint)
    if args.json and args.json != "-":
        deliver(Path(args.json), json_text(value))
    if args.perfetto:
        rendered = perfetto.render(traced[0].recording, traced[0].joined, source=traced[0].name)
        deliver(args.perfetto, json_text(rendered))
    return code


def _tables(context: Context, args: argparse.Namespace, one: Traced) -> None:
    for line in one.recording.output:
        if line:
            context.report.result(f"{one.name}: {line}")
    if one.joined.steps:
        for block in table.render(one.recording, one.joined, None if args.all else table.MOST_LINKS):
            context.report.result(block)
