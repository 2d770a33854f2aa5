"""The faults that `probe sanitize` found, each once however many records tell of it, and where it comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from reports import schema
from reports.pages import sheets
from reports.pages.sheets import Sheet

NOUN = "fault"
CAPTION = "One row for each fault at one place of the code; launches count from 0. Calls that only report a fault are not places."
TITLES = {"checker": "Tool", "kind": "What", "kernel": "Kernel or call", "count": "Times", "range": "Range", "inferred_nodes": "Inferred nodes", "how": "How that is known"}  # fmt: skip


def of(results: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    """The faults that documents `result.json` list; none for those of other verbs."""
    listed = [result["findings"] for result in results if isinstance(result.get("findings"), list)]
    return tuple(schema.mapping(one) for found in listed for one in found)


def sheet(faults: Sequence[Mapping[str, Any]]) -> Sheet | None:
    """The table of a page, in the order in which they were found; None without faults."""
    if not faults:
        return None
    return sheets.make("faults", "Faults", pd.DataFrame(map(_row, faults)), NOUN, titles=TITLES, caption=CAPTION)


def launched_in(faults: Sequence[Mapping[str, Any]]) -> str:
    """The NVTX range that launched the first fault, where that is all that is known of its place."""
    first = faults[0] if faults else {}
    name = schema.text(first.get("range"))
    return f"Launched in the range {name}" if name and not first.get("layer") else ""


def _row(fault: Mapping[str, Any]) -> dict[str, Any]:
    file, line = schema.text(fault.get("file")), schema.integer(fault.get("line"))
    return {
        "kind": schema.text(fault.get("kind")), "kernel": schema.text(fault.get("kernel")) or schema.text(fault.get("api")),
        "where": f"{file}:{line}" if file and line is not None else file, "count": schema.integer(fault.get("count")),
        "launch": schema.integer(fault.get("launch")), "onnx_nodes": schema.texts(fault.get("onnx_nodes")),
        "inferred_nodes": schema.texts(fault.get("inferred_nodes")),
        "layer": schema.text(fault.get("layer")), "range": "" if fault.get("layer") else schema.text(fault.get("range")),
        "checker": schema.text(fault.get("checker")), "how": schema.text(fault.get("how")),
    }  # fmt: skip
