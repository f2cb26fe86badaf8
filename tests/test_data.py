"""Data files: good ones become dataclasses, bad ones one line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from harness import data
from harness.errors import UsageError
from harness.guest import session

ROOT = Path(__file__).resolve().parent.parent


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "f.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: [", r"f\.yaml:\d+:\d+: "),
        ("- a\n- b\n", "expected `key: value`"),
        ("", "expected `key: value`"),
        ("name: x\nemail: y\nmore: z\n", "unknown field 'more'"),
        ("name: x\n", "the field 'email' is missing"),
        ("name: 3\nemail: y\n", "name: expected str, not 3"),
        ("name: 2020-13-45\n", r"f\.yaml: a value is not what it looks like: month"),
        ("name: !!int foo\n", "a value is not what it looks like"),
        ("name: !!bool foo\n", "a value is not what it looks like"),
        ("name: !!timestamp foo\n", "a value is not what it looks like"),
        (f"name: {'1' * 5000}\n", "a value is not what it looks like"),
        ("[" * 5000, "nested too deeply"),
    ],
)
def test_broken_files_get_one_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        data.load(write(tmp_path, text), data.Identity)
    assert "\n" not in caught.value.message


def test_missing_and_binary_files(tmp_path: Path) -> None:
    (tmp_path / "directory.yaml").mkdir()
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        data.load(tmp_path / "directory.yaml", data.Identity)
    with pytest.raises(UsageError, match="does not exist"):
        data.load(tmp_path / "no.yaml", data.Identity)
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not UTF-8"):
        data.load(tmp_path / "b.yaml", data.Identity)


def test_nested_and_converted_fields(tmp_path: Path) -> None:
    pin = data.load(write(tmp_path, "version: 1.2.3\nways:\n  - {kind: url, source: s}\n"), data.Pin)
    assert pin.tag == "v1.2.3"
    assert pin.ways == (data.Way("url", "s"),)
    with pytest.raises(UsageError, match=r"ways\[0\]: the field 'source' is missing"):
        data.load(write(tmp_path, "version: '1'\nways: [{kind: url}]\n"), data.Pin)
    with pytest.raises(UsageError, match="ways: expected a list"):
        data.load(write(tmp_path, "version: '1'\nways: 3\n"), data.Pin)


def test_unknown_names_list_the_known(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("name: b\nemail: c\n")
    with pytest.raises(UsageError, match="unknown thing 'x'") as caught:
        data.by_name(tmp_path, "x", data.Identity, "thing")
    assert caught.value.hint == "known: a"
    with pytest.raises(UsageError, match="the field 'name' says"):
        data.by_name(tmp_path, "a", data.Identity, "thing")
    with pytest.raises(UsageError, match="unknown thing"):
        data.by_name(tmp_path, "../a", data.Identity, "thing")


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_projects_own_files_load(machine: str) -> None:
    data.load(ROOT / "configs/kernel.yaml", data.Pin)
    archs = [data.by_name(ROOT / "configs/arch", n, data.Arch, "a") for n in data.names(ROOT / "configs/arch")]
    assert {a.name for a in archs} >= {"x86_64", "arm64"}
    assert sum(a.toolchain_prefix(machine) == "" for a in archs) == 1
    for arch in archs:
        guest = data.by_name(ROOT / "qemu/machines", arch.machine, data.Machine, "m")
        assert guest.arch == arch.name
        assert all((ROOT / "configs/fragments" / f"{f}.config").is_file() for f in arch.fragments)
    for name in data.names(ROOT / "configs/flavours"):
        flavour = data.by_name(ROOT / "configs/flavours", name, data.Flavour, "f")
        for fragment in flavour.fragments + flavour.series_fragments:
            assert (ROOT / "configs/fragments" / f"{fragment}.config").is_file()


def test_placeholder_identity() -> None:
    assert data.Identity("n", "a@example.org").is_placeholder
    assert data.Identity("n", "a@b.example").is_placeholder
    assert not data.Identity("n", "a@kernel.org").is_placeholder


def test_each_guest_has_its_machines() -> None:
    archs = {name: data.by_name(ROOT / "configs/arch", name, data.Arch, "a") for name in ("x86_64", "arm64")}
    known = data.names(ROOT / "qemu/guests")
    assert "power" in known
    for name in known:
        guest = data.by_name(ROOT / "qemu/guests", name, data.Guest, "g")
        assert guest.programs
        assert set(guest.machines) <= set(archs)
        for arch in archs.values():
            machine = data.by_name(ROOT / "qemu/machines", guest.on(arch).machine, data.Machine, "m")
            assert machine.arch == arch.name


def test_flavours_demand_the_kunit_suites_of_the_series() -> None:
    added = "\n".join(path.read_text(errors="replace") for path in sorted((ROOT / "patches").glob("*.patch")))
    suites = re.findall(r"^\+static struct kunit_suite \w+ = \{\n\+\t\.name\s*= \"(\w+)\"", added, re.MULTILINE)
    assert suites
    for name in data.names(ROOT / "configs/flavours"):
        flavour = data.by_name(ROOT / "configs/flavours", name, data.Flavour, "flavour")
        assert sorted(flavour.kunit) == (sorted(suites) if "agent" in flavour.series_fragments else []), name


def test_suites_are_demanded_where_they_run() -> None:
    flavour = data.by_name(ROOT / "configs/flavours", "test", data.Flavour, "flavour")
    assert session.suites_of(flavour, None) == flavour.kunit
    for name in data.names(ROOT / "qemu/guests"):
        guest = data.by_name(ROOT / "qemu/guests", name, data.Guest, "guest")
        assert session.suites_of(flavour, guest) == (() if "kunit.autorun=0" in guest.cmdline else flavour.kunit)
