"""Frames to the tables of a page: units from the columns' names, longest first, at most so many rows and it says so."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from reports import units

MOST_ROWS = 1000  # in the page; `probe report --tables` writes them all
FIRST_ROWS = 10  # shown before anything is clicked
_TEXT_BUDGET = 1_500_000  # characters in one table
_SPECIAL = {
    "onnx_nodes": "ONNX nodes", "onnx_node": "ONNX node", "api": "API call", "gpu": "GPU", "sm_count": "SMs",
    "inferred_besides": "Besides, inferred", "sets": "Nodes alike", "layer_type": "Type", "time_pct": "Share", "flop_per_s": "FLOP/s", "flop_per_byte": "FLOP per byte",
    "dram_bytes": "Memory traffic", "dram_bytes_per_s": "Memory rate", "ceiling_pct": "Of roof",
    "memory_pct": "Memory, of peak", "memory_bytes_per_s": "Memory rate", "memory_bytes": "Memory", "compute_pct": "Compute, of peak", "occupancy_pct": "Occupancy",
    "estimated_speedup_pct": "Estimated speedup", "kernel_time_ns": "GPU time", "wall_ns": "Wall time",
    "kernel_count": "Kernels", "rate_bytes_per_s": "Rate", "gap_ns": "Gap", "at_ns": "At", "qps": "Queries/s",
}  # fmt: skip
_HOME = re.compile(r"(?:/home/|/Users/|\b[A-Za-z]:[\\/]+Users[\\/]+)[^/\\\s\"':;,]+")
_COUNTLESS = ("line", "address")  # numbers without thousands separators, as are ids

# A text; a number and how it reads; or a change with its interval: also a tone, and where low, middle and high lie in %.
Cell = str | tuple[float | None, str] | tuple[float | None, str, str, float, float, float]


@dataclass(frozen=True)
class Column:
    """`kind` is text, number, bar (a number with a bar behind it), interval (a change with its interval beside it), or
    part (a name that opens a part of the page)."""

    title: str
    kind: str


@dataclass(frozen=True)
class Sheet:
    """One table of a page; `total` is how many rows there are, of which `rows` are embedded."""

    key: str
    title: str
    noun: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    total: int
    caption: str = ""
    first: int = FIRST_ROWS
    secondary: bool = False  # closed until it is asked for

    @property
    def count(self) -> str:
        """`12 kernels`, or `1,000 of 5,000 kernels`."""
        if len(self.rows) < self.total:
            return f"{units.count(len(self.rows))} of {many(self.total, self.noun)}; the rest: --tables"
        return many(self.total, self.noun)

    @property
    def widest(self) -> float:
        """The largest number of the column with bars."""
        place = next((place for place, column in enumerate(self.columns) if column.kind == "bar"), None)
        values = [row[place][0] for row in self.rows if isinstance(row[place], tuple)] if place is not None else []
        return max((value for value in values if isinstance(value, float) and math.isfinite(value)), default=0.0)

    def to_json(self) -> str:
        """What the table's script needs: all rows, numbers beside how they read."""
        content = {
            "columns": [[column.title, column.kind] for column in self.columns],
            "rows": [[_plain(cell) for cell in row] for row in self.rows],
            "nouns": [self.noun, plural(self.noun)], "total": self.total, "first": self.first, "widest": self.widest,
        }  # fmt: skip
        return json.dumps(content, ensure_ascii=False, separators=(",", ":"))


