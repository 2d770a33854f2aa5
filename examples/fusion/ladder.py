"""The fusion exercise, step by step: each level checked against float64, and timed by the harness where there is a GPU.

python -m examples.fusion.ladder [--emulate]; `probe ladder fusion` draws the same as a report.
"""

from __future__ import annotations

import argparse

import numpy as np

from harness.errors import UsageError
from harness.fusion import emulate, measure
from kernels.fusion import LEVELS, Level, arrays, expected, worst_error

__all__ = ["LEVELS", "Level", "arrays", "emulate", "expected", "measure", "worst_error"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--emulate", action="store_true", help="only check, on the CPU")
    parser.add_argument("--seed", type=int)
    options = parser.parse_args()
    given = arrays(np.random.default_rng(options.seed))
    wanted = expected(given)
    on_gpu = not options.emulate
    for level in LEVELS:
        if on_gpu:
            try:
                got, nanoseconds = measure(level, given)
                print(f"{level.name:22} {nanoseconds / 1e3:8.2f} us   error {worst_error(got, wanted):.2f} roundings")
                continue
            except UsageError as error:
                print(f"{error}: on the emulation instead, without times")
                on_gpu = False
        got, findings = emulate(level, given, checks="all")
        print(f"{level.name:22} error {worst_error(got, wanted):.2f} roundings, {findings} findings")


if __name__ == "__main__":
    main()
