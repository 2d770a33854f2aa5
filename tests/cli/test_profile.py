"""`probe profile` end to end, on tools that replay real artifacts or behave as badly as tools do."""

from __future__ import annotations

import gzip
import json
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from harness.tools import tool as found
from installed import TENSORRT_TRACE, Tools, replaying
from places import DATA
from probes import cli
from probes.profiling import options as profile_options
from probes.profiling import settings as profile_settings
from small_models import planted_chain

PROGRAM = (sys.executable, "-S", "-c", "pass")
FAILING = (sys.executable, "-S", "-c", "import sys; sys.exit(3)")


@pytest.fixture
def tools(tmp_path, monkeypatch) -> Tools:
    """Every tool, in a folder that is PATH; the tests run beside it."""
    made = replaying(tmp_path / "bin")
    monkeypatch.setenv("PATH", made.environment["PATH"])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.chdir(tmp_path)
    return made


@pytest.fixture
def model(tools, tmp_path) -> Path:
    onnx.save(planted_chain(), "chain.onnx")
    return Path("chain.onnx")


def profile(*words: object, target: tuple[str, ...] = PROGRAM, out: str = "run") -> tuple[int, dict[str, Any]]:
    """Run the verb in this process; its exit code and its result.json."""
    code = cli.run(["profile", "--out", out, *map(str, words), *(("--", *target) if target else ())])
    file = Path(out) / "result.json"
    return code, json.loads(file.read_text()) if file.exists() else {}


