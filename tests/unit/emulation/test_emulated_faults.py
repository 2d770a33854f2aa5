"""Planted faults are found with kernel, block, thread, file and line; kernels without them are told nothing of."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.emulation import run as emulated
from kernels.plan import Gemm, Launch, Pointer
from places import DATA

FAULTS = DATA / "kernels" / "faults.cu"
LOCALS = FAULTS.with_name("locals.cu")
LINES = {
    found[1]: number
    for source in (FAULTS, LOCALS)
    for number, line in enumerate(source.read_text().splitlines(), 1)
    if (found := re.search(r"// <- (\w+)$", line))
}
bounds = pytest.mark.parametrize("checks", ["memory", "asan", "asan,memory"])  # two builds, told the same


def run(entry: str, checks: str, *arrays: Any, threads: int = 32, blocks: int = 1, **more: Any) -> emulated.Emulated:
    """Launch one kernel of faults.cu; arguments are arrays (by position), scalars or None."""
    buffers = {f"b{i}": array for i, array in enumerate(arrays) if isinstance(array, np.ndarray)}
    arguments = tuple(
        Pointer(f"b{i}") if isinstance(value, np.ndarray) else Pointer(None) if value is None else value
        for i, value in enumerate(arrays)
    )
    shared, source = more.pop("shared_bytes", 0), more.pop("source", FAULTS)
    launch = Launch(source, entry, (blocks, 1, 1), (threads, 1, 1), arguments, shared_bytes=shared)
    return emulated.run([launch], buffers, checks=checks, **more)


def floats(count: int = 64) -> np.ndarray:
    return np.ones(count, np.float32)


def only(result: emulated.Emulated, entry: str, file: str = "faults.cu") -> dict[str, Any]:
    assert len(result.findings) == 1, [row["message"] for row in result.findings]
    (row,) = result.findings
    assert (row["tool"], row["kernel"], row["file"], row["line"]) == ("emulation", entry, file, LINES[entry])
    return row


def thread_of(row: dict[str, Any]) -> tuple[int, int]:
    assert row["block_y"] == row["block_z"] == row["thread_y"] == row["thread_z"] == 0
    return row["block_x"], row["thread_x"]


@bounds
def test_a_read_beyond_a_buffer_is_told_with_its_thread(checks):
    result = run("read_beyond", checks, floats(64), floats(64), np.int32(64), blocks=2)
    row = only(result, "read_beyond")
    assert (row["kind"], row["access"], row["size_bytes"], thread_of(row)) == (
        "Invalid __global__ read",
        "read",
        4,
        (1, 31),
    )
    assert "0 bytes after the end of buffer 'b0' of 256 bytes" in row["message"]
    assert result.complete


@bounds
def test_a_write_before_a_buffer_is_told_with_its_thread(checks):
    row = only(run("write_before", checks, floats()), "write_before")
    assert (row["kind"], thread_of(row)) == ("Invalid __global__ write", (0, 0))
    assert "4 bytes before buffer 'b0'" in row["message"]


def test_without_checks_a_write_into_a_guard_zone_is_found_after_the_launch():
    (row,) = run("write_before", "none", floats()).findings
    assert (row["kind"], row["kernel"], row["line"]) == ("Invalid __global__ write", "write_before", None)
    assert "4 bytes before buffer 'b0'" in row["message"]


@bounds
def test_static_shared_arrays_do_not_run_into_each_other(checks):
    row = only(run("shared_beyond", checks, floats()), "shared_beyond")
    assert (row["kind"], thread_of(row)) == ("Invalid __shared__ write", (0, 31))
    assert "0 bytes after the end of shared variable 'tile' of 128 bytes" in row["message"]


@bounds
def test_dynamic_shared_memory_ends_where_the_launch_says(checks):
    result = run("dynamic_beyond", checks, floats(), shared_bytes=100)
    rows = [row for row in result.findings if row["access"] == "write"]
    assert [(row["kind"], thread_of(row), row["line"], row["count"]) for row in rows] == [
        ("Invalid __shared__ write", (0, 25), LINES["dynamic_beyond"], 7)
    ]
    assert "at byte 100 of dynamic shared memory: the launch has 100 bytes of it" in rows[0]["message"]


@bounds
def test_a_misaligned_vector_access_is_told(checks):
    row = only(run("misaligned", checks, floats(200), floats()), "misaligned")
    assert (row["kind"], row["size_bytes"], thread_of(row), row["count"]) == ("Invalid __global__ read", 16, (0, 0), 32)
    assert "misaligned" in row["message"]


@pytest.mark.parametrize("checks", ["none", "memory", "asan"])
def test_a_null_pointer_ends_the_kernel_and_is_told(checks):
    result = run("null_pointer", checks, None, floats())
    row = only(result, "null_pointer")
    assert row["kind"].startswith("Invalid __global__")
    assert thread_of(row) == (0, 0)
    assert not result.complete


@pytest.mark.parametrize(
    "entry, first, threads",
    [("race", "Write", 64), ("race_in_warp", "Write", 32), ("missing_second_barrier", "Read", 64)],
)
def test_a_race_names_both_accesses(entry, first, threads):
    arrays = (floats(128), floats()) if entry == "missing_second_barrier" else (floats(),)
    result = run(entry, "race", *arrays, threads=threads)
    told = [row for row in result.findings if row["line"] == LINES[entry]]
    assert told
    assert all(row["kind"] == "Race" and f"and {first} access by thread" in row["message"] for row in told)
    assert {row["kind"] for row in result.findings} == {"Race"}


def test_an_update_that_is_not_atomic_is_a_race():
    result = run("lost_update", "race", np.zeros(1, np.int32), threads=64)
    assert {(row["kind"], row["line"]) for row in result.findings} == {("Race", LINES["lost_update"])}


def test_a_shared_read_before_any_write_is_told():
    row = only(run("uninitialised", "init", floats(), threads=64), "uninitialised")
    assert (row["kind"], thread_of(row)) == ("Uninitialized __shared__ memory read", (0, 5))


def test_a_global_read_before_any_write_is_told_of_buffers_that_start_undefined():
    assert run("accumulates", "init", floats(), floats()).findings == ()
    row = only(run("accumulates", "init", floats(), floats(), uninitialised=("b1",)), "accumulates")
    assert (row["kind"], row["count"]) == ("Uninitialized __global__ memory read", 32)


@pytest.mark.parametrize("checks", ["none", "all"])
def test_threads_that_left_before_a_barrier_are_told(checks):
    result = run("exited", checks, np.zeros(64, np.float32), threads=64)
    row = only(result, "exited")
    assert (row["kind"], result.complete) == ("Barrier error", True)
    assert "24 threads of the block have returned, thread (40,0,0) for one" in row["message"]
    assert result.arrays["b0"].sum() == 40


def test_barriers_in_two_branches_are_told():
    row = only(run("two_barriers", "none", floats(), threads=64), "two_barriers")
    assert row["kind"] == "Barrier error"
    assert f"faults.cu:{LINES['two_barriers'] - 3}" in row["message"]


def test_a_warp_operation_without_half_of_its_lanes_is_a_deadlock_not_a_hang():
    result = run("half_a_warp", "none", floats())
    rows = {row["line"]: row for row in result.findings}
    assert set(rows) == {LINES["half_a_warp"], LINES["half_a_warp"] + 1}
    assert {row["kind"] for row in rows.values()} == {"Deadlock"}
    assert "16 threads wait" in rows[LINES["half_a_warp"]]["message"]
    assert not result.complete


def test_a_lane_that_its_mask_does_not_name_is_told():
    rows = run("not_in_mask", "none", floats()).findings
    assert ("Warp error", LINES["not_in_mask"]) in {(row["kind"], row["line"]) for row in rows}


def test_a_shuffle_from_a_lane_that_does_not_take_part_is_a_warning():
    row = only(run("reads_absent_lane", "none", floats()), "reads_absent_lane")
    assert (row["kind"], row["severity"], row["count"]) == ("Warp error", "warning", 16)


@pytest.mark.parametrize("checks", ["none", "memory"])
def test_an_endless_loop_is_ended_and_says_where_it_was(checks):
    start = time.monotonic()
    result = run("endless", checks, np.zeros(1, np.int32), timeout_s=0.5)
    row = only(result, "endless")
    assert (row["kind"], thread_of(row), result.complete) == ("Hang", (0, 0), False)
    assert time.monotonic() - start < 20


def test_a_step_limit_ends_a_loop_too():
    row = only(run("endless", "memory", np.zeros(1, np.int32), step_limit=1000), "endless")
    assert "more than 1000 steps" in row["message"]


def test_threads_that_wait_for_nobody_are_told():
    assert only(run("waits_for_nobody", "none", np.zeros(1, np.int32)), "waits_for_nobody")["kind"] == "Hang"


def test_a_trap_keeps_what_was_written_until_then():
    result = run("traps", "none", np.zeros(1, np.int32))
    row = only(result, "traps")
    assert (row["kind"], thread_of(row), int(result.arrays["b0"][0])) == ("Trap", (0, 3), 7)


def test_an_assertion_is_told_with_its_text():
    row = only(run("asserts", "none", np.arange(32, dtype=np.int32)), "asserts")
    assert (row["kind"], thread_of(row)) == ("Device-side assert", (0, 9))
    assert "x[threadIdx.x] < 9" in row["message"]


def test_a_stack_that_overflows_is_told():
    result = run("too_deep", "none", np.zeros(1, np.int32))
    assert [row["kind"] for row in result.findings] == ["Stack overflow"]


def test_a_kernel_that_takes_all_memory_gets_none_and_goes_on():
    result = run("greedy", "none", np.zeros(1, np.int32), threads=1)
    assert (result.findings, int(result.arrays["b0"][0])) == ((), 1)


def test_races_between_blocks_are_looked_for_when_asked():
    assert run("blocks_race", "all", floats(), blocks=4).findings == ()
    row = only(run("blocks_race", "grid", floats(), blocks=4), "blocks_race")
    assert (row["kind"], thread_of(row), row["count"]) == ("Race", (1, 0), 2)
    assert "by block 0" in row["message"]


# ---- local memory


def ints(value: int) -> np.ndarray:
    return np.full(32, value, np.int32)


@pytest.mark.parametrize("entry, index, kind, told", [
    ("local_beyond", 9, "Invalid __local__ write", "4 bytes after the end of local variable 'values' of 32 bytes"),
    ("local_beyond", -1, "Invalid __local__ write", "4 bytes before local variable 'values' of 32 bytes"),
    ("through_pointer", 8, "Invalid __local__ read", "0 bytes after the end of local variable 'values' of 32 bytes"),
    ("scope_ended", None, "Invalid __local__ read", "in local variable 'inner', whose scope has ended"),
    ("variable_beyond", 17, "Invalid __global__ read", "4 bytes after the end of variable 'table' of 64 bytes"),
    ("inner_row", 5, "Index out of bounds", "index 5 of 'float [4]' is out of its bounds"),
])  # fmt: skip
def test_accesses_outside_of_local_variables_are_told(entry, index, kind, told):
    arrays = (floats(),) if index is None else (ints(index), floats())
    row = only(run(entry, "asan", *arrays, source=LOCALS), entry, "locals.cu")
    assert (row["kind"], row["severity"], thread_of(row), row["count"]) == (kind, "error", (0, 0), 32)
    assert told in row["message"]
    assert row["access"] == (kind.rpartition(" ")[2] if "Invalid" in kind else None)


def test_all_does_not_look_at_local_memory():
    assert run("through_pointer", "all", ints(8), floats(), source=LOCALS).findings == ()


def test_local_memory_of_another_thread_is_not_ones_own():
    row = only(run("another_threads", "asan", floats(), source=LOCALS), "another_threads", "locals.cu")
    assert (row["kind"], thread_of(row), row["count"]) == ("Invalid __local__ read", (0, 7), 1)
    assert "in local memory of thread (3,0,0)" in row["message"]


def test_a_shift_by_more_than_the_bits_is_a_warning():
    result = run("shift_too_far", "asan", ints(40), np.zeros(32, np.int32), source=LOCALS)
    row = only(result, "shift_too_far", "locals.cu")
    assert (row["kind"], row["severity"]) == ("Undefined shift", "warning")
    assert "a shift of 'int' by 40" in row["message"]


def test_frames_that_are_left_and_entered_in_turn_are_told_nothing_of():
    """Threads change at every barrier and shuffle, each with frames of its own open; then the next block comes."""
    got = [run("nothing_wrong", checks, np.zeros(64, np.float32), source=LOCALS, threads=64, blocks=3)
           for checks in ("asan", "all")]  # fmt: skip
    assert [result.findings for result in got] == [(), ()]
    assert got[0].arrays["b0"].tobytes() == got[1].arrays["b0"].tobytes()


# ---- what earlier steps wrote


def step(entry: str, *arguments: Any, source: Path = FAULTS) -> Launch:
    given = tuple(Pointer(value) if isinstance(value, str) else value for value in arguments)
    return Launch(source, entry, (1, 1, 1), (32, 1, 1), given)


def product(a: str, d: str) -> Gemm:
    return Gemm(Pointer(a), Pointer("eye"), Pointer(d), 4, 8, 8, "float32", "float32")


COPY = step("read_beyond", "x", "y", np.int32(32))  # writes y[0..31]
ADD = step("accumulates", "x", "y")  # reads and writes y[0..31]
OTHER = step("nothing_wrong", "y", source=LOCALS)  # reads and writes y[0..31], in a program of its own


@pytest.mark.parametrize("steps, told", [
    ((COPY, ADD), []),
    ((COPY, OTHER, ADD), []),
    ((OTHER,), [0]),
    ((ADD, OTHER), [0]),
    ((product("x", "y"), ADD), []),
    ((product("x", "z"), ADD), [1]),
    ((COPY, product("y", "z"), product("z", "y")), []),
    ((product("y", "z"), product("z", "y"), OTHER), [0]),
], ids=["a launch", "another program", "nothing", "nothing but the reader", "a product", "a product elsewhere",
        "products in a row", "a product of nothing"])  # fmt: skip
def test_what_a_step_wrote_is_written_for_the_next_and_what_none_did_is_not(steps, told):
    arrays = {"x": floats(33), "y": floats(32), "z": floats(32), "eye": np.eye(8, dtype=np.float32)}
    result = emulated.run(steps, arrays, checks="init", uninitialised=("y", "z"))
    assert [row["launch_id"] for row in result.findings] == told
    for row in result.findings:
        assert row["kind"] == "Uninitialized __global__ memory read"
        assert "of buffer 'y'" in row["message"]


def test_a_product_of_what_was_half_written_names_operand_and_byte():
    arrays = {"x": floats(33), "y": floats(64), "z": floats(32), "eye": np.eye(8, dtype=np.float32)}
    second = Gemm(Pointer("y", 16), Pointer("eye"), Pointer("z"), 4, 8, 8, "float32", "float32")
    (row,) = emulated.run([COPY, second], arrays, checks="init", uninitialised=("y",)).findings
    assert (row["kernel"], row["launch_id"], row["file"], row["thread_x"]) == ("matrix product", 1, None, None)
    assert "at byte 128 of buffer 'y' of 256 bytes" in row["message"]
    assert "it is A of a matrix product" in row["message"]
