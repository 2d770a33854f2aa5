"""A range by its name and domain: as it is typed, and as each of NVIDIA's tools wants it spelt."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import UsageError
from harness.tools.nvtx_range import NvtxRange

# typed, for nsys, for ncu and compute-sanitizer (a range that is pushed; one that is started lacks the last slash)
SPELT = [
    ("forward", "forward", "forward/"),  # the default domain, as torch.cuda.nvtx and nvtx.annotate push it
    ("measure@probe", "measure@probe", "probe@measure/"),
    ("inference #3@probe", "inference #3@probe", "probe@inference #3/"),
    ("/layer.0/MatMul@TensorRT", "/layer.0/MatMul@TensorRT", r"TensorRT@\/layer.0\/MatMul/"),
    (
        "{ForeignNode[q + (Unnamed Layer* 1) [Shuffle]...out]}@TensorRT",
        "{ForeignNode[q + (Unnamed Layer* 1) [Shuffle]...out]}@TensorRT",
        r"TensorRT@{ForeignNode\[q \+ (Unnamed Layer\* 1) \[Shuffle\]...out\]}/",
    ),
    (r"user\@host", r"user\@host", r"user\@host/"),
    (r"user@host@app", r"user\@host@app", r"app@user\@host/"),  # the last one divides
    ("a,b@my domain", "a,b@my domain", r"my domain@a\,b/"),
]


@pytest.mark.parametrize(("typed", "nsys", "filters"), SPELT, ids=[typed for typed, *_ in SPELT])
def test_a_range_is_spelt_as_each_tool_reads_it(typed, nsys, filters):
    named = NvtxRange.parse(typed)
    assert named.for_nsys == nsys
    assert named.for_filters == (filters, filters.removesuffix("/"))


@given(st.text("ab@/ *[", min_size=1), st.none() | st.text("ab/*", min_size=1))
def test_what_is_shown_can_be_typed(name, domain):
    named = NvtxRange(name, domain)
    assert NvtxRange.parse(str(named)) == named


@pytest.mark.parametrize("typed", ["", "@", "measure@", "@probe"])
def test_half_a_range_is_refused(typed):
    with pytest.raises(UsageError, match="expected NAME or NAME@DOMAIN"):
        NvtxRange.parse(typed)


def test_any_domain_is_for_nsys_alone():
    named = NvtxRange.parse("step@*")
    assert named.for_nsys == "step@*"
    with pytest.raises(UsageError, match="only nsys takes a range of any domain"):
        _ = named.for_filters
