"""Skip + layernorm as plugins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from harness.engines.plugin_ops.operation import Array, Call, Operation, Tensor, Work, fields_of, plan_of
from harness.errors import UsageError
from kernels import skip_layernorm


@dataclass(frozen=True)
class SkipFixed(Operation):
    """input, skip [S, B, E, 1, 1] -> the same; INT8 in CHW32, where E is a multiple of 32."""

    name = "CustomSkipLayerNormPluginDynamic"
    version = "5"
    field_types = fields_of("type_id ld", "beta gamma bias")
    needed: ClassVar[tuple[str, ...]] = ("type_id", "beta", "gamma")
    channels: ClassVar[int] = 2  # axis of E

    @property
    def hidden(self) -> int:
        return self.fields["gamma"].size

    def refuse(self) -> str | None:
        if message := super().refuse():
            return message
        sizes = {name: self.fields[name].size for name in self.fields if name in ("beta", "bias")}
        sizes |= {"ld": int(self.number("ld"))} if self.number("ld") else {}
        wrong = [f"{name} {size}" for name, size in sizes.items() if size != self.hidden]
        if wrong:
            return f"expected {self.hidden} values as gamma has, got {', '.join(wrong)}"
        if self.dtype == "int8" and self.hidden % 32:
            return f"INT8 is held in CHW32, whose 32 channels do not divide a hidden size of {self.hidden}"
        return None

    def constants(self) -> dict[str, Array]:
        return {name: self.vector(name) for name in ("gamma", "beta", "bias") if name in self.fields}

    def case(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> skip_layernorm.SkipLayerNorm:
        shape = inputs[0].shape
        if shape[self.channels] != self.hidden:
            raise UsageError(f"{self.name}: expected a hidden size of {self.hidden}, got the shape {shape}")
        rows = int(np.prod(shape)) // self.hidden
        made = skip_layernorm.SkipLayerNorm(rows, self.hidden, self.dtype, "bias" in self.fields)
        if self.dtype != "int8":
            return made
        residual = outputs[1].scale if len(outputs) > 1 else 1.0
        return replace(made, scales=(inputs[0].scale, inputs[1].scale, outputs[0].scale, residual))

    def work(self, call: Call) -> Work:
        plan = plan_of(skip_layernorm.SPEC, self.case(call.inputs, call.outputs))
        return Work(plan, ("input", "skip"), ("output", "residual")[: self.outputs], self.constants())


@dataclass(frozen=True)
class SkipVarlen(SkipFixed):
    """input, skip [T, E, 1, 1] -> the same."""

    version = "6"
    field_types = fields_of("type_id", "beta gamma bias")
    channels: ClassVar[int] = 1


@dataclass(frozen=True)
class SkipInterleaved(SkipFixed):
    """INT8 input, skip [1, E, T, 1] in CHW32 -> the same (Hugging Face)."""

    version = "7"
    field_types = fields_of(floats="beta gamma")
    needed: ClassVar[tuple[str, ...]] = ("beta", "gamma")
    channels: ClassVar[int] = 1

    @property
    def dtype(self) -> str:
        return "int8"

    def output_dtypes(self, inputs: Sequence[str]) -> list[str]:
        return ["int8"] * self.outputs

    def case(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> skip_layernorm.SkipLayerNorm:
        return replace(super().case(inputs, outputs), interleaved=True, residual=self.outputs == 2)


@dataclass(frozen=True)
class SkipMegatron(SkipInterleaved):
    """As version 7; the second output is the sum before the normalisation."""

    version = "8"
    outputs = 2
