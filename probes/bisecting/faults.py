"""The faults that `probe bisect` knows: for each, what the candidates are, how a query is answered, how it is repaired."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto

from harness.engines.building import BuildOptions
from harness.engines.cache import EngineCache
from harness.errors import UsageError
from harness.models import submodel
from harness.models.activations import FLOATS
from harness.models.emulate import lowerable
from harness.models.hybrid import Hybrid
from harness.models.inputs import load_samples
from harness.models.mixed import mixed_model
from harness.models.model import STANDARD_DOMAINS, Model
from harness.models.runtime import RunFailed, Runner, runner
from harness.models.tracing import Origin, suspects, trace_nonfinite
from harness.record import Answer, Outcome, Session
from harness.workers import Recipe
from probes.bisecting import suspicion as suspicions
from probes.bisecting import verdicts
from probes.bisecting.around import around
from probes.bisecting.candidates import Candidate, by_scope, from_nodes
from probes.bisecting.engines import faults as trt_faults
from probes.bisecting.question import AnswerQuestion, MakeRepair, Question, Repair, no_repair
from probes.bisecting.recipes import Built, Checked, LeftAsIs, Lowered, Swapped, cannot_run
from probes.bisecting.search import Ask, Found, Search, smallest_kept
from probes.bisecting.settings import Settings

MOST_EMULATED = 300  # evaluations of the emulation before a check is asked
SUSPICION = ".suspicion"  # in raw/: what the emulation said before a check, for --resume


def pose(
    settings: Settings, model: Model, samples: tuple[Path, ...], session: Session, tell: Callable[[str], None] = lambda _: None
) -> Question:  # fmt: skip
    """The question that a fault asks. `tell` hears what takes long before anything is asked."""
    if settings.tries_engines:
        return trt_faults.pose(settings, model, samples, session, tell)
    makers = {"precision": _precision, "finite": _finite, "compare": _compare, "build": _build, "check": _check}
    return makers[settings.fault](settings, model, samples, session)


# precision, and lowered-finite


def _precision(settings: Settings, model: Model, samples: tuple[Path, ...], session: Session) -> Question:
    return _lowering(settings, model, samples, "accuracy")


def _lowering(settings: Settings, model: Model, samples: tuple[Path, ...], policy: str) -> Question:
    measures = policy == "accuracy"
    candidates = _lowerable(settings, model) if measures else from_nodes(model, lowerable(model, settings.precision))
    recipe = Lowered(
        settings.model.absolute(), samples, settings.precision, policy, settings.tolerance, threads_of(settings)
    )
    return Question(
        f"lower/{policy}", candidates, recipe, f"lowered to {settings.precision.value.upper()}", "kept in FP32",
        _search(settings, candidates, settings.tolerance if measures else None), measures=measures,
        repair=_write_mixed(settings, model, samples) if candidates else no_repair,
    )  # fmt: skip


def _lowerable(settings: Settings, model: Model) -> list[Candidate]:
    candidates = from_nodes(model, lowerable(model, settings.precision))
    if not candidates:
        try:
            runner(model.proto, model.weights, lean=True)
        except RunFailed as error:
            raise cannot_run(model.path, error) from error
        kinds = sorted(TensorProto.DataType.Name(dtype) for dtype in {*model.dtypes.values()} & FLOATS)
        wanted = settings.precision.value.upper()
        raise UsageError(f"{model.path}: no node computes in FP32 that may in {wanted}, so nothing can be lowered to it"
                         f" (float types in the model: {', '.join(kinds) or 'none'})",
                         hint="give the FP32 model; for a model already lowered: --fault compare --good FP32.onnx")  # fmt: skip
    return candidates


def threads_of(settings: Settings) -> int:
    """ONNX Runtime's threads per worker: all cores for one worker, one each for several (0 leaves it to the runtime)."""
    return settings.threads or (1 if settings.jobs > 1 else 0)


def _search(settings: Settings, candidates: Sequence[Candidate], tolerance: float | None) -> Callable[[], Search]:
    order, groups = [c.id for c in candidates], by_scope(candidates)
    return lambda: smallest_kept(
        order, tolerance=tolerance, destroyed=verdicts.DESTROYED, groups=groups, scope_first=settings.keep_scope
    )


