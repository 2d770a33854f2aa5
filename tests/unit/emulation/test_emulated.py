"""The emulation does what the GPU does: each feature against NumPy, with all checks on and nothing to report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.emulation import run as emulated
from harness.emulation.gemm import to_bfloat16, widen
from harness.errors import BuildFailed, UsageError
from kernels.plan import Gemm, Launch, Pointer
from places import DATA

TEMPLATE = DATA / "kernels" / "template.cu"
GOLDEN = DATA / "kernels" / "golden.cu"
RNG = np.random.default_rng(7)


def launch(entry: str, grid: Any, block: Any, *arguments: Any, source: Path = GOLDEN, **more: Any) -> Launch:
    """Arguments: names of buffers, or scalars."""
    whole = [tuple(extent) if isinstance(extent, tuple) else (extent, 1, 1) for extent in (grid, block)]
    given = tuple(Pointer(value) if isinstance(value, str) else value for value in arguments)
    return Launch(source, entry, whole[0], whole[1], given, **more)


def run(step: Launch, checks: str = "all", **arrays: Any) -> dict[str, Any]:
    result = emulated.run([step], arrays, checks=checks)
    assert result.findings == ()
    assert result.complete
    return result.arrays


@pytest.fixture(params=["none", "all"])
def checks(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_indices_of_every_thread_of_every_block(checks):
    grid, block = (3, 2, 2), (4, 3, 2)
    out = run(launch("indices", grid, block, "out"), checks, out=np.full((12 * 24, 6), -1, np.int32))["out"]
    expected = [
        (bx, by, bz, tx, ty, tz)
        for bz in range(2) for by in range(2) for bx in range(3)
        for tz in range(2) for ty in range(3) for tx in range(4)
    ]  # fmt: skip
    assert out.tolist() == [list(one) for one in expected]


def test_a_tiled_product(checks):
    m, n, k = 37, 50, 29
    a, b = RNG.standard_normal((m, k), np.float32), RNG.standard_normal((k, n), np.float32)
    step = launch("matmul", (4, 3, 1), (16, 16, 1), "a", "b", "c", np.int32(m), np.int32(n), np.int32(k))
    c = run(step, checks, a=a, b=b, c=np.full((m, n), np.nan, np.float32))["c"]
    np.testing.assert_allclose(c, a @ b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype, name", [(np.float32, "float"), (np.int8, "char"), (np.float64, "double")])
def test_a_template_with_dynamic_shared_memory(dtype, name):
    x = RNG.integers(0, 99, 96).astype(dtype)
    step = launch(f"reverse<{name}, 32>", 3, 32, "x", "y", shared_bytes=32 * x.itemsize, source=TEMPLATE)
    y = run(step, x=x, y=np.zeros_like(x))["y"]
    assert (y == x.reshape(3, 32)[:, ::-1].reshape(-1)).all()


def shuffle_model(x: list[int], argument: int, width: int) -> list[list[int]]:
    """PTX's shfl, in Python: indexed, up, down, butterfly."""
    rows: list[list[int]] = [[], [], [], []]
    for lane in range(32):
        begin, end = lane // width * width, lane // width * width + width
        sources = (begin + argument % width, lane - argument, lane + argument, lane ^ argument)
        inside = (True, sources[1] >= begin, sources[2] < end, sources[3] < end)
        for row, source, good in zip(rows, sources, inside, strict=True):
            row.append(x[source] if good else x[lane])
    return rows


@given(st.integers(0, 31), st.sampled_from([2, 4, 8, 16, 32]))
@settings(max_examples=12)
def test_shuffles_are_those_of_the_model(argument, width):
    x = list(range(100, 132))
    step = launch("shuffles", 1, 32, "x", "out", np.int32(argument), np.int32(width))
    out = run(step, "none", x=np.array(x, np.int32), out=np.zeros((4, 32), np.int32))["out"]
    assert out.tolist() == shuffle_model(x, argument, width)


