"""Run TensorRT engines: shapes, buffers, streams, CUDA graphs, and what can be measured without a profiler attached."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from harness import optional, ranges
from harness.cuda.device import Device, Event, Graph, Stream, get
from harness.engines.device import Buffer, kernels_of
from harness.engines.log import Log, failure
from harness.engines.profiler import LayerTime, LayerTimes
from harness.engines.runner import Arrays, Column, Runner, RunOptions, Tensor, Timed, check_bounds, fitted, text
from harness.engines.trt import MODULES, header, load_plugins
from harness.errors import LaunchFailed, ProbeError, UsageError

_TYPES = {
    "FLOAT": "float32", "HALF": "float16", "INT8": "int8", "INT32": "int32", "INT64": "int64", "BOOL": "bool",
    "UINT8": "uint8",
}  # fmt: skip
_ONNX_TYPES = {"BF16": TensorProto.BFLOAT16, "FP8": TensorProto.FLOAT8E4M3FN}  # NumPy has these by extension alone
SETTLING = 2  # inferences before layers are timed


@dataclass
class _Slot:
    """Where an input or output of the bound inference lies; `host` instead of a buffer for tensors that say a shape."""

    tensor: Tensor
    shape: tuple[int, ...] = ()
    size: int = 0  # bytes
    buffer: Buffer | None = None
    host: np.ndarray | None = None

    @property
    def address(self) -> int:
        """Where TensorRT finds it."""
        if self.host is not None:
            return int(self.host.ctypes.data)
        assert self.buffer is not None
        return self.buffer.address


class TrtRunner(Runner):
    """One engine with one execution context and a stream of its own, on the device's primary context."""

    def __init__(self, plan: bytes, backend: str, options: RunOptions, origin: str = "the engine") -> None:
        self._plan, self._backend, self._options, self._origin = plan, backend, options, origin
        self._slots: dict[str, _Slot] = {}
        self._allocators: dict[str, Any] = {}
        self._graph: Graph | None = None

    # Activation

    def __enter__(self) -> TrtRunner:
        check_header(self._plan, self._backend, self._origin)
        self._trt = optional.load(MODULES[self._backend])
        self._device = get(self._options.device)
        self._device.use()
        self._log = Log(self._trt)
        load_plugins(self._trt, self._options.plugins, self._log)
        self._stream = Stream(self._device)
        with ranges.range("deserialize"):
            self._deserialize()
        self._take(self._new_context())
        self._tensors = self._describe()
        return self

    def _deserialize(self) -> None:
        with suppress(TypeError):  # the bindings raise it where the library gives nothing back: told below
            self._runtime = self._trt.Runtime(self._log.logger)
            self._engine = self._runtime.deserialize_cuda_engine(self._plan)
        if getattr(self, "_engine", None) is None:
            made = header(self._plan)
            by = f"; it was built by version {made[1]}, here is {self._trt.__version__}" if made and made[1] else ""
            raise failure(f"{self._origin} could not be deserialised{by}", self._log.errors, usage=True,
                          hint="build the engine again with the TensorRT and on the GPU that are here")  # fmt: skip

    def _new_context(self) -> Any:
        context = self._engine.create_execution_context()
        if context is None:
            raise failure(f"{self._origin}: no execution context", self._log.errors)
        if hasattr(context, "nvtx_verbosity"):  # as much as the engine was built to tell
            context.nvtx_verbosity = self._engine.profiling_verbosity
        asked, count = self._options.opt_profile, self._engine.num_optimization_profiles
        if asked and not context.set_optimization_profile_async(asked, self._stream.handle):
            raise UsageError(f"{self._origin} has no opt_profile {asked}; it has {count}, counted from 0")
        return context

    def _take(self, context: Any) -> None:
        self._context, self._execute = context, context.execute_async_v3

    def __exit__(self, *error: object) -> None:
        """Let go in the order in which TensorRT's objects need each other."""
        self._graph = None
        self._slots.clear()
        for name in ("_execute", "_context", "_engine", "_runtime"):
            self.__dict__.pop(name, None)
        self._allocators.clear()

    def _describe(self) -> dict[str, tuple[Tensor, bool]]:
        """Name -> (tensor, is it an input)."""
        engine, found = self._engine, {}
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            tensor = Tensor(name, _dtype(engine.get_tensor_dtype(name)), tuple(engine.get_tensor_shape(name)))
            found[name] = tensor, engine.get_tensor_mode(name) == self._trt.TensorIOMode.INPUT
        return found

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return tuple(tensor for tensor, is_input in self._tensors.values() if is_input)

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        return tuple(tensor for tensor, is_input in self._tensors.values() if not is_input)

    # Binding

    def bind(self, feeds: Arrays) -> None:
        self._graph = None  # it holds the old addresses and shapes
        for tensor in self.inputs:
            self._fill(tensor, fitted(tensor, feeds))
        self._prepare()
        self._capture()

    def _prepare(self) -> None:
        """Tell the context what is bound, and run once: TensorRT sets itself up for new shapes then."""
        for tensor in self.inputs:
            self._tell_input(tensor.name, self._slots[tensor.name])
        if missing := self._missing():
            raise UsageError(f"{self._origin}: shapes of {', '.join(missing)} do not follow from what was given")
        for tensor in self.outputs:
            self._bind_output(tensor)
        self._upload()
        self._launch()  # not to be measured, nor to be captured
        self._stream.synchronize("the first inference on these shapes")

    def _missing(self) -> Sequence[str]:
        """Inputs whose shapes or values are still wanted, where the version can tell."""
        try:
            return self._context.infer_shapes() if hasattr(self._context, "infer_shapes") else ()
        except RuntimeError:  # it could not work the shapes out: the launch says why, or does without
            return ()

    def _capture(self) -> None:
        """One inference as a CUDA graph, if one is wanted. An engine that waits for the GPU midway has none."""
        if not self._options.cuda_graph:
            return
        try:
            with self._stream.capture() as graph:
                self._launch()
        except LaunchFailed as error:
            raise UsageError(f"{self._origin} cannot be captured in a CUDA graph: {error}",
                             hint="leave --cuda-graph out") from error  # fmt: skip
        self._graph = graph

    def _fill(self, tensor: Tensor, array: np.ndarray) -> None:
        """Take an input over."""
        name = tensor.name
        if self._engine.is_shape_inference_io(name):
            self._slots[name] = _Slot(tensor, array.shape, array.nbytes, host=array)
            return
        if -1 in tensor.shape:
            bounds = self._engine.get_tensor_profile_shape(name, self._options.opt_profile)
            check_bounds(name, array.shape, tuple(tuple(shape) for shape in bounds))
        slot = self._room(tensor, array.nbytes)
        slot.shape = array.shape
        assert slot.buffer is not None
        slot.buffer.bytes[: array.nbytes] = array.reshape(-1).view(np.uint8)

    def _tell_input(self, name: str, slot: _Slot) -> None:
        if not self._context.set_input_shape(name, slot.shape):
            raise UsageError(f"input {name!r}: TensorRT refuses shape {text(slot.shape)}: {self._said()}")
        self._context.set_tensor_address(name, slot.address)

    def _bind_output(self, tensor: Tensor) -> None:
        name, shape = tensor.name, tuple(self._context.get_tensor_shape(tensor.name))
        if self._engine.get_tensor_location(name) == self._trt.TensorLocation.HOST:
            host = np.zeros(shape, tensor.dtype)
            self._slots[name] = _Slot(tensor, shape, host.nbytes, host=host)
        elif -1 in shape:  # as large as the data will have it: TensorRT says while it runs
            allocator = _allocator(self._trt, self._device, self._room(tensor, 0))
            self._context.set_output_allocator(name, allocator)
            self._allocators[name] = allocator  # the one before it may go now
            return
        else:
            slot = self._room(tensor, int(np.prod(shape, dtype=np.int64)) * tensor.dtype.itemsize)
            slot.shape = shape
        self._context.set_tensor_address(name, self._slots[name].address)

    def _room(self, tensor: Tensor, size: int) -> _Slot:
        """The slot of a tensor with a buffer that is large enough; one that was large enough before is kept."""
        slot = self._slots.setdefault(tensor.name, _Slot(tensor))
        if slot.buffer is None or slot.buffer.size < size:
            slot.buffer = Buffer(self._device, size)
        slot.size = size
        return slot

    # Inference, in its parts

    def _uploads(self) -> list[Callable[[], None]]:
        return [buffer.upload(size, self._stream.handle) for buffer, size in self._buffers(self.inputs)]

    def _downloads(self) -> list[Callable[[], None]]:
        return [buffer.download(size, self._stream.handle) for buffer, size in self._buffers(self.outputs)]

    def _buffers(self, tensors: Sequence[Tensor]) -> list[tuple[Buffer, int]]:
        """Those with bytes to copy."""
        slots = [self._slots[tensor.name] for tensor in tensors]
        return [(slot.buffer, slot.size) for slot in slots if slot.buffer is not None and slot.size]

    def _upload(self) -> None:
        for copy in self._uploads():
            copy()

    def _launch(self) -> None:
        if self._graph is not None:
            self._graph.launch(self._stream.handle)
        elif not self._execute(self._stream.handle):
            self._not_launched()

    def _download(self) -> None:
        for copy in self._downloads():
            copy()

    def _not_launched(self) -> None:
        """A failed kernel is told by CUDA, all else by TensorRT's log."""
        self._stream.synchronize("execute_async_v3()")
        raise LaunchFailed("execute_async_v3()", "harness/engines/trt_run.py", 0, self._said())

    def _said(self) -> str:
        return str(failure("TensorRT", self._log.errors)).removeprefix("TensorRT: ")

    def run(self) -> dict[str, np.ndarray]:
        self._upload()
        self._launch()
        self._download()
        self._stream.synchronize("the inference")
        return {tensor.name: _content(self._slots[tensor.name]) for tensor in self.outputs}

    # Measuring

    def timed(self, count: int) -> Timed:
        return _TrtTimed(self, count)

    def steps(self) -> tuple[Callable[[], None], Callable[[], None], Callable[[], None]]:
        """Copy in, compute, copy out: each puts its work on the stream and returns. Good until something else is bound."""
        launch = self._launch if self._graph is None else self._graph.launcher(self._stream.handle)
        if not self._options.transfers:
            return _nothing, launch, _nothing
        late = self._download if self._allocators else _one_by_one(self._downloads())  # where to is known by then
        return _one_by_one(self._uploads()), launch, late

    def burst(self, count: int) -> float:
        upload, launch, download = self.steps()
        start = time.perf_counter()
        for _ in range(count):
            upload()
            launch()
            download()
        self._stream.synchronize("inferences one after the other")
        return time.perf_counter() - start

    def layers(self, count: int) -> list[LayerTime]:
        """In an execution context of its own, so that the one that is measured never knew a profiler.

        It takes the other's place: before TensorRT 10 no two of them share an opt_profile, and both may not fit in memory.
        """
        times = LayerTimes(self._trt)
        self._renew()
        self._context.profiler = times.profiler
        for index in range(SETTLING + count):
            if index >= SETTLING:
                times.begin()
            if not self._execute(self._stream.handle):
                self._not_launched()
            self._stream.synchronize("an inference with a profiler")
        self._renew()
        self._capture()
        return times.layers()

    def _renew(self) -> None:
        """Another context, with what is bound, in place of the one that there is."""
        self._graph = None
        del self._execute, self._context
        self._take(self._new_context())
        self._prepare()

    def kernels(self) -> tuple[str, ...] | None:
        launch = self._execute
        return kernels_of(self._device, self._stream, lambda: launch(self._stream.handle))

    def layer_information(self) -> str | None:
        inspector = self._engine.create_engine_inspector()
        inspector.execution_context = self._context  # the tactics for the shapes that are bound
        said = inspector.get_engine_information(self._trt.LayerInformationFormat.JSON)
        return str(said) if said else None

    @property
    def device(self) -> Device:
        return self._device

    @property
    def stream(self) -> Stream:
        return self._stream


