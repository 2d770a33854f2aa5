"""What has been asked and answered in a session, appended step by step to steps.jsonl, so that nothing is asked twice."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from harness.record import Answer, Outcome, Session, number
from harness.workers import Done, Query


class Journal:
    """Answers by phase of the search and query; those of an earlier, interrupted run are read back first."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._answers: dict[str, dict[Query, Answer]] = {}
        self._recalled: set[tuple[str, Query]] = set()
        self.evaluations = self.cached = self.unresolved = self._step = 0
        self.evaluation_s = 0.0
        self._everything: dict[str, frozenset[int]] = {}
        self._rows = list(session.steps())

    def begin(self, phase: str, everything: Collection[int]) -> None:
        """Declare a phase's candidates; its recorded answers become known."""
        self._everything[phase] = frozenset(everything)
        answers = self._answers.setdefault(phase, {})
        for row in self._rows:
            self._step = max(self._step, int(row["step"]))
            if row["phase"] == phase:
                query = self._decode(phase, row["query"])
                answers[query] = Answer(Outcome(row["outcome"]), number(row["value"]), row["signature"])
                self._recalled.add((phase, query))

    def answers(self, phase: str) -> Mapping[Query, Answer]:
        return self._answers[phase]

    def recall(self, phase: str, query: Query) -> Answer | None:
        """The answer if there is one; one from an earlier run is counted as cached, once."""
        answer = self._answers[phase].get(query)
        if answer is not None and (phase, query) in self._recalled:
            self._recalled.remove((phase, query))
            self.cached += 1
            self.unresolved += answer.outcome is Outcome.UNRESOLVED
        return answer

    def record(self, phase: str, done: Done, candidate: str) -> None:
        self._answers[phase][done.query] = done.answer
        self._step += 1
        self.evaluations += 1
        self.evaluation_s += done.duration_s
        self.unresolved += done.answer.outcome is Outcome.UNRESOLVED
        everything = self._everything[phase]
        self._session.append_step({
            "step": self._step, "phase": phase, "candidate": candidate, "applied": len(done.query),
            "kept": len(everything) - len(done.query), "outcome": done.answer.outcome.value, "value": done.answer.value,
            "signature": done.answer.signature, "duration_s": round(done.duration_s, 6), "cached": False,
            "query": self._encode(everything, done.query),
        })  # fmt: skip

    def _encode(self, everything: frozenset[int], query: Query) -> dict[str, Any]:
        """The shorter of the two lists that say the same."""
        kept = everything - query
        return {"kept": sorted(kept)} if len(kept) < len(query) else {"applied": sorted(query)}

    def _decode(self, phase: str, query: Mapping[str, Any]) -> Query:
        if "applied" in query:
            return frozenset(query["applied"])
        return self._everything[phase] - frozenset(query["kept"])
