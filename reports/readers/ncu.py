"""Reads the CSV of ncu: the pages raw, details and summary, of all versions, whatever was printed around them."""

from __future__ import annotations

import csv
import io
import mmap
import re
import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness.errors import ParseError
from reports.artifact import Artifact
from reports.readers.decoding import decode, read_bytes
from reports.readers.ncu_tables import Cells, Launch, Triple, ints, kernel_name, summary, tables
from reports.readers.ncu_text import COMMON, LONG, Block, blocks, parse_ranges, split_row
from reports.readers.ncu_units import MISSING, NumberFormat, base_unit, number_format, parse_number, parse_numbers

MARKS = (b'"Process ID","', b'"Kernel Name","', b"==PROF==", b"Kernel Name,")
END = -7046029254386353131  # closes every row of a raw page that pandas takes apart: no metric has this value
SAMPLE_ROWS = 8  # of a raw page, evenly spread, to tell how numbers are written

# What ncu says when it comes back without a table, and what to do about it.
FAILURES = {
    "ERR_NVGPUCTRPERM": "allow GPU performance counters for all users, or run ncu as root",
    "No kernels were profiled": "check the kernel filter and --launch-skip, and that the program launches kernels",
    "Failed to find metric": "list the metrics of this GPU with `ncu --query-metrics`",
    "Failed to connect": "run ncu with --target-processes all",
    "Failed to profile": "see what ncu printed",
    "The application returned an error code": "run the program without ncu first",
    "==ERROR==": "see what ncu printed",
}
AS_CSV = "print the report with `ncu --import FILE --csv --page raw`"


def sniff(path: Path, head: bytes) -> bool:
    """Whether the file has CSV of ncu in it, or ncu's remarks; a program's own output of any length may come first."""
    text = decode(head).encode()
    if text.lstrip().startswith((b"{", b"[", b"<")) or head.startswith((b"SQLite format 3", b"NVR\0")):
        return False
    return any(mark in text for mark in MARKS) or _further_in(path, len(head))


def _further_in(path: Path, start: int) -> bool:
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return start < len(data) and any(data.find(mark, max(0, start - 32)) >= 0 for mark in MARKS[:2])
    except (OSError, ValueError):  # an empty file cannot be mapped
        return False


@dataclass
class Found:
    """What the blocks of a file hold, gathered one after the other."""

    launches: list[Launch] = field(default_factory=list)
    cells: list[Cells] = field(default_factory=list)
    texts: list[tuple[int, str, str]] = field(default_factory=list)
    rules: list[dict[str, Any]] = field(default_factory=list)
    extremes: list[pd.DataFrame] = field(default_factory=list)
    pages: set[str] = field(default_factory=set)
    unreadable: list[int | str] = field(default_factory=list)


def read(path: Path) -> Artifact:
    """Read every block of the file; ParseError where there is none, or none with a row."""
    found, text = gather(path)
    launches, notes = _numbered(found.launches)
    extremes = None
    if found.extremes:
        extremes = pd.concat(found.extremes, ignore_index=True)
        extremes["launch_id"] = [launches[index].launch_id for index in extremes["launch_id"]]
    made = tables(launches, _joined(found.cells), found.texts, found.rules, extremes)
    page = "+".join(sorted(found.pages))
    return Artifact(
        path=path,
        kind="ncu-csv",
        tool="ncu",
        tool_version=None,  # the CSV does not say
        tables=made,
        summary=summary(made, page),
        notes=(*notes, *_remarks(found, made, text)),
    )


def gather(path: Path) -> tuple[Found, str]:
    """What every block of the file holds, numbers in base units, and the file's text."""
    text = decode(read_bytes(path, "CSV of ncu"))
    found = Found()
    header: tuple[str, ...] | None = None
    for block in blocks(text):
        header = block.header
        _read_block(path, block, found)
    if not found.launches:
        raise _nothing(path, text, header)
    return found, text


