"""``harness refresh``: the developer's commits become the stored series."""

from __future__ import annotations

import argparse
from pathlib import Path

from harness import proc
from harness.context import Context
from harness.source.refresh import DeveloperTree, default_tree

NAME = "refresh"
DESCRIPTION = """\
Exports the commits of the worktree that `harness tree` made to patches/ and patches/series, and prints which patches
were added, changed or removed. The output depends on the commits alone, so nothing changes when nothing was changed.
The cover letter, patches/cover-letter.md, is left alone.

Refused, with nothing written: changes that are not committed, a rebase in progress, merges, empty commits, another
author than configs/identity.yaml, a missing Signed-off-by, and messages that a mail cannot carry.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument("directory", metavar="DIR", nargs="?", type=Path, help="the tree (default: tree in the cache)")


def run(context: Context, args: argparse.Namespace) -> int:
    """Export; prints a line per patch that is new, changed or gone."""
    tree = DeveloperTree(context, (args.directory or default_tree(context)).absolute())
    changes = tree.export(dry_run=context.dry_run)
    if context.dry_run:
        context.report.result(proc.quoted(tree.format_command()))
    for sign, names in (("+", changes.added), ("~", changes.changed), ("-", changes.removed)):
        for name in names:
            context.report.result(f"{'# ' if context.dry_run else ''}{sign} {name}")
    counts = {"added": changes.added, "changed": changes.changed, "removed": changes.removed}
    context.report.step(", ".join(f"{len(names)} {what}" for what, names in counts.items()) + f", {changes.kept} kept")
    return 0
