"""Emulated low precision on the CPU: one instrumented session in which every node can be lowered or kept at run time.

ONNX Runtime on a CPU computes FP16 nodes in FP32 and drops the casts between them, so that an overflow disappears.
Here a lowered node sees its inputs and weights rounded to the lower precision and its outputs are rounded, as a
strongly typed network stores them; accumulation inside the operator stays FP32, as on tensor cores. A tensor between a
kept and a lowered node is rounded: it is cast on the way.

How: a node becomes `If(flag) {node, Cast, Cast} else {node}`, so that a kept node costs no pass over its data and a
lowered one costs one rounding per tensor. (`Where` computes both sides and took three to five times as long.)
- A tensor with a single reader is rounded where it is made, if its maker or its reader is lowered.
- A tensor with several readers is also offered rounded, for those that are lowered while its maker is not.
- Weights are rounded once, beforehand, while they are small enough to be kept twice, else by casts inside the branch.
- Nodes that draw random numbers are run once, beforehand; what they drew is an input.
- Operators that only select values (EXACT_OPS) are rounded at their output alone, and not at all after rounded inputs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from harness import optional
from harness.models.activations import fetching
from harness.models.model import Model, body_dtypes, reads, subgraphs
from harness.models.precision import EXACT_OPS, Lowering, Positions, Precision, draws
from harness.models.runtime import Feeds, runner
from harness.models.segments import Bound, Segmented
from harness.models.switching import flag, if_node, value_info, weight_tensor

KEEP_TWICE_BYTES = 256 << 20  # weights up to this size are also held rounded; above, one copy of the weights is kept


@dataclass(frozen=True)
class _Switch:
    """The flags of one node. `low` makes it read rounded values; `rounds` rounds its output; either may be absent."""

    low: int | None
    rounds: int | None
    reader: int | None  # the only reader of its output, if there is one: lowering it rounds the output too
    exact: bool
    makers: tuple[int, ...]  # nodes that make its float inputs; -1 stands for a graph input or a weight


@dataclass
class _Plan:
    """What the rewriting of one model needs to know and collects."""

    model: Model
    precision: Precision
    keep_twice: bool
    clamp: bool  # weights to what the precision holds
    lowering: Lowering
    positions: list[Positions]
    readers: dict[str, list[int]]
    solo: set[str]
    flags: int = 0
    head: list[onnx.NodeProto] = field(default_factory=list)
    rounded: dict[str, np.ndarray] = field(default_factory=dict)
    offered: set[str] = field(default_factory=set)

    def new_flag(self) -> int:
        self.flags += 1
        return self.flags - 1


class Emulation:
    """The instrumented model: `run(feeds, lowered)` computes it with any set of nodes lowered, in one session.

    Memory: the model's own weights (shared, not copied), a rounded copy of them up to KEEP_TWICE_BYTES, activations.
    With `clamp` weights beyond the precision become its largest value in place of infinity, as TensorRT makes them where
    precision is a builder's flag: a mask of -1e9 is then no fault.
    """

    def __init__(self, model: Model, precision: Precision = Precision.FP16, *, threads: int = 0, keep_twice: bool | None = None,
                 optimise: bool = True, clamp: bool = False) -> None:  # fmt: skip
        twice = model.weight_bytes <= KEEP_TWICE_BYTES if keep_twice is None else keep_twice
        plan = _plan(model, precision, twice, clamp)
        nodes, self._switches = _rewrite(plan)
        self.precision = precision
        self.candidates = [i for i, p in enumerate(plan.positions) if p]
        self._flag_count = plan.flags
        proto = onnx.ModelProto()
        proto.CopyFrom(model.proto)
        self._source = model
        self._drawn = [name for node in model.nodes if draws(node.proto) for name in node.proto.output if name]
        proto.graph.input.extend(value_info(name, model.dtypes.get(name, 0)) for name in self._drawn)
        proto.graph.initializer.extend(weight_tensor(name, array) for name, array in plan.rounded.items())
        self._model = Segmented(
            proto, nodes, plan.flags, model.weights | plan.rounded, _with_rounded(model.dtypes, plan.offered),
            threads=threads, optimise=optimise, fold_constants=twice, lean=not twice, folder=None if twice else model.path.parent,
        )  # fmt: skip

    def bind(self, feeds: Feeds) -> Sample:
        """The emulation with one sample of inputs; parts that a set leaves as another one did are not computed again."""
        return Sample(self._model.bind({**feeds, **self._draw(feeds)}), self._flags)

    def _draw(self, feeds: Feeds) -> Feeds:
        """Random numbers, drawn once (the same in every process): else no two evaluations could be compared."""
        if not self._drawn:
            return {}
        optional.load("onnxruntime").set_seed(0)
        values = runner(fetching(self._source, self._drawn), self._source.weights, lean=True).run(feeds)
        return dict(zip(self._drawn, values, strict=True))

    def run(self, feeds: Feeds, lowered: Collection[int]) -> list[np.ndarray]:
        """The model's outputs, in its own order, with the nodes `lowered` (indices) stored in the lower precision."""
        return self.bind(feeds).run(lowered)

    def _flags(self, lowered: Collection[int]) -> np.ndarray:
        flags = np.zeros(self._flag_count, dtype=bool)
        low = set(lowered)
        representable = [False] * (len(self._switches) + 1)  # the last one answers for -1: inputs and weights are not
        for index, switch in enumerate(self._switches):
            if switch is None:
                continue
            is_low = index in low
            if switch.low is not None:
                flags[switch.low] = is_low
            already = switch.exact and bool(switch.makers) and all(representable[m] for m in switch.makers)
            rounds = (is_low or switch.reader in low) and not already
            if switch.rounds is not None:
                flags[switch.rounds] = rounds
            representable[index] = already or rounds
        return flags


