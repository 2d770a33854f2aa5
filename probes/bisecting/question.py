"""One question of a search as data: who the candidates are, how queries are answered, and the words in which it is told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness.record import Outcome, Session
from harness.workers import Query, Recipe
from probes.bisecting.candidates import Candidate, name_some
from probes.bisecting.search import Found, Search


@dataclass(frozen=True)
class Repair:
    """What is handed over with the result: a model file (its name in the session folder), and remarks."""

    model_out: str | None = None
    notes: tuple[str, ...] = ()


AnswerQuestion = Callable[["Question"], Found]
MakeRepair = Callable[[Found, Session, AnswerQuestion], Repair]


def no_repair(found: Found, session: Session, answer: AnswerQuestion) -> Repair:
    return Repair()


@dataclass(frozen=True)
class Question:
    """One search: who the candidates are, how queries are answered, and the words in which it is told."""

    phase: str
    candidates: Sequence[Candidate]
    recipe: Recipe
    applied_word: str
    kept_word: str
    search: Callable[[], Search]
    wanted: Outcome = Outcome.PASS
    signature: str | None = None
    measures: bool = False  # the answers' values are errors to be held against the tolerance
    baseline: bool = True  # ask first whether the fault is gone when nothing is applied
    baseline_hint: str = "the model may not be deterministic: --repeat 3 tells"
    runs_programs: bool = False  # the recipe has time limits of its own
    repair: MakeRepair = no_repair

    def describe(self, query: Query) -> str:
        """A query in words: the shorter side of it, by name."""
        kept = [c.id for c in self.candidates if c.id not in query]
        total = len(self.candidates)
        if not kept:
            return f"all {total} {self.applied_word}"
        if not query:
            return f"none of {total} {self.applied_word}"
        if len(kept) <= len(query):
            return f"all but {len(kept)} of {total} {self.applied_word}: {name_some(self.candidates, kept)} {self.kept_word}"
        return f"{len(query)} of {total} {self.applied_word}: {name_some(self.candidates, query)}"
