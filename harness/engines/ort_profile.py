"""ONNX Runtime's own profile of a model: one event for each execution of a node, under the node's ONNX name."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from harness import optional, ranges
from harness.engines.ort import open_session, session_options
from harness.errors import ArtifactMissing, LaunchFailed

Tell = Callable[[str], None]


def profile(
    model: Path | bytes, feeds: Mapping[str, np.ndarray], written: Path, *, backend: str = "ort-cpu",
    iterations: int = 20, threads: int = 0, optimise: bool = True, tell: Tell = lambda _: None,
) -> Path:  # fmt: skip
    """Run the model with profiling on and leave ONNX Runtime's JSON at `written`. Returns it.

    The file holds every run of its session, the first one too. `optimise` False keeps the nodes as
    they stand in the model, unfused, which ties every event to one ONNX node, and shows what fusion saves.
    """
    ort = optional.load("onnxruntime")
    options = session_options(ort, threads)
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    with tempfile.TemporaryDirectory(prefix="probe-") as folder:
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "ort")
        session = open_session(model, backend, options)
        tell(f"profiling {iterations} inferences")
        with ranges.range("measure"):
            _runs(session, feeds, iterations)
        made = Path(session.end_profiling())
        if not made.is_file():
            raise ArtifactMissing("ONNX Runtime wrote no profile")
        part = written.with_name(f".{written.name}.part")
        shutil.copyfile(made, part)
        part.replace(written)
    return written


def _runs(session: object, feeds: Mapping[str, np.ndarray], count: int) -> None:
    try:
        for _ in range(count):
            session.run(None, dict(feeds))  # type: ignore[attr-defined]
    except Exception as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0][:500]
        raise LaunchFailed("InferenceSession.run()", "harness/engines/ort_profile.py", 0, said) from error
