"""Build engines with TensorRT 8.6 to 11 or TensorRT-RTX: one set of options, put into each version's own words."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx

from harness import optional, ranges
from harness.engines import layers as engine_layers
from harness.engines.api import Api, read
from harness.engines.device import present
from harness.engines.log import Log, failure
from harness.engines.model import prepare
from harness.engines.options import BuildOptions, Source, Tell
from harness.engines.profiler import progress_monitor
from harness.errors import BuildFailed, UsageError
from harness.models.inputs import load_samples
from harness.models.model import from_proto, load

MODULES = {"trt": "tensorrt", "trt-rtx": "tensorrt_rtx"}
RTX_CAPABILITY = "SM89"  # what RTX builds for if not told and there is no GPU to ask
TAGS = {b"ftrt": "trt", b"vtrt": "trt-rtx"}  # how a plan begins
# Layers whose types are not ours to choose: they say one themselves, or steer loops and branches.
UNTYPED = frozenset({"SHAPE", "CAST", "QUANTIZE", "DEQUANTIZE", "TRIP_LIMIT", "RECURRENCE", "ITERATOR", "LOOP_OUTPUT",
                      "CONDITION", "CONDITIONAL_INPUT", "CONDITIONAL_OUTPUT", "ASSERTION"})  # fmt: skip


@dataclass(frozen=True)
class Built:
    """A serialised engine, and how it came to be. Times are in seconds."""

    plan: bytes
    version: str
    strongly_typed: bool
    parse_s: float
    build_s: float
    layers: int  # of the network, before fusion
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Survey:
    """What can be known of a network without building it. `tactic_sources`: those used by default. `routes`: the
    optimiser's switches as JSON text, "" if there are none."""

    version: str
    strongly_typed: bool
    features: frozenset[str]
    layers: tuple[engine_layers.LayerFact, ...]
    tactic_sources: tuple[str, ...] = ()
    routes: str = ""


def survey(source: Source, options: BuildOptions, backend: str, folder: Path) -> Survey:
    """Parse, and tell the layers and which switches this builder has. Raises as `build` does, for what comes before."""
    trt = optional.load(MODULES[backend])
    api = read(trt)
    strong = api.strong(options.typing)
    log = Log(trt)
    load_plugins(trt, options.plugins, log)
    builder = _made(lambda: trt.Builder(log.logger), "a builder", log)
    network = builder.create_network(_creation_flags(trt, strong))
    kept = _populate(trt, network, source, options, log, lambda _: None, folder, strong, [])
    config = builder.create_builder_config()
    routes = str(config.all_build_routes or "") if "build_route" in api.has else ""
    used = int(config.get_tactic_sources())
    sources = tuple(name for name, bit in trt.TacticSource.__members__.items() if used >> int(bit) & 1)
    layers = tuple(engine_layers.facts_of(network))
    del kept
    return Survey(api.text, strong, api.has, layers, sources, routes)


def build(source: Source, options: BuildOptions, backend: str, tell: Tell, folder: Path) -> Built:
    """Parse or populate, configure, build. `folder` takes what is written on the way.

    Raises UsageError for options that this version does not have or that do not fit the model, BuildFailed with what
    TensorRT said, DependencyMissing without TensorRT.
    """
    trt = optional.load(MODULES[backend])
    api = read(trt)
    strong = api.strong(options.typing)
    _check(api, options, strong)
    log = Log(trt)
    load_plugins(trt, options.plugins, log)
    builder = _made(lambda: trt.Builder(log.logger), "a builder", log)
    network = builder.create_network(_creation_flags(trt, strong))
    notes: list[str] = []
    start = time.perf_counter()
    with ranges.range("parse"):
        kept = _populate(trt, network, source, options, log, tell, folder, strong, notes)
    parse_s = time.perf_counter() - start
    _mark(network, options.outputs, network.mark_output)
    if options.debug_tensors:
        _mark(network, options.debug_tensors, network.mark_debug)
    config = builder.create_builder_config()
    monitor = _configure(trt, api, builder, network, config, options, strong, tell, notes)
    if not strong and options.layer_precisions:
        notes.append(_constrain(trt, network, config, source, options.layer_precisions))
    calibrator = _calibrate(api, config, source, options)
    log.clear()
    start = time.perf_counter()
    with ranges.range("build"):
        plan = builder.build_serialized_network(network, config)
    build_s = time.perf_counter() - start
    del kept, calibrator  # the builder reads them until here
    if monitor is not None and monitor.stopped is not None:
        raise monitor.stopped
    if plan is None:
        raise failure(f"{api.name} could not build the engine", log.errors)
    _save_cache(config, options, backend)
    return Built(bytes(plan), api.text, strong, parse_s, build_s, network.num_layers, tuple(notes))


