"""Fused attention: what is refused, how work is divided, and every kernel on the CPU against float64."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest

from harness.cuda.compile import Unit, build
from harness.emulation import run as emulated
from harness.record import Outcome
from kernels import attention, numbers
from kernels.attention import SPEC, AttentionCase
from kernels.parts import CUDA
from kernels.plan import Plan, Pointer
from kernels.spec import Refused, checked
from probes.kernels.testing import machine, run_case

WGMMA = attention.WARPGROUP_CAPABILITY


def seed():
    """A fresh one each time; pytest shows it when a test fails."""
    drawn = int(np.random.SeedSequence().generate_state(1)[0])
    print("seed", drawn)
    return drawn


def passes(case, checks="all"):
    result = run_case(SPEC, case, machine(True, checks), seed())
    assert (result.outcome, result.message) == (Outcome.PASS, "")
    assert result.share is not None
    assert result.share <= 1


# ---- refusals and plans


@pytest.mark.parametrize("change, told", [
    ({"head_size": 48}, "head size 48; there are 32, 64, 96, 128"),
    ({"dtype": "float64"}, "float64; there are float32"),
    ({"batch": 0}, "at least 1"),
    ({"batch": 65536}, "largest third extent"),
    ({"sequence": 65536 * 64}, "sequence"),
    ({"layout": "hqkv"}, "neither"),
    ({"counts": (3,)}, "1 mask counts for a batch of 2"),
    ({"counts": (3, 4), "lengths": (3, 4)}, "exclude each other"),
    ({"lengths": (3, 4, 5)}, "3 lengths for a batch of 2"),
    ({"lengths": (3, 11)}, "between 0 and the sequence 10"),
    ({"lengths": (-1, 4)}, "between 0 and the sequence 10"),
    ({"lengths": (0, 0)}, "every sequence is empty"),
    ({"dtype": "int8", "dq_probs": 0.0}, "positive, finite scales"),
    ({"dtype": "int8", "output_scale": float("inf")}, "positive, finite scales"),
    ({"interleaved": True}, "kCHW32 is for int8, not float16"),
    ({"dtype": "int8", "interleaved": True, "sequence": 2**21}, "kCHW32 of at most 2147483647 elements"),
    ({"capability": (7, 5)}, "needs compute capability 8.0 or later, not 7.5"),
], ids=lambda value: str(value) if isinstance(value, dict) else "")  # fmt: skip
def test_what_cannot_be_computed_is_refused(change, told):
    case = dataclasses.replace(AttentionCase(2, 10, 3, 64), **change)
    with pytest.raises(Refused, match="attention, ") as caught:
        checked(SPEC, case)
    assert told in str(caught.value)


def test_float32_needs_no_newer_device():
    assert SPEC.refuse(AttentionCase(2, 10, 3, 64, "float32", capability=(7, 0))) is None


@pytest.mark.parametrize("case", [*SPEC.cases, *SPEC.bench], ids=lambda case: case.label)
def test_a_plan_fits_the_device(case):
    """Shared memory of all blocks that are meant to share a multiprocessor, grid extents, every query covered."""
    (step,) = checked(SPEC, case).steps
    blocks = int(dict(step.defines).get("BLOCKS", 1))
    reserved = 1024  # by the driver, for each block
    assert blocks * (step.shared_bytes + reserved) <= (228 if case.capability == WGMMA else 164) * 1024
    queries = 64 * int(dict(step.defines).get("WARPGROUPS", 1))
    assert step.grid[0] == case.heads
    assert (step.grid[1] - 1) * queries < case.sequence <= step.grid[1] * queries
    assert step.grid[2] == case.batch
    assert len(step.names) == len(step.arguments)


def test_labels_are_unique():
    labels = [case.label for case in SPEC.cases]
    assert len(set(labels)) == len(labels)


def test_the_layout_is_in_the_strides():
    names = ("head_stride", "part_stride")

    def strides(layout):
        (step,) = attention.plan(AttentionCase(1, 8, 3, 64, layout=layout)).steps
        given = dict(zip(step.names, step.arguments, strict=True))
        return tuple(int(given[name]) for name in names)

    assert strides("nqkvh") == (192, 64)
    assert strides("qkvnh") == (64, 192)


def test_chw32_strides_go_over_whole_panels():
    """32 columns of all 8 tokens stand together: a head of 64 is two of them, Q of three heads is six."""
    (step,) = attention.plan(AttentionCase(1, 8, 3, 64, "int8", layout="qkvnh", interleaved=True)).steps
    given = dict(zip(step.names, step.arguments, strict=True))
    names = ("head_stride", "part_stride", "row_stride", "context_stride", "panel_stride")
    assert [int(given[name]) for name in names] == [2 * 256, 6 * 256, 32, 32, 256]


def test_absent_masks_are_null_pointers():
    (step,) = attention.plan(AttentionCase(2, 8, 3, 64)).steps
    given = dict(zip(step.names, step.arguments, strict=True))
    assert given["valid"] == given["starts"] == Pointer(None)


def test_flops_count_valid_pairs_alone():
    whole = attention.flops(AttentionCase(2, 10, 3, 64))
    assert whole == 4 * 2 * 10 * 10 * 192
    assert attention.flops(AttentionCase(2, 10, 3, 64, counts=(10, 5))) == whole * 3 // 4
    assert attention.flops(AttentionCase(2, 10, 3, 64, lengths=(10, 5))) == whole * 5 // 8


def test_lengths_of_the_benchmark_are_even_over_a_fifth_to_the_whole():
    lengths = attention.uniform_lengths(32, 384)
    assert (min(lengths), max(lengths), len(lengths)) == (77, 384, 32)
    assert np.mean(lengths) == pytest.approx(0.6 * 384, rel=0.01)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_usual_formula_lies_within_the_bound_and_a_wrong_scale_does_not(dtype):
    """The bound is neither too tight for a correct computation nor so loose that a wrong one fits."""
    case = AttentionCase(2, 40, 2, 64, dtype, counts=(40, 7))
    arrays = SPEC.inputs(case, np.random.default_rng(seed()))
    wanted = SPEC.reference(case, arrays)
    limit = SPEC.bound(case, arrays, wanted)["context"]
    assert np.all(np.abs(SPEC.peer(case, arrays)["context"] - wanted["context"]) <= limit)
    padded = numbers.decode(arrays["qkv"], dtype)
    padded = padded.reshape(40, 2, 2, 3, 64) * np.array([(64 / 96) ** 0.5, 1, 1])[:, None]  # as if H were 96
    wrong = SPEC.reference(case, arrays | {"qkv": numbers.encode(padded.reshape(40, 2, 384), dtype)})
    assert np.any(np.abs(wrong["context"] - wanted["context"]) > limit)


# ---- compiled

BUILDS = {
    (step.source, step.defines): (case, step)
    for case in (*SPEC.bench, *(AttentionCase(64, 512, 12, size, capability=WGMMA) for size in attention.HEAD_SIZES))
    for step in attention.plan(case).steps
}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
@pytest.mark.parametrize("case, step", BUILDS.values(), ids=[case.label for case, _ in BUILDS.values()])
def test_nothing_spills(case, step, tmp_path):
    """Neither registers to memory nor, in the compiler's words, wgmma into one after the other."""
    arch = "sm_90a" if attention.uses_warpgroups(case) else "sm_80"
    log = build(Unit(step.source, arch, defines=step.defines), "nvcc", cache=tmp_path).log
    assert " 0 bytes spill stores, 0 bytes spill loads" in log
    assert "Potential Performance Loss" not in log


