"""`probe bisect --backend trt` on a real GPU: overflows found by engines, crashes told, the cache, the GPU usable after."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks.trt_bisect import plant_products
from harness import engine
from harness.bert import model as bert
from harness.engine import BuildOptions
from harness.engines import layers as engine_layers
from harness.engines import trt as engine_trt
from harness.engines.api import read
from harness.models import model as models
from harness.optional import load
from probes import cli
from probes.bisecting.engines.trial import Bench, Trial
from small_models import make_proto, planted_chain

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(importlib.util.find_spec("tensorrt") is None, reason="TensorRT is not installed"),
    pytest.mark.usefixtures("device"),
]
CONFIG = bert.BertConfig(256, 2, 4, 1024, vocab_size=1000, max_position=256)
PRODUCTS = ["/encoder/layer.0/intermediate/dense/MatMul", "/encoder/layer.1/intermediate/dense/MatMul"]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def encoder(here) -> list[str]:
    """bert.onnx with two overflows, and bert.npz; the culprits."""
    bert.save(bert.build_onnx(CONFIG, bert.random_weights(CONFIG)), here / "plain.onnx")
    ids = np.random.default_rng(0).integers(0, 1000, (4, 64))
    np.savez("bert.npz", input_ids=ids, token_type_ids=np.zeros_like(ids), attention_mask=np.ones_like(ids))
    return plant_products(here / "plain.onnx", here / "bert.onnx", PRODUCTS)


def bisect(*words, out="run") -> tuple[int, dict]:
    code = cli.run(["bisect", *map(str, words), "--backend", "trt", "--out", out])
    return code, json.loads((Path(out) / "result.json").read_text())


def trials(out="run") -> list[dict]:
    return [json.loads(line) for line in (Path(out) / "raw/trials/trials.jsonl").read_text().splitlines()]


def test_overflows_are_found_in_few_builds_and_the_second_search_builds_nothing(encoder):
    code, result = bisect("bert.onnx", "--inputs", "bert.npz")
    assert code == 1
    assert result["certified_minimal"]
    assert set(result["culprits"]) <= set(encoder)
    assert {name.split("/")[2] for name in result["culprits"]} == {"layer.0", "layer.1"}
    assert sum(row["built"] for row in trials()) <= 20, [(row["engine"], row["outcome"]) for row in trials()]
    assert any(row["latency_ns"] for row in trials())
    _, again = bisect("bert.onnx", "--inputs", "bert.npz", out="again")
    assert again["culprits"] == result["culprits"]
    assert all(row["cached"] for row in trials("again"))


def test_every_node_has_its_layers(encoder, here):
    loaded = models.load(here / "bert.onnx")
    options = BuildOptions(backend="trt", opt_profiles=dict.fromkeys(bert.INPUTS, ((4, 64),) * 3))
    told = engine_trt.survey(here / "bert.onnx", options, "trt", here)
    owners = engine_layers.attribute(told.layers, engine_layers.makers_of(loaded))
    assert {node.key for node in loaded.nodes if node.op_type in ("MatMul", "Mul", "Softmax")} <= set(owners)
    shared = [layer for layer, owner in zip(told.layers, owners, strict=True) if owner is None]
    assert {layer.kind for layer in shared} <= {"CONSTANT"}, "what belongs to no node holds no arithmetic"


def test_kept_nodes_are_computed_in_fp32(here):
    if read(load("tensorrt")).strong():
        pytest.skip("strongly typed: the model itself says the types")
    onnx.save(planted_chain(), "chain.onnx")
    code, result = bisect("chain.onnx")
    assert set(result["culprits"]) <= {"/layer.4/up", "/layer.4/down"}
    assert code in (0, 1)  # one fused kernel may keep what lies between in registers: then nothing is wrong


def attention(path: Path, layers: int) -> None:
    """NVIDIA's attention plugin, FP16 without a mask: on an H100 with 8.6 it reads out of bounds at S=128."""
    from onnx import TensorProto, helper

    hidden, nodes, last = 768, [], "x"
    for number in range(layers):
        nodes.append(helper.make_node("Concat", [last] * 3, [f"qkv{number}"], name=f"/layer.{number}/Concat", axis=2))
        nodes.append(helper.make_node("CustomQKVToContextPluginDynamic", [f"qkv{number}"], [f"context{number}"], name=f"/layer.{number}/attention",
                                      type_id=1, hidden_size=hidden, num_heads=12, has_mask=0, plugin_version="1"))  # fmt: skip
        last = f"context{number}"
    nodes.append(helper.make_node("Identity", [last], ["y"], name="/end"))
    shape = [128, 4, hidden, 1, 1]
    onnx.save(make_proto(nodes, [("x", TensorProto.FLOAT, shape)], [("y", TensorProto.FLOAT, shape)], {}), path)


def test_a_plugin_that_reads_out_of_bounds_is_named_and_the_gpu_is_usable_after(here):
    if read(load("tensorrt")).version >= (10,):
        pytest.skip("the fault is one of 8.6")
    attention(here / "attention.onnx", 2)
    code, result = bisect("attention.onnx", "--fault", "crash", "--precision", "fp16", "--timeout", 120)
    assert code in (0, 1)
    if code == 1:
        assert set(result["culprits"]) <= {"/layer.0/attention", "/layer.1/attention"}
        assert result["signatures"]
    onnx.save(planted_chain(4, ()), "fine.onnx")
    options = BuildOptions(backend="trt", opt_profiles={"x": ((1, 8),) * 3})
    with engine.build(Path("fine.onnx"), options).runner() as runner:
        assert np.isfinite(runner.infer({"x": np.ones((1, 8), np.float32)})["y"]).all()


def test_an_engine_of_the_cache_is_run_again_on_other_inputs(here):
    onnx.save(planted_chain(4, ()), "fine.onnx")
    np.savez("one.npz", x=np.ones((1, 8), np.float32))
    options = BuildOptions(backend="trt", opt_profiles={"x": ((1, 8),) * 3})
    bench = Bench(here / "trials", cache=here / "cache", facts=(("version", "this"),))
    first = bench.run(Trial(here / "fine.onnx", options, (here / "one.npz",), 20), here / "trials" / "a")
    np.savez("two.npz", x=np.full((1, 8), 2, np.float32))
    second = bench.run(Trial(here / "fine.onnx", options, (here / "two.npz",), 20), here / "trials" / "b")
    assert first.ok
    assert second.ok
    assert first.latency_ns
    assert second.facts["build_s"] == first.facts["build_s"], "it is the same build"
    assert not np.array_equal(first.load()[0]["y"], second.load()[0]["y"])
    assert os.environ.get("CUDA_VISIBLE_DEVICES") is None or bench.gpus == ()
