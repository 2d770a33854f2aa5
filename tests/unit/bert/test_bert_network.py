"""The network API route: what is asked of TensorRT, held against a recorder that stands in for it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from harness.bert import model as bert
from harness.bert import network as bert_network
from harness.bert.network import ATTENTION, EMBEDDING, SKIP_NORM, NetworkOptions
from harness.errors import BuildFailed, UsageError

CONFIG = bert.BertConfig(hidden_size=12, layers=2, heads=3, intermediate_size=20, vocab_size=7, max_position=5)


class Recorder:
    """Answers every call of the network and of the plugin registry, and remembers it."""

    def __init__(self, creators: bool = True, v3: bool = False) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], SimpleNamespace]] = []
        self.plugins: dict[str, tuple[str, str, dict[str, np.ndarray], list[Any]]] = {}
        self.marked: list[Any] = []
        self._creators = creators
        enum = SimpleNamespace
        if v3:
            self.add_plugin_v3 = lambda inputs, shapes, made: self.add_plugin_v2(inputs, made)
        self.trt = SimpleNamespace(
            __version__="8.6.1", int32="int32", float32="float32", Permutation=list, Weights=lambda array=None: array,
            ElementWiseOperation=enum(PROD="prod", SUM="sum", POW="pow"), UnaryOperation=enum(ERF="erf"),
            ActivationType=enum(TANH="tanh"), PluginFieldType=enum(FLOAT32="f", INT32="i"), TensorRTPhase=enum(BUILD="build"),
            PluginField=lambda name, array, kind: (name, array, kind), PluginFieldCollection=list,
            get_plugin_registry=lambda: SimpleNamespace(get_plugin_creator=self.creator),
        )  # fmt: skip

    def creator(self, name: str, version: str, namespace: str) -> Any:
        if not self._creators:
            return None
        return SimpleNamespace(
            create_plugin=lambda layer, fields, *phase: (name, version, {f[0]: f[1] for f in fields})
        )

    def add_input(self, name: str, dtype: str, shape: tuple[int, ...]) -> Any:
        return SimpleNamespace(name=name)

    def add_plugin_v2(self, inputs: list[Any], made: Any) -> Any:
        layer = self._layer("plugin", (inputs, made))
        name, version, fields = made
        layer.on_name = lambda layer_name: self.plugins.update({layer_name: (name, version, fields, inputs)})
        return layer

    def mark_output(self, tensor: Any) -> None:
        self.marked.append(tensor)

    def __getattr__(self, method: str) -> Any:
        if not method.startswith("add_") or method == "add_plugin_v3":
            raise AttributeError(method)
        return lambda *arguments: self._layer(method, arguments)

    def _layer(self, method: str, arguments: tuple[Any, ...]) -> Any:
        tensors = [SimpleNamespace(name="", of=method), SimpleNamespace(name="", of=method)]
        layer = _Named(get_output=tensors.__getitem__, set_output_type=lambda *_: None)
        self.calls.append((method, arguments, layer))
        return layer


class _Named(SimpleNamespace):
    """A layer that tells the recorder when it is given its name."""

    def __setattr__(self, key: str, value: Any) -> None:
        super().__setattr__(key, value)
        if key == "name" and hasattr(self, "on_name"):
            self.on_name(value)


def populate(recorder: Recorder, options: NetworkOptions | None = None) -> dict[str, np.ndarray]:
    weights = bert.random_weights(CONFIG, seed=3)
    bert_network.populate(CONFIG, weights, options)(recorder.trt, recorder)
    return weights


def test_plugins_carry_the_names_versions_and_fields_of_nvidias_creators() -> None:
    recorder = Recorder()
    weights = populate(recorder)
    assert [(name, version) for name, version, _, _ in recorder.plugins.values()] == [
        (EMBEDDING, "1"), *[(ATTENTION, "1"), (SKIP_NORM, "1"), (SKIP_NORM, "1")] * CONFIG.layers,
    ]  # fmt: skip
    _, _, fields, inputs = recorder.plugins["embeddings"]
    words = fields["bert_embeddings_word_embeddings"]
    assert words.dtype == np.float32
    assert words.shape == (7 * 12,)
    assert np.array_equal(words.reshape(7, 12), weights["embeddings.word_embeddings.weight"])
    assert fields["output_fp16"] == fields["mha_type_id"] == 1
    assert len(inputs) == 3
    _, _, fields, inputs = recorder.plugins["encoder.layer.1.attention.self.qkv_to_context"]
    assert {key: int(value[0]) for key, value in fields.items()} == {
        "type_id": 1, "hidden_size": 12, "num_heads": 3, "has_mask": 1,
    }  # fmt: skip
    assert len(inputs) == 2
    _, _, fields, _ = recorder.plugins["encoder.layer.0.output.skip_layernorm"]
    assert np.array_equal(fields["bias"], weights["encoder.layer.0.output.dense.bias"])
    assert [tensor.name for tensor in recorder.marked] == [bert.OUTPUT]


def test_without_a_mask_attention_reads_one_tensor() -> None:
    recorder = Recorder()
    populate(recorder, NetworkOptions(masked=False))
    _, _, fields, inputs = recorder.plugins["encoder.layer.0.attention.self.qkv_to_context"]
    assert fields["has_mask"] == 0
    assert len(inputs) == 1


def test_bias_stays_in_the_product_if_it_is_not_fused() -> None:
    recorder = Recorder()
    weights = populate(recorder, NetworkOptions(fused_bias=False))
    assert "bias" not in recorder.plugins["encoder.layer.0.output.skip_layernorm"][2]
    dense = {layer.name: arguments for method, arguments, layer in recorder.calls if method == "add_fully_connected"}
    assert np.array_equal(dense["encoder.layer.0.output.dense"][3], weights["encoder.layer.0.output.dense.bias"])


def test_the_merged_product_is_query_key_and_value_of_each_head_side_by_side() -> None:
    weights = bert.random_weights(CONFIG, seed=4)
    scope, heads, size = "encoder.layer.0.attention.self", CONFIG.heads, CONFIG.head_size
    kernel, bias = bert_network.merged_qkv(CONFIG, weights, scope)
    x = np.random.default_rng(0).standard_normal((5, CONFIG.hidden_size))
    merged = (x @ kernel.T + bias).reshape(5, heads, 3, size)
    for place, part in enumerate(("query", "key", "value")):
        alone = x @ weights[f"{scope}.{part}.weight"].T + weights[f"{scope}.{part}.bias"]
        np.testing.assert_allclose(merged[:, :, place], alone.reshape(5, heads, size), rtol=1e-6)


def test_a_missing_plugin_is_told_with_its_layer() -> None:
    with pytest.raises(BuildFailed, match=rf"no plugin {EMBEDDING} version 1.*embeddings"):
        populate(Recorder(creators=False))


def test_weights_that_do_not_fit_are_refused_before_tensorrt_is_asked() -> None:
    with pytest.raises(UsageError, match="is missing"):
        bert_network.populate(CONFIG, {})


def test_tensorrt_10_is_asked_for_the_versions_of_iplugin_v3() -> None:
    recorder = Recorder(v3=True)
    populate(recorder)
    versions = {name: version for name, version, _, _ in recorder.plugins.values()}
    assert versions == {EMBEDDING: "6", ATTENTION: "4", SKIP_NORM: "5"}
