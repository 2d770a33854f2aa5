"""`probe kernels bench`: each operation's time on the GPU beside what physics allows and beside its peers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.cuda import device as gpu
from harness.cuda import timing
from harness.cuda.device import Device
from harness.cuda.timing import Effort, Timing
from harness.errors import DependencyMissing, UsageError
from harness.optional import load
from harness.record import Session
from kernels.fully_connected import FullyConnected
from kernels.manifest import BY_NAME
from kernels.plan import Gemm
from kernels.spec import KernelSpec, checked
from probes.kernels import peers as kernel_peers
from probes.kernels.testing import arrays_of, choose, elsewhere
from probes.targets import driving
from reports import units
from reports.collect import collect
from reports.pages import profile as profile_page

Tell = Callable[[str], None]
PRODUCT = 8192  # rows and columns of the product whose rate is taken as the card's peak
FP32_PER_CYCLE = 2 * 128  # operations of a multiprocessor of compute capability 8.6 to 9.0; 8.0 has half
PRECISIONS = {"float16": "fp16", "bfloat16": "bf16", "int8": "int8", "float32": "fp32"}


@dataclass(frozen=True)
class Settings:
    """What to time: `seconds` of each implementation of each case, with PyTorch's or without."""

    names: tuple[str, ...] = ()
    only: str = ""
    seconds: float = 0.5
    peers: bool = True
    out: Path | None = None

    def command(self) -> list[str]:
        made = ["kernels", "bench", *self.names, *(["--case", self.only] if self.only else [])]
        return [*made, "--seconds", f"{self.seconds:g}", *([] if self.peers else ["--no-peers"])]


@dataclass(frozen=True)
class Roofs:
    """What this card reaches: bytes a second of a copy, FLOP/s of a large product, by precision, and of float32 FMAs."""

    bytes_per_s: float
    flop_per_s: Mapping[str, float]


@dataclass(frozen=True)
class Benched:
    """The JSON document and where it all lies."""

    document: dict[str, Any]
    session: Session
    report: Path


def bench(settings: Settings, tell: Tell = lambda _: None) -> Benched:
    """Time the cases, write session and page. Raises UsageError without a GPU, or for a kernel that does not exist."""
    jobs = [(spec, case) for spec in choose(settings.names) for case in spec.bench if settings.only in case.label]
    if not jobs:
        raise UsageError(f"no case to time has {settings.only!r} in its label", hint="probe kernels bench")
    device = gpu.get()
    torch, note = _torch(settings.peers)
    session = Session.create("kernels-bench", settings.out)
    session.write_json("manifest.json", driving.manifest("kernels-bench", settings.command(), {
        "device": device.facts.as_manifest(), "clock_state_before": gpu.clock_state(device),
        "notes": [note] if note else [],
    }))  # fmt: skip
    tell("measuring what the card can do")
    roofs = measure_roofs(device, {precision_of(spec, case) for spec, case in jobs}, settings.seconds)
    entries = []
    for number, (spec, case) in enumerate(jobs, 1):
        if elsewhere(case, device.facts.compute_capability):
            continue
        tell(f"{number} of {len(jobs)}: {spec.name} {case.label}")
        entries.append(_entry(spec, case, device, roofs, torch, settings.seconds))
        session.append_step({"candidate": f"{spec.name} {case.label}", "outcome": "pass",
                             "value": entries[-1]["timing"]["median_ns"]})  # fmt: skip
    document = {"kernel_bench": entries, "device": device.facts.name, "roofs": {
        "bytes_per_s": roofs.bytes_per_s, "flop_per_s": dict(roofs.flop_per_s)},
        "clock_state_after": gpu.clock_state(device)}  # fmt: skip
    session.write_json("raw/kernel-bench.json", document)
    session.write_json("result.json", document)
    tell("drawing the page")
    page = profile_page.write(collect([session.raw / "kernel-bench.json"]), session.folder / "report.html")
    return Benched(document, session, page)


