"""The whole export on a miniature tree with real git: bytes, tree, recipients, directory, and what goes wrong."""

from __future__ import annotations

import email
import email.policy
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.errors import ApplyError, EnvironmentFailure, UsageError
from harness.export import exporter, outdir
from harness.export.exporter import Export, Request
from harness.export.scratch import scratch
from harness.source.repo import KernelRepo
from harness.source.series import Series
from harness.verbs import series as verb

from . import seriesfixture
from .seriesfixture import PROJECT, Project, run

SENDER = "Zoë Sender <sender@kernel.test>"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Three patches on a base: one for the scheduler, one for the interface, one by somebody else."""
    made = seriesfixture.make(tmp_path_factory.mktemp("made") / "x")
    core = (made.tree / "kernel/sched/core.c").read_text(encoding="utf-8")
    made.commit(
        f"sched: Add a line\n\nIt was missing.\n\nSigned-off-by: {PROJECT}",
        {"kernel/sched/core.c": core.replace("int line20;", "int line20;\nint füll; /* ü */")},
    )
    made.commit(
        f"prctl: Überschrift with an umlaut\n\nReported-by: Rita Reporter <rita@kernel.test>\nSigned-off-by: {PROJECT}",
        {"include/uapi/linux/prctl.h": "#define PR_ONE 1\n#define PR_TWO 2\n"},
    )
    made.commit(
        f"sched: Add a file\n\nFrom here it is new.\n\nSigned-off-by: Ren <ren@kernel.test>\nSigned-off-by: {PROJECT}",
        {"kernel/sched/agent.c": "int agent;\n"},
        author="Ren <ren@kernel.test>",
    )
    made.store()
    return made.settle()


@pytest.fixture
def project(made: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A copy of it, and a user without a git configuration."""
    config = tmp_path / "gitconfig"
    config.write_text("", encoding="utf-8")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    return made.copy(tmp_path / "made")


def _export(project: Project, directory: Path, **changes: object) -> Export:
    values: dict[str, object] = {"directory": directory, "sender": SENDER, **changes}
    return exporter.export(project.import_base(), Request(**values))  # type: ignore[arg-type]


def _bytes(directory: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in directory.iterdir()}


def _mails(directory: Path) -> list[email.message.EmailMessage]:
    policy = email.policy.default
    found = []
    for path in sorted(directory.glob("*.patch")):
        message = email.message_from_bytes(path.read_bytes().partition(b"\n")[2], policy=policy)
        assert isinstance(message, email.message.EmailMessage)
        found.append(message)
    return found


