"""Which tensors of a node can be stored in a lower precision: read from the ONNX operator schemas, per opset."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import onnx
from onnx import TensorProto, defs, helper

from harness import optional
from harness.models.model import PACKED, captured, opset_of, subgraphs


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

    def round(self, array: np.ndarray, *, clamp: bool = False) -> np.ndarray:
        """float32 -> nearest value of this precision (ties to even) -> float32.

        What is too large becomes infinite, or, with `clamp`, the largest finite value.
        """
        made = self.store(array).astype(np.float32)
        if not clamp:
            return made
        largest = LARGEST[self]
        return np.where(np.isfinite(array), np.clip(made, -largest, largest), made)

    def exceeded(self, array: np.ndarray) -> bool:
        """Whether finite values are among these that would become infinite."""
        return bool((np.isfinite(array) & ~np.isfinite(self.round(array))).any())

    def store(self, array: np.ndarray) -> np.ndarray:
        """float32 -> the nearest values in this precision's own dtype."""
        with np.errstate(over="ignore", invalid="ignore"):
            return array.astype(helper.tensor_dtype_to_np_dtype(self.onnx_type))


LARGEST = {Precision.FP16: np.float32(65504.0), Precision.BF16: np.float32(3.3895313892515355e38)}

# Operators whose output values are a selection of their input values, or monotone and odd in them: rounding the output
# is the same as rounding the inputs, so one rounding is enough (and none, if every input is rounded already).
EXACT_OPS = frozenset({
    "Abs", "Concat", "DepthToSpace", "Dropout", "Expand", "Flatten", "Gather", "GatherElements", "GatherND",
    "GlobalMaxPool", "Identity", "Max", "MaxPool", "Min", "Neg", "ReduceMax", "ReduceMin", "Relu", "Reshape", "Slice",
    "SpaceToDepth", "Split", "Squeeze", "Tile", "TopK", "Transpose", "Unsqueeze",
})  # fmt: skip


CONTROL_FLOW = frozenset({"If", "Loop", "Scan"})
NEVER = frozenset({
    "BitCast", "Shape", "Size",  # not about values
    "BlackmanWindow", "HammingWindow", "HannWindow", "MelWeightMatrix",  # TensorRT makes them in FP32 alone
    "MeanVarianceNormalization",  # a function with a constant of FP32 inside: no FP16 can be written
})  # fmt: skip
NO_BF16 = frozenset({"GRU", "HardSwish", "LpNormalization", "LpPool", "Mish"})  # in ONNX they have it, in TensorRT not
RANDOM = ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")
UNSWITCHED = {TensorProto.UNDEFINED, *PACKED, getattr(TensorProto, "FLOAT8E8M0", 0)}  # no branch of an If makes these
MICROSOFT = "com.microsoft"  # operators that ONNX Runtime adds, and its optimiser for transformers writes


def draws(node: onnx.NodeProto) -> bool:
    """Whether the node makes random numbers, itself or in a body: its outputs differ from run to run."""
    # A Dropout that trains reads a third input; where that is false it draws nothing, and freezing it does no harm.
    random = node.op_type in RANDOM or (node.op_type == "Dropout" and len(node.input) > 2)
    return random or any(draws(inner) for body in subgraphs(node) for inner in body.node)


@dataclass(frozen=True)
class Positions:
    """Indices of the inputs and outputs of a node that can be stored lower, and outer tensors that its bodies read."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    captures: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.inputs or self.outputs or self.captures)


NOWHERE = Positions((), ())


@cache
def _runtime_schemas() -> list[defs.OpSchema]:
    """ONNX Runtime's own list of operators, none where this version does not tell them."""
    state = optional.load("onnxruntime.capi.onnxruntime_pybind11_state")
    return list(state.get_all_operator_schema()) if hasattr(state, "get_all_operator_schema") else []


@cache
def runtime_opset() -> int:
    """The newest opset that ONNX Runtime has operators of (0 if it does not tell)."""
    return max((schema.since_version for schema in _runtime_schemas() if not schema.domain), default=0)


@cache
def _microsoft(name: str, version: int) -> defs.OpSchema | None:
    schemas = (s for s in _runtime_schemas() if (s.domain, s.name) == (MICROSOFT, name) and s.since_version <= version)
    return max(schemas, key=lambda schema: schema.since_version, default=None)


class Lowering:
    """Answers, for one model and one precision, which positions of a node may change their type."""

    def __init__(self, proto: onnx.ModelProto, precision: Precision) -> None:
        self.precision = precision
        self._opsets = {entry.domain: entry.version for entry in proto.opset_import}
        self.opset = self._opsets[""] = opset_of(proto)
        # bfloat16 entered most operators with opset 13; the emulation and TensorRT take it in older models too.
        self._wanted = {precision.type_string} | ({"tensor(float16)"} if self.opset < 13 else set())

    def positions(self, node: onnx.NodeProto, dtypes: Mapping[str, int]) -> Positions:
        """Float positions of `node` that its schema allows in the lower precision.

        Empty where that cannot be: an operator without a schema, one that is about the stored bits or draws random
        numbers, one with a tensor of unknown type, a sequence, or packed values that no `If` can hand on.
        """
        names = [name for name in (*node.input, *node.output) if name]
        never = NEVER | NO_BF16 if self.precision is Precision.BF16 else NEVER
        if node.op_type in never or draws(node) or any(dtypes.get(name, 0) in UNSWITCHED for name in names):
            return NOWHERE
        inputs = [i for i, name in enumerate(node.input) if dtypes.get(name) == TensorProto.FLOAT]
        outputs = [i for i, name in enumerate(node.output) if dtypes.get(name) == TensorProto.FLOAT]
        if bodies := subgraphs(node):
            if node.op_type not in CONTROL_FLOW:
                return NOWHERE
            outer = sorted({name for body in bodies for name in captured(body)} - set(node.input))
            captures = tuple(name for name in outer if dtypes.get(name) == TensorProto.FLOAT)
            return Positions(tuple(inputs), tuple(outputs), captures)
        schema = self._schema(node)
        if schema is None:
            return NOWHERE
        return Positions(
            tuple(i for i in inputs if self._allows(schema, schema.inputs, i)),
            tuple(i for i in outputs if self._allows(schema, schema.outputs, i)),
        )

    def _schema(self, node: onnx.NodeProto) -> defs.OpSchema | None:
        domain = "" if node.domain == "ai.onnx" else node.domain
        version = self._opsets.get(domain, 1)
        if domain == MICROSOFT:
            return _microsoft(node.op_type, version)
        if domain:
            return None  # trees and preprocessing keep their thresholds in attributes of FP32
        try:
            return defs.get_schema(node.op_type, version)
        except defs.SchemaError:
            return None

    def _allows(self, schema: defs.OpSchema, formals: Sequence[defs.OpSchema.FormalParameter], index: int) -> bool:
        if not formals:
            return False
        formal = formals[min(index, len(formals) - 1)]  # the last one may be variadic
        return bool(self._wanted & set(formal.types))
