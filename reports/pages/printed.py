"""What a page says of one `probe printf`: its values beside the lines of the source, and all of them as a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from harness.record import Session
from reports import schema, units
from reports.pages.tiles import Tile

if TYPE_CHECKING:
    import plotly.graph_objects as go

TEMPLATE = "printed.html"
MOST_ROWS = 5000  # of the table on the page
MOST_VALUES = 6  # beside a line
AROUND = 3  # lines shown before and after one that has values
LONGEST = 160  # characters of a value


@dataclass(frozen=True)
class Row:
    """A logged value as it is shown; `order` sorts by block, thread and time."""

    sequence: int
    launch_id: int
    tag: str
    file: str
    line: int
    block: tuple[int, int, int]
    thread: tuple[int, int, int]
    type: str
    value: str

    @property
    def order(self) -> tuple[Any, ...]:
        return (self.launch_id, self.block[::-1], self.thread[::-1], self.sequence)


@dataclass(frozen=True)
class Line:
    """A line of the source with the values that were logged there; number 0 stands for lines left out."""

    number: int
    text: str = ""
    values: tuple[str, ...] = ()
    more: int = 0


@dataclass(frozen=True)
class View:
    """The files of a session; `gaps` says what is missing or unreadable."""

    manifest: Mapping[str, Any]
    result: Mapping[str, Any]
    source: tuple[str, ...]
    gaps: tuple[str, ...] = ()

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """All of them, thread by thread, each thread's in the order of its own; watched assignments by time alone."""
        rows = read_rows(self.result)
        return tuple(rows if self.not_finite else sorted(rows, key=lambda row: row.order))

    @property
    def shown(self) -> tuple[Row, ...]:
        return self.rows[:MOST_ROWS]

    @property
    def name(self) -> str:
        return schema.text(self.result.get("source")) or schema.text(self.manifest.get("source"))

    @property
    def kernel(self) -> str:
        return schema.text(self.result.get("kernel")) or schema.text(self.manifest.get("entry"))

    @property
    def status(self) -> str:
        if not self.result:
            return "interrupted"
        if self.result.get("ended") != "finished":
            return schema.text(self.result.get("ended"))
        return "defect found" if self.result.get("defects") else "finished"

    @property
    def total(self) -> int:
        """Values logged, of which `rows` may be only the first."""
        return schema.integer(self.result.get("records")) or len(self.rows)

    @property
    def headline(self) -> str:
        return headline(self.result, self.total)

    @property
    def notes(self) -> tuple[str, ...]:
        return schema.texts(self.result.get("notes"))

    @property
    def printed(self) -> list[Mapping[str, Any]]:
        return [one for one in self.result.get("printed") or () if isinstance(one, Mapping)]

    @property
    def findings(self) -> list[Mapping[str, Any]]:
        return [one for one in self.result.get("findings") or () if isinstance(one, Mapping)]

    @property
    def not_finite(self) -> list[Mapping[str, Any]]:
        rows = (one for one in self.result.get("not_finite") or () if isinstance(one, Mapping))
        return [{**one, "value": value_text(one["value"])} for one in rows]

    @property
    def tiles(self) -> list[Tile]:
        threads = {(row.block, row.thread) for row in self.rows}
        lost = self.result.get("lost")
        return [
            Tile("Values", units.count(self.total)),
            Tile("Lost", "not known" if lost is None else units.count(lost)),
            Tile(
                "Threads",
                units.count(len(threads)),
                f"in {units.plural(len({row.block for row in self.rows}), 'block')}"
                + f", of the first {units.count(len(self.rows))} values" * (len(self.rows) < self.total),
            ),
            Tile("Outputs of printf", units.count(len(self.printed)), _printed_lost(self.result.get("printed_lost"))),
        ]

    @property
    def several(self) -> bool:
        """Whether the values are of more than one thread."""
        return len({(row.block, row.thread) for row in self.rows}) > 1

    @property
    def listing(self) -> list[Line]:
        """The lines around those with values."""
        return list(_listing(self.source, self.rows, self.name, self.several))

    def line(self, row: Row) -> str:
        """The source's line of a row."""
        known = row.file == self.name and 1 <= row.line <= len(self.source)
        return units.shorten(self.source[row.line - 1].strip(), 60, head=0.9) if known else f"{row.file}:{row.line}"

    def said(self, one: Mapping[str, Any]) -> str:
        """Who printed, where that is known."""
        return f"[{triple(one['block'])} | {triple(one['thread'])}] " if one.get("block") else ""

    def draw(self) -> dict[str, go.Figure]:
        return {}


