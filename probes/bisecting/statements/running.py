"""`probe bisect FILE.cu`: which statements of a kernel are to blame, or the smallest kernel that still shows the fault."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from harness.cuda import pruned
from harness.cuda import source as cuda_source
from harness.cuda.source import Entry, Source
from harness.errors import BuildFailed, UsageError
from harness.record import SCHEMA_VERSION, Answer, Outcome, Session
from harness.workers import Recipe
from probes.bisecting.candidates import Candidate, by_scope
from probes.bisecting.concluding import Asked
from probes.bisecting.curing import finest_cure, smallest_cure
from probes.bisecting.evaluating import Effort, Tell
from probes.bisecting.question import AnswerQuestion, Question, Repair
from probes.bisecting.search import Ask, Found, smallest_kept
from probes.bisecting.searching import Bisection, search_session
from probes.bisecting.statements import statements
from probes.bisecting.statements.recipes import Commented, Switched, Verdict
from probes.bisecting.statements.settings import StatementSettings
from probes.bisecting.statements.statements import Piece

SETTINGS = "raw/settings.json"
EVERYTHING_FAILS = "taking out statements must be able to cure it; --reduce finds the smallest kernel that still fails"


def start(settings: StatementSettings, out: Path | None, tell: Tell) -> Bisection:
    """Search in a fresh session; everything needed to resume it is written first."""
    settings.check_consistency()
    source, entry = _read(settings)
    parts = statements.pieces(source, entry)
    if not parts:
        raise UsageError(f"{settings.source.name}: {entry.name} has no statement that can be taken out")
    session = Session.create("bisect", out)
    session.write_json(SETTINGS, settings.to_json())
    session.write_json("manifest.json", _manifest(settings, source, len(parts)))
    return _run(settings, session, tell)


def resume(session: Session, tell: Tell) -> Bisection:
    """Go on where a session ended; what it has answered is not asked again."""
    settings = StatementSettings.from_json(session.read_json(SETTINGS))
    recorded = session.read_json("manifest.json")["model"]["sha256"]
    if (now := _sha256(settings.source.read_bytes())) != recorded:
        raise UsageError(f"{settings.source} has changed since {session.folder} was written (sha256 {now[:12]}, then {recorded[:12]})",
                         hint="start a new search: its answers belong to another source")  # fmt: skip
    return _run(settings, session, tell)


def of_statements(session: Session) -> bool:
    """Whether a session of `probe bisect` is about a kernel's statements."""
    return "source" in session.read_json(SETTINGS)


def _run(settings: StatementSettings, session: Session, tell: Tell) -> Bisection:
    effort = Effort(settings.jobs, None, settings.timeout, settings.budget, settings.repeat)
    asked = Asked(settings.fault, settings.command(), settings.tolerance)
    return search_session(session, lambda: _pose(settings, session), effort, asked, lambda _: [], tell)


def _read(settings: StatementSettings) -> tuple[Source, Entry]:
    source = cuda_source.read(settings.source)
    return source, cuda_source.entry_of(source, settings.entry)


# The questions


@dataclass(frozen=True)
class _Kernel:
    """What both questions, and the repair, are about. `switched` is the build that answers them, if there is one."""

    settings: StatementSettings
    source: Source
    entry: Entry
    parts: tuple[Piece, ...]  # statements, then the operands inside them
    statements: int
    switched: Path | None

    @property
    def verdict(self) -> Verdict:
        return Verdict(self.settings.fault, self.settings.expect, self.settings.tolerance)

    @property
    def inside(self) -> dict[int, tuple[int, ...]]:
        """The statements within each statement."""
        parts = self.parts[: self.statements]
        return {
            outer: inner for outer, around in enumerate(parts)
            if (inner := tuple(n for n, part in enumerate(parts) if n != outer and _within(part, around)))
        }  # fmt: skip

    def recipe(self, asked: Sequence[int], session: Session) -> Recipe:
        """Queries name pieces among `asked`; all others stay."""
        settings = self.settings
        common: dict[str, Any] = {"timeout_s": settings.timeout, "taken_out": settings.reduce}
        if settings.check is not None:
            return Commented(settings.source, self.parts, session.raw, check=settings.check, **common)
        launch = replace(settings.launch, entry=self.entry.name)
        if self.switched is None:
            return Commented(settings.source, self.parts, session.raw, self.verdict, launch, **common)
        others = frozenset(range(len(self.parts))) - frozenset(asked)
        return Switched(self.switched, len(self.parts), others, launch, self.verdict, **common)


def _pose(settings: StatementSettings, session: Session) -> Question:
    kernel = _prepare(settings, session)
    found = statements.candidates(kernel.source, kernel.parts)[: kernel.statements]
    ids, recipe = [c.id for c in found], kernel.recipe(range(kernel.statements), session)
    if settings.reduce:
        return Question("reduce", found, recipe, "commented out", "left in", partial(_smallest_failing, found),
                        wanted=Outcome.FAIL, baseline=False, runs_programs=True, repair=_write_reduced(kernel))  # fmt: skip
    return Question("statements", found, recipe, "left in", "commented out", partial(finest_cure, ids, by_scope(found), kernel.inside),
                    measures=settings.fault == "mismatch", baseline=False, runs_programs=True, repair=_write_repaired(kernel))  # fmt: skip


