"""Where the GPU's time goes: kernel time by whatever names it, copies and calls by kind, and the longest idle gaps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from reports import units

NOT_ATTRIBUTED = "(not attributed)"
_DURATIONS = {
    "total_ns": "sum",
    "count": "size",
    "mean_ns": "mean",
    "median_ns": "median",
    "min_ns": "min",
    "max_ns": "max",
}

Integers = npt.NDArray[np.int64]


def shares(frame: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """One row per value of `by`, longest first: share of the time, total, how often, mean, median, least, most (ns).

    Rows whose first key is missing are one row of their own, last: they are counted and shown, never spread.
    """
    known = frame[frame[by[0]].notna()]
    keys = [_hashable(known[name]) for name in by]
    grouped = known["duration_ns"].groupby(keys, observed=True, dropna=False, sort=False)
    table = pd.DataFrame({name: getattr(grouped, how)() for name, how in _DURATIONS.items()}).reset_index()
    table = table.sort_values("total_ns", ascending=False, kind="stable")
    rest = frame.loc[frame[by[0]].isna(), "duration_ns"]
    if len(rest):
        row = {by[0]: NOT_ATTRIBUTED} | {
            name: getattr(rest, "count" if how == "size" else how)() for name, how in _DURATIONS.items()
        }
        table = pd.concat([table.astype({by[0]: "object"}), pd.DataFrame([row])], ignore_index=True)
    total = float(frame["duration_ns"].sum())
    table.insert(len(by), "time_pct", 100 * table["total_ns"].astype("float64") / total if total else np.nan)
    made: pd.DataFrame = table.reset_index(drop=True)
    return made


def copies(frame: pd.DataFrame) -> pd.DataFrame:
    """Memory operations by kind: time, how often, bytes, and bytes per second while they ran."""
    table = shares(frame, ["kind"])
    moved = frame["bytes"].groupby(frame["kind"], observed=True).sum()
    table.insert(4, "bytes", table["kind"].map(moved.to_dict()))
    seconds = table["total_ns"].astype("float64") / 1e9
    table.insert(
        5, "rate_bytes_per_s", (table["bytes"].astype("Float64") / seconds.where(seconds > 0)).astype("Float64")
    )
    return table


def work(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """All that ran on a GPU, kernels, graphs and memory operations, in order of its start: device, name, start, end (ns)."""
    parts = []
    for table, name in (("kernels", "kernel_short"), ("graph_launches", "graph_id"), ("memory_ops", "kind")):
        frame = tables.get(table)
        if frame is None or frame.empty:
            continue
        text = frame[name] if name in frame else frame["kernel"]
        text = "CUDA graph " + text.astype("str") if name == "graph_id" else text.astype("object")
        start = frame["start_ns"].to_numpy(np.int64)
        device = frame["device_id"].fillna(-1).to_numpy(np.int64)
        part = {"device_id": device, "name": text.to_numpy(), "start": start}
        parts.append(pd.DataFrame(part | {"end": start + frame["duration_ns"].to_numpy(np.int64)}))
    empty = pd.DataFrame({"device_id": [], "name": [], "start": [], "end": []})
    return (
        pd.concat(parts, ignore_index=True).sort_values("start", kind="stable", ignore_index=True) if parts else empty
    )


def busy(everything: pd.DataFrame) -> tuple[int, int]:
    """For the result of `work`: ns in which at least one thing ran, and ns from first to last, summed over devices."""
    ran = lasted = 0
    for _, one in everything.groupby("device_id"):
        start, end = one["start"].to_numpy(np.int64), one["end"].to_numpy(np.int64)
        reached = np.maximum.accumulate(end)
        idle = np.maximum(0, start[1:] - reached[:-1]).sum()
        lasted += int(reached[-1] - start[0])
        ran += int(reached[-1] - start[0] - idle)
    return ran, lasted


def gaps(everything: pd.DataFrame, most: int = 100) -> tuple[pd.DataFrame, int]:
    """The longest times in which nothing ran on a device, with what ran before and after; and how many there are."""
    found: list[pd.DataFrame] = []
    origin = int(everything["start"].min()) if len(everything) else 0
    for device, one in everything.groupby("device_id"):
        start, end, name = (one[column].to_numpy() for column in ("start", "end", "name"))
        last = _last_to_end(end.astype(np.int64))
        length = start[1:] - end[last[:-1]]
        place = np.flatnonzero(length > 0)
        found.append(
            pd.DataFrame(
                {"gap_ns": length[place].astype(np.int64), "at_ns": (end[last[:-1]][place] - origin).astype(np.int64),
                 "after": name[last[:-1]][place], "before": name[1:][place], "device_id": device},
            )
        )  # fmt: skip
    table = pd.concat(found, ignore_index=True) if found else pd.DataFrame({"gap_ns": []})
    return table.nlargest(most, "gap_ns").reset_index(drop=True), len(table)


def _last_to_end(end: Integers) -> Integers:
    """For each place, which event up to it ends last."""
    reached = np.maximum.accumulate(end)
    newest = np.where(end == reached, np.arange(len(end)), 0)
    return np.maximum.accumulate(newest)


def _hashable(column: pd.Series[Any]) -> pd.Series[Any]:
    """Tuples of names as one text, so that they group fast; the rest as it is."""
    if column.dtype == object and len(column) and isinstance(column.iloc[0], tuple):
        return column.map(lambda names: " + ".join(names))
    return column


def told(kind: str, name: str, share: float, total_ns: float) -> str:
    """The answer in one sentence."""
    short = units.shorten(units.visible(name), 80)
    return f"{kind} {short} takes {units.percent(share / 100)} of {units.seconds(total_ns / 1e9)} of GPU time"
