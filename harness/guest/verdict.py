"""What a console log proves. Pure: a log, how the guest's run ended and what was expected, in; a verdict out.

The rule of the whole module: nothing passes without proof. A pass needs the end marker with the nonce of this very
boot, an end marker and a complete plan from every program that was to run, and a kernel that reported nothing wrong.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from os import strerror

from harness.data import Reports
from harness.errors import ExitCode
from harness.guest import ktap, log, splat
from harness.guest.ktap import Status, Test
from harness.guest.log import Line

KSFT_SKIP = 4
_DROPPED = re.compile(r"\*\* [0-9]+ printk messages dropped \*\*")


class End(StrEnum):
    """How a run of the virtual machine ended."""

    EXITED = "exited"  # QEMU ended by itself
    NO_BOOT = "no boot"  # no marker of the guest before the boot deadline
    SILENT = "silent"  # no output for the silence deadline
    DEADLINE = "deadline"  # the deadline of everything
    FLOOD = "flood"  # more output than anyone keeps
    STUCK_OFF = "stuck off"  # finished, but did not power off
    UNKNOWN = "unknown"  # a saved log: only the log can tell


@dataclass(frozen=True)
class Ending:
    """The end of a run: ``status`` is QEMU's exit status (None when it was killed), ``seconds`` the deadline passed."""

    end: End
    status: int | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Expected:
    """A program that was to run, and what its verdict is read from."""

    name: str
    reports: Reports = Reports.KTAP


@dataclass(frozen=True)
class Failure:
    """What kept the guest from finishing cleanly: ``kind`` tells one from another, ``code`` is 7 or 8."""

    kind: str
    message: str
    code: ExitCode


@dataclass(frozen=True)
class Verdict:
    """The judgement of one boot."""

    tests: tuple[Test, ...]
    suites: tuple[Test, ...] = ()
    splats: tuple[splat.Splat, ...] = ()
    excused: tuple[splat.Splat, ...] = ()
    failure: Failure | None = None
    notes: tuple[str, ...] = ()
    banner: str = ""
    machine: str = ""
    boot_seconds: float | None = None
    guest_seconds: float | None = None
    outputs: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def everything(self) -> tuple[Test, ...]:
        """Programs, then KUnit suites."""
        return (*self.tests, *self.suites)

    @property
    def exit_code(self) -> ExitCode:
        """0, 1, 7 or 8; skipped tests alone are a 0 (the table names them)."""
        if self.failure is not None:
            return self.failure.code
        return ExitCode.TESTS_FAILED if any(test.status.bad for test in self.everything) else ExitCode.OK


def to_settle(verdict: Verdict, programs: Collection[str]) -> list[str]:
    """The programs that failed and can be run again elsewhere; none if something else went wrong, or one cannot."""
    bad = [test for test in verdict.everything if test.status.bad]
    if verdict.failure or verdict.splats:
        return []
    if any(test.status != Status.FAILED or test.problems or test.name not in programs for test in bad):
        return []
    return [test.name for test in bad]


def settle(verdict: Verdict, second: Verdict, where: str) -> Verdict:
    """``verdict``, in which the failures of what passed in the ``second`` are expected ones that name ``where``.

    A program is excused when it passed there, and so did each of its tests that failed here: one that was skipped there
    was not repeated.
    """
    passed = {path for path, test in _paths(second.tests) if test.status == Status.PASSED}
    if second.failure is not None:
        passed = set()

    def repeated(test: Test, path: tuple[str, ...]) -> bool:
        bad = [(inner, child) for inner, child in _named(test.children, path) if child.status.bad]
        if test.problems or (not bad and path not in passed):
            return False
        return all(repeated(child, inner) for inner, child in bad)

    def excuse(test: Test) -> Test:
        if not test.status.bad:
            return test
        reason = f"{test.reason}; passed in {where}" if test.reason else f"passed in {where}"
        return replace(test, status=Status.XFAIL, reason=reason, children=tuple(map(excuse, test.children)))

    def settled(test: Test) -> Test:
        path = (test.name,)
        excused = test.status == Status.FAILED and path in passed and repeated(test, path)
        return excuse(test) if excused else test

    return replace(verdict, tests=tuple(map(settled, verdict.tests)))


_OOPS = re.compile(r"(?:Oops|BUG|Internal error): ?")
_INT3 = re.compile(r"Oops: int3\b")
_CODE = re.compile(r"Code: (?:[0-9a-f]{2} )*([0-9a-f]{2}) <[0-9a-f]{2}>")
# int3, and the second byte of int 3
_BREAKPOINTS = ("cc", "03")


