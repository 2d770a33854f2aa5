"""A sub-model computes what its nodes compute in the whole model, and is a valid model whatever the cut."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from harness.errors import ProbeError, UsageError
from harness.models import submodel
from harness.models.model import Model, from_proto, load, reads
from harness.models.runtime import Runner
from harness.models.submodel import extract, input_shapes, observe, save

F, I64 = TensorProto.FLOAT, TensorProto.INT64


def make_model(nodes, inputs, outputs, constants=None, opset=17, domains=()) -> Model:
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info(n, t, s) for n, t, s in inputs],
                              [helper.make_tensor_value_info(n, t, s) for n, t, s in outputs],
                              [numpy_helper.from_array(a, n) for n, a in (constants or {}).items()])  # fmt: skip
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    return from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=8), Path("test.onnx"))


def shaped_model() -> Model:
    """A split into heads with its shape computed at run time, a large weight, and an If that reads tensors around it."""
    branches = {}
    for name, op in (("then_branch", "Relu"), ("else_branch", "Neg")):
        body = [helper.make_node(op, ["r"], [f"{op}_r"]), helper.make_node("Add", [f"{op}_r", "bias"], [f"{op}_out"])]
        branches[name] = helper.make_graph(body, op, [], [helper.make_tensor_value_info(f"{op}_out", F, None)])
    node = helper.make_node
    return make_model(
        [
            node("MatMul", ["x", "w"], ["h"], name="project"),
            node("Shape", ["x"], ["s"], name="shape"),
            node("Gather", ["s", "zero"], ["batch"], name="gather"),
            node("Concat", ["batch", "heads"], ["target"], name="concat", axis=0),
            node("Reshape", ["h", "target"], ["r"], name="split"),
            node("ReduceSum", ["x"], ["total"], name="sum", keepdims=0),
            node("Greater", ["total", "limit"], ["positive"]),
            node("If", ["positive"], ["y"], name="choose", **branches),
            node("Softmax", ["y"], ["z"], name="soft"),
        ],
        [("x", F, ["B", 64])], [("z", F, None), ("h", F, None)],
        {
            "w": np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32) / 8, "zero": np.array([0]),
            "heads": np.array([4, 16]), "limit": np.float32(0), "bias": np.ones(16, np.float32),
        },
    )  # fmt: skip


def shaped_feeds(batch: int = 3) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).standard_normal((batch, 64)).astype(np.float32)}


def values_of(model: Model, feeds) -> dict[str, np.ndarray]:
    """Every tensor of the main graph, by making all of them outputs at once."""
    proto = onnx.ModelProto()
    proto.CopyFrom(without_names(model.proto))
    names = [name for node in proto.graph.node for name in node.output]
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return dict(zip(names, Runner(proto, model.weights, optimise=False).run(feeds, names), strict=True)) | dict(feeds)


def without_names(proto: onnx.ModelProto) -> onnx.ModelProto:
    """ONNX Runtime refuses repeated node names."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for node in copy.graph.node:
        node.name = ""
    return copy


def run_sub(proto: onnx.ModelProto, weights, values) -> dict[str, np.ndarray]:
    names = [value.name for value in proto.graph.output]
    feeds = {value.name: values[value.name] for value in proto.graph.input}
    return dict(zip(names, Runner(without_names(proto), weights, optimise=False).run(feeds, names), strict=True))


def assert_same(proto: onnx.ModelProto, weights, values, folder: Path) -> None:
    """The sub-model passes the checker, and gives the whole model's values when fed with them at the cut."""
    onnx.checker.check_model(str(save(proto, weights, folder / "sub.onnx")), full_check=True)
    for name, value in run_sub(proto, weights, values).items():
        np.testing.assert_allclose(value, values[name], rtol=1e-5, atol=1e-6, err_msg=name)


# Observing


def test_observed_facts_are_those_of_a_run():
    model, feeds = shaped_model(), shaped_feeds()
    facts, values = observe(model, feeds), values_of(model, feeds)
    assert facts.keys() == values.keys()
    for name, value in values.items():
        assert facts[name].shape == value.shape, name
        assert helper.tensor_dtype_to_np_dtype(facts[name].dtype) == value.dtype, name


def test_only_tensors_that_say_a_shape_have_values():
    facts = observe(shaped_model(), shaped_feeds(5))
    assert {name for name, fact in facts.items() if fact.value is not None} == {"s", "batch", "target"}
    assert facts["target"].value.tolist() == [5, 4, 16]


def test_float_scales_of_a_resize_have_values_however_they_are_computed():
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["peak"], keepdims=0),
        helper.make_node("Ceil", ["peak"], ["factor"]),
        helper.make_node("Mul", ["ones", "factor"], ["scales"]),
        helper.make_node("Resize", ["x", "", "scales"], ["y"]),
    ]
    model = make_model(nodes, [("x", F, [1, 1, 2, 2])], [("y", F, None)], {"ones": np.ones(4, np.float32)})
    facts = observe(model, {"x": np.full((1, 1, 2, 2), 0.5, np.float32)})
    assert facts["scales"].value.tolist() == [1, 1, 1, 1]
    assert [value.name for value in extract(model, [3], facts).graph.input] == ["x"]


