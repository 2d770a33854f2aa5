"""Engines on ONNX Runtime: chosen where there is no GPU, every precision, what does not fit, and the worker process."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from harness import engine
from harness.engine import BuildOptions, RunOptions
from harness.engines import ort_profile
from harness.errors import BuildFailed, LaunchFailed, ParseError, ToolFailed, ToolTimeout, UsageError
from harness.record import Session
from probes.targets import inferring, measuring_models
from probes.targets.inferring import Spec
from reports.readers import detect
from small_models import make_proto, planted_chain

F = TensorProto.FLOAT
X = np.random.default_rng(0).uniform(-1, 1, (2, 8)).astype(np.float32)


@pytest.fixture
def chain(tmp_path) -> Path:
    path = tmp_path / "chain.onnx"
    onnx.save(planted_chain(4, ()), path)
    return path


@pytest.fixture
def gpu(monkeypatch):
    """Say whether there is one."""

    def say(present: bool) -> None:
        monkeypatch.setattr(engine, "present", lambda: present)

    say(False)
    return say


# Which backend


def test_without_a_gpu_onnx_runtime_on_the_processor_is_chosen(gpu):
    assert engine.choose() == "ort-cpu"
    assert {one.name for one in engine.backends()} == {"trt", "trt-rtx", "ort-cpu", "ort-cuda"}


def test_with_a_gpu_and_tensorrt_that_is_chosen(gpu, monkeypatch):
    gpu(True)
    monkeypatch.setitem(sys.modules, "tensorrt", type(sys)("tensorrt"))
    assert engine.choose() == "trt"


def test_a_backend_that_cannot_run_here_says_why(gpu, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", type(sys)("tensorrt"))
    with pytest.raises(UsageError, match="trt does not run here: there is no GPU") as caught:
        engine.choose("trt")
    assert "ort-cpu" in caught.value.hint
    with pytest.raises(UsageError, match="expected one of"):
        engine.choose("tvm")


def test_a_library_that_is_not_installed_says_how_to_install_it(gpu, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(UsageError, match="tensorrt is not installed") as caught:
        engine.choose("trt", runs=False)
    assert "pip install" in caught.value.hint


# Builds and inference


def infer(source, **values):
    with engine.build(source, BuildOptions(backend="ort-cpu", **values)).runner() as runner:
        return runner.infer({"x": X})


def expected(layers=4):
    y = X
    for _ in range(layers):
        y = (y + np.float32(0.25)) * np.float32(0.9)
    return y


@pytest.mark.parametrize("precision, tolerance", [("fp32", 1e-6), ("tf32", 1e-6), ("fp16", 2e-3)])
def test_every_precision_computes_the_model(chain, precision, tolerance):
    np.testing.assert_allclose(infer(chain, precision=precision)["y"], expected(), rtol=tolerance, atol=tolerance)


def test_fp16_is_stored_in_the_model(chain):
    made = engine.build(chain, BuildOptions(backend="ort-cpu", precision="fp16"))
    types = {tensor.data_type for tensor in onnx.load_model_from_string(made.content).graph.initializer}
    assert types == {TensorProto.FLOAT16}
    assert any("FP32" in note for note in made.notes)


def test_a_layer_kept_in_fp32_cures_an_overflow():
    model = planted_chain(4, (2,))
    with np.errstate(all="ignore"):
        low = infer(model, precision="fp16")["y"]
        kept = infer(model, precision="fp16", layer_precisions={"/layer.2/up": "fp32", "/layer.2/down": "fp32"})["y"]
    assert not np.isfinite(low).all()
    np.testing.assert_allclose(kept, expected(), rtol=5e-3)


@pytest.mark.parametrize("opset", [11, 17])  # Q/DQ nodes have a scale for each channel from 13 on
def test_int8_quantises_what_tensor_cores_multiply(tmp_path, opset):
    weights = np.random.default_rng(1).standard_normal((8, 8)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="mul"),
        helper.make_node("Relu", ["h"], ["y"], name="relu"),
    ]
    model = make_proto(nodes, [("x", F, ["b", 8])], [("y", F, ["b", 8])], {"w": weights})
    model.opset_import[0].version = opset
    np.savez(tmp_path / "s.npz", x=X)
    made = infer(model, precision="int8", calibration=(tmp_path / "s.npz",))["y"]
    true = np.maximum(X @ weights, 0)
    error = np.linalg.norm(made - true) / np.linalg.norm(true)
    assert 1e-5 < error < 0.05  # eight bits: not exact, and not far


def test_marked_tensors_become_outputs(chain):
    outputs = infer(chain, outputs=("/layer.0/bias:out",))
    np.testing.assert_allclose(outputs["/layer.0/bias:out"], X + np.float32(0.25))
    assert set(outputs) == {"y", "/layer.0/bias:out"}


def test_what_onnx_runtime_does_not_have_is_refused(chain, tmp_path):
    with pytest.raises(UsageError, match="does not run in ONNX Runtime"):
        infer(lambda trt, network: None)
    with pytest.raises(UsageError, match="no tensor 'nope'"):
        infer(chain, outputs=("nope",))
    with pytest.raises(UsageError, match="plugin libraries are TensorRT's"):
        infer(chain, plugins=(tmp_path / "p.so",))
    with pytest.raises(UsageError, match="does not exist"):
        infer(tmp_path / "nope.onnx")
    with pytest.raises(UsageError, match="--cuda-graph"):
        engine.build(chain, BuildOptions(backend="ort-cpu")).runner(RunOptions(cuda_graph=True))


def test_an_operator_that_nobody_knows_is_named():
    model = make_proto(
        [helper.make_node("CustomGelu", ["x"], ["y"], name="gelu")], [("x", F, [2, 8])], [("y", F, [2, 8])], {}
    )
    with pytest.raises(UsageError, match="CustomGelu") as caught:
        infer(model)
    assert "--plugin" in caught.value.hint


def test_a_run_that_fails_is_a_failed_launch():
    model = make_proto([helper.make_node("Gather", ["t", "i"], ["y"], name="pick")], [("i", TensorProto.INT64, [1])],
                       [("y", F)], {"t": np.ones((3, 2), np.float32)})  # fmt: skip
    with (
        engine.build(model, BuildOptions(backend="ort-cpu")).runner() as runner,
        pytest.raises(LaunchFailed, match="pick"),
    ):
        runner.infer({"i": np.array([7])})


def test_the_profile_of_onnx_runtime_names_the_onnx_nodes(chain, tmp_path):
    written = ort_profile.profile(chain, {"x": X}, tmp_path / "p.json", iterations=3, optimise=False)
    artifact = detect.read(written)
    assert artifact.kind == "ort-profile"
    assert set(artifact.tables["layers"]["layer"]) == {f"/layer.{n}/{op}" for n in range(4) for op in ("bias", "gain")}
    assert len(artifact.tables["iterations"]) == 3


# The worker process


def spec(session, source, stage="measure", **values):
    small = {"warmup": 1, "iterations": 6, "options": BuildOptions(backend="ort-cpu")}
    return measuring_models.spec_for(session, stage, source, **{**small, **values})


@pytest.fixture
def session(tmp_path) -> Session:
    return Session.create("profile", tmp_path / "session")


def test_a_spec_survives_json(session, chain, tmp_path):
    one = spec(session, chain, shapes={"x": (2, 8)}, inputs=(tmp_path / "i.npz",), sweep="x:0=1..4", cuda_graph=True)
    assert Spec.from_json(json.loads(json.dumps(one.to_json()))) == one
    with pytest.raises(UsageError, match="'turbo'"):
        Spec.from_json({**one.to_json(), "turbo": 1})
    with pytest.raises(UsageError, match="expected one of build, infer, measure, ort"):
        replace(one, stage="guess")


def test_measuring_leaves_tables_like_trtexecs(session, chain):
    said = []
    made = measuring_models.measure(spec(session, chain, shapes={"x": (2, 8)}), session, said.append, timeout_s=60)
    artifact = detect.read(made.artifact)
    iterations = artifact.tables["iterations"]
    assert (artifact.kind, len(iterations)) == ("probe-measurement", 6)
    assert (iterations["latency_ns"] > 0).all()
    assert iterations["compute_ns"].equals(iterations["latency_ns"])
    assert iterations["h2d_ns"].isna().all()
    assert artifact.summary["backend"] == "ort-cpu"
    assert artifact.summary["throughput_qps"] > 0
    assert artifact.summary["shapes"] == "x 2x8"
    assert artifact.notes[0] == "in this process: wall time of each run"
    assert said
    assert str(chain.parent) not in made.artifact.read_text()


def test_a_sweep_is_one_engine_over_all_shapes(session, chain):
    made = measuring_models.measure(spec(session, chain, sweep="x:0=1..32:1", iterations=4), session, timeout_s=60)
    artifact = detect.read(made.artifact)
    table = artifact.tables["sweep"]
    assert table["size"].tolist() == list(range(1, 33))
    assert table["shapes"].iloc[[0, -1]].tolist() == ["x 1x8", "x 32x8"]
    assert (table["latency_median_ns"] > 0).all()
    assert (table["iterations"] == 4).all()
    assert artifact.summary["steps_by"] == "latency"
    log = (session.folder / "logs" / "measure.err").read_text()
    assert log.count("preparing the model") == 1


def test_node_times_of_onnx_runtime_come_as_it_wrote_them(session, chain):
    made = measuring_models.profile_ort(spec(session, chain), session, timeout_s=60)
    assert made.artifact == session.raw / "ort-profile.json"
    assert detect.read(made.artifact).summary["model_runs"] == 6


def test_build_and_infer_can_be_parted(session, chain):
    built = measuring_models.build(
        spec(session, chain, options=BuildOptions(backend="ort-cpu", precision="fp16")), session
    )
    assert built.result["facts"]["precision"] == "fp16"
    done = measuring_models.run_stage(spec(session, chain, "infer"), session, lambda text: None, timeout_s=60)
    assert done.artifact is None
    assert done.result["latency_ns"]["median"] > 0


@pytest.mark.parametrize(
    "values, kind, said",
    [({"source": Path("nope.onnx")}, UsageError, "nope.onnx does not exist"),
     ({"sweep": "z:0=1..2"}, UsageError, "no input 'z'"), ({"sweep": "x:1=1..2"}, UsageError, "fixed at 8"),
     ({"shapes": {"x": (2, 9)}}, UsageError, "expected shape .x8, got 2x9"),
     ({"options": BuildOptions(backend="ort-cpu", precision="bf16")}, BuildFailed, "no kernel for a node in this precision")],
)  # fmt: skip
def test_what_the_process_met_is_raised_as_what_it_was(session, chain, values, kind, said):
    with pytest.raises(kind, match=said) as caught:
        measuring_models.measure(replace(spec(session, chain), **values), session, timeout_s=60)
    assert type(caught.value) is kind


def test_failed_inference_has_an_exit_code_and_an_error_of_its_own(session, tmp_path):
    nodes = [helper.make_node("Add", ["i", "far"], ["at"]), helper.make_node("Gather", ["t", "at"], ["y"], name="pick")]
    model = make_proto(nodes, [("i", TensorProto.INT64, [1])], [("y", F)],
                       {"t": np.ones((3, 2), np.float32), "far": np.array([7])})  # fmt: skip
    onnx.save(model, tmp_path / "m.onnx")
    np.savez(tmp_path / "i.npz", i=np.array([7]))
    with pytest.raises(measuring_models.InferenceFailed, match="pick") as caught:
        measuring_models.measure(
            spec(session, tmp_path / "m.onnx", inputs=(tmp_path / "i.npz",)), session, timeout_s=60
        )
    assert caught.value.run.returncode == inferring.EXIT_LAUNCH
    assert caught.value.hint is None
    with pytest.raises(measuring_models.InferenceFailed) as caught:  # of made-up values, so they may be the reason
        measuring_models.measure(spec(session, tmp_path / "m.onnx", seed=1), session, timeout_s=60)
    assert caught.value.hint == inferring.MADE_UP


def test_a_process_that_dies_or_hangs_is_told_with_its_last_words(session, chain, monkeypatch, fake):
    monkeypatch.setattr(measuring_models, "command", lambda path: fake("say", "out", "last words", 3))
    with pytest.raises(ToolFailed, match=r"measure process died \(exit code 3\): last words"):
        measuring_models.measure(spec(session, chain), session, timeout_s=60)
    monkeypatch.setattr(
        measuring_models, "command", lambda path: fake("say", "", "OSError: [Errno 28] No space left on device", 1)
    )
    with pytest.raises(ToolFailed, match=r"died \(exit code 1\): the disk is full$") as caught:
        measuring_models.measure(spec(session, chain), session, timeout_s=60)
    assert "--out FOLDER" in str(caught.value.hint)
    monkeypatch.setattr(measuring_models, "command", lambda path: fake("hang"))
    with pytest.raises(ToolTimeout, match="stopped after"):
        measuring_models.measure(spec(session, chain), session, timeout_s=0.5)


def test_exit_codes_tell_the_ways_to_fail_apart(tmp_path, chain, session, capsys):
    assert inferring.main([]) == 2
    assert inferring.main([str(tmp_path / "nope.json")]) == 2
    (tmp_path / "torn.json").write_text('{"stage": ')
    assert inferring.main([str(tmp_path / "torn.json")]) == 2
    one = spec(session, chain, options=BuildOptions(backend="ort-cpu", precision="bf16"))
    assert inferring.main([str(one.write(tmp_path / "s.json"))]) == inferring.EXIT_BUILD
    said = json.loads(one.result.read_text())
    assert (said["ok"], said["error"], said["hint"]) == (False, "BuildFailed", "--precision fp32")
    assert "probe: error:" in capsys.readouterr().err
    assert inferring.main([str(spec(session, chain, "infer").write(tmp_path / "s.json"))]) == 0


# What a broken file says


@pytest.mark.parametrize(
    "content, said",
    [('{"probe": "measurement", "schema": 1, ', "no JSON"), ('{"probe": "measurement", "schema": 9}', "schema: expected 1"),
     ('{"probe": "measurement", "schema": 1}', "latency_ns: expected a list"),
     ('{"probe": "measurement", "schema": 1, "iterations": {"latency_ns": ["a"]}}', "numbers"),
     ('{"probe": "measurement", "schema": 1, "iterations": {"latency_ns": [1.0], "h2d_ns": [1, 2]}}', "list of 1 numbers"),
     ('{"probe": "measurement", "schema": 1, "iterations": {"latency_ns": [1.0]}, "layers": [3]}', "objects with a layer"),
     ('{"probe": "sweep", "schema": 1, "points": []}', "one a shape"),
     ('{"probe": "sweep", "schema": 1, "points": [{"size": null}]}', "sizes and times")],
)  # fmt: skip
def test_a_damaged_measurement_says_where(tmp_path, content, said):
    path = tmp_path / "m.json"
    path.write_text(content)
    with pytest.raises(ParseError, match=said):
        detect.read(path)


def test_layers_are_joined_with_what_the_inspector_says(tmp_path):
    information = {
        "Layers": [{"Name": "twice", "LayerType": "kgen", "TacticName": "scale", "Metadata": "[ONNX Layer: /twice]"}]
    }
    document = {
        "probe": "measurement", "schema": 1, "facts": {"backend": "trt"}, "iterations": {"latency_ns": [3.0], "compute_ns": [2.0]},
        "layers": [{"layer": "twice", "total_ns": 4.0, "mean_ns": 2.0, "median_ns": 2.0}],
        "layer_information": json.dumps(information),
    }  # fmt: skip
    (tmp_path / "m.json").write_text(json.dumps(document))
    artifact = detect.read(tmp_path / "m.json")
    row = artifact.tables["layers"].iloc[0]
    assert (row["layer_type"], row["tactic"], row["onnx_nodes"], row["time_pct"]) == ("kgen", "scale", ("/twice",), 100)
    assert artifact.summary["compute_ns"]["median"] == 2.0
