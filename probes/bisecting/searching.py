"""One search in its session: the question posed, answered, repaired and written down, also when it is cut short."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from harness.errors import EXIT_CLEAN, EXIT_DEFECT, EXIT_UNDECIDED, SearchStopped
from harness.record import Session
from probes.bisecting.concluding import Asked, Edges, Report
from probes.bisecting.evaluating import BudgetSpent, Effort, Tell, answer
from probes.bisecting.journal import Journal
from probes.bisecting.question import Question

EXIT_CODES = {"nothing_to_find": EXIT_CLEAN, "found": EXIT_DEFECT, "undecided": EXIT_UNDECIDED}


@dataclass(frozen=True)
class Bisection:
    """What a search ended with: the session folder, its result.json as a dict, and the exit code."""

    session: Session
    result: dict[str, Any]
    exit_code: int


def search_session(
    session: Session, make: Callable[[], Question], effort: Effort, asked: Asked, edges: Edges, tell: Tell
) -> Bisection:
    """Answer the question that `make` poses, and write down what came of it, also when it is cut short."""
    began = time.monotonic()
    tell("looking at what is bisected")
    try:
        question = make()
    except KeyboardInterrupt:
        raise SearchStopped("interrupted before the first evaluation", None, interrupted=True,
                            hint=f"probe bisect --resume {session.folder}") from None  # fmt: skip
    journal = Journal(session)
    report = Report(session, question, journal, asked, edges, began)
    try:
        found = answer(question, effort, session, journal, tell)
        repair = question.repair(found, session, lambda q: answer(q, effort, session, journal, tell))
    except KeyboardInterrupt:
        note = f"interrupted; go on with probe bisect --resume {session.folder.name}"
        report.write(report.best_so_far(), None, "stopped", [note])
        raise SearchStopped(*report.stopped("interrupted"), interrupted=True) from None
    except BudgetSpent:
        report.write(report.best_so_far(), None, "stopped", [f"stopped after --budget {effort.budget} evaluations"])
        raise SearchStopped(*report.stopped(f"the budget of {effort.budget} evaluations is spent")) from None
    tell("writing the report")
    result = report.write(found, repair, None, list(repair.notes))
    return Bisection(session, result, EXIT_CODES[result["status"]])
