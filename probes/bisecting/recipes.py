"""How a worker answers queries, one recipe a fault: immutable, picklable, prepared once per process."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from harness.engines import building
from harness.engines.building import BuildOptions
from harness.errors import ProbeError, UsageError
from harness.models import inputs, submodel
from harness.models import model as models
from harness.models.emulate import Emulation
from harness.models.hybrid import Hybrid
from harness.models.matching import Matching, match
from harness.models.mixed import mixed_model
from harness.models.model import Model
from harness.models.opsets import with_type_for
from harness.models.precision import Precision
from harness.models.runtime import RunFailed
from harness.models.tracing import Sanitised
from harness.record import Answer, Outcome
from harness.workers import Evaluate, Query, Recipe
from probes.bisecting import verdicts


@dataclass(frozen=True)
class Lowered:
    """Query: the nodes lowered to `precision`, emulated. Verdict against the same session with nothing lowered."""

    model: Path
    samples: tuple[Path, ...]
    precision: Precision
    policy: str
    tolerance: float
    threads: int = 0
    clamp: bool = False  # weights to what the precision holds, as TensorRT does

    def prepare(self) -> Evaluate:
        feeds = inputs.load_samples(self.samples)
        try:
            model = with_type_for(models.load(self.model), self.precision)
            emulation = Emulation(model, self.precision, threads=self.threads, clamp=self.clamp)
            samples = [emulation.bind(f) for f in feeds]
            reference = [sample.run([]) for sample in samples]
        except RunFailed as error:
            raise cannot_run(self.model, error) from error
        if verdicts.has_nonfinite(reference):
            # Asked for `finite`, the model was looked through already: no node made them.
            hint = (
                "they come with an input: give finite --inputs"
                if self.policy == "finite"
                else f"probe bisect --fault finite {self.model}"
            )
            raise ProbeError(f"{self.model}: the FP32 reference itself holds NaN or Inf, so nothing can be compared with it", hint=hint)  # fmt: skip
        judge = verdicts.policy(self.policy, self.tolerance)

        def evaluate(query: Query) -> Answer:
            try:
                return judge([sample.run(query) for sample in samples], reference)
            except RunFailed as error:  # it ran in FP32: lowering is to blame (a shape computed in FP16, say)
                return Answer(Outcome.FAIL, float("inf"), f"run failed: {error}")

        return evaluate


@dataclass(frozen=True)
class LeftAsIs:
    """Query: the nodes left as they are, NaN and Inf of the other `suspects` replaced. Verdict: outputs are finite."""

    model: Path
    samples: tuple[Path, ...]
    suspects: tuple[int, ...]
    precision: Precision  # the model is brought to the opset that this needs before anything is asked
    threads: int = 0

    def prepare(self) -> Evaluate:
        model = with_type_for(models.load(self.model), self.precision)
        sanitised = Sanitised(model, self.suspects, threads=self.threads)
        feeds = inputs.load_samples(self.samples)

        def evaluate(query: Query) -> Answer:
            return verdicts.finite([sanitised.run(f, query) for f in feeds])

        return evaluate


@dataclass(frozen=True)
class Swapped:
    """Query: the regions computed MODEL's way, the others GOOD's way. Verdict: outputs agree with GOOD's."""

    model: Path
    good: Path
    samples: tuple[Path, ...]
    tolerance: float
    threads: int = 0

    def prepare(self) -> Evaluate:
        hybrid = self.hybrid()
        feeds = inputs.load_samples(self.samples)
        reference = [hybrid.run(f, []) for f in feeds]

        def evaluate(query: Query) -> Answer:
            try:
                return verdicts.accuracy([hybrid.run(f, query) for f in feeds], reference, tolerance=self.tolerance)
            except RunFailed as error:
                return Answer(Outcome.FAIL, float("inf"), f"run failed: {error}")

        return evaluate

    def matching(self) -> Matching:
        try:
            return match(models.load(self.model), models.load(self.good), inputs.load_samples(self.samples))
        except RunFailed as error:
            raise cannot_run(self.model, error) from error

    def hybrid(self) -> Hybrid:
        return Hybrid(self.matching(), threads=self.threads)


