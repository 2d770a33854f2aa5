"""Matrix products on a real GPU against float64: every type and epilogue, awkward sizes, tuning, and refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest

from harness.cuda import launch
from harness.errors import UsageError
from kernels.plan import Gemm, Pointer

SIZES = [(1, 8, 8), (7, 24, 40), (128, 768, 768), (33, 3072, 768), (257, 128, 1024)]
# Relative to the norm: the rounding of the operands is in the reference, that of the sums and the result is not.
BOUND = {"float32": 2e-6, "tf32": 2e-3, "float16": 1e-3, "bfloat16": 8e-3}
GELU_BOUND = 2e-4  # the library may take the hardware's approximate tanh


def to_bfloat16(values):
    """Rounded to nearest even, as uint16."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bfloat16(values):
    return (values.astype(np.uint32) << 16).view(np.float32)


def store(values, dtype):
    if dtype == "bfloat16":
        return to_bfloat16(values)
    return values.astype("float32" if dtype == "tf32" else dtype)


def value(array, dtype):
    return (from_bfloat16(array) if dtype == "bfloat16" else array).astype(np.float64)


def gelu_tanh(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def product(random, m, n, k, dtype, out=None, *, transposed=False, bias=False, epilogue="none", alpha=1.0, **more):
    """Run one product; returns what came back and what should have, in float64."""
    out = out or ("float32" if dtype == "tf32" else dtype)
    a, b = store(random.standard_normal((m, k)), dtype), store(random.standard_normal((k, n)) / math.sqrt(k), dtype)
    c = store(random.standard_normal(n), out)
    arrays = {"a": a, "b": np.ascontiguousarray(b.T) if transposed else b, "c": c, "d": store(np.zeros((m, n)), out)}
    gemm = Gemm(Pointer("a"), Pointer("b"), Pointer("d"), m, n, k, dtype, out, transposed,
                Pointer("c") if bias else None, out, epilogue, alpha)  # fmt: skip
    done = launch.run([gemm], arrays, poison=("d",), **more)
    assert done.findings == ()
    want = alpha * (value(a, dtype) @ value(b, dtype)) + (value(c, out) if bias else 0)
    return value(done.arrays["d"], out), gelu_tanh(want) if epilogue == "gelu_tanh" else want


def error(got, want):
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "tf32", "float16", "bfloat16"])
@pytest.mark.parametrize(
    ("bias", "epilogue"), [(False, "none"), (True, "none"), (True, "gelu_tanh"), (False, "gelu_tanh")]
)
def test_products_and_their_epilogues(random, device, size, transposed, dtype, bias, epilogue):
    got, want = product(random, *size, dtype, transposed=transposed, bias=bias, epilogue=epilogue, device=device)
    assert error(got, want) < (BOUND[dtype] if epilogue == "none" else max(BOUND[dtype], GELU_BOUND))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_float32_results_of_narrow_operands(random, device, dtype):
    got, want = product(random, 64, 96, 128, dtype, "float32", bias=True, device=device)
    assert error(got, want) < 1e-5


def test_alpha(random, device):
    got, want = product(random, 64, 96, 128, "float32", alpha=-0.125, bias=True, device=device)
    assert error(got, want) < BOUND["float32"]


@pytest.mark.parametrize("dtype", ["float32", "tf32", "float16", "bfloat16"])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("tune", [False, True])
def test_a_residual_and_a_bias_are_added_inside(random, device, dtype, size, tune):
    m, n, k = size
    out = "float32" if dtype == "tf32" else dtype
    a, b = store(random.standard_normal((m, k)), dtype), store(random.standard_normal((n, k)) / math.sqrt(k), dtype)
    skip, bias = store(random.standard_normal((m, n)), out), store(random.standard_normal(n), out)
    gemm = Gemm(
        Pointer("a"), Pointer("b"), Pointer("d"), m, n, k, dtype, out, True, Pointer("bias"), out, c=Pointer("skip")
    )
    arrays = {"a": a, "b": b, "skip": skip, "bias": bias, "d": store(np.zeros((m, n)), out)}
    prepared = launch.prepare([gemm], launch.itemsizes_of(arrays), launch.Options(tune=tune), device)
    placed = prepared.place(arrays, poison=("d",))
    placed.launch()
    left = placed.read()
    want = value(a, dtype) @ value(b, dtype).T + value(skip, out) + value(bias, out)
    assert error(value(left["d"], out), want) < BOUND[dtype]
    np.testing.assert_array_equal(left["skip"], skip)


