"""The GPU: its primary context, its memory, what it is, and how its clocks stand."""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Callable, Iterator
from ctypes import byref, c_float, c_size_t, c_void_p
from dataclasses import asdict, dataclass
from types import ModuleType
from typing import Any

import numpy as np

from harness.cuda import driver as cuda
from harness.cuda.symbols import symbol_of, variable_of
from harness.errors import DependencyMissing, UsageError
from harness.optional import load

# Numbers of CUdevice_attribute and CUfunction_attribute.
CLOCK_RATE, MULTIPROCESSORS, MEMORY_CLOCK_RATE, BUS_WIDTH, L2_SIZE = 13, 16, 36, 37, 38
CAPABILITY_MAJOR, CAPABILITY_MINOR, SHARED_OPTIN = 75, 76, 97
FUNCTION_SHARED_STATIC, FUNCTION_DYNAMIC_SHARED = 1, 8
DYNAMIC_SHARED_DEFAULT = 48 * 1024  # bytes: more has to be asked for, function by function

OVERLAP_IN_GRAPHS = 12_030  # the driver's CUDA version from which graphs keep it

NON_BLOCKING = 1  # of streams
RELAXED = 2  # of captures: a library may load its code while it is recorded

# Bits of nvmlClocksEventReasons.
REASONS = {
    0x1: "idle", 0x2: "application clocks", 0x4: "power cap", 0x8: "hardware slowdown", 0x10: "sync boost",
    0x20: "software thermal", 0x40: "hardware thermal", 0x80: "hardware power brake", 0x100: "display clocks",
}  # fmt: skip
SLOWING = 0x4 | 0x8 | 0x20 | 0x40 | 0x80  # the card runs slower than it would


@dataclass(frozen=True)
class Facts:
    """What a card is. Clocks are the highest, in kHz; `driver` is the CUDA version that the driver speaks."""

    name: str
    compute_capability: tuple[int, int]
    multiprocessors: int
    memory_bytes: int
    l2_bytes: int
    shared_bytes_per_block: int
    clock_khz: int
    memory_clock_khz: int
    memory_bus_bits: int
    driver: str

    @property
    def arch(self) -> str:
        """What to compile for: from 9.0 with the features that are this architecture's alone (wgmma, TMA)."""
        major, minor = self.compute_capability
        return f"sm_{major}{minor}{'a' if major >= 9 else ''}"

    def as_manifest(self) -> dict[str, Any]:
        major, minor = self.compute_capability
        return {**asdict(self), "compute_capability": f"{major}.{minor}"}


class Memory:
    """A piece of device memory, given back when nobody holds it any more. `address` is aligned to 256 bytes."""

    def __init__(self, driver: cuda.Driver, size: int) -> None:
        self.size = size
        address = driver.number("cuMemAlloc_v2", max(size, 1))
        self.address = address
        self._release = weakref.finalize(self, driver.try_call, "cuMemFree_v2", address)

    def free(self) -> None:
        self._release()


class Device:
    """One GPU with its primary context current in the calling thread."""

    def __init__(self, driver: cuda.Driver, ordinal: int = 0) -> None:
        count = driver.number("cuDeviceGetCount")
        if not 0 <= ordinal < count:
            raise UsageError(f"there is no GPU {ordinal}: this machine has {count}, counted from 0")
        self.driver, self.ordinal = driver, ordinal
        self.handle = driver.number("cuDeviceGet", ordinal)
        self.context = driver.made("cuDevicePrimaryCtxRetain", self.handle)
        self.use()

    def use(self) -> None:
        """Make the primary context current in this thread, where CuPy and TensorRT work anyway."""
        if self.driver.made("cuCtxGetCurrent") != self.context:
            self.driver.call("cuCtxSetCurrent", self.context)

    @contextlib.contextmanager
    def shared_with_pycuda(self) -> Iterator[ModuleType]:
        """PyCUDA's driver module, with the primary context pushed as PyCUDA's own for as long as this lasts."""
        pycuda = load("pycuda.driver", "to share the GPU with PyCUDA")
        pycuda.init()
        context = pycuda.Device(self.ordinal).retain_primary_context()
        context.push()
        try:
            yield pycuda
        finally:
            context.pop()
            self.use()

    def attribute(self, number: int) -> int:
        return self.driver.number("cuDeviceGetAttribute", number, self.handle)

    @functools.cached_property
    def facts(self) -> Facts:
        version = self.driver.number("cuDriverGetVersion")
        return Facts(
            name=self.driver.text("cuDeviceGetName", self.handle),
            compute_capability=(self.attribute(CAPABILITY_MAJOR), self.attribute(CAPABILITY_MINOR)),
            multiprocessors=self.attribute(MULTIPROCESSORS),
            memory_bytes=self.driver.number("cuDeviceTotalMem_v2", self.handle),
            l2_bytes=self.attribute(L2_SIZE),
            shared_bytes_per_block=self.attribute(SHARED_OPTIN),
            clock_khz=self.attribute(CLOCK_RATE),
            memory_clock_khz=self.attribute(MEMORY_CLOCK_RATE),
            memory_bus_bits=self.attribute(BUS_WIDTH),
            driver=f"{version // 1000}.{version % 1000 // 10}",
        )

    @functools.cached_property
    def overlaps_launches(self) -> bool:
        """Whether a kernel may be brought onto the GPU before the one before it has ended, in graphs too."""
        modern = self.driver.has("cuLaunchKernelEx") and self.driver.number("cuDriverGetVersion") >= OVERLAP_IN_GRAPHS
        return modern and self.facts.compute_capability >= (9, 0)

    def allocate(self, size: int) -> Memory:
        return Memory(self.driver, size)

    def free_bytes(self) -> int:
        free, total = c_size_t(), c_size_t()
        self.driver.call("cuMemGetInfo_v2", byref(free), byref(total))
        return free.value

    def write(self, address: int, array: np.ndarray[Any, Any]) -> None:
        """Copy an array (C order) to device memory and wait for it."""
        array = np.ascontiguousarray(array)
        if array.nbytes:
            self.driver.call("cuMemcpyHtoD_v2", address, array.ctypes.data, array.nbytes)

    def read(self, address: int, array: np.ndarray[Any, Any]) -> None:
        """Fill an array (C order) from device memory, once everything before on the default stream is done."""
        if array.nbytes:
            self.driver.call("cuMemcpyDtoH_v2", array.ctypes.data, address, array.nbytes)

    def fill(self, address: int, byte: int, size: int) -> None:
        if size:
            self.driver.call("cuMemsetD8_v2", address, byte, size)

    def synchronize(self, shown: str = "cuCtxSynchronize()") -> None:
        """Wait for all that was launched; an error of an earlier launch comes out here, under the name `shown`."""
        self.driver.call("cuCtxSynchronize", shown=shown)

    def load(self, image: bytes) -> Module:
        return Module(self, image)

    def stream(self) -> Stream:
        return Stream(self)


