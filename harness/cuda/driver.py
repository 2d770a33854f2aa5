"""The CUDA driver's functions, every one of whose return values is checked.

PyCUDA, CuPy, TensorRT and this module work in the same context, the device's primary one, so that handles and
addresses of one are good in the others. Streams, events, modules and functions are the driver's handles, as integers.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable
from ctypes import POINTER, byref, c_char_p, c_float, c_int, c_size_t, c_ubyte, c_uint, c_uint64, c_void_p
from pathlib import Path
from typing import Any

from harness.errors import LaunchFailed, UsageError

LIBRARY = "libcuda.so.1"
SUCCESS = 0
NO_GPU = (100, 101, 35, 803, 804)  # no device, invalid device, driver older than the library, driver and library differ

# After one of these the context is lost: each later call in this process returns the same.
STICKY = {
    214: "a memory error that the GPU could not correct",
    700: "a kernel read or wrote outside the memory that is there",
    702: "a kernel ran longer than the display's driver allows",
    710: "an assert() in a kernel failed",
    714: "a kernel's stack or return address is corrupt",
    715: "a kernel ran into an instruction that the GPU does not have",
    716: "a kernel's access is not aligned to its size",
    717: "a kernel used an instruction on memory of another kind (shared, local, global)",
    718: "a kernel jumped outside its code",
    719: "a kernel failed",
}
LOST = "the CUDA context is lost, every later call fails; in a new process: compute-sanitizer or probe sanitize"
HINTS = {
    1: "check the grid, the block and the shared memory against the device's limits",
    2: "less memory: a smaller batch, or end what else runs on this GPU (nvidia-smi)",
    209: "compile for this device: the image holds no code for its compute capability",
    222: "the driver is older than the compiler that wrote this code; update it, or compile to a cubin",
    500: "entry points are those declared extern \"C\" __global__",
    701: "fewer threads a block, or less shared memory: the kernel needs more registers than a block may have",
    720: "a cooperative launch needs all of its blocks on the device at once",
}  # fmt: skip

Handle = c_void_p
PROTOTYPES: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuDriverGetVersion": (POINTER(c_int),),
    "cuDeviceGetCount": (POINTER(c_int),),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetName": (c_char_p, c_int, c_int),
    "cuDeviceGetPCIBusId": (c_char_p, c_int, c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuDeviceTotalMem_v2": (POINTER(c_size_t), c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(Handle), c_int),
    "cuCtxGetCurrent": (POINTER(Handle),),
    "cuCtxSetCurrent": (Handle,),
    "cuCtxSetLimit": (c_int, c_size_t),
    "cuCtxSynchronize": (),
    "cuMemAlloc_v2": (POINTER(c_uint64), c_size_t),
    "cuMemFree_v2": (c_uint64,),
    "cuMemGetInfo_v2": (POINTER(c_size_t), POINTER(c_size_t)),
    "cuMemcpyHtoD_v2": (c_uint64, c_void_p, c_size_t),
    "cuMemcpyDtoH_v2": (c_void_p, c_uint64, c_size_t),
    "cuMemcpyDtoDAsync_v2": (c_uint64, c_uint64, c_size_t, Handle),
    "cuMemsetD8_v2": (c_uint64, c_ubyte, c_size_t),
    "cuMemsetD8Async": (c_uint64, c_ubyte, c_size_t, Handle),
    "cuModuleLoadData": (POINTER(Handle), c_char_p),
    "cuModuleUnload": (Handle,),
    "cuModuleGetFunction": (POINTER(Handle), Handle, c_char_p),
    "cuModuleGetGlobal_v2": (POINTER(c_uint64), POINTER(c_size_t), Handle, c_char_p),
    "cuFuncGetAttribute": (POINTER(c_int), c_int, Handle),
    "cuFuncGetParamInfo": (Handle, c_size_t, POINTER(c_size_t), POINTER(c_size_t)),
    "cuFuncSetAttribute": (Handle, c_int, c_int),
    "cuLaunchKernelEx": (c_void_p, Handle, c_void_p, c_void_p),
    "cuLaunchKernel": (Handle, *(c_uint,) * 7, Handle, c_void_p, c_void_p),
    "cuStreamCreate": (POINTER(Handle), c_uint),
    "cuStreamDestroy_v2": (Handle,),
    "cuStreamSynchronize": (Handle,),
    "cuStreamWaitEvent": (Handle, Handle, c_uint),
    "cuStreamBeginCapture_v2": (Handle, c_int),
    "cuStreamEndCapture": (Handle, POINTER(Handle)),
    "cuGraphInstantiateWithFlags": (POINTER(Handle), Handle, c_uint64),
    "cuGraphUpload": (Handle, Handle),
    "cuGraphLaunch": (Handle, Handle),
    "cuGraphExecDestroy": (Handle,),
    "cuGraphDestroy": (Handle,),
    "cuEventCreate": (POINTER(Handle), c_uint),
    "cuEventRecord": (Handle, Handle),
    "cuEventSynchronize": (Handle,),
    "cuEventQuery": (Handle,),
    "cuEventElapsedTime": (POINTER(c_float), Handle, Handle),
    "cuEventDestroy_v2": (Handle,),
    "cuMemHostAlloc": (POINTER(Handle), c_size_t, c_uint),
    "cuMemFreeHost": (Handle,),
    "cuMemcpyHtoDAsync_v2": (c_uint64, c_void_p, c_size_t, Handle),
    "cuMemcpyDtoHAsync_v2": (c_void_p, c_uint64, c_size_t, Handle),
    "cuGraphGetNodes": (Handle, c_void_p, POINTER(c_size_t)),
    "cuGraphNodeGetType": (Handle, POINTER(c_int)),
    "cuGraphKernelNodeGetParams_v2": (Handle, c_void_p),
    "cuGraphChildGraphNodeGetGraph": (Handle, POINTER(Handle)),
    "cuFuncGetName": (POINTER(c_char_p), Handle),
    "cuKernelGetName": (POINTER(c_char_p), Handle),
    "cuGetErrorName": (c_int, POINTER(c_char_p)),
    "cuGetErrorString": (c_int, POINTER(c_char_p)),
}

# Modules through which others launch: a failed call is shown where they were called, not inside them.
HELPERS = {f"harness.cuda.{name}" for name in ("driver", "device", "launch", "buffers", "cublaslt", "timing")} | {
    "harness.ranges"
}


PROGRAMMATIC_STREAM_SERIALIZATION = 6  # of CUlaunchAttributeID


class LaunchAttribute(ctypes.Structure):
    """CUlaunchAttribute: which, and its value in a union of 64 bytes."""

    _fields_ = (("id", c_int), ("padding", c_int), ("value", c_int), ("rest", c_ubyte * 60))


class LaunchConfig(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        ("grid", c_uint * 3), ("block", c_uint * 3), ("shared_bytes", c_uint), ("stream", c_void_p),
        ("attributes", POINTER(LaunchAttribute)), ("count", c_uint),
    )  # fmt: skip


class Driver:
    """The driver's library, bound. `call` raises LaunchFailed unless the function returns CUDA_SUCCESS."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self._functions: dict[str, Any] = {}

    def call(self, name: str, *arguments: Any, shown: str | None = None) -> None:
        """Call a function of the driver; `shown` is what the message says was called, instead of its bare name."""
        function = self.function(name)
        status = function(*arguments)
        if status != SUCCESS:
            raise self.failure(shown or f"{name}()", status)

    def prepared(self, name: str, *arguments: Any, shown: str | None = None) -> Callable[[], None]:
        """The same call to be made many times: its arguments are C's already, converting them costs more than it does."""
        function = self.function(name)
        words = tuple(kind(argument) for kind, argument in zip(function.argtypes, arguments, strict=True))

        def call() -> None:
            status = function(*words)
            if status != SUCCESS:
                raise self.failure(shown or f"{name}()", status)

        return call

    def variable(self, module: int, symbol: str) -> tuple[int, int] | None:
        """Address and bytes of a variable of a loaded module, by the linker's name; None if it has none such."""
        address, size = c_uint64(), c_size_t()
        if self.try_call("cuModuleGetGlobal_v2", byref(address), byref(size), module, symbol.encode()):
            return None
        return address.value, size.value

    def try_call(self, name: str, *arguments: Any) -> int:
        """Call a function whose failure changes nothing (freeing after the context was lost); its status."""
        status = (self.function(name))(*arguments)
        return int(status)

    def function(self, name: str) -> Any:
        """A function of the driver as ctypes has it, unchecked: it returns the status, 0 for success."""
        return self._functions.get(name) or self._bind(name)

    def has(self, name: str) -> bool:
        """Whether this driver is new enough to have a function."""
        return hasattr(self._library, name)

    def made(self, name: str, *arguments: Any, shown: str | None = None) -> int:
        """Call a function that writes a handle through its first parameter, and return the handle."""
        handle = c_void_p()
        self.call(name, byref(handle), *arguments, shown=shown)
        return handle.value or 0

    def number(self, name: str, *arguments: Any) -> int:
        """Call a function that writes a number through its first parameter, and return the number."""
        kind = PROTOTYPES[name][0]._type_
        number = kind()
        self.call(name, byref(number), *arguments)
        return int(number.value)

    def text(self, name: str, *arguments: Any, size: int = 256) -> str:
        """Call a function that writes a text and takes its room after it."""
        room = ctypes.create_string_buffer(size)
        self.call(name, room, size, *arguments)
        return room.value.decode("utf-8", errors="replace")

    def failure(self, call: str, status: int) -> LaunchFailed:
        """The error of a call: where it was made, the status by name, number and meaning, and what to do."""
        file, line = caller()
        what = STICKY.get(status)
        text = f"{self._describe('cuGetErrorName', status) or 'status'} ({status}): "
        text += self._describe("cuGetErrorString", status) or "not known to this driver"
        error = LaunchFailed(call, file, line, f"{text}; {what}" if what else text)
        error.hint = LOST if what else HINTS.get(status)
        return error

    def _describe(self, name: str, status: int) -> str:
        text = c_char_p()
        return text.value.decode() if self.try_call(name, status, byref(text)) == SUCCESS and text.value else ""

    def _bind(self, name: str) -> Any:
        try:
            function = getattr(self._library, name)
        except AttributeError as error:
            raise UsageError(f"the NVIDIA driver is too old: it has no {name}", hint="update the driver") from error
        function.argtypes, function.restype = PROTOTYPES[name], c_int
        self._functions[name] = function
        return function


