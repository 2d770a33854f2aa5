"""Polygraphy's inputs and outputs (`--save-inputs`, `--save-outputs`): tensors with shapes, types and statistics."""

from __future__ import annotations

import base64
import binascii
import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness.errors import ParseError
from reports.artifact import Artifact
from reports.columns import validate
from reports.readers import decoding

EXPECTED = "inputs or outputs saved by Polygraphy (JSON with polygraphy_class)"
_CLASS = '"polygraphy_class"'


def sniff(path: Path, head: bytes) -> bool:
    """By the class names of Polygraphy, or by the beginning of its first array."""
    text = decoding.decode(head[:65536])
    return text.lstrip()[:1] in ("{", "[") and (_CLASS in text or '"array": "k05VTVBZ' in text)


def read(path: Path) -> Artifact:
    """One row a tensor, of each runner and iteration."""
    text = decoding.decode(decoding.read_bytes(path, EXPECTED))
    values = decoding.parse_json(text, path, EXPECTED)
    rows = list(_tensors(values[0], path))
    if not rows:
        raise ParseError(path, "content", "at least one tensor", "none")
    tensors = validate("tensors", pd.DataFrame(rows))
    role = str(tensors["role"].iloc[0])
    summary = {
        "tensor_count": len(tensors),
        "iterations": int(tensors["iteration"].max()) + 1,
        "runners": [str(name) for name in tensors["runner"].dropna().unique()],
        "nan_count": int(tensors["nan_count"].sum()),
        "inf_count": int(tensors["inf_count"].sum()),
    }
    notes = []
    if not_finite := int(((tensors["nan_count"] > 0) | (tensors["inf_count"] > 0)).sum()):
        notes.append(
            f"{not_finite} of {len(tensors)} tensors hold NaN or infinity: statistics are of the finite values"
        )
    return Artifact(path, f"polygraphy-{role}s", "polygraphy", None, {"tensors": tensors}, summary, tuple(notes))


def _tensors(value: Any, path: Path) -> Iterator[dict[str, Any]]:
    """A list of feeds (inputs), or RunResults: runners, each with its iterations (outputs)."""
    if isinstance(value, list) and all(isinstance(feed, dict) for feed in value):
        for iteration, feed in enumerate(value):
            yield from _of(feed, None, iteration, "input", path)
        return
    runners = value.get("lst") if isinstance(value, dict) else value
    if not isinstance(runners, list):
        raise ParseError(path, "content", "a list of feeds, or results with a list `lst`", type(value).__name__)
    for number, entry in enumerate(runners):
        if not (isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], list)):
            raise ParseError(path, f"runner {number}", "a pair of its name and its iterations", type(entry).__name__)
        for iteration, result in enumerate(entry[1]):
            outputs = result.get("outputs") if isinstance(result, dict) else None
            if not isinstance(outputs, dict):
                raise ParseError(path, f"runner {number}, iteration {iteration}", "outputs", type(outputs).__name__)
            yield from _of(outputs, str(entry[0]), iteration, "output", path)


def _of(tensors: dict[str, Any], runner: str | None, iteration: int, role: str, path: Path) -> Iterator[dict[str, Any]]:
    for name, stored in tensors.items():
        if name == "polygraphy_class":
            continue
        array = _array(stored, f"{role} {name} of iteration {iteration}", path)
        place = {"runner": runner, "iteration": iteration, "role": role, "tensor": name}
        yield place | statistics(array)


def _array(stored: Any, where: str, path: Path) -> np.ndarray[Any, Any]:
    """An array as Polygraphy stores it: `.npy` in base64, within one or two objects; never a pickle."""
    while isinstance(stored, dict):
        stored = next((stored[key] for key in ("values", "arr", "array", "tensor") if key in stored), None)
    if not isinstance(stored, str):
        raise ParseError(path, where, "an array in base64", type(stored).__name__)
    try:
        array = np.load(io.BytesIO(base64.b64decode(stored, validate=True)), allow_pickle=False)
    except (binascii.Error, ValueError, OSError, EOFError, SyntaxError, MemoryError) as error:
        raise ParseError(path, where, "a .npy array in base64", str(error)[:80]) from error
    if not isinstance(array, np.ndarray):
        raise ParseError(path, where, "one array", "an archive")
    return array


def statistics(array: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Shape, type and statistics, those of finite values alone and in float64."""
    about = {
        "dtype": str(array.dtype),
        "shape": f"[{', '.join(map(str, array.shape))}]",
        "elements": array.size,
        "bytes": array.nbytes,
    }
    if array.dtype.kind not in "biuf":
        return about
    with np.errstate(invalid="ignore"):  # of a NaN that signals
        values = array.astype(np.float64)
    finite = values[np.isfinite(values)]
    about |= {
        "nan_count": int(np.isnan(values).sum()),
        "inf_count": int(np.isinf(values).sum()),
        "zero_count": int((values == 0).sum()),
    }
    if finite.size:
        with np.errstate(over="ignore"):
            stats = {"min": finite.min(), "max": finite.max(), "mean": finite.mean(), "std": finite.std()}
        about |= {name: float(value) if math.isfinite(value) else math.nan for name, value in stats.items()}
    return about