class _TrtTimed(Timed):
    """Four events an inference: before and after each of copy in, compute, copy out."""

    def __init__(self, runner: TrtRunner, count: int) -> None:
        self._upload, self._launch, self._download = runner.steps()
        stream, driver = runner.stream.handle, runner.device.driver
        self._events = [[Event(runner.device) for _ in range(4)] for _ in range(count)]
        self._records = [[driver.prepared("cuEventRecord", one.handle, stream) for one in row] for row in self._events]
        self._wait = driver.prepared("cuStreamSynchronize", stream, shown="the inference")
        self._enqueue = [math.nan] * count
        for row in self._records:  # an event's first use costs more than the others
            for record in row:
                record()
        self._wait()

    def once(self, index: int) -> None:
        begin, copied, computed, end = self._records[index]
        begin()
        self._upload()
        copied()
        start = time.perf_counter_ns()
        self._launch()
        self._enqueue[index] = time.perf_counter_ns() - start
        computed()
        self._download()
        end()
        self._wait()

    def columns(self) -> dict[str, Column]:
        parts = {"h2d_ns": (0, 1), "compute_ns": (1, 2), "d2h_ns": (2, 3)}
        found = {
            name: np.array([row[to].since_ns(row[of]) for row in self._events]) for name, (of, to) in parts.items()
        }
        return {
            "enqueue_ns": np.array(self._enqueue, np.float64),
            **found,
            "latency_ns": sum(found.values(), np.zeros(len(self._events))),
        }


