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
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from harness import fs, proc
from harness.build import make as kbuild
from harness.build.log import shortened
from harness.context import Context
from harness.data import Arch, Flavour
from harness.errors import BuildError, EnvironmentFailure, UsageError
from harness.export.hygiene import hunk_lines
from harness.export.worktree import CheckTree
from harness.kconfig import assemble
from harness.source.mail import Patch
from harness.source.repo import KernelRepo

# Flavours by the state of the option.
OPTIONS = {"on": "check-on", "off": "check-off"}

# Changing what lies below these changes no kernel; the tools of the series are programs.
NOT_BUILT = ("Documentation", "MAINTAINERS", "CREDITS", ".mailmap", "tools/agent-latency", "tools/testing")

_CONFIG = re.compile(r"\+\s*(?:menu)?config\s+(\w+)\s*$")
_WARNING = re.compile(r"(?P<file>[^\s:]+):(?P<line>\d+):(?:\d+:)? warning: (?P<text>.*)")
_DOC_WARNING = re.compile(r"[Ww]arning: (?P<file>[^\s:]+):(?P<line>\d+):? (?P<text>.*)")
# Builds at a time, each with as many jobs as there are CPUs
_AT_ONCE = 2

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
        self._lock = threading.Lock()
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            stored = json.loads(path.read_text(encoding="utf-8"))
            if stored["format"] == _CACHE_FORMAT:
                self._entries = dict(stored["entries"])

    def get(self, key: str) -> Any:
        """What is known under ``key``, or None."""
        return self._entries.get(key)

    def put(self, key: str, value: Any) -> None:
        """Remember ``value``, at once and atomically; the oldest entries make room."""
        with self._lock:
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
class _Job:
    """One build that has to be made: of a step, for an architecture, with the option on or off."""

    arch: Arch
    option: str
    flavour: Flavour
    asked: str
    tools: kbuild.Toolchain
    out: Path
    what: str
    key: str


@dataclass
class _Built:
    """A build that succeeded and has warnings of W=1, which are to be compared with those of the predecessor."""

    seconds: float
    files: int
    targets: list[str]
    warnings: list[Warning_]


