"""GPU time by the model's own nodes: what was said of them, what was inferred, and what is left."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from reports import units
from reports.pages import sheets
from reports.tables import hotspots, origins
from reports.tables.templating import NUMBER, template

ALIKE = 2 / 3  # shown where at least a third of the rows differ from others in the layer's number alone
JOINED = " + "
NUMBERED = "# is the number of a layer: the same node of all layers is one row."


def executions(kernels: pd.DataFrame, ranges: pd.DataFrame | None) -> pd.DataFrame:
    """One row an execution of an operation, or of a layer: the kernels launched in it added up.

    Columns operation, layer, nodes and inferred (texts, missing where there are none), tie, duration_ns, kernels. `nodes`
    are those that are named; if none is, those that are inferred.
    """
    ran_in = kernels["operation"].astype("object").fillna(kernels["layer"].astype("object"))
    inside = origins.launched_in(kernels)
    at = origins.ranges_named(inside, ranges, ran_in) if ranges is not None and len(ranges) else None
    alone = -2 - pd.RangeIndex(len(kernels)).to_numpy()  # a kernel outside of all of them is by itself
    place = alone if at is None else pd.Series(at).where(at != origins.NOWHERE, alone).to_numpy()
    named, inferred = (kernels[name].map(JOINED.join) for name in ("onnx_nodes", "inferred_nodes"))
    replayed = kernels["correlation_id"].where(kernels["capture_range_id"].notna())  # captured once, launched often
    frame = pd.DataFrame(
        {"place": place, "replay": replayed.fillna(-1).to_numpy(), "operation": kernels["operation"].astype("object"),
         "layer": kernels["layer"].astype("object"),
         "nodes": named.where(named != "", inferred), "inferred": inferred.where(named != "", ""),
         "tie": kernels["tie"].astype("object"), "duration_ns": kernels["duration_ns"]}
    )  # fmt: skip
    frame["nodes"] = frame["nodes"].where(frame["nodes"] != "", None)
    key = ["place", "replay"]
    time = frame.groupby(key, sort=False)["duration_ns"].agg(["sum", "size"])
    first = frame.drop_duplicates(key).drop(columns=[*key, "duration_ns"])  # in the same order
    return first.assign(duration_ns=time["sum"].to_numpy(), kernels=time["size"].to_numpy()).reset_index(drop=True)


def by_node(rows: pd.DataFrame) -> pd.DataFrame:
    """For `executions`: one row a set of nodes and how it is tied, the longest first, what is left last."""
    return _titled(hotspots.shares(rows, ["nodes", "tie", "inferred"]))


def alike(rows: pd.DataFrame) -> pd.DataFrame | None:
    """As `by_node`, the same node of all layers as one row, its layer's number written `#`. None if that joins few."""
    known = rows[rows["nodes"].notna()]
    texts = known[["nodes", "inferred"]]
    names = {name for column in texts for text in texts[column].unique() for name in text.split(JOINED)}
    pattern = without_layer(sorted(names))
    spoken = {text: _spoken(text, pattern) for column in texts for text in texts[column].unique()}
    sets = len(texts.drop_duplicates())
    joined = rows.assign(nodes=rows["nodes"].map(spoken), inferred=rows["inferred"].map(spoken))
    if len(joined.loc[known.index, ["nodes", "inferred"]].drop_duplicates()) > ALIKE * sets:
        return None
    table = hotspots.shares(joined, ["nodes", "tie", "inferred"])
    members = known.groupby([joined["nodes"], joined["inferred"], "tie"])["nodes"].nunique()
    keys = pd.MultiIndex.from_frame(table[["nodes", "inferred", "tie"]])
    table.insert(3, "sets", pd.Series(members.reindex(keys).to_numpy()).astype("Int64"))
    return _titled(table)


def without_layer(names: Sequence[str]) -> dict[str, str]:
    """Each name with `#` for the first of its numbers in which it differs from names that are like it otherwise."""
    families: dict[str, list[str]] = defaultdict(list)
    for name in names:
        families[template(name)].append(name)
    made: dict[str, str] = {}
    for family in families.values():
        numbers = [NUMBER.findall(name) for name in family]
        varied = next((at for at, column in enumerate(zip(*numbers, strict=True)) if len({*column}) > 1), None)
        made |= {name: name if varied is None else _masked(name, varied) for name in family}
    sizes = Counter(made.values())
    return {name: masked if sizes[masked] > 1 else name for name, masked in made.items()}


def _masked(name: str, which: int) -> str:
    count = itertools.count()
    return NUMBER.sub(lambda found: "#" if next(count) == which else found[0], name)


def _spoken(text: str, pattern: Mapping[str, str]) -> str:
    return JOINED.join(dict.fromkeys(pattern[name] for name in text.split(JOINED)))


def _titled(table: pd.DataFrame) -> pd.DataFrame:
    table["tie"] = table["tie"].where(table["nodes"] != hotspots.NOT_ATTRIBUTED, origins.UNATTRIBUTED)
    return table.drop(columns=["min_ns", "max_ns"]).rename(
        columns={"nodes": "onnx_nodes", "inferred": "inferred_besides", "count": "executions"}
    )


def caption(summary: Mapping[str, Any], rows: pd.DataFrame) -> str:
    """How nodes were tied, and what would tie more."""
    said = (
        "Nodes that ran in one operation share its time: they are one row, and the time is not spread. named: TensorRT"
        " names them. inferred: they alone fit, by the model's edges and the order of the launches."
    )
    left = rows.loc[rows["tie"] == origins.UNATTRIBUTED, "duration_ns"].sum() / max(rows["duration_ns"].sum(), 1)
    if left > 0.02 and not summary.get("model"):
        said += (
            f" {units.percent(left)} is in operations that name no node, and names are as Myelin spells them:"
            " probe report TRACE MODEL.onnx tells the nodes, and infers more."
        )
    return said


def headline(table: pd.DataFrame, total_ns: float) -> tuple[str, str] | None:
    """The answer and its detail, for the result of `by_node` or `alike`; None if no node is known."""
    rows = table[table["onnx_nodes"] != hotspots.NOT_ATTRIBUTED]
    if rows.empty or not total_ns:
        return None
    top, after = rows.iloc[0], rows.iloc[1:5]
    name = units.shorten(units.visible(str(top["onnx_nodes"])), 80)
    sets = int(top["sets"]) if "sets" in top and pd.notna(top["sets"]) else 1
    one = sets == 1 and JOINED not in str(top["onnx_nodes"])
    said = (
        f"ONNX node{'' if one else 's'} {name} take{'s' if one else ''} {units.percent(float(top['time_pct']) / 100)}"
    )
    which = f"{sets} of them, # is the number of a layer; " if sets > 1 else ""
    detail = f"{which}{top['tie']}; {sheets.many(int(top['executions']), 'execution')}, mean {units.seconds(float(top['mean_ns']) / 1e9)}"
    if len(after):
        together = float(after["time_pct"].sum()) / 100
        detail += f"; the next {len(after)} of {units.count(len(rows))} take {units.percent(together)} together"
    return f"{said} of {units.seconds(total_ns / 1e9)} of GPU time", detail
