"""One artifact as a part of a page: its answer in a sentence, numbers, tables, pictures, and what it was made with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from reports import units
from reports.artifact import Artifact
from reports.figures import icicle, sweep, timeline
from reports.figures import profile as profile_figures
from reports.figures.icicle import Icicle
from reports.figures.timeline import Timeline
from reports.pages import sheets
from reports.pages.page import Facts
from reports.pages.sheets import Sheet
from reports.pages.tiles import Tile
from reports.tables import hotspots, layer_time, node_time, origins

_DRAWN_ELSEWHERE = {
    "kernels", "ranges", "memory_ops", "api_calls", "graph_launches", "iterations", "meta", "devices",
    "ncu_launches", "ncu_ranges",
}  # fmt: skip
_NOUNS = {"layers": "layer", "findings": "finding", "device_log": "line", "steps": "step", "marks": "mark",
          "ncu_rules": "rule", "metrics": "metric", "tensors": "tensor", "runs": "run", "nodes": "node"}  # fmt: skip
_TITLES = {"ncu_rules": "What ncu advises", "ncu_texts": "Metrics that are texts", "ncu_extremes": "Extremes"}
_BARS = ("total_ns", "duration_ns", "count")
_NEVER = ("environment", "host", "user")  # words of fields that name a machine or a person


@dataclass
class Part:
    """What the page shows of one artifact.

    `urgency` orders the parts: defects, a run that failed, where a whole program's time goes, what limits single launches,
    how long an inference takes, and the rest.
    """

    key: str
    name: str
    tool: str
    headline: str = ""
    detail: str = ""
    inside: str = ""  # what the layers leave open, where one holds most of the model
    urgency: int = 9
    tiles: list[Tile] = field(default_factory=list)
    sheets: list[Sheet] = field(default_factory=list)
    figures: dict[str, tuple[str, str, go.Figure]] = field(default_factory=dict)  # key -> title, caption, figure
    icicle: Icicle | None = None
    timeline: Timeline | None = None
    facts: list[tuple[str, str]] = field(default_factory=list)
    notes: tuple[str, ...] = ()

    @property
    def first(self) -> list[Sheet]:
        """Tables that stand open."""
        return [sheet for sheet in self.sheets if not sheet.secondary]

    @property
    def more(self) -> list[Sheet]:
        """Tables that are opened when asked for."""
        return [sheet for sheet in self.sheets if sheet.secondary]

    @property
    def summary(self) -> str:
        """The answer as one line of text."""
        return f"{self.name}: {'. '.join(filter(None, (self.headline, self.detail)))}."

    @property
    def read(self) -> Facts:
        """What the file is."""
        return Facts(self.name, self.facts)

    def fold(self, name: str) -> None:
        """Close a table until it is asked for."""
        self.sheets = [
            replace(sheet, secondary=True) if sheet.key == f"{self.key}-{name}" else sheet for sheet in self.sheets
        ]

    def say(self, urgency: int, headline: str, detail: str = "") -> None:
        """Take a headline, unless there is a more urgent one."""
        if urgency < self.urgency:
            self.urgency, self.headline, self.detail = urgency, sheets.public(headline), sheets.public(detail)


def make(artifact: Artifact, key: str) -> Part:
    """The part of an artifact; `key` makes its places on the page its own."""
    tool = " ".join(filter(None, (artifact.tool, artifact.tool_version)))
    part = Part(key, artifact.path.name, tool, notes=artifact.notes)
    for add in (_findings, _gpu_time, _host_time, _layers, _benchmark, _measured, _sweep, _launches, _rest):
        add(part, artifact)
    if not part.headline:
        rows = ", ".join(units.plural(len(table), _noun(name)) for name, table in artifact.tables.items() if len(table))
        part.headline = f"{artifact.kind}: {rows or 'no events at all'}"
    part.facts = list(_facts(artifact))
    return part


# GPU time: kernels, copies, ranges.


def _gpu_time(part: Part, artifact: Artifact) -> None:
    tables = artifact.tables
    everything = hotspots.work(tables)
    kernels = _table(tables, "kernels")
    if kernels is not None:
        _kernel_time(part, artifact, kernels)
    elif len(everything) or _table(tables, "api_calls") is not None:
        part.say(7, "No kernel was traced", "The export holds no kernel table; what it does hold is below.")
    if len(everything):
        ran, lasted = hotspots.busy(everything)
        remark = f"of {units.seconds(lasted / 1e9)} from the first GPU work to the last"
        part.tiles.append(Tile("GPU busy", units.percent(ran / lasted if lasted else 1.0), remark))
        found, total = hotspots.gaps(everything)
        if total:
            caption = "Time in which nothing ran on a device, longest first, and what ran around it."
            part.sheets.append(
                _sheet(part, "gaps", "Idle gaps", found, "gap", "gap_ns", caption, secondary=True, total=total)
            )
    copies = _table(tables, "memory_ops")
    if copies is not None:
        moved = hotspots.copies(copies)
        total_bytes = float(copies["bytes"].fillna(0).sum())
        part.tiles.append(Tile("Memory moved or set", units.size(total_bytes), units.plural(len(copies), "operation")))
        part.sheets.append(_sheet(part, "copies", "Memory operations", moved, "kind", "total_ns", secondary=True))
    _graphs(part, _table(tables, "graph_launches"))
    part.icicle, part.timeline = icicle.build(tables), timeline.build(tables)


def _kernel_time(part: Part, artifact: Artifact, kernels: pd.DataFrame) -> None:
    total = float(kernels["duration_ns"].sum())
    part.tiles.append(Tile("GPU time in kernels", units.seconds(total / 1e9), units.plural(len(kernels), "kernel")))  # fmt: skip
    if "range_id" in kernels:
        known = float(kernels.loc[kernels["range_id"].notna(), "duration_ns"].sum())
        if known:
            part.tiles.append(
                Tile("Attributed", units.percent(known / total if total else 0), "of kernel time, to a range")
            )
    by_node = _has(kernels, "tie") and _node_time(part, artifact, kernels, total)
    named = [
        (name, title) for name, title in (("operation", "Fused operation"), ("layer", "Layer")) if _has(kernels, name)
    ]
    for name, title in named:
        beside = _beside(kernels, name)
        table = hotspots.shares(kernels, [name, *beside])
        caption = _only_layer(kernels) if name == "operation" else ""
        secondary = by_node or (name == "layer" and len(named) > 1)
        part.sheets.append(
            _sheet(part, name, f"{title}s by GPU time", table, title.lower(), "total_ns", caption, secondary=secondary)
        )
        _say_hottest(part, table, name, f"The {title.lower()}", total)
    short = "kernel_short" if _has(kernels, "kernel_short") else "kernel"
    table = hotspots.shares(kernels, ["kernel"])
    part.sheets.append(_sheet(part, "kernels", "Kernels by GPU time", table, "kernel", "total_ns"))
    _say_hottest(part, hotspots.shares(kernels, [short]) if short != "kernel" else table, short, "The kernel", total)


def _node_time(part: Part, artifact: Artifact, kernels: pd.DataFrame, total: float) -> bool:
    """The model's own nodes, where any is known: those of all layers together first, if they are many alike."""
    ran = node_time.executions(kernels, artifact.tables.get("ranges"))
    found = origins.shares(kernels)
    tied = found[origins.NAMED]["time_pct"] + found[origins.INFERRED]["time_pct"]
    part.tiles.append(Tile("Tied to ONNX nodes", units.percent(tied / 100), f"of kernel time: {origins.spoken(found)}"))
    if not tied:
        return False
    together, table = node_time.alike(ran), node_time.by_node(ran)
    caption = node_time.caption(artifact.summary, ran)
    title = "ONNX nodes by GPU time"
    alone = together is None
    if together is not None:
        part.sheets.append(_sheet(part, "alike", f"{title}, all layers together", together, "name", "total_ns", f"{node_time.NUMBERED} {caption}"))  # fmt: skip
    part.sheets.append(
        _sheet(part, "nodes", title, table, "node set", "total_ns", caption if alone else "", secondary=not alone)
    )
    if (answer := node_time.headline(table if together is None else together, total)) is not None:
        part.say(2, *answer)
    return True


