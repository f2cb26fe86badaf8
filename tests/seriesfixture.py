"""A project with a series of its own on a miniature tree, made with git, for the tests of export and check."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from harness.context import Context
from harness.report import Reporter
from harness.settings import resolve
from harness.source.repo import KernelRepo

from .minikernel import compact

ROOT = Path(__file__).resolve().parent.parent
PROJECT = "Agent Latency Project <agent-latency@example.org>"

# Directories and files by which the scripts recognise the top of a kernel tree.
_TOP = {name: f"{name}\n" for name in ("COPYING", "CREDITS", "Kbuild", "README", ".mailmap")}

# Asks MAINTAINERS in the manner of the real one: the sections whose F: begins the path of a touched file.
GET_MAINTAINER = r"""#!/usr/bin/env perl
use strict; use warnings;
use open qw(:std :encoding(UTF-8));
die "not at the top of a tree\n" unless -f "MAINTAINERS" && -f "COPYING" && -d "kernel/sched" && -d "drivers/empty";
die "a configuration of the user\n" if -e "$ENV{HOME}/.get_maintainer.conf";
die "get_maintainer.pl: asked git\n" unless grep { $_ eq "--nogit" } @ARGV;
@ARGV = grep { !/^--/ } @ARGV;
my %files = map { $_ => 1 } grep { defined } map { m@^\+\+\+ b/(\S+)@ ? $1 : undef } <>;
open(my $m, "<", "MAINTAINERS") or die;
my (@people, $hit, $section, %out);
while (<$m>) {
	chomp;
	if (/^$/) { @out{@people} = (1) x @people if $hit; @people = (); $hit = 0; $section = undef; next; }
	$section //= $_;
	push @people, "$1 (maintainer:$section)" if /^M:\s+(.*)/;
	push @people, "$1 (reviewer:$section)" if /^R:\s+(.*)/;
	push @people, "$1 (open list:$section)" if /^L:\s+(.*)/;
	if (/^F:\s+(.*)/) { my $f = $1; $hit ||= grep { $f eq "*" || index($_, $f) == 0 } keys %files; }
}
@out{@people} = (1) x @people if $hit;
print "$_\n" for keys %out;    # in perl's random order
"""

# Finds what the real one would word the same way: lines over 100 columns, C99 comments, new files.
CHECKPATCH = r"""#!/usr/bin/env perl
use strict; use warnings;
die "not at the top of a tree\n" unless -f "MAINTAINERS";
die "a configuration of the user\n" if -e "$ENV{HOME}/.checkpatch.conf";
die "Must be run with --strict\n" unless grep { $_ eq "--strict" } @ARGV;
my $patch = pop @ARGV;
open(my $p, "<", $patch) or die "cannot open $patch\n";
my ($file, $line, $n, %count, $text) = ("", 0, 0);
sub say_ { my ($level, $type, $what) = @_; $count{$level}++;
	print "$level:$type: $what\n#$n: " . ($line ? "FILE: $file:$line:\n+x" : "") . "\n\n"; }
while (<$p>) {
	$n++; chomp;
	$file = $1 if m@^\+\+\+ b/(\S+)@;
	$line = $1 - 1 if /^\@\@ -\S+ \+(\d+)/;
	say_("WARNING", "FILE_PATH_CHANGES", "added, moved or deleted file(s)") if /^new file/;
	next if m@^(\+\+\+|---|diff|index)@ || !$line;
	$line++ if /^[ +]/;
	say_("ERROR", "C99_COMMENTS", "do not use C99 // comments") if m@^\+.*//@;
	say_("CHECK", "LONG_LINE", "line length exceeds 100 columns") if /^\+.{101}/;
	die "checkpatch.pl dies of this\n" if /^\+.*DIE/;
}
$count{$_} //= 0 for qw(ERROR WARNING CHECK);
print "total: $count{ERROR} errors, $count{WARNING} warnings, $count{CHECK} checks, $n lines checked\n";
exit($count{ERROR} + $count{WARNING} ? 1 : 0);
"""

MAINTAINERS = """\
List of maintainers

SCHEDULER
M:	Zoë Planner <zoe@kernel.test>
M:	Amos P. Slice <amos@kernel.test>
R:	Ren Reader <ren@kernel.test>
L:	linux-kernel@vger.kernel.org
F:	kernel/sched

INTERFACE
M:	Ina Face <ina@kernel.test>
R:	Zoë Planner <zoe@kernel.test>
L:	linux-api@vger.kernel.org
F:	include/uapi

THE REST
L:	linux-kernel@vger.kernel.org
F:	*
"""


def run(directory: Path, *argv: str, env: dict[str, str] | None = None) -> str:
    """A command that has to work; its stdout."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    isolated = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        argv, cwd=directory, env={**clean, **isolated, **(env or {})}, capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0, (argv, done.stdout, done.stderr)
    return done.stdout.decode()


