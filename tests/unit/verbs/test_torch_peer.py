"""The peer in PyTorch: on the CPU against our reference, and as a route, its CUDA streams and graphs stood in for."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import numpy as np
import pytest

import numpy_gpu
from harness.bert import calibration, narrowing, run, torch_peer
from harness.bert import model as bert
from harness.bert import reference as bert_reference
from harness.bert.model import BertConfig
from probes.laddering import routes, rungs
from probes.laddering.routes import Job, Measured

torch = pytest.importorskip("torch")

LENGTHS = (20, 3, 11)


@pytest.fixture(params=["gelu_erf", "gelu_tanh"])
def config(request):
    return BertConfig(64, 2, 2, 128, vocab_size=50, max_position=32, activation=request.param)


@pytest.fixture
def weights(config):
    """Random, but as large as trained ones: a layer changes what comes into it."""
    made = bert.random_weights(config)
    return {name: array * (5 if array.ndim == 2 and name.startswith("encoder") else 1) for name, array in made.items()}


def feeds_of(lengths):
    rng = np.random.default_rng(0)
    shape = (len(lengths), max(LENGTHS))
    mask = np.arange(shape[1])[None, :] < np.array(lengths)[:, None]
    return {"input_ids": rng.integers(0, 50, shape), "token_type_ids": rng.integers(0, 2, shape),
            "attention_mask": mask.astype(np.int64)}  # fmt: skip


def error(got, expected, feeds):
    valid = feeds["attention_mask"] != 0
    return np.linalg.norm((got - expected)[valid]) / np.linalg.norm(expected[valid])


@pytest.mark.parametrize("lengths", [LENGTHS, (20, 20, 20)], ids=["masked", "full"])
@pytest.mark.parametrize(("precision", "least", "most"), [("fp32", 0, 3e-6), ("tf32", 0, 3e-6), ("fp16", 1e-4, 5e-3),
                                                          ("bf16", 1e-3, 4e-2)])  # fmt: skip
def test_the_peer_computes_our_encoder(config, weights, lengths, precision, least, most):
    feeds = feeds_of(lengths)
    expected = bert_reference.forward(config, weights, feeds, dtype=np.float64)
    peer = torch_peer.Model(torch, config, weights, precision, "cpu")
    with torch.no_grad():
        inputs = peer.inputs(feeds, "cpu")
        got = peer.forward(*inputs).float().numpy().astype(np.float64)
    assert (inputs[2] is None) == (lengths != LENGTHS)
    assert least <= error(got, expected, feeds) < most


@pytest.fixture
def card(monkeypatch):
    """PyTorch whose CUDA is the CPU: streams do at once what they are given, a graph does it again."""

    class Stream:
        cuda_stream = 0

        def synchronize(self):
            pass

    class Graph:
        def replay(self):
            self.replayed = True

    gpu = numpy_gpu.NumpyGpu().install(monkeypatch)
    for name, stand_in in {
        "Stream": Stream, "CUDAGraph": Graph, "current_stream": Stream, "synchronize": lambda: None,
        "stream": lambda stream: contextlib.nullcontext(), "graph": lambda graph, stream: contextlib.nullcontext(),
        "is_available": lambda: True,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(routes, "CUDA", "cpu")
    monkeypatch.setattr(run, "MOST", run.FEWEST)  # what PyTorch does here takes no time on the stand-in
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda forward, backend: compiled.append(backend) or forward)
    return SimpleNamespace(device=gpu.device, compiled=compiled)


def job_of(config, weights, device, folder):
    feeds = feeds_of(LENGTHS)
    reference = bert_reference.forward(config, weights, feeds, dtype=np.float64)
    return Job(config, weights, feeds, 2, reference, (), calibration.calibrate(config, weights, [feeds]), "max", folder, 0.001,
               device)  # fmt: skip


@pytest.mark.parametrize("name", ["fp32", "tf32", "fp16", "gelu", "graph-fp16", "sparse"])
def test_a_step_of_the_route_is_measured_and_right(card, config, weights, tmp_path, monkeypatch, name):
    job, rung = job_of(config, weights, card.device, tmp_path), rungs.BY_NAME[name]
    pruned = []
    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", lambda tensor: pruned.append(tensor) or tensor)
    found = routes.by_torch(job, rung)
    assert isinstance(found, Measured)
    assert len(found.times_ns) >= 20
    model = narrowing.pruned(weights) if rung.pruned else weights
    expected = bert_reference.forward(config, model, job.feeds, dtype=np.float64)[:2]
    assert error(found.output, expected, job.part()) < (3e-6 if name in ("fp32", "tf32") else 5e-3)
    assert bool(pruned) == rung.pruned
    assert card.compiled == (["inductor"] if name in ("gelu", "graph-fp16") else [])
    assert ("CUDA graph" in found.notes[0]) == rung.graph
    assert not torch.backends.cuda.matmul.allow_tf32
    if pruned:
        assert all(((tensor.reshape(-1, 4) != 0).sum(axis=1) <= 2).all() for tensor in pruned)
        assert len(pruned) == 6 * config.layers


def test_what_pytorch_refuses_is_a_failure_with_its_words(card, config, weights, tmp_path, monkeypatch):
    from harness.errors import LaunchFailed

    def refuse(*_, **__):
        raise RuntimeError("no kernel for this\nand a long trace")

    monkeypatch.setattr(torch_peer.Model, "forward", refuse)
    with pytest.raises(LaunchFailed, match="no kernel for this"):
        routes.by_torch(job_of(config, weights, card.device, tmp_path), rungs.BY_NAME["fp16"])
