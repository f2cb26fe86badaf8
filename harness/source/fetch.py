"""Getting the pinned source: the user's own, what is in the cache, then the ways of configs/kernel.yaml in their order.

A file counts when it has the pinned SHA-256. One whose hash is not pinned counts when it holds the pinned version and
every file that the series touches has the blob that the patches name. Downloads are made beside their final name,
continue where they were interrupted, and get that name only when they count.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import shlex
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness import proc
from harness.context import Context
from harness.data import Pin, Way
from harness.errors import ApplyError, EnvironmentFailure, HarnessError, StageTimeout, UsageError
from harness.fs import atomic_write, disk_errors, lock, require_space
from harness.report import Stopwatch
from harness.source import tarball
from harness.source.apt import PrivateApt
from harness.source.git import git
from harness.source.series import Series
from harness.source.tarball import BadSource

SOCKET_TIMEOUT = 30.0
ATTEMPTS = 5
BACKOFF = 0.5
_CHUNK = 1 << 18


@dataclass(frozen=True)
class Source:
    """A source that counts. ``path`` is a tarball, or a git tree whose ``commit`` is meant.

    ``key`` names its content; ``exact`` says that its hash is the pinned one.
    """

    path: Path
    key: str
    exact: bool
    commit: str = ""


def way_key(way: Way) -> str:
    """The name of what a way gives: 16 hex digits that change when the pin does."""
    return (way.sha256 or hashlib.sha256(f"{way.kind} {way.source}".encode()).hexdigest())[:16]


def fetch(context: Context, pin: Pin, series: Series) -> Source:
    """The pinned source, verified; downloads it when neither the user nor the cache has it.

    Raises EnvironmentFailure listing each way and why it failed; UsageError or ApplyError when the user's own source is
    not what is needed. Progress is reported; the deadline is the setting ``fetch_timeout``, in seconds.
    """
    own = own_source(context, pin)
    if own:
        verify(own, pin, series, context)
        return own
    context.downloads.mkdir(parents=True, exist_ok=True)
    with waiting_lock(context, context.downloads / ".lock", "the download directory", "fetch_timeout"):
        for way in pin.ways:
            if found := _cached(context, pin, way, series):
                return found
        return _download(context, pin, series)


@contextlib.contextmanager
def waiting_lock(context: Context, path: Path, what: str, deadline: str) -> Iterator[None]:
    """A lock that says whom it waits for; ``deadline`` is the name of a setting in seconds."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock(path, what))
        except EnvironmentFailure as exc:
            if "is in use by" not in exc.message:
                raise
            context.report.step(f"{exc.message}: waiting")
            stack.enter_context(lock(path, what, wait_seconds=context.settings.seconds(deadline)))
        yield


def own_source(context: Context, pin: Pin) -> Source | None:
    """What --kernel-source or HARNESS_KERNEL_SOURCE names, if it is set. Raises UsageError when it is no source."""
    if not context.settings.text("kernel_source"):
        return None
    path = context.settings.path("kernel_source").absolute()
    origin = f"the kernel source {path} ({context.settings.origin.get('kernel_source', 'setting')})"
    hint = "give a tarball or a git tree of the pinned kernel, or leave it away to download one"
    if path.is_file():
        digest = sha256(path)
        return Source(path, digest[:16], any(digest == way.sha256 for way in pin.ways))
    if not path.is_dir():
        what = "is neither a file nor a directory" if path.exists() else "does not exist"
        raise UsageError(f"{origin} {what}", hint=hint)
    timeout = context.settings.seconds("apply_timeout")
    # A clone is rarely left standing at the pinned release: its tag goes before what is checked out.
    for name in (f"refs/tags/{pin.tag}", "HEAD"):
        found = git(path, "rev-parse", "-q", "--verify", f"{name}^{{commit}}", timeout=timeout, check=False)
        if found.status == 0:
            commit = found.output.strip()
            tree = git(path, "rev-parse", f"{commit}^{{tree}}", timeout=timeout).output.strip()
            return Source(path, f"tree-{tree}", False, commit)
    raise UsageError(f"{origin} is no git tree with a commit", hint=hint)


