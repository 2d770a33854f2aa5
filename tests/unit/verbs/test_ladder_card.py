"""The ladder's GPU route on a GPU that computes on the CPU: every line of it, with results that are compared."""

from __future__ import annotations

import json
import signal
from dataclasses import replace

import numpy as np
import pytest

import numpy_gpu
from benchmarks import ladder as benchmark
from harness.bert import floors
from harness.bert import model as bert
from harness.bert import plan as bert_plan
from harness.bert.model import BertConfig
from harness.bert.plan import PlanOptions
from harness.bert.run import OnGpu
from harness.cuda import cublaslt
from probes.kernels import benching as kernel_benching
from probes.kernels.benching import Roofs
from probes.laddering import fusion as fusion_laddering
from probes.laddering import routes as ladder_routes
from probes.laddering import running as laddering

CONFIG = BertConfig(64, 1, 2, 128, vocab_size=50, max_position=32)
SIZES = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 128, "vocab_size": 50,
         "max_position_embeddings": 32, "type_vocab_size": 2, "layer_norm_eps": 1e-12}  # fmt: skip
LAUNCH_NS = 1e6 * numpy_gpu.LAUNCH_MS
STEPS = ("fp32", "gelu", "residual", "varlen", "sparse", "int8-attention", "graph")


@pytest.fixture
def card(monkeypatch):
    made = numpy_gpu.NumpyGpu().install(monkeypatch)
    monkeypatch.setattr(laddering, "device_here", lambda: made.device)
    monkeypatch.setattr(fusion_laddering, "device_here", lambda: made.device)
    monkeypatch.setattr(kernel_benching, "PRODUCT", 32)
    yield made
    assert made.failures == []


@pytest.fixture
def settings(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(SIZES))
    return laddering.Settings(str(tmp_path / "config.json"), batch=3, sequence=16, lengths="uniform", routes=("kernels",),
                              steps=STEPS, seconds=1e-6, out=tmp_path / "s")  # fmt: skip


def test_every_step_is_right_timed_and_set_against_its_floor(card, settings):
    made = laddering.climb(settings)
    rows = {row["rung"]: row for row in made.document["rungs"]}
    assert tuple(rows) == STEPS
    assert made.exit_code == 0, [(row["rung"], row["status"], row["relative_l2"], row["note"]) for row in rows.values()]
    for name, row in rows.items():
        assert row["relative_l2"] > (1e-9 if name == "fp32" else 1e-5), "no other result than float64's own"
        assert len(row["layers"]) == 1
        if name == "sparse":
            assert row["latency_ns"]["median"] is None
            continue
        launches = sum(one["launches"] for one in row["operations"])
        assert row["latency_ns"]["median"] == pytest.approx(launches * LAUNCH_NS)
        assert sum(one["total_ns"] for one in row["operations"]) == pytest.approx(launches * LAUNCH_NS, rel=1e-3)
        assert sum(one["bound_ns"] for one in row["operations"]) == pytest.approx(row["bound_ns"])
        assert row["roofline_pct"] == pytest.approx(100 * row["bound_ns"] / row["latency_ns"]["median"])
    assert rows["varlen"]["flops"] < 0.75 * rows["gelu"]["flops"]
    assert rows["residual"]["bytes"] < rows["gelu"]["bytes"]
    assert rows["graph"]["speedup_total"] == pytest.approx(
        rows["fp32"]["latency_ns"]["median"] / rows["graph"]["latency_ns"]["median"]
    )
    assert (made.session.folder / "report.html").is_file()


def test_a_graph_computes_what_launches_compute(card):
    feeds = {"input_ids": np.arange(16).reshape(2, 8), "token_type_ids": np.zeros((2, 8), np.int64),
             "attention_mask": np.ones((2, 8), np.int64)}  # fmt: skip
    made = bert_plan.build(
        CONFIG, bert.random_weights(CONFIG), PlanOptions(batch=2, sequence=8, residual_in_product=True)
    )
    ran = OnGpu(made, feeds, card.device)
    expected = made.output(ran.read())
    graph, stream = ran.placed.graph(), card.device.stream()
    for buffer in made.plan.buffers:
        if buffer.role != "in":
            card.device.fill(ran.placed.buffers.addresses[buffer.name], 0xFF, 8)
    graph.launch(stream.handle)
    found = {name: array for name, array in ran.placed.read().items() if name == "x"}
    np.testing.assert_array_equal(made.output(found), expected)
    assert ran.memory_bytes == made.weight_bytes + made.activation_bytes
    assert set(ran.operation_times(1e-6)) == {one.name for one in made.operations}


