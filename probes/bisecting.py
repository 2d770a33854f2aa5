"""`probe bisect`: a question, a pool of workers, a journal, and the search that connects them."""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import onnx

from harness import inputs as samples_of
from harness import model as models
from harness.cluster import DaskPool
from harness.errors import EXIT_CLEAN, EXIT_DEFECT, EXIT_UNDECIDED, ProbeError, SearchStopped, UsageError
from harness.inputs import RandomInputs
from harness.model import Model
from harness.opsets import with_type_for
from harness.record import SCHEMA_VERSION, Answer, Session
from harness.workers import LocalPool, Pool, Query, Recipe
from probes import candidates as candidates_of
from probes import search
from probes.faults import Question, Repair, pose, threads_of
from probes.journal import Journal
from probes.recipes import Repeated
from probes.settings import Settings
from reports import page

Tell = Callable[[str], None]
EXIT_CODES = {"nothing_to_find": EXIT_CLEAN, "found": EXIT_DEFECT, "undecided": EXIT_UNDECIDED}


@dataclass(frozen=True)
class Bisection:
    """What a search ended with: the session folder, its result.json as a dict, and the exit code."""

    session: Session
    result: dict[str, Any]
    exit_code: int


def start(settings: Settings, out: Path | None, tell: Tell) -> Bisection:
    """Search for what is to blame in a fresh session; everything needed to resume it is written first."""
    settings.check_consistency()
    model = _load(settings)
    feeds, notes = _samples(settings, model)
    session = Session.create("bisect", out)
    samples_of.save_samples(feeds, session.raw)
    session.write_json("raw/settings.json", {**settings.to_json(), "model": str(settings.model.absolute()),
                                             "good": str(settings.good.absolute()) if settings.good else None})  # fmt: skip
    session.write_json("manifest.json", _manifest(settings, model, feeds, notes))
    return _run(settings, model, session, tell)


def resume(folder: Path, tell: Tell) -> Bisection:
    """Go on where a session ended; what it has answered is not asked again."""
    session = Session.open(folder)
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
    began = time.monotonic()
    paths = tuple(sorted(session.raw.glob("sample-*.npz"), key=lambda path: int(path.stem.rpartition("-")[2])))
    tell("looking at the model")
    question = pose(settings, model, paths, session)
    journal = Journal(session)
    report = _Report(settings, model, session, question, journal, began)
    try:
        found = _answer(question, settings, session, journal, tell)
        repair = question.repair(found, session, lambda q: _answer(q, settings, session, journal, tell))
    except KeyboardInterrupt:
        report.write(
            report.best_so_far(),
            None,
            "stopped",
            [f"interrupted; go on with probe bisect --resume {session.folder.name}"],
        )
        raise SearchStopped(*report.stopped("interrupted"), interrupted=True) from None
    except _Budget:
        report.write(report.best_so_far(), None, "stopped", [f"stopped after --budget {settings.budget} evaluations"])
        raise SearchStopped(*report.stopped(f"the budget of {settings.budget} evaluations is spent")) from None
    tell("writing the report")
    result = report.write(found, repair, None, list(repair.notes))
    return Bisection(session, result, EXIT_CODES[result["status"]])


class _Budget(Exception):
    """As many evaluations as the user allowed."""


def _answer(question: Question, settings: Settings, session: Session, journal: Journal, tell: Tell) -> search.Found:
    """Run one question's search to its end."""
    journal.begin(question.phase, [c.id for c in question.candidates])
    with _Evaluations(question, settings, session, journal, tell) as evaluations:
        if question.baseline:
            _check_baseline(question, evaluations.answer(frozenset(), [frozenset()]))
        running = question.search()
        try:
            request = next(running)
            while True:
                request = running.send(evaluations.answer(request.query, None))
        except StopIteration as end:
            found: search.Found = end.value
            return found


def _check_baseline(question: Question, answer: Answer) -> None:
    if answer.outcome is not question.wanted:
        value = "" if answer.value is None else f" (error {answer.value:.3g})"
        raise ProbeError(f"the fault stays when nothing is {question.applied_word}: {answer.signature or answer.outcome.value}{value}",
                         hint=question.baseline_hint)  # fmt: skip


