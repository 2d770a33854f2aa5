"""Ranges, calls, kernels and copies to lanes of events, packed small enough that a page holds a million of them.

A lane is one row of the picture: a depth of ranges of a thread, its API calls, or the work of a GPU's stream. Events of
a lane do not overlap; those that would are moved to a lane below. Columns are stored as differences, split into planes of
bytes (the high ones are nearly all zero) and deflated; `templates/profile.js` holds the other half.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from reports import units
from reports.pages.sheets import public

LIMIT = 1_000_000  # events in a page
MOST_BYTES = 5_600_000  # of the deflated columns
MOST_LANES = 60
MOST_NAMES = 4000  # different texts; beyond it numbers in names become `#`
WIDTH = 240  # characters of a name in the timeline; tables hold the whole name
TONES = 8  # names with a colour of their own
_OVERFLOWS = 6  # lanes below a lane, for events that overlap
_CPU, _GPU = 0, 1  # sides; the CPU is drawn above
_MARKS, _CALLS = 1 << 20, (1 << 20) + 1  # rows below all depths of ranges
_THREAD = ("process_id", "thread_id")
_KEY = ["side", "place", "line", "row", "overflow"]  # of a lane: CPU or GPU, process or device, thread or stream, ...
_OTHER = "(one of many other names)"

Integers = npt.NDArray[np.int64]
Table = pd.DataFrame


@dataclass(frozen=True)
class Lane:
    """One row of the picture: `group` is a thread or a stream, `kind` one of ranges, calls, work."""

    group: str
    title: str
    kind: str


@dataclass(frozen=True)
class Timeline:
    """What a page embeds. `events` are drawn of `total`; one drawn event may stand for several that were merged."""

    lanes: tuple[Lane, ...]
    names: tuple[str, ...]
    tones: tuple[int, ...]  # of each name, which colour; negative for a common one
    span_ns: int
    focus_ns: tuple[int, int]  # what is shown first: from the first GPU work, or its launch, to the last
    events: int
    total: int
    merged: int  # how many of `total` are drawn as part of another
    resolution_ns: int  # events shorter than this that start together were merged; 0: none
    lanes_left_out: int
    columns: Mapping[str, int]  # name -> planes of bytes
    lengths: tuple[int, ...]  # events of each lane
    deflated: str = field(repr=False)

    @property
    def caption(self) -> str:
        """What is drawn of how much, with the unit."""
        said = f"{units.plural(self.total, 'event')} over {units.seconds(self.span_ns / 1e9)}"
        if self.merged:
            brief = units.seconds(self.resolution_ns / 1e9)
            said += (
                f", drawn as {units.count(self.events)}: those shorter than {brief} that start together are one block"
            )
        lanes = units.plural(len(self.lanes), "lane")
        if self.lanes_left_out:
            lanes = f"the busiest {len(self.lanes)} of {units.plural(len(self.lanes) + self.lanes_left_out, 'lane')}"
        return f"{said}; {lanes}. CPU ranges and calls above, GPU work below; a gap is time in which nothing ran there."

    @property
    def groups(self) -> list[str]:
        """Threads and streams, each once, in order."""
        return list(dict.fromkeys(lane.group for lane in self.lanes))

    @property
    def height(self) -> int:
        """In pixels, as profile.js lays the lanes out: room kept until it does."""
        return 22 + 17 * len(self.lanes) + 20 * len(self.groups) + 4

    def to_json(self) -> str:
        """Everything but the columns' bytes."""
        lanes = [{"group": lane.group, "title": lane.title, "kind": lane.kind} for lane in self.lanes]
        content = {
            "lanes": lanes, "lengths": self.lengths, "names": self.names, "tones": self.tones, "columns": dict(self.columns),
            "span": self.span_ns, "focus": self.focus_ns,
        }  # fmt: skip
        return json.dumps(content, ensure_ascii=False, separators=(",", ":"))


