"""Our BERT encoder as an ONNX model, from Hugging Face weights or random ones, in the variants that exporters produce.

Three steps kept apart: `BertConfig` says the sizes, weights are a mapping of Hugging Face names to float32 arrays
(linear kernels as stored, [out, in]), `build_onnx` turns both into a graph. Shapes: B batch, S sequence, E hidden
size, N heads, H = E / N head size, F intermediate size.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from harness.bert import safetensors
from harness.errors import ParseError, UsageError
from harness.models import model, submodel

Weights = Mapping[str, np.ndarray]
Activation = Literal["gelu_erf", "gelu_tanh"]
LayerNorm = Literal["decomposed", "fused"]

INPUTS = ("input_ids", "token_type_ids", "attention_mask")
OUTPUT = "last_hidden_state"
OPSETS = range(13, onnx.defs.onnx_opset_version() + 1)
ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu_erf", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh",
}  # fmt: skip


@dataclass(frozen=True)
class BertConfig:
    """The sizes of a BERT encoder; `hidden_size` must be a multiple of `heads`."""

    hidden_size: int
    layers: int
    heads: int
    intermediate_size: int
    vocab_size: int = 30522
    max_position: int = 512
    type_vocab: int = 2
    layer_norm_eps: float = 1e-12
    activation: Activation = "gelu_erf"

    def __post_init__(self) -> None:
        sizes = (
            self.hidden_size,
            self.heads,
            self.intermediate_size,
            self.vocab_size,
            self.max_position,
            self.type_vocab,
        )
        if min(*sizes, self.layers + 1) < 1:
            raise UsageError(f"BertConfig: expected sizes of at least 1, got {self}")
        if self.hidden_size % self.heads:
            raise UsageError(f"BertConfig: hidden_size {self.hidden_size} is no multiple of heads {self.heads}")

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.heads

    @classmethod
    def preset(cls, name: str) -> BertConfig:
        """`tiny` (2 layers of 128), `base` (12 of 768) or `large` (24 of 1024)."""
        if name not in PRESETS:
            raise UsageError(
                f"no BERT preset {name!r}", hint=f"one of {', '.join(PRESETS)}, or the path of a config.json"
            )
        return PRESETS[name]

    @classmethod
    def from_json(cls, path: Path | str) -> BertConfig:
        """Read a Hugging Face config.json. Raises UsageError (no file) or ParseError (not a BERT that we can build)."""
        path = Path(path)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise UsageError(f"{path} does not exist", hint="give the path of a config.json") from error
        except ValueError as error:
            raise ParseError(path, "content", "JSON, a model's config.json", str(error)) from error
        if not isinstance(content, dict):
            raise ParseError(path, "content", "a JSON object", type(content).__name__)
        if (kind := content.get("position_embedding_type", "absolute")) != "absolute":
            raise ParseError(path, "position_embedding_type", "absolute", kind)
        if (act := content.get("hidden_act", "gelu")) not in ACTIVATIONS:
            raise ParseError(path, "hidden_act", f"one of {', '.join(ACTIVATIONS)}", act)
        numbers = {field: _number(path, content, key, kind) for field, (key, kind) in _JSON_FIELDS.items()}
        return cls(**numbers, activation=ACTIVATIONS[act])


_JSON_FIELDS: dict[str, tuple[str, type]] = {
    "hidden_size": ("hidden_size", int), "layers": ("num_hidden_layers", int), "heads": ("num_attention_heads", int),
    "intermediate_size": ("intermediate_size", int), "vocab_size": ("vocab_size", int),
    "max_position": ("max_position_embeddings", int), "type_vocab": ("type_vocab_size", int),
    "layer_norm_eps": ("layer_norm_eps", float),
}  # fmt: skip

PRESETS = {
    "tiny": BertConfig(128, 2, 2, 512),
    "base": BertConfig(768, 12, 12, 3072),
    "large": BertConfig(1024, 24, 16, 4096),
}


def _number(path: Path, content: Mapping[str, Any], key: str, kind: type) -> Any:
    value = content.get(key)
    if isinstance(value, bool) or not isinstance(value, int if kind is int else int | float):
        raise ParseError(path, key, "a number", value)
    return kind(value)


# Weights: Hugging Face names -> float32 arrays


def weight_shapes(config: BertConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight that `build_onnx` reads."""
    e, f = config.hidden_size, config.intermediate_size
    tables = {"word": config.vocab_size, "position": config.max_position, "token_type": config.type_vocab}
    shapes: dict[str, tuple[int, ...]] = {
        f"embeddings.{name}_embeddings.weight": (rows, e) for name, rows in tables.items()
    }
    shapes |= _norm_shapes("embeddings.LayerNorm", e)
    for layer in range(config.layers):
        prefix = f"encoder.layer.{layer}"
        for name in ("query", "key", "value"):
            shapes |= _linear_shapes(f"{prefix}.attention.self.{name}", e, e)
        shapes |= _linear_shapes(f"{prefix}.attention.output.dense", e, e)
        shapes |= _norm_shapes(f"{prefix}.attention.output.LayerNorm", e)
        shapes |= _linear_shapes(f"{prefix}.intermediate.dense", e, f)
        shapes |= _linear_shapes(f"{prefix}.output.dense", f, e)
        shapes |= _norm_shapes(f"{prefix}.output.LayerNorm", e)
    return shapes


