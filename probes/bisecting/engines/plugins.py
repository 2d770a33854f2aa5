"""Plugin nodes of an ONNX model, and standard operators that compute the same in their place."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, defs, helper, numpy_helper

from harness.errors import UsageError
from harness.models.model import Model
from harness.models.submodel import RUNTIME_DOMAINS
from kernels.reference import EPSILON


def is_plugin(node: onnx.NodeProto) -> bool:
    """Whether only a plugin can compute a node: neither ONNX nor ONNX Runtime knows its operator."""
    if node.domain in RUNTIME_DOMAINS:
        return False
    return not (node.domain in ("", "ai.onnx") and defs.has(node.op_type))


def replaced(
    model: Model, nodes: Collection[int], given: Mapping[str, onnx.ModelProto] | None = None
) -> onnx.ModelProto:  # fmt: skip
    """The model with these nodes (by index) replaced; names of all other nodes, inputs and outputs stay.

    `given`: op -> a model of the user's whose inputs and outputs stand, in order, for those of the node. Raises UsageError
    for an operator that there is nothing for.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    if not nodes:
        return proto
    del proto.graph.node[:]
    for node in model.nodes:
        if node.index in nodes:
            part = _Part(node.proto, model.opset)
            part.write((given or {}).get(node.op_type))
            proto.graph.node.extend(part.nodes)
            proto.graph.initializer.extend(part.constants)
        else:
            proto.graph.node.append(node.proto)
    return proto


def can_replace(op_type: str) -> bool:
    return op_type in _WRITERS


