"""``harness apply``: the series as commits on the pinned base."""

from __future__ import annotations

import argparse
import shlex

from harness import options, report
from harness.context import Context
from harness.source import fetch
from harness.source.repo import KernelRepo
from harness.source.series import Series

NAME = "apply"
DESCRIPTION = """\
Imports the pinned source into a git repository in the cache (once, some 30 s) and applies patches/ to it, one commit
per patch, without a worktree. The same patches give the same commits. Prints the base, each commit with its patch, and
the commit of the whole series.

A conflict names patch, file and hunk (exit code 4) and changes nothing; `harness tree --until PATCH` is where to mend
it.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    options.add_source(parser)
    parser.add_argument("--unpatched", action="store_true", help="import the pinned kernel and leave the series away")


def run(context: Context, args: argparse.Namespace) -> int:
    """Apply; prints a table of commits."""
    series = Series(()) if args.unpatched else Series.load(context.patches)
    repo = KernelRepo(context)
    if context.dry_run:
        for line in _commands(context, repo, series):
            context.report.result(line)
        return 0
    watch = report.Stopwatch()
    base, head = repo.ensure_base(), repo.apply(series)
    rows = [(base[:12], f"Linux {context.pin().version}")]
    rows += [(commit[:12], patch.name) for commit, patch in zip(repo.commits(series), series.patches, strict=True)]
    context.report.result(report.table(rows))
    context.report.result(head)
    context.report.step(f"{len(series.patches)} patches applied in {watch}")
    return 0


def _commands(context: Context, repo: KernelRepo, series: Series) -> list[str]:
    pin = context.pin()
    own = fetch.own_source(context, pin)
    keys = [own.key] if own else [fetch.way_key(way) for way in pin.ways]
    patches = shlex.quote(str(context.patches))
    return [
        "harness fetch",
        f"export GIT_DIR={shlex.quote(str(repo.path))} GIT_INDEX_FILE=$(mktemp -u)",
        f"git read-tree refs/agent/base/{pin.version}/{(keys or ['?'])[0]}",
        *(f"git apply --cached --whitespace=nowarn {patches}/{shlex.quote(patch.name)}" for patch in series.patches),
        "git write-tree",
    ]
