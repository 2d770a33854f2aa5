"""SQLite exports of Nsight Systems, 2021 to 2026: kernels, ranges, memory operations, API calls, CUDA graphs.

Which tables and columns an export has is looked up in it, never inferred from a version. Tables that hold the machine's
environment, its users or its hosts are not read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness.errors import ParseError
from reports.artifact import Artifact
from reports.attribution import NONE, Ranges, match
from reports.columns import validate
from reports.onnx_names import nodes_of_layer, nodes_of_operation
from reports.readers import nsys_events as events
from reports.readers._sqlite import MAGIC, Database
from reports.readers.nsys_events import NOWHERE, Calls, Captures, Ints, Ops, Spans, categorical
from reports.readers.nsys_summary import Launches, remarks, summarise
from reports.templating import templated

REPORTS = (".nsys-rep", ".qdrep", ".qdstrm")
META = ("META_DATA_EXPORT", "EXPORT_META_DATA")
META_KEPT = ("EXPORT_PRODUCT_", "EXPORT_SCHEMA_", "EXPORT_PLATFORM", "EXPORT_ARCH")  # not the host, not the user
OURS = {"StringIds", events.KERNEL, events.RUNTIME, events.NVTX, *META}
TENSORRT, MYELIN = "tensorrt", "myelin"  # how the domains' names begin, in small letters
NOT_LAYERS = "ExecutionContext::"  # TensorRT's own range around all layers
GPU = {
    "device_id": "cuDevice", "gpu": "name", "sm_count": "smCount", "memory_bytes": "totalMemory",
    "memory_bytes_per_s": "memoryBandwidth", "clock_hz": "clockRate",
}  # fmt: skip


def sniff(path: Path, head: bytes) -> bool:
    """An export of nsys; or one of its own reports, by its name, since only nsys can read more of it."""
    if not head.startswith(MAGIC):
        return path.suffix in REPORTS
    try:
        with Database(path) as database:
            return _is_export(database)
    except ParseError:  # damaged: still ours if the schema, which begins in the first page, says so
        return any(name.encode() in head for name in OURS)


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
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") or "no table"


def _artifact(database: Database) -> Artifact:
    strings = events.Strings(database)
    calls = events.read_calls(database, strings)
    spans, marks = events.read_nvtx(database, strings)
    ops = {
        "kernels": events.read_kernels(database, strings),
        "graph_launches": events.read_graph_launches(database),
        "memory_ops": events.read_memory(database),
    }
    spans.close(max(part.last for part in (*ops.values(), calls, spans)))
    moments = Moments.of(calls, events.read_captures(database), spans)
    found = {name: moments.attribute(part) for name, part in ops.items()}
    tables = {name: _launched(part, found[name], moments) for name, part in ops.items()}
    tables |= {
        "ranges": _ranges(spans, moments.ranges),
        "marks": marks,
        "api_calls": _api_calls(calls, moments),
        "devices": _devices(database),
        "meta": _meta(database),
    }
    tables = {name: validate(name, table[[c for c in table if c in COLUMNS[name]]]) for name, table in tables.items()}
    launches = {name: Launches(ops[name].start, ops[name].length, *found[name]) for name in ops}
    return Artifact(
        path=database.path,
        kind="nsys-sqlite",
        tool="nsys",
        tool_version=_version(tables["meta"]),
        tables=tables,
        summary=summarise(tables, moments, launches),
        notes=tuple(remarks(tables, launches)),
    )
