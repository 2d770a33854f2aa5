"""The device log: what a kernel writes is what is read, typed and whole; nothing lost is not counted, nothing torn is shown."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.cuda import source as cuda_source
from harness.cuda.symbols import machine_code
from harness.device_log import layout as device_log
from harness.device_log import traced, tracepoints
from harness.device_log.layout import CONTROL, LOG, SITE, SLOT, SLOTS_AT, Recorded, Selection
from harness.errors import UsageError
from kernels.plan import Launch, Pointer

HEADER = device_log.HEADERS / "device_log.cuh"
nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")

KINDS = (
    ("bool", "?"), ("int8", "i1"), ("uint8", "u1"), ("int16", "i2"), ("uint16", "u2"), ("int32", "i4"), ("uint32", "u4"),
    ("int64", "i8"), ("uint64", "u8"), ("float16", "f2"), ("bfloat16", "u2"), ("float32", "f4"), ("float64", "f8"),
)  # fmt: skip
TYPES = """\
#include "device_log.cuh"
#include <cuda_bf16.h>
#include <cuda_fp16.h>
enum class Colour : unsigned char { red = 3 };
template <typename T> __device__ T at(const unsigned char* bytes) {
  T value;
  memcpy(&value, bytes + 8 * threadIdx.x, sizeof(T));
  return value;
}
extern "C" __global__ void k(const unsigned char* bytes) {
  PROBE("scalars", threadIdx.x > 1, at<signed char>(bytes), at<unsigned char>(bytes), at<short>(bytes),
        at<unsigned short>(bytes), at<int>(bytes), at<unsigned>(bytes), at<long long>(bytes),
        at<unsigned long long>(bytes), at<__half>(bytes), at<__nv_bfloat16>(bytes), at<float>(bytes), at<double>(bytes));
  float acc[5] = {0.f, 1.f, 2.f, 3.f, threadIdx.x + 0.5f};
  const char small[3] = {1, 2, 3};
  PROBE("vector", make_float4(1.f, 2.f, 3.f, threadIdx.x));
  PROBE("more", make_int2(-1, 2), make_double2(0.1, 0.2), acc, small, Colour::red, threadIdx, bytes);
  const char text[2][2] = {{1, 2}, {3, 4}};
  PROBE("grid", text);
}
"""
COUNTS = """\
#include "device_log.cuh"
extern "C" __global__ void k(int* out) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  PROBE("i", i);
  PROBE_IF(i % 3 == 0, "wide", i, make_float4(i, i, i, i));
  out[i] = i;
}
"""


def run(folder: Path, text: str, arrays, *, grid=1, block=32, **more):
    copy = traced.place(text.encode(), "k.cu")
    size = [(n, 1, 1) if isinstance(n, int) else n for n in (grid, block)]
    launch = Launch(copy, "k", *size, tuple(Pointer(name) for name in arrays), 0, traced.defines_of(), tuple(arrays))
    return traced.run_emulated(traced.Job(launch, arrays, folder, timeout_s=more.pop("timeout_s", 30), **more))


# ---- what is written is what is read


@pytest.fixture(scope="module")
def typed(tmp_path_factory) -> tuple[np.ndarray, Recorded]:
    data = np.random.default_rng(7).integers(0, 256, 8 * 32, dtype=np.uint8)
    return data, run(tmp_path_factory.mktemp("typed"), TYPES, {"bytes": data}).recorded


def test_every_number_comes_back_bit_for_bit(typed):
    data, recorded = typed
    rows = [row for row in recorded.rows("k") if row["tag"].startswith("scalars: ") and row["type"] != "bool"]
    assert len(rows) == 12 * 32
    dtypes = dict(KINDS)
    for row in rows:
        raw = data[8 * row["thread"][0] :][: np.dtype(dtypes[row["type"]]).itemsize].tobytes()
        if row["type"] == "bfloat16":
            (bits,) = struct.unpack("<H", raw)
            wanted = np.array([bits << 16], "u4").view("f4")[0]
            got = np.array([row["value"]], "f4")
            assert np.isnan(wanted) or ((got.view("u4") + 0x8000) >> 16)[0] == bits
        else:
            wanted = np.frombuffer(raw, dtypes[row["type"]])[0]
            assert np.array(row["value"], dtypes[row["type"]]) == wanted or np.isnan(wanted)


def test_each_value_has_its_place_its_expression_and_its_type(typed):
    rows = [row for row in typed[1].rows("k") if row["thread"] == [2, 0, 0]]
    assert [row["sequence"] for row in rows] == sorted(row["sequence"] for row in rows)
    assert {row["file"] for row in rows} == {"k.cu"}
    told = [(row["line"], row["tag"], row["type"]) for row in rows]
    assert told[0] == (11, "scalars: threadIdx.x > 1", "bool")
    assert told[5] == (11, "scalars: at<int>(bytes)", "int32")
    assert rows[0]["value"] is True
    assert [(row["tag"], row["type"], row["value"]) for row in rows[13:19]] == [
        ("vector", "float32[4]", [1.0, 2.0, 3.0, 2.0]),
        ("more: make_int2(-1, 2)", "int32[2]", [-1, 2]),
        ("more: make_double2(0.1, 0.2)", "float64[2]", [0.1, 0.2]),
        ("more: acc", "float32[5]", [0.0, 1.0, 2.0, 3.0, 2.5]),
        ("more: small", "int8[3]", [1, 2, 3]),
        ("more: Colour::red", "uint8", 3),
    ]
    assert (rows[19]["type"], rows[19]["value"]) == ("uint32[3]", [2, 0, 0])
    assert rows[20]["type"] == "pointer"
    assert re.fullmatch(r"0x[0-9a-f]+", rows[20]["value"])
    assert (rows[21]["type"], rows[21]["value"]) == ("int8[4]", [1, 2, 3, 4])


@pytest.mark.parametrize(
    "said, count, names",
    [
        ("a, f(b, c)", 2, ["a", "f(b, c)"]), ("f<1, 2>(x)", 1, ["f<1, 2>(x)"]), ("a < b, c > d", 2, ["a < b", "c > d"]),
        ("f<1, g<2, 3>>(x), i < 3, p->q, i<<2", 4, ["f<1, g<2, 3>>(x)", "i < 3", "p->q", "i<<2"]),
        (device_log.as_text(["f<1, 2>(x)", "a\n + b"]), 2, ["f<1, 2>(x)", "a + b"]), (device_log.as_text(["x, y"]), 2, ["x, y"]),
    ],
)  # fmt: skip
def test_values_are_called_by_their_expressions(said, count, names):
    assert list(device_log._expressions(said, count)) == names


def test_block_and_thread_are_told_on_every_axis(tmp_path):
    text = '#include "device_log.cuh"\nextern "C" __global__ void k(int* out) { PROBE("here", out[0]); }\n'
    recorded = run(tmp_path, text, {"out": np.array([5], "i4")}, grid=(2, 3, 2), block=(4, 2, 3)).recorded
    seen = {(tuple(row["block"]), tuple(row["thread"])) for row in recorded.rows()}
    assert seen == {
        ((bx, by, bz), (tx, ty, tz))
        for bx in range(2) for by in range(3) for bz in range(2) for tx in range(4) for ty in range(2) for tz in range(3)
    }  # fmt: skip
    assert len(recorded) == len(seen) == 2 * 3 * 2 * 4 * 2 * 3
    assert recorded.numbers("here").tolist() == [5] * len(seen)


def test_what_cannot_be_logged_is_told_by_the_compiler(tmp_path):
    text = (
        '#include "device_log.cuh"\nstruct S { int a; };\nextern "C" __global__ void k(int* out) { PROBE("s", S()); }\n'
    )
    with pytest.raises(Exception, match="PROBE logs numbers, pointers, CUDA's vectors, and arrays of these"):
        run(tmp_path, text, {"out": np.zeros(1, "i4")})


# ---- full means counted


@pytest.mark.parametrize("records", [1, 2, 7, 63, 64, 100, 129, 192, 193, 500])
def test_what_finds_no_room_is_counted_and_what_is_kept_is_whole(tmp_path, records):
    done = run(tmp_path, COUNTS, {"out": np.zeros(64, "i4")}, grid=2, records=records)
    assert done.arrays["out"].tolist() == list(range(64))
    rows, wide = done.recorded.rows(), len(range(0, 64, 3))
    assert len(rows) + done.recorded.lost == 64 + 2 * wide
    assert (done.recorded.needed, done.recorded.torn) == (64 + 3 * wide, 0)
    for row in rows:
        i = 32 * row["block"][0] + row["thread"][0]
        assert row["value"] == (i if "make" not in row["tag"] else [i] * 4)
    assert (done.recorded.lost == 0) == (records >= 64 + 3 * wide)


def test_growing_runs_again_with_room_for_all(tmp_path):
    launch = Launch(traced.place(COUNTS.encode(), "k.cu"), "k", (2, 1, 1), (32, 1, 1), (Pointer("out"),), 0,
                    traced.defines_of(), ("out",))  # fmt: skip
    job = traced.Job(launch, {"out": np.zeros(64, "i4")}, tmp_path, records=3)
    assert traced.run(job, emulate=True).recorded.lost > 0
    grown = traced.run(job, emulate=True, grow=True).recorded
    assert (grown.lost, len(grown)) == (0, 64 + 2 * 22)


# ---- which threads


@pytest.mark.parametrize(
    "block, thread, warp, wanted",
    [
        (None, "0,0,0", None, [0, 64]),
        ("1,*,*", "0-2,0,0", None, [64, 65, 66]),
        ("1", "63", None, [127]),
        ("0,*,*", None, "1", range(32, 64)),
        (None, "30-33,*,*", "0", [30, 31, 94, 95]),
    ],
)
def test_only_chosen_threads_write(tmp_path, block, thread, warp, wanted):
    selection = Selection.of(block, thread, warp)
    recorded = run(tmp_path, COUNTS, {"out": np.zeros(128, "i4")}, grid=2, block=64, selection=selection).recorded
    assert sorted(recorded.numbers("i").tolist()) == list(wanted)


def test_another_choice_needs_no_compilation(tmp_path, monkeypatch):
    arrays = {"out": np.zeros(64, "i4")}
    run(tmp_path, COUNTS, arrays)
    monkeypatch.setattr("harness.emulation.build._compile", lambda *_: pytest.fail("compiled again"))
    recorded = run(tmp_path, COUNTS, arrays, selection=Selection.of(thread="5")).recorded
    assert recorded.numbers("i").tolist() == [5]


@pytest.mark.parametrize(
    "texts, says",
    [
        ({"thread": "1,2,3,4"}, "expected X,Y,Z, got 4 parts"), ({"thread": "a"}, "expected a number"),
        ({"thread": "3-1"}, "expected a number"), ({"block": "-1,0,0"}, "expected a number"),
        ({"warp": "1,2"}, "expected a number"), ({"block": "99999999999,0,0"}, "expected a number"),
    ],
)  # fmt: skip
def test_what_is_no_choice_is_refused(texts, says):
    with pytest.raises(UsageError, match=says):
        Selection.of(**texts)


@pytest.mark.parametrize(
    "texts, says",
    [
        ({"thread": "128,0,0"}, "--thread: x = 128 is outside the block, which is 128x2x1"),
        ({"thread": "0,0,1"}, "z = 1 is outside the block"),
        ({"block": "4-9,0,0"}, "--block: x = 4 is outside the grid, which is 4x1x1"),
        ({"warp": "8"}, "--warp: 8 is outside the block, which has 8 warps"),
    ],
)
def test_a_thread_outside_the_launch_is_refused(texts, says):
    with pytest.raises(UsageError, match=re.escape(says)):
        Selection.of(**texts).check((4, 1, 1), (128, 2, 1))


# ---- after a crash


@pytest.fixture(scope="module")
def full(tmp_path_factory) -> tuple[np.ndarray, list]:
    """A buffer as a kernel left it, and its rows."""
    folder = tmp_path_factory.mktemp("full")
    done = run(folder, COUNTS, {"out": np.zeros(32, "i4")}, records=200)
    buffer = np.fromfile(folder / "device_log.bin", "u1")  # cut to what was written
    return np.pad(buffer, (0, device_log.size_of(200) - len(buffer))), done.recorded.rows()


@settings(max_examples=60)
@given(slot=st.integers(0, 64), bit=st.integers(0, 32 * 8 - 1), alive=st.booleans())
def test_a_torn_record_is_never_shown(full, slot, bit, alive):
    buffer, rows = full[0].copy(), full[1]
    buffer[SLOTS_AT + slot * SLOT.itemsize + bit // 8] ^= 1 << bit % 8
    recorded = device_log.decode(buffer, alive=alive)
    assert recorded.torn == 1
    kept = [(row["tag"], row["block"], row["thread"], row["value"]) for row in recorded.rows()]
    was = [(row["tag"], row["block"], row["thread"], row["value"]) for row in rows]
    assert len(kept) == len(was) - 1
    assert [row for row in was if row in kept] == kept


@settings(max_examples=30)
@given(written=st.integers(0, 65))  # 32 values of one slot, 11 of one and 11 of two: 65 slots
def test_without_the_counters_the_records_alone_tell(full, written):
    buffer = full[0].copy()
    buffer[SLOTS_AT + written * SLOT.itemsize :] = 0
    recorded = device_log.decode(buffer, alive=False)
    whole = [row for row in recorded.rows() if row["type"] == "float32[4]"]
    assert all(len(row["value"]) == 4 for row in whole)
    assert (recorded.lost, recorded.torn, recorded.printed) == (0, 0, None)
    assert recorded.rows() == full[1][: len(recorded)]


def test_what_an_earlier_use_left_is_no_record(tmp_path, full):
    path = tmp_path / "log"
    path.write_bytes(full[0].tobytes())
    assert len(device_log.read(path)) == len(full[1])
    device_log.select(path, Selection.of(thread="0"))
    assert len(device_log.read(path)) == 0
    assert len(device_log.decode(np.fromfile(path, "u1"), alive=False)) == 0


CRASHES = """\
#include "device_log.cuh"
extern "C" __global__ void k(volatile int* out) {
  PROBE("before", (int)threadIdx.x);
  if (threadIdx.x == 3 && %s) {}
  PROBE("after", (int)threadIdx.x);
}
"""


@pytest.mark.parametrize(
    "fault, ended", [("(out[1 << 28] = 1)", "crashed"), ("[&] { while (out[0] == 0) {} return true; }()", "timed out")]
)
def test_what_was_written_before_a_crash_or_a_hang_is_kept(tmp_path, fault, ended):
    done = run(tmp_path, CRASHES % fault, {"out": np.zeros(4, "i4")}, timeout_s=1)
    assert (done.ended, done.recorded.torn) == (ended, 0)
    assert done.message
    assert done.recorded.numbers("before").tolist() == [0, 1, 2, 3]
    assert done.recorded.numbers("after").tolist() == [0, 1, 2]


def test_a_file_that_is_no_log_is_refused(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"x" * 100)
    with pytest.raises(UsageError, match="expected a device log, got 100 bytes"):
        device_log.read(path)


@pytest.mark.parametrize("records", [0, 2**32 + 1, 2**32])
def test_a_log_that_cannot_be_made_is_refused(tmp_path, records, monkeypatch):
    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full_disk)
    with pytest.raises(UsageError, match=r"room for 1 to|No space left"):
        device_log.create(tmp_path / "log", records)


# ---- the compilers of the GPU


@nvcc
@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_switched_off_it_leaves_the_machine_code_as_it_is(tmp_path, arch):
    """A file of seven kernels of ours, with a PROBE and a PROBE_IF before every statement of it."""
    source = cuda_source.read(HEADER.parent / "fusion.cu")
    codes = [machine_code(compiled(tmp_path / "k.cu", text, arch)) for text in (source.text, with_probes(source))]
    assert len(codes[0]) == 7
    assert codes[0] == codes[1]


def with_probes(source: cuda_source.Source) -> bytes:
    text, nodes = (
        source.text,
        [s.node for f in source.functions if f.device for s in cuda_source.statements(f) if s.braced],
    )
    places = {
        tracepoints.statement_at(source, node.start_point.row + 1)[1] for node in nodes if "compound" not in node.type
    }
    assert len(places) > 20
    for at in sorted(places, reverse=True):
        text = text[:at] + b'PROBE("p", threadIdx.x, 1.f); PROBE_IF(threadIdx.x == 3, "q", blockIdx);\n' + text[at:]
    return b'#include "device_log.cuh"\n' + text


def compiled(path: Path, text: bytes, arch: str) -> bytes:
    path.write_bytes(text)
    command = ["nvcc", "-cubin", f"-arch={arch}", "-std=c++17", "-I", str(HEADER.parent), "-o", "k.cubin", path.name]
    subprocess.run(command, cwd=path.parent, check=True)
    return path.with_name("k.cubin").read_bytes()


@nvcc
@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_switched_on_it_compiles_and_its_log_is_of_our_size(tmp_path, arch):
    (tmp_path / "k.cu").write_text(TYPES + f"static_assert(sizeof(probe_log::Log) == {LOG.itemsize}, \"Log\");\n"
                                   f"static_assert(sizeof(probe_log::Slot) == {SLOT.itemsize}, \"Slot\");\n"
                                   f"static_assert(sizeof(probe_log::Control) == {CONTROL.itemsize}, \"Control\");\n"
                                   f"static_assert(sizeof(probe_log::Site) == {SITE.itemsize}, \"Site\");\n")  # fmt: skip
    command = ["nvcc", "-cubin", f"-arch={arch}", "-DPROBE_ON=1", "-I", str(HEADER.parent), "-o", "k.cubin", "k.cu"]
    made = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    assert "warning" not in made.stderr
    assert b"probe_device_log" in (tmp_path / "k.cubin").read_bytes()


@nvcc
@pytest.mark.slow
@pytest.mark.parametrize("mode", ["-rdc=false", "-rdc=true"])
def test_several_files_of_one_program_may_log(tmp_path, mode):
    (tmp_path / "a.cu").write_text(COUNTS)
    (tmp_path / "b.cu").write_text(COUNTS.replace("void k(", "void other("))
    (tmp_path / "main.cu").write_text("int main() { return 0; }\n")
    command = [
        "nvcc",
        mode,
        "-arch=sm_80",
        "-DPROBE_ON=1",
        "-I",
        str(HEADER.parent),
        "-o",
        "out",
        "a.cu",
        "b.cu",
        "main.cu",
    ]
    made = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
