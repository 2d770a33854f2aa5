"""Traces as the JSON that Chrome and Perfetto open: ranges and calls by thread, kernels and copies by stream.

Times are microseconds from the first event of each trace, with three decimals, so no nanosecond is lost.
"""

from __future__ import annotations

import gzip
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from reports.artifact import Artifact

TRACED = ("ranges", "marks", "api_calls", "kernels", "graph_launches", "memory_ops")
_GPUS = 1_000_000_000  # process ids from here on stand for devices
_APART = 2_000_000_000  # between the process ids of two traces


def write(artifacts: Sequence[Artifact], path: Path) -> int:
    """Write all traces to one file, gzip if its name ends in `.gz`; how many events there are."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as raw:
            opened: Any = gzip.GzipFile(fileobj=raw, mode="wb", mtime=0) if path.suffix == ".gz" else raw
            with io.TextIOWrapper(opened, encoding="utf-8", newline="\n") as stream:
                count = _write(artifacts, stream)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return count


def _write(artifacts: Sequence[Artifact], stream: io.TextIOWrapper) -> int:
    count = 0
    stream.write('{"displayTimeUnit":"ns","traceEvents":[\n')
    for number, artifact in enumerate(artifacts):
        for event in events(artifact.tables, first_pid=number * _APART):
            stream.write(f"{',' if count else ' '}{event}\n")
            count += 1
    stream.write("]}\n")
    return count


def events(tables: Mapping[str, pd.DataFrame], first_pid: int = 0) -> Iterator[str]:
    """The events of one trace, each as JSON."""
    held = {name: tables[name] for name in TRACED if name in tables and len(tables[name])}
    if not held:
        return
    stamps = {name: "time_ns" if name == "marks" else "start_ns" for name in held}
    origin = min(int(frame[stamps[name]].min()) for name, frame in held.items())
    yield from _names(held, first_pid)
    owners = _owners(held.get("ranges"))
    for name, frame in held.items():
        if name == "ranges":
            yield from _ranges(frame, origin, first_pid)
        elif name == "marks":
            yield from _marks(frame, origin, first_pid)
        elif name == "api_calls":
            yield from _complete(frame, frame["api"], "API", _threads(frame, first_pid), origin)
        else:
            yield from _work(name, frame, owners, origin, first_pid)
            yield from _flows(frame, origin, first_pid)


def _names(held: Mapping[str, pd.DataFrame], first: int) -> Iterator[str]:
    """What the processes and threads of the picture are called."""
    streams: set[tuple[int, int]] = set()
    for name in ("kernels", "graph_launches", "memory_ops"):
        if name in held:
            streams |= set(zip(*_streams(held[name], first), strict=True))
    for device in sorted({device for device, _ in streams}):
        number = device - first - _GPUS
        yield _dump({"ph": "M", "name": "process_name", "pid": device, "args": {"name": f"GPU {number}" if number >= 0 else "GPU"}})  # fmt: skip
        yield _dump({"ph": "M", "name": "process_sort_index", "pid": device, "args": {"sort_index": 1}})
    for device, stream in sorted(streams):
        yield _dump({"ph": "M", "name": "thread_name", "pid": device, "tid": stream, "args": {"name": f"stream {stream}"}})  # fmt: skip


def _ranges(frame: pd.DataFrame, origin: int, first: int) -> Iterator[str]:
    """Push/pop ranges nest and are slices; start/end ranges may cross, so each is a track of its own (async)."""
    async_ = (frame["kind"] == "start_end").to_numpy(dtype=bool)
    domain = frame["domain"].astype("object").fillna("")
    nested = frame[~async_]
    duration = nested["end_ns"] - nested["start_ns"]
    yield from _complete(nested, nested["range"], domain[~async_], _threads(nested, first), origin, duration)
    crossing = frame[async_]
    rows = zip(
        *_threads(crossing, first), crossing["range"].astype("object").fillna("").tolist(), domain[async_].tolist(),
        crossing["range_id"].tolist(), crossing["start_ns"].tolist(), crossing["end_ns"].tolist(), strict=True,
    )  # fmt: skip
    for pid, tid, name, category, number, start, end in rows:
        event = {"name": name, "cat": category or "range", "id": number, "pid": pid, "tid": tid}
        yield _dump(event | {"ph": "b", "ts": (start - origin) / 1000})
        yield _dump(event | {"ph": "e", "ts": (end - origin) / 1000})


def _marks(frame: pd.DataFrame, origin: int, first: int) -> Iterator[str]:
    rows = zip(
        *_threads(frame, first),
        frame["mark"].astype("object").fillna("").tolist(),
        frame["time_ns"].tolist(),
        strict=True,
    )
    for pid, tid, name, time in rows:
        yield _dump(
            {"ph": "i", "s": "t", "name": name, "cat": "mark", "pid": pid, "tid": tid, "ts": (time - origin) / 1000}
        )


def _work(name: str, frame: pd.DataFrame, owners: pd.Series[Any], origin: int, first: int) -> Iterator[str]:
    if name == "kernels":
        text = frame["kernel_short"] if "kernel_short" in frame else frame["kernel"]
    else:
        text = frame["kind"] if name == "memory_ops" else "CUDA graph " + frame["graph_id"].astype("str")
    known: dict[str, list[Any]] = {}
    if "range_id" in frame and len(owners):
        known["range"] = frame["range_id"].map(owners).astype("object").tolist()
    for column in ("kernel", "layer", "operation", "bytes", "correlation_id"):
        if column in frame and frame[column].notna().any():
            known[column] = frame[column].astype("object").tolist()
    category = {"kernels": "kernel", "memory_ops": "memory"}.get(name, "graph")
    yield from _complete(frame, text, category, _streams(frame, first), origin, None, known)


def _flows(frame: pd.DataFrame, origin: int, first: int) -> Iterator[str]:
    """An arrow from the launch call to what it launched, where both are known."""
    if "launch_ns" not in frame or "thread_id" not in frame:
        return
    known = frame[frame["launch_ns"].notna() & frame["thread_id"].notna()]
    rows = zip(
        *_threads(known, first),
        *_streams(known, first),
        known["launch_ns"].tolist(),
        known["start_ns"].tolist(),
        strict=True,
    )
    for number, (pid, tid, device, stream, launch, start) in enumerate(rows):
        event = {"name": "launch", "cat": "launch", "id": first + number}
        yield _dump(event | {"ph": "s", "pid": pid, "tid": tid, "ts": (launch - origin) / 1000})
        yield _dump(event | {"ph": "f", "bp": "e", "pid": device, "tid": stream, "ts": (start - origin) / 1000})


def _complete(
    frame: pd.DataFrame, text: pd.Series[Any], category: str | pd.Series[Any], place: tuple[list[int], list[int]],
    origin: int, duration: pd.Series[Any] | None = None, known: Mapping[str, list[Any]] | None = None,
) -> Iterator[str]:  # fmt: skip
    """A slice for each row; `known` are columns that go along where they hold something."""
    lengths = (frame["duration_ns"] if duration is None else duration).tolist()
    names, starts = text.astype("object").fillna("").tolist(), frame["start_ns"].tolist()
    categories: Iterable[str] = [category] * len(frame) if isinstance(category, str) else category.tolist()
    details = [dict(zip(known, row, strict=True)) for row in zip(*known.values(), strict=True)] if known else None
    for row, (name, kind, pid, tid, start, length) in enumerate(
        zip(names, categories, *place, starts, lengths, strict=True)
    ):
        event = {"ph": "X", "name": name, "cat": kind or "range", "pid": pid, "tid": tid,
                 "ts": (start - origin) / 1000, "dur": length / 1000}  # fmt: skip
        if details is not None:
            event["args"] = {key: value for key, value in details[row].items() if not _absent(value)}
        yield _dump(event)


def _owners(ranges: pd.DataFrame | None) -> pd.Series[Any]:
    """Name of each range."""
    if ranges is None:
        return pd.Series(dtype="object")
    return pd.Series(ranges["range"].astype("object").to_numpy(), index=ranges["range_id"].to_numpy())


def _threads(frame: pd.DataFrame, first: int) -> tuple[list[int], list[int]]:
    return _ids(frame, "process_id", first), _ids(frame, "thread_id", 0)


def _streams(frame: pd.DataFrame, first: int) -> tuple[list[int], list[int]]:
    return _ids(frame, "device_id", first + _GPUS), _ids(frame, "stream_id", 0)


def _ids(frame: pd.DataFrame, name: str, add: int) -> list[int]:
    """Ids as integers; -1 where they are missing."""
    if name not in frame:
        return [add - 1] * len(frame)
    ids: list[int] = (frame[name].fillna(-1).to_numpy(dtype=np.int64) + add).tolist()
    return ids


def _absent(value: Any) -> bool:
    return value is None or value is pd.NA or value != value


def _dump(event: Mapping[str, Any]) -> str:
    return json.dumps(event, ensure_ascii=False, separators=(",", ":"))
