"""Tensors of two models are paired, and any part of one model can be put in the place of the other's."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from test_emulate import if_model, make_model, random_models

from harness.errors import UsageError
from harness.models.activations import tensor_types
from harness.models.halves import explicit_halves
from harness.models.hybrid import Hybrid
from harness.models.matching import match, sketch
from harness.models.model import Model, from_proto, load
from harness.models.opsets import at_opset
from harness.models.runtime import Runner
from harness.models.switching import renamed
from harness.models.weaving import Fabric, Link, weave

FLOAT, FLOAT16, INT64 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64


def run(model: Model, feeds):
    """The model alone; what it has in FP16 is stored in FP16."""
    running = explicit_halves(model, tensor_types(model))
    fed = {value.name: feeds[value.name] for value in model.inputs}
    return Runner(running.proto, running.weights, threads=1, optimise=False).run(fed)


def assert_ends_are_both_models(model, good, samples, rtol=1e-4):
    """All parts applied is MODEL, none is GOOD."""
    matching = match(model, good, samples)
    hybrid = Hybrid(matching, threads=1)
    names = model.outputs if set(model.outputs) == set(good.outputs) else good.outputs
    for feeds in samples:
        for applied, alone, order in ((range(len(hybrid.parts)), model, model.outputs), ((), good, names)):
            values = dict(zip(alone.outputs, run(alone, feeds), strict=True))
            for got, want in zip(hybrid.run(feeds, applied), [values[name] for name in order], strict=True):
                scale = np.abs(want[np.isfinite(want)]).max(initial=1e-30).astype(np.float64)
                np.testing.assert_allclose(got, want.astype(got.dtype), rtol=rtol, atol=rtol * scale)
    return matching, hybrid


def error(got, want) -> float:
    return max(float(np.linalg.norm(g - w) / np.linalg.norm(w)) for g, w in zip(got, want, strict=True))


def smallest(hybrid, good, feeds, tolerance=1e-3):
    """By trying all: the smallest sets of parts that must be computed GOOD's way."""
    want, parts = run(good, feeds), range(len(hybrid.parts))
    for size in range(len(parts) + 1):
        sets = [kept for kept in itertools.combinations(parts, size)
                if error(hybrid.run(feeds, set(parts) - set(kept)), want) <= tolerance]  # fmt: skip
        if sets:
            return [[hybrid.parts[i].key for i in kept] for kept in sets]
    raise AssertionError("GOOD's way everywhere must be good")


def mlp(seed=0, depth=5, width=16, **changes) -> Model:
    """x -> depth times (MatMul, Add, Tanh), node names `mm0`, `add0`, `act0`, ...; `changes` replace weights or operators."""
    rng = np.random.default_rng(seed)
    constants, nodes, last = {}, [], "x"
    for i in range(depth):
        constants[f"w{i}"] = (rng.standard_normal((width, width)) / np.sqrt(width)).astype(np.float32)
        constants[f"b{i}"] = rng.standard_normal(width).astype(np.float32)
        for op, name, second in (("MatMul", f"mm{i}", f"w{i}"), ("Add", f"add{i}", f"b{i}"), ("Tanh", f"act{i}", None)):
            nodes.append(
                helper.make_node(changes.get(name, op), [last, *([second] if second else [])], [f"t_{name}"], name=name)
            )
            last = f"t_{name}"
    nodes[-1].output[0] = "y"
    constants |= {name: value for name, value in changes.items() if isinstance(value, np.ndarray)}
    return make_model(nodes, [("x", FLOAT, ["n", width])], [("y", FLOAT)], constants)


def x(n=4, width=16, seed=1):
    return {"x": np.random.default_rng(seed).standard_normal((n, width)).astype(np.float32)}


