"""`probe sanitize` end to end, on a fake compute-sanitizer that replays real records, and on the CPU emulation."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import recorded_encoder
from harness.models import graph as graphs
from harness.models.model import from_proto
from harness.record import Command, Session
from harness.tools import sanitizer
from harness.tools import tool as found
from installed import OPTIONS, TENSORRT_TRACE, Tools, replaying
from places import DATA
from probes import cli
from probes.sanitizing import options as sanitize_options
from probes.targets.workloads import Workload
from small_models import planted_chain

PROGRAM = (sys.executable, "-S", "-c", "pass")
KERNEL = (
    "sm80_xmma_gemm_f32f32_f32f32_f32_tn_n_tilesize64x64x8_stage3_warpsize1x4x1_ffma_aligna4_alignc4_execute_kernel_trt"
)
PRODUCT = KERNEL.replace("_tn_n_", "_nn_n_")  # of query, key and value in one: an operation that names no node
LAYER = "{ForeignNode[l0.q + (Unnamed Layer* 1) [Shuffle]...out]}"
CLEAN = {"memcheck": None, "racecheck": None, "initcheck": None, "synccheck": None}


@pytest.fixture
def tools(tmp_path, monkeypatch) -> Tools:
    """A program whose kernel KERNEL has a fault in its third launch, and a timeline of it."""
    made = replaying(tmp_path / "bin")
    made.set("nsys", data=TENSORRT_TRACE)
    made.set(
        "compute-sanitizer",
        **CLEAN | {"memcheck": DATA / "sanitizer" / "h100_2025.3_memcheck_oob.xml"},
        kernel=KERNEL,
        faulty=2,
    )
    monkeypatch.setenv("PATH", made.environment["PATH"])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.chdir(tmp_path)
    return made


def sanitize(*words: object, target: tuple[str, ...] = PROGRAM, out: str = "run") -> tuple[int, dict[str, Any]]:
    """Run the verb in this process; its exit code and its result.json."""
    code = cli.run(["sanitize", "--out", out, *map(str, words), *(("--", *target) if target else ())])
    file = Path(out) / "result.json"
    return code, json.loads(file.read_text()) if file.exists() else {}


def ran(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {step["name"]: step for step in result["ran"]}


def checkers(tools: Tools) -> list[str]:
    """What each run of the sanitizer checked, but those of the halving."""
    return [call[1] for call in tools.calls("compute-sanitizer") if "--launch-count" not in call]


def test_a_clean_program(tools, capsys):
    tools.set("compute-sanitizer", **CLEAN)
    code, result = sanitize()
    assert (code, result["status"], result["findings"]) == (0, "clean", [])
    assert checkers(tools) == ["memcheck"]
    assert tools.calls("nsys") == []
    assert "nothing was found" in capsys.readouterr().out


def test_a_finding_ends_at_the_launch_the_layer_and_the_nodes(tools, capsys):
    code, result = sanitize()
    assert code == 1
    fault, *calls = result["findings"]
    assert (fault["kind"], fault["kernel"], fault["file"], fault["line"], fault["count"]) == (
        "Invalid __global__ write", KERNEL, "bugs.cu", 3, 28)  # fmt: skip
    assert (fault["launch"], fault["layer"], fault["onnx_nodes"]) == (2, LAYER, ["l2_qk_matrix_multiply"])
    assert fault["ranges"][0] == "infer fp32@probe"
    assert fault["how"].startswith("launch 2 of 20 of this kernel, found by halving")
    assert {call["kind"] for call in calls} == {"CUDA API error"}
    assert all(call["layer"] is None for call in calls)
    assert "l2_qk_matrix_multiply" in "".join(capsys.readouterr().out.split())
    _check_what_was_run(tools)
    _check_the_report()


def test_nodes_that_no_name_tells_are_inferred_from_the_model_and_marked(tools, capsys, monkeypatch):
    def prepared(_: object, session: Session, tell: object) -> Workload:
        document = graphs.document(from_proto(recorded_encoder.make(), Path("encoder.onnx")))
        session.write_json("raw/model.graph.json", document)  # as the build of the engine leaves it
        return Workload(Command(PROGRAM))

    monkeypatch.setattr("probes.targets.workloads.for_sanitizer", prepared)
    tools.set("compute-sanitizer", kernel=PRODUCT, faulty=0)
    code, result = sanitize("--no-follow")
    assert code == 1
    fault = result["findings"][0]
    assert (fault["layer"], fault["onnx_nodes"], fault["inferred_nodes"]) == (LAYER, [], ["l0.q", "l0.k", "l0.v"])
    assert (result["onnx_nodes"], result["inferred_nodes"]) == ([], ["l0.q", "l0.k", "l0.v"])
    assert "l0.q,l0.k,l0.v(inferred)" in "".join(capsys.readouterr().out.split()).replace("│", "")
    assert cli.run(["report", "run", "--tables", "tables"]) == 0
    assert next(Path("tables").glob("memcheck.xml*/findings.csv")).read_text().count("l0.v") == 28
    page = Path("run/report.html").read_text()
    assert "Inferred nodes" in page
    assert "ONNX nodes l0.q, l0.k, l0.v (inferred)" in page
    assert "l0.v" in page[page.index(">Faults</h2>") :]


def test_a_kernel_that_the_checker_accuses_as_it_does_good_ones_is_left_out(tools):
    """On sm_90 it stops at TensorRT's products, before it comes to the kernel at fault."""
    tools.set("compute-sanitizer", alarm="sm90_gemm", faulty=0)
    code, result = sanitize("--no-follow", "--no-locate")
    assert code == 1
    assert result["kernels"] == [KERNEL]
    assert {one["kind"] for one in result["findings"]} == {"Invalid __global__ write", "CUDA API error"}
    *_, last = result["ran"]
    assert any("memcheck accused sm90_gemm" in note for note in last["notes"])
    exclude = [call[call.index("--kernel-name-exclude") + 1] for call in tools.calls("compute-sanitizer")[1:]]
    assert exclude == ["kns=sm90_gemm"]
    assert "at least 2 blocks" not in Path("run/report.html").read_text()


