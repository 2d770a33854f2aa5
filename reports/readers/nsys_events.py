"""The events of an nsys export as arrays: launches, ranges, calls, captures, each table read as it happens to be."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from harness.errors import ParseError
from reports.readers._sqlite import Database, Integers, Texts
from reports.tables.attribution import FOREVER, NONE

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

KERNEL, RUNTIME, NVTX = "CUPTI_ACTIVITY_KIND_KERNEL", "CUPTI_ACTIVITY_KIND_RUNTIME", "NVTX_EVENTS"
MEMCPY, MEMSET = "CUPTI_ACTIVITY_KIND_MEMCPY", "CUPTI_ACTIVITY_KIND_MEMSET"
GRAPH_TRACE, GRAPH_NODES = "CUPTI_ACTIVITY_KIND_GRAPH_TRACE", "CUDA_GRAPH_NODE_EVENTS"

NEEDED = {
    KERNEL: ("end", "correlationId", "demangledName"), RUNTIME: ("end", "correlationId", "globalTid", "nameId"),
    NVTX: ("end", "globalTid"), MEMCPY: ("end", "bytes", "copyKind"), MEMSET: ("end", "bytes"),
}  # fmt: skip

PUSH_POP, START_END, MARK, CATEGORY, DOMAIN = (59, 70), (60, 71), 34, 33, 75
COPY_KINDS = {
    0: "unknown", 1: "HtoD", 2: "DtoH", 3: "HtoA", 4: "AtoH", 5: "AtoA", 6: "AtoD", 7: "DtoA", 8: "DtoD", 9: "HtoH",
    10: "PtoP", 11: "unified HtoD", 12: "unified DtoH", 13: "unified DtoD",
}  # fmt: skip
NOWHERE = -2  # the thread of a call, or the process of a launch, that the export does not tell: equal to no other
FEW_STRINGS = 5000  # more are found sooner by reading all

ON_DEVICE = {"device_id": "deviceId", "context_id": "contextId", "stream_id": "streamId"}
OF_KERNEL = {
    **ON_DEVICE, "graph_id": "graphId", "graph_node_id": "graphNodeId", "grid_x": "gridX", "grid_y": "gridY",
    "grid_z": "gridZ", "block_x": "blockX", "block_y": "blockY", "block_z": "blockZ",
    "registers_per_thread": "registersPerThread", "smem_static_bytes": "staticSharedMemory",
    "smem_dynamic_bytes": "dynamicSharedMemory",
}  # fmt: skip
OF_GRAPH = {**ON_DEVICE, "graph_id": "graphId", "graph_exec_id": "graphExecId"}
OF_COPY = {**ON_DEVICE, "bytes": "bytes"}


@dataclass(frozen=True)
class Rows:
    """Columns of one table, as many rows in each; `there` are those that the export has."""

    table: str
    path: Path
    count: int
    integers: Mapping[str, Integers]
    texts: Mapping[str, Texts]

    @classmethod
    def of(cls, database: Database, table: str, integers: Sequence[str], texts: Sequence[str] = ()) -> Rows:
        """The table's rows; none if the export does not have the table."""
        if table not in database.tables:
            nothing = Integers(np.empty(0, np.int64), np.empty(0, np.bool_))
            wordless = Texts(np.empty(0, np.int32), [])
            return cls(table, database.path, 0, dict.fromkeys(integers, nothing), dict.fromkeys(texts, wordless))
        numbers, words = database.read(table, integers, texts)
        return cls(table, database.path, len(numbers[integers[0]].values), numbers, words)

    def __getitem__(self, column: str) -> Integers:
        return self.integers[column]

    def required(self, column: str) -> Ints:
        """A column without which the rows mean nothing."""
        if self[column].missing.any():
            raise ParseError(self.path, f"{self.table}.{column}", "an integer in every row", "none in some")
        return self[column].values

    def nullable(self, columns: Mapping[str, str]) -> dict[str, Any]:
        return {name: integer_array(self[theirs]) for name, theirs in columns.items()}


