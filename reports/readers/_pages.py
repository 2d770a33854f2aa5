"""SQLite tables read straight from their pages with NumPy: the plain cases, many times faster than row by row.

Layout: https://www.sqlite.org/fileformat2.html. A table is a B-tree whose leaves hold one record a row; a record is a
header of serial types and a body of big-endian values. All rows of some pages are decoded at once, column by column.
Whatever is not plain (overflow pages, a write-ahead log, values of another type) raises `NotPlain`, and the caller asks
SQLite instead: both give the same rows in the same order, which a property test holds.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]

HEADER_BYTES = 100
LEAF, INTERIOR = 13, 5  # kinds of pages of a table
ROWS_AT_ONCE_BYTES = 1 << 20  # of pages: what the caches of a core hold
MAX_DEPTH = 20  # of a B-tree; SQLite's own limit
SPARE = 8  # bytes behind the last page, so that eight can be read from anywhere

# By serial type, up to 12: how many bytes the value takes, and whether it is an integer or missing.
SIZES = np.array([0, 1, 2, 3, 4, 6, 8, 8, 0, 0, 0, 0, 0], dtype=np.int64)
IS_INT = np.array([1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 0, 0, 0], dtype=np.bool_)
NULL, ONE = 0, 9


class NotPlain(Exception):
    """This table is not one that can be read here; says why."""


@dataclass
class Texts:
    """Texts as codes into the list of the distinct ones; -1 where there is none."""

    codes: list[npt.NDArray[np.int32]] = field(default_factory=list)
    seen: dict[bytes, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Pages:
    """A database file, opened: its descriptor and the geometry of its pages."""

    descriptor: int
    size: int  # bytes a page
    usable: int  # of these, without what is reserved at the end
    count: int

    @classmethod
    def open(cls, path: Path, descriptor: int) -> Pages:
        head = os.pread(descriptor, HEADER_BYTES, 0)
        if len(head) < HEADER_BYTES or not head.startswith(b"SQLite format 3\0"):
            raise NotPlain("no header")
        if head[18] != 1 or head[19] != 1:
            raise NotPlain("not in rollback-journal mode")
        if any(path.with_name(path.name + end).exists() for end in ("-wal", "-journal")):
            raise NotPlain("a log lies beside the file")
        if head[56:60] != b"\0\0\0\1":
            raise NotPlain("text is not UTF-8")
        size = int.from_bytes(head[16:18], "big")
        size = 65536 if size == 1 else size
        return cls(descriptor, size, size - head[20], os.fstat(descriptor).st_size // size)

    def read(self, numbers: Ints) -> Bytes:
        """The pages of these numbers (from 1), one after the other, and some spare bytes."""
        if numbers.size and not (1 <= int(numbers.min()) <= int(numbers.max()) <= self.count):
            raise NotPlain("a page outside the file")
        out = np.zeros(len(numbers) * self.size + SPARE, dtype=np.uint8)
        view = out.data
        breaks = np.flatnonzero(np.diff(numbers) != 1) + 1
        for first, last in zip([0, *breaks.tolist()], [*breaks.tolist(), len(numbers)], strict=True):
            part = view[first * self.size : last * self.size]
            if os.preadv(self.descriptor, [part], (int(numbers[first]) - 1) * self.size) != len(part):
                raise NotPlain("the file ends early")
        return out


def read_columns(
    path: Path, root: int, integers: Sequence[int], texts: Sequence[int]
) -> tuple[dict[int, tuple[Ints, Bools]], dict[int, tuple[npt.NDArray[np.int32], list[str]]]]:
    """Columns of the table whose B-tree starts at page `root`, by position: integers as (values, missing), texts as
    (codes, distinct texts)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        pages = Pages.open(path, descriptor)
        chunks: dict[int, list[tuple[Ints, Bools]]] = {column: [] for column in integers}
        words = {column: Texts() for column in texts}
        leaves = _leaves(pages, root)
        step = max(1, ROWS_AT_ONCE_BYTES // pages.size)
        for at in range(0, len(leaves), step):
            _decode(pages, pages.read(leaves[at : at + step]), chunks, words)
    except (IndexError, OSError) as error:  # an offset outside what was read: a damaged file, for SQLite to judge
        raise NotPlain(str(error)) from error
    finally:
        os.close(descriptor)
    return {column: _joined(chunks.pop(column)) for column in integers}, {
        column: (_concatenated(text.codes, np.int32), [word.decode("utf-8", "replace") for word in text.seen])
        for column, text in words.items()
    }


def _joined(parts: list[tuple[Ints, Bools]]) -> tuple[Ints, Bools]:
    return _concatenated([values for values, _ in parts], np.int64), _concatenated(
        [lost for _, lost in parts], np.bool_
    )


def _concatenated(parts: list[Any], dtype: Any) -> Any:
    return np.concatenate(parts) if parts else np.empty(0, dtype)


def _leaves(pages: Pages, root: int) -> Ints:
    """The numbers of the leaf pages, in the order of their rows."""
    level = np.array([root], dtype=np.int64)
    for _ in range(MAX_DEPTH):
        if len(level) > pages.count:
            raise NotPlain("more pages than the file has")
        kinds = {int(pages.read(level[:1])[0]), int(pages.read(level[-1:])[0])}
        if kinds == {LEAF}:
            return level
        if kinds != {INTERIOR}:
            raise NotPlain("not the B-tree of a table")
        level = np.concatenate(list(_children(pages, level)))
    raise NotPlain("too deep")


def _children(pages: Pages, level: Ints) -> Iterator[Ints]:
    for number in level:
        page = pages.read(np.array([number]))
        if page[0] != INTERIOR:
            raise NotPlain("leaves of unequal depth")
        cells = _big_endian(page, 12 + 2 * np.arange(_big_endian(page, np.array([3]), 2)[0]), 2)
        yield np.append(_big_endian(page, cells, 4), _big_endian(page, np.array([8]), 4))


def _big_endian(page: Bytes, at: Ints, size: int) -> Ints:
    out = np.zeros(len(at), dtype=np.int64)
    for offset in range(size):
        out = (out << 8) | page[at + offset]
    return out


def _decode(pages: Pages, page: Bytes, chunks: dict[int, list[tuple[Ints, Bools]]], words: dict[int, Texts]) -> None:
    """Append what the rows of these leaf pages hold in the wanted columns."""
    cell = _cells(pages, page)
    payload, start = _varint(page, cell)
    if payload.size and int(payload.max()) > pages.usable - 35:
        raise NotPlain("a row that overflows its page")
    _, start = _varint(page, start)  # the row's number
    header, types_at = _varint(page, start)
    if ((header < 1) | (header > payload)).any():
        raise NotPlain("a header outside its row")
    eights: Any = np.ndarray((len(page) - SPARE + 1,), dtype="<i8", buffer=page, strides=(1,))  # from every offset
    at = start + header  # where the value of the next column lies
    for column, types in enumerate(_types(page, eights, types_at, at, max([*chunks, *words], default=-1) + 1)):
        uniform = types[:1] if (types == types[:1]).all() else types  # mostly all rows are alike: a scalar does
        sizes = np.where(uniform >= 12, (uniform - 12) // 2, SIZES.take(uniform, mode="clip"))
        if column in chunks:
            chunks[column].append(_integers(eights, uniform, sizes, at))
        elif column in words:
            _texts(page, types, at, at + sizes, words[column])
        at += sizes
    if (at > start + payload).any():
        raise NotPlain("a value outside its row")


def _types(page: Bytes, eights: Any, at: Ints, body: Ints, columns: int) -> Iterator[Ints]:
    """The serial types of the rows, column by column: eight at once if each takes one byte, as nearly always."""
    if (at + columns > body).any():
        raise NotPlain("a row with fewer columns than its table")
    near = at[:, None] + np.arange(0, columns, 8)
    types = np.ascontiguousarray(eights[np.minimum(near, len(eights) - 1)]).view(np.uint8)[:, :columns].T
    if types.max(initial=0) < 128:
        yield from np.ascontiguousarray(types).astype(np.int16)
        return
    for _ in range(columns):  # a text of 58 bytes or more has a longer type
        if (at >= body).any():
            raise NotPlain("a row with fewer columns than its table")
        row, at = _varint(page, at)
        if row.size and not 0 <= int(row.min()) <= int(row.max()) <= 2 * len(page):
            raise NotPlain("a type that no value has")
        yield row


def _cells(pages: Pages, page: Bytes) -> Ints:
    """Where each row starts."""
    starts = np.arange(0, len(page) - SPARE, pages.size)
    if (page[starts] != LEAF).any():
        raise NotPlain("a page that is no leaf")
    counts = _big_endian(page, starts + 3, 2)
    if counts.size and int(counts.max()) * 2 + 8 > pages.size:
        raise NotPlain("more rows than a page holds")
    first = np.repeat(np.cumsum(counts) - counts, counts)
    base = np.repeat(starts, counts)
    cells = _big_endian(page, base + 8 + 2 * (np.arange(len(base)) - first), 2)
    if (cells >= pages.usable).any():
        raise NotPlain("a row outside its page")
    return base + cells


def _varint(page: Bytes, at: Ints) -> tuple[Ints, Ints]:
    """Integers of one to nine bytes, and what follows them: seven bits a byte, all eight of a ninth."""
    value = page[at].astype(np.int64)
    after = at + 1
    long = np.flatnonzero(value >= 128)
    value[long] &= 127
    for count in range(2, 10):
        if not long.size:
            break
        byte = page[after[long]].astype(np.int64)
        value[long] = (value[long] << 8 | byte) if count == 9 else (value[long] << 7 | byte & 127)
        after[long] += 1
        long = long[byte >= 128]
    return value, after


def _integers(eights: Any, types: Ints, sizes: Ints, at: Ints) -> tuple[Ints, Bools]:
    """Read eight bytes, and keep the upper ones: the shift brings the sign along. `types` and `sizes` may be one for
    all rows."""
    if not IS_INT.take(types, mode="clip").all():
        raise NotPlain("a value that is no integer")
    missing = np.broadcast_to(types == NULL, at.shape)
    if not sizes.any():
        return np.broadcast_to(np.asarray(types == ONE, dtype=np.int64), at.shape), missing
    values = eights[at].byteswap() >> (64 - 8 * np.maximum(sizes, 1))
    constant = sizes == 0
    if constant.any():
        values[constant] = types[constant] == ONE
    return values, missing


def _texts(page: Bytes, types: Ints, starts: Ints, ends: Ints, words: Texts) -> None:
    if not ((types == NULL) | (types >= 13) & (types % 2 == 1)).all():
        raise NotPlain("a value that is no text")
    codes = np.full(len(types), -1, dtype=np.int32)
    rows = np.flatnonzero(types != NULL)
    view, seen = page.data, words.seen
    for row, start, end in zip(rows.tolist(), starts[rows].tolist(), ends[rows].tolist(), strict=True):
        codes[row] = seen.setdefault(bytes(view[start:end]), len(seen))
    words.codes.append(codes)