def test_the_type_behind_an_op_without_shape_inference_comes_from_the_run(monkeypatch):
    monkeypatch.setattr(submodel, "CHUNK_ELEMENTS", 1)  # every tensor a chunk of its own
    nodes = [
        helper.make_node("Gelu", ["x"], ["a"], domain="com.microsoft"),
        helper.make_node("Cast", ["a"], ["b"], to=TensorProto.FLOAT16),
        helper.make_node("QuickGelu", ["b"], ["y"], domain="com.microsoft"),
    ]
    model = make_model(nodes, [("x", F, [2, 3])], [("y", TensorProto.FLOAT16, None)], domains=["com.microsoft"])
    facts = observe(model, {"x": np.ones((2, 3), np.float32)})
    assert (facts["a"].dtype, facts["a"].shape) == (F, (2, 3))
    assert facts["y"].dtype == TensorProto.FLOAT16


def test_an_unknown_op_is_taken_to_keep_type_and_shape():
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Mystery", ["a"], ["b", "c"], domain="test"),
        helper.make_node("Concat", ["b", "c"], ["d"], axis=1),
        helper.make_node("Relu", ["d"], ["y"]),
    ]
    model = make_model(nodes, [("x", F, ["B", 3])], [("y", F, None)], domains=["test"])
    facts = observe(model, {"x": np.ones((2, 3), np.float32)})
    assert [facts[name].shape for name in "xabcdy"] == [(2, 3)] * 4 + [(2, 6)] * 2
    last = extract(model, [3], facts)
    assert run_sub(last, {}, {"d": -np.ones((2, 6), np.float32)})["y"].sum() == 0


def test_where_nothing_runs_shape_inference_tells_what_it_can():
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Source", [], ["b"], domain="test"),  # no input to stand in for it
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    model = make_model(nodes, [("x", F, ["B", 3])], [("y", F, ["B", 3])], domains=["test"])
    facts = observe(model, {"x": np.ones((2, 3), np.float32)})
    assert facts["a"].shape == (2, 3)
    assert "b" not in facts
    with pytest.raises(ProbeError, match=r"'b'.*cannot become an input"):
        extract(model, [2], facts)
    assert [value.name for value in extract(model, [1], facts).graph.output] == ["b"]


def test_a_missing_input_is_named():
    with pytest.raises(UsageError, match="inputs x"):
        observe(shaped_model(), {})


# Extracting


@settings(max_examples=40)
@given(keep=st.sets(st.integers(0, 8), min_size=1), freeze=st.booleans())
def test_any_part_computes_what_it_computes_in_the_whole(keep, freeze, tmp_path_factory):
    model, feeds = shaped_model(), shaped_feeds()
    proto = extract(model, keep, observe(model, feeds), freeze=freeze)
    assert len(proto.graph.node) == len(keep)
    assert_same(proto, model.weights, values_of(model, feeds), tmp_path_factory.mktemp("sub"))


@st.composite
def graphs(draw):
    """A random DAG of element-wise nodes, some outputs read by nobody, some names given twice or not at all."""
    names, nodes = ["x", "c"], []
    for index in range(draw(st.integers(1, 12))):
        op = draw(st.sampled_from(["Add", "Mul", "Max"]))
        inputs = [draw(st.sampled_from(names)) for _ in range(2)]
        nodes.append(helper.make_node(op, inputs, [f"t{index}"], name=draw(st.sampled_from(["", "same", f"n{index}"]))))
        names.append(f"t{index}")
    outputs = draw(st.sets(st.sampled_from(names[2:]), min_size=1))
    constants = {"c": np.full(3, 0.5, np.float32)}
    keep = draw(st.sets(st.integers(0, len(nodes) - 1), min_size=1))
    return make_model(nodes, [("x", F, ["N"])], [(n, F, ["N"]) for n in sorted(outputs)], constants), keep


@settings(max_examples=60)
@given(graphs())
def test_interface_of_a_part_of_any_graph(drawn):
    model, keep = drawn
    feeds = {"x": np.array([1.0, -2.0, 0.5], np.float32)}
    facts = observe(model, feeds)
    proto = extract(model, keep, facts)
    kept = [model.nodes[index].proto for index in sorted(keep)]
    made, read = {o for n in kept for o in n.output}, {i for n in kept for i in reads(n)}
    left_read = {i for n in model.nodes if n.index not in keep for i in reads(n.proto)}
    constant = {"c"}  # and what is computed from it alone
    for node in model.nodes:
        constant |= set(node.proto.output) if constant.issuperset(node.proto.input) else set()
    assert {v.name for v in proto.graph.input} == read - made - constant
    assert {t.name for t in proto.graph.initializer} == (read - made) & constant
    outputs = {v.name for v in proto.graph.output}
    assert outputs >= made & set(model.outputs)
    assert outputs >= (made & left_read) - read
    values = values_of(model, feeds)
    for name, value in run_sub(proto, {}, values).items():
        np.testing.assert_array_equal(value, values[name])


