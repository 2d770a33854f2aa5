"""Plant faults into an FP32 ONNX model: its FP32 result stays the same, FP16 storage or a builder stumbles, and the truth is recorded.

    python examples/faults.py KIND MODEL OUT [--at NODE ...] [--inputs FILE.npz] [--seed 0] [--count 1]

Each kind is a few nodes put between a tensor and everything that reads it, exact in FP32:

- overflow: times 2^k and back again. The value in between does not fit FP16: the node that makes it and the one that
  reads it are both to blame.
- underflow: a ratio of distances d = max(x) - x, (d + 1e-8) / (d + 1e-8). The epsilon vanishes in FP16, and where d is
  0 there remains 0 / 0: the node that adds the epsilon and the one that divides are both to blame.
- mask: -1e9 times a mask that hides nothing. In FP16 it is minus infinity, and 0 times that is NaN: the product alone
  is to blame (the sum that follows reads a 0 if the product is kept).
- unbuildable: nodes that ONNX Runtime computes and TensorRT's builder refuses, in turn Compress (not supported), a
  tensor of more than 8 dimensions, and DynamicQuantizeLinear (not supported). Each culprit fails alone.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

if not __package__:  # run as a script: the checkout is not on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness.errors import ProbeError, UsageError
from harness.models.emulate import Emulation, lowerable
from harness.models.model import Model, load, reads, walk
from harness.models.precision import Precision
from harness.models.runtime import Feeds, Runner, check_feeds
from harness.models.submodel import save

FP16_MAX = 65504.0
SAME = 1e-5  # relative L2 up to which two FP32 results count as equal
HARM = 1e-2  # relative L2 from which a lowered culprit counts as harmful


@dataclass(frozen=True)
class Planted:
    """One fault: its nodes, the tensor that readers of the original one now read, and who is to blame."""

    nodes: list[onnx.NodeProto]
    constants: list[TensorProto]
    culprits: tuple[str, ...]
    facts: dict[str, float]

    @property
    def output(self) -> str:
        name: str = self.nodes[-1].output[0]
        return name


@dataclass(frozen=True)
class Fault:
    """What was planted where, as recorded. `harm`: per culprit, the relative L2 error when it alone is lowered (null: NaN/Inf)."""

    at: str
    tensor: str
    nodes: list[str]
    culprits: list[str]
    facts: dict[str, float]
    harm: dict[str, float | None]


@dataclass(frozen=True)
class Truth:
    """The record beside the model. `error_spared`: everything but the culprits lowered; both errors null for `unbuildable`."""

    kind: str
    model: str
    seed: int
    culprits: list[str]
    faults: list[Fault]
    fp32_error: float
    error_all_lowered: float | None = None
    error_spared: float | None = None


Make = Callable[["_Planter", str, float], Planted]


def plant(kind: str, source: Path, out: Path, *, feeds: Feeds | None = None, at: Sequence[str] = (), count: int = 1,
          seed: int = 0) -> Truth:  # fmt: skip
    """Write `source` with faults of `kind` to `out`, and the truth to `<out stem>.truth.json`.

    `at` names the nodes (or inputs) behind whose output a fault goes; without it `count` places are drawn with `seed`,
    passing over those where it would do no harm. `feeds` default to `<source stem>.npz`. Raises UsageError if a
    place is unsuitable, ProbeError if no place is left or if the FP32 result would change.
    """
    if kind not in KINDS:
        raise UsageError(f"no fault named {kind!r}", hint=f"one of {', '.join(KINDS)}")
    model = load(source)
    feeds = _read_feeds(source) if feeds is None else feeds
    check_feeds(model.inputs, feeds, "inputs")
    sites = find_sites(model)
    wanted = [_site(model, sites, name) for name in at] or random.Random(seed).sample(sorted(sites), len(sites))
    chosen, spare = (wanted, []) if at else (wanted[:count], wanted[count:])
    while True:
        if len(chosen) < (len(at) or count):
            raise ProbeError(f"{source}: {len(chosen)} of {count} places for a fault of kind {kind} found, of {len(sites)} tried",
                             hint="a smaller --count, or another --seed")  # fmt: skip
        planted = _write(kind, model, chosen, feeds, out)
        truth = _verify(kind, model, load(out), {s: (sites[s], p) for s, p in planted.items()}, feeds, seed)
        harmless = [fault for fault in truth.faults if any(h is not None and h < HARM for h in fault.harm.values())]
        if not harmless:
            break
        if at:
            raise ProbeError(
                f"{harmless[0].at}: a fault here does too little harm: {harmless[0].harm}", hint="another --at"
            )
        kept = [site for site in chosen if site not in {fault.tensor for fault in harmless}]
        chosen, spare = kept + spare[: len(harmless)], spare[len(harmless) :]
    out.with_suffix(".truth.json").write_text(json.dumps(asdict(truth), indent=2) + "\n", encoding="utf-8")
    return truth


# Places


def find_sites(model: Model) -> dict[str, str]:
    """Tensors that a fault can be put behind -> key of the node that makes it (or name of the input).

    They are float32, depend on an input, and are read by some node as values.
    """
    live = {value.name for value in model.inputs}
    makers = {name: name for name in live}
    read: set[str] = set()
    for node in model.nodes:
        if node.op_type in ("Shape", "Size"):
            continue
        names = reads(node.proto)
        read.update(names)
        if live & set(names):
            live.update(node.proto.output)
            makers.update((name, node.key) for name in node.proto.output)
    return {
        name: maker for name, maker in makers.items() if name in read and model.dtypes.get(name) == TensorProto.FLOAT
    }


def _site(model: Model, sites: Mapping[str, str], name: str) -> str:
    """The tensor behind the node or input called `name`."""
    if found := [tensor for tensor, maker in sites.items() if maker == name]:
        return found[0]
    known = name in {node.key for node in model.nodes} | {value.name for value in model.inputs}
    reason = (
        "makes no float32 tensor that depends on an input and is read further on" if known else "is not in the model"
    )
    raise UsageError(f"{model.path}: {name!r} {reason}", hint="leave --at away to have places drawn with --seed")


# Kinds


@dataclass
class _Planter:
    """Makes nodes and constants under one scope."""

    scope: str
    opset: int

    def __post_init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[TensorProto] = []

    def constant(self, name: str, value: Any, dtype: type = np.float32) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), f"{self.scope}/{name}"))
        return f"{self.scope}/{name}"

    def op(self, op_type: str, *inputs: str, outputs: int = 1, name: str = "", **attributes: Any) -> str:
        """Append a node; returns the name of its last output."""
        key = f"{self.scope}/{name or op_type}"
        made = [f"{key}_output_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op_type, inputs, made, name=key, **attributes))
        return made[-1]

    def done(self, *culprits: str, **facts: float) -> Planted:
        return Planted(self.nodes, self.constants, tuple(f"{self.scope}/{name}" for name in culprits), facts)


def _overflow(make: _Planter, x: str, peak: float) -> Planted:
    exponent = max(1, math.ceil(math.log2(8 * FP16_MAX / peak))) if 0 < peak < math.inf else 17
    large = make.op("Mul", x, make.constant("up", 2.0**exponent), name="Scale")
    make.op("Mul", large, make.constant("down", 2.0**-exponent), name="Unscale")
    return make.done("Scale", "Unscale", scale=2.0**exponent, peak=peak)


def _underflow(make: _Planter, x: str, peak: float) -> Planted:
    epsilon = 1e-8
    distance = make.op("Sub", make.op("ReduceMax", x, keepdims=1), x)
    safe = make.op("Add", distance, make.constant("epsilon", epsilon))
    make.op("Mul", x, make.op("Div", safe, safe))
    return make.done("Add", "Div", epsilon=epsilon)


def _mask(make: _Planter, x: str, peak: float) -> Planted:
    hidden = make.op("Cast", make.op("IsNaN", x), to=TensorProto.FLOAT)
    make.op("Add", x, make.op("Mul", hidden, make.constant("hide", -1e9)))
    return make.done("Mul", mask=-1e9)


def _compress(make: _Planter, x: str, peak: float) -> Planted:
    first = make.op("Compress", x, make.constant("first", [True], bool))
    make.op("Add", x, make.op("Mul", first, make.constant("zero", 0.0)))
    return make.done("Compress")


def _quantise(make: _Planter, x: str, peak: float) -> Planted:
    make.op("DynamicQuantizeLinear", x, outputs=3)
    scale = make.nodes[-1].output[1]
    make.op("Add", x, make.op("Mul", scale, make.constant("zero", 0.0)))
    return make.done("DynamicQuantizeLinear")


def _many_dimensions(make: _Planter, x: str, peak: float) -> Planted:
    axes = range(9)
    if make.opset >= 13:
        where = make.constant("axes", axes, np.int64)
        make.op("Squeeze", make.op("Unsqueeze", x, where), where)
    else:
        make.op("Squeeze", make.op("Unsqueeze", x, axes=list(axes)), axes=list(axes))
    return make.done("Unsqueeze", "Squeeze")


KINDS: dict[str, tuple[Make, ...]] = {
    "overflow": (_overflow,),
    "underflow": (_underflow,),
    "mask": (_mask,),
    "unbuildable": (_compress, _many_dimensions, _quantise),
}


# Writing and checking


def _write(kind: str, model: Model, sites: Sequence[str], feeds: Feeds, out: Path) -> dict[str, Planted]:
    """Save `model` with a fault behind each tensor of `sites`; returns the faults by tensor."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    proto.ir_version = max(proto.ir_version, 4)  # older ones want constants listed as inputs
    peaks = _peaks(model, sites, feeds) if kind == "overflow" else dict.fromkeys(sites, 0.0)
    taken = {node.name.rpartition("/")[0] for node in proto.graph.node}
    scopes = (scope for i in itertools.count() if (scope := f"/planted/{kind}.{i}") not in taken)
    planted = {}
    for site, scope, make in zip(sites, scopes, itertools.cycle(KINDS[kind])):
        planted[site] = make(_Planter(scope, model.opset), site, peaks[site])
        _insert(proto.graph, site, planted[site])
    out.parent.mkdir(parents=True, exist_ok=True)
    save(proto, model.weights, out)
    return planted


