"""The instrumented session computes what a node-by-node evaluation with explicit rounding computes."""

from __future__ import annotations

from unittest import mock

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from harness.models import segments
from harness.models.emulate import Emulation, lowerable
from harness.models.model import Model
from harness.models.opsets import with_type_for
from harness.models.precision import Lowering, Precision
from small_models import if_model, make_model, random_models


def evaluate_slowly(model: Model, feeds, lowered, precision=Precision.FP16):
    """The meaning of lowering, one node at a time: round what it reads, run it in FP32, round what it makes."""
    lowering = Lowering(model.proto, precision)
    values = dict(feeds) | {t.name: model.constant(t.name) for t in model.graph.initializer}
    for node in model.nodes:
        where = lowering.positions(node.proto, model.dtypes)
        args = [values[n] if n else None for n in node.proto.input]
        if node.index in lowered:
            args = [precision.round(a) if i in where.inputs else a for i, a in enumerate(args)]
        results = run_node(node.proto, args, model.opset)
        if node.index in lowered:
            results = [precision.round(r) if i in where.outputs else r for i, r in enumerate(results)]
        values.update(zip(node.proto.output, results, strict=True))
    return [values[name] for name in model.outputs]


def run_node(node, args, opset):
    graph = helper.make_graph(
        [helper.make_node(node.op_type, [f"i{k}" if a is not None else "" for k, a in enumerate(args)],
                          [f"o{k}" for k in range(len(node.output))], **{a.name: helper.get_attribute_value(a) for a in node.attribute})],
        "n", [helper.make_tensor_value_info(f"i{k}", helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for k, a in enumerate(args) if a is not None],
        [onnx.ValueInfoProto(name=f"o{k}") for k in range(len(node.output))])  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {f"i{k}": a for k, a in enumerate(args) if a is not None})


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(random_models(), st.sampled_from(list(Precision)), st.booleans(), st.booleans())
def test_one_session_equals_node_by_node(case, precision, keep_twice, optimise):
    model, feeds, lowered = case
    emulation = Emulation(model, precision, threads=1, keep_twice=keep_twice, optimise=optimise)
    got = emulation.run(feeds, lowered)
    want = evaluate_slowly(model, feeds, lowered, precision)
    for g, w in zip(got, want, strict=True):
        np.testing.assert_array_equal(np.isnan(g), np.isnan(w))
        np.testing.assert_array_equal(np.isposinf(g), np.isposinf(w))
        finite = np.isfinite(w) & np.isfinite(g)
        if {n.op_type for n in model.nodes} & {"MatMul", "Exp", "Sigmoid"}:
            # FP32 results may differ by a step there, which one rounding to the lower precision can widen.
            step = 2**-7 if precision is Precision.BF16 else 2**-10
            np.testing.assert_allclose(
                g[finite], w[finite], rtol=8 * step if lowered else 1e-5, atol=1e-30 if lowered else 1e-6
            )
        else:
            np.testing.assert_array_equal(g, w)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(random_models(), st.data(), st.integers(1, 4))
def test_pieces_remember_only_what_is_still_true(case, data, size):
    """Cut anywhere, asked about any sets one after the other, a sample answers as the model in one piece does."""
    model, feeds, _ = case
    nodes = range(len(model.nodes))
    asked = data.draw(st.lists(st.sets(st.sampled_from(nodes)), min_size=2, max_size=8))
    whole = Emulation(model, threads=1)
    with mock.patch.multiple(segments, NODES_PER_PIECE=size, NEAR=1):
        sample = Emulation(model, threads=1).bind(feeds)
    for lowered in asked:
        for got, want in zip(sample.run(lowered), whole.run(feeds, lowered), strict=True):
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("optimise", [False, True])
@pytest.mark.parametrize("lowered,expected", [((), 60.0), ((0,), np.inf), ((1,), np.inf), ((0, 1), np.inf)])
def test_overflow_between_two_nodes_is_seen(optimise, lowered, expected):
    """x * 6e4 * 1e-4 is what ONNX Runtime's own FP16 returns as 60: the value between the nodes is stored as inf."""
    nodes = [
        helper.make_node("Mul", ["x", "up"], ["big"], name="up_scale"),
        helper.make_node("Mul", ["big", "down"], ["y"], name="down_scale"),
    ]
    model = make_model(
        nodes,
        [("x", TensorProto.FLOAT, [3])],
        [("y", TensorProto.FLOAT)],
        {"up": np.float32(6e4), "down": np.float32(1e-4)},
    )
    emulation = Emulation(model, threads=1, optimise=optimise)
    (got,) = emulation.run({"x": np.full(3, 10, np.float32)}, lowered)
    np.testing.assert_allclose(got, np.full(3, expected, np.float32), rtol=1e-3)


@pytest.mark.parametrize("precision", list(Precision))
def test_rounding_is_to_nearest_even_with_subnormals_and_overflow(precision):
    bits = np.random.default_rng(5).integers(0, 2**32, 200_000, dtype=np.uint32)
    special = np.array(
        [65504, 65519.99, 65520, 6e-8, 2.98e-8, 2.99e-8, 1e-40, 0, -0.0, np.inf, -np.inf, np.nan], np.float32
    )
    x = np.concatenate([bits.view(np.float32), special, np.linspace(-70000, 70000, 4001, dtype=np.float32)])
    model = make_model(
        [helper.make_node("Identity", ["x"], ["y"])], [("x", TensorProto.FLOAT, [None])], [("y", TensorProto.FLOAT)], {}
    )
    (got,) = Emulation(model, precision, threads=1).run({"x": x}, [0])
    np.testing.assert_array_equal(got, precision.round(x))


