"""The process in which a kernel that logs runs on the GPU: `python -m harness.device_log.traced_worker FOLDER`, called by traced.py."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from harness.cuda import device as gpu
from harness.cuda import launch
from harness.cuda.buffers import GUARD_BYTES, Buffers
from harness.cuda.compile import default_compiler
from harness.cuda.device import Device, Event
from harness.device_log import gpu as gpu_log
from harness.device_log import printf as device_printf
from harness.device_log import traced
from harness.errors import BuildFailed, LaunchFailed, ProbeError
from kernels.plan import Launch

NOT_READY = 600  # of cuEventQuery


def main(folder: Path) -> None:
    """Run the job, save what was logged whatever came of it, and tell the outcome; ends the process."""
    kept: list[object] = []  # what is on the GPU: giving it back would wait for a kernel that hangs
    try:
        outcome = _run(folder, kept)
    except BuildFailed as error:
        outcome = {"ended": "build failed", "message": str(error)}
    except ProbeError as error:
        outcome = {"ended": "refused", "message": str(error)}
        if error.hint:
            outcome["hint"] = error.hint
    device_printf.flush()
    part = folder / "outcome.part"
    part.write_text(json.dumps({"hint": None, "findings": [], "message": "", **outcome}), encoding="utf-8")
    part.replace(folder / "outcome.json")
    os._exit(0)  # a kernel that hangs, or a lost context, would keep the libraries' own ending waiting


def _run(folder: Path, kept: list[object]) -> dict[str, Any]:
    described = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    step, selection = traced.load(described)
    device = gpu.get()
    raised = device_printf.raise_limit(device, described["fifo_bytes"])
    with np.load(folder / "arrays_in.npz") as content:
        arrays = dict(content)
    prepared = _prepare(step, launch.itemsizes_of(arrays), device)
    buffers = Buffers(device, arrays, guard=GUARD_BYTES)
    bound = prepared.bind(buffers.addresses)
    log = gpu_log.GpuLog(device, described["records"], selection)
    for module in prepared.modules:
        log.attach(module)
    done = Event(device)
    kept += [prepared, buffers, bound, log, done]
    try:
        bound.launch(0)
        if not _wait(device, done, described["timeout_s"]):
            log.read_now()
            log.save(folder / "device_log.bin")
            return {"ended": "timed out", "message": f"the kernel ran longer than {described['timeout_s']:g} s"}
        log.read()
    except LaunchFailed as error:
        log.read_now()
        log.save(folder / "device_log.bin")
        return {"ended": "crashed", "message": str(error)}
    log.save(folder / "device_log.bin")
    np.savez(folder / "arrays_out.npz", **buffers.read())  # type: ignore[arg-type]
    findings = [launch.finding(overrun, step.entry, 0) for overrun in buffers.overruns()]
    note = "" if raised else "printf's buffer could not be raised"
    return {"ended": "finished", "message": note, "findings": findings}


def _prepare(step: Launch, itemsizes: dict[str, int], device: Device) -> launch.Prepared:
    """With NVRTC if it is there, else, or where the source is too much for it (headers of the host), with nvcc."""
    try:
        return launch.prepare([step], itemsizes, launch.Options(), device)
    except BuildFailed:
        if default_compiler() == "nvcc" or shutil.which("nvcc") is None:
            raise
        return launch.prepare([step], itemsizes, launch.Options(backend="pycuda"), device)


def _wait(device: Device, event: Event, timeout_s: float) -> bool:
    """Until everything launched is done; False if it is not in time. Raises LaunchFailed if the kernel crashed."""
    event.record(0)
    end = time.monotonic() + timeout_s
    while (status := device.driver.try_call("cuEventQuery", event.handle)) == NOT_READY:
        if time.monotonic() > end:
            return False
        time.sleep(0.0005)
    if status:
        raise device.driver.failure("the kernel", status)
    return True


if __name__ == "__main__":
    main(Path(sys.argv[1]))
