"""Our BERT encoder as one plan of our kernels and cuBLASLt's products: the huge engine that needs no TensorRT.

Tokens stand in rows: [S, B] of a padded batch, sequence by sequence [T] of a packed one (T the sum of lengths). E is the
hidden size, N the number of heads, H = E / N, F the intermediate size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from harness.bert import model as bert
from harness.bert.calibration import Scales
from harness.bert.model import BertConfig, Weights
from harness.bert.narrowing import INT4_GROUP, pack_int4, quantise_linear
from harness.errors import UsageError
from kernels import attention, embedding_layernorm, encoder_steps, gelu, numbers, quantise, skip_layernorm
from kernels.attention import AttentionCase
from kernels.compose import composed, renamed
from kernels.embedding_layernorm import EmbeddingLayerNorm
from kernels.plan import Buffer, Gemm, Plan, Pointer, Role, Step
from kernels.quantise import Quantise
from kernels.skip_layernorm import SkipLayerNorm
from kernels.spec import KernelSpec, Refused, checked, size_bytes

Array = np.ndarray[Any, Any]
Precision = Literal["fp32", "tf32", "fp16", "bf16", "int8"]
DTYPES = {"fp32": "float32", "tf32": "float32", "fp16": "float16", "bf16": "bfloat16", "int8": "float16"}
INT8_LARGEST = 127
TABLES = {"word_table": "word", "type_table": "token_type", "position_table": "position"}
POISON = 0xFF  # NaN in every float type


@dataclass(frozen=True)
class PlanOptions:
    """What is encoded, and how.

    `lengths` are the valid tokens of each sequence: None is all of them, and then no mask is read. `packed` leaves
    padding out. `merged`: one product for Q, K and V; `permuted`: its weights in the order in which attention reads them,
    [N, 3, H]. `fused_gelu`: bias and GELU (its tanh form) inside the product. `fused_norm`: bias, residual sum and
    layernorm in one kernel. `residual_in_product`: residual sum and bias inside the product before it, which then
    is a layernorm alone, in one pass. `int8_attention`: attention reads and writes int8, and multiplies it as float16. `int4`: weights in 4 bits, unpacked
    before each product. `inputs_first`: weights lie as [in, out] instead of Hugging Face's [out, in] (not in int8).
    `keep`: every layer's output has a buffer of its own.
    """

    precision: Precision = "fp16"
    batch: int = 1
    sequence: int = 128
    lengths: tuple[int, ...] | None = None
    packed: bool = False
    merged: bool = True
    permuted: bool = True
    fused_gelu: bool = True
    fused_norm: bool = True
    residual_in_product: bool = False
    int8_attention: bool = False
    int4: bool = False
    inputs_first: bool = False
    keep: bool = False
    capability: tuple[int, int] = (8, 0)

    @property
    def dtype(self) -> str:
        """Of the residual stream and, but in int8, of all activations."""
        return DTYPES[self.precision]

    @property
    def rows(self) -> int:
        return sum(self.lengths or ()) if self.packed else self.batch * self.sequence


@dataclass(frozen=True)
class Operation:
    """A named part of the plan: its steps by index, what the definition asks for, and the peak that bounds it."""

    name: str
    steps: tuple[int, ...]
    flops: int
    bytes: int
    precision: str  # fp32, tf32, fp16, bf16 or int8: of the units that do the work


@dataclass(frozen=True)
class BertPlan:
    """The plan, its weights as arrays by buffer, and which operation each step belongs to."""

    config: BertConfig
    options: PlanOptions
    plan: Plan
    weights: Mapping[str, Array]
    operations: tuple[Operation, ...]

    def arrays(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Every buffer's array, for `bert.INPUTS` [B, S] int64: weights, ids, and poison where something is written.

        Raises UsageError if the feeds do not fit the options.
        """
        made = {**self.weights, **_ids(self.options, feeds)}
        return {one.name: made[one.name] if one.name in made else _poisoned(one) for one in self.plan.buffers}

    def unset(self) -> tuple[str, ...]:
        """The buffers that must be written before they are read."""
        return tuple(one.name for one in self.plan.buffers if one.role != "in")

    def output(self, arrays: Mapping[str, Array]) -> Array:
        """float64 [B, S, E] from the arrays after a run; padding of a packed batch is zero."""
        return self._read(arrays, "x" if not self.options.keep else f"layer.{self.config.layers - 1}")

    def layers(self, arrays: Mapping[str, Array]) -> list[Array]:
        """Each layer's output, where they were kept."""
        return [self._read(arrays, f"layer.{number}") for number in range(self.config.layers)]

    def _read(self, arrays: Mapping[str, Array], name: str) -> Array:
        options, e = self.options, self.config.hidden_size
        rows = numbers.decode(arrays[name], options.dtype).reshape(-1, e)[: options.rows]
        if not options.packed:
            return rows.reshape(options.sequence, options.batch, e).transpose(1, 0, 2)
        made = np.zeros((options.batch, options.sequence, e))
        made[_valid(options)] = rows
        return made

    @cached_property
    def weight_bytes(self) -> int:
        return sum(array.nbytes for array in self.weights.values())

    @cached_property
    def activation_bytes(self) -> int:
        return sum(size_bytes(one) for one in self.plan.buffers if one.name not in self.weights)

    def steps_of(self, operation: Operation) -> tuple[Step, ...]:
        return tuple(self.plan.steps[number] for number in operation.steps)


