"""Measure inference from inside the process: each iteration by itself, many in a row, each layer, as trtexec does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from harness import ranges
from harness.engines.profiler import LayerTime
from harness.engines.runner import Column, Runner, Timed
from harness.errors import UsageError

Tell = Callable[[str], None]
PERCENTS = (90, 95, 99)
COLUMNS = ("enqueue_ns", "h2d_ns", "compute_ns", "d2h_ns", "latency_ns")
LEAST = 5  # iterations that are measured however long each takes
MEASURE = "measure"  # the range around all measured iterations: what a tool captures


@dataclass(frozen=True)
class Schedule:
    """How often: inferences that are thrown away, that are measured one by one, in a row, and layer by layer."""

    warmup: int = 10
    iterations: int = 100
    burst: int | None = None  # None: as many as iterations; 0: leave throughput out
    layer_iterations: int = 20  # 0: leave layers out
    seconds: float | None = None  # for all of it; what would take longer is done less often

    def __post_init__(self) -> None:
        if self.iterations < 1 or self.warmup < 0:
            raise UsageError(
                f"expected at least 1 iteration and 0 for warm-up, got {self.iterations} and {self.warmup}"
            )

    @property
    def in_a_row(self) -> int:
        return self.iterations if self.burst is None else self.burst

    def fitted(self, inference_s: float) -> Schedule:
        """As much of it as fits `seconds` where an inference takes so long, and no less than LEAST iterations."""
        needed_s = inference_s * (self.warmup + self.iterations + self.in_a_row)
        if self.seconds is None or not needed_s > self.seconds:
            return self
        share = self.seconds / needed_s
        least, in_a_row = min(LEAST, self.iterations), min(LEAST, self.in_a_row)
        return replace(
            self, warmup=int(share * self.warmup), iterations=max(least, int(share * self.iterations)),
            burst=max(in_a_row, int(share * self.in_a_row)),
        )  # fmt: skip


@dataclass(frozen=True)
class Measurement:
    """Times of one shape. `columns`: those of the table `iterations`, float64[iterations] in ns, NaN where not known.

    `throughput_qps`: inferences a second where they do not wait for each other. `kernels`: None if not known.
    """

    columns: Mapping[str, Column]
    throughput_qps: float | None = None
    layers: tuple[LayerTime, ...] = ()
    kernels: tuple[str, ...] | None = None

    def statistics(self, column: str = "latency_ns") -> dict[str, float]:
        """Minimum, median, mean, percentiles and maximum in ns; empty where the column is not known."""
        return statistics(self.columns[column])

    def to_json(self) -> dict[str, Any]:
        """JSON values: a column of unknown times is null."""
        columns = {name: None if np.isnan(values).all() else values.tolist() for name, values in self.columns.items()}
        return {
            "iterations": columns, "throughput_qps": self.throughput_qps,
            "layers": [asdict(layer) for layer in self.layers],
            "kernels": None if self.kernels is None else list(self.kernels),
        }  # fmt: skip


def measure(
    runner: Runner, feeds: Mapping[str, np.ndarray], schedule: Schedule, tell: Tell = lambda _: None
) -> Measurement:
    """Bind, warm up, measure iteration by iteration, then in a row, then the layers. The runner must be entered."""
    tell("warming up")
    runner.bind(feeds)
    schedule = _warmed_up(runner, schedule)
    tell(f"measuring {schedule.iterations} iterations")
    columns = loop(runner, schedule.iterations, MEASURE)
    rate = None
    if schedule.in_a_row:
        tell("measuring throughput")
        with ranges.range("throughput"):
            rate = schedule.in_a_row / runner.burst(schedule.in_a_row)
    layers: list[LayerTime] = []
    if schedule.layer_iterations:
        tell("measuring layers")
        with ranges.range("layers"):
            layers = runner.layers(schedule.layer_iterations)
    return Measurement(columns, rate, tuple(layers), runner.kernels())


def _warmed_up(runner: Runner, schedule: Schedule) -> Schedule:
    """Warm up; the schedule as far as the second inference says that there is time for it (the first one makes room)."""
    if schedule.seconds is None:
        loop(runner, schedule.warmup, "warm-up")
        return schedule
    latency_ns = loop(runner, 2, "warm-up")["latency_ns"]
    fitted = schedule.fitted(float(latency_ns[-1]) / 1e9)
    loop(runner, max(0, fitted.warmup - 2), "warm-up")
    return fitted


def loop(runner: Runner, count: int, name: str) -> dict[str, Column]:
    """`count` inferences one after the other inside the range `name`, each in a range of its own; their times."""
    timed, run = prepared(runner, count, name)
    run()
    return timed.columns()


def prepared(runner: Runner, count: int, name: str) -> tuple[Timed, Callable[[], None]]:
    """The loop with all its room made, and what runs it: only what stands in here is between two inferences."""
    timed = runner.timed(count)
    marks = [ranges.prepare(f"inference #{index}" if name == MEASURE else name) for index in range(count)]
    once = timed.once

    def run() -> None:
        with ranges.range(name):
            for index, mark in enumerate(marks):
                with mark:
                    once(index)

    return timed, run


def statistics(values: Column) -> dict[str, float]:
    """Of a series in ns; percentiles by linear interpolation."""
    known = values[~np.isnan(values)]
    if not len(known):
        return {}
    found = {"min": known.min(), "median": np.median(known), "mean": known.mean(), "max": known.max()}
    found |= {f"p{percent}": np.percentile(known, percent) for percent in PERCENTS}
    return {name: float(value) for name, value in found.items()}


@dataclass(frozen=True)
class Layer:
    """Statistics of one layer, in ns."""

    layer: str
    total_ns: float
    mean_ns: float
    median_ns: float


def summarise(layers: tuple[LayerTime, ...]) -> list[Layer]:
    """In the order of execution."""
    rows = []
    for layer in layers:
        times = np.array(layer.times_ns)
        rows.append(Layer(layer.layer, float(times.sum()), float(times.mean()), float(np.median(times))))
    return rows
