"""Arguments of kernels: what a parameter's type is called in a source, and which values fit it."""

from __future__ import annotations

import numpy as np
import pytest

from harness.cuda import source as cuda_source
from harness.errors import UsageError
from kernels.plan import Pointer
from probes.targets import arguments

SOURCE = cuda_source.parse(b"""\
using real = float;
typedef __half small;
#define INDEX unsigned int
template <typename T, typename U> __global__ void k(T* a, const U* b, real c, small* d, INDEX e, std::int32_t* f, float4 g,
                                                    __half2* h, OTHER* i, Mine j) {}
""")


def parameters(defines=None):
    return arguments.parameters(SOURCE, cuda_source.entry_of(SOURCE, "k<__nv_bfloat16, real>"), defines)


def test_types_are_found_behind_the_names_that_the_source_gives_them():
    told = {one.name: (one.dtype, one.lanes, one.pointer) for one in parameters({"OTHER": "double"})}
    assert told == {
        "a": ("bf16", 1, True), "b": ("f4", 1, True), "c": ("f4", 1, False), "d": ("f2", 1, True), "e": ("u4", 1, False),
        "f": ("i4", 1, True), "g": ("f4", 4, False), "h": ("f2", 2, True), "i": ("f8", 1, True), "j": (None, 1, False),
    }  # fmt: skip


def bound(**values):
    wanted = [one for one in parameters() if one.name in values]
    return arguments.bind(tuple(wanted), values)


def test_values_become_what_the_kernel_takes():
    made = bound(a=[1.5], g=[1, 2.5, 3, 4], h={"shape": [3], "fill": "ones"}, d=None)
    assert made.arrays["a"].tolist() == [0x3FC0]
    assert made.arguments[2].tobytes() == np.array([1, 2.5, 3, 4], "f4").tobytes()
    assert (made.arrays["h"].shape, made.arrays["h"].dtype) == ((3, 2), np.float16)
    assert Pointer(None) in made.arguments


def test_bits_of_a_type_are_taken_for_it_and_numbers_of_another_are_not():
    assert bound(d=np.zeros(3, np.uint16)).arrays["d"].dtype == np.uint16
    assert bound(f=np.zeros(3, np.uint32)).arrays["f"].dtype == np.uint32
    for values in (np.zeros(3, np.int16), np.zeros(3, np.float32)):
        with pytest.raises(UsageError, match="d: expected an array of float16"):
            bound(d=values)
    with pytest.raises(UsageError, match=r"b: expected an array of float32 for float\*, got int32"):
        bound(b=np.zeros(3, np.int32))


@pytest.mark.parametrize("values", [[1, 2], "one", [[1, "x", 2, 3]]])
def test_a_vector_wants_its_numbers(values):
    with pytest.raises(UsageError, match="g: expected 4 numbers for one float4"):
        bound(g=values)