def build(
    config: BertConfig, weights: Weights, options: PlanOptions | None = None,
    scales: Scales | None = None,
) -> BertPlan:  # fmt: skip
    """The plan of the whole encoder. `scales` are int8's (`calibration`).

    Raises UsageError for weights or options that do not fit, with what would.
    """
    options = options or PlanOptions()
    bert.check_weights(config, weights)
    if message := _refuse(config, options, scales):
        raise UsageError(f"BERT as one plan: {message}")
    encoder = _Encoder(config, weights, options, scales or Scales({}, {}))
    try:
        encoder.build()
    except Refused as error:
        raise UsageError(f"BERT as one plan: {error}") from error
    roles: dict[str, Role] = dict.fromkeys([*encoder.held, *encoder.inputs], "in")
    roles |= dict.fromkeys(encoder.outputs, "out")
    plan = composed(encoder.parts, roles)
    return BertPlan(config, options, plan, encoder.held, tuple(encoder.operations))


def _refuse(config: BertConfig, options: PlanOptions, scales: Scales | None) -> str | None:
    if options.sequence > config.max_position:
        return f"sequence {options.sequence} is over the {config.max_position} positions that the model has"
    if options.lengths is not None and len(options.lengths) != options.batch:
        return f"expected {options.batch} lengths, got {len(options.lengths)}"
    if options.packed and options.lengths is None:
        return "a packed batch needs the lengths of its sequences"
    if options.precision == "int8" and scales is None:
        return "int8 needs scales: harness.bert.calibration.calibrate(...).scales('max')"
    if options.precision == "int8" and not (options.merged and options.fused_norm):
        return "int8 is there with merged QKV and fused layernorm alone"
    if options.int4 and options.precision != "fp16":
        return f"int4 weights are there for fp16 alone, not {options.precision}"
    if options.int4 and config.hidden_size % INT4_GROUP:
        return f"int4 needs a hidden size in multiples of {INT4_GROUP}, not {config.hidden_size}"
    return encoder_steps.refuse(config.hidden_size, config.intermediate_size)


