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


# ---- variables of the source

FILTER = cuda_source.parse(b"""\
#define TAPS 3
#define ANOTHER(i) (of_another + (i))
using real = float;
__constant__ real weights[TAPS];
namespace settings { __constant__ float4 range; __constant__ real gain{2.f}; }
__constant__ int of_another, n;
__constant__ const float* where;
static __device__ unsigned calls, seen[2][4] = {};
extern __constant__ int elsewhere;
__device__ float* tap(const float* x, int i);
__device__ float tap(int i) { return weights[i]; }
__device__ float tap(float x) { return x; }
struct Member { static __device__ int inside; };
__global__ void k(float* x, int n) { x[n] = tap(n) * settings::range.x + *where; }
__global__ void other(float* x) { __shared__ int tile; x[0] = ANOTHER(1); }
""")


def wanted_by(entry):
    return arguments.wanted_by(FILTER, cuda_source.entry_of(FILTER, entry))


def test_variables_of_the_file_can_be_given_and_constants_that_are_read_must_be():
    told = {one.name: (one.type, one.pointer, one.optional) for one in wanted_by("k") if one.variable}
    assert told == {
        "weights": ("float", True, False), "range": ("float4", False, False), "gain": ("float", False, True),
        "of_another": ("int", False, True), "calls": ("unsigned", False, True), "seen": ("unsigned", True, True),
    }  # fmt: skip
    assert {one.name for one in wanted_by("other") if one.variable and not one.optional} == {"of_another"}


GIVEN = {"x": [0, 0], "n": 1, "weights": [1, 2, 4], "range": [1, 2, 3, 4]}


def test_what_a_variable_holds_has_the_type_of_the_source(tmp_path):
    made = arguments.bind(wanted_by("k"), {**GIVEN, "seen": {"shape": [2, 4], "fill": "arange"}})
    assert made.names == ("x", "n")
    assert dict(made.contents) == {
        "weights": np.array([1, 2, 4], "f4").tobytes(), "range": np.array([1, 2, 3, 4], "f4").tobytes(),
        "seen": np.arange(8, dtype="u4").tobytes(),
    }  # fmt: skip
    made.save(tmp_path / "arguments.npz")
    again = arguments.bind(wanted_by("k"), arguments.read(tmp_path / "arguments.npz"))
    assert (again.contents, again.arguments) == (made.contents, made.arguments)


@pytest.mark.parametrize(
    "change, told",
    [
        ({"weights": ...}, "no value for weights: the parameters are x, n; the variables are weights, range, gain, of_another"),
        ({"weight": 1}, "no parameter weight: the parameters are x, n; the variables are weights"),
        ({"weights": None}, "weights: expected what the variable holds, got nothing"),
        ({"where": [1]}, "no parameter where"), ({"range": [1, 2]}, "range: expected 4 numbers for one float4"),
    ],
)  # fmt: skip
def test_what_does_not_fit_a_variable_is_told(change, told):
    given = {name: value for name, value in {**GIVEN, **change}.items() if value is not ...}
    with pytest.raises(UsageError, match=told):
        arguments.bind(wanted_by("k"), given)
