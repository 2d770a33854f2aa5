"""Paths to artifacts: session folders and raw files, mixed; what was left out is said."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness.errors import ArtifactMissing, ParseError, ProbeError, UsageError
from harness.record import Session
from reports.artifact import Artifact
from reports.columns import validate
from reports.readers import detect, trtexec_join
from reports.tables import origins, ties, twins

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Collection:
    """What was read, the manifests of the sessions that it came from, their results, and what was left out, in words."""

    artifacts: tuple[Artifact, ...]
    manifests: tuple[dict[str, Any], ...] = ()
    left_out: tuple[str, ...] = ()
    results: tuple[dict[str, Any], ...] = ()

    def rows(self) -> dict[str, int]:
        """How many rows each table has, over all artifacts."""
        found: Counter[str] = Counter()
        for artifact in self.artifacts:
            found.update(artifact.rows())
        return dict(found)

    def table(self, name: str) -> pd.DataFrame:
        """A table over all artifacts, its columns as in `reports.columns`; `source`, the first, says from which file.

        Ids such as `range_id` count within a source: join by both. Raises UsageError where no artifact has the table.
        """
        found = [artifact for artifact in self.artifacts if name in artifact.tables]
        if not found:
            known = ", ".join(self.rows()) or "none at all"
            raise UsageError(f"there is no table {name!r} here: expected one of {known}")
        sources = np.repeat([str(artifact.path) for artifact in found], [len(one.tables[name]) for one in found])
        frame = found[0].tables[name] if len(found) == 1 else _joined(name, [one.tables[name] for one in found])
        return pd.concat([pd.Series(pd.Categorical(sources), name="source"), frame], axis=1)


def present(path: Path) -> Path:
    """The path, if there is a file or a folder; UsageError if not, also for a name that no file system takes."""
    try:
        path.stat()
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and not isinstance(error, FileNotFoundError) else None
        told = f"{path} cannot be opened: {why}" if why else f"{path} does not exist"
        raise UsageError(told, hint="check the path, and the folder that this is typed in") from error
    return path


def collect(paths: Sequence[Path], tell: Tell = lambda _: None) -> Collection:
    """Read every path. A file that was named must be readable; in a folder, files that no reader knows are left out.

    Raises UsageError for a path that does not exist, ParseError for a file that is not what it should be, or a folder
    that holds nothing to read.
    """
    artifacts: list[Artifact] = []
    manifests: list[dict[str, Any]] = []
    left_out: list[str] = []
    results: list[dict[str, Any]] = []
    for path in map(present, paths):
        if path.is_dir():
            artifacts += _folder(path, left_out, tell)
        else:
            tell(f"reading {path.name}")
            artifacts.append(detect.read(path))
        if (path / "manifest.json").is_file():
            session = Session.open(path)
            manifests.append(session.read_json("manifest.json"))
            results += _result(session, left_out)
    read = trtexec_join.combine(origins.combine(artifacts))
    return Collection(tuple(read), tuple(manifests), tuple(left_out), tuple(results))


def _joined(name: str, tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """One below the other; texts of different files become one set of categories again."""
    return validate(name, pd.concat(tables, ignore_index=True))


def _result(session: Session, left_out: list[str]) -> list[dict[str, Any]]:
    """The session's result.json; nothing of one that is not there yet, or that is broken, which is told."""
    try:
        return [session.read_json("result.json")]
    except ArtifactMissing:
        return []
    except ProbeError as error:
        left_out.append(str(error).removeprefix(f"{session.folder}/"))
        return []


def _folder(folder: Path, left_out: list[str], tell: Tell) -> list[Artifact]:
    """Everything readable in a folder: one unreadable file does not hide the others, but is told."""
    artifacts = []
    way = "probe report FILE"
    before = len(left_out)
    session = (folder / "manifest.json").is_file()
    for path in _files(folder):
        if session and twins.superfluous(path):
            continue
        tell(f"reading {path.name}")
        try:
            artifacts.append(detect.read(path))
        except ProbeError as error:
            if session and twins.is_log(path):
                continue
            left_out.append(f"{path.relative_to(folder)} was left out: {str(error).removeprefix(f'{path}: ')}")
            way = error.hint or way
    if not artifacts:
        unknown = len(left_out) - before
        got = f"{unknown} files of other kinds" if unknown else "no files"
        raise ParseError(folder, "folder", "at least one file that a reader knows", got, hint=way)
    return ties.apply(folder / "raw", twins.combine(artifacts)) if session else artifacts


def _files(folder: Path) -> Iterator[Path]:
    """In order: of a session folder `steps.jsonl` and `raw/`, of any other all files, none of them hidden."""
    if (folder / "manifest.json").is_file():
        candidates = [folder / "steps.jsonl", *sorted((folder / "raw").rglob("*"))]
    else:
        candidates = sorted(folder.rglob("*"))
    for path in candidates:
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts):
            yield path
