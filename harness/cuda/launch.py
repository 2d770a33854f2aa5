"""Plans on the GPU: every call checked, every launch inside an NVTX range that holds its parameters.

`run` is for being right: it waits after every step, so that an error names the launch that made it, and looks at the
guard zones around the buffers. `prepare` is for being fast: compiled once, launched many times, no waiting.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from harness import ranges
from harness.cuda import cublaslt
from harness.cuda import device as gpu
from harness.cuda.buffers import GUARD_BYTES, Array, Buffers, Overrun
from harness.cuda.compile import Compiler, Flavour, Unit, build
from harness.cuda.device import Device, Facts, Graph, Module
from harness.cuda.driver import PROGRAMMATIC_STREAM_SERIALIZATION, Driver, LaunchAttribute, LaunchConfig
from harness.errors import UsageError
from kernels.plan import Argument, Buffer, Gemm, Launch, Pointer, Step

Backend = Literal["cupy", "pycuda"]
COMPILERS: dict[str, Compiler] = {"cupy": "nvrtc", "pycuda": "nvcc"}

INVALID_VALUE = 1


@dataclass(frozen=True)
class Launched:
    """What a run left: every array by name as it was afterwards, and rows for the table `findings`."""

    arrays: dict[str, Array]
    findings: tuple[dict[str, Any], ...]
    device: Facts


@dataclass(frozen=True)
class Options:
    """How a plan is prepared.

    `backend` "cupy" compiles with NVRTC, "pycuda" with nvcc, None with what is there. `tune`: cuBLASLt's algorithms are
    timed and the fastest is taken, instead of the one that it thinks best. `includes` are further header folders.
    """

    backend: Backend | None = None
    flavour: Flavour = "release"
    tune: bool = False
    includes: tuple[Path, ...] = ()


def run(
    steps: Sequence[Step], arrays: Mapping[str, Array], *, backend: Backend | None = None,
    flavour: Flavour = "release", poison: Iterable[str] = (), guard: int = GUARD_BYTES, device: Device | None = None,
) -> Launched:  # fmt: skip
    """Run steps once on copies of `arrays`, waiting after each and looking at the guard zones around every buffer.

    `poison` names the arrays that are filled with 0xFF bytes first (outputs, scratch). A write outside a buffer that
    ends in a guard zone of `guard` bytes is a finding. Raises LaunchFailed with the call that the GPU refused or died
    of, BuildFailed for a source that does not compile, UsageError without a GPU or for a plan that does not fit.
    """
    device = device or gpu.get()
    device.use()
    prepared = prepare(steps, itemsizes_of(arrays), Options(backend, flavour), device)
    buffers = Buffers(device, arrays, poison=poison, guard=guard)
    bound = prepared.bind(buffers.addresses)
    findings: list[dict[str, Any]] = []
    for number, call in enumerate(bound.calls):
        call.launch(0)
        device.synchronize(shown=call.shown)
        if guard:
            findings += [finding(overrun, call.kernel, number) for overrun in buffers.overruns()]
    return Launched(buffers.read(), tuple(findings), device.facts)


def prepare(
    steps: Sequence[Step], itemsizes: Mapping[str, int], options: Options | None = None, device: Device | None = None
) -> Prepared:
    """Compile and load what the steps need. `itemsizes`: bytes of an element of each buffer (`itemsizes_of`).

    Raises as `run` does.
    """
    device = device or gpu.get()
    device.use()
    options = options or Options()
    modules = _Modules(device, options)
    workspace = cublaslt.Workspace(device)
    calls = tuple(
        _Kernel(device, step, modules.of(step), itemsizes) if isinstance(step, Launch)
        else _Product(cublaslt.Matmul(device, step, workspace, tune=options.tune), step, itemsizes)
        for step in steps
    )  # fmt: skip
    return Prepared(device, calls)


def itemsizes_of(buffers: Mapping[str, Array] | Iterable[Buffer]) -> dict[str, int]:
    """Bytes of an element of each buffer, from arrays by name or from a plan's buffers."""
    if isinstance(buffers, Mapping):
        return {name: array.dtype.itemsize for name, array in buffers.items()}
    return {one.name: 2 if one.dtype == "bfloat16" else np.dtype(one.dtype).itemsize for one in buffers}