def test_weights_are_rounded_with_their_reader():
    weight = np.full((64, 64), 1 + 2**-12, np.float32)  # one step below what FP16 can hold
    model = make_model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [("x", TensorProto.FLOAT, [1, 64])],
        [("y", TensorProto.FLOAT)],
        {"w": weight},
    )
    assert model.weights, "a weight of 16 KiB is kept as an array"
    for keep_twice in (True, False):
        emulation = Emulation(model, threads=1, keep_twice=keep_twice)
        x = np.ones((1, 64), np.float32)
        assert emulation.run({"x": x}, [])[0][0, 0] == np.float32(64 * (1 + 2**-12))
        assert emulation.run({"x": x}, [0])[0][0, 0] == 64.0


@pytest.mark.parametrize(
    "lowered,then,other", [((), 60.0, 11 + 2**-12), ((1,), np.inf, 11.0), ((0,), 60.0, 11 + 2**-12)]
)
def test_if_is_one_candidate_with_everything_inside(lowered, then, other):
    model = if_model()
    assert lowerable(model, Precision.FP16) == [0, 1]
    emulation = Emulation(model, threads=1)
    x = np.full(2, 10, np.float32)
    np.testing.assert_allclose(emulation.run({"x": x, "c": np.array(True)}, lowered)[0], np.full(2, then), rtol=1e-3)
    np.testing.assert_array_equal(
        emulation.run({"x": x, "c": np.array(False)}, lowered)[0], np.full(2, other, np.float32)
    )


def test_an_old_opset_is_converted_first():
    nodes = [helper.make_node("Clip", ["x"], ["y"], min=0.0, max=6.0)]  # its bounds are inputs since opset 11
    model = make_model(nodes, [("x", TensorProto.FLOAT, [2])], [("y", TensorProto.FLOAT, [2])], {}, opset=9)
    ready = with_type_for(model)
    assert ready.opset == 11
    emulation = Emulation(ready, threads=1)
    np.testing.assert_array_equal(emulation.run({"x": np.array([-1, 7], np.float32)}, emulation.candidates)[0], [0, 6])


def test_random_numbers_are_drawn_once():
    nodes = [helper.make_node("RandomNormalLike", ["x"], ["r"]), helper.make_node("Mul", ["r", "x"], ["y"])]
    model = make_model(nodes, [("x", TensorProto.FLOAT, [64])], [("y", TensorProto.FLOAT, [64])], {})
    assert lowerable(model, Precision.FP16) == [1]
    feeds = {"x": np.full(64, 3, np.float32)}
    sample, elsewhere = (Emulation(model, threads=1).bind(feeds) for _ in range(2))
    drawn, lowered = sample.run([])[0], sample.run([1])[0]
    assert np.std(drawn) > 1
    assert 0 < np.abs(lowered - drawn).max() < 0.02
    np.testing.assert_array_equal(elsewhere.run([])[0], drawn)  # another worker compares the same numbers


def test_scalars_stay_scalars():
    inputs, outputs = [("x", TensorProto.FLOAT, [])], [("y", TensorProto.FLOAT, [])]
    emulation = Emulation(make_model([helper.make_node("Neg", ["x"], ["y"])], inputs, outputs, {}), threads=1)
    assert emulation.run({"x": np.array(2, np.float32)}, [0])[0].shape == ()


def masked() -> Model:
    """y = x + (1 - mask) * -1e9, as attention masks are written."""
    nodes = [helper.make_node("Sub", ["one", "mask"], ["away"], name="/sub"),
             helper.make_node("Mul", ["away", "low"], ["bias"], name="/mul"),
             helper.make_node("Add", ["x", "bias"], ["y"], name="/add")]  # fmt: skip
    constants = {"one": np.float32(1), "low": np.float32(-1e9)}
    shape = [1, 4]
    inputs = [("x", TensorProto.FLOAT, shape), ("mask", TensorProto.FLOAT, shape)]
    return make_model(nodes, inputs, [("y", TensorProto.FLOAT)], constants)


@pytest.mark.parametrize("keep_twice", [True, False])
def test_weights_beyond_the_precision_are_clamped_where_the_builder_does_so(keep_twice):
    model, feeds = masked(), {"x": np.ones((1, 4), np.float32), "mask": np.array([[1, 1, 1, 0]], np.float32)}
    every = range(3)
    plain = Emulation(model, keep_twice=keep_twice).run(feeds, every)[0]
    assert np.isnan(plain[0, :3]).all(), "0 times minus infinity"
    clamped = Emulation(model, keep_twice=keep_twice, clamp=True).run(feeds, every)[0]
    np.testing.assert_array_equal(clamped, [[1, 1, 1, -65504]])
    infinite = Precision.FP16.round(np.array([np.inf, 1e9, -1e9, np.nan], np.float32), clamp=True)
    np.testing.assert_array_equal(infinite, [np.inf, 65504, -65504, np.nan])
