"""How a worker answers queries by engines: what each query makes of the model, one trial, one verdict."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
from onnx import helper

from harness.engines import options as engine_options
from harness.engines.cache import digest
from harness.engines.options import BuildOptions, to_json
from harness.errors import ProbeError, UsageError
from harness.models import inputs as samples_of
from harness.models import model as models
from harness.models import submodel
from harness.models.model import Model
from harness.models.runtime import Feeds, RunFailed, Runner
from harness.record import Answer, Outcome
from harness.record import to_json as to_text
from harness.workers import Evaluate, Query
from probes.bisecting import verdicts
from probes.bisecting.engines import plugins as trt_plugins
from probes.bisecting.engines.trial import Bench, Result, Trial, refuse
from probes.bisecting.recipes import scratch

TRIALS = "trials.jsonl"  # beside the trials' folders: latency, error and seconds of each
Outputs = list[np.ndarray]


@dataclass(frozen=True)
class Varied:
    """What one query makes of the model. The rest is there where it differs from the search's own.

    reference: for each sample the outputs that are right, in the order of `outputs`.
    """

    source: Path
    options: BuildOptions
    samples: tuple[Path, ...] | None = None
    reference: tuple[Outputs, ...] | None = None
    outputs: tuple[str, ...] | None = None


Vary = Callable[[Query, Path], Varied]


class Variation(Protocol):
    """How queries change model and options; immutable and small. The folder takes the models that are written."""

    def prepare(self, model: Path, options: BuildOptions, samples: tuple[Path, ...]) -> Vary: ...


@dataclass(frozen=True)
class Judged:
    """The verdict: a named policy and its tolerance, and what a trial that failed counts as."""

    policy: str = "accuracy"
    tolerance: float = 1e-2
    failure: Outcome = Outcome.UNRESOLVED


@dataclass(frozen=True)
class Tried:
    """Query: as its variation has it. Each is an engine in a process of its own, held against FP32.

    The reference is ONNX Runtime's; where it cannot run the model, an engine of the model in FP32 without any change.
    `options` are BuildOptions as JSON text, so that recipes can be compared and hashed.
    """

    model: Path
    samples: tuple[Path, ...]
    variation: Variation
    judged: Judged
    bench: Bench
    options: str
    measure: int = 0
    layers: bool = False
    memory_bytes: int | None = None
    replacements: tuple[tuple[str, Path], ...] = ()  # plugin op -> an .onnx file that computes the same

    def prepare(self) -> Evaluate:
        options = engine_options.from_json(json.loads(self.options))
        vary = self.variation.prepare(self.model, options, self.samples)
        reference, names = self.reference(options), tuple(models.load(self.model).outputs)
        judge = verdicts.policy(self.judged.policy, self.judged.tolerance)

        def evaluate(query: Query) -> Answer:
            with scratch(self.bench.folder) as folder:
                varied = vary(query, folder)
                result = self.bench.run(self.trial(varied), folder / "trial")
                answer = self._answer(result, varied.reference or reference, varied.outputs or names, judge)
                self._keep_log(result, folder / "trial" / "trial.err")
            self.note(query, described(varied.options), result, answer)
            return answer

        return evaluate

    def trial(self, varied: Varied) -> Trial:
        samples = self.samples if varied.samples is None else varied.samples
        return Trial(varied.source, varied.options, samples, self.measure, self.layers, self.memory_bytes)

    def reference(self, options: BuildOptions) -> tuple[Outputs, ...]:
        """The outputs of each sample in FP32, in the model's order; none where nothing can be compared."""
        model = models.load(self.model)
        try:
            runner = Runner(self.without_plugins(model), model.weights)
            made = tuple(runner.run(feeds, model.outputs) for feeds in samples_of.load_samples(self.samples))
        except (RunFailed, UsageError):
            made = self._built_reference(model, options)
        if verdicts.has_nonfinite(made) and self.judged.failure is Outcome.UNRESOLVED:
            raise ProbeError(f"{self.model.name}: the FP32 reference itself holds NaN or Inf, so nothing can be compared with it",
                             hint=f"probe bisect --fault finite {self.model.name}")  # fmt: skip
        return made

    def without_plugins(self, model: Model) -> onnx.ModelProto:
        """What ONNX Runtime can run: every plugin replaced. Raises UsageError where nothing is known of one."""
        plugins = [node.index for node in model.nodes if trt_plugins.is_plugin(node.proto)]
        return trt_plugins.replaced(model, plugins, {op: onnx.load(str(path)) for op, path in self.replacements})

    def _built_reference(self, model: Model, options: BuildOptions) -> tuple[Outputs, ...]:
        with scratch(self.bench.folder) as folder:
            plain = replace(options, precision="fp32", layer_precisions={}, outputs=())
            result = self.bench.run(self.trial(Varied(self.model, plain)), folder / "trial")
            if not result.ok and self.judged.failure is Outcome.FAIL:
                return ()  # it crashes: that is what is searched for
            refuse(result)
            return tuple([made[name] for name in model.outputs] for made in result.load())

    def _answer(
        self, result: Result, reference: Sequence[Outputs], names: Sequence[str], judge: verdicts.Policy
    ) -> Answer:  # fmt: skip
        if not result.ok:
            if result.error == "DependencyMissing" or (
                result.error == "UsageError" and self.judged.failure is Outcome.UNRESOLVED
            ):
                refuse(result)
            return Answer(self.judged.failure, None, result.signature)
        if not result.outputs or not reference:  # built, and not run: there is no GPU, or nothing to compare with
            return Answer(Outcome.PASS)
        return judge([[made[name] for name in names] for made in result.load()], reference)

    def _keep_log(self, result: Result, log: Path) -> None:
        """What the process of a failure said, once for each signature."""
        if result.signature is not None and log.is_file():
            log.replace(self.bench.folder / f"failed-{digest(result.signature)[:8]}.err")

    def note(self, query: Query, engine: str, result: Result, answer: Answer) -> None:
        """One line a trial, in one write: several workers share the file. What was answered before is no further trial."""
        row = {"applied": sorted(query), "engine": engine, "outcome": answer.outcome.value, "error": answer.value, "signature": answer.signature,
               "latency_ns": result.latency_ns, "build_s": result.facts.get("build_s"), "built": result.built, "cached": result.cached,
               "duration_s": round(result.duration_s, 3)}  # fmt: skip
        same = ("applied", "engine", "outcome")
        if any(all(row[name] == old.get(name) for name in same) for old in read_trials(self.bench.folder)):
            return
        self.bench.folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.bench.folder / TRIALS, os.O_APPEND | os.O_CREAT | os.O_WRONLY, 0o644)
        try:
            os.write(handle, (to_text(row) + "\n").encode())
        finally:
            os.close(handle)


