"""The parser's view of CUDA: functions, kernels, statements with their lines, and what is no source at all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.cuda import readable
from harness.cuda import source as cuda_source
from harness.errors import ParseError, UsageError
from places import ROOT

KERNELS = sorted((ROOT / "kernels" / "cuda").glob("*.cu"))
TEXT = b"""\
#include <cuda_fp16.h>
#define TWICE(x) ((x) * 2)
namespace deep { template <typename T> __device__ T* pass(T* p) { return p; } }
extern "C" __global__ void __launch_bounds__(128, 2) k(const __half* __restrict__ x, float* y, int n) {
  extern __shared__ __align__(16) float tile[];
  if (n > 1) y[0] = 1.f;
  else
    y[1] = TWICE(2.f);
  switch (n) {
    case 1: y[2] = 1.f; break;
    default: y[3] = 1.f;
  }
#ifdef NEVER
  y[4] = 1.f;
#endif
  for (int i = 0; i < n; ++i) { y[i] = 0.f; }
}
int main() { return 0; }
"""


@pytest.fixture(scope="module")
def source():
    return cuda_source.parse(TEXT, "k.cu")


def test_functions_are_told_with_what_they_are(source):
    told = [(f.name, f.kernel, f.device, f.template, f.extern_c, f.line, f.end_line) for f in source.functions]
    assert told == [
        ("pass", False, True, True, False, 3, 3),
        ("k", True, True, False, True, 4, 17),
        ("main", False, False, False, False, 18, 18),
    ]
    assert [f.name for f in source.kernels] == ["k"]


def test_what_the_grammar_does_not_know_is_no_fault(source):
    assert source.faults == ()
    assert source.of(next(cuda_source.statements(source.kernels[0])).node).startswith("extern __shared__ __align__(16)")


def test_statements_have_lines_depth_and_braces(source):
    told = [(s.line, s.depth, s.braced, s.node.type) for s in cuda_source.statements(source.kernels[0])]
    assert told == [
        (5, 0, True, "declaration"),
        (6, 0, True, "if_statement"),
        (6, 1, False, "expression_statement"),
        (8, 1, False, "expression_statement"),
        (9, 0, True, "switch_statement"),
        (9, 1, True, "compound_statement"),
        (10, 2, True, "expression_statement"),
        (10, 2, True, "break_statement"),
        (11, 2, True, "expression_statement"),
        (14, 0, True, "expression_statement"),
        (16, 0, True, "for_statement"),
        (16, 1, True, "compound_statement"),
        (16, 2, True, "expression_statement"),
    ]


@pytest.mark.parametrize("path", KERNELS, ids=lambda path: path.name)
def test_every_kernel_of_ours_is_understood(path):
    source = cuda_source.read(path)
    assert all(any(cuda_source.statements(kernel)) for kernel in source.kernels)
    assert [fault for fault in source.faults if source.function_at(fault.line)] == []


def test_a_fault_says_where():
    source = cuda_source.parse(b"__global__ void k() {\n  int a = (1;\n}\n")
    assert [fault.line for fault in source.faults] == [2]


@pytest.mark.parametrize(
    "content, says", [(b"\0ELF", "a binary file"), (b"# just notes\n", "no function"), (b"", "no function")]
)
def test_what_is_no_cuda_is_refused(tmp_path, content, says):
    path = tmp_path / "k.cu"
    path.write_bytes(content)
    with pytest.raises(ParseError, match=says):
        cuda_source.read(path)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ParseError, match="No such file"):
        cuda_source.read(tmp_path / "none.cu")


NAMED = b"""\
namespace a::b { template <typename T, int N = 4> __global__ void k(T* y) { y[0] = N; } }
namespace { __global__ void hidden(float* y) {} }
template <> __global__ void a::b::k<float, 3>(float* y) {}
struct S { __device__ float member() const { return 1; } };
int main() { a::b::k<float, 8><<<1, 1>>>(nullptr); }
"""


@pytest.mark.parametrize(
    "asked, name", [("k<float>", "a::b::k<float>"), ("b::k<__half, 2>", "a::b::k<__half, 2>"), ("::hidden", "hidden")]
)
def test_a_kernel_is_found_by_its_name_with_or_without_its_namespaces(asked, name):
    assert cuda_source.entry_of(cuda_source.parse(NAMED), asked).name == name


@pytest.mark.parametrize(
    "asked, says, hint",
    [
        ("k", "k is a template: T, N must be given", "--entry 'k<float, 3>'"),
        ("c::k<float>", "has no kernel c::k<float>; it has a::b::k, hidden", "--entry a::b::k"),
        (None, "has 2 kernels: a::b::k, hidden", "--entry a::b::k"),
    ],
)
def test_a_kernel_that_is_not_meant_by_a_name_is_told(asked, says, hint):
    with pytest.raises(UsageError, match=says) as raised:
        cuda_source.entry_of(cuda_source.parse(NAMED), asked)
    assert hint in raised.value.hint


MACROS = b"""\
__global__ void k(float* y, int n) {
  FOR_EACH(i, n) {
    y[i] = 1;
  }
  REPEAT(n) f(y);
  y[1] = 3;
}
"""


def test_a_macro_may_have_a_body_of_its_own():
    statements = list(cuda_source.statements(cuda_source.parse(MACROS).kernels[0]))
    told = {statement.line: statement.node.type for statement in reversed(statements)}
    assert told == {
        2: "function_definition",
        3: "expression_statement",
        5: "expression_statement",
        6: "expression_statement",
    }
    assert [statement.braced for statement in statements if statement.line == 5] == [True, False]


# ---- what the parser is shown


OF_OURS = b"""\
#define FN __device__ __forceinline__  // of ours
#define KERNEL extern "C" __global__ void
#define EACH(i, n) \\
  for (int i = 0; \\
       i < (n); ++i)
