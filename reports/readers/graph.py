"""The nodes of an ONNX model, as probe writes them beside an engine (`graph.json`), so that a report needs no model."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from harness.errors import ParseError
from reports import schema
from reports.artifact import Artifact
from reports.columns import empty, validate
from reports.readers import decoding
from reports.tables.onnx_graph import Graph, Node

KIND = "onnx-graph"
EXPECTED = "the graph of a model, written by probe"
SCHEMA = 1
_HEAD = re.compile(rb'\s*\{\s*"probe"\s*:\s*"graph"')


def sniff(path: Path, head: bytes) -> bool:
    """By the first key."""
    return _HEAD.match(head) is not None


def read(path: Path) -> Artifact:
    """Table `nodes`, in topological order."""
    try:
        content = schema.mapping(json.loads(decoding.read_bytes(path, EXPECTED)))
    except (ValueError, RecursionError) as error:
        raise ParseError(path, "content", EXPECTED, f"no JSON ({error})") from error
    if content.get("schema") != SCHEMA:
        got = repr(content.get("schema"))[:20]
        raise ParseError(path, "schema", str(SCHEMA), got, hint="read it with the probe that wrote it")
    listed = content.get("nodes")
    rows = [row for row in map(schema.mapping, listed if isinstance(listed, list) else ()) if row]
    table = validate("nodes", pd.DataFrame([_row(row) for row in rows])) if rows else empty("nodes")
    types = {str(kind): count for kind, count in Counter(table["op_type"].dropna()).most_common()}
    summary = {"inputs": list(schema.texts(content.get("inputs"))), "nodes": len(table), "by_op_type": types}
    return Artifact(path, KIND, "probe", None, {"nodes": table}, summary)


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "node": schema.text(row.get("name")), "op_type": schema.text(row.get("op_type")),
        **{name: schema.texts(row.get(name)) for name in ("inputs", "outputs", "called")},
    }  # fmt: skip


def graph_of(artifact: Artifact) -> Graph:
    """The graph that a table `nodes` holds."""
    columns = [artifact.tables["nodes"][name].tolist() for name in ("node", "op_type", "inputs", "outputs", "called")]
    nodes = tuple(Node(*row) for row in zip(*columns, strict=True))
    return Graph(tuple(artifact.summary["inputs"]), nodes)
