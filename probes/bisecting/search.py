"""The search itself, pure: which candidates must be kept so that all others can be applied.

Candidates are integers. A query is the set of candidates that are *applied* (lowered to FP16, left in, taken out: the
search does not care); the rest are untouched. A search is a generator that yields an `Ask`, is sent an `Answer`, and
returns a `Found`. It reads no clock, no file and no random number, so that feeding it recorded answers replays it, and
feeding it likely answers tells what it will ask next.
"""

from __future__ import annotations

import heapq
import math
import sys
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, count

from harness.record import Answer, Outcome

Query = frozenset[int]
Unit = tuple[int, ...]  # candidates that the scan takes together: one alone, or all of a scope

NOTHING: Query = frozenset()
FINITE = sys.float_info.max


@dataclass(frozen=True)
class Ask:
    """A question, and the answers that the search expects, with their probabilities (they sum to 1)."""

    query: Query
    likely: tuple[tuple[float, Answer], ...]


@dataclass(frozen=True)
class Found:
    """A result: `kept` and `applied` part the candidates; the answer to `applied` is the wanted one.

    `undecided` are the kept candidates whose single application stayed UNRESOLVED; for every other kept one the search
    has asked `applied | {candidate}` and got an answer that is not the wanted one. `sensitivity` is each candidate's
    value where it was measured (a group's value over the root of its size; inf for a value that is not finite).
    """

    applied: Query
    kept: tuple[int, ...] = ()
    undecided: tuple[int, ...] = ()
    sensitivity: Mapping[int, float] = field(default_factory=dict)

    @property
    def certified(self) -> bool:
        """Proven 1-minimal: no kept candidate can be applied as well."""
        return not self.undecided


Search = Generator[Ask, Answer, Found]
Good = Callable[[Answer], bool]


def smallest_kept(
    order: Sequence[int],
    *,
    wanted: Outcome = Outcome.PASS,
    signature: str | None = None,
    tolerance: float | None = None,
    destroyed: float = FINITE,
    sensitivity: Mapping[int, float] | None = None,
    groups: Sequence[Sequence[int]] = (),
    scope_first: bool = False,
) -> Search:
    """Apply as many candidates as possible while the answer is `wanted` (with that `signature`, if one is given).

    Applying nothing must be wanted; the caller has checked that. Which candidates are measured first:
    `tolerance` given, and the answers carry values (wanted is PASS, value <= tolerance): groups are, strongest first,
    and the harmless ones are applied first; with `sensitivity` none are, and as many of the most sensitive are left out
    as the values ask for.
    `sensitivity` alone: none; they are applied in ascending order of it (those it lacks come last).
    From the value `destroyed` on nothing adds up any more: single candidates are to blame and are bisected out first.
    Otherwise candidates are applied in the given order, with `scope_first` whole groups before single candidates.
    `groups` part the candidates, by module scope for instance; candidates in none of them count as groups of one.
    """
    facts = _Facts(wanted, signature)
    everything = frozenset(order)
    if not everything:
        return Found(NOTHING)
    first = yield from facts.ask(everything, _either(0.5, facts))
    if facts.is_wanted(first):
        return Found(everything)
    measured: dict[int, float] = {}
    applied, left = NOTHING, tuple(order)
    if tolerance is not None and first.value is not None:
        applied, measured = yield from _rank(facts, arrange(order, groups), tolerance, destroyed, sensitivity or {})
        left = tuple(candidate for candidate in measured if candidate not in applied)
    elif sensitivity is not None:
        left = tuple(sorted(order, key=lambda c: sensitivity.get(c, math.inf)))
    elif scope_first:
        applied, left = yield from _scan(facts, arrange(order, groups), NOTHING, facts.is_wanted)
    applied, left = yield from _scan(facts, [(c,) for c in left], applied, facts.is_wanted)
    applied, undecided = yield from _certify(facts, applied, left)
    place = {candidate: position for position, candidate in enumerate(order)}
    kept = tuple(sorted(everything - applied, key=place.__getitem__))
    return Found(applied, kept, tuple(c for c in kept if c in undecided), measured)


def drive(search: Search, ask: Callable[[Query], Answer]) -> Found:
    """Answer a search's questions one by one until it ends; no question comes twice."""
    try:
        request = next(search)
        while True:
            request = search.send(ask(request.query))
    except StopIteration as end:
        found: Found = end.value
        return found