class _Evaluations:
    """Answers queries from the journal or by the pool, which starts with the first query that is not known."""

    def __init__(self, question: Question, settings: Settings, session: Session, journal: Journal, tell: Tell) -> None:
        self._question, self._settings, self._session = question, settings, session
        self._journal, self._tell = journal, tell
        self._pool: Pool | None = None
        self._flying: set[Query] = set()

    def __enter__(self) -> _Evaluations:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.close()

    def answer(self, query: Query, upcoming: list[Query] | None) -> Answer:
        """The answer to `query`; while workers are free they also evaluate what will probably be asked next."""
        phase = self._question.phase
        while (known := self._journal.recall(phase, query)) is None:
            pool = self._open()
            for likely in upcoming or self._likely(query, pool.width):
                if (
                    len(self._flying) < pool.width
                    and likely not in self._flying
                    and likely not in self._journal.answers(phase)
                ):
                    self._spend()
                    pool.submit(likely)
                    self._flying.add(likely)
            done = pool.next_done()
            self._flying.discard(done.query)
            self._journal.record(phase, done, self._question.describe(done.query))
            self._tell(self._progress())
        return known

    def _likely(self, query: Query, width: int) -> list[Query]:
        if width == 1:
            return [query]
        guesses = search.speculate(self._question.search, self._journal.answers(self._question.phase), width)
        return [query, *(guess for guess in guesses if guess != query)]

    def _spend(self) -> None:
        budget = self._settings.budget
        if budget is not None and self._journal.evaluations + len(self._flying) >= budget:
            raise _Budget

    def _open(self) -> Pool:
        if self._pool is None:
            settings = self._settings
            recipe: Recipe = self._question.recipe
            if settings.repeat > 1:
                recipe = Repeated(recipe, settings.repeat)
            self._tell("starting")
            if settings.dask is not None:
                self._pool = DaskPool(recipe, settings.dask, timeout_s=settings.timeout)
            else:
                # A recipe that runs programs of its own stops them when their time is up; ours is then longer.
                limit = (
                    None
                    if settings.timeout is None
                    else settings.timeout * settings.repeat + (30 if self._question.runs_programs else 0)
                )
                self._pool = LocalPool(
                    recipe, settings.jobs, timeout_s=limit, log_folder=self._session.raw, threads=threads_of(settings)
                )
        return self._pool

    def _progress(self) -> str:
        question = self._question
        best = search.best_applied(self._journal.answers(question.phase), question.wanted, question.signature)
        left = len(question.candidates) - len(best)
        return (
            f"{self._journal.evaluations} evaluations, {left} of {len(question.candidates)} {question.kept_word} so far"
        )


class _Report:
    """Writes candidates.json, result.json and report.html, of a finished search or of what an interrupted one has."""

    def __init__(
        self, settings: Settings, model: Model, session: Session, question: Question, journal: Journal, began: float
    ) -> None:
        self._settings, self._model, self._session = settings, model, session
        self.question, self._journal, self._began = question, journal, began

    def best_so_far(self) -> search.Found:
        question = self.question
        applied = search.best_applied(self._journal.answers(question.phase), question.wanted, question.signature)
        kept = tuple(c.id for c in question.candidates if c.id not in applied)
        return search.Found(applied, kept, kept)

    def stopped(self, why: str) -> tuple[str, search.Found]:
        best = self.best_so_far()
        return (f"{why}: so far {len(best.kept)} of {len(self.question.candidates)} {self.question.kept_word};"
                f" probe bisect --resume {self._session.folder} goes on", best)  # fmt: skip

    def write(self, found: search.Found, repair: Repair | None, status: str | None, notes: list[str]) -> dict[str, Any]:
        question, journal, answers = self.question, self._journal, self._journal.answers(self.question.phase)
        everything = frozenset(c.id for c in question.candidates)
        culprits = [c for c in question.candidates if c.id in found.kept and c.id not in found.undecided]
        undecided = [c for c in question.candidates if c.id in found.undecided]
        if status is None:
            status = "found" if culprits else "undecided" if undecided else "nothing_to_find"
        before, after = answers.get(everything), answers.get(found.applied)
        manifest = self._session.read_json("manifest.json")
        result = {
            "fault": self._settings.fault, "status": status, "culprits": [n for c in culprits for n in c.nodes],
            "scopes": list(dict.fromkeys(c.scope for c in culprits)),
            "certified_minimal": bool(found.certified and status in ("found", "nothing_to_find")),
            "evaluations": journal.evaluations, "cached": journal.cached, "unresolved": journal.unresolved,
            "wall_s": round(time.monotonic() - self._began, 3), "evaluation_s": round(journal.evaluation_s, 3),
            "error_before": before.value if before else None, "error_after": after.value if after else None,
            "tolerance": self._settings.tolerance if question.measures else None,
            "signatures": {c.key: s for c in culprits if (s := self._signature(found, c.id))},
            "model_out": repair.model_out if repair else None, "repro_command": self._settings.command(),
            "undecided": [n for c in undecided for n in c.nodes], "candidates": len(question.candidates),
            "notes": manifest.get("notes", []) + notes, "session": str(self._session.folder),
        }  # fmt: skip
        self._session.write_json("candidates.json", {
            "candidates": [
                {"key": c.key, "op_type": c.op_type, "scope": c.scope, "nodes": list(c.nodes), "sensitivity": found.sensitivity.get(c.id),
                 "culprit": c in culprits, "undecided": c in undecided} for c in question.candidates
            ],
            "edges": candidates_of.edges(self._model, question.candidates),
        })  # fmt: skip
        self._session.write_json("result.json", result)
        page.write(self._session)
        return result

    def _signature(self, found: search.Found, candidate: int) -> str | None:
        """How the fault shows with this candidate applied on top of the rest: its own failure, among several."""
        answer = self._journal.answers(self.question.phase).get(found.applied | {candidate})
        return answer.signature if answer else None


def _samples(settings: Settings, model: Model) -> tuple[list[samples_of.Feeds], list[str]]:
    extra = []
    if settings.good is not None:  # a model to compare with may read inputs that this one lacks
        known = {value.name for value in model.inputs}
        extra = [value for value in models.load(settings.good).inputs if value.name not in known]
    wanted = [*model.inputs, *extra]
    if settings.inputs:
        return samples_of.read_samples(settings.inputs, wanted), []
    how = RandomInputs(settings.seed, dict(settings.shapes), settings.low, settings.high, settings.samples)
    feeds, notes = samples_of.random_samples(wanted, how)
    return feeds, [*notes, f"random inputs (seed {settings.seed}); real ones tell more: --inputs FILE.npz"]


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
