"""One rung on one route: our kernels, an engine from ONNX, one from the network API with plugins, or a framework."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from harness import engine, optional
from harness.bert import floors, narrowing
from harness.bert import model as bert
from harness.bert import network as bert_network
from harness.bert import plan as bert_plan
from harness.bert import torch_peer as bert_torch
from harness.bert import tvm_peer as bert_tvm
from harness.bert.calibration import Calibration
from harness.bert.model import BertConfig
from harness.bert.plan import BertPlan, PlanOptions, Precision
from harness.bert.run import OnGpu, emulate, time_calls, time_here
from harness.cuda.device import Device
from harness.engine import BuildOptions, RunOptions
from harness.engines import api as engine_api
from harness.engines import measuring
from harness.errors import DependencyMissing, LaunchFailed, UsageError
from probes.kernels.benching import Roofs
from probes.laddering.rungs import Rung, options_of

Array = np.ndarray[Any, Any]
ITERATIONS = 50  # of an engine, within the seconds that are given
OPERATION_SECONDS = 0.03
PLUGIN_PRECISIONS: dict[str, bert_network.Precision] = {"fp32": "fp32", "fusion": "fp16", "graph-fp16": "fp16"}
CUDA = "cuda"  # where frameworks compute, if there is a GPU
OF_A_GPU = ("tf32", "sparse", "graph-fp16")  # steps that frameworks have there alone
LAST_WITH_PLUGINS = (10, 99)  # NVIDIA took the BERT plugins out of TensorRT 11


@dataclass(frozen=True)
class Job:
    """What every rung computes: the model, inputs [B, S], the first `checked` sequences' result in float64 (and each
    layer's), and what the machine is."""

    config: BertConfig
    weights: Mapping[str, Array]
    feeds: Mapping[str, Array]
    checked: int
    reference: Array
    layers: tuple[Array, ...]
    calibration: Calibration
    method: str
    folder: Path  # of models and samples
    seconds: float = 0.3  # of measuring each rung
    device: Device | None = None
    roofs: Roofs | None = None

    @property
    def batch(self) -> int:
        return int(self.feeds["input_ids"].shape[0])

    @property
    def sequence(self) -> int:
        return int(self.feeds["input_ids"].shape[1])

    @property
    def valid(self) -> Array:
        """bool [checked, S]."""
        return np.asarray(self.feeds["attention_mask"][: self.checked] != 0)

    @property
    def lengths(self) -> tuple[int, ...]:
        return tuple(int(n) for n in (self.feeds["attention_mask"] != 0).sum(axis=1))

    @property
    def padded(self) -> bool:
        return min(self.lengths) < self.sequence

    def part(self) -> dict[str, Array]:
        """The inputs of the sequences that are checked."""
        return {name: array[: self.checked] for name, array in self.feeds.items()}

    @cached_property
    def pruned(self) -> dict[str, Array]:
        return narrowing.pruned(self.weights)

    @cached_property
    def model(self) -> Path:
        """Our ONNX of it, on disk."""
        proto = bert.build_onnx(self.config, self.weights, merged_qkv=True)
        return bert.save(proto, self.folder / "bert.onnx")

    @cached_property
    def int8_model(self) -> Path:
        """The same with Q/DQ nodes around every linear layer, their steps from the calibration."""
        linears = narrowing.linears(self.config, self.weights, self.calibration.scales("max").channels)
        proto = bert.build_onnx(self.config, self.weights, merged_qkv=True, int8=linears)
        return bert.save(proto, self.folder / "bert-int8.onnx")

    @cached_property
    def samples(self) -> Path:
        """The inputs that are checked, as a file."""
        path = self.folder / "inputs.npz"
        np.savez(path, **self.part())  # type: ignore[arg-type]
        return path


@dataclass(frozen=True)
class Measured:
    """What came of a rung. `output` [checked, S, E]; times are of the whole batch. `bound_ns`: what the card allows.

    `emulated_s`: seconds that the CPU took in the GPU's place, which are compared with nothing.
    """

    output: Array | None = None
    times_ns: tuple[float, ...] = ()
    layers: tuple[Array, ...] = ()
    operations: tuple[Mapping[str, Any], ...] = ()
    memory_bytes: int | None = None
    weight_bytes: int | None = None
    activation_bytes: int | None = None
    build_s: float | None = None
    bound_ns: float | None = None
    flops: int | None = None
    bytes: int | None = None
    emulated_s: float | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Absent:
    """Why a rung is not there on a route: not installed, nothing that this route does, failed. `whole`: no rung is."""

    status: str  # "not installed", "not available", "failed"
    note: str
    whole: bool = False