def steps(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {step["name"]: step for step in result["tools"]}


def test_nsys_around_any_program(tools, capsys):
    code, result = profile("--nsys")
    assert code == 0
    assert result["status"] == "ok"
    assert steps(result)["nsys"]["version"] == "2025.3.2"
    (call,) = tools.calls("nsys")
    assert "--sample=none" in call
    assert "--capture-range=nvtx" not in call
    assert result["top"]["nsys.sqlite"]["rows"]["kernels"] == 97
    assert "solve_1bc_kernel" in capsys.readouterr().out
    page = Path("run/report.html").read_text()
    assert "solve_1bc_kernel" in page
    assert str(Path.cwd()) not in page


def test_options_reach_the_tools(tools):
    words = ("--nsys", "--ncu", "--range", "step@app", "--kernel", "gemm.*", "--launch-count", 4, "--metrics", "full",
             "--clock-control", "base", "--replay-mode", "application", "--cpu", "--osrt", "--trace", "cuda,nvtx")  # fmt: skip
    code, _ = profile(*words)
    assert code == 0
    (nsys,), (ncu,) = tools.calls("nsys"), tools.calls("ncu")
    assert {"--trace=cuda,nvtx,osrt", "--nvtx-capture=step@app", "--sample=process-tree"} <= set(nsys)
    assert ncu[ncu.index("--nvtx-include") + 1] == "app@step/"
    assert ncu[ncu.index("--kernel-name") + 1] == "regex:gemm.*"
    assert ncu[ncu.index("--launch-count") + 1] == "4"
    assert ncu[ncu.index("--set") + 1] == "full"
    assert ncu[ncu.index("--clock-control") + 1] == "base"
    assert ncu[ncu.index("--replay-mode") + 1] == "application"


def test_several_tools_make_one_session_and_one_page(tools):
    tools.set("nsys", data=TENSORRT_TRACE)
    tools.set("ncu", data=DATA / "ncu" / "h100_trt86_raw_nvtx.csv")
    code, result = profile("--nsys", "--ncu")
    assert code == 0
    assert set(result["top"]) == {"nsys.sqlite", "ncu.csv"}
    kernel = result["joined"][0]
    assert kernel["count"] > kernel["ncu_launches"] > 0
    assert kernel["layer"] == "{ForeignNode[l0.q + (Unnamed Layer* 1) [Shuffle]...out]}"
    assert kernel["limited_by"] in ("memory", "compute", "latency", "occupancy")
    assert "Kernels, with their counters" in Path("run/report.html").read_text()
    manifest = json.loads(Path("run/manifest.json").read_text())
    assert manifest["tools"] == {"nsys": "2025.3.2", "ncu": "2025.3.1"}
    assert manifest["gpu"][0]["name"] == "NVIDIA H100 80GB HBM3"
    assert manifest["clocks_before"]
    assert manifest["clocks_after"]
    assert cli.run(["report", "run", "--json", "again.json"]) == 0
    told = json.loads(Path("again.json").read_text())
    assert sorted(artifact["kind"] for artifact in told["artifacts"]) == ["ncu-csv", "nsys-sqlite"]
    assert told["left_out"] == []  # neither the reports beside their exports, nor the logs


def test_trtexec(tools, model):
    words = ("--trtexec", "--precision", "fp16", "--iterations", 20, "--min", "x:1x8", "--max", "x:4x8")
    code, result = profile(*words, model, target=())
    assert code == 0
    (call,) = tools.calls("trtexec")
    assert {"--shapes=x:4x8", "--minShapes=x:1x8", "--optShapes=x:4x8", "--maxShapes=x:4x8"} <= set(call)
    assert {"--fp16", "--iterations=20", "--duration=0", "--separateProfileRun"} <= set(call)
    assert not any(word.startswith("--noDataTransfers") for word in call)
    assert any(head["kind"].startswith("trtexec") for head in result["top"].values())


@pytest.mark.parametrize(
    ("options", "run", "least", "most"),
    [
        ((), "1x16", "1x16", "1x16"),  # as random inputs are made: by itself it would take 1x1
        (("--shapes", "a:2x8"), "2x8", "2x8", "2x8"),
        (("--max", "a:4x8"), "4x8", "4x8", "4x8"),
        (("--min", "a:1x8", "--shapes", "a:2x8", "--max", "a:4x8"), "2x8", "1x8", "4x8"),
        (("--inputs", "fed.npz"), "3x8", "3x8", "3x8"),
    ],
    ids=["none given", "shapes", "max", "all", "inputs"],
)
def test_trtexec_is_fed_with_what_the_others_are_fed_with(tools, options, run, least, most):
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", "m"]) for name in "aby"]
    graph = helper.make_graph([helper.make_node("Add", ["a", "b"], ["y"])], "sum", values[:2], values[2:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "sum.onnx")
    np.savez("fed.npz", a=np.ones((3, 8), np.float32), b=np.ones((3, 8), np.float32))
    code, result = profile("--trtexec", *options, "sum.onnx", target=())
    assert code == 0
    words = dict(word.split("=", 1) for word in tools.calls("trtexec")[0] if "=" in word)
    assert words["--shapes"] == f"a:{run},b:{run}"  # one that shares its dimensions with it
    assert (words["--minShapes"], words["--maxShapes"]) == (f"a:{least},b:{run}", f"a:{most},b:{run}")
    files = dict(one.split(":") for one in words["--loadInputs"].split(","))
    assert {Path(file).stat().st_size for file in files.values()} == {4 * np.prod([int(n) for n in run.split("x")])}
    assert f"a {run}, b {run}" in steps(result)["trtexec"]["notes"][-1]


def test_a_model_is_timed_in_fp32_by_every_tool_unless_asked(tools, model):
    profile("--trtexec", model, target=())
    assert "--noTF32" in tools.calls("trtexec")[0]


def test_without_trtexec_the_same_is_measured_in_process(tools, model):
    tools.remove("trtexec")
    code, result = profile("--trtexec", "--backend", "ort-cpu", "--iterations", 5, "--warmup", 1, model, target=())
    assert code == 0
    assert (
        "trtexec is needed to time an engine, and is not on PATH: the same was measured"
        in steps(result)["inprocess"]["notes"][0]
    )
    assert result["top"]["measurement.json"]["median_ns"]["latency_ns"] > 0


def test_on_a_machine_without_a_gpu_a_model_is_measured_with_onnx_runtime_on_shapes_on_which_it_runs(tools):
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("x", [1, "n"]), ("y", None))
    ]
    rows = helper.make_tensor("rows", TensorProto.INT64, [2], [-1, 64])  # windows of 64, and not of the 16 tried first
    graph = helper.make_graph([helper.make_node("Reshape", ["x", "rows"], ["y"])], "g", values[:1], values[1:], [rows])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "windows.onnx")
    tools.set("nvidia-smi", mode="none")
    code, result = profile("--iterations", 5, "--warmup", 1, "windows.onnx", target=())
    assert code == 0
    assert {name: step["notes"][-1] for name, step in steps(result).items()} == {
        "inprocess": "x 1x64: random values", "ort": "x 1x64: random values"}  # fmt: skip
    assert tools.calls("nsys") == []


