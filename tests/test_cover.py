"""The cover letter: its file, its template, its shortlog."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from harness.data import Identity
from harness.errors import UsageError
from harness.export import cover
from harness.export.mails import Mail

ROOT = Path(__file__).resolve().parent.parent
TEXT = cover.CoverText("sched: A subject", "First.\n\nSecond {{ not a template }}.")


def _render(template: Path, **changes: str) -> str:
    values = {"shortlog": "Me (1):\n  one", "diffstat": " 1 file changed", "base": "v6.18.15", "base_commit": ""}
    return cover.render(template, TEXT, **{**values, **changes})


def test_subject_and_body() -> None:
    text = cover.parse("\n# sched: A subject\n\nFirst line.\n\nLast line.\n\n")
    assert text == cover.CoverText("sched: A subject", "First line.\n\nLast line.")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", ":1: the first line"),
        ("sched: no mark\n\nBody\n", ":1: the first line"),
        ("#\n\nBody\n", ":1: the first line"),
        ("# subject\n\n  \n", "no text"),
        ("# subject\n\nok\nFrom here on it is another mail\n", ":4: a line beginning with `From `"),
    ],
)
def test_what_is_no_cover_letter(text: str, problem: str) -> None:
    with pytest.raises(UsageError) as caught:
        cover.parse(text, "patches/cover-letter.md")
    assert problem in caught.value.message
    assert caught.value.message.startswith("patches/cover-letter.md")


def test_the_template_has_everything_once() -> None:
    body = _render(ROOT / "configs" / cover.TEMPLATE, base_commit="1" * 40)
    for part in ("First.", "{{ not a template }}", "Me (1):", " 1 file changed", "base: v6.18.15", "base-commit: 1111"):
        assert body.count(part) == 1
    assert not body.startswith("\n")
    assert body.endswith("1\n")
    assert body.index("First.") < body.index("Me (1)") < body.index("1 file") < body.index("base: ")


def test_no_base_commit_when_there_is_none() -> None:
    body = _render(ROOT / "configs" / cover.TEMPLATE)
    assert "base-commit" not in body
    assert body.endswith("base: v6.18.15\n")


@pytest.mark.parametrize(
    ("template", "where"), [("{{ body }}\n{{ bodyy }}\n", "bodyy"), ("ok\n{% if base %}\n", "cover.j2:2: ")]
)
def test_a_broken_template_names_itself(tmp_path: Path, template: str, where: str) -> None:
    path = tmp_path / "cover.j2"
    path.write_text(template, encoding="utf-8")
    with pytest.raises(UsageError, match=r"cover\.j2") as caught:
        _render(path)
    assert where in caught.value.message


def test_a_missing_template(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        _render(tmp_path / "cover.j2")


def test_shortlog_by_author() -> None:
    people = [Identity("Zed", "z@k.test"), Identity("Abe", "a@k.test"), Identity("Zed", "z@k.test")]
    now = datetime(2026, 1, 1, tzinfo=UTC)
    mails = [Mail(n, 3, "x", who, who, now, "") for n, who in enumerate(people, 1)]
    assert cover.shortlog(mails, ["one", "two", "three"]) == "Abe (1):\n  two\n\nZed (2):\n  one\n  three"


def test_the_project_s_own_letter_is_one() -> None:
    text = cover.parse((ROOT / "patches" / cover.COVER).read_text(encoding="utf-8"))
    assert len(text.subject) <= 75
    assert max(map(len, text.body.splitlines())) <= 75
    assert len(text.body.splitlines()) > 40
