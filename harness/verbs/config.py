"""``harness config``: the verified kernel configuration, and the settings of the harness."""

from __future__ import annotations

import argparse

from harness import fs, options, settings
from harness.build import kernel, tools
from harness.context import Context
from harness.errors import ExitCode
from harness.kconfig import assemble
from harness.report import table
from harness.source.repo import KernelRepo

NAME = "config"
DESCRIPTION = """\
Puts the fragments of a flavour (configs/flavours, configs/fragments) and of an architecture together on top of
allnoconfig, and checks that every requested symbol took effect; a symbol that did not is named with the dependency it
lacks, and exit code 5. Prints the path of the .config and the requested symbols with the line each comes from.

With --show-origin it lists the settings of the harness instead, each with its value and where it comes from: command
line, HARNESS_* variable, configs/harness.yaml, the user's agent-latency/harness.yaml, or built-in.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """-a, -f, --unpatched, --show-origin."""
    options.add_arch(parser)
    options.add_flavour(parser)
    parser.add_argument("--show-origin", action="store_true", help="list the harness's settings and their origin")
    options.add_source(parser)


def run(context: Context, args: argparse.Namespace) -> int:
    """Write and print; see DESCRIPTION."""
    if args.show_origin:
        rows = [
            (name, str(context.settings.values[name]) or '""', context.settings.origin[name], meaning)
            for name, (_, _, meaning) in settings.DEFAULTS.items()
        ]
        context.report.result(table(rows, header=("setting", "value", "origin", "meaning")))
        return ExitCode.OK
    archs = options.archs(context, args)
    flavour = options.flavour(context, args)
    patched = not args.unpatched
    if context.dry_run:
        context.report.result(f"harness apply{'' if patched else ' --unpatched'}")
        for arch in archs:
            out = context.builds / kernel.build_name(arch, flavour, patched)
            assemble.configure(context, context.source_tree, arch, flavour, out, patched)
        return ExitCode.OK
    tools.require(context, archs, "config")
    commit = kernel.source_commit(context, patched)
    with KernelRepo(context).checkout(commit) as tree:
        for arch in archs:
            name = kernel.build_name(arch, flavour, patched)
            out = context.builds / name
            with fs.lock(kernel.build_lock(context, name), f"the build directory {out}"):
                config = assemble.configure(context, tree, arch, flavour, out, patched)
            requests = assemble.requested(context, arch, flavour, patched).requests.values()
            context.report.result(f"{name}: {len(requests)} requested symbols took effect in {config}")
            symbols = [(f"CONFIG_{r.symbol}", r.shown, r.origin) for r in sorted(requests, key=lambda r: r.symbol)]
            context.report.result(table(symbols, header=("symbol", "value", "requested in")))
    return ExitCode.OK
