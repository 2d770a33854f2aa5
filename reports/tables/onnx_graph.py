"""The nodes of an ONNX model, what they read, and which of them compute on what is fed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from reports.tables.onnx_names import Known

HOST = frozenset({"Shape", "Size"})  # what follows from these is known before anything runs on the GPU


@dataclass(frozen=True)
class Node:
    """`called` are the names that TensorRT may give it; inputs and outputs are tensors, captured ones among them."""

    name: str
    op_type: str
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    called: tuple[str, ...] = ()


@dataclass(frozen=True)
class Graph:
    """The nodes in topological order; `inputs` are the tensors that are fed."""

    inputs: tuple[str, ...]
    nodes: tuple[Node, ...]

    @cached_property
    def known(self) -> Known:
        """The nodes by all their names; a name of several is of none."""
        return Known(
            dict(_single((called, node.name) for node in self.nodes for called in node.called or (node.name,)))
        )

    @cached_property
    def predecessors(self) -> tuple[tuple[int, ...], ...]:
        """For each node the positions of those that make what it reads."""
        maker = {tensor: at for at, node in enumerate(self.nodes) for tensor in node.outputs if tensor}
        return tuple(tuple(dict.fromkeys(maker[name] for name in node.inputs if name in maker)) for node in self.nodes)

    @cached_property
    def live(self) -> tuple[bool, ...]:
        """Which nodes compute on what is fed: not constants, which the builder folds, nor what only shapes decide."""
        alive = set(self.inputs)
        found = []
        for node in self.nodes:
            found.append(node.op_type not in HOST and not alive.isdisjoint(node.inputs))
            if found[-1]:
                alive.update(node.outputs)
        return tuple(found)


def _single(pairs: Iterator[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    owners: dict[str, set[str]] = {}
    for called, node in pairs:
        owners.setdefault(called, set()).add(node)
    return ((called, nodes.pop()) for called, nodes in owners.items() if len(nodes) == 1)
