"""Our ONNX through TVM: its own process whatever becomes of it, the worker with a stand-in, and TVM itself if it is here."""

from __future__ import annotations

import contextlib
import json
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import onnxruntime
import pytest

import numpy_gpu
from harness import optional
from harness.bert import model as bert
from harness.bert import reference as bert_reference
from harness.bert import run as bert_run
from harness.bert import tvm_peer, tvm_worker
from harness.bert.calibration import Calibration
from harness.bert.model import BertConfig
from harness.bert.tvm_peer import TvmOptions
from harness.errors import BuildFailed, UsageError
from harness.record import Command
from probes.laddering import routes, rungs

CONFIG = BertConfig(64, 1, 2, 128, vocab_size=50, max_position=32)
WEIGHTS = bert.random_weights(CONFIG)
FEEDS = {"input_ids": np.arange(24).reshape(2, 12), "token_type_ids": np.zeros((2, 12), np.int64),
         "attention_mask": (np.arange(12)[None] < [[12], [7]]).astype(np.int64)}  # fmt: skip


@pytest.fixture
def model(tmp_path):
    return bert.save(bert.build_onnx(CONFIG, WEIGHTS, merged_qkv=True), tmp_path / "bert.onnx")


def error(got):
    expected, valid = bert_reference.forward(CONFIG, WEIGHTS, FEEDS, dtype=np.float64), FEEDS["attention_mask"] != 0
    return np.linalg.norm((got - expected)[valid]) / np.linalg.norm(expected[valid])


# The process, whatever becomes of it

TOLD = {"stage": "build", "ok": False, "version": "0.27.0", "notes": [], "memory_bytes": None}
START = f"""
import json, os, pathlib, sys, time
import numpy as np
folder = pathlib.Path(sys.argv[1])
told = {TOLD!r}
job = json.loads((folder / "job.json").read_text())
tell = lambda **news: (folder / "result.json").write_text(json.dumps(told | news))
tell()
"""
GOOD = """
np.save(folder / "output.npy", np.ones((2, 3, 4), np.float32))
tell(ok=True, stage="done", times_ns=[1.0, 2.0], build_s=3.0, notes=["TVM 0.27.0"])
"""


@pytest.fixture
def worker(monkeypatch, tmp_path):
    """Let a few lines of Python be the process."""

    def plant(lines):
        script = tmp_path / "worker.py"
        script.write_text(START + lines, encoding="utf-8")

        def command(folder, timeout_s):
            return Command((sys.executable, str(script), str(folder)), timeout_s)

        monkeypatch.setattr(tvm_peer, "_worker", command)

    return plant


def test_what_the_process_measured_is_read(worker, model, tmp_path):
    worker(GOOD)
    found = tvm_peer.measure(model, FEEDS, TvmOptions(), tmp_path / "tvm")
    assert (found.times_ns, found.build_s, found.notes) == ((1.0, 2.0), 3.0, ("TVM 0.27.0",))
    assert found.output.dtype == np.float64
    assert json.loads((tmp_path / "tvm" / "job.json").read_text())["model"] == "../bert.onnx", (
        "no folder of this machine"
    )


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ("os.kill(os.getpid(), 11)", "TVM 0.27.0 crashed at stage 'build': SIGSEGV"),
        ("time.sleep(60)", "TVM 0.27.0 was stopped after 2 s at stage 'build'"),
        ("tell(error='no such operator'); sys.exit(1)", "TVM 0.27.0 failed at stage 'build': no such operator"),
        ("sys.exit('out of memory')", "TVM 0.27.0 failed at stage 'build': out of memory"),
    ],
)
def test_an_end_without_a_result_is_a_failure_that_says_how_and_where(worker, model, tmp_path, lines, says):
    worker(lines)
    with pytest.raises(BuildFailed) as caught:
        tvm_peer.measure(model, FEEDS, TvmOptions("fp16"), tmp_path / "tvm", timeout_s=2 if "sleep" in lines else 60)
    assert str(caught.value) == says


def test_a_process_that_cannot_even_begin_is_a_failure(worker, model, tmp_path):
    worker("(folder / 'result.json').unlink(); sys.exit('no memory')")
    with pytest.raises(BuildFailed, match="TVM failed at stage 'load': no memory"):
        tvm_peer.measure(model, FEEDS, TvmOptions(), tmp_path / "tvm")


def test_a_crash_over_tensor_cores_is_tried_again_without_them(worker, model, tmp_path):
    worker(f"if job['tensor_cores']: os.kill(os.getpid(), 11)\n{GOOD}")
    found = tvm_peer.measure(model, FEEDS, TvmOptions("fp16", gpu=True), tmp_path / "tvm")
    assert found.notes == ("TVM 0.27.0", tvm_peer.PLAIN)
    with pytest.raises(BuildFailed, match="SIGSEGV"):  # FP32 has no tensor cores to leave out
        tvm_peer.measure(model, FEEDS, TvmOptions("fp32", gpu=True), tmp_path / "tvm")


def test_a_tvm_that_cannot_be_used_here_is_said_once(worker, model, tmp_path, monkeypatch):
    worker("tell(unusable='TVM 0.27.0 sees no GPU: libcudart.so.13'); sys.exit(2)")
    monkeypatch.setattr(optional, "present", lambda library: library.module)
    absent = routes.by_tvm(job_of(tmp_path, None), rungs.BY_NAME["fp32"])
    assert (absent.status, absent.whole) == ("not available", True)
    assert absent.note == "TVM 0.27.0 sees no GPU: libcudart.so.13"


# The worker, with ONNX Runtime in TVM's place


