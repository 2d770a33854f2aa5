"""Models that hold FP16 or BF16 tensors, rewritten so that ONNX Runtime on a CPU stores them as such.

There it computes such nodes in FP32 and drops the casts between them, so that an overflow disappears. Casts that stand in
the model stay: here every node reads its halves widened to FP32, and what it makes is cast back at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import onnx
from onnx import TensorProto, helper

from harness.models.model import Model, body_dtypes, subgraphs

HALVES = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16})
AS_THEY_ARE = frozenset({"Cast", "CastLike", "Shape", "Size"})  # they read a half without computing in it


def explicit_halves(model: Model, dtypes: Mapping[str, int]) -> Model:
    """The same model, its tensors under their own names and types, with every rounding to a half spelt out as a Cast."""
    if not halves_in(dtypes):
        return model
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    _rewrite(proto.graph, dtypes, model.opset)
    return replace(model, proto=proto)


def halves_in(dtypes: Mapping[str, int]) -> bool:
    """Whether any tensor of the main graph is FP16 or BF16."""
    return any(dtype in HALVES for dtype in dtypes.values())


def spelt_out(node: onnx.NodeProto, dtypes: Mapping[str, int], opset: int) -> list[onnx.NodeProto]:
    """The node with casts around it: [casts to FP32, node, casts back]; just the node if it computes in no half."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    if bodies := subgraphs(copy):
        for body in bodies:
            _rewrite(body, {**dtypes, **body_dtypes(body, dict(dtypes), opset)}, opset)
        return [copy]
    read = [name for name in dict.fromkeys(node.input) if dtypes.get(name) in HALVES]
    if not read or node.op_type in AS_THEY_ARE:
        return [copy]
    made = [name for name in node.output if dtypes.get(name) in HALVES]
    tag = next(name for name in node.output if name)  # two readers of a tensor widen it under two names
    wide = {name: f"{name}:wide:{tag}" for name in read} | {name: f"{name}:wide" for name in made}
    copy.input[:] = [wide.get(name, name) for name in node.input]
    copy.output[:] = [wide.get(name, name) for name in node.output]
    casts = [helper.make_node("Cast", [name], [wide[name]], to=TensorProto.FLOAT) for name in read]
    back = [helper.make_node("Cast", [wide[name]], [name], to=dtypes[name]) for name in made]
    return [*casts, copy, *back]


def _rewrite(graph: onnx.GraphProto, dtypes: Mapping[str, int], opset: int) -> None:
    nodes = [made for node in graph.node for made in spelt_out(node, dtypes, opset)]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
