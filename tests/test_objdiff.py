"""objdiff: objects compiled here in two directories, the list of what is expected, and the verb on them."""

from __future__ import annotations

import io
import json
import platform
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from harness import command, data
from harness.build import kernel as kernels
from harness.context import Context
from harness.data import Arch
from harness.errors import BuildError, EnvironmentFailure, ExitCode, TestsFailedError, UsageError
from harness.objdiff import code, compare, elf, expected
from harness.objdiff.compare import Comparison, Difference
from harness.objdiff.expected import Entry, Expected
from harness.report import Reporter
from harness.settings import resolve
from harness.source.series import Series
from harness.verbs import objdiff
from tests.conftest import said

ROOT = Path(__file__).resolve().parent.parent
needs_gcc = pytest.mark.skipif(
    not (shutil.which("gcc") and shutil.which("objdump")), reason="needs gcc and objdump of this machine"
)

SOURCE = """
extern int use(const char *, int *);
static __attribute__((noinline)) int twice(int x) { return use("twice", 0) + 2 * x; }
int first(int x) { static int calls; calls += x; return use("first", &calls); }
int second(int x) { if (x > 3) return use("second", 0); return twice(x + 1); }
__attribute__((section(".init.text"))) int setup(void) { return second(7); }
"""


def build(directory: Path, objects: dict[str, str], *flags: str) -> Path:
    """An output directory with these objects, as the kernel's build leaves it."""
    for name, text in objects.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        source = path.with_suffix(".c")
        source.write_text(text)
        argv = ["gcc", "-O2", "-fno-pic", "-fno-asynchronous-unwind-tables", "-c", *flags, "-o", str(path), str(source)]
        subprocess.run(argv, check=True)
        path.with_name(f".{path.name}.cmd").write_text(f"savedcmd_x := gcc\n\nsource_{name} := {source}\n")
    return directory


def compared(tmp_path: Path, old: str, new: str, *flags: str) -> Comparison:
    return compare.compare(
        build(tmp_path / "old", {"kernel/a.o": old}, *flags),
        build(tmp_path / "new", {"kernel/a.o": new}, *flags),
        "objdump",
    )


def seen(found: Comparison) -> list[tuple[str, str, str]]:
    return [(one.section, one.function, one.what) for one in found.differences]


# Directories


@needs_gcc
@pytest.mark.parametrize("flags", [(), ("-ffunction-sections",)])
def test_equal_objects(tmp_path: Path, flags: tuple[str, ...]) -> None:
    assert compared(tmp_path, SOURCE, SOURCE, *flags) == Comparison(1, 4)


@needs_gcc
@pytest.mark.parametrize("flags", [(), ("-ffunction-sections",)])
def test_what_has_only_moved_is_equal(tmp_path: Path, flags: tuple[str, ...]) -> None:
    """Another string, static and function in front: numbers, offsets and displacements change, the code does not."""
    front = SOURCE.replace("int first", 'int front(void) { static int calls; return use("front", &calls); }\nint first')
    found = compared(tmp_path, SOURCE, front, *flags)
    assert seen(found) == [(".text", "front", "added")]
    assert found.functions == 5
    assert found.differences[0].before == 0 < found.differences[0].after


@needs_gcc
@pytest.mark.parametrize(
    ("old", "new", "first"),
    [
        ("2 * x", "3 * x", ""),
        ('use("twice", 0)', 'use("thrice", 0)', "thrice"),
        ('use("twice", 0)', 'abs("twice", 0)', "abs"),
    ],
)
def test_a_change_is_of_the_function_it_is_in(tmp_path: Path, old: str, new: str, first: str) -> None:
    found = compared(tmp_path, SOURCE, SOURCE.replace(old, new).replace("extern", "int abs();\nextern"))
    assert seen(found) == [(".text", "twice", "changed")]
    assert first in found.differences[0].first and " -> " in found.differences[0].first
    assert any(line.startswith("+") for line in found.differences[0].diff)


@needs_gcc
def test_sections_are_told_apart(tmp_path: Path) -> None:
    found = compared(tmp_path, SOURCE, SOURCE.replace("second(7)", "second(7) + 1"))
    assert seen(found) == [(".init.text", "setup", "changed")]
    found = compared(tmp_path, SOURCE, SOURCE.replace('section(".init.text")', 'section(".text.unlikely")'))
    assert seen(found) == [(".init.text", "setup", "removed"), (".text.unlikely", "setup", "added")]


