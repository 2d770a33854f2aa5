"""What ONNX nodes the kernels of a timeline came from, with all that lies beside it: the engine's layers, the model.

Said and inferred are never mixed: `onnx_nodes` holds what TensorRT says (in names, or in the engine's layer information),
`inferred_nodes` what follows from the model, and `tie` which of the two a kernel has.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from reports import units
from reports.artifact import Artifact
from reports.columns import validate
from reports.readers import graph as graphs
from reports.tables.onnx_graph import Graph
from reports.tables.onnx_names import is_span, nodes_of_layer, nodes_of_operation
from reports.tables.placing import Origin, place

NAMED, INFERRED, UNATTRIBUTED = TIES = ("named", "inferred", "unattributed")
ENGINES = ("tensorrt", "myelin")  # how the domains of ranges begin that TensorRT opens, in small letters
DEEPEST = 48  # ranges around a launch that are looked at
NOWHERE = -1

Told = Mapping[str, tuple[str, ...]]
Ints = npt.NDArray[np.int64]


def combine(artifacts: Sequence[Artifact]) -> list[Artifact]:
    """The artifacts, timelines with what the others know of their kernels; models' graphs have then served."""
    kept = [one for one in artifacts if one.kind != graphs.KIND]
    if not any(map(_is_timeline, kept)):
        return kept or list(artifacts)
    return [_with_origins(one, artifacts) if _is_timeline(one) else one for one in kept]


def _is_timeline(artifact: Artifact) -> bool:
    kernels = artifact.tables.get("kernels")
    return kernels is not None and "tie" in kernels and bool(kernels["tie"].notna().any())


def _with_origins(timeline: Artifact, artifacts: Sequence[Artifact]) -> Artifact:
    kernels, ranges = timeline.tables["kernels"], timeline.tables["ranges"]
    names = {str(name) for name in _ran_in(kernels).dropna().unique()}
    told = _told(_nearest(timeline, [one for one in artifacts if "layers" in one.tables]))
    model = _chosen(_nearest(timeline, [one for one in artifacts if one.kind == graphs.KIND]), names)
    if model is None and names.isdisjoint(told):
        return timeline
    kernels = tied(kernels, ranges, None if model is None else graphs.graph_of(model), told)
    summary = {**timeline.summary, "ties": shares(kernels), "model": None if model is None else model.path.name}
    summary["by_operation"] = [_with_nodes(row, kernels) for row in timeline.summary["by_operation"]]
    return replace(timeline, tables={**timeline.tables, "kernels": kernels}, summary=summary)


def _nearest(timeline: Artifact, others: Sequence[Artifact]) -> list[Artifact]:
    """Those of its own folder, if there are any."""
    return [one for one in others if one.path.parent == timeline.path.parent] or list(others)


def _told(artifacts: Iterable[Artifact]) -> dict[str, tuple[str, ...]]:
    """Layer -> nodes, as engines say it of their layers; not of one of which two say different things."""
    said: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for artifact in artifacts:
        layers = artifact.tables["layers"]
        for layer, nodes in zip(layers["layer"], layers["onnx_nodes"], strict=True):
            if nodes and not is_span(str(layer)):
                said[str(layer)].add(tuple(sorted(nodes)))
    return {layer: nodes.pop() for layer, nodes in said.items() if len(nodes) == 1}


def _chosen(models: Sequence[Artifact], names: Iterable[str]) -> Artifact | None:
    """The model whose nodes most operations name; None if none names any."""
    counts = {
        number: sum(bool(nodes_of_operation(name, known)) for name in names)
        for number, known in enumerate(graphs.graph_of(model).known for model in models)
    }
    best = max(counts, key=counts.__getitem__, default=None)
    return models[best] if best is not None and counts[best] else None


def tied(kernels: pd.DataFrame, ranges: pd.DataFrame, graph: Graph | None, told: Told) -> pd.DataFrame:
    """The table `kernels` with its columns `onnx_nodes`, `inferred_nodes` and `tie` made anew."""
    names = _ran_in(kernels)
    operations = {str(name) for name in kernels["operation"].dropna().unique()}
    told = {name: told.get(name) or _of_layer(name, graph) for name in set(names.dropna()) - (operations - told.keys())}
    read = {name: nodes_of_operation(name, graph.known if graph else ()) for name in operations - told.keys()}
    at = ranges_named(launched_in(kernels), ranges, names)
    placed = {} if graph is None else _placed(names, at, ranges, graph, told)
    plain = {name: Origin(nodes) for name, nodes in (*told.items(), *read.items())}
    found = [
        placed.get(row) or plain.get(name, Origin()) for row, name in zip(at.tolist(), names.tolist(), strict=True)
    ]
    made = kernels.assign(
        onnx_nodes=pd.Series([one.named for one in found], index=kernels.index, dtype=object),
        inferred_nodes=pd.Series([one.inferred for one in found], index=kernels.index, dtype=object),
    )
    return validate("kernels", made.assign(tie=ties(made)))


def _of_layer(layer: str, graph: Graph | None) -> tuple[str, ...]:
    """As `of_layer`, in the words of the model where it is known."""
    nodes = of_layer(layer)
    return tuple(dict.fromkeys(node for one in nodes if (node := graph.known.meant(one)))) if graph else nodes


def of_layer(layer: str) -> tuple[str, ...]:
    """The nodes of a layer; none where its name says no more than between which nodes it lies."""
    return () if is_span(layer) else nodes_of_layer(layer)


