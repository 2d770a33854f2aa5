"""What it means to run an engine, whichever backend it is for: activate, bind inputs, infer, measure."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness.engines.profiler import LayerTime
from harness.errors import UsageError

Arrays = Mapping[str, np.ndarray]
Column = np.ndarray  # float64, one value an iteration, in ns


@dataclass(frozen=True)
class RunOptions:
    """How inference runs. `transfers`: inputs are copied to the device and outputs back in each iteration."""

    cuda_graph: bool = False
    transfers: bool = True
    device: int = 0
    threads: int = 0  # of ONNX Runtime; 0: its own choice
    plugins: tuple[Path, ...] = ()
    opt_profile: int = 0


@dataclass(frozen=True)
class Tensor:
    """An input or output of an engine; -1 stands for a dynamic dimension."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]


class Timed(abc.ABC):
    """Room for the times of a fixed number of inferences, read only after the last, so that reading disturbs none."""

    @abc.abstractmethod
    def once(self, index: int) -> None:
        """One inference, start to end; its times go to row `index`."""

    @abc.abstractmethod
    def columns(self) -> dict[str, Column]:
        """The columns of the table `iterations` less the first, each float64[n] in ns; NaN where not known."""


class Runner(abc.ABC):
    """An engine ready to run while it is entered. Bind inputs first; all else works on what is bound."""

    notes: tuple[str, ...] = ()

    @abc.abstractmethod
    def __enter__(self) -> Runner: ...

    @abc.abstractmethod
    def __exit__(self, *error: object) -> None: ...

    @property
    @abc.abstractmethod
    def inputs(self) -> tuple[Tensor, ...]: ...

    @property
    @abc.abstractmethod
    def outputs(self) -> tuple[Tensor, ...]: ...

    @abc.abstractmethod
    def bind(self, feeds: Arrays) -> None:
        """Set shapes, make room, take the inputs over. Raises UsageError if they do not fit, LaunchFailed from CUDA."""

    @abc.abstractmethod
    def run(self) -> dict[str, np.ndarray]:
        """One inference on what is bound; the outputs by name."""

    @abc.abstractmethod
    def timed(self, count: int) -> Timed:
        """Room for `count` inferences."""

    @abc.abstractmethod
    def burst(self, count: int) -> float:
        """Seconds that `count` inferences take that do not wait for each other."""

    @abc.abstractmethod
    def layers(self, count: int) -> list[LayerTime]:
        """Times of each layer over `count` inferences, in a pass of its own: profiling changes the timing.

        Empty where the backend tells no times of layers in this way.
        """

    def kernels(self) -> tuple[str, ...] | None:
        """Names of the kernels of one inference; None if that is not known."""
        return None

    def layer_information(self) -> str | None:
        """What the inspector says of the engine, as JSON text; None if there is no inspector."""
        return None

    def infer(self, feeds: Arrays) -> dict[str, np.ndarray]:
        """Bind and run."""
        self.bind(feeds)
        return self.run()


def fitted(tensor: Tensor, feeds: Arrays) -> np.ndarray:
    """The array for an input in C order and in the engine's type: int64 becomes int32 where nothing is lost."""
    if tensor.name not in feeds:
        raise UsageError(f"no array for input {tensor.name!r}; got {sorted(feeds)}")
    array = np.ascontiguousarray(feeds[tensor.name]).reshape(feeds[tensor.name].shape)  # a scalar stays one
    if array.dtype != tensor.dtype:
        if array.dtype != np.int64 or tensor.dtype != np.int32:
            raise UsageError(f"input {tensor.name!r}: expected dtype {tensor.dtype}, got {array.dtype}",
                             hint=f"store it with .astype('{tensor.dtype}')")  # fmt: skip
        limits = np.iinfo(np.int32)
        if array.size and (array.min() < limits.min or array.max() > limits.max):
            raise UsageError(f"input {tensor.name!r}: the engine takes int32, and there are values beyond it")
        array = array.astype(np.int32)
    sizes: tuple[int, ...] = array.shape
    wanted = tensor.shape
    if len(wanted) != len(sizes) or any(want not in (-1, size) for want, size in zip(wanted, sizes, strict=True)):
        raise UsageError(f"input {tensor.name!r}: expected shape {text(tensor.shape)}, got {text(array.shape)}")
    return array


def check_bounds(name: str, shape: tuple[int, ...], bounds: tuple[tuple[int, ...], ...]) -> None:
    """Raise UsageError if a shape lies outside the opt_profile (least, optimal, greatest) that the engine was built for."""
    least, _, greatest = bounds
    if len(shape) != len(least) or any(not a <= b <= c for a, b, c in zip(least, shape, greatest, strict=True)):
        raise UsageError(
            f"input {name!r}: shape {text(shape)} lies outside the opt_profile: least {text(least)}, "
            f"greatest {text(greatest)}",
            hint="build the engine with an opt_profile that holds this shape (--min, --opt, --max)",
        )


def text(shape: tuple[int, ...]) -> str:
    return "x".join("?" if size < 0 else str(size) for size in shape) or "scalar"
