"""INT8 scales from what real text makes of the activations: by the largest value, or by least loss of information."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from harness.bert import reference as bert_reference
from harness.bert.model import BertConfig, Weights

Array = np.ndarray[Any, Any]
Method = Literal["max", "entropy"]
METHODS: tuple[Method, ...] = ("max", "entropy")

LEVELS = 128  # of a magnitude in int8
BINS = 2048
LARGEST = 127
LEAST = 1e-12  # a tensor of zeros still needs a scale


@dataclass
class Histogram:
    """Magnitudes of one tensor in `BINS` equal bins up to `reach`, which doubles where a larger one is met."""

    reach: float = 0.0
    largest: float = 0.0
    counts: Array | None = None
    channels: Array | None = None  # the largest of each

    def add(self, values: Array) -> None:
        """Values [.., channels]."""
        magnitudes = np.abs(values, dtype=np.float32)
        magnitudes = np.where(np.isfinite(magnitudes), magnitudes, 0.0).reshape(-1, values.shape[-1])
        most_by_channel = magnitudes.max(axis=0, initial=0.0)
        self.channels = most_by_channel if self.channels is None else np.maximum(self.channels, most_by_channel)
        if not magnitudes.size:
            return
        most = float(magnitudes.max())
        self.largest = max(self.largest, most)
        if self.counts is None:
            self.reach, self.counts = max(most, LEAST), np.zeros(BINS, np.int64)
        while most > self.reach:
            halves = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts, self.reach = np.concatenate([halves, np.zeros_like(halves)]), 2 * self.reach
        self.counts = self.counts + np.histogram(magnitudes, BINS, (0, self.reach))[0]

    def scale(self, method: Method) -> float:
        """One step of int8, as a real number."""
        most = self.largest if method == "max" or self.counts is None else min(self.largest, self._threshold())
        return max(most, LEAST) / LARGEST

    def _threshold(self) -> float:
        """Where to cut off, so that the quantised distribution tells most of the original one (least divergence)."""
        assert self.counts is not None
        counts = self.counts.astype(np.float64)
        counts[0] = 0.0 if counts[1:].any() else counts[0]  # exact zeros cost nothing at any scale
        widths = range(LEVELS, BINS + 1, 16)
        losses = [divergence(counts, width) for width in widths]
        return self.reach * widths[int(np.argmin(losses))] / BINS


def divergence(counts: Array, width: int) -> float:
    """Kullback-Leibler divergence of the counts, cut off after `width` bins, from the same in `LEVELS` steps."""
    kept = counts[:width].copy()
    kept[-1] += counts[width:].sum()  # what is cut off saturates
    level = np.arange(width) * LEVELS // width
    filled = counts[:width] > 0
    sums = np.bincount(level, weights=counts[:width], minlength=LEVELS)
    bins = np.bincount(level, weights=filled, minlength=LEVELS)
    told = np.where(filled, (sums / np.maximum(bins, 1))[level], 0.0)
    p, q = kept / max(kept.sum(), 1), told / max(told.sum(), 1)
    known = p > 0
    return float(np.sum(p[known] * np.log(p[known] / np.maximum(q[known], 1e-12))))


@dataclass(frozen=True)
class Scales:
    """By the names that `bert_reference.forward` observes: one step of int8 for a tensor, and each channel's largest
    value, for tensors whose channels differ too much to share a step."""

    tensors: Mapping[str, float]
    channels: Mapping[str, Array]


@dataclass(frozen=True)
class Calibration:
    """Histograms of the activations by the names that `bert_reference.forward` observes."""

    histograms: Mapping[str, Histogram]

    def scales(self, method: Method) -> Scales:
        """`method` chooses the steps of whole tensors; channels are told by their largest value.

        A channel counts as at least the median one: that it was small in a few sentences says little of the next.
        """
        found = self.histograms.items()
        channels = {
            name: np.maximum(one.channels, np.median(one.channels)) for name, one in found if one.channels is not None
        }
        return Scales({name: one.scale(method) for name, one in found}, channels)


def calibrate(config: BertConfig, weights: Weights, batches: Iterable[Mapping[str, Array]]) -> Calibration:
    """Run batches (`bert.INPUTS`, [B, S]) in float32 and look at every tensor; positions that the mask hides do not count."""
    histograms: dict[str, Histogram] = {}
    for feeds in batches:
        valid = feeds["attention_mask"] != 0

        def observe(name: str, values: Array, valid: Array = valid) -> None:
            histograms.setdefault(name, Histogram()).add(values[valid])

        bert_reference.forward(config, weights, feeds, observe)
    return Calibration(histograms)