@dataclass(frozen=True)
class Built:
    """Query: the nodes left in (`taken_out`: the nodes taken out). FAIL, with its signature, if the sub-model does not build."""

    model: Path
    sample: Path
    options: BuildOptions
    folder: Path
    timeout_s: float | None
    taken_out: bool = False
    absent: frozenset[int] = frozenset()  # nodes that are never there
    freeze: bool = True  # inputs of sub-models have the sample's shapes; False keeps dynamic dimensions dynamic
    freeze_whole: bool = False  # treat the whole model as a sub-model, too

    def prepare(self) -> Evaluate:
        model, (feeds,) = models.load(self.model), inputs.load_samples([self.sample])
        facts, names = submodel.observe(model, feeds), building.names_of(model)
        whole = frozenset(range(len(model.nodes)))
        everything = whole - self.absent

        def evaluate(query: Query) -> Answer:
            keep = everything - query if self.taken_out else query
            if not keep:
                return Answer(Outcome.PASS)
            with scratch(self.folder) as folder:
                proto = (
                    model.proto
                    if keep == whole and not self.freeze_whole
                    else submodel.extract(model, keep, facts, freeze=self.freeze)
                )
                path = submodel.save(proto, model.weights, folder / "candidate.onnx")
                shapes = submodel.input_shapes(proto, facts)
                result = building.build(
                    path, self.options, shapes=shapes, timeout_s=self.timeout_s, folder=folder, names=names
                )
            return building.judge(result)

        return evaluate


@dataclass(frozen=True)
class Checked:
    """The user's own command on a model file: mixed precision (query: nodes lowered), or a sub-model (nodes taken out)."""

    model: Path
    command: str
    folder: Path
    timeout_s: float | None
    precision: Precision
    sample: Path | None = None  # given: sub-models
    wanted: str | None = None

    def prepare(self) -> Evaluate:
        model = with_type_for(models.load(self.model), self.precision)
        write = self._mixed(model) if self.sample is None else self._reduced(model, self.sample)

        def evaluate(query: Query) -> Answer:
            with scratch(self.folder) as folder:
                path = write(query, folder)
                if path is None:
                    return Answer(Outcome.PASS)
                answer = building.check(self.command, path, timeout_s=self.timeout_s, folder=folder)
            if answer.outcome is Outcome.FAIL and self.wanted not in (None, answer.signature):
                return Answer(Outcome.UNRESOLVED, None, answer.signature)  # another failure than the one searched for
            return answer

        return evaluate

    def _mixed(self, model: Model):  # type: ignore[no-untyped-def]
        def write(query: Query, folder: Path) -> Path:
            return submodel.save(*mixed_model(model, query, self.precision), folder / "candidate.onnx")

        return write

    def _reduced(self, model: Model, sample: Path):  # type: ignore[no-untyped-def]
        facts = submodel.observe(model, inputs.load_samples([sample])[0])
        everything = frozenset(range(len(model.nodes)))

        def write(query: Query, folder: Path) -> Path | None:
            keep = everything - query
            if not keep:
                return None
            proto = submodel.extract(model, keep, facts) if query else model.proto
            return submodel.save(proto, model.weights, folder / "candidate.onnx")

        return write


@dataclass(frozen=True)
class Repeated:
    """Ask `times` times; answers that do not agree are UNRESOLVED: a verdict that changes is never believed."""

    recipe: Recipe
    times: int

    def prepare(self) -> Evaluate:
        evaluate = self.recipe.prepare()

        def repeat(query: Query) -> Answer:
            answers = [evaluate(query) for _ in range(self.times)]
            outcomes = [answer.outcome for answer in answers]
            if len(set(outcomes)) == 1:
                return answers[0]
            counts = ", ".join(f"{outcomes.count(o)} {o.value}" for o in dict.fromkeys(outcomes))
            return Answer(Outcome.UNRESOLVED, None, f"not deterministic: {counts} of {self.times}")

        return repeat


class scratch:
    """A folder for one evaluation, removed afterwards: a search writes hundreds of models."""

    def __init__(self, parent: Path) -> None:
        self._parent = parent

    def __enter__(self) -> Path:
        self._parent.mkdir(parents=True, exist_ok=True)
        self._folder = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=self._parent))
        return self._folder

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


def cannot_run(model: Path, error: RunFailed) -> UsageError:
    """ONNX Runtime refuses the model as it is, so there is nothing to compare with."""
    return UsageError(f"{model.name}: ONNX Runtime cannot run it: {error}",
                      hint="python -m onnx.checker, other --inputs or --shape, or --fault build --backend trt-rtx")  # fmt: skip
