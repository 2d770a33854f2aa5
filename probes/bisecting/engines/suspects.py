"""Whom an engine's tensors accuse, and what each node costs in time."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence

from harness.models.model import Model, reads
from probes.bisecting.candidates import Candidate
from probes.bisecting.engines.trial import Result

Errors = Mapping[str, float]  # tensor -> relative L2 against FP32
Readers = Mapping[str, Sequence[int]]


def accused(
    model: Model, nodes: Iterable[int], errors: Errors, limit: float, readers: Readers
) -> tuple[set[int], dict[int, float]]:
    """Whom the tensors of an engine accuse, each with its error (relative L2 against FP32); what is not there is right.

    A node is accused if the error grows by more than `limit` from its inputs to its outputs, or first ceases to be finite
    there, unless those who read it get right what they make of it. Beside them by how much each node's error grows.
    """
    found: set[int] = set()
    growth: dict[int, float] = {}
    for at in nodes:
        made = {name: errors[name] for name in model.nodes[at].proto.output if name in errors}
        before = max((errors[name] for name in reads(model.nodes[at].proto) if name in errors), default=0.0)
        if not made or not math.isfinite(before):
            continue  # what reads values that are not finite says nothing of itself
        growth[at] = max(0.0, max(made.values()) - before)
        after = [errors[out] for name in made for reader in readers.get(name, ()) for out in model.nodes[reader].proto.output if out in errors]  # fmt: skip
        if growth[at] > limit and max(after, default=math.inf) > limit:
            found.add(at)
    return found, growth


def with_partners(model: Model, nodes: Collection[int], beyond: Collection[str], readers: Readers) -> set[int]:
    """These, and where they make or read a value that the lower precision cannot hold, who reads and makes it with them."""
    makers = {name: node.index for node in model.nodes for name in node.proto.output}
    protos = [model.nodes[at].proto for at in nodes]
    after = {reader for proto in protos for name in proto.output if name in beyond for reader in readers[name]}
    before = {makers[name] for proto in protos for name in reads(proto) if name in beyond and name in makers}
    return {*nodes, *after, *before}


def costs_of(candidates: Sequence[Candidate], lowered: Result, plain: Result) -> dict[int, float]:
    """Nanoseconds that keeping each candidate in FP32 costs: its share of its layers' time in both engines, compared.

    A layer's time is shared evenly by the nodes that it came from, as the inspector names them.
    """
    fast, slow = (_shares(result, [c.key for c in candidates]) for result in (lowered, plain))
    return {c.id: max(slow.get(c.key, 0.0) - fast.get(c.key, 0.0), 0.0) for c in candidates}


def _shares(result: Result, keys: Sequence[str]) -> dict[str, float]:
    made: dict[str, float] = defaultdict(float)
    known, nodes = set(keys), _nodes_of_layers(result.information)
    for layer, time_ns in result.layers:
        named = [key for key in nodes.get(layer, ()) if key in known] or _named(layer, keys)
        for key in named:
            made[key] += time_ns / len(named)
    return made


def _nodes_of_layers(information: str) -> dict[str, list[str]]:
    """Layer name -> ONNX nodes, from the inspector's JSON (its metadata, from 8.6 on)."""
    try:
        layers = json.loads(information)["Layers"] if information else []
    except (ValueError, KeyError):
        return {}
    found = {}
    for layer in layers:
        if isinstance(layer, dict):
            parts = str(layer.get("Metadata", "")).replace("\x1f", "\x1e").split("\x1e")
            found[str(layer.get("Name"))] = [part.strip()[len("[ONNX Layer: ") : -1] for part in parts if part.strip()]
    return found


def _named(layer: str, keys: Sequence[str]) -> list[str]:
    """Nodes that a fused layer's own name lists: `a + b`, `PWN(a, b)`, `{ForeignNode[a...b]}` with all between."""
    if "ForeignNode[" in layer:
        first, _, last = layer.partition("ForeignNode[")[2].partition("]")[0].partition("...")
        if first in keys and last in keys:
            low, high = sorted((keys.index(first), keys.index(last)))
            return list(keys[low : high + 1])
    words = set(layer.replace("(", " ").replace(")", " ").replace(",", " ").split())
    return [key for key in keys if key in words]