class Module:
    """Machine code on the device, and the functions in it."""

    def __init__(self, device: Device, image: bytes) -> None:
        self.device, self.image = device, image
        self.handle = device.driver.made("cuModuleLoadData", image, shown="cuModuleLoadData(the compiled kernel)")
        self._release = weakref.finalize(self, device.driver.try_call, "cuModuleUnload", self.handle)

    def function(self, entry: str, dynamic_shared: int = 0) -> int:
        """The handle of an entry point, by its name in C++, allowed that many bytes of dynamic shared memory.

        Raises LaunchFailed without such an entry point, UsageError if the device has less shared memory.
        """
        driver = self.device.driver
        shown = f'cuModuleGetFunction("{entry}")'
        symbol = symbol_of(self.image, entry)
        function = driver.made("cuModuleGetFunction", self.handle, symbol.encode(), shown=shown)
        static = driver.number("cuFuncGetAttribute", FUNCTION_SHARED_STATIC, function)
        if static + dynamic_shared > DYNAMIC_SHARED_DEFAULT:
            self._allow(function, entry, static, dynamic_shared)
        return function

    def write(self, name: str, content: bytes) -> None:
        """Fill a `__constant__` or `__device__` variable, by its name in C++.

        Raises UsageError without such a variable, or for another number of bytes than it has.
        """
        found = self.device.driver.variable(self.handle, variable_of(self.image, name))
        if found is None:
            raise UsageError(
                f"the compiled source has no variable {name}",
                hint="a compiler leaves out what no kernel reads: then it needs no value",
            )
        address, size = found
        if size != len(content):
            raise UsageError(f"the variable {name}: expected {size} bytes, got {len(content)}")
        self.device.write(address, np.frombuffer(content, np.uint8))

    def _allow(self, function: int, entry: str, static: int, dynamic: int) -> None:
        most = self.device.facts.shared_bytes_per_block
        if static + dynamic > most:
            raise UsageError(
                f"{entry} asks for {dynamic} bytes of dynamic and {static} of static shared memory; "
                f"a block of {self.device.facts.name} has {most}",
                hint="a smaller tile, or fewer stages",
            )
        shown = f"cuFuncSetAttribute({entry}, MAX_DYNAMIC_SHARED_SIZE_BYTES, {dynamic})"
        self.device.driver.call("cuFuncSetAttribute", function, FUNCTION_DYNAMIC_SHARED, dynamic, shown=shown)


