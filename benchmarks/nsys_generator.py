"""Exports as nsys writes them, of any size: the tables and columns of schema 3.24, filled with a made-up run.

Run: `python -m benchmarks.nsys_generator OUT.sqlite --kernels 1000000` (`--shape siblings` and `--shape nested` are the
hard ones). A million kernels are 3.2 million rows: ten launches a request, a range each, in `request #i` > `forward`.
"""

from __future__ import annotations

import argparse
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

PROCESS = (0x1000 << 24 | 1) << 24  # a virtual machine's number, a process, no thread
LAYERS = 10
PUSH_POP, START_END, DOMAIN = 59, 60, 75
ROWS_AT_ONCE = 200_000

SCHEMA: Mapping[str, str] = {
    "META_DATA_EXPORT": "name TEXT, value TEXT",
    "StringIds": "id INTEGER NOT NULL PRIMARY KEY, value TEXT NOT NULL",
    "CUPTI_ACTIVITY_KIND_KERNEL": "start, end, deviceId, contextId, greenContextId, streamId, correlationId, globalPid,"
    " demangledName, shortName, mangledName, launchType, cacheConfig, registersPerThread, gridX, gridY, gridZ, blockX,"
    " blockY, blockZ, staticSharedMemory, dynamicSharedMemory, localMemoryPerThread, localMemoryTotal, gridId,"
    " sharedMemoryExecuted, graphNodeId, sharedMemoryLimitConfig, qmdBulkReleaseDone, qmdPreexitDone, qmdLastCtaDone,"
    " graphId, clusterX, clusterY, clusterZ, clusterSchedulingPolicy, maxPotentialClusterSize, maxActiveClusters",
    "CUPTI_ACTIVITY_KIND_RUNTIME": "start, end, eventClass, globalTid, correlationId, nameId, returnValue, callchainId",
    "CUPTI_ACTIVITY_KIND_MEMCPY": "start, end, deviceId, contextId, greenContextId, streamId, correlationId, globalPid,"
    " bytes, copyKind, deprecatedSrcId, srcKind, dstKind, srcDeviceId, srcContextId, dstDeviceId, dstContextId,"
    " migrationCause, graphNodeId, virtualAddress, copyCount",
    "CUPTI_ACTIVITY_KIND_MEMSET": "start, end, deviceId, contextId, greenContextId, streamId, correlationId, globalPid,"
    " value, bytes, graphNodeId, memKind",
    "CUPTI_ACTIVITY_KIND_GRAPH_TRACE": "start, end, deviceId, contextId, greenContextId, streamId, correlationId,"
    " globalPid, graphId, graphExecId",
    "CUDA_GRAPH_NODE_EVENTS": "start, end, eventClass, globalTid, nameId, graphNodeId, originalGraphNodeId",
    "NVTX_EVENTS": "start, end, eventType, rangeId, category, color, text TEXT, globalTid, endGlobalTid, textId,"
    " domainId, uint64Value, int64Value, doubleValue REAL, uint32Value, int32Value, floatValue REAL, jsonTextId,"
    " jsonText TEXT, binaryData TEXT",
}
COMMON = ("META_DATA_EXPORT", "StringIds")  # in every export; the others only if they have rows
META = (("EXPORT_PRODUCT_NAME", "NVIDIA Nsight Systems"), ("EXPORT_PRODUCT_VERSION", "2025.5.2.266"),
        ("EXPORT_SCHEMA_VERSION", "3.24.0"), ("EXPORT_HOST", "made-up"))  # fmt: skip

Rows = Iterable[Mapping[str, Any]]


