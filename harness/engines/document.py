"""Measurements as JSON documents: what was measured, how, on what, and every number, for `probe report` to read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from onnx import helper

from harness import ranges
from harness.cuda import device
from harness.engine import Engine, facts
from harness.engines import measuring
from harness.engines import sweep as engine_sweep
from harness.engines.measuring import Measurement, Schedule
from harness.engines.runner import Runner, RunOptions, Tensor
from harness.engines.sweep import Step, Sweep

SCHEMA = 1
ROUNDS = 2  # of a sweep where latency alone tells of changes: what only one round shows is noise
Tell = Callable[[str], None]
Feeds = Mapping[str, np.ndarray]
Keep = Callable[[Callable[[], dict[str, Any]]], None]

HOW_CPU = "in this process: wall time of each run"
HOW_GPU = "in this process, by CUDA events: trtexec's phases, without a trtexec"


@dataclass(frozen=True)
class Asked:
    """What is measured: an engine, the sample that it is fed (arrays by input name), and how often."""

    engine: Engine
    feeds: Feeds
    schedule: Schedule = field(default_factory=Schedule)
    run: RunOptions = RunOptions()  # noqa: RUF009


def measurement(asked: Asked, tell: Tell = lambda _: None) -> dict[str, Any]:
    """One shape: iterations, throughput, layers, and what the inspector says of the layers."""
    before = clocks(asked.engine)
    with asked.engine.runner(asked.run) as runner:
        made = measuring.measure(runner, asked.feeds, asked.schedule, tell)
        information, notes = runner.layer_information(), runner.notes
    summary = measuring.summarise(made.layers)
    return {
        **_head("measurement", asked, before, notes), "shapes": shapes_of(asked.feeds), **made.to_json(),
        "layers": [asdict(layer) for layer in summary], "layer_information": information,
    }  # fmt: skip


def sweep(
    asked: Asked, wanted: Sweep, inputs: Sequence[onnx.ValueInfoProto], tell: Tell = lambda _: None,
    keep: Keep = lambda _: None,
) -> dict[str, Any]:  # fmt: skip
    """Every shape of a sweep, with one engine in one process: latency, throughput, and where something changed.

    The feeds are those of the sample, cut or repeated along the dimensions that are swept. After each shape `keep` is
    given the way to the document so far, so that what was measured outlives an interruption.
    """
    before = clocks(asked.engine)
    rounds = ROUNDS if asked.engine.backend.startswith("ort") else 1
    schedule = replace(asked.schedule, iterations=-(-asked.schedule.iterations // rounds))
    measured: list[list[_Point]] = [[] for _ in range(rounds)]
    with asked.engine.runner(asked.run) as runner:
        for points in measured:
            for point in _points(runner, asked, schedule, wanted, inputs, tell):
                points.append(point)
                keep(lambda: _swept(asked, wanted, before, measured))
    return _swept(asked, wanted, before, measured)


def _swept(
    asked: Asked, wanted: Sweep, before: dict[str, Any] | None, measured: Sequence[Sequence[_Point]]
) -> dict[str, Any]:
    """The document of the rounds that are whole, or of the first as far as it came."""
    whole = [points for points in measured if len(points) == len(wanted.sizes)] or measured[:1]
    points = [one.joined(others) for one, *others in zip(*whole, strict=True)]
    kind, found = steps(points)
    missing = "" if len(points) == len(wanted.sizes) else f"stopped after {len(points)} of {len(wanted.sizes)} shapes"
    return {
        **_head("sweep", asked, before, (missing,) if missing else ()), "sweep": str(wanted), "steps_by": kind,
        "points": [one.to_json(step) for one, step in zip(points, found, strict=True)],
    }  # fmt: skip


def clocks(engine: Engine) -> dict[str, Any] | None:
    """How the GPU's clocks stand; None where the engine does not run on one."""
    return None if engine.backend == "ort-cpu" else device.clock_state(device.get())


def _head(kind: str, asked: Asked, before: dict[str, Any] | None, notes: tuple[str, ...] = ()) -> dict[str, Any]:
    engine = asked.engine
    return {
        "probe": kind, "schema": SCHEMA, "how": HOW_CPU if engine.backend.startswith("ort") else HOW_GPU,
        "model": engine.name, "facts": facts(engine.backend), "build": {**engine.facts, "notes": list(engine.notes)},
        "precision": engine.options.precision, "schedule": asdict(asked.schedule),
        "cuda_graph": asked.run.cuda_graph, "transfers": asked.run.transfers,
        "clocks": None if before is None else {"before": before, "after": clocks(engine)},
        "notes": [*engine.notes, *notes],
    }  # fmt: skip


