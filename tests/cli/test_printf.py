"""`probe printf` from the outside: values at lines, choices of threads, faults found, and errors that say what to do."""

from __future__ import annotations

import _thread
import json
import re
import shlex
import shutil
import threading
import time

import numpy as np
import pandas as pd
import pytest

from harness.device_log import layout as device_log
from probes import cli
from probes.printing import options as print_options
from probes.printing import running as printing
from reports.columns import TABLES

KERNEL = """\
#include <cuda_fp16.h>
#define SCALE(v) ((v) * 2.f)
extern "C" __global__ void scale(const float* x, float* y, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  // a comment
  if (i < n)
    y[i] = SCALE(x[i]);
  printf("thread %d\\n", i);
}
"""
ARGUMENTS = "x: {shape: 8, fill: arange}\ny: {shape: 8}\nn: 8\n"
LAUNCH = ("--grid", "2", "--block", "4", "--args", "in.yaml", "--emulate")


@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / "k.cu").write_text(KERNEL)
    (tmp_path / "in.yaml").write_text(ARGUMENTS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def printf(*words: str, code: int = 0) -> dict:
    assert cli.run(["printf", *words, "--out", "session", "--json", "out.json"]) == code
    with open("out.json", encoding="utf-8") as stream:  # noqa: PTH123
        return json.load(stream)


def values(result: dict, tag: str) -> list:
    return [(row["block"][0], row["thread"][0], row["value"]) for row in result["rows"] if row["tag"] == tag]


def refused(capsys, *words: str) -> str:
    assert cli.run(["printf", *words, "--out", "session"]) == 2
    return capsys.readouterr().err


# ---- the three faults of the documentation, as they stand there


@pytest.fixture
def example(root, tmp_path, monkeypatch):
    """Run a command of docs/printf.md in a copy of its folder; the result and the screen."""
    commands = dict(
        re.findall(
            r"<!-- example: (\w+) -->\n```bash\n(.*?)\n```\n", (root / "docs" / "printf.md").read_text(), re.DOTALL
        )
    )
    place = shutil.copytree(root / "examples" / "kernels", tmp_path / "kernels")
    monkeypatch.chdir(place)

    def run(name: str, code: int) -> dict:
        words = shlex.split(commands[name].replace("\\\n", " "))
        assert words[0] == "probe"
        assert cli.run([*words[1:], "--out", "session"]) == code
        return json.loads((place / "session" / "result.json").read_text(encoding="utf-8"))

    return run


def test_the_wrong_thread_of_an_off_by_one_is_found(example, capsys):
    result = example("skip_layernorm", 0)
    assert {(row["block"][0], row["thread"][0]) for row in result["rows"]} == {(row, 100) for row in range(4)}
    assert "100,0,0" in capsys.readouterr().out


def test_the_line_where_fp16_overflows_is_found(example, capsys):
    result = example("softmax", 1)
    first = result["not_finite"][0]
    assert (first["file"], first["line"], first["assigned"], first["value"]) == ("softmax.cu", 9, "power", "Infinity")
    operand = next(row for row in result["rows"] if row["tag"] == "watch-nan: power <- x[row + i]")
    assert np.exp(operand["value"]) > 65504
    assert "inf first in power at softmax.cu:9" in capsys.readouterr().out


def test_the_missing_barrier_is_found(example):
    result = example("row_sum", 1)
    assert [row["value"] for row in result["rows"] if row["tag"] == "parts[warp]"] == [256.0, "NaN", "NaN", "NaN"]
    assert {(row["kind"], row["line"]) for row in result["findings"]} == {("Race", 7)}


# ---- values, threads, tables


def test_values_before_a_line_of_every_thread(place):
    result = printf("k.cu", "--at", "7", "--print", "i, x[i]", *LAUNCH)
    assert (result["records"], result["lost"], result["ended"]) == (16, 0, "finished")
    assert values(result, "x[i]") == [(i // 4, i % 4, float(i)) for i in range(8)]
    assert set(result["rows"][0]) == {
        "sequence",
        "launch_id",
        "kernel",
        "tag",
        "file",
        "line",
        "block",
        "thread",
        "type",
        "value",
    }
    assert result["rows"][0] | {"sequence": 0} == {
        "sequence": 0, "launch_id": 0, "kernel": "scale", "tag": "i", "file": "k.cu", "line": 7, "block": [0, 0, 0],
        "thread": [0, 0, 0], "type": "int32", "value": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    "words, wanted",
    [
        (("--thread", "1,0,0"), [1, 5]),
        (("--thread", "1-2,0,0", "--block", "1,*,*"), [5, 6]),
        (("--in-block", "1,0,0"), [4, 5, 6, 7]),
        (("--block", "1"), [4, 5, 6, 7]),  # a second one cannot be the size
        (("--warp", "0", "--if", "i % 3 == 0"), [0, 3, 6]),
    ],
)
def test_threads_are_chosen(place, words, wanted):
    result = printf("k.cu", "--at", "7", "--print", "i", *LAUNCH, *words)
    assert [row["value"] for row in result["rows"]] == wanted


def test_the_tables_hold_what_the_result_holds(place):
    result = printf("k.cu", "--at", "7", "--print", "x[i]", *LAUNCH)
    table = pd.read_csv("session/device_log.csv")
    assert list(table.columns) == list(TABLES["device_log"])
    assert table["value"].astype(float).tolist() == [row["value"] for row in result["rows"]]
    pytest.importorskip("pyarrow")
    assert pd.read_parquet("session/raw/device_log.parquet")["thread_x"].tolist() == [0, 1, 2, 3] * 2
    assert cli.run(["report", "session/raw/device_log.parquet", "--json", "report.json"]) == 0
    assert json.loads((place / "report.json").read_text())["artifacts"][0]["summary"]["lines"] == 8


def test_of_very_many_values_the_tables_alone_hold_all(place, monkeypatch, capsys):
    monkeypatch.setattr(printing, "MOST_JSON_ROWS", 50)
    (place / "in.yaml").write_text("x: {shape: 70000, fill: arange}\ny: {shape: 70000}\nn: 70000\n")
    (place / "k.cu").write_text(KERNEL.replace('printf("thread %d\\n", i);', ""))
    result = printf(
        "k.cu", "--at", "7", "--print", "x[i]", "--grid", "137", "--block", "512", "--args", "in.yaml", "--emulate"
    )
    assert (result["records"], len(result["rows"])) == (70_000, 50)
    assert any("have the first 50 values" in note for note in result["notes"])
    table = pd.read_csv("session/device_log.csv")
    assert table["value"].tolist() == table["sequence"].tolist() == list(range(70_000))
    assert (table["block_x"] * 512 + table["thread_x"]).tolist() == list(range(70_000))
    told = capsys.readouterr().out
    assert "70,000 values logged" in told
    assert "40 of 70000 shown" in told


def test_a_line_whose_macro_cannot_be_seen_through_is_told_as_such(place, capsys):
    (place / "parts.cuh").write_text("#define LOAD(to, from) float to = (from);\n")
    text = KERNEL.replace("  // a comment\n", "  LOAD(a, 1.f)\n  LOAD(b, a);\n").replace(
        "SCALE(x[i])", "SCALE(x[i]) * a * b"
    )
    (place / "k.cu").write_text('#include "parts.cuh"\n' + text)
    told = refused(capsys, "k.cu", "--at", "7", "--print", "i", *LAUNCH)
    assert "nothing can be logged at k.cu:7: without it the source compiles, with it\n  k.cu:9" in told
    assert printf("k.cu", "--at", "6", "--print", "i", *LAUNCH)["records"] == 8


def test_the_page_shows_values_beside_the_lines(place):
    printf("k.cu", "--at", "7", "--print", "x[i]", "--thread", "3,0,0", "--block", "1,*,*", *LAUNCH)
    page = (place / "session" / "report.html").read_text(encoding="utf-8")
    assert "x[i] = 7.0" in page
    assert "y[i] = SCALE(x[i]);" in page
    assert str(place) not in page
    assert cli.run(["report", "session", "-o", "again.html"]) == 0
    assert (place / "again.html").read_text(encoding="utf-8") == page


def test_a_name_cannot_become_markup(place):
    (place / "k.cu").write_text(KERNEL.replace("// a comment", "// </td><script>alert(1)</script>"))
    printf("k.cu", "--at", "7", "--print", "i", *LAUNCH)
    assert "<script>alert" not in (place / "session" / "report.html").read_text(encoding="utf-8")


def test_printf_of_the_kernel_is_caught_with_its_thread(place, capsys):
    result = printf("k.cu", *LAUNCH)
    assert [one["text"] for one in result["printed"]] == [f"thread {i}" for i in range(8)]
    assert {(one["launch_id"], one["kernel"], one["range"]) for one in result["printed"]} == {(0, "scale", "scale")}
    assert result["printed"][5]["block"] == result["printed"][5]["thread"] == [1, 0, 0]
    assert (result["records"], result["printed_lost"]) == (0, 0)
    assert "[1,0,0 | 1,0,0] thread 5" in capsys.readouterr().out


def test_what_is_lost_is_told_and_grow_gets_it_all(place, capsys):
    words = ("k.cu", "--at", "7", "--print", "i", *LAUNCH, "--records", "3")
    result = printf(*words)
    assert (result["records"], result["lost"]) == (3, 5)
    assert "5 values found no room: --grow, or --records 8" in capsys.readouterr().out
    shutil.rmtree("session")
    assert printf(*words, "--grow")["records"] == 8


def test_arguments_and_launch_of_an_earlier_session(place):
    first = printf("k.cu", "--at", "7", "--print", "x[i]", *LAUNCH)
    (place / "session").rename(place / "earlier")
    again = printf("k.cu", "--at", "7", "--print", "x[i]", "--from-session", "earlier", "--emulate")
    assert again["rows"] == first["rows"]
    shutil.rmtree("session")
    assert again["grid"] == first["grid"]
    (place / "more.yaml").write_text("n: 2\n")
    fewer = printf(
        "k.cu", "--at", "7", "--print", "x[i]", "--from-session", "earlier", "--args", "more.yaml", "--emulate"
    )
    assert fewer["records"] == 2


def test_a_constant_of_the_source_is_given_like_an_argument(place, capsys):
    (place / "k.cu").write_text(
        "namespace n { __constant__ float weights[2]; }\n__device__ int calls;\n"
        "__global__ void k(float* x) {\n    x[threadIdx.x] = n::weights[1];\n    atomicAdd(&calls, 1);\n}\n"
    )
    (place / "in.yaml").write_text("x: {shape: 8}\n")
    words = ("k.cu", "--at", "5", "--print", "x[threadIdx.x], n::weights[0], calls", "--thread", "0")
    told = refused(capsys, *words, *LAUNCH)
    assert "no value for weights: the parameters are x; the variables are weights, calls" in told
    (place / "in.yaml").write_text("x: {shape: 8}\nweights: [3, 7]\ncalls: 40\n")
    first = printf(*words, *LAUNCH)
    assert [row["value"] for row in first["rows"]][:3] == [7, 3, 40]
    (place / "session").rename(place / "earlier")
    assert printf(*words, "--from-session", "earlier", "--emulate")["rows"] == first["rows"]


def test_a_null_pointer_of_an_earlier_session_is_one_again(place):
    (place / "k.cu").write_text(
        'extern "C" __global__ void k(const float* x, int n) { if (!x) printf("null %d", n); }\n'
    )
    (place / "in.yaml").write_text("x: null\nn: 3\n")
    printf("k.cu", *LAUNCH)
    (place / "session").rename(place / "earlier")
    again = printf("k.cu", "--from-session", "earlier", "--thread", "0,0,0", "--emulate")
    assert {one["text"] for one in again["printed"]} == {"null 3"}


def test_a_template_says_which_arguments_it_wants(place, capsys):
    (place / "k.cu").write_text("namespace n { template <typename T> __global__ void k(T* y) { y[0] = 1; } }\n")
    (place / "in.yaml").write_text("y: {shape: 1}\n")
    assert "try: --entry 'k<T>'" in refused(capsys, "k.cu", *LAUNCH)
    result = printf(
        "k.cu",
        "--entry",
        "k<double>",
        "--at",
        "1",
        "--print",
        "sizeof(T), y[0]",
        "--thread",
        "0",
        "--in-block",
        "0",
        *LAUNCH,
    )
    assert [row["value"] for row in result["rows"]] == [8, 0.0]
    assert result["kernel"] == "n::k<double>"


def test_arguments_from_npz(place):
    np.savez("in.npz", x=np.full(8, 2.5, np.float32), y=np.zeros(8, np.float32), n=np.int32(8))
    result = printf(
        "k.cu", "--at", "7", "--print", "x[i]", "--grid", "2", "--block", "4", "--args", "in.npz", "--emulate"
    )
    assert {row["value"] for row in result["rows"]} == {2.5}


# ---- kernels that die


@pytest.mark.parametrize(
    "statement, ended", [("*(volatile int*)0 = i;", "crashed"), ("for (volatile int j = 0; j < 1;) {}", "timed out")]
)
def test_what_was_logged_before_the_kernel_died_is_shown(place, capsys, statement, ended):
    (place / "k.cu").write_text(KERNEL.replace("// a comment", f"if (i == 5) {{ {statement} }}"))
    result = printf("k.cu", "--at", "5", "--print", "i", "--timeout", "1", *LAUNCH, code=1)
    assert result["ended"] == ended
    assert [row["value"] for row in result["rows"]] == [0, 1, 2, 3, 4, 5]
    assert "6 values logged until then" in capsys.readouterr().out


def test_what_was_logged_before_an_interruption_is_shown(place, capsys):
    (place / "k.cu").write_text(KERNEL.replace("// a comment", "for (volatile int j = 0; i == 5 && j < 1;) {}"))
    log = place / "session" / "raw" / "device_log.bin"

    def press_ctrl_c():
        while not log.exists() or log.stat().st_size <= device_log.SLOTS_AT or device_log.read(log).needed < 6:
            time.sleep(0.02)
        _thread.interrupt_main()

    threading.Thread(target=press_ctrl_c, daemon=True).start()
    result = printf("k.cu", "--at", "5", "--print", "i", "--grow", *LAUNCH, code=130)
    assert result["ended"] == "interrupted"
    assert [row["value"] for row in result["rows"]] == [0, 1, 2, 3, 4, 5]
    assert "Interrupted; 6 values logged until then" in capsys.readouterr().out


# ---- what is refused, and what it says


@pytest.mark.parametrize(
    "words, says, hint",
    [
        (("--at", "70", "--print", "i"), "k.cu has no line 70: it has 9", "--at 8"),
        (("--at", "2", "--print", "i"), "k.cu:2 is in a macro or a directive", "--at 4"),
        (("--at", "5", "--print", "i"), "k.cu:5 is in a comment", "--at "),
        (("--at", "7", "--print", "i +"), "expected expressions with commas between", "--print"),
        (("--at", "7", "--print", "i = 3"), "i = 3 would change what the kernel computes", "only reads"),
        (("--at", "7", "--print", "x[i], nope"), "does not compile: 'nope' was not declared in this scope\n  nope\n  ^", "in scope"),
        (("--at", "7", "--print", "i", "--if", "nope"), "--at 7 --if: does not compile: 'nope'", "in scope"),
        (("--at", "7"), "1 --at and 0 --print", "--at 57"),
        (("--if", "i > 1"), "--if needs a line", "--at"),
        (("--at", "7", "--print", "i", "--thread", "4,0,0"), "--thread: x = 4 is outside the block", "0 to 3"),
        (("--at", "7", "--print", "i", "--in-block", "2,0,0"), "--block: x = 2 is outside the grid", "0 to 1"),
        (("--at", "7", "--print", "i", "--block", "1,*,*", "--in-block", "0,0,0"), "chosen twice", "--in-block"),
        (("--entry", "nope"), "k.cu has no kernel nope; it has scale", "--entry scale"),
        (("-D", "1=2"), "expected NAME", "-D"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused(place, capsys, words, says, hint):
    told = refused(capsys, "k.cu", *words, *LAUNCH)
    assert says in told
    assert hint in told.split("try: ")[1]
    assert not (place / "session" / "result.json").exists()


@pytest.mark.parametrize(
    "name, content, says",
    [
        ("k.py", b"print('hello')\n", "expected a CUDA source"),
        ("k.onnx", b"\x08\x00\x12", "a binary file"),
        ("host.cu", b"int main() { return 0; }\n", "host.cu has 0 kernels"),
        ("two.cu", b"__global__ void a() {}\n__global__ void b() {}\n", "two.cu has 2 kernels: a, b"),
    ],
)
def test_what_is_no_kernel_is_refused(place, capsys, name, content, says):
    (place / name).write_bytes(content)
    assert says in refused(capsys, name, "--grid", "1", "--block", "1", "--emulate")


@pytest.mark.parametrize(
    "arguments, says",
    [
        ("x: {shape: 8}\ny: {shape: 8}\n", "no value for n: the parameters are x, y, n"),
        (ARGUMENTS + "m: 1\n", "the kernel has no parameter m"),
        (ARGUMENTS.replace("n: 8", "n: 2.5"), "n: expected int, got 2.5"),
        (ARGUMENTS.replace("fill: arange", "fill: sand"), "x: fill: expected a number or one of"),
        (ARGUMENTS.replace("shape: 8,", "shape: eight,"), "x: shape: expected whole numbers"),
        ("- 1\n", "a mapping of names to values, got list"),
        ("", "a mapping of names to values, got nothing"),
        ("x: [\n", "arguments, .npz or YAML"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(place, capsys, arguments, says):
    (place / "in.yaml").write_text(arguments)
    assert says in refused(capsys, "k.cu", *LAUNCH)


@pytest.mark.parametrize(
    "texts, in_block, wanted",
    [
        ((), None, (None, None)), (("128",), None, ("128", None)), (("32,4",), "1,0,0", ("32,4", "1,0,0")),
        (("128", "3,*,*"), None, ("128", "3,*,*")), (("3,*,*", "128"), None, ("128", "3,*,*")),
        (("128", "3,0,0"), None, ("128", "3,0,0")), (("3,0,0",), None, (None, "3,0,0")), (("128", "3"), None, ("128", "3")),
        (("0-3", "8"), None, ("8", "0-3")), (("10,20",), None, ("10,20", None)),
    ],
)  # fmt: skip
def test_what_cannot_be_a_size_chooses_blocks(texts, in_block, wanted):
    assert print_options.split_blocks(texts, in_block) == wanted


def test_without_a_gpu_it_is_emulated(place, monkeypatch):
    monkeypatch.setattr(printing, "has_gpu", lambda: False)
    printf("k.cu", "--at", "7", "--print", "i", *LAUNCH[:-1])
    assert json.loads((place / "session" / "manifest.json").read_text())["backend"] == "emulation"
