"""`probe kernels list | test | bench` from the outside."""

from __future__ import annotations

import json

import pytest

from kernels.manifest import SPECS
from probes import cli
from probes.kernels import testing as kernel_testing


def test_list_says_what_there_is(capsys):
    assert cli.run(["kernels", "list"]) == 0
    shown = capsys.readouterr().out
    for spec in SPECS:
        assert spec.name in shown
    assert "CustomSkipLayerNormPluginDynamic" in shown


def test_list_as_json(capsys):
    assert cli.run(["kernels", "list", "--json", "-"]) == 0
    listed = json.loads(capsys.readouterr().out)["kernels"]
    (skip,) = (kernel for kernel in listed if kernel["name"] == "skip_layernorm")
    assert skip["versions"] == {"1": "5", "2": "6", "3": "7", "4": "8"}
    assert skip["sources"] == ["skip_layernorm.cu"]
    assert len(skip["cases"]) > 20


def test_a_test_runs_says_its_seed_and_leaves_a_session(tmp_path, capsys):
    folder = tmp_path / "s"
    argv = ["kernels", "test", "quantise", "--emulate", "--case", "1000 float16", "--check", "asan"]
    assert cli.run([*argv, "--out", str(folder), "--seed", "7"]) == 0
    assert "1 of 1 right on emulation, seed 7" in capsys.readouterr().out
    result = json.loads((folder / "result.json").read_text())
    assert (result["cases"], result["pass"], result["seed"]) == (1, 1, 7)
    assert {row["outcome"] for row in map(json.loads, (folder / "steps.jsonl").read_text().splitlines())} == {"pass"}
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["argv"] == [
        "kernels", "test", "quantise", "--emulate", "--check", "asan", "--case", "1000 float16", "--seed", "7",
    ]  # fmt: skip


def test_a_wrong_result_is_exit_code_one(monkeypatch, tmp_path, capsys):
    honest = kernel_testing.machine(True)

    def run(steps, arrays, unset):
        made, findings = honest.run(steps, arrays, unset)
        made["output"].flat[3] += 5
        return made, findings

    wrong = kernel_testing.Machine("a broken card", run, 1)
    monkeypatch.setattr(kernel_testing, "machine", lambda *_: wrong)
    code = cli.run(["kernels", "test", "quantise", "--case", "16 float16", "--out", str(tmp_path / "s")])
    shown = capsys.readouterr().out
    assert code == 1
    assert "output[3]" in shown
    assert "times the error" in shown


def test_findings_alone_are_exit_code_one_and_can_be_read_back(monkeypatch, tmp_path, capsys):
    honest = kernel_testing.machine(True)
    finding = {"tool": "emulation", "severity": "error", "kind": "race", "kernel": "k", "message": "two threads wrote"}
    faulty = kernel_testing.Machine("e", lambda *a: (honest.run(*a)[0], [finding]), 1)
    monkeypatch.setattr(kernel_testing, "machine", lambda *_: faulty)
    folder = tmp_path / "s"
    assert cli.run(["kernels", "test", "quantise", "--case", "16 float16", "--out", str(folder)]) == 1
    assert "two threads wrote" in capsys.readouterr().out
    assert cli.run(["report", str(folder), "--json", "-"]) == 0
    read = json.loads(capsys.readouterr().out)
    assert sum(artifact["tables"].get("findings", 0) for artifact in read["artifacts"]) == 1


def test_what_could_not_run_is_undecided(monkeypatch, tmp_path, capsys):
    def refuse(*_):
        raise ValueError("no room")

    monkeypatch.setattr(kernel_testing, "machine", lambda *_: kernel_testing.Machine("e", refuse, 1))
    argv = ["kernels", "test", "quantise", "--case", "16 float16", "--out", str(tmp_path / "s")]
    assert cli.run(argv) == 125
    assert "no room" in capsys.readouterr().out


def test_cases_for_another_card_are_left_out_and_said_so(monkeypatch, tmp_path, capsys):
    def refuse(*_):
        raise AssertionError("nothing runs")

    old = kernel_testing.Machine("an older card", refuse, 1, (8, 0))
    monkeypatch.setattr(kernel_testing, "machine", lambda *_: old)
    wgmma = [case for spec in SPECS for case in spec.cases if getattr(case, "capability", None) == (9, 0)]
    folder = tmp_path / "s"
    assert cli.run(["kernels", "test", "--case", "wgmma", "--out", str(folder)]) == 0
    assert f"{len(wgmma)} left out" in capsys.readouterr().out
    assert len(json.loads((folder / "result.json").read_text())["left_out"]) == len(wgmma) > 0


@pytest.mark.parametrize("argv, said", [
    (["test", "nothing", "--emulate"], "no such kernel: nothing"),
    (["test", "gelu", "--emulate", "--case", "zzz"], "no case has 'zzz'"),
    (["test", "gelu", "--emulate", "--check", "colour"], "no such check: colour"),
    (["bench", "nothing"], "no such kernel: nothing"),
])  # fmt: skip
def test_wrong_use_is_told(argv, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.run(["kernels", *argv]) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
