"""Embedding + layernorm as plugins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from harness.engines.plugin_ops.operation import Array, Call, Operation, Sizes, Tensor, Work, fields_of, plan_of
from kernels import embedding_layernorm, numbers

EMBEDDINGS = tuple(f"bert_embeddings_{name}" for name in
                   ("word_embeddings", "token_type_embeddings", "position_embeddings"))  # fmt: skip
NORM = ("bert_embeddings_layernorm_gamma", "bert_embeddings_layernorm_beta")
NEEDED = (*EMBEDDINGS, *NORM)


@dataclass(frozen=True)
class EmbeddingFixed(Operation):
    """ids, segment ids, mask: int32 [S, B] -> [S, B, E, 1, 1] and int32 [B], the valid tokens of each sequence."""

    name = "CustomEmbLayerNormPluginDynamic"
    version = "6"
    field_types = fields_of("output_fp16 full_mask mha_type_id", " ".join(NEEDED))
    needed: ClassVar[tuple[str, ...]] = NEEDED
    outputs = 2

    @property
    def dtype(self) -> str:
        return "float16" if self.number("output_fp16") else "float32"

    @property
    def hidden(self) -> int:
        return self.fields[NORM[0]].size

    def refuse(self) -> str | None:
        if self.number("full_mask"):
            return "full_mask is the packed mask of NVIDIA's fused kernels; ours read counts: leave it 0"
        for name in (*EMBEDDINGS, NORM[1]):
            if self.fields[name].size % self.hidden or (name == NORM[1] and self.fields[name].size != self.hidden):
                return f"{name}: expected rows of {self.hidden}, got {self.fields[name].size} values"
        return None

    def output_dtypes(self, inputs: Sequence[str]) -> list[str]:
        return [self.dtype, "int32"]

    def output_shapes(self, inputs: Sequence[Sequence[Any]], sizes: Sizes) -> list[list[Any]]:
        one = sizes.constant(1)
        return [[*inputs[0], sizes.constant(self.hidden), one, one], [inputs[0][1]]]

    def supports(self, position: int, tensors: Sequence[Tensor], inputs: int) -> bool:
        here = tensors[position]
        return here.format == "linear" and here.dtype == (self.dtype if position == inputs else "int32")

    def tables(self) -> list[Array]:
        return [self.fields[name].reshape(-1, self.hidden) for name in EMBEDDINGS]

    def case(self, sequence: int, batch: int, **more: Any) -> embedding_layernorm.EmbeddingLayerNorm:
        words, types, positions = (len(table) for table in self.tables())
        return embedding_layernorm.EmbeddingLayerNorm(
            sequence, batch, self.hidden, self.dtype, words=words, token_types=types, positions=positions, **more
        )

    def constants(self) -> dict[str, Array]:
        tables = zip(embedding_layernorm.TABLES, self.tables(), strict=True)
        held = {name: numbers.encode(table, self.dtype) for name, table in tables}
        return held | {name: self.vector(field) for name, field in zip(("gamma", "beta"), NORM, strict=True)}

    def work(self, call: Call) -> Work:
        plan = plan_of(embedding_layernorm.SPEC, self.case(*call.inputs[0].shape))
        return Work(plan, ("ids", "types", "mask"), ("output", "counts"), self.constants())


@dataclass(frozen=True)
class EmbeddingVarlen(EmbeddingFixed):
    """ids, segment ids int32 [T], cu_seqlens int32 [B + 1], max_seqlen (its length is the value) -> [T, E, 1, 1] and
    int32 [B], the lengths (Hugging Face)."""

    version = "4"
    field_types = fields_of("output_fp16", " ".join(NEEDED))

    def output_shapes(self, inputs: Sequence[Sequence[Any]], sizes: Sizes) -> list[list[Any]]:
        one = sizes.constant(1)
        return [[inputs[0][0], sizes.constant(self.hidden), one, one], [sizes.minus(inputs[2][0], 1)]]

    def supports(self, position: int, tensors: Sequence[Tensor], inputs: int) -> bool:
        return position == 3 or super().supports(position, tensors, inputs)  # nothing of max_seqlen is read

    def varlen(self, inputs: Sequence[Tensor], **more: Any) -> embedding_layernorm.EmbeddingLayerNorm:
        """A case of T tokens: how they are shared out is on the device, and no plan depends on it."""
        tokens, batch = inputs[0].shape[0], inputs[2].shape[0] - 1
        return self.case(tokens, batch, lengths=(tokens, *[0] * (batch - 1)), **more)

    def work(self, call: Call) -> Work:
        plan = plan_of(embedding_layernorm.SPEC, self.varlen(call.inputs))
        return Work(plan, ("ids", "types", "cu_seqlens", None), ("output", "counts"), self.constants())


@dataclass(frozen=True)
class EmbeddingMegatron(EmbeddingVarlen):
    """As the variable length of Hugging Face, but the second output is the sum before the normalisation."""

    version = "5"

    def output_dtypes(self, inputs: Sequence[str]) -> list[str]:
        return [self.dtype] * 2

    def output_shapes(self, inputs: Sequence[Sequence[Any]], sizes: Sizes) -> list[list[Any]]:
        embedded, _ = super().output_shapes(inputs, sizes)
        return [embedded, list(embedded)]

    def supports(self, position: int, tensors: Sequence[Tensor], inputs: int) -> bool:
        return super().supports(min(position, inputs), [*tensors[:inputs], tensors[position]], inputs)

    def work(self, call: Call) -> Work:
        plan = plan_of(embedding_layernorm.SPEC, self.varlen(call.inputs, residual=True, mask=False))
        return Work(plan, ("ids", "types", "cu_seqlens", None), ("output", "residual"), self.constants())
