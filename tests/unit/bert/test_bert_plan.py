"""The encoder as one plan: on the emulation against float64 and against ONNX Runtime, in every precision and form."""

from __future__ import annotations

import math

import numpy as np
import onnxruntime
import pytest

from harness.bert import calibration
from harness.bert import model as bert
from harness.bert import plan as bert_plan
from harness.bert import reference as bert_reference
from harness.bert.model import BertConfig
from harness.bert.plan import PlanOptions
from harness.emulation import run as emulated
from harness.errors import UsageError
from kernels.compose import composed, renamed
from kernels.plan import Buffer, Gemm, Launch, Plan, Pointer

CONFIG = BertConfig(64, 2, 2, 128, vocab_size=50, max_position=32)
LENGTHS = (13, 4, 9)
BATCH, SEQUENCE = len(LENGTHS), max(LENGTHS)
UNFUSED = {"merged": False, "permuted": False, "fused_gelu": False, "fused_norm": False}


@pytest.fixture(scope="module")
def weights():
    """Random, but as large as trained ones: a layer changes what comes into it."""
    made = bert.random_weights(CONFIG)
    return {name: array * (5 if array.ndim == 2 and name.startswith("encoder") else 1) for name, array in made.items()}


@pytest.fixture(scope="module")
def feeds():
    rng = np.random.default_rng(1)
    mask = np.arange(SEQUENCE)[None, :] < np.array(LENGTHS)[:, None]
    shape = (BATCH, SEQUENCE)
    return {"input_ids": rng.integers(0, 50, shape), "token_type_ids": rng.integers(0, 2, shape),
            "attention_mask": mask.astype(np.int64)}  # fmt: skip


@pytest.fixture(scope="module")
def reference(weights, feeds):
    """float64, and each layer's."""
    layers = []
    forward = bert_reference.forward(
        CONFIG, weights, feeds, lambda name, x: layers.append(x) if name in ("layer.0", "layer.1") else None, np.float64
    )
    return forward, layers


@pytest.fixture(scope="module")
def scales(weights, feeds):
    return calibration.calibrate(CONFIG, weights, [feeds]).scales("max")


def made_of(weights, scales, **options):
    return bert_plan.build(
        CONFIG, weights, PlanOptions(batch=BATCH, sequence=SEQUENCE, lengths=LENGTHS, **options), scales
    )


def run(made, feeds):
    done = emulated.run(made.plan.steps, made.arrays(feeds))
    assert done.findings == ()
    return done.arrays


def error(got, expected, feeds):
    valid = feeds["attention_mask"] != 0
    return np.linalg.norm((got - expected)[valid]) / np.linalg.norm(expected[valid])


def test_the_reference_is_what_onnx_runtime_makes_of_our_onnx(weights, feeds, reference):
    model = bert.build_onnx(CONFIG, weights).SerializeToString()
    (made,) = onnxruntime.InferenceSession(model).run(None, feeds)
    assert error(made, reference[0], feeds) < 2e-6


def test_the_error_function_is_right_to_1e_11():
    x = np.linspace(-7, 7, 999)
    np.testing.assert_allclose(bert_reference.erf(x), [math.erf(v) for v in x], atol=1e-11)
    assert bert_reference.erf(np.array([-0.0, 20.0])).tolist() == [-0.0, pytest.approx(1.0)]


