"""An ONNX model in memory: its graph without the weights, the weights as arrays, the type of every tensor.

The weights are kept once: as views of the file where it has external data (memory-mapped), else as the bytes that came
out of the protobuf message. Whoever runs the model hands the same arrays to ONNX Runtime, which does not copy them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, TensorProto, external_data_helper, helper, numpy_helper, shape_inference

from harness.errors import ParseError, UsageError

HELD = "probe:held"  # the external data location of a weight that is held in memory
INLINE_BYTES = 4096  # tensors up to this size stay in the graph: shape inference and TensorRT's parser read them there


STANDARD_DOMAINS = ("", "ai.onnx")
DEFAULT_OPSET = 17  # imported where a model has no ONNX operator of its own
INVALID = "python -m onnx.checker MODEL.onnx tells more; export the model again"
WHOLE = "export or copy it again: it is empty, cut off, or no ONNX file"
PACKED = tuple(
    getattr(TensorProto, name)
    for name in ("INT4", "UINT4", "INT2", "UINT2", "FLOAT4E2M1")
    if hasattr(TensorProto, name)
)


@dataclass(frozen=True)
class Node:
    """One node of the main graph. `key` is unique in the model; `scope` is the module path in its name ("" if none)."""

    index: int
    key: str
    op_type: str
    scope: str
    proto: onnx.NodeProto = field(repr=False, compare=False)


@dataclass
class Model:
    """A loaded model. `proto` holds every small tensor; large ones are in `weights`, by initialiser name."""

    path: Path
    proto: onnx.ModelProto
    weights: dict[str, np.ndarray]
    dtypes: dict[str, int]  # tensor name -> TensorProto.DataType, of the main graph
    nodes: list[Node]

    @property
    def graph(self) -> onnx.GraphProto:
        return self.proto.graph

    @property
    def opset(self) -> int:
        return opset_of(self.proto)

    @property
    def weight_bytes(self) -> int:
        return sum(w.nbytes for w in self.weights.values())

    @property
    def initialisers(self) -> set[str]:
        return {t.name for t in self.graph.initializer}

    @property
    def inputs(self) -> list[onnx.ValueInfoProto]:
        """Graph inputs that must be fed (initialisers listed as inputs, as before IR version 4, are not)."""
        known = self.initialisers
        return [value for value in self.graph.input if value.name not in known]

    @property
    def outputs(self) -> list[str]:
        return [value.name for value in self.graph.output]

    def constant(self, name: str) -> np.ndarray | None:
        """The value of an initialiser, small or large; None if `name` is not one."""
        if name in self.weights:
            return self.weights[name]
        for tensor in self.graph.initializer:
            if tensor.name == name:
                return numpy_helper.to_array(tensor)
        return None


def load(path: Path | str) -> Model:
    """Read an ONNX file (external data beside it is memory-mapped, so any size will do).

    Raises UsageError if there is no such file, ParseError if it is not an ONNX model or its data is cut off.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"{path} does not exist", hint="give the path of an .onnx file")
    try:
        proto = onnx.load(str(path), load_external_data=False)
    except (DecodeError, OSError) as error:
        raise ParseError(
            path,
            "content",
            "an ONNX model",
            f"{path.stat().st_size} bytes that do not decode ({error})",
            hint=WHOLE,
        ) from error
    if not proto.graph.node or not proto.graph.output:
        raise ParseError(path, "graph", "at least one node and one output",
                         f"{len(proto.graph.node)} nodes, {len(proto.graph.output)} outputs", hint=WHOLE)  # fmt: skip
    return from_proto(proto, path)


def from_proto(proto: onnx.ModelProto, path: Path) -> Model:
    """Take a decoded model over: constants become initialisers, large weights become arrays. `proto` is changed."""
    if proto.functions:
        from onnx import inliner

        proto = inliner.inline_local_functions(proto)
    _check_opset(proto, path)
    _own_initialisers(proto)
    _hoist_constants(proto.graph)
    _sort(proto.graph, path)
    weights = _take_weights(proto.graph, path)
    dtypes = infer_dtypes(proto)
    if _type_bodies(proto.graph, dtypes, opset_of(proto)):
        dtypes = infer_dtypes(proto)
    return Model(path, proto, weights, dtypes, _name_nodes(proto.graph))


