"""Models with switches: parts that are chosen at run time, by one boolean each, in one ONNX Runtime session."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from harness.models.model import INLINE_BYTES, mark_as_held, opset_of, subgraphs

FLAGS = "probe:flags"  # the extra input: bool[number of switches]


def flag(index: int) -> str:
    """The tensor that holds one switch."""
    return f"probe:flag:{index}"


def with_flags(proto: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], count: int) -> onnx.ModelProto:
    """`proto` with `nodes` in place of its own, and the input FLAGS split into its `count` switches."""
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    del result.graph.node[:], result.graph.value_info[:]
    if count:
        result.graph.input.append(helper.make_tensor_value_info(FLAGS, TensorProto.BOOL, [count]))
        sizes: dict[str, Any] = {"num_outputs": count} if opset_of(proto) >= 18 else {}
        result.graph.node.append(helper.make_node("Split", [FLAGS], [flag(i) for i in range(count)], axis=0, **sizes))
    result.graph.node.extend(nodes)
    return result


def weight_tensor(name: str, array: np.ndarray) -> TensorProto:
    """An initialiser whose data the session is given as an array."""
    if array.nbytes <= INLINE_BYTES:
        return numpy_helper.from_array(array, name)
    tensor = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(array.dtype), dims=array.shape)
    mark_as_held(tensor, array)
    return tensor


def value_info(name: str, dtype: int) -> onnx.ValueInfoProto:
    """A tensor of unknown shape, or something of unknown type (a sequence, say), which the runtime infers."""
    return helper.make_tensor_value_info(name, dtype, None) if dtype else onnx.ValueInfoProto(name=name)


def if_node(
    condition: str, outputs: Sequence[str], then: Sequence[onnx.NodeProto], other: Sequence[onnx.NodeProto],
    dtypes: Mapping[str, int], name: str,
) -> onnx.NodeProto:  # fmt: skip
    """`If(condition) then else other`; the branches make the same names, which get a suffix inside."""
    present = [n for n in outputs if n]
    branches = [_branch(nodes, present, dtypes, f"{name}:{side}") for side, nodes in (("t", then), ("e", other))]
    return helper.make_node("If", [condition], present, name=name, then_branch=branches[0], else_branch=branches[1])


def _branch(
    nodes: Sequence[onnx.NodeProto], outputs: Sequence[str], dtypes: Mapping[str, int], tag: str
) -> onnx.GraphProto:
    """A branch of If: its outputs are renamed, since a subgraph must not reuse the names of the graph around it."""
    renamed = {name: f"{name}|{tag}" for name in outputs}
    copies = []
    for node in nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.output[:] = [renamed.get(n, n) for n in copy.output]
        copies.append(copy)
    values = [value_info(renamed[name], dtypes.get(name, TensorProto.UNDEFINED)) for name in outputs]
    return helper.make_graph(copies, tag, [], values)


def renamed(node: onnx.NodeProto, name: Callable[[str], str]) -> onnx.NodeProto:
    """A copy of the node with every tensor renamed, also inside its subgraphs; "" (an absent one) stays."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.input[:] = [name(n) if n else n for n in copy.input]
    copy.output[:] = [name(n) if n else n for n in copy.output]
    for body in subgraphs(copy):
        _rename_graph(body, name)
    return copy


def _rename_graph(graph: onnx.GraphProto, name: Callable[[str], str]) -> None:
    del graph.value_info[:]
    for tensor in graph.initializer:
        tensor.name = name(tensor.name)
    for value in (*graph.input, *graph.output):
        value.name = name(value.name)
    for sparse in graph.sparse_initializer:
        sparse.values.name = name(sparse.values.name)
    for node in graph.node:
        node.CopyFrom(renamed(node, name))
