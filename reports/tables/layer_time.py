"""Where the time of an inference goes by its layers: those of one type together, and the answer in a sentence."""

from __future__ import annotations

import numpy as np
import pandas as pd

from reports import units
from reports.tables.onnx_names import is_span


def runs(layers: pd.DataFrame) -> int:
    """How many inferences the totals are of; 1 where that is not known."""
    counts = (layers["total_ns"] / layers["mean_ns"].where(layers["mean_ns"] > 0)).replace(np.inf, np.nan).dropna()
    return max(1, round(float(counts.median()))) if len(counts) else 1


def by_type(layers: pd.DataFrame) -> pd.DataFrame | None:
    """One row a type of layer, the longest first: how many, mean time in one inference (ns), share; None if that says no
    more than the layers do, because no types are known or each layer is of its own."""
    known = layers[layers["layer_type"].notna() & layers["total_ns"].notna()]
    if known["layer_type"].nunique() < 2 or known["layer_type"].nunique() == len(known):
        return None
    times = known.groupby(known["layer_type"].astype("object"), sort=False)["total_ns"].agg(["size", "sum"])
    times = times.sort_values("sum", ascending=False, kind="stable")
    total = float(layers["total_ns"].sum())
    return pd.DataFrame(
        {"layer_type": times.index, "layers": times["size"].to_numpy(), "per_inference_ns": (times["sum"] / runs(layers)).to_numpy(),
         "time_pct": (100 * times["sum"] / total if total else times["sum"] * np.nan).to_numpy()}
    )  # fmt: skip


def fused(layers: pd.DataFrame) -> str:
    """What to say of a layer that TensorRT made of most of the model: its name tells nothing of where the time goes.

    Of layers with times, the longest first; nothing where the longest is no such layer.
    """
    top = layers.iloc[0]
    if not is_span(str(top["layer"])):
        return ""
    share = units.percent(float(top["total_ns"]) / float(layers["total_ns"].sum()))
    return f"{share} of the layers' time is in one that TensorRT fused: probe profile --nsys shows the nodes in it"


def headline(layers: pd.DataFrame) -> tuple[str, str]:
    """The answer in a sentence, and what stands below it; of layers with times, the longest first."""
    total = float(layers["total_ns"].sum())
    of = f"{units.seconds(total / runs(layers) / 1e9)} in layers, per inference"
    top = layers.iloc[0]
    name = units.shorten(units.visible(str(top["layer"])), 80)
    share = units.percent(float(top["total_ns"]) / total)
    types = by_type(layers)
    if types is None:
        return f"The layer {name} takes {share} of {of}", ""
    first = types.iloc[0]
    many = f"{units.count(int(first['layers']))} {units.shorten(units.visible(str(first['layer_type'])), 60)} layers"
    said = f"{many} take {units.percent(float(first['time_pct']) / 100)} of {of}"
    if int(first["layers"]) == 1:
        said = said.replace(" layers take ", " layer takes ", 1)
    return said, f"The longest layer, {name}, takes {share}."