@needs_gcc
def test_data_is_told_by_its_size(tmp_path: Path) -> None:
    found = compared(tmp_path, SOURCE, f"{SOURCE}int more[25];\n")
    assert not found.differences
    assert [(one.object, one.kind, one.after - one.before) for one in found.sizes][:1] == [("kernel/a.o", ".bss", 100)]


@needs_gcc
def test_code_without_a_name(tmp_path: Path) -> None:
    text = '{}asm(".pushsection .altinstr_replacement, \\"ax\\"\\n{}\\n.popsection");\n'
    found = compared(tmp_path, text.format(SOURCE, "nop"), text.format(SOURCE, "nop\\nnop"))
    assert seen(found) == [(".altinstr_replacement", code.UNNAMED, "changed")]


@needs_gcc
def test_objects_that_are_there_once(tmp_path: Path) -> None:
    old = build(tmp_path / "old", {"a.o": SOURCE, "b/c.o": "int gone(void) { return 1; }\n"})
    new = build(tmp_path / "new", {"a.o": SOURCE, "b/d.o": "int come(void) { return 1; }\n"})
    found = compare.compare(old, new, "objdump")
    assert [(one.object, one.what) for one in found.differences] == [("b/c.o", "removed"), ("b/d.o", "added")]
    assert (found.objects, found.functions) == (3, 6)


@needs_gcc
def test_only_built_in_objects_that_were_compiled(tmp_path: Path) -> None:
    objects = {
        f"{name}.o": "int f;\n" for name in ("a", "k/b", "k/usr/c", "usr/d", "tools/e", "k/tools/f", "scripts/g")
    }
    directory = build(tmp_path, objects)
    shutil.copy(directory / "a.o", directory / "vmlinux.o")
    (directory / ".vmlinux.o.cmd").write_text("savedcmd_vmlinux.o := ld -r\n")
    assert compare.objects(directory) == ["a.o", "k/b.o", "k/usr/c.o"]


def test_a_directory_without_objects(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="holds no compiled object"):
        compare.objects(tmp_path)


@needs_gcc
@pytest.mark.parametrize("content", [b"", b"!<thin>\n", b"\x7fELF", b"\x7fELF\x02\x01\x01" + b"\xff" * 100])
def test_an_object_that_cannot_be_read(tmp_path: Path, content: bytes) -> None:
    old, new = build(tmp_path / "old", {"a.o": SOURCE}), build(tmp_path / "new", {"a.o": SOURCE})
    (new / "a.o").write_bytes(content)
    with pytest.raises(BuildError, match=r"new/a\.o is no object file that can be read") as caught:
        compare.compare(old, new, "objdump")
    assert caught.value.hint and "\n" not in caught.value.message


@needs_gcc
def test_half_an_object(tmp_path: Path) -> None:
    path = build(tmp_path, {"a.o": SOURCE}) / "a.o"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BuildError, match="is no object file that can be read"):
        elf.read(path)


# Names and lines


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("__func__.12345", "__func__"),
        ("foo.constprop.0", "foo.constprop"),
        ("foo.isra.0.cold", "foo.isra.cold"),
        ("__UNIQUE_ID_x123", "__UNIQUE_ID_x"),
        ("__initcall__kmod_core__512_88_init6", "__initcall__kmod_core__init6"),
        (".LC12", ".L"),
        (".rodata.str1.8", ".rodata.str1"),
        ("sha256_x2", "sha256_x2"),
    ],
)
def test_what_the_compiler_numbers(name: str, plain: str) -> None:
    assert code.plain(name) == plain


def test_lines_of_arm64() -> None:
    """Immediates are no comments there, and a branch has its condition in front."""
    obj = elf.ObjectFile(
        (elf.Section(".text", 6, 24), elf.Section(".bss", 3, 8)),
        (elf.Symbol("f", 0, 0, 20, True), elf.Symbol("g", 0, 20, 4, True), elf.Symbol("calls.0", 1, 4, 4, False)),
        {0: (elf.Relocation(0, "ADR_PREL_PG_HI21", ".bss", 1, 4, False),)},
    )
    text = (
        "Disassembly of section .text:\n\n0000000000000000 <f>:\n   0:\tadrp\tx0, 0 <f>\n"
        "   4:\tmov\tw1, #0x10                  \t// #16\n   8:\ttbz\tw1, #3, 10 <f+0x10>\n   c:\tbl\t14 <g>\n"
        "  10:\tret\n\n0000000000000014 <g>:\n  14:\tret\n"
    )
    found = code.normalize(obj, code.parse(text, obj))
    assert found[code.Key(".text", "f")].lines == (
        "adrp x0, [ADR_PREL_PG_HI21 calls]",
        "mov w1, #0x10",
        "tbz w1, #3, L1",
        "bl g",
        "L1:",
        "ret",
    )
    assert found[code.Key(".text", "g")] == code.Function(4, ("ret",))


