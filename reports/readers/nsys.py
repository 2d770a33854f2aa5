"""SQLite exports of Nsight Systems, 2021 to 2026: kernels, ranges, memory operations, API calls, CUDA graphs.

Which tables and columns an export has is looked up in it, never inferred from a version. Tables that hold the machine's
environment, its users or its hosts are not read.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness.errors import ParseError
from reports.artifact import Artifact
from reports.columns import TABLES, validate
from reports.readers import nsys_events as events
from reports.readers._sqlite import MAGIC, Database
from reports.readers.nsys_events import Calls, Ints, Spans
from reports.readers.nsys_launches import MYELIN, TENSORRT, Launches, Moments, named, onnx_nodes
from reports.readers.nsys_summary import remarks, summarise
from reports.tables.attribution import NONE, Ranges
from reports.tables.origins import ties
from reports.tables.templating import templated

NVPROF = "CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL"  # its kernels; those of nsys are in a table without this word
REPORTS = (".nsys-rep", ".qdrep", ".qdstrm")
META = ("META_DATA_EXPORT", "EXPORT_META_DATA")
META_KEPT = ("EXPORT_PRODUCT_", "EXPORT_SCHEMA_", "EXPORT_PLATFORM", "EXPORT_ARCH")  # not the host, not the user
OURS = {"StringIds", events.KERNEL, events.RUNTIME, events.NVTX, *META}
GPU = ("id", "name", "smCount", "totalMemory", "memoryBandwidth", "clockRate")
NEAR = 1 << 18  # bytes
LAUNCHED = ("kernels", "graph_launches", "memory_ops")


def sniff(path: Path, head: bytes) -> bool:
    """An export of nsys; or one of its own reports, by its name, since only nsys can read more of it."""
    if not head.startswith(MAGIC):
        return path.suffix in REPORTS
    try:
        with Database(path) as database:
            return _is_export(database)
    except ParseError:  # damaged: still ours if the words of a schema stand near the beginning
        with path.open("rb") as stream:
            beginning = stream.read(NEAR)
        return any(name.encode() in beginning for name in OURS)


def read(path: Path) -> Artifact:
    """Read an export whole, and attribute what ran to what launched it."""
    if path.suffix in REPORTS and not _head(path).startswith(MAGIC):
        raise ParseError(
            path, "content", "a SQLite export", "a report that only nsys reads",
            hint=f"nsys export --type sqlite --output {path.with_suffix('.sqlite').name} {path.name}",
        )  # fmt: skip
    with Database(path) as database:
        if not _is_export(database):
            raise ParseError(path, "schema", "the tables of an nsys export", _some(sorted(database.tables)))
        if NVPROF in database.tables:
            raise ParseError(
                path, "schema", "an export of nsys", "one of nvprof", hint="nsys profile --trace cuda,nvtx ..."
            )
        try:
            return _artifact(database)
        except (ValueError, OverflowError) as error:
            raise ParseError(path, "tables", "an nsys export whose tables fit together", str(error)) from error


def _is_export(database: Database) -> bool:
    return bool(OURS & database.tables.keys()) or any(name.startswith("CUPTI_") for name in database.tables)


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(len(MAGIC))
    except OSError as error:
        raise ParseError(path, "file", "a readable file", error.strerror) from error


def _some(names: list[str]) -> str:
    return (", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")) or "no table"


def _artifact(database: Database) -> Artifact:
    strings = events.Strings(database)
    calls = events.read_calls(database, strings)
    spans, marks = events.read_nvtx(database, strings)
    ops = (
        events.read_kernels(database, strings),
        events.read_graph_launches(database),
        events.read_memory(database),
    )
    spans.close(max(part.last for part in (*ops, calls, spans)))
    captures = events.read_captures(database)
    moments = Moments.of(calls, captures, spans)
    launches = {name: Launches.of(part, calls, captures, moments) for name, part in zip(LAUNCHED, ops, strict=True)}
    meta = _meta(database)
    frames = {name: _launched(part, calls, spans) for name, part in launches.items()}
    frames |= {"ranges": _ranges(spans, moments.ranges), "marks": marks, "api_calls": _api_calls(calls, moments.range)}
    frames |= {"devices": _devices(database), "meta": pd.DataFrame(meta, columns=["name", "value"])}
    tables = {name: _fitted(name, frame) for name, frame in frames.items()}
    tables["kernels"] = tables["kernels"].assign(tie=pd.Categorical(ties(tables["kernels"])))
    return Artifact(
        path=database.path,
        kind="nsys-sqlite",
        tool="nsys",
        tool_version=dict(meta).get("EXPORT_PRODUCT_VERSION"),
        tables=tables,
        summary=summarise(tables, launches, moments, spans),
        notes=(*_gaps(database), *remarks(calls, launches, spans)),
    )


def _gaps(database: Database) -> Iterator[str]:
    """What no export of nsys lacks: something else has been at the file, or a version writes otherwise."""
    if "StringIds" not in database.tables:
        yield "the export has no table StringIds: names are missing"
    for table, columns in events.NEEDED.items():
        lost = set(columns) - set(database.tables[table].columns) if table in database.tables else set()
        if lost:
            yield f"{table} has no column {', '.join(sorted(lost))}: what it would say is missing"


def _fitted(name: str, frame: pd.DataFrame) -> pd.DataFrame:
    return validate(name, frame[[column for column in frame.columns if column in TABLES[name]]])


def _frame(columns: dict[str, Any]) -> pd.DataFrame:
    return pd.DataFrame(columns, copy=False)


def _rows(rows: Ints) -> Any:
    """Row numbers as they are shown: missing for `NONE`."""
    return pd.arrays.IntegerArray(np.ascontiguousarray(rows), rows == NONE)


def _launched(launches: Launches, calls: Calls, spans: Spans) -> pd.DataFrame:
    """The table of kernels, graphs or memory operations; columns that a table does not have are dropped later."""
    ops, lost = launches.ops, launches.call == NONE
    thread = np.append(calls.thread, events.NOWHERE)[launches.call]
    layer, operation = named(spans, launches.layer), named(spans, launches.operation)
    return _frame(
        {
            **ops.columns,
            "process_id": pd.arrays.IntegerArray(ops.process & 0xFFFFFF, ops.process == events.NOWHERE),
            "thread_id": events.numbers_of(thread)[1],
            "correlation_id": events.integer_array(ops.correlation),
            "start_ns": ops.start,
            "duration_ns": ops.length,
            "launch_ns": pd.arrays.IntegerArray(np.append(calls.start, 0)[launches.call], lost),
            "range_id": _rows(launches.range),
            "capture_range_id": _rows(launches.capture_range),
            "layer": layer,
            "operation": operation,
            "onnx_nodes": onnx_nodes(layer, operation),
        }
    )


def _ranges(spans: Spans, ranges: Ranges) -> pd.DataFrame:
    process_id, thread_id = events.numbers_of(spans.thread)
    return _frame(
        {
            "range_id": np.arange(len(spans.start)),
            "parent_id": _rows(ranges.parents),
            "domain": spans.domain,
            "range": spans.name,
            "range_group": _grouped(spans),
            "kind": spans.kind,
            "category": spans.category,
            "process_id": process_id,
            "thread_id": thread_id,
            "end_thread_id": events.integer_array(spans.end_thread),
            "depth": ranges.depths,
            "start_ns": spans.start,
            "end_ns": spans.closed,
            "open": spans.open,
        }
    )


def _grouped(spans: Spans) -> pd.Categorical:
    """Names without their running numbers. Layers and operations keep them: there they tell nodes apart."""
    words = spans.name.categories.tolist()
    kept = {*spans.name.codes[spans.within(TENSORRT) | spans.within(MYELIN)].tolist()}
    free = [code for code in range(len(words)) if code not in kept]
    groups = list(words)
    for code, group in zip(free, templated([words[code] for code in free]), strict=True):
        groups[code] = group
    return events.categorical(spans.name.codes.astype(np.int64), groups)


def _api_calls(calls: Calls, innermost: Ints) -> pd.DataFrame:
    process_id, thread_id = events.numbers_of(calls.thread)
    return _frame(
        {
            "api": calls.api,
            "process_id": process_id,
            "thread_id": thread_id,
            "correlation_id": events.integer_array(calls.correlation),
            "start_ns": calls.start,
            "duration_ns": calls.length,
            "range_id": _rows(innermost[: len(calls.start)]),
        }
    )


def _devices(database: Database) -> pd.DataFrame:
    """One row a GPU; `device_id` as CUDA numbered it, where the export says so."""
    cuda = dict(database.rows("TARGET_INFO_CUDA_DEVICE", ("gpuId", "cudaId")))
    versions = database.rows("TARGET_INFO_GPU", ("computeMajor", "computeMinor"))
    rows = []
    for row, (number, name, *facts) in enumerate(database.rows("TARGET_INFO_GPU", GPU)):
        major, minor = versions[row] if versions else (None, None)
        version = None if major is None else f"{major}.{minor}"
        rows.append((cuda.get(number, number), _text(name), version, *facts))
    names = ("device_id", "gpu", "compute_capability", "sm_count", "memory_bytes", "memory_bytes_per_s", "clock_hz")
    return pd.DataFrame(rows, columns=names)


def _meta(database: Database) -> list[tuple[str, str]]:
    """What the export says of itself, and not of the machine or its user."""
    rows = [row for table in META for row in database.rows(table, ("name", "value"))]
    pairs = [(_text(name) or "", _text(value) or "") for name, value in rows]
    return [(name, value) for name, value in pairs if name.startswith(META_KEPT)]


def _text(value: Any) -> str | None:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else None if value is None else str(value)