Taken = Measured | Absent


# Our kernels


def plan_of(job: Job, rung: Rung, *, batch: int, keep: bool) -> BertPlan:
    """The rung's plan for the first `batch` sequences."""
    given = options_of(rung)
    lengths = job.lengths[:batch] if job.padded or given.get("packed") else None
    capability = job.device.facts.compute_capability if job.device else (8, 0)
    options = PlanOptions(
        batch=batch, sequence=job.sequence, lengths=lengths, keep=keep, capability=capability, **given
    )
    scales = job.calibration.scales("entropy" if job.method == "entropy" else "max")
    return bert_plan.build(job.config, job.pruned if rung.pruned else job.weights, options, scales)


def by_kernels(job: Job, rung: Rung) -> Taken:
    """One huge plan of our kernels. Without a GPU the result is the emulation's, and there is no time."""
    small = plan_of(job, rung, batch=job.checked, keep=True)
    if job.device is None:
        if rung.graph:
            return Absent("not available", "a CUDA graph needs a GPU: it launches the same kernels")
        done = emulate(small, job.part())
        notes = ("the CPU multiplies in FP32 here",) if small.options.precision == "tf32" else ()
        return replace(_sizes(small), output=small.output(done.arrays), layers=tuple(small.layers(done.arrays)),
                       emulated_s=done.seconds, notes=notes)  # fmt: skip
    layers = small.layers(OnGpu(small, job.part(), job.device, tune=False).read())
    made = plan_of(job, rung, batch=job.batch, keep=False)
    ran = OnGpu(made, job.feeds, job.device)
    output = made.output(ran.read())[: job.checked]
    found = replace(
        _sizes(made), output=output, layers=tuple(layers), memory_bytes=ran.memory_bytes, build_s=ran.build_s
    )
    if rung.pruned:
        return replace(found, notes=("cuBLASLt has no sparse product: its time is on the route of PyTorch",))
    times = tuple(ran.times(job.seconds, graph=rung.graph))
    operations = _operations(made, job.roofs, ran.operation_times(OPERATION_SECONDS))
    return replace(found, times_ns=times, operations=operations, bound_ns=floors.bound_ns(made, job.roofs))


def _sizes(made: BertPlan) -> Measured:
    return Measured(
        memory_bytes=made.weight_bytes + made.activation_bytes, weight_bytes=made.weight_bytes,
        activation_bytes=made.activation_bytes, flops=sum(one.flops for one in made.operations),
        bytes=sum(one.bytes for one in made.operations), operations=_operations(made, None, {}),
    )  # fmt: skip


def _operations(made: BertPlan, roofs: Roofs | None, times: Mapping[str, float]) -> tuple[Mapping[str, Any], ...]:
    return tuple({**one.as_row(), "total_ns": times.get(one.operation)} for one in floors.floors(made, roofs))


# Engines


def by_onnx(job: Job, rung: Rung) -> Taken:
    """Our ONNX of the model through TensorRT where it runs, else through ONNX Runtime."""
    backend = engine.choose()
    if job.device is not None and backend == "ort-cpu":
        why = "neither TensorRT nor ONNX Runtime with CUDA is here, and a processor's times would stand beside a GPU's"
        return Absent("not available", why, whole=True)
    if rung.engine == "":
        return Absent("not available", "the optimiser fuses by itself: there is no such step")
    if rung.engine == "tf32" and backend == "ort-cpu":
        return Absent("not available", "a processor has no TF32")
    if rung.graph and not backend.startswith("trt"):
        return Absent("not available", f"CUDA graphs are measured on TensorRT alone, and this is {backend}")
    options = BuildOptions(backend, rung.engine, opt_profiles=_profiles(job))
    if rung.engine != "int8":
        return _by_engine(job, rung, engine.build(job.model, options), job.feeds)
    found = _by_engine(job, rung, engine.build(job.int8_model, options), job.feeds)
    return replace(found, notes=(*found.notes, "linear layers in INT8, attention and the rest not"))


