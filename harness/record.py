"""What is kept of a run: commands, tool runs, outcomes, and the session folder on disk."""

from __future__ import annotations

import enum
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.errors import ArtifactMissing, ParseError, UsageError

SCHEMA_VERSION = 1
NOT_FINITE = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}  # JSON has no number for these


class Outcome(enum.StrEnum):
    """The three answers to every question; a time-out or a failed build is UNRESOLVED unless that is searched for."""

    PASS = "pass"
    FAIL = "fail"
    UNRESOLVED = "unresolved"


@dataclass(frozen=True)
class Answer:
    """One evaluation: the outcome, the number behind it where there is one, and its identity as a failure."""

    outcome: Outcome
    value: float | None = None  # what the verdict compared (relative L2 error, for instance); inf for NaN/Inf
    signature: str | None = None  # which failure it was, so that a search never slides onto another bug


@dataclass(frozen=True)
class Command:
    """A program to run: an argument list, never a shell string."""

    argv: tuple[str, ...]
    timeout_s: float | None = None
    environment: Mapping[str, str] = field(default_factory=dict)  # added to probe's own
    cwd: Path | None = None


@dataclass(frozen=True)
class ToolRun:
    """How a program ended. `returncode` is None if it was stopped by us; `signal` is set if a signal ended it."""

    command: Command
    returncode: int | None
    signal: int | None
    timed_out: bool
    duration_s: float
    stdout: Path
    stderr: Path

    @property
    def ok(self) -> bool:
        return self.returncode == 0


def to_json(content: Any, indent: int | None = None) -> str:
    """JSON that every parser takes: a number that is not finite is written as the text `Infinity`, `-Infinity`, `NaN`."""
    return json.dumps(_finite(content), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def number(value: Any) -> Any:
    """A field that holds a number, as `to_json` wrote it, read back; anything else as it is."""
    return NOT_FINITE.get(value, value) if isinstance(value, str) else value


def restored(value: Any) -> Any:
    """All that `to_json` wrote, read back: every number in it as it was."""
    if isinstance(value, Mapping):
        return {key: restored(item) for key, item in value.items()}
    return [restored(item) for item in value] if isinstance(value, list) else number(value)


class Session:
    """The folder of one run: manifest.json, raw/, steps.jsonl, result.json, report.html.

    Every file but steps.jsonl is written whole or not at all; steps.jsonl is appended and flushed step by step, and a
    torn last line (kill -9, full disk) is dropped on reading, so that nothing already computed is lost.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def create(cls, verb: str, out: Path | None = None, *, now: datetime | None = None) -> Session:
        """Make `probe-runs/<UTC time>-<verb>/`, or `out`; a folder that already holds a session is refused."""
        if out is not None:
            if (out / "manifest.json").exists():
                raise UsageError(f"{out} already holds a session", hint=f"--resume {out}, or another --out")
            folder = out
        else:
            stamp = (now or datetime.now(UTC)).strftime("%Y%m%dT%H%M%S.%fZ")
            folder = Path("probe-runs") / f"{stamp}-{verb}"
        try:
            (folder / "raw").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"{folder} cannot be made: {error.strerror}", hint="--out FOLDER, on a disk you own"
            ) from error
        return cls(folder)

    @classmethod
    def open(cls, folder: Path) -> Session:
        if not (folder / "manifest.json").is_file():
            raise UsageError(f"{folder} holds no manifest.json, so it is no session folder", hint="ls probe-runs")
        return cls(folder)

    @property
    def raw(self) -> Path:
        return self.folder / "raw"

    def write_json(self, name: str, content: Mapping[str, Any]) -> Path:
        """Write a JSON file whole: to a neighbour first, then renamed over it. Numbers are as in `to_json`."""
        path = self.folder / name
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            part.write_text(to_json(content, indent=2) + "\n", encoding="utf-8")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)  # still there only if writing failed
        return path

    def read_json(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ArtifactMissing(f"{path} does not exist") from error
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ParseError(path, "content", "JSON", str(error)) from error
        if not isinstance(content, dict):
            raise ParseError(path, "content", "a JSON object", type(content).__name__)
        return content

    def append_step(self, step: Mapping[str, Any]) -> None:
        """Append one row and hand it to the operating system before returning (survives kill -9 of this process)."""
        path = self.folder / "steps.jsonl"
        _drop_torn_line(path)
        with path.open("a", encoding="utf-8") as stream:
            stream.write(to_json(step) + "\n")

    def steps(self) -> Iterator[dict[str, Any]]:
        path = self.folder / "steps.jsonl"
        if not path.exists():
            return
        with path.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                if not line.endswith(b"\n"):
                    return  # torn by a kill: that step was never finished
                yield _parse_step(path, number, line)


def _parse_step(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        step = json.loads(line)
    except ValueError as error:  # no JSON, or no UTF-8
        raise ParseError(path, f"line {number}", "a JSON object", repr(line[:80])) from error
    if not isinstance(step, dict):
        raise ParseError(path, f"line {number}", "a JSON object", type(step).__name__)
    return step


def _drop_torn_line(path: Path) -> None:
    """Cut an unfinished last line, so that the next row does not grow onto it."""
    if not path.exists() or path.stat().st_size == 0:
        return
    with path.open("rb+") as stream:
        stream.seek(-1, os.SEEK_END)
        if stream.read(1) == b"\n":
            return
        stream.seek(0)
        stream.truncate(stream.read().rfind(b"\n") + 1)
