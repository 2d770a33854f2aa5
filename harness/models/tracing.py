"""Where finite inputs turn into NaN or infinity, and a session in which any node's outputs can be made finite."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from harness.models.activations import FLOATS, feeds_as, sweep, tensor_types
from harness.models.halves import explicit_halves, spelt_out
from harness.models.model import Model, reads
from harness.models.runtime import Feeds, runner
from harness.models.switching import FLAGS, flag, if_node, with_flags


@dataclass(frozen=True)
class Counts:
    """How many elements of a tensor are NaN, +inf and -inf, of how many."""

    nan: int
    pos_inf: int
    neg_inf: int
    size: int

    @property
    def kinds(self) -> frozenset[str]:
        """Those of "nan", "+inf", "-inf" that occur."""
        found = (("nan", self.nan), ("+inf", self.pos_inf), ("-inf", self.neg_inf))
        return frozenset(kind for kind, count in found if count)


@dataclass(frozen=True)
class Origin:
    """A tensor that is not finite and did not inherit it: made by `node`, or, where that is None, a weight or an input.

    `inputs_finite` is False for a node that makes NaN out of infinities (inf - inf, a softmax over -inf alone).
    `reaches` are the model's outputs that are connected to it by tensors none of which is finite: an infinity that a
    later node does away with, as a mask before a softmax, reaches none.
    """

    tensor: str
    source: str  # node, weight or input
    node: int | None
    counts: Counts
    inputs_finite: bool
    reaches: tuple[str, ...]


class Sanitised:
    """The model in one session that lets any node's float outputs be made finite: NaN becomes 0, infinity a large value.

    That value is the fourth root of the type's largest one, so that squares and sums of it do not overflow at once.
    `candidates` are the indices of the nodes that can be chosen, all with float outputs unless given.
    """

    def __init__(
        self, model: Model, candidates: Iterable[int] | None = None, *, threads: int = 0, optimise: bool = True
    ) -> None:
        types = tensor_types(model)
        able = [node.index for node in model.nodes if _can_be_made_finite(node.proto, types)]
        wanted = set(able) if candidates is None else set(candidates)
        self.candidates = [index for index in able if index in wanted]
        self._inputs = model.inputs
        number = {index: position for position, index in enumerate(self.candidates)}
        nodes = []
        for node in model.nodes:
            plain = spelt_out(node.proto, types, model.opset)
            if node.index in number:
                finite = _made_finite(node.proto, types, model.opset)
                name = next(n for n in node.proto.output if n)
                nodes.append(
                    if_node(flag(number[node.index]), node.proto.output, plain, finite, types, f"{name}:finite")
                )
            else:
                nodes += plain
        proto = with_flags(model.proto, nodes, len(self.candidates))
        proto.graph.initializer.extend(_limits())
        self._runner = runner(proto, model.weights, threads=threads, optimise=optimise)

    def run(self, feeds: Feeds, left_as_is: Collection[int]) -> list[np.ndarray]:
        """The model's outputs, every candidate sanitised but those `left_as_is` (node indices)."""
        fed = feeds_as(self._inputs, feeds, "the sanitised model")
        if self.candidates:
            fed[FLAGS] = np.isin(self.candidates, list(left_as_is))
        return self._runner.run(fed)


def trace_nonfinite(model: Model, feeds: Feeds, sanitised: Collection[int] = ()) -> list[Origin]:
    """Every place where a value that is not finite comes up: inputs and weights first, then nodes in their order.

    Nodes in `sanitised` have their outputs made finite. Memory: a bounded part of the activations. The bodies of If,
    Loop and Scan are not entered: they count as one node.
    """
    return _Trace(model, feeds, sanitised).origins()


def suspects(model: Model, samples: Sequence[Feeds]) -> list[int]:
    """Indices of nodes such that, all of them sanitised, every output is finite on every sample (if nodes can help it).

    They are the first nodes to make what is not finite on the way to an output, then those that show up once the first
    are sanitised. Most innocent first, for a search that leaves nodes as they are in this order: nodes that hand on an
    infinity which stands in a weight (a mask), then the others, the latest first, so that a cause outlives its effects.
    """
    handing_on: dict[int, bool] = {}
    while True:
        new: dict[int, bool] = {}
        for feeds in samples:
            new |= _Trace(model, feeds, handing_on).suspects()
        if new.keys() <= handing_on.keys():
            return sorted(handing_on, key=lambda index: (not handing_on[index], -index))
        handing_on = new | handing_on


