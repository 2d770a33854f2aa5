"""Our BERT encoder by NumPy, in float32 or float64: what every rung is measured against, and what calibration looks into."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from harness.bert.model import BertConfig, Weights

Array = np.ndarray[Any, Any]
Observe = Callable[[str, Array], None]

KNOTS, REACH = 256, 6  # of the table of erf: knots a unit, and where erf is 1 in float64


def forward(
    config: BertConfig, weights: Weights, feeds: Mapping[str, Array],
    observe: Observe = lambda name, values: None, dtype: Any = np.float32,
) -> Array:  # fmt: skip
    """`last_hidden_state` [B, S, E] for `input_ids`, `token_type_ids`, `attention_mask` [B, S].

    `observe(name, values)` is told of the tensors between the operations, each [B, S, ...]: `embeddings`, and for each
    layer `layer.0.qkv`, `.context`, `.attended`, `.middle`, `.hidden`, `.gelu`, `.output`, and `layer.0` itself. Keys
    that the mask hides do not count.
    """
    return _Encoder(config, weights, observe, dtype).run(feeds)


class _Encoder:
    def __init__(self, config: BertConfig, weights: Weights, observe: Observe, dtype: Any) -> None:
        self.config, self.weights, self.observe, self.dtype = config, weights, observe, dtype

    def run(self, feeds: Mapping[str, Array]) -> Array:
        ids, types = feeds["input_ids"], feeds["token_type_ids"]
        tables = [self.get(f"embeddings.{name}_embeddings.weight") for name in ("word", "token_type", "position")]
        x = tables[0][ids] + tables[1][types] + tables[2][: ids.shape[1]]
        x = self.seen("embeddings", self.norm(x, "embeddings.LayerNorm"))
        hidden = (feeds["attention_mask"] == 0)[:, None, None, :]
        for number in range(self.config.layers):
            x = self.layer(x, hidden, number)
        return x

    def layer(self, x: Array, hidden: Array, number: int) -> Array:
        scope, name, seen = f"encoder.layer.{number}", f"layer.{number}", self.seen
        parts = [self.linear(x, f"{scope}.attention.self.{part}") for part in ("query", "key", "value")]
        self.observe(f"{name}.qkv", np.concatenate(parts, axis=-1))
        context = seen(f"{name}.context", self.attention(parts, hidden))
        attended = seen(f"{name}.attended", self.linear(context, f"{scope}.attention.output.dense"))
        x = seen(f"{name}.middle", self.norm(attended + x, f"{scope}.attention.output.LayerNorm"))
        inner = seen(f"{name}.hidden", self.linear(x, f"{scope}.intermediate.dense"))
        inner = seen(f"{name}.gelu", self.gelu(inner))
        output = seen(f"{name}.output", self.linear(inner, f"{scope}.output.dense"))
        return seen(name, self.norm(output + x, f"{scope}.output.LayerNorm"))

    def attention(self, parts: list[Array], hidden: Array) -> Array:
        """[B, S, E] from Q, K and V."""
        b, s, e = parts[0].shape
        q, k, v = (x.reshape(b, s, self.config.heads, -1).transpose(0, 2, 1, 3) for x in parts)
        scores = q @ k.transpose(0, 1, 3, 2) / self.dtype(math.sqrt(self.config.head_size))
        scores = np.where(hidden, self.dtype(-1e30), scores)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        context = (weights / weights.sum(axis=-1, keepdims=True)) @ v
        return np.asarray(context.transpose(0, 2, 1, 3).reshape(b, s, e))

    def linear(self, x: Array, name: str) -> Array:
        return np.asarray(x @ self.get(f"{name}.weight").T + self.get(f"{name}.bias"))

    def norm(self, x: Array, name: str) -> Array:
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = np.mean(centred * centred, axis=-1, keepdims=True)
        scaled = centred / np.sqrt(variance + self.dtype(self.config.layer_norm_eps))
        return np.asarray(scaled * self.get(f"{name}.weight") + self.get(f"{name}.bias"))

    def gelu(self, x: Array) -> Array:
        if self.config.activation == "gelu_tanh":
            return np.asarray(
                x / 2 * (1 + np.tanh(self.dtype(math.sqrt(2 / math.pi)) * (x + self.dtype(0.044715) * x**3)))
            )
        return np.asarray(x / 2 * (1 + erf(x / self.dtype(math.sqrt(2)))), x.dtype)

    def get(self, name: str) -> Array:
        return np.asarray(self.weights[name], self.dtype)

    def seen(self, name: str, values: Array) -> Array:
        self.observe(name, values)
        return values


def erf(x: Array) -> Array:
    """The error function, float64: cubic between the knots of a table, right to 1e-11."""
    values, slopes = _table()
    away = np.minimum(np.abs(x.astype(np.float64)), REACH - 1e-9) * KNOTS
    left = away.astype(np.int64)
    t = away - left
    low, high, rise, fall = values[left], values[left + 1], slopes[left], slopes[left + 1]
    cubic = low + t * (rise + t * (3 * (high - low) - 2 * rise - fall + t * (2 * (low - high) + rise + fall)))
    return np.asarray(np.copysign(cubic, x))


@functools.cache
def _table() -> tuple[Array, Array]:
    """erf and its slope (a knot further) at the knots."""
    knots = np.arange(REACH * KNOTS + 1) / KNOTS
    return np.array([math.erf(x) for x in knots]), 2 / math.sqrt(math.pi) * np.exp(-(knots**2)) / KNOTS
