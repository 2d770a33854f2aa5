"""The timeline's columns hold every event exactly, or say how they merged them; gaps stay gaps."""

from __future__ import annotations

import base64
import json
import zlib
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import trace_tables
from reports.figures import timeline


def decode(made):
    """What templates/profile.js does with the columns, in NumPy: rows of (lane, start, end, name, owner, others, idle)."""
    content = json.loads(made.to_json())
    lengths, count = content["lengths"], sum(content["lengths"])
    held = np.frombuffer(zlib.decompress(base64.b64decode(made.deflated)), dtype=np.uint8)
    columns, offset = {}, 0
    for name, planes in content["columns"].items():
        part = held[offset : offset + planes * count].reshape(planes, count).astype(np.int64)
        columns[name] = sum((part[plane] << (8 * plane) for plane in range(planes)), np.zeros(count, dtype=np.int64))
        offset += planes * count
    assert offset == len(held)
    rows, first = [], 0
    for lane, length in enumerate(lengths):
        before = 0
        for event in range(first, first + length):
            folded = int(columns["gap"][event])
            start = before + (-(folded + 1) // 2 if folded % 2 else folded // 2)
            before = start + int(columns["length"][event])
            rest = [int(columns[name][event]) for name in ("name", "owner", "others", "idle")]
            rows.append((lane, start, before, *rest))
        first += length
    return content, rows


EVENT = st.tuples(st.sampled_from("abc"), st.integers(-10_000, 10_000), st.integers(0, 5_000))


@given(st.lists(EVENT, min_size=1, max_size=40), st.integers(0, 2**40))
def test_every_event_comes_back_exactly(events, offset):
    rows = [(name, offset + start, duration, None) for name, start, duration in events]
    made = timeline.build({"kernels": trace_tables.kernels(rows)})
    content, decoded = decode(made)
    origin = min(start for _, start, _, _ in rows)
    assert sorted(
        (content["names"][name], start + origin, end - start) for _, start, end, name, *_ in decoded
    ) == sorted(row[:3] for row in rows)
    assert (made.events, made.total, made.merged, made.resolution_ns) == (len(rows), len(rows), 0, 0)


@given(st.lists(EVENT, min_size=2, max_size=60), st.integers(1, 20))
def test_merged_events_are_counted_and_cover_what_they_stand_for(events, limit):
    rows = [(name, start, duration, None) for name, start, duration in events]
    made = timeline.build({"kernels": trace_tables.kernels(rows)}, limit=limit)
    _, decoded = decode(made)
    lanes = len(made.lanes)
    assert len(decoded) == made.events <= max(limit, lanes, 2 * lanes)
    assert sum(others + 1 for *_, others, _ in decoded) == made.total == len(rows)
    origin = min(start for _, start, _, _ in rows)
    for _, start, duration, _ in rows:
        begin, end = start - origin, start - origin + duration
        assert any(first <= begin and end <= last for _, first, last, *_ in decoded)
    if made.events < made.total:
        assert f"drawn as {made.events}" in made.caption


def test_a_gap_longer_than_the_resolution_is_never_merged_away():
    rows = [("k", 100 * number + (1_000_000 if number >= 500 else 0), 90, None) for number in range(1000)]
    made = timeline.build({"kernels": trace_tables.kernels(rows)}, limit=40)
    _, decoded = decode(made)
    spans = [(start, end) for _, start, end, *_ in decoded]
    assert made.events <= 40 < made.total == 1000
    assert max(start - end for (_, end), (start, _) in pairwise(spans)) >= 1_000_000


def test_events_of_a_lane_do_not_overlap_until_the_lanes_run_out():
    rows = [("k", number, 100, None) for number in range(6)]
    made = timeline.build({"kernels": trace_tables.kernels(rows)})
    _, decoded = decode(made)
    assert [lane.title for lane in made.lanes] == ["work", *(f"work (overlap {level})" for level in range(1, 6))]
    assert [lane for lane, *_ in decoded] == list(range(6))


def test_lanes_are_threads_above_streams_and_kernels_know_their_range():
    made = timeline.build(trace_tables.iterations(3))
    content, decoded = decode(made)
    assert [(lane.group, lane.title, lane.kind) for lane in made.lanes] == [
        ("thread 2", "ranges, depth 0", "ranges"),
        ("GPU 0, stream 7", "work", "work"),
    ]
    owners = {content["names"][owner] for lane, _, _, _, owner, *_ in decoded if lane == 1}
    assert owners == {"infer"}
    tones = {content["names"][name]: tone for name, tone in enumerate(content["tones"]) if tone >= 0}
    assert tones == {"copy": 0, "softmax": 1, "gemm": 2}  # by GPU time


def test_what_is_shown_first_is_the_gpu_work():
    rows = [(0, None, "start-up", 0, 0, 10**9)]
    made = timeline.build(
        {"ranges": trace_tables.ranges(rows), "kernels": trace_tables.kernels([("k", 5 * 10**8, 10**6, 0)])}
    )
    first, last = made.focus_ns
    assert 0 < 5 * 10**8 - first < 10**6
    assert 0 < last - (5 * 10**8 + 10**6) < 10**6


def test_many_different_names_are_templated_then_lumped():
    rows = [(f"request {number}", number * 10, 5, None) for number in range(timeline.MOST_NAMES + 5)]
    assert timeline.build({"kernels": trace_tables.kernels(rows)}).names == ("", "request #")
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [a + b + c for a in letters for b in letters for c in letters][: timeline.MOST_NAMES + 5]
    rows = [(word, number * 10, 5, None) for number, word in enumerate(words)]
    names = timeline.build({"kernels": trace_tables.kernels(rows)}).names
    assert len(names) == timeline.MOST_NAMES + 1
    assert "other names" in names[-1]


def test_too_many_lanes_keep_the_busiest_and_say_so():
    rows = [(number, None, "r", number, 0, 1000 - number) for number in range(100)]
    made = timeline.build({"ranges": trace_tables.ranges(rows)})
    assert len(made.lanes) == timeline.MOST_LANES
    assert "busiest 60 of 100 lanes" in made.caption
    assert made.lanes[0].title == "ranges, depth 0"


def test_names_are_shortened_and_made_visible():
    made = timeline.build(trace_tables.hostile())
    assert max(map(len, made.names)) <= timeline.WIDTH
    assert all(name.isprintable() for name in made.names)


def test_nothing_gives_nothing():
    assert timeline.build({}) is None
    assert timeline.build({"kernels": trace_tables.kernels([("k", 0, 1, None)]).head(0)}) is None


def test_the_columns_of_200_000_events_are_small():
    made = timeline.build(trace_tables.trace(200_000))
    assert made.events == made.total == 200_000
    assert len(made.deflated) + len(made.to_json()) < 1_200_000  # a fifth of 6 MB


def test_more_bytes_than_allowed_are_merged(monkeypatch):
    monkeypatch.setattr(timeline, "MOST_BYTES", 20_000)
    made = timeline.build(trace_tables.trace(20_000))
    assert len(made.deflated) <= 20_000
    assert made.events < made.total == 20_000
    assert made.resolution_ns > 0


@pytest.mark.parametrize("name", ["open range", "negative start", "no stream"])
def test_odd_rows_are_drawn(name):
    rows = {
        "ranges": trace_tables.ranges([(0, None, name, 0, -5, 20)]),
        "kernels": trace_tables.kernels([("k", 3, 4, 0)]),
    }
    rows["kernels"]["stream_id"] = rows["kernels"]["stream_id"].where(rows["kernels"]["stream_id"] != 7)
    rows["ranges"]["end_ns"] = rows["ranges"]["end_ns"].astype("Int64").where(rows["ranges"]["end_ns"] != 20)
    made = timeline.build(rows)
    assert made.events == 2
    assert made.lanes[-1].group == "GPU 0, no stream"
