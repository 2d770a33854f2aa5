"""One run that a tool wrote down twice: the richer of the two is kept, so that nothing is counted double.

Only files that a verb of probe wrote side by side, under one stem, are taken for twins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from reports.artifact import Artifact
from reports.readers.sanitizer import difference
from reports.tables import ties

LOGS = (".out", ".err")  # what a program under a tool printed: of interest to people, not to a reader
EXPORTED = {".nsys-rep": ".sqlite", ".qdrep": ".sqlite", ".ncu-rep": ".csv"}
XML, TEXT = "sanitizer-xml", "sanitizer-text"


def superfluous(path: Path) -> bool:
    """Whether a file of a session is nothing to read: a report that has its export beside it, or a file of probe's own."""
    beside = EXPORTED.get(path.suffix)
    return path.name == ties.FILE or (beside is not None and path.with_suffix(beside).is_file())


def is_log(path: Path) -> bool:
    """Whether it is what some program printed: it need not be known to any reader."""
    return path.suffix in LOGS


def combine(artifacts: Sequence[Artifact]) -> list[Artifact]:
    """compute-sanitizer's records as XML with the totals of its text, where both are of one run."""
    texts = {_key(one): one for one in artifacts if one.kind == TEXT and is_log(one.path)}
    both = {key for one in artifacts if one.kind == XML and (key := _key(one)) in texts}
    kept = []
    for one in artifacts:
        key = _key(one)
        if one.kind not in (XML, TEXT) or key not in both or (one.kind == TEXT and not is_log(one.path)):
            kept.append(one)
        elif one.kind == XML:
            text = texts[key]
            cut = text.summary["printed"] > 0 and not one.summary["printed"]
            kept.append(text if cut else _with_totals(one, text))
    return kept


def _key(artifact: Artifact) -> tuple[Path, str]:
    return artifact.path.parent, artifact.path.stem


def _with_totals(xml: Artifact, text: Artifact) -> Artifact:
    """The summary lines are in the text alone: how many errors there were beyond those that were printed."""
    more = {name: value for name, value in text.summary.items() if xml.summary.get(name) is None}
    summary = {**xml.summary, **more}
    notes = [note for note in (*xml.notes, *text.notes) if not note.startswith("the XML has no summary")]
    return replace(xml, summary=summary, notes=tuple(dict.fromkeys((*_but(notes, text), *_missing(summary)))))


def _missing(summary: Mapping[str, Any]) -> list[str]:
    """Where there are not as many records as the tool counted."""
    printed, reported = summary.get("printed"), summary.get("reported")
    if printed is None or reported is None or printed == reported:
        return []
    return [difference(printed, reported, summary.get("not_printed"))]


def _but(notes: Sequence[str], text: Artifact) -> list[str]:
    """The notes less what the text says of its own records, which may all be in the XML alone."""
    own = _missing(text.summary)
    return [note for note in notes if note not in own]
