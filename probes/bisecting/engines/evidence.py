"""What engines say before a search begins: where in a wrong one the error comes up, and what FP32 costs node by node."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from harness.engines.cache import digest
from harness.engines.options import BuildOptions
from harness.errors import UsageError
from harness.models.inputs import load_samples
from harness.models.model import Model
from harness.models.runtime import RunFailed
from harness.record import Answer, Outcome, number, to_json
from harness.workers import Query
from probes.bisecting import verdicts
from probes.bisecting.candidates import Candidate
from probes.bisecting.engines import suspects as trt_suspects
from probes.bisecting.engines.recipes import Lowering, Tried, Varied, tensors_of
from probes.bisecting.engines.suspects import Suspicion
from probes.bisecting.engines.trial import Result
from probes.bisecting.recipes import scratch

FORMAT = "evidence 1"  # changes with what is measured, or made of it
ROUNDS = 4  # engines that are looked into: each shows the first value that is not finite, and hides what comes after
Tell = Callable[[str], None]
Errors = Mapping[str, float]  # tensor -> relative L2 against FP32


@dataclass(frozen=True)
class Witness:
    """Engines of one lowering, asked by themselves. `tensors`: what can be marked as an output, so that it can be looked at."""

    model: Model
    candidates: Sequence[Candidate]
    lowering: Lowering
    recipe: Tried
    options: BuildOptions
    tensors: tuple[str, ...]

    @property
    def everything(self) -> Query:
        return frozenset(candidate.id for candidate in self.candidates)

    def key(self, before: Suspicion) -> str:
        """The hash of all that a suspicion depends on once engines have spoken."""
        whole = self.recipe.trial(Varied(self.recipe.model, self.lowering.options(self.options, self.everything)))
        judged = self.recipe.judged
        asked = [FORMAT, self.recipe.bench.build_key(whole), judged.policy, judged.tolerance, sorted(self.everything)]
        return digest(json.dumps([*asked, sorted(before.suspects), before.note]), *whole.samples)

    def costs(self) -> dict[int, float]:
        """What each candidate's FP32 costs in ns, of two engines that the search asks for as well: it finds them in the cache."""
        lowered, plain = (self._timed(query) for query in (self.everything, frozenset[int]()))
        return trt_suspects.costs_of(self.candidates, lowered, plain)

    def errors(self, query: Query) -> Errors:
        """The error of every tensor in the engine of a query, whose tensors are outputs; none if it does not run.

        Only the errors are kept: all tensors of a model together are large.
        """
        options, bench = replace(self.lowering.options(self.options, query), outputs=self.tensors), self.recipe.bench
        trial = self.recipe.trial(Varied(self.recipe.model, options, self.recipe.samples[:1]))
        cache = bench.engines
        key = digest(FORMAT, bench.build_key(trial), *trial.samples)
        if cache is not None and (known := cache.read(key)) is not None:
            return {name: float(number(value)) for name, value in known["errors"].items()}
        with scratch(bench.folder) as folder:
            result = bench.alone(replace(trial, measure=0), folder / "trial")
            self._note(query, options, result)
            if not result.ok:
                return {}
            got, plain = result.load()[0], self._plain()
        found = {name: verdicts.relative_l2(got[name], plain[name]) for name in plain if name in got}
        if cache is not None and found:
            cache.write(key, json.loads(to_json({"errors": found})))
        return found

    def _plain(self) -> Mapping[str, np.ndarray]:
        """The tensors in FP32: ONNX Runtime's, else those of an engine; none if neither runs."""
        feeds = load_samples(self.recipe.samples[:1])[0]
        try:
            return tensors_of(self.model, self.recipe.without_plugins(self.model), feeds, self.tensors)
        except (RunFailed, UsageError):
            options = replace(self.lowering.options(self.options, frozenset()), outputs=self.tensors)
        with scratch(self.recipe.bench.folder) as folder:
            trial = self.recipe.trial(Varied(self.recipe.model, options, self.recipe.samples[:1]))
            result = self.recipe.bench.alone(replace(trial, measure=0), folder / "trial")
            self._note(frozenset(), options, result)
            return result.load()[0] if result.ok else {}

    def _timed(self, query: Query) -> Result:
        options = self.lowering.options(self.options, query)
        with scratch(self.recipe.bench.folder) as folder:
            result = self.recipe.bench.run(self.recipe.trial(Varied(self.recipe.model, options)), folder / "trial")
        self._note(query, options, result)
        return result

    def _note(self, query: Query, options: BuildOptions, result: Result) -> None:
        """It is no evaluation: its verdict comes with the search, if that asks for it."""
        self.recipe.note(query, options, result, Answer(Outcome.UNRESOLVED, None, result.signature))


def measured(witness: Witness, before: Suspicion) -> Suspicion:
    """Where the error comes up in the engine with everything lowered; as before if nothing is to be seen."""
    errors = witness.errors(witness.everything)
    return trt_suspects.from_errors(witness.model, witness.candidates, errors) if errors else before


def confirmed(witness: Witness, before: Suspicion, tell: Tell) -> Suspicion:
    """The suspicion held against engines: where one with the suspected in FP32 is wrong, its tensors say who is suspected as well.

    Every engine whose outputs are judged here is one that the search asks for, and then finds in the cache.
    """
    cache, key = witness.recipe.bench.engines, witness.key(before)
    if (known := trt_suspects.recall(cache, key)) is not None:
        return known
    suspicion, sure = _held_against(witness, before, tell)
    if sure:
        trt_suspects.keep(cache, key, suspicion)
    return suspicion


def _held_against(witness: Witness, before: Suspicion, tell: Tell) -> tuple[Suspicion, bool]:
    """The suspicion, and whether every engine was judged: a crash may be the machine's."""
    evaluate, suspicion = witness.recipe.prepare(), before
    tell("building an engine with everything lowered")
    if (whole := evaluate(witness.everything).outcome) is not Outcome.FAIL:
        return before, whole is Outcome.PASS
    for _ in range(ROUNDS):
        held = frozenset(suspicion.suspects) & witness.everything
        tell(f"building an engine with the {len(held)} suspected nodes in FP32")
        if held and (part := evaluate(witness.everything - held).outcome) is not Outcome.FAIL:
            return suspicion, part is Outcome.PASS
        tell("it is wrong, too: building one whose tensors are outputs, to see where the error comes up")
        errors = witness.errors(witness.everything - held)
        seen = trt_suspects.from_errors(witness.model, witness.candidates, errors)
        more = frozenset(seen.suspects) & witness.everything - held
        if not more:
            return suspicion, bool(errors)
        suspicion = replace(suspicion, suspects=tuple(sorted(held | more)), sensitivity={**suspicion.sensitivity, **_of(seen, more)},
                            note=f"{before.note}; too few for the engine, whose tensors accuse {len(held | more) - len(before.suspects)} more")  # fmt: skip
    return suspicion, True


def _of(seen: Suspicion, more: Query) -> dict[int, float]:
    """Readers of what is not finite are suspected without a number of their own."""
    return {candidate: seen.sensitivity[candidate] for candidate in more if candidate in seen.sensitivity}