def test_the_library_s_gelu_is_the_tanh_form(random, device):
    a, b = random.uniform(-4, 4, (64, 1)).astype(np.float32), np.ones((1, 64), np.float32)
    gemm = Gemm(Pointer("a"), Pointer("b"), Pointer("d"), 64, 64, 1, "float32", "float32", epilogue="gelu_tanh")
    got = launch.run(
        [gemm], {"a": a, "b": b, "d": np.zeros((64, 64), np.float32)}, poison=("d",), device=device
    ).arrays["d"]
    x = a.astype(np.float64)
    erf = 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    assert np.abs(got - gelu_tanh(x)).mean() < 0.2 * np.abs(got - erf).mean()


@pytest.mark.parametrize("size", [(16, 32, 64), (7, 24, 40), (128, 3072, 768)], ids=str)
def test_int8_sums_are_exact(random, device, size):
    m, n, k = size
    a, b = (random.integers(-128, 128, shape).astype(np.int8) for shape in ((m, k), (n, k)))
    gemm = Gemm(Pointer("a"), Pointer("b"), Pointer("d"), m, n, k, "int8", "int32", b_transposed=True)
    done = launch.run([gemm], {"a": a, "b": b, "d": np.zeros((m, n), np.int32)}, poison=("d",), device=device)
    np.testing.assert_array_equal(done.arrays["d"], a.astype(np.int64) @ b.astype(np.int64).T)


@pytest.mark.parametrize("bias", [False, True])
def test_int8_results_are_rounded_and_saturated(random, device, bias):
    m, n, k, alpha = 64, 128, 256, 1 / 300
    a, b = (random.integers(-128, 128, shape).astype(np.int8) for shape in ((m, k), (n, k)))
    c = (20 * random.standard_normal(n)).astype(np.float32)
    gemm = Gemm(Pointer("a"), Pointer("b"), Pointer("d"), m, n, k, "int8", "int8", True,
                Pointer("c") if bias else None, "float32", "none", alpha)  # fmt: skip
    arrays = {"a": a, "b": b, "c": c, "d": np.zeros((m, n), np.int8)}
    try:
        done = launch.run([gemm], arrays, poison=("d",), device=device)
    except UsageError as refusal:  # told, not computed wrongly: the caller fuses it in a kernel
        if not bias:
            raise
        pytest.skip(str(refusal))
    want = alpha * (a.astype(np.float64) @ b.astype(np.float64).T) + (c if bias else 0)
    off = np.abs(done.arrays["d"] - np.clip(np.round(want), -128, 127))
    assert off.max() <= 1
    assert (off > 0).mean() < 0.01


@pytest.mark.parametrize("offset", [1, 8, 3])
def test_operands_may_begin_anywhere(random, device, offset):
    m, n, k = 16, 24, 32
    a, b = random.standard_normal(m * k + offset).astype(np.float16), random.standard_normal((k, n)).astype(np.float16)
    gemm = Gemm(Pointer("a", offset), Pointer("b"), Pointer("d"), m, n, k, "float16", "float16")
    done = launch.run([gemm], {"a": a, "b": b, "d": np.zeros((m, n), np.float16)}, poison=("d",), device=device)
    want = a[offset:].reshape(m, k).astype(np.float64) @ b.astype(np.float64)
    assert error(done.arrays["d"].astype(np.float64), want) < BOUND["float16"]


def test_a_tuned_product_is_as_right(random, device):
    m, n, k = 512, 3072, 768
    arrays = {"a": random.standard_normal((m, k)).astype(np.float16), "b": random.standard_normal((k, n)).astype(np.float16),
              "d": np.zeros((m, n), np.float16)}  # fmt: skip
    gemm = Gemm(Pointer("a"), Pointer("b"), Pointer("d"), m, n, k, "float16", "float16")
    placed = launch.prepare([gemm], {}, launch.Options(tune=True), device).place(arrays, poison=("d",))
    placed.launch()
    want = arrays["a"].astype(np.float64) @ arrays["b"].astype(np.float64)
    assert error(placed.read()["d"].astype(np.float64), want) < BOUND["float16"]


def test_a_product_inside_a_graph_and_beside_kernels(vector, random, device):
    from kernels.plan import Launch

    a, b = (random.standard_normal((64, 64)).astype(np.float32) for _ in range(2))
    arrays = {"x": a, "y": b, "d": np.zeros((64, 64), np.float32)}
    steps = [Launch(vector, "axpy", (16, 1, 1), (256, 1, 1), (Pointer("y"), Pointer("x"), np.float32(1), np.int32(4096))),
             Gemm(Pointer("x"), Pointer("y"), Pointer("d"), 64, 64, 64, "float32", "float32")]  # fmt: skip
    placed = launch.prepare(steps, {}, device=device).place(arrays)
    stream = device.stream()
    placed.graph().launch(stream.handle)
    stream.synchronize()
    assert error(placed.read()["d"].astype(np.float64), a.astype(np.float64) @ (a + b).astype(np.float64)) < 2e-6
