"""A row-major matrix product as cuBLASLt's column-major problem, and which products it does not do.

A row-major matrix is its transpose in column-major order, so D = A @ B becomes D' = B' @ A': cuBLASLt's first operand is
our B, its second our A, and nothing is moved. A bias along our columns is then along its rows, as its epilogue wants it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from kernels.plan import Gemm

# cudaDataType_t
TYPES = {"float32": 0, "tf32": 0, "float16": 2, "int8": 3, "int32": 10, "bfloat16": 14}
ITEMSIZES = {"float32": 4, "tf32": 4, "float16": 2, "int8": 1, "int32": 4, "bfloat16": 2}
# cublasComputeType_t
COMPUTE_32F, COMPUTE_32F_FAST_TF32, COMPUTE_32I = 68, 77, 72
# cublasLtEpilogue_t
DEFAULT, BIAS, GELU = 1, 4, 32
TENSOR_CORE_MULTIPLE = 4  # of int8's leading dimensions and of the sizes along them

# What is computed from what: the types of D for each type of A and B.
OUTPUTS = {
    "float32": ("float32",),
    "tf32": ("float32",),  # float32 in memory, rounded to TF32 on the way into the tensor cores
    "float16": ("float16", "float32"),
    "bfloat16": ("bfloat16", "float32"),
    "int8": ("int32", "int8"),
}


@dataclass(frozen=True)
class Layout:
    """A column-major matrix: element (i, j) lies `i + j * leading` elements from its start."""

    dtype: int
    rows: int
    columns: int
    leading: int


@dataclass(frozen=True)
class Problem:
    """What cuBLASLt is asked for: D = epilogue(alpha * op(first) @ second + beta * C), `op` the transpose or nothing.

    C lies as D does.
    """

    first: Layout  # our B
    second: Layout  # our A
    result: Layout
    transpose_first: bool
    compute: int
    scale: int  # the type of alpha and beta
    alpha: float
    beta: float
    epilogue: int
    bias: int | None  # its type


def problem(gemm: Gemm) -> Problem:
    """The column-major problem of a product that `refuse` lets pass."""
    operand, result = TYPES[gemm.dtype], TYPES[gemm.out_dtype]
    stored = (gemm.k, gemm.n) if gemm.b_transposed else (gemm.n, gemm.k)
    epilogue = (BIAS if gemm.bias else 0) | (GELU if gemm.epilogue == "gelu_tanh" else 0)
    return Problem(
        first=Layout(operand, *stored, leading=stored[0]),
        second=Layout(operand, gemm.k, gemm.m, leading=gemm.k),
        result=Layout(result, gemm.n, gemm.m, leading=gemm.n),
        transpose_first=gemm.b_transposed,
        compute=_compute(gemm),
        scale=TYPES["int32"] if gemm.out_dtype == "int32" else TYPES["float32"],
        alpha=gemm.alpha,
        beta=0.0 if gemm.c is None else 1.0,
        epilogue=epilogue or DEFAULT,
        bias=TYPES[gemm.bias_dtype] if gemm.bias else None,
    )


def refuse(gemm: Gemm) -> str | None:
    """Why cuBLASLt cannot do a product, with what would do; None if it may.

    int8 with a bias is left to the library's answer: it depends on its version and the card.
    """
    if gemm.dtype not in OUTPUTS:
        return f"no product of {gemm.dtype}: {', '.join(OUTPUTS)}"
    if gemm.out_dtype not in OUTPUTS[gemm.dtype]:
        return f"{gemm.dtype} gives {' or '.join(OUTPUTS[gemm.dtype])}, not {gemm.out_dtype}"
    if gemm.epilogue not in ("none", "gelu_tanh"):
        return f"no epilogue {gemm.epilogue}: none, gelu_tanh"
    if min(gemm.m, gemm.n, gemm.k) < 1:
        return f"an empty product, {gemm.m} x {gemm.n} x {gemm.k}"
    if gemm.bias and (message := _refuse_bias(gemm)):
        return message
    if gemm.c is not None and gemm.dtype == "int8":
        return "int8 products take no C: add it in a kernel"
    return _refuse_int8(gemm) if gemm.dtype == "int8" else None


def alignment(offset_bytes: int) -> int:
    """What an address is a multiple of, at most 256 bytes, so many bytes after one that is aligned to 256."""
    return math.gcd(256, offset_bytes)


def _compute(gemm: Gemm) -> int:
    return {"int8": COMPUTE_32I, "tf32": COMPUTE_32F_FAST_TF32}.get(gemm.dtype, COMPUTE_32F)


def _refuse_bias(gemm: Gemm) -> str | None:
    if gemm.out_dtype == "int32":
        return "int32 sums take no bias: write int8, or add it in a kernel"
    wanted = "float32" if gemm.out_dtype == "int8" else gemm.out_dtype
    return None if gemm.bias_dtype == wanted else f"{gemm.out_dtype} takes a {wanted} bias, not {gemm.bias_dtype}"


def _refuse_int8(gemm: Gemm) -> str | None:
    if not gemm.b_transposed:
        return "int8 needs B as [n, k] (b_transposed)"
    if gemm.n % TENSOR_CORE_MULTIPLE or gemm.k % TENSOR_CORE_MULTIPLE:
        return f"int8 needs n and k to be multiples of {TENSOR_CORE_MULTIPLE}, not {gemm.n} and {gemm.k}"
    if gemm.epilogue != "none":  # cuBLASLt 13.0 takes it for int8 results, and is wrong by up to half the range (H100)
        return "int8 products take no GELU: apply it in a kernel"
    if gemm.out_dtype == "int32" and not float(gemm.alpha).is_integer():
        return f"int32 sums take a whole alpha, not {gemm.alpha:g}"
    return None
