"""The smallest FP32 set: ours against onnxconverter_common.auto_mixed_precision, on the same models and inputs.

    pip install onnxconverter-common
    python benchmarks/mixed_precision.py [--models models] [--tolerance 0.01]

Two peers. "as it is": converts, runs FP16 in ONNX Runtime on the CPU and compares: what a user of it gets. Its own view
of the result stands beside the true error of the set that it keeps, as probe emulates it. "with our oracle": its search
alone, answered by probe's emulation. One evaluation is one candidate set converted or switched, and run.
Models with planted faults come from `examples/faults.py`, whose truth is printed; the others are as published.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import onnx
from onnxconverter_common import auto_mixed_precision as peer
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from examples import faults
from examples import models as zoo
from harness.models import model as models
from harness.models.emulate import Emulation
from harness.models.model import Model
from harness.record import Answer, Outcome
from probes.bisecting import candidates as candidates_of
from probes.bisecting import search, verdicts

PLANTED = {"silero-vad-16k": 2, "minilm": 1, "ppocr-cls": 2}  # how many overflows
NATURAL = ("magika", "ppocr-det", "ppocr-rec")


@dataclass(frozen=True)
class Run:
    """What one search ended with: the nodes kept, how often it asked, how long it took, and what went wrong with it."""

    kept: frozenset[str]
    evaluations: int
    seconds: float
    remark: str = ""


class Case:
    """One model with its inputs, and probe's oracle on it."""

    def __init__(self, name: str, path: Path, feeds: dict[str, np.ndarray], tolerance: float) -> None:
        self.name, self.path, self.feeds, self.tolerance = name, path, feeds, tolerance
        self.model: Model = models.load(path)
        self.emulation = Emulation(self.model)
        self.sample = self.emulation.bind(feeds)
        self.reference = self.sample.run([])
        self.key_of = {node.index: node.key for node in self.model.nodes}
        self.index_of = {key: index for index, key in self.key_of.items()}

    def answer(self, lowered: Collection[int]) -> Answer:
        return verdicts.accuracy([self.sample.run(lowered)], [self.reference], tolerance=self.tolerance)

    def error(self, kept: Collection[str]) -> float:
        low = [i for i in self.emulation.candidates if self.key_of[i] not in kept]
        value = self.answer(low).value
        assert value is not None
        return value

    def ours(self) -> Run:
        groups = candidates_of.by_scope(candidates_of.from_nodes(self.model, self.emulation.candidates))
        asked: list[search.Query] = []
        start = time.perf_counter()

        def ask(query: search.Query) -> Answer:
            asked.append(query)
            return self.answer(query)

        found = search.drive(
            search.smallest_kept(
                self.emulation.candidates, tolerance=self.tolerance, destroyed=verdicts.DESTROYED, groups=groups
            ),
            ask,
        )
        remark = "certified minimal" if found.certified else "not certified"
        return Run(frozenset(self.key_of[i] for i in found.kept), len(asked), time.perf_counter() - start, remark)

    def peers(self, *, our_oracle: bool) -> Run:
        """The peer's own code; where `our_oracle`, its conversion and its run are answered by the emulation."""
        attempts: list[list[str]] = []
        convert, run = peer.float16.convert_float_to_float16, peer.get_tensor_values_using_ort

        def counted(model: onnx.ModelProto, node_block_list: list[str], **options: object) -> onnx.ModelProto:
            attempts.append(list(node_block_list))
            return model if our_oracle else convert(model, node_block_list=node_block_list, **options)

        def emulated(model: onnx.ModelProto, feeds: dict[str, np.ndarray], *rest: object) -> list[np.ndarray]:
            if rest or not attempts:
                return run(model, feeds, *rest)
            kept = set(attempts[-1])
            return self.sample.run([i for i in self.emulation.candidates if self.key_of[i] not in kept])

        def close(expected: list[np.ndarray], got: list[np.ndarray]) -> bool:
            reference = self.reference if our_oracle else expected
            return verdicts.accuracy([got], [reference], tolerance=self.tolerance).outcome is Outcome.PASS

        remark, start = "", time.perf_counter()
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            stack.enter_context(mock.patch.object(peer.float16, "convert_float_to_float16", counted))
            if our_oracle:
                stack.enter_context(mock.patch.object(peer, "get_tensor_values_using_ort", emulated))
            try:
                peer.auto_convert_mixed_precision(self.named(), self.feeds, close, keep_io_types=True)
            except Exception as error:  # noqa: BLE001  it raises whatever the converted model makes ONNX Runtime raise
                remark = f"failed: {type(error).__name__}: {str(error).splitlines()[0][:60]}"
        kept = frozenset(attempts[-1]) if attempts and not remark else frozenset()
        return Run(
            kept & {self.key_of[i] for i in self.emulation.candidates},
            len(attempts),
            time.perf_counter() - start,
            remark,
        )

    def named(self) -> onnx.ModelProto:
        """The model with constants as initialisers and a name for every node, which the peer relies on."""
        proto = onnx.load(str(self.path))
        model = models.from_proto(proto, self.path)
        for node in model.nodes:
            node.proto.name = node.key
        for tensor in model.graph.initializer:
            if tensor.name in model.weights:
                tensor.CopyFrom(onnx.numpy_helper.from_array(np.asarray(model.weights[tensor.name]), tensor.name))
        return model.proto


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--tolerance", type=float, default=0.01)
    parser.add_argument("names", nargs="*", default=[*NATURAL, *PLANTED])
    options = parser.parse_args()
    table = Table("model", "planted", "search", "kept in FP32", "of", "true error", "evaluations", "seconds", "remark",
                  title=f"tolerance {options.tolerance:g} (relative L2)")  # fmt: skip
    for name in options.names:
        path = options.models / f"{name}.onnx"
        if not path.exists():
            zoo.fetch(name, options.models)
        feeds, planted = dict(np.load(path.with_suffix(".npz"))), ""
        if name in PLANTED:
            bad = options.models / f"{name}.overflow.onnx"
            truth = faults.plant("overflow", path, bad, feeds=feeds, count=PLANTED[name])
            path, planted = bad, str(len(truth.culprits))
        case = Case(name, path, feeds, options.tolerance)
        for label, run in (
            ("probe", case.ours()),
            ("peer as it is", case.peers(our_oracle=False)),
            ("peer with our oracle", case.peers(our_oracle=True)),
        ):
            table.add_row(name, planted, label, str(len(run.kept)) if not run.remark.startswith("failed") else "-", str(len(case.emulation.candidates)),
                          f"{case.error(run.kept):.2%}", str(run.evaluations), f"{run.seconds:.1f}", run.remark)  # fmt: skip
        table.add_section()
    Console(width=170).print(table)


if __name__ == "__main__":
    main()
