"""Every patch built on its predecessor, for each architecture, with the option on and off.

What is built once is remembered by what it depends on: the two trees, architecture, requested configuration and
compiler. A second run builds nothing; a changed patch is built, and so are those after it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from harness import fs
from harness.build import make as kbuild
from harness.build.log import shortened
from harness.context import Context
from harness.data import Arch, Flavour
from harness.errors import BuildError, UsageError
from harness.export.hygiene import hunk_lines
from harness.export.worktree import CheckTree
from harness.kconfig import assemble
from harness.source.mail import Patch
from harness.source.repo import KernelRepo

# Flavours by the state of the option.
OPTIONS = {"on": "check-on", "off": "check-off"}

# Changing what lies below these changes no kernel.
NOT_BUILT = ("Documentation", "MAINTAINERS", "CREDITS", ".mailmap", "tools/testing")

_CONFIG = re.compile(r"\+\s*(?:menu)?config\s+(\w+)\s*$")
_WARNING = re.compile(r"(?P<file>[^\s:]+):(?P<line>\d+):(?:\d+:)? warning: (?P<text>.*)")
_DOC_WARNING = re.compile(r"[Ww]arning: (?P<file>[^\s:]+):(?P<line>\d+):? (?P<text>.*)")
_CACHE_FORMAT = 1
_CACHE_ENTRIES = 4000


@dataclass(frozen=True)
class Step:
    """A patch as a commit with its ``tree``; ``content`` and ``parent_content`` are what of it can reach the kernel."""

    number: int
    patch: Patch
    commit: str
    tree: str
    parent: str
    content: str
    parent_content: str


@dataclass(frozen=True)
class Outcome:
    """What became of one build.

    ``state`` is ok, failed, same (the patch changes nothing that is compiled) or n/a (the option does not exist yet).
    """

    state: str
    cached: bool = False
    seconds: float = 0.0
    files: int = 0
    error: str = ""
    detail: str = ""

    @property
    def cell(self) -> str:
        """The outcome as a table shows it."""
        return f"{self.state}*" if self.cached else self.state


@dataclass(frozen=True)
class Warning_:  # noqa: N801 - the builtin has the better name
    """A compiler's or kernel-doc's warning; ``file`` is relative to the tree."""

    file: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.text}"


class Memory:
    """Results that need not be found twice, in one JSON file. A broken file is an empty one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._entries: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            stored = json.loads(path.read_text(encoding="utf-8"))
            if stored["format"] == _CACHE_FORMAT:
                self._entries = dict(stored["entries"])

    def get(self, key: str) -> Any:
        """What is known under ``key``, or None."""
        return self._entries.get(key)

    def put(self, key: str, value: Any) -> None:
        """Remember ``value``, at once and atomically; the oldest entries make room."""
        self._entries.pop(key, None)
        self._entries[key] = value
        while len(self._entries) > _CACHE_ENTRIES:
            del self._entries[next(iter(self._entries))]
        text = json.dumps({"format": _CACHE_FORMAT, "entries": self._entries}, indent=1)
        fs.atomic_write(self.path, text + "\n")


def key(*parts: str) -> str:
    """A key made of everything a result depends on."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def content(repo: KernelRepo, commit: str) -> str:
    """A hash of the part of a commit's tree that can reach a kernel image."""
    lines = repo.git("ls-tree", "--full-tree", commit).splitlines()
    lines += repo.git("ls-tree", "--full-tree", commit, "tools/").splitlines()
    kept = [line for line in lines if line.partition("\t")[2] not in (*NOT_BUILT, "tools")]
    return hashlib.sha256("\n".join(kept).encode()).hexdigest()


def steps(repo: KernelRepo, base: str, patches: Sequence[Patch], commits: Sequence[str]) -> list[Step]:
    """The patches with their commits, in order."""
    found, parent, before = [], base, content(repo, base)
    trees = repo.git("rev-parse", *(f"{commit}^{{tree}}" for commit in commits)).split()
    for number, (patch, commit, tree) in enumerate(zip(patches, commits, trees, strict=True), 1):
        after = content(repo, commit)
        found.append(Step(number, patch, commit, tree, parent, after, before))
        parent, before = commit, after
    return found