def test_functions_of_one_name_are_paired_in_order() -> None:
    symbols = tuple(elf.Symbol(f"f.constprop.{n}", 0, 4 * n, 4, True) for n in range(2))
    assert [key for key, _ in code.keys(elf.ObjectFile((elf.Section(".text", 6, 8),), symbols))] == [
        code.Key(".text", "f.constprop"),
        code.Key(".text", "f.constprop", 1),
    ]


# What is expected

CHANGED = Difference("a.o", ".text", "f", compare.CHANGED, 10, 14)
OTHER = replace(CHANGED, function="g.isra", after=10)


@pytest.mark.parametrize(
    ("entry", "known", "unseen"),
    [
        (Entry("a.o", ("f",), "w"), [CHANGED], []),
        (Entry("a.o", ("f", "h"), "w"), [CHANGED], [("a.o", "h")]),
        (Entry("b.o", ("f",), "w"), [], [("b.o", "f")]),
        (Entry("a.o", ("f",), "w", archs=("arm64",)), [], []),
        (Entry("a.o", ("*",), "w", grows=4), [CHANGED, OTHER], []),
        (Entry("a.o", ("*",), "w", grows=3), [OTHER], []),
        (Entry("a.o", ("f",), "w", grows=3), [], [("a.o", "f")]),
    ],
)
def test_what_is_expected(entry: Entry, known: list[Difference], unseen: list[tuple[str, str]]) -> None:
    judged = expected.judge([CHANGED, OTHER], Expected((entry,)), "x86_64")
    assert judged.known == tuple((one, "w") for one in known)
    assert judged.unknown == tuple(one for one in (CHANGED, OTHER) if one not in known)
    assert list(judged.unseen) == unseen


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("expected: 3\n", "expected: expected a list"),
        ("expected: [{object: a.o, functions: [f]}]\n", r"expected\[0\]: the field 'why' is missing"),
        ("expected: [{object: a.o, function: [f], why: w}]\n", "unknown field 'function'"),
        ("expected: [{object: a.o, functions: f, why: w}]\n", "functions: expected a list"),
        ("expected: [{object: /a.o, functions: [f], why: w}]\n", "'/a.o' is no object"),
        ("expected: [{object: a.c, functions: [f], why: w}]\n", "'a.c' is no object"),
        ("expected: [{object: a.o, functions: [], why: w}]\n", "a.o: the list of functions is empty"),
        ("expected: [{object: a.o, functions: [f], why: ' '}]\n", "a.o: 'why' is empty"),
        ("expected: [{object: a.o, functions: ['f*'], why: w}]\n", r"f\* is a pattern, which needs 'grows'"),
        ("expected: [{object: a.o, functions: [f, f], why: w}]\n", "a.o: f is listed twice"),
        ("expected: [\n", r"objdiff\.yaml:\d+:\d+: "),
    ],
)
def test_a_broken_list_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "objdiff.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=said) as caught:
        expected.check(data.load(path, Expected), str(path))
    assert str(path) in caught.value.message and "\n" not in caught.value.message


def test_the_stored_list_gives_a_patch_for_each_reason() -> None:
    path = ROOT / "configs/objdiff.yaml"
    known = data.load(path, Expected)
    expected.check(known, str(path))
    subjects = tuple(patch.subject for patch in Series.load(ROOT / "patches").patches)
    for entry in known.expected:
        assert entry.why.startswith(subjects), entry.why
        assert set(entry.archs) <= set(data.names(ROOT / "configs/arch"))


# The verb


@dataclass(frozen=True)
class Built:
    """As much of a KernelBuild as the verb looks at."""

    name: str
    directory: Path
    commit: str = "c0ffee"


