"""Which reader a file is for, whatever it is called; probe's own files; and what no reader knows."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import ArtifactMissing, ParseError, ProbeError
from harness.record import Session
from places import DATA
from probes.reporting import plain
from reports.readers import detect, ort, ours, polygraphy, sanitizer, trtexec, trtexec_exports

OWN = {"sanitizer": sanitizer, "ort": ort, "polygraphy": polygraphy}
FILES = [
    path
    for folder in (*OWN, "trtexec")
    for path in sorted((DATA / folder).iterdir())
    if path.suffix not in (".cu", ".py")
]


def expected(path: Path) -> object:
    if path.parent.name == "trtexec":
        return trtexec_exports if path.suffix == ".json" else trtexec
    return OWN[path.parent.name]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_file_is_known_by_its_content(path, tmp_path):
    renamed = tmp_path / "data.sqlite"
    renamed.write_bytes(path.read_bytes())
    assert detect.detect(renamed) is expected(path)
    assert detect.read(renamed).tables


def test_the_words_of_a_tool_may_come_late(tmp_path):
    path = tmp_path / "log"
    path.write_text("epoch\n" * 100_000 + (DATA / "sanitizer" / "h100_2025.3_synccheck.txt").read_text())
    assert detect.detect(path) is sanitizer
    assert detect.read(path).summary["printed"] == 8


@pytest.mark.parametrize("data", [
    b"", b"\n", b"\0" * 100, b"hello", b"{}", b"[]", b"a,b\n1,2\n", b"\x89PNG\r\n\x1a\n", b"<html></html>",
    b"========= test session starts =========\n", b'{"name": "x"}\n', b"&&&& RUNNING TensorRT.sample_mnist",
])  # fmt: skip
def test_unknown_content_is_refused_with_all_that_was_looked_for(data, tmp_path):
    path = tmp_path / "trtexec.log"
    path.write_bytes(data)
    with pytest.raises(ParseError) as caught:
        detect.detect(path)
    for name in ("nsys", "ncu", "compute-sanitizer", "trtexec", "ONNX Runtime", "Polygraphy", "steps"):
        assert name in caught.value.expected


def test_what_is_no_file(tmp_path):
    with pytest.raises(ArtifactMissing):
        detect.detect(tmp_path / "absent")
    with pytest.raises(ParseError, match="a file that can be read"):
        detect.detect(tmp_path)


STARTS = [b"", b"[{", b'{"lst": [', b"=========", b"&&&& RUNNING TensorRT.trtexec ", b'[{"cat" : "Node"',
          b"SQLite format 3\0", b"NVR\0", b"PAR1", b"\xff\xfe"]  # fmt: skip


@given(data=st.binary(max_size=300), start=st.sampled_from(STARTS))
def test_garbage_is_refused_or_read(data, start, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "garbage"
    path.write_bytes(start + data)
    try:
        artifact = detect.read(path)
    except ProbeError:
        return
    assert artifact.tables or artifact.notes


def damaged(data, damage):
    """Bytes cut, flipped, put in, taken out, said twice or followed by another file."""
    for kind, place, junk in damage:
        at = int(place * len(data))
        data = {
            "cut": data[:at], "head": data[at:], "over": data[:at] + junk + data[at + len(junk) :],
            "in": data[:at] + junk + data[at:], "out": data[:at] + data[at + 100 :],
            "twice": data[:at] + data[at : at + 1000] + data[at:], "follow": data + junk + SMALL[at % len(SMALL)],
        }[kind]  # fmt: skip
    return data


SMALL = [path.read_bytes() for path in FILES if path.stat().st_size < 25_000]
JUNK = [b"\0", b"\xff\xfe", b'"', b"\r", b"\n", b"<script>", b"NaN", b"-1", b"9" * 26, b"1e999", b"1.234,56", b"{", b"]",
        b"\x1b[31m", b"=========", b"&&&& RUNNING TensorRT.trtexec", b"\xed\xa0\x80", b"null", b"0..1"]  # fmt: skip
DAMAGE = st.tuples(
    st.sampled_from(["cut", "head", "over", "in", "out", "twice", "follow"]), st.floats(0, 1), st.sampled_from(JUNK)
)


@given(data=st.sampled_from(SMALL), damage=st.lists(DAMAGE, min_size=1, max_size=4))
def test_damaged_files_are_read_or_refused(data, damage, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(damaged(data, damage))
    with contextlib.suppress(ParseError):
        artifact = detect.read(path)
        json.dumps(plain(artifact.summary))
        assert sum(artifact.rows().values()) or artifact.notes


ENCODED = ["h100_2025.3_racecheck.txt", "h100_2025.3_racecheck.xml", "mlp_5_runs.json", "inputs.json", "h100_trt86_failed_shape.log",
           "h100_trt86_inspector_layers_fp16.json"]  # fmt: skip


@pytest.mark.parametrize("name", ENCODED)
@pytest.mark.parametrize(
    "mark, encoding", [("\ufeff", "utf-16-le"), ("", "utf-16-le"), ("\ufeff", "utf-16-be"), ("\ufeff", "utf-8")]
)
def test_what_windows_makes_of_a_file_changes_nothing(name, mark, encoding, tmp_path):
    (real,) = (path for path in FILES if path.name == name)
    path = tmp_path / name
    path.write_bytes((mark + real.read_text(encoding="utf-8").replace("\n", "\r\n")).encode(encoding))
    ours, theirs = detect.read(path), detect.read(real)
    assert (ours.summary, ours.rows()) == (theirs.summary, theirs.rows())


@pytest.mark.parametrize("data, what, way", [
    (gzip.compress(b"x", mtime=0), "gzip", "gunzip --keep file"),
    (b"PK\3\4...", "a zip archive", "unzip file"),
    (b"PAR1\x15\x04", "Parquet", "nsys export --type sqlite"),
    (b'{"Type":48,"TraceProcessEvent":{"startNs":"1"}}\n', "--type json", "nsys export --type sqlite"),
    (b"Processing [a.sqlite] with [x.py]...\n\nTime (%),Total Time (ns),Instances\n", "nsys stats", "--type sqlite"),
    (b"Start (ns),Duration (ns),CorrId\n", "nsys stats", "nsys export --type sqlite"),
    (b'{\n "schemaVersion": 1,\n "traceEvents": [\n', "Chrome trace", "nsys profile"),
])  # fmt: skip
def test_what_people_have_at_hand_is_named_with_the_way_out(data, what, way, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(data)
    with pytest.raises(ParseError) as caught:
        detect.read(path)
    assert what in caught.value.got
    assert way in caught.value.hint


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ParseError, match="a pipe or a device"):
        detect.read(tmp_path / "pipe")


# --- probe's own ---------------------------------------------------------------------------------------------------

STEPS = [
    {"step": 1, "candidate": "all", "outcome": "fail", "value": 0.5, "duration_s": 1.5, "cached": False, "kept": 3},
    {"step": 2, "candidate": "none", "outcome": "pass", "value": float("inf"), "duration_s": 0.5, "cached": True},
    {"step": 3, "candidate": "half", "outcome": "who knows", "value": None, "duration_s": 0.25},
]


def test_steps_as_a_session_writes_them(tmp_path):
    session = Session.create("bisect", tmp_path / "run")
    for step in STEPS:
        session.append_step(step)
    path = session.folder / "steps.jsonl"
    assert detect.detect(path) is ours
    artifact = detect.read(path)
    table = artifact.tables["steps"]
    assert table["step"].tolist() == [1, 2, 3]
    assert table["outcome"].tolist() == ["fail", "pass", "unresolved"]
    assert table["value"].tolist()[:2] == [0.5, float("inf")]
    assert table["value"].isna().tolist() == [False, False, True]
    assert artifact.summary == {"steps": 3, "by_outcome": {"fail": 1, "pass": 1, "unresolved": 1}, "cached": 1}


def test_a_torn_last_step_is_left_out_and_told(tmp_path):
    path = tmp_path / "steps.jsonl"
    path.write_text("".join(json.dumps(step) + "\n" for step in STEPS[:2]) + json.dumps(STEPS[2])[:20])
    artifact = detect.read(path)
    assert len(artifact.tables["steps"]) == 2
    assert any("torn" in note for note in artifact.notes)


def test_a_broken_step_names_its_line(tmp_path):
    path = tmp_path / "steps.jsonl"
    path.write_text(json.dumps(STEPS[0]) + "\n{broken}\n" + json.dumps(STEPS[1]) + "\n")
    with pytest.raises(ParseError, match="line 2"):
        detect.read(path)


LOG = {
    "sequence": [0, 1, 2], "launch_id": [7, 7, 8], "kernel": ["k", "k", "<script>"], "tag": ["entry", "nan", "entry"],
    "file": ["a.cu"] * 3, "line": [3, 4, 3], "block_x": [0, 1, 2], "thread_x": [5, 6, 7],
    "type": ["int", "float", "int"], "value": ["1", "nan", "3"],
}  # fmt: skip


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_device_log_of_either_format(kind, tmp_path):
    frame, path = pd.DataFrame(LOG), tmp_path / "log"
    if kind == "parquet":
        pytest.importorskip("pyarrow")
        frame.to_parquet(path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in frame.to_dict("records")))
    assert detect.detect(path) is ours
    artifact = detect.read(path)
    table = artifact.tables["device_log"]
    for column, values in LOG.items():
        assert table[column].tolist() == values, column
    assert table["thread_y"].isna().all()
    assert artifact.summary == {"lines": 3, "launches": 2, "by_tag": {"entry": 2, "nan": 1}}


def test_numbers_in_a_device_log_become_text_and_strange_columns_are_told(tmp_path):
    path = tmp_path / "log"
    path.write_text('{"tag": "t", "launch_id": 1, "value": 0.5, "colour": "red"}\n')
    artifact = detect.read(path)
    assert artifact.tables["device_log"]["value"].tolist() == ["0.5"]
    assert any("colour" in note for note in artifact.notes)


@pytest.mark.parametrize(
    "line", ['{"tag": "t", "launch_id": "x", "value": 1}', '{"tag": "t", "launch_id": 1.5, "value": 1}']
)
def test_a_device_log_of_wrong_types_is_refused(line, tmp_path):
    path = tmp_path / "log"
    path.write_text(line + "\n")
    with pytest.raises(ParseError, match="launch_id"):
        detect.read(path)
