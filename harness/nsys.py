"""Nsight Systems on the command line: its reports exported to SQLite, which is what can be read."""

from __future__ import annotations

import shutil
from pathlib import Path

from harness import process
from harness.errors import ArtifactMissing, ToolFailed, ToolMissing, ToolTimeout
from harness.record import Command

REPORTS = (".nsys-rep", ".qdrep")
EXPORT_TIMEOUT_S = 1800.0  # gigabytes of report take minutes


def export_command(report: Path, sqlite: Path) -> Command:
    """`nsys export` with options that 2021 to 2026 have in common."""
    words = ("nsys", "export", "--type", "sqlite", "--force-overwrite", "true", "--output", str(sqlite), str(report))
    return Command(words, EXPORT_TIMEOUT_S)


def export(report: Path, folder: Path) -> Path:
    """Export a report into `folder`; returns the SQLite file.

    Raises ToolMissing without nsys on PATH, ToolFailed or ToolTimeout with what nsys said, ArtifactMissing if it ended
    well and wrote nothing.
    """
    sqlite = folder / f"{report.stem}.sqlite"
    command = export_command(report.absolute(), sqlite)
    if shutil.which("nsys") is None:
        raise ToolMissing("nsys", f"to export {report.name} to SQLite",
                          f"where nsys is: nsys export --type sqlite {report.name}; then probe report {sqlite.name}")  # fmt: skip
    run = process.run(command, folder / f"{report.stem}.export")
    if run.timed_out:
        raise ToolTimeout(f"nsys export of {report.name} was stopped after {EXPORT_TIMEOUT_S:g} s", run)
    if not run.ok:
        said = process.tail(run.stderr, 5) or process.tail(run.stdout, 5)
        how = f"signal {run.signal}" if run.signal is not None else f"exit code {run.returncode}"
        raise ToolFailed(
            f"nsys export of {report.name} failed ({how}): {said}", run, hint="probe doctor shows the version of nsys"
        )
    if not sqlite.is_file():
        raise ArtifactMissing(f"nsys export of {report.name} ended well but wrote no {sqlite.name}")
    return sqlite
