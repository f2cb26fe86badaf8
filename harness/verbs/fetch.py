"""``harness fetch``: the pinned source, verified, in the cache."""

from __future__ import annotations

import argparse

from harness import options
from harness.context import Context
from harness.source import fetch
from harness.source.series import Series

NAME = "fetch"
DESCRIPTION = """\
Gets the source of the kernel that configs/kernel.yaml pins and prints where it is. Tried in this order: what
--kernel-source names, the cache, then the ways of configs/kernel.yaml: Debian's source package through this machine's
own package client and mirror (nothing is installed, no list of the machine changes), and kernel.org.

A tarball counts when it has the pinned SHA-256. A git tree (its tag vVERSION, else what is checked out) or another
tarball counts when it holds the pinned version and every file that the series touches has the blob that the patches
name. An interrupted download continues where it was. The deadline is HARNESS_FETCH_TIMEOUT seconds.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    options.add_source(parser)


def run(context: Context, args: argparse.Namespace) -> int:
    """Fetch; prints the path of the verified source."""
    pin = context.pin()
    if context.dry_run:
        for line in fetch.dry_run(context, pin):
            context.report.result(line)
        return 0
    source = fetch.fetch(context, pin, Series.load(context.patches))
    context.report.result(str(source.path) + (f" {source.commit}" if source.commit else ""))
    return 0