def sha256(path: Path) -> str:
    """The SHA-256 of a file, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(source: Source, pin: Pin, series: Series, context: Context) -> None:
    """Raise unless the source is the pinned one, or holds the version and the blobs that the series was made for."""
    if source.exact:
        return
    touched = series.touched()
    if source.commit:
        timeout = context.settings.seconds("apply_timeout")
        makefile = git(source.path, "show", f"{source.commit}:Makefile", timeout=timeout, check=False).output
        check_version(f"{source.path} ({source.commit[:12]})", makefile, pin)
        blobs = blobs_of(source.path, source.commit, list(touched), timeout)
    else:
        digest = hashlib.sha256(f"{source.key} {pin.version} {sorted(touched.items(), key=str)}".encode()).hexdigest()
        note = context.downloads / f"accepted-{source.key}"
        if note.is_file() and note.read_text() == digest:
            return
        makefile, blobs = _survey(source.path, set(touched), context)
        check_version(str(source.path), makefile, pin)
    check_blobs(str(source.path), blobs, series)
    if not source.commit:
        atomic_write(note, digest)


def check_version(where: str, makefile: str, pin: Pin) -> None:
    """Raise BadSource unless a top Makefile states the pinned version."""
    stated = tarball.version_of(makefile)
    if not stated:
        raise BadSource(
            f"{where} is no kernel source: its top Makefile states no version", hint=f"give Linux {pin.version}"
        )
    if not tarball.same_version(stated, pin.version):
        raise BadSource(
            f"{where} holds Linux {stated}, the pin is {pin.version}",
            hint=f"give Linux {pin.version}, or change the pin in configs/kernel.yaml",
        )


def check_blobs(where: str, blobs: dict[str, str], series: Series) -> None:
    """Raise ApplyError naming the first file whose blob is not the one that the series was made for."""
    for path, wanted in series.touched().items():
        got = blobs.get(path)
        if got == wanted:
            continue
        patch = next(p.name for p in series.patches for d in p.diffs if path in (d.old_path, d.new_path))
        is_there = f"has the blob {got}" if got else "does not exist"
        should = f"names {wanted}" if wanted else "makes it anew"
        raise ApplyError(
            f"{where} is not the tree that the series was made for: {path} {is_there}, {patch} {should}",
            hint="give the unpatched source of the pinned version, or let `harness fetch` get it",
        )


def blobs_of(repository: Path, commit: str, paths: list[str], timeout: float) -> dict[str, str]:
    """The blobs of files in a commit; files that it lacks are left out."""
    if not paths:
        return {}
    # The output has one line per question, in the order of the questions.
    asked = "".join(f"{commit}:{path}\n" for path in paths).encode("utf-8", "surrogateescape")
    said = git(repository, "cat-file", "--batch-check=%(objectname)", timeout=timeout, stdin=asked).output
    answers = zip(paths, said.split("\n"), strict=False)
    return {path: answer for path, answer in answers if len(answer) == 40 and " " not in answer}


def _survey(path: Path, wanted: set[str], context: Context) -> tuple[str, dict[str, str]]:
    """The top Makefile of a tarball, and the blobs of the files asked for."""
    makefile = ""
    blobs: dict[str, str] = {}

    def progress(done: int, total: int) -> None:
        context.report.progress(f"checking {path.name}", done, total)

    for entry in tarball.entries(path, progress):
        if entry.path == "Makefile":
            makefile = entry.data.decode(errors="replace")
        if entry.path in wanted:
            blobs[entry.path] = blobs.get(entry.copy_of) or tarball.blob_id(entry.data)
    context.report.end_bar()
    return makefile, blobs


# The cache


def _stem(pin: Pin, way: Way) -> str:
    return f"linux-{pin.version}-{way_key(way)}.tar"


def _cached(context: Context, pin: Pin, way: Way, series: Series) -> Source | None:
    for path in sorted(context.downloads.glob(f"{_stem(pin, way)}*")):
        if path.suffix == ".part" or not path.is_file():
            continue
        try:
            return _counted(path, pin, way, series, context)
        except BadSource as exc:  # a full disk, say, is no fault of the file
            context.report.warn(f"{exc.message}; getting it again")
            path.unlink(missing_ok=True)
    return None


def _counted(path: Path, pin: Pin, way: Way, series: Series, context: Context) -> Source:
    """The file as a source, if it has the way's hash or, without one, the right tree."""
    source = Source(path, way_key(way), bool(way.sha256))
    if way.sha256:
        got = sha256(path)
        if got != way.sha256:
            raise BadSource(
                f"{path.name} has the wrong SHA-256: expected {way.sha256}, got {got}",
                hint="run `harness fetch` again; if it stays, the pin in configs/kernel.yaml or the mirror is wrong",
            )
    verify(source, pin, series, context)
    return source


