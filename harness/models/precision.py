"""Which tensors of a node can be stored in a lower precision: read from the ONNX operator schemas, per opset."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, defs, helper

from harness.models.model import captured, opset_of, subgraphs


class Precision(enum.StrEnum):
    """A storage type that FP32 tensors may be lowered to. Accumulation inside an operator stays FP32."""

    FP16 = "fp16"
    BF16 = "bf16"

    @property
    def onnx_type(self) -> int:
        return {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}[self.value]

    @property
    def type_string(self) -> str:
        return {"fp16": "tensor(float16)", "bf16": "tensor(bfloat16)"}[self.value]

    def round(self, array: np.ndarray) -> np.ndarray:
        """float32 -> nearest value of this precision (ties to even, overflow to infinity) -> float32."""
        return self.store(array).astype(np.float32)

    def store(self, array: np.ndarray) -> np.ndarray:
        """float32 -> the nearest values in this precision's own dtype."""
        with np.errstate(over="ignore", invalid="ignore"):
            return array.astype(helper.tensor_dtype_to_np_dtype(self.onnx_type))


# Operators whose output values are a selection of their input values, or monotone and odd in them: rounding the output
# is the same as rounding the inputs, so one rounding is enough (and none, if every input is rounded already).
EXACT_OPS = frozenset({
    "Abs", "Concat", "DepthToSpace", "Dropout", "Expand", "Flatten", "Gather", "GatherElements", "GatherND",
    "GlobalMaxPool", "Identity", "Max", "MaxPool", "Min", "Neg", "ReduceMax", "ReduceMin", "Relu", "Reshape", "Slice",
    "SpaceToDepth", "Split", "Squeeze", "Tile", "TopK", "Transpose", "Unsqueeze",
})  # fmt: skip


@dataclass(frozen=True)
class Positions:
    """Indices of the inputs and outputs of a node that can be stored lower, and outer tensors that its bodies read."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    captures: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.inputs or self.outputs or self.captures)


class Lowering:
    """Answers, for one model and one precision, which positions of a node may change their type."""

    def __init__(self, proto: onnx.ModelProto, precision: Precision) -> None:
        self.precision = precision
        self._opsets = {entry.domain: entry.version for entry in proto.opset_import}
        self.opset = self._opsets[""] = opset_of(proto)
        # bfloat16 entered most operators with opset 13; the emulation and TensorRT take it in older models too.
        self._wanted = {precision.type_string} | ({"tensor(float16)"} if self.opset < 13 else set())

    def positions(self, node: onnx.NodeProto, dtypes: Mapping[str, int]) -> Positions:
        """Float positions of `node` that its schema allows in the lower precision; empty for unknown operators."""
        inputs = [i for i, name in enumerate(node.input) if dtypes.get(name) == TensorProto.FLOAT]
        outputs = [i for i, name in enumerate(node.output) if dtypes.get(name) == TensorProto.FLOAT]
        if bodies := subgraphs(node):
            names = sorted({name for body in bodies for name in captured(body)} - set(node.input))
            return Positions(
                tuple(inputs), tuple(outputs), tuple(n for n in names if dtypes.get(n) == TensorProto.FLOAT)
            )
        schema = self._schema(node)
        if schema is None or node.op_type in ("Shape", "Size"):
            return Positions((), ())
        return Positions(
            tuple(i for i in inputs if self._allows(schema, schema.inputs, i)),
            tuple(i for i in outputs if self._allows(schema, schema.outputs, i)),
        )

    def _schema(self, node: onnx.NodeProto) -> defs.OpSchema | None:
        domain = "" if node.domain == "ai.onnx" else node.domain
        try:
            return defs.get_schema(node.op_type, self._opsets.get(domain, 1), domain)
        except defs.SchemaError:
            return None

    def _allows(self, schema: defs.OpSchema, formals: Sequence[defs.OpSchema.FormalParameter], index: int) -> bool:
        if not formals:
            return False
        formal = formals[min(index, len(formals) - 1)]  # the last one may be variadic
        return bool(self._wanted & set(formal.types))
