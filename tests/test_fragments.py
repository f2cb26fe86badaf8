"""Kconfig fragments: parsed strictly, merged with their origin."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import UsageError
from harness.kconfig import fragments

ROOT = Path(__file__).resolve().parent.parent


def test_values_and_origins() -> None:
    text = '# why\n\nCONFIG_A=y\nCONFIG_B=n\n# CONFIG_C is not set\nCONFIG_D="a b=\\"c\\""\n'
    text += "  CONFIG_E=0xfF  \nCONFIG_F=-3\n"
    found = fragments.parse(text, "f.config")
    assert [(r.symbol, r.value) for r in found] == [
        ("A", "y"),
        ("B", None),
        ("C", None),
        ("D", '"a b=\\"c\\""'),
        ("E", "0xfF"),
        ("F", "-3"),
    ]
    assert [r.origin for r in found] == [f"f.config:{n}" for n in (3, 4, 5, 6, 7, 8)]
    assert [r.line for r in found][:3] == ["CONFIG_A=y", "# CONFIG_B is not set", "# CONFIG_C is not set"]


@pytest.mark.parametrize(
    "line",
    [
        "CONFIG_A",
        "CONFIG_A = y",
        "CONFIG_A=yes",
        "CONFIG_A=y # because",
        'CONFIG_A="open',
        "CONFIG_A=",
        "A=y",
        "CONFIG-A=y",
        "# CONFIG_A is not set.",
        "# CONFIG_A is  not set",
        "<<<<<<< HEAD",
    ],
)
def test_malformed_line_names_file_and_line(line: str) -> None:
    with pytest.raises(UsageError) as caught:
        fragments.parse(f"CONFIG_OK=y\n{line}\n", "x/f.config")
    assert caught.value.message.startswith("x/f.config:2: ")
    assert caught.value.hint


@pytest.mark.parametrize("line", ["", "   ", "#", "# CONFIG_A=y", "# CONFIG_A needs B", "#CONFIG_A is not set"])
def test_comments_and_blank_lines(line: str) -> None:
    assert len(fragments.parse(line, "f")) == (line == "#CONFIG_A is not set")


def test_later_wins_and_both_are_named() -> None:
    merged = fragments.merge(
        [
            fragments.parse("CONFIG_A=y\nCONFIG_B=1\nCONFIG_C=y\n", "one"),
            fragments.parse("CONFIG_B=2\nCONFIG_C=y\n# CONFIG_A is not set\n", "two"),
            fragments.parse("CONFIG_A=y\n", "three"),
        ]
    )
    assert {s: r.shown for s, r in merged.requests.items()} == {"A": "y", "B": "2", "C": "y"}
    assert merged.requests["A"].origin == "three:1"
    pairs = [(a.origin, b.origin) for a, b in merged.overridden]
    assert pairs == [("one:2", "two:1"), ("one:1", "two:3"), ("two:3", "three:1")]
    assert merged.render().splitlines() == ["CONFIG_B=2", "CONFIG_C=y", "CONFIG_A=y"]


def test_missing_and_binary_files(tmp_path: Path) -> None:
    (tmp_path / "a.config").write_bytes(b"\xff")
    with pytest.raises(UsageError, match=r"no\.config does not exist") as caught:
        fragments.read(tmp_path / "no.config")
    assert caught.value.hint == "known: a"
    with pytest.raises(UsageError, match="not UTF-8"):
        fragments.read(tmp_path / "a.config")


def test_projects_own_fragments_parse_without_contradicting_themselves() -> None:
    paths = sorted((ROOT / "configs/fragments").glob("*.config"))
    assert len(paths) >= 7
    for path in paths:
        merged = fragments.merge([fragments.read(path)])
        assert merged.requests
        assert not merged.overridden


def test_race_detector_is_switched_on() -> None:
    """Its default is y, which counts for nothing below a configuration that says no to all; it then finds no race."""
    path = ROOT / "configs/fragments/kcsan.config"
    found = {request.symbol: request.value for request in fragments.parse(path.read_text(), path.name)}
    assert (found["KCSAN"], found["KCSAN_EARLY_ENABLE"]) == ("y", "y")
