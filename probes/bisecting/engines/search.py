"""The search for one change of an engine that cures it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from harness.record import Outcome
from probes.bisecting.around import BROKEN, CLEAN, on_top
from probes.bisecting.search import Ask, Found, Search, smallest_kept


def first_cure(order: Sequence[int], groups: Sequence[Collection[int]] = ()) -> Search:
    """One change that cures, where each alone may: candidates are changes, `Found.kept` those that are made.

    Queries name the changes that are not made. Each is tried alone, in this order; then all that go together (of each of
    `groups`, which exclude each other, the last and strongest), and what of those is needed. Everything is undecided if nothing cures.
    """
    everything = frozenset(order)
    whole = yield Ask(everything, ((0.2, CLEAN), (0.8, BROKEN)))
    if whole.outcome is Outcome.PASS or not order:
        return Found(everything)
    for candidate in order:
        answer = yield Ask(everything - {candidate}, ((0.3, CLEAN), (0.7, BROKEN)))
        if answer.outcome is Outcome.PASS:
            return Found(everything - {candidate}, (candidate,))
    excluded = frozenset(c for group in groups for c in sorted(group, key=order.index)[:-1])
    together = [c for c in order if c not in excluded]
    answer = yield Ask(excluded, ((0.3, CLEAN), (0.7, BROKEN)))
    if answer.outcome is not Outcome.PASS:
        return Found(everything, tuple(order), tuple(order))
    found = yield from on_top(smallest_kept(together), excluded)
    return Found(excluded | found.applied, found.kept, found.undecided)
