"""checkpatch.pl: its output read whole or not at all, and exceptions with a reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import EnvironmentFailure, StageTimeout, UsageError
from harness.export import checkpatch
from harness.export.checkpatch import Exception_

OUTPUT = """\
WARNING:COMMIT_MESSAGE: Missing commit description - Add an appropriate one

WARNING:FILE_PATH_CHANGES: added, moved or deleted file(s), does MAINTAINERS need updating?
#31: 
new file mode 100644

CHECK:PARENTHESIS_ALIGNMENT: Alignment should match open parenthesis
#57: FILE: include/trace/events/agent_latency.h:22:
+TRACE_EVENT(agent_window_arm,
+

ERROR:SPACING: space prohibited after that open parenthesis '('
#63: FILE: include/trace/events/agent_latency.h:28:
+		__array(	char,	comm,	TASK_COMM_LEN	)

ERROR:SPACING: space prohibited after that open parenthesis '('
#90: FILE: kernel/sched/agent.c:7:
+	f( x);

total: 2 errors, 2 warnings, 1 checks, 158 lines checked

NOTE: For some of the reported defects, checkpatch may be able to
      mechanically convert to the typical style using --fix or --fix-inplace.

x.patch has style problems, please review.
"""  # noqa: W291


def test_messages_with_their_places() -> None:
    report = checkpatch.parse(OUTPUT)
    assert [(m.level, m.type, m.file, m.line) for m in report.messages] == [
        ("WARNING", "COMMIT_MESSAGE", "", 0),
        ("WARNING", "FILE_PATH_CHANGES", "", 0),
        ("CHECK", "PARENTHESIS_ALIGNMENT", "include/trace/events/agent_latency.h", 22),
        ("ERROR", "SPACING", "include/trace/events/agent_latency.h", 28),
        ("ERROR", "SPACING", "kernel/sched/agent.c", 7),
    ]
    assert report.totals == "2/2/1"
    assert report.lines == 158
    assert str(report.messages[4]) == (
        "kernel/sched/agent.c:7: ERROR: space prohibited after that open parenthesis '(' [SPACING]"
    )


def test_an_exception_holds_for_its_type_and_paths_only() -> None:
    exceptions = (
        Exception_("SPACING", "the layout of TRACE_EVENT", ("include/trace/events/*.h",)),
        Exception_("FILE_PATH_CHANGES", "checked by us"),
    )
    report = checkpatch.parse(OUTPUT, exceptions)
    assert report.totals == "1/1/1 (+2)"
    assert [m.file for m in report.messages if m.level == "ERROR"] == ["kernel/sched/agent.c"]


def test_a_clean_patch() -> None:
    report = checkpatch.parse("total: 0 errors, 0 warnings, 0 checks, 9 lines checked\n\nx.patch has no problems.\n")
    assert report.messages == ()
    assert report.totals == "0/0/0"


@pytest.mark.parametrize("output", ["", "some perl words\n", OUTPUT.replace("2 errors", "3 errors")])
def test_totals_that_do_not_agree_are_an_error(output: str) -> None:
    with pytest.raises(EnvironmentFailure, match="was not understood"):
        checkpatch.parse(output)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("exceptions:\n  - type: SPACING\n", "'reason' is missing"),
        ("exceptions:\n  - SPACING\n", "expected a mapping"),
        ("exceptions: [\n", "checkpatch.yaml:2"),
        ("ignore: []\n", "unknown field 'ignore'"),
    ],
)
def test_broken_exceptions(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "checkpatch.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        checkpatch.load_exceptions(path)
    assert said in caught.value.message


def test_every_exception_of_the_project_has_a_reason() -> None:
    path = Path(__file__).resolve().parent.parent / "configs" / "checkpatch.yaml"
    for exception in checkpatch.load_exceptions(path):
        assert len(exception.reason.split()) >= 5
    assert checkpatch.load_exceptions(path.with_name("no-such.yaml")) == ()


def _tree(directory: Path, script: str) -> Path:
    (directory / "scripts").mkdir(parents=True)
    (directory / checkpatch.SCRIPT).write_text(script, encoding="utf-8")
    return directory


def test_findings_are_no_failure_of_the_script(tmp_path: Path) -> None:
    tree = _tree(tmp_path / "tree", 'print "total: 1 errors, 0 warnings, 0 checks, 1 lines checked\\n"; exit 1;\n')
    assert "1 errors" in checkpatch.run(tree, tmp_path / "x.patch", tmp_path)


def test_a_script_that_dies_is_named_with_its_words(tmp_path: Path) -> None:
    tree = _tree(tmp_path / "tree", 'die "no idea\\n";\n')
    with pytest.raises(EnvironmentFailure, match=r"checkpatch\.pl failed on x\.patch") as caught:
        checkpatch.run(tree, tmp_path / "x.patch", tmp_path)
    assert caught.value.detail == "no idea"


def test_a_licence_that_could_not_be_checked_is_not_valid(tmp_path: Path) -> None:
    script = (
        'print "total: 0 errors, 0 warnings, 0 checks, 1 lines checked\\n"; exec "python3 -c \'import no_such\'";\n'
    )
    with pytest.raises(EnvironmentFailure, match=r"spdxcheck\.py failed on x\.patch: .*no_such"):
        checkpatch.run(_tree(tmp_path / "tree", f"$| = 1; {script}"), tmp_path / "x.patch", tmp_path)


def test_a_script_that_hangs_meets_its_deadline(tmp_path: Path) -> None:
    with pytest.raises(StageTimeout):
        checkpatch.run(_tree(tmp_path / "tree", "sleep 60;\n"), tmp_path / "x.patch", tmp_path, timeout=0.3)
