"""What a make log says went wrong."""

from __future__ import annotations

import pytest

from harness.build import log

COMPILER = """\
  CC      kernel/sched/core.o
  CC      kernel/fork.o
In file included from ../../src/include/linux/sched.h:49,
                 from /c/src/kernel/sched/fair.c:23:
../../src/include/linux/agent_latency.h: In function 'agent_window_open':
../../src/include/linux/agent_latency.h:31:16: error: 'struct task_struct' has no member named 'agnet'
   31 |         return p->agnet.expires;
      |                ^~~~~~~~
/c/src/kernel/sched/fair.c:8000:1: error: control reaches end of non-void function [-Werror=return-type]
 8000 | }
      | ^
cc1: some warnings being treated as errors
make[4]: *** [/c/src/scripts/Makefile.build:287: kernel/sched/fair.o] Error 1
  CC      lib/string.o
/c/src/lib/string.c:1:1: error: another one
make[3]: *** [/c/src/scripts/Makefile.build:556: kernel/sched] Error 2
make: *** [/c/src/Makefile:248: __sub-make] Error 2
"""
ROOTS = ["/c/src", "/c/build/x", "../../src"]


def first(text: str) -> log.Failure:
    failure = log.first_failure(text, ROOTS)
    assert failure is not None
    assert 1 <= len(failure.lines) <= log.MAX_LINES
    return failure


def test_compiler_error_with_what_leads_to_it() -> None:
    failure = first(COMPILER)
    assert failure.kind == "compiler"
    assert (failure.file, failure.line, failure.column) == ("include/linux/agent_latency.h", 31, 16)
    assert failure.summary.startswith("include/linux/agent_latency.h:31:16: error: 'struct task_struct' has no")
    assert failure.errors == 3
    assert failure.lines[0] == "In file included from include/linux/sched.h:49,"
    assert failure.lines[-1] == "cc1: some warnings being treated as errors"
    assert not any("make" in line or "/c/" in line for line in failure.lines)


def test_two_thousand_lines_become_twenty() -> None:
    text = "".join(f"/c/src/a.c:{n}:1: error: no\n  {n} | x\n" for n in range(1, 1001))
    failure = first(text)
    assert (failure.line, failure.errors, len(failure.lines)) == (1, 1000, log.MAX_LINES)


@pytest.mark.parametrize(
    ("text", "kind", "file", "summary"),
    [
        (
            "  LD      .tmp_vmlinux1\nld: vmlinux.o: in function `select_task_rq_fair':\n"
            "fair.c:(.text+0x1f): undefined reference to `agent_home_cpu'\n"
            "make[2]: *** [/c/src/scripts/Makefile.vmlinux:91: vmlinux] Error 1\n",
            "linker",
            "fair.c",
            "fair.c:(.text+0x1f): undefined reference to `agent_home_cpu'",
        ),
        (
            "aarch64-linux-gnu-ld: kernel/a.o:kernel/a.c:3: multiple definition of `x'; kernel/b.o:b.c:1: first\n",
            "linker",
            "kernel/a.o",
            "aarch64-linux-gnu-ld: kernel/a.o:kernel/a.c:3: multiple definition of `x'; kernel/b.o:b.c:1: first",
        ),
        ("/usr/bin/ld: cannot find -lc\ncollect2: error: ld returned 1 exit status\n", "linker", "", "cannot find -lc"),
        (
            "make[3]: *** No rule to make target 'kernel/agent.o', needed by 'kernel/built-in.a'.  Stop.\n",
            "make",
            "",
            "No rule to make target 'kernel/agent.o', needed by 'kernel/built-in.a'",
        ),
        (
            'init/Kconfig:12: syntax error\ninit/Kconfig:11: unknown statement "bogus"\n'
            "make[2]: *** [/c/src/scripts/kconfig/Makefile:85: allnoconfig] Error 1\n",
            "kconfig",
            "init/Kconfig",
            "init/Kconfig:12: syntax error",
        ),
        (
            "init/Kconfig:5:error: recursive dependency detected!\ninit/Kconfig:5:\tsymbol A depends on B\n",
            "kconfig",
            "init/Kconfig",
            "init/Kconfig:5:error: recursive dependency detected!",
        ),
        (
            "/c/src/arch/x86/entry/entry_64.S: Assembler messages:\n"
            "/c/src/arch/x86/entry/entry_64.S:99: Error: no such instruction: `mvo'\n",
            "compiler",
            "arch/x86/entry/entry_64.S",
            "no such instruction",
        ),
        (
            "kernel/a.c:1:10: fatal error: linux/nowhere.h: No such file or directory\ncompilation terminated.\n",
            "compiler",
            "kernel/a.c",
            "linux/nowhere.h",
        ),
        ("ERROR: modpost: vmlinux: 'x' exported twice\n", "check", "", "exported twice"),
        ("vmlinux.o: error: objtool: f+0x1: unreachable\n", "check", "", "objtool"),
        (
            "/bin/sh: 1: flex: not found\nmake[2]: *** [/c/src/scripts/Makefile.host:9: x.lex.c] Error 127\n",
            "tool",
            "",
            "flex is not installed",
        ),
        ("make[2]: aarch64-linux-gnu-gcc: No such file or directory\n", "tool", "", "aarch64-linux-gnu-gcc is not"),
        (
            "kernel/a.c:9:1: fatal error: error writing to /tmp/cc.s: No space left on device\n",
            "disk",
            "",
            "no space left",
        ),
        ("gcc: fatal error: Killed signal terminated program cc1\n", "memory", "", "out of memory"),
        (
            "  GEN     x\nsomething odd happened\nmake[1]: *** [/c/src/x/Makefile:3: x] Error 7\n",
            "other",
            "",
            "x: something odd happened",
        ),
        ("***\n*** The source tree is not clean, please run 'make mrproper'\n***\n", "make", "", "not clean"),
    ],
)
def test_kinds(text: str, kind: str, file: str, summary: str) -> None:
    failure = first(f"  CC      a.o\n{text}")
    assert failure.kind == kind
    assert failure.file == file
    assert summary in failure.summary


def test_full_disk_goes_before_the_compiler_errors_it_causes() -> None:
    failure = first(COMPILER + "/c/src/x.c:1:1: fatal error: error writing to a.o: No space left on device\n")
    assert failure.kind == "disk"


def test_earliest_source_error_wins() -> None:
    assert first(f"ld: a.o: undefined reference to `x'\n{COMPILER}").kind == "linker"


def test_nothing_known() -> None:
    assert log.first_failure("") is None
    assert log.first_failure("  CC      a.o\nkernel/a.c:3:5: warning: odd\nld: warning: x has RWX\n") is None


@pytest.mark.parametrize(
    ("line", "counts"),
    [
        ("  CC      kernel/fork.o", True),
        ("  AS      arch/x86/entry/entry_64.o", True),
        ("  HOSTCC  scripts/basic/fixdep", False),
        ("  AR      kernel/built-in.a", False),
        ("CC", False),
    ],
)
def test_compiled_files_are_counted(line: str, counts: bool) -> None:
    assert log.compiled(line) is counts
