"""TensorRT engines: versions told apart, plans read, inference on a stand-in GPU; builds by TensorRT-RTX for real."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from onnx import TensorProto, helper

from fake_gpu import FakeGpu, compile_driver
from fake_trt import module, plan
from harness import engine
from harness.engine import BuildOptions, RunOptions
from harness.engines import measuring
from harness.engines import trt as engine_trt
from harness.engines import trt_run as engine_trt_run
from harness.engines.api import FEATURES, read
from harness.engines.layers import LayerFact, held
from harness.engines.log import failure
from harness.engines.measuring import Schedule
from harness.engines.options import build_key, from_json, to_json
from harness.engines.profiler import by_position, progress_monitor
from harness.engines.trt import header
from harness.engines.trt_run import TrtRunner
from harness.errors import BuildFailed, LaunchFailed, UsageError
from small_models import make_proto, planted_chain

RTX = any(importlib.util.find_spec(name) for name in ("tensorrt_rtx", "tensorrt_rtx_bindings"))
needs_rtx = pytest.mark.skipif(not RTX, reason="TensorRT-RTX is not installed: pip install 'probe-trt[trt-rtx]'")
F = TensorProto.FLOAT

# Versions

HAS = {  # as NVIDIA documents each version
    "8.6.1": {"explicit_batch", "fp16_flag", "int8_flag", "tf32_flag", "layer_precision", "calibrator", "algorithm_selector", "layer_metadata"},
    "10.3.0": {"explicit_batch", "strong_typing", "fp16_flag", "bf16_flag", "int8_flag", "tf32_flag", "layer_precision", "calibrator",
               "algorithm_selector", "layer_metadata", "progress_monitor", "debug_tensors", "plugin_v3"},
    "11.2.0": {"strong_typing", "tf32_flag", "layer_metadata", "progress_monitor", "debug_tensors", "debug_unfused", "build_route", "plugin_v3"},
    "1.7.1": {"strong_typing", "tf32_flag", "layer_metadata", "progress_monitor", "debug_tensors", "debug_unfused", "build_route", "plugin_v3",
              "compute_capability", "runtime_validity"},
}  # fmt: skip


@pytest.mark.parametrize("version", HAS)
def test_what_a_version_has_is_read_off_its_module(version):
    api = read(module(version))
    assert api.has == HAS[version]
    assert api.rtx == (version == "1.7.1")


@pytest.mark.trt_rtx
@needs_rtx
def test_the_real_rtx_module_has_what_the_table_says():
    from harness.optional import load

    api = read(load("tensorrt_rtx"))
    assert api.has == HAS["1.7.1"]
    assert api.rtx
    assert set(FEATURES) > api.has


@pytest.mark.parametrize(
    "version, typing, strong",
    [("8.6.1", "auto", False), ("8.6.1", "strong", False), ("10.3.0", "auto", False), ("10.3.0", "strong", True),
     ("10.13.2", "auto", True), ("10.13.2", "weak", False), ("11.2.0", "auto", True), ("11.2.0", "weak", True)],
)  # fmt: skip
def test_who_types_a_network(version, typing, strong):
    assert read(module(version)).strong(typing) is strong


# Plans and options


def test_a_plan_says_who_built_it():
    assert header(plan("8.6.1")) == ("trt", "8.6.1.0")
    assert header(plan("1.7.1")) == ("trt-rtx", "1.7.1.0")
    assert header(b"PK\x03\x04") is None
    assert header(b"ftrt") == ("trt", "")


def test_options_survive_json(tmp_path):
    options = BuildOptions(
        backend="trt", precision="fp16", opt_profiles={"x": ((1, 4), (2, 4), (8, 4))}, layer_precisions={"/a": "fp32"},
        outputs=("t",), calibration=(tmp_path / "a.npz",), flags=("DEBUG",), timing_cache=tmp_path / "c",
        memory_pools={"WORKSPACE": 1 << 30}, plugins=(tmp_path / "p.so",), tactic_sources=("CUBLAS",),
    )  # fmt: skip
    assert from_json(to_json(options)) == options
    assert from_json(to_json(BuildOptions())) == BuildOptions()
    with pytest.raises(UsageError, match="'turbo'"):
        from_json({"turbo": True})


@pytest.mark.parametrize(
    "values, said",
    [({"precision": "fp12"}, "'fp12'"), ({"typing": "dynamic"}, "'dynamic'"), ({"backend": "tvm"}, "'tvm'"),
     ({"opt_profiles": {"x": ((2, 4), (1, 4), (8, 4))}}, "least <= optimal <= greatest, got 2x4, 1x4, 8x4")],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused(values, said):
    with pytest.raises(UsageError, match=said):
        BuildOptions(**values)


def test_the_key_of_a_build_changes_with_what_matters_and_with_nothing_else(tmp_path):
    model = planted_chain(2, ())
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    facts = {"version": "10.3.0"}
    first = build_key(path, BuildOptions(), facts)
    assert build_key(path, BuildOptions(timing_cache=tmp_path / "cache"), facts) == first
    assert build_key(path, BuildOptions(precision="fp16"), facts) != first
    assert build_key(path, BuildOptions(), {"version": "10.4.0"}) != first
    path.write_bytes(planted_chain(3, ()).SerializeToString())
    assert build_key(path, BuildOptions(), facts) != first
    assert build_key(lambda trt, network: None, BuildOptions(), facts) is None


def test_the_key_covers_weights_that_lie_beside_the_model(tmp_path):
    import onnx

    model = make_proto(
        [helper.make_node("Mul", ["x", "w"], ["y"])], [("x", F, [4])], [("y", F)], {"w": np.ones(4, np.float32)}
    )
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    first = build_key(tmp_path / "m.onnx", BuildOptions(), {})
    (tmp_path / "w.bin").write_bytes(np.full(4, 2, np.float32).tobytes())
    assert build_key(tmp_path / "m.onnx", BuildOptions(), {}) != first


# What TensorRT says


@pytest.mark.parametrize(
    "said, kind, words, hint",
    [("3: getPluginCreator could not find plugin: CustomQKV version: 1", UsageError, "plugin CustomQKV version 1 is not registered", "--plugin"),
     ("INVALID_ARGUMENT: getPluginCreator could not find plugin ScatterND version 1", UsageError, "plugin ScatterND", "--plugin"),
     ("No importer registered for op: Foo", UsageError, "op Foo", "--plugin"),
     ("10: [optimizer.cpp] Could not find any implementation due to insufficient memory", BuildFailed, "out of memory", "workspace"),
     ("1: [cudaResources.cpp] Cuda Runtime (an illegal memory access was encountered)", BuildFailed, "context of this process is lost", "probe sanitize"),
     ("CUDA initialization failure with error: 35", UsageError, "driver is too old", "probe doctor"),
     ("4: x has wrong rank", BuildFailed, "4: x has wrong rank", None)],
)  # fmt: skip
def test_a_known_cause_becomes_the_message_and_its_hint(said, kind, words, hint):
    error = failure("the build", [said])
    assert type(error) is kind
    assert words in str(error)
    assert (hint is None) == (error.hint is None)
    assert hint is None or hint in str(error.hint)


def test_noise_of_a_builder_without_a_gpu_is_not_the_reason():
    noise = "CUDA driver version is insufficient for CUDA runtime version"
    assert "real reason" in str(failure("the build", [noise, "real reason"]))


def test_layers_are_told_apart_by_place_and_odd_runs_left_out():
    runs = [[("a", 1.0), ("b", 2.0), ("a", 3.0)], [], [("a", 2.0), ("b", 2.0), ("a", 5.0)], [("a", 9.0)]]
    layers = by_position(runs)
    assert [(one.layer, one.times_ns) for one in layers] == [("a", (1e6, 2e6)), ("b", (2e6, 2e6)), ("a", (3e6, 5e6))]
    assert by_position([]) == []


def test_an_exception_in_a_progress_callback_cancels_the_build_instead_of_ending_the_process():
    said = []

    def tell(text):
        said.append(text)
        if len(said) == 2:
            raise KeyboardInterrupt

    monitor = progress_monitor(module("10.3.0"), tell)
    monitor.phase_start("Timing", None, 3)
    assert monitor.step_complete("Timing", 0) is False
    assert monitor.step_complete("Timing", 1) is False
    assert isinstance(monitor.stopped, KeyboardInterrupt)
    assert said == ["building: Timing", "building: Timing, 1 of 3"]


# Inference on the stand-in GPU


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return compile_driver(tmp_path_factory.mktemp("driver"))


@pytest.fixture
def gpu(library, monkeypatch):
    made = FakeGpu(library)
    monkeypatch.setattr(engine_trt_run, "get", lambda ordinal: made.device)
    return made


def runner(gpu, monkeypatch, version="8.6.1", options=None, *, made_by=None, fails="", by_data=False):
    fake = module(version, gpu, fails=fails, by_data=by_data)
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    return TrtRunner(
        plan(version, made_by), "trt-rtx" if version == "1.7.1" else "trt", options or RunOptions(), "m.plan"
    )


X = np.arange(8, dtype=np.float32).reshape(2, 4)


@pytest.mark.parametrize("version", HAS)
@pytest.mark.parametrize("options", [RunOptions(), RunOptions(cuda_graph=True)], ids=["enqueued", "graph"])
def test_inference_gives_the_outputs_on_every_version(gpu, monkeypatch, version, options):
    with runner(gpu, monkeypatch, version, options) as one:
        assert [tensor.name for tensor in one.inputs] == ["x"]
        np.testing.assert_array_equal(one.infer({"x": X})["y"], 2 * X)
        np.testing.assert_array_equal(one.infer({"x": X[:1] + 5})["y"], 2 * (X[:1] + 5))
        larger = np.tile(X, (3, 1))
        np.testing.assert_array_equal(one.infer({"x": larger})["y"], 2 * larger)


def test_device_memory_is_given_back(gpu, monkeypatch):
    with runner(gpu, monkeypatch) as one:
        one.infer({"x": X})
        assert gpu.allocated > 0
    del one
    assert gpu.allocated == 0


@pytest.mark.parametrize(
    "feeds, said",
    [({}, "no array for input 'x'"), ({"x": X.astype(np.float64)}, "expected dtype float32, got float64"),
     ({"x": X[0]}, r"expected shape \?x4, got 4"),
     ({"x": np.zeros((9, 4), np.float32)}, "input 'x': shape 9x4 lies outside the opt_profile: least 1x4, greatest 8x4")],
)  # fmt: skip
def test_feeds_that_do_not_fit_are_refused(gpu, monkeypatch, feeds, said):
    with runner(gpu, monkeypatch) as one, pytest.raises(UsageError, match=said):
        one.bind(feeds)


def test_an_engine_of_another_version_is_told_with_both(gpu, monkeypatch):
    broken = runner(
        gpu,
        monkeypatch,
        made_by="8.5.2",
        fails="6: The engine plan file is not compatible with this version of TensorRT",
    )
    with pytest.raises(UsageError, match=r"built by version 8\.5\.2\.0, here is 8\.6\.1.*not compatible") as caught:
        broken.__enter__()
    assert "again" in caught.value.hint


def test_a_plan_of_the_other_tensorrt_and_a_file_that_is_none(gpu, monkeypatch):
    with pytest.raises(UsageError, match=r"built by tensorrt_rtx 1\.7\.1\.0; it does not run with tensorrt"):
        TrtRunner(plan("1.7.1"), "trt", RunOptions(), "m.plan").__enter__()
    with pytest.raises(UsageError, match="is no engine"):
        TrtRunner(b"\x08\x07", "trt", RunOptions(), "m.onnx").__enter__()


def test_a_plugin_that_an_engine_needs_and_nobody_registered_is_named(gpu, monkeypatch):
    with pytest.raises(UsageError, match="plugin CustomQKV version 1 is not registered"):
        runner(gpu, monkeypatch, fails="3: getPluginCreator could not find plugin: CustomQKV version: 1").__enter__()


def test_an_illegal_access_is_told_as_what_loses_the_context(gpu, monkeypatch):
    with runner(gpu, monkeypatch) as one:
        one.bind({"x": X})
        gpu.plant("cuCtxSynchronize", 700)
        with pytest.raises(LaunchFailed, match="ILLEGAL_ADDRESS") as caught:
            one.run()
        assert "sanitize" in caught.value.hint


def test_an_engine_that_cannot_be_captured_is_told_and_the_stream_is_usable_afterwards(gpu, monkeypatch):
    with runner(gpu, monkeypatch, options=RunOptions(cuda_graph=True)) as one:
        gpu.plant("cuLaunchKernel", 1, after=1)  # the first launch is not captured
        with pytest.raises(UsageError, match="cannot be captured in a CUDA graph"):
            one.bind({"x": X})
        np.testing.assert_array_equal(one.infer({"x": X})["y"], 2 * X)


@pytest.mark.parametrize("version", ["8.6.1", "10.3.0"])
@pytest.mark.parametrize("graph", [False, True])
def test_layers_are_timed_where_no_second_context_may_have_the_opt_profile(gpu, monkeypatch, version, graph):
    with runner(gpu, monkeypatch, version, options=RunOptions(cuda_graph=graph)) as one:
        one.bind({"x": X})
        assert [layer.layer for layer in one.layers(3)] == ["twice"]
        assert one._context.profiler is None, "what is measured afterwards knows no profiler"
        np.testing.assert_array_equal(one.run()["y"], 2 * X)
        np.testing.assert_array_equal(one.infer({"x": X[:1] + 1})["y"], 2 * X[:1] + 2)


def test_an_opt_profile_that_there_is_not_is_told(gpu, monkeypatch):
    with pytest.raises(UsageError, match="has no opt_profile 3; it has 1, counted from 0"):
        runner(gpu, monkeypatch, options=RunOptions(opt_profile=3)).__enter__()


@pytest.mark.parametrize("version", ["8.6.1", "10.3.0"])
def test_an_output_grows_and_shrinks_as_the_data_have_it(gpu, monkeypatch, version):
    with runner(gpu, monkeypatch, version, by_data=True) as one:
        for rows in (2, 1, 2):
            np.testing.assert_array_equal(one.infer({"x": X[:rows]})["y"], 2 * X[:rows])
        assert [layer.layer for layer in one.layers(2)] == ["twice"]


def test_no_memory_on_the_device_is_told(gpu, monkeypatch):
    with runner(gpu, monkeypatch) as one:
        gpu.plant("cuMemAlloc_v2", 2)
        with pytest.raises(LaunchFailed, match="OUT_OF_MEMORY") as caught:
            one.bind({"x": X})
        assert "memory" in caught.value.hint


def test_phases_layers_kernels_and_throughput_are_measured(gpu, monkeypatch):
    with runner(gpu, monkeypatch) as one:
        made = measuring.measure(one, {"x": X}, Schedule(warmup=2, iterations=5, layer_iterations=3))
        assert one.layer_information() is not None
    phases = [made.columns[name] for name in ("h2d_ns", "compute_ns", "d2h_ns")]
    assert all((phase >= 0).all() and len(phase) == 5 for phase in (*phases, made.columns["enqueue_ns"]))
    np.testing.assert_allclose(made.columns["latency_ns"], sum(phases))
    assert made.throughput_qps > 0
    assert [(layer.layer, layer.times_ns) for layer in made.layers] == [("twice", (250000.0,) * 3)]
    assert made.kernels == ("scale",)


def test_each_iteration_launches_the_engine_once(gpu, monkeypatch):
    with runner(gpu, monkeypatch) as one:
        before = gpu.launches
        measuring.measure(one, {"x": X}, Schedule(warmup=2, iterations=5, burst=7, layer_iterations=0))
        assert gpu.launches - before == 1 + 2 + 5 + 7  # one sets TensorRT up for the shape


# Builds, by stand-ins of the versions


@pytest.fixture
def trt(monkeypatch):
    """A function: build the chain with a version's stand-in; the module, with what was asked of it, and the engine."""

    def build(version, **values):
        fake = module(version)
        monkeypatch.setitem(sys.modules, fake.__name__, fake)
        monkeypatch.setattr(engine, "present", lambda: True)
        options = BuildOptions(**{"backend": "trt", "opt_profiles": PROFILE, **values})
        return fake, engine.build(planted_chain(3, ()), options)

    return build