def build(tables: Mapping[str, Table], limit: int = LIMIT) -> Timeline | None:
    """The timeline of the tables `ranges`, `api_calls`, `kernels`, `memory_ops`; None if they hold no event."""
    gathered = _gather(tables)
    if gathered is None:
        return None
    events, names = gathered
    origin = int(events["start"].min())
    events[["start", "end"]] -= origin
    span, total = int(events["end"].max()), len(events)
    focus = _focus(events, span)
    packed = _pack(events)
    packed, lanes, left_out = _arrange(packed)
    packed = packed.sort_values(["lane", "start"], kind="stable")
    tones = _tones(packed, len(names))
    while True:
        merged, resolution = _merge(packed, limit, span)
        planes = {name: _planes(column) for name, column in _differences(merged).items()}
        deflated = base64.b64encode(zlib.compress(b"".join(b"".join(p) for p in planes.values()), 6)).decode("ascii")
        if len(deflated) <= MOST_BYTES:
            break
        limit = min(limit, len(merged)) * 3 // 4
    return Timeline(
        lanes=lanes,
        names=names,
        tones=tones,
        span_ns=span,
        focus_ns=focus,
        events=len(merged),
        total=total,
        merged=int((merged["others"] + 1)[merged["others"] > 0].sum()),
        resolution_ns=resolution,
        lanes_left_out=left_out,
        columns={name: len(parts) for name, parts in planes.items()},
        lengths=tuple(map(int, np.bincount(merged["lane"], minlength=len(lanes)))),
        deflated=deflated,
    )


def _tones(events: Table, names: int) -> tuple[int, ...]:
    """Of each name: its place among the kernels with the most time, -1 for the others, -2 for memory operations."""
    work = events[events["side"] == _GPU]
    kernels = work[~work["memory"]]
    time = np.bincount(kernels["name"], weights=kernels["end"] - kernels["start"], minlength=names)
    tones = np.full(names, -1)
    most = np.argsort(-time, kind="stable")[:TONES]
    tones[most] = np.arange(len(most))
    tones[time <= 0] = -1
    tones[work.loc[work["memory"], "name"].unique()] = -2
    return tuple(tones.tolist())


# Tables to events: side, place, line, row (what makes a lane), start, end, name, owner (indices of names; 0 is none).


def _gather(tables: Mapping[str, Table]) -> tuple[Table, tuple[str, ...]] | None:
    names: list[str] = [""]
    makers: dict[str, Callable[[Table], Table]] = {
        "ranges": _of_ranges,
        "marks": _of_marks,
        "api_calls": _of_calls,
        "kernels": _of_kernels,
        "graph_launches": _of_graphs,
        "memory_ops": _of_copies,
    }
    parts: list[Table] = []
    owners: dict[int, int] = {}
    for table, make in makers.items():
        frame = tables.get(table)
        if frame is None or frame.empty:
            continue
        made = make(frame)
        codes, texts = _vocabulary(made.pop("text"))
        made["name"] = codes + len(names)
        names += texts
        if table == "ranges":
            owners = dict(zip(_integers(frame["range_id"]).tolist(), made["name"].tolist(), strict=True))
        owned = table in ("kernels", "graph_launches", "memory_ops") and "range_id" in frame
        made["memory"] = table == "memory_ops"
        made["owner"] = frame["range_id"].map(owners).fillna(0).astype("int64").to_numpy() if owned else 0
        parts.append(made)
    return (pd.concat(parts, ignore_index=True), tuple(names)) if parts else None


def _of_ranges(frame: Table) -> Table:
    start = _integers(frame["start_ns"])
    last = max(int(start.max()), int(frame["end_ns"].fillna(start[0]).max()))
    text = frame["range"]
    if "range_group" in frame and text.nunique() > MOST_NAMES:
        text = frame["range_group"]
    end = np.maximum(_integers(frame["end_ns"].fillna(last)), start)  # an open range reaches to the end
    return _events(_CPU, frame, _THREAD, _column(frame, "depth"), start, end, text)


def _of_marks(frame: Table) -> Table:
    start = _integers(frame["time_ns"])
    return _events(_CPU, frame, _THREAD, np.full(len(frame), _MARKS), start, start, frame["mark"])


def _of_calls(frame: Table) -> Table:
    start = _integers(frame["start_ns"])
    return _events(_CPU, frame, _THREAD, np.full(len(frame), _CALLS), start, start + _duration(frame), frame["api"])


def _of_kernels(frame: Table) -> Table:
    return _of_work(frame, frame["kernel_short"] if "kernel_short" in frame else frame["kernel"])


