"""What the plotly figures share: ground, ink and axes that follow the page, a log scale that drops no value, inert names."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from reports import units

ORANGE, BLUE, QUIET = "#d9592b", "#3f83d6", "#8b929b"  # middle tones: they read on light and on dark ground
NO_VALUE = "no value"
_ZERO, _MOST = "≤ 0", 1e300
_GRID, _BAND = "rgba(128,128,128,.25)", "rgba(128,128,128,.10)"
AXIS: dict[str, Any] = {"gridcolor": _GRID, "zeroline": False, "automargin": True, "ticks": ""}
_FONT = "system-ui, sans-serif"


def base(height: int) -> go.Figure:
    """An empty figure that takes ground and ink from the page."""
    return go.Figure(
        layout={
            "template": "none", "height": height, "margin": {"l": 8, "r": 16, "t": 44, "b": 8}, "autosize": True,
            "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)", "hovermode": "closest",
            "font": {"family": _FONT, "size": 12, "color": "#6b7580"}, "hoverlabel": {"align": "left", "font": {"family": _FONT}},
            "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1, "yanchor": "top", "yref": "container"},
            "showlegend": True, "dragmode": "zoom",
        }
    )  # fmt: skip


def label(name: str, width: int = 60, head: float = 1 / 3) -> str:
    """A name as plotly text: shortened, control characters as escapes, HTML inert."""
    return html.escape(units.shorten(units.visible(name), width, head), quote=False)


@dataclass(frozen=True)
class Scale:
    """A log10 axis with lanes beside it for what has no logarithm: zero below, not finite and absent above.

    Plotly's own log axis drops such values in silence, and they are the ones a bisection is about.
    """

    low: int  # decade
    high: int  # decade
    lane: float  # height of a lane, in decades
    lanes: dict[str, float]  # name -> middle of the lane, in decades

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Scale:
        values = list(values)
        logs = [log10(value) for value in values if value is not None and lane_of(value) is None]
        low, high = (math.floor(min(logs)), math.ceil(max(logs))) if logs else (0, 0)
        high = max(high, low + 1) if logs else low
        lane = max(0.16 * (high - low), 0.2)
        names = {lane_of(value) for value in values}
        above = [name for name in (units.NOT_FINITE, NO_VALUE) if name in names]
        lanes = {name: high + (0.75 + place) * lane for place, name in enumerate(above)}
        if _ZERO in names:
            lanes[_ZERO] = low - 0.75 * lane
        return cls(low, high, lane, lanes)

    def position(self, value: float | None) -> float:
        lane = lane_of(value)
        return log10(value) if value is not None and lane is None else self.lanes[lane or ""]

    def axis(self, title: str) -> dict[str, Any]:
        """The layout of an axis in percent, its ticks at decades (at 1, 2, 5 where there are few)."""
        edges = [self.low - 0.3 * self.lane, self.high + 0.3 * self.lane]  # room for half a mark
        edges += [position + side * self.lane / 2 for position in self.lanes.values() for side in (-1, 1)]
        return AXIS | {
            "title": {"text": title, "standoff": 12},
            "tickvals": [log10(tick) for tick in self._ticks()] + list(self.lanes.values()),
            "ticktext": [units.percent(tick) for tick in self._ticks()] + list(self.lanes),
            "range": [min(edges), max(edges)],
        }

    def bands(self) -> list[dict[str, Any]]:
        """Shaded rectangles behind the lanes, so that they do not read as part of the axis."""
        across = {"type": "rect", "xref": "paper", "x0": 0, "x1": 1, "layer": "below", "line": {"width": 0}}
        half = self.lane / 2
        return [across | {"y0": p - half, "y1": p + half, "fillcolor": _BAND} for p in self.lanes.values()]

    def _ticks(self) -> list[float]:
        """At most seven decades; where there are few, 2 and 5 times them too. Empty if no value has a logarithm."""
        decades = range(self.low, self.high + 1, max(1, math.ceil((self.high - self.low) / 6)))
        factors = (1, 2, 5) if self.high - self.low <= 2 else (1,)
        ticks = [factor * 10.0**decade for decade in decades for factor in factors]
        return [tick for tick in ticks if tick <= 10.0**self.high] if self.low < self.high else []


def whole(most: int) -> dict[str, Any]:
    """Ticks at whole numbers only, where an axis is so short that there would be others."""
    return {"dtick": 1} if most <= 12 else {}


def turned(shape: dict[str, Any]) -> dict[str, Any]:
    """A shape that lies across, upright."""
    swap = {"x0": "y0", "x1": "y1", "y0": "x0", "y1": "x1", "xref": "yref"}
    return {swap.get(key, key): value for key, value in shape.items()}


def lane_of(value: float | None) -> str | None:
    """The lane of a value without a logarithm; None for the others."""
    if value is None:
        return NO_VALUE
    if not math.isfinite(value):
        return units.NOT_FINITE
    return _ZERO if value <= 0 else None


def log10(value: float) -> float:
    """The logarithm, kept off the ends of what a float holds, where ticks would overflow."""
    return math.log10(min(max(value, 1 / _MOST), _MOST))