@pytest.mark.parametrize(
    "version, precision, flags",
    [("8.6.1", "fp32", set()), ("8.6.1", "tf32", {"TF32"}), ("8.6.1", "fp16", {"TF32", "FP16"}),
     ("10.3.0", "bf16", {"TF32", "BF16"}), ("10.3.0", "fp16", {"TF32", "FP16"})],
)  # fmt: skip
def test_weak_typing_asks_by_builder_flags_and_leaves_the_model_alone(trt, version, precision, flags):
    fake, made = trt(version, precision=precision)
    assert fake.config.flags == flags
    assert fake.creation == {"EXPLICIT_BATCH"}
    assert fake.network.types == {F}
    assert (made.facts["typing"], made.facts["version"]) == ("weak", version)


@pytest.mark.parametrize("version", ["10.13.2", "11.2.0"])
@pytest.mark.parametrize(
    "precision, stored", [("fp16", TensorProto.FLOAT16), ("bf16", TensorProto.BFLOAT16), ("fp32", F)]
)
def test_strong_typing_puts_the_precision_into_the_model(trt, version, precision, stored):
    fake, made = trt(version, precision=precision)
    assert "STRONGLY_TYPED" in fake.creation
    assert fake.config.flags <= {"TF32"}
    assert fake.network.types == {stored}
    assert made.facts["typing"] == "strong"


