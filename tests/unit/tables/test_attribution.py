"""Attribution against a brute-force reading of its definition, on ranges of every ugly kind."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.tables.attribution import FOREVER, NONE, Load, Ranges, match, paths
from reports.tables.onnx_names import nodes_of_layer, nodes_of_operation
from reports.tables.templating import templated

TIMES = st.integers(-3, 12)
RANGES = st.lists(st.tuples(st.integers(0, 2), TIMES, st.one_of(TIMES, st.just(FOREVER))), max_size=25)
MOMENTS = st.lists(st.tuples(st.integers(0, 3), TIMES, st.integers(0, 9)), max_size=25)


def columns(rows, width):
    return np.array(rows, dtype=np.int64).reshape(-1, width).T


def holds(span, thread, moment):
    return span[0] == thread and span[1] <= moment < span[2]


def rank(ranges, row):
    """Later start, then earlier end, then later row: what makes a range the inner one of two."""
    return ranges[row][1], -ranges[row][2], row


def innermost(ranges, thread, moment):
    inside = [row for row, span in enumerate(ranges) if holds(span, thread, moment)]
    return max(inside, key=lambda row: rank(ranges, row), default=NONE)


def parent(ranges, child):
    thread, start, end = ranges[child]
    outer = [
        row
        for row, span in enumerate(ranges)
        if rank(ranges, row) < rank(ranges, child) and holds(span, thread, start) and span[2] >= end
    ]
    return max(outer, key=lambda row: rank(ranges, row), default=NONE)


@given(RANGES, MOMENTS)
def test_innermost_range_parent_and_depth_are_as_defined(spans, moments):
    thread, time_, _ = columns(moments, 3)
    ranges = Ranges(*columns(spans, 3), time_)
    assert ranges.innermost(thread, time_).tolist() == [innermost(spans, t, at) for t, at, _ in moments]
    parents = [parent(spans, row) for row in range(len(spans))]
    assert ranges.parents.tolist() == parents
    depth = {NONE: -1}
    for row in ranges.order.tolist():
        depth[row] = depth[parents[row]] + 1
    assert ranges.depths.tolist() == [depth[row] for row in range(len(spans))]


@given(RANGES, MOMENTS, st.integers(1, 4), st.randoms())
def test_each_moment_counts_once_under_a_group_however_its_ranges_overlap(spans, moments, groups, random):
    thread, time_, weight = columns(moments, 3)
    ranges = Ranges(*columns(spans, 3), time_)
    group = [random.randrange(groups) for _ in spans]
    sums = Load(ranges, thread, time_, weight).under(np.array(group, dtype=np.int64), groups)
    for at in range(groups):
        members = [span for span, where in zip(spans, group, strict=True) if where == at]
        under = [w for t, moment, w in moments if any(holds(span, t, moment) for span in members)]
        assert (sums.count[at], sums.total[at]) == (len(under), sum(under))


@given(RANGES, st.randoms())
def test_paths_group_by_all_names_from_the_outermost(spans, random):
    ranges = Ranges(*columns(spans, 3), np.array([0]))
    names = [random.randrange(3) for _ in spans]
    group, above = paths(ranges.parents, np.array(names, dtype=np.int64), ranges.depths)

    def path(row):
        up = int(ranges.parents[row])
        return (*(path(up) if up != NONE else ()), names[row])

    assert len({(path(row), int(group[row])) for row in range(len(spans))}) == len({path(r) for r in range(len(spans))})
    for row in range(len(spans)):
        up = ranges.parents[row]
        assert above[group[row]] == (NONE if up == NONE else group[up])
    assert all(parent < child for child, parent in enumerate(above.tolist()))


CALLS = st.lists(
    st.tuples(st.sampled_from([7, 7 << 24, -1]), st.sampled_from([0, 1, 2, 2**32 + 1, 2**40]), st.booleans(), TIMES),
    max_size=12,
)


@given(CALLS, CALLS)
def test_a_launch_is_matched_by_process_and_correlation_a_launching_call_first(wanted, offered):
    process, correlation, _, _ = columns(wanted, 4)
    theirs = columns(offered, 4)
    found = match((process, correlation), (theirs[0], theirs[1]), theirs[2].astype(bool), theirs[3])
    for (p, c, _, _), row in zip(wanted, found.tolist(), strict=True):
        same = [at for at, call in enumerate(offered) if call[:2] == (p, c)]
        assert row == min(same, key=lambda at: (not offered[at][2], offered[at][3], at), default=NONE)


@pytest.mark.parametrize("shape", ["siblings", "nested"])
def test_twenty_thousand_siblings_or_levels_take_no_longer_than_they_must(shape):
    count = 20_000
    start = np.arange(count) * 2
    end = start + 1 if shape == "siblings" else 4 * count - start
    whole = (np.append(start, -1), np.append(end, FOREVER))
    launch = 5 * count + np.arange(count)
    thread = np.zeros(count + 1, dtype=np.int64)
    begun = time.process_time()
    ranges = Ranges(thread, *whole, launch)
    inner = ranges.innermost(thread[1:], launch)
    depth = int(ranges.depths.max())
    took = time.process_time() - begun
    assert set(inner.tolist()) == {count}
    assert depth == (1 if shape == "siblings" else count)
    assert took < 0.3


def test_running_numbers_go_and_telling_ones_stay():
    assert templated(["request #17", "request #18", "layer 3", "plain"]) == [
        "request #",
        "request #",
        "layer 3",
        "plain",
    ]
    assert set(templated([f"step {n} of 0x{n:x}" for n in range(40)])) == {"step # of #"}
    assert templated([f"layer {n}" for n in range(24)]) == [f"layer {n}" for n in range(24)]


@pytest.mark.parametrize(
    ("layer", "nodes"),
    [
        ("Conv_0 + Relu_1", ("Conv_0", "Relu_1")),
        ("{ForeignNode[l0.q + (Unnamed Layer* 1) [Shuffle]...out]}", ("l0.q", "out")),
        ("Reformatting CopyNode for Input Tensor 0 to Conv_0 + Relu_1", ()),
        ("PWN(PWN(/s/Sigmoid), /s/Mul)", ("/s/Sigmoid", "/s/Mul")),
        ("/a/MatMul || /b/MatMul [profile 1]", ("/a/MatMul", "/b/MatMul")),
        ("node_linear_myl4_0", ("node_linear",)),
        ("__myl_MulSum_myl4_1", ()),
        ("ExecutionContext::enqueue", ()),
        ("", ()),
    ],
)
def test_nodes_named_in_a_layer(layer, nodes):
    assert nodes_of_layer(layer) == nodes


def test_nodes_named_in_an_operation():
    name = "shuffle_output_l0_qk_reshape+l0_scale+maxred+sub+exp__mye12939+sum+sr_div+sr_div"
    assert nodes_of_operation(name) == ("shuffle_output_l0_qk_reshape", "l0_scale")
    assert nodes_of_operation(name, ["l0.q", "l0.qk", "l0.scale", "l1.qk"]) == ("l0.qk", "l0.scale")
    assert nodes_of_operation("cast_hvar^11366i32") == ()
    assert nodes_of_operation("") == ()
