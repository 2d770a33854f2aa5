"""`probe ladder bert | fusion` from the outside, on a machine without a GPU."""

from __future__ import annotations

import json

import numpy as np
import pytest

from harness.bert import model as bert
from harness.bert.model import BertConfig
from probes import cli
from probes.laddering import running as laddering

CONFIG = BertConfig(64, 1, 2, 128, vocab_size=50, max_position=32)


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setattr(laddering, "device_here", lambda: None)
    from probes.laddering import fusion as fusion_laddering

    monkeypatch.setattr(fusion_laddering, "device_here", lambda: None)


def run(tmp_path, *words, kind="bert"):
    code = cli.run(["ladder", kind, *words, "--out", str(tmp_path / "s")])
    return code, json.loads((tmp_path / "s" / "result.json").read_text())


@pytest.fixture
def text(tmp_path):
    """Ids of three sentences of different lengths."""
    lengths = np.array([9, 4, 12])
    mask = (np.arange(12)[None, :] < lengths[:, None]).astype(np.int64)
    path = tmp_path / "text.npz"
    ids = np.random.default_rng(0).integers(0, 50, mask.shape)
    np.savez(path, input_ids=ids, token_type_ids=np.zeros_like(mask), attention_mask=mask)
    return path


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.onnx"
    weights = {name: 5 * array if array.ndim == 2 else array for name, array in bert.random_weights(CONFIG).items()}
    return bert.save(bert.build_onnx(CONFIG, weights), path)


def test_without_a_gpu_results_are_checked_and_no_time_of_ours_is_made_up(tmp_path, capsys):
    code, result = run(tmp_path, "--config", "tiny", "--seq", "16", "--steps", "fp32,fp16,gelu,int8-attention")
    assert code == 0
    ours = [row for row in result["rungs"] if row["route"] == "kernels"]
    assert [row["rung"] for row in ours] == ["fp32", "fp16", "gelu", "int8-attention"]
    for row in ours:
        assert row["latency_ns"] == {"median": None, "p99": None}
        assert row["speedup_previous"] is row["speedup_total"] is row["roofline_pct"] is None
        assert row["emulated_s"] > 0
        assert 0 < row["relative_l2"] <= row["bound"]
        assert row["cosine"] > 0.99
        assert row["memory_bytes"] == row["weight_bytes"] + row["activation_bytes"]
    assert ours[0]["relative_l2"] < 1e-5 < ours[1]["relative_l2"]
    onnx = [row for row in result["rungs"] if row["route"] == "onnx"]
    assert [row["rung"] for row in onnx] == ["fp32", "fp16"]
    assert all(row["latency_ns"]["median"] > 0 and row["throughput"] > 0 for row in onnx)
    assert all(one["bound_ns"] is None and one["bytes"] > 0 for row in ours for one in row["operations"])
    shown = capsys.readouterr().out
    assert "our kernels" in shown
    assert "of the roofline" not in shown, "a column without values"
    assert (tmp_path / "s" / "report.html").is_file()


def test_the_users_weights_and_text(tmp_path, model, text):
    code, result = run(tmp_path, "--weights", str(model), "--inputs", str(text), "--routes", "kernels",
                       "--steps", "fp32,varlen,int8,int8-attention", "--method", "entropy")  # fmt: skip
    assert code == 0
    assert (result["batch"], result["sequence"], result["tokens"]) == (3, 12, 25)
    assert result["model"]["heads"] == 2
    assert result["calibration"] == {"method": "entropy", "real": True}
    rows = {row["rung"]: row for row in result["rungs"]}
    assert rows["varlen"]["flops"] < 0.8 * rows["fp32"]["flops"] + 1
    assert rows["int8"]["weight_bytes"] < 0.6 * rows["fp32"]["weight_bytes"]
    assert len(rows["int8"]["layers"]) == 1


def test_what_is_not_installed_is_said_once_for_each_route(tmp_path, capsys):
    code, result = run(tmp_path, "--config", "tiny", "--routes", "plugins,frameworks")
    missing = [row for row in result["rungs"] if row["whole_route"]]
    assert code in (0, 125)
    assert len({row["route"] for row in missing}) == len(missing) > 0
    shown = capsys.readouterr().out
    for row in missing:
        assert row["note"]
        assert f"{row['route_title']}: {row['note']}"[:60] in shown


def test_a_framework_is_a_route_by_its_own_name(tmp_path):
    _, result = run(tmp_path, "--config", "tiny", "--seq", "8", "--steps", "fp16", "--routes", "onnx,torch-tensorrt")
    assert [row["route"] for row in result["rungs"]] == ["onnx", "torch-tensorrt"]


