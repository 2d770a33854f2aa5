"""The rows of a session's files as typed records, read tolerantly: an interrupted run leaves fields out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.errors import ArtifactMissing, ParseError
from harness.record import Outcome, Session, number


def read_document(session: Session, name: str, loss: str, gaps: list[str]) -> dict[str, Any] | None:
    """A JSON file of a session; where it cannot be had, None, and `gaps` says so and what is lost by it."""
    try:
        return session.read_json(name)
    except ArtifactMissing:
        gaps.append(f"{name} is missing: {loss}.")
    except ParseError as error:
        gaps.append(f"{name} cannot be read ({error.field}: expected {error.expected}, got {error.got}): {loss}.")
    return None


@dataclass(frozen=True)
class Step:
    """One evaluation of a search, a row of steps.jsonl. `value` is a relative L2 error where the verdict has one."""

    step: int
    candidate: str
    outcome: Outcome
    value: float | None = None  # a fraction, not percent; inf or NaN where an output was not finite
    kept: int | None = None
    applied: int | None = None
    duration_s: float | None = None
    cached: bool = False
    signature: str | None = None


@dataclass(frozen=True)
class Candidate:
    """One thing that could be taken out, in topological order.

    `sensitivity`: relative L2 error of lowering it, or that of a group it was measured in over the root of its size.
    """

    key: str
    op_type: str = ""
    scope: str = ""
    nodes: tuple[str, ...] = ()
    sensitivity: float | None = None
    culprit: bool = False
    undecided: bool = False


@dataclass(frozen=True)
class Trial:
    """One engine of a search that builds engines, a row of trials.jsonl. `error` is a fraction."""

    engine: str
    outcome: Outcome
    error: float | None = None
    latency_ns: float | None = None
    build_s: float | None = None
    cached: bool = False


def read_trial(row: Any) -> Trial | None:
    """A row of trials.jsonl; None if it is no object."""
    if not isinstance(row, Mapping):
        return None
    outcome = text(row.get("outcome"))
    return Trial(
        text(row.get("engine")), Outcome(outcome) if outcome in set(Outcome) else Outcome.UNRESOLVED,
        real(row.get("error")), real(row.get("latency_ns")), real(row.get("build_s")), row.get("cached") is True,
    )  # fmt: skip


def read_step(row: Any, number: int) -> Step | None:
    """A row of steps.jsonl, the `number`-th (from 1); None if it is no object. An unknown outcome is UNRESOLVED."""
    if not isinstance(row, Mapping):
        return None
    outcome = text(row.get("outcome"))
    return Step(
        step=integer(row.get("step")) or number,
        candidate=text(row.get("candidate")),
        outcome=Outcome(outcome) if outcome in set(Outcome) else Outcome.UNRESOLVED,
        value=real(row.get("value")),
        kept=integer(row.get("kept")),
        applied=integer(row.get("applied")),
        duration_s=real(row.get("duration_s")),
        cached=row.get("cached") is True,
        signature=text(row.get("signature")) or None,
    )


def read_candidate(row: Any) -> Candidate:
    """An entry of candidates.json; an empty one if it is no object, so that the edges keep their indices."""
    row = mapping(row)
    key = text(row.get("key"))
    return Candidate(
        key=key,
        op_type=text(row.get("op_type")),
        scope=text(row.get("scope")),
        nodes=texts(row.get("nodes")) or (key,),
        sensitivity=real(row.get("sensitivity")),
        culprit=row.get("culprit") is True,
        undecided=row.get("undecided") is True,
    )


def read_edge(row: Any, nodes: int) -> tuple[int, int] | None:
    """A pair (producer, consumer) of indices below `nodes`; None if it is anything else."""
    if not isinstance(row, list) or len(row) != 2:
        return None
    producer, consumer = integer(row[0]), integer(row[1])
    if producer is None or consumer is None or not (0 <= producer < nodes and 0 <= consumer < nodes):
        return None
    return producer, consumer


def real(value: Any) -> float | None:
    value = number(value)
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        return float(value)
    except OverflowError:  # an integer that no float holds
        return math.inf if value > 0 else -math.inf


def integer(value: Any) -> int | None:
    """A count that 64 bits hold."""
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63 else None


def text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def texts(value: Any) -> tuple[str, ...]:
    return tuple(item for item in value if isinstance(item, str)) if isinstance(value, list) else ()


def mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
