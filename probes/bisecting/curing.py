"""A search for faults that need most of a program to be there: which few statements, taken out, cure it.

`smallest_kept` starts from nothing and adds. That asks for a program that is right when it is empty; a result that is
compared with another one is not. Here the search starts from the whole program and takes out.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace

from harness.record import Answer, Outcome
from probes.bisecting.search import Ask, Found, Query, Search, smallest_kept

BEAM = 8  # sets that are taken further
MOST_PARTS = 8  # of a culprit that are tried one by one
DEEPEST = 4  # as many statements are taken out at most
_EXPECTED = ((0.9, Answer(Outcome.FAIL, math.inf)), (0.1, Answer(Outcome.PASS, 0.0)))


def smallest_cure(order: Sequence[int], groups: Sequence[Sequence[int]] = ()) -> Search:
    """`Found.kept` are the candidates to take out; queries name those that are left in.

    Where the empty program passes, `smallest_kept` decides. Elsewhere candidates are taken out one after another, those
    first that lower the answer's value most, until the answer is PASS; then those that need not be out are put back.
    Everything is undecided at the end, if nothing cures.
    """
    everything = frozenset(order)
    whole = yield Ask(everything, _EXPECTED)
    if whole.outcome is Outcome.PASS or not order:
        return Found(everything)
    empty = yield Ask(frozenset(), ((0.5, Answer(Outcome.PASS, 0.0)), (0.5, Answer(Outcome.FAIL, math.inf))))
    if empty.outcome is Outcome.PASS:
        return (yield from smallest_kept(order, groups=groups))
    found, sensitivity = yield from _take_out(order, _value(whole))
    if found is None:
        return Found(frozenset(), tuple(order), tuple(order), sensitivity)  # taking out cures nothing
    left = yield from _put_back(order, found)
    return Found(left, tuple(candidate for candidate in order if candidate not in left), (), sensitivity)


def finest_cure(order: Sequence[int], groups: Sequence[Sequence[int]], inside: Mapping[int, Sequence[int]]) -> Search:
    """As `smallest_cure`, and where parts of a culprit (`inside`) are enough, those in its place."""
    found = yield from smallest_cure(order, groups)
    if found.undecided:
        return found
    out, waiting = set(found.kept), list(found.kept)
    while waiting:
        culprit = waiting.pop()
        others = frozenset(order) - (out - {culprit})
        fewer = (yield from _parts(others, inside[culprit])) if inside.get(culprit) else None
        if fewer is not None:
            out = out - {culprit} | fewer
            waiting += fewer
    kept = tuple(candidate for candidate in order if candidate in out)
    return replace(found, applied=frozenset(order) - out, kept=kept)


def _parts(left: Query, inside: Sequence[int]) -> Generator[Ask, Answer, set[int] | None]:
    """The fewest of `inside` that cure by being out; None if they do not: what is around them is to blame."""
    without = left - frozenset(inside)
    answer = yield Ask(without, _EXPECTED)
    if answer.outcome is Outcome.PASS:
        found = yield from _beside(smallest_kept(inside), without)
        return None if found.undecided else set(found.kept)
    for one in inside[:MOST_PARTS]:  # a loop without any of its statements may not end
        answer = yield Ask(left - {one}, _EXPECTED)
        if answer.outcome is Outcome.PASS:
            return {one}
    return None


def _beside(search: Search, others: Query) -> Search:
    """A search among some, with `others` left in as well."""
    request = next(search)
    while True:
        answer = yield Ask(request.query | others, request.likely)
        try:
            request = search.send(answer)
        except StopIteration as end:
            found: Found = end.value
            return found


def _take_out(order: Sequence[int], value: float) -> Generator[Ask, Answer, tuple[Query | None, dict[int, float]]]:
    """The first set found whose removal cures, as what is left; and how much each removal alone lowers the value.

    A beam: the few sets that lower the value most are taken further, since errors may hide each other.
    """
    sensitivity: dict[int, float] = {}
    beam: list[tuple[float, Query]] = [(value, frozenset(order))]
    seen: set[Query] = set()
    for depth in range(min(DEEPEST, len(order))):
        steps: list[tuple[float, Query]] = []
        for before, left in beam:
            for candidate in order:
                query = left - {candidate}
                if candidate not in left or query in seen:
                    continue
                seen.add(query)
                answer = yield Ask(query, _EXPECTED)
                if answer.outcome is Outcome.PASS:
                    return query, sensitivity
                after = _value(answer)
                if depth == 0 and math.isfinite(after):
                    sensitivity[candidate] = before - after
                if after < before:
                    steps.append((after, query))
        beam = sorted(steps, key=lambda step: step[0])[:BEAM]
    return None, sensitivity


def _put_back(order: Sequence[int], left: Query) -> Generator[Ask, Answer, Query]:
    """Until a whole round puts back none, so that every candidate that stays out is needed."""
    while True:
        before = left
        for candidate in order:
            if candidate not in left:
                answer = yield Ask(left | {candidate}, _EXPECTED)
                left = left | {candidate} if answer.outcome is Outcome.PASS else left
        if left == before:
            return left


def _value(answer: Answer) -> float:
    """How bad it is: an answer without a value, or one that is not decided, is as bad as can be."""
    known = answer.outcome is not Outcome.UNRESOLVED and answer.value is not None and not math.isnan(answer.value)
    return answer.value if known and answer.value is not None else math.inf
