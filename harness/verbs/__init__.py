"""The verbs, one module each. A verb exports NAME, HELP, DESCRIPTION, add_arguments(parser) and run(context, args).

HELP is one line for the overview, DESCRIPTION what ``--help`` says; run() returns an exit code and raises
HarnessError for what a user can meet.
"""

from __future__ import annotations

import argparse
import importlib
from typing import Protocol, cast

from harness.context import Context

# In the order of the pipeline, which is the order of the overview.
VERBS = (
    "doctor",
    "fetch",
    "apply",
    "tree",
    "refresh",
    "config",
    "build",
    "boot",
    "test",
    "measure",
    "trace",
    "mutate",
    "run",
    "check",
    "series",
    "shell",
    "parse",
    "clean",
)


class Verb(Protocol):
    """What a verb module exports."""

    NAME: str
    HELP: str
    DESCRIPTION: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the verb's own arguments."""

    def run(self, context: Context, args: argparse.Namespace) -> int:
        """Do it; returns an exit code."""


def load(name: str) -> Verb:
    """The module of a verb."""
    return cast(Verb, importlib.import_module(f"harness.verbs.{name}"))
