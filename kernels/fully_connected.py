"""FC: a matrix product by the vendor's library with bias and activation, fused there or by kernels after it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np

from kernels import gelu, numbers, reference
from kernels.numbers import Reals
from kernels.parts import CUDA, EPS32, FLOATS, MOST_ELEMENTS, SUFFIX, ceil_div, normal, wide
from kernels.plan import Argument, Buffer, Gemm, Launch, Plan, Pointer
from kernels.rows import rounded
from kernels.spec import Arrays, KernelSpec

EPILOGUE = CUDA / "epilogue.cu"
THREADS, SUMS = 256, 4  # as in epilogue.cu
Activation = Literal["none", "tanh", "erf"]
ACTIVATIONS: tuple[Activation, ...] = ("none", "tanh", "erf")  # the kernel's numbers


# With a fused GELU, cuBLASLt computes in the precision of the result from the sums on (measured on an H100). In float32 its
# error is that of a tanh of 11 bits (seen on an H200), which is why it does not compute that one.
FUSED_ROUNDINGS = {"float16": 4, "bfloat16": 4}


@dataclass(frozen=True)
class FullyConnected:
    """[m, k] @ [k, n] -> [m, n]. int8: weights [n, k] with a scale for each of the n, output int8 or `out_dtype`."""

    m: int
    k: int
    n: int
    dtype: str = "float16"
    bias: bool = False
    activation: Activation = "none"
    out_dtype: str = ""  # "": as dtype
    input_scale: float = 0.021
    output_scale: float = 0.043

    @property
    def out(self) -> str:
        return self.out_dtype or self.dtype

    @property
    def label(self) -> str:
        options = (self.out != self.dtype and f"to {self.out}", self.bias and "bias",
                   self.activation != "none" and f"{self.activation} GELU")  # fmt: skip
        return " ".join([f"{self.m}x{self.k}x{self.n} {self.dtype}", *(o for o in options if o)])


def refuse(case: FullyConnected) -> str | None:
    if case.dtype not in SUFFIX or case.out not in SUFFIX:
        return f"expected dtypes among {', '.join(SUFFIX)}, got {case.dtype} to {case.out}"
    if case.dtype != "int8" and case.out != case.dtype:
        return f"{case.dtype} products are written as {case.dtype}; only int8 goes to another type"
    if min(case.m, case.k, case.n) < 1 or max(case.m * case.k, case.k * case.n, case.m * case.n) > MOST_ELEMENTS:
        return f"expected 1 to {MOST_ELEMENTS} elements a matrix, got m {case.m}, k {case.k}, n {case.n}"
    if case.dtype == "int8" and (case.k % 4 or case.n % 4):
        return f"cuBLASLt's int8 products want k and n in multiples of 4, got k {case.k}, n {case.n}: pad with zeros"
    if case.dtype == "int8" and case.k > 2**31 // 128**2:
        return f"int32 sums of {case.k} products may overflow: at most {2**31 // 128**2}"
    return None


def plan(case: FullyConnected) -> Plan:
    return _int8_plan(case) if case.dtype == "int8" else _float_plan(case)


def _float_plan(case: FullyConnected) -> Plan:
    """tanh GELU and bias inside the product; what the library does not have, or not well enough, after it with the bias."""
    later = _afterwards(case)
    bias_dtype = "float32" if later else case.dtype
    buffers = [Buffer("input", case.dtype, (case.m, case.k)), Buffer("weights", case.dtype, (case.k, case.n))]
    buffers += [Buffer("bias", bias_dtype, (case.n,))] * case.bias
    buffers += [Buffer("sums", case.dtype, (case.m, case.n), "scratch")] * later
    buffers += [Buffer("output", case.dtype, (case.m, case.n), "out")]
    gemm = Gemm(
        Pointer("input"), Pointer("weights"), Pointer("sums" if later else "output"), case.m, case.n, case.k,
        case.dtype, case.dtype, bias=Pointer("bias") if case.bias and not later else None, bias_dtype=bias_dtype,
        epilogue="gelu_tanh" if case.activation == "tanh" and not later else "none",
    )  # fmt: skip
    if not later:
        return Plan(tuple(buffers), (gemm,))
    bias = "bias" if case.bias else None
    form: gelu.Form = "erf" if case.activation == "erf" else "tanh"
    return Plan(tuple(buffers), (gemm, gelu.launch(case.dtype, case.m, case.n, "sums", bias, "output", form)))


def _afterwards(case: FullyConnected) -> bool:
    """Whether the activation is a kernel of its own."""
    return case.activation == "erf" or (case.activation == "tanh" and case.dtype == "float32")


def _int8_plan(case: FullyConnected) -> Plan:
    buffers = [Buffer("input", "int8", (case.m, case.k)), Buffer("weights", "int8", (case.n, case.k)),
               Buffer("channel_scale", "float32", (case.n,))]  # fmt: skip
    buffers += [Buffer("bias", "float32", (case.n,))] * case.bias
    buffers += [
        Buffer("sums", "int32", (case.m, case.n), "scratch"),
        Buffer("output", case.out, (case.m, case.n), "out"),
    ]
    gemm = Gemm(Pointer("input"), Pointer("weights"), Pointer("sums"), case.m, case.n, case.k, "int8", "int32",
                b_transposed=True)  # fmt: skip
    return Plan(tuple(buffers), (gemm, _finish(case)))


def _finish(case: FullyConnected) -> Launch:
    arguments: dict[str, Argument] = {
        "sums": Pointer("sums"), "channel_scale": Pointer("channel_scale"),
        "bias": Pointer("bias" if case.bias else None), "output": Pointer("output"),
        "rows": np.int32(case.m), "columns": np.int32(case.n), "scale": np.float32(case.input_scale),
        "output_scale": np.float32(case.output_scale if case.out == "int8" else 1.0),
        "activation": np.int32(ACTIVATIONS.index(case.activation)),
    }  # fmt: skip
    width = SUMS if case.n % SUMS == 0 else 1
    grid = (ceil_div(ceil_div(case.m * case.n, width), THREADS), 1, 1)
    entry = f"finish_sums_{SUFFIX[case.out]}"
    return Launch(
        EPILOGUE, entry, grid, (THREADS, 1, 1), tuple(arguments.values()), names=tuple(arguments), overlaps=True
    )


def inputs(case: FullyConnected, rng: np.random.Generator) -> Arrays:
    if case.dtype == "int8":
        made: Arrays = {"input": rng.integers(-128, 128, (case.m, case.k), dtype=np.int8),
                        "weights": rng.integers(-127, 128, (case.n, case.k), dtype=np.int8)}  # fmt: skip
        made["channel_scale"] = rng.uniform(0.5, 1.5, case.n).astype(np.float32) / np.float32(case.k**0.5 * 60)
        bias = rng.normal(0, 1, case.n).astype(np.float32)
        return made | ({"bias": bias} if case.bias else {})
    made = {"input": normal(rng, (case.m, case.k), case.dtype),
            "weights": normal(rng, (case.k, case.n), case.dtype, std=case.k**-0.5)}  # fmt: skip
    bias_dtype = "float32" if _afterwards(case) else case.dtype
    return made | ({"bias": normal(rng, (case.n,), bias_dtype)} if case.bias else {})


def _operands(case: FullyConnected, arrays: Arrays) -> tuple[Reals, Reals, Reals]:
    """Real [m, k], [k, n] and [n], float64."""
    a, b = (wide(arrays, name, case.dtype) for name in ("input", "weights"))
    if case.dtype == "int8":
        a, b = a * np.float64(np.float32(case.input_scale)), (b * arrays["channel_scale"][:, None].astype(float)).T
    if not case.bias:
        return a, b, np.zeros(case.n)
    bias_dtype = "float32" if case.dtype == "int8" or _afterwards(case) else case.dtype
    return a, b, wide(arrays, "bias", bias_dtype)


def compute(case: FullyConnected, arrays: Arrays) -> Arrays:
    """float64; an int8 output in units of its scale, neither rounded nor more than saturated."""
    y = reference.fully_connected(*_operands(case, arrays))
    if case.activation != "none":
        y = gelu.apply(y, case.activation)
    return {"output": np.clip(y / case.output_scale, -128, 127) if case.out == "int8" else y}


def bound(case: FullyConnected, arrays: Arrays, expected: Arrays) -> Arrays:
    a, b, bias = _operands(case, arrays)
    sums, size = a @ b, np.abs(a) @ np.abs(b)
    steps = 4 if case.dtype == "int8" else case.k / 8 + 4 * case.k**0.5 + 16  # int32 sums are exact
    error = EPS32 * (steps * (np.abs(sums) if case.dtype == "int8" else size) + 2 * np.abs(bias))
    if case.dtype != "int8" and _afterwards(case):
        error = error + numbers.rounding(np.abs(sums), case.dtype)  # the product is stored before the GELU
    if case.activation != "none":
        x = sums + bias
        if case.dtype != "int8" and not _afterwards(case):
            error = error + FUSED_ROUNDINGS[case.dtype] * numbers.rounding(
                np.maximum(np.abs(x), np.abs(sums)), case.dtype
            )
        error = 1.13 * error + gelu.activation_bound(x, np.abs(sums) + np.abs(bias), gelu.apply(x, case.activation))
    return {"output": rounded(error / (case.output_scale if case.out == "int8" else 1.0), expected["output"], case.out)}


def flops(case: FullyConnected) -> int:
    return 2 * case.m * case.k * case.n


def _cases() -> tuple[FullyConnected, ...]:
    shapes = ((1, 1, 1), (3, 5, 7), (8, 96, 40), (17, 300, 33))
    made = [
        FullyConnected(m, k, n, dtype, bias, activation)
        for dtype, (m, k, n), (bias, activation) in product(
            FLOATS, shapes, ((False, ACTIVATIONS[0]), (True, ACTIVATIONS[1]), (True, ACTIVATIONS[2]))
        )
    ]
    made += [
        FullyConnected(m, k, n, "int8", bias, activation, out)
        for (m, k, n), bias, activation, out in product(
            ((1, 4, 4), (5, 300, 36)), (False, True), ACTIVATIONS, ("int8", "float16")
        )
    ]
    made += [FullyConnected(5, 32, 12, "int8", True, "tanh", out) for out in ("float32", "bfloat16")]
    return tuple(made)  # fmt: skip


SPEC = KernelSpec(
    name="fully_connected",
    summary="input @ weights + bias, with GELU where wanted; float and int8",
    dtypes=(*FLOATS, "int8"),
    cases=_cases(),
    bench=tuple(FullyConnected(m, k, n, "float16", bias, activation)
                for (m, k, n) in ((4096, 768, 3072), (12288, 1024, 4096))
                for bias, activation in ((False, ACTIVATIONS[0]), (True, ACTIVATIONS[1]))),
    plan=plan,
    inputs=inputs,
    reference=compute,
    bound=bound,
    refuse=refuse,
    flops=flops,
    plugin="CustomFCPluginDynamic",
    versions={"1": "1"},
    fields=("out_dims", "type_id", "W"),
)  # fmt: skip