def _placed(names: pd.Series[Any], at: Ints, ranges: pd.DataFrame, graph: Graph, told: Told) -> dict[int, Origin]:
    """Range of an operation -> its origin: every execution of an engine by itself, each order of names once."""
    rows = pd.DataFrame({"range": at, "name": names.to_numpy()})
    rows = rows[(rows["range"] != NOWHERE) & rows["name"].notna()].drop_duplicates("range")
    start = ranges.set_index("range_id")["start_ns"]
    rows = rows.assign(start=start.reindex(rows["range"]).to_numpy(), execution=_executions(rows["range"], ranges))
    runs = [
        (one["range"].tolist(), tuple(map(str, one["name"])))
        for _, one in rows.sort_values("start", kind="stable").groupby("execution", sort=False)
    ]
    orders = dict.fromkeys(order for _, order in runs)
    solved: dict[tuple[str, ...], list[Origin]] = {}
    found: dict[int, Origin] = {}
    for at_ranges, order in runs:  # in the last of them the recording may break off: nodes that did not run yet are no
        whole = max((one for one in orders if one[: len(order)] == order), key=len)  # part of what did
        if whole not in solved:
            solved[whole] = place(whole, graph, {name: nodes for name in whole if (nodes := told.get(name))})
        found |= dict(zip(at_ranges, solved[whole][: len(order)], strict=True))
    return found


def _executions(inner: pd.Series[Any], ranges: pd.DataFrame) -> Ints:
    """For each range the outermost of TensorRT's around it: one run of an engine."""
    ours = ranges["domain"].astype("string").str.lower().str.startswith(ENGINES).fillna(False).to_numpy(dtype=bool)
    ids, parent = _parents(ranges)
    at = ids.get_indexer(pd.Index(inner))
    for _ in range(DEEPEST):
        above = parent[at]
        climbs = (above >= 0) & ours[above]
        if not climbs.any():
            break
        at = np.where(climbs, above, at)
    return np.asarray(at, dtype=np.int64)


def _parents(ranges: pd.DataFrame) -> tuple[pd.Index, Ints]:
    """The ids of the ranges, and for each row the row of its parent; the last, for no row, has none."""
    ids = pd.Index(ranges["range_id"].to_numpy(dtype=np.int64))
    above = ids.get_indexer(pd.Index(ranges["parent_id"].fillna(-1).to_numpy(dtype=np.int64)))
    return ids, np.append(above, NOWHERE).astype(np.int64)


def launched_in(kernels: pd.DataFrame) -> pd.Series[Any]:
    """The innermost range around each launch; of a kernel in a CUDA graph, around its capture."""
    return kernels["capture_range_id"].fillna(kernels["range_id"])


def ranges_named(inside: pd.Series[Any], ranges: pd.DataFrame, wanted: pd.Series[Any]) -> Ints:
    """For each range id the nearest range, itself or around it, that is called as wanted; `NOWHERE` without one."""
    ids, parent = _parents(ranges)
    names = np.array([*ranges["range"].astype("object"), None], dtype=object)
    goal = wanted.astype("object").to_numpy()
    at = ids.get_indexer(pd.Index(inside.fillna(NOWHERE).to_numpy(dtype=np.int64)))
    found = np.full(len(inside), NOWHERE, dtype=np.int64)
    for _ in range(DEEPEST):
        hit = (found < 0) & (at >= 0) & (names[at] == goal)
        found[hit] = at[hit]
        at = parent[at]
        if (at < 0).all():
            break
    rows = np.append(ids.to_numpy(), NOWHERE)
    result: Ints = rows[found]
    return result


def _ran_in(kernels: pd.DataFrame) -> pd.Series[Any]:
    """What a kernel ran in: the operation of Myelin, else the layer of TensorRT."""
    return kernels["operation"].astype("object").fillna(kernels["layer"].astype("object"))


def ties(kernels: pd.DataFrame) -> pd.Series[Any]:
    """How each kernel is tied to nodes; all missing where no layer of TensorRT is in the trace."""
    if not kernels["layer"].notna().any():
        return pd.Series(pd.NA, index=kernels.index, dtype=object)
    named, inferred = (kernels[name].map(bool).to_numpy(dtype=bool) for name in ("onnx_nodes", "inferred_nodes"))
    return pd.Series(
        np.where(named, NAMED, np.where(inferred, INFERRED, UNATTRIBUTED)), index=kernels.index, dtype=object
    )


def shares(kernels: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Tie -> GPU time in ns and its share in percent, of all kernels."""
    time = kernels.groupby(kernels["tie"].astype("object"), sort=False)["duration_ns"].sum()
    total = max(int(kernels["duration_ns"].sum()), 1)
    return {
        name: {"time_ns": int(time.get(name, 0)), "time_pct": 100 * int(time.get(name, 0)) / total} for name in TIES
    }


def spoken(found: Mapping[str, Mapping[str, float]]) -> str:
    """The result of `shares` in words, the most certain first."""
    return ", ".join(f"{units.percent(found[name]['time_pct'] / 100)} {name}" for name in TIES)


def _with_nodes(row: Mapping[str, Any], kernels: pd.DataFrame) -> dict[str, Any]:
    """A row of the summary `by_operation` with the nodes that its launches have by now."""
    mine = kernels[(kernels["operation"] == row["operation"]) & (kernels["layer"] == row["layer"])]
    return {
        **row,
        **{name: list(dict.fromkeys(node for nodes in mine[name] for node in nodes)) for name in ("onnx_nodes", "inferred_nodes")},
    }  # fmt: skip
