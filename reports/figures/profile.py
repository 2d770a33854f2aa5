"""Figures of measurements: iterations of a benchmark; never shows, never writes."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from reports import units
from reports.figures.shared import AXIS, BLUE, ORANGE, QUIET, base, label

MOST_POINTS = 4000
_SERIES = {"compute_ns": ("GPU compute", ORANGE), "latency_ns": ("latency", BLUE), "enqueue_ns": ("enqueue", QUIET)}


def draw_iterations(frame: pd.DataFrame) -> go.Figure | None:
    """Milliseconds per iteration, at most `MOST_POINTS` iterations evenly taken."""
    shown = frame.iloc[np.unique(np.linspace(0, len(frame) - 1, min(len(frame), MOST_POINTS)).astype(int))]
    drawn = {name: style for name, style in _SERIES.items() if name in shown and shown[name].notna().any()}
    if "compute_ns" in drawn and "latency_ns" in drawn and shown["compute_ns"].equals(shown["latency_ns"]):
        del drawn["compute_ns"]  # on a processor: there is nothing but the one time
    if shown.empty or not drawn:
        return None
    figure = base(height=320)
    for name, (title, colour) in drawn.items():
        figure.add_scatter(  # a line is one element of the page however many points it has
            name=f"{title} (n = {units.count(int(frame[name].notna().sum()))})", mode="lines",
            line={"width": 1.2, "color": colour}, x=shown["iteration"].tolist(), y=(shown[name] / 1e6).tolist(),
            hovertemplate="iteration %{x}: %{y:.4~g} ms<extra></extra>",
        )  # fmt: skip
    figure.update_layout(
        xaxis=AXIS | {"title": {"text": "iteration"}, "showgrid": False},
        yaxis=AXIS | {"title": {"text": "time (ms)"}, "rangemode": "tozero"},
    )
    return figure


def iterations_caption(frame: pd.DataFrame) -> str:
    """What is drawn of how much, with the unit."""
    shown = min(len(frame), MOST_POINTS)
    many = units.plural(len(frame), "iteration")
    return f"{many if shown == len(frame) else f'{units.count(shown)} of {many}, evenly taken'}; time in milliseconds."


MOST_LAUNCHES = 150  # each is an element of the page
_LIMITS = {"memory": (BLUE, "circle"), "compute": (ORANGE, "diamond"), "latency": ("#cc79a7", "triangle-up"),
           "occupancy": ("#1fa37f", "square"), "": (QUIET, "circle-open")}  # fmt: skip


def _placeable(limits: pd.DataFrame) -> pd.DataFrame:
    """Launches with a place on two logarithmic axes, the longest first."""
    return limits[(limits["flop_per_byte"] > 0) & (limits["flop_per_s"] > 0)].sort_values(
        "duration_ns", ascending=False
    )


def draw_roofline(limits: pd.DataFrame) -> go.Figure | None:
    """FLOP/s against FLOP per byte of device memory, log-log, with the roofs that were measured (table `roofline`)."""
    placed = _placeable(limits)
    shown = placed.head(MOST_LAUNCHES)
    if shown.empty:
        return None
    figure = base(height=420)
    _draw_roofs(figure, placed)
    limit = shown["limited_by"].astype("object").fillna("")
    for name, (colour, symbol) in _LIMITS.items():
        rows = shown[limit == name]
        if rows.empty:
            continue
        figure.add_scatter(
            name=f"{f'limited by {name}' if name else 'limit not measured'} ({len(rows)})", mode="markers",
            marker={"size": 10, "color": colour, "symbol": symbol, "opacity": 0.85},
            x=rows["flop_per_byte"].tolist(), y=rows["flop_per_s"].tolist(),
            hovertext=[_describe(row) for row in rows.to_dict("records")], hovertemplate="%{hovertext}<extra></extra>",
        )  # fmt: skip
    log = {"type": "log", "exponentformat": "SI", "dtick": 1}
    figure.update_layout(
        xaxis=AXIS
        | log
        | {"title": {"text": "arithmetic intensity (FLOP per byte of device memory, log)"}, "exponentformat": "power"},
        yaxis=AXIS | log | {"title": {"text": "FLOP/s (log)"}},
    )
    return figure


def _draw_roofs(figure: go.Figure, placed: pd.DataFrame) -> None:
    """The memory roof up to the highest compute roof, and each compute roof from there on."""
    names = [name for name in map(str, placed) if name.startswith("peak_") and name.endswith("flop_per_s")]
    peaks = {name.split("_")[1]: float(placed[name].max()) for name in names if placed[name].max() > 0}
    rate = float(placed["peak_dram_bytes_per_s"].max()) if "peak_dram_bytes_per_s" in placed else 0.0
    low, high = float(placed["flop_per_byte"].min()) / 4, float(placed["flop_per_byte"].max()) * 4
    if rate > 0:
        ridge = max(peaks.values()) / rate if peaks else high
        low, high = min(low, ridge / 4), max(high, 4 * ridge)
        text = f"memory {units.size(rate)}/s"
        _draw_roof(figure, [low, ridge], [rate * low, rate * ridge], "solid", [text, ""], "top right")
    for name, peak in peaks.items():
        text = f"{name} {units.significant(peak / 1e12)} TFLOP/s"
        _draw_roof(figure, [peak / rate if rate > 0 else low, high], [peak, peak], "dot", ["", text], "top left")


def _draw_roof(figure: go.Figure, x: list[float], y: list[float], dash: str, text: list[str], where: str) -> None:
    figure.add_scatter(
        mode="lines+text", line={"color": QUIET, "width": 1.5, "dash": dash}, x=x, y=y, text=text, textposition=where,
        hoverinfo="skip", showlegend=False,
    )  # fmt: skip


def _describe(row: dict[Hashable, Any]) -> str:
    said = f"{row['limited_by']}: {row['why']}" if isinstance(row["limited_by"], str) else "limit not measured"
    return "<br>".join(
        (label(str(row["kernel"]), 90), units.seconds(float(row["duration_ns"]) / 1e9), label(said, 120))
    )


def roofline_caption(limits: pd.DataFrame) -> str:
    """What is drawn of how much, with the unit."""
    placed = len(_placeable(limits))
    shown, total = min(placed, MOST_LAUNCHES), f"{units.count(len(limits))} launch{'es' if len(limits) != 1 else ''}"
    which = f"The {units.count(shown)} longest of {total}" if shown < placed else f"{units.count(shown)} of {total}"
    rest = len(limits) - placed
    left = (
        f"; {units.count(rest)} without floating-point operations or without their counters have no place"
        if rest
        else ""
    )
    return f"{which}, floating-point operations per second against their number per byte of device memory{left}."
