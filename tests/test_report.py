"""What a person reads."""

from __future__ import annotations

import io
import os

import pytest

from harness.errors import EnvironmentFailure
from harness.report import Reporter, table


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_table_aligns() -> None:
    assert table([["a", "bb"], ["ccc", "d"]], ["x", "y"]) == "x    y\n---  --\na    bb\nccc  d"
    assert table([]) == ""


def test_progress_is_a_bar_only_on_a_terminal() -> None:
    terminal, plain = Terminal(), io.StringIO()
    for stream in (terminal, plain):
        report = Reporter(err=stream)
        for done in range(101):
            report.progress("fetch", done << 20, 100 << 20)
        report.step("done")
    assert "\r" in terminal.getvalue()
    assert "\r" not in plain.getvalue()
    assert plain.getvalue().count("fetch") == 11
    assert terminal.getvalue().endswith("\n\x1b[36mdone\x1b[0m\n") or terminal.getvalue().endswith("\ndone\n")


def test_quiet_says_errors_and_results_only() -> None:
    out, err = io.StringIO(), io.StringIO()
    report = Reporter(verbosity=-1, out=out, err=err)
    report.step("step")
    report.progress("p", 1, 2)
    report.debug("debug")
    report.result("result")
    report.error("broken", hint="mend")
    assert out.getvalue() == "result\n"
    assert err.getvalue() == "error: broken\n  next: mend\n"


def test_no_colour_off_a_terminal() -> None:
    err = io.StringIO()
    Reporter(err=err).warn("w")
    assert err.getvalue() == "warning: w\n"


def test_a_reader_that_has_gone_is_no_failure() -> None:
    out, into = os.pipe()
    os.close(out)
    with os.fdopen(into, "w") as gone:
        report = Reporter(out=gone, err=gone)
        report.step("step")
        report.result("one")
        report.result("two")
        report.error("broken", detail="why", hint="mend")


def test_a_full_disk_behind_stdout_is_named() -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123
        with pytest.raises(EnvironmentFailure, match="cannot write to standard output: No space left"):
            Reporter(out=full).result("x")
        Reporter(err=full).error("x")


def test_streams_that_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", None)
    monkeypatch.setattr("sys.stderr", None)
    report = Reporter()
    report.result("x")
    report.error("x")
