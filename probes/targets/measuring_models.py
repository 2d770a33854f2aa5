"""Measure a model without any of NVIDIA's tools: in a process of ours, its files in the session's raw folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness import process
from harness.errors import BuildFailed, DependencyMissing, ParseError, ProbeError, ToolFailed, ToolTimeout, UsageError
from harness.record import Command, Session, ToolRun
from harness.tools import tool as tools
from probes.targets.inferring import EXIT_BUILD, EXIT_LAUNCH, Spec, command

Tell = Callable[[str], None]
LEAST_BYTES = 64 * 1024
FULL = "No space left on device"
DIED = {"build": "probe bisect MODEL --fault build finds the nodes to blame for a builder's crash",
        "": "probe sanitize MODEL finds what is wrong with its kernels"}  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """What a stage left: its result's JSON values, the file that it wrote (None for build and infer), and how it ran."""

    result: Mapping[str, Any]
    artifact: Path | None
    run: ToolRun


class InferenceFailed(ToolFailed):
    """CUDA or the runtime failed in the process that runs the model."""


def spec_for(session: Session, stage: str, source: Path, **values: Any) -> Spec:
    """A spec whose files lie in the session: result and plan beside raw/, what is measured in raw/."""
    plan = values.pop("plan", session.folder / "model.plan")
    result = session.folder / f"{stage}.result.json"
    return Spec(stage, source, result, session.raw, plan=plan, **values)


def measure(spec: Spec, session: Session, tell: Tell = lambda _: None, *, timeout_s: float | None = None) -> Measured:
    """Iterations, throughput and layers (raw/measurement.json) or, with `spec.sweep`, raw/sweep.json."""
    return run_stage(replace(spec, stage="measure"), session, tell, timeout_s=timeout_s)


def profile_ort(
    spec: Spec, session: Session, tell: Tell = lambda _: None, *, timeout_s: float | None = None
) -> Measured:
    """ONNX Runtime's profile, node by node (raw/ort-profile.json)."""
    return run_stage(replace(spec, stage="ort"), session, tell, timeout_s=timeout_s)


def build(spec: Spec, session: Session, tell: Tell = lambda _: None, *, timeout_s: float | None = None) -> Measured:
    """Build once, outside of every tool: later stages read `spec.plan`."""
    return run_stage(replace(spec, stage="build"), session, tell, timeout_s=timeout_s)


def run_stage(spec: Spec, session: Session, tell: Tell, *, timeout_s: float | None) -> Measured:
    """One stage in a process of its own: a crash or a hang there is an error here, with what the process said last.

    Raises the error that the process met, as its kind; ToolFailed if it died, ToolTimeout if its time was up.
    """
    spec.result.unlink(missing_ok=True)
    path = spec.write(
        session.folder / f".{spec.stage}.spec.json"
    )  # gone with the process: it holds paths of this machine
    stem = session.folder / "logs" / spec.stage  # not in raw/: nobody's artifact

    def on_tick(elapsed_s: float) -> None:
        last = process.tail(Path(f"{stem}.err"), 1).removeprefix("probe: ")
        tell(f"{last or spec.stage} ({elapsed_s:.0f} s)")

    try:
        run = process.run(Command(command(path), timeout_s, process.module_environment()), stem, on_tick=on_tick)
    finally:
        path.unlink(missing_ok=True)
    result = _result(spec, run)
    file = result.get("file")
    return Measured(result, spec.folder / file if file else None, run)


def _result(spec: Spec, run: ToolRun) -> dict[str, Any]:
    name = f"the {spec.stage} process"
    if run.timed_out:
        limit = run.command.timeout_s or run.duration_s
        raise ToolTimeout(f"{name} was stopped after {limit:g} s", run, hint="--timeout SECONDS; fewer --iterations")
    if not spec.result.is_file():
        how = f"signal {run.signal}" if run.signal is not None else f"exit code {run.returncode}"
        said = process.tail(run.stderr, 8)
        full = shutil.disk_usage(run.stderr.parent).free < LEAST_BYTES  # it may not even have been able to say so
        why, hint = tools.diagnose(FULL if full else said, ()) or ("", DIED.get(spec.stage, DIED[""]))
        raise ToolFailed(f"{name} died ({how}){f': {why or said}' if why or said else ''}", run, hint=hint)
    try:
        result: dict[str, Any] = json.loads(spec.result.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ParseError(spec.result, "content", "a result in JSON", str(error)) from error
    if not result.get("ok"):
        raise error_of(result, run)
    if run.returncode != 0:  # it was done, and died while it ended
        raise ToolFailed(f"{name} ended with exit code {run.returncode} after its work was done", run)
    return result


def error_of(result: Mapping[str, Any], run: ToolRun) -> ProbeError:
    """The error that the process met, as its kind."""
    message, hint, code = str(result.get("message")), result.get("hint"), result.get("exit_code")
    if code == EXIT_BUILD:
        return BuildFailed(message, hint=hint)
    if code == EXIT_LAUNCH:
        return InferenceFailed(message, run, hint=hint)
    if result.get("error") in (UsageError.__name__, ParseError.__name__, DependencyMissing.__name__):
        return UsageError(message, hint=hint)
    return ToolFailed(f"{result.get('error')}: {message}", run, hint=hint)
