"""What a search by engines hands over: a model, a script and a command line that build the engine which works, and what it costs."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
from onnx import TensorProto, helper

from harness.engines import layers as engine_layers
from harness.engines.options import BuildOptions
from harness.engines.trt import UNTYPED
from harness.errors import UsageError
from harness.models import submodel
from harness.models.inputs import load_samples
from harness.models.mixed import mixed_model
from harness.models.model import Model
from harness.record import Answer, Outcome, Session
from probes.bisecting.candidates import Candidate
from probes.bisecting.engines import plugins as trt_plugins
from probes.bisecting.engines.recipes import Judged, Lowering, Materialising, Switching, read_trials
from probes.bisecting.question import AnswerQuestion, MakeRepair, Question, Repair
from probes.bisecting.search import Ask, Found, Search
from probes.bisecting.suspicion import Suspicion

if TYPE_CHECKING:
    from probes.bisecting.engines.faults import Setting

REPRO, TRTEXEC = "repro.py", "trtexec.sh"
_UNSAFE = frozenset(",:*'\"")  # what a specification of trtexec takes for its own


def lowering(
    setting: Setting, variation: Lowering, suspicion: Suspicion, costs: Mapping[int, float] | None
) -> MakeRepair:  # fmt: skip
    """The mixed model; the script and trtexec's command that build the same engine; what was built, and its latency."""

    def write(found: Found, session: Session, answer: AnswerQuestion) -> Repair:
        model, settings = setting.model, setting.asked
        notes = [note for note in (suspicion.note, _effort(setting, session), *_latencies(session, found)) if note]
        if costs is not None and found.kept:
            spent = sum(costs.get(c, 0.0) for c in found.kept) / 1e6
            notes.append(
                f"the layers of what is kept in FP32 take about {spent:.3g} ms more than in {variation.precision.upper()}"
            )
        path = session.folder / f"{model.path.stem}.mixed.onnx"
        try:
            proto, weights = mixed_model(model, found.applied, settings.precision)
        except UsageError as error:
            return Repair(None, (*notes, f"no mixed model was written: {error}"))
        submodel.save(proto, weights, path)
        held = frozenset(key for index, key in variation.nodes if index not in found.applied)
        options = variation.options(setting.options, found.applied)
        places = engine_layers.held(setting.layers, setting.owners, dict.fromkeys(held, "fp32"))
        layers = [setting.layers[at].name for at in sorted(places)]
        source = path.name if setting.strong else model.path.name
        notes.append(_script(setting, session, source, options, layers))
        notes.append(trtexec(setting, session, source, options, () if setting.strong else layers))
        return Repair(path.name, tuple(notes))

    return write


def materialising(setting: Setting, variation: Materialising, options: BuildOptions) -> MakeRepair:
    """The model with those tensors as outputs; where the version has debug tensors, whether they do as well."""

    def write(found: Found, session: Session, answer: AnswerQuestion) -> Repair:
        if not found.kept or found.undecided:
            return Repair(None, (_effort(setting, session),))
        model, names = setting.model, [variation.tensors[place] for place in found.kept]
        path = session.folder / f"{model.path.stem}.materialised.onnx"
        submodel.save(_with_outputs(model, names), model.weights, path)
        notes = [
            _effort(setting, session),
            f"{path.name} has {', '.join(names)} among its outputs: that keeps them from being fused away",
        ]
        if "debug_tensors" in setting.network.get("features", ()):
            notes.append(_debug_does(setting, variation, options, found, answer))
        made = variation.options(options, found.applied)
        notes += [_script(setting, session, path.name, made, ()), trtexec(setting, session, path.name, made, ())]
        return Repair(path.name, tuple(notes))

    return write


