"""On the GPU: what a launch, a range and a bias + GELU epilogue cost, and what the card reaches.

    python benchmarks/launching.py [--json FILE] [--seconds 0.3]

Prints one table; nothing in it names the machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from harness import ranges
from harness.cuda import device as gpu
from harness.cuda import launch, timing
from harness.cuda.cublaslt import describe
from harness.cuda.device import Device
from harness.errors import ProbeError
from kernels.plan import Gemm, Launch, Pointer

VECTOR = Path(__file__).resolve().parent.parent / "tests" / "data" / "kernels" / "vector.cu"
FC1 = ((4096, 3072, 768), (12288, 4096, 1024))  # of BERT-base at B32 S128 and BERT-large at B32 S384


def launch_cost_ns(device: Device, repeats: int = 20_000) -> dict[str, float]:
    """Nanoseconds of the host for one launch of a kernel that does nothing, by call and by graph."""
    step = Launch(VECTOR, "axpy", (1, 1, 1), (32, 1, 1), (Pointer("y"), Pointer("x"), np.float32(0), np.int32(0)))
    placed = launch.prepare([step], {}, device=device).place({name: np.ones(32, np.float32) for name in "xy"})
    stream = device.stream()
    graph = placed.graph(100)
    calls = {
        "by call": (lambda: placed.launch(stream.handle), 1),
        "by a graph of 100": (lambda: graph.launch(stream.handle), 100),
    }
    costs = {}
    for name, (call, launches) in calls.items():
        call()
        stream.synchronize()
        start = time.perf_counter_ns()
        for _ in range(repeats // launches):
            call()
        stream.synchronize()
        costs[name] = (time.perf_counter_ns() - start) / repeats
    return costs


def gemms() -> list[tuple[str, Gemm]]:
    """Each shape bare, with bias, and with bias and GELU, in the types that matter."""
    rows = []
    for m, n, k in FC1:
        bare = Gemm(Pointer("a"), Pointer("b"), Pointer("d"), m, n, k, "float16", "float16")
        bias = dataclasses.replace(bare, bias=Pointer("c"), bias_dtype="float16")
        gelu = dataclasses.replace(bias, epilogue="gelu_tanh")
        int8 = dataclasses.replace(bare, dtype="int8", out_dtype="int8", b_transposed=True, alpha=0.01)
        int8_bias = dataclasses.replace(int8, bias=Pointer("c"), bias_dtype="float32")
        tf32 = dataclasses.replace(bare, dtype="tf32", out_dtype="float32")
        rows += [(describe(one), one) for one in (bare, bias, gelu, tf32, int8, int8_bias)]
    return rows


def arrays_of(gemm: Gemm) -> dict[str, Any]:
    random = np.random.default_rng(0)

    def array(shape: tuple[int, ...], dtype: str) -> Any:
        if dtype == "int8":
            return random.integers(-99, 99, shape).astype(np.int8)
        return random.standard_normal(shape, dtype=np.float32).astype("float32" if dtype == "tf32" else dtype)

    b = (gemm.n, gemm.k) if gemm.b_transposed else (gemm.k, gemm.n)
    made = {
        "a": array((gemm.m, gemm.k), gemm.dtype),
        "b": array(b, gemm.dtype),
        "d": array((gemm.m, gemm.n), gemm.out_dtype),
    }
    return {**made, "c": array((gemm.n,), gemm.bias_dtype)} if gemm.bias else made


def time_gemm(device: Device, gemm: Gemm, seconds: float) -> dict[str, Any]:
    effort = timing.Effort(seconds)
    try:
        tuned = timing.measure([gemm], arrays_of(gemm), effort=effort, device=device)
        plain = timing.measure([gemm], arrays_of(gemm), options=launch.Options(), effort=effort, device=device)
    except ProbeError as error:
        return {"refused": str(error)}
    rate = 2 * gemm.m * gemm.n * gemm.k / tuned.median_ns / 1e3
    return {"tuned_ns": tuned.median_ns, "heuristic_ns": plain.median_ns, "tflop_s": rate, "timing": tuned.as_record()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seconds", type=float, default=0.3)
    options = parser.parse_args()
    device = gpu.get()
    result: dict[str, Any] = {"device": device.facts.as_manifest(), "before": gpu.clock_state(device)}
    print(device.facts)
    result["copy_bytes_s"] = gpu.copy_bandwidth(device)
    print(f"copy within device memory: {result['copy_bytes_s'] / 1e12:.2f} TB/s, read and written")
    result["launch_ns"], result["range_ns"] = launch_cost_ns(device), ranges.cost_ns()
    print(
        f"a launch, ns: {result['launch_ns']}; a range, ns: {result['range_ns']} (tool attached: {ranges.listening()})"
    )
    result["gemm"] = {}
    for name, gemm in gemms():
        row = result["gemm"][name] = time_gemm(device, gemm, options.seconds)
        print(f"{name:76} " + (row.get("refused") or f"{row['tuned_ns'] / 1e3:8.1f} us tuned, "
              f"{row['heuristic_ns'] / 1e3:8.1f} us by heuristic, {row['tflop_s']:7.1f} TFLOP/s"), flush=True)  # fmt: skip
    result["after"] = gpu.clock_state(device)
    print("clocks before and after:", result["before"], result["after"])
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
