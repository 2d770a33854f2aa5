"""QKV-to-context: softmax(Q K^T / sqrt(H)) V from one merged product; masks, variable length, four formats, kCHW32."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from kernels import numbers, reference
from kernels.numbers import Reals
from kernels.parts import CUDA, MOST_ELEMENTS, ceil_div
from kernels.plan import Argument, Buffer, Launch, Plan, Pointer
from kernels.spec import Arrays, KernelSpec

HEAD_SIZES = (32, 64, 96, 128)
DTYPES = ("float32", "float16", "bfloat16", "int8")
WARPGROUP_CAPABILITY = (9, 0)  # wgmma is in this architecture alone: neither older nor newer ones have it
ROWS = 64  # queries of a row tile
PANEL = 32  # columns that kCHW32 holds together; every head size is made of whole ones
ONES_BYTES = 256  # tiles.cuh's
LOG2_E = math.log2(math.e)


@dataclass(frozen=True)
class AttentionCase:
    """One merged product to attend over.

    Fixed length: qkv [S, B, 3E] -> context [S, B, E]; `counts` gives each sequence's valid tokens, a prefix: the keys
    after them do not count, queries after them are computed like any other, and with no valid key the context is zero.
    Variable length: `lengths` of the sequences, packed: qkv [T, 3E], cu_seqlens [B + 1] -> context [T, E]; `sequence`
    and `batch` are then at least the longest and their number. The last axis of qkv is [N, 3, H] ("nqkvh": the plugin's
    permuted weights) or [3, N, H] ("qkvnh"). INT8 holds qkv / input_scale, probabilities / dq_probs and
    context / output_scale; `interleaved` keeps both tensors of it in TensorRT's kCHW32, [3E / 32, tokens, 32] and
    [E / 32, tokens, 32]. INT8's `products` "float16" multiply its integers as float16, probabilities in float16 and not in
    steps of `dq_probs`: faster where those matrix units are. `capability` is the device's, and chooses the matrix instructions.
    """

    batch: int
    sequence: int
    heads: int
    head_size: int
    dtype: str = "float16"
    counts: tuple[int, ...] | None = None
    lengths: tuple[int, ...] | None = None
    layout: reference.Layout = "nqkvh"
    input_scale: float = 1 / 32
    output_scale: float = 1 / 64
    dq_probs: float = 1 / 127
    interleaved: bool = False
    products: str = "int8"
    capability: tuple[int, int] = (8, 0)
    values: str = "normal"  # of the test's inputs; "extreme": float16's whole range, subnormal to nearly 65504

    @property
    def label(self) -> str:
        words = [f"B{self.batch} N{self.heads} S{self.sequence} H{self.head_size} {self.dtype}"]
        if self.counts is not None:
            words.append(f"mask {min(self.counts, default=0)}..{max(self.counts, default=0)}")
        if self.lengths is not None:
            words.append(f"varlen {min(self.lengths, default=0)}..{max(self.lengths, default=0)}")
        if self.layout != "nqkvh":
            words.append("3NH")
        if self.interleaved:
            words.append("kCHW32")
        if as_float16(self):
            words.append("as float16")
        if self.values != "normal":
            words.append(self.values)
        return " ".join([*words, *(["wgmma"] if uses_warpgroups(self) else [])])

    @property
    def hidden(self) -> int:
        """E."""
        return self.heads * self.head_size

    @property
    def rows(self) -> tuple[int, ...]:
        """The leading axes of qkv and context: (S, B) or (T,)."""
        return (self.sequence, self.batch) if self.lengths is None else (sum(self.lengths),)

    @property
    def tokens(self) -> int:
        return math.prod(self.rows)

    @property
    def panel_stride(self) -> int:
        """Elements from 32 columns of a token's row to the next 32."""
        return PANEL * self.tokens if self.interleaved else PANEL

    @property
    def strides(self) -> tuple[int, int]:
        """Elements from one head of a token's row to the next, and from its Q to its K to its V."""
        head, part = (3 * self.head_size, self.head_size) if self.layout == "nqkvh" else (self.head_size, self.hidden)
        return head // PANEL * self.panel_stride, part // PANEL * self.panel_stride


