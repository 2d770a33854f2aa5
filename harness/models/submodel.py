"""Sub-models: some of a model's nodes as a model of their own, the tensors at the cut made inputs, constants or outputs."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
from onnx import TensorProto, TypeProto, ValueInfoProto, helper, numpy_helper, shape_inference

from harness.errors import ProbeError, UsageError
from harness.models.model import STANDARD_DOMAINS, Model, Node, opset_of, reads, subgraphs, walk
from harness.models.precision import draws
from harness.models.runtime import Feeds, RunFailed, runner

Weights = Mapping[str, np.ndarray]

INLINE_LIMIT = 1_500_000_000  # bytes of weights that still go into the .onnx: a protobuf message ends at 2 GiB
VALUE_ELEMENTS = 1024  # shape tensors are far smaller than this; masks and token ids that were made from shapes are not
CHUNK_ELEMENTS = 2**25  # of activations fetched at once
ALIGNMENT = 4096  # of each tensor in an external data file, so that it can be memory-mapped

# Inputs that say a shape, not data, by op: a builder wants them known when it builds, so at a cut they become constants.
SHAPE_OPERANDS: dict[str, tuple[int, ...]] = {
    "AffineGrid": (1,), "CenterCropPad": (1,), "Col2Im": (1, 2), "ConstantOfShape": (0,), "CumSum": (1,), "DFT": (1, 2),
    "Expand": (1,), "NonMaxSuppression": (2, 3, 4), "OneHot": (1,), "Pad": (1, 2, 3), "Range": (0, 1, 2), "Reshape": (1,),
    "Resize": (1, 2, 3), "STFT": (1, 3), "Slice": (1, 2, 3, 4), "Split": (1,), "Squeeze": (1,), "Tile": (1,), "TopK": (1,),
    "Trilu": (1,), "Unsqueeze": (1,), "Upsample": (1,),
    **{f"Reduce{kind}": (1,) for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")},
}  # fmt: skip
SHAPE_SOURCES = ("Shape", "Size")  # what they give does not depend on the values that they read
RUNTIME_DOMAINS = ("ai.onnx.ml", "com.microsoft")  # ONNX Runtime has kernels for these too


@dataclass(frozen=True)
class TensorFact:
    """What one run told of a tensor: `dtype` (TensorProto.DataType, 0 if it is no tensor) and its concrete `shape`.

    `value` is there if the tensor says a shape rather than data: cut off from its producer, it becomes a constant.
    `declared` is the type as the model states it, with symbolic dimensions; None where the model does not.
    """

    dtype: int
    shape: tuple[int, ...] | None
    value: np.ndarray | None = None
    declared: TypeProto | None = None


def observe(model: Model, feeds: Feeds) -> dict[str, TensorFact]:
    """Type, shape and, for shape tensors, value of every tensor of the main graph when the model runs on `feeds`.

    No activation is held longer than the model itself needs it. Ops that ONNX Runtime does not have are taken as
    `Identity` of their first input; where that does not run either, ONNX's shape inference answers, and tensors that it
    cannot tell are left out. Raises UsageError if an input has no value in `feeds`.
    """
    missing = [value.name for value in model.inputs if value.name not in feeds]
    if missing:
        raise UsageError(f"{model.path}: no value for the inputs {', '.join(missing)}", hint="give one for every input")
    declared = _types(model.proto)
    facts = _run(model, model.proto, feeds, declared)
    if facts is None and (stand_in := _without_foreign_ops(model.proto)) is not None:
        facts = _run(model, stand_in, feeds, declared)
    if facts is None:
        facts = _infer(model, feeds)
    facts |= {name: _fact_of_feed(declared.get(name), feed) for name, feed in feeds.items()}
    return {name: replace(fact, declared=declared.get(name)) for name, fact in facts.items()}


def extract(model: Model, keep: Collection[int], facts: Mapping[str, TensorFact], *,
            outputs: Collection[str] = (), freeze: bool = True) -> onnx.ModelProto:  # fmt: skip
    """The sub-model of the nodes with the indices `keep`, all others commented out; its weights stay in `model.weights`.

    A tensor whose producer is not kept becomes an input, or a constant if it says a shape. Outputs are the model's own,
    the tensors that only nodes left out had read, and those named in `outputs`. With `freeze`, inputs and outputs have
    their observed shapes; without, the dimensions that the model declares.
    Raises UsageError if `keep` is empty, ProbeError if nothing is known of a tensor that would have to be an input.
    """
    wanted = set(keep)
    nodes = [node for node in model.nodes if node.index in wanted]
    if not nodes:
        raise UsageError(f"{model.path}: a sub-model needs at least one node, got none")
    read = dict.fromkeys(name for node in nodes for name in reads(node.proto))
    initialisers = [t for t in model.graph.initializer if t.name in read]
    known = {t.name for t in initialisers} | _made(nodes)
    cut = [name for name in read if name not in known]
    folded = {name: value for name in cut if (value := _constant_value(model, name, facts)) is not None}
    graph = helper.make_graph(
        [node.proto for node in nodes], model.graph.name or "sub-model",
        [_value_info(name, facts, freeze) for name in _fed_first(model, cut) if name not in folded],
        [_value_info(name, facts, freeze, or_float=True) for name in _outputs(model, nodes, read, outputs)],
        [*initialisers, *(numpy_helper.from_array(np.asarray(value), name) for name, value in folded.items())],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=model.proto.opset_import, ir_version=model.proto.ir_version)


def save(proto: onnx.ModelProto, weights: Weights, path: Path) -> Path:
    """Write an .onnx file whole or not at all, its weights in it, or from 1.5 GB on in `<path>.data` beside it.

    The arrays go to the file straight from `weights`; nothing copies them on the way.
    """
    skeleton = onnx.ModelProto()
    skeleton.CopyFrom(proto)  # holds no large weights
    large = [t for t in proto.graph.initializer if t.data_location == TensorProto.EXTERNAL]
    arrays = [_as_bytes(weights[t.name]) for t in large]
    for index in reversed(range(len(skeleton.graph.initializer))):
        if skeleton.graph.initializer[index].data_location == TensorProto.EXTERNAL:
            del skeleton.graph.initializer[index]
    if sum(array.nbytes for array in arrays) < INLINE_LIMIT:
        _write_whole(path, lambda stream: _write_inline(stream, skeleton, large, arrays))
        return path
    data = path.with_name(path.name + ".data")
    skeleton.graph.initializer.extend(_located(large, arrays, data.name))
    _write_whole(data, lambda stream: _write_aligned(stream, arrays))
    _write_whole(path, lambda stream: stream.write(skeleton.SerializeToString()))
    return path


def input_shapes(proto: onnx.ModelProto, facts: Mapping[str, TensorFact]) -> dict[str, tuple[int, ...]]:
    """The observed dimensions of a sub-model's inputs: what a builder needs for those that stayed dynamic."""
    known = {value.name: facts[value.name].shape for value in proto.graph.input if value.name in facts}
    return {name: shape for name, shape in known.items() if shape is not None}