def test_tuning_reads_every_weight_from_another_place(card):
    cublaslt._TUNED.clear()
    gemm = bert_plan.Gemm(
        *(bert_plan.Pointer(name) for name in "abd"), 4, 16, 32, "float16", "float16", c=bert_plan.Pointer("d")
    )
    operands = cublaslt._Operands(card.device, gemm)
    a, b, c, d, bias = zip(*operands.addresses, strict=True)
    assert len(set(b)) == len(b) == cublaslt.TUNING_LAUNCHES
    assert all(address % 256 == 0 for address in b)
    assert (len(set(a)), c, set(bias)) == (1, d, {None})
    large = replace(gemm, n=4096, k=4096)
    assert len(cublaslt._Operands(card.device, large).addresses) == 4  # 32 MiB each, twice a cache of 50


def test_the_fusion_exercise_forks_and_joins_its_streams(card, tmp_path):
    made = fusion_laddering.climb(fusion_laddering.Asked(1e-6, out=tmp_path / "s"))
    rows = made.document["rungs"]
    assert made.exit_code == 0
    assert [row["latency_ns"]["median"] for row in rows] == pytest.approx([5e3, 3e3, 3e3, 1e3])
    assert [row["speedup_total"] for row in rows] == pytest.approx([1, 5 / 3, 5 / 3, 5])


def test_the_benchmark_measures_checks_and_says_what_it_left_out(card, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "gpu", type("Gpu", (), {"get": staticmethod(lambda: card.device)}))
    monkeypatch.setattr(bert, "PRESETS", {"base": CONFIG})
    benchmark.model.cache_clear()
    benchmark.known.cache_clear()
    monkeypatch.setattr(benchmark, "SECONDS", 1e-6)
    work = benchmark.Workload("base B2 S8", "base", 2, 8)
    forms = [*benchmark.OURS[1:2], *benchmark.INT8[1:], benchmark.Variant("peer", peer="eager")]
    monkeypatch.setattr(benchmark, "JOBS", [(work, one) for one in forms])
    rows = list(benchmark.run(60, ""))
    assert [row.get("error", 1) < 2e-2 for row in rows] == [True, True, False]
    assert rows[0]["median_ms"] == pytest.approx(8e-3)
    assert rows[2]["note"].startswith("failed: ")
    assert list(benchmark.run(1, "INT8"))[0]["note"] == "skipped: the time is up"  # noqa: RUF015
    shown = capsys.readouterr().out
    assert "FC2 product" in shown
    assert "took us" in shown
    assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL


# What is needed at the least


def test_floors_by_hand():
    config = BertConfig(64, 2, 2, 128, vocab_size=50, max_position=32)
    made = bert_plan.build(config, bert.random_weights(config), PlanOptions(batch=2, sequence=32))
    rows = {one.operation: one for one in floors.floors(made, Roofs(1e9, {"fp16": 1e9}))}
    tokens, e, f = 64, 64, 128
    wide = rows["FC1 product"]
    assert (wide.count, wide.launches, wide.blocks) == (2, 2, 1)
    assert wide.flops == 2 * 2 * tokens * e * f
    assert wide.bytes == 2 * 2 * (tokens * e + e * f + f + tokens * f)
    assert wide.bound_ns == pytest.approx(max(wide.bytes, wide.flops))
    assert rows["skip + layernorm"].count == 4
    assert rows["attention"].blocks == 2 * 2
    assert sum(one.launches for one in rows.values()) == len(made.plan.steps)
    assert all(one.bound_ns is None for one in floors.floors(made, None))
    assert floors.bound_ns(made, None) is None


@pytest.mark.parametrize(("precision", "rate"), [("tf32", 50.0), ("bf16", 100.0), ("fp16", 100.0)])
def test_a_rate_that_was_not_measured_follows_from_fp16s(precision, rate):
    made = bert_plan.build(
        CONFIG, bert.random_weights(CONFIG), PlanOptions(precision, batch=1, sequence=8, fused_gelu=precision != "tf32")
    )
    row = next(one for one in floors.floors(made, Roofs(1e30, {"fp16": 100.0})) if one.operation == "FC2 product")
    assert row.bound_ns == pytest.approx(row.flops / rate * 1e9)


def test_nothing_is_converted_around_int8_attention(tmp_path):
    names = {}
    for fused in (False, True):
        made = bert_plan.build(CONFIG, bert.random_weights(CONFIG), PlanOptions("int8", batch=1, sequence=8, int8_attention=fused),
                               laddering.calibration.calibrate(CONFIG, bert.random_weights(CONFIG), [{
                                   name: np.ones((1, 8), np.int64) for name in bert.INPUTS}]).scales("max"))  # fmt: skip
        names[fused] = [one.name for one in made.operations].count("quantise")
    assert names == {False: 3, True: 1}


def test_frameworks_that_see_no_gpu_are_said_to_once(card, monkeypatch):
    monkeypatch.setattr(ladder_routes.optional, "present", lambda library: library.module)
    monkeypatch.setattr(
        ladder_routes.optional,
        "load",
        lambda *_: type("Torch", (), {"cuda": type("C", (), {"is_available": staticmethod(lambda: False)})}),
    )
    absent = ladder_routes._load(type("J", (), {"device": card.device}), "torch", "")
    assert (absent.status, absent.whole, absent.note) == ("not available", True, "torch sees no GPU")
