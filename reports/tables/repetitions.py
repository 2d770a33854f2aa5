"""Repeated durations by name, out of the tables of artifacts: what `probe diff` compares, level by level.

Order is that of time, because neighbouring repetitions resemble each other and the statistics look for that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from reports.artifact import Artifact
from reports.tables import origins
from reports.tables.comparison import ENOUGH, observations

LEVELS = {  # what is compared -> what one repetition is
    "iterations": "one inference",
    "kernels": "one run of a kernel",
    "launches": "one launch under ncu",
    "layers": "the time of one execution of a layer",
    "operations": "the GPU time of one execution of a fused operation",
    "ranges": "the wall time of one range on the CPU",
}

Durations = npt.NDArray[np.float64]


@dataclass
class Level:
    """Durations in ns by name, a list of sessions each; and the ONNX nodes of a name, where they are known."""

    sessions: dict[str, list[Durations]] = field(default_factory=dict)
    nodes: dict[str, set[str]] = field(default_factory=dict)

    def add(self, found: Mapping[str, Durations], nodes: Mapping[str, Iterable[str]] | None = None) -> None:
        """The repetitions of one more session."""
        for name, durations in found.items():
            self.sessions.setdefault(name, []).append(durations)
        for name, of in (nodes or {}).items():
            self.nodes.setdefault(name, set()).update(of)

    def samples(self) -> dict[str, Durations]:
        """The observations of each name, over its sessions."""
        return {name: observations(sessions) for name, sessions in self.sessions.items()}


def gather(sessions: Sequence[Sequence[Artifact]]) -> dict[str, Level]:
    """The levels of one side, from the artifacts of each of its sessions."""
    levels = {name: Level() for name in LEVELS}
    for artifacts in sessions:
        for artifact in artifacts:
            for name, found, nodes in _of(artifact):
                levels[name].add(found, nodes)
    return {name: level for name, level in levels.items() if level.sessions}


def _of(artifact: Artifact) -> Iterator[tuple[str, dict[str, Durations], dict[str, set[str]] | None]]:
    tables = artifact.tables
    kernels = tables.get("kernels")
    if kernels is not None and len(kernels):
        ordered = kernels.sort_values("start_ns", kind="stable")
        yield "kernels", _grouped(ordered["duration_ns"], ordered["kernel"]), None
        for level, column in (("layers", "layer"), ("operations", "operation")):
            if column in kernels and kernels[column].notna().any():
                yield level, _executions(ordered, tables.get("ranges"), column), _nodes(kernels, column)
    yield from _host(tables)
    launches = tables.get("ncu_launches")
    if launches is not None and launches["duration_ns"].notna().any():
        yield "launches", _grouped(launches["duration_ns"], launches["kernel"]), None
    yield from _measured(artifact)


def _host(tables: Mapping[str, pd.DataFrame]) -> Iterator[tuple[str, dict[str, Durations], None]]:
    ranges = tables.get("ranges")
    if ranges is None or ranges.empty:
        return
    closed = ranges[~ranges["open"].fillna(False).to_numpy(dtype=bool)] if "open" in ranges else ranges
    closed = closed.sort_values("start_ns", kind="stable")
    name = closed["range_group" if "range_group" in closed else "range"].astype("object")
    domain = closed["domain"].astype("object").fillna("")
    yield "ranges", _grouped(closed["end_ns"] - closed["start_ns"], (domain + ": " + name).str.removeprefix(": ")), None


def _measured(artifact: Artifact) -> Iterator[tuple[str, dict[str, Durations], dict[str, set[str]] | None]]:
    """Benchmarks: iterations, single executions of nodes, or the one figure a layer that there is."""
    tables = artifact.tables
    iterations, events, layers = (tables.get(name) for name in ("iterations", "node_events", "layers"))
    if iterations is not None and len(iterations):
        columns = [name for name in iterations if str(name).endswith("_ns") and iterations[name].notna().any()]
        yield "iterations", {str(name).removesuffix("_ns"): _numbers(iterations[name]) for name in columns}, None
    elif (runs := _runs(artifact.summary)) and (len(runs) >= ENOUGH or not (averages := _averages(tables))):
        yield "iterations", {"compute (median of a run)": np.array(runs)}, None
    elif runs:
        yield "iterations", averages, None
    if events is not None and {"node", "duration_ns"} <= set(events):
        yield "layers", _grouped(events["duration_ns"], events["node"]), None
    elif layers is not None and "median_ns" in layers and len(layers):
        typical = layers["median_ns"].fillna(layers["mean_ns"])
        yield "layers", _grouped(typical, layers["layer"]), _nodes(layers, "layer")


def _averages(tables: Mapping[str, pd.DataFrame]) -> dict[str, Durations]:
    """The lines `Average on 10 runs` of a log, which is all that it says of single times."""
    averages = tables.get("averages")
    if averages is None or averages.empty:
        return {}
    many = " (mean of " + averages["iterations"].astype("string") + ")"
    series = (name for name in averages if str(name).endswith("_ns") and averages[name].notna().any())
    return {
        called: durations
        for name in series
        for called, durations in _grouped(averages[name], str(name).removesuffix("_ns") + many).items()
    }


def _runs(summary: Mapping[str, Any]) -> list[float]:
    """The printed median of each run of a log."""
    runs = summary.get("runs")
    found = [run.get("compute_ns") for run in runs if isinstance(run, Mapping)] if isinstance(runs, list) else []
    return [float(one["median"]) for one in found if isinstance(one, Mapping) and one.get("median") is not None]


def _grouped(durations: pd.Series[Any], names: pd.Series[Any]) -> dict[str, Durations]:
    known = durations.notna() & names.notna()
    grouped = durations[known].groupby(names[known].astype("object"), sort=False)
    return {str(name): _numbers(group) for name, group in grouped}


def _numbers(column: pd.Series[Any]) -> Durations:
    return np.asarray(column.dropna().to_numpy(dtype=np.float64), dtype=np.float64)


def _executions(kernels: pd.DataFrame, ranges: pd.DataFrame | None, column: str) -> dict[str, Durations]:
    """GPU time of each execution: the kernels launched inside one range that bears the name, added up."""
    known = kernels[kernels[column].notna()]
    of = known["range_id"].fillna(-1).to_numpy(dtype=np.int64)
    if ranges is not None and len(ranges):
        named = origins.ranges_named(known["range_id"], ranges, known[column])
        of = np.where(named != origins.NOWHERE, named, of)
    sums = known["duration_ns"].groupby([known[column].astype("object"), of], sort=False).sum()
    return _grouped(sums.reset_index()["duration_ns"], sums.reset_index()[column])


def _nodes(frame: pd.DataFrame, column: str) -> dict[str, set[str]] | None:
    if "onnx_nodes" not in frame:
        return None
    known = frame[frame[column].notna() & (frame["onnx_nodes"].map(len) > 0)]
    found: dict[str, set[str]] = {}
    for name, nodes in zip(known[column].astype("object"), known["onnx_nodes"], strict=True):
        found.setdefault(str(name), set()).update(nodes)
    return found