#define FOREVER for (;;)
#define LOAD(to, from) float to = (from);
#define ACC(v) s += (v); t *= 2
#define TWICE(x) ((x) * 2)
#define EITHER __device__
#if 0
#define EITHER(x) x
#endif
FN float f(float v) { return TWICE(v); }
KERNEL k(float* y) {
  const char* said = "EACH(i, n) FN"; // FOREVER
  EACH(i, 2) y[i] = f(1.f);
  else y[0] = 0;
  FOREVER { ACC(1); break; }
  LOAD(a, f(y[0]))
  LOAD(b, a);
  CUTLASS_PRAGMA_UNROLL
  for (;;) ;
#pragma unroll
  while (y[0] > EITHER) ;
}
"""


def test_macros_of_the_file_are_shown_as_what_they_stand_for_and_nothing_moves():
    parsed = readable.readable(OF_OURS)
    assert len(parsed.text) == len(OF_OURS)
    rows, shown = OF_OURS.split(b"\n"), parsed.text.split(b"\n")
    assert [len(row) for row in rows] == [len(row) for row in shown]
    assert shown[:13] == rows[:13]
    assert {row.strip(): b" ".join(new.split()) for row, new in zip(rows, shown, strict=True) if row != new} == {
        rows[13]: b"float f(float v) { return TWICE(v); }", rows[14]: b"void k(float* y) {",
        b"EACH(i, 2) y[i] = f(1.f);": b"if(i, 2) y[i] = f(1.f);", b"FOREVER { ACC(1); break; }": b"if(1) { ACC(1); break; }",
        b"LOAD(a, f(y[0]))": b";", b"LOAD(b, a);": b";;", b"CUTLASS_PRAGMA_UNROLL": b"", b"#pragma unroll": b"",
    }  # fmt: skip
    found = cuda_source.parse(OF_OURS)
    assert [(f.name, f.kernel, f.device) for f in found.functions] == [("f", False, True), ("k", True, True)]
    assert found.faults == ()


@given(st.text(st.sampled_from("#define X(i) ifor{};\"'/*\\\n\r 1_Pragma"), max_size=80))
def test_whatever_the_text_it_keeps_its_length_and_its_lines(text):
    for made in (readable.readable(text.encode()).text, readable.one_branch(text.encode())):
        assert len(made) == len(text.encode())
        assert [at for at, byte in enumerate(made) if byte == 10] == [at for at, c in enumerate(text) if c == "\n"]


@pytest.mark.parametrize(
    "condition, kept",
    [
        ("#if 0", "b"), ("#if 1", "a"), ("#ifdef YES", "a"), ("#ifndef YES", "b"), ("#ifdef NO", "b"), ("#if !defined(NO)", "a"),
        ("#if defined NO", "b"), ("#if __CUDA_ARCH__ >= 800", "a"), ("#ifdef __CUDACC__ // always", "a"),
    ],
)  # fmt: skip
def test_where_braces_match_only_so_one_branch_is_read(condition, kept):
    text = f"#define YES\n__global__ void k() {{\n{condition}\nif (a) {{\n#else\nif (b) {{\n#endif\n}}\n}}\n"
    source = cuda_source.parse(text.encode())
    assert source.faults == ()
    assert [source.shown(line) for line in (4, 6)] == [kept == "a", kept == "b"]
    (first,) = (s for s in cuda_source.statements(source.kernels[0]) if s.depth == 0)
    assert (first.line, source.begin(first.node)) == (4 if kept == "a" else 6, text.index(f"if ({kept})"))


def test_a_statement_begins_with_what_was_hidden_before_it():
    text = b"__global__ void k() {\n  g();\n#if 1\n  #pragma unroll // so\n  // and\n  /* so */ for (;;) ;\n#endif\n  __align__(8) int a;\n}\n"
    source = cuda_source.parse(text)
    nodes = [s.node for s in cuda_source.statements(source.kernels[0]) if s.depth == 0]
    assert [text[source.begin(node) :].split()[0] for node in nodes] == [b"g();", b"#pragma", b"__align__(8)"]
    assert text[source.begin(nodes[1], pragmas=False) :].startswith(b"for")
    assert source.of(source.node_at(6)) == "for"