def test_layers_are_held_to_a_precision_by_the_onnx_node_they_came_from(trt):
    fake, made = trt("8.6.1", precision="fp16", layer_precisions={"/layer.1/bias": "fp32"})
    asked = {layer.name: layer.asked for layer in fake.network.layers if layer.asked}
    both = {"precision": fake.DataType.FLOAT, "output": fake.DataType.FLOAT}
    assert asked == {"(Unnamed) /layer.1/bias": both, "/layer.1/bias": both}  # what it multiplies with is FP32 as well
    assert "OBEY_PRECISION_CONSTRAINTS" in fake.config.flags
    assert any("2 layers held" in note for note in made.notes)
    fake, _ = trt("8.6.1", precision="fp32", layer_precisions={"/layer.1/bias": "fp16"})
    assert [layer.name for layer in fake.network.layers if layer.asked] == ["/layer.1/bias"]
    with pytest.raises(UsageError, match="no layer or ONNX node 'nope'"):
        trt("8.6.1", layer_precisions={"nope": "fp16"})


def test_a_constant_goes_with_a_reader_in_fp32_whoever_else_reads_it():
    layers = [LayerFact("c", "CONSTANT", makes=("c",)), LayerFact("s", "SHUFFLE", reads=("c",), makes=("s",)),
              LayerFact("x", "SHUFFLE", reads=("in",), makes=("x",)), LayerFact("a", "ELEMENTWISE", reads=("x", "s"), makes=("a",)),
              LayerFact("b", "ELEMENTWISE", reads=("a", "s"), makes=("b",))]  # fmt: skip
    owners = [None, None, None, "/a", "/b"]
    assert held(layers, owners, {"/b": "fp32"}) == {0: "fp32", 1: "fp32", 4: "fp32"}
    assert held(layers, owners, {"/a": "fp16"}) == {3: "fp16"}
    assert held(layers, owners, {"/a": "fp16", "/b": "tf32"}) == {0: "fp32", 1: "fp32", 3: "fp16", 4: "tf32"}