def read_trials(folder: Path) -> list[dict[str, Any]]:
    """Every trial of a session, in the order in which they ended; a torn line is left out."""
    path = folder / TRIALS
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]


def described(options: BuildOptions) -> str:
    """What sets an engine apart, in words: `FP16, 3 nodes in FP32`."""
    words = [options.precision.upper()]
    words += [f"{len(options.layer_precisions)} nodes in FP32"] if options.layer_precisions else []
    words += [f"{len(marked)} tensors materialised" for marked in (options.outputs, options.debug_tensors) if marked]
    words += [f"optimisation level {options.optimisation_level}"] if options.optimisation_level is not None else []
    words += [f"tactics of {' '.join(options.tactic_sources)}"] if options.tactic_sources is not None else []
    return ", ".join([*words, *([options.build_route] if options.build_route else [])])


def frozen(options: BuildOptions) -> str:
    """Options as the text that a recipe holds."""
    return json.dumps(to_json(options), sort_keys=True)


# Variations


@dataclass(frozen=True)
class Lowering:
    """Query: nodes (by index) that may be computed in `precision`; the other candidates are held in FP32."""

    nodes: tuple[tuple[int, str], ...]  # index, key
    precision: str

    def prepare(self, model: Path, options: BuildOptions, samples: tuple[Path, ...]) -> Vary:
        return lambda query, folder: Varied(model, self.options(options, query))

    def options(self, options: BuildOptions, query: Query) -> BuildOptions:
        held = {key: "fp32" for index, key in self.nodes if index not in query}
        if len(held) == len(self.nodes):
            return replace(options, precision="fp32", layer_precisions={})
        return replace(options, precision=self.precision, layer_precisions=held)


@dataclass(frozen=True)
class Materialising:
    """Query: tensors (by place) that the builder may fuse away; the others are marked as outputs, or for debugging."""

    tensors: tuple[str, ...]
    debug: bool = False

    def prepare(self, model: Path, options: BuildOptions, samples: tuple[Path, ...]) -> Vary:
        return lambda query, folder: Varied(model, self.options(options, query))

    def options(self, options: BuildOptions, query: Query) -> BuildOptions:
        marked = tuple(name for place, name in enumerate(self.tensors) if place not in query)
        return replace(options, debug_tensors=marked) if self.debug else replace(options, outputs=marked)


@dataclass(frozen=True)
class Change:
    """One switch of the builder set otherwise than by default. `flag` is what trtexec calls it."""

    kind: str  # level | tactic | route | tf32
    value: str
    flag: str


