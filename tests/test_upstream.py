"""The pinned kernel's own selftests: chosen by name, built static from the tree without the series."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from harness import data
from harness.build import kernel, upstream
from harness.context import Context
from harness.data import Reports, UpstreamDirectory, UpstreamProgram
from harness.errors import BuildError, UsageError
from harness.guest.upstream import guest_of
from tests.conftest import add_commit, export_series, said

ROOT = Path(__file__).resolve().parent.parent
CLOCKS = UpstreamDirectory(
    "clocks",
    (
        UpstreamProgram("read", flags=("-DFAST",)),
        UpstreamProgram("read_slow", source="read.c", skip_on={"arm64": "too slow"}),
        UpstreamProgram("set", skip="needs a year"),
    ),
    sources=("lib/util.c",),
)
SIGNALS = UpstreamDirectory("signals", (UpstreamProgram("shared"), UpstreamProgram("broken")))


def build(context: Context, arch: str = "x86_64", only: str = "") -> upstream.UpstreamBuild:
    programs = [program for program in CLOCKS.programs if not only or program.name == only]
    return upstream.build(context, context.arch(arch), CLOCKS, programs)


def test_cold_then_unchanged_then_with_other_flags(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    built = build(context)
    assert sorted(built.programs) == ["read", "read_slow"]
    text = built.programs["read"].read_text()
    assert "Machine: Advanced Micro Devices X86-64" in text
    assert "Reads two clocks" in text
    assert "What both use" in text
    log = built.programs["read"].parent / "clocks.read.log"
    assert "-static" in log.read_text()
    assert "-DFAST" in log.read_text()
    assert not (built.programs["read"].parent / "source").exists()
    with monkeypatch.context() as patch:
        patch.setattr(upstream, "_compile", lambda *_: pytest.fail("compiled again"))
        assert build(context).programs == built.programs
    other = UpstreamDirectory("clocks", (UpstreamProgram("read", flags=("-DSLOW",)),), sources=("lib/util.c",))
    again = upstream.build(context, context.arch("x86_64"), other, other.programs)
    assert again.programs["read"] != built.programs["read"]
    assert not built.programs["read"].exists()


def test_programs_that_are_skipped_are_not_built(context: Context) -> None:
    assert sorted(build(context, "arm64").programs) == ["read"]


def test_helpers_of_ours_are_linked_and_count(
    context: Context, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in (upstream.LINE_BUFFERED, "one", "two"):
        text = f'const char helper_{name[:3]}[] __attribute__((used)) = "we help {name}";'
        (tmp_path / f"{name}.c").write_text(text)
    monkeypatch.setattr(upstream, "HELPERS", tmp_path)
    programs = (UpstreamProgram("read", flags=("-DFAST",), helpers=("two",)),)
    directory = UpstreamDirectory("clocks", programs, sources=("lib/util.c",), helpers=("one",))
    built = upstream.build(context, context.arch("x86_64"), directory, programs).programs["read"]
    assert {name for name in (b"one", b"two") if b"we help " + name in built.read_bytes()} == {b"one", b"two"}
    (tmp_path / "two.c").write_text('const char helper_two[] __attribute__((used)) = "we help more";')
    again = upstream.build(context, context.arch("x86_64"), directory, programs).programs["read"]
    assert again != built
    assert b"we help more" in again.read_bytes()


def test_source_is_the_tree_without_the_series(context: Context, fake_kernel: Path) -> None:
    add_commit(
        fake_kernel, "clocks: Change", {"tools/testing/selftests/clocks/read.c": "/* Changed by the series. */\n"}
    )
    export_series(fake_kernel, context.patches)
    built = build(context, only="read")
    assert "Changed by the series" not in built.programs["read"].read_text()
    assert built.commit == kernel.source_commit(context, False)


@pytest.mark.parametrize(
    ("name", "words"),
    [("broken", r"signals\.broken: broken\.c:1:5: error"), ("shared", r"signals\.shared: .* is not static")],
)
def test_what_does_not_build_is_named(context: Context, name: str, words: str) -> None:
    programs = [program for program in SIGNALS.programs if program.name == name]
    with pytest.raises(BuildError, match=words):
        upstream.build(context, context.arch("x86_64"), SIGNALS, programs)


def test_dry_run_prints_commands(context: Context) -> None:
    dry = Context(context.root, context.settings, context.report, dry_run=True)
    assert build(dry).programs == {}
    assert "gcc -static" in said(context)
    assert not context.builds.exists()


@pytest.mark.parametrize(
    ("only", "found"),
    [
        ([], {"clocks": ["read", "read_slow", "set"], "signals": ["shared", "broken"]}),
        (["signals"], {"signals": ["shared", "broken"]}),
        (["clocks.set", "signals.broken"], {"clocks": ["set"], "signals": ["broken"]}),
    ],
)
def test_programs_are_chosen_by_directory_or_name(only: list[str], found: dict[str, list[str]]) -> None:
    chosen = upstream.chosen([CLOCKS, SIGNALS], only)
    assert {path: [program.name for program in programs] for path, programs in chosen.items()} == found


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(UsageError, match="is called 'clock'") as caught:
        upstream.chosen([CLOCKS, SIGNALS], ["clock"])
    assert "clocks, signals" in caught.value.hint


def test_a_directory_below_another_is_one_word() -> None:
    directory = UpstreamDirectory("a/b", (UpstreamProgram("c"),), cmdline="x=1", machines={"arm64": "arm64-smt"})
    guest = guest_of(directory, directory.programs)
    assert (guest.name, guest.programs, guest.cmdline) == ("a-b", ("a-b.c",), "kunit.autorun=0 x=1")
    assert guest.machines == {"arm64": "arm64-smt"}


def test_projects_own_list() -> None:
    known = data.load(ROOT / "configs/upstream-selftests.yaml", data.Upstream)
    paths = [directory.path for directory in known.directories]
    assert {"sched", "cgroup", "timers", "rseq", "net", "net/af_unix", "filesystems/epoll"} <= set(paths)
    assert len(paths) == len(set(paths))
    machines = data.names(ROOT / "qemu/machines")
    for directory in known.directories:
        names = [program.name for program in directory.programs]
        assert len(names) == len(set(names))
        assert set(directory.machines.values()) <= set(machines)
        assert any(not program.skip for program in directory.programs)
        assert all(program.timeout > 0 for program in directory.programs)
        helpers = [path for program in directory.programs for path in upstream.helpers(directory, program)]
        assert all(path.is_file() for path in helpers)


def test_reports_of_a_program_are_checked() -> None:
    raw = {"name": "x", "reports": "kselftest"}
    assert data.from_mapping(raw, UpstreamProgram, where="f").reports is Reports.KSELFTEST
    with pytest.raises(UsageError, match="f: reports: 'shout' is none of ktap, results, kselftest, status"):
        data.from_mapping({**raw, "reports": "shout"}, UpstreamProgram, where="f")


def test_an_error_ends_what_waits_to_be_compiled(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = [UpstreamProgram(f"p{number}") for number in range(40)]
    begun: list[str] = []

    def compiled(*arguments: object) -> None:
        program = arguments[5]
        assert isinstance(program, UpstreamProgram)
        begun.append(program.name)
        time.sleep(0.05)
        if program.name == "p0":
            raise BuildError("p0 does not compile")

    monkeypatch.setattr(upstream, "_compile", compiled)
    with pytest.raises(BuildError, match="p0 does not compile"):
        upstream.build(context, context.arch("x86_64"), CLOCKS, programs)
    assert len(begun) < len(programs) // 2
