"""What is suspected before anything is built: the nodes that the emulation on the CPU blames, and what each costs in time."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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

FORMAT = "suspicion 1"  # changes with what the emulation or the search would answer
CHEAPEST_NS = 1.0


@dataclass(frozen=True)
class Suspicion:
    """Candidates that are probably to blame, and what lowering each alone did (relative L2), where that was measured."""

    suspects: tuple[int, ...] = ()
    sensitivity: Mapping[int, float] = field(default_factory=dict)
    evaluations: int = 0
    note: str = ""


def emulated(
    recipe: Lowered, candidates: Sequence[Candidate], cache: EngineCache | None,
    costs: Mapping[int, float] | None = None,
) -> Suspicion:  # fmt: skip
    """Search on the CPU, where an evaluation costs a run and no build. With `costs` (ns) dear nodes are kept last.

    A model that ONNX Runtime cannot run leaves no suspicion.
    """
    key = digest(FORMAT, _content(recipe, costs), *recipe.samples)
    if (known := recall(cache, key)) is not None:
        return known
    try:
        made = _search(recipe.prepare(), recipe, candidates, costs)
    except ProbeError as error:
        return Suspicion(note=f"no suspicion from the emulation: {error}")
    keep(cache, key, made)
    return made


def recall(cache: EngineCache | None, key: str) -> Suspicion | None:
    """What was suspected when this was asked before."""
    known = cache.read(key) if cache is not None else None
    if known is None:
        return None
    sensitivity = {int(name): float(number(value)) for name, value in known["sensitivity"].items()}
    return Suspicion(tuple(known["suspects"]), sensitivity, known["evaluations"], known["note"])


def keep(cache: EngineCache | None, key: str, made: Suspicion) -> None:
    if cache is not None:
        document = {"suspects": list(made.suspects), "sensitivity": dict(made.sensitivity),
                    "evaluations": made.evaluations, "note": made.note}  # fmt: skip
        cache.write(key, json.loads(to_json(document)))


def _content(recipe: Lowered, costs: Mapping[int, float] | None) -> str:
    model = build_key(recipe.model, BuildOptions(), {})
    return json.dumps([model, recipe.precision.value, recipe.policy, recipe.tolerance, sorted((costs or {}).items())])


def _search(
    evaluate: Evaluate, recipe: Lowered, candidates: Sequence[Candidate], costs: Mapping[int, float] | None
) -> Suspicion:  # fmt: skip
    order, groups = [c.id for c in candidates], by_scope(candidates)
    tolerance = recipe.tolerance if recipe.policy == "accuracy" else None
    answers: dict[frozenset[int], Any] = {}

    def ask(query: frozenset[int]) -> Any:
        if query not in answers:
            answers[query] = evaluate(query)
        return answers[query]

    found = drive(smallest_kept(order, tolerance=tolerance, destroyed=verdicts.DESTROYED, groups=groups), ask)
    if costs and found.kept:
        worth = {c: found.sensitivity.get(c, 0.0) / math.sqrt(max(costs.get(c, 0.0), CHEAPEST_NS)) for c in order}
        cheaper = drive(smallest_kept(order, sensitivity=worth), ask)
        if _cost(cheaper.kept, costs) < _cost(found.kept, costs):
            return _told(cheaper.kept, found.sensitivity, len(answers))
    return _told(found.kept, found.sensitivity, len(answers))


def _told(kept: Sequence[int], sensitivity: Mapping[int, float], evaluations: int) -> Suspicion:
    note = f"emulated on the CPU first ({evaluations} evaluations, no build): {len(kept)} suspected"
    return Suspicion(tuple(kept), dict(sensitivity), evaluations, note)


def _cost(kept: Sequence[int], costs: Mapping[int, float]) -> float:
    return sum(costs.get(candidate, 0.0) for candidate in kept)


def from_errors(model: Model, candidates: Sequence[Candidate], errors: Mapping[str, float]) -> Suspicion:
    """What the tensors of an engine say, each with its error (relative L2 against FP32).

    Where a value first ceases to be finite, the node that makes it and those that read it are suspected; a candidate's
    sensitivity is how much the error grows from its inputs to its outputs.
    """
    sensitivity: dict[int, float] = {}
    suspects: set[int] = set()
    readers: dict[str, list[int]] = defaultdict(list)
    for node in model.nodes:
        for name in reads(node.proto):
            readers[name].append(node.index)
    known = {c.id for c in candidates}
    for at in sorted(known):
        proto = model.nodes[at].proto
        made = {name: errors[name] for name in proto.output if name in errors}
        before = max((errors[name] for name in reads(proto) if name in errors), default=0.0)
        broken = [name for name, error in made.items() if math.isinf(error)]
        if broken and math.isfinite(before):
            suspects |= {at, *(reader for name in broken for reader in readers[name] if reader in known)}
            sensitivity[at] = math.inf
        elif made and math.isfinite(before):
            sensitivity[at] = max(0.0, max(made.values()) - before)
    note = f"looked for in an engine whose tensors are outputs: {len(suspects)} suspected"
    return Suspicion(tuple(sorted(suspects)), sensitivity, 1, note)


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
