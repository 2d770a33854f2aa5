"""Tables of a SQLite file as columns of NumPy integers and texts, whatever columns the file happens to have."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.errors import ParseError
from reports.readers import _pages

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Codes = npt.NDArray[np.int32]

MAGIC = b"SQLite format 3\0"
PARAMETERS = 500  # of one statement
ROWS_AT_ONCE = 50_000  # as Python objects, where pages cannot be read directly


@dataclass(frozen=True)
class Integers:
    """A column of integers; `missing` where the file says NULL (the value is 0 there)."""

    values: Ints
    missing: Bools

    @property
    def present(self) -> Bools:
        return ~self.missing


@dataclass(frozen=True)
class Texts:
    """A column of texts: codes into the distinct ones, -1 where the file says NULL."""

    codes: Codes
    words: list[str]


@dataclass(frozen=True)
class Table:
    """What the schema says of a table: its columns in their order, and the page where it starts (0 for a view)."""

    columns: tuple[str, ...]
    root: int
    plain: bool  # rows stored with a row number, all columns in the record


class Database:
    """A SQLite file, open for reading. Every failure of SQLite becomes a `ParseError` that names the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection = _connect(path)
        try:
            with self.failing("schema"):
                self.tables = dict(_tables(self._connection))
        except BaseException:
            self._connection.close()
            raise

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    @contextlib.contextmanager
    def failing(self, what: str) -> Iterator[None]:
        """SQLite's errors, told as what is wrong with the file."""
        try:
            yield
        except (sqlite3.Error, UnicodeDecodeError) as error:  # a message may quote bytes of a damaged schema
            raise ParseError(self.path, what, "a readable SQLite table", str(error)) from error

    def rows(self, table: str, columns: Sequence[str]) -> list[tuple[Any, ...]]:
        """Small tables, as they are; none if the table or one of the columns is not there."""
        if table not in self.tables or not set(columns) <= set(self.tables[table].columns):
            return []
        with self.failing(table):
            return self._connection.execute(f"SELECT {_listed(columns)} FROM {_quoted(table)}").fetchall()

    def strings(self, table: str, key: str, value: str, only: Sequence[int] | None = None) -> dict[int, str]:
        """Texts by their numbers: all of them, or those that are asked for."""
        command = f"SELECT {_listed((key, value))} FROM {_quoted(table)}"
        known = self.tables[table].columns
        if not {key, value} <= set(known):
            raise ParseError(self.path, table, f"columns {key} and {value}", ", ".join(known))
        found: dict[int, str] = {}
        with self.failing(table):
            if only is None:
                rows: Iterable[Any] = self._connection.execute(command)
                return {number: _text(word) for number, word in rows}
            for at in range(0, len(only), PARAMETERS):
                part = only[at : at + PARAMETERS]
                marks = ", ".join("?" * len(part))
                rows = self._connection.execute(f"{command} WHERE {_quoted(key)} IN ({marks})", part)
                found.update((number, _text(word)) for number, word in rows)
        return found

    def read(
        self, table: str, integers: Sequence[str], texts: Sequence[str] = (), *, direct: bool = True
    ) -> tuple[dict[str, Integers], dict[str, Texts]]:
        """Columns of a table in the order of its rows; a column that the file does not have is missing throughout."""
        known = self.tables[table]
        there = [name for name in (*integers, *texts) if name in known.columns]
        numbers, words, count = self._read(table, known, there, set(texts), direct)
        for name in integers:
            if name not in numbers:
                numbers[name] = Integers(np.zeros(count, np.int64), np.ones(count, np.bool_))
        for name in texts:
            if name not in words:
                words[name] = Texts(np.full(count, -1, np.int32), [])
        return numbers, words

    def _read(
        self, table: str, known: Table, there: list[str], texts: set[str], direct: bool
    ) -> tuple[dict[str, Integers], dict[str, Texts], int]:
        if direct and known.plain and there:
            with contextlib.suppress(_pages.NotPlain):
                return _from_pages(self.path, known, there, texts)
        return self._through_sqlite(table, there, texts)

    def _through_sqlite(
        self, table: str, there: list[str], texts: set[str]
    ) -> tuple[dict[str, Integers], dict[str, Texts], int]:
        """Row by row. Texts come as bytes: SQLite does not promise that they are valid UTF-8."""
        numbers: dict[str, list[Integers]] = {name: [] for name in there if name not in texts}
        codes: dict[str, list[Codes]] = {name: [] for name in there if name in texts}
        seen: dict[str, dict[bytes, int]] = {name: {} for name in codes}
        count = 0
        with self.failing(table):
            cursor = self._connection.execute(f"SELECT {_listed(there) or '1'} FROM {_quoted(table)}")
            while rows := cursor.fetchmany(ROWS_AT_ONCE):
                count += len(rows)
                for name, values in zip(there, zip(*rows, strict=True), strict=False):
                    field = f"{table}.{name}"
                    if name in texts:
                        codes[name].append(self._codes(field, values, seen[name]))
                    else:
                        numbers[name].append(self._integers(field, values))
        return (
            {name: _together(parts) for name, parts in numbers.items()},
            {
                name: Texts(np.concatenate(parts or [np.empty(0, np.int32)]), [_text(word) for word in seen[name]])
                for name, parts in codes.items()
            },
            count,
        )

    def _integers(self, field: str, values: tuple[Any, ...]) -> Integers:
        missing = np.zeros(len(values), np.bool_)
        if lost := values.count(None):
            missing = np.fromiter((value is None for value in values), np.bool_, len(values))
            values = (0,) * len(values) if lost == len(values) else tuple(value or 0 for value in values)
        array = np.array(values)
        if array.dtype != np.int64:
            wrong = next(value for value in values if not isinstance(value, int))
            raise ParseError(self.path, field, "integers", _shown(wrong))
        return Integers(array, missing)

    def _codes(self, field: str, values: tuple[Any, ...], seen: dict[bytes, int]) -> Codes:
        wrong = next((value for value in values if not isinstance(value, bytes | None)), None)
        if wrong is not None:
            raise ParseError(self.path, field, "texts", _shown(wrong))
        found = (-1 if value is None else seen.setdefault(value, len(seen)) for value in values)
        return np.fromiter(found, np.int32, len(values))