class Module(dict):
    """What is imported: `run` computes it, `functions` are those that would be scheduled."""

    def __init__(self, run, functions, **entries):
        super().__init__(entries)
        self.run, self.functions = run, functions


class StandIn:
    """The part of TVM's API that the worker uses. `seen` is what it was asked for."""

    def __init__(self, *, gpu):
        self.seen = []
        self.function = SimpleNamespace(with_attr=lambda name, value: self.seen.append(name))
        modules = {name: ModuleType(name) for name in ("tvm", "tvm.relax", "tvm.relax.frontend", "tvm.relax.frontend.onnx",
                                                       "tvm.relax.backend.cuda.cublas")}  # fmt: skip
        tvm, relax, _, frontend, cublas = modules.values()
        self.modules = modules
        tensor = lambda array, where=None: SimpleNamespace(numpy=lambda: array)  # noqa: E731
        tvm.__dict__.update(
            __version__="0.27.0", __file__="/nowhere/tvm/__init__.py", relax=relax, cpu=lambda: "cpu",
            cuda=lambda ordinal: SimpleNamespace(exist=gpu), compile=lambda module, target: module,
            runtime=SimpleNamespace(tensor=tensor), tirx=SimpleNamespace(PrimFunc=SimpleNamespace),
            target=SimpleNamespace(Target=SimpleNamespace(from_device=lambda where: contextlib.nullcontext())),
            transform=SimpleNamespace(PassContext=self.context), get_global_func=lambda name, allow_missing: None,
        )  # fmt: skip
        relax.__dict__.update(
            frontend=SimpleNamespace(onnx=frontend), get_pipeline=lambda name: lambda module: module,
            transform=SimpleNamespace(ToMixedPrecision=self.mixed, RunCodegen=lambda: lambda module: module),
            VirtualMachine=lambda executable, where: {"main": lambda *given: tensor(executable.run(given))},
        )  # fmt: skip
        cublas.partition_for_cublas = lambda module: self.seen.append("cuBLAS") or module
        frontend.from_onnx = self.imported

    def context(self, config):
        self.seen.append(config)
        return contextlib.nullcontext()

    def mixed(self, out_dtype):
        self.seen.append(out_dtype)
        return lambda module: module

    def imported(self, proto, shape_dict, dtype_dict):
        assert shape_dict == {name: [2, 12] for name in bert.INPUTS}
        session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])

        def run(given):
            return session.run(None, {name: one.numpy() for name, one in zip(bert.INPUTS, given, strict=True)})[0]

        return Module(run, {"product": self.function}, main=SimpleNamespace(params=bert.INPUTS))


@pytest.fixture
def ask(monkeypatch, model, tmp_path):
    def ask(options, *, gpu, cublas=False):
        stand_in = StandIn(gpu=gpu)
        if cublas:
            stand_in.modules["tvm"].get_global_func = lambda name, allow_missing: name
        for name, module in stand_in.modules.items():
            monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setattr(bert_run, "MOST", bert_run.FEWEST)
        folder = tmp_path / "job"
        monkeypatch.setattr(tvm_peer.process, "run", lambda command, stem: SimpleNamespace(
            ok=tvm_worker.main(folder) == 0, signal=None, timed_out=False, returncode=1, stderr=stem))  # fmt: skip
        return tvm_peer.measure(model, FEEDS, options, folder), stand_in.seen

    return ask


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_worker_runs_the_model_on_a_processor(ask, precision):
    found, seen = ask(TvmOptions(precision, seconds=1e-6), gpu=False)
    assert error(found.output) < 1e-6
    assert len(found.times_ns) >= 2
    assert found.memory_bytes is None
    assert found.notes == ("TVM 0.27.0, default schedules, not tuned",)
    assert ("float32" in seen) == (precision == "fp16"), "products add up in FP32"


def test_the_worker_times_a_gpu_by_its_events_and_asks_for_graphs(ask, monkeypatch):
    numpy_gpu.NumpyGpu().install(monkeypatch)
    found, seen = ask(TvmOptions("fp16", gpu=True, graph=True, tensor_cores=False, seconds=1e-6), gpu=True, cublas=True)
    assert error(found.output) < 1e-6
    assert found.memory_bytes == 0, "the stand-in allocates nothing"
    assert {tvm_worker.CUDA_GRAPH: True} in seen
    assert tvm_worker.PLAIN in seen
    assert "cuBLAS" in seen
    assert found.notes == ("TVM 0.27.0, cuBLAS, default schedules, not tuned",)


def test_a_tvm_without_a_gpu_says_why(ask):
    with pytest.raises(UsageError, match=r"TVM 0\.27\.0 sees no GPU: this build of TVM is without CUDA"):
        ask(TvmOptions(gpu=True), gpu=False)


# TVM itself


def job_of(folder, device):
    return routes.Job(CONFIG, WEIGHTS, FEEDS, 2, bert_reference.forward(CONFIG, WEIGHTS, FEEDS, dtype=np.float64), (),
                      Calibration({}), "max", folder, 0.001, device)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("step", "least", "most"), [("fp32", 0, 1e-6), ("fp16", 1e-6, 5e-3)])
def test_tvm_compiles_and_runs_our_encoder(tmp_path, step, least, most):
    if optional.present(optional.LIBRARIES["tvm"]) is None:
        pytest.skip("tvm is not installed")
    found = routes.by_tvm(job_of(tmp_path, None), rungs.BY_NAME[step])
    assert isinstance(found, routes.Measured), found
    assert least <= error(found.output) < most
    assert len(found.times_ns) >= 2
    assert found.build_s > 0
    assert found.notes[0].startswith("TVM ")
