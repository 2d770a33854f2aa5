"""A GPU that computes, for tests on machines without one: the driver's and cuBLASLt's functions in Python, on host memory.

Everything above the two libraries is the real code, with real argument types. Kernels run on the emulation, products by
NumPy from what the descriptors say. Work waits in a queue until somebody waits for the device; what is only timed, that
is waited for by an event, is counted and not computed. A launch takes a microsecond, neither more nor less.
"""

from __future__ import annotations

import bisect
import ctypes
import itertools
import json
from collections.abc import Callable
from ctypes import CFUNCTYPE, c_char_p, c_int, c_size_t
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from harness.cuda import cublaslt, driver, launch
from harness.cuda.compile import Built, Unit
from harness.cuda.cublaslt import BIAS_POINTER, BIAS_TYPE, EPILOGUE, TRANSPOSE_FIRST
from harness.cuda.device import Device
from harness.cuda.driver import Driver
from harness.cuda.gemm import BIAS, GELU, TYPES
from harness.emulation import run as emulated
from harness.emulation.gemm import to_bfloat16
from kernels import reference
from kernels.plan import Launch, Pointer

ALIGNMENT = 256
LAUNCH_MS = 1e-3
ATTRIBUTES = {13: 1_980_000, 16: 132, 36: 2_619_000, 37: 5120, 38: 50 << 20, 75: 9, 76: 0, 97: 232448}
STORED = {number: {"tf32": "float32"}.get(name, name) for name, number in TYPES.items()}


@dataclass
class Graph:
    """What was launched on a stream while it recorded."""

    work: list[Any] = field(default_factory=list)


