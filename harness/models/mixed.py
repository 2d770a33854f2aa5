"""Write the mixed-precision model that a search ended with: lowered nodes in FP16/BF16, casts around the kept ones.

The result is strongly typed, every tensor has the type that it is stored in: TensorRT 10, 11 and RTX build it as it
stands, and ONNX Runtime runs it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from harness.errors import UsageError
from harness.models.model import Model, body_dtypes, captured, subgraphs
from harness.models.precision import NOWHERE, Lowering, Positions, Precision

TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype")


def mixed_model(
    model: Model, lowered: Collection[int], precision: Precision
) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """The model with the nodes `lowered` stored in `precision`, and its large weights by initialiser name.

    Raises UsageError for BF16 below opset 13, where ONNX has no such type in its operators.
    """
    if precision is Precision.BF16 and model.opset < 13:
        raise UsageError(
            f"{model.path}: opset {model.opset} has no bfloat16 operators, 13 or newer has",
            hint="convert the model to opset 17",
        )
    low, lowering = set(lowered), Lowering(model.proto, precision)
    positions = {id(n.proto): lowering.positions(n.proto, model.dtypes) for n in model.nodes if n.index in low}
    scope = _Scope(lowering, model.dtypes, _names(model.graph), weights=model.weights)
    scope.forms.update({(value.name, False): value.name for value in model.graph.input})
    scope.take_constants(model.graph)
    for node in model.nodes:
        scope.add(node.proto, positions.get(id(node.proto), NOWHERE))
    scope.end(model.outputs, low=False)
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    for part in (proto.graph.node, proto.graph.initializer, proto.graph.value_info):
        del part[:]
    proto.graph.node.extend(scope.nodes)
    used = {
        name for node in scope.nodes for name in (*node.input, *(c for body in subgraphs(node) for c in captured(body)))
    }
    used |= set(model.outputs)
    proto.graph.initializer.extend(t for name, t in scope.constants.items() if name in used)
    kept_inputs = [v for v in proto.graph.input if v.name in used or v.name not in model.initialisers]
    del proto.graph.input[:]
    proto.graph.input.extend(kept_inputs)
    return proto, {name: array for name, array in scope.weights.items() if name in used}


def _names(graph: onnx.GraphProto) -> set[str]:
    """Every tensor's name, those inside subgraphs too."""
    names = {value.name for value in (*graph.input, *graph.output)} | {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        names.update(*(_names(body) for body in subgraphs(node)), node.input, node.output)
    return names


@dataclass
class _Scope:
    """One graph being rewritten. A float tensor has a stored form and, made on demand, its cast to the other one."""

    lowering: Lowering
    dtypes: Mapping[str, int]
    taken: set[str]  # names of the model and of what was added, in all its graphs
    parent: _Scope | None = None
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    constants: dict[str, TensorProto] = field(default_factory=dict)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    forms: dict[tuple[str, bool], str] = field(default_factory=dict)  # (tensor, low?) -> name of that form

    def __post_init__(self) -> None:
        self.weights = dict(self.weights)

    def take_constants(self, graph: onnx.GraphProto) -> None:
        for tensor in graph.initializer:
            self.constants[tensor.name] = tensor
            self.forms[tensor.name, False] = tensor.name

    def add(self, node: onnx.NodeProto, where: Positions) -> None:
        """Append `node`, storing the positions `where` lower; empty positions keep it as it is."""
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = [self._read(name, low=i in where.inputs) if name else "" for i, name in enumerate(node.input)]
        for body in subgraphs(copy):
            self._rewrite_body(body, low=bool(where))
        if where.outputs:
            _lower_attributes(copy, self.lowering.precision)
        for i, name in enumerate(node.output):
            self.forms[name, i in where.outputs] = name
        self.nodes.append(copy)

    def end(self, outputs: Collection[str], *, low: bool) -> dict[str, str]:
        """Make every output available in the wanted form under its own name (main graph) or say its name (a body)."""
        names = {}
        for name in outputs:
            if self._is_float(name):
                names[name] = self._read(name, low=low)
            else:
                names[name] = name
        if self.parent is None:
            for name, wanted in names.items():
                if wanted != name:
                    self._swap_names(name, wanted)
        return names

    def _swap_names(self, name: str, cast: str) -> None:
        """An output keeps its name in FP32: what was stored under it moves aside."""
        stored = self._fresh(f"{name}:stored")
        for node in self.nodes:
            rename = {name: stored, cast: name}
            node.output[:] = [rename.get(n, n) for n in node.output]
            node.input[:] = [rename.get(n, n) for n in node.input]
            for body in subgraphs(node):
                _rename_captured(body, rename)

    def _rewrite_body(self, graph: onnx.GraphProto, *, low: bool) -> None:
        dtypes = {**self.dtypes, **body_dtypes(graph, self.dtypes, self.lowering.opset)}
        inner = _Scope(self.lowering, dtypes, self.taken, parent=self)
        inner.take_constants(graph)
        lower_type = self.lowering.precision.onnx_type
        for value in graph.input:
            is_low = low and value.type.tensor_type.elem_type == TensorProto.FLOAT
            inner.forms[value.name, is_low] = value.name
            if is_low:
                value.type.tensor_type.elem_type = lower_type
        for node in graph.node:
            inner.add(node, self.lowering.positions(node, dtypes) if low else NOWHERE)
        floats = [v.name for v in graph.output if dtypes.get(v.name) == TensorProto.FLOAT]
        names = inner.end(floats, low=low)
        for value in graph.output:
            if value.name in names:
                value.type.tensor_type.elem_type = lower_type if low else TensorProto.FLOAT
                value.name = names[value.name]
        nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in inner.nodes]
        del graph.node[:], graph.value_info[:]
        graph.node.extend(nodes)
        constants = [TensorProto.FromString(t.SerializeToString()) for t in inner.constants.values()]
        del graph.initializer[:]
        graph.initializer.extend(constants)

    def _fresh(self, name: str) -> str:
        """`name`, or something like it that nobody bears: a model may have been through here before."""
        while name in self.taken:
            name += "'"
        self.taken.add(name)
        return name

    def _is_float(self, name: str) -> bool:
        return self.dtypes.get(name) == TensorProto.FLOAT

    def _read(self, name: str, *, low: bool) -> str:
        """The name under which `name` can be read in the wanted form; casts it, or converts the weight, if need be."""
        if not self._is_float(name):
            return name
        owner = self._find(lambda scope: scope.forms.get((name, low)))
        if owner is not None:
            return owner
        holder = self._holder(name)
        if low and holder is not None:
            return holder._lower_constant(name)
        stored = self._find(lambda scope: scope.forms.get((name, not low))) or name
        suffix = self.lowering.precision.value if low else "fp32"
        cast = self._fresh(f"{name}:{suffix}")
        to = self.lowering.precision.onnx_type if low else TensorProto.FLOAT
        self.nodes.append(helper.make_node("Cast", [stored], [cast], name=f"probe_cast/{cast}", to=to))
        self.forms[name, low] = cast
        return cast

    def _find(self, look: Callable[[_Scope], str | None]) -> str | None:
        scope: _Scope | None = self
        while scope is not None:
            if (found := look(scope)) is not None:
                return found
            scope = scope.parent
        return None

    def _holder(self, name: str) -> _Scope | None:
        scope: _Scope | None = self
        while scope is not None and name not in scope.constants:
            if (name, False) in scope.forms or (name, True) in scope.forms:
                return None  # made by a node in this scope
            scope = scope.parent
        return scope

    def _lower_constant(self, name: str) -> str:
        precision = self.lowering.precision
        lowered = self._fresh(f"{name}:{precision.value}")
        if name in self.weights:
            array = precision.store(self.weights[name])
            self.weights[lowered] = array
            tensor = TensorProto(
                name=lowered, data_type=precision.onnx_type, dims=array.shape, data_location=TensorProto.EXTERNAL
            )
        else:
            tensor = numpy_helper.from_array(precision.store(numpy_helper.to_array(self.constants[name])), lowered)
        self.constants[lowered] = tensor
        self.forms[name, True] = lowered
        return lowered


