"""The device log's way over the GPU, on a stand-in for the driver: attaching, choosing, reading, saving, and the worker."""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import fake_gpu
from harness.cuda import launch
from harness.device_log import capture, traced
from harness.device_log import gpu as gpu_log
from harness.device_log import layout as device_log
from harness.device_log.layout import Selection
from harness.errors import BuildFailed, LaunchFailed, ToolFailed, UsageError
from kernels.plan import Launch, Pointer
from probes import cli

# Stands for nvcc: what the stand-in driver wants to know of a source, in something that begins like a cubin.
NVCC = """\
#!{python}
import struct, sys
if "--version" in sys.argv:
    raise SystemExit(print("nvcc, a stand-in"))
text = open(sys.argv[-1]).read()
if "BROKEN" in text:
    raise SystemExit("k.cu(3): error: expected a ';'")
body = b"probe_device_log" * ("-DPROBE_ON=1" in sys.argv) + b" vprintf" * ("printf(" in text)
body += b" probe_next_launch" * ("void probe_next_launch" in text)
head = bytearray(64)
head[:4] = b"\\x7fELF"
struct.pack_into("<Q", head, 40, 64 + len(body))
open(sys.argv[sys.argv.index("-o") + 1], "wb").write(bytes(head) + body)
"""
KERNEL = """\
extern "C" __global__ void k(float* out, int n) {{
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const float value = i * 0.5f;
  {}
  out[i] = value;
}}
"""
PROBED = '#include "device_log.cuh"\n' + KERNEL.format('PROBE("value", value);')
N = 600


