"""What probe itself wrote: `steps.jsonl` of a search, the device log as JSON lines or Parquet, measurements, sweeps."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from harness.errors import DependencyMissing, ParseError
from reports import schema
from reports.artifact import Artifact
from reports.columns import TABLES, validate
from reports.readers import decoding, measured

EXPECTED = "JSON lines of probe (steps or device log)"
PARQUET = b"PAR1"
_STEP = {"outcome", "candidate"}
_LOG = {"tag", "launch_id", "value"}


def sniff(path: Path, head: bytes) -> bool:
    """By the keys of the first line, or by the columns that end a Parquet file."""
    if head.startswith(PARQUET):
        return all(name.encode() in _tail(path) for name in _LOG)
    if measured.sniff(head):
        return True
    keys = _keys(head.split(b"\n", 1)[0])
    return keys >= _STEP or keys >= _LOG


def _keys(line: bytes) -> set[str]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return set()
    return set(row) if isinstance(row, dict) else set()


def _tail(path: Path, size: int = 65536) -> bytes:
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - size))
        return stream.read()


def read(path: Path) -> Artifact:
    """Steps, a device log in either format, a measurement or a sweep."""
    data = decoding.read_bytes(path, EXPECTED)
    if measured.sniff(data):
        return measured.read(path, data)
    if data.startswith(PARQUET):
        return _log(path, _parquet(path), ())
    rows, notes = _rows(path, data)
    keys = set(rows[0])
    if keys >= _STEP:
        return _steps(path, rows, notes)
    if keys >= _LOG:
        return _log(path, pd.DataFrame(rows), notes)
    raise ParseError(path, "line 1", "a step (outcome, candidate) or a line of a device log (tag, launch_id, value)",
                     ", ".join(sorted(keys))[:80] or "no keys")  # fmt: skip


def _rows(path: Path, data: bytes) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """The objects of all whole lines; a last line without its end was torn by a kill and is dropped."""
    whole, _, torn = data.rpartition(b"\n")
    rows = list(_objects(path, whole))
    if not rows:
        raise ParseError(path, "line 1", "a JSON object and the end of its line", repr(data[:60]))
    return rows, ("the last line is torn (the process was killed): it was left out",) if torn.strip() else ()


def _objects(path: Path, data: bytes) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ParseError(path, f"line {number}", "a JSON object", repr(line[:60])) from error
        if not isinstance(row, dict):
            raise ParseError(path, f"line {number}", "a JSON object", type(row).__name__)
        yield row


def _steps(path: Path, rows: list[dict[str, Any]], notes: tuple[str, ...]) -> Artifact:
    steps = [step for number, row in enumerate(rows, 1) if (step := schema.read_step(row, number)) is not None]
    frame = pd.DataFrame({name: [getattr(step, name) for step in steps] for name in TABLES["steps"]})
    frame["outcome"] = [step.outcome.value for step in steps]
    summary = {
        "steps": len(steps),
        "by_outcome": dict(Counter(step.outcome.value for step in steps)),
        "cached": sum(step.cached for step in steps),
    }
    return Artifact(path, "steps", "probe", None, {"steps": validate("steps", frame)}, summary, notes)


def _parquet(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except ImportError as error:
        raise DependencyMissing("pyarrow", "to read Parquet files", "pip install pyarrow") from error
    except (OSError, ValueError) as error:  # what pyarrow raises of a broken file is one of these
        raise ParseError(path, "content", "a Parquet file", str(error)[:80]) from error


def _log(path: Path, frame: pd.DataFrame, notes: tuple[str, ...]) -> Artifact:
    known = TABLES["device_log"]
    others = [str(column) for column in frame.columns if column not in known]
    if others:
        notes = (*notes, f"columns that the device log does not have were left out: {', '.join(others)}")
    kept = frame[[column for column in frame.columns if column in known]].copy()
    if "value" in kept:
        kept["value"] = [value if isinstance(value, str) or value is None else json.dumps(value, default=str)
                         for value in kept["value"]]  # fmt: skip
    try:
        table = validate("device_log", kept)
    except ValueError as error:
        raise ParseError(path, "columns", "those of a device log", str(error)) from error
    summary = {
        "lines": len(table),
        "launches": int(table["launch_id"].nunique()),
        "by_tag": {str(tag): int(count) for tag, count in table["tag"].value_counts().items()},
    }
    return Artifact(path, "device-log", "probe", None, {"device_log": table}, summary, notes)
