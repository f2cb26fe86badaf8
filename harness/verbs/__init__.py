"""The verbs, one module each. A verb exports NAME, DESCRIPTION, add_arguments(parser) and run(context, args).

DESCRIPTION is what ``--help`` says; run() returns an exit code and raises HarnessError for what a user can meet. Their
line of the overview is here, as only the verb that is asked for is imported.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    import argparse

    from harness.context import Context

# In the order of the pipeline, which is the order of the overview.
VERBS = {
    "doctor": "name every missing tool, its package and the command that installs it",
    "fetch": "get the source of the pinned kernel",
    "apply": "turn the series into commits on the pinned base",
    "tree": "a worktree with the series as commits, to edit, rebase and commit in",
    "refresh": "write the commits of the tree to patches/",
    "config": "write and verify a kernel .config; --show-origin lists the harness's settings",
    "build": "build the kernel and its selftests for each architecture",
    "boot": "boot the built kernel, or one program in it",
    "test": "run the selftests in a guest of each architecture, with a verdict for each",
    "measure": "measure wake latency, step time and CPU shares in guests that count instructions",
    "trace": "run a command as a marked agent and show the completion chain of its steps",
    "mutate": "break the series on purpose, one thing at a time, and see that a test notices",
    "objdiff": "compare the code of the kernel with the series, its option off, and without",
    "run": "all of it: fetch, apply, build, boot and test on every architecture",
    "check": "checkpatch --strict, mail hygiene and a build of every patch on its predecessor",
    "series": "the series as a list or as mails for the lists",
    "shell": "a shell, or a command of this machine, in the built kernel",
    "parse": "judge a saved console log",
    "clean": "remove builds, trees, downloads, runs or the compiler cache",
}


class Verb(Protocol):
    """What a verb module exports."""

    NAME: str
    DESCRIPTION: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the verb's own arguments."""

    def run(self, context: Context, args: argparse.Namespace) -> int:
        """Do it; returns an exit code."""


def load(name: str) -> Verb:
    """The module of a verb."""
    return cast(Verb, importlib.import_module(f"harness.verbs.{name}"))