def _beside(kernels: pd.DataFrame, name: str) -> list[str]:
    """Columns that say more of an operation than its name does: its layer if there are several, its nodes if they differ."""
    if name != "operation":
        return []
    names = kernels["operation"].astype("object")
    found = ["layer"] if _has(kernels, "layer") and kernels["layer"].nunique() > 1 and not _only_layer(kernels) else []
    if _has(kernels, "onnx_nodes") and bool((kernels["onnx_nodes"].map("+".join) != names.fillna("")).any()):
        found.append("onnx_nodes")
    return [*found, "inferred_nodes"] if _has(kernels, "inferred_nodes") else found


def _only_layer(kernels: pd.DataFrame) -> str:
    """The layer that all operations are part of, in words; empty if there are several."""
    if not _has(kernels, "layer"):
        return ""
    layers = kernels.loc[kernels["operation"].notna(), "layer"].dropna().unique()
    return f"All of them are parts of one layer, {units.shorten(str(layers[0]), 120)}." if len(layers) == 1 else ""


def _say_hottest(part: Part, table: pd.DataFrame, name: str, kind: str, total: float) -> None:
    rows = table[table[name] != hotspots.NOT_ATTRIBUTED]
    if rows.empty or not total:
        return
    top, next_ones = rows.iloc[0], rows.iloc[1:5]
    detail = f"{sheets.many(int(top['count']), 'launch')}, mean {units.seconds(float(top['mean_ns']) / 1e9)}"
    if len(next_ones):
        together = float(next_ones["time_pct"].sum()) / 100
        detail += f"; the next {units.count(len(next_ones))} of {units.count(len(rows))} take {units.percent(together)} together"
    part.say(2, hotspots.told(kind, str(top[name]), float(top["time_pct"]), total), detail)