def introduced(patch: Patch) -> set[str]:
    """The Kconfig symbols that a patch defines."""
    if not any(PurePosixPath(diff.new_path or "").name.startswith("Kconfig") for diff in patch.diffs):
        return set()
    return {found[1] for line in hunk_lines(patch) if (found := _CONFIG.match(line))}


def flavour_at(context: Context, arch: Arch, flavour: Flavour, patches: Sequence[Patch], number: int) -> Flavour:
    """``flavour`` for the tree after patch ``number``: with the series fragments whose symbols exist by then.

    Raises UsageError for a fragment of which only some symbols exist: leaving it out would leave code unchecked.
    """
    later = set().union(*(introduced(patch) for patch in patches[number:]))
    later -= set().union(*(introduced(patch) for patch in patches[:number]))
    kept = []
    for name in flavour.series_fragments:
        only = dataclasses.replace(flavour, fragments=(name,), series_fragments=(), arch_fragments=False)
        symbols = set(assemble.requested(context, arch, only, patched=False).requests)
        missing = symbols & later
        if missing and missing != symbols:
            raise UsageError(
                f"configs/fragments/{name}.config: patch {number} knows {', '.join(sorted(symbols - missing))}, "
                f"but not yet {', '.join(sorted(missing))}",
                hint="symbols that different patches introduce go into fragments of their own",
            )
        if not missing:
            kept.append(name)
    return dataclasses.replace(flavour, series_fragments=tuple(kept))


def warnings(log: str, roots: Sequence[str], files: Iterable[str]) -> list[Warning_]:
    """The warnings of a make log about ``files``; ``roots`` are the prefixes of the tree's paths in it."""
    wanted, found = set(files), []
    for line in shortened(log, roots).splitlines():
        match = _WARNING.match(line) or _DOC_WARNING.match(line)
        if match and match["file"].removeprefix("./") in wanted:
            found.append(Warning_(match["file"].removeprefix("./"), int(match["line"]), match["text"]))
    return list(dict.fromkeys(found))


def added(after: Iterable[Warning_], before: Iterable[Warning_]) -> list[Warning_]:
    """The warnings of ``after`` that ``before`` does not have; lines move, so only file and text are compared."""
    known = Counter((w.file, w.text) for w in before)
    fresh = []
    for warning in after:
        if known[warning.file, warning.text] > 0:
            known[warning.file, warning.text] -= 1
        else:
            fresh.append(warning)
    return fresh


def touched(patch: Patch) -> list[str]:
    """The files that exist after the patch and that it touches."""
    return sorted({diff.new_path for diff in patch.diffs if diff.new_path is not None})


def objects(out: Path, sources: Iterable[str]) -> list[str]:
    """The objects, relative to ``out``, that were compiled from ``sources``, directly or by #include of a .c file."""
    found: set[str] = set()
    for source in sources:
        path = PurePosixPath(source)
        if path.suffix not in (".c", ".S"):
            continue
        target = path.with_suffix(".o")
        if (out / target).is_file():
            found.add(str(target))
            continue
        for command in sorted((out / path.parent).glob(".*.o.cmd")):
            if f"/{source} " in command.read_text(encoding="utf-8", errors="replace"):
                found.add(str(path.parent / command.name[1:].removesuffix(".cmd")))
    return sorted(found)


