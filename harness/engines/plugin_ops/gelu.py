"""The GELU plugin, which NVIDIA dropped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from harness.engines.plugin_ops.operation import Call, Operation, Work, fields_of, plan_of
from harness.errors import UsageError
from kernels import gelu


@dataclass(frozen=True)
class Gelu(Operation):
    """tanh GELU of [S, B, E, 1, 1] (any rank), E the third axis from the end, with an optional bias [E]."""

    name = "CustomGeluPluginDynamic"
    version = "1"
    field_types = fields_of("type_id", "bias")
    needed: ClassVar[tuple[str, ...]] = ("type_id",)

    def refuse(self) -> str | None:
        if message := super().refuse():
            return message
        return "type_id 2: GELU of INT8 is the FC's epilogue" if self.dtype == "int8" else None

    def work(self, call: Call) -> Work:
        shape = call.inputs[0].shape
        columns = shape[-3] if len(shape) > 3 else shape[-1]
        biased = "bias" in self.fields
        if biased and self.fields["bias"].size != columns:
            raise UsageError(f"{self.name}: expected {self.fields['bias'].size} channels as bias has, got {shape}")
        plan = plan_of(gelu.SPEC, gelu.Gelu(int(np.prod(shape)) // columns, columns, self.dtype, biased))
        return Work(plan, ("input",), ("output",), {"bias": self.vector("bias")} if biased else {})
