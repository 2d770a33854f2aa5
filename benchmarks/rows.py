"""Which threads for the rows of a layernorm: skip+layernorm with one block shape after another, on the GPU.

    python -m benchmarks.rows [--json FILE]

The floor is every input and output once at the bandwidth of a copy, measured in the same run. `kernels/rows.py` takes
the best shape found here.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import numpy as np

from harness.cuda import device, timing
from kernels import skip_layernorm
from kernels.parts import ceil_div
from kernels.plan import Launch

SHAPES = [(32, rows) for rows in (1, 2, 4, 8, 16)] + [(threads, 1) for threads in (64, 96, 128, 160, 192, 256, 512)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    card = device.get()
    copy = device.copy_bandwidth(card)
    print(f"{card.facts.name}: copy {copy / 1e12:.2f} TB/s")
    spec = skip_layernorm.SPEC
    found = []
    for case in spec.bench:
        plan, arrays = spec.plan(case), dict(spec.inputs(case, np.random.default_rng(0)))
        arrays |= {b.name: np.zeros(b.shape, np.uint16 if b.dtype == "bfloat16" else b.dtype)
                   for b in plan.buffers if b.name not in arrays}  # fmt: skip
        floor = spec.traffic(case) / copy * 1e6
        (launch,) = plan.steps
        assert isinstance(launch, Launch)
        for shape in [(launch.block[0], launch.block[1]), *SHAPES]:
            step = dataclasses.replace(launch, grid=(ceil_div(case.rows, shape[1]), 1, 1), block=(*shape, 1))
            taken = timing.measure((step,), arrays)
            found.append({"case": case.label, "block": shape, "us": taken.median_ns / 1e3, "floor_us": floor})
            mark = "  <- as it is" if shape == launch.block[:2] else ""
            print(
                f"{case.label:<24} {shape[0]:>4} x {shape[1]:<3} {taken.median_ns / 1e3:>7.2f} us  {floor / taken.median_ns * 1e5:>5.1f} % of a copy{mark}",
                flush=True,
            )
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
