"""Two runs of the same tests: what passed before and does not now. Pure, but for :func:`read`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import UsageError
from harness.guest.ktap import Status
from harness.report import table

GOOD = (Status.PASSED, Status.XFAIL)


@dataclass(frozen=True)
class Outcome:
    """What became of a test: ``where`` is boot, program, and the subtests down to it."""

    where: tuple[str, ...]
    status: Status
    reason: str = ""

    @property
    def good(self) -> bool:
        """Whether it proves something."""
        return self.status in GOOD


@dataclass(frozen=True)
class Change:
    """A test that passed before: what it is now, if it is there at all."""

    where: tuple[str, ...]
    now: Status | None
    reason: str = ""

    def as_json(self) -> dict[str, Any]:
        """For results.json."""
        return {"test": list(self.where), "now": str(self.now) if self.now else None, "reason": self.reason}


Outcomes = Mapping[tuple[str, ...], Outcome]


def read(path: Path) -> Outcomes:
    """The outcomes in a results.json, or in that of a run directory. Raises UsageError when it is none."""
    file = path / "results.json" if path.is_dir() else path
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
        return outcomes(value)
    except OSError as exc:
        raise UsageError(f"cannot read {file}: {exc.strerror}", hint="runs/RUN/results.json, or --json FILE") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UsageError(f"{file} holds no results", hint="runs/RUN/results.json, or --json FILE") from None


def outcomes(value: Mapping[str, Any]) -> dict[tuple[str, ...], Outcome]:
    """Every test of results as JSON: programs, their subtests, and the boots themselves."""
    found: dict[tuple[str, ...], Outcome] = {}
    for arch in value["architectures"]:
        for test in [*arch.get("tests", []), *arch.get("kunit", [])]:
            for outcome in _walk((arch["arch"],), test):
                found[outcome.where] = outcome
    return found


def _walk(above: tuple[str, ...], test: Mapping[str, Any]) -> Iterator[Outcome]:
    where = (*above, test["name"])
    yield Outcome(where, Status(test["status"]), test.get("reason", ""))
    names: dict[str, int] = {}
    for child in test.get("subtests", []):
        names[child["name"]] = names.get(child["name"], 0) + 1
        again = names[child["name"]]
        yield from _walk(where, child if again == 1 else {**child, "name": f"{child['name']} ({again})"})


def regressions(before: Outcomes, after: Outcomes) -> list[Change]:
    """What passed before and has not passed now, skipped and gone included, in the order of before.

    Programs that the second run did not have are left out: it may have been limited to some. A program is named beside
    its subtests only when none of them says why it does not pass.
    """
    programs = {where[:2] for where in after}
    lost = []
    for where, outcome in before.items():
        if not outcome.good or where[:2] not in programs:
            continue
        now = after.get(where)
        if now is None or not now.good:
            lost.append(Change(where, now.status if now else None, now.reason if now else "not in this run"))
    explained = {change.where[:n] for change in lost for n in range(1, len(change.where))}
    return [change for change in lost if change.where not in explained]


def render(before: Outcomes, after: Outcomes, lost: list[Change]) -> str:
    """The regressions as a table, and one line that counts."""
    common = [where for where in before if where in after]
    both = sum(before[where].good and after[where].good for where in common)
    neither = sum(not before[where].good and not after[where].good for where in common)
    gained = sum(not before[where].good and after[where].good for where in common)
    line = f"compared: {both} passed in both, {neither} in neither, {gained} only now, {len(lost)} only before"
    if not lost:
        return line
    rows = [
        (change.where[0], " / ".join(change.where[1:]), str(change.now or "gone"), change.reason[:100])
        for change in lost
    ]
    return f"{table(rows, header=('arch', 'passed before', 'now', 'why'))}\n{line}"