def with_names(model: Model, name) -> Model:
    """Every tensor made by a node but the outputs under another name, nodes too."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    made = {n for node in model.nodes for n in node.proto.output} - set(model.outputs)
    del proto.graph.node[:]
    proto.graph.node.extend(renamed(node.proto, lambda n: name(n) if n in made else n) for node in model.nodes)
    for node in proto.graph.node:
        node.name = f"other_{node.name}"
    return from_proto(proto, Path("renamed.onnx"))


def test_equal_models_have_no_candidates():
    matching, hybrid = assert_ends_are_both_models(mlp(), mlp(), [x(), x(7, seed=2)])
    assert hybrid.parts == []
    assert all(pair.error == 0 for pair in matching.pairs)
    assert matching.first_divergent(1e-6) == []


@pytest.mark.parametrize("rename", [False, True])
@pytest.mark.parametrize("changes,culprits", [
    ({"w2": np.eye(16, dtype=np.float32)}, ["mm2"]),
    ({"act1": "Relu"}, ["act1"]),
    ({"act1": "Relu", "act3": "Relu", "b2": np.full(16, 3, np.float32)}, ["act1", "add2", "act3"]),
])  # fmt: skip
def test_planted_faults_are_the_candidates(changes, culprits, rename):
    good = mlp()
    model = with_names(mlp(**changes), lambda n: f"other_{n}") if rename else mlp(**changes)
    matching, hybrid = assert_ends_are_both_models(model, good, [x()])
    prefix = "other_" if rename else ""
    assert [part.key for part in hybrid.parts] == [prefix + name for name in culprits]
    assert smallest(hybrid, good, x()) == [[prefix + name for name in culprits]]
    assert matching.first_divergent(1e-3)[0].node == model.nodes.index(
        next(n for n in model.nodes if n.key == prefix + culprits[0])
    )
    part = hybrid.parts[0]
    assert (part.nodes, part.good_nodes) == ((part.key,), (culprits[0],))


def test_other_weights_throughout_still_pair_node_by_node():
    """No content agrees and no name; the weakest evidence is left: who reads what."""
    wide = 4.0 * np.eye(16, dtype=np.float32)
    good = mlp(seed=0, act4="Sigmoid")
    model = with_names(mlp(seed=5, w0=wide, act4="Neg"), lambda n: f"other_{n}")
    matching, hybrid = assert_ends_are_both_models(model, good, [x()])
    assert len(matching.pairs) == len(model.nodes)
    assert all(pair.tensor in (f"other_{pair.good}", pair.good) for pair in matching.pairs)
    assert [part.op_types for part in hybrid.parts] == [("MatMul",), ("Add",)] * 5 + [("Neg",)]


def test_an_attribute_that_changed_is_a_candidate_and_a_default_written_out_is_not():
    def model(**said):
        nodes = [
            helper.make_node("Softmax", ["x"], ["s"], name="soft", **said),
            helper.make_node("Neg", ["s"], ["y"], name="neg"),
        ]
        return make_model(nodes, [("x", FLOAT, [4, 16])], [("y", FLOAT)], {})

    assert Hybrid(match(model(axis=-1), model(), [x()])).parts == []
    _, hybrid = assert_ends_are_both_models(model(axis=0), model(), [x()])
    assert [part.key for part in hybrid.parts] == ["soft"]


def test_current_values_are_read_never_recorded_ones():
    """With the first of two faults left in, what follows it is computed from the faulty value."""
    model, good = mlp(w1=np.eye(16, dtype=np.float32), act3="Relu"), mlp()
    _, hybrid = assert_ends_are_both_models(model, good, [x()])
    want = run(mlp(w1=np.eye(16, dtype=np.float32)), x())
    np.testing.assert_allclose(hybrid.run(x(), [0])[0], want[0], rtol=1e-5)
    np.testing.assert_allclose(hybrid.run(x(), [1])[0], run(mlp(act3="Relu"), x())[0], rtol=1e-5)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(random_models(), st.data())
def test_ends_are_both_models_whatever_was_planted(case, data):
    """Nodes replaced, weights scaled, tensors renamed, in graphs with forks, several readers and several outputs."""
    good, feeds, _ = case
    proto = onnx.ModelProto()
    proto.CopyFrom(good.proto)
    changed = data.draw(st.sets(st.sampled_from([n.index for n in good.nodes]), min_size=1, max_size=3))
    for index in changed:
        node = proto.graph.node[index]
        if node.op_type in ("Relu", "Neg", "Abs", "Exp", "Sigmoid", "Identity"):
            node.op_type = "Neg" if node.op_type != "Neg" else "Relu"
        elif node.op_type in ("Add", "Sub", "Max"):
            node.op_type = "Sub" if node.op_type != "Sub" else "Max"
        for tensor in proto.graph.initializer:
            if tensor.name in node.input:
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(0.5), tensor.name))
    model = from_proto(proto, Path("changed.onnx"))
    if data.draw(st.booleans()):
        model = with_names(model, lambda n: f"z_{n}")
    with np.errstate(all="ignore"):
        matching, hybrid = assert_ends_are_both_models(model, good, [feeds], rtol=1e-3)
    in_parts = {i for part in hybrid.parts for i in part.indices}
    if all(pair.how == "name" or pair.how == "output" for pair in matching.pairs):
        assert in_parts <= changed


@pytest.mark.parametrize("level", ["BASIC", "EXTENDED"])
def test_an_optimised_model(tmp_path, level):
    """Fused operators, of other domains too; the parts are what the optimiser touched."""
    rng = np.random.default_rng(3)
    constants = {"w": rng.standard_normal((4, 3, 3, 3)).astype(np.float32), "scale": np.ones(4, np.float32) * 2, "shift": np.ones(4, np.float32),
                 "mean": np.zeros(4, np.float32), "var": np.ones(4, np.float32), "v": rng.standard_normal((4, 4, 1, 1)).astype(np.float32)}  # fmt: skip
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], name="conv"), helper.make_node("BatchNormalization", ["c", "scale", "shift", "mean", "var"], ["n"], name="norm"),
             helper.make_node("Relu", ["n"], ["r"], name="relu"), helper.make_node("Conv", ["r", "v"], ["d"], name="conv2"), helper.make_node("Sigmoid", ["d"], ["s"], name="gate"),
             helper.make_node("Mul", ["d", "s"], ["y"], name="swish")]  # fmt: skip
    good = make_model(nodes, [("x", FLOAT, [1, 3, 8, 8])], [("y", FLOAT)], constants)
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    ort.InferenceSession(good.proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    model = load(tmp_path / "optimised.onnx")
    assert len(model.nodes) < len(good.nodes)
    feeds = {"x": rng.standard_normal((1, 3, 8, 8)).astype(np.float32)}
    _, hybrid = assert_ends_are_both_models(model, good, [feeds])
    assert hybrid.parts
    if level == "EXTENDED":
        assert {"com.microsoft"} <= {node.proto.domain for node in model.nodes}
    assert all(part.nodes and part.good_nodes for part in hybrid.parts)


def quantised(good: Model, scales) -> Model:
    """`good` with a Q/DQ pair in front of every MatMul and a quantised weight behind a DQ."""
    constants, nodes = {t.name: good.constant(t.name) for t in good.graph.initializer}, []
    constants["zero"] = np.int8(0)
    for node in good.nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(node.proto)
        if copy.op_type == "MatMul":
            data, weight = copy.input
            scale = np.float32(np.abs(constants[weight]).max() / 127)
            constants |= {
                f"{weight}_scale": scale,
                f"{weight}_q": np.clip(np.rint(constants.pop(weight) / scale), -127, 127).astype(np.int8),
            }
            constants[f"{data}_scale"] = np.float32(scales.get(node.key, 4 / 127))
            nodes += [helper.make_node("QuantizeLinear", [data, f"{data}_scale", "zero"], [f"{data}_q"], name=f"q_{node.key}"),
                      helper.make_node("DequantizeLinear", [f"{data}_q", f"{data}_scale", "zero"], [f"{data}_dq"], name=f"dq_{node.key}"),
                      helper.make_node("DequantizeLinear", [f"{weight}_q", f"{weight}_scale", "zero"], [f"{weight}_dq"], name=f"dqw_{node.key}")]  # fmt: skip
            copy.input[:] = [f"{data}_dq", f"{weight}_dq"]
        nodes.append(copy)
    return make_model(nodes, [("x", FLOAT, ["n", 16])], [("y", FLOAT)], constants)


def test_an_absurd_scale_is_found_at_its_own_nodes():
    """Only the Q/DQ pairs are candidates: the operators between them are the same in both models."""
    good = mlp()
    model = quantised(good, {"mm3": 10.0})
    matching, hybrid = assert_ends_are_both_models(model, good, [x()])
    assert {part.op_types for part in hybrid.parts} == {("QuantizeLinear", "DequantizeLinear"), ("DequantizeLinear",)}
    assert len(hybrid.parts) == 10
    assert smallest(hybrid, good, x(), tolerance=0.1) == [["dq_mm3"]]
    assert matching.first_divergent(0.5)[0].tensor == "t_act2_dq"


def in_fp16(good: Model) -> Model:
    """The model in FP16 throughout, with casts at its inputs and outputs."""
    constants = {t.name: good.constant(t.name).astype(np.float16) for t in good.graph.initializer}
    nodes = [helper.make_node("Cast", ["x"], ["x_half"], name="cast_in", to=FLOAT16)]
    for node in good.nodes:
        nodes.append(onnx.NodeProto())
        nodes[-1].CopyFrom(node.proto)
        nodes[-1].input[:] = ["x_half" if n == "x" else n for n in node.proto.input]
    nodes[-1].output[0] = "y_half"
    nodes.append(helper.make_node("Cast", ["y_half"], ["y"], name="cast_out", to=FLOAT))
    return make_model(nodes, [("x", FLOAT, ["n", 16])], [("y", FLOAT)], constants)


def test_a_model_in_fp16_is_compared_as_it_is_stored():
    good = mlp()
    matching, hybrid = assert_ends_are_both_models(in_fp16(good), good, [x()], rtol=1e-2)
    assert [part.key for part in hybrid.parts][:3] == ["cast_in", "mm0", "add0"]
    errors = {pair.tensor: pair.error for pair in matching.pairs}
    assert 0 < errors["x_half"] < errors["y_half"] < 1e-2
    assert hybrid.run(x(), [])[0].dtype == np.float32
    up, down = {"up": np.float32(6e4), "down": np.float32(1e-4)}, [("x", FLOAT, [1])]
    nodes = [
        helper.make_node("Mul", ["x", "up"], ["big"], name="scale_up"),
        helper.make_node("Mul", ["big", "down"], ["y"], name="scale_down"),
    ]
    good = make_model(nodes, down, [("y", FLOAT)], up)
    half = make_model(
        nodes, [("x", FLOAT16, [1])], [("y", FLOAT16)], {name: value.astype(np.float16) for name, value in up.items()}
    )
    feeds = {"x": np.array([10], np.float32)}
    hybrid = Hybrid(match(half, good, [feeds]))
    outcomes = {applied: float(hybrid.run(feeds, applied)[0][0]) for applied in ((), (0,), (1,), (0, 1))}
    assert outcomes == pytest.approx({(): 60, (0,): np.inf, (1,): np.inf, (0, 1): np.inf})


def test_different_inputs_names_and_opsets():
    """MODEL reads `sr` as well, calls its output otherwise, and is written at a newer opset."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["m"], name="mean", axes=[1], keepdims=1),
        helper.make_node("Sub", ["x", "m"], ["y"], name="centre"),
    ]
    good = make_model(nodes, [("x", FLOAT, ["n", 16])], [("y", FLOAT)], {}, opset=13)
    newer = [helper.make_node("ReduceMean", ["x", "axes"], ["m"], name="mean", keepdims=1), helper.make_node("Sub", ["x", "m"], ["d"], name="centre"),
             helper.make_node("Cast", ["sr"], ["rate"], name="cast", to=FLOAT), helper.make_node("Mul", ["d", "rate"], ["out"], name="scale")]  # fmt: skip
    model = make_model(
        newer,
        [("x", FLOAT, ["n", 16]), ("sr", INT64, [])],
        [("out", FLOAT)],
        {"axes": np.array([1], np.int64)},
        opset=18,
    )
    feeds = x() | {"sr": np.array(2)}
    _, hybrid = assert_ends_are_both_models(model, good, [feeds])
    np.testing.assert_allclose(hybrid.run(feeds, range(len(hybrid.parts)))[0], 2 * run(good, feeds)[0], rtol=1e-5)
    assert "scale" in {part.key for part in hybrid.parts}
    assert "mean" not in {part.key for part in hybrid.parts}
    with pytest.raises(UsageError, match="'sr'"):
        match(model, good, [x()])


