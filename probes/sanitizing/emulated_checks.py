"""A kernel's checks on the processor: out of bounds, races, uninitialised reads and barriers, without a GPU."""

from __future__ import annotations

from pathlib import Path

from harness.emulation import run as emulated
from harness.record import Session
from probes.sanitizing.settings import ALL, Settings
from probes.targets import kernels as kernel_targets
from probes.targets.kernels import Asked

FINDINGS = "emulation.jsonl"
TIMEOUT_S = 60.0
# What each checker asks of the emulation; barriers and deadlocks it tells in any case.
CHECKS = {"memcheck": ("memory",), "racecheck": ("race",), "initcheck": ("init",), "synccheck": (), ALL: emulated.ALL}


def run(settings: Settings, session: Session) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """The file of the findings in raw/, and what is to be said. Raises what loading and compiling the kernel raise."""
    asked = Asked(
        settings.target.words[0], settings.entry, settings.grid, settings.block, settings.shared, settings.args
    )
    loaded = kernel_targets.load(asked)
    checks = CHECKS[ALL if settings.follow else settings.checker]
    done = emulated.run(
        loaded.steps, loaded.arrays, checks=checks, uninitialised=loaded.written,
        timeout_s=settings.timeout or TIMEOUT_S, folder=session.raw,
    )  # fmt: skip
    notes = [f"{loaded.name} on the processor, thread for thread"]
    if not done.complete:
        notes.append("a finding ended the run: what comes after it was not checked")
    return (session.raw / FINDINGS,), tuple(notes)
