"""BERT-base and -large as one plan of our kernels, beside PyTorch compiled and recorded as a CUDA graph, on a GPU.

Run: `python -m benchmarks.ladder` (`--budget 230` seconds in all, `--json FILE` with what there is so far, `--only TEXT`),
`python -m benchmarks.ladder --climb DIR` for the whole `probe ladder bert` of BERT-base, timed, in a session, and, without
a GPU, `python -m benchmarks.ladder --plan`: what every operation of each plan moves and computes, and needs at the least
on an H100 (its measured rates, below), beside the figure that is asked for.

Times are medians of replays of one CUDA graph of the whole encoder, between two events; weights alone are larger than the
L2 cache for all but the smallest. Every variant's first sequence is compared with float64 (`error`, relative L2). A
variant that does not fit in the time that is left is said to be skipped; one that fails is told with its reason.
Weights are random, and so are ids; the peers have the same weights, dtype and mask.
"""

from __future__ import annotations

import argparse
import functools
import json
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from harness import optional
from harness.bert import calibration, floors
from harness.bert import model as bert
from harness.bert import plan as bert_plan
from harness.bert import reference as bert_reference
from harness.bert import torch_peer as bert_torch
from harness.bert.model import BertConfig
from harness.bert.plan import BertPlan, PlanOptions
from harness.bert.run import OnGpu, time_calls
from harness.cuda import device as gpu
from harness.cuda.device import Device
from harness.errors import ProbeError, UsageError
from kernels.attention import uniform_lengths
from probes.kernels.benching import Roofs

# A copy and a product of 8192 x 8192 on an H100; INT8's rate is twice FP16's, which was not measured.
H100 = Roofs(2.97e12, {"fp16": 744e12, "int8": 1488e12, "fp32": 60e12})
ASKED_MS = {"base B32 S128": 1.45, "base B1 S128": 0.5, "large B32 S384": 13.0}
SECONDS = 0.4  # of replays of each variant
VARIANT_S = 75  # a variant that takes longer (a peer's compilation) is given up


@dataclass(frozen=True)
class Workload:
    """A model and a batch."""

    name: str
    config: str
    batch: int
    sequence: int
    uniform: bool = False  # lengths of 0.2 to 1.0 of the sequence

    @property
    def lengths(self) -> tuple[int, ...] | None:
        return uniform_lengths(self.batch, self.sequence) if self.uniform else None


@dataclass(frozen=True)
class Variant:
    """What is timed: a plan of ours, or a peer in FP16."""

    name: str
    options: PlanOptions = field(default_factory=PlanOptions)
    peer: str = ""  # eager, compile


FP16 = PlanOptions()
BASE32 = Workload("base B32 S128", "base", 32, 128)
BASE1 = Workload("base B1 S128", "base", 1, 128)
LARGE32 = Workload("large B32 S384", "large", 32, 384)
RESIDUAL = replace(FP16, residual_in_product=True)
OURS = (Variant("FP16"), Variant("FP16 + residual", RESIDUAL), Variant("FP16, weights [in, out]", replace(FP16, inputs_first=True)),
        Variant("FP16 + residual, [in, out]", replace(RESIDUAL, inputs_first=True)))  # fmt: skip
INT8 = (Variant("INT8", replace(FP16, precision="int8")),
        Variant("INT8 with INT8 attention", replace(FP16, precision="int8", int8_attention=True)))  # fmt: skip
PADDING = (Variant("FP16 padded"), Variant("FP16 packed", replace(FP16, packed=True)))
PEERS = (Variant("PyTorch eager", peer="eager"), Variant("torch.compile + CUDA graph", peer="compile"))
JOBS = (
    *((BASE32, one) for one in (*OURS, *INT8)), *((BASE1, one) for one in OURS),
    *((replace(BASE32, name="base B32 S128 uniform", uniform=True), one) for one in PADDING),
    *((LARGE32, one) for one in (*OURS, *INT8)),
    *((replace(LARGE32, name="large B32 S384 uniform", uniform=True), one) for one in PADDING),
    *((BASE32, one) for one in PEERS), *((BASE1, one) for one in PEERS), *((LARGE32, one) for one in PEERS),
)  # fmt: skip


def say(text: str) -> None:
    """Flushed, so that what there is survives a kill."""
    print(text, flush=True)


class TooLong(Exception):
    """A variant's time is up."""


@functools.lru_cache(1)
def model(name: str) -> tuple[BertConfig, dict[str, np.ndarray]]:
    config = BertConfig.preset(name)
    return config, bert.random_weights(config)


