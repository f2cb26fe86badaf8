"""The stored series on the real kernel: it exports, its mails apply, its patches are clean. Builds: `harness check`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PATCHES = len((ROOT / "patches/series").read_text().split()) if (ROOT / "patches/series").is_file() else 0

pytestmark = pytest.mark.kernel


def _harness(*argv: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "harness", *argv], cwd=ROOT, capture_output=True, text=True, timeout=1800, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_export_twice_is_the_same_and_applies(tmp_path: Path) -> None:
    for name in ("one", "two"):
        said = _harness("series", "export", "--from", "Kernel Tester <tester@kernel.test>", "-o", str(tmp_path / name))
        assert f"{PATCHES} patches apply with git am to v" in said
        assert "To: Peter Zijlstra" in said, "a scheduler series goes to the scheduler's maintainers"
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two
    assert len(one) == PATCHES + 3, "cover letter, mailbox and manifest beside the patches"


def test_checkpatch_strict_has_nothing_to_say() -> None:
    said = _harness("check", "--no-build")
    assert re.search(rf"{PATCHES} patches; checkpatch --strict 0 errors, 0 warnings, 0 checks", said)
