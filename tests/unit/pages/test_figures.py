"""The figures of a bisection: nothing dropped, finite or not; told apart without colour; names inert."""

from __future__ import annotations

import html
import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bisect_session import HOSTILE
from harness.record import Outcome
from reports.figures import bisection as figures
from reports.schema import Candidate, Step

VALUES = st.one_of(st.none(), st.floats(), st.sampled_from([0.0, 5e-324, 1e308, math.inf, -math.inf, math.nan, 0.01]))
FEW = settings(max_examples=25, deadline=None, derandomize=True)


def points(figure, *names):
    """(x, y) of every mark of the traces whose legend begins with one of the names."""
    traces = [trace for trace in figure.data if (trace.name or "").startswith(names)]
    return [point for trace in traces for point in zip(trace.x, trace.y, strict=True)]


def steps_of(values, outcomes=tuple(Outcome)):
    kinds = itertools.cycle(outcomes)
    return [
        Step(n, f"candidate {n}", next(kinds), value, kept=n, applied=10 - n % 10) for n, value in enumerate(values, 1)
    ]


def candidate(name, sensitivity=0.001, *, culprit=False, scope=""):
    return Candidate(name, "MatMul", scope, (name,), sensitivity, culprit)


@FEW
@given(st.lists(VALUES, min_size=1, max_size=30), st.one_of(st.none(), st.floats()))
def test_every_step_is_drawn_inside_the_axes(values, tolerance):
    figure = figures.draw_steps(steps_of(values), tolerance)
    drawn = points(figure, "pass", "fail", "unresolved")
    assert sorted(x for x, _ in drawn) == list(range(1, len(values) + 1))
    if figure.layout.yaxis.range is not None:
        low, high = figure.layout.yaxis.range
        assert all(low < y < high for _, y in drawn)


@FEW
@given(st.lists(VALUES.filter(lambda value: value is not None), min_size=2, max_size=30))
def test_height_follows_the_value_and_what_is_not_finite_is_on_top(values):
    heights = dict(points(figures.draw_steps(steps_of(values, [Outcome.FAIL])), "fail"))
    by_value = sorted(enumerate(values, 1), key=lambda row: row[1] if math.isfinite(row[1]) else math.inf)
    for (a, low), (b, high) in itertools.pairwise(by_value):
        assert heights[a] <= heights[b]
        if math.isfinite(low) and not math.isfinite(high):
            assert heights[a] < heights[b]


def test_axis_says_percents_and_lanes():
    axis = figures.draw_steps(steps_of([0.5, 0.002, math.nan, None, 0.0]), 0.01).layout.yaxis
    assert axis.title.text == "relative L2 error (%, log)"
    ticks = dict(zip(axis.ticktext, axis.tickvals, strict=True))
    assert ticks["1 %"] == pytest.approx(-2)
    assert ticks["≤ 0"] < ticks["0.1 %"] < ticks["100 %"] < ticks["not finite"] < ticks["no value"]


def test_outcomes_differ_in_shape_and_are_counted():
    figure = figures.draw_steps(steps_of([0.1] * 7))
    assert [trace.name for trace in figure.data] == ["pass (3)", "fail (2)", "unresolved (2)"]
    assert len({trace.marker.symbol for trace in figure.data}) == 3
    assert "n = 7" in figure.layout.xaxis.title.text


def test_the_tolerance_is_a_line_where_its_value_is():
    figure = figures.draw_steps(steps_of([0.1, 0.001]), 0.02)
    lines = [shape for shape in figure.layout.shapes if shape.type == "line"]
    assert [line.y0 for line in lines] == [pytest.approx(math.log10(0.02))]
    assert [note.text for note in figure.layout.annotations] == ["tolerance 2 %"]


def test_steps_without_values_show_how_many_nodes_were_tried():
    figure = figures.draw_steps([Step(1, "a", Outcome.FAIL, applied=300), Step(2, "b", Outcome.PASS, applied=150)])
    assert sorted(points(figure, "pass", "fail")) == [(1, 300), (2, 150)]
    assert "count" in figure.layout.yaxis.title.text


def test_nothing_gives_no_figure():
    assert figures.draw_steps([]) is None
    assert figures.draw_steps([Step(1, "a", Outcome.FAIL)]) is None
    assert figures.draw_graph([]) is None
    assert figures.draw_sensitivities([candidate("a", None)]) is None


