"""`probe report` and `probe diff` from the outside: files, documents, exit codes, and errors that say what to do."""

from __future__ import annotations

import gzip
import json
import re

import numpy as np
import onnx
import pandas as pd
import pytest

import recorded_encoder
import trace_tables
from places import DATA
from probes import cli, comparing, reporting
from reports.collect import Collection
from reports.columns import validate

LOG = DATA / "trtexec" / "h100_trt86_shape_8x128.log"


@pytest.fixture(scope="module")
def myelin(tmp_path_factory):
    path = tmp_path_factory.mktemp("nsys") / "trace.sqlite"
    path.write_bytes(gzip.decompress((DATA / "nsys" / "h100_trt86_myelin_2025.3.sqlite.gz").read_bytes()))
    return path


def test_everything_at_once(myelin, tmp_path):
    names = ("page.html", "result.json", "trace.json")
    page, result, trace = (tmp_path / name for name in names)
    code = cli.run(["report", str(myelin), "-o", str(page), "--json", str(result), "--tables", str(tmp_path / "t"),
                    "--perfetto", str(trace)])  # fmt: skip
    assert code == 0
    (artifact,) = json.loads(result.read_text(encoding="utf-8"))["artifacts"]
    assert artifact["kind"] == "nsys-sqlite"
    assert artifact["tool_version"].startswith("2025.3.2")
    assert (artifact["tables"]["kernels"], artifact["tables"]["api_calls"]) == (485, 1145)
    assert (artifact["summary"]["kernel_count"], artifact["summary"]["kernel_time_ns"]) == (485, 10_459_240)
    assert "l2_f2_18_matrix_multiply" in page.read_text(encoding="utf-8")
    events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    assert sum(event.get("cat") == "kernel" for event in events) == 485
    kernels = pd.read_csv(tmp_path / "t" / "kernels.csv")
    assert kernels["duration_ns"].sum() == 10_459_240
    assert set(kernels["onnx_nodes"].map(lambda text: type(json.loads(text)))) == {list}


def test_with_its_model_a_timeline_is_told_by_nodes(myelin, tmp_path, capsys):
    onnx.save(recorded_encoder.make(), tmp_path / "encoder.onnx")
    words = ["report", str(myelin), str(tmp_path / "encoder.onnx"), "--json", str(tmp_path / "told.json")]
    assert cli.run([*words, "-o", str(tmp_path / "page.html"), "--tables", str(tmp_path / "tables")]) == 0
    (artifact,) = json.loads((tmp_path / "told.json").read_text())["artifacts"]
    ties = artifact["summary"]["ties"]
    assert ties["named"]["time_pct"] + ties["inferred"]["time_pct"] > 99
    merged = next(row for row in artifact["summary"]["by_operation"] if row["operation"] == "fc__mye12716")
    assert (merged["onnx_nodes"], merged["inferred_nodes"]) == ([], ["l1.q", "l1.k", "l1.v"])
    kernels = pd.read_csv(tmp_path / "tables" / "kernels.csv")
    assert set(kernels["tie"]) == {"named", "inferred", "unattributed"}
    assert set(kernels.loc[kernels["tie"] == "inferred", "onnx_nodes"]) == {"[]"}
    page = (tmp_path / "page.html").read_text()
    assert "ONNX nodes l#.f2 take 26.3 % of 10.5 ms of GPU time" in page
    assert "72.8 % named, 26.6 % inferred, 0.635 % unattributed" in page


def test_a_model_alone_is_listed_node_by_node(tmp_path, capsys):
    onnx.save(recorded_encoder.make(), tmp_path / "encoder.onnx")
    assert cli.run(["report", str(tmp_path / "encoder.onnx"), "--tables", str(tmp_path / "tables")]) == 0
    assert len(pd.read_csv(tmp_path / "tables" / "nodes.csv")) == 109
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    assert cli.run(["report", str(tmp_path / "bad.onnx")]) == 2
    assert "an ONNX model" in capsys.readouterr().err


