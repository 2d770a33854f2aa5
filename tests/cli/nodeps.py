"""Run where only the base install is (the README's first command, `nox -s nodeps`): no pytest here."""

from __future__ import annotations

import importlib
import importlib.util
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import onnx
from onnx import TensorProto, helper

PACKAGES = ("kernels", "harness", "reports", "probes")
EXTRAS = ("tensorrt", "tensorrt_rtx", "cupy", "pycuda", "distributed", "nvtx", "pytest", "hypothesis")
PROBE = Path(sys.executable).with_name("probe")


def main() -> None:
    here = [name for name in EXTRAS if importlib.util.find_spec(name)]
    assert not here, f"this is no base install: {here} can be imported"
    names = import_everything()
    doctor = run("doctor", "--json", "-", expected=0)
    assert doctor["healthy"] is True
    onnx.save(overflowing(), "overflow.onnx")
    run("bisect", "overflow.onnx", "--out", "run", "--json", "-", expected=1)
    result = json.loads(Path("run/result.json").read_text(encoding="utf-8"))
    assert set(result["culprits"]) == {"up", "down"}, result
    assert result["certified_minimal"] is True, result
    print(f"{len(names)} modules imported; doctor and bisect work on the base install")


def import_everything() -> list[str]:
    names = [
        found.name
        for package in PACKAGES
        for found in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}.")
    ]
    for name in names:
        importlib.import_module(name)
    return names


def overflowing() -> onnx.ModelProto:
    """x * 3e5 * 1e-4: every value that is read or returned fits FP16, the one between the two nodes does not."""
    constants = [helper.make_tensor(name, TensorProto.FLOAT, [], [value]) for name, value in (("a", 3e5), ("b", 1e-4))]
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "a"], ["big"], "up"), helper.make_node("Mul", ["big", "b"], ["y"], "down")],
        "overflow",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1000])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1000])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def run(*arguments: str, expected: int) -> dict[str, object]:
    """Run `probe` and return the JSON on its standard output."""
    done = subprocess.run([PROBE, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == expected, f"{arguments}: exit {done.returncode}\n{done.stdout}{done.stderr}"
    document: dict[str, object] = json.loads(done.stdout)
    return document


if __name__ == "__main__":
    main()
