"""Two models that should agree in one session: every region between matched tensors is computed one way or the other.

A region that is to be computed MODEL's way reads the current values of the matched tensors, whoever computed them, and
never recorded ones: a fault upstream of it stays visible. Regions that are the same in both models are no candidates.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, defs, helper
from onnx.helper import get_attribute_value as get_value

from harness.errors import UsageError
from harness.models.activations import FLOATS, feeds_as
from harness.models.halves import spelt_out
from harness.models.matching import Matching
from harness.models.model import Model, captured, opset_of, scope_of, subgraphs, walk
from harness.models.runtime import Feeds, runner
from harness.models.switching import FLAGS, flag, renamed, value_info, with_flags
from harness.models.weaving import Region, now

WIDTHS = (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.FLOAT, TensorProto.DOUBLE)


@dataclass(frozen=True)
class Part:
    """A candidate: the region of MODEL that makes `tensors`. `key` is the name of the node that makes them."""

    index: int
    key: str
    tensors: tuple[str, ...]
    nodes: tuple[str, ...]  # keys of MODEL's nodes in it, in order
    indices: tuple[int, ...]  # of the same
    op_types: tuple[str, ...]
    scope: str
    good_nodes: tuple[str, ...]  # keys of the nodes that GOOD has there


@dataclass(frozen=True)
class _Side:
    """One of the two models as it is written into the woven graph."""

    model: Model
    types: Mapping[str, int]
    weights: Mapping[str, str]  # own name of an initialiser -> name in the woven graph
    digests: Mapping[str, str]
    makers: Collection[str]
    tag: str


class Hybrid:
    """MODEL and GOOD woven together: `run(feeds, applied)` computes the parts `applied` MODEL's way, the rest GOOD's.

    All parts applied is MODEL, none is GOOD. Memory: the weights of both models (shared, those in common once),
    activations. Tensors that are FP16 in one model and FP32 in the other pass between regions in FP32.
    """

    def __init__(self, matching: Matching, *, threads: int = 0, optimise: bool = True) -> None:
        ours, theirs = _sides(matching)
        wide = _wide_types(matching, ours, theirs)
        nodes: list[onnx.NodeProto] = []
        self.parts: list[Part] = []
        for number, region in enumerate(matching.regions):
            if _identical(region, ours, theirs):
                nodes += _plain(region, ours, wide, f"r{number}")
            else:
                nodes.append(_switched(region, ours, theirs, wide, len(self.parts), f"r{number}"))
                self.parts.append(_part(len(self.parts), region, matching))
        proto = with_flags(_shell(matching, ours, theirs, wide, nodes), nodes, len(self.parts))
        self.inputs = list(_inputs(matching, wide))
        self._runner = runner(proto, _arrays(ours) | _arrays(theirs), threads=threads, optimise=optimise)

    def run(self, feeds: Feeds, applied: Collection[int]) -> list[np.ndarray]:
        """The outputs, in MODEL's order (float ones in the wider of both models' types)."""
        fed = feeds_as(self.inputs, feeds, "the hybrid of both models")
        if self.parts:
            fed[FLAGS] = np.isin(np.arange(len(self.parts)), list(applied))
        return self._runner.run(fed)


def _sides(matching: Matching) -> tuple[_Side, _Side]:
    sides = []
    known: dict[str, str] = {}  # digest of a weight -> its name in the woven graph: common ones are there once
    for tag, model, types in (
        ("model", matching.model, matching.model_types),
        ("good", matching.good, matching.good_types),
    ):
        digests = {t.name: _digest(t, model.weights.get(t.name)) for t in model.graph.initializer}
        weights = {name: known.setdefault(digest, f"{tag}:{name}") for name, digest in digests.items()}
        makers = {name for node in model.nodes for name in node.proto.output if name}
        sides.append(_Side(model, types, weights, digests, makers, tag))
    return sides[0], sides[1]


def _digest(tensor: TensorProto, array: np.ndarray | None) -> str:
    value = onnx.numpy_helper.to_array(tensor) if array is None else array
    head = f"{tensor.data_type} {tuple(tensor.dims)} "
    if value.dtype == object:  # strings
        return head + repr(value.tolist())
    return (
        head + hashlib.blake2b(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data, digest_size=16).hexdigest()
    )


def _wide_types(matching: Matching, ours: _Side, theirs: _Side) -> dict[str, int]:
    """Tensor of the woven graph -> its type: of the two, the one that holds the values of both; 0 for what is no tensor."""
    inputs = {v.name: v.type.tensor_type.elem_type for v in theirs.model.inputs}
    for value in ours.model.inputs:
        mine = value.type.tensor_type.elem_type
        inputs[value.name] = _wider(mine, inputs.get(value.name, mine), value.name)
    return inputs | {
        now(link.ours): _wider(ours.types.get(link.ours, 0), theirs.types.get(link.theirs, 0), link.ours)
        for region in matching.regions for link in region.links
    }  # fmt: skip


def _wider(mine: int, other: int, name: str) -> int:
    if mine == other:
        return mine
    if not {mine, other} <= FLOATS:
        kinds = [TensorProto.DataType.Name(kind).lower() for kind in (mine, other)]
        raise UsageError(f"tensor {name!r} is {kinds[0]} in one model and {kinds[1]} in the other")
    wider = max(mine, other, key=WIDTHS.index)
    return TensorProto.FLOAT if wider == TensorProto.BFLOAT16 else wider


# Regions that are the same in both models


def _identical(region: Region, ours: _Side, theirs: _Side) -> bool:
    """Whether both ways are the same operators with the same attributes and weights, on the same tensors and types."""
    if any(ours.types.get(link.ours, 0) != theirs.types.get(link.theirs, 0) for link in region.links):
        return False
    mine = _meanings(ours, region.ours, region.our_reads)
    other = _meanings(theirs, region.theirs, region.their_reads)
    return all(mine(link.ours) == other(link.theirs) for link in region.links)


def _meanings(side: _Side, nodes: Sequence[int], reads: Mapping[str, str]) -> Callable[[str], str]:
    """Tensor name -> a text that is the same for tensors that are computed alike from the same tensors and weights."""
    known = {name: f"{current} {side.types.get(name)}" for name, current in reads.items()}

    def of(name: str) -> str:
        return known.get(name) or side.digests.get(name) or f"{side.tag}:{name}"

    for index in nodes:
        node = side.model.nodes[index].proto
        text = (
            known[node.input[0]]
            if node.op_type == "Identity" and node.input[0] in known
            else _meaning(node, side.model, of)
        )
        for position, name in enumerate(node.output):
            if name and name not in reads:
                known[name] = text if node.op_type == "Identity" else f"{text}:{position}"
    return of


def _meaning(node: onnx.NodeProto, model: Model, of: Callable[[str], str]) -> str:
    """A digest of operator, attributes (defaults left out) and what the inputs mean; names inside bodies do not count."""
    inner: dict[str, str] = {}
    outer = {n for n in node.input if n} | {n for body in subgraphs(node) for n in captured(body)}
    made = set(node.output)
    copy = renamed(node, lambda n: of(n) if n in outer else "" if n in made else inner.setdefault(n, f"%{len(inner)}"))
    for each in [copy, *(n for body in subgraphs(copy) for n in walk(body))]:
        each.name = each.doc_string = ""
        _drop_defaults(each, opset_of(model.proto, each.domain))
    for body in subgraphs(copy):
        body.name = body.doc_string = ""
        for value in (*body.input, *body.output):
            value.doc_string = ""
    while copy.input and not copy.input[-1]:
        copy.input.pop()
    del copy.output[:]
    return hashlib.blake2b(copy.SerializeToString(deterministic=True), digest_size=16).hexdigest()


def _drop_defaults(node: onnx.NodeProto, opset: int) -> None:
    try:
        defaults = {n: a.default_value for n, a in defs.get_schema(node.op_type, opset, node.domain).attributes.items()}
    except defs.SchemaError:
        defaults = {}
    said = [onnx.AttributeProto.FromString(a.SerializeToString()) for a in node.attribute]
    del node.attribute[:]
    for attribute in sorted(said, key=lambda a: a.name):
        attribute.doc_string = ""
        default = defaults.get(attribute.name)
        if default is None or default.type != attribute.type or get_value(default) != get_value(attribute):
            node.attribute.append(attribute)


# Writing the woven graph


def _plain(region: Region, ours: _Side, wide: Mapping[str, int], tag: str) -> list[onnx.NodeProto]:
    """The region once, for all: what it makes is what the others read."""
    return _write(
        region.ours, region.our_reads, ours, wide, {link.ours: now(link.ours) for link in region.links}, f"{tag}:same"
    )


def _switched(
    region: Region, ours: _Side, theirs: _Side, wide: Mapping[str, int], index: int, tag: str
) -> onnx.NodeProto:
    """`If(flag) {MODEL's way} else {GOOD's way}`."""
    made = [now(link.ours) for link in region.links]
    branches = []
    for side, nodes, reads, names in (
        (ours, region.ours, region.our_reads, [link.ours for link in region.links]),
        (theirs, region.theirs, region.their_reads, [link.theirs for link in region.links]),
    ):
        outputs = [f"{name}|{side.tag}" for name in made]  # a branch must not reuse names of the graph around it
        targets = dict(zip(names, outputs, strict=True))
        kinds = {inside: wide[outside] for inside, outside in zip(outputs, made, strict=True)}
        written = _write(nodes, reads, side, {**wide, **kinds}, targets, f"{tag}:{side.tag}")
        values = [value_info(name, kinds[name]) for name in outputs]
        branches.append(helper.make_graph(written, f"{tag}:{side.tag}", [], values))
    return helper.make_node("If", [flag(index)], made, name=tag, then_branch=branches[0], else_branch=branches[1])


def _write(
    nodes: Sequence[int], reads: Mapping[str, str], side: _Side, wide: Mapping[str, int], targets: Mapping[str, str], tag: str
) -> list[onnx.NodeProto]:  # fmt: skip
    """The nodes reading current values, under names of their own, and making `targets` (own name -> name to make)."""
    written: list[onnx.NodeProto] = []
    names = dict(reads)
    for name, current in reads.items():
        if wide[current] != side.types.get(name, 0):
            names[name] = f"{tag}:{name}:narrow"
            written.append(helper.make_node("Cast", [current], [names[name]], to=side.types.get(name, 0)))
    made = {name for index in nodes for name in side.model.nodes[index].proto.output}
    direct = {
        own: to
        for own, to in targets.items()
        if own in made and wide[to] == side.types.get(own, 0) and own not in reads
    }

    def name_of(name: str) -> str:
        return direct.get(name) or names.get(name) or side.weights.get(name) or f"{tag}:{name}"

    for index in nodes:
        for node in spelt_out(side.model.nodes[index].proto, side.types, side.model.opset):
            written.append(renamed(node, name_of))
            # What is read from the graph around, another region makes: here it is made again on the side.
            written[-1].output[:] = [f"{tag}:{n}:again" if n in reads else name_of(n) if n else n for n in node.output]
    for own, to in targets.items():
        if own not in direct and wide[to] != side.types.get(own, 0):
            written.append(helper.make_node("Cast", [name_of(own)], [to], to=wide[to]))
        elif own not in direct:
            written.append(helper.make_node("Identity", [name_of(own)], [to]))
    return written


def _shell(
    matching: Matching, ours: _Side, theirs: _Side, wide: Mapping[str, int], nodes: Sequence[onnx.NodeProto]
) -> onnx.ModelProto:  # fmt: skip
    """A model with the inputs of both, the weights that `nodes` read, MODEL's outputs, and no node yet."""
    read = {name for node in nodes for name in [*node.input, *(n for body in subgraphs(node) for n in captured(body))]}
    graph = onnx.GraphProto(name="hybrid")
    graph.input.extend(_inputs(matching, wide))
    for side in (ours, theirs):
        for tensor in side.model.graph.initializer:
            name = side.weights[tensor.name]
            if name == f"{side.tag}:{tensor.name}" and name in read:
                graph.initializer.append(tensor)
                graph.initializer[-1].name = name
    graph.output.extend(value_info(now(name), wide[now(name)]) for name in matching.model.outputs)
    versions: dict[str, int] = {}
    for entry in (*theirs.model.proto.opset_import, *ours.model.proto.opset_import):
        domain = "" if entry.domain == "ai.onnx" else entry.domain
        versions[domain] = max(entry.version, versions.get(domain, 0))
    opsets = [helper.make_opsetid(domain, version) for domain, version in versions.items()]
    ir_version = max(4, ours.model.proto.ir_version, theirs.model.proto.ir_version)
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)


def _inputs(matching: Matching, wide: Mapping[str, int]) -> list[onnx.ValueInfoProto]:
    """Inputs of MODEL, then those that only GOOD has; no shapes, for the models may state different ones."""
    names = dict.fromkeys(v.name for model in (matching.model, matching.good) for v in model.inputs)
    return [helper.make_tensor_value_info(name, wide[name], None) for name in names]


def _arrays(side: _Side) -> dict[str, np.ndarray]:
    return {side.weights[name]: array for name, array in side.model.weights.items()}


def _part(index: int, region: Region, matching: Matching) -> Part:
    nodes = [matching.model.nodes[i] for i in region.ours]
    key = nodes[-1].key if nodes else region.links[0].ours
    return Part(
        index, key, tuple(link.ours for link in region.links), tuple(n.key for n in nodes), tuple(region.ours),
        tuple(n.op_type for n in nodes), scope_of(key), tuple(matching.good.nodes[i].key for i in region.theirs),
    )  # fmt: skip
