"""What a page says of one bisection: its files read as far as they go, the verdict in words, the rows of its tables."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from harness.errors import ParseError
from harness.record import Outcome, Session
from reports import schema, units
from reports.figures import bisection as figures
from reports.pages.tiles import Tile
from reports.schema import Candidate, Step, Trial

TEMPLATE = "bisect.html"
TRIALS = "raw/trials/trials.jsonl"  # of searches that build engines
NOUNS = {"route": "setting", "fusion": "tensor"}
AROUND, MOST_LINES = 3, 400  # lines of a source on either side of a culprit, and in all
AT_LINE = re.compile(r"line (\d+):")


@dataclass(frozen=True)
class Culprit:
    """A row of the culprits' table. `number` is the one on the graph; `feeds` are numbers of culprits that read it."""

    number: int | None
    node: str
    op_type: str = ""
    scope: str = ""
    sensitivity: float | None = None
    feeds: tuple[int, ...] = ()


@dataclass(frozen=True)
class SourceLine:
    """A line of a source beside a culprit, or that of one; number 0 stands for lines that are left out."""

    number: int
    text: str = ""
    guilty: bool = False


@dataclass(frozen=True)
class Bisection:
    """The files of a bisection's session; `gaps` says what is missing or unreadable."""

    manifest: Mapping[str, Any]
    result: Mapping[str, Any] | None
    candidates: tuple[Candidate, ...]
    edges: tuple[tuple[int, int], ...]
    steps: tuple[Step, ...]
    gaps: tuple[str, ...] = ()
    trials: tuple[Trial, ...] = ()
    repaired: tuple[str, ...] = ()  # lines of the source written in the end, where statements of one were searched

    @property
    def found(self) -> Mapping[str, Any]:
        return self.result or {}

    @property
    def status(self) -> str:
        """`found`, `nothing_to_find`, `undecided`, `stopped`, or `interrupted` where no result was written."""
        return "interrupted" if self.result is None else self.text("status") or "undecided"

    @property
    def fault(self) -> str:
        return self.text("fault") or schema.text(self.manifest.get("fault")) or "precision"

    @property
    def model(self) -> Mapping[str, Any]:
        return schema.mapping(self.manifest.get("model"))

    @property
    def noun(self) -> str:
        """What the candidates are: nodes or tensors of a model, settings of a builder, or statements of a source."""
        return "statement" if self.of_source else NOUNS.get(self.fault, "node")

    @property
    def of_source(self) -> bool:
        """Whether the candidates are statements of a kernel, which have no sensitivities and lie on no graph."""
        return "lines" in self.model

    @property
    def hands_over(self) -> str:
        """What the file is that the search wrote in the end."""
        name = self.text("model_out")
        if ".culprit-" in name:
            return "The culprit alone"
        if self.of_source:
            return "Smallest source that fails" if ".reduced." in name else "Repaired source"
        return "Repaired model"

    @property
    def measured(self) -> bool:
        """Whether any candidate's sensitivity is known."""
        return any(candidate.sensitivity is not None for candidate in self.candidates)

    @property
    def valued(self) -> bool:
        """Whether any step has an error."""
        return any(step.value is not None for step in self.steps)

    @property
    def listing(self) -> list[SourceLine]:
        """The source that was written in the end, around the culprits."""
        guilty = {int(found[1]) for row in self.culprits if (found := AT_LINE.match(row.node))}
        return list(_around(self.repaired, guilty))

    @property
    def tolerance(self) -> float | None:
        given = schema.real(self.found.get("tolerance"))
        return schema.real(self.manifest.get("tolerance")) if given is None else given

    @cached_property
    def culprits(self) -> tuple[Culprit, ...]:
        """In topological order; names that no candidate holds come last, without a number."""
        guilty = [index for index, candidate in enumerate(self.candidates) if candidate.culprit]
        numbers = {index: number for number, index in enumerate(guilty, 1)}
        names = self.texts("culprits")
        rows = []
        for index in guilty:
            one = self.candidates[index]
            feeds = tuple(sorted(numbers[b] for a, b in self.edges if a == index and b in numbers and b != index))
            for node in [name for name in one.nodes if name in names] or one.nodes:
                rows.append(Culprit(numbers[index], node, one.op_type, one.scope, one.sensitivity, feeds))
        held = {node for index in guilty for node in (*self.candidates[index].nodes, self.candidates[index].key)}
        return (*rows, *(Culprit(None, name) for name in names if name not in held))

    @property
    def headline(self) -> str:
        return _headline(self)

    @property
    def facts(self) -> str:
        """The numbers behind the headline, as one line of text."""
        return "; ".join(filter(None, [_error_fact(self), _effort_fact(self)]))

    @property
    def tiles(self) -> list[Tile]:
        return _tiles(self)

    @property
    def scopes(self) -> list[str]:
        """The scopes of the culprits, each once, in order."""
        return list(dict.fromkeys(row.scope for row in self.culprits if row.scope))

    @property
    def captions(self) -> dict[str, str]:
        """What each figure shows, with its unit and its count, by the name of its place on the page."""
        return {"steps": _steps_caption(self), "graph": _graph_caption(self), "sensitivities": _ranks_caption(self),
                "latencies": _latencies_caption(self)}  # fmt: skip

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts in the result; empty if there is none."""
        return schema.texts(self.found.get(key))

    def text(self, key: str) -> str:
        """A text in the result; empty if there is none."""
        return schema.text(self.found.get(key))

    def draw(self) -> dict[str, go.Figure]:
        """The figures that can be drawn, by the name of their place on the page."""
        drawn = {
            "steps": figures.draw_steps(self.steps, self.tolerance, self.noun),
            "graph": figures.draw_graph(self.candidates),
            "sensitivities": figures.draw_sensitivities(self.candidates, self.tolerance),
            "latencies": figures.draw_latencies(self.trials, self.tolerance),
        }
        return {name: figure for name, figure in drawn.items() if figure is not None}


def read(session: Session) -> Bisection:
    """Read what lies in the folder. Raises ArtifactMissing or ParseError only for the manifest; the rest becomes gaps."""
    gaps: list[str] = []
    manifest = session.read_json("manifest.json")
    result = schema.read_document(session, "result.json", "the search did not come to its end", gaps)
    listed = (
        schema.read_document(session, "candidates.json", "the graph and the sensitivities cannot be drawn", gaps) or {}
    )
    candidates = [schema.read_candidate(row) for row in _rows(listed.get("candidates"))]
    names = set(schema.texts((result or {}).get("culprits")))
    candidates = [replace(c, culprit=c.culprit or c.key in names or not names.isdisjoint(c.nodes)) for c in candidates]
    edges = [schema.read_edge(row, len(candidates)) for row in _rows(listed.get("edges"))]
    steps = list(_steps(session, gaps))
    made = Bisection(
        manifest, result, tuple(candidates), tuple(e for e in edges if e), tuple(steps), tuple(gaps), _trials(session)
    )
    return replace(made, repaired=_repaired(session, made)) if made.of_source else made


def _repaired(session: Session, run: Bisection) -> tuple[str, ...]:
    """The source that the search wrote into its folder; none where there is none, or it was moved."""
    try:
        text = (session.folder / Path(run.text("model_out")).name).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ()
    return tuple(text.splitlines())


def _around(lines: Sequence[str], guilty: Set[int]) -> Iterator[SourceLine]:
    near = [n for n in range(1, len(lines) + 1) if any(abs(n - at) <= AROUND for at in guilty)][:MOST_LINES]
    before = 0
    for number in near:
        if number != before + 1:
            yield SourceLine(0)
        yield SourceLine(number, lines[number - 1], number in guilty)
        before = number
    if near and before < len(lines):
        yield SourceLine(0)


def _steps(session: Session, gaps: list[str]) -> Iterator[Step]:
    number = 0
    try:
        for number, row in enumerate(session.steps(), 1):
            step = schema.read_step(row, number)
            if step is None:
                gaps.append(f"steps.jsonl: row {number} is no object and is left out.")
            else:
                yield step
    except (ParseError, UnicodeDecodeError) as error:
        where = error.field if isinstance(error, ParseError) else "a byte that is not UTF-8"
        gaps.append(f"steps.jsonl cannot be read from {where} on; the steps before it are shown.")
    if number == 0:
        gaps.append("steps.jsonl holds no step: the search had not begun, or the file is missing.")


def _trials(session: Session) -> tuple[Trial, ...]:
    """The engines that were tried; none in a search without, and a torn line is left out."""
    path = session.folder / TRIALS
    if not path.is_file():
        return ()
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            found.append(schema.read_trial(json.loads(line)))
        except ValueError:
            continue
    return tuple(trial for trial in found if trial is not None)


def _rows(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


# The verdict in words.


def _headline(run: Bisection) -> str:
    share = _share(run, len(run.culprits))
    match run.status:
        case "nothing_to_find":
            return f"Nothing to find: {_lowered(run)}"
        case "found" if run.culprits:
            return f"{share} {_blame(run, len(run.culprits))}"
        case "stopped" if run.culprits:
            return f"Stopped early; best so far: {share} {_blame(run, len(run.culprits))}"
        case "undecided" if run.culprits:
            return f"Undecided: at least {share} {_blame(run, len(run.culprits))}"
        case "stopped" if waiting := len(run.texts("undecided")):
            return f"Stopped early: {_share(run, waiting)} still to be judged, the others are cleared"
        case "stopped":
            return "Stopped before any culprit was known"
        case "interrupted":
            return f"Interrupted after {units.plural(len(run.steps), 'step')}: there is no result yet"
        case "undecided" if run.fault == "route":
            return "Undecided: no setting cures it, alone or together"
        case _:
            undecided = len(run.texts("undecided"))
            return f"Undecided: {_share(run, undecided)} could not be judged" if undecided else "Undecided"


def _blame(run: Bisection, number: int) -> str:
    one = number == 1
    return {
        "precision": "must stay in FP32",
        "finite": "makes values that are not finite" if one else "together make values that are not finite",
        "compare": "makes the models differ" if one else "make the models differ",
        "build": "breaks the build" if one else "break the build",
        "crash": "crashes, hangs or computes wrongly" if one else "crash, hang or compute wrongly",
        "fusion": "must be materialised",
        "route": "must be changed",
        "check": "is to blame for the failing check" if one else "are to blame for the failing check",
        "sanitizer": "must be there for the findings of the sanitizer"
        if one
        else "must each be there for a finding of the sanitizer",
        "nan": "makes NaN or Inf" if one else "make NaN or Inf",
        "mismatch": "makes the results differ" if one else "make the results differ",
    }.get(run.fault, "is to blame" if one else "are to blame")


def _lowered(run: Bisection) -> str:
    precision = (schema.text(run.manifest.get("precision")) or "lower precision").upper()
    ran = any(trial.latency_ns is not None for trial in run.trials)
    return {
        "precision": f"every node can be stored in {precision}",
        "finite": "every value is finite",
        "compare": "the models agree",
        "build": "the model builds",
        "crash": "the engine builds, runs and is right" if ran else "the engine builds; it was not run",
        "fusion": "the engine is right with every fusion",
        "route": f"the engine {'is right' if ran else 'builds'} with the builder's defaults",
        "check": "the check passes",
        "sanitizer": "the sanitizer has no findings",
        "nan": "no NaN or Inf is made",
        "mismatch": "the results are as expected",
    }.get(run.fault, "the model passes")


def _share(run: Bisection, number: int) -> str:
    total = None if run.fault in NOUNS else schema.integer(run.model.get("nodes"))
    total = total or len(run.candidates) or None
    return f"{units.count(number)} of {units.plural(total, run.noun)}" if total else units.plural(number, run.noun)


def _error_fact(run: Bisection) -> str:
    tolerance = f", tolerance {units.percent(run.tolerance)}" if run.tolerance is not None else ""
    change = _error_change(run)
    return f"error {change}{tolerance}" if change else ""


def _error_change(run: Bisection) -> str:
    before, after = (schema.real(run.found.get(key)) for key in ("error_before", "error_after"))
    if before is None or after is None or (run.status == "nothing_to_find" and before == after):
        known = after if before is None else before
        return "" if known is None else units.percent(known)
    return f"{units.percent(before)} → {units.percent(after)}"


def _proof_fact(run: Bisection) -> str:
    if run.status == "nothing_to_find" or not run.culprits:
        return ""
    return "proven minimal" if run.found.get("certified_minimal") is True else "not proven minimal"


def _effort_fact(run: Bisection) -> str:
    wall = schema.real(run.found.get("wall_s"))
    spent = f", {units.seconds(wall)}" if wall is not None else ""
    return f"{_proof_fact(run)} in {units.plural(_evaluations(run), 'evaluation')}{spent}".removeprefix(" in ")


def _evaluations(run: Bisection) -> int:
    """As the result says, else counted from the steps."""
    said = schema.integer(run.found.get("evaluations"))
    return sum(not step.cached for step in run.steps) if said is None else said


def _tiles(run: Bisection) -> list[Tile]:
    tiles = []
    if change := _error_change(run):
        limit = "" if run.tolerance is None else f"relative L2, tolerance {units.percent(run.tolerance)}"
        tiles.append(Tile("Error", change, limit))
    if proof := _proof_fact(run):
        certain = proof == "proven minimal"
        tiles.append(Tile("Minimal", "proven" if certain else "not proven", _minimal_remark(run, certain)))
    tiles.append(Tile("Evaluations", units.count(_evaluations(run)), _tally(run)))
    tiles.append(_time_tile(run))
    return tiles


def _minimal_remark(run: Bisection, certain: bool) -> str:
    if not certain:
        return "a smaller set may do"
    number = len(run.culprits)
    return "it cannot be dropped" if number == 1 else f"none of the {units.count(number)} can be dropped"


def _tally(run: Bisection) -> str:
    cached, unresolved = (schema.integer(run.found.get(key)) for key in ("cached", "unresolved"))
    cached = sum(step.cached for step in run.steps) if cached is None else cached
    unresolved = sum(step.outcome is Outcome.UNRESOLVED for step in run.steps) if unresolved is None else unresolved
    return f"{units.count(cached)} more from cache, {units.count(unresolved)} unresolved"


def _time_tile(run: Bisection) -> Tile:
    wall = schema.real(run.found.get("wall_s"))
    spent = [step.duration_s for step in run.steps if step.duration_s is not None and not step.cached]
    mean = f"{units.seconds(sum(spent) / len(spent))} per evaluation, mean" if spent else ""
    return Tile("Time", units.seconds(sum(spent) if wall is None and spent else wall), mean)


# Captions: what a figure shows, its unit, its count.


def _steps_caption(run: Bisection) -> str:
    total = units.plural(len(run.steps), "step")
    if not run.valued:
        return f"{total}. Each mark is one evaluation: how many {run.noun}s were under test, and whether it passed."
    odd = [step.value for step in run.steps if step.value is not None and not math.isfinite(step.value)]
    lane = f" {units.plural(len(odd), 'value')} not finite (NaN or Inf), in the shaded band at the top." if odd else ""
    return f"{total}. Each mark is one evaluation; the height is the relative L2 error of the worst output, in percent.{lane}"


def _graph_caption(run: Bisection) -> str:
    guilty = sum(candidate.culprit for candidate in run.candidates)
    count = f"{units.plural(len(run.candidates), 'candidate')}, {units.plural(guilty, 'culprit')}"
    scoped = any(candidate.scope for candidate in run.candidates)
    below = "scopes below, those with culprits in orange" if scoped else "the node names carry no scopes"
    return f"{count}, from the model's inputs (left) to its outputs. Height: sensitivity; {below}."


def _ranks_caption(run: Bisection) -> str:
    ranked = figures.rank(run.candidates)
    shown, measured = (sum(map(len, groups)) for groups in (ranked[: figures.TOP], ranked))
    cut = f"The {units.count(shown)} most sensitive of" if shown < measured else "All"
    return (
        f"{cut} {units.count(measured)} measured ({units.plural(len(run.candidates), 'candidate')} in all), as relative L2 error in percent."
        " Candidates measured as one group share a bar: the group's error over the root of its size."
    )


def _latencies_caption(run: Bisection) -> str:
    timed = sum(trial.latency_ns is not None and trial.error is not None for trial in run.trials)
    return f"{units.plural(timed, 'engine')} that ran: median time of an inference on the device, against the worst output's relative L2 error."