def _linear_shapes(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm_shapes(name: str, size: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}


def read_weights(path: Path | str) -> dict[str, np.ndarray]:
    """The weights of a safetensors file, float32, views of the mapped file where it stores float32.

    Names lose a leading `bert.`, and the LayerNorm names of older files (gamma, beta) become weight and bias.
    Raises UsageError or ParseError as `safetensors.read` does.
    """
    return {
        _modern(name): np.asarray(array, np.float32)
        for name, array in safetensors.read(path).items()
        if array.dtype.kind == "f"
    }


def _modern(name: str) -> str:
    name = name.removeprefix("bert.")
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def random_weights(config: BertConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Weights as at the start of training (normal, 0.02), with biases and LayerNorm scales that are not trivial."""

    def draw(number: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
        array = np.random.default_rng((seed, number)).standard_normal(shape, dtype=np.float32)
        array *= 0.02
        return array + 1 if name.endswith("LayerNorm.weight") else array

    shapes = weight_shapes(config)
    with ThreadPoolExecutor() as pool:  # BERT-large has 335 million
        drawn = pool.map(draw, range(len(shapes)), shapes, shapes.values())
        return dict(zip(shapes, drawn, strict=True))


def check_weights(config: BertConfig, weights: Weights) -> None:
    """Raise UsageError if a weight is missing or its shape does not fit `config`."""
    for name, shape in weight_shapes(config).items():
        if name not in weights:
            raise UsageError(
                f"BERT weights: {name!r} is missing; got {len(weights)} arrays, {config.layers} layers expected"
            )
        if weights[name].shape != shape:
            raise UsageError(f"BERT weights: {name!r}: expected shape {shape}, got {weights[name].shape}")


def _linear(weights: Weights, names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Kernel [in, out] and bias [out] of one linear layer, or of several side by side."""
    kernel = np.concatenate([weights[f"{name}.weight"].T for name in names], axis=1)
    return kernel, np.concatenate([weights[f"{name}.bias"] for name in names])


@dataclass(frozen=True)
class Linear8:
    """A linear layer in INT8: inputs are divided by `share`, float32 [in], and rounded to `step`; weights are int8
    [in, out] that hold the share, each output's with a step of its own, float32 `steps` [out]."""

    share: np.ndarray
    step: float
    weights: np.ndarray
    steps: np.ndarray


# Graph


class _Graph:
    """Collects nodes and initialisers; nodes are named as torch's exporter names them: `/scope/Op`, `/scope/Op_1`.

    They go straight into the model: ONNX's helpers would copy all weights at every level.
    """

    def __init__(self, opset: int) -> None:
        imports = [helper.make_opsetid("", opset)]
        self.opset = opset
        self.model = onnx.ModelProto(
            ir_version=helper.find_min_ir_version_for(imports), opset_import=imports, producer_name="probe"
        )
        self.proto = self.model.graph
        self.proto.name = "bert"
        self._names: set[str] = set()

    def constant(self, name: str, array: Any) -> str:
        """An initialiser; the first array given under a name stays."""
        if name not in self._names:
            self._names.add(name)
            self.proto.initializer.add().CopyFrom(numpy_helper.from_array(np.asarray(array), name))
        return name

    def scalar(self, value: float) -> str:
        return self.constant(f"scalar_{value!r}", np.float32(value))

    def integers(self, *values: int) -> str:
        return self.constant("ints_" + "_".join(map(str, values)), np.array(values, np.int64))

    def op(self, op_type: str, scope: str, *inputs: str, **attributes: Any) -> str:
        """Append a node; returns the name of its output."""
        return self.split(op_type, scope, *inputs, count=1, **attributes)[0]

    def split(self, op_type: str, scope: str, *inputs: str, count: int, **attributes: Any) -> list[str]:
        """Append a node with `count` outputs; returns their names."""
        name = next(n for n in _numbered(f"{scope}/{op_type}") if n not in self._names)
        self._names.add(name)
        outputs = [f"{name}_output_{i}" for i in range(count)]
        self.proto.node.append(helper.make_node(op_type, inputs, outputs, name=name, **attributes))
        return outputs

    def mean(self, scope: str, x: str) -> str:
        if self.opset >= 18:  # axes became an input
            return self.op("ReduceMean", scope, x, self.integers(-1))
        return self.op("ReduceMean", scope, x, axes=[-1])


def _numbered(name: str) -> Iterator[str]:
    """name, name_1, name_2, ..."""
    yield name
    yield from (f"{name}_{number}" for number in itertools.count(1))


def build_onnx(config: BertConfig, weights: Weights, *, opset: int = 17, layer_norm: LayerNorm = "decomposed",
               merged_qkv: bool = False, mask_value: float = -10000.0,
               int8: Mapping[str, Linear8] | None = None) -> onnx.ModelProto:  # fmt: skip
    """The encoder: int64 `input_ids`, `token_type_ids`, `attention_mask` [B, S] -> float32 `last_hidden_state` [B, S, E].

    `layer_norm="fused"` uses the LayerNormalization operator (opset 17 on); `merged_qkv` computes query, key and value
    in one product; `mask_value` is added to the scores of hidden positions: (1 - attention_mask) * mask_value, as
    exporters do with -10000 or, newer, with the lowest float32. `int8` are the linear layers that get Q/DQ nodes, by
    name (`narrowing.linears`). Raises UsageError if options or weights do not fit.
    """
    if opset not in OPSETS:
        raise UsageError(f"BERT: opset {opset} is not supported", hint=f"opset {OPSETS.start} to {OPSETS.stop - 1}")
    if layer_norm == "fused" and opset < 17:
        raise UsageError(
            f"BERT: a fused LayerNorm needs opset 17, got {opset}", hint="layer_norm='decomposed', or opset=17"
        )
    check_weights(config, weights)
    graph = _Graph(opset)
    _Bert(config, weights, graph, layer_norm == "fused", merged_qkv, int8 or {}).build(mask_value)
    ids = [helper.make_tensor_value_info(name, TensorProto.INT64, ["B", "S"]) for name in INPUTS]
    graph.proto.input.extend(ids)
    graph.proto.output.append(helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["B", "S", config.hidden_size]))
    return graph.model


@dataclass
class _Bert:
    """Writes the encoder into `graph`, one method a module; each takes and returns names of tensors."""

    config: BertConfig
    weights: Weights
    graph: _Graph
    fused_norm: bool
    merged_qkv: bool
    int8: Mapping[str, Linear8]

    def build(self, mask_value: float) -> None:
        mask = self.mask(mask_value)
        x = self.embeddings()
        for layer in range(self.config.layers):
            x = self.layer(x, mask, f"/encoder/layer.{layer}")
        self.graph.proto.node[-1].output[0] = OUTPUT  # the last LayerNorm (or the embeddings' one) makes the output

    def weight(self, name: str) -> str:
        return self.graph.constant(name, self.weights[name])

    def mask(self, value: float) -> str:
        """[B, 1, 1, S], 0 where attention is allowed and `value` where it is not."""
        op, graph = self.graph.op, self.graph
        wide = op("Unsqueeze", "", "attention_mask", graph.integers(1, 2))
        visible = op("Cast", "", wide, to=TensorProto.FLOAT)
        return op("Mul", "", op("Sub", "", graph.scalar(1.0), visible), graph.scalar(value))

    def embeddings(self) -> str:
        """[B, S, E]: word + token type + position, normalised."""
        op, graph, scope = self.graph.op, self.graph, "/embeddings"
        length = op("Slice", scope, op("Shape", scope, "input_ids"), graph.integers(1), graph.integers(2))
        positions = graph.constant("embeddings.position_ids", np.arange(self.config.max_position, dtype=np.int64)[None])
        here = op("Slice", scope, positions, graph.integers(0), length, graph.integers(1))
        looked_up = {}
        for name, ids in (("word", "input_ids"), ("token_type", "token_type_ids"), ("position", here)):
            table = self.weight(f"embeddings.{name}_embeddings.weight")
            looked_up[name] = op("Gather", f"{scope}/{name}_embeddings", table, ids)
        total = op("Add", scope, op("Add", scope, looked_up["word"], looked_up["token_type"]), looked_up["position"])
        return self.norm(total, f"{scope}/LayerNorm")

    def layer(self, x: str, mask: str, scope: str) -> str:
        """One encoder layer, [B, S, E] -> [B, S, E]."""
        op = self.graph.op
        context = self.attention(x, mask, f"{scope}/attention/self")
        attended = self.linear(context, f"{scope}/attention/output/dense")
        x = self.norm(op("Add", f"{scope}/attention/output", attended, x), f"{scope}/attention/output/LayerNorm")
        hidden = self.gelu(self.linear(x, f"{scope}/intermediate/dense"), f"{scope}/intermediate/intermediate_act_fn")
        hidden = self.linear(hidden, f"{scope}/output/dense")
        return self.norm(op("Add", f"{scope}/output", hidden, x), f"{scope}/output/LayerNorm")

    def attention(self, x: str, mask: str, scope: str) -> str:
        """softmax(Q K^T / sqrt(H) + mask) V, [B, S, E] -> [B, S, E]."""
        op, graph = self.graph.op, self.graph
        query, key, value = self.projections(x, scope)
        scores = op("MatMul", scope, self.heads(query, scope, [0, 2, 1, 3]), self.heads(key, scope, [0, 2, 3, 1]))
        scores = op("Div", scope, scores, graph.scalar(float(np.sqrt(self.config.head_size))))
        weights = op("Softmax", scope, op("Add", scope, scores, mask), axis=-1)
        context = op("MatMul", scope, weights, self.heads(value, scope, [0, 2, 1, 3]))
        context = op("Transpose", scope, context, perm=[0, 2, 1, 3])
        return op("Reshape", scope, context, graph.integers(0, 0, self.config.hidden_size))

    def projections(self, x: str, scope: str) -> list[str]:
        """Query, key and value, [B, S, E] each."""
        names = [f"{scope}/{name}" for name in ("query", "key", "value")]
        if not self.merged_qkv:
            return [self.linear(x, name) for name in names]
        merged = self.linear(x, f"{scope}/qkv", sources=names)
        return self.graph.split(
            "Split", scope, merged, self.graph.integers(*[self.config.hidden_size] * 3), count=3, axis=-1
        )

    def heads(self, x: str, scope: str, order: list[int]) -> str:
        """[B, S, E] -> [B, S, N, H], axes then in `order`."""
        shape = self.graph.integers(0, 0, self.config.heads, self.config.head_size)
        return self.graph.op("Transpose", scope, self.graph.op("Reshape", scope, x, shape), perm=order)

    def linear(self, x: str, scope: str, sources: list[str] | None = None) -> str:
        """x kernel + bias; `sources` are the scopes of the weights, if not `scope` itself."""
        kernel, bias = _linear(self.weights, [_weight_name(name) for name in sources or [scope]])
        name = _weight_name(scope)
        if name in self.int8:
            product = self.graph.op("MatMul", scope, *self.rounded(x, scope, name))
        else:
            product = self.graph.op("MatMul", scope, x, self.graph.constant(f"{name}.kernel", kernel))
        return self.graph.op("Add", scope, product, self.graph.constant(f"{name}.bias", bias))

    def rounded(self, x: str, scope: str, name: str) -> tuple[str, str]:
        """Both sides of a product as INT8 holds them: the input by one step for all, the weights by one for each output."""
        op, constant, narrow = self.graph.op, self.graph.constant, self.int8[name]
        x = op("Mul", scope, x, constant(f"{name}.share", 1 / narrow.share))
        step = (constant(f"{name}.step", np.float32(narrow.step)), constant("int8_zero", np.int8(0)))
        x = op("DequantizeLinear", scope, op("QuantizeLinear", scope, x, *step), *step)
        held = (constant(f"{name}.int8", narrow.weights), constant(f"{name}.steps", narrow.steps))
        zeros = constant(f"int8_zeros_{narrow.steps.size}", np.zeros(narrow.steps.shape, np.int8))
        return x, op("DequantizeLinear", scope, *held, zeros, axis=1)

    def norm(self, x: str, scope: str) -> str:
        """LayerNorm over the last axis."""
        op, graph, name = self.graph.op, self.graph, _weight_name(scope)
        scale, bias = self.weight(f"{name}.weight"), self.weight(f"{name}.bias")
        if self.fused_norm:
            return op("LayerNormalization", scope, x, scale, bias, axis=-1, epsilon=self.config.layer_norm_eps)
        centred = op("Sub", scope, x, graph.mean(scope, x))
        variance = graph.mean(scope, op("Pow", scope, centred, graph.scalar(2.0)))
        deviation = op("Sqrt", scope, op("Add", scope, variance, graph.scalar(self.config.layer_norm_eps)))
        return op("Add", scope, op("Mul", scope, op("Div", scope, centred, deviation), scale), bias)

    def gelu(self, x: str, scope: str) -> str:
        """x Phi(x), by erf or by its tanh approximation."""
        op, scalar = self.graph.op, self.graph.scalar
        if self.config.activation == "gelu_erf":
            curve = op("Erf", scope, op("Div", scope, x, scalar(float(np.sqrt(2)))))
        else:
            cubic = op("Mul", scope, op("Pow", scope, x, scalar(3.0)), scalar(0.044715))
            inner = op("Mul", scope, op("Add", scope, x, cubic), scalar(float(np.sqrt(2 / np.pi))))
            curve = op("Tanh", scope, inner)
        return op("Mul", scope, op("Mul", scope, x, op("Add", scope, curve, scalar(1.0))), scalar(0.5))


def _weight_name(scope: str) -> str:
    """`/encoder/layer.0/attention/self/query` -> `encoder.layer.0.attention.self.query`."""
    return scope.removeprefix("/").replace("/", ".")


def save(proto: onnx.ModelProto, path: Path | str) -> Path:
    """Write the model, with its weights beside it (`<path>.data`) where they are too large for one file.

    `proto` gives its weights away: it must not be used afterwards.
    """
    loaded = model.from_proto(proto, Path(path))
    return submodel.save(loaded.proto, loaded.weights, loaded.path)
