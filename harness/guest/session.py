"""From an architecture to its result: build what is needed, boot it, keep what it left in the run directory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from harness import proc
from harness.context import Context
from harness.data import Arch, Flavour, Guest
from harness.errors import ExitCode, HarnessError, UsageError
from harness.fs import atomic_write, deliver, json_text, write_json
from harness.guest import runner, verdict, vng
from harness.guest.init import Program
from harness.guest.ktap import Status
from harness.report import Stopwatch
from harness.results import compare, junit, model, table
from harness.results.model import ArchResult, Problem
from harness.results.run import RunDirectory

if TYPE_CHECKING:
    from harness.build.kernel import KernelBuild
    from harness.build.selftests import SelftestBuild

BACKENDS = ("qemu", "vng")


def describe(
    context: Context, run: RunDirectory, *, flavour: Flavour, patched: bool, backend: str, tests: str = "series"
) -> None:
    """Record what is about to be tested, before anything can go wrong."""
    from harness.source.series import Series

    run.update(
        {
            "flavour": flavour.name,
            "patched": patched,
            "backend": backend,
            "tests": tests,
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
    guests: Sequence[Guest | None] = (None,),
) -> list[ArchResult]:
    """Build the kernel and the selftests of ``arch``, run them in one boot for each guest, return what came of it.

    None among the ``guests`` is the plain one, which has the programs that none of the others has. A guest without a
    program to run is not booted, unless it is the only one and all programs were asked for.

    Tests of a guest that keeps the host's time can fail because the host had no time: those run again in the guest that
    settles it, if there is one.

    An expected error becomes the result's ``problem``, so that another architecture can still be tested; an
    interruption and a defect do not.
    """
    results: list[ArchResult] = []
    built: Built | None = None
    for guest in guests:
        watch = Stopwatch()
        stages: dict[str, float] = {}
        label = label_of(arch, guest)
        try:
            if built is None:
                built = _build(context, arch, flavour, patched, collection, stages)
            programs = programs_of(built.tests.programs, guest, guests, only)
            if not programs and (only or len(guests) > 1):
                continue
            suites = suites_of(flavour, guest) if patched and not only else ()
            result = _test_guest(context, arch, guest, flavour, run, built, programs, backend, suites)
            stages["guest"] = result.seconds
            result = replace(result, stages=stages, seconds=watch.seconds)
            results += _settled(context, arch, guest, flavour, run, built, result)
        except HarnessError as exc:
            failed = without_verdict(run, label, exc)
            results.append(replace(failed, backend=backend, stages=stages, seconds=watch.seconds))
            if built is None:
                break
    return results


def _settled(
    context: Context,
    arch: Arch,
    guest: Guest | None,
    flavour: Flavour,
    run: RunDirectory,
    built: Built,
    result: ArchResult,
) -> list[ArchResult]:
    """``result``, and what the guest that settles it said of its failures."""
    name = guest.name if guest else "plain"
    judge = next((other for other in context.guests() if other.settles == name), None)
    if judge is None or result.verdict is None:
        return [result]
    names = verdict.to_settle(result.verdict, judge.programs)
    if not names:
        return [result]
    label = label_of(arch, judge)
    context.report.step(f"{result.arch}: {', '.join(names)} failed: once more in {label}, where no host is too slow")
    watch = Stopwatch()
    try:
        second = _test_guest(context, arch, judge, flavour, run, built, names, "qemu")
    except HarnessError as exc:
        return [result, replace(without_verdict(run, label, exc), seconds=watch.seconds)]
    second = replace(second, stages={"guest": second.seconds}, seconds=watch.seconds)
    if second.verdict is None:
        return [result, second]
    return [replace(result, verdict=verdict.settle(result.verdict, second.verdict, label)), second]


def without_verdict(run: RunDirectory, label: str, error: HarnessError) -> ArchResult:
    """The result of a boot that an expected error has ended."""
    log = run.path / label / runner.CONSOLE_LOG
    problem = Problem(error.exit_code, error.message, error.hint, error.detail)
    return ArchResult(arch=label, problem=problem, log=log if log.is_file() else None)


def label_of(arch: Arch, guest: Guest | None) -> str:
    """What a boot is called in tables and run directories."""
    return f"{arch.name}-{guest.name}" if guest else arch.name


def programs_of(
    known: Sequence[str], guest: Guest | None, guests: Sequence[Guest | None], only: Sequence[str]
) -> list[str]:
    """The programs of one of the ``guests``, limited to ``only``. Raises UsageError when that names an unknown one."""
    wanted = chosen(known, only)
    if guest:
        return [name for name in wanted if name in guest.programs]
    elsewhere = {name for other in guests if other for name in other.programs}
    return [name for name in wanted if name not in elsewhere]


def check_guests(guests: Sequence[Guest | None], only: Sequence[str]) -> None:
    """Raise UsageError when ``only`` names a program that runs in none of the ``guests``."""
    named = [guest for guest in guests if guest]
    if len(named) < len(guests):
        return  # the plain one runs what none of the others has
    for name in only:
        if not any(name in guest.programs for guest in named):
            where = f"guest{'s' if len(named) > 1 else ''} {' and '.join(guest.name for guest in named)}"
            raise UsageError(
                f"{name} does not run in {where}",
                hint=f"leave --guest out, or name programs of: {' '.join(_programs_in(named))}",
            )


def _programs_in(guests: Sequence[Guest]) -> list[str]:
    return sorted({name for guest in guests for name in guest.programs})


def suites_of(flavour: Flavour, guest: Guest | None) -> tuple[str, ...]:
    """The KUnit suites that have to report in a guest with the series: none where the command line keeps them off."""
    words = guest.cmdline.split() if guest else []
    return () if {"kunit.autorun=0", "kunit.enable=0"} & set(words) else flavour.kunit


@dataclass(frozen=True)
class Built:
    """What the guests of an architecture boot and run."""

    kernel: KernelBuild
    tests: SelftestBuild


def _build(
    context: Context, arch: Arch, flavour: Flavour, patched: bool, collection: str, stages: dict[str, float]
) -> Built:
    from harness.build import kernel as kernels
    from harness.build import selftests

    kernel = kernels.build_to_boot(context, arch, flavour, patched=patched)
    stages["build"] = kernel.seconds
    tests = selftests.build_selftests(context, kernel, **({"collection": collection} if collection else {}))
    stages["selftests"] = tests.seconds
    return Built(kernel, tests)


def _test_guest(
    context: Context,
    arch: Arch,
    guest: Guest | None,
    flavour: Flavour,
    run: RunDirectory,
    build: Built,
    names: Sequence[str],
    backend: str,
    suites: Sequence[str] = (),
) -> ArchResult:
    built, tests = build.kernel, build.tests
    label = label_of(arch, guest)
    shutil.copyfile(built.config, run.part(label) / "config")
    describe_kernel(run, label, built, {"programs": list(tests.programs), "commit": tests.commit})
    programs = [program_of(tests, name, flavour) for name in names]
    return boot_image(
        context,
        arch,
        built.image,
        programs,
        run,
        backend=backend,
        factor=flavour.timeout_factor * (guest.timeout_factor if guest else 1.0),
        guest=guest,
        suites=suites,
    )


def program_of(tests: SelftestBuild, name: str, flavour: Flavour) -> Program:
    """The selftest ``name`` as a program of the guest, with the deadline that it has in a kernel of ``flavour``."""
    return Program(name, tests.directory / name, timeout=tests.timeouts.get(name, 45.0) * flavour.timeout_factor)


def describe_kernel(run: RunDirectory, label: str, kernel: KernelBuild, selftests: Mapping[str, object]) -> None:
    """Record what a boot is going to run."""
    run.update(
        {
            "architectures": {
                label: {
                    "kernel": {
                        "name": kernel.name,
                        "commit": kernel.commit,
                        "image": str(kernel.image),
                        "build_seconds": round(kernel.seconds, 1),
                        "cached": kernel.cached,
                    },
                    "selftests": selftests,
                }
            }
        }
    )


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
    guest: Guest | None = None,
    least: float = 0.0,
    provoked: Mapping[str, str] | None = None,
    files: Mapping[str, Path] | None = None,
    suites: Sequence[str] = (),
) -> ArchResult:
    """Boot ``image`` with ``programs`` by one of the backends and keep the record in the run directory.

    ``least``, ``provoked`` and ``suites`` are those of :func:`harness.guest.runner.boot`, ``files`` those of
    :func:`harness.guest.vng.test`.
    """
    label = label_of(arch, guest)
    directory = run.part(label)
    words = guest.cmdline.split() if guest else []
    arch = guest.on(arch) if guest else arch

    def by_qemu(directory: Path) -> runner.Boot:
        return runner.boot(
            context,
            arch,
            image,
            programs,
            directory,
            factor=factor,
            root=root,
            cmdline=words,
            least=least,
            provoked=provoked,
            suites=suites,
        )

    if backend == "vng":
        boot = vng.test(
            context,
            arch,
            image,
            programs,
            directory,
            factor=factor,
            root=root,
            files=files,
            least=least,
            suites=suites,
        )
    else:
        boot = by_qemu(directory)
        if emulator_fault(boot):
            context.report.step(f"{label}: the emulator ran code that had been replaced ({boot.log}): once more")
            why = f"a first boot ended in code that the emulator should not have run any more, see {boot.log}"
            run.update({"architectures": {label: {"spoilt": {"log": str(boot.log), "seconds": boot.seconds}}}})
            directory = run.part(f"{label}-again")
            again = by_qemu(directory)
            notes = (*again.verdict.notes, why)
            boot = replace(again, seconds=boot.seconds + again.seconds, verdict=replace(again.verdict, notes=notes))
    for name, lines in boot.verdict.outputs.items():
        atomic_write(directory / "ktap" / f"{name}.ktap", "\n".join([*lines, ""]))
    run.update(
        {
            "architectures": {
                label: {
                    "accelerator": {"name": boot.accel.name, "reason": boot.accel.reason},
                    "argv": list(boot.argv),
                    "qemu": boot.qemu,
                    "kernel_banner": boot.verdict.banner,
                    "exit_code": int(boot.verdict.exit_code),
                    "guest_seconds": round(boot.seconds, 2),
                    "boot_seconds": None if boot.boot_seconds is None else round(boot.boot_seconds, 2),
                }
            }
        }
    )
    return ArchResult(
        arch=label,
        backend=boot.backend,
        accel=boot.accel.name,
        accel_reason=boot.accel.reason,
        verdict=boot.verdict,
        log=boot.log,
        reproduce=directory / runner.REPRODUCE,
        seconds=boot.seconds,
        boot_seconds=boot.boot_seconds,
    )


def emulator_fault(boot: runner.Boot) -> bool:
    """Whether the boot says nothing about the kernel: see :func:`harness.guest.verdict.stale_code`.

    With KVM there is nothing translated, and vCPUs whose instructions are counted take turns.
    """
    return boot.accel.name == "tcg" and "-icount" not in boot.argv and verdict.stale_code(boot.verdict)


def finish(
    context: Context,
    run: RunDirectory,
    results: Sequence[ArchResult],
    *,
    json_to: str | None = None,
    junit_to: Path | None = None,
    require_pass: bool = False,
    against: compare.Outcomes | None = None,
) -> ExitCode:
    """Write results.json and junit.xml, print the table and what went wrong; returns the exit code.

    ``json_to`` is None, ``-`` (the JSON goes to stdout in place of the table) or a file. With ``against`` (what an
    earlier run gave) tests fail the run only if they passed there, or are of a program that was not there. Raises
    UsageError, once everything is written, when the two have no program in common. Without any results nothing passed.
    """
    code = model.worst([result.exit_code for result in results]) if results else ExitCode.TESTS_FAILED
    lost: list[compare.Change] = []
    added: list[compare.Change] = []
    comparable = True
    if against is not None:
        now = compare.outcomes(model.as_json(results))
        # A run that came to no test has a reason of its own, which is worth more.
        comparable = bool(compare.common(against, now)) or (not now and code != ExitCode.OK)
    if against is not None and comparable and results:
        lost, added = compare.regressions(against, now), compare.additions(against, now)
        codes = [result.exit_code for result in results if result.exit_code != ExitCode.TESTS_FAILED]
        code = model.worst([*codes, *([ExitCode.TESTS_FAILED] if lost or added else [])])
    if require_pass and code == ExitCode.OK and not all(map(passed_something, results)):
        context.report.error("nothing passed on at least one architecture, as --require-pass forbids")
        code = ExitCode.TESTS_FAILED
    value = model.as_json(results, run=str(run.path))
    value["exit_code"] = int(code)
    if against is not None:
        value["regressions"] = [change.as_json() for change in lost]
        value["additions"] = [change.as_json() for change in added]
    write_json(run.path / "results.json", value)
    text = junit.render(results)
    atomic_write(run.path / "junit.xml", text)
    run.update({"exit_code": int(code)})
    show(context, results, json_to=json_to, value=value)
    if against is not None and comparable and json_to != "-":
        context.report.result(compare.render(against, now, lost, added))
    if junit_to is not None:
        deliver(junit_to, text)
    context.report.step(f"results: {run.path}")
    if not comparable:
        raise UsageError(
            "the earlier run has no test program of this one",
            hint="--against takes a run of the same architectures, guests and programs",
        )
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
        context.report.result(table.render(results))
        for result in results:
            context.report.result(table.summary(result))
    for result in results:
        text = table.details(result)
        if text:
            context.report.detail(text)
    if json_to and json_to != "-":
        deliver(Path(json_to), json_text(value))


def dry_run(
    context: Context,
    arch: Arch,
    flavour: Flavour,
    *,
    patched: bool,
    backend: str,
    selftests: bool = True,
    guests: Sequence[Guest | None] = (None,),
) -> None:
    """Print what a test of ``arch`` would run; nothing is built, booted or written."""
    from harness.build import kernel as kernels
    from harness.build import selftests as programs

    built = kernels.build_to_boot(context, arch, flavour, patched=patched)
    if selftests:
        programs.build_selftests(context, built)
    for guest in guests:
        if backend == "vng":
            argv = vng.argv(context, arch, built.image, script="SCRIPT", root=vng.root_path(context, arch))
            context.report.result(proc.quoted(argv))
        else:
            plan_boot(context, arch, built.image, guest)


def plan_boot(context: Context, arch: Arch, image: Path, guest: Guest | None) -> None:
    """Print the command line that boots a guest with QEMU."""
    initrd = context.runs / "RUN" / label_of(arch, guest) / runner.INITRAMFS
    on, words = (guest.on(arch), guest.cmdline.split()) if guest else (arch, [])
    argv = runner.plan_argv(context, on, image, initrd, accel="tcg", nonce="NONCE", extra=words)
    context.report.result(proc.quoted(argv))
