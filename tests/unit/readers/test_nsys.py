"""nsys exports: real ones with what is known to be in them, made-up ugly ones, and files that are none."""

from __future__ import annotations

import gzip
import importlib
import json
import sqlite3

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.errors import ParseError
from harness.tools.nsys import unfinished
from places import DATA
from reports.readers import nsys
from reports.readers._pages import NotPlain, read_columns
from reports.readers._sqlite import Database

RECORDED = DATA / "nsys"
generator = importlib.import_module("benchmarks.nsys_generator")

KERNEL, RUNTIME, NVTX = "CUPTI_ACTIVITY_KIND_KERNEL", "CUPTI_ACTIVITY_KIND_RUNTIME", "NVTX_EVENTS"
P = 0x1000001 << 24  # a machine and a process of it
CUPY, MYELIN = "h100_cupy_threads_graph_2025.3", "h100_trt86_myelin_2025.3"
SAXPY, CLOVER = "hpcgroup__pipit__saxpy_mpi_cuda", "hpcgroup__pipit__cloverleaf_perlmutter"
GRAPH_LEVEL = "morluto__flameox__nsight-2025.5.2_cuda_graph"

# name: tool version, kernels, their time, memory operations, ranges, API calls
KNOWN = {
    "D-W-Chiang__JACC.jl__cg_trace": ("2026.2.1.210", 0, 0, 0, 0, 0),
    "cestwc__balinski-and-gomory-cuda__report1": ("2025.5.1.121", 97, 155046, 39, 0, 202),
    "frasertajima__WeatherBench2__report1": ("2025.5.1.121", 0, 0, 1, 0, 23),
    CUPY: ("2025.3.2.0", 85, 2084940, 7, 111, 1205),
    MYELIN: ("2025.3.2.0", 485, 10459240, 30, 929, 1145),
    CLOVER: ("2024.5.1.113", 1312, 294404540, 279, 0, 3048),
    SAXPY: ("2022.2.1.31", 5, 88573480, 15, 22, 95),
    "lighttransport__gemm__profile": ("2025.1.3.140", 0, 0, 0, 0, 3),
    GRAPH_LEVEL: ("2025.5.2.266", 3, 3840, 1, 0, 33),
}


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A real export, unpacked, by its name."""
    folder = tmp_path_factory.mktemp("nsys")

    def unpack(name):
        path = folder / f"{name}.sqlite"
        if not path.exists():
            path.write_bytes(gzip.decompress((RECORDED / f"{name}.sqlite.gz").read_bytes()))
        return path

    return unpack


@pytest.fixture
def make(tmp_path):
    """An export of these rows: `make({table: [row, ...]})`; texts are given as words where numbers stand for them."""

    def write(tables, path=tmp_path / "made.sqlite"):
        path.unlink(missing_ok=True)
        with generator.Export(path) as export:
            for table, rows in tables.items():
                export.add(table, [numbered(export, row) for row in rows])
        return path

    return write


def numbered(export, row):
    texts = ("nameId", "textId", "demangledName", "shortName")
    return {key: export.text(value) if key in texts and isinstance(value, str) else value for key, value in row.items()}


def kernel(start, correlation, process=P, **more):
    return {"start": start, "end": start + 10, "deviceId": 0, "streamId": 7, "correlationId": correlation,
            "globalPid": process, "demangledName": "k(int)", "shortName": "k", **more}  # fmt: skip


def call(start, correlation, thread=P + 1, name="cudaLaunchKernel_v7000"):
    return {"start": start, "end": start + 1, "globalTid": thread, "correlationId": correlation, "nameId": name}


def push(start, end, name, thread=P + 1, **more):
    return {"start": start, "end": end, "eventType": 59, "globalTid": thread, "textId": name, "domainId": 0, **more}


def range_of(table, frames):
    """The name of the range that each row lies in."""
    names = dict(zip(frames["ranges"]["range_id"], frames["ranges"]["range"], strict=True))
    return [names.get(row) for row in frames[table]["range_id"]]


# ---- real exports


@pytest.mark.parametrize("name", KNOWN)
def test_real_exports_hold_what_is_known_of_them(real, name):
    path = real(name)
    assert nsys.sniff(path, path.read_bytes()[:4096])
    artifact = nsys.read(path)
    summary, rows = artifact.summary, artifact.rows()
    assert (artifact.tool_version, rows["kernels"], summary["kernel_time_ns"], rows["memory_ops"], rows["ranges"],
            rows["api_calls"]) == KNOWN[name]  # fmt: skip
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert summary["kernel_count"] == rows["kernels"] == sum(row["count"] for row in summary["by_kernel"])
    assert not any(word in str(artifact.tables["meta"].to_dict()) for word in ("EXPORT_HOST", "EXPORT_USER"))


def test_a_kernel_with_two_calls_of_its_correlation_is_counted_once(real):
    artifact = nsys.read(real(SAXPY))
    assert artifact.summary["kernel_time_ns"] == 88573480  # and not 177146960, as a join on correlation ids gives
    row = artifact.summary["by_range"][0]
    assert (row["range"], row["count"], row["kernel_count"], row["kernel_time_ns"]) == ("saxpy", 5, 5, 88573480)
    assert {row["domain"] for row in artifact.summary["by_range"]} == {"", "MPI"}


def test_kernels_of_threads_and_of_a_graph_go_where_they_were_launched(real):
    frames = nsys.read(real(CUPY)).tables
    kernels = frames["kernels"].assign(range=range_of("kernels", frames))
    assert kernels["kernel"].value_counts().to_dict().pop("saxpy") == 54
    graph = kernels[kernels["graph_node_id"].notna()]
    names = frames["ranges"].set_index("range_id")["range"]
    assert graph["range"].tolist() == ["graph launch"] * 24
    assert set(names[graph["capture_range_id"]]) == {"captured"}
    assert kernels[kernels["graph_node_id"].isna()]["capture_range_id"].isna().all()
    assert kernels["range"].value_counts().to_dict() == {"saxpy": 30, "matmul": 30, "graph launch": 24, "main": 1}
    by_range = nsys.read(real(CUPY)).summary["by_range"]
    captured = next(row for row in by_range if row["range"] == "captured")
    assert (captured["kernel_count"], captured["captured_kernel_count"]) == (0, 24)
    layers = [row for row in by_range if row["range"].startswith("layer")]
    assert [(row["count"], row["kernel_count"], row["depth"]) for row in layers] == [(5, 10, 2)] * 6
    assert frames["marks"]["mark"].tolist() == ["done"]
    whole = frames["ranges"][frames["ranges"]["kind"] == "start_end"]
    assert whole["range"].tolist() == ["whole program"]


def test_tensorrt_kernels_go_to_layer_operation_and_nodes(real):
    artifact = nsys.read(real(MYELIN))
    summary, kernels = artifact.summary, artifact.tables["kernels"]
    foreign = "{ForeignNode[l0.q + (Unnamed Layer* 1) [Shuffle]...out]}"
    assert [(row["layer"], row["kernel_count"], row["kernel_time_ns"]) for row in summary["by_layer"]] == [
        (foreign, 475, 10426151),
        (f"Reformatting CopyNode for Input Tensor 0 to {foreign}", 5, 17568),
        (f"Reformatting CopyNode for Output Tensor 0 to {foreign}", 5, 15521),
    ]
    assert summary["by_layer"][0]["onnx_nodes"] == ["l0.q", "out"]
    first = summary["by_operation"][0]
    assert (first["operation"], first["count"], first["kernel_count"], first["kernel_time_ns"]) == (
        "l2_f2_18_matrix_multiply", 10, 15, 689994)  # fmt: skip
    assert sum(row["kernel_time_ns"] for row in summary["by_operation"]) == 10426151
    assert kernels["operation"].notna().sum() == 475
    scaled = kernels[kernels["operation"].astype(str).str.startswith("shuffle_output_l0_qk_reshape")]
    assert set(scaled["onnx_nodes"]) == {("shuffle_output_l0_qk_reshape", "l0_scale")}
    assert summary["attributed_time_pct"] == 100
    assert {row["range"] for row in summary["by_range"] if row["parent"] is None and row["kernel_count"]} == {
        "infer fp32", "infer fp16"}  # fmt: skip


def test_operations_agree_with_an_interval_join_in_sql(real):
    """The innermost Myelin range by SQLite's own arithmetic, kernel by kernel."""
    with sqlite3.connect(real(MYELIN)) as connection:
        rows = connection.execute(
            "SELECT (SELECT s.value FROM NVTX_EVENTS n JOIN StringIds s ON s.id = n.textId WHERE n.domainId = 2"
            " AND n.eventType = 59 AND n.globalTid = r.globalTid AND n.start <= r.start AND r.start < n.end"
            " ORDER BY n.start DESC LIMIT 1) FROM CUPTI_ACTIVITY_KIND_KERNEL k JOIN CUPTI_ACTIVITY_KIND_RUNTIME r"
            " ON r.correlationId = k.correlationId AND r.globalTid >> 24 = k.globalPid >> 24 ORDER BY k.rowid"
        ).fetchall()
    found = nsys.read(real(MYELIN)).tables["kernels"]["operation"]
    assert [None if word != word else word for word in found] == [row[0] for row in rows]


