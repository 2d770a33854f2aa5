"""GPU time by the model's own nodes: executions, the same node of all layers, and the answer in a sentence."""

from __future__ import annotations

import pandas as pd
import pytest

from reports.columns import validate
from reports.tables import hotspots, node_time

RANGES = validate(
    "ranges",
    pd.DataFrame({"range_id": [0, 1], "parent_id": [pd.NA, 0], "domain": "TensorRT", "range": ["run", "a"], "depth": [0, 1],
                  "start_ns": 0, "end_ns": 9}),
)  # fmt: skip


def kernels(*rows: dict[str, object]) -> pd.DataFrame:
    """Table `kernels`: what is not said is an execution of layer `a` of 10 ns, named after node `a`."""
    usual = {"kernel": "k", "start_ns": 0, "duration_ns": 10, "layer": "a", "range_id": 1, "correlation_id": 0,
             "onnx_nodes": ("a",), "inferred_nodes": (), "tie": "named"}  # fmt: skip
    return validate("kernels", pd.DataFrame([usual | row for row in rows]))


def rows(*nodes: str, tie: str = "named", duration_ns: int = 10) -> pd.DataFrame:
    """As `executions` gives them."""
    return pd.DataFrame({"nodes": nodes, "inferred": "", "tie": tie, "duration_ns": duration_ns, "kernels": 1})


def test_the_kernels_of_an_operation_are_one_execution():
    ran = node_time.executions(kernels({}, {}, {"range_id": pd.NA}, {"range_id": pd.NA}), RANGES)
    assert ran["duration_ns"].tolist() == [20, 10, 10]
    assert ran["kernels"].tolist() == [2, 1, 1]


def test_what_a_cuda_graph_launches_again_is_another_execution():
    captured = [{"capture_range_id": 1, "range_id": 0, "correlation_id": launch} for launch in (7, 7, 8, 8)]
    assert node_time.executions(kernels(*captured), RANGES)["kernels"].tolist() == [2, 2]


def test_named_nodes_go_before_inferred_ones_and_neither_is_lost():
    inferred = {"onnx_nodes": (), "inferred_nodes": ("q", "k"), "tie": "inferred", "range_id": pd.NA}
    both = {"inferred_nodes": ("norm",), "range_id": pd.NA}
    nothing = {"onnx_nodes": (), "tie": "unattributed", "range_id": pd.NA, "duration_ns": 99}
    table = node_time.by_node(node_time.executions(kernels(inferred, both, nothing), RANGES))
    assert table[["onnx_nodes", "tie"]].to_numpy().tolist() == [
        ["q + k", "inferred"], ["a", "named"], [hotspots.NOT_ATTRIBUTED, "unattributed"]]  # fmt: skip
    assert table["inferred_besides"].tolist()[:2] == ["", "norm"]
    assert table["total_ns"].tolist() == [10, 10, 99]


@pytest.mark.parametrize(
    ("names", "spoken"),
    [
        (["l0.f1", "l1.f1", "l0.f2", "l1.f2"], ["l#.f1", "l#.f1", "l#.f2", "l#.f2"]),
        (["p2o.Conv.1", "p2o.Conv.2"], ["p2o.Conv.#", "p2o.Conv.#"]),
        (["/layer.0/MatMul_1", "/layer.1/MatMul_1", "/layer.0/MatMul"], ["/layer.#/MatMul_1"] * 2 + ["/layer.0/MatMul"]),
        (["l0_f2_6", "l1_f2_12"], ["l0_f2_6", "l1_f2_12"]),
        (["Conv1"], ["Conv1"]),
    ],
)  # fmt: skip
def test_the_number_of_the_layer_is_the_first_that_differs(names, spoken):
    assert [node_time.without_layer(names)[name] for name in names] == spoken


def test_the_same_node_of_all_layers_is_one_row_where_that_says_more():
    table = node_time.alike(rows("l0.q + l0.k", "l1.q + l1.k", "l0.v", "l1.v", "out"))
    assert table[["onnx_nodes", "sets", "total_ns"]].to_numpy().tolist() == [
        ["l#.q + l#.k", 2, 20], ["l#.v", 2, 20], ["out", 1, 10]]  # fmt: skip
    assert node_time.alike(rows("a", "b", "c.0", "c.1", "d")) is None
    mixed = pd.concat([rows("l0.q", "l2.q"), rows("l1.q", "l3.q", tie="inferred")])
    assert node_time.alike(mixed)["tie"].tolist() == ["named", "inferred"]  # never one row


def test_the_answer():
    table = node_time.alike(rows("l0.q", "l1.q", "l0.v", "l1.v", duration_ns=10_000))
    headline, detail = node_time.headline(table, 40_000)
    assert headline == "ONNX nodes l#.q take 50 % of 40 µs of GPU time"
    assert detail.startswith("2 of them, # is the number of a layer; named; 2 executions, mean 10 µs")
    alone = node_time.by_node(rows("a", duration_ns=10_000))
    assert node_time.headline(alone, 10_000)[0] == "ONNX node a takes 100 % of 10 µs of GPU time"
    assert node_time.headline(node_time.by_node(rows(None)), 10) is None


def test_without_the_model_the_page_says_what_would_tie_more():
    left = pd.concat([rows("a"), rows(None, tie="unattributed")])
    assert "probe report TRACE MODEL.onnx" in node_time.caption({}, left)
    assert "MODEL.onnx" not in node_time.caption({"model": "m.graph.json"}, left)
    assert "MODEL.onnx" not in node_time.caption({}, rows("a"))