@dataclass
class Project:
    """A project below ``root`` whose pinned base is the miniature ``tree``."""

    root: Path
    tree: Path
    cache: Path
    out: io.StringIO
    err: io.StringIO

    def context(self, **flags: object) -> Context:
        """A context whose reporter writes into ``out`` and ``err``."""
        settings = resolve(self.root, {"cache_dir": str(self.cache), "jobs": 2, **flags}, env={"HOME": str(self.cache)})
        return Context(self.root, settings, Reporter(out=self.out, err=self.err, color="never"))

    def import_base(self, **flags: object) -> Context:
        """The context, its source being the base: a clone that stands at it."""
        pristine = self.root.with_name("pristine")
        if not pristine.exists():
            run(self.root, "git", "clone", "-q", "--template=", "--bare", str(self.tree), str(pristine))
            run(pristine, "git", "update-ref", "--no-deref", "HEAD", "base^{commit}")
        return self.context(**{"kernel_source": str(pristine), **flags})

    def settle(self) -> Project:
        """Import the base, and pack the repositories: what is copied for each test is few files."""
        KernelRepo(self.import_base()).ensure_base()
        for repository in (self.tree, self.root.with_name("pristine"), self.cache / "linux.git"):
            compact(repository)
        return self

    def copy(self, directory: Path) -> Project:
        """The same below another directory; nothing in it knows where it is."""
        shutil.copytree(self.root.parent, directory, symlinks=True)
        names = (self.root.name, self.tree.name, self.cache.name)
        return Project(*(directory / name for name in names), io.StringIO(), io.StringIO())

    def commit(self, message: str, files: dict[str, str], *, author: str = PROJECT, date: str = "") -> str:
        """Commit ``files`` in the tree on top of the last commit."""
        for name, text in files.items():
            path = self.tree / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        name, _, email = author.partition(" <")
        count = int(run(self.tree, "git", "rev-list", "--count", "--all"))
        stamp = date or f"2026-03-{count + 1:02d} 10:00:00 +0100"
        env = {
            "GIT_AUTHOR_NAME": name,
            "GIT_AUTHOR_EMAIL": email.rstrip(">"),
            "GIT_AUTHOR_DATE": stamp,
            "GIT_COMMITTER_NAME": name,
            "GIT_COMMITTER_EMAIL": email.rstrip(">"),
            "GIT_COMMITTER_DATE": stamp,
        }
        run(self.tree, "git", "add", "-A", env=env)
        run(self.tree, "git", "commit", "-q", "--no-verify", "-m", message, env=env)
        return run(self.tree, "git", "rev-parse", "HEAD").strip()

    def store(self) -> list[str]:
        """Write what is committed on top of the base to patches/; returns the names."""
        patches = self.root / "patches"
        for old in patches.glob("*.patch"):
            old.unlink()
        options = ("--zero-commit", "--full-index", "--no-signature", "--no-numbered", "-q", "-o", str(patches))
        run(self.tree, "git", "format-patch", *options, "base..HEAD")
        names = sorted(p.name for p in patches.glob("*.patch"))
        (patches / "series").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
        return names


def make(directory: Path, fake_kernel: bool = False) -> Project:
    """A project with the data files of the real one, no patch, and a base; ``fake_kernel``: one that builds."""
    root, tree, cache = directory / "project", directory / "tree", directory / "cache"
    cache.mkdir(parents=True)
    shutil.copytree(ROOT / "configs", root / "configs")
    shutil.copytree(ROOT / "qemu", root / "qemu")
    (root / "patches").mkdir()
    (root / "patches" / "cover-letter.md").write_text(
        "# sched: Eine Übersicht of the series\n\nWhy it exists.\n\nHow it does it: ünicode.\n", encoding="utf-8"
    )
    if fake_kernel:
        shutil.copytree(ROOT / "tests" / "fakekernel", tree)
    else:
        tree.mkdir()
        version = "VERSION = 6\nPATCHLEVEL = 18\nSUBLEVEL = 15\nEXTRAVERSION =\n"
        (tree / "Makefile").write_text(version, encoding="utf-8")
    run(tree, "git", "init", "-q", "--template=", "--initial-branch=main")
    project = Project(root, tree, cache, io.StringIO(), io.StringIO())
    scripts = {"scripts/get_maintainer.pl": GET_MAINTAINER, "scripts/checkpatch.pl": CHECKPATCH}
    project.commit(
        "base",
        {
            **_TOP,
            **scripts,
            "MAINTAINERS": MAINTAINERS,
            "kernel/sched/core.c": "".join(f"int line{n};\n" for n in range(40)),
            "include/uapi/linux/prctl.h": "#define PR_ONE 1\n",
            "drivers/empty/x.c": "int x;\n",
        },
    )
    run(tree, "git", "tag", "base")
    return project
