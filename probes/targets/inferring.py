"""The process that builds an engine or runs inference with it: what the profilers and the sanitizer are put around.

`python -m probes.targets.inferring SPEC.json`. The spec says which stage: `build` leaves a plan, so that the stages after it only
deserialise and infer; `infer` loops inside the NVTX range "measure" of the domain "probe", each iteration in a range
"inference #i"; `measure` and `ort` write what they measured as files. RESULT.json says how it ended, in more words than
the exit code: 0 done, 2 usage, 3 the build failed, 4 CUDA or the runtime failed, 125 anything else.
"""

from __future__ import annotations

import json
import math
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from harness import engine, process
from harness.engine import BuildOptions, Engine, RunOptions
from harness.engines import document as engine_document
from harness.engines import measuring, ort_profile
from harness.engines import sweep as engine_sweep
from harness.engines.document import Asked
from harness.engines.measuring import Schedule
from harness.engines.options import from_json, to_json
from harness.errors import BuildFailed, LaunchFailed, ParseError, ProbeError, UsageError
from harness.models import graph, inputs, model
from harness.models.inputs import RandomInputs
from harness.models.runtime import RunFailed, runner

STAGES = ("build", "infer", "measure", "ort")
EXIT_BUILD, EXIT_LAUNCH, EXIT_OTHER = 3, 4, 125
MADE_UP = (
    "--inputs FILE.npz, or --shapes NAME:1x128: the values were made up, and the free dimensions that nothing gave"
)
SHAPE_S = 2.0  # of a sweep, for each shape in each round
KEEP_S = 1.0
Tell = Callable[[str], None]
Feeds = dict[str, np.ndarray]


@dataclass(frozen=True)
class Spec:
    """What the process is to do. Paths are as seen from the folder that it runs in.

    source: an .onnx file or an engine. plan: where `build` writes the engine, and what later stages read if it is there.
    inputs: .npz files (the first sample is fed); else arrays are drawn with `seed`, of `shapes` where dimensions are free.
    result: where to say how it ended. folder: where `measure` and `ort` write, and `build` what the engine's layers are.
    """

    stage: str
    source: Path
    result: Path
    folder: Path
    plan: Path | None = None
    options: BuildOptions = field(default_factory=BuildOptions)
    inputs: tuple[Path, ...] = ()
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    seed: int = 0
    warmup: int = 10
    iterations: int = 100
    layer_iterations: int = 20
    cuda_graph: bool = False
    transfers: bool = True
    threads: int = 0
    device: int = 0
    sweep: str | None = None

    def __post_init__(self) -> None:
        if self.stage not in STAGES:
            raise UsageError(f"stage: expected one of {', '.join(STAGES)}, got {self.stage!r}")

    @property
    def schedule(self) -> Schedule:
        return Schedule(self.warmup, self.iterations, layer_iterations=self.layer_iterations)

    @property
    def run(self) -> RunOptions:
        return RunOptions(self.cuda_graph, self.transfers, self.device, self.threads, self.options.plugins)

    def to_json(self) -> dict[str, Any]:
        made: dict[str, Any] = to_json(self)
        return made

    def write(self, path: Path) -> Path:
        path.write_text(json.dumps(self.to_json(), indent=2) + "\n", encoding="utf-8")
        return path

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Spec:
        """What `to_json` wrote. Raises UsageError for a field that there is not, or one that is missing."""
        known = {one.name for one in fields(cls)}
        if wrong := sorted(set(content) - known) or sorted({"stage", "source", "result", "folder"} - set(content)):
            raise UsageError(f"spec: expected {', '.join(sorted(known))}; {wrong[0]!r} is unknown or missing")
        made = dict(content)
        for name in ("source", "result", "folder", "plan"):
            made[name] = Path(made[name]) if made.get(name) else None
        made["inputs"] = tuple(map(Path, made.get("inputs") or ()))
        made["shapes"] = {name: tuple(map(int, shape)) for name, shape in (made.get("shapes") or {}).items()}
        made["options"] = from_json(made.get("options") or {})
        return cls(**made)


def command(spec_path: Path) -> tuple[str, ...]:
    """The argument list of the process. -P: what lies where the user stands must not be taken for our packages."""
    return process.module_words("probes.targets.inferring", str(spec_path))


