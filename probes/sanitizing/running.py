"""`probe sanitize`: a program under compute-sanitizer's checkers, and every finding tied to launch, range, layer and nodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.cuda import smi
from harness.errors import EXIT_DEFECT, EXIT_INTERRUPTED, EXIT_UNDECIDED, ProbeError
from harness.record import Command, Session
from harness.tools import nsys, sanitizer
from harness.tools import tool as tools
from harness.tools.sanitizer import CHECKERS
from harness.tools.tool import Recorded
from probes.sanitizing import emulated_checks, locating, suspects
from probes.sanitizing.locating import Place
from probes.sanitizing.settings import Settings
from probes.sanitizing.suspects import Suspect
from probes.targets import driving, workloads
from probes.targets.driving import Drive, Tell
from probes.targets.target import Kind
from probes.targets.workloads import Workload
from reports import units
from reports.artifact import Artifact
from reports.collect import collect
from reports.pages import profile as profile_page
from reports.readers import detect
from reports.readers import graph as graphs
from reports.tables import ties
from reports.tables.onnx_names import Known

MOST_LOCATED = 3  # kernels: each takes a dozen runs of the program
MOST_DOUBTED = 8  # kernels that a checker is told not to look at
WORK = ".locate"  # in raw/: the runs of the halving, which no report reads
# A checker that has to see every write to know what is written: told to look at some kernels alone, it errs.
SEES_ALL = ("initcheck",)
TRACE = "trace"
BLOCKING = {"CUDA_LAUNCH_BLOCKING": "1"}  # so that the call that launched a faulty kernel is the one that fails


@dataclass(frozen=True)
class Sanitized:
    """The session, its result.json as a dict, and the exit code."""

    session: Session
    result: dict[str, Any]
    exit_code: int


def sanitize(settings: Settings, out: Path | None, tell: Tell) -> Sanitized:
    """Check a target in a fresh session. Tools that are missing are told before anything runs.

    Raises ToolMissing, UsageError and what the target's own preparation raises; a checker that fails is in the result.
    """
    emulated = settings.emulate or (settings.target.kind is Kind.KERNEL and not smi.is_gpu_here())
    if not emulated:
        tool = tools.find(sanitizer.WANTED)
        if settings.range is not None:
            sanitizer.check_ranges(tool)
    session = Session.create("sanitize", out)
    with driving.full_disk_told(session.folder):
        more = {"target": settings.target.name}
        session.write_json("manifest.json", driving.manifest("sanitize", settings.command(), more))
        drive = Drive(session, tell, workloads.folders(settings))
        check = _Emulated(settings, drive) if emulated else _Checked(settings, drive)
        with drive.kept():
            check.run()
        return _conclude(settings, drive, check.found)


class _Emulated:
    """A kernel's checks on the processor."""

    def __init__(self, settings: Settings, drive: Drive) -> None:
        self.settings, self.drive = settings, drive
        self.found: list[Suspect] = []

    def run(self) -> None:
        with self.drive.step("emulation") as step:
            step.artifacts, step.notes = emulated_checks.run(self.settings, self.drive.session)
            for path in step.artifacts:
                self.found += suspects.gather("emulation", detect.read(path))


