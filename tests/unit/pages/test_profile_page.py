"""The page of profiles: the answer first, one offline file, few elements whatever the size, and names stay text."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import trace_tables
from harness.errors import ParseError, UsageError
from harness.record import Session
from page_reader import Reader, check_structure
from places import DATA
from reports.artifact import Artifact
from reports.collect import Collection, collect
from reports.columns import validate
from reports.figures import icicle
from reports.pages import parts, sheets
from reports.pages import profile as profile_page
from reports.readers import detect
from reports.tables import hotspots, layer_time


def page_of(*artifacts, **more):
    return profile_page.render(Collection(artifacts, **more))


@pytest.fixture(scope="module")
def myelin(tmp_path_factory):
    path = tmp_path_factory.mktemp("nsys") / "h100_trt86_myelin_2025.3.sqlite"
    path.write_bytes(gzip.decompress((DATA / "nsys" / f"{path.name}.gz").read_bytes()))
    return collect([path])


def test_the_node_that_takes_the_time_is_the_headline(myelin):
    page = Reader(profile_page.render(myelin))
    headline = "ONNX node l2_f2_18_matrix_multiply takes 6.6 % of 10.5 ms of GPU time"
    assert page.text.index(headline) < page.text.index("ONNX nodes by GPU time") < page.text.index("Timeline")
    assert "72.8 % named, 0 % inferred, 27.2 % unattributed" in page.text
    assert "485 kernels" in page.text
    assert "NVIDIA H100" in page.text


def test_the_operations_add_up_to_all_kernel_time(myelin):
    (artifact,) = myelin.artifacts
    table = hotspots.shares(artifact.tables["kernels"], ["operation"])
    assert table["total_ns"].sum() == artifact.tables["kernels"]["duration_ns"].sum() == 10_459_240
    assert table["count"].sum() == 485
    assert table["time_pct"].sum() == pytest.approx(100)
    assert table.iloc[0].tolist()[:4] == ["l2_f2_18_matrix_multiply", pytest.approx(6.597, abs=0.001), 689_994, 15]
    assert table.iloc[-1]["operation"] == hotspots.NOT_ATTRIBUTED


def test_the_page_asks_for_nothing_and_lets_only_its_own_script_run(myelin):
    source = profile_page.render(myelin)
    page = Reader(source)
    policy = next(found["content"] for tag, found in page.attributes if tag == "meta" and "http-equiv" in found)
    digest = base64.b64encode(hashlib.sha256(page.scripts["script"].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")
    assert not [
        value
        for _, found in page.attributes
        for name, value in found.items()
        if name in ("src", "href") and not value.startswith("#")
    ]
    assert "library" not in page.scripts  # no plotly where no figure of it is drawn
    assert "link" not in page.tags


def test_the_page_says_nothing_of_machine_or_person():
    tables = {"findings": validate("findings", pd.DataFrame({"message": ["in /home/alice/a.cu"], "kind": ["x"],
                                                             "file": [r"C:\Users\bob\a.cu"], "line": [3]}))}  # fmt: skip
    artifact = Artifact(
        Path("/home/alice/secret/log.txt"), "k", "t", None, tables, {"hostname": "box7"}, ("see /Users/carol/x",)
    )
    manifest = {
        "verb": "profile",
        "argv": ["profile", "/home/alice/m.onnx"],
        "environment": {"A": "hush"},
        "user": "alice",
    }
    text = Reader(page_of(artifact, manifests=(manifest,))).text
    for word in ("alice", "bob", "carol", "box7", "hush", "secret"):
        assert word not in text, word
    assert "~/m.onnx" in text


def test_what_a_screen_reader_goes_by(myelin):
    page = Reader(profile_page.render(myelin))
    check_structure(page.attributes)
    assert {"#title-p0-alike", "#title-p0-timeline"} <= {found["href"] for tag, found in page.attributes if tag == "a"}
    several = [trace_tables.artifact(trace_tables.measured(seed), f"{seed}.json") for seed in range(3)]
    lead = Reader(page_of(*several).partition('<noscript id="parts">')[0])
    assert "#part-p1" in [found["href"] for tag, found in lead.attributes if tag == "a"]


def test_names_are_text_whatever_is_in_them():
    source = page_of(trace_tables.artifact(trace_tables.hostile()))
    page = Reader(source)
    assert "img" not in page.tags
    assert page.tags.count("script") == source.count("</script>")
    table = json.loads(page.scripts["data-p0-kernels"])
    shown = {row[0] for row in table["rows"]}
    assert trace_tables.HOSTILE[0] in shown
    assert "two\\nlines\\tand a tab" in shown
    assert trace_tables.HOSTILE[-1] in shown  # all 10,000 characters
    assert trace_tables.HOSTILE[0] in page.text


@pytest.mark.parametrize("events", [400, 40_000])
def test_the_number_of_elements_does_not_grow_with_the_trace(events):
    page = Reader(page_of(trace_tables.artifact(trace_tables.trace(events))))
    assert len(page.tags) < 600


@pytest.mark.parametrize("files", [2, 30])
def test_the_number_of_elements_does_not_grow_with_the_files(files):
    artifacts = [trace_tables.artifact(trace_tables.iterations(3), f"run{number}.sqlite") for number in range(files)]
    manifests = [{"verb": "profile", "argv": ["profile", f"m{number}.onnx"], "gpu": "H100"} for number in range(files)]
    source = page_of(*artifacts, manifests=tuple(manifests))
    with_script = Reader(re.sub(r"<noscript.*?</noscript>", "", source, flags=re.DOTALL))  # text to a browser with it
    assert len(with_script.tags) < 600
    without = Reader(source)
    for number in range(files):
        assert f"run{number}.sqlite" in without.text
        assert f"m{number}.onnx" in without.text
    opened = {dict(found).get("id") for tag, found in without.attributes if tag == "article"}
    assert opened == {f"part-p{number}" for number in range(1, files)}
    table = json.loads(with_script.scripts["data-others"])
    assert [row[0] for row in table["rows"]] == [[float(n), f"run{n}.sqlite"] for n in range(1, files)]


def test_more_rows_than_fit_are_counted():
    rows = [(f"kernel {number:05}", 10 * number, 5, None) for number in range(sheets.MOST_ROWS + 7)]
    page = Reader(page_of(trace_tables.artifact({"kernels": trace_tables.kernels(rows)})))
    assert "1,000 of 1,007 kernels; the rest: --tables" in page.text
    table = json.loads(page.scripts["data-p0-kernels"])
    assert (len(table["rows"]), table["total"]) == (1000, 1007)


def test_an_export_without_kernels_says_so():
    calls = trace_tables.trace(40)["api_calls"]
    page = Reader(page_of(trace_tables.artifact({"api_calls": calls})))
    assert "No kernel was traced" in page.text
    empty = Reader(page_of(trace_tables.artifact({})))
    assert "no events at all" in empty.text


def test_defects_come_before_times():
    found = collect(
        [DATA / "sanitizer" / "h100_2025.3_memcheck_oob.xml", DATA / "trtexec" / "h100_trt86_shape_8x128.log"]
    )
    page = Reader(profile_page.render(found))
    assert page.text.index("28 × Invalid __global__ write in oob at bugs.cu:3") < page.text.index("PASSED: 375 µs")
    assert "2623.9 queries/s" in page.text.replace(",", "")


def test_a_folder_tells_what_it_left_out(tmp_path):
    log = DATA / "trtexec" / "h100_trt86_shape_8x128.log"
    (tmp_path / "run.log").write_bytes(log.read_bytes())
    (tmp_path / "notes.txt").write_text("nothing of ours", encoding="utf-8")
    found = collect([tmp_path])
    assert [artifact.path.name for artifact in found.artifacts] == ["run.log"]
    assert len(found.left_out) == 1
    assert found.left_out[0].startswith("notes.txt was left out: content: expected")
    assert "notes.txt was left out" in Reader(profile_page.render(found)).text


def test_what_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        collect([tmp_path / "none"])
    with pytest.raises(ParseError, match="no files"):
        collect([tmp_path])
    (tmp_path / "a").write_text("?", encoding="utf-8")
    with pytest.raises(ParseError):
        collect([tmp_path / "a"])


def test_a_change_and_its_interval_are_one_column_on_one_scale():
    frame = pd.DataFrame(
        {"name": ["up", "down", "even", "lone"], "c_pct": [40.0, -20.0, 1.0, 7.0], "l": [30.0, -50.0, -2.0, np.nan],
         "h": [500.0, -10.0, 4.0, np.nan]}
    )  # fmt: skip
    made = sheets.make("k", "K", frame, "pair", interval=("c_pct", "l", "h"))
    assert [(column.title, column.kind) for column in made.columns] == [("Name", "text"), ("C", "interval")]
    up, down, even, lone = (row[1] for row in made.rows)
    assert up == (40.0, "+40.0 % (+30.0 to +500.0)", "worse", 65.0, 70.0, 100.0)  # beyond the scale: at its end
    assert down[2:] == ("better", 25.0, 40.0, 45.0)
    assert even[2] == "same"
    assert lone == (7.0, "+7.0 %")


DURATION = st.integers(0, 1000)


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([None, "x", "y"]), DURATION), min_size=1, max_size=30)
)
def test_shares_lose_nothing(rows):
    frame = pd.DataFrame(rows, columns=["kernel", "layer", "duration_ns"])
    table = hotspots.shares(frame, ["layer"])
    assert table["total_ns"].sum() == sum(duration for *_, duration in rows)
    assert table["count"].sum() == len(rows)
    missing = [duration for _, layer, duration in rows if layer is None]
    rest = table[table["layer"] == hotspots.NOT_ATTRIBUTED]
    assert rest["total_ns"].sum() == sum(missing)
    assert len(rest) == bool(missing)


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 40)), min_size=1, max_size=30))
def test_busy_time_and_gaps_are_those_of_the_union(spans):
    rows = [("k", start, duration, None) for start, duration in spans]
    everything = hotspots.work({"kernels": trace_tables.kernels(rows)})
    covered = {moment for start, duration in spans for moment in range(start, start + duration)}
    first, last = min(start for start, _ in spans), max(start + duration for start, duration in spans)
    assert hotspots.busy(everything) == (len(covered), last - first)
    found, total = hotspots.gaps(everything)
    assert total == len(found)
    assert found["gap_ns"].sum() == (last - first) - len(covered)


@given(
    st.lists(st.tuples(st.integers(-1, 20), st.sampled_from("ab"), st.integers(0, 9)), min_size=1, max_size=20),
    st.integers(1, 30),
)
def test_the_icicle_adds_up_and_children_lie_inside(rows, most):
    spans = [
        (number, above if above >= 0 and above < number else None, name, 0, 0, 1)
        for number, (above, name, _) in enumerate(rows)
    ]
    kernels = [("k", number, duration, number) for number, (*_, duration) in enumerate(rows)] + [("k", 0, 1, None)]
    made = icicle.build({"ranges": trace_tables.ranges(spans), "kernels": trace_tables.kernels(kernels)}, most=most)
    assert (
        made.total_ns
        == sum(duration for _, _, duration, _ in kernels)
        == sum(n.length_ns for n in made.nodes if n.parent < 0)
    )
    for place, node in enumerate(made.nodes):
        assert node.parent < place
        if node.parent >= 0:
            above = made.nodes[node.parent]
            assert above.depth == node.depth - 1
            assert above.start_ns <= node.start_ns
            assert node.start_ns + node.length_ns <= above.start_ns + above.length_ns


def test_ranges_nested_without_end_count_as_one_of_the_deepest():
    depth = 2_000
    spans = [(number, number - 1 if number else None, f"r{number}", number, 0, 9) for number in range(depth)]
    tables = {"ranges": trace_tables.ranges(spans), "kernels": trace_tables.kernels([("k", 0, 5, depth - 1)])}
    made = icicle.build(tables)
    assert [node.name for node in made.nodes[-2:]] == [f"r{icicle.MOST_DEPTH - 1}", "k"]


@pytest.mark.parametrize(
    "name, value, text",
    [("total_ns", 1_234_000.0, "1.23 ms"), ("bytes", 90e6, "90 MB"), ("time_pct", 6.597, "6.6 %"), ("gap_ns", -5e6, "−5 ms"),
     ("flop_per_s", 3.36e14, "336 TFLOP/s"), ("dram_bytes_per_s", 7.69e11, "769 GB/s"), ("count", 12345, "12,345"),
     ("duration_s", 75.0, "1 min 15 s"), ("occupancy", 0.5, "0.5"), ("x", float("nan"), "–"), ("x", None, "–")],
)  # fmt: skip
def test_numbers_carry_the_unit_of_their_column(name, value, text):
    assert sheets.text(name, value) == text


@pytest.mark.parametrize(
    "given, public",
    [("/home/alice/a.cu", "~/a.cu"), ("--onnx=/Users/bob/x y", "--onnx=~/x y"), (r"C:\Users\carol\a.cu", r"~\a.cu"),
     ("/homes/x", "/homes/x"), ("at home/y", "at home/y")],
)  # fmt: skip
def test_home_folders_lose_their_name(given, public):
    assert sheets.public(given) == public


def test_a_finding_ends_at_the_layer_that_launched_it():
    rows = pd.DataFrame({"kind": ["Invalid __global__ read"], "kernel": ["fmha"], "layer": ["/layer.1/context"],
                         "onnx_nodes": [("/layer.1/context",)], "file": ["utils.h"], "line": [989]})  # fmt: skip
    artifact = Artifact(
        Path("memcheck.xml"), "sanitizer-xml", "compute-sanitizer", None, {"findings": validate("findings", rows)}
    )
    part = parts.make(artifact, "p")
    assert part.headline == "1 × Invalid __global__ read in fmha at utils.h:989"
    assert part.detail == "Launched by layer /layer.1/context, ONNX node /layer.1/context"
    assert [column.title for column in part.sheets[0].columns][:5] == ["Kind", "Kernel", "Where", "Layer", "ONNX nodes"]


def test_below_the_finding_stands_the_range_that_launched_it_where_no_layer_is_known():
    artifact = detect.read(DATA / "sanitizer" / "h100_2025.3_memcheck_oob.xml")
    fault = {"kind": "Invalid __global__ write", "kernel": "oob", "count": 28, "range": "layer.1/fault@probe"}
    page = page_of(artifact, results=({"findings": [fault]},))
    assert "Launched in the range layer.1/fault@probe" in Reader(page).text
    page = page_of(artifact, results=({"findings": [{**fault, "layer": "/a/MatMul"}]},))
    assert "Launched in the range" not in Reader(page).text


def test_a_layer_that_holds_the_whole_model_is_no_answer():
    layers = pd.DataFrame(
        {"layer": ["{ForeignNode[/a...(Unnamed Layer* 9) [Shuffle]]}", "out"], "total_ns": [980.0, 20.0]}
    )
    latency = {"median": 1e6, "p99": 2e6}
    summary = {"latency_ns": latency, "backend": "trt", "iterations": 100}
    artifact = Artifact(
        Path("m.json"), "probe-measurement", "probe", None, {"layers": validate("layers", layers)}, summary
    )
    part = parts.make(artifact, "p0")
    assert part.headline == "An inference takes 1 ms (trt, median of 100)"
    assert "98 % of the layers' time is in one that TensorRT fused: probe profile --nsys" in part.detail
    plain = layers.replace({"layer": {layers["layer"][0]: "/a/MatMul"}})
    artifact = Artifact(
        Path("m.json"), "probe-measurement", "probe", None, {"layers": validate("layers", plain)}, summary
    )
    assert parts.make(artifact, "p0").headline.startswith("The layer /a/MatMul takes 98 %")


def test_layers_of_one_type_are_one_row_and_lose_no_time():
    artifact = detect.read(DATA / "ort" / "mlp_5_runs.json")
    layers = artifact.tables["layers"]
    types = layer_time.by_type(layers)
    assert types is not None
    assert layer_time.runs(layers) == artifact.summary["model_runs"] == 5
    assert types["per_inference_ns"].sum() == pytest.approx(layers["total_ns"].sum() / 5)
    assert types["layers"].sum() == len(layers)
    assert types["per_inference_ns"].is_monotonic_decreasing
    part = parts.make(artifact, "p0")
    assert re.fullmatch(r"\d+ \w+ layers? takes? [\d.]+ % of [\d.]+ .s in layers, per inference", part.headline)


def test_what_failed_is_said_first_and_a_broken_result_is_told(tmp_path):
    session = Session.create("profile", tmp_path / "run")
    session.write_json("manifest.json", {"verb": "profile", "argv": ["profile"]})
    (session.raw / "ort-profile.json").write_bytes((DATA / "ort" / "mlp_5_runs.json").read_bytes())
    failed = {
        "name": "ncu",
        "status": "failed",
        "error": "ncu <b>broke</b>\n  | tail",
        "hint": "less raw/ncu.out",
        "notes": [],
    }
    session.write_json("result.json", {"tools": [failed, {"name": "ort", "status": "ok", "duration_s": 2.0}, "no run"]})
    page = Reader(profile_page.render(collect([session.folder])))
    assert "ncu failed: ncu <b>broke</b> (try: less raw/ncu.out)" in page.text
    assert "How each tool ran" in page.text
    (session.folder / "result.json").write_text("{torn")
    assert any("result.json: content: expected JSON" in note for note in collect([session.folder]).left_out)
