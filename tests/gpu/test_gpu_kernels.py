"""Every case of every operation on the GPU, against float64, with fresh inputs, poisoned outputs and guarded buffers."""

from __future__ import annotations

import numpy as np
import pytest

from examples.fusion import ladder
from harness.record import Outcome
from kernels.manifest import SPECS
from probes.kernels.testing import elsewhere, machine, run_case

CASES = [(spec, case) for spec in SPECS for case in spec.cases]


@pytest.fixture(scope="module")
def card(device):
    return machine(False)


@pytest.mark.parametrize("spec, case", CASES, ids=[f"{spec.name} {case.label}" for spec, case in CASES])
def test_a_case_is_right_and_writes_nowhere_else(spec, case, card, random):
    if elsewhere(case, card.capability):
        pytest.skip("for compute capability 9.0 alone")
    result = run_case(spec, case, card, int(random.integers(2**32)))
    assert (result.outcome, result.findings) == (Outcome.PASS, ()), result.message


@pytest.mark.parametrize("level", ladder.LEVELS, ids=lambda level: level.name)
def test_the_fusion_ladder(level, device, random):
    given = ladder.arrays(random)
    got, nanoseconds = ladder.measure(level, given, seconds=0.05)
    assert ladder.worst_error(got, ladder.expected(given)) < 4.5
    assert np.isfinite(nanoseconds)
