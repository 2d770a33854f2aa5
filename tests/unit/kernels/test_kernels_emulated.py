"""The kernels' own sources on the CPU, against float64; and mutants of them, which must be caught."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest

from harness.record import Outcome
from kernels.disentangled_attention import DisentangledAttention
from kernels.embedding_layernorm import EmbeddingLayerNorm
from kernels.fully_connected import FullyConnected
from kernels.gelu import Gelu
from kernels.manifest import BY_NAME, SPECS
from kernels.parts import CUDA
from kernels.plan import Launch, Plan
from kernels.quantise import Quantise
from kernels.skip_layernorm import SkipLayerNorm
from probes.kernels.testing import machine, run_case

OURS = [spec for spec in SPECS if spec.name != "attention"]


def seed():
    """A fresh one each time; pytest shows it when a test fails."""
    drawn = int(np.random.SeedSequence().generate_state(1)[0])
    print("seed", drawn)
    return drawn


@pytest.mark.parametrize("name, case", [
    ("skip_layernorm", SkipLayerNorm(5, 250, "float16", bias=True)),
    ("skip_layernorm", SkipLayerNorm(3, 768, "bfloat16")),
    ("skip_layernorm", SkipLayerNorm(4, 256, "float32", values="large_mean")),
    ("skip_layernorm", SkipLayerNorm(5, 96, "int8", interleaved=True, residual=True)),
    ("embedding_layernorm", EmbeddingLayerNorm(7, 2, 96, "bfloat16")),
    ("embedding_layernorm", EmbeddingLayerNorm(5, 3, 33, "float16", (5, 0, 2), residual=True)),
    ("gelu", Gelu(3, 130, "float16", bias=True)),
    ("gelu", Gelu(4, 64, "float32", form="erf", values="extreme")),
    ("fully_connected", FullyConnected(5, 33, 7, "float16", True, "erf")),
    ("fully_connected", FullyConnected(5, 32, 12, "int8", True, "tanh")),
    ("quantise", Quantise(1003, "bfloat16")),
    ("disentangled_attention", DisentangledAttention(2, 33, 8, "float16")),
], ids=lambda value: getattr(value, "label", value))  # fmt: skip
def test_a_case_is_right_and_without_findings(name, case):
    result = run_case(BY_NAME[name], case, machine(True, "all"), seed())
    assert (result.outcome, result.message) == (Outcome.PASS, "")
    assert result.share is not None
    assert result.share <= 1


@pytest.mark.slow
@pytest.mark.parametrize("spec", OURS, ids=lambda spec: spec.name)
def test_every_case_is_right_and_without_findings(spec):
    drawn, where = seed(), machine(True, "all")
    results = [run_case(spec, case, where, drawn) for case in spec.cases]
    assert [(result.case, result.message) for result in results if result.outcome is not Outcome.PASS] == []


def test_inputs_are_fresh_for_each_seed_and_the_same_for_one():
    spec, where = BY_NAME["quantise"], machine(True)
    first, again, other = (run_case(spec, Quantise(64), where, number).outputs[0] for number in (1, 1, 2))
    assert first == again != other


# ---- mutants


def mutated(spec, name, folder, old, new):
    """The spec with one text of one source replaced."""
    shutil.copytree(CUDA, folder, dirs_exist_ok=True)
    text = (folder / name).read_text(encoding="utf-8")
    assert old in text
    (folder / name).write_text(text.replace(old, new), encoding="utf-8")

    def plan(case):
        made = spec.plan(case)
        steps = (
            dataclasses.replace(s, source=folder / s.source.name) if isinstance(s, Launch) else s for s in made.steps
        )
        return Plan(made.buffers, tuple(steps))

    return dataclasses.replace(spec, plan=plan)


@pytest.mark.parametrize("name, source, old, new, case, told", [
    ("skip_layernorm", "layernorm.cuh", "squares / norm.hidden", "squares / (norm.hidden - 1)",
     SkipLayerNorm(4, 256, "float32"), "output"),
    ("skip_layernorm", "skip_layernorm.cu", "if (row >= rows) { return; }", "", SkipLayerNorm(5, 33, "float16"), "write"),
    ("gelu", "gelu.cu", "column_of(vector * WIDTH, columns)", "column_of(vector, columns)", Gelu(3, 64, "float16", bias=True), "output"),
    ("disentangled_attention", "disentangled_attention.cu", "columns[i - j - first]", "columns[j - i - first]",
     DisentangledAttention(1, 20, 8, "float32"), ""),
    ("disentangled_attention", "disentangled_attention.cu", "    __syncthreads();\n    const int j = ",
     "    const int j = ", DisentangledAttention(1, 40, 8, "float32"), "race"),
    ("embedding_layernorm", "embedding_layernorm.cu", "cu_seqlens[middle] <= token", "cu_seqlens[middle] < token",
     EmbeddingLayerNorm(5, 3, 40, "float16", (5, 1, 2)), "output"),
], ids=["variance", "row guard", "bias column", "distance", "barrier", "sequence start"])  # fmt: skip
def test_a_mutant_is_caught(tmp_path, name, source, old, new, case, told):
    spec = mutated(BY_NAME[name], source, tmp_path, old, new)
    result = run_case(spec, case, machine(True, "all"), 3)
    assert result.outcome is Outcome.FAIL
    kinds = " ".join(str(finding["kind"]) + str(finding["message"]) for finding in result.findings)
    assert told in (result.message + kinds).lower()


def test_a_mutant_that_writes_beside_a_local_array_is_caught_by_its_own_check(tmp_path):
    spec = mutated(BY_NAME["gelu"], "gelu.cu", tmp_path, "            values[u].at[i] = from_float<T>(",
                   "            values[u + (u == UNROLL - 1)].at[i] = from_float<T>(")  # fmt: skip
    case = Gelu(64, 130, "float32")
    result = run_case(spec, case, machine(True, "asan"), 3)
    assert result.outcome is Outcome.FAIL
    assert {(row["kind"], row["file"]) for row in result.findings} >= {("Invalid __local__ write", "gelu.cu")}