@dataclass(frozen=True)
class Switching:
    """Query: changes (by place) that are not made; the others are."""

    changes: tuple[Change, ...]

    def prepare(self, model: Path, options: BuildOptions, samples: tuple[Path, ...]) -> Vary:
        return lambda query, folder: Varied(model, self.options(options, query))

    def options(self, options: BuildOptions, query: Query) -> BuildOptions:
        made = [change for place, change in enumerate(self.changes) if place not in query]
        without = tuple(f"-{change.value}" for change in made if change.kind == "tactic")
        levels = [int(change.value) for change in made if change.kind == "level"]
        routes = [change.value for change in made if change.kind == "route"]
        if without:
            options = replace(options, tactic_sources=(*(options.tactic_sources or ()), *without))
        if levels:
            options = replace(options, optimisation_level=min(levels))
        if any(change.kind == "tf32" for change in made):
            options = replace(options, precision="fp32")
        return replace(options, build_route=" ".join(routes)) if routes else options


@dataclass(frozen=True)
class Replacing:
    """Query: plugin nodes (by index) left as they are; the others are replaced by standard operators that compute the same."""

    nodes: tuple[int, ...]
    files: tuple[tuple[str, Path], ...] = ()  # op -> an .onnx file of the user's to put in its place

    def prepare(self, model: Path, options: BuildOptions, samples: tuple[Path, ...]) -> Vary:
        loaded = models.load(model)
        given = {op: onnx.load(str(path)) for op, path in self.files}

        def vary(query: Query, folder: Path) -> Varied:
            out = [index for index in self.nodes if index not in query]
            if not out:
                return Varied(model, options)
            proto = trt_plugins.replaced(loaded, out, given)
            return Varied(submodel.save(proto, loaded.weights, folder / "candidate.onnx"), options)

        return vary


@dataclass(frozen=True)
class Cutting:
    """Query: nodes (by index) left in; the others are taken out, and what they made is fed as ONNX Runtime computes it."""

    def prepare(self, model: Path, options: BuildOptions, samples: tuple[Path, ...]) -> Vary:
        loaded = models.load(model)
        feeds = samples_of.load_samples(samples)
        facts = submodel.observe(loaded, feeds[0])
        whole = frozenset(node.index for node in loaded.nodes)

        def vary(query: Query, folder: Path) -> Varied:
            if query == whole:
                return Varied(model, options)
            if not query:
                raise UsageError("nothing is left of the model")
            proto = submodel.extract(loaded, query, facts)
            path = submodel.save(proto, loaded.weights, folder / "candidate.onnx")
            fed = tuple(_fed(loaded, proto, one) for one in feeds[:1])  # the cut has the first sample's shapes
            saved = samples_of.save_samples(list(fed), folder)
            reference = tuple(Runner(proto, loaded.weights).run(one) for one in fed)
            return Varied(
                path, replace(options, opt_profiles={}), saved, reference, tuple(v.name for v in proto.graph.output)
            )

        return vary


def _fed(model: Model, part: onnx.ModelProto, feeds: Feeds) -> dict[str, np.ndarray]:
    """The values of a part's inputs: the model's own, and what the nodes that were cut off make."""
    names = [value.name for value in part.graph.input]
    missing = [name for name in names if name not in feeds]
    made: Mapping[str, Any] = {}
    if missing:
        proto = onnx.ModelProto()
        proto.CopyFrom(model.proto)
        made = tensors_of(model, proto, feeds, missing)
    return {name: np.asarray(feeds[name] if name in feeds else made[name]) for name in names}


def tensors_of(model: Model, proto: onnx.ModelProto, feeds: Feeds, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Any tensors of a model, as ONNX Runtime computes `proto`: the model itself, or what stands for it; outputs are added to it."""
    own = {value.name for value in proto.graph.output}
    proto.graph.output.extend(
        helper.make_tensor_value_info(name, model.dtypes.get(name, 0), None) for name in names if name not in own
    )
    return dict(zip(names, Runner(proto, model.weights).run(feeds, names), strict=True))


def profiles(model: Model, samples: tuple[Path, ...]) -> dict[str, engine_options.Bounds]:
    """For every input with dynamic dimensions an opt_profile that holds all samples, best for the first."""
    feeds = samples_of.load_samples(samples)
    found: dict[str, engine_options.Bounds] = {}
    for value in model.inputs:
        if any(dim.dim_value <= 0 for dim in value.type.tensor_type.shape.dim):
            shapes = [sample[value.name].shape for sample in feeds]
            found[value.name] = (_extreme(min, shapes), shapes[0], _extreme(max, shapes))
    return found


def _extreme(choose: Callable[..., int], shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    return tuple(choose(sizes) for sizes in zip(*shapes, strict=True))
