"""Planted overflows in FP16 BERT on real TensorRT: `probe bisect --backend trt` against `polygraphy debug precision`.

    python benchmarks/trt_bisect.py [--layers 3] [--kind KIND] [--only ours|peer] [--ours-s 300] [--peer-s 190]

Needs a GPU and TensorRT 8.6 or 10 (weakly typed: the peer knows nothing else). BERT-base-wide layers with random weights,
a fault in each of three layers. Both search the same model, the same inputs and the same criterion (relative L2 of every
output at most 1 %); the peer's check is a process that runs the engine that it built. Both are stopped when their time is
up, and what they had found by then is shown. Then the same search once more, from the cache.

`overflow` is the fault of examples/faults.py, behind a dense layer's product: Scale and Unscale are to blame, unless one
kernel computes both and never stores what lies between. `matmul`, tried if that is so, scales what the product reads by
2^k and its result by 2^-k: Scale, MatMul and Unscale are to blame, and a product in FP32 costs time.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from examples import faults
from harness import engine, optional, process
from harness.bert import model as bert
from harness.engines.options import BuildOptions
from harness.models import model, runtime
from probes.bisecting.engines.recipes import profiles
from probes.bisecting.engines.trial import Bench, Trial
from probes.bisecting.verdicts import relative_l2

ROOT = Path(__file__).resolve().parents[1]
TOLERANCE = 1e-2
EXPONENT = 18
KINDS = ("overflow", "matmul")
PROGRAM = (  # obeys Ctrl-C, also where it was started in the background
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); from probes import cli;"
    " sys.exit(cli.run(sys.argv[1:]))"
)
SUMMARY = re.compile(r"try running the (\w+) (\d+) layer")


@dataclass
class Found:
    """What a method ended with. `kept`: ONNX nodes; for the peer, which names layers by number alone, how many of them."""

    method: str
    kept: list[str] | int = field(default_factory=list)
    builds: int = 0
    seconds: float = 0.0
    latency_ms: float | None = None
    remark: str = ""


def say(*words: object) -> None:
    print(*words, flush=True)


# The model


def make(folder: Path, layers: int, kind: str, batch: int, sequence: int) -> tuple[Path, Path, list[str]]:
    """The faulty model, its inputs, its culprits."""
    config = bert.BertConfig(768, layers, 12, 3072, vocab_size=2000)
    plain = bert.save(bert.build_onnx(config, bert.random_weights(config)), folder / "bert.onnx")
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (batch, sequence))
    feeds = {"input_ids": ids, "token_type_ids": np.zeros_like(ids), "attention_mask": np.ones_like(ids)}
    np.savez(folder / "bert.npz", allow_pickle=False, **feeds)
    chosen = sorted({round(at) for at in np.linspace(0, layers - 1, 3)})
    products = [f"/encoder/layer.{at}/intermediate/dense/MatMul" for at in chosen]
    faulty = folder / "faulty.onnx"
    if kind == "overflow":
        truth = faults.plant("overflow", plain, faulty, feeds=feeds, at=products)
        return faulty, folder / "bert.npz", truth.culprits
    culprits = plant_products(plain, faulty, products)
    before, after = (run(path, feeds) for path in (plain, faulty))
    assert relative_l2(after, before) < 1e-4, "in FP32 the faulty model must compute the same"
    return faulty, folder / "bert.npz", culprits


def run(path: Path, feeds: dict[str, np.ndarray]) -> np.ndarray:
    loaded = model.load(path)
    made: np.ndarray = runtime.Runner(loaded.proto, loaded.weights).run(feeds)[0]
    return made


def plant_products(source: Path, target: Path, products: list[str]) -> list[str]:
    """Scale before and unscale after each of these products; the names of all three are the culprits."""
    proto = onnx.load(str(source))
    nodes, culprits = [], []
    for name, value in (("up", 2.0**EXPONENT), ("down", 2.0**-EXPONENT)):
        proto.graph.initializer.append(numpy_helper.from_array(np.float32(value), f"fault/{name}"))
    for node in proto.graph.node:
        if node.name not in products:
            nodes.append(node)
            continue
        scope = node.name.rpartition("/")[0]
        copy = onnx.NodeProto.FromString(node.SerializeToString())
        copy.input[0], copy.output[0] = f"{scope}/scaled", f"{scope}/product"
        nodes += [
            helper.make_node("Mul", [node.input[0], "fault/up"], [f"{scope}/scaled"], name=f"{scope}/Scale"), copy,
            helper.make_node("Mul", [f"{scope}/product", "fault/down"], [node.output[0]], name=f"{scope}/Unscale"),
        ]  # fmt: skip
        culprits += [f"{scope}/Scale", node.name, f"{scope}/Unscale"]
    made = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del proto.graph.node[:]
    proto.graph.node.extend(made)
    onnx.save(proto, str(target))
    return culprits


# Ours


def ours(path: Path, inputs: Path, folder: Path, limit_s: float, name: str, level: int | None) -> Found:
    words = [sys.executable, "-c", PROGRAM, "bisect", str(path), "--inputs",
             str(inputs), "--backend", "trt", "--out", str(folder / name), *(["--level", str(level)] if level is not None else [])]  # fmt: skip
    start = time.monotonic()
    with (folder / f"{name}.log").open("w") as log:
        running = subprocess.Popen(
            words, stdout=log, stderr=log, cwd=folder, env={**os.environ, **process.module_environment()}
        )
        try:
            running.wait(limit_s)
        except subprocess.TimeoutExpired:
            running.send_signal(signal.SIGINT)  # it writes down what it has
            running.wait(60)
    found = Found("probe", seconds=time.monotonic() - start)
    rows = read_trials(folder / name)
    found.builds = sum(row["built"] for row in rows)
    if not (folder / name / "result.json").exists():
        found.remark = (folder / f"{name}.log").read_text()[-600:]
        return found
    result = json.loads((folder / name / "result.json").read_text())
    found.kept = result["culprits"] or result["undecided"]
    found.remark = f"{result['status']}, {'certified minimal' if result['certified_minimal'] else 'not certified'}, error {result['error_after']}"
    times = [
        row["latency_ns"]
        for row in rows
        if row["latency_ns"] is not None and row["outcome"] == "pass" and "FP16" in row["engine"]
    ]
    found.latency_ms = times[-1] / 1e6 if times else None
    say("\n".join(f"  {note}" for note in result["notes"])[:1500])
    return found


def read_trials(session: Path) -> list[dict]:
    path = session / "raw" / "trials" / "trials.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def show_trials(session: Path) -> None:
    for row in read_trials(session):
        latency = "-" if row["latency_ns"] is None else f"{row['latency_ns'] / 1e6:.3f} ms"
        say(
            f"  {row['engine']:28} {row['outcome']:10} error {row['error']}  {latency}  build {row['build_s'] or 0:.1f} s{' (cache)' if row['cached'] else ''}  {row['signature'] or ''}"
        )


# The peer

CHECK = """
import sys
import numpy as np
from pathlib import Path
from harness import engine
from probes.bisecting.verdicts import relative_l2
with engine.load(Path(sys.argv[1]), "trt").runner() as runner:
    got = runner.infer(dict(np.load(sys.argv[2])))
