"""TensorRT engines on a real GPU, of whichever version is installed: outputs, times, layers, kernels, sweeps, the worker."""

from __future__ import annotations

import contextlib
import importlib.util
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from harness import engine
from harness.bert import model as bert
from harness.engine import BuildOptions, RunOptions
from harness.engines import document as engine_document
from harness.engines import measuring
from harness.engines import sweep as engine_sweep
from harness.engines.api import read
from harness.engines.document import Asked
from harness.engines.measuring import Schedule
from harness.errors import UsageError
from harness.models.model import load
from harness.optional import load as load_library
from harness.record import Session
from probes.targets import measuring_models
from reports.readers import detect

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(importlib.util.find_spec("tensorrt") is None, reason="TensorRT is not installed"),
    pytest.mark.usefixtures("device"),
]
CONFIG = bert.BertConfig(256, 2, 4, 1024, vocab_size=1000, max_position=256)
PROFILE = dict.fromkeys(bert.INPUTS, ((1, 16), (4, 64), (8, 256)))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    return bert.save(bert.build_onnx(CONFIG, bert.random_weights(CONFIG)), folder / "encoder.onnx")


def sample(batch=4, sequence=64, seed=0):
    ids = np.random.default_rng(seed).integers(0, 1000, (batch, sequence))
    return {"input_ids": ids, "token_type_ids": np.zeros_like(ids), "attention_mask": np.ones_like(ids)}


def build(source, **values):
    return engine.build(source, BuildOptions(**{"backend": "trt", "opt_profiles": PROFILE, **values}))


@pytest.fixture(scope="module")
def built(encoder):
    return build(encoder, precision="fp16")


@pytest.fixture(scope="module")
def reference(encoder):
    pytest.importorskip("onnxruntime")
    with engine.build(encoder, BuildOptions(backend="ort-cpu")).runner() as runner:
        yield lambda feeds: runner.infer(feeds)[bert.OUTPUT]  # not returned: the runner must stay open


@contextlib.contextmanager
def told(runner):
    """The runner, entered; what TensorRT logged, and what is bound, stand beside whatever goes wrong in it."""
    with runner:
        try:
            yield runner
        except Exception as error:
            bound = {name: (slot.shape, slot.size) for name, slot in runner._slots.items()}
            error.add_note(f"bound (shape, bytes): {bound}")
            error.add_note("\n".join(["TensorRT's log:", *runner._log.errors]))
            raise


def error(got, want):
    return float(np.linalg.norm(got.astype(np.float64) - want) / np.linalg.norm(want))


@pytest.mark.parametrize("precision, bound", [("fp32", 1e-4), ("tf32", 5e-3), ("fp16", 2e-2)])
def test_every_precision_agrees_with_onnx_runtime(encoder, reference, precision, bound):
    made = build(encoder, precision=precision)
    with made.runner() as runner:
        for shape in ((4, 64), (1, 16), (8, 256), (3, 50)):
            feeds = sample(*shape)
            assert error(runner.infer(feeds)[bert.OUTPUT], reference(feeds)) < bound


def test_a_cuda_graph_computes_the_same(built):
    with built.runner() as plain, built.runner(RunOptions(cuda_graph=True)) as graph:
        for seed, shape in enumerate(((4, 64), (2, 32), (4, 64))):
            feeds = sample(*shape, seed)
            np.testing.assert_array_equal(plain.infer(feeds)[bert.OUTPUT], graph.infer(feeds)[bert.OUTPUT])


def test_a_shape_outside_the_opt_profile_is_refused_and_the_runner_goes_on(built):
    with built.runner() as runner:
        with pytest.raises(UsageError, match=r"9x64 lies outside the opt_profile: least 1x16, greatest 8x256"):
            runner.infer(sample(9, 64))
        assert runner.infer(sample())[bert.OUTPUT].shape == (4, 64, 256)


def test_phases_layers_and_kernels(built):
    with told(built.runner()) as runner:
        made = measuring.measure(runner, sample(), Schedule(10, 50))
        information = json.loads(runner.layer_information())
    for name in measuring.COLUMNS:
        assert (made.columns[name] > 0).all(), name
    assert made.layers
    assert sum(np.median(layer.times_ns) for layer in made.layers) < 10 * np.median(made.columns["compute_ns"])
    names = {layer["Name"] if isinstance(layer, dict) else layer for layer in information["Layers"]}
    timed = {layer.layer for layer in made.layers}
    assert timed & names, f"the profiler's names: {sorted(timed)[:5]}; the inspector's: {sorted(names)[:5]}"
    assert made.kernels, "the driver (12.3 or newer) names the kernels of a captured inference"


