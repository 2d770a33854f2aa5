"""Finding what does not build: our search against `polygraphy debug reduce`, on models with two independent culprits.

Run: `python -m benchmarks.build_fault` (needs TensorRT-RTX, no GPU; the peer needs `pip install polygraphy onnx_graphsurgeon`).

Both ask the same checker, a process that parses and builds a model with TensorRT-RTX and exits 1 if that fails. A method
has found a culprit if it names it and leaves the model building without what it names, or failing with the culprit alone.
"""

from __future__ import annotations

import argparse
import importlib.util
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table

from harness import process
from harness.engines import building
from harness.models.model import Model, load
from harness.models.submodel import TensorFact, extract, observe, save
from harness.record import Answer, Command, Outcome
from probes.bisecting.search import drive, smallest_kept

ROOT = Path(__file__).resolve().parents[1]
WIDTH, RANK, BLOCKS = 4096, 8, 24
TIMEOUT_S = 60.0
# The checker, counting its calls: MODEL RESULT TALLY.
CHECKER = (
    "import sys; from harness.engines.build_worker import main; open(sys.argv[3], 'a').write('.');"
    " sys.exit(main([*sys.argv[1:3], '--backend', 'trt-rtx']))"
)
FAULTS: dict[str, tuple[str, str]] = {  # what is planted early and late in the model
    "both while parsing": ("Bernoulli", "BitwiseAnd"),
    "one while parsing hides one while building": ("TopK", "Bernoulli"),
    "both while building, alike": ("TopK", "TopK"),
}


@dataclass
class Row:
    """What a method found: names of nodes, and what it cost."""

    method: str
    found: list[frozenset[str]] = field(default_factory=list)
    checks: int = 0
    wall_s: float = 0.0


@dataclass(frozen=True)
class Case:
    """A model with planted culprits, and the folder in which its parts are checked."""

    model: Model
    facts: dict[str, TensorFact]
    culprits: tuple[str, ...]
    folder: Path

    @property
    def checker(self) -> str:
        files = ("{model}", str(self.folder / "result.json"), str(self.folder / "tally"))
        return shlex.join((sys.executable, "-c", CHECKER, *files))

    @property
    def checks(self) -> int:
        tally = self.folder / "tally"
        return tally.stat().st_size if tally.exists() else 0

    def part(self, keep: Iterable[int]) -> Path:
        return save(extract(self.model, set(keep), self.facts), self.model.weights, self.folder / "part.onnx")

    def names(self, indices: Iterable[int]) -> frozenset[str]:
        return frozenset(self.model.nodes[index].key for index in indices)


def make_model(faults: tuple[str, str]) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Residual blocks of low-rank layers on [2, WIDTH], a culprit after the third and one after the third last."""
    rng = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    constants = {"half": np.float32(0.5), "k": np.array([WIDTH])}
    last = "x"
    for block in range(BLOCKS):
        constants[f"down{block}"] = rng.standard_normal((WIDTH, RANK)).astype(np.float32) / WIDTH
        constants[f"up{block}"] = rng.standard_normal((RANK, WIDTH)).astype(np.float32)
        last = _block(nodes, block, last)
        if block in (2, BLOCKS - 3):
            last = _plant(nodes, faults[block != 2], f"fault{block}", last)
    graph = helper.make_graph(
        nodes, "residual", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, WIDTH])],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, [2, WIDTH])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    return proto, tuple(node.name for node in nodes if node.name.endswith("culprit"))


def _block(nodes: list[onnx.NodeProto], number: int, source: str) -> str:
    """source + 0.5 tanh(source D) U"""
    name = f"block{number}"
    inputs = {"MatMul": [source, f"down{number}"], "Tanh": [f"{name}/MatMul"], "Mul": [f"{name}/Tanh", "half"]}
    for op in inputs:
        nodes.append(helper.make_node(op, inputs[op], [f"{name}/{op}"], name=f"{name}/{op}"))
    nodes.append(helper.make_node("MatMul", [f"{name}/Mul", f"up{number}"], [f"{name}/Up"], name=f"{name}/Up"))
    nodes.append(helper.make_node("Add", [source, f"{name}/Up"], [f"{name}/Add"], name=f"{name}/Add"))
    return f"{name}/Add"


def _plant(nodes: list[onnx.NodeProto], op: str, name: str, source: str) -> str:
    """A node that TensorRT-RTX refuses, [2, WIDTH] in and out; TopK when it builds, the others when it parses."""
    out, culprit = f"{name}/out", f"{name}/culprit"
    if op == "BitwiseAnd":
        nodes.append(helper.make_node("Cast", [source], [f"{name}/int"], name=f"{name}/to_int", to=TensorProto.INT32))
        nodes.append(helper.make_node(op, [f"{name}/int", f"{name}/int"], [f"{name}/and"], name=culprit))
        nodes.append(helper.make_node("Cast", [f"{name}/and"], [out], name=f"{name}/to_float", to=TensorProto.FLOAT))
        return out
    if op == "TopK":  # more than the builder's largest K
        nodes.append(helper.make_node(op, [source, "k"], [out, f"{name}/order"], name=culprit))
    else:
        nodes.append(helper.make_node(op, [source], [out], name=culprit))
    return out


# Methods


def leave_out(case: Case, row: Row) -> None:
    """The smallest set of nodes to leave out so that the rest builds."""
    found = drive(smallest_kept(range(len(case.model.nodes))), lambda kept: _ask(case, kept))
    row.found = [case.names([index]) for index in found.kept]


def leave_out_with_hint(case: Case, row: Row) -> None:
    """The same, what the parser's messages do not mention taken first as one group; repeated as messages appear."""
    everything = frozenset(range(len(case.model.nodes)))
    suspects: frozenset[int] = frozenset()
    while True:
        result = _build(case, everything - suspects)
        fresh = {n.index for n in case.model.nodes if {n.key, *n.proto.output} & building.blamed(result)} - suspects
        if result.ok or not fresh:
            break
        suspects |= fresh
    clean = tuple(sorted(everything - suspects))
    search = smallest_kept((*clean, *sorted(suspects)), groups=[clean], scope_first=True)
    found = drive(search, lambda kept: _ask(case, kept))
    row.found = [case.names([index]) for index in found.kept]


