"""The statistics of a comparison: exact where theory gives numbers, and right as often as they claim."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from reports.columns import validate
from reports.tables import comparison
from reports.tables.comparison import (
    FASTER,
    NOTHING,
    ONLY_AFTER,
    ONLY_BEFORE,
    SLOWER,
    TOO_FEW,
    Match,
    Options,
    benjamini_hochberg,
    compare,
    mann_whitney,
    match,
    observations,
    ratio_interval,
    superiority,
    worth,
)

SAMPLES = st.lists(st.integers(1, 10**9).map(float), min_size=4, max_size=40)


def noisy(seed, count=30, median=1e6):
    return np.random.default_rng(seed).lognormal(math.log(median), 0.05, count)


def verdict_of(before, after, options=None):
    return compare({"k": before}, {"k": after}, options=options)["verdict"][0]


# --- the parts


@given(before=SAMPLES, after=SAMPLES)
def test_the_effect_size_is_that_of_all_pairs(before, after):
    pairs = [(a > b) + (a == b) / 2 for a, b in itertools.product(after, before)]
    assert superiority(np.array(before), np.array(after)) == pytest.approx(sum(pairs) / len(pairs))


@given(
    before=st.lists(st.integers(0, 99), min_size=1, max_size=5),
    after=st.lists(st.integers(0, 99), min_size=1, max_size=4),
)
def test_the_exact_p_value_is_that_of_all_arrangements(before, after):
    both = [*before, *after]
    assume(len(set(both)) == len(both))
    m, n = len(before), len(after)
    observed = abs(superiority(np.array(before), np.array(after)) * m * n - m * n / 2)
    far = 0
    for chosen in itertools.combinations(range(m + n), m):
        a = np.array([both[i] for i in chosen], dtype=float)
        b = np.array([both[i] for i in range(m + n) if i not in chosen], dtype=float)
        far += abs(superiority(a, b) * m * n - m * n / 2) >= observed - 1e-9
    expected = min(1.0, far / math.comb(m + n, m))
    assert mann_whitney(np.array(before, dtype=float), np.array(after, dtype=float)) == pytest.approx(expected)


def test_the_approximate_p_value_is_close_to_the_exact_one():
    before, after = noisy(1, 20), noisy(2, 20, 1.03e6)
    exact = mann_whitney(before, after)
    tied = mann_whitney(np.append(before, before[0]), np.append(after, after[0]))  # ties: the normal approximation
    assert exact == pytest.approx(tied, rel=0.3)


def test_correction_for_many_comparisons_by_hand():
    corrected = benjamini_hochberg([0.01, 0.04, float("nan"), 0.03, 0.9])
    assert corrected[[0, 1, 3, 4]] == pytest.approx([0.04, 0.16 / 3, 0.16 / 3, 0.9])
    assert math.isnan(corrected[2])


@given(p=st.lists(st.floats(0, 1), max_size=30))
def test_correction_never_lowers_a_p_value_and_keeps_the_order(p):
    corrected = benjamini_hochberg(p)
    assert all(after >= before - 1e-15 for before, after in zip(p, corrected, strict=True))
    assert all(corrected[i] <= corrected[j] for i, j in itertools.product(range(len(p)), repeat=2) if p[i] < p[j])


@pytest.mark.parametrize("count", [5, 6, 31, 32])
def test_bootstrap_medians_are_those_of_drawn_resamples(count):
    sample = noisy(3, count)
    generator = np.random.default_rng(0)
    ours = comparison._bootstrap_medians(sample, count, 40_000, generator)
    drawn = np.median(generator.choice(sample, (40_000, count)), axis=1)
    quantiles = [0.025, 0.25, 0.5, 0.75, 0.975]
    assert np.quantile(ours, quantiles) == pytest.approx(np.quantile(drawn, quantiles), rel=4e-3)


def test_the_interval_covers_the_true_ratio_as_often_as_it_says():
    options = Options(resamples=400)
    covered = 0
    for seed in range(300):
        low, high = ratio_interval(noisy(2 * seed), noisy(2 * seed + 1, median=1.1e6), options)
        covered += low <= 1.1 <= high
    assert 0.91 <= covered / 300 <= 0.99


def test_repetitions_that_drift_are_worth_few_and_independent_ones_all():
    assert worth(noisy(4, 500)) > 400
    drift = np.cumsum(np.random.default_rng(5).normal(size=500)) + 1000
    assert worth(drift) < 20
    assert worth(np.ones(500)) == 500
    assert worth(np.round(noisy(4, 500), -5)) > 400  # few different values, as of a coarse clock


def test_from_four_sessions_on_each_is_one_observation():
    assert observations([[1, 2, 9], [3], [4, 6], []]).tolist() == [1, 2, 9, 3, 4, 6]
    assert observations([[1, 2, 9], [3], [4, 6], [7]]).tolist() == [2, 3, 5, 7]
    assert observations([]).tolist() == []


# --- verdicts


@given(sample=SAMPLES)
def test_identical_samples_are_no_evidence(sample):
    frame = compare({"k": sample}, {"k": sample})
    assert frame["verdict"].tolist() == [NOTHING]
    assert frame["effect"].tolist() == [0.5]
    assert frame["beyond_threshold"].tolist() == [False]


@given(seed=st.integers(0, 1000), factor=st.sampled_from([1.3, 2.0, 50.0]), count=st.integers(8, 60))
def test_scaled_samples_are_seen_both_ways(seed, factor, count):
    before, after = noisy(seed, count), noisy(seed + 5000, count) * factor
    frame = compare({"k": before}, {"k": after})
    assert frame["verdict"].tolist() == [SLOWER]
    assert frame["ratio_low"][0] <= frame["ratio"][0] <= frame["ratio_high"][0]
    assert verdict_of(after, before) == FASTER


def test_false_alarms_are_as_rare_as_alpha_says():
    p_values, alarms = [], 0
    for seed in range(400):
        frame = compare({"k": noisy(2 * seed)}, {"k": noisy(2 * seed + 1)}, options=Options(resamples=200))
        p_values.append(frame["p_value"][0])
        alarms += frame["verdict"][0] != NOTHING
    assert 0.025 <= np.mean(np.array(p_values) <= 0.05) <= 0.08
    assert alarms / 400 <= 0.08


def recursive(generator, count=400):
    """Each repetition resembles the one before, less and less those further back."""
    noise = generator.normal(size=count)
    for i in range(1, count):
        noise[i] += 0.8 * noise[i - 1]
    return 1000 + noise


def wandering(generator, count=400):
    """A slow wave, as clocks drift, under much noise: neighbours say little, and all the rest much."""
    wave = np.sin(np.linspace(0, 9, count) + generator.uniform(0, 7))
    return 1000 + 20 * wave + generator.normal(0, 10, count)


def jumping(generator, count=1000):
    """Two states of the clock, 4 % apart, that last 50 repetitions each on average."""
    return (
        1000
        + 40 * ((np.cumsum(generator.random(count) < 0.02) + generator.integers(2)) % 2)
        + generator.normal(0, 3, count)
    )


@pytest.mark.parametrize("source", [recursive, wandering, jumping])
def test_false_alarms_stay_rare_when_neighbouring_repetitions_resemble_each_other(source):
    generator = np.random.default_rng(7)
    pairs = [(source(generator), source(generator)) for _ in range(120)]
    honest = [compare({"k": a}, {"k": b}, options=Options(resamples=400)).iloc[0] for a, b in pairs]
    assert np.mean([row["verdict"] != NOTHING for row in honest]) <= 0.1
    assert np.mean([row["ratio_low"] <= 1 <= row["ratio_high"] for row in honest]) >= 0.88
    assert np.mean([mann_whitney(a, b) <= 0.05 for a, b in pairs]) >= 0.25  # as if they were independent


def test_among_many_unchanged_pairs_the_changed_one_is_found_and_hardly_another():
    before = {f"k{i}": noisy(i) for i in range(200)}
    after = {f"k{i}": noisy(1000 + i) * (1.2 if i == 7 else 1.0) for i in range(200)}
    frame = compare(before, after).set_index("name")
    assert frame.loc["k7", "verdict"] == SLOWER
    assert (frame["verdict"] != NOTHING).sum() <= 2
    assert (frame["p_value"] < 0.05).sum() > 3  # without the correction they would all be reported


def test_the_threshold_is_for_the_interval_not_for_the_estimate():
    before, after = noisy(1), noisy(2) * 1.1
    for threshold, beyond in ((0.0, True), (0.02, True), (0.2, False)):
        frame = compare({"k": before}, {"k": after}, options=Options(threshold=threshold))
        assert frame["verdict"].tolist() == [SLOWER]
        assert frame["beyond_threshold"].tolist() == [beyond]


def test_what_one_side_has_alone_and_what_was_repeated_too_little():
    frame = compare({"a": [1, 2, 3, 4], "b": [5.0]}, {"b": [900.0], "c": [1.0]}).set_index("name")
    assert frame["verdict"].to_dict() == {"a": ONLY_BEFORE, "b": TOO_FEW, "c": ONLY_AFTER}
    assert frame.loc["b", "ratio"] == 180
    assert frame["p_value"].isna().all()
    assert not frame["beyond_threshold"].any()


def test_the_table_is_as_declared_sorted_and_the_same_every_time():
    before = {"small": noisy(1, median=10), "big": noisy(2, median=1e9), "gone": [1.0]}
    after = {"small": noisy(3, median=30), "big": noisy(4, median=1.5e9)}
    frame = compare(before, after)
    assert validate("comparison", frame).equals(frame)
    assert frame["name"].tolist() == ["big", "small", "gone"]
    assert frame.equals(compare(before, after))
    assert compare({}, {}).empty


def test_durations_that_are_none_are_refused():
    for wrong in ([float("nan")], [float("inf")], [-1.0]):
        with pytest.raises(ValueError, match="k: durations"):
            compare({"k": wrong}, {"k": [1.0]})


# --- matching


def test_renamed_fusions_are_found_by_their_nodes():
    before = {"conv": ["c"], "fused_1": ["a", "b", "r"], "old": ["x"], "same": ["s"]}
    after = {"conv": ["other"], "fused_9": ["a", "b", "r", "d"], "new": ["y"], "same": ["s"]}
    assert match(before, after) == [
        Match("conv", "conv", "name"),
        Match("same", "same", "name"),
        Match("fused_1", "fused_9", "nodes"),
        Match("old", None, ""),
        Match(None, "new", ""),
    ]
    frame = compare({name: noisy(1) for name in before}, {name: noisy(2) for name in after}, before, after)
    row = frame.set_index("name").loc["fused_1"]
    assert (row["name_after"], row["matched_by"], row["verdict"]) == ("fused_9", "nodes", NOTHING)


def test_the_greater_overlap_wins():
    assert match({"old": ["a", "b", "c"]}, {"part": ["a", "b"], "whole": ["a", "b", "c"]})[0] == Match(
        "old", "whole", "nodes"
    )


NODES = st.dictionaries(st.sampled_from("ABCDEFGH"), st.sets(st.sampled_from("abcdef")), max_size=6)


@given(before=NODES, after=NODES)
def test_each_name_is_matched_once_and_none_is_lost(before, after):
    pairs = match(before, after)
    assert sorted(pair.before for pair in pairs if pair.before is not None) == sorted(before)
    assert sorted(pair.after for pair in pairs if pair.after is not None) == sorted(after)
    for pair in pairs:
        if pair.by == "nodes":
            common = before[pair.before] & after[pair.after]
            assert len(common) >= comparison.OVERLAP * len(before[pair.before] | after[pair.after])
    alone = [pair for pair in pairs if not pair.by]
    for left, right in itertools.product(alone, alone):
        if left.before is not None and right.after is not None:
            union = before[left.before] | after[right.after]
            assert not union or len(before[left.before] & after[right.after]) / len(union) < comparison.OVERLAP