def test_votes_matches_and_reductions(checks):
    x = RNG.integers(0, 5, 32).astype(np.int32)
    out = run(launch("votes", 1, 32, "x", "out"), checks, x=x, out=np.zeros((32, 12), np.uint32))["out"]
    ballot = sum(1 << lane for lane in range(32) if x[lane] > 2)
    for lane in range(32):
        same = sum(1 << other for other in range(32) if x[other] == x[lane])
        assert out[lane, :9].tolist() == [
            ballot, int(3 in x), int((x < 4).all()), same, 0, 0, x.sum(), x.max(), np.bitwise_xor.reduce(x)
        ]  # fmt: skip
        assert out[lane, 9] == (ballot if x[lane] > 2 else 0)
        assert out[lane, 10:].tolist() == [(x > 2).sum(), 2 * int((x < 4).all()) + int(3 in x)]


def test_atomics_over_many_blocks(checks):
    n = 1000
    x = RNG.integers(-50, 50, n).astype(np.int32)
    out = run(
        launch("atomics", 4, 256, "x", "ints", "words", "reals", "wide", np.int32(n)), checks, x=x,
        ints=np.zeros(4, np.int32), words=np.array([0, 2**32 - 1, 0, 0, 0], np.uint32), reals=np.zeros(1, np.float32),
        wide=np.zeros(2, np.uint64),
    )  # fmt: skip
    seen = np.bitwise_or.reduce(np.uint32(1) << (x.view(np.uint32) & 31))
    assert out["ints"].tolist() == [x.sum(), max(0, x.max()), min(0, x.min()), -x.sum()]
    assert out["words"].tolist() == [
        seen,
        seen ^ 0xFFFFFFFF,
        np.bitwise_xor.reduce(x.view(np.uint32)),
        n % 10,
        (10 - n % 10) % 10,
    ]
    assert out["reals"][0] == 0.5 * x.sum()
    assert out["wide"].tolist() == [(int(x.astype(object).sum()) << 20) % 2**64, 3 * n]


def test_a_lock_is_handed_on():
    out = run(launch("locked", 3, 128, "lock", "sum", "order"), lock=np.zeros(1, np.int32), sum=np.zeros(1, np.int32),
              order=np.full(12, -1, np.int32))  # fmt: skip
    assert (out["lock"][0], out["sum"][0]) == (0, 12)
    assert sorted(out["order"]) == [block * 128 + warp * 32 for block in range(3) for warp in range(4)]


# ---- half and bfloat16


ALL_HALVES = np.arange(65536, dtype=np.uint16).view(np.float16)


def same_bits(got: Any, expected: Any) -> None:
    """Equal bits, but that any NaN is as good as another."""
    both_nan = np.isnan(got) & np.isnan(expected)
    different = (got.view(np.uint16) != expected.view(np.uint16)) & ~both_nan
    assert not different.any(), (got[different][:5], expected[different][:5])


def test_every_half_and_every_bfloat16_widens_exactly():
    n = 65536
    out = run(launch("to_floats", 256, 256, "h", "b", "x", "y", np.int32(n)), "none", h=ALL_HALVES,
              b=np.arange(n, dtype=np.uint16), x=np.zeros(n, np.float32), y=np.zeros(n, np.float32))  # fmt: skip
    np.testing.assert_array_equal(out["x"], ALL_HALVES.astype(np.float32))
    np.testing.assert_array_equal(out["y"], widen(np.arange(n, dtype=np.uint16), "bfloat16"))


