"""Which layers of a TensorRT network came from which ONNX node: a node may become several, some of them without its name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.models.model import Model, subgraphs, walk

_NODE = "[ONNX Layer: "
_SUFFIX = re.compile(r"_\d+$")  # the parser makes a name that stands twice unique
FULL = ("fp32", "tf32")  # precisions whose tensors are stored in FP32
_UNNAMED = "node_of_"  # how the parser calls a node without a name, by its first output


@dataclass(frozen=True)
class LayerFact:
    """One layer as the network tells of it. `nodes` are those that its metadata names."""

    name: str
    kind: str
    nodes: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()  # tensor names
    makes: tuple[str, ...] = ()


def facts_of(network: Any) -> list[LayerFact]:
    """The layers of an INetworkDefinition, in its order."""
    layers = (network.get_layer(index) for index in range(network.num_layers))
    return [
        LayerFact(layer.name, str(getattr(layer.type, "name", layer.type)), tuple(nodes_named(layer)),
                  _tensors(layer, "input"), _tensors(layer, "output"))
        for layer in layers
    ]  # fmt: skip


def nodes_named(layer: Any) -> list[str]:
    """The ONNX nodes that a layer's metadata names (from 8.6 on)."""
    metadata = str(getattr(layer, "metadata", "") or "")
    parts = (part.strip() for part in metadata.replace("\x1f", "\x1e").split("\x1e"))
    return [part[len(_NODE) : -1] for part in parts if part.startswith(_NODE)]


def attribute(layers: Sequence[LayerFact], makers: Mapping[str, str]) -> list[str | None]:
    """The ONNX node (its key) of each layer; None for one that is shared, or is of no node.

    `makers`: ONNX tensor -> key of the node that makes it, nodes in topological order. In this order a layer belongs to
    the node whose tensor it makes; that its metadata or its name says; else, as the broadcasts and constants that the
    parser adds, to the one node whose layers read it.
    """
    named = _names(makers)
    found = [_own(layer, makers, named) for layer in layers]
    readers = _readers(layers)
    for at in reversed(range(len(layers))):  # readers come after what they read
        if found[at] is None:
            users = {found[reader] for reader in readers[at]}
            found[at] = users.pop() if len(users) == 1 else None
    return found


def held(layers: Sequence[LayerFact], owners: Sequence[str | None], precisions: Mapping[str, str]) -> dict[int, str]:
    """Layer, by its place -> the precision asked for it by the name of its node or its own.

    What a layer in FP32 reads of constants is FP32 as well, whoever else reads it: TensorRT 8.6 clamps them to what FP16
    holds, and multiplies in FP32 with 65504 where the model says 2^18.
    """
    found = {}
    for at, (layer, owner) in enumerate(zip(layers, owners, strict=True)):
        names = (owner, layer.name, *layer.nodes)
        asked = next((precisions[name] for name in names if name is not None and name in precisions), None)
        if asked is not None:
            found[at] = asked
    readers, constant = _readers(layers), _constant(layers)
    for at in reversed(range(len(layers))):
        if at in constant and any(found.get(reader) in FULL for reader in readers[at]):
            found[at] = "fp32"
    return found


def _readers(layers: Sequence[LayerFact]) -> list[list[int]]:
    """The layers that read what each makes."""
    by_tensor: dict[str, list[int]] = {}
    for at, layer in enumerate(layers):
        for tensor in layer.reads:
            by_tensor.setdefault(tensor, []).append(at)
    return [[reader for tensor in layer.makes for reader in by_tensor.get(tensor, ())] for layer in layers]


def _constant(layers: Sequence[LayerFact]) -> set[int]:
    """Constants, and what only gives them another shape."""
    found, tensors = set(), set[str]()
    for at, layer in enumerate(layers):
        if layer.kind == "CONSTANT" or (layer.kind == "SHUFFLE" and layer.reads and tensors.issuperset(layer.reads)):
            found.add(at)
            tensors.update(layer.makes)
    return found


def makers_of(model: Model) -> dict[str, str]:
    """ONNX tensor -> key of the node that makes it; what If, Loop and Scan make inside belongs to them."""
    made: dict[str, str] = {}
    for node in model.nodes:
        inner = (output for body in subgraphs(node.proto) for one in walk(body) for output in one.output)
        made |= {output: node.key for output in (*inner, *node.proto.output) if output}
    return made


def _own(layer: LayerFact, makers: Mapping[str, str], named: Mapping[str, str]) -> str | None:
    for tensor in layer.makes:
        if tensor in makers:
            return makers[tensor]
    for name in (*layer.nodes, layer.name):
        for known in (name, _SUFFIX.sub("", name)):
            if known in named:
                return named[known]
    return None


def _names(makers: Mapping[str, str]) -> dict[str, str]:
    """What a layer may be called after a node: its key, and the parser's word for one without a name."""
    return {f"{_UNNAMED}{tensor}": key for tensor, key in makers.items()} | {key: key for key in makers.values()}


def _tensors(layer: Any, side: str) -> tuple[str, ...]:
    count = getattr(layer, f"num_{side}s", 0)
    tensors = (getattr(layer, f"get_{side}")(index) for index in range(count))
    return tuple(tensor.name for tensor in tensors if tensor is not None)
