"""Compiling: options, cache, errors with file and line, resources; by the real nvcc and NVRTC where they are."""

from __future__ import annotations

import shutil
import types
from pathlib import Path

import pytest

from harness.cuda import compile as compiling
from harness.cuda.compile import Unit, build, explain, key, nvcc_command, nvrtc_options
from harness.cuda.resources import parse, resources
from harness.errors import BuildFailed, DependencyMissing, ToolMissing, UsageError
from places import DATA

VECTOR = DATA / "kernels" / "vector.cu"
BROKEN = 'extern "C" __global__ void f(float* x) {\n  x[0] = nothing;\n  also = 3;\n}\n'

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc here")


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "kernel.cu"
    path.write_text('#include "one.cuh"\nextern "C" __global__ void f() {}\n')
    (tmp_path / "one.cuh").write_text("  #  include <two.cuh>\n#include <cuda_fp16.h>\n")
    (tmp_path / "two.cuh").write_text('#pragma once\n#include "one.cuh"\n')
    return path


@pytest.fixture
def versions(monkeypatch):
    monkeypatch.setattr(compiling, "_version", lambda compiler: "1.0")


def test_nvcc_is_told_arch_flavour_macros_and_headers(source):
    unit = Unit(source, "sm_90a", "lineinfo", (("T", "half"), ("FAST", "")), (Path("/headers"),))
    argv = nvcc_command(unit, Path("out.cubin")).argv
    assert argv[:3] == ("nvcc", "-cubin", "-gencode=arch=compute_90a,code=sm_90a")
    assert {"-lineinfo", "-DT=half", "-DFAST", "-I/headers", f"-I{source.parent}", f"-I{compiling.KERNELS}"} <= set(
        argv
    )
    assert argv[-3:] == ("-o", "out.cubin", str(source))
    assert {"-G", "-g"} <= set(nvcc_command(Unit(source, "sm_80", "debug"), Path("o")).argv)
    assert not {"-G", "-lineinfo"} & set(nvcc_command(Unit(source, "sm_80"), Path("o")).argv)


def test_nvrtc_is_told_the_same(source):
    options = nvrtc_options(Unit(source, "sm_90a", "debug", (("T", "half"),)), Path("/cuda/include"))
    assert {"--gpu-architecture=sm_90a", "--device-debug", "--define-macro=T=half", "--include-path=/cuda/include",
            f"--include-path={source.parent}", "--include-path=/cuda/include/cccl"} <= set(options)  # fmt: skip


def test_the_key_follows_all_that_the_code_depends_on(source, versions, monkeypatch):
    unit = Unit(source, "sm_80")
    keys = {key(unit, "nvcc"), key(unit, "nvrtc"), key(Unit(source, "sm_90a"), "nvcc"), key(Unit(source, "sm_80", "debug"), "nvcc"),
            key(Unit(source, "sm_80", defines=(("T", "1"),)), "nvcc"), key(Unit(source, "sm_80", defines=(("T", "2"),)), "nvcc")}  # fmt: skip
    assert len(keys) == 6
    before = key(unit, "nvcc")
    assert key(unit, "nvcc") == before
    two = source.parent / "two.cuh"
    two.write_text(two.read_text() + "// changed\n")
    assert key(unit, "nvcc") not in keys, "a header of a header changed, and the old code would be taken"
    after = key(unit, "nvcc")
    monkeypatch.setattr(compiling, "_version", lambda compiler: "2.0")
    assert key(unit, "nvcc") != after


def test_only_code_that_holds_its_path_depends_on_it(source, versions, tmp_path):
    moved = shutil.copytree(source.parent, tmp_path / "moved") / "kernel.cu"
    assert key(Unit(source, "sm_80"), "nvcc") == key(Unit(moved, "sm_80"), "nvcc")
    assert key(Unit(source, "sm_80", "lineinfo"), "nvcc") != key(Unit(moved, "sm_80", "lineinfo"), "nvcc")


