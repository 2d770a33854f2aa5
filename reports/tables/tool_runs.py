"""How the run of each tool of a session went, by its result.json: what failed, and what is to be known of the rest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from reports import schema, units
from reports.pages import sheets
from reports.pages.sheets import Sheet

Run = Mapping[str, Any]
_LISTS = ("tools", "ran")  # of result.json: profile's, sanitize's
_WELL = ("ok", "")
_WIDEST = 400


def of(results: Sequence[Mapping[str, Any]]) -> tuple[Run, ...]:
    """The runs that documents `result.json` list; none for those of other verbs."""
    listed = [result[name] for result in results for name in _LISTS if isinstance(result.get(name), list)]
    return tuple(schema.mapping(one) for runs in listed for one in runs)


def failures(runs: Sequence[Run]) -> Iterator[str]:
    """One line for each that did not go well: what happened, and what to type next."""
    for run in runs:
        status, error = schema.text(run.get("status")), schema.text(run.get("error"))
        if status in _WELL:
            continue
        hint = schema.text(run.get("hint"))
        said = error.splitlines()[0] if error and error != status else ""
        words = (
            f"{schema.text(run.get('name'))} {status}",
            f": {said}" if said else "",
            f" (try: {hint})" if hint else "",
        )
        yield units.shorten("".join(words), _WIDEST)


def sheet(runs: Sequence[Run]) -> Sheet | None:
    """The table of a page; None without runs."""
    rows = [
        {
            "tool": schema.text(run.get("name")), "version": schema.text(run.get("version")),
            "outcome": schema.text(run.get("status")), "took_s": schema.real(run.get("duration_s")),
            "program_exit_code": schema.integer(run.get("program_exit_code")),
            "remarks": "; ".join((*schema.texts(run.get("notes")), *schema.text(run.get("error")).splitlines()[:1])),
        }
        for run in runs
    ]  # fmt: skip
    if not rows:
        return None
    titles = {"tool": "Run", "program_exit_code": "Program's exit code"}
    return sheets.make("tool-runs", "How each tool ran", pd.DataFrame(rows), "run", titles=titles)
