"""Our BERT encoder through TensorRT's network API with the BERT plugins: the route between the ONNX parser and a huge plugin.

Plugins are asked for by NVIDIA's names: on TensorRT 8.6 to 10 NVIDIA's own creators answer, elsewhere those that
`harness.engines.plugins` registers. Tensors between the plugins are [S, B, E, 1, 1] (S sequence, B batch, E hidden size).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import numpy as np

from harness.bert import model as bert
from harness.bert.model import BertConfig, Weights
from harness.errors import BuildFailed

Precision = Literal["fp32", "fp16"]

TYPE_IDS: dict[Precision, int] = {"fp32": 0, "fp16": 1}  # the plugins' own numbers
EMBEDDING, ATTENTION, SKIP_NORM = (
    f"Custom{name}PluginDynamic" for name in ("EmbLayerNorm", "QKVToContext", "SkipLayerNorm")
)
VERSIONS = {EMBEDDING: ("6", "1"), ATTENTION: ("4", "1"), SKIP_NORM: ("5", "1")}  # IPluginV3's, and the one before it


@dataclass(frozen=True)
class NetworkOptions:
    """How the network is put together.

    Without `masked`, attention is told that there is no mask and reads all positions. `fused_bias` leaves the bias of
    the two output products to the skip-layernorm plugin.
    """

    precision: Precision = "fp16"
    masked: bool = True
    fused_bias: bool = True


def populate(
    config: BertConfig, weights: Weights, options: NetworkOptions | None = None
) -> Callable[[ModuleType, Any], list[np.ndarray]]:
    """A function that adds the encoder to `(trt, network)`: int32 inputs [B, S] as `bert.INPUTS`, float32 output [B, S, E].

    It returns the arrays that TensorRT reads later: keep them until the engine is built. Raises UsageError if weights
    do not fit; the function raises BuildFailed where TensorRT has no such plugin.
    """
    bert.check_weights(config, weights)

    def add(trt: ModuleType, network: Any) -> list[np.ndarray]:
        encoder = _Encoder(trt, network, config, weights, options or NetworkOptions())
        encoder.build()
        return encoder.kept

    return add


def merged_qkv(config: BertConfig, weights: Weights, scope: str) -> tuple[np.ndarray, np.ndarray]:
    """Kernel [3E, E] and bias [3E] of query, key and value, rows permuted to [N, 3, H]: attention then transposes nothing."""
    n, h, e = config.heads, config.head_size, config.hidden_size
    names = [f"{scope}.{part}" for part in ("query", "key", "value")]
    kernel = np.stack([weights[f"{name}.weight"].reshape(n, h, e) for name in names], axis=1)
    bias = np.stack([weights[f"{name}.bias"].reshape(n, h) for name in names], axis=1)
    return np.ascontiguousarray(kernel.reshape(3 * e, e)), np.ascontiguousarray(bias.reshape(3 * e))


class _Encoder:
    """Adds layer after layer to the network; each method takes and returns tensors and names what it adds."""

    def __init__(
        self, trt: ModuleType, network: Any, config: BertConfig, weights: Weights, options: NetworkOptions
    ) -> None:
        self.trt, self.network, self.config, self.weights, self.options = trt, network, config, weights, options
        self.kept: list[np.ndarray] = []
        self._registry = trt.get_plugin_registry()

    def build(self) -> None:
        ids = {name: self.network.add_input(name, self.trt.int32, (-1, -1)) for name in bert.INPUTS}
        x, mask = self.embeddings(*(self.transposed(ids[name], name) for name in bert.INPUTS))
        for number in range(self.config.layers):
            x = self.layer(x, mask, f"encoder.layer.{number}")
        out = self.network.add_shuffle(x)  # [S, B, E, 1, 1] -> [B, S, E]
        out.first_transpose = self.trt.Permutation([1, 0, 2, 3, 4])
        out.reshape_dims = (0, 0, self.config.hidden_size)
        out.name = "to_batch_first"
        tensor = self.as_float(out.get_output(0))
        tensor.name = bert.OUTPUT
        self.network.mark_output(tensor)

    def transposed(self, tensor: Any, name: str) -> Any:
        """[B, S] -> [S, B], as the plugins want it."""
        layer = self.network.add_shuffle(tensor)
        layer.first_transpose = self.trt.Permutation([1, 0])
        layer.name = f"{name}/transpose"
        return layer.get_output(0)

    def embeddings(self, words: Any, segments: Any, mask: Any) -> tuple[Any, Any]:
        """[S, B, E, 1, 1], and the mask in the form that attention reads."""
        fields = {
            f"bert_embeddings_{name}": self.weights[f"embeddings.{key}"].astype(np.float32)
            for name, key in (("layernorm_beta", "LayerNorm.bias"), ("layernorm_gamma", "LayerNorm.weight"),
                              ("word_embeddings", "word_embeddings.weight"),
                              ("token_type_embeddings", "token_type_embeddings.weight"),
                              ("position_embeddings", "position_embeddings.weight"))
        }  # fmt: skip
        type_id = TYPE_IDS[self.options.precision]
        fields |= {"output_fp16": np.array([type_id], np.int32), "mha_type_id": np.array([type_id], np.int32)}
        layer = self.plugin(EMBEDDING, "embeddings", fields, [words, segments, mask])
        return layer.get_output(0), layer.get_output(1)

    def layer(self, x: Any, mask: Any, scope: str) -> Any:
        attended = self.attention(x, mask, f"{scope}.attention.self")
        x = self.skip_norm(attended, x, f"{scope}.attention.output")
        hidden = self.gelu(self.product(x, f"{scope}.intermediate.dense"), f"{scope}.intermediate")
        return self.skip_norm(hidden, x, f"{scope}.output")

    def attention(self, x: Any, mask: Any, scope: str) -> Any:
        kernel, bias = merged_qkv(self.config, self.weights, scope)
        qkv = self.dense(x, kernel, bias, f"{scope}.qkv")
        numbers = {
            "type_id": TYPE_IDS[self.options.precision], "hidden_size": self.config.hidden_size,
            "num_heads": self.config.heads, "has_mask": int(self.options.masked),
        }  # fmt: skip
        fields = {name: np.array([value], np.int32) for name, value in numbers.items()}
        layer = self.plugin(ATTENTION, f"{scope}.qkv_to_context", fields, [qkv, mask] if self.options.masked else [qkv])
        return layer.get_output(0)

    def skip_norm(self, x: Any, skip: Any, scope: str) -> Any:
        """LayerNorm(x W + bias + skip): the product of `scope`.dense, then one plugin for the rest."""
        kernel, bias = self.weights[f"{scope}.dense.weight"], self.weights[f"{scope}.dense.bias"]
        fused = self.options.fused_bias
        product = self.dense(x, kernel, None if fused else bias, f"{scope}.dense")
        fields = {
            "type_id": np.array([TYPE_IDS[self.options.precision]], np.int32),
            "ld": np.array([self.config.hidden_size], np.int32),
            "beta": self.weights[f"{scope}.LayerNorm.bias"].astype(np.float32),
            "gamma": self.weights[f"{scope}.LayerNorm.weight"].astype(np.float32),
        }
        if fused:
            fields["bias"] = bias.astype(np.float32)
        return self.plugin(SKIP_NORM, f"{scope}.skip_layernorm", fields, [product, skip]).get_output(0)

    def product(self, x: Any, name: str) -> Any:
        return self.dense(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], name)

    def dense(self, x: Any, kernel: np.ndarray, bias: np.ndarray | None, name: str) -> Any:
        """x kernel^T + bias, kernel [out, in]: a fully connected layer where the version has it, else a 1x1 convolution."""
        outputs, weight = kernel.shape[0], self.weight_of(kernel)
        held = self.trt.Weights() if bias is None else self.weight_of(bias)
        if hasattr(self.network, "add_fully_connected"):  # gone with TensorRT 10
            layer = self.network.add_fully_connected(x, outputs, weight, held)
        else:
            layer = self.network.add_convolution_nd(x, outputs, (1, 1), weight, held)
        layer.name = name
        return layer.get_output(0)

    def gelu(self, x: Any, scope: str) -> Any:
        """Point-wise layers, which TensorRT fuses: x / 2 * (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), or by erf."""
        trt, op = self.trt, self.elementwise
        multiply, add = trt.ElementWiseOperation.PROD, trt.ElementWiseOperation.SUM
        if self.config.activation == "gelu_erf":
            curve = self.network.add_unary(op(x, 1 / np.sqrt(2), multiply, f"{scope}/scale"), trt.UnaryOperation.ERF)
        else:
            cube = op(x, 3.0, trt.ElementWiseOperation.POW, f"{scope}/cube")
            inner = op(x, op(cube, 0.044715, multiply, f"{scope}/cubic"), add, f"{scope}/inner")
            curve = self.network.add_activation(
                op(inner, np.sqrt(2 / np.pi), multiply, f"{scope}/scale"), trt.ActivationType.TANH
            )
        curve.name = f"{scope}/curve"
        gate = op(op(curve.get_output(0), 1.0, add, f"{scope}/shift"), 0.5, multiply, f"{scope}/half")
        return op(x, gate, multiply, f"{scope}/gelu")

    def elementwise(self, x: Any, other: Any, operation: Any, name: str) -> Any:
        if isinstance(other, float | np.floating):
            other = self.network.add_constant((1,) * 5, self.weight_of(np.array([other], np.float32))).get_output(0)
        layer = self.network.add_elementwise(x, other, operation)
        layer.name = name
        return layer.get_output(0)

    def as_float(self, tensor: Any) -> Any:
        layer = self.network.add_cast(tensor, self.trt.float32)
        layer.name = "to_float32"
        return layer.get_output(0)

    def plugin(self, name: str, layer_name: str, fields: dict[str, np.ndarray], inputs: Sequence[Any]) -> Any:
        version, creator = self.creator(name, layer_name)
        kinds = {
            np.dtype(np.float32): self.trt.PluginFieldType.FLOAT32,
            np.dtype(np.int32): self.trt.PluginFieldType.INT32,
        }
        arrays = {key: np.ascontiguousarray(value).reshape(-1) for key, value in fields.items()}
        self.kept += arrays.values()
        listed = self.trt.PluginFieldCollection(
            [self.trt.PluginField(key, array, kinds[array.dtype]) for key, array in arrays.items()]
        )
        legacy = version == VERSIONS[name][-1]
        phase = () if legacy else (self.trt.TensorRTPhase.BUILD,)
        made = creator.create_plugin(layer_name, listed, *phase)
        if made is None:
            raise BuildFailed(f"{name} version {version} refused its fields at layer {layer_name}: {sorted(fields)}")
        layer = (
            self.network.add_plugin_v2(list(inputs), made) if legacy
            else self.network.add_plugin_v3(list(inputs), [], made)
        )  # fmt: skip
        layer.name = layer_name
        return layer

    def creator(self, name: str, layer_name: str) -> tuple[str, Any]:
        """The newest version of a plugin that there is, and what makes it; only TensorRT 10 and later know IPluginV3."""
        find = getattr(self._registry, "get_creator", None) or self._registry.get_plugin_creator
        versions = VERSIONS[name] if hasattr(self.network, "add_plugin_v3") else VERSIONS[name][-1:]
        for version in versions:
            if (creator := find(name, version, "")) is not None:
                return version, creator
        raise BuildFailed(
            f"TensorRT {self.trt.__version__} has no plugin {name} version {' or '.join(versions)}, which layer {layer_name} needs",
            hint="harness.engines.plugins.register adds ours on TensorRT 10 and later; NVIDIA's are in libnvinfer_plugin",
        )

    def weight_of(self, array: np.ndarray) -> Any:
        kept = np.ascontiguousarray(array, np.float32)
        self.kept.append(kept)
        return self.trt.Weights(kept)