class Export:
    """An export under construction: rows by column name, texts by what they say."""

    def __init__(self, path: Path) -> None:
        self.connection = sqlite3.connect(path)
        self.connection.execute("PRAGMA synchronous = OFF")
        self.connection.execute("PRAGMA journal_mode = OFF")
        self.made: set[str] = set()
        self.ids: dict[str, int] = {}
        for table in COMMON:
            self._make(table)
        self.connection.executemany("INSERT INTO META_DATA_EXPORT VALUES (?, ?)", META)

    def __enter__(self) -> Export:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.executemany("INSERT INTO StringIds VALUES (?, ?)", ((n, word) for word, n in self.ids.items()))
        self.connection.commit()
        self.connection.close()

    def text(self, word: str) -> int:
        """The number that stands for a text."""
        return self.ids.setdefault(word, len(self.ids) + 1)

    def insert(self, table: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Rows of a table, of which only these columns are filled."""
        self._make(table)
        marks = ", ".join("?" * len(columns))
        names = ", ".join(f'"{column}"' for column in columns)
        self.connection.executemany(f"INSERT INTO {table} ({names}) VALUES ({marks})", rows)

    def add(self, table: str, rows: Rows) -> None:
        """A few rows, each with columns of its own."""
        for row in rows:
            self.insert(table, list(row), [list(row.values())])

    def fill(self, table: str, count: int, **columns: Any) -> None:
        """Many rows: each column an array, or one value for all."""
        for at in range(0, count, ROWS_AT_ONCE):
            size = min(ROWS_AT_ONCE, count - at)
            parts = [
                value[at : at + size].tolist() if isinstance(value, np.ndarray) else [value] * size
                for value in columns.values()
            ]
            self.insert(table, list(columns), zip(*parts, strict=True))

    def _make(self, table: str) -> None:
        if table in self.made:
            return
        self.made.add(table)
        columns = (column.split() for column in SCHEMA[table].split(","))
        declared = ", ".join(f'"{name}" {" ".join(rest) or "INTEGER"}' for name, *rest in columns)
        self.connection.execute(f"CREATE TABLE {table} ({declared})")


@dataclass(frozen=True)
class Shape:
    """How large a run: how many kernels, over how many threads and processes."""

    kernels: int
    threads: int = 2
    processes: int = 1


def steady(export: Export, shape: Shape) -> None:
    """Requests one after the other on every thread, ten layers each, a range and a launch a layer."""
    requests = max(1, shape.kernels // LAYERS)
    request = np.repeat(np.arange(requests), LAYERS)
    layer = np.tile(np.arange(LAYERS), requests)
    process, thread = _owners(requests, shape)
    step = 10_000  # ns between two launches of a thread
    begin = 1_000_000_000 + (np.arange(requests) // (shape.threads * shape.processes)) * step * (LAYERS + 2)
    layer_start = begin[request] + step * (layer + 1)
    _launches(export, layer_start + 2000, process[request], thread[request])
    names = np.array([export.text(f"request #{n}") for n in range(requests)])
    layers = np.array([export.text(f"layer {n}") for n in range(LAYERS)])
    length = step * (LAYERS + 2)
    fields = {"eventType": PUSH_POP, "domainId": 0}
    for start, end, owner, text in (
        (begin, begin + length - 10, thread, names),
        (begin + 100, begin + length - 200, thread, export.text("forward")),
        (layer_start, layer_start + step - 1000, thread[request], layers[layer]),
    ):
        export.fill("NVTX_EVENTS", len(start), start=start, end=end, globalTid=owner, textId=text, **fields)


def siblings(export: Export, shape: Shape) -> None:
    """First all ranges, one after the other and closed, in one that stays open; then all launches."""
    count = shape.kernels
    start = 1_000_000 + 20 * np.arange(count)
    _one_thread(export, shape, start, start + 10, int(start[-1]) + 1000, "sibling")


def nested(export: Export, shape: Shape) -> None:
    """Ranges inside ranges, as deep as there are kernels, all closed before half of the launches."""
    count = shape.kernels
    start = 1_000_000 + 20 * np.arange(count)
    end = start[-1] + 30 * count - 20 * np.arange(count)
    _one_thread(export, shape, start, end, int(start[-1]) + 10 * count, "nested")


def _one_thread(export: Export, shape: Shape, start: Any, end: Any, launch: int, name: str) -> None:
    whole = np.array([start[0] - 10]), np.array([launch + 100 * len(start)])
    text = export.text(name)
    for first, last in (whole, (start, end)):
        export.fill(
            "NVTX_EVENTS", len(first), start=first, end=last, eventType=PUSH_POP, globalTid=PROCESS + 7, textId=text,
            domainId=0,
        )  # fmt: skip
    owners = np.full(len(start), PROCESS)
    _launches(export, launch + 50 * np.arange(len(start)), owners, owners + 7)


def _owners(count: int, shape: Shape) -> tuple[Any, Any]:
    """Process and thread of each of `count` requests."""
    slot = np.arange(count) % (shape.threads * shape.processes)
    process = PROCESS + (slot // shape.threads << 24)
    return process, process + 100 + slot % shape.threads


def _launches(export: Export, start: Any, process: Any, thread: Any) -> None:
    """A launch call at each of these times, and the kernel that it started, later and on stream 7."""
    count = len(start)
    correlation = 1000 + np.arange(count)
    length = 3000 + (np.arange(count) * 7919) % 5000
    names = np.array([export.text(f"void gemm_kernel<{n}>(float const*, float*, int)") for n in range(32)])
    short = np.array([export.text(f"gemm_kernel_{n}") for n in range(32)])
    which = np.arange(count) % 32
    export.fill(
        "CUPTI_ACTIVITY_KIND_RUNTIME", count, start=start, end=start + 1500, eventClass=0, globalTid=thread,
        correlationId=correlation, nameId=export.text("cudaLaunchKernel_v7000"), returnValue=0,
    )  # fmt: skip
    export.fill(
        "CUPTI_ACTIVITY_KIND_KERNEL", count, start=start + 50_000, end=start + 50_000 + length, deviceId=0, contextId=1,
        greenContextId=0, streamId=7, correlationId=correlation, globalPid=process, demangledName=names[which],
        shortName=short[which], launchType=1, cacheConfig=1, registersPerThread=128, gridX=1 + which, gridY=1, gridZ=1,
        blockX=256, blockY=1, blockZ=1, staticSharedMemory=0, dynamicSharedMemory=49152, localMemoryPerThread=0,
        localMemoryTotal=155713536, gridId=correlation, sharedMemoryExecuted=65536, sharedMemoryLimitConfig=0,
        clusterX=0, clusterY=0, clusterZ=0, clusterSchedulingPolicy=0, maxPotentialClusterSize=0, maxActiveClusters=0,
    )  # fmt: skip


SHAPES = {"steady": steady, "siblings": siblings, "nested": nested}


def write(path: Path, shape: Shape, kind: str = "steady") -> Path:
    """An export of this shape, in place of whatever lies there."""
    path.unlink(missing_ok=True)
    with Export(path) as export:
        SHAPES[kind](export, shape)
    return path


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, nargs="?", help="nothing is written without it")
    parser.add_argument("--kernels", type=int, default=200_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--shape", choices=SHAPES, default="steady")
    return parser.parse_args()


if __name__ == "__main__":
    options = arguments()
    if options.out:
        write(options.out, Shape(options.kernels, options.threads, options.processes), options.shape)
        print(options.out, options.out.stat().st_size, "bytes")
