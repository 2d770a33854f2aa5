"""The mixed model means what the emulation measured, is valid ONNX, and runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from onnx import TensorProto, external_data_helper, helper, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from harness.errors import UsageError
from harness.models.emulate import Emulation, lowerable
from harness.models.mixed import mixed_model
from harness.models.model import from_proto
from harness.models.opsets import with_type_for
from harness.models.precision import Precision
from harness.models.runtime import Runner
from small_models import if_model, make_model, planted_chain, random_models

# In FP16 these are correctly rounded whether computed in FP16 or in FP32 and then rounded.
CORRECTLY_ROUNDED = {
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Max",
    "Relu",
    "Neg",
    "Abs",
    "Identity",
    "Split",
    "Concat",
    "Transpose",
}


def with_weights(proto, weights):
    """The model in one piece, as it would be saved."""
    for tensor in proto.graph.initializer:
        if external_data_helper.uses_external_data(tensor):
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(weights[tensor.name]), tensor.name))
    return proto


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(random_models())
def test_mixed_model_is_typed_and_equals_the_emulation(case):
    model, feeds, lowered = case
    proto = with_weights(*mixed_model(model, lowered, Precision.FP16))
    shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)
    emulated = Emulation(model, threads=1).run(feeds, lowered)
    Runner(proto, {}, threads=1).run(feeds)  # ONNX Runtime takes it
    if {n.op_type for n in model.nodes} <= CORRECTLY_ROUNDED:
        with np.errstate(all="ignore"):
            stored = ReferenceEvaluator(proto).run(None, feeds)
        for s, e in zip(stored, emulated, strict=True):
            assert s.dtype == np.float32
            np.testing.assert_array_equal(s, e)


def test_lowered_nodes_compute_in_fp16_and_kept_ones_do_not():
    nodes = [
        helper.make_node(op, [a, "c"], [b], name=n)
        for op, a, b, n in (("Mul", "x", "a", "n0"), ("Add", "a", "b", "n1"), ("Mul", "b", "y", "n2"))
    ]
    model = make_model(nodes, [("x", TensorProto.FLOAT, [2])], [("y", TensorProto.FLOAT)], {"c": np.float32(1.5)})
    proto, _ = mixed_model(model, {0, 2}, Precision.FP16)
    types = {v.name: v.type.tensor_type.elem_type for v in shape_inference.infer_shapes(proto).graph.value_info}
    made = {n.name: n.output[0] for n in proto.graph.node}
    assert types[made["n0"]] == types[made["n2"]] == TensorProto.FLOAT16
    assert types[made["n1"]] == TensorProto.FLOAT
    assert [o.name for o in proto.graph.output] == ["y"]


@pytest.mark.parametrize("lowered", [set(), {0}, {1}, {0, 1}])
def test_if_bodies_are_lowered_whole_or_not_at_all(lowered):
    model = if_model()
    proto = with_weights(*mixed_model(model, lowered, Precision.FP16))
    shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)
    feeds = {"x": np.full(2, 10, np.float32), "c": np.array(True)}
    with np.errstate(all="ignore"):
        got = ReferenceEvaluator(proto).run(None, feeds)[0]
    np.testing.assert_allclose(got, Emulation(model, threads=1).run(feeds, lowered)[0], rtol=1e-3)
    Runner(proto, {}, threads=1).run(feeds)


def test_a_loop_carries_lowered_values():
    body = helper.make_graph(
        [helper.make_node("Identity", ["keep_going"], ["still"]), helper.make_node("Mul", ["state", "factor"], ["next"])],
        "body", [helper.make_tensor_value_info("i", TensorProto.INT64, []), helper.make_tensor_value_info("keep_going", TensorProto.BOOL, []),
                 helper.make_tensor_value_info("state", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info("still", TensorProto.BOOL, []), helper.make_tensor_value_info("next", TensorProto.FLOAT, [2])])  # fmt: skip
    nodes = [helper.make_node("Identity", ["f"], ["factor"], name="factor"),
             helper.make_node("Loop", ["trips", "go", "x"], ["y"], name="loop", body=body)]  # fmt: skip
    model = make_model(
        nodes,
        [("x", TensorProto.FLOAT, [2]), ("f", TensorProto.FLOAT, [])],
        [("y", TensorProto.FLOAT)],
        {"trips": np.int64(3), "go": np.array(True)},
    )
    feeds = {"x": np.float32([10, 1.1]), "f": np.array(30, np.float32)}
    for lowered, expected in ((set(), [270_000, 29_700]), ({1}, [np.inf, 29_700]), ({0}, [270_000, 29_700])):
        emulated = Emulation(model, threads=1).run(feeds, lowered)[0]
        np.testing.assert_allclose(emulated, np.float32(expected), rtol=1e-3)
        proto = with_weights(*mixed_model(model, lowered, Precision.FP16))
        shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)
        with np.errstate(all="ignore"):
            np.testing.assert_array_equal(ReferenceEvaluator(proto).run(None, feeds)[0], emulated)


def test_types_given_by_attributes_follow():
    nodes = [helper.make_node("Cast", ["i"], ["f"], name="cast", to=TensorProto.FLOAT), helper.make_node("ConstantOfShape", ["s"], ["z"], name="zeros"),
             helper.make_node("Add", ["f", "z"], ["y"], name="add")]  # fmt: skip
    model = make_model(nodes, [("i", TensorProto.INT64, [2])], [("y", TensorProto.FLOAT)], {"s": np.array([2])})
    proto, _ = mixed_model(model, {0, 1, 2}, Precision.FP16)
    shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)
    assert not [
        n
        for n in proto.graph.node
        if n.op_type == "Cast" and n.name.startswith("probe_cast") and n.attribute[0].i == TensorProto.FLOAT16
    ]
    np.testing.assert_array_equal(Runner(proto, {}).run({"i": np.array([1, 70000])})[0][0], np.float32(1))


def test_weights_read_in_both_forms_are_stored_in_both_and_unused_ones_dropped():
    w = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="low"),
        helper.make_node("MatMul", ["a", "w"], ["y"], name="kept"),
    ]
    model = make_model(nodes, [("x", TensorProto.FLOAT, [1, 64])], [("y", TensorProto.FLOAT)], {"w": w})
    _, weights = mixed_model(model, {0}, Precision.FP16)
    assert {a.dtype for a in weights.values()} == {np.dtype(np.float16), np.dtype(np.float32)}
    _, weights = mixed_model(model, {0, 1}, Precision.FP16)
    assert [a.dtype for a in weights.values()] == [np.dtype(np.float16)]
    assert model.weights.keys() == {"w"}, "the model itself is not changed"


@pytest.mark.parametrize("precision", list(Precision))
@pytest.mark.parametrize("opset", [11, 13, 15, 17, 18, 19, 21, 22, 23])
def test_every_opset(opset, precision):
    """Emulated, written, valid and, where ONNX Runtime has the kernels, run."""
    proto = planted_chain()
    proto.opset_import[0].version = opset
    model = with_type_for(from_proto(proto, Path("chain.onnx")), precision)
    feeds = {"x": np.full((1, 8), 0.5, np.float32)}
    emulation = Emulation(model, precision, threads=1)
    assert np.isinf(emulation.run(feeds, emulation.candidates)[0]).all() == (precision is Precision.FP16)
    mixed = with_weights(*mixed_model(model, {0, 1, 2, 3}, precision))
    onnx.checker.check_model(mixed, full_check=True)
    if precision is Precision.FP16:
        Runner(mixed, {}).run(feeds)


def test_bf16_needs_opset_13():
    model = make_model(
        [helper.make_node("Relu", ["x"], ["y"])],
        [("x", TensorProto.FLOAT, [1])],
        [("y", TensorProto.FLOAT)],
        {},
        opset=12,
    )
    assert lowerable(model, Precision.BF16) == [0]
    with pytest.raises(UsageError, match="opset 12"):
        mixed_model(model, {0}, Precision.BF16)
