"""ONNX Runtime's profile (`SessionOptions.enable_profiling`): an event for each execution of a node."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness.errors import ParseError
from reports.artifact import Artifact
from reports.columns import validate
from reports.readers import decoding
from reports.readers.nsys_summary import by_kernel
from reports.readers.trtexec_exports import by_layer, summarise

EXPECTED = "a profile of ONNX Runtime (an array of events of the categories Session and Node)"
US = 1000  # in ns: times are whole microseconds
_HEAD = re.compile(r'\s*\[\s*\{[^\n]{0,400}"cat"\s*:\s*"(?:Session|Node|Kernel|Api)"')
QUEUED = {"CUDA", "Tensorrt", "NvTensorRTRTX", "ROCM", "MIGraphX", "Dml", "WebGpu"}  # providers of GPUs
_NODE = "_kernel_time"  # others, `_fence_before` and `_fence_after`, stand in profiles of 1.x before 1.11


def sniff(path: Path, head: bytes) -> bool:
    """By the first event."""
    return _HEAD.match(decoding.decode(head[:4096])) is not None


def read(path: Path) -> Artifact:
    """Node events, layers (by node, over all runs), and one iteration for each run of the model."""
    text = decoding.decode(decoding.read_bytes(path, EXPECTED))
    events, notes = _events(text, path)
    nodes = [event for event in events if _is_node(event)]
    if not nodes:
        raise ParseError(path, "events", f"events of nodes (cat Node, name ..{_NODE})", f"none among {len(events)}")
    runs = _runs(events, path)
    frame = _frame(nodes, runs, path)
    iterations = validate("iterations", pd.DataFrame({
        "iteration": np.arange(len(runs)), "latency_ns": [duration for _, duration in runs]
    })) if runs else None  # fmt: skip
    layers = _layers(frame)
    kernels = _kernels(events, path)
    summary: dict[str, Any] = {
        "node_count": len(layers),
        "event_count": len(frame),
        "model_runs": len(runs),
        "providers": {str(name): int(count) for name, count in frame["provider"].value_counts().items()},
        "total_ns": float(layers["total_ns"].sum()),
        "by_layer": by_layer(layers),
        **_session(events),
    }
    tables = {"node_events": frame, "layers": layers}
    if iterations is not None:
        tables["iterations"] = iterations
        summary |= summarise(iterations)
    if kernels is not None:
        tables["kernels"] = kernels
        summary |= {"kernel_count": len(kernels), "kernel_time_ns": int(kernels["duration_ns"].sum()),
                    "by_kernel": by_kernel(kernels)}  # fmt: skip
    told = (*notes, *_notes(frame, runs), *_enqueued(frame, kernels is not None))
    return Artifact(path, "ort-profile", "onnxruntime", None, tables, summary, told)


def _events(text: str, path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """All events; of a file that ends too early (the process was killed) those whose line is whole."""
    notes = []
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ParseError(path, "content", EXPECTED, "brackets nested too deep") from error
    except ValueError:
        value = _whole_lines(text, path)
        notes.append(f"the file ends too early: {len(value)} whole events were read")
    if not isinstance(value, list) or not all(isinstance(event, dict) for event in value):
        raise ParseError(path, "content", "an array of objects", type(value).__name__)
    return value, notes


def _whole_lines(text: str, path: Path) -> list[Any]:
    """An event of each line but the last, which may be torn."""
    lines = [
        (number, line.strip().rstrip(",")) for number, line in enumerate(text.split("\n"), 1) if line.strip(" [],\r")
    ]
    events = []
    for number, line in lines:
        try:
            events.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            if number != lines[-1][0]:
                raise ParseError(path, f"line {number}", "an event", repr(line[:60])) from error
    return events


def _is_node(event: Mapping[str, Any]) -> bool:
    return event.get("cat") == "Node" and str(event.get("name", "")).endswith(_NODE) and "dur" in event


def _whole(event: Mapping[str, Any], key: str, path: Path) -> int:
    value = event.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 2**53:
        raise ParseError(path, f"{event.get('name')}, {key}", "a number of microseconds", repr(value)[:40])
    return round(value * US)


def _runs(events: list[dict[str, Any]], path: Path) -> list[tuple[int, int]]:
    """(start, duration) of each run of the model in ns, in order."""
    runs = [event for event in events if event.get("name") == "model_run"]
    return sorted((_whole(event, "ts", path), _whole(event, "dur", path)) for event in runs)


def _session(events: list[dict[str, Any]]) -> dict[str, Any]:
    """How long loading and initialising took."""
    names = {"model_loading_uri": "model_loading_ns", "model_loading_array": "model_loading_ns",
             "session_initialization": "session_initialization_ns"}  # fmt: skip
    return {
        names[event["name"]]: event["dur"] * US
        for event in events
        if event.get("name") in names and isinstance(event.get("dur"), int)
    }


def _frame(nodes: list[dict[str, Any]], runs: list[tuple[int, int]], path: Path) -> pd.DataFrame:
    """Table `node_events`, ordered by time."""
    nodes = sorted(nodes, key=lambda event: (event.get("ts", 0), -event.get("dur", 0)))
    arguments = [event["args"] if isinstance(event.get("args"), dict) else {} for event in nodes]
    start = np.array([_whole(event, "ts", path) for event in nodes], dtype=np.int64)
    duration = np.array([_whole(event, "dur", path) for event in nodes], dtype=np.int64)
    thread = [event.get("tid") for event in nodes]
    parent = _parents(start, duration, thread)
    own = duration.copy()
    inside = parent >= 0
    np.subtract.at(own, parent[inside], duration[inside])
    return validate("node_events", pd.DataFrame({
        "node": [str(event["name"]).removesuffix(_NODE) for event in nodes],
        "op_type": [given.get("op_name") for given in arguments],
        "provider": [given.get("provider") for given in arguments],
        "iteration": _iteration(start, runs),
        "node_index": [_integer(given.get("node_index")) for given in arguments],
        "parent": [int(row) if row >= 0 else None for row in parent],
        "process_id": [_integer(event.get("pid")) for event in nodes],
        "thread_id": [_integer(value) for value in thread],
        "start_ns": start,
        "duration_ns": duration,
        "self_ns": np.maximum(own, 0),
        "input_shapes": [_shapes(given.get("input_type_shape")) for given in arguments],
        "output_shapes": [_shapes(given.get("output_type_shape")) for given in arguments],
        "output_bytes": [_integer(given.get("output_size")) for given in arguments],
    }))  # fmt: skip


def _kernels(events: list[dict[str, Any]], path: Path) -> pd.DataFrame | None:
    """Table `kernels`, of a build that records what runs on the GPU: each stands after the node that launched it."""
    rows, node = [], None
    for event in events:
        if _is_node(event):
            node = event
        elif event.get("cat") == "Kernel" and "dur" in event:
            rows.append(_kernel(event, node, path))
    return validate("kernels", pd.DataFrame(rows)) if rows else None


def _kernel(event: dict[str, Any], node: dict[str, Any] | None, path: Path) -> dict[str, Any]:
    given = event["args"] if isinstance(event.get("args"), dict) else {}
    launcher = node["args"] if node is not None and isinstance(node.get("args"), dict) else {}
    ours = given.get("op_name") and given["op_name"] == launcher.get("op_name")
    sizes = {f"{what}_{axis}": _integer(given.get(f"{what}_{axis}")) for what in ("grid", "block") for axis in "xyz"}
    return {
        "kernel": str(event.get("name")),
        "kernel_short": str(event.get("name")),
        "stream_id": _integer(given.get("stream")),
        "start_ns": _whole(event, "ts", path),
        "duration_ns": _whole(event, "dur", path),
        **sizes,
        "onnx_nodes": (str(node["name"]).removesuffix(_NODE),) if node is not None and ours else (),
    }


def _enqueued(frame: pd.DataFrame, kernels: bool) -> Iterator[str]:
    """Which times are not what they seem: a GPU's provider returns once the work is in the queue."""
    providers = frame["provider"].dropna().unique()
    if there := sorted(name for name in providers if name.removesuffix("ExecutionProvider") in QUEUED):
        beside = (
            "the GPU's are in the table kernels" if kernels else "the GPU's are not in this file: nsys records them"
        )
        yield f"times of nodes on {', '.join(there)} are those of the CPU, which may only enqueue the work: {beside}"