def shape_tensors(model: Model) -> set[str]:
    """Tensors that say a shape: computed from shapes and constants alone, or read as a shape by some node further on."""
    return _made_from_shapes(model) | _read_as_shapes(model)


# The cut


def _made(nodes: Iterable[Node]) -> set[str]:
    return {name for node in nodes for name in node.proto.output if name}


def _constant_value(model: Model, name: str, facts: Mapping[str, TensorFact]) -> np.ndarray | None:
    return facts[name].value if name in facts else None


def _fed_first(model: Model, cut: Sequence[str]) -> list[str]:
    """The model's own inputs in their order, then the others."""
    fed = [value.name for value in model.inputs if value.name in cut]
    return fed + [name for name in cut if name not in fed]


def _outputs(model: Model, nodes: Sequence[Node], read: Collection[str], extra: Collection[str]) -> list[str]:
    read_in_model = {name for node in model.nodes for name in reads(node.proto)}
    made = [name for node in nodes for name in node.proto.output if name]
    own = [name for name in model.outputs if name in made]
    loose = [name for name in made if name in extra or (name in read_in_model and name not in read)]
    return list(dict.fromkeys(own + loose)) or made[-1:]


def _value_info(name: str, facts: Mapping[str, TensorFact], freeze: bool, *, or_float: bool = False) -> ValueInfoProto:
    fact = facts.get(name)
    if fact is not None and fact.dtype and fact.shape is not None and (freeze or not _has_shape(fact.declared)):
        return helper.make_tensor_value_info(name, fact.dtype, fact.shape)
    if fact is not None and fact.declared is not None:
        return helper.make_value_info(name, fact.declared)
    if or_float:  # of an op that nobody knows: parsers want some type for an output
        return helper.make_tensor_value_info(name, fact.dtype if fact and fact.dtype else TensorProto.FLOAT, None)
    raise ProbeError(f"tensor {name!r}: neither a run nor shape inference tells its type and shape, so it cannot become an input",
                     hint="add its type to the model's value_info, or keep the node that makes it")  # fmt: skip


