"""Where NaN and infinity come up, which of that reaches an output, and which nodes made finite put it right."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from test_emulate import make_model, random_models

from harness.models.runtime import Runner
from harness.models.tracing import Sanitised, suspects, trace_nonfinite

FLOAT, FLOAT16 = TensorProto.FLOAT, TensorProto.FLOAT16
NAN, INF = np.float32("nan"), np.float32("inf")


def chain(*steps, constants=None, shape=(3,), dtype=FLOAT, opset=17, outputs=None):
    """A model of (op, inputs, output) steps, each node named by its output; the last output is the model's."""
    nodes = [
        helper.make_node(op, read, [made], name=made, **said)
        for op, read, made, said in (s if len(s) == 4 else (*s, {}) for s in steps)
    ]
    return make_model(
        nodes, [("x", dtype, list(shape))], [(o, dtype) for o in outputs or [steps[-1][2]]], constants or {}, opset
    )


def brief(origins):
    return [(o.tensor, set(o.counts.kinds), o.inputs_finite, o.reaches) for o in origins]


def vector(*values, dtype=np.float32):
    return {"x": np.array(values, dtype)}


@pytest.mark.parametrize("steps,x,expected", [
    ([("Neg", ["x"], "n"), ("Log", ["n"], "l"), ("Relu", ["l"], "y")], (1, 2, -1), [("l", {"nan"}, True, ("y",))]),
    ([("Sub", ["x", "x"], "z"), ("Div", ["z", "z"], "y")], (1, 2, 3), [("y", {"nan"}, True, ("y",))]),
    ([("Exp", ["x"], "e"), ("Neg", ["e"], "y")], (1, 2, 100), [("e", {"+inf"}, True, ("y",))]),
    ([("Exp", ["x"], "e"), ("Sub", ["e", "e"], "y")], (1, 2, 100), [("e", {"+inf"}, True, ("y",)), ("y", {"nan"}, False, ("y",))]),
    ([("Relu", ["x"], "y")], (1, 2, 3), []),
    # a NaN that a later Where leaves out is no fault of the output
    ([("Log", ["x"], "l"), ("IsNaN", ["l"], "m"), ("Where", ["m", "x", "l"], "y")], (1, 2, -1), [("l", {"nan"}, True, ())]),
])  # fmt: skip
def test_origins(steps, x, expected):
    assert brief(trace_nonfinite(chain(*steps), vector(*x))) == expected


def test_counts_say_how_many_elements():
    (origin,) = trace_nonfinite(chain(("Log", ["x"], "l"), ("Identity", ["l"], "y")), vector(-1, 0, -2))
    assert (origin.counts.nan, origin.counts.pos_inf, origin.counts.neg_inf, origin.counts.size) == (2, 0, 1, 3)
    assert (origin.node, origin.source) == (0, "node")


def test_weights_and_inputs_that_are_not_finite_are_told():
    large = np.ones((64, 64), np.float32)
    large[3, 5] = NAN
    model = chain(
        ("MatMul", ["x", "w"], "h"),
        ("Add", ["h", "b"], "y"),
        shape=(1, 64),
        constants={"w": large, "b": np.array([INF], np.float32)},
    )
    assert "w" in model.weights
    origins = trace_nonfinite(model, {"x": np.ones((1, 64), np.float32)})
    assert [(o.tensor, o.source, o.node) for o in origins] == [("b", "weight", None), ("w", "weight", None)]
    assert suspects(model, [{"x": np.ones((1, 64), np.float32)}]) == [1, 0]
    (origin,) = trace_nonfinite(chain(("Relu", ["x"], "y")), vector(1, NAN, 2))
    assert (origin.tensor, origin.source, origin.reaches) == ("x", "input", ("y",))


def softmax_with_mask(mask):
    return chain(
        ("Add", ["x", "mask"], "s"), ("Softmax", ["s"], "y", {"axis": -1}), shape=mask.shape, constants={"mask": mask}
    )


def test_a_mask_of_minus_infinity_is_benign_until_a_row_is_masked_out():
    x = np.zeros((2, 3), np.float32)
    partly = softmax_with_mask(np.array([[0, -INF, 0], [0, 0, -INF]], np.float32))
    assert brief(trace_nonfinite(partly, {"x": x})) == [("mask", {"-inf"}, True, ())]
    assert suspects(partly, [{"x": x}]) == []
    fully = softmax_with_mask(np.array([[0, -INF, 0], [-INF, -INF, -INF]], np.float32))
    assert brief(trace_nonfinite(fully, {"x": x})) == [("mask", {"-inf"}, True, ("y",)), ("y", {"nan"}, False, ("y",))]
    assert suspects(fully, [{"x": x}]) == [0, 1]  # the addition of the mask is the innocent one
    for left, finite in (((), True), ((0,), True), ((1,), True), ((0, 1), False)):
        assert np.isfinite(Sanitised(fully).run({"x": x}, left)[0]).all() == finite


def test_sanitised_values():
    model = chain(("Log", ["x"], "l"), ("Neg", ["l"], "y"), outputs=["l", "y"])
    session = Sanitised(model)
    assert session.candidates == [0, 1]
    feeds = vector(-1, 0, np.e)
    large = np.float32(np.finfo(np.float32).max ** 0.25)
    l, y = session.run(feeds, [])  # noqa: E741
    np.testing.assert_allclose(l, [0, -large, 1], rtol=1e-6)
    np.testing.assert_allclose(y, [0, large, -1], rtol=1e-6)
    l, y = session.run(feeds, [0])  # noqa: E741
    np.testing.assert_allclose(l, [NAN, -INF, 1], rtol=1e-6)
    np.testing.assert_allclose(y, [0, large, -1], rtol=1e-6)