def main(arguments: list[str]) -> int:
    """Run one spec; the exit code."""
    if len(arguments) != 1:
        _log("usage: python -m probes.targets.inferring SPEC.json")
        return UsageError.exit_code
    try:
        spec = read(Path(arguments[0]))
    except ProbeError as error:
        _log(f"error: {error}")
        return error.exit_code
    try:
        done = run(spec, _log)
    except ProbeError as error:
        _log(f"error: {error}")
        return _say(spec, exit_code(error), error)
    except Exception as error:  # noqa: BLE001  a bug of ours: its traceback goes to the log, its text to the result
        _log(traceback.format_exc())
        return _say(spec, EXIT_OTHER, error)
    _write(spec.result, {"ok": True, "stage": spec.stage, **done})
    return 0


def _log(text: str) -> None:
    """To this process's own log, where whoever started it sees how far it is."""
    print(f"probe: {text}", file=sys.stderr, flush=True)  # noqa: T201


def read(path: Path) -> Spec:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"{path} does not exist") from error
    except ValueError as error:
        raise ParseError(path, "content", "a spec in JSON", str(error)) from error
    return Spec.from_json(content)


def run(spec: Spec, tell: Tell = lambda _: None) -> dict[str, Any]:
    """What the spec asks for, in this process; JSON values that say what was made."""
    if spec.stage == "build":
        made, feeds, _ = _ready(spec, tell)
        if made.backend.startswith("ort"):  # which looks at the model only now
            with made.runner(spec.run):
                pass
        return {
            "backend": made.backend,
            "shapes": {name: array.shape for name, array in feeds.items()},
            "facts": to_json(dict(made.facts)),
            "plan": spec.plan.name if spec.plan and spec.plan.is_file() else None,
        }
    return {"infer": _infer, "measure": _measure, "ort": _ort}[spec.stage](spec, tell)


def exit_code(error: ProbeError) -> int:
    if isinstance(error, BuildFailed):
        return EXIT_BUILD
    return EXIT_LAUNCH if isinstance(error, LaunchFailed) else error.exit_code


def _say(spec: Spec, code: int, error: Exception) -> int:
    hint = error.hint if isinstance(error, ProbeError) else None
    if hint is None and isinstance(error, LaunchFailed) and not spec.inputs:
        hint = MADE_UP
    _write(spec.result, {"ok": False, "stage": spec.stage, "exit_code": code, "error": type(error).__name__,
                         "message": str(error), "hint": hint})  # fmt: skip
    return code


def _write(path: Path, content: Mapping[str, Any]) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    part.replace(path)


# Stages


def _infer(spec: Spec, tell: Tell) -> dict[str, Any]:
    made, feeds, _ = _ready(spec, tell)
    with made.runner(spec.run) as runner:
        tell(f"{spec.iterations} inferences")
        runner.bind(feeds)
        measuring.loop(runner, spec.warmup, "warm-up")
        columns = measuring.loop(runner, spec.iterations, measuring.MEASURE)
    return {"backend": made.backend, "latency_ns": measuring.statistics(columns["latency_ns"])}


def _measure(spec: Spec, tell: Tell) -> dict[str, Any]:
    """measurement.json or, with a sweep, sweep.json."""
    made, feeds, declared = _ready(spec, tell)
    asked = Asked(made, feeds, spec.schedule, spec.run)
    if spec.sweep is None:
        name, document = "measurement.json", engine_document.measurement(asked, tell)
    else:
        # Layers of every shape would double the time.
        quick = replace(spec.schedule, layer_iterations=0, seconds=SHAPE_S)
        wanted = engine_sweep.parse(spec.sweep)
        name = "sweep.json"
        keep = _now_and_then(spec.folder / name)
        document = engine_document.sweep(replace(asked, schedule=quick), wanted, declared, tell, keep)
    _write(spec.folder / name, document)
    return {"backend": made.backend, "file": name, "fed": fed(spec.inputs, feeds)}


def _now_and_then(path: Path) -> engine_document.Keep:
    """Write a document that grows, at most every KEEP_S, so that a time-out or Ctrl-C costs no more than that."""
    last = -math.inf

    def keep(document: Callable[[], dict[str, Any]]) -> None:
        nonlocal last
        if time.monotonic() - last >= KEEP_S:
            _write(path, document())
            last = time.monotonic()

    return keep