def test_a_subgraph_is_one_part():
    model = if_model()
    body = next(a.g for n in model.graph.node for a in n.attribute if a.name == "then_branch")
    for tensor in body.initializer:
        tensor.CopyFrom(numpy_helper.from_array(np.float32(1e-3), tensor.name))
    feeds = {"x": np.full(2, 10, np.float32), "c": np.array(True)}
    _, hybrid = assert_ends_are_both_models(model, if_model(), [feeds, feeds | {"c": np.array(False)}])
    assert [part.key for part in hybrid.parts] == ["branch"]


def test_shifted_names_are_not_believed():
    """An edit that inserts a node renumbers what follows: contents then say which tensor is which."""
    w = {f"w{i}": np.random.default_rng(i).standard_normal((16, 16)).astype(np.float32) for i in range(4)}
    nodes = [helper.make_node("MatMul", [f"{i}" if i else "x", f"w{i}"], [f"{i + 1}"], name=f"n{i}") for i in range(4)]
    good = make_model(nodes, [("x", FLOAT, ["n", 16])], [("4", FLOAT)], w)
    nodes = [helper.make_node("Neg", ["x"], ["1"], name="inserted"),
             *(helper.make_node("MatMul", [f"{i + 1}", f"w{i}"], [f"{i + 2}"], name=f"n{i}") for i in range(4))]  # fmt: skip
    model = make_model(nodes, [("x", FLOAT, ["n", 16])], [("5", FLOAT)], w)
    _, hybrid = assert_ends_are_both_models(model, good, [x()])
    # -x, and all that follows is negative too: operands, not contents, pair them
    assert [part.key for part in hybrid.parts] == ["inserted"]


