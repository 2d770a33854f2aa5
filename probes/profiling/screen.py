"""What `probe profile` shows: how each tool's run went, what takes longest, and where everything lies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness.record import Session
from probes.screen import MOST_ROWS, Shown, report_line, table, tool_runs
from reports import units


def show(session: Session, result: Mapping[str, Any]) -> Shown:
    yield from tool_runs(result["tools"])
    for name, head in result["top"].items():
        for what, value in head.get("median_ns", {}).items():
            yield f"{name}: median {what.removesuffix('_ns')} {units.seconds(value / 1e9)}"
        if sizes := head.get("sweep"):
            yield table(("size", "latency", "per second", "what changed"), _sizes(sizes))
        if kernels := head.get("kernels"):
            yield table((f"kernel ({name})", "launches", "total", "median"), _kernels(kernels))
    yield from report_line(session)


def _sizes(sizes: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    return [
        (str(one["size"]), units.seconds(one["latency_median_ns"] / 1e9),
         units.significant(one["throughput_qps"] or 0, 4), one["change"] or "")
        for one in sizes[:MOST_ROWS]
    ]  # fmt: skip


def _kernels(kernels: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    return [
        (one["kernel"], str(one["count"]), units.seconds(one["total_ns"] / 1e9), units.seconds(one["median_ns"] / 1e9))
        for one in kernels
    ]