def _ort(spec: Spec, tell: Tell) -> dict[str, Any]:
    """ort-profile.json, as ONNX Runtime writes it."""
    backend = spec.options.backend if spec.options.backend in ("ort-cpu", "ort-cuda") else "ort-cpu"
    spec = replace(spec, options=replace(spec.options, backend=backend))
    made, feeds, _ = _ready(spec, tell)
    with made.runner(spec.run) as runner:  # the feeds in the model's own types
        runner.bind(feeds)
    ort_profile.profile(made.content, feeds, spec.folder / "ort-profile.json", backend=backend,
                        iterations=spec.iterations, threads=spec.threads, tell=tell)  # fmt: skip
    return {"backend": backend, "file": "ort-profile.json", "fed": fed(spec.inputs, feeds)}


# What the stages need


def _ready(spec: Spec, tell: Tell) -> tuple[Engine, Feeds, list[onnx.ValueInfoProto]]:
    """The engine, a sample that fits it, and its inputs as declared (with their symbolic dimensions, from a model)."""
    if spec.source.suffix == ".onnx":
        loaded = model.load(spec.source)
        feeds = _feeds(spec, loaded.inputs, tell, loaded)
        return _engine(spec, loaded.inputs, feeds, tell), feeds, loaded.inputs
    made = engine.load(spec.source, spec.options.backend, spec.options)
    with made.runner(spec.run) as runner:
        declared = engine_document.value_infos(runner.inputs)
    if spec.inputs:  # the engine's own types may differ from the model's: the runner casts and checks
        return made, inputs.load_samples(spec.inputs)[0], declared
    return made, _feeds(spec, declared, tell), declared


def _feeds(spec: Spec, declared: list[onnx.ValueInfoProto], tell: Tell, loaded: model.Model | None = None) -> Feeds:
    """From the files, else random ones; of ONNX Runtime, in a length on which the model runs."""
    if spec.inputs:
        return inputs.read_samples(spec.inputs, declared)[0]
    how = RandomInputs(spec.seed, spec.shapes)
    if loaded is not None and engine.choose(spec.options.backend, runs=False).startswith("ort"):
        samples, notes = inputs.fitting_samples(declared, how, partial(_runs, loaded))
    else:
        samples, notes = inputs.random_samples(declared, how)
    for note in notes:
        tell(note)
    return samples[0]


def _runs(loaded: model.Model, feeds: Feeds) -> bool:
    try:
        runner(loaded.proto, loaded.weights, lean=True).run(feeds)
    except RunFailed:
        return False
    return True


def fed(files: tuple[Path, ...], feeds: Feeds) -> str:
    """The shapes that were measured, which are assumed where none were given, and where the values came from."""
    shapes = ", ".join(f"{name} {'x'.join(map(str, array.shape)) or 'scalar'}" for name, array in feeds.items())
    return f"{shapes}: {f'values of {files[0].name}' if files else 'random values'}"


def _engine(spec: Spec, declared: list[onnx.ValueInfoProto], feeds: Feeds, tell: Tell) -> Engine:
    """From the plan if there is one, else built from the model, and left as the plan."""
    plan = spec.plan
    if spec.stage != "build" and plan is not None and plan.is_file():
        return engine.load(plan, spec.options.backend, spec.options)
    options = _with_profiles(spec, declared, feeds)
    for_ort = plan is not None and engine.choose(options.backend, runs=False).startswith("ort")
    folder = plan.parent / "model" if plan is not None and for_ort else None  # where a rewritten model is kept
    built = engine.build(spec.source, options, tell, folder=folder)
    if plan is not None and isinstance(built.content, bytes):
        built.save(plan)
        if (layers := built.layer_information()) is not None:  # which layer launches what, for tools that see no ranges
            (spec.folder / f"{plan.stem}.layers.json").write_text(layers, encoding="utf-8")
        _write(spec.folder / f"{plan.stem}.graph.json", graph.document(model.load(spec.source)))  # ties them to nodes
    return built


def _with_profiles(spec: Spec, declared: list[onnx.ValueInfoProto], feeds: Feeds) -> BuildOptions:
    """The options, every input with dynamic dimensions in an opt_profile: what was asked for, else what will be fed."""
    given = {name: array.shape for name, array in feeds.items()}
    if spec.sweep is not None:
        found = engine_sweep.bounds(engine_sweep.parse(spec.sweep), declared, given)
    else:
        dynamic = [value for value in declared if any(dim.dim_value <= 0 for dim in value.type.tensor_type.shape.dim)]
        found = {value.name: (given[value.name],) * 3 for value in dynamic}
    return replace(spec.options, opt_profiles={**found, **spec.options.opt_profiles})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