class Stream:
    """A stream of our own, beside the default one."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.handle = device.driver.made("cuStreamCreate", NON_BLOCKING)
        self._release = weakref.finalize(self, device.driver.try_call, "cuStreamDestroy_v2", self.handle)

    def synchronize(self, shown: str = "cuStreamSynchronize()") -> None:
        self.device.driver.call("cuStreamSynchronize", self.handle, shown=shown)

    @contextlib.contextmanager
    def capture(self) -> Iterator[Graph]:
        """Record what is launched on this stream into the graph that is given, instead of running it."""
        driver, graph, recorded = self.device.driver, Graph(self.device), c_void_p()
        driver.call("cuStreamBeginCapture_v2", self.handle, RELAXED)
        try:
            yield graph
        except BaseException:
            driver.try_call("cuStreamEndCapture", self.handle, byref(recorded))
            if recorded.value:
                driver.try_call("cuGraphDestroy", recorded)
            raise
        driver.call("cuStreamEndCapture", self.handle, byref(recorded))
        graph.instantiate(recorded.value or 0)


class Graph:
    """Launches recorded once, replayed by one call."""

    def __init__(self, device: Device) -> None:
        self.device, self.handle = device, 0

    def instantiate(self, recorded: int) -> None:
        driver = self.device.driver
        try:
            self.handle = driver.made("cuGraphInstantiateWithFlags", recorded, 0)
        finally:
            driver.try_call("cuGraphDestroy", recorded)
        self._release = weakref.finalize(self, driver.try_call, "cuGraphExecDestroy", self.handle)

    def launch(self, stream: int) -> None:
        self.device.driver.call("cuGraphLaunch", self.handle, stream)

    def launcher(self, stream: int) -> Callable[[], None]:
        """The same launch, to be made many times."""
        return self.device.driver.prepared("cuGraphLaunch", self.handle, stream)


class Event:
    """A moment on a stream."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.handle = device.driver.made("cuEventCreate", 0)
        self._release = weakref.finalize(self, device.driver.try_call, "cuEventDestroy_v2", self.handle)

    def record(self, stream: int) -> None:
        self.device.driver.call("cuEventRecord", self.handle, stream)

    def synchronize(self) -> None:
        self.device.driver.call("cuEventSynchronize", self.handle)

    def since_ns(self, start: Event) -> float:
        """Nanoseconds from `start` to this event (resolution about half a microsecond); waits for this event."""
        self.synchronize()
        elapsed_ms = c_float()
        self.device.driver.call("cuEventElapsedTime", byref(elapsed_ms), start.handle, self.handle)
        return float(elapsed_ms.value) * 1e6


@functools.cache
def get(ordinal: int = 0) -> Device:
    """A GPU of this machine, the same object every time; its context is current in the calling thread the first time.

    Raises UsageError where there is no driver or no GPU.
    """
    return Device(cuda.driver(), ordinal)


def copy_bandwidth(device: Device, size: int = 1 << 30, repeats: int = 10) -> float:
    """Bytes a second, read and written counted, that a copy within device memory reaches: the median of `repeats`."""
    size = min(size, device.free_bytes() // 4)
    source, target, stream = device.allocate(size), device.allocate(size), device.stream()
    device.fill(source.address, 0x5A, size)
    device.synchronize()
    times = []
    for _ in range(repeats + 2):  # the first two warm up
        start, end = Event(device), Event(device)
        start.record(stream.handle)
        device.driver.call("cuMemcpyDtoDAsync_v2", target.address, source.address, size, stream.handle)
        end.record(stream.handle)
        times.append(end.since_ns(start))
    return 2 * size / float(np.median(times[2:])) * 1e9


def clock_state(device: Device) -> dict[str, Any]:
    """How the card stands just now, for the manifest: clocks (MHz), temperature, power, why it is slowed if it is.

    Keys that the card or its driver does not tell are left out; without nvidia-ml-py there is only a `note`.
    """
    try:
        nvml = load("pynvml", "to read the clocks of the GPU")
    except DependencyMissing as error:
        return {"note": f"clocks not recorded: {error.hint}"}
    try:
        nvml.nvmlInit()
        try:
            bus = device.driver.text("cuDeviceGetPCIBusId", device.handle)
            return _state(nvml, nvml.nvmlDeviceGetHandleByPciBusId(bus.encode()))
        finally:
            nvml.nvmlShutdown()
    except nvml.NVMLError as error:  # a driver without NVML, a card that is not shown
        return {"note": f"clocks not recorded: {error}"}


def _state(nvml: Any, card: Any) -> dict[str, Any]:
    asked: dict[str, Callable[[], Any]] = {
        "sm_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(card, nvml.NVML_CLOCK_SM),
        "memory_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(card, nvml.NVML_CLOCK_MEM),
        "sm_clock_max_mhz": lambda: nvml.nvmlDeviceGetMaxClockInfo(card, nvml.NVML_CLOCK_SM),
        "temperature_c": lambda: nvml.nvmlDeviceGetTemperature(card, nvml.NVML_TEMPERATURE_GPU),
        "power_w": lambda: nvml.nvmlDeviceGetPowerUsage(card) / 1000,
        "driver_version": lambda: nvml.nvmlSystemGetDriverVersion(),
        "reasons": lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(card),
    }
    told: dict[str, Any] = {}
    for key, ask in asked.items():
        with contextlib.suppress(nvml.NVMLError, AttributeError):  # this card, or this driver, does not tell
            told[key] = ask()
    reasons = told.pop("reasons", None)
    return told if reasons is None else {**told, **explain(reasons)}


def explain(reasons: int) -> dict[str, Any]:
    """NVML's bits in words, and whether they mean that measured times are longer than they need be."""
    words = [word for bit, word in REASONS.items() if reasons & bit]
    return {"clock_reasons": words, "slowed": bool(reasons & SLOWING)}
