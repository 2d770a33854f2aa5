"""How many engine builds `probe bisect --backend trt` needs for faults planted in BERT-base, by what the engines let see.

Run: `python -m benchmarks.engine_builds` (`--every 10` for each tenth placement). No GPU: the graph is that of BERT-base
with 12 layers (621 nodes); engines are simulated by who is lowered and where values cease to be finite. Each row is over
all 220 ways to choose three of the 12 layers; the FP32 engine, looks and certification are counted. `floor` is what no
search can go below: one build for FP32, all lowered and all but the culprits each, and one for each culprit.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from harness.bert import model as bert
from harness.models.emulate import lowerable
from harness.models.model import Model, from_proto, reads
from harness.models.precision import Precision
from harness.record import Answer, Outcome
from probes.bisecting.around import around
from probes.bisecting.candidates import Candidate, from_nodes
from probes.bisecting.engines.evidence import held_against
from probes.bisecting.engines.parts import Part
from probes.bisecting.engines.suspects import Errors
from probes.bisecting.search import Query, drive, smallest_kept
from probes.bisecting.suspicion import Suspicion
from probes.bisecting.verdicts import DESTROYED

LAYERS, FAULTS = 12, 3
ROUNDING = 1e-4  # of every node that is lowered
TOLERANCE = 1e-2
OVERFLOW = ("intermediate/dense/MatMul", "intermediate/dense/Add")  # what one makes and the other reads does not fit
SUM = ("attention/output/LayerNorm/ReduceMean_1",)  # a kernel's own sum is beyond FP16
Wires = Sequence[tuple[list[str], list[str]]]


@dataclass(frozen=True)
class Fault:
    """Fails where any (`together`: where all) of these nodes are lowered. `tensor`: what lies between two does not fit.

    seen: what shows it. emulation: the emulation on the CPU; marks: an engine whose tensors are outputs; parts: one of
    parts with nothing marked inside; nothing: engines of the whole model alone.
    """

    nodes: tuple[int, ...]
    seen: str
    tensor: str | None = None
    together: bool = False

    def active(self, lowered: Query) -> bool:
        return (all if self.together else any)(node in lowered for node in self.nodes)


SHOWS = {"emulation": ("marks", "parts"), "marks": ("marks", "parts"), "parts": ("parts",), "nothing": ()}


@dataclass
class Simulated:
    """Engines that are none: whatever reads what is not finite gives what is not finite."""

    model: Model
    candidates: Sequence[Candidate]
    faults: Sequence[Fault]
    wires: Wires
    limit: float = TOLERANCE
    asked: dict[Query, Answer] = field(default_factory=dict)
    looks: int = 0

    @property
    def beyond(self) -> Collection[str]:
        return {fault.tensor for fault in self.faults if fault.tensor is not None}

    @property
    def builds(self) -> int:
        return len({*self.asked, frozenset()}) + self.looks

    def judge(self, query: Query) -> Answer:
        if query not in self.asked:
            bad = any(fault.active(query) for fault in self.faults)
            self.asked[query] = Answer(Outcome.FAIL, math.inf) if bad else Answer(Outcome.PASS, 1e-3)
        return self.asked[query]

    def look(self, parts: Sequence[Part], *, watch: bool) -> list[Errors]:
        self.looks += 1
        return [self._errors(part, watch) for part in parts]

    def _errors(self, part: Part, watch: bool) -> Errors:
        lowered, errors = frozenset(part.nodes) - part.held, dict[str, float]()
        shown = [f for f in self.faults if ("marks" if watch else "parts") in SHOWS[f.seen] and f.active(lowered)]
        broken = {
            max(set(f.nodes) & lowered) if f.together else node for f in shown for node in f.nodes if node in lowered
        }
        for node in part.nodes:
            read, made = self.wires[node]
            before = max((errors.get(name, 0.0) for name in read), default=0.0)
            errors |= dict.fromkeys(made, math.inf if node in broken else before + ROUNDING * (node in lowered))
        return errors


@dataclass
class AddingUp:
    """Engines whose errors add up in quadrature; nothing else is to be seen in their parts."""

    model: Model
    errors: Mapping[int, float]
    tolerance: float
    beyond: Collection[str] = ()
    asked: dict[Query, Answer] = field(default_factory=dict)
    looks: int = 0

    @property
    def limit(self) -> float:
        return self.tolerance

    @property
    def candidates(self) -> Sequence[Candidate]:
        return [one for one in from_nodes(self.model, range(len(self.model.nodes))) if one.id in self.errors]

    @property
    def builds(self) -> int:
        return len({*self.asked, frozenset()}) + self.looks

    def judge(self, query: Query) -> Answer:
        if query not in self.asked:
            value = math.sqrt(sum(self.errors[c] ** 2 for c in sorted(query)))
            self.asked[query] = Answer(Outcome.PASS if value <= self.tolerance else Outcome.FAIL, value)
        return self.asked[query]

    def look(self, parts: Sequence[Part], *, watch: bool) -> list[Errors]:
        self.looks += 1
        return [{name: ROUNDING for at in part.nodes for name in self.model.nodes[at].proto.output} for part in parts]


def suspected(errors: Mapping[int, float], tolerance: float, model: Model) -> Suspicion:
    """What the emulation makes of errors that add up, found as `probe bisect` finds it."""
    emulation, order = AddingUp(model, errors, tolerance), sorted(errors)
    groups = [order[at : at + 8] for at in range(0, len(order), 8)]
    found = drive(smallest_kept(order, tolerance=tolerance, destroyed=DESTROYED, groups=groups), emulation.judge)
    return Suspicion(found.kept, found.sensitivity, emulation.builds, error=emulation.judge(found.applied).value)


def adding_up(sigma: float, share: float, worse: float, seed: int) -> tuple[int, int, int]:
    """Builds, nodes kept and, with the engine's errors known, nodes that had to be: one that is `worse` than the emulation."""
    model, candidates, _ = encoder(LAYERS)
    rng, order = np.random.default_rng(seed), [c.id for c in candidates]
    cpu = rng.lognormal(0.0, sigma, len(order))
    gpu = cpu * worse * rng.lognormal(0.0, 0.3, len(order))
    ideal = round(share * len(order))
    scale = TOLERANCE / math.sqrt((np.sort(gpu)[: len(order) - ideal] ** 2).sum()) * (1 - 1e-9)
    on_cpu = dict(zip(order, map(float, cpu * scale), strict=True))
    engines = AddingUp(model, dict(zip(order, map(float, gpu * scale), strict=True)), TOLERANCE)

    def emulated(tolerance: float) -> Suspicion:
        return suspected(on_cpu, tolerance, model)

    suspicion, _ = held_against(engines, emulated(TOLERANCE), emulated, lambda _: None)
    found = drive(around(order, suspicion.suspects, suspicion.sensitivity, tolerance=TOLERANCE), engines.judge)
    assert found.certified
    return engines.builds, len(found.kept), ideal


