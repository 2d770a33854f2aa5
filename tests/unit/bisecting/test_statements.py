"""Statements of a kernel as candidates: what is found, and the two texts that are made of a source."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.cuda import source as cuda_source
from probes.bisecting.statements import statements

SOURCE = cuda_source.parse(b"""\
__device__ float helper(float x) { float y = x * 2.0f; y += 1.0f; return y; }
extern "C" __global__ void other(float *out) { out[0] = 1.0f; }
extern "C" __global__ void k(float *out, const float *x, int n)
{
    __shared__ float tile[128];
    const float *first = x;
    int i = blockIdx.x * blockDim.x + threadIdx.x, j = i + 1;
    auto s = 0.0f;
    for (int t = 0; t < 3; ++t)
        s += helper(first[i]) * t;
    if (i < n) {
        tile[threadIdx.x] = s; /* a remark */
        out[i] = tile[threadIdx.x] / 2.0f;
    } else if (j > 3)
        s = expf(s) + 1.0f;
    else { return; }
    while (s > 100.0f) { s = s / 2.0f; if (s < 0.0f) break; }
    __syncthreads();
}
""")
ENTRY = cuda_source.entry_of(SOURCE, "k")
PARTS = statements.pieces(SOURCE, ENTRY)
NAMES = [candidate.key for candidate in statements.candidates(SOURCE, PARTS)]


def number(text: str) -> int:
    return next(at for at, name in enumerate(NAMES) if text in name)


def test_candidates_are_statements_and_initial_values_outer_before_inner() -> None:
    assert NAMES == [
        "line 1: y = x * 2.0f", "line 1: y += 1.0f;",
        "line 7: i = blockIdx.x * blockDim.x + threadIdx.x", "line 7: j = i + 1",
        "line 9: for (int t = 0; t < 3; ++t) s += helper(first[i]) * t;", "line 10: s += helper(first[i]) * t;",
        "line 11: if (i < n) { tile[threadIdx.x] = s; /* a remark */ out[i]...", "line 12: tile[threadIdx.x] = s;",
        "line 13: out[i] = tile[threadIdx.x] / 2.0f;", "line 14: if (j > 3) s = expf(s) + 1.0f; else { return; }",
        "line 15: s = expf(s) + 1.0f;", "line 16: return;",
        "line 17: while (s > 100.0f) { s = s / 2.0f; if (s < 0.0f) break; }", "line 17: s = s / 2.0f;",
        "line 17: if (s < 0.0f) break;", "line 17: break;", "line 18: __syncthreads();",
    ]  # fmt: skip


def test_pointers_auto_values_of_return_and_other_kernels_are_let_alone() -> None:
    text = " ".join(NAMES)
    assert "first =" not in text
    assert "0.0f" not in text.split("line 17")[0]
    assert "return y" not in text
    assert "out[0]" not in text


def test_the_scope_is_the_outermost_statement() -> None:
    found = statements.candidates(SOURCE, PARTS)
    assert found[number("line 13")].scope == "k/if line 11"
    assert found[number("line 15")].scope == "k/if line 11"
    assert found[number("line 1: y +=")].scope == "helper/statement line 1"


def test_what_is_commented_out_stays_readable_where_it_stood() -> None:
    out = {number("line 7: j"), number("line 10"), number("line 11"), number("line 12")}
    lines = statements.commented(SOURCE, PARTS, out).decode().splitlines()
    assert lines[6] == "    int i = blockIdx.x * blockDim.x + threadIdx.x, j = {} /* i + 1 */;"
    assert lines[9] == "        ; /* s += helper(first[i]) * t; */"
    assert lines[10] == "    ; /* if (i < n) {"
    assert lines[11] == "        tile[threadIdx.x] = s; /* a remark * /"
    assert lines[15] == "    else { return; } */"


@given(st.sets(st.integers(0, len(PARTS) - 1)))
def test_commenting_out_moves_no_line_and_leaves_code_that_parses(out: set[int]) -> None:
    text = statements.commented(SOURCE, PARTS, out)
    assert text.count(b"\n") == SOURCE.text.count(b"\n")
    assert cuda_source.parse(text).faults == ()
    if not out:
        assert text == SOURCE.text


def test_the_switched_source_reads_one_bit_a_piece() -> None:
    parts = PARTS + statements.operands(SOURCE, PARTS)
    text = statements.switched(SOURCE, parts, ENTRY).decode()
    body = text.split("#line 1\n")[1]
    assert body.count("\n") == SOURCE.text.count(b"\n")
    assert all(f"PROBE_KEPT({at})" in body for at in range(len(parts)))
    assert "const float *x, int n, unsigned *probe_keep_mask_argument)" in body


def test_operands_are_the_arithmetic_and_the_calls_of_one_argument() -> None:
    line = [piece for piece in PARTS if piece.line == 15]
    kept = {(piece.kind, SOURCE.text[slice(*piece.keep)].decode()) for piece in statements.operands(SOURCE, line)}
    assert kept == {("arithmetic", "expf(s)"), ("call", "s")}


def test_what_the_compiler_must_know_and_what_only_the_host_runs_is_let_alone() -> None:
    source = cuda_source.parse(b"""\
