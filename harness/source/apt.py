"""The machine's own package client with a directory of its own: nothing is installed, no list of the machine changes.

Mirrors are read from the machine's configuration, never named here: from the lists that it has (``apt-get
indextargets``), else from its sources. Proxies and other Acquire settings of the machine stay in force. Works as any
user.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shlex
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import proc
from harness.errors import EnvironmentFailure, HarnessError
from harness.fs import atomic_write, disk_errors, lock, require_space, write_json
from harness.report import Reporter
from harness.source.git import is_full, no_space

KEYRINGS = tuple(
    Path("/usr/share/keyrings") / name for name in ("debian-archive-keyring.pgp", "debian-archive-keyring.gpg")
)
SOURCES = Path("/etc/apt")
LOCK_WAIT = 60.0
_TARGETS = "$(SITE)|$(RELEASE)|$(COMPONENT)|$(ORIGIN)|$(LABEL)|$(CODENAME)"
_ACQUIRE = re.compile(r'Acquire::[^"]*"[^"]*";')
_URI = re.compile(r"'([^']+)' (\S+) (\d+) ?(\S*)")


@dataclass(frozen=True)
class Mirror:
    """A mirror of the main archive that the machine uses, and a suite that it uses it for."""

    uri: str
    suite: str


@dataclass(frozen=True)
class Remote:
    """A file as apt would download it; ``size`` in bytes, ``digest`` as ``ALGORITHM:HEX``."""

    uri: str
    name: str
    size: int
    digest: str


def mirrors_of_targets(text: str) -> list[Mirror]:
    """Pure: the mirrors in what ``apt-get indextargets`` prints in the format ``_TARGETS``, the main suite first."""
    found: list[tuple[bool, Mirror]] = []
    for line in text.splitlines():
        fields = line.split("|")
        if len(fields) != 6:
            continue
        site, release, component, origin, label, codename = fields
        if origin == "Debian" and label in ("Debian", "Debian Backports") and component == "main" and site:
            found.append((label != "Debian" or "-" in release, Mirror(site.rstrip("/"), codename or release)))
    return list(dict.fromkeys(mirror for _, mirror in sorted(found, key=lambda pair: pair[0])))


def mirrors_of_sources(text: str, *, deb822: bool) -> list[Mirror]:
    """Pure: what could be mirrors of the main archive in a sources file of either format.

    Left out is what cannot be: disabled entries, security and updates suites, components without ``main``. That an
    archive really is the one is proved by its signature when it is used.
    """
    entries = _deb822_entries(text) if deb822 else _line_entries(text)
    return list(
        dict.fromkeys(
            Mirror(uri.rstrip("/"), suite)
            for uris, suites, components in entries
            if "main" in components
            for uri in uris
            for suite in suites
            if re.fullmatch(r"[a-z]+", suite) and not uri.startswith("cdrom:") and "security" not in uri
        )
    )


def _deb822_entries(text: str) -> Iterator[tuple[list[str], list[str], list[str]]]:
    text = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for stanza in re.split(r"\n\s*\n", text):
        fields: dict[str, str] = {}
        last = ""
        for line in stanza.splitlines():
            if line[:1] in (" ", "\t"):
                fields[last] = f"{fields.get(last, '')} {line.strip()}"
            elif ":" in line:
                last, _, value = line.partition(":")
                last = last.strip().lower()
                fields[last] = value.strip()
        if fields.get("enabled", "yes").lower() in ("no", "false", "0", "off", "without", "disable"):
            continue
        if "deb" in fields.get("types", "").split():
            yield (
                fields.get("uris", "").split(),
                fields.get("suites", "").split(),
                fields.get("components", "").split(),
            )


def _line_entries(text: str) -> Iterator[tuple[list[str], list[str], list[str]]]:
    for line in text.splitlines():
        found = re.fullmatch(r"\s*deb\s+(?:\[[^\]]*\]\s+)?(\S+)\s+(\S+)\s+([^#]*)(?:#.*)?", line)
        if found:
            yield [found[1]], [found[2]], found[3].split()


def remotes(text: str) -> list[Remote]:
    """Pure: the lines that ``--print-uris`` prints."""
    return [
        Remote(found[1], found[2], int(found[3]), found[4]) for found in map(_URI.match, text.splitlines()) if found
    ]


class PrivateApt:
    """apt-get with lists, cache, state and sources below ``directory``; ``timeout`` in seconds bounds each call."""

    def __init__(
        self, directory: Path, report: Reporter, *, timeout: float, sources: Path = SOURCES, arch: str = ""
    ) -> None:
        self.directory = directory
        self.report = report
        self.timeout = timeout
        self.arch = arch
        self._sources = sources

    # What the machine says

    def mirrors(self) -> list[Mirror]:
        """The mirrors of the main archive, best first. Raises EnvironmentFailure when the machine has none."""
        proc.require_tool("apt-get", package="apt", why="it gets source and foreign packages")
        argv = ["apt-get", "indextargets", "--format", _TARGETS, "Created-By: Packages"]
        known = mirrors_of_targets(proc.run(argv, timeout=self.timeout, env={"LC_ALL": "C"}).output)
        # A fresh machine has no lists yet, and what the lists say may be older than the sources.
        for path in [self._sources / "sources.list", *sorted((self._sources / "sources.list.d").glob("*"))]:
            if path.suffix in (".list", ".sources") and path.is_file():
                with contextlib.suppress(OSError):
                    text = path.read_text(encoding="utf-8", errors="replace")
                    known += mirrors_of_sources(text, deb822=path.suffix == ".sources")
        if not known:
            raise EnvironmentFailure(
                "this machine's package sources name no Debian archive",
                hint="add one to /etc/apt/sources.list.d, or give the source with --kernel-source PATH",
            )
        return list(dict.fromkeys(known))

    # Its own configuration

    def _configuration(self, acquire: str) -> str:
        place = self.directory
        lines = [
            'Dir::Etc::parts "/dev/null";',
            'Dir::Etc::main "/dev/null";',
            'Dir::Etc::preferences "/dev/null";',
            'Dir::Etc::preferencesparts "/dev/null";',
            'Dir::Etc::sourceparts "/dev/null";',
            f'Dir::Etc::sourcelist "{place}/sources.list";',
            f'Dir::State "{place}/state";',
            f'Dir::State::lists "{place}/lists";',
            f'Dir::State::status "{place}/status";',
            f'Dir::Cache "{place}/cache";',
            'Dir::Log "/dev/null";',
            # Another user could not write below the cache of this one.
            'APT::Sandbox::User "";',
            'APT::Update::Error-Mode "any";',
            'Acquire::Retries "3";',
            'Acquire::Languages "none";',
        ]
        if self.arch:
            lines += [f'APT::Architecture "{self.arch}";', "#clear APT::Architectures;"]
            lines.append(f'APT::Architectures {{ "{self.arch}"; }};')
        kept = [line for line in acquire.splitlines() if _ACQUIRE.fullmatch(line.strip())]
        return "\n".join([*kept, *lines]) + "\n"

    def _entry(self, kind: str, mirror: Mirror, suite: str) -> str:
        options = [f"arch={self.arch}"] if self.arch else []
        keyring = next((path for path in KEYRINGS if path.is_file()), None)
        options += [f"signed-by={keyring}"] if keyring else []
        bracket = f"[{' '.join(options)}] " if options else ""
        return f"{kind} {bracket}{mirror.uri} {suite} main\n"

    def _prepare(self, entry: str) -> None:
        with disk_errors(self.directory):
            for name in ("lists/partial", "cache/archives/partial", "state"):
                (self.directory / name).mkdir(parents=True, exist_ok=True)
            dump = proc.run(["apt-config", "dump"], timeout=self.timeout, env={"LC_ALL": "C"})
            atomic_write(self.directory / "apt.conf", self._configuration(dump.output))
            atomic_write(self.directory / "sources.list", entry)
            atomic_write(self.directory / "status", "")

    def _apt(self, *arguments: str, cwd: Path | None = None) -> proc.Completed:
        env = {"APT_CONFIG": str(self.directory / "apt.conf"), "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
        argv = ["apt-get", "-q", *arguments]
        give_up = time.monotonic() + min(self.timeout, LOCK_WAIT)
        while True:
            what = f"apt-get {arguments[0]}"
            done = proc.run(argv, timeout=self.timeout, cwd=cwd or self.directory, env=env, what=what)
            # Our lock keeps other runs out; what can hold apt's own is the rest of one that was killed.
            if done.status == 0 or "Could not get lock" not in done.errors or time.monotonic() > give_up:
                break
            time.sleep(1.0)
        if done.status != 0:
            if is_full(done.errors):
                raise no_space(cwd or self.directory, done.errors.strip())
            said = [line for line in done.errors.splitlines() if line.startswith(("E:", "Err:"))] or ["it says nothing"]
            raise EnvironmentFailure(
                f"apt-get {arguments[0]} failed: {said[0].removeprefix('E: ')}",
                detail="\n".join(said[1:]),
                hint=f"APT_CONFIG={shlex.quote(env['APT_CONFIG'])} {proc.quoted(argv)}",
            )
        return done

    def _with_suite(self, kind: str, suite: str) -> Iterator[str]:
        """Lists of the suite from one mirror after the other; yields the mirror. Raises what the last failed with."""
        failure: HarnessError | None = None
        first_of_uri = {mirror.uri: mirror for mirror in reversed(self.mirrors())}
        for mirror in reversed(first_of_uri.values()):
            self._prepare(self._entry(kind, mirror, suite or mirror.suite))
            try:
                self._apt("update")
            except HarnessError as exc:
                failure = exc
                continue
            yield mirror.uri
        if failure:
            raise failure

    # What it gets

    def source(self, spec: str, suite: str, place: Path) -> Path:
        """Download the upstream tarball of the source package ``spec`` (``NAME=VERSION``) into the directory ``place``.

        A partial file there is continued; apt checks the hash that the signed index has. Raises EnvironmentFailure
        when no mirror has it, StageTimeout past the deadline.
        """
        request = ["source", "--download-only", "--tar-only", "--only-source", spec]
        with lock(self.directory / ".lock", "the private apt directory", wait_seconds=self.timeout):
            failure: HarnessError | None = None
            for _ in self._with_suite("deb-src", suite):
                try:
                    listed = remotes(self._apt(request[0], "--print-uris", *request[1:]).output)
                    wanted = [remote for remote in listed if ".orig.tar." in remote.name] or listed
                    if not wanted:
                        raise EnvironmentFailure(f"apt-get lists no tarball for {spec}")
                    tarball = wanted[0]
                    target = place / tarball.name
                    have = target.stat().st_size if target.is_file() else 0
                    require_space(place, ((tarball.size - have) >> 20) + 1, "the source package")
                    self._get_source(request, place, tarball)
                except HarnessError as exc:
                    failure = exc
                    continue
                if not target.is_file():
                    raise EnvironmentFailure(f"apt-get succeeded and left no {target}")
                return target
        raise failure or EnvironmentFailure(f"no mirror of this machine has {spec}")

    def _get_source(self, request: Sequence[str], place: Path, tarball: Remote) -> None:
        target = place / tarball.name
        for last in (False, True):
            try:
                with self._watch(place, tarball):
                    self._apt(*request, cwd=place)
                return
            except EnvironmentFailure as exc:
                # A partial file that was damaged cannot be continued; begin anew, once.
                if last or not target.exists() or "mismatch" not in (exc.message + exc.detail):
                    raise
                target.unlink()

    def source_commands(self, spec: str, suite: str, place: Path) -> list[str]:
        """The commands that :meth:`source` comes to, to be pasted into a shell."""
        here = shlex.quote(str(self.directory))
        conf = f"{here}/apt.conf"
        own = self._configuration("")
        entry = self._entry("deb-src", self.mirrors()[0], suite)
        return [
            f"mkdir -p {here}/lists/partial {here}/cache/archives/partial {here}/state {shlex.quote(str(place))}",
            f"touch {here}/status",
            f"printf %s {shlex.quote(entry)} > {here}/sources.list",
            f"{{ apt-config dump | grep ^Acquire::; printf %s {shlex.quote(own)}; }} > {conf}",
            f"APT_CONFIG={conf} apt-get update",
            f"cd {shlex.quote(str(place))}",
            f"APT_CONFIG={conf} apt-get source --download-only --tar-only --only-source {shlex.quote(spec)}",
        ]

    def download(self, packages: Sequence[str], place: Path, suite: str = "") -> list[Path]:
        """Download the binary ``packages`` (no dependencies) of the architecture ``arch`` into ``place``.

        ``suite`` defaults to the one that the machine itself runs. Files that are there with the right hash are kept,
        and a set that is complete needs no network. Returns the files in the order of ``packages``. Raises
        EnvironmentFailure when a package does not exist, StageTimeout past the deadline.
        """
        manifest = place / ".downloaded.json"
        key = hashlib.sha256(repr((sorted(packages), self.arch, suite)).encode()).hexdigest()
        with lock(self.directory / ".lock", "the private apt directory", wait_seconds=self.timeout):
            if known := _complete(place, manifest, key, packages):
                return known
            with disk_errors(place):
                place.mkdir(parents=True, exist_ok=True)
            failure: HarnessError | None = None
            for _ in self._with_suite("deb", suite):
                try:
                    listed = remotes(self._apt("download", "--print-uris", *packages).output)
                    require_space(place, (sum(remote.size for remote in listed) >> 20) + 1, "the packages")
                    self._apt("download", *packages, cwd=place)
                except HarnessError as exc:
                    failure = exc
                    continue
                files = {remote.name.partition("_")[0]: remote.name for remote in listed}
                lacking = [name for name in packages if not (place / files.get(name, "?")).is_file()]
                if lacking:
                    raise EnvironmentFailure(f"apt-get succeeded and left no file of {lacking[0]}")
                sums = {name: [file, _sha256(place / file)] for name, file in files.items()}
                write_json(manifest, {"key": key, "files": sums})
                return [place / files[name] for name in packages]
        raise failure or EnvironmentFailure("no mirror of this machine has the packages")

    def extract(self, files: Sequence[Path], root: Path) -> None:
        """Unpack packages into the directory ``root``; nothing of them is run. Raises EnvironmentFailure."""
        proc.require_tool("dpkg-deb", package="dpkg", why="it unpacks packages")
        with disk_errors(root):
            root.mkdir(parents=True, exist_ok=True)
        for file in files:
            proc.run(["dpkg-deb", "-x", str(file), str(root)], timeout=self.timeout, check=True)

    @contextlib.contextmanager
    def _watch(self, place: Path, remote: Remote) -> Iterator[None]:
        """Report the growth of the file that apt is writing."""
        stop = threading.Event()

        def look() -> None:
            while not stop.wait(0.5):
                sizes = [0]
                for path in (place / remote.name, place / f"{remote.name}.FAILED", place / "partial" / remote.name):
                    with contextlib.suppress(OSError):
                        sizes.append(path.stat().st_size)
                self.report.progress(f"downloading {remote.name}", max(sizes), remote.size)

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            self.report.end_bar()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _complete(place: Path, manifest: Path, key: str, packages: Sequence[str]) -> list[Path]:
    """The files of an earlier, equal request, if they are all there unchanged."""
    try:
        noted = json.loads(manifest.read_text())
        files = [place / noted["files"][name][0] for name in packages]
        same = noted["key"] == key and all(_sha256(place / f) == s for f, s in noted["files"].values())
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return []
    return files if same else []
