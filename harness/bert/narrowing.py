"""Weights made narrow: int8 with steps by channel, int4 with steps by group, two of four pruned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.bert.model import BertConfig, Linear8, Weights

Array = np.ndarray[Any, Any]
INT8_LARGEST, INT4_LARGEST = 127, 7
INT4_GROUP = 64  # rows of a weight [in, out] that share a step
LEAST = 1e-12  # a channel of zeros still needs a step
MIGRATED = 0.7  # of the differences between input channels, the part (as an exponent) that goes into the weights


@dataclass(frozen=True)
class Quantised:
    """A linear layer in int8: weights [out, in], the factor from int32 sums to int8 results, and what one step of each
    input and output channel is as a real number."""

    weights: Array
    factor: float
    input_steps: Array
    output_steps: Array


def quantise_linear(kernel: Array, inputs: Array, outputs: Array, *, smooth: bool, uniform: bool) -> Quantised:
    """Quantise a float32 kernel [out, in] whose input and output channels are as large as `inputs` and `outputs` say.

    `smooth`: steps of input channels differ, and the weights take up the difference, so that a channel of outliers does
    not spoil the others. `uniform`: all outputs share a step, as attention wants it; else each has its own, at no cost,
    because a row of weights with a larger step gives results with one.
    """
    inputs, outputs = np.maximum(inputs, LEAST), np.maximum(outputs, LEAST)
    share = _share(kernel, inputs) if smooth else np.ones_like(inputs)
    step = float((inputs / share).max()) / INT8_LARGEST
    moved = kernel * share
    rows = np.maximum(np.abs(moved).max(axis=1), LEAST)
    if uniform:
        rows, outputs = np.full_like(rows, rows.max()), np.full_like(outputs, outputs.max())
        factor = float(rows[0] * step / outputs[0])
    else:
        factor = float(np.median(rows * step / outputs))
        rows = np.maximum(rows, factor * outputs / step)
    weights = np.clip(np.rint(moved / (rows[:, None] / INT8_LARGEST)), -INT8_LARGEST, INT8_LARGEST).astype(np.int8)
    row_steps = rows / INT8_LARGEST
    return Quantised(
        weights, factor, np.asarray(step * share, np.float32), np.asarray(step * row_steps / factor, np.float32)
    )


def _share(kernel: Array, inputs: Array) -> Array:
    """[in]: what each input channel is divided by, and its column of the weights [out, in] multiplied with."""
    columns = np.maximum(np.abs(kernel).max(axis=0), LEAST)
    return np.asarray(inputs**MIGRATED / columns ** (1 - MIGRATED))


def linears(config: BertConfig, weights: Weights, channels: Mapping[str, Array]) -> dict[str, Linear8]:
    """Every linear layer of the encoder in INT8 by its name, Q, K and V merged.

    `channels` are the largest values by the names that `bert_reference.forward` observes.
    """
    found = {}
    for number in range(config.layers):
        scope, layer = f"encoder.layer.{number}", f"layer.{number}"
        sources = {
            "attention.self.qkv": f"layer.{number - 1}" if number else "embeddings",
            "attention.output.dense": f"{layer}.context",
            "intermediate.dense": f"{layer}.middle",
            "output.dense": f"{layer}.gelu",
        }
        for name, source in sources.items():
            parts = [name.replace("qkv", part) for part in ("query", "key", "value")] if "qkv" in name else [name]
            kernel = np.concatenate([weights[f"{scope}.{part}.weight"] for part in parts])
            found[f"{scope}.{name}"] = _linear8(np.asarray(kernel, np.float32), np.maximum(channels[source], LEAST))
    return found


def _linear8(kernel: Array, inputs: Array) -> Linear8:
    """From weights [out, in] and how large each input channel gets."""
    share = _share(kernel, inputs)
    moved = kernel * share
    steps = np.maximum(np.abs(moved).max(axis=1), LEAST) / INT8_LARGEST
    rounded = np.rint(moved / steps[:, None]).astype(np.int8)
    step = float((inputs / share).max()) / INT8_LARGEST
    return Linear8(share.astype(np.float32), step, np.ascontiguousarray(rounded.T), steps.astype(np.float32))


def pack_int4(kernel: Array, group: int) -> tuple[Array, Array]:
    """uint8 [k / 2, n] and float32 scales [k / group, n] of a float32 [k, n]: symmetric, the largest of a group is 7."""
    k, n = kernel.shape
    grouped = kernel.reshape(k // group, group, n)
    scales = np.maximum(np.abs(grouped).max(axis=1) / INT4_LARGEST, np.float32(1e-12)).astype(np.float32)
    steps = np.clip(np.rint(grouped / scales[:, None]), -8, 7).reshape(k, n).astype(np.int8) + 8
    return np.asarray(steps[0::2] | steps[1::2] << 4, np.uint8), scales


def pruned(weights: Weights) -> dict[str, Array]:
    """The weights with the two smaller of every four neighbours along a linear layer's inputs set to zero (2:4)."""
    return {name: _pruned(array) if _is_linear(name, array) else array for name, array in weights.items()}


def _is_linear(name: str, array: Array) -> bool:
    return name.startswith("encoder.") and name.endswith(".weight") and array.ndim == 2 and array.shape[1] % 4 == 0


def _pruned(array: Array) -> Array:
    fours = np.array(array, np.float32).reshape(-1, 4)
    smaller = np.argsort(np.abs(fours), axis=1, kind="stable")[:, :2]
    np.put_along_axis(fours, smaller, 0.0, axis=1)
    return fours.reshape(array.shape)