@dataclass(frozen=True)
class Tiling:
    """How the work is divided: attention.cu says what each number means. `blocks` share a multiprocessor."""

    keys: int
    stages: int
    warpgroups: int
    blocks: int

    @property
    def queries(self) -> int:
        return ROWS * self.warpgroups

    def shared_bytes(self, head_size: int) -> int:
        return 2 * head_size * (self.queries + 2 * self.stages * self.keys) + ONES_BYTES


def as_float16(case: AttentionCase) -> bool:
    """Whether int8 is multiplied as float16."""
    return case.dtype == "int8" and case.products == "float16"


def uses_warpgroups(case: AttentionCase) -> bool:
    """Whether the case runs on wgmma: 16-bit products on compute capability 9.0."""
    return (case.dtype in ("float16", "bfloat16") or as_float16(case)) and case.capability == WARPGROUP_CAPABILITY


def refuse(case: AttentionCase) -> str | None:
    """Why the case cannot be computed, and what could be."""
    return next(_refusals(case), None)


def _refusals(case: AttentionCase) -> Iterator[str]:
    if case.dtype not in DTYPES:
        yield f"no kernel for {case.dtype}; there are {', '.join(DTYPES)}"
    if case.head_size not in HEAD_SIZES:
        yield f"no kernel for head size {case.head_size}; there are {', '.join(map(str, HEAD_SIZES))}"
    if min(case.batch, case.sequence, case.heads) < 1:
        yield f"batch {case.batch}, sequence {case.sequence} and heads {case.heads} must each be at least 1"
    if case.batch > 65535:
        yield f"batch {case.batch} is over 65535, the largest third extent of a grid"
    if case.sequence > 65535 * ROWS:
        yield f"sequence {case.sequence} is over {65535 * ROWS}"
    if case.layout not in ("nqkvh", "qkvnh"):
        yield f"layout {case.layout!r} is neither 'nqkvh' ([N, 3, H]) nor 'qkvnh' ([3, N, H])"
    if case.counts is not None and case.lengths is not None:
        yield "a mask and variable length exclude each other: lengths already say where each sequence ends"
    if case.counts is not None and len(case.counts) != case.batch:
        yield f"{len(case.counts)} mask counts for a batch of {case.batch}"
    if case.lengths is not None:
        yield from _length_refusals(case, case.lengths)
    if case.dtype == "int8" and not all(0 < s < math.inf for s in (case.input_scale, case.output_scale, case.dq_probs)):
        yield "INT8 needs positive, finite scales for input, output and probabilities"
    if case.interleaved and (case.dtype != "int8" or as_float16(case)):
        yield f"kCHW32 is for int8, not {case.dtype}{' as float16' * as_float16(case)}"
    if case.products not in ("int8", "float16"):
        yield f"int8 is multiplied as int8 or float16, not {case.products}"
    if case.interleaved and 3 * case.hidden * case.tokens > MOST_ELEMENTS:
        yield f"kCHW32 of at most {MOST_ELEMENTS} elements, not {3 * case.hidden * case.tokens}"
    if case.dtype != "float32" and case.capability < (8, 0):
        yield f"{case.dtype} needs compute capability 8.0 or later, not {'.'.join(map(str, case.capability))}"


def _length_refusals(case: AttentionCase, lengths: tuple[int, ...]) -> Iterator[str]:
    if len(lengths) != case.batch:
        yield f"{len(lengths)} lengths for a batch of {case.batch}"
    if min(lengths, default=0) < 0 or max(lengths, default=0) > case.sequence:
        yield f"lengths from {min(lengths)} to {max(lengths)} do not lie between 0 and the sequence {case.sequence}"
    if not sum(lengths):
        yield "every sequence is empty"


def tiling(case: AttentionCase) -> Tiling:
    """The division of work for 16-bit elements; measured on an H100 (benchmarks/attention.py)."""
    if case.sequence <= 64:
        return Tiling(64 if case.sequence > 32 else 32, 1, 1, 3)
    if not uses_warpgroups(case):
        return Tiling(64, 2, 1, 3 if case.head_size <= 64 else 2)
    if case.head_size <= 64:
        return _narrow_heads(case)
    if case.sequence <= 128:
        return Tiling(128, 1, 1, 2)
    return Tiling(64, 2, 2, 2) if case.head_size == 96 else Tiling(96, 1, 1, 2)


