"""The one door to heavy libraries: says what is missing, what for, and the command that installs it."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType

from harness.errors import DependencyMissing


@dataclass(frozen=True)
class Library:
    """An importable library: module name, what probe uses it for, and the line that installs it."""

    module: str
    purpose: str
    install: str


# What is lost without it, per library, as `probe doctor` shows it.
LIBRARIES: dict[str, Library] = {
    library.module: library
    for library in (
        Library("onnxruntime", "to run models without a GPU", "pip install onnxruntime"),
        Library("tensorrt", "to build and run TensorRT engines", "pip install 'probe-trt[gpu]'"),
        Library(
            "tensorrt_rtx", "to build TensorRT-RTX engines, also without a GPU", "pip install 'probe-trt[trt-rtx]'"
        ),
        Library("polygraphy", "for its TensorRT loaders and runners", "pip install polygraphy"),
        Library("cupy", "to run CUDA kernels (NVRTC)", "pip install 'probe-trt[gpu]'"),
        Library("pycuda", "to run CUDA kernels (nvcc)", "pip install 'probe-trt[gpu]'"),
        Library("nvtx", "to mark builds and launches in the profiler's timeline", "pip install 'probe-trt[gpu]'"),
        Library("distributed", "to search on more than one machine", "pip install 'probe-trt[cluster]'"),
    )
}


def load(module: str, purpose: str | None = None) -> ModuleType:
    """Import a heavy library (a submodule is fine), or raise `DependencyMissing` with the line that installs it."""
    root = module.partition(".")[0]
    library = LIBRARIES[root]
    try:
        return importlib.import_module(module)
    except Exception as error:  # a library built for another driver or NumPy raises anything at all
        detail = f"{type(error).__name__}: {error}"
        raise DependencyMissing(root, purpose or library.purpose, library.install, detail) from error
