"""What is around the emulated program: builds at the same time, a kill, findings on disk and in the report."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from harness.emulation import build as emulated_build
from harness.emulation import run as emulated
from harness.emulation import source as emulated_source
from harness.emulation.build import Source, build
from harness.errors import ParseError, ToolMissing, UsageError
from kernels.plan import Launch, Pointer
from places import DATA
from probes.sanitizing import emulated_checks
from reports.readers import detect

FAULTS = DATA / "kernels" / "faults.cu"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, but for the runtime."""
    kept = tmp_path / "cache" / "probe" / "emulation"
    kept.mkdir(parents=True)
    for flavour in ("plain", "watched"):
        (kept / emulated_build._runtime(flavour).name).symlink_to(emulated_build._runtime(flavour))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return kept


def one_line(folder: Path, number: int) -> Path:
    source = folder / "k.cu"
    text = f'extern "C" __global__ void k(int* x) {{ x[threadIdx.x] = {number} + N; }}\n'
    source.write_text(f"#ifndef N\n#define N 0\n#endif\n{text}")
    return source


def programs(kept: Path) -> list[str]:
    return [path.name for path in kept.iterdir() if not path.name.startswith("runtime")]


def test_builds_at_the_same_time_leave_one_whole_program(tmp_path, cache):
    source = one_line(tmp_path, 5)

    def look(_: int) -> Path:
        emulated_build._known.clear()
        return build(Source(source, entries=("k",))).program

    with ThreadPoolExecutor(4) as pool:
        made = set(pool.map(look, range(4)))
    assert len(made) == 1
    assert programs(cache) == [made.pop().parent.name]


def test_a_change_of_the_source_a_macro_or_the_checks_is_another_program(tmp_path, cache):
    source = one_line(tmp_path, 5)
    first = build(Source(source, entries=("k",)))
    assert build(Source(source, entries=("k",))).program == first.program
    others = {
        build(Source(source, (("N", "1"),), ("k",))).program,
        build(Source(source, (), ("k",), flavour="watched")).program,
    }
    one_line(tmp_path, 66)
    others.add(build(Source(source, entries=("k",))).program)
    assert len(others | {first.program}) == 4
    assert len(programs(cache)) == 4


def test_a_program_that_is_killed_keeps_what_it_wrote_and_is_told(tmp_path):
    source = tmp_path / "slow.cu"  # by whose name its process is found
    source.write_text(
        'extern "C" __global__ void slow(volatile int* x) { x[0] = 42; while (x[1] == 0) { } }\n', encoding="utf-8"
    )
    launch = Launch(source, "slow", (1, 1, 1), (1, 1, 1), (Pointer("x"),))
    build(Source(source, (), ("slow",)))

    def kill() -> None:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            for folder in Path("/proc").iterdir():
                words = folder / "cmdline"
                try:
                    ours = folder.name.isdigit() and "/slow-" in words.read_text()
                except OSError:
                    continue
                if ours and "/kernel\0" in words.read_text():
                    time.sleep(0.3)
                    os.kill(int(folder.name), signal.SIGKILL)
                    return
            time.sleep(0.05)

    killer = threading.Thread(target=kill)
    killer.start()
    result = emulated.run([launch], {"x": np.zeros(2, np.int32)}, timeout_s=30)
    killer.join()
    assert (int(result.arrays["x"][0]), result.complete) == (42, False)
    assert [(row["kind"], row["kernel"]) for row in result.findings] == [("Crash", "slow")]
    assert "signal 9" in result.findings[0]["message"]


def test_buffers_for_which_there_is_no_room_are_refused(monkeypatch, tmp_path):
    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(UsageError, match="no room for 36864 bytes of buffers: No space left"):
        emulated.run([], {"x": np.zeros(4)})


def faulty(folder: Path) -> Path:
    launch = Launch(FAULTS, "traps", (1, 1, 1), (32, 1, 1), (Pointer("y"),))
    emulated.run([launch], {"y": np.zeros(1, np.int32)}, folder=folder)
    return folder / "emulation.jsonl"


def test_the_findings_on_disk_are_read_as_the_table(tmp_path):
    path = faulty(tmp_path)
    artifact = detect.read(path)
    (row,) = artifact.tables["findings"].to_dict("records")
    assert (artifact.tool, row["tool"], row["kind"], row["kernel"], row["thread_x"]) == (
        "emulation",
        "emulation",
        "Trap",
        "traps",
        3,
    )
    assert (artifact.summary, artifact.notes) == ({"findings": 1, "by_kind": {"Trap": 1}}, ())
    assert str(tmp_path) not in path.read_text()


def test_a_file_without_findings_and_a_torn_one(tmp_path):
    path = faulty(tmp_path)
    first, row = path.read_text().splitlines()
    path.write_text(json.dumps({"tool": "emulation", "findings": 0}) + "\n")
    assert (len(detect.read(path).tables["findings"]), detect.read(path).notes) == (0, ())
    path.write_text(f"{first}\n{row}\n{row[:30]}")
    assert [note.split(" (")[0] for note in detect.read(path).notes] == ["the last line is torn"]
    path.write_text(f"{first}\nnonsense\n{row}\n")
    with pytest.raises(ParseError, match="line 2"):
        detect.read(path)


def test_what_two_builds_both_meet_is_told_once():
    """`probe sanitize` runs a kernel under the checks of both."""
    launch = Launch(FAULTS, "shared_beyond", (1, 1, 1), (32, 1, 1), (Pointer("y"),))
    rows = [row for checks in ("all", "asan")
            for row in emulated.run([launch], {"y": np.zeros(32, np.float32)}, checks=checks).findings]  # fmt: skip
    assert [row["kind"] for row in rows] == ["Invalid __shared__ write"] * 2
    assert emulated_checks.once(rows) == rows[:1]
    assert emulated_checks.once([rows[0], {**rows[1], "line": 1}, {**rows[1], "access": "read"}]) != rows[:1]


def test_without_a_compiler_the_line_that_installs_one_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    emulated_build._compiler.cache_clear()
    try:
        with pytest.raises(ToolMissing, match="g\\+\\+"):
            emulated_build._compiler()
    finally:
        emulated_build._compiler.cache_clear()


@pytest.mark.parametrize(
    "text, found",
    [('extern "C" __global__ void a(int* x) {}', {"a": True}),
     ('extern "C" __global__ void __launch_bounds__(256, (2)) b(int n) {}', {"b": True}),
     ("__global__ void c(int);", {}),
     ('template <int N>\n__global__ void\n__launch_bounds__(N) d(int* x) {}', {"d": False}),
     ('extern "C" { __global__ __launch_bounds__(64) void e(int n) {} }', {"e": True}),
     ("namespace a { static __global__ void f() {} }", {"a::f": False}),
     ("int f(int); __device__ void g(int) {}", {})],
)  # fmt: skip
def test_entry_points_of_a_preprocessed_source(tmp_path, text, found):
    made = emulated_source.unit(f'# 1 "k.cu" 1\n{text}\n', tmp_path)
    assert {kernel.name: kernel.exported for kernel in made.kernels} == found