def _graphs(part: Part, graphs: pd.DataFrame | None) -> None:
    if graphs is None:
        return
    table = hotspots.shares(graphs.assign(graph_id=graphs["graph_id"].astype("object")), ["graph_id"])
    caption = "Traced as whole graphs: the export has no single kernels of them."
    part.sheets.append(_sheet(part, "graphs", "CUDA graphs by GPU time", table, "graph", "total_ns", caption))
    total = float(graphs["duration_ns"].sum())
    part.say(3, f"{sheets.many(len(graphs), 'graph launch')} take {units.seconds(total / 1e9)} of GPU time")


def _host_time(part: Part, artifact: Artifact) -> None:
    """Ranges by name, and API calls by name."""
    rows = artifact.summary.get("by_range")
    if isinstance(rows, list) and rows:
        table = pd.DataFrame(rows)
        wanted = ["range", "domain", "depth", "count", "kernel_time_ns", "kernel_count", "graph_time_ns", "wall_ns"]
        table = table[[name for name in wanted if name in table and (name != "graph_time_ns" or table[name].any())]]
        bar = "kernel_time_ns" if "kernel_time_ns" in table else "wall_ns"
        table = table.sort_values(bar, ascending=False, kind="stable")
        caption = "Wall time on the CPU, and the time of the kernels that were launched inside, however late they ran."
        part.sheets.append(_sheet(part, "ranges", "Ranges", table, "range", bar, caption, secondary=True))
    elif (ranges := _table(artifact.tables, "ranges")) is not None:
        name = "range_group" if "range_group" in ranges else "range"
        lasted = ranges.assign(duration_ns=ranges["end_ns"] - ranges["start_ns"])
        table = hotspots.shares(lasted, [name, "domain"]).drop(columns="time_pct")
        part.sheets.append(
            _sheet(part, "ranges", "Ranges", table, "range", "total_ns", "Wall time on the CPU.", secondary=True)
        )
    if (calls := _table(artifact.tables, "api_calls")) is not None:
        table = hotspots.shares(calls, ["api"])
        caption = "Wall time on the CPU; calls of several threads add up."
        part.sheets.append(_sheet(part, "api", "API calls", table, "API call", "total_ns", caption, secondary=True))


