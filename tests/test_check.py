"""`harness check` on a tree in miniature: real git and make, compilers that copy."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import time
from dataclasses import replace
from pathlib import Path

import pytest

from harness.build import make as kbuild
from harness.errors import BuildError, EnvironmentFailure, ExitCode, UsageError
from harness.export import perpatch
from harness.export.perpatch import Builder, Memory, Warning_
from harness.export.worktree import check_tree
from harness.source.repo import KernelRepo
from harness.source.series import Series
from harness.verbs import check

from . import seriesfixture
from .seriesfixture import PROJECT, Project, run

BUILDS = 4  # two architectures, option on and off
X86 = ("--no-checkpatch", "-a", "x86_64")

# Makes `make kernel/sched.o` a target of the miniature tree, as it is one of the real one.
SINGLE = "\nSINGLE := $(filter %.o,$(MAKECMDGOALS))\n$(SINGLE): %.o: $(O)/%.o\n"
KCONFIG = '\nconfig AGENT_LATENCY\n\tbool "Agent latency window"\n\tdepends on SMP\n'
FRAGMENTS = {
    "check": "CONFIG_SMP=y\n",
    "check-on": "CONFIG_AGENT_LATENCY=y\n",
    "check-kunit": "CONFIG_AGENT_KUNIT=y\n",
    "agent-off": "# CONFIG_AGENT_LATENCY is not set\n",
}


def _signed(subject: str) -> str:
    return f"{subject}\n\nBecause it was not there.\n\nSigned-off-by: {PROJECT}"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A preparation, the option with its file, documentation, and a use of it."""
    made = seriesfixture.make(tmp_path_factory.mktemp("made") / "x", fake_kernel=True)
    for name, text in FRAGMENTS.items():
        (made.root / "configs/fragments" / f"{name}.config").write_text(text, encoding="utf-8")
    flavour = made.root / "configs/flavours/check-on.yaml"
    flavour.write_text(
        re.sub(
            r"series_fragments: .*", "series_fragments: [check-on, check-kunit]", flavour.read_text(encoding="utf-8")
        ),
        encoding="utf-8",
    )
    makefile = (made.tree / "Makefile").read_text(encoding="utf-8")
    made.commit(
        "more base",
        {"Makefile": makefile + SINGLE, "MAINTAINERS": f"WINDOW\nF:\tkernel/agent*\n\n{seriesfixture.MAINTAINERS}"},
    )
    run(made.tree, "git", "tag", "-f", "base")
    kernel = made.tree / "kernel"
    made.commit(_signed("sched: Prepare"), {"kernel/sched.c": (kernel / "sched.c").read_text() + "/* prepared */\n"})
    made.commit(
        _signed("sched: Add the window"),
        {
            "kernel/Kconfig": (kernel / "Kconfig").read_text() + KCONFIG,
            "kernel/Makefile": (kernel / "Makefile").read_text()
            + "obj-y += $(if $(CONFIG_AGENT_LATENCY),kernel/agent.o)\n",
            "kernel/agent.c": "int agent;\n",
        },
    )
    made.commit(_signed("sched: Describe the window"), {"Documentation/agent.rst": "Window\n======\n"})
    made.commit(
        _signed("sched: Use the window"),
        {
            "kernel/sched.c": (kernel / "sched.c").read_text() + "/* used */\n",
            "kernel/Kconfig": (kernel / "Kconfig").read_text()
            + '\nconfig AGENT_KUNIT\n\tbool "Tests"\n\tdepends on AGENT_LATENCY\n',
        },
    )
    made.commit(_signed("MAINTAINERS: Add the page"), {"MAINTAINERS": "W\nF:\tDocumentation/\n\n" + _maintainers(made)})
    made.store()
    return made.settle()


@pytest.fixture
def project(made: Project, tmp_path: Path, fake_bin: Path) -> Project:
    """A copy of it, to be built with compilers that copy."""
    return made.copy(tmp_path / "made")


def _maintainers(project: Project) -> str:
    return (project.tree / "MAINTAINERS").read_text(encoding="utf-8")