def test_weights_in_common_are_held_once():
    big = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="mm"),
        helper.make_node("Relu", ["h"], ["y"], name="act"),
    ]
    good = make_model(nodes, [("x", FLOAT, [1, 64])], [("y", FLOAT)], {"w": big})
    nodes[1].op_type = "Tanh"
    model = make_model(nodes, [("x", FLOAT, [1, 64])], [("y", FLOAT)], {"w": big.copy()})
    _, hybrid = assert_ends_are_both_models(model, good, [{"x": np.ones((1, 64), np.float32)}])
    assert [part.key for part in hybrid.parts] == ["act"]
    assert list(hybrid._runner._weights) == ["model:w"]


def test_outputs_that_do_not_correspond_are_refused():
    two = make_model([helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Neg", ["x"], ["b"])], [("x", FLOAT, ["n", 16])],
                     [("a", FLOAT), ("b", FLOAT)], {})  # fmt: skip
    with pytest.raises(UsageError, match="do not correspond"):
        match(two, mlp(), [x()])


@pytest.mark.parametrize("size", [1, 200, 5_000, 300_000])
def test_sketches_estimate_distances(size):
    rng = np.random.default_rng(size)
    a = rng.standard_normal(size).astype(np.float32)
    b = a + rng.standard_normal(size).astype(np.float32) * 0.1
    true = np.linalg.norm(a - b) / np.linalg.norm(b)
    assert np.linalg.norm(sketch(a) - sketch(b)) / np.linalg.norm(sketch(b)) == pytest.approx(
        true, rel=0.3 if size > 256 else 1e-5
    )


def test_a_model_at_a_newer_opset_computes_the_same():
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="mm"),
        helper.make_node("ReduceSum", ["h"], ["y"], name="sum", axes=[1]),
    ]
    model = make_model(
        nodes,
        [("x", FLOAT, ["n", 64])],
        [("y", FLOAT)],
        {"w": np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)},
        opset=11,
    )
    newer = at_opset(model, 18)
    assert newer.opset == 18
    assert model.weights.keys() == newer.weights.keys() == {"w"}
    feeds = {"x": np.random.default_rng(1).standard_normal((3, 64)).astype(np.float32)}
    np.testing.assert_allclose(run(newer, feeds)[0], run(model, feeds)[0], rtol=1e-5)