def read(session: Session) -> View:
    """Read a session; what is missing is said in `gaps`."""
    gaps: list[str] = []
    result = schema.read_document(session, "result.json", "the run did not come to its end", gaps) or {}
    try:
        text = (session.raw / "source.cu").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
        gaps.append("raw/source.cu is not there: values are shown without the lines of the source")
    return View(session.read_json("manifest.json"), result, tuple(text.splitlines()), tuple(gaps))


def read_rows(result: Mapping[str, Any]) -> Iterator[Row]:
    """The rows of result.json."""
    for row in result.get("rows") or ():
        yield Row(
            row["sequence"], row["launch_id"], row["tag"], row["file"], row["line"], tuple(row["block"]),
            tuple(row["thread"]), row["type"], value_text(row["value"]),
        )  # fmt: skip


def headline(result: Mapping[str, Any], rows: int) -> str:
    """What came of it in one sentence."""
    values = units.plural(rows, "value")
    ended = result.get("ended")
    if ended not in ("finished", None):
        how = {"crashed": "The kernel crashed", "interrupted": "Interrupted"}.get(str(ended), "The kernel did not end")
        return f"{how}; {values} logged until then"
    if first := next(iter(result.get("not_finite") or ()), None):
        return f"{value_text(first['value'])} first in {first['assigned']} at {first['file']}:{first['line']}, {where(first)}"
    if findings := result.get("findings"):
        return f"{values} logged, and {units.plural(len(findings), 'finding')} of the emulation"
    if not rows and result.get("printed"):
        return f"{units.plural(len(result['printed']), 'output')} of printf"
    return f"{values} logged" if result else "No result was written: the run was interrupted"


def where(row: Mapping[str, Any]) -> str:
    return f"block {triple(row['block'])} thread {triple(row['thread'])}"


def triple(numbers: Sequence[int] | None) -> str:
    return "" if numbers is None else ",".join(map(str, numbers))


def value_text(value: Any) -> str:
    """A value as C++ would print it; vectors and arrays in braces."""
    if isinstance(value, list):
        return "{" + ", ".join(value_text(item) for item in value) + "}"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return "nan" if value != value else f"{value:.9g}" if abs(value) == float("inf") else repr(value)
    return (
        {"NaN": "nan", "Infinity": "inf", "-Infinity": "-inf"}.get(value, value)
        if isinstance(value, str)
        else str(value)
    )


def _printed_lost(lost: Any) -> str:
    return "lost: not known" if lost is None else f"{units.count(lost)} lost" if lost else ""


def _listing(source: Sequence[str], rows: Sequence[Row], name: str, several: bool) -> Iterator[Line]:
    by_line: dict[int, list[Row]] = {}
    for row in rows:
        if row.file == name:
            by_line.setdefault(row.line, []).append(row)
    wanted = sorted(
        {near for line in by_line for near in range(line - AROUND, line + AROUND + 1) if 1 <= near <= len(source)}
    )
    previous = 0
    for number in wanted:
        if number != previous + 1:
            yield Line(0)
        here = by_line.get(number, [])
        yield Line(number, source[number - 1], tuple(_beside(row, several) for row in here[:MOST_VALUES]),
                   max(0, len(here) - MOST_VALUES))  # fmt: skip
        previous = number


def _beside(row: Row, several: bool) -> str:
    text = f"{row.tag.removeprefix('watch-nan: ')} = {row.value[:LONGEST]}"
    return f"{text}  ({triple(row.block)} | {triple(row.thread)})" if several else text
