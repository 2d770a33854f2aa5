"""What each BERT plugin is, apart from TensorRT's classes: fields, shapes, formats, and the plan that does its work.

Versions are IPluginV3's (NVIDIA's legacy numbers are in each kernel's spec). Tensors have NVIDIA's shapes: fixed length
[S, B, E, 1, 1], variable length [T, E, 1, 1], INT8 interleaved [1, E, T, 1] in the format CHW32.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Protocol

import numpy as np

from harness.errors import UsageError
from kernels import (
    attention,
    disentangled_attention,
    embedding_layernorm,
    fully_connected,
    gelu,
    numbers,
    skip_layernorm,
)
from kernels.plan import Plan
from kernels.spec import KernelSpec, Refused, checked

Array = np.ndarray[Any, Any]
Fields = Mapping[str, Array]
FieldTypes = Mapping[str, type[np.generic]]
Format = Literal["linear", "chw32", "other"]

TYPE_IDS = {0: "float32", 1: "float16", 2: "int8", 7: "bfloat16"}  # TensorRT's own numbers of its data types
EMBEDDINGS = tuple(f"bert_embeddings_{name}" for name in
                   ("word_embeddings", "token_type_embeddings", "position_embeddings"))  # fmt: skip
NORM = ("bert_embeddings_layernorm_gamma", "bert_embeddings_layernorm_beta")


@dataclass(frozen=True)
class Tensor:
    """An input or output: NumPy's dtype name (or "bfloat16"), shape (-1: not known yet), format, INT8 scale."""

    dtype: str
    shape: tuple[int, ...]
    format: Format = "linear"
    scale: float = 1.0


class Sizes(Protocol):
    """Arithmetic on extents, which are TensorRT's expressions while a network is built and ints in tests."""

    def constant(self, value: int) -> Any: ...

    def minus(self, extent: Any, value: int) -> Any: ...


@dataclass(frozen=True)
class Work:
    """A plan; which of its buffers each input and output is (None: not read); arrays for the rest."""

    plan: Plan
    inputs: tuple[str | None, ...]
    outputs: tuple[str, ...]
    constants: Mapping[str, Array]