def test_steps_that_fail_are_said_once_in_short_and_leave_the_answer_open(tmp_path, monkeypatch, capsys):
    from harness.errors import BuildFailed
    from probes.laddering import routes as ladder_routes

    def refuse(made, feeds):
        raise BuildFailed("compiling attention.cu failed:\nIn function:\nattention.cu:3: error: no such name\n3 | here")

    monkeypatch.setattr(ladder_routes, "emulate", refuse)
    code, result = run(tmp_path, "--config", "tiny", "--seq", "8", "--steps", "fp32,fp16", "--routes", "kernels,onnx")
    assert code == 125, "the peers alone were measured"
    said = "compiling attention.cu failed: attention.cu:3: error: no such name (raw/kernels-failed.txt)"
    assert [row["note"] for row in result["rungs"] if row["route"] == "kernels"] == [said, said]
    assert f"FP32, FP16 (our kernels): {said}" in " ".join(capsys.readouterr().out.split())
    assert "3 | here" in (tmp_path / "s" / "raw" / "kernels-failed.txt").read_text()


def test_bisect_names_who_is_to_blame(tmp_path, model, text):
    code, result = run(tmp_path, "--weights", str(model), "--inputs", str(text), "--routes", "kernels",
                       "--steps", "fp16,int8", "--bisect", "--tolerance", "1e-3")  # fmt: skip
    assert code == 0
    found = {one["precision"]: one for one in result["bisect"]}
    if "fp16" in found:
        assert (tmp_path / "s" / found["fp16"]["note"]).is_file()
    assert found["int8"]["culprits"] == []
    assert "not to int8" in found["int8"]["note"]
    assert "What is to blame" in (tmp_path / "s" / "report.html").read_text()


@pytest.mark.parametrize(("interrupted", "expected"), [(True, 130), (False, 0)])
def test_a_bisection_that_is_stopped_leaves_what_was_measured(
    tmp_path, model, text, monkeypatch, interrupted, expected
):
    from harness.errors import SearchStopped

    def stopped(*_):
        raise SearchStopped("so far 3 of 4 kept in FP32", None, interrupted=interrupted)

    monkeypatch.setattr(laddering.bisecting, "start", stopped)
    code, result = run(tmp_path, "--weights", str(model), "--inputs", str(text), "--routes", "onnx", "--steps", "fp16,int8",
                       "--bisect", "--tolerance", "1e-6")  # fmt: skip
    assert code == expected
    assert result["interrupted"] is interrupted
    assert [row["rung"] for row in result["rungs"]] == ["fp16", "int8"]
    assert result["bisect"][0]["note"] == "so far 3 of 4 kept in FP32"
    assert len(result["bisect"]) == (1 if interrupted else 2), "Ctrl-C ends the other searches too"
    assert (tmp_path / "s" / "report.html").is_file()


