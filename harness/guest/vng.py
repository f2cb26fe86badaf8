"""virtme-ng as the second backend: the kernel over the host's files (or a user land of the guest's architecture).

What it does not do by itself is done here. It has no deadline and leaves QEMU behind when it is killed: it runs in a
session of its own that is killed whole. It answers 255 to a panic, a missing udev and a QEMU that would not start
alike: the command's status comes through a file that the guest writes, the reason from the console. It empties a file
that its output is redirected to: its output goes to a terminal of ours. The command travels on the kernel command line,
which is short: it is always the path of a script. A guest without udev has no script channels: a shim makes them.
Without CONFIG_BLOCK the kernel does not try its root by default: it is named. And it is never asked to configure or to
build a kernel.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from harness import proc
from harness.context import Context
from harness.data import Arch
from harness.errors import EnvironmentFailure, GuestCrash, StageTimeout, UsageError
from harness.fs import atomic_write, disk_errors, write_if_changed
from harness.guest import accel as accels
from harness.guest import console, emulator, init, rootfs, runner, verdict
from harness.guest import machine as machines
from harness.guest.init import Program
from harness.guest.log import load
from harness.guest.verdict import End, Ending

SHARE = "/run/harness"
HOST_FILES = "/mnt"
# The host's user land starts over 9P under emulation, which takes a while.
SLOWER = 2.0
# An emulated arm64 CPU stops all others for much of what starting a program takes, and virtme-ng's init there is a
# script: with two CPUs it takes several times as long. It starts on one, and the others join before the command.
WAKE = "for cpu in /sys/devices/system/cpu/cpu[0-9]*/online; do echo 1 > $cpu; done 2> /dev/null"
_SHIMS = ("udevd", "udevadm")
# Host services that virtme-ng's init would start in the guest, to no purpose there and at the price of seconds.
_IDLE = ("systemd-tmpfiles",)


def tool() -> str:
    """The full path of vng: beside this Python, where pip puts it, or on PATH. Raises EnvironmentFailure."""
    found = shutil.which("vng", path=_path())
    if found is None:
        raise EnvironmentFailure("vng (virtme-ng) is not installed", hint="./bootstrap harness doctor")
    return found


def _path() -> str:
    """PATH with the directory that vng finds virtme-run in."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def native(context: Context, arch: Arch) -> bool:
    """Whether the host's own files can be the guest's."""
    return context.host_machine in arch.native_machines


def root_path(context: Context, arch: Arch) -> Path:
    """The root of the guest, which may not exist yet."""
    return Path("/") if native(context, arch) else rootfs.path_of(context, arch)


def prepare(context: Context, arch: Arch) -> Path:
    """The root of the guest, made if it has to be; for the host's own, the shims that go before its programs."""
    if not native(context, arch):
        return rootfs.ensure(context, arch)
    shims = shim_directory(context)
    shim = (context.qemu / "udev-shim.sh").read_text()
    for name in _SHIMS:
        write_if_changed(shims / name, shim)
    for name in _IDLE:
        write_if_changed(shims / name, "#!/bin/sh\nexit 0\n")
    for path in shims.iterdir():
        path.chmod(0o755)
    return Path("/")


def shim_directory(context: Context) -> Path:
    """Where the shims of a guest with the host's files are."""
    return context.cache.resolve() / "guest" / "shim"


