"""What every verb is handed: where things are, what was asked for, whom to tell."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from harness import data
from harness.errors import UsageError
from harness.report import Reporter
from harness.settings import Settings


@dataclass(frozen=True)
class Context:
    """The project, its settings and the reporter. ``dry_run``: print the commands, change nothing."""

    root: Path
    settings: Settings
    report: Reporter
    dry_run: bool = False

    # In the project
    @property
    def patches(self) -> Path:
        """The stored series."""
        return self.root / "patches"

    @property
    def configs(self) -> Path:
        """Pin, identity, fragments, flavours, architectures."""
        return self.root / "configs"

    @property
    def qemu(self) -> Path:
        """Machines as data, the guest init template."""
        return self.root / "qemu"

    @property
    def runs(self) -> Path:
        """Run directories."""
        return self.root / self.settings.path("runs_dir")

    # In the cache
    @property
    def cache(self) -> Path:
        """Everything that can be made again."""
        # Absolute, as programs run in directories of their own.
        return self.settings.path("cache_dir").absolute()

    @property
    def downloads(self) -> Path:
        """Tarballs, whole and hash-checked; partial ones end in ``.part``."""
        return self.cache / "downloads"

    @property
    def kernel_repo(self) -> Path:
        """The bare git repository that holds the pinned base and every applied series."""
        return self.cache / "linux.git"

    @property
    def source_tree(self) -> Path:
        """The one worktree that builds read; its unchanged files keep their mtimes."""
        return self.cache / "src"

    @property
    def builds(self) -> Path:
        """One output directory per architecture, flavour and state of the series."""
        return self.cache / "build"

    # Data files
    def pin(self) -> data.Pin:
        """The pinned kernel (configs/kernel.yaml)."""
        return data.load(self.configs / "kernel.yaml", data.Pin)

    def identity(self) -> data.Identity:
        """Author of the stored patches (configs/identity.yaml)."""
        return data.load(self.configs / "identity.yaml", data.Identity)

    def arch(self, name: str) -> data.Arch:
        """An architecture by name."""
        return data.by_name(self.configs / "arch", name, data.Arch, "architecture")

    def flavour(self, name: str) -> data.Flavour:
        """A kernel flavour by name."""
        return data.by_name(self.configs / "flavours", name, data.Flavour, "flavour")

    def machine(self, name: str) -> data.Machine:
        """A QEMU machine by name."""
        return data.by_name(self.qemu / "machines", name, data.Machine, "machine")

    def guest(self, name: str) -> data.Guest:
        """A special guest by name."""
        return data.by_name(self.qemu / "guests", name, data.Guest, "guest")

    def guests(self) -> list[data.Guest]:
        """All special guests."""
        return [self.guest(name) for name in data.names(self.qemu / "guests")]

    def upstream(self) -> data.Upstream:
        """The pinned kernel's own selftests (configs/upstream-selftests.yaml)."""
        return data.load(self.configs / "upstream-selftests.yaml", data.Upstream)

    @property
    def jobs(self) -> int:
        """Parallel jobs of a build."""
        return self.settings.number("jobs")

    @property
    def host_machine(self) -> str:
        """``uname -m``, which decides what is a cross build."""
        return platform.machine()


def find_project(start: Path | None = None) -> Path:
    """The project that holds ``start`` (default: the working directory, else the one this package was installed from).

    HARNESS_PROJECT overrides. Raises UsageError when there is none.
    """
    override = os.environ.get("HARNESS_PROJECT")
    candidates = (
        [Path(override)] if override else [*_upward(start or Path.cwd()), Path(__file__).resolve().parent.parent]
    )
    for directory in candidates:
        if (directory / "configs" / "kernel.yaml").is_file():
            return directory.resolve()
    raise UsageError(
        "no project here: configs/kernel.yaml was not found", hint="cd into a clone, or set HARNESS_PROJECT"
    )


def _upward(start: Path) -> list[Path]:
    here = start.resolve()
    return [here, *here.parents]
