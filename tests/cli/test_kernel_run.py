"""`probe kernels run`: a kernel of the user's own on the CPU; exit codes, screen, JSON, arrays, and the report of its session."""

from __future__ import annotations

import json

import numpy as np
import pytest

from places import DATA

RECORDED = DATA / "kernels"


@pytest.fixture
def inputs(tmp_path):
    """A file of arguments by name."""

    def save(**values):
        np.savez(tmp_path / "args.npz", **values)
        return tmp_path / "args.npz"

    return save


def test_a_sum_is_right_and_lands_in_the_npz(probe, tmp_path, inputs):
    x = np.arange(200, dtype=np.float32)
    args = inputs(x=x, y=np.zeros(2, np.float32), n=np.int32(200))
    done = probe("kernels", "run", RECORDED / "reduction.cu", "--grid", 2, "--block", 128, "--shared", 512, "--args", args,
                 "--emulate", "--undefined", "y", "--out-npz", tmp_path / "made.npz", cwd=tmp_path)  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "block_sum on emulation, checked for all: no findings" in done.stdout
    assert np.load(tmp_path / "made.npz")["y"].tolist() == [x[:128].sum(), x[128:].sum()]


def test_a_defect_gives_exit_code_1_a_row_and_a_report(probe, tmp_path, inputs):
    args = inputs(x=np.ones(64, np.float32), y=np.zeros(64, np.float32), n=64)
    session = tmp_path / "session"
    done = probe("kernels", "run", RECORDED / "faults.cu", "--entry", "read_beyond", "--grid", "2", "--block", "32",
                 "--args", args, "--emulate", "--out", session, "--json", tmp_path / "result.json", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 1
    assert "faults.cu:5" in done.stdout
    assert "(31, 0, 0)" in done.stdout
    (row,) = json.loads((tmp_path / "result.json").read_text())["findings"]
    assert (row["kind"], row["line"], row["block_x"], row["thread_x"]) == ("Invalid __global__ read", 5, 1, 31)
    report = probe("report", session, "--json", "-", cwd=tmp_path)
    (artifact,) = json.loads(report.stdout)["artifacts"]
    assert (artifact["tool"], artifact["tables"]) == ("emulation", {"findings": 1})


def test_what_a_kernel_prints_is_shown(probe, tmp_path, inputs):
    args = inputs(unused=np.zeros(1, np.int8), f=np.float32(1.5))
    done = probe(
        "kernels",
        "run",
        RECORDED / "golden.cu",
        "--entry",
        "says",
        "--grid",
        2,
        "--block",
        1,
        "--args",
        args,
        "--emulate",
        cwd=tmp_path,
    )
    assert 'block 1 of 2:  1.50 "é"' in done.stdout
    assert done.returncode == 0


def test_a_template_is_instantiated_by_its_entry(probe, tmp_path, inputs):
    x = np.arange(8, dtype=np.int32)
    done = probe("kernels", "run", RECORDED / "template.cu", "--entry", "reverse<int, 8>", "--block", 8, "--shared", 32, "--args",
                 inputs(x=x, y=x * 0), "--emulate", "--out", tmp_path / "s", cwd=tmp_path)  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert np.load(tmp_path / "s" / "arrays.npz")["y"].tolist() == x[::-1].tolist()


@pytest.mark.parametrize(
    "words, code, told",
    [(["--entry", "absent"], 2, "has no kernel absent"),
     ([], 2, "kernels: "),
     (["--entry", "traps", "--check", "races"], 2, "no such check: races"),
     (["--entry", "traps", "--check", "asan,race"], 2, "two runs: --check asan, and --check all"),
     (["--entry", "race"], 2, "no value for y")],
)  # fmt: skip
def test_wrong_use_is_told(probe, tmp_path, words, code, told):
    (tmp_path / "args.yaml").write_text("{}" if "race" in words or len(words) < 3 else "y: {shape: [4]}\n")
    done = probe(
        "kernels",
        "run",
        RECORDED / "faults.cu",
        *words,
        "--block",
        32,
        "--args",
        tmp_path / "args.yaml",
        "--emulate",
        cwd=tmp_path,
    )
    assert (done.returncode, done.stdout) == (code, "")
    assert told in done.stderr


def test_a_source_that_is_not_there_is_told_with_what_to_give(probe, tmp_path):
    done = probe("kernels", "run", "missing.cu", "--block", 1, "--emulate", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "missing.cu: file: expected a CUDA source" in done.stderr
    assert "try: give the path of a .cu file" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_array_of_a_threads_own_is_checked_by_the_build_that_is_asked_for(probe, tmp_path, inputs):
    args = inputs(index=np.full(32, 8, np.int32), y=np.zeros(32, np.float32))
    words = (
        "kernels",
        "run",
        RECORDED / "locals.cu",
        "--entry",
        "through_pointer",
        "--block",
        32,
        "--args",
        args,
        "--emulate",
    )
    done = probe(*words, "--check", "asan", "--out", tmp_path / "asan", "--json", "-", cwd=tmp_path)
    (row,) = json.loads(done.stdout)["findings"]
    assert (done.returncode, row["kind"], row["line"], row["count"]) == (1, "Invalid __local__ read", 17, 32)


def test_a_source_that_does_not_compile_gives_the_users_line(probe, tmp_path):
    source = tmp_path / "bad.cu"
    source.write_text('extern "C" __global__ void k(int n) {\n    int m = nn;\n}\n')
    (tmp_path / "args.yaml").write_text("n: 3\n")
    done = probe("kernels", "run", source, "--block", 1, "--args", tmp_path / "args.yaml", "--emulate", cwd=tmp_path)
    assert done.returncode == 125
    assert "bad.cu:2" in done.stderr
