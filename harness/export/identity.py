"""Who sends the series: `--from`, else the user's git configuration, else the placeholder of the project."""

from __future__ import annotations

import re
from dataclasses import dataclass
from email.utils import parseaddr
from pathlib import Path

from harness import proc
from harness.data import Identity
from harness.errors import EnvironmentFailure, UsageError

# Enough to catch a slip of the keyboard; whether the mailbox exists only its server knows.
_ADDRESS = re.compile(r"[^\s<>@,;\"()]+@[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?")


@dataclass(frozen=True)
class Sender:
    """The sender's identity, and where it came from, for the user to see."""

    identity: Identity
    origin: str

    def warning(self) -> str:
        """What a user should know before sending, or nothing."""
        if not self.identity.is_placeholder:
            return ""
        return (
            f"the sender is still the placeholder {self.identity} (from {self.origin}): these mails cannot be sent; "
            "give --from 'Name <mail>', or set git config user.name and user.email"
        )


def parse_address(text: str, where: str) -> Identity:
    """An identity from ``Name <mail>``. Raises UsageError naming ``where`` when it is none."""
    name, address = parseaddr(text)
    if any(ord(c) < 32 or ord(c) == 127 for c in text) or not name.strip() or not _ADDRESS.fullmatch(address):
        raise UsageError(f"{where}: {text!r} is no sender", hint=f"{where} 'First Last <mail@host>'")
    return Identity(name.strip(), address)


def _git_config(key: str, directory: Path, timeout: float = 10.0) -> str:
    try:
        done = proc.run(["git", "config", "--get", key], timeout=timeout, cwd=directory)
    except EnvironmentFailure:
        return ""
    return done.output.strip() if done.status == 0 else ""


def find_sender(given: str | None, directory: Path, project: Identity) -> Sender:
    """The sender: ``given`` (``--from``), git's user.name and user.email as seen from ``directory``, else ``project``.

    A git configuration with only one of the two counts as none: half an identity would be half a placeholder.
    """
    if given is not None:
        return Sender(parse_address(given, "--from"), "--from")
    name, address = _git_config("user.name", directory), _git_config("user.email", directory)
    if name and address:
        return Sender(parse_address(f'"{name}" <{address}>', "git config user.name and user.email:"), "git config")
    return Sender(project, "configs/identity.yaml")