def argv(
    context: Context,
    arch: Arch,
    image: Path,
    *,
    root: Path,
    script: str = "",
    share: Path | None = None,
    host_files: Path | None = None,
    nonce: str = "",
    kvm: bool = False,
    shell: str = "",
    vng: str = "vng",
    qemu: str = "",
) -> list[str]:
    """The command line; without ``script`` an interactive shell (``shell``). ``share`` becomes SHARE, writable."""
    machine = context.machine(arch.machine)
    words = [vng, "--force-9p", "--user", "root", "--cpus", machine.smp, "--memory", f"{machine.memory_mib}M"]
    if qemu:
        words += ["--qemu", qemu]
    if not kvm:
        # Its own choice of CPU has pointer authentication, which costs an emulated arm64 guest a multiple of its time.
        words += ["--disable-kvm", f"--qemu-opts=-cpu {machine.cpu}"]
    if root != Path("/"):
        words += ["--arch", arch.debian_arch, "--root", str(root)]
    if share is not None:
        words += ["--rwdir", f"{SHARE}={share}"]
    if host_files is not None and root != Path("/"):
        words += ["--rodir", f"{HOST_FILES}={host_files}"]
    # Pages that were read stay read: without it every program is fetched again for every time it starts. Nobody writes
    # to the user land of another architecture; of the host's own files the guest keeps only what it reads ahead.
    cache = "readahead" if root == Path("/") else "loose"
    extra = ["root=/dev/root", f"rootflags=version=9p2000.L,trans=virtio,access=any,msize=512000,cache={cache}"]
    if root == Path("/"):
        # The kernel hands it to init as its PATH.
        extra.append(f"PATH={shim_directory(context)}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    if root != Path("/") and (script or shell):
        extra.append("maxcpus=1")
    if shell:
        words += ["--shell", shell]
    if script:
        words.append("--verbose")
        extra += [*machines.GUEST_CMDLINE, f"harness.nonce={nonce}"]
    for word in extra:
        words += ["--append", word]
    words += ["--run", str(image)]
    if script:
        words += ["--exec", script]
    return words


@dataclass(frozen=True)
class _Guest:
    argv: list[str]
    qemu: str
    accel: accels.Accel
    root: Path
    nonce: str


def _guest(
    context: Context,
    arch: Arch,
    image: Path,
    *,
    script: str = "",
    shell: str = "",
    share: Path | None = None,
    host_files: Path | None = None,
    root: Path | None = None,
) -> _Guest:
    if not image.is_file():
        raise UsageError(f"there is no kernel image {image}", hint="harness build")
    machine = context.machine(arch.machine)
    qemu = emulator.ensure(context, arch, machine)
    vng = tool()
    root = root or prepare(context, arch)
    accel = accels.choose(context, arch, machine, qemu.program, image)
    nonce = runner.new_nonce()
    words = argv(
        context,
        arch,
        image.resolve(),
        root=root,
        script=script,
        shell=shell,
        share=share,
        host_files=host_files,
        nonce=nonce,
        kvm=accel.name == "kvm",
        vng=vng,
        qemu=qemu.program,
    )
    return _Guest(words, qemu.version, accel, root, nonce)


def _watch(
    guest: _Guest,
    log: Path,
    limits: console.Deadlines,
    *,
    on_program: Callable[[str], None] | None = None,
    on_poll: Callable[[], None] | None = None,
    kept: bool = True,
) -> tuple[console.ConsoleResult, str]:
    """Run vng to its end; the ending is the guest's, not what vng makes of it."""
    result = console.run(
        guest.argv,
        log,
        limits,
        nonce=guest.nonce,
        on_program=on_program,
        on_poll=on_poll,
        # Its own working directory must exist in the guest, else the guest's init gives up.
        cwd=guest.root if guest.root != Path("/") else None,
        env={"PATH": _path()},
    )
    text = load(log)
    runner.require_start(result, guest.argv, text, kept=kept)
    if result.ending.end == End.EXITED and result.ending.status == 255 and result.guest_spoke:
        # Its word for whatever it did not expect; what it was is in the log.
        result = dataclasses.replace(result, ending=Ending(End.EXITED, 0))
    return result, text


def test(
    context: Context,
    arch: Arch,
    image: Path,
    programs: Sequence[Program],
    directory: Path,
    *,
    factor: float = 1.0,
    root: Path | None = None,
    files: Mapping[str, Path] | None = None,
    least: float = 0.0,
    suites: Sequence[str] = (),
) -> runner.Boot:
    """What :func:`harness.guest.runner.boot` does, in a guest of virtme-ng: our init runs in it as a program.

    ``root`` is a user land in place of the usual one. ``files`` are directories that the guest has a copy of below
    SHARE, by the name there; ``least`` and ``suites`` are as there. Raises EnvironmentFailure when
    vng or QEMU is missing or does not start.
    """
    share = directory / "share"
    with disk_errors(directory):
        (share / "tests").mkdir(parents=True, exist_ok=True)
        for name, source_directory in (files or {}).items():
            shutil.copytree(source_directory, share / name, dirs_exist_ok=True)
        moved = []
        for program in programs:
            if program.file is not None:
                shutil.copyfile(program.file, share / "tests" / program.name)
                (share / "tests" / program.name).chmod(0o755)
                program = dataclasses.replace(program, path=f"{SHARE}/tests/{program.name}")
            moved.append(program)
        source = init.render(context.qemu / "init.c.j2", moved, f"{SHARE}/tests")
        shutil.copyfile(init.compile_init(context, arch, source), share / "init")
        (share / "init").chmod(0o755)
    atomic_write(share / "run.sh", f"#!/bin/sh\n{WAKE}\nexec {SHARE}/init\n", mode=0o755)
    rules = runner.rules(context)
    guest = _guest(context, arch, image, script=f"{SHARE}/run.sh", share=share.resolve(), root=root)
    runner.write_reproducer(directory / runner.REPRODUCE, guest.argv)
    log = directory / runner.CONSOLE_LOG
    context.report.step(f"{arch.name}: booting with virtme-ng, {guest.accel.name}, {len(programs)} programs")
    result, text = _watch(
        guest,
        log,
        runner.deadlines(context, factor * SLOWER, least),
        on_program=lambda name: context.report.debug(f"{arch.name}: {name}"),
    )
    judged = verdict.judge(
        text,
        result.ending,
        rules,
        nonce=guest.nonce,
        expected=[verdict.Expected(program.name, program.reports) for program in programs],
        suites=suites,
    )
    return runner.Boot(
        arch, "vng", guest.qemu, guest.accel, tuple(guest.argv), log, result.seconds, result.boot_seconds, judged
    )


class _Tail:
    """Copies what is appended to a file to a stream, from where it stopped."""

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        path.touch()
        self._file = path.open("rb")
        self._stream = stream

    def copy(self) -> None:
        """What is new."""
        if data := self._file.read():
            self._stream.write(data)
            self._stream.flush()

    def close(self) -> None:
        """The rest, then the end."""
        self.copy()
        self._file.close()


def _command_script(command: Sequence[str], directory: str, nonce: str) -> str:
    """What the guest runs: the command with its output in the share, its status in a file, and our markers."""
    mark = f"harness!{nonce}!"
    return f"""#!/bin/sh
printf '%s\\n' '<6>{mark}start backend=vng' > /dev/kmsg
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PATH HOME=/root
cd {shlex.quote(directory)} 2> /dev/null || cd /
{WAKE}
printf '%s\\n' '<6>{mark}begin command timeout=0' > /dev/kmsg
{shlex.join(command)} < /dev/null > {SHARE}/stdout 2> {SHARE}/stderr
status=$?
printf '%s\\n' '{nonce}' "$status" > {SHARE}/status
sync
printf '%s\\n' "<6>{mark}end command status=$status signal=0 lines=0" > /dev/kmsg
printf '%s\\n' '<6>{mark}done ran=1' > /dev/kmsg
exit 0
"""


def command(
    context: Context,
    arch: Arch,
    image: Path,
    words: Sequence[str],
    *,
    factor: float = 1.0,
    keep: Path | None = None,
) -> int:
    """Run a command in the guest, its output on ours as it comes; returns its exit status.

    A kernel that complained makes a 7 of a status of 0. The console log stays in ``keep``. Raises GuestCrash or
    StageTimeout with the splat or the last words when the command's status never came, EnvironmentFailure when QEMU did
    not start.
    """
    with tempfile.TemporaryDirectory(prefix="harness-shell-") as name, contextlib.ExitStack() as stack:
        share = Path(name) / "share"
        share.mkdir()
        rules = runner.rules(context)
        here = Path.cwd()
        guest = _guest(context, arch, image, script=f"{SHARE}/run.sh", share=share, host_files=here)
        inside = str(here) if guest.root == Path("/") else HOST_FILES
        atomic_write(share / "run.sh", _command_script(words, inside, guest.nonce), mode=0o755)
        tails = [_Tail(share / "stdout", sys.stdout.buffer), _Tail(share / "stderr", sys.stderr.buffer)]
        for tail in tails:
            stack.callback(tail.close)

        def copy() -> None:
            for tail in tails:
                tail.copy()

        log = (keep or Path(name)) / runner.CONSOLE_LOG
        limits = runner.deadlines(context, factor * SLOWER)
        result, text = _watch(
            guest,
            log,
            # What a command prints does not go over the console.
            limits.patient(),
            on_poll=copy,
            kept=False,
        )
        status = _status(share / "status", guest.nonce)
        judged = verdict.judge(text, result.ending, rules, nonce=guest.nonce, expected=[])
    context.report.debug(
        f"{arch.name}: {result.boot_seconds or 0:.1f} s to the command, {result.seconds:.1f} s in all, {guest.accel}"
    )
    where = f"console log: {log}" if keep else "--log DIR keeps the console log"
    if status is None:
        failure = judged.failure or verdict.Failure("lost", "the guest ended without a status", StageTimeout.exit_code)
        cls = GuestCrash if failure.code == GuestCrash.exit_code else StageTimeout
        detail = "\n".join(report.shown() for report in judged.splats[:2]) or _tail(text)
        raise cls(f"{arch.name}: {failure.message}", detail=detail, hint=where)
    for report in judged.splats:
        context.report.warn(f"{arch.name}: the kernel reported: {report.kind}: {report.headline}")
    if status == 0 and judged.splats:
        return int(GuestCrash.exit_code)
    return status


def _tail(text: str) -> str:
    return "\n".join(text.replace("\r", "").rstrip().split("\n")[-15:])


def _status(path: Path, nonce: str) -> int | None:
    try:
        said, status = path.read_text().split()
        return int(status) if said == nonce else None
    except (OSError, ValueError):
        return None


@contextlib.contextmanager
def _terminal() -> Iterator[None]:
    """The terminal's settings as they were, whatever QEMU did to them."""
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def require_terminal() -> None:
    """Raise UsageError unless there is a terminal to give to a guest."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError(
            "an interactive shell needs a terminal", hint="give a command: harness shell -a ARCH -- CMD ARG..."
        )


def foreground(words: Sequence[str], *, cwd: Path | None = None) -> int:
    """Give the terminal to a program in a session of its own until it ends; it ends with us. Returns its status.

    Raises UsageError when there is no terminal.
    """
    require_terminal()
    with _terminal():
        process = subprocess.Popen(list(words), start_new_session=True, cwd=cwd, env={**os.environ, "PATH": _path()})
        try:
            # Until the user leaves; the only wait without a deadline, as the user is the one who waits.
            while process.poll() is None:
                time.sleep(0.1)
        finally:
            proc.end_group(process, grace_seconds=1.0)
    return process.returncode


def shell(context: Context, arch: Arch, image: Path) -> int:
    """An interactive shell in the guest; returns 0 when it was left the usual way."""
    with tempfile.TemporaryDirectory(prefix="harness-shell-") as name:
        share = Path(name)
        foreign = not native(context, arch)
        text = f"#!/bin/bash\n{WAKE}\ncd {HOST_FILES}\nexec /bin/bash -l\n"
        atomic_write(share / "shell", text, mode=0o755)
        guest = _guest(
            context,
            arch,
            image,
            shell=f"{SHARE}/shell" if foreign else "",
            share=share if foreign else None,
            host_files=Path.cwd(),
        )
        context.report.step(f"{arch.name}: starting virtme-ng with {guest.accel.name}; leave with Ctrl-D or exit")
        status = foreground(guest.argv, cwd=guest.root if foreign else None)
    if status != 0:
        raise GuestCrash(
            f"{arch.name}: the guest did not end the usual way (virtme-ng says {status})",
            hint="harness boot shows its console",
        )
    return 0
