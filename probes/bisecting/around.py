"""A search that starts from a suspicion, where every question is dear: it asks whether it is right, and certifies it."""

from __future__ import annotations

import math
from collections.abc import Collection, Generator, Mapping, Sequence

from harness.record import Answer, Outcome
from probes.bisecting.search import FINITE, Ask, Found, Query, Search, smallest_kept
from probes.bisecting.verdicts import DESTROYED

FEW = 12  # suspects up to this number are asked about one by one: halving would cost more questions
CLEAN, BROKEN = Answer(Outcome.PASS, 0.0), Answer(Outcome.FAIL, math.inf)


def around(
    order: Sequence[int], suspects: Collection[int], sensitivity: Mapping[int, float],
    costs: Mapping[int, float] | None = None, tolerance: float | None = None,
) -> Search:  # fmt: skip
    """The candidates to keep, where `suspects` are probably all of them: one question whether they are, one for each.

    Where they are not, all others are searched, the most sensitive last; with a `tolerance`, errors that add up are met
    by leaving out as many of the most sensitive as the values ask for. With `costs`, what is dearest to keep is tried
    first, so that among equals the cheap stay.
    The same promises as those of `smallest_kept`: what is applied was answered PASS, what is kept was asked on top of it.
    """
    everything = frozenset(order)
    whole = yield Ask(everything, ((0.3, CLEAN), (0.7, BROKEN)))
    if whole.outcome is Outcome.PASS or not order:
        return Found(everything, sensitivity=sensitivity)
    held = everything & {*suspects}
    found = yield from _others(order, held, sensitivity, tolerance)
    applied = found.applied

    def first(candidate: int) -> tuple[float, float, int]:
        # Those that are probably clean first: what is clean changes the question for all that were asked before.
        return -costs.get(candidate, 0.0) if costs else 0.0, sensitivity.get(candidate, FINITE), candidate

    left = sorted(held, key=first)
    if len(left) > FEW:
        narrowed = yield from on_top(smallest_kept(left, sensitivity=dict.fromkeys(left, 0.0)), applied)
        applied, left = applied | narrowed.applied, list(narrowed.kept)
    applied, undecided = yield from _certify(applied, sorted([*left, *found.kept], key=first))
    place = {candidate: number for number, candidate in enumerate(order)}
    kept = tuple(sorted(everything - applied, key=place.__getitem__))
    return Found(applied, kept, tuple(c for c in kept if c in undecided), sensitivity)


def _others(
    order: Sequence[int], held: Query, sensitivity: Mapping[int, float], tolerance: float | None
) -> Generator[Ask, Answer, Found]:
    """Which of those that are not `held` must be kept as well: none, if the suspicion is right."""
    others = [candidate for candidate in order if candidate not in held]
    if held and others:
        answer = yield Ask(frozenset(others), ((0.8, CLEAN), (0.2, BROKEN)))
        if answer.outcome is Outcome.PASS:
            return Found(frozenset(others))
    known = {candidate: sensitivity.get(candidate, 0.0) for candidate in others}
    return (yield from smallest_kept(others, tolerance=tolerance, destroyed=DESTROYED, sensitivity=known))


def on_top(search: Search, applied: Query) -> Generator[Ask, Answer, Found]:
    """A search whose questions are all asked with `applied` applied as well."""
    try:
        request = next(search)
        while True:
            answer = yield Ask(request.query | applied, request.likely)
            request = search.send(answer)
    except StopIteration as end:
        found: Found = end.value
        return found


def _certify(applied: Query, kept: Sequence[int]) -> Generator[Ask, Answer, tuple[Query, frozenset[int]]]:
    """Ask every kept candidate on top of what is applied until a whole round adds none; the UNRESOLVED ones, too."""
    known: dict[Query, Answer] = {}
    while True:
        before, undecided = applied, set()
        for candidate in kept:
            query = applied | {candidate}
            if candidate in applied:
                continue
            if query not in known:
                known[query] = yield Ask(query, ((0.1, CLEAN), (0.9, BROKEN)))
            if known[query].outcome is Outcome.PASS:
                applied = query
            elif known[query].outcome is Outcome.UNRESOLVED:
                undecided.add(candidate)
        if applied == before:
            return applied, frozenset(undecided)
