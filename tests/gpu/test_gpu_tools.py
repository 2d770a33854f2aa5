"""`probe profile` and `probe sanitize` with the real tools, on planted faults and on an engine."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from harness import process
from harness.bert import model as bert
from harness.record import Command
from harness.tools import ncu, nsys, sanitizer
from harness.tools import tool as found
from places import DATA
from probes import cli

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("device")]
BUGS = DATA / "sanitizer" / "h100_2025.3_bugs.cu"
LATE = r"""
#include <cstdio>
#include <cuda_runtime.h>
#include <nvtx3/nvToolsExt.h>
__global__ void fill(float* p, int n) { int i = blockIdx.x * blockDim.x + threadIdx.x; if (i < n) p[i] = i; }
__global__ void spin(long long cycles) { long long start = clock64(); while (clock64() - start < cycles) {} }
int main(int count, char** words) {
    char how = count > 1 ? words[1][0] : '-';  // w: each range waits for its kernel, r: its kernel runs on for long
    float* p;
    cudaMalloc(&p, 400);
    for (int step = 0; step < 20; ++step) {
        char name[32];
        snprintf(name, sizeof name, "step %d", step);
        nvtxRangePushA(name);
        if (how == 'r') spin<<<1, 1>>>(200000000LL);
        else fill<<<1, 128>>>(p, step == 13 ? 128 : 100);
        if (how == 'w') cudaDeviceSynchronize();
        nvtxRangePop();
    }
    return cudaDeviceSynchronize() != cudaSuccess;
}
"""


def needs(wanted: found.Wanted) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not found.here(wanted), reason=f"{wanted.name} is not installed")


def build(source: Path, program: Path) -> Path:
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed")
    words = ("nvcc", "-lineinfo", "-o", str(program), str(source), "-ldl")
    run = process.run(Command(words, 300), program.with_suffix(".build"))
    assert run.ok, process.tail(run.stderr)
    return program


@pytest.fixture(scope="module")
def bugs(tmp_path_factory) -> Path:
    """Planted faults: o out of bounds, m misaligned, r race, u uninitialised, s barrier, l leak, p none."""
    return build(BUGS, tmp_path_factory.mktemp("bugs") / "bugs")


@pytest.fixture(scope="module")
def late(tmp_path_factory) -> Path:
    """A fault in the fourteenth launch of a kernel, each in an NVTX range of its own."""
    folder = tmp_path_factory.mktemp("late")
    (folder / "late.cu").write_text(LATE, encoding="utf-8")
    return build(folder / "late.cu", folder / "late")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    config = bert.BertConfig(256, 2, 4, 1024, vocab_size=1000, max_position=256)
    return bert.save(
        bert.build_onnx(config, bert.random_weights(config)), tmp_path_factory.mktemp("encoder") / "encoder.onnx"
    )


def run(verb: str, *words: object, out: Path) -> tuple[int, dict[str, Any]]:
    code = cli.run([verb, "--out", str(out), *map(str, words)])
    return code, json.loads((out / "result.json").read_text(encoding="utf-8"))


@needs(sanitizer.WANTED)
@pytest.mark.parametrize(
    ("tool", "fault", "kernel", "line"),
    [("memcheck", "o", "oob", 3), ("memcheck", "m", "misaligned", 4), ("racecheck", "r", "race", 5),
     ("initcheck", "u", "uninit", 6), ("synccheck", "s", "badsync", 7)],
)  # fmt: skip
def test_planted_faults(bugs, tmp_path, tool, fault, kernel, line):
    code, result = run(
        "sanitize", "--tool", tool, "--no-follow", "--no-locate", "--", bugs, fault, out=tmp_path / "run"
    )
    assert code == 1
    assert (kernel, "bugs.cu", line) in {
        (f["kernel"], Path(f["file"] or "").name.split("_")[-1], f["line"]) for f in result["findings"]
    }


@needs(sanitizer.WANTED)
def test_a_clean_program(bugs, tmp_path):
    code, result = run("sanitize", "--", bugs, "p", out=tmp_path / "run")
    assert (code, result["findings"], result["program_exit_code"]) == (0, [], 0)


@needs(sanitizer.WANTED)
def test_leaks(bugs, tmp_path):
    code, result = run("sanitize", "--leaks", "--no-follow", "--", bugs, "l", out=tmp_path / "run")
    assert code == 1
    assert {finding["kind"] for finding in result["findings"]} == {"Leak"}


@needs(sanitizer.WANTED)
@needs(nsys.WANTED)
def test_the_faulty_launch_of_many_is_found_with_its_range(late, tmp_path):
    code, result = run("sanitize", "--no-follow", "--", late, out=tmp_path / "run")
    assert code == 1
    fault = next(finding for finding in result["findings"] if finding["kernel"] == "fill")
    assert fault["launch"] == 13
    assert fault["range"] == "step 13"


@needs(sanitizer.WANTED)
def test_a_program_without_cuda(tmp_path):
    code, result = run("sanitize", "--", "/bin/true", out=tmp_path / "run")
    assert code == 125
    assert "nothing was checked" in result["ran"][0]["error"]


@needs(ncu.WANTED)
@pytest.mark.parametrize("metrics", ncu.SETS)
def test_counters_of_chosen_launches(late, tmp_path, metrics):
    words = ("--ncu", "--metrics", metrics, "--kernel", "fill", "--launch-count", 2, "--", late)
    code, result = run("profile", *words, out=tmp_path / "run")
    assert code == 0, result
    assert result["top"]["ncu.csv"]["rows"]["ncu_launches"] == 2


@needs(ncu.WANTED)
def test_counters_of_one_range(late, tmp_path):
    code, result = run("profile", "--ncu", "--range", "step 4", "--", late, out=tmp_path / "run")
    assert code == 0, result
    assert result["top"]["ncu.csv"]["rows"]["ncu_launches"] == 1


@needs(ncu.WANTED)
def test_filters_that_match_nothing(late, tmp_path):
    code, result = run("profile", "--ncu", "--kernel", "no_such_kernel", "--", late, out=tmp_path / "run")
    assert code == 125
    assert "none matched" in result["tools"][0]["error"]


@needs(nsys.WANTED)
def test_a_timeline_of_any_program(late, tmp_path):
    code, result = run("profile", "--nsys", "--", late, out=tmp_path / "run")
    assert code == 0, result
    assert result["top"]["nsys.sqlite"]["kernels"][0]["count"] == 20


@needs(nsys.WANTED)
def test_one_range_of_it(late, tmp_path):
    code, result = run("profile", "--nsys", "--range", "step 4", "--", late, "waits", out=tmp_path / "run")
    assert code == 0, result
    assert result["top"]["nsys.sqlite"]["rows"]["kernels"] == 1
    assert result["tools"][0]["program_exit_code"] == 0  # it went on to its end


@needs(nsys.WANTED)
def test_a_range_that_closes_before_its_kernel_ends_is_told(late, tmp_path):
    """nsys stops with the range, and what still runs then is not recorded: it must not look as if nothing ran."""
    code, result = run("profile", "--nsys", "--range", "step 4", "--", late, "runs on", out=tmp_path / "run")
    assert code == 125, result
    assert "kernels that the range step 4 launched ended before it closed" in result["tools"][0]["error"]


@needs(nsys.WANTED)
def test_the_exit_code_of_the_program_comes_through(bugs, tmp_path):
    _, result = run("profile", "--nsys", "--", bugs, "o", out=tmp_path / "run")
    assert result["tools"][0]["program_exit_code"] in (0, 1)


@needs(nsys.WANTED)
@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is None, reason="TensorRT is not installed")
def test_a_model_end_to_end(encoder, tmp_path):
    words = ("--nsys", "--ncu", "--launch-count", 5, "--precision", "fp16", "--iterations", 20, encoder)
    code, result = run("profile", *words, out=tmp_path / "run")
    assert code == 0, result
    steps = {step["name"]: step for step in result["tools"]}
    assert steps["nsys"]["status"] == steps["ncu"]["status"] == "ok"
    assert result["joined"]
    assert any(row["layer"] for row in result["joined"])


@needs(sanitizer.WANTED)
def test_a_kernel_of_ours_is_clean(tmp_path):
    code, result = run("sanitize", "--no-follow", "skip_layernorm", out=tmp_path / "run")
    assert code == 0, result
