"""DeBERTa's disentangled attention as a plugin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from harness.engines.plugin_ops.operation import Call, Operation, Tensor, Work, fields_of, plan_of
from harness.errors import UsageError
from kernels import disentangled_attention


@dataclass(frozen=True)
class Disentangled(Operation):
    """c2c [BN, S, S], c2p and p2c [BN, S, 2 span] -> [BN, S, S], with the logarithmic buckets of DeBERTa v2."""

    name = "DisentangledAttention_TRT"
    version = "2"
    field_types = fields_of("span", "factor")
    needed: ClassVar[tuple[str, ...]] = ("span", "factor")

    def refuse(self) -> str | None:
        return disentangled_attention.refuse(self.case(1, 1, "float16"))

    def case(self, planes: int, sequence: int, dtype: str) -> disentangled_attention.DisentangledAttention:
        return disentangled_attention.DisentangledAttention(
            planes, sequence, int(self.number("span")), dtype, factor=self.number("factor")
        )

    def output_dtypes(self, inputs: Sequence[str]) -> list[str]:
        return [inputs[0]]

    def supports(self, position: int, tensors: Sequence[Tensor], inputs: int) -> bool:
        here = tensors[position]
        known = here.dtype in disentangled_attention.SPEC.dtypes and here.format == "linear"
        return known and here.dtype == tensors[0].dtype

    def work(self, call: Call) -> Work:
        planes, sequence, _ = call.inputs[0].shape
        wanted = (planes, sequence, 2 * int(self.number("span")))
        if any(tensor.shape != wanted for tensor in call.inputs[1:]) or call.inputs[0].shape[2] != sequence:
            got = ", ".join(str(tensor.shape) for tensor in call.inputs)
            raise UsageError(f"{self.name}: expected {(planes, sequence, sequence)}, {wanted}, {wanted}, got {got}")
        plan = plan_of(disentangled_attention.SPEC, self.case(planes, sequence, call.inputs[0].dtype))
        return Work(plan, disentangled_attention.NAMES, ("output",), {})
