"""`probe bisect` on models that people use, taken from their packages: natural faults, planted ones, repaired models."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from examples import faults
from examples import models as zoo
from harness.engines import building
from harness.models import model as models
from harness.models.runtime import Runner
from probes import cli

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("models")


def bisect(folder: Path, name: str, *words: str, inputs: str | None = None) -> dict:
    out = folder / f"{name}-{len(list(folder.iterdir()))}"
    cli.run(
        [
            "bisect",
            str(folder / f"{name}.onnx"),
            "--inputs",
            str(folder / f"{inputs or name}.npz"),
            *words,
            "--out",
            str(out),
        ]
    )
    return json.loads((out / "result.json").read_text()) | {"folder": out}


def builds(path: Path, feeds: dict[str, np.ndarray]) -> building.BuildResult:
    shapes = {name: array.shape for name, array in feeds.items()}
    return building.build(path, building.BuildOptions(), shapes=shapes, timeout_s=300, folder=path.parent / "build")


@pytest.mark.parametrize("name,culprits,before,after", [
    ("magika", ["LayerNorm_1/Sum_1", "LayerNorm_1/truediv_1"], 1.0, 1e-3),  # the sum of squares overflows
    ("ppocr-det", ["p2o.BatchNormalization.1"], 0.9, 0.01),  # a variance of 1e7 to 1e8 does
    ("silero-vad-16k", [], 1e-3, 1e-3),
])  # fmt: skip
def test_natural_faults(folder, name, culprits, before, after):
    """The error with everything lowered is above (or, without a culprit, below) `before`; in the end it is below `after`."""
    zoo.fetch(name, folder)
    result = bisect(folder, name)
    assert [c.rpartition("MagikaV2/")[2] for c in result["culprits"]] == culprits
    assert result["certified_minimal"]
    assert result["error_before"] > before if culprits else result["error_before"] < before
    assert result["error_after"] < after
    mixed = result["folder"] / result["model_out"]
    onnx.checker.check_model(str(mixed), full_check=True)
    feeds = dict(np.load(folder / f"{name}.npz"))
    model, written = models.load(folder / f"{name}.onnx"), models.load(mixed)
    Runner(written.proto, written.weights).run(feeds)
    assert mixed.stat().st_size < 0.6 * model.path.stat().st_size


@pytest.mark.trt_rtx
@pytest.mark.parametrize("name", ["magika", "ppocr-det"])
def test_the_mixed_model_builds_strongly_typed(folder, name):
    pytest.importorskip("tensorrt_rtx")
    zoo.fetch(name, folder)
    result = bisect(folder, name)
    built = builds(result["folder"] / result["model_out"], dict(np.load(folder / f"{name}.npz")))
    assert built.ok, built


@pytest.mark.parametrize("name,count", [("silero-vad-16k", 2), ("ppocr-rec", 3), ("minilm", 2)])
def test_planted_overflows_are_found_exactly(folder, name, count):
    zoo.fetch(name, folder)
    truth = faults.plant("overflow", folder / f"{name}.onnx", folder / f"{name}-bad.onnx", count=count)
    result = bisect(folder, f"{name}-bad", inputs=name)
    assert sorted(result["culprits"]) == sorted(truth.culprits)
    assert result["certified_minimal"]


def test_a_mask_of_minus_1e9_is_found(folder):
    zoo.fetch("minilm", folder)
    truth = faults.plant("mask", folder / "minilm.onnx", folder / "minilm-mask.onnx")
    result = bisect(folder, "minilm-mask", inputs="minilm")
    assert sorted(result["culprits"]) == sorted(truth.culprits)


def test_an_underflowing_epsilon_is_found(folder):
    zoo.fetch("silero-vad-16k", folder)
    truth = faults.plant("underflow", folder / "silero-vad-16k.onnx", folder / "silero-eps.onnx")
    result = bisect(folder, "silero-eps", inputs="silero-vad-16k")
    assert sorted(result["culprits"]) == sorted(truth.culprits)


@pytest.mark.trt_rtx
def test_two_unbuildable_nodes_are_both_found(folder):
    pytest.importorskip("tensorrt_rtx")
    zoo.fetch("silero-vad-openvino", folder)
    truth = faults.plant("unbuildable", folder / "silero-vad-openvino.onnx", folder / "unbuildable.onnx", count=2)
    result = bisect(folder, "unbuildable", "--fault", "build", "--backend", "trt-rtx", inputs="silero-vad-openvino")
    assert sorted(result["culprits"]) == sorted(truth.culprits)
    assert result["signatures"].keys() == set(result["culprits"])
    part = onnx.load(result["folder"] / result["model_out"])
    assert len(part.graph.node) == 1


def test_two_exports_of_silero_agree_and_other_weights_do_not(folder):
    for name in ("silero-vad-16k", "silero-vad-openvino", "silero-vad-half"):
        zoo.fetch(name, folder)
    good = folder / "silero-vad-16k.onnx"
    same = bisect(folder, "silero-vad-openvino", "--fault", "compare", "--good", str(good), inputs="silero-vad-16k")
    assert same["status"] == "nothing_to_find"
    other = bisect(folder, "silero-vad-half", "--fault", "compare", "--good", str(good), inputs="silero-vad-16k")
    assert other["culprits"]
    assert any("/encoder/0/reparam_conv" in note for note in other["notes"]), other["notes"]
