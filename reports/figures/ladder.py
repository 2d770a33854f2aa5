"""Figures of a ladder: the steps as a waterfall, speed against accuracy, routes, operations, roofline; never shows or writes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from reports import schema, units
from reports.figures.shared import AXIS, QUIET, Scale, base, label, turned

if TYPE_CHECKING:
    from reports.pages.ladder import Row

# The first six stay apart for the colour-blind, as Okabe and Ito's do; those behind tell themselves by mark or dash as well.
COLOURS = ("#3f83d6", "#d9592b", "#1fa37f", "#cc79a7", "#e0a21b", "#7cc4ee", "#8b929b", "#8f6bc4", "#6d7f3a", "#a0522d")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star")
ERROR = "relative L2 error (%, log)"
NEAR = 0.08, 0.08  # of a figure's width and height: closer marks would overprint their names
DECADES: dict[str, Any] = {"type": "log", "dtick": 1, "exponentformat": "power"}


def draw_waterfall(rows: Sequence[Row]) -> go.Figure | None:
    """Milliseconds of each step of one route, top to bottom, and what each gains on the one before."""
    if not rows:
        return None
    figure = base(height=90 + 34 * len(rows))
    times = [(row.median_ns or 0) / 1e6 for row in rows]
    gains = [row.number("speedup_previous") for row in rows]
    figure.add_bar(
        orientation="h", x=times, y=list(range(len(rows))), showlegend=False, cliponaxis=False,
        marker={"color": [QUIET if row.aside else COLOURS[0] for row in rows]},
        text=[f"{units.significant(time)} ms{'' if gain is None else f'  ({gain:.2f}x)'}" for time, gain in zip(times, gains, strict=True)],
        textposition="outside", hoverinfo="skip",
    )  # fmt: skip
    figure.update_layout(
        margin={"r": 120, "t": 12}, bargap=0.35,
        xaxis=AXIS | {"title": {"text": "median of a batch (ms)"}, "rangemode": "tozero"},
        yaxis=_steps([row.title for row in rows]),
    )  # fmt: skip
    return figure


def draw_pareto(rows: Sequence[Row]) -> go.Figure | None:
    """Error (relative L2, %, log) against milliseconds; the steps that nothing beats in both are joined by a line."""
    shown = [row for row in rows if row.error and math.isfinite(row.error)]
    if not shown:
        return None
    figure = base(height=400)
    front = pareto(shown)
    scale = Scale.of(row.error for row in shown)
    named = _apart([*front, *shown])
    figure.add_scatter(
        name="nothing is better in both", mode="lines", line={"color": QUIET, "width": 1.5, "dash": "dot"},
        x=[(row.median_ns or 0) / 1e6 for row in front], y=[scale.position(row.error) for row in front], hoverinfo="skip",
    )  # fmt: skip
    for number, (route, some) in enumerate(_by_route(shown).items()):
        figure.add_scatter(
            name=label(route), mode="markers+text", textposition="top center",
            marker={"color": COLOURS[number], "symbol": SYMBOLS[number % len(SYMBOLS)], "size": 10},
            text=[label(row.rung) if row in named else "" for row in some], x=[(row.median_ns or 0) / 1e6 for row in some],
            y=[scale.position(row.error) for row in some],
            hovertext=[f"{label(row.title)}<br>{(row.median_ns or 0) / 1e6:.4g} ms<br>{units.percent(row.error)}" for row in some],
            hovertemplate="%{hovertext}<extra></extra>",
        )  # fmt: skip
    figure.update_layout(
        xaxis=AXIS | {"title": {"text": "median of a batch (ms, log)"}, "type": "log", "dtick": "D2"},
        yaxis=scale.axis(ERROR),
    )
    return figure


def _apart(rows: Sequence[Row]) -> list[Row]:
    """Those whose names can stand beside their marks, the first of neighbours; the others say theirs on hovering."""
    places = {id(row): (math.log(row.median_ns or 1), math.log(row.error or 1)) for row in rows}
    wide, high = (
        (max(axis) - min(axis) or 1) * near for axis, near in zip(zip(*places.values(), strict=True), NEAR, strict=True)
    )
    kept: list[Row] = []
    for row in rows:
        x, y = places[id(row)]
        others = (places[id(other)] for other in kept)
        if all(abs(x - left) > wide or abs(y - low) > high for left, low in others):
            kept.append(row)
    return kept


def pareto(rows: Sequence[Row]) -> list[Row]:
    """Those that no other is both faster and nearer than, the fastest first."""
    front: list[Row] = []
    for row in sorted(rows, key=lambda one: (one.median_ns or 0, one.error or 0)):
        if not front or (row.error or 0) < (front[-1].error or 0):
            front.append(row)
    return front


def draw_routes(rows: Sequence[Row]) -> go.Figure | None:
    """Milliseconds of each step, the routes side by side."""
    routes = _by_route(rows)
    if not routes:
        return None
    steps = list(dict.fromkeys(row.title for row in rows))
    figure = base(height=110 + (14 + 16 * len(routes)) * len(steps))
    for number, (route, some) in enumerate(routes.items()):
        times = {row.title: (row.median_ns or 0) / 1e6 for row in some}
        figure.add_bar(name=label(route), orientation="h", marker={"color": COLOURS[number]}, y=list(range(len(steps))),
                       x=[times.get(step) for step in steps],
                       hovertemplate="%{x:.4~g} ms<extra>%{fullData.name}</extra>")  # fmt: skip
    figure.update_layout(
        barmode="group", bargap=0.3, xaxis=AXIS | {"title": {"text": "median of a batch (ms)"}, "rangemode": "tozero"},
        yaxis=_steps(steps),
    )  # fmt: skip
    return figure


def draw_operations(rows: Sequence[Row]) -> go.Figure | None:
    """Milliseconds by operation, a bar a step."""
    names = list(dict.fromkeys(str(one.get("operation")) for row in rows for one in row.operations))
    if not names:
        return None
    figure = base(height=110 + 30 * len(rows))
    for number, name in enumerate(names):
        figure.add_bar(
            name=label(name), orientation="h", y=list(range(len(rows))), marker={"color": COLOURS[number % len(COLOURS)]},
            x=[next(((schema.real(one.get("total_ns")) or 0) / 1e6 for one in row.operations if one.get("operation") == name), None)
               for row in rows],
            hovertemplate="%{x:.4~g} ms<extra>%{fullData.name}</extra>",
        )  # fmt: skip
    figure.update_layout(
        barmode="stack", bargap=0.3, legend={"traceorder": "normal"}, xaxis=AXIS | {"title": {"text": "time in all layers (ms)"}},
        yaxis=_steps([row.title for row in rows]),
    )  # fmt: skip
    return figure


def draw_roofline(rows: Sequence[Row], roofs: Mapping[str, Any]) -> go.Figure | None:
    """TFLOP/s against FLOPs a byte, both logarithmic, under what a copy and a large product reach on this card."""
    placed = [
        (row, row.number("flops"), row.number("bytes")) for row in rows if row.number("flops") and row.number("bytes")
    ]
    copy, peaks = schema.real(roofs.get("bytes_per_s")), schema.mapping(roofs.get("flop_per_s"))
    if not placed or not copy:
        return None
    figure = base(height=400)
    known = {name: value for name in peaks if (value := schema.real(peaks[name]))}
    for number, (name, peak) in enumerate(known.items()):
        ridge = peak / copy
        figure.add_scatter(name=f"roof, {label(name.upper())}", mode="lines", hoverinfo="skip", x=[1, ridge, max(10 * ridge, 2e3)],
                           y=[copy / 1e12, peak / 1e12, peak / 1e12],
                           line={"color": COLOURS[-1 - number], "width": 1.5, "dash": "dot"})  # fmt: skip
    for number, (row, flops, moved) in enumerate(placed):
        reached = (flops or 0) / (row.median_ns or 1) / 1e3
        figure.add_scatter(
            name=label(row.title), mode="markers", x=[(flops or 0) / (moved or 1)], y=[reached],
            marker={"color": COLOURS[number % len(COLOURS)], "symbol": SYMBOLS[number % len(SYMBOLS)], "size": 10},
            hovertemplate=f"{reached:.4g} TFLOP/s<extra>%{{fullData.name}}</extra>",
        )  # fmt: skip
    figure.update_layout(
        margin={"t": 100},
        xaxis=AXIS | {"title": {"text": "FLOPs a byte of least traffic (log)"}, **DECADES},
        yaxis=AXIS | {"title": {"text": "TFLOP/s (log)"}, **DECADES},
    )
    return figure


def draw_errors(rows: Sequence[Row]) -> go.Figure | None:
    """Relative L2 error of each step (%, log), by route."""
    if not rows:
        return None
    scale = Scale.of(row.error for row in rows)
    steps = list(dict.fromkeys(row.title for row in rows))
    figure = base(height=110 + 26 * len(steps))
    for number, (route, some) in enumerate(_by_route(rows).items()):
        figure.add_scatter(
            name=label(route), mode="markers",
            marker={"color": COLOURS[number], "symbol": SYMBOLS[number % len(SYMBOLS)], "size": 10},
            y=[steps.index(row.title) for row in some], x=[scale.position(row.error) for row in some],
            hovertext=[f"{label(row.title)}<br>{units.percent(row.error)}" for row in some],
            hovertemplate="%{hovertext}<extra>%{fullData.name}</extra>",
        )  # fmt: skip
    figure.update_layout(
        xaxis=scale.axis(ERROR),
        yaxis=_steps(steps) | {"showgrid": True},
        shapes=[turned(band) for band in scale.bands()],
    )
    return figure


def draw_layers(rows: Sequence[Row]) -> go.Figure | None:
    """Relative L2 error after each layer (%, log), a line a step."""
    if not rows:
        return None
    figure = base(height=360)
    scale = Scale.of(error for row in rows for error in row.layer_errors if error is not None)
    for number, row in enumerate(rows):
        errors = row.layer_errors
        figure.add_scatter(
            name=label(row.title), mode="lines+markers", x=list(range(1, len(errors) + 1)),
            y=[None if error is None else scale.position(error) for error in errors], hovertext=[units.percent(error) for error in errors],
            line={"color": COLOURS[number % len(COLOURS)], "width": 1.3, "dash": "dash" if number >= len(COLOURS) else "solid"},
            marker={"size": 5}, hovertemplate="layer %{x}: %{hovertext}<extra>%{fullData.name}</extra>",
        )  # fmt: skip
    figure.update_layout(
        margin={"t": 84}, xaxis=AXIS | {"title": {"text": "layer"}, "showgrid": False, "dtick": 1},
        yaxis=scale.axis(ERROR), shapes=scale.bands(),
    )  # fmt: skip
    return figure


def _steps(titles: Sequence[str]) -> dict[str, Any]:
    """An axis of steps from top to bottom."""
    return AXIS | {"tickvals": list(range(len(titles))), "ticktext": [label(title) for title in titles],
                   "range": [len(titles) - 0.5, -0.5], "showgrid": False}  # fmt: skip


def _by_route(rows: Sequence[Row]) -> dict[str, list[Row]]:
    made: dict[str, list[Row]] = {}
    for row in rows:
        made.setdefault(row.route_title, []).append(row)
    return made