want = np.load(sys.argv[3])
worst = max(relative_l2(got[name], want[name]) for name in want.files)
print("error", worst)
sys.exit(not worst <= float(sys.argv[4]))
"""


def tactics() -> list[str]:
    """The peer leaves out the tactic sources that we leave out (PROBE_TACTIC_SOURCES, on a machine without cuDNN)."""
    out = [name[1:] for name in BuildOptions().tactic_sources or () if name.startswith("-")]
    if not out:
        return []
    members = optional.load("tensorrt").TacticSource.__members__
    return ["--tactic-sources", *(name for name in members if name not in out)]


def peer(path: Path, inputs: Path, folder: Path, limit_s: float, level: int | None) -> Found:
    """Its artifacts are sorted into good and bad engines; the last good one is what it would end with."""
    work = folder / "peer"
    work.mkdir()
    (work / "check.py").write_text(CHECK)
    loaded = model.load(path)
    feeds = dict(np.load(inputs))
    outputs = dict(zip(loaded.outputs, runtime.Runner(loaded.proto, loaded.weights).run(feeds), strict=True))
    np.savez(work / "golden.npz", allow_pickle=False, **outputs)
    shapes = [f"{name}:[{','.join(map(str, array.shape))}]" for name, array in feeds.items()]
    program = "import sys; sys.argv[0] = 'polygraphy'; from polygraphy.tools import main; sys.exit(main())"
    words = [sys.executable, "-c", program, "debug", "precision", str(path), "--mode", "bisect", "--fp16",
             "--trt-min-shapes", *shapes, "--trt-opt-shapes", *shapes, "--trt-max-shapes", *shapes,
             *(["--builder-optimization-level", str(level)] if level is not None else []),
             *tactics(), "--artifacts", "polygraphy_debug.engine", "--art-dir", "art", "--no-remove-intermediate",
             "--check", sys.executable, "check.py", "polygraphy_debug.engine", str(inputs), "golden.npz", str(TOLERANCE)]  # fmt: skip
    start = time.monotonic()
    log = work / "peer.log"
    with log.open("w") as stream:
        running = subprocess.Popen(words, stdout=stream, stderr=stream, cwd=work, start_new_session=True,
                                   env={**os.environ, **process.module_environment()})  # fmt: skip
        try:
            running.wait(limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(running.pid, signal.SIGKILL)
            running.wait()
    said = log.read_text(errors="replace")
    good = sorted((work / "art" / "good").glob("*"), key=lambda one: one.stat().st_mtime)
    bad = list((work / "art" / "bad").glob("*"))
    found = Found(
        "polygraphy debug precision --mode bisect", seconds=time.monotonic() - start, builds=len(good) + len(bad)
    )
    summary = SUMMARY.search(said)
    marked = re.findall(r"Selecting (?:first|last) (\d+) layer", said)
    found.kept = int(summary.group(2)) if summary else int(marked[-1]) if marked else 0
    cut = "stopped as its time was up" if found.seconds >= limit_s else "it failed"
    found.remark = "ended" if summary else f"{cut}: {(said.strip().splitlines() or [''])[-1][:200]}"
    if good:
        trial = Trial(
            path, BuildOptions(backend="trt", opt_profiles=profiles(loaded, (inputs,))), (inputs,), 100, plan=good[-1]
        )
        result = Bench(work / "measure").alone(trial, work / "measure")
        found.latency_ms = result.latency_ns / 1e6 if result.latency_ns else None
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--kind", choices=KINDS, help="else the first one that does harm")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--sequence", type=int, default=128)
    parser.add_argument("--only", choices=("ours", "peer"), default="", help="with --kind")
    parser.add_argument("--level", type=int, help="the builder's optimisation level")
    parser.add_argument("--ours-s", type=float, default=300)
    parser.add_argument("--peer-s", type=float, default=190)
    options = parser.parse_args()
    engine.choose("trt")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        deadline = time.monotonic() + options.ours_s
        for kind in (options.kind,) if options.kind else KINDS:
            room = folder / kind
            room.mkdir()
            path, inputs, culprits = make(room, options.layers, kind, options.batch, options.sequence)
            say(
                f"BERT-base-wide, {options.layers} layers, B{options.batch} S{options.sequence}, {kind}: {', '.join(culprits)}"
            )
            if options.only == "peer":
                break
            first = ours(path, inputs, room, max(60.0, deadline - time.monotonic()), "first", options.level)
            show_trials(room / "first")
            report(first, culprits)
            if not first.remark.startswith("nothing_to_find"):
                break
            say(
                "TensorRT keeps what lies between the two in registers: all of it in FP16 is right, there is nothing to find"
            )
        if options.only != "peer":
            again = ours(path, inputs, room, 90, "again", options.level)
            again.method = "probe, the same search again"
            report(again, culprits)
            say(f"second run {first.seconds / again.seconds:.0f} times faster ({again.builds} engines built)")
        if options.only != "ours":
            report(peer(path, inputs, room, options.peer_s, options.level), culprits)


def report(found: Found, culprits: list[str]) -> None:
    latency = "-" if found.latency_ms is None else f"{found.latency_ms:.3f} ms"
    say(f"{found.method}: {found.builds} builds, {found.seconds / 60:.1f} min, latency {latency}; {found.remark}")
    if isinstance(found.kept, int):
        say(f"  kept: a run of {found.kept} layers")
        return
    scopes = {name.rpartition("/")[0] for name in culprits}
    met = {name.rpartition("/")[0] for name in found.kept}
    say(f"  kept: {shlex.join(found.kept)}")
    say(
        f"  beyond the planted: {sorted(set(found.kept) - set(culprits)) or 'none'}; faults met: {len(met & scopes)} of {len(scopes)}"
    )


if __name__ == "__main__":
    main()
