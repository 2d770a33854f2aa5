"""What verbs show on the screen, as texts and tables that the command line prints: the parts that several of them use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from harness.record import Session

Shown = Iterable[Any]  # texts and tables, from the top to the bottom
MOST_ROWS = 40  # of a table on the screen


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table of plain texts; nothing in them is taken for markup."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(*headers, box=box.SIMPLE_HEAD)
    for row in rows:
        made.add_row(*(Text(cell) for cell in row))
    return made


def cut(headers: Sequence[str], rows: Sequence[Sequence[str]], rest: str, total: int | None = None) -> Shown:
    """A table of the first rows, and where all of them (`total`: more than are here) are if there are more; nothing of
    none."""
    if rows:
        yield table(headers, rows[:MOST_ROWS])
    if len(rows) > MOST_ROWS:
        yield f"{MOST_ROWS} of {total or len(rows)} shown; all of them are in {rest}"


def tool_runs(steps: Iterable[Mapping[str, Any]]) -> Shown:
    """One line a tool's run, and what to type next where it failed."""
    for step in steps:
        version = f" {step['version']}" if step["version"] else ""
        ran = step["duration_s"] or step["status"] != "ok"  # else only notes
        took = f"{version}: {step['status']}, {step['duration_s']:.1f} s" if ran else ""
        yield step["name"] + took
        yield from (f"  {note}" for note in step["notes"])
        if step.get("error"):
            yield f"  {step['error']}"
        if step.get("hint"):
            yield f"  try: {step['hint']}"


def report_line(session: Session) -> Shown:
    """Where the page is, if there is one."""
    page = session.folder / "report.html"
    yield f"report: {page}" if page.is_file() else f"nothing to draw a report of; the logs are in {session.folder}"