def test_a_program_in_which_nothing_else_is_wrong_is_clean(tools):
    tools.set("compute-sanitizer", alarm="sm90_gemm", faulty=-1)
    code, result = sanitize("--no-follow")
    assert (code, result["status"], result["findings"]) == (0, "clean", [])


def test_an_accusation_stands_where_nothing_else_explains_what_went_wrong(tools, monkeypatch):
    monkeypatch.setattr("probes.sanitizing.running._only_calls", lambda found: True)
    tools.set("compute-sanitizer", alarm="sm90_gemm", faulty=-1)
    code, result = sanitize("--no-follow", "--no-locate")
    assert code == 1
    assert result["kernels"] == ["sm90_gemm"]


def _check_what_was_run(tools: Tools) -> None:
    """The suspect alone under the other checkers, and few runs for the halving."""
    calls = tools.calls("compute-sanitizer")
    assert [int(c[c.index("--launch-count") + 1]) for c in calls if "--launch-count" in c] == [1, 2, 4, 3]
    filters = {
        c[1]: c[c.index("--kernel-name") + 1] if "--kernel-name" in c else None
        for c in calls
        if "--launch-count" not in c
    }
    # initcheck has to see every kernel: what another one wrote would look uninitialised.
    suspect = f"kns={KERNEL}"
    assert filters == {"memcheck": None, "racecheck": suspect, "initcheck": None, "synccheck": suspect}


def _check_the_report() -> None:
    """The layer of each finding is on the page, also when the session is read again; the halving's runs are not."""
    assert cli.run(["report", "run", "--tables", "tables"]) == 0
    memcheck = next(Path("tables").glob("memcheck.xml*/findings.csv")).read_text()
    assert memcheck.count(LAYER) == 28
    assert memcheck.count("l2_qk_matrix_multiply") == 28
    page = Path("run/report.html").read_text()
    assert "l2_qk_matrix_multiply" in page
    assert page.index(">Faults</h2>") < page.index(">Findings</h2>")
    assert "found by halving" in page
    assert list(Path("tables").glob("*locate*")) == []


