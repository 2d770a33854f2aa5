"""What `probe sanitize` found out about its findings, put into their table: the launch, the layer, the ONNX nodes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from reports.artifact import Artifact
from reports.columns import validate

FILE = "ties.json"  # artifact name -> [{rows, launch_id, layer, onnx_nodes, inferred_nodes}]
NODES = ("onnx_nodes", "inferred_nodes")


def apply(folder: Path, artifacts: Sequence[Artifact]) -> list[Artifact]:
    """The artifacts of a session with the ties that its raw/ holds; the same ones if it holds none, or a broken file."""
    try:
        told = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return list(artifacts)
    if not isinstance(told, dict):
        return list(artifacts)
    return [_tied(artifact, told.get(artifact.path.name, ())) for artifact in artifacts]


def _tied(artifact: Artifact, rows: Any) -> Artifact:
    if not rows or "findings" not in artifact.tables:
        return artifact
    table = artifact.tables["findings"]
    launch, layer, named, inferred = (list(table[name]) for name in ("launch_id", "layer", *NODES))
    for tie in rows:
        for row in tie.get("rows", ()):
            if 0 <= row < len(table):
                launch[row] = pd.NA if tie.get("launch_id") is None else int(tie["launch_id"])
                layer[row] = tie.get("layer")
                named[row], inferred[row] = (tuple(tie.get(name, ())) for name in NODES)
    made = table.assign(launch_id=pd.array(launch, dtype="Int64"), layer=pd.array(layer, dtype="string"))
    for name, nodes in zip(NODES, (named, inferred), strict=True):
        made[name] = pd.Series(nodes, index=table.index, dtype=object)
    return replace(artifact, tables={**artifact.tables, "findings": validate("findings", made)})
