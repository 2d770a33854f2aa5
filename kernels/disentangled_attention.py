"""DeBERTa's disentangled attention scores: gather by relative position, add, scale."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

from kernels import numbers, reference
from kernels.numbers import Reals
from kernels.parts import CUDA, EPS32, FLOATS, MOST_ELEMENTS, SUFFIX, ceil_div, normal, wide
from kernels.plan import Argument, Buffer, Launch, Plan, Pointer
from kernels.rows import rounded
from kernels.spec import Arrays, KernelSpec

SOURCE = CUDA / "disentangled_attention.cu"
TILE, ROWS = 32, 8  # as in the kernel
MOST_PLANES = 65535  # of a grid along z
NAMES = ("c2c", "c2p", "p2c")


@dataclass(frozen=True)
class DisentangledAttention:
    """c2c [planes, S, S] (planes = B * N), c2p and p2c [planes, S, 2 span]; `bucketed` is DeBERTa v2."""

    planes: int
    sequence: int
    span: int
    dtype: str = "float16"
    bucketed: bool = True
    factor: float = 0.0722  # 1 / sqrt(3 H), H = 64

    @property
    def label(self) -> str:
        return f"BN{self.planes} S{self.sequence} span{self.span} {self.dtype}{'' if self.bucketed else ' clipped'}"


def refuse(case: DisentangledAttention) -> str | None:
    if case.dtype == "int8":
        return "a factor below one is zero in int8 (NVIDIA's plugin writes zeros): use float16"
    if case.dtype not in FLOATS:
        return f"expected one of {', '.join(FLOATS)}, got {case.dtype}"
    if case.sequence < 1 or not 1 <= case.planes <= MOST_PLANES:
        return f"expected a sequence of at least 1 and 1 to {MOST_PLANES} planes, got {case.sequence} and {case.planes}"
    if case.span < (2 if case.bucketed else 1):
        return f"expected a span of at least {2 if case.bucketed else 1}, got {case.span}"
    if case.sequence * max(case.sequence, 2 * case.span) > MOST_ELEMENTS:
        return f"expected at most {MOST_ELEMENTS} elements a plane"
    return None


def plan(case: DisentangledAttention) -> Plan:
    scores, gathered = (case.planes, case.sequence, case.sequence), (case.planes, case.sequence, 2 * case.span)
    buffers = [Buffer(name, case.dtype, shape) for name, shape in zip(NAMES, (scores, gathered, gathered), strict=True)]
    arguments: dict[str, Argument] = {
        **{name: Pointer(name) for name in (*NAMES, "output")}, "sequence": np.int32(case.sequence),
        "span": np.int32(case.span), "factor": np.float32(case.factor), "bucketed": np.int32(case.bucketed),
    }  # fmt: skip
    tiles = ceil_div(case.sequence, TILE)
    entry = f"disentangled_attention_{SUFFIX[case.dtype]}"
    launch = Launch(SOURCE, entry, (tiles, tiles, case.planes), (TILE, ROWS, 1), tuple(arguments.values()),
                    names=tuple(arguments), overlaps=True)  # fmt: skip
    return Plan((*buffers, Buffer("output", case.dtype, scores, "out")), (launch,))


def inputs(case: DisentangledAttention, rng: np.random.Generator) -> Arrays:
    return {b.name: normal(rng, b.shape, b.dtype, std=3.0) for b in plan(case).buffers if b.role == "in"}


def _of(case: DisentangledAttention, parts: list[Reals]) -> Reals:
    factor = float(np.float32(case.factor))
    return reference.disentangled_attention(parts[0], parts[1], parts[2], factor, bucketed=case.bucketed)


def compute(case: DisentangledAttention, arrays: Arrays) -> Arrays:
    return {"output": _of(case, [wide(arrays, name, case.dtype) for name in NAMES])}


def bound(case: DisentangledAttention, arrays: Arrays, expected: Arrays) -> Arrays:
    size = _of(case, [np.abs(wide(arrays, name, case.dtype)) for name in NAMES])
    return {"output": rounded(4 * EPS32 * size, expected["output"], case.dtype)}


def least_bytes(case: DisentangledAttention) -> int:
    """Scores read and written, and of the gathered matrices the columns that a distance can ask for."""
    columns = min(2 * case.span, 2 * case.sequence - 1)
    elements = case.planes * case.sequence * (2 * case.sequence + 2 * columns)
    return elements * numbers.storage(case.dtype).itemsize


def flops(case: DisentangledAttention) -> int:
    return 3 * case.planes * case.sequence**2


_SHAPES = ((1, 1, 2), (2, 33, 8), (3, 7, 4), (1, 70, 4), (2, 64, 256))

SPEC = KernelSpec(
    name="disentangled_attention",
    summary="(c2c + gathered c2p + gathered p2c) * factor, DeBERTa v1 and v2",
    dtypes=FLOATS,
    cases=tuple(DisentangledAttention(*shape, dtype, bucketed) for shape, dtype, bucketed
                in product(_SHAPES, FLOATS, (False, True))),
    bench=(DisentangledAttention(32 * 12, 128, 256), DisentangledAttention(8 * 12, 512, 256)),
    plan=plan,
    inputs=inputs,
    reference=compute,
    bound=bound,
    refuse=refuse,
    flops=flops,
    bytes=least_bytes,
    plugin="DisentangledAttention_TRT",
    versions={"1": "2"},
    fields=("span", "factor"),
)  # fmt: skip