class _Encoder:
    """Puts parts together, one method a module; each takes and returns names of buffers.

    Three buffers of rows take turns: x goes round the layers, a and b hold what is made on the way.
    """

    def __init__(self, config: BertConfig, weights: Weights, options: PlanOptions, scales: Scales) -> None:
        self.config, self.weights, self.options, self.scales = config, weights, options, scales
        self.rows, self.dtype = options.rows, options.dtype
        self.parts: list[Plan] = []
        self.held: dict[str, Array] = {}
        self.inputs: tuple[str, ...] = ()
        self.outputs: list[str] = []
        self.operations: list[Operation] = []
        self._steps = 0

    # modules

    def build(self) -> None:
        x = self.embeddings()
        for number in range(self.config.layers):
            x = self.layer(x, number)
        self.outputs.append(x)

    def embeddings(self) -> str:
        o, config = self.options, self.config
        case = EmbeddingLayerNorm(
            o.sequence, o.batch, config.hidden_size, self.dtype, o.lengths if o.packed else None,
            mask=o.lengths is not None and not o.packed, words=config.vocab_size, token_types=config.type_vocab,
            positions=config.max_position, epsilon=config.layer_norm_eps,
        )  # fmt: skip
        for buffer, name in TABLES.items():
            self.hold(buffer, self.weights[f"embeddings.{name}_embeddings.weight"], self.dtype)
        self.hold_norm("embeddings.LayerNorm", "embeddings")
        self.inputs = ("ids", "types", *(("cu_seqlens",) if o.packed else ("mask",) if case.mask else ()))
        target = "x"
        names = {"gamma": "embeddings.gamma", "beta": "embeddings.beta", "output": target}
        self.take("embedding", embedding_layernorm.SPEC, case, names)
        if o.precision == "int8":
            part = encoder_steps.quantise_columns(self.rows, config.hidden_size)
            names = {"input": target, "inverses": "layer.0.qkv.inverses", "output": "x8"}
            self.add_part("quantise", part, names)
        return target

    def layer(self, x: str, number: int) -> str:
        scope, name = f"encoder.layer.{number}", f"layer.{number}"
        target = name if self.options.keep else "x"
        if self.options.keep and number < self.config.layers - 1:
            self.outputs.append(target)
        context = self.attention(x, scope, name)
        middle = self.joined(context, x, f"{scope}.attention.output", f"{name}.attended", "a", f"{name}.hidden")
        wide = self.intermediate(middle, scope, name)
        following = f"layer.{number + 1}.qkv" if number < self.config.layers - 1 else None
        return self.joined(wide, middle, f"{scope}.output", f"{name}.output", target, following)

    def attention(self, x: str, scope: str, name: str) -> str:
        o, e = self.options, self.config.hidden_size
        qkv = self.projections(x, scope, name)
        context = "a"
        if o.int8_attention:
            case = self.attention_case("int8", name)
            self.take("attention", attention.SPEC, case, {"qkv": qkv, "context": "a8"})
            return "a8"
        if o.precision == "int8":
            self.dequantise(qkv, "qkv", 3 * e, f"{name}.qkv")
            qkv = "qkv"
        self.take("attention", attention.SPEC, self.attention_case(self.dtype, name), {"qkv": qkv, "context": context})
        if o.precision == "int8":
            self.quantise(context, "a8", e, f"{name}.context")
            return "a8"
        return context

    def attention_case(self, dtype: str, name: str) -> AttentionCase:
        o, config = self.options, self.config
        case = AttentionCase(
            o.batch, o.sequence, config.heads, config.head_size, dtype, None if o.packed else o.lengths,
            o.lengths if o.packed else None, "nqkvh" if o.merged and o.permuted else "qkvnh", products="float16",
            capability=o.capability,
        )  # fmt: skip
        if dtype != "int8":
            return case
        steps = self.scales.tensors
        return replace(case, input_scale=steps[f"{name}.qkv"], output_scale=steps[f"{name}.context"])

    def projections(self, x: str, scope: str, name: str) -> str:
        """The merged product [rows, 3 E], in the order in which attention reads it."""
        o, e = self.options, self.config.hidden_size
        scopes = [f"{scope}.attention.self.{part}" for part in ("query", "key", "value")]
        if not o.merged:
            for source, target in zip(scopes, "qkv", strict=True):
                self.product(x, source, target, self.weights[f"{source}.weight"], self.weights[f"{source}.bias"])
            self.add_part("gather QKV", encoder_steps.gather_qkv(self.dtype, self.rows, e), {"output": "qkv"})
            return "qkv"
        kernel, bias = (np.stack([self.weights[f"{one}.{what}"] for one in scopes]) for what in ("weight", "bias"))
        if o.permuted:
            heads = (3, self.config.heads, self.config.head_size)
            kernel, bias = (x.reshape(*heads, *x.shape[2:]).swapaxes(0, 1) for x in (kernel, bias))
        kernel, bias = kernel.reshape(3 * e, e), bias.reshape(3 * e)
        if o.precision == "int8":
            return self.product8("x8", f"{name}.qkv", "qkv8", kernel, bias, self.incoming(name))
        return self.product(x, f"{name}.qkv", "qkv", kernel, bias)

    def intermediate(self, x: str, scope: str, name: str) -> str:
        """[rows, F]."""
        o, f = self.options, self.config.intermediate_size
        kernel, bias = (self.weights[f"{scope}.intermediate.dense.{what}"] for what in ("weight", "bias"))
        erf = self.config.activation == "gelu_erf"
        if o.precision == "int8":
            self.product8("b8", f"{name}.hidden", "wide8", kernel, bias, f"{name}.middle")
            names = {"input": "wide8", "steps": f"{name}.hidden.steps", "inverses": f"{name}.output.inverses",
                     "output": "gelu8"}  # fmt: skip
            self.add_part("GELU", encoder_steps.gelu_int8(self.rows, f), names)
            return "gelu8"
        if o.fused_gelu:
            return self.product(x, f"{name}.hidden", "wide", kernel, bias, gelu_too=True)
        self.product(x, f"{name}.hidden", "wide", kernel, bias)
        step = gelu.launch(self.dtype, self.rows, f, "wide", None, "wide", "erf" if erf else "tanh")
        self.add_part("GELU", Plan((Buffer("wide", self.dtype, (self.rows, f)),), (step,)), {}, doubled=True)
        return "wide"

    def joined(self, x: str, skip: str, scope: str, name: str, target: str, following: str | None) -> str:
        """layernorm(x W + bias + skip): [rows, E]; `following` is the product that reads it, in int8 from a copy."""
        o, e, rows = self.options, self.config.hidden_size, self.rows
        kernel, bias = (self.weights[f"{scope}.dense.{what}"] for what in ("weight", "bias"))
        epsilon = self.config.layer_norm_eps
        self.hold_norm(f"{scope}.LayerNorm", name)
        norm = {"gamma": f"{name}.gamma", "beta": f"{name}.beta", "output": target}
        if o.precision == "int8":
            self.product8(x, name, "y8", kernel, bias, name.replace("attended", "context").replace("output", "gelu"))
            part = encoder_steps.skip_layernorm_mixed(rows, e, epsilon, rounded=following is not None)
            names = {"input": "y8", "steps": f"{name}.steps", "skip": skip, "inverses": f"{following}.inverses",
                     "rounded": "b8" if target == "a" else "x8"}  # fmt: skip
            self.add_part("skip + layernorm", part, {**norm, **names})
            return target
        if o.residual_in_product:
            self.product(x, name, "b", kernel, bias, skip=skip)
            self.add_part("layernorm", encoder_steps.layernorm_once(self.dtype, rows, e, epsilon), {**norm, "x": "b"})
            return target
        self.product(x, name, "b", kernel, None if o.fused_norm else bias)
        if o.fused_norm:
            self.hold(f"{name}.bias", bias, "float32")
            case = SkipLayerNorm(rows, e, self.dtype, bias=True, epsilon=epsilon)
            self.take("skip + layernorm", skip_layernorm.SPEC, case,
                      {**norm, "input": "b", "skip": skip, "bias": f"{name}.bias"})  # fmt: skip
            return target
        self.add_part("residual sum", encoder_steps.add(self.dtype, rows, e), {"a": "b", "b": skip, "output": "sum"})
        self.add_part("layernorm", encoder_steps.layernorm(self.dtype, rows, e, epsilon), {**norm, "x": "sum"})
        return target

    # products

    def product(
        self, x: str, name: str, target: str, kernel: Array, bias: Array | None, *, gelu_too: bool = False,
        skip: str | None = None,
    ) -> str:  # fmt: skip
        """target = x kernel^T + bias + skip; `kernel` is [out, in]. The bias is inside it where GELU may be, or `skip`
        is, else a step."""
        o, (n, k) = self.options, kernel.shape
        inside = bias is not None and (o.fused_gelu or skip is not None)
        turned = o.int4 or o.inputs_first
        stored = np.ascontiguousarray(kernel.T) if turned else kernel
        weight = self.weight4(name, stored) if o.int4 else self.hold(f"{name}.weight", stored, self.dtype)
        buffers = [Buffer(x, self.dtype, (self.rows, k)), Buffer(weight, self.dtype, stored.shape),
                   Buffer(target, self.dtype, (self.rows, n))]  # fmt: skip
        if inside:
            assert bias is not None
            buffers.append(Buffer(self.hold(f"{name}.bias", bias, self.dtype), self.dtype, (n,)))
        if skip is not None:
            buffers.append(Buffer(skip, self.dtype, (self.rows, n)))
        gemm = Gemm(
            Pointer(x), Pointer(weight), Pointer(target), self.rows, n, k,
            "tf32" if o.precision == "tf32" else self.dtype, self.dtype, b_transposed=not turned,
            bias=Pointer(f"{name}.bias") if inside else None, bias_dtype=self.dtype,
            epilogue="gelu_tanh" if gelu_too else "none", c=None if skip is None else Pointer(skip),
        )  # fmt: skip
        self.add_part(_product_name(name), Plan(tuple(buffers), (gemm,)), {}, flops=2 * self.rows * n * k)
        if bias is not None and not inside:
            self.hold(f"{name}.bias", bias, "float32")
            self.add_part(
                "bias", encoder_steps.add_bias(self.dtype, self.rows, n), {"x": target, "bias": f"{name}.bias"}
            )
        return target

    def product8(self, x: str, name: str, target: str, kernel: Array, bias: Array, source: str) -> str:
        """The same in int8; sums are rounded to int8 in the library's epilogue. `source` names what x was calibrated as.

        Attention reads and writes whole tensors of one step; every other tensor has a step for each channel.
        """
        (n, k), scales = kernel.shape, self.scales
        inner, whole = source.endswith(".context"), name.endswith(".qkv")
        inputs = np.full(k, scales.tensors[source] * INT8_LARGEST) if inner else scales.channels[source]
        outputs = np.full(n, scales.tensors[name] * INT8_LARGEST) if whole else scales.channels[name]
        made = quantise_linear(np.asarray(kernel, np.float32), inputs, outputs, smooth=not inner, uniform=whole)
        self.held[f"{name}.weight"] = made.weights
        self.hold(f"{name}.bias", bias / made.output_steps, "float32")
        if not inner:
            self.hold(f"{name}.inverses", 1 / made.input_steps, "float32")
        if not whole:
            self.hold(f"{name}.steps", made.output_steps, "float32")
        buffers = (Buffer(x, "int8", (self.rows, k)), Buffer(f"{name}.weight", "int8", (n, k)),
                   Buffer(f"{name}.bias", "float32", (n,)), Buffer(target, "int8", (self.rows, n)))  # fmt: skip
        gemm = Gemm(Pointer(x), Pointer(f"{name}.weight"), Pointer(target), self.rows, n, k, "int8", "int8", True,
                    Pointer(f"{name}.bias"), "float32", alpha=made.factor)  # fmt: skip
        self.add_part(_product_name(name), Plan(buffers, (gemm,)), {}, flops=2 * self.rows * n * k)
        return target

    def weight4(self, name: str, kernel: Array) -> str:
        """Hold a weight [in, out] in 4 bits, and unpack it before the product reads it."""
        k, n = kernel.shape
        packed, scales = pack_int4(kernel, INT4_GROUP)
        self.held[f"{name}.packed"], self.held[f"{name}.scales"] = packed, scales
        names = {"packed": f"{name}.packed", "scales": f"{name}.scales", "output": "unpacked"}
        self.add_part("unpack", encoder_steps.unpack_int4(self.dtype, k, n, INT4_GROUP), names)
        return "unpacked"

    def incoming(self, name: str) -> str:
        """The calibrated name of the residual stream as it comes into a layer."""
        number = int(name.rpartition(".")[2])
        return "embeddings" if number == 0 else f"layer.{number - 1}"

    def quantise(self, source: str, target: str, columns: int, scale: str) -> None:
        case = Quantise(self.rows * columns, self.dtype, scale=self.scales.tensors[scale])
        self.take("quantise", quantise.SPEC, case, {"input": source, "output": target})

    def dequantise(self, source: str, target: str, columns: int, scale: str) -> None:
        case = Quantise(self.rows * columns, self.dtype, back=True, scale=self.scales.tensors[scale])
        self.take("quantise", quantise.SPEC, case, {"input": source, "output": target})

    # parts

    def hold(self, name: str, array: Array, dtype: str) -> str:
        self.held[name] = numbers.encode(np.asarray(array, np.float32), dtype)
        return name

    def hold_norm(self, source: str, name: str) -> None:
        self.hold(f"{name}.gamma", self.weights[f"{source}.weight"], "float32")
        self.hold(f"{name}.beta", self.weights[f"{source}.bias"], "float32")

    def take(self, name: str, spec: KernelSpec[Any], case: Any, names: Mapping[str, str]) -> None:
        multiplies = spec is attention.SPEC
        precision = {"float16": "fp16", "bfloat16": "bf16", "int8": "int8"}.get(case.dtype, "fp32")
        self.add_part(name, checked(spec, case), names, flops=spec.flops(case) if multiplies else 0,
                      bytes_=spec.traffic(case), precision=precision)  # fmt: skip

    def add_part(
        self, name: str, part: Plan, names: Mapping[str, str], *, flops: int = 0, bytes_: int | None = None,
        precision: str = "", doubled: bool = False,
    ) -> None:  # fmt: skip
        """`doubled`: its buffers are read and written."""
        moved = sum(size_bytes(one) for one in part.buffers) * (1 + doubled) if bytes_ is None else bytes_
        numbered = tuple(range(self._steps, self._steps + len(part.steps)))
        self.parts.append(renamed(part, names))
        self.operations.append(Operation(name, numbered, flops, moved, precision or self.options.precision))
        self._steps += len(part.steps)


