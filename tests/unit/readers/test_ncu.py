"""Reports of ncu: ground truth on real files, and nothing but a ParseError on broken ones."""

import csv
import importlib.util
import io
import math
import random
import sys

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.errors import DependencyMissing, ParseError
from places import DATA
from reports.columns import validate
from reports.readers import ncu, ncu_rep
from reports.readers.ncu_text import PUSH_POP, START_END, blocks
from reports.readers.ncu_units import COMMA, POINT, base_unit, number_format, parse_number

RECORDED = DATA / "ncu"
QUICK = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

BASE = ["ID", "Process ID", "Process Name", "Host Name", "Kernel Name", "Context", "Stream", "Block Size", "Grid Size",
        "Device", "CC"]  # fmt: skip
OLD = [*BASE[:5], "Kernel Time", *BASE[5:7]]
LAUNCH = ["0", "17", "app", "127.0.0.1", "void k<(int)2>(float *)", "1", "7", "(32, 4, 1)", "(8, 1, 2)", "0", "8.6"]
OLD_LAUNCH = [*LAUNCH[:5], "2020-May-29 12:02:46", *LAUNCH[5:7]]
LONG = ["Section Name", "Metric Name", "Metric Unit", "Metric Value"]
RULES = ["Rule Name", "Rule Type", "Rule Description", "Estimated Speedup Type", "Estimated Speedup"]


def page(*rows, end="\n"):
    out = io.StringIO()
    csv.writer(out, quoting=csv.QUOTE_ALL, lineterminator=end).writerows(rows)
    return out.getvalue()


def written(tmp_path, text, encoding="utf-8"):
    path = tmp_path / "page.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return path


def values(artifact):
    """(launch, metric) -> (value, unit) of what was measured."""
    table = artifact.tables["metrics"].dropna(subset="value")
    keys = zip(table["launch_id"], table["metric"], strict=True)
    return dict(zip(keys, zip(table["value"], table["unit"], strict=True), strict=True))


def as_sets(artifact):
    table = artifact.tables["metrics"].dropna(subset="value").astype({"metric": str, "unit": str, "kernel": str})
    return {tuple(row) for row in table[["launch_id", "kernel", "metric", "value", "unit"]].itertuples(index=False)}


def check(artifact):
    """Every table is as declared, and no name of a machine or a program is in any."""
    for name, table in artifact.tables.items():
        pd.testing.assert_frame_equal(table, validate(name, table))
    assert not {"host", "process_name"} & {column for table in artifact.tables.values() for column in table.columns}
    return artifact


# --- real files


def test_a_page_of_chosen_metrics():
    artifact = check(ncu.read(RECORDED / "a10g_metrics.csv"))
    launches = artifact.tables["ncu_launches"]
    assert (len(launches), len(artifact.tables["metrics"])) == (9, 45)
    first = launches.iloc[0]
    assert first["kernel"] == "basic(int, int, int, const float *, const float *, float *)"
    assert (first["grid_x"], first["grid_y"], first["block_x"], first["cc"]) == (32, 32, 32, "8.6")
    assert first["duration_ns"] == 10_776_576
    assert values(artifact)[0, "dram__bytes.sum"] == (32_746_880, "byte")
    assert artifact.summary["launches"][0]["metrics"]["gpu__time_duration.sum"] == {"value": 10_776_576.0, "unit": "ns"}
    assert artifact.summary["launch_count"] == 9
    assert artifact.notes == ()


@pytest.mark.parametrize(
    "name, kernel, duration_ns, read_bytes, busy_pct",
    [
        ("saxpy", "<unnamed>::saxpy_kernel(float, const float *, float *, int)", 292_928, 134_221_568, 22.30),
        ("gemm", "<unnamed>::gemm_naive_kernel(const float *, const float *, float *, int, int, int)",
         9_589_248, 54_207_744, 97.32),
    ],
)  # fmt: skip
def test_a_windows_file_with_byte_order_mark_and_program_output(name, kernel, duration_ns, read_bytes, busy_pct):
    artifact = check(ncu.read(RECORDED / f"{name}_windows_bom.csv"))
    (launch,) = artifact.tables["ncu_launches"].to_dict("records")
    assert (launch["kernel"], launch["duration_ns"], launch["cc"]) == (kernel, duration_ns, "12.0")
    found = values(artifact)
    assert found[0, "dram__bytes_op_read.sum"] == (read_bytes, "byte")
    assert found[0, "sm__throughput.avg.pct_of_peak_sustained_elapsed"] == (busy_pct, "%")
    assert found[0, "l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum"][1] == ""
    assert len(artifact.tables["metrics"]) == 12


