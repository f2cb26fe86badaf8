"""KTAP as kselftest and KUnit print it, parsed into a tree. Pure: lines in, a tree out.

Takes TAP 13 and KTAP 1 and 2: plans, results with SKIP, TODO, XFAIL, XPASS, TIMEOUT and ERROR directives, ``Bail
out!``, kselftest's ``# Totals:`` line, and subtests nested by two or four spaces or by ``# ``. Whatever is none of
these is kept as a diagnostic. A test that a plan promised and that never reported is in the tree with the status
NEVER_RAN, and every breach of the format is listed in ``problems``: a block with problems has failed, whatever its
results say.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

# A plan beyond this is a mistake; nobody wants a million tests that never ran in a report.
MOST_MISSING = 200
MOST_DIAGNOSTICS = 200


class Status(StrEnum):
    """What became of a test. NEVER_RAN is the default: silence proves nothing."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"
    XFAIL = "xfail"
    CRASHED = "crashed"
    TIMEOUT = "timeout"
    NEVER_RAN = "never ran"

    @property
    def bad(self) -> bool:
        """Whether a run with such a test has failed."""
        return self not in (Status.PASSED, Status.SKIPPED, Status.XFAIL)


@dataclass(frozen=True)
class Test:
    """A test and its subtests. ``reason`` says why it is not a plain pass; ``log`` holds its diagnostics.
    ``exit_status`` is that of a program that ended by itself."""

    __test__ = False  # not a test class, whatever its name begins with

    name: str
    status: Status = Status.NEVER_RAN
    number: int | None = None
    reason: str = ""
    children: tuple[Test, ...] = ()
    log: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    seconds: float | None = None
    exit_status: int | None = None

    def leaves(self) -> Iterator[Test]:
        """The tests without subtests, in order; itself when it has none."""
        if not self.children:
            yield self
        for child in self.children:
            yield from child.leaves()

    def counts(self) -> Counter[Status]:
        """How many subtests (leaves, not counting itself) ended how."""
        return Counter(leaf.status for child in self.children for leaf in child.leaves())


def distinct(names: Iterable[str]) -> Iterator[str]:
    """``names``, in which those that come again are numbered: a, b, a (2)."""
    seen: Counter[str] = Counter()
    for name in names:
        seen[name] += 1
        yield name if seen[name] == 1 else f"{name} ({seen[name]})"


_VERSION = re.compile(r"K?TAP version [0-9]+\s*$")
# A number of more digits is noise, and more than int() takes.
_PLAN = re.compile(r"1\.\.([0-9]{1,9})\s*(?:#\s*skip\b:?\s*(.*))?$", re.IGNORECASE)
# KTAP and kselftest number their results: "ok then" is somebody talking.
_RESULT = re.compile(r"(not )?ok\s+([0-9]{1,9})(?=\s|$)(?:\s+-(?=\s|$))?\s*(.*)$")
_UNNUMBERED = re.compile(r"not ok\b")
_DIRECTIVE = re.compile(r"(?:^|\s)#\s*(skip|todo|xfail|xpass|timeout|error)\b:?\s*(.*)$", re.IGNORECASE)
_BAIL = re.compile(r"Bail out!\s*(.*)$")
_SUBTEST = re.compile(r"#?\s*Subtest:\s*(.*)$")
_KINDS = ("pass", "fail", "xfail", "xpass", "skip", "error")
_TOTALS = re.compile(r"#\s*Totals: " + " ".join(f"{kind}:([0-9]{{1,9}})" for kind in _KINDS))
_INDENT = re.compile(r"(?: {2}| {4}|\t|# )")


@dataclass
class _Block:
    """A plan with its results, while it is read. ``indent`` is what its lines begin with."""

    indent: str
    versions: int = 0
    plan: int | None = None
    skip_all: str | None = None
    name: str = ""
    bail: str | None = None
    results: list[Test] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    pending: _Block | None = None
    totals: tuple[int, ...] | None = None

    @property
    def said_something(self) -> bool:
        return bool(self.versions or self.results or self.plan is not None or self.bail is not None)

    def note(self, line: str) -> None:
        if len(self.log) < MOST_DIAGNOSTICS:
            self.log.append(line)


