"""The search that takes out until it is cured: exact on planted culprits, minimal on whatever it is given."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from harness.record import Answer, Outcome
from probes.bisecting.curing import finest_cure, smallest_cure
from probes.bisecting.search import Query, drive

SIZE = 12
culprits_of = st.sets(st.integers(0, SIZE - 1), max_size=4)


def additive(culprits: set[int], *, needs: frozenset[int]) -> Callable[[Query], Answer]:
    """Each culprit that is left in adds 1 to the error; each needed statement that is missing adds 10."""

    def ask(left: Query) -> Answer:
        error = len(culprits & left) + 10.0 * len(needs - left)
        return Answer(Outcome.FAIL if error else Outcome.PASS, float(error))

    return ask


@given(culprits_of)
def test_finds_just_the_culprits_of_a_program_that_is_wrong_when_empty(culprits: set[int]) -> None:
    needs = frozenset(range(SIZE)) - culprits
    found = drive(smallest_cure(range(SIZE)), additive(culprits, needs=needs))
    assert set(found.kept) == culprits
    assert found.certified


@given(culprits_of)
def test_finds_the_same_where_the_empty_program_passes(culprits: set[int]) -> None:
    found = drive(smallest_cure(range(SIZE)), additive(culprits, needs=frozenset()))
    assert set(found.kept) == culprits


def test_a_fault_that_taking_out_does_not_cure_is_undecided() -> None:
    found = drive(smallest_cure(range(SIZE)), lambda left: Answer(Outcome.FAIL, 3.0))
    assert set(found.undecided) == set(range(SIZE))
    assert not found.certified


@given(st.sets(st.frozensets(st.integers(0, 5), min_size=1), min_size=1, max_size=12))
def test_every_statement_that_stays_out_is_needed(cures: set[frozenset[int]]) -> None:
    """An oracle without any structure: the sets that cure, listed."""
    everything = frozenset(range(6))

    def ask(left: Query) -> Answer:
        cured = (everything - left) in cures
        return Answer(Outcome.PASS if cured else Outcome.FAIL, 0.0 if cured else float(len(left)) + 1)

    found = drive(smallest_cure(sorted(everything)), ask)
    if found.undecided:
        return
    out = frozenset(found.kept)
    assert out in cures
    assert all(out - {one} not in cures for one in out)


def test_statements_that_do_not_compile_apart_are_no_obstacle() -> None:
    """Taking out 3 alone is UNRESOLVED; the culprit is 5."""

    def ask(left: Query) -> Answer:
        if 3 not in left:
            return Answer(Outcome.UNRESOLVED)
        return Answer(Outcome.PASS, 0.0) if 5 not in left else Answer(Outcome.FAIL, 1.0)

    assert drive(smallest_cure(range(8)), ask).kept == (5,)


INSIDE = {0: (1, 2, 3), 2: (3,)}  # 0 holds 1, 2 and 3; 3 is in 2


@given(st.integers(0, 6), st.booleans())
def test_the_innermost_statement_that_is_enough_is_named(culprit: int, endless: bool) -> None:
    """With `endless`, what is around 1 does not end without it."""

    def ask(left: Query) -> Answer:
        runs = {one for one in left if not any(one in INSIDE[around] for around in INSIDE if around not in left)}
        if endless and 0 in runs and 1 not in runs:
            return Answer(Outcome.UNRESOLVED)
        return Answer(Outcome.FAIL if culprit in runs else Outcome.PASS)

    found = drive(finest_cure(range(7), (), INSIDE), ask)
    wanted = {0} if endless and culprit == 1 else {culprit}
    assert set(found.kept) == wanted
    assert set(found.applied) == set(range(7)) - wanted
    assert found.certified
