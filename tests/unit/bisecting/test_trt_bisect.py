"""Searches by engines without engines: the search, the cache, who a layer belongs to, what stands for a plugin, how a trial ended."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
import multiprocessing
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from harness.engines.building import normalise
from harness.engines.cache import EngineCache, digest
from harness.engines.layers import LayerFact, attribute, makers_of
from harness.engines.options import BuildOptions
from harness.errors import UsageError
from harness.models.emulate import lowerable
from harness.models.model import from_proto
from harness.models.precision import Precision
from harness.models.runtime import Runner
from harness.record import Answer, Command, Outcome, ToolRun
from kernels import reference
from probes.bisecting import suspicion as suspicions
from probes.bisecting.around import around
from probes.bisecting.candidates import from_nodes
from probes.bisecting.engines import plugins as trt_plugins
from probes.bisecting.engines import suspects as trt_suspects
from probes.bisecting.engines.faults import changes_of, routes_of
from probes.bisecting.engines.parts import readers_of
from probes.bisecting.engines.recipes import Change, Lowering, Materialising, Switching, Tried, described, frozen
from probes.bisecting.engines.search import first_cure
from probes.bisecting.engines.trial import Bench, Result, Trial, _ended, signature, visible_gpus
from probes.bisecting.recipes import Lowered
from probes.bisecting.search import drive
from reports.figures.bisection import draw_latencies, pareto
from reports.schema import read_trial
from small_models import make_model, planted_chain

F = TensorProto.FLOAT
PASS, FAIL, UNRESOLVED = Answer(Outcome.PASS), Answer(Outcome.FAIL), Answer(Outcome.UNRESOLVED)

# The search


class Oracle:
    """Fails with any culprit applied (`pairs`: or with both of a pair); counts the questions that are new."""

    def __init__(self, culprits=(), pairs=()) -> None:
        self.culprits, self.pairs, self.answers = frozenset(culprits), pairs, {}

    def __call__(self, query):
        if query not in self.answers:
            bad = self.culprits & query or any(set(pair) <= query for pair in self.pairs)
            self.answers[query] = Answer(Outcome.FAIL, math.inf) if bad else Answer(Outcome.PASS, 0.0)
        return self.answers[query]


def test_a_suspicion_that_is_right_costs_one_question_and_one_for_each():
    ask = Oracle({30, 31, 180, 181, 300, 301})
    found = drive(around(range(400), (30, 31, 180, 181, 300, 301), {}), ask)
    assert found.kept == (30, 31, 180, 181, 300, 301)
    assert found.certified
    assert len(ask.answers) == 8


def test_a_suspicion_that_is_too_wide_is_narrowed_to_what_is_needed():
    found = drive(around(range(100), (3, 4, 5), {}), Oracle({4}))
    assert found.kept == (4,)
    assert found.applied == frozenset(range(100)) - {4}


LAYERS, NODES = 12, 623  # of BERT-base, a fault in each of three layers
PLACES = [range(20 + 51 * layer, 23 + 51 * layer) for layer in range(LAYERS)]  # three nodes of a layer


@pytest.mark.parametrize(
    "of, suspected, most", [((0, 2), (0, 2), 9), ((0, 1, 2), (0, 1, 2), 12), ((0, 2), (0, 1, 2), 17), ((1,), (0, 1, 2), 15)],
    ids=["scale and unscale", "the product between them, too", "all suspected", "all suspected, the product alone to blame"],
)  # fmt: skip
def test_three_faults_in_any_layers_of_bert_take_few_builds(of, suspected, most):
    """The FP32 engine counted. A suspicion that is too narrow is widened before the search, by what engines show."""
    for layers in itertools.combinations(range(LAYERS), 3):
        culprits = {PLACES[layer][node] for layer in layers for node in of}
        ask = Oracle(culprits)
        found = drive(around(range(NODES), [PLACES[at][node] for at in layers for node in suspected], {}), ask)
        assert set(found.kept) == culprits
        assert len({*ask.answers, frozenset()}) <= most


@given(st.sets(st.integers(0, 39), max_size=6), st.sets(st.integers(0, 39), max_size=14), st.data())
def test_whatever_is_suspected_the_culprits_are_found_and_certified(culprits, suspects, data):
    sensitivity = {c: data.draw(st.floats(0, 1)) for c in range(40)}
    ask = Oracle(culprits)
    found = drive(around(range(40), suspects, sensitivity), ask)
    assert set(found.kept) == culprits
    assert found.certified
    assert ask(found.applied).outcome is Outcome.PASS
    assert all(ask(found.applied | {c}).outcome is Outcome.FAIL for c in found.kept)


def test_what_fails_only_together_is_kept_but_once_and_the_dear_one_is_lowered():
    costs = {5: 1.0, 9: 100.0}
    found = drive(around(range(12), (5, 9), {}, costs), Oracle(pairs=[(5, 9)]))
    assert found.kept == (5,), "9 is dear to keep: it was asked about first"
    assert drive(around(range(12), (5, 9), {}, {5: 100.0, 9: 1.0}), Oracle(pairs=[(5, 9)])).kept == (9,)


def test_a_culprit_that_cannot_be_judged_is_undecided():
    def ask(query):
        return UNRESOLVED if 7 in query else PASS

    found = drive(around(range(10), (7,), {}), ask)
    assert (found.kept, found.undecided, found.certified) == ((7,), (7,), False)


def test_nothing_to_find_is_one_question():
    ask = Oracle()
    assert drive(around(range(50), (3,), {}), ask).kept == ()
    assert len(ask.answers) == 1


def test_the_first_change_that_cures_alone_is_taken():
    def ask(query):  # 2 must be made
        return PASS if 2 not in query else FAIL

    found = drive(first_cure(range(5)), ask)
    assert (found.kept, found.certified) == ((2,), True)
    assert found.applied == frozenset({0, 1, 3, 4})


def test_changes_that_cure_together_and_of_a_group_only_one():
    asked = []

    def ask(query):  # 2 and 3 must be made; 0 and 1 are of a group with 2, and must not be made with it
        asked.append(query)
        return PASS if not {2, 3} & query and {0, 1} <= query else FAIL

    found = drive(first_cure(range(5), [(0, 1, 2)]), ask)
    assert (found.kept, found.certified) == ((2, 3), True)
    assert drive(first_cure(range(3)), lambda query: FAIL).undecided == (0, 1, 2)


# The cache


def test_an_entry_is_written_whole_and_the_oldest_goes_first(tmp_path):
    cache = EngineCache(tmp_path / "cache", limit_bytes=2500)
    assert cache.read("a") is None
    for number, key in enumerate("abc"):
        plan = tmp_path / "engine.plan"
        plan.write_bytes(bytes(1000))
        cache.write(key, {"number": number}, [plan])
        time.sleep(0.02)
        if key == "b":
            assert cache.read("a") == {"number": 0}  # was read, so b is older now
            time.sleep(0.02)
    assert cache.read("b") is None
    assert cache.read("a") == {"number": 0}
    assert cache.file("c", "engine.plan").stat().st_size == 1000
    assert not plan.exists()
    cache.write("a", {"number": 9})
    assert cache.read("a") == {"number": 0}, "what is there already stays"


def test_a_torn_entry_is_none(tmp_path):
    cache = EngineCache(tmp_path)
    cache.write("a", {"x": 1})
    (tmp_path / "a" / "entry.json").write_text('{"x": ')
    assert cache.read("a") is None


def test_a_digest_tells_parts_apart(tmp_path):
    (tmp_path / "f").write_bytes(b"ab")
    assert digest("a", "b") != digest("ab")
    assert digest(tmp_path / "f") == digest("ab")


def _hold(root, order):
    with EngineCache(root).locked("k"):
        order.append("child")


def test_a_lock_keeps_others_out(tmp_path):
    with multiprocessing.get_context("spawn").Manager() as manager:
        order = manager.list()
        with EngineCache(tmp_path).locked("k"):
            other = multiprocessing.get_context("spawn").Process(target=_hold, args=(tmp_path, order))
            other.start()
            time.sleep(0.5)
            order.append("parent")
        other.join()
        assert list(order) == ["parent", "child"]


# Layers and nodes


def test_a_layer_belongs_to_the_node_whose_tensor_it_makes_by_name_or_to_its_only_reader():
    model = make_model(
        [helper.make_node("Mul", ["x", "c"], ["a"], name="scale"), helper.make_node("Gemm", ["a", "w", "c"], ["b"], name="dense"),
         helper.make_node("Relu", ["b"], ["y"])], [("x", F, [2, 2])], [("y", F)], {"c": np.ones(2, np.float32), "w": np.ones((2, 2), np.float32)},
    )  # fmt: skip
    layers = [
        LayerFact("(Unnamed Layer* 0) [Constant]", "CONSTANT", makes=("c1",)),
        LayerFact("ONNXTRT_Broadcast", "SHUFFLE", reads=("c1",), makes=("c2",)),
        LayerFact("scale", "ELEMENTWISE", reads=("x", "c2"), makes=("a",)),
        LayerFact("both", "CONSTANT", makes=("s",)),
        LayerFact("(Unnamed Layer* 3) [Matrix Multiply]", "MATRIX_MULTIPLY", ("dense",), ("a", "s"), ("t1",)),
        LayerFact("dense_7", "ELEMENTWISE", reads=("t1", "s"), makes=("t2",)),
        LayerFact("other name", "SHUFFLE", reads=("t2",), makes=("b",)),
        LayerFact("node_of_y", "ACTIVATION", reads=("b", "s"), makes=("y_renamed",)),
    ]
    owners = attribute(layers, makers_of(model))
    assert owners == ["scale", "scale", "scale", None, "dense", "dense", "dense", "y"]


def test_what_a_branch_makes_belongs_to_the_if():
    body = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["inner"])], "b", [], [helper.make_tensor_value_info("inner", F, None)]
    )
    other = helper.make_graph(
        [helper.make_node("Abs", ["x"], ["inner2"])], "c", [], [helper.make_tensor_value_info("inner2", F, None)]
    )
    node = helper.make_node("If", ["p"], ["y"], name="choose", then_branch=body, else_branch=other)
    model = make_model([node], [("x", F, [2]), ("p", TensorProto.BOOL, [])], [("y", F)], {})
    assert makers_of(model) == {"inner": "choose", "inner2": "choose", "y": "choose"}


# What queries make of the options


def test_lowering_nothing_is_fp32_and_else_the_rest_is_held():
    lowering = Lowering(((0, "a"), (1, "b")), "fp16")
    assert lowering.options(BuildOptions(), frozenset()).precision == "fp32"
    options = lowering.options(BuildOptions(), frozenset({0}))
    assert (options.precision, options.layer_precisions) == ("fp16", {"b": "fp32"})
    assert described(options) == "FP16, 1 nodes in FP32"
    assert lowering.options(BuildOptions(), frozenset({0, 1})).layer_precisions == {}


def test_materialising_marks_what_is_not_free():
    assert Materialising(("s", "t")).options(BuildOptions(), frozenset({0})).outputs == ("t",)
    assert Materialising(("s", "t"), debug=True).options(BuildOptions(), frozenset()).debug_tensors == ("s", "t")


def test_switches_become_options():
    changes = (
        Change("tactic", "CUDNN", ""),
        Change("level", "4", ""),
        Change("level", "1", ""),
        Change("route", "-a=1", ""),
        Change("route", "-b=2", ""),
    )
    made = Switching(changes).options(BuildOptions(), frozenset())
    assert made.tactic_sources == ("-CUDNN",)
    assert (made.optimisation_level, made.build_route) == (1, "-a=1 -b=2")
    assert Switching(changes).options(BuildOptions(), frozenset(range(5))) == BuildOptions()


def test_the_optimiser_s_switches_are_read_off_its_description():
    text = json.dumps({"tuner_version": "1", "tuner_options": [
        {"option": "-fuse", "allowed_values": "[on|off|auto]", "default_value": "on"},
        {"option": "-size", "allowed_values": "[1...64]", "default_value": "8"}]})  # fmt: skip
    assert routes_of(text) == ["-fuse=off", "-fuse=auto"]
    assert routes_of("") == routes_of("no json") == routes_of("[]") == []
    flags = [
        change.flag for change in changes_of({"tactic_sources": ["CUDNN"], "routes": text}, BuildOptions(), "tf32")
    ]
    assert flags[:2] == ["--noTF32", "--tacticSources=-CUDNN"]
    assert "--builderOptimizationLevel=3" not in flags
    assert flags[-1] == "--setBuildRoute='-fuse=auto'"


def test_a_recipe_can_be_hashed_and_sent(tmp_path):
    recipe = Tried(tmp_path, (), Lowering(((0, "a"),), "fp16"), None, Bench(tmp_path), frozen(BuildOptions()))
    assert hash(recipe) == hash(recipe)


# Suspicion


def test_the_emulation_suspects_the_planted_and_its_answer_is_kept(tmp_path):
    onnx.save(planted_chain(8, (2, 5)), tmp_path / "chain.onnx")
    np.savez(tmp_path / "s.npz", x=np.linspace(-1, 1, 8, dtype=np.float32)[None])
    model = from_proto(onnx.load(tmp_path / "chain.onnx"), tmp_path / "chain.onnx")
    candidates = from_nodes(model, lowerable(model, Precision.FP16))
    recipe = Lowered(tmp_path / "chain.onnx", (tmp_path / "s.npz",), Precision.FP16, "accuracy", 1e-2)
    cache = EngineCache(tmp_path / "cache")
    told = suspicions.emulated(recipe, candidates, cache)
    names = {candidates[at].key for at in told.suspects}
    assert names == {f"/layer.{n}/{end}" for n in (2, 5) for end in ("up", "down")}
    (tmp_path / "s.npz").rename(tmp_path / "t.npz")
    (tmp_path / "t.npz").rename(tmp_path / "s.npz")
    start = time.perf_counter()
    again = suspicions.emulated(recipe, candidates, cache)
    assert (again.suspects, again.sensitivity) == (told.suspects, told.sensitivity)
    assert time.perf_counter() - start < 1


def test_a_model_that_cannot_be_emulated_leaves_no_suspicion(tmp_path):
    model = make_model([helper.make_node("Strange", ["x"], ["y"], name="n")], [("x", F, [2])], [("y", F)], {})
    onnx.save(model.proto, tmp_path / "m.onnx")
    np.savez(tmp_path / "s.npz", x=np.ones(2, np.float32))
    recipe = Lowered(tmp_path / "m.onnx", (tmp_path / "s.npz",), Precision.FP16, "accuracy", 1e-2)
    told = suspicions.emulated(recipe, from_nodes(model, [0]), None)
    assert told.suspects == ()
    assert "no suspicion" in told.note


def test_where_values_cease_to_be_finite_their_maker_is_accused_and_with_it_who_reads_what_does_not_fit():
    model = from_proto(planted_chain(4, (2,)), Path("m.onnx"))
    names, readers = [node.proto.output[0] for node in model.nodes], readers_of(model)
    at = names.index("/layer.2/up:out")
    errors = {name: 1.001 ** (n + 1) - 1 if n < at else math.inf for n, name in enumerate(names)}
    found, growth = trt_suspects.accused(model, range(len(names)), errors, 0.5, readers)
    assert found == {at}
    assert (growth[0], growth[at]) == (pytest.approx(1e-3), math.inf)
    assert at + 2 not in growth, "what reads values that are not finite says nothing of itself"
    assert trt_suspects.with_partners(model, found, {names[at]}, readers) == {at, at + 1}
    assert trt_suspects.with_partners(model, {at + 1}, {names[at]}, readers) == {at, at + 1}
    swallowed = {**errors, **dict.fromkeys(names[at + 1 :], 0.0)}
    assert trt_suspects.accused(model, range(len(names)), swallowed, 0.5, readers)[0] == set(), (
        "its reader gets it right"
    )


def test_time_is_shared_by_the_nodes_of_a_layer():
    model = make_model([helper.make_node("Neg", [a], [b], name=f"/{b}") for a, b in (("x", "a"), ("a", "b"), ("b", "y"))],
                       [("x", F, [2])], [("y", F)], {})  # fmt: skip
    candidates = from_nodes(model, range(3))
    info = json.dumps({"Layers": [{"Name": "fused", "Metadata": "[ONNX Layer: /a]\u001e[ONNX Layer: /b]"}]})
    plain = Result("done", True, layers=(("fused", 4000.0), ("/y", 1000.0)), information=info)
    lowered = Result("done", True, layers=(("PWN(/a, /b)", 1000.0), ("/y", 2000.0)))
    assert trt_suspects.costs_of(candidates, lowered, plain) == {0: 1500.0, 1: 1500.0, 2: 0.0}
    region = Result("done", True, layers=(("{ForeignNode[/a.../y]}", 3000.0),))
    assert trt_suspects.costs_of(candidates, region, plain) == {0: 1000.0, 1: 1000.0, 2: 0.0}


# Plugins


def plugin(op, inputs, shapes, out, **fields):
    return make_model(
        [helper.make_node(op, inputs, ["y"], name="p", **fields)], [(name, kind, shape) for name, kind, shape in shapes], [("y", F, out)], {}
    )  # fmt: skip


def ran(model, **feeds):
    proto = trt_plugins.replaced(model, [0])
    onnx.checker.check_model(proto)
    return Runner(proto, model.weights).run(feeds)[0]


def random(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_gelu_of_standard_operators():
    x = random(3, 2, 8, 1, 1)
    bias = random(8)
    model = plugin("CustomGeluPluginDynamic", ["x"], [("x", F, x.shape)], x.shape, type_id=0, bias=bias.tolist())
    z = (x + bias.reshape(-1, 1, 1)).astype(np.float64)
    want = z / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))
    np.testing.assert_allclose(ran(model, x=x), want, atol=1e-5)


@pytest.mark.parametrize("opset", [17, 18])
def test_skip_layer_norm_of_standard_operators(opset):
    x, skip, gamma, beta, bias = random(3, 2, 8, 1, 1), random(3, 2, 8, 1, 1) * 2, random(8), random(8) + 1, random(8)
    node = helper.make_node("CustomSkipLayerNormPluginDynamic", ["x", "s"], ["y"], name="p", type_id=0, ld=8,
                            **{name: v.tolist() for name, v in (("gamma", gamma), ("beta", beta), ("bias", bias))})  # fmt: skip
    model = make_model([node], [("x", F, x.shape), ("s", F, x.shape)], [("y", F, x.shape)], {}, opset)
    total = (x + skip)[..., 0, 0].astype(np.float64) + bias
    want = reference.layer_norm(total, gamma.astype(float), beta.astype(float))
    np.testing.assert_allclose(ran(model, x=x, s=skip)[..., 0, 0], want, atol=1e-4)


def test_fully_connected_of_standard_operators():
    x, w = random(3, 2, 4, 1, 1), random(4, 6)
    model = plugin(
        "CustomFCPluginDynamic",
        ["x"],
        [("x", F, x.shape)],
        (3, 2, 6, 1, 1),
        out_dims=6,
        type_id=0,
        W=w.ravel().tolist(),
    )
    np.testing.assert_allclose(ran(model, x=x)[..., 0, 0], x[..., 0, 0] @ w, atol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_of_standard_operators(masked):
    s, b, n, h = 5, 2, 2, 4
    x, valid = random(s, b, 3 * n * h, 1, 1), np.array([5, 3], np.int32)
    inputs = [("x", F, x.shape)] + ([("m", TensorProto.INT32, [b])] if masked else [])
    model = plugin("CustomQKVToContextPluginDynamic", ["x", "m"][: 1 + masked], inputs, (s, b, n * h, 1, 1), type_id=0,
                   hidden_size=n * h, num_heads=n, has_mask=int(masked))  # fmt: skip
    q, k, v = np.moveaxis(x[..., 0, 0].astype(np.float64).reshape(s, b, n, 3, h), 3, 0).transpose(0, 2, 3, 1, 4)
    scores = q @ k.transpose(0, 1, 3, 2) / math.sqrt(h)
    if masked:
        scores = np.where(np.arange(s) < valid[:, None, None, None], scores, -1e30)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    want = ((weights / weights.sum(-1, keepdims=True)) @ v).transpose(2, 0, 1, 3).reshape(s, b, n * h)
    feeds = {"x": x, **({"m": valid} if masked else {})}
    np.testing.assert_allclose(ran(model, **feeds)[..., 0, 0], want, atol=1e-5)


def test_plugins_are_told_from_operators():
    def node(op, domain=""):
        return helper.make_node(op, ["x"], ["y"], domain=domain)

    assert trt_plugins.is_plugin(node("CustomGeluPluginDynamic"))
    assert trt_plugins.is_plugin(node("Anything", "mine"))
    assert not trt_plugins.is_plugin(node("Relu"))
    assert not trt_plugins.is_plugin(node("Gelu", "com.microsoft"))
    model = plugin("Unheard", ["x"], [("x", F, [2])], [2])
    with pytest.raises(UsageError, match="Unheard"):
        trt_plugins.replaced(model, [0])


# Trials


def ended(returncode=0, sig=None, timed_out=False):
    return ToolRun(Command(("x",)), returncode, sig, timed_out, 1.0, Path("o"), Path("e"))


@pytest.mark.parametrize(
    "result, run, expected",
    [(Result("done", True), ended(), None), (Result("build", False), ended(None, timed_out=True), "timeout at build"),
     (Result("infer", False), ended(-11, 11), "signal 11 at infer"),
     (Result("infer", False, message="a.py:3: cuStreamSynchronize() returned CUDA_ERROR_ILLEGAL_ADDRESS (700)"), ended(125),
      "CUDA_ERROR_ILLEGAL_ADDRESS at infer"),
     (Result("build", False, message="out of memory: 12345 MiB on the host"), ended(125), "build: out of memory: # MiB on the host"),
     (Result("build", False), ended(9), "build: exit 9")],
)  # fmt: skip
def test_how_a_process_ended_is_a_signature(result, run, expected):
    assert signature(result, run) == expected


def test_a_finding_of_the_sanitizer_fails_a_trial_that_went_well(tmp_path, root):
    from probes.bisecting.engines.trial import _finding

    assert "read of size" in _finding(root / "tests/data/sanitizer/h100_2025.3_initcheck.xml")
    assert _finding(tmp_path / "none.xml") == "a finding"


def test_the_worker_s_own_process_reports_what_is_missing(tmp_path):
    """The real worker, where a model does not exist: the result names the error, and nothing hangs."""
    trial = Trial(tmp_path / "no.onnx", BuildOptions(backend="ort-cpu"))
    result = Bench(tmp_path).alone(trial, tmp_path / "t")
    assert (result.ok, result.error, result.stage) == (False, "UsageError", "build")
    assert "no.onnx does not exist" in result.message


def test_a_trial_runs_on_every_backend_alike(tmp_path):
    """The real worker with ONNX Runtime: outputs of every sample, latency, and the second time nothing is run."""
    onnx.save(planted_chain(3, ()), tmp_path / "m.onnx")
    samples = []
    for number in range(2):
        samples.append(tmp_path / f"sample-{number}.npz")
        np.savez(samples[-1], x=np.full((1, 8), number, np.float32))
    trial = Trial(tmp_path / "m.onnx", BuildOptions(backend="ort-cpu"), tuple(samples), 5)
    bench = Bench(tmp_path / "trials", cache=tmp_path / "cache", facts=(("backend", "ort-cpu"),))
    first = bench.run(trial, tmp_path / "trials" / "a")
    assert first.ok
    assert not first.cached
    assert first.latency_ns
    again = bench.run(trial, tmp_path / "trials" / "b")
    assert again.cached
    np.testing.assert_array_equal(first.load()[1]["y"], again.load()[1]["y"])
    assert not np.array_equal(first.load()[0]["y"], first.load()[1]["y"])


def test_a_trial_that_takes_too_much_memory_is_out_of_memory(tmp_path):
    onnx.save(planted_chain(3, ()), tmp_path / "m.onnx")
    np.savez(tmp_path / "s.npz", x=np.ones((1, 8), np.float32))
    trial = Trial(tmp_path / "m.onnx", BuildOptions(backend="ort-cpu"), (tmp_path / "s.npz",), memory_bytes=1 << 20)
    result = Bench(tmp_path).alone(trial, tmp_path / "t")
    assert not result.ok
    assert "out of memory" in (result.signature or "")


@pytest.mark.parametrize(
    "message, again",
    [("10: Could not find any implementation for node", False), ("a.py:1: cuMemAlloc_v2() returned CUDA_ERROR_OUT_OF_MEMORY (2)", True),
     ("TensorRT could not build the engine: out of memory: 8 GiB", True)],
)  # fmt: skip
def test_what_may_be_the_machine_s_is_asked_again_by_the_next_search(tmp_path, message, again):
    onnx.save(planted_chain(3, ()), tmp_path / "m.onnx")
    said = json.dumps({"stage": "build", "ok": False, "error": "BuildFailed", "message": message})
    program = f"import pathlib, sys; pathlib.Path(sys.argv[2]).write_text({said!r}); sys.exit(125)"
    trial = Trial(tmp_path / "m.onnx", BuildOptions(backend="trt"))

    def run(session):
        bench = Bench(session, (sys.executable, "-c", program), tmp_path / "cache", (("version", "8.6.1"),))
        return bench.run(trial, session / "trial")

    assert not run(tmp_path / "one").cached
    assert run(tmp_path / "one").cached, "not twice in one search"
    assert run(tmp_path / "two").cached is not again


def test_a_worker_without_a_result_says_why(tmp_path):
    from harness.errors import ArtifactMissing

    bench = Bench(tmp_path, worker=(sys.executable, "-c", "import sys; sys.exit('no such thing')"))
    with pytest.raises(ArtifactMissing, match="no such thing"):
        bench.alone(Trial(tmp_path / "m.onnx", BuildOptions()), tmp_path / "t")


def test_gpus_are_called_as_the_environment_calls_them(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus(2) == ("0", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5")
    assert visible_gpus(2) == ("3", "GPU-5")
    assert visible_gpus(0) == ()


def test_names_of_this_machine_stay_out_of_signatures():
    assert "/" not in normalise("/tmp/x/candidate.onnx could not be parsed")
    assert callable(_ended)


# The report


def test_the_front_holds_what_no_other_beats():
    rows = [{"engine": f"e{n}", "outcome": "pass", "error": error, "latency_ns": time_ns} for n, (error, time_ns) in
            enumerate([(0.0, 5e6), (0.01, 3e6), (0.02, 4e6), (math.inf, 1e6), (0.005, None)])]  # fmt: skip
    trials = [read_trial(row) for row in rows]
    assert [trial.engine for trial in pareto(trials)] == ["e0", "e1", "e3"]
    figure = draw_latencies(trials, 0.01)
    assert sum(len(trace.x) for trace in figure.data if trace.mode == "markers") == 4
    assert draw_latencies([], 0.01) is None
    assert read_trial("torn") is None


# TensorRT-RTX for real


@pytest.mark.trt_rtx
@pytest.mark.skipif(not any(importlib.util.find_spec(name) for name in ("tensorrt_rtx", "tensorrt_rtx_bindings")),
                    reason="TensorRT-RTX is not installed: pip install 'probe-trt[trt-rtx]'")  # fmt: skip
def test_a_real_network_is_surveyed_and_built_with_debug_tensors(tmp_path):
    onnx.save(planted_chain(3, (1,)), tmp_path / "m.onnx")
    options = BuildOptions(backend="trt-rtx", opt_profiles={"x": ((1, 8),) * 3})
    bench = Bench(tmp_path / "trials")
    told = bench.alone(Trial(tmp_path / "m.onnx", options, survey=True), tmp_path / "survey").facts
    layers = [
        LayerFact(**{name: tuple(v) if isinstance(v, list) else v for name, v in row.items()})
        for row in told["network"]["layers"]
    ]
    model = from_proto(onnx.load(tmp_path / "m.onnx"), tmp_path / "m.onnx")
    owners = attribute(layers, makers_of(model))
    assert set(owners) - {None} == {node.key for node in model.nodes}
    shared = [layer.kind for layer, owner in zip(layers, owners, strict=True) if owner is None]
    assert set(shared) == {"CONSTANT"}, "what several nodes read is of none; broadcasts belong to their reader"
    assert told["network"]["strongly_typed"]
    marked = BuildOptions(backend="trt-rtx", opt_profiles={"x": ((1, 8),) * 3}, debug_tensors=("/layer.1/up:out",))
    assert bench.alone(Trial(tmp_path / "m.onnx", marked), tmp_path / "debug").ok
    unknown = bench.alone(
        Trial(tmp_path / "m.onnx", BuildOptions(backend="trt-rtx", opt_profiles=marked.opt_profiles, outputs=("no",))),
        tmp_path / "no",
    )
    assert (unknown.ok, unknown.error) == (False, "UsageError")