def test_all_checkers_over_everything(tools):
    tools.set("compute-sanitizer", **CLEAN)
    code, _ = sanitize("--tool", "all", "--leaks")
    assert code == 0
    assert checkers(tools) == list(sanitizer.CHECKERS)
    leaks = [call[1] for call in tools.calls("compute-sanitizer") if "--leak-check" in call]
    assert leaks == ["memcheck"]


def test_nothing_more_is_run_than_was_asked_for(tools):
    code, result = sanitize("--no-follow", "--no-locate")
    assert code == 1
    assert len(tools.calls("compute-sanitizer")) == 1
    assert tools.calls("nsys") == []
    assert result["findings"][0]["launch"] is None


def test_records_and_text_of_one_run_are_one_artifact(tools):
    sanitize("--no-follow", "--no-locate")
    cli.run(["report", "run", "--json", "again.json"])
    (artifact,) = json.loads(Path("again.json").read_text())["artifacts"]
    assert artifact["kind"] == "sanitizer-xml"
    assert artifact["summary"]["reported"] == 31  # which the text alone says
    assert not any("no summary" in note for note in artifact["notes"])


# Without the means to look a launch up


def test_without_nsys_the_launch_is_told_and_that_no_more_is_known(tools, monkeypatch):
    tools.remove("nsys")
    monkeypatch.setattr(found, "USUAL_PLACES", ())
    code, result = sanitize("--no-follow")
    assert code == 1
    fault = result["findings"][0]
    assert (fault["launch"], fault["layer"]) == (2, None)
    assert any("without nsys" in note for step in result["ran"] for note in step["notes"])


def test_a_launch_beyond_the_end_of_the_timeline_falls_back_to_the_only_layer(tools):
    tools.set("compute-sanitizer", faulty=30)
    _, result = sanitize("--no-follow")
    fault = result["findings"][0]
    assert (fault["launch"], fault["layer"]) == (30, LAYER)
    assert "only one layer launches this kernel" in fault["how"]
    assert "the timeline ends before launch 30" in fault["how"]


def test_a_timeline_that_fails_does_not_lose_the_findings(tools):
    tools.set("nsys", mode="crash")
    code, result = sanitize("--no-follow")
    assert code == 1
    assert ran(result)["trace"]["status"] == "failed"
    assert result["findings"][0]["launch"] == 2


def test_an_uninitialised_read_is_not_halved(tools):
    tools.set("compute-sanitizer", **CLEAN | {"initcheck": DATA / "sanitizer" / "h100_2025.3_initcheck.xml"})
    code, result = sanitize("--tool", "initcheck", "--no-follow")
    assert code == 1
    assert not any("--launch-count" in call for call in tools.calls("compute-sanitizer"))
    fault = result["findings"][0]
    assert (fault["launch"], fault["layer"]) == (None, LAYER)
    assert fault["onnx_nodes"] == []  # several operations of the layer launch the kernel: none of them is named


def test_an_older_sanitizer_cannot_count_launches(tools):
    tools.set(
        "compute-sanitizer", version="2021.1.0", options="--tool --xml --save --filter --error-exitcode --print-limit"
    )
    _, result = sanitize("--no-follow")
    assert "cannot count launches" in result["findings"][0]["how"]
    first = tools.calls("compute-sanitizer")[0]
    assert first[first.index("--xml") + 1] == "yes"


# What goes wrong

FAILURES = [
    ({"mode": "fail", "says": "unrecognised option '--xml'"}, "does not know the option --xml"),
    ({"mode": "crash"}, "signal 11"),
    ({"mode": "killed"}, "want of memory"),
    ({"mode": "garbage"}, "neither records nor a summary"),
    ({"mode": "no cuda"}, "without a CUDA call: nothing was checked"),
    ({"mode": "fail", "says": "Error: Device not supported"}, "does not support this GPU"),
    ({"mode": "fail", "says": "error: No space left on device"}, "the disk is full"),
]


