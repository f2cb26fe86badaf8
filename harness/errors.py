"""The errors a user can meet, each with the exit code that a script can tell it by.

A :class:`HarnessError` is printed as one line, followed by the next thing to do. Anything else that escapes a verb is a
defect of the harness and shows its traceback.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of every verb, from ``apply`` to ``test``."""

    OK = 0
    TESTS_FAILED = 1
    USAGE = 2
    ENVIRONMENT = 3
    APPLY = 4
    CONFIG = 5
    BUILD = 6
    GUEST_CRASH = 7
    TIMEOUT = 8
    INTERRUPTED = 130


class HarnessError(Exception):
    """Base of all expected failures.

    ``message`` says what is wrong, in one line; ``hint`` is the next thing to do; ``detail`` may hold more lines (a
    compiler's message, a rejected hunk, a splat) that are printed between the two.
    """

    exit_code = ExitCode.ENVIRONMENT

    def __init__(self, message: str, *, hint: str = "", detail: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.detail = detail


class TestsFailedError(HarnessError):
    """Tests ran, and at least one failed or never reported."""

    __test__ = False  # not a test class, whatever its name begins with
    exit_code = ExitCode.TESTS_FAILED


class UsageError(HarnessError):
    """The command line or a file of the user is wrong."""

    exit_code = ExitCode.USAGE


class EnvironmentFailure(HarnessError):
    """The machine lacks something: a tool, space, a source that can be reached."""

    exit_code = ExitCode.ENVIRONMENT


class ApplyError(HarnessError):
    """The series does not fit the tree it is applied to."""

    exit_code = ExitCode.APPLY


class ConfigMismatch(HarnessError):
    """A requested Kconfig symbol did not take effect."""

    exit_code = ExitCode.CONFIG


class BuildError(HarnessError):
    """A compiler, the kernel's build system or a patch check refused."""

    exit_code = ExitCode.BUILD


class GuestCrash(HarnessError):
    """The guest kernel panicked, reported a splat or rebooted."""

    exit_code = ExitCode.GUEST_CRASH


class StageTimeout(HarnessError):
    """A stage passed its deadline, or the virtual machine was lost."""

    exit_code = ExitCode.TIMEOUT
