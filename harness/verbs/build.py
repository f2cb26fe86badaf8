"""``harness build``: kernel images, and the selftests that run in them."""

from __future__ import annotations

import argparse

from harness import options
from harness.build import kernel, selftests
from harness.context import Context
from harness.errors import ExitCode
from harness.report import table

NAME = "build"
DESCRIPTION = """\
Applies the series, configures and builds the kernel of each architecture out of tree, and the series' selftests as
static programs against the patched headers. Another build continues where an interrupted one stopped, recompiles only
what a changed patch touches, and does nothing when nothing changed. The compiler cache is shared by all of them.

Prints the image of each architecture. When the compiler refuses, its first message is shown and the full log is kept.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """-a, -f, --unpatched, -j, --timeout, --kernel-only."""
    options.add_arch(parser)
    options.add_flavour(parser)
    options.add_jobs(parser)
    options.add_source(parser)
    parser.add_argument(
        "--timeout", dest="build_timeout", type=float, metavar="SECONDS", help="deadline of one kernel build"
    )
    parser.add_argument("--kernel-only", action="store_true", help="leave the selftests out")


def run(context: Context, args: argparse.Namespace) -> int:
    """Build and print; see DESCRIPTION."""
    flavour = options.flavour(context, args)
    rows = []
    for arch in options.archs(context, args):
        built = kernel.build(context, arch, flavour, patched=not args.unpatched)
        rows.append(
            (
                built.name,
                "unchanged" if built.cached else f"built, {built.files} files",
                f"{built.seconds:.1f} s",
                str(built.image),
                str(built.log),
            )
        )
        if not args.kernel_only:
            tests = selftests.build_selftests(context, built)
            rows.append(
                (
                    f"{arch.name} selftests",
                    "unchanged" if tests.cached else f"built, {len(tests.programs)} programs",
                    f"{tests.seconds:.1f} s",
                    str(tests.directory),
                    str(tests.log),
                )
            )
    if not context.dry_run:
        context.report.result(table(rows, header=("what", "state", "time", "result", "log")))
    return ExitCode.OK
