"""Embedding + layernorm: three table rows by id, summed and normalised; with the masks that attention reads."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

from kernels import numbers, reference
from kernels.numbers import Reals
from kernels.parts import CUDA, FLOATS, MOST_ELEMENTS, SUFFIX, ceil_div, near_one, normal, sum_of, wide
from kernels.plan import Argument, Buffer, Launch, Plan, Pointer
from kernels.rows import norm_bound, rounded, spread
from kernels.spec import Arrays, KernelSpec

SOURCE = CUDA / "embedding_layernorm.cu"
TABLES = ("word_table", "type_table", "position_table")


@dataclass(frozen=True)
class EmbeddingLayerNorm:
    """Ids [sequence, batch], or [T] where `lengths` are the sequences' own. `mask` makes the int32 [B] counts.

    `residual` also writes the sum before the normalisation (Megatron). `strangers` plants ids that have no row.
    """

    sequence: int
    batch: int
    hidden: int
    dtype: str = "float16"
    lengths: tuple[int, ...] | None = None
    mask: bool = True
    residual: bool = False
    words: int = 61
    token_types: int = 2
    positions: int = 0  # 0: as many as the longest sequence
    strangers: bool = False
    epsilon: float = reference.EPSILON

    @property
    def varlen(self) -> bool:
        return self.lengths is not None

    @property
    def rows(self) -> int:
        return self.sequence * self.batch if self.lengths is None else sum(self.lengths)

    @property
    def table_rows(self) -> tuple[int, int, int]:
        return self.words, self.token_types, self.positions or self.sequence

    @property
    def label(self) -> str:
        size = f"S{self.sequence} B{self.batch} E{self.hidden} {self.dtype}"
        options = (self.varlen and f"varlen T{self.rows}", self.residual and "residual",
                   not self.mask and "no mask", self.strangers and "strange ids",
                   self.positions and f"{self.positions} positions")  # fmt: skip
        return " ".join([size, *(option for option in options if option)])


def refuse(case: EmbeddingLayerNorm) -> str | None:
    if case.dtype not in FLOATS:
        return f"expected one of {', '.join(FLOATS)}, got {case.dtype}"
    if min(case.sequence, case.batch, case.hidden, *case.table_rows) < 1:
        return "expected at least one of each: tokens, sequences, columns, rows of every table"
    if case.lengths is not None and (len(case.lengths) != case.batch or max(case.lengths) > case.sequence):
        return f"expected {case.batch} lengths up to {case.sequence}, got {case.lengths}"
    if case.lengths is not None and (min(case.lengths) < 0 or not case.rows):
        return f"expected lengths that are not below zero, with at least one token, got {case.lengths}"
    if case.rows * case.hidden > MOST_ELEMENTS:
        return f"expected at most {MOST_ELEMENTS} elements, got {case.rows * case.hidden}"
    return None


def plan(case: EmbeddingLayerNorm) -> Plan:
    ids = (case.rows,) if case.varlen else (case.sequence, case.batch)
    out = (*ids, case.hidden)
    buffers = [Buffer("ids", "int32", ids), Buffer("types", "int32", ids)]
    buffers += [Buffer("cu_seqlens", "int32", (case.batch + 1,))] * case.varlen
    buffers += [Buffer("mask", "int32", ids)] * (case.mask and not case.varlen)
    buffers += [Buffer(name, case.dtype, (rows, case.hidden))
                for name, rows in zip(TABLES, case.table_rows, strict=True)]  # fmt: skip
    buffers += [Buffer(name, "float32", (case.hidden,)) for name in ("gamma", "beta")]
    buffers += [Buffer("output", case.dtype, out, "out")]
    buffers += [Buffer("residual", case.dtype, out, "out")] * case.residual
    buffers += [Buffer("counts", "int32", (case.batch,), "out")] * case.mask
    return Plan(tuple(buffers), (_embed(case), *([_mask(case)] if case.mask else [])))


def _embed(case: EmbeddingLayerNorm) -> Launch:
    words, types, positions = case.table_rows
    arguments: dict[str, Argument] = {
        "ids": Pointer("ids"), "types": Pointer("types"),
        "cu_seqlens": Pointer("cu_seqlens" if case.varlen else None),
        **{name: Pointer(name) for name in (*TABLES, "gamma", "beta", "output")},
        "residual": Pointer("residual" if case.residual else None),
        "rows": np.int32(case.rows), "batch": np.int32(case.batch), "hidden": np.int32(case.hidden),
        "words": np.int32(words), "token_types": np.int32(types), "positions": np.int32(positions),
        "epsilon": np.float32(case.epsilon),
    }  # fmt: skip
    grid, block = spread(case.rows, case.hidden)
    entry = f"embedding_layernorm_{SUFFIX[case.dtype]}"
    return Launch(SOURCE, entry, grid, block, tuple(arguments.values()), names=tuple(arguments), overlaps=True)


def _mask(case: EmbeddingLayerNorm) -> Launch:
    counts, batch = Pointer("counts"), np.int32(case.batch)
    if case.varlen:
        return Launch(SOURCE, "length_counts", (ceil_div(case.batch, 128), 1, 1), (128, 1, 1),
                      (Pointer("cu_seqlens"), counts, batch), names=("cu_seqlens", "counts", "batch"), overlaps=True)  # fmt: skip
    return Launch(SOURCE, "mask_counts", (ceil_div(case.batch, 4), 1, 1), (32, 4, 1),
                  (Pointer("mask"), counts, np.int32(case.sequence), batch),
                  names=("mask", "counts", "sequence", "batch"), overlaps=True)  # fmt: skip


def inputs(case: EmbeddingLayerNorm, rng: np.random.Generator) -> Arrays:
    shape = (case.rows,) if case.varlen else (case.sequence, case.batch)
    made: Arrays = {"ids": rng.integers(0, case.words, shape, dtype=np.int32),
                    "types": rng.integers(0, case.token_types, shape, dtype=np.int32)}  # fmt: skip
    if case.strangers:
        made["ids"].flat[:: max(1, case.rows // 3)] = rng.choice([-1, case.words, 2**31 - 1, -(2**31)])
    if case.varlen:
        made["cu_seqlens"] = np.cumsum([0, *(case.lengths or ())]).astype(np.int32)
    elif case.mask:
        made["mask"] = _prefix_mask(case, rng)
    for name, rows in zip(TABLES, case.table_rows, strict=True):
        made[name] = normal(rng, (rows, case.hidden), case.dtype)
    beta = rng.normal(0, 0.2, case.hidden).astype(np.float32)
    return made | {"gamma": near_one(rng, case.hidden), "beta": beta}


def _prefix_mask(case: EmbeddingLayerNorm, rng: np.random.Generator) -> np.ndarray:
    """int32 [S, B]: the first sequence has one valid token, the last all, those between any number."""
    counts = rng.integers(0, case.sequence + 1, case.batch)
    counts[0], counts[-1] = 1, case.sequence
    return (np.arange(case.sequence)[:, None] < counts).astype(np.int32)


def _terms(case: EmbeddingLayerNorm, arrays: Arrays) -> list[Reals]:
    tables = [wide(arrays, name, case.dtype) for name in TABLES]
    if case.varlen:
        positions = reference.varlen_positions(arrays["cu_seqlens"])
    else:
        positions = np.broadcast_to(np.arange(case.sequence)[:, None], arrays["ids"].shape)
    ids = (arrays["ids"], arrays["types"], positions)
    return [reference.table_rows(table, i) for table, i in zip(tables, ids, strict=True)]


def compute(case: EmbeddingLayerNorm, arrays: Arrays) -> Arrays:
    x = sum_of(_terms(case, arrays))
    made = {
        "output": reference.layer_norm(x, arrays["gamma"].astype(float), arrays["beta"].astype(float), case.epsilon)
    }
    if case.residual:
        made["residual"] = x
    if case.mask:
        counts = np.diff(arrays["cu_seqlens"]) if case.varlen else reference.mask_counts(arrays["mask"])
        made["counts"] = counts.astype(np.float64)
    return made


def bound(case: EmbeddingLayerNorm, arrays: Arrays, expected: Arrays) -> Arrays:
    terms = _terms(case, arrays)
    x, size = sum_of(terms), sum_of([np.abs(term) for term in terms])
    error = norm_bound(size, x, arrays["gamma"].astype(float), expected["output"], case.epsilon)
    made = {"output": rounded(error, expected["output"], case.dtype)}
    if case.residual:
        made["residual"] = rounded(numbers.FORMATS["float32"].roundoff * 2 * size, x, case.dtype)
    if case.mask:
        made["counts"] = np.zeros(case.batch)
    return made


def flops(case: EmbeddingLayerNorm) -> int:
    return case.rows * case.hidden * 10


def least_bytes(case: EmbeddingLayerNorm) -> int:
    """Ids and outputs once, and of the tables only the rows that are asked for, at most each once."""
    item = numbers.storage(case.dtype).itemsize
    rows = sum(min(case.rows, size) for size in case.table_rows)
    return case.rows * (8 + case.hidden * item * (1 + case.residual)) + rows * case.hidden * item + 8 * case.hidden


def _cases() -> tuple[EmbeddingLayerNorm, ...]:
    shapes = ((1, 1, 1), (1, 3, 96), (7, 2, 250), (5, 3, 768), (3, 1, 1033))
    made = [EmbeddingLayerNorm(s, b, e, dtype) for dtype, (s, b, e) in product(FLOATS, shapes)]
    lengths: tuple[tuple[int, ...], ...] = ((1,), (7, 1, 3), (4, 0, 5), (420, 2))
    made += [EmbeddingLayerNorm(max(n), len(n), e, dtype, n, residual=residual)
             for dtype, n, (e, residual) in product(FLOATS, lengths, ((40, True), (33, False)))]  # fmt: skip
    made += [EmbeddingLayerNorm(6, 2, 64, dtype, strangers=True, mask=False) for dtype in FLOATS]
    made += [EmbeddingLayerNorm(6, 2, 64, positions=4), EmbeddingLayerNorm(6, 2, 64, positions=512)]
    return tuple(made)


SPEC = KernelSpec(
    name="embedding_layernorm",
    summary="layernorm(word + token type + position) by id, and the masks for attention",
    dtypes=FLOATS,
    cases=_cases(),
    bench=(
        EmbeddingLayerNorm(128, 32, 768, words=30522, positions=512),
        EmbeddingLayerNorm(384, 32, 1024, words=30522, positions=512),
    ),
    plan=plan,
    inputs=inputs,
    reference=compute,
    bound=bound,
    refuse=refuse,
    flops=flops,
    bytes=least_bytes,
    plugin="CustomEmbLayerNormPluginDynamic",
    versions={"1": "6", "2": "4", "3": "5"},
    fields=(
        *(f"bert_embeddings_{name}" for name in ("layernorm_beta", "layernorm_gamma", "word_embeddings",
                                                 "token_type_embeddings", "position_embeddings")),
        "output_fp16", "full_mask", "mha_type_id",
    ),
)  # fmt: skip
