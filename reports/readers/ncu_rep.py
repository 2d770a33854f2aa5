"""Reads .ncu-rep files through NVIDIA's `ncu-report`, which needs neither a GPU nor ncu, and is optional."""

from __future__ import annotations

import importlib.util
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from harness.errors import DependencyMissing, ParseError
from reports.artifact import Artifact
from reports.readers.ncu_tables import Cells, Launch, Triple, ints, summary, tables
from reports.readers.ncu_text import PUSH_POP, START_END, Range
from reports.readers.ncu_units import base_unit

MAGIC = b"NVR\0"
INSTALL = "pip install ncu-report"
PURPOSE = "to read .ncu-rep files"
MESSAGES = {0: None, 1: "INF", 2: "OPT", 3: "WRN", 4: "ERR"}  # kinds of rules' messages, as the CSV calls them
SCOPES = {1: "local", 2: "global"}


def sniff(path: Path, head: bytes) -> bool:
    """Whether the file begins as a report of ncu does."""
    return head.startswith(MAGIC)


def library() -> ModuleType:
    """`ncu_report`, or `DependencyMissing` with the line that installs it."""
    if importlib.util.find_spec("ncu_report") is None:
        raise DependencyMissing("ncu_report", PURPOSE, INSTALL)
    try:
        import ncu_report  # type: ignore[import-untyped,import-not-found,unused-ignore]
    except Exception as error:  # a library for another system fails in ways of its own
        raise DependencyMissing("ncu_report", PURPOSE, INSTALL, f"{type(error).__name__}: {error}") from error
    module: ModuleType = ncu_report
    return module


def read(path: Path) -> Artifact:
    """Read a report; ParseError for one that is truncated or no report (the library itself raises nothing then)."""
    data = path.read_bytes()
    if not data.startswith(MAGIC):
        raise ParseError(path, "file", "a report of ncu (it begins with NVR)", data[: len(MAGIC)] or "an empty file")
    if (end := block_end(data)) != len(data):
        raise ParseError(path, "size", f"{end:,} bytes", f"{len(data):,}", hint="the file is truncated or damaged")
    actions = _actions(path, library())
    launches = [_launch(number, action) for number, action in enumerate(actions)]
    cells, texts = _cells(actions)
    made = tables(launches, cells, texts, list(_rules(actions)))
    absent = int(np.isnan(cells.value).sum()) - len(texts)
    notes = [f"{absent} of {len(cells.value)} metrics have no value"] if absent else []
    timed = int(made["ncu_launches"]["duration_ns"].notna().sum())
    if timed < len(launches):
        notes.append(f"{timed} of {len(launches)} launches have a duration; ncu did not finish the others")
    version = _version(data)
    return Artifact(path, "ncu-rep", "ncu", version, made, summary(made, "report"), tuple(notes))


def _actions(path: Path, ncu_report: ModuleType) -> list[Any]:
    try:
        report = ncu_report.load_report(str(path))
        ranges = [report.range_by_idx(index) for index in range(report.num_ranges())]
        actions = [found.action_by_idx(index) for found in ranges for index in range(found.num_actions())]
    except Exception as error:
        raise ParseError(path, "report", "a readable report of ncu", f"{type(error).__name__}: {error}") from error
    if not actions:
        size = path.stat().st_size
        raise ParseError(
            path, "ranges", "at least one profiled launch", f"none in {size:,} bytes", hint="is the file truncated?"
        )
    return actions


def _value(action: Any, name: str) -> Any:
    metric = action.metric_by_name(name)
    return None if metric is None else metric.value()


def _launch(number: int, action: Any) -> Launch:
    capability = [ints(_value(action, f"device__attribute_compute_capability_{part}")) for part in ("major", "minor")]
    return Launch(
        launch_id=number,
        kernel=action.name(action.NameBase_DEMANGLED) or action.name(),
        device_id=ints(_value(action, "launch__device_id")),
        cc=None if None in capability else ".".join(map(str, capability)),
        context_id=ints(_value(action, "launch__context_id")),
        stream_id=ints(_value(action, "launch__stream_id")),
        grid=_triple(action, "launch__grid_dim"),
        block=_triple(action, "launch__block_dim"),
        ranges=tuple(_ranges(action)),
    )