def load(path: str = LIBRARY) -> Driver:
    """Bind a driver's library and start it. Raises UsageError where there is no driver or no GPU."""
    try:
        driver = Driver(ctypes.CDLL(path))
    except OSError as error:
        raise UsageError("there is no NVIDIA driver here, so no GPU to run on", hint="probe doctor") from error
    try:
        driver.call("cuInit", 0)
        count = driver.number("cuDeviceGetCount")
    except LaunchFailed as error:
        raise UsageError(f"the NVIDIA driver found no GPU: {error.status}", hint="probe doctor") from error
    if count == 0:
        raise UsageError("the NVIDIA driver found no GPU", hint="probe doctor; is CUDA_VISIBLE_DEVICES empty?")
    return driver


@functools.cache
def driver() -> Driver:
    """The driver of this machine, started once."""
    return load()


def caller() -> tuple[str, int]:
    """File and line of whoever called into probe's launching modules; a path only as seen from the working folder."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__") in HELPERS:
        frame = frame.f_back
    return shown_path(frame.f_code.co_filename), frame.f_lineno


def shown_path(path: str | Path) -> str:
    """A path without what it says about the machine: relative to the working folder, or the name alone."""
    try:
        return Path(path).resolve().relative_to(Path.cwd()).as_posix()
    except (ValueError, OSError):
        return Path(path).name
