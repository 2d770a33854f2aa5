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
from harness.models.model import HELD, PACKED, walk

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
        self._weights = {name: np.asarray(array, order="C") for name, array in weights.items() if name in needed}
        if self._weights:  # a session that does not copy these buffers needs them as long as it lives
            values = [as_value(array) for array in self._weights.values()]
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
        """The outputs (all, in the model's order, unless named) as arrays; sequences as lists of arrays."""
        types = self.output_types
        names = list(types if outputs is None else outputs)
        if any(_is_foreign(types[name]) for name in names) or any(_is_user_type(array) for array in feeds.values()):
            fed = {name: as_value(array) for name, array in feeds.items()}
            return [as_array(value) for value in self.run_values(fed, names)]
        try:
            result: list[Any] = self._session.run(names, dict(feeds))
        except Exception as error:
            raise RunFailed(_first_line(error)) from error
        return result

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
    def output_types(self) -> dict[str, str]:
        """Output name -> type, in ONNX Runtime's words: tensor(float), seq(tensor(float))."""
        return {value.name: value.type for value in self._session.get_outputs()}


def runner(
    proto: onnx.ModelProto, weights: Mapping[str, np.ndarray], *, optimise: bool = True, **options: Any
) -> Runner:
    """A Runner, optimised or not as asked; the other way if ONNX Runtime does not take the model so.

    Its own rewriting trips over some graphs that it can run, and some operators it has only as functions, which it
    writes out when it optimises.
    """
    try:
        return Runner(proto, weights, optimise=optimise, **options)
    except RunFailed:
        with contextlib.suppress(RunFailed):
            return Runner(proto, weights, optimise=not optimise, **options)
        raise  # the first failure is the one that a user can look up


def as_value(array: np.ndarray) -> Any:
    """An array as ONNX Runtime's own value (not copied), for `run_values`."""
    values_of = optional.load("onnxruntime").OrtValue
    array = np.asarray(array, order="C")
    if not _is_user_type(array):
        return values_of.ortvalue_from_numpy(array)
    element = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    return values_of.ortvalue_from_numpy_with_onnx_type(array.view(f"u{array.dtype.itemsize}"), element)


def as_array(value: Any) -> np.ndarray:
    """ONNX Runtime's own tensor as an array; BF16 and FP8, which NumPy has not, as FP32, which holds all their values."""
    if not _is_foreign(value.data_type()):
        try:
            array: np.ndarray = value.numpy()
        except RuntimeError as error:  # a sequence, values of four bits
            raise RunFailed(_first_line(error)) from error
        return array
    dtype = onnx.helper.tensor_dtype_to_np_dtype(value.element_type())
    data = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    return np.frombuffer(data, dtype).reshape(value.shape()).astype(np.float32)


def _is_foreign(kind: str) -> bool:
    """Whether a type, as ONNX Runtime names it, is one that its arrays do not have."""
    return kind.startswith(("tensor(bfloat16", "tensor(float8"))


def _is_user_type(array: Any) -> bool:
    return isinstance(array, np.ndarray) and array.dtype.isbuiltin == 2


def fed_dtype(value: onnx.ValueInfoProto) -> np.dtype:
    """The dtype of the arrays that an input takes. Raises UsageError for one that is no tensor, or of packed values."""
    element, kind = value.type.tensor_type.elem_type, value.type.WhichOneof("value") or "value of no known type"
    if element and element not in PACKED:
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(element))
    what = onnx.TensorProto.DataType.Name(element) + " tensor" if element else kind.removesuffix("_type")
    raise UsageError(f"input {value.name!r} is a {what}, which cannot be given as an array",
                     hint="cut the model so that it reads plain tensors: onnx.utils.extract_model")  # fmt: skip


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
        dtype, array = fed_dtype(value), feeds[name]
        if array.dtype != dtype and not (dtype.kind == "O" and array.dtype.kind in "OU"):  # strings
            raise UsageError(f"{origin}: input {name!r}: expected dtype {dtype}, got {array.dtype}",
                             hint=f"store it with .astype('{dtype}')")  # fmt: skip
        shape = [fixed_size(d) for d in tensor.shape.dim]
        fits = len(shape) == array.ndim and all(
            want in (None, got) for want, got in zip(shape, array.shape, strict=True)
        )
        if tensor.HasField("shape") and not fits:
            text = "x".join("?" if want is None else str(want) for want in shape) or "scalar"
            raise UsageError(
                f"{origin}: input {name!r}: expected shape {text}, got {'x'.join(map(str, array.shape)) or 'scalar'}"
            )


def fixed_size(dim: onnx.TensorShapeProto.Dimension) -> int | None:
    """A dimension that the model states (0 is one, too); None where it is free."""
    return dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else None


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


RUNNING = "Non-zero status code returned while running "


def _first_line(error: Exception) -> str:
    """What went wrong, less the nodes around it: an error inside an If is told once for every If."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    head, running, inner = lines[0].partition(RUNNING)
    return (head + running + inner.rpartition(RUNNING)[2])[:500]
