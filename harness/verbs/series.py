"""``harness series``: the series as a list, and as mails."""

from __future__ import annotations

import argparse
from pathlib import Path

from harness import options
from harness.context import Context
from harness.errors import ExitCode
from harness.export import cover, exporter, identity, mails, recipients
from harness.export.hygiene import changed_lines
from harness.proc import quoted
from harness.report import table
from harness.source.series import Series

NAME = "series"
DESCRIPTION = """\
The series in patches/ as a whole. `harness check` judges its patches, `harness refresh` writes them.
"""

_EXPORT = """\
Writes the series as mails: a cover letter and one mail a patch, numbered and threaded below the cover letter, and the
patches once more as one mailbox for git am (series.mbox; a cover letter would stop git am, so it is not in there).

Subjects are [RFC PATCH k/n]; from revision 2 on, as git has it, [RFC PATCH vN k/n]. The cover letter's subject and text
are patches/cover-letter.md; shortlog, diffstat and base come from configs/templates/cover.j2. To and Cc are what
scripts/get_maintainer.pl of the patched tree says, with the people whom the commit messages name: everybody gets
everything, unless --per-patch-cc.

Author and Signed-off-by of the stored patches are the project's; the mails carry the sender's: --from, else git config
user.name and user.email. When that is still the placeholder the export says so, and is good for reading only.

Before anything is written, the mailbox is applied with git am to the pristine base in a scratch repository, and has to
give the very tree of the stored series. Exporting twice gives the same bytes: dates are those of the patches,
Message-IDs are hashes.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subverbs and their arguments."""
    sub = parser.add_subparsers(dest="action", metavar="WHAT", help="default: list")
    parser.set_defaults(action="list")
    listing = sub.add_parser(
        "list", help="number, subject, lines and files of each patch", description="Lists the series."
    )
    export = sub.add_parser(
        "export",
        help="write the mails",
        description=_EXPORT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_output_dir(
        export, "where the mails go (default: outgoing/vN of the project); an older export is replaced"
    )
    export.add_argument("--from", dest="sender", metavar="'NAME <MAIL>'", help="the sender (default: git config)")
    export.add_argument("-V", "--revision", type=int, default=1, metavar="N", help="revision of the series (default 1)")
    export.add_argument("--rfc", action=argparse.BooleanOptionalAction, default=True, help="[RFC PATCH] (the default)")
    who = export.add_mutually_exclusive_group()
    who.add_argument("--per-patch-cc", action="store_true", help="each patch goes to its own maintainers only")
    who.add_argument("--no-cc", dest="cc", action="store_false", help="no To and Cc; needs no perl")
    for child in (listing, export):
        options.add_common(child)


def run(context: Context, args: argparse.Namespace) -> int:
    """Run a subverb."""
    actions = {"list": _list, "export": _export}
    return actions[args.action](context, args)


def _list(context: Context, _args: argparse.Namespace) -> int:
    series = Series.load(context.patches)
    rows, plus, minus = [], 0, 0
    files: set[str] = set()
    for number, patch in enumerate(series.patches, 1):
        added, removed = changed_lines(patch)
        paths = {diff.path for diff in patch.diffs}
        rows.append([str(number), patch.subject, f"+{added}", f"-{removed}", str(len(paths))])
        plus, minus, files = plus + added, minus + removed, files | paths
    rows.append(["", "all", f"+{plus}", f"-{minus}", str(len(files))])
    context.report.result(table(rows, ["#", "patch", "added", "removed", "files"]))
    return ExitCode.OK


def _export(context: Context, args: argparse.Namespace) -> int:
    directory: Path = args.output_dir or exporter.default_directory(context, args.revision)
    request = exporter.Request(
        directory=directory,
        sender=args.sender,
        revision=args.revision,
        rfc=args.rfc,
        cc=args.cc,
        per_patch_cc=args.per_patch_cc,
    )
    if context.dry_run:
        return _dry_run(context, request)
    done = exporter.export(context, request)
    rows = [[name, mail.subject] for name, mail in zip(done.files, done.mails, strict=False)]
    context.report.result(table(rows))
    context.report.result()
    context.report.result(f"From: {done.sender.identity} ({done.sender.origin})")
    for header, people in (("To", done.recipients.to), ("Cc", done.recipients.cc)):
        for person in people:
            context.report.result(f"{header}: {mails.address(person.name, person.email)} ({person.role})")
    for text in done.warnings:
        context.report.warn(text)
        context.report.result(f"warning: {text}")
    context.report.result(
        f"{len(done.mails) - 1} patches apply with git am to {done.base} and give tree {done.tree[:12]}, "
        "that of the stored series"
    )
    context.report.result(f"written: {done.directory} (git am {done.directory / exporter.MBOX})")
    return ExitCode.OK


def _dry_run(context: Context, request: exporter.Request) -> int:
    """What would be run and written."""
    series = Series.load(context.patches)
    sender = identity.find_sender(request.sender, context.root, context.identity())
    text = cover.parse(series.cover or "", str(context.patches / cover.COVER))
    context.report.result("harness apply")
    if request.cc:
        for patch in series.patches:
            context.report.result(quoted(recipients.command(context.patches / patch.name)))
    context.report.result(f"git am {request.directory / exporter.MBOX}")
    subjects = [text.subject, *(patch.subject for patch in series.patches)]
    for number, subject in enumerate(subjects):
        name = mails.file_name(number, subject, revision=request.revision)
        prefix = mails.subject_prefix(number, len(series.patches), revision=request.revision, rfc=request.rfc)
        context.report.result(f"# would write {request.directory / name}: {prefix} {subject}")
    context.report.result(f"# as {sender.identity} ({sender.origin})")
    return ExitCode.OK
