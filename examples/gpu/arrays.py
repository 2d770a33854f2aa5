"""The same kernel by CuPy, by PyCUDA and as a CUDA graph, each in a named range: three ways that users launch.

    probe profile --nsys --ncu -- python examples/gpu/arrays.py

A library that is not installed is left out, and said. Results are checked.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

if not __package__:  # run as a script: the checkout is not on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from harness import ranges
from harness.optional import LIBRARIES, load, present

COUNT, THREADS, ITERATIONS = 1 << 22, 256, 5
SOURCE = """
extern "C" __global__ void axpy(const float* x, float* y, float a, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) { y[i] = a * x[i] + y[i]; }
}
"""


def by_cupy(x: np.ndarray) -> np.ndarray:
    cupy = load("cupy")
    kernel, left, right = cupy.RawKernel(SOURCE, "axpy"), cupy.asarray(x), cupy.zeros_like(x)
    for number in range(ITERATIONS):
        with ranges.range(f"cupy/iteration {number}"):
            kernel((COUNT // THREADS,), (THREADS,), (left, right, np.float32(0.5), np.int32(COUNT)))
            cupy.cuda.get_current_stream().synchronize()
    return cupy.asnumpy(right)


def by_graph(x: np.ndarray) -> np.ndarray:
    cupy = load("cupy")
    kernel, left, right = cupy.RawKernel(SOURCE, "axpy"), cupy.asarray(x), cupy.zeros_like(x)
    stream = cupy.cuda.Stream(non_blocking=True)
    kernel.compile()
    with stream:
        stream.begin_capture()
        kernel((COUNT // THREADS,), (THREADS,), (left, right, np.float32(0.5), np.int32(COUNT)))
        graph = stream.end_capture()
    cupy.cuda.get_current_stream().synchronize()
    for number in range(ITERATIONS):
        with ranges.range(f"graph/iteration {number}"):
            graph.launch(stream)
            stream.synchronize()
    return cupy.asnumpy(right)


def by_pycuda(x: np.ndarray) -> np.ndarray:
    compiler, cuda, gpuarray = (load(f"pycuda.{name}") for name in ("compiler", "driver", "gpuarray"))
    cuda.init()
    context = cuda.Device(0).retain_primary_context()
    context.push()
    try:
        kernel = compiler.SourceModule(SOURCE, no_extern_c=True).get_function("axpy")
        left, right = gpuarray.to_gpu(x), gpuarray.zeros(COUNT, np.float32)
        for number in range(ITERATIONS):
            with ranges.range(f"pycuda/iteration {number}"):
                kernel(left, right, np.float32(0.5), np.int32(COUNT), grid=(COUNT // THREADS, 1), block=(THREADS, 1, 1))
                cuda.Context.synchronize()
        return right.get()
    finally:
        context.pop()


WAYS: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
    "cupy": ("cupy", by_cupy), "graph": ("cupy", by_graph), "pycuda": ("pycuda", by_pycuda),
}  # fmt: skip


def main() -> None:
    x = np.random.default_rng(0).standard_normal(COUNT).astype(np.float32)
    for name, (library, way) in WAYS.items():
        if present(LIBRARIES[library]) is None:
            print(f"{name}: {library} is not installed")
            continue
        error = float(np.abs(way(x) - 0.5 * ITERATIONS * x).max())
        print(f"{name}: largest error {error:.1e}")
        if error > 1e-4:
            sys.exit(1)


if __name__ == "__main__":
    main()
