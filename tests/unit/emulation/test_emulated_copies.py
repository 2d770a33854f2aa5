"""Copies in the background bring their bytes when they have been waited for; what is read before is told."""

from __future__ import annotations

import re

import numpy as np
import pytest

from harness.emulation import run as emulated
from kernels.plan import Launch, Pointer
from places import DATA

SOURCE = DATA / "kernels" / "copies.cu"
X = np.arange(1, 257, dtype=np.float32)


def run(entry, *numbers, block=32, checks="all", launches=1):
    arguments = (Pointer("x"), Pointer("y"), *map(np.int32, numbers))
    launch = Launch(SOURCE, entry, (2, 1, 1), (block, 1, 1), arguments)
    return emulated.run([launch] * launches, {"x": X, "y": np.zeros(256, np.float32)}, checks=checks)


def line_of(comment):
    return next(n for n, line in enumerate(SOURCE.read_text().splitlines(), 1) if line.endswith(f"// <- {comment}"))


SUMS = X.reshape(8, 32).sum(0).tolist()
ZEROS = np.where(np.arange(32) < 20, X[:32], 0).tolist()
SECOND = np.where(np.arange(128) % 4 < 2, X[128:], 0).tolist()


@pytest.mark.parametrize(
    "entry, numbers, wanted",
    [
        ("rows<1>", (8,), SUMS), ("rows<0>", (8,), SUMS), ("zeros_behind", (), ZEROS),
        ("by_pipeline", (0,), X[:128].tolist() + SECOND), ("by_group", (1,), X[127::-1].tolist()),
        ("by_barrier", (1,), X[127::-1].tolist()), ("by_stages", (1,), X[:8].tolist()),
    ],
)  # fmt: skip
@pytest.mark.parametrize("checks", ["none", "all"])
def test_what_was_waited_for_is_there(entry, numbers, wanted, checks):
    made = run(entry, *numbers, checks=checks, launches=2)
    assert made.findings == ()
    assert made.arrays["y"][: len(wanted)].tolist() == wanted


@pytest.mark.parametrize(
    "entry, numbers, block, comment",
    [
        ("rows<2>", (8,), 32, "row"), ("no_wait", (), 32, "no wait"), ("by_pipeline", (1,), 32, "the second"),
        ("by_group", (0,), 32, "of the group"), ("by_barrier", (0,), 32, "of the barrier"),
        ("by_stages", (0,), 32, "of the pipeline"),
    ],
)  # fmt: skip
def test_what_was_not_waited_for_is_told_and_not_there(entry, numbers, block, comment):
    made = run(entry, *numbers, block=block, checks="race")
    assert {(row["kind"], row["line"]) for row in made.findings} == {("Race", line_of(comment))}
    for row in made.findings:
        assert re.search(
            rf"Read access by thread \(\d+,0,0\) in copies.cu:{line_of(comment)} and a copy in the background by thread "
            r"\(\d+,0,0\) in copies.cu:\d+, at byte \d+ of shared variable 'tile' of \d+ bytes: it has not been waited for$",
            row["message"],
        )
    assert np.isnan(made.arrays["y"]).any()


@pytest.mark.parametrize("entry, comment", [("no_barrier", "no barrier"), ("barrier_too_early", "barrier too early")])
def test_what_another_thread_waited_for_needs_a_barrier(entry, comment):
    made = run(entry, block=64, checks="race")
    assert {row["kind"] for row in made.findings} == {"Race"}
    assert line_of(comment) in {row["line"] for row in made.findings}


def test_bytes_beyond_a_buffer_are_told_once_for_each_copy():
    launch = Launch(SOURCE, "no_barrier", (1, 1, 1), (64, 1, 1), (Pointer("x"), Pointer("y")))
    made = emulated.run([launch], {"x": X[:63].copy(), "y": X.copy()}, checks="memory")
    assert [(row["kind"], row["count"]) for row in made.findings] == [("Invalid __global__ read", 1)]
