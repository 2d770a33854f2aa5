"""Tracepoints in a copy of a source: where they go, what they leave as it was, what is refused, what a watch sees."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter

import numpy as np
import pytest

from harness.cuda import source as cuda_source
from harness.cuda.source import entry_of
from harness.device_log import traced, tracepoints
from harness.device_log.layout import Selection
from harness.device_log.tracepoints import Tracepoint, explain, instrument, parse_print
from harness.errors import BuildFailed, UsageError
from kernels.plan import Launch, Pointer
from places import ROOT

KERNELS = sorted((ROOT / "kernels" / "cuda").glob("*.cu"))
TEXT = """\
#define TWICE(x) ((x) * 2)
__device__ float half_of(float v) { return v / 2; }
// only a comment
extern "C" __global__ void k(const float* x, float* y, int n) {
  const int i = threadIdx.x;
  float sum = 0.f;

  for (int j = i; j < n; j += blockDim.x)
    sum += x[j];
  if (i == 1) sum = TWICE(sum);
  else if (i == 2)
    sum = half_of(sum);
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    sum += 1.f;
  }
  switch (i) {
    case 3: sum = -1.f; break;
  }
  y[i] = sum;
}
int main() { k<<<1, 4>>>(0, 0, 0); return 0; }
"""


def source_of(text: str) -> cuda_source.Source:
    return cuda_source.parse(text.encode(), "k.cu")


def run(tmp_path, copy, arrays, *scalars, block=4, entry="k", defines=(), **more):
    arguments = (*(Pointer(name) for name in arrays), *scalars)
    names = (*arrays, *(f"scalar {number}" for number in range(len(scalars))))
    path = traced.place(copy.text, "k.cu")
    launch = Launch(path, entry, (1, 1, 1), (block, 1, 1), arguments, 0, traced.defines_of(defines), names)
    return traced.run(traced.Job(launch, arrays, tmp_path, timeout_s=20, **more), emulate=True)


def as_compiled(text: bytes) -> dict[int, list[str]]:
    """The lines of the original as a compiler counts them, by number."""
    lines: dict[int, list[str]] = {}
    number, ours = 0, False
    for line in text.decode().split("\n"):
        if found := re.fullmatch(r'#line (\d+) "(.*)"', line):
            number, ours = int(found[1]), found[2] == "k.cu"
            continue
        if ours:
            lines.setdefault(number, []).append(line)
        number += 1
    return lines


@pytest.mark.parametrize("watch", [False, True])
@pytest.mark.parametrize("path", KERNELS, ids=lambda path: path.name)
def test_lines_keep_their_numbers_wherever_a_tracepoint_stands(path, watch):
    source = cuda_source.parse(path.read_bytes(), "k.cu")
    lines = {s.line for f in source.functions if f.device for s in cuda_source.statements(f)}
    assert lines
    points = []
    for line in sorted(lines):
        try:
            tracepoints.statement_at(source, line)
        except UsageError:
            continue
        points.append(Tracepoint(line, ("1",)))
    assert len(points) > 0.9 * len(lines)
    copy = instrument(source, points, watch=watch)
    compiled = as_compiled(copy.text)
    for number, line in enumerate(source.lines, 1):
        assert number in compiled, number
        if not watch:
            assert re.sub(r"[\s{}]", "", "".join(compiled[number])) == re.sub(r"[\s{}]", "", line)
    assert len(cuda_source.parse(copy.text).faults) <= len(source.faults)


def test_the_copy_without_tracepoints_is_the_source_and_a_header():
    text = TEXT.partition("int main")[0]
    head, _, rest = instrument(source_of(text)).text.decode().partition('#line 1 "k.cu"\n')
    assert head == '#include "device_log.cuh"\n'
    assert rest == text


def test_other_kernels_are_left_out_and_a_line_in_one_is_refused(tmp_path):
    text = TEXT + 'extern "C" __global__ void other(float* y) {\n  y[0] = not_there(1);\n}\n'
    arrays = {"x": np.zeros(8, np.float32), "y": np.zeros(4, np.float32)}
    assert (
        run(tmp_path, instrument(source_of(text), entry=entry_of(source_of(text), "k")), arrays, np.int32(8)).ended
        == "finished"
    )
    with pytest.raises(BuildFailed, match="not_there"):
        run(tmp_path, instrument(source_of(text)), arrays, np.int32(8))
    with pytest.raises(UsageError, match=r"k\.cu:24 is in the kernel other, and k is run"):
        instrument(source_of(text), [Tracepoint(24, ("1",))], entry=entry_of(source_of(text), "k"))


def test_what_runs_on_the_host_is_blanked():
    text = instrument(source_of(TEXT)).text.decode()
    assert "<<<" not in text
    assert "main" not in text
    assert text.count("\n") == TEXT.count("\n") + 2


def test_host_code_goes_and_what_the_gpu_calls_stays():
    text = (
        "constexpr int half_of(int n) { return n / 2; }\nint quarter(int n) { return half_of(n) / 2; }\n"
        "struct Room { float* y; Room() { cudaMalloc(&y, 4); } __device__ float at(int i) { return y[i]; } };\n"
        "void reference(float* y) { y[0] = quarter(8); }\nvoid launch(float* y);\nint run() { reference(0); return 1; }\n"
        "namespace a { template <int N> __global__ void k(float* y) { y[0] = half_of(N); } }\n"
        "template __global__ void a::k<8>(float*);\n"
    )
    source = source_of(text)
    made = instrument(source, entry=entry_of(source, "k<4>")).text.decode()
    assert "int half_of" in made
    assert "__device__ float at" in made
    assert not any(word in made for word in ("cudaMalloc", "quarter(", "reference(", "run(", "a::k<8>"))
    assert made.endswith("#ifndef PROBE_EMULATION\ntemplate __global__ decltype(a::k<4>) a::k<4>;\n#endif\n")


def test_a_kernel_as_it_is_written_elsewhere(tmp_path):
    """A template in a namespace, a lambda, a macro with a body, structured bindings, a case with a block."""
    source = source_of("""\
