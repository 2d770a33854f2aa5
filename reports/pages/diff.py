"""A comparison to one offline HTML file: the verdict, what may explain it, and every pair with its interval."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from reports import units
from reports.pages import page, sheets
from reports.pages.sheets import Sheet
from reports.pages.tiles import Tile
from reports.tables.comparison import SLOWER
from reports.tables.repetitions import LEVELS

TEMPLATE = "diff.html"
_COLUMNS = {
    "name": "Name", "name_after": "Name after", "verdict": "Verdict", "change_pct": "Change of median (95 % interval)",
    "low_pct": "", "high_pct": "", "median_before_ns": "Before", "median_after_ns": "After",
    "repetitions": "n", "effect": "Effect", "p_corrected": "p, corrected",
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
    def tone(self) -> str:
        """The colour of the verdict: of a defect, of none, or of neither."""
        return "found" if self.slower else "clean" if self.document["judged"] else "open"

    @property
    def status(self) -> str:
        """The verdict in a word or two."""
        return {"found": "slower", "clean": "not slower", "open": "undecided"}[self.tone]

    @property
    def sides(self) -> str:
        """What was compared, without the folders that it lies in."""
        typed = (str(self.document[side]).split(",") for side in ("before", "after"))
        names = (",".join(path.rstrip("/").rpartition("/")[2] for path in paths) for paths in typed)
        return " → ".join(units.shorten(name, 40) for name in names)

    @property
    def summary(self) -> str:
        """The comparison as one line of text."""
        return f"{self.sides}: {self.document['headline']}."

    @property
    def tiles(self) -> list[Tile]:
        """What became of a whole inference, and how many pairs have each verdict."""
        verdicts = self.document["verdicts"].items()
        return [*self._latency(), *(Tile(name[:1].upper() + name[1:], str(count), "pairs") for name, count in verdicts)]

    def _latency(self) -> list[Tile]:
        if (latency := self.document["latency"]) is None:
            return []
        before, after = (units.seconds(latency[f"median_{side}_ns"] / 1e9) for side in ("before", "after"))
        name = latency["name"]
        return [
            Tile(
                f"{name[:1].upper()}{name[1:]}, median",
                f"{100 * (latency['ratio'] - 1):+.1f} %",
                f"{before} to {after}",
            )
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
    changes = {"change_pct": "ratio", "low_pct": "ratio_low", "high_pct": "ratio_high"}
    shown = table.assign(
        **{column: 100 * (table[ratio] - 1) for column, ratio in changes.items()},
        repetitions=[f"{a}, {b}" for a, b in zip(table["count_before"], table["count_after"], strict=True)],
        effect=table["effect"].round(2),
        p_corrected=[float(f"{p:.1e}") for p in table["p_corrected"]],
    )
    first = shown[list(_COLUMNS)].sort_values(
        "verdict", key=lambda column: column.astype("object") != SLOWER, kind="stable"
    )
    caption = f"One repetition is {LEVELS[name]}."
    interval = ("change_pct", "low_pct", "high_pct")
    return sheets.make(
        name, name[:1].upper() + name[1:], first, "pair", titles=_COLUMNS, interval=interval, caption=caption
    )