class _Trace:
    """One run: the counts of every float tensor, and which outputs a tensor's values that are not finite lead to."""

    def __init__(self, model: Model, feeds: Feeds, sanitised: Collection[int]) -> None:
        types = tensor_types(model)
        self._model = model
        self._inputs = {value.name for value in model.inputs}
        self._able = {node.index for node in model.nodes if _can_be_made_finite(node.proto, types)}
        self._made = {name for node in model.nodes for name in node.proto.output if name}
        running = _with_sanitised(model, types, sanitised) if sanitised else explicit_halves(model, types)
        read = {name for node in model.nodes for name in reads(node.proto)} | set(model.outputs)
        names = [name for name in (*self._inputs, *model.initialisers & read, *self._made) if types.get(name) in FLOATS]
        self.counts: dict[str, Counts] = {}  # of tensors that are not finite, no others
        for _, values in sweep(running, [feeds], names, types):
            for name, value in values.items():
                if not np.isfinite(value).all():
                    self.counts[name] = _count(value)
        self._reached = self._reach()

    def origins(self) -> list[Origin]:
        found = []
        for source, names in (("input", self._inputs), ("weight", self._model.initialisers)):
            order = sorted(names & self.counts.keys())
            found += [Origin(n, source, None, self.counts[n], True, self._reaches(n)) for n in order]
        for node in self._model.nodes:
            before = self._kinds(reads(node.proto))
            for name in node.proto.output:
                after = self._kinds([name])
                if after and (not before or ("nan" in after and "nan" not in before)):
                    found.append(Origin(name, "node", node.index, self.counts[name], not before, self._reaches(name)))
        return found

    def suspects(self) -> dict[int, bool]:
        """Nodes to sanitise next -> whether all that is not finite in their outputs is an infinity out of a weight."""
        born = {origin.node for origin in self.origins() if origin.node is not None and origin.reaches}
        found = {}
        for node in self._model.nodes:
            made = [name for name in node.proto.output if name in self.counts and self._reached.get(name)]
            read = [name for name in reads(node.proto) if name in self.counts]
            if node.index not in self._able or not made or (node.index not in born and not self._made.isdisjoint(read)):
                continue
            kinds = self._kinds(made)
            found[node.index] = "nan" not in kinds and kinds <= self._kinds(set(read) - self._made - self._inputs)
        return found

    def _kinds(self, names: Iterable[str]) -> frozenset[str]:
        return frozenset(kind for name in names if name in self.counts for kind in self.counts[name].kinds)

    def _reaches(self, name: str) -> tuple[str, ...]:
        return tuple(output for output in self._model.outputs if output in self._reached.get(name, ()))

    def _reach(self) -> dict[str, set[str]]:
        """Tensor -> outputs that it is connected to by tensors none of which is finite."""
        reached: dict[str, set[str]] = {name: {name} for name in self._model.outputs if name in self.counts}
        for node in reversed(self._model.nodes):
            ends: set[str] = set().union(*(reached.get(name, set()) for name in node.proto.output))
            for name in reads(node.proto) if ends else ():
                if name in self.counts:
                    reached.setdefault(name, set()).update(ends)
        return reached


def _count(array: np.ndarray) -> Counts:
    nan, pos_inf, neg_inf = (int(np.count_nonzero(is_one(array))) for is_one in (np.isnan, np.isposinf, np.isneginf))
    return Counts(nan, pos_inf, neg_inf, array.size)


# Making values finite


def _can_be_made_finite(node: onnx.NodeProto, types: Mapping[str, int]) -> bool:
    kinds = [types.get(name) for name in node.output if name]
    return None not in kinds and any(kind in FLOATS for kind in kinds)


def _with_sanitised(model: Model, types: Mapping[str, int], sanitised: Collection[int]) -> Model:
    proto = with_flags(model.proto, [
        made for node in model.nodes
        for made in (_made_finite if node.index in sanitised else spelt_out)(node.proto, types, model.opset)
    ], 0)  # fmt: skip
    proto.graph.initializer.extend(_limits())
    return replace(model, proto=proto)


def _made_finite(node: onnx.NodeProto, types: Mapping[str, int], opset: int) -> list[onnx.NodeProto]:
    """The node, then its float outputs made finite under their own names."""
    floats = [name for name in node.output if types.get(name) in FLOATS]
    nodes = spelt_out(node, types, opset)
    for each in nodes:
        each.output[:] = [f"{name}:raw" if name in floats else name for name in each.output]
    return nodes + [made for name in floats for made in _sanitise(f"{name}:raw", name, types[name])]


def _sanitise(source: str, target: str, dtype: int) -> list[onnx.NodeProto]:
    """`target` is `source` with 0 for NaN and a large value for infinity, whatever float type it has."""
    wide = TensorProto.DOUBLE if dtype == TensorProto.DOUBLE else TensorProto.FLOAT
    zero, top, bottom, large, small = (_limit_name(kind, wide) for kind in ("zero", "top", "bottom", *_large(dtype)))
    steps = [
        ("IsNaN", ["wide"], "isnan"), ("Where", ["isnan", zero, "wide"], "number"),
        ("Greater", ["number", top], "high"), ("Where", ["high", large, "number"], "below"),
        ("Less", ["below", bottom], "low"), ("Where", ["low", small, "below"], "finite"),
    ]  # fmt: skip
    inner = {name: f"{target}:safe:{name}" for name in ("wide", *(made for _, _, made in steps))}
    return [
        helper.make_node("Cast", [source], [inner["wide"]], to=wide),
        *(helper.make_node(op, [inner.get(name, name) for name in read], [inner[made]]) for op, read, made in steps),
        helper.make_node("Cast", [inner["finite"]], [target], to=dtype),
    ]


def _large(dtype: int) -> tuple[str, str]:
    return ("large16", "small16") if dtype == TensorProto.FLOAT16 else ("large", "small")


def _limit_name(kind: str, dtype: int) -> str:
    return f"probe:{kind}:{dtype}"


def _limits() -> list[TensorProto]:
    """The constants that `_sanitise` reads, as initialisers."""
    tensors = []
    for dtype, kind in ((TensorProto.FLOAT, np.float32), (TensorProto.DOUBLE, np.float64)):
        top = float(np.finfo(kind).max)
        values = {
            "zero": 0.0,
            "top": top,
            "bottom": -top,
            "large": top**0.25,
            "small": -(top**0.25),
            "large16": 16.0,
            "small16": -16.0,
        }
        tensors += [
            numpy_helper.from_array(np.array(value, kind), _limit_name(name, dtype)) for name, value in values.items()
        ]
    return tensors