def test_the_rest_of_the_options_reaches_the_builder(trt):
    fake, _ = trt("8.6.1", memory_pools={"WORKSPACE": 1 << 20}, optimisation_level=2, tactic_sources=("CUBLAS_LT", "CUDNN"),
                  outputs=("/layer.0/bias:out",), flags=("DEBUG",))  # fmt: skip
    assert fake.config.pools == {"WORKSPACE": 1 << 20}
    assert fake.config.builder_optimization_level == 2
    assert fake.config.tactic_sources == 0b110
    assert fake.config.profiling_verbosity == fake.ProfilingVerbosity.DETAILED
    assert fake.config.profiles == [PROFILE]
    assert "DEBUG" in fake.config.flags
    assert [tensor.name for tensor in fake.network.marked] == ["y", "/layer.0/bias:out"]


def test_progress_is_watched_where_the_version_can(trt):
    assert not hasattr(trt("8.6.1")[0].config, "progress_monitor")
    assert hasattr(trt("10.3.0")[0].config, "progress_monitor")
    fake, _ = trt("11.2.0", build_route="r1")
    assert fake.config.build_route == "r1"


@pytest.mark.parametrize(
    "version, values, said",
    [("8.6.1", {"precision": "bf16"}, "bf16: TensorRT 8.6.1 does not have it"), ("8.6.1", {"build_route": "r"}, "build route"),
     ("8.6.1", {"typing": "strong"}, "strong typing"), ("11.2.0", {"typing": "weak"}, "always strongly typed"),
     ("10.3.0", {"capability": "SM90"}, "compute capability")],
)  # fmt: skip
def test_what_a_version_does_not_have_is_refused(trt, version, values, said):
    with pytest.raises(UsageError, match=said):
        trt(version, **values)