def test_the_model_is_built_outside_of_the_tool_and_the_loop_captured(tools, model):
    code, result = profile("--nsys", "--backend", "ort-cpu", "--iterations", 2, "--warmup", 1, model, target=())
    assert code == 0, result
    (call,) = tools.calls("nsys")
    assert "--nvtx-capture=measure@probe" in call
    assert "probes.targets.inferring" in call


# What goes wrong. Exit codes: 2 what was asked for does not fit or is not here, 125 a tool failed.

FAILURES = [
    ("nsys", {"mode": "fail", "says": "unrecognised option '--cuda-graph-trace'"}, 125, "does not know the option", "probe doctor"),
    ("nsys", {"mode": "crash"}, 125, "signal 11", "less raw/nsys.out raw/nsys.err"),
    ("nsys", {"mode": "killed"}, 125, "want of memory", "--iterations"),
    ("nsys", {"mode": "garbage"}, 125, "wrote no nsys.sqlite", "probe doctor"),
    ("nsys", {"mode": "half"}, 125, "is no SQLite file", "nsys export"),
    ("nsys", {"mode": "empty"}, 0, "", ""),  # the report is there, and exported again
    ("nsys", {"mode": "report only"}, 0, "", ""),
    ("nsys", {"mode": "qdstrm"}, 125, "could not make a report", "libdw1"),
    ("nsys", {"data": DATA / "nsys" / "lighttransport__gemm__profile.sqlite.gz"}, 125, "no kernel ran", "--cpu"),
    ("nsys", {"mode": "fail", "says": "write: No space left on device"}, 125, "the disk is full", "--out"),
    ("ncu", {"says": "ERR_NVGPUCTRPERM - The user does not have permission"}, 125, "administrators", "sudo"),
    ("ncu", {"says": "Failed to find metric regex:^sm__nothing.(sum|avg)$"}, 125, "no metric sm__nothing", "--query-metrics"),
    ("ncu", {"mode": "no kernels"}, 125, "launches no kernel", "on a GPU"),
    ("ncu", {"mode": "empty"}, 125, "wrote no page", "probe doctor"),
    ("ncu", {"mode": "garbage"}, 125, "wrote no page", "probe doctor"),
    ("ncu", {"mode": "crash"}, 125, "signal 11", "less raw/ncu.out raw/ncu.err"),
    ("ncu", {"mode": "fail", "says": "==ERROR== no CUDA-capable device is detected"}, 125, "no GPU here", "--ort"),
]  # fmt: skip


@pytest.mark.parametrize(("tool", "behaviour", "expected", "message", "hint"), FAILURES,
                         ids=[f"{tool} {next(iter(b.values()))}".split("/")[-1][:40] for tool, b, *_ in FAILURES])  # fmt: skip
def test_a_failing_tool_is_told_with_what_to_do(tools, capsys, tool, behaviour, expected, message, hint):
    tools.set(tool, **behaviour)
    code, result = profile(f"--{tool}")
    assert code == expected
    step = steps(result)[tool]
    if expected:
        assert message in step["error"]
        assert hint in step["hint"]
        assert step["status"] == "failed"
        assert message.splitlines()[0] in " ".join(capsys.readouterr().out.split())
    assert Path("run/manifest.json").exists()


