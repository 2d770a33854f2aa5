"""Small models that tests share: built by hand, or drawn by hypothesis."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from harness.models.model import Model, from_proto


def make_proto(nodes, inputs, outputs, constants, opset=17) -> onnx.ModelProto:
    """`inputs`: (name, type, shape); `outputs`: (name, type) or (name, type, shape)."""
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info(*i) for i in inputs], [helper.make_tensor_value_info(*o, *[None] * (3 - len(o))) for o in outputs],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def make_model(nodes, inputs, outputs, constants, opset=17) -> Model:
    return from_proto(make_proto(nodes, inputs, outputs, constants, opset), Path("test.onnx"))


def planted_chain(length=12, faults=(4,), size=8) -> onnx.ModelProto:
    """A chain of Add and Mul, named by layer, with a scale beyond FP16 and its inverse planted after each of `faults`.

    The truth: for each fault f the culprits are `/layer.f/up` and `/layer.f/down` (the value between them overflows).
    """
    nodes, constants, tensor = (
        [],
        {"bias": np.float32(0.25), "gain": np.float32(0.9), "up": np.float32(1e6), "down": np.float32(1e-6)},
        "x",
    )

    def add(op, name, *inputs):
        nonlocal tensor
        nodes.append(helper.make_node(op, [tensor, *inputs], [f"{name}:out"], name=name))
        tensor = f"{name}:out"

    for layer in range(length):
        add("Add", f"/layer.{layer}/bias", "bias")
        if layer in faults:
            add("Mul", f"/layer.{layer}/up", "up")
            add("Mul", f"/layer.{layer}/down", "down")
        add("Mul", f"/layer.{layer}/gain", "gain")
    nodes[-1].output[0] = "y"
    shape = ["batch", size]
    return make_proto(nodes, [("x", TensorProto.FLOAT, shape)], [("y", TensorProto.FLOAT, shape)], constants)


UNARY = ["Relu", "Neg", "Abs", "Exp", "Sigmoid", "Identity"]
BINARY = ["Add", "Mul", "Sub", "Div", "Max"]


@st.composite
def random_models(draw):
    """Small graphs with several readers per tensor, exact and inexact operators, weights, several outputs."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    constants: dict[str, np.ndarray] = {}
    nodes, tensors = [], ["x"]
    for index in range(draw(st.integers(1, 9))):
        kind = draw(st.sampled_from(["unary", "binary", "scale", "matmul", "split", "transpose"]))
        source, out = draw(st.sampled_from(tensors)), f"t{index}"
        name = f"node{index}"
        if kind == "unary":
            nodes.append(helper.make_node(draw(st.sampled_from(UNARY)), [source], [out], name=name))
        elif kind == "binary":
            nodes.append(
                helper.make_node(
                    draw(st.sampled_from(BINARY)), [source, draw(st.sampled_from(tensors))], [out], name=name
                )
            )
        elif kind == "scale":  # large and tiny factors: overflow and underflow happen
            constants[f"c{index}"] = np.float32(10.0 ** draw(st.integers(-8, 6)) * 1.2345)
            nodes.append(helper.make_node("Mul", [source, f"c{index}"], [out], name=name))
        elif kind == "matmul":
            constants[f"w{index}"] = rng.standard_normal((4, 4)).astype(np.float32)
            nodes.append(helper.make_node("MatMul", [source, f"w{index}"], [out], name=name))
        elif kind == "split":
            nodes.append(helper.make_node("Split", [source], [out, f"{out}b"], name=name, axis=0))
            nodes.append(helper.make_node("Concat", [f"{out}b", out], [f"{out}c"], name=f"{name}c", axis=0))
            tensors.append(f"{out}c")
            continue
        else:
            nodes.append(helper.make_node("Transpose", [source], [out], name=name, perm=[1, 0]))
        tensors.append(out)
    made = tensors[1:]
    outputs = sorted(set(draw(st.lists(st.sampled_from(made), min_size=1, max_size=3))))
    model = make_model(nodes, [("x", TensorProto.FLOAT, [4, 4])], [(o, TensorProto.FLOAT) for o in outputs], constants)
    lowered = draw(st.sets(st.sampled_from(range(len(model.nodes)))))
    feeds = {"x": (rng.standard_normal((4, 4)) * 10.0 ** rng.integers(-2, 3)).astype(np.float32)}
    return model, feeds, lowered


def if_model() -> Model:
    """y = If(c) {x * 6e4 * 1e-4} else {x + bias}, with a captured tensor and a constant inside."""
    inner = helper.make_graph(
        [helper.make_node("Constant", [], ["up"], value=numpy_helper.from_array(np.float32(6e4))),
         helper.make_node("Mul", ["h", "up"], ["big"]), helper.make_node("Mul", ["big", "down"], ["then_y"])],
        "then", [], [helper.make_tensor_value_info("then_y", TensorProto.FLOAT, None)], [numpy_helper.from_array(np.float32(1e-4), "down")])  # fmt: skip
    other = helper.make_graph([helper.make_node("Add", ["h", "bias"], ["else_y"])], "else", [],
                              [helper.make_tensor_value_info("else_y", TensorProto.FLOAT, None)])  # fmt: skip
    nodes = [
        helper.make_node("Identity", ["x"], ["h"], name="in"),
        helper.make_node("If", ["c"], ["y"], name="branch", then_branch=inner, else_branch=other),
    ]
    return make_model(
        nodes,
        [("x", TensorProto.FLOAT, [2]), ("c", TensorProto.BOOL, [])],
        [("y", TensorProto.FLOAT)],
        {"bias": np.float32(1 + 2**-12)},
    )
