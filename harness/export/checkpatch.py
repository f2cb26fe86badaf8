"""checkpatch.pl --strict on one patch, in the tree as the patch leaves it; exceptions are data with a reason."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from harness import data, proc
from harness.errors import EnvironmentFailure

SCRIPT = "scripts/checkpatch.pl"
SPDX_SCRIPT = "scripts/spdxcheck.py"
ARGUMENTS = ("--strict", "--show-types", "--color=never")

_FINDING = re.compile(r"^(ERROR|WARNING|CHECK):([A-Z0-9_]+): (.*)$")
_PLACE = re.compile(r"^#\d+: (?:FILE: (?P<file>[^:]+):(?P<line>\d+):)?")
_TOTAL = re.compile(r"^total: (\d+) errors, (\d+) warnings, (?:(\d+) checks, )?(\d+) lines checked$", re.M)


@dataclass(frozen=True)
class Exception_:  # noqa: N801 - the builtin has the better name
    """A message type that does not fail the check: below ``paths`` (shell patterns; none: anywhere), and why not."""

    type: str
    reason: str
    paths: tuple[str, ...] = ()

    def covers(self, message: Message) -> bool:
        """Whether it is meant for this message."""
        if self.type != message.type:
            return False
        return not self.paths or any(fnmatchcase(message.file, pattern) for pattern in self.paths)


@dataclass(frozen=True)
class Exceptions:
    """The file configs/checkpatch.yaml."""

    exceptions: tuple[Exception_, ...] = ()


@dataclass(frozen=True)
class Message:
    """One message: ``level`` is ERROR, WARNING or CHECK; ``file`` and ``line`` are empty and 0 for the mail itself."""

    level: str
    type: str
    text: str
    file: str = ""
    line: int = 0

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}: " if self.file else ""
        return f"{where}{self.level}: {self.text} [{self.type}]"


@dataclass(frozen=True)
class Report:
    """What checkpatch says of a patch; ``excepted`` messages count for nothing."""

    messages: tuple[Message, ...]
    excepted: tuple[Message, ...] = ()
    lines: int = 0

    def count(self, level: str) -> int:
        """Messages of a level."""
        return sum(message.level == level for message in self.messages)

    @property
    def totals(self) -> str:
        """``errors/warnings/checks``, and what is excepted."""
        text = f"{self.count('ERROR')}/{self.count('WARNING')}/{self.count('CHECK')}"
        return f"{text} (+{len(self.excepted)})" if self.excepted else text


def load_exceptions(path: Path) -> tuple[Exception_, ...]:
    """The exceptions; none when there is no such file. Raises UsageError when it is broken."""
    return data.load(path, Exceptions).exceptions if path.is_file() else ()


def parse(output: str, exceptions: Sequence[Exception_] = ()) -> Report:
    """The report that checkpatch printed. Raises EnvironmentFailure when its own totals differ from what was read."""
    messages: list[Message] = []
    lines = output.splitlines()
    for number, line in enumerate(lines):
        found = _FINDING.match(line)
        if not found:
            continue
        place = _PLACE.match(lines[number + 1]) if number + 1 < len(lines) else None
        file = (place["file"] or "") if place else ""
        messages.append(Message(found[1], found[2], found[3], file, int(place["line"]) if place and file else 0))
    total = _TOTAL.search(output)
    read = tuple(sum(m.level == level for m in messages) for level in ("ERROR", "WARNING", "CHECK"))
    if total is None or read != (int(total[1]), int(total[2]), int(total[3] or 0)):
        raise EnvironmentFailure(
            f"the output of {SCRIPT} was not understood: {total[0] if total else 'no line with totals'}, read {read}",
            hint=f"run it by hand: perl {SCRIPT} {' '.join(ARGUMENTS)} PATCH",
        )
    excepted = tuple(m for m in messages if any(e.covers(m) for e in exceptions))
    return Report(tuple(m for m in messages if m not in excepted), excepted, int(total[4]))


def command(patch: Path | str) -> list[str]:
    """The command for one patch file, to be run at the top of the tree."""
    return ["perl", SCRIPT, *ARGUMENTS, str(patch)]


def run(tree: Path, patch: Path, home: Path, *, timeout: float = 300.0) -> str:
    """What checkpatch.pl of ``tree`` prints about a patch file.

    ``home`` is an empty directory: a .checkpatch.conf of the user must not change the verdict. Raises
    EnvironmentFailure when perl is missing, the script dies, or the script it asks about licences does; StageTimeout
    past ``timeout`` seconds.
    """
    proc.require_tool("perl", package="perl", why=SCRIPT)
    # The python3 that it asks about licences is ours: the machine's need not have what spdxcheck.py imports.
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
    env = {"HOME": str(home), "LC_ALL": "C.UTF-8", "PATH": path}
    done = proc.run(command(patch), timeout=timeout, cwd=tree, env=env, what=SCRIPT)
    # Of a check that dies it says nothing: the licence would count as valid.
    if "Traceback" in done.errors:
        raise EnvironmentFailure(
            f"{SPDX_SCRIPT} failed on {patch.name}: {done.errors.strip().splitlines()[-1]}",
            detail="\n".join(done.errors.strip().splitlines()[-10:]),
            hint="run `harness doctor`: it needs the Python packages ply and GitPython",
        )
    # 1 is its way to say that there are errors or warnings.
    if done.status not in (0, 1) or "total: " not in done.output:
        raise EnvironmentFailure(
            f"{SCRIPT} failed on {patch.name} with status {done.status}",
            detail="\n".join((done.errors or done.output).strip().splitlines()[-10:]),
            hint="run `harness check --no-checkpatch` to go without it",
        )
    return done.output
