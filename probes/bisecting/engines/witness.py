"""Engines that are asked by themselves, beside the search: what their tensors hold, and what FP32 costs node by node."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from onnx import helper

from harness.engines.cache import digest
from harness.engines.options import BuildOptions
from harness.errors import ProbeError, UsageError
from harness.models import submodel
from harness.models.inputs import Feeds, load_samples, save_samples
from harness.models.model import Model
from harness.models.precision import Precision
from harness.models.runtime import RunFailed
from harness.models.submodel import TensorFact
from harness.record import Answer, Outcome, number, to_json
from harness.workers import Evaluate, Query
from probes.bisecting import verdicts
from probes.bisecting.candidates import Candidate
from probes.bisecting.engines import suspects as trt_suspects
from probes.bisecting.engines.parts import Part, SideBySide, side_by_side
from probes.bisecting.engines.recipes import Lowering, Tried, Varied, described, tensors_of
from probes.bisecting.engines.suspects import Errors
from probes.bisecting.engines.trial import Result
from probes.bisecting.recipes import scratch
from probes.bisecting.search import FINITE
from probes.bisecting.suspicion import Suspicion

FORMAT = "evidence 2"  # changes with what is measured, or made of it


@dataclass(frozen=True)
class Witness:
    """Engines of one lowering. `tensors`: those of the candidates that hold data, so that they can be looked at."""

    model: Model
    candidates: Sequence[Candidate]
    lowering: Lowering
    recipe: Tried
    options: BuildOptions
    tensors: tuple[str, ...]

    @property
    def everything(self) -> Query:
        return frozenset(candidate.id for candidate in self.candidates)

    @cached_property
    def judge(self) -> Evaluate:
        """What the search will be told of a query: it finds the engine in the cache when it asks."""
        return self.recipe.prepare()

    @property
    def limit(self) -> float:
        """The error beyond which a part is wrong."""
        return self.recipe.judged.tolerance if self.recipe.judged.policy == "accuracy" else FINITE

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

    def look(self, parts: Sequence[Part], *, watch: bool) -> list[Errors]:
        """The error of what each part gives, with `watch` of all its tensors, where each part is fed what FP32 makes.

        All parts are one engine. Nothing is returned where that cannot be made, or does not run.
        """
        try:
            made = side_by_side(self.model, parts, self._facts, self.tensors if watch else ())
            errors = self._errors(made)
        except (ProbeError, RunFailed):
            return []
        if not errors:
            return []
        return [{name: errors[new] for new, name in names.items() if new in errors} for names in made.outputs]

    @cached_property
    def beyond(self) -> frozenset[str]:
        """Tensors that hold finite values which become infinite in the lower precision."""
        low = Precision(self.lowering.precision)
        floats = {name: array[np.isfinite(array)] for name, array in self._plain.items() if verdicts.is_float(array)}
        return frozenset(name for name, array in floats.items() if not np.isfinite(low.round(array)).all())

    @cached_property
    def _feeds(self) -> Feeds:
        return load_samples(self.recipe.samples[:1])[0]

    @cached_property
    def _plain(self) -> Mapping[str, np.ndarray]:
        """The tensors in FP32: ONNX Runtime's, else those of an engine; none if neither runs."""
        wanted = {*self.tensors, *self.model.dtypes} - submodel.shape_tensors(self.model)
        names = [name for node in self.model.nodes for name in node.proto.output if name in wanted]
        try:
            return tensors_of(self.model, self.recipe.without_plugins(self.model), self._feeds, names)
        except (RunFailed, UsageError):
            options = replace(self.lowering.options(self.options, frozenset()), outputs=self.tensors)
        with scratch(self.recipe.bench.folder) as folder:
            trial = self.recipe.trial(Varied(self.recipe.model, options, self.recipe.samples[:1]))
            result = self.recipe.bench.alone(replace(trial, measure=0), folder / "trial")
            self._note(frozenset(), described(options), result)
            return result.load()[0] if result.ok else {}

    @cached_property
    def _facts(self) -> Mapping[str, TensorFact]:
        """What a part must know of the tensors that it reads: where they hold data, the values that it is fed say so."""
        told = submodel.observe(self.model, self._feeds)
        fed = {
            name: TensorFact(helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in self._plain.items()
        }
        return {**told, **fed}

    def _errors(self, made: SideBySide) -> Errors:
        """By output of the network; only the errors are kept: all tensors of a model together are large."""
        cache, values = self.recipe.bench.engines, {**self._plain, **self._feeds}
        if any(value.name not in values for value in made.proto.graph.input):
            return {}
        with scratch(self.recipe.bench.folder) as folder:
            source = submodel.save(made.proto, self.model.weights, folder / "parts.onnx")
            samples = save_samples([{value.name: values[value.name] for value in made.proto.graph.input}], folder)
            held = dict.fromkeys(made.held, "fp32")
            options = replace(self.options, precision=self.lowering.precision, opt_profiles={}, layer_precisions=held)
            trial = replace(self.recipe.trial(Varied(source, options, samples)), measure=0)
            key = digest(FORMAT, self.recipe.bench.build_key(trial), *samples)
            if cache is not None and (known := cache.read(key)) is not None:
                return {name: float(number(value)) for name, value in known["errors"].items()}
            result = self.recipe.bench.alone(trial, folder / "trial")
            many = f"{len(made.outputs)} parts with {len(made.proto.graph.output)} outputs side by side"
            self._note(self.everything, f"{described(options)}, {many}", result)
            errors = self._compared(made, result.load()[0]) if result.ok else {}
        if cache is not None and errors:
            cache.write(key, json.loads(to_json({"errors": errors})))
        return errors

    def _compared(self, made: SideBySide, got: Mapping[str, np.ndarray]) -> dict[str, float]:
        pairs = {new: old for names in made.outputs for new, old in names.items() if new in got and old in self._plain}
        return {new: verdicts.relative_l2(got[new], self._plain[old]) for new, old in pairs.items() if verdicts.is_float(self._plain[old])}  # fmt: skip

    def _timed(self, query: Query) -> Result:
        options = self.lowering.options(self.options, query)
        with scratch(self.recipe.bench.folder) as folder:
            result = self.recipe.bench.run(self.recipe.trial(Varied(self.recipe.model, options)), folder / "trial")
        self._note(query, described(options), result)
        return result

    def _note(self, query: Query, engine: str, result: Result) -> None:
        """It is no evaluation: its verdict comes with the search, if that asks for it."""
        self.recipe.note(query, engine, result, Answer(Outcome.UNRESOLVED, None, result.signature))
