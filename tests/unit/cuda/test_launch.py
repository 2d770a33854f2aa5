"""Plans run on a stand-in for the driver: arguments, order, poison, guard zones, and every kind of failure."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

import fake_gpu
from harness import ranges
from harness.cuda import driver as cuda
from harness.cuda import launch
from harness.cuda.buffers import GUARD_BYTES, Buffers
from harness.cuda.compile import Built
from harness.errors import LaunchFailed, UsageError
from kernels.plan import Buffer, Launch, Pointer

SOURCE = Path("kernel.cu")
ONE = (1, 1, 1)


@pytest.fixture
def gpu(driver_path, monkeypatch):
    monkeypatch.setattr(launch, "build", lambda unit, compiler: Built(b"image", "", False))
    return fake_gpu.FakeGpu(driver_path)


def step(entry, *arguments, **more):
    return Launch(SOURCE, entry, more.pop("grid", ONE), more.pop("block", (32, 1, 1)), arguments, **more)


def scale(buffer="x", factor=2.0, n=4, **more):
    return step("scale", Pointer(buffer, more.pop("offset", 0)), np.float32(factor), np.int32(n),
                names=("x", "factor", "n"), **more)  # fmt: skip


def append(digit):
    return step("append", Pointer("x"), np.float32(digit))


def test_arguments_of_every_kind_arrive(gpu):
    x = np.arange(6, dtype=np.float32)
    done = launch.run([scale(factor=3, n=4, offset=1)], {"x": x}, device=gpu.device)
    assert done.arrays["x"].tolist() == [0, 3, 6, 9, 12, 5]
    assert x.tolist() == [0, 1, 2, 3, 4, 5], "the caller's array was written to"
    assert (done.findings, done.device.name) == ((), "Stand-in")


def test_steps_run_in_order(gpu):
    done = launch.run([append(1), append(2), append(3)], {"x": np.zeros(1, np.float32)}, device=gpu.device)
    assert done.arrays["x"].tolist() == [123]


def test_a_kernel_that_waits_by_itself_is_launched_so_that_it_may_overlap(gpu, monkeypatch):
    steps = [append(1), dataclasses.replace(append(2), overlaps=True), append(3)]
    for able, count in ((False, 0), (True, 1)):
        monkeypatch.setitem(gpu.device.__dict__, "overlaps_launches", able)
        done = launch.run(steps, {"x": np.zeros(1, np.float32)}, device=gpu.device)
        assert (done.arrays["x"].tolist(), gpu.library.fake_overlapping()) == ([123], count)
    placed = launch.prepare(steps, {}, device=gpu.device).place({"x": np.zeros(1, np.float32)})
    placed.graph(2).launch(gpu.device.stream().handle)
    assert placed.read()["x"].tolist() == [123123]
    gpu.plant("cuLaunchKernel", 1)
    with pytest.raises(LaunchFailed, match="append"):
        launch.run(steps[1:2], {"x": np.zeros(1, np.float32)}, device=gpu.device)


def test_outputs_are_poisoned_and_inputs_are_not(gpu):
    arrays = {"x": np.ones(4, np.float32), "half": np.zeros(3, np.float16), "int": np.zeros(3, np.int8)}
    done = launch.run([scale(n=0)], arrays, poison=("half", "int"), device=gpu.device)
    assert np.isnan(done.arrays["half"]).all()
    assert done.arrays["int"].tolist() == [-1, -1, -1]
    assert done.arrays["x"].tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(("index", "says"), [(4, "at its byte 16"), (-1, "4 bytes before its beginning"),
                                             (4 + GUARD_BYTES // 4 - 1, f"at its byte {16 + GUARD_BYTES - 4}")])  # fmt: skip
def test_a_write_outside_a_buffer_is_a_finding_of_the_launch_that_made_it(gpu, index, says):
    steps = [scale(), step("overrun", Pointer("x"), np.int32(index)), scale()]
    done = launch.run(steps, {"x": np.ones(4, np.float32), "y": np.ones(1)}, device=gpu.device)
    (finding,) = done.findings
    assert (finding["kernel"], finding["launch_id"], finding["size_bytes"]) == ("overrun", 1, 4)
    assert f"4 bytes written outside x, the first {says}" == finding["message"]
    assert done.arrays["x"].tolist() == [4, 4, 4, 4]


def test_without_guard_zones_nothing_is_looked_at(gpu):
    buffers = Buffers(gpu.device, {"x": np.ones(4, np.float32)}, guard=0)
    assert (buffers.overruns(), buffers.nbytes) == ([], 16)
    with pytest.raises(UsageError, match="off its alignment"):
        Buffers(gpu.device, {"x": np.ones(4)}, guard=100)


def test_empty_arrays_and_null_pointers_pass(gpu):
    done = launch.run(
        [step("scale", Pointer(None), np.float32(1), np.int32(0))], {"none": np.empty((0, 3))}, device=gpu.device
    )
    assert done.arrays["none"].shape == (0, 3)


def test_device_memory_is_given_back(gpu):
    before = gpu.allocated
    launch.run([scale()], {"x": np.ones(1000, np.float32)}, device=gpu.device)
    assert gpu.allocated == before


def test_an_illegal_access_names_the_launch_and_says_that_the_context_is_lost(gpu):
    with pytest.raises(LaunchFailed) as caught:
        launch.run([scale(), step("wild"), scale()], {"x": np.ones(4, np.float32)}, device=gpu.device)
    error = caught.value
    assert error.call.startswith("wild<<<(1, 1, 1), (32, 1, 1), 0>>>()")
    assert "CUDA_ERROR_ILLEGAL_ADDRESS (700): an illegal memory access was encountered" in error.status
    assert "outside the memory" in error.status
    assert "context is lost" in error.hint
    assert error.file.endswith("test_launch.py"), "the place of a helper was shown, not its caller's"
    with pytest.raises(LaunchFailed, match="700"):
        gpu.device.read(0, np.zeros(1))


def test_a_refused_launch_shows_the_call_as_it_was_made(gpu):
    with pytest.raises(
        LaunchFailed, match=r"scale<<<\(1, 1, 1\), \(2048, 1, 1\), 0>>>\(x=0x[0-9a-f]+, factor=2.0, n=4\)"
    ) as caught:
        launch.run([scale(block=(2048, 1, 1))], {"x": np.ones(4, np.float32)}, device=gpu.device)
    assert "CUDA_ERROR_INVALID_VALUE (1)" in caught.value.status
    assert "limits" in caught.value.hint
    launch.run([scale()], {"x": np.ones(4, np.float32)}, device=gpu.device)  # nothing is lost by a refusal


@pytest.mark.parametrize("function", ["cuMemAlloc_v2", "cuMemcpyHtoD_v2", "cuMemcpyDtoH_v2", "cuModuleLoadData", "cuLaunchKernel",
                                      "cuCtxSynchronize"])  # fmt: skip
def test_every_call_is_checked(gpu, function):
    gpu.plant(function, 2)
    with pytest.raises(LaunchFailed, match=r"CUDA_ERROR_OUT_OF_MEMORY \(2\)"):
        launch.run([scale()], {"x": np.ones(4, np.float32)}, device=gpu.device)


def test_dynamic_shared_memory_beyond_48_kb_is_asked_for(gpu):
    run = {"arrays": {"x": np.ones(4, np.float32)}, "device": gpu.device}
    launch.run([scale(shared_bytes=200_000)], **run)
    with pytest.raises(
        UsageError, match=r"asks for 231999 bytes of dynamic and 1024 of static shared memory; .* has 232448"
    ):
        launch.run([step("overrun", Pointer("x"), np.int32(0), shared_bytes=231_999)], **run)


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (step("scale", Pointer("x"), np.float32(1)), "scale takes 3 parameters, 2 are given"),
        (step("scale", Pointer("x"), np.float64(1), np.int32(1)), "the parameter argument 1 has 4 bytes, float64 has 8"),
        (step("scale", Pointer("x"), Pointer("x"), np.int32(1), names=("a", "b", "c")), "parameter b has 4 bytes, a pointer has 8"),
        (step("append", Pointer("y"), np.float32(1)), "no buffer named y; there are x"),
        (step("append", Pointer("x"), np.float32(1), names=("x",)), "2 arguments, 1 names"),
    ],
)  # fmt: skip
def test_a_plan_that_does_not_fit_is_told(gpu, broken, says):
    with pytest.raises(UsageError, match=says):
        launch.run([broken], {"x": np.ones(4, np.float32)}, device=gpu.device)


def test_a_variable_is_written_before_the_launch(gpu):
    add = step("add_bonus", Pointer("x"), variables=(("bonus", np.float32(2.5).tobytes()),))
    assert launch.run([add, add], {"x": np.ones(1, np.float32)}, device=gpu.device).arrays["x"].tolist() == [6]


@pytest.mark.parametrize(
    ("name", "size", "says"),
    [
        ("bonus", 8, "the variable bonus: expected 4 bytes, got 8"),
        ("malus", 4, "the compiled source has no variable malus"),
    ],
)
def test_a_variable_that_does_not_fit_is_told(gpu, name, size, says):
    with pytest.raises(UsageError, match=says):
        launch.run([step("add_bonus", Pointer("x"), variables=((name, bytes(size)),))], {"x": np.ones(1, np.float32)},
                   device=gpu.device)  # fmt: skip


def test_an_unknown_entry_point_is_told(gpu):
    with pytest.raises(LaunchFailed, match=r'cuModuleGetFunction\("gone"\) returned CUDA_ERROR_NOT_FOUND') as caught:
        launch.run([step("gone")], {}, device=gpu.device)
    assert 'extern "C"' in caught.value.hint


def test_prepared_steps_run_on_memory_of_others(gpu):
    prepared = launch.prepare([scale(offset=1, n=2)], {"x": 4}, device=gpu.device)
    theirs = [gpu.device.allocate(16) for _ in range(2)]
    for memory in (*theirs, theirs[0]):
        gpu.device.write(memory.address, np.ones(4, np.float32))
        prepared.launch_on({"x": memory.address}, stream=0)
        got = np.empty(4, np.float32)
        gpu.device.read(memory.address, got)
        assert got.tolist() == [1, 2, 2, 1]
    with pytest.raises(UsageError, match="element size of x"):
        launch.prepare([scale(offset=1)], {}, device=gpu.device).launch_on({"x": theirs[0].address})


def test_a_graph_repeats_the_steps_in_order(gpu):
    placed = launch.prepare([append(1), append(2)], {}, device=gpu.device).place({"x": np.zeros(1, np.float32)})
    graph = placed.graph(repeats=2)
    assert gpu.launches == 0, "recording ran the steps"
    graph.launch(0)
    assert (gpu.launches, placed.read()["x"].tolist()) == (4, [1212])


def test_a_failure_while_recording_leaves_the_stream_usable(gpu):
    placed = launch.prepare([append(1)], {}, device=gpu.device).place({"x": np.zeros(1, np.float32)})
    gpu.plant("cuLaunchKernel", 2, after=1)
    with pytest.raises(LaunchFailed):
        placed.graph(repeats=3)
    placed.graph().launch(0)
    assert placed.read()["x"].tolist() == [1]


def test_each_source_is_compiled_once_for_each_set_of_macros(gpu, monkeypatch):
    built = []
    monkeypatch.setattr(launch, "build", lambda unit, compiler: built.append((unit, compiler)) or Built(b"", "", False))
    steps = [scale(), append(1), scale(defines=(("T", "half"),))]
    launch.prepare(steps, {}, launch.Options("pycuda", "lineinfo"), gpu.device)
    assert [(unit.defines, unit.flavour, unit.arch, compiler) for unit, compiler in built] == [
        ((), "lineinfo", "sm_90a", "nvcc"), ((("T", "half"),), "lineinfo", "sm_90a", "nvcc"),
    ]  # fmt: skip


def test_each_launch_is_inside_a_range_with_its_parameters(gpu, monkeypatch):
    told = []

    class Recorded:
        def __init__(self, name, payload):
            self.name, self.payload = name, payload

        def __enter__(self):
            told.append(("push", self.name, gpu.launches))

        def __exit__(self, *error):
            told.append(("pop", self.name, gpu.launches))

    made = []
    monkeypatch.setattr(
        ranges, "prepare", lambda name, payload, category: made.append(Recorded(name, payload)) or made[-1]
    )
    launch.run([scale(grid=(7, 1, 1))], {"x": np.ones(4, np.float32)}, device=gpu.device)
    assert told == [("push", "scale", 0), ("pop", "scale", 1)]
    assert made[0].payload == {
        "grid_x": 7, "grid_y": 1, "grid_z": 1, "block_x": 32, "block_y": 1, "block_z": 1, "shared_bytes": 0,
        "x": "x", "factor": 2.0, "n": 4,
    }  # fmt: skip
    assert ranges.structure(made[0].payload)["x"] == "x"


def test_element_sizes_come_from_arrays_and_from_plans():
    assert launch.itemsizes_of({"x": np.zeros(1, np.float16)}) == {"x": 2}
    buffers = (Buffer("a", "bfloat16", (1,)), Buffer("b", "int8", (1,)), Buffer("c", "float32", (2,)))
    assert launch.itemsizes_of(buffers) == {"a": 2, "b": 1, "c": 4}


def test_without_a_driver_or_a_gpu_that_is_said(driver_path, gpu):
    with pytest.raises(UsageError, match="no NVIDIA driver here"):
        cuda.load("/nowhere/libcuda.so.1")
    gpu.library.fake_gpus(0)
    with pytest.raises(UsageError, match="CUDA_ERROR_NO_DEVICE"):
        cuda.load(str(driver_path))


def test_a_driver_without_a_function_is_too_old():
    import ctypes

    with pytest.raises(UsageError, match="too old: it has no cuInit"):
        cuda.Driver(ctypes.CDLL(None)).call("cuInit", 0)


def test_paths_say_nothing_of_the_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cuda.shown_path(tmp_path / "folder" / "kernel.cu") == "folder/kernel.cu"
    assert cuda.shown_path("/somewhere/else/kernel.cu") == "kernel.cu"
