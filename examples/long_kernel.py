"""Write a long CUDA kernel with planted faults, and the lines that they stand on: what a search for statements is tested on.

    python examples/long_kernel.py nan long.cu --lines 200 --faults 2 --seed 0

Beside `long.cu` come `long.npz` (its arguments) and `long.truth.json` (entry, launch, culprits). The kernel reads x,
folds it through branches, loops, shared memory and helpers, and writes y; every value stays near 1. Kinds of fault:

- nan: a square root of a negative number, on a line of its own, which nothing reads
- sanitizer: a write behind the end of y, guarded by a condition that only some threads meet
- mismatch: a statement too many, which changes the result; `long.expect.npz` holds what is right
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import numpy as np

THREADS, BLOCKS = 64, 2
COUNT = THREADS * BLOCKS

_HEAD = """\
// A kernel of many statements; see {truth} for what is wrong with it.
__device__ float squash(float v)
{{
    float w = v * v;
    w = w + 1.0f;
    return v / w;
}}

extern "C" __global__ void folded(float *y, const float *x, int n)
{{
    __shared__ float tile[{threads}];
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    float a = x[i], b = 0.5f * a + 0.25f, c = 1.0f, s = 0.0f;
    tile[threadIdx.x] = a;
    __syncthreads();
"""
_BLOCKS = (
    ("a = 0.5f * a + 0.25f * b;",),
    ("b = squash(a + c);",),
    ("c = 0.9f * c + 0.1f * b;",),
    ("if (a > b) {", "    a = a - 0.125f * b;", "    c = 0.5f * (a + c);", "} else {", "    b = b - 0.125f * a;", "}"),
    ("for (int k = 0; k < 3; ++k) {", "    s = 0.5f * s + 0.25f * a;", "    a = a - 0.0625f * s;", "}"),
    ("__syncthreads();", "tile[threadIdx.x] = b;", "__syncthreads();", "c = 0.5f * c + 0.5f * tile[threadIdx.x ^ 1];"),
    ("s = s + 0.03125f * fabsf(c);",),
)
_TAIL = ["if (i < n)", "    y[i] = a + b + c + s;"]
_FAULTS = {
    "nan": "float lost{number} = sqrtf(-1.0f - a * a);",
    "sanitizer": "if (threadIdx.x % 7 == {number}) y[n + {number}] = a;",
    "mismatch": "s = s + {step}f;",
}


def write(kind: str, path: Path, *, lines: int = 200, faults: int = 2, seed: int = 0) -> list[int]:
    """Write the kernel, its arguments and the truth; returns the lines of the planted faults, ascending."""
    rng = random.Random(seed)
    body: list[str] = []
    while len(body) < lines - _HEAD.count("\n") - len(_TAIL) - 1 - faults:
        body += rng.choice(_BLOCKS)
    depths = np.cumsum([0, *(line.count("{") - line.count("}") for line in body)])
    places = sorted(rng.sample([at for at in range(4, len(body)) if depths[at] == 0], faults))
    for number, place in reversed(list(enumerate(places))):
        body.insert(place, _FAULTS[kind].format(number=number, step=0.125 * (number + 1)))
    truth = path.with_suffix(".truth.json").name
    head = _HEAD.format(truth=truth, threads=THREADS)
    text = head + "".join(f"    {line}\n" for line in (*body, *_TAIL)) + "}\n"
    culprits = [head.count("\n") + place + number + 1 for number, place in enumerate(places)]
    path.write_text(text, encoding="utf-8")
    x = np.random.default_rng(seed).uniform(0.5, 1.5, COUNT).astype(np.float32)
    np.savez(path.with_suffix(".npz"), y=np.zeros(COUNT, np.float32), x=x, n=np.int32(COUNT))
    content = {"kind": kind, "entry": "folded", "grid": BLOCKS, "block": THREADS, "lines": culprits}
    path.with_suffix(".truth.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    if kind == "mismatch":
        _expect(path, culprits)
    return culprits


def _expect(path: Path, culprits: list[int]) -> None:
    """What y holds after the kernel without the planted lines, which the emulation computes."""
    from harness.emulation import run as emulated
    from kernels.plan import Launch, Pointer

    right = path.with_suffix(".right.cu")
    kept = [
        "\n" if number in culprits else line
        for number, line in enumerate(path.read_text().splitlines(keepends=True), 1)
    ]
    right.write_text("".join(kept), encoding="utf-8")
    with np.load(path.with_suffix(".npz")) as content:
        arrays = {name: content[name] for name in ("y", "x")}
    launch = Launch(right, "folded", (BLOCKS, 1, 1), (THREADS, 1, 1), (Pointer("y"), Pointer("x"), np.int32(COUNT)))
    np.savez(path.with_suffix(".expect.npz"), y=emulated.run([launch], arrays).arrays["y"])
    right.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=sorted(_FAULTS))
    parser.add_argument("out", type=Path)
    parser.add_argument("--lines", type=int, default=200)
    parser.add_argument("--faults", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    found = write(given.kind, given.out, lines=given.lines, faults=given.faults, seed=given.seed)
    print(f"{given.out}: faults at lines {', '.join(map(str, found))}")


if __name__ == "__main__":
    import sys

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script: the checkout is not on the path
    main()
