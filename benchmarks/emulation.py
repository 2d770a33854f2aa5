"""One instrumented session against a session per candidate set: the same model, the same sets, in the same run.

    python benchmarks/emulation.py [--models models] [--queries 24] [--threads 0] [NAME ...]

The peer does what a script does by hand: rewrite the model with a cast pair on every tensor and weight of the lowered
nodes, create a session, run it once. Ours creates one session and switches. Both round the same tensors; the table also
shows how far the two results lie apart (FP32 sums in another order, then rounded), and one plain FP32 run.
Models come from `examples/models.py`; minilm runs at a sequence length of 32.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from examples import models as zoo
from harness.models import model as models
from harness.models.emulate import Emulation, Sample
from harness.models.model import Model, mark_as_held
from harness.models.precision import Lowering, Precision
from harness.models.runtime import RunFailed, Runner, share_threads
from probes.bisecting import verdicts
from probes.bisecting.search import smallest_kept
from probes.bisecting.verdicts import relative_l2

NAMES = ("ppocr-det", "ppocr-rec", "minilm")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--queries", type=int, default=24)
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    share_threads(options.threads)  # as in a worker of probe; the peer gets the same
    table = Table("model", "plain run ms", "ours: create s", "ours: run ms", "run / plain", "peer: rewrite ms", "create ms", "run ms",
                  "per set ms", "ours / peer", "results apart", title="medians; FP16; the sets of a search, in its order")  # fmt: skip
    for name in options.names or NAMES:
        table.add_row(name, *compare(options.models / f"{name}.onnx", name, options.queries, options.threads))
    Console(width=200).print(table)


def compare(path: Path, name: str, queries: int, threads: int) -> list[str]:
    if not path.exists():
        zoo.fetch(name, path.parent)
    model, feeds = models.load(path), dict(np.load(path.with_suffix(".npz")))
    if name == "minilm":
        feeds = {key: np.resize(array, (1, 32)) for key, array in feeds.items()}
    plain = Runner(model.proto, model.weights, threads=threads)
    create_s, emulation = timed(partial(Emulation, model, threads=threads))
    sets = sets_of_a_search(emulation.bind(feeds), emulation.candidates, queries)
    sample = emulation.bind(feeds)
    plain.run(feeds), sample.run([])  # warm
    rows: dict[str, list[float]] = {key: [] for key in ("plain", "ours", "rewrite", "create", "run", "apart")}
    results = []
    for lowered in sets:  # one after the other, as a search does
        seconds, result = timed(partial(sample.run, lowered))
        rows["ours"].append(seconds)
        results.append(result)
    rows["plain"] = [timed(partial(plain.run, feeds))[0] for _ in sets]
    for lowered, ours in zip(sets, results, strict=True):
        seconds, (proto, weights) = timed(partial(rewrite, model, lowered))
        rows["rewrite"].append(seconds)
        seconds, session = timed(partial(create, proto, weights, threads))
        rows["create"].append(seconds)
        seconds, theirs = timed(partial(session.run, feeds))
        rows["run"].append(seconds)
        rows["apart"].append(max(relative_l2(a, b) for a, b in zip(ours, theirs, strict=True)))
    middle = {key: statistics.median(values) for key, values in rows.items()}
    peer = statistics.median(map(sum, zip(rows["rewrite"], rows["create"], rows["run"], strict=True)))
    ms = {key: f"{1e3 * value:.1f}" for key, value in middle.items()}
    return [ms["plain"], f"{create_s:.2f}", ms["ours"], f"{middle['ours'] / middle['plain']:.2f}", ms["rewrite"], ms["create"], ms["run"],
            f"{1e3 * peer:.1f}", f"{peer / middle['ours']:.1f} x faster", f"{middle['apart']:.1e}"]  # fmt: skip


def create(proto: onnx.ModelProto, weights: dict[str, np.ndarray], threads: int) -> Runner:
    """The peer's session. ONNX Runtime's fusions trip over some cast pairs in a LayerNorm; it runs without them then."""
    try:
        return Runner(proto, weights, threads=threads, fold_constants=False)
    except RunFailed:
        return Runner(proto, weights, threads=threads, optimise=False)


def sets_of_a_search(sample: Sample, candidates: list[int], count: int) -> list[list[int]]:
    """What a search asks, in its order: the first `count` questions at a third of the error of lowering everything."""
    reference = sample.run([])
    whole = verdicts.accuracy([sample.run(candidates)], [reference], tolerance=0.0).value
    assert whole is not None
    tolerance = whole / 3
    running = smallest_kept(candidates, tolerance=tolerance)
    sets: list[list[int]] = []
    try:
        request = next(running)
        while len(sets) < count:
            sets.append(sorted(request.query))
            request = running.send(verdicts.accuracy([sample.run(request.query)], [reference], tolerance=tolerance))
    except StopIteration:
        pass
    return sets


def rewrite(model: Model, lowered: list[int]) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """The model with a cast pair on everything that the lowered nodes read and make; their weights rounded beforehand."""
    lowering, low = Lowering(model.proto, Precision.FP16), set(lowered)
    weights, nodes, extra = dict(model.weights), [], []
    for node in model.nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(node.proto)
        if node.index not in low:
            nodes.append(copy)
            continue
        where = lowering.positions(node.proto, model.dtypes)
        for i in where.inputs:
            name, rounded = copy.input[i], f"{copy.input[i]}:{node.index}"
            if (value := model.constant(name)) is not None:
                array = Precision.FP16.round(value)
                if name in model.weights:
                    weights[rounded] = array
                    extra.append(
                        TensorProto(
                            name=rounded,
                            data_type=TensorProto.FLOAT,
                            dims=array.shape,
                            data_location=TensorProto.EXTERNAL,
                        )
                    )
                else:
                    extra.append(numpy_helper.from_array(array, rounded))
            else:
                nodes += pair(name, rounded)
            copy.input[i] = rounded
        after = []
        for i in where.outputs:
            name = copy.output[i]
            copy.output[i] = f"{name}:raw"
            after += pair(f"{name}:raw", name)
        nodes += [copy, *after]
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    for tensor in extra:
        if tensor.data_location == TensorProto.EXTERNAL:
            mark_as_held(tensor, weights[tensor.name])
    names = {t.name for t in extra}
    proto.graph.initializer.extend({t.name: t for t in extra}[name] for name in names)
    return proto, weights


def pair(source: str, target: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node("Cast", [source], [f"{target}:h"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", [f"{target}:h"], [target], to=TensorProto.FLOAT),
    ]


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


if __name__ == "__main__":
    main()
