"""The device log on a real GPU: every value of a million threads, exact losses, crashes, graphs, printf, racecheck."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from harness import process
from harness.cuda import launch
from harness.cuda.compile import Unit, build
from harness.device_log import gpu as gpu_log
from harness.device_log import layout as device_log
from harness.device_log import printf as device_printf
from harness.device_log import traced
from harness.device_log.layout import Selection
from kernels.plan import Launch, Pointer
from probes import cli

LOGGED = traced.defines_of()
VALUES = """\
#include "device_log.cuh"
extern "C" __global__ void k(float* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  PROBE("i", i);
  PROBE_IF(i % 7 == 0, "wide", make_float4(i, i + 1, i + 2, i + 3), (double)i);
  out[i] = i;
}
"""
DIES = """\
#include "device_log.cuh"
extern "C" __global__ void k(volatile int* out, int mode) {
  const int i = threadIdx.x;
  PROBE("before", i);
  __syncthreads();
  if (mode == 1) out[1ll << 40] = 1;
  if (mode == 2) while (out[0] == 0) {}
  PROBE("after", i);
}
"""
PRINTS = """\
extern "C" __global__ void k(int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) printf("value %d\\n", i);
}
"""


def place(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "k.cu"
    path.write_text(text)
    return path


def prepared(device, path, arrays, *scalars, grid, block, defines=LOGGED):
    arguments = (*(Pointer(name) for name in arrays), *scalars)
    step = Launch(path, "k", (grid, 1, 1), (block, 1, 1), arguments, 0, defines)
    made = launch.prepare([step], launch.itemsizes_of(arrays), device=device)
    return made, made.place(arrays)


@pytest.fixture
def values(device, tmp_path):
    """`run(n, **options)`: the kernel above on n threads, logged."""

    def run(n, records, selection=None, fast=False):
        made, placed = prepared(device, place(tmp_path, VALUES), {"out": np.zeros(n, "f4")}, np.int32(n),
                                grid=-(-n // 256), block=256)  # fmt: skip
        log = gpu_log.GpuLog(device, records, selection, fast=fast)
        log.attach(made.modules[0])
        placed.launch()
        return log, placed

    return run


@pytest.mark.parametrize("fast", [False, True])
def test_every_value_of_a_million_threads_arrives(values, fast):
    n = 1_000_000
    log, placed = values(n, 2_000_000, fast=fast)
    recorded = log.read()
    assert (recorded.lost, recorded.torn) == (0, 0)
    np.testing.assert_array_equal(np.sort(recorded.numbers("i")), np.arange(n))
    columns = recorded.columns
    own = (columns["block_x"] * 256 + columns["thread_x"])[columns["value_index"] == 0]
    sites = columns["site"][columns["value_index"] == 0]
    narrow = next(site for site, place in recorded.sites.items() if place.tag == "i")
    np.testing.assert_array_equal(own[sites == narrow], recorded.numbers("i"))
    assert len(recorded) == n + 2 * -(-n // 7)
    np.testing.assert_array_equal(placed.read()["out"], np.arange(n, dtype="f4"))


@pytest.mark.parametrize("records", [1, 31, 1000, 99_999, 142_857, 200_000])
def test_what_finds_no_room_is_counted_exactly(values, records):
    n = 100_000
    recorded = values(n, records)[0].read()
    assert len(recorded) + recorded.lost == n + 2 * -(-n // 7)
    assert recorded.torn == 0
    for row in recorded.rows()[:: max(1, len(recorded) // 2000)]:
        i = row["block"][0] * 256 + row["thread"][0]
        assert row["value"] == ([i, i + 1, i + 2, i + 3] if row["type"] == "float32[4]" else i)


def test_the_same_rows_as_under_emulation(values, tmp_path):
    n = 300
    on_gpu = values(n, 5000)[0].read().rows("k")
    (tmp_path / "emulated").mkdir()
    step = Launch(place(tmp_path, VALUES), "k", (2, 1, 1), (256, 1, 1), (Pointer("out"), np.int32(n)), 0,
                  traced.defines_of())  # fmt: skip
    emulated = traced.run_emulated(traced.Job(step, {"out": np.zeros(n, "f4")}, tmp_path / "emulated")).recorded

    def by_thread(rows):
        return sorted(
            (row["block"], row["thread"], row["line"], row["tag"], row["type"], str(row["value"])) for row in rows
        )

    assert by_thread(on_gpu) == by_thread(emulated.rows("k"))


def test_other_threads_without_another_compilation(values):
    log, placed = values(1000, 5000, Selection.of(thread="5", block="*,0,0"))
    assert sorted(log.read().numbers("i")) == [5, 261, 517, 773]
    log.clear()
    log.select(Selection.of(warp="1", block="2,0,0"))
    placed.launch()
    assert sorted(log.read().numbers("i")) == list(range(2 * 256 + 32, 2 * 256 + 64))


def test_launches_are_counted_also_in_a_graph(device, values):
    log, placed = values(1, 1000)
    log.read()
    log.clear()
    stream = device.stream()
    log.next_launch()  # compiled before the capture
    with stream.capture() as graph:
        log.next_launch(stream.handle)
        placed.launch(stream.handle)
    for _ in range(3):
        graph.launch(stream.handle)
    stream.synchronize()
    rows = log.read().rows()
    assert [row["launch_id"] for row in rows if row["tag"] == "i"] == [2, 3, 4]


@pytest.mark.parametrize("compiler", ["nvrtc", "nvcc"])
def test_modules_of_both_compilers(device, tmp_path, compiler):
    if compiler == "nvrtc":
        pytest.importorskip("cupy")
    elif shutil.which("nvcc") is None:
        pytest.skip("needs nvcc")
    built = build(Unit(place(tmp_path, VALUES), device.facts.arch, defines=traced.defines_of()), compiler)
    log = gpu_log.GpuLog(device, 10)
    log.attach(device.load(built.image))


def test_a_script_with_cupy(device):
    cupy = pytest.importorskip("cupy")
    code = cupy.RawModule(code=VALUES, options=("-std=c++17", "-DPROBE_ON=1", f"-I{device_log.HEADERS}"))
    out = cupy.zeros(512, "f4")
    with device_log.capture(code, records=10_000, thread="0,0,0") as log:
        code.get_function("k")((2,), (256,), (out, np.int32(512)))
        log.next_launch()
        code.get_function("k")((2,), (256,), (out, np.int32(512)))
    rows = [row for row in log.rows("k") if row["tag"] == "i"]
    assert sorted((row["launch_id"], row["value"]) for row in rows) == [(0, 0), (0, 256), (1, 0), (1, 256)]
    code.get_function("k")((2,), (256,), (out, np.int32(512)))  # the log is gone: nothing is written anywhere
    cupy.cuda.runtime.deviceSynchronize()


@pytest.mark.parametrize("mode, ended", [(1, "crashed"), (2, "timed out")])
def test_what_was_logged_before_a_crash_or_a_hang_is_kept(device, tmp_path, mode, ended):
    step = Launch(place(tmp_path, DIES), "k", (1, 1, 1), (64, 1, 1), (Pointer("out"), np.int32(mode)), 0,
                  traced.defines_of(), ("out", "mode"))  # fmt: skip
    done = traced.run_on_gpu(traced.Job(step, {"out": np.zeros(4, "i4")}, tmp_path, timeout_s=3))
    assert done.ended == ended
    assert sorted(done.recorded.numbers("before")) == list(range(64))
    assert done.recorded.torn == 0


def test_printf_is_caught_and_nothing_of_it_lost(device, tmp_path):
    text = '#include "device_log.cuh"\n' + PRINTS
    step = Launch(place(tmp_path, text), "k", (400, 1, 1), (256, 1, 1), (np.int32(100_000),), 0, traced.defines_of(),
                  ("n",))  # fmt: skip
    done = traced.run_on_gpu(traced.Job(step, {}, tmp_path, count_printf=True))
    assert done.printed_lost == 0
    assert sorted(int(one.text.split()[1]) for one in done.printed) == list(range(100_000))
    assert {(one.launch_id, one.kernel, one.range) for one in done.printed} == {(0, "k", "k")}


def test_what_printf_loses_is_counted(device, tmp_path, monkeypatch):
    monkeypatch.setattr(traced, "FIFO_BYTES", 1 << 20)
    text = '#include "device_log.cuh"\n' + PRINTS
    step = Launch(place(tmp_path, text), "k", (400, 1, 1), (256, 1, 1), (np.int32(100_000),), 0, traced.defines_of(),
                  ("n",))  # fmt: skip
    done = traced.run_on_gpu(traced.Job(step, {}, tmp_path, count_printf=True))
    assert done.printed_lost > 0
    assert done.printed_lost + len(done.printed) == 100_000


def test_printf_in_a_script_is_tied_to_its_launch(device, tmp_path):
    _, placed = prepared(device, place(tmp_path, PRINTS), {}, np.int32(3), grid=1, block=32, defines=())
    with device_printf.capture() as captured:
        for number in range(2):
            placed.launch()
            device.synchronize()
            captured.launched(number, "k", f"step {number}")
    assert [(one.launch_id, one.range, one.text) for one in captured.rows] == [
        (number, f"step {number}", f"value {i}") for number in range(2) for i in range(3)
    ]


def test_the_verb(device, tmp_path, root, monkeypatch):
    shutil.copytree(root / "examples" / "kernels", tmp_path / "kernels")
    monkeypatch.chdir(tmp_path / "kernels")
    words = [
        "printf",
        "softmax.cu",
        "--watch-nan",
        "--grid",
        "3",
        "--block",
        "64",
        "--args",
        "softmax.yaml",
        "--gpu",
        "--out",
        "s",
    ]
    assert cli.run(words) == 1
    result = json.loads(Path("s/result.json").read_text())
    assert ("softmax.cu", 9, "power") in {(one["file"], one["line"], one["assigned"]) for one in result["not_finite"]}


def test_the_verb_on_a_template_in_a_namespace_with_a_host_around_it(device, tmp_path, monkeypatch):
    """Its name is mangled, nothing but us instantiates it, and <vector> is nothing for NVRTC."""
    monkeypatch.chdir(tmp_path)
    Path("k.cu").write_text(
        "#include <vector>\nnamespace acme {\ntemplate <typename T, int S> __global__ void k(T* y, int n) {\n"
        "  const int i = threadIdx.x;\n  if (i < n) y[i] = i * S;\n}\n}\n"
        "template __global__ void acme::k<double, 3>(double*, int);\n"
        "int main() { std::vector<float> y(4); acme::k<float, 2><<<1, 4>>>(y.data(), 4); return cudaDeviceSynchronize(); }\n"
    )
    Path("in.yaml").write_text("y: {shape: 4}\nn: 4\n")
    words = ["printf", "k.cu", "--entry", "k<float, 2>", "--at", "6", "--print", "y[i], S", "--thread", "3", "--gpu"]
    if shutil.which("nvcc") is None:
        Path("k.cu").write_text(Path("k.cu").read_text().replace("#include <vector>", ""))
    assert cli.run([*words, "--grid", "1", "--block", "4", "--args", "in.yaml", "--out", "s"]) == 0
    rows = json.loads(Path("s/result.json").read_text())["rows"]
    assert [(row["tag"], row["type"], row["value"]) for row in rows] == [("y[i]", "float32", 6.0), ("S", "int32", 2)]


def test_a_module_without_the_log_is_told(device, tmp_path):
    built = build(Unit(place(tmp_path, VALUES), device.facts.arch))
    with pytest.raises(Exception, match="the module has no probe_device_log"):
        gpu_log.GpuLog(device, 10).attach(device.load(built.image))


def test_racecheck_finds_nothing(device, tmp_path, root):
    if shutil.which("compute-sanitizer") is None:
        pytest.skip("needs compute-sanitizer")
    script = tmp_path / "script.py"
    script.write_text(
        "import numpy as np\nfrom pathlib import Path\nfrom harness.cuda import device, launch\nfrom harness.device_log import gpu as gpu_log, traced\n"
        "from kernels.plan import Launch, Pointer\n"
        f"step = Launch(Path({str(place(tmp_path, VALUES))!r}), 'k', (40, 1, 1), (256, 1, 1), (Pointer('out'), np.int32(10000)),"
        " 0, traced.defines_of())\n"
        "gpu = device.get()\narrays = {'out': np.zeros(10000, 'f4')}\n"
        "made = launch.prepare([step], launch.itemsizes_of(arrays), device=gpu)\nlog = gpu_log.GpuLog(gpu, 9000)\n"
        "log.attach(made.modules[0])\nmade.place(arrays).launch()\nprint('rows', len(log.read()))\n"
    )
    for tool in ("racecheck", "memcheck"):
        done = subprocess.run(
            ["compute-sanitizer", "--tool", tool, sys.executable, str(script)],
            capture_output=True,
            text=True,
            env=os.environ | process.module_environment(),
        )
        assert "rows " in done.stdout
        assert re.search(r"ERROR SUMMARY: 0 errors|RACECHECK SUMMARY: 0 hazards", done.stdout), done.stdout[-2000:]


def test_a_crash_in_this_process_is_an_error_that_keeps_the_rows(device, tmp_path, root):
    """In a process of its own: the context is lost afterwards."""
    script = tmp_path / "script.py"
    script.write_text(
        "import numpy as np\nfrom pathlib import Path\nfrom harness.cuda import device, launch\nfrom harness.device_log import gpu as gpu_log, traced\n"
        "from harness.errors import LaunchFailed\nfrom kernels.plan import Launch, Pointer\n"
        f"step = Launch(Path({str(place(tmp_path, DIES))!r}), 'k', (1, 1, 1), (64, 1, 1), (Pointer('out'), np.int32(1)),"
        " 0, traced.defines_of())\n"
        "gpu = device.get()\narrays = {'out': np.zeros(4, 'i4')}\n"
        "made = launch.prepare([step], launch.itemsizes_of(arrays), device=gpu)\nlog = gpu_log.GpuLog(gpu, 9000)\n"
        "log.attach(made.modules[0])\nplaced = made.place(arrays)\nplaced.launch()\n"
        "try:\n    log.read()\nexcept LaunchFailed as error:\n    print('failed', len(log.recorded.numbers('before')))\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env=os.environ | process.module_environment()
    )
    assert "failed 64" in done.stdout, done.stderr[-2000:]