def test_parquet_holds_the_same_as_csv(myelin, tmp_path):
    pytest.importorskip("pyarrow")
    assert cli.run(["report", str(myelin), "--tables", str(tmp_path)]) == 0
    parquet, csv = pd.read_parquet(tmp_path / "kernels.parquet"), pd.read_csv(tmp_path / "kernels.csv")
    assert list(parquet.columns) == list(csv.columns)
    assert parquet["start_ns"].tolist() == csv["start_ns"].tolist()
    assert [list(nodes) for nodes in parquet["onnx_nodes"]] == [json.loads(text) for text in csv["onnx_nodes"]]


def test_without_pyarrow_there_is_csv_and_a_word(myelin, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reporting, "_has_parquet", lambda: False)
    assert cli.run(["report", str(myelin), "--tables", str(tmp_path)]) == 0
    assert {path.suffix for path in tmp_path.iterdir()} == {".csv"}
    assert "pip install pyarrow" in capsys.readouterr().out


def test_several_artifacts_have_folders_of_their_own(tmp_path):
    other = tmp_path / LOG.name
    other.write_bytes(LOG.read_bytes())
    assert cli.run(["report", str(LOG), str(other), "--tables", str(tmp_path / "t")]) == 0
    assert sorted(path.name for path in (tmp_path / "t").iterdir()) == [LOG.name, f"{LOG.name}-2"]


def test_json_on_standard_output_is_alone_there_and_draws_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.run(["report", str(LOG), "--json", "-"]) == 0
    summary = json.loads(capsys.readouterr().out)["artifacts"][0]["summary"]
    assert (summary["status"], summary["throughput_qps"], summary["compute_ns"]["median"]) == (
        "PASSED",
        2623.91,
        375_488,
    )
    assert list(tmp_path.iterdir()) == []