def speculate(make: Callable[[], Search], answers: Mapping[Query, Answer], width: int) -> list[Query]:
    """At most `width` questions without an answer yet, most probably needed first.

    The first is the one that the search asks now; the others are those it comes to if the likely answers come true.
    Empty once the search can end.
    """
    queries: dict[Query, None] = {}
    number = count()  # ties go to the older branch
    branches: list[tuple[float, int, dict[Query, Answer]]] = [(-1.0, next(number), {})]
    for _ in range(4 * width):  # a branch may end the search, or lead to a question that another one has found
        if not branches or len(queries) >= width:
            break
        weight, _, assumed = heapq.heappop(branches)
        request = _next_ask(make(), answers, assumed)
        if request is None:
            continue
        queries[request.query] = None
        for probability, answer in request.likely:
            branch = (weight * probability, next(number), assumed | {request.query: answer})
            heapq.heappush(branches, branch)
    return list(queries)


def best_applied(
    answers: Mapping[Query, Answer], wanted: Outcome = Outcome.PASS, signature: str | None = None
) -> Query:
    """The largest query answered as wanted so far (the earliest of those): what an interrupted search has to show."""
    facts = _Facts(wanted, signature)
    return max((query for query, answer in answers.items() if facts.is_wanted(answer)), key=len, default=NOTHING)


def arrange(order: Sequence[int], groups: Sequence[Sequence[int]]) -> list[Unit]:
    """Part the candidates by group, groups and their members in `order`; a candidate in no group is a unit of its own."""
    group_of = {candidate: number for number, group in enumerate(groups) for candidate in group}
    units: dict[int, list[int]] = {}
    for position, candidate in enumerate(order):
        units.setdefault(group_of.get(candidate, -1 - position), []).append(candidate)
    return [tuple(unit) for unit in units.values()]


def _next_ask(search: Search, answers: Mapping[Query, Answer], assumed: Mapping[Query, Answer]) -> Ask | None:
    """The first question that has neither an answer nor an assumed one; None if the search ends without."""
    try:
        request = next(search)
        while (answer := answers.get(request.query) or assumed.get(request.query)) is not None:
            request = search.send(answer)
    except StopIteration:
        return None
    return request


class _Facts:
    """What has been answered so far; a question answered once is never asked again."""

    def __init__(self, wanted: Outcome, signature: str | None = None) -> None:
        self.wanted, self.signature = wanted, signature
        self.known: dict[Query, Answer] = {}

    def is_wanted(self, answer: Answer) -> bool:
        return answer.outcome is self.wanted and self.signature in (None, answer.signature)

    def ask(self, query: Query, likely: tuple[tuple[float, Answer], ...]) -> Generator[Ask, Answer, Answer]:
        if query not in self.known:
            self.known[query] = yield Ask(query, likely)
        return self.known[query]


def _either(chance: float, facts: _Facts) -> tuple[tuple[float, Answer], ...]:
    """The two likely answers of a scan: wanted with probability `chance`, or as far from it as can be."""
    opposite = Outcome.FAIL if facts.wanted is Outcome.PASS else Outcome.PASS
    return (chance, Answer(facts.wanted, 0.0, facts.signature)), (1.0 - chance, Answer(opposite, math.inf))


# The scan: apply the candidates in order, as many at a time as are clean with probability 1/2.


class _Density:
    """How often candidates are culprits: probabilities of a ladder of densities, learnt from the gaps between culprits.

    A little of the prior is mixed in after every culprit, so that a run of them makes the next steps short at once and
    a long gap makes them long again.
    """

    SHARE = 0.02  # of the prior, mixed in after each culprit
    SPARSE = 0.75  # every halving of the density is 2**SPARSE times as likely beforehand: few culprits are the rule

    def __init__(self, size: int) -> None:
        steps = max(1, math.ceil(math.log2(size + 1)))
        self.clean = [1.0 - 0.95 * 2.0**-step for step in range(steps + 1)]
        weights = [2.0 ** (self.SPARSE * step) for step in range(steps + 1)]
        self.prior = [weight / math.fsum(weights) for weight in weights]
        self.weights = list(self.prior)

    def survival(self, length: int) -> float:
        """The probability that the next `length` candidates are all clean."""
        return math.fsum(w * q**length for w, q in zip(self.weights, self.clean, strict=True))

    def saw_clean(self, length: int) -> None:
        self._learn(w * q**length for w, q in zip(self.weights, self.clean, strict=True))

    def saw_culprit(self) -> None:
        self._learn(w * (1.0 - q) for w, q in zip(self.weights, self.clean, strict=True))
        self._learn((1.0 - self.SHARE) * w + self.SHARE * p for w, p in zip(self.weights, self.prior, strict=True))

    def step(self, limit: int, bad: int | None) -> tuple[int, float]:
        """How many candidates to try next, 1..limit, and the probability that they are clean: as near 1/2 as can be.

        `bad`: the first culprit is known to be among the next `bad` candidates.
        """
        beyond = 0.0 if bad is None else self.survival(bad)

        def chance(length: int) -> float:
            return (self.survival(length) - beyond) / (1.0 - beyond)

        low, high = 1, limit
        while low < high:  # the shortest step that is clean with probability 1/2 at most
            middle = (low + high) // 2
            low, high = (middle + 1, high) if chance(middle) > 0.5 else (low, middle)
        shorter = max(1, low - 1)
        best = min((low, shorter), key=lambda length: abs(chance(length) - 0.5))
        return best, chance(best)

    def _learn(self, weights: Iterable[float]) -> None:
        fresh = list(weights)
        total = math.fsum(fresh)
        self.weights = [weight / total for weight in fresh]


