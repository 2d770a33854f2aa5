"""Which ONNX nodes the operations of a fused layer came from whose names tell none: inferred from where they stand.

An operation can come from a node only if it runs neither before what the node reads nor after what reads the node: from
the operations that name nodes follows, for every node, the stretch of the launch order in which it ran. Two inferences
are drawn, and nothing else:

- a product (MatMul, Gemm, Conv) that no operation names ran somewhere; if a single operation of its stretch has a
  product that none of its names explains, it ran there;
- a step that an operation took (an `erf`, a `mean`) came from some node; if a single node that stands in this stretch
  can have asked for it, it came from that one.

Each inference narrows the stretches of the others. If the names contradict the order of the graph, or two operations
would have the same node, nothing is inferred from them. Moves of values are never placed: Myelin makes and moves them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from reports.tables.onnx_graph import Graph
from reports.tables.onnx_names import COMPUTING, UNKNOWN, Step, nodes_of_operation, steps_of

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_AS_PRODUCT = frozenset({"product", "mul", "sum"})  # of a vector it is a product and a sum
PRODUCTS: Mapping[str, frozenset[str]] = {
    "MatMul": _AS_PRODUCT, "Gemm": _AS_PRODUCT | {"add"}, "Einsum": _AS_PRODUCT,
    "Conv": _AS_PRODUCT | {"conv", "add"}, "ConvTranspose": _AS_PRODUCT | {"conv", "deconv", "add"},
}  # fmt: skip
NORMALIZATION = frozenset({"normalization", "mean", "sum", "sub", "pow", "mul", "add", "sqrt", "div"})
# What each type of node may become, rather too much than too little. A type that is not here may become anything.
BECOMES: Mapping[str, frozenset[str]] = {
    **PRODUCTS,
    "Add": frozenset({"add", "sub"}), "Sub": frozenset({"sub", "add", "neg"}), "Mul": frozenset({"mul", "div", "pow"}),
    "Div": frozenset({"div", "mul"}), "Erf": frozenset({"erf"}), "Tanh": frozenset({"tanh", "exp", "div", "add", "sub"}),
    "Exp": frozenset({"exp"}), "Log": frozenset({"log"}), "Neg": frozenset({"neg", "sub", "mul"}),
    "Sqrt": frozenset({"sqrt", "pow"}), "Pow": frozenset({"pow", "mul", "sqrt", "exp", "log"}),
    "Reciprocal": frozenset({"div"}), "Abs": frozenset({"abs", "max"}), "Max": frozenset({"max"}),
    "Min": frozenset({"min"}), "Relu": frozenset({"relu", "max"}), "Clip": frozenset({"min", "max", "relu"}),
    "Sigmoid": frozenset({"sigmoid", "silu", "tanh", "exp", "neg", "add", "div", "mul"}),
    "ReduceMean": frozenset({"mean", "sum", "mul", "div"}), "ReduceSum": frozenset({"sum"}),
    "ReduceMax": frozenset({"max"}), "ReduceMin": frozenset({"min"}),
    "Softmax": frozenset({"softmax", "max", "sub", "exp", "sum", "div", "mul"}),
    "LayerNormalization": NORMALIZATION, "InstanceNormalization": NORMALIZATION, "GroupNormalization": NORMALIZATION,
    "BatchNormalization": NORMALIZATION, "RMSNormalization": NORMALIZATION,
    **dict.fromkeys((
        "Cast", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Expand", "Slice", "Split",
        "Concat", "Gather", "Shape", "Size", "Constant", "ConstantOfShape", "Dropout", "Pad", "Tile", "Range",
        "Where", "Equal", "Not",
    ), frozenset[str]()),
}  # fmt: skip
SIMPLE = frozenset(
    {"Add", "Sub", "Mul", "Div", "Erf", "Exp", "Log", "Sqrt", "Max", "Min", "Relu", "Abs"}
)  # one step each


@dataclass(frozen=True)
class Origin:
    """The nodes of one operation: those that its own name or the engine's layers tell, and those that were inferred."""

    named: tuple[str, ...] = ()
    inferred: tuple[str, ...] = ()


