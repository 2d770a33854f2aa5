"""`probe diff`: whether anything got slower between two sides, level by level, and how sure that is."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from harness.errors import EXIT_CLEAN, EXIT_DEFECT, EXIT_UNDECIDED, ProbeError, UsageError
from probes.reading import read
from probes.reporting import plain
from probes.screen import Shown, table
from reports import units
from reports.collect import Collection, present
from reports.pages import diff as diff_page
from reports.tables import comparison
from reports.tables.repetitions import LEVELS, gather

Tell = Callable[[str], None]
_NUMBER = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*(%?)")
_TOLD = ("versions", "gpu", "driver", "clocks", "flavour", "device")  # of a manifest: what may explain a difference
MOST_CHANGES = 20  # of a level, on the screen
_CLOCK = 0.02  # clocks may wander by so much
ONE_RUN = (
    f"a run differs from the next by its clocks and its place in memory: with {comparison.ENOUGH} or more of them a side"
    " (probe diff A1,A2,A3,A4 B1,B2,B3,B4) that is told apart from a change"
)


@dataclass(frozen=True)
class Compared:
    """The JSON document, the table of each level, and the exit code."""

    document: dict[str, Any]
    tables: dict[str, pd.DataFrame]
    runs: tuple[int, int]  # of each side

    @property
    def changed(self) -> bool:
        return any(self.document["verdicts"].get(verdict) for verdict in (comparison.SLOWER, comparison.FASTER))

    @property
    def exit_code(self) -> int:
        """1 if anything got slower beyond the threshold; undecided if no pair could be judged."""
        if self.document["slower_beyond_threshold"]:
            return EXIT_DEFECT
        return EXIT_CLEAN if self.document["judged"] else EXIT_UNDECIDED

    def changes(self) -> Iterator[tuple[str, list[tuple[str, ...]]]]:
        """For the screen: of each level the pairs that changed, what they were and are."""
        for level, pairs in self.tables.items():
            changed = pairs[pairs["verdict"].isin((comparison.SLOWER, comparison.FASTER))].head(MOST_CHANGES)
            if len(changed):
                yield level, [_row(row) for row in changed.to_dict("records")]


def parse_threshold(text: str) -> float:
    """`5%` or `0.05` as a fraction."""
    found = _NUMBER.fullmatch(text.strip())
    if found is None:
        raise UsageError(f"--threshold: expected a share such as 5% or 0.05, got {text!r}")
    return float(found[1]) / (100 if found[2] else 1)


def diff(before: str, after: str, threshold: float, html: Path | None = None, tell: Tell = lambda _: None) -> Compared:
    """Compare two sides; each is a file, a session, a folder of sessions, or several of these with commas between."""
    if html is not None and not html.parent.is_dir():
        raise UsageError(f"the folder {html.parent} does not exist")
    sides = [[read([path], tell) for path in sessions(text)] for text in (before, after)]
    tell("comparing")
    levels = [gather([collection.artifacts for collection in side]) for side in sides]
    options = comparison.Options(threshold=threshold)
    tables = {
        name: comparison.compare(
            levels[0][name].samples(), levels[1][name].samples(), levels[0][name].nodes, levels[1][name].nodes, options
        )
        for name in LEVELS
        if name in levels[0] and name in levels[1]
    }
    if not tables:
        raise ProbeError("there is nothing to compare: the two sides hold no repeated durations of the same kind",
                         hint="probe report on each side shows what it holds")  # fmt: skip
    warnings = list(differences(*sides))
    made = Compared(document(before, after, threshold, tables, warnings), tables, (len(sides[0]), len(sides[1])))
    if html is not None:
        diff_page.write(made.document, tables, html)
    return made


def _row(row: Mapping[Any, Any]) -> tuple[str, ...]:
    change, low, high = (f"{100 * (float(row[name]) - 1):+.1f} %" for name in ("ratio", "ratio_low", "ratio_high"))
    times = (units.seconds(float(row[name]) / 1e9) for name in ("median_before_ns", "median_after_ns"))
    return (units.shorten(units.visible(str(row["name"])), 80), str(row["verdict"]), change, f"{low} .. {high}", *times)


def show(made: Compared, html: Path | None) -> Shown:
    """The headline, what was not the same, every change, and where the page is."""
    yield made.document["headline"]
    yield from (f"not the same on both sides: {warning}" for warning in made.document["warnings"])
    for level, rows in made.changes():
        yield table((level, "verdict", "change", "95 % interval", "before", "after"), rows)
    if made.changed and min(made.runs) < comparison.ENOUGH:
        yield ONE_RUN
    if html is not None:
        yield f"report: {html}"


def sessions(text: str) -> list[Path]:
    """A path, or several with commas between; a folder of session folders stands for all of them."""
    try:
        named = [present(Path(text))]
    except UsageError:
        if "," not in text:
            raise
        named = [present(Path(part)) for part in text.split(",") if part]
    return [session for path in named for session in _inside(path)]


def _inside(path: Path) -> list[Path]:
    if not path.is_dir() or (path / "manifest.json").is_file():
        return [path]
    return [folder.parent for folder in sorted(path.glob("*/manifest.json"))] or [path]


def document(
    before: str, after: str, threshold: float, tables: Mapping[str, pd.DataFrame], warnings: Sequence[str]
) -> dict[str, Any]:
    """The result as JSON values: counts of verdicts, and the rows of each level."""
    rows = [row for table in tables.values() for row in table.to_dict("records")]
    verdicts = [str(row["verdict"]) for row in rows]
    slower = sum(row["beyond_threshold"] is True for row in rows)
    judged = sum(verdict in (comparison.SLOWER, comparison.FASTER, comparison.NOTHING) for verdict in verdicts)
    latency = _latency(tables)
    return {
        "before": before,
        "after": after,
        "threshold": threshold,
        "headline": _headline(slower, judged, verdicts, threshold, latency),
        "latency": latency,
        "slower_beyond_threshold": slower,
        "judged": judged,
        "verdicts": {verdict: verdicts.count(verdict) for verdict in sorted(set(verdicts))},
        "warnings": list(warnings),
        "levels": {name: plain(table.to_dict("records")) for name, table in tables.items()},
    }


def _latency(tables: Mapping[str, pd.DataFrame]) -> dict[str, Any] | None:
    """What became of a whole inference, where both sides measured that and nothing else at its level."""
    rows = tables["iterations"].to_dict("records") if "iterations" in tables else []
    if len(rows) != 1 or rows[0]["ratio"] != rows[0]["ratio"]:
        return None
    return {key: rows[0][key] for key in ("name", "verdict", "ratio", "median_before_ns", "median_after_ns")}


def _headline(
    slower: int, judged: int, verdicts: Sequence[str], threshold: float, latency: Mapping[str, Any] | None
) -> str:
    limit = f"by more than {units.percent(threshold)}" if threshold else ""
    if slower:
        return f"{units.count(slower)} of {units.count(judged)} compared got slower {limit}".rstrip()
    if not judged:
        return f"Nothing can be told: {units.plural(len(verdicts), 'pair')}, each with too few repetitions or on one side only"
    faster = verdicts.count(comparison.FASTER)
    smaller = verdicts.count(comparison.SLOWER)
    if not faster and not smaller:
        return f"No evidence of a change in {units.count(judged)} compared"
    if latency and latency["verdict"] == comparison.FASTER:
        saved = units.percent(1 - latency["ratio"])
        return f"The {latency['name']} fell by {saved}; nothing got slower {limit or 'beyond doubt'}"
    changed = ", ".join(filter(None, (f"{faster} faster" if faster else "", f"{smaller} slower" if smaller else "")))
    return f"Nothing got slower {limit or 'beyond doubt'}; {changed} of {units.count(judged)} compared"


def differences(before: Sequence[Collection], after: Sequence[Collection]) -> Iterator[str]:
    """What differs between the sides and may explain a change of times, or forbids comparing them."""
    sides = [_facts(side) for side in (before, after)]
    for name in sorted(sides[0].keys() | sides[1].keys()):
        one, other = (side.get(name, set()) for side in sides)
        if one and other and one != other and not _near(name, one, other):
            yield f"{name}: {', '.join(sorted(one))} before, {', '.join(sorted(other))} after"


def _near(name: str, one: set[str], other: set[str]) -> bool:
    """Clocks that differ by no more than they wander."""
    if "clock" not in name and not name.endswith("_hz"):
        return False
    try:
        numbers = [float(value) for value in one | other]
    except ValueError:
        return False
    return max(numbers) - min(numbers) <= _CLOCK * max(numbers)


def _facts(side: Sequence[Collection]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}

    def add(name: str, value: Any) -> None:
        if value is not None and value is not pd.NA and value != "":
            found.setdefault(name, set()).add(str(value))

    for collection in side:
        for artifact in collection.artifacts:
            add(f"{artifact.tool} version", artifact.tool_version)
            add("conditions of trtexec", artifact.summary.get("comparable_group"))
            devices = artifact.tables.get("devices")
            for row in [] if devices is None else devices.to_dict("records"):
                for key in ("gpu", "clock_hz"):
                    add(f"device {row.get('device_id')} {key}", row.get(key))
        for manifest in collection.manifests:
            for name in _TOLD:
                for key, value in _leaves(name, manifest.get(name)):
                    add(key, value)
    return found


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(f"{name} {key}", item)
    elif not isinstance(value, list):
        yield name, value