def _has_shape(declared: TypeProto | None) -> bool:
    return declared is not None and (not declared.HasField("tensor_type") or declared.tensor_type.HasField("shape"))


# What says a shape


def _made_from_shapes(model: Model) -> set[str]:
    known = model.initialisers
    made: set[str] = set()
    for node in model.nodes:
        free = node.op_type in SHAPE_SOURCES or all(name in known or name in made for name in reads(node.proto))
        if free and not draws(node.proto):
            made.update(name for name in node.proto.output if name)
    return made


def _read_as_shapes(model: Model) -> set[str]:
    found = {
        node.input[index]
        for node in walk(model.graph) if node.domain in STANDARD_DOMAINS
        for index in SHAPE_OPERANDS.get(node.op_type, ()) if index < len(node.input)
    } - {""}  # fmt: skip
    for node in reversed(model.nodes):
        if found.isdisjoint(node.proto.output) or node.op_type in SHAPE_SOURCES or subgraphs(node.proto):
            continue
        found.update(name for name in node.proto.input if name)
    return found


# What a run tells


def _types(proto: onnx.ModelProto) -> dict[str, TypeProto]:
    """Tensor name -> type, as far as ONNX's shape inference tells."""
    try:
        graph = shape_inference.infer_shapes(proto, data_prop=True).graph
    except Exception:  # noqa: BLE001  inference raises bare exceptions; what the file states is then all there is
        graph = proto.graph
    return {
        value.name: value.type for value in (*graph.value_info, *graph.output, *graph.input) if value.HasField("type")
    }


def _fact_of_feed(declared: TypeProto | None, feed: np.ndarray) -> TensorFact:
    dtype = declared.tensor_type.elem_type if declared else helper.np_dtype_to_tensor_dtype(feed.dtype)
    return TensorFact(dtype, tuple(feed.shape))


def _run(
    model: Model, proto: onnx.ModelProto, feeds: Feeds, declared: Mapping[str, TypeProto]
) -> dict[str, TensorFact] | None:
    """Facts of every node output, or None if ONNX Runtime cannot run `proto`."""
    dtypes = {
        name: declared[name].tensor_type.elem_type if name in declared else None for name in _node_outputs(proto.graph)
    }
    tensors = [name for name, dtype in dtypes.items() if dtype != 0]
    try:
        shapes = _shapes(proto, model.weights, feeds, tensors)
        says_shape = shape_tensors(model)
        small = [name for name in tensors if name in says_shape and _elements(shapes[name]) <= VALUE_ELEMENTS]
        values = _fetch(proto, model.weights, feeds, small)
        untold = [name for name in tensors if dtypes[name] is None]
        for chunk in _chunks(untold, shapes):
            dtypes |= {
                name: helper.np_dtype_to_tensor_dtype(value.dtype)
                for name, value in _fetch(proto, model.weights, feeds, chunk).items()
            }
    except RunFailed:
        return None
    return {name: TensorFact(dtype or 0, shapes.get(name), values.get(name)) for name, dtype in dtypes.items()}


def _node_outputs(graph: onnx.GraphProto) -> list[str]:
    return [name for node in graph.node for name in node.output if name]


def _elements(shape: Sequence[int]) -> int:
    return int(np.prod(shape, dtype=np.int64))


def _chunks(names: Iterable[str], shapes: Mapping[str, tuple[int, ...]]) -> Iterator[list[str]]:
    """Part the tensors so that those of one part hold few elements together."""
    chunk: list[str] = []
    total = 0
    for name in names:
        size = _elements(shapes[name])
        if chunk and total + size > CHUNK_ELEMENTS:
            yield chunk
            chunk, total = [], 0
        chunk.append(name)
        total += size
    if chunk:
        yield chunk


