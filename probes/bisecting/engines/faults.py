"""The faults of `probe bisect` whose every evaluation is an engine: who the candidates are, what a query builds, how it is repaired."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from onnx import TensorProto

from harness.engines.cache import EngineCache, default_root, digest
from harness.engines.layers import LayerFact, attribute, makers_of
from harness.engines.options import BuildOptions
from harness.errors import UsageError
from harness.models.emulate import lowerable
from harness.models.model import Model
from harness.models.submodel import shape_tensors
from harness.record import Outcome, Session
from probes.bisecting import suspicion as suspicions
from probes.bisecting.around import around
from probes.bisecting.candidates import Candidate, by_scope, from_nodes
from probes.bisecting.engines import evidence as trt_evidence
from probes.bisecting.engines import plugins as trt_plugins
from probes.bisecting.engines import repair as trt_repair
from probes.bisecting.engines import search as trt_search
from probes.bisecting.engines.evidence import Tell
from probes.bisecting.engines.recipes import (
    Change,
    Cutting,
    Judged,
    Lowering,
    Materialising,
    Replacing,
    Switching,
    Tried,
    frozen,
    profiles,
)
from probes.bisecting.engines.trial import WORKER, Bench, Trial, refuse, visible_gpus
from probes.bisecting.engines.witness import Witness
from probes.bisecting.question import Question
from probes.bisecting.recipes import Lowered, scratch
from probes.bisecting.search import Search, smallest_kept
from probes.bisecting.settings import Settings
from probes.bisecting.suspicion import Suspicion

TIMEOUT_S = 1800.0  # of one trial: a hang must not be for ever
MEASURED = 50  # iterations of each engine
LEVELS = (5, 4, 2, 1, 0)  # beside the default, 3: those that keep most of the speed first
BASELINE = "engines of the FP32 model fail, too: --fault crash, fusion or route"
ELSEWHERE = "leave --backend out to emulate on the CPU, or --backend trt-rtx, which builds without a GPU; probe doctor"
WORDS = re.compile(r"\[([^\]]*)\]")  # what a switch may be set to, among its words


@dataclass(frozen=True)
class Setting:
    """What a search by engines is about: everything that its question, and its repair, are made from."""

    asked: Settings
    model: Model
    samples: tuple[Path, ...]
    bench: Bench
    options: BuildOptions
    network: dict[str, Any]  # what the survey told: version, layers, switches; empty if the network did not parse
    runs: bool

    @property
    def strong(self) -> bool:
        return bool(self.network.get("strongly_typed", True))

    @property
    def layers(self) -> list[LayerFact]:
        rows = self.network.get("layers", ())
        return [
            LayerFact(row["name"], row["kind"], *(tuple(row[name]) for name in ("nodes", "reads", "makes")))
            for row in rows
        ]

    @property
    def owners(self) -> list[str | None]:
        """The ONNX node of each layer."""
        return attribute(self.layers, makers_of(self.model))

    @property
    def cache(self) -> EngineCache | None:
        return EngineCache(self.bench.cache) if self.bench.cache is not None else None

    def tried(self, variation: Any, judged: Judged, options: BuildOptions | None = None) -> Tried:
        asked = self.asked
        memory = None if asked.memory is None else int(asked.memory * 2**30)
        return Tried(
            self.model.path.absolute(), self.samples, variation, judged, self.bench, frozen(options or self.options),
            MEASURED if self.runs else 0, asked.objective == "time", memory, tuple((o, p.absolute()) for o, p in asked.replace),
        )  # fmt: skip


def pose(
    settings: Settings, model: Model, samples: tuple[Path, ...], session: Session, tell: Tell = lambda _: None
) -> Question:  # fmt: skip
    """The question that a fault asks of engines. `tell` hears what is built before anything is asked."""
    setting = survey(settings, model, samples, session)
    if settings.tries_engines and settings.fault in ("precision", "finite", "fusion") and not setting.runs:
        raise UsageError(f"--fault {settings.fault} runs engines, and {settings.backend} does not run here: there is no GPU for it",
                         hint="leave --backend out to emulate on the CPU; --fault build, crash and route only build")  # fmt: skip
    makers = {"precision": _precision, "finite": _precision, "crash": _crash, "fusion": _fusion, "route": _route}
    return makers[settings.fault](setting, tell)


def survey(settings: Settings, model: Model, samples: tuple[Path, ...], session: Session) -> Setting:
    """Ask a process of its own what there is: versions, GPUs, layers, switches. Ours never holds a CUDA context."""
    options = BuildOptions(
        backend=settings.backend, opt_profiles=profiles(model, samples), optimisation_level=settings.level,
        plugins=tuple(path.absolute() for path in settings.plugins),
    )  # fmt: skip
    bench = Bench((session.raw / "trials").absolute(), WORKER, default_root(), timeout_s=settings.timeout or TIMEOUT_S,
                  checker=settings.sanitize)  # fmt: skip
    with scratch(bench.folder) as folder:
        told = replace(bench, checker=None).alone(Trial(model.path.absolute(), options, survey=True), folder / "survey")
    network = told.facts.get("network", {})
    facts = told.facts.get("facts", {})
    if not told.ok and (settings.fault != "crash" or not facts):  # without facts nothing can be built here
        refuse(replace(told, hint=ELSEWHERE) if told.error == "UsageError" and not facts else told)
    gpus = visible_gpus(int(told.facts.get("gpus", 0)))
    bench = replace(bench, facts=tuple(sorted(facts.items())), gpus=gpus)
    if settings.backend == "trt":
        options = replace(options, timing_cache=default_root() / f"timing-{digest(json.dumps(bench.facts))[:16]}.cache")
    session.write_json("raw/survey.json", {"facts": facts, "gpus": len(gpus), "network": network})
    return Setting(settings, model, samples, bench, options, network, bool(told.facts.get("runs")))


# precision and finite


def _precision(setting: Setting, tell: Tell) -> Question:
    settings, model = setting.asked, setting.model
    candidates = _lowerable(setting)
    nodes = tuple((c.id, c.key) for c in candidates)
    policy = "accuracy" if settings.fault == "precision" else "finite"
    judged = Judged(policy, settings.tolerance)
    lowering = Lowering(nodes, settings.precision.value)
    recipe = setting.tried(lowering, judged)
    witness = Witness(model, candidates, lowering, recipe, setting.options, _marked(setting, candidates))
    costs = witness.costs() if settings.objective == "time" else None
    on_cpu = Lowered(
        model.path.absolute(), setting.samples, settings.precision, policy, settings.tolerance, settings.threads,
        clamp=not setting.strong,
    )  # fmt: skip

    def emulated(tolerance: float) -> Suspicion:
        tell("emulating on the CPU")
        return suspicions.emulated(replace(on_cpu, tolerance=tolerance), candidates, setting.cache, costs)

    suspicion = emulated(settings.tolerance)
    suspicion = trt_evidence.confirmed(witness, suspicion, emulated, tell)
    known = {c.id for c in candidates}
    suspects = tuple(c for c in suspicion.suspects if c in known)
    return Question(
        f"engines/{policy}", candidates, recipe, f"free to be {settings.precision.value.upper()}", "kept in FP32",
        _search(settings, candidates, replace(suspicion, suspects=suspects), costs), measures=policy == "accuracy",
        runs_programs=True, baseline_hint=BASELINE,
        repair=trt_repair.lowering(setting, lowering, suspicion, costs),
    )  # fmt: skip


def _lowerable(setting: Setting) -> list[Candidate]:
    """Nodes that can be lowered; on weak typing those that left a layer to be held to a type."""
    settings, model = setting.asked, setting.model
    candidates = from_nodes(model, lowerable(model, settings.precision))
    if not setting.strong:
        owned = set(setting.owners)
        candidates = [c for c in candidates if c.key in owned]
    if not candidates:
        raise UsageError(f"{model.path}: no node computes in FP32, so nothing can be lowered to {settings.precision.value.upper()}",
                         hint="give the FP32 model")  # fmt: skip
    return candidates


def _search(
    settings: Settings, candidates: Sequence[Candidate], suspicion: Suspicion, costs: dict[int, float] | None
) -> Callable[[], Search]:  # fmt: skip
    order = [c.id for c in candidates]
    tolerance = settings.tolerance if settings.fault == "precision" else None
    if suspicion.suspects or suspicion.sensitivity:
        return partial(around, order, suspicion.suspects, suspicion.sensitivity, costs, tolerance)
    return partial(smallest_kept, order, tolerance=tolerance, groups=by_scope(candidates), scope_first=True)


def _marked(setting: Setting, candidates: Sequence[Candidate]) -> tuple[str, ...]:
    """The tensors that candidates make, where the network has them."""
    makers = {tensor for layer in setting.layers for tensor in layer.makes}
    found = (_tensor(setting.model, setting.model.nodes[c.id].proto.output, makers) for c in candidates)
    return tuple(name for name in found if name is not None)


# crash


def _crash(setting: Setting, tell: Tell) -> Question:
    """Plugins against standard operators that compute the same; in a model without plugins, nodes that are taken out."""
    settings, model = setting.asked, setting.model
    options = replace(setting.options, precision=settings.engine_precision)
    judged = Judged("accuracy", settings.tolerance, Outcome.FAIL)
    plugins = [node.index for node in model.nodes if trt_plugins.is_plugin(node.proto)]
    if plugins:
        given = tuple((op, path.absolute()) for op, path in settings.replace)
        candidates = from_nodes(model, plugins)
        _check_replaceable(model, plugins, {op for op, _ in given})
        recipe = setting.tried(Replacing(tuple(plugins), given), judged, options)
        order = tuple(plugins)
        return Question(
            "crash/plugins", candidates, recipe, "left as plugins", "replaced by standard operators",
            partial(smallest_kept, order, groups=_by_type(candidates), scope_first=True), runs_programs=True,
            baseline_hint="without any plugin it fails as well: the network is wrong, not the plugins; --fault precision, fusion or route",
            repair=trt_repair.replacing(setting, tuple(plugins), given),
        )  # fmt: skip
    candidates = from_nodes(model, range(len(model.nodes)))
    recipe = setting.tried(Cutting(), judged, options)
    return Question(
        "crash/nodes", candidates, recipe, "left in", "taken out",
        partial(smallest_kept, [c.id for c in candidates], groups=by_scope(candidates), scope_first=True),
        baseline=False, runs_programs=True, repair=trt_repair.cutting(setting),
    )  # fmt: skip


def _by_type(candidates: Sequence[Candidate]) -> list[list[int]]:
    """A plugin that is wrong is often wrong everywhere."""
    groups: dict[str, list[int]] = {}
    for candidate in candidates:
        groups.setdefault(candidate.op_type, []).append(candidate.id)
    return list(groups.values())


def _check_replaceable(model: Model, plugins: Sequence[int], given: set[str]) -> None:
    for index in plugins:
        op = model.nodes[index].op_type
        if op not in given and not trt_plugins.can_replace(op):
            raise UsageError(f"{model.nodes[index].key}: nothing is known that computes what {op} does",
                             hint=f"--replace {op}=SUBGRAPH.onnx, with the same inputs and outputs")  # fmt: skip


# fusion


def _fusion(setting: Setting, tell: Tell) -> Question:
    """Which tensors must be materialised so that a region is no longer compiled wrongly."""
    settings, model = setting.asked, setting.model
    makers = {tensor for layer in setting.layers for tensor in layer.makes}
    inner = [node for node in model.nodes if _tensor(model, node.proto.output, makers)]
    tensors = tuple(_tensor(model, node.proto.output, makers) or "" for node in inner)
    if not tensors:
        raise UsageError(f"{model.path}: no tensor lies between two layers, so nothing is fused")
    candidates = [
        Candidate(place, tensor, node.op_type, node.scope, (node.key,)) for place, (tensor, node) in enumerate(zip(tensors, inner, strict=True))
    ]  # fmt: skip
    options = replace(setting.options, precision=settings.engine_precision)
    materialising = Materialising(tensors)
    recipe = setting.tried(materialising, Judged("accuracy", settings.tolerance, Outcome.FAIL), options)
    return Question(
        "fusion", candidates, recipe, "free to be fused", "materialised",
        partial(smallest_kept, [c.id for c in candidates], groups=by_scope(candidates), scope_first=True), measures=True,
        runs_programs=True, baseline_hint="no fusion is to blame, it is wrong with every tensor materialised: --fault route, or precision",
        repair=trt_repair.materialising(setting, materialising, options),
    )  # fmt: skip


def _tensor(model: Model, outputs: Sequence[str], makers: set[str]) -> str | None:
    """The float tensor of a node that the network knows and that is no output yet."""
    own, shapes = set(model.outputs), shape_tensors(model)
    floats = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
    return next((name for name in outputs if name in makers and name not in own and name not in shapes
                 and model.dtypes.get(name) in floats), None)  # fmt: skip


# route


def _route(setting: Setting, tell: Tell) -> Question:
    settings = setting.asked
    changes = changes_of(setting.network, setting.options, settings.engine_precision)
    candidates = [
        Candidate(place, change.flag, change.kind, "", (change.flag,)) for place, change in enumerate(changes)
    ]
    options = replace(setting.options, precision=settings.engine_precision)
    switching = Switching(changes)
    recipe = setting.tried(switching, Judged("accuracy", settings.tolerance, Outcome.FAIL), options)
    levels = [place for place, change in enumerate(changes) if change.kind == "level"]
    return Question(
        "route", candidates, recipe, "left at their default", "changed",
        partial(trt_search.first_cure, [c.id for c in candidates], [levels, *_same_option(changes)]), measures=True,
        baseline=False, runs_programs=True, repair=trt_repair.switching(setting, switching, options),
    )  # fmt: skip


def changes_of(network: dict[str, Any], options: BuildOptions, precision: str) -> tuple[Change, ...]:
    """The switches of this builder, those first that cost least speed."""
    default = 3 if options.optimisation_level is None else options.optimisation_level
    given = options.tactic_sources or ()  # one that is left out already need not be
    made = [Change("tf32", "off", "--noTF32")] if precision == "tf32" else []
    made += [
        Change("tactic", name, f"--tacticSources=-{name}")
        for name in network.get("tactic_sources", ())
        if f"-{name}" not in given
    ]
    made += [Change("level", str(n), f"--builderOptimizationLevel={n}") for n in LEVELS if n != default]
    made += [Change("route", value, f"--setBuildRoute='{value}'") for value in routes_of(network.get("routes", ""))]
    return tuple(made)


def routes_of(text: str) -> list[str]:
    """`option=value` for every value but the default of each of the optimiser's switches, of its JSON description."""
    try:
        options = json.loads(text).get("tuner_options", []) if text.strip() else []
    except (ValueError, AttributeError):
        return []
    made = []
    for option in options:
        name, default = str(option.get("option", "")), str(option.get("default_value", ""))
        found = WORDS.search(str(option.get("allowed_values", "")))
        values = [value.strip() for value in found.group(1).split("|")] if found else []
        if name and not any("..." in value for value in values):
            made += [f"{name}={value}" for value in values if value and value != default]
    return made


def _same_option(changes: Sequence[Change]) -> list[list[int]]:
    """Places of changes that set the same switch of the route: one of them at a time."""
    groups: dict[str, list[int]] = {}
    for place, change in enumerate(changes):
        if change.kind == "route":
            groups.setdefault(change.value.partition("=")[0], []).append(place)
    return list(groups.values())