def _run(project: Project, *argv: str) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("-n", "--dry-run", action="store_true")
    check.add_arguments(parser)
    args = parser.parse_args(argv)
    context = replace(project.import_base(), dry_run=args.dry_run)
    for stream in (project.out, project.err):
        stream.seek(0)
        stream.truncate()
    return check.run(context, args)


def _cells(project: Project) -> list[list[str]]:
    """The rows of the printed table, from the column with the lines on."""
    rows = [re.split(r"\s{2,}", line) for line in project.out.getvalue().splitlines()]
    return [row[2:] for row in rows if re.fullmatch(r"\d+", row[0])]


def _amend(project: Project, subject: str, files: dict[str, str]) -> str:
    """One more patch on top; its name."""
    project.commit(_signed(subject), files)
    return project.store()[-1]


def _append(project: Project, path: str, text: str) -> dict[str, str]:
    return {path: (project.tree / path).read_text(encoding="utf-8") + text}


def test_a_good_series_then_again_without_a_compiler(project: Project, fake_bin: Path) -> None:
    assert _run(project) == ExitCode.OK
    assert _cells(project) == [
        ["+1 -0", "ok", "0/0/0", "n/a", "ok", "n/a", "ok"],
        ["+6 -0", "ok", "0/0/0 (+1)", "ok", "ok", "ok", "ok"],
        ["+2 -0", "ok", "0/0/0 (+1)", "same", "same", "same", "same"],
        ["+5 -0", "ok", "0/0/0", "ok", "ok", "ok", "ok"],
        ["+3 -0", "ok", "0/0/0", "same", "same", "same", "same"],
    ]
    assert "5 patches; checkpatch --strict 0 errors, 0 warnings, 0 checks (2 excepted)" in project.out.getvalue()
    assert "10 builds, 0 failed, 0 remembered: ok" in project.out.getvalue()
    for tool in ("make", "perl"):
        (fake_bin / tool).unlink()
    assert _run(project) == ExitCode.OK
    assert "10 builds, 0 failed, 10 remembered: ok" in project.out.getvalue()
    assert _cells(project)[3] == ["+5 -0", "ok", "0/0/0", "ok*", "ok*", "ok*", "ok*"]


def test_only_what_changed_is_built_again(project: Project) -> None:
    _run(project, *X86)
    _amend(project, "sched: One more", _append(project, "kernel/sched.c", "/* more */\n"))
    assert _run(project, *X86) == ExitCode.OK
    assert "7 builds, 0 failed, 5 remembered" in project.out.getvalue()


def test_a_patch_that_does_not_build_is_named(project: Project) -> None:
    name = _amend(project, "sched: Break it", _append(project, "kernel/agent.c", "FAIL here\n"))
    _amend(project, "sched: Mend it", {"kernel/agent.c": "int agent;\nint mended;\n"})
    with pytest.raises(BuildError) as caught:
        _run(project, "--no-checkpatch")
    assert caught.value.exit_code == ExitCode.BUILD
    assert caught.value.message.startswith(f"{name}: x86_64, option on: kernel/agent.c:2:5: error: what is this?")
    assert f"{name}: arm64, option on" in caught.value.detail
    assert "option off" not in caught.value.detail
    assert "check.log" in caught.value.detail
    assert _cells(project)[5][2:] == ["failed", "ok", "failed", "ok"]
    assert _cells(project)[6][2:] == ["ok", "ok", "ok", "ok"], "each patch is built on its own predecessor"
    with pytest.raises(BuildError):
        _run(project, "--no-checkpatch")
    assert "18 builds, 2 failed, 16 remembered" in project.out.getvalue(), "a failure is tried again"


def test_a_patch_that_does_not_link_is_named(project: Project) -> None:
    name = _amend(project, "sched: Forget a stub", _append(project, "kernel/smp.c", "UNDEFINED agent_stub\n"))
    with pytest.raises(BuildError, match=rf"{name}: x86_64, option on: .*undefined reference to `agent_stub'"):
        _run(project, *X86, "6")


