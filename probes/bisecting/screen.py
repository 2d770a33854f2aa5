"""What `probe bisect` shows: the verdict, the culprits, and where everything lies."""

from __future__ import annotations

from harness.record import Session
from probes.screen import Shown, cut, report_line
from reports import units
from reports.pages import bisection as told


def show(session: Session) -> Shown:
    run = told.read(session)
    yield run.headline
    yield run.facts
    titles = (run.noun, "kind" if run.of_source else "op", "scope", *(("sensitivity",) if run.measured else ()))
    rows = [
        (c.node, c.op_type, c.scope, "" if c.sensitivity is None else units.percent(c.sensitivity))[: len(titles)]
        for c in run.culprits
    ]
    yield from cut(titles, rows, "the report")
    if undecided := run.texts("undecided"):
        yield f"{len(undecided)} could not be judged: {', '.join(undecided[:3])}{' ...' if len(undecided) > 3 else ''}"
    yield from run.texts("notes")
    if model_out := run.text("model_out"):
        yield f"{'source:' if run.of_source else 'model: '} {session.folder / model_out}"
    yield from report_line(session)
