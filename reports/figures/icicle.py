"""GPU time by the path of ranges that launched it: a tree of range names, kernels its leaves, small parts merged."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from reports import units
from reports.figures.timeline import TONES
from reports.pages.sheets import public

MOST_NODES = 1500
MOST_DEPTH = 48  # ranges deeper than this count as the one that encloses them at this depth
_WIDTH = 240  # characters of a name
OUTSIDE = "(in no range)"

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Node:
    """A box: `start_ns` from the left edge, `length_ns` of GPU time, under `parent` (an index; -1 is the root)."""

    parent: int
    depth: int
    start_ns: int
    length_ns: int
    name: str
    kind: str  # range, kernel, or rest: what was merged, or was launched in no range
    domain: str
    kernels: int


@dataclass(frozen=True)
class Icicle:
    """The boxes, each after its parent; `merged` smaller ones stand together as `(n more)`."""

    nodes: tuple[Node, ...]
    total_ns: int
    kernels: int
    merged: int
    tones: tuple[str, ...]  # the kernels with a colour of their own, as in the timeline

    @property
    def caption(self) -> str:
        """What is drawn of how much, with the unit."""
        parts = f"{units.seconds(self.total_ns / 1e9)} of GPU time in {units.plural(self.kernels, 'kernel')}"
        shown = f"{units.count(len(self.nodes))} box{'es' if len(self.nodes) != 1 else ''}"
        if self.merged:
            shown = f"{shown}, {units.count(self.merged)} smaller ones merged"
        return (
            f"{parts}. Width is GPU time, by the ranges around the launch (outermost on top), kernels below; {shown}."
        )

    @property
    def height(self) -> int:
        """In pixels, as profile.js lays the boxes out: room kept until it does."""
        return 21 * (1 + max(node.depth for node in self.nodes))

    def to_json(self) -> str:
        """Columns of the boxes."""
        content = {
            "parent": [node.parent for node in self.nodes], "depth": [node.depth for node in self.nodes],
            "start": [node.start_ns for node in self.nodes], "length": [node.length_ns for node in self.nodes],
            "name": [node.name for node in self.nodes], "kind": [node.kind for node in self.nodes], "domain": [node.domain for node in self.nodes],
            "kernels": [node.kernels for node in self.nodes], "total": self.total_ns, "tones": self.tones,
        }  # fmt: skip
        return json.dumps(content, ensure_ascii=False, separators=(",", ":"))


def build(tables: Mapping[str, pd.DataFrame], most: int = MOST_NODES) -> Icicle | None:
    """The tree of the tables `kernels` and `ranges`; None if there is no kernel time."""
    kernels = tables.get("kernels")
    if kernels is None or kernels.empty or int(kernels["duration_ns"].sum()) <= 0:
        return None
    paths, path_of = _paths(tables.get("ranges"))
    short = kernels["kernel_short"] if "kernel_short" in kernels else kernels["kernel"]
    place = kernels["range_id"].map(path_of).fillna(-1).astype("int64").to_numpy() if len(path_of) else -1
    leaves = pd.DataFrame({"path": place, "name": short.to_numpy(), "time": kernels["duration_ns"].to_numpy()})
    leaves = leaves.groupby(["path", "name"], observed=True)["time"].agg(["sum", "size"]).reset_index()
    tree = _grow(paths, leaves)
    floor = _floor([box.time for box in tree.values()], most)
    nodes, merged = _lay_out(tree, floor)
    return Icicle(tuple(nodes), int(leaves["sum"].sum()), int(leaves["size"].sum()), merged, _tones(leaves))


def _tones(leaves: pd.DataFrame) -> tuple[str, ...]:
    """The kernels that take the most time, over all ranges."""
    time = leaves.groupby("name", observed=True)["sum"].sum().nlargest(TONES)
    return tuple(units.shorten(units.visible(public(str(name))), _WIDTH) for name in time.index)


@dataclass
class _Box:
    parent: int
    name: str
    kind: str
    domain: str = ""
    time: int = 0
    kernels: int = 0


def _paths(ranges: pd.DataFrame | None) -> tuple[list[tuple[int, str, str]], pd.Series[Any]]:
    """The different paths as (parent path, name, domain), and the path of each range; level by level, never one by one."""
    if ranges is None or ranges.empty:
        return [], pd.Series(dtype="int64")
    name = (ranges["range_group"] if "range_group" in ranges else ranges["range"]).astype("object").fillna("(no name)")
    domain = ranges["domain"].astype("object").fillna("")
    texts, words = pd.factorize(pd.MultiIndex.from_arrays([name, domain]))
    spoken = [(str(one), str(other)) for one, other in words.tolist()]
    ids = ranges["range_id"].to_numpy(np.int64)
    parent_id = ranges["parent_id"].fillna(-1).to_numpy(np.int64)
    parent = pd.Index(ids).get_indexer(pd.Index(parent_id))
    path = np.full(len(ranges), -1)
    found: list[tuple[int, str, str]] = []
    waiting = np.flatnonzero(parent < 0)
    for _ in range(MOST_DEPTH):
        if not len(waiting):
            break
        above = np.where(parent[waiting] < 0, -1, path[parent[waiting]])
        codes, pairs = pd.factorize(above * len(words) + texts[waiting])
        path[waiting] = codes + len(found)
        found += [(pair // len(words), *spoken[pair % len(words)]) for pair in pairs.tolist()]
        waiting = np.flatnonzero((path < 0) & (path[parent] >= 0))  # no root is left, so every parent is a place
    return found, pd.Series(_inherit(path, parent), index=ids)


def _inherit(path: Integers, parent: Integers) -> Integers:
    """The path of the nearest range above that has one, for those that have none; each round doubles the reach."""
    above = np.where(path >= 0, np.arange(len(path)), parent)
    while (path[above] < 0).any():
        above = above[above]
    return path[above]


def _grow(paths: list[tuple[int, str, str]], leaves: pd.DataFrame) -> dict[int, _Box]:
    """Boxes by number: paths keep theirs, then kernels; each holds the time of all below it."""
    boxes = {number: _Box(parent, name, "range", domain) for number, (parent, name, domain) in enumerate(paths)}
    outside = len(paths)
    if paths and bool((leaves["path"] < 0).any()):
        boxes[outside] = _Box(-1, OUTSIDE, "rest")
    rows = zip(
        leaves["path"].tolist(), leaves["name"].tolist(), leaves["sum"].tolist(), leaves["size"].tolist(), strict=True
    )
    for number, (path, name, time, count) in enumerate(rows, len(paths) + 1):
        boxes[number] = _Box(path if path >= 0 else outside if paths else -1, str(name), "kernel", "", time, count)
    for number in [*range(len(paths) + 1, len(paths) + 1 + len(leaves)), *range(len(paths) - 1, -1, -1)]:
        if (above := boxes[number].parent) >= 0:  # a path's number is above its parent's, so that children come first
            boxes[above].time += boxes[number].time
            boxes[above].kernels += boxes[number].kernels
    return {number: box for number, box in boxes.items() if box.time > 0}


def _floor(times: list[int], most: int) -> int:
    """The time below which boxes are merged, so that about `most` stay."""
    return sorted(times, reverse=True)[most] + 1 if len(times) > most else 0


def _lay_out(tree: Mapping[int, _Box], floor: int) -> tuple[list[Node], int]:
    """Boxes with their places, parents before children, the longest first; what is under the floor merged by parent."""
    below: dict[int, list[int]] = {}
    for number, box in tree.items():
        below.setdefault(box.parent, []).append(number)
    nodes: list[Node] = []
    merged = 0
    waiting = [(-1, -1, 0, 0)]  # box, its node, the depth of its children, their left edge
    while waiting:
        above, node, depth, left = waiting.pop()
        children = sorted(below.get(above, ()), key=lambda number: (-tree[number].time, tree[number].name))
        small = [number for number in children if tree[number].time < floor]
        for number in children[: len(children) - len(small)]:
            one = tree[number]
            name = units.shorten(units.visible(public(one.name)), _WIDTH)
            waiting.append((number, len(nodes), depth + 1, left))
            nodes.append(Node(node, depth, left, one.time, name, one.kind, units.visible(one.domain), one.kernels))
            left += one.time
        if small:
            merged += sum(_size(number, below) for number in small)
            time = sum(tree[number].time for number in small)
            kernels = sum(tree[number].kernels for number in small)
            nodes.append(Node(node, depth, left, time, f"({units.count(len(small))} more)", "rest", "", kernels))
    return nodes, merged


def _size(number: int, below: Mapping[int, list[int]]) -> int:
    """How many boxes there are at and under one."""
    count, waiting = 0, [number]
    while waiting:
        count += 1
        waiting += below.get(waiting.pop(), ())
    return count