@pytest.mark.parametrize(
    ("target", "options", "lost"),
    [
        ("bad.onnx", ("--nsys", "--ncu", "--trtexec"), "trtexec, nsys, ncu"),
        ("bad.onnx", (), "inprocess, nsys"),
        ("bad.plan", ("--nsys", "--ncu"), "nsys, ncu"),
    ],
    ids=["every tool", "no tool named", "engine"],
)
def test_a_target_that_fails_is_told_once(tools, capsys, target, options, lost):
    Path(target).write_bytes(b"neither model nor engine")
    code, result = profile(*options, target, target=())
    assert code == 2
    ((name, step),) = steps(result).items()
    assert (name, step["status"]) == ("preparation", "failed")
    assert step["error"].startswith("bad.")
    assert step["error"].endswith(f"not run, for they would fail the same way: {lost}")
    assert capsys.readouterr().out.count("bad.") == 1
    assert not any(tools.calls(tool) for tool in ("nsys", "ncu", "trtexec"))


def test_one_failing_tool_does_not_keep_the_other_from_running(tools):
    tools.set("nsys", mode="crash")
    code, result = profile("--nsys", "--ncu")
    assert code == 125
    assert (steps(result)["nsys"]["status"], steps(result)["ncu"]["status"]) == ("failed", "ok")
    page = Path("run/report.html").read_text()
    assert "nsys failed: nsys was ended by signal 11 (try: less" in page
    assert "durations are of single kernels" in page  # what ncu does to the timing is said on the page too


def test_no_match_of_the_filters_is_told_apart_from_no_kernel(tools):
    tools.set("ncu", mode="no kernels")
    _, result = profile("--ncu", "--kernel", "nothing")
    assert "none matched" in steps(result)["ncu"]["error"]


def test_a_range_that_is_never_entered(tools):
    tools.set("nsys", mode="nothing")
    code, result = profile("--nsys", "--range", "step")
    assert code == 125
    assert "the range step was never entered" in steps(result)["nsys"]["error"]
    assert "--range 'step@*'" in steps(result)["nsys"]["hint"]


def test_a_range_that_closes_before_its_kernels_end(tools, tmp_path):
    trace = tmp_path / "launched.sqlite"
    trace.write_bytes(gzip.decompress(TENSORRT_TRACE.read_bytes()))
    with sqlite3.connect(trace) as database:
        database.execute("DELETE FROM CUPTI_ACTIVITY_KIND_KERNEL")
    tools.set("nsys", data=trace)
    code, result = profile("--nsys", "--range", "step")
    assert code == 125
    error = steps(result)["nsys"]["error"]
    assert "none of the 485 kernels that the range step launched ended before it closed" in error
    assert "synchronise before the range closes" in steps(result)["nsys"]["hint"]
    code, result = profile("--nsys", out="all")
    assert code == 125
    assert "saw 485 launches and not one of their kernels: it does not fit the driver" in steps(result)["nsys"]["error"]


def test_the_exit_code_of_the_program_is_kept_apart(tools):
    code, result = profile("--nsys", "--ncu", target=FAILING)
    assert code == 0
    assert {name: step["program_exit_code"] for name, step in steps(result).items()} == {"nsys": 3, "ncu": 3}
    assert any("exit code 3" in note for note in steps(result)["ncu"]["notes"])


def test_a_program_that_fails_before_any_launch(tools):
    tools.set("ncu", mode="no kernels")
    _, result = profile("--ncu", target=FAILING)
    assert "the program itself failed, with exit code 3" in steps(result)["ncu"]["error"]


def test_a_tool_that_hangs_is_stopped_with_all_it_started(tools, gone):
    tools.set("nsys", mode="stubborn")
    code, result = profile("--nsys", "--timeout", 0.7)
    assert code == 125
    assert "was stopped after 0.7 s" in steps(result)["nsys"]["error"]
    assert "--timeout" in steps(result)["nsys"]["hint"]
    assert gone(tools.pids)


