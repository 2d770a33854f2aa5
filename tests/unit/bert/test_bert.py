"""The BERT builder against a float64 twin written from the formulas, its weights and configurations, and bad files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.bert import model as bert
from harness.bert import safetensors
from harness.bert.model import BertConfig
from harness.errors import ParseError, UsageError
from harness.models import model, submodel
from harness.models.runtime import Runner

SMALL = BertConfig(hidden_size=24, layers=2, heads=3, intermediate_size=40, vocab_size=50, max_position=16)
TOLERANCE = 1e-5  # relative L2, float32 against float64


def _erf(x: np.ndarray) -> np.ndarray:
    return np.vectorize(math.erf)(x)


def _softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


class Twin:
    """The encoder in float64, straight from the formulas: nothing of the builder is used but names of weights."""

    def __init__(self, config: BertConfig, weights: bert.Weights) -> None:
        self.config = config
        self.weights = {name: array.astype(np.float64) for name, array in weights.items()}

    def linear(self, x: np.ndarray, name: str) -> np.ndarray:
        return np.einsum("bsi,oi->bso", x, self.weights[f"{name}.weight"]) + self.weights[f"{name}.bias"]

    def norm(self, x: np.ndarray, name: str) -> np.ndarray:
        normalised = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + self.config.layer_norm_eps)
        return normalised * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def gelu(self, x: np.ndarray) -> np.ndarray:
        if self.config.activation == "gelu_tanh":
            return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        return x / 2 * (1 + _erf(x / math.sqrt(2)))

    def attention(self, x: np.ndarray, bias: np.ndarray, name: str) -> np.ndarray:
        size = self.config.head_size
        q, k, v = (self.linear(x, f"{name}.{part}") for part in ("query", "key", "value"))
        heads = []
        for h in range(self.config.heads):
            part = slice(h * size, (h + 1) * size)
            scores = np.einsum("bse,bte->bst", q[..., part], k[..., part]) / math.sqrt(size) + bias
            heads.append(np.einsum("bst,bte->bse", _softmax(scores), v[..., part]))
        return np.concatenate(heads, -1)

    def __call__(self, feeds: dict[str, np.ndarray], mask_value: float) -> np.ndarray:
        tables = {
            name: self.weights[f"embeddings.{name}_embeddings.weight"] for name in ("word", "token_type", "position")
        }
        x = tables["word"][feeds["input_ids"]] + tables["token_type"][feeds["token_type_ids"]]
        x = self.norm(x + tables["position"][: x.shape[1]], "embeddings.LayerNorm")
        bias = np.where(feeds["attention_mask"][:, None, :] == 1, 0.0, mask_value)
        for layer in range(self.config.layers):
            name = f"encoder.layer.{layer}"
            attended = self.linear(self.attention(x, bias, f"{name}.attention.self"), f"{name}.attention.output.dense")
            x = self.norm(attended + x, f"{name}.attention.output.LayerNorm")
            hidden = self.gelu(self.linear(x, f"{name}.intermediate.dense"))
            x = self.norm(self.linear(hidden, f"{name}.output.dense") + x, f"{name}.output.LayerNorm")
        return x


def feeds_for(config: BertConfig, batch: int, length: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Random ids; every row is padded to another length, and keeps at least one visible position."""
    rng = np.random.default_rng(seed)
    visible = rng.integers(1, length + 1, (batch, 1))
    return {
        "input_ids": rng.integers(0, config.vocab_size, (batch, length)),
        "token_type_ids": rng.integers(0, config.type_vocab, (batch, length)),
        "attention_mask": (np.arange(length)[None] < visible).astype(np.int64),
    }


