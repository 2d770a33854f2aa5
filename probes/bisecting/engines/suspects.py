"""What is suspected before anything is built: the nodes that the emulation on the CPU blames, and what each costs in time."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from harness.engines.cache import EngineCache, digest
from harness.engines.options import BuildOptions, build_key
from harness.errors import ProbeError
from harness.models.model import Model, reads
from harness.record import number, to_json
from harness.workers import Evaluate
from probes.bisecting import verdicts
from probes.bisecting.candidates import Candidate, by_scope
from probes.bisecting.engines.trial import Result
from probes.bisecting.recipes import Lowered
from probes.bisecting.search import drive, smallest_kept

FORMAT = "suspicion 2"  # changes with what the emulation or the search would answer
CHEAPEST_NS = 1.0
Errors = Mapping[str, float]  # tensor -> relative L2 against FP32
Readers = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Suspicion:
    """Candidates that are probably to blame, and what lowering each alone did (relative L2), where that was measured.

    error: what is left with all others lowered, as the emulation has it.
    """

    suspects: tuple[int, ...] = ()
    sensitivity: Mapping[int, float] = field(default_factory=dict)
    evaluations: int = 0
    note: str = ""
    error: float | None = None


def emulated(
    recipe: Lowered, candidates: Sequence[Candidate], cache: EngineCache | None,
    costs: Mapping[int, float] | None = None, most: int | None = None,
) -> Suspicion:  # fmt: skip
    """Search on the CPU, where an evaluation costs a run and no build. With `costs` (ns) dear nodes are kept last.

    A model that ONNX Runtime cannot run leaves no suspicion, nor does a search that takes more than `most` evaluations.
    """
    key = digest(FORMAT, _content(recipe, costs), *recipe.samples)
    if (known := recall(cache, key)) is not None:
        return known
    try:
        made = _search(recipe.prepare(), recipe, candidates, costs, most)
    except ProbeError as error:
        return Suspicion(note=f"no suspicion from the emulation: {error}")
    if made is None:
        return Suspicion(note=f"no suspicion from the emulation: {most} evaluations did not suffice")
    keep(cache, key, made)
    return made


def recall(cache: EngineCache | None, key: str) -> Suspicion | None:
    """What was suspected when this was asked before."""
    known = cache.read(key) if cache is not None else None
    if known is None:
        return None
    sensitivity = {int(name): float(number(value)) for name, value in known["sensitivity"].items()}
    return Suspicion(tuple(known["suspects"]), sensitivity, known["evaluations"], known["note"], number(known["error"]))


def keep(cache: EngineCache | None, key: str, made: Suspicion) -> None:
    if cache is not None:
        document = {"suspects": list(made.suspects), "sensitivity": dict(made.sensitivity),
                    "evaluations": made.evaluations, "note": made.note, "error": made.error}  # fmt: skip
        cache.write(key, json.loads(to_json(document)))


def _content(recipe: Lowered, costs: Mapping[int, float] | None) -> str:
    model = build_key(recipe.model, BuildOptions(), {})
    return json.dumps([model, recipe.precision.value, recipe.policy, recipe.tolerance, sorted((costs or {}).items())])


class _Enough(Exception):
    """As many evaluations as there were to be."""


def _search(
    evaluate: Evaluate, recipe: Lowered, candidates: Sequence[Candidate], costs: Mapping[int, float] | None,
    most: int | None,
) -> Suspicion | None:  # fmt: skip
    order, groups = [c.id for c in candidates], by_scope(candidates)
    tolerance = recipe.tolerance if recipe.policy == "accuracy" else None
    answers: dict[frozenset[int], Any] = {}

    def ask(query: frozenset[int]) -> Any:
        if query not in answers:
            if len(answers) == most:
                raise _Enough
            answers[query] = evaluate(query)
        return answers[query]

    try:
        found = drive(smallest_kept(order, tolerance=tolerance, destroyed=verdicts.DESTROYED, groups=groups), ask)
    except _Enough:
        return None
    if costs and found.kept:
        worth = {c: found.sensitivity.get(c, 0.0) / math.sqrt(max(costs.get(c, 0.0), CHEAPEST_NS)) for c in order}
        cheaper = drive(smallest_kept(order, sensitivity=worth), ask)
        if _cost(cheaper.kept, costs) < _cost(found.kept, costs):
            found = replace(cheaper, sensitivity=found.sensitivity)
    note = f"emulated on the CPU first ({len(answers)} evaluations): {len(found.kept)} suspected"
    left = answers.get(found.applied)
    return Suspicion(found.kept, dict(found.sensitivity), len(answers), note, left.value if left else None)


def _cost(kept: Sequence[int], costs: Mapping[int, float]) -> float:
    return sum(costs.get(candidate, 0.0) for candidate in kept)


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
