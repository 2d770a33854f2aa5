"""GELU, as tanh or with the error function, with an optional bias."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np

from kernels import numbers, reference
from kernels.numbers import Reals
from kernels.parts import CUDA, EPS32, FLOATS, MOST_ELEMENTS, SUFFIX, ceil_div, normal, wide
from kernels.plan import Argument, Buffer, Launch, Plan, Pointer
from kernels.rows import rounded
from kernels.spec import Arrays, KernelSpec

SOURCE = CUDA / "gelu.cu"
THREADS, UNROLL = 256, 4  # as in gelu.cu
Form = Literal["tanh", "erf"]


@dataclass(frozen=True)
class Gelu:
    """[rows, columns]; the bias is float32 [columns]."""

    rows: int
    columns: int
    dtype: str = "float16"
    bias: bool = False
    form: Form = "tanh"
    values: Literal["normal", "extreme"] = "normal"

    @property
    def label(self) -> str:
        options = (self.bias and "bias", self.form == "erf" and "erf", self.values == "extreme" and "extreme")
        return " ".join([f"{self.rows}x{self.columns} {self.dtype}", *(o for o in options if o)])


def refuse(case: Gelu) -> str | None:
    if case.dtype not in FLOATS:
        return f"expected one of {', '.join(FLOATS)}, got {case.dtype}: int8 goes through the FC's epilogue"
    if case.rows < 1 or case.columns < 1 or case.rows * case.columns > MOST_ELEMENTS:
        return f"expected 1 to {MOST_ELEMENTS} elements, got {case.rows} x {case.columns}"
    return None


def launch(dtype: str, rows: int, columns: int, source: str, bias: str | None, target: str, form: Form) -> Launch:
    """The step alone, over named buffers, for plans of other operations too."""
    width = 16 // numbers.storage(dtype).itemsize
    vectors = ceil_div(rows * columns, width if columns % width == 0 else 1)
    arguments: dict[str, Argument] = {
        "input": Pointer(source), "bias": Pointer(bias), "output": Pointer(target),
        "rows": np.int32(rows), "columns": np.int32(columns), "erf": np.int32(form == "erf"),
    }  # fmt: skip
    grid = (ceil_div(vectors, THREADS * UNROLL), 1, 1)
    entry = f"gelu_{SUFFIX[dtype]}"
    return Launch(
        SOURCE, entry, grid, (THREADS, 1, 1), tuple(arguments.values()), names=tuple(arguments), overlaps=True
    )


def plan(case: Gelu) -> Plan:
    shape = (case.rows, case.columns)
    buffers = [Buffer("input", case.dtype, shape), Buffer("output", case.dtype, shape, "out")]
    buffers += [Buffer("bias", "float32", (case.columns,))] * case.bias
    bias = "bias" if case.bias else None
    return Plan(tuple(buffers), (launch(case.dtype, *shape, "input", bias, "output", case.form),))


def inputs(case: Gelu, rng: np.random.Generator) -> Arrays:
    shape = (case.rows, case.columns)
    if case.values == "extreme":
        form = numbers.FORMATS[case.dtype]
        picks = np.array([0.0, -0.0, form.largest, -form.largest, form.subnormal, -form.subnormal, -5.5, -30.0, 9.0])
        x = numbers.encode(rng.choice(picks, shape), case.dtype)
    else:
        x = normal(rng, shape, case.dtype, std=2.0)
    return {"input": x} | ({"bias": rng.normal(0, 1, case.columns).astype(np.float32)} if case.bias else {})


def _sum(case: Gelu, arrays: Arrays) -> Reals:
    return wide(arrays, "input", case.dtype) + (arrays["bias"].astype(np.float64) if case.bias else 0.0)


def apply(x: Reals, form: Form) -> Reals:
    return reference.gelu_erf(x) if form == "erf" else reference.gelu_tanh(x)


def activation_bound(x: Reals, size: Reals, expected: Reals) -> Reals:
    """Error of a float32 GELU at x, itself a sum of magnitudes `size`: slope at most 1.13, exponent of up to 2 y."""
    exponent = np.minimum(np.abs(x) + 0.044715 * np.abs(np.clip(x, -1e6, 1e6)) ** 3, 100.0)
    return np.asarray(EPS32 * (3 * size + np.abs(expected) * (8 + 8 * exponent) + 2 * np.minimum(np.abs(x), 16)))


def compute(case: Gelu, arrays: Arrays) -> Arrays:
    with np.errstate(over="ignore"):
        return {"output": apply(_sum(case, arrays), case.form)}


def bound(case: Gelu, arrays: Arrays, expected: Arrays) -> Arrays:
    x = _sum(case, arrays)
    size = np.abs(wide(arrays, "input", case.dtype)) + (np.abs(arrays["bias"]) if case.bias else 0)
    size = np.where(x > -20, size, EPS32 * size)  # far below zero the slope is zero too
    return {"output": rounded(activation_bound(x, size, expected["output"]), expected["output"], case.dtype)}


def peer(case: Gelu, arrays: Arrays) -> Arrays:
    x = _sum(case, arrays).astype(np.float32)
    with np.errstate(over="ignore"):
        if case.form == "erf":
            y = np.float32(0.5) * x * (1 + reference.erf(x.astype(np.float64) / 2**0.5).astype(np.float32))
        else:
            inner = np.float32(0.7978845608) * (x + np.float32(0.044715) * x * x * x)
            y = np.float32(0.5) * x * (1 + np.tanh(inner))
    return {"output": numbers.decode(numbers.encode(y, case.dtype), case.dtype)}


def flops(case: Gelu) -> int:
    return case.rows * case.columns * (10 + case.bias)


_SHAPES = ((1, 1), (3, 7), (5, 64), (2, 1000), (33, 130))
_BENCH = ((4096, 3072), (12288, 4096))
_FORMS: tuple[Form, ...] = ("tanh", "erf")

SPEC = KernelSpec(
    name="gelu",
    summary="0.5 x (1 + tanh(...)), or with erf; x = input + bias",
    dtypes=FLOATS,
    cases=tuple(Gelu(rows, columns, dtype, (rows + columns) % 2 == 0, form) for dtype, (rows, columns), form
                in product(FLOATS, _SHAPES, _FORMS))
    + tuple(Gelu(4, 64, dtype, form=form, values="extreme") for dtype, form in product(FLOATS, _FORMS)),
    bench=tuple(Gelu(rows, columns, "float16", bias=True) for rows, columns in _BENCH),
    plan=plan,
    inputs=inputs,
    reference=compute,
    bound=bound,
    refuse=refuse,
    flops=flops,
    plugin="CustomGeluPluginDynamic",
    versions={"1": "1"},
    fields=("type_id", "bias"),
    peer=peer,
)  # fmt: skip
