"""The ladder's steps as data, how a result is judged, and what the page says of it."""

from __future__ import annotations

import json

import numpy as np
import pytest

import ladder_session
from harness.bert.plan import PlanOptions
from harness.errors import UsageError
from harness.record import Session
from probes.laddering import rungs
from probes.laddering import running as laddering
from probes.laddering.rungs import RUNGS
from reports.figures import ladder as ladder_figures
from reports.pages import ladder, page


def test_every_step_is_a_plan_and_builds_on_those_before():
    made = {rung.name: PlanOptions(lengths=(3,), **rungs.options_of(rung)) for rung in RUNGS}
    assert (made["fp32"].precision, made["fp32"].merged, made["fp32"].fused_norm) == ("fp32", False, False)
    assert (made["fusion"].precision, made["fusion"].merged, made["fusion"].fused_gelu) == ("fp16", True, False)
    assert (made["graph"].precision, made["graph"].int8_attention, made["graph"].packed) == ("int8", True, True)
    assert not made["int8"].int4  # a side step is not built upon
    assert (made["graph-fp16"].precision, made["graph-fp16"].int8_attention) == ("fp16", False)


def test_steps_and_routes_are_chosen_by_name_in_the_order_of_the_ladder():
    assert [rung.name for rung in rungs.choose(("int8", "fp32"))] == ["fp32", "int8"]
    assert rungs.choose(()) == RUNGS
    assert rungs.choose_routes(("onnx", "kernels")) == ("kernels", "onnx")
    with pytest.raises(UsageError, match="no step 'fp8'"):
        rungs.choose(("fp8",))
    with pytest.raises(UsageError, match="no route 'java'"):
        rungs.choose_routes(("java",))


def test_what_needs_training_has_no_bound():
    assert {rung.name for rung in RUNGS if rungs.bound_of(rung) is None} == {"sparse", "int4"}


def test_accuracy_looks_at_tokens_alone():
    rng = np.random.default_rng(0)
    expected, valid = rng.normal(size=(2, 4, 8)), np.array([[1, 1, 0, 0], [1, 1, 1, 1]], bool)
    got = np.where(valid[..., None], expected * 1.01, np.nan)
    found = laddering.accuracy(np.nan_to_num(got, nan=9.9), expected, valid)
    assert found["relative_l2"] == pytest.approx(0.01)
    assert found["cosine"] == pytest.approx(1.0)
    assert found["embedding_cosine"] == pytest.approx(1.0)
    got[0, 0, 0] = np.inf
    assert laddering.accuracy(got, expected, valid)["relative_l2"] == float("inf")


def test_a_side_step_is_not_what_the_next_is_compared_with():
    def row(median, aside):
        return {"latency_ns": {"median": median}, "aside": aside}

    before = [row(100.0, False), row(50.0, False), row(80.0, True), row(None, False)]
    assert laddering._speedups(25.0, before) == {"speedup_previous": 2.0, "speedup_total": 4.0}
    assert laddering._speedups(None, before) == {"speedup_previous": None, "speedup_total": None}
    assert laddering._speedups(25.0, []) == {"speedup_previous": None, "speedup_total": 1.0}


# The page


@pytest.fixture
def view(tmp_path):
    return ladder.read(ladder_session.make(tmp_path / "s"))


def test_the_headline_names_the_fastest_step_and_the_whole_ladder(view):
    assert view.headline == (
        "BERT base, batch 32, sequence 128: 700 µs with CUDA graph (our kernels), 20.14x the speed of its first step"
    )


def test_all_figures_are_drawn_from_what_was_measured(view):
    drawn = view.draw()
    assert set(drawn) == {"waterfall", "pareto", "routes", "operations", "roofline", "errors", "layers"}
    assert len(drawn["waterfall"].data[0].y) == len(ladder_session.TIMES_US)  # the sparse step has no time
    assert {trace.name for trace in drawn["routes"].data} == {"our kernels", "PyTorch", "ONNX"}
    assert {row.rung for row in view.compared} == {"fp16", "graph-fp16"}


def test_the_fastest_step_is_taken_apart(view):
    assert view.dissected.rung == "graph"
    sums = dict(zip(view.part_headers, (text for _, text in view.parts[-1].cells), strict=True))
    assert [part.name for part in view.parts] == [*ladder_session.OPERATIONS, "sum"]
    assert sums == {"Launches": "72", "Blocks of one": "–", "Bytes": "42 MB", "FLOPs": "72 G", "Needed at the least": "350 µs",
                    "Took": "700 µs", "Of the roofline": "50 %"}  # fmt: skip


def test_columns_without_a_value_are_left_out(tmp_path):
    session = ladder_session.make(tmp_path / "s")
    result = session.read_json("result.json")
    for row in result["rungs"]:
        row |= {"roofline_pct": None, "build_s": None}
        for one in row["operations"]:
            one |= {"bound_ns": None}
    session.write_json("result.json", result)
    view = ladder.read(session)
    assert set(ladder.COLUMNS) - set(view.headers) == {"Of the roofline", "Built in"}
    headers, rows = view.screen
    assert {len(row) for row in rows} == {len(headers)}
    assert set(ladder.PART_COLUMNS) - set(view.part_headers) == {"Needed at the least", "Of the roofline"}
    assert [figure.key for figure in view.not_drawn] == []


def test_the_front_holds_what_nothing_beats_in_both(view):
    rows = [row for row in view.timed if row.error]
    front = ladder_figures.pareto(rows)
    assert front
    for row in front:
        assert not any(other.median_ns < row.median_ns and other.error < row.error for other in rows)
    for row in rows:
        assert any(better.median_ns <= row.median_ns and better.error <= row.error for better in front)


def test_the_talks_scores_stand_beside_the_best_of_each_way(view):
    best = {score.way.partition(" ")[0]: score.best for score in view.scores}
    assert best == {"conversion": "2.21 ms", "network": "not measured here", "one": "700 µs"}
    assert [score.scores for score in view.scores] == [
        ("4", "2", "2", "2"),
        ("1", "5", "4.5", "5"),
        ("1", "3.5", "5", "4"),
    ]


def test_a_wrong_step_comes_first(tmp_path):
    session = ladder_session.make(tmp_path / "s")
    result = session.read_json("result.json")
    result["rungs"][2] |= {"verdict": "fail", "relative_l2": float("inf")}
    session.write_json("result.json", result)
    view = ladder.read(session)
    assert "FP16 (our kernels) is off by not finite" in view.headline
    assert 'class="outcome fail"' in page.render(session)


def test_an_interrupted_run_shows_the_steps_that_were_taken(tmp_path):
    session = ladder_session.make(tmp_path / "s")
    for row in session.read_json("result.json")["rungs"][:3]:
        session.append_step(row)
    (session.folder / "result.json").unlink()
    view = ladder.read(session)
    assert [row.rung for row in view.rows] == ["fp32", "tf32", "fp16"]
    assert view.status == "interrupted"
    assert "result.json is missing: the run did not come to its end" in page.render(session)


def test_names_of_strangers_are_text(tmp_path):
    hostile = "<script>window.hacked = 1</script>"
    text = page.render(ladder_session.make(tmp_path / "s", hostile))
    assert hostile not in text
    assert "&lt;script&gt;window.hacked" in text


def test_the_page_is_the_same_for_the_same_session(tmp_path):
    session = ladder_session.make(tmp_path / "s")
    assert page.render(Session.open(session.folder)) == page.render(session)
    assert json.loads((session.folder / "result.json").read_text())["kind"] == "bert"
