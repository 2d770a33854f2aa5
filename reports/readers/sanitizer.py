"""compute-sanitizer and cuda-memcheck, text and XML: one row a record, and the summary's own count beside it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd

from harness.errors import ParseError
from reports.artifact import Artifact
from reports.columns import empty
from reports.readers import decoding, sanitizer_text, sanitizer_xml
from reports.readers.sanitizer_record import Record, classify, finding_details, findings
from reports.readers.sanitizer_text import Log, Summary

EXPECTED = "lines of compute-sanitizer (=========) or <ComputeSanitizerOutput>"
_TARGET = re.compile(r"[Tt]arget application|process didn't terminate|terminated before|No attachable process")
_SIGNS = re.compile(
    r"={9} +(?:COMPUTE-SANITIZER|CUDA-MEMCHECK|\w* ?SUMMARY: \d|Target application|Error: |Internal Sanitizer)"
)


def sniff(path: Path, head: bytes) -> bool:
    """By the root element, or by a line that only these tools print."""
    return is_xml(head) or is_text(decoding.decode(head))


def is_xml(head: bytes) -> bool:
    return f"<{sanitizer_xml.ROOT}" in decoding.decode(head[:4096])


def is_text(text: str) -> bool:
    """Whether a banner, a summary or the first line of a record stands in a text."""
    if "=========" not in text:
        return False
    if _SIGNS.search(text):
        return True
    return any(classify(content.strip()) for _, content in sanitizer_text.statements(text))


def read(path: Path) -> Artifact:
    """Either format; a file in which the tool says nothing is refused."""
    data = decoding.read_bytes(path, EXPECTED)
    if is_xml(data):
        return _read_xml(path, data)
    text, notes = decoding.read_text(path, EXPECTED)
    return from_text(path, text, notes)


def from_text(path: Path, text: str, notes: tuple[str, ...] = ()) -> Artifact:
    """The records in a text that may hold much else."""
    log = sanitizer_text.parse(text)
    if not (log.records or log.banners or log.summaries or log.notices):
        raise ParseError(path, "content", EXPECTED, repr(text[:60]))
    table = _table(log.records)
    summary = {
        **_counts(table, _reported(log.summaries)),
        **_totals(log.summaries),
        "runs": max(1, len(log.banners)),
        "complete": _complete(log),
        "target": [notice for notice in log.notices if _TARGET.search(notice)],
    }
    tool = "cuda-memcheck" if log.banners and set(log.banners) == {"CUDA-MEMCHECK"} else "compute-sanitizer"
    return _artifact(path, "sanitizer-text", tool, table, log.records, summary, (*notes, *_notes(log, summary)))


def _read_xml(path: Path, data: bytes) -> Artifact:
    export = sanitizer_xml.parse(data, path)
    notes = ["the XML has no summary: how many errors the tool counted stands in its text alone"]
    if export.cut_off:
        notes.append(f"the file ends too early ({export.cut_off}): {len(export.records)} whole records were read")
    notes += [f"{count} elements <{tag}> are not known and were left out" for tag, count in export.unknown.items()]
    table = _table(export.records)
    summary = {**_counts(table, None), "complete": export.cut_off is None}
    if not export.records:
        notes.append("no record: the tool found nothing, or the target made no CUDA call")
    return _artifact(path, "sanitizer-xml", "compute-sanitizer", table, export.records, summary, tuple(notes))


def _table(records: list[Record]) -> pd.DataFrame:
    return findings(records) if records else empty("findings")


def _artifact(
    path: Path,
    kind: str,
    tool: str,
    table: pd.DataFrame,
    records: list[Record],
    summary: dict[str, Any],
    notes: tuple[str, ...],
) -> Artifact:
    tables = {"findings": table, "finding_details": finding_details(records)}
    return Artifact(path, kind, tool, None, tables, summary, notes)


def _counts(table: pd.DataFrame, reported: int | None) -> dict[str, Any]:
    counts = {
        f"by_{column}": {str(value): int(count) for value, count in table[column].value_counts().items()}
        for column in ("kind", "severity", "tool")
    }
    return {"printed": len(table), "reported": reported, **counts}


def _reported(summaries: list[Summary]) -> int | None:
    counts = [summary.reported for summary in summaries if summary.reported is not None]
    return sum(counts) if counts else None


def _totals(summaries: list[Summary]) -> dict[str, Any]:
    """The other figures of the summaries, where there are any."""
    totals: dict[str, int] = {}
    for name in ("not_printed", "displayed", "errors", "warnings", "leaked_bytes", "leaked_allocations"):
        values = [value for summary in summaries if (value := getattr(summary, name)) is not None]
        if values:
            totals[name] = sum(values)
    return totals


def _complete(log: Log) -> bool:
    return sum(summary.reported is not None for summary in log.summaries) >= max(1, len(log.banners))


def _notes(log: Log, summary: dict[str, Any]) -> list[str]:
    printed, reported = summary["printed"], summary["reported"]
    with_count = sum(one.reported is not None for one in log.summaries)
    notes = [
        f"the tool says: {text}" + (f" ({count} times)" if count > 1 else "") for text, count in log.notices.items()
    ]
    if reported is None:
        notes.append("no summary: the tool was killed, the target died before any CUDA call, or the log was cut")
    elif with_count < len(log.banners):
        notes.append(f"{with_count} of {len(log.banners)} runs have a summary: the others were killed or cut")
    if reported is not None and reported != printed:
        notes.append(difference(printed, reported, summary.get("not_printed")))
    if with_count > 1:
        notes.append(f"{with_count} summaries: their counts are added")
    if reported == 0 and summary["target"]:
        notes.append("0 errors, but the target did not end well: what it did not run was not checked")
    if log.orphans:
        notes.append(f"{log.orphans} lines belong to no record: output of several processes is interleaved")
    if log.cut_off:
        notes.append("the text ends within a record")
    return notes


def difference(printed: int, reported: int, not_printed: int | None) -> str:
    """What to say where records and the tool's own count of them are not the same number."""
    if printed > reported:
        return f"{printed} records are printed, and the summary counts {reported}"
    left_out = f": the tool left {not_printed} out (--print-limit)" if not_printed else ""
    return f"{printed} of {reported} findings are printed{left_out}"