def test_the_timing_cache_is_carried_from_build_to_build(trt, tmp_path):
    cache = tmp_path / "folder" / "timing.cache"
    trt("8.6.1", timing_cache=cache)
    assert cache.read_bytes() == b"+timed"
    fake, _ = trt("8.6.1", timing_cache=cache)
    assert fake.config.cache == b"+timed"
    assert cache.read_bytes() == b"+timed+timed"
    cache.write_bytes(b"foreign")
    with pytest.raises(BuildFailed, match=r"was not made by TensorRT 8\.6\.1"):
        trt("8.6.1", timing_cache=cache)


def test_a_build_that_fails_says_what_tensorrt_said(monkeypatch):
    fake = module("10.3.0")
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    monkeypatch.setattr(engine, "present", lambda: True)
    model = make_proto([helper.make_node("Relu", ["x"], ["y"], name="x")], [("x", F, [2, 8])], [("y", F, [2, 8])], {})

    def populate(trt, network):
        network.fill(model)
        network.layers[0].__dict__["name"] = "/broken"

    with pytest.raises(BuildFailed, match=r"TensorRT 10\.3\.0 could not build the engine: 10: .* node /broken"):
        engine.build(populate, BuildOptions(backend="trt"))


# Builds, by TensorRT-RTX


def rtx(source, **values):
    return engine.build(source, BuildOptions(backend="trt-rtx", **values))


