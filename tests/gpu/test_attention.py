"""Fused attention on a real GPU: real sizes against float64, every division of work, and the same numbers every time."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from harness.cuda import launch
from kernels import attention, numbers
from kernels.attention import SPEC, AttentionCase, Tiling
from kernels.plan import Plan


def computed(case, arrays, device, plan=None):
    """The context in float64, from an output that was poisoned first."""
    poisoned = np.zeros((*case.rows, case.hidden), numbers.storage(case.dtype))
    steps = (plan or attention.plan(case)).steps
    done = launch.run(steps, arrays | {"context": poisoned}, poison=("context",), device=device)
    assert done.findings == ()
    return numbers.decode(done.arrays["context"], case.dtype)


def share(case, device, random, plan=None):
    """Of the error that rounding explains, the worst element's."""
    if case.capability == attention.WARPGROUP_CAPABILITY != device.facts.compute_capability:
        pytest.skip("wgmma needs compute capability 9.0")
    arrays = SPEC.inputs(case, random)
    wanted = SPEC.reference(case, arrays)
    error = np.abs(computed(case, arrays, device, plan) - wanted["context"])
    assert not np.isnan(error).any()
    return np.max(error / SPEC.bound(case, arrays, wanted)["context"])


@pytest.mark.parametrize("capability", [(8, 0), (9, 0)], ids=["mma", "wgmma"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("size", attention.HEAD_SIZES)
@pytest.mark.parametrize("sequence", [1, 63, 128, 384, 1024])
def test_both_engines_are_right_at_every_length_and_head_size(device, random, capability, dtype, size, sequence):
    case = AttentionCase(2, sequence, 3, size, dtype, counts=(sequence, max(1, sequence // 2)), capability=capability)
    assert share(case, device, random) <= 1


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("size", attention.HEAD_SIZES)
def test_the_other_formats_are_right(device, random, dtype, size):
    assert share(AttentionCase(2, 300, 3, size, dtype, counts=(300, 7)), device, random) <= 1


@pytest.mark.parametrize("capability", [(8, 0), (9, 0)], ids=["mma", "wgmma"])
def test_varlen_with_many_sequences(device, random, capability):
    lengths = tuple(int(n) for n in random.integers(0, 385, 40))
    assert share(AttentionCase(40, 384, 4, 64, lengths=lengths, capability=capability), device, random) <= 1


@pytest.mark.parametrize("keys", [32, 64, 96, 128])
@pytest.mark.parametrize("stages", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2])
def test_every_division_of_work_is_right(device, random, keys, stages, groups):
    case = AttentionCase(2, 500, 3, 64, capability=(9, 0))
    tiles = Tiling(keys, stages, groups, 1)
    plan = Plan(attention.buffers(case), (attention.launch(case, tiles),))
    assert share(case, device, random, plan) <= 1


@pytest.mark.parametrize("capability", [(8, 0), (9, 0)], ids=["mma", "wgmma"])
def test_the_same_numbers_every_time(device, random, capability):
    """A result that changes from run to run is a race."""
    case = AttentionCase(16, 384, 8, 64, capability=capability)
    if capability == (9, 0) != device.facts.compute_capability:
        pytest.skip("wgmma needs compute capability 9.0")
    arrays = SPEC.inputs(case, random)
    first, *others = (computed(case, arrays, device) for _ in range(4))
    assert all(np.array_equal(first, other) for other in others)


def test_float32_is_as_exact_as_float32(device, random):
    """No TF32 inside: that would be wrong in the fourth digit."""
    case = AttentionCase(2, 200, 2, 64, "float32")
    arrays = SPEC.inputs(case, random)
    wanted = SPEC.reference(case, arrays)["context"]
    error = np.abs(computed(case, arrays, device) - wanted)
    usual = np.abs(SPEC.peer(case, arrays)["context"] - wanted)
    assert error.max() <= 4 * usual.max()


def test_a_layout_of_its_own_gives_the_same(device, random):
    """[N, 3, H] and [3, N, H] rows of the same numbers."""
    case = AttentionCase(2, 100, 3, 64)
    qkv = SPEC.inputs(case, random)["qkv"]
    other = np.ascontiguousarray(np.swapaxes(qkv.reshape(100, 2, 3, 3, 64), 2, 3)).reshape(qkv.shape)
    plain = dataclasses.replace(case, layout="qkvnh")
    np.testing.assert_array_equal(computed(case, {"qkv": qkv}, device), computed(plain, {"qkv": other}, device))
