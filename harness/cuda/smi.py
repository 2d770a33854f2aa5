"""The GPUs as nvidia-smi sees them, without a CUDA context of our own: what they are, and how their clocks stand."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from harness import process
from harness.errors import ToolMissing
from harness.record import Command
from harness.tools.tool import USUAL_PLACES, find_tool

TIMEOUT_S = 20.0
FACTS = ("name", "compute_cap", "driver_version", "memory.total")
# `clocks_throttle_reasons` has been called `clocks_event_reasons` since 2023; the old name goes on working.
STATE = ("clocks.sm", "clocks.mem", "clocks.max.sm", "clocks_throttle_reasons.active", "temperature.gpu", "power.draw")


def gpus() -> list[dict[str, str]]:
    """What each GPU is; none if there is no nvidia-smi, or it finds none."""
    return _query(FACTS)


def states() -> list[dict[str, str]]:
    """Clocks in MHz, the bits of what slows them down, temperature in °C and power in W, now."""
    return _query(STATE)


def is_gpu_here() -> bool:
    """Whether a GPU can be used; CUDA_VISIBLE_DEVICES may hide it."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0") not in ("", "-1") and bool(gpus())


def _query(fields: tuple[str, ...]) -> list[dict[str, str]]:
    program, _ = find_tool("nvidia-smi", os.environ.get("PATH"), USUAL_PLACES)
    if program is None:
        return []
    words = (str(program), f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits")
    with tempfile.TemporaryDirectory(prefix="probe-smi-") as folder:
        try:
            run = process.run(Command(words, TIMEOUT_S, cwd=Path(folder)), Path(folder) / "smi")
        except ToolMissing:
            return []
        return parse(run.stdout.read_text("utf-8", "replace"), fields) if run.ok else []


def parse(text: str, fields: tuple[str, ...]) -> list[dict[str, str]]:
    """The rows of nvidia-smi's CSV; a name may hold commas, so the fields are counted from the right."""
    rows = (line.rsplit(",", len(fields) - 1) for line in text.splitlines())
    return [dict(zip(fields, (part.strip() for part in row), strict=True)) for row in rows if len(row) == len(fields)]
