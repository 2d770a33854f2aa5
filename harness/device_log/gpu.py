"""The device log on the GPU: records in pinned host memory, which outlives a crash, or on the device, which costs less."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from harness.cuda import device as gpu
from harness.cuda.compile import Unit, build
from harness.cuda.device import Device, Module
from harness.device_log import layout as device_log
from harness.device_log.layout import CONTROL, CONTROL_AT, LOG, SITES_AT, SLOT, SLOTS_AT, SYMBOL, Recorded, Selection
from harness.errors import LaunchFailed, UsageError

NEXT_LAUNCH = device_log.HEADERS / "device_log_next.cu"
_MAPPED = 2  # of cuMemHostAlloc: the device writes there at the same address


class GpuLog:
    """A buffer that kernels of the attached modules log into. `recorded` is what was read last.

    With `fast` the records lie in the GPU's own memory: they cost the kernel far less time, and are gone if it crashes.
    """

    def __init__(
        self, device: Device, capacity: int, selection: Selection | None = None, *, fast: bool = False
    ) -> None:
        if capacity < 1:
            raise UsageError(f"expected room for at least 1 record, got {capacity}", hint="--records 1000000")
        self.device, self.capacity, self.epoch = device, capacity, 1
        self.selection = selection or Selection()
        self.recorded: Recorded | None = None
        size = device_log.size_of(0 if fast else capacity)
        address = device.driver.made("cuMemHostAlloc", size, _MAPPED, shown=f"cuMemHostAlloc({size} bytes)")
        self._release = weakref.finalize(self, device.driver.try_call, "cuMemFreeHost", address)
        self._address = address
        self.buffer = np.ctypeslib.as_array((ctypes.c_ubyte * size).from_address(address))
        self.buffer[:] = 0
        self._content = self.buffer  # with the records, wherever they are
        self._records = device.allocate(capacity * SLOT.itemsize) if fast else None
        if self._records is not None:
            device.fill(self._records.address, 0, capacity * SLOT.itemsize)
        self._control = device.allocate(CONTROL.itemsize)
        self._control_read: np.ndarray[Any, Any] | None = None  # None: not yet, or lost
        self._symbols: list[int] = []
        self._libraries: list[Any] = []
        self._next: tuple[Module, int] | None = None
        self.clear()

    def attach(self, module: Any) -> None:
        """Let the kernels of a module log here: CuPy's RawModule, PyCUDA's module, ours, a handle of the driver, or a
        library (ctypes) that exports `int probe_attach(const void* log)`.

        Raises UsageError for one that was not compiled with PROBE_ON.
        """
        if isinstance(module, ctypes.CDLL):
            self._libraries.append(module)
        else:
            self._symbols.append(self._symbol(module))
        self._announce()

    def detach(self) -> None:
        """Kernels log nowhere from now on."""
        self._announce(np.zeros(1, LOG))
        self._symbols, self._libraries = [], []

    def select(self, selection: Selection) -> None:
        """Other threads, without another compilation, from the next launch on."""
        self.selection = selection
        self._announce()

    def next_launch(self, stream: int = 0) -> None:
        """Count a launch: what follows on this stream has the next launch_id. Works inside a CUDA graph, at each replay."""
        if self._next is None:
            module = self.device.load(build(Unit(NEXT_LAUNCH, self.device.facts.arch)).image)
            self._next = module, module.function("probe_next_launch")
        at = ctypes.c_uint64(self._control.address + CONTROL.fields["launch"][1])  # type: ignore[index]
        parameters = (ctypes.c_void_p * 1)(ctypes.addressof(at))
        self.device.driver.call("cuLaunchKernel", self._next[1], 1, 1, 1, 1, 1, 1, 0, stream, parameters, None)

    def read(self) -> Recorded:
        """Wait for what was launched and read it; after a crash, what was written until then."""
        try:
            self.device.synchronize(shown="waiting for the kernels that log")
            control = np.zeros(1, CONTROL)
            self.device.read(self._control.address, control)
        except LaunchFailed:
            self.read_now()
            raise
        self._fetch(min(int(control[0]["next"]), self.capacity))
        return self._decoded(control)

    def _fetch(self, slots: int) -> None:
        """Copy records that lie on the device."""
        if self._records is not None:
            self._content = np.empty(device_log.size_of(slots), "u1")
            self._content[:SLOTS_AT] = self.buffer
            self.device.read(self._records.address, self._content[SLOTS_AT:])

    def read_now(self) -> Recorded:
        """What is written so far, without waiting: of a kernel that hangs, or after the context was lost. Nothing, if the
        records lie on the device."""
        return self._decoded(None)

    def _decoded(self, control: np.ndarray[Any, Any] | None) -> Recorded:
        """A copy, for kernels may go on writing into the buffer, and it may be freed."""
        found = device_log.decode(self._content, control, alive=control is not None)
        self.recorded, self._control_read = replace(found, slots=found.slots.copy()), control
        return self.recorded

    def clear(self) -> None:
        """Forget everything; call it when no kernel that logs is running."""
        self.epoch += 1
        used = self.recorded.needed if self.recorded else 0
        self.buffer[SITES_AT : device_log.size_of(min(used, self.capacity))] = 0
        if self._records is not None:
            self.device.fill(self._records.address, 0, min(used, self.capacity) * SLOT.itemsize)
        self.recorded, self._content = None, self.buffer
        self.device.fill(self._control.address, 0, CONTROL.itemsize)
        self._announce()

    def rows(self, kernel: str = "") -> list[dict[str, Any]]:
        """What was read last (`Recorded.rows`)."""
        return (self.recorded or self.read()).rows(kernel)

    def save(self, path: Path) -> None:
        """Write the buffer as a file that `device_log.read` takes: the counters where the GPU's own stood elsewhere."""
        header = self.buffer[:SITES_AT].copy()
        if self._control_read is None:
            header[: LOG.itemsize].view(LOG)["blind"] = 1
        else:
            header[CONTROL_AT : CONTROL_AT + CONTROL.itemsize] = self._control_read.view("u1").ravel()
        used = self.recorded.needed if self.recorded else self.capacity
        with path.open("wb") as stream:
            stream.write(header.tobytes())
            stream.write(self._content[SITES_AT : device_log.size_of(max(1, min(used, self.capacity)))].tobytes())

    def free(self) -> None:
        self._control.free()
        if self._records is not None:
            self._records.free()
        self._release()

    def _announce(self, log: np.ndarray[Any, Any] | None = None) -> None:
        """Write the LOG where each module looks for it."""
        offsets = device_log.describe(self.capacity, self.selection, self.epoch)
        self.buffer[: LOG.itemsize] = offsets.view("u1")
        if log is None:
            log = offsets.copy()
            log["control"] = self._control.address
            log["slots"] = self._records.address if self._records else self._address + SLOTS_AT
            log["site_table"] = self._address + SITES_AT
        for symbol in self._symbols:
            self.device.write(symbol, log.view("u1"))
        for library in self._libraries:
            if status := int(library.probe_attach(log.ctypes.data_as(ctypes.c_void_p))):
                raise LaunchFailed("probe_attach()", "the library", 0, f"error {status}")

    def _symbol(self, module: Any) -> int:
        if hasattr(module, "get_global"):
            found = module.get_global(SYMBOL)  # CuPy: a pointer object; PyCUDA: (address, size)
            return int(found[0] if isinstance(found, tuple) else found.ptr)
        handle = module.handle if isinstance(module, Module) else int(module)
        known = self.device.driver.variable(handle, SYMBOL)
        if known is None:
            raise UsageError(f"the module has no {SYMBOL}: it logs nothing", hint=compiling())
        address, size = known
        if size != LOG.itemsize:
            raise UsageError(
                f"the module's {SYMBOL} has {size} bytes, expected {LOG.itemsize}: it was compiled with another "
                "version of device_log.cuh",
                hint=compiling(),
            )
        return address


def compiling() -> str:
    """The options that a kernel which logs is compiled with."""
    return f'#include "device_log.cuh", and compile with -D{"=".join(device_log.DEFINE)} -I harness.device_log.HEADERS'


@contextmanager
def capture(modules: Sequence[Any], records: int, selection: Selection, fast: bool) -> Iterator[GpuLog]:
    """A log for as long as the block runs, read at its end, also if a kernel in it crashed."""
    log = GpuLog(gpu.get(), records, selection, fast=fast)
    try:
        for module in modules:
            log.attach(module)
        yield log
    except BaseException:
        log.read_now()
        raise
    else:
        log.read()
        log.detach()
    finally:
        log.free()
