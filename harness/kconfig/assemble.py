"""A verified .config: fragments of flavour and architecture on top of allnoconfig."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

import kconfiglib

from harness import fs
from harness.build import make as kbuild
from harness.context import Context
from harness.data import Arch, Flavour
from harness.errors import BuildError
from harness.kconfig import fragments, verify
from harness.kconfig.fragments import Merged, Request
from harness.kconfig.tree import Explainer
from harness.kconfig.verify import Unmet

_DEFINES = re.compile(rb"^\s*(?:menu)?config\s+(\w+)", re.MULTILINE)
NEW = ".config.harness"
FRAGMENT = ".config.fragment"


def fragment_names(arch: Arch, flavour: Flavour, patched: bool) -> tuple[str, ...]:
    """The fragments of a configuration, later ones going before earlier ones."""
    names = (
        *flavour.fragments[:1],
        *(arch.fragments if flavour.arch_fragments else ()),
        *flavour.fragments[1:],
        *(flavour.series_fragments if patched else ()),
    )
    return tuple(dict.fromkeys(names))


def requested(context: Context, arch: Arch, flavour: Flavour, patched: bool) -> Merged:
    """The merged fragments of a configuration. Raises UsageError for a missing or malformed one."""
    directory = context.configs / "fragments"
    return fragments.merge(
        fragments.read(directory / f"{name}.config", f"configs/fragments/{name}.config")
        for name in fragment_names(arch, flavour, patched)
    )


def fingerprint(context: Context, arch: Arch, flavour: Flavour, patched: bool) -> str:
    """A hash of what a configuration is made from, the tree and the compiler aside."""
    return hashlib.sha256(requested(context, arch, flavour, patched).render().encode()).hexdigest()


def configure(
    context: Context,
    tree: Path,
    arch: Arch,
    flavour: Flavour,
    out: Path,
    patched: bool,
    *,
    tools: kbuild.Toolchain | None = None,
    log: Path | None = None,
) -> Path:
    """Write ``out``/.config for ``tree`` and return its path.

    The old one stays, with its mtime, when nothing changes or when the new one does not verify. Raises ConfigMismatch
    naming each request that did not take effect and what it lacks, BuildError when Kconfig itself fails.
    """
    merged = requested(context, arch, flavour, patched)
    tools = tools or kbuild.toolchain(context, arch)
    what = f"{arch.name} {flavour.name}"
    for earlier, later in merged.overridden:
        same_file = earlier.origin.rpartition(":")[0] == later.origin.rpartition(":")[0]
        tell = context.report.warn if same_file else context.report.debug
        tell(f"{later.origin}: CONFIG_{later.symbol}={later.shown} replaces {earlier.shown} of {earlier.origin}")
    fragment = out / FRAGMENT
    fresh = out / NEW
    if context.dry_run:
        argv, env = _allnoconfig(context, arch, tree, out, tools)
        context.report.result(kbuild.pasteable(argv, env))
        return out / ".config"
    fs.write_if_changed(fragment, merged.render())
    argv, env = _allnoconfig(context, arch, tree, out, tools)
    try:
        kbuild.make(
            context,
            arch,
            tree,
            out,
            (),
            log or out / "config.log",
            what=f"{what}: configuration",
            tools=tools,
            env=env,
            argv=argv,
            timeout=min(300.0, context.settings.seconds("build_timeout")),
        )
        if not fresh.is_file():
            raise BuildError(f"{what}: Kconfig wrote no configuration", hint=f"see {log or out / 'config.log'}")
        text = fresh.read_text(encoding="utf-8")
        unmet = check(context, tree, arch, out, tools, merged.requests.values(), text, fresh)
        if unmet:
            raise verify.mismatch(unmet, what)
        config = out / ".config"
        fs.write_if_changed(config, text)
    finally:
        for name in (NEW, f"{NEW}.old"):
            (out / name).unlink(missing_ok=True)
    return config


def _allnoconfig(
    context: Context, arch: Arch, tree: Path, out: Path, tools: kbuild.Toolchain
) -> tuple[list[str], dict[str, str]]:
    argv = kbuild.command(context, arch, tree, out, ["allnoconfig"], tools=tools)
    env = {
        **kbuild.environment(context, tree, out),
        "KCONFIG_ALLCONFIG": str((out / FRAGMENT).resolve()),
        "KCONFIG_CONFIG": NEW,
    }
    return argv, env


def check(
    context: Context,
    tree: Path,
    arch: Arch,
    out: Path,
    tools: kbuild.Toolchain,
    requests: Iterable[Request],
    text: str,
    config: Path,
) -> list[Unmet]:
    """The requests that the .config ``text`` (also in the file ``config``) does not meet, each with its reason."""
    wanted = list(requests)
    unmet = verify.verify(wanted, verify.resolved(text))
    off = verify.unmentioned(wanted, text)
    if off:
        known = defined(tree)
        unmet += [Unmet(r.symbol, "n", "unknown", r.origin) for r in off if r.symbol not in known]
    if not unmet:
        return []
    context.report.debug("reading the Kconfig files to explain what did not take effect")
    try:
        env = {**os.environ, **kbuild.kbuild_environment(context, arch, tree, out, tools)}
        return verify.explained(unmet, Explainer(tree.resolve(), env, config))
    except (kconfiglib.KconfigError, OSError) as exc:
        # The verdict stands without its reason.
        context.report.warn(f"the Kconfig files could not be read for an explanation: {str(exc).splitlines()[0]}")
        return unmet


def defined(tree: Path) -> set[str]:
    """Every symbol that some Kconfig file of ``tree`` defines, whatever the architecture."""
    symbols: set[str] = set()
    for directory, below, files in os.walk(tree):
        if Path(directory) == tree:
            below[:] = [name for name in below if name not in ("Documentation", "tools", "scripts", ".git")]
        for name in files:
            if name.startswith("Kconfig"):
                with contextlib.suppress(OSError):
                    found = _DEFINES.findall(Path(directory, name).read_bytes())
                    symbols.update(symbol.decode() for symbol in found)
    return symbols
