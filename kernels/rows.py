"""How rows of a layernorm are spread over threads, and what float32 statistics may cost in accuracy."""

from __future__ import annotations

import numpy as np

from kernels import numbers
from kernels.numbers import Reals
from kernels.parts import EPS32, WARP, ceil_div
from kernels.plan import Extent

FEW, MANY = 8, 32  # values in a thread's registers, as in layernorm.cuh
MOST_THREADS = 512  # of a block, as the kernels' launch bounds have it
ROWS_PER_BLOCK = 4  # where a row is a warp's
FEW_ROWS = 1024  # less than this do not fill a GPU: then more threads share a row


def spread(rows: int, hidden: int) -> tuple[Extent, Extent]:
    """Grid and block: a warp a row where the row fits in its registers, else a block a row."""
    if hidden <= WARP * (FEW if rows < FEW_ROWS else MANY):
        return (ceil_div(rows, ROWS_PER_BLOCK), 1, 1), (WARP, ROWS_PER_BLOCK, 1)
    values = FEW if rows < FEW_ROWS and hidden <= FEW * MOST_THREADS else MANY
    threads = min(MOST_THREADS, WARP * ceil_div(hidden, WARP * values))
    return (rows, 1, 1), (threads, 1, 1)


def norm_bound(terms: Reals, x: Reals, gamma: Reals, expected: Reals, epsilon: float) -> Reals:
    """Largest error of a float32 layernorm before its last rounding.

    `x` [..., E] are the rows, each a sum whose terms have magnitudes that add up to `terms` [..., E]: rounding that sum
    is what a large mean beside a small variance suffers from, however the moments are found.
    """
    std = np.sqrt(x.var(axis=-1, keepdims=True) + epsilon)
    rounding = 2 * EPS32 * terms / std
    typical = rounding.mean(axis=-1, keepdims=True)
    normalised = np.abs(x - x.mean(axis=-1, keepdims=True)) / std
    error = np.abs(gamma) * (rounding + typical + normalised * (typical + 32 * EPS32))
    return np.asarray(error + 4 * EPS32 * np.abs(expected) + 4 * EPS32 * np.abs(gamma) * normalised)


def rounded(error: Reals, expected: Reals, dtype: str) -> Reals:
    """The bound once the result has been rounded to its dtype."""
    return error + numbers.rounding(np.abs(expected) + error, dtype)
