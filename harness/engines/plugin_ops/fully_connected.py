"""The FC plugin, which NVIDIA dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from harness.engines.plugin_ops.operation import Call, Operation, Sizes, Work, fields_of, plan_of
from harness.errors import UsageError
from kernels import fully_connected, numbers


@dataclass(frozen=True)
class FullyConnected(Operation):
    """[S, B, K, 1, 1] by W [K, out_dims] -> [S, B, out_dims, 1, 1]."""

    name = "CustomFCPluginDynamic"
    version = "1"
    field_types = fields_of("out_dims type_id", "W")
    needed: ClassVar[tuple[str, ...]] = ("out_dims", "type_id", "W")

    @property
    def out(self) -> int:
        return int(self.number("out_dims"))

    def refuse(self) -> str | None:
        if message := super().refuse():
            return message
        if self.out < 1 or self.fields["W"].size % self.out:
            return f"W: expected rows of out_dims {self.out}, got {self.fields['W'].size} values"
        return (
            "type_id 2: INT8 products need scales, for which this plugin has no field" if self.dtype == "int8" else None
        )

    def output_shapes(self, inputs: Sequence[Sequence[Any]], sizes: Sizes) -> list[list[Any]]:
        return [[*inputs[0][:-3], sizes.constant(self.out), *inputs[0][-2:]]]

    def work(self, call: Call) -> Work:
        weights = self.fields["W"].reshape(-1, self.out)
        k = call.inputs[0].shape[-3]
        if k != len(weights):
            raise UsageError(
                f"{self.name}: expected an input of {len(weights)} channels, got the shape {call.inputs[0].shape}"
            )
        case = fully_connected.FullyConnected(int(np.prod(call.inputs[0].shape)) // k, k, self.out, self.dtype)
        plan = plan_of(fully_connected.SPEC, case)
        return Work(plan, ("input",), ("output",), {"weights": numbers.encode(weights, self.dtype)})
