"""Ask a question to its end: a search's queries answered from the journal or by a pool of workers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from harness.cluster import DaskPool
from harness.errors import ProbeError
from harness.record import Answer, Session
from harness.workers import LocalPool, Pool, Query, Recipe
from probes.bisecting import search
from probes.bisecting.journal import Journal
from probes.bisecting.question import Question
from probes.bisecting.recipes import Repeated

Tell = Callable[[str], None]
GRACE_S = 30.0  # for a program to be stopped, and for what comes before and after it


@dataclass(frozen=True)
class Effort:
    """How much a search may cost, and where it is done."""

    jobs: int = 1
    dask: str | None = None
    timeout: float | None = None  # seconds, of one evaluation
    budget: int | None = None  # evaluations
    repeat: int = 1
    threads: int = 1  # of ONNX Runtime, per worker


class BudgetSpent(Exception):
    """As many evaluations as the user allowed."""


def answer(question: Question, effort: Effort, session: Session, journal: Journal, tell: Tell) -> search.Found:
    """Run one question's search to its end."""
    journal.begin(question.phase, [c.id for c in question.candidates])
    with _Evaluations(question, effort, session, journal, tell) as evaluations:
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

    def __init__(self, question: Question, effort: Effort, session: Session, journal: Journal, tell: Tell) -> None:
        self._question, self._effort, self._session = question, effort, session
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
                    and not self._spent()
                ):
                    pool.submit(likely)
                    self._flying.add(likely)
            if not self._flying:
                raise BudgetSpent
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

    def _spent(self) -> bool:
        budget = self._effort.budget
        return budget is not None and self._journal.evaluations + len(self._flying) >= budget

    def _open(self) -> Pool:
        if self._pool is None:
            effort = self._effort
            recipe: Recipe = self._question.recipe
            if effort.repeat > 1:
                recipe = Repeated(recipe, effort.repeat)
            self._tell("starting")
            limit = self._limit()
            if effort.dask is not None:
                self._pool = DaskPool(recipe, effort.dask, timeout_s=limit)
            else:
                self._pool = LocalPool(
                    recipe, effort.jobs, timeout_s=limit, log_folder=self._session.raw, threads=effort.threads
                )
        return self._pool

    def _limit(self) -> float | None:
        """Seconds of an evaluation. A recipe that runs programs of its own stops them when their time is up; ours is then longer."""
        effort = self._effort
        grace = GRACE_S if self._question.runs_programs else 0.0
        return None if effort.timeout is None else effort.timeout * effort.repeat + grace

    def _progress(self) -> str:
        question = self._question
        best = search.best_applied(self._journal.answers(question.phase), question.wanted, question.signature)
        left = len(question.candidates) - len(best)
        return (
            f"{self._journal.evaluations} evaluations, {left} of {len(question.candidates)} {question.kept_word} so far"
        )
