"""Matrix products: the column-major problem against NumPy, what is refused, and the library's own answers where it is."""

from __future__ import annotations

import ctypes
import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.cuda import cublaslt
from harness.cuda.cublaslt import Matmul, describe
from harness.cuda.gemm import OUTPUTS, alignment, problem, refuse
from harness.errors import DependencyMissing, LaunchFailed, UsageError
from kernels.plan import Gemm, Pointer


def gemm(m=8, n=16, k=32, dtype="float16", out=None, **more):
    out = out or OUTPUTS[dtype][0]
    return Gemm(Pointer("a"), Pointer("b"), Pointer("d"), m, n, k, dtype, out, **more)


def column_major(memory, layout):
    """The matrix that cuBLASLt sees in memory."""
    index = np.arange(layout.rows)[:, None] + np.arange(layout.columns)[None, :] * layout.leading
    return memory.ravel()[index]


sizes = st.integers(1, 9)


@given(sizes, sizes, sizes, st.booleans())
def test_the_column_major_problem_is_the_row_major_product(m, n, k, transposed):
    random = np.random.default_rng(m * 100 + n * 10 + k)
    a, b = random.integers(-9, 9, (m, k)), random.integers(-9, 9, (k, n))
    asked = problem(gemm(m, n, k, b_transposed=transposed))
    first = column_major(np.ascontiguousarray(b.T if transposed else b), asked.first)
    result = (first.T if asked.transpose_first else first) @ column_major(a, asked.second)
    memory = np.full(m * n, 99)
    for j in range(asked.result.columns):
        for i in range(asked.result.rows):
            memory[i + j * asked.result.leading] = result[i, j]
    assert (memory.reshape(m, n) == a @ b).all()
    assert asked.result.rows == n, "a bias along our columns has to be along its rows"