def test_floats_are_rounded_to_nearest_even():
    """Each half, the midpoint to the next and both neighbours of that; the same for bfloat16; random bit patterns."""
    with np.errstate(all="ignore"):
        halves = ALL_HALVES.astype(np.float32)
        middles = (
            (halves.astype(np.float64) + np.nextafter(ALL_HALVES, np.float16(np.inf)).astype(np.float64)) / 2
        ).astype(np.float32)
        x = np.concatenate([
            halves, middles, np.nextafter(middles, np.float32(np.inf)), np.nextafter(middles, np.float32(-np.inf)),
            RNG.integers(0, 2**32, 65536, np.uint32).view(np.float32),
            (np.arange(65536, dtype=np.uint32) << 16 | 0x8000).view(np.float32),
            (np.arange(65536, dtype=np.uint32) << 16 | 0x7FFF).view(np.float32),
            np.array([65504, 65519.996, 65520, 65536, 2**-25, 2**-24, -(2**-26)], np.float32),
        ])  # fmt: skip
        n = len(x)
        out = run(launch("from_floats", -(-n // 256), 256, "x", "h", "down", "b", np.int32(n)), "none", x=x,
                  h=np.zeros(n, np.float16), down=np.zeros(n, np.float16), b=np.zeros(n, np.uint16))  # fmt: skip
        expected = x.astype(np.float16)
        same_bits(out["h"], expected)
        assert (out["h"].view(np.uint16)[np.isnan(x)] == 0x7FFF).all()
        away = np.abs(expected.astype(np.float64)) > np.abs(x.astype(np.float64))
        toward = np.where(away, np.nextafter(expected, np.float16(0)), expected)
        same_bits(out["down"], toward)
    np.testing.assert_array_equal(out["b"], to_bfloat16(x))


def test_arithmetic_of_halves_rounds_once():
    n = 20000
    a, b, c = (RNG.integers(0, 65536, n).astype(np.uint16).view(np.float16) for _ in range(3))
    out = run(launch("halves", -(-n // 128), 128, "a", "b", "c", "out", np.int32(n)), "none", a=a, b=b, c=c,
              out=np.zeros((8, n), np.float16))["out"]  # fmt: skip
    with np.errstate(all="ignore"):
        wide = a.astype(np.float64) * b.astype(np.float64) + c.astype(np.float64)
        expected = [a + b, a * b, a / b, wide.astype(np.float16), a + c, b + c, np.sqrt(np.abs(a)), np.fmax(a, b)]
    for got, want in zip(out, expected, strict=True):
        same_bits(got, want)


# ---- the rest


def test_bit_operations_and_conversions():
    n = 32
    x, y = (RNG.integers(-(2**31), 2**31, n).astype(np.int32) for _ in range(2))
    x[:3] = (0, -1, 1)
    out = run(launch("bits", 1, 32, "x", "y", "out", np.int32(n)), x=x, y=y, out=np.zeros((n, 10), np.int32))["out"]
    for row, a, b in zip(out.view(np.uint32).tolist(), x.tolist(), y.tolist(), strict=True):
        word, other = a % 2**32, b % 2**32
        digits = f"{word:032b}"
        bytes_of = (other << 32 | word).to_bytes(8, "little")
        signed = [[(v >> 8 * i & 255) - 256 * (v >> 8 * i + 7 & 1) for i in range(4)] for v in (word, other)]
        assert row == [
            digits.count("1"), 32 - word.bit_length(), len(digits) - digits.rfind("1") if "1" in digits else 0, int(digits[::-1], 2),
            int.from_bytes(bytes(bytes_of[i] for i in (0, 4, 1, 5)), "little"),
            (7 + sum(p * q for p, q in zip(*signed, strict=True))) % 2**32, (a * b >> 32) % 2**32,
            ((other << 32 | word) << 5 >> 32) % 2**32, int(np.rint(np.float64(np.float32(a) * np.float32(1e-4)))) % 2**32,
            max(a, b) % 2**32,
        ]  # fmt: skip


def test_cooperative_groups():
    x = np.arange(64, dtype=np.float32)
    out = run(launch("groups", 1, 64, "x", "out"), x=x, out=np.zeros(128, np.float32))["out"]
    assert out[:64].tolist() == np.repeat(x.reshape(8, 8).sum(1), 8).tolist()
    for warp in range(2):
        third = [t for t in range(32 * warp, 32 * warp + 32) if t % 3 == 0]
        assert [out[64 + t] for t in third] == [len(third) + 100 * rank for rank in range(len(third))]


def test_exchanges_of_a_warp_and_of_a_warpgroup(checks):
    x = RNG.integers(0, 1000, 256).astype(np.int32)
    out = run(launch("exchanges", 1, 256, "x", "out"), checks, x=x, out=np.zeros((2, 256), np.int32))["out"]
    assert out[0].tolist() == (2 * x.reshape(8, 32)[:, ::-1]).reshape(-1).tolist()
    assert out[1].tolist() == np.arange(256).reshape(2, 128)[:, ::-1].reshape(-1).tolist()


def test_barriers_with_a_name_order_memory(checks):
    x = np.arange(32, dtype=np.int32)
    out = run(launch("named_barriers", 1, 96, "x", "out"), checks, x=x, out=np.zeros(32, np.int32))["out"]
    assert out.tolist() == x[::-1].tolist()


def test_constants_and_variables_of_the_device_live_through_a_plan():
    step = launch("globals", 1, 8, "x", "y", "count")
    arrays = {"x": np.ones(8, np.float32), "y": np.zeros(8, np.float32), "count": np.zeros(1, np.int32)}
    result = emulated.run([step, step, step], arrays, checks="all")
    assert result.arrays["y"].tolist() == [1, 2, 4, 8, 1, 2, 4, 8]
    assert (int(result.arrays["count"][0]), int(arrays["count"][0])) == (3, 0)


def test_printf_is_captured_in_order_with_its_thread():
    step = launch("says", 3, 32, Pointer(None), np.float32(2.5))
    result = emulated.run([step, step], {})
    assert [(p.launch, p.kernel, p.block, p.thread) for p in result.printed] == [
        (number, "says", (block, 0, 0), (0, 0, 0)) for number in range(2) for block in range(3)
    ]
    assert result.printed[4].text == 'block 1 of 3:  2.50 "é"\n'


def test_launches_and_matrix_products_in_one_plan():
    a, b = RNG.standard_normal((5, 7), np.float32), RNG.standard_normal((3, 7), np.float32)
    x = RNG.standard_normal(16, np.float32)
    steps = [
        Gemm(Pointer("a"), Pointer("b"), Pointer("c"), 5, 3, 7, "float32", "float16", b_transposed=True, bias=Pointer("bias"), alpha=0.5),
        launch("reverse<half, 15>", 1, 15, "c", "d", shared_bytes=30, source=TEMPLATE),
    ]  # fmt: skip
    arrays = {"a": a, "b": b, "c": np.zeros((5, 3), np.float16), "d": np.zeros(15, np.float16), "bias": x[:3].copy()}
    out = emulated.run(steps, arrays).arrays
    np.testing.assert_allclose(out["c"].astype(np.float32), 0.5 * a @ b.T + x[:3], rtol=2e-3, atol=2e-3)
    assert (out["d"] == out["c"].reshape(-1)[::-1]).all()


@given(st.integers(1, 300), st.integers(0, 2**32 - 1), st.sampled_from([32, 96, 256]))
@settings(max_examples=8)
def test_a_correct_reduction_of_any_size_is_told_nothing_of(n, seed, threads):
    x = np.random.default_rng(seed).standard_normal(n, np.float32)
    source = GOLDEN.with_name("reduction.cu")
    blocks = -(-n // threads)
    step = launch("block_sum", blocks, threads, "x", "y", np.int32(n), source=source, shared_bytes=threads * 4)
    result = emulated.run([step], {"x": x, "y": np.zeros(blocks, np.float32)}, checks="all,grid", uninitialised=("y",))
    assert result.findings == ()
    np.testing.assert_allclose(result.arrays["y"].sum(), x.sum(), rtol=1e-4, atol=1e-4)


# ---- wrong use


def refused(step: Launch, **arrays: Any) -> str:
    with pytest.raises(UsageError) as caught:
        emulated.run([step], arrays)
    return f"{caught.value} {caught.value.hint or ''}"


def test_arguments_that_do_not_fit_are_told_by_name():
    x = np.zeros(8, np.float32)
    names = ("x", "y", "count")
    assert "expected 3 arguments, got 2" in refused(launch("globals", 1, 8, "x", "x"), x=x)
    told = refused(launch("globals", 1, 8, "x", np.int32(3), "x", names=names), x=x)
    assert "globals: y: expected a pointer of 8 bytes, got int32 of 4 bytes" in told
    told = refused(launch("says", 1, 8, "x", np.int32(1)), x=x)
    assert "parameter 1: expected a floating-point number of 4 bytes, got int32 of 4 bytes" in told
    assert "expected a floating-point number of 4 bytes, got float64 of 8" in refused(
        launch("says", 1, 8, "x", np.float64(1)), x=x
    )


def test_a_structure_is_given_by_its_bytes():
    shape = np.void(np.array([(3, 4, 0.5)], np.dtype([("r", "i4"), ("c", "i4"), ("s", "f4")]))[0])
    assert run(launch("takes_structure", 1, 1, shape, "y"), y=np.zeros(1, np.float32))["y"].tolist() == [6]


@pytest.mark.parametrize(
    "grid, block, shared, told",
    [(0, 1, 0, "grid.x: expected 1 to 2147483647, got 0"), (1, 1025, 0, "block.x: expected 1 to 1024, got 1025"),
     (1, (64, 32, 1), 0, "expected at most 1024 threads, got 2048"), ((1, 65536, 1), 1, 0, "grid.y"),
     (1, (1, 1, 65), 0, "block.z"), (1, 1, 232449, "expected at most 232448 bytes, got 232449")],
)  # fmt: skip
def test_launches_beyond_the_limits_of_cuda_are_refused(grid, block, shared, told):
    assert told in refused(
        launch("globals", grid, block, "x", "x", "x", shared_bytes=shared), x=np.zeros(8, np.float32)
    )


def test_a_kernel_that_is_not_there_and_those_that_are():
    told = refused(launch("absent", 1, 1))
    assert "golden.cu has no kernel absent" in told
    assert "matmul" in told
    assert "named_barriers" in told


def test_a_buffer_that_is_not_given_and_a_check_that_is_not_known():
    assert "no array is given for buffer 'z'" in refused(launch("globals", 1, 1, "z", "z", "z"))
    with pytest.raises(UsageError, match="no such check: races"):
        emulated.run([], {}, checks="races")


@pytest.mark.parametrize(
    "text, told",
    [("__global__ void k(float* x) {\n  x[0] = undeclared;\n}", "k.cu:2"),
     ('__global__ void k(float* x) {\n  x[0] = 1;\n  asm volatile("wgmma.fence.sync.aligned;");\n}',
      "k.cu:3: inline PTX: `wgmma.fence.sync.aligned` is not emulated"),
     ("#include <no_such_file.cuh>\n__global__ void k(float* x) {}", "no_such_file.cuh"),
     ("__global__ void k(float* x) { __shared__ float big[20000]; big[0] = x[0]; __syncthreads(); x[1] = big[1]; }",
      "expected at most 49152 bytes, got 80000")],
)  # fmt: skip
def test_what_the_compiler_says_comes_back_with_the_users_line(tmp_path, text, told):
    source = tmp_path / "k.cu"
    source.write_text(f'extern "C" {text}\n' if "#include" not in text else text)
    with pytest.raises(BuildFailed) as caught:
        emulated.run([launch("k", 1, 1, "x", source=source)], {"x": np.zeros(4, np.float32)})
    assert told in str(caught.value)


def test_macros_headers_and_macro_made_kernels(tmp_path):
    (tmp_path / "made.cuh").write_text(
        '#define KERNEL(name, T) extern "C" __global__ void name(T* x) { x[0] = VALUE; }\n'
    )
    source = tmp_path / "k.cu"
    source.write_text('#include "made.cuh"\nKERNEL(set_float, float)\nKERNEL(set_int, int)\n')
    for value in ("3", "4"):
        step = launch("set_int", 1, 1, "x", source=source, defines=(("VALUE", value),))
        assert emulated.run([step], {"x": np.zeros(1, np.int32)}).arrays["x"].tolist() == [int(value)]
    (tmp_path / "made.cuh").write_text(
        '#define KERNEL(name, T) extern "C" __global__ void name(T* x) { x[0] = -VALUE; }\n'
    )
    assert emulated.run([step], {"x": np.zeros(1, np.int32)}).arrays["x"].tolist() == [-4]
