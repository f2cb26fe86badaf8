"""Fixtures that several tests share: a kernel tree in miniature, compilers that copy, a project and its context."""

from __future__ import annotations

import io
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import kconfiglib
import pytest

from harness.context import Context
from harness.report import Reporter
from harness.settings import resolve

ROOT = Path(__file__).resolve().parent.parent
HERE = Path(__file__).resolve().parent

# Programs of this machine that the miniature build may use; everything else on its PATH is fake.
REAL_TOOLS = (
    *("awk", "basename", "bash", "cat", "chmod", "cmp", "cp", "cut", "date", "dirname", "echo", "env", "expr", "false"),
    *("git", "grep", "gzip", "head", "install", "kill", "ln", "ls", "make", "mkdir", "mktemp", "mv", "perl", "printf"),
    *("pwd", "readlink", "realpath", "rm", "rmdir", "sed", "seq", "sh", "sleep", "sort", "tail", "tar", "tee", "test"),
    *("touch", "tr", "true", "uname", "uniq", "wc", "xargs", "xz"),
)
FAKE_COMPILERS = ("gcc", "aarch64-linux-gnu-gcc")
FAKE_LINKERS = ("ld", "aarch64-linux-gnu-ld")
FAKE_OTHERS = (
    *("flex", "bison", "bc", "qemu-system-x86_64", "qemu-system-aarch64", "apt-get", "dpkg"),
    *("objdump", "aarch64-linux-gnu-objdump"),
)

# The agent latency series of the miniature tree: (subject, {path: text}); text of a path that exists is appended.
FAKE_SERIES: tuple[tuple[str, dict[str, str]], ...] = (
    (
        "sched: Add the agent latency window",
        {
            "kernel/Kconfig": '\nconfig AGENT_LATENCY\n\tbool "Agent latency window"\n\tdepends on SMP\n',
            "kernel/Makefile": "obj-y += $(if $(CONFIG_AGENT_LATENCY),kernel/agent_latency.o)\n",
            "kernel/agent_latency.c": "#include <linux/agent_latency.h>\n/* Arms windows. */\n",
            "include/uapi/linux/agent_latency.h": "#define PR_AGENT_WINDOW 1\n",
        },
    ),
    (
        "selftests: Add tests of the agent latency window",
        {
            "tools/testing/selftests/agent_latency/Makefile": "TEST_GEN_PROGS := abi inherit\ninclude ../lib.mk\n",
            "tools/testing/selftests/agent_latency/abi.c": "/* The interface. */\n",
            "tools/testing/selftests/agent_latency/inherit.c": "/* Over fork. */\n",
            "tools/testing/selftests/agent_latency/settings": "timeout=90\n",
            "tools/testing/selftests/agent_latency/config": "CONFIG_AGENT_LATENCY=y\nCONFIG_SMP=y\n",
        },
    ),
)
AUTHOR = ("Agent Latency Project", "agent-latency@example.org")


def git(tree: Path, *argv: str) -> str:
    """git in ``tree``, as the project's author, whatever the user's own configuration says."""
    env = {
        **os.environ,
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_CONFIG_SYSTEM": "/dev/null",
        **{f"GIT_{who}_NAME": AUTHOR[0] for who in ("AUTHOR", "COMMITTER")},
        **{f"GIT_{who}_EMAIL": AUTHOR[1] for who in ("AUTHOR", "COMMITTER")},
        **{f"GIT_{who}_DATE": "2026-01-02T03:04:05Z" for who in ("AUTHOR", "COMMITTER")},
    }
    done = subprocess.run(["git", "-C", str(tree), *argv], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def add_commit(tree: Path, subject: str, files: dict[str, str], *, replace: bool = False) -> str:
    """Commit ``files`` (appended to what is there, or replacing it) in ``tree``; returns the commit."""
    for name, text in files.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text if replace or not path.exists() else path.read_text() + text)
    git(tree, "add", "-A")
    message = f"{subject}\n\nFor the tests.\n\nSigned-off-by: {AUTHOR[0]} <{AUTHOR[1]}>\n"
    git(tree, "commit", "-q", "-m", message)
    return git(tree, "rev-parse", "HEAD").strip()


def export_series(tree: Path, patches: Path, base: str = "base") -> None:
    """Write the commits of ``tree`` after ``base`` as ``patches``/*.patch and ``patches``/series."""
    shutil.rmtree(patches, ignore_errors=True)
    patches.mkdir(parents=True)
    options = ["--zero-commit", "--full-index", "--no-signature", "--no-numbered", "--no-renames"]
    git(tree, "format-patch", "-q", *options, "-o", str(patches), f"{base}..HEAD")
    names = sorted(path.name for path in patches.glob("*.patch"))
    (patches / "series").write_text("".join(f"{name}\n" for name in names))


