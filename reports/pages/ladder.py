"""What a page says of one `probe ladder`: every step's speed and accuracy, the routes side by side, and the talk's scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import plotly.graph_objects as go

from harness.record import Session
from harness.record import number as finite
from reports import schema, units
from reports.figures import ladder as ladder_figures
from reports.pages.tiles import Tile

TEMPLATE = "ladder.html"
COLUMNS = ("Median", "p99", "Sequences/s", "On the one before", "In total", "Error", "Cosine", "Of the roofline", "Memory",
           "Built in")  # fmt: skip

PART_COLUMNS = ("Launches", "Blocks of one", "Bytes", "FLOPs", "Needed at the least", "Took", "Of the roofline")
SUMMED = ("launches", "bytes", "flops", "bound_ns", "total_ns")
SCALES = (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3), ("", 1.0))
LEAST_GAIN = 1.01  # a factor that is worth a word

# Of the talk that the ladder follows, 1 to 5.
SCORES = (
    ("conversion tools (ONNX parser, Torch-TensorRT, TVM)", ("onnx", "torch", "torch-tensorrt", "tvm"), (4, 2, 2, 2)),
    ("network API and plugins", ("plugins",), (1, 5, 4.5, 5)),
    ("one huge engine", ("kernels",), (1, 3.5, 5, 4)),
)


@dataclass(frozen=True)
class Row:
    """A step on a route, as it is shown; `raw` is its row of result.json."""

    raw: Mapping[str, Any]

    def number(self, name: str) -> float | None:
        return schema.real(finite(self.raw.get(name)))

    def text(self, name: str) -> str:
        return schema.text(self.raw.get(name))

    @property
    def rung(self) -> str:
        return self.text("rung")

    @property
    def title(self) -> str:
        return self.text("title")

    @property
    def route(self) -> str:
        return self.text("route")

    @property
    def route_title(self) -> str:
        return self.text("route_title")

    @property
    def status(self) -> str:
        return self.text("status")

    @property
    def shown_status(self) -> str:
        """A step that ran on the CPU in the GPU's place was checked, not measured."""
        return "checked" if self.number("emulated_s") is not None else self.status

    @property
    def note(self) -> str:
        return self.text("note")

    @property
    def aside(self) -> bool:
        return self.raw.get("aside") is True

    @property
    def median_ns(self) -> float | None:
        return schema.real(schema.mapping(self.raw.get("latency_ns")).get("median"))

    @property
    def p99_ns(self) -> float | None:
        return schema.real(schema.mapping(self.raw.get("latency_ns")).get("p99"))

    @property
    def error(self) -> float | None:
        return self.number("relative_l2")

    @property
    def operations(self) -> list[Mapping[str, Any]]:
        return [one for one in self.raw.get("operations") or () if isinstance(one, Mapping)]

    @property
    def layer_errors(self) -> list[float | None]:
        return [schema.real(finite(schema.mapping(one).get("relative_l2"))) for one in self.raw.get("layers") or ()]

    @property
    def cells(self) -> list[tuple[float | None, str]]:
        """Value to sort by and text, for each of COLUMNS."""
        before, total, roofline = (self.number(name) for name in ("speedup_previous", "speedup_total", "roofline_pct"))
        throughput, cosine, memory, built = (
            self.number(name) for name in ("throughput", "cosine", "memory_bytes", "build_s")
        )
        return [
            (self.median_ns, _time(self.median_ns)), (self.p99_ns, _time(self.p99_ns)), (throughput, units.count(throughput)),
            (before, _times(before)), (total, _times(total)), (self.error, units.percent(self.error)),
            (cosine, units.ABSENT if cosine is None else f"{cosine:.6f}"),
            (roofline, units.ABSENT if roofline is None else f"{units.significant(roofline)} %"),
            (memory, units.size(memory)), (built, units.seconds(built)),
        ]  # fmt: skip

    @property
    def said(self) -> str:
        """The step with its route; the route alone where it has no step at all."""
        return self.route_title if self.raw.get("whole_route") is True else f"{self.title}, {self.route_title}"


@dataclass(frozen=True)
class Part:
    """An operation of a step, all layers together: value to sort by and text of each column."""

    name: str
    cells: tuple[tuple[float | None, str], ...]


@dataclass(frozen=True)
class Figure:
    """A figure's place on the page, and what is said where it cannot be drawn."""

    key: str
    title: str
    caption: str
    instead: str


FIGURES = (
    Figure("waterfall", "Step by step", "Our kernels; in brackets the speed-up on the step before. Grey: side steps, on which "
           "the next ones do not build.", "no GPU is here, and the emulation's times say nothing of one."),
    Figure("pareto", "Speed against accuracy", "Below and to the left is better.", "needs times and errors of the same steps."),
    Figure("routes", "Routes side by side", "Steps that more than one route has; all, where there is none.", "no route was timed."),
    Figure("operations", "Time by operation", "Each operation's launches of all layers by themselves, as a CUDA graph of their "
           "own.", "no operation was timed: that needs a GPU."),
    Figure("roofline", "Roofline", "All operations of a step together: what the definition asks for, over the time that it "
           "took.", "needs a GPU, whose copy and product rates are the roofs."),
    Figure("errors", "Error of each step", "Against float64.", "no error is known."),
    Figure("layers", "Error after each layer", "Where a step loses accuracy.", "only our kernels tell what each layer made."),
)  # fmt: skip
OF_FUSION = ("waterfall", "errors")  # which has one route, and no layers


