"""The model behind the recording `h100_trt86_myelin_2025.3.sqlite`, put together from what the recording says of it.

The file itself was not kept. Its names stand in the recording: dense layers whose weights are called like the node (which
is why TensorRT appends a running number, `l0_o_4`, `l1_f1_11`: six a layer, query, key and value first), attention and
residual nodes, and `out`. The numbers of its layers without a name, 33 and 54, 87 and 105, 138 and 156, 189 and 207, are
those of two LayerNormalization a layer, with a GELU of five nodes between them.
"""

from __future__ import annotations

import re

import numpy as np
import onnx
from onnx import TensorProto, helper

from small_models import make_proto

LAYERS = 4
DENSE = ("q", "k", "v", "o", "f1", "f2")


def make() -> onnx.ModelProto:
    """The nodes with their names and edges; hidden size 8, since weights say nothing of names."""
    constants: dict[str, np.ndarray] = {name: np.float32(value) for name, value in (
        ("sqrt2", 2**0.5), ("one", 1), ("half", 0.5), ("scale", 0.5))}  # fmt: skip
    constants |= {"split": np.array([0, 0, 2, 4]), "merge": np.array([0, 0, 8])}
    nodes: list[onnx.NodeProto] = []

    def add(op: str, name: str, *inputs: str, **attributes: object) -> str:
        nodes.append(helper.make_node(op, inputs, [f"{name}:0"], name=name, **attributes))
        return f"{name}:0"

    def normal(name: str, source: str) -> str:
        constants[f"{name}.gamma"] = constants[f"{name}.beta"] = np.ones(8, np.float32)
        return add("LayerNormalization", name, source, f"{name}.gamma", f"{name}.beta")

    x = "x"
    for layer in (f"l{number}" for number in range(LAYERS)):
        constants |= {f"{layer}.{name}": np.eye(8, dtype=np.float32) for name in DENSE}
        heads = {}
        for name, order in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
            product = add("MatMul", f"{layer}.{name}", x, f"{layer}.{name}")
            split = add("Reshape", f"{layer}.{name}.split", product, "split")
            heads[name] = add("Transpose", f"{layer}.{name}.turn", split, perm=order)
        scores = add("MatMul", f"{layer}.qk", heads["q"], heads["k"])
        scores = add("Mul", f"{layer}.scale", scores, "scale")
        weights = add("Softmax", f"{layer}.softmax", scores, axis=-1)
        context = add("MatMul", f"{layer}.pv", weights, heads["v"])
        context = add("Transpose", f"{layer}.pv.turn", context, perm=[0, 2, 1, 3])
        context = add("Reshape", f"{layer}.pv.merge", context, "merge")
        attended = add("MatMul", f"{layer}.o", context, f"{layer}.o")
        x = normal(f"{layer}.ln1", add("Add", f"{layer}.res1", x, attended))
        wide = add("MatMul", f"{layer}.f1", x, f"{layer}.f1")
        part = add("Div", f"{layer}.gelu.div", wide, "sqrt2")
        part = add("Add", f"{layer}.gelu.add", add("Erf", f"{layer}.gelu.erf", part), "one")
        part = add("Mul", f"{layer}.gelu.half", add("Mul", f"{layer}.gelu.mul", wide, part), "half")
        narrow = add("MatMul", f"{layer}.f2", part, f"{layer}.f2")
        x = normal(f"{layer}.ln2", add("Add", f"{layer}.res2", x, narrow))
    nodes.append(helper.make_node("Identity", [x], ["y"], name="out"))
    shape = [1, 4, 8]
    return make_proto(nodes, [("x", TensorProto.FLOAT, shape)], [("y", TensorProto.FLOAT, shape)], constants)


# How the name of an operation of Myelin begins, N a layer -> the nodes of that layer that it must have come from.
TRUTH = {
    "fc__": ("q", "k", "v"), "lN_qk_matrix": ("qk",), "shuffle_output_lN_qk": ("qk", "scale", "softmax"),
    "lN_pv": ("pv",), "lN_o_": ("o",), "lN_res1": ("res1", "ln1"), "lN_f1_": ("f1",), "lN_f2_": ("f2",),
    "gelu_": ("gelu.div", "gelu.erf", "gelu.add", "gelu.mul", "gelu.half"), "lN_res2": ("res2", "ln2"),
}  # fmt: skip


def nodes_of(operation: str, layer: int) -> set[str]:
    """All that an operation can have come from; `layer` says it where the name does not."""
    name = re.sub(r"^(?:slice|reshape)__mye\d+\+", "", operation)
    for number in range(LAYERS):
        if numbered := re.match(r"\(Unnamed Layer_ (\d+)\)", name):
            which = (33, 54, 87, 105, 138, 156, 189, 207).index(int(numbered[1]))
            return {f"l{which // 2}.ln{which % 2 + 1}", *(["out"] if which == 7 else [])}
        for begins, nodes in TRUTH.items():
            if name.startswith(begins.replace("lN", f"l{number}")) and (number == layer or "lN" in begins):
                return {f"l{number}.{node}" for node in nodes}
    return set()
