"""Synthetic traces for the tests of the page: tables as a reader of nsys gives them, of any size, with any names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from reports.artifact import Artifact
from reports.collect import Collection
from reports.columns import validate

HOSTILE = [
    "<script>window.hacked = 1</script>",
    '"quoted" \'names\' & </script><img src=x onerror="window.hacked = 1">',
    "two\nlines\tand a tab",
    "%{x} $x^2$ {{ 7 * 7 }} <b>bold</b>",
    "‮reversed",
    "long" * 2500,
]


def ranges(rows):
    """Rows of (range_id, parent_id or None, name, depth, start, end)."""
    ids, parents, names, depths, starts, ends = zip(*rows, strict=True)
    return validate("ranges", pd.DataFrame({
        "range_id": ids, "parent_id": pd.array(parents, dtype="Int64"), "domain": "probe", "range": names,
        "range_group": names, "kind": "push_pop", "process_id": 1, "thread_id": 2, "depth": depths, "start_ns": starts,
        "end_ns": ends, "open": False,
    }))  # fmt: skip


def kernels(rows):
    """Rows of (name, start, duration, range_id or None)."""
    names, starts, durations, owners = zip(*rows, strict=True)
    return validate("kernels", pd.DataFrame({
        "kernel": names, "kernel_short": names, "device_id": 0, "stream_id": 7, "process_id": 1, "start_ns": starts,
        "duration_ns": durations, "range_id": pd.array(owners, dtype="Int64"),
    }))  # fmt: skip


def iterations(count=50, seed=0, slower=1.0, names=("gemm", "softmax", "copy")):
    """`count` times a range `infer` around one kernel of each name; the first name takes `slower` times as long."""
    generator = np.random.default_rng(seed)
    range_rows, kernel_rows, now = [], [], 1_000_000
    for number in range(count):
        start = now
        for place, name in enumerate(names):
            typical = 20_000 * (place + 1) * (slower if place == 0 else 1.0)
            lasted = int(typical * generator.normal(1.0, 0.01))
            kernel_rows.append((name, now + 5_000, lasted, number))
            now += lasted + 2_000
        range_rows.append((number, None, "infer", 0, start, now))
        now += 10_000
    return {"ranges": ranges(range_rows), "kernels": kernels(kernel_rows)}


def trace(events, seed=0):
    """About `events` events: half kernels on two streams, a quarter ranges, the rest API calls, on one thread."""
    generator = np.random.default_rng(seed)
    count = events // 2
    duration = generator.lognormal(8.5, 1, count).astype(np.int64)
    start = np.cumsum(duration + generator.lognormal(6.5, 1.2, count).astype(np.int64)) - duration
    names = np.array([f"kernel_{number}<float, {number % 4}>" for number in range(40)])
    quarter = events // 4
    opened = start[: 2 * quarter : 2] - 8_000
    frames = {
        "kernels": {"kernel": names[generator.zipf(1.5, count) % 40], "device_id": 0,
                    "stream_id": np.where(np.arange(count) % 4, 7, 13), "process_id": 1, "start_ns": start,
                    "duration_ns": duration, "range_id": np.minimum(np.arange(count) // 2, quarter - 1)},
        "ranges": {"range_id": np.arange(quarter), "domain": "probe", "process_id": 1, "thread_id": 2,
                   "range": np.char.add("request ", np.arange(quarter).astype(str)), "range_group": "request #",
                   "kind": "push_pop", "depth": 0, "start_ns": opened, "end_ns": opened + 4_000, "open": False},
        "api_calls": {"api": "cudaLaunchKernel", "process_id": 1, "thread_id": 2, "start_ns": start[:quarter] - 9_000,
                      "duration_ns": generator.integers(500, 900, quarter)},
    }  # fmt: skip
    made = {name: pd.DataFrame(columns) for name, columns in frames.items()}
    made["kernels"]["kernel_short"] = made["kernels"]["kernel"]
    return {name: validate(name, frame) for name, frame in made.items()}


def measured(seed=0, count=40):
    """What a benchmark measured: its page has a figure of plotly."""
    took = np.random.default_rng(seed).normal(1e6, 1e4, count)
    return {"iterations": validate("iterations", pd.DataFrame({"iteration": np.arange(count), "compute_ns": took}))}


def hostile():
    """Every hostile name as kernel and as range."""
    spans = [(number, None, name, 0, 10_000 * number, 10_000 * number + 9_000) for number, name in enumerate(HOSTILE)]
    runs = [(name, 10_000 * number + 1_000, 5_000 + number, number) for number, name in enumerate(HOSTILE)]
    return {"ranges": ranges(spans), "kernels": kernels(runs)}


def artifact(tables, name="trace.sqlite", **more):
    return Artifact(Path(name), "nsys-sqlite", "nsys", "2025.3", tables, **more)


def collection(*artifacts):
    return Collection(artifacts)
