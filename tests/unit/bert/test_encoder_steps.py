"""An encoder's small steps on the emulation, each against its formula in float64, with accesses checked."""

from __future__ import annotations

import numpy as np
import pytest

from harness.bert.narrowing import pack_int4
from harness.emulation import run as emulated
from kernels import encoder_steps, numbers, reference
from kernels.parts import FLOATS

ROWS, COLUMNS = 5, 96  # not a whole block of vectors


def run(plan, inputs):
    """What the plan writes, as float64; outputs are poisoned first."""
    arrays, outputs = {}, [one.name for one in plan.buffers if one.role == "out"]
    for one in plan.buffers:
        kind = numbers.storage(one.dtype)
        if one.name in inputs:
            arrays[one.name] = numbers.encode(inputs[one.name], one.dtype)
        else:
            arrays[one.name] = (
                np.full(int(np.prod(one.shape)) * kind.itemsize, 0xFF, np.uint8).view(kind).reshape(one.shape)
            )
    done = emulated.run(plan.steps, arrays, checks="all", uninitialised=outputs)
    assert done.findings == ()
    return {one.name: numbers.decode(done.arrays[one.name], one.dtype) for one in plan.buffers if one.role != "in"}


def stored(values, dtype):
    return numbers.decode(numbers.encode(values, dtype), dtype)


def close(got, expected, dtype):
    """To two roundings of the format."""
    np.testing.assert_array_less(np.abs(got - expected), 2 * numbers.rounding(np.abs(expected), dtype) + 1e-6)


@pytest.fixture
def random(request):
    return np.random.default_rng(int(np.random.SeedSequence().generate_state(1)[0]))


@pytest.mark.parametrize("dtype", FLOATS)
def test_q_k_and_v_stand_side_by_side(random, dtype):
    parts = {name: stored(random.normal(size=(ROWS, COLUMNS)), dtype) for name in "qkv"}
    got = run(encoder_steps.gather_qkv(dtype, ROWS, COLUMNS), parts)["output"]
    np.testing.assert_array_equal(got, np.concatenate([parts[name] for name in "qkv"], axis=1))


@pytest.mark.parametrize("dtype", FLOATS)
def test_sums(random, dtype):
    a, b = (stored(random.normal(size=(ROWS, COLUMNS)), dtype) for _ in range(2))
    bias = random.normal(size=COLUMNS).astype(np.float32)
    close(run(encoder_steps.add(dtype, ROWS, COLUMNS), {"a": a, "b": b})["output"], a + b, dtype)
    close(run(encoder_steps.add_bias(dtype, ROWS, COLUMNS), {"x": a, "bias": bias})["x"], a + bias, dtype)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("mean", [0.0, 30.0])
@pytest.mark.parametrize(("layernorm", "columns"), [
    (encoder_steps.layernorm, COLUMNS), (encoder_steps.layernorm_once, COLUMNS), (encoder_steps.layernorm_once, 768)])  # fmt: skip
def test_layernorm(random, dtype, mean, layernorm, columns):
    x = stored(random.normal(mean, 1, (ROWS, columns)), dtype)
    gamma, beta = (random.normal(1, 0.2, columns).astype(np.float32) for _ in range(2))
    got = run(layernorm(dtype, ROWS, columns, 1e-12), {"x": x, "gamma": gamma, "beta": beta})["output"]
    expected = reference.layer_norm(x, gamma.astype(float), beta.astype(float))
    np.testing.assert_array_less(np.abs(got - expected), 2 * numbers.rounding(np.abs(expected), dtype) + 2e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_unpacking_gives_back_what_was_packed(random, dtype):
    kernel = random.normal(size=(128, COLUMNS)).astype(np.float32)
    packed, scales = pack_int4(kernel, 64)
    got = run(encoder_steps.unpack_int4(dtype, 128, COLUMNS, 64), {"packed": packed, "scales": scales})["output"]
    steps = np.repeat(scales.astype(float), 64, axis=0)
    close(got, np.rint(kernel / steps) * steps, dtype)


def test_int8_gelu_with_steps_by_column(random):
    steps, out = random.uniform(0.01, 0.05, COLUMNS).astype(np.float32), random.uniform(0.02, 0.1, COLUMNS)
    x = random.integers(-128, 128, (ROWS, COLUMNS))
    inverses = (1 / out).astype(np.float32)
    got = run(encoder_steps.gelu_int8(ROWS, COLUMNS), {"input": x, "steps": steps, "inverses": inverses})["output"]
    expected = np.clip(reference.gelu_tanh(x * steps.astype(float)) * inverses, -128, 127)
    assert np.abs(got - expected).max() <= 0.501


def test_quantising_by_column_saturates(random):
    x = stored(random.normal(0, 3, (ROWS, COLUMNS)), "float16")
    inverses = random.uniform(5, 100, COLUMNS).astype(np.float32)
    got = run(encoder_steps.quantise_columns(ROWS, COLUMNS), {"input": x, "inverses": inverses})["output"]
    assert np.abs(got - np.clip(x * inverses.astype(float), -128, 127)).max() <= 0.501
    assert {got.min(), got.max()} == {-128, 127}


@pytest.mark.parametrize("rounded", [False, True])
def test_layernorm_of_an_int8_product_and_the_residual_stream(random, rounded):
    x, skip = random.integers(-128, 128, (ROWS, COLUMNS)), stored(random.normal(size=(ROWS, COLUMNS)), "float16")
    steps, inverses = (random.uniform(low, 10 * low, COLUMNS).astype(np.float32) for low in (0.01, 8.0))
    gamma, beta = (random.normal(1, 0.2, COLUMNS).astype(np.float32) for _ in range(2))
    plan = encoder_steps.skip_layernorm_mixed(ROWS, COLUMNS, 1e-12, rounded=rounded)
    given = {"input": x, "steps": steps, "skip": skip, "gamma": gamma, "beta": beta, "inverses": inverses}
    made = run(plan, given)
    expected = reference.layer_norm(x * steps.astype(float) + skip, gamma.astype(float), beta.astype(float))
    np.testing.assert_array_less(
        np.abs(made["output"] - expected), 2 * numbers.rounding(np.abs(expected), "float16") + 1e-4
    )
    assert ("rounded" in made) is rounded
    if rounded:
        assert np.abs(made["rounded"] - np.clip(expected * inverses, -128, 127)).max() <= 0.51


def test_rows_that_cannot_be_read_in_vectors_are_refused():
    assert encoder_steps.refuse(64, 128) is None
    assert "multiples of 16" in encoder_steps.refuse(64, 100)
