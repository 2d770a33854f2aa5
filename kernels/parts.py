"""What the operations' modules share: sources, names of entry points, grids, random inputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kernels import numbers
from kernels.numbers import Reals

CUDA = Path(__file__).parent / "cuda"
SUFFIX = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "int8": "s8"}  # of entry points
FLOATS = ("float32", "float16", "bfloat16")
WARP = 32
EPS32 = numbers.FORMATS["float32"].roundoff
MOST_ELEMENTS = 2**31 - 1  # what the kernels' int parameters hold


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def normal(rng: np.random.Generator, shape: tuple[int, ...], dtype: str, *, mean: float = 0.0,
           std: float = 1.0) -> np.ndarray:  # fmt: skip
    """Random numbers as `dtype` stores them."""
    return numbers.encode(rng.normal(mean, std, shape), dtype)


def near_one(rng: np.random.Generator, size: int) -> np.ndarray:
    """float32 [size]: a gamma as training leaves it."""
    return rng.normal(1.0, 0.2, size).astype(np.float32)


def wide(arrays: dict[str, np.ndarray], name: str, dtype: str) -> Reals:
    """An input as float64."""
    return numbers.decode(arrays[name], dtype)


def sum_of(terms: Sequence[Reals]) -> Reals:
    """Terms of different shapes added as NumPy broadcasts them."""
    return np.asarray(np.sum(np.broadcast_arrays(*terms), axis=0))