def test_a_raw_page_after_the_output_of_the_program():
    artifact = check(ncu.read(RECORDED / "h100_raw_with_stdout.csv"))
    (launch,) = artifact.tables["ncu_launches"].to_dict("records")
    assert (launch["kernel"], launch["grid_x"], launch["block_x"]) == ("chatty(int)", 2, 64)
    assert (launch["duration_ns"], launch["device"], launch["cc"]) == (36_896, "NVIDIA H100 80GB HBM3", "9.0")
    assert (launch["registers_per_thread"], launch["smem_dynamic_bytes"]) == (32, 0)
    found = values(artifact)
    assert found[0, "dram__cycles_elapsed.avg.per_second"] == (2_616_825_672.16, "hz")
    assert found[0, "launch__shared_mem_per_block"] == (1024, "byte/block")
    assert len(artifact.tables["metrics"]) == 2238 - 11
    texts = artifact.tables["ncu_texts"].set_index("metric")["text"]
    assert texts["launch__cluster_scheduling_policy"] == "PolicySpread"
    assert any("14 of 2227" in note for note in artifact.notes)
    assert any("unmodified GPU clocks" in note for note in artifact.notes)


def test_a_raw_page_with_ranges_whose_payload_breaks_the_quoting():
    artifact = check(ncu.read(RECORDED / "h100_trt86_raw_nvtx.csv"))
    launches = artifact.tables["ncu_launches"]
    assert launches["launch_id"].tolist() == list(range(12))
    # Scaled units, as printed: 4.864000 us, 4.640000 us ...
    assert launches["duration_ns"].tolist() == [4864, 4640, 13088, 6688, 5024, 6880, 9696, 4544, 5312, 14272, 13312,
                                                14368]  # fmt: skip
    assert launches["grid_x"].tolist()[:2] == [3072, 3072]
    assert set(launches["stream_id"]) == {29}
    assert launches["kernel"][0].startswith(
        "void genericReformat::copyVectorizedKernel<double, float, __half, 1, 0, 1>("
    )
    assert launches["range"][5] == "l0_pv_matrix_multiply"
    found = values(artifact)
    assert found[0, "dram__bytes_read.sum"] == (3_148_544, "byte")
    assert found[2, "launch__shared_mem_per_block"] == (pytest.approx(232_448), "byte/block")
    assert found[0, "dram__bytes.sum.per_second"] == (pytest.approx(647.315789e9), "byte/s")
    assert found[0, "dram__cycles_elapsed.avg.per_second"] == (pytest.approx(2.605263e9), "hz")
    ranges = artifact.tables["ncu_ranges"]
    of_5 = ranges[ranges["launch_id"] == 5]
    assert [tuple(row) for row in of_5[["domain", "range", "kind", "depth"]].itertuples(index=False)] == [
        ("TensorRT", "ExecutionContext::enqueue", PUSH_POP, 0),
        ("TensorRT", "{ForeignNode[l0.q + (Unnamed Layer* 1) [Shuffle]...out]}", PUSH_POP, 1),
        ("probe", "infer fp16", PUSH_POP, 0),
        ("myelin-exec", "l0_pv_matrix_multiply", PUSH_POP, 0),
        ("myelin-exec", "myelinGraphExecute", START_END, 0),
    ]


@pytest.fixture
def library():
    return pytest.importorskip("ncu_report")


@pytest.mark.usefixtures("library")
def test_a_report_file_with_a_launch_that_ncu_did_not_finish():
    artifact = check(ncu_rep.read(RECORDED / "a10g_2023.1.ncu-rep"))
    launches = artifact.tables["ncu_launches"]
    assert artifact.tool_version == "2023.1.1"
    assert launches["duration_ns"].tolist()[:5] == [10_783_168, 1_397_120, 1_006_528, 429_792, 295_264]
    assert launches["duration_ns"].isna().tolist() == [False] * 5 + [True]
    assert launches["kernel"][1] == "void gmem_coalesce<(int)32>(int, int, int, const float *, const float *, float *)"
    assert (launches["cc"][0], launches["device"][0]) == ("8.6", "NVIDIA A10G")
    assert any("5 of 6 launches have a duration" in note for note in artifact.notes)
    assert artifact.tables["roofline"]["limited_by"][0] == "memory"
    errors = artifact.tables["ncu_rules"].query("kind == 'ERR'")
    assert len(errors) > 0