@dataclass(frozen=True)
class Ops:
    """What ran on a device because a call launched it: kernels, whole graphs, memory operations."""

    start: Ints
    length: Ints
    process: Ints  # process and machine in one
    correlation: Integers
    node: Integers  # of the CUDA graph, if it was launched through one
    columns: dict[str, Any]
    untimed: int = 0  # how many have no end, or one before their start: they last no time

    @property
    def last(self) -> int:
        return _latest(self.start, self.length)


@dataclass(frozen=True)
class Calls:
    """API calls."""

    start: Ints
    length: Ints
    thread: Ints  # thread, process and machine in one
    correlation: Integers
    api: pd.Categorical

    @property
    def launching(self) -> Bools:
        """By their names: which calls launch kernels, or graphs of them."""
        words = [word.lower() for word in self.api.categories]
        launch = np.array([*("launch" in word and "hostfunc" not in word for word in words), False], dtype=np.bool_)
        chosen: Bools = launch[self.api.codes]
        return chosen

    @property
    def last(self) -> int:
        return _latest(self.start, self.length)


@dataclass
class Spans:
    """NVTX ranges; `end` is `FOREVER` for those that were never closed."""

    start: Ints
    end: Ints
    thread: Ints
    end_thread: Integers  # as the system numbers it; missing where the range ended on the thread that it began on
    open: Bools
    domain: pd.Categorical
    name: pd.Categorical
    category: pd.Categorical
    kind: pd.Categorical
    closed: Ints = field(default_factory=lambda: np.empty(0, np.int64))  # the end, or the end of the trace

    @property
    def last(self) -> int:
        ends = self.end[~self.open]
        return max(int(self.start.max(initial=0)), int(ends.max(initial=0)))

    def close(self, last: int) -> None:
        """Let the ranges that were never closed end with the trace, for showing."""
        self.closed = np.where(self.open, np.maximum(self.start, last), self.end) if self.open.any() else self.end

    def within(self, beginning: str) -> Bools:
        """Which ranges are in a domain whose name begins so, in small letters."""
        inside = np.array([*(word.lower().startswith(beginning) for word in self.domain.categories), False])
        chosen: Bools = inside[self.domain.codes]
        return chosen


@dataclass(frozen=True)
class Captures:
    """When and on which thread nodes of CUDA graphs were made; `of` gives the row for a process and a node."""

    start: Ints
    thread: Ints
    of: Mapping[tuple[int, int], int]

    def rows(self, ops: Ops) -> Ints:
        """For each launch the row of its node's making, `NONE` without one."""
        found = np.full(len(ops.start), NONE, dtype=np.int64)
        inside = np.flatnonzero(~ops.node.missing)
        if self.of and inside.size:
            process, node = ops.process[inside], ops.node.values[inside]
            codes, firsts = _grouped((process, node))
            pairs = zip(process[firsts].tolist(), node[firsts].tolist(), strict=True)
            found[inside] = np.array([self.of.get(pair, NONE) for pair in pairs], dtype=np.int64)[codes]
        return found