def test_a_cause_outlives_its_effects():
    """exp overflows, inf / inf is NaN: with exp made finite, nothing else is needed."""
    model = chain(("Exp", ["x"], "e"), ("ReduceSum", ["e"], "s"), ("Div", ["e", "s"], "y"))
    feeds = vector(1, 2, 100)
    assert suspects(model, [feeds]) == [2, 0]
    assert np.isfinite(Sanitised(model, [0, 2]).run(feeds, [2])[0]).all()


def test_what_shows_up_behind_a_sanitised_node_is_suspected_too():
    """The second logarithm is of a negative number whatever the first one gives."""
    model = chain(
        ("Log", ["x"], "a"),
        ("Abs", ["a"], "b"),
        ("Sub", ["c", "b"], "d"),
        ("Log", ["d"], "y"),
        constants={"c": np.float32(-1)},
    )
    assert [o.node for o in trace_nonfinite(model, vector(-1, -2, -3))] == [0]
    assert suspects(model, [vector(-1, -2, -3)]) == [3, 0]
    assert suspects(model, [vector(1, 2, 3), vector(-1, -2, -3)]) == [3, 0]


def test_an_overflow_of_fp16_is_seen_where_it_is_stored():
    steps = [("Mul", ["x", "up"], "big"), ("Mul", ["big", "down"], "y")]
    model = chain(*steps, dtype=FLOAT16, constants={"up": np.float16(6e4), "down": np.float16(1e-4)})
    feeds = vector(10, 10, 10, dtype=np.float16)
    assert brief(trace_nonfinite(model, feeds)) == [("big", {"+inf"}, True, ("y",))]
    assert suspects(model, [feeds]) == [0]
    session = Sanitised(model)
    assert session.run(feeds, [0, 1])[0].dtype == np.float16
    assert np.isinf(session.run(feeds, [0, 1])[0]).all()
    np.testing.assert_allclose(session.run(feeds, [1])[0], np.full(3, 16e-4), rtol=1e-3)


def test_double_and_several_outputs():
    nodes = [
        helper.make_node("Split", ["x"], ["a", "b"], name="split", axis=0),
        helper.make_node("Log", ["a"], ["la"]),
        helper.make_node("Log", ["b"], ["lb"]),
    ]
    model = make_model(
        nodes, [("x", TensorProto.DOUBLE, [2])], [("la", TensorProto.DOUBLE), ("lb", TensorProto.DOUBLE)], {}
    )
    feeds = {"x": np.array([-1.0, 2.0])}
    assert brief(trace_nonfinite(model, feeds)) == [("la", {"nan"}, True, ("la",))]
    la, lb = Sanitised(model).run(feeds, [])
    np.testing.assert_allclose([la[0], lb[0]], [0, np.log(2)])


def test_an_if_is_one_node():
    body = helper.make_graph(
        [helper.make_node("Log", ["x"], ["inner"])], "then", [], [helper.make_tensor_value_info("inner", FLOAT, None)]
    )
    other = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["outer"])], "else", [], [helper.make_tensor_value_info("outer", FLOAT, None)]
    )
    nodes = [
        helper.make_node("If", ["c"], ["h"], name="branch", then_branch=body, else_branch=other),
        helper.make_node("Neg", ["h"], ["y"]),
    ]
    model = make_model(
        nodes, [("x", FLOAT, [1]), ("c", TensorProto.BOOL, [])], [("y", FLOAT)], {"unused": np.array([NAN], np.float32)}
    )
    feeds = {"x": np.array([-1], np.float32), "c": np.array(True)}
    assert brief(trace_nonfinite(model, feeds)) == [("h", {"nan"}, True, ("y",))]
    assert suspects(model, [feeds]) == [0]
    assert np.isnan(Sanitised(model).run(feeds, [0, 1])[0]).all()
    assert np.isfinite(Sanitised(model).run(feeds, [1])[0]).all()
    assert trace_nonfinite(model, {**feeds, "c": np.array(False)}) == []


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(random_models(), st.integers(0, 2**32 - 1))
def test_suspects_sanitised_make_every_output_finite(case, seed):
    """And left as they are, nothing changes; also when weights hold infinities."""
    model, feeds, _ = case
    rng = np.random.default_rng(seed)
    for tensor in model.graph.initializer:
        if rng.random() < 0.3:
            array = numpy_helper.to_array(tensor).copy()
            array.reshape(-1)[rng.integers(array.size)] = rng.choice([NAN, INF, -INF])
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    found = suspects(model, [feeds])
    session = Sanitised(model, found, threads=1)
    assert all(np.isfinite(output).all() for output in session.run(feeds, []))
    plain = Runner(model.proto, model.weights, threads=1, optimise=False).run(feeds)
    for got, want in zip(session.run(feeds, found), plain, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5)
    assert bool(found) == any(not np.isfinite(output).all() for output in plain)


def test_every_set_of_nodes_can_be_left_as_it_is():
    """Against the same thing done by NumPy, node by node."""
    model = chain(("Log", ["x"], "a"), ("Mul", ["a", "a"], "b"), ("Sub", ["b", "b"], "y"))
    x, top = np.array([-1, 0, 2], np.float32), np.float32(np.finfo(np.float32).max)
    session = Sanitised(model)
    large = np.float32(float(top) ** 0.25)
    for size in range(4):
        for left in itertools.combinations(range(3), size):

            def keep(value, index, left=left):
                return value if index in left else np.nan_to_num(value, nan=0.0, posinf=large, neginf=-large)

            with np.errstate(all="ignore"):
                a = keep(np.log(x), 0)
                b = keep(a * a, 1)
                y = keep(b - b, 2)
            np.testing.assert_allclose(session.run({"x": x}, left)[0], y, rtol=1e-5)
