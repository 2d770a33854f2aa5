"""What people's own sources hold runs as it stands: programs with host code, matrix units, inline PTX, libraries."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from harness.emulation import run as emulated
from harness.emulation.gemm import to_bfloat16
from harness.errors import BuildFailed, UsageError
from kernels.plan import Launch, Pointer
from places import DATA

PROGRAM, MATRICES, LIBRARIES = (DATA / "kernels" / f"{name}.cu" for name in ("program", "matrices", "libraries"))
RNG = np.random.default_rng(11)


def step(source: Any, entry: str, grid: int, block: int, *arguments: Any, **more: Any) -> Launch:
    given = tuple(Pointer(value) if isinstance(value, str) else value for value in arguments)
    return Launch(source, entry, (grid, 1, 1), (block, 1, 1), given, **more)


def run(launch: Launch, variables: dict[str, Any] | None = None, **arrays: Any) -> dict[str, Any]:
    given = tuple((name, value.tobytes()) for name, value in (variables or {}).items())
    result = emulated.run([replace(launch, variables=given)], arrays, checks="all")
    assert result.findings == ()
    assert result.complete
    return result.arrays


def line_of(source: Any, comment: str) -> int:
    return next(n for n, line in enumerate(source.read_text().splitlines(), 1) if line.endswith(f"// <- {comment}"))


def floats(*shape: int) -> Any:
    return RNG.standard_normal(shape, np.float32)


# ---- a program, whose main and helpers are left out


def test_a_constant_is_set_by_its_name():
    x, weights = floats(100), np.array([1, 2, 4], np.float32)
    made = run(step(PROGRAM, "blur", 2, 64, "x", "y", np.int32(100)), {"weights": weights}, x=x, y=np.zeros_like(x))
    np.testing.assert_allclose(made["y"], np.convolve(x, weights[::-1], "same"), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "variables, told",
    [({"weight": np.zeros(3, np.float32)}, "variable is called weight"),
     ({"weights": np.zeros(4, np.float32)}, "weights: expected 12 bytes, got 16")],
)  # fmt: skip
def test_a_variable_that_is_not_there_or_of_another_size_is_refused(variables, told):
    with pytest.raises(UsageError, match=told):
        run(step(PROGRAM, "child", 1, 32, "x"), variables, x=floats(32))


def test_shared_arrays_of_halves_and_shared_counters_are_told_nothing_of():
    x = floats(64).astype(np.float16)
    launch = step(PROGRAM, "transposed", 2, 64, "x", "y", "positive")
    made = run(launch, x=x, y=np.zeros_like(x), positive=np.zeros(1, np.int32))
    assert made["y"].tolist() == x.reshape(8, 8).T.reshape(-1).tolist()
    assert made["positive"][0] == (x > 0).sum()


def test_a_softmax_by_cooperative_groups_and_a_sum_whose_template_argument_is_a_macro():
    x, rows = floats(256), floats(5, 70)
    steps = [step(PROGRAM, "softmax", 3, 64, "rows", "shares", np.int32(5), np.int32(70)),
             step(PROGRAM, "sum<THREADS>", 4, 64, "x", "parts", "sum")]  # fmt: skip
    arrays = {"x": x, "rows": rows, "shares": np.zeros_like(rows), "parts": floats(4), "sum": floats(1)}
    result = emulated.run(steps, arrays, checks="all")
    assert result.findings == ()
    np.testing.assert_allclose(result.arrays["sum"][0], x.sum(), rtol=1e-4, atol=1e-5)
    parts = np.exp(rows - rows.max(1, keepdims=True))
    np.testing.assert_allclose(result.arrays["shares"], parts / parts.sum(1, keepdims=True), rtol=1e-5)


def test_a_launch_from_a_kernel_is_refused_where_it_is_reached():
    arrays = {"x": np.ones(32, np.float32)}
    assert run(step(PROGRAM, "child", 1, 32, "x"), **arrays)["x"].tolist() == [2] * 32
    with pytest.raises(BuildFailed, match=r"program.cu:\d+: a launch from a kernel") as caught:
        emulated.run([step(PROGRAM, "parent", 1, 32, "x")], arrays, checks="all")
    assert "PROBE_EMULATION" in str(caught.value.hint)


# ---- matrix units


SHAPES = ((16, 16, 16), (32, 8, 16), (8, 32, 16))
TYPES = {
    "half, float, half": (np.float16, np.float32), "half, half, half": (np.float16, np.float16),
    "signed char, int, signed char": (np.int8, np.int32), "__nv_bfloat16, float, __nv_bfloat16": (to_bfloat16, np.float32),
}  # fmt: skip


def test_tiles_by_wmma_are_exact_for_small_integers_and_tf32_counts_ten_bits():
    """All of them in one plan, so that they are one program."""
    steps, arrays, wanted = [], {}, {}
    for number, ((m, n, k), (words, (given, out))) in enumerate(itertools.product(SHAPES, TYPES.items())):
        a, b, c = (RNG.integers(-5, 6, shape).astype(np.float32) for shape in ((m, k), (n, k), (m, n)))
        as_given = given if given is to_bfloat16 else lambda v, given=given: v.astype(given)
        arrays |= {f"a{number}": as_given(a), f"b{number}": as_given(b), f"c{number}": c.astype(out)}
        steps.append(tile(number, f"{m}, {n}, {k}, {words}"))
        wanted[f"d{number}"] = (2 * a @ b.T + c).astype(out)
    long = np.full((16, 8), 1 + 2.0**-10 + 2.0**-12, np.float32)
    steps.append(tile(99, "16, 16, 8, wmma::precision::tf32, float, float"))
    arrays |= {"a99": long, "b99": long, "c99": np.zeros((16, 16), np.float32)}
    wanted["d99"] = np.full((16, 16), 2 * 8 * (1 + 2.0**-10) ** 2, np.float32)
    result = emulated.run(steps, arrays | {name: np.zeros_like(d) for name, d in wanted.items()}, checks="all")
    assert result.findings == ()
    for name, want in wanted.items():
        np.testing.assert_array_equal(result.arrays[name], want)


def tile(number: int, words: str) -> Launch:
    return step(MATRICES, f"tile<{words}>", 1, 32, *(f"{name}{number}" for name in "abcd"))


def test_what_a_matrix_unit_cannot_load_is_told():
    result = emulated.run([step(MATRICES, "slanted", 1, 32, "a", "d")],
                          {"a": np.zeros(512, np.float16), "d": floats(32)}, checks="memory")  # fmt: skip
    told = [(row["line"], row["message"]) for row in result.findings]
    assert [line for line, _ in told] == [line_of(MATRICES, "leading"), line_of(MATRICES, "misaligned")]
    assert "rows of 34 bytes" in told[0][1]
    assert "at byte 16 of buffer 'a'" in told[1][1]


def test_a_product_by_inline_ptx():
    k = 48
    a, b = floats(16, k).astype(np.float16), floats(k, 8).astype(np.float16)
    made = run(step(MATRICES, "by_ptx", 1, 32, "a", "b", "c", np.int32(k)), a=a, b=b, c=floats(16, 8))
    np.testing.assert_allclose(made["c"], a.astype(np.float64) @ b.astype(np.float64), rtol=1e-4, atol=1e-4)


def test_a_product_of_bytes_by_inline_ptx():
    a, b = RNG.integers(-128, 128, (16, 32)).astype(np.int8), RNG.integers(-128, 128, (8, 32)).astype(np.int8)
    launch = step(MATRICES, "by_ptx_int8", 1, 32, "a", "b", "c")
    made = run(launch, a=a.view(np.uint32), b=b.view(np.uint32), c=np.zeros((16, 8), np.int32))
    assert made["c"].tolist() == (a.astype(np.int32) @ b.T.astype(np.int32)).tolist()


def test_instructions_of_ptx():
    x, n = floats(32), RNG.integers(-1000, 1000, 32).astype(np.int32)
    made = run(step(MATRICES, "instructions", 1, 32, "x", "n", "y", "z"), x=x, n=n,
               y=np.zeros((32, 8), np.float32), z=np.zeros((32, 8), np.int32))  # fmt: skip
    y, z = made["y"].T, made["z"].T
    lanes = np.arange(32)
    np.testing.assert_allclose(y[0], np.exp2(x), rtol=1e-6)
    np.testing.assert_allclose(y[1], x * x + 1, rtol=1e-6)
    assert (y[2] == x[7]).all()
    assert y[3].tolist() == np.where(lanes < 4, x, -1).tolist()
    assert z[0].tolist() == lanes.tolist()
    assert z[1].tolist() == (n & 12 | 33).tolist()
    assert z[2].tolist() == n[lanes ^ 1].tolist()
    assert z[3].tolist() == ((n >> 3 & 31) - 32 * (n >> 7 & 1)).tolist()
    assert z[4].tolist() == ((n + 3) ** 2).tolist()
    assert z[5].tolist() == np.rint(np.float32(10) * x).astype(np.int32).tolist()
    halves = z[6].astype(np.int32).view(np.uint32)
    assert (halves & 0xFFFF == np.float16(1).view(np.uint16)).all()
    assert (halves >> 16).astype(np.uint16).view(np.float16).tolist() == x.astype(np.float16).tolist()
    assert z[7].tolist() == [32] + [0] * 31


def test_bytes_of_floating_point():
    """To the nearest; E4M3 of the type saturates at 448, and E5M2 without saturation is infinite beyond 57344."""
    x = np.array([0, -0.0, 1, 1.0625, 1.1875, 448, 464, 500, np.inf, np.nan, 2**-9, 2**-10, 0.017, -3.3, 57344, 61440, 1e9],
                 np.float32)  # fmt: skip
    x = np.concatenate([x, np.zeros(32 - len(x), np.float32)])
    arrays = {"small": np.zeros(32, np.uint8), "wide": np.zeros(32, np.uint8), "back": np.zeros((2, 32), np.float32)}
    made = run(step(MATRICES, "bytes", 1, 32, "x", "small", "wide", "back"), x=x, **arrays)["back"][:, :17]
    nan, inf = np.nan, np.inf
    np.testing.assert_array_equal(
        made[0], np.float32([0, 0, 1, 1, 1.25, 448, 448, 448, 448, nan, 2**-9, 0, 0.017578125, -3.25, 448, 448, 448])
    )
    np.testing.assert_array_equal(
        made[1],
        np.float32([0, 0, 1, 1, 1.25, 448, 448, 512, inf, nan, 2**-9, 2**-10, 0.015625, -3.5, 57344, inf, inf]),
    )


def test_an_instruction_that_is_not_emulated_is_refused_where_it_is_reached():
    arrays = {"y": np.zeros(32, np.int32)}
    assert run(step(MATRICES, "copies_in_bulk", 1, 32, "y", np.int32(0)), **arrays)["y"].tolist() == [5] * 32
    told = f"matrices.cu:{line_of(MATRICES, 'mbarrier')}: inline PTX: `mbarrier.init.shared::cta.b64` is not emulated"
    with pytest.raises(BuildFailed, match=told):
        emulated.run([step(MATRICES, "copies_in_bulk", 1, 32, "y", np.int32(1))], arrays, checks="all")


# ---- libraries


def test_atomic_objects():
    made = run(
        step(LIBRARIES, "counted", 3, 64, "total", "most"), total=np.zeros(1, np.int32), most=np.zeros(1, np.int32)
    )
    assert (made["total"][0], made["most"][0]) == (3 * 63 * 32, 191)


@pytest.mark.parametrize("entry", ["meeting", "piped"])
def test_barrier_objects_and_pipelines_order_memory(entry):
    x = floats(2, 64)
    made = run(step(LIBRARIES, entry, 1, 64, "x", "y"), x=x, y=np.zeros_like(x))["y"]
    assert made.tolist() == ([(2 * x[0]).tolist(), [0] * 64] if entry == "meeting" else x[:, ::-1].tolist())


def test_reductions_and_scans_of_cub():
    x = RNG.integers(-9, 9, 96).astype(np.float32)
    x[90:] = 0
    launch = step(LIBRARIES, "reduced<float, 96>", 1, 96, "x", "y", np.int32(90))
    made = run(launch, x=x, y=np.zeros(100, np.float32))["y"]
    assert made[:96].tolist() == (np.cumsum(x) - x).tolist()
    assert made[96:].tolist() == [x.sum(), *x.reshape(3, 32).sum(1)]


def test_groups_of_every_sort():
    x = RNG.integers(0, 50, 64).astype(np.int32)
    made = run(step(LIBRARIES, "groups", 1, 64, "x", "y", "count"), x=x, y=np.full((64, 6), -1, np.int32),
               count=np.zeros(1, np.int32))  # fmt: skip
    y, tiles, warps = made["y"], x.reshape(4, 16), x.reshape(2, 32)
    assert y[:, 0].tolist() == np.cumsum(tiles, 1).reshape(-1).tolist()
    assert y[:, 1].tolist() == (np.cumsum(tiles, 1) - tiles).reshape(-1).tolist()
    assert y[:, 2].tolist() == [thread % 32 // 16 for thread in range(64)]
    even = (tiles % 2 == 0).sum(1)
    assert y[:, 3].tolist() == [int(even[t // 16]) if x[t] % 2 == 0 else 16 - int(even[t // 16]) for t in range(64)]
    assert y[:, 4].tolist() == [int(warps[t // 32][warps[t // 32] % 3 == x[t] % 3].sum()) for t in range(64)]
    fives = np.flatnonzero(x % 5 == 0)
    assert sorted(y[fives, 5]) == list(range(len(fives)))
    assert made["count"][0] == len(fives)


@pytest.mark.parametrize(
    "text, told",
    [("#include <curand_kernel.h>\n__global__ void k(float* x) {}", "k.cu:1: curand_kernel.h: there is no such header"),
     ("__global__ void k(cudaTextureObject_t t, float* y) {}", "k.cu:1: cudaTextureObject_t: textures and surfaces"),
     ("#include <cooperative_groups.h>\n__global__ void k() { cooperative_groups::this_cluster().sync(); }",
      "k.cu:2: this_cluster: clusters of blocks"),
     ("#include <thrust/sort.h>\n__global__ void k(int* x) { thrust::sort(thrust::seq, x, x + 4); }",
      "k.cu:2: thrust::sort: a library's device code"),
     ("__global__ void k(float* x) { cudaDeviceSynchronize(); }", "k.cu:1: cudaDeviceSynchronize: the CUDA runtime"),
     ("__global__ void k(float* x) {}\n__global__ void k(int* x) {}", "2 kernels called k")],
)  # fmt: skip
def test_what_cannot_be_emulated_is_named_with_its_line(tmp_path, text, told):
    source = tmp_path / "k.cu"
    source.write_text(f"{text}\n")
    with pytest.raises((BuildFailed, UsageError)) as caught:
        emulated.run([step(source, "k", 1, 1)], {})
    assert told in str(caught.value)
    assert caught.value.hint