def test_two_exports_are_byte_identical(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = _export(project, tmp_path / "one")
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    monkeypatch.setenv("GIT_AUTHOR_DATE", "2001-01-01T00:00:00Z")
    (tmp_path / "gitconfig").write_text("[diff]\n\tnoprefix = true\n[core]\n\tabbrev = 4\n", encoding="utf-8")
    two = _export(project, tmp_path / "two")
    assert _bytes(tmp_path / "one") == _bytes(tmp_path / "two")
    assert one.tree == two.tree
    assert len(_bytes(tmp_path / "one")) == 6, "cover letter, three patches, mailbox, manifest"


def test_git_am_of_a_user_gives_the_tree_of_the_series(project: Project, tmp_path: Path) -> None:
    done = _export(project, tmp_path / "out")
    clone = tmp_path / "clone"
    run(tmp_path, "git", "clone", "-q", str(project.tree), str(clone))
    run(clone, "git", "checkout", "-q", "--detach", "base")
    who = {"GIT_COMMITTER_NAME": "x", "GIT_COMMITTER_EMAIL": "x@kernel.test"}
    run(clone, "git", "am", "-q", str(tmp_path / "out" / exporter.MBOX), env=who)
    head = run(clone, "git", "rev-parse", "HEAD^{tree}").strip()
    assert head == run(project.tree, "git", "rev-parse", "main^{tree}").strip() == done.tree
    subjects = run(clone, "git", "log", "--reverse", "--format=%an|%s", "base..HEAD").splitlines()
    assert subjects == [
        "Zoë Sender|sched: Add a line",
        "Zoë Sender|prctl: Überschrift with an umlaut",
        "Ren|sched: Add a file",
    ]


def test_mails_carry_the_sender_and_not_the_project(project: Project, tmp_path: Path) -> None:
    done = _export(project, tmp_path / "out")
    everything = b"".join(_bytes(tmp_path / "out").values()).decode()
    assert "example.org" not in everything
    assert done.warnings == ()
    bodies = [m.get_content() for m in _mails(tmp_path / "out")]
    assert [b.count("Signed-off-by: Zoë Sender <sender@kernel.test>") for b in bodies] == [0, 1, 1, 1]
    assert bodies[3].startswith("From: Ren <ren@kernel.test>\n\nFrom here")


def test_the_placeholder_is_said_plainly(project: Project, tmp_path: Path) -> None:
    done = _export(project, tmp_path / "out", sender=None)
    assert len(done.warnings) == 1
    assert "still the placeholder" in done.warnings[0]
    assert PROJECT in (tmp_path / "out" / exporter.MBOX).read_text(encoding="utf-8")


def test_a_placeholder_in_a_file_is_said_too(project: Project, tmp_path: Path) -> None:
    maintainers = (project.tree / "MAINTAINERS").read_text(encoding="utf-8")
    project.commit(
        f"MAINTAINERS: Add us\n\nSigned-off-by: {PROJECT}", {"MAINTAINERS": f"M:	{PROJECT}\n{maintainers}"}
    )
    names = project.store()
    done = _export(project, tmp_path / "out")
    assert [names[3] in text for text in done.warnings] == [True]
    assert all("example.org" not in r.email for r in (*done.recipients.to, *done.recipients.cc))


def test_union_of_recipients_on_every_mail(project: Project, tmp_path: Path) -> None:
    _export(project, tmp_path / "out")
    heads = {(str(m["To"]), str(m["Cc"])) for m in _mails(tmp_path / "out")}
    assert len(heads) == 1
    to, cc = heads.pop()
    assert re.findall(r"[\w-]+@", to) == ["amos@", "ina@", "zoe@"]
    assert re.findall(r"[\w-]+@", cc) == ["ren@", "rita@", "linux-api@", "linux-kernel@"]


def test_per_patch_recipients(project: Project, tmp_path: Path) -> None:
    _export(project, tmp_path / "out", per_patch_cc=True)
    to = [re.findall(r"[\w-]+@", str(m["To"])) for m in _mails(tmp_path / "out")]
    assert to == [["amos@", "ina@", "zoe@"], ["amos@", "zoe@"], ["ina@"], ["amos@", "zoe@"]]


def test_no_cc_runs_no_perl(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    for tool in ("git", "env", "sh"):
        found = next(Path(d) / tool for d in os.environ["PATH"].split(":") if (Path(d) / tool).exists())
        (bin_ / tool).symlink_to(found)
    monkeypatch.setenv("PATH", str(bin_))
    _export(project, tmp_path / "out", cc=False)
    assert all(m["To"] is None and m["Cc"] is None for m in _mails(tmp_path / "out"))
    with pytest.raises(EnvironmentFailure, match="perl is not installed"):
        _export(project, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_the_user_s_own_script_settings_change_nothing(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / ".get_maintainer.conf").write_text("--no-l\n", encoding="utf-8")
    monkeypatch.setenv("HOME", str(home))
    assert len(_export(project, tmp_path / "out").recipients) == 7


def test_the_cover_letter(project: Project, tmp_path: Path) -> None:
    _export(project, tmp_path / "out", revision=2)
    letter = _mails(tmp_path / "out")[0]
    assert letter["Subject"] == "[RFC PATCH v2 0/3] sched: Eine Übersicht of the series"
    body = letter.get_content()
    assert body.startswith("Why it exists.")
    assert "Ren (1):\n  sched: Add a file\n\nZoë Sender (2):\n  sched: Add a line\n  prctl: Überschrift" in body
    assert re.search(r"^ kernel/sched/core.c +\| 1 \+$", body, re.M)
    assert "3 files changed, 3 insertions(+)" in body
    assert "create mode 100644 kernel/sched/agent.c" in body
    assert "base: v6.18.15\n" in body
    assert "base-commit" not in body, "the commit of an imported tarball means nothing to a reader"


def test_base_commit_when_the_tree_is_upstream_s(project: Project, tmp_path: Path) -> None:
    run(project.tree, "git", "tag", "v6.18.15", "base")
    context = project.context(kernel_source=str(project.tree))
    exporter.export(context, Request(tmp_path / "out", sender=SENDER))
    commit = run(project.tree, "git", "rev-parse", "base").strip()
    assert f"base-commit: {commit}\n" in _mails(tmp_path / "out")[0].get_content()


def test_names_of_a_reroll(project: Project, tmp_path: Path) -> None:
    done = _export(project, tmp_path / "out", revision=3, rfc=False)
    assert done.files == (
        "v3-0000-cover-letter.patch",
        "v3-0001-sched-Add-a-line.patch",
        "v3-0002-prctl-berschrift-with-an-umlaut.patch",
        "v3-0003-sched-Add-a-file.patch",
        "series.mbox",
    )
    assert [str(m["Subject"]).partition("]")[0] for m in _mails(tmp_path / "out")] == [
        "[PATCH v3 0/3",
        "[PATCH v3 1/3",
        "[PATCH v3 2/3",
        "[PATCH v3 3/3",
    ]
    with pytest.raises(UsageError, match="no revision 0"):
        _export(project, tmp_path / "out", revision=0)


def test_an_older_export_is_replaced_whole(project: Project, tmp_path: Path) -> None:
    _export(project, tmp_path / "out", revision=2)
    _export(project, tmp_path / "out", revision=3)
    assert not list((tmp_path / "out").glob("v2-*"))
    assert len(list((tmp_path / "out").glob("v3-*"))) == 4
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def _foreign(path: Path) -> None:
    path.mkdir()
    (path / "thesis.txt").write_text("years of work", encoding="utf-8")


def _file(path: Path) -> None:
    path.write_text("years of work", encoding="utf-8")


def _edited(path: Path) -> None:
    outdir.write(path, {"0000-cover-letter.patch": b"ours"}, {})
    (path / "0000-cover-letter.patch").write_text("edited by hand", encoding="utf-8")


def _added(path: Path) -> None:
    outdir.write(path, {"0000-cover-letter.patch": b"ours"}, {})
    (path / "notes.txt").write_text("mine", encoding="utf-8")


def _broken(path: Path) -> None:
    path.mkdir()
    (path / outdir.MANIFEST).write_text("{", encoding="utf-8")


@pytest.mark.parametrize("prepare", [_foreign, _file, _edited, _added, _broken])
def test_what_is_not_ours_stays(project: Project, tmp_path: Path, prepare: Callable[[Path], None]) -> None:
    target = tmp_path / "out"
    prepare(target)
    before = _bytes(target) if target.is_dir() else target.read_bytes()
    with pytest.raises(UsageError) as caught:
        _export(project, target)
    assert "--output-dir" in caught.value.hint
    assert (_bytes(target) if target.is_dir() else target.read_bytes()) == before


def test_a_failed_write_leaves_the_old_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "out"
    outdir.write(target, {"a": b"old"}, {})

    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(EnvironmentFailure, match="no space left"):
        outdir.write(target, {"a": b"new"}, {})
    monkeypatch.undo()
    assert (target / "a").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_mails_that_give_another_tree_are_not_written(project: Project, tmp_path: Path) -> None:
    context = project.import_base()
    series = Series.load(context.patches)
    repo = KernelRepo(context)
    base, head = repo.ensure_base(), repo.apply(series)
    good = b"".join(m.render() for m in _export(project, tmp_path / "out").mails[1:])
    prove = exporter.prove
    assert prove(context, good, series.patches, base, head, 60) == _export(project, tmp_path / "out").tree
    with pytest.raises(ApplyError, match="another tree") as caught:
        prove(context, good.replace(b"+int agent;", b"+int other;"), series.patches, base, head, 60)
    assert "kernel/sched/agent.c" in caught.value.detail
    with pytest.raises(ApplyError, match="do not apply") as caught:
        prove(context, good.replace(b" int line19;", b" int changed;"), series.patches, base, head, 60)
    assert "sched: Add a line" in caught.value.detail
    first = good[: good.index(b"\nFrom 0000") + 1]
    with pytest.raises(ApplyError, match="makes 1 commits"):
        prove(context, first, series.patches, base, head, 60)
    assert list((context.cache / "tmp").iterdir()) == []


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("cover-letter.md", None, "does not exist"),
        ("cover-letter.md", "no subject\n", "the first line must be"),
        ("series", "", "no patch"),
    ],
)
def test_a_broken_series_writes_nothing(
    project: Project, tmp_path: Path, file: str, text: str | None, said: str
) -> None:
    path = project.root / "patches" / file
    if text is None:
        path.unlink()
    else:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        _export(project, tmp_path / "out")
    assert said in caught.value.message or file == "series"
    assert not (tmp_path / "out").exists()


def test_scratch_has_only_what_is_asked_for_and_goes_away(project: Project, tmp_path: Path) -> None:
    context = project.import_base()
    base = KernelRepo(context).ensure_base()
    where = tmp_path / "tmp"
    stale = where / "scratch-999999999-x"
    stale.mkdir(parents=True)
    with scratch(context.kernel_repo, base, ["kernel/sched/core.c"], where, directories=True) as place:
        files = sorted(str(p.relative_to(place.tree)) for p in place.tree.rglob("*") if p.is_file())
        assert [f for f in files if not f.startswith(".git")] == ["kernel/sched/core.c"]
        assert (place.tree / "drivers" / "empty").is_dir()
        assert not stale.exists()
        assert place.git("status", "--porcelain").output == ""
    assert list(where.iterdir()) == []


def _run(project: Project, *argv: str, dry_run: bool = False) -> str:
    import argparse
    import dataclasses

    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    context = dataclasses.replace(project.import_base(), dry_run=dry_run)
    assert verb.run(context, parser.parse_args(argv)) == 0
    return project.out.getvalue()


def test_verb_export_says_what_it_did(project: Project, tmp_path: Path) -> None:
    said = _run(project, "export", "--from", SENDER, "-o", str(tmp_path / "out"))
    assert "[RFC PATCH 2/3] prctl: Überschrift with an umlaut" in said
    assert "To: Zoë Planner" not in said, "names are shown as they are written"
    assert "zoe@kernel.test> (maintainer)" in said
    tree = json.loads((tmp_path / "out" / outdir.MANIFEST).read_text(encoding="utf-8"))["tree"]
    assert f"3 patches apply with git am to v6.18.15 and give tree {tree[:12]}" in said
    assert "warning" not in project.err.getvalue()


def test_verb_export_warns_on_both_streams(project: Project) -> None:
    said = _run(project, "export")
    assert "warning: the sender is still the placeholder" in said
    assert "warning: the sender is still the placeholder" in project.err.getvalue()
    assert (project.root / "outgoing" / "v1" / exporter.MBOX).is_file()


def test_verb_export_dry_run_writes_nothing(project: Project, tmp_path: Path) -> None:
    said = _run(project, "export", "--from", SENDER, "-o", str(tmp_path / "out"), "-V", "2", dry_run=True)
    assert said.count("perl scripts/get_maintainer.pl") == 3
    assert "v2-0003-sched-Add-a-file.patch: [RFC PATCH v2 3/3] sched: Add a file" in said
    assert not (tmp_path / "out").exists()


def test_verb_list(project: Project) -> None:
    lines = _run(project, "list").splitlines()
    assert re.split(r"\s{2,}", lines[3]) == ["2", "prctl: Überschrift with an umlaut", "+1", "-0", "1"]
    assert re.split(r"\s{2,}", lines[-1].strip()) == ["all", "+3", "-0", "3"]
