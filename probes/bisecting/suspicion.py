"""What is suspected before anything dear is asked: the nodes that the emulation on the CPU blames."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from harness.engines.cache import EngineCache, digest
from harness.engines.options import BuildOptions, build_key
from harness.errors import ProbeError
from harness.record import number, to_json
from harness.workers import Evaluate
from probes.bisecting import verdicts
from probes.bisecting.candidates import Candidate, by_scope
from probes.bisecting.recipes import Lowered
from probes.bisecting.search import drive, smallest_kept

FORMAT = "suspicion 3"  # changes with what the emulation or the search would answer
CHEAPEST_NS = 1.0


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
    asked = [recipe.precision.value, recipe.policy, recipe.tolerance, recipe.clamp]
    return json.dumps([model, *asked, sorted((costs or {}).items())])


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
