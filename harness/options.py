"""Arguments that several verbs share, spelled the same everywhere."""

from __future__ import annotations

import argparse
from pathlib import Path

from harness.context import Context
from harness.data import Arch, Flavour, Guest, names
from harness.errors import UsageError
from harness.fs import require_destination


def add_common(parser: argparse.ArgumentParser, *, absent: bool = True) -> None:
    """What every verb takes, before its name, behind it and behind that of a subverb.

    With ``absent`` a flag that is not given leaves alone what was given further in front.
    """

    def default(value: object) -> object:
        return argparse.SUPPRESS if absent else value

    add = parser.add_argument_group("common").add_argument
    add("-v", "--verbose", action="count", default=default(0), help="say more")
    add("-q", "--quiet", action="store_true", default=default(False), help="results and errors only")
    add(
        *("-n", "--dry-run"),
        action="store_true",
        default=default(False),
        help="print commands that can be pasted, change nothing",
    )
    add("--color", choices=("auto", "always", "never"), default=default("auto"))
    add("--cache-dir", metavar="DIR", default=default(None), help="cache of sources and builds (HARNESS_CACHE_DIR)")


def add_arch(parser: argparse.ArgumentParser) -> None:
    """``-a/--arch``, repeatable."""
    parser.add_argument(
        "-a", "--arch", action="append", metavar="ARCH", help="architecture (repeatable); default: all of configs/arch"
    )


def add_flavour(parser: argparse.ArgumentParser) -> None:
    """``-f/--flavour`` and ``--unpatched``."""
    parser.add_argument("-f", "--flavour", metavar="NAME", help="kernel flavour of configs/flavours (default: test)")
    parser.add_argument("--unpatched", action="store_true", help="the pinned kernel without the series")


def add_jobs(parser: argparse.ArgumentParser) -> None:
    """``-j/--jobs``."""
    parser.add_argument("-j", "--jobs", type=int, metavar="N", help="parallel jobs (default: one per CPU)")


def add_accel(parser: argparse.ArgumentParser) -> None:
    """``--accel``."""
    parser.add_argument(
        "--accel",
        choices=("auto", "kvm", "tcg"),
        help="accelerator (default auto: KVM if a guest really boots in it, else TCG)",
    )


def add_output_dir(parser: argparse.ArgumentParser, what: str) -> None:
    """``-o/--output-dir``."""
    parser.add_argument("-o", "--output-dir", type=Path, metavar="DIR", help=what)


def add_source(parser: argparse.ArgumentParser) -> None:
    """``--kernel-source``."""
    parser.add_argument(
        "--kernel-source",
        metavar="PATH",
        help="a tarball or git tree of the pinned kernel to use in place of a download (HARNESS_KERNEL_SOURCE)",
    )


def add_guest(parser: argparse.ArgumentParser) -> None:
    """What every verb that boots a guest takes: which kernel, how it is built, what runs it."""
    add_arch(parser)
    add_flavour(parser)
    add_jobs(parser)
    add_accel(parser)
    add_source(parser)


def add_guests(parser: argparse.ArgumentParser) -> None:
    """``-g/--guest``, repeatable."""
    parser.add_argument(
        "-g",
        "--guest",
        action="append",
        metavar="NAME",
        help="boot this guest of qemu/guests only (repeatable); default: the plain one and those that always boot",
    )


def check_least(flag: str, value: int, least: int, most: int | None = None) -> None:
    """Raise UsageError unless ``value`` is in range."""
    if value < least or (most is not None and value > most):
        upper = "" if most is None else f" and at most {most}"
        raise UsageError(f"{flag} must be at least {least}{upper}, not {value}")


def words(text: str) -> list[str]:
    """The words of a list with commas, each once."""
    return list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))


def check_image(image: Path | None) -> None:
    """Raise UsageError when the kernel image to boot is not there."""
    if image is not None and not image.is_file():
        raise UsageError(f"there is no kernel image {image}", hint="harness build")


def check_files(*destinations: str | Path | None) -> None:
    """Raise UsageError or EnvironmentFailure when a file that a result is to go to, long from now, cannot be one."""
    for path in destinations:
        if path is not None and str(path) != "-":
            require_destination(Path(path))


def guests(context: Context, args: argparse.Namespace) -> list[Guest | None]:
    """The guests asked for; None is the plain one. Raises UsageError for those that the backend cannot make."""
    if args.guest:
        if args.backend != "qemu":
            # virtme-ng has a machine and a command line of its own.
            raise UsageError("guests of qemu/guests need --backend qemu", hint="leave --guest or --backend out")
        return [context.guest(name) for name in dict.fromkeys(args.guest)]
    return [None, *(guest for guest in context.guests() if guest.always and args.backend == "qemu")]


def archs(context: Context, args: argparse.Namespace) -> list[Arch]:
    """The architectures asked for, each once, in the order given. Raises UsageError when there is none."""
    chosen: list[str] = args.arch or context.settings.text("arch").split(",")
    named = words(",".join(chosen))
    if not named:
        raise UsageError("no architecture is named", hint=f"known: {', '.join(names(context.configs / 'arch'))}")
    return [context.arch(name) for name in named]


def flavour(context: Context, args: argparse.Namespace) -> Flavour:
    """The flavour asked for."""
    return context.flavour(context.settings.text("flavour"))
