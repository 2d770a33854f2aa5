"""TensorRT modules as each version has them, for tests without one: names as in the documentation, a runtime that doubles.

`module(version)` has the enums, classes and attributes of 8.6, 10.3, 10.13, 11.2 or RTX that probe asks about. An engine
of these has an input x [batch, 4] for batch 1 to 8 and an output y = 2 x, computed by the stand-in driver's kernel.
"""

from __future__ import annotations

import ctypes
import enum
import weakref
from collections.abc import Sequence
from ctypes import byref, c_float, c_int, c_uint64, c_void_p, cast, pointer
from types import ModuleType
from typing import Any

import onnx

PLANS = {"8.6.1": b"ftrt", "10.3.0": b"ftrt", "10.13.2": b"ftrt", "11.2.0": b"ftrt", "1.7.1": b"vtrt"}


def plan(version: str, made_by: str | None = None) -> bytes:
    """A plan's header, by this version or by another, and something behind it."""
    numbers = bytes([*map(int, (made_by or version).split(".")), 0])
    return PLANS[version] + bytes(20) + numbers + b"engine"


def _enum(name: str, *members: str) -> Any:
    return enum.IntEnum(name, [(member, number) for number, member in enumerate(members)])


class _Logger:
    class Severity(enum.IntEnum):
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def log(self, severity: Any, message: str) -> None:
        raise NotImplementedError


def module(version: str, gpu: Any = None, *, fails: str = "", by_data: bool = False) -> ModuleType:
    """A module of that version. `fails`: what deserialising logs as it gives nothing back. `by_data`: an engine's output
    is as large as its data have it, which it says while it runs."""
    rtx, major = version.startswith("1."), int(version.split(".")[0])
    new = rtx or major >= 11
    trt = ModuleType("tensorrt_rtx" if rtx else "tensorrt")
    trt.__version__ = version
    flags = ["DEBUG", "TF32"] if new else ["DEBUG", "TF32", "FP16", "INT8", "OBEY_PRECISION_CONSTRAINTS"]
    flags += ["BF16"] if major == 10 else []
    trt.BuilderFlag = _enum("BuilderFlag", *flags)
    creation = [*(["EXPLICIT_BATCH"] if not new else []), *(["STRONGLY_TYPED"] if major >= 10 or rtx else [])]
    trt.NetworkDefinitionCreationFlag = _enum("NetworkDefinitionCreationFlag", *creation)
    trt.ProfilingVerbosity = _enum("ProfilingVerbosity", "LAYER_NAMES_ONLY", "DETAILED", "NONE")
    trt.TensorIOMode = _enum("TensorIOMode", "NONE", "INPUT", "OUTPUT")
    trt.TensorLocation = _enum("TensorLocation", "DEVICE", "HOST")
    trt.LayerInformationFormat = _enum("LayerInformationFormat", "ONELINE", "JSON")
    trt.ILogger = _Logger
    trt.IProfiler = type("IProfiler", (), {})
    trt.IOutputAllocator = type("IOutputAllocator", (), {})
    trt.ILayer = type("ILayer", (), {"metadata": "", **({} if new else {"precision": None})})
    network = {} if major == 8 else {"mark_debug": None}
    trt.INetworkDefinition = type(
        "INetworkDefinition", (), network | ({"mark_unfused_tensors_as_debug_tensors": None} if new else {})
    )
    config = {"build_route": None} if new else {}
    trt.IBuilderConfig = type("IBuilderConfig", (), config | ({"set_compute_capability": None} if rtx else {}))
    if major != 8:
        trt.IProgressMonitor = type("IProgressMonitor", (), {})
        trt.IPluginV3 = type("IPluginV3", (), {})
    if not new:
        trt.IInt8EntropyCalibrator2 = type("IInt8EntropyCalibrator2", (), {})
        trt.IAlgorithmSelector = type("IAlgorithmSelector", (), {})

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def deserialize_cuda_engine(self, content: bytes) -> Any:
            if fails:
                self.logger.log(_Logger.Severity.ERROR, fails)
                return None
            return Engine(trt, gpu, by_data)

    if rtx:
        Runtime.get_engine_validity = None
    trt.Runtime = Runtime
    _add_builder(trt, version)
    return trt


