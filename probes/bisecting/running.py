"""`probe bisect`: a question, a pool of workers, a journal, and the search that connects them."""

from __future__ import annotations

import hashlib
import platform
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import onnx

from harness.errors import UsageError
from harness.models import inputs as samples_of
from harness.models import model as models
from harness.models.inputs import RandomInputs
from harness.models.model import Model
from harness.models.opsets import with_type_for
from harness.models.precision import draws
from harness.models.runtime import RunFailed, runner
from harness.record import SCHEMA_VERSION, Session
from probes.bisecting import candidates as candidates_of
from probes.bisecting.concluding import Asked
from probes.bisecting.evaluating import Effort, Tell
from probes.bisecting.faults import pose, threads_of
from probes.bisecting.searching import Bisection, search_session
from probes.bisecting.settings import Settings
from probes.bisecting.statements import running as statement_bisecting
from probes.bisecting.statements.settings import StatementSettings


def start(settings: Settings | StatementSettings, out: Path | None, tell: Tell) -> Bisection:
    """Search for what is to blame in a fresh session; everything needed to resume it is written first."""
    settings.check_consistency()
    if isinstance(settings, StatementSettings):
        return statement_bisecting.start(settings, out, tell)
    model = _load(settings)
    feeds, notes = _samples(settings, model)
    notes += _of_chance(model)
    session = Session.create("bisect", out)
    samples_of.save_samples(feeds, session.raw)
    session.write_json("raw/settings.json", {**settings.to_json(), "model": str(settings.model.absolute()),
                                             "good": str(settings.good.absolute()) if settings.good else None,
                                             "plugins": [str(path.absolute()) for path in settings.plugins],
                                             "replace": [[op, str(path.absolute())] for op, path in settings.replace]})  # fmt: skip
    session.write_json("manifest.json", _manifest(settings, model, feeds, notes))
    return _run(settings, model, session, tell)


def resume(folder: Path, tell: Tell) -> Bisection:
    """Go on where a session ended; what it has answered is not asked again."""
    session = Session.open(folder)
    if statement_bisecting.of_statements(session):
        return statement_bisecting.resume(session, tell)
    settings = Settings.from_json(session.read_json("raw/settings.json"))
    recorded = session.read_json("manifest.json")["model"]["sha256"]
    if (now := _sha256(settings.model)) != recorded:
        raise UsageError(f"{settings.model} has changed since {folder} was written (sha256 {now[:12]}, then {recorded[:12]})",
                         hint="start a new search: its answers belong to another model")  # fmt: skip
    return _run(settings, _load(settings), session, tell)


def _load(settings: Settings) -> Model:
    """The model, at an opset that has the type it is to be lowered to."""
    model = models.load(settings.model)
    return with_type_for(model, settings.precision) if settings.fault in ("precision", "finite", "check") else model


def _run(settings: Settings, model: Model, session: Session, tell: Tell) -> Bisection:
    paths = tuple(sorted(session.raw.glob("sample-*.npz"), key=lambda path: int(path.stem.rpartition("-")[2])))
    effort = Effort(
        settings.jobs, settings.dask, settings.timeout, settings.budget, settings.repeat, threads_of(settings)
    )
    asked = Asked(settings.fault, settings.command(), settings.tolerance)
    return search_session(
        session,
        lambda: pose(settings, model, paths, session, tell),
        effort,
        asked,
        partial(candidates_of.edges, model),
        tell,
    )


def _samples(settings: Settings, model: Model) -> tuple[list[samples_of.Feeds], list[str]]:
    extra = []
    if settings.good is not None:  # a model to compare with may read inputs that this one lacks
        known = {value.name for value in model.inputs}
        extra = [value for value in models.load(settings.good).inputs if value.name not in known]
    wanted = [*model.inputs, *extra]
    if settings.inputs:
        return samples_of.read_samples(settings.inputs, wanted), []
    how = RandomInputs(settings.seed, dict(settings.shapes), settings.low, settings.high, settings.samples)
    feeds, notes = samples_of.fitting_samples(wanted, how, partial(_runs, model))
    return feeds, [*notes, f"random inputs (seed {settings.seed}); real ones tell more: --inputs FILE.npz"]


def _runs(model: Model, feeds: samples_of.Feeds) -> bool:
    try:
        runner(model.proto, model.weights, lean=True).run({value.name: feeds[value.name] for value in model.inputs})
    except RunFailed:
        return False
    return True


def _of_chance(model: Model) -> list[str]:
    """A word about nodes that draw random numbers: no two runs of such a model agree."""
    names = [f"{node.key} ({node.op_type})" for node in model.nodes if draws(node.proto)]
    if not names:
        return []
    some = f"{', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
    return [
        f"the model's outputs change from run to run: {some} may draw random numbers; emulated, they are drawn once"
    ]


def _manifest(settings: Settings, model: Model, feeds: list[samples_of.Feeds], notes: list[str]) -> dict[str, Any]:
    command = settings.command().split()
    return {
        "schema_version": SCHEMA_VERSION, "verb": "bisect", "argv": command[1:], "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": {"name": model.path.name, "sha256": _sha256(model.path), "nodes": len(model.nodes),
                  "weight_bytes": model.weight_bytes, "opset": model.opset},
        "versions": _versions(), "platform": f"{platform.system()} {platform.machine()}",
        "fault": settings.fault, "precision": settings.precision.value, "tolerance": settings.tolerance,
        "samples": len(feeds), "backend": settings.backend or "onnxruntime", "notes": notes,
        "inputs": [{"name": name, "shape": list(array.shape), "dtype": str(array.dtype)} for name, array in feeds[0].items()],
    }  # fmt: skip


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "onnx": onnx.__version__}
    for name, distribution in (("probe", "probe-trt"), ("onnxruntime", "onnxruntime"), ("numpy", "numpy")):
        try:
            versions[name] = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
