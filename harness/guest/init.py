"""The guest's first process and its initramfs: rendered from qemu/init.c.j2, compiled static, packed without root."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import math
import re
import stat
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jinja2

from harness import proc
from harness.context import Context
from harness.data import Arch, Reports
from harness.errors import EnvironmentFailure, UsageError
from harness.fs import atomic_write, disk_errors

COMPILE_SECONDS = 120.0
# Binaries that stay in the cache, for each architecture
KEPT_INITS = 20
# A task that waits this long for the disk, a lock or a CPU in a guest of this size is hung.
HUNG_TASK_SECONDS = 30
GUEST_DIRECTORY = "/tests"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")


@dataclass(frozen=True)
class Program:
    """A program to run in the guest.

    ``file`` is the host's file that becomes ``/tests/<name>``; ``path`` is used as it is when there is no file.
    ``reports`` is what its verdict is read from, ``timeout`` its deadline in seconds.
    """

    name: str
    file: Path | None = None
    path: str = ""
    arguments: tuple[str, ...] = ()
    timeout: float = 45.0
    reports: Reports = Reports.KTAP

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise UsageError(
                f"{self.name!r} cannot be the name of a test program", hint="use letters, digits and . _ + -"
            )
        require_deadline(self.timeout, f"the deadline of {self.name}")

    @property
    def kind(self) -> str:
        """What the plan marker says of it."""
        return str(self.reports)

    @property
    def timeout_ms(self) -> int:
        """The deadline in milliseconds, for the template, where it is an int."""
        return max(1, min(round(self.timeout * 1000), 2**31 - 1))

    @property
    def argv(self) -> tuple[str, ...]:
        """What the guest executes."""
        return (self.path or f"{GUEST_DIRECTORY}/{self.name}", *self.arguments)


def require_deadline(value: float, what: str) -> None:
    """Raise UsageError unless ``value`` can be a deadline, or stretch one."""
    if not (math.isfinite(value) and value > 0):
        raise UsageError(f"{what} is {value:g}", hint="it has to be a finite number above 0")


def c_string(text: str) -> str:
    """A C string literal; octal escapes, as \\x would swallow the digits that follow it."""
    raw = text.encode(errors="surrogateescape")  # an argument of a command line may be any bytes
    safe = "".join(chr(byte) if 0x20 <= byte < 0x7F and byte not in b'"\\?' else f"\\{byte:03o}" for byte in raw)
    return f'"{safe}"'


def render(template: Path, programs: Sequence[Program], directory: str = GUEST_DIRECTORY) -> str:
    """The C source of an init that runs ``programs``. Raises UsageError when the template is missing or broken."""
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters["c_string"] = c_string
    try:
        return environment.from_string(template.read_text(encoding="utf-8")).render(
            programs=programs, directory=directory, hung_task_seconds=HUNG_TASK_SECONDS
        )
    except FileNotFoundError:
        raise UsageError(f"{template} does not exist", hint="git checkout qemu/") from None
    except jinja2.TemplateError as exc:
        line = getattr(exc, "lineno", None)
        raise UsageError(f"{template}{f':{line}' if line else ''}: {exc.message}", hint="mend that line") from None


def compile_init(context: Context, arch: Arch, source: str) -> Path:
    """The static init binary of ``source``, kept in the cache by what it is made from.

    Raises EnvironmentFailure when the compiler is missing or refuses.
    """
    prefix = arch.toolchain_prefix(context.host_machine)
    package = arch.packages["cross-compiler" if prefix else "compiler"]
    compiler = proc.require_tool(f"{prefix}gcc", package=package, why=f"to build the guest's init for {arch.name}")
    version = proc.run([compiler, "--version"], timeout=COMPILE_SECONDS).output
    key = hashlib.sha256(f"{version}\0{source}".encode()).hexdigest()[:16]
    directory = context.cache / "guest"
    binary = directory / f"init-{arch.name}-{key}"
    if binary.is_file():
        return binary
    with disk_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
    _prune(directory, f"init-{arch.name}-*")
    # Apart, as two runs, or two boots of one, may want the same and none is to see half of it.
    with tempfile.TemporaryDirectory(prefix="init-", dir=directory) as apart:
        text, made = Path(apart, "init.c"), Path(apart, "init")
        atomic_write(text, source)
        done = proc.run(
            [compiler, "-static", "-O2", "-Wall", "-o", str(made), str(text)],
            timeout=COMPILE_SECONDS,
            what=f"{prefix}gcc",
        )
        if done.status != 0:
            kept = text.replace(directory / f"failed-init-{arch.name}.c")
            raise EnvironmentFailure(
                f"the guest's init does not compile for {arch.name}",
                detail="\n".join(done.errors.splitlines()[:10]),
                hint=f"see {kept}; a static C library is needed (libc6-dev of the guest's architecture)",
            )
        made.replace(binary)
    return binary


def _prune(directory: Path, pattern: str) -> None:
    """Remove all but the newest files; others may do the same at the same time."""
    aged = []
    for path in directory.glob(pattern):
        with contextlib.suppress(FileNotFoundError):
            aged.append((path.stat().st_mtime, path))
    for _, path in sorted(aged)[:-KEPT_INITS]:
        path.unlink(missing_ok=True)


@dataclass
class Archive:
    """A cpio archive (newc) in the making; entries keep their order, times are zero, so equal input is equal output."""

    _parts: list[bytes] = field(default_factory=list)
    _inode: int = 0
    _names: set[str] = field(default_factory=set)

    def _entry(self, name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        if name in self._names:
            raise UsageError(f"{name} would be twice in the initramfs", hint="give the programs different names")
        self._names.add(name)
        self._inode += 1
        encoded = name.encode() + b"\0"
        fields = (self._inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(encoded), 0)
        header = b"070701" + b"".join(b"%08X" % value for value in fields)
        for part in (header + encoded, data):
            self._parts.append(part + b"\0" * (-len(part) % 4))

    def directory(self, name: str, mode: int = 0o755) -> None:
        """A directory."""
        self._entry(name, stat.S_IFDIR | mode)

    def file(self, name: str, data: bytes, mode: int = 0o755) -> None:
        """A regular file."""
        self._entry(name, stat.S_IFREG | mode, data)

    def device(self, name: str, major: int, minor: int) -> None:
        """A character device; an archive may hold one whoever writes it."""
        self._entry(name, stat.S_IFCHR | 0o600, device=(major, minor))

    def link(self, name: str, target: str) -> None:
        """A symbolic link."""
        self._entry(name, stat.S_IFLNK | 0o777, target.encode())

    def tree(self, root: Path) -> None:
        """Everything below ``root`` that is a directory, a file or a link."""
        for path in sorted(root.rglob("*")):
            name = str(path.relative_to(root))
            mode = stat.S_IMODE(path.lstat().st_mode)
            if path.is_symlink():
                self.link(name, str(path.readlink()))
            elif path.is_dir():
                self.directory(name, mode)
            elif path.is_file():
                self.file(name, path.read_bytes(), mode)

    def data(self) -> bytes:
        """The whole archive."""
        self._entry("TRAILER!!!", 0)
        raw = b"".join(self._parts)
        return raw + b"\0" * (-len(raw) % 512)


def pack(init: Path, programs: Sequence[Program], out: Path, root: Path | None = None) -> Path:
    """Write the initramfs ``out`` (gzip): ``init`` and the programs' files, over the tree ``root`` if there is one."""
    archive = Archive()
    if root is not None:
        archive.tree(root)
    for name in ("dev", "proc", "sys", "run", "tmp", "tests"):
        if root is None or not (root / name).is_dir():
            archive.directory(name, 0o1777 if name == "tmp" else 0o755)
    archive.device("dev/console", 5, 1)
    archive.device("dev/null", 1, 3)
    archive.file("init", init.read_bytes())
    files = {program.name: program.file for program in programs if program.file}
    for name, path in sorted(files.items()):
        try:
            archive.file(f"tests/{name}", path.read_bytes())
        except OSError as exc:
            raise UsageError(f"cannot read the program {path}: {exc.strerror}") from None
    atomic_write(out, gzip.compress(archive.data(), compresslevel=1, mtime=0))
    return out


def make_initramfs(
    context: Context, arch: Arch, programs: Sequence[Program], out: Path, root: Path | None = None
) -> Path:
    """Render, compile and pack; returns ``out``."""
    source = render(context.qemu / "init.c.j2", programs)
    return pack(compile_init(context, arch, source), programs, out, root)
