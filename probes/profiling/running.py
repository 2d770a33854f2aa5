"""`probe profile`: the right tools around a model, an engine, a kernel or any program, one after another, in one report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from harness.cuda import smi
from harness.errors import EXIT_CLEAN, EXIT_INTERRUPTED, EXIT_UNDECIDED, ParseError, ProbeError, ToolMissing
from harness.record import Command, Session
from harness.tools import ncu, nsys, trtexec
from harness.tools import tool as tools
from harness.tools.tool import Recorded
from probes import reporting
from probes.profiling import feeding
from probes.profiling.settings import INPROCESS, Settings
from probes.targets import driving, measuring_models, workloads
from probes.targets.driving import Drive, Step, Tell
from probes.targets.inferring import Spec
from probes.targets.measuring_models import Measured
from probes.targets.target import Kind
from probes.targets.workloads import Workload
from reports import units
from reports.artifact import Artifact
from reports.collect import Collection, collect
from reports.pages import profile as profile_page
from reports.readers import detect
from reports.tables import joining

WANTED = {"nsys": nsys.WANTED, "ncu": ncu.WANTED, "trtexec": trtexec.WANTED}
INSTEAD = "the same was measured in-process, with the same tables"
MOST_ROWS = 10
MEASUREMENT = "measurement.json"


@dataclass(frozen=True)
class Profiled:
    """The session, its result.json as a dict, and the exit code."""

    session: Session
    result: dict[str, Any]
    exit_code: int


def profile(settings: Settings, out: Path | None, tell: Tell) -> Profiled:
    """Profile a target in a fresh session; a tool that fails does not keep the others from running.

    Raises ToolMissing or UsageError before anything runs, if what was asked for is not here or does not fit.
    """
    chosen = choose(settings)
    session = Session.create("profile", out)
    more = {"target": settings.target.name, "tools_asked": list(chosen)}
    with driving.full_disk_told(session.folder):
        session.write_json("manifest.json", driving.manifest("profile", settings.command(), more))
        drive = Drive(session, tell, workloads.folders(settings))
        with drive.kept():
            _Profile(settings, drive).run(chosen)
        return _conclude(drive)


def choose(settings: Settings) -> tuple[str, ...]:
    """The tools to run: those asked for, or what is here. Raises ToolMissing for one that was asked for and is not."""
    if settings.tools:
        timed = tools.here(trtexec.WANTED)
        for name in settings.tools:
            if name in WANTED and (name != "trtexec" or timed):
                tools.find(WANTED[name])
        chosen = tuple(INPROCESS if name == "trtexec" and not timed else name for name in settings.tools)
        swept = (INPROCESS,) if settings.sweep is not None else ()  # the tools themselves take one shape
        return tuple(dict.fromkeys((*swept, *chosen)))
    measures = settings.target.kind in (Kind.MODEL, Kind.ENGINE)
    if settings.sweep is not None:
        return (INPROCESS,)
    if not smi.is_gpu_here() and settings.target.kind is Kind.MODEL:
        return (INPROCESS, "ort")
    timeline = ("nsys",) if tools.here(nsys.WANTED) else ()
    if not (measures or timeline):
        tools.find(nsys.WANTED)  # which says what to install
    return (INPROCESS, *timeline) if measures else timeline


class _Profile:
    """One run of the chosen tools."""

    def __init__(self, settings: Settings, drive: Drive) -> None:
        self.settings, self.drive, self.session = settings, drive, drive.session
        self.workload = Workload(Command(settings.target.words))  # until it is prepared

    def run(self, chosen: Sequence[str]) -> None:
        steps: Mapping[str, Callable[[], None]] = {
            INPROCESS: self._inprocess, "ort": self._ort, "trtexec": self._trtexec, "nsys": self._nsys, "ncu": self._ncu,
        }  # fmt: skip
        waiting = self._prepared([name for name in steps if name in chosen])
        while waiting:
            if (low := driving.room(self.session)) is not None:
                self.drive.tell(low)
            steps[waiting.pop(0)]()
            if driving.worker_error(self.session) is not None:
                waiting = self._spared(waiting)

    def _prepared(self, chosen: list[str]) -> list[str]:
        """The tools that can run, once the target is as they need it: if that fails, it is told here, and not by each."""
        if not {INPROCESS, "nsys", "ncu"} & {*chosen}:
            return chosen
        with self.drive.step("preparation"):
            made = workloads.for_profile(self.settings, self.session, self.drive.tell)
            self.workload = replace(made, range=self.settings.range or made.range)
            self.drive.steps.pop()  # it went well: nothing to be told
            return chosen
        return self._spared(chosen) if len(chosen) > 1 else []

    def _spared(self, waiting: list[str]) -> list[str]:
        """The tools that need not fail as the target did in the last step: another runtime may take what one refused."""
        unreadable = (driving.worker_error(self.session) or {}).get("error") == ParseError.__name__
        by_ort = (self.settings.backend or "ort" * (not smi.is_gpu_here())).startswith("ort")
        left = [name for name in waiting if name == ("trtexec" if by_ort else "ort") and not unreadable]
        if lost := [name for name in waiting if name not in left]:
            self.drive.steps[-1].error += f"\nnot run, for they would fail the same way: {', '.join(lost)}"
        return left

    def _spec(self) -> Spec:
        """The inference that is measured, of the shapes that were found to run, if any were looked for."""
        spec = workloads.model_spec(self.settings, self.session)
        return replace(spec, shapes=self.workload.shapes or spec.shapes)

    def _inprocess(self) -> None:
        with self.drive.step(INPROCESS) as step:
            if "trtexec" in self.settings.tools:
                step.notes = tuple(f"{why}: {INSTEAD}" for why in _absence(trtexec.WANTED))
            measured = measuring_models.measure(
                self._spec(), self.session, self.drive.tell, timeout_s=self.settings.timeout
            )
            _fill(step, measured)

    def _ort(self) -> None:
        with self.drive.step("ort") as step:
            spec = replace(self._spec(), sweep=None, plan=None)
            measured = measuring_models.profile_ort(
                spec, self.session, self.drive.tell, timeout_s=self.settings.timeout
            )
            _fill(step, measured)

    def _trtexec(self) -> None:
        def run() -> Recorded:
            options, fed = feeding.for_trtexec(self.settings, self._spec().shapes, self.session.folder / "inputs")
            recorded = trtexec.run(options, self.session.raw, self.drive.tell)
            return replace(recorded, notes=(*recorded.notes, *fed))

        self.drive.take("trtexec", run)

    def _nsys(self) -> None:
        settings = self.settings
        trace = settings.trace or nsys.TRACES
        trace = (*trace, "osrt") if settings.osrt and "osrt" not in trace else trace

        def run() -> Recorded:
            options = nsys.Options(trace, settings.cpu, capture=self.workload.range, timeout_s=settings.timeout)
            return nsys.run(options, self.workload.command, self.session.raw, self.drive.tell)

        if self.drive.take("nsys", run) is not None:
            self.drive.steps[-1].notes += tuple(_overhead(self.session))

    def _ncu(self) -> None:
        settings = self.settings

        def run() -> Recorded:
            options = ncu.Options(
                settings.metrics, settings.kernel, self.workload.range, launch_count=settings.launch_count,
                clock_control=settings.clock_control, replay_mode=settings.replay_mode, timeout_s=settings.timeout,
            )  # fmt: skip
            return ncu.run(options, self.workload.command, self.session.raw, self.drive.tell)

        self.drive.take("ncu", run)


def _fill(step: Step, measured: Measured) -> None:
    """What our own measurement left, into its step, and what it was fed with."""
    step.artifacts = (measured.artifact,) if measured.artifact else ()
    step.version = str(measured.result.get("backend", ""))
    step.notes += (str(measured.result.get("fed", "")),)


def _overhead(session: Session) -> Iterator[str]:
    """How much longer an inference takes under the tool than in the in-process measurement, where there are both."""
    try:
        under = session.read_json("infer.result.json")["latency_ns"]["median"]
        alone = detect.read(session.raw / MEASUREMENT).tables["iterations"]["latency_ns"].median()
    except (ProbeError, KeyError):
        return
    told = f"{under / alone - 1:+.1%}" if under >= alone else "it varies by more than nsys costs"
    yield f"an inference takes {units.seconds(under / 1e9)} under nsys and {units.seconds(alone / 1e9)} without: {told}"


def _absence(wanted: tools.Wanted) -> Iterator[str]:
    """Why a tool cannot be taken, if it cannot."""
    try:
        tools.find(wanted)
    except ToolMissing as error:
        yield str(error)


# What it comes to


def _conclude(drive: Drive) -> Profiled:
    """Write result.json and the page of whatever was recorded."""
    session = drive.session
    driving.close(session, drive.steps)
    collection = _collected(drive)
    status = "interrupted" if drive.interrupted else "failed" if drive.exit_code else "ok"
    artifacts = collection.artifacts if collection else ()
    result: dict[str, Any] = {
        "status": status, "tools": [step.as_json() for step in drive.steps], "top": top(artifacts),
        "joined": reporting.plain(joining.joined(artifacts).to_dict("records")), "session": str(session.folder),
    }  # fmt: skip
    session.write_json("result.json", result)
    if collection is not None:
        collection = replace(collection, results=(result,))
        drive.draw(lambda: profile_page.write(collection, session.folder / "report.html"))
        result["tools"] = [step.as_json() for step in drive.steps]
    code = EXIT_INTERRUPTED if drive.interrupted else drive.exit_code
    return Profiled(session, result, code or (EXIT_CLEAN if artifacts else EXIT_UNDECIDED))


def _collected(drive: Drive) -> Collection | None:
    try:
        return collect([drive.session.folder], drive.tell)
    except ProbeError:  # nothing was recorded, or nothing that can be read: the steps say why
        return None


def top(artifacts: Sequence[Artifact]) -> dict[str, Any]:
    """The head of each artifact's answer: medians of what was timed, and the longest kernels, layers or nodes."""
    return {artifact.path.name: _head(artifact) for artifact in artifacts}


