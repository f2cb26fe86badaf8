"""Two runs of the same tests: what passed before and does not now. Pure, but for :func:`read`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import UsageError
from harness.guest.ktap import Status, distinct
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
    children = test.get("subtests", [])
    for name, child in zip(distinct(child["name"] for child in children), children, strict=True):
        yield from _walk(where, {**child, "name": name})


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


def common(before: Outcomes, after: Outcomes) -> set[tuple[str, ...]]:
    """The programs, each with its boot, that both runs had."""
    return {where[:2] for where in before} & {where[:2] for where in after}


def additions(before: Outcomes, after: Outcomes) -> list[Change]:
    """Programs that the first run did not have and that have failed now: nothing excuses them."""
    programs = {where[:2] for where in before}
    return [
        Change(where, outcome.status, outcome.reason)
        for where, outcome in after.items()
        if len(where) == 2 and where not in programs and outcome.status.bad
    ]


def render(before: Outcomes, after: Outcomes, lost: list[Change], added: list[Change]) -> str:
    """The regressions and what failed beside them as tables, and one line that counts."""
    shared = [where for where in before if where in after]
    both = sum(before[where].good and after[where].good for where in shared)
    neither = sum(not before[where].good and not after[where].good for where in shared)
    gained = sum(not before[where].good and after[where].good for where in shared)
    line = f"compared: {both} passed in both, {neither} in neither, {gained} only now, {len(lost)} only before"
    tables = [
        table(
            [(c.where[0], " / ".join(c.where[1:]), str(c.now or "gone"), c.reason[:100]) for c in changes],
            header=("arch", what, "now", "why"),
        )
        for what, changes in (("passed before", lost), ("not there before", added))
        if changes
    ]
    return "\n".join([*tables, line])
