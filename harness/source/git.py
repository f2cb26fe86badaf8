"""git as the harness runs it: only the repository's own configuration counts, and nothing a hook or rebase exported."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness import proc
from harness.errors import EnvironmentFailure

ENVIRONMENT = {
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_SYSTEM": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "LC_ALL": "C.UTF-8",
    "TZ": "UTC",
}

# The repository may belong to another user (a cache that root filled); attributes of the tree must not change bytes.
_FLAGS = ("-c", "safe.directory=*", "-c", f"core.attributesFile={os.devnull}", "-c", "core.quotePath=true")


def argv(*arguments: str) -> list[str]:
    """The command line of a git that takes its settings from the repository only."""
    inherited = sorted(name for name in os.environ if name.startswith("GIT_") and name not in ENVIRONMENT)
    unset = [flag for name in inherited for flag in ("-u", name)]
    return [*(["env", *unset] if unset else []), "git", *_FLAGS, *arguments]


def _name(arguments: Sequence[str]) -> str:
    """The command in a message: the settings before it say nothing."""
    rest = list(arguments)
    while rest[:1] == ["-c"]:
        del rest[:2]
    return " ".join(["git", *rest[:1]])


def is_full(message: str) -> bool:
    """Whether git, or apt, says that the disk is full: each of their parts has its own words for it."""
    return any(words in message for words in ("No space left on device", "Out of diskspace", "enough free space"))


def no_space(where: Path, message: str) -> EnvironmentFailure:
    """The error of a program that found the disk full; ``message`` is what it said."""
    return EnvironmentFailure(
        f"no space left on the disk that holds {where}",
        detail=message,
        hint="free some space, or point HARNESS_CACHE_DIR at another disk (`harness clean` removes old builds)",
    )


def git(
    where: Path,
    *arguments: str,
    timeout: float,
    env: Mapping[str, str] | None = None,
    stdin: bytes | None = None,
    check: bool = True,
) -> proc.Completed:
    """Run git in the directory ``where``.

    ``env`` is added after every GIT_* variable of the caller is gone. With ``check`` a failure raises
    EnvironmentFailure with git's message; past ``timeout`` seconds StageTimeout is raised.
    """
    # Also for those who take a failure for an answer: `env` would only say that it found no git.
    proc.require_tool("git", package="git", why="the kernel's source is kept in it")
    variables = {**ENVIRONMENT, **(env or {})}
    # `env -u` would take our own variables away again, were they inherited as well.
    command = argv(*arguments)
    if command[0] == "env":
        at = command.index("git")
        command[at:at] = [f"{name}={value}" for name, value in variables.items()]
    done = proc.run(command, timeout=timeout, cwd=where, env=variables, stdin=stdin, what=_name(arguments))
    if check and done.status != 0:
        message = (done.errors or done.output).strip()
        first = message.splitlines()[0] if message else f"status {done.status}"
        if is_full(message):
            raise no_space(where, message)
        raise EnvironmentFailure(
            f"{_name(arguments)} failed in {where}: {first}",
            detail=message if len(message.splitlines()) > 1 else "",
            hint=f"look at it with: git -C {where} {proc.quoted(arguments)}",
        )
    return done