def check_header(plan: bytes, backend: str, origin: str) -> None:
    """Raise UsageError for a file that is no engine, or one of the other TensorRT."""
    made = header(plan)
    if made is None:
        raise UsageError(f"{origin} is no engine: expected a file that begins with ftrt or vtrt, got {plan[:4]!r}",
                         hint="build one: probe profile MODEL.onnx")  # fmt: skip
    if made[0] != backend:
        raise UsageError(f"{origin} was built by {MODULES[made[0]]} {made[1]}; it does not run with {MODULES[backend]}",
                         hint=f"--backend {made[0]}")  # fmt: skip


def _nothing() -> None:
    pass


def _one_by_one(calls: Sequence[Callable[[], None]]) -> Callable[[], None]:
    """All of these in one call."""
    if len(calls) == 1:
        return calls[0]

    def each() -> None:
        for call in calls:
            call()

    return each


def _dtype(dtype: Any) -> np.dtype:
    """A TensorRT type as NumPy's."""
    name = str(dtype).rpartition(".")[2]
    if name in _ONNX_TYPES:
        return np.dtype(helper.tensor_dtype_to_np_dtype(_ONNX_TYPES[name]))
    if name not in _TYPES:
        raise UsageError(f"tensors of type {name} cannot be fed from here")
    return np.dtype(_TYPES[name])