@pytest.mark.usefixtures("library")
def test_a_report_file_with_rules():
    artifact = check(ncu_rep.read(RECORDED / "gtx1660_2022.4.ncu-rep"))
    assert artifact.tables["ncu_launches"]["duration_ns"].tolist() == [1600, 1472, 1568, 1504]
    assert artifact.tables["ncu_launches"]["kernel"].tolist()[:2] == ["warmingUp(float *)", "mathKernel1(float *)"]
    assert artifact.tables["roofline"]["limited_by"].tolist() == ["occupancy"] * 4
    rules = artifact.tables["ncu_rules"]
    assert rules.groupby("launch_id").size().tolist() == [3, 3, 3, 3]
    assert "only 1 blocks" in rules["message"][0]


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("length", [0, 3, 4, 10, 13, 100, 10_000, 50_000, 99_000, 99_926])
def test_a_truncated_report_file_is_refused(tmp_path, length):
    path = tmp_path / "cut.ncu-rep"
    path.write_bytes((RECORDED / "gtx1660_2022.4.ncu-rep").read_bytes()[:length])
    with pytest.raises(ParseError) as raised:
        ncu_rep.read(path)
    assert raised.value.path == path


@pytest.mark.parametrize("path", sorted(RECORDED.glob("*.ncu-rep")), ids=lambda path: path.name)
def test_the_end_of_a_report_file_is_where_its_last_block_ends(path):
    data = path.read_bytes()
    assert ncu_rep.block_end(data) == len(data)


@given(content=st.binary(max_size=200))
def test_the_end_of_garbage_is_found_too(content):
    assert ncu_rep.block_end(b"NVR\0" + content) >= 4 + len(content)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("seed", range(4))
def test_a_damaged_report_file_is_read_or_refused(tmp_path, seed):
    rng = random.Random(seed)
    data = bytearray((RECORDED / "gtx1660_2022.4.ncu-rep").read_bytes())
    for _ in range(200):
        data[rng.randrange(4, len(data))] = rng.randrange(256)
    path = tmp_path / "damaged.ncu-rep"
    path.write_bytes(data)
    try:
        check(ncu_rep.read(path))
    except ParseError as error:
        assert str(path) in str(error)  # noqa: PT017


def test_a_worker_that_dies_is_told(tmp_path, monkeypatch):
    worker = tmp_path / "worker.py"
    worker.write_text("import os; os.abort()")
    monkeypatch.setattr(ncu_rep.ncu_rep_worker, "__file__", str(worker))
    pytest.importorskip("ncu_report")
    with pytest.raises(ParseError, match="exit status"):
        ncu_rep.read(RECORDED / "gtx1660_2022.4.ncu-rep")


def test_without_the_library_the_message_says_what_to_install(monkeypatch):
    monkeypatch.delitem(sys.modules, "ncu_report", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DependencyMissing) as raised:
        ncu_rep.read(RECORDED / "gtx1660_2022.4.ncu-rep")
    assert raised.value.hint == "pip install ncu-report"


@pytest.mark.parametrize("path", sorted(RECORDED.glob("*.*")), ids=lambda path: path.name)
def test_each_file_is_known_by_its_content_to_one_reader(path, tmp_path):
    other = tmp_path / "renamed.bin"
    other.write_bytes(path.read_bytes())
    head = other.read_bytes()[:1000]
    assert [reader.sniff(other, head) for reader in (ncu, ncu_rep)] == (
        [False, True] if "rep" in path.suffix else [True, False]
    )


def test_what_is_not_ncus_is_not_taken(tmp_path):
    for text in ("", "hello\n", '{"a": "Kernel Name"}', "<?xml version='1.0'?>", "========= COMPUTE-SANITIZER\n"):
        path = written(tmp_path, text)
        assert not ncu.sniff(path, text.encode())
        assert not ncu_rep.sniff(path, text.encode())