def switching(setting: Setting, variation: Switching, options: BuildOptions) -> MakeRepair:
    """One line: the switch to build with."""

    def write(found: Found, session: Session, answer: AnswerQuestion) -> Repair:
        notes = [_effort(setting, session), *_latencies(session, found)]
        if not found.kept:
            return Repair(None, tuple(notes))
        if found.undecided:
            return Repair(
                None, (*notes, "no switch of the builder cures it, alone or together: --fault fusion, or precision")
            )
        made = variation.options(options, found.applied)
        flags = " ".join(variation.changes[place].flag for place in found.kept)
        notes += [f"workaround: {flags}", _script(setting, session, setting.model.path.name, made, ()),
                  trtexec(setting, session, setting.model.path.name, made, ())]  # fmt: skip
        return Repair(None, tuple(notes))

    return write


def replacing(setting: Setting, plugins: Sequence[int], files: Sequence[tuple[str, Path]]) -> MakeRepair:
    """The model with the culprits replaced by standard operators, and who is wrong: plugin or network."""

    def write(found: Found, session: Session, answer: AnswerQuestion) -> Repair:
        notes = [_effort(setting, session)]
        if not found.kept:
            return Repair(None, (*notes, "every plugin runs, and agrees with standard operators"))
        if found.undecided:
            return Repair(None, tuple(notes))
        model = setting.model
        path = session.folder / f"{model.path.stem}.replaced.onnx"
        given = {op: onnx.load(str(file)) for op, file in files}
        submodel.save(trt_plugins.replaced(model, list(found.kept), given), model.weights, path)
        kinds = ", ".join(dict.fromkeys(model.nodes[index].op_type for index in found.kept))
        notes.append(f"the plugin is wrong, not the network: with standard operators for {kinds} at these {_nodes(found.kept)}"
                     f" ({path.name}) it runs and agrees")  # fmt: skip
        return Repair(path.name, tuple(notes))

    return write


def cutting(setting: Setting) -> MakeRepair:
    """For each culprit a sub-model with it alone."""

    def write(found: Found, session: Session, answer: AnswerQuestion) -> Repair:
        notes = [_effort(setting, session)]
        if not found.kept or found.undecided:
            return Repair(None, tuple(notes))
        model = setting.model
        facts = submodel.observe(model, load_samples(setting.samples[:1])[0])
        names = []
        for number, index in enumerate(found.kept, 1):
            path = session.folder / f"{model.path.stem}.culprit-{number}.onnx"
            submodel.save(submodel.extract(model, [index], facts), model.weights, path)
            names.append(path.name)
            notes.append(f"{path.name}: {model.nodes[index].key} alone")
        return Repair(names[0], tuple(notes))

    return write


# What was built, and what it costs


def _trials(session: Session) -> list[dict[str, Any]]:
    return read_trials(session.raw / "trials")


def _effort(setting: Setting, session: Session) -> str:
    rows = _trials(session)
    built, cached = ([row for row in rows if row[name]] for name in ("built", "cached"))
    seconds = sum(row["build_s"] or 0.0 for row in built)
    again = len(rows) - len(built) - len(cached)
    words = [f"engines built: {len(built)} ({seconds:.3g} s of building)"]
    words += [f"found and run again: {again}"] if again else []
    words += [f"answered from the cache: {len(cached)}"]
    version = dict(setting.bench.facts).get("version", "")
    only_built = "" if setting.runs else "; only built, not run: there is no GPU for it here"
    return f"{', '.join(words)}; {setting.asked.backend} {version}{only_built}"


def _latencies(session: Session, found: Found) -> list[str]:
    """The engine that works beside the one without any change."""
    times = {frozenset(row["applied"]): row["latency_ns"] for row in _trials(session) if row["latency_ns"] is not None}
    everything = found.applied | frozenset(found.kept)
    after, before = times.get(found.applied), times.get(everything)
    if after is None or before is None or not found.kept:
        return []
    return [
        f"latency {after / 1e6:.4g} ms; with nothing kept {before / 1e6:.4g} ms ({100 * (after / before - 1):+.1f} %)"
    ]