def load_plugins(trt: ModuleType, plugins: tuple[Path, ...], log: Log) -> None:
    """Register NVIDIA's plugins, where this TensorRT has some, and those of the user's libraries."""
    for path in plugins:
        if not path.is_file():
            raise UsageError(f"plugin library {path} does not exist")
        try:
            ctypes.CDLL(str(path.absolute()), mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            raise UsageError(f"plugin library {path.name} does not load: {error}",
                             hint="it must be built for this TensorRT and this CUDA") from error  # fmt: skip
    if hasattr(trt, "init_libnvinfer_plugins"):
        trt.init_libnvinfer_plugins(log.logger, "")


def header(plan: bytes) -> tuple[str, str] | None:
    """(backend, version) that a plan says it was built by; None if it is no plan that we know."""
    backend = TAGS.get(plan[:4])
    if backend is None or len(plan) < 28 or int.from_bytes(plan[4:8], "little") != 0:
        return (backend, "") if backend is not None else None
    return backend, ".".join(str(number) for number in plan[24:28])


def _made(make: Any, what: str, log: Log) -> Any:
    """TensorRT's bindings raise a TypeError of their own where the library gives nothing back."""
    try:
        made = make()
    except TypeError:
        made = None
    if made is None:
        raise failure(f"TensorRT could not make {what}", log.errors)
    return made


def _creation_flags(trt: ModuleType, strong: bool) -> int:
    known = trt.NetworkDefinitionCreationFlag.__members__
    wanted = ["EXPLICIT_BATCH", *(["STRONGLY_TYPED"] if strong else [])]
    return sum(1 << int(known[name]) for name in wanted if name in known)


def _check(api: Api, options: BuildOptions, strong: bool) -> None:
    """Refuse what this version cannot do, before anything is parsed."""
    needs = {"build_route": options.build_route is not None, "compute_capability": options.capability is not None,
             "debug_tensors": bool(options.debug_tensors)}  # fmt: skip
    for feature, asked in needs.items():
        if asked and feature not in api.has:
            raise UsageError(f"{feature.replace('_', ' ')}: {api.name} does not have it")
    if options.typing == "weak" and not api.weak:
        raise UsageError(f"weak typing: networks of {api.name} are always strongly typed")
    if options.typing == "strong" and not strong:
        raise UsageError(f"strong typing: {api.name} does not have it", hint="--typing weak, or TensorRT 10")
    precisions = {options.precision, *options.layer_precisions.values()}
    if not strong and "bf16" in precisions and "bf16_flag" not in api.has:
        raise UsageError(f"bf16: {api.name} does not have it", hint="--precision fp16, or TensorRT 10")


# The network


def _populate(
    trt: ModuleType, network: Any, source: Source, options: BuildOptions, log: Log, tell: Tell, folder: Path,
    strong: bool, notes: list[str],
) -> Any:  # fmt: skip
    """Fill the network; returns what must stay alive until the engine is built."""
    if not isinstance(source, Path | onnx.ModelProto):
        tell("populating the network")
        return source(trt, network)
    prepared = prepare(source, options, folder, rewrite=strong, lower=strong)
    notes.extend(prepared.notes)
    tell(f"parsing {prepared.path.name}")
    parser = trt.OnnxParser(network, log.logger)
    if not parser.parse_from_file(str(prepared.path)):
        raise _not_parsed(parser, log, source)
    return parser


def _not_parsed(parser: Any, log: Log, source: Path | onnx.ModelProto) -> Exception:
    name = source.name if isinstance(source, Path) else "the model"
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    if not errors:
        return failure(f"{name} could not be parsed", log.errors)
    first = errors[0]
    node = first.node_name() if hasattr(first, "node_name") else ""
    op = first.node_operator() if hasattr(first, "node_operator") else ""
    at = f", node {node!r}" if node else f", node {first.node()}"
    where = f"{name}{at}{f' ({op})' if op else ''}"
    said = f"Plugin not found: {op}" if "Plugin not found" in first.desc() else first.desc()
    return failure(f"{where} could not be parsed", [said, *log.errors])


def _mark(network: Any, names: tuple[str, ...], mark: Callable[[Any], Any]) -> None:
    """Mark tensors as outputs beside the network's own, or as debug tensors: either way they are materialised."""
    if not names:
        return
    own = {network.get_output(index).name for index in range(network.num_outputs)}
    tensors = {
        layer.get_output(index).name: layer.get_output(index)
        for layer in _layers(network) for index in range(layer.num_outputs)
    }  # fmt: skip
    for name in names:
        if name not in tensors:
            raise UsageError(f"the network has no tensor {name!r} to mark as an output")
        if name not in own:
            mark(tensors[name])


def _layers(network: Any) -> Iterator[Any]:
    return (network.get_layer(index) for index in range(network.num_layers))


# The configuration


def _configure(
    trt: ModuleType, api: Api, builder: Any, network: Any, config: Any, options: BuildOptions, strong: bool, tell: Tell,
    notes: list[str],
) -> Any:  # fmt: skip
    """Everything but precision constraints and calibration; returns the progress monitor, if there can be one."""
    for name in _flags(options, strong):
        config.set_flag(_member(trt, "BuilderFlag", name))
    if options.precision == "fp32" and "tf32_flag" in api.has:
        config.clear_flag(trt.BuilderFlag.TF32)
    for name, size in options.memory_pools.items():
        config.set_memory_pool_limit(_member(trt, "MemoryPoolType", name), size)
    if options.optimisation_level is not None:
        config.builder_optimization_level = options.optimisation_level
    if options.detailed:
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.tactic_sources is not None:
        config.set_tactic_sources(_tactics(trt, int(config.get_tactic_sources()), options.tactic_sources))
    if options.build_route is not None:
        config.build_route = options.build_route
    _set_capability(trt, api, config, options, notes)
    _set_profile(builder, network, config, options)
    _load_cache(config, options, api, notes)
    if "progress_monitor" not in api.has:
        tell(f"building with {api.name}")
        return None
    config.progress_monitor = progress_monitor(trt, tell)
    return config.progress_monitor


def _flags(options: BuildOptions, strong: bool) -> list[str]:
    """Builder flags by name. On weak typing a precision allows its type, and TensorRT takes what is faster."""
    by_precision = {"fp32": [], "tf32": ["TF32"], "fp16": ["FP16"], "bf16": ["BF16"], "int8": ["INT8", "FP16"]}
    if strong:
        wanted = ["TF32"] if options.precision != "fp32" else []
    else:
        wanted = list(by_precision[options.precision])
        wanted += [name for precision in options.layer_precisions.values() for name in by_precision[precision]]
    return list(dict.fromkeys([*wanted, *options.flags]))


def _member(trt: ModuleType, enum: str, name: str) -> Any:
    members = getattr(trt, enum).__members__
    if name not in members:
        raise UsageError(f"{enum}: expected one of {', '.join(members)}, got {name!r}")
    return members[name]


def _tactics(trt: ModuleType, used: int, names: Sequence[str]) -> int:
    """The bits of the tactic sources: those named, or, with minuses, those used by default less the named ones."""
    bits = {name: 1 << int(_member(trt, "TacticSource", name.removeprefix("-"))) for name in names}
    mask = used if any(name.startswith("-") for name in names) else 0
    for name, bit in bits.items():
        mask = mask & ~bit if name.startswith("-") else mask | bit
    return mask


def _set_capability(trt: ModuleType, api: Api, config: Any, options: BuildOptions, notes: list[str]) -> None:
    """RTX builds for a named GPU, and needs none then."""
    if "compute_capability" not in api.has:
        return
    name = options.capability
    if name is None:
        name = "CURRENT" if present() else RTX_CAPABILITY
        notes += [f"built for {name}, since there is no GPU here"] if name == RTX_CAPABILITY else []
    config.num_compute_capabilities = 1
    config.set_compute_capability(_member(trt, "ComputeCapability", name), 0)


def _set_profile(builder: Any, network: Any, config: Any, options: BuildOptions) -> None:
    bounds = options.opt_profiles
    inputs = {network.get_input(index).name: network.get_input(index) for index in range(network.num_inputs)}
    if unknown := sorted(set(bounds) - set(inputs)):
        raise UsageError(f"opt_profile: the network has no input {unknown[0]!r}; it reads {sorted(inputs)}")
    profile = builder.create_optimization_profile()
    used = False
    for name, tensor in inputs.items():
        shape = tuple(tensor.shape)
        if tensor.is_shape_tensor and name in bounds:
            profile.set_shape_input(name, *bounds[name])
            used = True
        elif -1 in shape:
            if name not in bounds:
                shown = "x".join("?" if size < 0 else str(size) for size in shape)
                raise UsageError(f"input {name!r} has dynamic dimensions, {shown}, and no opt_profile",
                                 hint=f"--shapes {name}:{shown.replace('?', '1')}, or --min, --opt and --max")  # fmt: skip
            _check_fixed(name, shape, bounds[name])
            profile.set_shape(name, *bounds[name])
            used = True
    if used:
        config.add_optimization_profile(profile)
        if options.precision == "int8" and hasattr(config, "set_calibration_profile"):
            config.set_calibration_profile(profile)


def _check_fixed(name: str, shape: tuple[int, ...], bounds: Any) -> None:
    for given in bounds:
        if len(given) != len(shape) or any(size not in (-1, got) for size, got in zip(shape, given, strict=True)):
            raise UsageError(f"opt_profile of input {name!r}: expected {'x'.join('?' if s < 0 else str(s) for s in shape)}, "
                             f"got {'x'.join(map(str, given))}")  # fmt: skip


def _constrain(
    trt: ModuleType, network: Any, config: Any, source: Source, precisions: Mapping[str, str]
) -> str:  # fmt: skip
    """Weak typing: the precision of single layers, by the name of the ONNX node that they came from, or their own."""
    types = {"fp32": "FLOAT", "tf32": "FLOAT", "fp16": "HALF", "bf16": "BF16", "int8": "INT8"}
    floats = {trt.DataType.__members__[name] for name in ("FLOAT", "HALF", "BF16") if name in trt.DataType.__members__}
    facts, makers = engine_layers.facts_of(network), _makers(source)
    owners = engine_layers.attribute(facts, makers)
    held = engine_layers.held(facts, owners, precisions)
    count = 0
    for at, layer in enumerate(_layers(network)):
        outputs = [index for index in range(layer.num_outputs) if layer.get_output(index).dtype in floats
                   and not layer.get_output(index).is_shape_tensor]  # fmt: skip
        asked = held.get(at)
        lowered = facts[at].kind == "CONSTANT" and asked not in engine_layers.FULL  # its type is its weights'
        if asked is None or lowered or facts[at].kind in UNTYPED or not outputs:
            continue
        dtype = trt.DataType.__members__[types[asked]]
        layer.precision = dtype
        for index in outputs:
            layer.set_output_type(index, dtype)
        count += 1
    met = set(makers.values())  # a node may have left no layer: folded into a constant
    met |= {name for fact in facts for name in (fact.name, *fact.nodes)}
    if missed := sorted(set(precisions) - met):
        raise UsageError(f"layer precision: the network has no layer or ONNX node {missed[0]!r}")
    config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
    return f"{count} layers held to a precision (weakly typed)"


def _makers(source: Source) -> dict[str, str]:
    """ONNX tensor -> key of its node; empty for a network that was not parsed."""
    if not isinstance(source, Path | onnx.ModelProto):
        return {}
    model = load(source) if isinstance(source, Path) else from_proto(_copy(source), Path("model.onnx"))
    return engine_layers.makers_of(model)


def _copy(proto: onnx.ModelProto) -> onnx.ModelProto:
    made = onnx.ModelProto()
    made.CopyFrom(proto)
    return made


def _calibrate(api: Api, config: Any, source: Source, options: BuildOptions) -> Any:
    """A calibrator for a network that was not parsed; ONNX models have Q/DQ nodes by now. It must outlive the build."""
    if options.precision != "int8" or isinstance(source, Path | onnx.ModelProto) or not options.calibration:
        return None
    if "calibrator" not in api.has:
        raise UsageError(f"{api.name} has no calibrators", hint="put Q/DQ layers into the network")
    polygraphy = optional.load("polygraphy.backend.trt", "to calibrate INT8")
    samples = load_samples(options.calibration)
    config.int8_calibrator = polygraphy.Calibrator(data_loader=samples)
    return config.int8_calibrator


# The timing cache


def _load_cache(config: Any, options: BuildOptions, api: Api, notes: list[str]) -> None:
    path = options.timing_cache
    if path is None:
        return
    if api.rtx:
        notes.append("the timing cache was left out: TensorRT-RTX times on the machine that runs the engine")
        return
    content = path.read_bytes() if path.is_file() else b""
    cache = config.create_timing_cache(content)
    if cache is None or not config.set_timing_cache(cache, False):
        raise BuildFailed(f"timing cache {path} was not made by {api.name} on this GPU", hint=f"rm {path}")


def _save_cache(config: Any, options: BuildOptions, backend: str) -> None:
    """Whole or not at all: several builds may share the file."""
    path = options.timing_cache
    if path is None or backend == "trt-rtx":
        return
    cache = config.get_timing_cache()
    if cache is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        part.write_bytes(bytes(cache.serialize()))
        part.replace(path)
