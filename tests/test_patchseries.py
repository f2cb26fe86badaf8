"""The series file and the patches beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import UsageError
from harness.source.series import UNFINISHED, Series
from tests import minikernel


@pytest.fixture
def patches(tmp_path: Path) -> Path:
    project = minikernel.mini(tmp_path)
    minikernel.store(project)
    return project.root / "patches"


def test_order_is_that_of_the_series_file(patches: Path) -> None:
    names = (patches / "series").read_text().split()
    assert [p.name for p in Series.load(patches).patches] == names
    (patches / "series").write_text("# a comment\n\n" + "\n".join(reversed(names)) + "  # another\n")
    assert [p.name for p in Series.load(patches).patches] == names[::-1]


def test_no_directory_and_an_empty_one_are_an_empty_series(tmp_path: Path) -> None:
    assert Series.load(tmp_path / "absent").patches == ()
    assert Series.load(tmp_path) == Series(())


def test_a_file_is_no_series(tmp_path: Path) -> None:
    (tmp_path / "patches").touch()
    with pytest.raises(UsageError, match="is a file"):
        Series.load(tmp_path / "patches")


def test_cover_letter_is_no_patch(patches: Path) -> None:
    before = Series.load(patches)
    (patches / "cover-letter.md").write_text("# Übersicht\n\nText.\n")
    after = Series.load(patches)
    assert before.cover is None
    assert after.cover == "# Übersicht\n\nText.\n"
    assert after.fingerprint == before.fingerprint


def test_fingerprint_is_of_names_bytes_and_order(patches: Path) -> None:
    series = Series.load(patches)
    seen = {series.fingerprint, Series(series.patches[::-1]).fingerprint, Series(series.patches[:2]).fingerprint}
    first = patches / series.patches[0].name
    first.write_text(first.read_text().replace("Why.", "Why?"))
    seen.add(Series.load(patches).fingerprint)
    assert len(seen) == 4


def test_touched_holds_the_first_preimage(patches: Path) -> None:
    touched = Series.load(patches).touched()
    assert touched["include/linux/agent.h"] is None
    assert touched["kernel/ünï.c"] is None
    assert touched["kernel/empty.h"] == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"
    assert len(touched["kernel/sched/core.c"] or "") == 40
    assert len(touched) == 4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text + "0009-absent.patch\n", "0009-absent.patch is listed but does not exist"),
        (lambda text: text + text, "is listed 2 times"),
        (lambda text: text.split("\n", 1)[1], "is not listed in series"),
        (lambda text: "../" + text, "is not the name of a patch beside it"),
        (lambda text: text + "cover-letter.md\n", "is not the name of a patch beside it"),
    ],
)
def test_a_series_file_that_does_not_agree(patches: Path, change: object, said: str) -> None:
    file = patches / "series"
    assert callable(change)
    file.write_text(change(file.read_text()))
    with pytest.raises(UsageError) as caught:
        Series.load(patches)
    assert said in caught.value.message
    assert caught.value.hint


def test_absent_series_file_beside_patches(patches: Path) -> None:
    (patches / "series").unlink()
    with pytest.raises(UsageError, match="is not listed"):
        Series.load(patches)


def test_interrupted_refresh_is_said(patches: Path) -> None:
    (patches / UNFINISHED).touch()
    with pytest.raises(UsageError, match="a refresh was interrupted"):
        Series.load(patches)


def test_before(patches: Path) -> None:
    series = Series.load(patches)
    for name in ("0002", "2", series.patches[1].name):
        assert series.before(name).patches == series.patches[:1]
    for name in ("0009", "", "000", "²", "9" * 5000):
        with pytest.raises(UsageError, match="patches, not one"):
            series.before(name)