def test_a_graph_traced_whole_is_a_launch_of_its_own(real):
    artifact = nsys.read(real(GRAPH_LEVEL))
    graphs = artifact.tables["graph_launches"]
    assert graphs["duration_ns"].tolist() == [1728, 1376]
    assert graphs["thread_id"].notna().all()
    assert artifact.summary["graph_time_ns"] == 3104
    assert "2 launches of CUDA graphs were traced whole: the kernels in them are not listed" in artifact.notes


def test_devices_are_read_with_their_units(real):
    (row,) = nsys.read(real(CUPY)).tables["devices"].to_dict("records")
    assert row == {"device_id": 0, "gpu": "NVIDIA H100 80GB HBM3", "compute_capability": "9.0", "sm_count": 132,
                   "memory_bytes": 85017493504, "memory_bytes_per_s": 3352320000000, "clock_hz": 1980000000}  # fmt: skip


# ---- made-up exports

CORRELATIONS = st.one_of(st.none(), st.integers(1, 4))
THREADS = st.sampled_from([P + 1, P + 2, P + (1 << 24) + 1])
AT = st.integers(-5, 15)
CASES = st.fixed_dictionaries(
    {
        "kernels": st.lists(st.tuples(AT, CORRELATIONS, st.sampled_from([P, P + (1 << 24)])), max_size=6),
        "calls": st.lists(
            st.tuples(AT, CORRELATIONS, THREADS, st.sampled_from(["cudaLaunchKernel", "cudaMalloc"])), max_size=8
        ),
        "ranges": st.lists(
            st.tuples(AT, st.one_of(st.none(), AT), THREADS, st.sampled_from([59, 60, 70, 71])), max_size=10
        ),
        "graphs": st.lists(st.tuples(AT, CORRELATIONS), max_size=2),
    }
)