@cache
def encoder(layers: int) -> tuple[Model, Sequence[Candidate], Wires]:
    """BERT-base but for its width; what may be lowered of it; what each node reads and makes."""
    config = bert.BertConfig(32, layers, 4, 64, vocab_size=50)
    model = from_proto(bert.build_onnx(config, bert.random_weights(config)), Path("bert.onnx"))
    wires = [(reads(node.proto), list(node.proto.output)) for node in model.nodes]
    return model, from_nodes(model, lowerable(model, Precision.FP16)), wires


def plant(model: Model, layer: int, kind: Sequence[str], seen: str, **how: bool) -> Fault:
    index = {node.key: node.index for node in model.nodes}
    nodes = tuple(index[f"/encoder/layer.{layer}/{name}"] for name in kind)
    tensor = model.nodes[nodes[0]].proto.output[0] if len(nodes) > 1 and not how else None
    return Fault(nodes, seen, tensor, **how)


@dataclass(frozen=True)
class Scenario:
    """What is planted in each of the chosen layers: for each fault its nodes, what shows it, and if it takes all of them."""

    name: str
    faults: tuple[
        tuple[Sequence[str], tuple[str, ...], bool], ...
    ]  # nodes, what shows it in the first, second, third layer, together

    def planted(self, model: Model, layers: Sequence[int]) -> list[Fault]:
        return [plant(model, layer, kind, seen, **({"together": True} if together else {}))
                for kind, shown, together in self.faults for layer, seen in zip(layers, itertools.cycle(shown))]  # fmt: skip


