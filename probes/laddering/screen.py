"""What `probe ladder` shows: every step as a row, what is to be known of the others, the headline, where everything lies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from harness.record import Session
from probes.screen import Shown, report_line, table
from reports.pages import ladder as told


def show(session: Session) -> Shown:
    view = told.read(session)
    if view.screen[1]:
        yield table(*view.screen)
    yield from _remarks([row for row in view.rows if row.note and (row.route != "kernels" or row.status != "measured")])
    yield view.headline
    yield from report_line(session)
    if view.status == "interrupted" and view.kind == "bert":
        yield f"probe ladder bert --resume {session.folder} goes on"


def _remarks(rows: Sequence[told.Row]) -> Iterator[str]:
    """What another route ran on, or why a step is missing: once, for all the steps of a route that it is said of."""
    said: dict[tuple[str, str], list[told.Row]] = {}
    for row in rows:
        said.setdefault((row.route_title, row.note), []).append(row)
    for (route, note), those in said.items():
        named = those[0].said if len(those) == 1 else f"{', '.join(row.title for row in those)} ({route})"
        yield f"{named}: {note}"
