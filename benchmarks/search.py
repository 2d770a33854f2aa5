"""How many evaluations the search needs, against bisection once per culprit, ddmin and a prefix bisection.

Run: `python -m benchmarks.search` (`--seeds 5` for a quick look; the ddmin column needs `pip install picire`).
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import logging
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table

from harness.record import Answer, Outcome
from probes.bisecting.search import Found, Query, drive, smallest_kept

N = 1000
HAS_PICIRE = importlib.util.find_spec("picire") is not None  # without it the ddmin column stays empty
Planted = list[frozenset[int]]  # minimal failing sets: a query that holds one of them fails


class Oracle:
    """Counts its evaluations; the same question is answered from memory, for every method alike."""

    def __init__(self, judge: Callable[[Query], Answer]) -> None:
        self.judge, self.known = judge, dict[Query, Answer]()

    def __call__(self, query: Query) -> Answer:
        if query not in self.known:
            self.known[query] = self.judge(query)
        return self.known[query]

    def passes(self, query: Query) -> bool:
        return self(query).outcome is Outcome.PASS

    @property
    def evaluations(self) -> int:
        return len(self.known)


def planted(faults: Planted) -> Oracle:
    return Oracle(lambda query: Answer(Outcome.FAIL if any(fault <= query for fault in faults) else Outcome.PASS))


def additive(errors: np.ndarray, tolerance: float) -> Oracle:
    """`errors` [N] add up in quadrature."""
    powers = errors**2

    def judge(query: Query) -> Answer:
        value = math.sqrt(powers[list(query)].sum())
        return Answer(Outcome.PASS if value <= tolerance else Outcome.FAIL, value)

    return Oracle(judge)


def bisect_each(oracle: Oracle, n: int) -> list[int]:
    """Bisection once per culprit: the shortest failing prefix with all earlier culprits kept; certified like ours."""
    kept: list[int] = []
    while not oracle.passes(frozenset(range(n)) - frozenset(kept)):
        good, bad = kept[-1] + 1 if kept else 0, n
        while bad - good > 1:
            middle = (good + bad) // 2
            fails = not oracle.passes(frozenset(range(middle)) - frozenset(kept))
            good, bad = (good, middle) if fails else (middle, bad)
        kept.append(good)
    for candidate in kept:
        oracle(frozenset(range(n)) - frozenset(kept) | {candidate})
    return kept


def ddmin(oracle: Oracle, n: int) -> list[int]:
    """picire's ddmin over the kept set: interesting while all the culprits are in it."""
    picire = importlib.import_module("picire")
    logging.getLogger("picire").setLevel(logging.WARNING)

    def test(config: list[int], _: object) -> object:
        return picire.Outcome.FAIL if oracle.passes(frozenset(range(n)) - frozenset(config)) else picire.Outcome.PASS

    everything = list(range(n))
    oracle(frozenset(everything))
    return list(picire.DD(test, cache=picire.ConfigCache())(everything))


def prefix_bisection(oracle: Oracle, n: int) -> int:
    """Keep the first m nodes, or the last m, whichever is less, as a layer-wise precision bisection does."""

    def least(applied: Callable[[int], Query]) -> int:
        bad, good = 0, n
        while good - bad > 1:
            middle = (bad + good) // 2
            bad, good = (bad, middle) if oracle.passes(applied(middle)) else (middle, good)
        return good

    return min(least(lambda m: frozenset(range(m, n))), least(lambda m: frozenset(range(n - m))))


@dataclass(frozen=True)
class Case:
    """A way to plant faults, how many culprits it makes, and whether the ddmin column is worth its time."""

    name: str
    plant: Callable[[random.Random], Planted]
    culprits: int
    peers: bool = True


def independent(k: int) -> Callable[[random.Random], Planted]:
    return lambda rng: [frozenset({c}) for c in rng.sample(range(N), k)]


def pairs(k: int) -> Callable[[random.Random], Planted]:
    def plant(rng: random.Random) -> Planted:
        drawn = rng.sample(range(N), 2 * k)
        return [frozenset(pair) for pair in zip(drawn[:k], drawn[k:], strict=True)]

    return plant


def block(rng: random.Random) -> Planted:
    start = rng.randrange(N - 40)
    return [frozenset({c}) for c in range(start, start + 40)]


