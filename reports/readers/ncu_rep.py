"""Reads .ncu-rep files through NVIDIA's `ncu-report`, which needs neither a GPU nor ncu, and is optional."""

from __future__ import annotations

import importlib.util
import json
import re
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from harness.errors import DependencyMissing, ParseError, ProbeError
from reports.artifact import Artifact
from reports.readers import ncu_rep_worker
from reports.readers.ncu_tables import Cells, Launch, Triple, ints, summary, tables
from reports.readers.ncu_text import PUSH_POP, START_END, Range
from reports.readers.ncu_units import base_unit

MAGIC = b"NVR\0"
INSTALL = "pip install ncu-report"
PURPOSE = "to read .ncu-rep files"
TIMEOUT_S = 600
MESSAGES = {0: None, 1: "INF", 2: "OPT", 3: "WRN", 4: "ERR"}  # kinds of rules' messages, as the CSV calls them
SCOPES = {1: "local", 2: "global"}


def sniff(path: Path, head: bytes) -> bool:
    """Whether the file begins as a report of ncu does."""
    return head.startswith(MAGIC)


def read(path: Path) -> Artifact:
    """Read a report; ParseError for one that is truncated or no report (the library itself raises nothing then)."""
    data = path.read_bytes()
    if not data.startswith(MAGIC):
        raise ParseError(path, "file", "a report of ncu (it begins with NVR)", data[: len(MAGIC)] or "an empty file")
    if (end := block_end(data)) != len(data):
        raise ParseError(path, "size", f"{end:,} bytes", f"{len(data):,}", hint="the file is truncated or damaged")
    actions = _take_apart(path)
    if not actions:
        raise ParseError(path, "launches", "at least one", f"none in {len(data):,} bytes", hint="is the file damaged?")
    launches = [_launch(number, action) for number, action in enumerate(actions)]
    cells, texts = _cells(actions)
    made = tables(launches, cells, texts, list(_rules(actions)))
    absent = int(np.isnan(cells.value).sum()) - len(texts)
    notes = [f"{absent} of {len(cells.value)} metrics have no value"] if absent else []
    timed = int(made["ncu_launches"]["duration_ns"].notna().sum())
    if timed < len(launches):
        notes.append(f"{timed} of {len(launches)} launches have a duration; ncu did not measure it of the others")
    return Artifact(path, "ncu-rep", "ncu", _version(data), made, summary(made, "report"), tuple(notes))


def _take_apart(path: Path) -> list[Any]:
    """What the worker made of the file; it fails, or is ended, over a damaged one."""
    if importlib.util.find_spec("ncu_report") is None:
        raise DependencyMissing("ncu_report", PURPOSE, INSTALL)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "report.json"
        argv = [sys.executable, "-P", ncu_rep_worker.__file__, str(path.absolute()), str(out)]
        try:
            done = subprocess.run(argv, capture_output=True, timeout=TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired as error:
            raise ParseError(path, "report", f"an answer in {TIMEOUT_S} s", "none") from error
        if done.returncode or not out.exists():
            said = done.stderr.decode(errors="replace").strip().splitlines()
            raise _failed(path, done.returncode, said)
        actions: list[Any] = json.loads(out.read_text(encoding="ascii"))
    return actions


def _failed(path: Path, status: int, said: list[str]) -> ProbeError:
    last = said[-1][:300] if said else f"exit status {status}"
    if any(line.startswith(("ImportError", "ModuleNotFoundError")) for line in said):
        return DependencyMissing("ncu_report", PURPOSE, INSTALL, last)
    return ParseError(path, "report", "a report that ncu_report can read", last, hint="the file is damaged")


def _launch(number: int, action: Any) -> Launch:
    values = {name: value for name, value, _ in action["metrics"]}
    capability = [ints(values.get(f"device__attribute_compute_capability_{part}")) for part in ("major", "minor")]
    return Launch(
        launch_id=number,
        kernel=_clean(action["kernel"]),
        device_id=ints(values.get("launch__device_id")),
        cc=None if None in capability else ".".join(map(str, capability)),
        context_id=ints(values.get("launch__context_id")),
        stream_id=ints(values.get("launch__stream_id")),
        grid=_triple(values, "launch__grid_dim"),
        block=_triple(values, "launch__block_dim"),
        ranges=tuple(_ranges(action["ranges"])),
    )


def _clean(text: Any) -> str:
    """A text without the surrogates that stand for bytes that are no UTF-8."""
    return str(text or "").encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _triple(values: dict[str, Any], stem: str) -> Triple | None:
    x, y, z = (ints(values.get(f"{stem}_{axis}")) for axis in "xyz")
    return None if x is None or y is None or z is None else (x, y, z)


def _ranges(domains: list[Any]) -> Iterator[Range]:
    for domain, push_pop, start_end in domains:
        name = "" if domain == "<default domain>" else _clean(domain)
        for kind, found in ((PUSH_POP, push_pop), (START_END, start_end)):
            yield from (Range(name, _clean(inside), depth, kind) for depth, inside in enumerate(found))


def _cells(actions: list[Any]) -> tuple[Cells, list[tuple[int, str, str]]]:
    """All metrics, and those whose value is a text."""
    launch, metric, unit, value = [], [], [], []
    names: dict[str, int] = {}
    units: dict[str, int] = {}
    texts: list[tuple[int, str, str]] = []
    for index, action in enumerate(actions):
        for printed, content, printed_unit in action["metrics"]:
            name = _clean(printed)
            base, factor = base_unit(_clean(printed_unit))
            if isinstance(content, str):
                texts.append((index, name, _clean(content)))
            launch.append(index)
            metric.append(names.setdefault(name, len(names)))
            unit.append(units.setdefault(base, len(units)))
            value.append(float(content) * factor if isinstance(content, int | float) else float("nan"))
    of, what, in_unit = (np.array(codes, dtype=np.int64) for codes in (launch, metric, unit))
    return Cells(of, what, in_unit, np.array(value, dtype=np.float64), list(names), list(units)), texts


def _rules(actions: list[Any]) -> Iterator[dict[str, Any]]:
    for index, action in enumerate(actions):
        for rule in action["rules"]:
            message, speedup = rule.get("rule_message") or {}, rule.get("speedup_estimation") or {}
            yield {
                "launch": index,
                "section": _clean(rule.get("section_identifier")),
                "rule": _clean(rule.get("rule_identifier") or rule.get("name")),
                "kind": MESSAGES.get(message.get("type", 0), "INF"),
                "title": _clean(message.get("title")),
                "message": _clean(message.get("message")),
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