# --- pages that no fixture has


def details(rows, header=(*BASE, *LONG, *RULES)):
    return page(header, *rows)


def test_the_details_page_with_its_ragged_rows_and_rules(tmp_path):
    section = "GPU Speed Of Light Throughput"
    text = details(
        [
            [*LAUNCH, section, "Duration", "usecond", "2,848.50", ""],
            [*LAUNCH, section, "Memory Throughput", "%", "14.26", ""],
            [*LAUNCH, "Memory Workload Analysis", "Memory Throughput", "Gbyte/second", "583.20", ""],
            [*LAUNCH, "Occupancy", "Achieved Occupancy", "%", "n/a", ""],
            [
                *LAUNCH,
                "SpeedOfLight",
                "",
                "",
                "",
                "SOLBottleneck",
                "OPT",
                'It is "low", and\u00a0so, on',
                "global",
                "34.74",
            ],
            [*LAUNCH, "SpeedOfLight", "", "", "", "HighPipe", "INF", "Fine.", "", ""],
        ]
    )
    artifact = check(ncu.read(written(tmp_path, "==PROF== Connected\n" + text)))
    metrics = artifact.tables["metrics"]
    assert list(zip(metrics["metric"], metrics["unit"], metrics["value"], strict=True))[:3] == [
        ("Duration", "ns", 2_848_500.0),
        ("Memory Throughput", "%", 14.26),
        ("Memory Throughput", "byte/s", 583.2e9),
    ]
    assert math.isnan(metrics["value"][3])
    assert artifact.tables["ncu_launches"]["duration_ns"].tolist() == [2_848_500]
    rules = artifact.tables["ncu_rules"]
    assert rules["rule"].tolist() == ["SOLBottleneck", "HighPipe"]
    assert rules["message"][0] == 'It is "low", and\u00a0so, on'
    assert rules["estimated_speedup_pct"].tolist()[0] == 34.74
    assert math.isnan(rules["estimated_speedup_pct"][1])
    assert rules["speedup_scope"][0] == "global"
    assert artifact.summary["page"] == "details"


def test_the_details_page_with_body_items(tmp_path):
    header = [*BASE, "Section Name", "Body Item Label", *LONG[1:], *RULES]
    rows = [
        [*LAUNCH, "S", "Roofline", "SM Frequency", "cycle/nsecond", "1.41", ""],  # 17 of 21
        [*LAUNCH, "S", "", "", "", "", "Rule", "OPT", "Do it.", "local", "1,2"],
    ]
    artifact = ncu.read(written(tmp_path, page(header, *rows)))
    assert values(artifact) == {(0, "SM Frequency"): (1.41e9, "hz")}
    assert artifact.tables["ncu_rules"]["message"].tolist() == ["Do it."]


def test_a_page_of_an_old_version(tmp_path):
    rows = [[*OLD_LAUNCH, "GPU Speed Of Light", "Memory Frequency", "cycle/second", "772656250"],
            [*OLD_LAUNCH, "GPU Speed Of Light", "SOL FB", "%", "39.60"]]  # fmt: skip
    artifact = check(ncu.read(written(tmp_path, page([*OLD, *LONG]) + "\n" + page(*rows))))
    assert values(artifact) == {(0, "Memory Frequency"): (772_656_250, "hz"), (0, "SOL FB"): (39.6, "%")}
    assert artifact.tables["ncu_launches"]["grid_x"].isna().all()


def test_metric_names_behind_labels(tmp_path):
    rows = [[*LAUNCH, "S", "Duration (gpu__time_duration.sum)", "ns", "100"]]
    artifact = ncu.read(written(tmp_path, page([*BASE, *LONG], *rows)))
    assert artifact.tables["ncu_launches"]["duration_ns"].tolist() == [100]


