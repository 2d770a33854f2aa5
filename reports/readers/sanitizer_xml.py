"""The XML of compute-sanitizer (`--xml --save FILE`): records as the text would say them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree.ElementTree import Element, XMLPullParser
from xml.etree.ElementTree import ParseError as XmlError

from harness.errors import ParseError
from reports.readers.decoding import decode
from reports.readers.sanitizer_record import NOWHERE, Detail, Place, Record, Triple, race_message, tidy, whole

ROOT = "ComputeSanitizerOutput"


@dataclass
class Export:
    """The records of one file; `cut_off` says where it ended too early, `unknown` what was not understood."""

    records: list[Record] = field(default_factory=list)
    cut_off: str | None = None
    unknown: dict[str, int] = field(default_factory=dict)


def parse(data: bytes, path: Path) -> Export:
    """All whole records; a document type is refused (entities could blow it up), and so is another root."""
    text = decode(data)  # as text it is read whatever encoding it says that it has
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise ParseError(path, "content", "XML without a document type", "<!DOCTYPE or <!ENTITY")
    export = Export()
    for document in re.split(r"(?=<\?xml\s)", text):
        if document.strip():
            _document(document, path, export)
    return export


def _document(data: str, path: Path, export: Export) -> None:
    parser: XMLPullParser[Element] = XMLPullParser(["start", "end"])
    depth, rooted = 0, False
    try:
        parser.feed(data)
        parser.close()
    except (XmlError, LookupError, ValueError) as error:  # LookupError: an encoding that Python does not know
        export.cut_off = str(error)
    for event, element in _events(parser):
        depth += 1 if event == "start" else -1
        if event == "start" and depth == 1:
            rooted = element.tag == ROOT
            if not rooted:
                raise ParseError(path, "root element", f"<{ROOT}>", f"<{element.tag}>")
        elif event == "end" and depth == 1:
            _child(element, export)
            element.clear()
    if not rooted:
        raise ParseError(path, "root element", f"<{ROOT}>", export.cut_off or "none")


def _events(parser: XMLPullParser[Element]) -> Iterator[tuple[str, Element]]:
    """What was read up to the first error."""
    try:
        yield from parser.read_events()  # type: ignore[misc]
    except XmlError:
        return


def _child(element: Element, export: Export) -> None:
    if element.tag == "record":
        export.records.append(record(element))
    else:
        export.unknown[element.tag] = export.unknown.get(element.tag, 0) + 1


def record(element: Element) -> Record:
    """A `record` element."""
    what = element.find("what")
    what = Element("what") if what is None else what
    accesses = tuple(_access(part) for part in what if part.tag in ("source", "destination"))
    text = tidy(_text(what, "text") or _text(element, "kind") or "record without a text")
    if text == "Race condition" and accesses:
        text = race_message(accesses)
    elif text == "Barrier error" and (cause := _text(what, "type")):
        text = tidy(f"{text} detected. {cause}")
    size = _text(what, "size")
    return Record(
        message=text,
        severity=(_text(element, "level") or "Error").lower(),
        place=_place(element.find("where")) if element.find("where") is not None else _first(accesses),
        thread=_triple(element.find("who/threadIdx")),
        block=_triple(element.find("who/blockIdx")),
        address=(_text(what, "address") or _text(what, "accessAddress") or "").lower() or None,
        access=(_text(what, "direction") or "").lower() or None,
        size_bytes=whole(size) if size else None,
        api=_text(what, "api"),
        details=accesses + _frames(element, "device") + _frames(element, "host") + _remarks(what),
    )


def _first(accesses: tuple[Detail, ...]) -> Place:
    return accesses[0].place if accesses else Place()


def _access(element: Element) -> Detail:
    count = _text(element, "count")
    return Detail(
        "access", _text(element, "direction"), _place(element.find("where")), count=whole(count) if count else None
    )


def _frames(element: Element, side: str) -> tuple[Detail, ...]:
    return tuple(
        Detail(side, place=_place(frame), module=_text(frame, "module"))
        for frame in element.findall(f"{side}Stack/frame")
    )


_USED = {"text", "source", "destination", "size", "address", "accessAddress", "direction", "api", "space"}


def _remarks(what: Element) -> tuple[Detail, ...]:
    """What else the element says, as `name: value`."""
    return tuple(
        Detail("remark", f"{part.tag}: {part.text.strip()}")
        for part in what
        if part.tag not in _USED and part.text and part.text.strip()
    )


def _place(element: Element | None) -> Place:
    if element is None:
        return Place()
    line = _text(element, "line")
    return Place(_text(element, "func"), _text(element, "path"), whole(line) if line else None, _text(element, "pc"))


def _triple(element: Element | None) -> Triple:
    if element is None:
        return NOWHERE
    x, y, z = (whole(_text(element, axis) or "") for axis in "xyz")
    return x, y, z


def _text(element: Element, name: str) -> str | None:
    text = element.findtext(name)
    return text.strip() or None if text else None
