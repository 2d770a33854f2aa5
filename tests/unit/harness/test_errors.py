"""Every deliberate error says what to do next where it can, and has the exit code that the documentation promises."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness import errors
from harness.record import Command, ToolRun

RUN = ToolRun(Command(("nsys",)), 1, None, False, 0.1, Path("a.out"), Path("a.err"))


CASES = [
    (errors.ProbeError("x"), 125),
    (errors.UsageError("x"), 2),
    (errors.DependencyMissing("cupy", "to launch", "pip install cupy"), 2),
    (errors.ToolMissing("nsys", "to trace", "apt-get install nsys"), 2),
    (errors.ToolFailed("x", RUN), 125),
    (errors.ToolTimeout("x", RUN), 125),
    (errors.ArtifactMissing("x"), 125),
    (errors.ParseError("a.onnx", "graph", "a node", 0), 2),
    (errors.BuildFailed("x"), 125),
    (errors.LaunchFailed("cudaMalloc", "a.cu", 3, "out of memory"), 125),
    (errors.SearchStopped("x", {"a"}), 125),
    (errors.SearchStopped("x", {"a"}, interrupted=True), 130),
]


@pytest.mark.parametrize(("error", "code"), CASES, ids=lambda value: type(value).__name__)
def test_exit_codes(error, code):
    assert error.exit_code == code


def test_every_error_class_has_a_case():
    classes = {c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.ProbeError)}
    assert classes == {type(error) for error, _ in CASES}


def test_a_parse_error_says_file_field_expected_and_got():
    assert (
        str(errors.ParseError(Path("a.onnx"), "opset", "11 or newer", 9))
        == "a.onnx: opset: expected 11 or newer, got 9"
    )


def test_a_missing_dependency_says_what_for_why_and_how_to_get_it():
    error = errors.DependencyMissing("cupy", "to launch kernels", "pip install cupy-cuda13x", "libcuda.so.1 not found")
    assert str(error) == "cupy is needed to launch kernels, and cannot be imported (libcuda.so.1 not found)"
    assert error.hint == "pip install cupy-cuda13x"


def test_a_missing_tool_can_be_absent_or_unable_to_start():
    assert "is not on PATH" in str(errors.ToolMissing("nsys", "to trace", "install it"))
    assert "cannot be started" in str(errors.ToolMissing("nsys", "to trace", "chmod", "cannot be started: denied"))


def test_a_stopped_search_carries_its_best_answer():
    assert errors.SearchStopped("the budget is spent", {"MatMul_3"}).best == {"MatMul_3"}