@given(CASES)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_export_is_attributed_as_by_brute_force(make, case):
    """Open, zero-length, equal, crossing and cross-thread ranges; orphans; several calls and processes; graphs."""
    ranges = [push(start, end, f"r{row}", thread, eventType=event, endGlobalTid=P + 2 if event in (60, 71) else None)
              for row, (start, end, thread, event) in enumerate(case["ranges"])]  # fmt: skip
    tables = {
        KERNEL: [kernel(*row) for row in case["kernels"]],
        RUNTIME: [call(*row) for row in case["calls"]],
        NVTX: ranges,
        "CUPTI_ACTIVITY_KIND_GRAPH_TRACE": [
            {"start": start, "end": start + 5, "correlationId": correlation, "globalPid": P, "graphId": 1}
            for start, correlation in case["graphs"]
        ],
    }
    artifact = nsys.read(make(tables))
    frames = artifact.tables
    spans = [(thread, start, float("inf") if end is None else end) for start, end, thread, _ in case["ranges"]]

    def launching(process, correlation):
        same = [(name != "cudaLaunchKernel", start, row, thread)
                for row, (start, theirs, thread, name) in enumerate(case["calls"])
                if theirs == correlation is not None and thread >> 24 == process >> 24]  # fmt: skip
        return min(same, default=None)

    def holding(found):
        return [row for row, (thread, start, end) in enumerate(spans)
                if found and thread == found[3] and start <= found[1] < end]  # fmt: skip

    def innermost(found):
        return max(holding(found), key=lambda row: (spans[row][1], -spans[row][2], row), default=None)

    wanted = [innermost(launching(process, correlation)) for _, correlation, process in case["kernels"]]
    assert [
        None if row is np.nan or row != row else row
        for row in frames["kernels"]["range_id"].to_numpy(object, na_value=None)
    ] == wanted
    graphs = [innermost(launching(P, correlation)) for _, correlation in case["graphs"]]
    assert list(frames["graph_launches"]["range_id"].to_numpy(object, na_value=None)) == graphs
    held = [holding(launching(process, correlation)) for _, correlation, process in case["kernels"]]
    assert len(held) == artifact.summary["kernel_count"]
    inside = sum(10 for rows in held if rows)
    assert artifact.summary["attributed_time_pct"] == (100 * inside / (10 * len(held)) if held else None)
    # Every name is its own here, so the rows of a name are one range, wherever it stands in the tree.
    found = {row["range"]: row["kernel_count"] for row in artifact.summary["by_range"]}
    assert found == {f"r{row}": sum(row in rows for rows in held) for row in range(len(spans))}