# Defects, benchmarks, launches.


def _findings(part: Part, artifact: Artifact) -> None:
    if "findings" not in artifact.tables:
        return
    findings = artifact.tables["findings"]
    times = findings["count"].fillna(1) if "count" in findings else pd.Series(1, index=findings.index)
    counts = {"printed": artifact.summary.get("printed"), "counted by the tool": artifact.summary.get("reported")}
    remark = ", ".join(f"{units.count(number)} {how}" for how, number in counts.items() if number is not None)
    part.tiles.append(Tile("Findings", units.count(int(times.sum())), remark))
    if findings.empty:
        part.say(6, f"{artifact.tool} printed no record")
        return
    for title, names in (("Places", ["file", "line"]), ("Kernels", ["kernel"])):
        if set(names) <= set(findings) and (number := len(findings[names].dropna().drop_duplicates())):
            part.tiles.append(Tile(title, units.count(number), "with findings"))
    part.sheets.append(
        _sheet(part, "findings", "Findings", _found(findings).dropna(axis="columns", how="all"), "finding", None)
    )
    first = findings.iloc[0]
    where = [f"in {units.shorten(str(first['kernel']), 60)}" if _given(first, "kernel") else ""]
    where.append(f"at {first['file']}:{first['line']}" if _given(first, "file") and _given(first, "line") else "")
    same = int(times[findings["kind"] == first["kind"]].sum()) if _given(first, "kind") else 1
    what = str(first["kind"]) if _given(first, "kind") else str(first.get("message", "a record"))
    headline = " ".join(filter(None, (f"{units.count(same)} × {units.shorten(units.visible(what), 80)}", *where)))
    part.say(0, headline, _launched_by(first))


def _launched_by(finding: pd.Series[Any]) -> str:
    """The place that reports an error is not the place that is wrong: which layer made the launch."""
    layer = str(finding["layer"]) if _given(finding, "layer") else ""
    told = [f"layer {units.shorten(layer, 100)}"] if layer else []
    named, inferred = (list(map(str, finding.get(name, ()))) for name in ("onnx_nodes", "inferred_nodes"))
    if nodes := named or inferred:
        how = "" if named else " (inferred)"
        told.append(f"ONNX {'node' if len(nodes) == 1 else 'nodes'} {units.shorten(', '.join(nodes), 100)}{how}")
    return f"Launched by {', '.join(told)}" if told else ""


def _found(findings: pd.DataFrame) -> pd.DataFrame:
    """Findings for people: places in one column each, what is the same everywhere left out."""
    table = findings.copy()
    if "file" in table and "line" in table:
        line = table["line"].map(lambda number: "" if pd.isna(number) else f":{int(number)}")
        table["where"] = table["file"].fillna("") + line
    for name in ("thread", "block"):
        axes = [f"{name}_{axis}" for axis in "xyz"]
        if set(axes) <= set(table):
            table[name] = [_triple(row) for row in table[axes].itertuples(index=False, name=None)]
    order = ["severity", "kind", "kernel", "where", "layer", "onnx_nodes", "message", "thread", "block", "address",
             "access", "size_bytes", "api", "tool", "count", "launch_id"]  # fmt: skip
    same = [name for name in ("severity", "tool") if name in table and table[name].nunique() < 2]
    if "count" in table and not (table["count"] > 1).any():
        same.append("count")
    return table[[name for name in order if name in table and name not in same]]


def _triple(row: tuple[Any, ...]) -> str:
    return "" if pd.isna(row[0]) else f"({', '.join('?' if pd.isna(one) else str(int(one)) for one in row)})"