def crossed(first, second, outputs) -> Model:
    """x -> first -> second, each tensor named by its operator."""
    nodes = [helper.make_node(first, ["x"], [first], name=first), helper.make_node(second, [first], [second], name=second),
             helper.make_node("Abs", [second], ["y"], name="abs")]  # fmt: skip
    return make_model(nodes, [("x", FLOAT, ["n", 16])], [(name, FLOAT) for name in outputs], {})


def test_links_that_would_make_a_cycle_are_dropped():
    """One model has Neg before Tanh, the other after it: each would wait for the other."""
    ours, theirs = Fabric(crossed("Neg", "Tanh", ["y"])), Fabric(crossed("Tanh", "Neg", ["y"]))
    links = [Link("y", "y", "output"), Link("Neg", "Neg", "name", 0.1), Link("Tanh", "Tanh", "name", 0.2)]
    regions, kept = weave(ours, theirs, links)
    assert kept == links[:2]
    assert [[link.ours for link in region.links] for region in regions] == [["Neg"], ["y"]]
    assert [(region.ours, region.theirs) for region in regions] == [([0], [0, 1]), ([1, 2], [2])]


def test_outputs_that_depend_on_each_other_the_other_way_round():
    model, good = crossed("Neg", "Tanh", ["Neg", "Tanh", "y"]), crossed("Tanh", "Neg", ["Tanh", "Neg", "y"])
    _, hybrid = assert_ends_are_both_models(model, crossed("Neg", "Tanh", ["Tanh", "Neg", "y"]), [x()])
    assert hybrid.parts == []
    hybrid = Hybrid(match(model, good, [x()]))
    by_name = dict(zip(good.outputs, run(good, x()), strict=True))
    for got, name in zip(hybrid.run(x(), []), model.outputs, strict=True):
        np.testing.assert_allclose(got, by_name[name], rtol=1e-5)
    for got, want in zip(hybrid.run(x(), range(len(hybrid.parts))), run(model, x()), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5)
