"""What a reader makes of one file: validated tables, a summary, and remarks for people."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd


@dataclass(frozen=True)
class Artifact:
    """One file that a tool wrote, read. The tables are as in `reports.columns`; the summary holds JSON values alone."""

    path: Path
    kind: str  # what it is: "nsys-sqlite", "ncu-csv", "sanitizer-xml", ...
    tool: str  # who wrote it: "nsys", "ncu", "compute-sanitizer", "trtexec", ...
    tool_version: str | None = None  # as the file says it; None if it does not say
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # what is missing, what was left out, "k of n"

    def rows(self) -> dict[str, int]:
        """How many rows each table has."""
        return {name: len(table) for name, table in self.tables.items()}
