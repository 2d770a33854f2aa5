"""What is to be run, as data: launches of kernels and matrix products over named buffers, in order.

The GPU and the CPU emulation execute the same plan. A buffer is named here and given as an array by whoever runs it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

Extent = tuple[int, int, int]  # x, y, z
Role = Literal["in", "out", "inout", "scratch"]


@dataclass(frozen=True)
class Buffer:
    """A piece of device memory. `dtype` is NumPy's name of the element type, or "bfloat16" (held as uint16)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    role: Role = "in"


@dataclass(frozen=True)
class Pointer:
    """A parameter that points into a buffer, `offset` elements from its start; no buffer is a null pointer."""

    buffer: str | None
    offset: int = 0


Argument = Pointer | np.generic  # a scalar's NumPy type is the parameter's type: np.int32(5), np.float32(0.5)


@dataclass(frozen=True)
class Launch:
    """One launch of an `extern "C" __global__` function; arguments stand in the order of its parameters.

    `overlaps`: it waits by itself for the kernel before it (`after_previous()` of overlap.cuh comes first in it), so that it
    may be brought onto the GPU while that one ends.
    `variables`: names and contents of `__constant__` and `__device__` variables of the source, as cudaMemcpyToSymbol would
    write them before anything is launched.
    """

    source: Path
    entry: str
    grid: Extent
    block: Extent
    arguments: tuple[Argument, ...]
    shared_bytes: int = 0  # dynamic shared memory
    defines: tuple[tuple[str, str], ...] = ()  # macros that the source is compiled with
    names: tuple[str, ...] = ()  # of the parameters, for messages and NVTX payloads
    overlaps: bool = False
    variables: tuple[tuple[str, bytes], ...] = ()


@dataclass(frozen=True)
class Gemm:
    """D = epilogue(alpha * A @ B + C + bias), row-major: A [m, k], B [k, n] (or [n, k] if `b_transposed`), D [m, n].

    The vendor's library does it (cuBLASLt on the GPU, NumPy in the emulation): A and B of `dtype`, sums in float32
    (int32 for int8), D and C [m, n] of `out_dtype`. `bias` is [n], of `bias_dtype`. C may be D itself, or nothing.
    """

    a: Pointer
    b: Pointer
    d: Pointer
    m: int
    n: int
    k: int
    dtype: str
    out_dtype: str
    b_transposed: bool = False
    bias: Pointer | None = None
    bias_dtype: str = "float32"
    epilogue: Literal["none", "gelu_tanh"] = "none"
    alpha: float = 1.0
    c: Pointer | None = None


Step = Launch | Gemm


@dataclass(frozen=True)
class Plan:
    """Buffers and the steps over them, in order. Outputs are poisoned before a test runs them, never assumed zero."""

    buffers: tuple[Buffer, ...]
    steps: tuple[Step, ...]
