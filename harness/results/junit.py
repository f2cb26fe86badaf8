"""JUnit XML as CI systems read it. Pure: results in, text out; characters that XML cannot hold are replaced."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence

from harness.guest.ktap import Status, Test
from harness.results.model import ArchResult

_ILLEGAL = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def clean(text: str) -> str:
    """``text`` without what XML 1.0 forbids, each such character as \\xNN."""
    return _ILLEGAL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def render(results: Sequence[ArchResult]) -> str:
    """A document with a test suite for each architecture and program, and a test case for each subtest."""
    top = ET.Element("testsuites", name="agent-latency")
    for result in results:
        if result.problem is not None:
            suite = ET.SubElement(top, "testsuite", name=result.arch)
            case = ET.SubElement(suite, "testcase", name="harness", classname=result.arch)
            _child(case, "error", result.problem.message, f"{result.problem.detail}\n{result.problem.hint}", "harness")
        if result.verdict is None:
            continue
        suite = ET.SubElement(top, "testsuite", name=f"{result.arch}.guest")
        case = ET.SubElement(suite, "testcase", name="boot", classname=f"{result.arch}.guest")
        if result.boot_seconds is not None:
            case.set("time", f"{result.boot_seconds:.3f}")
        if result.verdict.failure is not None:
            text = "\n\n".join(report.shown(60) for report in result.verdict.splats[:5])
            _child(case, "error", result.verdict.failure.message, text, result.verdict.failure.kind)
        if result.log is not None:
            ET.SubElement(suite, "system-out").text = clean(f"console log: {result.log}")
        for test in result.verdict.everything:
            _suite(top, result.arch, test)
    for suite in top:
        _count(suite)
    for key in ("tests", "failures", "errors", "skipped"):
        top.set(key, str(sum(int(suite.get(key, "0")) for suite in top)))
    ET.indent(top)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{ET.tostring(top, encoding="unicode")}\n'


def _suite(top: ET.Element, arch: str, test: Test) -> None:
    suite = ET.SubElement(top, "testsuite", name=clean(f"{arch}.{test.name}"))
    leaves = list(test.leaves()) if test.children else []
    for leaf in leaves:
        _case(suite, f"{arch}.{test.name}", leaf)
    # The program itself is a case when its subtests do not tell what became of it.
    if not leaves or (test.status.bad and not any(leaf.status.bad for leaf in leaves)):
        _case(suite, f"{arch}.{test.name}", test)
    if test.seconds is not None:
        suite.set("time", f"{test.seconds:.3f}")


def _case(suite: ET.Element, classname: str, test: Test) -> None:
    case = ET.SubElement(suite, "testcase", name=clean(test.name), classname=clean(classname))
    reason = test.reason or str(test.status)
    if test.status == Status.SKIPPED:
        ET.SubElement(case, "skipped", message=clean(reason))
    elif test.status in (Status.CRASHED, Status.TIMEOUT, Status.NEVER_RAN):
        _child(case, "error", reason, "\n".join(test.log), str(test.status))
    elif test.status.bad:
        _child(case, "failure", reason, "\n".join(test.log), str(test.status))


def _child(case: ET.Element, tag: str, message: str, text: str, kind: str) -> None:
    child = ET.SubElement(case, tag, message=clean(message), type=clean(kind))
    if text.strip():
        child.text = clean(text)


def _count(suite: ET.Element) -> None:
    cases = suite.findall("testcase")
    suite.set("tests", str(len(cases)))
    for key, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(key, str(sum(case.find(tag) is not None for case in cases)))