def _of_graphs(frame: Table) -> Table:
    return _of_work(frame, "CUDA graph " + frame["graph_id"].astype("str"))


def _of_copies(frame: Table) -> Table:
    return _of_work(frame, frame["kind"])


def _of_work(frame: Table, text: pd.Series[Any]) -> Table:
    start = _integers(frame["start_ns"])
    line = ("device_id", "stream_id")
    return _events(_GPU, frame, line, np.zeros(len(frame), dtype=np.int64), start, start + _duration(frame), text)


def _events(
    side: int, frame: Table, line: tuple[str, str], row: Integers, start: Integers, end: Integers, text: pd.Series[Any]
) -> Table:
    return pd.DataFrame(
        {"side": side, "place": _column(frame, line[0]), "line": _column(frame, line[1]), "row": row,
         "start": start, "end": end, "text": text.array},
    )  # fmt: skip


def _integers(column: pd.Series[Any]) -> Integers:
    return np.asarray(column.fillna(0).to_numpy(dtype="int64"), dtype=np.int64)


def _column(frame: Table, name: str) -> Integers:
    """A column of ids; -1 where it is absent."""
    if name not in frame:
        return np.full(len(frame), -1)
    return np.asarray(frame[name].fillna(-1).to_numpy(dtype="int64"), dtype=np.int64)


def _duration(frame: Table) -> Integers:
    return np.maximum(_integers(frame["duration_ns"]), 0)


def _vocabulary(texts: pd.Series[Any]) -> tuple[Integers, list[str]]:
    """Indices into the different texts; where these are too many, numbers become `#`, and then rare ones are one."""
    kept = pd.Categorical(texts)
    codes, names = np.asarray(kept.codes, dtype=np.int64), list(map(str, kept.categories))
    if (codes < 0).any():
        codes, names = np.where(codes < 0, len(names), codes), [*names, "(no name)"]
    if len(names) > MOST_NAMES:
        again, found = pd.factorize(pd.Series(names, dtype="str").str.replace(r"\d+", "#", regex=True))
        codes, names = again[codes], list(found)
    if len(names) > MOST_NAMES:
        often = np.argsort(-np.bincount(codes, minlength=len(names)), kind="stable")[: MOST_NAMES - 1]
        place = np.full(len(names), MOST_NAMES - 1)
        place[often] = np.arange(len(often))
        codes, names = place[codes], [*(names[index] for index in often), _OTHER]
    return codes, [units.shorten(units.visible(public(name)), WIDTH) for name in names]


