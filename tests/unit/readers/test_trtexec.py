"""trtexec: logs of TensorRT 7 to 11 and the three JSON exports, with their ground truth and after accidents."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import ParseError
from places import DATA
from reports.readers import trtexec, trtexec_exports
from reports.readers.trtexec_exports import datatype, onnx_nodes, percentile
from reports.readers.trtexec_join import check_times, combine, join_layers

RECORDED = DATA / "trtexec"
COOKBOOK = "NVIDIA__trt-samples-for-hackathon-cn__"
LOGS = sorted(path for path in RECORDED.iterdir() if path.suffix in (".log", ".txt"))
EXPORTS = sorted(RECORDED.glob("*.json"))
SHAPE = "h100_trt86_shape_1x1.log"


def read_text(text: str, tmp_path: Path, reader=trtexec):
    path = tmp_path / "file"
    path.write_text(text, encoding="utf-8")
    return reader.read(path)


# name, version, status, qps, compute in ms: min, median, p99
TRUTH = [
    (COOKBOOK + "trt101401_build_run_PASSED.log", "10.14.1", "PASSED", 23188.6, (0.0266113, 0.0285645, 0.0368652)),
    (COOKBOOK + "trt101600_plugin_FAILED.log", "10.16.0", "FAILED", None, None),
    (COOKBOOK + "trt101601_cudagraph_spinwait_noDT_PASSED.log", "10.16.1", "PASSED", 24896.9,
     (0.0383301, 0.0388184, 0.0390625)),
    (COOKBOOK + "trt101601_dumpProfile_PASSED.log", "10.16.1", "PASSED", None, None),
    (COOKBOOK + "trt8003_build_fp16_verbose_PASSED_slim.txt", "8.0.3", "PASSED", 6330.83, (0.150391, 0.152588, 0.156677)),
    (COOKBOOK + "trt8203_FAILED.txt", "8.2.3", "FAILED", None, None),
    ("h100_trt86_failed_shape.log", "8.6.0", "FAILED", None, None),
    ("h100_trt86_fp16_killed_by_segfault.log", "8.6.0", "killed", None, None),
    ("h100_trt86_sanitizer_trtexec.log", "8.6.0", "PASSED", 1.38206, (715.495, 723.422, 731.348)),
    ("h100_trt86_shape_1x1.log", "8.6.0", "PASSED", 3096.34, (0.2901, 0.301498, 0.417969)),
    ("h100_trt86_shape_8x128.log", "8.6.0", "PASSED", 2623.91, (0.36499, 0.375488, 0.386505)),
]  # fmt: skip


def test_the_truth_is_told_of_every_log():
    assert {name for name, *_ in TRUTH} == {path.name for path in LOGS}


@pytest.mark.parametrize("name, version, status, qps, compute", TRUTH)
def test_logs(name, version, status, qps, compute):
    assert trtexec.sniff(RECORDED / name, (RECORDED / name).read_bytes()[:65536])
    artifact = trtexec.read(RECORDED / name)
    summary = artifact.summary
    assert (artifact.tool_version, summary["status"], summary["throughput_qps"]) == (version, status, qps)
    if compute is None:
        assert summary["compute_ns"] is None
    else:
        stats = summary["compute_ns"]
        assert [stats[key] / 1e6 for key in ("min", "median", "p99")] == pytest.approx(list(compute), rel=1e-12)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert len(artifact.tables["runs"]) == 1


def test_all_series_of_a_summary_and_the_settings():
    summary = trtexec.read(RECORDED / SHAPE).summary
    assert summary["enqueue_ns"]["p95"] == 359_070
    assert summary["h2d_ns"]["max"] == 54_016.1
    assert summary["latency_ns"]["mean"] == 324_859
    assert (summary["queries"], summary["walltime_s"]) == (3099, 1.00086)
    assert summary["settings"]["Selected Device"] == "NVIDIA H100 80GB HBM3"
    assert summary["exports"] == {"times": "/out/shape_1x1.times.json"}


def test_averages_and_what_was_left_out_of_them():
    whole, elided = trtexec.read(RECORDED / SHAPE), trtexec.read(RECORDED / TRUTH[0][0])
    averages = whole.tables["averages"]
    assert len(averages) == 309
    assert averages.iloc[0][["compute_ns", "latency_ns", "enqueue_ns"]].tolist() == [316_144, 326_512, 305_775]
    assert len(elided.tables["averages"]) == 400
    assert "averages cover 4000 of 69569 queries: trtexec left the others out" in elided.notes


def test_verbose_prose_is_not_data():
    text = (RECORDED / TRUTH[4][0]).read_text()
    assert re.search(r"\[V\] GPU Compute Time: the GPU latency", text)
    prose = [line for line in text.split("\n") if "[V]" in line and "Throughput:" in line]
    runs, _ = trtexec.parse("\n".join(["&&&& RUNNING TensorRT.trtexec [TensorRT v8003] # trtexec", *prose,
                                       "[01/29/2022-15:09:44] [V] Throughput: 5 qps"]))  # fmt: skip
    assert (runs[0].figures, runs[0].statistics) == ({}, {})
    assert trtexec.read(RECORDED / TRUTH[4][0]).summary["end_to_end_ns"]["median"] == 289_673


def test_a_failure_says_why_where_the_log_does():
    plugin, silent = trtexec.read(RECORDED / TRUTH[1][0]), trtexec.read(RECORDED / TRUTH[5][0])
    assert plugin.summary["errors"][-1] == "Engine set up failed"
    assert plugin.summary["error_count"] == 8
    assert silent.summary["errors"] == []
    assert "FAILED without a line [E]: the reason is not in the log" in silent.notes


def test_a_printed_profile_adds_up_to_its_total():
    artifact = trtexec.read(RECORDED / TRUTH[3][0])
    layers = artifact.tables["layers"]
    assert len(layers) == 15
    assert layers.iloc[3]["layer"].startswith("Reformatting CopyNode for Input Tensor 0 to {ForeignNode[")
    assert layers.iloc[1][["total_ns", "mean_ns", "median_ns", "time_pct"]].tolist() == [193.5e6, 10_500, 9_800, 12.7]
    assert layers["total_ns"].sum() == pytest.approx(1529.13e6, rel=1e-4)
    assert artifact.summary["profiled_iterations"] == 18362
    assert not any("add up" in note for note in artifact.notes)


@pytest.mark.parametrize("header, rows", [
    ("           Layer   Time (ms)   Avg. Time (ms)   Time %", "  conv 1 + relu   12.50   0.1250   75.0\n  fc   4.16   0.0416   25.0"),
    ("   Layer   Time (ms)   Avg. Time (ms)   Median Time (ms)   Time %",
     "  conv 1 + relu   12.50   0.1250   0.1200  75.0\n  fc   4.16   0.0416   0.0400  25.0"),
    ("   Time(ms)     Avg.(ms)   Median(ms)   Time(%)   Layer", "  12.50 0.1250 0.12 75.0  conv 1 + relu\n 4.16 0.0416 0.04 25.0 fc"),
])  # fmt: skip
def test_printed_profiles_of_7_8_and_10(header, rows, tmp_path):
    lines = ["=== Profile (100 iterations ) ===", header, *rows.split("\n"), "", "=== Performance summary ==="]
    text = "&&&& RUNNING TensorRT.trtexec [TensorRT v7203] # trtexec\n" + "".join(f"[I] {line}\n" for line in lines)
    layers = read_text(text, tmp_path).tables["layers"]
    assert layers["layer"].tolist() == ["conv 1 + relu", "fc"]
    assert layers["total_ns"].tolist() == [12.5e6, 4.16e6]
    assert layers["mean_ns"].tolist() == [125_000, 41_600]
    assert layers["time_pct"].tolist() == [75, 25]


TENSORRT_7 = """\
&&&& RUNNING TensorRT.trtexec # trtexec --onnx=a.onnx --batch=4 --threads
[05/09/2021-17:02:32] [I] TensorRT version: 7.2.3
[05/09/2021-17:02:32] [I] Timing trace has 0 queries over 3.16903 s
[05/09/2021-17:02:32] [I] Trace averages of 10 runs:
[05/09/2021-17:02:32] [I] Average on 10 runs - GPU latency: 4.5795 ms - Host latency: 4.9 ms (end to end 108.1 ms, enqueue 0.77 ms)
[05/09/2021-17:02:32] [I] Host Latency
[05/09/2021-17:02:32] [I] min: 4.9716 ms (end to end 108.17 ms)
[05/09/2021-17:02:32] [I] max: 5.4915 ms (end to end 110.732 ms)
[05/09/2021-17:02:32] [I] mean: 5.0049 ms (end to end 109.226 ms)
[05/09/2021-17:02:32] [I] median: 4.9946 ms (end to end 109.241 ms)
[05/09/2021-17:02:32] [I] percentile: 5.3915 ms at 99% (end to end 110.7 ms at 99%)
[05/09/2021-17:02:32] [I] throughput: 0 qps
[05/09/2021-17:02:32] [I] walltime: 3.16903 s
[05/09/2021-17:02:32] [I] Enqueue Time
[05/09/2021-17:02:32] [I] min: 0.776001 ms
[05/09/2021-17:02:32] [I] max: 1.37109 ms
[05/09/2021-17:02:32] [I] median: 0.811768 ms
[05/09/2021-17:02:32] [I] GPU Compute
[05/09/2021-17:02:32] [I] min: 4.5983 ms
[05/09/2021-17:02:32] [I] max: 5.1133 ms
[05/09/2021-17:02:32] [I] mean: 4.6307 ms
[05/09/2021-17:02:32] [I] median: 4.6115 ms
[05/09/2021-17:02:32] [I] percentile: 5.0133 ms at 99%
[05/09/2021-17:02:32] [I] total compute time: 3.02645 s
&&&& PASSED TensorRT.trtexec # trtexec --onnx=a.onnx --batch=4 --threads
"""


def test_tensorrt_7_prints_in_blocks(tmp_path):
    artifact = read_text(TENSORRT_7, tmp_path)
    summary = artifact.summary
    assert (summary["status"], artifact.tool_version, summary["throughput_qps"]) == ("PASSED", "7.2.3", 0)
    assert summary["compute_ns"] == {"min": 4598300, "max": 5113300, "mean": 4630700, "median": 4611500, "p99": 5013300}
    assert summary["end_to_end_ns"]["p99"] == 110_700_000
    assert summary["enqueue_ns"]["min"] == 776_001
    assert (summary["walltime_s"], summary["gpu_time_s"]) == (3.16903, 3.02645)
    assert summary["counts_images"] is True
    assert any("0 qps" in note for note in artifact.notes)
    assert any("counts images" in note for note in artifact.notes)


def test_several_runs_of_one_file(tmp_path):
    parts = [(RECORDED / name).read_text() for name in (SHAPE, TRUTH[7][0], TRUTH[6][0], TRUTH[0][0])]
    artifact = read_text("\n".join(parts), tmp_path)
    summary = artifact.summary
    assert [run["status"] for run in summary["runs"]] == ["PASSED", "killed", "FAILED", "PASSED"]
    assert artifact.tables["runs"]["tool_version"].tolist() == ["8.6.0", "8.6.0", "8.6.0", "10.14.1"]
    assert artifact.tables["runs"]["throughput_qps"].fillna(0).tolist() == [3096.34, 0, 0, 23188.6]
    assert (summary["status"], summary["throughput_qps"], summary["compute_ns"]) == ("killed", None, None)
    assert summary["by_status"] == {"PASSED": 2, "killed": 1, "FAILED": 1}
    assert artifact.tables["averages"]["run"].value_counts().to_dict() == {0: 309, 3: 400}


def test_overlapping_runs_are_told_and_end_by_their_command_lines(tmp_path):
    text = "".join(f"&&&& {word} TensorRT.trtexec [TensorRT v8600] # trtexec --onnx={name}\n"
                   for word, name in (("RUNNING", "a"), ("RUNNING", "b"), ("PASSED", "a"), ("FAILED", "b")))  # fmt: skip
    artifact = read_text(text, tmp_path)
    assert [(run["command"], run["status"]) for run in artifact.summary["runs"]] == [
        ("trtexec --onnx=a", "PASSED"), ("trtexec --onnx=b", "FAILED"),
    ]  # fmt: skip
    assert any("figures may be mixed" in note for note in artifact.notes)


def test_under_the_sanitizer_both_are_told():
    artifact = trtexec.read(RECORDED / TRUTH[8][0])
    assert (artifact.summary["printed"], artifact.summary["reported"]) == (0, 0)
    assert artifact.summary["status"] == "PASSED"
    assert "findings" in artifact.tables
    assert "under compute-sanitizer" in artifact.summary["comparable_group"]
    assert any("not those of the engine" in note for note in artifact.notes)


def as_version_11(text: str) -> str:
    """The same log as TensorRT 11 would print it, with its defaults."""
    text = text.replace("[TensorRT v8600]", "[TensorRT v110000] [b114]").replace("version: 8.6.0", "version: 11.0.0")
    return re.sub(r"\] (Data transfers|Spin-wait|CUDA Graph): \w+\n", "]\n", text)


def test_times_of_10_and_of_11_are_not_comparable(tmp_path):
    old = trtexec.read(RECORDED / SHAPE)
    new = read_text(as_version_11((RECORDED / SHAPE).read_text()), tmp_path)
    assert new.tool_version == "11.0.0"
    assert new.summary["comparable_group"] == "TensorRT 11 or later, CUDA Graph on, Spin-wait on, Data transfers off"
    assert old.summary["comparable_group"] == "TensorRT 7 to 10, CUDA Graph off, Spin-wait off, Data transfers on"
    assert any("not comparable with 10.x" in note for note in new.notes)
    both = read_text((RECORDED / SHAPE).read_text() + as_version_11((RECORDED / SHAPE).read_text()), tmp_path)
    assert any(note.startswith("times of these runs are not comparable") for note in both.notes)


def test_settings_of_10_count_as_printed():
    group = trtexec.read(RECORDED / TRUTH[2][0]).summary["comparable_group"]
    assert group == "TensorRT 7 to 10, CUDA Graph on, Spin-wait on, Data transfers off"


@pytest.mark.parametrize("digits, version", [
    ("7203", "7.2.3"), ("8003", "8.0.3"), ("8.5.2", "8.5.2"), ("8600", "8.6.0"), ("100001", "10.0.1"),
    ("101401", "10.14.1"), ("110000", "11.0.0"), ("11.1.0.106", "11.1.0.106"), (None, None),
])  # fmt: skip
def test_versions(digits, version):
    assert trtexec.version(digits) == version


@pytest.mark.parametrize("prefix", ["   ", "2026-11-22T23:10:11.1234567Z ", "\x1b[32m"])
@pytest.mark.parametrize("name", [name for name, *_ in TRUTH])
def test_prefixes_and_encodings_of_ci_change_nothing(prefix, name, tmp_path):
    path = tmp_path / "log"
    path.write_bytes("\r\n".join(prefix + line for line in (RECORDED / name).read_text().split("\n")).encode("utf-16"))
    changed, own = trtexec.read(path).summary, trtexec.read(RECORDED / name).summary
    for key in ("status", "throughput_qps", "compute_ns", "settings", "error_count", "layer_count"):
        assert changed[key] == own[key], key


def test_a_log_cut_at_its_head_is_read_all_the_same(tmp_path):
    tail = (RECORDED / SHAPE).read_text().rpartition("=== Performance summary ===")[2]
    summary = read_text(tail, tmp_path).summary
    assert (summary["status"], summary["throughput_qps"]) == ("PASSED", 3096.34)


@given(cut=st.floats(0, 1), name=st.sampled_from([name for name, *_ in TRUTH[1:]]))
def test_a_truncated_log_is_killed_or_refused(cut, name):
    text = (RECORDED / name).read_text().rstrip()
    cut_text = text[: int(cut * (len(text) - 300))]
    runs, _ = trtexec.parse(cut_text)
    assert len(runs) == ("&&&& RUNNING TensorRT.trtexec" in cut_text)
    assert all(run.status in ("killed", "PASSED", "FAILED") for run in runs)
    assert all(run.status == "killed" for run in runs if cut_text.count("&&&&") == 1)


LINES = [line for path in LOGS for line in path.read_text().split("\n") if "Average on" not in line]


@given(st.lists(st.sampled_from(LINES), max_size=80))
def test_shuffled_lines_are_read_or_refused(lines):
    runs, _ = trtexec.parse("\n".join(lines))
    for run in runs:
        described = trtexec.describe(run)
        json.dumps(described, allow_nan=False)


@pytest.mark.parametrize("data", [b"", b"\n\n", b"hello", b"&&&& RUNNING TensorRT.sample_mnist [TensorRT v8600] # x"])
def test_other_text_is_refused(data, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(data)
    assert not trtexec.sniff(path, data)
    with pytest.raises(ParseError, match="the output of trtexec"):
        trtexec.read(path)


# --- exports -------------------------------------------------------------------------------------------------------

EXPORT_TRUTH = [
    ("h100_trt86_shape_32x384.times.json", "trtexec-times", {"iterations": 294}),
    ("NVIDIA__TensorRT__A100fp16_resnet.onnx.engine.profile.json", "trtexec-profile", {"layers": 36}),
    ("NVIDIA__TensorRT__A100fp16_resnet.onnx.engine.graph.json", "trtexec-layers", {"layers": 36}),
    ("NVIDIA__TensorRT__nb_profile.json", "trtexec-profile", {"layers": 86}),
    ("NVIDIA__TensorRT__nb_layer_info.json", "trtexec-layers", {"layers": 86}),
    ("h100_trt86_inspector_layers_fp16.json", "trtexec-layers", {"layers": 3}),
    (COOKBOOK + "trt1016_exportLayerInfo_detailed.json", "trtexec-layers", {"layers": 9}),
    (COOKBOOK + "trt82_exportLayerInfo.json", "trtexec-layers", {"layers": 12}),
]


def test_the_truth_is_told_of_every_export():
    assert {name for name, *_ in EXPORT_TRUTH} == {path.name for path in EXPORTS}


@pytest.mark.parametrize("name, kind, rows", EXPORT_TRUTH)
def test_exports(name, kind, rows):
    assert trtexec_exports.sniff(RECORDED / name, (RECORDED / name).read_bytes()[:65536])
    artifact = trtexec_exports.read(RECORDED / name)
    assert (artifact.kind, artifact.rows()) == (kind, rows)
    json.dumps(artifact.summary, allow_nan=False)


def test_times_against_the_file_itself():
    name = EXPORT_TRUTH[0][0]
    artifact, items = trtexec_exports.read(RECORDED / name), json.loads((RECORDED / name).read_text())
    table = artifact.tables["iterations"]
    assert table["compute_ns"].tolist() == [round(item["computeMs"] * 1e6) for item in items]
    assert table["h2d_ns"].iloc[0] == 707_581
    assert table["latency_ns"].iloc[-1] == 4_767_090
    assert table["enqueue_ns"].iloc[0] == 344_000
    ordered = sorted(item["computeMs"] for item in items)
    stats = artifact.summary["compute_ns"]
    assert stats["median"] == pytest.approx(1e6 * (ordered[146] + ordered[147]) / 2)
    assert (stats["min"], stats["max"]) == (ordered[0] * 1e6, ordered[-1] * 1e6)
    assert stats["p90"] == pytest.approx(ordered[293 - 29] * 1e6)  # 10 % of 294 are 29 left out


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=300), st.sampled_from([50.0, 90.0, 95.0, 99.0, 99.9, 100.0]))
def test_percentiles_leave_out_the_slowest(values, percent):
    found = percentile(np.array(values), percent)
    slower = sum(value > found for value in values)
    assert found in values
    assert slower <= len(values) * (100 - percent) / 100 + 1e-3


def test_times_of_tensorrt_7_have_other_names(tmp_path):
    item = {"startInMs": 1, "endInMs": 2, "startComputeMs": 2, "endComputeMs": 5, "startOutMs": 5, "endOutMs": 6,
            "inMs": 1.5, "computeMs": 3.25, "outMs": 0.5, "latencyMs": 5.25, "endToEndMs": 9}  # fmt: skip
    artifact = read_text(json.dumps([item, item]), tmp_path, trtexec_exports)
    row = artifact.tables["iterations"].iloc[1]
    assert row[["h2d_ns", "compute_ns", "d2h_ns", "latency_ns"]].tolist() == [1.5e6, 3.25e6, 0.5e6, 5.25e6]
    assert np.isnan(row["enqueue_ns"])
    assert artifact.summary["end_to_end_ns"]["max"] == 9e6


def test_a_profile_with_its_names_and_percentages():
    artifact = trtexec_exports.read(RECORDED / "NVIDIA__TensorRT__nb_profile.json")
    layers = artifact.tables["layers"]
    assert artifact.summary["iterations"] == 11
    assert layers["layer"].iloc[0] == "[trainStation1]"
    assert layers[["total_ns", "mean_ns", "median_ns"]].iloc[0].tolist() == [16_720_000, 1_520_000, 1_089_020]
    assert layers["time_pct"].iloc[0] == pytest.approx(0.376409, rel=1e-5)
    assert layers["time_pct"].sum() == pytest.approx(100)


def profile_text(names: list[str], median: bool = True) -> str:
    """As trtexec writes it: names just as they are."""
    half = ', "medianMs" : 0.5' if median else ""
    lines = [f'{{ "name" : "{name}", "timeMs" : {number + 1}, "averageMs" : 0.5{half}, "percentage" : 1 }}'
             for number, name in enumerate(names)]  # fmt: skip
    return "[\n  " + "\n, ".join(['{ "count" : 2 }', *lines]) + "\n]\n"


def layers_text(names: list[str]) -> str:
    return '{"Layers": ["' + '"\n,"'.join(names) + '"\n],\n"Bindings": ["x"\n,"y"\n]}'


NAMES = st.lists(st.text('ab "/[]{},:()+\x1e\x1f*', min_size=1, max_size=12), min_size=1, max_size=5)


@given(NAMES)
def test_names_that_break_the_json_are_read_all_the_same(names):
    broken = [name + '"x' for name in names]  # never valid JSON, as there is no backslash
    layers = trtexec_exports.read_profile(Path("p"), parsed(profile_text(broken))).tables["layers"]
    assert layers["layer"].tolist() == broken
    assert layers["total_ns"].tolist() == [1e6 * (number + 1) for number in range(len(names))]
    info = trtexec_exports.read_layers(Path("p"), parsed(layers_text(broken)))
    assert info.tables["layers"]["layer"].tolist() == broken
    assert info.summary["bindings"] == ["x", "y"]


@pytest.mark.parametrize("name", ["C:\\path\\x", 'a\\ "b"', "\\", 'ends with "'])
def test_backslashes_and_look_alikes_in_names(name):
    layers = trtexec_exports.read_profile(Path("p"), parsed(profile_text([name, "b"]))).tables["layers"]
    assert layers["layer"].tolist() == [name, "b"]
    assert layers["total_ns"].tolist() == [1e6, 2e6]


def parsed(text: str) -> list:
    return trtexec_exports.decoding.parse_json(text, Path("p"), "JSON", trtexec_exports.repaired)


def test_detailed_layers_with_broken_names_keep_their_other_fields(tmp_path):
    name = COOKBOOK + "trt1016_exportLayerInfo_detailed.json"
    text = (RECORDED / name).read_text()
    broken = text.replace('"Name": "node_max_pool2d"', '"Name": "node "max" \\pool"')
    left, right = trtexec_exports.read(RECORDED / name), read_text(broken, tmp_path, trtexec_exports)
    changed = left.tables["layers"].copy()
    changed.loc[1, "layer"] = 'node "max" \\pool'
    pd.testing.assert_frame_equal(changed, right.tables["layers"])


def test_arrays_that_tensorrt_7_appends_are_added(tmp_path):
    artifact = read_text(profile_text(["a", "b"], median=False) * 3, tmp_path, trtexec_exports)
    layers = artifact.tables["layers"]
    assert layers["layer"].tolist() == ["a", "b"]
    assert layers["total_ns"].tolist() == [3e6, 6e6]
    assert layers["mean_ns"].tolist() == [5e5, 1e6]  # over 3 x 2 iterations
    assert artifact.summary["iterations"] == 6
    other = read_text(profile_text(["a"]) + profile_text(["b"]), tmp_path, trtexec_exports)
    assert other.tables["layers"]["layer"].tolist() == ["a", "b"]
    assert any("different layers" in note for note in other.notes)


def test_repeated_names_are_kept_apart(tmp_path):
    artifact = read_text(profile_text(["a", "a", "b"]), tmp_path, trtexec_exports)
    assert artifact.tables["layers"]["total_ns"].tolist() == [1e6, 2e6, 3e6]
    assert any(note.startswith("1 of 3 layers") for note in artifact.notes)


def test_detailed_layers_tell_precision_tactic_and_nodes():
    layers = trtexec_exports.read(RECORDED / EXPORT_TRUTH[6][0]).tables["layers"].set_index("layer")
    first = layers.loc["node_conv2d + node_relu"]
    assert (first["layer_type"], first["precision"]) == ("CaskConvolution", "FP32")
    assert first["tactic"].startswith("sm80_xmma_fprop_implicit_gemm")
    assert first["onnx_nodes"] == ("node_conv2d", "node_relu")
    assert layers.loc["node_linear_myl4_0"]["onnx_nodes"] == ("node_linear", "node_relu_2")
    assert layers.loc["__myl_CastReshCast_myl4_4"]["onnx_nodes"] == ()
    a100 = trtexec_exports.read(RECORDED / EXPORT_TRUTH[2][0])
    assert a100.summary["by_precision"] == {"FP16": 35, "FP32": 1}
    assert any("no Metadata" in note for note in a100.notes)


def test_input_and_output_tensors_of_11(tmp_path):
    engine = {"Layers": [{"Name": "gemm", "LayerType": "MatrixMultiply",
                          "Inputs": [{"Name": "t", "Dimensions": [1], "Format": "LINEAR", "DataType": "FP16"}],
                          "Metadata": "[ONNX Layer: /a/MatMul]\x1e[ONNX Layer: /a/(x) [Shuffle]]"}],
              "I/O Tensors": [{"Name": "tokens", "IOMode": "INPUT"}, {"Name": "out"}]}  # fmt: skip
    artifact = read_text(json.dumps(engine), tmp_path, trtexec_exports)
    assert artifact.summary["bindings"] == ["tokens", "out"]
    row = artifact.tables["layers"].iloc[0]
    assert (row["precision"], row["onnx_nodes"]) == ("FP16", ("/a/MatMul", "/a/(x) [Shuffle]"))


@pytest.mark.parametrize("text, name", [
    ("Row major linear FP16 format", "FP16"), ("Half", "FP16"), ("Float", "FP32"), ("BFloat16", "BF16"), ("Int64", "INT64"),
    ("Four wide channel vectorized row major Int8 format", "INT8"), ("FP8", "FP8"), ("unknown", None),
])  # fmt: skip
def test_names_of_types(text, name):
    assert datatype(text) == name


@given(
    st.lists(st.lists(st.text("ab/_[]: ", min_size=1, max_size=8).map(str.strip).filter(bool), max_size=3), max_size=3)
)
def test_metadata_names_each_node_once(groups):
    metadata = "\x1e".join("\x1f".join(f"[ONNX Layer: {name}]" for name in group) for group in groups)
    assert onnx_nodes(metadata) == tuple(dict.fromkeys(name for group in groups for name in group))


@given(cut=st.floats(0, 0.999), name=st.sampled_from([name for name, *_ in EXPORT_TRUTH]))
def test_truncated_exports_are_refused(cut, name, tmp_path_factory):
    data = (RECORDED / name).read_bytes().rstrip()
    path = tmp_path_factory.getbasetemp() / "cut.json"
    path.write_bytes(data[: int(cut * len(data))])
    with pytest.raises(ParseError):
        trtexec_exports.read(path)


@given(name=st.sampled_from([name for name, *_ in EXPORT_TRUTH]), at=st.floats(0, 1), junk=st.binary(max_size=4),
       length=st.integers(0, 8))  # fmt: skip
def test_damaged_exports_are_read_or_refused(name, at, junk, length, tmp_path_factory):
    data = (RECORDED / name).read_bytes()
    start = int(at * len(data))
    path = tmp_path_factory.getbasetemp() / "damaged.json"
    path.write_bytes(data[:start] + junk + data[start + length :])
    try:
        artifact = trtexec_exports.read(path)
    except ParseError:
        return
    assert all(len(table) for table in artifact.tables.values())


@pytest.mark.parametrize("text, field", [
    ("", "content"), ("[]", "content"), ("[{}]", "content"), ('{"Layers": []}', "Layers"), ('{"Layers": [3]}', "Layers"),
    ('[{"computeMs": "fast"}]', "computeMs"), ('[{"computeMs": NaN}]', "computeMs"), ('[{"computeMs": 1e400}]', "computeMs"),
    ('[{"count": 3}]', "content"), ('[{"count": 3}, {"name": "a"}]', "timeMs"), ("[" * 100_000, "content"),
    ('[{"computeMs": 1' + "0" * 5000 + "}]", "content"),
])  # fmt: skip
def test_refusals_name_the_field(text, field, tmp_path):
    with pytest.raises(ParseError) as caught:
        read_text(text, tmp_path, trtexec_exports)
    assert field in caught.value.field


# --- together ------------------------------------------------------------------------------------------------------


def table(text: str, tmp_path: Path) -> pd.DataFrame:
    return read_text(text, tmp_path, trtexec_exports).tables["layers"]


def test_profile_and_layer_information_are_joined_by_name():
    profile, info = (trtexec_exports.read(RECORDED / EXPORT_TRUTH[at][0]) for at in (1, 2))
    joined, notes = join_layers(profile.tables["layers"], info.tables["layers"])
    assert notes == ()
    assert joined["layer"].tolist() == profile.tables["layers"]["layer"].tolist()
    assert joined["total_ns"].tolist() == profile.tables["layers"]["total_ns"].tolist()
    row = joined.set_index("layer").loc["Conv_0 + Relu_1"]
    assert (row["layer_type"], row["precision"], row["total_ns"]) == ("CaskConvolution", "FP16", 111_616)
    assert joined["layer_type"].notna().all()


def test_repeats_suffixes_and_strangers_in_a_join(tmp_path):
    info = pd.DataFrame({"layer": ["a [profile 0]", "a [profile 1]", "b", "b", "d"], "layer_type": [*"ABCDE"],
                         "precision": None, "tactic": None, "onnx_nodes": [()] * 5})  # fmt: skip
    profile = table(profile_text(["a", "b", "b", "c", "b"]), tmp_path)
    joined, notes = join_layers(profile, info)
    assert joined["layer_type"].fillna("-").tolist() == ["A", "C", "D", "-", "-"]
    assert notes == ("2 of 5 profiled layers are not in the layer information",
                     "2 of 5 layers of the layer information were not profiled")  # fmt: skip
    suffixed, _ = join_layers(table(profile_text(["a [profile 1]", "b [profile 1]"]), tmp_path), info)
    assert suffixed["layer_type"].tolist() == ["B", "C"]


@given(st.permutations(range(6)))
def test_a_join_does_not_depend_on_the_order_of_different_names(order):
    names = [f"layer {number}" for number in range(6)]
    info = pd.DataFrame({"layer": [names[at] for at in order], "layer_type": [f"type {at}" for at in order],
                         "precision": None, "tactic": None, "onnx_nodes": [()] * 6})  # fmt: skip
    profile = trtexec_exports.read_profile(Path("p"), parsed(profile_text(names))).tables["layers"]
    joined, notes = join_layers(profile, info)
    assert joined["layer_type"].tolist() == [f"type {number}" for number in range(6)]
    assert notes == ()


def log_of(iterations: pd.DataFrame, name: str, digits: int = 6) -> str:
    """A log whose summary trtexec would print of these iterations."""

    def row(label: str, column: str) -> str:
        values = np.sort(iterations[column].to_numpy()) / 1e6
        stats = {"min": values[0], "max": values[-1], "mean": values.mean(), "median": np.median(values)}
        stats |= {f"percentile({p}%)": percentile(values, p) for p in (90, 95, 99)}
        return f"[I] {label}: " + ", ".join(f"{key} = {value:.{digits}g} ms" for key, value in stats.items()) + "\n"

    return (f"&&&& RUNNING TensorRT.trtexec [TensorRT v8600] # trtexec --exportTimes=/out/{name}\n"
            f"[I] Timing trace has {len(iterations)} queries over 1.0 s\n[I] Throughput: 100 qps\n"
            + row("Latency", "latency_ns") + row("GPU Compute Time", "compute_ns") + row("H2D Latency", "h2d_ns")
            + "&&&& PASSED TensorRT.trtexec [TensorRT v8600] # trtexec\n")  # fmt: skip


def test_printed_percentiles_are_checked_against_the_exported_times(tmp_path):
    times = trtexec_exports.read(RECORDED / EXPORT_TRUTH[0][0])
    log = read_text(log_of(times.tables["iterations"], times.path.name), tmp_path)
    assert check_times(log.summary["runs"][0], times.tables["iterations"]) == ()
    assert any("agree" in note for note in combine([log, times])[0].notes)

    slower = times.tables["iterations"].assign(compute_ns=times.tables["iterations"]["compute_ns"] * 1.001)
    differences = check_times(log.summary["runs"][0], slower)
    assert len(differences) == 7
    assert differences[0].startswith("compute_ns")
    fewer = check_times(log.summary["runs"][0], times.tables["iterations"].iloc[:-1])
    assert fewer[0] == "the log counts 294 queries, the times are of 293"


def test_combining_leaves_strangers_alone():
    profile, info = (trtexec_exports.read(RECORDED / EXPORT_TRUTH[at][0]) for at in (1, 2))
    other = trtexec_exports.read(RECORDED / EXPORT_TRUTH[5][0])
    log = trtexec.read(RECORDED / SHAPE)
    combined = combine([profile, log, other, info])
    assert combined[0].tables["layers"]["precision"].notna().all()
    assert combined[0].summary["by_layer"][0]["precision"] == "FP16"
    assert combined[0].summary["layer_information"] == info.path.name
    assert combined[1:] == [log, other, info]
    assert combine([profile, other]) == [profile, other]
