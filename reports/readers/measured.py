"""What probe measured itself: measurement.json (one shape, as trtexec's exports would say it) and sweep.json."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness.errors import ParseError
from reports import schema
from reports.artifact import Artifact
from reports.columns import validate
from reports.readers import decoding, trtexec_exports, trtexec_join

EXPECTED = "a measurement or a sweep of probe"
SCHEMA = 1
PHASES = ("enqueue_ns", "h2d_ns", "compute_ns", "d2h_ns", "latency_ns")
_HEAD = re.compile(rb'\s*\{\s*"probe"\s*:\s*"(?:measurement|sweep)"')
_SWEPT = {
    "latency_median_ns": ("latency_ns", "median"), "latency_p90_ns": ("latency_ns", "p90"),
    "latency_p99_ns": ("latency_ns", "p99"), "compute_median_ns": ("compute_ns", "median"),
}  # fmt: skip


def sniff(head: bytes) -> bool:
    """By the first key."""
    return _HEAD.match(head) is not None


def read(path: Path, data: bytes) -> Artifact:
    """Whichever of the two it is."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ParseError(path, "content", EXPECTED, f"{len(data)} bytes that are no JSON ({error})") from error
    number = content.get("schema")
    if number != SCHEMA:
        raise ParseError(path, "schema", str(SCHEMA), repr(number)[:20], hint="read it with the probe that wrote it")
    return (_sweep if content["probe"] == "sweep" else _measurement)(path, content)


# One shape


def _measurement(path: Path, content: Mapping[str, Any]) -> Artifact:
    iterations = _iterations(path, schema.mapping(content.get("iterations")))
    tables = {"iterations": iterations}
    layers, notes = _layers(path, content)
    if layers is not None:
        tables["layers"] = layers
    summary = {**_facts(content), "iterations": len(iterations), **_phases(content, iterations)}
    if (rate := schema.real(content.get("throughput_qps"))) is not None:
        summary["throughput_qps"] = rate
    if layers is not None:
        summary["by_layer"] = trtexec_exports.by_layer(layers)
    if shapes := schema.mapping(content.get("shapes")):
        summary["shapes"] = _shapes(shapes)
    said = [schema.text(content.get("how")), *schema.texts(content.get("notes")), *notes]
    return Artifact(path, "probe-measurement", "probe", None, tables, summary, tuple(filter(None, said)))


def _iterations(path: Path, columns: Mapping[str, Any]) -> pd.DataFrame:
    latency = columns.get("latency_ns")
    if not isinstance(latency, list) or not latency:
        raise ParseError(path, "iterations, latency_ns", "a list of nanoseconds", repr(latency)[:40])
    frame: dict[str, Any] = {"iteration": np.arange(len(latency))}
    for name in PHASES:
        values = columns.get(name)
        if values is not None and (not isinstance(values, list) or len(values) != len(latency)):
            raise ParseError(
                path, f"iterations, {name}", f"a list of {len(latency)} numbers, or null", repr(values)[:40]
            )
        frame[name] = np.full(len(latency), np.nan) if values is None else values
    try:
        return validate("iterations", pd.DataFrame(frame))
    except ValueError as error:
        raise ParseError(path, "iterations", "numbers", str(error)) from error


def _phases(content: Mapping[str, Any], iterations: pd.DataFrame) -> dict[str, Any]:
    """Statistics of each phase; on a processor there is one phase, the whole latency."""
    found = trtexec_exports.summarise(iterations)
    return found if _on_gpu(content) else {"latency_ns": found["latency_ns"]}


def _on_gpu(content: Mapping[str, Any]) -> bool:
    return schema.text(schema.mapping(content.get("facts")).get("backend")).startswith("trt")


