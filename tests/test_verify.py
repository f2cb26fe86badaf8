"""Requested against resolved: compared as text."""

from __future__ import annotations

import pytest

from harness.errors import ConfigMismatch, ExitCode
from harness.kconfig import fragments, verify

CONFIG = """\
#
# Automatically generated file; DO NOT EDIT.
#
CONFIG_A=y
# CONFIG_B is not set
CONFIG_N=16
CONFIG_H=0x10
CONFIG_S="x=y"
"""


def unmet(requests: str) -> list[tuple[str, str, str, str]]:
    found = verify.verify(fragments.parse(requests, "f"), verify.resolved(CONFIG))
    return [(u.symbol, u.wanted, u.got, u.origin) for u in found]


def test_met() -> None:
    assert (
        unmet('CONFIG_A=y\nCONFIG_B=n\nCONFIG_N=16\nCONFIG_H=16\nCONFIG_S="x=y"\n# CONFIG_NOWHERE is not set\n') == []
    )


@pytest.mark.parametrize(
    ("request_", "got"),
    [
        ("CONFIG_A=n", "y"),
        ("# CONFIG_A is not set", "y"),
        ("CONFIG_A=m", "y"),
        ("CONFIG_B=y", "n"),
        ("CONFIG_NOWHERE=y", "n"),
        ("CONFIG_N=17", "16"),
        ("CONFIG_H=0x11", "0x10"),
        ('CONFIG_S="x"', '"x=y"'),
        ('CONFIG_NOWHERE=""', "n"),
    ],
)
def test_unmet(request_: str, got: str) -> None:
    found = unmet(f"\n{request_}\n")
    assert len(found) == 1
    assert found[0][2:] == (got, "f:2")


def test_requests_for_n_that_the_config_does_not_mention() -> None:
    requests = fragments.parse("# CONFIG_B is not set\n# CONFIG_NOWHERE is not set\nCONFIG_A=n\nCONFIG_X=y\n", "f")
    assert [r.symbol for r in verify.unmentioned(requests, CONFIG)] == ["NOWHERE"]


def test_error_is_one_line_and_names_reason_and_origin() -> None:
    found = verify.verify(fragments.parse("CONFIG_B=y\nCONFIG_N=1\n", "f"), verify.resolved(CONFIG))
    found = verify.explained(found, lambda name, wanted, got: f"needs {name}{wanted}{got}")
    error = verify.mismatch(found, "x86_64 test")
    assert isinstance(error, ConfigMismatch)
    assert error.exit_code == ExitCode.CONFIG
    assert error.message == "x86_64 test: CONFIG_B=y did not take effect: needs Byn (and 1 more)"
    assert error.detail.splitlines() == [
        "f:1: CONFIG_B=y became n: needs Byn",
        "f:2: CONFIG_N=1 became 16: needs N116",
    ]
    assert "f:1" in error.hint
