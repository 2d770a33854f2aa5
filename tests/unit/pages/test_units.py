"""Base values to text."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reports import units


@pytest.mark.parametrize("fraction, text", [
    (0.061, "6.1 %"), (0.0021, "0.21 %"), (0.01, "1 %"), (1.0, "100 %"), (0.0, "0 %"), (12.5, "1,250 %"), (0.9999, "100 %"),
    (1e-9, "10⁻⁷ %"), (1.25e-7, "1.25 × 10⁻⁵ %"), (3e5, "3 × 10⁷ %"), (1e308, "1.8 × 10³⁰⁸ %"),
    (math.inf, "not finite"), (-math.inf, "not finite"), (math.nan, "not finite"), (None, "–"),
])  # fmt: skip
def test_percent(fraction, text):
    assert units.percent(fraction) == text


@pytest.mark.parametrize("duration, text", [
    (0.0, "0 µs"), (4e-5, "40 µs"), (0.04, "40 ms"), (3.2, "3.2 s"), (59.94, "59.9 s"), (59.96, "1 min 0 s"), (75, "1 min 15 s"),
    (3599.7, "1 h 0 min"), (7325, "2 h 2 min"), (None, "–"), (math.inf, "not finite"),
])  # fmt: skip
def test_seconds(duration, text):
    assert units.seconds(duration) == text


@pytest.mark.parametrize("number, text", [
    (0, "0 B"), (999, "999 B"), (4_634_112, "4.63 MB"), (90_000_000, "90 MB"), (1.3e9, "1.3 GB"), (999_999, "1 MB"), (None, "–"),
])  # fmt: skip
def test_size(number, text):
    assert units.size(number) == text


def test_count_and_plural():
    assert [units.count(12345), units.count(None), units.plural(1, "node"), units.plural(0, "node")] == ["12,345", "–", "1 node", "0 nodes"]  # fmt: skip


@settings(deadline=None, derandomize=True)
@given(st.floats(min_value=1e-6, max_value=1e6))
def test_percent_says_the_number_to_three_digits(fraction):
    number = units.percent(fraction).removesuffix(" %").replace(",", "")
    mantissa, _, power = number.partition(" × 10")
    if not power and number.startswith("10") and not set(number[2:]) <= set("0123456789."):
        mantissa, power = "1", number[2:]
    exponent = int(power.translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789"))) if power else 0
    assert float(mantissa) * 10.0**exponent == pytest.approx(100 * fraction, rel=0.0051)


@settings(deadline=None, derandomize=True)
@given(st.text(), st.integers(1, 50))
def test_names_become_printable_and_keep_their_ends(name, width):
    seen = units.visible(name)
    assert seen.isprintable()
    assert name == seen or not name.isprintable()
    short = units.shorten(seen, width)
    assert len(short) <= width
    assert short == seen or seen.endswith(short.partition("…")[2])


@pytest.mark.parametrize("text, shown", [
    ("2026-02-03T09:15:42Z", "2026-02-03 09:15 UTC"), ("2026-02-03T10:15:42+01:00", "2026-02-03 09:15 UTC"),
    ("2026-02-03T09:15:42", "2026-02-03T09:15:42"), ("3.11.7", "3.11.7"), ("", ""),
    ("0001-01-01T00:00+14:00", "0001-01-01T00:00+14:00"),
])  # fmt: skip
def test_times_are_told_to_the_minute_where_they_are_times(text, shown):
    assert units.moment(text) == shown
