"""What engines of a model's parts tell: the parts compute what the whole does, and whoever they accuse, the search ends right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from benchmarks import engine_builds as simulated
from harness.models import submodel
from harness.models.model import Model, from_proto
from harness.models.runtime import Runner
from harness.models.submodel import TensorFact
from harness.record import Answer, Outcome
from probes.bisecting.around import around
from probes.bisecting.engines.evidence import held_against
from probes.bisecting.engines.parts import Part, exits, readers_of, regions, side_by_side
from probes.bisecting.engines.recipes import tensors_of
from probes.bisecting.search import drive
from probes.bisecting.suspicion import Suspicion
from small_models import make_model, planted_chain

F = TensorProto.FLOAT

# Parts of a model


def branching() -> Model:
    """An If whose branches read what is made around them, and hand it out."""

    def branch(name: str, op: str) -> onnx.GraphProto:
        node = helper.make_node(op, ["b"], [f"{name}:out"])
        return helper.make_graph([node], name, [], [helper.make_tensor_value_info(f"{name}:out", F, None)])

    nodes = [helper.make_node("Add", ["x", "x"], ["a"], name="double"), helper.make_node("Shape", ["a"], ["s"], name="shape"),
             helper.make_node("Reshape", ["a", "s"], ["b"], name="same"),
             helper.make_node("If", ["p"], ["c"], name="choose", then_branch=branch("then", "Neg"), else_branch=branch("else", "Abs")),
             helper.make_node("Mul", ["c", "b"], ["y"], name="times")]  # fmt: skip
    return make_model(nodes, [("x", F, [2, 3]), ("p", TensorProto.BOOL, [])], [("y", F)], {})


def small_encoder() -> tuple[Model, dict[str, np.ndarray]]:
    model, _, _ = simulated.encoder(2)
    ids = np.arange(12).reshape(2, 6) % 50
    return model, {"input_ids": ids, "token_type_ids": np.zeros_like(ids), "attention_mask": np.ones_like(ids)}


@pytest.mark.parametrize("case", [lambda: (branching(), {"x": np.ones((2, 3), np.float32), "p": np.array(True)}), small_encoder],
                         ids=["an If", "an encoder"])  # fmt: skip
def test_parts_fed_with_what_the_whole_makes_give_what_it_gives(case):
    model, feeds = case()
    made = [name for node in model.nodes for name in node.proto.output]
    plain = tensors_of(model, onnx.ModelProto.FromString(model.proto.SerializeToString()), feeds, made)
    told = submodel.observe(model, feeds)
    shapes = submodel.shape_tensors(model)
    known = {name: TensorFact(helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for name, a in plain.items() if name not in shapes}  # fmt: skip
    parts = [Part(nodes, frozenset(nodes[:1])) for nodes in (*regions(model), *regions(model))]  # each of them twice
    sides = side_by_side(model, parts, {**told, **known}, [name for name in made if name not in shapes])
    fed = {v.name: feeds[v.name] if v.name in feeds else plain[v.name] for v in sides.proto.graph.input}
    names = [value.name for value in sides.proto.graph.output]
    got = dict(zip(names, Runner(sides.proto, model.weights).run(fed, names), strict=True))
    shown = {old: new for part in sides.outputs for new, old in part.items()}
    assert {name for nodes in regions(model) for name in exits(model, nodes, readers_of(model))} - shapes <= {*shown}
    for part in sides.outputs:
        for new, old in part.items():
            np.testing.assert_allclose(got[new], plain[old], rtol=1e-4, atol=1e-5, err_msg=new)
    assert {name.partition("#")[0] for name in sides.held} <= {node.key for node in model.nodes}
    assert len(names) == len({*names})


def test_regions_are_as_many_as_each_has_nodes_and_cut_where_little_crosses():
    model, _, _ = simulated.encoder(12)
    found = regions(model)
    assert [node for nodes in found for node in nodes] == list(range(len(model.nodes)))
    assert 20 <= len(found) <= 30
    assert max(map(len, found)) <= 40
    handed = [len(exits(model, nodes, readers_of(model)) - submodel.shape_tensors(model)) for nodes in found]
    assert sorted(handed)[len(handed) // 2] <= 3


# What is made of it


@pytest.mark.parametrize("scenario", simulated.SCENARIOS[:-2], ids=lambda scenario: scenario.name)
def test_three_faults_in_any_layers_of_bert_take_at_most_fifteen_builds(scenario):
    """Of all 220 placements each 44th; `python -m benchmarks.engine_builds` takes all."""
    counts = simulated.measured(scenario, every=44)
    assert max(builds for builds, _ in counts) <= 15
    assert counts[0][1] + 3 <= min(builds for builds, _ in counts)


SHOWN = st.sampled_from(["emulation", "marks", "parts", "nothing"])


@st.composite
def faults(draw: st.DrawFn) -> list[simulated.Fault]:
    _, candidates, _ = simulated.encoder(1)
    ids = st.sampled_from([c.id for c in candidates])
    made = []
    for nodes in draw(st.lists(st.sets(ids, min_size=1, max_size=3), max_size=4)):
        made.append(simulated.Fault(tuple(sorted(nodes)), draw(SHOWN), together=draw(st.booleans())))
    return made


@given(faults(), st.sets(st.integers(0, 60), max_size=16), st.floats(0, 1), st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_whatever_parts_show_and_whoever_is_suspected_what_is_kept_is_minimal(faults, suspects, blind, rng):
    """Looks show all, some or none of it, or fail; single nodes and those that fail only together, anywhere."""
    model, candidates, wires = simulated.encoder(1)
    engines = simulated.Simulated(model, candidates, faults, wires)
    seen = engines.look
    engines.look = lambda parts, *, watch: [] if rng.random() < blind else seen(parts, watch=watch)
    everything = frozenset(c.id for c in candidates)
    suspicion, _ = held_against(engines, Suspicion(tuple(everything & suspects)), Suspicion, lambda _: None)
    found = drive(around(sorted(everything), suspicion.suspects, suspicion.sensitivity, tolerance=0.01), engines.judge)
    assert found.certified
    assert found.applied == everything - {*found.kept}
    assert not any(fault.active(found.applied) for fault in faults)
    for candidate in found.kept:
        assert any(fault.active(found.applied | {candidate}) for fault in faults)


def test_a_mask_that_does_not_fit_accuses_nobody():
    """-1e9 becomes -inf, which the softmax in the next region but one makes a zero."""
    nodes = [helper.make_node("Mul", ["m", "large"], ["mask"], name="mask"),
             *(helper.make_node("Add", [f"t{n}", "mask"], [f"s{n}"], name=f"add{n}") for n in range(3)),
             *(helper.make_node("Softmax", [f"s{n}"], [f"p{n}"], name=f"softmax{n}") for n in range(3)),
             helper.make_node("Sum", ["p0", "p1", "p2"], ["y"], name="sum")]  # fmt: skip
    inputs = [("m", F, [1, 4]), *((f"t{n}", F, [1, 4]) for n in range(3))]
    model = make_model(nodes, inputs, [("y", F)], {"large": np.float32(-1e9)})
    _, candidates, _ = simulated.encoder(1)
    looks = []

    class Engines:
        limit, beyond = 0.01, {"mask", "s0", "s1", "s2"}

        def __init__(self) -> None:
            self.model, self.candidates = model, candidates[: len(nodes)]

        def judge(self, query):
            return Answer(Outcome.FAIL, float("inf"))

        def look(self, parts, *, watch):
            looks.append(watch)
            lost = float("inf")
            return [{name: lost if name in self.beyond else 0.0 for i in part.nodes for name in model.nodes[i].proto.output} for part in parts]  # fmt: skip

    suspicion, sure = held_against(Engines(), Suspicion(), Suspicion, lambda _: None)
    assert (suspicion.suspects, sure, looks) == ((), True, [True, False])


def test_errors_that_add_up_tighten_the_emulation_and_not_the_search():
    """An engine half again as wrong as the emulation: its suspects are those of a tolerance that much tighter."""
    model = from_proto(planted_chain(40, ()), Path("m.onnx"))
    rng = np.random.default_rng(0)
    errors = dict(zip(range(len(model.nodes)), rng.lognormal(0.0, 1.5, len(model.nodes)) / 1000, strict=True))
    engines = simulated.AddingUp(model, {c: 1.5 * e for c, e in errors.items()}, tolerance=0.03)
    told = []

    def emulated(tolerance: float) -> Suspicion:
        told.append(tolerance)
        return simulated.suspected(errors, tolerance, model)

    suspicion, _ = held_against(engines, emulated(0.03), emulated, lambda _: None)
    found = drive(around(sorted(errors), suspicion.suspects, suspicion.sensitivity, tolerance=0.03), engines.judge)
    assert found.certified
    assert len(told) == 2
    assert told[1] < told[0]
    assert engines.builds == len(found.kept) + 5, (
        "FP32, all lowered, two suspicions, one look at the parts, and one for each"
    )