def _head(artifact: Artifact) -> dict[str, Any]:
    told: dict[str, Any] = {"kind": artifact.kind, "rows": artifact.rows()}
    iterations = artifact.tables.get("iterations")
    if iterations is not None and len(iterations):
        told["median_ns"] = {
            name: float(np.nanmedian(iterations[name]))
            for name in ("latency_ns", "compute_ns")
            if iterations[name].notna().any()
        }
        if iterations["compute_ns"].equals(iterations["latency_ns"]):  # on a processor there is one time
            told["median_ns"].pop("compute_ns", None)
    sweep = artifact.tables.get("sweep")
    if sweep is not None and len(sweep):
        told["sweep"] = reporting.plain(
            sweep[["size", "latency_median_ns", "throughput_qps", "change"]].to_dict("records")
        )
    if ties := artifact.summary.get("ties"):
        told["ties"] = ties
    kernels = artifact.tables.get("kernels")
    if kernels is not None and len(kernels):
        time = kernels.groupby("kernel_short", observed=True)["duration_ns"].agg(["sum", "count", "median"])
        longest = time.sort_values("sum", ascending=False).head(MOST_ROWS)
        told["kernels"] = [
            {
                "kernel": str(name),
                "total_ns": int(row["sum"]),
                "count": int(row["count"]),
                "median_ns": float(row["median"]),
            }
            for name, row in longest.iterrows()
        ]
    return told
