"""Which launch a finding belongs to, and from there the NVTX range, the layer and the ONNX nodes that made it.

compute-sanitizer names a kernel, not the launch of it. Told to check only the first m launches of that kernel, it shows
the finding as soon as the faulty launch is among them: so the launch is found by halving, and looked up in a timeline
of the same program.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from reports.artifact import Artifact
from reports.readers.nsys_launches import MYELIN, NOT_LAYERS, TENSORRT
from reports.tables import origins
from reports.tables.onnx_names import Known, is_span, nodes_of_layer, nodes_of_operation

MOST_LAUNCHES = 1 << 20  # beyond which the halving gives up
MOST_LOOKED_AT = 1000  # launches of a kernel whose ranges are compared
RUNTIME = "CUPTI_ACTIVITY_KIND_RUNTIME"
_PLUGIN = re.compile(r"(\w*Plugin\w*?)::enqueue")


@dataclass(frozen=True)
class Place:
    """Where a finding comes from, as far as it could be told, and `how` that was told.

    `launch` counts the launches of the kernel from 0; `ranges` are the NVTX ranges around it, the outermost first. Of
    the nodes those are `inferred_nodes` that no name tells, and that follow from the model.
    """

    how: str
    launch: int | None = None
    ranges: tuple[str, ...] = ()
    layer: str | None = None
    operation: str | None = None
    onnx_nodes: tuple[str, ...] = ()
    inferred_nodes: tuple[str, ...] = ()


def first_launch(shows: Callable[[int], bool], launches: int | None = None, guess: int | None = None) -> int | None:
    """The number (from 0) of the first launch with which `shows(m)`, the first m launches checked, is true.

    Steps double from 1 and are then halved, so that a fault in an early launch costs little: 2 log2(k) questions for
    launch k, two if `guess` is right. `launches` is how many there are, if that is known. None if it never shows: the
    fault is not repeatable.
    """
    if guess is not None and shows(guess + 1) and (guess == 0 or not shows(guess)):
        return guess
    low, high = 0, 1
    limit = launches if launches is not None else MOST_LAUNCHES
    while not shows(high):
        if high >= limit:
            return None
        low, high = high, min(2 * high, limit)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if shows(middle) else (middle, high)
    return high - 1


def fragment(kernel: str) -> str:
    """The part of a kernel's name that also stands in its mangled name: the function's own, without scope and parameters."""
    name = re.sub(r"<.*", "", kernel.replace("(anonymous namespace)", "")).split("(")[0]
    words = re.findall(r"\w+", name)
    return words[-1] if words else kernel


def tied(trace: Artifact, beside: Sequence[Artifact]) -> Artifact:
    """A timeline with what lies beside it of the engine and its model: the nodes of its kernels, named and inferred.

    Nothing is inferred of one that broke off: a node that never ran would be placed in what did run.
    """
    made = origins.combine([trace, *beside])[0]
    if failed_call(made) is None:
        return made
    kernels = made.tables["kernels"]
    none = pd.Series([()] * len(kernels), index=kernels.index, dtype=object)
    return replace(made, tables={**made.tables, "kernels": kernels.assign(inferred_nodes=none)})


def matching(trace: Artifact, part: str) -> pd.DataFrame:
    """The kernels of a timeline that a filter by a part of the name lets pass, in the order of their launches."""
    kernels = trace.tables["kernels"]
    names = kernels["kernel"].astype("string").fillna("")
    found = kernels[names.str.contains(part, regex=False)]
    return found.sort_values(["launch_ns", "start_ns"], kind="stable")


def at_launch(trace: Artifact, part: str, launch: int) -> Place | None:
    """The place of one launch; None if the timeline does not reach it."""
    kernels = matching(trace, part)
    if launch >= len(kernels):
        return None
    return replace(of_kernel(trace, kernels.iloc[launch]), launch=launch,
                   how=f"launch {launch} of {len(kernels)} of this kernel, found by halving, looked up in the timeline")  # fmt: skip


def failed_call(trace: Artifact, known: Known | Sequence[str] = ()) -> Place | None:
    """Where the first CUDA call that returned an error stands; None if none did. Launches must have been blocking."""
    try:
        with closing(sqlite3.connect(f"{trace.path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            rows = database.execute(
                f'SELECT start, returnValue FROM "{RUNTIME}" WHERE returnValue NOT IN (0, 600) ORDER BY start LIMIT 1'
            ).fetchall()  # 600: not ready yet, which is no error
    except sqlite3.Error:
        return None
    if not rows:
        return None
    start, status = rows[0]
    calls = trace.tables["api_calls"]
    call = calls[calls["start_ns"] == start]
    if call.empty:
        return None
    name = str(call.iloc[0]["api"])
    found = in_range(trace, call.iloc[0]["range_id"], known)
    return replace(found, how=f"the first CUDA call that failed (blocking launches): {name} returned {status}")


def only_place(trace: Artifact, part: str) -> Place | None:
    """The layer of a kernel that one layer alone launches, or the one range; None if several do, or none."""
    kernels = matching(trace, part)
    layers = kernels["layer"].dropna().unique()
    if len(layers) == 1 and not kernels["layer"].isna().any():
        operations = kernels["operation"].unique()
        operation = None if len(operations) > 1 or pd.isna(operations[0]) else str(operations[0])
        layer, told = str(layers[0]), set(map(_nodes_of_row, (row for _, row in kernels.iterrows())))
        named, inferred = told.pop() if len(told) == 1 else (nodes(layer, None), ())
        return Place(
            "only one layer launches this kernel", None, _around(trace, kernels), layer, operation, named, inferred
        )
    if len(layers) or kernels.empty:
        return None
    inner = _around(trace, kernels)
    return Place("all launches of this kernel are in ranges of this name", None, inner) if inner else None


def _around(trace: Artifact, kernels: pd.DataFrame) -> tuple[str, ...]:
    """The innermost range around these launches, if it is the same for all; empty if not, or if they are too many to ask."""
    if len(kernels) > MOST_LOOKED_AT:
        return ()
    inner = {of_kernel(trace, row).ranges[-1:] for _, row in kernels.iterrows()}
    return inner.pop() if len(inner) == 1 else ()


def of_kernel(trace: Artifact, row: pd.Series[Any]) -> Place:
    """The place of one row of `kernels`; of a kernel in a CUDA graph, where it was captured."""
    inside = row["range_id"] if pd.isna(row["capture_range_id"]) else row["capture_range_id"]
    found = in_range(trace, inside)
    if len(found.ranges) > 1 and found.ranges[-1].partition("@")[0] == fragment(str(row["kernel"])):
        found = replace(found, ranges=found.ranges[:-1])  # a range around the launch alone says what the kernel says
    layer = None if pd.isna(row["layer"]) else str(row["layer"])
    operation = None if pd.isna(row["operation"]) else str(row["operation"])
    named, inferred = _nodes_of_row(row)
    return replace(found, layer=layer, operation=operation, onnx_nodes=named, inferred_nodes=inferred)


def _nodes_of_row(row: pd.Series[Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The nodes that are named and, where none is, those that are inferred."""
    named = tuple(row["onnx_nodes"])
    return named, () if named else tuple(row["inferred_nodes"])