class Strings:
    """The texts behind the numbers, asked for when needed: an export has many that nothing here speaks of."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def named(self, ids: Integers) -> pd.Categorical:
        codes, unique = pd.factorize(ids.values)
        words = self._words(unique.tolist() if ids.present.any() else [])
        texts = [words.get(number, f"(no text {number})") for number in unique.tolist()]
        return categorical(np.where(ids.missing, NONE, codes), texts)

    def _words(self, ids: list[int]) -> dict[int, str]:
        if not ids or "StringIds" not in self.database.tables:
            return {}
        return self.database.strings("StringIds", "id", "value", ids if len(ids) <= FEW_STRINGS else None)


def categorical(codes: npt.NDArray[Any], words: Sequence[str]) -> pd.Categorical:
    """Codes into words, which may repeat and need not all occur; -1 is missing."""
    used = np.zeros(len(words) + 1, dtype=np.bool_)
    used[codes] = True
    places: dict[str, int] = {}
    place = np.full(len(words) + 1, NONE, dtype=np.int64)
    for at in np.flatnonzero(used[:-1]).tolist():
        place[at] = places.setdefault(words[at], len(places))
    return pd.Categorical.from_codes(place[codes], pd.Index(list(places), dtype=object))


def integer_array(column: Integers) -> Any:
    return pd.arrays.IntegerArray(column.values, column.missing)


def numbers_of(keys: Ints) -> tuple[Any, Any]:
    """Process and thread, as the system numbers them, of global thread numbers; missing for `NOWHERE`."""
    missing = keys == NOWHERE
    return (
        pd.arrays.IntegerArray(np.where(missing, 0, keys >> 24 & 0xFFFFFF), missing),
        pd.arrays.IntegerArray(np.where(missing, 0, keys & 0xFFFFFF), missing.copy()),
    )


def read_kernels(database: Database, strings: Strings) -> Ops:
    names = ("demangledName", "shortName", "mangledName")
    rows = Rows.of(database, KERNEL, [*_EVENT, *OF_KERNEL.values(), *names])
    demangled, short, mangled = (rows[name] for name in names)
    columns = rows.nullable(OF_KERNEL)
    columns["kernel"] = strings.named(_first(demangled, short, mangled))
    columns["kernel_short"] = strings.named(_first(short, demangled, mangled))
    return _ops(rows, columns, rows["graphNodeId"])


def read_graph_launches(database: Database) -> Ops:
    rows = Rows.of(database, GRAPH_TRACE, [*_EVENT, *OF_GRAPH.values()])
    return _ops(rows, rows.nullable(OF_GRAPH), _none(rows.count))


def read_memory(database: Database) -> Ops:
    """Copies, then fills."""
    wanted = [*_EVENT, *OF_COPY.values(), "copyKind", "graphNodeId"]
    parts = [Rows.of(database, table, wanted) for table in (MEMCPY, MEMSET)]
    kinds = sorted(set(parts[0]["copyKind"].values.tolist()))
    words = [*(f"memcpy {COPY_KINDS.get(kind, kind)}" for kind in kinds), "memset"]
    codes = np.searchsorted(np.array(kinds, dtype=np.int64), parts[0]["copyKind"].values)
    kind = categorical(np.append(codes, np.full(parts[1].count, len(kinds))).astype(np.int64), words)
    both = _stacked(parts)
    _check_sum(both, "bytes", both["bytes"].values)
    return _ops(both, {**both.nullable(OF_COPY), "kind": kind}, both["graphNodeId"])


def read_calls(database: Database, strings: Strings) -> Calls:
    rows = Rows.of(database, RUNTIME, ["start", "end", "globalTid", "correlationId", "nameId"])
    start = rows.required("start")
    thread = _or_nowhere(rows["globalTid"])
    return Calls(start, _length(rows, start), thread, rows["correlationId"], strings.named(rows["nameId"]))


def read_captures(database: Database) -> Captures:
    """A node of a graph that was made from another was captured where that one was."""
    rows = Rows.of(database, GRAPH_NODES, ["start", "globalTid", "graphNodeId", "originalGraphNodeId"])
    thread = _or_nowhere(rows["globalTid"])
    made: dict[tuple[int, int], int] = {}
    origin: dict[tuple[int, int], int] = {}
    process, node, source = thread >> 24, rows["graphNodeId"].values, rows["originalGraphNodeId"]
    for row, key in enumerate(zip(process.tolist(), node.tolist(), strict=True)):
        if source.missing[row]:
            made.setdefault(key, row)
        else:
            origin[key] = int(source.values[row])
    return Captures(rows.required("start"), thread, {key: _source(key, made, origin) for key in made | origin})


def _source(key: tuple[int, int], made: Mapping[Any, int], origin: Mapping[Any, int]) -> int:
    seen = set()
    while key in origin and key not in seen:
        seen.add(key)
        key = key[0], origin[key]
    return made.get(key, NONE)


def read_nvtx(database: Database, strings: Strings) -> tuple[Spans, pd.DataFrame]:
    """The ranges, and the marks as their table."""
    wanted = ["start", "end", "eventType", "category", "globalTid", "endGlobalTid", "textId", "domainId"]
    rows = Rows.of(database, NVTX, wanted, ["text"])
    event, start = rows.required("eventType"), rows.required("start")
    thread, name = _or_nowhere(rows["globalTid"]), _texts_of(rows, strings)
    domain, category = _scopes(rows, event, start, thread >> 24, name)
    ranges = np.flatnonzero(np.isin(event, PUSH_POP + START_END))
    marks = np.flatnonzero(event == MARK)
    ends = rows["end"]
    spans = Spans(
        start=start[ranges],
        end=np.where(ends.missing, FOREVER, ends.values)[ranges],
        thread=thread[ranges],
        end_thread=_elsewhere(rows["endGlobalTid"], thread, ranges),
        open=ends.missing[ranges],
        domain=_taken(domain, ranges),
        name=_taken(name, ranges),
        category=_taken(category, ranges),
        kind=categorical(np.isin(event[ranges], START_END).astype(np.int64), ["push_pop", "start_end"]),
    )
    process_id, thread_id = numbers_of(thread[marks])
    table = {
        "mark": _taken(name, marks), "domain": _taken(domain, marks), "category": _taken(category, marks),
        "process_id": process_id, "thread_id": thread_id, "time_ns": start[marks],
    }  # fmt: skip
    return spans, pd.DataFrame(table)


def _elsewhere(end: Integers, thread: Ints, ranges: Ints) -> Integers:
    stayed = end.missing | (end.values == thread)
    if stayed[ranges].all():
        return _none(len(ranges))
    return Integers(end.values[ranges] & 0xFFFFFF, stayed[ranges])


def _texts_of(rows: Rows, strings: Strings) -> pd.Categorical:
    """An event's own text, or the one that it points at; "" for neither."""
    own, pointed = rows.texts["text"], strings.named(rows["textId"])
    words = [*own.words, *pointed.categories.tolist(), ""]
    other = np.where(pointed.codes == NONE, len(words) - 1, pointed.codes.astype(np.int64) + len(own.words))
    return categorical(np.where(own.codes == NONE, other, own.codes), words)


