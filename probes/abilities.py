"""What each verb can do with what, and so what a machine can do, and what more it could with what it lacks."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

GPU_KERNELS = ("gpu", "nvcc|cupy")


@dataclass(frozen=True)
class Ability:
    """Something probe does, and the checks of `probe doctor` it rests on; `nvcc|cupy` is one of the two."""

    command: str  # as one types it
    text: str
    needs: tuple[str, ...] = ()

    def lacks(self, working: Collection[str]) -> tuple[str, ...]:
        """What of its needs does not work."""
        return tuple(need for need in self.needs if not set(need.split("|")) & set(working))


ABILITIES = (
    Ability("bisect MODEL.onnx", "nodes that lose accuracy, make NaN ...", ("onnxruntime",)),
    Ability("bisect --backend trt-rtx", "nodes that break a build", ("tensorrt_rtx",)),
    Ability("bisect --backend trt", "what is to blame in an engine", ("tensorrt", "gpu")),
    Ability("bisect FILE.cu", "statements of a kernel", ("g++",)),
    Ability("bisect --dask", "a search on several machines", ("distributed",)),
    Ability("profile --ort", "a model, node by node", ("onnxruntime",)),
    Ability("profile", "a model or engine under TensorRT", ("tensorrt", "gpu")),
    Ability("profile --trtexec", "the same, timed by trtexec", ("trtexec", "gpu")),
    Ability("profile --nsys", "a timeline of any program", ("nsys", "gpu")),
    Ability("profile --ncu", "hardware counters of its kernels", ("ncu", "gpu", "counters")),
    Ability("sanitize", "bad accesses, races of any program", ("compute-sanitizer", "gpu")),
    Ability("sanitize FILE.cu", "the same of a kernel, on the CPU", ("g++",)),
    Ability("printf --emulate", "values of a kernel, on the CPU", ("g++",)),
    Ability("printf --gpu", "the same, on the GPU", GPU_KERNELS),
    Ability("kernels test|run --emulate", "any kernel, on the CPU", ("g++",)),
    Ability("kernels test|run --gpu", "the same, on the GPU", GPU_KERNELS),
    Ability("kernels bench", "times of our kernels", GPU_KERNELS),
    Ability("ladder --config tiny", "a BERT's results, on the CPU", ("g++", "onnxruntime")),
    Ability("ladder --routes kernels", "a BERT's times by our kernels", GPU_KERNELS),
    Ability("ladder --routes onnx", "the same by TensorRT from ONNX", ("tensorrt", "gpu")),
    Ability("ladder --routes plugins", "the same by TensorRT with plugins", ("tensorrt", *GPU_KERNELS)),
    Ability("ladder --routes frameworks", "the same by PyTorch", ("torch", "gpu")),
    Ability("report, diff", "what tools wrote before"),
    Ability("report FILE.nsys-rep", "the same of nsys' own files", ("nsys",)),
    Ability("report FILE.ncu-rep", "the same of ncu's own files", ("ncu_report",)),
)