def _from_pages(
    path: Path, known: Table, there: list[str], texts: set[str]
) -> tuple[dict[str, Integers], dict[str, Texts], int]:
    at = {name: known.columns.index(name) for name in there}
    wanted = [at[name] for name in there if name not in texts]
    numbers, words = _pages.read_columns(path, known.root, wanted, [at[name] for name in there if name in texts])
    first = next(iter(numbers.values()), None) or next(iter(words.values()))
    return (
        {name: Integers(*numbers[at[name]]) for name in there if name not in texts},
        {name: Texts(*words[at[name]]) for name in there if name in texts},
        len(first[0]),
    )


def _connect(path: Path) -> sqlite3.Connection:
    """Read-only, and without locks or files of our own, unless a log beside the file holds some of its content."""
    try:
        with path.open("rb") as stream:
            head = stream.read(100)
            size = os.fstat(stream.fileno()).st_size
    except OSError as error:
        raise ParseError(path, "file", "a readable file", error.strerror) from error
    if not head.startswith(MAGIC) or len(head) < 100:
        raise ParseError(path, "header", "a SQLite database", repr(head[:16]) if head else "an empty file")
    logs = [path.with_name(path.name + end) for end in ("-wal", "-journal")]
    whole = not any(log.exists() and log.stat().st_size for log in logs)
    if whole:
        _check_size(path, head, size)
    try:
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro{'&immutable=1' if whole else ''}", uri=True)
    except sqlite3.Error as error:
        raise ParseError(path, "header", "a SQLite database", str(error)) from error
    connection.text_factory = bytes
    return connection


def _check_size(path: Path, head: bytes, size: int) -> None:
    """SQLite itself does not mind a file that was cut within its last page, or lost the end of a copy."""
    page = int.from_bytes(head[16:18], "big")
    page = 65536 if page == 1 else max(page, 1)
    pages = int.from_bytes(head[28:32], "big") if head[24:28] == head[92:96] else 1  # counted if the stamps agree
    if size % page or size < pages * page:
        raise ParseError(path, "size", f"{pages} whole pages of {page} bytes", f"{size} bytes: the file was cut short",
                         hint="export or copy it again")  # fmt: skip


def _tables(connection: sqlite3.Connection) -> Iterator[tuple[str, Table]]:
    found = connection.execute(
        "SELECT name, rootpage, sql FROM sqlite_master WHERE type IN ('table', 'view')"
    ).fetchall()
    for name, root, sql in found:
        table = _text(name)
        columns = connection.execute(f"PRAGMA table_xinfo({_quoted(table)})").fetchall()
        names = tuple(_text(column[1]) for column in columns)
        stored = all(column[6] == 0 and column[5] == 0 for column in columns)  # neither generated nor a key
        without_rowid = b"WITHOUT" in (sql or b"").upper()
        yield table, Table(names, int(root or 0), bool(root) and stored and not without_rowid)


def _together(parts: list[Integers]) -> Integers:
    if not parts:
        return Integers(np.empty(0, np.int64), np.empty(0, np.bool_))
    return Integers(np.concatenate([part.values for part in parts]), np.concatenate([part.missing for part in parts]))


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _shown(value: Any) -> str:
    return f"{type(value).__name__} {value!r:.80}"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(_quoted, names))