def feeds_of(work: Workload) -> dict[str, np.ndarray]:
    config, _ = model(work.config)
    shape = (work.batch, work.sequence)
    lengths = np.array(work.lengths or (work.sequence,) * work.batch)
    mask = (np.arange(work.sequence)[None, :] < lengths[:, None]).astype(np.int64)
    ids = np.random.default_rng(0).integers(0, config.vocab_size, shape)
    return {"input_ids": ids, "token_type_ids": np.zeros(shape, np.int64), "attention_mask": mask}


@functools.lru_cache(1)
def known(work: Workload) -> tuple[np.ndarray, calibration.Scales]:
    """The first sequence's result in float64, and INT8's scales from it."""
    config, weights = model(work.config)
    first = {name: array[:1] for name, array in feeds_of(work).items()}
    reference = bert_reference.forward(config, weights, first, dtype=np.float64)
    return reference, calibration.calibrate(config, weights, [first]).scales("max")


def ours(work: Workload, variant: Variant) -> tuple[list[float], np.ndarray]:
    """Nanoseconds of each replay, and the first sequence's result."""
    device = gpu.get()
    config, weights = model(work.config)
    options = replace(variant.options, batch=work.batch, sequence=work.sequence, lengths=work.lengths,
                      capability=device.facts.compute_capability)  # fmt: skip
    made = bert_plan.build(config, weights, options, known(work)[1])
    ran = OnGpu(made, feeds_of(work), device)
    for line in told(made, ran.operation_times(0.02)):
        say(line)
    return ran.times(SECONDS, graph=True), made.output(ran.read())[:1]


def told(made: BertPlan, times: dict[str, float]) -> Iterator[str]:
    """What each operation moves, computes and needs at the least on an H100, and what it took."""
    yield f"    {'operation':18}{'launches':>9}{'blocks':>8}{'MB':>10}{'GFLOP':>10}{'floor us':>10}" + (
        "   took us" if times else ""
    )
    rows = floors.floors(made, H100)
    for row in rows:
        taken = f"{times[row.operation] / 1e3:10.1f}" if row.operation in times else ""
        yield (f"    {row.operation:18}{row.launches:9}{row.blocks:8}{row.bytes / 1e6:10.1f}{row.flops / 1e9:10.1f}"
               f"{(row.bound_ns or 0) / 1e3:10.1f}{taken}")  # fmt: skip
    total = f"{sum(times.values()) / 1e3:10.1f}" if times else ""
    yield f"    {'sum':18}{len(made.plan.steps):9}{'':28}{(floors.bound_ns(made, H100) or 0) / 1e3:10.1f}{total}"


def plans(only: str) -> Iterator[str]:
    """The same of every plan, without a GPU."""
    for work, variant in JOBS:
        if variant.peer or variant.options.inputs_first or only not in f"{work.name}: {variant.name}":
            continue
        config, weights = model(work.config)
        options = replace(
            variant.options, batch=work.batch, sequence=work.sequence, lengths=work.lengths, capability=(9, 0)
        )
        made = bert_plan.build(config, weights, options, calibrated(work.config))
        figure = ASKED_MS.get(work.name) if variant.options.precision == "fp16" else None
        asked = f", asked {figure} ms" if figure else ""
        yield f"{work.name}: {variant.name}{asked}"
        yield from told(made, {})


@functools.lru_cache(1)
def calibrated(name: str) -> calibration.Scales:
    """Some scales: what is moved and computed does not depend on them."""
    config, weights = model(name)
    feeds = {name: np.ones((1, 4), np.int64) for name in bert.INPUTS}
    return calibration.calibrate(config, weights, [feeds]).scales("max")


def peer(work: Workload, variant: Variant) -> tuple[list[float], np.ndarray]:
    torch = optional.load("torch")
    config, weights = model(work.config)
    encoder = bert_torch.Model(torch, config, weights, "fp16", "cuda")
    with torch.no_grad():
        inputs = encoder.inputs(feeds_of(work), "cuda")
        forward = torch.compile(encoder.forward, dynamic=False) if variant.peer == "compile" else encoder.forward
        replay, stream, output = bert_torch.as_graph(torch, lambda: forward(*inputs))
        replay()
        torch.cuda.synchronize()
        found = output[:1].float().cpu().numpy().astype(np.float64)
        return time_calls(gpu.get(), replay, stream.cuda_stream, SECONDS), found


def error_of(work: Workload, found: np.ndarray) -> float:
    reference, valid = known(work)[0], feeds_of(work)["attention_mask"][:1] != 0
    return float(np.linalg.norm((found - reference)[valid]) / np.linalg.norm(reference[valid]))