def in_range(trace: Artifact, range_id: Any, known: Known | Sequence[str] = ()) -> Place:
    """The place of a moment inside a range: all ranges around it, and the layer, if TensorRT's are among them."""
    ranges = trace.tables["ranges"].set_index("range_id")
    around: list[str] = []
    layer = operation = None
    while not pd.isna(range_id):
        row = ranges.loc[int(range_id)]
        domain: str = "" if pd.isna(row["domain"]) else str(row["domain"])
        name = str(row["range"])
        around.append(f"{name}@{domain}" if domain else name)
        if domain.lower().startswith(MYELIN) and operation is None:
            operation = name
        if domain.lower().startswith(TENSORRT) and layer is None and not name.startswith(NOT_LAYERS):
            layer = name
        range_id = row["parent_id"]
    return Place("", None, tuple(reversed(around)), layer, operation, nodes(layer, operation, known))


def nodes(layer: str | None, operation: str | None, known: Known | Sequence[str] = ()) -> tuple[str, ...]:
    """The ONNX nodes behind an operation, or behind a layer where that names none; not the two ends of a span of nodes."""
    named = nodes_of_operation(operation, known) if operation else ()
    return named or (nodes_of_layer(layer) if layer and not is_span(layer) else ())


def by_information(layers: pd.DataFrame, kernel: str, functions: Iterable[str]) -> Place | None:
    """Without a timeline: the one layer whose tactic is this kernel, or whose plugin's `enqueue` is on the host's stack."""
    part = fragment(kernel)
    tactics = layers["tactic"].astype("string").fillna("")
    by_tactic = layers[tactics.str.contains(part, regex=False)]
    if len(by_tactic) == 1:
        return _of_layer(by_tactic.iloc[0], "only one layer's tactic is this kernel")
    plugins = {match[1] for function in functions for match in _PLUGIN.finditer(function)}
    types = layers["layer_type"].astype("string").fillna("") + " " + tactics
    for plugin in sorted(plugins):
        stem = re.sub(r"^Custom|Dynamic$|V\d$|Legacy$", "", plugin)
        of_plugin = layers[types.str.contains(stem, regex=False)]
        if len(of_plugin) == 1:
            return _of_layer(of_plugin.iloc[0], f"launched by {plugin}::enqueue, and one layer is such a plugin")
    return None


def _of_layer(row: pd.Series[Any], how: str) -> Place:
    layer = str(row["layer"])
    return Place(how, layer=layer, onnx_nodes=tuple(row["onnx_nodes"]) or nodes_of_layer(layer))


def host_functions(artifact: Artifact, rows: Iterable[int]) -> list[str]:
    """The functions on the host's stack at the launch of these findings."""
    details = artifact.tables.get("finding_details")
    if details is None:
        return []
    wanted = details[details["finding"].isin(list(rows)) & (details["role"] == "host")]
    return [str(name) for name in wanted["function"].dropna().unique()]