def _narrow_heads(case: AttentionCase) -> Tiling:
    """wgmma, heads of at most 64, sequences of more than 64."""
    many = case.batch * case.heads * ceil_div(case.sequence, ROWS) > 4 * 132  # more than an H100 runs at a time
    if case.lengths is not None or (case.sequence <= 128 and case.head_size == 64 and many):
        # Small blocks: little work past the end of a sequence, and of the grid. Widening int8 takes registers.
        return Tiling(64, 2, 1, 4 if as_float16(case) else 5)
    if case.sequence <= 128:
        return Tiling(128, 1, 1, 4)
    return Tiling(128, ceil_div(case.sequence, 128), 2, 2) if case.sequence <= 384 else Tiling(96, 3, 2, 2)


def plan(case: AttentionCase) -> Plan:
    """One launch."""
    return Plan(buffers(case), (launch(case),))


def buffers(case: AttentionCase) -> tuple[Buffer, ...]:
    found = [Buffer("qkv", case.dtype, shape_of(case, 3 * case.hidden))]
    if case.counts is not None:
        found.append(Buffer("counts", "int32", (case.batch,)))
    if case.lengths is not None:
        found.append(Buffer("cu_seqlens", "int32", (case.batch + 1,)))
    return (*found, Buffer("context", case.dtype, shape_of(case, case.hidden), "out"))