def _torch(wanted: bool) -> tuple[Any, str]:
    if not wanted:
        return None, ""
    try:
        torch = load("torch")
    except DependencyMissing as error:
        return None, f"no peers: {error}"
    return (torch, "") if torch.cuda.is_available() else (None, "no peers: PyTorch sees no GPU")


def precision_of(spec: KernelSpec[Any], case: Any) -> str:
    """Which peak bounds a case: the tensor cores' of its dtype where it multiplies matrices, else float32's."""
    multiplies = spec.name == "attention" or any(isinstance(step, Gemm) for step in spec.plan(case).steps)
    return PRECISIONS[case.dtype] if multiplies else "fp32"


def measure_roofs(device: Device, precisions: set[str], seconds: float) -> Roofs:
    """The rate of a copy, and of the vendor's product in each precision that is asked for; float32 is computed."""
    facts = device.facts
    per_cycle = FP32_PER_CYCLE // (2 if facts.compute_capability == (8, 0) else 1)
    peaks = {"fp32": facts.multiprocessors * per_cycle * facts.clock_khz * 1e3}
    spec = BY_NAME["fully_connected"]
    for dtype, precision in PRECISIONS.items():
        if precision in precisions and precision != "fp32":
            case = FullyConnected(PRODUCT, PRODUCT, PRODUCT, dtype, out_dtype="float16" if dtype == "int8" else "")
            plan = spec.plan(case)
            arrays = arrays_of(plan, spec.inputs(case, np.random.default_rng(0)))
            gemm = [step for step in plan.steps if isinstance(step, Gemm)]
            peaks[precision] = spec.flops(case) / timing.measure(gemm, arrays, effort=Effort(seconds)).median_ns * 1e9
    return Roofs(gpu.copy_bandwidth(device), peaks)


def _entry(
    spec: KernelSpec[Any], case: Any, device: Device, roofs: Roofs, torch: Any, seconds: float
) -> dict[str, Any]:
    plan = checked(spec, case)
    arrays = arrays_of(plan, spec.inputs(case, np.random.default_rng()))
    ours = timing.measure(plan.steps, arrays, effort=Effort(seconds))
    peers: dict[str, Timing] = {}
    if torch is not None:
        peers = kernel_peers.time_peers(torch, spec.name, case, plan, device, seconds)
    moved, flop, precision = spec.traffic(case), spec.flops(case), precision_of(spec, case)
    memory_ns, compute_ns = moved / roofs.bytes_per_s * 1e9, flop / roofs.flop_per_s[precision] * 1e9
    return {
        "operation": spec.name, "case": case.label, "bytes": moved, "flop": flop, "precision": precision,
        "bound_ns": max(memory_ns, compute_ns), "bound_by": "memory" if memory_ns >= compute_ns else "compute",
        "timing": ours.as_record(), "peers": {name: peer.as_record() for name, peer in peers.items()},
    }  # fmt: skip


def rows(document: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """For the screen: kernel, case, time, spread, bound, share of it, rates, peers."""
    made: list[tuple[str, ...]] = []
    for entry in document["kernel_bench"]:
        taken = entry["timing"]
        seconds = taken["median_ns"] / 1e9
        peers = ", ".join(f"{name} {units.seconds(p['median_ns'] / 1e9)}" for name, p in entry["peers"].items())
        made.append((
            entry["operation"], entry["case"], units.seconds(seconds),
            f"{units.seconds(taken['p10_ns'] / 1e9)} .. {units.seconds(taken['p90_ns'] / 1e9)}",
            f"{units.seconds(entry['bound_ns'] / 1e9)} {entry['bound_by']}",
            units.percent(entry["bound_ns"] / taken["median_ns"]), f"{units.size(entry['bytes'] / seconds)}/s",
            f"{units.significant(entry['flop'] / seconds / 1e12)}", peers,
        ))  # fmt: skip
    return made