class _Checked:
    """A program under the checkers: the wanted ones, then the suspects under the others, then where they come from."""

    def __init__(self, settings: Settings, drive: Drive) -> None:
        self.settings, self.drive = settings, drive
        self.found: list[Suspect] = []
        self.artifacts: list[Artifact] = []

    def run(self) -> None:
        workload = self._workload()
        if workload is None:
            return
        for checker in self.settings.checkers:
            self._check(checker, checker, workload, self._kernels())
        guilty = suspects.kernels(self.found)
        if guilty and self.settings.follow:
            self._follow(workload, guilty)
        if guilty and self.settings.locate:
            _Locator(self.settings, self.drive, workload, self.found, self.artifacts).run(guilty)

    def _workload(self) -> Workload | None:
        """What is run; None if it could not be made (the step says why)."""
        with self.drive.step("preparation"):
            made = workloads.for_sanitizer(self.settings, self.drive.session, self.drive.tell)
            self.drive.steps.pop()  # it went well: nothing to be told
            return replace(made, range=self.settings.range)  # else all of it: ours has nothing else in it
        return None

    def _kernels(self) -> tuple[str, ...]:
        return (self.settings.kernel,) if self.settings.kernel else ()

    def _check(self, checker: str, stem: str, workload: Workload, kernels: tuple[str, ...]) -> None:
        """Run a checker; where it accuses kernels as it accuses good ones too, again without these."""
        options = self._options(checker, workload, kernels)
        rounds = [self._checked(options, stem, workload)]
        while (doubted := _doubtful(rounds[-1])) and len(options.without) < MOST_DOUBTED:
            options = replace(options, without=(*options.without, *doubted))
            rounds.append(self._checked(options, f"{stem}-without-{len(rounds)}", workload))
        *before, last = self.drive.steps[-len(rounds) :]
        if before and last.status == "ok" and not _only_calls(rounds[-1]):
            for step in before:
                _set_aside(step, self.drive.session.raw / WORK)
            last.notes += (_acquitted(checker, options.without),)
            rounds = rounds[-1:]
        self.found += [suspect for found in rounds for suspect in found]

    def _checked(self, options: sanitizer.Options, stem: str, workload: Workload) -> list[Suspect]:
        recorded = self.drive.take(stem, lambda: _run(options, workload.command, self.drive, stem))
        if recorded is None:
            return []
        artifact = _read(recorded)
        if artifact is None:
            self.drive.steps[-1].notes += ("what it wrote could not be read",)
            return []
        found = suspects.gather(options.checker, artifact)
        if not found and _counted(recorded, artifact):
            _lost(self.drive.steps[-1], recorded, artifact)
        elif unchecked := sanitizer.untracked(recorded.run):
            _unchecked(self.drive.steps[-1], unchecked, recorded)
        self.artifacts.append(artifact)
        return found

    def _options(self, checker: str, workload: Workload, kernels: tuple[str, ...]) -> sanitizer.Options:
        settings = self.settings
        return sanitizer.Options(checker, settings.leaks, kernels, range=workload.range, timeout_s=settings.timeout)

    def _follow(self, workload: Workload, guilty: Sequence[str]) -> None:
        """The kernels at fault under the checkers that have not run."""
        done = set(self.settings.checkers)
        parts = tuple(dict.fromkeys(locating.fragment(kernel) for kernel in guilty))
        for checker in CHECKERS:
            if checker not in done:
                self._check(checker, f"{checker}-suspects", workload, self._kernels() if checker in SEES_ALL else parts)


