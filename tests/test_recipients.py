"""To and Cc: what get_maintainer.pl prints, merged into two lists that do not depend on its order."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from harness.data import Identity
from harness.errors import EnvironmentFailure, StageTimeout
from harness.export import recipients
from harness.export.recipients import Recipient, Recipients

OUTPUT = """\
Ingo Planner <ingo@kernel.test> (maintainer:SCHEDULER)
"Ödön Tester" <odon@kernel.test> (maintainer:CONTROL GROUP (CGROUP))
"Slice, Amos P." <amos@kernel.test> (supporter:X86 ARCHITECTURE (32-BIT AND 64-B...)
Ren Reader <ren@kernel.test> (reviewer:SCHEDULER,maintainer:OTHER, WITH COMMA)
linux-kernel@vger.kernel.org (open list:SCHEDULER)
cgroups@vger.kernel.org (moderated list:CONTROL GROUP (CGROUP))
Odd Fixer <odd@kernel.test> (odd fixer:OLD)
Just Somebody <some@kernel.test>
"""


def test_every_kind_of_line_is_read() -> None:
    roles = {r.email: r.role for r in recipients.parse(OUTPUT)}
    assert roles == {
        "ingo@kernel.test": "maintainer",
        "odon@kernel.test": "maintainer",
        "amos@kernel.test": "supporter",
        "ren@kernel.test": "maintainer",
        "linux-kernel@vger.kernel.org": "list",
        "cgroups@vger.kernel.org": "list",
        "odd@kernel.test": "odd fixer",
        "some@kernel.test": "reviewer",
    }
    assert {r.name for r in recipients.parse(OUTPUT)} >= {"Ödön Tester", "Slice, Amos P.", ""}


def test_a_line_without_an_address_is_an_error() -> None:
    with pytest.raises(EnvironmentFailure, match="Bad divisor"):
        recipients.parse("ok@kernel.test (open list)\nBad divisor in main::vcs_assign: 0\n")


def test_the_order_of_the_finds_does_not_matter() -> None:
    found = recipients.parse(OUTPUT)[:5]
    orders = {recipients.merge(order) for order in itertools.permutations(found)}
    assert len(orders) == 1
    merged = orders.pop()
    assert [r.email.partition("@")[0] for r in merged.to] == ["amos", "ingo", "odon", "ren"]
    assert [r.email.partition("@")[0] for r in merged.cc] == ["linux-kernel"]


def test_an_address_counts_once_with_its_strongest_role() -> None:
    merged = recipients.merge(
        [
            Recipient("Zoë", "zoe@kernel.test", "reviewer"),
            Recipient("Zoë", "ZOE@kernel.test", "maintainer"),
            Recipient("", "linux-kernel@vger.kernel.org", "list"),
            Recipient("", "aaa@lists.kernel.test", "list"),
        ]
    )
    assert [r.role for r in merged.to] == ["maintainer"]
    assert [r.email for r in merged.cc] == ["aaa@lists.kernel.test", "linux-kernel@vger.kernel.org"]


def test_sender_and_placeholders_are_left_out() -> None:
    sender = Identity("Me", "me@kernel.test")
    merged = recipients.merge(
        [
            Recipient("Me", "Me@kernel.test", "maintainer"),
            Recipient("Project", "agent-latency@example.org", "maintainer"),
            Recipient("", "list@kernel.test", "list"),
        ],
        without=[sender],
    )
    assert [r.email for r in merged.to] == ["list@kernel.test"], "a mail needs a To"
    assert merged.cc == ()


def test_union_keeps_everybody() -> None:
    one = Recipients(to=(Recipient("A", "a@k.test", "maintainer"),))
    two = Recipients(to=(Recipient("B", "b@k.test", "maintainer"),), cc=(Recipient("A", "a@k.test", "reviewer"),))
    union = recipients.union([one, two])
    assert [r.email for r in union.to] == ["a@k.test", "b@k.test"]
    assert len(union) == 2


def test_people_named_by_trailers() -> None:
    message = (
        "Text that is Cc: not@a.trailer\n\nReported-by: Rita <rita@k.test>\nCc: stable@vger.kernel.org # 6.18\n"
        'Signed-off-by: Me <me@k.test>\nFixes: 123456789012 ("x")\n'
    )
    assert [r.email for r in recipients.named_in(message)] == ["rita@k.test", "stable@vger.kernel.org"]


def _tree(directory: Path, script: str) -> Path:
    (directory / "scripts").mkdir(parents=True)
    (directory / recipients.SCRIPT).write_text(script, encoding="utf-8")
    return directory


def test_a_script_that_fails_is_named_with_its_words(tmp_path: Path) -> None:
    tree = _tree(
        tmp_path / "tree", 'die "The current directory does not appear to be a linux kernel source tree\\n";\n'
    )
    with pytest.raises(EnvironmentFailure, match=r"get_maintainer\.pl failed on x\.patch") as caught:
        recipients.ask(tree, tmp_path / "x.patch", tmp_path)
    assert "does not appear" in caught.value.detail
    assert "--no-cc" in caught.value.hint


def test_a_script_that_hangs_meets_its_deadline(tmp_path: Path) -> None:
    with pytest.raises(StageTimeout, match=r"0\.3 s"):
        recipients.ask(_tree(tmp_path / "tree", "sleep 60;\n"), tmp_path / "x.patch", tmp_path, timeout=0.3)


def test_no_perl_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EnvironmentFailure, match="perl is not installed") as caught:
        recipients.ask(tmp_path, tmp_path / "x.patch", tmp_path)
    assert "apt-get install perl" in caught.value.hint
