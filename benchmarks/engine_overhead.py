"""What measuring costs and whether it is right: our loop against a bare one, ranges in ns, our times against nsys's.

Run: `python -m benchmarks.engine_overhead` (BERT-base, batch 1, sequence 128, on the best backend here; `--layers 2` for
a quick look on a processor). With `--nsys` the same engine runs once more under Nsight Systems, and the median compute
time that this process measured by itself is held against the kernels of each inference in the trace.

The bare loop makes the same library calls on the same buffers: copy in, execute, copy out, wait. The harness's loop adds
a range around each inference and the events and clocks that time it; making room for the times, and reading them, come
before and after it. Both run in turn, several rounds, and the ratio is that of the medians of the rounds.
`--plan FILE` keeps the engine: what is there already is not built again.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from ctypes import c_size_t, c_uint64, c_void_p
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console

from harness import engine, process, ranges
from harness.bert import model as bert
from harness.engine import BuildOptions, Engine, RunOptions
from harness.engines import measuring
from harness.engines.ort import OrtRunner
from harness.engines.runner import Runner
from harness.engines.trt_run import TrtRunner
from harness.record import Command
from probes.targets import inferring
from probes.targets.inferring import Spec
from reports.readers import nsys

OPTIONS = ("-t", "cuda,nvtx", "-s", "none", "--cpuctxsw=none", "--export=sqlite", "--force-overwrite=true")
console = Console()


def model(folder: Path, layers: int, batch: int, sequence: int) -> tuple[Path, dict[str, np.ndarray]]:
    """BERT-base with random weights, and one input."""
    config = bert.BertConfig(768, layers, 12, 3072)
    path = bert.save(bert.build_onnx(config, bert.random_weights(config)), folder / "bert.onnx")
    rng = np.random.default_rng(0)
    shape = (batch, sequence)
    values = {"input_ids": rng.integers(0, config.vocab_size, shape), "token_type_ids": np.zeros(shape, np.int64),
              "attention_mask": np.ones(shape, np.int64)}  # fmt: skip
    return path, values


def bare(runner: Runner) -> Callable[[int], None]:
    """The loop that a program would have without us."""
    if isinstance(runner, OrtRunner):
        session, feeds = runner._session, runner._feeds

        def run_ort(count: int) -> None:
            for _ in range(count):
                session.run(None, feeds)

        return run_ort
    assert isinstance(runner, TrtRunner)
    library, stream = runner.device.driver._library, c_void_p(runner.stream.handle)
    handle = runner.stream.handle
    launch = runner._graph.launcher(handle) if runner._graph is not None else partial(runner._execute, handle)
    copies = [[(slot.buffer._host, slot.buffer.address, slot.size) for tensor in tensors
               if (slot := runner._slots[tensor.name]).buffer is not None]
              for tensors in (runner.inputs, runner.outputs)]  # fmt: skip
    ins = [(c_uint64(there), c_void_p(here), c_size_t(size), stream) for here, there, size in copies[0]]
    outs = [(c_void_p(here), c_uint64(there), c_size_t(size), stream) for here, there, size in copies[1]]

    def run_trt(count: int) -> None:
        for _ in range(count):
            for words in ins:
                library.cuMemcpyHtoDAsync_v2(*words)
            launch()
            for words in outs:
                library.cuMemcpyDtoHAsync_v2(*words)
            library.cuStreamSynchronize(stream)

    return run_trt


def overhead(runner: Runner, iterations: int, rounds: int) -> tuple[float, float]:
    """Seconds of an inference, bare and in the harness: medians of rounds run in turn."""
    run, times = bare(runner), {"bare": [], "ours": []}
    run(iterations)
    for number in range(rounds):
        for name in ("bare", "ours") if number % 2 else ("ours", "bare"):
            once = partial(run, iterations)
            if name == "ours":
                _, once = measuring.prepared(runner, iterations, measuring.MEASURE)
            start = time.perf_counter()
            once()
            times[name].append((time.perf_counter() - start) / iterations)
    return statistics.median(times["bare"]), statistics.median(times["ours"])


def traced(spec: Spec, folder: Path) -> tuple[float, float]:
    """Median over the inferences in a trace: from the first kernel's start to the last one's end, and kernels alone, in ns."""
    report = folder / "trace"
    argv = ("nsys", "profile", *OPTIONS, "-o", str(report), *inferring.command(spec.write(folder / "infer.json")))
    run = process.run(Command(argv, 600.0, process.module_environment()), folder / "nsys")
    if not run.ok:
        raise SystemExit(f"nsys: {process.tail(run.stderr)}{process.tail(run.stdout)}")
    tables = nsys.read(report.with_suffix(".sqlite")).tables
    marks = tables["ranges"]
    marks = marks[marks["range"].astype(str).str.startswith("inference #")]
    kernels = tables["kernels"].sort_values("launch_ns")
    spans, sums = [], []
    for begin, end in zip(marks["start_ns"], marks["end_ns"], strict=True):
        own: pd.DataFrame = kernels[(kernels["launch_ns"] >= begin) & (kernels["launch_ns"] <= end)]
        if len(own):
            spans.append(float((own["start_ns"] + own["duration_ns"]).max() - own["start_ns"].min()))
            sums.append(float(own["duration_ns"].sum()))
    if not spans:
        raise SystemExit("the trace holds no kernel inside an inference")
    return statistics.median(spans), statistics.median(sums)


def compare_with_nsys(made: Engine, spec: Spec, feeds: dict[str, np.ndarray], folder: Path) -> None:
    with made.runner(RunOptions(cuda_graph=spec.cuda_graph)) as runner:
        runner.bind(feeds)
        measuring.loop(runner, spec.warmup, "warm-up")
        ours = statistics.median(measuring.loop(runner, spec.iterations, measuring.MEASURE)["compute_ns"])
    span, kernels = traced(spec, folder)
    console.print(f"compute, median: in-process {ours / 1e3:.1f} us; in the trace {span / 1e3:.1f} us from first to last kernel "
                  f"({100 * (ours / span - 1):+.2f} %), kernels alone {kernels / 1e3:.1f} us")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend")
    parser.add_argument("--precision", default="fp16")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--sequence", type=int, default=128)
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--cuda-graph", action="store_true")
    parser.add_argument("--nsys", action="store_true")
    parser.add_argument("--plan", type=Path, help="where the engine lies, or is to lie")
    parser.add_argument("--build-only", action="store_true")
    given = parser.parse_args()
    backend = engine.choose(given.backend)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        path, feeds = model(folder, given.layers, given.batch, given.sequence)
        np.savez(folder / "feeds.npz", allow_pickle=False, **feeds)
        shapes = {name: (array.shape,) * 3 for name, array in feeds.items()}
        options = BuildOptions(backend=backend, precision=given.precision, opt_profiles=shapes)
        if given.plan is not None and given.plan.is_file():
            made = engine.load(given.plan, backend, options)
        else:
            made = engine.build(path, options)
            if given.plan is not None:
                made.save(given.plan)
        if given.build_only:
            return
        console.print(
            f"{backend} {made.facts['version']}, BERT {given.layers} layers, B{given.batch} S{given.sequence}, {given.precision}"
        )
        with made.runner(RunOptions(cuda_graph=given.cuda_graph)) as runner:
            runner.bind(feeds)
            without, ours = overhead(runner, given.iterations, given.rounds)
        console.print(
            f"an inference: bare {without * 1e6:.1f} us, in the harness {ours * 1e6:.1f} us ({100 * (ours / without - 1):+.2f} %)"
        )
        cost = ranges.cost_ns()
        listening = "a tool listens" if ranges.listening() else "no tool attached"
        console.print(f"a range ({listening}): prepared {cost['prepared']:.0f} ns, named {cost['named']:.0f} ns")
        if given.nsys:
            plan = made.save(folder / "model.plan")
            spec = Spec("infer", path, folder / "result.json", folder, plan, options, (folder / "feeds.npz",),
                        iterations=given.iterations, cuda_graph=given.cuda_graph)  # fmt: skip
            compare_with_nsys(made, spec, feeds, folder)


if __name__ == "__main__":
    main()