# Building: what was asked for is taken down on `trt.config` and `trt.network`


def _add_builder(trt: ModuleType, version: str) -> None:
    trt.DataType = enum.Enum("DataType", ["FLOAT", "HALF", "BF16", "INT8", "INT32"])
    trt.LayerType = enum.Enum("LayerType", ["CONSTANT", "SHAPE", "ELEMENTWISE"])
    trt.MemoryPoolType = _enum("MemoryPoolType", "WORKSPACE", "DLA_MANAGED_SRAM")
    trt.TacticSource = _enum("TacticSource", "CUBLAS", "CUBLAS_LT", "CUDNN")

    class Config:
        num_optimization_profiles = 0

        def __init__(self) -> None:
            self.flags, self.pools, self.profiles, self.cache = {"TF32"}, {}, [], None

        def set_flag(self, flag: Any) -> None:
            self.flags.add(flag.name)

        def clear_flag(self, flag: Any) -> None:
            self.flags.discard(flag.name)

        def set_memory_pool_limit(self, pool: Any, size: int) -> None:
            self.pools[pool.name] = size

        def get_tactic_sources(self) -> int:
            return 0

        def set_tactic_sources(self, bits: int) -> None:
            self.tactic_sources = bits

        def add_optimization_profile(self, profile: Any) -> None:
            self.profiles.append(profile.shapes)

        def create_timing_cache(self, content: bytes) -> Any:
            return None if content.startswith(b"foreign") else content

        def set_timing_cache(self, cache: Any, ignore: bool) -> bool:
            self.cache = cache
            return True

        def get_timing_cache(self) -> Any:
            return type("Cache", (), {"serialize": lambda cache: (self.cache or b"") + b"+timed"})()

    class Profile:
        def __init__(self) -> None:
            self.shapes: dict[str, Any] = {}

        def set_shape(self, name: str, *bounds: Any) -> None:
            self.shapes[name] = bounds

    class Builder:
        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def create_network(self, flags: int) -> Any:
            trt.creation = {
                name for name, flag in trt.NetworkDefinitionCreationFlag.__members__.items() if flags >> flag & 1
            }
            trt.network = Network(trt)
            return trt.network

        def create_builder_config(self) -> Any:
            trt.config = Config()
            return trt.config

        def create_optimization_profile(self) -> Any:
            return Profile()

        def build_serialized_network(self, network: Any, config: Any) -> bytes | None:
            if network.layers[0].name == "/broken":
                self.logger.log(_Logger.Severity.ERROR, "10: Could not find any implementation for node /broken")
                return None
            return plan(version)

    class OnnxParser:
        num_errors = 0

        def __init__(self, network: Any, logger: Any) -> None:
            self.network = network

        def parse_from_file(self, path: str) -> bool:
            self.network.fill(onnx.load(path))
            return True

    trt.Builder, trt.OnnxParser = Builder, OnnxParser


class Tensor:
    is_shape_tensor = False

    def __init__(self, name: str, shape: tuple[int, ...], dtype: Any) -> None:
        self.name, self.shape, self.dtype = name, shape, dtype


class Layer:
    """Of an ONNX node; `asked` is what was set on it."""

    num_outputs = 1

    def __init__(self, name: str, metadata: str, kind: Any, output: Tensor, inputs: Sequence[Tensor] = ()) -> None:
        object.__setattr__(self, "asked", {})
        self.__dict__.update(
            name=name, metadata=metadata, type=kind, output=output, inputs=inputs, num_inputs=len(inputs)
        )

    def __setattr__(self, name: str, value: Any) -> None:
        self.asked[name] = value

    def get_input(self, index: int) -> Tensor:
        return self.inputs[index]

    def get_output(self, index: int) -> Tensor:
        return self.output

    def set_output_type(self, index: int, dtype: Any) -> None:
        self.asked["output"] = dtype


