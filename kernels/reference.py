"""Every operation as it is defined, in float64: what the kernels are measured against.

Arrays are float64 unless an integer is named; letters are the plugins': S sequence, B batch, E hidden size, N heads,
H = E / N, T = sum of lengths. Nothing here is fast, and nothing is clever.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from kernels.numbers import Reals

Layout = Literal["nqkvh", "qkvnh"]  # of the merged product's last axis: [N, 3, H] (permuted weights) or [3, N, H]

EPSILON = 1e-12  # BERT's own; it also keeps a row of equal values defined
_erf = np.vectorize(math.erf, otypes=[np.float64])


def layer_norm(x: Reals, gamma: Reals, beta: Reals, epsilon: float = EPSILON) -> Reals:
    """[..., E] normalised over its last axis."""
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = np.mean(centred**2, axis=-1, keepdims=True)
    return np.asarray(centred / np.sqrt(variance + epsilon) * gamma + beta)


def skip_sum(x: Reals, skip: Reals, bias: Reals | None = None) -> Reals:
    """[..., E]: what the normalisation of skip + layernorm reads."""
    return x + skip + (0.0 if bias is None else bias)


def embedding_sum(words: np.ndarray, segments: np.ndarray, positions: np.ndarray, tables: Sequence[Reals]) -> Reals:
    """Sum of three rows, [..., E], for int ids of one shape; tables are word, token type, position, each [rows, E].

    An id that has no row makes NaN: loud, and no memory is read that is not there.
    """
    ids = (words, segments, positions)
    return np.asarray(np.sum([table_rows(table, i) for table, i in zip(tables, ids, strict=True)], axis=0))


def table_rows(table: Reals, ids: np.ndarray) -> Reals:
    """[..., E]: the row of each id; NaN for an id that has none."""
    known = (ids >= 0) & (ids < len(table))
    return np.where(known[..., None], table[np.where(known, ids, 0)], np.nan)


def varlen_positions(cu_seqlens: np.ndarray) -> np.ndarray:
    """int [T]: the place of each token in its own sequence."""
    return np.concatenate([np.arange(n) for n in np.diff(cu_seqlens)] or [np.zeros(0, np.int64)])


def mask_counts(mask: np.ndarray) -> np.ndarray:
    """int32 [B] from int [S, B]: how many positions stand before the first zero of each sequence."""
    zeros = mask == 0
    return np.asarray(np.where(zeros.any(axis=0), zeros.argmax(axis=0), mask.shape[0]), np.int32)


def gelu_tanh(x: Reals) -> Reals:
    return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def erf(x: Reals) -> Reals:
    return np.asarray(_erf(x))


def gelu_erf(x: Reals) -> Reals:
    return 0.5 * x * (1.0 + erf(x / math.sqrt(2.0)))


def fully_connected(x: Reals, weights: Reals, bias: Reals | None = None) -> Reals:
    """[M, K] @ [K, out_dims] + [out_dims]."""
    return x @ weights + (0.0 if bias is None else bias)


def quantise(x: Reals, scale: float) -> np.ndarray:
    """int8 of x / scale: nearest, ties to even, saturated to -128..127."""
    return np.clip(np.rint(x / scale), -128, 127).astype(np.int8)


def split_qkv(qkv: Reals, heads: int, layout: Layout = "nqkvh") -> tuple[Reals, Reals, Reals]:
    """Q, K and V [..., N, H] of a merged product [..., 3E]."""
    size = qkv.shape[-1] // (3 * heads)
    if layout == "nqkvh":
        split = qkv.reshape(*qkv.shape[:-1], heads, 3, size)
        return split[..., 0, :], split[..., 1, :], split[..., 2, :]
    split = qkv.reshape(*qkv.shape[:-1], 3, heads, size)
    return split[..., 0, :, :], split[..., 1, :, :], split[..., 2, :, :]


def attend(q: Reals, k: Reals, v: Reals, valid: int | None = None, *,
           dq_probs: float | None = None) -> Reals:  # fmt: skip
    """One sequence: softmax(Q K^T / sqrt(H)) V, for [S, N, H]; keys from `valid` on do not count.

    With no valid key at all the result is zero. With `dq_probs` the probabilities are rounded to int8 steps of that
    size, as INT8 kernels keep them.
    """
    valid = len(k) if valid is None else valid
    if valid == 0:
        return np.zeros(q.shape)
    scores = np.einsum("snh,tnh->nst", q, k[:valid]) / math.sqrt(q.shape[-1])
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    probabilities = weights / weights.sum(axis=-1, keepdims=True)
    if dq_probs is not None:
        probabilities = quantise(probabilities, dq_probs) * dq_probs
    return np.asarray(np.einsum("nst,tnh->snh", probabilities, v[:valid]))


def qkv_to_context(qkv: Reals, heads: int, counts: np.ndarray | None = None, *, layout: Layout = "nqkvh",
                   dq_probs: float | None = None) -> Reals:  # fmt: skip
    """Fixed length: [S, B, 3E] -> [S, B, E]; `counts` int [B] are the valid tokens, a prefix of each sequence.

    Every query row is computed, those of padding too: they attend to the valid keys as all others do.
    """
    sequence, batch, width = qkv.shape
    out = np.empty((sequence, batch, width // 3))
    for b in range(batch):
        q, k, v = split_qkv(qkv[:, b], heads, layout)
        valid = None if counts is None else int(np.clip(counts[b], 0, sequence))
        out[:, b] = attend(q, k, v, valid, dq_probs=dq_probs).reshape(sequence, -1)
    return out


def qkv_to_context_varlen(qkv: Reals, heads: int, cu_seqlens: np.ndarray, *, layout: Layout = "nqkvh",
                          dq_probs: float | None = None) -> Reals:  # fmt: skip
    """Variable length: [T, 3E] and int [B + 1] -> [T, E]; sequence b is tokens cu_seqlens[b] to cu_seqlens[b + 1]."""
    out = np.zeros((qkv.shape[0], qkv.shape[1] // 3))
    for start, end in itertools.pairwise(cu_seqlens):
        q, k, v = split_qkv(qkv[start:end], heads, layout)
        out[start:end] = attend(q, k, v, dq_probs=dq_probs).reshape(end - start, out.shape[1])
    return out


def qkv_to_context_int8(qkv: Reals, heads: int, input_scale: float, output_scale: float, dq_probs: float | None,
                        counts: np.ndarray | None = None, cu_seqlens: np.ndarray | None = None, *,
                        layout: Layout = "nqkvh") -> Reals:  # fmt: skip
    """INT8 [S, B, 3E], or [T, 3E] with `cu_seqlens`: what is to be written divided by its scale, float64, not rounded.

    A correct kernel's int8 lies within one step of it: rounding here, or of a probability, may go the other way.
    """
    wide = qkv.astype(np.float64) * input_scale
    if cu_seqlens is not None:
        context = qkv_to_context_varlen(wide, heads, cu_seqlens, layout=layout, dq_probs=dq_probs)
    else:
        context = qkv_to_context(wide, heads, counts, layout=layout, dq_probs=dq_probs)
    return np.clip(context / output_scale, -128, 127)


def disentangled_index(distance: np.ndarray, span: int) -> np.ndarray:
    """Column of a relative distance (query minus key), int: clipped to [0, 2 span - 1]. DeBERTa v1."""
    return np.asarray(np.clip(distance + span, 0, 2 * span - 1))


def disentangled_bucket_index(distance: np.ndarray, span: int) -> np.ndarray:
    """The same for DeBERTa v2: distances to span / 2 each have a column, those to 2 span share the rest, logarithmically."""
    middle = span // 2
    far_enough = np.maximum(np.abs(distance), middle)
    share = np.log(far_enough / middle) / math.log((2 * span - 1) / middle) * (middle - 1)
    far = np.ceil(share - 1e-9).astype(np.int64) + middle  # what is an integer stays one
    bucket = np.where(np.abs(distance) <= middle, distance, np.sign(distance) * far)
    return np.asarray(np.clip(bucket + span, 0, 2 * span - 1))


def disentangled_attention(c2c: Reals, c2p: Reals, p2c: Reals, factor: float, *,
                           bucketed: bool) -> Reals:  # fmt: skip
    """[BN, S, S] from c2c [BN, S, S] and c2p, p2c [BN, S, 2 span]; query i, key j, column d of the distance i - j:

    out[i, j] = (c2c[i, j] + c2p[i, d] + p2c[j, d]) * factor
    """
    rows = np.arange(c2c.shape[1])
    span = c2p.shape[2] // 2
    index = (disentangled_bucket_index if bucketed else disentangled_index)(rows[:, None] - rows[None, :], span)
    return (c2c + c2p[:, rows[:, None], index] + p2c[:, rows[None, :], index]) * factor
