"""Launches that may overlap: what says so waits first thing, and what waits says so."""

from __future__ import annotations

import re

import pytest

from kernels.manifest import SPECS
from kernels.plan import Launch

FIRST = r"\bvoid\b[^{{]*\b{entry}\s*\([^{{]*\{{\s*(?:\\\s*)?(?:probe::)?after_previous\(\);"


def launches() -> dict[str, Launch]:
    """One launch of each kernel of the set."""
    return {step.entry: step for spec in SPECS for case in (*spec.cases, *spec.bench) for step in spec.plan(case).steps
            if isinstance(step, Launch)}  # fmt: skip


@pytest.mark.parametrize("step", launches().values(), ids=launches())
def test_a_kernel_waits_first_exactly_where_its_launch_says_so(step):
    text = step.source.read_text(encoding="utf-8").replace("##SUFFIX", "_f16")
    waits = re.search(FIRST.format(entry=re.sub(r"_(?:f32|f16|bf16)$", "_(?:f32|f16|bf16|_f16)", step.entry)), text)
    assert step.overlaps == (waits is not None)
