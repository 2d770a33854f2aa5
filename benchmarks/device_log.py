"""The device log against printf in the kernel: what each keeps, what each costs, and how fast a tracepoint is at the table.

    python benchmarks/device_log.py [--values 10000000] [--repeats 7] [--only gpu|cpu] [--json figures.jsonl]

On the GPU: one kernel that only stores, the same with one PROBE and with one printf a thread. Kernel time is taken with
events around the launch (what the host does with the output is not in it), the median of the repeats; "added" is less the
time of the kernel without. Records are in pinned host memory, which outlives a crash, and on the GPU. printf's buffer is CUDA's own 1 MiB for what it keeps, and 1 GiB for what it costs. Without a
GPU: wall and processor time of the whole command `probe printf`, from the shell to the table, on kernels that were never
compiled before, under emulation; and once more with another thread. With --json each figure is a line of that file as
soon as it is known.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from examples import long_kernel
from harness import process
from harness.cuda import device as gpu
from harness.cuda import launch
from harness.cuda.compile import Unit, build
from harness.cuda.device import Device, Event
from harness.cuda.symbols import machine_code
from harness.device_log import gpu as gpu_log
from harness.device_log import layout as device_log
from harness.device_log import printf as device_printf
from harness.device_log import traced
from harness.errors import UsageError
from kernels.plan import Launch, Pointer

ROOT = Path(__file__).resolve().parent.parent
KERNEL = """\
#include "device_log.cuh"
extern "C" __global__ void k(float* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const float value = i * 0.5f;
  %s
  out[i] = value;
}
"""
PROBED = KERNEL % 'PROBE("value", value);'
PRINTED = KERNEL % 'printf("%f\\n", value);'
PLAIN = KERNEL % ""
BIG_FIFO = 1 << 30
THREADS = 256
# Lines of printf: each takes tens of microseconds (a million had not ended after 80 s on an H200).
MOST_PRINTED = 100_000


@dataclass
class Figures:
    """Rows of the table at the end; each is also written at once, as a line of JSON."""

    path: Path | None
    device: str = "CPU"
    rows: list[tuple[str, str, str]] = field(default_factory=list)

    def add(self, what: str, shown: str, target: str = "", **numbers: float | bool | None) -> None:
        self.rows.append((what, shown, target))
        if self.path is not None:
            line = {"device": self.device, "what": what.strip(), "shown": shown, "target": target, **numbers}
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")

    def table(self) -> Table:
        table = Table("what", "figure", "target", title=self.device)
        for row in self.rows:
            table.add_row(*row)
        return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--values", type=int, default=10_000_000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", choices=("gpu", "cpu", "printf-cost"))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.only == "printf-cost":  # in a process of its own: the buffer can be set once
        print(printf_ns(gpu.get(), MOST_PRINTED, given.repeats))
        return
    figures = Figures(given.json)
    if given.only != "cpu":
        try:
            on_gpu(gpu.get(), given.values, given.repeats, figures)
        except UsageError as error:
            figures.add("on the GPU", str(error))
    if given.only != "gpu":
        at_the_table(given.repeats, figures)
    Console(width=150).print(figures.table())


# ---- on the GPU


class Kernel:
    """A text compiled, with its array on the device."""

    def __init__(self, device: Device, folder: Path, text: str, n: int, log: bool = False) -> None:
        path = folder / "k.cu"
        path.write_text(text)
        arrays = {"out": np.zeros(n, np.float32)}
        grid = (-(-n // THREADS), 1, 1)
        step = Launch(
            path, "k", grid, (THREADS, 1, 1), (Pointer("out"), np.int32(n)), 0, traced.defines_of() if log else ()
        )
        self.device, made = device, launch.prepare([step], launch.itemsizes_of(arrays), device=device)
        self.modules, self.placed = made.modules, made.place(arrays)

    def time_ns(self) -> float:
        start, end = Event(self.device), Event(self.device)
        start.record(0)
        self.placed.launch()
        end.record(0)
        return end.since_ns(start)


def on_gpu(device: Device, values: int, repeats: int, figures: Figures) -> None:
    figures.device = device.facts.name
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        captured(device, folder, values, figures)
        printf_keeps(device, folder, min(values, MOST_PRINTED), figures)
        costs(device, folder, repeats, figures)
        choosing(device, folder, figures)
        switched_off(device, folder, figures)


def captured(device: Device, folder: Path, values: int, figures: Figures) -> None:
    kernel, log = Kernel(device, folder, PROBED, values, log=True), gpu_log.GpuLog(device, values)
    log.attach(kernel.modules[0])
    took = kernel.time_ns()
    recorded = log.read()
    whole = bool(
        np.array_equal(np.sort(recorded.numbers("value")), np.arange(values, dtype=np.float32) * np.float32(0.5))
    )
    figures.add(f"values logged of {values:,}", f"{len(recorded):,}, lost {recorded.lost}, each as it should be: {whole}",
                f"{values:,}", records=len(recorded), lost=recorded.lost, right=whole)  # fmt: skip
    figures.add("  kernel time, records in pinned host memory", f"{took / 1e6:.2f} ms", kernel_ns=took)
    log.free()
    room = values // 3
    small = gpu_log.GpuLog(device, room)
    small.attach(kernel.modules[0])
    kernel.time_ns()
    recorded = small.read()
    exact = len(recorded) == room and recorded.lost == values - room and recorded.torn == 0
    figures.add(
        f"  with room for {room:,}", f"{len(recorded):,} kept, {recorded.lost:,} counted as lost", f"exact: {exact}",
        kept=len(recorded), lost=recorded.lost, exact=exact,
    )  # fmt: skip
    small.free()


def printf_keeps(device: Device, folder: Path, values: int, figures: Figures) -> None:
    """With CUDA's own buffer."""
    kernel = Kernel(device, folder, PRINTED, values)
    with device_printf.capture() as output:
        kernel.placed.launch()
        device.synchronize()
        output.launched(0, "k")
    size = sum(len(one.text) + 1 for one in output.rows)
    figures.add(f"lines that printf keeps of {values:,}", f"{len(output.rows):,} ({size / 1e6:.1f} MB of text)",
                kept=len(output.rows), bytes=size)  # fmt: skip


