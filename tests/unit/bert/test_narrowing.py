"""INT8 scales from activations, and weights in int8, int4 and 2:4: what is kept of the numbers, and what is not."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.bert import calibration, narrowing
from harness.bert import model as bert
from harness.bert import reference as bert_reference
from harness.bert.calibration import Histogram
from harness.bert.model import BertConfig
from harness.bert.narrowing import pack_int4, pruned, quantise_linear

CONFIG = BertConfig(32, 1, 2, 64, vocab_size=20, max_position=16)


def product(made, x):
    """What the int8 route computes: inputs rounded, int32 sums, results rounded, all taken back to real numbers."""
    a = np.clip(np.rint(x / made.input_steps), -128, 127)
    y = np.clip(np.rint(a @ made.weights.T.astype(np.int64) * made.factor), -128, 127)
    return y * made.output_steps


def outliers(rng, count):
    """Magnitudes of channels as trained models have them: a few are a hundred times the others."""
    return np.where(np.arange(count) % 16 == 3, 100.0, 1.0) * rng.uniform(0.5, 2, count)


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("uniform", [False, True])
def test_an_int8_layer_is_right_to_a_few_steps(smooth, uniform):
    rng = np.random.default_rng(3)
    kernel = rng.normal(0, 0.1, (48, 64)).astype(np.float32)
    x = rng.normal(0, 1, (200, 64))
    expected = x @ kernel.T
    made = quantise_linear(kernel, np.abs(x).max(0), np.abs(expected).max(0), smooth=smooth, uniform=uniform)
    assert np.linalg.norm(product(made, x) - expected) < 0.03 * np.linalg.norm(expected)
    assert bool(np.ptp(made.output_steps) == 0) == uniform
    assert bool(np.ptp(made.input_steps) == 0) != smooth


def test_channels_of_outliers_do_not_spoil_the_others():
    rng = np.random.default_rng(4)
    size, weights = outliers(rng, 64), rng.normal(0, 0.1, (48, 64)).astype(np.float32)
    x, kernel = rng.normal(0, 1, (200, 64)) * size, weights / size.astype(np.float32)
    kernel = kernel * outliers(rng, 48)[:, None].astype(np.float32)
    expected = x @ kernel.T
    errors = []
    for smooth, uniform in ((False, True), (True, False)):
        made = quantise_linear(kernel, np.abs(x).max(0), np.abs(expected).max(0), smooth=smooth, uniform=uniform)
        column = np.linalg.norm(product(made, x) - expected, axis=0) / np.linalg.norm(expected, axis=0)
        errors.append(float(np.median(column)))
    assert errors[1] < 0.05
    assert errors[0] > 5 * errors[1]


def test_a_layer_of_zeros_is_quantised_to_zeros():
    made = quantise_linear(np.zeros((4, 8), np.float32), np.zeros(8), np.zeros(4), smooth=True, uniform=False)
    assert not product(made, np.ones((3, 8))).any()
    assert np.isfinite(made.factor)


@given(st.integers(0, 2**32 - 1))
def test_int4_is_right_to_half_a_step_of_its_group(seed):
    rng = np.random.default_rng(seed)
    kernel = rng.normal(0, 1, (128, 6)).astype(np.float32)
    packed, scales = pack_int4(kernel, 64)
    assert (packed.shape, scales.shape) == ((64, 6), (2, 6))
    low, high = (packed & 15).astype(int) - 8, (packed >> 4).astype(int) - 8
    back = np.stack([low, high], axis=1).reshape(128, 6) * np.repeat(scales, 64, axis=0)
    assert (np.abs(back - kernel) <= np.repeat(scales, 64, axis=0) * 0.5001).all()


def test_pruning_leaves_the_two_larger_of_four_and_only_in_linear_layers():
    weights = bert.random_weights(CONFIG)
    made = pruned(weights)
    for name, array in weights.items():
        if name.startswith("encoder") and array.ndim == 2:
            fours, kept = (x.reshape(-1, 4) for x in (array, made[name]))
            assert ((kept != 0).sum(axis=1) == 2).all()
            assert (np.abs(kept).max(axis=1) == np.abs(fours).max(axis=1)).all()
            assert ((kept == fours) | (kept == 0)).all()
        else:
            assert made[name] is array


# Calibration


def test_the_largest_value_makes_the_step():
    histogram = Histogram()
    histogram.add(np.array([[0.5, -2.54], [1.0, 0.0]]))
    assert histogram.scale("max") == pytest.approx(2.54 / 127)
    assert histogram.channels.tolist() == pytest.approx([1.0, 2.54])


def test_a_channel_that_was_small_counts_as_the_median_one():
    histogram = Histogram()
    histogram.add(np.array([[0.001, 2.0, 3.0, 4.0, 900.0]]))
    channels = calibration.Calibration({"x": histogram}).scales("max").channels["x"]
    assert channels.tolist() == [3.0, 3.0, 3.0, 4.0, 900.0]


def test_a_histogram_grows_and_loses_nothing():
    histogram = Histogram()
    for reach in (1.0, 3.0, 50.0):
        histogram.add(np.linspace(0, reach, 1000)[:, None])
    assert histogram.counts.sum() == 3000
    assert histogram.reach >= 50
    assert histogram.scale("max") == pytest.approx(50 / 127)


def test_entropy_cuts_off_what_is_rare():
    rng = np.random.default_rng(0)
    values = np.append(rng.normal(0, 1, 100_000), 60.0)
    histogram = Histogram()
    histogram.add(values[:, None])
    assert histogram.scale("max") == pytest.approx(60 / 127)
    assert 2 / 127 < histogram.scale("entropy") < 20 / 127


def test_entropy_keeps_everything_where_nothing_is_rare():
    histogram = Histogram()
    histogram.add(np.random.default_rng(0).uniform(-1, 1, (100_000, 1)))
    assert histogram.scale("entropy") > 0.9 / 127


def test_hidden_positions_and_values_that_are_not_finite_do_not_count():
    histogram = Histogram()
    histogram.add(np.array([[1.0, np.inf], [np.nan, -2.0]]))
    assert histogram.largest == 2.0
    assert histogram.channels.tolist() == [1.0, 2.0]
    weights = bert.random_weights(CONFIG)
    ids = np.array([[1, 2, 3, 4]])
    feeds = {"input_ids": ids, "token_type_ids": 0 * ids, "attention_mask": np.array([[1, 1, 0, 0]])}
    other = {**feeds, "input_ids": np.array([[1, 2, 9, 11]])}
    one, two = (calibration.calibrate(CONFIG, weights, [each]).scales("max").tensors for each in (feeds, other))
    assert one == two
    assert set(one) >= {"embeddings", "layer.0", "layer.0.qkv", "layer.0.gelu"}
    assert min(one.values()) > narrowing.LEAST


def test_the_onnx_model_in_int8_survives_a_channel_of_outliers():
    """Steps of whole tensors, as Q/DQ nodes have them: only because the weights take up what differs between channels."""
    config = BertConfig(64, 2, 2, 128, vocab_size=50, max_position=32)
    weights = {name: array * (5 if array.ndim == 2 and name.startswith("encoder") else 1)
               for name, array in bert.random_weights(config).items()}  # fmt: skip
    for name in weights:
        if name.endswith("LayerNorm.weight"):
            weights[name][3] *= 40
    rng = np.random.default_rng(0)
    feeds = {name: np.ones((4, 16), np.int64) for name in bert.INPUTS} | {"input_ids": rng.integers(0, 50, (4, 16))}
    channels = calibration.calibrate(config, weights, [feeds]).scales("max").channels
    expected = bert_reference.forward(config, weights, feeds, dtype=np.float64)

    def error(linears):
        proto = bert.build_onnx(config, weights, merged_qkv=True, int8=linears)
        session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
        got, others = session.run(None, feeds)[0], np.arange(config.hidden_size) != 3
        return np.linalg.norm((got - expected)[..., others]) / np.linalg.norm(expected[..., others])

    linears = narrowing.linears(config, weights, channels)
    assert len(linears) == 4 * config.layers
    assert {one.weights.dtype for one in linears.values()} == {np.dtype(np.int8)}
    assert 1e-3 < error(linears) < 0.05
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(narrowing, "_share", lambda kernel, inputs: np.ones_like(inputs))
        assert error(narrowing.linears(config, weights, channels)) > 2 * error(linears)