def test_the_summary_page(tmp_path):
    header = [*BASE[1:5], *BASE[7:], "Invocations", *LONG[:3], "Minimum", "Maximum", "Average"]
    launch = [*LAUNCH[1:5], *LAUNCH[7:], "14"]
    rows = [
        [*launch, "S", "gpu__time_duration.sum", "us", "1.00", "3.00", "2.00"],
        [*launch, "S", "dram__bytes.sum", "Kbyte", "1.00", "2,000.00", "1,000.50"],
    ]
    artifact = check(ncu.read(written(tmp_path, page(header, *rows))))
    (row,) = artifact.tables["ncu_launches"].to_dict("records")
    assert (row["duration_ns"], row["count"], row["grid_z"]) == (2000, 14, 2)
    extremes = artifact.tables["ncu_extremes"]
    assert extremes[["minimum", "maximum", "average"]].to_numpy().tolist() == [[1e3, 3e3, 2e3], [1e3, 2e6, 1_000_500]]
    assert (artifact.summary["launch_count"], artifact.summary["kernel_time_ns"]) == (14, 28_000)


@pytest.mark.parametrize(
    "row, told",
    [
        (["1", "2"], "9 of 10 fields"),  # cut short, and a quote is its end all the same
        (["1", "2", "3", "4"], "11 of 10 fields"),
        (['1","2', "2", "3"], None),  # a text that looks like two fields
        (['say ""1""', '"2', "3"], None),
    ],
)
def test_a_row_of_another_length_costs_no_other_row(tmp_path, row, told):
    base = ["ID", "Process ID", "Kernel Name", "Context", "Stream", "Device", "CC"]
    header, units = [*base, "a", "b", "c"], ["", "", "", "", "", "", "", "inst", "", "%"]
    launches = [[str(n), "1", "k", "1", "7", "0", "9.0"] for n in range(3)]
    rows = [[*launches[0], "1,000", "", "5.5"], [*launches[1], *row], [*launches[2], "2", "nan", "6.5"]]
    artifact = check(ncu.read(written(tmp_path, page(header, units, *rows))))
    found = values(artifact)
    assert (found[0, "a"], found[0, "c"]) == ((1000, "inst"), (5.5, "%"))
    assert (found[2, "a"], found[2, "c"]) == ((2, "inst"), (6.5, "%"))
    assert artifact.tables["ncu_launches"]["launch_id"].tolist() == ([0, 2] if told else [0, 1, 2])
    assert any(told in note for note in artifact.notes) if told else found[1, "c"] == (3, "%")


