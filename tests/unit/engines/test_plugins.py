"""Our plugins in TensorRT's terms: fields, shapes, formats, serialising; and, on the emulation, what they compute."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest

from harness.emulation import run as emulated
from harness.engines.plugin_ops.operation import Call, Tensor
from harness.engines.plugin_ops.table import OPERATIONS
from harness.errors import UsageError
from kernels import numbers, reference
from kernels.manifest import SPECS
from probes.kernels.testing import arrays_of

E, N = 64, 2
RNG = np.random.default_rng(5)
i32 = lambda *values: np.array(values, np.int32)  # noqa: E731
f32 = lambda *shape: RNG.normal(size=shape).astype(np.float32)  # noqa: E731

EMBEDDING = {
    "bert_embeddings_word_embeddings": f32(11, E), "bert_embeddings_token_type_embeddings": f32(2, E),
    "bert_embeddings_position_embeddings": f32(9, E), "bert_embeddings_layernorm_gamma": f32(E),
    "bert_embeddings_layernorm_beta": f32(E), "output_fp16": i32(1),
}  # fmt: skip
SKIP = {"type_id": i32(1), "beta": f32(E), "gamma": f32(E), "bias": f32(E)}
INTERLEAVED = {"beta": f32(E), "gamma": f32(E)}
QKV = {"type_id": i32(0), "hidden_size": i32(E), "num_heads": i32(N), "has_mask": i32(1)}
SCALES = {"input_qkv_scale": 0.04, "output_ctx_scale": 0.011, "dq_probs": 0.006}
EXPLICIT = {"hidden_size": i32(E), "num_heads": i32(N), "use_explicit_int8": i32(1), "use_int8_scale_max": i32(1),
            **{name: np.array([value], np.float32) for name, value in SCALES.items()}}  # fmt: skip
FIELDS = {
    ("CustomEmbLayerNormPluginDynamic", "6"): {**EMBEDDING, "full_mask": i32(0), "mha_type_id": i32(1)},
    ("CustomEmbLayerNormPluginDynamic", "4"): EMBEDDING,
    ("CustomEmbLayerNormPluginDynamic", "5"): EMBEDDING,
    ("CustomSkipLayerNormPluginDynamic", "5"): {**SKIP, "ld": i32(E)},
    ("CustomSkipLayerNormPluginDynamic", "6"): SKIP,
    ("CustomSkipLayerNormPluginDynamic", "7"): INTERLEAVED,
    ("CustomSkipLayerNormPluginDynamic", "8"): INTERLEAVED,
    ("CustomQKVToContextPluginDynamic", "4"): QKV,
    ("CustomQKVToContextPluginDynamic", "5"): {**QKV, "var_seqlen": i32(1)},
    ("CustomQKVToContextPluginDynamic", "6"): EXPLICIT,
    ("CustomFCPluginDynamic", "1"): {"out_dims": i32(12), "type_id": i32(1), "W": f32(E * 12)},
    ("CustomGeluPluginDynamic", "1"): {"type_id": i32(1), "bias": f32(E)},
    ("DisentangledAttention_TRT", "2"): {"span": i32(4), "factor": np.array([0.07], np.float32)},
}
BY_KEY = {(operation.name, operation.version): operation for operation in OPERATIONS}
each = pytest.mark.parametrize("key", BY_KEY, ids=" ".join)


@dataclass(frozen=True)
class Ints:
    """Extents as plain ints."""

    def constant(self, value):
        return value

    def minus(self, extent, value):
        return extent - value


def made(key, **changes):
    return BY_KEY[key].of({**FIELDS[key], **changes})


def test_every_operation_has_fields_here():
    assert BY_KEY.keys() == FIELDS.keys()


def test_the_versions_are_those_of_the_kernels_specs():
    promised = {(spec.plugin, new) for spec in SPECS for new in spec.versions.values() if spec.plugin}
    assert promised <= BY_KEY.keys()
    assert BY_KEY.keys() <= promised


@each
def test_fields_survive_serialising(key):
    operation = made(key)
    again = BY_KEY[key].of(operation.fields)
    assert again == operation
    for name, array in FIELDS[key].items():
        np.testing.assert_array_equal(again.fields[name], array)


@each
def test_an_unknown_field_is_named(key):
    with pytest.raises(UsageError, match="no such field: colour"):
        made(key, colour=i32(1))


@each
def test_a_missing_field_is_named(key):
    first = BY_KEY[key].needed[0]
    with pytest.raises(UsageError, match=first):
        BY_KEY[key].of({name: array for name, array in FIELDS[key].items() if name != first})


@pytest.mark.parametrize("key, changes, message", [
    (("CustomEmbLayerNormPluginDynamic", "6"), {"full_mask": i32(1)}, "packed mask"),
    (("CustomEmbLayerNormPluginDynamic", "6"), {"bert_embeddings_layernorm_beta": f32(3)}, "rows of 64"),
    (("CustomSkipLayerNormPluginDynamic", "5"), {"ld": i32(65)}, "ld 65"),
    (("CustomSkipLayerNormPluginDynamic", "5"), {"type_id": i32(3)}, "type_id"),
    (("CustomSkipLayerNormPluginDynamic", "6"), {"bias": f32(5)}, "bias 5"),
    (("CustomQKVToContextPluginDynamic", "4"), {"num_heads": i32(3)}, "does not divide"),
    (("CustomQKVToContextPluginDynamic", "4"), {"num_heads": i32(1), "hidden_size": i32(80)}, "head size 80"),
    (("CustomQKVToContextPluginDynamic", "4"), {"type_id": i32(2), "dq_probs": f32(1) * 0}, "positive, finite scales"),
    (("CustomQKVToContextPluginDynamic", "6"), {"num_heads": i32(4)}, "head size 16"),
    (("CustomQKVToContextPluginDynamic", "6"), {"output_ctx_scale": f32(1) * 0}, "output_ctx_scale: .* above zero"),
    (("CustomQKVToContextPluginDynamic", "6"), {"input_qkv_scale": f32(1) * np.nan}, "input_qkv_scale"),
    (("CustomFCPluginDynamic", "1"), {"out_dims": i32(13)}, "out_dims 13"),
    (("CustomFCPluginDynamic", "1"), {"type_id": i32(2)}, "INT8"),
    (("DisentangledAttention_TRT", "2"), {"span": i32(1)}, "span of at least 2"),
])  # fmt: skip
def test_fields_that_cannot_be_served_are_refused(key, changes, message):
    with pytest.raises(UsageError, match=message):
        made(key, **changes)


@pytest.mark.parametrize("key, inputs, outputs", [
    (("CustomEmbLayerNormPluginDynamic", "6"), [[5, 3]] * 3, [[5, 3, E, 1, 1], [3]]),
    (("CustomEmbLayerNormPluginDynamic", "4"), [[7], [7], [4], [5]], [[7, E, 1, 1], [3]]),
    (("CustomEmbLayerNormPluginDynamic", "5"), [[7], [7], [4], [5]], [[7, E, 1, 1]] * 2),
    (("CustomSkipLayerNormPluginDynamic", "5"), [[5, 3, E, 1, 1]] * 2, [[5, 3, E, 1, 1]]),
    (("CustomSkipLayerNormPluginDynamic", "6"), [[7, E, 1, 1]] * 2, [[7, E, 1, 1]]),
    (("CustomSkipLayerNormPluginDynamic", "7"), [[1, E, 7, 1]] * 2, [[1, E, 7, 1]]),
    (("CustomSkipLayerNormPluginDynamic", "8"), [[1, E, 7, 1]] * 2, [[1, E, 7, 1]] * 2),
    (("CustomQKVToContextPluginDynamic", "4"), [[5, 3, 3 * E, 1, 1], [3]], [[5, 3, E, 1, 1]]),
    (("CustomQKVToContextPluginDynamic", "5"), [[7, 3 * E, 1, 1], [3], [4], [5]], [[7, E, 1, 1]]),
    (("CustomQKVToContextPluginDynamic", "6"), [[1, 3 * E, 7, 1], [4], [5]], [[1, E, 7, 1]]),
    (("CustomFCPluginDynamic", "1"), [[5, 3, E, 1, 1]], [[5, 3, 12, 1, 1]]),
    (("CustomGeluPluginDynamic", "1"), [[5, 3, E, 1, 1]], [[5, 3, E, 1, 1]]),
    (("DisentangledAttention_TRT", "2"), [[6, 9, 9], [6, 9, 8], [6, 9, 8]], [[6, 9, 9]]),
])  # fmt: skip
def test_output_shapes(key, inputs, outputs):
    operation = made(key)
    assert operation.output_shapes(inputs, Ints()) == outputs
    assert len(operation.output_dtypes(["float16"] * len(inputs))) == len(outputs) == operation.outputs


@pytest.mark.parametrize("key, good, bad", [
    (("CustomSkipLayerNormPluginDynamic", "5"), Tensor("float16", (5, 3, E, 1, 1)), Tensor("float32", (5, 3, E, 1, 1))),
    (("CustomSkipLayerNormPluginDynamic", "7"), Tensor("int8", (1, E, 7, 1), "chw32"), Tensor("int8", (1, E, 7, 1))),
    (("CustomEmbLayerNormPluginDynamic", "6"), Tensor("int32", (5, 3)), Tensor("float16", (5, 3))),
    (("CustomGeluPluginDynamic", "1"), Tensor("float16", (5, 3, E, 1, 1)), Tensor("float16", (5, 3, E, 1, 1), "chw32")),
    (("DisentangledAttention_TRT", "2"), Tensor("bfloat16", (6, 9, 9)), Tensor("int8", (6, 9, 9))),
])  # fmt: skip
def test_formats_of_the_first_input(key, good, bad):
    operation = made(key)
    assert operation.supports(0, [good], 3)
    assert not operation.supports(0, [bad], 3)


INT8_QKV = Tensor("int8", (1, 3 * E, 7, 1), "chw32")


@pytest.mark.parametrize("position, tensor, good", [
    (0, INT8_QKV, True),
    (0, Tensor("int8", (1, 3 * E, 7, 1)), False),
    (0, Tensor("float16", (1, 3 * E, 7, 1), "chw32"), False),
    (1, Tensor("int32", (4,)), True),
    (1, Tensor("float16", (4,)), False),
    (2, Tensor("other", (5,), "other"), True),  # its length alone is read
    (3, Tensor("int8", (1, E, 7, 1), "chw32"), True),
    (3, Tensor("int8", (1, E, 7, 1)), False),
])  # fmt: skip
def test_formats_of_interleaved_attention(position, tensor, good):
    before = [INT8_QKV, Tensor("int32", (4,)), Tensor("int32", (5,))]
    operation = made(("CustomQKVToContextPluginDynamic", "6"))
    assert operation.supports(position, [*before[:position], tensor], 3) == good


@pytest.mark.parametrize("version, type_id, layout", [("4", 2, "chw32"), ("5", 2, "chw32"), ("4", 1, "linear")])
def test_attention_asks_for_chw32_where_it_is_int8(version, type_id, layout):
    operation = made(("CustomQKVToContextPluginDynamic", version), type_id=i32(type_id))
    dtype = "int8" if type_id == 2 else "float16"
    assert [operation.supports(0, [Tensor(dtype, (5, 3, 3 * E, 1, 1), form)], 2) for form in ("linear", "chw32")] == [
        layout == "linear", layout == "chw32",
    ]  # fmt: skip


def test_all_tensors_of_disentangled_attention_have_one_type():
    operation = made(("DisentangledAttention_TRT", "2"))
    assert not operation.supports(1, [Tensor("float16", (6, 9, 9)), Tensor("float32", (6, 9, 8))], 3)


def run(operation, tensors, arrays, outputs):
    """The operation's work on the emulation: `arrays` as the inputs, what TensorRT would get back."""
    work = operation.work(Call(tuple(tensors), tuple(outputs)))
    inputs = {name: array for name, array in zip(work.inputs, arrays, strict=True) if name is not None}
    shaped = {b.name: np.ascontiguousarray(array).reshape(b.shape) for b in work.plan.buffers
              for array in ({**inputs, **work.constants}.get(b.name),) if array is not None}  # fmt: skip
    done = emulated.run(work.plan.steps, arrays_of(work.plan, shaped))
    assert done.findings == ()
    return [done.arrays[name] for name in work.outputs]