def test_a_wrong_result_is_exit_code_one(tmp_path, monkeypatch):
    from probes.laddering import routes as ladder_routes

    honest = ladder_routes.emulate

    def emulate(made, feeds):
        done = honest(made, feeds)
        for name, array in done.arrays.items():
            if name.startswith("layer.0") and array.ndim > 1:
                array[...] = np.float16(1.5)
        return done

    monkeypatch.setattr(ladder_routes, "emulate", emulate)
    config = tmp_path / "config.json"
    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 128, "vocab_size": 50,
             "max_position_embeddings": 32, "type_vocab_size": 2, "layer_norm_eps": 1e-12}  # fmt: skip
    config.write_text(json.dumps(sizes))
    code, result = run(tmp_path, "--config", str(config), "--seq", "8", "--routes", "kernels", "--steps", "fp16")
    assert code == 1
    assert result["rungs"][0]["verdict"] == "fail"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--steps", "fp8"], "no step 'fp8'"), (["--routes", "x"], "no route 'x'"), (["--config", "huge"], "no BERT preset"),
        (["--seq", "513", "--config", "tiny"], "512"),
        (["--config", "tiny", "--inputs", "{text}", "--batch", "3"], "--batch 3: the text of --inputs text.npz says it"),
        (["--config", "tiny", "--inputs", "{text}", "--lengths", "full"], "--lengths full"),
        (["--config", "tiny", "--weights", "{model}"], "--config tiny: --weights model.onnx says its sizes itself"),
        (["--config", "tiny", "--calibration", "{model}"], "model.onnx is no .npz of arrays"),
        (["--weights", "{text}"], "expected .safetensors or .onnx, got .npz"),
        (["--config", "{model}"], "a model's config.json"),
    ],
)  # fmt: skip
def test_usage(tmp_path, capsys, text, model, words, says):
    words = [word.format(text=text, model=model) for word in words]
    assert cli.run(["ladder", "bert", *words, "--out", str(tmp_path / "s")]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


def test_inputs_that_are_no_text_are_refused(tmp_path, capsys, text):
    held = dict(np.load(text))
    for name, change in {"ids": {"input_ids": held["input_ids"] + 50_000}, "mask": {"attention_mask": held["attention_mask"][:, ::-1]},
                         "types": {"token_type_ids": held["token_type_ids"] + 2}, "none": {name: held[name][:0] for name in held},
                         "shape": {"input_ids": held["input_ids"][:2]}}.items():  # fmt: skip
        path = tmp_path / f"{name}.npz"
        np.savez(path, **{**held, **change})
        assert cli.run(["ladder", "bert", "--config", "tiny", "--inputs", str(path), "--out", str(tmp_path / "s")]) == 2
        assert f"{name}.npz" in capsys.readouterr().err


def test_an_interruption_keeps_what_was_taken_and_says_so(tmp_path, monkeypatch):
    from probes.laddering import routes as ladder_routes

    honest = ladder_routes.emulate

    def emulate(made, feeds):
        if made.options.precision == "fp16":
            raise KeyboardInterrupt
        return honest(made, feeds)

    monkeypatch.setattr(ladder_routes, "emulate", emulate)
    code, result = run(tmp_path, "--config", "tiny", "--seq", "8", "--routes", "kernels", "--steps", "fp32,fp16,int8")
    assert code == 130
    assert result["interrupted"] is True
    assert [row["rung"] for row in result["rungs"]] == ["fp32"]
    page = (tmp_path / "s" / "report.html").read_text()
    assert "sequence 8, interrupted: 1 step checked" in page


def test_what_was_interrupted_goes_on_and_measures_nothing_twice(tmp_path, monkeypatch, capsys, text, model):
    from probes.laddering import routes as ladder_routes

    honest, taken = ladder_routes.emulate, []

    def emulate(made, feeds):
        taken.append(made.options.precision)
        if taken == ["fp32", "fp16"]:
            raise KeyboardInterrupt
        return honest(made, feeds)

    monkeypatch.setattr(ladder_routes, "emulate", emulate)
    words = (
        "--weights",
        str(model),
        "--inputs",
        str(text),
        "--routes",
        "kernels,onnx",
        "--steps",
        "fp32,fp16,int8",
        "--method",
        "entropy",
    )
    assert run(tmp_path, *words)[0] == 130
    folder = tmp_path / "s"
    assert f"probe ladder bert --resume {folder} goes on" in capsys.readouterr().out.replace("\n", "")
    (folder / "result.json").unlink()  # as after kill -9
    assert cli.run(["ladder", "bert", "--resume", str(folder)]) == 0
    assert taken == ["fp32", "fp16", "fp16", "int8"]
    result = json.loads((folder / "result.json").read_text())
    whole = run(tmp_path / "whole", *words)[1]
    told = [
        {name: row[name] for name in ("route", "rung", "status", "relative_l2", "bound")} for row in result["rungs"]
    ]
    assert told == [{name: row[name] for name in told[0]} for row in whole["rungs"]]
    assert (result["interrupted"], result["calibration"]) == (False, whole["calibration"])
    before = len(taken)
    assert cli.run(["ladder", "bert", "--resume", str(folder)]) == 0
    assert len(taken) == before, "there was nothing left to do"


def test_resuming_something_else_is_refused(tmp_path, capsys, text, monkeypatch):
    words = ("--config", "tiny", "--inputs", str(text), "--routes", "onnx", "--steps", "fp32")
    assert run(tmp_path, *words)[0] == 0
    folder = str(tmp_path / "s")
    assert cli.run(["ladder", "bert", "--resume", folder, "--seq", "8"]) == 2
    assert "sequence is one too many" in capsys.readouterr().err
    assert cli.run(["ladder", "bert", "--resume", str(tmp_path)]) == 2
    assert "no session folder" in capsys.readouterr().err
    content = dict(np.load(text))
    np.savez(text, **{**content, "input_ids": content["input_ids"][::-1]})
    assert cli.run(["ladder", "bert", "--resume", folder]) == 2
    assert "the model or its inputs have changed" in capsys.readouterr().err


def test_the_fusion_exercise(tmp_path, capsys):
    code, result = run(tmp_path, kind="fusion")
    assert code == 0
    assert [(row["rung"], row["launches"]) for row in result["rungs"]] == [
        ("5 kernels", 5), ("3 kernels", 3), ("3 kernels, 2 streams", 3), ("1 kernel", 1),
    ]  # fmt: skip
    assert all(row["worst_roundings"] < 4.5 for row in result["rungs"])
    assert "checked against float64" in capsys.readouterr().out
    page = (tmp_path / "s" / "report.html").read_text()
    assert "The fusion exercise" in page
    assert "tokens" not in page.partition("Every step")[2].partition("</table>")[0]