def _scopes(
    rows: Rows, event: Ints, start: Ints, process: Ints, name: pd.Categorical
) -> tuple[pd.Categorical, pd.Categorical]:
    """The names of domain and category of every event. The domain without a name, 0, is ""."""
    number = np.where(rows["domainId"].missing, 0, rows["domainId"].values)
    label = rows["category"]
    domains = _declared(np.flatnonzero(event == DOMAIN), start, name, process, number)
    categories = _declared(np.flatnonzero(event == CATEGORY), start, name, process, number, label.values)
    domain = _looked_up(domains, start, lambda key: "" if key[1] == 0 else f"domain {key[1]}", process, number)
    category = _looked_up(categories, start, lambda key: str(key[2]), process, number, label.values)
    codes = np.where(label.missing | (label.values == 0), NONE, category.codes)
    return domain, categorical(codes, category.categories.tolist())


def _declared(at: Ints, start: Ints, name: pd.Categorical, *keys: Ints) -> dict[tuple[int, ...], list[tuple[int, str]]]:
    """Under each key what it was called, and since when: a number may be given again."""
    out: dict[tuple[int, ...], list[tuple[int, str]]] = {}
    for row in at[np.argsort(start[at], kind="stable")].tolist():
        out.setdefault(tuple(int(key[row]) for key in keys), []).append((int(start[row]), str(name[row])))
    return out