class Sample:
    """One sample of inputs: `run(lowered)` gives the model's outputs. The arrays must not be changed meanwhile."""

    def __init__(self, bound: Bound, flags: Callable[[Collection[int]], np.ndarray]) -> None:
        self._bound, self._flags = bound, flags

    def run(self, lowered: Collection[int]) -> list[np.ndarray]:
        return self._bound.run(self._flags(lowered))


def _with_rounded(dtypes: Mapping[str, int], offered: Collection[str]) -> dict[str, int]:
    return {**dtypes, **{f"{name}:rounded": TensorProto.FLOAT for name in offered}}


def lowerable(model: Model, precision: Precision) -> list[int]:
    """Indices of the nodes that can be stored in the lower precision: the candidates."""
    lowering = Lowering(model.proto, precision)
    return [node.index for node in model.nodes if lowering.positions(node.proto, model.dtypes)]


def _plan(model: Model, precision: Precision, keep_twice: bool, clamp: bool) -> _Plan:
    lowering = Lowering(model.proto, precision)
    positions = [lowering.positions(node.proto, model.dtypes) for node in model.nodes]
    readers: dict[str, list[int]] = defaultdict(list)
    for node in model.nodes:
        for name in dict.fromkeys(reads(node.proto)):
            readers[name].append(node.index)
    outputs = set(model.outputs)
    solo = set()
    for node, where in zip(model.nodes, positions, strict=True):
        for name in (node.proto.output[i] for i in where.outputs):
            if len(where.outputs) == 1 and name not in outputs and len(readers[name]) == 1:
                solo.add(name)
    return _Plan(model, precision, keep_twice, clamp, lowering, positions, readers, solo)


def _rewrite(plan: _Plan) -> tuple[list[onnx.NodeProto], list[_Switch | None]]:
    """The nodes of the instrumented model, and the switch of every node (None: cannot be lowered)."""
    model = plan.model
    maker = {name: node.index for node in model.nodes for name in node.proto.output}
    drawn = [name for node in model.nodes if draws(node.proto) for name in node.proto.output]
    for name in [*(value.name for value in model.inputs), *drawn]:
        _offer_rounded(plan, name, plan.head)
    body: list[onnx.NodeProto] = []
    switches: list[_Switch | None] = []
    for node, where in zip(model.nodes, plan.positions, strict=True):
        if not where:
            body.extend([] if draws(node.proto) else [node.proto])
            switches.append(None)
        else:
            made, switch = _switch_node(plan, node.proto, where, maker)
            body.extend(made)
            switches.append(switch)
        for name in node.proto.output:
            if name not in plan.solo:
                _offer_rounded(plan, name, body)
    return [*plan.head, *body], switches


def _switch_node(
    plan: _Plan, node: onnx.NodeProto, where: Positions, maker: dict[str, int]
) -> tuple[list[onnx.NodeProto], _Switch]:
    float_reads = [node.input[i] for i in where.inputs] + list(where.captures)
    exact = node.op_type in EXACT_OPS and not where.captures
    outputs = [node.output[i] for i in where.outputs]
    reader = plan.readers[outputs[0]][0] if outputs and outputs[0] in plan.solo else None
    # What a lowered node must read in another form; an exact one is rounded at its output instead.
    replace = {} if exact else {n: r for n in dict.fromkeys(float_reads) if (r := _rounded_name(plan, n)) is not None}
    low = plan.new_flag() if replace or where.captures else None
    rounds = plan.new_flag() if outputs else None
    plain = [node]
    if rounds is not None:
        plain = [
            if_node(
                flag(rounds),
                node.output,
                _rounding(plan, node, outputs, "r"),
                [node],
                plan.model.dtypes,
                f"{outputs[0]}:round",
            )
        ]
    if low is None:
        return plain, _Switch(low, rounds, reader, exact, _makers(float_reads, maker))
    branch = _lowered_branch(plan, node, replace, outputs)
    name = next(n for n in node.output if n)
    made = [if_node(flag(low), node.output, branch, plain, plan.model.dtypes, f"{name}:low")]
    return made, _Switch(low, rounds, reader, exact, _makers(float_reads, maker))