constexpr int sizes(int n) { int twice = n * 2; return twice; }
void reference(float *y) { y[0] = 1.0f; }
__global__ void k(float *y, int n)
{
    const int half = 32, size = 2 * half, other = 32, least = 4;
    static_assert(least > 3);
    __shared__ float tile[size][sizes(2)];
    EACH(i, n) { y[i] = half_of<other>(i); }
    REPEAT(n) f(y);
}
""")
    found = statements.candidates(source, statements.pieces(source, cuda_source.entry_of(source)))
    assert [(c.key.split(": ")[1], c.op_type) for c in found] == [
        ("EACH(i, n) { y[i] = half_of<other>(i); }", "macro"), ("y[i] = half_of<other>(i);", "assignment"), ("f(y);", "call"),
    ]  # fmt: skip


def test_what_would_split_a_condition_of_the_preprocessor_is_no_candidate() -> None:
    text = b"__global__ void k(float *y)\n{\n#ifdef A\n    if (y[0] > 1)\n#endif\n        y[0] = y[1] < 2 && y[2] > -1 + 3;\n}\n"
    source = cuda_source.parse(text)
    parts = statements.pieces(source, cuda_source.entry_of(source))
    assert [text[part.start : part.end][:4] for part in parts] == [b"y[0]"]


def test_a_second_copy_of_an_expression_moves_no_line() -> None:
    source = cuda_source.parse(
        b"__global__ void k(float *y)\n{\n    y[0] = expf(y[1] // the first\n        + y[2]);\n}\n"
    )
    entry = cuda_source.entry_of(source)
    whole = statements.pieces(source, entry)
    text = statements.switched(source, (*whole, *statements.operands(source, whole)), entry).split(b"#line 1\n")[1]
    assert text.count(b"\n") == source.text.count(b"\n")
    assert b"probe_as<decltype(expf(y[1] + y[2]))>(y[1] + y[2], 0)" in text


@given(st.sets(st.integers(0, 99)))
def test_the_mask_holds_just_the_bits_of_what_is_kept(kept: set[int]) -> None:
    words = statements.mask(kept, 100)
    assert len(words) == 4
    assert {bit for bit in range(128) if words[bit // 32] >> (bit % 32) & 1} == kept


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_both_texts_are_cuda(tmp_path: Path) -> None:
    parts = PARTS + statements.operands(SOURCE, PARTS)
    texts = {
        "switched": statements.switched(SOURCE, parts, ENTRY),
        "watched": statements.switched(SOURCE, parts, ENTRY, watch=True),
        "all": statements.commented(SOURCE, PARTS, range(len(PARTS))),
        "expressions": statements.commented(SOURCE, parts, range(len(PARTS), len(parts))),
    }
    for name, text in texts.items():
        path = tmp_path / f"{name}.cu"
        path.write_bytes(text)
        done = subprocess.run(["nvcc", "-cubin", "-arch=sm_80", "-o", tmp_path / "out", path], capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
