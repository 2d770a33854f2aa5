"""From a finding to its launch, range, layer and nodes: the halving, and the look-up in a real timeline."""

from __future__ import annotations

import gzip
import json
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import recorded_encoder
from harness.models import graph as graphs
from harness.models.model import from_proto
from places import DATA
from probes.sanitizing import locating, suspects
from reports.columns import validate
from reports.readers import detect

GEMM = (
    "sm80_xmma_gemm_f32f32_f32f32_f32_tn_n_tilesize64x64x8_stage3_warpsize1x4x1_ffma_aligna4_alignc4_execute_kernel_trt"
)
LAYER = "{ForeignNode[l0.q + (Unnamed Layer* 1) [Shuffle]...out]}"


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    path = tmp_path_factory.mktemp("trace") / "t.sqlite"
    path.write_bytes(gzip.decompress((DATA / "nsys" / "h100_trt86_myelin_2025.3.sqlite.gz").read_bytes()))
    return detect.read(path)


@given(st.integers(0, 5000))
def test_the_first_faulty_launch_is_found_in_few_questions(faulty):
    asked = []

    def shows(launches: int) -> bool:
        asked.append(launches)
        return launches > faulty

    assert locating.first_launch(shows) == faulty
    assert len(asked) <= 2 * (faulty + 1).bit_length() + 1
    assert len(set(asked)) == len(asked)


@given(st.integers(0, 1000), st.integers(0, 1000))
def test_a_guess_costs_two_questions_if_it_is_right_and_never_the_answer(faulty, guess):
    asked = []

    def shows(launches: int) -> bool:
        asked.append(launches)
        return launches > faulty

    assert locating.first_launch(shows, guess=guess) == faulty
    assert guess != faulty or len(asked) <= 2


@pytest.mark.parametrize("launches", [None, 1, 7, 1000])
def test_a_fault_that_never_shows_again_ends_the_search(launches):
    assert locating.first_launch(lambda _: False, launches) is None


@pytest.mark.parametrize(
    ("kernel", "part"),
    [
        ("oob", "oob"),
        ("void ns::k<(int)4, float>(int *)", "k"),
        ("void (anonymous namespace)::fill<T>(T *)", "fill"),
        ("cutlass::Kernel2<cutlass::gemm<float>>", "Kernel2"),
        ("fmha_v2_flash_attention_fp16_S_64_sm80_kernel(Params)", "fmha_v2_flash_attention_fp16_S_64_sm80_kernel"),
    ],
)
def test_the_part_of_a_name_that_is_also_in_the_mangled_one(kernel, part):
    assert locating.fragment(kernel) == part


def test_a_launch_is_looked_up_in_order_of_the_calls(trace):
    place = locating.at_launch(trace, GEMM, 3)
    assert place is not None
    assert (place.layer, place.operation, place.onnx_nodes) == (
        LAYER,
        "l3_qk_matrix_multiply",
        ("l3_qk_matrix_multiply",),
    )
    assert place.ranges[0] == "infer fp32@probe"
    again = locating.at_launch(trace, GEMM, 7)  # four layers an inference: the same node, one inference later
    assert again is not None
    assert again.operation == place.operation


@pytest.fixture(scope="module")
def model(trace):
    """The recorded model's graph, as the preparation leaves it beside the timeline."""
    document = graphs.document(from_proto(recorded_encoder.make(), Path("encoder.onnx")))
    path = trace.path.with_name("model.graph.json")
    path.write_text(json.dumps(document), encoding="utf-8")
    return detect.read(path)


def launch_of(trace, operation: str) -> tuple[str, int]:
    """A kernel of an operation, by a part of its name, and the number of its launch."""
    kernels = trace.tables["kernels"]
    row = kernels[kernels["operation"].astype("string").str.startswith(operation).fillna(False)].iloc[0]
    part = locating.fragment(str(row["kernel"]))
    launches = locating.matching(trace, part)
    return part, launches.index.get_loc(row.name)


def test_with_the_model_at_hand_the_nodes_are_its_own(trace, model):
    place = locating.at_launch(locating.tied(trace, [model]), GEMM, 0)
    assert place is not None
    assert (place.onnx_nodes, place.inferred_nodes) == (("l0.qk",), ())


def test_nodes_that_no_name_tells_are_inferred_from_the_model_and_kept_apart(trace, model):
    part, launch = launch_of(trace, "fc__mye")  # the product of query, key and value, under a name of Myelin's own
    place = locating.at_launch(trace, part, launch)
    assert place is not None
    assert (place.onnx_nodes, place.inferred_nodes) == ((), ())
    place = locating.at_launch(locating.tied(trace, [model]), part, launch)
    assert place is not None
    assert (place.onnx_nodes, place.inferred_nodes) == ((), ("l0.q", "l0.k", "l0.v"))


