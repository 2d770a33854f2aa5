"""Sweeps: which shapes they mean, where they find steps, and how the page shows them."""

from __future__ import annotations

import contextlib
import json
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from harness.engines import document, measuring
from harness.engines import sweep as engine_sweep
from harness.engines.document import Asked, resized, tactics_of
from harness.engines.measuring import Schedule
from harness.engines.options import BuildOptions
from harness.engines.runner import Runner, Timed
from harness.engines.sweep import Sweep, agreed, bounds, parse, shapes_at, steps_by_latency, steps_by_name
from harness.errors import UsageError
from reports.collect import Collection
from reports.pages import parts
from reports.pages.profile import render
from reports.readers import detect

IDS = helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "sequence"])
MASK = helper.make_tensor_value_info("mask", TensorProto.INT64, ["batch", 1, "sequence", "sequence"])
TABLE = helper.make_tensor_value_info("table", TensorProto.FLOAT, [7, 3])
INPUTS = [IDS, MASK, TABLE]
GIVEN = {"ids": (2, 5), "mask": (2, 1, 5, 5), "table": (7, 3)}


def test_the_text_of_a_sweep():
    assert parse("ids:1=16..512:16") == Sweep("ids", 1, 16, 512, 16)
    assert parse("a:b:0=1..3") == Sweep("a:b", 0, 1, 3, 1)
    assert parse("ids:1=16..60:16").sizes == [16, 32, 48]


@given(st.text("abc:/_.", min_size=1), st.integers(0, 9), st.integers(1, 99), st.integers(0, 99), st.integers(1, 9))
def test_every_sweep_is_read_back_as_it_was_written(name, axis, low, more, step):
    sweep = Sweep(name, axis, low, low + more, step)
    if not name.isspace():
        assert parse(str(sweep)) == sweep


@pytest.mark.parametrize(
    "text", ["ids", "ids:1=16", "ids:1=9..3", "ids:1=0..3", "ids:1=1..9:0", "ids=1..3", "ids:1=1..99999"]
)
def test_what_is_no_sweep_is_refused(text):
    with pytest.raises(UsageError, match="--sweep"):
        parse(text)


def test_dimensions_of_the_same_symbolic_name_follow():
    shapes = shapes_at(Sweep("ids", 1, 8, 64), INPUTS, GIVEN, 64)
    assert shapes == {"ids": (2, 64), "mask": (2, 1, 64, 64), "table": (7, 3)}


def test_a_dimension_without_a_name_goes_alone():
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, None])
    other = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 4])
    shapes = shapes_at(Sweep("x", 0, 1, 8), [value, other], {"x": (2, 3), "y": (2, 4)}, 8)
    assert shapes == {"x": (8, 3), "y": (2, 4)}


def test_one_opt_profile_spans_the_range_and_the_shape_that_was_given():
    assert bounds(parse("ids:1=8..64:8"), INPUTS, GIVEN) == {
        "ids": ((2, 5), (2, 40), (2, 64)), "mask": ((2, 1, 5, 5), (2, 1, 40, 40), (2, 1, 64, 64)),
    }  # fmt: skip
    assert bounds(parse("ids:1=2..4"), INPUTS, GIVEN)["ids"] == ((2, 2), (2, 3), (2, 5))


@pytest.mark.parametrize(
    "text, said", [("no:0=1..2", "no input 'no'"), ("ids:2=1..2", "2 dimensions"), ("table:0=1..2", "fixed at 7")]
)
def test_what_cannot_be_swept_says_why(text, said):
    with pytest.raises(UsageError, match=said):
        bounds(parse(text), INPUTS, GIVEN)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 20))
def test_samples_are_cut_or_repeated_from_their_start(rows, columns, size):
    array = np.arange(rows * columns).reshape(rows, columns)
    made = resized(array, (rows, size))
    assert made.shape == (rows, size)
    for column in range(size):
        np.testing.assert_array_equal(made[:, column], array[:, column % columns])


# Steps


def test_a_kernel_that_changes_is_a_step_with_both_names():
    names = [("gemm_64",), ("gemm_64",), ("gemm_128", "reduce"), None, ("gemm_128", "reduce")]
    found = steps_by_name(names, "kernels")
    assert [step is not None for step in found] == [False, False, True, False, False]
    assert found[2].change == "gemm_64 -> gemm_128, reduce"


def test_a_jump_in_a_straight_course_is_a_step():
    sizes = list(range(16, 513, 16))
    straight = [1e6 + 2e4 * size for size in sizes]
    jumping = [time + (3e6 if size > 256 else 0) for size, time in zip(sizes, straight, strict=True)]
    quiet = [1e3] * len(sizes)
    assert not any(steps_by_latency(sizes, straight, quiet))
    assert [size for size, step in zip(sizes, steps_by_latency(sizes, jumping, quiet), strict=True) if step] == [272]


def test_a_smooth_curve_has_no_steps_and_few_points_cannot_have_any():
    sizes = list(range(1, 33))
    assert not any(steps_by_latency(sizes, [1e5 * size**2 for size in sizes], [1e3] * 32))
    assert not any(steps_by_latency([1, 2, 3], [1.0, 9.0, 1.0], [0.0] * 3))