def _debug_does(
    setting: Setting, variation: Materialising, options: BuildOptions, found: Found, answer: AnswerQuestion
) -> str:  # fmt: skip
    """Ask once more, with debug tensors in place of outputs: the engine's interface stays as it is."""
    names = tuple(variation.tensors[place] for place in found.kept)
    recipe = setting.tried(
        Materialising(names, debug=True), Judged("accuracy", setting.asked.tolerance, Outcome.FAIL), options
    )
    candidate = Candidate(0, "debug tensors", "mark_debug", "", names)
    question = Question("fusion/debug", [candidate], recipe, "free to be fused", "marked for debugging", _once,
                        baseline=False, runs_programs=True)  # fmt: skip
    does = not answer(question).kept
    return "marking them as debug tensors cures it as well, and the engine keeps its outputs" if does else \
        "marking them as debug tensors does not cure it"  # fmt: skip


def _once() -> Search:
    given: Answer = yield Ask(frozenset(), ((1.0, Answer(Outcome.PASS)),))
    return Found(frozenset({0})) if given.outcome is Outcome.PASS else Found(frozenset(), (0,))


def _with_outputs(model: Model, names: Sequence[str]) -> onnx.ModelProto:
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    proto.graph.output.extend(
        helper.make_tensor_value_info(name, model.dtypes.get(name, TensorProto.FLOAT), None) for name in names
    )
    return proto


def _nodes(kept: Sequence[int]) -> str:
    return f"{len(kept)} node{'s' * (len(kept) != 1)}"


# The same engine by other means


def trtexec(setting: Setting, session: Session, source: str, options: BuildOptions, layers: Sequence[str]) -> str:
    """Write the command line of trtexec down. Layers whose names it would take apart are left to the script."""
    words = ["tensorrt_rtx" if options.backend == "trt-rtx" else "trtexec", f"--onnx={source}"]
    shapes = {name: bounds[1] for name, bounds in options.opt_profiles.items()}
    if shapes:
        words.append("--shapes=" + ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in shapes.items()))
    words += _flags(setting, options)
    unsafe = [name for name in layers if _UNSAFE & set(name)]
    if safe := [name for name in layers if name not in unsafe]:
        spec = ",".join(f"{name}:fp32" for name in safe)
        words += ["--precisionConstraints=obey", f"--layerPrecisions={spec}", f"--layerOutputTypes={spec}"]
    left = [f"# trtexec cannot name the layer {name!r}; {REPRO} holds it in FP32 as well" for name in unsafe]
    (session.folder / TRTEXEC).write_text("\n".join(["#!/bin/sh", *left, shlex.join(words), ""]), encoding="utf-8")
    without = f", but for {len(unsafe)} layers that it cannot name" if unsafe else ""
    return f"{TRTEXEC} does so with trtexec{without}"


def _flags(setting: Setting, options: BuildOptions) -> list[str]:
    words = ["--noTF32"] if options.precision == "fp32" and options.backend == "trt" else []
    if setting.strong and options.backend == "trt" and setting.network.get("version", "").startswith("10"):
        words.append("--stronglyTyped")
    if not setting.strong and options.precision in ("fp16", "bf16"):
        words.append(f"--{options.precision}")
    if options.optimisation_level is not None:
        words.append(f"--builderOptimizationLevel={options.optimisation_level}")
    if options.tactic_sources is not None:
        signed = (name if name.startswith("-") else f"+{name}" for name in options.tactic_sources)
        words.append(f"--tacticSources={','.join(signed)}")
    if options.build_route is not None:
        words.append(f"--setBuildRoute={options.build_route}")
    return [*words, *(f"--staticPlugins={path.name}" for path in options.plugins)]


def _script(setting: Setting, session: Session, source: str, options: BuildOptions, layers: Sequence[str]) -> str:
    """A script of its own, without probe."""
    asked = {
        "model": source, "strong": setting.strong, "precision": options.precision, "fp32_layers": [] if setting.strong else list(layers),
        "profiles": {name: [list(shape) for shape in bounds] for name, bounds in options.opt_profiles.items()},
        "level": options.optimisation_level, "tactic_sources": options.tactic_sources, "build_route": options.build_route,
        "plugins": [path.name for path in options.plugins], "outputs": list(options.outputs) if source == setting.model.path.name else [],
    }  # fmt: skip
    module = "tensorrt_rtx" if options.backend == "trt-rtx" else "tensorrt"
    text = _TEMPLATE.replace("@MODULE@", module).replace("@ASKED@", json.dumps(json.dumps(asked, indent=1)))
    text = text.replace("@TYPED@", json.dumps(json.dumps(sorted(UNTYPED))))
    (session.folder / REPRO).write_text(text, encoding="utf-8")
    return f"{REPRO} {source} builds the same engine with {module} alone"