def _scan(
    facts: _Facts, units: Sequence[Unit], applied: Query, good: Good
) -> Generator[Ask, Answer, tuple[Query, tuple[int, ...]]]:
    """Apply the units in order while the answer is good; returns what is applied and, in order, what is left out.

    Everything is cumulative: what was clean before a culprit stays applied. A unit is left out when adding it alone
    to what is applied was answered, and the answer was not good (UNRESOLVED is not).
    """
    left: list[int] = []
    density = _Density(len(units))
    at = 0
    bad: int | None = None  # the first culprit is known to come before this one
    while at < len(units):
        if bad == at + 1:
            left.extend(units[at])
            density.saw_culprit()
            at, bad = bad, None
            continue
        limit = len(units) - at if bad is None else bad - at - 1
        step, chance = density.step(limit, None if bad is None else bad - at)
        query = applied.union(*units[at : at + step])
        answer = yield from facts.ask(query, _either(chance, facts))
        if good(answer):
            applied, at = query, at + step
            density.saw_clean(step)
        else:
            bad = at + step
    return applied, tuple(left)


# Ranking: where answers carry an error, find the few candidates that make most of it.

_Item = tuple[float, int, bool, tuple[Unit, ...]]  # -power, number, measured, units; a heap pops the largest power


class _Ranking:
    """Groups of candidates by power: the square of the error with only that group applied.

    Independent rounding errors add up in power, so powers are a guide to what is worth splitting, and no more: what a
    guide says is always asked before it is believed.
    """

    MARGIN = 1.1  # the guide is made that much stricter whenever it was too mild
    COHERENT = 1.5  # errors add up to their sum at most; beyond that multiple of it, candidates act together

    def __init__(self, facts: _Facts, tolerance: float) -> None:
        self.facts, self.limit = facts, tolerance * tolerance
        self.heap: list[_Item] = []
        self.tail: list[tuple[float, int]] = []  # single candidates too sensitive to apply, with their power
        self.scale = 1.0
        self.number = count()

    def push(self, units: Sequence[Unit], power: float, measured: bool) -> None:
        if units:
            heapq.heappush(self.heap, (-power, next(self.number), measured, tuple(units)))

    def coherent(self) -> float:
        """The power that the harmless ones cannot exceed by adding up."""
        error = self.COHERENT * sum(math.sqrt(-item[0]) for item in self.heap)
        return error * error

    def predicted(self) -> float:
        """The power of the harmless ones together."""
        return self.scale * sum(-item[0] for item in self.heap)

    def harmless(self) -> Query:
        """Every candidate not set aside."""
        return frozenset().union(*(unit for item in self.heap for unit in item[3]))

    def refine(self) -> Generator[Ask, Answer, None]:
        """Take the strongest item: measure it if that was not done, else set it aside if single, else split it."""
        negative, _, measured, units = heapq.heappop(self.heap)
        power = -negative
        if not measured:
            power = yield from self.measure(units, power)
            self.push(units, power, measured=True)
        elif len(units) == 1 and len(units[0]) == 1:
            self.tail.append((power, units[0][0]))
        else:
            left, right = _halves(units)
            part = yield from self.measure(left, power / 2)
            rest = max(power - part, 0.0) if math.isfinite(part) else power
            self.push(left, part, measured=True)
            # What is left over is known well enough if it is the stronger half; else it is measured, should its turn come.
            self.push(right, rest, measured=part <= power / 2 and _size(right) > 1)

    def purge(self, power: float, bound: float) -> Generator[Ask, Answer, None]:
        """The harmless ones together have `power` > `bound`: set those aside that lift it there, each or together."""
        weakest_first = sorted(self.heap, key=lambda item: (-item[0] / _size(item[3]), item[1]))
        singles = [(candidate,) for item in weakest_first for unit in item[3] for candidate in unit]
        _, left = yield from _scan(self.facts, singles, NOTHING, lambda answer: self.within(answer, bound))
        self.tail.extend((power, candidate) for candidate in left)
        old, self.heap = sorted(self.heap), []
        for negative, _, measured, units in old:
            rest = [tuple(c for c in unit if c not in left) for unit in units]
            self.push([unit for unit in rest if unit], -negative, measured and _size(rest) == _size(units))

    def within(self, answer: Answer, bound: float) -> bool:
        return self.facts.is_wanted(answer) or _power(answer) <= bound

    def measure(self, units: Sequence[Unit], guess: float) -> Generator[Ask, Answer, float]:
        expected = Answer(Outcome.PASS if guess <= self.limit else Outcome.FAIL, math.sqrt(guess))
        answer = yield from self.facts.ask(frozenset().union(*units), ((1.0, expected),))
        return _power(answer)

    def order(self) -> dict[int, float]:
        """Every candidate's sensitivity, ascending; those of one group share its power."""
        shares = [(-item[0] / _size(item[3]), c) for item in self.heap for unit in item[3] for c in unit]
        return {candidate: math.sqrt(power) for power, candidate in sorted(shares + self.tail)}