def by_plugins(job: Job, rung: Rung) -> Taken:
    """The network API with the BERT plugins, on TensorRT 8.6 to 10."""
    found = {one.name: one for one in engine.backends()}["trt"]
    if not found.builds:
        return Absent("not installed" if "not installed" in found.why else "not available", found.why, whole=True)
    version = engine_api.read(optional.load("tensorrt"))
    if tuple(int(part) for part in version.text.split(".")[:2]) > LAST_WITH_PLUGINS:
        return Absent("not available", f"TensorRT {version.text} has no BERT plugins any more", whole=True)
    if rung.name not in PLUGIN_PRECISIONS:
        return Absent("not available", "the plugins are built in FP32 and FP16, fused as they are")
    precision = PLUGIN_PRECISIONS[rung.name]
    populate = bert_network.populate(job.config, job.weights, bert_network.NetworkOptions(precision))
    options = BuildOptions("trt", precision, opt_profiles=_profiles(job))
    feeds = {name: array.astype(np.int32) for name, array in job.feeds.items()}
    return _by_engine(job, rung, engine.build(populate, options), feeds)


def _profiles(job: Job) -> dict[str, Any]:
    shape = (job.batch, job.sequence)
    return dict.fromkeys(bert.INPUTS, (shape, shape, shape))


def _by_engine(job: Job, rung: Rung, built: engine.Engine, feeds: Mapping[str, Array]) -> Measured:
    with built.runner(RunOptions(cuda_graph=rung.graph)) as runner:
        start = time.perf_counter()
        output = runner.infer(feeds)[bert.OUTPUT][: job.checked]
        took = time.perf_counter() - start
        count = max(10, min(ITERATIONS, int(job.seconds / max(took, 1e-4))))
        columns = measuring.loop(runner, count, measuring.MEASURE)
    known = columns["compute_ns"] if not np.isnan(columns["compute_ns"]).all() else columns["latency_ns"]
    size = len(built.content) if isinstance(built.content, bytes) else built.content.stat().st_size
    version = built.facts.get("version", "")
    return Measured(
        output=output.astype(np.float64), times_ns=tuple(known.tolist()), build_s=built.facts.get("build_s"),
        weight_bytes=size, notes=(f"{built.backend} {version}".strip(), *built.notes),
    )  # fmt: skip


# Frameworks


def by_torch(job: Job, rung: Rung) -> Taken:
    """PyTorch: eager, and compiled from the step `gelu` on; on a GPU as a CUDA graph and with 2:4 weights too."""
    forms = {"fp32": ("fp32", False), "tf32": ("tf32", False), "fp16": ("fp16", False), "gelu": ("fp16", True),
             "sparse": ("fp16", False), "graph-fp16": ("fp16", True)}  # fmt: skip
    torch = _load(job, "torch", "to measure it beside our encoder")
    if isinstance(torch, Absent):
        return torch
    if rung.name not in forms or (job.device is None and rung.name in OF_A_GPU):
        return Absent("not available", "no such step in PyTorch")
    precision, compiled = forms[rung.name]
    with torch.no_grad(), _tf32(torch, precision == "tf32"):
        return _by_torch(torch, job, rung, precision, "inductor" if compiled else None, graph=rung.graph)


def by_torch_tensorrt(job: Job, rung: Rung) -> Taken:
    """Torch-TensorRT as a back end of torch.compile, in FP16."""
    torch = _load(job, "torch", "to run Torch-TensorRT")
    if isinstance(torch, Absent):
        return torch
    if job.device is None:
        return Absent("not available", "Torch-TensorRT needs a GPU", whole=True)
    if isinstance(found := _load(job, "torch_tensorrt", "to measure its route"), Absent):
        return found
    if rung.name != "fp16":
        return Absent("not available", "measured in FP16 alone")
    with torch.no_grad():
        return _by_torch(torch, job, rung, "fp16", "torch_tensorrt", graph=False)