class Network:
    def __init__(self, trt: ModuleType) -> None:
        self.trt, self.inputs, self.layers, self.marked = trt, [], [], []

    def fill(self, model: onnx.ModelProto) -> None:
        """A constant for each initialiser, a layer for each node."""
        graph, trt = model.graph, self.trt
        self.types = {tensor.data_type for tensor in graph.initializer}
        for value in graph.input:
            dims = value.type.tensor_type.shape.dim
            self.inputs.append(Tensor(value.name, tuple(dim.dim_value or -1 for dim in dims), trt.DataType.FLOAT))
        for node in graph.node:
            kind = trt.LayerType.ELEMENTWISE
            metadata = f"[ONNX Layer: {node.name}]"
            constant = Tensor(f"{node.name}:c", (), trt.DataType.FLOAT)
            self.layers.append(Layer(f"(Unnamed) {node.name}", metadata, trt.LayerType.CONSTANT, constant))
            output = Tensor(node.output[0], (-1, 8), trt.DataType.FLOAT)
            self.layers.append(Layer(node.name, metadata, kind, output, (constant,)))
        self.marked = [Tensor(value.name, (), None) for value in graph.output]

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def num_outputs(self) -> int:
        return len(self.marked)

    def get_input(self, index: int) -> Tensor:
        return self.inputs[index]

    def get_layer(self, index: int) -> Layer:
        return self.layers[index]

    def get_output(self, index: int) -> Tensor:
        return self.marked[index]

    def mark_output(self, tensor: Tensor) -> None:
        self.marked.append(tensor)


class Engine:
    profiling_verbosity = 1
    num_io_tensors = 2
    num_optimization_profiles = 1

    def __init__(self, trt: ModuleType, gpu: Any, by_data: bool = False) -> None:
        self._trt, self._gpu, self._by_data = trt, gpu, by_data
        self._context: weakref.ref[Context] | None = None

    def get_tensor_name(self, index: int) -> str:
        return "xy"[index]

    def get_tensor_dtype(self, name: str) -> str:
        return "DataType.FLOAT"

    def get_tensor_shape(self, name: str) -> tuple[int, int]:
        return -1, 4

    def get_tensor_mode(self, name: str) -> Any:
        return self._trt.TensorIOMode.INPUT if name == "x" else self._trt.TensorIOMode.OUTPUT

    def get_tensor_location(self, name: str) -> Any:
        return self._trt.TensorLocation.DEVICE

    def is_shape_inference_io(self, name: str) -> bool:
        return False

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, int]]:
        return [(1, 4), (4, 4), (8, 4)]

    def create_execution_context(self) -> Context:
        """Before TensorRT 10 the opt_profile is the first context's for as long as that one lives."""
        taken = self._context is not None and self._context() is not None and self._trt.__version__.startswith("8")
        made = Context(self._gpu, taken, self._by_data)
        self._context = weakref.ref(made)
        return made

    def create_engine_inspector(self) -> Any:
        class Inspector:
            execution_context = None

            def get_engine_information(self, layout: Any) -> str:
                return '{"Layers": [{"Name": "twice", "TacticName": "scale_f32", "Metadata": "[ONNX Layer: /twice]"}]}'

        return Inspector()


class Context:
    def __init__(self, gpu: Any, taken: bool = False, by_data: bool = False) -> None:
        self._gpu, self._taken, self._by_data = gpu, taken, by_data
        self.profiler, self._addresses, self._shape, self._allocator = None, {}, (0, 0), None

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        return profile == 0

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shape = tuple(shape)
        return not self._taken

    def infer_shapes(self) -> list[str]:
        return []

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, 4) if self._by_data and name == "y" else self._shape

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def set_output_allocator(self, name: str, allocator: Any) -> bool:
        self._allocator = allocator
        return True

    def execute_async_v3(self, stream: int) -> bool:
        count = self._shape[0] * self._shape[1]
        if self._by_data:
            self._addresses["y"] = self._allocator.reallocate_output("y", 0, 4 * count, 256)
            self._allocator.notify_shape("y", self._shape)
        ctypes.memmove(self._addresses["y"], self._addresses["x"], 4 * count)
        driver = self._gpu.device.driver
        function = c_void_p()
        driver.call("cuModuleGetFunction", byref(function), None, b"scale")
        values = c_uint64(self._addresses["y"]), c_float(2), c_int(count)
        parameters = (c_void_p * 3)(*(cast(pointer(value), c_void_p) for value in values))
        driver.call("cuLaunchKernel", function, 1, 1, 1, 32, 1, 1, 0, stream, parameters, None)
        if self.profiler is not None:
            self.profiler.report_layer_time("twice", 0.25)
        return True