def opset_of(proto: onnx.ModelProto, domain: str = "") -> int:
    """The opset version that the model imports for a domain (0 if it imports none)."""
    aliases = ("", "ai.onnx") if domain in ("", "ai.onnx") else (domain,)
    return next((entry.version for entry in proto.opset_import if entry.domain in aliases), 0)


def subgraphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The bodies of If, Loop and Scan."""
    graphs = [a.g for a in node.attribute if a.type == AttributeProto.GRAPH]
    return graphs + [g for a in node.attribute if a.type == AttributeProto.GRAPHS for g in a.graphs]


def captured(graph: onnx.GraphProto) -> set[str]:
    """Names that a subgraph reads from the graphs around it."""
    made = {t.name for t in graph.initializer} | {v.name for v in graph.input}
    read: set[str] = set()
    for node in graph.node:
        read.update(name for name in node.input if name and name not in made)
        for body in subgraphs(node):
            read.update(captured(body) - made)
        made.update(node.output)
    read.update(v.name for v in graph.output if v.name not in made)
    return read


def reads(node: onnx.NodeProto) -> list[str]:
    """Every tensor that a node reads: its inputs and what its subgraphs capture."""
    names = [name for name in node.input if name]
    for body in subgraphs(node):
        names.extend(sorted(captured(body) - set(names)))
    return names


def infer_dtypes(proto: onnx.ModelProto) -> dict[str, int]:
    """Tensor name -> data type for the main graph; what ONNX cannot infer (ops of other domains) is left out."""
    graph = proto.graph
    try:
        inferred = shape_inference.infer_shapes(proto).graph
    except Exception:  # noqa: BLE001  an invalid graph is told by the runtime that refuses it, with a better message
        inferred = graph
    values = [*inferred.value_info, *inferred.input, *inferred.output]
    dtypes = {v.name: v.type.tensor_type.elem_type for v in values if v.type.tensor_type.elem_type}
    return dtypes | {t.name: t.data_type for t in graph.initializer}


def body_dtypes(graph: onnx.GraphProto, outer: Mapping[str, int], opset: int) -> dict[str, int]:
    """Tensor name -> data type inside a subgraph: inferred as a model whose inputs are what it captures from `outer`."""
    made = (
        {n for node in graph.node for n in node.output}
        | {t.name for t in graph.initializer}
        | {v.name for v in graph.input}
    )
    shell = onnx.ModelProto(ir_version=8)
    shell.opset_import.append(helper.make_opsetid("", opset))
    shell.graph.CopyFrom(graph)
    for name in captured(graph):
        if name in outer and name not in made:
            shell.graph.input.append(helper.make_tensor_value_info(name, outer[name], None))
    return {name: dtype for name, dtype in infer_dtypes(shell).items() if name in made}


def _check_opset(proto: onnx.ModelProto, path: Path) -> None:
    """A model of other domains' operators alone may import no opset of ONNX; nodes of ours (casts) will need one."""
    if opset_of(proto):
        return
    if any(node.domain in STANDARD_DOMAINS for node in walk(proto.graph)):
        raise ParseError(path, "opset_import", "the version of ONNX's operators", "none", hint=WHOLE)
    proto.opset_import.append(helper.make_opsetid("", DEFAULT_OPSET))


def _own_initialisers(proto: onnx.ModelProto) -> None:
    """Initialisers that are initialisers only and dense: one listed as an input too is its default, and nobody feeds it."""
    graph = proto.graph
    graph.initializer.extend(_dense(tensor) for tensor in graph.sparse_initializer)
    del graph.sparse_initializer[:]
    known = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in known]
    if len(inputs) != len(graph.input):
        inputs = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in inputs]
        del graph.input[:]
        graph.input.extend(inputs)
    proto.ir_version = max(proto.ir_version, 4)  # before, every initialiser had to be an input