class _Locator:
    """Ties the suspects to launches, ranges, layers and nodes, by a timeline of the same program and by halving."""

    def __init__(
        self,
        settings: Settings,
        drive: Drive,
        workload: Workload,
        found: Sequence[Suspect],
        artifacts: Sequence[Artifact],
    ) -> None:
        self.settings, self.drive, self.workload = settings, drive, workload
        self.found, self.artifacts = found, {artifact.path: artifact for artifact in artifacts}
        self.beside = _beside(drive.session.raw)
        self.known: Known | tuple[str, ...] = next(
            (graphs.graph_of(one).known for one in self.beside if one.kind == graphs.KIND), ()
        )
        self.guess: int | None = None

    def run(self, guilty: Sequence[str]) -> None:
        trace = self._trace()
        layers = [one.tables["layers"] for one in self.beside if "layers" in one.tables]
        for number, kernel in enumerate(guilty):
            its = [suspect for suspect in self.found if suspect.kernel == kernel and suspect.is_fault]
            self.guess = None  # the launch that one checker points at is the first to be tried for the next
            for checker in dict.fromkeys(suspect.checker for suspect in its):
                group = [suspect for suspect in its if suspect.checker == checker]
                place = self._place(kernel, checker, group, trace, layers, search=number < MOST_LOCATED)
                for suspect in group:
                    suspect.place = place

    def _trace(self) -> Artifact | None:
        """A timeline of the whole program, launches blocking; None without nsys (the result says so)."""
        if not tools.here(nsys.WANTED):
            self._say("without nsys the launch cannot be looked up: only what the kernel's name tells is known")
            return None
        target = _with_environment(self.workload.command, BLOCKING)
        # The fault may lose the record of every kernel; the calls that launched them are there all the same.
        options = nsys.Options(trace=("cuda", "nvtx"), kernels=False, timeout_s=self.settings.timeout)
        recorded = self.drive.take(
            TRACE, lambda: nsys.run(options, target, self.drive.session.raw, self.drive.tell, stem=TRACE)
        )
        if recorded is None:
            return None
        try:
            trace = detect.read(recorded.artifacts[0])
        except ProbeError as error:
            self._say(f"the timeline could not be read: {error}")
            return None
        return locating.tied(trace, self.beside)

    def _place(
        self,
        kernel: str,
        checker: str,
        group: Sequence[Suspect],
        trace: Artifact | None,
        layers: Sequence[Any],
        *,
        search: bool,
    ) -> Place | None:
        """Where a kernel's findings come from, by the best way that works; what was tried in vain is kept."""
        part, tried = locating.fragment(kernel), group[0].tried
        launch = self._launch(part, kernel, checker, tried) if search and checker not in SEES_ALL else None
        if checker in SEES_ALL:
            tried.append(f"{checker} has to see every launch, so its finding cannot be halved down to one")
        place = None if trace is None else self._in_trace(trace, part, launch, tried)
        place = place or self._by_information(kernel, group, layers, tried)
        if place is None:
            return (
                None if launch is None else Place("; ".join(("the launch was found by halving", *tried)), launch=launch)
            )
        return replace(place, launch=launch, how="; ".join((place.how, *tried)))

    def _in_trace(self, trace: Artifact, part: str, launch: int | None, tried: list[str]) -> Place | None:
        if launch is not None:
            if (place := locating.at_launch(trace, part, launch)) is not None:
                return place
            tried.append(f"the timeline ends before launch {launch} of this kernel")
            if (place := locating.failed_call(trace, self.known)) is not None:
                return replace(place, launch=launch)
        if (place := locating.only_place(trace, part)) is not None:
            return place
        tried.append("several layers, or none, launch this kernel")
        return None

    def _by_information(
        self, kernel: str, group: Sequence[Suspect], layers: Sequence[Any], tried: list[str]
    ) -> Place | None:
        artifact = self.artifacts.get(group[0].artifact)
        functions = [] if artifact is None else locating.host_functions(artifact, group[0].rows)
        for table in layers:
            if (place := locating.by_information(table, kernel, functions)) is not None:
                return place
        if layers:
            tried.append("the engine's layer information names no one layer for it")
        return None

    def _launch(self, part: str, kernel: str, checker: str, tried: list[str]) -> int | None:
        """The first faulty launch of a kernel, by halving."""
        if not sanitizer.counts_launches(tools.find(sanitizer.WANTED)):
            tried.append("this compute-sanitizer cannot count launches: 2021.2 and newer can")
            return None
        with self.drive.step(f"locate {part} ({checker})") as step:
            asked = _Halving(self, part, kernel, checker)
            launch = locating.first_launch(asked.shows, guess=self.guess)
            self.guess = launch
            step.notes = (
                f"{units.plural(asked.runs, 'run')} of the program; {'not repeatable' if launch is None else f'launch {launch}'}",
            )
            if launch is None:
                tried.append("the finding did not show again when launches were counted")
            return launch
        tried.append(f"the halving failed: {self.drive.steps[-1].error.splitlines()[0]}")
        return None

    def _say(self, text: str) -> None:
        step = driving.Step("locate", notes=(text,))
        self.drive.steps.append(step)


@dataclass
class _Halving:
    """Whether a kernel's finding shows when only its first m launches are checked."""

    locator: _Locator
    part: str
    kernel: str
    checker: str
    runs: int = 0

    def shows(self, launches: int) -> bool:
        locator = self.locator
        self.runs += 1
        folder = locator.drive.session.raw / WORK
        stem = f"{self.checker}-{self.part}-{launches}"
        options = sanitizer.Options(self.checker, kernels=(self.part,), launch_count=launches, print_limit=10,
                                    timeout_s=locator.settings.timeout)  # fmt: skip
        tell: Callable[[str], None] = lambda text: locator.drive.tell(f"halving, first {launches} launches: {text}")  # noqa: E731
        recorded = sanitizer.run(options, locator.workload.command, folder, tell, stem=stem)
        artifact = _read(recorded)
        if artifact is None:
            return False
        return any(one.is_fault and one.kernel == self.kernel for one in suspects.gather(self.checker, artifact))


def _doubtful(found: Sequence[Suspect]) -> tuple[str, ...]:
    """Parts of the names of kernels that are accused as good ones are."""
    return tuple(dict.fromkeys(locating.fragment(one.kernel) for one in found if one.kernel and one.is_doubtful))


def _only_calls(found: Sequence[Suspect]) -> bool:
    """Whether calls failed, and no kernel is at fault."""
    return bool(found) and not any(one.is_fault for one in found)