def test_two_runs_in_one_file_are_numbered_anew(tmp_path):
    text = (RECORDED / "a10g_metrics.csv").read_text()
    artifact = check(ncu.read(written(tmp_path, text + "\nepoch 2\n" + text)))
    assert artifact.tables["ncu_launches"]["launch_id"].tolist() == list(range(18))
    assert any("18 launches share 9 IDs" in note for note in artifact.notes)
    found = values(artifact)
    assert found[9, "dram__bytes.sum"] == found[0, "dram__bytes.sum"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-8-sig", "utf-8"])
def test_encodings(tmp_path, encoding):
    text = (RECORDED / "a10g_metrics.csv").read_text()
    path = written(tmp_path, text.replace("\n", "\r\n"), encoding)
    assert ncu.sniff(path, path.read_bytes()[:500])
    assert as_sets(ncu.read(path)) == as_sets(ncu.read(RECORDED / "a10g_metrics.csv"))


def test_a_table_that_something_else_saved_again(tmp_path):
    path = tmp_path / "again.csv"
    pd.read_csv(RECORDED / "a10g_metrics.csv", dtype=str).to_csv(path, index=False)
    assert as_sets(ncu.read(path)) == as_sets(ncu.read(RECORDED / "a10g_metrics.csv"))


def test_output_without_a_newline_before_the_header(tmp_path):
    text = "100 % done" + (RECORDED / "a10g_metrics.csv").read_text()
    assert as_sets(ncu.read(written(tmp_path, text))) == as_sets(ncu.read(RECORDED / "a10g_metrics.csv"))


@pytest.mark.parametrize(
    "text, part",
    [
        ("", "0 bytes"),
        ("\ufeff\n\n", "all blank"),
        ("==PROF== Connected\n==ERROR== ERR_NVGPUCTRPERM - no permission\n", "ERR_NVGPUCTRPERM"),
        ("==PROF== Connected\n==WARNING== No kernels were profiled.\n", "No kernels were profiled"),
        (page([*BASE, *LONG]), "none"),
        (page([*BASE, "a__b.sum"], [""] * 12), "none"),
        (page([*BASE, "a__b.sum"], [*LAUNCH, "3"]), "launch 0"),  # no row of units: no number means anything
        (page([*BASE, "Metric Name", "Metric Value"], [*LAUNCH, "a", "1"]), "Metric Unit"),
        (page([*BASE, *LONG], [*LAUNCH, "S", "a", "ns", "1.234,5"], [*LAUNCH, "S", "b", "ns", "1,234.5"]), "1,234.5"),
    ],
)
def test_what_has_no_launch_is_refused(tmp_path, text, part):
    with pytest.raises(ParseError) as raised:
        ncu.read(written(tmp_path, text))
    assert part in str(raised.value)


def test_a_permission_error_says_what_to_do(tmp_path):
    with pytest.raises(ParseError) as raised:
        ncu.read(written(tmp_path, "==ERROR== ERR_NVGPUCTRPERM - The user does not have permission\n"))
    assert "performance counters" in (raised.value.hint or "")


# --- properties


def texts_of(name):
    return (RECORDED / name).read_bytes()


@QUICK
@given(data=st.data(), name=st.sampled_from(["a10g_metrics.csv", "saxpy_windows_bom.csv"]))
def test_a_file_cut_anywhere_gives_true_values_or_is_refused(tmp_path, data, name):
    whole = texts_of(name)
    length = data.draw(st.integers(0, len(whole)))
    path = written(tmp_path, whole[:length])
    try:
        artifact = ncu.read(path)
    except ParseError:
        return
    truth = as_sets(ncu.read(RECORDED / name))
    rows = as_sets(artifact)
    assert rows <= truth
    last = whole[:length].decode("utf-8-sig", "ignore").rpartition("\n")[2]
    if last[1:2].isdigit() and last.rstrip() not in whole.decode("utf-8-sig").splitlines():
        assert any("left out" in note for note in artifact.notes)


@settings(QUICK, max_examples=12)
@given(share=st.floats(0.05, 0.999))
def test_a_raw_page_cut_anywhere_gives_true_values_or_is_refused(tmp_path, share):
    whole = texts_of("h100_trt86_raw_nvtx.csv")
    try:
        artifact = ncu.read(written(tmp_path, whole[: int(share * len(whole))]))
    except ParseError:
        return
    assert as_sets(artifact) <= TRUTH


TRUTH = as_sets(ncu.read(RECORDED / "h100_trt86_raw_nvtx.csv"))

JUNK = st.one_of(
    st.text(st.characters(exclude_characters='"\n\r', exclude_categories=["Cs"]), max_size=40),
    st.sampled_from(
        [
            '==PROF== Profiling "k" - 0: 0%....50%....100% - 9 passes',
            "Traceback (most recent call last):",
            '  File "a.py", line 3, in <module>',
            "blk 0 thr 0 val 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5",
            'say "hi"',
        ]
    ),
)


@settings(QUICK, max_examples=40)
@given(junk=st.lists(st.tuples(st.integers(0, 46), JUNK), max_size=12))
def test_what_is_printed_between_the_rows_changes_nothing(tmp_path, junk):
    lines = texts_of("a10g_metrics.csv").decode().splitlines()
    for at, text in junk:
        lines.insert(at, text)
    artifact = ncu.read(written(tmp_path, "\n".join(lines)))
    assert as_sets(artifact) == as_sets(ncu.read(RECORDED / "a10g_metrics.csv"))


@settings(QUICK, max_examples=150)
@given(content=st.one_of(st.binary(max_size=300), st.text(max_size=300).map(str.encode),
                         st.text('",\n\r0=()[]aIDéK ', max_size=200).map(lambda text: page([*BASE, "m"]).encode() + text.encode()),
                         st.text('",\n\r0=() nsMLGb%.', max_size=200).map(lambda text: page([*BASE, *LONG]).encode() + text.encode())))  # fmt: skip
def test_garbage_is_refused_or_read_with_care(tmp_path, content):
    path = written(tmp_path, content)
    ncu.sniff(path, content[:100])
    try:
        artifact = check(ncu.read(path))
    except ParseError:
        return
    assert len(artifact.tables["ncu_launches"]) > 0


SCALES = {"nsecond": 1, "us": 1e3, "msecond": 1e6, "s": 1e9}
NUMBER = st.one_of(st.integers(0, 10**12), st.floats(0, 1e9).map(lambda value: round(value, 6)))


def printed(value, fmt):
    text = f"{value:,}" if isinstance(value, int) else f"{value:,.6f}"
    return text if fmt is POINT else text.translate(str.maketrans(",.", ".,"))


@QUICK
@given(rows=st.lists(st.lists(NUMBER, min_size=3, max_size=3), min_size=1, max_size=5), fmt=st.sampled_from([POINT, COMMA]),
       units=st.lists(st.sampled_from(sorted(SCALES)), min_size=3, max_size=3))  # fmt: skip
def test_raw_pages_of_any_locale_and_scale(tmp_path, rows, fmt, units):
    names = ["a__x.sum", "b__x.sum", "c__x.sum", "d__x.sum"]
    lines = [[str(number), *LAUNCH[1:], *(printed(value, fmt) for value in row), printed(0.25, fmt)]
             for number, row in enumerate(rows)]  # fmt: skip
    text = page([*BASE, *names], [*[""] * len(BASE), *units, "%"], *lines)
    found = values(ncu.read(written(tmp_path, text)))
    for number, row in enumerate(rows):
        for name, value, unit in zip(names, row, units, strict=False):
            assert found[number, name] == (pytest.approx(value * SCALES[unit], rel=1e-12), "ns")
        assert found[number, "d__x.sum"] == (0.25, "%")


@pytest.mark.parametrize(
    "unit, base, factor",
    [
        ("nsecond", "ns", 1), ("ns", "ns", 1), ("usecond", "ns", 1e3), ("us", "ns", 1e3), ("msecond", "ns", 1e6),
        ("ms", "ns", 1e6), ("second", "ns", 1e9), ("s", "ns", 1e9), ("byte", "byte", 1), ("Kbyte", "byte", 1e3),
        ("Mbyte", "byte", 1e6), ("Tbyte", "byte", 1e12), ("KiB", "byte", 1024), ("Gbyte/s", "byte/s", 1e9),
        ("Gbyte/second", "byte/s", 1e9), ("byte/second", "byte/s", 1), ("cycle/nsecond", "hz", 1e9),
        ("cycle/usecond", "hz", 1e6), ("cycle/second", "hz", 1), ("Ghz", "hz", 1e9), ("hz", "hz", 1),
        ("sector/ns", "sector/s", 1e9), ("sector/us", "sector/s", 1e6), ("Kbyte/block", "byte/block", 1e3),
        ("%/Kbyte", "%/byte", 1e-3), ("%", "%", 1), ("", "", 1), ("inst/cycle", "inst/cycle", 1),
        ("sectors", "sector", 1), ("branches", "branch", 1), ("register/thread", "register/thread", 1), ("SM", "SM", 1),
        ("Kbyte/cycle", "byte/cycle", 1e3), ("something new", "something new", 1),
    ],
)  # fmt: skip
def test_units(unit, base, factor):
    assert base_unit(unit) == (base, pytest.approx(factor))


def test_numbers():
    assert parse_number("1,234.5", POINT) == 1234.5
    assert parse_number("1.234,5", COMMA) == 1234.5
    assert parse_number("1\u202f234,5", COMMA) == 1234.5
    assert parse_number("12 (3; 9)", POINT) == 12
    assert parse_number("(!) 5", POINT) == 5
    assert parse_number("1,23", POINT) is None
    assert parse_number("1_000", POINT) is None
    assert parse_number("No-CC", POINT) is None
    assert all(math.isnan(parse_number(cell, POINT)) for cell in ("", "n/a", "nan", "no data", "(!) n/a"))
    assert number_format(["1,234", "12"]) is POINT
    assert number_format(["1.234", "12,5"]) is COMMA
    assert number_format(["1.234.567"]) is COMMA


def test_long_output_of_the_program_takes_no_time(tmp_path):
    text = '"' * 200_000 + "\n" + '","' * 100_000 + "\n" + (RECORDED / "a10g_metrics.csv").read_text()
    assert len(list(blocks(text))) == 1
    assert as_sets(ncu.read(written(tmp_path, text))) == as_sets(ncu.read(RECORDED / "a10g_metrics.csv"))