def test_skip_layernorm_computes_its_definition():
    operation = made(("CustomSkipLayerNormPluginDynamic", "5"))
    shape = (5, 3, E, 1, 1)
    x, skip = (f32(*shape).astype(np.float16) for _ in range(2))
    (got,) = run(operation, [Tensor("float16", shape)] * 2, [x, skip], [Tensor("float16", shape)])
    rows = (x.astype(float) + skip).reshape(15, E) + SKIP["bias"]
    np.testing.assert_allclose(got, reference.layer_norm(rows, SKIP["gamma"], SKIP["beta"]), atol=5e-3)


def test_interleaved_skip_layernorm_computes_its_definition():
    """Version 8: the second output is the sum; everything in CHW32, with a scale each."""
    tokens, scales = 21, (0.031, 0.017, 0.033, 0.045)
    x, skip = (int8_qkv(1, E, tokens, 1) for _ in range(2))
    tensors = [Tensor("int8", (1, E, tokens, 1), "chw32", scale) for scale in scales]
    operation = made(("CustomSkipLayerNormPluginDynamic", "8"))
    made_by = run(operation, tensors[:2], [as_chw32(x), as_chw32(skip)], tensors[2:])
    rows = x[0, :, :, 0].T * scales[0] + skip[0, :, :, 0].T * scales[1]
    normed = reference.layer_norm(rows, INTERLEAVED["gamma"], INTERLEAVED["beta"])
    for got, expected, scale in zip(made_by, (normed, rows), scales[2:], strict=True):
        back = got.reshape(E // 32, tokens, 32).transpose(1, 0, 2).reshape(tokens, E)
        np.testing.assert_allclose(back, np.clip(expected / scale, -128, 127), atol=0.51)


def test_fc_computes_its_definition():
    operation = made(("CustomFCPluginDynamic", "1"))
    x = f32(5, 3, E, 1, 1).astype(np.float16)
    (got,) = run(operation, [Tensor("float16", x.shape)], [x], [Tensor("float16", (5, 3, 12, 1, 1))])
    weights = FIELDS["CustomFCPluginDynamic", "1"]["W"].reshape(E, 12).astype(np.float16)
    np.testing.assert_allclose(got, x.reshape(15, E).astype(float) @ weights, atol=0.05)


def int8_reference(qkv, layout, cu_seqlens=None, counts=None):
    """What INT8 attention is to write, float64 in steps of the context's scale: [T, E] or [S, B, E]."""
    scales = (SCALES["input_qkv_scale"], SCALES["output_ctx_scale"], SCALES["dq_probs"])
    scales = tuple(float(np.float32(scale)) for scale in scales)
    return reference.qkv_to_context_int8(qkv, N, *scales, counts, cu_seqlens, layout=layout)


def int8_qkv(*shape):
    return np.clip(np.rint(RNG.normal(size=shape) * 30), -128, 127).astype(np.int8)


def as_chw32(x):
    """What TensorRT holds for [1, C, T, 1] in CHW32: [C / 32, T, 32] bytes."""
    return x.reshape(x.shape[1] // 32, 32, x.shape[2]).transpose(0, 2, 1)


@pytest.mark.parametrize("explicit", [True, False], ids=["scales in fields", "scales of the tensors"])
def test_interleaved_attention_computes_its_definition(explicit):
    """Over bytes as TensorRT lays them out: a wrong panel, part or head would be far off."""
    tokens, starts = 41, i32(0, 33, 33, 41)
    qkv = int8_qkv(1, 3 * E, tokens, 1)
    operation = made(("CustomQKVToContextPluginDynamic", "6"), use_explicit_int8=i32(int(explicit)))
    wrong, right = 7.0, (SCALES["input_qkv_scale"], SCALES["output_ctx_scale"])
    given, out = (wrong, wrong) if explicit else right
    tensors = [Tensor("int8", qkv.shape, "chw32", given), Tensor("int32", (4,)), Tensor("int32", (33,))]
    outputs = [Tensor("int8", (1, E, tokens, 1), "chw32", out)]
    (got,) = run(operation, tensors, [as_chw32(qkv), starts, np.zeros(33, np.int32)], outputs)
    rows = got.reshape(E // 32, tokens, 32).transpose(1, 0, 2).reshape(tokens, E)
    expected = int8_reference(qkv[0, :, :, 0].T, "qkvnh", starts)
    assert np.ptp(expected) > 60
    np.testing.assert_allclose(rows, expected, atol=1)


@pytest.mark.parametrize("version", ["4", "5"])
def test_int8_attention_of_row_major_tensors_uses_the_steps_that_it_is_given(version):
    """[S, B, 3E, 1, 1] and [T, 3E, 1, 1] in CHW32 are row-major: nothing follows the channels."""
    s, b, starts = 20, 2, i32(0, 13, 40)
    operation = made(("CustomQKVToContextPluginDynamic", version), type_id=i32(2), dq_probs=EXPLICIT["dq_probs"])
    shape = (s, b, 3 * E, 1, 1) if version == "4" else (s * b, 3 * E, 1, 1)
    qkv = int8_qkv(*shape)
    first = Tensor("int8", shape, "chw32", SCALES["input_qkv_scale"])
    out = Tensor("int8", (*shape[:-3], E, 1, 1), "chw32", SCALES["output_ctx_scale"])
    counts = i32(20, 7)
    if version == "4":
        (got,) = run(operation, [first, Tensor("int32", (b,))], [qkv, counts], [out])
        expected = int8_reference(qkv.reshape(s, b, 3 * E), "nqkvh", counts=counts)
    else:
        tensors = [first, Tensor("int32", (b,)), Tensor("int32", (3,)), Tensor("int32", (27,))]
        (got,) = run(operation, tensors, [qkv, counts, starts, np.zeros(27, np.int32)], [out])
        expected = int8_reference(qkv.reshape(s * b, 3 * E), "nqkvh", starts)
    assert np.ptp(expected) > 60
    np.testing.assert_allclose(got.reshape(expected.shape), expected, atol=1)


@pytest.mark.parametrize("capability, block", [((8, 0), 0), ((9, 0), 1)])
def test_attention_takes_the_matrix_instructions_of_the_device(capability, block):
    operation = made(("CustomQKVToContextPluginDynamic", "4"), type_id=i32(1))
    tensor = Tensor("float16", (128, 3, 3 * E, 1, 1))
    (step,) = operation.work(Call((tensor, Tensor("int32", (3,))), (tensor,), capability)).plan.steps
    assert int(dict(step.defines)["WARPGROUP_MATRIX"]) == block


def test_int8_attention_without_a_scale_is_refused_in_words():
    operation = made(("CustomQKVToContextPluginDynamic", "4"), type_id=i32(2))
    tensor = Tensor("int8", (5, 3, 3 * E, 1, 1), "chw32", 0.0)
    with pytest.raises(UsageError, match="positive, finite scales"):
        operation.work(Call((tensor, Tensor("int32", (3,))), (tensor,)))


def test_more_tokens_than_the_sequences_hold_are_refused():
    operation = made(("CustomQKVToContextPluginDynamic", "6"))
    call = Call((INT8_QKV, Tensor("int32", (2,)), Tensor("int32", (5,))), (INT8_QKV,))
    with pytest.raises(UsageError, match="7 tokens do not fit 1 sequences of at most 5"):
        operation.work(call)


def test_varlen_embedding_reads_sequences_of_any_lengths():
    operation = made(("CustomEmbLayerNormPluginDynamic", "5"))
    ids, types, starts = RNG.integers(0, 11, 7).astype(np.int32), i32(*[0, 1] * 3, 0), i32(0, 4, 4, 7)
    tensors = [Tensor("int32", (7,)), Tensor("int32", (7,)), Tensor("int32", (4,)), Tensor("int32", (4,))]
    outputs = [Tensor("float16", (7, E, 1, 1))] * 2
    got, residual = run(operation, tensors, [ids, types, starts, i32(0, 0, 0, 0)], outputs)
    tables = [numbers.encode(EMBEDDING[f"bert_embeddings_{name}"], "float16").astype(float)
              for name in ("word_embeddings", "token_type_embeddings", "position_embeddings")]  # fmt: skip
    summed = reference.embedding_sum(ids, types, np.array([0, 1, 2, 3, 0, 1, 2]), tables)
    gamma, beta = (EMBEDDING[f"bert_embeddings_layernorm_{name}"] for name in ("gamma", "beta"))
    np.testing.assert_allclose(residual, summed, atol=4e-3)
    np.testing.assert_allclose(got, reference.layer_norm(summed, gamma, beta), atol=1e-2)


def test_a_wrong_hidden_size_is_told_before_anything_runs():
    with pytest.raises(UsageError, match="hidden size of 64"):
        made(("CustomSkipLayerNormPluginDynamic", "5")).work(Call((Tensor("float16", (5, 3, 32, 1, 1)),) * 2, ()))


# ---- TensorRT's classes


@pytest.fixture(scope="module")
def trt():
    return pytest.importorskip("tensorrt_rtx")


def collection(trt, fields):
    kinds = {np.dtype(np.float32): trt.PluginFieldType.FLOAT32, np.dtype(np.int32): trt.PluginFieldType.INT32}
    return trt.PluginFieldCollection([trt.PluginField(name, a, kinds[a.dtype]) for name, a in fields.items()])


def plugin_of(trt, key):
    from harness.engines import plugins

    creator = plugins.creator_of(trt, BY_KEY[key], "probe")
    return creator, creator.create_plugin("layer", collection(trt, FIELDS[key]), trt.TensorRTPhase.BUILD)


@pytest.mark.trt_rtx
@each
def test_a_plugin_is_made_serialised_made_again_and_cloned(trt, key):
    creator, plugin = plugin_of(trt, key)
    assert (creator.name, creator.plugin_version) == key
    assert {field.name for field in creator.field_names} == set(BY_KEY[key].field_types)
    again = creator.create_plugin("layer", plugin.get_fields_to_serialize(), trt.TensorRTPhase.RUNTIME)
    for other in (again, plugin.clone(), plugin.attach_to_context(None)):
        assert other is not plugin
        assert other.operation == plugin.operation
        assert (other.plugin_name, other.plugin_version, other.plugin_namespace) == (*key, "probe")
        assert other.num_outputs == plugin.num_outputs == BY_KEY[key].outputs
    for kind in trt.PluginCapabilityType.__members__.values():
        assert plugin.get_capability_interface(kind) is plugin


@pytest.mark.trt_rtx
def test_formats_go_through_tensorrts_descriptions(trt):
    _, plugin = plugin_of(trt, ("CustomSkipLayerNormPluginDynamic", "7"))

    def described(dtype, layout):
        held = trt.DynamicPluginTensorDesc()
        held.desc.dims, held.desc.type, held.desc.format, held.desc.scale = (1, E, 7, 1), dtype, layout, 0.5
        return held

    good = described(trt.int8, trt.TensorFormat.CHW32)
    assert plugin.supports_format_combination(2, [good] * 3, 2)
    for bad in (described(trt.float16, trt.TensorFormat.CHW32), described(trt.int8, trt.TensorFormat.LINEAR),
                described(trt.int64, trt.TensorFormat.CHW32)):  # fmt: skip
        assert not plugin.supports_format_combination(2, [good, good, bad], 2)


@pytest.mark.trt_rtx
def test_output_types_and_shapes_are_tensorrts(trt, monkeypatch):
    _, plugin = plugin_of(trt, ("CustomEmbLayerNormPluginDynamic", "4"))
    assert plugin.get_output_data_types([trt.int32] * 4) == [trt.float16, trt.int32]
    assert plugin.get_output_datatypes([trt.int32] * 4) == [trt.float16, trt.int32]  # TensorRT 10.0's name for it
    monkeypatch.setattr(trt, "DimsExprs", list)  # its elements come from a builder alone
    asked = []
    builder = SimpleNamespace(
        constant=lambda value: value, operation=lambda kind, a, b: asked.append(kind) or a - b
    )  # fmt: skip
    assert plugin.get_output_shapes([[7], [7], [4], [5]], [], builder) == [[7, E, 1, 1], [3]]
    assert asked == [trt.DimensionOperation.SUB]


@pytest.mark.trt_rtx
def test_enqueue_hands_pointers_over_by_name(trt, monkeypatch):
    from harness.engines import plugins

    launched = []
    device = SimpleNamespace(
        use=lambda: None, write=lambda address, array: None, facts=SimpleNamespace(compute_capability=(9, 0)),
        allocate=lambda size: SimpleNamespace(address=1000 + size),
    )  # fmt: skip
    prepared = SimpleNamespace(launch_on=lambda addresses, stream: launched.append((addresses, stream)))
    monkeypatch.setattr(plugins.gpu, "get", lambda: device)
    monkeypatch.setattr(plugins.launch, "prepare", lambda *a, **k: prepared)
    _, plugin = plugin_of(trt, ("CustomSkipLayerNormPluginDynamic", "6"))
    described = trt.PluginTensorDesc()
    described.dims, described.type, described.format = (7, E, 1, 1), trt.float16, trt.TensorFormat.LINEAR
    plugin.on_shape_change([described] * 2, [described])
    plugin.enqueue([described] * 2, [described], [11, 12], [13], 0, 99)
    vector = 1000 + 4 * E
    assert launched == [({"input": 11, "skip": 12, "output": 13, "gamma": vector, "beta": vector, "bias": vector}, 99)]


@pytest.mark.trt_rtx
def test_registering_makes_every_plugin_findable_and_leaves_others_alone(trt):
    from harness.engines import plugins

    made = plugins.register(trt, "probe-test")
    assert made == tuple(" ".join(key) for key in BY_KEY)
    registry = trt.get_plugin_registry()
    for key in BY_KEY:
        creator = registry.get_creator(*key, "probe-test")
        assert (creator.name, creator.plugin_version) == key
    assert plugins.register(trt, "probe-test") == ()


def test_a_tensorrt_without_python_plugins_is_told():
    from harness.engines import plugins

    with pytest.raises(UsageError, match=r"8\.6\.1 has no plugins in Python"):
        plugins.register(SimpleNamespace(__version__="8.6.1"))
