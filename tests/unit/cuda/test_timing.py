"""How much is measured, on what, and what comes back: the rules, and the whole loop on a stand-in for the driver."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import fake_gpu
from harness.cuda import launch, timing
from harness.cuda.compile import Built
from harness.errors import LaunchFailed, UsageError
from kernels.plan import Launch, Pointer


@pytest.fixture
def gpu(driver_path, monkeypatch):
    monkeypatch.setattr(launch, "build", lambda unit, compiler: Built(b"image", "", False))
    monkeypatch.setattr(timing, "WARM_UP_S", 0.001)
    return fake_gpu.FakeGpu(driver_path)


SCALE = Launch(Path("k.cu"), "scale", (1, 1, 1), (1, 1, 1), (Pointer("x"), np.float32(1), np.int32(4)))


@pytest.mark.parametrize(
    ("set_bytes", "l2", "free", "sets"),
    [(10, 100, 10**9, 21), (1000, 100, 10**9, 2), (10, 100, 100, 5), (0, 100, 1000, 201), (30, 100, 10**9, 8)],
)
def test_buffers_are_copied_until_they_are_twice_the_cache(set_bytes, l2, free, sets):
    assert timing.rotation(set_bytes, l2, free) == sets


def test_buffers_that_do_not_fit_are_refused():
    with pytest.raises(UsageError, match="take 1000 bytes, 1500 are free"):
        timing.rotation(1000, 1, 1500)


@pytest.mark.parametrize(
    ("ns", "steps", "sets", "count"), [(1000.0, 1, 20, 2000), (1e7, 3, 20, 20), (1.0, 10, 7, 399), (5.0, 9000, 2, 2)]
)
def test_a_graph_lasts_two_milliseconds_and_takes_each_set_alike(ns, steps, sets, count):
    got = timing.iterations(ns, steps, sets)
    assert (got, got % sets) == (count, 0)


def test_replays_follow_the_time_within_bounds():
    assert timing.replays(2e6, 0.5) == 250
    assert timing.replays(1e9, 0.5) == timing.FEWEST_REPLAYS
    assert timing.replays(1.0, 0.5) == timing.MOST_REPLAYS


def test_steps_are_measured_over_rotated_copies(gpu):
    arrays = {"x": np.ones(1 << 17, np.float32)}  # half a mebibyte; the stand-in's cache has one
    got = timing.measure(
        [SCALE], arrays, options=launch.Options(), effort=timing.Effort(seconds=0.01), device=gpu.device
    )
    assert (got.sets, got.set_bytes, got.l2_bytes, got.cold) == (5, 1 << 19, 1 << 20, True)
    assert 0 < got.min_ns <= got.p10_ns <= got.median_ns <= got.p90_ns
    assert got.replays >= timing.FEWEST_REPLAYS
    assert gpu.launches >= got.replays * got.iterations_per_replay
    assert got.as_record()["cold"] is True


def test_buffers_are_placed_anew_and_the_median_of_the_placements_is_told(gpu, monkeypatch):
    slow = iter([1000.0, 7000.0, 2000.0])
    monkeypatch.setattr(timing, "_timed", lambda device, call, stream, seconds: [next(slow)] * 5)
    effort = timing.Effort(seconds=0.001, sets=2)
    got = timing.measure(
        [SCALE], {"x": np.ones(4, np.float32)}, options=launch.Options(), effort=effort, device=gpu.device
    )
    per_iteration = [ns / got.iterations_per_replay for ns in (1000.0, 7000.0, 2000.0)]
    assert list(got.placements_ns) == per_iteration
    assert got.median_ns == per_iteration[2]
    assert got.replays == 15


def test_one_set_is_not_called_cold(gpu):
    effort = timing.Effort(seconds=0.001, sets=1)
    got = timing.measure(
        [SCALE], {"x": np.ones(4, np.float32)}, options=launch.Options(), effort=effort, device=gpu.device
    )
    assert (got.sets, got.cold) == (1, False)


def test_buffers_are_given_back_afterwards(gpu):
    before = gpu.allocated
    timing.measure([SCALE], {"x": np.ones(1 << 17, np.float32)}, options=launch.Options(), effort=timing.Effort(0.001),
                   device=gpu.device)  # fmt: skip
    assert gpu.allocated == before


def test_a_failing_launch_fails_before_anything_is_timed(gpu):
    gpu.plant("cuLaunchKernel", 1)
    with pytest.raises(LaunchFailed, match="scale<<<"):
        timing.measure([SCALE], {"x": np.ones(4, np.float32)}, options=launch.Options(), device=gpu.device)


def test_time_of_others_is_that_of_one_iteration(gpu, monkeypatch):
    monkeypatch.setattr(timing.Event, "since_ns", lambda self, start: 6000.0)
    calls = []
    got = timing.time_callable(
        lambda: calls.append(1), iterations=3, sets=3, set_bytes=5, seconds=1e-9, device=gpu.device
    )
    assert (got.median_ns, got.p10_ns, got.iterations_per_replay, got.sets) == (2000.0, 2000.0, 3, 3)
    assert len(calls) >= got.replays


def test_without_a_gpu_that_is_said(monkeypatch):
    from harness.cuda import device, driver

    monkeypatch.setattr(driver, "LIBRARY", "/nowhere/libcuda.so.1")
    monkeypatch.setattr(device.cuda, "driver", lambda: driver.load("/nowhere/libcuda.so.1"))
    device.get.cache_clear()
    with pytest.raises(UsageError, match="no NVIDIA driver here, so no GPU"):
        timing.measure([SCALE], {"x": np.ones(4, np.float32)})
