"""Models brought to a newer opset: two to one, so that parts of both can stand in one graph, or to one with BF16."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cache

import numpy as np
import onnx
from onnx import TensorProto, defs, helper, version_converter

from harness.errors import UsageError
from harness.models.activations import tensor_types
from harness.models.model import STANDARD_DOMAINS, Model, from_proto, walk
from harness.models.precision import Precision, runtime_opset
from harness.models.runtime import RunFailed

OLDEST = 11  # the first whose If takes branches that make tensors of other shapes: switches are made of it
BF16_OPSET = 17  # from 13 on most operators have it, Where and LayerNormalization only from 16 and 17 on
LATE_BF16_OPSET = 22  # Conv, pooling, LSTM, Softplus and some more


def aligned(first: Model, second: Model) -> tuple[Model, Model]:
    """Both models at the newer opset of the two. Raises UsageError if the older one cannot be converted."""
    target = max(first.opset, second.opset, OLDEST)
    return at_opset(first, target), at_opset(second, target)


def with_type_for(model: Model, precision: Precision = Precision.FP16) -> Model:
    """The model ready to be searched: at an opset that has switches and the precision's type, all tensors' types known.

    Raises UsageError if it cannot be converted.
    """
    ready = _at_least(model, BF16_OPSET if precision is Precision.BF16 else OLDEST)
    if precision is Precision.BF16 and any(_gets_bf16_late(node) for node in walk(ready.graph)):
        with suppress(UsageError):  # else those operators stay in FP32
            ready = _at_least(ready, LATE_BF16_OPSET)
    with suppress(RunFailed):  # who runs the model will say why it does not run
        return replace(ready, dtypes=tensor_types(ready))
    return ready


def _at_least(model: Model, target: int) -> Model:
    return model if model.opset >= target else at_opset(model, target)


def _gets_bf16_late(node: onnx.NodeProto) -> bool:
    if node.domain not in STANDARD_DOMAINS or min(defs.onnx_opset_version(), runtime_opset()) < LATE_BF16_OPSET:
        return False
    before, after = (_has_bf16(node.op_type, opset) for opset in (LATE_BF16_OPSET - 1, LATE_BF16_OPSET))
    return after and not before


@cache
def _has_bf16(op_type: str, opset: int) -> bool:
    try:
        return any(Precision.BF16.type_string in formal.types for formal in defs.get_schema(op_type, opset).inputs)
    except defs.SchemaError:
        return False


def at_opset(model: Model, target: int) -> Model:
    """The model at a newer opset: as it is where its operators mean the same there, else converted."""
    if model.opset == target:
        return model
    if any(_changes(node, model.opset, target) for node in walk(model.graph)):
        return _converted(model, target)
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    for entry in proto.opset_import:
        if entry.domain in STANDARD_DOMAINS:
            entry.version = target
    return replace(model, proto=proto)


def _changes(node: onnx.NodeProto, old: int, new: int) -> bool:
    """Whether the operator is written otherwise in the newer opset; more types allowed is no change."""
    if node.domain not in STANDARD_DOMAINS:
        return False
    try:
        before, after = defs.get_schema(node.op_type, old), defs.get_schema(node.op_type, new)
    except defs.SchemaError:
        return True
    return after.deprecated or (before.since_version != after.since_version and _signature(before) != _signature(after))


def _signature(schema: defs.OpSchema) -> tuple[list[str], list[str], dict[str, bytes]]:
    attributes = {name: a.default_value.SerializeToString() for name, a in schema.attributes.items()}
    return [p.name for p in schema.inputs], [p.name for p in schema.outputs], attributes


def _converted(model: Model, target: int) -> Model:
    """Converted by ONNX, the large weights standing aside as inputs meanwhile."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    large = _weights_to_inputs(proto.graph, model.weights)
    try:
        proto = version_converter.convert_version(proto, target)
    except Exception as error:  # the converter raises bare exceptions
        raise UsageError(f"{model.path}: opset {model.opset} cannot be converted to {target}: {str(error).splitlines()[0]}",
                         hint=f"export the model at opset {target}") from error  # fmt: skip
    converted = from_proto(proto, model.path)
    inputs = [value for value in converted.graph.input if value.name not in large]
    del converted.graph.input[:]
    converted.graph.input.extend(inputs)
    converted.graph.initializer.extend(large.values())
    return replace(converted, weights={**converted.weights, **model.weights})


def _weights_to_inputs(graph: onnx.GraphProto, weights: Mapping[str, np.ndarray]) -> dict[str, TensorProto]:
    large = {t.name: TensorProto.FromString(t.SerializeToString()) for t in graph.initializer if t.name in weights}
    small = [TensorProto.FromString(t.SerializeToString()) for t in graph.initializer if t.name not in large]
    listed = {value.name for value in graph.input}
    del graph.initializer[:]
    graph.initializer.extend(small)
    graph.input.extend(
        helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in large.values() if t.name not in listed
    )
    return large