@FEW
@given(
    st.lists(
        st.tuples(VALUES, st.booleans(), st.sampled_from(["", "/a", "/a/b", "/a/b/c/d/e/f", "/x"])),
        min_size=1,
        max_size=30,
    )
)
def test_every_candidate_stands_at_its_place_on_the_graph(rows):
    listed = [candidate(f"n{i}", value, culprit=bad, scope=scope) for i, (value, bad, scope) in enumerate(rows)]
    figure = figures.draw_graph(listed)
    assert sorted(x for x, _ in points(figure, "culprit", "other")) == list(range(len(rows)))
    assert sorted(x for x, _ in points(figure, "culprit")) == [i for i, (_, bad, _) in enumerate(rows) if bad]
    low, high = figure.layout.yaxis.range
    assert all(low < y < high for _, y in points(figure, "culprit", "other"))


def test_scopes_lie_under_their_nodes_and_say_which_hold_culprits():
    scopes = ["/net/a/q", "/net/a/q", "/net/a/k", "/net/b", "/net/b"]
    listed = [candidate(f"n{i}", scope=scope, culprit=i == 2) for i, scope in enumerate(scopes)]
    bars = [trace for trace in figures.draw_graph(listed).data if trace.type == "bar"]
    rows = [[(text, base, base + length) for text, base, length in zip(t.text, t.base, t.x, strict=True)] for t in bars]
    assert rows == [[("a", -0.5, 2.5), ("b", 2.5, 4.5)], [("q", -0.5, 1.5), ("k", 1.5, 2.5)]]
    assert [text.partition("<br>")[2] for text in bars[0].hovertext] == [
        "3 candidates, 1 culprit",
        "2 candidates, 0 culprits",
    ]


def test_names_without_scopes_leave_the_band_of_scopes_out():
    assert figures.scope_levels(["", "", ""]) == []
    assert {trace.type for trace in figures.draw_graph([candidate("a"), candidate("b")]).data} == {"scatter"}


def test_sensitivities_are_ranked_and_cut():
    listed = [candidate(f"n{i}", (i + 1) / 1000) for i in range(40)]
    listed += [
        candidate("nan", math.nan, culprit=True),
        candidate("inf", math.inf, culprit=True),
        candidate("none", None),
    ]
    figure = figures.draw_sensitivities(listed, 0.01)
    names = figure.layout.yaxis.ticktext
    assert len(names) == figures.TOP
    assert list(names[:4]) == ["nan", "inf", "n39", "n38"]
    culprits, others = figure.data
    assert list(culprits.text) == ["not finite", "not finite"]
    assert list(others.text[:2]) == ["4 %", "3.9 %"]
    assert others.base + others.x[0] == pytest.approx(math.log10(0.04))
    assert min(culprits.x) > max(others.x) > 0
    assert culprits.marker.pattern.shape != others.marker.pattern.shape
    assert "%" in figure.layout.xaxis.title.text


def test_candidates_measured_as_a_group_share_a_bar_and_culprits_do_not():
    listed = [candidate(f"n{i}", 0.001) for i in range(50)] + [
        candidate("zero", 0.0),
        candidate("a", 0.001, culprit=True),
    ]
    listed += [candidate("b", 0.001, culprit=True)]
    assert [[c.key for c in group][:2] for group in figures.rank(listed)] == [["a"], ["b"], ["n0", "n1"], ["zero"]]
    figure = figures.draw_sensitivities(listed)
    assert list(figure.layout.yaxis.ticktext) == ["a", "b", "n0 and 49 more", "zero"]
    assert [trace.name for trace in figure.data] == ["culprit (2)", "other (51)"]


@settings(deadline=None, derandomize=True)
@given(st.one_of(st.text(), st.sampled_from(HOSTILE)), st.integers(5, 80))
def test_labels_are_inert_and_short(name, width):
    label = figures.label(name, width)
    assert "<" not in label
    assert ">" not in label
    seen = html.unescape(label)
    assert html.escape(seen, quote=False) == label
    assert len(seen) <= width
    assert seen.isprintable()


def test_no_text_of_a_figure_carries_a_name_as_it_came():
    listed = [candidate(name, 0.1, culprit=True, scope=f"{name}/{name}") for name in HOSTILE[:3]]
    steps = [Step(1, HOSTILE[0], Outcome.FAIL, 0.1)]
    for figure in (figures.draw_graph(listed), figures.draw_sensitivities(listed), figures.draw_steps(steps)):
        content = figure.to_json()
        assert "window.hacked" in content or figure is None
        assert "<script" not in content
        assert "<img" not in content