@pytest.mark.parametrize(("behaviour", "message"), FAILURES, ids=[message[:30] for _, message in FAILURES])
def test_a_checker_that_fails_is_told(tools, behaviour, message):
    tools.set("compute-sanitizer", **behaviour)
    code, result = sanitize()
    assert (code, result["status"]) == (125, "failed")
    assert message in ran(result)["memcheck"]["error"]
    assert ran(result)["memcheck"]["hint"]


def test_records_that_are_cut_short_still_count(tools):
    tools.set("compute-sanitizer", mode="half")
    code, result = sanitize("--no-follow", "--no-locate")
    assert code == 1
    assert result["findings"][0]["count"] < 28


def test_findings_of_which_no_record_is_left_are_no_clean_bill(tools):
    tools.set("compute-sanitizer", mode="empty")
    code, result = sanitize()
    assert (code, result["status"], result["findings"]) == (1, "failed", [])
    assert "counted 31 errors, and no record of them can be read" in ran(result)["memcheck"]["error"]


def test_the_exit_code_of_the_program_is_kept_apart(tools):
    code, result = sanitize(
        "--no-follow", "--no-locate", target=(sys.executable, "-S", "-c", "import sys; sys.exit(7)")
    )
    assert code == 1
    assert result["program_exit_code"] == 7
    assert any("the program failed" in note for note in ran(result)["memcheck"]["notes"])
    code, result = sanitize("--no-follow", "--no-locate", out="other")
    assert result["program_exit_code"] == 0  # the code that says "found something" is the tool's


def test_a_checker_that_hangs_is_stopped_with_all_it_started(tools, gone):
    tools.set("compute-sanitizer", mode="hang")
    code, result = sanitize("--timeout", 0.5)
    assert code == 125
    assert "was stopped after 0.5 s" in ran(result)["memcheck"]["error"]
    assert gone(tools.pids)


def test_ctrl_c_keeps_what_is_there(tools, probe_argv, wait_for, gone, tmp_path):
    tools.set("nsys", mode="hang")
    words = [*probe_argv, "sanitize", "--out", "run", "--no-follow", "--", *PROGRAM]
    process = subprocess.Popen(words, env={**os.environ, **tools.environment}, cwd=tmp_path)
    try:
        wait_for(tools.hangs.exists)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    result = json.loads(Path("run/result.json").read_text())
    assert result["status"] == "interrupted"
    assert result["findings"][0]["kernel"] == KERNEL
    assert Path("run/report.html").exists()
    assert gone(tools.pids)


def test_no_sanitizer_no_session(tools, capsys, monkeypatch):
    tools.remove("compute-sanitizer")
    monkeypatch.setattr(found, "USUAL_PLACES", ())
    assert sanitize() == (2, {})
    assert "compute-sanitizer is needed to find" in capsys.readouterr().err
    assert not Path("run").exists()


USAGE = [
    ((), (), "what is to be looked at"),
    (("--leaks", "--tool", "racecheck"), PROGRAM, "--leaks belongs to memcheck"),
    (("--emulate",), PROGRAM, "belong to a kernel"),
    (("--shapes", "x:1"), PROGRAM, "belong to a model"),
    (("missing.cu",), (), "missing.cu does not exist"),
]


@pytest.mark.parametrize(("words", "target", "message"), USAGE, ids=[message for *_, message in USAGE])
def test_what_does_not_fit_is_told(tools, capsys, words, target, message):
    assert sanitize(*words, target=target) == (2, {})
    assert message in " ".join(capsys.readouterr().err.split())


def test_the_options_spell_out_what_the_harness_knows():
    assert (*sanitizer.CHECKERS, "all") == sanitize_options.CHECKERS


# A model, and a kernel on the processor


