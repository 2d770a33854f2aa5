"""The command lines of ncu, and what is made of how it ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.record import Command, ToolRun
from harness.tools import ncu
from harness.tools.ncu import Options
from harness.tools.nvtx_range import NvtxRange
from harness.tools.tool import Tool

TOOL = Tool("ncu", Path("/bin/ncu"), (2025, 3, 1))
TARGET = Command(("./app", "--csv"))


def words(options: Options) -> list[str]:
    return list(ncu.command(TOOL, options, TARGET, Path("/out/ncu")).argv)


def after(option: str, line: list[str]) -> list[str]:
    return [line[at + 1] for at, word in enumerate(line) if word == option]


def test_the_whole_line():
    assert words(Options()) == [
        "/bin/ncu", "--target-processes", "all", "--nvtx", "--replay-mode", "kernel", "--clock-control", "none", "--csv", "--page",
        "raw", "--print-units", "base", "--log-file", "/out/ncu.csv", "--force-overwrite", "--export", "/out/ncu", "./app", "--csv",
    ]  # fmt: skip


def test_a_range_is_looked_for_as_pushed_and_as_started():
    assert after("--nvtx-include", words(Options(range=NvtxRange("measure", "probe")))) == [
        "probe@measure/",
        "probe@measure",
    ]


def test_kernels_match_a_regular_expression():
    assert after("--kernel-name", words(Options(kernel="gemm|conv"))) == ["regex:gemm|conv"]


def test_launches_are_skipped_and_counted():
    line = words(Options(launch_skip=3, launch_count=2))
    assert (after("--launch-skip", line), after("--launch-count", line)) == (["3"], ["2"])


@pytest.mark.parametrize("name", ncu.SETS)
def test_metric_sets(name):
    line = words(Options(metrics=name))
    assert after("--set", line) == (["full"] if name == "full" else [])
    assert after("--section", line) == (list(ncu.ROOFLINE) if name == "roofline" else [])


def test_the_clocks_are_left_as_found_unless_asked():
    assert after("--clock-control", words(Options())) == ["none"]
    assert after("--clock-control", words(Options(clock_control="base"))) == ["base"]


@pytest.mark.parametrize(
    ("code", "text", "expected"),
    [
        (0, "", 0),
        (1, "==ERROR== The application returned an error code (11).", 11),
        (9, "", None),
        (0, "error code (-6).", 0),
    ],
)
def test_the_program_s_exit_code_is_not_ncu_s(tmp_path, code, text, expected):
    run = ToolRun(TARGET, code, None, False, 1.0, tmp_path / "out", tmp_path / "err")
    assert ncu.program_code(run, text) == expected
