"""Data files: YAML read into frozen dataclasses, with one line that names file, line and field when it is wrong."""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

import yaml

from harness.errors import UsageError

T = TypeVar("T")


def load_yaml(path: Path, *, may_be_empty: bool = False) -> dict[str, Any]:
    """The mapping in a YAML file. Raises UsageError naming line and column when it is missing, broken or no mapping.

    With ``may_be_empty`` a file of comments alone is an empty mapping.
    """
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist", hint=f"the files there are: {_siblings(path)}") from None
    except OSError as exc:
        raise UsageError(f"{path} cannot be read: {exc.strerror}", hint="it has to be a file of yours") from None
    except UnicodeDecodeError as exc:
        raise UsageError(f"{path} is not UTF-8 text: {exc.reason} at byte {exc.start}") from None
    except yaml.YAMLError as exc:
        mark = getattr(exc, "problem_mark", None)
        where = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        problem = getattr(exc, "problem", None) or "not YAML"
        raise UsageError(f"{path}{where}: {problem}", hint="mend that line") from None
    except RecursionError:
        raise UsageError(f"{path}: lists or mappings are nested too deeply", hint="mend that line") from None
    except (ValueError, LookupError, AttributeError, OverflowError) as exc:
        # PyYAML takes what looks like a date or a number, or is tagged as such, for one and converts it unasked.
        raise UsageError(f"{path}: a value is not what it looks like: {exc}", hint="mend or quote it") from None
    if value is None and may_be_empty:
        return {}
    if not isinstance(value, dict):
        raise UsageError(f"{path}: expected `key: value` lines at the top", hint="see the other files beside it")
    return value