@dataclass(frozen=True)
class Builder:
    """Builds steps in one worktree; everything it is given stays the same for all of them."""

    context: Context
    tree: CheckTree
    memory: Memory
    patches: tuple[Patch, ...]
    _tools: dict[str, kbuild.Toolchain] = field(default_factory=dict, init=False)

    def build(self, step: Step, arch: Arch, option: str) -> Outcome:
        """Build one step for one architecture with the option on or off.

        Raises ConfigMismatch, EnvironmentFailure and StageTimeout, which say nothing about the patch; that it does not
        build is an outcome.
        """
        flavour = flavour_at(self.context, arch, self.context.flavour(OPTIONS[option]), self.patches, step.number)
        if option == "on" and not flavour.series_fragments:
            return Outcome("n/a")
        if step.content == step.parent_content:
            return Outcome("same")
        tools = self._tools.get(arch.name) or kbuild.toolchain(self.context, arch)
        self._tools[arch.name] = tools
        asked = assemble.fingerprint(self.context, arch, flavour, patched=True)
        name = key("build", step.parent_content, step.content, arch.name, option, asked, tools.version)
        if known := self.memory.get(name):
            return Outcome("ok", cached=True, seconds=known["seconds"], files=known["files"])
        what = f"{step.patch.name}: {arch.name}, option {option}"
        out = self.context.builds / f"check-{arch.name}-{option}"
        try:
            outcome = self._make(step, arch, flavour, tools, out, what)
        except BuildError as exc:
            return Outcome("failed", error=exc.message, detail="\n".join(filter(None, (exc.detail, exc.hint))))
        if outcome.state == "ok":
            self.memory.put(name, {"what": what, "seconds": round(outcome.seconds, 1), "files": outcome.files})
        return outcome

    def _make(self, step: Step, arch: Arch, flavour: Flavour, tools: kbuild.Toolchain, out: Path, what: str) -> Outcome:
        self.context.report.step(f"building {what}")
        tree = self.tree.at(step.commit)
        log = out / "check.log"
        assemble.configure(self.context, tree, arch, flavour, out, True, tools=tools, log=out / "config.log")
        env = kbuild.without_lines()
        made = kbuild.make(self.context, arch, tree, out, ["vmlinux"], log, what=what, tools=tools, env=env)
        fresh, seconds = self._warnings(step, arch, tools, out, what)
        if fresh:
            more = f" (and {len(fresh) - 1} more)" if len(fresh) > 1 else ""
            return Outcome(
                "failed",
                error=f"{what}: {fresh[0]} [make W=1]{more}",
                detail="\n".join(map(str, fresh[:20])),
            )
        return Outcome("ok", seconds=made.seconds + seconds, files=made.files)

    def _warnings(
        self, step: Step, arch: Arch, tools: kbuild.Toolchain, out: Path, what: str
    ) -> tuple[list[Warning_], float]:
        """The warnings of W=1 in the files of the patch that its predecessor does not have, and the seconds it took.

        Only when there are any, the predecessor's are looked up: the files of the scheduler have nearly none.
        """
        files = touched(step.patch)
        targets = objects(out, files)
        if not targets:
            return [], 0.0
        after, seconds = self._pedantic(step.commit, arch, tools, out, targets, files, what)
        if not after:
            return [], seconds
        config = (out / ".config").read_text(encoding="utf-8")
        name = key("W=1", step.parent_content, arch.name, config, tools.version, *targets, *files)
        known = self.memory.get(name)
        if known is None:
            there = [target for target in targets if self._has_source(step.parent, target)]
            before: list[Warning_] = []
            if there:
                before, more = self._pedantic(step.parent, arch, tools, out, there, files, f"{what}: its predecessor")
                seconds += more
            self.memory.put(name, [dataclasses.astuple(w) for w in before])
        else:
            before = [Warning_(*fields) for fields in known]
        return added(after, before), seconds

    def _has_source(self, commit: str, target: str) -> bool:
        stem = target.removesuffix(".o")
        return bool(self.tree.repo.git("ls-tree", "--name-only", commit, f"{stem}.c", f"{stem}.S"))

    def _pedantic(
        self,
        commit: str,
        arch: Arch,
        tools: kbuild.Toolchain,
        out: Path,
        targets: Sequence[str],
        files: Sequence[str],
        what: str,
    ) -> tuple[list[Warning_], float]:
        """The warnings of ``make W=1`` for objects at a commit; the objects are removed, so none is left out."""
        tree = self.tree.at(commit)
        log = out / "warnings.log"
        for target in targets:
            (out / target).unlink(missing_ok=True)
        variables: Mapping[str, str] = {"W": "1", "CONFIG_WERROR": ""}
        try:
            made = kbuild.make(self.context, arch, tree, out, targets, log, what=what, tools=tools, variables=variables)
        finally:
            for target in targets:
                (out / target).unlink(missing_ok=True)
        roots = [str(tree.resolve()), str(out.resolve()), os.path.relpath(tree.resolve(), out.resolve())]
        return warnings(log.read_text(encoding="utf-8", errors="replace"), roots, files), made.seconds