def test_a_new_warning_in_a_touched_file_fails(project: Project) -> None:
    name = _amend(project, "sched: Warn", _append(project, "kernel/sched.c", "WARN of this\n"))
    last = _amend(project, "sched: Keep warning", _append(project, "kernel/sched.c", "/* at another line */\n"))
    with pytest.raises(
        BuildError, match=rf"{name}: x86_64, option on: kernel/sched.c:\d+: what is this\? \[make W=1\]"
    ):
        _run(project, *X86)
    assert last not in project.out.getvalue() + project.err.getvalue().replace(f"building {last}", "")
    assert _cells(project)[5][2:] == ["failed"] * 2
    assert _cells(project)[6][2:] == ["ok"] * 2, "the predecessor's warnings are not the patch's"


def test_a_warning_elsewhere_is_not_the_patch_s(project: Project) -> None:
    main = project.tree / "init/main.c"
    project.commit(_signed("init: Warn"), {"init/main.c": main.read_text() + "WARN of this\n"})
    project.store()
    with pytest.raises(BuildError):
        _run(project, *X86, "6")
    _amend(project, "sched: Innocent", _append(project, "kernel/sched.c", "/* innocent */\n"))
    assert _run(project, *X86, "7") == ExitCode.OK


def test_checkpatch_and_hygiene_fail_the_check(project: Project) -> None:
    files = _append(project, "kernel/sched.c", "// C99\nint trailing; \n")
    project.commit(f"Whatever\n\nSigned-off-by: {PROJECT}", files)
    name = project.store()[-1]
    with pytest.raises(BuildError) as caught:
        _run(project, "--no-build", "6")
    assert caught.value.message.startswith(
        f"{name}: the subject names no subsystem (`subsystem: what it does`) (and 3 more)"
    )
    assert "no body" in caught.value.detail
    assert "trailing white space" in caught.value.detail
    assert re.search(r"kernel/sched\.c:\d+: ERROR: do not use C99 // comments \[C99_COMMENTS\]", caught.value.detail)
    assert _cells(project) == [["+2 -0", "3 faults", "1/0/0"]]
    assert not project.context().builds.exists()


def test_a_new_file_nobody_maintains(project: Project) -> None:
    _amend(project, "lib: Add a file", {"lib/orphan.c": "int x;\n"})
    with pytest.raises(BuildError, match=r"no section of MAINTAINERS covers the new file lib/orphan\.c"):
        _run(project, "--no-build")


def test_a_broken_cover_letter_fails_the_check(project: Project) -> None:
    (project.root / "patches/cover-letter.md").write_text("no subject\n", encoding="utf-8")
    with pytest.raises(BuildError, match=r"cover-letter\.md:1"):
        _run(project, "--no-build", "--no-checkpatch")


def test_the_worktree_is_its_own_and_is_put_right(project: Project) -> None:
    before = run(project.tree, "git", "status", "--porcelain") + run(project.tree, "git", "rev-parse", "HEAD")
    _run(project, "1", *X86)
    context = project.context()
    tree = context.cache / "check-src"
    gitdir = tree / run(tree, "git", "rev-parse", "--git-dir").strip()
    (gitdir / "index.lock").write_text("", encoding="utf-8")
    (tree / "kernel/sched.c").write_text("half of a check", encoding="utf-8")
    (tree / "stray").write_text("", encoding="utf-8")
    assert _run(project, "2", *X86) == ExitCode.OK
    assert not (tree / "stray").exists()
    assert run(tree, "git", "status", "--porcelain") == ""
    (tree / ".git").unlink()
    assert _run(project, "4", *X86) == ExitCode.OK
    after = run(project.tree, "git", "status", "--porcelain") + run(project.tree, "git", "rev-parse", "HEAD")
    assert after == before
    assert not context.source_tree.exists()


def test_unchanged_files_keep_their_time(project: Project) -> None:
    _run(project, "1", *X86)
    tree = project.context().cache / "check-src"
    before = (tree / "init/main.c").stat().st_mtime_ns, (tree / "kernel/sched.c").stat().st_mtime_ns
    _run(project, "4", *X86)
    after = (tree / "init/main.c").stat().st_mtime_ns, (tree / "kernel/sched.c").stat().st_mtime_ns
    assert after[0] == before[0]
    assert after[1] != before[1]


