"""Fused attention on the GPU: every case checked against float64, then timed beside PyTorch's flash and cuDNN kernels.

    python benchmarks/attention.py [--sweep PATTERN] [--only TEXT] [--seconds 120]

Times are medians over replays of a CUDA graph of many launches, whose inputs and outputs change from launch to launch
and together are larger than the L2 cache. The peers get separate, contiguous Q, K, V [B, N, S, H]; ours reads the
merged product. "bound" is the time in which a copy of this card moves inputs and output once. --sweep times every
sensible division of the work for the cases whose label matches, beside the one that kernels/attention.py chooses. Needs PyTorch, CuPy and nvcc. Measuring is done in
a child process that is ended when one variant takes too long, and started again after that variant.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from kernels import attention, numbers  # noqa: E402
from kernels.attention import AttentionCase, Tiling  # noqa: E402
from kernels.plan import Launch, Pointer  # noqa: E402

H100 = attention.WARPGROUP_CAPABILITY


@dataclass(frozen=True)
class Job:
    """One thing to run: a check, ours with one division of work, or a peer."""

    kind: str  # "check", "time", "peer", "copy"
    case: AttentionCase
    tiles: Tiling | None = None
    peer: str = ""

    @property
    def name(self) -> str:
        t = self.tiles
        shape = f"keys {t.keys} stages {t.stages} wg {t.warpgroups} blocks {t.blocks}" if t else ""
        return f"{self.kind} {self.case.label} {self.peer or shape}".strip()


def grid(case: AttentionCase) -> Iterator[Tiling]:
    """Divisions of work worth trying: those that fit, in registers and shared memory, as many blocks as they ask for."""
    for keys, stages, groups, blocks in product((32, 64, 96, 128), (1, 2, 3, 4, 6), (1, 2, 3), range(1, 7)):
        t = Tiling(keys, stages, groups, blocks)
        warpgroups = groups * blocks
        registers = min(255, 65536 // (128 * warpgroups) // 8 * 8)
        if keys / 2 + case.head_size / 2 + 30 > registers or t.queries > case.sequence:
            continue  # would spill, or stand idle
        if blocks * (t.shared_bytes(case.head_size) + 1024) > 228 * 1024 or (stages - 1) * keys >= case.sequence:
            continue
        most = warpgroups == {32: 6, 64: 5, 96: 4, 128: 4}[keys] or (keys == 64 and warpgroups == 4)
        most = most or (case.head_size > 64 and warpgroups in (2, 3))
        if most and (stages > 1 or keys >= case.sequence) and (keys < 128 or stages * keys >= case.sequence):
            yield t


def jobs(sweep: str, only: str) -> list[Job]:
    checks = [Job("check", case) for case in attention.SPEC.cases]
    timed = []
    for case in attention.SPEC.bench:
        choices = [attention.tiling(case)] if case.dtype in ("float16", "bfloat16") else [None]
        if sweep and re.search(sweep, case.label) and attention.uses_warpgroups(case):
            choices += [t for t in grid(case) if t not in choices]
        timed += [Job("time", case, t) for t in choices]
        if case.dtype == "float16" and case.capability == H100 and case.lengths is None:
            timed += [Job("peer", case, peer=peer) for peer in ("cudnn", "flash")]
    first = replace(attention.SPEC.bench[0])
    return [j for j in [Job("copy", first), *checks, *timed] if only in j.name]


def launch_of(job: Job) -> Launch:
    return attention.launch(job.case, job.tiles)


def compile_all(every: list[Job], folder: Path) -> dict[tuple[Any, ...], str]:
    """Cubin by source and macros; what nvcc says of spills is printed."""
    units = {(step.source, step.defines): step for step in (launch_of(j) for j in every if j.kind in ("check", "time"))}

    def build(item: tuple[int, tuple[Any, ...]]) -> tuple[tuple[Any, ...], str, str]:
        index, key = item
        output = folder / f"{index}.cubin"
        argv = ["nvcc", "-cubin", "-gencode=arch=compute_90a,code=sm_90a", "-std=c++17", "-O3", "-Xptxas", "-v",
                *(f"-D{n}={v}" for n, v in key[1]), "-o", str(output), str(key[0])]  # fmt: skip
        done = subprocess.run(argv, capture_output=True, text=True, check=True)
        return key, str(output), done.stderr

    cubins, spilled = {}, []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for key, path, log in pool.map(build, enumerate(units)):
            cubins[key] = path
            if " 0 bytes spill stores" not in log or "Potential" in log:
                spilled.append(dict(key[1]))
    if spilled:
        print(f"{len(spilled)} of {len(units)} spill registers or serialise wgmma")
    return cubins


class Gpu:
    """Runs jobs; made in the child process alone."""

    def __init__(self, cubins: dict[tuple[Any, ...], str]) -> None:
        import cupy
        import torch

        self.cupy, self.torch, self.cubins = cupy, torch, cubins
        self.l2 = torch.cuda.get_device_properties(0).L2_cache_size
        self.floats = {
            "float16": torch.float16,
            "bfloat16": torch.bfloat16,
            "float32": torch.float32,
            "int8": torch.int8,
        }

    def function(self, launch: Launch) -> Any:
        module = self.cupy.RawModule(path=self.cubins[launch.source, launch.defines])
        kernel = module.get_function(launch.entry)
        kernel.max_dynamic_shared_size_bytes = launch.shared_bytes
        return kernel

    def call(self, kernel: Any, launch: Launch, tensors: dict[str, Any]) -> None:
        values = [np.uint64(tensors[a.buffer].data_ptr() if a.buffer else 0) if isinstance(a, Pointer) else a
                  for a in launch.arguments]  # fmt: skip
        with self.cupy.cuda.ExternalStream(self.torch.cuda.current_stream().cuda_stream):
            kernel(launch.grid, launch.block, tuple(values), shared_mem=launch.shared_bytes)

    def run(self, job: Job) -> dict[str, Any]:
        return getattr(self, job.kind)(job)

    def check(self, job: Job) -> dict[str, Any]:
        """Error over the bound of what rounding explains; 1 or less is right. Also the usual formula's."""
        case, launch = job.case, launch_of(job)
        arrays = attention.inputs(case, np.random.default_rng())
        wanted = attention.expected(case, arrays)
        limit = attention.bound(case, arrays, wanted)["context"]
        tensors = {
            name: self.torch.from_numpy(a.view(np.int16) if a.dtype == np.uint16 else a).cuda()
            for name, a in arrays.items()
        }
        kind = numbers.storage(case.dtype)
        poison = np.full((*case.rows, case.hidden), 0x7F if kind.itemsize == 1 else 0, kind)
        poison.view(np.uint8)[...] = 0x7F if kind.itemsize == 1 else 0xFF
        tensors["context"] = self.torch.from_numpy(poison.view(np.int16) if kind == np.uint16 else poison).cuda()
        self.call(self.function(launch), launch, tensors)
        self.torch.cuda.synchronize()
        found = numbers.decode(tensors["context"].cpu().numpy().view(kind), case.dtype)
        error = np.abs(found - wanted["context"])
        usual = np.abs(attention.peer(case, arrays)["context"] - wanted["context"])
        worst = float(np.max(np.where(np.isnan(found), np.inf, error / limit)))
        return {"worst": worst, "error": float(np.nan_to_num(error, nan=np.inf).max()), "usual": float(usual.max())}

    def sets(self, case: AttentionCase) -> list[dict[str, Any]]:
        torch = self.torch
        rows, dtype = case.rows, self.floats[case.dtype]
        count = max(
            2, -(-3 * self.l2 // (int(np.prod(rows)) * case.hidden * 4 * torch.tensor([], dtype=dtype).element_size()))
        )
        made = []
        for _ in range(count):
            values = torch.randn(*rows, 3 * case.hidden, device="cuda")
            tensors = {"qkv": (values * 32).clamp(-127, 127).to(dtype) if dtype is torch.int8 else values.to(dtype),
                       "context": torch.empty(*rows, case.hidden, device="cuda", dtype=dtype)}  # fmt: skip
            if case.lengths is not None:
                tensors["cu_seqlens"] = torch.tensor(np.cumsum((0, *case.lengths)), dtype=torch.int32, device="cuda")
            made.append(tensors)
        return made

    def median(self, works: list[Any]) -> float:
        """Microseconds of one call, the works taken in turn."""
        torch = self.torch
        stream = torch.cuda.Stream()
        rounds = max(1, 40 // len(works))
        with torch.cuda.stream(stream):
            for work in works[:2]:
                work()
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream):
                for _ in range(rounds):
                    for work in works:
                        work()
            times = []
            for _ in range(25):
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                begin.record()
                graph.replay()
                end.record()
                end.synchronize()
                times.append(begin.elapsed_time(end) * 1000 / (rounds * len(works)))
        return statistics.median(times[5:])

    def time(self, job: Job) -> dict[str, Any]:
        case, launch = job.case, launch_of(job)
        kernel, sets = self.function(launch), self.sets(case)
        self.call(kernel, launch, sets[0])
        errors = {} if case.dtype == "int8" or case.lengths else self.errors(case, sets[0]["qkv"], sets[0]["context"])
        return {
            "us": self.median([lambda t=t: self.call(kernel, launch, t) for t in sets]),
            "registers": kernel.num_regs,
            **errors,
        }

    def split(self, case: AttentionCase, qkv: Any) -> list[Any]:
        """Q, K, V [B, N, S, H], contiguous."""
        parts = qkv.view(case.sequence, case.batch, case.heads, 3, case.head_size).permute(3, 1, 2, 0, 4)
        return [p.contiguous() for p in parts]

    def errors(self, case: AttentionCase, qkv: Any, context: Any) -> dict[str, float]:
        """Largest and root-mean-square error of a context [S, B, E] against float64."""
        q, k, v = (p.double() for p in self.split(case, qkv))
        scores = q @ k.transpose(-1, -2) / case.head_size**0.5
        wanted = (scores.softmax(-1) @ v).permute(2, 0, 1, 3).reshape(context.shape)
        wrong = (context.double() - wanted).abs()
        return {"max_error": wrong.max().item(), "rms_error": wrong.square().mean().sqrt().item()}

    def peer(self, job: Job) -> dict[str, Any]:
        from torch.nn.attention import SDPBackend, sdpa_kernel
        from torch.nn.functional import scaled_dot_product_attention as attend

        case = job.case
        backend = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}[job.peer]
        sets = self.sets(case)
        parts = [self.split(case, t["qkv"]) for t in sets]
        with sdpa_kernel(backend), self.torch.no_grad():
            context = attend(*parts[0]).permute(2, 0, 1, 3).reshape(sets[0]["context"].shape)
            us = self.median([lambda p=p: attend(*p) for p in parts])
        return {"us": us, **self.errors(case, sets[0]["qkv"], context)}

    def copy(self, job: Job) -> dict[str, Any]:
        """Bandwidth of a large device-to-device copy, by the driver or by a kernel, in GB/s of bytes read and written."""
        torch = self.torch
        a, b = (torch.zeros(1 << 28, device="cuda") for _ in range(2))
        ways = (lambda: b.copy_(a), lambda: torch.neg(a, out=b)) * 2  # twice: the clocks rise
        us = min(self.median([way]) for way in ways)
        return {"us": us, "gb_per_s": 8 * a.numel() / us / 1e3, "device": torch.cuda.get_device_name()}