def _dense(sparse: onnx.SparseTensorProto, name: str = "") -> TensorProto:
    values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    array = np.zeros(tuple(sparse.dims), values.dtype)
    array[tuple(indices.T) if indices.ndim == 2 else np.unravel_index(indices, array.shape)] = values
    return numpy_helper.from_array(array, name or sparse.values.name)


def _sort(graph: onnx.GraphProto, path: Path) -> None:
    """Nodes in topological order, which ONNX asks for and ONNX Runtime does without.

    Raises ParseError if two nodes make one tensor, or one that is read is made nowhere.
    """
    makers: dict[str, int] = {}
    for index, node in enumerate(graph.node):
        for name in filter(None, node.output):
            if name in makers:
                raise ParseError(path, f"tensor {name!r}", "one node that makes it", "two or more", hint=INVALID)
            makers[name] = index
    given = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    needs = [reads(node) for node in graph.node]
    for node, names in zip(graph.node, needs, strict=True):
        if lost := next((name for name in names if name not in makers and name not in given), None):
            raise ParseError(path, f"node {node.name or ''.join(node.output[:1])!r}", "inputs that something makes",
                             f"{lost!r}, which is no input, no initialiser and no node's output", hint=INVALID)  # fmt: skip
    before = [{makers[name] for name in names if name in makers} for names in needs]
    if all(made < index for index, all_made in enumerate(before) for made in all_made):
        return
    try:
        order = list(TopologicalSorter(dict(enumerate(before))).static_order())
    except CycleError as error:
        names = [graph.node[index].name or graph.node[index].op_type for index in error.args[1]]
        raise ParseError(path, "graph", "no cycle", " -> ".join(reversed(names)), hint=INVALID) from None
    nodes = [onnx.NodeProto.FromString(graph.node[index].SerializeToString()) for index in order]
    del graph.node[:]
    graph.node.extend(nodes)


def _type_bodies(graph: onnx.GraphProto, dtypes: Mapping[str, int], opset: int) -> bool:
    """Give inputs of the bodies of Loop and Scan the types of what they are fed with; whether any had none."""
    found = False
    for node in graph.node:
        fed = ["", "", *node.input[2:]] if node.op_type == "Loop" else list(node.input)  # a Loop counts by itself
        for body in subgraphs(node):
            for value, name in zip(
                reversed(body.input), reversed(fed), strict=False
            ):  # a Scan of opset 8 reads one more
                if value.type.WhichOneof("value") is None and name in dtypes:
                    value.type.tensor_type.elem_type = dtypes[name]
                    found = True
            if any(subgraphs(inner) for inner in body.node):
                found |= _type_bodies(body, {**dtypes, **body_dtypes(body, dtypes, opset)}, opset)
    return found


def _hoist_constants(graph: onnx.GraphProto) -> None:
    """Turn the main graph's Constant nodes into initialisers: they are weights, not something to comment out."""
    kept = []
    for node in graph.node:
        tensor = _constant_value(node) if node.op_type == "Constant" and node.domain in ("", "ai.onnx") else None
        if tensor is None:
            kept.append(node)
        else:
            tensor.name = node.output[0]
            graph.initializer.append(tensor)
    if len(kept) != len(graph.node):
        nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in kept]
        del graph.node[:]
        graph.node.extend(nodes)


def _constant_value(node: onnx.NodeProto) -> TensorProto | None:
    attribute = node.attribute[0] if node.attribute else None
    if attribute is None or attribute.name in ("value_string", "value_strings"):
        return None
    value = helper.get_attribute_value(attribute)
    if attribute.name == "sparse_value":
        return _dense(value, node.output[0])
    if attribute.name == "value":
        return TensorProto.FromString(value.SerializeToString())
    kind = np.float32 if attribute.name.startswith("value_float") else np.int64
    return numpy_helper.from_array(np.asarray(value, dtype=kind))


