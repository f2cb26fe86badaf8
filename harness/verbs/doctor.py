"""``harness doctor``: what this machine lacks, and the one command that installs it."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import tempfile
from pathlib import Path

from harness import options
from harness.build import tools
from harness.context import Context
from harness.errors import ExitCode
from harness.report import table

NAME = "doctor"
DESCRIPTION = """\
Checks every program, header and library that the other verbs need, for each architecture, as listed in
configs/tools.yaml, and ends with the one command that installs what is missing. Also says how much disk is free and
whether this machine offers KVM (only a boot can tell if KVM works; `harness boot` tries, and falls back to emulation).

Exit code 3 when something is missing that nothing works without.
"""

# MiB that a first `harness run` of both architectures leaves in the cache, rounded up.
WANTED_MIB = 8192


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """-a and what to print."""
    options.add_arch(parser)
    parser.add_argument(
        "--packages", action="store_true", help="print only the missing distribution packages, one a line, exit 0"
    )


def run(context: Context, args: argparse.Namespace) -> int:
    """Print verdicts; see DESCRIPTION."""
    archs = options.archs(context, args)
    verdicts = tools.survey(context, archs, versions=not args.packages)
    if args.packages:
        for package in tools.packages(verdicts):
            context.report.result(package)
        return ExitCode.OK
    rows = []
    for verdict in verdicts:
        state = "ok" if verdict.ok else "optional" if verdict.tool.optional else "MISSING"
        found = (verdict.version or verdict.found) if verdict.ok else verdict.problem
        rows.append((state, verdict.name, found, verdict.package or "(./bootstrap)", verdict.tool.why))
    context.report.result(table(rows, header=("", "tool", "found", "package", "what for")))
    context.report.result()
    context.report.result(table(machine(context)))
    refused = cannot_write(context.cache)
    bad = [verdict for verdict in verdicts if not verdict.ok]
    missing = [verdict for verdict in bad if not verdict.tool.optional]
    context.report.result()
    if command := tools.install_command(bad):
        context.report.result(command)
    if any(not verdict.package for verdict in bad):
        context.report.result("./bootstrap harness doctor")
    if refused:
        context.report.error(refused, hint="point HARNESS_CACHE_DIR at a directory of yours")
    if not bad and not refused:
        context.report.result(f"nothing is missing for {', '.join(arch.name for arch in archs)}")
    return ExitCode.ENVIRONMENT if missing or refused else ExitCode.OK


def cannot_write(directory: Path) -> str:
    """Why nothing can be made in a directory that need not be there yet, or an empty text."""
    while not directory.exists():
        directory = directory.parent
    try:
        with tempfile.TemporaryFile(dir=directory):
            return ""
    except OSError as exc:
        return f"the cache cannot be written: {directory}: {exc.strerror}"


def machine(context: Context) -> list[tuple[str, str]]:
    """What else there is to know about this machine, as rows."""
    where = context.cache
    while not where.exists():
        where = where.parent
    free = shutil.disk_usage(where).free >> 20
    short = "" if free >= WANTED_MIB else f"; a first run of both architectures wants {WANTED_MIB} MiB"
    return [
        ("host", f"{platform.system()} {platform.release()} {context.host_machine}, {context.jobs} jobs"),
        ("python", platform.python_version()),
        ("cache", f"{context.cache}: {free} MiB free{short}"),
        ("kvm", kvm(Path("/dev/kvm"))),
    ]


def kvm(node: Path) -> str:
    """What can be said about KVM without booting anything."""
    if not node.exists():
        return f"no {node}: guests are emulated (TCG)"
    if not os.access(node, os.R_OK | os.W_OK):
        return f"{node} is not yours to open (group kvm?): guests are emulated (TCG)"
    return f"{node} can be opened; a boot will tell whether guests run in it"
