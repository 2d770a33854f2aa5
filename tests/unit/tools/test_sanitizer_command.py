"""The command lines of compute-sanitizer, whose options were renamed twice, and what is made of how it ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import UsageError
from harness.record import Command, ToolRun
from harness.tools import sanitizer
from harness.tools.nvtx_range import NvtxRange
from harness.tools.sanitizer import FOUND_CODE, Options
from harness.tools.tool import Tool

TARGET = Command(("./app", "x"))
V2025 = Tool(
    "compute-sanitizer", Path("/bin/cs"), (2025, 3, 1), frozenset({"--kernel-name", "--launch-count", "--launch-skip"})
)
V2022 = Tool(
    "compute-sanitizer", Path("/bin/cs"), (2022, 4, 1), frozenset({"--kernel-regex", "--launch-count", "--launch-skip"})
)
V2021 = Tool("compute-sanitizer", Path("/bin/cs"), (2021, 1, 0), frozenset({"--filter"}))
V2026 = Tool("compute-sanitizer", Path("/bin/cs"), (2026, 4, 0), V2025.options | {"--nvtx-include", "--launch-timeout"})


def words(options: Options, tool: Tool = V2025) -> list[str]:
    return list(sanitizer.command(tool, options, TARGET, Path("/out/a.xml")).argv)


def test_the_whole_line():
    assert words(Options(leaks=True)) == [
        "/bin/cs", "--tool", "memcheck", "--target-processes", "all", "--error-exitcode", str(FOUND_CODE), "--print-limit", "100",
        "--leak-check", "full", "--report-api-errors", "explicit", "--xml", "--save", "/out/a.xml", "./app", "x",
    ]  # fmt: skip


@pytest.mark.parametrize(("tool", "option"), [(V2025, "--kernel-name"), (V2022, "--kernel-regex"), (V2021, "--filter")])
def test_the_filter_by_kernel_is_called_as_the_version_calls_it(tool, option):
    line = words(Options(kernels=("gemm", "norm")), tool)
    assert [line[at + 1] for at, word in enumerate(line) if word == option] == ["kns=gemm", "kns=norm"]


@pytest.mark.parametrize(("tool", "bare"), [(V2025, True), (V2022, False)])
def test_xml_takes_a_value_only_before_2023_3(tool, bare):
    line = words(Options(), tool)
    assert (line[line.index("--xml") + 1] == "yes") is not bare


def test_leaks_belong_to_memcheck():
    assert "--leak-check" not in words(Options("racecheck", leaks=True))


def test_ranges_only_where_the_tool_knows_them():
    sanitizer.check_ranges(V2026)
    line = words(Options(range=NvtxRange("measure", "probe")), V2026)
    assert [line[at + 1] for at, word in enumerate(line) if word == "--nvtx-include"] == [
        "probe@measure/",
        "probe@measure",
    ]
    with pytest.raises(UsageError, match=r"2026\.4 or newer, and 2025\.3\.1 is here"):
        sanitizer.check_ranges(V2025)


def test_a_program_may_be_slow_to_come_to_its_first_launch():
    line = words(Options(), V2026)  # by default it gives up after a minute, and checks nothing
    assert line[line.index("--launch-timeout") + 1] == "0"


def test_counting_launches():
    line = words(Options(launch_skip=2, launch_count=5))
    assert line[line.index("--launch-skip") + 1] == "2"
    assert line[line.index("--launch-count") + 1] == "5"
    assert "--launch-count" not in words(Options())
    assert [sanitizer.counts_launches(tool) for tool in (V2025, V2022, V2021)] == [True, True, False]


@pytest.mark.parametrize(
    ("code", "signal", "text", "expected"),
    [
        (0, None, "", 0),
        (FOUND_CODE, None, "", 0),  # the tool's own way of saying that it found something
        (FOUND_CODE, None, "========= Target application returned an error", FOUND_CODE),
        (3, None, "========= Target application returned an error", 3),
        (-11, 11, "", None),
    ],
)
def test_the_program_s_exit_code_is_not_the_tool_s(tmp_path, code, signal, text, expected):
    run = ToolRun(TARGET, code, signal, False, 1.0, tmp_path / "out", tmp_path / "err")
    assert sanitizer.program_code(run, text) == expected
