"""QKV-to-context as plugins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from harness.engines.plugin_ops.operation import Call, Operation, Sizes, Tensor, Work, fields_of, plan_of
from harness.errors import UsageError
from kernels import attention

LAYER = "type_id hidden_size num_heads has_mask"  # fields of the versions that are not INT8 alone
DQ_PROBS = 1 / 127  # one step of a probability where the field does not say: the largest is exactly 1


@dataclass(frozen=True)
class AttentionFixed(Operation):
    """qkv [S, B, 3E, 1, 1], of weights permuted to [N, 3, H, E], and int32 [B] valid tokens -> [S, B, E, 1, 1].

    INT8 takes the scales of qkv and context from TensorRT's descriptions of the tensors.
    """

    name = "CustomQKVToContextPluginDynamic"
    version = "4"
    field_types = fields_of(LAYER, "dq_probs")
    needed: ClassVar[tuple[str, ...]] = ("type_id", "hidden_size", "num_heads")

    @property
    def hidden(self) -> int:
        return int(self.number("hidden_size"))

    @property
    def heads(self) -> int:
        return int(self.number("num_heads"))

    def refuse(self) -> str | None:
        if message := super().refuse():
            return message
        if self.heads < 1 or self.hidden % self.heads:
            return f"num_heads {self.heads} does not divide hidden_size {self.hidden}"
        return attention.refuse(self.case(1, 1))

    def case(self, sequence: int, batch: int, **more: Any) -> attention.AttentionCase:
        return attention.AttentionCase(
            batch, sequence, self.heads, self.hidden // self.heads, self.dtype,
            dq_probs=self.number("dq_probs", DQ_PROBS), **more,
        )  # fmt: skip

    def scales(self, call: Call) -> dict[str, float]:
        """What one step of qkv and of the context is, as a real number."""
        if self.dtype != "int8":
            return {}
        return {"input_scale": call.inputs[0].scale, "output_scale": call.outputs[0].scale}

    def output_shapes(self, inputs: Sequence[Sequence[Any]], sizes: Sizes) -> list[list[Any]]:
        return [[*inputs[0][:-3], sizes.constant(self.hidden), *inputs[0][-2:]]]

    def supports(self, position: int, tensors: Sequence[Tensor], inputs: int) -> bool:
        if 0 < position < inputs:
            return tensors[position].dtype == "int32" and tensors[position].format == "linear"
        return super().supports(position, tensors, inputs)

    def work(self, call: Call) -> Work:
        sequence, batch = call.inputs[0].shape[:2]
        masked = len(call.inputs) > 1 and bool(self.number("has_mask", 1))
        counts = (sequence,) * batch if masked else None  # the values are on the device: only their number matters
        more: dict[str, Any] = {"capability": call.capability, **self.scales(call)}
        plan = plan_of(attention.SPEC, self.case(sequence, batch, counts=counts, **more))
        return Work(plan, ("qkv", "counts" if masked else None)[: len(call.inputs)], ("context",), {})


@dataclass(frozen=True)
class AttentionVarlen(AttentionFixed):
    """qkv [T, 3E, 1, 1], a mask that is not read, cu_seqlens int32 [B + 1], max_seqlen -> [T, E, 1, 1]."""

    version = "5"
    field_types = fields_of(f"{LAYER} var_seqlen use_int8_scale_max", "dq_probs")
    unread: ClassVar[tuple[int, ...]] = (1, 3)  # inputs of which nothing but the shape is read

    def supports(self, position: int, tensors: Sequence[Tensor], inputs: int) -> bool:
        return position in self.unread or super().supports(position, tensors, inputs)

    def work(self, call: Call) -> Work:
        *_, starts, longest = (tensor.shape[0] for tensor in call.inputs)
        more: dict[str, Any] = {"capability": call.capability, **self.scales(call)}
        plan = plan_of(attention.SPEC, self.varlen(self.tokens(call), starts - 1, longest, **more))
        names = ["qkv" if i == 0 else None if i in self.unread else "cu_seqlens" for i in range(len(call.inputs))]
        return Work(plan, tuple(names), ("context",), {})

    def tokens(self, call: Call) -> int:
        """T."""
        return call.inputs[0].shape[0]

    def varlen(self, tokens: int, batch: int, longest: int, **more: Any) -> attention.AttentionCase:
        """A case of T tokens: how they are shared out is on the device, and no plan depends on it."""
        if tokens > batch * longest:
            raise UsageError(f"{self.name}: {tokens} tokens do not fit {batch} sequences of at most {longest}")
        shares = [min(longest, max(0, tokens - i * longest)) for i in range(batch)]
        return self.case(longest, batch, lengths=tuple(shares), **more)


@dataclass(frozen=True)
class AttentionInterleaved(AttentionVarlen):
    """INT8 qkv [1, 3E, T, 1] in CHW32, of weights as [3, N, H, E], cu_seqlens int32 [B + 1], max_seqlen -> [1, E, T, 1].

    With `use_explicit_int8` the scales are the fields `input_qkv_scale` and `output_ctx_scale`.
    """

    version = "6"
    field_types = fields_of(
        "hidden_size num_heads use_int8_scale_max use_explicit_int8", "dq_probs input_qkv_scale output_ctx_scale"
    )
    needed: ClassVar[tuple[str, ...]] = ("hidden_size", "num_heads")
    unread: ClassVar[tuple[int, ...]] = (2,)

    @property
    def dtype(self) -> str:
        return "int8"

    def refuse(self) -> str | None:
        wrong = [name for name in ("input_qkv_scale", "output_ctx_scale") if not self.number(name, 1.0) > 0]
        return f"{wrong[0]}: expected a scale above zero" if wrong else super().refuse()

    def case(self, sequence: int, batch: int, **more: Any) -> attention.AttentionCase:
        return super().case(sequence, batch, layout="qkvnh", interleaved=True, **more)

    def scales(self, call: Call) -> dict[str, float]:
        if not self.number("use_explicit_int8"):
            return super().scales(call)
        names = {"input_scale": "input_qkv_scale", "output_scale": "output_ctx_scale"}
        return {ours: self.number(field, 1.0) for ours, field in names.items()}

    def tokens(self, call: Call) -> int:
        return call.inputs[0].shape[2]