def stale_code(verdict: Verdict) -> bool:
    """Whether all that is wrong is a breakpoint that is not in the text of the kernel: a fault of an x86 emulator.

    The kernel replaces a branch by way of an int3. QEMU discards what it has translated of a page before it writes to
    that page, not after: where another vCPU translates in between, it goes on with the int3 after all that. RIP in the
    dump is behind the int3, so the byte before it would be cc. What had failed before then has failed.
    """
    if any(test.status in (Status.FAILED, Status.TIMEOUT) for test in verdict.everything):
        return False
    if not verdict.splats or any(report.kind not in ("oops", "panic") for report in verdict.splats):
        return False
    # Of a second CPU that runs into the same there may be no more than the headline.
    oopses = [[line.strip() for line in report.lines] for report in verdict.splats if report.kind == "oops"]
    dumps = [[line for line in lines if line.startswith("Code:")] for lines in oopses]
    codes = [_CODE.match(line) for lines in dumps for line in lines]
    return (
        verdict.splats[0].kind == "oops"
        and bool(dumps[0])
        and all(code is not None and code[1] not in _BREAKPOINTS for code in codes)
        and all(_INT3.match(line) for lines in oopses for line in lines if _OOPS.match(line))
    )


def _named(tests: Sequence[Test], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Test]]:
    """``tests`` with their paths, in which those of one name are told apart."""
    for name, test in zip(ktap.distinct(test.name for test in tests), tests, strict=True):
        yield (*above, name), test


def _paths(tests: Sequence[Test], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Test]]:
    for path, test in _named(tests, above):
        yield path, test
        yield from _paths(test.children, path)


def judge(
    text: str,
    ending: Ending,
    rules: splat.Rules,
    *,
    nonce: str | None = None,
    expected: Sequence[Expected] | None = None,
    suites: Sequence[str] = (),
) -> Verdict:
    """Judge a console log.

    ``nonce`` None takes the one on the kernel command line in the log. ``expected`` None takes what the guest's plan
    marker names. ``suites`` are KUnit suites that must have run, besides those that are in the log.
    """
    lines = log.read(text)
    wanted = nonce if nonce is not None else log.find_nonce(lines)
    markers = [line for line in lines if line.marker and line.nonce == wanted]
    notes = []
    strange = {line.nonce for line in lines if line.marker and line.nonce != wanted}
    if strange:
        notes.append(f"markers with another nonce were ignored: {', '.join(sorted(strange))}")
    reports = splat.find(lines, rules)
    counted = tuple(report for report in reports if not report.excused)
    plan = expected if expected is not None else _plan(markers)
    failure = _failure(lines, markers, ending, counted, plan)
    tests = tuple(_program(lines, markers, program, failure, counted) for program in plan)
    known = {program.name for program in plan}
    for line in markers:
        if line.marker == "begin" and line.words and line.words[0] not in known:
            notes.append(f"{line.words[0]} ran though nobody asked for it")
    start = next((line for line in markers if line.marker == "start"), None)
    done = next((line for line in markers if line.marker == "done"), None)
    banner = next((line.message for line in lines if line.from_kernel and line.message.startswith(log.BANNER)), "")
    return Verdict(
        tests=tests,
        suites=_suites(lines, suites),
        splats=counted,
        excused=tuple(report for report in reports if report.excused),
        failure=failure,
        notes=tuple(notes),
        banner=banner,
        machine=start.fields.get("machine", "") if start else "",
        boot_seconds=start.seconds if start else None,
        guest_seconds=done.seconds if done else None,
        outputs={program.name: tuple(log.output(lines, program.name)) for program in plan},
    )


def _plan(markers: Sequence[Line]) -> list[Expected]:
    words = dict.fromkeys(word for line in markers if line.marker == "plan" for word in line.words)
    known = {str(kind): kind for kind in Reports}
    parts = (word.partition(":") for word in words)
    return [Expected(name, known.get(kind, Reports.KTAP)) for name, _, kind in parts]


