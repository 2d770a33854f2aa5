"""Which tensors of two models mean the same, and how far apart they are on given inputs."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations

import numpy as np
import onnx

from harness.activations import FLOATS, NUMERIC, chunks, sweep, tensor_types
from harness.errors import UsageError
from harness.halves import explicit_halves
from harness.model import Model
from harness.opsets import aligned
from harness.runtime import Feeds
from harness.weaving import Fabric, Link, Region, weave

CLOSE = 0.2  # relative L2 difference up to which contents may mean the same
DOUBTED = 0.1  # how much closer another tensor must be before a common name is not believed
SKETCH = 256  # numbers kept of a tensor to compare contents
SAMPLE = 2**16  # elements of a large tensor that its sketch is made of
COMMUTATIVE = frozenset({"Add", "And", "Equal", "Max", "Mean", "Min", "Mul", "Or", "Sum", "Xor"})


@dataclass(frozen=True)
class Pair:
    """A tensor of MODEL and the one of GOOD that means the same.

    `error` is the relative L2 difference over all samples (inf if one is finite where the other is not; None for
    tensors that are not floats), `error_in` the largest error among the matched tensors that it is computed from.
    """

    tensor: str
    good: str
    how: str  # output, name, structure or content
    node: int | None  # index of the node of MODEL that makes it
    op_type: str
    shape: tuple[int, ...]  # in the first sample
    error: float | None
    error_in: float


@dataclass(frozen=True)
class Matching:
    """Pairs in the topological order of MODEL, and the regions between them."""

    pairs: list[Pair]
    regions: list[Region]
    model: Model  # both at one opset
    good: Model
    model_types: Mapping[str, int]
    good_types: Mapping[str, int]

    def first_divergent(self, tolerance: float) -> list[Pair]:
        """Pairs beyond `tolerance` although all that they are computed from is within it."""
        return [pair for pair in self.pairs if pair.error is not None and pair.error > tolerance >= pair.error_in]


@dataclass(frozen=True)
class _Seen:
    """What one run told of a tensor: shapes by sample, data type, and a sketch of its content (None: not a float)."""

    shapes: tuple[tuple[int, ...], ...]
    dtype: int
    sketch: np.ndarray | None


def match(model: Model, good: Model, samples: Sequence[Feeds]) -> Matching:
    """Pair the tensors of two models by running both on the same inputs.

    Each sample holds the inputs of both models by name; one that only one of them reads is fed to that one. Raises
    UsageError if the outputs do not correspond or an input is missing, RunFailed if a model does not run.
    """
    if not samples:
        raise UsageError("two models are compared on at least one sample, got none", hint="give --inputs")
    model, good = aligned(model, good)
    types, good_types = tensor_types(model), tensor_types(good)
    running, good_running = explicit_halves(model, types), explicit_halves(good, good_types)
    ours, theirs = Fabric(model), Fabric(good)
    seen = _observe(running, samples, types)
    good_seen = _observe(good_running, samples, good_types)
    regions, links = weave(ours, theirs, _links(model, good, seen, good_seen))
    errors = _errors(running, good_running, samples, links, seen, good_types)
    pairs = _pairs(model, links, regions, errors, seen)
    return Matching(pairs, regions, model, good, types, good_types)


def _links(model: Model, good: Model, seen: Mapping[str, _Seen], good_seen: Mapping[str, _Seen]) -> list[Link]:
    """By outputs, then names, then as operands of nodes that correspond, then contents."""
    links = {ours: Link(ours, theirs, "output", _distance(seen.get(ours), good_seen.get(theirs)))
             for ours, theirs in _outputs(model, good)}  # fmt: skip
    made = [name for node in model.nodes for name in node.proto.output if name in seen]
    good_made = [name for node in good.nodes for name in node.proto.output if name in good_seen]
    taken = {link.theirs for link in links.values()}
    for name in made:
        if name in good_seen and name not in links and name not in taken and _alike(seen[name], good_seen[name]):
            links[name] = Link(name, name, "name", _distance(seen[name], good_seen[name]))
    _drop_doubted(links, seen, good_seen, good_made)
    _add_operands(links, model, good, seen, good_seen)
    _add_contents(links, made, good_made, seen, good_seen)
    _add_operands(links, model, good, seen, good_seen)
    return list(links.values())


def _outputs(model: Model, good: Model) -> list[tuple[str, str]]:
    if set(model.outputs) <= set(good.outputs):
        return [(name, name) for name in model.outputs]
    if len(model.outputs) == len(good.outputs):
        return list(zip(model.outputs, good.outputs, strict=True))
    raise UsageError(f"the outputs of {model.path} and {good.path} do not correspond: {model.outputs} and {good.outputs}",
                     hint="give two models with the same outputs, by name or by number")  # fmt: skip


# Seeing tensors


def _observe(model: Model, samples: Sequence[Feeds], types: Mapping[str, int]) -> dict[str, _Seen]:
    """Every tensor of the main graph, weights by shape alone."""
    names = [*(v.name for v in model.inputs), *(name for node in model.nodes for name in node.proto.output if name)]
    shapes: dict[str, list[tuple[int, ...]]] = {}
    sketches: dict[str, list[np.ndarray]] = {}
    for _, values in sweep(model, samples, names, types):
        for name, value in values.items():
            shapes.setdefault(name, []).append(value.shape)
            if types[name] in FLOATS:
                sketches.setdefault(name, []).append(sketch(value))
    weights = {
        t.name: _Seen(((tuple(t.dims)),) * len(samples), t.data_type, None)
        for t in model.graph.initializer if t.data_type in NUMERIC
    }  # fmt: skip
    return weights | {
        name: _Seen(tuple(shape), types[name], np.concatenate(sketches[name]) if name in sketches else None)
        for name, shape in shapes.items()
    }


def sketch(array: np.ndarray) -> np.ndarray:
    """float64[SKETCH] whose distances estimate those of the arrays (within some 10 %; exact up to SKETCH elements).

    Every element, of large arrays of some drawn at random, is added with a random sign to one of SKETCH sums. What is
    not finite counts as 0.
    """
    flat = array.reshape(-1)
    if flat.size > SAMPLE:
        flat = flat[_drawn(flat.size)]
    padded = np.zeros(SAMPLE)
    padded[: flat.size] = np.nan_to_num(flat.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    sums: np.ndarray = np.einsum("rk,rk->k", padded.reshape(-1, SKETCH), _signs())
    return sums


@lru_cache(maxsize=64)
def _drawn(size: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, size, SAMPLE)


@lru_cache(maxsize=1)
def _signs() -> np.ndarray:
    return 1.0 - 2.0 * np.random.default_rng(1).integers(0, 2, (SAMPLE // SKETCH, SKETCH))


def _alike(ours: _Seen, theirs: _Seen) -> bool:
    """Whether two tensors can mean the same: one shape, one type or both floats."""
    return ours.shapes == theirs.shapes and (ours.dtype == theirs.dtype or {ours.dtype, theirs.dtype} <= FLOATS)


def _distance(ours: _Seen | None, theirs: _Seen | None) -> float:
    if ours is None or theirs is None or ours.sketch is None or theirs.sketch is None or ours.shapes != theirs.shapes:
        return 0.0
    return _relative(float(np.linalg.norm(ours.sketch - theirs.sketch)), float(np.linalg.norm(theirs.sketch)))


def _relative(difference: float, size: float) -> float:
    if difference == 0:
        return 0.0
    return difference / size if size > 0 else float("inf")


# Finding partners


def _drop_doubted(links: dict[str, Link], seen: Mapping[str, _Seen], good_seen: Mapping[str, _Seen], good_made: Sequence[str]) -> None:
    """Names that exporters count up shift when a model is edited: contents then say that another tensor is meant."""
    table = _Contents(good_made, good_seen)
    for name, link in list(links.items()):
        if link.how == "name" and link.distance > CLOSE:
            best = table.nearest(seen[name])
            if best is not None and best[1] < DOUBTED * link.distance and best[1] < CLOSE:
                del links[name]


def _add_operands(links: dict[str, Link], model: Model, good: Model, seen: Mapping[str, _Seen], good_seen: Mapping[str, _Seen]) -> None:
    """Nodes of one kind that make partners read partners, whatever the contents: of a quantised weight, the weight."""
    makers = {name: node.proto for node in model.nodes for name in node.proto.output if name}
    good_makers = {name: node.proto for node in good.nodes for name in node.proto.output if name}
    todo = list(links.values())
    for link in todo:  # grows while it is read
        ours, theirs = makers.get(link.ours), good_makers.get(link.theirs)
        if ours is None or theirs is None or ours.op_type != theirs.op_type:
            continue
        for mine, other in _counterparts(ours, theirs, seen, good_seen):
            if mine in makers and mine not in links and mine in seen and other in good_seen and _alike(seen[mine], good_seen[other]):
                links[mine] = Link(mine, other, "structure", _distance(seen[mine], good_seen[other]))
                todo.append(links[mine])


def _counterparts(ours: onnx.NodeProto, theirs: onnx.NodeProto, seen: Mapping[str, _Seen],
                  good_seen: Mapping[str, _Seen]) -> Iterator[tuple[str, str]]:  # fmt: skip
    """Inputs and outputs that correspond: by position, or as is closest where the order does not matter."""
    if len(ours.output) == len(theirs.output):
        yield from zip(ours.output, theirs.output, strict=True)
    if len(ours.input) != len(theirs.input):
        return
    if ours.op_type not in COMMUTATIVE or len(ours.input) != 2:
        yield from zip(ours.input, theirs.input, strict=True)
        return

    def apart(order: Iterable[str]) -> float:
        pairs = [(seen.get(a), good_seen.get(b)) for a, b in zip(ours.input, order, strict=True)]
        return sum(_distance(a, b) if a and b and _alike(a, b) else 1.0 for a, b in pairs)

    yield from zip(ours.input, min(permutations(theirs.input), key=apart), strict=True)


def _add_contents(links: dict[str, Link], made: Sequence[str], good_made: Sequence[str], seen: Mapping[str, _Seen],
                  good_seen: Mapping[str, _Seen]) -> None:  # fmt: skip
    """Pair what is left where each is by far the nearest of the other, the nearest first."""
    taken = {link.theirs for link in links.values()}
    left = [name for name in made if name not in links]
    good_left = [name for name in good_made if name not in taken]
    table, good_table = _Contents(left, seen), _Contents(good_left, good_seen)
    for name in left:
        best = good_table.nearest(seen[name])
        if best is not None and best[1] < CLOSE:
            back = table.nearest(good_seen[best[0]])
            if back is not None and back[0] == name:
                links[name] = Link(name, best[0], "content", best[1])


class _Contents:
    """Sketches by shape, to ask for the nearest."""

    def __init__(self, names: Collection[str], seen: Mapping[str, _Seen]) -> None:
        by_shape: dict[tuple[tuple[int, ...], ...], dict[str, np.ndarray]] = {}
        for name in names:
            if (content := seen[name].sketch) is not None:
                by_shape.setdefault(seen[name].shapes, {})[name] = content
        self._groups = {shape: (list(group), np.stack(list(group.values()))) for shape, group in by_shape.items()}

    def nearest(self, tensor: _Seen) -> tuple[str, float] | None:
        """The nearest tensor of that shape and its relative distance; None if another content is nearly as near."""
        if tensor.sketch is None or tensor.shapes not in self._groups:
            return None
        names, sketches = self._groups[tensor.shapes]
        size = float(np.linalg.norm(tensor.sketch))
        if size == 0:  # all zeros look alike
            return None
        distances = np.linalg.norm(sketches - tensor.sketch, axis=1) / size
        best = int(np.argmin(distances))
        apart = np.linalg.norm(sketches - sketches[best], axis=1) / size
        rivals = (distances < 2 * distances[best] + 1e-6) & (apart > 1e-6)
        return None if rivals.any() else (names[best], float(distances[best]))


# Measuring


def _errors(model: Model, good: Model, samples: Sequence[Feeds], links: Iterable[Link], seen: Mapping[str, _Seen],
            good_types: Mapping[str, int]) -> dict[str, float]:  # fmt: skip
    """Relative L2 error of each float link over all samples; a few tensors of both models are held at a time."""
    types = {name: tensor.dtype for name, tensor in seen.items()}
    floats = [link for link in links if types.get(link.ours) in FLOATS and good_types.get(link.theirs) in FLOATS]
    squares = {link.ours: np.zeros(2) for link in floats}  # of the difference, of GOOD's tensor
    sizes = {link.ours: sum(math.prod(shape) for shape in seen[link.ours].shapes) for link in floats}
    partners = {link.ours: link.theirs for link in floats}
    good_sizes = {link.theirs: sizes[link.ours] for link in floats}
    for names in chunks(partners, sizes):
        partner = {name: partners[name] for name in names}
        theirs = {(index, name): value
                  for index, values in sweep(good, samples, partner.values(), good_types, good_sizes)
                  for name, value in values.items()}  # fmt: skip
        for index, values in sweep(model, samples, partner, types, sizes):
            for name, value in values.items():
                squares[name] += _squares(value, theirs[index, partner[name]])
    return {name: _relative(*np.sqrt(both).tolist()) for name, both in squares.items()}


def _squares(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """[squared L2 norm of the difference, of `theirs`]; inf if they differ where one is not finite."""
    if ours.shape != theirs.shape:
        return np.array([np.inf, 1.0])
    ours, theirs = (a.reshape(-1).astype(np.result_type(a, np.float32), copy=False) for a in (ours, theirs))
    finite = np.isfinite(ours) & np.isfinite(theirs)
    if not finite.all():
        if not np.array_equal(ours[~finite], theirs[~finite], equal_nan=True):
            return np.array([np.inf, 1.0])
        ours, theirs = ours[finite], theirs[finite]
    return np.array([np.einsum("i,i", a, a, dtype=np.float64) for a in (ours - theirs, theirs)])


def _pairs(model: Model, links: Sequence[Link], regions: Iterable[Region], errors: Mapping[str, float],
           seen: Mapping[str, _Seen]) -> list[Pair]:  # fmt: skip
    maker = {name: node for node in model.nodes for name in node.proto.output if name}
    read = {link.ours: region.our_reads for region in regions for link in region.links}
    pairs = []
    for link in links:
        node = maker.get(link.ours)
        error_in = max((errors.get(name, 0.0) for name in read.get(link.ours, ())), default=0.0)
        pairs.append(Pair(
            link.ours, link.theirs, link.how, node.index if node else None, node.op_type if node else "",
            seen[link.ours].shapes[0] if link.ours in seen else (), errors.get(link.ours), error_in,
        ))  # fmt: skip
    return sorted(pairs, key=lambda pair: -1 if pair.node is None else pair.node)
