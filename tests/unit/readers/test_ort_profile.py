"""ONNX Runtime's profile and Polygraphy's tensors: real files, sessions run here, and damaged ones."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from harness.errors import ParseError
from places import DATA
from reports.readers import detect, ort, polygraphy

PROFILE = DATA / "ort" / "mlp_5_runs.json"
INPUTS, OUTPUTS = DATA / "polygraphy" / "inputs.json", DATA / "polygraphy" / "outputs.json"


def test_a_real_profile():
    assert ort.sniff(PROFILE, PROFILE.read_bytes()[:4096])
    artifact = ort.read(PROFILE)
    events = [event for event in json.loads(PROFILE.read_text()) if event["cat"] == "Node"]
    table = artifact.tables["node_events"]
    assert artifact.rows() == {"node_events": 20, "layers": 4, "iterations": 5}
    assert table["node"].tolist() == ["/fc1/MatMul", "/fc1/Relu", "/fc2/MatMul", '/out "soft"/Softmax'] * 5
    assert table["duration_ns"].tolist() == [1000 * event["dur"] for event in events]
    assert table["iteration"].tolist() == [run for run in range(5) for _ in range(4)]
    first = table.iloc[0]
    assert (first["op_type"], first["provider"]) == ("MatMul", "CPUExecutionProvider")
    assert (first["input_shapes"], first["output_shapes"]) == ("float[4,64]", "float[4,128]")
    assert first["output_bytes"] == 4 * 128 * 4
    layers = artifact.tables["layers"].set_index("layer")
    soft = [event["dur"] for event in events if "soft" in event["name"]]
    assert layers.loc['/out "soft"/Softmax', ["total_ns", "median_ns"]].tolist() == [
        1000 * sum(soft),
        1000 * sorted(soft)[2],
    ]
    assert layers["time_pct"].sum() == pytest.approx(100)
    assert artifact.summary["latency_ns"]["max"] == artifact.tables["iterations"]["latency_ns"].max() == 171_000
    assert artifact.summary["session_initialization_ns"] == 3_277_000


def event(cat, name, start, duration, **args):
    return {"cat": cat, "pid": 1, "tid": 1, "dur": duration, "ts": start, "ph": "X", "name": name, "args": args}


def test_gpu_kernels_go_to_the_node_that_launched_them_and_cpu_times_are_called_so(tmp_path):
    """As ONNX Runtime writes them: below the node, with its type."""
    sizes = {"stream": "13", "grid_x": "12", "grid_y": "1", "grid_z": "1", "block_x": "256"}
    path = tmp_path / "profile.json"
    path.write_text(json.dumps([
        event("Session", "model_loading_uri", 0, 5),
        event("Node", "/fc/MatMul_kernel_time", 10, 7, op_name="MatMul", provider="CUDAExecutionProvider"),
        event("Kernel", "sgemm<float>", 12, 400, op_name="MatMul", **sizes),
        event("Kernel", "MemcpyDeviceToHost", 420, 3, op_name=""),
    ]))  # fmt: skip
    artifact = detect.read(path)
    kernels = artifact.tables["kernels"]
    assert kernels["kernel"].tolist() == ["sgemm<float>", "MemcpyDeviceToHost"]
    assert kernels["duration_ns"].tolist() == [400_000, 3_000]
    assert kernels["onnx_nodes"].tolist() == [("/fc/MatMul",), ()]
    assert kernels.loc[0, ["stream_id", "grid_x", "block_x"]].tolist() == [13, 12, 256]
    assert artifact.summary["kernel_time_ns"] == 403_000
    assert any("CUDAExecutionProvider are those of the CPU" in note for note in artifact.notes)
    assert not any("of the CPU" in note for note in ort.read(PROFILE).notes)


def loop_model() -> onnx.ModelProto:
    """y = x + 1, five times, in a Loop: its nodes run inside the node of the Loop."""
    body = helper.make_graph(
        [helper.make_node("Add", ["a", "one"], ["b"], name="inner/Add"), helper.make_node("Identity", ["c"], ["d"])],
        "body",
        [helper.make_tensor_value_info("i", TensorProto.INT64, []), helper.make_tensor_value_info("c", TensorProto.BOOL, []),
         helper.make_tensor_value_info("a", TensorProto.FLOAT, [64])],
        [helper.make_tensor_value_info("d", TensorProto.BOOL, []), helper.make_tensor_value_info("b", TensorProto.FLOAT, [64])],
    )  # fmt: skip
    nodes = [helper.make_node("Loop", ["n", "go", "x"], ["y"], name="outer/Loop", body=body)]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [64])],
        [helper.make_tensor("n", TensorProto.INT64, [], [5]), helper.make_tensor("go", TensorProto.BOOL, [], [True]),
         helper.make_tensor("one", TensorProto.FLOAT, [], [1.0])],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_nodes_inside_a_loop_are_not_counted_twice(tmp_path):
    options = onnxruntime.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "p")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        loop_model().SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    for _ in range(3):
        session.run(None, {"x": np.zeros(64, np.float32)})
    artifact = ort.read(Path(session.end_profiling()))
    table = artifact.tables["node_events"]
    loops, adds = table[table["node"] == "outer/Loop"], table[table["node"] == "inner/Add"]
    assert (len(loops), len(adds)) == (3, 15)
    assert set(adds["parent"]) <= set(loops.index)
    total = artifact.tables["layers"]["total_ns"].sum()
    assert total <= loops["duration_ns"].sum() + 1000 * len(
        table
    )  # the Loop holds all others, within a microsecond each
    assert (table["self_ns"] >= 0).all()
    assert any("ran inside another node" in note for note in artifact.notes)


def test_a_profile_of_a_process_that_was_killed_keeps_its_whole_events(tmp_path):
    lines = PROFILE.read_text().split("\n")
    path = tmp_path / "p.json"
    path.write_text("\n".join(lines[:10]) + "\n" + lines[10][:40])
    artifact = ort.read(path)
    assert len(artifact.tables["node_events"]) == 5
    assert any("ends too early" in note for note in artifact.notes)


@given(cut=st.floats(0, 1))
def test_truncated_profiles_are_read_as_far_as_they_go_or_refused(cut, tmp_path_factory):
    data = PROFILE.read_bytes()
    path = tmp_path_factory.getbasetemp() / "cut-profile.json"
    path.write_bytes(data[: int(cut * len(data))])
    whole = sum(line.startswith(b'{"cat" : "Node"') for line in path.read_bytes().split(b"\n") if is_json(line))
    if not whole:
        with pytest.raises(ParseError):
            ort.read(path)
        return
    assert len(ort.read(path).tables["node_events"]) == whole


def is_json(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line.rstrip(b",")), dict)
    except ValueError:
        return False


def test_a_broken_event_in_the_middle_names_its_line(tmp_path):
    path = tmp_path / "p.json"
    path.write_text(PROFILE.read_text().replace('"dur" :10,', '"dur" :1O,', 1))
    with pytest.raises(ParseError, match="line 5: expected an event"):
        ort.read(path)


@pytest.mark.parametrize("text, expected", [
    ("", "0 bytes"), ("[]", "none among 0"), ('[{"cat": "Session", "name": "model_run", "ts": 1, "dur": 2}]', "none among 1"),
    ('[{"cat": "Node", "name": "a_kernel_time", "ts": "x", "dur": 2}]', "number of microseconds"),
    ('[{"cat": "Node", "name": "a_kernel_time", "ts": 1, "dur": NaN}]', "number of microseconds"),
    ('{"cat": "Node"}', "array of objects"), ("[1, 2]", "array of objects"), ("[" * 100_000, "nested too deep|events"),
])  # fmt: skip
def test_other_profiles_are_refused(text, expected, tmp_path):
    path = tmp_path / "p.json"
    path.write_text(text)
    with pytest.raises(ParseError, match=expected):
        ort.read(path)


INTERVALS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(0, 1)), min_size=1, max_size=25)


@given(INTERVALS)
def test_parents_hold_their_children_on_their_thread(intervals):
    rows = sorted(intervals, key=lambda row: (row[0], -row[1]))
    start, duration = (np.array([row[at] for row in rows], dtype=np.int64) for at in (0, 1))
    parents = ort._parents(start, duration, [row[2] for row in rows])
    for child, parent in enumerate(parents):
        if parent >= 0:
            assert rows[child][2] == rows[parent][2]
            assert start[parent] <= start[child]
            assert start[parent] + duration[parent] >= start[child] + duration[child]


# --- Polygraphy ----------------------------------------------------------------------------------------------------


def stored(array: np.ndarray) -> dict:
    """As Polygraphy stores an array."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return {"array": base64.b64encode(file.getvalue()).decode(), "polygraphy_class": "ndarray"}