@pytest.mark.parametrize(
    ("asked", "compute", "scale", "epilogue", "bias"),
    [
        (gemm(dtype="float32"), 68, 0, 1, None),
        (gemm(dtype="tf32"), 77, 0, 1, None),
        (gemm(bias=Pointer("c"), bias_dtype="float16"), 68, 0, 4, 2),
        (gemm(dtype="bfloat16", bias=Pointer("c"), bias_dtype="bfloat16", epilogue="gelu_tanh"), 68, 0, 36, 14),
        (gemm(epilogue="gelu_tanh"), 68, 0, 32, None),
        (gemm(dtype="int8", b_transposed=True), 72, 10, 1, None),
        (gemm(dtype="int8", out="int8", b_transposed=True, alpha=0.1), 72, 0, 1, None),
    ],
)
def test_types_and_epilogues(asked, compute, scale, epilogue, bias):
    got = problem(asked)
    assert (refuse(asked), got.compute, got.scale, got.epilogue, got.bias) == (None, compute, scale, epilogue, bias)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (gemm(dtype="float64", out="float64"), "no product of float64: float32, tf32"),
        (gemm(out="int8"), "float16 gives float16 or float32, not int8"),
        (gemm(epilogue="relu"), "no epilogue relu"),
        (gemm(m=0), "an empty product, 0 x 16 x 32"),
        (gemm(bias=Pointer("c")), "float16 takes a float16 bias, not float32"),
        (gemm(dtype="int8"), r"int8 needs B as \[n, k\]"),
        (gemm(dtype="int8", k=30, b_transposed=True), "multiples of 4, not 16 and 30"),
        (gemm(dtype="int8", b_transposed=True, bias=Pointer("c")), "int32 sums take no bias"),
        (gemm(dtype="int8", b_transposed=True, epilogue="gelu_tanh"), "int8 products take no GELU"),
        (gemm(dtype="int8", b_transposed=True, alpha=0.5), "whole alpha, not 0.5"),
        (gemm(dtype="int8", out="int8", b_transposed=True, bias=Pointer("c"), bias_dtype="float16"), "int8 takes a float32 bias"),
        (gemm(dtype="int8", b_transposed=True, c=Pointer("c")), "int8 products take no C"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_with_the_reason(asked, says):
    with pytest.raises(UsageError, match=says):
        Matmul(None, asked, None)


def test_a_product_is_described_in_a_line():
    asked = gemm(4096, 3072, 768, b_transposed=True, bias=Pointer("c"), bias_dtype="float16", epilogue="gelu_tanh")
    assert describe(asked) == "4096x3072x768 float16 -> float16, B transposed, bias float16, gelu_tanh"


@pytest.mark.parametrize(("offset", "bytes_"), [(0, 256), (512, 256), (2, 2), (24, 8), (384, 128)])
def test_alignment_of_an_offset(offset, bytes_):
    assert alignment(offset) == bytes_


def test_structures_have_the_sizes_of_the_header():
    assert ctypes.sizeof(cublaslt.Algorithm) == 64
    assert ctypes.sizeof(cublaslt.Heuristic) == 96
    assert cublaslt.Heuristic.workspace.offset == 64


@pytest.mark.parametrize("dtype", ["float32", "tf32", "float16", "bfloat16", "int8", "int32"])
def test_tuning_works_on_small_numbers_of_every_type(dtype):
    values = cublaslt._random(np.random.default_rng(0), dtype)
    assert values.nbytes == cublaslt.FILLING
    read = (values.astype(np.uint32) << 16).view(np.float32) if dtype == "bfloat16" else values
    assert np.isfinite(read.astype(np.float64)).all()
    assert len(np.unique(read)) > 10


def test_without_the_library_that_is_said(monkeypatch):
    monkeypatch.setattr(cublaslt, "_places", lambda: iter(["/nowhere/libcublasLt.so.13"]))
    cublaslt.library.cache_clear()
    with pytest.raises(DependencyMissing, match="cuBLASLt is needed to multiply matrices"):
        cublaslt.library()


class Real:
    """The real library with a workspace that needs no GPU; its descriptors are plain host memory."""

    address, size, handle = 256, 1 << 20, 0


@pytest.fixture
def real():
    cublaslt.library.cache_clear()
    try:
        return cublaslt.library()
    except DependencyMissing:
        pytest.skip("no libcublasLt here")


def attribute(lt, kind, handle, number, value):
    """Read an attribute back; its type is that of `value`, and the library refuses another size."""
    get = getattr(lt._library, f"cublasLt{kind}GetAttribute")
    get.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
    assert get(handle, number, ctypes.byref(value), ctypes.sizeof(value), None) == 0
    return value.value


def test_the_real_library_takes_every_attribute(real):
    asked = problem(gemm(bias=Pointer("c"), bias_dtype="float16", epilogue="gelu_tanh", b_transposed=True))
    made = cublaslt._Descriptor(asked, 0x1000)
    numbers = [attribute(real, "MatmulDesc", made.handle, number, kind()) for number, kind in (
        (0, ctypes.c_int32), (1, ctypes.c_int32), (cublaslt.TRANSPOSE_FIRST, ctypes.c_int32),
        (cublaslt.TRANSPOSE_SECOND, ctypes.c_int32), (cublaslt.EPILOGUE, ctypes.c_uint32),
        (cublaslt.BIAS_TYPE, ctypes.c_int32), (cublaslt.BIAS_POINTER, ctypes.c_uint64))]  # fmt: skip
    assert numbers == [68, 0, 1, 0, 36, 2, 0x1000]
    layout = cublaslt._layout(asked.first)
    read = [attribute(real, "MatrixLayout", layout.handle, number, kind()) for number, kind in (
        (0, ctypes.c_uint32), (2, ctypes.c_uint64), (3, ctypes.c_uint64), (4, ctypes.c_int64))]  # fmt: skip
    assert read == [2, 32, 16, 32]
    preference = cublaslt._Preference({"a": 2, "b": 4, "d": 8}, 123)
    wanted = {cublaslt.WORKSPACE_BYTES: (ctypes.c_uint64, 123), cublaslt.ALIGNMENT_A: (ctypes.c_uint32, 4),
              cublaslt.ALIGNMENT_B: (ctypes.c_uint32, 2), cublaslt.ALIGNMENT_D: (ctypes.c_uint32, 8)}  # fmt: skip
    for number, (kind, value) in wanted.items():
        assert attribute(real, "MatmulPreference", preference.handle, number, kind()) == value


def test_the_real_library_s_refusals_carry_its_words(real):
    with pytest.raises(
        LaunchFailed, match=r"cublasLtMatmulDescSetAttribute\(\) returned CUBLAS_STATUS_INVALID_VALUE \(7\)"
    ) as caught:
        real.set(
            "MatmulDesc", cublaslt._Descriptor(problem(gemm()), None).handle, cublaslt.EPILOGUE, ctypes.c_char(b"x")
        )
    assert caught.value.file.endswith("test_cublaslt.py")
    assert real.version > 110_000


class Told:
    """A library that answers the heuristic's question as it is told, and records the multiplication."""

    version, status_names = 130_000, {15: "CUBLAS_STATUS_NOT_SUPPORTED", 13: "CUBLAS_STATUS_EXECUTION_FAILED"}

    def __init__(self, answer=0, count=1, product=0):
        self.answer, self.count, self.product, self.calls = answer, count, product, []

    def made(self, name, *arguments):
        self.calls.append((name, *arguments))
        return len(self.calls)

    def set(self, kind, handle, number, value):
        self.calls.append((kind, number, value.value))

    def status(self, name, *arguments):
        if name == "cublasLtMatmulAlgoGetHeuristic":
            arguments[-1]._obj.value = self.count
            for number in range(self.count):
                arguments[-2][number].algorithm.data[0] = number + 1
            return self.answer
        return 0

    def call(self, name, *arguments, shown):
        self.calls.append((name, shown, arguments))

    def status_name(self, status):
        return self.status_names[status]


@pytest.fixture
def told(monkeypatch):
    def make(**answers):
        library = Told(**answers)
        monkeypatch.setattr(cublaslt, "library", lambda: library)
        return library

    return make


def test_a_multiplication_hands_over_the_operands_in_their_places(told):
    library = told()
    asked = gemm(4, 8, 16, bias=Pointer("c"), bias_dtype="float16", alpha=0.5)
    launch = Matmul(None, asked, Real()).bind(a=0x100, b=0x200, d=0x300, bias=0x400)
    launch(77)
    name, shown, arguments = library.calls[-1]
    assert (name, shown) == ("cublasLtMatmul", "cublasLtMatmul(4x8x16 float16 -> float16, bias float16)")
    assert (arguments[3], arguments[5], arguments[8], arguments[10], arguments[-1]) == (0x200, 0x100, 0x300, 0x300, 77)
    assert ctypes.c_float.from_address(arguments[2]).value == 0.5
    assert ctypes.c_float.from_address(arguments[7]).value == 0.0
    assert arguments[12]._obj.data[0] == 1
    assert ("MatmulDesc", cublaslt.BIAS_POINTER, 0x400) in library.calls


def test_what_is_added_is_read_from_a_place_of_its_own(told):
    library = told()
    product = Matmul(None, gemm(4, 8, 16, c=Pointer("c", 4)), Real())
    product.bind(a=0x100, b=0x200, c=0x408, d=0x300)(77)
    _, shown, arguments = library.calls[-1]
    assert shown == "cublasLtMatmul(4x8x16 float16 -> float16, C added)"
    assert (arguments[8], arguments[10]) == (0x408, 0x300)
    assert ctypes.c_float.from_address(arguments[7]).value == 1.0
    assert ("MatmulPreference", cublaslt.ALIGNMENT_C, 8) in library.calls
    assert ("MatmulPreference", cublaslt.ALIGNMENT_D, 256) in library.calls
    with pytest.raises(UsageError, match="c at 0x404 is not aligned to 8 bytes"):
        product.bind(a=0x100, b=0x200, c=0x404, d=0x300)


def test_an_address_less_aligned_than_promised_is_refused(told):
    told()
    product = Matmul(None, dataclasses.replace(gemm(), a=Pointer("a", 8)), Real())
    product.bind(a=0x110, b=0x200, d=0x300)
    with pytest.raises(UsageError, match="b at 0x208 is not aligned to 256 bytes"):
        product.bind(a=0x110, b=0x208, d=0x300)


@pytest.mark.parametrize(("answers", "error", "says"), [
    ({"answer": 15, "count": 0}, UsageError, "no algorithm for it on this GPU"),
    ({"answer": 0, "count": 0}, UsageError, "no algorithm for it on this GPU"),
    ({"answer": 13}, LaunchFailed, "CUBLAS_STATUS_EXECUTION_FAILED"),
])  # fmt: skip
def test_what_the_library_does_not_do_is_told(told, answers, error, says):
    told(**answers)
    with pytest.raises(error, match=says):
        Matmul(None, gemm(), Real())


def test_tuning_takes_the_fastest_and_asks_once_for_each_shape(told, monkeypatch):
    told(count=3)
    timed = []
    monkeypatch.setattr(Matmul, "_fastest", lambda self, found: timed.append(len(found)) or found[1])
    cublaslt._TUNED.clear()
    chosen = [Matmul("gpu", asked, Real(), tune=True).algorithm.data[0] for asked in (gemm(), gemm(), gemm(m=9))]
    assert (chosen, timed) == ([2, 2, 2], [3, 3])
    cublaslt._TUNED.clear()