class Prepared:
    """Steps that are compiled and on the device, for buffers anywhere on it."""

    def __init__(self, device: Device, steps: tuple[_Kernel | _Product, ...]) -> None:
        self.device, self._steps = device, steps
        self._last: tuple[dict[str, int], Bound] | None = None

    @property
    def modules(self) -> tuple[Module, ...]:
        """The code of the kernels among the steps, each once."""
        return tuple(dict.fromkeys(step.module for step in self._steps if isinstance(step, _Kernel)))

    def bind(self, addresses: Mapping[str, int]) -> Bound:
        """The steps on buffers that begin at these device addresses; whoever owns the memory keeps it alive."""
        return Bound(self.device, tuple(step.bind(addresses) for step in self._steps))

    def launch_on(self, addresses: Mapping[str, int], stream: int = 0) -> None:
        """Launch on buffers that others own (TensorRT's, CuPy's, PyCUDA's) without copies or waiting.

        `addresses` are of device memory, by name; `stream` is a CUDA stream's handle.
        """
        if self._last is None or self._last[0] != addresses:
            self._last = (dict(addresses), self.bind(addresses))
        self._last[1].launch(stream)

    def place(self, arrays: Mapping[str, Array], *, poison: Iterable[str] = (), guard: int = 0) -> Placed:
        """The steps on copies of these arrays."""
        buffers = Buffers(self.device, arrays, poison=poison, guard=guard)
        return Placed(buffers, self.bind(buffers.addresses))


@dataclass(frozen=True)
class Placed:
    """Prepared steps and their buffers on the device."""

    buffers: Buffers
    bound: Bound

    def launch(self, stream: int = 0) -> None:
        self.bound.launch(stream)

    def graph(self, repeats: int = 1) -> Graph:
        return self.bound.graph(repeats)

    def read(self) -> dict[str, Array]:
        """The arrays as they are once everything launched so far is done."""
        return self.buffers.read()


@dataclass(frozen=True)
class Bound:
    """Steps with every argument in place."""

    device: Device
    calls: tuple[Call, ...]

    def launch(self, stream: int = 0) -> None:
        """Launch all steps, in order, on a stream; nothing is waited for."""
        for call in self.calls:
            call.launch(stream)

    def graph(self, repeats: int = 1) -> Graph:
        """The steps as a CUDA graph, `repeats` times over."""
        return record(self.device, [self] * repeats)


def record(device: Device, series: Iterable[Bound]) -> Graph:
    """A CUDA graph of the launches of these, one after the other."""
    stream = device.stream()
    with stream.capture() as graph:
        for bound in series:
            bound.launch(stream.handle)
    return graph


@dataclass(frozen=True)
class Call:
    """One launch with its arguments in place: `shown` as messages tell it, `invoke` takes a stream's handle."""

    kernel: str
    shown: str
    marked: ranges.Marked
    invoke: Callable[[int], None]

    def launch(self, stream: int) -> None:
        with self.marked:
            self.invoke(stream)


class _Modules:
    """Each source compiled and loaded once for each set of macros."""

    def __init__(self, device: Device, options: Options) -> None:
        self.device, self.options = device, options
        self.compiler = COMPILERS[options.backend] if options.backend else None
        self._loaded: dict[Unit, Module] = {}

    def of(self, launch: Launch) -> Module:
        arch, options = self.device.facts.arch, self.options
        unit = Unit(launch.source, arch, options.flavour, launch.defines, options.includes)
        if unit not in self._loaded:
            self._loaded[unit] = self.device.load(build(unit, self.compiler).image)
        return self._loaded[unit]