def _layers(part: Part, artifact: Artifact) -> None:
    layers = _table(artifact.tables, "layers")
    if layers is None:
        return
    timed = _has(layers, "total_ns")
    table = layers.sort_values("total_ns", ascending=False, kind="stable") if timed else layers
    if timed and (types := layer_time.by_type(table)) is not None:
        titles = {"per_inference_ns": "Mean, per inference"}
        part.sheets.append(sheets.make(f"{part.key}-types", "Types of layers by time", types, "type", titles=titles, bar="per_inference_ns"))  # fmt: skip
    if _has(table, "onnx_nodes") and bool((table["onnx_nodes"].map("+".join) == table["layer"]).all()):
        table = table.drop(columns="onnx_nodes")  # ONNX Runtime's layers are nodes
    title = "Layers by time" if timed else "Layers"
    part.sheets.append(_sheet(part, "layers", title, table, "layer", "total_ns" if timed else None))
    if timed and float(table["total_ns"].sum()):
        inside = layer_time.fused(table)
        part.say(8 if inside else 2, *layer_time.headline(table))
        part.inside = inside


def _benchmark(part: Part, artifact: Artifact) -> None:
    runs = artifact.summary.get("runs")
    for run in runs if isinstance(runs, list) and runs else [artifact.summary]:
        if isinstance(run, Mapping):
            _run(part, run)
    iterations = _table(artifact.tables, "iterations")
    if iterations is not None and (figure := profile_figures.draw_iterations(iterations)) is not None:
        part.figures[f"{part.key}-iterations"] = ("Iterations", profile_figures.iterations_caption(iterations), figure)


def _run(part: Part, run: Mapping[str, Any]) -> None:
    status, compute, rate = run.get("status"), run.get("compute_ns"), run.get("throughput_qps")
    median = compute.get("median") if isinstance(compute, Mapping) else None
    if isinstance(rate, int | float):
        part.tiles.append(Tile("Throughput", f"{units.significant(rate, 5)} queries/s"))
    if isinstance(compute, Mapping):
        rest = ", ".join(f"{name} {units.seconds(value / 1e9)}" for name, value in compute.items() if name != "median" and isinstance(value, int | float))  # fmt: skip
        part.tiles.append(Tile("GPU compute, median", units.seconds(median / 1e9) if median is not None else units.ABSENT, rest))  # fmt: skip
    if isinstance(status, str):
        said = f"{status}: {units.seconds(median / 1e9)} of GPU compute, median" if median is not None else status
        errors = run.get("errors")
        why = (
            units.visible(units.shorten(sheets.public(str(errors[0])), 300))
            if isinstance(errors, list) and errors
            else ""
        )
        part.say(5 if status.upper() == "PASSED" else 1, f"{part.tool.partition(' ')[0]} {said}", why)


def _measured(part: Part, artifact: Artifact) -> None:
    """The latency that we, or ONNX Runtime, measured: on a processor the only time there is."""
    latency = artifact.summary.get("latency_ns")
    if artifact.kind not in ("probe-measurement", "ort-profile") or not isinstance(latency, Mapping):
        return
    median, backend = units.seconds(latency["median"] / 1e9), artifact.summary.get("backend", "")
    part.tiles.append(Tile("Latency, median", median, f"99 %: {units.seconds(latency['p99'] / 1e9)}"))
    if backend:
        said = f"An inference takes {median} ({backend}, median of {units.count(artifact.summary['iterations'])})"
        part.say(4, said, part.inside)


def _sweep(part: Part, artifact: Artifact) -> None:
    """Latency and throughput over one input dimension."""
    swept = _table(artifact.tables, "sweep")
    if swept is None:
        return
    part.say(2, *sweep.headline(swept, artifact.summary))
    if (figure := sweep.draw(swept, str(artifact.summary.get("sweep", "")))) is not None:
        part.figures[f"{part.key}-sweep"] = ("Sweep", sweep.caption(swept), figure)
    part.sheets.append(
        _sheet(part, "sweep", "Shapes", sweep.shown(swept), "shape", "latency_median_ns", secondary=True)
    )


