"""A search for faults that need most of a program to be there: which few statements, taken out, cure it?

`smallest_kept` starts from nothing and adds. That asks for a program that is right when it is empty; a result that is
compared with another one is not. Here the search starts from the whole program and takes out.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence

from harness.record import Answer, Outcome
from probes.search import Ask, Found, Query, Search, smallest_kept

_EXPECTED = ((0.9, Answer(Outcome.FAIL, math.inf)), (0.1, Answer(Outcome.PASS, 0.0)))


def smallest_cure(order: Sequence[int], groups: Sequence[Sequence[int]] = ()) -> Search:
    """`Found.kept` are the candidates to take out; queries name those that are left in.

    Where the empty program passes, `smallest_kept` decides. Elsewhere candidates are taken out one after another,
    always the one that lowers the answer's value most, until the answer is PASS; then those that need not be out are
    put back. What is undecided at the end is everything, if nothing cures.
    """
    everything = frozenset(order)
    whole = yield Ask(everything, _EXPECTED)
    if whole.outcome is Outcome.PASS or not order:
        return Found(everything)
    empty = yield Ask(frozenset(), ((0.5, Answer(Outcome.PASS, 0.0)), (0.5, Answer(Outcome.FAIL, math.inf))))
    if empty.outcome is Outcome.PASS:
        return (yield from smallest_kept(order, groups=groups))
    left, value, sensitivity = everything, _value(whole), {}
    while True:
        steps = yield from _each_out(order, left)
        if left == everything:
            sensitivity = {candidate: value - after for candidate, (after, _) in steps.items() if math.isfinite(after)}
        candidate, (best, cured) = min(steps.items(), key=lambda step: (not step[1][1], step[1][0]))
        if not cured and (best >= value or len(left) == 1):
            return Found(frozenset(), tuple(order), tuple(order), sensitivity)  # taking out cures nothing
        left, value = left - {candidate}, best
        if cured:
            break
    left = yield from _put_back(order, left)
    return Found(left, tuple(candidate for candidate in order if candidate not in left), (), sensitivity)


def _each_out(order: Sequence[int], left: Query) -> Generator[Ask, Answer, dict[int, tuple[float, bool]]]:
    """The value, and whether it is cured, with each candidate that is left taken out alone."""
    steps = {}
    for candidate in order:
        if candidate in left:
            answer = yield Ask(left - {candidate}, _EXPECTED)
            steps[candidate] = (_value(answer), answer.outcome is Outcome.PASS)
    return steps


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