def _prepare(settings: StatementSettings, session: Session) -> _Kernel:
    """One build with a switch a piece, if there can be one: with expressions, else with statements alone."""
    source, entry = _read(settings)
    whole = statements.pieces(source, entry)
    plain = _Kernel(settings, source, entry, tuple(whole), len(whole), None)
    if settings.check is not None or settings.reduce:
        return plain if settings.check is not None else _switch(plain, session) or plain
    fine = replace(plain, parts=(*whole, *statements.operands(source, whole)))
    return _switch(fine, session) or _switch(plain, session) or plain


def _switch(kernel: _Kernel, session: Session) -> _Kernel | None:
    """None if the source does not compile with its switches (a constant that must be one, an operand of another type)."""
    lean = pruned.prune(kernel.source, kernel.entry)
    made_of = statements.switched(lean, kernel.parts, kernel.entry, watch=kernel.settings.fault == "nan")
    text = pruned.find_includes(made_of, kernel.settings.source.parent)
    path = session.raw / f"switched-{_sha256(text)[:12]}-{kernel.settings.source.name}"
    path.write_bytes(text)
    made = replace(kernel, switched=path)
    try:
        made.recipe((), session).prepare()(frozenset())
    except BuildFailed:
        return None
    return made


def _smallest_failing(found: Sequence[Candidate]) -> Generator[Ask, Answer, Found]:
    """Comment out as much as possible while the very same failure stays."""
    ids = [c.id for c in found]
    whole = yield Ask(frozenset(), ((1.0, Answer(Outcome.FAIL)),))
    if whole.outcome is not Outcome.FAIL:
        return Found(frozenset(ids))  # it does not fail: nothing to find
    return (
        yield from smallest_kept(
            ids, wanted=Outcome.FAIL, signature=whole.signature, groups=by_scope(found), scope_first=True
        )
    )


# What is written in the end


def _write_repaired(kernel: _Kernel):  # type: ignore[no-untyped-def]
    """The source without the culprits; and, inside them, the few expressions that are enough."""

    def write(found: Found, session: Session, answer: AnswerQuestion) -> Repair:
        if not found.kept or found.undecided:
            return Repair(None, (EVERYTHING_FAILS,) if found.undecided else ())
        out, notes = frozenset(found.kept), _expressions(kernel, found, session, answer)
        path = session.folder / f"{kernel.settings.source.stem}.repaired{kernel.settings.source.suffix}"
        path.write_bytes(statements.commented(kernel.source, kernel.parts, out))
        return Repair(path.name, (f"{path.name} has {_count(len(out))} commented out", *notes))

    return write


def _expressions(kernel: _Kernel, found: Found, session: Session, answer: AnswerQuestion) -> tuple[str, ...]:
    """The smallest set of expressions inside the culprits that need to become their operand; nothing, if none is enough."""
    inside = [
        number for number in range(kernel.statements, len(kernel.parts))
        if any(_within(kernel.parts[number], kernel.parts[culprit]) for culprit in found.kept)
    ]  # fmt: skip
    if not inside or kernel.switched is None:
        return ()
    everything = statements.candidates(kernel.source, kernel.parts)
    question = Question(
        "expressions", [everything[number] for number in inside], kernel.recipe(inside, session), "left in", "shortened",
        partial(smallest_cure, inside), baseline=False, runs_programs=True,
    )  # fmt: skip
    cure = answer(question)
    if not cure.kept or cure.undecided:
        return ("no expression inside the culprits cures it by being shortened to its operand",)
    return tuple(
        f"shortened to its operand it is cured, too: {everything[number].key} -> {_operand(kernel, number)}"
        for number in cure.kept
    )


def _within(inner: Piece, outer: Piece) -> bool:
    return outer.start <= inner.start and inner.end <= outer.end


def _operand(kernel: _Kernel, number: int) -> str:
    return kernel.source.text[slice(*kernel.parts[number].keep)].decode("utf-8", "replace")


def _write_reduced(kernel: _Kernel):  # type: ignore[no-untyped-def]
    def write(found: Found, session: Session, answer: AnswerQuestion) -> Repair:
        if not found.kept:
            return Repair()
        path = session.folder / f"{kernel.settings.source.stem}.reduced{kernel.settings.source.suffix}"
        path.write_bytes(statements.commented(kernel.source, kernel.parts, found.applied))
        return Repair(path.name, (f"{path.name} is the smallest kernel that still fails: {len(found.kept)} of"
                                  f" {_count(kernel.statements)} left",))  # fmt: skip

    return write


def _count(number: int) -> str:
    return f"{number} statement{'s' * (number != 1)}"


def _manifest(settings: StatementSettings, source: Source, count: int) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION, "verb": "bisect", "argv": settings.command().split()[1:],
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": {"name": settings.source.name, "sha256": _sha256(source.text), "nodes": count, "lines": len(source.lines)},
        "versions": {"python": platform.python_version(), "probe": metadata.version("probe-trt")},
        "platform": f"{platform.system()} {platform.machine()}", "fault": settings.fault,
        "tolerance": settings.tolerance if settings.fault == "mismatch" else None,
        "backend": "check" if settings.check is not None else "emulation", "notes": [],
    }  # fmt: skip


def _sha256(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()