@dataclass(frozen=True)
class Operation(ABC):
    """A configured plugin. Equal fields make equal operations, so that serialising loses nothing."""

    name: ClassVar[str]
    version: ClassVar[str]
    field_types: ClassVar[FieldTypes]  # of all that may be given
    needed: ClassVar[tuple[str, ...]] = ()
    outputs: ClassVar[int] = 1

    values: tuple[tuple[str, tuple[int, ...], bytes], ...]  # name, shape, little-endian bytes: hashable

    @classmethod
    def of(cls, fields: Fields) -> Operation:
        """Raises UsageError for a field that is missing, unknown or out of range."""
        title = f"{cls.name} version {cls.version}"
        if unknown := sorted(fields.keys() - cls.field_types.keys()):
            raise UsageError(
                f"{title}: no such field: {', '.join(unknown)}", hint=f"one of {', '.join(cls.field_types)}"
            )
        if missing := [name for name in cls.needed if name not in fields or fields[name].size == 0]:
            raise UsageError(f"{title}: expected the field {', '.join(missing)}, got {', '.join(fields) or 'none'}")
        kept = {
            name: np.ascontiguousarray(array, cls.field_types[name]) for name, array in fields.items() if array.size
        }
        made = cls(tuple((name, array.shape, array.tobytes()) for name, array in sorted(kept.items())))
        if message := made.refuse():
            raise UsageError(f"{title}: {message}")
        return made

    @property
    def fields(self) -> dict[str, Array]:
        """What `of` takes: the plugin's state, as it is serialised."""
        return {name: np.frombuffer(held, self.field_types[name]).reshape(shape) for name, shape, held in self.values}

    def number(self, name: str, default: float = 0) -> float:
        array = self.fields.get(name)
        return default if array is None else float(array.reshape(-1)[0])

    def vector(self, name: str) -> Array:
        return self.fields[name].reshape(-1)

    @property
    def dtype(self) -> str:
        """Of the main tensors, by `type_id`."""
        return TYPE_IDS[int(self.number("type_id"))]

    def refuse(self) -> str | None:
        """Why these fields cannot be served, or None."""
        type_id = int(self.number("type_id"))
        return None if type_id in TYPE_IDS else f"type_id: expected one of {sorted(TYPE_IDS)}, got {type_id}"

    def output_dtypes(self, inputs: Sequence[str]) -> list[str]:
        return [self.dtype]

    def output_shapes(self, inputs: Sequence[Sequence[Any]], sizes: Sizes) -> list[list[Any]]:
        """Extents of each output; by default those of the first input."""
        return [list(inputs[0]) for _ in range(self.outputs)]

    def supports(self, position: int, tensors: Sequence[Tensor], inputs: int) -> bool:
        """Whether the tensor at `position` may be what it is, given those before it."""
        here = tensors[position]
        return here.dtype == self.dtype and here.format == "linear"

    @abstractmethod
    def work(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Work:
        """What is to be run for these shapes. Raises UsageError for what no kernel does."""


def plan_of(spec: KernelSpec[Any], case: Any) -> Plan:
    try:
        return checked(spec, case)
    except Refused as error:
        raise UsageError(str(error)) from error


# ---- embedding + layernorm


@dataclass(frozen=True)
class EmbeddingFixed(Operation):
    """ids, segment ids, mask: int32 [S, B] -> [S, B, E, 1, 1] and int32 [B], the valid tokens of each sequence."""

    name = "CustomEmbLayerNormPluginDynamic"
    version = "6"
    field_types: ClassVar[FieldTypes] = {**dict.fromkeys((*EMBEDDINGS, *NORM), np.float32),
                   **dict.fromkeys(("output_fp16", "full_mask", "mha_type_id"), np.int32)}  # fmt: skip
    needed: ClassVar[tuple[str, ...]] = (*EMBEDDINGS, *NORM)
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

    def work(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Work:
        plan = plan_of(embedding_layernorm.SPEC, self.case(*inputs[0].shape))
        return Work(plan, ("ids", "types", "mask"), ("output", "counts"), self.constants())


@dataclass(frozen=True)
class EmbeddingVarlen(EmbeddingFixed):
    """ids, segment ids int32 [T], cu_seqlens int32 [B + 1], max_seqlen (its length is the value) -> [T, E, 1, 1] and
    int32 [B], the lengths (Hugging Face)."""

    version = "4"
    field_types: ClassVar[FieldTypes] = {**dict.fromkeys((*EMBEDDINGS, *NORM), np.float32), "output_fp16": np.int32}

    def output_shapes(self, inputs: Sequence[Sequence[Any]], sizes: Sizes) -> list[list[Any]]:
        one = sizes.constant(1)
        return [[inputs[0][0], sizes.constant(self.hidden), one, one], [sizes.minus(inputs[2][0], 1)]]

    def supports(self, position: int, tensors: Sequence[Tensor], inputs: int) -> bool:
        return position == 3 or super().supports(position, tensors, inputs)  # nothing of max_seqlen is read

    def varlen(self, inputs: Sequence[Tensor], **more: Any) -> embedding_layernorm.EmbeddingLayerNorm:
        """A case of T tokens: how they are shared out is on the device, and no plan depends on it."""
        tokens, batch = inputs[0].shape[0], inputs[2].shape[0] - 1
        return self.case(tokens, batch, lengths=(tokens, *[0] * (batch - 1)), **more)

    def work(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Work:
        plan = plan_of(embedding_layernorm.SPEC, self.varlen(inputs))
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

    def work(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Work:
        plan = plan_of(embedding_layernorm.SPEC, self.varlen(inputs, residual=True, mask=False))
        return Work(plan, ("ids", "types", "cu_seqlens", None), ("output", "residual"), self.constants())


# ---- skip + layernorm


@dataclass(frozen=True)
class SkipFixed(Operation):
    """input, skip [S, B, E, 1, 1] -> the same; INT8 in CHW32, where E is a multiple of 32."""

    name = "CustomSkipLayerNormPluginDynamic"
    version = "5"
    field_types: ClassVar[FieldTypes] = {
        "type_id": np.int32,
        "ld": np.int32,
        "beta": np.float32,
        "gamma": np.float32,
        "bias": np.float32,
    }
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

    def supports(self, position: int, tensors: Sequence[Tensor], inputs: int) -> bool:
        wanted: Format = "chw32" if self.dtype == "int8" else "linear"
        return tensors[position].dtype == self.dtype and tensors[position].format == wanted

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

    def work(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Work:
        plan = plan_of(skip_layernorm.SPEC, self.case(inputs, outputs))
        return Work(plan, ("input", "skip"), ("output", "residual")[: self.outputs], self.constants())


@dataclass(frozen=True)
class SkipVarlen(SkipFixed):
    """input, skip [T, E, 1, 1] -> the same."""

    version = "6"
    field_types: ClassVar[FieldTypes] = {
        "type_id": np.int32,
        "beta": np.float32,
        "gamma": np.float32,
        "bias": np.float32,
    }
    channels: ClassVar[int] = 1


@dataclass(frozen=True)
class SkipInterleaved(SkipFixed):
    """INT8 input, skip [1, E, T, 1] in CHW32 -> the same (Hugging Face)."""

    version = "7"
    field_types: ClassVar[FieldTypes] = {"beta": np.float32, "gamma": np.float32}
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


# ---- attention


@dataclass(frozen=True)
class AttentionFixed(Operation):
    """qkv [S, B, 3E, 1, 1], of weights permuted to [N, 3, H, E], and int32 [B] valid tokens -> [S, B, E, 1, 1]."""

    name = "CustomQKVToContextPluginDynamic"
    version = "4"
    field_types: ClassVar[FieldTypes] = {"type_id": np.int32, "hidden_size": np.int32, "num_heads": np.int32, "has_mask": np.int32,
                   "dq_probs": np.float32}  # fmt: skip
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
        if self.dtype == "int8":
            return "INT8 attention reads row-major int8 where the network has CHW32: use type_id 1"
        return attention.refuse(self.case(1, 1))

    def case(self, sequence: int, batch: int, **more: Any) -> attention.AttentionCase:
        return attention.AttentionCase(batch, sequence, self.heads, self.hidden // self.heads, self.dtype, **more)

    def output_shapes(self, inputs: Sequence[Sequence[Any]], sizes: Sizes) -> list[list[Any]]:
        return [[*inputs[0][:-3], sizes.constant(self.hidden), *inputs[0][-2:]]]

    def supports(self, position: int, tensors: Sequence[Tensor], inputs: int) -> bool:
        if 0 < position < inputs:
            return tensors[position].dtype == "int32" and tensors[position].format == "linear"
        return super().supports(position, tensors, inputs)

    def work(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Work:
        sequence, batch = inputs[0].shape[:2]
        masked = len(inputs) > 1 and bool(self.number("has_mask", 1))
        counts = (sequence,) * batch if masked else None  # the values are on the device: only their number matters
        plan = plan_of(attention.SPEC, self.case(sequence, batch, counts=counts))
        return Work(plan, ("qkv", "counts" if masked else None)[: len(inputs)], ("context",), {})


@dataclass(frozen=True)
class AttentionVarlen(AttentionFixed):
    """qkv [T, 3E, 1, 1], a mask that is not read, cu_seqlens int32 [B + 1], max_seqlen -> [T, E, 1, 1]."""

    version = "5"
    field_types: ClassVar[FieldTypes] = {
        **AttentionFixed.field_types,
        "var_seqlen": np.int32,
        "use_int8_scale_max": np.int32,
    }

    def supports(self, position: int, tensors: Sequence[Tensor], inputs: int) -> bool:
        if position in (1, 3):
            return True
        return super().supports(position, tensors, inputs)

    def work(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Work:
        tokens, batch, longest = inputs[0].shape[0], inputs[2].shape[0] - 1, inputs[3].shape[0]
        shares = [min(longest, max(0, tokens - i * longest)) for i in range(batch)]  # any that add up to T
        plan = plan_of(attention.SPEC, self.case(longest, batch, lengths=tuple(shares)))
        return Work(plan, ("qkv", None, "cu_seqlens", None), ("context",), {})


# ---- what NVIDIA dropped


@dataclass(frozen=True)
class FullyConnected(Operation):
    """[S, B, K, 1, 1] by W [K, out_dims] -> [S, B, out_dims, 1, 1]."""

    name = "CustomFCPluginDynamic"
    version = "1"
    field_types: ClassVar[FieldTypes] = {"out_dims": np.int32, "type_id": np.int32, "W": np.float32}
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

    def work(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Work:
        weights = self.fields["W"].reshape(-1, self.out)
        k = inputs[0].shape[-3]
        if k != len(weights):
            raise UsageError(
                f"{self.name}: expected an input of {len(weights)} channels, got the shape {inputs[0].shape}"
            )
        case = fully_connected.FullyConnected(int(np.prod(inputs[0].shape)) // k, k, self.out, self.dtype)
        plan = plan_of(fully_connected.SPEC, case)
        return Work(plan, ("input",), ("output",), {"weights": numbers.encode(weights, self.dtype)})


@dataclass(frozen=True)
class Gelu(Operation):
    """tanh GELU of [S, B, E, 1, 1] (any rank), E the third axis from the end, with an optional bias [E]."""

    name = "CustomGeluPluginDynamic"
    version = "1"
    field_types: ClassVar[FieldTypes] = {"type_id": np.int32, "bias": np.float32}
    needed: ClassVar[tuple[str, ...]] = ("type_id",)

    def refuse(self) -> str | None:
        if message := super().refuse():
            return message
        return "type_id 2: GELU of INT8 is the FC's epilogue" if self.dtype == "int8" else None

    def work(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Work:
        shape = inputs[0].shape
        columns = shape[-3] if len(shape) > 3 else shape[-1]
        biased = "bias" in self.fields
        if biased and self.fields["bias"].size != columns:
            raise UsageError(f"{self.name}: expected {self.fields['bias'].size} channels as bias has, got {shape}")
        plan = plan_of(gelu.SPEC, gelu.Gelu(int(np.prod(shape)) // columns, columns, self.dtype, biased))
        return Work(plan, ("input",), ("output",), {"bias": self.vector("bias")} if biased else {})


@dataclass(frozen=True)
class Disentangled(Operation):
    """c2c [BN, S, S], c2p and p2c [BN, S, 2 span] -> [BN, S, S], with the logarithmic buckets of DeBERTa v2."""

    name = "DisentangledAttention_TRT"
    version = "2"
    field_types: ClassVar[FieldTypes] = {"span": np.int32, "factor": np.float32}
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

    def work(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Work:
        planes, sequence, _ = inputs[0].shape
        wanted = (planes, sequence, 2 * int(self.number("span")))
        if any(tensor.shape != wanted for tensor in inputs[1:]) or inputs[0].shape[2] != sequence:
            got = ", ".join(str(tensor.shape) for tensor in inputs)
            raise UsageError(f"{self.name}: expected {(planes, sequence, sequence)}, {wanted}, {wanted}, got {got}")
        plan = plan_of(disentangled_attention.SPEC, self.case(planes, sequence, inputs[0].dtype))
        return Work(plan, disentangled_attention.NAMES, ("output",), {})


OPERATIONS: tuple[type[Operation], ...] = (
    EmbeddingFixed, EmbeddingVarlen, EmbeddingMegatron, SkipFixed, SkipVarlen, SkipInterleaved, SkipMegatron,
    AttentionFixed, AttentionVarlen, FullyConnected, Gelu, Disentangled,
)  # fmt: skip