def test_an_interrupted_check_goes_on_where_it_was(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = kbuild.make, []

    def stop_after_third_vmlinux(*args: object, **kwargs: object) -> object:
        calls.append(args[4])
        if calls.count(["vmlinux"]) > 3:
            raise KeyboardInterrupt
        return real(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(kbuild, "make", stop_after_third_vmlinux)
    with pytest.raises(KeyboardInterrupt):
        _run(project, *X86)
    monkeypatch.setattr(kbuild, "make", real)
    assert _run(project, *X86) == ExitCode.OK
    assert "5 builds, 0 failed, 3 remembered" in project.out.getvalue()


def test_ctrl_c_ends_the_builds_of_a_step(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    real = kbuild.make
    other_ended = []

    def one_stops_the_other_waits(*args: object, **kwargs: object) -> object:
        if "arm64" in str(args[3]):
            raise KeyboardInterrupt
        try:
            return real(*args, **{**kwargs, "argv": ["sleep", "60"]})  # type: ignore[arg-type]
        except EnvironmentFailure:
            other_ended.append(args[3])
            raise

    monkeypatch.setattr(kbuild, "make", one_stops_the_other_waits)
    started = time.monotonic()
    monkeypatch.setattr(Builder, "_configure", lambda *_: None)
    with pytest.raises(KeyboardInterrupt):
        _run(project, "--no-checkpatch")
    assert time.monotonic() - started < 30
    assert other_ended


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 0, "entries": {}}', '{"format": 1, "entries": 7}'])
def test_a_broken_memory_is_an_empty_one(tmp_path: Path, text: str) -> None:
    path = tmp_path / "check.json"
    path.write_text(text, encoding="utf-8")
    memory = Memory(path)
    assert memory.get("x") is None
    memory.put("x", 1)
    assert Memory(path).get("x") == 1
    assert json.loads(path.read_text(encoding="utf-8"))["entries"] == {"x": 1}


def test_two_checks_at_once(project: Project) -> None:
    context = project.import_base()
    with (
        check_tree(KernelRepo(context), context.cache / "check-src"),
        pytest.raises(EnvironmentFailure, match="the check worktree is in use by pid"),
    ):
        _run(project, "1")


def test_a_missing_compiler_is_not_the_patch_s_fault(project: Project, fake_bin: Path) -> None:
    (fake_bin / "aarch64-linux-gnu-gcc").unlink()
    with pytest.raises(EnvironmentFailure, match="aarch64-linux-gnu-gcc is not installed"):
        _run(project, "--no-checkpatch")
    assert _run(project, "--no-checkpatch", "-a", "x86_64") == ExitCode.OK


def test_symbols_of_two_patches_in_one_fragment(project: Project) -> None:
    path = project.root / "configs/fragments/check-on.config"
    path.write_text(FRAGMENTS["check-on"] + FRAGMENTS["check-kunit"], encoding="utf-8")
    with pytest.raises(UsageError, match=r"check-on\.config: patch 2 knows AGENT_LATENCY, but not yet AGENT_KUNIT"):
        _run(project, "--no-checkpatch")


def test_dry_run_can_be_pasted(made: Project, tmp_path: Path, fake_bin: Path) -> None:
    project = made.copy(tmp_path / "a;copy")
    assert _run(project, "-n") == ExitCode.OK
    line = next(line for line in project.out.getvalue().splitlines() if "checkpatch.pl" in line)
    assert shlex.split(line)[:3] == ["cd", str(project.cache / "check-src"), "&&"]
    assert shlex.split(line)[-1].startswith(str(project.root / "patches"))


def test_dry_run_changes_nothing(project: Project) -> None:
    assert _run(project, "-n") == ExitCode.OK
    said = project.out.getvalue()
    assert said.count("perl scripts/checkpatch.pl --strict") == 5
    assert said.count(" vmlinux") == 5 * BUILDS
    assert not (project.cache / "check-src").exists()
    assert not (project.cache / "check.json").exists()


@pytest.mark.parametrize(
    ("words", "numbers"),
    [
        ([], [1, 2, 3, 4, 5]),
        (["3"], [3]),
        (["4", "1-2", "4"], [1, 2, 4]),
        (["0002"], [2]),
        (["0002-0003"], [2, 3]),
        (["patches/0005-MAINTAINERS-Add-the-page.patch"], [5]),
    ],
)
def test_which_patches(project: Project, words: list[str], numbers: list[int]) -> None:
    assert check.select(Series.load(project.root / "patches").patches, words) == numbers


@pytest.mark.parametrize(
    "word", ["0", "6", "4-6", "3-2", "9999-none", "x", "²", "1-²", "1-999999999", "1-" + "9" * 5000]
)
def test_no_such_patch(project: Project, word: str) -> None:
    with pytest.raises(UsageError, match="names no patch"):
        check.select(Series.load(project.root / "patches").patches, [word])


LOG = """\
  CC      kernel/sched/fair.o
../../check-src/kernel/sched/fair.c: In function 'f':
../../check-src/kernel/sched/fair.c:10:5: warning: unused variable 'x' [-Wunused-variable]
/t/check-src/kernel/sched/agent.c:11:5: warning: unused variable 'x' [-Wunused-variable]
/t/check-src/kernel/sched/agent.c:11:5: warning: unused variable 'x' [-Wunused-variable]
/t/check-src/kernel/fork.c:1:1: warning: not of the patch
Warning: /t/check-src/kernel/sched/agent.c:40 function parameter 'p' not described in 'f'
/t/check-src/kernel/sched/agent.c:12:5: error: no warning
"""


def test_warnings_of_a_log() -> None:
    files = ["kernel/sched/fair.c", "kernel/sched/agent.c"]
    found = perpatch.warnings(LOG, ["/t/check-src", "../../check-src"], files)
    assert [(w.file, w.line) for w in found] == [
        ("kernel/sched/fair.c", 10),
        ("kernel/sched/agent.c", 11),
        ("kernel/sched/agent.c", 40),
    ]


def test_added_warnings_are_counted_not_placed() -> None:
    old = [Warning_("a.c", 1, "x"), Warning_("b.c", 1, "x")]
    new = [Warning_("a.c", 9, "x"), Warning_("a.c", 10, "x"), Warning_("b.c", 3, "y")]
    assert perpatch.added(new, old) == [Warning_("a.c", 10, "x"), Warning_("b.c", 3, "y")]
    assert perpatch.added(old, old) == []


def test_objects_of_sources(tmp_path: Path) -> None:
    directory = tmp_path / "kernel/sched"
    directory.mkdir(parents=True)
    (directory / "fair.o").write_text("", encoding="utf-8")
    (directory / ".fair.o.cmd").write_text("deps := \\\n  /t/kernel/sched/sched.h \\\n", encoding="utf-8")
    (directory / ".build_policy.o.cmd").write_text(
        "deps := \\\n  /t/kernel/sched/syscalls.c \\\n  /t/kernel/sched/sched.h \\\n", encoding="utf-8"
    )
    sources = [
        "kernel/sched/fair.c",
        "kernel/sched/syscalls.c",
        "kernel/sched/off.c",
        "kernel/sched/sched.h",
        "x/y.rst",
    ]
    assert perpatch.objects(tmp_path, sources) == ["kernel/sched/build_policy.o", "kernel/sched/fair.o"]


def test_symbols_that_a_patch_introduces(project: Project) -> None:
    patches = Series.load(project.root / "patches").patches
    assert [perpatch.introduced(patch) for patch in patches] == [
        set(),
        {"AGENT_LATENCY"},
        set(),
        {"AGENT_KUNIT"},
        set(),
    ]


def test_only_what_reaches_the_kernel_counts(project: Project) -> None:
    repo = KernelRepo(project.import_base())
    repo.ensure_base()

    def content(files: dict[str, str]) -> str:
        commit = project.commit("x", files)
        run(project.tree, "git", "push", "-q", str(repo.path), f"{commit}:refs/heads/x")
        return perpatch.content(repo, commit)

    first = content({"kernel/z.c": "int z;\n"})
    assert content({"Documentation/x.rst": "text\n"}) == first
    assert content({"tools/testing/selftests/x.c": "int x;\n"}) == first
    assert content({"MAINTAINERS": "x\n"}) == first
    assert content({"tools/include/x.h": "int x;\n"}) != first
    assert content({"kernel/z.c": "int zz;\n"}) != first
