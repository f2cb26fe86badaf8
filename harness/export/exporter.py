"""The whole export: recipients, cover letter, mails, the proof that they apply, and the directory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from harness import proc
from harness.context import Context
from harness.data import Identity, Pin
from harness.errors import ApplyError, UsageError
from harness.export import cover, mails, outdir, recipients
from harness.export.hygiene import hunk_lines
from harness.export.identity import Sender, find_sender
from harness.export.mails import Mail
from harness.export.recipients import Recipients
from harness.export.scratch import Scratch, scratch
from harness.source.git import git
from harness.source.mail import Patch
from harness.source.repo import KernelRepo
from harness.source.series import Series

NAME = "agent-latency"
MBOX = "series.mbox"

# Files that get_maintainer.pl reads, and those by which it recognises the top of a kernel tree.
_TREE_FILES = (
    ".get_maintainer.conf",
    ".get_maintainer.ignore",
    ".mailmap",
    "COPYING",
    "CREDITS",
    "Kbuild",
    "MAINTAINERS",
    "Makefile",
    "README",
    "scripts/get_maintainer.pl",
)
# The same diffstat whatever the user's configuration, as wide as git makes it for mails.
_DIFFSTAT = ("diff", "--no-ext-diff", "--no-renames", "--no-color", "--stat=72", "--summary")


@dataclass(frozen=True)
class Request:
    """What was asked for: see ``harness series export --help``."""

    directory: Path
    sender: str | None = None
    revision: int = 1
    rfc: bool = True
    cc: bool = True
    per_patch_cc: bool = False


@dataclass(frozen=True)
class Export:
    """What was written: ``tree`` is the tree that the mails gave on the base, which is that of the stored series."""

    directory: Path
    mails: tuple[Mail, ...]
    files: tuple[str, ...]
    sender: Sender
    recipients: Recipients
    base: str
    tree: str
    warnings: tuple[str, ...] = field(default=())


def default_directory(context: Context, revision: int) -> Path:
    """Where an export goes unless told otherwise."""
    return context.root / "outgoing" / f"v{revision}"


def export(context: Context, request: Request) -> Export:
    """Write the series as mails to ``request.directory``.

    Raises UsageError (bad sender, cover letter or directory), ApplyError (the mails would not apply, or would give
    another tree than the stored series), EnvironmentFailure (perl is missing, the disk is full). Nothing is written
    then.
    """
    if request.revision < 1:
        raise UsageError(f"there is no revision {request.revision}", hint="--revision 1 is the first one")
    series = Series.load(context.patches)
    patches = series.patches
    if not patches:
        raise UsageError(f"{context.patches}/series names no patch", hint="`harness refresh` exports the series")
    if series.cover is None:
        raise UsageError(f"{context.patches / cover.COVER} does not exist", hint="write it: `# subject`, then the text")
    text = cover.parse(series.cover, str(context.patches / cover.COVER))
    project = context.identity()
    sender = find_sender(request.sender, context.root, project)
    outdir.check_replaceable(request.directory)

    repo = KernelRepo(context)
    base = repo.ensure_base()
    head = repo.apply(series)
    timeout = context.settings.seconds("apply_timeout")
    pin = context.pin()
    pieces = mails.patch_mails(
        patches, project=project, sender=sender.identity, revision=request.revision, rfc=request.rfc
    )
    body = cover.render(
        context.configs / cover.TEMPLATE,
        text,
        shortlog=cover.shortlog(pieces, [patch.subject for patch in patches]),
        diffstat=repo.git(*_DIFFSTAT, base, head).strip("\n"),
        base=pin.tag,
        base_commit=upstream_commit(repo, pin, base),
    )
    letter = mails.cover_mail(
        text.subject,
        body,
        total=len(patches),
        sender=sender.identity,
        date=mails.newest_date(patches),
        revision=request.revision,
        rfc=request.rfc,
    )
    each = [Recipients() for _ in patches]
    if request.cc:
        context.report.step(f"asking {recipients.SCRIPT} about {len(patches)} patches")
        each = _recipients(context, patches, head, sender.identity, timeout)
    everybody = recipients.union(each, without=[sender.identity])
    addressed = [replace(letter, recipients=everybody)] + [
        replace(mail, recipients=own if request.per_patch_cc else everybody)
        for mail, own in zip(pieces, each, strict=True)
    ]
    threaded = mails.thread(addressed, name=NAME, revision=request.revision)

    subjects = [text.subject, *(patch.subject for patch in patches)]
    rendered = {
        mails.file_name(mail.number, subject, revision=request.revision): mail.render()
        for mail, subject in zip(threaded, subjects, strict=True)
    }
    mbox = b"".join(mail.render() for mail in threaded[1:])
    context.report.step(f"proving that the mails apply to {pin.tag} with git am")
    tree = prove(context, mbox, patches, base, head, timeout)
    rendered[MBOX] = mbox
    outdir.write(
        request.directory,
        rendered,
        {
            "base": pin.tag,
            "fingerprint": series.fingerprint,
            "message_ids": [mail.message_id for mail in threaded],
            "revision": request.revision,
            "sender": str(sender.identity),
            "tree": tree,
        },
    )
    return Export(
        directory=request.directory,
        mails=tuple(threaded),
        files=tuple(rendered),
        sender=sender,
        recipients=everybody,
        base=pin.tag,
        tree=tree,
        warnings=tuple(_warnings(sender, project, patches, everybody, request)),
    )


def _warnings(
    sender: Sender, project: Identity, patches: Sequence[Patch], everybody: Recipients, request: Request
) -> list[str]:
    found = [sender.warning()] if sender.warning() else []
    if project.is_placeholder:
        for patch in patches:
            if any(line.startswith("+") and project.email in line for line in hunk_lines(patch)):
                found.append(
                    f"{patch.name} adds the placeholder {project.email} to a file: exporting replaces it in From and "
                    "Signed-off-by only"
                )
    if request.cc and not everybody.to:
        found.append(f"{recipients.SCRIPT} names nobody to send the series to")
    return found


def _recipients(
    context: Context, patches: Sequence[Patch], head: str, sender: Identity, timeout: float
) -> list[Recipients]:
    """The recipients of each patch, from MAINTAINERS and the script of the patched tree."""
    touched = {path for patch in patches for diff in patch.diffs for path in (diff.old_path, diff.new_path) if path}
    wanted = {*_TREE_FILES, *touched}
    with scratch(context.kernel_repo, head, wanted, context.cache / "tmp", directories=True, timeout=timeout) as place:

        def ask(patch: Patch) -> Recipients:
            file = place.home.parent / patch.name
            file.write_text(patch.text, encoding="utf-8", errors="surrogateescape")
            people = recipients.ask(place.tree, file, place.home, timeout=timeout)
            return recipients.merge([*people, *recipients.named_in(mails.split(patch)[0])], without=[sender])

        with proc.pool(context.jobs) as pool:
            return list(pool.map(ask, patches))


def prove(context: Context, mbox: bytes, patches: Sequence[Patch], base: str, head: str, timeout: float) -> str:
    """Apply the mailbox with git am to a pristine base; returns the tree, which is that of ``head``.

    Raises ApplyError with git's own words when a mail does not apply, and when the tree is another one.
    """
    touched = {path for patch in patches for diff in patch.diffs for path in (diff.old_path, diff.new_path) if path}
    with scratch(context.kernel_repo, base, touched, context.cache / "tmp", timeout=timeout) as place:
        done = place.git("am", "-q", stdin=mbox, check=False)
        if done.status != 0:
            raise ApplyError(
                "the exported mails do not apply to the base with git am: nothing was written",
                detail="\n".join((done.errors + done.output).strip().splitlines()[:10]),
                hint="`harness apply` shows the conflict, `harness refresh` writes the patches anew",
            )
        made = _tree_of(place, "HEAD")
        stored = _tree_of(place, head)
        count = int(place.git("rev-list", "--count", f"{base}..HEAD").output)
        if made != stored or count != len(patches):
            names = place.git("diff", "--name-only", stored, made).output.split()
            raise ApplyError(
                f"git am makes {count} commits and another tree than the stored series: nothing was written",
                detail="\n".join(names[:10]),
                hint="`harness refresh` writes the patches anew",
            )
        return made


def _tree_of(place: Scratch, commit: str) -> str:
    return place.git("rev-parse", f"{commit}^{{tree}}").output.strip()


def upstream_commit(repo: KernelRepo, pin: Pin, base: str) -> str:
    """The commit that upstream's tag names, when the user's git tree has it and it holds our very base; else nothing.

    The commit that a tarball was imported as is known to this cache alone, and would send a reader searching.
    """
    settings = repo.context.settings
    source = settings.path("kernel_source")
    if not settings.text("kernel_source") or not source.is_dir():
        return ""
    tag = f"refs/tags/{pin.tag}"
    found = git(source, "rev-parse", "-q", "--verify", f"{tag}^{{commit}}", timeout=repo.timeout, check=False)
    tree = git(source, "rev-parse", "-q", "--verify", f"{tag}^{{tree}}", timeout=repo.timeout, check=False)
    same = tree.output.strip() == repo.git("rev-parse", f"{base}^{{tree}}")
    return found.output.strip() if found.status == 0 and same else ""