@dataclass
class _Part:
    """What stands for one plugin node; its nodes and tensors are named after it."""

    node: onnx.NodeProto
    opset: int
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[TensorProto] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.fields: dict[str, Any] = {a.name: helper.get_attribute_value(a) for a in self.node.attribute}
        self.scope = self.node.name or self.node.output[0]

    def write(self, given: onnx.ModelProto | None) -> None:
        if given is not None:
            self._insert(given.graph)
            return
        if self.node.op_type not in _WRITERS:
            raise UsageError(f"{self.scope}: nothing is known that computes what {self.node.op_type} does",
                             hint=f"--replace {self.node.op_type}=SUBGRAPH.onnx, with the same inputs and outputs")  # fmt: skip
        made = _WRITERS[self.node.op_type](self)
        self.nodes.append(helper.make_node("Identity", [made], self.node.output[:1], name=f"{self.scope}/replaced"))

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Append a node; the name of its output."""
        name = f"{self.scope}/replaced.{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=f"{name}/{kind}", **attributes))
        return name

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        name = f"{self.scope}/constant.{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def tensor(self, name: str) -> np.ndarray:
        """A field that holds weights: a tensor, or a list of numbers."""
        value = self.fields[name]
        array = numpy_helper.to_array(value) if isinstance(value, TensorProto) else np.asarray(value)
        return np.asarray(array, np.float32)

    def _insert(self, graph: onnx.GraphProto) -> None:
        """A user's subgraph, its names kept apart from the model's."""
        names = dict(zip((value.name for value in graph.input), self.node.input, strict=False))
        names |= dict(zip((value.name for value in graph.output), self.node.output, strict=False))

        def name_of(name: str) -> str:
            return names.get(name) or (f"{self.scope}/replaced:{name}" if name else "")

        for tensor in graph.initializer:
            self.constants.append(TensorProto.FromString(tensor.SerializeToString()))
            self.constants[-1].name = name_of(tensor.name)
        for node in graph.node:
            copy = onnx.NodeProto.FromString(node.SerializeToString())
            copy.name = name_of(node.name)
            copy.input[:] = [name_of(name) for name in node.input]
            copy.output[:] = [name_of(name) for name in node.output]
            self.nodes.append(copy)


# Operators, as their plugins compute them


def _gelu(part: _Part) -> str:
    """x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), after an optional bias."""
    x = part.node.input[0]
    if "bias" in part.fields:
        x = part.op("Add", x, part.constant(part.tensor("bias").reshape(-1, 1, 1)))
    cube = part.op("Mul", part.op("Mul", x, x), x)
    inner = part.op("Add", x, part.op("Mul", cube, part.constant(0.044715)))
    tanh = part.op("Tanh", part.op("Mul", inner, part.constant(math.sqrt(2 / math.pi))))
    return part.op("Mul", part.op("Mul", x, part.constant(0.5)), part.op("Add", tanh, part.constant(1.0)))


def _skip_layer_norm(part: _Part) -> str:
    """Layer normalisation over E of input + skip (+ bias), [S, B, E, 1, 1]."""
    total = part.op("Add", *part.node.input[:2])
    if "bias" in part.fields:
        total = part.op("Add", total, part.constant(part.tensor("bias").reshape(-1, 1, 1)))
    mean = _mean(part, total)
    centred = part.op("Sub", total, mean)
    variance = _mean(part, part.op("Mul", centred, centred))
    root = part.op("Sqrt", part.op("Add", variance, part.constant(EPSILON)))
    gamma, beta = (part.constant(part.tensor(name).reshape(-1, 1, 1)) for name in ("gamma", "beta"))
    return part.op("Add", part.op("Mul", part.op("Div", centred, root), gamma), beta)


def _mean(part: _Part, tensor: str) -> str:
    if part.opset >= 18:
        return part.op("ReduceMean", tensor, part.constant([2], np.int64), keepdims=1)
    return part.op("ReduceMean", tensor, axes=[2], keepdims=1)


def _fully_connected(part: _Part) -> str:
    """x W, [S, B, K, 1, 1] by W [K, out_dims] -> [S, B, out_dims, 1, 1]."""
    out = int(part.fields["out_dims"])
    flat = part.op("Reshape", part.node.input[0], part.constant([0, 0, -1], np.int64))
    product = part.op("MatMul", flat, part.constant(part.tensor("W").reshape(-1, out)))
    return part.op("Reshape", product, part.constant([0, 0, out, 1, 1], np.int64))


def _attention(part: _Part) -> str:
    """softmax(Q K^T / sqrt(H)) V: [S, B, 3E, 1, 1], of which each head holds Q, K, V -> [S, B, E, 1, 1].

    `has_mask`: the second input int32 [B] counts the valid keys of each sequence.
    """
    hidden, heads = int(part.fields["hidden_size"]), int(part.fields["num_heads"])
    size = hidden // heads
    qkv = part.op("Reshape", part.node.input[0], part.constant([0, 0, heads, 3, size], np.int64))
    # [S, B, N, 3, H] -> [3, B, N, S, H]
    turned = part.op("Transpose", qkv, perm=[3, 1, 2, 0, 4])
    q, k, v = (part.op("Gather", turned, part.constant(which, np.int64), axis=0) for which in range(3))
    scores = part.op("MatMul", q, part.op("Transpose", k, perm=[0, 1, 3, 2]))
    scores = part.op("Mul", scores, part.constant(1 / math.sqrt(size)))
    if len(part.node.input) > 1 and int(part.fields.get("has_mask", 1)):
        scores = _hide(part, scores, part.node.input[1])
    context = part.op("MatMul", part.op("Softmax", scores, axis=-1), v)
    return part.op(
        "Reshape", part.op("Transpose", context, perm=[2, 0, 1, 3]), part.constant([0, 0, hidden, 1, 1], np.int64)
    )


def _hide(part: _Part, scores: str, valid: str) -> str:
    """Scores [B, N, S, S] with the keys from `valid` [B] on at -1e30."""
    length = part.op("Gather", part.op("Shape", scores), part.constant(3, np.int64))
    places = part.op("Range", part.constant(0, np.int64), length, part.constant(1, np.int64))
    counts = part.op("Reshape", part.op("Cast", valid, to=TensorProto.INT64), part.constant([-1, 1, 1, 1], np.int64))
    return part.op("Where", part.op("Less", places, counts), scores, part.constant(-1e30))


_WRITERS: dict[str, Callable[[_Part], str]] = {
    "CustomGeluPluginDynamic": _gelu, "CustomSkipLayerNormPluginDynamic": _skip_layer_norm,
    "CustomFCPluginDynamic": _fully_connected, "CustomQKVToContextPluginDynamic": _attention,
}  # fmt: skip