@pytest.fixture
def fake_bin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that is the whole PATH: fake compilers, a few real tools. Remove a file and the tool is missing."""
    directory = tmp_path / "bin"
    directory.mkdir()
    for name in REAL_TOOLS:
        path = shutil.which(name)
        if path:
            (directory / name).symlink_to(path)
    for source, names in (
        ("cc", FAKE_COMPILERS),
        ("ld", FAKE_LINKERS),
        ("plain", FAKE_OTHERS),
        ("readelf", ["readelf"]),
    ):
        for name in names:
            shutil.copy(HERE / "fakebin" / source, directory / name)
            (directory / name).chmod(0o755)
    python = directory / "python3"
    # -S: what the environment's site-packages do at start takes longer than what the miniature kernel asks for.
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(directory))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{Path(kconfiglib.__file__).parent}")
    return directory


@pytest.fixture(scope="session")
def fake_kernel_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``kernel`` (see :func:`fake_kernel`) and ``patches``, its series, made once and copied from here."""
    place = tmp_path_factory.mktemp("template")
    tree = place / "kernel"
    shutil.copytree(HERE / "fakekernel", tree, ignore=shutil.ignore_patterns("__pycache__"))
    git(tree, "init", "-q", "--template=", "-b", "main")
    git(tree, "add", "-A")
    git(tree, "commit", "-q", "-m", "Linux 6.18.15")
    for tag in ("base", "v6.18.15"):
        git(tree, "tag", tag)
    for subject, files in FAKE_SERIES:
        add_commit(tree, subject, files)
    export_series(tree, place / "patches")
    git(tree, "repack", "-a", "-d", "-q")
    return place


@pytest.fixture
def fake_kernel(tmp_path: Path, fake_kernel_template: Path) -> Path:
    """The miniature tree as a git tree: tags ``base`` and ``v6.18.15`` are unpatched, ``main`` has the fake series."""
    tree = tmp_path / "kernel"
    shutil.copytree(fake_kernel_template / "kernel", tree, symlinks=True)
    return tree


FRAGMENTS = {
    "base": "CONFIG_SMP=y\nCONFIG_NR_CPUS=16\n# CONFIG_MODULES is not set\n",
    "x86_64": "CONFIG_X86=y\n",
    "arm64": "CONFIG_ARM64=y\n",
    "agent": "CONFIG_AGENT_LATENCY=y\n",
    "agent-off": "# CONFIG_AGENT_LATENCY is not set\n",
}


@pytest.fixture
def project(tmp_path: Path, fake_kernel_template: Path) -> Path:
    """A project beside the miniature tree: real data files where they fit, small fragments, the fake series."""
    root = tmp_path / "project"
    for name in ("arch", "templates"):
        if (ROOT / "configs" / name).is_dir():
            shutil.copytree(ROOT / "configs" / name, root / "configs" / name)
    shutil.copytree(ROOT / "qemu", root / "qemu")
    for name in ("tools.yaml", "identity.yaml", "harness.yaml"):
        shutil.copy(ROOT / "configs" / name, root / "configs" / name)
    (root / "configs/kernel.yaml").write_text("version: 6.18.15\nways: []\n")
    flavours = root / "configs/flavours"
    flavours.mkdir()
    for name, series in (("test", "agent"), ("off", "agent-off")):
        text = f"name: '{name}'\ndescription: for the tests\nfragments: [base]\nseries_fragments: [{series}]\n"
        (flavours / f"{name}.yaml").write_text(text)
    (root / "configs/fragments").mkdir()
    for name, text in FRAGMENTS.items():
        (root / f"configs/fragments/{name}.config").write_text(text)
    shutil.copytree(fake_kernel_template / "patches", root / "patches")
    return root


@pytest.fixture
def context(project: Path, tmp_path: Path, fake_kernel: Path, fake_bin: Path) -> Context:
    """The project's context: cache in tmp_path/cache, source from the miniature tree, reports into StringIO."""
    env = {
        "HOME": str(tmp_path),
        "HARNESS_CACHE_DIR": str(tmp_path / "cache"),
        "HARNESS_KERNEL_SOURCE": str(fake_kernel),
        "HARNESS_JOBS": "2",
    }
    return Context(
        root=project, settings=resolve(project, {}, env), report=Reporter(out=io.StringIO(), err=io.StringIO())
    )


def said(context: Context) -> str:
    """Everything that a context's reporter was told."""
    assert isinstance(context.report.out, io.StringIO)
    assert isinstance(context.report.err, io.StringIO)
    return context.report.out.getvalue() + context.report.err.getvalue()
