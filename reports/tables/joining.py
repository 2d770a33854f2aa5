"""What a timeline and the counters of ncu say of the same kernels, side by side: joined by kernel and range.

A kernel's name is compared without return type, scope, template arguments and parameters, which the tools spell
differently; its range is the operation of Myelin, else the layer of TensorRT, else the innermost NVTX range. What no
range ties is joined by the kernel alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pandas as pd

from reports.artifact import Artifact
from reports.pages import sheets
from reports.pages.sheets import Sheet

NOUN = "kernel"
CAPTION = (
    "Times are the timeline's; the counters are of the launches that ncu profiled, each run alone, and so is the time beside"
    " them. A kernel that one of the two alone saw is left out."
)
COUNTERS = ("memory_pct", "compute_pct", "occupancy_pct")
_KEYS = ["short", "place"]
# What is seen without scrolling.
_FIRST = ("place", "kernel", "limited_by", "total_ns", "count", "median_ns", *COUNTERS)


def joined(artifacts: Sequence[Artifact]) -> pd.DataFrame:
    """One row a kernel and range, the longest first; no row without both tools."""
    timeline = _first(artifacts, "kernels")
    counted = _first(artifacts, "ncu_launches")
    if timeline is None or counted is None:
        return pd.DataFrame()
    left = _timeline(timeline.tables["kernels"], timeline.tables.get("ranges"))
    right = _counters(counted.tables["ncu_launches"], counted.tables.get("roofline"))
    both = left.merge(right, on=_KEYS)
    if both.empty:
        by_kernel = right.drop(columns="place").groupby("short", as_index=False, sort=False).first()
        both = left.merge(by_kernel, on="short")
    return both.drop(columns="short").sort_values("total_ns", ascending=False, ignore_index=True)


def sheet(artifacts: Sequence[Artifact]) -> Sheet | None:
    """The table of a page; None if there is nothing to join."""
    table = joined(artifacts)
    if table.empty:
        return None
    first = [name for name in _FIRST if name in table]
    table = table[[*first, *(name for name in table if name not in first)]]
    titles = {"place": "Range", "ncu_launches": "Profiled", "ncu_median_ns": "Median, alone"}
    return sheets.make(
        "joined", "Kernels, with their counters", table, NOUN, titles=titles, bar="total_ns", caption=CAPTION
    )


def short(name: str) -> str:
    """A kernel's own name: `void ns::k<4>(int *)` -> `k`."""
    bare = re.sub(r"<.*", "", name.replace("(anonymous namespace)", "").replace("unnamed>::", "")).split("(")[0]
    return bare.strip().rpartition(" ")[2].rpartition("::")[2] or name


def _first(artifacts: Sequence[Artifact], table: str) -> Artifact | None:
    return next((one for one in artifacts if len(one.tables.get(table, ()))), None)


def _timeline(kernels: pd.DataFrame, ranges: pd.DataFrame | None) -> pd.DataFrame:
    place = kernels["operation"].astype("string").fillna(kernels["layer"].astype("string"))
    if ranges is not None and len(ranges):
        names = ranges.set_index("range_id")["range"].astype("string")
        place = place.fillna(kernels["range_id"].map(names).astype("string"))
    frame = pd.DataFrame(
        {"short": kernels["kernel"].astype("string").map(short), "place": place.fillna(""), "kernel": kernels["kernel_short"].astype("string"),
         "layer": kernels["layer"].astype("string"), "duration_ns": kernels["duration_ns"]}
    )  # fmt: skip
    return frame.groupby(_KEYS, as_index=False, sort=False).agg(
        kernel=("kernel", "first"), layer=("layer", "first"), count=("duration_ns", "size"), total_ns=("duration_ns", "sum"),
        median_ns=("duration_ns", "median"),
    )  # fmt: skip


def _counters(launches: pd.DataFrame, roofline: pd.DataFrame | None) -> pd.DataFrame:
    frame = pd.DataFrame(
        {"launch_id": launches["launch_id"], "short": launches["kernel"].astype("string").map(short),
         "place": launches["range"].astype("string").fillna(""), "duration_ns": launches["duration_ns"].astype("Float64")}
    )  # fmt: skip
    how: dict[str, Any] = {"ncu_launches": ("launch_id", "size"), "ncu_median_ns": ("duration_ns", "median")}
    if roofline is not None and len(roofline):
        frame = frame.merge(roofline[["launch_id", *COUNTERS, "limited_by"]], on="launch_id", how="left")
        how |= {name: (name, "median") for name in COUNTERS} | {"limited_by": ("limited_by", "first")}
    counters: pd.DataFrame = frame.groupby(_KEYS, as_index=False, sort=False).agg(**how)
    return counters