PROFILE = {"x": ((1, 8), (2, 8), (4, 8))}


@pytest.mark.trt_rtx
@needs_rtx
@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "bf16"])
def test_rtx_builds_in_every_precision_without_a_gpu(precision):
    made = rtx(planted_chain(3, ()), precision=precision, opt_profiles=PROFILE)
    assert header(made.content)[0] == "trt-rtx"
    assert made.facts["typing"] == "strong"
    assert made.facts["engine_bytes"] == len(made.content) > 1000
    lowered = any("nodes" in note for note in made.notes)
    assert lowered == (precision in ("fp16", "bf16"))


@pytest.mark.trt_rtx
@needs_rtx
def test_int8_means_q_dq_nodes_from_the_samples(tmp_path):
    weights = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
    model = make_proto(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], [("x", F, ["b", 8])], [("y", F, ["b", 8])], {"w": weights}
    )
    np.savez(tmp_path / "s.npz", x=np.ones((2, 8), np.float32))
    made = rtx(model, precision="int8", opt_profiles=PROFILE, calibration=(tmp_path / "s.npz",))
    assert any("Q/DQ" in note for note in made.notes)
    with pytest.raises(UsageError, match="no samples to calibrate"):
        rtx(model, precision="int8", opt_profiles=PROFILE)


@pytest.mark.trt_rtx
@needs_rtx
def test_a_network_from_a_callable_is_built_and_its_arrays_kept():
    def populate(trt, network):
        x = network.add_input("x", trt.float32, (2, 4))
        weights = np.full((1, 4), 3, np.float32)
        constant = network.add_constant((1, 4), trt.Weights(weights))
        total = network.add_elementwise(x, constant.get_output(0), trt.ElementWiseOperation.SUM)
        total.get_output(0).name = "y"
        network.mark_output(total.get_output(0))
        return weights

    phases = []
    made = engine.build(populate, BuildOptions(backend="trt-rtx"), phases.append)
    assert made.facts["network_layers"] == 2
    assert any(text.startswith("building: ") for text in phases)


