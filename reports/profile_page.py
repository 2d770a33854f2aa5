"""Artifacts to one offline HTML file: the answer first, then where the time goes, what was found, and what was run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from reports import page, parts, schema, sheets
from reports.collect import Collection
from reports.parts import Part

TEMPLATE = "profile.html"
MOST_OPEN = 3  # parts; of more only the first has its tables open
_PRIVATE = ("environment", "host", "hostname", "user", "username", "cwd")


@dataclass(frozen=True)
class View:
    """What the template reads."""

    parts: tuple[Part, ...]
    manifests: tuple[Mapping[str, Any], ...] = ()
    left_out: tuple[str, ...] = ()

    @cached_property
    def lead(self) -> Part:
        """The part with the most urgent answer."""
        return min(self.parts, key=lambda part: part.urgency)

    @property
    def ordered(self) -> list[Part]:
        """The parts, the most urgent first."""
        return sorted(self.parts, key=lambda part: part.urgency)

    @property
    def notes(self) -> list[str]:
        """All remarks, those of a part under its name where there are several."""
        several = len(self.parts) > 1
        said = [f"{part.name}: {note}" if several else note for part in self.parts for note in part.notes]
        return [sheets.public(note) for note in (*said, *self.left_out)]

    @property
    def runs(self) -> list[tuple[str, list[page.Facts]]]:
        """The command line of each session, and its manifest without anything that names a machine or a person."""
        return [(sheets.public(page.command(manifest)), page.group(_public(manifest))) for manifest in self.manifests]

    def draw(self) -> dict[str, go.Figure]:
        """The plotly figures of all parts."""
        return {key: figure for part in self.parts for key, (_, _, figure) in part.figures.items()}


def view(collection: Collection) -> View:
    """The parts of a page."""
    made = [parts.make(artifact, f"p{number}") for number, artifact in enumerate(collection.artifacts)]
    if len(made) > MOST_OPEN:
        lead = min(made, key=lambda part: part.urgency)
        for part in made:
            part.sheets = [replace(sheet, secondary=sheet.secondary or part is not lead) for sheet in part.sheets]
    return View(tuple(made), collection.manifests, collection.left_out)


def render(collection: Collection) -> str:
    """The page as HTML text."""
    made = view(collection)
    return page.assemble(
        TEMPLATE, made.draw(), view=made, inert=page.inert,
        styles=("style.css", "profile.css"), scripts=("page.js", "profile.js"),
    )  # fmt: skip


def write(collection: Collection, path: Path) -> Path:
    """Write the page, whole or not at all."""
    return page.save(path, render(collection))


def _public(manifest: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _public(value) if isinstance(value, Mapping) else value for key, value in manifest.items()
            if schema.text(key).lower() not in _PRIVATE}  # fmt: skip