def test_an_equal_compilation_is_taken_from_the_cache(source, versions, monkeypatch, tmp_path):
    runs = []
    monkeypatch.setattr(compiling, "_nvcc", lambda unit: runs.append(unit) or (b"code", "said"))
    cache = tmp_path / "cache"
    first, second = (build(Unit(source, "sm_80"), "nvcc", cache=cache) for _ in range(2))
    assert (first.image, first.log, first.cached, second.image, second.log, second.cached, len(runs)) == (
        b"code", "said", False, b"code", "said", True, 1,
    )  # fmt: skip
    assert len(list(cache.iterdir())) == 2, "parts were left behind"


def test_a_cache_that_cannot_be_written_costs_only_time(source, versions, monkeypatch, tmp_path):
    monkeypatch.setattr(compiling, "_nvcc", lambda unit: (b"code", ""))
    (tmp_path / "file").write_text("")
    assert build(Unit(source, "sm_80"), "nvcc", cache=tmp_path / "file").image == b"code"


def test_the_cache_lies_where_the_user_wants_it(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert compiling.default_cache() == tmp_path / "probe" / "kernels"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert compiling.default_cache() == Path.home() / ".cache" / "probe" / "kernels"


@pytest.mark.parametrize(
    ("log", "says"),
    [
        ('k.cu(12): error: identifier "x" is undefined\n\n1 error detected\n', 'k.cu:12: identifier "x" is undefined'),
        ("k.cu(3): warning #177-D: unused\nk.cu(4): error #20-D: one\nk.cu(9): error: two\n", "k.cu:4: one (and 1 more)"),
        ("k.cu(1): catastrophic error: cannot open source file\n", "k.cu:1: cannot open source file"),
        ("k.cu:2:10: fatal error: gone.h: No such file or directory\n    2 | #include\n", "k.cu:2: gone.h: No such file or directory"),
        ("ptxas error   : Entry function 'f' uses too much shared data (0x20000 bytes, 0xc000 max)\n",
         "ptxas: Entry function 'f' uses too much shared data (0x20000 bytes, 0xc000 max)"),
        ("ptxas /tmp/k.ptx, line 22; error   : Not a name of any known instruction: 'foo'\n", "ptxas:22: Not a name of any known instruction: 'foo'"),
        ("k.cu(3): warning: errors may follow\n", None),
    ],
)  # fmt: skip
def test_the_first_error_is_told_with_file_and_line(log, says):
    assert explain(log) == says


def test_what_cannot_be_compiled_is_told_at_once(source, tmp_path):
    for unit, says in ((Unit(tmp_path / "no.cu", "sm_80"), r"no\.cu does not exist"), (Unit(source, "90"), "90 is no GPU architecture"),
                       (Unit(source, "sm_80", "fast"), "fast is no build flavour")):  # fmt: skip
        with pytest.raises(UsageError, match=says):
            build(unit)


def test_without_a_compiler_that_is_said(source, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    compiling._version.cache_clear()
    with pytest.raises(ToolMissing, match="nvcc is needed to compile kernels"):
        build(Unit(source, "sm_80"), "nvcc", cache=tmp_path / "cache")


class FakeNvrtc(types.SimpleNamespace):
    """CuPy's module of NVRTC; compiling fails if the source says so."""

    class NVRTCError(RuntimeError):
        pass

    def __init__(self):
        super().__init__(destroyed=[], calls=[])

    def getVersion(self):
        return (13, 0)

    def createProgram(self, source, name, headers, names):
        self.source, self.name = source, name
        return 7

    def compileProgram(self, program, options):
        self.calls.append(options)
        if "nothing" in self.source:
            raise self.NVRTCError("NVRTC_ERROR_COMPILATION")

    def getProgramLog(self, program):
        return f'{self.name}(2): error: identifier "nothing" is undefined' if "nothing" in self.source else ""

    def getCUBIN(self, program):
        return b"\x7fELF"

    def destroyProgram(self, program):
        self.destroyed.append(program)


def test_nvrtc_compiles_and_cleans_up_even_when_it_fails(source, monkeypatch, tmp_path):
    nvrtc = FakeNvrtc()
    monkeypatch.setattr(compiling, "load", lambda *a: types.SimpleNamespace(cuda=types.SimpleNamespace(nvrtc=nvrtc)))
    compiling._version.cache_clear()
    assert build(Unit(source, "sm_80"), "nvrtc", cache=tmp_path / "cache").image == b"\x7fELF"
    source.write_text(BROKEN)
    with pytest.raises(BuildFailed, match=r'kernel\.cu:2: identifier "nothing" is undefined'):
        build(Unit(source, "sm_80"), "nvrtc", cache=tmp_path / "cache")
    assert nvrtc.destroyed == [7, 7]
    compiling._version.cache_clear()


def test_without_cupy_there_is_no_nvrtc(source, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cupy", None)
    compiling._version.cache_clear()
    assert compiling.default_compiler() == "nvcc"
    with pytest.raises(DependencyMissing, match="cupy is needed to compile kernels with NVRTC"):
        build(Unit(source, "sm_80"), "nvrtc")


def test_the_real_nvrtc_compiles_every_flavour(tmp_path):
    pytest.importorskip("cupy")
    compiling._version.cache_clear()
    images = [
        build(Unit(VECTOR, "sm_90a", flavour), "nvrtc", cache=tmp_path).image
        for flavour in ("release", "lineinfo", "debug")
    ]
    assert all(image.startswith(b"\x7fELF") for image in images)
    assert len(images[0]) < len(images[1]) < len(images[2])


@needs_nvcc
def test_the_real_nvcc_compiles_every_flavour(tmp_path):
    images = [
        build(Unit(VECTOR, "sm_90a", flavour), "nvcc", cache=tmp_path).image
        for flavour in ("release", "lineinfo", "debug")
    ]
    assert all(image.startswith(b"\x7fELF") for image in images)
    assert len(images[0]) < len(images[1]) < len(images[2])
    assert b".debug_line" in images[1]
    assert b".debug_line" not in images[0]


@needs_nvcc
def test_the_real_nvcc_s_errors_have_file_and_line(tmp_path):
    (tmp_path / "broken.cu").write_text(BROKEN)
    with pytest.raises(BuildFailed, match=r'broken\.cu:2: identifier "nothing" is undefined \(and 1 more\)'):
        build(Unit(tmp_path / "broken.cu", "sm_80"), "nvcc", cache=tmp_path)


@needs_nvcc
def test_resources_of_each_entry_point_on_each_architecture(tmp_path):
    rows = {(row.entry, row.arch): row for row in resources(VECTOR, ("sm_80", "sm_90a"), cache=tmp_path)}
    assert len(rows) == 12
    assert rows["axpy", "sm_80"].source == "vector.cu"
    assert all(0 < row.registers <= 64 and row.spill_store_bytes == 0 for row in rows.values())
    assert rows["reverse", "sm_90a"].barriers == 1


def test_ptxas_output_is_read_entry_by_entry():
    log = """ptxas info    : 24 bytes gmem, 8 bytes cmem[4]
ptxas info    : Compiling entry function 'big' for 'sm_80'
ptxas info    : Function properties for big
    64 bytes stack frame, 128 bytes spill stores, 132 bytes spill loads
ptxas info    : Used 255 registers, used 2 barriers, 64 bytes cumulative stack size, 40960 bytes smem, 384 bytes cmem[0]
ptxas info    : Compiling entry function 'small' for 'sm_90a'
ptxas info    : Function properties for small
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, 356 bytes cmem[0]
"""
    big, small = parse(log, "k.cu")
    assert (big.entry, big.arch, big.registers, big.stack_bytes, big.spill_store_bytes, big.spill_load_bytes, big.shared_bytes,
            big.barriers) == ("big", "sm_80", 255, 64, 128, 132, 40960, 2)  # fmt: skip
    assert (small.registers, small.shared_bytes, small.barriers, small.stack_bytes) == (8, 0, 0, 0)
    assert parse("", "k.cu") == []
