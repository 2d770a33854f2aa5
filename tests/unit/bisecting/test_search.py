"""The search against brute force: right on every oracle, minimal where it says so, and as cheap as the table promises."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.record import Answer, Outcome
from probes.bisecting.search import Found, Query, Search, arrange, best_applied, drive, smallest_kept, speculate

PASS, FAIL, UNRESOLVED = Outcome.PASS, Outcome.FAIL, Outcome.UNRESOLVED


@dataclass
class Oracle:
    """Answers by a rule, and refuses to be asked the same thing twice."""

    rule: Callable[[Query], Answer]
    answers: dict[Query, Answer] = field(default_factory=dict)

    def __call__(self, query: Query) -> Answer:
        assert query not in self.answers, f"asked twice: {sorted(query)}"
        self.answers[query] = self.rule(query)
        return self.answers[query]


def run(rule: Callable[[Query], Answer], order: Any, **options: Any) -> tuple[Found, Oracle]:
    oracle = Oracle(rule)
    return drive(smallest_kept(order, **options), oracle), oracle


def failing(*faults: set[int]) -> Callable[[Query], Answer]:
    """FAIL if everything of one of the faults is applied."""
    return lambda query: Answer(FAIL if any(fault <= query for fault in faults) else PASS)


def adding_up(errors: Mapping[int, float], tolerance: float, power: float = 2.0) -> Callable[[Query], Answer]:
    """Errors add up in quadrature (power 2) or plainly (power 1)."""

    def rule(query: Query) -> Answer:
        value = sum(errors[c] ** power for c in sorted(query)) ** (1.0 / power)
        return Answer(PASS if value <= tolerance else FAIL, value)

    return rule


def check(found: Found, rule: Callable[[Query], Answer], order: Any, wanted: Outcome = PASS) -> None:
    """What holds of every result, asked again from the rule itself."""
    assert sorted([*found.applied, *found.kept]) == sorted(order)
    assert [c for c in order if c in found.kept] == list(found.kept)
    assert not found.applied or rule(found.applied).outcome is wanted
    single = {c: rule(found.applied | {c}).outcome for c in found.kept}
    assert wanted not in single.values()
    assert found.undecided == tuple(c for c in found.kept if single[c] is UNRESOLVED)
    assert found.certified == (UNRESOLVED not in single.values())


# --- strategies

orders = st.integers(0, 9).flatmap(lambda n: st.permutations(range(n)))


@st.composite
def faults(draw: st.DrawFn) -> tuple[list[int], list[set[int]]]:
    """An order, and minimal failing sets over it: the general monotone predicate."""
    order = draw(orders.filter(len))
    sets = st.sets(st.sampled_from(order), min_size=1, max_size=4)
    return order, draw(st.lists(sets, max_size=5))


@st.composite
def arbitrary(draw: st.DrawFn) -> tuple[list[int], Outcome, Callable[[Query], Answer]]:
    """An oracle with no structure at all, but that applying nothing is wanted; values or none."""
    order = draw(st.integers(1, 6).flatmap(lambda n: st.permutations(range(n))))
    wanted = draw(st.sampled_from([PASS, FAIL]))
    outcomes = draw(
        st.sampled_from([[PASS, FAIL], [PASS, FAIL, UNRESOLVED], [UNRESOLVED, PASS if wanted is FAIL else FAIL]])
    )
    values = draw(st.sampled_from([[None], [0.0, 0.5, 1.0, 3.0], [0.1, 2.0, math.inf, math.nan, None, 1e-300, 1e300]]))
    answers = st.builds(Answer, st.sampled_from(outcomes), st.sampled_from(values))
    table = draw(st.lists(answers, min_size=2 ** len(order), max_size=2 ** len(order)))
    table[0] = Answer(wanted)
    return order, wanted, lambda query: table[sum(1 << c for c in query)]


@st.composite
def options(draw: st.DrawFn, size: int) -> dict[str, Any]:
    """Any way to order the search."""
    labels = draw(st.lists(st.integers(-1, 3), min_size=size, max_size=size))  # -1: in no group
    groups = [[c for c in range(size) if labels[c] == label] for label in range(4)]
    ways: list[dict[str, Any]] = [
        {}, {"tolerance": 1.0}, {"tolerance": 1.0, "groups": groups}, {"groups": groups, "scope_first": True},
        {"tolerance": 0.0}, {"sensitivity": {c: float(label) for c, label in enumerate(labels) if label >= 0}},
    ]  # fmt: skip
    return draw(st.sampled_from(ways))


# --- right


@given(orders, st.data())
def test_independent_culprits_are_found_exactly(order: list[int], data: st.DataObject) -> None:
    culprits = data.draw(st.sets(st.sampled_from(order))) if order else set()
    rule = failing(*({c} for c in culprits))
    found, _ = run(rule, order, **data.draw(options(len(order))))
    assert set(found.kept) == culprits
    assert found.certified
    check(found, rule, order)


@given(faults(), st.data())
def test_culprits_that_fail_together(case: tuple[list[int], list[set[int]]], data: st.DataObject) -> None:
    order, sets = case
    rule = failing(*sets)
    found, _ = run(rule, order, **data.draw(options(len(order))))
    assert found.certified
    check(found, rule, order)


@given(arbitrary(), st.data())
@settings(max_examples=300)
def test_any_oracle_at_all(case: tuple[list[int], Outcome, Callable[[Query], Answer]], data: st.DataObject) -> None:
    order, wanted, rule = case
    found, oracle = run(rule, order, wanted=wanted, **data.draw(options(len(order))))
    check(found, rule, order, wanted)
    assert found.kept == () or frozenset(order) in oracle.answers
    assert len(oracle.answers) <= len(order) ** 2 + 2 * len(order)


@given(
    st.lists(st.floats(0.0, 10.0), min_size=1, max_size=9),
    st.floats(0.0, 12.0),
    st.sampled_from([1.0, 2.0]),
    st.data(),
)
def test_errors_that_add_up(errors: list[float], tolerance: float, power: float, data: st.DataObject) -> None:
    rule = adding_up(dict(enumerate(errors)), tolerance, power)
    way = data.draw(options(len(errors)))
    found, _ = run(rule, range(len(errors)), **(way | {"tolerance": tolerance} if "tolerance" in way else way))
    assert found.certified
    check(found, rule, range(len(errors)))


@pytest.mark.parametrize("wanted", [PASS, FAIL])
def test_nothing_to_search(wanted: Outcome) -> None:
    assert run(lambda query: Answer(wanted), [], wanted=wanted)[0] == Found(frozenset())
    found, oracle = run(lambda query: Answer(wanted), [3, 1, 2], wanted=wanted)
    assert found == Found(frozenset({1, 2, 3}))
    assert len(oracle.answers) == 1


def test_a_fault_of_two_parts_is_cured_by_keeping_one() -> None:
    found, _ = run(failing({10, 70}), range(100))
    assert found.kept == (70,)


def test_reduction_to_the_smallest_that_still_fails() -> None:
    rule = lambda taken_out: Answer(PASS if taken_out & {7, 33} else FAIL)  # noqa: E731
    found, _ = run(rule, range(50), wanted=FAIL)
    assert found.kept == (7, 33)
    assert found.certified


def test_another_failure_is_not_the_one_looked_for() -> None:
    def rule(taken_out: Query) -> Answer:
        return Answer(PASS) if 7 in taken_out else Answer(FAIL, signature="segfault" if 3 in taken_out else "parser")

    assert run(rule, range(20), wanted=FAIL, signature="parser")[0].kept == (3, 7)
    assert run(rule, range(20), wanted=FAIL)[0].kept == (7,)


def test_what_is_unresolved_alone_is_reported_not_believed() -> None:
    rule = lambda query: Answer(UNRESOLVED if 4 in query else FAIL if 6 in query else PASS)  # noqa: E731
    found, _ = run(rule, range(9))
    assert (found.kept, found.undecided, found.certified) == ((4, 6), (4,), False)


def test_what_is_unresolved_alone_may_be_wanted_together() -> None:
    rule = lambda query: Answer(UNRESOLVED if len(query & {2, 6}) == 1 else FAIL if 4 in query else PASS)  # noqa: E731
    found, _ = run(rule, range(9))
    assert found.kept == (4,)
    assert found.certified


def test_certification_takes_back_what_later_ones_cure() -> None:
    rule = lambda query: Answer(FAIL if 5 in query or (1 in query and 8 not in query) else PASS)  # noqa: E731
    found, _ = run(rule, range(10))
    assert found.kept == (5,)


# --- values


@pytest.mark.parametrize("power", [1.0, 2.0])
@pytest.mark.parametrize("seed", range(4))
def test_the_strongest_are_kept_when_errors_add_up(power: float, seed: int) -> None:
    rng = random.Random(seed)
    errors = {c: rng.lognormvariate(0.0, 2.0) for c in range(300)}
    weakest = sorted(errors.values())[:285]
    tolerance = sum(e**power for e in weakest) ** (1.0 / power) * (1 + 1e-9)
    found, oracle = run(adding_up(errors, tolerance, power), range(300), tolerance=tolerance)
    assert len(found.kept) <= 16
    assert len(oracle.answers) < 300
    strongest = max(errors, key=errors.__getitem__)
    assert found.sensitivity[strongest] == pytest.approx(errors[strongest])
    assert set(found.sensitivity) == set(range(300))


def test_known_sensitivities_are_not_measured_again() -> None:
    errors = {c: 1.0 + c % 7 for c in range(70)}
    rule = adding_up(errors, 10.0)
    measured, long = run(rule, range(70), tolerance=10.0)
    given_, short = run(rule, range(70), tolerance=10.0, sensitivity=errors)
    assert len(given_.kept) <= len(measured.kept)
    assert len(short.answers) < len(long.answers)


def test_overflows_first_then_errors_then_pairs() -> None:
    """Two overflows (one needs two nodes), two large errors, a pair that only errs together, and a background."""
    background = adding_up({c: 3.0 if c in (20, 140) else 0.01 for c in range(200)}, 0.2)

    def rule(query: Query) -> Answer:
        if 5 in query or {60, 61} <= query:
            return Answer(FAIL, math.inf)
        plain = background(query)
        return replace(plain, outcome=FAIL, value=plain.value + 2.0) if {90, 110} <= query and plain.value else plain

    found, oracle = run(rule, range(200), tolerance=0.2)
    assert {5, 20, 140} <= set(found.kept)
    assert len(found.kept) == 5
    assert len(oracle.answers) < 100
    assert found.sensitivity[5] == math.inf


def test_overflows_are_found_by_bisection_not_by_measuring() -> None:
    overflows = set(random.Random(3).sample(range(1000), 5))
    found, oracle = run(
        lambda q: Answer(FAIL if q & overflows else PASS, math.inf if q & overflows else 0.0),
        range(1000),
        tolerance=1.0,
    )
    assert set(found.kept) == overflows
    assert len(oracle.answers) <= target(1000, 5)


def test_the_value_of_an_unresolved_answer_is_not_believed() -> None:
    errors = adding_up(dict.fromkeys(range(16), 0.1), 0.31)  # nine of them pass
    found, _ = run(lambda q: replace(errors(q), outcome=UNRESOLVED) if 3 in q else errors(q), range(16), tolerance=0.31)
    assert found.undecided == (3,)
    assert found.sensitivity[3] == math.inf
    assert len(found.kept) == 16 - 9


def test_groups_are_units_and_candidates_in_none_stand_alone() -> None:
    assert arrange([4, 0, 1, 2, 3], [[2, 0], [], [3, 1]]) == [(4,), (0, 2), (1, 3)]


def test_scope_first_asks_no_part_of_a_clean_scope() -> None:
    groups = [list(range(start, start + 10)) for start in range(0, 100, 10)]
    found, oracle = run(failing({42}), range(100), groups=groups, scope_first=True)
    assert found.kept == (42,)
    cut = [g for q in oracle.answers for g in groups if 0 < len(q & set(g)) < 10 and 42 not in g]
    assert cut == []


# --- cheap


def target(n: int, k: int) -> float:
    return 1.3 * math.log2(math.comb(n, k)) + k + 1


@pytest.mark.parametrize("k", [1, 5, 20])
def test_evaluations_of_a_thousand_nodes(k: int) -> None:
    counts = []
    for seed in range(20):
        culprits = set(random.Random(seed).sample(range(1000), k))
        found, oracle = run(failing(*({c} for c in culprits)), range(1000))
        assert set(found.kept) == culprits
        counts.append(len(oracle.answers))
    assert statistics.mean(counts) <= target(1000, k)


def test_a_run_of_culprits_costs_one_each_and_a_clean_stretch_little() -> None:
    row = range(480, 520)
    found, oracle = run(failing(*({c} for c in row)), range(1000))
    assert found.kept == tuple(row)
    assert len(oracle.answers) <= 2 * len(row) + 30
    found, oracle = run(failing(*({c} for c in range(1000))), range(1000))
    assert len(found.kept) == 1000
    assert len(oracle.answers) <= 1010


@given(st.integers(1, 60), st.data())
def test_evaluations_stay_near_the_information_in_the_answer(n: int, data: st.DataObject) -> None:
    culprits = data.draw(st.sets(st.integers(0, n - 1)))
    _, oracle = run(failing(*({c} for c in culprits)), range(n))
    assert len(oracle.answers) <= 2 + 2 * (len(culprits) + 1) * (math.log2(n) + 1) + len(culprits)


# --- pure: replay, resume, speculation, best so far


def speculative(make: Callable[[], Search], oracle: Oracle, width: int) -> Found:
    """Answer `width` questions at a time, as a cluster would."""
    while queries := speculate(make, oracle.answers, width):
        assert len(queries) <= width
        for query in queries:
            oracle(query)
    return drive(make(), oracle.answers.__getitem__)


@given(arbitrary(), st.integers(1, 6), st.data())
def test_speculation_of_any_width_finds_the_same(
    case: tuple[list[int], Outcome, Callable[[Query], Answer]], width: int, data: st.DataObject
) -> None:
    order, wanted, rule = case
    way = data.draw(options(len(order)))
    plain, oracle = run(rule, order, wanted=wanted, **way)
    wide = Oracle(rule)
    assert speculative(lambda: smallest_kept(order, wanted=wanted, **way), wide, width) == plain
    assert set(oracle.answers) <= set(wide.answers)


def test_speculation_saves_rounds() -> None:
    culprits = set(random.Random(1).sample(range(300), 10))
    rule = failing(*({c} for c in culprits))
    rounds = []
    for width in (1, 8):
        oracle, answers = Oracle(rule), dict[Query, Answer]()
        number = 0
        while queries := speculate(lambda: smallest_kept(range(300)), answers, width):
            number += 1
            answers |= {query: oracle(query) for query in queries}
        rounds.append(number)
    assert rounds[1] < rounds[0] / 2


def test_speculation_sees_the_whole_certification_coming() -> None:
    """A kept candidate hardly ever turns out wanted, so the next questions are about the other kept ones."""
    rule = failing(*({c} for c in (10, 20, 30, 40, 50, 60)))
    _, oracle = run(rule, range(70))
    asked = list(oracle.answers)
    certifying = asked[-5:]  # the sixth was asked when it was found, or counts as the first of these
    before = {query: oracle.answers[query] for query in asked[:-5]}
    assert speculate(lambda: smallest_kept(range(70)), before, 5) == certifying


@given(arbitrary(), st.data())
def test_a_search_stopped_anywhere_goes_on_and_repeats_nothing(
    case: tuple[list[int], Outcome, Callable[[Query], Answer]], data: st.DataObject
) -> None:
    order, wanted, rule = case
    way = data.draw(options(len(order)))
    whole, oracle = run(rule, order, wanted=wanted, **way)
    done = data.draw(st.integers(0, len(oracle.answers)))
    recorded = dict(list(oracle.answers.items())[:done])
    rest = Oracle(rule)
    search = smallest_kept(order, wanted=wanted, **way)
    assert drive(search, lambda query: recorded.get(query) or rest(query)) == whole
    assert list(recorded | rest.answers) == list(oracle.answers)


@given(faults())
def test_the_best_so_far_passes_and_the_result_is_the_best_of_all(case: tuple[list[int], list[set[int]]]) -> None:
    order, sets = case
    rule = failing(*sets)
    found, oracle = run(rule, order)
    so_far: dict[Query, Answer] = {}
    for query, answer in oracle.answers.items():
        so_far[query] = answer
        assert rule(best_applied(so_far)).outcome is PASS
    assert best_applied(so_far) == found.applied


def test_the_best_so_far_of_nothing_is_to_apply_nothing() -> None:
    assert best_applied({}) == frozenset()
    assert (
        best_applied({frozenset({1}): Answer(PASS), frozenset({1, 2}): Answer(FAIL, signature="a")}, FAIL, "b") == set()
    )
