"""Named policies that turn what a run gave into an answer. Pure: arrays in, Answer out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from harness.record import Answer, Outcome

Outputs = Sequence[np.ndarray]
DESTROYED = 0.5  # a relative error that small errors do not add up to: single nodes are to blame from there on
Policy = Callable[[Sequence[Outputs], Sequence[Outputs]], Answer]


def accuracy(samples: Sequence[Outputs], reference: Sequence[Outputs], *, tolerance: float) -> Answer:
    """PASS if every output of every sample is within `tolerance` (relative L2) and holds no new NaN or Inf."""
    error = max(
        (_error(got, want) for a, b in zip(samples, reference, strict=True) for got, want in zip(a, b, strict=True)),
        default=0.0,
    )
    return Answer(Outcome.PASS if error <= tolerance else Outcome.FAIL, error)


def finite(samples: Sequence[Outputs], reference: Sequence[Outputs] = ()) -> Answer:
    """PASS if no float output holds NaN or Inf."""
    bad = has_nonfinite(samples)
    return Answer(Outcome.FAIL if bad else Outcome.PASS, float("inf") if bad else 0.0)


def policy(name: str, tolerance: float) -> Policy:
    """The policy of a fault, by name: `accuracy` or `finite`."""
    return finite if name == "finite" else partial(accuracy, tolerance=tolerance)


def is_float(array: np.ndarray) -> bool:
    return isinstance(array, np.ndarray) and array.dtype.kind == "f"


def has_nonfinite(samples: Sequence[Outputs]) -> bool:
    return any(is_float(a) and not np.isfinite(a).all() for outputs in samples for a in outputs)


def relative_l2(got: np.ndarray, want: np.ndarray) -> float:
    """||got - want|| / ||want||, in float64; inf where `got` has a NaN or Inf that `want` has not, or the reverse.

    A reference of zeros makes any difference infinite. NaN and Inf that both have at the same places count as equal.
    """
    got, want = got.astype(np.float64, copy=False), want.astype(np.float64, copy=False)
    if got.shape != want.shape:
        return float("inf")
    good = np.isfinite(want)
    if not good.all():
        same = np.array_equal(got[~good], want[~good], equal_nan=True)
        if not same:
            return float("inf")
        got, want = got[good], want[good]
    if not np.isfinite(got).all():
        return float("inf")
    # Scaled by the largest value, so that squares of huge or tiny values neither overflow nor vanish.
    scale = float(np.max(np.abs(want), initial=0.0))
    difference = got - want
    if scale == 0.0:
        return 0.0 if not difference.any() else float("inf")
    return float(np.linalg.norm((difference / scale).ravel()) / np.linalg.norm((want / scale).ravel()))


def _error(got: np.ndarray, want: np.ndarray) -> float:
    """Relative L2 for floats; for integers, booleans and strings the share of elements that differ."""
    if not isinstance(want, np.ndarray):  # sequences and maps
        return 0.0 if repr(got) == repr(want) else 1.0
    if is_float(want):
        return relative_l2(got, want)
    if got.shape != want.shape:
        return float("inf")
    return float(np.mean(got != want)) if want.size else 0.0