def test_what_was_measured_with_a_profiler_is_measured_again_without(built):
    """Before TensorRT 10 two execution contexts cannot share an opt_profile: one takes the other's place."""
    with told(built.runner(RunOptions(cuda_graph=True))) as runner:
        before = runner.infer(sample())[bert.OUTPUT]
        assert runner.layers(3)
        np.testing.assert_array_equal(runner.run()[bert.OUTPUT], before)
        assert runner.kernels()


def test_the_document_ties_layers_to_onnx_nodes(built, tmp_path):
    document = engine_document.measurement(Asked(built, sample(), Schedule(5, 20)))
    (tmp_path / "m.json").write_text(json.dumps(document))
    artifact = detect.read(tmp_path / "m.json")
    layers = artifact.tables["layers"]
    known = layers[layers["onnx_nodes"].map(len) > 0]
    assert known["total_ns"].sum() > 0.5 * layers["total_ns"].sum(), f"{layers.to_string()}\n{document['notes']}"
    assert artifact.summary["compute_ns"]["median"] > 0


def test_a_sweep_has_one_engine_and_finds_what_changes(encoder, built):
    declared = load(encoder).inputs
    wanted = engine_sweep.parse("input_ids:1=16..256:16")
    document = engine_document.sweep(Asked(built, sample(2, 16), Schedule(3, 10, layer_iterations=0)), wanted, declared)
    assert [point["size"] for point in document["points"]] == wanted.sizes
    assert document["steps_by"] in ("kernels", "tactics")
    assert all(point["compute_ns"]["median"] > 0 for point in document["points"])


def test_a_timing_cache_is_written_and_makes_the_second_build_faster(encoder, tmp_path):
    cache = tmp_path / "timing.cache"
    first = build(encoder, precision="fp16", timing_cache=cache)
    size = cache.stat().st_size
    second = build(encoder, precision="fp16", timing_cache=cache)
    assert size > 0
    assert second.facts["build_s"] < first.facts["build_s"]


def test_marked_outputs_and_layers_held_to_a_precision(encoder, reference):
    model = load(encoder)
    node = next(node for node in model.nodes if node.op_type == "Softmax")
    tensor = node.proto.output[0]
    made = build(encoder, precision="fp16", outputs=(tensor,), layer_precisions={node.key: "fp32"})
    with made.runner() as runner:
        outputs = runner.infer(sample())
    assert set(outputs) == {bert.OUTPUT, tensor}
    np.testing.assert_allclose(outputs[tensor].astype(np.float64).sum(-1), 1, atol=1e-2)
    assert error(outputs[bert.OUTPUT], reference(sample())) < 2e-2


def test_an_output_whose_shape_depends_on_the_data(tmp_path):
    nodes = [helper.make_node("NonZero", ["x"], ["y"], name="where")]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 5])],
                              [helper.make_tensor_value_info("y", TensorProto.INT64, [2, None])])  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    with told(build(tmp_path / "m.onnx", opt_profiles={}).runner()) as runner:
        for density in (0.5, 0.1, 0.9, 0):
            x = (np.random.default_rng(0).random((4, 5)) < density).astype(np.float32)
            np.testing.assert_array_equal(runner.infer({"x": x})["y"], np.stack(np.nonzero(x)))


def test_an_engine_survives_its_file_and_runs_in_the_worker(encoder, built, tmp_path):
    session = Session.create("profile", tmp_path / "session")
    np.savez(tmp_path / "i.npz", **sample())
    spec = measuring_models.spec_for(session, "build", encoder, options=BuildOptions(backend="trt", precision="fp16"),
                                     inputs=(tmp_path / "i.npz",), iterations=20)  # fmt: skip
    measuring_models.build(spec, session, timeout_s=300)
    assert spec.plan.is_file()
    done = measuring_models.run_stage(measuring_models.spec_for(session, "infer", encoder, options=spec.options,
                                      inputs=spec.inputs, iterations=20), session, lambda text: None, timeout_s=300)  # fmt: skip
    assert done.result["latency_ns"]["median"] > 0
    made = measuring_models.measure(spec, session, timeout_s=300)
    assert detect.read(made.artifact).kind == "probe-measurement"
    assert "parsing" not in (session.folder / "logs" / "infer.err").read_text()


def test_a_plan_that_is_cut_off_is_refused(built, tmp_path):
    (tmp_path / "m.plan").write_bytes(built.content[: len(built.content) // 2])
    with (
        pytest.raises(UsageError, match=r"m\.plan could not be deserialised"),
        engine.load(tmp_path / "m.plan").runner(),
    ):
        pass


def test_the_installed_version_is_known():
    api = read(load_library("tensorrt"))
    assert api.weak == (api.version < (11,))
    assert ("progress_monitor" in api.has) == (api.version >= (10,))