def _content(slot: _Slot) -> np.ndarray:
    if slot.host is not None:
        return slot.host.copy()
    assert slot.buffer is not None
    size = int(np.prod(slot.shape, dtype=np.int64)) * slot.tensor.dtype.itemsize
    return slot.buffer.bytes[:size].view(slot.tensor.dtype).reshape(slot.shape).copy()


def _allocator(trt: ModuleType, device: Device, slot: _Slot) -> Any:
    """Gives room to an output whose shape depends on the data, and takes the shape down."""

    class Allocator(trt.IOutputAllocator):  # type: ignore[misc, name-defined]  # the base is known at run time only
        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)

        def reallocate_output(self, tensor_name: str, memory: int, size: int, alignment: int) -> int | None:
            try:
                if slot.buffer is None or slot.buffer.size < size:
                    slot.buffer = Buffer(device, size)
                slot.size = max(slot.size, size)
                return slot.buffer.address
            except ProbeError:
                return None

        def reallocate_output_async(
            self, tensor_name: str, memory: int, size: int, alignment: int, stream: int
        ) -> int | None:
            return self.reallocate_output(tensor_name, memory, size, alignment)

        def notify_shape(self, tensor_name: str, shape: Any) -> None:
            slot.shape = tuple(shape)

    return Allocator()