@pytest.fixture
def machine(driver_path, tmp_path, monkeypatch) -> Path:
    """The stand-ins for driver and compiler, for this process and those that it starts; a folder to work in."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "nvcc").write_text(NVCC.format(python=sys.executable))
    (tools / "nvcc").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(driver_path.parent))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("harness.cuda.compile.default_compiler", lambda: "nvcc")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def gpu(machine, driver_path):
    return fake_gpu.FakeGpu(driver_path)


def step(folder: Path, text: str = PROBED, n: int = N, *, log: bool = True) -> Launch:
    path = folder / "k.cu"
    path.write_text(text)
    return Launch(path, "k", (3, 1, 1), (256, 1, 1), (Pointer("out"), np.int32(n)), 0,
                  traced.defines_of() if log else (), ("out", "n"))  # fmt: skip


@pytest.fixture
def probed(gpu, machine):
    """A module that logs, and its kernel with an array in place."""
    arrays = {"out": np.zeros(N, "f4")}
    made = launch.prepare([step(machine)], launch.itemsizes_of(arrays), device=gpu.device)
    return made.modules[0], made.place(arrays)


# ---- in this process


@pytest.mark.parametrize("fast", [False, True])
def test_what_a_kernel_logs_is_read_and_choosing_others_costs_no_compilation(gpu, probed, monkeypatch, fast):
    module, placed = probed
    log = gpu_log.GpuLog(gpu.device, N, fast=fast)
    log.attach(module)
    placed.launch()
    np.testing.assert_array_equal(log.read().numbers("value"), np.arange(N, dtype="f4") / 2)
    assert (log.recorded.lost, log.recorded.torn) == (0, 0)
    assert log.rows("k")[300]["block"] == [1, 0, 0]
    monkeypatch.setattr(gpu_log, "build", lambda *_: pytest.fail("compiled again"))
    log.clear()
    log.select(Selection.of(block="2,0,0", thread="*,0,0", warp="1"))
    placed.launch()
    np.testing.assert_array_equal(log.read().numbers("value"), np.arange(512 + 32, 512 + 64, dtype="f4") / 2)
    log.detach()
    placed.launch()
    assert len(log.read()) == 32, "logged after it was detached"
    log.free()


@pytest.mark.parametrize("fast", [False, True])
def test_losses_are_exact_and_a_saved_log_reads_the_same(gpu, probed, machine, fast):
    module, placed = probed
    log = gpu_log.GpuLog(gpu.device, 100, fast=fast)
    log.attach(module)
    log.next_launch()
    placed.launch()
    recorded = log.read()
    assert (len(recorded), recorded.lost, recorded.needed) == (100, N - 100, N)
    assert {row["launch_id"] for row in log.rows()} == {1}
    log.save(machine / "log")
    saved = device_log.read(machine / "log")
    assert (saved.rows(), saved.lost, saved.needed) == (recorded.rows(), N - 100, N)
    assert len(log.read_now()) == 100
    log.save(machine / "blind")
    assert device_log.read(machine / "blind").lost is None


def test_a_script_and_a_library(gpu, probed, driver_path, monkeypatch):
    monkeypatch.setattr("harness.cuda.device.get", lambda: gpu.device)
    module, placed = probed
    for attached in (module, module.handle, ctypes.CDLL(str(driver_path))):
        with capture(attached, records=N, thread="0,0,0") as log:
            placed.launch()
        assert [row["value"] for row in log.rows("k")] == [0.0, 128.0, 256.0]
    gpu.plant("cuCtxSynchronize", 700)
    with pytest.raises(LaunchFailed), capture(module, records=N) as log:
        placed.launch()
    assert len(log.recorded) == N, "what was logged before the crash is not there"
    gpu.plant("cuCtxSynchronize", 700)
    with pytest.raises(LaunchFailed), capture(module, records=N, fast=True) as log:
        placed.launch()
    assert (len(log.recorded), log.recorded.lost) == (0, None)


def test_a_module_that_logs_nothing_is_refused(gpu, machine):
    made = launch.prepare([step(machine, log=False)], {"out": 4}, device=gpu.device)
    with pytest.raises(UsageError, match="the module has no probe_device_log") as raised:
        gpu_log.GpuLog(gpu.device, 10).attach(made.modules[0])
    assert "-DPROBE_ON=1" in raised.value.hint
    with pytest.raises(UsageError, match="room for at least 1 record"):
        gpu_log.GpuLog(gpu.device, 0)


# ---- in the worker


def run(folder: Path, made: Launch, out: float = 0.0, **more) -> traced.Traced:
    job = traced.Job(made, {"out": np.full(N, out, "f4")}, folder, **more)
    return traced.run(job, emulate=False, grow=more.get("records") is not None)


def test_the_worker_runs_a_job_and_grows_the_log(machine):
    done = run(machine, step(machine), records=7)
    assert (done.ended, done.recorded.lost, done.findings, done.message) == ("finished", 0, (), "")
    np.testing.assert_array_equal(done.recorded.numbers("value"), np.arange(N, dtype="f4") / 2)
    np.testing.assert_array_equal(done.arrays["out"], np.arange(N, dtype="f4") / 2)


@pytest.mark.parametrize("out, ended", [(0.0, "crashed"), (1.0, "timed out")])
def test_what_was_logged_before_the_kernel_died_comes_back(machine, out, ended):
    began = time.monotonic()
    done = run(machine, step(machine, n=-5), out, timeout_s=0.2)
    assert (done.ended, done.arrays) == (ended, {})
    assert done.recorded.numbers("value").tolist() == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert "illegal memory access" in done.message or "longer than 0.2 s" in done.message
    assert time.monotonic() - began < 30


def test_what_does_not_compile_or_does_not_fit_is_told(machine):
    with pytest.raises(BuildFailed, match="expected a ';'"):
        run(machine, step(machine, "BROKEN"))
    with pytest.raises(ToolFailed, match="named symbol not found"):
        run(machine, Launch(step(machine).source, "other", (1, 1, 1), (1, 1, 1), (), 0, (), ()))


def test_the_verb_on_a_gpu(machine, capsys):
    (machine / "k.cu").write_text(KERNEL.format(r'printf("%f\n", value);'))
    (machine / "in.yaml").write_text("out: {shape: 600}\nn: 600\n")
    words = ["printf", "k.cu", "--at", "6", "--print", "value", "--thread", "1,0,0", "--grid", "3", "--block", "256",
             "--args", "in.yaml", "--gpu", "--out", "s"]  # fmt: skip
    assert cli.run(words) == 0
    result = json.loads(Path("s/result.json").read_text())
    assert [row["value"] for row in result["rows"]] == [0.5, 128.5, 256.5]
    assert (len(result["printed"]), result["printed_lost"]) == (600, 0)
    assert result["printed"][1]["text"] == "0.500000"
    assert "3 values logged" in capsys.readouterr().out