def _write_mixed(settings: Settings, model: Model, samples: tuple[Path, ...]) -> MakeRepair:
    def write(found: Found, session: Session, answer: AnswerQuestion) -> Repair:
        path = session.folder / f"{model.path.stem}.mixed.onnx"
        try:
            proto, weights = mixed_model(model, found.applied, settings.precision)
        except UsageError as error:
            return Repair(None, (f"no mixed model was written: {error}",))
        submodel.save(proto, weights, path)
        return Repair(path.name, tuple(_check_written(path, proto, weights, samples, settings.model)))

    return write


def _check_written(
    path: Path, proto: onnx.ModelProto, weights: dict[str, np.ndarray], samples: tuple[Path, ...], source: Path
) -> list[str]:
    """What is wrong with the model that was written and was not with its source: nothing, normally."""
    wrong = _invalid(path)
    if wrong and wrong != _invalid(source):
        return [f"{path.name} was written, but: {wrong}"]
    try:
        outputs = Runner(proto, weights).run(load_samples(samples[:1])[0])
    except RunFailed as error:
        if "NOT_IMPLEMENTED" in str(error):
            ours = all(node.domain in STANDARD_DOMAINS for node in proto.graph.node)
            return [
                f"{path.name} is valid, but ONNX Runtime on a CPU has no kernel for all of it{'; TensorRT has' * ours}"
            ]
        return [f"{path.name} was written, but: {str(error).splitlines()[0]}"]
    if all(_is_dull(output) for output in outputs):
        return ["no output varies on these inputs, so that errors hardly show: give real ones with --inputs"]
    return []


def _is_dull(output: object) -> bool:
    """Zero, or one value throughout."""
    values = np.ravel(output) if isinstance(output, np.ndarray) else np.arange(2)
    return not np.any(values) or (values.size > 1 and bool(np.all(values == values[0])))


def _invalid(path: Path) -> str:
    """What onnx's checker has against a model; "" if nothing."""
    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        return str(error).splitlines()[0]
    return ""


# finite


def _finite(settings: Settings, model: Model, samples: tuple[Path, ...], session: Session) -> Question:
    """The model as it is, if it makes NaN or Inf; else the same after lowering."""
    try:
        suspected = suspects(model, load_samples(samples))
    except RunFailed as error:
        raise cannot_run(model.path, error) from error
    if not suspected:
        return _lowering(settings, model, samples, "finite")
    candidates = from_nodes(model, sorted(suspected))
    recipe = LeftAsIs(settings.model.absolute(), samples, tuple(suspected), settings.precision, threads_of(settings))
    return Question("as-is/finite", candidates, recipe, "left as they are", "cleared of NaN and Inf",
                     lambda: smallest_kept(suspected), repair=_trace(model, samples),
                     baseline_hint="an input holds NaN or Inf, or a node that cannot be cleared of it makes them")  # fmt: skip


def _trace(model: Model, samples: tuple[Path, ...]) -> MakeRepair:
    """No repaired model, but where values that are not finite first come up, and which outputs they reach."""

    def trace(found: Found, session: Session, answer: AnswerQuestion) -> Repair:
        origins = [origin for feeds in load_samples(samples) for origin in trace_nonfinite(model, feeds)]
        return Repair(None, tuple(dict.fromkeys(_tell(origin, model) for origin in origins[:MOST_NOTES])))

    return trace


MOST_NOTES = 20


def _tell(origin: Origin, model: Model) -> str:
    where = model.nodes[origin.node].key if origin.node is not None else f"{origin.source} {origin.tensor}"
    of = "finite inputs" if origin.inputs_finite else "inputs that are not finite themselves"
    counts = origin.counts
    kinds = ", ".join(
        f"{n} {kind}" for n, kind in ((counts.nan, "NaN"), (counts.pos_inf, "+inf"), (counts.neg_inf, "-inf")) if n
    )
    reach = f"reaches {', '.join(origin.reaches)}" if origin.reaches else "reaches no output"
    made = (
        f"makes {kinds} of {counts.size} values out of {of}"
        if origin.node is not None
        else f"holds {kinds} of {counts.size} values"
    )
    return f"{where} {made}; {reach}"