def _looked_up(
    declared: Mapping[tuple[int, ...], list[tuple[int, str]]],
    start: Ints,
    otherwise: Callable[[tuple[int, ...]], str],
    *keys: Ints,
) -> pd.Categorical:
    codes, firsts = _grouped(keys)
    words: list[str] = []
    base = np.zeros(len(firsts), dtype=np.int64)
    later = np.zeros(len(start), dtype=np.int64)
    for code, first in enumerate(firsts.tolist()):
        key = tuple(int(values[first]) for values in keys)
        names = declared.get(key) or [(0, otherwise(key))]
        base[code] = len(words)
        if len(names) > 1:
            rows = np.flatnonzero(codes == code)
            since = np.searchsorted([time for time, _ in names], start[rows], side="right") - 1
            later[rows] = np.maximum(since, 0)
        words.extend(word for _, word in names)
    return categorical(base[codes] + later, words)


def _grouped(keys: tuple[Ints, ...]) -> tuple[Ints, Ints]:
    """Rows with the same keys as groups: the number of each row's, and the first row of each group."""
    codes = np.zeros(len(keys[0]), dtype=np.int64)
    for values in keys:
        part, unique = pd.factorize(values)
        codes = pd.factorize(codes * len(unique) + part)[0].astype(np.int64)
    firsts = np.full(int(codes.max(initial=-1)) + 1, len(codes), dtype=np.int64)
    np.minimum.at(firsts, codes, np.arange(len(codes)))
    return codes, firsts


_EVENT = ("start", "end", "globalPid", "correlationId")


def _ops(rows: Rows, columns: dict[str, Any], node: Integers) -> Ops:
    start = rows.required("start")
    process = _or_nowhere(rows["globalPid"])
    process = np.where(process == NOWHERE, NOWHERE, process >> 24)
    end = rows["end"]
    untimed = int((end.missing | (end.values < start)).sum())
    return Ops(start, _length(rows, start), process, rows["correlationId"], node, columns, untimed)


def _length(rows: Rows, start: Ints) -> Ints:
    """What never ended, or ended before it started, lasts no time."""
    end = rows["end"]
    length = np.where(end.missing, 0, np.maximum(end.values, start) - start)
    _check_sum(rows, "end", length)
    return length


def _check_sum(rows: Rows, column: str, values: Ints) -> None:
    """Refuse what 64 bits would not hold, or do not hold any more: no time and no size is that large."""
    total = float(np.abs(values, dtype=np.float64).sum())
    if total >= 2.0**62 or values.min(initial=0) < 0:
        raise ParseError(rows.path, f"{rows.table}.{column}", "values from 0 that add up within 62 bits", f"{total:g}")


def _or_nowhere(column: Integers) -> Ints:
    return np.where(column.missing, NOWHERE, column.values)


def _none(count: int) -> Integers:
    return Integers(np.zeros(count, np.int64), np.ones(count, np.bool_))


def _first(*columns: Integers) -> Integers:
    """Row by row the first of these that is there."""
    values, missing = columns[0].values, columns[0].missing
    for other in columns[1:]:
        if not missing.any():
            break
        values, missing = np.where(missing, other.values, values), missing & other.missing
    return Integers(values, missing)


def _stacked(parts: Iterable[Rows]) -> Rows:
    """Tables with the same columns as one."""
    parts = list(parts)
    joined = {
        name: Integers(
            np.concatenate([part[name].values for part in parts]),
            np.concatenate([part[name].missing for part in parts]),
        )
        for name in parts[0].integers
    }
    return Rows(parts[0].table, parts[0].path, sum(part.count for part in parts), joined, {})


def _taken(values: pd.Categorical, rows: Ints) -> pd.Categorical:
    return categorical(values.codes[rows], values.categories.tolist())


def _latest(start: Ints, length: Ints) -> int:
    return int((start + np.maximum(length, 0)).max(initial=0))