def _nothing(path: Path, text: str, header: Sequence[str] | None) -> ParseError:
    for said, hint in FAILURES.items():
        if (at := text.find(said)) >= 0:
            line = text[text.rfind("\n", 0, at) + 1 : text.find("\n", at) if "\n" in text[at:] else len(text)]
            return ParseError(path, "rows", "at least one profiled launch", line.strip()[:300], hint=hint)
    if header is not None:
        return ParseError(path, "rows", "at least one complete row under the header", "none", hint="was ncu stopped?")
    return ParseError(path, "header", 'a line `"ID","Process ID",...,"Kernel Name",...`', "none", hint=AS_CSV)


def _read_block(path: Path, block: Block, found: Found) -> None:
    found.unreadable += block.unreadable
    if not block.rows:
        return
    if not block.is_long:
        _read_raw(path, block, found)
    elif "Average" in block.header:
        _read_summary(path, block, found)
    else:
        _read_details(path, block, found)


# --- raw: one row a launch, one column a metric


def _read_raw(path: Path, block: Block, found: Found) -> None:
    try:
        _take_raw(path, block, found, careful=False)
    except _Uneven:
        _take_raw(path, block, found, careful=True)


class _Uneven(Exception):
    """Some rows have more or fewer fields than the others."""


def _take_raw(path: Path, block: Block, found: Found, *, careful: bool) -> None:
    """Add the rows to what was found. Unless `careful` it may raise _Uneven, before it adds anything: looking at every
    row beforehand would cost a tenth of the time."""
    base = _base_columns(block.header)
    names = block.header[base:]
    if not names:
        raise ParseError(path, "header", "metrics after the columns of the launch", "none")
    unreadable: list[str] = []
    rows = list(_halves(block, base, len(names), unreadable, careful=careful))
    units, rows = _units_row(path, rows, len(names)) if rows else ([], [])
    if rows:
        lines = [rest for _, rest, _ in rows]
        written = _format(path, {cell for rest in _spread(lines, SAMPLE_ROWS) for cell in split_row(f'"{rest}')})
        values, texts = _matrix(lines, len(names), written)
        first = len(found.launches)
        for heads, _, nvtx in rows:
            ranges = parse_ranges(block.nvtx_header, nvtx)
            found.launches.append(_launch(dict(zip(block.header, heads, strict=False)), ranges))
        found.texts += [(first + row, names[column], text) for row, column, text in texts]
        found.cells.append(_cells(values, names, units, first))
        found.pages.add("raw")
    found.unreadable += unreadable


def _base_columns(header: Sequence[str]) -> int:
    """How many columns are about the launch: up to the last of them, metrics come after."""
    return max((index + 1 for index, name in enumerate(header) if name in COMMON), default=0)


def _halves(
    block: Block, base: int, metrics: int, unreadable: list[str], *, careful: bool
) -> Iterator[tuple[list[str], str, tuple[str, ...]]]:
    """Each row as the fields of its launch and the text of its metrics, which pandas takes apart: still quoted, less the
    first quote."""
    for line, nvtx in zip(block.rows, block.nvtx, strict=True):
        heads = line.split('","', base) if line.startswith('"') else []
        if len(heads) == base + 1 and heads[-1].endswith('"') and (not careful or _is_even(heads[-1], metrics)):
            yield [heads[0][1:], *heads[1:-1]], heads[-1], nvtx
            continue
        fields = split_row(line)
        if len(fields) == base + metrics:
            yield fields[:base], _quoted(fields[base:])[1:], nvtx
        else:
            unreadable.append(f"{len(fields)} of {base + metrics} fields")


def _is_even(rest: str, metrics: int) -> bool:
    """As many fields as there are metrics, and no quotes but those around them."""
    return rest.count('","') == metrics - 1 and rest.count('"') == 2 * metrics - 1


def _quoted(fields: Sequence[str]) -> str:
    out = io.StringIO()
    csv.writer(out, quoting=csv.QUOTE_ALL, lineterminator="").writerow(fields)
    return out.getvalue()