def _integer(value: Any) -> int | None:
    """Numbers stand as text in the arguments."""
    text = str(value)
    return int(text) if re.fullmatch(r"-?\d{1,18}", text) else None


def _shapes(value: Any) -> str | None:
    """`[{"float":[4,64]}]` -> `float[4,64]`; several are separated by a semicolon."""
    if not isinstance(value, list):
        return None
    parts = [item for item in value if isinstance(item, dict)]
    return "; ".join(
        f"{name}{json.dumps(shape, separators=(',', ':'))}" for item in parts for name, shape in item.items()
    )


def _iteration(start: np.ndarray[Any, Any], runs: list[tuple[int, int]]) -> list[int | None]:
    """The model run in which each node started; runs of several threads may overlap, then it is the latest begun."""
    if not runs:
        return [None] * len(start)
    begins, ends = np.array([begin for begin, _ in runs]), np.array([begin + length for begin, length in runs])
    found = np.searchsorted(begins, start, side="right") - 1
    inside = (found >= 0) & (start <= ends[np.maximum(found, 0)])
    return [int(run) if held else None for run, held in zip(found, inside, strict=True)]


def _parents(start: np.ndarray[Any, Any], duration: np.ndarray[Any, Any], thread: list[Any]) -> np.ndarray[Any, Any]:
    """The row inside of which each node ran on its thread (subgraphs of Loop, If, Scan), or -1."""
    parent = np.full(len(start), -1, dtype=np.int64)
    around: dict[Any, list[int]] = {}
    for row in range(len(start)):
        stack = around.setdefault(thread[row], [])
        end = start[row] + duration[row]
        while stack and (start[stack[-1]] + duration[stack[-1]] < end or duration[stack[-1]] == 0
                         or start[stack[-1]] + duration[stack[-1]] <= start[row]):  # fmt: skip
            stack.pop()
        if stack:
            parent[row] = stack[-1]
        stack.append(row)
    return parent


