"""The fusion exercise, step by step: each level checked against float64, and timed by the harness where there is a GPU.

python -m examples.fusion.ladder [--emulate]
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness import emulated
from harness.errors import UsageError
from kernels.plan import Argument, Extent, Launch, Pointer

SOURCE = Path(__file__).parent / "fusion.cu"
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


def emulate(level: Level, given: dict[str, np.ndarray], checks: str = "none") -> tuple[np.ndarray, int]:
    """E by the emulation, and how many findings it had."""
    done = emulated.run(level.in_order, given, checks=checks)
    return done.arrays["e"], len(done.findings)


def measure(level: Level, given: dict[str, np.ndarray], seconds: float = 0.5) -> tuple[np.ndarray, float]:
    """E by the GPU, and the median of nanoseconds that a replay of the level's CUDA graph takes."""
    from harness import device as gpu
    from harness import timing
    from harness.launch import itemsizes_of, prepare

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--emulate", action="store_true", help="only check, on the CPU")
    parser.add_argument("--seed", type=int)
    options = parser.parse_args()
    given = arrays(np.random.default_rng(options.seed))
    wanted = expected(given)
    on_gpu = not options.emulate
    for level in LEVELS:
        if on_gpu:
            try:
                got, nanoseconds = measure(level, given)
                print(f"{level.name:22} {nanoseconds / 1e3:8.2f} us   error {worst_error(got, wanted):.2f} roundings")
                continue
            except UsageError as error:
                print(f"{error}: on the emulation instead, without times")
                on_gpu = False
        got, findings = emulate(level, given, checks="all")
        print(f"{level.name:22} error {worst_error(got, wanted):.2f} roundings, {findings} findings")


if __name__ == "__main__":
    main()
