"""The figure and the words of a sweep: latency and throughput over one input dimension, and where something changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from reports import units
from reports.figures.shared import AXIS, BLUE, ORANGE, QUIET, base

MOST_STEPS = 60  # lines drawn
SHOWN = ["size", "latency_median_ns", "latency_p90_ns", "latency_p99_ns", "compute_median_ns", "throughput_qps",
         "step", "change", "shapes", "iterations"]  # fmt: skip


def shown(frame: pd.DataFrame) -> pd.DataFrame:
    """The columns for people: without computation where it is all of the latency."""
    same = frame["compute_median_ns"].equals(frame["latency_median_ns"])
    return frame[[name for name in SHOWN if not (same and name == "compute_median_ns")]]


def draw(frame: pd.DataFrame, swept: str = "") -> go.Figure | None:
    """Latency (ms) and throughput (inferences/s) by size; a vertical line where something changed."""
    if frame.empty:
        return None
    figure = base(height=380)
    sizes = frame["size"].tolist()
    for name, title, dash in (
        ("latency_p99_ns", "latency, 99 %", "dot"),
        ("latency_median_ns", "latency, median", "solid"),
    ):
        if frame[name].notna().any():
            _line(figure, sizes, frame[name] / 1e6, title, BLUE, dash, "ms")
    if frame["throughput_qps"].notna().any():
        _line(figure, sizes, frame["throughput_qps"], "throughput", ORANGE, "solid", "inferences/s", second=True)
    steps = frame[frame["step"].notna()].head(MOST_STEPS)
    for size in steps["size"].tolist():
        figure.add_vline(x=size, line={"color": QUIET, "width": 1, "dash": "dash"})
    name = swept.partition("=")[0] or "size"
    figure.update_layout(
        xaxis=AXIS | {"title": {"text": name}},
        yaxis=AXIS | {"title": {"text": "latency (ms)"}, "rangemode": "tozero"},
        yaxis2=AXIS
        | {
            "title": {"text": "inferences/s"},
            "rangemode": "tozero",
            "overlaying": "y",
            "side": "right",
            "showgrid": False,
            "tickmode": "auto",  # of its own: in step with the other axis its numbers are odd ones
        },
    )
    return figure


def _line(
    figure: go.Figure, sizes: list[int], values: pd.Series[Any], title: str, colour: str, dash: str, unit: str,
    *, second: bool = False,
) -> None:  # fmt: skip
    figure.add_scatter(
        name=title, mode="lines+markers", x=sizes, y=values.tolist(), yaxis="y2" if second else "y",
        line={"width": 1.5, "color": colour, "dash": dash}, marker={"size": 4},
        hovertemplate=f"%{{x}}: %{{y:.4~g}} {unit}<extra>{title}</extra>",
    )  # fmt: skip


def caption(frame: pd.DataFrame) -> str:
    """What is drawn of how much, and what the lines mean."""
    steps = int(frame["step"].notna().sum())
    lines = f"; dashed lines: {units.plural(min(steps, MOST_STEPS), 'step')} of {units.count(steps)}" if steps else ""
    return f"{units.plural(len(frame), 'shape')}, {_iterations(frame)}one engine, one process{lines}."


def _iterations(frame: pd.DataFrame) -> str:
    known = frame["iterations"].dropna()
    if known.empty:
        return ""
    least, most = int(known.min()), int(known.max())
    return f"{units.count(least)}{'' if least == most else f' to {units.count(most)}'} iterations each, "


def headline(frame: pd.DataFrame, summary: Mapping[str, Any]) -> tuple[str, str]:
    """The answer in a sentence, and what stands below it."""
    first, last = frame.iloc[0], frame.iloc[-1]
    swept = str(summary.get("sweep", "")).partition("=")[0]
    said = (
        f"Latency grows from {units.seconds(float(first['latency_median_ns']) / 1e9)} at {swept}={first['size']} to "
        f"{units.seconds(float(last['latency_median_ns']) / 1e9)} at {last['size']}"
    )
    if last["latency_median_ns"] < first["latency_median_ns"]:
        said = said.replace("grows", "goes", 1)
    rates = frame["throughput_qps"] * frame["size"]
    detail = ""
    if rates.notna().any():
        best = frame.iloc[int(np.nanargmax(rates.to_numpy()))]
        detail = (
            f"Most of {swept} per second at {best['size']}: {units.significant(float(best['throughput_qps']))} inferences/s, "
            f"{units.seconds(1 / float(rates.max()))} for each. "
        )
    steps = frame.loc[frame["step"].notna(), "size"].tolist()
    by = summary.get("steps_by")
    shown = ", ".join(map(str, steps[:12])) + (" and others" if len(steps) > 12 else "")
    return said, detail + (f"Steps (by {by}) at {shown}." if steps else f"No step (by {by}).")