def _failure(
    lines: Sequence[Line],
    markers: Sequence[Line],
    ending: Ending,
    splats: Sequence[splat.Splat],
    plan: Sequence[Expected],
) -> Failure | None:
    """Why the run as a whole cannot count, the plainest reason first."""
    if splats:
        kinds = list(dict.fromkeys(report.kind for report in splats))
        then = f" (then {', '.join(kinds[1:])})" if kinds[1:] else ""
        return Failure(kinds[0], f"{kinds[0]}: {splats[0].headline}{then}", ExitCode.GUEST_CRASH)
    kernel = [line.message for line in lines if line.from_kernel]
    banners = sum(message.startswith(log.BANNER) for message in kernel)
    if banners > 1:
        return Failure("reboot", "the guest rebooted: a second kernel started", ExitCode.GUEST_CRASH)
    done = [line for line in markers if line.marker == "done"]
    if not done:
        return _unfinished(kernel, markers, ending)
    ended = {line.words[0] for line in markers if line.marker == "end" and line.words}
    begun = {line.words[0] for line in markers if line.marker == "begin" and line.words}
    # One of them may have been the report of a defect.
    if dropped := next((message for message in kernel if _DROPPED.search(message)), ""):
        return Failure("lost lines", f"the kernel lost messages: {dropped.strip()}", ExitCode.TIMEOUT)
    if begun - ended:
        return Failure("lost lines", f"the log lacks the end of {', '.join(sorted(begun - ended))}", ExitCode.TIMEOUT)
    if done[-1].fields.get("ran", "") != str(len(begun)):
        return Failure(
            "lost lines",
            f"the guest ran {done[-1].fields.get('ran', '?')} programs, the log shows {len(begun)}",
            ExitCode.TIMEOUT,
        )
    if ending.end in (End.STUCK_OFF, End.SILENT, End.DEADLINE):
        return Failure("stuck off", "the tests ended, but the guest did not power off", ExitCode.TIMEOUT)
    if ending.end == End.FLOOD:
        return Failure("flood", "the console log grew beyond all bounds", ExitCode.TIMEOUT)
    if ending.end == End.EXITED and ending.status != 0:
        return Failure("lost", f"QEMU ended with {_status(ending.status)} after the tests", ExitCode.TIMEOUT)
    return None


def _unfinished(kernel: Sequence[str], markers: Sequence[Line], ending: Ending) -> Failure:
    tail = f"; its last words: {kernel[-1][:200]}" if kernel else ""
    where = _where(markers)
    if ending.end == End.SILENT:
        return Failure("silence", f"the guest printed nothing for {ending.seconds:g} s {where}{tail}", ExitCode.TIMEOUT)
    if ending.end == End.NO_BOOT:
        what = "did not start its init" if kernel else "printed nothing at all"
        return Failure("no boot", f"the guest {what} within {ending.seconds:g} s{tail}", ExitCode.TIMEOUT)
    if ending.end == End.DEADLINE:
        return Failure(
            "deadline", f"the guest was not done within {ending.seconds:g} s, stopped {where}", ExitCode.TIMEOUT
        )
    if ending.end == End.FLOOD:
        return Failure("flood", f"the console log grew beyond all bounds {where}", ExitCode.TIMEOUT)
    restarted = any(message.startswith("reboot: Restarting system") for message in kernel)
    down = any(message.startswith(("reboot: Power down", "reboot: System halted")) for message in kernel)
    if restarted or (ending.end == End.EXITED and ending.status == 0 and not down):
        how = "it said so" if restarted else "a reset or triple fault without a word"
        return Failure("reboot", f"the guest rebooted {where} ({how})", ExitCode.GUEST_CRASH)
    if down:
        return Failure("power off", f"the guest powered off without the end marker {where}", ExitCode.TIMEOUT)
    if ending.end == End.EXITED:
        return Failure("lost", f"QEMU ended with {_status(ending.status)} {where}{tail}", ExitCode.TIMEOUT)
    return Failure("no end", f"the log ends without the end marker {where}{tail}", ExitCode.TIMEOUT)


def _where(markers: Sequence[Line]) -> str:
    if not markers:
        return "before its init started"
    begun = [line.words[0] for line in markers if line.marker == "begin" and line.words]
    ended = [line.words[0] for line in markers if line.marker == "end" and line.words]
    if len(begun) > len(ended):
        return f"while {begun[-1]} ran"
    return f"after {ended[-1]}" if ended else "before the first program"


def _status(status: int | None) -> str:
    if status is None:
        return "an unknown status"
    if status < 0:
        return f"signal {_signal(-status)}"
    return f"exit status {status}"


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)