def test_a_recording_that_ends_within_an_inference_ties_it_as_the_others(trace, model):
    whole = locating.tied(trace, [model]).tables["kernels"].sort_values("launch_ns")
    cut = replace(trace, tables={**trace.tables, "kernels": whole.iloc[:200]})
    kernels = locating.tied(cut, [model]).tables["kernels"]
    assert kernels["inferred_nodes"].tolist() == whole["inferred_nodes"].tolist()[:200]
    assert (
        kernels["inferred_nodes"].iloc[199][-1] == "l3.gelu.half"
    )  # the last that ran: nothing of what comes after it


def test_nothing_is_inferred_of_a_timeline_that_broke_off(broken, model):
    assert locating.failed_call(broken) is not None
    tied = locating.tied(broken, [model])
    assert not tied.tables["kernels"]["inferred_nodes"].map(bool).any()
    place = locating.at_launch(tied, GEMM, 0)
    assert place is not None
    assert place.onnx_nodes == ("l0.qk",)  # what names tell stays


def test_a_launch_that_the_timeline_does_not_reach(trace):
    assert locating.at_launch(trace, GEMM, 20) is None
    assert locating.at_launch(trace, "no_such_kernel", 0) is None


def test_the_only_layer_that_launches_a_kernel(trace):
    place = locating.only_place(trace, GEMM)
    assert place is not None
    assert place.layer == LAYER
    assert locating.only_place(trace, "no_such_kernel") is None


@pytest.fixture(scope="module")
def broken(trace, tmp_path_factory):
    """The timeline as it were, had the third of these launches failed."""
    path = tmp_path_factory.mktemp("broken") / "failed.sqlite"
    shutil.copy(trace.path, path)
    kernels = trace.tables["kernels"]
    launch = int(locating.matching(trace, GEMM).iloc[2]["launch_ns"])
    assert len(kernels[kernels["launch_ns"] == launch]) == 1
    with sqlite3.connect(path) as database:
        database.execute("UPDATE CUPTI_ACTIVITY_KIND_RUNTIME SET returnValue = 700 WHERE start >= ?", (launch,))
    return detect.read(path)


def test_the_first_call_that_failed(trace, broken):
    assert locating.failed_call(trace) is None  # every call of the recorded run went well
    place = locating.failed_call(broken)
    assert place is not None
    assert (place.layer, place.operation) == (LAYER, "l2_qk_matrix_multiply")
    assert "returned 700" in place.how


def layers(*rows: tuple[str, str, str]) -> pd.DataFrame:
    names = ("layer", "layer_type", "tactic")
    frame = pd.DataFrame([dict(zip(names, row, strict=True)) for row in rows])
    return validate(
        "layers", frame.assign(**{name: float("nan") for name in ("total_ns", "mean_ns", "median_ns", "time_pct")})
    )


INFORMATION = layers(
    ("l0.attention", "PluginV2", "CustomQKVToContextPluginDynamic"),
    ("l0.norm", "PluginV2", "CustomSkipLayerNormPluginDynamic"),
    ("l0.fc", "MatrixMultiply", "sm80_xmma_gemm_f16_kernel"),
)


def test_without_a_timeline_the_tactic_of_one_layer_tells():
    place = locating.by_information(INFORMATION, "sm80_xmma_gemm_f16_kernel", ())
    assert place is not None
    assert (place.layer, place.onnx_nodes) == ("l0.fc", ("l0.fc",))


def test_without_a_timeline_the_plugin_on_the_host_s_stack_tells():
    stack = ["main", "nvinfer1::plugin::bert::QKVToContextPluginDynamic::enqueue(nvinfer1::PluginTensorDesc const*)"]
    place = locating.by_information(INFORMATION, "fmha_v2_fp16_kernel", stack)
    assert place is not None
    assert place.layer == "l0.attention"
    assert "QKVToContextPluginDynamic::enqueue" in place.how


def test_two_layers_of_one_kind_are_not_told_apart():
    twice = layers(("a", "Gemm", "gemm_kernel"), ("b", "Gemm", "gemm_kernel"))
    assert locating.by_information(twice, "gemm_kernel", ()) is None


def test_records_at_one_place_are_one_suspect():
    artifact = detect.read(DATA / "sanitizer" / "h100_2025.3_memcheck_oob.xml")
    found = suspects.gather("memcheck", artifact)
    assert [(one.kernel, one.count, one.is_fault) for one in found] == [
        ("oob", 28, True), (None, 1, False), (None, 2, False)]  # fmt: skip
    assert found[0].example["thread_x"] == 100
    assert suspects.kernels(found) == ["oob"]


@pytest.mark.parametrize(("file", "line"), [("racecheck.xml", 5), ("initcheck.xml", 6), ("synccheck.xml", 7)])
def test_every_checker_s_records_make_one_suspect(file, line):
    found = suspects.gather("x", detect.read(DATA / "sanitizer" / f"h100_2025.3_{file}"))
    assert [(one.same["line"], one.is_fault) for one in found if one.is_fault] == [(line, True)]