def _triple(action: Any, stem: str) -> Triple | None:
    x, y, z = (ints(_value(action, f"{stem}_{axis}")) for axis in "xyz")
    return None if x is None or y is None or z is None else (x, y, z)


def _ranges(action: Any) -> Iterator[Range]:
    state = action.nvtx_state()
    for identifier in state.domains() if state is not None else ():
        domain = state.domain_by_id(identifier)
        name = "" if domain.name() == "<default domain>" else domain.name()
        for kind, found in ((PUSH_POP, domain.push_pop_ranges()), (START_END, domain.start_end_ranges())):
            yield from (Range(name, range_name, depth, kind) for depth, range_name in enumerate(found))


def _cells(actions: list[Any]) -> tuple[Cells, list[tuple[int, str, str]]]:
    """All metrics, and those whose value is a text."""
    launch, metric, unit, value = [], [], [], []
    names: dict[str, int] = {}
    units: dict[str, int] = {}
    texts: list[tuple[int, str, str]] = []
    for index, action in enumerate(actions):
        for name in action.metric_names():
            found = action.metric_by_name(name)
            content = None if found is None else found.value()
            base, factor = base_unit((found.unit() if found is not None else "") or "")
            if isinstance(content, str):
                texts.append((index, name, content))
            launch.append(index)
            metric.append(names.setdefault(name, len(names)))
            unit.append(units.setdefault(base, len(units)))
            value.append(float(content) * factor if isinstance(content, int | float) else float("nan"))
    of, what, in_unit = (np.array(codes, dtype=np.int64) for codes in (launch, metric, unit))
    return Cells(of, what, in_unit, np.array(value, dtype=np.float64), list(names), list(units)), texts


def _rules(actions: list[Any]) -> Iterator[dict[str, Any]]:
    for index, action in enumerate(actions):
        for rule in action.rule_results_as_dicts():
            message, speedup = rule.get("rule_message") or {}, rule.get("speedup_estimation") or {}
            yield {
                "launch": index,
                "section": rule.get("section_identifier"),
                "rule": rule.get("rule_identifier") or rule.get("name"),
                "kind": MESSAGES.get(message.get("type", 0), "INF"),
                "title": message.get("title"),
                "message": message.get("message"),
                "speedup_scope": SCOPES.get(speedup.get("type", 0)),
                "estimated_speedup_pct": float(speedup.get("speedup", float("nan"))),
            }


def _version(data: bytes) -> str | None:
    """The version of ncu that wrote the report: it stands in the file as `2025.3.1.0`, among much else."""
    found = set(re.findall(rb"\b(20[12]\d\.\d\.\d)\.\d+\b", data))
    return found.pop().decode() if len(found) == 1 else None


# --- is the file whole? The library reads what it finds of a truncated one, and says nothing.


def block_end(data: bytes) -> int:
    """Where the last block of the report ends, which is the end of a whole file.

    After the magic number stand blocks: a 4-byte size, a protobuf message of that size, and as many bytes more as its
    field 5 says. The first is a file header, without more. Older and newer files alike (2020 to 2026).
    """
    at = len(MAGIC)
    is_first = True
    while at < len(data):
        if at + 4 > len(data):
            return at + 4
        (size,) = struct.unpack_from("<I", data, at)
        at += 4
        if at + size <= len(data) and not is_first:
            at += _payload(data[at : at + size])
        at += size
        is_first = False
    return at


def _payload(header: bytes) -> int:
    """Field 5 of a protobuf message; 0 if it has none, or is none."""
    at = 0
    while at < len(header):
        key, at = _varint(header, at)
        value, at = _varint(header, at)
        if key == 5 << 3:
            return value
        if key & 7 == 2:
            at += value
        elif key & 7 != 0:
            break
    return 0


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 64, 7):
        byte = data[at] if at < len(data) else 0
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            break
    return value, at
