"""Artifacts to one offline HTML file: the answer first, then where the time goes, what was found, and what was run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from reports import schema, units
from reports.artifact import Artifact
from reports.collect import Collection
from reports.pages import page, parts, sheets
from reports.pages.parts import Part
from reports.pages.sheets import Column, Sheet
from reports.tables import faults, joining, tool_runs

TEMPLATE = "profile.html"
FIRST_ROWS = 20  # of the table of the others
_PRIVATE = ("environment", "host", "hostname", "user", "username", "cwd")


@dataclass(frozen=True)
class View:
    """What the template reads."""

    parts: tuple[Part, ...]
    manifests: tuple[Mapping[str, Any], ...] = ()
    left_out: tuple[str, ...] = ()
    ran: tuple[tool_runs.Run, ...] = ()

    @cached_property
    def lead(self) -> Part:
        """The part with the most urgent answer."""
        return self.ordered[0]

    def _place(self, part: Part) -> tuple[int, int]:
        written = [name for run in self.ran for name in schema.texts(run.get("artifacts"))]
        return part.urgency, written.index(part.name) if part.name in written else len(written)

    @property
    def ordered(self) -> list[Part]:
        """The parts, the most urgent first; those as urgent, as their tools ran."""
        return sorted(self.parts, key=self._place)

    @cached_property
    def others(self) -> list[Part]:
        """The parts that are shown one at a time, when they are asked for."""
        return self.ordered[1:]

    @property
    def manifest(self) -> Mapping[str, Any]:
        """Of the one session that all is from; empty if there is none, or there are several."""
        return self.manifests[0] if len(self.manifests) == 1 else {}

    @property
    def verb(self) -> str:
        return schema.text(self.manifest.get("verb")).replace("-", " ") or "report"

    @property
    def subject(self) -> str:
        """What was looked at: the target of a run, or the files that were read."""
        more = f" and {len(self.others)} more" if self.others else ""
        return sheets.public(schema.text(self.manifest.get("target"))) or f"{self.lead.name}{more}"

    @property
    def started(self) -> str:
        return schema.text(self.manifest.get("started"))

    @property
    def overview(self) -> Sheet:
        """One row for each of the others: where it comes from, and what it says."""
        columns = Column("File", "part"), Column("Tool", "text"), Column("What it says", "text")
        rows = tuple(
            ((float(part.key.removeprefix("p")), units.visible(part.name)), units.visible(part.tool),
             units.visible(units.shorten(" · ".join(filter(None, (part.headline, part.detail))), 300)))
            for part in self.others[: sheets.MOST_ROWS]
        )  # fmt: skip
        caption = "The most urgent first. A click shows all of a file below."
        return Sheet("others", "The other files", "file", columns, rows, len(self.others), caption, FIRST_ROWS)

    @property
    def how(self) -> Sheet | None:
        """How the run of each tool went."""
        return tool_runs.sheet(self.ran)

    @property
    def failures(self) -> list[str]:
        """What is missing: tools that failed, and what could not be read."""
        return [sheets.public(note) for note in (*tool_runs.failures(self.ran), *self.left_out)]

    @property
    def notes(self) -> list[str]:
        """All remarks, those of a part under its name where there are several."""
        several = len(self.parts) > 1
        said = [f"{part.name}: {note}" if several else note for part in self.parts for note in part.notes]
        return [sheets.public(note) for note in said]

    @property
    def runs(self) -> list[tuple[str, list[page.Facts]]]:
        """The command line of each session, and its manifest without anything that names a machine or a person."""
        return [(sheets.public(page.command(manifest)), page.group(_public(manifest))) for manifest in self.manifests]

    def draw(self) -> dict[str, go.Figure]:
        """The plotly figures of all parts."""
        return {key: figure for part in self.parts for key, (_, _, figure) in part.figures.items()}


def view(collection: Collection) -> View:
    """The parts of a page."""
    made = tuple(parts.make(artifact, f"p{number}") for number, artifact in enumerate(collection.artifacts))
    shown = View(made, collection.manifests, collection.left_out, tool_runs.of(collection.results))
    if (together := joining.sheet(collection.artifacts)) is not None:
        shown.lead.sheets.append(together)
    listed = faults.of(collection.results)
    shown.lead.detail = shown.lead.detail or sheets.public(faults.launched_in(listed))
    if (found := faults.sheet(listed)) is not None and not _same(found, collection.artifacts):
        shown.lead.fold("findings")  # one row a place says more than one a thread
        shown.lead.sheets.insert(0, found)
    return shown


def _same(found: Sheet, artifacts: Sequence[Artifact]) -> bool:
    """Whether the one artifact's own findings are a row each already."""
    return len(artifacts) == 1 and len(artifacts[0].tables.get("findings", ())) == found.total


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