def lively_weights(config: BertConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights, larger than at the start of training, so that attention and GELU are far from linear."""
    return {name: array * np.float32(8) for name, array in bert.random_weights(config, seed).items()}


def relative_l2(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


def run(proto: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> np.ndarray:
    onnx.checker.check_model(proto, full_check=True)
    result: np.ndarray = Runner(proto, {}, threads=1, optimise=False).run(feeds)[0]
    return result


@pytest.mark.parametrize("activation", ["gelu_erf", "gelu_tanh"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"merged_qkv": True},
        {"layer_norm": "fused"},
        {"opset": 13},
        {"opset": 18, "merged_qkv": True},
        {"opset": 21, "layer_norm": "fused", "merged_qkv": True},
        {"mask_value": -1e9},
        {"mask_value": float(np.finfo(np.float32).min)},
    ],
)
def test_every_variant_agrees_with_the_twin(activation: bert.Activation, options: dict[str, Any]) -> None:
    config = BertConfig(24, 2, 3, 40, vocab_size=50, max_position=16, activation=activation)
    weights, feeds = lively_weights(config), feeds_for(config, batch=3, length=7)
    got = run(bert.build_onnx(config, weights, **options), feeds)
    assert got.dtype == np.float32
    assert relative_l2(got, Twin(config, weights)(feeds, options.get("mask_value", -10000.0))) < TOLERANCE


@settings(max_examples=15, deadline=None)
@given(heads=st.integers(1, 4), size=st.integers(1, 8), layers=st.integers(0, 3), batch=st.integers(1, 3),
       length=st.integers(1, 12), seed=st.integers(0, 99), merged=st.booleans())  # fmt: skip
def test_any_size_batch_and_length_agrees_with_the_twin(
    heads: int, size: int, layers: int, batch: int, length: int, seed: int, merged: bool
) -> None:
    # LayerNorm's epsilon is 1e-3: where E is 1 or 2 the variance can be tiny, and float32 would be compared with noise
    config = BertConfig(heads * size, layers, heads, 2 * size, vocab_size=30, max_position=12, layer_norm_eps=1e-3)
    weights, feeds = lively_weights(config, seed), feeds_for(config, batch, length, seed)
    got = run(bert.build_onnx(config, weights, merged_qkv=merged), feeds)
    assert relative_l2(got, Twin(config, weights)(feeds, -10000.0)) < 1e-4


def test_hidden_positions_do_not_matter() -> None:
    weights, feeds = lively_weights(SMALL), feeds_for(SMALL, batch=1, length=6)
    feeds["attention_mask"][:] = [[1, 1, 1, 1, 0, 0]]
    proto = bert.build_onnx(SMALL, weights)
    short = {name: array[:, :4] for name, array in feeds.items()}
    np.testing.assert_allclose(run(proto, feeds)[:, :4], run(proto, short), atol=1e-5)


def test_nodes_are_named_by_scope_and_all_initialisers_are_read() -> None:
    proto = bert.build_onnx(SMALL, lively_weights(SMALL))
    names = [node.name for node in proto.graph.node]
    assert len(set(names)) == len(names)
    assert "/encoder/layer.1/attention/self/query/MatMul" in names
    assert "/encoder/layer.0/attention/output/LayerNorm/ReduceMean_1" in names
    assert {t.name for t in proto.graph.initializer} <= {name for node in proto.graph.node for name in node.input}


def test_merging_leaves_one_product_for_query_key_and_value() -> None:
    weights = lively_weights(SMALL)
    products = [sum(node.op_type == "MatMul" for node in bert.build_onnx(SMALL, weights, merged_qkv=merged).graph.node)
                for merged in (False, True)]  # fmt: skip
    assert products[0] - products[1] == 2 * SMALL.layers


@pytest.mark.parametrize(
    "options, message",
    [
        ({"opset": 12}, "opset 12"),
        ({"opset": 16, "layer_norm": "fused"}, "needs opset 17"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        bert.build_onnx(SMALL, lively_weights(SMALL), **options)


def test_missing_and_misshapen_weights_are_named() -> None:
    weights = lively_weights(SMALL)
    name = "encoder.layer.1.output.dense.bias"
    with pytest.raises(UsageError, match=f"{name}.*missing"):
        bert.build_onnx(SMALL, {key: value for key, value in weights.items() if key != name})
    with pytest.raises(UsageError, match=rf"{name}.*\(24,\), got \(3,\)"):
        bert.build_onnx(SMALL, weights | {name: np.zeros(3, np.float32)})


def test_random_weights_follow_the_seed() -> None:
    first, same, other = (bert.random_weights(SMALL, seed) for seed in (1, 1, 2))
    name = "encoder.layer.0.intermediate.dense.weight"
    np.testing.assert_array_equal(first[name], same[name])
    assert not np.array_equal(first[name], other[name])
    assert {key: value.shape for key, value in first.items()} == bert.weight_shapes(SMALL)


def test_presets_have_the_published_number_of_weights() -> None:
    counts = {
        name: sum(math.prod(s) for s in bert.weight_shapes(BertConfig.preset(name)).values()) for name in bert.PRESETS
    }
    # without the pooler: base 109,482,240 - (768 * 768 + 768); large 335,141,888 - (1024 * 1024 + 1024)
    assert (counts["base"], counts["large"]) == (108_891_648, 334_092_288)
    with pytest.raises(UsageError, match="no BERT preset 'huge'"):
        BertConfig.preset("huge")


def test_sizes_that_cannot_be_are_refused() -> None:
    with pytest.raises(UsageError, match="no multiple of heads 5"):
        BertConfig(24, 1, 5, 40)
    with pytest.raises(UsageError, match="at least 1"):
        BertConfig(24, 1, 0, 40)


# config.json

HUGGING_FACE = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40, "vocab_size": 50,
    "max_position_embeddings": 16, "type_vocab_size": 2, "layer_norm_eps": 1e-12, "hidden_act": "gelu",
}  # fmt: skip


def test_a_hugging_face_configuration_is_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(HUGGING_FACE))
    assert BertConfig.from_json(path) == SMALL
    path.write_text(json.dumps(HUGGING_FACE | {"hidden_act": "gelu_new"}))
    assert BertConfig.from_json(path).activation == "gelu_tanh"


@pytest.mark.parametrize(
    "change, field",
    [
        ({"hidden_act": "relu"}, "hidden_act"),
        ({"hidden_size": None}, "hidden_size"),
        ({"vocab_size": True}, "vocab_size"),
        ({"layer_norm_eps": "small"}, "layer_norm_eps"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
    ],
)
def test_a_configuration_we_cannot_build_names_the_field(tmp_path: Path, change: dict[str, Any], field: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(HUGGING_FACE | change))
    with pytest.raises(ParseError) as caught:
        BertConfig.from_json(path)
    assert caught.value.field == field


@pytest.mark.parametrize("text", ["", "{", "[]", "\xff"])
def test_a_configuration_that_is_no_json_object_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ParseError, match=r"config\.json"):
        BertConfig.from_json(path)


def test_a_missing_configuration_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        BertConfig.from_json(tmp_path / "none.json")


# safetensors


def write_safetensors(path: Path, arrays: dict[str, np.ndarray], types: dict[str, str] | None = None) -> None:
    """A file in the format, written by hand, so that reading is tested against the format and not against itself."""
    kinds = {"f4": "F32", "f2": "F16", "i8": "I64", "u2": "U16"}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, array in arrays.items():
        kind = (types or {}).get(name, kinds[array.dtype.str[1:]])
        header[name] = {
            "dtype": kind,
            "shape": list(array.shape),
            "data_offsets": [len(data), len(data) + array.nbytes],
        }
        data += array.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def test_tensors_come_back_as_stored(tmp_path: Path) -> None:
    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3), "half": np.array([1.5, -2], np.float16),
        "ids": np.array(7), "none": np.empty((0, 4), np.float32),
    }  # fmt: skip
    write_safetensors(tmp_path / "x.safetensors", arrays)
    got = safetensors.read(tmp_path / "x.safetensors")
    assert got.keys() == arrays.keys()
    for name, array in arrays.items():
        assert got[name].dtype == array.dtype
        np.testing.assert_array_equal(got[name], array)
    assert not got["a"].flags.writeable


def test_the_published_package_agrees(tmp_path: Path) -> None:
    published = pytest.importorskip("safetensors.numpy")
    arrays = bert.random_weights(SMALL)
    published.save_file(arrays, tmp_path / "x.safetensors")
    got = safetensors.read(tmp_path / "x.safetensors")
    assert got.keys() == arrays.keys()
    assert all(np.array_equal(got[name], array) for name, array in arrays.items())


def test_weights_lose_their_old_names_and_become_float32(tmp_path: Path) -> None:
    bfloat16 = np.array([0x3F80, 0xC020, 0x7F80], np.uint16)  # 1, -2.5, infinity
    write_safetensors(
        tmp_path / "x.safetensors",
        {
            "bert.embeddings.LayerNorm.gamma": np.ones(2, np.float16),
            "embeddings.LayerNorm.beta": bfloat16,
            "embeddings.position_ids": np.arange(3),
        },
        {"embeddings.LayerNorm.beta": "BF16"},
    )
    got = bert.read_weights(tmp_path / "x.safetensors")
    assert got.keys() == {"embeddings.LayerNorm.weight", "embeddings.LayerNorm.bias"}
    assert {array.dtype for array in got.values()} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(got["embeddings.LayerNorm.bias"], [1, -2.5, np.inf])


def _file(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "header length"),
        (b"abc", "header length"),
        (_file(b"{}", length=1 << 60), "header length"),
        (_file(b"{]"), "header: expected JSON"),
        (_file(b"[]"), "a JSON object"),
        (_file(b'{"w": 3}'), "'w'"),
        (_file(b'{"w": {"dtype": "F31", "shape": [1], "data_offsets": [0, 4]}}', b"0000"), "dtype"),
        (_file(b'{"w": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}', b"0000"), "whole numbers"),
        (_file(b'{"w": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}', b"0000"), "whole numbers"),
        (_file(b'{"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}', b"0000"), "8 bytes"),
        (_file(b'{"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', b"000"), "cut off"),
        (_file(b'{"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}'), "cut off"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(ParseError, match=message):
        safetensors.read(path)


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        bert.read_weights(tmp_path / "none.safetensors")


# Saving


@pytest.mark.parametrize("external", [False, True])
def test_a_saved_model_gives_the_same_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, external: bool) -> None:
    if external:
        monkeypatch.setattr(submodel, "INLINE_LIMIT", 0)
    config = BertConfig(64, 1, 2, 64, vocab_size=200, max_position=16)
    weights, feeds = lively_weights(config), feeds_for(config, batch=2, length=5)
    expected = run(bert.build_onnx(config, weights), feeds)
    for _ in range(2):  # the second time over the first
        path = bert.save(bert.build_onnx(config, weights), tmp_path / "bert.onnx")
    assert (tmp_path / "bert.onnx.data").exists() == external
    loaded = model.load(path)
    np.testing.assert_array_equal(
        Runner(loaded.proto, loaded.weights, threads=1, optimise=False).run(feeds)[0], expected
    )
    stored = sum(file.stat().st_size for file in tmp_path.iterdir())
    assert stored < 1.5 * sum(w.nbytes for w in weights.values())