def _insert(graph: onnx.GraphProto, tensor: str, fault: Planted) -> None:
    """Put the fault right behind the maker of `tensor`; whoever read the tensor, subgraphs too, reads the fault's output."""
    for node in walk(graph):
        for index, name in enumerate(node.input):
            if name == tensor:
                node.input[index] = fault.output
    place = next((i + 1 for i, node in enumerate(graph.node) if tensor in node.output), 0)
    for node in reversed(fault.nodes):
        graph.node.insert(place, node)
    graph.initializer.extend(fault.constants)


def _peaks(model: Model, tensors: Sequence[str], feeds: Feeds) -> dict[str, float]:
    """Largest magnitude of each tensor in an FP32 run."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    made = [name for name in tensors if name not in feeds and name not in model.outputs]
    proto.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in made)
    known = [name for name in tensors if name not in feeds]
    arrays = dict(feeds) | dict(
        zip(known, Runner(proto, model.weights, optimise=False).run(feeds, known) if known else [], strict=True)
    )
    return {name: float(np.abs(arrays[name]).max(initial=0)) for name in tensors}


def _verify(
    kind: str, original: Model, faulty: Model, planted: Mapping[str, tuple[str, Planted]], feeds: Feeds, seed: int
) -> Truth:
    """Check that FP32 is as it was, and measure what lowering the culprits does."""
    onnx.checker.check_model(str(faulty.path))
    reference = Runner(original.proto, original.weights).run(feeds)
    if not (error := relative_l2(Runner(faulty.proto, faulty.weights).run(feeds), reference)) < SAME:
        raise ProbeError(f"{faulty.path}: the FP32 result changed: relative L2 {error:.1e}, expected less than {SAME}",
                         hint="another --at or --seed")  # fmt: skip
    culprits = [name for _, fault in planted.values() for name in fault.culprits]
    harm: dict[str, float | None] = {}
    errors: dict[str, float | None] = {}
    if kind != "unbuildable":
        index = {node.key: node.index for node in faulty.nodes}
        emulation, every = Emulation(faulty, Precision.FP16), lowerable(faulty, Precision.FP16)

        def lowered(nodes: Sequence[int]) -> float | None:
            error = relative_l2(emulation.run(feeds, nodes), reference)
            return error if math.isfinite(error) else None

        harm = {name: lowered([index[name]]) for name in culprits}
        blamed = {index[name] for name in culprits}
        errors = {"error_all_lowered": lowered(every), "error_spared": lowered([i for i in every if i not in blamed])}
    faults = [
        Fault(maker, tensor, [n.name for n in fault.nodes], list(fault.culprits), fault.facts, {c: harm[c] for c in fault.culprits if c in harm})
        for tensor, (maker, fault) in planted.items()
    ]  # fmt: skip
    return Truth(kind, original.path.name, seed, culprits, faults, error, **errors)


def relative_l2(got: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    """The largest relative L2 error of the floating-point outputs; infinity for NaN or Inf."""
    worst = 0.0
    for g, e in zip(got, expected, strict=True):
        if e.dtype.kind == "f":
            norm = float(np.linalg.norm(e.astype(np.float64)))
            error = float(np.linalg.norm(g.astype(np.float64) - e)) / (norm or 1.0)
            worst = max(worst, error if math.isfinite(error) else math.inf)
    return worst


def _read_feeds(source: Path) -> dict[str, np.ndarray]:
    path = source.with_suffix(".npz")
    if not path.is_file():
        raise UsageError(
            f"{path} does not exist: inputs are needed to see what the model computes", hint="--inputs FILE.npz"
        )
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Plant faults into an ONNX model and record the truth.")
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--at", nargs="+", default=[], metavar="NODE", help="behind which nodes (else drawn with --seed)"
    )
    parser.add_argument("--inputs", type=Path, help="arrays by input name (MODEL with the ending .npz)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=1, help="how many independent faults (1)")
    options = parser.parse_args(arguments)
    try:
        feeds = _read_feeds(options.inputs) if options.inputs else None
        truth = plant(
            options.kind, options.model, options.out, feeds=feeds, at=options.at, count=options.count, seed=options.seed
        )
    except ProbeError as error:
        print(f"error: {error}" + (f"\n  try: {error.hint}" if error.hint else ""), file=sys.stderr)
        return error.exit_code
    print(f"{options.out}  {options.out.stat().st_size:,} bytes, FP32 error {truth.fp32_error:.1e}")
    for fault in truth.faults:
        print(f"  behind {fault.at}: {', '.join(fault.culprits)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
