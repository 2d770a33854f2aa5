"""A kernel's checks on the processor: out of bounds, races, uninitialised reads and barriers, without a GPU."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from harness.emulation import run as emulated
from harness.emulation.findings import Row, line_of
from harness.record import Session
from probes.sanitizing.settings import ALL, Settings
from probes.targets import kernels as kernel_targets
from probes.targets.kernels import Asked

FINDINGS = "emulation.jsonl"
TIMEOUT_S = 60.0
MOST_THREADS = 50_000  # of a kernel of ours: seconds on a processor, and many blocks all the same
# What each checker asks of the emulation, a run each; barriers and deadlocks it tells in any case.
CHECKS = {"memcheck": ("asan",), "racecheck": ("race",), "initcheck": ("init",), "synccheck": ("none",),
          ALL: ("all", "asan")}  # fmt: skip


def run(settings: Settings, session: Session) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """The file of the findings in raw/, and what is to be said. Raises what loading and compiling the kernel raise."""
    asked = Asked(
        settings.target.words[0], settings.entry, settings.grid, settings.block, settings.shared, settings.args
    )
    loaded = kernel_targets.load(asked, most_threads=MOST_THREADS)
    runs = [
        emulated.run(loaded.steps, loaded.arrays, checks=checks, uninitialised=loaded.written,
                     timeout_s=settings.timeout or TIMEOUT_S)
        for checks in CHECKS[ALL if settings.follow else settings.checker]
    ]  # fmt: skip
    session.raw.mkdir(parents=True, exist_ok=True)
    emulated.write_findings(once(row for done in runs for row in done.findings), session.raw / FINDINGS)
    notes = [f"{loaded.name} on the processor, thread for thread"]
    if not all(done.complete for done in runs):
        notes.append("a finding ended the run: what comes after it was not checked")
    return (session.raw / FINDINGS,), tuple(notes)


def once(rows: Iterable[Row]) -> list[Row]:
    """Each finding as it was told first: two runs that look for different things both tell what they both meet."""
    found: dict[object, Row] = {}
    for row in rows:
        found.setdefault((*line_of(row), row["kind"], row["access"]), row)
    return list(found.values())
