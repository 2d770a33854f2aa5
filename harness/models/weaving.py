"""Two models woven into one: regions between matched tensors, each of which can be computed in either model's way.

A region is what lies between a tensor of the first model and the matched tensors that it is computed from; the second
model has such a region for the tensor's partner. Pure: names and indices only.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from harness.models.model import Model, reads

# How a pair was found, most believed first. Pairs of outputs are given, the others can be dropped.
HOWS = ("output", "name", "structure", "content")


@dataclass(frozen=True)
class Link:
    """Tensor `ours` of the first model means what `theirs` of the second does; `distance` is how far apart they are."""

    ours: str
    theirs: str
    how: str
    distance: float = 0.0


@dataclass
class Region:
    """What the nodes `ours` make of `our_reads` in the first model, `theirs` of `their_reads` in the second.

    The reads map a model's own tensor names to those of the woven graph (`now`). A target whose partner is in
    `their_reads` is no more than that tensor in the second model's way; one whose partner is a weight is that weight.
    """

    links: list[Link]
    ours: list[int]
    our_reads: dict[str, str]
    theirs: list[int]
    their_reads: dict[str, str]

    @property
    def reads(self) -> set[str]:
        return {*self.our_reads.values(), *self.their_reads.values()}


class Fabric:
    """A model's graph as this module asks it: who makes a tensor, what a node reads."""

    def __init__(self, model: Model) -> None:
        self.maker = {name: node.index for node in model.nodes for name in node.proto.output if name}
        self.reads = [reads(node.proto) for node in model.nodes]
        self.inputs = {value.name for value in model.inputs}
        self.outputs = model.outputs

    def between(self, targets: Iterable[str], border: Collection[str]) -> tuple[list[int], set[str]]:
        """The nodes that make `targets` of tensors in `border`, in their order, and those of the border they read."""
        nodes: set[int] = set()
        read: set[str] = set()
        todo = [name for name in targets if name in self.maker]
        while todo:
            index = self.maker[todo.pop()]
            if index in nodes:
                continue
            nodes.add(index)
            for name in self.reads[index]:
                if name in border:
                    read.add(name)
                elif name in self.maker:
                    todo.append(name)
        return sorted(nodes), read


def weave(ours: Fabric, theirs: Fabric, links: Sequence[Link]) -> tuple[list[Region], list[Link]]:
    """Regions in an order in which they can be computed, and the links that they stand on.

    Links that would make a region need its own result are dropped, the least believed first. Only regions that an
    output needs are returned.
    """
    links = [link for link in links if link.ours in ours.maker or link.how == "output"]
    sinks: set[str] = set()  # outputs that nobody may read under their own name, since that made a cycle
    while True:
        regions = _regions(ours, theirs, links, sinks)
        ordered, stuck = _sort(regions)
        if not stuck:
            return _needed(ordered, ours.outputs), links
        droppable = [link for region in stuck for link in region.links if link.ours not in sinks]
        worst = max(droppable, key=lambda link: (HOWS.index(link.how), link.distance, ours.maker.get(link.ours, -1)))
        if worst.how == "output":
            sinks.add(worst.ours)
        else:
            links = [link for link in links if link != worst]


def now(name: str) -> str:
    """The tensor of the woven graph that holds the current value of the first model's tensor `name`; inputs keep theirs."""
    return f"now:{name}"


def _regions(ours: Fabric, theirs: Fabric, links: Sequence[Link], sinks: Collection[str]) -> list[Region]:
    readable = [link for link in links if link.ours not in sinks]
    border = {name: name for name in ours.inputs} | {
        link.ours: now(link.ours) for link in readable if link.ours in ours.maker
    }
    holders = _holders(ours, theirs, readable)
    groups: dict[tuple[int, str], list[Link]] = defaultdict(list)
    for link in links:  # tensors that one node makes are one region
        index = ours.maker.get(link.ours, -1)
        groups[index, link.ours if index < 0 or link.ours in sinks else ""].append(link)
    return [_region(ours, theirs, group, border, holders) for group in groups.values()]


def _holders(ours: Fabric, theirs: Fabric, links: Iterable[Link]) -> dict[str, list[str]]:
    """Tensor of the second model -> tensors of the woven graph that hold it, the one made first at the head."""
    holders = {name: [name] for name in theirs.inputs}
    for link in sorted(links, key=lambda link: ours.maker.get(link.ours, -1)):
        if link.ours in ours.maker:
            holders.setdefault(link.theirs, []).append(now(link.ours))
    return holders


def _region(
    ours: Fabric, theirs: Fabric, links: list[Link], border: Mapping[str, str], holders: Mapping[str, Sequence[str]]
) -> Region:  # fmt: skip
    targets = {link.ours for link in links}
    nodes, read = ours.between(targets, border.keys() - targets)
    our_reads = {name: border[name] for name in sorted(read | (targets & ours.inputs))}
    copied, computed = {}, set()
    for link in links:
        head = next(iter(holders.get(link.theirs, ())), None)
        weight = link.theirs not in theirs.maker and link.theirs not in theirs.inputs
        if weight or head in (None, now(link.ours)):
            computed.add(link.theirs)
        else:
            copied[link.theirs] = head
    their_nodes, their_read = theirs.between(computed, holders.keys() - computed)
    their_reads = {}
    for name in sorted(their_read):
        # Of the tensors that hold it, the one that the first model reads here: its errors then show either way.
        same = next((held for held in reversed(holders[name]) if held in our_reads.values()), None)
        if same is not None or name in theirs.maker or name in theirs.inputs:
            their_reads[name] = same or holders[name][0]
    return Region(links, nodes, our_reads, their_nodes, their_reads | copied)


def _sort(regions: Sequence[Region]) -> tuple[list[Region], list[Region]]:
    """Regions in topological order, and those that lie on or between cycles."""
    maker = {now(link.ours): position for position, region in enumerate(regions) for link in region.links}
    needs = [{maker[name] for name in region.reads if name in maker} for region in regions]
    ordered = _peel(needs)
    left = set(range(len(regions))) - set(ordered)
    if left:  # peel from the other end as well: what only follows a cycle is not to blame
        wanted_by: list[set[int]] = [set() for _ in regions]
        for position in left:
            for need in needs[position] & left:
                wanted_by[need].add(position)
        left -= set(_peel(wanted_by))
    return [regions[i] for i in ordered], [regions[i] for i in sorted(left)]


def _peel(needs: Sequence[set[int]]) -> list[int]:
    """Indices in an order in which each comes after all it needs; those that cannot are left out."""
    waiting = [len(need) for need in needs]
    users: dict[int, list[int]] = defaultdict(list)
    for index, need in enumerate(needs):
        for other in need:
            users[other].append(index)
    ready = [index for index, count in enumerate(waiting) if count == 0]
    for index in ready:  # grows while it is read
        for user in users[index]:
            waiting[user] -= 1
            if waiting[user] == 0:
                ready.append(user)
    return ready


def _needed(regions: Sequence[Region], outputs: Iterable[str]) -> list[Region]:
    wanted = {now(name) for name in outputs}
    needed = []
    for region in reversed(regions):
        if not wanted.isdisjoint(now(link.ours) for link in region.links):
            wanted |= region.reads
            needed.append(region)
    return needed[::-1]
