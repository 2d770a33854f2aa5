"""ONNX Runtime as an engine: on the processor, or on a GPU with its CUDA provider."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
from onnx import helper

from harness import optional, ranges
from harness.engines.model import prepare, with_outputs
from harness.engines.options import BuildOptions, Source, Tell
from harness.engines.profiler import LayerTime
from harness.engines.runner import Arrays, Column, Runner, RunOptions, Tensor, Timed, fitted
from harness.errors import BuildFailed, LaunchFailed, UsageError

PROVIDERS = {"ort-cpu": "CPUExecutionProvider", "ort-cuda": "CUDAExecutionProvider"}
_TYPES = {
    "tensor(float)": onnx.TensorProto.FLOAT, "tensor(double)": onnx.TensorProto.DOUBLE,
    "tensor(float16)": onnx.TensorProto.FLOAT16, "tensor(bfloat16)": onnx.TensorProto.BFLOAT16,
    "tensor(bool)": onnx.TensorProto.BOOL, "tensor(string)": onnx.TensorProto.STRING,
    **{f"tensor({sign}int{bits})": getattr(onnx.TensorProto, f"{sign}int{bits}".upper())
       for sign in ("", "u") for bits in (8, 16, 32, 64)},
}  # fmt: skip


def build(source: Source, options: BuildOptions, tell: Tell, folder: Path) -> tuple[Path, tuple[str, ...]]:
    """The model that a session is made from, precision and marked outputs in it, and notes.

    Raises UsageError for a network made by a callable, and for what else ONNX Runtime does not have.
    """
    if not isinstance(source, Path | onnx.ModelProto):
        raise UsageError("a network made through TensorRT's API does not run in ONNX Runtime", hint="--backend trt")
    if options.plugins:
        raise UsageError("plugin libraries are TensorRT's: ONNX Runtime does not load them", hint="--backend trt")
    tell("preparing the model")
    with ranges.range("parse"):
        if isinstance(source, onnx.ModelProto):
            source = _written(source, folder)
        prepared = prepare(source, options, folder, rewrite=True, lower=False)
    path = with_outputs(prepared.path, options.outputs, folder) if options.outputs else prepared.path
    notes = [*prepared.notes]
    if options.precision in ("fp16", "bf16") and options.backend != "ort-cuda":
        notes.append(f"on a processor ONNX Runtime stores {options.precision} and computes most of it in FP32")
    return path, tuple(notes)


def _written(proto: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "source.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def session_options(ort: ModuleType, threads: int) -> Any:
    """Quiet; threads 0 is ONNX Runtime's own choice."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    return options


def open_session(model: Path | bytes, backend: str, options: Any, *, tf32: bool = False) -> Any:
    """An InferenceSession; UsageError without the provider, BuildFailed if the model is refused."""
    ort = optional.load("onnxruntime")
    provider = PROVIDERS[backend]
    if provider not in ort.get_available_providers():
        raise UsageError(f"this onnxruntime has no {provider}", hint="pip install onnxruntime-gpu")
    settings: Mapping[str, str] = {"use_tf32": str(int(tf32))} if backend == "ort-cuda" else {}
    content = str(model) if isinstance(model, Path) else model
    try:
        session = ort.InferenceSession(content, options, providers=[(provider, settings)])
    except Exception as error:  # its exceptions have no common base of their own
        raise _refused(error) from error
    if session.get_providers()[0] != provider:
        raise UsageError(f"{provider} does not start here: ONNX Runtime fell back to {session.get_providers()[0]}",
                         hint="probe doctor; its CUDA and cuDNN must be those that this onnxruntime was built for")  # fmt: skip
    return session


def _refused(error: Exception) -> Exception:
    said = (str(error).strip().splitlines() or [type(error).__name__])[0][:500]
    if "Could not find an implementation for" in said:
        return BuildFailed(f"ONNX Runtime has no kernel for a node in this precision: {said}", hint="--precision fp32")
    if "is not a registered function/op" in said or "No Op registered for" in said:
        return UsageError(f"ONNX Runtime does not know an operator of the model: {said}",
                          hint="a TensorRT plugin? --backend trt --plugin LIBRARY.so")  # fmt: skip
    return BuildFailed(f"ONNX Runtime refused the model: {said}")


class OrtRunner(Runner):
    """One session; on a GPU the copies are part of its time."""

    def __init__(self, model: Path | bytes, backend: str, options: RunOptions, *, tf32: bool = False) -> None:
        if options.cuda_graph:
            raise UsageError("--cuda-graph is TensorRT's here; ONNX Runtime is measured as it comes")
        self._model, self._backend, self._options, self._tf32 = model, backend, options, tf32

    def __enter__(self) -> OrtRunner:
        ort = optional.load("onnxruntime")
        with ranges.range("deserialize"):
            options = session_options(ort, self._options.threads)
            self._session = open_session(self._model, self._backend, options, tf32=self._tf32)
        self._inputs = tuple(map(_tensor, self._session.get_inputs()))
        self._outputs = tuple(map(_tensor, self._session.get_outputs()))
        return self

    def __exit__(self, *error: object) -> None:
        self.__dict__.pop("_session", None)

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return self._inputs

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        return self._outputs

    def bind(self, feeds: Arrays) -> None:
        self._feeds = {tensor.name: fitted(tensor, feeds) for tensor in self._inputs}

    def infer_raw(self) -> list[Any]:
        """What is bound, through the session, and nothing else."""
        try:
            result: list[Any] = self._session.run(None, self._feeds)
        except Exception as error:
            said = (str(error).strip().splitlines() or [type(error).__name__])[0][:500]
            raise LaunchFailed("InferenceSession.run()", "harness/engines/ort.py", 0, said) from error
        return result

    def run(self) -> dict[str, np.ndarray]:
        return dict(zip((tensor.name for tensor in self._outputs), self.infer_raw(), strict=True))

    def timed(self, count: int) -> Timed:
        return _OrtTimed(self, count)

    def burst(self, count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            self.infer_raw()
        return time.perf_counter() - start

    def layers(self, count: int) -> list[LayerTime]:
        """None in this way: `harness.engines.ort_profile` has a session write its own profile."""
        return []


class _OrtTimed(Timed):
    """Wall time of each run: ONNX Runtime does not tell copies from computation."""

    def __init__(self, runner: OrtRunner, count: int) -> None:
        self._infer = runner.infer_raw
        self._times = np.full(count, np.nan)

    def once(self, index: int) -> None:
        start = time.perf_counter_ns()
        self._infer()
        self._times[index] = time.perf_counter_ns() - start

    def columns(self) -> dict[str, Column]:
        unknown = np.full(len(self._times), np.nan)
        return {"enqueue_ns": unknown, "h2d_ns": unknown, "compute_ns": self._times, "d2h_ns": unknown,
                "latency_ns": self._times}  # fmt: skip


def _tensor(value: Any) -> Tensor:
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(_TYPES[value.type])) if value.type in _TYPES else np.dtype(object)
    return Tensor(value.name, dtype, tuple(size if isinstance(size, int) else -1 for size in value.shape))
