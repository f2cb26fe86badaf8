"""Settings with a known origin: flags > HARNESS_* > project file > user file > built-in."""

from __future__ import annotations

import math
import os
import re
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

CHOICES = {"accel": ("auto", "kvm", "tcg")}
# Eleven days: longer than any run, and as milliseconds still what the guest's init can count.
MOST_SECONDS = 1e6


@dataclass(frozen=True)
class Settings:
    """Resolved settings; ``origin`` says where each came from."""

    values: Mapping[str, Any]
    origin: Mapping[str, str] = field(default_factory=dict)

    def text(self, name: str) -> str:
        """A setting that is a string."""
        return str(self.values[name])

    def path(self, name: str) -> Path:
        """A setting that is a path, with ``~`` replaced. Raises UsageError, naming the setting, for nobody's home."""
        try:
            return Path(self.text(name)).expanduser()
        except RuntimeError:
            where = self.origin.get(name, "built-in")
            called = _flag(name) if where == "command line" else name
            raise UsageError(
                f"{called} ({where}): there is no home directory for {self.text(name)!r}", hint="give an absolute path"
            ) from None

    def seconds(self, name: str) -> float:
        """A deadline in seconds."""
        return float(self.values[name])

    def number(self, name: str) -> int:
        """A setting that is a whole number."""
        return int(self.values[name])


def seconds(value: object, where: str) -> float:
    """A deadline in seconds. Raises UsageError, naming ``where``, unless it is a number that a clock can wait for."""
    try:
        number = float(value) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else math.nan
    except ValueError:
        number = math.nan
    if not 0 <= number <= MOST_SECONDS:
        raise UsageError(f"{where} must be seconds from 0 to {MOST_SECONDS:.0f}, not {value!r}")
    return number


def _whole(value: object, where: str) -> int:
    text = str(value).strip() if isinstance(value, (str, int)) and not isinstance(value, bool) else ""
    if not re.fullmatch("[0-9]{1,6}", text):
        raise UsageError(f"{where} must be a whole number that is not negative, not {value!r}")
    return int(text)


def _typed(name: str, value: object, where: str) -> Any:
    kind = DEFAULTS[name][0]
    if kind is float:
        return seconds(value, where)
    if kind is int:
        return _whole(value, where)
    if not isinstance(value, (str, int, float)) or isinstance(value, bool):
        raise UsageError(f"{where} must be text, not {value!r}")
    if name in CHOICES and value not in CHOICES[name]:
        raise UsageError(f"{where} must be one of {', '.join(CHOICES[name])}, not {value!r}")
    return str(value)


def _flag(name: str) -> str:
    """What a setting is called on the command line: a verb has one deadline."""
    return "--timeout" if name.endswith("_timeout") else f"--{name.replace('_', '-')}"


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
        for name, value in load_yaml(path, may_be_empty=True).items():
            if name not in DEFAULTS:
                raise UsageError(f"{path}: unknown setting {name!r}", hint=f"known: {', '.join(DEFAULTS)}")
            values[name], origin[name] = _typed(name, value, f"{path}: {name}"), str(path)
    for name in DEFAULTS:
        variable = f"HARNESS_{name.upper()}"
        if variable in env:
            values[name], origin[name] = _typed(name, env[variable], variable), variable
    for name, value in flags.items():
        if name in DEFAULTS and value is not None:
            given = ",".join(value) if isinstance(value, list) else value  # a flag that can be repeated
            values[name], origin[name] = _typed(name, given, _flag(name)), "command line"
    if not values["cache_dir"]:
        base = Path(env.get("XDG_CACHE_HOME") or Path(env.get("HOME", "/")) / ".cache")
        values["cache_dir"] = str(base / "agent-latency")
    if not values["jobs"]:
        values["jobs"] = len(os.sched_getaffinity(0))
    return Settings(values, origin)