def by_tvm(job: Job, rung: Rung) -> Taken:
    """Our ONNX through TVM: FP32, FP16, and FP16 as a CUDA graph."""
    if missing := _missing("tvm"):
        return missing
    if rung.name not in ("fp32", "fp16", "graph-fp16") or (job.device is None and rung.name in OF_A_GPU):
        return Absent("not available", "TVM is measured in FP32, in FP16, and as a CUDA graph of FP16")
    options = bert_tvm.TvmOptions("fp32" if rung.engine == "fp32" else "fp16", job.device is not None, rung.graph,
                                  seconds=job.seconds)  # fmt: skip
    try:
        found = bert_tvm.measure(job.model, job.feeds, options, job.folder / f"tvm-{rung.name}")
    except UsageError as error:
        return Absent("not available", str(error), whole=True)
    return Measured(output=found.output[: job.checked], times_ns=found.times_ns, build_s=found.build_s,
                    memory_bytes=found.memory_bytes, notes=found.notes)  # fmt: skip


def _missing(module: str) -> Absent | None:
    """That a library is not installed, without importing it."""
    known = optional.LIBRARIES[module]
    if optional.present(known) is None:
        return Absent("not installed", f"{module} is not installed: {known.install}", whole=True)
    return None


def _load(job: Job, module: str, purpose: str) -> Any:
    """A framework that sees the GPU where there is one, or why it is not there."""
    if missing := _missing(module):
        return missing
    try:
        found = optional.load(module, purpose)
    except DependencyMissing as error:
        return Absent("not installed", str(error), whole=True)
    if module == "torch" and job.device is not None and not found.cuda.is_available():
        return Absent("not available", "torch sees no GPU", whole=True)
    return found


def _by_torch(
    torch: Any, job: Job, rung: Rung, precision: Precision | str, backend: str | None, *, graph: bool
) -> Measured:
    where = "cpu" if job.device is None else CUDA
    start = time.perf_counter()
    try:
        model = bert_torch.Model(torch, job.config, job.pruned if rung.pruned else job.weights, precision, where)
        if rung.pruned:
            model.sparse()
        inputs = model.inputs(job.feeds, where)
        forward = torch.compile(model.forward, backend=backend) if backend else model.forward

        def call() -> Any:
            return forward(*inputs)

        output = call()
        stream = None
        if graph:
            call, stream, output = bert_torch.as_graph(torch, call)
            call()
        times, build_s = _torch_times(torch, job, call, stream, start)
        result = output[: job.checked].float().cpu().numpy().astype(np.float64)
        weights = sum(tensor.numel() * tensor.element_size() for tensor in model.weights.values())
    except RuntimeError as error:  # PyTorch has no narrower one for most of what it refuses
        raise LaunchFailed("PyTorch", "probes/laddering/routes.py", 0, str(error).splitlines()[0][:300]) from error
    words = [
        f"PyTorch {torch.__version__}",
        *([f"torch.compile ({backend})"] if backend else ["eager"]),
        *(["CUDA graph"] * graph),
    ]
    return Measured(output=result, times_ns=tuple(times), build_s=build_s, notes=(", ".join(words),),
                    weight_bytes=None if rung.pruned else weights)  # fmt: skip


def _torch_times(torch: Any, job: Job, call: Callable[[], Any], stream: Any, start: float) -> tuple[list[float], float]:
    """Nanoseconds of each call, and the seconds from `start` until the first was done."""
    if job.device is None:
        build_s = time.perf_counter() - start
        return time_here(call, job.seconds), build_s
    torch.cuda.synchronize()
    build_s = time.perf_counter() - start
    times = time_calls(job.device, call, (stream or torch.cuda.current_stream()).cuda_stream, job.seconds)
    torch.cuda.synchronize()
    return times, build_s


@contextlib.contextmanager
def _tf32(torch: Any, allowed: bool) -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


@dataclass(frozen=True)
class Route:
    """A way from the model to something that runs, by the name that it has in the results and in --routes."""

    name: str
    title: str
    take: Callable[[Job, Rung], Taken] = field(repr=False)


ROUTES: tuple[Route, ...] = (
    Route("kernels", "our kernels", by_kernels),
    Route("onnx", "ONNX", by_onnx),
    Route("plugins", "API + plugins", by_plugins),
    Route("torch", "PyTorch", by_torch),
    Route("torch-tensorrt", "Torch-TensorRT", by_torch_tensorrt),
    Route("tvm", "TVM", by_tvm),
)
