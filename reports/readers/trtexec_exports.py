"""The three JSON files of trtexec: `--exportTimes`, `--exportProfile`, `--exportLayerInfo` (and IEngineInspector)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness.errors import ParseError
from reports.artifact import Artifact
from reports.columns import validate
from reports.readers import decoding

EXPECTED = "a JSON export of trtexec (times, profile or layer information)"
MS = 1e6  # in ns
PHASES = ("compute", "latency", "enqueue", "h2d", "d2h", "end_to_end")

_TIMES = re.compile(r'\s*\[\s*\{[^{}]{0,600}"(?:computeMs|startComputeMs|endToEndMs)"')
_PROFILE = re.compile(r'\s*\[\s*(?:\{\s*"count"\s*:\s*\d+\s*\}|\{\s*"name"\s*:[^\n]*"timeMs")')
_LAYERS = re.compile(r'\s*\{[^\[]{0,400}"Layers"\s*:\s*\[')


def sniff(path: Path, head: bytes) -> bool:
    """By the keys of the first item."""
    return kind_of(decoding.decode(head[:65536])) is not None


def kind_of(text: str) -> str | None:
    for kind, pattern in (("times", _TIMES), ("profile", _PROFILE), ("layers", _LAYERS)):
        if pattern.match(text):
            return kind
    return None


def read(path: Path) -> Artifact:
    """Whichever of the three it is."""
    text = decoding.decode(decoding.read_bytes(path, EXPECTED))
    kind = kind_of(text)
    if kind is None:
        raise ParseError(path, "content", EXPECTED, repr(text[:60]))
    return READERS[kind](path, decoding.parse_json(text, path, EXPECTED, repaired))


# Where trtexec writes names: one to a line, and just as they are.
_NAMES = (
    re.compile(r'^(\s*,?\s*\{ "name" : )"(.*)"(, "timeMs" : .*)$'),
    re.compile(r'^(\s*"(?:Name|Metadata|TacticName)": )"(.*)"(,?\s*)$'),
    re.compile(r'^((?:\{?"(?:Layers|Bindings)": \[|\s*,)?)"(.*)"([\s,\]}]*)$'),
)


def repaired(text: str) -> str:
    """JSON with the quotes and backslashes in names escaped, which trtexec leaves as they are."""
    return "\n".join(map(_repaired_line, decoding.lines(text)))


def _repaired_line(line: str) -> str:
    for pattern in _NAMES:
        if found := pattern.match(line):
            before, name, after = found.groups()
            return f"{before}{_quoted(name)}{after}"
    return line


def _quoted(name: str) -> str:
    try:
        return f'"{name}"' if isinstance(json.loads(f'"{name}"', strict=False), str) else json.dumps(name)
    except ValueError:
        return json.dumps(name)


# --- times ---------------------------------------------------------------------------------------------------------


def read_times(path: Path, values: list[Any]) -> Artifact:
    """One row an iteration, in nanoseconds. Times are printed with six digits, so stamps are coarser than durations."""
    items = _items(path, values)
    old = any("inMs" in item for item in items)
    names = {"h2d_ns": "inMs" if old else "h2dMs", "compute_ns": "computeMs", "d2h_ns": "outMs" if old else "d2hMs",
             "latency_ns": "latencyMs"}  # fmt: skip
    columns: dict[str, Any] = {name: _milliseconds(path, items, key) for name, key in names.items()}
    columns["enqueue_ns"] = _milliseconds(path, items, "endEnqMs") - _milliseconds(path, items, "startEnqMs")
    end_to_end = _milliseconds(path, items, "endToEndMs")
    if np.isnan(columns["compute_ns"]).any():
        raise ParseError(path, "computeMs", "a number in every iteration", "none in some")
    columns = {name: np.round(column) for name, column in columns.items()}
    frame = validate("iterations", pd.DataFrame({"iteration": np.arange(len(items)), **columns}))
    summary: dict[str, Any] = {"iterations": len(frame), **summarise(frame)}
    if not np.isnan(end_to_end).all():
        summary["end_to_end_ns"] = statistics(end_to_end)
    notes = ["the file names neither version nor settings: compare it only with runs known to have the same"]
    stamps = _milliseconds(path, items, "startEnqMs")
    if len(frame) and not np.isnan(stamps).all() and np.nanmax(stamps) >= 1e9:
        notes.append("enqueue times are differences of stamps of six digits: good to 10 us at most after one second")
    return Artifact(
        path, "trtexec-times", "trtexec", "7" if old else None, {"iterations": frame}, summary, tuple(notes)
    )


def _items(path: Path, values: list[Any]) -> list[dict[str, Any]]:
    """The objects of all arrays, one after the other."""
    items: list[dict[str, Any]] = []
    for value in values:
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise ParseError(path, "content", "an array of objects", type(value).__name__)
        items += value
    if not items:
        raise ParseError(path, "content", "at least one item", "an empty array")
    return items


def _milliseconds(path: Path, items: list[dict[str, Any]], key: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """A key of all items in ns, NaN where it is not there."""
    values = [_number(path, item, key, number) for number, item in enumerate(items)]
    return np.round(np.array(values, dtype=np.float64) * MS, 3)  # six digits were printed: no noise of binary fractions


def _number(path: Path, item: Mapping[str, Any], key: str, number: int) -> float:
    value = item.get(key)
    if value is None:
        return float("nan")
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e15:
        raise ParseError(path, f"item {number}, {key}", "a number of milliseconds", repr(value)[:60])
    return float(value)


def percentile(values: np.ndarray[Any, np.dtype[np.float64]], percent: float) -> float:
    """As trtexec defines it: the largest of what is left when the `100 - percent` % slowest are taken away."""
    ordered = np.sort(values)
    left_out = int((np.float32(1) - np.float32(percent) / np.float32(100)) * np.float32(len(ordered)))
    return float(ordered[max(len(ordered) - 1 - left_out, 0)])


def statistics(values: Any, percents: tuple[float, ...] = (90, 95, 99)) -> dict[str, float] | None:
    """What trtexec prints of a series, recomputed from it; None of an empty one."""
    series = np.asarray(values, dtype=np.float64)
    series = series[~np.isnan(series)]
    if not len(series):
        return None
    of = {"min": series.min(), "max": series.max(), "mean": series.mean(), "median": np.median(series)}
    return {name: float(value) for name, value in of.items()} | {
        f"p{percent:g}": percentile(series, percent) for percent in percents
    }


def summarise(iterations: pd.DataFrame, percents: tuple[float, ...] = (90, 95, 99)) -> dict[str, dict[str, float]]:
    """`compute_ns`, `latency_ns` and so on of a table of iterations."""
    found = {f"{phase}_ns": statistics(iterations[f"{phase}_ns"], percents) for phase in PHASES[:5]}
    return {name: values for name, values in found.items() if values}


# --- profile -------------------------------------------------------------------------------------------------------


def read_profile(path: Path, values: list[Any]) -> Artifact:
    """One row a layer, in the order of execution; names may repeat. Arrays that follow each other are added up."""
    parts = [_profile(path, [value]) for value in values]
    count = sum(count for count, _ in parts if count is not None) if any(c is not None for c, _ in parts) else None
    frame, notes = _added([frame for _, frame in parts], [count for count, _ in parts])
    if not len(frame):
        raise ParseError(path, "content", "at least one layer", "none")
    frame["time_pct"] = _percent(frame["total_ns"], frame["time_pct"])
    if repeated := int(frame["layer"].duplicated().sum()):
        notes.append(f"{repeated} of {len(frame)} layers bear a name that stands before: they are kept apart")
    layers = validate("layers", frame)
    summary = {
        "layer_count": len(layers),
        "iterations": count,
        "total_ns": float(layers["total_ns"].sum()),
        "by_layer": by_layer(layers),
    }
    if count is None:
        notes.append("the file does not say how many iterations were profiled")
    return Artifact(path, "trtexec-profile", "trtexec", None, {"layers": layers}, summary, tuple(notes))


def _profile(path: Path, value: list[Any]) -> tuple[int | None, pd.DataFrame]:
    items = _items(path, value)
    counts = [item["count"] for item in items if set(item) == {"count"}]
    layers = [item for item in items if "name" in item]
    total = _milliseconds(path, layers, "timeMs")
    if np.isnan(total).any():
        raise ParseError(path, "timeMs", "a number for every layer", "none for some")
    rows = {
        "layer": [str(item["name"]) for item in layers],
        "total_ns": total,
        "mean_ns": _milliseconds(path, layers, "averageMs"),
        "median_ns": _milliseconds(path, layers, "medianMs"),  # from 8.4 on
        "time_pct": [_number(path, item, "percentage", number) for number, item in enumerate(layers)],
    }
    return (int(counts[0]) if counts and isinstance(counts[0], int) else None), pd.DataFrame(rows)


def _added(frames: list[pd.DataFrame], counts: list[int | None]) -> tuple[pd.DataFrame, list[str]]:
    """TensorRT 7 writes array after array: the same layers again are summed, other layers are kept."""
    if len(frames) == 1:
        return frames[0].copy(), []
    if any(not frame["layer"].equals(frames[0]["layer"]) for frame in frames):
        return pd.concat(frames, ignore_index=True), [f"{len(frames)} profiles of different layers in one file"]
    added = frames[0].copy()
    added["total_ns"] = sum(frame["total_ns"] for frame in frames)
    known = [count for count in counts if count]
    added["mean_ns"] = added["total_ns"] / sum(known) if len(known) == len(counts) else np.nan
    added["median_ns"] = np.nan  # medians cannot be added
    return added, [f"{len(frames)} profiles of the same layers in one file: their times are added, medians left out"]


def _percent(total: pd.Series[Any], printed: pd.Series[Any]) -> Any:
    whole = float(total.sum())
    return 100 * total / whole if whole > 0 else printed


def by_layer(layers: pd.DataFrame, most: int = 50) -> list[dict[str, Any]]:
    """The slowest layers for the summary."""
    top = layers.dropna(subset=["total_ns"]).sort_values("total_ns", ascending=False, kind="stable").head(most)
    wanted = ["layer", "layer_type", "precision", "total_ns", "mean_ns", "median_ns", "time_pct"]
    rows = top[wanted].astype(object).where(top[wanted].notna(), None)
    return [{str(key): value for key, value in row.items()} for row in rows.to_dict("records")]


# --- layer information ---------------------------------------------------------------------------------------------

_DATATYPES = {"float": "FP32", "half": "FP16", "bfloat16": "BF16", "int8": "INT8", "int32": "INT32", "int64": "INT64",
              "uint8": "UINT8", "bool": "BOOL", "fp8": "FP8", "int4": "INT4", "fp4": "FP4"}  # fmt: skip
_DATATYPE = re.compile(r"(?<![A-Za-z0-9])(FP32|FP16|BF16|FP8|FP4|INT8|INT32|INT64|INT4|UINT8|BOOL|TF32)", re.IGNORECASE)
_NODE = re.compile(r"\[ONNX Layer: (.*)\]$", re.DOTALL)


def read_layers(path: Path, values: list[Any]) -> Artifact:
    """One row a layer, without times; only detailed verbosity tells more than the name."""
    content = values[0]
    layers = content.get("Layers") if isinstance(content, dict) else None
    if not isinstance(layers, list):
        raise ParseError(path, "Layers", "an array", type(layers).__name__)
    if not layers:
        raise ParseError(path, "Layers", "at least one layer", "an empty array")
    frame = validate("layers", pd.DataFrame([_layer(path, item, number) for number, item in enumerate(layers)]))
    names_only = sum(isinstance(item, str) for item in layers)
    notes = []
    if names_only:
        notes.append(f"{names_only} of {len(frame)} layers are names alone: build with --profilingVerbosity=detailed")
    elif not any("Metadata" in item for item in layers):
        notes.append("no Metadata (TensorRT 8.6 and later write it): which ONNX nodes a layer came from is not said")
    named = int(frame["onnx_nodes"].map(bool).sum())
    if not notes and named < len(frame):
        notes.append(f"{named} of {len(frame)} layers name the ONNX nodes they came from")
    tensors = content.get("Bindings") or [tensor.get("Name") for tensor in content.get("I/O Tensors") or () if tensor]
    summary = {
        "layer_count": len(frame),
        "detailed": not names_only,
        "bindings": [str(name) for name in tensors],
        "by_precision": {str(key): int(n) for key, n in frame["precision"].value_counts().items()},
        "with_onnx_nodes": named,
    }
    return Artifact(path, "trtexec-layers", "trtexec", None, {"layers": frame}, summary, tuple(notes))


def _layer(path: Path, item: Any, number: int) -> dict[str, Any]:
    if isinstance(item, str):
        return {"layer": item}
    if not isinstance(item, dict) or not isinstance(item.get("Name"), str):
        raise ParseError(path, f"Layers[{number}]", "a name, or an object with a Name", repr(item)[:60])
    return {
        "layer": item["Name"],
        "layer_type": _text(item.get("LayerType")),
        "precision": precision(item),
        "tactic": _text(item.get("TacticName")) or _text(item.get("TacticValue")),
        "onnx_nodes": onnx_nodes(_text(item.get("Metadata")) or ""),
    }


def _text(value: Any) -> str | None:
    return str(value) if value not in (None, "") else None


def precision(layer: Mapping[str, Any]) -> str | None:
    """What a layer computes in: the type of its weights, else of its first input, else of its first output."""
    weights = layer.get("Weights")
    given = [weights.get("Type")] if isinstance(weights, Mapping) else []
    for side in ("Inputs", "Outputs"):
        tensors = layer.get(side)
        for tensor in tensors[:1] if isinstance(tensors, list) else ():
            if isinstance(tensor, Mapping):
                keys = ("Format/Datatype", "DataType", "Datatype")
                given += [tensor[key] for key in keys if key in tensor]
    return next((found for text in given if text and (found := datatype(str(text)))), None)


def datatype(text: str) -> str | None:
    """`Half`, `FP16`, `Row major linear FP16 format` -> FP16."""
    if named := _DATATYPES.get(text.strip().lower()):
        return named
    found = _DATATYPE.search(text)
    return found.group(1).upper() if found else None


def onnx_nodes(metadata: str) -> tuple[str, ...]:
    """Names of ONNX nodes in a layer's Metadata; layers fused are separated by \\x1e, what they came from by \\x1f.

    Logs and some tools lose these characters: what then touches is apart too.
    """
    parts = (part.strip() for part in re.split(r"[\x1e\x1f]|(?<=\])\s*(?=\[ONNX Layer: )", metadata))
    found = (_NODE.match(part) for part in parts)
    return tuple(dict.fromkeys(match.group(1) for match in found if match))


READERS: dict[str, Callable[[Path, list[Any]], Artifact]] = {
    "times": read_times,
    "profile": read_profile,
    "layers": read_layers,
}