PAIR = ("attention/self/Softmax", "attention/output/dense/MatMul")
SCENARIOS = (
    Scenario("overflows, the emulation sees all", ((OVERFLOW, ("emulation",), False),)),
    Scenario("overflows, the emulation sees one", ((OVERFLOW, ("emulation", "marks", "marks"), False),)),
    Scenario("overflows, the emulation sees none", ((OVERFLOW, ("marks",), False),)),
    Scenario("sums, the emulation sees none", ((SUM, ("marks",), False),)),
    Scenario("both in each layer", ((OVERFLOW, ("marks",), False), (SUM, ("marks",), False))),
    Scenario("overflows that marks hide", ((OVERFLOW, ("parts",), False),)),
    Scenario("sums that marks hide", ((SUM, ("parts",), False),)),
    Scenario("overflows, one seen by each", ((OVERFLOW, ("emulation", "marks", "parts"), False),)),
    Scenario("two nodes only together", ((PAIR, ("marks",), True),)),
    Scenario("two only together, marks hide it", ((PAIR, ("parts",), True),)),
    Scenario("overflows, no part shows them", ((OVERFLOW, ("nothing",), False),)),
    Scenario("sums, no part shows them", ((SUM, ("nothing",), False),)),
)


def search(scenario: Scenario, layers: int, places: Sequence[int]) -> tuple[int, int]:
    """Builds, and how many nodes are kept; what is kept is checked against what was planted."""
    model, candidates, wires = encoder(layers)
    faults = scenario.planted(model, places)
    engines = Simulated(model, candidates, faults, wires)
    emulated = tuple(sorted({node for fault in faults if fault.seen == "emulation" for node in fault.nodes}))
    suspicion, _ = held_against(engines, Suspicion(emulated), Suspicion, lambda _: None)
    found = drive(around([c.id for c in candidates], suspicion.suspects, suspicion.sensitivity), engines.judge)
    assert found.certified
    assert all(sum(node in found.kept for node in fault.nodes) == (1 if fault.together else len(fault.nodes)) for fault in faults)  # fmt: skip
    assert len(found.kept) == len({node for fault in faults for node in fault.nodes[: 1 if fault.together else None]})
    return engines.builds, len(found.kept)


def measured(scenario: Scenario, layers: int = LAYERS, faults: int = FAULTS, every: int = 1) -> list[tuple[int, int]]:
    chosen = itertools.islice(itertools.combinations(range(layers), faults), 0, None, every)
    return [search(scenario, layers, places) for places in chosen]


def row(scenario: Scenario, every: int, layers: int = LAYERS, faults: int = FAULTS) -> Iterator[str]:
    counts = sorted(measured(scenario, layers, faults, every))
    builds = [builds for builds, _ in counts]
    yield scenario.name
    yield f"{layers} / {faults}"
    yield str(counts[0][1])
    yield str(3 + counts[0][1])
    yield f"{statistics.median(builds):g}"
    yield str(builds[math.ceil(0.95 * len(builds)) - 1])
    yield str(builds[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="of the placements only each so manieth")
    every = parser.parse_args().every
    table = Table(
        "fault", "layers / with it", "culprits", "floor", "median", "95 %", "worst", title="Builds, all placements"
    )
    for scenario in SCENARIOS:
        table.add_row(*row(scenario, every))
    for layers, faults in ((4, 1), (4, 3), (12, 1), (12, 6), (24, 3)):
        table.add_row(*row(SCENARIOS[2], max(every, 9) if layers == 24 else every, layers, faults))
        table.add_row(*row(SCENARIOS[5], max(every, 9) if layers == 24 else every, layers, faults))
    console = Console(width=120)
    console.print(table)
    errors = Table(
        "lognormal, engine worse by",
        "ideal kept",
        "kept",
        "builds",
        title="Builds where errors add up, mean of 10 seeds",
    )
    for sigma, share, worse in ((2.0, 0.01, 1.5), (1.0, 0.02, 1.2), (1.0, 0.02, 2.0), (0.5, 0.02, 1.5)):
        rows = [adding_up(sigma, share, worse, seed) for seed in range(10)]
        builds, kept, ideal = (statistics.mean(column) for column in zip(*rows, strict=True))
        errors.add_row(f"sigma {sigma:g}, x{worse:g}", f"{ideal:.0f}", f"{kept:.1f}", f"{builds:.1f}")
    console.print(errors)


if __name__ == "__main__":
    main()
