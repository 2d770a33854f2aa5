"""How long steps take on the GPU: CUDA graphs of many launches, inputs rotated past the L2 cache, medians and spread.

A launch by itself takes the host longer than many a kernel takes the GPU, and a buffer that was just used is still in the
cache: so launches are replayed from a graph, and each works on another copy of the buffers, of which there are twice as
many bytes as the cache holds. The gaps between the graph's kernels are part of what is measured. Where the buffers
happen to lie in memory can matter more than what a kernel does differently (29 and 34 us for the same one on an H100), so
they are placed anew several times, and the median of the placements is told.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from harness.cuda import device as gpu
from harness.cuda.buffers import Array
from harness.cuda.device import Device, Event, Stream
from harness.cuda.launch import Bound, Options, Placed, Prepared, itemsizes_of, prepare, record
from harness.errors import UsageError
from kernels.plan import Step

GRAPH_NS = 2e6  # one replay lasts at least this long: events resolve half a microsecond
MOST_LAUNCHES = 4000  # nodes of a graph; more take long to record
FEWEST_REPLAYS, MOST_REPLAYS = 15, 2000
WARM_UP_S = 0.1  # until the clocks have risen
MEMORY_SHARE = 0.5  # of the free memory, for copies of the buffers
SPACER_BYTES = 6 << 20  # in front of a placement, once more each time: no multiple of what a page holds


@dataclass(frozen=True)
class Effort:
    """How much is to be measured: about `seconds` of replays over so many `placements` of the buffers.

    `sets` of buffers are rotated, None for as many as the cache asks for.
    """

    seconds: float = 0.5
    sets: int | None = None
    placements: int = 3


@dataclass(frozen=True)
class Timing:
    """Nanoseconds an iteration (all steps once), over the replays, and how they were measured.

    `median_ns` is the median of the placements' medians, `placements_ns`; `p10_ns` and `p90_ns` are the spread of all
    replays. `sets` is the number of copies of the buffers, of `set_bytes` each; `cold` says whether together they are
    twice the cache or more.
    """

    median_ns: float
    mean_ns: float
    min_ns: float
    p10_ns: float
    p90_ns: float
    replays: int
    iterations_per_replay: int
    sets: int
    set_bytes: int
    l2_bytes: int
    placements_ns: tuple[float, ...] = ()

    @property
    def cold(self) -> bool:
        return self.sets * self.set_bytes >= 2 * self.l2_bytes

    def as_record(self) -> dict[str, Any]:
        return {**asdict(self), "cold": self.cold}


def measure(
    steps: Sequence[Step], arrays: Mapping[str, Array], *, options: Options | None = None,
    effort: Effort = Effort(), device: Device | None = None,
) -> Timing:  # fmt: skip
    """Time steps on copies of `arrays`, whose contents the kernels should see in earnest (zeros run faster).

    cuBLASLt's algorithms are chosen by time unless `options` say otherwise. Raises UsageError without a GPU.
    """
    device = device or gpu.get()
    prepared = prepare(steps, itemsizes_of(arrays), options or Options(tune=True), device)
    return measure_prepared(prepared, arrays, effort=effort)


def measure_prepared(prepared: Prepared, arrays: Mapping[str, Array], *, effort: Effort = Effort()) -> Timing:
    """Time steps that are prepared already; as `measure`."""
    device = prepared.device
    device.use()
    set_bytes = sum(array.nbytes for array in arrays.values())
    sets = effort.sets or rotation(set_bytes, device.facts.l2_bytes, device.free_bytes())
    repeats = _repeats(device, [prepared.place(arrays) for _ in range(sets)])
    seconds = effort.seconds / effort.placements
    times = []
    for number in range(effort.placements):
        spacers = [device.allocate(SPACER_BYTES) for _ in range(number)]
        placed = [prepared.place(arrays) for _ in range(sets)]
        for spacer in spacers:
            spacer.free()
        times.append(_replayed(device, placed, repeats, seconds))
        del placed  # before the next are placed
    return _summary(times, repeats, sets, set_bytes, device.facts.l2_bytes)


def _repeats(device: Device, placed: Sequence[Placed]) -> int:
    """How many iterations one replay is to have, as one round over the sets takes."""
    _warm(placed)
    replay, stream = _replayer(device, [one.bound for one in placed], len(placed))
    replay()  # the first of a graph also uploads it
    round_ns = _between(device, replay, stream.handle)
    return iterations(round_ns / len(placed), len(placed[0].bound.calls), len(placed))


def _replayed(device: Device, placed: Sequence[Placed], repeats: int, seconds: float) -> list[float]:
    """Nanoseconds an iteration, of each replay."""
    _warm(placed)
    replay, stream = _replayer(device, [one.bound for one in placed], repeats)
    return [taken / repeats for taken in _timed(device, replay, stream.handle, seconds)]


def time_callable(
    call: Callable[[], None], *, iterations: int = 1, stream: int = 0, sets: int = 1, set_bytes: int = 0,
    seconds: float = 0.5, device: Device | None = None,
) -> Timing:  # fmt: skip
    """Time what somebody else launches: `call` does `iterations` of it on `stream` (the replay of a peer's graph).

    `sets` and `set_bytes` say how its inputs were rotated, and are only recorded. Raises UsageError without a GPU.
    """
    device = device or gpu.get()
    device.use()
    times = _timed(device, call, stream, seconds)
    return _summary([[taken / iterations for taken in times]], iterations, sets, set_bytes, device.facts.l2_bytes)


def time_torch(
    torch: Any, function: Callable[..., Any], inputs: Sequence[Sequence[Any]], *, seconds: float = 0.5
) -> Timing:
    """Time a PyTorch function the same way: a graph of one call for each of `inputs` (tuples of tensors on the GPU).

    `torch` is the module, handed in by whoever has it. Give as many inputs as `rotation` says.
    """
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):  # libraries choose their algorithms, torch.compile compiles
            for one in inputs:
                function(*one)
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        kept = [function(*one) for one in inputs]  # outputs stay apart, or the allocator would give one place to all
    set_bytes = _tensor_bytes(inputs[0]) + _tensor_bytes([kept[0]])
    with torch.cuda.stream(side):
        return time_callable(graph.replay, iterations=len(inputs), stream=side.cuda_stream, sets=len(inputs),
                             set_bytes=set_bytes, seconds=seconds)  # fmt: skip


def rotation(set_bytes: int, l2_bytes: int, free_bytes: int) -> int:
    """How many copies of the buffers to rotate through: twice the cache's bytes or more, as far as memory goes."""
    wanted = math.ceil(2 * l2_bytes / max(1, set_bytes)) + 1
    possible = int(free_bytes * MEMORY_SHARE / max(1, set_bytes))
    if possible < 1:
        raise UsageError(f"the buffers take {set_bytes} bytes, {free_bytes} are free on the GPU")
    return max(1, min(wanted, possible, MOST_LAUNCHES))


def iterations(iteration_ns: float, steps: int, sets: int) -> int:
    """Iterations of one graph: at least 2 ms, every set the same number of times, not too many launches."""
    rounds = math.ceil(GRAPH_NS / max(1.0, iteration_ns) / sets)
    most = max(1, MOST_LAUNCHES // max(1, steps * sets))
    return sets * max(1, min(rounds, most))


def replays(replay_ns: float, seconds: float) -> int:
    """Replays that take about so long, within bounds that a median needs."""
    return max(FEWEST_REPLAYS, min(MOST_REPLAYS, round(seconds * 1e9 / max(1.0, replay_ns))))


def _warm(placed: Sequence[Placed]) -> None:
    """Run every set once, outside any graph: code is loaded, an error shows where it is made."""
    for one in placed:
        one.launch()
    placed[0].bound.device.synchronize()


def _replayer(device: Device, bound: Sequence[Bound], repeats: int) -> tuple[Callable[[], None], Stream]:
    """A function that replays a graph of so many iterations, taking the sets in turns, and the stream it does it on."""
    graph, stream = record(device, [bound[number % len(bound)] for number in range(repeats)]), device.stream()
    return lambda: graph.launch(stream.handle), stream


def _timed(device: Device, call: Callable[[], None], stream: int, seconds: float) -> list[float]:
    """Nanoseconds of each call, between events, after a warm-up; the host waits only when all are launched."""
    until = time.perf_counter() + WARM_UP_S
    latest = _between(device, call, stream)
    while time.perf_counter() < until:
        latest = _between(device, call, stream)
    pairs = [(Event(device), Event(device)) for _ in range(replays(latest, seconds))]
    for start, end in pairs:
        start.record(stream)
        call()
        end.record(stream)
    return [end.since_ns(start) for start, end in pairs]


def _between(device: Device, call: Callable[[], None], stream: int) -> float:
    start, end = Event(device), Event(device)
    start.record(stream)
    call()
    end.record(stream)
    return end.since_ns(start)


def _summary(placements: Sequence[Sequence[float]], repeats: int, sets: int, set_bytes: int, l2_bytes: int) -> Timing:
    """The statistics of replays by placement, given in nanoseconds of one iteration each."""
    medians = tuple(float(np.median(times)) for times in placements)
    times = np.concatenate(placements)
    p10, p90 = (float(value) for value in np.percentile(times, (10, 90)))
    return Timing(float(np.median(medians)), float(times.mean()), float(times.min()), p10, p90, len(times), repeats, sets,
                  set_bytes, l2_bytes, medians)  # fmt: skip


def _tensor_bytes(values: Sequence[Any]) -> int:
    return sum(value.numel() * value.element_size() for value in values if hasattr(value, "element_size"))
