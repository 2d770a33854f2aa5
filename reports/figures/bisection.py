"""Tables to plotly figures of one bisection; never shows, never writes, and shows every value, finite or not."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Any

import plotly.graph_objects as go

from harness.record import Outcome
from reports import units
from reports.figures.shared import (
    AXIS,
    BLUE,
    NO_VALUE,
    ORANGE,
    QUIET,
    Scale,
    base,
    label,
    lane_of,
    log10,
    turned,
    whole,
)
from reports.schema import Candidate, Step, Trial

TOP = 30  # bars of the ranked sensitivities
NUMBERED = 20  # culprits with their number and a line through their scopes; more would overprint
MANY = 300  # steps; beyond, smaller marks
LEVELS = 4  # rows of scopes under the graph

CULPRIT, OTHER = ORANGE, BLUE
_TINT_CULPRIT, _TINTS = "rgba(217,89,43,.42)", ("rgba(93,125,160,.30)", "rgba(93,125,160,.17)")
_MARKS: dict[Outcome, dict[str, Any]] = {
    Outcome.PASS: {"symbol": "circle", "size": 8, "color": OTHER},
    Outcome.FAIL: {"symbol": "x", "size": 8, "color": CULPRIT},
    Outcome.UNRESOLVED: {"symbol": "diamond-open", "size": 10, "color": QUIET, "line": {"width": 2}},
}
ScopePath = tuple[str, ...]  # the parts of a scope


def draw_steps(steps: Sequence[Step], tolerance: float | None = None, noun: str = "node") -> go.Figure | None:
    """Relative L2 error in percent (log) against step; nodes (or what `noun` says) lowered against step where no step has a value."""
    if not steps:
        return None
    figure = base(height=380)
    if any(step.value is not None for step in steps):
        limit = tolerance if lane_of(tolerance) is None else None
        scale = Scale.of([*(step.value for step in steps), *([limit] if limit else [])])
        _draw_outcomes(figure, steps, lambda step: scale.position(step.value))
        figure.update_layout(yaxis=scale.axis("relative L2 error (%, log)"), shapes=scale.bands())
        if limit:
            _draw_tolerance(figure, limit, y=log10(limit))
    elif any(step.applied is not None for step in steps):
        _draw_outcomes(figure, [step for step in steps if step.applied is not None], lambda step: step.applied or 0)
        most = max(step.applied or 0 for step in steps)
        room = 0.05 * max(most, 1)  # for half a mark
        figure.update_layout(
            yaxis=AXIS
            | {"title": {"text": f"{noun}s under test (count)"}, "range": [-room, most + room], **whole(most)}
        )
    else:
        return None
    title = {"text": f"step (n = {units.count(len(steps))})"}
    figure.update_layout(xaxis=AXIS | {"title": title, "showgrid": False, **whole(len(steps))})
    return figure


def draw_graph(candidates: Sequence[Candidate]) -> go.Figure | None:
    """Sensitivity (%, log) and scopes along the graph, x the place in topological order; culprits marked, numbered."""
    if not candidates:
        return None
    levels = scope_levels([candidate.scope for candidate in candidates])
    band, gap, plot = 26 * len(levels), 14 if levels else 0, 250
    figure = base(height=plot + gap + band + 90)
    _draw_places(figure, candidates, Scale.of(c.sensitivity for c in candidates))
    for depth, scopes in enumerate(levels):
        _draw_scopes(figure, candidates, scopes, depth)
    margin = 0.01 * len(candidates)  # room for half a mark
    title = f"topological order (n = {units.count(len(candidates))})"
    figure.update_layout(
        xaxis=AXIS
        | {"title": {"text": title}, "showgrid": False, "range": [-0.5 - margin, len(candidates) - 0.5 + margin]},
        yaxis={"domain": [(band + gap) / (plot + band + gap), 1]},
    )
    if levels:
        figure.update_layout(
            xaxis={"anchor": "y2"}, uniformtext={"mode": "hide", "minsize": 9}, barmode="overlay",
            yaxis2=AXIS | {"domain": [0, band / (plot + band + gap)], "range": [len(levels) - 0.5, -0.5]}
            | {"tickvals": [(len(levels) - 1) / 2], "ticktext": ["scopes"], "showgrid": False, "fixedrange": True},
        )  # fmt: skip
    return figure


def draw_sensitivities(candidates: Sequence[Candidate], tolerance: float | None = None) -> go.Figure | None:
    """The `TOP` highest sensitivities as bars (relative L2 error in percent, log)."""
    ranked = rank(candidates)[:TOP]
    if not ranked:
        return None
    limit = tolerance if lane_of(tolerance) is None else None
    scale = Scale.of([*(group[0].sensitivity for group in ranked), *([limit] if limit else [])])
    axis = scale.axis("sensitivity (relative L2, %, log)")
    start = axis["range"][0]
    figure = base(height=110 + 22 * len(ranked))
    hatch = {"shape": "/", "fillmode": "overlay", "solidity": 0.25, "size": 6}
    for name, marker in (("culprit", {"color": CULPRIT, "pattern": hatch}), ("other", {"color": OTHER})):
        rows = [(place, group) for place, group in enumerate(ranked) if group[0].culprit is (name == "culprit")]
        figure.add_bar(
            name=f"{name} ({units.count(sum(len(group) for _, group in rows))})", orientation="h", marker=marker,
            y=[place for place, _ in rows], x=[scale.position(group[0].sensitivity) - start for _, group in rows], base=start,
            text=[units.percent(group[0].sensitivity) for _, group in rows], textposition="outside", cliponaxis=False,
            hovertext=["<br>".join([_describe(group[0]), *_others(group)]) for _, group in rows],
            hovertemplate="%{hovertext}<extra></extra>",
        )  # fmt: skip
    figure.update_layout(
        barmode="overlay", bargap=0.3, margin={"r": 56}, xaxis=axis, shapes=[turned(band) for band in scale.bands()],
        yaxis=AXIS | {"tickvals": list(range(len(ranked))), "range": [len(ranked) - 0.5, -0.5], "showgrid": False}
        | {"ticktext": [" ".join([label(group[0].key, 34, head=0), *_others(group)]) for group in ranked]},
    )  # fmt: skip
    if limit:
        _draw_tolerance(figure, limit, x=log10(limit))
    return figure


def draw_latencies(trials: Sequence[Trial], tolerance: float | None = None) -> go.Figure | None:
    """Latency in ms against relative L2 error (%, log) of every engine; those that no other beats in both on a line."""
    known = [trial for trial in trials if trial.latency_ns is not None and trial.error is not None]
    if not known:
        return None
    limit = tolerance if lane_of(tolerance) is None else None
    scale = Scale.of([*(trial.error for trial in known), *([limit] if limit else [])])
    figure = base(height=380)
    front = pareto(known)
    figure.add_scatter(
        name=f"no other is better in both ({units.count(len(front))})", mode="lines", line={"color": QUIET, "width": 1.5, "shape": "hv"},
        x=[scale.position(trial.error) for trial in front], y=[(trial.latency_ns or 0.0) / 1e6 for trial in front], hoverinfo="skip",
    )  # fmt: skip
    for outcome, mark in _MARKS.items():
        rows = [trial for trial in known if trial.outcome is outcome]
        figure.add_scatter(
            name=f"{outcome} ({units.count(len(rows))})", mode="markers", marker=mark, visible=True if rows else "legendonly",
            x=[scale.position(trial.error) for trial in rows], y=[(trial.latency_ns or 0.0) / 1e6 for trial in rows],
            hovertext=[f"{label(trial.engine, 90)}<br>{units.percent(trial.error)}<br>{units.seconds((trial.latency_ns or 0.0) / 1e9)}" for trial in rows],
            hovertemplate="%{hovertext}<extra></extra>",
        )  # fmt: skip
    figure.update_layout(
        xaxis=scale.axis("relative L2 error (%, log)"), yaxis=AXIS | {"title": {"text": "latency (ms)"}},
        shapes=[turned(band) for band in scale.bands()],
    )  # fmt: skip
    if limit:
        _draw_tolerance(figure, limit, x=log10(limit))
    return figure


def pareto(trials: Iterable[Trial]) -> list[Trial]:
    """The trials that no other one beats in error and latency, by error; those without a number are left out."""
    known = [
        trial
        for trial in trials
        if trial.error is not None and trial.latency_ns is not None and not math.isnan(trial.error)
    ]
    front: list[Trial] = []
    for trial in sorted(known, key=lambda t: (t.error or 0.0, t.latency_ns or 0.0)):
        if not front or (trial.latency_ns or 0.0) < (front[-1].latency_ns or 0.0):
            front.append(trial)
    return front


def rank(candidates: Iterable[Candidate]) -> list[list[Candidate]]:
    """Candidates with a sensitivity, the most sensitive first, not finite before all.

    Those of one value stand together (they were measured as one group); a culprit always stands alone.
    """
    measured = [candidate for candidate in candidates if candidate.sensitivity is not None]
    measured.sort(key=lambda c: (-_magnitude(c.sensitivity), not c.culprit))
    groups = groupby(enumerate(measured), lambda row: row[0] if row[1].culprit else -1 - _magnitude(row[1].sensitivity))
    return [[candidate for _, candidate in group] for _, group in groups]


def scope_levels(scopes: Sequence[str]) -> list[list[ScopePath]]:
    """The scope of every candidate cut to 1, 2 .. `LEVELS` parts below what all share; levels without any are left out."""
    paths = [tuple(part for part in scope.split("/") if part) for scope in scopes]
    named = [path for path in paths if path]
    shared = 0
    while named and all(len(path) > shared + 1 and path[shared] == named[0][shared] for path in named):
        shared += 1
    deepest = max((len(path) for path in named), default=0)
    depths = range(shared, min(deepest, shared + LEVELS))
    return [[path[: depth + 1] if len(path) > depth else () for path in paths] for depth in depths]


def _draw_outcomes(figure: go.Figure, steps: Sequence[Step], height: Callable[[Step], float]) -> None:
    scale = 1.0 if len(steps) <= MANY else 0.6
    for outcome, mark in _MARKS.items():
        rows = [step for step in steps if step.outcome is outcome]
        figure.add_scatter(
            name=f"{outcome} ({units.count(len(rows))})", mode="markers", marker=mark | {"size": scale * mark["size"]}, visible=True if rows else "legendonly",
            x=[step.step for step in rows], y=[height(step) for step in rows],
            hovertext=[_describe_step(step) for step in rows], hovertemplate="%{hovertext}<extra></extra>",
        )  # fmt: skip


def _draw_tolerance(figure: go.Figure, tolerance: float, *, x: float | None = None, y: float | None = None) -> None:
    """A dashed line with its name, upright at `x` or level at `y`."""
    line, text = {"color": QUIET, "width": 1.5, "dash": "dash"}, f"tolerance {units.percent(tolerance)}"
    if x is not None:
        figure.add_shape(type="line", line=line, x0=x, x1=x, y0=0, y1=1, yref="paper")
        figure.add_annotation(text=text, showarrow=False, x=x, y=0, yref="paper", xanchor="left", yanchor="bottom")
    else:
        figure.add_shape(type="line", line=line, y0=y, y1=y, x0=0, x1=1, xref="paper")
        figure.add_annotation(text=text, showarrow=False, x=1, xref="paper", y=y, xanchor="right", yanchor="bottom")


def _draw_places(figure: go.Figure, candidates: Sequence[Candidate], scale: Scale) -> None:
    places = list(enumerate(candidates))
    others, culprits = ([(x, c) for x, c in places if c.culprit is chosen] for chosen in (False, True))
    dot = {"symbol": "circle", "size": 5, "color": OTHER, "opacity": 0.6}
    diamond = {"symbol": "diamond", "size": 11, "color": CULPRIT}
    numbered = len(culprits) <= NUMBERED
    sides = _sides([x for x, _ in culprits], len(candidates))
    styles: list[tuple[str, list[tuple[int, Candidate]], dict[str, Any]]] = [
        ("other", others, {"mode": "markers", "marker": dot}),
        ("culprit", culprits, {"mode": "markers+text", "marker": diamond, "textposition": sides}),
    ]
    for name, rows, style in styles:
        figure.add_scatter(
            name=f"{name} ({units.count(len(rows))})", x=[x for x, _ in rows], **style,
            y=[scale.position(c.sensitivity) for _, c in rows],
            text=[f"#{number}" for number in range(1, len(rows) + 1)] if name == "culprit" and numbered else None,
            hovertext=[_describe(c) for _, c in rows], hovertemplate="%{hovertext}<extra></extra>",
        )  # fmt: skip
    drop = {"type": "line", "y0": 0, "y1": 1, "yref": "paper", "layer": "below"}
    drop["line"] = {"color": CULPRIT, "width": 1, "dash": "dot"}
    drops = [drop | {"x0": x, "x1": x} for x, _ in culprits if numbered]  # through its scopes
    figure.update_layout(yaxis=scale.axis("sensitivity (relative L2, %, log)"), shapes=[*scale.bands(), *drops])


def _sides(places: Sequence[int], total: int) -> list[str]:
    """Where the number of each culprit stands: to the left if the next culprit is close on the right, or the edge is."""
    pairs = zip(places, [*places[1:], total], strict=False)
    return ["middle left" if after - place < 0.03 * total else "middle right" for place, after in pairs]


def _draw_scopes(figure: go.Figure, candidates: Sequence[Candidate], scopes: Sequence[ScopePath], depth: int) -> None:
    runs = [run for run in _runs(scopes) if run[2]]
    guilty = [sum(candidates[i].culprit for i in range(start, stop)) for start, stop, _ in runs]
    figure.add_bar(
        orientation="h", yaxis="y2", showlegend=False, width=0.88, y=[depth] * len(runs),
        base=[start - 0.5 for start, _, _ in runs], x=[stop - start for start, stop, _ in runs],
        marker={"color": [_TINT_CULPRIT if bad else _TINTS[place % 2] for place, bad in enumerate(guilty)], "line": {"width": 0}},
        text=[label(path[-1], 24) for _, _, path in runs], textposition="inside", insidetextanchor="middle", textangle=0,
        hovertext=[
            f"{label('/'.join(path), 90)}<br>{units.plural(stop - start, 'candidate')}, {units.plural(bad, 'culprit')}"
            for (start, stop, path), bad in zip(runs, guilty, strict=True)
        ],
        hovertemplate="%{hovertext}<extra></extra>",
    )  # fmt: skip


def _runs(scopes: Sequence[ScopePath]) -> list[tuple[int, int, ScopePath]]:
    """Neighbours of one scope as (start, stop, scope)."""
    runs, start = [], 0
    for scope, members in groupby(scopes):
        stop = start + sum(1 for _ in members)
        runs.append((start, stop, scope))
        start = stop
    return runs


def _others(group: Sequence[Candidate]) -> list[str]:
    return [f"and {units.count(len(group) - 1)} more"] if len(group) > 1 else []


def _describe_step(step: Step) -> str:
    value = NO_VALUE if step.value is None else units.percent(step.value)
    cached = ", from cache" if step.cached else ""
    return f"step {step.step}: {step.outcome}{cached}<br>{value}<br>{label(step.candidate, 90)}"


def _describe(candidate: Candidate) -> str:
    value = "not measured" if candidate.sensitivity is None else units.percent(candidate.sensitivity)
    state = "culprit, " if candidate.culprit else "undecided, " if candidate.undecided else ""
    return f"{label(candidate.key, 90)}<br>{state}{label(candidate.op_type) or 'op unknown'}<br>{value}"


def _magnitude(value: float | None) -> float:
    """NaN counts as infinite."""
    return math.inf if value is None or math.isnan(value) else abs(value)
