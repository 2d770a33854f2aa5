"""`probe report`: whatever the tools wrote, as one HTML page, as JSON, as tables, as a trace for Perfetto."""

from __future__ import annotations

import importlib.util
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness.errors import UsageError
from harness.record import Session
from probes.reading import read
from reports import perfetto, units
from reports.artifact import Artifact
from reports.collect import Collection, present
from reports.pages import page
from reports.pages import profile as profile_page
from reports.tables import origins

PAGE = "report.html"
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Wanted:
    """What to read and what to write. With nothing to write, `html` is report.html of the session, or here."""

    paths: tuple[Path, ...]
    html: Path | None = None
    tables: Path | None = None
    perfetto: Path | None = None


@dataclass(frozen=True)
class Reported:
    """The JSON document, and what to say on the screen."""

    document: dict[str, Any]
    lines: tuple[str, ...]


def report(wanted: Wanted, tell: Tell = lambda _: None, *, only_json: bool = False) -> Reported:
    """Read everything, write what is wanted. `only_json`: the document is what was asked for, no page by default."""
    _check(wanted)
    for path in wanted.paths:
        present(path)
    if (session := _bisection(wanted.paths)) is not None and wanted.tables is wanted.perfetto is None and not only_json:
        return _bisect_page(session, wanted.html, tell)
    collection = read(wanted.paths, tell)
    lines = [line for artifact in collection.artifacts for line in describe(artifact)]
    lines += collection.left_out
    html = wanted.html
    if html is None and wanted.tables is wanted.perfetto is None and not only_json:
        html = _default(wanted.paths)
    if html is not None:
        tell("drawing the page")
        lines.append(f"report: {profile_page.write(collection, html)}")
    if wanted.tables is not None:
        tell("writing the tables")
        lines += write_tables(collection.artifacts, wanted.tables)
    if wanted.perfetto is not None:
        tell("writing the trace")
        lines.append(_trace(collection.artifacts, wanted.perfetto))
    return Reported(document(collection), tuple(lines))


def document(collection: Collection) -> dict[str, Any]:
    """The result as JSON values."""
    artifacts = [
        {"path": str(artifact.path), "kind": artifact.kind, "tool": artifact.tool, "tool_version": artifact.tool_version,
         "tables": artifact.rows(), "summary": plain(artifact.summary), "notes": list(artifact.notes)}
        for artifact in collection.artifacts
    ]  # fmt: skip
    return {"artifacts": artifacts, "left_out": list(collection.left_out)}


def plain(value: Any) -> Any:
    """Numbers of NumPy as Python's; what is missing, NaN among it, as null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if value is pd.NA or value is pd.NaT:
        return None
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and math.isnan(value) else value


def describe(artifact: Artifact) -> Iterator[str]:
    """A few lines for the screen."""
    rows = ", ".join(f"{name} {units.count(rows)}" for name, rows in artifact.rows().items() if rows)
    tool = " ".join(filter(None, (artifact.tool, artifact.tool_version)))
    yield f"{artifact.path.name} ({tool}): {rows or 'no rows'}"
    if ties := artifact.summary.get("ties"):
        yield f"  GPU time tied to ONNX nodes: {origins.spoken(ties)}"
    yield from (f"  {note}" for note in artifact.notes)


def write_tables(artifacts: Sequence[Artifact], folder: Path) -> list[str]:
    """A CSV and a Parquet file of every table; with several artifacts, each in a folder of its own."""
    said = []
    parquet = _has_parquet()
    for artifact, place in zip(artifacts, _folders(artifacts, folder), strict=True):
        _make(place)
        for name, table in artifact.tables.items():
            _as_text(table).to_csv(place / f"{name}.csv", index=False, lineterminator="\n")
            if parquet:
                _as_lists(table).to_parquet(place / f"{name}.parquet", index=False)
        said.append(
            f"tables: {place} ({units.plural(len(artifact.tables), 'table')}, CSV{' and Parquet' if parquet else ''})"
        )
    if not parquet:
        said.append("Parquet needs pyarrow, which is not installed: pip install pyarrow")
    return said


def _has_parquet() -> bool:
    return importlib.util.find_spec("pyarrow") is not None


def _folders(artifacts: Sequence[Artifact], folder: Path) -> list[Path]:
    """The folder itself for one artifact; else one each, named after the file, numbered where names repeat."""
    if len(artifacts) == 1:
        return [folder]
    seen: dict[str, int] = {}
    places = []
    for artifact in artifacts:
        name = re.sub(r"[^\w.+-]", "_", artifact.path.name) or "artifact"
        seen[name] = seen.get(name, 0) + 1
        places.append(folder / (name if seen[name] == 1 else f"{name}-{seen[name]}"))
    return places


def _as_text(table: pd.DataFrame) -> pd.DataFrame:
    """Lists of names as JSON, which any reader can take apart again."""
    lists = _lists(table)
    return table.assign(
        **{name: table[name].map(lambda names: json.dumps(list(names), ensure_ascii=False)) for name in lists}
    )


def _as_lists(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(**{name: table[name].map(list) for name in _lists(table)})


def _lists(table: pd.DataFrame) -> list[str]:
    return [str(name) for name in table if len(table) and isinstance(table[name].iloc[0], tuple)]


def _trace(artifacts: Sequence[Artifact], path: Path) -> str:
    traced = [artifact for artifact in artifacts if any(len(artifact.tables.get(name, ())) for name in perfetto.TRACED)]
    if not traced:
        raise UsageError("--perfetto needs a trace with times (nsys); none of the artifacts is one")
    return f"trace: {path} ({units.count(perfetto.write(traced, path))} events; open it at ui.perfetto.dev)"


def _check(wanted: Wanted) -> None:
    """Refuse what cannot be written before the reading begins."""
    for path in (wanted.html, wanted.perfetto):
        if path is not None and not path.parent.is_dir():
            raise UsageError(f"the folder {path.parent} does not exist")
    if wanted.tables is not None:
        _make(wanted.tables)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder} cannot be made: {error.strerror}") from error


def _default(paths: Sequence[Path]) -> Path:
    """Into the session if there is just one, else here."""
    only = paths[0] if len(paths) == 1 else None
    return only / PAGE if only is not None and (only / "manifest.json").is_file() else Path(PAGE)


def _bisection(paths: Sequence[Path]) -> Session | None:
    """The session, if the only path is one whose verb has a page of its own."""
    if len(paths) != 1 or not (paths[0] / "manifest.json").is_file():
        return None
    session = Session.open(paths[0])
    return session if session.read_json("manifest.json").get("verb") in page.VIEWS else None


def _bisect_page(session: Session, html: Path | None, tell: Tell) -> Reported:
    tell("drawing the page")
    return Reported({"artifacts": [], "left_out": []}, (f"report: {page.write(session, html)}",))