def test_the_page_is_written_here_if_nothing_else_is_asked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.run(["report", str(LOG)]) == 0
    assert "report: report.html" in capsys.readouterr().out
    assert (tmp_path / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_a_session_is_reported_in_its_folder(tmp_path, capsys):
    session = tmp_path / "run"
    (session / "raw").mkdir(parents=True)
    (session / "raw" / "trtexec.log").write_bytes(LOG.read_bytes())
    (session / "manifest.json").write_text(
        json.dumps({"verb": "profile", "argv": ["profile", "m.onnx"]}), encoding="utf-8"
    )
    assert cli.run(["report", str(session)]) == 0
    text = (session / "report.html").read_text(encoding="utf-8")
    assert "probe profile m.onnx" in text
    assert "PASSED" in text


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["none.sqlite"], "does not exist"),
        (["empty"], "expected one of"),
        (["empty", "-o", "no/such/x.html"], "no/such does not exist"),
        ([str(LOG), "--perfetto", "x.json"], "needs a trace"),
    ],
)
def test_what_cannot_be_done_is_said_with_exit_code_2(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").write_bytes(b"")
    assert cli.run(["report", *arguments]) == 2
    assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


# diff, on synthetic sides: the readers have their own tests


@pytest.fixture
def sides(monkeypatch, tmp_path):
    """Make paths that are read as the given artifacts."""
    held = {}
    monkeypatch.setattr(comparing, "read", lambda paths, tell: Collection(tuple(held[path] for path in paths)))

    def make(name, tables, **more):
        path = tmp_path / name
        path.touch()
        held[path] = trace_tables.artifact(tables, **more)
        return str(path)

    return make


def test_a_slower_kernel_is_found_and_named(sides, tmp_path, capsys):
    before = sides("a", trace_tables.iterations(seed=1))
    after = sides("b", trace_tables.iterations(seed=2, slower=1.2))
    assert cli.run(["diff", before, after, "--json", str(tmp_path / "d.json"), "-o", str(tmp_path / "d.html")]) == 1
    result = json.loads((tmp_path / "d.json").read_text(encoding="utf-8"))
    slower = {
        (level, row["name"]) for level, rows in result["levels"].items() for row in rows if row["beyond_threshold"]
    }
    assert ("kernels", "gemm") in slower
    assert ("kernels", "softmax") not in slower
    gemm = next(row for row in result["levels"]["kernels"] if row["name"] == "gemm")
    assert gemm["ratio_low"] < 1.2 < gemm["ratio_high"]
    verdicts = {row["name"]: row["verdict"] for row in result["levels"]["kernels"]}
    assert verdicts["copy"] == "no evidence of a change"
    assert "got slower by more than 5 %" in capsys.readouterr().out
    assert "got slower by more than 5 %" in (tmp_path / "d.html").read_text(encoding="utf-8")


def test_a_faster_inference_comes_first(sides, tmp_path, capsys):
    def latency(ms):
        rng = np.random.default_rng(ms)
        frame = pd.DataFrame({"iteration": range(40), "latency_ns": ms * 1e6 * rng.normal(1, 0.01, 40)})
        return {"iterations": validate("iterations", frame)}

    before, after = sides("a", latency(8)), sides("b", latency(2))
    assert cli.run(["diff", before, after, "-o", str(tmp_path / "d.html"), "--json", str(tmp_path / "d.json")]) == 0
    assert re.search(r"The latency fell by 7[45]", capsys.readouterr().out)
    said = json.loads((tmp_path / "d.json").read_text(encoding="utf-8"))["latency"]
    assert said["verdict"] == "faster"
    assert said["ratio"] == pytest.approx(0.25, rel=0.02)
    assert 'class="interval better"' in (tmp_path / "d.html").read_text(encoding="utf-8")


def test_no_change_is_said_in_so_many_words(sides, capsys):
    before, after = sides("a", trace_tables.iterations(seed=1)), sides("b", trace_tables.iterations(seed=2))
    assert cli.run(["diff", before, after]) == 0
    assert "No evidence of a change in 4 compared" in capsys.readouterr().out


def test_what_is_below_the_threshold_passes(sides):
    before, after = sides("a", trace_tables.iterations(seed=1)), sides("b", trace_tables.iterations(seed=2, slower=1.2))
    assert cli.run(["diff", before, after, "--threshold", "30%"]) == 0
    assert cli.run(["diff", after, before]) == 0  # faster


def test_one_run_a_side_is_undecided(sides, capsys):
    one = {"kernels": trace_tables.kernels([("k", 0, 10, None)])}
    assert cli.run(["diff", sides("a", one), sides("b", one)]) == 125
    assert "Nothing can be told" in capsys.readouterr().out


def test_several_sessions_a_side_are_one_observation_each(sides):
    generator = np.random.default_rng(3)
    tables = [
        {"kernels": trace_tables.kernels([("k", n, int(generator.normal(1000, 5)), None) for n in range(9)])}
        for _ in range(10)
    ]
    paths = [sides(f"s{number}", table) for number, table in enumerate(tables)]
    made = comparing.diff(",".join(paths[:5]), ",".join(paths[5:]), 0.05)
    assert made.document["levels"]["kernels"][0]["count_before"] == 5


def test_different_versions_and_clocks_are_warned_about(sides, capsys):
    tables = trace_tables.iterations(20)
    devices = [
        pd.DataFrame({"device_id": [0], "gpu": ["NVIDIA H100"], "clock_hz": [clock]}) for clock in (1.98e9, 1.2e9)
    ]
    before, after = (sides(name, tables | {"devices": frame}) for name, frame in zip("ab", devices, strict=True))
    assert cli.run(["diff", before, after]) == 0
    assert "device 0 clock_hz: 1980000000.0 before, 1200000000.0 after" in capsys.readouterr().out


def test_layers_are_executions_and_renamed_ones_are_found_by_their_nodes(sides):
    def tables(name, nodes, scale):
        rows = [(number, None, name, 0, 1000 * number, 1000 * number + 900) for number in range(20)]
        runs = [
            (f"part{part}", 1000 * number + 10 * part, scale * (100 + number % 3), number)
            for number in range(20)
            for part in (0, 1)
        ]
        kernels = trace_tables.kernels(runs)
        kernels["layer"] = pd.Categorical([name] * len(kernels))
        kernels["onnx_nodes"] = [nodes] * len(kernels)
        return {"ranges": trace_tables.ranges(rows), "kernels": kernels}

    before, after = (
        sides("a", tables("conv + relu", ("conv", "relu"), 1)),
        sides("b", tables("conv+relu+add", ("conv", "relu", "add"), 2)),
    )
    (row,) = comparing.diff(before, after, 0.05).document["levels"]["layers"]
    assert (row["name"], row["name_after"], row["matched_by"]) == ("conv + relu", "conv+relu+add", "nodes")
    assert (row["median_before_ns"], row["median_after_ns"], row["count_before"]) == (202, 404, 20)
    assert row["beyond_threshold"] is True


def test_sides_without_anything_in_common_are_undecided(sides, capsys):
    before = sides("a", {"kernels": trace_tables.kernels([("k", 0, 1, None)])})
    assert cli.run(["diff", before, sides("b", {})]) == 125
    assert "nothing to compare" in capsys.readouterr().err


@pytest.mark.parametrize("text, value", [("5%", 0.05), ("0.05", 0.05), (" 2.5 % ", 0.025), ("0", 0.0)])
def test_thresholds(text, value):
    assert comparing.parse_threshold(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "five", "-1%", "5%%", "nan"])
