"""What a report of ncu comes to, whichever way it was read: launches, metrics, texts, ranges, rules as tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from reports.columns import validate
from reports.readers.ncu_text import PUSH_POP, Range
from reports.tables import roofline

Numbers = np.ndarray[Any, np.dtype[Any]]
Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Launch:
    """One profiled launch; on a summary page all `count` launches of one kernel and shape."""

    launch_id: int
    kernel: str
    process_id: int | None = None
    device_id: int | None = None
    cc: str | None = None
    context_id: int | None = None
    stream_id: int | None = None
    grid: Triple | None = None
    block: Triple | None = None
    ranges: tuple[Range, ...] = ()
    count: int = 1


@dataclass(frozen=True)
class Cells:
    """Every metric of every launch, in base units, column by column: `launch`, `metric` and `unit` are indices.

    The value of a metric that was not measured, or is a text, is NaN. `each` is how many metrics every launch has, where
    all have as many and the launches come one after the other; else 0.
    """

    launch: Numbers
    metric: Numbers
    unit: Numbers
    value: Numbers
    metrics: Sequence[str]
    units: Sequence[str]
    each: int = 0

    def spread(self, values: Numbers) -> Numbers:
        """One value a launch, as one value a cell."""
        spread: Numbers = np.repeat(values, self.each) if self.each else values[self.launch]
        return spread


def ints(value: Any) -> int | None:
    """An integer from a cell or a value; None where it is none."""
    try:
        number = float(value)
        return int(number) if number == int(number) and abs(number) < 2**62 else None
    except (TypeError, ValueError, OverflowError):
        return None


def kernel_name(name: str) -> str:
    """The kernel's name, with the half bracket back that ncu's CSV takes off `<unnamed>::kernel`."""
    return f"<{name}" if name.startswith("unnamed>::") else name


def innermost(ranges: Sequence[Range]) -> str | None:
    """The range that says most about a kernel: TensorRT's fused operation, else its layer, else the program's own."""

    def rank(found: Range) -> tuple[bool, int]:
        name = found.domain.lower()
        return found.kind != PUSH_POP, 0 if name.startswith("myelin") else 1 if name.startswith("tensorrt") else 2

    best = min(ranges, key=rank, default=None)
    return None if best is None else [it.name for it in ranges if (it.domain, it.kind) == (best.domain, best.kind)][-1]


def codes(values: Iterable[str | None]) -> Any:
    """A category column, its categories in order of appearance."""
    places: dict[str, int] = {}
    found = [-1 if value is None else places.setdefault(value, len(places)) for value in values]
    return _category(np.array(found, dtype=np.int64), list(places))


def tables(
    launches: Sequence[Launch],
    cells: Cells,
    texts: Sequence[tuple[int, str, str]] = (),
    rules: Sequence[dict[str, Any]] = (),
    extremes: pd.DataFrame | None = None,
) -> dict[str, pd.DataFrame]:
    """The tables of a report. `texts` are (index of launch, metric, text); `rules` rows with `launch`, an index."""
    metrics = validate("metrics", _metrics(launches, cells))
    chosen = roofline.needed(metrics)
    made = {
        "ncu_launches": validate("ncu_launches", _launches(launches, chosen, texts)),
        "metrics": metrics,
        "ncu_texts": validate("ncu_texts", _texts(launches, texts)),
        "ncu_ranges": validate("ncu_ranges", _ranges(launches)),
        "ncu_rules": validate("ncu_rules", _rules(launches, rules)),
    }
    made["roofline"] = roofline.roofline(made["ncu_launches"], chosen)
    return made if extremes is None else {**made, "ncu_extremes": validate("ncu_extremes", extremes)}


def _metrics(launches: Sequence[Launch], cells: Cells) -> pd.DataFrame:
    ids = np.array([launch.launch_id for launch in launches], dtype=np.int64)
    kernel = codes(launch.kernel for launch in launches)
    inside = codes(innermost(launch.ranges) for launch in launches)

    return pd.DataFrame(
        {
            "launch_id": pd.arrays.IntegerArray(cells.spread(ids), np.zeros(len(cells.launch), dtype=bool)),
            "kernel": _category(cells.spread(kernel.codes), kernel.categories),
            "range": _category(cells.spread(inside.codes), inside.categories),
            "metric": _category(cells.metric, cells.metrics),
            "value": cells.value,
            "unit": _category(cells.unit, cells.units),
        },
        copy=False,
    )


def _category(indices: Numbers, names: Any) -> Any:
    """A category column out of indices that are known to be right: checking millions takes a while."""
    return pd.Categorical.from_codes(indices, categories=pd.Index(names, dtype=object), validate=False)


def _launches(launches: Sequence[Launch], metrics: pd.DataFrame, texts: Sequence[tuple[int, str, str]]) -> pd.DataFrame:
    picked = roofline.wide(metrics, roofline.LAUNCH_METRICS).reindex([launch.launch_id for launch in launches])
    devices = {index: text for index, metric, text in texts if metric == "device__attribute_display_name"}

    def shape(metric: str, given: Sequence[Triple | None]) -> dict[str, Any]:
        """What the launch itself says, else what was measured."""
        said = np.array([(np.nan,) * 3 if found is None else found for found in given], dtype=np.float64).reshape(-1, 3)
        measured = [picked[f"{metric}_{axis}"].to_numpy() for axis in "xyz"]
        pairs = zip("xyz", said.T, measured, strict=True)
        return {f"{metric}_{axis}": _whole(np.where(np.isnan(own), other, own)) for axis, own, other in pairs}

    frame: dict[str, Any] = {
        "launch_id": [launch.launch_id for launch in launches],
        "kernel": codes(launch.kernel for launch in launches),
        "range": codes(innermost(launch.ranges) for launch in launches),
        "device": codes(devices.get(index) for index in range(len(launches))),
        "cc": codes(launch.cc for launch in launches),
        "count": [launch.count for launch in launches],
    }
    frame |= {
        name: [getattr(launch, name) for launch in launches]
        for name in ("process_id", "device_id", "context_id", "stream_id")
    }
    frame |= shape("grid", [launch.grid for launch in launches])
    frame |= shape("block", [launch.block for launch in launches])
    for name in ("registers_per_thread", "smem_static_bytes", "smem_dynamic_bytes", "duration_ns"):
        frame[name] = _whole(picked[name].to_numpy())
    return pd.DataFrame({name: _nullable(column) for name, column in frame.items()})


def _whole(values: Numbers) -> Any:
    """The nearest integers; missing where a value is none, or more than 62 bits hold."""
    known = np.abs(values) < 2.0**62  # not of NaN
    return pd.arrays.IntegerArray(np.rint(np.where(known, values, 0)).astype(np.int64), ~known)


def _nullable(column: Any) -> Any:
    return pd.array(column, dtype="Int64") if isinstance(column, list) else column


def _texts(launches: Sequence[Launch], texts: Sequence[tuple[int, str, str]]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "launch_id": np.array([launches[index].launch_id for index, _, _ in texts], dtype=np.int64),
            "metric": codes(metric for _, metric, _ in texts),
            "text": codes(text for _, _, text in texts),
        }
    )


def _ranges(launches: Sequence[Launch]) -> pd.DataFrame:
    found = [(launch.launch_id, item) for launch in launches for item in launch.ranges]
    return pd.DataFrame(
        {
            "launch_id": np.array([launch for launch, _ in found], dtype=np.int64),
            "domain": codes(item.domain for _, item in found),
            "range": codes(item.name for _, item in found),
            "kind": codes(item.kind for _, item in found),
            "depth": np.array([item.depth for _, item in found], dtype=np.int64),
        }
    )


def _rules(launches: Sequence[Launch], rules: Sequence[dict[str, Any]]) -> pd.DataFrame:
    of = [launches[rule["launch"]] for rule in rules]
    names = ("section", "rule", "kind", "speedup_scope")
    return pd.DataFrame(
        {
            "launch_id": np.array([launch.launch_id for launch in of], dtype=np.int64),
            "kernel": codes(launch.kernel for launch in of),
            **{name: codes(rule.get(name) or None for rule in rules) for name in names},
            "title": pd.array([rule.get("title") or None for rule in rules], dtype="string"),
            "message": pd.array([rule.get("message") or None for rule in rules], dtype="string"),
            "estimated_speedup_pct": np.array(
                [rule.get("estimated_speedup_pct", np.nan) for rule in rules], dtype=np.float64
            ),
        }
    )


# Shown per launch in a summary; of a run that measured no more than MANY metrics, all of them are.
MANY = 60


def summary(made: dict[str, pd.DataFrame], page: str) -> dict[str, Any]:
    """What a report says of each launch, as JSON values: its facts, the chosen metrics with units, what limits it."""
    launches, metrics, limits = made["ncu_launches"], made["metrics"], made["roofline"]
    chosen = _chosen(metrics)
    limits = limits.drop(columns=["launch_id", "kernel", "range", "duration_ns"])
    total = launches["duration_ns"] * launches["count"]
    return {
        "page": page,
        "launch_count": int(launches["count"].sum()),
        "kernel_count": int(launches["kernel"].nunique()),
        "kernel_time_ns": int(total.sum()) if total.notna().any() else None,
        "metric_count": len(metrics["metric"].cat.categories),
        "rule_count": len(made["ncu_rules"]),
        "launches": [
            {**facts, "metrics": chosen.get(facts["launch_id"], {}), "roofline": limit}
            for facts, limit in zip(records(launches), records(limits), strict=True)
        ],
    }


def _chosen(metrics: pd.DataFrame) -> dict[int, dict[str, dict[str, Any]]]:
    if len(metrics["metric"].cat.categories) > MANY:
        metrics = roofline.among(metrics, roofline.SHOWN)
    out: dict[int, dict[str, dict[str, Any]]] = {}
    columns = (metrics[name].tolist() for name in ("launch_id", "metric", "value", "unit"))
    for launch, metric, value, unit in zip(*columns, strict=True):
        if value == value:  # NaN: not measured
            out.setdefault(launch, {})[metric] = {"value": value, "unit": unit}
    return out


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows with JSON values only: what is missing, or not finite, is None."""
    names = list(frame.columns)
    columns = [_plain(frame[name]) for name in names]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _plain(column: pd.Series) -> list[Any]:
    numbers = column.dtype.kind == "f"
    absent = ~np.isfinite(column.to_numpy()) if numbers else column.isna().to_numpy()
    values: list[Any] = column.tolist() if numbers else column.to_numpy(dtype=object).tolist()
    if absent.any():
        return [None if lost else value for value, lost in zip(values, absent.tolist(), strict=True)]
    return values
