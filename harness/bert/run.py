"""An encoder's plan run: on the GPU for its times and its result, on the CPU, thread for thread, for its result alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.bert.plan import BertPlan
from harness.cuda import launch
from harness.cuda.device import Device, Event
from harness.cuda.launch import Bound, Options, Placed
from harness.emulation import run as emulated
from harness.errors import LaunchFailed
from kernels import numbers

Array = np.ndarray[Any, Any]

WARM_UP_S = 0.05
FEWEST, MOST = 20, 1000  # replays
FEWEST_HERE = 2  # runs on a processor, however long each takes
EMULATION_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Emulation:
    """What the CPU made of a plan, and the seconds that it took: these say nothing of a GPU."""

    arrays: dict[str, Array]
    seconds: float


def emulate(made: BertPlan, feeds: Mapping[str, Array]) -> Emulation:
    """Run a plan on the CPU. Raises LaunchFailed for any finding of the emulation."""
    start = time.perf_counter()
    done = emulated.run(made.plan.steps, made.arrays(feeds), timeout_s=EMULATION_TIMEOUT_S)
    if done.findings or not done.complete:
        said = done.findings[0]["message"] if done.findings else "it did not end"
        raise LaunchFailed("the emulated encoder", "harness/bert/run.py", 0, said)
    return Emulation(done.arrays, time.perf_counter() - start)


class OnGpu:
    """A plan compiled, its buffers on the device; `tune`: its products' algorithms are chosen by time.

    Raises as `launch.prepare` does, UsageError without a GPU.
    """

    def __init__(self, made: BertPlan, feeds: Mapping[str, Array], device: Device, *, tune: bool = True) -> None:
        start = time.perf_counter()
        self.made, self.device = made, device
        device.use()
        prepared = launch.prepare(made.plan.steps, launch.itemsizes_of(made.plan.buffers), Options(tune=tune), device)
        self.placed: Placed = prepared.place(made.arrays(feeds))
        self.placed.launch()
        device.synchronize()
        self.build_s = time.perf_counter() - start

    @property
    def memory_bytes(self) -> int:
        return self.placed.buffers.nbytes

    def times(self, seconds: float, *, graph: bool) -> list[float]:
        """Nanoseconds of each run of the whole plan: as a CUDA graph, or launch by launch from this process."""
        return times(self.device, self.placed.bound, seconds, graph=graph)

    def operation_times(self, seconds: float) -> dict[str, float]:
        """Nanoseconds that all operations of a name take together, each name as a CUDA graph of its own."""
        calls: dict[str, list[launch.Call]] = {}
        for operation in self.made.operations:
            calls.setdefault(operation.name, []).extend(self.placed.bound.calls[step] for step in operation.steps)
        return {name: float(np.median(times(self.device, Bound(self.device, tuple(some)), seconds, graph=True)))
                for name, some in calls.items()}  # fmt: skip

    def read(self) -> dict[str, Array]:
        """The outputs as one run leaves them."""
        self.placed.launch()
        self.device.synchronize()
        made = {}
        for buffer in self.made.plan.buffers:
            if buffer.role == "out":
                made[buffer.name] = np.empty(buffer.shape, numbers.storage(buffer.dtype))
                self.device.read(self.placed.buffers.addresses[buffer.name], made[buffer.name])
        return made


def times(device: Device, bound: Bound, seconds: float, *, graph: bool) -> list[float]:
    """Nanoseconds of each run, between two events. The host waits only when all are launched."""
    stream = device.stream()
    if graph:
        recorded = bound.graph()
        return time_calls(device, lambda: recorded.launch(stream.handle), stream.handle, seconds)
    return time_calls(device, lambda: bound.launch(stream.handle), stream.handle, seconds)


def time_calls(device: Device, call: Callable[[], Any], stream: int, seconds: float) -> list[float]:
    """The same of anything that is launched on a stream: about `seconds` of it, after a warm-up."""
    until = time.perf_counter() + WARM_UP_S
    latest = _between(device, call, stream)
    while time.perf_counter() < until:
        latest = _between(device, call, stream)
    count = max(FEWEST, min(MOST, round(seconds * 1e9 / max(1.0, latest))))
    pairs = [(Event(device), Event(device)) for _ in range(count)]
    for start, end in pairs:
        start.record(stream)
        call()
        end.record(stream)
    return [end.since_ns(start) for start, end in pairs]


def time_here(call: Callable[[], Any], seconds: float) -> list[float]:
    """Nanoseconds of each call on this processor, which was warmed up before: about `seconds` of them."""
    found: list[float] = []
    until = time.perf_counter() + seconds
    while len(found) < FEWEST_HERE or (time.perf_counter() < until and len(found) < MOST):
        start = time.perf_counter_ns()
        call()
        found.append(time.perf_counter_ns() - start)
    return found


def _between(device: Device, call: Callable[[], Any], stream: int) -> float:
    start, end = Event(device), Event(device)
    start.record(stream)
    call()
    end.record(stream)
    return end.since_ns(start)