@pytest.mark.trt_rtx
@needs_rtx
def test_marked_outputs_layer_precisions_and_detail_are_taken():
    model = planted_chain(3, (1,))
    made = rtx(model, precision="fp16", layer_precisions={"/layer.1/up": "fp32", "/layer.1/down": "fp32"},
               outputs=("/layer.0/bias:out",), opt_profiles=PROFILE)  # fmt: skip
    assert any("6 of 8 nodes" in note for note in made.notes)


@pytest.mark.trt_rtx
@needs_rtx
@pytest.mark.parametrize(
    "values, kind, said",
    [({"opt_profiles": {}}, UsageError, r"input 'x' has dynamic dimensions, \?x8, and no opt_profile"),
     ({"opt_profiles": {"z": ((1, 8),) * 3}}, UsageError, "no input 'z'"),
     ({"opt_profiles": {"x": ((1, 9),) * 3}}, UsageError, "expected .x8, got 1x9"),
     ({"outputs": ("nope",)}, UsageError, "no tensor 'nope'"),
     ({"layer_precisions": {"nope": "fp16"}}, UsageError, "no node 'nope'"),
     ({"layer_precisions": {"/layer.0/bias": "bf16"}, "precision": "fp16"}, UsageError, "FP16 and BF16"),
     ({"flags": ("FP16",)}, UsageError, "BuilderFlag: expected one of"),
     ({"typing": "weak"}, UsageError, "always strongly typed"),
     ({"capability": "SM999"}, UsageError, "ComputeCapability"),
     ({"plugins": (Path("nope.so"),)}, UsageError, "nope.so does not exist")],
)  # fmt: skip
def test_options_that_do_not_fit_are_refused_before_the_build(values, kind, said):
    with pytest.raises(kind, match=said):
        rtx(planted_chain(2, ()), **{"opt_profiles": PROFILE, **values})


@pytest.mark.trt_rtx
@needs_rtx
def test_an_operator_without_importer_or_plugin_is_named_with_its_node():
    node = helper.make_node("CustomQKVToContextPluginDynamic", ["x"], ["y"], name="/attention", domain="")
    model = make_proto([node], [("x", F, [2, 4])], [("y", F, [2, 4])], {})
    with pytest.raises(UsageError, match=r"'/attention'.*CustomQKVToContextPluginDynamic") as caught:
        rtx(model)
    assert "--plugin" in caught.value.hint


@pytest.mark.trt_rtx
@needs_rtx
def test_a_saved_engine_is_known_again(tmp_path):
    made = rtx(planted_chain(2, ()), opt_profiles=PROFILE)
    loaded = engine.load(made.save(tmp_path / "m.plan"))
    assert (loaded.backend, loaded.content) == ("trt-rtx", made.content)
    with pytest.raises(UsageError, match="does not run with tensorrt"):
        engine.load(tmp_path / "m.plan", "trt")
    (tmp_path / "junk.plan").write_bytes(b"junk")
    with pytest.raises(UsageError, match="is no engine"):
        engine.load(tmp_path / "junk.plan")


def test_tactic_sources_are_named_or_taken_out_of_the_default_ones() -> None:
    trt = SimpleNamespace(TacticSource=SimpleNamespace(__members__={"CUBLAS": 0, "CUBLAS_LT": 1, "CUDNN": 2}))
    assert engine_trt._tactics(trt, 0b111, ("-CUDNN",)) == 0b011
    assert engine_trt._tactics(trt, 0b111, ("CUBLAS_LT",)) == 0b010


def test_the_environment_says_the_tactic_sources_where_nothing_else_does(monkeypatch) -> None:
    monkeypatch.setenv("PROBE_TACTIC_SOURCES", "-CUDNN,-CUBLAS")
    assert BuildOptions().tactic_sources == ("-CUDNN", "-CUBLAS")
    assert BuildOptions(tactic_sources=("CUBLAS",)).tactic_sources == ("CUBLAS",)