def _set_aside(step: driving.Step, folder: Path) -> None:
    """What a step wrote, out of the reports' sight."""
    folder.mkdir(exist_ok=True)
    for path in step.artifacts:
        path.replace(folder / path.name)
    step.artifacts = ()


def _acquitted(checker: str, kernels: Sequence[str]) -> str:
    return (
        f"{checker} accused {', '.join(kernels)} of reaching into a cluster of one block, which it says of good kernels"
        " too: it was run again without, and they are left out"
    )


def _run(options: sanitizer.Options, target: Command, drive: Drive, stem: str) -> Recorded:
    return sanitizer.run(options, target, drive.session.raw, drive.tell, stem=stem)


def _read(recorded: Recorded) -> Artifact | None:
    """The findings of a run: from the XML, or from the text if that is cut, which has the totals; None if neither can be
    read."""
    read = []
    for path in (*recorded.artifacts, recorded.run.stdout):
        try:
            read.append(detect.read(path))
        except ProbeError:
            continue
    with_findings = [artifact for artifact in read if "findings" in artifact.tables]
    return next((one for one in with_findings if len(one.tables["findings"])), next(reversed(with_findings), None))


def _counted(recorded: Recorded, artifact: Artifact) -> bool:
    """Whether the checker itself says that it found something."""
    return bool(artifact.summary.get("reported")) or recorded.run.returncode == sanitizer.FOUND_CODE


def _lost(step: driving.Step, recorded: Recorded, artifact: Artifact) -> None:
    """Findings of which no record is left are no clean bill."""
    many = artifact.summary.get("reported") or "some"
    step.status, step.exit_code = "failed", EXIT_DEFECT
    step.error = f"{step.name} counted {many} errors, and no record of them can be read: the program was ended, or the disk is full"
    step.hint = tools.where(recorded.run)


def _unchecked(step: driving.Step, launches: int, recorded: Recorded) -> None:
    """Launches that were not looked at are no clean bill."""
    step.status, step.exit_code = "failed", EXIT_UNDECIDED
    step.error = f"{step.name} could not check {launches} of the program's launches, for want of memory as a rule"
    step.hint = f"--kernel PART, smaller --shapes; {tools.where(recorded.run)}"


def _beside(raw: Path) -> list[Artifact]:
    """What the workload's preparation left of the engine and of the model: its layers, its graph."""
    found = []
    for path in (*sorted(raw.glob("*.layers.json")), *sorted(raw.glob("*.graph.json"))):
        with suppress(ProbeError):
            found.append(detect.read(path))
    return found


def _with_environment(command: Command, more: dict[str, str]) -> Command:
    return replace(command, environment={**command.environment, **more})


def _conclude(settings: Settings, drive: Drive, found: Sequence[Suspect]) -> Sanitized:
    """Write result.json, the ties and the page, whatever happened before."""
    session = drive.session
    driving.close(session, drive.steps)
    if told := suspects.ties(found):
        session.write_json(f"raw/{ties.FILE}", told)
    exit_code = EXIT_INTERRUPTED if drive.interrupted else EXIT_DEFECT if found else drive.exit_code
    status = "interrupted" if drive.interrupted else "found" if found else "failed" if drive.exit_code else "clean"
    codes = [step.program_code for step in drive.steps if step.program_code is not None]
    result = {
        "status": status, "findings": [suspect.as_json() for suspect in found], "kernels": suspects.kernels(found),
        "layers": list(dict.fromkeys(one.place.layer for one in found if one.place and one.place.layer)),
        "onnx_nodes": list(dict.fromkeys(node for one in found if one.place for node in one.place.onnx_nodes)),
        "inferred_nodes": list(dict.fromkeys(node for one in found if one.place for node in one.place.inferred_nodes)),
        "program_exit_code": max(codes, key=abs) if codes else None,
        "ran": [step.as_json() for step in drive.steps], "session": str(session.folder),
    }  # fmt: skip
    session.write_json("result.json", result)
    _draw(session, drive)
    result["ran"] = [step.as_json() for step in drive.steps]
    return Sanitized(session, result, exit_code or drive.exit_code)


def _draw(session: Session, drive: Drive) -> None:
    """The page, if there is anything to be drawn; what could not be read is told on it."""
    try:
        collection = collect([session.folder], drive.tell)
    except ProbeError:  # nothing was recorded, or nothing that can be read: the steps say why
        return
    drive.draw(lambda: profile_page.write(collection, session.folder / "report.html"))
