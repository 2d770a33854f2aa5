"""Whatever model is brought: read, emulated, written in mixed precision and cut, or refused in words; ONNX's own node tests."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.backend.test.case import node as node_tests

from harness.errors import ParseError, UsageError
from harness.models import submodel
from harness.models.emulate import Emulation, lowerable
from harness.models.inputs import (
    RandomInputs,
    fitting_samples,
    load_samples,
    random_samples,
    read_samples,
    save_samples,
)
from harness.models.mixed import mixed_model
from harness.models.model import Model, from_proto
from harness.models.opsets import with_type_for
from harness.models.precision import Precision, runtime_opset
from harness.models.runtime import RunFailed, Runner
from harness.models.tracing import suspects
from probes.bisecting import verdicts
from small_models import make_proto

F = TensorProto.FLOAT
X, Y = ("x", F, [2, 4]), ("y", F, [2, 4])

# One of each kind that a search has met trouble with. What a model cannot be fed with is refused by name.
CASES = {
    "affinegrid": ["test_affine_grid_2d_expanded"],  # an If whose branches and surroundings want the same casts
    "bitcast": ["test_bitcast_float32_to_int32"],
    "cast": ["test_cast_FLOAT_to_FLOAT8E5M2", "test_cast_BFLOAT16_to_FLOAT", "test_cast_INT4_to_FLOAT"],
    "einsum": ["test_einsum_scalar"],
    "equal": ["test_equal_string"],
    "hannwindow": ["test_hannwindow"],
    "if_": ["test_if", "test_if_seq"],
    "loop": ["test_loop11", "test_loop13_seq"],
    "rmsnormalization": ["test_rms_normalization_2d_axis0_expanded"],  # ONNX Runtime's optimiser trips over it
    "scan": ["test_scan9_scalar"],
    "scatter": ["test_scatter_with_axis"],  # in a newer opset it is another operator
    "splittosequence": ["test_split_to_sequence_1"],
    "upsample": ["test_upsample_nearest"],
    "reducemax": ["test_reduce_max_empty_set"],
}  # fmt: skip
NO_ARRAY = ("test_cast_INT4_to_FLOAT", "test_loop13_seq")


def _cases() -> list:
    with np.errstate(all="ignore"):
        for module in CASES:
            importlib.import_module(f"onnx.backend.test.case.node.{module}")
    wanted = {name for names in CASES.values() for name in names}
    return [
        pytest.param(c, id=c.name) for c in node_tests._NodeTestCases if c.name in wanted
    ]  # public: all of them, 6 s


@pytest.mark.parametrize("precision", Precision)
@pytest.mark.parametrize("case", _cases())
def test_nodes_of_every_kind(tmp_path, case, precision):
    proto = onnx.ModelProto.FromString(case.model.SerializeToString())
    model = with_type_for(from_proto(proto, Path("case.onnx")), precision)
    arrays = [numpy_helper.to_array(a) if isinstance(a, TensorProto) else a for a in case.data_sets[0][0]]
    feeds = dict(zip((value.name for value in case.model.graph.input), arrays, strict=True))
    if case.name in NO_ARRAY:
        with pytest.raises(UsageError, match="cannot be given as an array"):
            random_samples(model.inputs, RandomInputs())
        return
    feeds = {name: np.asarray(value) for name, value in feeds.items()}
    (back,) = load_samples(save_samples([feeds], tmp_path))
    try:
        expected = Runner(case.model, {}, threads=1).run(feeds)
    except RunFailed as error:
        pytest.skip(f"not by this ONNX Runtime: {error}")
    wanted = Emulation(model, precision, threads=1).run(feeds, [])
    lowered = lowerable(model, precision)
    got = Emulation(model, precision, threads=1).run(back, lowered)
    if all(isinstance(value, np.ndarray) for value in expected):
        assert verdicts.accuracy([wanted], [expected], tolerance=1e-5).value < 1e-5, (
            "nothing lowered is the model itself"
        )
    assert verdicts.accuracy([got], [wanted], tolerance=0.1).value < 0.1
    path = submodel.save(*mixed_model(model, lowered, precision), tmp_path / "mixed.onnx")
    onnx.checker.check_model(str(path), full_check=True)
    facts = submodel.observe(model, feeds)
    submodel.save(submodel.extract(model, [len(model.nodes) - 1], facts), model.weights, tmp_path / "part.onnx")
    onnx.checker.check_model(str(tmp_path / "part.onnx"))
    suspects(model, [feeds])


def read(nodes, inputs=(X,), outputs=(Y,), constants=None, **more) -> Model:
    proto = make_proto(nodes, inputs, outputs, constants or {}, more.pop("opset", 17))
    for change in more.values():
        change(proto)
    return from_proto(proto, Path("m.onnx"))


def mul(a, b, out, name=""):
    return helper.make_node("Mul", [a, b], [out], name=name)


def test_nodes_in_any_order_are_sorted():
    model = read([mul("t", "t", "y"), mul("x", "x", "t")])
    assert [node.key for node in model.nodes] == ["t", "y"]


@pytest.mark.parametrize(
    "nodes,message",
    [
        ([mul("x", "nowhere", "y", "n")], "node 'n'.*'nowhere'"),
        ([mul("x", "x", "y"), mul("x", "x", "y")], "'y'.*two or more"),
        ([mul("x", "b", "y", "one"), mul("y", "x", "b", "two")], "no cycle.*(one -> two|two -> one)"),
    ],
)
def test_graphs_that_are_none(nodes, message):
    with pytest.raises(ParseError, match=message):
        read(nodes)


def test_operators_of_no_version_are_refused():
    with pytest.raises(ParseError, match="opset_import"):
        read([mul("x", "x", "y")], change=lambda proto: proto.ClearField("opset_import"))


def test_a_name_that_is_a_tensor_of_another_node_is_no_key_twice():
    keys = [node.key for node in read([mul("x", "x", "t", "y"), mul("t", "x", "y")]).nodes]
    assert len(set(keys)) == 2


def test_initialisers_are_no_inputs_and_dense():
    def older(proto):
        proto.ir_version = 3
        proto.graph.input.append(helper.make_tensor_value_info("w", F, [4, 4]))
        values, indices = numpy_helper.from_array(np.float32([7]), "s"), numpy_helper.from_array(np.int64([5]), "i")
        proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [2, 4]))

    nodes = [helper.make_node("MatMul", ["x", "w"], ["t"]), helper.make_node("Add", ["t", "s"], ["y"])]
    model = read(nodes, constants={"w": np.eye(4, dtype=np.float32)}, change=older)
    assert [value.name for value in model.graph.input] == ["x"]
    y = Emulation(model, threads=1).run({"x": np.zeros((2, 4), np.float32)}, [0, 1])[0]
    np.testing.assert_array_equal(y, [[0, 0, 0, 0], [0, 7, 0, 0]])


def test_bodies_whose_inputs_have_no_type(tmp_path):
    """Functions of ONNX are written so: what a Scan reads says what its body does."""
    body = helper.make_graph(
        [helper.make_node("Add", ["s", "e"], ["t"]), mul("t", "k", "o")], "body",
        [onnx.ValueInfoProto(name="s"), onnx.ValueInfoProto(name="e")],
        [onnx.ValueInfoProto(name="t"), onnx.ValueInfoProto(name="o")],
    )  # fmt: skip
    scan = helper.make_node("Scan", ["s0", "x"], ["last", "y"], body=body, num_scan_inputs=1)
    model = read([scan], constants={"s0": np.zeros(4, np.float32), "k": np.float32(1.5)})
    assert model.dtypes["y"] == F
    path = submodel.save(*mixed_model(model, [0], Precision.FP16), tmp_path / "mixed.onnx")
    onnx.checker.check_model(str(path), full_check=True)
    feeds = {"x": np.full((2, 4), 3, np.float32)}
    np.testing.assert_array_equal(ort.InferenceSession(path).run(None, feeds)[0], [[4.5] * 4, [9] * 4])


def test_operators_of_onnx_runtime_are_candidates(tmp_path):
    """As its optimiser writes them: ONNX knows neither their types nor those of what comes after."""
    nodes = [
        helper.make_node("FusedMatMul", ["x", "w"], ["m"], domain="com.microsoft", alpha=2.0),
        helper.make_node("FastGelu", ["m"], ["g"], domain="com.microsoft"),
        mul("g", "up", "u"), mul("u", "down", "y"),
    ]  # fmt: skip
    constants = {"w": np.eye(4, dtype=np.float32), "up": np.float32(1e6), "down": np.float32(1e-6)}
    model = read(
        nodes, constants=constants, own=lambda p: p.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    )
    model = with_type_for(model)
    assert lowerable(model, Precision.FP16) == [0, 1, 2, 3]
    sample = Emulation(model, threads=1).bind({"x": np.full((2, 4), 3, np.float32)})
    assert verdicts.accuracy([sample.run([0, 1])], [sample.run([])], tolerance=1e-2).value < 1e-2
    assert np.isinf(sample.run([2])).all()
    path = submodel.save(*mixed_model(model, [0, 1], Precision.FP16), tmp_path / "mixed.onnx")
    types = {i.name: i.type for i in ort.InferenceSession(path).get_inputs()}
    assert types == {"x": "tensor(float)"}


@pytest.mark.skipif(min(runtime_opset(), onnx.defs.onnx_opset_version()) < 22, reason="Conv has BF16 from opset 22 on")
def test_convolutions_are_lowered_to_bf16(tmp_path):
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"])]
    inputs, outputs = [("x", F, [1, 1, 4, 4])], [("y", F, [1, 1, 2, 2])]
    model = with_type_for(
        read(nodes, inputs, outputs, {"w": np.ones((1, 1, 3, 3), np.float32)}, opset=11), Precision.BF16
    )
    assert lowerable(model, Precision.BF16) == [0]
    path = submodel.save(*mixed_model(model, [0], Precision.BF16), tmp_path / "mixed.onnx")
    onnx.checker.check_model(str(path), full_check=True)


def test_a_mixed_model_may_be_mixed_again(tmp_path):
    """Its tensors bear the names that would be made."""
    constants = {"k": np.float32(1.5)}
    model = read([mul("x", "k", "t"), mul("t", "k", "u"), mul("u", "x", "y")], constants=constants)
    once = submodel.save(*mixed_model(model, [1], Precision.FP16), tmp_path / "once.onnx")
    again = from_proto(onnx.load(once), once)
    twice = submodel.save(
        *mixed_model(again, lowerable(again, Precision.FP16), Precision.FP16), tmp_path / "twice.onnx"
    )
    onnx.checker.check_model(str(twice), full_check=True)


# Inputs


def test_types_that_files_have_not_come_back(tmp_path):
    (feeds,), _ = random_samples([helper.make_tensor_value_info("b", TensorProto.BFLOAT16, [3]),
                                  helper.make_tensor_value_info("s", TensorProto.STRING, [2])], RandomInputs())  # fmt: skip
    (back,) = load_samples(save_samples([feeds], tmp_path))
    assert back["b"].dtype == feeds["b"].dtype
    for name, array in feeds.items():
        np.testing.assert_array_equal(back[name], array)


def test_bf16_may_be_given_as_fp32(tmp_path):
    np.savez(tmp_path / "x.npz", b=np.float32([1, 2]))
    (feeds,) = read_samples([tmp_path / "x.npz"], [helper.make_tensor_value_info("b", TensorProto.BFLOAT16, [2])])
    assert str(feeds["b"].dtype) == "bfloat16"


def test_no_elements_are_a_shape_as_well():
    (feeds,), notes = random_samples([helper.make_tensor_value_info("x", F, [0, 4])], RandomInputs())
    assert feeds["x"].shape == (0, 4)
    assert not notes


def test_a_batch_is_one_wherever_it_stands_and_lengths_grow_until_the_model_runs():
    inputs = [
        helper.make_tensor_value_info("h", F, [3, "batch", 8]),
        helper.make_tensor_value_info("x", F, ["batch", "samples"]),
    ]
    samples, notes = fitting_samples(inputs, RandomInputs(), lambda feeds: feeds["x"].shape[1] > 100)
    assert {name: array.shape for name, array in samples[0].items()} == {"h": (3, 1, 8), "x": (1, 256)}
    assert "1x256 was assumed" in notes[1]
    samples, _ = fitting_samples(inputs, RandomInputs(), lambda feeds: False)
    assert samples[0]["x"].shape == (1, 16)