def _take_weights(graph: onnx.GraphProto, path: Path) -> dict[str, np.ndarray]:
    weights: dict[str, np.ndarray] = {}
    for tensor in graph.initializer:
        external = external_data_helper.uses_external_data(tensor)
        if external and tensor.data_type in PACKED:  # two or four values a byte: they stay in the graph
            external_data_helper.load_external_data_for_tensor(tensor, str(path.parent.resolve()))
            tensor.ClearField("external_data")
            tensor.data_location = TensorProto.DEFAULT
            continue
        array = _map_external(tensor, path) if external else _take_inline(tensor)
        if array is None:
            continue
        if array.nbytes <= INLINE_BYTES:  # small, but stored outside: bring it in
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(array), tensor.name))
            continue
        weights[tensor.name] = array
        if not external:
            mark_as_held(tensor, array)
    return weights


def mark_as_held(tensor: TensorProto, array: np.ndarray) -> None:
    """Say in the graph that the data of an initialiser is not there but held as an array, under its name."""
    tensor.data_location = TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in (("location", HELD), ("offset", "0"), ("length", str(array.nbytes))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value


def _take_inline(tensor: TensorProto) -> np.ndarray | None:
    if tensor.data_type in PACKED or tensor.data_type == TensorProto.STRING or tensor.ByteSize() <= INLINE_BYTES:
        return None
    array = numpy_helper.to_array(tensor)
    for name in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
        tensor.ClearField(name)
    return array


def _map_external(tensor: TensorProto, path: Path) -> np.ndarray:
    info = external_data_helper.ExternalDataInfo(tensor)
    where = f"external data of {tensor.name!r}"
    base = path.parent.resolve()
    file = (base / info.location).resolve()
    if not file.is_relative_to(base):
        raise ParseError(path, where, "a file beside the model", info.location)
    if not file.is_file():
        raise ParseError(path, where, f"the file {info.location} beside the model", "no such file")
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    shape, offset = tuple(tensor.dims), info.offset or 0
    count = int(np.prod(shape, dtype=np.int64))
    if file.stat().st_size < offset + count * dtype.itemsize:
        raise ParseError(
            path, where, f"{offset + count * dtype.itemsize} bytes in {info.location}", f"{file.stat().st_size} bytes"
        )
    if count == 0:
        return np.zeros(shape, dtype)
    return np.memmap(file, dtype=dtype, mode="r", offset=offset, shape=shape)


def _name_nodes(graph: onnx.GraphProto) -> list[Node]:
    """Give every node a unique key: its name, else its first output; a name that stands several times gets both."""
    counts = Counter(node.name for node in walk(graph))
    nodes, taken = [], {name for name, count in counts.items() if count == 1}
    for node in walk(graph):  # ONNX Runtime refuses names that stand twice
        if counts[node.name] > 1 and node.name:
            node.name = f"{node.name}:{next((name for name in node.output if name), '')}"
    for index, node in enumerate(graph.node):
        output = next((name for name in node.output if name), f"{node.op_type}#{index}")
        key = node.name or (output if output not in taken else f"{node.op_type}:{output}")
        nodes.append(Node(index, key, node.op_type, scope_of(key), node))
    return nodes


def scope_of(name: str) -> str:
    """The module path in a node name: `/encoder/layer.0/MatMul` -> `/encoder/layer.0`; "" where there is none."""
    return name.rpartition("/")[0]


def group_by_scope(nodes: Sequence[Node]) -> dict[str, list[int]]:
    """Indices of the nodes by scope, scopes in order of their first node."""
    groups: dict[str, list[int]] = {}
    for node in nodes:
        groups.setdefault(node.scope, []).append(node.index)
    return groups


def walk(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Every node of a graph and of its subgraphs, outer first."""
    for node in graph.node:
        yield node
        for body in subgraphs(node):
            yield from walk(body)
