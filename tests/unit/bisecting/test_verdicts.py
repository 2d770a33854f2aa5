"""What counts as too far off, and how far it is."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from harness.record import Outcome
from probes.bisecting.verdicts import accuracy, finite, relative_l2

FINITE = arrays.arrays(np.float32, arrays.array_shapes(max_dims=3), elements=st.floats(-(2.0**100), 2.0**100, width=32))


@given(FINITE)
def test_the_same_is_no_error(x):
    assert relative_l2(x, x) == 0.0


@given(FINITE, st.floats(1e-6, 0.5))
def test_scaling_by_1_plus_e_is_an_error_of_e(x, e):
    if not np.any(np.abs(x) > 1e-20):
        return
    wide = x.astype(np.float64)
    assert relative_l2(wide * (1 + e), wide) == pytest.approx(e, rel=1e-6)


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1.0, 1e30, 1e300])
def test_tiny_and_huge_values_neither_vanish_nor_overflow(scale):
    want = np.array([3.0, 4.0]) * scale
    assert relative_l2(want * 1.01, want) == pytest.approx(0.01)


@pytest.mark.parametrize("got,want,error", [
    ([1, np.nan], [1, 1], math.inf),  # a new NaN
    ([1, np.inf], [1, np.inf], 0.0),  # one that was there before, at the same place
    ([np.nan, 2], [np.nan, 1], 1.0),
    ([1, 1], [1, np.inf], math.inf),  # one that is gone
    ([np.inf, 1], [-np.inf, 1], math.inf),
    ([0, 0], [0, 0], 0.0),
    ([0, 1e-9], [0, 0], math.inf),  # nothing to be relative to
])  # fmt: skip
def test_values_that_are_not_finite_and_zeros(got, want, error):
    assert relative_l2(np.array(got, float), np.array(want, float)) == error


def test_another_shape_is_as_wrong_as_can_be():
    assert relative_l2(np.zeros(3), np.zeros(4)) == math.inf


def test_the_worst_output_of_the_worst_sample_decides():
    good, off = np.ones(4, np.float32), np.full(4, 1.05, np.float32)
    reference = [[good, good], [good, good]]
    answer = accuracy([[good, good], [good, off]], reference, tolerance=0.01)
    assert answer.outcome is Outcome.FAIL
    assert answer.value == pytest.approx(0.05, rel=1e-5)
    assert accuracy([[good, good], [good, off]], reference, tolerance=0.06).outcome is Outcome.PASS


def test_integers_and_booleans_count_what_differs():
    answer = accuracy([[np.array([1, 2, 3, 4])]], [[np.array([1, 2, 3, 5])]], tolerance=0.1)
    assert (answer.outcome, answer.value) == (Outcome.FAIL, 0.25)
    assert accuracy([[np.array([True, False])]], [[np.array([True, False])]], tolerance=0).outcome is Outcome.PASS


def test_finite_looks_at_floats_only():
    assert finite([[np.array([1.0, np.inf])]]).outcome is Outcome.FAIL
    assert finite([[np.array([1.0, 2.0]), np.array([2**62])]]).outcome is Outcome.PASS