class _Kernel:
    """A launch of an entry point, waiting for the addresses of its buffers."""

    def __init__(self, device: Device, step: Launch, module: Module, itemsizes: Mapping[str, int]) -> None:
        self.device, self.step, self.module, self.itemsizes = device, step, module, itemsizes
        self.function = module.function(step.entry, step.shared_bytes)
        for name, content in step.variables:
            module.write(name, content)
        self.names = step.names or tuple(f"argument {number}" for number in range(len(step.arguments)))
        _check_parameters(device, self.function, step, self.names)
        self.marked = ranges.prepare(step.entry, self._payload(), category="launch")

    def bind(self, addresses: Mapping[str, int]) -> Call:
        step, driver = self.step, self.device.driver
        values = [_value(argument, addresses, self.itemsizes) for argument in step.arguments]
        arrays = [np.array(value) for value in values]  # the driver copies each parameter from where it lies
        parameters = (ctypes.c_void_p * max(1, len(arrays)))(*(array.ctypes.data for array in arrays))
        shown = shown_launch(step, self.names, values)
        address = ctypes.c_void_p(ctypes.addressof(parameters))
        overlaps = step.overlaps and self.device.overlaps_launches
        launch_on = (_overlapping if overlaps else _plain)(driver, self.function, step, address)
        kept = (parameters, arrays, self.module)

        def invoke(stream: int, kept: Any = kept) -> None:
            status = launch_on(stream)
            if status:
                raise driver.failure(shown, status)

        return Call(step.entry, shown, self.marked, invoke)

    def _payload(self) -> dict[str, int | float | str]:
        step = self.step
        sizes = {f"{what}_{axis}": number for what, extent in (("grid", step.grid), ("block", step.block))
                 for axis, number in zip("xyz", extent, strict=True)}  # fmt: skip
        arguments = {
            name: (argument.buffer or "null") if isinstance(argument, Pointer) else argument.item()
            for name, argument in zip(self.names, step.arguments, strict=True)
        }
        return {**sizes, "shared_bytes": step.shared_bytes, **arguments}


class _Product:
    """A matrix product, waiting for the addresses of its buffers."""

    def __init__(self, matmul: cublaslt.Matmul, step: Gemm, itemsizes: Mapping[str, int]) -> None:
        self.matmul, self.step, self.itemsizes = matmul, step, itemsizes
        payload: dict[str, int | float | str] = {
            "m": step.m, "n": step.n, "k": step.k, "dtype": step.dtype, "epilogue": step.epilogue,
        }  # fmt: skip
        self.marked = ranges.prepare("gemm", payload, category="launch")

    def bind(self, addresses: Mapping[str, int]) -> Call:
        step = self.step
        pointers = {"a": step.a, "b": step.b, "c": step.c, "d": step.d, "bias": step.bias}
        places = {name: int(_value(pointer, addresses, self.itemsizes))
                  for name, pointer in pointers.items() if pointer is not None}  # fmt: skip
        return Call("gemm", self.matmul.shown, self.marked, self.matmul.bind(**places))


def _plain(driver: Driver, function: int, step: Launch, parameters: ctypes.c_void_p) -> Callable[[int], int]:
    """A launch on a stream. What does not change is C's already: converting it costs more than the launch."""
    sizes = (ctypes.c_uint(int(size)) for size in (*step.grid, *step.block, step.shared_bytes))
    fixed, launch_kernel = (ctypes.c_void_p(function), *sizes), driver.function("cuLaunchKernel")
    return lambda stream: int(launch_kernel(*fixed, stream, parameters, None))


def _overlapping(driver: Driver, function: int, step: Launch, parameters: ctypes.c_void_p) -> Callable[[int], int]:
    """The same, of a kernel that waits by itself for the one before it."""
    attribute = LaunchAttribute(PROGRAMMATIC_STREAM_SERIALIZATION, 0, 1)
    extents = ((ctypes.c_uint * 3)(*map(int, extent)) for extent in (step.grid, step.block))
    config = LaunchConfig(*extents, int(step.shared_bytes), None, ctypes.pointer(attribute), 1)
    where, handle, launch_kernel = ctypes.byref(config), ctypes.c_void_p(function), driver.function("cuLaunchKernelEx")

    def launch_on(stream: int) -> int:
        config.stream = stream
        return int(launch_kernel(where, handle, parameters, None))

    return launch_on