def _launches(part: Part, artifact: Artifact) -> None:
    """Launches that ncu profiled: what limits each, and the roofline."""
    limits = _table(artifact.tables, "roofline")
    if limits is None:
        return
    limits = limits.sort_values("duration_ns", ascending=False, kind="stable", na_position="last")
    wanted = ["kernel", "range", "limited_by", "duration_ns", "flop_per_s", "dram_bytes_per_s", "flop_per_byte",
              "ceiling_pct", "memory_pct", "compute_pct", "occupancy_pct", "why"]  # fmt: skip
    table = limits[[name for name in wanted if name in limits]]
    part.sheets.append(_sheet(part, "roofline", "Launches and what limits them", table, "launch", "duration_ns"))
    if (figure := profile_figures.draw_roofline(limits)) is not None:
        part.figures[f"{part.key}-roof"] = ("Roofline", profile_figures.roofline_caption(limits), figure)
    total = float(limits["duration_ns"].sum())
    part.tiles.append(Tile("GPU time profiled", units.seconds(total / 1e9), _launches_text(limits)))
    top = limits.iloc[0]
    if total and pd.notna(top["duration_ns"]):
        share = 100 * float(top["duration_ns"]) / total
        why = f"Limited by {top['limited_by']}: {top['why']}" if _given(top, "limited_by") else ""
        part.say(3, hotspots.told("The launch of", str(top["kernel"]), share, total), units.visible(why))


def _launches_text(limits: pd.DataFrame) -> str:
    by = limits["limited_by"].dropna().value_counts()
    said = ", ".join(f"{count} by {name}" for name, count in by.items() if count)
    return f"{sheets.many(len(limits), 'launch')}; limited: {said}" if said else sheets.many(len(limits), "launch")


def _rest(part: Part, artifact: Artifact) -> None:
    """Every table that no section of its own shows."""
    shown = {sheet.key.removeprefix(f"{part.key}-") for sheet in part.sheets}
    for name, table in artifact.tables.items():
        if name in _DRAWN_ELSEWHERE or name in shown or table.empty:
            continue
        bar = next((column for column in _BARS if column in table), None)
        title = _TITLES.get(name) or sheets.heading(name)
        part.sheets.append(_sheet(part, name, title, table, _noun(name), bar, secondary=bool(part.sheets)))


def _facts(artifact: Artifact) -> Iterator[tuple[str, str]]:
    """File, tool, devices, and the plain numbers and words of the summary."""
    yield "Kind", artifact.kind
    yield "Tool", artifact.tool
    yield "Tool version", artifact.tool_version or "the file does not say"
    devices = _table(artifact.tables, "devices")
    for row in [] if devices is None else devices.to_dict("records"):
        values = {
            str(name): value for name, value in row.items() if not (value is None or value is pd.NA or value == "")
        }
        name = f"Device {values.pop('device_id', '')}".strip()
        yield name, ", ".join(_fact(key, value) for key, value in values.items())
    for name, value in artifact.summary.items():
        if isinstance(value, str | int | float) and not isinstance(value, bool) and not any(w in name for w in _NEVER):
            yield sheets.heading(name), _fact(name, value, named=False)


def _fact(name: str, value: Any, *, named: bool = True) -> str:
    text = sheets.text(name, float(value)) if isinstance(value, int | float) else sheets.public(str(value))
    return f"{sheets.heading(name)} {text}" if named and name != "gpu" else text


def _sheet(
    part: Part, key: str, title: str, table: pd.DataFrame, noun: str, bar: str | None, caption: str = "",
    *, secondary: bool = False, total: int | None = None,
) -> Sheet:  # fmt: skip
    return sheets.make(
        f"{part.key}-{key}", title, table, noun, bar=bar, caption=caption, secondary=secondary, total=total
    )


def _table(tables: Mapping[str, pd.DataFrame], name: str) -> pd.DataFrame | None:
    """A table that has rows."""
    table = tables.get(name)
    return None if table is None or table.empty else table


def _has(table: pd.DataFrame, name: str) -> bool:
    """Whether a column is there and says anything."""
    if name not in table:
        return False
    column = table[name]
    return (
        bool(column.map(len).any())
        if column.dtype == object and isinstance(column.iloc[0], tuple)
        else bool(column.notna().any())
    )


def _given(row: pd.Series[Any], name: str) -> bool:
    return name in row and bool(pd.notna(row[name])) and row[name] != ""


def _noun(name: str) -> str:
    return _NOUNS.get(name, "row" if name not in ("kernels", "ranges") else name[:-1])
