"""A session of `probe ladder bert` as a GPU would leave it, with numbers made up, for the page and the browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.record import Session
from probes.laddering.rungs import RUNGS

TIMES_US = {"fp32": 14100.0, "tf32": 4600.0, "fp16": 2700.0, "fusion": 1900.0, "gelu": 1600.0, "permuted": 1590.0,
            "varlen": 1010.0, "int4": 2300.0, "int8": 900.0, "int8-attention": 760.0, "graph": 700.0, "graph-fp16": 960.0}  # fmt: skip
OPERATIONS = {"QKV product": 0.3, "attention": 0.15, "output product": 0.1, "skip + layernorm": 0.1, "FC1 product": 0.2,
              "FC2 product": 0.15}  # fmt: skip


def make(folder: Path, name: str = "base") -> Session:
    session = Session.create("ladder", folder)
    session.write_json("manifest.json", {"schema_version": 1, "verb": "ladder", "argv": ["ladder", "bert"]})
    rows = [_row(number, rung.name, rung.title, aside=rung.aside) for number, rung in enumerate(RUNGS)]
    rows += [_peer("fp16", "FP16", "torch", "PyTorch", 2900.0), _peer("graph-fp16", "CUDA graph of FP16", "torch", "PyTorch", 2210.0),
             _peer("fp16", "FP16", "onnx", "ONNX", 2240.0)]  # fmt: skip
    session.write_json("result.json", {
        "kind": "bert", "model": {"name": name}, "batch": 32, "sequence": 128, "device": "a card", "seconds": 100.0,
        "roofs": {"bytes_per_s": 3e12, "flop_per_s": {"fp16": 7e14, "int8": 1.2e15, "fp32": 6e13}},
        "rungs": rows, "bisect": [{"rung": "int8", "relative_l2": 0.2, "culprits": [name], "note": "made up"}],
    })  # fmt: skip
    return session


def _row(number: int, rung: str, title: str, *, aside: bool) -> dict[str, Any]:
    median = TIMES_US[rung] * 1e3 if rung in TIMES_US else None
    error = 1e-7 * 4**number
    return {
        "rung": rung, "title": title, "route": "kernels", "route_title": "our kernels", "aside": aside, "status": "measured",
        "latency_ns": {"median": median, "p99": median and 1.1 * median}, "throughput": median and 32e9 / median,
        "speedup_previous": 1.4 if median and number else None, "speedup_total": median and 14.1e6 / median,
        "relative_l2": error, "cosine": 1 - error, "layers": [{"relative_l2": error * layer} for layer in (0.5, 1.0)],
        "operations": [{"operation": name, "count": 12, "launches": 12, "blocks": 192, "bytes": 7_000_000, "flops": 12_000_000_000,
                        "bound_ns": 0.5 * share * median, "total_ns": share * median} for name, share in OPERATIONS.items()] if median else [],
        "memory_bytes": 1 << 28, "build_s": 1.5, "roofline_pct": 40.0, "flops": 7e11, "bytes": 2e9, "note": "", "verdict": "pass",
    }  # fmt: skip


def _peer(rung: str, title: str, route: str, route_title: str, microseconds: float) -> dict[str, Any]:
    return {**_row(2, rung, title, aside=False), "route": route, "route_title": route_title, "layers": [], "operations": [],
            "latency_ns": {"median": microseconds * 1e3, "p99": None}, "flops": None, "speedup_total": None}  # fmt: skip
