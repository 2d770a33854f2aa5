"""ONNX Runtime on the CPU: sessions that share the weights' memory with us, and errors that say what was wrong."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from harness import optional
from harness.errors import UsageError
from harness.models.model import HELD, walk

Feeds = Mapping[str, np.ndarray]

_shares_threads = False


def share_threads(threads: int = 0) -> None:
    """From now on all sessions of this process share one pool of threads (0: one a core); call it before the first.

    Pools of their own spin against each other where sessions take turns. ONNX Runtime then refuses sessions that do
    not share, whoever makes them: this is for processes of ours.
    """
    global _shares_threads
    ort = optional.load("onnxruntime")
    if hasattr(ort, "set_global_thread_pool_sizes"):
        ort.set_global_thread_pool_sizes(threads, 1)
        _shares_threads = True


class RunFailed(Exception):
    """ONNX Runtime refused the model or stopped while running it; callers decide whether that is a verdict."""


class Runner:
    """One ONNX Runtime session over a model without weights and the arrays that hold them.

    ONNX Runtime may copy the arrays. With `folder`, weights that lie in files beside the model are mapped from there
    instead, and are in memory once however many sessions and processes use them. `lean` keeps no packed copies of
    weights and hands working memory back after each operator, for a slower run.
    """

    def __init__(
        self, proto: onnx.ModelProto, weights: Mapping[str, np.ndarray], *, threads: int = 0, optimise: bool = True,
        fold_constants: bool = True, lean: bool = False, folder: Path | None = None,
    ) -> None:  # fmt: skip
        ort = optional.load("onnxruntime")
        self._values_of = ort.OrtValue
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = threads
        options.use_per_session_threads = not _shares_threads
        if not optimise:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._lean = lean
        if lean:
            options.add_session_config_entry("session.disable_prepacking", "1")
            options.enable_cpu_mem_arena = False
        mapped = folder is not None
        if folder is not None:
            options.add_session_config_entry(
                "session.model_external_initializers_file_folder_path", str(folder.resolve())
            )
        needed = _held_initialisers(proto.graph, mapped)
        self._weights = {name: np.ascontiguousarray(array) for name, array in weights.items() if name in needed}
        if self._weights:  # a session that does not copy these buffers needs them as long as it lives
            values = [self.value(array) for array in self._weights.values()]
            options.add_external_initializers(list(self._weights), values)
            self._values = values
        try:
            self._session = ort.InferenceSession(
                proto.SerializeToString(), options, providers=["CPUExecutionProvider"],
                disabled_optimizers=None if fold_constants else ["ConstantFolding"],
            )  # fmt: skip
        except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
            raise RunFailed(_first_line(error)) from error

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> list[Any]:
        try:
            result: list[Any] = self._session.run(outputs, dict(feeds))
        except Exception as error:
            raise RunFailed(_first_line(error)) from error
        return result

    def value(self, array: np.ndarray) -> Any:
        """An array as ONNX Runtime's own value (not copied), for `run_values`."""
        array = np.ascontiguousarray(array)
        if array.dtype.isbuiltin == 1:
            return self._values_of.ortvalue_from_numpy(array)
        element = onnx.helper.np_dtype_to_tensor_dtype(
            array.dtype
        )  # bfloat16 and its like: NumPy knows their bits only
        return self._values_of.ortvalue_from_numpy_with_onnx_type(array.view(f"u{array.dtype.itemsize}"), element)

    def run_values(self, feeds: Mapping[str, Any], outputs: Sequence[str]) -> list[Any]:
        """`run` on ONNX Runtime's own values, which are not copied on the way from one session to the next."""
        try:
            result: list[Any] = self._session.run_with_ort_values(list(outputs), dict(feeds))
        except Exception as error:
            raise RunFailed(_first_line(error)) from error
        if self._lean:
            _give_back_memory()
        return result

    @property
    def output_names(self) -> list[str]:
        return [value.name for value in self._session.get_outputs()]


def check_feeds(inputs: Sequence[onnx.ValueInfoProto], feeds: Feeds, origin: str) -> None:
    """Raise UsageError if names, ranks, fixed dimensions or dtypes of `feeds` do not fit the model's inputs."""
    expected = {value.name: value for value in inputs}
    if missing := sorted(expected.keys() - feeds.keys()):
        raise UsageError(
            f"{origin}: no array for input {missing[0]!r}; the model reads {sorted(expected)}, got {sorted(feeds)}"
        )
    if unknown := sorted(feeds.keys() - expected.keys()):
        raise UsageError(f"{origin}: the model has no input {unknown[0]!r}; it reads {sorted(expected)}")
    for name, value in expected.items():
        tensor = value.type.tensor_type
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        array = feeds[name]
        if array.dtype != dtype:
            raise UsageError(f"{origin}: input {name!r}: expected dtype {dtype}, got {array.dtype}",
                             hint=f"store it with .astype('{dtype}')")  # fmt: skip
        shape = [d.dim_value if d.dim_value > 0 else None for d in tensor.shape.dim]
        fits = len(shape) == array.ndim and all(
            want in (None, got) for want, got in zip(shape, array.shape, strict=True)
        )
        if tensor.HasField("shape") and not fits:
            text = "x".join("?" if want is None else str(want) for want in shape) or "scalar"
            raise UsageError(
                f"{origin}: input {name!r}: expected shape {text}, got {'x'.join(map(str, array.shape)) or 'scalar'}"
            )


def _held_initialisers(graph: onnx.GraphProto, mapped: bool) -> set[str]:
    """Initialisers to be handed over; ONNX Runtime drops unread ones before it would take them, and then complains."""
    external = {t.name: t for t in graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL}
    if mapped:
        external = {name: t for name, t in external.items() if any(e.value == HELD for e in t.external_data)}
    return external.keys() & {name for node in walk(graph) for name in node.input} if external else set()


def _give_back_memory() -> None:
    """glibc keeps what was freed, half a gigabyte after a run of a large model; elsewhere there is nothing to do."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:500] if lines else type(error).__name__
