"""What is read from the card, on a stand-in for the driver and for NVML."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest

import fake_gpu
from harness.cuda import device as gpu_module
from harness.cuda.device import Device, Facts
from harness.errors import UsageError


@pytest.fixture
def gpu(driver_path):
    return fake_gpu.FakeGpu(driver_path)


def facts(capability):
    return Facts("card", capability, 1, 1, 1, 1, 1, 1, 1, "13.0")


@pytest.mark.parametrize(
    ("capability", "arch"), [((7, 5), "sm_75"), ((8, 9), "sm_89"), ((9, 0), "sm_90a"), ((12, 0), "sm_120a")]
)
def test_code_is_compiled_for_the_card_with_what_only_it_has(capability, arch):
    assert facts(capability).arch == arch


def test_the_manifest_names_the_card_and_nothing_of_the_machine(gpu):
    manifest = gpu.device.facts.as_manifest()
    assert (manifest["name"], manifest["compute_capability"], manifest["driver"]) == ("Stand-in", "9.0", "13.0")
    assert "0000:01:00.0" not in str(manifest)


def test_the_primary_context_is_retained_and_made_current(gpu):
    device = gpu.device
    device.driver.call("cuCtxSetCurrent", None)
    assert device.driver.made("cuCtxGetCurrent") == 0
    device.use()
    assert device.driver.made("cuCtxGetCurrent") == device.context != 0


def test_a_gpu_that_is_not_there_is_told(gpu):
    with pytest.raises(UsageError, match="no GPU 3: this machine has 1"):
        Device(gpu.device.driver, 3)


def test_memory_goes_there_and_back(gpu):
    memory = gpu.device.allocate(24)
    gpu.device.write(memory.address, np.arange(12, dtype=np.int16).reshape(3, 4).T)
    got = np.empty((4, 3), np.int16)
    gpu.device.read(memory.address, got)
    assert got.tolist() == np.arange(12).reshape(3, 4).T.tolist()
    gpu.device.fill(memory.address, 0xFF, 4)
    gpu.device.read(memory.address, got)
    assert got.ravel()[:3].tolist() == [-1, -1, 8]
    held = gpu.allocated
    memory.free()
    memory.free()
    assert gpu.allocated == held - 24


def test_copy_bandwidth_counts_bytes_read_and_written(gpu, monkeypatch):
    monkeypatch.setattr(gpu_module.Event, "since_ns", lambda self, start: 1000.0)
    assert gpu_module.copy_bandwidth(gpu.device, size=1 << 20, repeats=3) == pytest.approx(2 * (1 << 20) / 1e-6)


class NVMLError(Exception):
    pass


def nvml(**functions):
    def refuse(*arguments):
        raise NVMLError("Not Supported")

    names = ("nvmlInit", "nvmlShutdown", "nvmlDeviceGetHandleByPciBusId", "nvmlDeviceGetClockInfo", "nvmlDeviceGetMaxClockInfo",
             "nvmlDeviceGetTemperature", "nvmlDeviceGetPowerUsage", "nvmlSystemGetDriverVersion",
             "nvmlDeviceGetCurrentClocksThrottleReasons")  # fmt: skip
    constants = {"NVML_CLOCK_SM": 1, "NVML_CLOCK_MEM": 2, "NVML_TEMPERATURE_GPU": 0, "NVMLError": NVMLError}
    return types.SimpleNamespace(**{**dict.fromkeys(names, refuse), **constants, **functions})


def test_clocks_and_what_slows_them_are_told_as_far_as_the_card_tells(gpu, monkeypatch):
    asked = []
    fake = nvml(
        nvmlInit=lambda: None, nvmlShutdown=lambda: asked.append("shut"),
        nvmlDeviceGetHandleByPciBusId=lambda bus: asked.append(bus) or "card",
        nvmlDeviceGetClockInfo=lambda card, clock: {1: 1980, 2: 2619}[clock],
        nvmlDeviceGetPowerUsage=lambda card: 350_500,
        nvmlDeviceGetCurrentClocksThrottleReasons=lambda card: 0x4 | 0x20,
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    assert gpu_module.clock_state(gpu.device) == {
        "sm_clock_mhz": 1980, "memory_clock_mhz": 2619, "power_w": 350.5,
        "clock_reasons": ["power cap", "software thermal"], "slowed": True,
    }  # fmt: skip
    assert asked == [b"0000:01:00.0", "shut"]


def test_an_idle_card_is_not_slowed():
    assert gpu_module.explain(0x1) == {"clock_reasons": ["idle"], "slowed": False}


def test_without_nvml_there_is_a_note(gpu, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", nvml())
    assert gpu_module.clock_state(gpu.device) == {"note": "clocks not recorded: Not Supported"}
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "pip install" in gpu_module.clock_state(gpu.device)["note"]
