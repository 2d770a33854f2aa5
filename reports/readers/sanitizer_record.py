"""One record of compute-sanitizer, whichever format it came in: its words, its places, and its row in `findings`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import PureWindowsPath
from typing import Any

import pandas as pd

from reports.columns import validate

Triple = tuple[int | None, int | None, int | None]
NOWHERE: Triple = (None, None, None)


@dataclass(frozen=True)
class Place:
    """Where in the program: any part may be unknown. `pc` is the offset in the function, hexadecimal."""

    function: str | None = None
    file: str | None = None
    line: int | None = None
    pc: str | None = None


@dataclass(frozen=True)
class Detail:
    """A further line of a record. `role`: `access`, `device` or `host` (frames), `remark` (any other line)."""

    role: str
    text: str | None = None
    place: Place = field(default_factory=Place)
    module: str | None = None
    count: int | None = None  # hazards between this access and the first


@dataclass(frozen=True)
class Record:
    """What the tool printed as one record."""

    message: str
    severity: str = "error"
    place: Place = field(default_factory=Place)
    thread: Triple = NOWHERE
    block: Triple = NOWHERE
    address: str | None = None
    access: str | None = None
    size_bytes: int | None = None
    api: str | None = None
    details: tuple[Detail, ...] = ()


# (pattern, kind, tool that reports it). A group named `a`, `b` fills the kind.
_FAMILIES = tuple(
    (re.compile(pattern), kind, tool)
    for pattern, kind, tool in (
        (r"Invalid (?P<a>__\w+__) (?P<b>\w+)", "Invalid {a} {b}", "memcheck"),
        (r"Uninitialized (?P<a>__\w+__) (?:memory )?(?P<b>\w+)", "Uninitialized {a} memory {b}", "initcheck"),
        (r"Unused memory", "Unused memory", "initcheck"),
        (r"Host API (?:uninitialized )?memory access", "Host API memory access error", "initcheck"),
        (r"Barrier error", "Barrier error", "synccheck"),
        (r"Race (?:reported|condition)", "Race", "racecheck"),
        (r"Potential (?P<a>RAW|WAR|WAW) hazard", "{a} hazard", "racecheck"),
        (r"Leaked ", "Leak", "memcheck"),
        (r"Program hit ", "CUDA API error", "memcheck"),
        (r"Fatal UVM (?P<a>\w+) fault", "UVM {a} fault", "memcheck"),
        (r"Misaligned (?P<a>[\w ]+?) address", "Misaligned {a} address", "memcheck"),
        (r"Out-of-range (?P<a>[\w ]+?) address", "Out-of-range {a} address", "memcheck"),
        (r"(?P<a>Illegal instruction|Stack overflow|Stack canary|Invalid PC|Device-side assert\w*)", "{a}", "memcheck"),
        (r"Malloc/Free error", "Malloc/Free error", "memcheck"),
    )
)
_NUMBER = re.compile(r"\d[\d.,'\u2009\u202f\xa0 ]*(?= bytes)")
_SIZE = re.compile(r"(?:of size|Leaked) (\d[\d.,'\u2009\u202f\xa0]*)")
_HEX = re.compile(r"0x[0-9a-fA-F]+")


def classify(message: str) -> tuple[str, str | None] | None:
    """(kind, tool) of a first line, or None if no record is known that begins so."""
    for pattern, kind, tool in _FAMILIES:
        if found := pattern.match(message):
            return kind.format(**found.groupdict()), tool
    return None


def whole(text: str) -> int | None:
    """16,000 or 16.000 -> 16000: sizes in bytes have no fraction, so whatever separates their digits groups them."""
    digits = re.sub(r"\D", "", text)
    return int(digits) if digits else None


def tidy(message: str) -> str:
    """A first line without what the XML leaves out: grouped digits, the address of a leak, the full stop."""
    message = _NUMBER.sub(lambda found: str(whole(found.group())), message.strip())
    if message.startswith("Leaked "):
        message = re.sub(r" at 0x[0-9a-fA-F]+", "", message, count=1)
    return message.rstrip(" :").removesuffix(".")


def size_of(message: str) -> int | None:
    found = _SIZE.search(message)
    return whole(found.group(1)) if found else None


def address_of(text: str) -> str | None:
    found = _HEX.search(text)
    return found.group().lower() if found else None


def access_of(message: str) -> str | None:
    found = re.match(r"(?:Invalid|Uninitialized) __\w+__ (?:memory )?(\w+)", message)
    return found.group(1) if found else None


def api_of(message: str) -> str | None:
    found = re.search(r"on CUDA API call to (\w+)", message)
    return found.group(1) if found else None


def kernel_name(function: str | None) -> str | None:
    """`void k<(int)4>(int *)` -> `k<(int)4>`: the XML names functions without their parameters."""
    if not function:
        return None
    name = function.strip()
    if name.endswith(")"):
        depth = 0
        for at in range(len(name) - 1, -1, -1):
            depth += (name[at] == ")") - (name[at] == "(")
            if depth == 0:
                break
        cut = name[:at].rstrip()
        name = cut if cut and not cut.endswith("::") else name  # `(anonymous namespace)` is a name
    return name.removeprefix("void ").strip() or None


def file_name(path: str | None) -> str | None:
    """The last part of a path of either kind of system: the text prints no folder, the XML does."""
    return PureWindowsPath(path).name or None if path else None


def said(direction: str, place: Place) -> str:
    """`Write access at race+0x90 in bugs.cu:5`, the same words from either format."""
    name, file = kernel_name(place.function), file_name(place.file)
    at = f"{name}+{place.pc}" if name and place.pc else name or place.pc or "an unknown place"
    where = f" in {file}:{place.line}" if file and place.line is not None else f" in {file}" if file else ""
    return f"{direction.capitalize()} access at {at}{where}"


def race_message(accesses: Iterable[Detail]) -> str:
    """The sentence of a racecheck analysis, of its accesses; hazards are counted from the second on."""
    words = []
    for detail in accesses:
        count = f" [{detail.count} hazard{'s' * (detail.count != 1)}]" if detail.count is not None else ""
        words.append(said(detail.text or "unknown", detail.place) + count)
    return "Race reported between " + " and ".join(words)


def findings(records: list[Record]) -> pd.DataFrame:
    """Table `findings`, one row a record, in the order of the file."""
    return validate("findings", pd.DataFrame([_row(record) for record in records]))


def _row(record: Record) -> dict[str, Any]:
    kind, tool = classify(record.message) or (re.split(r" at 0x| of size|[:.]", record.message)[0][:80], None)
    outermost = [
        detail.place.function for detail in record.details if detail.role == "device" and detail.place.function
    ]
    first = record.details[0] if record.details and record.details[0].role == "access" else None
    return {
        "tool": tool,
        "severity": record.severity,
        "kind": kind,
        "kernel": kernel_name(outermost[-1] if outermost else record.place.function),
        "file": file_name(record.place.file),
        "line": record.place.line,
        **dict(zip(("block_x", "block_y", "block_z"), record.block, strict=True)),
        **dict(zip(("thread_x", "thread_y", "thread_z"), record.thread, strict=True)),
        "address": record.address,
        "access": record.access or (first.text.lower() if first and first.text else access_of(record.message)),
        "size_bytes": record.size_bytes if record.size_bytes is not None else size_of(record.message),
        "api": record.api or api_of(record.message),
        "message": record.message,
        "count": 1,
    }


def finding_details(records: list[Record]) -> pd.DataFrame:
    """Table `finding_details`: all that a row of `findings` has no column for, as the tool wrote it."""
    rows = []
    for index, record in enumerate(records):
        own = Detail("at", place=record.place)
        for position, detail in enumerate(((own,) if record.place != Place() else ()) + record.details):
            rows.append(
                {
                    "finding": index,
                    "position": position,
                    "role": detail.role,
                    "text": detail.text,
                    "function": detail.place.function,
                    "file": detail.place.file,
                    "line": detail.place.line,
                    "pc": detail.place.pc,
                    "module": detail.module,
                    "count": detail.count,
                }
            )
    return validate("finding_details", pd.DataFrame(rows) if rows else pd.DataFrame({"finding": [], "position": []}))
