"""Bytes to text and JSON for every reader: byte order marks, broken characters and broken JSON are met once, here."""

from __future__ import annotations

import codecs
import json
import re
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
_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def decode(data: bytes) -> str:
    """Text of bytes in whatever encoding their mark says, else UTF-8; what is neither becomes U+FFFD."""
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding, errors="replace")
    return data.decode("utf-8", errors="replace")


def read_bytes(path: Path, expected: str) -> bytes:
    """The whole file; an absent, unreadable or empty one is refused, naming what was `expected` in it."""
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise ArtifactMissing(f"{path} does not exist") from error
    except OSError as error:
        raise ParseError(path, "file", f"a file with {expected}", error.strerror or type(error).__name__) from error
    if not data.strip(b"\0 \t\r\n"):
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


def parse_json(text: str, path: Path, expected: str) -> list[Any]:
    """All JSON values that follow each other in a text (TensorRT 7 appends arrays); unescaped names are repaired."""
    try:
        return _values(text)
    except RecursionError as error:
        raise ParseError(path, "content", expected, "brackets nested too deep") from error
    except ValueError:
        pass
    try:
        return _values(_repaired(text))
    except (ValueError, RecursionError):
        return _refuse(text, path, expected)


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


def _refuse(text: str, path: Path, expected: str) -> list[Any]:
    try:
        return _values(text)
    except json.JSONDecodeError as error:
        got = repr(text[error.pos : error.pos + 40]) if error.pos < len(text) else "the end of the file"
        raise ParseError(path, f"line {error.lineno}", f"{expected} ({error.msg})", got) from error


_CLOSES = re.compile(r'"\s*(?:[:}\]]|$|,\s*(?:["{\[\-0-9]|true|false|null))')
_ESCAPE = re.compile(r'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})')
_STRING = re.compile(r'[^"\\]+')


def _repaired(text: str) -> str:
    """Escape the quotes and backslashes that trtexec leaves as they are in layer names.

    A quote inside a string ends it only if what follows is what follows a string in JSON.
    """
    out: list[str] = []
    at, inside = 0, False
    while at < len(text):
        char = text[at]
        if not inside:
            end = text.find('"', at)
            end = len(text) if end < 0 else end
            out.append(text[at : end + 1])
            at, inside = end + 1, True
        elif char == '"':
            inside = _CLOSES.match(text, at) is None
            out.append('\\"' if inside else '"')
            at += 1
        elif char == "\\":
            escape = _ESCAPE.match(text, at)
            out.append(escape.group() if escape else "\\\\")
            at = escape.end() if escape else at + 1
        else:
            plain = _STRING.match(text, at)
            assert plain is not None
            out.append(plain.group())
            at = plain.end()
    return "".join(out)
