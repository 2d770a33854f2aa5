"""TensorRT's callbacks: the time of each layer (IProfiler) and how far a build is (IProgressMonitor)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

MS = 1e6  # in ns


@dataclass(frozen=True)
class LayerTime:
    """Durations of one layer in ns, one for each inference. Names may repeat within an engine."""

    layer: str
    times_ns: tuple[float, ...]


class LayerTimes:
    """Collects what TensorRT reports; hand `profiler` to an execution context and say when an inference begins."""

    def __init__(self, trt: ModuleType) -> None:
        self._runs: list[list[tuple[str, float]]] = []
        self.profiler = _profiler(trt, self._runs)

    def begin(self) -> None:
        self._runs.append([])

    def layers(self) -> list[LayerTime]:
        """One entry a layer, in the order of execution; runs whose layers differ from the first one's are left out."""
        return by_position(self._runs)


def by_position(runs: Sequence[Sequence[tuple[str, float]]]) -> list[LayerTime]:
    """(name, milliseconds) of each layer, run by run -> layers; by place, since names may repeat."""
    runs = [run for run in runs if run]
    if not runs:
        return []
    names = [name for name, _ in runs[0]]
    same = [run for run in runs if [name for name, _ in run] == names]
    times = np.array([[time for _, time in run] for run in same], dtype=np.float64) * MS
    return [LayerTime(name, tuple(times[:, at].tolist())) for at, name in enumerate(names)]


def _profiler(trt: ModuleType, runs: list[list[tuple[str, float]]]) -> Any:
    class Profiler(trt.IProfiler):  # type: ignore[misc, name-defined]  # the base is known at run time only
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            if runs:
                runs[-1].append((layer_name, ms))

    return Profiler()


def progress_monitor(trt: ModuleType, tell: Callable[[str], None]) -> Any:
    """Says the phase a build is in and how many of its steps are done; a `tell` that raises cancels the build."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}
            self.stopped: BaseException | None = None

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.steps[phase_name] = num_steps
            self._say(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return self._say(f"{phase_name}, {step + 1} of {self.steps.get(phase_name, step + 1)}")

        def phase_finish(self, phase_name: str) -> None:
            self.steps.pop(phase_name, None)

        def _say(self, text: str) -> bool:
            """An exception must not reach TensorRT: it would end the process."""
            if self.stopped is None:
                try:
                    tell(f"building: {text}")
                except BaseException as error:  # noqa: BLE001
                    self.stopped = error
            return self.stopped is None

    return Monitor()
