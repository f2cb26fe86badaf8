"""From an architecture to its result: build what is needed, boot it, keep what it left in the run directory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from harness import proc
from harness.context import Context
from harness.data import Arch, Flavour
from harness.errors import ExitCode, HarnessError, UsageError
from harness.fs import atomic_write, write_json
from harness.guest import runner, vng
from harness.guest.accel import qemu_version
from harness.guest.init import Program
from harness.guest.ktap import Status
from harness.report import Stopwatch
from harness.results import junit, model, table
from harness.results.model import ArchResult, Problem
from harness.results.run import RunDirectory

BACKENDS = ("qemu", "vng")


def describe(context: Context, run: RunDirectory, *, flavour: Flavour, patched: bool, backend: str) -> None:
    """Record what is about to be tested, before anything can go wrong."""
    from harness.source.series import Series

    run.update(
        {
            "flavour": flavour.name,
            "patched": patched,
            "backend": backend,
            "pin": context.pin().version,
            "series": Series.load(context.patches).fingerprint if patched else None,
        }
    )


def test_arch(
    context: Context,
    arch: Arch,
    flavour: Flavour,
    run: RunDirectory,
    *,
    patched: bool = True,
    backend: str = "qemu",
    only: Sequence[str] = (),
    collection: str = "",
) -> ArchResult:
    """Build the kernel and the selftests of ``arch``, run them in one boot, return what came of it.

    An expected error becomes the result's ``problem``, so that another architecture can still be tested; an
    interruption and a defect do not.
    """
    watch = Stopwatch()
    stages: dict[str, float] = {}
    try:
        return _test_arch(context, arch, flavour, run, patched, backend, only, collection, stages, watch)
    except HarnessError as exc:
        log = run.path / arch.name / runner.CONSOLE_LOG
        return ArchResult(
            arch=arch.name,
            backend=backend,
            problem=Problem(exc.exit_code, exc.message, exc.hint, exc.detail),
            log=log if log.is_file() else None,
            seconds=watch.seconds,
            stages=stages,
        )


def _test_arch(
    context: Context,
    arch: Arch,
    flavour: Flavour,
    run: RunDirectory,
    patched: bool,
    backend: str,
    only: Sequence[str],
    collection: str,
    stages: dict[str, float],
    watch: Stopwatch,
) -> ArchResult:
    from harness.build import kernel as kernels
    from harness.build import selftests

    built = kernels.build(context, arch, flavour, patched=patched)
    stages["build"] = built.seconds
    tests = selftests.build_selftests(context, built, **({"collection": collection} if collection else {}))
    stages["selftests"] = tests.seconds
    directory = run.part(arch.name)
    shutil.copyfile(built.config, directory / "config")
    run.update(
        {
            "architectures": {
                arch.name: {
                    "kernel": {
                        "name": built.name,
                        "commit": built.commit,
                        "image": str(built.image),
                        "build_seconds": round(built.seconds, 1),
                        "cached": built.cached,
                    },
                    "selftests": {"programs": list(tests.programs), "commit": tests.commit},
                }
            }
        }
    )
    programs = [
        Program(name, tests.directory / name, timeout=tests.timeouts.get(name, 45.0) * flavour.timeout_factor)
        for name in chosen(tests.programs, only)
    ]
    result = boot_image(context, arch, built.image, programs, run, backend=backend, factor=flavour.timeout_factor)
    stages["guest"] = result.seconds
    return ArchResult(**{**vars(result), "stages": stages, "seconds": watch.seconds})


def chosen(programs: Sequence[str], only: Sequence[str]) -> list[str]:
    """The programs asked for, in their own order. Raises UsageError for one that there is not."""
    for name in only:
        if name not in programs:
            raise UsageError(f"there is no test program {name!r}", hint=f"known: {', '.join(programs)}")
    return [name for name in programs if not only or name in only]


def boot_image(
    context: Context,
    arch: Arch,
    image: Path,
    programs: Sequence[Program],
    run: RunDirectory,
    *,
    backend: str = "qemu",
    factor: float = 1.0,
    root: Path | None = None,
) -> ArchResult:
    """Boot ``image`` with ``programs`` by one of the backends and keep the record in the run directory."""
    directory = run.part(arch.name)
    if backend == "vng":
        boot = vng.test(context, arch, image, programs, directory, factor=factor)
    else:
        boot = runner.boot(context, arch, image, programs, directory, factor=factor, root=root)
    for name, lines in boot.verdict.outputs.items():
        atomic_write(directory / "ktap" / f"{name}.ktap", "\n".join([*lines, ""]))
    run.update(
        {
            "architectures": {
                arch.name: {
                    "accelerator": {"name": boot.accel.name, "reason": boot.accel.reason},
                    "argv": list(boot.argv),
                    "qemu": qemu_version(context.machine(arch.machine).qemu),
                    "kernel_banner": boot.verdict.banner,
                    "exit_code": int(boot.verdict.exit_code),
                    "guest_seconds": round(boot.seconds, 2),
                    "boot_seconds": None if boot.boot_seconds is None else round(boot.boot_seconds, 2),
                }
            }
        }
    )
    return ArchResult(
        arch=arch.name,
        backend=boot.backend,
        accel=boot.accel.name,
        accel_reason=boot.accel.reason,
        verdict=boot.verdict,
        log=boot.log,
        reproduce=directory / runner.REPRODUCE,
        seconds=boot.seconds,
        boot_seconds=boot.boot_seconds,
    )


def finish(
    context: Context,
    run: RunDirectory,
    results: Sequence[ArchResult],
    *,
    json_to: str | None = None,
    junit_to: Path | None = None,
    require_pass: bool = False,
) -> ExitCode:
    """Write results.json and junit.xml, print the table and what went wrong; returns the exit code.

    ``json_to`` is None, ``-`` (the JSON goes to stdout in place of the table) or a file.
    """
    code = model.worst([result.exit_code for result in results])
    if require_pass and code == ExitCode.OK and not all(map(passed_something, results)):
        context.report.error("nothing passed on at least one architecture, as --require-pass forbids")
        code = ExitCode.TESTS_FAILED
    value = model.as_json(results, run=str(run.path))
    value["exit_code"] = int(code)
    write_json(run.path / "results.json", value)
    text = junit.render(results)
    atomic_write(run.path / "junit.xml", text)
    if junit_to is not None:
        atomic_write(junit_to, text)
    run.update({"exit_code": int(code)})
    show(context, results, json_to=json_to, value=value)
    context.report.step(f"results: {run.path}")
    return code


def passed_something(result: ArchResult) -> bool:
    """Whether at least one test passed."""
    return result.verdict is not None and any(
        leaf.status == Status.PASSED for test in result.verdict.everything for leaf in test.leaves()
    )


def show(context: Context, results: Sequence[ArchResult], *, json_to: str | None, value: dict[str, object]) -> None:
    """The table on stdout, the reasons on stderr; with ``json_to`` ``-`` the JSON in place of the table."""
    for result in results:
        if result.problem is not None:
            context.report.error(f"{result.arch}: {result.problem.message}", result.problem.detail, result.problem.hint)
    if json_to == "-":
        context.report.result(json.dumps(value, indent=2, sort_keys=True))
    else:
        if json_to:
            write_json(Path(json_to), value)
        context.report.result(table.render(results))
        for result in results:
            context.report.result(table.summary(result))
    for result in results:
        text = table.details(result)
        if text:
            context.report.end_bar()
            print(text, file=context.report.err, flush=True)


def dry_run(
    context: Context, arch: Arch, flavour: Flavour, *, patched: bool, backend: str, selftests: bool = True
) -> None:
    """Print what a test of ``arch`` would run; nothing is built, booted or written."""
    from harness.build import kernel as kernels
    from harness.build import selftests as programs

    built = kernels.build(context, arch, flavour, patched=patched)
    if selftests:
        programs.build_selftests(context, built)
    if backend == "vng":
        argv = vng.argv(context, arch, built.image, script="SCRIPT", root=vng.root_path(context, arch))
    else:
        initrd = context.runs / "RUN" / arch.name / runner.INITRAMFS
        argv = runner.plan_argv(context, arch, built.image, initrd, accel="tcg", nonce="NONCE")
    context.report.result(proc.quoted(argv))
