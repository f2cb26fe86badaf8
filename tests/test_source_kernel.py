"""The real source: fetched, imported, the stored series applied, and written back without changing a byte."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from harness import data
from harness.context import Context
from harness.mutation import mutants as mutation
from harness.report import Reporter
from harness.settings import resolve
from harness.source.refresh import DeveloperTree
from harness.source.repo import KernelRepo
from harness.source.series import Series
from tests.minikernel import sh

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.kernel


@pytest.fixture
def context(tmp_path: Path) -> Context:
    """The real pin, the user's real cache, and a copy of the series."""
    for name in ("configs", "patches"):
        shutil.copytree(ROOT / name, tmp_path / name)
    return Context(tmp_path, resolve(ROOT, {}), Reporter())


def test_series_round_trips_on_the_pinned_source(context: Context, tmp_path: Path) -> None:
    series = Series.load(context.patches)
    repo = KernelRepo(context)
    base, head = repo.ensure_base(), repo.apply(series)
    assert len(repo.git("ls-tree", "-r", "--name-only", base).splitlines()) > 80_000
    assert len(repo.commits(series)) == len(series.patches)
    before = {path.name: path.read_bytes() for path in context.patches.iterdir()}
    # A developer may have a tree of the branch already; the export needs none.
    tree = DeveloperTree(context, tmp_path / "tree")
    assert tree._render(base, head, tmp_path / "out") == {
        name: raw for name, raw in before.items() if name.endswith(".patch")
    }


def test_switching_rewrites_only_what_the_series_touches(context: Context) -> None:
    series = Series.load(context.patches)
    repo = KernelRepo(context)
    base, head = repo.ensure_base(), repo.apply(series)

    def mtimes(tree: Path) -> dict[str, int]:
        names = sh(tree, "git", "ls-files", "-z").split("\0")
        return {name: (tree / name).lstat().st_mtime_ns for name in filter(None, names)}

    with repo.checkout(base) as tree:
        before = mtimes(tree)
    with repo.checkout(head) as tree:
        after = mtimes(tree)
    assert {name for name in before if after.get(name) != before[name]} <= set(series.touched())


def test_every_mutant_still_finds_what_it_breaks(context: Context) -> None:
    path = context.configs / "mutants.yaml"
    known = data.load(path, mutation.Mutants)
    mutation.check(known, str(path))
    repo = KernelRepo(context)
    head = repo.apply(Series.load(context.patches))
    texts = mutation.apply(known, {file: repo.read(head, file) for file in known.files()})
    commit = repo.commit_files(head, texts, "Mutants")
    assert commit == repo.commit_files(head, texts, "Mutants")
    assert set(repo.git("diff", "--name-only", head, commit).splitlines()) == set(known.files())
