"""The float64 twins: what they must satisfy whoever wrote them, and the number formats that they are compared in."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels import numbers, reference
from kernels.accuracy import judge

RNG = np.random.default_rng(11)


# ---- formats


def test_bfloat16_is_decoded_exactly():
    every = np.arange(65536, dtype=np.uint16)
    with np.errstate(invalid="ignore"):  # signalling NaN
        theirs = every.view(ml_dtypes.bfloat16).astype(np.float64)
    np.testing.assert_array_equal(numbers.decode(every, "bfloat16"), theirs)


def test_bfloat16_is_rounded_to_nearest_even():
    values = RNG.integers(0, 2**32, 20000, dtype=np.uint32).view(np.float32)
    values = np.concatenate([values[np.isfinite(values)], np.float32([1 + 2**-8, 1 + 3 * 2**-8, 3.4e38, 1e-40, -0.0])])
    with np.errstate(over="ignore"):
        theirs = values.astype(ml_dtypes.bfloat16).view(np.uint16)
    np.testing.assert_array_equal(numbers.encode(values, "bfloat16"), theirs)
    assert math.isnan(numbers.decode(numbers.encode(np.float32([np.nan]), "bfloat16"), "bfloat16")[0])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@given(st.floats(-60000, 60000))
def test_rounding_bounds_the_error_of_one_rounding(dtype, value):
    near = float(np.float32(value))
    stored = numbers.decode(numbers.encode(np.array([near]), dtype), dtype)[0]
    assert abs(stored - near) <= numbers.rounding(np.array([near]), dtype)[0]


def test_int8_saturates_and_rounds_ties_to_even():
    values = np.array([-1e9, -128.6, -0.5, 0.5, 1.5, 126.5, 127.6, 300])
    np.testing.assert_array_equal(numbers.encode(values, "int8"), [-128, -128, 0, 0, 2, 126, 127, 127])


# ---- judging


def judged(got, expected, bound=0.1, dtype="float16"):
    shape = np.shape(expected)
    return judge("y", np.array(got, float), np.array(expected, float), np.full(shape, bound), dtype)


def test_the_worst_element_is_found():
    worst = judged([[1.0, 2.0], [3.0, 4.5]], [[1.0, 2.05], [3.0, 4.0]])
    assert (worst.where, worst.expected, worst.got) == ((1, 1), 4.0, 4.5)
    assert worst.share == pytest.approx(5)
    assert not worst.right


@pytest.mark.parametrize("got, expected, right", [
    (math.nan, 1.0, False), (math.inf, 1.0, False), (math.nan, math.nan, True), (1.0, math.nan, False),
    (math.inf, 1e5, True), (-math.inf, 1e5, False), (math.inf, 65504.0, False), (65504.0, 1e5, False),
])  # fmt: skip
def test_nan_and_infinity_are_right_only_where_they_are_due(got, expected, right):
    assert judged([got], [expected]).right is right


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="expected shape"):
        judged([1.0, 2.0], [1.0])


# ---- normalisation


@given(st.integers(1, 40), st.floats(-1e3, 1e3), st.floats(0.1, 100))
def test_layer_norm_ignores_offset_and_scale(hidden, offset, scale):
    x = np.random.default_rng(hidden).normal(size=(3, hidden + 1))
    gamma, beta = np.ones(hidden + 1), np.zeros(hidden + 1)
    y = reference.layer_norm(x, gamma, beta)
    np.testing.assert_allclose(y.mean(axis=-1), 0, atol=1e-9)
    np.testing.assert_allclose(reference.layer_norm(x * scale + offset, gamma, beta), y, atol=1e-6)


def test_a_row_of_equal_values_gives_beta():
    np.testing.assert_array_equal(
        reference.layer_norm(np.full((1, 8), 3.0), np.ones(8), np.arange(8.0)), [np.arange(8)]
    )


def test_an_id_without_a_row_makes_nan_and_no_other():
    x = reference.embedding_sum(np.array([0, 5, -1]), np.zeros(3, int), np.arange(3), [np.ones((5, 2)), np.ones((1, 2)),
                                                                                         np.ones((3, 2))])  # fmt: skip
    np.testing.assert_array_equal(np.isnan(x).all(axis=1), [False, True, True])


def test_positions_and_counts():
    np.testing.assert_array_equal(reference.varlen_positions(np.array([0, 2, 2, 5])), [0, 1, 0, 1, 2])
    mask = np.array([[1, 1, 0], [1, 1, 0], [0, 1, 1]])
    np.testing.assert_array_equal(reference.mask_counts(mask), [2, 3, 0])


# ---- GELU


def test_both_forms_of_gelu_agree_and_have_the_right_ends():
    x = np.linspace(-8, 8, 1001)
    np.testing.assert_allclose(reference.gelu_tanh(x), reference.gelu_erf(x), atol=5e-4)
    np.testing.assert_allclose(reference.gelu_erf(np.array([0.0, 1.0, 10.0, -10.0])), [0, 0.8413447, 10, 0], atol=1e-7)


# ---- attention


def test_constant_values_come_through_any_attention():
    q, k = RNG.normal(size=(2, 5, 3, 4))
    np.testing.assert_allclose(reference.attend(q, k, np.full((5, 3, 4), 2.5)), 2.5)


def test_masked_keys_do_not_count_and_no_key_gives_zero():
    q, k, v = RNG.normal(size=(3, 6, 2, 4))
    cut = reference.attend(q, k[:2], v[:2])
    np.testing.assert_allclose(reference.attend(q, k, v, 2), cut)
    np.testing.assert_array_equal(reference.attend(q, k, v, 0), 0)


def test_fixed_and_variable_length_agree():
    sequence, batch, heads, width = 5, 3, 2, 8
    qkv = RNG.normal(size=(sequence, batch, 3 * width))
    fixed = reference.qkv_to_context(qkv, heads)
    packed = qkv.transpose(1, 0, 2).reshape(-1, 3 * width)
    varlen = reference.qkv_to_context_varlen(packed, heads, np.arange(batch + 1) * sequence)
    np.testing.assert_allclose(varlen.reshape(batch, sequence, width).transpose(1, 0, 2), fixed)


def test_layouts_hold_the_same_numbers_in_another_order():
    heads, size = 3, 4
    plain = RNG.normal(size=(5, 2, 3 * heads * size))
    permuted = plain.reshape(5, 2, 3, heads, size).swapaxes(2, 3).reshape(plain.shape)
    np.testing.assert_allclose(reference.qkv_to_context(permuted, heads, layout="nqkvh"),
                               reference.qkv_to_context(plain, heads, layout="qkvnh"))  # fmt: skip


# ---- disentangled attention


@pytest.mark.parametrize("bucketed", [False, True])
def test_disentangled_attention_is_its_loops(bucketed):
    planes, sequence, span, factor = 2, 9, 4, 0.3
    c2c = RNG.normal(size=(planes, sequence, sequence))
    c2p, p2c = RNG.normal(size=(2, planes, sequence, 2 * span))
    got = reference.disentangled_attention(c2c, c2p, p2c, factor, bucketed=bucketed)
    for b, i, j in np.ndindex(c2c.shape):
        d = column(i - j, span, bucketed)
        assert got[b, i, j] == pytest.approx((c2c[b, i, j] + c2p[b, i, d] + p2c[b, j, d]) * factor)


def column(distance, span, bucketed):
    middle = span // 2
    if bucketed and abs(distance) > middle:
        share = math.log(abs(distance) / middle) / math.log((2 * span - 1) / middle) * (middle - 1)
        distance = math.copysign(math.ceil(round(share, 9)) + middle, distance)
    return int(min(max(distance + span, 0), 2 * span - 1))


@pytest.mark.parametrize("span", [4, 10, 256])
def test_buckets_grow_with_the_distance_and_are_exact_near(span):
    distance = np.arange(-3 * span, 3 * span + 1)
    index = reference.disentangled_bucket_index(distance, span)
    assert np.all(np.diff(index) >= 0)
    near = np.abs(distance) <= span // 2
    np.testing.assert_array_equal(index[near], distance[near] + span)
    assert (index.min(), index.max()) == (0, 2 * span - 1)
