"""Which tensors of two models mean the same, and how far apart they are on given inputs."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations

import numpy as np
import onnx

from harness.errors import UsageError
from harness.models.activations import FLOATS, NUMERIC, chunks, sweep, tensor_types
from harness.models.halves import explicit_halves
from harness.models.model import Model, reads
from harness.models.opsets import aligned
from harness.models.runtime import Feeds
from harness.models.weaving import Fabric, Link, Region, weave

CLOSE = 0.2  # relative L2 difference up to which tensors may mean the same by their contents
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
    """From the surest evidence to the weakest; a tensor that is paired stays paired.

    Outputs are given. A name in common is believed where the contents are close, else only after all but the last:
    exporters count names up, and an edit shifts them.
    """
    search = _Search(model, good, seen, good_seen)
    for ours, theirs in _outputs(model, good):
        search.add(ours, theirs, "output")
    search.add_names(CLOSE)
    search.add_counterparts(same_operator=True)
    search.add_contents()
    search.add_names(math.inf)
    search.add_successors()
    search.add_counterparts(same_operator=False)
    return list(search.links.values())


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


def _distance(ours: _Seen | None, theirs: _Seen | None) -> float:
    if ours is None or theirs is None or ours.sketch is None or theirs.sketch is None or ours.shapes != theirs.shapes:
        return 0.0
    return _relative(float(np.linalg.norm(ours.sketch - theirs.sketch)), float(np.linalg.norm(theirs.sketch)))


def _relative(difference: float, size: float) -> float:
    if difference == 0:
        return 0.0
    return difference / size if size > 0 else float("inf")


# Finding partners


class _Search:
    """The links found so far, by the tensor of MODEL, and ways to find more."""

    def __init__(self, model: Model, good: Model, seen: Mapping[str, _Seen], good_seen: Mapping[str, _Seen]) -> None:
        self.links: dict[str, Link] = {}
        self._seen, self._good_seen = seen, good_seen
        self._makers = {name: node.proto for node in model.nodes for name in node.proto.output if name}
        self._good_makers = {name: node.proto for node in good.nodes for name in node.proto.output if name}
        self._readers, self._good_readers = _readers(model), _readers(good)
        self._inputs = [value.name for value in model.inputs if value.name in {v.name for v in good.inputs}]
        self._made = [name for name in self._makers if name in seen]
        self._good_made = [name for name in self._good_makers if name in good_seen]

    def add(self, ours: str, theirs: str, how: str) -> None:
        self.links[ours] = Link(ours, theirs, how, _distance(self._seen.get(ours), self._good_seen.get(theirs)))

    def add_names(self, limit: float) -> None:
        """Pair what has one name and is no farther apart than `limit`."""
        for name in self._made:
            named = name not in self.links and name in self._good_makers and self._alike(name, name)
            if named and _distance(self._seen[name], self._good_seen[name]) <= limit:
                self.add(name, name, "name")

    def add_counterparts(self, *, same_operator: bool) -> None:
        """Nodes that make partners read partners, whatever the contents: of a quantised weight, the weight.

        They must have the same operator, or at least as many inputs. What a node only hands on has one partner with it.
        """
        todo = list(self.links.values())
        for link in todo:  # grows while it is read
            todo += self._paired(self._counterparts(link, same_operator))

    def add_successors(self) -> None:
        """Partners are read by partners, where only one reader on each side has that operator."""
        shared = [Link(name, name, "input") for name in self._inputs if self._alike(name, name)]
        todo = shared + list(self.links.values())
        for link in todo:  # grows while it is read
            todo += self._paired(self._successors(link))

    def _paired(self, proposed: Iterable[tuple[str, str]]) -> list[Link]:
        """Those of the proposed pairs that can be; they are added."""
        new = []
        for mine, other in proposed:
            if mine in self._makers and mine not in self.links and self._alike(mine, other):
                self.add(mine, other, "structure")
                new.append(self.links[mine])
        return new

    def _successors(self, link: Link) -> Iterator[tuple[str, str]]:
        readers, good_readers = self._readers[link.ours], self._good_readers[link.theirs]
        kinds, good_kinds = (Counter(node.op_type for node in nodes) for nodes in (readers, good_readers))
        for ours in readers:
            if kinds[ours.op_type] == good_kinds[ours.op_type] == 1:
                theirs = next(node for node in good_readers if node.op_type == ours.op_type)
                yield from zip(ours.output, theirs.output, strict=False)

    def _counterparts(self, link: Link, same_operator: bool) -> Iterator[tuple[str, str]]:
        """Inputs and outputs that correspond: by position, or as is closest where the order does not matter."""
        ours, theirs = self._makers.get(link.ours), self._good_makers.get(link.theirs)
        if ours is None or theirs is None:
            return
        if ours.op_type != theirs.op_type:
            if (source := _handed_on(ours, self._makers)) is not None:
                yield source, link.theirs
                return
            while (source := _handed_on(theirs, self._good_makers)) in self._good_makers:
                theirs = self._good_makers[source]
        if same_operator and ours.op_type != theirs.op_type:
            return
        if len(ours.output) == len(theirs.output):
            yield from zip(ours.output, theirs.output, strict=True)
        if len(ours.input) == len(theirs.input):
            free = ours.op_type in COMMUTATIVE and len(ours.input) == 2
            orders = permutations(theirs.input) if free else [theirs.input]
            yield from min((list(zip(ours.input, order, strict=True)) for order in orders), key=self._apart)

    def _apart(self, pairs: Iterable[tuple[str, str]]) -> float:
        return sum(_distance(self._seen[a], self._good_seen[b]) if self._alike(a, b) else 1.0 for a, b in pairs)

    def add_contents(self) -> None:
        """Pair what is left where each is by far the nearest of the other."""
        taken = self._taken()
        left = [name for name in self._made if name not in self.links]
        table = _Contents(left, self._seen)
        good_table = _Contents([name for name in self._good_made if name not in taken], self._good_seen)
        for name in left:
            best = good_table.nearest(self._seen[name])
            if best is not None and best[1] < CLOSE:
                back = table.nearest(self._good_seen[best[0]])
                if back is not None and back[0] == name:
                    self.add(name, best[0], "content")

    def _taken(self) -> set[str]:
        return {link.theirs for link in self.links.values()}

    def _alike(self, ours: str, theirs: str) -> bool:
        """Whether two tensors can mean the same: one shape, one type or both floats."""
        mine, other = self._seen.get(ours), self._good_seen.get(theirs)
        if mine is None or other is None or mine.shapes != other.shapes:
            return False
        return mine.dtype == other.dtype or {mine.dtype, other.dtype} <= FLOATS


def _readers(model: Model) -> dict[str, list[onnx.NodeProto]]:
    readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in model.nodes:
        for name in dict.fromkeys(reads(node.proto)):
            readers[name].append(node.proto)
    return readers


def _handed_on(node: onnx.NodeProto, makers: Mapping[str, onnx.NodeProto]) -> str | None:
    """The tensor whose values the node hands on, but for rounding; None if it computes something."""
    if node.op_type in ("Cast", "Identity", "Dropout"):
        return str(node.input[0])
    if node.op_type == "DequantizeLinear":
        before = makers.get(node.input[0])
        if before is not None and before.op_type in ("QuantizeLinear", "DynamicQuantizeLinear"):
            return str(before.input[0])
    return None


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
