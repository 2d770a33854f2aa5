"""Every error that probe raises on purpose, with the exit code that the command line gives for it.

A defect that was looked for and found is data (`Outcome.FAIL`), never an exception. Anything that is not a
`ProbeError` is a bug in probe and keeps its traceback.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from harness.record import ToolRun

EXIT_CLEAN = 0
EXIT_DEFECT = 1
EXIT_USAGE = 2
EXIT_INTERNAL = 70  # a bug in probe, with its traceback: 1 would say that a defect was found in the model
EXIT_UNDECIDED = 125  # what `git bisect run` skips
EXIT_INTERRUPTED = 130


class ProbeError(Exception):
    """Something the user can act on: the message says what, where, expected, got; `hint` says what to type next."""

    exit_code = EXIT_UNDECIDED

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(ProbeError):
    """What the user gave does not fit: a missing file, an input of the wrong shape, options that exclude each other."""

    exit_code = EXIT_USAGE


class DependencyMissing(ProbeError):
    """A Python package is not installed (or does not load)."""

    exit_code = EXIT_USAGE

    def __init__(self, package: str, purpose: str, install: str, detail: str = "") -> None:
        because = f" ({detail})" if detail else ""
        super().__init__(f"{package} is needed {purpose}, and cannot be imported{because}", hint=install)
        self.package = package


class ToolMissing(ProbeError):
    """A program is not on PATH, or is there and cannot be started."""

    exit_code = EXIT_USAGE

    def __init__(self, name: str, purpose: str, install: str, detail: str = "is not on PATH") -> None:
        super().__init__(f"{name} is needed {purpose}, and {detail}", hint=install)
        self.name = name


class ToolFailed(ProbeError):
    """A program ran and failed; `run` holds its exit status and where its output lies."""

    def __init__(self, message: str, run: ToolRun, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.run = run


class ToolTimeout(ToolFailed):
    """A program was stopped, with all its children, because its time was up."""


class ArtifactMissing(ProbeError):
    """A tool ended without writing the file that it was asked for."""


class ParseError(ProbeError):
    """A file is not what it should be: says which file, which field or line, what was expected and what stood there."""

    exit_code = EXIT_USAGE

    def __init__(self, path: Path | str, field: str, expected: str, got: Any, *, hint: str | None = None) -> None:
        super().__init__(f"{path}: {field}: expected {expected}, got {got}", hint=hint)
        self.path, self.field, self.expected, self.got = path, field, expected, got


class BuildFailed(ProbeError):
    """An engine or a kernel did not build."""


class LaunchFailed(ProbeError):
    """A CUDA call returned an error: says which call, where, and the status."""

    def __init__(self, call: str, file: str, line: int, status: str) -> None:
        super().__init__(f"{f'{file}:{line}: ' if line else ''}{call} returned {status}")  # line 0: none that says more
        self.call, self.file, self.line, self.status = call, file, line, status


class SearchStopped(ProbeError):
    """A search ended early (interrupt, budget, time); `best` is the best answer so far."""

    def __init__(self, message: str, best: Any, *, hint: str | None = None, interrupted: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.best = best
        self.exit_code = EXIT_INTERRUPTED if interrupted else EXIT_UNDECIDED
