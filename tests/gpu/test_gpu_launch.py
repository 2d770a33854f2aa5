"""Kernels on a real GPU: both compilers, others' memory and streams, guard zones, lost contexts, times that are right."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from harness.cuda import device as gpu
from harness.cuda import launch, timing
from harness.errors import LaunchFailed, UsageError
from kernels.plan import Launch, Pointer

N = 10_007


def axpy(vector, a=0.5, n=N, **more):
    arguments = (Pointer("y"), Pointer("x"), np.float32(a), np.int32(n))
    return Launch(vector, "axpy", (-(-n // 256), 1, 1), (256, 1, 1), arguments, names=("y", "x", "a", "n"), **more)


def backend(name):
    if name == "cupy":
        pytest.importorskip("cupy")
    return name


@pytest.mark.parametrize("name", ["cupy", "pycuda"])
@pytest.mark.parametrize("flavour", ["release", "lineinfo", "debug"])
def test_a_kernel_runs_in_every_flavour(vector, random, device, name, flavour):
    x, y = (random.standard_normal(N).astype(np.float32) for _ in range(2))
    steps = [axpy(vector), axpy(vector, defines=(("FACTOR", "3"),))]
    done = launch.run(steps, {"x": x, "y": y}, backend=backend(name), flavour=flavour, device=device)
    assert done.findings == ()
    np.testing.assert_allclose(done.arrays["y"], y + 2 * x, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(done.arrays["x"], x)


def test_dynamic_shared_memory_up_to_the_device_s_limit(vector, random, device):
    n = device.facts.shared_bytes_per_block // 4
    x = random.standard_normal(n).astype(np.float32)
    step = Launch(vector, "reverse", (1, 1, 1), (512, 1, 1), (Pointer("x"), np.int32(n)), shared_bytes=4 * n)
    np.testing.assert_array_equal(launch.run([step], {"x": x}, device=device).arrays["x"], x[::-1])
    with pytest.raises(UsageError, match="bytes of dynamic"):
        launch.run(
            [Launch(vector, "reverse", (1, 1, 1), (512, 1, 1), step.arguments, shared_bytes=4 * n + 4)], {"x": x}
        )


SETTINGS = """
namespace settings { __constant__ float weights[3]; }
static __constant__ float scale;
__device__ unsigned calls;
extern "C" __global__ void k(float* y) { y[threadIdx.x] = settings::weights[threadIdx.x] * scale + atomicAdd(&calls, 0u); }
"""


@pytest.mark.parametrize("name", ["cupy", "pycuda"])
def test_variables_of_the_source_are_written_before_the_launch(tmp_path, device, name):
    (tmp_path / "k.cu").write_text(SETTINGS)
    given = {"weights": np.array([1, 2, 4], "f4"), "scale": np.float32(10), "calls": np.uint32(5)}
    step = Launch(tmp_path / "k.cu", "k", (1, 1, 1), (3, 1, 1), (Pointer("y"),),
                  variables=tuple((one, value.tobytes()) for one, value in given.items()))  # fmt: skip
    done = launch.run([step], {"y": np.zeros(3, np.float32)}, backend=backend(name), device=device)
    assert done.arrays["y"].tolist() == [15, 25, 45]


def test_an_overrun_by_one_element_is_found(vector, device):
    arrays = {"x": np.ones(33, np.float32), "y": np.ones(5, np.float32)}
    step = Launch(vector, "overrun", (1, 1, 1), (1, 1, 1), (Pointer("x"), np.int32(33)))
    (finding,) = launch.run([step], arrays, device=device).findings
    assert (finding["kernel"], finding["size_bytes"]) == ("overrun", 4)
    assert finding["message"].endswith("outside x, the first at its byte 132")


def test_poison_is_nan_in_half(vector, device):
    done = launch.run([], {"x": np.zeros(7, np.float16)}, poison=("x",), device=device)
    assert np.isnan(done.arrays["x"]).all()


LOSE = """
import sys
from pathlib import Path
import numpy as np
from harness.cuda import launch
from harness.errors import LaunchFailed
from kernels.plan import Launch, Pointer
step = Launch(Path(sys.argv[1]), "wild", (1, 1, 1), (1, 1, 1), (Pointer("x"),), names=("x",))
for attempt in range(2):
    try:
        launch.run([step], {"x": np.ones(4, np.float32)})
    except LaunchFailed as error:
        print(error.status.split(":")[0], "|", error.call, "|", error.hint)