#define EACH(i, n) for (int i = threadIdx.x; i < (n); i += blockDim.x)
#define TWICE for (int again = 0; again < 2; ++again)
namespace acme {
struct Pair { float a, b; };
template <int S> __device__ Pair both(float v) { return {v, v * S}; }
template <typename T, int S> __global__ void k(const T* x, T* y, int n) {
  EACH(i, n) {
    auto [a, b] = both<S>(x[i]);
    auto sum = [&](float more) {
      return a + b + more;
    };
    switch (i) {
      case 1: {
        y[i] = sum(1.f);
        break;
      }
      default: TWICE y[i] += a;
    }
  }
}
}  // namespace acme
""")
    points = [
        parse_print(line, said)
        for line, said in ((7, "n"), (8, "i"), (9, "both<S>(a).b, a"), (10, "more"), (13, "b"), (17, "y[i]"))
    ]
    entry = entry_of(source, "k<float, 3>")
    x, y = np.arange(4, dtype=np.float32), np.zeros(4, np.float32)
    done = run(
        tmp_path, instrument(source, points, entry=entry), {"x": x, "y": y}, np.int32(4), block=2, entry=entry.name
    )
    assert done.arrays["y"].tolist() == [0, 5, 4, 6]
    rows = [(row["line"], row["tag"], row["value"]) for row in done.recorded.rows() if row["thread"][0] == 1]
    assert rows == [
        (7, "n", 4), (8, "i", 1), (9, "both<S>(a).b", 3), (9, "a", 1), (13, "b", 3), (10, "more", 1),
        (8, "i", 3), (9, "both<S>(a).b", 9), (9, "a", 3), (17, "y[i]", 0),
    ]  # fmt: skip


# What stands in files of plugins, of CUTLASS, of courses: launchers, macros for specifiers, loops and statements, branches
# of the preprocessor that open the same brace, attributes, comments before code. Each line says how often it is logged.
ELSEWHERE = """\
#include <vector>
#define FN __device__ __forceinline__
#define MY_PRAGMA_UNROLL _Pragma("unroll")
#define EACH(i, n) for (int i = threadIdx.x; i < (n); i += blockDim.x)
#define UNLESS(c) if (!(c))
#define LOAD(to, from) float to = (from);
#define WIDE 1
constexpr float most = 6.f;
template <typename T> __global__ void k(const T* x, T* y, int n);
template <typename T>
void launch(const std::vector<T>& x, T* y) {
  k<T><<<1, 4>>>(x.data(), y, x.size());
}
FN float clip(float v) { return v > most ? most : v; }  // 8
template <typename T>
OTHER_HOST_DEVICE T twice(T v) {  // 8
  T w = v;  // 8
  return w + w;  // 8
}
__device__ constexpr int half_of(int n) { return n / 2; }
template <typename T> __global__ void k(const T* x, T* y, int n) {  // 4
  __align__(16) float rows[2];  // 4
  EACH(i, n) {  // 4
    LOAD(a, x[i])  // 8
    LOAD(b, twice(a));  // 8
    UNLESS(a > 1)  // 8
      b += 1;  // 2
    else  // 0
      b -= 1;  // 6
    if (i > 3) [[likely]] b += 2;  // 8
#if WIDE
    for (int j = 0; j < 2; ++j) {  // 8
#else
    for (int j = 0; j < 4; ++j) {  // 0
#endif
      rows[j] = b;  // 16
    }  // 16
    MY_PRAGMA_UNROLL  // 8
    for (int j = 0; j < 2; ++j)  // 8
      /* one more */ rows[j] += j;  // 16
    if (b < 0)  // 8
      goto out;  // 0
    y[i] = clip(rows[1]);  // 8
  out:;  // 8
  }  // 8
  static_assert(half_of(4) == 2);  // 4
}  // 4
"""


def elsewhere() -> tuple[cuda_source.Source, dict[int, int]]:
    counts = {number: int(row.rpartition("// ")[2]) for number, row in enumerate(ELSEWHERE.split("\n"), 1)
              if re.search(r"// \d+$", row)}  # fmt: skip
    return source_of(ELSEWHERE), counts


def test_every_line_of_a_source_as_it_is_written_elsewhere_is_logged_or_refused(tmp_path):
    source, counts = elsewhere()
    entry, points = entry_of(source, "k<float>"), []
    for line in range(1, len(source.lines) + 1):
        try:
            tracepoints.statement_at(source, line)
            points.append(Tracepoint(line, ("most",)))
        except UsageError:
            assert not counts.get(line)
    assert ELSEWHERE.split("\n").index("    else  // 0") + 1 not in {point.line for point in points}
    arrays = {"x": np.arange(8, dtype=np.float32), "y": np.zeros(8, np.float32)}
    launched = {"entry": entry.name, "defines": (("OTHER_HOST_DEVICE", ""),)}
    plain = run(tmp_path, instrument(source, entry=entry), arrays, np.int32(8), **launched)
    assert plain.arrays["y"].tolist() == [2, 4, 4, 6, 6, 6, 6, 6]
    done = run(tmp_path, instrument(source, points, entry=entry), arrays, np.int32(8), **launched)
    assert done.arrays["y"].tolist() == plain.arrays["y"].tolist()
    told = Counter(row["line"] for row in done.recorded.rows())
    assert told == {line: count for line, count in counts.items() if count}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
@pytest.mark.parametrize("watch", [False, True])
def test_the_compiler_of_the_gpu_takes_it_too(tmp_path, watch):
    """Constants of the host among what is logged: they have no address there."""
    source, counts = elsewhere()
    points = [Tracepoint(line, ("most", "threadIdx")) for line, count in counts.items() if count]
    copy = instrument(source, () if watch else points, watch=watch, entry=entry_of(source, "k<float>"))
    (tmp_path / "k.cu").write_bytes(copy.text)
    command = ["nvcc", "-cubin", "-arch=sm_90", "-std=c++17", "-DPROBE_ON=1", "-DOTHER_HOST_DEVICE=__device__", "-I",
               ROOT / "kernels" / "cuda", "-o", tmp_path / "k.cubin", tmp_path / "k.cu"]  # fmt: skip
    made = subprocess.run(command, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    assert copy.watched == (6 if watch else 0)


def test_values_are_those_just_before_the_statement(tmp_path):
    x = np.arange(8, dtype=np.float32)
    points = [parse_print(line, "sum") for line in (9, 10, 11, 12, 13, 15, 18, 20, 21)]
    done = run(tmp_path, instrument(source_of(TEXT), points), {"x": x, "y": np.zeros(4, np.float32)}, np.int32(8))
    assert done.ended == "finished"
    told = {}
    for row in done.recorded.rows("k"):
        told.setdefault(row["thread"][0], []).append((row["line"], row["value"]))
    assert told == {
        0: [(9, 0), (9, 0), (10, 4), (11, 4), (13, 4), (15, 4), (15, 5), (20, 6), (21, 6)],
        1: [(9, 0), (9, 1), (10, 6), (13, 12), (15, 12), (15, 13), (20, 14), (21, 14)],
        2: [(9, 0), (9, 2), (10, 8), (11, 8), (12, 8), (13, 4), (15, 4), (15, 5), (20, 6), (21, 6)],
        3: [(9, 0), (9, 3), (10, 10), (11, 10), (13, 10), (15, 10), (15, 11), (18, 12), (20, -1), (21, -1)],
    }
    assert done.arrays["y"].tolist() == [6, 14, 6, -1]


def test_only_where_the_condition_holds_and_only_in_chosen_threads(tmp_path):
    point = parse_print(20, "i, sum", "sum > 5.f")
    arrays = {"x": np.arange(8, dtype=np.float32), "y": np.zeros(4, np.float32)}
    copy = instrument(source_of(TEXT), [point])
    everywhere = run(tmp_path, copy, arrays, np.int32(8)).recorded.rows()
    assert [row["value"] for row in everywhere if row["tag"] == "i"] == [0, 1, 2]
    chosen = run(tmp_path, copy, arrays, np.int32(8), selection=Selection.of(thread="1-3,0,0")).recorded.rows()
    assert [row["value"] for row in chosen if row["tag"] == "i"] == [1, 2]


@pytest.mark.parametrize(
    "line, says",
    [
        (0, "no line 0"), (99, "no line 99: it has 22"), (1, "macro or a directive"), (3, "in a comment"), (7, "is blank"),
        (22, "runs on the host"),
    ],
)  # fmt: skip
def test_a_line_without_a_statement_is_refused_with_the_nearest_that_has_one(line, says):
    with pytest.raises(UsageError, match=says) as caught:
        instrument(source_of(TEXT), [Tracepoint(line, ("i",))])
    nearest = int(re.match(r"--at (\d+)", caught.value.hint)[1])
    instrument(source_of(TEXT), [Tracepoint(nearest, ("i",))])


DOUBTFUL = """\
__device__ constexpr int half_of(int n) { return n / 2; }
__global__ void k(
    float* y) {
  int i = threadIdx.x;
  SHARED(float, tile);
  y[i] = half_of(i);
#ifdef NEVER
  if (i > 2) {
    y[i] = 4;
#else
  if (i > 3) {
#endif
    y[i] = 5;
  }
}
"""


@pytest.mark.parametrize(
    "line, says",
    [
        (1, "is in half_of(), which is constexpr"), (2, "holds no statement"), (9, "is left out by an #if"),
        (5, "is where the parser lost its way, at 'SHARED(float, tile)'"),
    ],
)  # fmt: skip
def test_where_the_tree_may_be_wrong_nothing_is_logged(line, says):
    with pytest.raises(UsageError, match=re.escape(says)) as caught:
        tracepoints.statement_at(source_of(DOUBTFUL), line)
    tracepoints.statement_at(source_of(DOUBTFUL), int(re.match(r"--at (\d+)", caught.value.hint)[1]))


@pytest.mark.parametrize("text", ["", "a,", "a b", "x[i", ");", "a; b", "a\nb", ",a"])
def test_what_is_no_list_of_expressions_is_refused(text):
    with pytest.raises(UsageError, match="expected expressions"):
        parse_print(3, text)


@pytest.mark.parametrize("text", ["i++", "a, b = 2", "f(--n)"])
def test_what_would_change_the_kernel_is_refused(text):
    with pytest.raises(UsageError, match="would change what the kernel computes"):
        parse_print(3, text)


def test_expressions_are_split_where_cpp_does():
    point = parse_print(3, "f<a, b>(x, y), x[i, j], (p, q), make(1)")
    assert point.expressions == ("f<a, b>(x, y)", "x[i, j]", "(p, q)", "make(1)")


@pytest.mark.parametrize(
    "message, says",
    [
        ("--at 9:4:17: error: 'nope' was not declared", "--print: does not compile: 'nope' was not declared\n  nope + 1\n  ^"),
        ('  --at 9(4): error: identifier "nope" is undefined', '--print: does not compile: identifier "nope" is undefined\n  nope + 1'),
        ("--at 9:5:19: error: bad", "--print: does not compile: bad\n  x[j]\n    ^"),
        ("--at 9:2:1: error: bad", "--if: does not compile: bad\n  j > 1\n  ^"),
    ],
)  # fmt: skip
def test_what_the_compiler_says_of_a_users_text_stands_over_that_text(message, says):
    point = Tracepoint(9, ("nope + 1", "x[j]"), "j > 1")
    told = explain(BuildFailed(f"compiling k.cu failed:\n{message}\n"), [point])
    assert isinstance(told, UsageError)
    assert says in str(told)


def test_another_compile_error_is_left_as_it_is():
    error = BuildFailed("k.cu:3:1: error: expected ';'")
    assert explain(error, [Tracepoint(9, ("a",))]) is error


def test_the_emulations_compiler_is_understood(tmp_path):
    point = Tracepoint(9, ("sum", "nope[3]"))
    with pytest.raises(BuildFailed) as caught:
        run(tmp_path, instrument(source_of(TEXT), [point]), {"x": np.zeros(8, np.float32)})
    assert "nope[3]\n  ^" in str(explain(caught.value, [point]))


WATCHED = """\
#include <cuda_fp16.h>
struct Pair { float a, b; };
extern "C" __global__ void k(const float* x, float* y) {
  const int i = threadIdx.x;
  float v = x[i] * 2.f, w = 1.f;
  float acc[2] = {0.f, 0.f};
  Pair pair = {v, w};
  v = v / (v - 6.f);
  v *= 2.f;
  int at = 0;
  y[i + at++] = i == 3 ? x[1000000 * (i - 3)] : v;
  const __half narrow = __float2half(x[i] * 30000.f);
  if (i == 2) w = logf(-x[i]);
  else w += pair.a;
  y[i] += w + acc[1] + at + __half2float(narrow);
}
"""


def test_a_watch_changes_nothing_but_tells_the_first_of_each_assignment(tmp_path):
    arrays = {"x": np.array([1, 2, 3, 4], np.float32), "y": np.zeros(4, np.float32)}
    plain = run(tmp_path, instrument(source_of(WATCHED)), arrays)
    watched = run(tmp_path, instrument(source_of(WATCHED), watch=True), arrays)
    np.testing.assert_array_equal(plain.arrays["y"], watched.arrays["y"])
    rows = watched.recorded.rows()
    assert all(row["line"] for row in rows)
    first = [(row["line"], row["thread"][0], row["tag"], str(row["value"])) for row in rows]
    assert first[0] == (8, 2, "watch-nan: v", "inf")
    by_tag = {(row["line"], row["tag"]): row for row in rows}
    assert by_tag[8, "watch-nan: v"]["value"] == np.inf
    assert by_tag[8, "watch-nan: v <- v"]["value"] == 6.0  # what it was before
    assert by_tag[9, "watch-nan: v <- v"]["value"] == np.inf
    assert np.isnan(by_tag[13, "watch-nan: w"]["value"])
    assert by_tag[13, "watch-nan: w <- x[i]"]["value"] == 3.0
    assert by_tag[12, "watch-nan: narrow"]["type"] == "float16"
    assert {row["line"] for row in rows} == {8, 9, 11, 12, 13, 15}


def test_a_kernel_without_nan_is_told_nothing(tmp_path):
    arrays = {"x": np.array([0.1, 0.2, 0.3, 0.4], np.float32), "y": np.zeros(4, np.float32)}
    text = WATCHED.replace("logf(-x[i])", "logf(x[i])")
    copy = instrument(source_of(text), watch=True)
    assert copy.watched >= 7
    assert len(run(tmp_path, copy, arrays).recorded) == 0


def test_relative_includes_are_found_from_where_the_copy_lies(tmp_path):
    (tmp_path / "values.cuh").write_text("__device__ const float seven = 7.f;\n")
    text = '#include "values.cuh"\nextern "C" __global__ void k(float* y) {\n  y[threadIdx.x] = seven;\n}\n'
    copy = instrument(source_of(text), [parse_print(3, "seven")], folder=tmp_path)
    done = run(tmp_path, copy, {"y": np.zeros(4, np.float32)})
    assert [row["value"] for row in done.recorded.rows()] == [7.0] * 4