def parse(lines: Sequence[str], name: str, *, plan_required: bool = True) -> Test:
    """The tree of one program's output; its own status comes from its results alone.

    With ``plan_required`` (what every kselftest prints) output without a plan has failed.
    """
    root = _Block("")
    stack = [root]
    for raw in lines:
        _feed(stack, raw.rstrip())
    while len(stack) > 1:
        _leave(stack)
    return _close(root, name, None, top=True, plan_required=plan_required)


def _is_construct(body: str) -> bool:
    return bool(_VERSION.match(body) or _PLAN.match(body) or _RESULT.match(body) or _BAIL.match(body))


def _feed(stack: list[_Block], line: str) -> None:
    if len(stack) > 1 and not line.startswith(stack[-1].indent):
        # A line further out ends the inner block if it means something out there; anything else is junk between lines.
        depth = max(i for i, block in enumerate(stack) if line.startswith(block.indent))
        body = line[len(stack[depth].indent) :]
        if not (_is_construct(body) or body.startswith("# ")):
            stack[-1].note(line)
            return
        if _is_construct(body):
            while len(stack) - 1 > depth:
                _leave(stack)
        else:
            stack[depth].note(body)
            return
    block = stack[-1]
    body = line[len(block.indent) :]
    indent = _INDENT.match(body)
    if indent:
        inner = body[indent.end() :]
        width = len(indent.group())
        if not inner.startswith("#") and inner.startswith("  ") and indent.group() == "  ":
            width, inner = 4, body[4:]
        starts = _VERSION.match(inner) or (indent.group() != "# " and (_PLAN.match(inner) or _RESULT.match(inner)))
        named = indent.group() != "# " and inner.startswith("# Subtest:")
        if starts or named:
            _abandon(block)
            child = _Block(block.indent + body[:width])
            stack.append(child)
            _take(child, inner)
            return
    _take(block, body)


def _leave(stack: list[_Block]) -> None:
    child = stack.pop()
    _abandon(child)
    _abandon(stack[-1])
    stack[-1].pending = child


def _abandon(block: _Block) -> None:
    """Subtests whose own result line never came: they stay in the tree, as a test that never reported."""
    if block.pending is None:
        return
    pending, block.pending = block.pending, None
    test = _close(pending, pending.name or f"subtest {len(block.results) + 1}", None, top=False, plan_required=False)
    status = test.status if test.status.bad else Status.NEVER_RAN
    block.results.append(replace(test, status=status, reason=test.reason or "no result line for its subtests"))
    block.problems.append(f"{test.name}: subtests without a result line")


def _take(block: _Block, body: str) -> None:
    if match := _PLAN.match(body):
        if block.plan is not None:
            block.problems.append(f"a second plan: {body}")
            return
        block.plan = int(match.group(1))
        if block.plan == 0 and match.group(2) is not None:
            block.skip_all = match.group(2).strip()
        elif block.plan == 0 and "skip" in body.lower():
            block.skip_all = ""
    elif match := _RESULT.match(body):
        _result(block, bool(match.group(1)), int(match.group(2)), match.group(3))
    elif _UNNUMBERED.match(body):
        block.problems.append(f"a failure without a number: {body}")
    elif match := _BAIL.match(body):
        block.bail = match.group(1).strip() or "no reason given"
    elif _VERSION.match(body):
        block.versions += 1
        if block.versions > 1 and block.pending is None:
            block.problems.append("a second version line: the program started over")
    elif body.startswith("# Subtest:") and (match := _SUBTEST.match(body)):
        block.name = block.name or match.group(1).strip()
    elif (match := _TOTALS.match(body)) and block.pending is None:
        block.totals = tuple(map(int, match.groups()))
    elif body:
        block.note(body)