def test_a_kernel_that_runs_after_its_range_ended_belongs_to_it(make):
    path = make(
        {KERNEL: [kernel(900, 1)], RUNTIME: [call(15, 1)], NVTX: [push(10, 20, "in time"), push(800, 1000, "late")]}
    )
    assert range_of("kernels", nsys.read(path).tables) == ["in time"]


def test_correlation_ids_count_within_their_process_only(make):
    other = P + (1 << 24)
    path = make({
        KERNEL: [kernel(100, 1), kernel(101, 1, other)],
        RUNTIME: [call(15, 1), call(15, 1, other + 1)],
        NVTX: [push(10, 20, "mine"), push(10, 20, "theirs", other + 1)],
    })  # fmt: skip
    assert range_of("kernels", nsys.read(path).tables) == ["mine", "theirs"]


def test_what_cannot_be_attributed_is_counted_and_told(make):
    path = make({KERNEL: [kernel(100, 1), kernel(200, 2), kernel(300, None)], RUNTIME: [call(15, 1)],
                 NVTX: [push(10, None, "open")]})  # fmt: skip
    artifact = nsys.read(path)
    assert artifact.summary["unattributed"]["kernels_without_launch_call"] == {"count": 2, "time_ns": 20}
    assert artifact.summary["attributed_time_pct"] == pytest.approx(100 / 3)
    assert "1 of 1 ranges were never closed: they count until the end of the trace" in artifact.notes
    assert artifact.tables["ranges"]["end_ns"].tolist() == [310]


def test_nodes_of_a_graph_go_to_the_layer_that_was_captured(make):
    nodes = [{"start": start, "globalTid": P + 1, "graphNodeId": node, "originalGraphNodeId": source}
             for start, node, source in ((12, 5, None), (40, 9, None), (41, 9, 5))]  # fmt: skip
    path = make({
        KERNEL: [kernel(100, 1, graphNodeId=9), kernel(110, 1, graphNodeId=77)],
        RUNTIME: [call(60, 1, name="cudaGraphLaunch_v10000")],
        "CUDA_GRAPH_NODE_EVENTS": nodes,
        NVTX: [{"start": 1, "eventType": 75, "globalTid": P + 1, "text": "TensorRT", "domainId": 4},
               push(10, 20, "Conv_0 + Relu_1", domainId=4), push(50, 70, "launch")],
    })  # fmt: skip
    frames = nsys.read(path).tables
    kernels = frames["kernels"]
    assert range_of("kernels", frames) == ["launch", "launch"]
    assert kernels["capture_range_id"].to_numpy(object, na_value=None).tolist() == [0, None]
    assert kernels["onnx_nodes"].tolist() == [("Conv_0", "Relu_1"), ()]


