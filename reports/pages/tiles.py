"""The few numbers that stand under a headline; every page draws them alike (`tiles` in macros.html)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tile:
    """One number of the first screen."""

    title: str
    value: str
    remark: str = ""
