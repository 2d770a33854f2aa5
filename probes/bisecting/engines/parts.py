"""Parts of a model side by side in one network, each fed what it reads in FP32: what goes wrong in one hides nothing in another."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import onnx

from harness.models import submodel
from harness.models.model import Model, reads, subgraphs
from harness.models.submodel import TensorFact, shape_tensors

Nodes = tuple[int, ...]


@dataclass(frozen=True)
class Part:
    """Nodes by index, in the model's order; `held` of them are in FP32."""

    nodes: Nodes
    held: frozenset[int] = frozenset()


@dataclass(frozen=True)
class SideBySide:
    """The network, the keys of the nodes that it holds in FP32, and for each part what its outputs are called in the model."""

    proto: onnx.ModelProto
    held: tuple[str, ...]
    outputs: tuple[Mapping[str, str], ...]


def regions(model: Model) -> list[Nodes]:
    """About as many regions as each has nodes, cut where the fewest tensors cross, so that little is fused otherwise."""
    count = len(model.nodes)
    size = max(1, math.isqrt(count))
    crossing = _crossing(model)
    ends = [0]
    while count - ends[-1] > 1.5 * size:
        near = range(ends[-1] + max(1, size - size // 4), ends[-1] + size + size // 4 + 1)
        ends.append(min(near, key=lambda end: (crossing[end], abs(end - ends[-1] - size))))
    return [tuple(range(first, last)) for first, last in zip(ends, [*ends[1:], count], strict=True)]


def _crossing(model: Model) -> list[int]:
    """How many tensors that hold data are made before each node and read by it or a later one."""
    shapes = shape_tensors(model)
    made = {name: node.index for node in model.nodes for name in node.proto.output if name and name not in shapes}
    last = {name: node.index for node in model.nodes for name in reads(node.proto) if name in made}
    crossing = [0] * (len(model.nodes) + 1)
    for name, reader in last.items():
        for at in range(made[name] + 1, reader + 1):
            crossing[at] += 1
    return crossing


def exits(model: Model, nodes: Collection[int], readers: Mapping[str, Sequence[int]]) -> set[str]:
    """The tensors by which nodes act on the rest: read outside, or an output of the model."""
    inside, own = {*nodes}, {*model.outputs}
    made = {name for index in nodes for name in model.nodes[index].proto.output if name}
    return {name for name in made if name in own or not inside.issuperset(readers.get(name, ()))}


def readers_of(model: Model) -> dict[str, list[int]]:
    """Who reads each tensor."""
    found: dict[str, list[int]] = defaultdict(list)
    for node in model.nodes:
        for name in reads(node.proto):
            found[name].append(node.index)
    return found


def side_by_side(
    model: Model, parts: Sequence[Part], facts: Mapping[str, TensorFact], watched: Collection[str]
) -> SideBySide:  # fmt: skip
    """All parts in one graph; outputs are their exits and, of what they make, the tensors `watched`.

    What says a shape is a constant in each. Raises ProbeError where nothing is known of a tensor that a part reads.
    """
    whole = onnx.ModelProto()
    inputs: dict[str, onnx.ValueInfoProto] = {}
    weights: dict[str, onnx.TensorProto] = {}
    outputs: list[dict[str, str]] = []
    readers = readers_of(model)
    for number, part in enumerate(parts):
        nodes = [index for index in part.nodes if not _known(model, index, facts)]
        if not nodes:
            outputs.append({})
            continue
        shown = exits(model, part.nodes, readers) | {*watched}
        piece = submodel.extract(model, nodes, facts, outputs=shown)
        called = _renamed(piece.graph, [model.nodes[index].key for index in nodes], f"#{number}")
        outputs.append({new: old for old, new in called.items() if old in shown})
        inputs |= {value.name: value for value in piece.graph.input}
        weights |= {tensor.name: tensor for tensor in piece.graph.initializer}
        del piece.graph.input[:], piece.graph.initializer[:]
        if whole.opset_import:
            piece.ClearField("opset_import")
        whole.MergeFrom(piece)
    whole.graph.input.extend(inputs.values())
    whole.graph.initializer.extend(weights.values())
    held = (f"{model.nodes[i].key}#{number}" for number, part in enumerate(parts) for i in part.nodes if i in part.held)
    names = {node.name for node in whole.graph.node}
    return SideBySide(whole, tuple(name for name in held if name in names), tuple(outputs))


def _known(model: Model, index: int, facts: Mapping[str, TensorFact]) -> bool:
    """Whether all that a node makes says a shape, and is known."""
    made = [name for name in model.nodes[index].proto.output if name]
    return all(name in facts and facts[name].value is not None for name in made)


def _renamed(graph: onnx.GraphProto, keys: Sequence[str], mark: str) -> dict[str, str]:
    """Give what a part makes names of its own; old to new."""
    called = {name: name + mark for node in graph.node for name in node.output if name}
    for node, key in zip(graph.node, keys, strict=True):
        node.name = key + mark
        node.output[:] = [called.get(name, name) for name in node.output]
    for value in graph.output:
        value.name = called[value.name]
    _read_as(graph, called)
    return called


def _read_as(graph: onnx.GraphProto, called: Mapping[str, str]) -> None:
    for node in graph.node:
        node.input[:] = [called.get(name, name) for name in node.input]
        for body in subgraphs(node):
            for value in body.output:  # a branch may hand out what was made around it
                value.name = called.get(value.name, value.name)
            _read_as(body, called)