def _product_name(name: str) -> str:
    """`layer.3.qkv` -> `QKV product`."""
    kind = name.rpartition(".")[2]
    words = {
        "qkv": "QKV",
        "query": "Q",
        "key": "K",
        "value": "V",
        "attended": "output",
        "hidden": "FC1",
        "output": "FC2",
    }
    return f"{words[kind]} product"


def _valid(options: PlanOptions) -> Array:
    """bool [B, S]: the positions that hold a token."""
    lengths = options.lengths or (options.sequence,) * options.batch
    return np.arange(options.sequence)[None, :] < np.array(lengths)[:, None]


def _ids(options: PlanOptions, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """The plan's inputs from those of the model."""
    shape = (options.batch, options.sequence)
    for name in bert.INPUTS:
        if name not in feeds or feeds[name].shape != shape:
            got = feeds[name].shape if name in feeds else "nothing"
            raise UsageError(f"input {name}: expected shape {shape}, got {got}")
    valid = _valid(options)
    if not np.array_equal(feeds["attention_mask"] != 0, valid):
        raise UsageError("attention_mask: expected the lengths that the plan was made for, as ones before zeros")
    ids, types = (np.asarray(feeds[name], np.int32) for name in bert.INPUTS[:2])
    if options.packed:
        starts = np.concatenate([[0], np.cumsum(options.lengths or ())]).astype(np.int32)
        return {"ids": ids[valid], "types": types[valid], "cu_seqlens": starts}
    made = {"ids": ids.T, "types": types.T, "mask": valid.T.astype(np.int32)}
    return {name: np.ascontiguousarray(array) for name, array in made.items()}


def _poisoned(buffer: Buffer) -> Array:
    kind = numbers.storage(buffer.dtype)
    size = int(np.prod(buffer.shape, dtype=np.int64)) * kind.itemsize
    return np.full(size, POISON, np.uint8).view(kind).reshape(buffer.shape)
