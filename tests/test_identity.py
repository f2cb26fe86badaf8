"""The sender: where it comes from, and that the placeholder is not taken for somebody."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from harness.data import Identity
from harness.errors import UsageError
from harness.export import identity

PROJECT = Identity("Agent Latency Project", "agent-latency@example.org")


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty git configuration of a user."""
    config = tmp_path / "gitconfig"
    config.write_text("", encoding="utf-8")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    return config


def _set(config: Path, key: str, value: str) -> None:
    subprocess.run(["git", "config", "--file", str(config), key, value], check=True)


def test_from_goes_before_git(user: Path, tmp_path: Path) -> None:
    _set(user, "user.name", "Git User")
    _set(user, "user.email", "git@kernel.test")
    sender = identity.find_sender("Zoë, The Sender <zoe@kernel.test>".replace(",", ""), tmp_path, PROJECT)
    assert sender.identity == Identity("Zoë The Sender", "zoe@kernel.test")
    assert sender.origin == "--from"
    assert sender.warning() == ""


def test_git_goes_before_the_placeholder(user: Path, tmp_path: Path) -> None:
    _set(user, "user.name", "Slice, Amos P.")
    _set(user, "user.email", "amos@kernel.test")
    sender = identity.find_sender(None, tmp_path, PROJECT)
    assert sender.identity == Identity("Slice, Amos P.", "amos@kernel.test")
    assert sender.origin == "git config"


@pytest.mark.parametrize("key", ["user.name", "user.email"])
def test_half_an_identity_is_none(user: Path, tmp_path: Path, key: str) -> None:
    _set(user, key, "me@kernel.test")
    sender = identity.find_sender(None, tmp_path, PROJECT)
    assert sender.identity == PROJECT
    assert "placeholder" in sender.warning()
    assert "--from" in sender.warning()


@pytest.mark.parametrize(
    "text",
    ["", "Me", "me@kernel.test", "<me@kernel.test>", "Me <>", "Me <me>", "Me <me@>", "Me <a b@kernel.test>",
     "Me <me@kernel.test>\nBcc: all@kernel.test", "Me <@kernel.test>"],
)  # fmt: skip
def test_what_is_no_sender(text: str) -> None:
    with pytest.raises(UsageError, match="is no sender"):
        identity.parse_address(text, "--from")


def test_a_placeholder_given_by_hand_is_one(tmp_path: Path) -> None:
    sender = identity.find_sender("Me <me@example.com>", tmp_path, PROJECT)
    assert "still the placeholder Me <me@example.com>" in sender.warning()