@pytest.mark.parametrize(
    ("options", "bound"),
    [
        ({"precision": "fp32", **UNFUSED}, 2e-6),
        ({"precision": "fp16", **UNFUSED}, 2e-3),
        ({"precision": "fp16", "permuted": False, "fused_gelu": False}, 2e-3),
        ({"precision": "fp16", "permuted": False}, 3e-3),
        ({"precision": "fp16"}, 3e-3),
        ({"precision": "fp16", "inputs_first": True}, 3e-3),
        ({"precision": "fp16", "residual_in_product": True, "fused_gelu": False}, 3e-3),
        ({"precision": "fp16", "packed": True}, 3e-3),
        ({"precision": "bf16"}, 2e-2),
        ({"precision": "int8"}, 5e-2),
        ({"precision": "int8", "int8_attention": True, "packed": True}, 5e-2),
        ({"precision": "fp16", "int4": True}, 0.4),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_every_form_is_as_right_as_its_precision(weights, feeds, reference, scales, options, bound):
    made = made_of(weights, scales, **options)
    got = made.output(run(made, feeds))
    assert error(got, reference[0], feeds) < bound
    assert error(got, reference[0], feeds) > (
        1e-8 if options["precision"] == "fp32" else 1e-5
    )  # not the reference itself


def test_a_packed_batch_gives_what_a_padded_one_gives(weights, feeds, scales):
    padded, packed = (made_of(weights, scales, packed=packed) for packed in (False, True))
    valid = feeds["attention_mask"] != 0
    got = [made.output(run(made, feeds)) for made in (padded, packed)]
    np.testing.assert_array_equal(got[0][valid], got[1][valid])
    assert not got[1][~valid].any()
    assert packed.options.rows == sum(LENGTHS)


@pytest.mark.parametrize(
    "options", [UNFUSED, {}, {"precision": "int8", "int8_attention": True, "packed": True}], ids=str
)
def test_no_access_is_out_of_bounds_and_no_two_threads_race(weights, feeds, scales, options):
    made = made_of(weights, scales, **options)
    assert emulated.run(made.plan.steps, made.arrays(feeds), checks="memory,race").findings == ()


def test_padding_does_not_leak_into_tokens(weights, feeds, scales):
    made = made_of(weights, scales)
    other = {**feeds, "input_ids": np.where(feeds["attention_mask"] != 0, feeds["input_ids"], 7)}
    valid = feeds["attention_mask"] != 0
    np.testing.assert_array_equal(made.output(run(made, feeds))[valid], made.output(run(made, other))[valid])


def test_layers_that_are_kept_are_each_right(weights, feeds, reference, scales):
    made = made_of(weights, scales, keep=True)
    arrays = run(made, feeds)
    for got, expected in zip(made.layers(arrays), reference[1], strict=True):
        assert error(got, expected, feeds) < 3e-3
    np.testing.assert_array_equal(made.output(arrays), made.layers(arrays)[-1])


def test_fusing_launches_fewer_steps_for_the_same_products(weights, scales):
    counts = [len(made_of(weights, scales, **options).plan.steps) for options in (UNFUSED, {"permuted": False}, {})]
    assert counts[0] > 2 * counts[1]
    assert counts[1] == counts[2] == 2 + 7 * CONFIG.layers


def test_operations_cover_every_step_once_and_count_the_products(weights, scales):
    made = made_of(weights, scales)
    steps = [step for operation in made.operations for step in operation.steps]
    assert steps == list(range(len(made.plan.steps)))
    e, f, rows = CONFIG.hidden_size, CONFIG.intermediate_size, BATCH * SEQUENCE
    products = CONFIG.layers * 2 * rows * (3 * e * e + e * e + 2 * e * f)
    assert sum(one.flops for one in made.operations if "product" in one.name) == products
    assert all(
        isinstance(made.plan.steps[number], Gemm)
        for one in made.operations
        if "product" in one.name
        for number in one.steps
    )


def test_activations_take_turns_in_few_buffers(weights, scales):
    made = made_of(weights, scales)
    scratch = {buffer.name for buffer in made.plan.buffers if buffer.role != "in"}
    assert scratch == {"x", "a", "b", "qkv", "wide", "counts"}
    assert made.weight_bytes < sum(array.nbytes for array in weights.values())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"precision": "int8", "merged": False}, "merged"), ({"precision": "bf16", "int4": True}, "fp16 alone"),
        ({"sequence": 40}, "32 positions"), ({"lengths": (1,)}, "expected 3 lengths"),
        ({"lengths": None, "packed": True}, "needs the lengths"),
    ],
)  # fmt: skip
def test_what_cannot_be_built_is_refused_with_the_reason(weights, scales, options, says):
    given = {"batch": BATCH, "sequence": SEQUENCE, "lengths": LENGTHS} | options
    with pytest.raises(UsageError, match=says):
        bert_plan.build(CONFIG, weights, PlanOptions(**given), scales)


def test_int8_without_scales_says_where_they_come_from(weights):
    with pytest.raises(UsageError, match="calibration"):
        bert_plan.build(CONFIG, weights, PlanOptions(precision="int8", sequence=8))


def test_a_head_size_without_a_kernel_is_refused():
    config = BertConfig(48, 1, 2, 64, vocab_size=20, max_position=16)
    with pytest.raises(UsageError, match="head size 24"):
        bert_plan.build(config, bert.random_weights(config), PlanOptions(sequence=8))


def test_inputs_that_do_not_fit_are_refused(weights, feeds, scales):
    made = made_of(weights, scales)
    with pytest.raises(UsageError, match=r"expected shape \(3, 13\)"):
        made.arrays({**feeds, "input_ids": feeds["input_ids"][:2]})
    with pytest.raises(UsageError, match="attention_mask"):
        made.arrays({**feeds, "attention_mask": np.ones((BATCH, SEQUENCE), np.int64)})


# Composition


def test_renaming_reaches_buffers_pointers_and_products():
    launch = Launch(__file__, "k", (1, 1, 1), (1, 1, 1), (Pointer("x", 3), np.int32(2), Pointer(None)))
    gemm = Gemm(Pointer("x"), Pointer("w"), Pointer("y"), 1, 1, 1, "float32", "float32", bias=Pointer("x"))
    plan = renamed(Plan((Buffer("x", "float32", (4,)), Buffer("y", "float32", (1,))), (launch, gemm)), {"x": "z"})
    assert [buffer.name for buffer in plan.buffers] == ["z", "y"]
    assert plan.steps[0].arguments == (Pointer("z", 3), np.int32(2), Pointer(None))
    assert (plan.steps[1].a, plan.steps[1].b, plan.steps[1].bias) == (Pointer("z"), Pointer("w"), Pointer("z"))


def test_composing_takes_the_larger_scratch_and_the_roles_that_are_asked_for():
    parts = [Plan((Buffer("s", "float32", (size,), "out"), Buffer("i", "int8", (2,))), ()) for size in (3, 7, 5)]
    plan = composed(parts, {"i": "in"})
    assert {(one.name, one.shape, one.role) for one in plan.buffers} == {("s", (7,), "scratch"), ("i", (2,), "in")}


@pytest.mark.parametrize("other", [Buffer("i", "int8", (2,)), Buffer("i", "float32", (3,))])
def test_composing_refuses_what_does_not_fit(other):
    with pytest.raises(ValueError, match="buffer i"):
        composed([Plan((Buffer("i", "float32", (2,)),), ()), Plan((other,), ())], {"i": "in"})