def _result(block: _Block, negative: bool, index: int, rest: str) -> None:
    directive, reason, name = "", "", rest
    if match := _DIRECTIVE.search(rest):
        directive, reason = match.group(1).lower(), match.group(2).strip()
        name = rest[: match.start()]
    elif " #  " in rest:
        name, _, reason = rest.partition(" #  ")
    name = name.strip().removeprefix("- ")
    if negative:
        status = {"todo": Status.XFAIL, "xfail": Status.XFAIL, "skip": Status.SKIPPED, "timeout": Status.TIMEOUT}.get(
            directive, Status.FAILED
        )
    else:
        status = {
            "skip": Status.SKIPPED,
            "xfail": Status.XFAIL,
            "xpass": Status.FAILED,
            "timeout": Status.TIMEOUT,
            "error": Status.FAILED,
        }.get(directive, Status.PASSED)
    # kselftest prints `ok 1 # SKIP what was skipped`: the reason is the only name there is.
    label = name or reason
    if directive == "xpass":
        reason = f"passed though it was expected to fail: {reason}".rstrip(": ")
    if any(test.number == index for test in block.results):
        block.problems.append(f"test {index} reported twice")
    elif block.results and index < (block.results[-1].number or 0):
        block.problems.append(f"test {index} reported after test {block.results[-1].number}")
    if block.plan is not None and index > block.plan:
        block.problems.append(f"test {index} is beyond the plan of {block.plan}")
    label = label or f"test {index}"
    leaf = Test(label, status, index, reason)
    if block.pending is not None:
        pending, block.pending = block.pending, None
        inner = _close(pending, label, None, top=False, plan_required=False)
        problems = inner.problems
        if inner.status.bad and not status.bad:
            problems = (*problems, "reported ok though a subtest did not pass")
            leaf = replace(leaf, status=Status.FAILED, reason=inner.reason or "a subtest did not pass")
        leaf = replace(leaf, children=inner.children, log=inner.log, problems=problems)
    elif status.bad and block.log:
        leaf = replace(leaf, log=tuple(block.log[-20:]))
    block.results.append(leaf)


def _close(block: _Block, name: str, number: int | None, *, top: bool, plan_required: bool) -> Test:
    """Freeze a block: add what never ran, then decide."""
    _abandon(block)
    problems = list(block.problems)
    results = list(block.results)
    seen = {test.number for test in results}
    if block.plan is None:
        if top and plan_required:
            problems.append("no plan" if block.said_something else "no KTAP output")
    else:
        missing = [n for n in range(1, min(block.plan, MOST_MISSING + len(results)) + 1) if n not in seen]
        if missing:
            total = block.plan - len({n for n in seen if n and n <= block.plan})
            problems.append(f"{total} of {block.plan} planned tests never reported")
            why = f"bailed out: {block.bail}" if block.bail else "promised by the plan"
            results += [Test(f"test {n}", Status.NEVER_RAN, n, why) for n in missing]
            results.sort(key=lambda test: test.number or 0)
        if block.plan == 0 and block.skip_all is None and top and plan_required:
            problems.append("a plan of no tests")
    if block.bail is not None:
        problems.insert(0, f"bailed out: {block.bail}")
    if block.totals is not None:
        problems += _check_totals(block.totals, block.results)
    if block.skip_all is not None and not results and not problems:
        return Test(name, Status.SKIPPED, number, block.skip_all or "no reason given", (), tuple(block.log))
    status, reason = _decide(results, problems)
    return Test(name, status, number, reason, tuple(results), tuple(block.log), tuple(problems))


def _check_totals(totals: tuple[int, ...], results: Sequence[Test]) -> list[str]:
    counts = Counter(test.status for test in results)
    passed, failed, xfail, xpass, skipped, error = totals
    said = (passed, failed + xpass + error, xfail, skipped)
    bad = counts[Status.FAILED] + counts[Status.TIMEOUT]
    read = (counts[Status.PASSED], bad, counts[Status.XFAIL], counts[Status.SKIPPED])
    if said == read:
        return []
    words = "pass/fail/xfail/skip"
    return [f"its totals ({words} {'/'.join(map(str, said))}) are not what was read ({'/'.join(map(str, read))})"]


def _decide(results: Sequence[Test], problems: Sequence[str]) -> tuple[Status, str]:
    bad = [test for test in results if test.status.bad]
    if problems:
        return Status.FAILED, problems[0]
    if bad:
        first = bad[0]
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        return Status.FAILED, f"{first.name}{more}"
    if not results:
        return Status.NEVER_RAN, "reported nothing"
    if all(test.status == Status.SKIPPED for test in results):
        reasons = dict.fromkeys(test.reason or test.name for test in results)
        return Status.SKIPPED, "; ".join(reasons)
    return Status.PASSED, ""
