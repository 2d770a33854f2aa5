"""Number formats by name: how each is stored in NumPy, rounded to, widened, and how coarse it is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Reals = NDArray[np.float64]


@dataclass(frozen=True)
class Format:
    """A floating-point format: half the distance between 1 and the next number, smallest normal, largest, smallest."""

    roundoff: float
    tiny: float
    largest: float
    subnormal: float


FORMATS = {
    "float64": Format(2.0**-53, 2.0**-1022, float(np.finfo(np.float64).max), 2.0**-1074),
    "float32": Format(2.0**-24, 2.0**-126, float(np.finfo(np.float32).max), 2.0**-149),
    "float16": Format(2.0**-11, 2.0**-14, 65504.0, 2.0**-24),
    "bfloat16": Format(2.0**-8, 2.0**-126, 3.3895313892515355e38, 2.0**-133),
}


def storage(dtype: str) -> np.dtype[np.generic]:
    """NumPy's type that holds the format: uint16 for bfloat16, itself for all else."""
    return np.dtype(np.uint16 if dtype == "bfloat16" else dtype)


def encode(values: np.ndarray, dtype: str) -> np.ndarray:
    """Round to the nearest (ties to even) number of a format, as it is stored; integers also saturate."""
    if dtype == "bfloat16":
        return _to_bfloat16(np.asarray(values, np.float32))
    kind = np.dtype(dtype)
    if kind.kind in "iu":
        limits = np.iinfo(kind)
        return np.asarray(np.clip(np.rint(values), limits.min, limits.max), kind)
    with np.errstate(over="ignore"):
        return np.asarray(values).astype(kind)


def decode(stored: np.ndarray, dtype: str) -> Reals:
    """What is stored, as float64: exact."""
    if dtype == "bfloat16":
        with np.errstate(invalid="ignore"):  # a signalling NaN
            return (stored.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return stored.astype(np.float64)


def rounding(values: Reals, dtype: str) -> Reals:
    """Half the distance between neighbours of a format around each value: the error of one rounding at most."""
    if dtype not in FORMATS:  # an integer
        return np.full(np.shape(values), 0.5)
    form = FORMATS[dtype]
    _, exponent = np.frexp(np.maximum(np.abs(values), form.tiny))
    return np.asarray(np.ldexp(np.full(np.shape(values), form.roundoff), exponent - 1))


def _to_bfloat16(values: np.ndarray) -> np.ndarray:
    bits = values.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.asarray(np.where(np.isnan(values), 0x7FC0, rounded), np.uint16)