def _layers(path: Path, content: Mapping[str, Any]) -> tuple[pd.DataFrame | None, Sequence[str]]:
    """Times of layers with what the inspector knows of them."""
    rows = content.get("layers")
    if not isinstance(rows, list) or not rows:
        return None, ()
    if not all(isinstance(row, Mapping) and isinstance(row.get("layer"), str) for row in rows):
        raise ParseError(path, "layers", "a list of objects with a layer", repr(rows)[:60])
    frame = pd.DataFrame(
        [{name: row.get(name) for name in ("layer", "total_ns", "mean_ns", "median_ns")} for row in rows]
    )
    whole = frame["total_ns"].sum()
    frame["time_pct"] = 100 * frame["total_ns"] / whole if whole else np.nan
    try:
        layers = validate("layers", frame)
    except ValueError as error:
        raise ParseError(path, "layers", "numbers of nanoseconds", str(error)) from error
    information = content.get("layer_information")
    if not isinstance(information, str):
        return layers, ("the layers' precision, tactics and nodes are not known: there was no inspector",)
    try:
        values = decoding.parse_json(information, path, "the inspector's JSON", trtexec_exports.repaired)
        known = trtexec_exports.read_layers(path, values)
    except ParseError as error:
        return layers, (f"the inspector's layer information cannot be read: {error.got}",)
    joined, notes = trtexec_join.join_layers(layers, known.tables["layers"])
    return joined, (*known.notes, *notes)


def _facts(content: Mapping[str, Any]) -> dict[str, Any]:
    """What it was measured on and with, as plain values."""
    facts, build = schema.mapping(content.get("facts")), schema.mapping(content.get("build"))
    found = {
        "model": schema.text(content.get("model")), "precision": schema.text(content.get("precision")),
        **{str(name): value for name, value in facts.items() if isinstance(value, str)},
        "typing": schema.text(build.get("typing")), "build_s": schema.real(build.get("build_s")),
        "engine_bytes": schema.integer(build.get("engine_bytes")),
        "cuda_graph": "yes" if content.get("cuda_graph") is True else "",
    }  # fmt: skip
    return {name: value for name, value in found.items() if value not in ("", None)}


# A sweep


def _sweep(path: Path, content: Mapping[str, Any]) -> Artifact:
    points = content.get("points")
    if not isinstance(points, list) or not points or not all(isinstance(one, Mapping) for one in points):
        raise ParseError(path, "points", "a list of objects, one a shape", repr(points)[:60])
    try:
        frame = validate("sweep", pd.DataFrame([_point(one) for one in points]))
    except ValueError as error:
        raise ParseError(path, "points", "sizes and times", str(error)) from error
    by = schema.text(content.get("steps_by"))
    summary = {
        **_facts(content), "sweep": schema.text(content.get("sweep")), "shapes": len(frame), "steps_by": by,
        "steps": int(frame["step"].notna().sum()),
    }  # fmt: skip
    notes = [schema.text(content.get("how")), *schema.texts(content.get("notes")), _STEPS.get(by, "")]
    return Artifact(path, "probe-sweep", "probe", None, {"sweep": frame}, summary, tuple(filter(None, notes)))


_STEPS = {
    "kernels": "steps are where the kernels that an inference launches differ from those of the size before",
    "tactics": "steps are where the inspector names other tactics; kernels inside a fused region are not known",
    "latency": "neither kernels nor tactics are known here: steps are where the latency leaves the course of its "
               "neighbours in both rounds, which says that something changed, not what",
}  # fmt: skip


def _point(point: Mapping[str, Any]) -> dict[str, Any]:
    step = schema.mapping(point.get("step"))
    times = {
        name: schema.real(schema.mapping(point.get(column)).get(statistic))
        for name, (column, statistic) in _SWEPT.items()
    }
    return {
        "size": schema.integer(point.get("size")), "shapes": _shapes(schema.mapping(point.get("shapes"))),
        "iterations": schema.integer(point.get("iterations")), **times,
        "throughput_qps": schema.real(point.get("throughput_qps")), "step": schema.text(step.get("kind")) or None,
        "change": schema.text(step.get("change")) or None, "kernels": schema.texts(point.get("kernels")),
    }  # fmt: skip


def _shapes(shapes: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} {'x'.join(map(str, shape)) or 'scalar'}" for name, shape in shapes.items() if isinstance(shape, list)
    )
