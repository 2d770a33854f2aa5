"""Skip + layernorm: layernorm(input + skip + bias), in float32, float16, bfloat16 and int8."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np

from kernels import numbers, reference
from kernels.numbers import Reals
from kernels.parts import CUDA, EPS32, FLOATS, MOST_ELEMENTS, SUFFIX, near_one, normal, sum_of, wide
from kernels.plan import Argument, Buffer, Launch, Plan, Pointer
from kernels.rows import norm_bound, rounded, spread
from kernels.spec import Arrays, KernelSpec

SOURCE = CUDA / "skip_layernorm.cu"
Values = Literal["normal", "large_mean", "near_largest", "subnormal", "constant"]
LARGE_MEAN = {"float32": 4096.0, "float16": 512.0, "bfloat16": 64.0}


@dataclass(frozen=True)
class SkipLayerNorm:
    """[rows, hidden]. int8 only: real = int8 * scale; `interleaved` is TensorRT's kCHW32, [hidden / 32, rows, 32];
    `residual` also writes the sum before the normalisation (Megatron)."""

    rows: int
    hidden: int
    dtype: str = "float16"
    bias: bool = False
    interleaved: bool = False
    residual: bool = False
    values: Values = "normal"
    scales: tuple[float, float, float, float] = (0.031, 0.027, 0.033, 0.045)  # input, skip, output, residual
    epsilon: float = reference.EPSILON

    @property
    def label(self) -> str:
        options = (self.bias and "bias", self.interleaved and "kCHW32", self.residual and "residual",
                   self.values != "normal" and self.values.replace("_", " "))  # fmt: skip
        return " ".join([f"{self.rows}x{self.hidden} {self.dtype}", *(o for o in options if o)])


def refuse(case: SkipLayerNorm) -> str | None:
    if case.dtype not in SUFFIX:
        return f"expected one of {', '.join(SUFFIX)}, got {case.dtype}"
    if case.rows < 1 or case.hidden < 1:
        return f"expected at least one row and one column, got {case.rows} and {case.hidden}"
    if case.rows * case.hidden > MOST_ELEMENTS:
        return f"expected at most {MOST_ELEMENTS} elements, got {case.rows * case.hidden}"
    if case.dtype != "int8" and (case.interleaved or case.residual):
        return "kCHW32 and the residual output are for int8"
    if case.interleaved and case.hidden % 32:
        return f"kCHW32 holds 32 channels together, and {case.hidden} is no multiple of it: use the row-major layout"
    if case.dtype == "int8" and min(case.scales) <= 0:
        return f"expected scales above zero, got {case.scales}"
    return None


def shape_of(case: SkipLayerNorm) -> tuple[int, ...]:
    return (case.hidden // 32, case.rows, 32) if case.interleaved else (case.rows, case.hidden)


def plan(case: SkipLayerNorm) -> Plan:
    shape, vector = shape_of(case), (case.hidden,)
    buffers = [Buffer("input", case.dtype, shape), Buffer("skip", case.dtype, shape)]
    buffers += [Buffer("bias", "float32", vector)] * case.bias
    buffers += [Buffer(name, "float32", vector) for name in ("gamma", "beta")]
    buffers += [Buffer("output", case.dtype, shape, "out")]
    buffers += [Buffer("residual", case.dtype, shape, "out")] * case.residual
    pointers = {name: Pointer(name) for name in ("input", "skip", "bias", "gamma", "beta", "output")}
    if not case.bias:
        pointers["bias"] = Pointer(None)
    scalars: dict[str, Argument] = {
        "rows": np.int32(case.rows),
        "hidden": np.int32(case.hidden),
        "epsilon": np.float32(case.epsilon),
    }
    if case.dtype == "int8":
        pointers["residual"] = Pointer("residual" if case.residual else None)
        strides = (32, 32 * case.rows) if case.interleaved else (case.hidden, 32)
        scalars |= {"row_stride": np.int64(strides[0]), "panel_stride": np.int64(strides[1])}
        names = ("input_scale", "skip_scale", "output_scale", "residual_scale")
        scalars |= {name: np.float32(scale) for name, scale in zip(names, case.scales, strict=True)}
    arguments: dict[str, Argument] = {**pointers, **scalars}
    grid, block = spread(case.rows, case.hidden)
    entry = f"skip_layernorm_{SUFFIX[case.dtype]}"
    launch = Launch(SOURCE, entry, grid, block, tuple(arguments.values()), names=tuple(arguments), overlaps=True)
    return Plan(tuple(buffers), (launch,))


def inputs(case: SkipLayerNorm, rng: np.random.Generator) -> Arrays:
    shape = shape_of(case)
    made = {name: _values(case, rng, shape) for name in ("input", "skip")}
    if case.bias:
        made["bias"] = rng.normal(0, 0.5, case.hidden).astype(np.float32)
    beta = rng.normal(0, 0.2, case.hidden).astype(np.float32)
    return made | {"gamma": near_one(rng, case.hidden), "beta": beta}


def _values(case: SkipLayerNorm, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    if case.dtype == "int8":
        return rng.integers(-128, 128, shape, dtype=np.int8)
    form = numbers.FORMATS[case.dtype]
    if case.values == "large_mean":
        mean = LARGE_MEAN[case.dtype]
        return normal(rng, shape, case.dtype, mean=mean, std=mean * form.roundoff * 8)
    if case.values == "near_largest":  # 3e18: squares of anything larger do not fit float32, in which statistics are
        return normal(rng, shape, case.dtype, std=min(form.largest / 8, 1e17))
    if case.values == "subnormal":
        return numbers.encode(rng.integers(-200, 200, shape) * form.subnormal, case.dtype)
    if case.values == "constant":
        return numbers.encode(np.full(shape, 1.5), case.dtype)
    return normal(rng, shape, case.dtype)


def _terms(case: SkipLayerNorm, arrays: Arrays) -> list[Reals]:
    """What is added, each float64 [rows, hidden] or [hidden]."""
    scales = case.scales[:2] if case.dtype == "int8" else (1.0, 1.0)
    terms = [_as_rows(case, wide(arrays, name, case.dtype)) * scale
             for name, scale in zip(("input", "skip"), scales, strict=True)]  # fmt: skip
    return [*terms, arrays["bias"].astype(np.float64)] if case.bias else terms


def _as_rows(case: SkipLayerNorm, x: Reals) -> Reals:
    return x.transpose(1, 0, 2).reshape(case.rows, case.hidden) if case.interleaved else x


def _as_stored(case: SkipLayerNorm, x: Reals) -> Reals:
    return x.reshape(case.rows, -1, 32).transpose(1, 0, 2) if case.interleaved else x


def compute(case: SkipLayerNorm, arrays: Arrays) -> Arrays:
    """float64; int8 outputs in units of their scale, neither rounded nor more than saturated."""
    x = sum_of(_terms(case, arrays))
    output = reference.layer_norm(x, arrays["gamma"].astype(float), arrays["beta"].astype(float), case.epsilon)
    if case.dtype != "int8":
        return {"output": output}
    made = {"output": output / case.scales[2]} | ({"residual": x / case.scales[3]} if case.residual else {})
    return {name: _as_stored(case, np.clip(value, -128, 127)) for name, value in made.items()}


def bound(case: SkipLayerNorm, arrays: Arrays, expected: Arrays) -> Arrays:
    parts = _terms(case, arrays)
    x = sum_of(parts)
    size = sum_of([np.abs(part) for part in parts])
    scale = case.scales[2] if case.dtype == "int8" else 1.0
    output = _as_rows(case, expected["output"])
    error = norm_bound(size, x, arrays["gamma"].astype(float), output * scale, case.epsilon) / scale
    made = {"output": _as_stored(case, rounded(error, output, case.dtype))}
    if case.residual:
        made["residual"] = _as_stored(case, 0.5 + 8 * EPS32 * size / case.scales[3])
    return made


def peer(case: SkipLayerNorm, arrays: Arrays) -> Arrays:
    """The moments as sums of x and x * x in float32: what most kernels do."""
    x = sum_of(_terms(case, arrays)).astype(np.float32)
    mean = x.mean(axis=-1, keepdims=True, dtype=np.float32)
    variance = np.maximum((x * x).mean(axis=-1, keepdims=True, dtype=np.float32) - mean * mean, 0)
    y = (x - mean) / np.sqrt(variance + np.float32(case.epsilon)) * arrays["gamma"] + arrays["beta"]
    if case.dtype == "int8":
        stored = {"output": numbers.encode(y / case.scales[2], "int8")}
        if case.residual:
            stored["residual"] = numbers.encode(x / case.scales[3], "int8")
        return {name: _as_stored(case, value).astype(np.float64) for name, value in stored.items()}
    return {"output": numbers.decode(numbers.encode(y, case.dtype), case.dtype)}


def flops(case: SkipLayerNorm) -> int:
    return case.rows * case.hidden * (9 + case.bias)


def _cases() -> tuple[SkipLayerNorm, ...]:
    shapes = ((1, 1), (3, 7), (5, 768), (2, 1024), (7, 250), (2, 1000), (1, 4100))
    made = [SkipLayerNorm(rows, hidden, dtype, bias) for dtype, (rows, hidden), bias
            in product(FLOATS, shapes, (False, True)) if (rows + hidden + bias) % 2 or hidden in (768, 7)]  # fmt: skip
    made += [SkipLayerNorm(1025, 72, "float16"), SkipLayerNorm(1, 17000, "float16"), SkipLayerNorm(1, 16389, "float32")]
    extremes: tuple[Values, ...] = ("large_mean", "near_largest", "subnormal", "constant")
    made += [SkipLayerNorm(4, hidden, dtype, values=values)
             for dtype, hidden, values in product(FLOATS, (256, 33), extremes)]  # fmt: skip
    made += [SkipLayerNorm(rows, hidden, "int8", bias) for (rows, hidden), bias
             in product(((1, 1), (5, 33), (3, 768)), (False, True))]  # fmt: skip
    made += [SkipLayerNorm(rows, hidden, "int8", interleaved=True, residual=residual) for (rows, hidden), residual
             in product(((1, 32), (5, 768), (33, 96)), (False, True))]  # fmt: skip
    return tuple(made)


_BENCH = ((4096, 768), (12288, 1024), (128, 768))

SPEC = KernelSpec(
    name="skip_layernorm",
    summary="layernorm(input + skip + bias)",
    dtypes=(*FLOATS, "int8"),
    cases=_cases(),
    bench=tuple(SkipLayerNorm(rows, hidden, dtype) for rows, hidden in _BENCH for dtype in ("float16", "bfloat16")),
    plan=plan,
    inputs=inputs,
    reference=compute,
    bound=bound,
    refuse=refuse,
    flops=flops,
    plugin="CustomSkipLayerNormPluginDynamic",
    versions={"1": "5", "2": "6", "3": "7", "4": "8"},
    fields=("type_id", "ld", "beta", "gamma", "bias"),
    peer=peer,
)
