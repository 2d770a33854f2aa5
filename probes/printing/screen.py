"""What `probe printf` shows: the verdict, the values thread by thread beside the source, and what printf wrote."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.record import Session
from probes.screen import MOST_ROWS, Shown, cut, report_line
from reports import units
from reports.pages import printed

HEADERS = ("block", "thread", "line", "what", "value", "type", "source")


def show(session: Session, result: Mapping[str, Any]) -> Shown:
    view = printed.read(session)
    yield view.headline
    yield from filter(None, (result["message"], *view.notes))
    rows = [
        (printed.triple(row.block), printed.triple(row.thread), str(row.line), row.tag,
         units.shorten(row.value, 60), row.type, view.line(row))
        for row in view.rows
    ]  # fmt: skip
    yield from cut(HEADERS, rows, str(session.folder / "device_log.csv"), view.total)
    yield from (f"{view.said(one)}{one['text']}" for one in view.printed[:MOST_ROWS])
    if len(view.printed) > MOST_ROWS:
        yield f"{MOST_ROWS} of {len(view.printed)} outputs of printf shown; all of them are in {session.raw / 'printed.txt'}"
    for one in view.findings:
        yield f"{one['kind']} at {one.get('file') or 'an unknown place'}:{one.get('line') or '?'}: {one['message']}"
    yield from report_line(session)