# The ways


def _download(context: Context, pin: Pin, series: Series) -> Source:
    if not pin.ways:
        raise EnvironmentFailure(
            "configs/kernel.yaml lists no way to get the source", hint="give one with --kernel-source PATH"
        )
    reasons: list[str] = []
    for way in pin.ways:
        watch = Stopwatch()
        name = f"{way.kind} {way.source}"
        context.report.step(f"fetching Linux {pin.version}: {name}")
        try:
            path = _by_way(context, pin, way)
            try:
                source = _counted(path, pin, way, series, context)
            except (BadSource, ApplyError):
                path.unlink(missing_ok=True)  # not what it should be: to be continued would not mend it
                raise
        except HarnessError as exc:
            context.report.end_bar()
            context.report.warn(f"{name}: {exc.message}")
            if "no space left" in exc.message or "MiB are free" in exc.message:
                raise  # every other way needs the same space
            reasons.append(f"{name}: {exc.message}")
            continue
        final = context.downloads / f"{_stem(pin, way)}{_compression(way.source, path)}"
        path.replace(final)
        context.report.step(f"fetched {final.name} in {watch}")
        return Source(final, source.key, source.exact)
    raise EnvironmentFailure(
        f"no way to get Linux {pin.version} worked: {'; '.join(reasons)}",
        hint="check the network and run it again (a download continues), or give a tarball with --kernel-source PATH",
    )


def _compression(source: str, path: Path) -> str:
    """The ending that says how a tarball is compressed: of the file, else of the address."""
    for name in (path.name.removesuffix(".part"), urllib.parse.urlsplit(source).path):
        ending = Path(name).suffix
        if ending in (".xz", ".gz", ".bz2"):
            return ending
    return ""


def _by_way(context: Context, pin: Pin, way: Way) -> Path:
    timeout = context.settings.seconds("fetch_timeout")
    if way.kind == "debian-source":
        return _debian_source(context, way, timeout)
    if way.kind == "url":
        part = context.downloads / f"{_stem(pin, way)}{_compression(way.source, Path())}.part"
        download(way.source, part, context, timeout)
        return part
    raise UsageError(f"configs/kernel.yaml: unknown way {way.kind!r}", hint="known: debian-source, url; mend that line")


def _debian_source(context: Context, way: Way, timeout: float) -> Path:
    apt = PrivateApt(context.cache / "apt" / "source", context.report, timeout=timeout)
    place = context.downloads / f"apt-{way_key(way)}"
    with disk_errors(place):
        place.mkdir(parents=True, exist_ok=True)
    return apt.source(way.source, way.suite, place)


def download(url: str, part: Path, context: Context, timeout: float) -> None:
    """Download ``url`` into ``part``, continuing what is there; broken connections are tried again.

    Raises EnvironmentFailure (the file stays, for the next run to continue) and StageTimeout after ``timeout`` seconds.
    """
    deadline = time.monotonic() + timeout
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            if _transfer(url, part, context, deadline):
                context.report.end_bar()
                return
            reason = "the connection ended early"
        except urllib.error.HTTPError as exc:
            if exc.code < 500:
                raise EnvironmentFailure(f"the server says {exc.code} {exc.reason}") from None
            reason = f"the server says {exc.code} {exc.reason}"
        except urllib.error.URLError as exc:
            reason = f"cannot connect: {exc.reason}"
        except (ConnectionError, http.client.HTTPException) as exc:
            reason = f"the connection broke: {exc}"
        except ValueError as exc:
            raise EnvironmentFailure(f"this is no address: {exc}") from None
        after = part.stat().st_size if part.exists() else 0
        failures = 0 if after > before else failures + 1
        if failures >= ATTEMPTS:
            raise EnvironmentFailure(f"{reason} ({ATTEMPTS} times, {after} bytes are kept)")
        if time.monotonic() >= deadline:
            raise _late(timeout)
        context.report.debug(f"{reason}; continuing at byte {after}")
        time.sleep(min(BACKOFF * 2**failures, 10.0))


