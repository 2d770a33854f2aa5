"""The fusion exercise: every level computes the same, on the emulation."""

from __future__ import annotations

import numpy as np
import pytest

from examples.fusion.ladder import LEVELS, arrays, emulate, expected, worst_error


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
def test_a_level_is_right_to_a_few_roundings_and_without_findings(level):
    given = arrays(np.random.default_rng())
    got, findings = emulate(level, given, checks="all")
    assert worst_error(got, expected(given)) < 4.5
    assert findings == 0


def test_levels_launch_fewer_and_fewer_kernels():
    assert [len(level.in_order) for level in LEVELS] == [5, 3, 3, 1]
    assert [len(level.beside) for level in LEVELS] == [0, 0, 1, 0]