def _makers(names: Sequence[str], maker: dict[str, int]) -> tuple[int, ...]:
    return tuple(maker.get(name, -1) for name in names)


def _lowered_branch(
    plan: _Plan, node: onnx.NodeProto, replace: dict[str, str], outputs: Sequence[str]
) -> list[onnx.NodeProto]:
    """The node reading rounded values; weights too large to be kept twice are rounded here, by casts."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    casts: list[onnx.NodeProto] = []
    for name, rounded in replace.items():
        if rounded.endswith(":cast"):
            casts += _casts(name, rounded, plan.precision)
    copy.input[:] = [replace.get(name, name) for name in copy.input]
    for body in subgraphs(copy):
        lower_body(body, plan.lowering, plan.model.dtypes, replace)
    return casts + _rounding(plan, copy, outputs, "l")


def _rounding(plan: _Plan, node: onnx.NodeProto, outputs: Sequence[str], tag: str) -> list[onnx.NodeProto]:
    """`node`, then its float outputs rounded under their own names."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.output[:] = [f"{name}:{tag}" if name in outputs else name for name in copy.output]
    made = [copy]
    for name in outputs:
        made += _casts(f"{name}:{tag}", name, plan.precision)
    return made


def _rounded_name(plan: _Plan, name: str) -> str | None:
    """Under which name a lowered reader finds `name` rounded; None if the tensor is rounded under its own name."""
    if name in plan.solo:
        return None
    if name in plan.offered:
        return f"{name}:rounded"
    if name not in plan.model.initialisers:
        return None
    rounded = f"{name}:rounded"
    if rounded in plan.rounded:
        return rounded
    value = plan.model.constant(name)
    assert value is not None
    if not plan.keep_twice and name in plan.model.weights and not (plan.clamp and plan.precision.exceeded(value)):
        return f"{name}:cast"
    plan.rounded[rounded] = plan.precision.round(value, clamp=plan.clamp)
    return rounded


def _offer_rounded(plan: _Plan, name: str, nodes: list[onnx.NodeProto]) -> None:
    """Offer a tensor rounded as well, if somebody may be lowered who reads it and its values are not solo."""
    if plan.model.dtypes.get(name) != TensorProto.FLOAT or name in plan.offered:
        return
    wanting = [i for i in plan.readers.get(name, []) if _reads_rounded(plan, i, name)]
    if wanting:
        plan.offered.add(name)
        nodes += _casts(name, f"{name}:rounded", plan.precision)


def _reads_rounded(plan: _Plan, index: int, name: str) -> bool:
    node, where = plan.model.nodes[index].proto, plan.positions[index]
    exact = node.op_type in EXACT_OPS and not where.captures
    return not exact and (name in where.captures or any(node.input[i] == name for i in where.inputs))


def lower_body(graph: onnx.GraphProto, lowering: Lowering, outer: dict[str, int], replace: dict[str, str]) -> None:
    """Round everything inside a subgraph, in place: what it makes, its weights, and what it captures (`replace`)."""
    dtypes = outer | body_dtypes(graph, outer, lowering.opset)
    precision = lowering.precision
    constants = {t.name: t for t in graph.initializer if t.data_type == TensorProto.FLOAT}
    for tensor in constants.values():
        tensor.CopyFrom(numpy_helper.from_array(precision.round(numpy_helper.to_array(tensor)), tensor.name))
    made: list[onnx.NodeProto] = []
    for node in graph.node:
        where = lowering.positions(node, dtypes)
        node.input[:] = [replace.get(n, n) if i in where.inputs else n for i, n in enumerate(node.input)]
        for body in subgraphs(node):
            lower_body(body, lowering, dtypes, replace)
        made.append(node)
        if node.op_type == "Constant":
            _round_constant(node, precision)
            continue
        for name in [node.output[i] for i in where.outputs]:
            node.output[:] = [f"{name}:b" if n == name else n for n in node.output]
            made += _casts(f"{name}:b", name, precision)
    nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in made]
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]


def _round_constant(node: onnx.NodeProto, precision: Precision) -> None:
    for attribute in node.attribute:
        if attribute.type == AttributeProto.TENSOR and attribute.t.data_type == TensorProto.FLOAT:
            attribute.t.CopyFrom(
                numpy_helper.from_array(precision.round(numpy_helper.to_array(attribute.t)), attribute.t.name)
            )


def _casts(source: str, target: str, precision: Precision) -> list[onnx.NodeProto]:
    return [
        helper.make_node("Cast", [source], [f"{target}:half"], to=precision.onnx_type),
        helper.make_node("Cast", [f"{target}:half"], [target], to=TensorProto.FLOAT),
    ]
