"""Settings with a known origin: flags > HARNESS_* > project file > user file > built-in."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.data import load_yaml
from harness.errors import UsageError

PROJECT_FILE = Path("configs/harness.yaml")

# name -> (type, built-in value, meaning). Times are seconds.
DEFAULTS: dict[str, tuple[type, Any, str]] = {
    "cache_dir": (str, "", "sources, trees, builds and the compiler cache; default XDG_CACHE_HOME/agent-latency"),
    "runs_dir": (str, "runs", "where runs leave their results, relative to the project"),
    "jobs": (int, 0, "parallel jobs of a build; 0 is one per CPU"),
    "arch": (str, "x86_64,arm64", "architectures, when none is given"),
    "flavour": (str, "test", "kernel flavour, when none is given"),
    "accel": (str, "auto", "auto, kvm or tcg"),
    "kernel_source": (str, "", "a tarball or git tree to use in place of a download"),
    "ccache_size": (str, "15G", "upper size of the compiler cache"),
    "fetch_timeout": (float, 1800.0, "deadline of the download"),
    "apply_timeout": (float, 600.0, "deadline of importing the source and of applying the series, each"),
    "build_timeout": (float, 3600.0, "deadline of one kernel build"),
    "boot_timeout": (float, 120.0, "deadline from power-on to the guest's first marker"),
    "test_timeout": (float, 600.0, "deadline of all tests of one boot"),
    "silence_timeout": (float, 120.0, "a guest that prints nothing for this long is lost"),
}


@dataclass(frozen=True)
class Settings:
    """Resolved settings; ``origin`` says where each came from."""

    values: Mapping[str, Any]
    origin: Mapping[str, str] = field(default_factory=dict)

    def text(self, name: str) -> str:
        """A setting that is a string."""
        return str(self.values[name])

    def seconds(self, name: str) -> float:
        """A deadline in seconds."""
        return float(self.values[name])

    def number(self, name: str) -> int:
        """A setting that is a whole number."""
        return int(self.values[name])


def _typed(name: str, value: Any, where: str) -> Any:
    kind = DEFAULTS[name][0]
    try:
        converted = kind(value)
    except (TypeError, ValueError):
        raise UsageError(f"{where}: {name} must be a {kind.__name__}, not {value!r}") from None
    if kind in (int, float) and (converted < 0 or converted != converted):
        raise UsageError(f"{where}: {name} must not be negative")
    return converted


def resolve(project: Path, flags: Mapping[str, Any], env: Mapping[str, str] | None = None) -> Settings:
    """Settings from all origins. ``flags`` holds what was given on the command line (None: not given).

    Raises UsageError for an unknown name or a value of the wrong kind.
    """
    env = os.environ if env is None else env
    user_file = (
        Path(env.get("XDG_CONFIG_HOME") or Path(env.get("HOME", "/")) / ".config") / "agent-latency/harness.yaml"
    )
    values: dict[str, Any] = {name: default for name, (_, default, _) in DEFAULTS.items()}
    origin = dict.fromkeys(values, "built-in")
    for path in (user_file, project / PROJECT_FILE):
        if not path.is_file():
            continue
        for name, value in load_yaml(path).items():
            if name not in DEFAULTS:
                raise UsageError(f"{path}: unknown setting {name!r}", hint=f"known: {', '.join(DEFAULTS)}")
            values[name], origin[name] = _typed(name, value, str(path)), str(path)
    for name in DEFAULTS:
        variable = f"HARNESS_{name.upper()}"
        if variable in env:
            values[name], origin[name] = _typed(name, env[variable], variable), variable
    for name, value in flags.items():
        if name in DEFAULTS and value is not None:
            values[name], origin[name] = _typed(name, value, f"--{name.replace('_', '-')}"), "command line"
    if not values["cache_dir"]:
        base = Path(env.get("XDG_CACHE_HOME") or Path(env.get("HOME", "/")) / ".cache")
        values["cache_dir"] = str(base / "agent-latency")
    if not values["jobs"]:
        values["jobs"] = len(os.sched_getaffinity(0))
    return Settings(values, origin)
