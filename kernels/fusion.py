"""The fusion exercise: D = A[10:165, 20:220] * B; C = C / C.max(); E = D * C, in five kernels, three, two streams, one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kernels.parts import CUDA
from kernels.plan import Argument, Extent, Launch, Pointer

SOURCE = CUDA / "fusion.cu"
ROW, COLUMN, WIDTH = 10, 20, 250
ROWS, COLUMNS = 155, 200
COUNT = ROWS * COLUMNS
THREADS, MOST_THREADS = 256, 1024
CUT = (ROW, COLUMN, WIDTH, COLUMNS, COUNT)  # the last parameters of a kernel that reads the slice


@dataclass(frozen=True)
class Level:
    """Launches in order; those of `beside` run on a second stream, beside the first of `steps`."""

    name: str
    steps: tuple[Launch, ...]
    beside: tuple[Launch, ...] = ()

    @property
    def in_order(self) -> tuple[Launch, ...]:
        return (*self.beside, *self.steps)


def _launch(entry: str, *arguments: str | int, grid: int = 0, threads: int = THREADS) -> Launch:
    """Strings are buffers; the grid covers all elements unless given."""
    held: tuple[Argument, ...] = tuple(Pointer(a) if isinstance(a, str) else np.int32(a) for a in arguments)
    extent: Extent = (grid or -(-COUNT // threads), 1, 1)
    return Launch(SOURCE, entry, extent, (threads, 1, 1), held)


MAXIMUM = _launch("maximum", "c", "most", COUNT, grid=1, threads=MOST_THREADS)
SLICE_MULTIPLY = _launch("slice_multiply", "a", "b", "d", *CUT)
LAST = _launch("divide_multiply", "d", "c", "most", "e", COUNT)

LEVELS = (
    Level("5 kernels", (
        _launch("slice", "a", "cut", *CUT), _launch("multiply", "cut", "b", "d", COUNT), MAXIMUM,
        _launch("divide", "c", "most", "scaled", COUNT), _launch("multiply", "d", "scaled", "e", COUNT),
    )),
    Level("3 kernels", (SLICE_MULTIPLY, MAXIMUM, LAST)),
    Level("3 kernels, 2 streams", (SLICE_MULTIPLY, LAST), (MAXIMUM,)),
    Level("1 kernel", (_launch("all_in_one", "a", "b", "c", "e", *CUT, threads=MOST_THREADS),)),
)  # fmt: skip


def arrays(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Inputs, and poison in all that is to be written."""
    made = {"a": rng.normal(size=(200, WIDTH)), "b": rng.normal(size=(ROWS, COLUMNS)),
            "c": rng.normal(size=(ROWS, COLUMNS))}  # fmt: skip
    made |= {name: np.full((ROWS, COLUMNS), np.nan) for name in ("cut", "d", "scaled", "e")} | {
        "most": np.full(1, np.nan)
    }
    return {name: array.astype(np.float32) for name, array in made.items()}


def expected(given: dict[str, np.ndarray]) -> np.ndarray:
    """E in float64."""
    a, b, c = (given[name].astype(np.float64) for name in "abc")
    return np.asarray(a[ROW : ROW + ROWS, COLUMN : COLUMN + COLUMNS] * b * (c / c.max()))


def worst_error(got: np.ndarray, wanted: np.ndarray) -> float:
    """Largest relative error, in units of float32's rounding (2^-24); three or four roundings are to be expected."""
    return float(np.max(np.abs(got - wanted) / np.abs(wanted)) * 2**24)