def context_of(project: Path, tmp_path: Path, listed: str = "expected: []\n", verbosity: int = 0) -> Context:
    (project / "configs/objdiff.yaml").write_text(listed)
    settings = resolve(project, {}, {"HARNESS_CACHE_DIR": str(tmp_path / "cache"), "HARNESS_JOBS": "2"})
    return Context(project, settings, Reporter(verbosity, out=io.StringIO(), err=io.StringIO()))


def native(context: Context) -> str:
    names = data.names(context.configs / "arch")
    found = [name for name in names if platform.machine() in context.arch(name).native_machines]
    if not found:
        pytest.skip("needs a machine of a known architecture")
    return found[0]


def run(context: Context, *words: str) -> int:
    args = command.parser().parse_args(["objdiff", "-a", native(context), *words])
    return objdiff.run(context, args)


@pytest.fixture
def builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Two builds, of which the second has one function that differs."""
    old = build(tmp_path / "old", {"kernel/a.o": SOURCE})
    new = build(tmp_path / "new", {"kernel/a.o": SOURCE.replace("2 * x", "3 * x + 5")})

    def fake(_context: Context, arch: Arch, flavour: data.Flavour, *, patched: bool = True) -> Built:
        assert flavour.name == "off"
        return Built(f"{arch.name}-{patched}", new if patched else old)

    monkeypatch.setattr(kernels, "build", fake)
    return old, new


@needs_gcc
def test_the_verb_fails_for_what_is_not_listed(project: Path, tmp_path: Path, builds: tuple[Path, Path]) -> None:
    context = context_of(project, tmp_path, verbosity=1)
    out = tmp_path / "o.json"
    with pytest.raises(TestsFailedError, match=r"kernel/a\.o: twice changed with the option off") as caught:
        run(context, "--json", str(out))
    assert caught.value.exit_code == ExitCode.TESTS_FAILED
    text = said(context)
    assert "first difference" in text and "# kernel/a.o: twice changed" in text and "+++ series" in text
    assert "1 objects, 4 functions compared, 0 expected differences, 1 others" in text
    value = json.loads(out.read_text())
    (one,) = value["architectures"].values()
    assert value["exit_code"] == 1
    assert [(d["object"], d["function"], d["what"]) for d in one["differences"]] == [("kernel/a.o", "twice", "changed")]
    assert (one["before"]["directory"], one["after"]["directory"]) == tuple(map(str, builds))


@needs_gcc
@pytest.mark.usefixtures("builds")
def test_the_verb_passes_for_what_is(
    project: Path, tmp_path: Path, builds: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    listed = "expected: [{object: kernel/a.o, functions: [twice, gone], why: because}]\n"
    context = context_of(project, tmp_path, listed)
    assert run(context) == ExitCode.OK
    text = said(context)
    assert "expected and not seen: kernel/a.o: gone" in text
    assert "1 objects, 4 functions compared, 1 expected differences, 0 others" in text
    assert "because" not in text
    context = context_of(project, tmp_path, listed, verbosity=2)
    assert run(context) == ExitCode.OK
    assert "# kernel/a.o: twice changed: because" in said(context)
    context = context_of(project, tmp_path, listed, verbosity=-1)
    assert run(context, "--json") == ExitCode.OK
    (one,) = json.loads(said(context))["architectures"].values()
    assert one["unseen"] == [{"object": "kernel/a.o", "function": "gone"}]


@needs_gcc
@pytest.mark.usefixtures("builds")
def test_what_is_wrong_is_said_before_anything_is_built(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_args: object, **_more: object) -> None:
        raise AssertionError("a kernel was built")

    monkeypatch.setattr(kernels, "build", never)
    with pytest.raises(UsageError, match="is a directory"):
        run(context_of(project, tmp_path), "--json", str(tmp_path))
    with pytest.raises(UsageError, match="'why' is missing"):
        run(context_of(project, tmp_path, "expected: [{object: a.o, functions: [f]}]\n"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EnvironmentFailure, match="objdump is not installed: shows the code"):
        run(context_of(project, tmp_path))


@needs_gcc
@pytest.mark.usefixtures("builds")
def test_a_dry_run_prints_and_compares_nothing(project: Path, tmp_path: Path) -> None:
    context = replace(context_of(project, tmp_path), dry_run=True)
    assert run(context) == ExitCode.OK
    assert "objdump -d -w -z --no-show-raw-insn OBJECT" in said(context)