def test_domains_and_categories_have_the_names_they_had_then(make):
    made = {"eventType": 75, "globalTid": P + 1, "domainId": 3}
    path = make({NVTX: [
        {**made, "start": 1, "text": "first"}, push(2, 3, "a", domainId=3),
        {"start": 4, "eventType": 33, "globalTid": P + 1, "domainId": 3, "category": 8, "text": "io"},
        {**made, "start": 10, "text": "second"}, push(12, 13, "b", domainId=3, category=8),
        push(14, 15, "c", domainId=9, category=5), push(16, 17, None, text="own text"), push(18, 19, None),
    ]})  # fmt: skip
    ranges = nsys.read(path).tables["ranges"]
    assert ranges["domain"].tolist() == ["first", "second", "domain 9", "", ""]
    assert ranges["range"].tolist() == ["a", "b", "c", "own text", ""]
    assert [None if word != word else word for word in ranges["category"]] == [None, "io", "5", None, None]


def test_a_million_names_do_not_make_a_million_groups(tmp_path):
    path = generator.write(tmp_path / "many.sqlite", generator.Shape(2000))
    rows = nsys.read(path).summary["by_range"]
    assert [(row["range"], row["count"], row["kernel_count"]) for row in rows[:2]] == [
        ("request #", 200, 2000), ("forward", 200, 2000)]  # fmt: skip
    assert len(rows) == 12


def test_missing_numbers_stay_missing_and_others_stay_integers(make):
    path = make({KERNEL: [kernel(100, None, gridX=3), kernel(120, 2**31, gridX=None)]})
    kernels = nsys.read(path).tables["kernels"]
    assert kernels["correlation_id"].to_numpy(object, na_value=None).tolist() == [None, 2**31]
    assert kernels["grid_x"].to_numpy(object, na_value=None).tolist() == [3, None]
    assert str(kernels["duration_ns"].dtype) == "int64"


def test_one_column_more_or_less_does_not_matter(make):
    path = make({KERNEL: [kernel(100, 1)], RUNTIME: [call(90, 1)]})
    with sqlite3.connect(path) as connection:
        for column in ("mangledName", "graphId", "graphNodeId", "greenContextId", "gridX"):
            connection.execute(f"ALTER TABLE {KERNEL} DROP COLUMN {column}")
        connection.execute(f"ALTER TABLE {KERNEL} ADD COLUMN fromTheFuture TEXT")
        connection.execute(f"ALTER TABLE {RUNTIME} RENAME TO kept")
        connection.execute(f"CREATE VIEW {RUNTIME} AS SELECT * FROM kept")
    artifact = nsys.read(path)
    assert artifact.tables["kernels"]["grid_x"].isna().all()
    assert artifact.tables["kernels"]["kernel"].tolist() == ["k(int)"]
    assert artifact.tables["kernels"]["launch_ns"].tolist() == [90]


def test_columns_and_tables_that_no_export_lacks_are_told(make):
    path = make({KERNEL: [kernel(100, 1)], RUNTIME: [call(90, 1)]})
    with sqlite3.connect(path) as connection:
        connection.execute(f"ALTER TABLE {KERNEL} RENAME COLUMN end TO endNs")
        connection.execute("DROP TABLE StringIds")
    artifact = nsys.read(path)
    assert artifact.summary["kernel_time_ns"] == 0
    assert f"{KERNEL} has no column end: what it would say is missing" in artifact.notes
    assert any("no table StringIds" in note for note in artifact.notes)


def test_a_database_of_nvprof_is_refused_with_the_way_out(make):
    path = make({KERNEL: [kernel(100, 1)]})
    with sqlite3.connect(path) as connection:
        connection.execute(f"ALTER TABLE {KERNEL} RENAME TO CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL")
    with pytest.raises(ParseError, match="one of nvprof") as caught:
        nsys.read(path)
    assert "nsys profile" in caught.value.hint


def test_kernels_that_end_before_they_start_last_no_time(make):
    artifact = nsys.read(make({KERNEL: [{**kernel(100, 1), "end": 90}, {**kernel(200, 2), "end": 230}]}))
    assert artifact.tables["kernels"]["duration_ns"].tolist() == [0, 30]
    assert any(note.startswith("1 operations have no end, or one before") for note in artifact.notes)


