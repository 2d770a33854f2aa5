"""Planted faults are found with kernel, block, thread, file and line; kernels without them are told nothing of."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.emulation import run as emulated
from kernels.plan import Launch, Pointer

FAULTS = Path(__file__).parents[1] / "data" / "kernels" / "faults.cu"
LINES = {
    found[1]: number
    for number, line in enumerate(FAULTS.read_text().splitlines(), 1)
    if (found := re.search(r"// <- (\w+)$", line))
}


def run(entry: str, checks: str, *arrays: Any, threads: int = 32, blocks: int = 1, **more: Any) -> emulated.Emulated:
    """Launch one kernel of faults.cu; arguments are arrays (by position), scalars or None."""
    buffers = {f"b{i}": array for i, array in enumerate(arrays) if isinstance(array, np.ndarray)}
    arguments = tuple(
        Pointer(f"b{i}") if isinstance(value, np.ndarray) else Pointer(None) if value is None else value
        for i, value in enumerate(arrays)
    )
    shared = more.pop("shared_bytes", 0)
    launch = Launch(FAULTS, entry, (blocks, 1, 1), (threads, 1, 1), arguments, shared_bytes=shared)
    return emulated.run([launch], buffers, checks=checks, **more)


def floats(count: int = 64) -> np.ndarray:
    return np.ones(count, np.float32)


def only(result: emulated.Emulated, entry: str) -> dict[str, Any]:
    assert len(result.findings) == 1, [row["message"] for row in result.findings]
    (row,) = result.findings
    assert (row["tool"], row["kernel"], row["file"], row["line"]) == ("emulation", entry, "faults.cu", LINES[entry])
    return row


def thread_of(row: dict[str, Any]) -> tuple[int, int]:
    assert row["block_y"] == row["block_z"] == row["thread_y"] == row["thread_z"] == 0
    return row["block_x"], row["thread_x"]


def test_a_read_beyond_a_buffer_is_told_with_its_thread():
    result = run("read_beyond", "memory", floats(64), floats(64), np.int32(64), blocks=2)
    row = only(result, "read_beyond")
    assert (row["kind"], row["access"], row["size_bytes"], thread_of(row)) == (
        "Invalid __global__ read",
        "read",
        4,
        (1, 31),
    )
    assert "0 bytes after the end of buffer 'b0' of 256 bytes" in row["message"]
    assert result.complete


def test_a_write_before_a_buffer_is_told_with_its_thread():
    row = only(run("write_before", "memory", floats()), "write_before")
    assert (row["kind"], thread_of(row)) == ("Invalid __global__ write", (0, 0))
    assert "4 bytes before buffer 'b0'" in row["message"]


def test_without_checks_a_write_into_a_guard_zone_is_found_after_the_launch():
    (row,) = run("write_before", "none", floats()).findings
    assert (row["kind"], row["kernel"], row["line"]) == ("Invalid __global__ write", "write_before", None)
    assert "4 bytes before buffer 'b0'" in row["message"]


def test_static_shared_arrays_do_not_run_into_each_other():
    row = only(run("shared_beyond", "memory", floats()), "shared_beyond")
    assert (row["kind"], thread_of(row)) == ("Invalid __shared__ write", (0, 31))
    assert "0 bytes after the end of shared variable 'tile' of 128 bytes" in row["message"]


def test_dynamic_shared_memory_ends_where_the_launch_says():
    result = run("dynamic_beyond", "memory", floats(), shared_bytes=100)
    rows = [row for row in result.findings if row["access"] == "write"]
    assert [(row["kind"], thread_of(row), row["line"], row["count"]) for row in rows] == [
        ("Invalid __shared__ write", (0, 25), LINES["dynamic_beyond"], 7)
    ]
    assert "at byte 100 of dynamic shared memory: the launch has 100 bytes of it" in rows[0]["message"]


def test_a_misaligned_vector_access_is_told():
    row = only(run("misaligned", "memory", floats(200), floats()), "misaligned")
    assert (row["kind"], row["size_bytes"], thread_of(row), row["count"]) == ("Invalid __global__ read", 16, (0, 0), 32)
    assert "misaligned" in row["message"]


@pytest.mark.parametrize("checks", ["none", "memory"])
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
