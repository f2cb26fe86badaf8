"""The cover letter: the text of patches/cover-letter.md, and below it shortlog, diffstat and base from a template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from harness.errors import UsageError
from harness.export.mails import Mail, mbox_hazards

COVER = "cover-letter.md"
TEMPLATE = Path("templates/cover.j2")


@dataclass(frozen=True)
class CoverText:
    """What the author of the series wrote: the subject without its prefix, and the body."""

    subject: str
    body: str


def parse(text: str, name: str = COVER) -> CoverText:
    """A cover letter whose first line is ``# subject``. Raises UsageError naming the line that is wrong."""
    first, _, body = text.lstrip("\n").partition("\n")
    subject = first.removeprefix("# ").strip()
    if not first.startswith("# ") or not subject:
        raise UsageError(f"{name}:1: the first line must be `# subject of the series`", hint=f"mend {name}")
    if not body.strip():
        raise UsageError(f"{name}: there is no text below the subject", hint=f"write why the series exists in {name}")
    hazards = mbox_hazards(body)
    if hazards:
        raise UsageError(
            f"{name}:{hazards[0] + 1}: a line beginning with `From ` begins another mail in a mailbox",
            hint="break the line elsewhere",
        )
    return CoverText(subject, body.strip("\n"))


def shortlog(mails: Sequence[Mail], subjects: Sequence[str]) -> str:
    """Subjects by author as git shortlog prints them: authors by name, subjects in the order of the series."""
    by_author: dict[str, list[str]] = {}
    for mail, subject in zip(mails, subjects, strict=True):
        by_author.setdefault(mail.author.name, []).append(subject)
    blocks = []
    for author, lines in sorted(by_author.items()):
        blocks.append("\n".join([f"{author} ({len(lines)}):", *(f"  {line}" for line in lines)]))
    return "\n\n".join(blocks)


def render(template: Path, text: CoverText, *, shortlog: str, diffstat: str, base: str, base_commit: str) -> str:
    """The body of mail 0. ``base`` is the upstream tag, ``base_commit`` the commit of that tag or empty.

    Raises UsageError naming the template and its line when it does not render.
    """
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    try:
        source = template.read_text(encoding="utf-8")
        rendered = environment.from_string(source).render(
            subject=text.subject,
            body=text.body,
            shortlog=shortlog,
            diffstat=diffstat,
            base=base,
            base_commit=base_commit,
        )
    except FileNotFoundError:
        raise UsageError(f"{template} does not exist", hint="restore it: git checkout configs/templates") from None
    except jinja2.TemplateError as exc:
        line = getattr(exc, "lineno", None)
        where = f"{template}:{line}" if line else str(template)
        raise UsageError(
            f"{where}: {exc.message}", hint="known: subject, body, shortlog, diffstat, base, base_commit"
        ) from None
    return rendered.rstrip("\n") + "\n"