def test_a_threshold_that_is_none_is_a_usage_error(text, sides):
    path = sides("a", {})
    assert cli.run(["diff", path, path, f"--threshold={text}"]) == 2


def test_real_logs_of_one_engine_and_two_shapes():
    times = DATA / "trtexec" / "h100_trt86_shape_32x384.times.json"
    made = comparing.diff(str(times), str(times), 0.0)
    assert made.exit_code == 0
    assert made.document["headline"].startswith("No evidence of a change in")
    small, large = (str(DATA / "trtexec" / f"h100_trt86_shape_{shape}.log") for shape in ("1x1", "8x128"))
    logs = comparing.diff(small, large, 0.05)
    row = next(row for row in logs.document["levels"]["iterations"] if row["name"] == "compute (mean of 10)")
    assert logs.exit_code == 1
    assert (row["verdict"], row["count_before"], row["count_after"]) == ("slower", 309, 262)
    assert row["median_after_ns"] == pytest.approx(375_488, rel=0.01)  # the median that trtexec printed


def test_a_report_of_nsys_is_exported_first(myelin, tmp_path, fake_tool, monkeypatch):
    """The nsys on PATH is asked; what it wrote is read, and nothing is left beside the report."""
    folder = fake_tool("nsys", f'while [ "$1" != --output ]; do shift; done; cp {myelin} "$2"')
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    report = tmp_path / "run.nsys-rep"
    report.write_bytes(b"opaque")
    assert cli.run(["report", str(report), "--json", str(tmp_path / "r.json")]) == 0
    (artifact,) = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))["artifacts"]
    assert artifact["summary"]["kernel_count"] == 485
    assert [path.name for path in tmp_path.glob("run*")] == ["run.nsys-rep"]


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'Importer error' >&2; exit 1", "failed (exit code 1): Importer error"),
        ("kill -SEGV $$", "failed (signal 11)"),
        ("exit 0", "ended well but wrote no"),
        ('while [ "$1" != --output ]; do shift; done; : > "$2"', "the file is empty"),
    ],
    ids=["fails", "crashes", "writes-nothing", "writes-an-empty-file"],
)
def test_an_export_that_goes_wrong(tmp_path, fake_tool, monkeypatch, capsys, script, said):
    monkeypatch.setenv("PATH", str(fake_tool("nsys", script)), prepend=":")
    (tmp_path / "run.nsys-rep").write_bytes(b"opaque")
    assert cli.run(["report", str(tmp_path / "run.nsys-rep"), "--json", "-"]) in (2, 125)
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_no_nsys_to_export_with(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "run.qdrep").write_bytes(b"opaque")
    assert cli.run(["report", str(tmp_path / "run.qdrep"), "--json", "-"]) == 2
    assert "nsys export --type sqlite run.qdrep" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content, hint", [(b"", "run the tool again"), (b" \n", "run the tool again"), (b"hello", "nsys export")]
)
def test_a_file_that_no_reader_knows_says_what_to_do(tmp_path, capsys, content, hint):
    path = tmp_path / "out.txt"
    path.write_bytes(content)
    assert cli.run(["report", str(path), "-o", str(tmp_path / "page.html")]) == 2
    assert f"try: {hint}" in capsys.readouterr().err


def test_a_folder_that_is_no_session_is_not_resumed(tmp_path, capsys):
    assert cli.run(["bisect", "--resume", str(tmp_path)]) == 2
    assert "no session folder" in capsys.readouterr().err
