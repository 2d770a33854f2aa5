"""`probe bisect` end to end: what a user types, what they get, and what happens when things go wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from probes import cli
from small_models import make_proto, planted_chain

CULPRITS = ["/layer.4/up", "/layer.4/down"]


@pytest.fixture
def chain(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    onnx.save(planted_chain(), "chain.onnx")
    return Path("chain.onnx")


def bisect(*words, out="run") -> tuple[int, dict]:
    """Run the verb in this process; its exit code and its result.json."""
    code = cli.run(["bisect", *map(str, words), "--out", out])
    file = Path(out) / "result.json"
    return code, json.loads(file.read_text()) if file.exists() else {}


def steps(folder="run") -> list[dict]:
    return [json.loads(line) for line in (Path(folder) / "steps.jsonl").read_text().splitlines()]


def error_of(capsys) -> str:
    return capsys.readouterr().err


def test_precision_finds_the_planted_overflow_and_repairs_it(chain, capsys):
    code, result = bisect(chain, "--samples", 3)
    assert code == 1
    assert result["culprits"] == CULPRITS
    assert result["scopes"] == ["/layer.4"]
    assert result["certified_minimal"]
    assert float(result["error_before"]) > 0.01 >= result["error_after"]  # "Infinity" is a text in JSON
    assert result["repro_command"] == "probe bisect chain.onnx --samples 3"
    screen = capsys.readouterr().out
    assert "2 of 26 nodes must stay in FP32" in screen
    assert "/layer.4/up" in screen
    mixed = onnx.load(Path("run") / result["model_out"])
    onnx.checker.check_model(mixed, full_check=True)
    types = {v.name: v.type.tensor_type.elem_type for v in onnx.shape_inference.infer_shapes(mixed).graph.value_info}
    assert types["/layer.4/up:out"] == TensorProto.FLOAT
    assert types["/layer.3/gain:out"] == TensorProto.FLOAT16
    page = (Path("run") / "report.html").read_text().replace("<wbr>", "")
    assert "/layer.4/up" in page
    assert str(Path.home()) not in page


def test_a_model_without_fault_exits_0(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    onnx.save(planted_chain(faults=()), "fine.onnx")
    code, result = bisect("fine.onnx")
    assert (code, result["status"], result["culprits"]) == (0, "nothing_to_find", [])
    assert "Nothing to find" in capsys.readouterr().out


def test_json_to_stdout_is_all_of_stdout(chain, capsys):
    cli.run(["bisect", str(chain), "--out", "run", "--json", "-"])
    assert json.loads(capsys.readouterr().out)["culprits"] == CULPRITS


@pytest.mark.parametrize("jobs", [1, 3])
def test_any_number_of_workers_gives_the_same_result(chain, jobs):
    _, result = bisect(chain, "--jobs", jobs)
    assert result["culprits"] == CULPRITS
    queries = [json.dumps(row["query"]) for row in steps()]
    assert len(set(queries)) == len(queries), "nothing is evaluated twice"


def test_scope_first_finds_the_same(chain):
    _, result = bisect(chain, "--keep-scope")
    assert result["culprits"] == CULPRITS


def test_finite_on_the_model_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    nodes = [helper.make_node("Add", ["x", "one"], ["a"], name="add"), helper.make_node("Log", ["b"], ["c"], name="log"),
             helper.make_node("Neg", ["a"], ["b"], name="negate"), helper.make_node("Tanh", ["c"], ["y"], name="tanh")]  # fmt: skip
    order = [nodes[0], nodes[2], nodes[1], nodes[3]]
    onnx.save(
        make_proto(order, [("x", TensorProto.FLOAT, [4])], [("y", TensorProto.FLOAT, [4])], {"one": np.float32(2)}),
        "log.onnx",
    )
    code, result = bisect("log.onnx", "--fault", "finite")
    assert (code, result["culprits"]) == (1, ["log"])
    assert any("log" in note for note in result["notes"]), "the trace names the node that makes the first NaN"


def test_a_finite_model_in_half_precision_has_nothing_to_find(tmp_path, monkeypatch, capsys):
    """Nothing can be lowered in it, and nothing need be. What draws random numbers is named."""
    monkeypatch.chdir(tmp_path)
    nodes = [
        helper.make_node("RandomNormalLike", ["x"], ["r"], name="noise"),
        helper.make_node("Add", ["x", "r"], ["y"]),
    ]
    half = TensorProto.FLOAT16
    onnx.save(make_proto(nodes, [("x", half, [4])], [("y", half, [4])], {}), "half.onnx")
    code, result = bisect("half.onnx", "--fault", "finite")
    assert (code, result["status"], result["candidates"]) == (0, "nothing_to_find", 0)
    assert any("noise (RandomNormalLike)" in note for note in result["notes"])
    assert bisect("half.onnx", out="again")[0] == 2
    assert "float types in the model: FLOAT16" in error_of(capsys)


def test_finite_after_lowering(chain):
    code, result = bisect(chain, "--fault", "finite")
    assert (code, result["culprits"]) == (1, CULPRITS)


def test_compare_names_the_edited_node(chain):
    model = onnx.load(chain)
    for tensor in model.graph.initializer:
        if tensor.name == "bias":
            model.graph.initializer.append(numpy_helper.from_array(np.float32(0.35), "wrong"))
    node = next(n for n in model.graph.node if n.name == "/layer.7/bias")
    node.input[1] = "wrong"
    onnx.save(model, "edited.onnx")
    code, result = bisect("edited.onnx", "--fault", "compare", "--good", chain)
    assert (code, result["culprits"]) == (1, ["/layer.7/bias"])


CHECKER = """
import sys, onnx
model = onnx.load(sys.argv[1])
names = {n.name for n in model.graph.node}
if len(names) > 20 and "--skip" in sys.argv: sys.exit(125)
half = {v.name for v in onnx.shape_inference.infer_shapes(model).graph.value_info if v.type.tensor_type.elem_type == 10}
sys.exit(3 if "--lowered" in sys.argv and "/layer.2/gain:out" in half else 4 if "--present" in sys.argv and "/layer.6/bias" in names else 0)
"""


def test_check_keeps_what_the_users_command_needs(chain):
    Path("check.py").write_text(CHECKER)
    code, result = bisect(
        chain, "--fault", "check", "--check", f"{sys.executable} check.py {{model}} --lowered", "--timeout", 60
    )
    assert (code, result["culprits"]) == (1, ["/layer.2/gain"])
    assert result["signatures"] == {"/layer.2/gain": "exit 3"}


def test_check_asks_first_about_what_the_emulation_blames(chain):
    overflows = "import sys, onnx\nm = onnx.load(sys.argv[1], load_external_data=False)\n" \
        "half = {v.name for v in onnx.shape_inference.infer_shapes(m).graph.value_info if v.type.tensor_type.elem_type == 10}\n" \
        "sys.exit(bool(half & {f'/layer.{i}/up:out' for i in range(12)}))\n"  # fmt: skip
    Path("check.py").write_text(overflows)
    code, result = bisect(chain, "--fault", "check", "--check", f"{sys.executable} check.py {{model}}", "--jobs", 2)
    named = bisect(chain, out="second")[1]
    assert (code, result["certified_minimal"]) == (1, True)
    assert {*result["culprits"]} <= {*named["culprits"]}
    assert result["evaluations"] <= 3 + len(named["culprits"])
    assert any("emulated on the CPU first" in note for note in result["notes"])


def test_check_reduces_to_the_smallest_failing_part(chain):
    Path("check.py").write_text(CHECKER)
    code, result = bisect(
        chain, "--fault", "check", "--check", f"{sys.executable} check.py {{model}} --present", "--reduce"
    )
    assert (code, result["culprits"]) == (1, ["/layer.6/bias"])
    assert [n.name for n in onnx.load(Path("run") / result["model_out"]).graph.node] == ["/layer.6/bias"]


def test_a_check_that_fails_on_the_original_says_what_to_do(chain, capsys):
    code, _ = bisect(chain, "--fault", "check", "--check", "false")
    assert code == 125
    assert "stays when nothing is lowered" in (text := error_of(capsys))
    assert "--reduce" in text


def test_budget_keeps_the_best_so_far_and_resume_repeats_nothing(chain, capsys):
    code, result = bisect(chain, "--budget", 6)
    assert code == 125
    assert result["status"] == "stopped"
    assert "--resume run" in error_of(capsys)
    before = len(steps())
    settings = json.loads(Path("run/raw/settings.json").read_text())
    Path("run/raw/settings.json").write_text(json.dumps({**settings, "budget": None}))
    assert cli.run(["bisect", "--resume", "run"]) == 1
    after = json.loads(Path("run/result.json").read_text())
    assert after["culprits"] == CULPRITS
    assert after["cached"] == before
    queries = [json.dumps(row["query"]) for row in steps()]
    assert len(set(queries)) == len(queries)


SLOW_CHECK = "import sys, time; time.sleep(0.05); exec(open('check.py').read())"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_killed_and_resumed(chain, number, monkeypatch):
    """kill -9 or Ctrl-C at some step; --resume ends with the same result and evaluates nothing again."""
    Path("check.py").write_text(CHECKER)
    Path("slow.py").write_text(SLOW_CHECK)
    command = [sys.executable, "-c", "from probes.cli import main; main()", "bisect", str(chain), "--fault", "check", "--check",
               f"{sys.executable} slow.py {{model}} --lowered", "--out", "run"]  # fmt: skip
    process = subprocess.Popen(
        command,
        start_new_session=True,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (Path("run/steps.jsonl").exists() and len(steps()) >= 4):
        time.sleep(0.02)
    os.kill(process.pid, number)
    process.communicate(timeout=30)
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert json.loads(Path("run/result.json").read_text())["status"] == "stopped"
        assert Path("run/report.html").exists()
    before = len(steps())
    monkeypatch.delattr("probes.bisecting.suspicion._search")  # what the emulation said is known, too
    assert cli.run(["bisect", "--resume", "run"]) == 1
    result = json.loads(Path("run/result.json").read_text())
    assert result["culprits"] == ["/layer.2/gain"]
    assert result["cached"] == before
    assert result["evaluations"] + before == len(steps())


FLAKY = """
import pathlib, sys
asked = pathlib.Path("asked")
asked.write_text("x" * (len(asked.read_text()) + 1 if asked.exists() else 1))
lowered = pathlib.Path(sys.argv[1]).stat().st_size > pathlib.Path("chain.onnx").stat().st_size
sys.exit(lowered and len(asked.read_text()) % 2)
"""


def test_flaky_verdicts_are_reported_and_not_believed(chain):
    Path("flaky.py").write_text(FLAKY)
    check = f"{sys.executable} {Path('flaky.py').resolve()} {{model}}"
    code, result = bisect(chain, "--fault", "check", "--check", check, "--repeat", 2, "--budget", 6)
    assert code == 125
    assert result["unresolved"] >= 1
    assert any("not deterministic" in (row["signature"] or "") for row in steps())


@pytest.mark.parametrize("content,message", [(b"", "no"), (b"\x08\x07garbage" * 50, "expected")])
def test_files_that_are_no_models(tmp_path, monkeypatch, capsys, content, message):
    monkeypatch.chdir(tmp_path)
    Path("bad.onnx").write_bytes(content)
    assert bisect("bad.onnx")[0] == 2
    assert "bad.onnx" in (text := error_of(capsys))
    assert "Traceback" not in text


def test_a_truncated_model(chain, capsys):
    chain.write_bytes(chain.read_bytes()[:-40])
    assert bisect(chain)[0] == 2
    assert "Traceback" not in error_of(capsys)


def test_missing_file_and_missing_options(chain, capsys):
    assert bisect("nowhere.onnx")[0] == 2
    assert "nowhere.onnx does not exist" in error_of(capsys)
    assert bisect(chain, "--fault", "compare")[0] == 2
    assert "--good" in error_of(capsys)
    assert bisect(chain, "--good", chain)[0] == 2
    assert cli.run(["bisect"]) == 2
    assert "probe bisect MODEL.onnx" in error_of(capsys)
    assert cli.run(["bisect", "--resume", "nowhere", "--budget", "3"]) == 2
    assert cli.run(["bisect", "--resume", "nowhere"]) != 0


@pytest.mark.parametrize("feeds,message", [
    ({"z": np.zeros((1, 8), np.float32)}, "no array for input 'x'"),
    ({"x": np.zeros((1, 7), np.float32)}, "expected shape ?x8, got 1x7"),
    ({"x": np.zeros((1, 8))}, "expected dtype float32, got float64"),
])  # fmt: skip
def test_inputs_that_do_not_fit(chain, capsys, feeds, message):
    np.savez("in.npz", **feeds)
    assert bisect(chain, "--inputs", "in.npz")[0] == 2
    assert message in error_of(capsys)


def test_an_unknown_operator(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    onnx.save(make_proto([helper.make_node("Frobnicate", ["x"], ["y"], name="f"), helper.make_node("Tanh", ["y"], ["z"], name="t")],
                         [("x", TensorProto.FLOAT, [2])], [("z", TensorProto.FLOAT, [2])], {}), "odd.onnx")  # fmt: skip
    code, _ = bisect("odd.onnx")
    assert code in (2, 125)
    assert "Frobnicate" in (text := error_of(capsys))
    assert "Traceback" not in text


def test_a_reference_that_is_itself_nan(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    onnx.save(
        make_proto(
            [helper.make_node("Log", ["x"], ["y"], name="log")],
            [("x", TensorProto.FLOAT, [64])],
            [("y", TensorProto.FLOAT, [64])],
            {},
        ),
        "nan.onnx",
    )
    assert bisect("nan.onnx")[0] == 125
    assert "--fault finite" in error_of(capsys)


def test_a_model_with_nothing_to_lower(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    onnx.save(
        make_proto(
            [helper.make_node("Add", ["x", "x"], ["y"])],
            [("x", TensorProto.INT64, [2])],
            [("y", TensorProto.INT64, [2])],
            {},
        ),
        "int.onnx",
    )
    assert bisect("int.onnx")[0] == 2
    assert "no node computes in FP32" in error_of(capsys)


def test_a_changed_model_is_not_resumed(chain, capsys):
    bisect(chain, "--budget", 3)
    onnx.save(planted_chain(faults=(2,)), str(chain))
    assert cli.run(["bisect", "--resume", "run"]) == 2
    assert "has changed" in error_of(capsys)


def test_a_used_folder_is_refused(chain, capsys):
    bisect(chain)
    assert bisect(chain)[0] == 2
    assert "--resume run" in error_of(capsys)


def test_hostile_names_are_text_in_the_report(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = planted_chain()
    evil = "</script><script>alert(1)</script>\n\"'&<b>"
    next(n for n in model.graph.node if n.name == "/layer.4/up").name = evil
    onnx.save(model, "evil.onnx")
    _, result = bisect("evil.onnx")
    assert evil in result["culprits"]
    page = Path("run/report.html").read_text()
    assert "<script>alert(1)</script>" not in page


def test_external_data_and_names_that_are_empty_or_stand_twice(tmp_path, monkeypatch):
    """Weights beside the model; every culprit can still be told from its namesakes."""
    monkeypatch.chdir(tmp_path)
    model = planted_chain()
    weight = np.eye(64, dtype=np.float32)[:8]
    model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(weight), "wide"))
    model.graph.node.append(helper.make_node("MatMul", ["y", "wide"], ["z"]))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", 64]))
    for node in model.graph.node:
        node.name = "same" if "up" in node.name else ""
    model.graph.node[0].name = "same"
    onnx.save(model, "m.onnx", save_as_external_data=True, location="m.bin", size_threshold=0)
    _, result = bisect("m.onnx")
    assert result["culprits"] == ["same:/layer.4/up:out", "/layer.4/down:out"]
    onnx.checker.check_model(str(Path("run") / result["model_out"]))


def test_external_data_that_is_cut_off_or_elsewhere(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = planted_chain()
    model.graph.initializer.append(numpy_helper.from_array(np.ones((64, 64), np.float32), "wide"))
    onnx.save(model, "m.onnx", save_as_external_data=True, location="m.bin", size_threshold=0)
    Path("m.bin").write_bytes(Path("m.bin").read_bytes()[:100])
    assert bisect("m.onnx")[0] == 2
    assert "m.bin" in error_of(capsys)
    Path("m.bin").unlink()
    assert bisect("m.onnx")[0] == 2
    assert "no such file" in error_of(capsys)
