"""The process in which TVM imports, compiles and runs an encoder: `python -m harness.bert.tvm_worker FOLDER`, called by tvm_peer.py."""

from __future__ import annotations

import contextlib
import ctypes
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx

from harness import optional
from harness.bert import run as bert_run
from harness.cuda import device as gpu
from harness.cuda.compile import wheel_folders
from harness.engines.build_worker import Report
from harness.errors import DependencyMissing, UsageError

Array = np.ndarray[Any, Any]

CUBLAS = "relax.ext.cublas"  # what a TVM that was built with cuBLAS registers; those of PyPI are not
CUDA_GRAPH = "relax.backend.use_cuda_graph"
PLAIN = "dlight.do_not_tensorize"  # on a function whose product is to stay off the tensor cores
CUDA_RUNTIME = Path("lib", "libtvm_runtime_cuda.so")
LONGEST = 300  # characters of what TVM says


def main(folder: Path) -> int:
    """Do the job; result.json is written before each stage, so that who reads it knows in which one the process died."""
    report = Report(folder / "result.json")
    report.write(notes=[], memory_bytes=None)
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    with np.load(folder / "feeds.npz", allow_pickle=False) as content:
        feeds = dict(content)
    try:
        tvm = _load(gpu=job["gpu"])
        report.write(version=tvm.__version__)
        np.save(folder / "output.npy", _run(tvm, {**job, "model": folder / job["model"]}, feeds, report))
    except (DependencyMissing, UsageError) as error:
        report.write(unusable=str(error))
        return 2
    except Exception as error:  # TVM raises whatever its C++ threw, under names of its own
        said = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        report.write(error=said[-1].strip()[:LONGEST])  # a traceback through C++ comes first
        raise
    report.write(ok=True, stage="done")
    return 0


def _load(*, gpu: bool) -> ModuleType:
    """TVM, able to run where it shall. Raises DependencyMissing, or UsageError if it sees no GPU."""
    if gpu:  # which is linked against one version of CUDA's runtime, that NVIDIA's wheels bring too
        for library in (path for folder in wheel_folders() for path in (folder / "lib").glob("libcudart.so.*")):
            with contextlib.suppress(OSError):
                ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    tvm = optional.load("tvm")
    for module in ("tvm.relax", "tvm.relax.frontend.onnx"):
        optional.load(module)
    if gpu and not tvm.cuda(0).exist:
        raise UsageError(f"TVM {tvm.__version__} sees no GPU: {_why_none(tvm)}")
    return tvm


def _why_none(tvm: ModuleType) -> str:
    library = Path(str(tvm.__file__)).parent / CUDA_RUNTIME
    if not library.is_file():
        return "this build of TVM is without CUDA"
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        return str(error).replace(str(library.parent), "")
    return "no device"


def _run(tvm: ModuleType, job: Mapping[str, Any], feeds: Mapping[str, Array], report: Report) -> Array:
    """The model's output, [B, S, E]; times, memory and notes go into the report."""
    where = tvm.cuda(0) if job["gpu"] else tvm.cpu()
    target = tvm.target.Target.from_device(where)
    report.write(stage="import")
    start = time.perf_counter()
    module = _imported(tvm, job, feeds)
    report.write(stage="build")
    with target, tvm.transform.PassContext(config={CUDA_GRAPH: job["graph"]}):
        module, note = _fused(tvm, module, plain=not job["tensor_cores"], gpu=job["gpu"])
        executable = tvm.compile(module, target=target)
    report.write(build_s=time.perf_counter() - start, notes=[f"TVM {tvm.__version__}, {note}"])
    report.write(stage="run")
    device = gpu.get() if job["gpu"] else None
    free = device.free_bytes() if device else 0
    machine = tvm.relax.VirtualMachine(executable, where)
    names = [str(name) for name in module["main"].params]
    given = [tvm.runtime.tensor(feeds[name], where) for name in names]

    def call() -> Any:
        return machine["main"](*given)

    output: Array = call().numpy()
    if device:
        report.write(memory_bytes=free - device.free_bytes())
    times = bert_run.time_calls(device, call, 0, job["seconds"]) if device else bert_run.time_here(call, job["seconds"])
    report.write(times_ns=times)
    return output


def _imported(tvm: ModuleType, job: Mapping[str, Any], feeds: Mapping[str, Array]) -> Any:
    """The model in Relax, for the shapes of `feeds` alone; FP16 by TVM's own pass, whose products add up in FP32."""
    shapes = {name: list(array.shape) for name, array in feeds.items()}
    dtypes = {name: str(array.dtype) for name, array in feeds.items()}
    module = tvm.relax.frontend.onnx.from_onnx(onnx.load(job["model"]), shape_dict=shapes, dtype_dict=dtypes)
    return tvm.relax.transform.ToMixedPrecision(out_dtype="float32")(module) if job["precision"] == "fp16" else module


def _fused(tvm: ModuleType, module: Any, *, plain: bool, gpu: bool) -> tuple[Any, str]:
    """What TVM fuses before it schedules: products by cuBLAS where it has it, loops of its own for the rest."""
    note = "default schedules, not tuned"
    if gpu and tvm.get_global_func(CUBLAS, True) is not None:
        module = optional.load("tvm.relax.backend.cuda.cublas").partition_for_cublas(module)
        module = tvm.relax.transform.RunCodegen()(module)
        note = f"cuBLAS, {note}"
    module = tvm.relax.get_pipeline("zero")(module)
    for name, function in list(module.functions.items()) if plain else ():
        if isinstance(function, tvm.tirx.PrimFunc):
            module[name] = function.with_attr(PLAIN, True)
    return module, note


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