def place(operations: Sequence[str], graph: Graph, told: Mapping[str, tuple[str, ...]] | None = None) -> list[Origin]:
    """The origin of each operation of one execution, in the order of their launches.

    `told`: the nodes of those operations whose name is not to be read, because it is known what they are.
    """
    told = told or {}
    named = [told[name] if name in told else nodes_of_operation(name, graph.known) for name in operations]
    steps = [() if name in told else steps_of(name, graph.known) for name in operations]
    inferred = _Search(graph, named, steps).solve()
    return [Origin(tuple(names), inferred.get(number, ())) for number, names in enumerate(named)]


class _Search:
    """Nodes are positions in the graph, operations positions in the order of the launches."""

    def __init__(self, graph: Graph, named: Sequence[Sequence[str]], steps: Sequence[Sequence[Step]]) -> None:
        self.graph, self.steps = graph, steps
        self.last = len(steps) - 1
        self.types = [node.op_type for node in graph.nodes]
        self.places: dict[int, tuple[int, ...]] = {}  # node -> the operations that it is in, as far as is known
        position = {node.name: at for at, node in enumerate(graph.nodes)}
        for number, names in enumerate(named):
            for node in (position[name] for name in names if name in position):
                self.places[node] = (*self.places.get(node, ()), number)
        self.claimed = frozenset(self.places)
        self.near = self._near()
        self.groups = list(_groups(steps))
        self.hosts = np.flatnonzero([_may_be_product(taken) for taken in steps])
        self.able = {word: self._able(word) for group in self.groups for word in group.words}

    def _able(self, word: str) -> Bools:
        """The nodes that can become this step."""
        each = zip(self.types, self.graph.live, strict=True)
        return np.array([alive and word in BECOMES.get(kind, COMPUTING) for kind, alive in each], dtype=bool)

    def _near(self) -> Bools:
        """The nodes that have a named one before or after them: without it nothing says where they belong."""
        after, before = ([at in self.claimed for at in range(len(self.types))] for _ in range(2))
        for node, sources in enumerate(self.graph.predecessors):
            after[node] = after[node] or any(after[other] for other in sources)
        for node in reversed(range(len(self.types))):
            for other in self.graph.predecessors[node]:
                before[other] = before[other] or before[node]
        return np.array([one or other for one, other in zip(after, before, strict=True)], dtype=bool)

    def solve(self) -> dict[int, tuple[str, ...]]:
        """Operation -> nodes that were inferred for it; none at all if the names contradict the graph."""
        disputed: set[int] = set()
        said = dict(self.places)
        while True:
            low, high = self._stretches()
            if any(low[node] > where[-1] or where[0] > high[node] for node, where in self.places.items()):
                return {}
            votes = self._votes(low, high)
            clashing = {node for node, where in votes.items() if where is None} - disputed
            fresh = {node: where for node, where in votes.items() if where and node not in {*self.places, *disputed}}
            if clashing & self.places.keys():  # others may rest on it: again from the names, without it
                self.places = dict(said)
            elif fresh:
                self.places |= fresh
            elif not clashing:
                break
            disputed |= clashing
        found: dict[int, list[str]] = defaultdict(list)
        for node in sorted(self.places.keys() - said.keys()):
            for number in self.places[node]:
                found[number].append(self.graph.nodes[node].name)
        return {number: tuple(names) for number, names in found.items()}

    def _stretches(self) -> tuple[Ints, Ints]:
        """For each node the first and the last operation that it can be in, as far as names and inferences tell."""
        low, high = [0] * len(self.types), [self.last] * len(self.types)
        for node, before in enumerate(self.graph.predecessors):
            for other in before:
                low[node] = max(low[node], low[other], self.places[other][0] if other in self.places else 0)
        for node in reversed(range(len(self.types))):
            latest = min(high[node], self.places[node][-1]) if node in self.places else high[node]
            for other in self.graph.predecessors[node]:
                high[other] = min(high[other], latest)
        return np.array(low), np.array(high)

    def _votes(self, low: Ints, high: Ints) -> dict[int, tuple[int, ...] | None]:
        """Node -> its operations; None where two inferences put it into different ones. Named nodes are left as they are."""
        votes: dict[int, tuple[int, ...] | None] = {}
        for node, where in (*self._products(low, high), *self._suppliers(low, high)):
            if node in self.claimed or not self.near[node]:
                continue
            before = votes.get(node, self.places.get(node, where))
            wider = where if before is None or len(where) > len(before) else before
            votes[node] = wider if before is not None and {*where} | {*before} == {*wider} else None
        return votes

    def _products(self, low: Ints, high: Ints) -> Iterator[tuple[int, tuple[int, ...]]]:
        """A product that nothing names, in the one operation of its stretch that may hold it, and says that it does."""
        for node, kind in enumerate(self.types):
            if kind in PRODUCTS and self.graph.live[node]:
                first, after = np.searchsorted(self.hosts, [low[node], high[node] + 1])
                if after - first == 1 and _is_product(self.steps[self.hosts[first]], kind):
                    yield node, (int(self.hosts[first]),)

    def _suppliers(self, low: Ints, high: Ints) -> Iterator[tuple[int, tuple[int, ...]]]:
        """The one node that a step can have come from; of as many simple ones as there are steps of theirs, all."""
        low, high = self._products_at_their_places(low, high)
        for group in self.groups:
            here = (low <= group.operations[-1]) & (high >= group.operations[0])
            able = [
                (number, {*np.flatnonzero(self.able[word] & here).tolist()}) for word, number in group.words.items()
            ]
            for count, nodes in (*able, *_apart(able)):
                if len(nodes) == 1 or (len(nodes) <= count and all(self.types[node] in SIMPLE for node in nodes)):
                    yield from ((node, group.operations) for node in nodes)

    def _products_at_their_places(self, low: Ints, high: Ints) -> tuple[Ints, Ints]:
        """A product is in one piece: where it is known to be, and nowhere else."""
        low, high = low.copy(), high.copy()
        for node, where in self.places.items():
            if self.types[node] in PRODUCTS:
                low[node], high[node] = where[0], where[-1]
        return low, high


