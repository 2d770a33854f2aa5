"""Which range a moment on a thread belongs to: the innermost, those that enclose it, and the time under each.

A range is half open, `[start, end)`, and belongs to the thread on which it started. A moment belongs to the ranges of
its thread that hold it: one at the very start of a range is inside, one at its very end is not, and a range without
length holds nothing. The innermost is the one that started last; of those that start together the one that ends first;
of equals the later row. This holds for any ranges, nested or crossing. A range's parent is the innermost that holds it
whole, so that a range's ancestors hold all that the range holds.

All of it is sorting and searching in arrays, O((ranges + moments) log ranges) for every input.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pandas as pd

Ints = npt.NDArray[np.int64]
NONE = -1  # no range, no call
STEPS = 5  # before a search goes by the tree
AT_ONCE = 1 << 16  # ranges whose sums are taken together: what the caches of a core hold
FOREVER = np.iinfo(np.int64).max  # the end of a range that was never closed


@dataclass(frozen=True)
class Axis:
    """Moments on threads as single numbers that sort by thread, then by time."""

    threads: pd.Index
    first: int  # the earliest moment, and how many there are between it and the latest
    width: int

    @classmethod
    def over(cls, thread: Ints, start: Ints, moments: Ints) -> Axis:
        """An axis for ranges that start there, and for these moments. Times are nanoseconds: a day is 47 bits."""
        times = [part for part in (start, moments) if part.size]
        first = min((int(part.min()) for part in times), default=0)
        last = max((int(part.max()) for part in times), default=0)
        threads = pd.Index(pd.unique(thread))
        width = last - first + 2
        if width * (len(threads) + 1) > FOREVER:
            raise ValueError(f"times from {first} to {last} ns on {len(threads)} threads are more than 64 bits hold")
        return cls(threads, first, width)

    def owners(self, thread: Ints) -> Ints:
        """The position of each thread on the axis; `NONE` for one that has no range."""
        return self.threads.get_indexer(pd.Index(thread)).astype(np.int64)

    def place(self, owner: Ints, time: Ints) -> Ints:
        """Times after the last one count as just after it."""
        placed: Ints = owner * self.width + (np.minimum(time, self.first + self.width - 1) - self.first)
        return placed


class Ranges:
    """Ranges on threads, ready to be asked. Results are row numbers of the arrays given here, or `NONE`."""

    def __init__(self, thread: Ints, start: Ints, end: Ints, moments: Ints) -> None:
        """`moments` are the times that will be asked for, in any order and number."""
        self.axis = Axis.over(thread, start, moments)
        owner = self.axis.owners(thread)
        place = self.axis.place(owner, start)
        self.order = _outer_first(place, end)
        self.owner, self.place, self.end = owner[self.order], place[self.order], end[self.order]
        self.begins = np.searchsorted(self.owner, np.arange(len(self.axis.threads)))  # first range of each thread

    def innermost(self, thread: Ints, time: Ints) -> Ints:
        """The range to which each moment belongs."""
        owner = self.axis.owners(thread)
        found = np.full(len(owner), NONE, dtype=np.int64)
        known = np.flatnonzero(owner != NONE)
        place = self.axis.place(owner[known], time[known])
        last = np.searchsorted(self.place, place, side="right") - 1
        found[known] = self._rows(self._last_above(last, time[known], self.begins[owner[known]], self._up))
        return found

    @cached_property
    def parents(self) -> Ints:
        """The innermost range that holds each range whole."""
        parents = np.empty(len(self.end), dtype=np.int64)
        parents[self.order] = self._rows(self._up)
        return parents

    @cached_property
    def _up(self) -> Ints:
        """The parents as positions in the sorted order."""
        nearest = np.arange(len(self.end)) - 1
        start = self.place - self.owner * self.axis.width + self.axis.first
        bound = np.maximum(self.end - 1, start)
        return self._last_above(nearest, bound, self.begins[self.owner], nearest)

    @cached_property
    def depths(self) -> Ints:
        """How many ancestors each range has, by doubling: every step looks twice as far up."""
        up = np.append(self.parents, NONE)  # the last stands for NONE, and is its own parent
        depth = (up != NONE).astype(np.int64)
        while (up != NONE).any():
            depth = depth + depth[up]
            up = up[up]
        depths: Ints = depth[:-1]
        return depths

    def _rows(self, at: Ints) -> Ints:
        """Row numbers of positions in the sorted order."""
        rows: Ints = np.append(self.order, NONE)[at]
        return rows

    @cached_property
    def _peaks(self) -> list[Ints]:
        """The latest end among every 2, 4, 8 ... neighbours: a tree, the leaves first."""
        levels = [self.end]
        while len(levels[-1]) > 1:
            low = levels[-1]
            odd = np.append(low, np.iinfo(np.int64).min) if len(low) % 2 else low
            levels.append(np.maximum(odd[::2], odd[1::2]))
        return levels

    def _last_above(self, at: Ints, bound: Ints, floor: Ints, up: Ints) -> Ints:
        """For each query the last position in [floor, at] whose end is later than `bound`; `NONE` without one.

        Whatever lies between a position and `up` of it ends no later than that position does. So a query whose
        position ends too early goes on from there; a few such steps do for most, and the tree for the rest. `up` may be
        `at` itself: then each step makes the next one longer.
        """
        open_ = np.arange(len(at))
        for _ in range(STEPS):
            here, low, high = at[open_], floor[open_], bound[open_]
            short = np.flatnonzero((here >= low) & (self.end[here] <= high)) if len(self.end) else here[:0]
            open_ = open_[short]
            at[open_] = up[here[short]]
        if open_.size:
            at[open_] = self._searched(at[open_] + 1, bound[open_], floor[open_])
        return np.where(at >= floor, at, NONE)

    def _searched(self, before: Ints, bound: Ints, floor: Ints) -> Ints:
        """For each query the last position below `before` whose end is later than `bound`, if it is not below `floor`.

        Up the tree from the right until a block holds such an end, then down into that block, its right half first.
        All queries climb together, and those that are done drop out.
        """
        at, node, high, low = np.arange(len(before)), before, bound, floor  # the queries that still climb
        hits: list[tuple[Ints, Ints]] = []
        for level, peaks in enumerate(self._peaks):
            alive = np.flatnonzero(node << level > low)
            at, node, high, low = at[alive], node[alive], high[alive], low[alive]
            if not at.size:
                break
            hit = (node & 1 == 1) & (peaks[node - 1] > high)
            hits.append((at[hit], node[hit] - 1))
            at, node, high, low = at[~hit], node[~hit] >> 1, high[~hit], low[~hit]
        at = found = np.empty(0, dtype=np.int64)
        for level in range(len(hits) - 1, -1, -1):
            at, found = np.append(at, hits[level][0]), np.append(found, hits[level][1])
            if level:
                peaks = self._peaks[level - 1]
                right = np.minimum(2 * found + 1, len(peaks) - 1)
                found = right - (peaks[right] <= bound[at])
        out = np.full(len(before), NONE, dtype=np.int64)
        out[at] = found
        return out


@dataclass(frozen=True)
class Sums:
    """What lies under each group of ranges."""

    count: Ints
    total: Ints


class Load:
    """Moments that weigh something (the launch of a kernel, its duration), to be summed under ranges."""

    def __init__(self, ranges: Ranges, thread: Ints, time: Ints, weight: Ints) -> None:
        owner = ranges.axis.owners(thread)
        if not (known := owner != NONE).all():
            owner, time, weight = owner[known], time[known], weight[known]
        place = ranges.axis.place(owner, time)
        order = np.argsort(place, kind="stable")
        self.ranges, self.place = ranges, place[order]
        del owner, place  # a long trace fills the memory with such arrays
        self.sums = np.zeros(len(order) + 1, dtype=np.int64)
        np.cumsum(weight[order], out=self.sums[1:])

    def under(self, group: Ints, groups: int) -> Sums:
        """What each of the groups of ranges holds, at any depth; each moment once, however the ranges overlap.

        `group` is by row, as the ranges were given, in [0, groups).
        """
        if not len(self.place):
            return Sums(np.zeros(groups, np.int64), np.zeros(groups, np.int64))
        ranges = self.ranges
        group = group[ranges.order]
        order = np.argsort(group, kind="stable")  # within a group still by place
        count, total, reached = np.zeros(groups, np.int64), np.zeros(groups, np.int64), 0
        for first in range(0, len(order), AT_ONCE):
            rows = order[first : first + AT_ONCE]
            # Where ranges of a group overlap, the later begins where the earlier ones end. The positions of a group
            # are lifted above those of the group before, so that one running maximum does for all.
            at = group[rows]
            lift = at * (len(self.place) + 1)
            low = np.searchsorted(self.place, ranges.place[rows]) + lift
            high = np.searchsorted(self.place, ranges.axis.place(ranges.owner[rows], ranges.end[rows])) + lift
            ends = np.maximum.accumulate(np.append(reached, high))
            low, reached = np.maximum(low, ends[:-1]), int(ends[-1])
            high = np.maximum(high, low)
            np.add.at(count, at, high - low)
            np.add.at(total, at, self.sums[high - lift] - self.sums[low - lift])
        return Sums(count, total)


def paths(parents: Ints, names: Ints, depths: Ints) -> tuple[Ints, Ints]:
    """Group ranges by the names on the way from the outermost to themselves.

    Returns the group of each range, and the parent of each group; a group has a greater number than its parent.
    """
    groups = np.full(len(parents) + 1, NONE, dtype=np.int64)  # the last stands for NONE
    above: list[Ints] = [np.empty(0, dtype=np.int64)]
    count, width = 0, int(names.max(initial=0)) + 1
    order = np.argsort(depths, kind="stable")
    starts = np.append(0, np.cumsum(np.bincount(depths)))
    for first, last in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        rows = order[first:last]
        up = groups[parents[rows]]
        codes, unique = (
            pd.factorize((up + 1) * width + names[rows]) if len(rows) > 1 else _alone(up, names[rows], width)
        )
        groups[rows] = codes + count
        above.append(unique // width - 1)
        count += len(unique)
    return groups[:-1], np.concatenate(above)


def _alone(up: Ints, name: Ints, width: int) -> tuple[Ints, Ints]:
    """As `factorize` of one number, at once: ranges 20 000 deep are as many levels of one."""
    return np.zeros(1, dtype=np.int64), (up + 1) * width + name


def match(wanted: tuple[Ints, Ints], offered: tuple[Ints, Ints], preferred: npt.NDArray[np.bool_], start: Ints) -> Ints:
    """For each wanted (process, correlation id) the row of the call that has both, `NONE` without one.

    Several calls may share them: the preferred ones go first, then the one that started first, then the first row.
    """
    if not (offered[0].size and wanted[0].size):
        return np.full(len(wanted[0]), NONE, dtype=np.int64)
    key, goal = keys(offered, wanted)
    call = np.full(int(max(key.max(initial=0), goal.max(initial=0))) + 1, NONE, dtype=np.int64)
    for rows in (np.flatnonzero(~preferred), np.flatnonzero(preferred)):
        latest_first = rows[_by(start[rows])][::-1]
        call[key[latest_first]] = latest_first  # of rows with the same key the last one stays
    return call[goal]


def keys(*sides: tuple[Ints, Ints]) -> list[Ints]:
    """Process and correlation id as one small number, the same one on every side. No side is empty."""
    owners, correlations = (_small(*parts) for parts in zip(*sides, strict=True))
    width = max(int(part.max()) for part in correlations) + 1
    return _small(*(owner * width + part for owner, part in zip(owners, correlations, strict=True)))


def _small(*parts: Ints) -> list[Ints]:
    """The same numbers from 0, or others, equal where they are, if these are spread too far."""
    low, high = min(int(part.min()) for part in parts), max(int(part.max()) for part in parts)
    sizes = [len(part) for part in parts]
    if high - low < 4 * sum(sizes):
        return [part - low for part in parts]
    return np.split(pd.factorize(np.concatenate(parts))[0].astype(np.int64), np.cumsum(sizes[:-1]))


def _by(values: Ints) -> Ints:
    """A stable order; for nothing if they are in order, as what nsys wrote mostly is."""
    if (values[1:] >= values[:-1]).all():
        return np.arange(len(values))
    return np.argsort(values, kind="stable")


def _outer_first(place: Ints, end: Ints) -> Ints:
    """By thread and start; of those that start together the one that ends last first, then the first row."""
    order = _by(place)
    ordered = place[order]
    if (ordered[1:] == ordered[:-1]).any():
        order = np.lexsort((-end, place))
    return order