def read(value: object, tmp_path: Path):
    path = tmp_path / "p.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return polygraphy.read(path)


def test_real_inputs_and_outputs():
    for path, kind in ((INPUTS, "polygraphy-inputs"), (OUTPUTS, "polygraphy-outputs")):
        assert polygraphy.sniff(path, path.read_bytes()[:65536])
        assert polygraphy.read(path).kind == kind
    inputs, outputs = (polygraphy.read(path).tables["tensors"] for path in (INPUTS, OUTPUTS))
    assert inputs[["iteration", "tensor", "dtype", "shape", "bytes"]].values.tolist() == [
        [0, "x", "float32", "[4, 64]", 1024], [1, "x", "float32", "[4, 64]", 1024],
    ]  # fmt: skip
    assert outputs["shape"].tolist() == ["[4, 16]"] * 2
    assert outputs["runner"].str.startswith("onnxrt-runner").all()
    assert outputs["mean"].tolist() == pytest.approx([1 / 16] * 2)  # of a softmax over 16 classes


def test_the_reader_agrees_with_polygraphy_itself():
    from polygraphy.comparator import RunResults

    theirs = RunResults.load(str(OUTPUTS))
    ours = polygraphy.read(OUTPUTS).tables["tensors"]
    arrays = [result["y"] for _, results in theirs for result in results]
    assert ours["std"].tolist() == pytest.approx([array.astype(np.float64).std() for array in arrays])
    assert ours["zero_count"].tolist() == [int((array == 0).sum()) for array in arrays]


