"""What `probe ladder` shows: every step as a row, the headline, and where everything lies."""

from __future__ import annotations

from harness.record import Session
from probes.screen import Shown, report_line, table
from reports.pages import ladder as told


def show(session: Session) -> Shown:
    view = told.read(session)
    if view.screen[1]:
        yield table(*view.screen)
    yield from (f"{row.said}: {row.note}" for row in view.rows if row.status != "measured")
    yield view.headline
    yield from report_line(session)
