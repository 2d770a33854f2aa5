"""A model's nodes and edges as a JSON document, without weights: what a report needs to know of a model."""

from __future__ import annotations

from typing import Any

from harness.models.model import Model, Node, reads

SCHEMA = 1
UNNAMED = "node_of_"  # how TensorRT's parser begins the name of a node that has none; 8.6 takes its output's name


def document(model: Model) -> dict[str, Any]:
    """Nodes in topological order, each with the tensors it reads and makes, and the names that TensorRT may give it."""
    inputs = [value.name for value in model.inputs]
    return {"probe": "graph", "schema": SCHEMA, "inputs": inputs, "nodes": [_node(node) for node in model.nodes]}


def _node(node: Node) -> dict[str, Any]:
    outputs = [name for name in node.proto.output if name]
    called = [node.proto.name] if node.proto.name else [name for out in outputs for name in (out, f"{UNNAMED}{out}")]
    return {
        "name": node.key,
        "op_type": node.op_type,
        "inputs": reads(node.proto),
        "outputs": outputs,
        "called": called,
    }
