"""Paths to artifacts: session folders and raw files, mixed; what was left out is said."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import UsageError
from harness.record import Session
from reports.artifact import Artifact
from reports.readers import detect, trtexec_join


@dataclass(frozen=True)
class Collection:
    """What was read, the manifests of the sessions that it came from, and what was left out, in words."""

    artifacts: tuple[Artifact, ...]
    manifests: tuple[dict[str, Any], ...] = ()
    left_out: tuple[str, ...] = ()


def collect(paths: Sequence[Path], tell: Callable[[str], None] = lambda _: None) -> Collection:
    """Read every path. A file that was named must be readable; in a folder, files that no reader knows are left out.

    Raises UsageError for a path that does not exist, ParseError for a file that is not what it should be, or a folder
    that holds nothing to read.
    """
    artifacts: list[Artifact] = []
    manifests: list[dict[str, Any]] = []
    left_out: list[str] = []
    for path in paths:
        if not path.exists():
            raise UsageError(f"{path} does not exist")
        tell(f"reading {path.name}")
        found = detect.read(path)
        artifacts += found.artifacts
        left_out += [f"{file.name} was left out: {why.removeprefix(f'{file}: ')}" for file, why in found.skipped]
        if (path / "manifest.json").is_file():
            manifests.append(Session.open(path).read_json("manifest.json"))
    if len(paths) > 1:
        artifacts = list(trtexec_join.combine(tuple(artifacts)))
    return Collection(tuple(artifacts), tuple(manifests), tuple(left_out))
