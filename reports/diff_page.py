"""A comparison to one offline HTML file: the verdict, what may explain it, and every pair with its interval."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from reports import page, sheets
from reports.comparison import SLOWER
from reports.repetitions import LEVELS
from reports.sheets import Sheet
from reports.tiles import Tile

TEMPLATE = "diff.html"
_COLUMNS = {
    "name": "Name", "name_after": "Name after", "verdict": "Verdict", "change": "Change of median",
    "interval": "95 % interval", "median_before_ns": "Median before", "median_after_ns": "Median after",
    "count_before": "n before", "count_after": "n after", "effect": "Effect", "p_corrected": "p, corrected",
}  # fmt: skip


@dataclass(frozen=True)
class View:
    """What the template reads."""

    document: Mapping[str, Any]
    sheets: tuple[Sheet, ...]

    @property
    def slower(self) -> bool:
        """Whether anything got slower beyond the threshold."""
        return bool(self.document["slower_beyond_threshold"])

    @property
    def tiles(self) -> list[Tile]:
        """How many pairs have each verdict."""
        return [
            Tile(name[:1].upper() + name[1:], str(count), "pairs") for name, count in self.document["verdicts"].items()
        ]


def render(document: Mapping[str, Any], tables: Mapping[str, pd.DataFrame]) -> str:
    """The page as HTML text."""
    made = tuple(_sheet(name, table) for name, table in tables.items())
    return page.assemble(
        TEMPLATE, {}, view=View(document, made), inert=page.inert, public=sheets.public,
        styles=("style.css", "profile.css"), scripts=("page.js", "profile.js"),
    )  # fmt: skip


def write(document: Mapping[str, Any], tables: Mapping[str, pd.DataFrame], path: Path) -> Path:
    """Write the page, whole or not at all."""
    return page.save(path, render(document, tables))


def _sheet(name: str, table: pd.DataFrame) -> Sheet:
    shown = table.assign(
        change=100 * (table["ratio"] - 1),
        interval=[_interval(low, high) for low, high in zip(table["ratio_low"], table["ratio_high"], strict=True)],
    )
    shown = shown[list(_COLUMNS)].rename(columns={"change": "change_pct"})
    first = shown.sort_values("verdict", key=lambda column: column.astype("object") != SLOWER, kind="stable")
    titles = _COLUMNS | {"change_pct": _COLUMNS["change"]}
    caption = f"One repetition is {LEVELS[name]}."
    return sheets.make(name, name[:1].upper() + name[1:], first, "pair", titles=titles, caption=caption)


def _interval(low: float, high: float) -> str:
    return f"{100 * (low - 1):+.2f} % to {100 * (high - 1):+.2f} %" if low == low and high == high else ""