def shapes_of(feeds: Feeds) -> dict[str, list[int]]:
    return {name: list(array.shape) for name, array in feeds.items()}


# The sweep


@dataclass(frozen=True)
class _Point:
    """One shape of a sweep."""

    size: int
    shapes: dict[str, list[int]]
    rounds: tuple[Measurement, ...]
    tactics: tuple[str, ...] | None

    def joined(self, others: Iterable[_Point]) -> _Point:
        return replace(self, rounds=(*self.rounds, *(one for other in others for one in other.rounds)))

    @property
    def kernels(self) -> tuple[str, ...] | None:
        return self.rounds[0].kernels

    def to_json(self, step: Step | None) -> dict[str, Any]:
        columns = {name: np.concatenate([one.columns[name] for one in self.rounds]) for name in measuring.COLUMNS}
        rates = [one.throughput_qps for one in self.rounds if one.throughput_qps is not None]
        return {
            "size": self.size, "shapes": self.shapes, "throughput_qps": float(np.mean(rates)) if rates else None,
            "iterations": len(columns["latency_ns"]),
            **{name: found for name, values in columns.items() if (found := measuring.statistics(values))},
            "kernels": None if self.kernels is None else list(self.kernels),
            "step": None if step is None else asdict(step),
        }  # fmt: skip


def _points(
    runner: Runner, asked: Asked, schedule: Schedule, wanted: Sweep, inputs: Sequence[onnx.ValueInfoProto], tell: Tell
) -> Iterator[_Point]:
    given = {name: array.shape for name, array in asked.feeds.items()}
    for number, size in enumerate(wanted.sizes, 1):
        shapes = engine_sweep.shapes_at(wanted, inputs, given, size)
        feeds = {name: resized(array, shapes[name]) for name, array in asked.feeds.items()}
        tell(f"{wanted.input}:{wanted.axis}={size}, {number} of {len(wanted.sizes)}")
        with ranges.range(f"sweep {wanted.input}:{wanted.axis}={size}"):
            made = measuring.measure(runner, feeds, schedule)
        tactics = None if made.kernels is not None else tactics_of(runner.layer_information())
        yield _Point(size, shapes_of(feeds), (made,), tactics)


def resized(array: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """The array cut, or repeated from its start, along every axis whose size differs."""
    for axis, size in enumerate(shape):
        if array.shape[axis] != size:
            array = np.take(array, np.arange(size) % array.shape[axis], axis=axis)
    return array


def steps(points: Sequence[_Point]) -> tuple[str, list[Step | None]]:
    """How changes were looked for, by the best that is known of every shape, and the steps."""
    for kind, names in (("kernels", [one.kernels for one in points]), ("tactics", [one.tactics for one in points])):
        if all(known is not None for known in names):
            return kind, engine_sweep.steps_by_name(names, kind)
    sizes = [one.size for one in points]
    by_round = [
        _steps_by_latency(sizes, [one.rounds[number] for one in points]) for number in range(len(points[0].rounds))
    ]
    return "latency", engine_sweep.agreed(by_round)


def _steps_by_latency(sizes: Sequence[int], measured: Sequence[Measurement]) -> list[Step | None]:
    latencies = [one.columns["latency_ns"] for one in measured]
    medians = [float(np.median(values)) for values in latencies]
    return engine_sweep.steps_by_latency(sizes, medians, list(map(engine_sweep.median_error, latencies)))


def tactics_of(information: str | None) -> tuple[str, ...] | None:
    """`layer: tactic` of each layer in the inspector's JSON; None if it names no tactic."""
    try:
        layers = json.loads(information or "{}").get("Layers") or ()
    except ValueError:  # TensorRT does not escape what it quotes
        return None
    named = [layer for layer in layers if isinstance(layer, dict)]
    found = [
        f"{one.get('Name')}: {tactic}" for one in named if (tactic := one.get("TacticName") or one.get("TacticValue"))
    ]
    return tuple(found) or None


def value_infos(tensors: Sequence[Tensor]) -> list[onnx.ValueInfoProto]:
    """Inputs of an engine as ONNX would declare them: what the modules that draw and check samples work on."""
    return [
        helper.make_tensor_value_info(
            tensor.name, helper.np_dtype_to_tensor_dtype(tensor.dtype),
            [size if size >= 0 else None for size in tensor.shape],
        ) for tensor in tensors
    ]  # fmt: skip
