"""The summary of an nsys export: where the time went, by kernel, by range, by layer, and what could not be told."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from reports.readers.nsys_events import Bools, Calls, Ints, Spans
from reports.readers.nsys_launches import Launches, Moments
from reports.tables.attribution import NONE, keys, paths
from reports.tables.onnx_names import nodes_of_layer, nodes_of_operation
from reports.tables.origins import shares

Tables = Mapping[str, pd.DataFrame]
Row = dict[str, Any]


def summarise(tables: Tables, launches: Mapping[str, Launches], moments: Moments, spans: Spans) -> dict[str, Any]:
    """JSON values only; times are nanoseconds."""
    kernels, graphs, memory = launches["kernels"], launches["graph_launches"], tables["memory_ops"]
    time = kernels.ops.length
    total = int(time.sum())
    inside = int(time[kernels.range != NONE].sum())
    return {
        "kernel_count": len(time),
        "kernel_time_ns": total,
        "graph_launch_count": len(graphs.ops.length),
        "graph_time_ns": int(graphs.ops.length.sum()),
        "memory_op_count": len(memory),
        "memory_bytes": int(memory["bytes"].sum()),
        "range_count": len(spans.start),
        "attributed_time_pct": 100 * inside / total if total else None,
        "unattributed": _unattributed(kernels, graphs),
        "ties": shares(tables["kernels"]) if tables["kernels"]["tie"].notna().any() else None,
        "by_kernel": by_kernel(tables["kernels"]),
        "by_range": by_range(tables["ranges"], launches, moments, spans),
        "by_layer": by_layer(tables["kernels"], ["layer"], launches),
        "by_operation": by_layer(tables["kernels"], ["layer", "operation"], launches),
        "by_memory_op": by_memory_op(memory),
    }


def _unattributed(kernels: Launches, graphs: Launches) -> Row:
    """What lies in no range, and of that what has no launch call at all."""

    def counted(part: Launches, rows: Any) -> Row:
        return {"count": int(rows.sum()), "time_ns": int(part.ops.length[rows].sum())}

    return {
        "kernels_in_no_range": counted(kernels, kernels.range == NONE),
        "kernels_without_launch_call": counted(kernels, kernels.call == NONE),
        "graph_launches_in_no_range": counted(graphs, graphs.range == NONE),
    }


def by_kernel(kernels: pd.DataFrame) -> list[Row]:
    """One row a kernel by its demangled name, the longest first."""
    if kernels.empty:
        return []
    groups = kernels.groupby("kernel", observed=True, sort=False, dropna=False)
    figures = groups["duration_ns"].agg(
        count="count", total_ns="sum", mean_ns="mean", median_ns="median", min_ns="min", max_ns="max"
    )
    table = pd.DataFrame(figures).assign(kernel_short=groups["kernel_short"].first())
    return _records(table.sort_values("total_ns", ascending=False, kind="stable"))


def _records(table: pd.DataFrame) -> list[Row]:
    """The rows of a table, its index among them, as JSON has them."""
    return [{str(key): _plain(value) for key, value in row.items()} for row in table.reset_index().to_dict("records")]


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    return value if isinstance(value, str | int | float) and value == value else None


def by_range(ranges: pd.DataFrame, launches: Mapping[str, Launches], moments: Moments, spans: Spans) -> list[Row]:
    """One row for each way of names from the outermost range, with all that lies under it, the longest first.

    `parent` is the position of the row above it in this list. A kernel counts once in a row, however its ranges
    overlap; kernels of a CUDA graph count where the graph was launched, and apart from that where they were captured.
    """
    if ranges.empty:
        return []
    group, above = paths(moments.ranges.parents, _names(ranges), moments.ranges.depths)
    count = len(above)
    first = np.full(count, len(group), dtype=np.int64)
    np.minimum.at(first, group, np.arange(len(group)))
    columns = {
        "count": np.bincount(group, minlength=count),
        "wall_ns": _added(group, spans.closed - spans.start, count),
        **_under("kernel", moments, launches["kernels"], launches["kernels"].call, group, count),
        **_under("captured_kernel", moments, launches["kernels"], launches["kernels"].capture, group, count),
        **_under("graph", moments, launches["graph_launches"], launches["graph_launches"].call, group, count),
    }
    labels = ranges.iloc[first]
    domain, name = labels["domain"].tolist(), labels["range_group"].tolist()
    depth = labels["depth"].to_numpy(np.int64)
    order = np.lexsort((np.arange(count), -columns["wall_ns"], -columns["kernel_time_ns"]))
    place = np.empty(count + 1, dtype=np.int64)
    place[order], place[-1] = np.arange(count), NONE
    return [
        {
            "domain": domain[at], "range": name[at],
            "depth": int(depth[at]), "parent": None if above[at] == NONE else int(place[above[at]]),
            **{name: int(values[at]) for name, values in columns.items()},
        }
        for at in order.tolist()
    ]  # fmt: skip


def _names(ranges: pd.DataFrame) -> Ints:
    """A number for each domain with each name."""
    numbers = np.array(ranges["domain"].cat.codes, dtype=np.int64)
    numbers *= len(ranges["range_group"].cat.categories) + 1
    numbers += ranges["range_group"].cat.codes.to_numpy()
    return numbers


def _under(name: str, moments: Moments, launches: Launches, at: Ints, group: Ints, count: int) -> dict[str, Ints]:
    sums = moments.load(at, launches.ops.length).under(group, count)
    return {f"{name}_count": sums.count, f"{name}_time_ns": sums.total}


def _added(group: Ints, values: Ints, count: int) -> Ints:
    out = np.zeros(count, dtype=np.int64)
    np.add.at(out, group, values)
    return out


def by_layer(kernels: pd.DataFrame, keys: list[str], launches: Mapping[str, Launches]) -> list[Row]:
    """Kernels by TensorRT layer, or by layer and operation of Myelin, the longest first; none without layers."""
    inside = kernels[kernels[keys[-1]].notna()]
    if inside.empty:
        return []
    executed = getattr(launches["kernels"], keys[-1])
    inside = inside.assign(execution=executed[inside.index])
    groups = inside.groupby(keys, observed=True, sort=False, dropna=False)
    table = groups.agg(
        count=("execution", "nunique"), kernel_count=("duration_ns", "size"), kernel_time_ns=("duration_ns", "sum")
    )  # fmt: skip
    table["time_pct"] = 100 * table["kernel_time_ns"] / max(int(launches["kernels"].ops.length.sum()), 1)
    rows = _records(table.sort_values("kernel_time_ns", ascending=False, kind="stable"))
    nodes_of = nodes_of_operation if keys[-1] == "operation" else nodes_of_layer
    return [{**row, "onnx_nodes": list(nodes_of(row[keys[-1]]))} for row in rows]


def by_memory_op(memory: pd.DataFrame) -> list[Row]:
    if memory.empty:
        return []
    groups = memory.groupby("kind", observed=True, sort=False)
    table = groups.agg(count=("duration_ns", "size"), bytes=("bytes", "sum"), total_ns=("duration_ns", "sum"))
    return _records(table.sort_values("total_ns", ascending=False, kind="stable"))


def remarks(calls: Calls, launches: Mapping[str, Launches], spans: Spans) -> Iterator[str]:
    """What a person should know before trusting the figures."""
    kernels, graphs = launches["kernels"], launches["graph_launches"]
    count, ranges = len(kernels.range), len(spans.start)
    if not count:
        yield "the export has no kernels" + (": CUDA graphs were traced whole" if len(graphs.range) else "")
    elif len(graphs.range):
        yield f"{len(graphs.range)} launches of CUDA graphs were traced whole: the kernels in them are not listed"
    if not ranges:
        yield "the export has no NVTX ranges: nothing can be attributed to them"
    elif outside := int((kernels.range == NONE).sum()):
        yield f"{outside} of {count} kernels were launched in no range"
    launched, without = _without_kernels(calls, (kernels, graphs))
    if without:
        yield (
            f"{without} of {launched} launches have no kernel in the export: they failed, or the recording ended before"
            " their kernels did (a captured range must synchronise before it closes)"
        )
    if lost := int((kernels.call == NONE).sum()):
        yield f"{lost} of {count} kernels have no launch call in the export"
    if unclosed := int(spans.open.sum()):
        yield f"{unclosed} of {ranges} ranges were never closed: they count until the end of the trace"
    if untimed := sum(part.ops.untimed for part in launches.values()):
        yield f"{untimed} operations have no end, or one before their start: they count as taking no time"


def _without_kernels(calls: Calls, launched: Iterable[Launches]) -> tuple[int, int]:
    """How many launches there are, and how many of them nothing came from; several calls may speak of one launch."""
    asking = calls.launching & ~calls.correlation.missing & ~_capturing(calls)
    if not asking.any():
        return 0, 0
    (key,) = keys((calls.thread >> 24, calls.correlation.values))
    asked = np.zeros(int(key.max()) + 1, dtype=np.bool_)
    asked[key[asking]] = True
    lost = asked.copy()
    for part in launched:
        lost[key[part.call[part.call != NONE]]] = False
    return int(asked.sum()), int(lost.sum())


def _capturing(calls: Calls) -> Bools:
    """Which calls were made on a thread that was capturing a CUDA graph: what they launch does not run."""
    inside = np.zeros(len(calls.start), dtype=np.bool_)
    begins, ends = (
        np.array([*(f"Stream{word}Capture" in api for api in calls.api.categories), False])[calls.api.codes]
        for word in ("Begin", "End")
    )
    for thread in np.unique(calls.thread[begins]):
        mine = calls.thread == thread
        begun, ended = (
            np.searchsorted(np.sort(calls.start[mine & part]), calls.start[mine]) for part in (begins, ends)
        )
        inside[mine] = begun > ended
    return inside
