"""How many operations of real engines are tied to ONNX nodes, and how many of the inferred ties are wrong.

Run: `python -m benchmarks.node_ties MODEL.onnx...` (`--trials 150 --free 64`; without models a small BERT). Wants the TensorRT-RTX
wheels and no GPU: its builder tells, at detailed verbosity, which nodes each layer came from and in which order the layers
run. That is the truth. What is asked are the layers' names alone, of which some are hidden at random.
"""

from __future__ import annotations

import argparse
import random
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from harness.bert import model as bert
from harness.models import graph as graphs
from harness.models import model as models
from harness.optional import load
from reports.readers.trtexec_exports import onnx_nodes
from reports.tables.onnx_graph import Graph, Node
from reports.tables.placing import place

HIDDEN = {"gemm": "fc__mye1", "correlation": "__myl_Corr_myl0_1", "deconv": "__myl_Deco_myl0_1"}
SMALL = bert.BertConfig(64, 2, 4, 256, vocab_size=100, max_position=64)


@dataclass(frozen=True)
class Layer:
    """One layer of an engine, in the order in which they run."""

    name: str
    kind: str
    nodes: tuple[str, ...]


def build(model: Path, free: int = 8) -> list[Layer]:
    """The layers that TensorRT-RTX makes of a model; dimensions that are free become `free`, the first of them 1."""
    trt = load("tensorrt_rtx")
    lines: list[str] = []

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            lines.extend(message.split("\n"))

    logger = Logger()
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    if not trt.OnnxParser(network, logger).parse_from_file(str(model)):
        raise SystemExit(f"{model} is not parsed: {lines[-1]}")
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    profile = builder.create_optimization_profile()
    for tensor in (network.get_input(number) for number in range(network.num_inputs)):
        shape = [(free if axis else 1) if size < 0 else size for axis, size in enumerate(tensor.shape)]
        profile.set_shape(tensor.name, shape, shape, shape)
    config.add_optimization_profile(profile)
    if builder.build_serialized_network(network, config) is None:
        raise SystemExit(f"{model} is not built: {lines[-1]}")
    return [_layer(line) for line in lines if line.startswith("Name: ") and ", LayerType: " in line]


def _layer(line: str) -> Layer:
    name, _, rest = line.removeprefix("Name: ").partition(", LayerType: ")
    kind = re.match(r"\w*", rest)
    return Layer(name, kind[0] if kind else "", onnx_nodes(rest.partition("Metadata: ")[2]))


def graph_of(model: Path) -> Graph:
    """The model's graph, as a report has it."""
    document = graphs.document(models.load(model))
    return Graph(tuple(document["inputs"]), tuple(
        Node(row["name"], row["op_type"], *(tuple(row[name]) for name in ("inputs", "outputs", "called")))
        for row in document["nodes"]
    ))  # fmt: skip


def judge(layers: Sequence[Layer], graph: Graph, hide: Callable[[int], bool]) -> Counter[str]:
    """Ties of the layers with those names hidden: how many nodes are named, inferred rightly, inferred or named wrongly."""
    names = [HIDDEN.get(layer.kind, layer.name) if hide(at) else layer.name for at, layer in enumerate(layers)]
    found: Counter[str] = Counter()
    for origin, layer in zip(place(names, graph), layers, strict=True):
        truth = set(layer.nodes)
        found["named"] += len(truth.intersection(origin.named))
        found["inferred"] += len(truth.intersection(origin.inferred))
        found["wrong"] += len({*origin.named, *origin.inferred} - truth)
    return found


def main() -> None:
    """Print one row a model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--trials", type=int, default=150)
    parser.add_argument("--free", type=int, default=64, help="what free dimensions become")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    table = Table("model", "layers", "trials", "nodes named", "inferred", "wrong")
    with tempfile.TemporaryDirectory() as folder:
        small = [] if options.models else [Path(folder) / "small-bert.onnx"]
        for path in small:
            bert.save(bert.build_onnx(SMALL, bert.random_weights(SMALL)), path)
        for path in options.models or small:
            table.add_row(*_row(path, options, random.Random(options.seed)))
    Console().print(table)


def _row(path: Path, options: argparse.Namespace, draw: random.Random) -> tuple[str, ...]:
    layers, graph = build(path, options.free), graph_of(path)
    total: Counter[str] = Counter()
    for _ in range(options.trials):
        share = draw.choice([0.0, 0.1, 0.3, 0.6, 0.9])
        hidden = [draw.random() < share for _ in layers]
        total += judge(layers, graph, hidden.__getitem__)
    return (
        path.name,
        str(len(layers)),
        str(options.trials),
        *(str(total[name]) for name in ("named", "inferred", "wrong")),
    )


if __name__ == "__main__":
    main()
