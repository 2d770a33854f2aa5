"""The values of a model's tensors on given inputs, fetched part by part so that few are in memory at once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, ValueInfoProto, helper, shape_inference

from harness.errors import UsageError
from harness.models.model import Model
from harness.models.runtime import Feeds, Runner, runner

CHUNK_ELEMENTS = 2**25  # of activations fetched at once
FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE})
NUMERIC = FLOATS | {
    TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT8E4M3FNUZ, TensorProto.FLOAT8E5M2, TensorProto.FLOAT8E5M2FNUZ,
    TensorProto.BOOL, TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64,
    TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64,
}  # fmt: skip


def tensor_types(model: Model) -> dict[str, int]:
    """Tensor name -> TensorProto.DataType for the whole main graph; ONNX Runtime tells what ONNX cannot infer."""
    known = dict(model.dtypes)
    untold = [name for name in _made(model) if name not in known]
    if untold:
        known |= _types(runner(fetching(model, untold), model.weights, optimise=False, lean=True))
    return known


def feeds_as(inputs: Sequence[ValueInfoProto], feeds: Feeds, reader: str) -> dict[str, np.ndarray]:
    """Those of `feeds` that are read, floats in the type that is wanted. Raises UsageError if one is missing."""
    if missing := [value.name for value in inputs if value.name not in feeds]:
        raise UsageError(
            f"{reader}: no array for input {missing[0]!r}; got {sorted(feeds)}", hint="give one for every input"
        )
    return {value.name: _as_wanted(feeds[value.name], value.type.tensor_type.elem_type) for value in inputs}


def sweep(
    model: Model, samples: Sequence[Feeds], names: Iterable[str], dtypes: Mapping[str, int] | None = None,
    sizes: Mapping[str, int] | None = None,
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:  # fmt: skip
    """Yield (index of the sample, values by name) until every tensor named has come once for every sample.

    Names may be those of node outputs, inputs and initialisers; tensors that are not numbers are passed over. Nothing
    is optimised away. `dtypes` and `sizes` (elements) save the runs that find them out. Raises UsageError if a sample lacks an input, RunFailed if ONNX Runtime does not run the model.
    """
    dtypes = tensor_types(model) if dtypes is None else dtypes
    samples = [feeds_as(model.inputs, feeds, str(model.path)) for feeds in samples]
    names = [name for name in dict.fromkeys(names) if dtypes.get(name) in NUMERIC]
    made = set(_made(model))
    given = [name for name in names if name not in made]
    for index, feeds in enumerate(samples):
        yield index, {name: value for name in given if (value := _given(model, feeds, name)) is not None}
    wanted = [name for name in names if name in made]
    if not wanted or not samples:
        return
    if sizes is None:
        sizes = _sizes(model, max(samples, key=lambda feeds: sum(array.size for array in feeds.values())), wanted)
    for chunk in chunks(wanted, sizes):
        session = runner(fetching(model, chunk), model.weights, optimise=False, lean=True)
        for index, feeds in enumerate(samples):
            yield index, dict(zip(chunk, session.run(feeds), strict=True))


def _types(session: Runner) -> dict[str, int]:
    """Output name -> data type, for outputs that are tensors."""
    return {name: _data_type(text) for name, text in session.output_types.items() if text.startswith("tensor(")}


def _data_type(text: str) -> int:
    return int(TensorProto.DataType.Value(text.removeprefix("tensor(").removesuffix(")").upper()))


def _made(model: Model) -> list[str]:
    """Node outputs that are tensors, as far as ONNX can tell (a sequence is not one)."""
    names = [name for node in model.nodes for name in node.proto.output if name]
    if all(name in model.dtypes for name in names):
        return names
    others = _non_tensors(model.proto)
    return [name for name in names if name not in others]


def _non_tensors(proto: onnx.ModelProto) -> set[str]:
    try:
        inferred = shape_inference.infer_shapes(proto).graph
    except Exception:  # noqa: BLE001  inference raises bare exceptions; the run then tells
        return set()
    return {
        v.name
        for v in (*inferred.value_info, *inferred.output)
        if v.type.WhichOneof("value") not in (None, "tensor_type")
    }


def _as_wanted(array: np.ndarray, dtype: int) -> np.ndarray:
    wanted = helper.tensor_dtype_to_np_dtype(dtype)
    both_float = dtype in FLOATS and np.issubdtype(array.dtype, np.floating)
    return array.astype(wanted) if both_float and array.dtype != wanted else array


def _given(model: Model, feeds: Feeds, name: str) -> np.ndarray | None:
    return feeds[name] if name in feeds else model.constant(name)


def fetching(model: Model, names: Sequence[str]) -> onnx.ModelProto:
    """The model with these tensors as its only outputs, in their order."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    del proto.graph.output[:]
    for name in names:
        proto.graph.output.append(ValueInfoProto(name=name))
    return proto


def _sizes(model: Model, feeds: Feeds, names: Sequence[str]) -> dict[str, int]:
    """Elements per tensor, by a `Shape` node on each (`Size` is not for all types): no activation leaves the run."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    del proto.graph.output[:]
    shapes = [f"{name}:shape" for name in names]
    proto.graph.node.extend(helper.make_node("Shape", [n], [shape]) for n, shape in zip(names, shapes, strict=True))
    proto.graph.output.extend(ValueInfoProto(name=shape) for shape in shapes)
    values = runner(proto, model.weights, optimise=False, lean=True).run(feeds)
    return {name: math.prod(map(int, value)) for name, value in zip(names, values, strict=True)}


def chunks(names: Iterable[str], sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """Part the tensors so that those of one part hold at most CHUNK_ELEMENTS together (or are one alone)."""
    chunk: list[str] = []
    total = 0
    for name in names:
        if chunk and total + sizes[name] > CHUNK_ELEMENTS:
            yield chunk
            chunk, total = [], 0
        chunk.append(name)
        total += sizes[name]
    if chunk:
        yield chunk