# ---- on the CPU


@pytest.mark.parametrize("case", [
    AttentionCase(2, 70, 1, 64, "float16", counts=(70, 1), capability=WGMMA),
    AttentionCase(2, 70, 1, 96, "bfloat16", counts=(0, 70)),
    AttentionCase(3, 67, 2, 32, "int8", lengths=(67, 0, 1)),
    AttentionCase(3, 67, 2, 64, "int8", lengths=(67, 0, 1), layout="qkvnh", interleaved=True),
    AttentionCase(2, 37, 1, 32, "float32", counts=(37, 0), layout="qkvnh"),
], ids=lambda case: case.label)  # fmt: skip
def test_a_case_is_right_and_without_findings(case):
    passes(case)


@pytest.mark.slow
@pytest.mark.parametrize("case", SPEC.cases, ids=lambda case: case.label)
def test_every_case_is_right_and_without_findings(case):
    passes(case)


@pytest.mark.slow
@pytest.mark.parametrize("capability", [(8, 0), WGMMA])
def test_a_thousand_keys(capability):
    passes(AttentionCase(1, 1024, 1, 64, "float16", counts=(1000,), capability=capability), "none")


@pytest.mark.slow
@pytest.mark.parametrize("keys, stages, groups", [(32, 3, 1), (64, 1, 2), (96, 2, 1), (128, 2, 3)])
def test_every_division_of_work_gives_the_same(keys, stages, groups):
    """More tiles than stages, several warpgroups, and a last tile that is not full."""
    case = AttentionCase(1, 300, 1, 64, "float16", capability=WGMMA)
    tiles = attention.Tiling(keys, stages, groups, 1)
    spec = dataclasses.replace(SPEC, plan=lambda c: Plan(attention.buffers(c), (attention.launch(c, tiles),)))
    result = run_case(spec, case, machine(True, "all"), seed())
    assert (result.outcome, result.message) == (Outcome.PASS, "")


