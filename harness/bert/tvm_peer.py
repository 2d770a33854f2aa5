"""Our ONNX encoder through TVM, in a process of its own: its compiler may crash, or go on for ever."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from harness import process
from harness.errors import BuildFailed, UsageError
from harness.record import Command, ToolRun

Array = np.ndarray[Any, Any]

TIMEOUT_S = 300.0  # for compiling and measuring a step
PLAIN = "without tensor cores, since TVM crashed while it scheduled them"


@dataclass(frozen=True)
class TvmOptions:
    """What to compile: FP32, or FP16 products that add up in FP32; for the first GPU, or for this processor.

    `graph`: replayed as CUDA graphs. `tensor_cores`: whether TVM may schedule FP16 products for them.
    """

    precision: str = "fp32"
    gpu: bool = False
    graph: bool = False
    tensor_cores: bool = True
    seconds: float = 0.3  # of measuring


@dataclass(frozen=True)
class TvmRun:
    """`output` is the model's, float64 [B, S, E]; times are those of each inference, `build_s` that of import and compilation."""

    output: Array
    times_ns: tuple[float, ...]
    build_s: float
    memory_bytes: int | None  # of the GPU
    notes: tuple[str, ...]


def measure(
    model: Path, feeds: Mapping[str, Array], options: TvmOptions, folder: Path, timeout_s: float = TIMEOUT_S
) -> TvmRun:
    """Compile an .onnx file for the shapes of `feeds`, run and time it; the process' files go to `folder`.

    Where TVM crashes as it compiles FP16 products for tensor cores (0.26 and 0.27 do), it is asked again without them,
    which the notes say. Raises UsageError if TVM does not load or sees no GPU, BuildFailed for all else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "feeds.npz", **dict(feeds))  # type: ignore[arg-type]
    job = {"model": os.path.relpath(model, folder), **asdict(options)}
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    (folder / "result.json").unlink(missing_ok=True)
    run = process.run(_worker(folder, timeout_s), folder / "tvm")
    told = _told(folder)
    if told["ok"] and run.ok:
        return _read(folder, told)
    if "unusable" in told:
        raise UsageError(told["unusable"])
    tensor_cores = options.gpu and options.precision == "fp16" and options.tensor_cores
    if run.signal is not None and not run.timed_out and told["stage"] == "build" and tensor_cores:
        plain = measure(model, feeds, replace(options, tensor_cores=False), folder, timeout_s)
        return replace(plain, notes=(*plain.notes, PLAIN))
    raise BuildFailed(_why(told, run, timeout_s))


def _worker(folder: Path, timeout_s: float) -> Command:
    words = process.module_words("harness.bert.tvm_worker", str(folder.absolute()))
    # TVM asks for NVRTC's Python package unless it is told that there is a compiler.
    compiler = {"TVM_CUDA_COMPILE_MODE": "nvcc"} if shutil.which("nvcc") else {}
    return Command(words, timeout_s, {**process.module_environment(), **compiler})


def _told(folder: Path) -> dict[str, Any]:
    """What the process said of itself, which is written whole at each stage."""
    path = folder / "result.json"
    if not path.is_file():
        return {"stage": "load", "ok": False}
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _read(folder: Path, told: Mapping[str, Any]) -> TvmRun:
    output = np.load(folder / "output.npy", allow_pickle=False).astype(np.float64)
    return TvmRun(output, tuple(told["times_ns"]), told["build_s"], told["memory_bytes"], tuple(told["notes"]))


def _why(told: Mapping[str, Any], run: ToolRun, timeout_s: float) -> str:
    """One line: how it ended, and at which stage."""
    name, stage = f"TVM {told.get('version', '')}".strip(), told["stage"]
    if run.timed_out:
        return f"{name} was stopped after {timeout_s:g} s at stage {stage!r}"
    if run.signal is not None:
        return f"{name} crashed at stage {stage!r}: {signal.Signals(run.signal).name}"
    said = told.get("error") or process.tail(run.stderr, 1) or f"exit code {run.returncode}"
    return f"{name} failed at stage {stage!r}: {said}"
