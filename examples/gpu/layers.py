"""Three named layers of kernels, one of which may be faulty: a program for `probe sanitize` and `probe profile` on a GPU.

    probe sanitize --tool all -- python examples/gpu/layers.py race
    probe profile --nsys -- python examples/gpu/layers.py

Each layer is an NVTX range of the domain "probe" and launches `twice` of faults.cu; `layer.1/fault` launches the kernel
that is asked for: out_of_bounds, race, uninitialised or divergent_barrier. With `--graph` the launches are replayed
by a CUDA graph. `uninitialised` reads memory of which only one half was written.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

if not __package__:  # run as a script: the checkout is not on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from harness import ranges
from harness.cuda import device, launch
from kernels.plan import Launch, Pointer

SOURCE = Path(__file__).with_name("faults.cu")
COUNT, THREADS = 300, 128
KINDS = ("twice", "out_of_bounds", "race", "uninitialised", "divergent_barrier")


def step(entry: str, out: str, x: str) -> Launch:
    arguments = (Pointer(out), Pointer(x), np.int32(COUNT))
    return Launch(SOURCE, entry, (-(-COUNT // THREADS), 1, 1), (THREADS, 1, 1), arguments, names=("out", "x", "n"))


def run(kind: str, iterations: int, *, graph: bool) -> None:
    card = device.get()
    card.use()
    size = 4 * COUNT
    buffers = {name: card.allocate(size) for name in ("a", "b", "c", "d")}
    card.fill(buffers["a"].address, 0x3F, size)
    card.fill(buffers["d"].address, 0x3F, size // 2)  # the rest is never written
    addresses = {name: buffer.address for name, buffer in buffers.items()}
    layers = {
        "layer.0/scale": step("twice", "b", "a"),
        "layer.1/fault": step(kind, "c", "d" if kind == "uninitialised" else "b"),
        "layer.2/scale": step("twice", "b", "a"),
    }
    options = launch.Options(flavour="lineinfo")
    calls = {
        name: launch.prepare([one], dict.fromkeys(addresses, 4), options).bind(addresses)
        for name, one in layers.items()
    }
    graphs = {name: call.graph() for name, call in calls.items()} if graph else {}
    for number in range(iterations):
        with ranges.range(f"inference #{number}"):
            for name, call in calls.items():
                with ranges.range(name):
                    graphs[name].launch(0) if graph else call.launch()
                    card.synchronize(shown=name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", nargs="?", choices=KINDS, default="twice")
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--graph", action="store_true")
    given = parser.parse_args()
    run(given.kind, given.iterations, graph=given.graph)


if __name__ == "__main__":
    main()
