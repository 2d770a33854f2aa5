"""What a search ended with, written down: candidates.json, result.json and report.html of its session."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from harness.record import Session
from probes.bisecting import search
from probes.bisecting.candidates import Candidate
from probes.bisecting.journal import Journal
from probes.bisecting.question import Question, Repair
from reports.pages import page

Edges = Callable[[Sequence[Candidate]], list[tuple[int, int]]]


@dataclass(frozen=True)
class Asked:
    """What the user asked: the fault, the command that asks it again, the tolerance of its errors."""

    fault: str
    command: str
    tolerance: float


@dataclass(frozen=True)
class Report:
    """Writes the result of a finished search, or of what an interrupted one has."""

    session: Session
    question: Question
    journal: Journal
    asked: Asked
    edges: Edges
    began: float  # of time.monotonic

    def best_so_far(self) -> search.Found:
        question = self.question
        applied = search.best_applied(self.journal.answers(question.phase), question.wanted, question.signature)
        kept = tuple(c.id for c in question.candidates if c.id not in applied)
        return search.Found(applied, kept, kept)

    def stopped(self, why: str) -> tuple[str, search.Found]:
        best = self.best_so_far()
        return (f"{why}: so far {len(best.kept)} of {len(self.question.candidates)} {self.question.kept_word};"
                f" probe bisect --resume {self.session.folder} goes on", best)  # fmt: skip

    def write(self, found: search.Found, repair: Repair | None, status: str | None, notes: list[str]) -> dict[str, Any]:
        question, journal, answers = self.question, self.journal, self.journal.answers(self.question.phase)
        everything = frozenset(c.id for c in question.candidates)
        culprits = [c for c in question.candidates if c.id in found.kept and c.id not in found.undecided]
        undecided = [c for c in question.candidates if c.id in found.undecided]
        if status is None:
            status = "found" if culprits else "undecided" if undecided else "nothing_to_find"
        before, after = answers.get(everything), answers.get(found.applied)
        manifest = self.session.read_json("manifest.json")
        result = {
            "fault": self.asked.fault, "status": status, "culprits": [n for c in culprits for n in c.nodes],
            "scopes": list(dict.fromkeys(c.scope for c in culprits)),
            "certified_minimal": bool(found.certified and status in ("found", "nothing_to_find")),
            "evaluations": journal.evaluations, "cached": journal.cached, "unresolved": journal.unresolved,
            "wall_s": round(time.monotonic() - self.began, 3), "evaluation_s": round(journal.evaluation_s, 3),
            "error_before": before.value if before else None, "error_after": after.value if after else None,
            "tolerance": self.asked.tolerance if question.measures else None,
            "signatures": {c.key: s for c in culprits if (s := self._signature(found, c.id))},
            "model_out": repair.model_out if repair else None, "repro_command": self.asked.command,
            "undecided": [n for c in undecided for n in c.nodes], "candidates": len(question.candidates),
            "notes": manifest.get("notes", []) + notes, "session": str(self.session.folder),
        }  # fmt: skip
        self.session.write_json("candidates.json", {
            "candidates": [
                {"key": c.key, "op_type": c.op_type, "scope": c.scope, "nodes": list(c.nodes), "sensitivity": found.sensitivity.get(c.id),
                 "culprit": c in culprits, "undecided": c in undecided} for c in question.candidates
            ],
            "edges": self.edges(question.candidates),
        })  # fmt: skip
        self.session.write_json("result.json", result)
        page.write(self.session)
        return result

    def _signature(self, found: search.Found, candidate: int) -> str | None:
        """How the fault shows with this candidate applied on top of the rest: its own failure, among several."""
        answer = self.journal.answers(self.question.phase).get(found.applied | {candidate})
        return answer.signature if answer else None