def _shapes(proto: onnx.ModelProto, weights: Weights, feeds: Feeds, names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Concrete shapes of tensors, by a `Shape` node on each: only shapes leave the run, activations are freed as ever."""
    probe = onnx.ModelProto()
    probe.CopyFrom(proto)
    probes = [f"probe:shape:{index}" for index in range(len(names))]
    probe.graph.node.extend(helper.make_node("Shape", [name], [out]) for name, out in zip(names, probes, strict=True))
    found = _fetch(probe, weights, feeds, probes)
    return {name: tuple(int(d) for d in found[out]) for name, out in zip(names, probes, strict=True)}


def _fetch(proto: onnx.ModelProto, weights: Weights, feeds: Feeds, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Run the model for these tensors alone."""
    if not names:
        return {}
    probe = onnx.ModelProto()
    probe.CopyFrom(proto)
    del probe.graph.output[:]
    probe.graph.output.extend(ValueInfoProto(name=name) for name in names)
    for node in probe.graph.node:
        node.name = ""  # ONNX Runtime refuses models with repeated ones
    values = runner(probe, weights, optimise=False, lean=True).run(feeds, names)
    return dict(zip(names, values, strict=True))


def _without_foreign_ops(proto: onnx.ModelProto) -> onnx.ModelProto | None:
    """The model with `Identity` for ops that ONNX Runtime does not have; None if that changes nothing or cannot be."""
    foreign = [node for node in proto.graph.node if not _runs(proto, node)]
    if not foreign or any(not (node.input and node.input[0]) for node in foreign):
        return None
    stand_in = onnx.ModelProto()
    stand_in.CopyFrom(proto)
    del stand_in.graph.node[:]
    for node in proto.graph.node:
        known = _runs(proto, node)
        stand_in.graph.node.extend(
            [node] if known else [helper.make_node("Identity", node.input[:1], [o]) for o in node.output if o]
        )
    return stand_in


def _runs(proto: onnx.ModelProto, node: onnx.NodeProto) -> bool:
    if node.domain in STANDARD_DOMAINS:
        return onnx.defs.has(node.op_type, opset_of(proto))
    return node.domain in RUNTIME_DOMAINS


def _infer(model: Model, feeds: Feeds) -> dict[str, TensorFact]:
    """What ONNX's shape inference tells of the node outputs, the model's inputs having the shapes of `feeds`."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    for value in proto.graph.input:
        if value.name in feeds:
            value.CopyFrom(
                helper.make_tensor_value_info(value.name, value.type.tensor_type.elem_type, feeds[value.name].shape)
            )
    types = {name: kind.tensor_type for name, kind in _types(proto).items()}
    return {
        name: TensorFact(types[name].elem_type, _concrete(types[name]))
        for name in _node_outputs(proto.graph)
        if name in types
    }


def _concrete(kind: TypeProto.Tensor) -> tuple[int, ...] | None:
    known = kind.HasField("shape") and all(d.HasField("dim_value") for d in kind.shape.dim)
    return tuple(d.dim_value for d in kind.shape.dim) if known else None


# Writing


def _as_bytes(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)  # a view: weights are contiguous


def _write_whole(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write to a neighbour first, then rename it: nobody sees half a file."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as stream:
            write(stream)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _write_inline(
    stream: BinaryIO, skeleton: onnx.ModelProto, large: Sequence[TensorProto], arrays: Sequence[np.ndarray]
) -> None:
    """Messages written one after the other merge when they are read: so each tensor follows as `graph { initializer }`."""
    stream.write(skeleton.SerializeToString())
    for tensor, array in zip(large, arrays, strict=True):
        header = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims).SerializeToString()
        header += _field(TensorProto.RAW_DATA_FIELD_NUMBER, array.nbytes)
        initializer = _field(onnx.GraphProto.INITIALIZER_FIELD_NUMBER, len(header) + array.nbytes)
        stream.write(_field(onnx.ModelProto.GRAPH_FIELD_NUMBER, len(initializer) + len(header) + array.nbytes))
        stream.write(initializer + header)
        stream.write(array.data)


def _field(number: int, length: int) -> bytes:
    """The protobuf tag of a length-delimited field, and its length."""
    return _varint(number << 3 | 2) + _varint(length)


def _varint(value: int) -> bytes:
    low = value & 0x7F
    return bytes([low]) if value < 0x80 else bytes([low | 0x80]) + _varint(value >> 7)


def _located(large: Sequence[TensorProto], arrays: Sequence[np.ndarray], location: str) -> Iterator[TensorProto]:
    """The tensors with where their data lies in the file that `_write_aligned` writes."""
    offset = 0
    for tensor, array in zip(large, arrays, strict=True):
        placed = TensorProto(
            name=tensor.name, data_type=tensor.data_type, dims=tensor.dims, data_location=TensorProto.EXTERNAL
        )
        for key, value in (("location", location), ("offset", offset), ("length", array.nbytes)):
            placed.external_data.add(key=key, value=str(value))
        yield placed
        offset += _padded(array.nbytes)


def _write_aligned(stream: BinaryIO, arrays: Iterable[np.ndarray]) -> None:
    for array in arrays:
        stream.write(array.data)
        stream.write(bytes(_padded(array.nbytes) - array.nbytes))


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