# compare


def _compare(settings: Settings, model: Model, samples: tuple[Path, ...], session: Session) -> Question:
    assert settings.good is not None
    recipe = Swapped(
        settings.model.absolute(), settings.good.absolute(), samples, settings.tolerance, threads_of(settings)
    )
    matching = recipe.matching()
    parts = Hybrid(matching).parts
    candidates = [
        Candidate(p.index, p.key, "+".join(dict.fromkeys(p.op_types)), p.scope, p.nodes or (p.key,)) for p in parts
    ]
    divergent = matching.first_divergent(settings.tolerance)
    notes = [f"{len(matching.pairs)} tensors matched, {len(parts)} regions differ"]
    notes += [
        f"first beyond the tolerance: {pair.tensor} ({pair.op_type}), error {pair.error:.3g}"
        for pair in divergent[:MOST_NOTES]
    ]
    return Question("compare", candidates, recipe, f"taken from {settings.model.name}", f"taken from {settings.good.name}",
                     _search(settings, candidates, settings.tolerance), measures=True,
                     repair=lambda found, session, answer: Repair(None, tuple(notes)))  # fmt: skip


# build


def _build(settings: Settings, model: Model, samples: tuple[Path, ...], session: Session) -> Question:
    candidates = from_nodes(model, range(len(model.nodes)))
    options = BuildOptions(backend=settings.backend or "trt-rtx")
    recipe = Built(settings.model.absolute(), samples[0], options, session.raw, settings.timeout)
    recipe = dataclasses.replace(recipe, freeze=_fails_frozen(recipe, len(model.nodes), session))
    if settings.reduce:
        return _reducing(settings, model, candidates, dataclasses.replace(recipe, taken_out=True), samples[0])
    return Question("build", candidates, recipe, "left in", "commented out", _search(settings, candidates, None), baseline=False,
                     runs_programs=True, repair=_failing_parts(settings, model, recipe))  # fmt: skip


def _fails_frozen(recipe: Built, nodes: int, session: Session) -> bool:
    """Whether the failure is still there, and the same, with the sample's shapes for dynamic ones (kept for --resume).

    Fixed shapes spare sub-models trouble that the cut itself makes; but some failures are about dynamic shapes.
    """
    note = "raw/freeze.json"
    if not (session.folder / note).exists():
        whole = frozenset(range(nodes))
        given = recipe.prepare()(whole)
        same = given.outcome is Outcome.PASS or given == dataclasses.replace(recipe, freeze_whole=True).prepare()(whole)
        session.write_json(note, {"freeze": same})
    return bool(session.read_json(note)["freeze"])


def _failing_parts(settings: Settings, model: Model, recipe: Built) -> MakeRepair:
    """For every culprit the smallest sub-model that still shows its failure: itself alone, or what it needs around it."""

    def write(found: Found, session: Session, answer: AnswerQuestion) -> Repair:
        names, notes = [], []
        for number, culprit in enumerate((c for c in found.kept if c not in found.undecided), 1):
            others = frozenset(found.kept) - {culprit}
            rest = [n.index for n in model.nodes if n.index not in others]
            part = dataclasses.replace(recipe, taken_out=True, absent=others)
            question = Question(
                f"reduce/{model.nodes[culprit].key}", from_nodes(model, rest), part, "taken out", "left in",
                partial(_alone_first, culprit, rest), wanted=Outcome.FAIL, baseline=False, runs_programs=True,
            )  # fmt: skip
            smallest = answer(question)
            path = session.folder / f"{model.path.stem}.culprit-{number}.onnx"
            _save_part(model, smallest.kept, recipe.sample, path, freeze=recipe.freeze)
            names.append(path.name)
            notes.append(f"{path.name}: {len(smallest.kept)} node{'s' * (len(smallest.kept) != 1)}, the smallest part that shows the failure"
                         f" of {model.nodes[culprit].key}")  # fmt: skip
        return Repair(names[0] if names else None, tuple(notes))

    return write


