"""Launches of an encoder's small steps: what stands between products that are not fused, or in int8 or int4."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from kernels import numbers
from kernels.parts import CUDA, SUFFIX, ceil_div
from kernels.plan import Argument, Buffer, Extent, Launch, Plan, Pointer
from kernels.rows import spread

SOURCE = CUDA / "encoder.cu"
THREADS = 256
MULTIPLE = 16  # every row must be a multiple of so many elements


def refuse(*columns: int) -> str | None:
    """Why rows of these lengths cannot be read in vectors."""
    wrong = [size for size in columns if size % MULTIPLE]
    return f"rows in multiples of {MULTIPLE} elements are needed, not {wrong[0]}" if wrong else None


def gather_qkv(dtype: str, rows: int, hidden: int) -> Plan:
    """q, k, v [rows, hidden] -> output [rows, 3 * hidden]."""
    buffers = [Buffer(name, dtype, (rows, hidden)) for name in "qkv"]
    sizes = {"rows": np.int32(rows), "hidden": np.int32(hidden)}
    return _over_elements("gather_qkv", dtype, [*buffers, Buffer("output", dtype, (rows, 3 * hidden), "out")], sizes,
                          rows * hidden)  # fmt: skip


def add_bias(dtype: str, rows: int, columns: int) -> Plan:
    """x [rows, columns] += bias [columns], float32."""
    buffers = [Buffer("x", dtype, (rows, columns), "inout"), Buffer("bias", "float32", (columns,))]
    return _over_elements("add_bias", dtype, buffers, {"rows": np.int32(rows), "columns": np.int32(columns)},
                          rows * columns)  # fmt: skip


def add(dtype: str, rows: int, columns: int) -> Plan:
    """output = a + b, each [rows, columns]."""
    buffers = [Buffer("a", dtype, (rows, columns)), Buffer("b", dtype, (rows, columns)),
               Buffer("output", dtype, (rows, columns), "out")]  # fmt: skip
    return _over_elements("add", dtype, buffers, {"rows": np.int32(rows), "columns": np.int32(columns)}, rows * columns)


def layernorm(dtype: str, rows: int, hidden: int, epsilon: float) -> Plan:
    """output = layernorm(x), [rows, hidden]; x is read from memory for each moment."""
    buffers = [Buffer("x", dtype, (rows, hidden)), Buffer("gamma", "float32", (hidden,)),
               Buffer("beta", "float32", (hidden,)), Buffer("output", dtype, (rows, hidden), "out")]  # fmt: skip
    sizes = {"hidden": np.int32(hidden), "epsilon": np.float32(epsilon)}
    return _plan(f"layernorm_{SUFFIX[dtype]}", buffers, sizes, (rows, 1, 1))


def layernorm_once(dtype: str, rows: int, hidden: int, epsilon: float) -> Plan:
    """The same; x is read once."""
    buffers = layernorm(dtype, rows, hidden, epsilon).buffers
    arguments: dict[str, Argument] = {one.name: Pointer(one.name) for one in buffers}
    arguments |= {"rows": np.int32(rows), "hidden": np.int32(hidden), "epsilon": np.float32(epsilon)}
    grid, block = spread(rows, hidden)
    launch = Launch(
        SOURCE,
        f"layernorm_once_{SUFFIX[dtype]}",
        grid,
        block,
        tuple(arguments.values()),
        names=tuple(arguments),
        overlaps=True,
    )
    return Plan(buffers, (launch,))


def unpack_int4(dtype: str, k: int, n: int, group: int) -> Plan:
    """packed uint8 [k / 2, n] and scales [k / group, n] -> output [k, n]."""
    buffers = [Buffer("packed", "uint8", (k // 2, n)), Buffer("scales", "float32", (k // group, n)),
               Buffer("output", dtype, (k, n), "out")]  # fmt: skip
    sizes = {"k": np.int32(k), "n": np.int32(n), "group": np.int32(group)}
    return _over_elements("unpack_int4", dtype, buffers, sizes, k // 2 * n)


def gelu_int8(rows: int, columns: int) -> Plan:
    """output = gelu(input), tanh form, int8 [rows, columns]: real = input * steps; `inverses` are 1 / the output's."""
    buffers = [Buffer("input", "int8", (rows, columns)), Buffer("steps", "float32", (columns,)),
               Buffer("inverses", "float32", (columns,)), Buffer("output", "int8", (rows, columns), "out")]  # fmt: skip
    sizes = {"rows": np.int32(rows), "columns": np.int32(columns)}
    return _plan("gelu_s8", buffers, sizes, (ceil_div(rows * columns, 16 * THREADS), 1, 1))


def quantise_columns(rows: int, columns: int) -> Plan:
    """output int8 = input float16 * inverses, [rows, columns]."""
    buffers = [Buffer("input", "float16", (rows, columns)), Buffer("inverses", "float32", (columns,)),
               Buffer("output", "int8", (rows, columns), "out")]  # fmt: skip
    sizes = {"rows": np.int32(rows), "columns": np.int32(columns)}
    return _plan("quantise_columns_f16", buffers, sizes, (ceil_div(rows * columns, 8 * THREADS), 1, 1))


def skip_layernorm_mixed(rows: int, hidden: int, epsilon: float, *, rounded: bool) -> Plan:
    """output = layernorm(input * steps + skip), float16 [rows, hidden]; input is int8, and so is `rounded`, which is the
    output * inverses."""
    kinds = {"input": "int8", "steps": "float32", "skip": "float16", "gamma": "float32", "beta": "float32",
             "output": "float16", "inverses": "float32", "rounded": "int8"}  # fmt: skip
    vectors = ("steps", "gamma", "beta", "inverses")
    wanted = [name for name in kinds if rounded or name not in ("inverses", "rounded")]
    buffers = [Buffer(name, kinds[name], (hidden,) if name in vectors else (rows, hidden),
                      "out" if name in ("output", "rounded") else "in") for name in wanted]  # fmt: skip
    grid, block = spread(rows, hidden)
    arguments: dict[str, Argument] = {name: Pointer(name if name in wanted else None) for name in kinds}
    arguments |= {"rows": np.int32(rows), "hidden": np.int32(hidden), "epsilon": np.float32(epsilon)}
    launch = Launch(
        SOURCE, "skip_layernorm_s8_f16", grid, block, tuple(arguments.values()), names=tuple(arguments), overlaps=True
    )
    return Plan(tuple(buffers), (launch,))


def _over_elements(
    name: str, dtype: str, buffers: list[Buffer], sizes: Mapping[str, np.generic], elements: int
) -> Plan:  # fmt: skip
    """A thread for each vector of 16 bytes."""
    vectors = elements // (16 // numbers.storage(dtype).itemsize)
    return _plan(f"{name}_{SUFFIX[dtype]}", buffers, sizes, (ceil_div(vectors, THREADS), 1, 1))


def _plan(entry: str, buffers: list[Buffer], scalars: Mapping[str, np.generic], grid: Extent) -> Plan:
    arguments: dict[str, Argument] = {**{buffer.name: Pointer(buffer.name) for buffer in buffers}, **scalars}
    launch = Launch(
        SOURCE, entry, grid, (THREADS, 1, 1), tuple(arguments.values()), names=tuple(arguments), overlaps=True
    )
    return Plan(tuple(buffers), (launch,))
