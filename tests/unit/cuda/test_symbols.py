"""Kernels found in an image by the names they have in the source, whatever the compiler made of those."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from harness.cuda import symbols
from harness.errors import UsageError

# What nvcc 13 and NVRTC 13 made of such kernels.
THERE = (
    "act", "_Z8tile_sumPKfPfi", "_ZN4acme4normIfLi128EEEvPT_PKS1_i", "_ZN37_GLOBAL__N__eaca5767_5_t1_cu_3c7ab8be3hidEPi",
    "_ZN3one4sameEPf", "_ZN3two4sameEPf",
)  # fmt: skip


@pytest.fixture(autouse=True)
def image(monkeypatch):
    monkeypatch.setattr(symbols, "machine_code", lambda _: dict.fromkeys(THERE, b""))


@pytest.mark.parametrize(
    "entry, symbol",
    [
        ("act", THERE[0]), ("tile_sum", THERE[1]), ("acme::norm<float, 128>", THERE[2]), ("norm<float, 128>", THERE[2]),
        ("::hid", THERE[3]), ("two::same", THERE[5]), ("sum", "sum"), ("other::norm", "other::norm"),
    ],
)  # fmt: skip
def test_a_name_of_the_source_finds_its_symbol_or_stays_as_it_is(entry, symbol):
    assert symbols.symbol_of(b"", entry) == symbol


def test_two_of_a_name_are_told():
    with pytest.raises(UsageError, match="2 kernels are called same: _ZN3one4sameEPf, _ZN3two4sameEPf"):
        symbols.symbol_of(b"", "same")


@pytest.mark.parametrize("image", [b"", b"image", b"\x7fELF" + bytes(60)])
def test_what_is_no_cubin_holds_no_code(image, monkeypatch):
    monkeypatch.undo()
    assert symbols.machine_code(image) == {}
    assert symbols.variables(image) == ()


VARIABLES = b"""
namespace settings { __constant__ float weights[3]; }
__constant__ float scale;
static __constant__ float hidden;
namespace { __constant__ float nameless; }
__device__ unsigned calls;
__global__ void k(float* y) {
    __shared__ float tile[4];
    tile[threadIdx.x] = settings::weights[1] * scale * hidden * nameless;
    y[atomicAdd(&calls, 1u)] = tile[0];
}
"""


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_variables_are_found_in_what_nvcc_makes(tmp_path):
    (tmp_path / "k.cu").write_bytes(VARIABLES)
    subprocess.run(["nvcc", "-cubin", "-arch=sm_80", "-o", "k.cubin", "k.cu"], cwd=tmp_path, check=True)
    image = (tmp_path / "k.cubin").read_bytes()
    there = symbols.variables(image)
    assert len(there) == 5
    for name in ("weights", "settings::weights", "scale", "hidden", "nameless", "calls"):
        found = symbols.variable_of(image, name)
        assert found in there
        assert name.split("::")[-1] in found
    assert symbols.variable_of(image, "tile") == "tile"  # as it is: the driver will say that there is none