def _late(timeout: float) -> StageTimeout:
    return StageTimeout(
        f"the download did not finish within {timeout:g} s", hint="run it again, it continues (HARNESS_FETCH_TIMEOUT)"
    )


@contextlib.contextmanager
def _network_errors() -> Iterator[None]:
    """Turn whatever the system or TLS says of a connection into one that broke: some numbers are a disk's as well."""
    try:
        yield
    except urllib.error.URLError:
        raise
    except OSError as exc:
        raise ConnectionError(str(exc) or type(exc).__name__) from exc


def _transfer(url: str, part: Path, context: Context, deadline: float) -> bool:
    """One connection; True when the file is whole."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Accept-Encoding": "identity", "User-Agent": "agent-latency"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    left = deadline - time.monotonic()
    if left <= 0:
        raise _late(context.settings.seconds("fetch_timeout"))
    try:
        with _network_errors():
            answer = urllib.request.urlopen(request, timeout=min(SOCKET_TIMEOUT, left))
    except urllib.error.HTTPError as exc:
        if exc.code != 416:
            raise
        # The range begins at or behind the end: whole, or longer than the file of the server.
        total = exc.headers.get("Content-Range", "").rpartition("/")[2]
        if total.isdigit() and int(total) == have:
            return True
        part.unlink()
        return False
    with answer:
        resumed = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        start = have if resumed else 0
        length = answer.headers.get("Content-Length")
        total_bytes = start + int(length) if length and length.isdigit() else None
        with disk_errors(part):
            if total_bytes is not None:
                require_space(part.parent, ((total_bytes - start) >> 20) + 1, "the download")
            out = part.open("ab" if resumed else "wb")
        with out:
            done = start
            while True:
                with _network_errors():
                    # read1() returns what has come, so that a server that trickles cannot outlast the deadline.
                    chunk = answer.read1(_CHUNK)
                if not chunk:
                    break
                with disk_errors(part):
                    out.write(chunk)
                    out.flush()
                done += len(chunk)
                if total_bytes:
                    context.report.progress(
                        f"downloading {Path(urllib.parse.urlsplit(url).path).name}", done, total_bytes
                    )
                if time.monotonic() >= deadline:
                    raise _late(context.settings.seconds("fetch_timeout"))
        return total_bytes is None or done == total_bytes


def dry_run(context: Context, pin: Pin) -> list[str]:
    """The commands of a fetch, to be pasted."""
    if own := own_source(context, pin):
        return [
            f"git -C {own.path} rev-parse {own.commit}" if own.commit else f"sha256sum {shlex.quote(str(own.path))}"
        ]
    lines = [f"mkdir -p {shlex.quote(str(context.downloads))}"]
    for way in pin.ways:
        target = context.downloads / f"{_stem(pin, way)}{_compression(way.source, Path())}"
        if way.kind == "debian-source":
            place = context.downloads / f"apt-{way_key(way)}"
            apt = PrivateApt(context.cache / "apt" / "source", context.report, timeout=60)
            lines += [f"# {way.kind} {way.source}", *apt.source_commands(way.source, way.suite, place)]
            target = target.with_name(f"{target.name}.xz")
            lines.append(f"mv {shlex.quote(str(place))}/*.orig.tar.xz {shlex.quote(str(target))}")
        else:
            argv = ["curl", "-fL", "-C", "-", "-o", str(target), way.source]
            lines += [f"# {way.kind}, when the ways before it fail", proc.quoted(argv)]
        if way.sha256:
            lines.append(f"echo {shlex.quote(f'{way.sha256}  {target}')} | sha256sum -c")
    return lines
