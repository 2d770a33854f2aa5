"""Statements to blame in kernels of 200 lines with planted faults: our search, and picire's ddmin on the same candidates.

    pip install picire && python -m benchmarks.statements [--seeds 5] [--faults 2]

Both ask the same oracle: one emulated run of one build in which every statement has a switch. ddmin minimises the set of
statements that must be commented out for the fault to go (a configuration passes as "interesting" if it cures).
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from examples import long_kernel
from harness.record import Outcome, Session
from probes.bisecting.search import drive
from probes.bisecting.statements import running as bisecting
from probes.bisecting.statements.settings import StatementSettings

KINDS = ("nan", "sanitizer")


class Counted:
    """The oracle, each query asked once; `evaluations` and `seconds` are what it cost."""

    def __init__(self, evaluate: Any) -> None:
        self._evaluate, self._known = evaluate, {}
        self.evaluations, self.seconds = 0, 0.0

    def __call__(self, left: frozenset[int]) -> Any:
        if left not in self._known:
            began = time.perf_counter()
            self._known[left] = self._evaluate(left)
            self.seconds += time.perf_counter() - began
            self.evaluations += 1
        return self._known[left]


def ours(question: Any, ask: Counted) -> set[int]:
    return set(drive(question.search(), ask).kept)


def ddmin(question: Any, ask: Counted) -> set[int]:
    import picire

    logging.getLogger("picire").setLevel(logging.WARNING)
    everything = frozenset(c.id for c in question.candidates)

    class Cures:
        def __call__(self, configuration: list[int], config_id: object) -> picire.Outcome:
            cured = ask(everything - frozenset(configuration)).outcome is Outcome.PASS
            return picire.Outcome.FAIL if cured else picire.Outcome.PASS  # picire's FAIL is "still interesting"

    return set(picire.DD(Cures(), cache=picire.ConfigCache())(sorted(everything)))


def pose(kind: str, folder: Path, seed: int, faults: int) -> tuple[Any, list[int]]:
    path = folder / f"{kind}-{seed}.cu"
    lines = long_kernel.write(kind, path, seed=seed, faults=faults)
    settings = StatementSettings(path, kind, "folded", (long_kernel.BLOCKS, 1, 1), (long_kernel.THREADS, 1, 1),
                                 args=path.with_suffix(".npz"))  # fmt: skip
    session = Session.create("bisect", folder / f"{kind}-{seed}")
    return bisecting._pose(settings, session), lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--faults", type=int, default=2)
    given = parser.parse_args()
    print(f"{'fault':<10} {'search':<6} {'found':>7} {'evaluations':>12} {'each':>8}   of candidates")
    with tempfile.TemporaryDirectory() as scratch:
        for kind in KINDS:
            results: dict[str, list[tuple[bool, int, float, int]]] = {"ours": [], "ddmin": []}
            for seed in range(given.seeds):
                question, lines = pose(kind, Path(scratch), seed, given.faults)
                place = {c.id: int(c.key.split(":")[0].removeprefix("line ")) for c in question.candidates}
                for name, search in (("ours", ours), ("ddmin", ddmin)):
                    ask = Counted(question.recipe.prepare())
                    exact = sorted(place[c] for c in search(question, ask)) == lines
                    results[name].append((exact, ask.evaluations, ask.seconds, len(place)))
            for name, rows in results.items():
                count = statistics.median(row[1] for row in rows)
                each = sum(row[2] for row in rows) / sum(row[1] for row in rows)
                sizes = f"{min(row[3] for row in rows)} to {max(row[3] for row in rows)}"
                print(
                    f"{kind:<10} {name:<6} {sum(row[0] for row in rows):>3} of {len(rows)} {count:>12g} {each * 1e3:>5.0f} ms   {sizes}"
                )


if __name__ == "__main__":
    main()
