"""Bytes to text and JSON for every reader: byte order marks and broken characters are met once, here."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.errors import ArtifactMissing, ParseError

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),  # what `>` writes in PowerShell
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
BLANK = b"\0 \t\r\n\xef\xbb\xbf\xff\xfe"  # byte order marks among them
_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def decode(data: bytes) -> str:
    """Text of bytes in whatever encoding their mark says, else UTF-8; what is neither becomes U+FFFD. UTF-16 without its
    mark (the rest of a file, or a program's own) is known by the zeros in every other byte."""
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding, errors="replace")
    for first, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):
        if (half := data[first:200:2]).count(0) > len(half) // 2 >= 4:
            return data.decode(encoding, errors="replace")
    return data.decode("utf-8", errors="replace")


def read_bytes(path: Path, expected: str) -> bytes:
    """The whole file; an absent, unreadable or empty one is refused, naming what was `expected` in it."""
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise ArtifactMissing(f"{path} does not exist") from error
    except OSError as error:
        raise ParseError(path, "file", f"a file with {expected}", error.strerror or type(error).__name__) from error
    if not (data[:99].strip(BLANK) or data.strip(BLANK)):  # which copies the data
        raise ParseError(path, "content", expected, "0 bytes" if not data else f"{len(data)} bytes, all blank")
    return data


def read_text(path: Path, expected: str) -> tuple[str, tuple[str, ...]]:
    """The text of a log without its colours, and a note on characters that could not be decoded."""
    text = decode(read_bytes(path, expected))
    broken = text.count("�")
    notes = (f"{broken} characters are not valid text and are shown as �",) if broken else ()
    return _COLOURS.sub("", text) if "\x1b" in text else text, notes


def lines(text: str) -> list[str]:
    """Split at line ends alone: `str.splitlines` also splits at the separators that TensorRT uses inside lines."""
    return [line.rstrip("\r") for line in text.split("\n")]


def parse_json(text: str, path: Path, expected: str, repair: Callable[[str], str] | None = None) -> list[Any]:
    """All JSON values that follow each other in a text (TensorRT 7 appends arrays); `repair` is tried if it is none."""
    try:
        return _values(text)
    except ValueError as error:
        if repair is None:
            raise _refused(text, path, expected, error) from error
    except RecursionError as error:
        raise ParseError(path, "content", expected, "brackets nested too deep") from error
    return parse_json(repair(text), path, expected)


def _values(text: str) -> list[Any]:
    decoder = json.JSONDecoder(strict=False)  # admits control characters: Metadata is full of them
    found, at = [], _skip(text, 0)
    while at < len(text):
        value, end = decoder.raw_decode(text, at)
        found.append(value)
        at = _skip(text, end)
    return found


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n\0":
        at += 1
    return at


def _refused(text: str, path: Path, expected: str, error: ValueError) -> ParseError:
    if not isinstance(error, json.JSONDecodeError):  # an integer of too many digits
        return ParseError(path, "content", expected, str(error)[:80])
    got = repr(text[error.pos : error.pos + 40]) if error.pos < len(text) else "the end of the file"
    return ParseError(path, f"line {error.lineno}", f"{expected} ({error.msg})", got)