@given(st.integers(0, 2**32 - 1))
def test_noise_that_the_spreads_admit_is_no_step(seed):
    rng = np.random.default_rng(seed)
    sizes = np.arange(16, 513, 16)
    spread = 2e5
    noisy = 5e6 + 2e4 * sizes + rng.normal(0, spread, len(sizes))
    rounds = [steps_by_latency(sizes, other, [spread] * len(sizes))
              for other in (noisy, 5e6 + 2e4 * sizes + rng.normal(0, spread, len(sizes)))]  # fmt: skip
    assert not any(agreed(rounds))


def test_only_what_every_round_shows_the_same_way_is_a_step():
    up, down = engine_sweep.Step("latency", "+40 %"), engine_sweep.Step("latency", "-40 %")
    assert agreed([[None, up, up, None], [up, up, down, None]]) == [None, up, None, None]


def test_tactics_are_read_from_the_inspector_where_it_names_them():
    assert tactics_of('{"Layers": [{"Name": "a", "TacticName": "t"}, "bare"]}') == ("a: t",)
    assert tactics_of('{"Layers": ["bare"]}') is None
    assert tactics_of("{torn") is None
    assert tactics_of(None) is None


# What was measured outlives an interruption


class Stopping(Runner):
    """A runner that is interrupted when it is bound for the `last` time; what it runs takes a size's microseconds."""

    inputs = outputs = ()

    def __init__(self, last):
        self.left = last

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def bind(self, feeds):
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt
        self.size = feeds["ids"].shape[1]

    def run(self):
        return {}

    def timed(self, count):
        size = self.size

        class Rows(Timed):
            def once(self, index):
                pass

            def columns(self):
                return {name: np.full(count, 1e3 * size) for name in measuring.COLUMNS}

        return Rows()

    def burst(self, count):
        return count * self.size / 1e6

    def layers(self, count):
        return []


def kept_of(last, sizes, backend="ort-cpu"):
    """The last document that a sweep kept before its runner was interrupted (last 0: it never was)."""
    engine = SimpleNamespace(
        backend=backend, name="m.onnx", facts={}, notes=(), options=BuildOptions(), runner=lambda _: Stopping(last)
    )
    asked = Asked(engine, {"ids": np.zeros((1, 4))}, Schedule(0, 4, layer_iterations=0))
    ids = helper.make_tensor_value_info("ids", TensorProto.FLOAT, [1, "n"])
    kept = []
    with contextlib.suppress(KeyboardInterrupt):
        document.sweep(asked, Sweep("ids", 1, 1, sizes), [ids], keep=lambda made: kept.append(made()))
    return kept[-1]


@pytest.mark.parametrize(
    ("last", "sizes", "notes"),
    [(4, [1, 2, 3], ["stopped after 3 of 8 shapes"]), (12, list(range(1, 9)), []), (0, list(range(1, 9)), [])],
    ids=["in the first round", "in the second", "never"],
)
def test_an_interrupted_sweep_keeps_the_shapes_that_it_has(last, sizes, notes):
    made = kept_of(last, 8)
    assert [point["size"] for point in made["points"]] == sizes
    assert [point["latency_ns"]["median"] for point in made["points"]] == [1e3 * size for size in sizes]
    assert made["notes"] == notes
    rounds = 1 if last else 2  # those that are not whole do not count
    assert {point["iterations"] for point in made["points"]} == {2 * rounds}


# The page


@pytest.fixture
def artifact(tmp_path):
    def point(size):
        step = {"kind": "kernels", "change": "gemm_64 -> <b>gemm_128</b>"} if size == 3 else None
        times = {"median": 1e6 * size, "p90": 1.1e6 * size, "p99": 1.2e6 * size}
        return {"size": size, "shapes": {"ids": [1, size]}, "iterations": 5, "latency_ns": times, "compute_ns": times,
                "throughput_qps": 1000 / size, "step": step, "kernels": ["gemm"]}  # fmt: skip

    document = {"probe": "sweep", "schema": 1, "sweep": "ids:1=1..6:1", "steps_by": "kernels",
                "facts": {"backend": "trt", "version": "10.3.0"}, "points": [point(size) for size in range(1, 7)]}  # fmt: skip
    (tmp_path / "sweep.json").write_text(json.dumps(document))
    return detect.read(tmp_path / "sweep.json")


def test_the_page_answers_first_and_draws_latency_throughput_and_steps(artifact):
    part = parts.make(artifact, "p0")
    assert part.headline == "Latency grows from 1 ms at ids:1=1 to 6 ms at 6"
    assert part.detail.endswith("Steps (by kernels) at 3.")
    _, caption, figure = part.figures["p0-sweep"]
    assert caption == "6 shapes, 5 iterations each, one engine, one process; dashed lines: 1 step of 1."
    assert [trace.name for trace in figure.data] == ["latency, 99 %", "latency, median", "throughput"]
    assert list(figure.data[1].y) == [1, 2, 3, 4, 5, 6]  # ms
    assert [shape.x0 for shape in figure.layout.shapes] == [3]


def test_what_stands_in_the_file_is_text_on_the_page(artifact):
    html = render(Collection((artifact,)))
    assert "&lt;b&gt;gemm_128" in html or "\\u003cb\\u003egemm_128" in html
    assert "<b>gemm_128" not in html
