"""Rounding to int8 steps and back, by one scale a tensor."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

from kernels import numbers
from kernels.parts import CUDA, EPS32, FLOATS, SUFFIX, ceil_div, normal, wide
from kernels.plan import Argument, Buffer, Launch, Plan, Pointer
from kernels.rows import rounded
from kernels.spec import Arrays, KernelSpec

SOURCE = CUDA / "epilogue.cu"
THREADS = 256


@dataclass(frozen=True)
class Quantise:
    """[count] of `dtype` to int8, or back with `back`; real = int8 * scale."""

    count: int
    dtype: str = "float16"
    back: bool = False
    scale: float = 0.037

    @property
    def label(self) -> str:
        return f"{self.count} int8 to {self.dtype}" if self.back else f"{self.count} {self.dtype} to int8"


def refuse(case: Quantise) -> str | None:
    if case.dtype not in FLOATS:
        return f"expected one of {', '.join(FLOATS)}, got {case.dtype}"
    if case.count < 1 or case.scale <= 0:
        return f"expected at least one element and a scale above zero, got {case.count} and {case.scale}"
    return None


def plan(case: Quantise) -> Plan:
    source, target = ("int8", case.dtype) if case.back else (case.dtype, "int8")
    sizes = [numbers.storage(dtype).itemsize for dtype in (source, target)]
    width = 16 // (sizes[0] if sizes[0] > sizes[1] else sizes[1])
    arguments: dict[str, Argument] = {"input": Pointer("input"), "output": Pointer("output"), "count": np.int64(case.count),
                 "scale": np.float32(case.scale)}  # fmt: skip
    entry = f"{'dequantise' if case.back else 'quantise'}_{SUFFIX[case.dtype]}"
    grid = (ceil_div(ceil_div(case.count, width), THREADS), 1, 1)
    buffers = (Buffer("input", source, (case.count,)), Buffer("output", target, (case.count,), "out"))
    launch = Launch(
        SOURCE, entry, grid, (THREADS, 1, 1), tuple(arguments.values()), names=tuple(arguments), overlaps=True
    )
    return Plan(buffers, (launch,))


def inputs(case: Quantise, rng: np.random.Generator) -> Arrays:
    if case.back:
        return {"input": rng.integers(-128, 128, case.count, dtype=np.int8)}
    return {"input": normal(rng, (case.count,), case.dtype, std=2.0)}


def compute(case: Quantise, arrays: Arrays) -> Arrays:
    """float64; int8 in units of the scale, neither rounded nor more than saturated."""
    scale = np.float64(np.float32(case.scale))
    if case.back:
        return {"output": arrays["input"] * scale}
    return {"output": np.clip(wide(arrays, "input", case.dtype) / scale, -128, 127)}


def bound(case: Quantise, arrays: Arrays, expected: Arrays) -> Arrays:
    output = expected["output"]
    return {"output": rounded(2 * EPS32 * np.abs(output), output, case.dtype if case.back else "int8")}


SPEC = KernelSpec(
    name="quantise",
    summary="float to int8 and back, one scale a tensor",
    dtypes=FLOATS,
    cases=tuple(Quantise(*each) for each in product((1, 5, 16, 1000, 4099), FLOATS, (False, True))),
    bench=(Quantise(12288 * 1024), Quantise(12288 * 1024, back=True)),
    plan=plan,
    inputs=inputs,
    reference=compute,
    bound=bound,
    refuse=refuse,
    flops=lambda case: case.count,
)
