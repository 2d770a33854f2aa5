"""`probe bisect FILE.cu` end to end, on the CPU emulation: planted faults are found on their lines, and nothing else."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from examples import long_kernel
from harness.cuda import source as cuda_source
from places import ROOT
from probes import cli

FAULTS = ROOT / "examples" / "gpu" / "faults.cu"
pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="the emulation needs g++")


@pytest.fixture(autouse=True)
def in_its_own_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(0).standard_normal(300).astype(np.float32)
    np.savez("in.npz", out=np.zeros(300, np.float32), x=x, n=np.int32(300))


def bisect(*words, out="run") -> tuple[int, dict]:
    """Run the verb in this process; its exit code and its result.json."""
    code = cli.run(["bisect", *map(str, words), "--out", out])
    file = Path(out) / "result.json"
    return code, json.loads(file.read_text()) if file.exists() else {}


def launched(*words) -> list[str]:
    return [*words, "--grid", "3", "--block", "128", "--args", "in.npz"]


def lines_of(result: dict) -> list[int]:
    return [int(name.split(":")[0].removeprefix("line ")) for name in result["culprits"]]


@pytest.mark.parametrize(
    ("entry", "lines"),
    [
        ("out_of_bounds", [17]),
        pytest.param("race", [28], marks=pytest.mark.slow),
        pytest.param("divergent_barrier", [50], marks=pytest.mark.slow),
    ],
)
def test_the_statements_that_a_finding_needs(entry, lines, capsys) -> None:
    code, result = bisect(FAULTS, *launched("--entry", entry))
    assert code == 1
    assert lines_of(result) == lines
    assert result["certified_minimal"]
    assert result["fault"] == "sanitizer"
    repaired = Path("run") / result["model_out"]
    assert cuda_source.read(repaired).faults == ()
    assert f"{len(lines)} of" in capsys.readouterr().out
    page = Path("run/report.html").read_text(encoding="utf-8")
    assert page.count('<tr class="guilty">') == len(lines)
    assert "Repaired source" in page
    assert "Culprits on the graph" not in page
    again, clean = bisect(repaired, *launched("--entry", entry), out="again")
    assert (again, clean["status"]) == (0, "nothing_to_find")


def test_a_kernel_without_a_fault_is_clean(capsys) -> None:
    code, result = bisect(FAULTS, *launched("--entry", "twice"))
    assert (code, result["culprits"]) == (0, [])
    assert "Nothing to find: the sanitizer has no findings" in capsys.readouterr().out


@pytest.mark.slow
def test_reduce_leaves_the_smallest_kernel_with_the_same_finding() -> None:
    code, result = bisect(FAULTS, *launched("--entry", "race", "--reduce"))
    assert (code, lines_of(result)) == (1, [26, 27, 28])
    assert "/* __syncthreads(); */" in (Path("run") / result["model_out"]).read_text()
    assert len(set(result["signatures"].values()) - {None}) <= 1


@pytest.mark.parametrize("kind", [pytest.param("nan", marks=pytest.mark.slow), "sanitizer"])
def test_two_faults_in_a_kernel_of_200_lines(kind) -> None:
    planted = long_kernel.write(kind, Path("long.cu"), seed=3)
    code, result = bisect("long.cu", "--grid", 2, "--block", 64, "--args", "long.npz", "--fault", kind)
    assert code == 1
    assert lines_of(result) == planted
    assert result["certified_minimal"]
    assert result["evaluations"] < 60


@pytest.mark.slow
def test_two_statements_too_many_are_found_by_the_result_that_is_expected() -> None:
    planted = long_kernel.write("mismatch", Path("long.cu"), lines=80, seed=0)
    code, result = bisect("long.cu", "--grid", 2, "--block", 64, "--args", "long.npz", "--expect", "long.expect.npz",
                          "--tolerance", "1e-6")  # fmt: skip
    assert (code, lines_of(result)) == (1, planted)
    assert result["error_before"] > 1e-6 >= result["error_after"]


def test_of_a_loop_the_statement_to_blame_is_named_and_the_program_around_the_kernel_is_no_obstacle() -> None:
    """Without `++steps` the loop does not end; and what is there for the host, or in another file, is not looked into."""
    Path("parts.cuh").write_text("__device__ inline float next(float r) { return 0.5f * (r + 2.f / r); }\n")
    Path("k.cu").write_text(
        '#include "parts.cuh"\nnamespace n {\ntemplate <typename T, int S> __global__ void k(T *out, const T *x, int n)\n{\n'
        "    T r = 0.f;\n    int steps = 0;\n    do {\n        r = next(r);\n        ++steps;\n    } while (steps < S);\n"
        "    out[threadIdx.x] = 1.f;\n}\n}\n"
        "template __global__ void n::k<float, 4>(float *, const float *, int);\n"
        "int main() { n::k<float, 4><<<1, 32>>>(nullptr, nullptr, 0); return cudaDeviceSynchronize(); }\n"
    )
    code, result = bisect("k.cu", *launched("--entry", "k<float, 4>", "--fault", "nan"))
    assert (code, lines_of(result)) == (1, [8])


def test_an_expression_is_named_where_it_is_enough() -> None:
    Path("k.cu").write_text(
        'extern "C" __global__ void k(float *out, const float *x, int n)\n{\n'
        "    int i = blockIdx.x * blockDim.x + threadIdx.x;\n    if (i < n)\n        out[i] = logf(x[i] - 100.0f) + x[i];\n}\n"
    )
    code, result = bisect("k.cu", *launched("--fault", "nan"))
    assert (code, lines_of(result)) == (1, [5])
    assert any("logf(x[i] - 100.0f) -> x[i] - 100.0f" in note for note in result["notes"])


def test_the_users_own_check_gets_a_source_without_the_statements() -> None:
    Path("k.cu").write_text(
        'extern "C" __global__ void k(float *out)\n{\n    out[0] = 1.0f;\n    out[1] = 2.0f;\n    out[2] = 3.0f;\n}\n'
    )
    Path("check.py").write_text(
        "import re, sys\ncode = re.sub(r'/\\*.*?\\*/', '', open(sys.argv[1]).read())\nsys.exit('out[1]' in code)\n"
    )
    code, result = bisect("k.cu", "--check", f"{sys.executable} check.py {{source}}")
    assert (code, result["culprits"]) == (1, ["line 4: out[1] = 2.0f;"])
    assert result["fault"] == "check"


@pytest.mark.slow
def test_a_constant_that_must_be_one_costs_a_build_a_query_and_no_answer() -> None:
    """`mark{half}` may not narrow what is behind a switch: statements are then commented out one by one."""
    Path("k.cu").write_text(
        'extern "C" __global__ void k(float *out, const float *x, int n)\n{\n    const int half = 64;\n'
        "    unsigned char mark{half}; __shared__ float tile[2 * 64];\n    int i = blockIdx.x * blockDim.x + threadIdx.x;\n"
        "    tile[threadIdx.x] = mark;\n    out[i] = tile[threadIdx.x];\n}\n"
    )
    code, result = bisect("k.cu", *launched())
    assert (code, lines_of(result)) == (1, [7])


@pytest.mark.slow
def test_a_search_that_was_cut_short_goes_on_and_repeats_nothing() -> None:
    planted = long_kernel.write("nan", Path("long.cu"), seed=5)
    words = ["long.cu", "--grid", "2", "--block", "64", "--args", "long.npz", "--fault", "nan"]
    code, partial = bisect(*words, "--budget", 6)
    assert (code, partial["status"]) == (125, "stopped")
    before = (Path("run") / "steps.jsonl").read_text().splitlines()
    settings = Path("run/raw/settings.json")
    settings.write_text(settings.read_text().replace('"budget": 6', '"budget": null'))
    assert cli.run(["bisect", "--resume", "run"]) == 1
    after = [json.loads(line) for line in (Path("run") / "steps.jsonl").read_text().splitlines()]
    queries = [json.dumps([step["phase"], step["query"]]) for step in after]
    assert len(set(queries)) == len(queries)
    assert [json.loads(line) for line in before] == after[: len(before)]
    assert lines_of(json.loads(Path("run/result.json").read_text())) == planted


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--entry", "twice"], "how is the kernel launched?"),
        (launched("--entry", "nothing"), "has no kernel nothing; it has twice"),
        (launched("--entry", "twice", "--fault", "precision"), "--fault precision is about models"),
        (launched("--entry", "twice", "--fault", "mismatch"), "--fault mismatch and --expect FILE.npz belong together"),
        (launched("--entry", "twice", "--good", "other.onnx"), "--good is for a model"),
        (["--entry", "twice", "--grid", "0", "--block", "128"], "one to three positive numbers"),
    ],
)
def test_what_does_not_go_together_is_told_with_the_next_step(words, said, capsys) -> None:
    code, _ = bisect(FAULTS, *words)
    error = capsys.readouterr().err
    assert code == 2
    assert said in error
    assert "try:" in error


def test_options_of_a_kernel_are_refused_for_a_model(capsys) -> None:
    Path("model.onnx").touch()
    code, _ = bisect("model.onnx", "--grid", "4")
    assert code == 2
    assert "--grid is for a CUDA source" in capsys.readouterr().err
