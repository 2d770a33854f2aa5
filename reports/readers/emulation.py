"""The findings of kernels that ran on the CPU: JSON lines, the first of which says what the file is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from harness.errors import ParseError
from reports.artifact import Artifact
from reports.columns import TABLES, empty, validate
from reports.readers import decoding

EXPECTED = "JSON lines of findings of the emulation"


def sniff(path: Path, head: bytes) -> bool:
    """By the first line: an object with the tool's name and the number of findings."""
    first = _object(head.split(b"\n", 1)[0])
    return first is not None and first.get("tool") == "emulation" and "findings" in first


def read(path: Path) -> Artifact:
    """Table `findings`, one row a finding; one that occurred often has a count."""
    lines = [line for line in decoding.read_bytes(path, EXPECTED).split(b"\n") if line.strip()]
    rows, notes = [], []
    for number, line in enumerate(lines[1:], 2):
        if (row := _object(line)) is not None:
            rows.append({name: value for name, value in row.items() if name in TABLES["findings"]})
        elif number == len(lines):
            notes.append("the last line is torn (the process was killed): it was left out")
        else:
            raise ParseError(path, f"line {number}", "a JSON object", repr(line[:60]))
    try:
        table = validate("findings", pd.DataFrame(rows)) if rows else empty("findings")
    except ValueError as error:
        raise ParseError(path, "columns", "those of findings", str(error)) from error
    expected = (_object(lines[0]) or {}).get("findings")
    if expected != len(table):
        notes.append(f"{len(table)} of {expected} findings are here")
    by_kind = {str(kind): int(count) for kind, count in table["kind"].value_counts().items()}
    return Artifact(path, "emulation", "emulation", None, {"findings": table}, {"findings": len(table), "by_kind": by_kind},
                    tuple(notes))  # fmt: skip


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None