_TEMPLATE = '''"""Build the engine that works: python repro.py MODEL.onnx ENGINE (written by probe bisect)."""

import ctypes
import json
import sys

import @MODULE@ as trt

ASKED = json.loads(@ASKED@)
TYPED = json.loads(@TYPED@)

model = sys.argv[1] if len(sys.argv) > 1 else ASKED["model"]
target = sys.argv[2] if len(sys.argv) > 2 else "engine.plan"
logger = trt.Logger(trt.Logger.WARNING)
for library in ASKED["plugins"]:
    ctypes.CDLL(library)
if hasattr(trt, "init_libnvinfer_plugins"):
    trt.init_libnvinfer_plugins(logger, "")
creation = trt.NetworkDefinitionCreationFlag.__members__
flags = ["EXPLICIT_BATCH"] + (["STRONGLY_TYPED"] if ASKED["strong"] else [])
builder = trt.Builder(logger)
network = builder.create_network(sum(1 << int(creation[name]) for name in flags if name in creation))
parser = trt.OnnxParser(network, logger)
if not parser.parse_from_file(model):
    sys.exit("\\n".join(str(parser.get_error(i)) for i in range(parser.num_errors)))
config = builder.create_builder_config()
known = trt.BuilderFlag.__members__
if ASKED["precision"] == "fp32" and "TF32" in known:
    config.clear_flag(known["TF32"])
if not ASKED["strong"] and ASKED["precision"] in ("fp16", "bf16"):
    config.set_flag(known[ASKED["precision"].upper()])
held = set(ASKED["fp32_layers"])
layers = [network.get_layer(i) for i in range(network.num_layers)]
for layer in layers:
    tensors = [layer.get_output(i) for i in range(layer.num_outputs)]
    floats = [i for i, t in enumerate(tensors) if t.dtype.name in ("FLOAT", "HALF", "BF16") and not t.is_shape_tensor]
    if layer.name in held and floats and layer.type.name not in TYPED:
        layer.precision = trt.float32
        for i in floats:
            layer.set_output_type(i, trt.float32)
if held:
    config.set_flag(known["OBEY_PRECISION_CONSTRAINTS"])
for layer in layers:
    for i in range(layer.num_outputs):
        if layer.get_output(i).name in ASKED["outputs"]:
            network.mark_output(layer.get_output(i))
if ASKED["level"] is not None:
    config.builder_optimization_level = ASKED["level"]
if ASKED["tactic_sources"] is not None:
    bits = {name: 1 << int(bit) for name, bit in trt.TacticSource.__members__.items()}
    out = [name[1:] for name in ASKED["tactic_sources"] if name.startswith("-")]
    used = sum(bits[name] for name in ASKED["tactic_sources"] if not name.startswith("-"))
    used = used or config.get_tactic_sources()
    for name in out:
        used &= ~bits[name]
    config.set_tactic_sources(used)
if ASKED["build_route"] is not None:
    config.build_route = ASKED["build_route"]
if ASKED["profiles"]:
    profile = builder.create_optimization_profile()
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    for tensor in inputs:
        if tensor.name in ASKED["profiles"]:
            take = profile.set_shape_input if tensor.is_shape_tensor else profile.set_shape
            take(tensor.name, *ASKED["profiles"][tensor.name])
    config.add_optimization_profile(profile)
plan = builder.build_serialized_network(network, config)
if plan is None:
    sys.exit("the builder gave no engine")
with open(target, "wb") as stream:
    stream.write(plan)
print(f"{target}: {plan.nbytes} bytes")
'''
