"""What is launched for each case: it fits the sources, CUDA's limits and the buffers; what has no kernel is refused."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from harness.cuda import source as cuda_source
from kernels import numbers
from kernels.disentangled_attention import DisentangledAttention
from kernels.embedding_layernorm import EmbeddingLayerNorm
from kernels.fully_connected import FullyConnected
from kernels.gelu import Gelu
from kernels.manifest import BY_NAME, SPECS
from kernels.plan import Gemm, Launch, Pointer
from kernels.quantise import Quantise
from kernels.rows import spread
from kernels.skip_layernorm import SkipLayerNorm
from kernels.spec import Refused, checked, traffic

OURS = [spec for spec in SPECS if spec.name != "attention"]
CASES = [(spec, case) for spec in OURS for case in (*spec.cases, *spec.bench)]
each_spec = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)


def _label(value):
    return value.name if value in SPECS else value.label


each_case = pytest.mark.parametrize("spec, case", CASES, ids=_label)


@each_spec
def test_cases_have_labels_of_their_own_and_none_is_refused(spec):
    for cases in (spec.cases, spec.bench):
        assert len({case.label for case in cases}) == len(cases) > 0
        assert [case.label for case in cases if spec.refuse(case)] == []


@each_spec
def test_every_dtype_that_is_promised_is_tested(spec):
    assert {case.dtype for case in spec.cases} == set(spec.dtypes)


def test_names_are_unique():
    assert len(BY_NAME) == len(SPECS)


@cache
def parameters(path):
    """Of every kernel of a source: name -> its parameters' names."""
    source = cuda_source.read(path)
    return {kernel.name: [source.of(child).split()[-1].lstrip("*") for child in
                          kernel.declarator.child_by_field_name("parameters").named_children]
            for kernel in source.kernels}  # fmt: skip


@pytest.mark.parametrize("spec", SPECS, ids=_label)
def test_a_launch_names_the_parameters_of_its_kernel_in_order(spec):
    for case in (*spec.cases, *spec.bench):
        for step in spec.plan(case).steps:
            if isinstance(step, Launch):
                assert parameters(step.source)[step.entry] == list(step.names), case.label
                assert len(step.arguments) == len(step.names)


@each_case
def test_a_plan_stays_within_cudas_limits_and_its_own_buffers(spec, case):
    plan = spec.plan(case)
    sizes = {buffer.name: int(np.prod(buffer.shape)) for buffer in plan.buffers}
    assert len(sizes) == len(plan.buffers)
    for step in plan.steps:
        if isinstance(step, Gemm):
            operands = [(step.a, step.m * step.k), (step.b, step.k * step.n), (step.d, step.m * step.n)]
            assert [sizes[pointer.buffer] for pointer, _ in operands] == [size for _, size in operands]
            continue
        assert np.prod(step.block) <= 512
        assert 0 < step.grid[0] < 2**31
        assert 0 < max(step.grid[1:]) <= 65535
        pointers = [argument for argument in step.arguments if isinstance(argument, Pointer)]
        assert {pointer.buffer for pointer in pointers if pointer.buffer} <= sizes.keys()


@pytest.mark.parametrize("spec, case", [(spec, case) for spec in OURS for case in spec.cases], ids=_label)
def test_inputs_fill_the_buffers_that_are_read(spec, case):
    with np.errstate(all="ignore"):
        made = spec.inputs(case, np.random.default_rng(1))
    read = {buffer.name: buffer for buffer in spec.plan(case).buffers if buffer.role in ("in", "inout")}
    assert made.keys() == read.keys()
    for name, buffer in read.items():
        assert (made[name].shape, made[name].dtype) == (buffer.shape, numbers.storage(buffer.dtype))


@pytest.mark.parametrize(
    "rows, hidden", [(1, 1), (4096, 768), (12288, 1024), (128, 768), (7, 1025), (2000, 5000), (3, 10**6)]
)
def test_every_row_has_threads_and_every_value_a_place(rows, hidden):
    grid, block = spread(rows, hidden)
    assert grid[0] * block[1] >= rows
    assert (grid[0] - 1) * block[1] < rows
    assert block[0] % 32 == 0
    assert block[1] == 1 or block[0] == 32  # two rows in a block share no barrier
    assert hidden <= block[0] * 32 or block[0] == 512


def test_many_short_rows_are_a_warps_and_few_are_shared_by_more():
    assert spread(12288, 1024) == ((3072, 1, 1), (32, 4, 1))
    assert spread(128, 768) == ((128, 1, 1), (96, 1, 1))


@pytest.mark.parametrize("case, message", [
    (SkipLayerNorm(2, 8, "float64"), "expected one of"),
    (SkipLayerNorm(0, 8), "at least one row"),
    (SkipLayerNorm(2**20, 2**12), "elements"),
    (SkipLayerNorm(2, 64, interleaved=True), "for int8"),
    (SkipLayerNorm(2, 48, "int8", interleaved=True), "no multiple"),
    (SkipLayerNorm(2, 8, "int8", scales=(1, 1, 0, 1)), "above zero"),
    (EmbeddingLayerNorm(4, 2, 8, "int8"), "expected one of"),
    (EmbeddingLayerNorm(4, 2, 8, lengths=(4,)), "expected 2 lengths"),
    (EmbeddingLayerNorm(4, 2, 8, lengths=(5, 1)), "up to 4"),
    (EmbeddingLayerNorm(4, 2, 8, lengths=(0, 0)), "at least one token"),
    (Gelu(2, 8, "int8"), "FC's epilogue"),
    (Gelu(0, 8), "elements"),
    (FullyConnected(2, 4, 4, "float16", out_dtype="float32"), "only int8"),
    (FullyConnected(2, 6, 4, "int8"), "multiples of 4"),
    (FullyConnected(2, 2**20, 4, "int8"), "may overflow"),
    (Quantise(4, "int8"), "expected one of"),
    (Quantise(4, scale=0), "above zero"),
    (DisentangledAttention(1, 4, 4, "int8"), "zero in int8"),
    (DisentangledAttention(1, 4, 1), "span of at least 2"),
    (DisentangledAttention(70000, 4, 4), "65535"),
], ids=lambda value: value if isinstance(value, str) else value.label)  # fmt: skip
def test_what_has_no_kernel_is_refused_with_a_reason(case, message):
    (spec,) = (spec for spec in OURS if isinstance(spec.cases[0], type(case)))
    with pytest.raises(Refused, match=message) as raised:
        checked(spec, case)
    assert spec.name in str(raised.value)


def test_traffic_counts_inputs_and_outputs_once():
    plan = BY_NAME["skip_layernorm"].plan(SkipLayerNorm(10, 64, "float16"))
    assert traffic(plan) == 3 * 10 * 64 * 2 + 2 * 64 * 4


def test_bias_and_tanh_gelu_are_fused_into_the_product_and_erf_is_not():
    spec = BY_NAME["fully_connected"]
    (fused,) = spec.plan(FullyConnected(4, 8, 8, bias=True, activation="tanh")).steps
    assert (fused.epilogue, fused.bias, fused.bias_dtype) == ("gelu_tanh", Pointer("bias"), "float16")
    product, after = spec.plan(FullyConnected(4, 8, 8, bias=True, activation="erf")).steps
    assert (product.epilogue, product.bias) == ("none", None)
    assert after.entry == "gelu_f16"
