"""To and Cc of a mail: what scripts/get_maintainer.pl of the patched tree says, and whom the commit message names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from email.utils import parseaddr
from pathlib import Path

from harness import proc
from harness.data import Identity
from harness.errors import EnvironmentFailure

SCRIPT = "scripts/get_maintainer.pl"

# What the tree says, and nothing that a repository's history or the clock would add: two exports are alike.
ARGUMENTS = ("--nogit", "--nogit-fallback", "--nogit-blame", "--nofixes", "--norolestats", "--roles")

# The section's name is cut at 50 characters, so its own brackets need not balance.
_LINE = re.compile(r"(?P<who>.*?<[^<>]*>|[^\s<>]+@[^\s<>]+)(?:\s+\((?P<roles>.*)\))?")
_PERSON_TRAILER = re.compile(
    r"^(?:Cc|Suggested-by|Reported-by|Co-developed-by|Acked-by|Reviewed-by|Tested-by): (?P<who>.+)$", re.M | re.I
)

# The strongest role first; a list is a list whatever else the address is.
_RANKS = {"maintainer": 0, "supporter": 0, "odd fixer": 0, "reviewer": 1, "named": 2, "list": 3}


@dataclass(frozen=True)
class Recipient:
    """An address and its role: maintainer, supporter, odd fixer, reviewer, named (by a trailer) or list."""

    name: str
    email: str
    role: str

    @property
    def key(self) -> str:
        """What makes two of them the same mailbox."""
        return self.email.lower()

    @property
    def order(self) -> tuple[int, int, str]:
        """Maintainers, reviewers, people named, lists; linux-kernel last, as everybody writes it."""
        return _RANKS[self.role], int(self.key.startswith("linux-kernel@")), self.key


@dataclass(frozen=True)
class Recipients:
    """Both headers, in order, each address once."""

    to: tuple[Recipient, ...] = ()
    cc: tuple[Recipient, ...] = ()

    def __len__(self) -> int:
        return len(self.to) + len(self.cc)


def parse(output: str) -> list[Recipient]:
    """The lines that get_maintainer.pl prints. Raises EnvironmentFailure on one that holds no address."""
    found = []
    for line in filter(None, map(str.strip, output.splitlines())):
        match = _LINE.fullmatch(line)
        name, email = parseaddr(match["who"]) if match else ("", "")
        if not match or "@" not in email:
            raise EnvironmentFailure(
                f"{SCRIPT} printed a line without an address: {line!r}", hint="run it by hand, or export with --no-cc"
            )
        found.append(Recipient(name, email, _role(match["roles"] or "")))
    return found


def _role(text: str) -> str:
    kinds = [part.partition(":")[0].strip() for part in text.split(",")]
    if any(kind.endswith("list") for kind in kinds):
        return "list"
    known = [kind for kind in kinds if kind in _RANKS]
    return min(known, key=lambda kind: _RANKS[kind], default="reviewer")


def named_in(message: str) -> list[Recipient]:
    """The people whom the trailers of a commit message name."""
    found = []
    for match in _PERSON_TRAILER.finditer(message):
        # What follows a # is a remark, as in `Cc: stable@vger.kernel.org # 6.18+`.
        name, email = parseaddr(match["who"].partition(" #")[0])
        if "@" in email:
            found.append(Recipient(name, email, "named"))
    return found


def merge(everybody: Iterable[Recipient], *, without: Sequence[Identity] = ()) -> Recipients:
    """To and Cc from any number of finds, in an order that does not depend on theirs.

    To holds the maintainers, Cc reviewers, people named and lists; without a maintainer the lists move to To, for a
    mail needs one. An address has its strongest role. ``without`` (the sender) and addresses that belong to nobody
    (:attr:`Identity.is_placeholder`) are left out.
    """
    own = {identity.email.lower() for identity in without}
    best: dict[str, Recipient] = {}
    for person in everybody:
        if person.key in own or Identity(person.name, person.email).is_placeholder:
            continue
        known = best.get(person.key)
        if known is None or (person.order, person.name) < (known.order, known.name):
            best[person.key] = person
    ordered = sorted(best.values(), key=lambda person: person.order)
    to = tuple(p for p in ordered if _RANKS[p.role] == 0)
    cc = tuple(p for p in ordered if _RANKS[p.role] != 0)
    if not to:
        to, cc = tuple(p for p in cc if p.role == "list"), tuple(p for p in cc if p.role != "list")
    return Recipients(to, cc)


def union(many: Iterable[Recipients], *, without: Sequence[Identity] = ()) -> Recipients:
    """Everybody of several mails."""
    return merge((person for one in many for person in (*one.to, *one.cc)), without=without)


def command(patch: Path) -> list[str]:
    """The command for a patch file, to be run at the top of the tree."""
    return ["perl", SCRIPT, *ARGUMENTS, str(patch)]


def ask(tree: Path, patch: Path, home: Path, *, timeout: float = 120.0) -> list[Recipient]:
    """Run get_maintainer.pl of ``tree`` on a patch file.

    On one at a time: of somebody who is a reviewer for one patch and maintainer for another it would tell one role.

    ``home`` is an empty directory: a .get_maintainer.conf of the user must not change what the series says. Raises
    EnvironmentFailure when perl is missing or the script fails, StageTimeout past ``timeout`` seconds.
    """
    proc.require_tool("perl", package="perl", why="scripts/get_maintainer.pl")
    done = proc.run(
        command(patch),
        timeout=timeout,
        cwd=tree,
        env={"HOME": str(home), "PERL_HASH_SEED": "0", "LC_ALL": "C.UTF-8"},
        what=SCRIPT,
    )
    if done.status != 0:
        raise EnvironmentFailure(
            f"{SCRIPT} failed on {patch.name} with status {done.status}",
            detail="\n".join((done.errors or done.output).strip().splitlines()[-10:]),
            hint="export with --no-cc to go without To and Cc",
        )
    return parse(done.output)
