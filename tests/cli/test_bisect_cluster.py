"""`probe bisect --dask`: the same result on a cluster of any size."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from probes import cli
from small_models import planted_chain

distributed = pytest.importorskip("distributed")
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("workers", [1, 3])
def test_a_local_cluster_finds_what_one_process_finds(tmp_path, monkeypatch, workers):
    monkeypatch.chdir(tmp_path)
    onnx.save(planted_chain(faults=(4, 9)), "chain.onnx")
    assert cli.run(["bisect", "chain.onnx", "--out", "alone"]) == 1
    with distributed.LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None) as cluster:
        assert cli.run(["bisect", "chain.onnx", "--out", "cluster", "--dask", cluster.scheduler_address]) == 1
    alone, together = (json.loads(Path(folder, "result.json").read_text()) for folder in ("alone", "cluster"))
    for field in ("culprits", "certified_minimal", "error_before", "error_after", "undecided"):
        assert together[field] == alone[field], field


def test_no_scheduler_is_a_clear_error(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("harness.cluster.CONNECT_S", 1)
    onnx.save(planted_chain(), "chain.onnx")
    assert cli.run(["bisect", "chain.onnx", "--dask", "tcp://127.0.0.1:9", "--out", "run"]) == 125
    assert "no dask scheduler answers" in capsys.readouterr().err