def test_a_model_is_run_by_a_worker_of_ours(tools):
    onnx.save(planted_chain(), "chain.onnx")
    tools.set("compute-sanitizer", **CLEAN)
    code, result = sanitize("--backend", "ort-cpu", "chain.onnx", target=())
    assert code == 0, result
    assert "probes.targets.inferring" in tools.calls("compute-sanitizer")[0]


def test_a_model_that_could_not_be_run_is_not_called_clean(tools):
    Path("wrong.plan").write_bytes(b"this is no engine")
    code, result = sanitize("wrong.plan", target=())
    assert (code, result["status"]) == (2, "failed")
    assert ran(result)["preparation"]["error"].startswith("wrong.plan is no engine")
    assert tools.calls("compute-sanitizer") == []


def test_a_kernel_that_could_not_be_launched_is_not_called_clean(tools):
    Path("scale.cu").write_text(FAULTY)
    tools.set("compute-sanitizer", **CLEAN)
    np.savez("args.npz", out=np.zeros(40, np.float32), **{"in": np.ones(40, np.float32)}, n=np.int32(40))
    code, result = sanitize("--grid", 1, "--block", 64, "--args", "args.npz", "scale.cu", target=())
    assert (code, result["status"]) == (125, "failed")  # the fake tools say that there is a GPU, and there is none
    assert ran(result)["memcheck"]["error"]


def test_launches_that_were_not_checked_are_no_clean_bill(tools):
    tools.set("compute-sanitizer", **CLEAN)
    said = ("========= Internal Sanitizer Error: The Sanitizer encountered an error while launching gemm and didn't track the launch."
            " Errors might go undetected. (Unable to allocate enough memory to perform the requested operation)")  # fmt: skip
    code, result = sanitize(target=(sys.executable, "-S", "-c", f"print({said!r}); print({said!r})"))
    assert (code, result["status"], result["findings"]) == (125, "failed", [])
    assert "could not check 2 of the program's launches" in ran(result)["memcheck"]["error"]


def test_a_range_is_for_a_checker_that_knows_ranges(tools, capsys):
    assert sanitize("--range", "step@app") == (2, {})
    assert "--range needs compute-sanitizer 2026.4 or newer, and 2025.3.1 is here" in capsys.readouterr().err


def test_a_range_is_selected_as_pushed_and_as_started(tools):
    tools.set(
        "compute-sanitizer", version="2026.4.0", options=f"{OPTIONS['compute-sanitizer']} --nvtx-include", **CLEAN
    )
    code, _ = sanitize("--range", "step@app")
    assert code == 0
    (call,) = tools.calls("compute-sanitizer")
    assert [call[at + 1] for at, word in enumerate(call) if word == "--nvtx-include"] == ["app@step/", "app@step"]


FAULTY = """
extern "C" __global__ void scale(float* out, const float* in, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    out[i] = 2.0f * in[i];
}
"""


def test_a_kernel_without_a_gpu_is_checked_by_the_emulation(tools):
    Path("scale.cu").write_text(FAULTY)
    np.savez("args.npz", out=np.zeros(40, np.float32), **{"in": np.ones(40, np.float32)}, n=np.int32(40))
    words = ("--entry", "scale", "--grid", 1, "--block", 64, "--args", "args.npz", "--emulate", "scale.cu")
    code, result = sanitize(*words, target=())
    assert code == 1, result
    kinds = {(f["kernel"], f["file"], f["line"]) for f in result["findings"]}
    assert ("scale", "scale.cu", 4) in kinds
    assert tools.calls("compute-sanitizer") == []
    assert Path("run/report.html").exists()


def test_a_clean_kernel_without_a_gpu(tools):
    Path("scale.cu").write_text(FAULTY.replace("out[i]", "if (i < n) out[i]"))
    np.savez("args.npz", out=np.zeros(40, np.float32), **{"in": np.ones(40, np.float32)}, n=np.int32(40))
    words = ("--grid", 1, "--block", 64, "--args", "args.npz", "--emulate", "scale.cu")
    code, result = sanitize(*words, target=())
    assert (code, result["status"]) == (0, "clean"), result