def costs(device: Device, folder: Path, repeats: int, figures: Figures, n: int = 1_000_000) -> None:
    """What one logged value a thread adds to the kernel, and one printed (of fewer threads: each takes so long)."""
    without, logged = median(Kernel(device, folder, PLAIN, n), repeats), {}
    figures.add(f"kernel time, {n:,} threads that only store", f"{without / 1e3:.1f} us", kernel_ns=without)
    for where, fast in (("records in pinned host memory", False), ("records on the GPU", True)):
        logged[where] = (logged_ns(device, folder, repeats, n, fast=fast) - without) / n
        figures.add(f"  added by one PROBE a thread, {where}", f"{logged[where]:.2f} ns a value", ns=logged[where])
    command = (sys.executable, __file__, "--only", "printf-cost", "--repeats", str(min(repeats, 3)))
    told = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **process.module_environment()})
    if told.returncode:
        raise SystemExit(f"the process that times printf failed:\n{told.stderr}")
    few = median(Kernel(device, folder, PLAIN, MOST_PRINTED), repeats)
    printed = (float(told.stdout.split()[-1]) - few) / MOST_PRINTED
    figures.add(f"  added by one printf a thread, {MOST_PRINTED:,} threads", f"{printed:.2f} ns a value", ns=printed)
    for where, added in logged.items():
        figures.add(f"  printf / PROBE, {where}", f"{printed / added:.1f} x", ">= 20 x", ratio=printed / added)


def logged_ns(device: Device, folder: Path, repeats: int, n: int, *, fast: bool) -> float:
    """Kernel time with one PROBE a thread."""
    probed, log = Kernel(device, folder, PROBED, n, log=True), gpu_log.GpuLog(device, n, fast=fast)
    log.attach(probed.modules[0])
    times = []
    for _ in range(repeats + 2):
        log.clear()
        times.append(probed.time_ns())
    assert len(log.read()) == n
    log.free()
    return statistics.median(times[2:])


def printf_ns(device: Device, n: int, repeats: int) -> float:
    """Kernel time with one printf a thread, with room for all of them."""
    device_printf.raise_limit(device, BIG_FIFO)
    with tempfile.TemporaryDirectory() as name, device_printf.capture() as output:
        Kernel(device, Path(name), PRINTED, THREADS).time_ns()  # the first is slower than the others
        output.launched(0, "k")
        kernel, times = Kernel(device, Path(name), PRINTED, n), []
        for number in range(1, repeats + 1):
            times.append(kernel.time_ns())
            device.synchronize()
            output.launched(number, "k")
    lines = [sum(one.launch_id == number for one in output.rows) for number in range(1, repeats + 1)]
    assert set(lines) == {n}, lines  # none was lost, or the time would be of something else
    return statistics.median(times)


def median(kernel: Kernel, repeats: int) -> float:
    return statistics.median([kernel.time_ns() for _ in range(repeats + 2)][2:])


def choosing(device: Device, folder: Path, figures: Figures) -> None:
    kernel, log = Kernel(device, folder, PROBED, 1000, log=True), gpu_log.GpuLog(device, 1000)
    log.attach(kernel.modules[0])
    times = []
    for number in range(50):
        start = time.perf_counter()
        log.select(device_log.Selection.of(thread=str(number)))
        times.append(time.perf_counter() - start)
    took = statistics.median(times)
    figures.add("another thread, until it can be launched", f"{took * 1e6:.0f} us", "< 50 ms", seconds=took)