CASES = (
    Case("nothing to find", independent(0), 0),
    Case("1 culprit", independent(1), 1),
    Case("5 culprits", independent(5), 5),
    Case("20 culprits", independent(20), 20),
    Case("60 culprits", independent(60), 60, peers=False),
    Case("40 culprits in a row", block, 40, peers=False),
    Case("every candidate", independent(N), N, peers=False),
    Case("1 pair", pairs(1), 1),
    Case("5 pairs", pairs(5), 5),
)


def target(culprits: int) -> float:
    """1.3 log2 C(N, k) + k + 1."""
    return 1.3 * math.log2(math.comb(N, culprits)) + culprits + 1


def run(oracle: Oracle, **options: object) -> Found:
    found = drive(smallest_kept(range(N), **options), oracle)  # type: ignore[arg-type]
    assert found.certified, "the oracles here always answer"
    return found


def planted_row(case: Case, seeds: int) -> Iterator[str]:
    ours, each, peer = [], [], []
    start = time.perf_counter()
    for seed in range(seeds):
        faults = case.plant(random.Random(seed))
        oracle = planted(faults)
        found = run(oracle)
        assert len(found.kept) == case.culprits
        assert all(fault & set(found.kept) for fault in faults)
        ours.append(oracle.evaluations)
    duration = time.perf_counter() - start
    for seed in range(seeds):
        faults = case.plant(random.Random(seed))
        bisection, reduction = planted(faults), planted(faults)
        assert len(bisect_each(bisection, N)) == case.culprits
        each.append(bisection.evaluations)
        if case.peers and case.culprits and HAS_PICIRE:
            assert len(ddmin(reduction, N)) == case.culprits
            peer.append(reduction.evaluations)
    yield case.name
    yield f"{statistics.mean(ours):.1f}"
    yield str(max(ours))
    yield f"{target(case.culprits):.1f}"
    yield f"{statistics.mean(each):.1f}"
    yield f"{statistics.mean(peer):.1f}" if peer else ""
    yield f"{1e3 * duration / sum(ours):.2f}"


def additive_row(share: float, sigma: float, seeds: int) -> Iterator[str]:
    rows = []
    for seed in range(seeds):
        errors = np.random.default_rng(seed).lognormal(0.0, sigma, N)
        ideal = round(share * N)
        tolerance = math.sqrt((np.sort(errors)[: N - ideal] ** 2).sum()) * (1 + 1e-9)
        ours, plain, prefix = (additive(errors, tolerance) for _ in range(3))
        kept = len(run(ours, tolerance=tolerance).kept)
        blind = len(run(Oracle(lambda query, o=plain: Answer(o(query).outcome))).kept)  # type: ignore[misc]
        rows.append((ideal, kept, prefix_bisection(prefix, N), ours.evaluations, blind, plain.evaluations))
    ideal, kept, prefix_kept, evaluations, blind, blind_evaluations = (
        statistics.mean(c) for c in zip(*rows, strict=True)
    )
    yield f"sigma {sigma:g}, {share:.0%}"
    yield f"{ideal:.0f}"
    yield f"{kept:.1f}"
    yield f"{prefix_kept:.1f}"
    yield f"{max(row[1] / row[2] for row in rows):.3f}"
    yield f"{evaluations:.1f}"
    yield f"{blind:.1f}"
    yield f"{blind_evaluations:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20, help="how many random cases a row is the mean of")
    seeds = parser.parse_args().seeds
    console = Console()
    culprits = Table("planted", "evaluations", "worst", "target", "bisection each", "ddmin (picire)", "ms/evaluation",
                     title=f"Evaluations, N = {N}, mean of {seeds} seeds, certification included")  # fmt: skip
    for case in CASES:
        culprits.add_row(*planted_row(case, seeds))
    console.print(culprits)
    errors = Table("lognormal", "ideal kept", "kept", "prefix kept", "worst ratio", "evaluations", "kept without values",
                   "evaluations", title=f"Errors that add up, N = {N}, mean of {seeds} seeds")  # fmt: skip
    for share, sigma in ((0.01, 2.0), (0.03, 2.0), (0.1, 2.0), (0.03, 1.0), (0.03, 3.0)):
        errors.add_row(*additive_row(share, sigma, seeds))
    console.print(errors)


if __name__ == "__main__":
    main()