class NumpyGpu:
    """One device of compute capability 9.0, its memory by address, and the work that waits."""

    def __init__(self) -> None:
        self.memory: dict[int, np.ndarray] = {}
        self.objects: dict[int, Any] = {}
        self.parameters: dict[int, Launch] = {}  # a launch of each function, for the types of its parameters
        self.queue: list[Any] = []
        self.recording: dict[int, Graph] = {}
        self.launched = 0
        self.failures: list[BaseException] = []  # exceptions do not pass through ctypes
        self._numbers = itertools.count(0x1000)
        self._begins: list[int] = []  # the addresses of memory, in order
        self._current = 0
        self.device = Device(Driver(self._library(driver.PROTOTYPES)))
        self.cublaslt = cublaslt.Library(self._library(cublaslt.PROTOTYPES, {
            "cublasLtGetStatusName": CFUNCTYPE(c_char_p, c_int)(lambda status: b"CUBLAS_STATUS"),
            "cublasLtGetVersion": CFUNCTYPE(c_size_t)(lambda: 130_000)}))  # fmt: skip

    def install(self, monkeypatch: Any) -> NumpyGpu:
        """In the place of the real device, of its library of products and of the compiler."""
        kernel, gpu = launch._Kernel, self

        class Known(kernel):  # type: ignore[misc, valid-type]
            def __init__(self, device: Any, step: Launch, *rest: Any) -> None:
                super().__init__(device, step, *rest)
                gpu.parameters[self.function] = step

        monkeypatch.setattr(launch, "_Kernel", Known)
        monkeypatch.setattr(launch, "build", _image)
        monkeypatch.setattr(cublaslt, "library", lambda: self.cublaslt)
        monkeypatch.setattr("harness.cuda.device.get", lambda ordinal=0: self.device)
        return self

    def _library(self, prototypes: dict[str, tuple[Any, ...]], more: dict[str, Any] | None = None) -> Any:
        made = {name: CFUNCTYPE(c_int, *types)(self._checked(getattr(self, name)))
                for name, types in prototypes.items() if hasattr(self, name)}  # fmt: skip
        return SimpleNamespace(**made, **(more or {}))

    def _checked(self, function: Callable[..., int | None]) -> Callable[..., int]:
        def call(*arguments: Any) -> int:
            try:
                return function(*arguments) or 0
            except BaseException as error:  # noqa: BLE001
                self.failures.append(error)
                return 999

        return call

    def new(self, thing: Any) -> int:
        number = next(self._numbers)
        self.objects[number] = thing
        return number

    # Work

    def add(self, stream: int | None, work: Any) -> None:
        recording = self.recording.get(stream or 0)
        if recording is not None:
            recording.work.append(work)
        else:
            self.queue.append(work)
            self.launched += 1

    def finish(self) -> None:
        """Do what waits."""
        for is_kernel, some in itertools.groupby(self.queue, lambda work: isinstance(work, Launch)):
            if is_kernel:
                self._emulate(list(some))
            else:
                for call in some:
                    call()
        self.queue.clear()

    def _emulate(self, launches: list[Launch]) -> None:
        names = {one.buffer for step in launches for one in step.arguments if isinstance(one, Pointer) and one.buffer}
        done = emulated.run(launches, {name: self.memory[int(name)] for name in names})
        assert done.complete, done.findings
        assert not done.findings, done.findings
        for name, array in done.arrays.items():
            self.memory[int(name)][:] = array

    def at(self, address: int, size: int) -> np.ndarray:
        """Bytes of device memory. An address outside of it is an error, as on a device."""
        begin = self.holding(address)
        start = address - begin
        assert start + size <= self.memory[begin].size, f"{size} bytes at {address:#x} are over a buffer's end"
        return self.memory[begin][start : start + size]

    def holding(self, address: int) -> int:
        index = bisect.bisect_right(self._begins, address) - 1
        assert index >= 0, f"no memory at {address:#x}"
        begin = self._begins[index]
        assert address < begin + max(1, self.memory[begin].size), f"no memory at {address:#x}"
        return begin

    # The driver

    def cuInit(self, flags: int) -> None: ...

    def cuDriverGetVersion(self, out: Any) -> None:
        out[0] = 13000

    def cuDeviceGetCount(self, out: Any) -> None:
        out[0] = 1

    def cuDeviceGet(self, out: Any, ordinal: int) -> None:
        out[0] = ordinal

    def cuDeviceGetName(self, room: bytes, size: int, device: int) -> int:
        return 0

    def cuDeviceGetAttribute(self, out: Any, attribute: int, device: int) -> None:
        out[0] = ATTRIBUTES[attribute]

    def cuDeviceTotalMem_v2(self, out: Any, device: int) -> None:
        out[0] = 80 << 30

    def cuDevicePrimaryCtxRetain(self, out: Any, device: int) -> None:
        out[0] = 1

    def cuCtxGetCurrent(self, out: Any) -> None:
        out[0] = self._current or None

    def cuCtxSetCurrent(self, context: int) -> None:
        self._current = context

    def cuCtxSynchronize(self) -> None:
        self.finish()

    def cuMemAlloc_v2(self, out: Any, size: int) -> None:
        room = np.empty(size + ALIGNMENT, np.uint8)
        start = -room.ctypes.data % ALIGNMENT
        out[0] = room.ctypes.data + start
        self.memory[out[0]] = room[start : start + size]
        bisect.insort(self._begins, out[0])

    def cuMemFree_v2(self, address: int) -> None:
        self.queue.clear()  # nobody reads what is left
        del self.memory[address]
        self._begins.remove(address)

    def cuMemGetInfo_v2(self, free: Any, total: Any) -> None:
        free[0], total[0] = 1 << 20, 80 << 30

    def cuMemcpyHtoD_v2(self, to: int, source: int, size: int) -> None:
        self.at(to, size)[:] = np.frombuffer(ctypes.string_at(source, size), np.uint8)

    def cuMemcpyDtoH_v2(self, to: int, source: int, size: int) -> None:
        self.finish()
        ctypes.memmove(to, self.at(source, size).ctypes.data, size)

    def cuMemcpyDtoDAsync_v2(self, to: int, source: int, size: int, stream: int) -> None:
        self.add(stream, lambda: self.at(to, size).__setitem__(slice(None), self.at(source, size)))

    def cuMemsetD8_v2(self, address: int, byte: int, size: int) -> None:
        self.at(address, size)[:] = byte

    def cuModuleLoadData(self, out: Any, image: bytes) -> None:
        out[0] = self.new(json.loads(image))

    def cuModuleUnload(self, module: int) -> None: ...

    def cuModuleGetFunction(self, out: Any, module: int, name: bytes) -> None:
        out[0] = self.new((self.objects[module], name.decode()))

    def cuFuncGetAttribute(self, out: Any, attribute: int, function: int) -> None:
        out[0] = 1024

    def cuFuncSetAttribute(self, function: int, attribute: int, value: int) -> None:
        assert value <= ATTRIBUTES[97]

    def cuLaunchKernel(self, function: int, *rest: Any) -> None:
        *sizes, shared, stream, parameters, _ = rest
        module, entry = self.objects[function]
        known = self.parameters[function]
        addresses = (ctypes.c_void_p * len(known.arguments)).from_address(parameters)
        arguments = tuple(
            self._argument(kind, address) for kind, address in zip(known.arguments, addresses, strict=True)
        )
        defines = tuple((name, value) for name, value in module["defines"])
        self.add(stream, Launch(Path(module["source"]), entry, tuple(sizes[:3]), tuple(sizes[3:]), arguments, shared, defines,
                                known.names))  # fmt: skip

    def _argument(self, kind: Any, address: int) -> Any:
        if not isinstance(kind, Pointer):
            return np.frombuffer(ctypes.string_at(address, kind.dtype.itemsize), kind.dtype)[0]
        target = ctypes.c_uint64.from_address(address).value
        if target == 0:
            return Pointer(None)
        begin = self.holding(target)
        return Pointer(str(begin), target - begin)

    def cuStreamCreate(self, out: Any, flags: int) -> None:
        out[0] = self.new("stream")

    def cuStreamDestroy_v2(self, stream: int) -> None: ...

    def cuStreamSynchronize(self, stream: int) -> None:
        self.finish()

    def cuStreamWaitEvent(self, stream: int, event: int, flags: int) -> None:
        recorder = self.objects[event].get("recording")
        if recorder is not None:  # the stream joins the capture that the event is of
            self.recording[stream] = recorder

    def cuStreamBeginCapture_v2(self, stream: int, mode: int) -> None:
        self.recording[stream] = Graph()

    def cuStreamEndCapture(self, stream: int, out: Any) -> None:
        graph = self.recording[stream]
        self.recording = {one: other for one, other in self.recording.items() if other is not graph}
        out[0] = self.new(graph)

    def cuGraphInstantiateWithFlags(self, out: Any, graph: int, flags: int) -> None:
        out[0] = self.new(self.objects[graph])

    def cuGraphLaunch(self, graph: int, stream: int) -> None:
        for work in self.objects[graph].work:
            self.add(stream, work)

    def cuGraphExecDestroy(self, graph: int) -> None: ...

    def cuGraphDestroy(self, graph: int) -> None: ...

    def cuEventCreate(self, out: Any, flags: int) -> None:
        out[0] = self.new({})

    def cuEventRecord(self, event: int, stream: int) -> None:
        self.objects[event] |= {"at": self.launched, "recording": self.recording.get(stream)}

    def cuEventSynchronize(self, event: int) -> None:
        self.queue.clear()

    def cuEventElapsedTime(self, out: Any, start: int, end: int) -> None:
        out[0] = LAUNCH_MS * (self.objects[end]["at"] - self.objects[start]["at"])

    def cuEventDestroy_v2(self, event: int) -> None:
        del self.objects[event]

    # cuBLASLt

    def cublasLtCreate(self, out: Any) -> None:
        out[0] = self.new("cublaslt")

    def cublasLtMatrixLayoutCreate(self, out: Any, *layout: int) -> None:
        out[0] = self.new(layout)

    def cublasLtMatrixLayoutDestroy(self, layout: int) -> None:
        del self.objects[layout]

    def cublasLtMatmulDescCreate(self, out: Any, compute: int, scale: int) -> None:
        out[0] = self.new({"compute": compute, "scale": scale})

    def cublasLtMatmulDescDestroy(self, descriptor: int) -> None:
        del self.objects[descriptor]

    def cublasLtMatmulDescSetAttribute(self, descriptor: int, attribute: int, value: int, size: int) -> None:
        self.objects[descriptor][attribute] = int.from_bytes(ctypes.string_at(value, size), "little")

    def cublasLtMatmulPreferenceCreate(self, out: Any) -> None:
        out[0] = self.new({})

    def cublasLtMatmulPreferenceDestroy(self, preference: int) -> None:
        del self.objects[preference]

    def cublasLtMatmulPreferenceSetAttribute(self, preference: int, attribute: int, value: int, size: int) -> None:
        self.objects[preference][attribute] = int.from_bytes(ctypes.string_at(value, size), "little")

    def cublasLtMatmulAlgoGetHeuristic(self, handle: int, *rest: Any) -> None:
        *_, most, found, count = rest
        count[0] = min(most, 3)
        for number in range(count[0]):
            found[number].state = 0
            found[number].algorithm.data[0] = number + 1

    def cublasLtMatmul(self, handle: int, descriptor: int, alpha: int, a: int, la: int, b: int, lb: int, beta: int,
                       c: int, lc: int, d: int, ld: int, algorithm: Any, workspace: int, size: int, stream: int) -> None:  # fmt: skip
        asked = dict(self.objects[descriptor])
        first, second, added, result = (self.objects[layout] for layout in (la, lb, lc, ld))
        kind = ctypes.c_int32 if asked["scale"] == TYPES["int32"] else ctypes.c_float
        factors = [kind.from_address(address).value for address in (alpha, beta)]
        assert algorithm[0].data[0] in (1, 2, 3)
        self.at(workspace, size)

        def multiply() -> None:
            left = self._matrix(a, first)
            product = (left.T if asked[TRANSPOSE_FIRST] else left) @ self._matrix(b, second)
            made = factors[0] * product
            if factors[1]:
                made = made + factors[1] * self._matrix(c, added)
            if asked[EPILOGUE] & BIAS:
                bias = self._matrix(asked[BIAS_POINTER], (asked[BIAS_TYPE], made.shape[0], 1, made.shape[0]))
                made = made + bias
            if asked[EPILOGUE] & GELU:
                made = reference.gelu_tanh(made)
            self._store(d, result, made)

        self.add(stream, multiply)

    def _matrix(self, address: int, layout: tuple[int, ...]) -> np.ndarray:
        """float64 of a column-major matrix."""
        dtype, rows, columns, leading = layout
        name = STORED[dtype]
        raw = self.at(
            address, ((columns - 1) * leading + rows) * (2 if name == "bfloat16" else np.dtype(name).itemsize)
        )
        if name == "bfloat16":
            values = (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        else:
            values = raw.view(name)
        padded = np.zeros(columns * leading)
        padded[: values.size] = values
        return padded.reshape(columns, leading)[:, :rows].T

    def _store(self, address: int, layout: tuple[int, ...], made: np.ndarray) -> None:
        dtype, rows, _, leading = layout
        name = STORED[dtype]
        assert rows == leading, "results lie close together here"
        if name in ("int8", "int32"):
            limits = np.iinfo(name)
            made = np.clip(np.rint(made), limits.min, limits.max)
        flat = made.T.reshape(-1)
        stored = to_bfloat16(flat.astype(np.float32)) if name == "bfloat16" else flat.astype(name)
        self.at(address, stored.nbytes)[:] = stored.view(np.uint8)


def _image(unit: Unit, compiler: str | None = None) -> Built:
    """What stands for machine code: what it would be compiled from."""
    assert unit.source.is_file()
    return Built(json.dumps({"source": str(unit.source), "defines": unit.defines}).encode(), "", cached=False)
