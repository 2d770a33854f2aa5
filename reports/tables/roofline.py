"""Roofline and "limited by" of profiled launches: what each achieved, what it could, and which of the two holds it back.

Everything comes from the metrics that were measured; what was not is missing, never guessed.

Limited by, in this order:

- `memory` or `compute`: the busier of the two runs at BUSY_PCT of its peak or more (at HIGH_PCT, where the share of
  the other was not measured).
- `occupancy`: neither does, and too few warps are on the multiprocessors to hide waiting: the grid has less than
  FULL_WAVES waves of blocks, or the achieved occupancy is below LOW_OCCUPANCY_PCT.
- `latency`: neither does, though there are warps enough: they wait (for memory, for each other, for results).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from reports.columns import PRECISIONS, validate

BUSY_PCT = 60.0  # the share of peak below which ncu's own rules speak of latency
HIGH_PCT = 80.0  # the share above which they say that a launch is well used
LOW_OCCUPANCY_PCT = 50.0
FULL_WAVES = 1.0

Column = np.ndarray[Any, np.dtype[np.float64]]
Alternatives = tuple[tuple[str, str], ...]  # metric and base unit, the best first

# The facts of a launch that are metrics. Labels are those of the details page, of newer and older versions.
LAUNCH_METRICS: dict[str, Alternatives] = {
    "duration_ns": (
        ("gpu__time_duration.sum", "ns"),
        ("gpu__time_duration.avg", "ns"),
        ("gpu__time_duration.max", "ns"),
        ("Duration", "ns"),
    ),
    "registers_per_thread": (
        ("launch__registers_per_thread", "register/thread"),
        ("Registers Per Thread", "register/thread"),
    ),
    "smem_static_bytes": (
        ("launch__shared_mem_per_block_static", "byte/block"),
        ("Static Shared Memory Per Block", "byte/block"),
    ),
    "smem_dynamic_bytes": (
        ("launch__shared_mem_per_block_dynamic", "byte/block"),
        ("Dynamic Shared Memory Per Block", "byte/block"),
    ),
    **{f"grid_{axis}": ((f"launch__grid_dim_{axis}", ""),) for axis in "xyz"},
    **{
        f"block_{axis}": ((f"launch__block_dim_{axis}", "block"), (f"launch__block_dim_{axis}", "thread"),
                          (f"launch__block_dim_{axis}", ""))
        for axis in "xyz"
    },
}  # fmt: skip

SPEED: dict[str, Alternatives] = {
    "dram_bytes": (("dram__bytes.sum", "byte"),),
    "dram_read_bytes": (("dram__bytes_read.sum", "byte"), ("dram__bytes_op_read.sum", "byte")),
    "dram_write_bytes": (("dram__bytes_write.sum", "byte"), ("dram__bytes_op_write.sum", "byte")),
    "dram_bytes_per_s": (("dram__bytes.sum.per_second", "byte/s"), ("Memory Throughput", "byte/s")),
    "dram_bytes_per_cycle": (("dram__bytes.sum.peak_sustained", "byte/cycle"),),
    "dram_hz": (("dram__cycles_elapsed.avg.per_second", "hz"), ("DRAM Frequency", "hz")),
    "sm_hz": (
        ("smsp__cycles_elapsed.avg.per_second", "hz"),
        ("sm__cycles_elapsed.avg.per_second", "hz"),
        ("SM Frequency", "hz"),
    ),
    "memory_pct": (
        ("gpu__compute_memory_throughput.avg.pct_of_peak_sustained_elapsed", "%"),
        ("Memory Throughput", "%"),
        ("SOL Memory", "%"),
        ("Memory [%]", "%"),
    ),
    "dram_pct": (
        ("gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed", "%"),
        ("dram__throughput.avg.pct_of_peak_sustained_elapsed", "%"),
        ("DRAM Throughput", "%"),
    ),
    "l2_pct": (("lts__throughput.avg.pct_of_peak_sustained_elapsed", "%"), ("L2 Cache Throughput", "%")),
    "l1_pct": (("l1tex__throughput.avg.pct_of_peak_sustained_elapsed", "%"),),
    "compute_pct": (
        ("sm__throughput.avg.pct_of_peak_sustained_elapsed", "%"),
        ("Compute (SM) Throughput", "%"),
        ("SOL SM", "%"),
        ("SM [%]", "%"),
    ),
    "occupancy_pct": (("sm__warps_active.avg.pct_of_peak_sustained_active", "%"), ("Achieved Occupancy", "%")),
    "theoretical_occupancy_pct": (
        ("sm__maximum_warps_per_active_cycle_pct", "%"),
        ("Theoretical Occupancy", "%"),
    ),
    "waves": (("launch__waves_per_multiprocessor", ""), ("Waves Per SM", "")),
}

# Floating-point operations of one thread's instruction. Half precision works on pairs.
LETTERS = {"fp64": "d", "fp32": "f", "fp16": "h"}
PAIRED = {"fp64": 1, "fp32": 1, "fp16": 2}
PER_INSTRUCTION = {"add": 1, "mul": 1, "fma": 2}
UNITS = ("sm", "smsp")  # the same counter under two names
TENSOR = "sm__ops_path_tensor_"


def _instruction(precision: str, operation: str) -> dict[str, Alternatives]:
    stem = f"sass_thread_inst_executed_op_{LETTERS[precision]}{operation}_pred_on.sum"
    name = f"{precision}_{operation}"
    return {
        name: tuple((f"{unit}__{stem}", "inst") for unit in UNITS),
        f"{name}_per_cycle": tuple((f"{unit}__{stem}.per_cycle_elapsed", "inst/cycle") for unit in UNITS),
        f"{name}_peak": tuple((f"{unit}__{stem}.peak_sustained", "inst/cycle") for unit in UNITS),
    }


INSTRUCTIONS: dict[str, Alternatives] = {
    name: alternatives
    for precision in LETTERS
    for operation in PER_INSTRUCTION
    for name, alternatives in _instruction(precision, operation).items()
}

# What a summary shows of a launch where more was measured than a person reads.
SHOWN = tuple(
    dict.fromkeys(metric for group in (LAUNCH_METRICS, SPEED) for found in group.values() for metric, _ in found)
)


def among(metrics: pd.DataFrame, names: Iterable[str]) -> pd.DataFrame:
    """The rows of the named metrics; quick, as only categories are compared."""
    column = metrics["metric"].array
    wanted = np.flatnonzero(column.categories.isin(list(names)))
    return metrics.take(np.flatnonzero(np.isin(column.codes, wanted.astype(column.codes.dtype))))


def needed(metrics: pd.DataFrame) -> pd.DataFrame:
    """The rows that say something here: of a report with thousands of metrics a few dozen a launch."""
    groups = (LAUNCH_METRICS, SPEED, INSTRUCTIONS)
    names = {name for group in groups for found in group.values() for name, _ in found}
    return among(metrics, names | {name for name in metrics["metric"].cat.categories if name.startswith(TENSOR)})


def wide(metrics: pd.DataFrame, wanted: Mapping[str, Alternatives]) -> pd.DataFrame:
    """One row a launch that has any of the wanted quantities, one column a quantity: the first of its alternatives that
    was measured, else NaN."""
    rows = among(metrics, {name for found in wanted.values() for name, _ in found})
    rows = rows[rows["value"].notna()].drop_duplicates(["launch_id", "metric", "unit"])
    rows = rows.astype({"launch_id": "int64", "metric": "str", "unit": "str"})
    launches = rows["launch_id"].unique()
    by = dict(iter(rows.set_index("launch_id").groupby(["metric", "unit"])["value"]))
    made = pd.DataFrame(np.nan, index=pd.Index(launches, name="launch_id"), columns=list(wanted))
    for column, alternatives in wanted.items():
        for found in reversed([by[key] for key in alternatives if key in by]):
            made.loc[found.index, column] = found.to_numpy()
    return made


def roofline(launches: pd.DataFrame, metrics: pd.DataFrame) -> pd.DataFrame:
    """Table `roofline`, one row for each row of `ncu_launches`."""
    ids = launches["launch_id"]
    wanted = _columns(wide(metrics, {**SPEED, **INSTRUCTIONS}).reindex(ids))
    tensor = _columns(_tensor(metrics).reindex(ids))
    duration = launches["duration_ns"].to_numpy(np.float64, na_value=np.nan)
    seconds = np.where(duration > 0, duration, np.nan) / 1e9
    made: dict[str, Any] = {name: launches[name].array for name in ("launch_id", "kernel", "range")}
    made["duration_ns"] = duration
    made |= {name: wanted[name] for name in ("occupancy_pct", "theoretical_occupancy_pct", "waves")}
    made |= _memory(wanted, seconds)
    made |= _compute(wanted, tensor, seconds)
    with np.errstate(divide="ignore", invalid="ignore"):
        made |= _shares(made, wanted)
    numbers = zip(*(made[name].tolist() for name in NUMBERS), strict=True)
    verdicts = [limited_by(dict(zip(NUMBERS, row, strict=True))) for row in numbers]
    made["limited_by"] = pd.Categorical([verdict for verdict, _ in verdicts], categories=list(LIMITS))
    made["why"] = pd.array([why for _, why in verdicts], dtype="string")
    return validate("roofline", pd.DataFrame(made))


def _columns(frame: pd.DataFrame) -> dict[str, Column]:
    return {str(name): frame[name].to_numpy(np.float64) for name in frame.columns}


def _first(*columns: Column) -> Column:
    """The first of the values that is known, row by row."""
    known, *others = columns
    for other in others:
        known = np.where(np.isnan(known), other, known)
    return known


def _sum(columns: Iterable[Column]) -> Column:
    """The sum of what is known, row by row; NaN where nothing is."""
    stacked = np.stack(list(columns))
    return np.where(np.isnan(stacked).all(axis=0), np.nan, np.nansum(stacked, axis=0))


def _memory(wanted: Mapping[str, Column], seconds: Column) -> dict[str, Column]:
    """Bytes of device memory, read and written."""
    moved = _first(wanted["dram_bytes"], wanted["dram_read_bytes"] + wanted["dram_write_bytes"])
    rate = _first(wanted["dram_bytes_per_s"], moved / seconds)
    return {
        "dram_bytes": _first(moved, rate * seconds),
        "dram_bytes_per_s": rate,
        "peak_dram_bytes_per_s": wanted["dram_bytes_per_cycle"] * wanted["dram_hz"],
    }


def _compute(wanted: Mapping[str, Column], tensor: Mapping[str, Column], seconds: Column) -> dict[str, Column]:
    """Floating-point operations by precision. A precision is known if at least one kind of its instructions is."""
    made: dict[str, Column] = {}
    for precision, pair in PAIRED.items():
        rates = []
        for operation, flop in PER_INSTRUCTION.items():
            name = f"{precision}_{operation}"
            rate = _first(wanted[name] / seconds, wanted[f"{name}_per_cycle"] * wanted["sm_hz"])
            rates.append(rate * flop * pair)
        made[f"{precision}_flop_per_s"] = _sum(rates)
        made[f"{precision}_flop"] = made[f"{precision}_flop_per_s"] * seconds
        peak = wanted[f"{precision}_fma_peak"] * wanted["sm_hz"]
        made[f"peak_{precision}_flop_per_s"] = peak * PER_INSTRUCTION["fma"] * pair
    made["tensor_flop_per_s"] = _first(tensor["per_s"], tensor["operations"] / seconds)
    made["tensor_flop"] = _first(tensor["operations"], made["tensor_flop_per_s"] * seconds)
    made["peak_tensor_flop_per_s"] = tensor["peak"]
    return made


def _tensor(metrics: pd.DataFrame) -> pd.DataFrame:
    """Floating-point operations of the tensor cores, over all source types, and the peak of the fastest that was used.

    ncu counts by instruction (`..._op_hmma_src_..`) and, beside it, in newer versions by type (`..._tensor_src_..`);
    adding both would count twice. Integer types (int8, int4, int1) are no floating point.
    """
    names = [name for name in metrics["metric"].cat.categories if name.startswith(TENSOR) and "_src_int" not in name]
    by_type = [name for name in names if name.startswith(f"{TENSOR}src_")] or names
    rows = among(metrics, by_type)[["launch_id", "metric", "value"]].dropna()
    rows = rows.astype({"launch_id": "int64", "metric": "str"})
    rows["stem"] = rows["metric"].str.replace(r"\.sum(\..*)?$", "", regex=True)

    def part(suffix: str) -> pd.Series:
        own = rows[rows["metric"] == rows["stem"] + suffix].drop_duplicates(["launch_id", "stem"])
        return own.set_index(["launch_id", "stem"])["value"]

    rate, peak = part(".sum.per_second"), part(".sum.peak_sustained_elapsed.per_second")
    used = peak.where(rate.reindex(peak.index) > 0)
    columns = {"operations": part(".sum"), "per_s": rate}
    made = {name: series.groupby(level=0).sum(min_count=1) for name, series in columns.items()}
    return pd.DataFrame({**made, "peak": used.groupby(level=0).max()})


def _shares(made: Mapping[str, Any], wanted: Mapping[str, Column]) -> dict[str, Column]:
    """Intensity, the roof above it, and how much of the peaks is used."""
    rates = np.stack([made[f"{precision}_flop_per_s"] for precision in PRECISIONS])
    peaks = np.stack([made[f"peak_{precision}_flop_per_s"] for precision in PRECISIONS])
    flop, flop_per_s = _sum(made[f"{precision}_flop"] for precision in PRECISIONS), _sum(rates)
    intensity = flop / np.where(made["dram_bytes"] > 0, made["dram_bytes"], np.nan)
    busiest = np.where(np.isnan(rates), -1.0, rates).argmax(axis=0)
    compute = np.where(flop_per_s > 0, peaks[busiest, np.arange(len(busiest))], np.nan)
    ceiling = np.minimum(compute, intensity * made["peak_dram_bytes_per_s"])
    parts = np.fmax(np.fmax(wanted["dram_pct"], wanted["l2_pct"]), wanted["l1_pct"])
    used = np.fmax.reduce(100 * rates / np.where(peaks > 0, peaks, np.nan))
    bandwidth = 100 * made["dram_bytes_per_s"] / made["peak_dram_bytes_per_s"]
    return {
        "flop": flop,
        "flop_per_s": flop_per_s,
        "flop_per_byte": intensity,
        "ceiling_flop_per_s": ceiling,
        "ceiling_pct": 100 * flop_per_s / ceiling,
        "memory_pct": _first(wanted["memory_pct"], parts, bandwidth),
        "compute_pct": _first(wanted["compute_pct"], used),
    }


LIMITS = ("memory", "compute", "occupancy", "latency")
NUMBERS = ("memory_pct", "compute_pct", "occupancy_pct", "theoretical_occupancy_pct", "waves")


def limited_by(numbers: Mapping[str, Any]) -> tuple[str | None, str]:
    """What holds a launch back, and the numbers that say so; None where they were not measured."""
    memory, compute = (_number(numbers, name) for name in ("memory_pct", "compute_pct"))
    shares = {"memory": memory, "compute": compute}
    measured = {word: share for word, share in shares.items() if share is not None}
    shown = " and ".join(f"{word} {share:.1f} %" for word, share in measured.items()) + " of peak" if measured else ""
    missing = " and ".join(word for word in shares if word not in measured)
    busier = max(measured, key=lambda word: measured[word], default=None)
    if busier is not None and measured[busier] >= (HIGH_PCT if missing else BUSY_PCT):
        return busier, f"{shown}; {missing} not measured" if missing else shown
    if missing:
        return None, "; ".join(filter(None, (shown, f"share of {missing} peak not measured")))
    few = _few_warps(numbers)
    if few is not None:
        return "occupancy", f"{shown}, both below {BUSY_PCT:.0f} %; {few}"
    if _number(numbers, "occupancy_pct") is None:
        return None, f"{shown}, both below {BUSY_PCT:.0f} %; occupancy not measured: latency or occupancy"
    return "latency", f"{shown}, both below {BUSY_PCT:.0f} %, at {numbers['occupancy_pct']:.1f} % occupancy"


def _few_warps(numbers: Mapping[str, Any]) -> str | None:
    waves, achieved = _number(numbers, "waves"), _number(numbers, "occupancy_pct")
    theoretical = _number(numbers, "theoretical_occupancy_pct")
    if waves is not None and waves < FULL_WAVES:
        return f"the grid is {waves:.2f} waves of blocks"
    if achieved is not None and achieved < LOW_OCCUPANCY_PCT:
        possible = "" if theoretical is None else f" of {theoretical:.1f} % possible"
        return f"occupancy {achieved:.1f} %{possible}"
    return None


def _number(numbers: Mapping[str, Any], name: str) -> float | None:
    value = numbers.get(name)
    return None if value is None or not np.isfinite(value) else float(value)