def test_statistics_are_of_finite_values(tmp_path):
    array = np.array([1.0, np.nan, -3.0, np.inf, 0.0], dtype=np.float16)
    artifact = read([{"x": stored(array), "flag": stored(np.array(True))}], tmp_path)
    row = artifact.tables["tensors"].iloc[0]
    assert row[["min", "max", "nan_count", "inf_count", "zero_count"]].tolist() == [-3, 1, 1, 1, 1]
    assert row["mean"] == pytest.approx(-2 / 3)
    assert artifact.tables["tensors"].iloc[1][["dtype", "shape", "elements"]].tolist() == ["bool", "[]", 1]
    assert artifact.notes == ("1 of 2 tensors hold NaN or infinity: statistics are of the finite values",)


def test_a_pickle_is_never_opened(tmp_path):
    file = io.BytesIO()
    np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ParseError, match="npy array"):
        read([{"x": {"array": base64.b64encode(file.getvalue()).decode()}}], tmp_path)


@pytest.mark.parametrize("value, expected", [
    ("", "0 bytes"), ([], "at least one tensor"), ([{}], "at least one tensor"), ({"lst": 3}, "list"), ("{", "end of the file"),
    ({"lst": [["runner", [{}]]]}, "outputs"), ({"lst": [["runner"]]}, "a pair"), ([{"x": 3}], "base64"),
    ([{"x": {"array": "no base64!"}}], "npy"), ([{"x": {"array": "k05V"}}], "npy"),
])  # fmt: skip
def test_other_tensors_are_refused(value, expected, tmp_path):
    with pytest.raises(ParseError, match=expected):
        read(value, tmp_path)


@given(
    path=st.sampled_from([INPUTS, OUTPUTS]), at=st.floats(0, 1), junk=st.binary(max_size=4), length=st.integers(0, 6)
)
def test_damaged_tensors_are_read_or_refused(path, at, junk, length, tmp_path_factory):
    data = path.read_bytes()
    start = int(at * len(data))
    damaged = tmp_path_factory.getbasetemp() / "damaged-tensors.json"
    damaged.write_bytes(data[:start] + junk + data[start + length :])
    try:
        artifact = polygraphy.read(damaged)
    except ParseError:
        return
    assert len(artifact.tables["tensors"]) > 0