def test_ctrl_c_stops_the_whole_tree_and_keeps_what_is_there(tools, probe_argv, wait_for, gone, tmp_path):
    tools.set("ncu", mode="hang")
    words = [*probe_argv, "profile", "--out", "run", "--nsys", "--ncu", "--", *PROGRAM]
    process = subprocess.Popen(words, env={**os.environ, **tools.environment}, cwd=tmp_path, stderr=subprocess.PIPE)
    try:
        wait_for(tools.hangs.exists)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    result = json.loads(Path("run/result.json").read_text())
    assert result["status"] == "interrupted"
    assert {name: step["status"] for name, step in steps(result).items()} == {"nsys": "ok", "ncu": "interrupted"}
    assert Path("run/report.html").exists()
    assert gone(tools.pids)


def test_a_disk_that_fills_up_is_told(tools, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("harness.tools.tool.drive", full)
    code, result = profile("--nsys")
    assert code == 125
    assert "is full" in steps(result)["nsys"]["error"]


def test_a_page_for_which_there_is_no_room_hides_nothing_of_the_result(tools, monkeypatch, capsys):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("reports.pages.page.save", full)
    code, result = profile("--nsys")
    assert code == 125
    assert "solve_1bc_kernel" in capsys.readouterr().out
    assert result["top"]["nsys.sqlite"]["rows"]["kernels"] == 97
    assert not Path("run/report.html").exists()


@pytest.mark.parametrize("mode", ["garbage", "half"])
def test_a_trtexec_that_never_comes_to_an_end_is_no_measurement(tools, model, mode):
    tools.set("trtexec", mode=mode)
    code, result = profile("--trtexec", model, target=())
    assert code == 125
    assert "said neither PASSED nor FAILED" in steps(result)["trtexec"]["error"]


# What was asked for does not fit, or is not here: nothing runs, no session is made.


@pytest.mark.parametrize("tool", ["nsys", "ncu"])
def test_a_tool_that_is_not_here(tools, capsys, monkeypatch, tool):
    tools.remove(tool)
    monkeypatch.setattr(found, "USUAL_PLACES", ())
    assert profile(f"--{tool}") == (2, {})
    error = capsys.readouterr().err
    assert f"{tool} is needed to" in error
    assert "try: apt-get install" in error
    assert not Path("run").exists()


@pytest.mark.parametrize(("tool", "version"), [("nsys", "2020.5.1"), ("ncu", "2019.5.0")])
def test_a_tool_that_is_too_old(tools, capsys, tool, version):
    tools.set(tool, version=version)
    assert profile(f"--{tool}") == (2, {})
    assert "or newer is driven" in capsys.readouterr().err


USAGE = [
    ((), (), "what is to be looked at"),
    ((), ("no-such-program",), "no program"),
    (("missing.onnx",), (), "missing.onnx does not exist"),
    (("missing.plan",), (), "missing.plan does not exist"),
    (("--ort",), PROGRAM, "--ort needs a model, not a command"),
    (("--shapes", "x:1x2"), PROGRAM, "--shapes belongs to a model"),
    (("--nsys", "--launch-count", "3"), PROGRAM, "--launch-count belongs to --ncu"),
    (("--nsys", "--metrics", "full"), PROGRAM, "--metrics belongs to --ncu"),
    (("--ncu", "--cpu"), PROGRAM, "--cpu belongs to --nsys"),
    (("--trtexec", "--range", "a@b", "chain.onnx"), (), "--range belongs to --nsys and --ncu"),
    (("--nsys", "--range", "a@"), PROGRAM, "expected NAME or NAME@DOMAIN"),
    (("--nsys", "--ncu", "--range", "a@*"), PROGRAM, "only nsys takes a range of any domain"),
    (("--sweep", "x:1=9..3"), PROGRAM, "expected sizes that grow"),
    (("--sweep", "x=9"), PROGRAM, "such as ids:1=16..512:16"),
    (("--trace", "cu da"), PROGRAM, "such as cuda,nvtx"),
    (("--grid", "0"), PROGRAM, "one to three positive numbers"),
    (("--max", "x:4x8", "--shapes", "x:9x8", "chain.onnx"), (), "--shapes x:9x8 lies outside --max x:4x8"),
    (("--min", "x:4x8", "--shapes", "x:1x8x1", "chain.onnx"), (), "--shapes x:1x8x1 lies outside --min x:4x8"),
]


@pytest.mark.parametrize(("words", "target", "message"), USAGE, ids=[message[:25] for *_, message in USAGE])
def test_what_does_not_fit_is_told(tools, model, capsys, words, target, message):
    code, result = profile(*words, target=target)
    assert (code, result) == (2, {})
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_model_that_is_none(tools, capsys):
    Path("wrong.onnx").write_bytes(b"this is no model")
    code, result = profile("--nsys", "wrong.onnx", target=())
    assert code == 2
    assert steps(result)["preparation"]["error"].startswith("wrong.onnx: content: expected an ONNX model")
    assert "not run" not in steps(result)["preparation"]["error"]  # nothing else was asked for
    kept = [path for path in Path("run").rglob("*") if path.is_file() and path.parent.name not in ("logs", "model")]
    assert not [path for path in kept if str(Path.cwd()) in path.read_text()]  # nothing says where the files lie


SCALE = 'extern "C" __global__ void scale(float* x) { x[0] = 1; }\n'


@pytest.mark.parametrize(
    ("words", "code", "message", "step"),
    [
        ((), 2, "how is k.cu launched?", "preparation"),
        (("--grid", 1, "--block", 1), 2, "no value for x", "preparation"),
        (("--grid", 1, "--block", 1, "--args", "x.npz"), 125, "there is no NVIDIA driver here", "nsys"),
    ],
    ids=["no launch", "no arguments", "no GPU"],
)
def test_what_is_wrong_with_a_kernel_is_told_once_and_not_that_none_was_recorded(tools, words, code, message, step):
    Path("k.cu").write_text(SCALE)
    np.savez("x.npz", x=np.zeros(1, np.float32))
    if "x.npz" in words and Path("/dev/nvidia0").exists():
        pytest.skip("there is a GPU here")
    got, result = profile("--nsys", "--ncu", *words, "k.cu", target=())
    assert (got, list(steps(result))) == (code, [step])
    first, *_, last = steps(result)[step]["error"].splitlines()
    assert message in first
    assert last == f"not run, for they would fail the same way: {'nsys, ' * (step == 'preparation')}ncu"


def test_a_sweep_is_one_engine_and_one_curve(tools, capsys):
    node = helper.make_node("Relu", ["x"], ["y"])
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 8]) for name in ("x", "y")]
    graph = helper.make_graph([node], "relu", values[:1], values[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "relu.onnx")
    words = ("--nsys", "--backend", "ort-cpu", "--sweep", "x:0=1..4:1", "--iterations", 3, "--warmup", 1)
    code, result = profile(*words, "relu.onnx", target=())
    assert code == 0, result
    assert [row["size"] for row in result["top"]["sweep.json"]["sweep"]] == [1, 2, 3, 4]
    assert "per second" in capsys.readouterr().out
    assert set(result["top"]) == {"sweep.json", "nsys.sqlite"}  # nsys takes one shape: the sweep is beside it


def test_the_options_spell_out_what_the_settings_know():
    from harness.engines.options import BACKENDS, PRECISIONS
    from harness.tools import ncu

    assert profile_options.PRECISIONS == PRECISIONS
    assert profile_options.BACKENDS == BACKENDS
    assert profile_options.METRICS == ncu.SETS
    (replay,) = (one for one in cli.probe.commands["profile"].params if one.name == "replay_mode")
    assert tuple(replay.type.choices) == ncu.REPLAYS
    flags = {option.name for option in cli.probe.commands["profile"].params}
    assert set(profile_settings.TOOLS) <= flags


def test_the_command_line_in_the_manifest_asks_the_same_again_without_folders(tools):
    profile("--nsys", "--range", "a@b", "--iterations", 7, target=("/usr/bin/true", "x"))
    argv = json.loads(Path("run/manifest.json").read_text())["argv"]
    assert argv == ["profile", "--nsys", "--iterations", "7", "--range", "a@b", "--", "true", "x"]
