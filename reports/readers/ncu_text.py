"""The CSV that ncu printed, picked out of what stands around it: blocks of rows under one header each."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

KERNEL = "Kernel Name"
COMMON = ("ID", "Process ID", "Process Name", "Host Name", KERNEL, "Kernel Time", "Context", "Stream", "Block Size",
          "Grid Size", "Device", "CC", "Invocations")  # fmt: skip
LONG = "Metric Name"
NVTX_PUSH_POP, NVTX_START_STOP = "Push/Pop_Range", "Start/Stop_Range"
PUSH_POP, START_END = "push_pop", "start_end"

# What a column that stands after the NVTX ones looks like: their text may hold unescaped quotes and commas (a range's
# payload is JSON), and nothing but these shapes says where it ends.
SHAPES = {
    KERNEL: r'(?:[^"]|"")*',
    "Kernel Time": r"[\w:. -]*",
    "Context": r"\d*",
    "Stream": r"\d*",
    "Block Size": r"\([\d ,]*\)",
    "Grid Size": r"\([\d ,]*\)",
    "Device": r"\d*",
    "CC": r"[\d.]*",
}


@dataclass(frozen=True)
class Block:
    """The rows under one header. `header` has no NVTX columns; `nvtx` holds their texts, row by row, where there are."""

    header: tuple[str, ...]
    nvtx_header: tuple[str, ...]
    quoted: bool = True  # ncu quotes every field; what something else saved again may not be
    rows: list[str] = field(default_factory=list)  # as printed, NVTX cut out
    nvtx: list[tuple[str, ...]] = field(default_factory=list)
    unreadable: list[int] = field(default_factory=list)  # line numbers, from 1

    @property
    def is_long(self) -> bool:
        """Whether a row is one metric of a launch (details, --metrics, summary), not a launch (raw)."""
        return LONG in self.header


def split_row(line: str) -> list[str]:
    """The fields of one line of CSV."""
    if line.startswith('"') and line.endswith('"') and '""' not in line:
        fields = line[1:-1].split('","')
        if not any('"' in part for part in fields):
            return fields
    try:
        return next(csv.reader([line], skipinitialspace=True, strict=True), [])
    except csv.Error:
        return []


def find_header(line: str) -> list[str] | None:
    """The fields of a header, wherever in the line it begins (a program may end its output without a newline)."""
    if (
        line.startswith('"') and line[1:2].isdigit()
    ) or KERNEL not in line:  # a row begins with its ID, and may be long
        return None
    starts = [at for word in ('"ID"', '"Process ID"', f'"{KERNEL}"') if (at := line.find(word)) >= 0]
    fields = [name.strip() for name in split_row(line[min(starts, default=0) :].strip())]
    known = KERNEL in fields and (LONG in fields or "ID" in fields)
    return fields if known and len(set(fields)) >= 3 else None


def blocks(text: str) -> Iterator[Block]:
    """Every block of the text, with its rows."""
    block: Block | None = None
    cut: re.Pattern[str] | None = None
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.rstrip("\r")
        if (header := find_header(line)) is not None:
            if block is not None:
                yield block
            block, cut = _open(header, quoted='"' in line)
        elif block is not None:
            _add(block, cut, line, number)
    if block is not None:
        yield block


def _open(header: Sequence[str], quoted: bool) -> tuple[Block, re.Pattern[str] | None]:
    nvtx = tuple(name for name in header if NVTX_PUSH_POP in name or NVTX_START_STOP in name)
    block = Block(tuple(name for name in header if name not in nvtx), nvtx, quoted)
    return block, _nvtx_pattern(header, nvtx) if nvtx else None


def _nvtx_pattern(header: Sequence[str], nvtx: Sequence[str]) -> re.Pattern[str] | None:
    """Where the NVTX columns end: the first place at which what follows has the shape of the columns after them."""
    after = list(header)[max(header.index(name) for name in nvtx) + 1 :]
    known = [SHAPES[name] for name in after[: next((i for i, n in enumerate(after) if n not in SHAPES), len(after))]]
    return re.compile('","(?=' + '","'.join(known) + '["])', re.ASCII) if known else None


def _add(block: Block, cut: re.Pattern[str] | None, line: str, number: int) -> None:
    """Take a line into the block if it is a row; program output and ncu's own remarks are passed over."""
    if not block.quoted:
        if not line.startswith("==") and len(split_row(line)) > len(block.header) // 2:
            block.rows.append(line)
            block.nvtx.append(())
        return
    start = line.find('"')
    if start < 0:
        return
    if line.find('","', line.find('","', start) + 3) < 0:
        if start == 0 and line[1:2].isdigit():  # a row that ends in its first fields
            block.unreadable.append(number)
        return
    line = line[start:]
    nvtx: tuple[str, ...] = ()
    if cut is not None:
        line, nvtx = _cut_nvtx(block, cut, line)
    whole = line.endswith(('"', '",')) and (not line.endswith(',"') or line.endswith(',""'))
    if not line or not whole:
        block.unreadable.append(number)
        return
    block.rows.append(line)
    block.nvtx.append(nvtx)


def _cut_nvtx(block: Block, cut: re.Pattern[str], line: str) -> tuple[str, tuple[str, ...]]:
    """The line without its NVTX columns, and their texts; an empty line if their end is not found.

    Two NVTX columns are told apart at the last `","` between them: only push/pop ranges have payloads in them.
    """
    before = next((i for i, name in enumerate(block.header) if name == KERNEL), 0)
    head = line.split('","', before)
    if len(head) <= before or all(cell.strip('"') == "" for cell in head[:before]):  # the row of the units
        plain = split_row(line)
        rest = plain[:before] + plain[before + len(block.nvtx_header) :]
        return '"' + '","'.join(rest) + '"', ()
    start = len(line) - len(head[-1])
    end = cut.search(line, start)
    if end is None:
        return "", ()
    texts = line[start : end.start()].rsplit('","', len(block.nvtx_header) - 1)
    return line[:start] + line[end.end() :], tuple(text.replace('""', '"') for text in texts)


@dataclass(frozen=True)
class Range:
    """An NVTX range that was open at a launch; `depth` counts from 0 within its domain and kind."""

    domain: str
    name: str
    depth: int
    kind: str = PUSH_POP


def parse_ranges(header: Sequence[str], texts: Sequence[str]) -> tuple[Range, ...]:
    """The ranges of the NVTX columns: push/pop ranges, outermost first a domain, then start/end ranges."""
    found: list[Range] = []
    for name, text in zip(header, texts, strict=False):
        kind = START_END if NVTX_START_STOP in name else PUSH_POP
        depths: Counter[str] = Counter()
        for item in _items(text):
            if kind == START_END:
                item = item.partition(":")[2]  # its id
            domain, _, body = item.partition(":")
            found.append(Range(domain, _range_name(body), depths[domain], kind))
            depths[domain] += 1
    return tuple(found)


def _items(text: str) -> list[str]:
    """`1017  "a"  "b" ` -> a, b. Quotes inside are not escaped, but two blanks between quotes stand only between items."""
    start, end = text.find('"'), text.rfind('"')
    return text[start + 1 : end].split('"  "') if 0 <= start < end else []


def _range_name(body: str) -> str:
    """`Name:payload type:payload:colour type:colour:message type:Name` -> Name, which may hold colons itself."""
    for match in re.finditer(r":\w*:\w*:(?:ASCII|UNICODE|REGISTERED|UNKNOWN|none):", body):
        name = body[match.end() :]
        if name and body.startswith(f"{name}:"):
            return name.strip()
    return body.partition(":none:")[0].strip()