@dataclass(frozen=True)
class Score:
    """What the talk says of a way to convert, and what was measured of it here."""

    way: str
    scores: tuple[str, ...]
    best: str
    step: str


@dataclass(frozen=True)
class View:
    """The files of a session; `gaps` says what is missing or unreadable."""

    manifest: Mapping[str, Any]
    result: Mapping[str, Any]
    steps: tuple[Mapping[str, Any], ...]
    gaps: tuple[str, ...] = ()

    @cached_property
    def rows(self) -> list[Row]:
        """Of result.json; of steps.jsonl where the run was interrupted."""
        return [Row(row) for row in self.result.get("rungs") or self.steps if isinstance(row, Mapping)]

    @cached_property
    def columns(self) -> list[int]:
        """The columns that some row has a value in."""
        filled = [[value is not None for value, _ in row.cells] for row in self.rows]
        return [number for number in range(len(COLUMNS)) if any(row[number] for row in filled)]

    @property
    def headers(self) -> tuple[str, ...]:
        return tuple(COLUMNS[number] for number in self.columns)

    def cells(self, row: Row) -> list[tuple[float | None, str]]:
        cells = row.cells
        return [cells[number] for number in self.columns]

    @property
    def screen(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Headers and rows of what was measured or checked."""
        rows = [
            (row.title, row.route_title, *(text for _, text in self.cells(row)))
            for row in self.rows
            if row.status == "measured"
        ]
        return ("step", "route", *(header.lower() for header in self.headers)), rows

    @property
    def timed(self) -> list[Row]:
        return [row for row in self.rows if row.median_ns]

    @property
    def kind(self) -> str:
        return schema.text(self.result.get("kind")) or "bert"

    @property
    def name(self) -> str:
        if self.kind == "fusion":
            return "The fusion exercise"
        model = schema.mapping(self.result.get("model"))
        return f"BERT {schema.text(model.get('name'))}".strip()

    @property
    def problem(self) -> str:
        batch, sequence = (schema.integer(self.result.get(name)) for name in ("batch", "sequence"))
        return f"batch {batch}, sequence {sequence}" if batch else ""

    @property
    def on_gpu(self) -> bool:
        return bool(schema.text(self.result.get("device")))

    @property
    def device(self) -> str:
        return schema.text(self.result.get("device")) or "no GPU"

    @property
    def wrong(self) -> list[Row]:
        return [row for row in self.rows if row.raw.get("verdict") == "fail"]

    @property
    def status(self) -> str:
        if not self.result or self.result.get("interrupted") is True:
            return "interrupted"
        return "a step is wrong" if self.wrong else "measured" if self.on_gpu else "checked"

    @property
    def headline(self) -> str:
        """What came of it in one sentence."""
        where = ", ".join(
            filter(None, (self.name, self.problem, "interrupted" if self.status == "interrupted" else ""))
        )
        if self.wrong:
            first = self.wrong[0]
            return f"{where}: {first.title} ({first.route_title}) is off by {units.percent(first.error)}"
        if self.on_gpu and self.timed:
            best = min(self.timed, key=lambda row: row.median_ns or 0.0)
            factor = best.number("speedup_total") or 1.0
            gained = f", {_times(factor)} the speed of its first step" if factor > LEAST_GAIN else ""
            return f"{where}: {_time(best.median_ns)} with {best.title} ({best.route_title}){gained}"
        checked = [row for row in self.rows if row.error is not None]
        return f"{where}: {units.plural(len(checked), 'step')} checked against float64; without a GPU our kernels have no time"

    @property
    def tiles(self) -> list[Tile]:
        ours = [row for row in self.timed if row.route == "kernels"]
        worst = max(
            (row for row in self.rows if row.error is not None and not row.aside),
            key=lambda r: r.error or 0,
            default=None,
        )
        tiles = []
        if self.timed:
            best = min(self.timed, key=lambda row: row.median_ns or 0.0)
            tiles.append(Tile("Fastest", _time(best.median_ns), f"{best.title}, {best.route_title}"))
        if ours:
            top = max(ours, key=lambda row: row.number("speedup_total") or 0)
            tiles.append(
                Tile("Whole ladder", _times(top.number("speedup_total")), f"from {ours[0].title} to {top.title}")
            )
        if worst is not None:
            tiles.append(Tile("Largest error", units.percent(worst.error), f"{worst.title}, {worst.route_title}"))
        tiles.append(Tile("Steps", units.count(len(self.rows)), self.device))
        return tiles

    @property
    def scores(self) -> list[Score]:
        """The talk's scoring beside the best that was measured; empty for the fusion exercise."""
        made = []
        for way, routes, scores in SCORES if self.kind == "bert" else ():
            best = min(
                (row for row in self.timed if row.route in routes), key=lambda row: row.median_ns or 0, default=None
            )
            texts = tuple(f"{score:g}" for score in scores)
            made.append(
                Score(way, texts, _time(best.median_ns) if best else "not measured here", best.title if best else "")
            )
        return made

    @property
    def bisected(self) -> list[Mapping[str, Any]]:
        return [one for one in self.result.get("bisect") or () if isinstance(one, Mapping)]

    @property
    def notes(self) -> list[tuple[str, str]]:
        """Step with route, and its note; a remark that several share is said once for each."""
        return [(row.said, row.note) for row in self.rows if row.note]

    @cached_property
    def dissected(self) -> Row | None:
        """The step of our kernels whose operations are listed: the fastest, else the last that others build on."""
        ours = [row for row in self.rows if row.route == "kernels" and row.operations]
        timed = [row for row in ours if row.median_ns]
        built = [row for row in ours if not row.aside]
        return min(timed, key=lambda row: row.median_ns or 0.0) if timed else built[-1] if built else None

    @property
    def parts(self) -> list[Part]:
        """Every operation of that step, and their sum; of PART_COLUMNS those that have a value."""
        row = self.dissected
        if row is None:
            return []
        sums = {name: sum(schema.real(one.get(name)) or 0 for one in row.operations) or None for name in SUMMED}
        parts = [_part(one) for one in (*row.operations, {"operation": "sum", **sums})]
        return [Part(one.name, tuple(one.cells[number] for number in _filled(parts))) for one in parts]

    @property
    def part_headers(self) -> list[str]:
        row = self.dissected
        return [PART_COLUMNS[number] for number in _filled([_part(one) for one in row.operations])] if row else []

    @property
    def compared(self) -> list[Row]:
        """The timed rows of steps that more than one route has; all of them where there is none."""
        counts = Counter(row.title for row in self.timed)
        return [row for row in self.timed if counts[row.title] > 1] or self.timed

    @property
    def caption(self) -> str:
        """Of the table of steps."""
        if self.kind == "fusion":
            return "Times are of one replay of a step's CUDA graph; the error is the relative L2 distance from float64."
        clock = ", between two events on the GPU" if self.on_gpu else "; those of a processor are the wall's"
        return (f"Times are of a whole batch{clock}; the error is the relative L2 distance from float64 over all tokens that "
                "count. “On the one before” is against the last step that others build on.")  # fmt: skip

    @property
    def figures(self) -> list[Figure]:
        return [one for one in FIGURES if self.kind == "bert" or one.key in OF_FUSION]

    @property
    def not_drawn(self) -> list[Figure]:
        return [one for one in self.figures if one.key not in self.drawn]

    @cached_property
    def drawn(self) -> dict[str, go.Figure]:
        drawn = {
            "waterfall": ladder_figures.draw_waterfall([row for row in self.timed if row.route == "kernels"]),
            "pareto": ladder_figures.draw_pareto([row for row in self.timed if row.error]),
            "routes": ladder_figures.draw_routes(self.compared),
            "operations": ladder_figures.draw_operations([row for row in self.timed if row.operations]),
            "roofline": ladder_figures.draw_roofline(self.timed, schema.mapping(self.result.get("roofs"))),
            "errors": ladder_figures.draw_errors([row for row in self.rows if row.error]),
            "layers": ladder_figures.draw_layers([row for row in self.rows if any(row.layer_errors)]),
        }
        return {name: figure for name, figure in drawn.items() if figure is not None}

    def draw(self) -> dict[str, go.Figure]:
        return self.drawn


def read(session: Session) -> View:
    """Read a session; what is missing is said in `gaps`."""
    gaps: list[str] = []
    result = schema.read_document(session, "result.json", "the run did not come to its end", gaps) or {}
    return View(session.read_json("manifest.json"), result, tuple(session.steps()), tuple(gaps))


def _part(one: Mapping[str, Any]) -> Part:
    values = {name: schema.real(one.get(name)) for name in (*SUMMED, "blocks")}
    bound, took = values["bound_ns"], values["total_ns"]
    share = 100 * bound / took if bound and took else None
    return Part(schema.text(one.get("operation")), (
        (values["launches"], units.count(values["launches"])), (values["blocks"], units.count(values["blocks"])),
        (values["bytes"], units.size(values["bytes"])), (values["flops"], _flops(values["flops"])),
        (bound, _time(bound)), (took, _time(took)), (share, units.ABSENT if share is None else f"{share:.0f} %"),
    ))  # fmt: skip


def _filled(parts: Sequence[Part]) -> list[int]:
    """The columns that some part has a value in."""
    return [number for number in range(len(PART_COLUMNS)) if any(part.cells[number][0] is not None for part in parts)]


def _flops(number: float | None) -> str:
    if not number:
        return units.ABSENT
    unit, scale = next(one for one in SCALES if number >= one[1])
    return f"{units.significant(number / scale)} {unit}".strip()


def _time(nanoseconds: float | None) -> str:
    return units.ABSENT if nanoseconds is None else units.seconds(nanoseconds / 1e9)


def _times(factor: float | None) -> str:
    return units.ABSENT if factor is None else f"{factor:.2f}x"
