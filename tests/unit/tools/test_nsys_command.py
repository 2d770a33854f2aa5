"""The command lines of nsys: one set of wishes, spelt as each version knows them."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.record import Command
from harness.tools import nsys
from harness.tools.nsys import Options
from harness.tools.nvtx_range import NvtxRange
from harness.tools.tool import Tool
from places import DATA

REPORT = Path("/out/nsys")
TARGET = Command(("python", "-c", "pass", "--flag"), environment={"A": "b"}, cwd=Path("/src"))
COMMON = (
    "--trace",
    "--sample",
    "--capture-range",
    "--nvtx-capture",
    "--env-var",
    "--export",
    "--force-overwrite",
    "--output",
)
MODERN = Tool(
    "nsys",
    Path("/bin/nsys"),
    (2025, 3, 2),
    frozenset({*COMMON, "--cpuctxsw", "--cuda-graph-trace", "--capture-range-end"}),
)
OLD = Tool("nsys", Path("/bin/nsys"), (2021, 1, 3), frozenset({*COMMON, "--stop-on-range-end"}))


def words(options: Options = Options(), tool: Tool = MODERN) -> tuple[str, ...]:  # noqa: B008  frozen
    return nsys.command(tool, options, TARGET, REPORT).argv


def test_the_whole_line():
    assert words() == (
        "/bin/nsys", "profile", "--trace=cuda,nvtx,cublas,cudnn", "--sample=none", "--cpuctxsw=none", "--cuda-graph-trace=node",
        "--export=sqlite", "--force-overwrite=true", "--output=/out/nsys", "python", "-c", "pass", "--flag",
    )  # fmt: skip


def test_environment_and_folder_are_the_program_s_and_the_time_out_ours():
    made = nsys.command(MODERN, Options(timeout_s=7.0), TARGET, REPORT)
    assert (made.environment, made.cwd, made.timeout_s) == ({"A": "b"}, Path("/src"), 7.0)


@pytest.mark.parametrize(
    ("tool", "there", "absent"),
    [
        (MODERN, {"--capture-range-end=stop"}, {"--stop-on-range-end=true"}),
        (OLD, {"--stop-on-range-end=true"}, {"--capture-range-end=stop", "--cuda-graph-trace=node", "--cpuctxsw=none"}),
    ],
    ids=["2025", "2021"],
)
def test_a_captured_range_leaves_the_program_running(tool, there, absent):
    made = set(words(Options(capture=NvtxRange("measure", "probe")), tool))
    assert made >= {
        "--capture-range=nvtx",
        "--nvtx-capture=measure@probe",
        "--env-var=NSYS_NVTX_PROFILER_REGISTER_ONLY=0",
    }
    assert made >= there
    assert not made & absent


@pytest.mark.parametrize(("tool", "value"), [(MODERN, "process-tree"), (OLD, "cpu")])
def test_sampling_is_spelt_as_the_version_does(tool, value):
    assert f"--sample={value}" in words(Options(cpu=True), tool)


def test_graphs_as_a_whole_on_request():
    assert not any("graph" in word for word in words(Options(graph_nodes=False)))


def test_a_percent_sign_in_a_path_is_not_filled_in():
    made = nsys.command(MODERN, Options(), TARGET, Path("/50%p/nsys")).argv
    assert "--output=/50%%p/nsys" in made


def test_a_tool_without_a_help_text_is_taken_for_a_current_one():
    assert words(tool=Tool("nsys", Path("/bin/nsys"), (2025, 3))) == words()


@pytest.mark.parametrize(
    ("name", "kernels"),
    [("h100_trt86_myelin_2025.3", 485), ("cestwc__balinski-and-gomory-cuda__report1", 97),
     ("lighttransport__gemm__profile", 0), ("morluto__flameox__nsight-2025.5.2_cuda_graph", 5)],
)  # fmt: skip
def test_launches_are_counted_whole_graphs_too(tmp_path, name, kernels):
    import gzip

    path = tmp_path / "a b.sqlite"
    path.write_bytes(gzip.decompress((DATA / "nsys" / f"{name}.sqlite.gz").read_bytes()))
    assert nsys.launches(path) == kernels


def test_what_is_no_database_is_told_apart(tmp_path):
    (tmp_path / "x.sqlite").write_bytes(b"SQLite format 3\0" + b"rubbish" * 100)
    assert nsys.launches(tmp_path / "x.sqlite") is None
