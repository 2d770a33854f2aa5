"""What running an engine asks of a device beyond kernels: page-locked buffers, and which kernels an inference launches."""

from __future__ import annotations

import ctypes
import weakref
from collections import Counter
from collections.abc import Callable
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint, c_void_p

import numpy as np

from harness.cuda import driver as cuda
from harness.cuda.device import Device, Memory, Stream, get
from harness.errors import UsageError

CAPTURE_RELAXED, KERNEL_NODE, CHILD_GRAPH_NODE = 2, 0, 4


class _KernelNode(ctypes.Structure):
    """CUDA_KERNEL_NODE_PARAMS_v2."""

    _fields_ = (
        ("func", c_void_p), ("grid", c_uint * 3), ("block", c_uint * 3), ("shared", c_uint),
        ("params", c_void_p), ("extra", c_void_p), ("kern", c_void_p), ("ctx", c_void_p),
    )  # fmt: skip


class Buffer:
    """Device memory and page-locked host memory of one size: copies between them run beside everything else."""

    def __init__(self, device: Device, size: int) -> None:
        self.size = size
        self._device = device
        self._memory: Memory = device.allocate(size)
        host = device.driver.made("cuMemHostAlloc", max(size, 1), 0)
        self._release = weakref.finalize(self, device.driver.try_call, "cuMemFreeHost", host)
        self._host = host
        room = (ctypes.c_ubyte * max(size, 1)).from_address(host)
        self.bytes: np.ndarray = np.ctypeslib.as_array(room)[:size]

    @property
    def address(self) -> int:
        """On the device."""
        return self._memory.address

    def upload(self, size: int, stream: int) -> Callable[[], None]:
        """A call that copies so many bytes to the device."""
        return self._device.driver.prepared("cuMemcpyHtoDAsync_v2", self._memory.address, self._host, size, stream)

    def download(self, size: int, stream: int) -> Callable[[], None]:
        """A call that copies so many bytes back."""
        return self._device.driver.prepared("cuMemcpyDtoHAsync_v2", self._host, self._memory.address, size, stream)


def present() -> bool:
    """Whether there is a driver and at least one GPU."""
    try:
        get()
    except UsageError:
        return False
    return True


def kernels_of(device: Device, stream: Stream, launch: Callable[[], None]) -> tuple[str, ...] | None:
    """Names (mangled) of the kernels that `launch` puts on the stream, sorted, with their number: `name x12`.

    They are read off a CUDA graph that captures them, so that nothing runs and no profiler is needed. None where that
    cannot be done: a driver before 12.3, work that cannot be captured.
    """
    driver, graph = device.driver, c_void_p()
    driver.call("cuStreamBeginCapture_v2", stream.handle, CAPTURE_RELAXED)
    try:
        launch()
        refused = False
    except Exception:  # noqa: BLE001  whatever it was, the capture must be ended before anybody hears of it
        refused = True
    status = driver.try_call("cuStreamEndCapture", stream.handle, byref(graph))
    if refused or status != cuda.SUCCESS or not graph.value:
        return None
    found: Counter[str] = Counter()
    try:
        _count(driver, graph.value, found)
    except UsageError:  # the driver does not have these functions
        return None
    finally:
        driver.try_call("cuGraphDestroy", graph)
    return tuple(name if count == 1 else f"{name} x{count}" for name, count in sorted(found.items()))


def _count(driver: cuda.Driver, graph: int, found: Counter[str]) -> None:
    count = c_size_t()
    driver.call("cuGraphGetNodes", graph, None, byref(count))
    nodes = (c_void_p * count.value)()
    driver.call("cuGraphGetNodes", graph, nodes, byref(count))
    for node in filter(None, nodes[: count.value]):
        kind = c_int()
        driver.call("cuGraphNodeGetType", node, byref(kind))
        if kind.value == KERNEL_NODE:
            found[_kernel_name(driver, node)] += 1
        elif kind.value == CHILD_GRAPH_NODE:
            child = c_void_p()
            driver.call("cuGraphChildGraphNodeGetGraph", node, byref(child))
            _count(driver, child.value or 0, found)


def _kernel_name(driver: cuda.Driver, node: int) -> str:
    params, name = _KernelNode(), c_char_p()
    driver.call("cuGraphKernelNodeGetParams_v2", node, byref(params))
    if params.func:
        driver.call("cuFuncGetName", byref(name), params.func)
    else:
        driver.call("cuKernelGetName", byref(name), params.kern)
    return (name.value or b"?").decode("utf-8", "replace")