def switched_off(device: Device, folder: Path, figures: Figures) -> None:
    """The machine code with the macros off, and with their lines taken out."""
    codes = []
    for name, text in (("with", PROBED), ("without", PLAIN.replace('#include "device_log.cuh"', ""))):
        place = folder / name
        place.mkdir()
        (place / "k.cu").write_text(text)
        codes.append(machine_code(build(Unit(place / "k.cu", device.facts.arch), cache=folder / "cache").image))
    same = codes[0] == codes[1] and "k" in codes[0]
    figures.add("machine code with PROBE off", "identical" if same else "differs", "identical", identical=same)


# ---- from the shell to the table, under emulation


@dataclass(frozen=True)
class Trial:
    """A kernel, the words that trace it, and how many values that logs."""

    text: str
    words: tuple[str, ...]
    values: int


def at_the_table(repeats: int, figures: Figures) -> None:
    with tempfile.TemporaryDirectory() as name:
        for trial in (of_200_lines(Path(name)), one_of_ours(Path(name))):
            fresh, again = [], []
            for number in range(repeats):
                mark = f"// {os.getpid()} {number}\n#define UNIQUE_{os.getpid()}_{number}\n"
                Path(name, "k.cu").write_text(trial.text + mark)
                fresh.append(command_s(Path(name), trial, f"{number},0,0", f"a{trial.values}-{number}"))
                again.append(command_s(Path(name), trial, f"{number + 20},0,0", f"b{trial.values}-{number}"))
            lines = trial.text.count("\n")
            figures.add(f"probe printf, a kernel of {lines} lines, emulated, to the table", _spread(fresh), "< 3 s",
                        seconds=_median(fresh), processor_s=_median(fresh, 1))  # fmt: skip
            figures.add("  the same command with another thread", _spread(again), "",
                        seconds=_median(again), processor_s=_median(again, 1))  # fmt: skip


def of_200_lines(folder: Path) -> Trial:
    """A kernel in FP32 with branches, loops, shared memory and a helper."""
    long_kernel.write("nan", folder / "long.cu")
    text = (folder / "long.cu").read_text()
    line = next(number for number, row in enumerate(text.split("\n"), 1) if "if (i < n)" in row)
    words = ("--at", str(line), "--print", "a, b", "--grid", "2", "--block", "64", "--args", "long.npz")
    return Trial(text, words, 4)


def one_of_ours(folder: Path) -> Trial:
    """SkipLayerNorm with its headers in place: templates over three types, of which FP16 is run."""
    text = written_out("skip_layernorm.cu")
    line = next(number for number, row in enumerate(text.split("\n"), 1) if "return {mean, shift" in row)
    rng = np.random.default_rng(0)
    arrays = {key: rng.standard_normal((64, 768)).astype("f2") for key in ("input", "skip", "output")}
    vectors = {key: rng.standard_normal(768).astype("f4") for key in ("bias", "gamma", "beta")}
    np.savez(folder / "in.npz", **arrays, **vectors, rows=np.int32(64), hidden=np.int32(768), epsilon=np.float32(1e-12))
    words = ("--entry", "skip_layernorm_f16", "--at", str(line), "--print", "variance", "--grid", "64", "--block", "96",
             "--args", "in.npz")  # fmt: skip
    return Trial(text, words, 64)


def _median(times: list[tuple[float, float]], which: int = 0) -> float:
    return statistics.median(one[which] for one in times)


def _spread(times: list[tuple[float, float]]) -> str:
    wall, cpu = zip(*times, strict=True)
    return f"{statistics.median(wall):.2f} s ({min(wall):.2f} to {max(wall):.2f}), {statistics.median(cpu):.2f} s of processor"


def written_out(name: str) -> str:
    """A kernel of ours with its own headers in place."""
    text = (device_log.HEADERS / name).read_text(encoding="utf-8").replace("#pragma once\n", "")
    return re.sub(r'^#include "([^"]+)"$', lambda found: written_out(found[1]), text, flags=re.MULTILINE)


def command_s(folder: Path, trial: Trial, thread: str, out: str) -> tuple[float, float]:
    """Seconds on the clock and of the processor."""
    command = (
        sys.executable, "-c", "from probes import cli; raise SystemExit(cli.run())", "printf", "k.cu", *trial.words,
        "--thread", thread, "--emulate", "--out", out,
    )  # fmt: skip
    start, before = time.perf_counter(), os.times()
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env={**os.environ, **process.module_environment()}
    )
    took, after = time.perf_counter() - start, os.times()
    assert done.returncode == 0, done.stderr
    assert f"{trial.values} values logged" in done.stdout, done.stdout
    return took, after.children_user + after.children_system - before.children_user - before.children_system


if __name__ == "__main__":
    main()
