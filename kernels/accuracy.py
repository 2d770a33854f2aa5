"""How far outputs lie from float64, in units of what their dtype explains."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from kernels import numbers
from kernels.numbers import Reals


@dataclass(frozen=True)
class Accuracy:
    """The worst element of one output. `share` is its error in units of its bound: right up to 1, infinite for NaN or
    infinity where a number was expected; `error` is the largest absolute error of those that are finite."""

    output: str
    share: float
    error: float
    where: tuple[int, ...]
    expected: float
    got: float

    @property
    def right(self) -> bool:
        return self.share <= 1.0


def judge(output: str, got: Reals, expected: Reals, bound: Reals, dtype: str) -> Accuracy:
    """Compare decoded outputs with float64 ones, element by element.

    NaN is right where NaN is expected, infinity where the number expected does not fit the dtype, or nearly so.
    """
    if got.shape != expected.shape:
        raise ValueError(f"{output}: expected shape {expected.shape}, got {got.shape}")
    with np.errstate(invalid="ignore"):
        error = np.abs(got - expected)
        share = error / np.maximum(bound, np.finfo(np.float64).tiny)
    share = np.where(np.isfinite(share), share, math.inf)
    share = np.where(_excused(got, expected, bound, dtype), 0.0, share)
    place = np.unravel_index(int(np.argmax(share)), share.shape)
    finite = error[np.isfinite(error)]
    return Accuracy(output, float(share[place]), float(finite.max(initial=0.0)), tuple(int(i) for i in place),
                    float(expected[place]), float(got[place]))  # fmt: skip


def _excused(got: Reals, expected: Reals, bound: Reals, dtype: str) -> np.ndarray:
    nan = np.isnan(got) & np.isnan(expected)
    if dtype not in numbers.FORMATS:
        return nan
    form = numbers.FORMATS[dtype]
    overflows = np.abs(expected) + bound >= form.largest * (1 + form.roundoff / 2)
    return np.asarray(nan | (np.isinf(got) & (np.sign(got) == np.sign(expected)) & overflows))