def _units_row(path: Path, rows: list[Any], metrics: int) -> tuple[list[str], list[Any]]:
    """The units and the rows of launches. Without its units a value means nothing."""
    is_units = [not any(heads) for heads, _, _ in rows]
    if not is_units[0]:
        raise ParseError(path, "units", "a row of units under the header", f"launch {rows[0][0][0]}")
    units = split_row(f'"{rows[0][1]}')
    if len(units) != metrics:
        raise ParseError(path, "units", f"{metrics} units", f"{len(units)}")
    return units, [row for row, skip in zip(rows, is_units, strict=True) if not skip]


def _spread(lines: Sequence[str], count: int) -> Sequence[str]:
    return lines[:: max(1, len(lines) // count)]


def _format(path: Path, cells: Collection[str]) -> NumberFormat:
    try:
        return number_format(cells)
    except ValueError as error:
        raise ParseError(path, "numbers", "one way of writing them", str(error)) from error


def _matrix(
    lines: Sequence[str], columns: int, written: NumberFormat
) -> tuple[np.ndarray[Any, np.dtype[np.float64]], list[tuple[int, int, str]]]:
    """Launches x metrics as numbers, and the cells (row, column, text) that are none. Pandas parses in one go what is
    numbers from end to end; a column of anything else is looked at cell by cell. Raises _Uneven."""
    frame = _parsed(lines, columns, written)
    texts: list[tuple[int, int, str]] = []
    for column, dtype in enumerate(frame.dtypes):
        if dtype.kind not in "iuf":
            cells = ["" if pd.isna(cell) else str(cell) for cell in frame[column].tolist()]
            frame[column], is_text = parse_numbers(cells, written)
            texts += [(row, column, cells[row]) for row, yes in enumerate(is_text) if yes]
    return frame.to_numpy(np.float64), texts


def _parsed(lines: Sequence[str], columns: int, written: NumberFormat) -> pd.DataFrame:
    """The lines taken apart. Each is given one field more, by which it is seen whether it had as many as it should."""
    mark = f",{END}".encode()
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)  # a row with more fields than columns
        try:
            frame = pd.read_csv(
                io.BytesIO((mark + b'\n"').join([b"", *map(str.encode, lines)]) + mark),
                skiprows=1,
                header=None,
                names=range(columns + 1),
                thousands=written.thousands,
                decimal=written.decimal,
                na_values=list(MISSING),
                keep_default_na=False,
                low_memory=False,
                skip_blank_lines=False,
                index_col=False,
            )
        except (pd.errors.ParserWarning, pd.errors.ParserError) as error:
            raise _Uneven from error
    if len(frame) != len(lines) or not frame[columns].eq(END).all():
        raise _Uneven
    return frame.drop(columns=columns)


def _cells(
    values: np.ndarray[Any, np.dtype[np.float64]], names: Sequence[str], units: Sequence[str], first: int
) -> Cells:
    launches, metrics = values.shape
    bases, factors = zip(*map(base_unit, units), strict=True)
    known = list(dict.fromkeys(bases))
    unit = np.array([known.index(base) for base in bases], dtype=np.min_scalar_type(-len(known)))
    unique = list(dict.fromkeys(names))
    place = {name: index for index, name in enumerate(unique)}
    metric = np.array([place[name] for name in names], dtype=np.min_scalar_type(-len(unique)))
    return Cells(
        launch=np.repeat(np.arange(first, first + launches, dtype=np.int32), metrics),
        each=metrics if first == 0 else 0,
        metric=np.tile(metric, launches),
        unit=np.tile(unit, launches),
        value=np.multiply(values, np.array(factors), order="C").ravel(),
        metrics=unique,
        units=known,
    )


# --- details and --metrics: one row a metric of a launch


_INTERNAL = re.compile(r"^.* \(([a-z]\w*__[\w.:]+)\)$", re.ASCII)  # --print-metric-name label-name


@dataclass
class _Long:
    """The columns of a long page, as they grow."""

    launch: list[int] = field(default_factory=list)
    metric: list[str] = field(default_factory=list)
    unit: list[str] = field(default_factory=list)
    value: list[str] = field(default_factory=list)


def _records(block: Block, needed: Sequence[str], found: Found) -> Iterator[tuple[dict[str, str], tuple[str, ...]]]:
    """The rows as name -> cell; a row ends where the last column that it needs is, or later."""
    last = max(block.header.index(name) for name in needed) + 1
    for line, nvtx in zip(block.rows, block.nvtx, strict=True):
        fields = split_row(line)
        if len(fields) < last or len(fields) > len(block.header) + 1:
            found.unreadable.append(f"{len(fields)} of {last} fields")
        else:
            yield dict(zip(block.header, fields, strict=False)), nvtx


def _need(path: Path, block: Block, names: Sequence[str]) -> None:
    for name in names:
        if name not in block.header:
            raise ParseError(path, "header", f"a column `{name}`", ", ".join(block.header[:30]))


def _read_details(path: Path, block: Block, found: Found) -> None:
    needed = (LONG, "Metric Unit", "Metric Value")
    _need(path, block, needed)
    index: dict[tuple[str, ...], int] = {}
    columns = _Long()
    for row, nvtx in _records(block, needed, found):
        key = tuple(row.get(name, "") for name in ("ID", "Process ID", "Kernel Name"))
        if "ID" not in row:
            key += tuple(row.get(name, "") for name in ("Block Size", "Grid Size", "Context", "Stream"))
        if not any(key):
            continue
        if key not in index:
            index[key] = len(found.launches)
            found.launches.append(_launch(row, parse_ranges(block.nvtx_header, nvtx)))
        if row[LONG].strip():
            columns.launch.append(index[key])
            columns.metric.append(_metric_name(row[LONG]))
            columns.unit.append(row["Metric Unit"])
            columns.value.append(row["Metric Value"])
        if row.get("Rule Name") or row.get("Rule Description"):
            found.rules.append(_rule(index[key], row))
    written = _format(path, columns.value)
    _take(columns, written, found)
    for rule in found.rules:
        if isinstance(percent := rule.get("estimated_speedup_pct"), str):
            rule["estimated_speedup_pct"] = _or_nan(parse_number(percent.rstrip("% "), written))
    found.pages.add("details")


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value


def _metric_name(cell: str) -> str:
    match = _INTERNAL.match(cell.strip())
    return match[1] if match else cell.strip()


def _rule(launch: int, row: dict[str, str]) -> dict[str, Any]:
    return {
        "launch": launch,
        "section": row.get("Section Name"),
        "rule": row.get("Rule Name"),
        "kind": row.get("Rule Type"),
        "message": row.get("Rule Description"),
        "speedup_scope": row.get("Estimated Speedup Type"),
        "estimated_speedup_pct": row.get("Estimated Speedup") or "",
    }


def _take(columns: _Long, written: NumberFormat, found: Found) -> None:
    numbers, is_text = parse_numbers(columns.value, written)
    found.texts += [(columns.launch[i], columns.metric[i], columns.value[i]) for i, yes in enumerate(is_text) if yes]
    units, factors = zip(*map(base_unit, columns.unit), strict=True) if columns.unit else ((), ())
    metric, metrics = pd.factorize(np.array(columns.metric, dtype=object))
    unit, known = pd.factorize(np.array(units, dtype=object))
    cells = Cells(
        launch=np.array(columns.launch, dtype=np.int64),
        metric=metric,
        unit=unit,
        value=np.multiply(numbers, np.array(factors, dtype=np.float64)),
        metrics=list(metrics),
        units=list(known),
    )
    found.cells.append(cells)


# --- summary: one row a metric of all launches of a kernel


def _read_summary(path: Path, block: Block, found: Found) -> None:
    needed = (LONG, "Metric Unit", "Minimum", "Maximum", "Average")
    _need(path, block, needed)
    rows = [row for row, _ in _records(block, needed, found)]
    written = _format(path, {row[name] for row in rows for name in needed[2:]})
    index: dict[tuple[str, ...], int] = {}
    columns, extremes = _Long(), []
    for row in rows:
        key = tuple(row.get(name, "") for name in COMMON if name != "Process Name")
        if key not in index:
            index[key] = len(found.launches)
            count = parse_number(row.get("Invocations", "1"), written)
            launch = _launch({name: cell for name, cell in row.items() if name != "ID"}, ())
            found.launches.append(replace(launch, count=ints(count) or 1))
        columns.launch.append(index[key])
        columns.metric.append(_metric_name(row[LONG]))
        columns.unit.append(row["Metric Unit"])
        columns.value.append(row["Average"])
        unit, factor = base_unit(row["Metric Unit"])
        numbers = {name.lower(): _or_nan(parse_number(row[name], written)) * factor for name in needed[2:]}
        count = found.launches[index[key]].count
        extremes.append(
            {"launch_id": index[key], "metric": columns.metric[-1], "unit": unit, **numbers, "count": count}
        )
    _take(columns, written, found)
    if extremes:
        found.extremes.append(pd.DataFrame(extremes))
    found.pages.add("summary")


# --- launches


def _launch(row: dict[str, str], ranges: Any) -> Launch:
    return Launch(
        launch_id=_or(ints(row.get("ID")), -1),
        kernel=kernel_name(row.get("Kernel Name", "").strip()),
        process_id=ints(row.get("Process ID")),
        device_id=ints(row.get("Device")),
        cc=row.get("CC") or None,
        context_id=ints(row.get("Context")),
        stream_id=ints(row.get("Stream")),
        grid=_triple(row.get("Grid Size", "")),
        block=_triple(row.get("Block Size", "")),
        ranges=ranges,
    )


def _or(value: int | None, default: int) -> int:
    return default if value is None else value


@lru_cache(maxsize=4096)
def _triple(text: str) -> Triple | None:
    """`(128, 1, 1)` -> 128, 1, 1; None for anything else."""
    parts = [ints(part) for part in text.strip().strip("()").split(",")]
    if len(parts) != 3 or None in parts:
        return None
    x, y, z = (part or 0 for part in parts)
    return x, y, z


def _numbered(launches: Sequence[Launch]) -> tuple[list[Launch], list[str]]:
    """Launches under ncu's own IDs where those are unique, else counted through."""
    ids = [launch.launch_id for launch in launches]
    if -1 not in ids and len(set(ids)) == len(ids):
        return list(launches), []
    renumbered = [replace(launch, launch_id=number) for number, launch in enumerate(launches)]
    if all(number == -1 for number in ids):
        return renumbered, []
    return renumbered, [f"{len(ids)} launches share {len(set(ids))} IDs (several runs in one file): numbered anew"]


def _joined(parts: Sequence[Cells]) -> Cells:
    """Cells of several blocks as one, under common names."""
    if len(parts) == 1:
        return parts[0]
    metrics = list(dict.fromkeys(name for part in parts for name in part.metrics))
    units = list(dict.fromkeys(name for part in parts for name in part.units))

    def mapped(part: Cells, names: Sequence[str], own: Sequence[str], code: Any) -> Any:
        place = {name: index for index, name in enumerate(names)}
        return np.array([place[name] for name in own], dtype=np.int64)[code]

    return Cells(
        launch=np.concatenate([part.launch for part in parts]),
        metric=np.concatenate([mapped(part, metrics, part.metrics, part.metric) for part in parts]),
        unit=np.concatenate([mapped(part, units, part.units, part.unit) for part in parts]),
        value=np.concatenate([part.value for part in parts]),
        metrics=metrics,
        units=units,
    )


def _remarks(found: Found, made: dict[str, pd.DataFrame], text: str) -> Iterator[str]:
    if found.unreadable:
        shown = ", ".join(f"line {at}" if isinstance(at, int) else at for at in islice(found.unreadable, 5))
        yield f"{len(found.unreadable)} rows left out, cut short or broken: {shown}"
    if "summary" in found.pages:
        yield "a summary page: values are averages over the launches of a kernel (`count`)"
    if without := int(made["metrics"]["value"].isna().sum()) - len(found.texts):
        yield f"{without} of {len(made['metrics'])} values are not there (empty, n/a or nan in the page)"
    if "Traceback (most recent call last)" in text:
        yield "the output of the profiled program holds a Python traceback"
    said = (line for line in text[:1_000_000].split("\n") if line.startswith(("==ERROR== ", "==WARNING== ")))
    for line in islice(said, 10):
        yield line.strip()[:300]
