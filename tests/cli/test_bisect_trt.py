"""`probe bisect --backend`: engines that are built and run, of a stand-in for TensorRT; builds by TensorRT-RTX for real."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from installed import Tools
from places import DATA, FAKES, ROOT
from probes import cli
from probes.bisecting.engines import faults as trt_faults
from small_models import make_proto, planted_chain

FAKE, FORKED = (FAKES / name for name in ("trt_backend.py", "forked.py"))
RTX = any(importlib.util.find_spec(name) for name in ("tensorrt_rtx", "tensorrt_rtx_bindings"))
needs_rtx = pytest.mark.skipif(not RTX, reason="TensorRT-RTX is not installed: pip install 'probe-trt[trt-rtx]'")
CULPRITS = ["/layer.4/up", "/layer.4/down"]
F = TensorProto.FLOAT


class Backend:
    """The stand-in: what is wrong with it, and how many engines it built."""

    def __init__(self, folder: Path) -> None:
        self.file, self.log = folder / "fake.json", folder / "builds.log"
        self.says()

    def says(self, **values) -> None:
        self.file.write_text(json.dumps({"log": str(self.log), **values}))

    @property
    def builds(self) -> int:
        return self.log.read_text().count("build") if self.log.exists() else 0


@pytest.fixture(scope="session")
def worker(tmp_path_factory) -> Iterator[tuple[str, ...]]:
    """What the process of a trial is started with."""
    address = str(tmp_path_factory.mktemp("fake") / "socket")
    command = [sys.executable, str(FORKED), "--serve", address, FAKE.stem]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdout.readline() == b"ready\n"
        yield (sys.executable, "-S", "-E", str(FORKED), address)
        server.stdin.close()


@pytest.fixture
def backend(tmp_path, monkeypatch, worker) -> Backend:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = Backend(tmp_path)
    monkeypatch.setenv("FAKE_TRT", str(made.file))
    monkeypatch.setattr(trt_faults, "WORKER", worker)
    onnx.save(planted_chain(), "chain.onnx")
    return made


def bisect(*words, out="run") -> tuple[int, dict]:
    code = cli.run(["bisect", *map(str, words), "--backend", "trt", "--out", out])
    file = Path(out) / "result.json"
    return code, json.loads(file.read_text()) if file.exists() else {}


def rows(path) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


# precision


def test_a_planted_overflow_is_found_and_certified_in_as_many_builds_as_it_has_culprits_and_three(backend):
    code, result = bisect("chain.onnx")
    assert (code, result["culprits"], result["certified_minimal"]) == (1, CULPRITS, True)
    assert backend.builds == 5, "nothing lowered, all lowered, all but the suspects, and one for each of them"
    assert result["repro_command"] == "probe bisect chain.onnx --backend trt"


@pytest.mark.slow
def test_what_is_handed_over_builds_the_same_engine(backend):
    _, result = bisect("chain.onnx", "--level", 2)
    mixed = onnx.load(Path("run") / result["model_out"])
    onnx.checker.check_model(mixed, full_check=True)
    assert "trtexec.sh does so with trtexec, but for 2 layers that it cannot name" in result["notes"]
    command = Path("run/trtexec.sh").read_text()
    assert "--fp16 --builderOptimizationLevel=2 --precisionConstraints=obey" in command
    layers = command.partition("--layerPrecisions=")[2].partition(" ")[0]
    assert "/layer.4/up:fp32" in layers
    assert "# trtexec cannot name the layer '(Unnamed Layer* 9) [Shuffle]'; repro.py holds it" in command
    assert subprocess.run(["sh", "-n", "run/trtexec.sh"], check=True)
    compile(script := (Path("run") / "repro.py").read_text(), "repro.py", "exec")
    assert str(Path.cwd()) not in script


@pytest.mark.slow
def test_the_second_search_takes_every_engine_from_the_cache(backend):
    backend.says(seconds=0.2)
    _, first = bisect("chain.onnx")
    builds = backend.builds
    _, second = bisect("chain.onnx", out="again")
    assert backend.builds == builds
    assert second["culprits"] == first["culprits"]
    assert all(row["cached"] for row in rows("again/raw/trials/trials.jsonl"))
    _, tighter = bisect("chain.onnx", "--tolerance", 0.02, out="other")
    assert backend.builds == builds, "a tolerance judges outputs: it builds nothing"
    assert tighter["culprits"] == CULPRITS


@pytest.mark.slow
def test_other_inputs_take_the_engines_and_infer_again(backend):
    bisect("chain.onnx")
    builds = backend.builds
    _, result = bisect("chain.onnx", "--seed", 7, out="again")
    assert backend.builds == builds
    assert result["culprits"] == CULPRITS
    assert not any(row["cached"] or row["built"] for row in rows("again/raw/trials/trials.jsonl"))
    assert any("engines built: 0 (0 s of building), found and run again: 5" in note for note in result["notes"])


@pytest.mark.slow
@pytest.mark.parametrize("fault, builds", [("overflows", 8), ("shy", 10)])
def test_where_the_suspicion_is_too_narrow_the_engine_s_own_parts_are_looked_at(backend, fault, builds):
    """The emulation knows of layer 4 alone. What is shy hides where its tensor is an output: its region tells, and half of it."""
    backend.says(**{fault: ["/layer.9/gain"]})
    code, result = bisect("chain.onnx")
    assert (code, result["culprits"]) == (1, [*CULPRITS, "/layer.9/gain"])
    assert result["certified_minimal"]
    assert any("too few for the engine, 1 more suspected" in note for note in result["notes"])
    assert backend.builds <= builds
    trials = rows("run/raw/trials/trials.jsonl")
    assert len(trials) == backend.builds
    assert sum("side by side" in trial["engine"] for trial in trials) == builds - 7


@pytest.mark.slow
@pytest.mark.parametrize("what", ["segv", "hang"])  # the other kinds: as plugins below
def test_an_engine_that_fails_is_unresolved_and_loses_no_evaluation(backend, what):
    backend.says(lowered={"/layer.2/gain": what})
    code, result = bisect("chain.onnx", "--timeout", 4 if what == "hang" else 60)
    assert result["culprits"] == CULPRITS
    assert result["undecided"] == ["/layer.2/gain"]
    assert not result["certified_minimal"]
    assert code == 1
    steps = rows("run/steps.jsonl")
    failed = [row for row in steps if row["outcome"] == "unresolved"]
    assert failed
    assert all(row["signature"] for row in failed)


@pytest.mark.slow
def test_finite_is_asked_of_engines(backend):
    backend.says(overflows=["/layer.7/gain"])
    code, result = bisect("chain.onnx", "--fault", "finite")
    assert (code, result["culprits"]) == (1, [*CULPRITS, "/layer.7/gain"])


@pytest.mark.slow
@pytest.mark.parametrize("gpus", [1, 2])
def test_any_number_of_workers_and_gpus_gives_the_same(backend, gpus):
    backend.says(gpus=gpus)
    _, result = bisect("chain.onnx", "--jobs", 2)
    assert result["culprits"] == CULPRITS


def steps_of(run) -> list[str]:
    return [json.dumps(row["query"]) for row in rows(f"{run}/steps.jsonl")]


@pytest.mark.slow
def test_a_cluster_builds_what_one_process_builds_also_when_it_loses_a_worker(backend):
    distributed = pytest.importorskip("distributed")
    backend.says(overflows=["/layer.9/gain"], seconds=0.4)
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        address = cluster.scheduler_address
        assert bisect("chain.onnx", "--dask", address, "--budget", 4)[0] == 125
        asked = steps_of("run")
        kill = threading.Timer(1.0, lambda: os.kill(next(iter(cluster.workers.values())).pid, signal.SIGKILL))
        kill.start()
        codes = iter(lambda: cli.run(["bisect", "--resume", "run"]), 1)  # as many evaluations again, and again
        assert {*codes} <= {125}
        kill.join()
    result = json.loads(Path("run/result.json").read_text())
    assert (result["culprits"], result["certified_minimal"]) == ([*CULPRITS, "/layer.9/gain"], True)
    assert (result["unresolved"], result["undecided"]) == (0, [])
    assert steps_of("run")[: len(asked)] == asked
    assert len(set(steps_of("run"))) == len(steps_of("run"))


@pytest.mark.slow
def test_a_hang_is_the_same_answer_on_a_cluster(backend):
    distributed = pytest.importorskip("distributed")
    plugins_model("plugins.onnx")
    backend.says(present={"/layer.1/plugin": "hang"})
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None
    ) as cluster:
        _, result = bisect("plugins.onnx", "--fault", "crash", "--timeout", 4, "--dask", cluster.scheduler_address)
    assert (result["culprits"], result["certified_minimal"]) == (["/layer.1/plugin"], True)
    assert result["signatures"]["/layer.1/plugin"] == "timeout at infer"


@pytest.mark.slow
def test_a_strongly_typed_network_has_its_casts_rewritten(backend):
    backend.says(strong=True, version="11.2.0")
    _, result = bisect("chain.onnx")
    assert result["culprits"] == CULPRITS
    command = Path("run/trtexec.sh").read_text()
    assert "--onnx=chain.mixed.onnx" in command
    assert "layerPrecisions" not in command


@pytest.mark.slow
def test_an_fp32_engine_that_is_wrong_is_told_as_such(backend, capsys):
    backend.says(present={"/layer.0/bias": "wrong"})
    code, _ = bisect("chain.onnx")
    assert code == 125
    assert "--fault crash, fusion or route" in capsys.readouterr().err


@pytest.mark.slow
def test_the_time_objective_keeps_what_is_cheap(backend):
    backend.says(timed=["/layer.4/up", "/layer.4/down", "/layer.3/gain"])
    _, result = bisect("chain.onnx", "--objective", "time")
    assert result["culprits"] == CULPRITS
    assert any("ms more than in FP16" in note for note in result["notes"])
    page = (Path("run") / "report.html").read_text()
    assert "Latency against error" in page


@pytest.mark.slow
def test_a_search_that_was_killed_goes_on_and_builds_nothing_twice(backend, worker):
    backend.says(seconds=0.5)
    code = f"import sys; from probes import cli; from probes.bisecting.engines import faults; faults.WORKER = {worker!r};" \
           " sys.exit(cli.run(sys.argv[1:]))"  # fmt: skip
    argv = [sys.executable, "-c", code, "bisect", "chain.onnx", "--backend", "trt", "--out", "run"]
    running = subprocess.Popen(argv, env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True)
    deadline = time.monotonic() + 60
    while backend.builds < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    assert backend.builds >= 3, "it was killed before it had built anything"
    assert cli.run(["bisect", "--resume", "run"]) == 1
    result = json.loads(Path("run/result.json").read_text())
    assert result["culprits"] == CULPRITS
    assert backend.builds == 5, "what was being built as it was killed was waited for, and taken"


@pytest.mark.slow
def test_a_model_with_plugins_is_suspected_by_an_engine_of_its_parts(backend):
    chain = planted_chain(8, (4,))
    chain.graph.node[-1].output[0] = "z"
    chain.graph.node.append(helper.make_node("CustomGeluPluginDynamic", ["z"], ["y"], name="/gelu", type_id=1))
    onnx.save(chain, "gelu.onnx")
    code, result = bisect("gelu.onnx")
    assert (code, result["culprits"], result["certified_minimal"]) == (1, CULPRITS, True)
    assert any("too few for the engine, 2 more suspected" in note for note in result["notes"])
    assert backend.builds == 6, "one of its parts, and five as for any other model"


# crash


def plugins_model(path, kinds=("CustomGeluPluginDynamic",) * 3) -> None:
    """x [2, 1, 8, 1, 1] through plugins with a bias between them."""
    nodes, last = [], "x"
    for number, kind in enumerate(kinds):
        nodes.append(helper.make_node("Add", [last, "b"], [f"/layer.{number}/sum"], name=f"/layer.{number}/Add"))
        nodes.append(
            helper.make_node(
                kind, [f"/layer.{number}/sum"], [f"/layer.{number}/out"], name=f"/layer.{number}/plugin", type_id=1
            )
        )
        last = f"/layer.{number}/out"
    nodes.append(helper.make_node("Neg", [last], ["y"], name="/neg"))
    onnx.save(make_proto(nodes, [("x", F, [2, 1, 8, 1, 1])], [("y", F, [2, 1, 8, 1, 1])], {"b": np.float32(0.1)}), path)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["segv", "cuda", "hang", "wrong", "nan", "build", "memory"])
def test_a_plugin_that_fails_in_some_layers_is_named(backend, what):
    plugins_model("plugins.onnx")
    backend.says(present={"/layer.1/plugin": what})
    code, result = bisect("plugins.onnx", "--fault", "crash", "--timeout", 4 if what == "hang" else 60)
    assert (code, result["culprits"], result["certified_minimal"]) == (1, ["/layer.1/plugin"], True)
    assert any("the plugin is wrong, not the network" in note for note in result["notes"])
    replaced = onnx.load(Path("run") / result["model_out"])
    assert [node.op_type for node in replaced.graph.node].count("CustomGeluPluginDynamic") == 2
    signature = result["signatures"].get("/layer.1/plugin", "")
    assert {"segv": "signal 11", "cuda": "CUDA_ERROR_ILLEGAL_ADDRESS", "hang": "timeout"}.get(what, "") in signature


@pytest.mark.slow
def test_plugins_with_findings_of_the_sanitizer_are_named(backend, monkeypatch):
    """Their engines give right results: nothing but the finding tells."""
    tools = Tools(Path("tools").absolute()).add("compute-sanitizer")
    tools.set("compute-sanitizer", memcheck=DATA / "sanitizer" / "h100_2025.3_memcheck_oob.xml", asks=True)
    for name, value in tools.environment.items():
        monkeypatch.setenv(name, value)
    plugins_model("plugins.onnx")
    backend.says(present={"/layer.0/plugin": "finding", "/layer.2/plugin": "finding"})
    assert bisect("plugins.onnx", "--fault", "crash", out="unchecked")[1]["status"] == "nothing_to_find"
    code, result = bisect("plugins.onnx", "--fault", "crash", "--sanitize", "memcheck")
    assert (code, result["culprits"]) == (1, ["/layer.0/plugin", "/layer.2/plugin"])
    assert result["certified_minimal"]
    assert set(result["signatures"].values()) == {"memcheck: Invalid __global__ write of size # bytes is out of bounds"}
    checked = [call for call in tools.calls("compute-sanitizer") if "--tool" in call]
    assert len(checked) == len(rows("run/raw/trials/trials.jsonl"))
    assert backend.builds == len(checked), "what was built without the sanitizer is run with it, and not built again"


@pytest.mark.slow
def test_a_network_that_is_wrong_without_its_plugins_is_not_blamed_on_them(backend, capsys):
    plugins_model("plugins.onnx")
    backend.says(present={"/neg": "cuda"})
    code, _ = bisect("plugins.onnx", "--fault", "crash")
    assert code == 125
    assert "the network is wrong, not the plugins" in capsys.readouterr().err


def test_a_plugin_that_nothing_is_known_of_needs_a_replacement(backend, capsys):
    plugins_model("plugins.onnx", ["MyPlugin"])
    assert bisect("plugins.onnx", "--fault", "crash")[0] == 2
    assert "--replace MyPlugin=SUBGRAPH.onnx" in capsys.readouterr().err


@pytest.mark.slow
def test_a_user_s_own_replacement_is_used(backend):
    plugins_model("plugins.onnx", ["MyPlugin"] * 2)
    tanh = helper.make_node("Tanh", ["a"], ["c"], name="tanh")
    onnx.save(make_proto([tanh], [("a", F, None)], [("c", F)], {}), "tanh.onnx")
    backend.says(present={"/layer.0/plugin": "segv", "/layer.1/plugin": "segv"})
    _, result = bisect("plugins.onnx", "--fault", "crash", "--replace", "MyPlugin=tanh.onnx")
    assert result["culprits"] == ["/layer.0/plugin", "/layer.1/plugin"]


@pytest.mark.slow
@pytest.mark.parametrize("what", ["segv", "build"])
def test_a_node_that_crashes_in_a_model_without_plugins_is_named(backend, what):
    backend.says(present={"/layer.5/bias": what})
    _, result = bisect("chain.onnx", "--fault", "crash")
    assert result["culprits"] == ["/layer.5/bias"]
    assert len(onnx.load(Path("run") / result["model_out"]).graph.node) == 1


# fusion and route


@pytest.mark.slow
def test_the_fewest_tensors_to_materialise_are_found(backend):
    backend.says(fused={"/layer.3/bias:out": "wrong", "/layer.8/gain:out": "nan"}, features=["debug_tensors"])
    code, result = bisect("chain.onnx", "--fault", "fusion")
    assert (code, result["culprits"]) == (1, ["/layer.3/bias", "/layer.8/gain"])
    assert result["certified_minimal"]
    marked = onnx.load(Path("run") / result["model_out"])
    assert {value.name for value in marked.graph.output} == {"y", "/layer.3/bias:out", "/layer.8/gain:out"}
    assert any("debug tensors cures it as well" in note for note in result["notes"])


ROUTES = json.dumps({"tuner_options": [{"option": "-fuse", "allowed_values": "[on|off]", "default_value": "on"}]})


@pytest.mark.slow
@pytest.mark.parametrize(
    "default, flag",
    [(["level", "2", "wrong"], "--builderOptimizationLevel=2"), (["tactic", "CUDNN", "segv"], "--tacticSources=-CUDNN"),
     (["route", "-fuse=off", "nan"], "--setBuildRoute='-fuse=off'")],
)  # fmt: skip
def test_the_switch_that_cures_is_a_one_line_workaround(backend, default, flag):
    backend.says(default=[default], routes=ROUTES)
    code, result = bisect("chain.onnx", "--fault", "route")
    assert (code, result["culprits"], result["certified_minimal"]) == (1, [flag], True)
    assert f"workaround: {flag}" in result["notes"]


@pytest.mark.slow
def test_switches_that_cure_only_together_are_found(backend):
    backend.says(default=[["level", "1", "wrong"], ["tactic", "CUBLAS", "segv"]])
    code, result = bisect("chain.onnx", "--fault", "route")
    assert code == 1
    assert "--tacticSources=-CUBLAS" in result["culprits"]
    assert len(result["culprits"]) == 2


@pytest.mark.slow
def test_no_switch_cures(backend):
    backend.says(present={"/layer.0/bias": "wrong"})
    code, result = bisect("chain.onnx", "--fault", "route")
    assert (code, result["status"]) == (125, "undecided")
    page = Path("run/report.html").read_text()
    assert "Undecided: no setting cures it" in page
    assert "Culprits on the graph" not in page, "settings lie on no graph"


# What is refused, and TensorRT-RTX for real


@pytest.mark.parametrize(
    "words, said",
    [(["--fault", "crash", "--precision", "bf16", "--objective", "time"], "--objective time belongs to"),
     (["--fault", "precision", "--replace", "A=b.onnx"], "--replace belongs to --fault crash"),
     (["--fault", "precision", "--precision", "tf32"], "lowers to fp16 or bf16, not to tf32")],
)  # fmt: skip
def test_options_that_do_not_go_together_are_refused(backend, capsys, words, said):
    assert bisect("chain.onnx", *words)[0] == 2
    assert said in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("fault", ["precision", "crash", "route"])
def test_a_machine_on_which_nothing_builds_is_refused_and_no_node_is_blamed(backend, capsys, fault):
    backend.says(refused="backend trt does not build here: there is no GPU here")
    assert bisect("chain.onnx", "--fault", fault)[0] == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "there is no GPU here" in said
    assert "leave --backend out" in said


def test_options_of_engines_need_a_backend(backend, capsys):
    assert cli.run(["bisect", "chain.onnx", "--objective", "time"]) == 2
    assert cli.run(["bisect", "chain.onnx", "--fault", "route"]) == 2
    assert "--backend" in capsys.readouterr().err


@pytest.mark.trt_rtx
@needs_rtx
def test_real_builds_need_no_gpu_where_nothing_is_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    onnx.save(planted_chain(4, (1,)), "chain.onnx")
    code = cli.run(["bisect", "chain.onnx", "--fault", "route", "--backend", "trt-rtx", "--out", "run"])
    assert code == 0
    result = json.loads(Path("run/result.json").read_text())
    (note,) = (note for note in result["notes"] if "engines built" in note)
    assert note.startswith("engines built: 1")
    assert "only built" in note
    assert "the engine builds with the builder's defaults" in capsys.readouterr().out
    assert cli.run(["bisect", "chain.onnx", "--backend", "trt-rtx"]) == 2
    assert "does not run here" in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
@pytest.mark.trt_rtx
@needs_rtx
def test_nodes_that_the_real_builder_and_its_parser_refuse_are_both_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    size = 4096  # more than the builder's largest K
    nodes = [helper.make_node("Tanh", ["x"], ["a"], name="tanh"), helper.make_node("Bernoulli", ["a"], ["b"], name="draw"),
             helper.make_node("Add", ["b", "x"], ["c"], name="add"), helper.make_node("TopK", ["c", "k"], ["d", "order"], name="sort"),
             helper.make_node("Neg", ["d"], ["y"], name="neg")]  # fmt: skip
    onnx.save(make_proto(nodes, [("x", F, [2, size])], [("y", F, [2, size])], {"k": np.array([size])}), "m.onnx")
    code = cli.run(["bisect", "m.onnx", "--fault", "crash", "--backend", "trt-rtx", "--range", "0:1", "--out", "run"])
    result = json.loads(Path("run/result.json").read_text())
    assert (code, result["culprits"], result["certified_minimal"]) == (1, ["draw", "sort"], True)
    assert result["signatures"]["draw"] != result["signatures"]["sort"]