def _program(
    lines: Sequence[Line],
    markers: Sequence[Line],
    program: Expected,
    failure: Failure | None,
    splats: Sequence[splat.Splat],
) -> Test:
    """The verdict on one program."""
    mine = [line for line in markers if line.words[:1] == (program.name,)]
    begin = next((line for line in mine if line.marker == "begin"), None)
    end = next((line for line in mine if line.marker == "end"), None)
    if begin is None:
        why = f"{failure.kind} before it" if failure else "the guest never started it"
        return Test(program.name, Status.NEVER_RAN, reason=why)
    output = log.output(list(lines), program.name)
    if program.reports in (Reports.KTAP, Reports.RESULTS):
        tree = ktap.parse(output, program.name, plan_required=program.reports == Reports.KTAP)
    else:
        tree = Test(program.name, Status.PASSED, log=tuple(output[-ktap.MOST_DIAGNOSTICS :]))
    if end is None:
        late = failure is not None and failure.kind in ("silence", "deadline", "no boot", "flood")
        status = Status.TIMEOUT if late else Status.CRASHED
        return replace(tree, status=status, reason=f"{failure.kind if failure else 'no end'} while it ran")
    test = replace(_by_status(tree, program, end), seconds=_number(end, "ms") / 1000)
    inside = [report for report in splats if begin.number < report.first < end.number]
    if inside and not test.status.bad:
        test = replace(test, status=Status.FAILED, reason=f"{inside[0].kind} while it ran: {inside[0].headline}")
    said = _number(end, "lines")
    if not test.status.bad and said != len(output):
        reason = f"it printed {said} lines, {len(output)} are in the log"
        test = replace(test, status=Status.FAILED, reason=reason)
    return test


def _number(line: Line, name: str) -> int:
    try:
        return int(line.fields.get(name, "0"))
    except ValueError:
        return 0


def _by_status(tree: Test, program: Expected, end: Line) -> Test:
    """A program's tree, corrected by how the process ended."""
    if error := _number(end, "error"):
        return replace(tree, status=Status.FAILED, reason=f"could not be started: {strerror(error)}")
    if _number(end, "timeout"):
        stuck = ", and could not be killed" if _number(end, "stuck") else ""
        return replace(tree, status=Status.TIMEOUT, reason=f"not done by its deadline{stuck}")
    if killed := _number(end, "signal"):
        return replace(tree, status=Status.CRASHED, reason=f"killed by {_signal(killed)}")
    status = _number(end, "status")
    tree = replace(tree, exit_status=status)
    if program.reports in (Reports.STATUS, Reports.KSELFTEST):
        if status == 0:
            return tree
        if status == KSFT_SKIP and program.reports == Reports.KSELFTEST:
            return replace(tree, status=Status.SKIPPED, reason=tree.log[-1] if tree.log else "no reason given")
        return replace(tree, status=Status.FAILED, reason=f"exit status {status}")
    if status == KSFT_SKIP and not tree.children and tree.problems in ((), ("no KTAP output",)):
        # The convention of tests that are scripts: the status is all they say.
        reason = tree.reason if tree.status == Status.SKIPPED else (tree.log[-1] if tree.log else "no reason given")
        return replace(tree, status=Status.SKIPPED, reason=reason, problems=())
    if tree.status == Status.NEVER_RAN:
        return replace(tree, status=Status.FAILED, reason=f"reported nothing, exit status {status}")
    if tree.status.bad:
        if status not in (0, 1):
            return replace(tree, reason=f"{tree.reason}; exit status {status}")
        return tree
    if status not in (0, KSFT_SKIP) or (status == KSFT_SKIP and tree.status != Status.SKIPPED):
        return replace(tree, status=Status.FAILED, reason=f"exit status {status} though no subtest failed")
    return tree


def _suites(lines: Sequence[Line], wanted: Sequence[str]) -> tuple[Test, ...]:
    """The KUnit suites that ran at boot, from the kernel's own messages before the guest's init began."""
    init = next((line.number for line in lines if line.marker), None)
    kernel = [line.message for line in lines if line.from_kernel and (init is None or line.number < init)]
    begin = next((i for i, message in enumerate(kernel) if message.startswith("KTAP version ")), None)
    suites: list[Test] = []
    if begin is not None:
        tree = ktap.parse(kernel[begin:], "kunit", plan_required=False)
        suites = [replace(child, name=f"kunit/{child.name}", number=None) for child in tree.children]
        if tree.problems and not any(suite.status.bad for suite in suites):
            suites.append(Test("kunit/log", Status.FAILED, reason=tree.problems[0], problems=tree.problems))
    names = {suite.name for suite in suites}
    suites += [
        Test(f"kunit/{name}", Status.NEVER_RAN, reason="expected, not in the log")
        for name in wanted
        if f"kunit/{name}" not in names
    ]
    return tuple(suites)
