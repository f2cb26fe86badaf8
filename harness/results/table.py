"""Results for a person: a short table, then what went wrong. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from harness.guest.ktap import Status, Test
from harness.report import table
from harness.results.model import ArchResult, totals

HEADER = ("arch", "test", "status", "passed", "failed", "skipped", "seconds", "why")
_WORD = {
    Status.PASSED: "pass",
    Status.FAILED: "FAIL",
    Status.SKIPPED: "skip",
    Status.XFAIL: "xfail",
    Status.CRASHED: "CRASH",
    Status.TIMEOUT: "TIMEOUT",
    Status.NEVER_RAN: "NEVER RAN",
}
WIDEST_WHY = 110


def word(status: Status) -> str:
    """How the table spells a status; capitals want to be looked at."""
    return _WORD[status]


def _shorten(text: str) -> str:
    return text if len(text) <= WIDEST_WHY else text[: WIDEST_WHY - 3] + "..."


def row(arch: str, test: Test) -> tuple[str, ...]:
    """A program's line of the table."""
    counts = test.counts()
    passed = counts[Status.PASSED] + counts[Status.XFAIL]
    bad = sum(n for status, n in counts.items() if status.bad)
    # A program without subtests (`harness boot -- CMD`) has nothing to count.
    cells = (str(passed), str(bad), str(counts[Status.SKIPPED])) if test.children else ("-", "-", "-")
    seconds = "-" if test.seconds is None else f"{test.seconds:.1f}"
    why = test.reason if test.status != Status.PASSED else _partly(test)
    return (arch, test.name, word(test.status), *cells, seconds, _shorten(why))


def _partly(test: Test) -> str:
    """What a passing program left out."""
    skipped = list(dict.fromkeys(leaf.reason or leaf.name for leaf in test.leaves() if leaf.status == Status.SKIPPED))
    return f"skipped: {'; '.join(skipped)}" if skipped else ""


def render(results: Sequence[ArchResult]) -> str:
    """The table of all architectures."""
    rows: list[tuple[str, ...]] = []
    for result in results:
        if result.problem is not None:
            rows.append((result.arch, "-", "ERROR", "-", "-", "-", "-", _shorten(result.problem.message)))
        if result.verdict is not None:
            rows += [row(result.arch, test) for test in result.verdict.everything]
            if not result.verdict.everything:
                good = result.verdict.failure is None
                rows.append((result.arch, "(boot)", "pass" if good else "FAIL", "-", "-", "-", "-", ""))
    return table(rows, header=HEADER)


def summary(result: ArchResult) -> str:
    """One line for an architecture: what counts, and how long it took."""
    if result.verdict is None:
        return f"{result.arch}: no verdict, {result.problem.message if result.problem else 'nothing ran'}"
    sums = totals(result.verdict)
    everything = result.verdict.everything
    parts: list[str] = []
    if everything:
        skipped = sum(test.status == Status.SKIPPED for test in everything)
        passed = len(everything) - sums["programs_bad"] - skipped
        parts.append(f"programs {_counts(passed, sums['programs_bad'], skipped)}")
    if sums["subtests"]:
        good = sums["subtests_passed"] + sums["subtests_xfail"]
        bad = sums["subtests"] - good - sums["subtests_skipped"]
        parts.append(f"subtests {_counts(good, bad, sums['subtests_skipped'])}")
    if result.boot_seconds is not None:
        parts.append(f"booted in {result.boot_seconds:.1f} s")
    if result.seconds:
        parts.append(f"{result.seconds:.1f} s in all")
    if result.accel:
        parts.append(result.accel)
    verdict = "pass" if result.exit_code == 0 else "FAIL"
    if result.exit_code == 0 and everything and not any(test.status == Status.PASSED for test in everything):
        verdict = "nothing failed, nothing passed"
    return f"{result.arch}: {verdict}: {', '.join(parts)}"


def _counts(passed: int, failed: int, skipped: int) -> str:
    return f"{passed} passed/{failed} failed/{skipped} skipped"


def details(result: ArchResult, most_lines: int = 25) -> str:
    """What went wrong: the failure, the first splats, the subtests that failed with their output, where the log is."""
    verdict = result.verdict
    if verdict is None:
        return ""
    parts: list[str] = []
    if verdict.failure is not None:
        parts.append(f"{result.arch}: {verdict.failure.message}")
    for report in verdict.splats[:3]:
        indented = "\n".join(f"    {line}" for line in report.shown(most_lines).split("\n"))
        parts.append(f"{result.arch}: {report.kind}, line {report.first} of the console log:\n{indented}")
    if len(verdict.splats) > 3:
        parts.append(f"{result.arch}: {len(verdict.splats) - 3} more splats in the console log")
    for test in verdict.everything:
        if test.status.bad:
            parts.append(_bad_test(result.arch, test))
    parts += [f"{result.arch}: note: {note}" for note in verdict.notes]
    if parts and result.log is not None:
        parts.append(f"{result.arch}: console log: {result.log}")
    return "\n".join(parts)


def _bad_test(arch: str, test: Test) -> str:
    lines = [f"{arch}: {test.name}: {word(test.status)}: {test.reason}"]
    lines += [f"    problem: {problem}" for problem in test.problems if problem != test.reason]
    bad = [leaf for leaf in test.leaves() if leaf.status.bad and leaf is not test]
    for leaf in bad[:10]:
        lines.append(
            f"    {word(leaf.status)} {leaf.number or ''} {leaf.name}{f': {leaf.reason}' if leaf.reason else ''}"
        )
        lines += [f"        {line}" for line in leaf.log[-5:]]
    if len(bad) > 10:
        lines.append(f"    and {len(bad) - 10} more")
    if not bad:
        lines += [f"        {line}" for line in test.log[-10:]]
    return "\n".join(lines)