def limited(seconds: float, call: Callable[[], Any]) -> Any:
    """What `call` returns; TooLong if it has not by then (between two of Python's instructions)."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise TooLong

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        return call()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run(budget: float, only: str) -> Iterator[dict[str, Any]]:
    """A row for each variant, as it is done."""
    until = time.monotonic() + budget
    for work, variant in JOBS:
        name = f"{work.name}: {variant.name}"
        if only not in name:
            continue
        row: dict[str, Any] = {"workload": work.name, "variant": variant.name, "median_ms": None}
        left = until - time.monotonic()
        if left < 5:
            yield {**row, "note": "skipped: the time is up"}
            continue
        began = time.monotonic()
        try:
            times, found = limited(min(left, VARIANT_S), lambda: (peer if variant.peer else ours)(work, variant))  # noqa: B023
        except TooLong:
            yield {**row, "note": f"given up after {time.monotonic() - began:.0f} s"}
            continue
        except (ProbeError, RuntimeError) as error:
            yield {**row, "note": f"failed: {str(error).splitlines()[0][:200]}"}
            continue
        low, median, high = (float(value) / 1e6 for value in np.percentile(times, (1, 50, 99)))
        yield {**row, "median_ms": median, "p1_ms": low, "p99_ms": high, "replays": len(times),
               "error": error_of(work, found), "seconds": time.monotonic() - began}  # fmt: skip


def shown(row: dict[str, Any]) -> str:
    name = f"{row['workload']:24} {row['variant']:28}"
    if row["median_ms"] is None:
        return f"{name} {row['note']}"
    return (f"{name} {row['median_ms']:8.3f} ms  ({row['p1_ms']:.3f} .. {row['p99_ms']:.3f})  error {row['error']:.2e}"
            f"  {row['seconds']:.1f} s in all")  # fmt: skip


def ratios(rows: list[dict[str, Any]]) -> Iterator[str]:
    """What was to be reached, as far as it was measured."""
    times = {(row["workload"], row["variant"]): row["median_ms"] for row in rows if row["median_ms"]}

    def best(work: str, word: str) -> float | None:
        return min((time for (name, variant), time in times.items() if name == work and word in variant), default=None)

    for work in (BASE32.name, BASE1.name, LARGE32.name):
        mine, other = best(work, "FP16"), best(work, "compile")
        if mine and other:
            yield f"{work}: FP16 {mine:.3f} ms, {other / mine:.2f}x torch.compile + CUDA graph"
        if mine and (eight := best(work, "INT8")):
            yield f"{work}: INT8 {mine / eight:.2f}x FP16"
        padded, packed = best(f"{work} uniform", "padded"), best(f"{work} uniform", "packed")
        if padded and packed:
            yield f"{work}, lengths 0.2 to 1.0: packed {padded / packed:.2f}x padded"


def climb(folder: Path, routes: tuple[str, ...]) -> None:
    """The ladder of BERT-base with lengths of 0.2 to 1.0, a line a step."""
    from probes.laddering import running as laddering
    from reports.pages import ladder

    began = time.monotonic()
    made = laddering.climb(laddering.Settings("base", lengths="uniform", routes=routes, out=folder), say)
    headers, rows = ladder.read(made.session).screen
    for line in (headers, *rows):
        say("  ".join(line))
    for row in made.document["rungs"]:
        say(f"{row['title']}, {row['route_title']}: {row['status']}; {row['note']}")
    say(f"{made.document['seconds']:.0f} s for the steps, {time.monotonic() - began:.0f} s in all")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--budget", type=float, default=230.0, help="seconds in all")
    parser.add_argument("--serial", action="store_true", help="no kernel begins before the one before it has ended")
    parser.add_argument("--only", default="", help="workloads and variants with this in their name")
    parser.add_argument("--json", type=Path, help="where the rows go, rewritten after each")
    parser.add_argument("--climb", type=Path, metavar="DIR", help="the ladder itself instead, its session in DIR")
    parser.add_argument("--routes", default="kernels", help="of --climb, with commas between")
    parser.add_argument(
        "--plan", action="store_true", help="bytes, FLOPs and floors of each operation instead; needs no GPU"
    )
    options = parser.parse_args()
    if options.plan:
        for line in plans(options.only):
            say(line)
        return
    try:
        device = gpu.get()
    except UsageError as error:
        raise SystemExit(str(error)) from error
    say(f"{device.facts.name}, driver for CUDA {device.facts.driver}{', serial' if options.serial else ''}")
    if options.serial:
        setattr(Device, "overlaps_launches", False)  # noqa: B010  a property
    if options.climb:
        climb(options.climb, tuple(options.routes.split(",")))
        return
    rows: list[dict[str, Any]] = []
    for row in run(options.budget, options.only):
        rows.append(row)
        say(shown(row))
        if options.json:
            options.json.write_text(json.dumps({"device": device.facts.name, "rows": rows}, indent=1), encoding="utf-8")
    for line in ratios(rows):
        say(line)


if __name__ == "__main__":
    main()
