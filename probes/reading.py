"""Files that tools wrote and sessions, as tables; what cannot be read as it is, is made readable first."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from harness.tools import nsys
from reports.collect import Collection, collect

Tell = Callable[[str], None]


def read(paths: Sequence[str | os.PathLike[str]], tell: Tell = lambda _: None) -> Collection:
    """Everything that the paths hold: files of any tool, sessions, other folders, and models whose nodes are tied in.

    Raises UsageError for a path that does not exist, ParseError for a file that no reader knows, ToolMissing for a
    `.nsys-rep` where no nsys is installed to export it.
    """
    with tempfile.TemporaryDirectory(prefix="probe-") as scratch:
        return collect([_readable(Path(path), Path(scratch), tell) for path in paths], tell)


def _readable(path: Path, scratch: Path, tell: Tell) -> Path:
    """A report of Nsight Systems is exported to SQLite by the nsys on PATH first, of a model its graph is taken; all else
    is read as it is."""
    if path.suffix == ".onnx" and path.is_file():
        from harness.models import graph, model

        tell(f"reading {path.name}")
        made = scratch / f"{path.name}.graph.json"
        made.write_text(json.dumps(graph.document(model.load(path))), encoding="utf-8")
        return made
    if path.suffix not in nsys.REPORTS or not path.is_file():
        return path
    tell(f"exporting {path.name}")
    return nsys.export(path, scratch)