def _lower_attributes(node: onnx.NodeProto, precision: Precision) -> None:
    """Where an attribute decides the output's type: Cast(to), ConstantOfShape(value), Constant, EyeLike(dtype)."""
    for attribute in node.attribute:
        if attribute.name in TYPE_ATTRIBUTES and attribute.i == TensorProto.FLOAT:
            attribute.i = precision.onnx_type
        elif attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == TensorProto.FLOAT:
            attribute.t.CopyFrom(
                numpy_helper.from_array(precision.store(numpy_helper.to_array(attribute.t)), attribute.t.name)
            )
        elif node.op_type == "Constant" and attribute.name in ("value_float", "value_floats"):
            value = np.asarray(helper.get_attribute_value(attribute), dtype=np.float32)
            node.attribute.remove(attribute)
            node.attribute.append(helper.make_attribute("value", numpy_helper.from_array(precision.store(value))))
            return
    names = {a.name for a in node.attribute}
    if node.op_type == "ConstantOfShape" and "value" not in names:
        node.attribute.append(
            helper.make_attribute("value", numpy_helper.from_array(precision.store(np.zeros(1, np.float32))))
        )


def _rename_captured(graph: onnx.GraphProto, rename: Mapping[str, str]) -> None:
    for node in graph.node:
        node.input[:] = [rename.get(n, n) for n in node.input]
        for body in subgraphs(node):
            _rename_captured(body, rename)
    for value in graph.output:
        value.name = rename.get(value.name, value.name)