def child(path: Path, start: int) -> None:
    every, cubins = load(path)
    gpu = Gpu(cubins)
    for index in range(start, len(every)):
        print(json.dumps({"index": index} | gpu.run(every[index])), flush=True)


def load(path: Path) -> tuple[list[Job], dict[tuple[Any, ...], str]]:
    options = json.loads((path / "options.json").read_text())
    every = jobs(options["sweep"], options["only"])
    units = list(
        {(step.source, step.defines): step for step in (launch_of(j) for j in every if j.kind in ("check", "time"))}
    )
    return every, {key: str(path / f"{i}.cubin") for i, key in enumerate(units)}


def measured(path: Path, every: list[Job], seconds: float, patience: float) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Each job with what came of it, from children that are replaced when they hang or die."""
    end, index, deaths = time.monotonic() + seconds, 0, 0
    while index < len(every) and time.monotonic() < end and deaths < 6:
        process = subprocess.Popen([sys.executable, __file__, "--child", str(path), "--start", str(index)],
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip
        lines: queue.Queue[str] = queue.Queue()
        threading.Thread(
            target=lambda p=process, q=lines: [q.put(line) for line in p.stdout] + [q.put("")], daemon=True
        ).start()
        try:
            while index < len(every):
                line = lines.get(timeout=max(0.1, min(patience, end - time.monotonic())))
                if not line:
                    deaths += 1
                    yield every[index], {"failed": (process.stderr.read() or "died").strip().splitlines()[-1][:150]}
                    index += 1
                    break
                yield every[index], json.loads(line)
                index += 1
        except queue.Empty:
            yield every[index], {"failed": "took too long"}
            index += 1
        finally:
            process.kill()
            process.wait()


def show(job: Job, result: dict[str, Any], gb_per_s: float) -> str:
    if "failed" in result:
        return f"FAILED {job.name}: {result['failed']}"
    if job.kind == "check":
        state = "right" if result["worst"] <= 1 else "WRONG"
        return f"{state}  {job.name}: error {result['error']:.2e}, of the bound {result['worst']:.2f}; usual formula {result['usual']:.2e}"
    if job.kind == "copy":
        return f"{result['device']}: copy {result['gb_per_s']:.0f} GB/s"
    case = job.case
    bound = attention.SPEC.traffic(case) / gb_per_s / 1e3
    rate = attention.flops(case) / result["us"] / 1e6
    errors = f" err max {result['max_error']:.1e} rms {result['rms_error']:.2e}" if "max_error" in result else ""
    return f"{result['us']:8.2f} us  bound {bound:5.1f}  {rate:5.0f} TFLOP/s  {job.name}  regs {result.get('registers', '-')}{errors}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweep", default="", metavar="PATTERN")
    parser.add_argument("--only", default="")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--patience", type=float, default=25, help="seconds for one variant, CUDA's start included")
    parser.add_argument("--child", type=Path)
    parser.add_argument("--start", type=int, default=0)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.start)
        return
    every = jobs(options.sweep, options.only)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        (path / "options.json").write_text(json.dumps({"sweep": options.sweep, "only": options.only}))
        query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        driver = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
        print(f"{driver}, {time.strftime('%Y-%m-%d')}")
        begin = time.monotonic()
        compile_all(every, path)
        print(f"{len(every)} jobs, compiled in {time.monotonic() - begin:.1f} s", flush=True)
        gb_per_s = 3000.0
        for job, result in measured(path, every, options.seconds, options.patience):
            gb_per_s = result.get("gb_per_s", gb_per_s)
            print(show(job, result, gb_per_s), flush=True)


if __name__ == "__main__":
    main()