@dataclass(frozen=True)
class _Group:
    """Steps of one origin, word by word with their number: of an operation, or of a layer that TensorRT numbers."""

    operations: tuple[int, ...]
    words: Mapping[str, int]


def _groups(steps: Sequence[Sequence[Step]]) -> Iterator[_Group]:
    layers: dict[tuple[str, str], list[int]] = defaultdict(list)
    for number, taken in enumerate(steps):
        for step in taken:
            if step.layer and step.word in COMPUTING:
                layers[step.layer, step.word].append(number)
        if own := Counter(step.word for step in taken if not step.layer and step.word in COMPUTING):
            yield _Group((number,), own)
    for (_, word), numbers in layers.items():
        yield _Group(tuple(sorted({*numbers})), {word: 1})


def _apart(parts: Sequence[tuple[int, set[int]]]) -> list[tuple[int, set[int]]]:
    """Numbers of steps with their possible nodes; those that share a node are one."""
    made: list[tuple[int, set[int]]] = []
    for count, nodes in parts:
        shared = [one for one in made if not one[1].isdisjoint(nodes)]
        made = [one for one in made if one[1].isdisjoint(nodes)]
        made.append((count + sum(one[0] for one in shared), nodes.union(*(one[1] for one in shared))))
    return made


def _may_be_product(steps: Sequence[Step]) -> bool:
    """Whether an operation may hold a product: it says so, says it as `mul` and `sum`, or says nothing."""
    words = [step.word for step in steps]
    return not {"product", "conv", "deconv", UNKNOWN}.isdisjoint(words) or _has_dot(words)


def _is_product(steps: Sequence[Step], kind: str) -> bool:
    """Whether it says that it holds a product of this kind."""
    words = [step.word for step in steps]
    return not (PRODUCTS[kind] & {"product", "conv", "deconv"}).isdisjoint(words) or _has_dot(words)


def _has_dot(words: Sequence[str]) -> bool:
    return ("mul", "sum") in pairwise(words)
