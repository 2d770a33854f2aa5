"""What `probe kernels bench` measured: each operation beside its physical bound and its peers, and the roofline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from harness.errors import ParseError
from reports.artifact import Artifact
from reports.columns import validate
from reports.readers import decoding

EXPECTED = "a benchmark of probe's kernels (JSON)"
_MARK = b'"kernel_bench"'


def sniff(path: Path, head: bytes) -> bool:
    return head.lstrip().startswith(b"{") and _MARK in head[:200]


def read(path: Path) -> Artifact:
    """Tables `kernel_bench` and `roofline`."""
    try:
        document = json.loads(decoding.read_bytes(path, EXPECTED))
        rows = [row for entry in document["kernel_bench"] for row in _rows(entry)]
        placed = [_placed(number, entry, document["roofs"]) for number, entry in enumerate(document["kernel_bench"])]
    except (ValueError, KeyError, TypeError) as error:
        raise ParseError(path, "content", EXPECTED, f"{type(error).__name__}: {error}") from error
    tables = {"kernel_bench": validate("kernel_bench", pd.DataFrame(rows)),
              "roofline": validate("roofline", pd.DataFrame(placed))}  # fmt: skip
    return Artifact(path, "kernel-bench", "probe", None, tables, {"device": document.get("device")})


def _rows(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """Ours and the peers'."""
    made = []
    for name, timing in {"probe": entry["timing"], **entry["peers"]}.items():
        seconds = timing["median_ns"] / 1e9
        made.append({
            "operation": entry["operation"], "case": entry["case"], "implementation": name,
            **{key: timing[key] for key in ("median_ns", "p10_ns", "p90_ns", "cold")},
            "bound_ns": entry["bound_ns"], "bound_by": entry["bound_by"],
            "bound_pct": 100 * entry["bound_ns"] / timing["median_ns"],
            "bytes_per_s": entry["bytes"] / seconds, "flop_per_s": entry["flop"] / seconds,
        })  # fmt: skip
    return made


def _placed(number: int, entry: dict[str, Any], roofs: dict[str, Any]) -> dict[str, Any]:
    """A row of `roofline`, from the least traffic and the definition's FLOPs."""
    taken = entry["timing"]["median_ns"]
    precision = entry["precision"]
    column = {"fp32": "fp32", "fp16": "tensor", "bf16": "tensor"}.get(precision)  # one roof for the tensor cores
    peaks = {} if column is None else {
        f"{column}_flop": entry["flop"], f"peak_{column}_flop_per_s": roofs["flop_per_s"][precision]}  # fmt: skip
    return {
        "launch_id": number, "kernel": f"{entry['operation']} {entry['case']}", "duration_ns": taken,
        "dram_bytes": entry["bytes"], "dram_bytes_per_s": entry["bytes"] / taken * 1e9,
        "peak_dram_bytes_per_s": roofs["bytes_per_s"], "flop": entry["flop"], "flop_per_s": entry["flop"] / taken * 1e9,
        "flop_per_byte": entry["flop"] / entry["bytes"], "ceiling_pct": 100 * entry["bound_ns"] / taken,
        "ceiling_flop_per_s": entry["flop"] / entry["bound_ns"] * 1e9,
        **peaks,
        "limited_by": entry["bound_by"],
        "why": f"the least it can take is {entry['bound_ns'] / 1e3:.3g} us, it takes {taken / 1e3:.3g} us",
    }  # fmt: skip