def test_numbers_that_no_sum_holds_are_refused(make):
    rows = [{**kernel(at, at), "end": 2**62} for at in (1, 2, 3)]
    with pytest.raises(ParseError, match=r"KERNEL\.end: expected values from 0 that add up"):
        nsys.read(make({KERNEL: rows}))


def test_invalid_utf8_is_replaced(make):
    path = make({KERNEL: [kernel(100, 1)]})
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE StringIds SET value = CAST(x'66FF6F' AS TEXT)")
    assert nsys.read(path).tables["kernels"]["kernel"].tolist() == ["f\ufffdo"]


# ---- files that are none, or broken


@pytest.mark.parametrize("content", [b"", b"\0" * 5000, b"SQLite format 3", b"SQLite format 3\0", b"start,end\n1,2\n"])
def test_what_is_no_database_is_refused(tmp_path, content):
    path = tmp_path / "x.sqlite"
    path.write_bytes(content)
    with pytest.raises(ParseError, match=r"x\.sqlite"):
        nsys.read(path)
    assert not nsys.sniff(path, content)


def test_a_missing_file_and_another_database_are_refused(tmp_path):
    with pytest.raises(ParseError, match="a readable file"):
        nsys.read(tmp_path / "none.sqlite")
    with sqlite3.connect(tmp_path / "other.db") as connection:
        connection.execute("CREATE TABLE songs (title TEXT)")
    with pytest.raises(ParseError, match="tables of an nsys export, got songs"):
        nsys.read(tmp_path / "other.db")
    assert not nsys.sniff(tmp_path / "other.db", (tmp_path / "other.db").read_bytes())


def test_a_report_says_how_to_export_it(tmp_path):
    path = tmp_path / "run.nsys-rep"
    path.write_bytes(b"\x01\x02\x03 something")
    assert nsys.sniff(path, path.read_bytes())
    with pytest.raises(ParseError) as caught:
        nsys.read(path)
    assert caught.value.hint == "nsys export --type sqlite --output run.sqlite run.nsys-rep"


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [(KERNEL, "start", "soon"), (KERNEL, "correlationId", 1.5), (RUNTIME, "globalTid", b"x"), (NVTX, "start", None)],
)
def test_a_value_of_another_type_is_told_with_its_field(make, table, column, value):
    path = make({KERNEL: [kernel(100, 1)], RUNTIME: [call(90, 1)], NVTX: [push(1, 2, "r")]})
    with sqlite3.connect(path) as connection:
        connection.execute(f"UPDATE {table} SET {column} = ?", (value,))
    with pytest.raises(ParseError, match=f"{table}.{column}"):
        nsys.read(path)


@pytest.mark.parametrize("keep", [100, 4096, 4097, 40_000, 0.5, 0.99])
def test_a_truncated_export_is_refused(real, tmp_path, keep):
    whole = real(CUPY).read_bytes()
    path = tmp_path / "cut.sqlite"
    path.write_bytes(whole[: keep if isinstance(keep, int) else int(len(whole) * keep)])
    with pytest.raises(ParseError, match=r"cut\.sqlite"):
        nsys.read(path)


@pytest.mark.parametrize(
    ("sound", "damaged"), [(b"CREATE TABLE NVTX_EVENTS", b"CREAT\xcc TABLE NVTX_EVENTS"), (b"INTEGER", b"\xffNTEGER")]
)
def test_a_damaged_schema_is_told(real, tmp_path, sound, damaged):
    path = tmp_path / "schema.sqlite"
    path.write_bytes(real(CUPY).read_bytes().replace(sound, damaged[: len(sound)]))
    assert nsys.sniff(path, path.read_bytes()[:4096])
    with pytest.raises(ParseError, match=r"schema\.sqlite"):
        nsys.read(path)


@given(st.lists(st.tuples(st.integers(0, 2**17), st.binary(min_size=1, max_size=8)), min_size=1, max_size=12))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_bytes_overwritten_anywhere_never_break_more_than_the_file(real, tmp_path, damage):
    content = bytearray(real(SAXPY).read_bytes())
    for at, garbage in damage:
        content[at : at + len(garbage)] = garbage
    path = tmp_path / "damaged.sqlite"
    path.write_bytes(content)
    try:
        artifact = nsys.read(path)
    except ParseError:
        return
    json.dumps(artifact.summary)