def _focus(events: Table, span: int) -> tuple[int, int]:
    """From the first GPU work to its last with a little room; everything where there is none."""
    work = events[events["side"] == _GPU]
    if work.empty:
        return 0, span
    first, last = int(work["start"].min()), int(work["end"].max())
    room = max(1, (last - first) // 40)
    return max(0, first - room), min(span, last + room)


# Events to lanes.


def _pack(events: Table) -> Table:
    """Move events that overlap an earlier one of their lane to a lane below, `_OVERFLOWS` times at most."""
    events["overflow"] = 0
    events["lane"] = events.groupby(_KEY[:4], sort=False).ngroup()
    events = events.sort_values(["lane", "start"], kind="stable", ignore_index=True)
    waiting = np.arange(len(events))
    overflow = np.zeros(len(events), dtype=np.int64)
    lane, start, end = (events[name].to_numpy() for name in ("lane", "start", "end"))
    for level in range(1, _OVERFLOWS + 1):
        reached = pd.Series(end[waiting]).groupby(lane[waiting]).cummax().to_numpy()
        same = lane[waiting][1:] == lane[waiting][:-1]
        late = np.flatnonzero(same & (start[waiting][1:] < reached[:-1])) + 1
        if not len(late):
            break
        waiting = waiting[late]
        overflow[waiting] = level
    events["overflow"] = overflow
    return events


def _arrange(events: Table) -> tuple[Table, tuple[Lane, ...], int]:
    """Number the lanes, CPU above GPU, the busiest groups first; drop the least busy ones beyond the limit."""
    busy = (events["end"] - events["start"]).groupby([events[key] for key in _KEY]).sum().rename("busy").reset_index()
    total = len(busy)
    busy = busy.nlargest(MOST_LANES, "busy") if total > MOST_LANES else busy
    busy["of_group"] = busy.groupby(_KEY[:3])["busy"].transform("sum")
    order = ["side", "of_group", "place", "line", "row", "overflow"]
    busy = busy.sort_values(order, ascending=[True, False, True, True, True, True], ignore_index=True)
    number = {key: place for place, key in enumerate(busy[_KEY].itertuples(index=False, name=None))}
    keys = pd.MultiIndex.from_frame(events[_KEY])
    events["lane"] = pd.Index(list(number), tupleize_cols=True).get_indexer(keys)
    events = events[events["lane"] >= 0]
    several = busy[busy["side"] == _CPU]["place"].nunique() > 1
    return events, tuple(_lane(key, several) for key in number), total - len(busy)


def _lane(key: tuple[int, ...], several: bool) -> Lane:
    side, place, line, row, overflow = key
    more = f" (overlap {overflow})" if overflow else ""
    if side == _GPU:
        where = f"GPU {place}, " if place >= 0 else "GPU, "
        return Lane(f"{where}stream {line}" if line >= 0 else f"{where}no stream", f"work{more}", "work")
    group = f"thread {line}" + (f" of process {place}" if several else "")
    title, kind = {_MARKS: ("marks", "ranges"), _CALLS: ("API calls", "calls")}.get(
        row, (f"ranges, depth {row}", "ranges")
    )
    return Lane(group, f"{title}{more}", kind)


# Too many events: neighbours become blocks that say so.


def _merge(events: Table, limit: int, span: int) -> tuple[Table, int]:
    """At most `limit` events: short ones that start in the same interval become a block, named after its longest."""
    lane, start, end = (events[name].to_numpy(np.int64) for name in ("lane", "start", "end"))
    resolution, first = 0, np.arange(len(events))
    while len(first) > limit and resolution < 2 * span:
        resolution = 2 * resolution or max(1, span >> 24)
        interval = start // resolution
        brief = end - start < resolution
        alone = (lane[1:] != lane[:-1]) | (interval[1:] != interval[:-1]) | ~brief[1:] | ~brief[:-1]
        first = np.flatnonzero(np.concatenate(([True], alone)))
    block = np.zeros(len(events), dtype=np.int64)
    block[first[1:]] = 1
    block = np.cumsum(block)
    longest = _last_of_each(np.lexsort((end - start, block)), block)
    ends = np.maximum.reduceat(end, first)
    busy = np.add.reduceat(end - start, first)
    length = np.maximum(ends - start[first], 1)
    made = pd.DataFrame(
        {"lane": lane[first], "start": start[first], "end": ends,
         "name": events["name"].to_numpy()[longest], "owner": events["owner"].to_numpy()[longest],
         "others": np.diff(np.append(first, len(events))) - 1},
    )  # fmt: skip
    idle = 255 - np.minimum(255, busy * 255 // length)
    made["idle"] = np.where(made["others"] > 0, idle, 0)  # of a block, in 1/255
    return made, resolution


def _last_of_each(order: Integers, block: Integers) -> Integers:
    """Of an ordering that keeps blocks together, the last index in each block."""
    sorted_blocks = block[order]
    last: Integers = order[np.append(np.flatnonzero(sorted_blocks[1:] != sorted_blocks[:-1]), len(order) - 1)]
    return last


# Events to bytes.


def _differences(events: Table) -> dict[str, Integers]:
    """Not negative, mostly small: `gap` is the start after the end of the event before, signs folded into bit 0."""
    lane, start, end = (events[name].to_numpy(np.int64) for name in ("lane", "start", "end"))
    before = np.concatenate(([0], end[:-1]))
    before[1:][lane[1:] != lane[:-1]] = 0
    gap = start - before
    columns = {"gap": np.where(gap < 0, -2 * gap - 1, 2 * gap), "length": end - start}
    return columns | {name: events[name].to_numpy(np.int64) for name in ("name", "owner", "others", "idle")}


def _planes(column: Integers) -> list[bytes]:
    """The column's bytes, least significant first, as many as its largest value needs (none if all are zero)."""
    most = int(column.max(initial=0))
    planes: list[bytes] = []
    while most >> (8 * len(planes)):
        planes.append(((column >> (8 * len(planes))) & 255).astype(np.uint8).tobytes())
    return planes
