"""The encoder as one plan on the GPU: every step as right as its precision, and the same as the emulation's."""

from __future__ import annotations

import numpy as np
import pytest

from harness.bert import calibration
from harness.bert import model as bert
from harness.bert import plan as bert_plan
from harness.bert import reference as bert_reference
from harness.bert import torch_peer as bert_torch
from harness.bert.model import BertConfig
from harness.bert.plan import PlanOptions
from harness.bert.run import OnGpu, emulate
from probes.laddering import rungs
from probes.laddering import running as laddering
from probes.laddering.rungs import RUNGS

CONFIG = BertConfig(256, 3, 4, 512, vocab_size=200, max_position=128)
LENGTHS = (70, 128, 1, 33)
LATER = ("sparse", "int4")  # their error is what it is


@pytest.fixture(scope="module")
def weights():
    made = bert.random_weights(CONFIG)
    return {name: array * (4 if array.ndim == 2 and name.startswith("encoder") else 1) for name, array in made.items()}


@pytest.fixture(scope="module")
def feeds():
    shape = (len(LENGTHS), max(LENGTHS))
    mask = np.arange(shape[1])[None, :] < np.array(LENGTHS)[:, None]
    ids = np.random.default_rng(2).integers(0, CONFIG.vocab_size, shape)
    return {"input_ids": ids, "token_type_ids": np.zeros(shape, np.int64), "attention_mask": mask.astype(np.int64)}


@pytest.fixture(scope="module")
def known(weights, feeds):
    reference = bert_reference.forward(CONFIG, weights, feeds, dtype=np.float64)
    return reference, calibration.calibrate(CONFIG, weights, [feeds]).scales("max")


def made_of(weights, known, capability, **options):
    return bert_plan.build(CONFIG, weights, PlanOptions(
        batch=len(LENGTHS), sequence=max(LENGTHS), lengths=LENGTHS, capability=capability, **options), known[1])  # fmt: skip


def error(got, expected, feeds):
    valid = feeds["attention_mask"] != 0
    return np.linalg.norm((got - expected)[valid]) / np.linalg.norm(expected[valid])


@pytest.mark.parametrize(
    "rung", [rung for rung in RUNGS if rung.name not in LATER and not rung.graph], ids=lambda r: r.name
)
def test_a_step_is_right(device, weights, feeds, known, rung):
    made = made_of(weights, known, device.facts.compute_capability, **rungs.options_of(rung))
    got = made.output(OnGpu(made, feeds, device).read())
    assert error(got, known[0], feeds) <= rungs.bound_of(rung)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_the_gpu_and_the_emulation_agree(device, weights, feeds, known, precision):
    """On the same instructions (8.0's), up to the order of float32 sums: far less than the precision's own error."""
    made = made_of(weights, known, (8, 0), precision=precision, int8_attention=precision == "int8")
    ours, theirs = made.output(OnGpu(made, feeds, device).read()), made.output(emulate(made, feeds).arrays)
    assert error(ours, theirs, feeds) < {"fp16": 2e-3, "int8": 3e-2}[precision]


def test_a_graph_gives_what_launches_give_and_every_operation_has_a_time(device, weights, feeds, known):
    made = made_of(weights, known, device.facts.compute_capability, packed=True)
    ran = OnGpu(made, feeds, device)
    before = made.output(ran.read())
    assert min(ran.times(0.01, graph=True)) > 0
    assert min(ran.times(0.01, graph=False)) > 0
    np.testing.assert_array_equal(made.output(ran.read()), before)
    assert set(ran.operation_times(0.01)) == {one.name for one in made.operations}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_peer_computes_the_same(device, weights, feeds, known, precision):
    torch = pytest.importorskip("torch")
    model = bert_torch.Model(torch, CONFIG, weights, precision, "cuda")
    with torch.no_grad():
        inputs = model.inputs(feeds, "cuda")
        replay, _, output = bert_torch.as_graph(torch, lambda: model.forward(*inputs))
        replay()
        torch.cuda.synchronize()
    got = output.float().cpu().numpy().astype(np.float64)
    assert error(got, known[0], feeds) < {"fp32": 1e-4, "fp16": 2e-2}[precision]


def test_the_ladder_on_the_card(device, tmp_path):
    asked = laddering.Settings("tiny", batch=4, sequence=64, lengths="uniform", routes=("kernels",), seconds=0.02,
                               out=tmp_path / "s")  # fmt: skip
    made = laddering.climb(asked)
    assert made.exit_code == 0, [
        (row["rung"], row["status"], row["relative_l2"], row["note"]) for row in made.document["rungs"]
    ]
    timed = [row for row in made.document["rungs"] if row["rung"] != "sparse"]
    assert all(row["latency_ns"]["median"] for row in timed)
    assert (made.session.folder / "report.html").is_file()
