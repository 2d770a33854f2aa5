"""The levels of the fusion exercise run: on the CPU for what they compute, on the GPU also for their times."""

from __future__ import annotations

import numpy as np

from harness.cuda import device as gpu
from harness.cuda import timing
from harness.cuda.launch import itemsizes_of, prepare
from harness.emulation import run as emulated
from kernels.fusion import Level


def emulate(level: Level, given: dict[str, np.ndarray], checks: str = "none") -> tuple[np.ndarray, int]:
    """E by the emulation, and how many findings it had."""
    done = emulated.run(level.in_order, given, checks=checks)
    return done.arrays["e"], len(done.findings)


def measure(level: Level, given: dict[str, np.ndarray], seconds: float = 0.5) -> tuple[np.ndarray, float]:
    """E by the GPU, and the median of nanoseconds that a replay of the level's CUDA graph takes."""
    device = gpu.get()
    device.use()
    main, beside = (prepare(part, itemsizes_of(given), device=device) for part in (level.steps[:1], level.beside))
    placed = main.place(given)
    first, second = placed.bound, beside.bind(placed.buffers.addresses)
    rest = prepare(level.steps[1:], itemsizes_of(given), device=device).bind(placed.buffers.addresses)
    stream, other = device.stream(), device.stream()
    call, forked, joined = device.driver.call, gpu.Event(device), gpu.Event(device)
    with stream.capture() as graph:
        if level.beside:
            forked.record(stream.handle)
            call("cuStreamWaitEvent", other.handle, forked.handle, 0)
            second.launch(other.handle)
            joined.record(other.handle)
        first.launch(stream.handle)
        if level.beside:
            call("cuStreamWaitEvent", stream.handle, joined.handle, 0)
        rest.launch(stream.handle)
    graph.launch(stream.handle)
    stream.synchronize()
    taken = timing.time_callable(lambda: graph.launch(stream.handle), stream=stream.handle, seconds=seconds)
    return placed.read()["e"], taken.median_ns
