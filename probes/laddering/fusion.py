"""`probe ladder fusion`: the exercise of five kernels, three, two streams and one, checked and, on a GPU, timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness import fusion
from harness.errors import EXIT_CLEAN, EXIT_DEFECT
from harness.record import Session
from kernels.fusion import LEVELS, Level, arrays, expected, worst_error
from probes.laddering.running import Laddered, device_here
from probes.targets import driving
from reports.pages import page

Tell = Callable[[str], None]
MOST_ROUNDINGS = 4.5  # of float32, three or four of which the definition has


@dataclass(frozen=True)
class Asked:
    """What to measure, and where it goes."""

    seconds: float = 0.3
    seed: int = 0
    out: Path | None = None


def climb(asked: Asked, tell: Tell = lambda _: None) -> Laddered:
    """Every level once, in float32 against float64; write session and page."""
    device = device_here()
    session = Session.create("ladder", asked.out)
    argv = ["ladder", "fusion", "--seconds", f"{asked.seconds:g}", "--seed", str(asked.seed)]
    facts = {"device": device.facts.as_manifest()} if device else {}
    session.write_json("manifest.json", driving.manifest("ladder", argv, facts))
    given = arrays(np.random.default_rng(asked.seed))
    wanted = expected(given)
    began = time.monotonic()
    rows: list[dict[str, Any]] = []
    for level in LEVELS:
        tell(level.name)
        rows.append(_row(level, given, wanted, rows, asked.seconds, on_gpu=device is not None))
        session.append_step(rows[-1])
    document = {"kind": "fusion", "device": device.facts.name if device else None, "rungs": rows, "bisect": [],
                "seconds": time.monotonic() - began}  # fmt: skip
    session.write_json("result.json", document)
    page.write(session)
    wrong = any(row["verdict"] != "pass" for row in rows)
    return Laddered(document, session, EXIT_DEFECT if wrong else EXIT_CLEAN)


def _row(
    level: Level, given: dict[str, np.ndarray], wanted: np.ndarray, before: list[dict[str, Any]], seconds: float,
    *, on_gpu: bool,
) -> dict[str, Any]:  # fmt: skip
    start = time.perf_counter()
    median, note = None, ""
    if on_gpu:
        got, median = fusion.measure(level, given, seconds)
    else:
        got, findings = fusion.emulate(level, given, checks="all")
        note = f"{findings} findings of the emulation" if findings else ""
    roundings = worst_error(got, wanted)
    times = [row["latency_ns"]["median"] for row in before if row["latency_ns"]["median"]]
    return {
        "rung": level.name, "title": level.name, "route": "kernels", "route_title": "our kernels", "status": "measured",
        "latency_ns": {"median": median, "p99": None}, "throughput": 1e9 / median if median else None,
        "speedup_previous": times[-1] / median if times and median else None,
        "speedup_total": (times or [median])[0] / median if median else None,
        "relative_l2": float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted)),
        "cosine": float(np.vdot(got, wanted) / np.linalg.norm(got) / np.linalg.norm(wanted)),
        "memory_bytes": sum(array.nbytes for array in given.values()), "build_s": None, "roofline_pct": None,
        "launches": len(level.in_order), "worst_roundings": roundings, "layers": [], "operations": [], "aside": False,
        "emulated_s": None if on_gpu else time.perf_counter() - start, "note": note,
        "verdict": "pass" if roundings <= MOST_ROUNDINGS else "fail",
    }  # fmt: skip
