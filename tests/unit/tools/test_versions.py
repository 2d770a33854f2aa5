"""The command lines for tools whose help says nothing: only what each version is known to take."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.record import Command
from harness.tools import ncu, nsys, sanitizer, trtexec, versions
from harness.tools.nvtx_range import NvtxRange
from harness.tools.tool import Tool

PROGRAM, OUT, RANGE = Command(("./app",)), Path("/out/x"), NvtxRange("measure", "probe")
NSYS = {(2021, 1), (2021, 2), (2022, 1), (2023, 4), (2025, 6), (2026, 3)}
NCU = {(2021, 1), (2022, 4), (2024, 3), (2026, 2)}
SANITIZER = {(2021, 1), (2021, 2), (2022, 2), (2023, 3), (2025, 4), (2026, 4)}
TRTEXEC = {(8, 5), (8, 6, 1), (10, 16, 1), (11, 4)}


def given(tool: str, version: tuple[int, ...]) -> set[str]:
    """The options of everything that may be asked of a tool, its version known and no more."""
    here = Tool(tool, Path(f"/bin/{tool}"), version)
    made = {
        "nsys": lambda: nsys.command(here, nsys.Options(cpu=True, capture=RANGE), PROGRAM, OUT),
        "ncu": lambda: ncu.command(here, ncu.Options("full", "k", RANGE, 1, 1), PROGRAM, OUT),
        "compute-sanitizer": lambda: sanitizer.command(
            here, sanitizer.Options(leaks=True, kernels=("k",), launch_skip=1, launch_count=1), PROGRAM, OUT
        ),
        "trtexec": lambda: trtexec.command(
            here, trtexec.Options(Path("m.onnx"), precision="fp32", plugins=(Path("p.so"),)), OUT
        ),
    }[tool]()
    words = made.argv[: made.argv.index("./app")] if "./app" in made.argv else made.argv
    return {word.partition("=")[0] for word in words if word.startswith("--")}


MATRIX = [(tool, version) for tool, all_ in zip(("nsys", "ncu", "compute-sanitizer", "trtexec"), (NSYS, NCU, SANITIZER, TRTEXEC), strict=True)
          for version in sorted(all_)]  # fmt: skip


@pytest.mark.parametrize(
    ("tool", "version"), MATRIX, ids=[f"{tool} {'.'.join(map(str, version))}" for tool, version in MATRIX]
)
def test_no_version_is_given_what_it_does_not_have(tool, version):
    counts = tool == "compute-sanitizer" and version < (2021, 2)  # which no caller asks of it: `counts_launches`
    lacking = {option for option in given(tool, version) if not versions.has(tool, version, option)}
    assert lacking == ({"--launch-skip", "--launch-count"} if counts else set())


RENAMED = [
    ("nsys", (2021, 1), {"--stop-on-range-end"}, {"--capture-range-end", "--cuda-graph-trace", "--cpuctxsw"}),
    ("nsys", (2022, 1), {"--capture-range-end", "--cuda-graph-trace", "--cpuctxsw"}, {"--stop-on-range-end"}),
    ("compute-sanitizer", (2021, 1), {"--filter"}, {"--kernel-regex", "--kernel-name", "--ignore-getprocaddress-notfound"}),
    ("compute-sanitizer", (2021, 2), {"--kernel-regex"}, {"--filter", "--kernel-name"}),
    ("compute-sanitizer", (2023, 3), {"--kernel-name", "--ignore-getprocaddress-notfound"}, {"--kernel-regex"}),
    ("trtexec", (8, 5), {"--plugins", "--separateProfileRun"}, {"--staticPlugins", "--noCudaGraph"}),
    ("trtexec", (10, 16, 1), {"--staticPlugins", "--separateProfileRun"}, {"--plugins", "--noCudaGraph"}),
    ("trtexec", (11, 4), {"--noCudaGraph", "--noSpinWait", "--includeDataTransfers"}, {"--separateProfileRun", "--plugins"}),
    ("trtexec", (), {"--noCudaGraph"}, {"--separateProfileRun"}),  # unknown: a current one
]  # fmt: skip


@pytest.mark.parametrize(
    ("tool", "version", "there", "absent"), RENAMED, ids=[f"{tool} {version}" for tool, version, *_ in RENAMED]
)
def test_what_was_renamed_is_spelt_as_the_version_does(tool, version, there, absent):
    made = given(tool, version)
    assert there <= made
    assert not made & absent


def test_the_table_holds_nothing_that_is_never_given():
    for tool, options in versions.OPTIONS.items():
        ever = set().union(*(given(tool, version) for name, version in MATRIX if name == tool))
        asked_for = {
            "--bf16",
            "--fp16",
            "--int8",
            "--useCudaGraph",
            "--useSpinWait",
            "--noDataTransfers",
            "--nvtx-include",
        }
        assert options.keys() - ever <= asked_for, tool