def _layers(frame: pd.DataFrame) -> pd.DataFrame:
    """By node, over all runs: its own time, so that what runs inside another node is not counted twice."""
    grouped = frame.groupby("node", sort=False, dropna=False)
    total = grouped["self_ns"].sum()
    whole = float(total.sum())
    rows = pd.DataFrame({
        "layer": total.index,
        "layer_type": grouped["op_type"].first().to_numpy(),
        "onnx_nodes": [(str(node),) for node in total.index],
        "total_ns": total.to_numpy(dtype=float),
        "mean_ns": grouped["self_ns"].mean().to_numpy(),
        "median_ns": grouped["self_ns"].median().to_numpy(),
        "time_pct": 100 * total.to_numpy(dtype=float) / whole if whole else np.nan,
    })  # fmt: skip
    return validate("layers", rows)


def _notes(frame: pd.DataFrame, runs: list[tuple[int, int]]) -> list[str]:
    notes = ["times are whole microseconds: a node that takes less shows 0"]
    if inside := int(frame["parent"].notna().sum()):
        notes.append(f"{inside} of {len(frame)} events ran inside another node: layers count each node's own time")
    if outside := int(frame["iteration"].isna().sum()):
        notes.append(f"{outside} of {len(frame)} events lie in no run of the model")
    if len(runs) > 1:
        notes.append(f"all {len(runs)} runs are counted, the first (warm-up) too")
    return notes
