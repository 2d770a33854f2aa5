"""The measuring loop: how often, in which order, and statistics that are what they say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import ranges
from harness.engines import measuring
from harness.engines.measuring import Schedule
from harness.engines.profiler import LayerTime
from harness.engines.runner import Runner, Timed
from harness.errors import UsageError


class Recorder(Runner):
    """A runner that takes down what is asked of it; inference i takes 100 + i ns."""

    inputs = outputs = ()

    def __init__(self):
        self.done = []

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def bind(self, feeds):
        self.done.append("bind")

    def run(self):
        return {}

    def timed(self, count):
        done = self.done

        class Rows(Timed):
            def once(self, index):
                done.append(f"once {index}")

            def columns(self):
                return {name: np.arange(count) + 100.0 for name in measuring.COLUMNS}

        return Rows()

    def burst(self, count):
        self.done.append(f"burst {count}")
        return count * 0.01

    def layers(self, count):
        self.done.append(f"layers {count}")
        return [LayerTime("a", (1.0, 3.0))]


def test_bind_warm_up_measure_throughput_layers_in_this_order():
    runner = Recorder()
    made = measuring.measure(runner, {}, Schedule(2, 3, burst=50, layer_iterations=4))
    assert runner.done == ["bind", "once 0", "once 1", "once 0", "once 1", "once 2", "burst 50", "layers 4"]
    assert made.throughput_qps == pytest.approx(100)
    assert made.columns["latency_ns"].tolist() == [100, 101, 102]
    assert made.statistics()["median"] == 101


@given(st.integers(0, 50), st.integers(1, 500), st.integers(0, 500), st.floats(1e-6, 10), st.floats(0.01, 100))
def test_what_takes_too_long_is_done_less_often_and_never_more_often(warmup, iterations, burst, inference_s, seconds):
    asked = Schedule(warmup, iterations, burst=burst, seconds=seconds)
    made = asked.fitted(inference_s)
    assert made.iterations <= iterations
    assert made.in_a_row <= burst
    assert made.warmup <= warmup
    assert made.iterations >= min(measuring.LEAST, iterations)
    needed_s = inference_s * (made.warmup + made.iterations + made.in_a_row)
    assert needed_s <= max(seconds, 2 * measuring.LEAST * inference_s) * 1.001 + 2 * measuring.LEAST * inference_s
    if inference_s * (warmup + iterations + burst) <= seconds:
        assert made == asked


def test_the_second_inference_says_how_many_there_is_time_for():
    runner = Recorder()
    made = measuring.measure(runner, {}, Schedule(10, 100, layer_iterations=0, seconds=210 * 101e-9 / 10))
    assert (
        runner.done.count("once 0") == 2
    )  # warm-up: two to see how long one takes, no more for a tenth of 10; then 10
    assert len(made.columns["latency_ns"]) == 10
    assert runner.done[-1] == "burst 10"


def test_throughput_and_layers_can_be_left_out():
    runner = Recorder()
    made = measuring.measure(runner, {}, Schedule(0, 1, burst=0, layer_iterations=0))
    assert runner.done == ["bind", "once 0"]
    assert (made.throughput_qps, made.layers) == (None, ())


def test_measured_inferences_lie_in_ranges_of_their_own(monkeypatch):
    names = []

    class Marked:
        def __init__(self, name):
            self.name = name

        def __enter__(self):
            names.append(self.name)

        def __exit__(self, *error):
            names.append("/")

    monkeypatch.setattr(ranges, "range", Marked)
    monkeypatch.setattr(ranges, "prepare", Marked)
    measuring.measure(Recorder(), {}, Schedule(1, 2, burst=0, layer_iterations=0))
    assert names == ["warm-up", "warm-up", "/", "/", "measure", "inference #0", "/", "inference #1", "/", "/"]


@pytest.mark.parametrize("values", [{"iterations": 0}, {"warmup": -1}])
def test_schedules_that_measure_nothing_are_refused(values):
    with pytest.raises(UsageError, match="at least 1 iteration"):
        Schedule(**values)


@given(st.lists(st.floats(1, 1e9), min_size=1, max_size=50))
def test_statistics_are_ordered_and_within_the_series(values):
    found = measuring.statistics(np.array(values))
    ordered = [found[name] for name in ("min", "median", "p90", "p95", "p99", "max")]
    assert ordered == sorted(ordered)
    assert (found["min"], found["max"]) == (min(values), max(values))
    assert found["min"] <= found["mean"] * (1 + 1e-12)


def test_unknown_times_have_no_statistics_and_become_null():
    made = measuring.Measurement({"h2d_ns": np.full(2, np.nan), "latency_ns": np.array([1.0, 2.0])})
    assert made.statistics("h2d_ns") == {}
    assert made.to_json()["iterations"] == {"h2d_ns": None, "latency_ns": [1.0, 2.0]}


def test_layers_are_summed_up():
    (row,) = measuring.summarise((LayerTime("a", (1.0, 2.0, 6.0)),))
    assert (row.layer, row.total_ns, row.mean_ns, row.median_ns) == ("a", 9, 3, 2)
