"""A TensorRT that is none: the process of one trial, with ONNX Runtime for inference and the emulation for FP16.

`trt_backend.py TRIAL.json RESULT.json`. The file that FAKE_TRT names says in JSON what is wrong with this "TensorRT":
gpus, version, strong, seconds (of a build), log (a line for each build), refused (nothing can be built, and why), and what
befalls a trial:
lowered {node: what} where a node is not held in FP32, present {node: what} where it is in the model, fused {tensor: what}
unless it is materialised, default [kind, value, what] unless that switch is set. What: segv, hang, cuda, memory, build,
wrong, nan, finding (of a sanitizer that asks). overflows [node]: what these make does not fit FP16, unless they are held in FP32; shy [node]: the same, unless
they are outputs as well. A node of a part (`name#2`) is meant by its name.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from harness.engines.layers import LayerFact
from harness.models import model as models
from harness.models import submodel
from harness.models.emulate import Emulation, lowerable
from harness.models.inputs import load_samples
from harness.models.precision import Precision
from harness.models.runtime import Runner
from probes.bisecting.engines import plugins as trt_plugins
from probes.bisecting.engines.trial import OUTPUTS, PLAN, Trial

ASKED: dict = {}


def main() -> int:
    ASKED.update(json.loads(Path(os.environ["FAKE_TRT"]).read_text()))
    trial, result = Trial.from_json(json.loads(Path(sys.argv[1]).read_text())), Path(sys.argv[2])
    said: dict = {"stage": "load", "ok": False}

    def tell(**news) -> None:
        said.update(news)
        result.write_text(json.dumps(said))

    tell()
    if "refused" in ASKED:
        tell(error="UsageError", message=ASKED["refused"], hint="--backend ort-cpu")
        return 2
    if trial.survey:
        tell(stage="done", ok=True, facts=survey(trial))
        return 0
    told = befalls(trial)
    if trial.plan is None:
        tell(stage="build")
        with Path(ASKED["log"]).open("a") as log:
            log.write("build\n")
        time.sleep(ASKED.get("seconds", 0))
        if "build" in told:
            tell(error="BuildFailed", message="10: Could not find any implementation for node")
            return 125
        (result.parent / PLAN).write_bytes(b"plan")
        tell(facts={"build_s": ASKED.get("seconds", 0.0), "version": "8.6.1"})
    tell(stage="infer")
    for what in told:
        if what == "segv":
            os.kill(os.getpid(), signal.SIGSEGV)
        if what == "hang":
            time.sleep(600)
        if what == "finding":
            (result.parent / "finding").touch()
        if what == "cuda":
            tell(
                error="LaunchFailed", message="f.py:1: cuStreamSynchronize() returned CUDA_ERROR_ILLEGAL_ADDRESS (700)"
            )
            return 125
        if what == "memory":
            tell(error="MemoryError", message="out of memory on the host")
            return 125
    names = []
    for number, outputs in enumerate(infer(trial)):
        if "wrong" in told:
            outputs = {name: array * 1.5 for name, array in outputs.items()}
        if "nan" in told:
            outputs = {name: array * np.nan for name, array in outputs.items()}
        path = result.parent / OUTPUTS.format(number)
        np.savez(path, allow_pickle=False, **outputs)
        names.append(path.name)
    held = len(trial.options.layer_precisions)
    times = [(name, 2e3 if held and name in trial.options.layer_precisions else 1e3) for name in ASKED.get("timed", [])]
    tell(stage="done", ok=True, outputs=names, latency_ns=1e6 + 1e4 * held, layers=times, information="")
    return 0


def befalls(trial: Trial) -> list[str]:
    options = trial.options
    held = set(options.layer_precisions)
    lowers = options.precision in ("fp16", "bf16")
    keys = [node.key for node in models.load(trial.source).nodes]
    known, free = {bare(key) for key in keys}, {bare(key) for key in keys if key not in held}
    told = [what for name, what in ASKED.get("lowered", {}).items() if lowers and name in free]
    told += [what for name, what in ASKED.get("present", {}).items() if name in known]
    marked = {*options.outputs, *options.debug_tensors}
    told += [what for name, what in ASKED.get("fused", {}).items() if name not in marked]
    for kind, value, what in ASKED.get("default", []):
        cured = {
            "level": options.optimisation_level is not None and options.optimisation_level <= int(value or 0)
            if kind == "level"
            else False,
            "tactic": f"-{value}" in (options.tactic_sources or ()),
            "route": value in (options.build_route or "").split(),
        }
        told += [] if cured[kind] else [what]
    return told


def infer(trial: Trial) -> list[dict]:
    """Plugins by standard operators, FP16 by the emulation; marked tensors are outputs."""
    model = models.load(trial.source)
    held = set(trial.options.layer_precisions)
    plugins = [node.index for node in model.nodes if trt_plugins.is_plugin(node.proto)]
    proto = trt_plugins.replaced(model, plugins)
    if trial.options.precision == "fp16":
        shown = {
            node.name for node in proto.graph.node if {*node.output} & {value.name for value in proto.graph.output}
        }
        overflow(proto, {*ASKED.get("overflows", [])}, held)
        overflow(proto, {*ASKED.get("shy", [])}, held | shown)
    names = [*model.outputs, *trial.options.outputs]
    for name in trial.options.outputs:
        proto.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    whole = models.load(submodel.save(proto, model.weights, Path(sys.argv[2]).with_name("varied.onnx")))
    feeds = load_samples(trial.samples)
    if trial.options.precision != "fp16":
        runner = Runner(whole.proto, whole.weights)
        return [dict(zip(names, runner.run(one), strict=True)) for one in feeds]
    emulation = Emulation(whole, Precision.FP16, clamp=not ASKED.get("strong", False))
    lowered = [i for i in lowerable(whole, Precision.FP16) if whole.nodes[i].key not in held]
    return [dict(zip(names, emulation.run(one, lowered), strict=True)) for one in feeds]


def bare(name: str) -> str:
    return name.partition("#")[0]


def overflow(proto: onnx.ModelProto, names: set[str], but: set[str]) -> None:
    """Scale what these nodes make up and down again."""
    if not names:
        return
    constants = {"fault/up": 2.0**20, "fault/down": 2.0**-20}
    if not any(tensor.name in constants for tensor in proto.graph.initializer):
        proto.graph.initializer.extend(numpy_helper.from_array(np.float32(v), name) for name, v in constants.items())
    nodes = []
    for node in proto.graph.node:
        nodes.append(onnx.NodeProto.FromString(node.SerializeToString()))
        if bare(node.name) in names and node.name not in but:
            made = node.output[0]
            nodes[-1].output[0] = f"{made}/raw"
            nodes.append(helper.make_node("Mul", [f"{made}/raw", "fault/up"], [f"{made}/up"], name=f"{node.name}/up"))
            nodes.append(helper.make_node("Mul", [f"{made}/up", "fault/down"], [made], name=f"{node.name}/down"))
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)


def survey(trial: Trial) -> dict:
    """A layer for each node, with a broadcast before it that has no name of its own."""
    version = ASKED.get("version", "8.6.1")
    layers = []
    for node in models.load(trial.source).nodes:
        shuffle = f"(Unnamed Layer* {node.index}) [Shuffle]"
        layers.append(LayerFact(shuffle, "SHUFFLE", (), (), (f"{shuffle}_output",)).__dict__)
        reads = (*node.proto.input, f"{shuffle}_output")
        layers.append(LayerFact(node.key, node.op_type.upper(), (), reads, tuple(node.proto.output)).__dict__)
    network = {"version": version, "strongly_typed": ASKED.get("strong", False), "features": ASKED.get("features", []),
               "layers": layers, "tactic_sources": ["CUBLAS", "CUDNN"], "routes": ASKED.get("routes", "")}  # fmt: skip
    facts = {"backend": str(trial.options.backend), "version": version, "gpu": "none"}
    return {"facts": facts, "gpus": ASKED.get("gpus", 1), "runs": True, "network": network}


if __name__ == "__main__":
    sys.exit(main())
