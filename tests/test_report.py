"""What a person reads."""

from __future__ import annotations

import io

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