"""


def test_an_illegal_access_is_told_with_its_launch_and_that_the_context_is_lost(vector, device):
    done = subprocess.run([sys.executable, "-c", LOSE, str(vector)], capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert first.startswith("CUDA_ERROR_ILLEGAL_ADDRESS (700) | wild<<<(1, 1, 1), (1, 1, 1), 0>>>(x=0x")
    assert "context is lost" in first
    assert second.startswith("CUDA_ERROR_ILLEGAL_ADDRESS (700)")


@pytest.mark.parametrize(
    ("change", "says"), [({"block": (2048, 1, 1)}, "INVALID_VALUE"), ({"entry": "gone"}, "NOT_FOUND")]
)
def test_a_refused_call_is_told(vector, device, change, says):
    arrays = {"x": np.ones(N, np.float32), "y": np.ones(N, np.float32)}
    with pytest.raises(LaunchFailed, match=says) as caught:
        launch.run([dataclasses.replace(axpy(vector), **change)], arrays, device=device)
    assert caught.value.file.endswith("test_gpu_launch.py")


def test_wrong_arguments_are_refused_before_the_launch(vector, device):
    arrays = {"x": np.ones(N, np.float32), "y": np.ones(N, np.float32)}
    with pytest.raises(UsageError, match="axpy takes 4 parameters, 3 are given"):
        launch.run(
            [Launch(vector, "axpy", (1, 1, 1), (1, 1, 1), (Pointer("y"), Pointer("x"), np.float32(1)))],
            arrays,
            device=device,
        )
    wrong = (Pointer("y"), Pointer("x"), np.float64(1), np.int32(1))
    with pytest.raises(UsageError, match="4 bytes, float64 has 8"):
        launch.run([Launch(vector, "axpy", (1, 1, 1), (1, 1, 1), wrong)], arrays, device=device)


def test_cupy_s_memory_and_stream(vector, random, device):
    cupy = pytest.importorskip("cupy")
    x, y = (cupy.asarray(random.standard_normal(N).astype(np.float32)) for _ in range(2))
    want = cupy.asnumpy(y) + 0.5 * cupy.asnumpy(x)
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device().synchronize()
    launch.prepare([axpy(vector)], {}, device=device).launch_on({"x": x.data.ptr, "y": y.data.ptr}, stream.ptr)
    stream.synchronize()
    np.testing.assert_allclose(cupy.asnumpy(y), want, rtol=1e-6)


def test_pycuda_s_memory_in_the_same_context(vector, random, device):
    pytest.importorskip("pycuda")
    x, y = (random.standard_normal(N).astype(np.float32) for _ in range(2))
    with device.shared_with_pycuda() as pycuda:
        on_x, on_y = pycuda.to_device(x), pycuda.to_device(y)
        launch.prepare([axpy(vector)], {}, device=device).launch_on({"x": int(on_x), "y": int(on_y)})
        np.testing.assert_allclose(pycuda.from_device_like(on_y, y), y + 0.5 * x, rtol=1e-6)
    assert device.driver.made("cuCtxGetCurrent") == device.context


def test_torch_s_memory_and_stream(vector, device):
    torch = pytest.importorskip("torch")
    x, y = (torch.randn(N, device="cuda") for _ in range(2))
    want = y + 0.5 * x
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    launch.prepare([axpy(vector)], {}, device=device).launch_on(
        {"x": x.data_ptr(), "y": y.data_ptr()}, stream.cuda_stream
    )
    stream.synchronize()
    torch.testing.assert_close(y, want)


def test_a_graph_does_what_the_launches_do(vector, random, device):
    arrays = {"x": random.standard_normal(N).astype(np.float32), "y": np.zeros(N, np.float32)}
    placed = launch.prepare([axpy(vector, a=1.0)], {}, device=device).place(arrays)
    stream = device.stream()
    graph = placed.graph(repeats=4)
    for _ in range(3):
        graph.launch(stream.handle)
    stream.synchronize()
    np.testing.assert_allclose(placed.read()["y"], 12 * arrays["x"], rtol=1e-5)


def test_the_time_of_a_kernel_that_takes_20_us_is_20_us(vector, device):
    step = Launch(vector, "wait", (1, 1, 1), (1, 1, 1), (np.int64(20_000),))
    got = timing.measure([step], {"x": np.ones(256, np.float32)}, effort=timing.Effort(0.2, sets=1), device=device)
    assert 20_000 <= got.median_ns <= 24_000
    assert got.p90_ns - got.p10_ns < 2_000


def test_rotated_buffers_are_read_from_memory(vector, random, device):
    n = 1 << 20  # 4 MB each: 50 MB of cache would hold them
    arrays = {name: random.standard_normal(n).astype(np.float32) for name in "xy"}
    cold = timing.measure([axpy(vector, n=n)], arrays, device=device)
    warm = timing.measure([axpy(vector, n=n)], arrays, effort=timing.Effort(sets=1), device=device)
    assert (cold.cold, warm.cold) == (True, False)
    assert cold.median_ns > 1.1 * warm.median_ns


def test_torch_is_timed_the_same_way(device):
    torch = pytest.importorskip("torch")
    inputs = [(torch.randn(1 << 20, device="cuda"),) for _ in range(20)]
    got = timing.time_torch(torch, torch.sin, inputs, seconds=0.1)
    assert (got.sets, got.set_bytes, got.iterations_per_replay) == (20, 8 << 20, 20)
    assert 500 < got.median_ns < 1e6


def test_the_card_is_what_it_is(device):
    facts = device.facts
    assert facts.compute_capability >= (7, 0)
    assert facts.multiprocessors > 0
    assert facts.l2_bytes > 1 << 20
    rate = gpu.copy_bandwidth(device)
    assert 1e10 < rate < 2e13
    state = gpu.clock_state(device)
    assert state.get("note") or state["sm_clock_mhz"] > 100