def test_what_stands_after_the_valid_keys_does_not_matter():
    """Not even infinities and NaN: 0 * NaN would not be 0."""
    case = AttentionCase(2, 70, 1, 64, "float16", counts=(70, 3), capability=WGMMA)
    arrays = SPEC.inputs(case, np.random.default_rng(seed()))
    wanted = SPEC.reference(case, arrays)
    limit = SPEC.bound(case, arrays, wanted)["context"]
    arrays["qkv"].reshape(70, 2, 3, 64)[3:, 1, 1:] = np.array([np.nan, np.inf] * 32, np.float16)
    out = np.full((70, 2, 64), np.nan, np.float16)
    made = emulated.run(attention.plan(case).steps, arrays | {"context": out})
    found = made.arrays["context"].astype(np.float64)
    assert np.all(np.abs(found - wanted["context"])[:, 0] <= limit[:, 0])
    assert np.all(np.abs(found - wanted["context"])[:3, 1] <= limit[:3, 1])


# ---- mutants


def mutated(name, folder, old, new):
    """The spec with one text of one source replaced."""
    shutil.copytree(CUDA, folder, dirs_exist_ok=True)
    text = (folder / name).read_text(encoding="utf-8")
    assert old in text
    (folder / name).write_text(text.replace(old, new, 1), encoding="utf-8")

    def plan(case):
        (step,) = SPEC.plan(case).steps
        return Plan(attention.buffers(case), (dataclasses.replace(step, source=folder / step.source.name),))

    return dataclasses.replace(SPEC, plan=plan)


SMALL = AttentionCase(1, 100, 1, 32, "float16", capability=WGMMA)
MUTANTS = {
    "a copy is not waited for": ("attention.cu", "arrive<2 * STAGES - 1>();", "__syncthreads();", SMALL),
    "a swizzle of its own": ("tiles.cuh", "(row * WIDTH >> 7)", "(row * WIDTH >> 8)", SMALL),
    "rows of V a block apart": ("tiles.cuh", "16 * k * Layout::WIDTH, Layout::BLOCK_BYTES, 8 *",
                                "16 * k * Layout::WIDTH, Layout::BLOCK_BYTES, 16 *", SMALL),
    "keys past the end": ("attention.cuh", "i % 2 >= keys", "i % 2 > keys", SMALL),
    "another row's sum": ("attention.cu", "/ sums.probabilities[2]", "/ sums.probabilities[0]", SMALL),
    "a barrier less": ("attention_int8.cu", "        __syncthreads();  // everyone has read the keys\n", "",
                       AttentionCase(1, 100, 1, 32, "int8")),
    "values of the first panel": ("attention_int8.cu", "place(8 * chunk)", "8 * chunk",
                                  AttentionCase(1, 40, 1, 64, "int8", interleaved=True)),
    "huge scores": ("attention.cuh", "> 1024.f", "> 1e30f",
                    AttentionCase(1, 70, 1, 64, "float16", capability=WGMMA, values="extreme")),
    "no rescaling": ("attention_fp32.cu", "context[i][c] *= correction;", "context[i][c] *= 1.f;",
                     AttentionCase(1, 100, 1, 32, "float32")),
}  # fmt: skip
FAST = ("a copy is not waited for", "a barrier less")


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in MUTANTS]
)
def test_a_mutant_is_caught(tmp_path, name):
    source, old, new, case = MUTANTS[name]
    result = run_case(mutated(source, tmp_path, old, new), case, machine(True, "all"), 3)
    assert result.outcome is Outcome.FAIL