def test_a_log_beside_the_file_is_read_with_it(make):
    path = make({KERNEL: [kernel(100, 1)]})
    writer = sqlite3.connect(path)
    writer.execute("PRAGMA journal_mode = WAL")
    writer.execute(f"INSERT INTO {KERNEL} SELECT * FROM {KERNEL}")
    writer.commit()
    assert path.with_name(path.name + "-wal").stat().st_size
    assert nsys.read(path).summary["kernel_count"] == 2
    writer.close()
    assert nsys.read(path).summary["kernel_count"] == 2


# ---- reading pages directly

VALUES = st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1), st.sampled_from([0, 1, -1, 127, 128, -(2**23), 2**47]))
WORDS = st.one_of(st.none(), st.text(max_size=80), st.just("é" * 40))


@given(
    st.lists(st.tuples(VALUES, WORDS, VALUES, WORDS, VALUES), max_size=60),
    st.sampled_from([512, 1024, 4096, 65536]),
    st.integers(0, 3),
)
@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_pages_give_what_sqlite_gives_row_for_row(tmp_path, rows, page, deleted):
    path = tmp_path / "pages.sqlite"
    path.unlink(missing_ok=True)
    connection = sqlite3.connect(path)
    connection.executescript(
        f"PRAGMA page_size = {page}; CREATE TABLE t (a INTEGER, b TEXT, c INTEGER, d TEXT, e INTEGER)"
    )
    connection.executemany("INSERT INTO t VALUES (?, ?, ?, ?, ?)", rows)
    connection.execute("DELETE FROM t WHERE rowid % 4 < ?", (deleted,))
    connection.commit()
    connection.close()
    with Database(path) as database:
        direct, words = database.read("t", ["a", "c", "e"], ["b", "d"])
        slow, slow_words = database.read("t", ["a", "c", "e"], ["b", "d"], direct=False)
    for column, values in slow.items():
        assert direct[column].values.tolist() == values.values.tolist()
        assert direct[column].missing.tolist() == values.missing.tolist()
    for column, texts in slow_words.items():
        assert [(*words[column].words, None)[code] for code in words[column].codes] == [
            (*texts.words, None)[code] for code in texts.codes]  # fmt: skip


def test_large_tables_are_read_from_their_pages(tmp_path):
    """The fast way is really taken, over several levels of the tree."""
    path = generator.write(tmp_path / "large.sqlite", generator.Shape(20_000))
    with Database(path) as database:
        table = database.tables[KERNEL]
        columns, _ = read_columns(path, table.root, [table.columns.index("correlationId")], [])
    ((values, missing),) = columns.values()
    assert values.tolist() == list(range(1000, 21_000))
    assert not missing.any()


def test_rows_that_overflow_their_page_are_left_to_sqlite(make):
    path = make({NVTX: [push(1, 2, None, text="x" * 10_000), push(3, 4, None, text="short")]})
    with Database(path) as database:
        table = database.tables[NVTX]
        with pytest.raises(NotPlain, match="overflows"):
            read_columns(path, table.root, [0], [table.columns.index("text")])
    assert nsys.read(path).tables["ranges"]["range"].str.len().tolist() == [10_000, 5]


def test_launches_without_a_kernel_are_told_unless_they_were_captured(make):
    calls = [call(0, 1), call(10, 2), call(20, 3), call(21, 3, name="cuLaunchKernel"),
             call(30, 8, name="cudaStreamBeginCapture_v10000"), call(40, 4), call(50, 9, name="cudaStreamEndCapture_v10000"),
             call(60, 5), call(60, 6, thread=P + 2), call(70, 7, name="cudaLaunchHostFunc_v10000")]  # fmt: skip
    path = make({"CUPTI_ACTIVITY_KIND_RUNTIME": calls, "CUPTI_ACTIVITY_KIND_KERNEL": [kernel(25, 1), kernel(35, 3)]})
    (note,) = [note for note in nsys.read(path).notes if "launches" in note]
    assert note.startswith("3 of 5 launches have no kernel in the export")
    assert (
        unfinished(path) == 4
    )  # of what a range of nsys holds: less exact, and told only where no kernel was recorded