def make(
    key: str, title: str, frame: pd.DataFrame, noun: str, *,
    titles: Mapping[str, str] | None = None, bar: str | None = None, interval: tuple[str, str, str] | None = None,
    caption: str = "", total: int | None = None, first: int = FIRST_ROWS, secondary: bool = False,
) -> Sheet:  # fmt: skip
    """A sheet of the frame's rows in their order; columns that hold nothing are left out.

    `interval` names a column of changes in percent and those of their lower and upper bounds: one column shows all three.
    """
    changes = _changes(frame.head(MOST_ROWS), *interval) if interval else {}
    shown = frame.head(MOST_ROWS).drop(columns=list(interval[1:]) if interval else [])
    shown = shown[_arranged([name for name in shown.columns if not _is_empty(shown[name])], bar)]
    texts = sum(1 for name in shown.columns if not _is_number(shown[name])) * max(1, len(shown))
    width = max(120, _TEXT_BUDGET // max(1, texts))
    cells = [changes.get(str(name)) or _cells(str(name), shown[name], width) for name in shown.columns]
    columns = tuple(
        Column(
            (titles or {}).get(str(name)) or heading(str(name)),
            "interval" if name in changes else _kind(str(name), shown[name], bar),
        )
        for name in shown.columns
    )
    rows = tuple(zip(*cells, strict=True))
    total = len(frame) if total is None else total
    return Sheet(key, title, noun, columns, rows, total, caption, first, secondary)


def _arranged(names: list[str], bar: str | None) -> list[str]:
    """What a row is and how much of the whole come first, in every table: they are all that a narrow screen shows."""
    much = [name for name in ("time_pct", bar) if name in names[1:]] if bar in names else []
    return [*names[:1], *much, *(name for name in names[1:] if name not in much)]


def plural(noun: str) -> str:
    """launch -> launches, kernel -> kernels."""
    return f"{noun}es" if noun.endswith(("ch", "x", "s")) else f"{noun}s"


def many(number: int, noun: str) -> str:
    """3, `launch` -> `3 launches`."""
    return f"{units.count(number)} {noun if number == 1 else plural(noun)}"


def text(name: str, value: float | None) -> str:
    """A number as text, in the unit that its column's name carries."""
    if value is None or math.isnan(value):
        return units.ABSENT
    for suffix, say in _UNITS:
        if name.endswith(suffix):
            return say(value)
    return units.count(value) if float(value).is_integer() and abs(value) < 1e15 else units.significant(value, 4)


def _seconds(value: float) -> str:
    return units.seconds(value) if value >= 0 else f"−{units.seconds(-value)}"


def _flop(value: float) -> str:
    for unit, scale in (("TFLOP", 1e12), ("GFLOP", 1e9), ("MFLOP", 1e6)):
        if abs(value) >= scale:
            return f"{units.significant(value / scale)} {unit}"
    return f"{units.significant(value)} FLOP"


# Suffix of a column's name -> how its numbers read; the first that fits.
_UNITS: tuple[tuple[str, Callable[[float], str]], ...] = (
    ("_ns", lambda value: _seconds(value / 1e9)),
    ("bytes_per_s", lambda value: f"{units.size(value)}/s"),
    ("flop_per_s", lambda value: f"{_flop(value)}/s"),
    ("flop", _flop),
    ("_qps", lambda value: units.significant(value, 5)),
    ("_s", _seconds),
    ("bytes", units.size),
    ("_pct", lambda value: f"{units.significant(value)} %"),
    ("_hz", lambda value: f"{units.significant(value / 1e6, 4)} MHz"),
)


def public(words: str) -> str:
    """A text without the name of the person whose home folder is in it."""
    return _HOME.sub("~", words) if "ome/" in words or "sers" in words else words


def heading(name: str) -> str:
    if name in _SPECIAL:
        return _SPECIAL[name]
    for suffix in ("_bytes_per_s", "_bytes", "_ns", "_pct", "_hz", "_qps", "_s"):
        name = name.removesuffix(suffix)
    name = name.replace("_", " ")
    return name[:1].upper() + name[1:]


def _kind(name: str, column: pd.Series[Any], bar: str | None) -> str:
    return "bar" if name == bar else "number" if _is_number(column) else "text"


def _is_number(column: pd.Series[Any]) -> bool:
    return pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)


def _is_empty(column: pd.Series[Any]) -> bool:
    return len(column) > 0 and all(_absent(value) or value in ("", ()) for value in column.tolist())


def _absent(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))


def _cells(name: str, column: pd.Series[Any], width: int) -> list[Cell]:
    if _is_number(column):
        numbers = [None if _absent(value) else value for value in column.tolist()]
        plain = name in _COUNTLESS or name.endswith("_id")
        return [
            (None if n is None else float(n), str(n) if plain and n is not None else text(name, n)) for n in numbers
        ]
    return [_words(value, width) for value in column.tolist()]


def _changes(frame: pd.DataFrame, change: str, low: str, high: str) -> dict[str, list[Cell]]:
    """Changes in percent with their bounds, placed on one scale: no change in the middle, at most doubled at its end."""
    bounds = frame[[low, high]].to_numpy(dtype=float)
    widest = min(100.0, max(1.0, float(np.nanmax(np.abs(bounds), initial=0.0))))

    def place(value: float) -> float:
        return round(50 + 50 * max(-1.0, min(1.0, value / widest)), 1)

    def cell(middle: float, least: float, most: float) -> Cell:
        if math.isnan(middle):
            return (None, units.ABSENT)
        if math.isnan(least) or math.isnan(most):
            return (middle, f"{middle:+.1f} %")
        tone = "worse" if least > 0 else "better" if most < 0 else "same"
        words = f"{middle:+.1f} % ({least:+.1f} to {most:+.1f})"
        return (middle, words, tone, place(least), place(middle), place(most))

    middles = frame[change].to_numpy(dtype=float)
    return {change: [cell(*map(float, row)) for row in np.column_stack((middles, bounds))]}


def _words(value: Any, width: int) -> str:
    if _absent(value):
        return units.ABSENT
    joined = " + ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
    return units.visible(units.shorten(public(joined), width)) or units.ABSENT


def _plain(cell: Cell) -> Any:
    """A cell as JSON: numbers that JSON lacks become texts that the script knows."""
    if isinstance(cell, str):
        return cell
    value, *rest = cell
    return [value if value is None or math.isfinite(value) else str(value), *rest]
