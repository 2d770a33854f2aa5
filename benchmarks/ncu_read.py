"""Reading a raw page of ncu (launches x metrics), against pandas' usual way: everything as objects, then `to_numeric`.

Prints wall time and the process's CPU time of both, and checks that both read the same numbers.

Run: `python -m benchmarks.ncu_read` (`--launches 200` for a quick look).
"""

from __future__ import annotations

import argparse
import csv
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from reports.readers import ncu
from reports.readers.ncu_units import base_unit

BASE = ("ID", "Process ID", "Process Name", "Host Name", "Kernel Name", "Context", "Stream", "Block Size", "Grid Size",
        "Device", "CC")  # fmt: skip
UNITS = ("%", "", "sector", "inst", "byte", "cycle", "usecond", "byte/second", "Ghz", "warp")
TEXTS = ("PolicySpread", "NVIDIA H100 80GB HBM3", "no data")


def write_raw_page(path: Path, launches: int, metrics: int, seed: int = 0) -> None:
    """A raw page as ncu prints it: counters with thousands commas, ratios with six places, some empty, some text."""
    rng = np.random.default_rng(seed)
    names = [f"unit{i % 37}__counter_{i}.sum" for i in range(metrics - 1)]
    with path.open("w", encoding="utf-8", newline="") as file:
        out = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n")
        file.write("==PROF== Connected to process 4711 (/opt/app)\nepoch 1 done\n==PROF== Disconnected\n")
        out.writerow((*BASE, "gpu__time_duration.sum", *names))
        out.writerow((*("",) * len(BASE), "ns", *(UNITS[i % len(UNITS)] for i in range(metrics - 1))))
        for launch in range(launches):
            kernel = f"void kernel_{launch % 20}<float, {launch % 7}>(const float *, float *, int)"
            base = (launch, 4711, "app", "127.0.0.1", kernel, 1, 7, "(256, 1, 1)", "(1024, 1, 1)", 0, "9.0")
            out.writerow((*base, f"{int(rng.integers(2_000, 9_000_000)):,}", *_values(rng, metrics - 1)))


def _values(rng: np.random.Generator, count: int) -> list[str]:
    counters = rng.integers(0, 10 ** rng.integers(1, 10, count))
    ratios = rng.random(count) * 100
    return [_value(i, int(counters[i]), float(ratios[i])) for i in range(count)]


def _value(column: int, counter: int, ratio: float) -> str:
    if column % 97 == 5:
        return ""
    if column % 397 == 11:
        return TEXTS[column % len(TEXTS)]
    return f"{counter:,}" if column % 2 else f"{ratio:.6f}"


def read_as_objects(path: Path) -> pd.DataFrame:
    """The peer: strings first, then numbers column by column; units are left as printed."""
    lines = path.read_bytes().split(b"\n")
    header = next(i for i, line in enumerate(lines) if line.startswith(b'"ID"'))
    frame = pd.read_csv(path, skiprows=header, dtype=object)
    data = frame.iloc[1:]
    numbers = {
        name: pd.to_numeric(data[name].str.replace(",", ""), errors="coerce") for name in data.columns[len(BASE) :]
    }
    return pd.DataFrame(numbers)


def timed(calls: dict[str, Callable[[Path], Any]], path: Path, rounds: int) -> dict[str, tuple[float, float, Any]]:
    """Median wall and CPU seconds of each call, in turns, and what it gave."""
    wall: dict[str, list[float]] = {name: [] for name in calls}
    cpu: dict[str, list[float]] = {name: [] for name in calls}
    results = {}
    for name, call in list(calls.items()) * rounds:
        results[name] = None  # what the last round gave is not to weigh on this one
        start, used = time.perf_counter(), time.process_time()
        results[name] = call(path)
        wall[name].append(time.perf_counter() - start)
        cpu[name].append(time.process_time() - used)
    return {name: (statistics.median(wall[name]), statistics.median(cpu[name]), results[name]) for name in calls}


OURS, ALONE, PEER = "probe, all tables and roofline", "probe, the numbers alone", "objects and to_numeric"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--launches", type=int, default=2000)
    parser.add_argument("--metrics", type=int, default=1500)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "raw.csv"
        write_raw_page(path, given.launches, given.metrics)
        print(f"{given.launches} launches x {given.metrics} metrics, {path.stat().st_size / 1e6:.1f} MB")
        found = timed({OURS: ncu.read, ALONE: ncu.gather, PEER: read_as_objects}, path, given.rounds)
    check(found[OURS][2].tables["metrics"], found[PEER][2])
    for name, (wall, cpu, _) in found.items():
        print(f"{name:>32}: {wall:6.2f} s wall, {cpu:6.2f} s CPU")
    for name in (OURS, ALONE):
        print(f"{name:>32}: {found[PEER][1] / found[name][1]:6.1f}x less CPU than the peer (asked: 5x)")


def check(metrics: pd.DataFrame, peer: pd.DataFrame) -> None:
    """Both read the same numbers, ours in base units."""
    factors = np.array(
        [base_unit(unit)[1] for unit in ("ns", *(UNITS[i % len(UNITS)] for i in range(peer.shape[1] - 1)))]
    )
    ours = metrics["value"].to_numpy().reshape(peer.shape)
    np.testing.assert_allclose(ours, peer.to_numpy() * factors, rtol=1e-12)


if __name__ == "__main__":
    main()