def _siblings(path: Path) -> str:
    names = sorted(p.name for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
    return ", ".join(names) or "none"


def load(path: Path, cls: type[T]) -> T:
    """A frozen dataclass from a YAML file; unknown, missing and mistyped fields raise UsageError."""
    return from_mapping(load_yaml(path), cls, where=str(path))


def from_mapping(raw: dict[str, Any], cls: type[T], *, where: str) -> T:
    """A dataclass from a mapping; ``where`` names the origin in messages."""
    if not dataclasses.is_dataclass(cls):
        raise TypeError(f"{cls!r} is no dataclass")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    unknown = sorted(set(map(str, raw)) - set(fields))
    if unknown:
        raise UsageError(f"{where}: unknown field {unknown[0]!r}", hint=f"the fields are: {', '.join(fields)}")
    values: dict[str, Any] = {}
    for name, field in fields.items():
        if name not in raw:
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                raise UsageError(f"{where}: the field {name!r} is missing")
            continue
        values[name] = _convert(raw[name], hints[name], f"{where}: {name}")
    return typing.cast(T, cls(**values))


def _convert(value: Any, hint: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        options = typing.get_args(hint)
        if value is None and type(None) in options:
            return None
        return _convert(value, next(o for o in options if o is not type(None)), where)
    if origin is tuple:
        if not isinstance(value, list):
            raise UsageError(f"{where}: expected a list")
        item = typing.get_args(hint)[0]
        return tuple(_convert(v, item, f"{where}[{i}]") for i, v in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise UsageError(f"{where}: expected a mapping")
        item = typing.get_args(hint)[1]
        return {str(k): _convert(v, item, f"{where}.{k}") for k, v in value.items()}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, dict):
            raise UsageError(f"{where}: expected a mapping")
        return from_mapping(value, hint, where=where)
    if hint is Any:
        return value
    if isinstance(hint, type) and issubclass(hint, enum.StrEnum):
        if value not in [str(member) for member in hint]:
            raise UsageError(f"{where}: {value!r} is none of {', '.join(hint)}")
        return hint(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise UsageError(f"{where}: expected {getattr(hint, '__name__', hint)}, not {value!r}")
    return value


@dataclasses.dataclass(frozen=True)
class Way:
    """One way to get the pinned source.

    ``kind`` is ``debian-source`` (``source`` is ``PACKAGE=VERSION``, ``suite`` the suite that has it) or ``url``. With
    ``sha256`` the file must have that hash; without, the tree it holds must have the blobs that the series names.
    """

    kind: str
    source: str
    suite: str = ""
    sha256: str = ""
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Pin:
    """The pinned kernel: version, and the ordered ways to get its source."""

    version: str
    ways: tuple[Way, ...]

    @property
    def tag(self) -> str:
        """The upstream tag, e.g. ``v6.18.15``."""
        return f"v{self.version}"


@dataclasses.dataclass(frozen=True)
class Arch:
    """An architecture: everything by which one build differs from another."""

    name: str
    kernel_arch: str
    native_machines: tuple[str, ...]
    cross_prefix: str
    image_target: str
    image: str
    fragments: tuple[str, ...]
    debian_arch: str
    elf_machine: str
    machine: str
    packages: dict[str, str]

    def toolchain_prefix(self, host_machine: str) -> str:
        """The CROSS_COMPILE prefix on a host whose ``uname -m`` is ``host_machine``; empty when it is native."""
        return "" if host_machine in self.native_machines else self.cross_prefix


@dataclasses.dataclass(frozen=True)
class Flavour:
    """A kernel configuration by name.

    ``fragments`` apply to any tree; ``series_fragments`` only when the series is applied (an unpatched tree does not
    know their symbols). ``timeout_factor`` stretches guest deadlines (a debug kernel is slower). ``kunit`` are suites
    that come with the series: a test run in which one of them did not report has failed.
    """

    name: str
    description: str
    fragments: tuple[str, ...]
    series_fragments: tuple[str, ...] = ()
    arch_fragments: bool = True
    timeout_factor: float = 1.0
    kunit: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Machine:
    """A QEMU machine as data: ``memory_mib`` in MiB, ``cmdline`` without the harness's part.

    ``tcg`` are the options of that accelerator. ``minimum`` is the oldest QEMU that runs the machine as it is meant;
    see qemu/emulator.yaml for where it comes from when the one installed is older.
    """

    name: str
    arch: str
    description: str
    qemu: str
    type: str
    cpu: str
    smp: str
    memory_mib: int
    console: str
    cmdline: str = ""
    args: tuple[str, ...] = ()
    kvm_cpu: str = "host"
    tcg: str = "thread=multi"
    minimum: str = ""


@dataclasses.dataclass(frozen=True)
class Guest:
    """A way to boot for programs that need more than the machine of their architecture offers.

    ``cmdline`` is added to the kernel's, ``machines`` names another machine by architecture, ``programs`` are what runs
    in it. With ``always`` it is part of every test run, and its programs run there only. What fails in the guest that
    it ``settles`` (``plain`` is the one without a name) is run again here, and this result counts. ``timeout_factor``
    stretches the deadlines that the host keeps.
    """

    name: str
    description: str
    programs: tuple[str, ...]
    cmdline: str = ""
    machines: dict[str, str] = dataclasses.field(default_factory=dict)
    always: bool = False
    settles: str = ""
    timeout_factor: float = 1.0

    def on(self, arch: Arch) -> Arch:
        """The architecture with the machine that this guest has for it."""
        return dataclasses.replace(arch, machine=self.machines.get(arch.name, arch.machine))


class Reports(enum.StrEnum):
    """How a test program says what became of it."""

    KTAP = "ktap"  # a plan, and a result for each test of it
    RESULTS = "results"  # results in the same form without a plan: what never ran cannot be known
    KSELFTEST = "kselftest"  # the exit status alone, of which 4 is a skip
    STATUS = "status"  # the exit status alone, 0 or not


@dataclasses.dataclass(frozen=True)
class UpstreamProgram:
    """A selftest of the pinned kernel: ``source`` is NAME.c unless it says otherwise, ``timeout`` is in seconds.

    ``skip`` says why it is not run, ``skip_on`` why not on an architecture. ``helpers`` are as in its directory.
    """

    name: str
    source: str = ""
    flags: tuple[str, ...] = ()
    helpers: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    reports: Reports = Reports.KTAP
    timeout: float = 45.0
    skip: str = ""
    skip_on: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class UpstreamDirectory:
    """Selftests that share a directory of tools/testing/selftests, and a boot.

    ``sources`` are linked to each program, ``flags`` go to the compiler, which runs in that directory, ``needs`` are
    what it includes from elsewhere in the tree. ``helpers`` are sources of ours (harness/build/helpers) that are linked
    to each program as well. ``cmdline`` and ``machines`` are as in a guest, ``provoked`` says of a kind of splat why it
    does not count.
    """

    path: str
    programs: tuple[UpstreamProgram, ...]
    sources: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    helpers: tuple[str, ...] = ()
    cmdline: str = ""
    machines: dict[str, str] = dataclasses.field(default_factory=dict)
    provoked: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        """Its path as one word."""
        return self.path.replace("/", "-")


@dataclasses.dataclass(frozen=True)
class Upstream:
    """The selftests of the pinned kernel that are run before and after the series."""

    directories: tuple[UpstreamDirectory, ...]


@dataclasses.dataclass(frozen=True)
class Identity:
    """Author and Signed-off-by of the stored patches. ``placeholder`` domains may not be sent to a list."""

    name: str
    email: str

    def __str__(self) -> str:
        return f"{self.name} <{self.email}>"

    @property
    def is_placeholder(self) -> bool:
        """Whether the address belongs to nobody (RFC 2606)."""
        domain = self.email.rpartition("@")[2]
        return domain in ("example.org", "example.com", "example.net") or domain.endswith((".example", ".invalid"))


def by_name(directory: Path, name: str, cls: type[T], what: str) -> T:
    """The data file ``name``.yaml of a directory. Raises UsageError listing the known names."""
    path = directory / f"{name}.yaml"
    if "/" in name or not path.is_file():
        raise UsageError(f"unknown {what} {name!r}", hint=f"known: {', '.join(names(directory)) or 'none'}")
    value = load(path, cls)
    if getattr(value, "name", name) != name:
        raise UsageError(f"{path}: the field 'name' says {getattr(value, 'name', '')!r}, the file name says {name!r}")
    return value


def names(directory: Path) -> list[str]:
    """The names of the data files in a directory, sorted."""
    return sorted(p.stem for p in directory.glob("*.yaml"))
