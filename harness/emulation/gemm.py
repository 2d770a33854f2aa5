"""Matrix products of an emulated plan, by NumPy: sums in float32, or int32 for int8."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from harness.emulation.memory import Arena, Array
from harness.errors import UsageError
from kernels.plan import Gemm, Pointer


@dataclass(frozen=True)
class Unwritten:
    """An operand with bytes that nothing has written; the first of them."""

    operand: str
    buffer: str
    offset: int


def multiply(step: Gemm, arena: Arena) -> tuple[Unwritten, ...]:
    """D = epilogue(alpha * A @ B + C + bias), written into the arena; what it read without its having been written."""
    read = tuple(_unwritten(step, arena))
    _multiply(step, arena)
    if arena.undefined:
        begin, size = _bytes_of(arena, step.d, step.m * step.n)
        arena.mark(str(step.d.buffer), begin, size)
    return read


def _unwritten(step: Gemm, arena: Arena) -> Iterator[Unwritten]:
    if not arena.undefined:
        return
    operands = {"A": (step.a, step.m * step.k), "B": (step.b, step.k * step.n), "C": (step.c, step.m * step.n),
                "bias": (step.bias, step.n)}  # fmt: skip
    for operand, (pointer, count) in operands.items():
        if pointer is not None and pointer.buffer is not None:
            first = arena.first_undefined(pointer.buffer, *_bytes_of(arena, pointer, count))
            if first is not None:
                yield Unwritten(operand, pointer.buffer, first)


def _bytes_of(arena: Arena, pointer: Pointer, count: int) -> tuple[int, int]:
    """Where so many elements from a pointer begin in their buffer, and how long they are, in bytes."""
    size = _vector_of(arena, pointer, count).itemsize
    return pointer.offset * size, count * size


def _multiply(step: Gemm, arena: Arena) -> None:
    a = _matrix(arena, step.a, step.dtype, (step.m, step.k))
    b = _matrix(arena, step.b, step.dtype, (step.n, step.k) if step.b_transposed else (step.k, step.n))
    product = a @ (b.T if step.b_transposed else b)
    if step.out_dtype == "int32" and step.alpha == 1.0 and step.bias is step.c is None:  # exact
        _store(arena, step, product)
        return
    made = product.astype(np.float32) * np.float32(step.alpha)
    if step.c is not None:
        made += _vector(arena, step.c, step.out_dtype, step.m * step.n).reshape(made.shape)
    if step.bias is not None:
        made += _vector(arena, step.bias, step.bias_dtype, step.n)
    if step.epilogue == "gelu_tanh":
        made = _gelu(made)
    _store(arena, step, made)


def _matrix(arena: Arena, pointer: Pointer, dtype: str, shape: tuple[int, int]) -> Array:
    values = widen(_vector_of(arena, pointer, shape[0] * shape[1]), dtype)
    return values.reshape(shape)


def _vector(arena: Arena, pointer: Pointer, dtype: str, count: int) -> Array:
    return widen(_vector_of(arena, pointer, count), dtype)


def _vector_of(arena: Arena, pointer: Pointer, count: int) -> Array:
    if pointer.buffer is None:
        raise UsageError("a matrix product was given a null pointer")
    flat = arena[pointer.buffer].reshape(-1)
    if pointer.offset < 0 or pointer.offset + count > flat.size:
        raise UsageError(
            f"a matrix product needs elements {pointer.offset} to {pointer.offset + count} of {pointer.buffer}, "
            f"which has {flat.size}"
        )
    return flat[pointer.offset : pointer.offset + count]


def widen(values: Array, dtype: str) -> Array:
    """To float32, or to int32 from int8."""
    if dtype == "bfloat16":
        return (values.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.int32 if dtype == "int8" else np.float32)


def to_bfloat16(values: Array) -> Array:
    """float32 -> bfloat16 as uint16, to nearest even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = ((bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FFF), rounded)


def _gelu(x: Array) -> Array:
    wide = x.astype(np.float64)
    made: Array = 0.5 * wide * (1 + np.tanh(np.sqrt(2 / np.pi) * (wide + 0.044715 * wide**3)))
    return made.astype(np.float32)


def _store(arena: Arena, step: Gemm, made: Array) -> None:
    target = _vector_of(arena, step.d, step.m * step.n)
    flat = made.reshape(-1)
    if step.out_dtype == "bfloat16":
        target[:] = to_bfloat16(flat).view(target.dtype)
    elif step.out_dtype in ("int8", "int32"):
        limits = np.iinfo(np.dtype(step.out_dtype))
        target[:] = (
            flat
            if flat.dtype == np.int32 and step.out_dtype == "int32"
            else np.clip(np.rint(flat), limits.min, limits.max)
        )
    else:
        with np.errstate(over="ignore"):
            target[:] = flat.astype(step.out_dtype)
