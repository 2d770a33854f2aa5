"""The one door to heavy libraries: says what is missing, what for, and the command that installs it."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from dataclasses import dataclass
from types import ModuleType

from harness.errors import DependencyMissing


@dataclass(frozen=True)
class Library:
    """An importable library: module name, what probe uses it for, the line that installs it.

    `stand_in` is a module that has the same contents and may be installed without it.
    """

    module: str
    purpose: str
    install: str
    stand_in: str = ""


# What is lost without it, per library, as `probe doctor` shows it.
LIBRARIES: dict[str, Library] = {
    library.module: library
    for library in (
        Library("onnxruntime", "to run models without a GPU", "pip install onnxruntime"),
        Library("tensorrt", "to build and run TensorRT engines", "pip install 'probe-trt[gpu]'"),
        Library(
            "tensorrt_rtx",
            "to build TensorRT-RTX engines, GPU or not",
            "pip install 'probe-trt[trt-rtx]'",
            stand_in="tensorrt_rtx_bindings",  # the wheel that tensorrt_rtx re-exports
        ),
        Library("polygraphy", "to read Polygraphy's JSON inputs", "pip install polygraphy"),
        Library("cupy", "to run CUDA kernels (NVRTC)", "pip install 'probe-trt[gpu]'"),
        Library("pycuda", "to run CUDA kernels (nvcc)", "pip install 'probe-trt[gpu]'"),
        Library("nvtx", "to mark builds and launches in a timeline", "pip install 'probe-trt[gpu]'"),
        Library("pynvml", "to record the GPU's clocks and throttling", "pip install 'probe-trt[gpu]'"),
        Library("torch", "to time PyTorch beside our kernels", "pip install torch"),
        Library("torch_tensorrt", "to measure its route in `probe ladder`", "pip install torch-tensorrt"),
        Library("tvm", "to measure its route in `probe ladder`", "pip install apache-tvm"),
        Library("distributed", "to search on more than one machine", "pip install 'probe-trt[cluster]'"),
        Library("ncu_report", "to read .ncu-rep files", "pip install 'probe-trt[ncu]'"),
    )
}


def load(module: str, purpose: str | None = None) -> ModuleType:
    """Import a heavy library (a submodule is fine), or raise `DependencyMissing` with the line that installs it."""
    root = module.partition(".")[0]
    library = LIBRARIES[root]
    name = present(library) or module if module == root else module
    try:
        return importlib.import_module(name)
    except Exception as error:  # a library built for another driver or NumPy raises anything at all
        detail = f"{type(error).__name__}: {error}"
        raise DependencyMissing(root, purpose or library.purpose, library.install, detail) from error


def present(library: Library) -> str | None:
    """The module to import for a library, itself or its stand-in, without importing it; None if neither is here."""
    names = (library.module, library.stand_in)
    return next((name for name in names if name and _can_be_found(name)), None)


def _can_be_found(module: str) -> bool:
    if module in sys.modules:
        return sys.modules[module] is not None
    return importlib.util.find_spec(module) is not None