def _rank(
    facts: _Facts, units: Sequence[Unit], tolerance: float, destroyed: float, sensitivity: Mapping[int, float]
) -> Generator[Ask, Answer, tuple[Query, dict[int, float]]]:
    """Find what can be applied at once because it is harmless, and every candidate's sensitivity, ascending.

    With everything applied the answer is known. Candidates that lift its value beyond `destroyed`
    (to NaN or Inf, at least) are set aside first. Nothing is measured where `sensitivity` tells it; those it lacks are
    taken for harmless.
    """
    ranking = _Ranking(facts, tolerance)
    power = _power(facts.known[frozenset().union(*units)])
    if sensitivity:
        for unit in units:
            for candidate in unit:
                ranking.push([(candidate,)], _square(sensitivity.get(candidate, 0.0)), measured=True)
    else:
        ranking.push(units, power, measured=True)
    bound = _square(max(destroyed, tolerance))
    if power > bound:
        yield from ranking.purge(power, bound)
    while ranking.heap:
        if ranking.predicted() > ranking.limit:
            yield from ranking.refine()
            continue
        harmless = ranking.harmless()
        answer = yield from facts.ask(harmless, _either(0.8, facts))
        if facts.is_wanted(answer):
            return harmless, ranking.order()
        power = _power(answer)
        if power <= ranking.limit:  # the verdict looks at something else than the value: no guide to it
            break
        if power > ranking.coherent():
            yield from ranking.purge(power, max(ranking.coherent(), ranking.limit))
        else:
            ranking.scale *= ranking.MARGIN * max(1.0, power / ranking.predicted())
    return NOTHING, ranking.order()


def _power(answer: Answer) -> float:
    """The square of an answer's value; inf where there is none to go by."""
    value = answer.value
    if answer.outcome is Outcome.UNRESOLVED or value is None or not math.isfinite(value):
        return math.inf
    return _square(value)


def _square(value: float) -> float:
    return min(value * value, FINITE)


def _size(units: Sequence[Unit]) -> int:
    return sum(len(unit) for unit in units)


def _halves(units: tuple[Unit, ...]) -> tuple[tuple[Unit, ...], tuple[Unit, ...]]:
    """Split between two units, as near the middle as can be; a unit that is alone splits in itself."""
    if len(units) == 1:
        middle = len(units[0]) // 2
        return (units[0][:middle],), (units[0][middle:],)
    ends = list(accumulate(len(unit) for unit in units[:-1]))
    cut = min(range(len(ends)), key=lambda i: abs(2 * ends[i] - _size(units))) + 1
    return units[:cut], units[cut:]


# Certification: what is kept was asked on top of the final set, one by one.


def _certify(
    facts: _Facts, applied: Query, kept: tuple[int, ...]
) -> Generator[Ask, Answer, tuple[Query, frozenset[int]]]:
    """Ask every kept candidate on top of what is applied until a whole round adds none; returns the UNRESOLVED ones too.

    What is applied only grows, so this ends whatever the oracle answers.
    """
    while True:
        before, undecided = applied, []
        for candidate in kept:
            if candidate in applied:
                continue
            answer = yield from facts.ask(applied | {candidate}, _either(0.05, facts))
            if facts.is_wanted(answer):
                applied |= {candidate}
            elif answer.outcome is Outcome.UNRESOLVED:
                undecided.append(candidate)
        if applied == before:
            applied = yield from _apply_together(facts, applied, undecided)
        if applied == before:
            return applied, frozenset(undecided)


def _apply_together(facts: _Facts, applied: Query, candidates: Sequence[int]) -> Generator[Ask, Answer, Query]:
    """Candidates that are UNRESOLVED alone may be wanted together: try all, then halves of halves."""
    if len(candidates) < 2:
        return applied
    query = applied.union(candidates)
    answer = yield from facts.ask(query, _either(0.2, facts))
    if facts.is_wanted(answer):
        return query
    middle = len(candidates) // 2
    applied = yield from _apply_together(facts, applied, candidates[:middle])
    applied = yield from _apply_together(facts, applied, candidates[middle:])
    return applied
