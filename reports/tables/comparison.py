"""The statistics of `probe diff`: repeated durations of two sides, matched, compared, and corrected for their number.

For every pair: the ratio of medians (after / before) with a confidence interval from a stratified bootstrap, the
probability of superiority as effect size, and the two-sided p value of the Mann-Whitney test, which the
Benjamini-Hochberg procedure corrects over all pairs. Both methods count on independent repetitions, and those of a GPU
resemble their neighbours (clocks drift, and jump between states): so both count as many as the repetitions are worth. A
pair is `slower` or `faster` only if both say so, the corrected p value and the interval; everything else is `no evidence
of a change`, which is not the same as "equal".
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from reports.columns import TABLES, validate

ALPHA = 0.05
RESAMPLES = 2000
SEED = 20_240_229
EXACT_BELOW = 20  # observations on either side up to which the test counts arrangements instead of approximating
ENOUGH = 4  # observations a side without which no evidence is possible at 5 %
OVERLAP = 0.5  # of their nodes, for two renamed layers to be the same one

SLOWER, FASTER, NOTHING = "slower", "faster", "no evidence of a change"
TOO_FEW = "too few repetitions to tell"
ONLY_BEFORE, ONLY_AFTER = "only before", "only after"

Sample = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Options:
    """`threshold`: the relative slow-down from which on it counts, 0.02 for 2 %; `confidence` of the intervals."""

    threshold: float = 0.0
    alpha: float = ALPHA
    confidence: float = 0.95
    resamples: int = RESAMPLES
    seed: int = SEED


# --- one pair


def worth(sample: Sample) -> int:
    """How many independent repetitions these are worth, in the order of time: n over the autocorrelation time of their
    ranks, which is summed up as far as pairs of autocorrelations stay positive and fall (Geyer's initial sequence).

    All of them where neighbours show no likeness; never fewer than `ENOUGH`, which are too few to show a small change.
    """
    n = len(sample)
    values, place, counts = np.unique(sample, return_inverse=True, return_counts=True)
    if n < 2 * ENOUGH or len(values) == 1:
        return n
    ranks = (np.cumsum(counts) - counts / 2)[place] - n / 2  # equals share a rank: their order in time says nothing
    power = np.abs(np.fft.rfft(ranks, 2 * n)) ** 2
    likeness = np.fft.irfft(power)[:n] / (ranks**2).sum() + 1 / n  # what taking the mean off costs
    if likeness[1] <= 2 / math.sqrt(n):
        return n
    pairs = likeness[: n // 2 * 2].reshape(-1, 2).sum(axis=1)
    falling = np.minimum.accumulate(pairs)
    time = 2 * float(falling[falling > 0].sum()) - 1
    return min(n, max(ENOUGH, int(n / max(time, 1.0))))


def observations(sessions: Sequence[Iterable[float]]) -> Sample:
    """The repetitions of one side. From ENOUGH sessions on, each is one observation, its median: sessions differ among
    themselves (clocks, memory layout), and a thousand iterations of one say nothing about that."""
    samples = [np.asarray(list(session), dtype=np.float64) for session in sessions]
    samples = [sample for sample in samples if len(sample)]
    if len(samples) >= ENOUGH:
        return np.array([np.median(sample) for sample in samples])
    return np.concatenate(samples) if samples else np.empty(0)


def superiority(before: Sample, after: Sample) -> float:
    """P(after > before) + P(equal) / 2 over all pairs of repetitions, in O(n log n)."""
    ordered = np.sort(before)
    less = np.searchsorted(ordered, after, side="left")
    at_most = np.searchsorted(ordered, after, side="right")
    return float((less + at_most).sum() / (2 * len(before) * len(after)))


def mann_whitney(before: Sample, after: Sample, worths: tuple[int, int] | None = None) -> float:
    """The two-sided p value: exact for few observations without ties, else normal with corrections for both. `worths`:
    how many independent observations each side is worth, if fewer than it has."""
    m, n = worths or (len(before), len(after))
    u = superiority(before, after) * m * n
    _, ties = np.unique(np.concatenate((before, after)), return_counts=True)
    total = len(before) + len(after)
    if len(ties) == m + n == total and max(m, n) <= EXACT_BELOW:
        tail = _exact_counts(m, n)[: round(min(u, m * n - u)) + 1].sum()
        return float(min(1.0, 2 * tail / math.comb(m + n, n)))
    spread = m * n * (m + n + 1) / 12 * (1 - float((ties**3 - ties).sum()) / (total**3 - total))
    if spread <= 0:
        return 1.0  # all observations are the same
    z = max(0.0, abs(u - m * n / 2) - 0.5) / math.sqrt(spread)
    return math.erfc(z / math.sqrt(2))


@lru_cache(maxsize=256)
def _exact_counts(m: int, n: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """How many arrangements of m and n observations give U = 0, 1, .. m n: the Gaussian binomial coefficient."""
    counts = np.zeros(m * n + 1)
    counts[0] = 1
    for k in range(1, m + 1):  # multiply by (1 - q^(n + k)), divide by (1 - q^k)
        counts[n + k :] -= counts[: -(n + k)].copy() if n + k <= m * n else 0
        for start in range(k):
            counts[start::k] = np.cumsum(counts[start::k])
    return counts


def ratio_interval(
    before: Sample, after: Sample, options: Options, worths: tuple[int, int] | None = None
) -> tuple[float, float]:
    """Percentile bootstrap of median(after) / median(before); each side is resampled on its own, seeded, with as many
    draws as it is worth."""
    generator = np.random.default_rng(options.seed)
    draws = worths or (len(before), len(after))
    medians = [
        _bootstrap_medians(sample, count, options.resamples, generator)
        for sample, count in zip((before, after), draws, strict=True)
    ]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = medians[1] / medians[0]
    tail = (1 - options.confidence) / 2
    low, high = np.quantile(np.nan_to_num(ratios, nan=1.0, posinf=np.inf), (tail, 1 - tail))
    return float(low), float(high)


def _bootstrap_medians(sample: Sample, draws: int, resamples: int, generator: np.random.Generator) -> Sample:
    """Medians of resamples without drawing them: the ranks of the middle of n uniform draws are beta distributed."""
    ordered = np.sort(sample)
    size = len(ordered)
    lower = generator.beta((draws + 1) // 2, draws + 1 - (draws + 1) // 2, resamples)
    first = ordered[np.minimum((lower * size).astype(np.int64), size - 1)]
    if draws % 2:
        return np.asarray(first)
    # The next one up, given the lower: the least of the n / 2 draws that fall above it.
    upper = lower + (1 - lower) * generator.beta(1, draws // 2, resamples)
    return np.asarray((first + ordered[np.minimum((upper * size).astype(np.int64), size - 1)]) / 2)


def benjamini_hochberg(p_values: Sequence[float]) -> Sample:
    """P values corrected for their number (false discovery rate); NaN stays NaN and counts for nothing."""
    p = np.asarray(p_values, dtype=np.float64)
    corrected = np.full(len(p), np.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known])]
    scaled = p[order] * len(order) / np.arange(1, len(order) + 1)
    corrected[order] = np.minimum(1.0, np.minimum.accumulate(scaled[::-1])[::-1])
    return corrected


# --- matching


@dataclass(frozen=True)
class Match:
    """What is the same thing on both sides; None where one side does not have it."""

    before: str | None
    after: str | None
    by: str  # "name", "nodes", or ""


def match(
    before: Mapping[str, Iterable[Hashable]], after: Mapping[str, Iterable[Hashable]], overlap: float = OVERLAP
) -> list[Match]:
    """Match by name, then what is left by content: the pairs of sets of nodes that overlap most, each taken once.

    Overlap is the share of common nodes among those of either (Jaccard), so that a fusion that swallowed a neighbour is
    still the same fusion. Pairs below `overlap` stay alone. Equal overlaps are taken in the order of the names.
    """
    named = [Match(name, name, "name") for name in before if name in after]
    left = {name: frozenset(nodes) for name, nodes in before.items() if name not in after}
    right = {name: frozenset(nodes) for name, nodes in after.items() if name not in before}
    content = _by_content(left, right, overlap)
    taken = {pair.before for pair in content}, {pair.after for pair in content}
    lone = [Match(name, None, "") for name in left if name not in taken[0]]
    return [*named, *content, *lone, *(Match(None, name, "") for name in right if name not in taken[1])]


def _by_content(
    left: Mapping[str, frozenset[Hashable]], right: Mapping[str, frozenset[Hashable]], overlap: float
) -> list[Match]:
    holders: dict[Hashable, list[str]] = {}
    for name, nodes in right.items():
        for node in nodes:
            holders.setdefault(node, []).append(name)
    candidates = []
    for name, nodes in left.items():
        for other in {other for node in nodes for other in holders.get(node, ())}:
            share = len(nodes & right[other]) / len(nodes | right[other])
            if share >= overlap:
                candidates.append((-share, name, other))
    taken: tuple[set[str], set[str]] = (set(), set())
    matches = []
    for _, name, other in sorted(candidates):
        if name not in taken[0] and other not in taken[1]:
            taken[0].add(name)
            taken[1].add(other)
            matches.append(Match(name, other, "nodes"))
    return matches


# --- all pairs


def compare(
    before: Mapping[str, Iterable[float]],
    after: Mapping[str, Iterable[float]],
    nodes_before: Mapping[str, Iterable[Hashable]] | None = None,
    nodes_after: Mapping[str, Iterable[Hashable]] | None = None,
    options: Options | None = None,
) -> pd.DataFrame:
    """Table `comparison`, the largest change of time first: repeated durations in ns by name (kernel, range, layer).

    `nodes_*`: the ONNX nodes of a layer, to find it again under another name.
    """
    options = options or Options()
    samples = {side: {name: _sample(name, values) for name, values in given.items()}
               for side, given in (("before", before), ("after", after))}  # fmt: skip
    matches = match(_contents(before, nodes_before), _contents(after, nodes_after))
    rows = [_row(pair, samples["before"], samples["after"], options) for pair in matches]
    frame = validate("comparison", pd.DataFrame(rows, columns=list(TABLES["comparison"])))
    frame["p_corrected"] = benjamini_hochberg(frame["p_value"].tolist())
    records: list[Any] = frame.to_dict("records")
    verdicts = [verdict(row, options) for row in records]
    frame["verdict"] = pd.Categorical(verdicts)
    frame["beyond_threshold"] = pd.array(
        [v == SLOWER and row["ratio_low"] > 1 + options.threshold for v, row in zip(verdicts, records, strict=True)],
        dtype="boolean",
    )
    order = np.argsort(-frame["difference_ns"].abs().fillna(-1.0).to_numpy(), kind="stable")
    return frame.iloc[order].reset_index(drop=True)


def _contents(
    given: Mapping[str, Any], nodes: Mapping[str, Iterable[Hashable]] | None
) -> dict[str, Iterable[Hashable]]:
    return {name: (nodes or {}).get(name, ()) for name in given}


def _sample(name: str, values: Iterable[float]) -> Sample:
    sample = np.asarray(list(values), dtype=np.float64)
    if not np.isfinite(sample).all() or (sample < 0).any():
        raise ValueError(f"{name}: durations are finite and not negative")
    return sample


def _row(pair: Match, before: Mapping[str, Sample], after: Mapping[str, Sample], options: Options) -> dict[str, Any]:
    none = np.empty(0)
    a = before[pair.before] if pair.before is not None else none
    b = after[pair.after] if pair.after is not None else none
    row: dict[str, Any] = {
        "name": pair.before if pair.before is not None else pair.after,
        "name_after": pair.after if pair.before not in (None, pair.after) else None,
        "matched_by": pair.by or None,
        "count_before": len(a),
        "count_after": len(b),
        "median_before_ns": float(np.median(a)) if len(a) else np.nan,
        "median_after_ns": float(np.median(b)) if len(b) else np.nan,
    }
    row["difference_ns"] = row["median_after_ns"] - row["median_before_ns"]
    if len(a) and len(b):
        row["ratio"] = row["median_after_ns"] / row["median_before_ns"] if row["median_before_ns"] else np.nan
        row["effect"] = superiority(a, b)
    row["used_before"], row["used_after"] = worths = worth(a), worth(b)
    if min(worths) >= ENOUGH:
        row["ratio_low"], row["ratio_high"] = ratio_interval(a, b, options, worths)
        row["p_value"] = mann_whitney(a, b, worths)
    return row


def verdict(row: Mapping[str, Any], options: Options) -> str:
    """What the numbers of one pair say, in words."""
    if not row["count_before"] or not row["count_after"]:
        return ONLY_BEFORE if row["count_before"] else ONLY_AFTER
    if min(row["count_before"], row["count_after"]) < ENOUGH:
        return TOO_FEW
    if row["p_corrected"] > options.alpha:
        return NOTHING
    if row["ratio_low"] > 1:
        return SLOWER
    return FASTER if row["ratio_high"] < 1 else NOTHING