@dataclass(frozen=True)
class Builder:
    """Builds steps in one worktree; everything it is given stays the same for all of them.

    Two of the builds of a step run at once: while one links, which takes one CPU, the other one compiles.
    """

    context: Context
    tree: CheckTree
    memory: Memory
    patches: tuple[Patch, ...]
    _tools: dict[str, kbuild.Toolchain] = field(default_factory=dict, init=False)
    _configured: dict[Path, tuple[str, str]] = field(default_factory=dict, init=False)
    _cancelled: threading.Event = field(default_factory=threading.Event, init=False)

    def build(self, step: Step, archs: Sequence[Arch]) -> dict[tuple[str, str], Outcome]:
        """Build one step for each architecture with the option on and off; the outcomes, by architecture and option.

        Raises ConfigMismatch, EnvironmentFailure and StageTimeout, which say nothing about the patch; that it does not
        build is an outcome. Whatever is raised, Ctrl-C included, no build goes on.
        """
        outcomes: dict[tuple[str, str], Outcome] = {}
        jobs = []
        for arch in archs:
            for option in OPTIONS:
                found = self._known(step, arch, option)
                if isinstance(found, Outcome):
                    outcomes[arch.name, option] = found
                else:
                    jobs.append(found)
        if not jobs:
            return outcomes
        tree = self.tree.at(step.commit)
        with proc.pool(_AT_ONCE) as pool:
            try:
                futures = [pool.submit(self._attempt, step, job, tree) for job in jobs]
                for future in as_completed(futures):
                    future.result()
            except BaseException:
                self._cancelled.set()
                raise
        # The predecessor's warnings come last: looking them up moves the tree.
        for job, future in zip(jobs, futures, strict=True):
            result = future.result()
            outcome = result if isinstance(result, Outcome) else self._judge(step, job, result)
            outcomes[job.arch.name, job.option] = outcome
        return outcomes

    def _passed(self, job: _Job, seconds: float, files: int) -> Outcome:
        """A good outcome, remembered at once: others may be interrupted."""
        self.memory.put(job.key, {"what": job.what, "seconds": round(seconds, 1), "files": files})
        return Outcome("ok", seconds=seconds, files=files)

    def _known(self, step: Step, arch: Arch, option: str) -> Outcome | _Job:
        """The outcome, where nothing has to be built for it, or what has to."""
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
        return _Job(
            arch, option, flavour, asked, tools, self.context.builds / f"check-{arch.name}-{option}", what, name
        )

    def _attempt(self, step: Step, job: _Job, tree: Path) -> _Built | Outcome:
        """Build; the outcome, unless it depends on warnings of the predecessor."""
        try:
            return self._make(step, job, tree)
        except BuildError as exc:
            return Outcome("failed", error=exc.message, detail="\n".join(filter(None, (exc.detail, exc.hint))))

    def _make(self, step: Step, job: _Job, tree: Path) -> _Built | Outcome:
        self._watch(0, 0.0)
        self.context.report.step(f"building {job.what}")
        self._configure(step, job, tree)
        made = kbuild.make(
            self.context,
            job.arch,
            tree,
            job.out,
            ["vmlinux"],
            job.out / "check.log",
            what=job.what,
            tools=job.tools,
            env=kbuild.without_lines(),
            watch=self._watch,
        )
        files = touched(step.patch)
        targets = objects(job.out, files)
        found, seconds = self._pedantic(job, tree, targets, files, job.what) if targets else ([], 0.0)
        if not found:
            return self._passed(job, made.seconds + seconds, made.files)
        return _Built(made.seconds + seconds, made.files, targets, found)

    def _configure(self, step: Step, job: _Job, tree: Path) -> None:
        """Nothing to do after a step in whose tree the same was asked of the same Kconfig files."""
        if self._configured.get(job.out) == (step.parent, job.asked) and not _may_configure(step.patch):
            self._configured[job.out] = step.commit, job.asked
            return
        self._configured.pop(job.out, None)
        log = job.out / "config.log"
        assemble.configure(self.context, tree, job.arch, job.flavour, job.out, True, tools=job.tools, log=log)
        self._configured[job.out] = step.commit, job.asked

    def _watch(self, _files: int, _seconds: float) -> None:
        """Called at least every second while make runs: ends it when another build has ended everything."""
        if self._cancelled.is_set():
            raise EnvironmentFailure("the build was stopped", hint="run the same command: it continues")

    def _judge(self, step: Step, job: _Job, built: _Built) -> Outcome:
        """The outcome of a build with warnings: are there any that the predecessor does not have?

        The predecessor's are looked up only then: the files of the scheduler have nearly none.
        """
        seconds = built.seconds
        files = touched(step.patch)
        config = (job.out / ".config").read_text(encoding="utf-8")
        name = key("W=1", step.parent_content, job.arch.name, config, job.tools.version, *built.targets, *files)
        known = self.memory.get(name)
        if known is None:
            there = [target for target in built.targets if self._has_source(step.parent, target)]
            before: list[Warning_] = []
            if there:
                tree = self.tree.at(step.parent)
                before, more = self._pedantic(job, tree, there, files, f"{job.what}: its predecessor")
                seconds += more
            self.memory.put(name, [dataclasses.astuple(w) for w in before])
        else:
            before = [Warning_(*fields) for fields in known]
        fresh = added(built.warnings, before)
        if not fresh:
            return self._passed(job, seconds, built.files)
        others = f" (and {len(fresh) - 1} more)" if len(fresh) > 1 else ""
        return Outcome(
            "failed",
            error=f"{job.what}: {fresh[0]} [make W=1]{others}",
            detail="\n".join(map(str, fresh[:20])),
        )

    def _has_source(self, commit: str, target: str) -> bool:
        stem = target.removesuffix(".o")
        return bool(self.tree.repo.git("ls-tree", "--name-only", commit, f"{stem}.c", f"{stem}.S"))

    def _pedantic(
        self, job: _Job, tree: Path, targets: Sequence[str], files: Sequence[str], what: str
    ) -> tuple[list[Warning_], float]:
        """The warnings of ``make W=1`` for objects of a tree.

        In a directory of its own with the same configuration: in that of the build, other flags would have the host's
        tools built again, and then once more. What is there already would not be compiled, and is removed.
        """
        out = job.out.with_name(f"{job.out.name}-w1")
        with fs.disk_errors(out):
            out.mkdir(parents=True, exist_ok=True)
            fs.write_if_changed(out / ".config", (job.out / ".config").read_text(encoding="utf-8"))
        for target in targets:
            (out / target).unlink(missing_ok=True)
        log = out / "warnings.log"
        made = kbuild.make(
            self.context,
            job.arch,
            tree,
            out,
            targets,
            log,
            what=what,
            tools=job.tools,
            variables={"W": "1", "CONFIG_WERROR": ""},
            watch=self._watch,
        )
        roots = [str(tree.resolve()), str(out.resolve()), os.path.relpath(tree.resolve(), out.resolve())]
        return warnings(log.read_text(encoding="utf-8", errors="replace"), roots, files), made.seconds


def _may_configure(patch: Patch) -> bool:
    """Whether a patch changes what Kconfig reads or runs: its files, the Makefiles that call it, scripts."""
    names = [PurePosixPath(name) for diff in patch.diffs for name in (diff.old_path, diff.new_path) if name]
    return any(
        name.name.startswith("Kconfig")
        or str(name) == "Makefile"
        or name.parts[0] == "scripts"
        or (name.parts[0] == "arch" and name.name == "Makefile")
        for name in names
    )