def shown_launch(step: Launch, names: Sequence[str], values: Sequence[np.generic]) -> str:
    """A launch as CUDA C++ would write it, with the arguments' names."""
    parts = [
        f"{name}={f'{int(value):#x}' if isinstance(argument, Pointer) else value.item()}"
        for name, argument, value in zip(names, step.arguments, values, strict=True)
    ]
    return f"{step.entry}<<<{step.grid}, {step.block}, {step.shared_bytes}>>>({', '.join(parts)})"


def _value(argument: Argument, addresses: Mapping[str, int], itemsizes: Mapping[str, int]) -> np.generic:
    """What is handed to the kernel: a scalar as it is, an address as an unsigned 64-bit integer."""
    if not isinstance(argument, Pointer):
        return argument
    if argument.buffer is None:
        return np.uint64(0)
    if argument.buffer not in addresses:
        raise UsageError(f"no buffer named {argument.buffer}; there are {', '.join(addresses) or 'none'}")
    if argument.offset and argument.buffer not in itemsizes:
        raise UsageError(f"the element size of {argument.buffer} is not given, and an argument points into it")
    return np.uint64(addresses[argument.buffer] + argument.offset * itemsizes.get(argument.buffer, 1))


def _check_parameters(device: Device, function: int, step: Launch, names: Sequence[str]) -> None:
    """Compare number and sizes of the arguments with the kernel's parameters: the driver would read what is not there.

    Raises UsageError; drivers before CUDA 12.4 do not tell, and nothing is checked. Nor is it under a
    sanitizer: the driver tells how many parameters there are by an error behind the last, which that would report.
    """
    if len(names) != len(step.arguments):
        raise UsageError(f"{step.entry}: {len(step.arguments)} arguments, {len(names)} names")
    wanted = None if _sanitized() else parameter_sizes(device, function)
    if wanted is None:
        return
    if len(wanted) != len(step.arguments):
        raise UsageError(f"{step.entry} takes {len(wanted)} parameters, {len(step.arguments)} are given")
    for name, size, argument in zip(names, wanted, step.arguments, strict=True):
        given = 8 if isinstance(argument, Pointer) else argument.dtype.itemsize
        if given != size:
            what = "a pointer" if isinstance(argument, Pointer) else str(argument.dtype)
            raise UsageError(f"{step.entry}: the parameter {name} has {size} bytes, {what} has {given}")


@functools.cache
def _sanitized() -> bool:
    """Whether compute-sanitizer is in this process."""
    try:
        return "sanitizer" in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:  # no Linux
        return False


def parameter_sizes(device: Device, function: int) -> list[int] | None:
    """Bytes of each parameter of a loaded kernel; None from a driver that does not tell."""
    if not device.driver.has("cuFuncGetParamInfo"):
        return None
    sizes: list[int] = []
    offset, size = ctypes.c_size_t(), ctypes.c_size_t()
    while True:
        status = device.driver.try_call("cuFuncGetParamInfo", function, len(sizes), offset, size)
        if status == INVALID_VALUE:  # past the last
            return sizes
        if status:
            raise device.driver.failure("cuFuncGetParamInfo()", status)
        sizes.append(size.value)


def finding(overrun: Overrun, kernel: str, launch: int) -> dict[str, Any]:
    """A row for the table `findings`."""
    side = f"{-overrun.start} bytes before its beginning" if overrun.start < 0 else f"at its byte {overrun.start}"
    return {
        "tool": "guard", "severity": "error", "kind": "out-of-bounds write", "kernel": kernel,
        "address": f"{overrun.address:#x}", "access": "write", "size_bytes": overrun.changed_bytes,
        "message": f"{overrun.changed_bytes} bytes written outside {overrun.buffer}, the first {side}",
        "count": 1, "launch_id": launch,
    }  # fmt: skip
