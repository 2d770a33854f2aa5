"""The trace for Perfetto: valid JSON, exact times, names as they are, nothing that crosses on one track."""

from __future__ import annotations

import gzip
import json

from hypothesis import given
from hypothesis import strategies as st

import trace_tables
from reports import perfetto

EVENT = st.tuples(st.text(max_size=8), st.integers(-(10**9), 10**12), st.integers(0, 10**9))


def events(tables):
    return [json.loads(line) for line in perfetto.events(tables)]


def phase(found, kind, category=None):
    return [event for event in found if event["ph"] == kind and category in (None, event.get("cat"))]


@given(st.lists(EVENT, min_size=1, max_size=20))
def test_every_kernel_is_there_to_the_nanosecond(rows):
    found = phase(events({"kernels": trace_tables.kernels([(*row, None) for row in rows])}), "X", "kernel")
    origin = min(start for _, start, _ in rows)
    times = sorted((event["name"], round(event["ts"] * 1000) + origin, round(event["dur"] * 1000)) for event in found)
    assert times == sorted(rows)


def test_processes_and_threads_have_names_and_arrows_join_launch_and_kernel():
    tables = trace_tables.iterations(2, names=("gemm",))
    tables["kernels"]["launch_ns"] = tables["kernels"]["start_ns"].astype("Int64") - 3_000
    tables["kernels"]["thread_id"] = tables["kernels"]["stream_id"] * 0 + 2
    found = events(tables)
    names = {event["args"]["name"] for event in phase(found, "M") if "name" in event["args"]}
    assert names == {"GPU 0", "stream 7"}
    starts, ends = phase(found, "s"), phase(found, "f")
    assert [one["id"] for one in starts] == [one["id"] for one in ends] == [0, 1]
    assert {(one["pid"], one["tid"]) for one in starts} == {(1, 2)}
    assert all(end["ts"] - start["ts"] == 3 for start, end in zip(starts, ends, strict=True))
    assert all(event["args"]["range"] == "infer" for event in phase(found, "X", "kernel"))


def test_start_end_ranges_are_async_because_they_may_cross():
    tables = {"ranges": trace_tables.ranges([(0, None, "a", 0, 0, 50), (1, None, "b", 0, 25, 75)])}
    tables["ranges"]["kind"] = "start_end"
    found = events(tables)
    assert [(event["ph"], event["name"], event["id"], event["ts"]) for event in found] == [
        ("b", "a", 0, 0.0), ("e", "a", 0, 0.05), ("b", "b", 1, 0.025), ("e", "b", 1, 0.075),
    ]  # fmt: skip


def test_the_file_is_json_with_all_events_of_all_traces_apart(tmp_path):
    one = trace_tables.artifact(trace_tables.hostile())
    for name in ("trace.json", "trace.json.gz"):
        count = perfetto.write([one, one], tmp_path / name)
        data = (tmp_path / name).read_bytes()
        document = json.loads(gzip.decompress(data) if name.endswith("gz") else data)
        assert len(document["traceEvents"]) == count > 0
        kernels = phase(document["traceEvents"], "X", "kernel")
        assert {event["name"] for event in kernels} == set(trace_tables.HOSTILE)
        assert len({event["pid"] for event in kernels}) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["trace.json", "trace.json.gz"]


def test_nothing_gives_nothing():
    assert events({}) == []