def reduce(case: Case, row: Row) -> None:
    """The smallest failing part, by signature; then of what remains without it, until that builds."""
    rest = frozenset(range(len(case.model.nodes)))
    while signature := building.signature(_build(case, rest)):

        def ask(removed: frozenset[int], rest: frozenset[int] = rest, wanted: str = signature) -> Answer:
            return building.judge(_build(case, rest - removed), wanted) if rest - removed else Answer(Outcome.PASS)

        found = drive(smallest_kept(sorted(rest), wanted=Outcome.FAIL, signature=signature), ask)
        row.found.append(case.names(found.kept))
        rest -= set(found.kept)


def polygraphy(mode: str) -> Callable[[Case, Row], None]:
    """`polygraphy debug reduce` with one of its strategies."""

    def run(case: Case, row: Row) -> None:
        out = case.folder / "reduced.onnx"
        check = shlex.split(case.checker.replace("{model}", "polygraphy_debug.onnx"))
        program = str(Path(sys.executable).with_name("polygraphy"))
        argv = [program, *f"debug reduce model.onnx -o {out.name} --mode {mode} --check".split()]
        process.run(Command((*argv, *check), 600.0, process.module_environment(), case.folder), case.folder / "peer")
        if out.exists():
            row.found.append(frozenset(node.name for node in onnx.load(str(out)).graph.node))

    return run


def _ask(case: Case, kept: frozenset[int]) -> Answer:
    if not kept:
        return Answer(Outcome.PASS)
    return building.check(case.checker, case.part(kept), timeout_s=TIMEOUT_S, folder=case.folder)


def _build(case: Case, keep: Iterable[int]) -> building.BuildResult:
    with (case.folder / "tally").open("a") as tally:
        tally.write(".")
    return building.build(case.part(keep), building.BuildOptions(), shapes={}, timeout_s=TIMEOUT_S, folder=case.folder,
                          names=building.names_of(case.model))  # fmt: skip


METHODS: dict[str, Callable[[Case, Row], None]] = {
    "probe, nodes to leave out": leave_out,
    "probe, with the parser's hints": leave_out_with_hint,
    "probe, smallest failing parts": reduce,
    "polygraphy debug reduce, bisect": polygraphy("bisect"),
    "polygraphy debug reduce, linear": polygraphy("linear"),
}


def measure(method: str, faults: tuple[str, str], folder: Path) -> tuple[Row, Case]:
    folder.mkdir(parents=True)
    proto, culprits = make_model(faults)
    onnx.save(proto, str(folder / "model.onnx"))
    model = load(folder / "model.onnx")
    case = Case(model, observe(model, {"x": np.ones((2, WIDTH), np.float32)}), culprits, folder)
    row = Row(method)
    start = time.perf_counter()
    METHODS[method](case, row)
    row.wall_s, row.checks = time.perf_counter() - start, case.checks
    return row, case


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--all", action="store_true", help="the peer's slow strategy as well")
    everything = parser.parse_args().all
    methods = [method for method in METHODS if everything or not method.endswith("linear")]
    console = Console()
    if importlib.util.find_spec("onnx_graphsurgeon") is None or importlib.util.find_spec("polygraphy") is None:
        methods = [method for method in methods if not method.startswith("polygraphy")]
        console.print("without the peer: pip install polygraphy onnx_graphsurgeon")
    for title, faults in FAULTS.items():
        table = Table("method", "found", "named", "checks", "per culprit", "wall s", title=f"two faults, {title}")
        table.columns[0].no_wrap = True
        with tempfile.TemporaryDirectory() as folder:
            for number, method in enumerate(methods):
                row, case = measure(method, faults, Path(folder) / str(number))
                named = frozenset[str]().union(*row.found)
                hits = sum(culprit in named for culprit in case.culprits)
                table.add_row(method, f"{hits} of {len(case.culprits)}", str(len(named)), str(row.checks),
                              f"{row.checks / hits:.1f}" if hits else "-", f"{row.wall_s:.1f}")  # fmt: skip
        console.print(table)
        console.print(f"{len(case.model.nodes)} nodes; found: culprits among the nodes named\n")


if __name__ == "__main__":
    main()