def _alone_first(culprit: int, ids: Sequence[int]) -> Generator[Ask, Answer, Found]:
    """Most faults sit in one node: ask about it alone before searching for what it needs around it."""
    others = frozenset(ids) - {culprit}
    whole = yield Ask(frozenset(), ((1.0, Answer(Outcome.FAIL)),))
    alone = yield Ask(others, ((0.8, Answer(Outcome.FAIL, None, whole.signature)), (0.2, Answer(Outcome.PASS))))
    if alone.outcome is Outcome.FAIL and alone.signature == whole.signature:
        return Found(others, (culprit,))
    return (yield from smallest_kept(ids, wanted=Outcome.FAIL, signature=whole.signature))


def _save_part(model: Model, keep: Sequence[int], sample: Path, path: Path, *, freeze: bool = True) -> None:
    facts = submodel.observe(model, load_samples([sample])[0])
    submodel.save(submodel.extract(model, keep, facts, freeze=freeze), model.weights, path)


# check


def _check(settings: Settings, model: Model, samples: tuple[Path, ...], session: Session) -> Question:
    assert settings.check is not None
    recipe = Checked(settings.model.absolute(), settings.check, session.raw, settings.timeout, settings.precision)
    if settings.reduce:
        candidates = from_nodes(model, range(len(model.nodes)))
        return _reducing(settings, model, candidates, dataclasses.replace(recipe, sample=samples[0]), samples[0])
    candidates = _lowerable(settings, model)
    # The check says yes or no, and starts a program for it: whom to ask about first, the emulation knows for less.
    lowered = Lowered(
        settings.model.absolute(), samples, settings.precision, "accuracy", settings.tolerance, threads_of(settings)
    )
    suspicion = suspicions.emulated(lowered, candidates, EngineCache(session.raw / SUSPICION), most=MOST_EMULATED)
    search: Callable[[], Search] = partial(
        around, [c.id for c in candidates], suspicion.suspects, suspicion.sensitivity
    )
    return Question(
        "check/lower", candidates, recipe, f"lowered to {settings.precision.value.upper()}", "kept in FP32",
        search if suspicion.suspects else _search(settings, candidates, None),
        runs_programs=True, baseline_hint="the check fails on the FP32 model itself: --reduce finds the smallest part that fails",
        repair=_noting(suspicion.note, _write_mixed(settings, model, samples)),
    )  # fmt: skip


def _noting(note: str, repair: MakeRepair) -> MakeRepair:
    """The same repair, with a remark more."""

    def write(found: Found, session: Session, answer: AnswerQuestion) -> Repair:
        made = repair(found, session, answer)
        return dataclasses.replace(made, notes=(note, *made.notes))

    return write


def _reducing(
    settings: Settings, model: Model, candidates: Sequence[Candidate], recipe: Recipe, sample: Path
) -> Question:
    """The smallest failing sub-model: take out as much as possible while the very same failure stays."""
    ids = [c.id for c in candidates]

    def search() -> Generator[Ask, Answer, Found]:
        whole = yield Ask(frozenset(), ((1.0, Answer(Outcome.FAIL)),))
        if whole.outcome is not Outcome.FAIL:
            return Found(frozenset(ids))  # it does not fail: nothing to find
        return (
            yield from smallest_kept(
                ids, wanted=Outcome.FAIL, signature=whole.signature, groups=by_scope(candidates), scope_first=True
            )
        )

    def write(found: Found, session: Session, answer: AnswerQuestion) -> Repair:
        if not found.kept:
            return Repair()
        path = session.folder / f"{model.path.stem}.reduced.onnx"
        _save_part(model, found.kept, sample, path)
        return Repair(
            path.name,
            (f"{path.name} is the smallest part that still fails: {len(found.kept)} of {len(candidates)} nodes",),
        )

    return Question(
        "reduce",
        candidates,
        recipe,
        "taken out",
        "left in",
        search,
        wanted=Outcome.FAIL,
        baseline=False,
        runs_programs=True,
        repair=write,
    )
