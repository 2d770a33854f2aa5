"""What can be taken out: nodes (or regions of nodes) of a model, as rows that a search, a report and a person can read."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from harness.models.model import Model, reads


@dataclass(frozen=True)
class Candidate:
    """One thing that a search may apply or keep; `id` is what queries name, `nodes` are the ONNX nodes behind it."""

    id: int
    key: str
    op_type: str
    scope: str
    nodes: tuple[str, ...]


def from_nodes(model: Model, indices: Iterable[int]) -> list[Candidate]:
    """A candidate per node, in topological order."""
    chosen = (model.nodes[i] for i in indices)
    return [Candidate(n.index, n.key, n.op_type, n.scope, (n.key,)) for n in chosen]


def by_scope(candidates: Sequence[Candidate]) -> list[list[int]]:
    """Ids grouped by scope, scopes in order of their first node."""
    groups: dict[str, list[int]] = {}
    for candidate in candidates:
        groups.setdefault(candidate.scope, []).append(candidate.id)
    return list(groups.values())


def edges(model: Model, candidates: Sequence[Candidate]) -> list[tuple[int, int]]:
    """Producer -> consumer pairs, as positions in `candidates`."""
    position = {name: at for at, candidate in enumerate(candidates) for name in candidate.nodes}
    maker = {output: node.key for node in model.nodes for output in node.proto.output}
    pairs = {
        (position[maker[name]], position[node.key])
        for node in model.nodes if node.key in position
        for name in reads(node.proto) if maker.get(name) in position
    }  # fmt: skip
    return sorted((a, b) for a, b in pairs if a != b)


def name_some(candidates: Sequence[Candidate], ids: Collection[int], limit: int = 3) -> str:
    """`a, b, c and 4 more`."""
    names = [candidate.key for candidate in candidates if candidate.id in ids]
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
