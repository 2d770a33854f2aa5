"""Compilers on the GPU machine: what they build loads and runs, and what was built for another card is refused."""

from __future__ import annotations

import numpy as np
import pytest

from harness.cuda import launch
from harness.cuda.compile import Unit, build
from harness.errors import BuildFailed, LaunchFailed
from kernels.plan import Launch, Pointer


def compilers():
    return [pytest.param("nvrtc", id="nvrtc"), pytest.param("nvcc", id="nvcc")]


@pytest.mark.parametrize("compiler", compilers())
def test_a_build_is_kept_and_loads(vector, device, tmp_path, compiler):
    unit = Unit(vector, device.facts.arch)
    first, second = (build(unit, compiler, cache=tmp_path) for _ in range(2))
    assert (first.cached, second.cached, first.image == second.image) == (False, True, True)
    assert device.load(second.image).function("axpy")


@pytest.mark.parametrize("compiler", compilers())
def test_an_error_has_file_and_line(device, tmp_path, compiler):
    source = tmp_path / "broken.cu"
    source.write_text('extern "C" __global__ void f(float* x) {\n  x[0] = nothing;\n}\n')
    with pytest.raises(BuildFailed, match=r'broken\.cu:2: identifier "nothing" is undefined'):
        build(Unit(source, device.facts.arch), compiler, cache=tmp_path)


def test_code_for_another_card_is_refused(vector, device, tmp_path):
    other = "sm_80" if device.facts.compute_capability[0] != 8 else "sm_90a"
    with pytest.raises(LaunchFailed, match="cuModuleLoadData") as caught:
        device.load(build(Unit(vector, other), "nvcc", cache=tmp_path).image)
    assert "compute capability" in caught.value.hint


def test_both_compilers_give_the_same_numbers(vector, random, device):
    arrays = {"x": random.standard_normal(1000).astype(np.float16)}
    step = Launch(vector, "twice_half", (4, 1, 1), (256, 1, 1), (Pointer("x"), np.int32(1000)))
    got = [launch.run([step], arrays, backend=backend, device=device).arrays["x"] for backend in ("cupy", "pycuda")]
    np.testing.assert_array_equal(got[0], got[1])
    np.testing.assert_array_equal(got[0], arrays["x"] * 2)