def test_a_shape_at_the_cut_becomes_a_constant_and_data_an_input():
    model = shaped_model()
    facts = observe(model, shaped_feeds(3))
    split = extract(model, [4], facts)
    assert [value.name for value in split.graph.input] == ["h"]
    assert numpy_helper.to_array(split.graph.initializer[0]).tolist() == [3, 4, 16]
    assert not split.graph.output[0].type.tensor_type.shape.dim[0].dim_param


def test_inputs_are_frozen_or_keep_their_dynamic_dimensions():
    model = shaped_model()
    facts = observe(model, shaped_feeds(3))
    dims = {
        freeze: extract(model, [0], facts, freeze=freeze).graph.input[0].type.tensor_type.shape.dim
        for freeze in (True, False)
    }
    assert [d.dim_value for d in dims[True]] == [3, 64]
    assert (dims[False][0].dim_param, dims[False][1].dim_value) == ("B", 64)
    assert input_shapes(extract(model, [0], facts, freeze=False), facts) == {"x": (3, 64)}


def test_an_if_brings_what_its_branches_capture():
    model = shaped_model()
    choose = extract(model, [7], observe(model, shaped_feeds()))
    assert {value.name for value in choose.graph.input} == {"positive", "r"}
    assert {t.name for t in choose.graph.initializer} == {"bias"}


def test_unused_weights_go_and_extra_outputs_come():
    model = shaped_model()
    facts = observe(model, shaped_feeds())
    assert "w" not in {t.name for t in extract(model, [4, 8], facts).graph.initializer}
    assert {v.name for v in extract(model, [0, 4], facts, outputs=["h", "s"]).graph.output} == {"h", "r"}


def test_nothing_kept_is_refused():
    with pytest.raises(UsageError, match="at least one node"):
        extract(shaped_model(), [], {})


# Saving


def weighted_model(mebibytes: int = 4) -> Model:
    size = mebibytes * 2**18 // 64
    rng = np.random.default_rng(2)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Gemm", ["h", "v"], ["y"])]
    weights = {
        "w": rng.standard_normal((64, size)).astype(np.float32),
        "v": rng.standard_normal((size, 7)).astype(np.float32),
    }
    return make_model(nodes, [("x", F, [1, 64])], [("y", F, [1, 7])], weights)


@pytest.mark.parametrize("limit", [10**9, 0], ids=["inline", "external"])
def test_what_is_saved_reads_back_the_same(limit, tmp_path, monkeypatch):
    monkeypatch.setattr(submodel, "INLINE_LIMIT", limit)
    model = weighted_model()
    path = save(model.proto, model.weights, tmp_path / "out.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == (["out.onnx"] if limit else ["out.onnx", "out.onnx.data"])
    onnx.checker.check_model(str(path), full_check=True)
    again = load(path)
    assert again.weights.keys() == model.weights.keys()
    for name, array in model.weights.items():
        np.testing.assert_array_equal(again.weights[name], array)
    plain = onnx.load(str(path))  # the usual reader, not ours
    np.testing.assert_array_equal(
        numpy_helper.to_array(plain.graph.initializer[0]), model.constant(plain.graph.initializer[0].name)
    )
    feeds = {"x": np.ones((1, 64), np.float32)}
    np.testing.assert_array_equal(
        Runner(again.proto, again.weights).run(feeds)[0], Runner(model.proto, model.weights).run(feeds)[0]
    )


@pytest.mark.parametrize("limit", [10**9, 0], ids=["inline", "external"])
def test_saving_and_extracting_copy_no_weights(limit, tmp_path, monkeypatch):
    monkeypatch.setattr(submodel, "INLINE_LIMIT", limit)
    model = weighted_model()
    facts = observe(model, {"x": np.ones((1, 64), np.float32)})
    tracemalloc.start()
    save(extract(model, [0, 1], facts), model.weights, tmp_path / "out.onnx")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert model.weight_bytes > 4e6
    assert peak < 4e5


def test_weights_of_types_that_numpy_lacks(tmp_path):
    bits = np.arange(4096, dtype=np.uint16)
    weight = helper.make_tensor("w", TensorProto.BFLOAT16, [4096], bits.tobytes(), raw=True)
    graph = helper.make_graph(
        [helper.make_node("Cast", ["w"], ["y"], to=F)],
        "g",
        [],
        [helper.make_tensor_value_info("y", F, [4096])],
        [weight],
    )
    model = from_proto(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), Path("test.onnx")
    )
    assert "w" in model.weights
    again = onnx.load(str(save(model.proto, model.weights, tmp_path / "out.onnx")))
    assert again.graph.initializer[0].raw_data == bits.tobytes()


def test_a_failed_save_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    model = weighted_model()
    path = tmp_path / "out.onnx"
    path.write_bytes(b"old")
    monkeypatch.setattr(submodel, "_varint", lambda value: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save(model.proto, model.weights, path)
    assert [p.name for p in tmp_path.iterdir()] == ["out.onnx"]
    assert path.read_bytes() == b"old"


@given(st.integers(0, 2**63 - 1))
def test_varints_are_those_of_protobuf(value):
    assert list(TensorProto.FromString(b"\x08" + submodel._varint(value)).dims) == [value]
