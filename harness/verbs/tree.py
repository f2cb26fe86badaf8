"""``harness tree``: a worktree for the developer."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from harness import options
from harness.context import Context
from harness.source.refresh import BRANCH, DeveloperTree, default_tree
from harness.source.repo import KernelRepo

NAME = "tree"
DESCRIPTION = """\
Makes a git worktree of the pinned kernel with the series as commits of the branch `agent`, one per patch, and prints
where it is. Edit, rebase and commit there (`git commit -s`; author and sign-off are set to the project's identity of
configs/identity.yaml), then `harness refresh` writes the commits back to patches/.

A tree that exists is brought to the stored series when it holds nothing that has not been exported. Otherwise it is
left as it is, unless --force is given; what was in it then stays under refs/agent/saved of the repository.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    options.add_source(parser)
    parser.add_argument("directory", metavar="DIR", nargs="?", type=Path, help="where (default: tree in the cache)")
    parser.add_argument("--force", action="store_true", help="let go of what is not exported")
    parser.add_argument(
        "--until", metavar="PATCH", default="", help="leave out PATCH (its name or number) and those after it"
    )


def run(context: Context, args: argparse.Namespace) -> int:
    """Make or update the tree; prints its path."""
    path = (args.directory or default_tree(context)).absolute()
    if context.dry_run:
        repo = shlex.quote(str(KernelRepo(context).path))
        context.report.result("harness apply")
        context.report.result(
            f'git -C {repo} worktree add -B {BRANCH} {shlex.quote(str(path))} "$(harness apply | tail -n 1)"'
        )
        return 0
    head = DeveloperTree(context, path).make(until=args.until, force=args.force)
    context.report.step(f"branch {BRANCH} stands at {head[:12]}; when done: harness refresh")
    context.report.result(str(path))
    return 0
