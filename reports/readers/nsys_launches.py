"""From which call, range, layer and operation each kernel of an nsys export came."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from reports.readers.nsys_events import NOWHERE, Bools, Calls, Captures, Ints, Ops, Spans, categorical
from reports.tables.attribution import NONE, Load, Ranges, match
from reports.tables.onnx_names import nodes_of_operation
from reports.tables.origins import of_layer

TENSORRT, MYELIN = "tensorrt", "myelin"  # how the domains' names begin, in small letters
NOT_LAYERS = "ExecutionContext::"  # TensorRT's own range around all layers


@dataclass(frozen=True)
class Moments:
    """All moments that something may belong to: the starts of the calls, then the captures of the graphs' nodes."""

    thread: Ints
    time: Ints
    ranges: Ranges
    range: Ints  # rows of the ranges: the innermost, the layer and the operation of each moment
    layer: Ints
    operation: Ints

    @classmethod
    def of(cls, calls: Calls, captures: Captures, spans: Spans) -> Moments:
        thread, time = calls.thread, calls.start
        if captures.start.size:
            thread, time = np.append(thread, captures.thread), np.append(time, captures.start)
        ranges = Ranges(spans.thread, spans.start, spans.end, time)
        return cls(
            thread, time, ranges,
            range=ranges.innermost(thread, time),
            layer=_innermost_of(_layers(spans), spans, thread, time),
            operation=_innermost_of(spans.within(MYELIN) & (spans.kind == "push_pop"), spans, thread, time),
        )  # fmt: skip

    def load(self, rows: Ints, weight: Ints) -> Load:
        """What weighs so much at each of these moments, to be summed under ranges; `NONE` is no moment."""
        if not (known := rows != NONE).all():
            rows, weight = rows[known], weight[known]
        return Load(self.ranges, self.thread[rows], self.time[rows], weight)


@dataclass(frozen=True)
class Launches:
    """What was launched, and for each the rows of its moments and ranges, `NONE` where there is none."""

    ops: Ops
    call: Ints  # moment of the launch; also the row of the call
    capture: Ints  # moment at which its node was made, for what a CUDA graph launched
    range: Ints
    capture_range: Ints
    layer: Ints  # of the capture, if that was in a layer, else of the launch
    operation: Ints

    @classmethod
    def of(cls, ops: Ops, calls: Calls, captures: Captures, moments: Moments) -> Launches:
        call, made = _calls_of(ops, calls), captures.rows(ops)
        capture = _at(np.arange(len(calls.start), len(moments.time)), made)
        origin = call if _nothing(capture) else np.where(_at(moments.layer, capture) != NONE, capture, call)
        return cls(
            ops, call, capture,
            range=_at(moments.range, call),
            capture_range=_at(moments.range, capture),
            layer=_at(moments.layer, origin),
            operation=_at(moments.operation, origin),
        )  # fmt: skip


def _at(values: Ints, rows: Ints) -> Ints:
    """The values of these rows, `NONE` where there is no row; what is `NONE` throughout takes no memory."""
    if _nothing(values) or _nothing(rows):
        return np.broadcast_to(np.int64(NONE), rows.shape)
    out: Ints = np.append(values, NONE)[rows]
    return out


def _nothing(rows: Ints) -> bool:
    return bool((rows == NONE).all())


def _layers(spans: Spans) -> Bools:
    inside = spans.within(TENSORRT)
    used = np.unique(spans.name.codes[inside])  # a trace may have a million other names
    names = spans.name.categories
    others = [code for code in used.tolist() if code >= 0 and not names[code].startswith(NOT_LAYERS)]
    layers: Bools = inside & np.isin(spans.name.codes, others)
    return layers


def _innermost_of(chosen: Bools, spans: Spans, thread: Ints, time: Ints) -> Ints:
    """As if there were no ranges but the chosen."""
    rows = np.flatnonzero(chosen)
    if not rows.size:
        return np.broadcast_to(np.int64(NONE), time.shape)
    return _at(rows, Ranges(spans.thread[rows], spans.start[rows], spans.end[rows], time).innermost(thread, time))


def _calls_of(ops: Ops, calls: Calls) -> Ints:
    """The call that launched each, by process and correlation id; a launch goes before any other call."""
    offered = np.flatnonzero(~calls.correlation.missing & (calls.thread != NOWHERE))
    wanted = np.flatnonzero(~ops.correlation.missing)
    if not (offered.size and wanted.size):
        return np.broadcast_to(np.int64(NONE), ops.start.shape)
    out = np.full(len(ops.start), NONE, dtype=np.int64)
    process, processes = ops.process[wanted], pd.unique(calls.thread[offered] >> 24)
    if len(processes) == 1:  # then it is clear whose launch it was, even if the export does not say
        process = np.where(process == NOWHERE, processes[0], process)
    found = match(
        (process, ops.correlation.values[wanted]),
        (calls.thread[offered] >> 24, calls.correlation.values[offered]),
        calls.launching[offered],
        calls.start[offered],
    )
    out[wanted] = _at(offered, found)
    return out


def named(spans: Spans, rows: Ints) -> pd.Categorical:
    """The names of ranges."""
    codes = np.append(spans.name.codes.astype(np.int64), NONE)[rows]
    return categorical(codes, spans.name.categories.tolist())


def onnx_nodes(layer: pd.Categorical, operation: pd.Categorical) -> npt.NDArray[np.object_]:
    """The nodes that are named behind each launch: by its operation if it is in one, else by its layer."""
    by_layer = [*map(of_layer, layer.categories), ()]
    by_operation = [*map(nodes_of_operation, operation.categories), ()]
    nodes = np.empty(len(by_layer) + len(by_operation), dtype=object)
    nodes[:] = [*by_layer, *by_operation]
    place = np.where(
        operation.codes == NONE,
        layer.codes.astype(np.int64) % len(by_layer),
        operation.codes.astype(np.int64) % len(by_operation) + len(by_layer),
    )
    return nodes[place]