def shape_of(case: AttentionCase, columns: int) -> tuple[int, ...]:
    """How a tensor of so many columns lies in memory."""
    return (columns // PANEL, case.tokens, PANEL) if case.interleaved else (*case.rows, columns)


def _as_rows(case: AttentionCase, x: np.ndarray) -> np.ndarray:
    """What is stored as [*rows, columns]."""
    return x.transpose(1, 0, 2).reshape(*case.rows, -1) if case.interleaved else x


def _as_stored(case: AttentionCase, x: np.ndarray) -> np.ndarray:
    return x.reshape(case.tokens, -1, PANEL).transpose(1, 0, 2) if case.interleaved else x


def launch(case: AttentionCase, tiles: Tiling | None = None) -> Launch:
    """The launch of a case, with its own division of work or another one."""
    scale = LOG2_E / math.sqrt(case.head_size)
    if case.dtype == "float32":
        floats = (ROWS + 32) * (case.head_size + 4) + 32 * case.head_size + ROWS * 33
        return _launch(case, "attention_fp32", ROWS, 256, {"scale": scale}, 4 * floats)
    if case.dtype == "int8" and not as_float16(case):
        scales = {"scale": scale * case.input_scale**2, "quantum": 1 / case.dq_probs,
                  "output_factor": case.dq_probs * case.input_scale / case.output_scale}  # fmt: skip
        return _launch(case, "attention_int8", ROWS, 128, scales, 4 * ROWS * case.head_size, strides=_strides(case))
    t = tiles or tiling(case)
    defines: dict[str, str | int] = {
        "ELEMENT": "tiles::BFloat16" if case.dtype == "bfloat16" else "tiles::Half", "TILE_KEYS": t.keys,
        "STAGES": t.stages, "WARPGROUPS": t.warpgroups, "BLOCKS": t.blocks,
        "RESIDENT": int(t.stages * t.keys >= case.sequence),
        "WARPGROUP_MATRIX": int(uses_warpgroups(case)),
    }  # fmt: skip
    scales = {"scale": scale, "factor": 1.0}
    if as_float16(case):
        defines["STORED"] = "signed char"
        scales = {"scale": scale * case.input_scale**2, "factor": case.input_scale / case.output_scale}
    shared = t.shared_bytes(case.head_size)
    return _launch(case, "attention_16bit", t.queries, 128 * t.warpgroups, scales, shared, defines)


def _launch(case: AttentionCase, entry: str, queries: int, threads: int, scales: Mapping[str, float], shared: int,
            defines: Mapping[str, str | int] = MappingProxyType({}),
            strides: Mapping[str, int] = MappingProxyType({})) -> Launch:  # fmt: skip
    """One block for so many queries of a head."""
    grid = (case.heads, ceil_div(case.sequence, queries), case.batch)
    arguments = _tensors(case) | {name: np.int32(value) for name, value in strides.items()}
    arguments |= {name: np.float32(value) for name, value in scales.items()}
    macros = {"HEAD_SIZE": case.head_size, **defines}
    return Launch(
        CUDA / f"{entry.removesuffix('_16bit')}.cu", entry, grid, (threads, 1, 1), tuple(arguments.values()), shared,
        tuple((name, str(value)) for name, value in macros.items()), tuple(arguments), overlaps=True,
    )  # fmt: skip


def _tensors(case: AttentionCase) -> dict[str, Argument]:
    head, part = case.strides
    return {
        "qkv": Pointer("qkv"), "out": Pointer("context"),
        "valid": Pointer("counts" if case.counts is not None else None),
        "starts": Pointer("cu_seqlens" if case.lengths is not None else None), "sequence": np.int32(case.sequence),
        "head_stride": np.int32(head), "part_stride": np.int32(part),
    }  # fmt: skip


def _strides(case: AttentionCase) -> dict[str, int]:
    """Of attention_int8.cu, in elements."""
    rows = (PANEL, PANEL) if case.interleaved else (3 * case.hidden, case.hidden)
    return {"row_stride": rows[0], "context_stride": rows[1], "panel_stride": case.panel_stride}


def inputs(case: AttentionCase, random: np.random.Generator) -> Arrays:
    """Fresh numbers: standard normal, or of every magnitude."""
    values = random.standard_normal(shape_of(case, 3 * case.hidden), np.float32)
    if case.values == "extreme":
        values = np.copysign(np.exp2(random.uniform(-26, 15.9, values.shape)), values)
    arrays = {"qkv": numbers.encode(values / case.input_scale if case.dtype == "int8" else values, case.dtype)}
    if case.counts is not None:
        arrays["counts"] = np.array(case.counts, np.int32)
    if case.lengths is not None:
        arrays["cu_seqlens"] = np.cumsum((0, *case.lengths)).astype(np.int32)
    return arrays


def expected(case: AttentionCase, arrays: Arrays) -> Arrays:
    """The context in float64; of INT8 divided by its scale, not yet rounded."""
    qkv = _as_rows(case, numbers.decode(arrays["qkv"], case.dtype))
    counts, starts = arrays.get("counts"), arrays.get("cu_seqlens")
    if case.dtype == "int8":
        scales = (case.input_scale, case.output_scale, None if as_float16(case) else case.dq_probs)
        context = reference.qkv_to_context_int8(qkv, case.heads, *scales, counts, starts, layout=case.layout)
    elif starts is not None:
        context = reference.qkv_to_context_varlen(qkv, case.heads, starts, layout=case.layout)
    else:
        context = reference.qkv_to_context(qkv, case.heads, counts, layout=case.layout)
    return {"context": _as_stored(case, context)}


def bound(case: AttentionCase, arrays: Arrays, outputs: Arrays) -> Arrays:
    """The error that rounding explains: of the scores and sums in float32, of the probabilities, and of the result."""
    error = np.zeros((*case.rows, case.hidden))
    for where, q, k, v in _sequences(case, arrays):
        error[where] = _error(case, q, k, v).reshape(len(q), -1)
    if case.dtype == "int8":
        return {"context": _as_stored(case, error / case.output_scale + 0.5 + 1e-3)}
    return {"context": error + numbers.rounding(np.abs(outputs["context"]) + error, case.dtype)}


def _sequences(case: AttentionCase, arrays: Arrays) -> Iterator[tuple[Any, Reals, Reals, Reals]]:
    """Where each sequence stands in the context, and its Q [S, N, H] and valid K, V; those with no valid key left out."""
    step = case.input_scale if case.dtype == "int8" else 1.0
    qkv = _as_rows(case, numbers.decode(arrays["qkv"], case.dtype)) * step
    starts = arrays.get("cu_seqlens")
    for b in range(case.batch):
        where = (slice(None), b) if starts is None else (slice(starts[b], starts[b + 1]),)
        q, k, v = reference.split_qkv(qkv[where], case.heads, case.layout)
        valid = len(k) if case.counts is None else min(max(case.counts[b], 0), len(k))
        if valid:
            yield where, q, k[:valid], v[:valid]


def _error(case: AttentionCase, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Absolute error of one sequence's context [S, N, H] before it is rounded to its format."""
    float32 = numbers.FORMATS["float32"].roundoff
    spread = np.einsum("snh,tnh->nst", np.abs(q), np.abs(k)) / math.sqrt(case.head_size)
    scores = np.einsum("snh,tnh->nst", q, k) / math.sqrt(case.head_size)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    probabilities = weights / weights.sum(axis=-1, keepdims=True)
    wrong = 0.0 if case.dtype == "int8" else (case.head_size + 4) * float32 * spread  # of a score; int32 sums are exact
    wrong = wrong + 8 * float32 * (1 + np.abs(scores) + np.abs(scores).max(axis=-1, keepdims=True))
    doubled = 2 * wrong.max(axis=-1, keepdims=True)
    relative = np.expm1(np.minimum(doubled, 30.0)) + (len(k) + 8) * float32
    if case.dtype == "int8" and not as_float16(case):
        return np.asarray(np.einsum("nst,tnh->snh", _flips(probabilities, relative, case.dq_probs), np.abs(v)))
    form = numbers.FORMATS["float16" if as_float16(case) else case.dtype]
    relative = relative + form.roundoff
    absolute = form.subnormal * (case.dtype != "bfloat16")  # a probability that float16 holds as a subnormal number
    largest = 2 * np.abs(v).max(axis=0)  # whatever the probabilities, their sum is 1
    error = np.minimum(np.einsum("nst,tnh->snh", probabilities * relative + absolute, np.abs(v)), largest)
    for head, query in np.argwhere(doubled[..., 0] >= 30):
        open_keys = (
            scores[head, query] >= scores[head, query].max() - doubled[head, query] - 30
        )  # all others are nothing
        error[query, head] = np.ptp(v[open_keys, head], axis=0) + 1e-9 * largest[head]
    return np.asarray(error)


def _flips(probabilities: np.ndarray, relative: np.ndarray, step: float) -> np.ndarray:
    """By how much a probability may differ once rounded to whole steps: by one, where it stands between two."""
    steps = probabilities / step
    margin = steps * relative + 1e-6
    return np.where(np.abs(steps - np.floor(steps) - 0.5) <= margin, step, 0.0)


def peer(case: AttentionCase, arrays: Arrays) -> Arrays:
    """The formula as it is usually written: float32, probabilities normalised and then rounded to the format."""
    if case.dtype == "int8":
        return {"context": numbers.encode(expected(case, arrays)["context"], "int8").astype(np.float64)}
    context = np.zeros((*case.rows, case.hidden))
    for where, q, k, v in _sequences(case, arrays):
        queries, keys, values = (x.astype(np.float32) for x in (q, k, v))
        scores = np.einsum("snh,tnh->nst", queries, keys) / np.float32(math.sqrt(case.head_size))
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        probabilities = numbers.encode(weights / weights.sum(axis=-1, keepdims=True), case.dtype)
        found = np.einsum("nst,tnh->snh", numbers.decode(probabilities, case.dtype).astype(np.float32), values)
        context[where] = numbers.decode(numbers.encode(found, case.dtype), case.dtype).reshape(len(q), -1)
    return {"context": context}


def flops(case: AttentionCase) -> int:
    """Two products over the valid keys of every query, a multiplication and an addition each."""
    if case.lengths is not None:
        pairs = sum(n * n for n in case.lengths)
    else:
        counts = case.counts or (case.sequence,) * case.batch
        pairs = case.sequence * sum(min(max(n, 0), case.sequence) for n in counts)
    return 4 * case.hidden * pairs


def _cases() -> Iterator[AttentionCase]:
    """Every format, head size, layout and way of masking; odd sizes; both engines where there are two."""
    engines = ((8, 0), WARPGROUP_CAPABILITY)
    for capability in engines:
        for size in HEAD_SIZES:
            dtype = "bfloat16" if size in (64, 96) else "float16"
            yield AttentionCase(2, 70, 3, size, dtype, counts=(70, 1), capability=capability)
        yield AttentionCase(1, 1, 1, 64, "float16", capability=capability)
        yield AttentionCase(2, 70, 2, 64, "float16", layout="qkvnh", capability=capability)
        yield AttentionCase(1, 70, 2, 64, "float16", capability=capability, values="extreme")
        yield AttentionCase(3, 33, 1, 64, "float16", counts=(0, 33, 17), capability=capability)
        yield AttentionCase(4, 150, 2, 64, "float16", lengths=(150, 0, 1, 67), capability=capability)
        yield AttentionCase(1, 400, 1, 32, "bfloat16", capability=capability)
    yield AttentionCase(2, 70, 3, 32, "int8", counts=(70, 1), products="float16")
    yield AttentionCase(
        3, 130, 2, 64, "int8", counts=(0, 130, 65), layout="qkvnh", products="float16", capability=engines[1]
    )
    yield AttentionCase(2, 70, 3, 128, "int8", products="float16", capability=engines[1])
    yield AttentionCase(4, 150, 2, 64, "int8", lengths=(150, 0, 1, 67), products="float16", capability=engines[1])
    for dtype in ("float32", "int8"):
        for size in HEAD_SIZES:
            yield AttentionCase(2, 37, 3, size, dtype, counts=(37, 1))
        yield AttentionCase(3, 100, 1, 64, dtype, counts=(0, 100, 65), layout="qkvnh")
        yield AttentionCase(4, 90, 2, 32, dtype, lengths=(90, 0, 1, 67))
    for size in HEAD_SIZES:
        yield AttentionCase(3, 90, 2, size, "int8", lengths=(90, 0, 41), layout="qkvnh", interleaved=True)
    yield AttentionCase(3, 33, 3, 64, "int8", counts=(0, 33, 17), interleaved=True)


def _bench() -> Iterator[AttentionCase]:
    h100 = WARPGROUP_CAPABILITY
    yield AttentionCase(32, 128, 12, 64, capability=h100)
    yield AttentionCase(32, 384, 16, 64, capability=h100)
    yield AttentionCase(8, 128, 12, 64, capability=h100)
    for size, heads in ((32, 24), (96, 8), (128, 6)):
        for sequence in (128, 384):
            yield AttentionCase(32, sequence, heads, size, capability=h100)
    for sequence, heads in ((128, 12), (384, 16)):
        yield AttentionCase(32, sequence, heads, 64, lengths=uniform_lengths(32, sequence), capability=h100)
    yield AttentionCase(32, 384, 16, 64)
    yield AttentionCase(32, 384, 16, 64, "int8")
    for sequence, heads in ((128, 12), (384, 16)):
        yield AttentionCase(32, sequence, heads, 64, "int8", products="float16", capability=h100)
    yield AttentionCase(32, 384, 16, 64, "int8", lengths=uniform_lengths(32, 384), layout="qkvnh", interleaved=True)
    yield AttentionCase(32, 384, 16, 64, "float32")


def uniform_lengths(batch: int, longest: int) -> tuple[int, ...]:
    """Lengths spread evenly over 0.2 .. 1.0 of the longest, in an order of no meaning; 7 does not divide `batch`."""
    lengths = np.linspace(0.2, 1.0, batch) * longest
    return tuple(round(float(lengths[i * 7 % batch])) for i in range(batch))


SPEC = KernelSpec(
    name="attention",
    summary="QKV-to-context: softmax(Q K^T / sqrt(H)) V from one merged product",
    plugin="CustomQKVToContextPluginDynamic",
    versions={"1": "4", "2": "5", "3": "6"},
    fields=("type_id", "hidden_size", "num_heads", "has_mask", "dq_probs", "var_seqlen", "use_int8_scale_max",
            "use_explicit_int8", "input_qkv_scale", "output_ctx_scale"),
    dtypes=DTYPES, cases=tuple(_cases()), bench=tuple(_bench()), plan=plan, inputs=inputs, reference=expected,
    bound=bound, refuse=refuse, flops=flops, peer=peer,
)  # fmt: skip
