"""Our kernels as TensorRT plugins: NVIDIA's names, IPluginV3's versions, for TensorRT 10 and later.

`register(trt)` makes them known; a network then asks for them as it would for NVIDIA's, also for those that NVIDIA
dropped (FC, GELU). `trt` is the module, `tensorrt` or `tensorrt_rtx`. TensorRT 8.6 has no Python plugins: its own
creators stand under the same names there.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np

from harness.cuda import device as gpu
from harness.cuda import launch
from harness.engines.plugin_ops.operation import Array, Call, Format, Operation, Tensor, Work
from harness.engines.plugin_ops.table import OPERATIONS
from harness.errors import UsageError
from kernels.spec import size_bytes

_LEAST = 10  # TensorRT's major version that has IPluginV3
_registered: list[Any] = []  # TensorRT holds no reference to a Python creator


def register(trt: ModuleType, namespace: str = "") -> tuple[str, ...]:
    """Register every plugin; returns "name version" of those that were not there before.

    One that is already registered (NVIDIA's, from libnvinfer_plugin) is left as it is: give a namespace of its own to
    have both. Raises UsageError for a TensorRT without IPluginV3.
    """
    if not hasattr(trt, "IPluginV3"):
        raise UsageError(
            f"TensorRT {trt.__version__} has no plugins in Python",
            hint=f"TensorRT {_LEAST} or later; NVIDIA's serve here",
        )
    registry = trt.get_plugin_registry()
    made = []
    for operation in OPERATIONS:
        if registry.get_creator(operation.name, operation.version, namespace) is not None:
            continue
        creator = creator_of(trt, operation, namespace)
        if registry.register_creator(creator, namespace):
            _registered.append(creator)
            made.append(f"{operation.name} {operation.version}")
    return tuple(made)


def creator_of(trt: ModuleType, operation: type[Operation], namespace: str = "") -> Any:
    """An IPluginCreatorV3One of one operation."""
    return _classes(trt)[1](operation, namespace)


def read_fields(collection: Sequence[Any]) -> dict[str, Array]:
    """A PluginFieldCollection as arrays of its own, for TensorRT's go away."""
    return {field.name: np.array(field.data) for field in collection}


class Executor:
    """Runs an operation on pointers that TensorRT hands over; compiles when a shape is seen first.

    The constants (weights, tables) lie on the device once for each form in which a plan wants them.
    """

    def __init__(self, operation: Operation) -> None:
        self.operation = operation
        self._ready: dict[Call, _Ready] = {}
        self._lock = threading.Lock()

    def enqueue(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], pointers: Sequence[int],
                stream: int) -> None:  # fmt: skip
        """Launch on `stream`, waiting for nothing; `pointers` are those of the inputs, then of the outputs."""
        ready = self.prepare(inputs, outputs)
        names = (*ready.work.inputs, *ready.work.outputs)
        addresses = {name: pointer for name, pointer in zip(names, pointers, strict=True) if name is not None}
        ready.prepared.launch_on({**ready.held_addresses, **addresses}, stream)

    def prepare(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> _Ready:
        call = Call(tuple(inputs), tuple(outputs), gpu.get().facts.compute_capability)
        with self._lock:
            if call not in self._ready:
                self._ready[call] = _get_ready(self.operation.work(call))
            return self._ready[call]


@dataclass(frozen=True)
class _Ready:
    work: Work
    prepared: launch.Prepared
    held: Mapping[str, gpu.Memory]  # constants and scratch

    @property
    def held_addresses(self) -> dict[str, int]:
        return {name: memory.address for name, memory in self.held.items()}


def _get_ready(work: Work) -> _Ready:
    device = gpu.get()
    device.use()
    held = {}
    for buffer in work.plan.buffers:
        if buffer.name in work.constants or buffer.role == "scratch":
            held[buffer.name] = device.allocate(size_bytes(buffer))
        if buffer.name in work.constants:
            device.write(held[buffer.name].address, np.ascontiguousarray(work.constants[buffer.name]))
    prepared = launch.prepare(work.plan.steps, launch.itemsizes_of(work.plan.buffers), device=device)
    return _Ready(work, prepared, held)


@dataclass(frozen=True)
class _Expressions:
    """TensorRT's arithmetic on extents, as `operation.Sizes`."""

    trt: ModuleType
    builder: Any

    def constant(self, value: int) -> Any:
        return self.builder.constant(value)

    def minus(self, extent: Any, value: int) -> Any:
        return self.builder.operation(self.trt.DimensionOperation.SUB, extent, self.builder.constant(value))


def dtypes_of(trt: ModuleType) -> dict[Any, str]:
    """TensorRT's data types by our names."""
    names = {"float32": "float32", "float16": "float16", "bfloat16": "bfloat16", "int8": "int8", "int32": "int32"}
    return {getattr(trt, theirs): ours for theirs, ours in names.items() if hasattr(trt, theirs)}


def tensor_of(trt: ModuleType, description: Any) -> Tensor:
    """A PluginTensorDesc, or a DynamicPluginTensorDesc around one."""
    held = getattr(description, "desc", description)
    formats: dict[Any, Format] = {trt.TensorFormat.LINEAR: "linear", trt.TensorFormat.CHW32: "chw32"}
    dtype = dtypes_of(trt).get(held.type, "other")
    return Tensor(
        dtype, tuple(held.dims), formats.get(held.format, "other"), float(held.scale) if dtype == "int8" else 1.0
    )


@cache
def _classes(trt: ModuleType) -> tuple[type[Any], type[Any]]:
    """The plugin's and the creator's class: they derive from TensorRT's, which may be one of two modules."""
    types = {dtype: kind for kind, dtype in dtypes_of(trt).items()}
    kinds = {np.dtype(np.float32): trt.PluginFieldType.FLOAT32, np.dtype(np.int32): trt.PluginFieldType.INT32}

    def field(name: str, array: Array) -> Any:
        return trt.PluginField(name, array, kinds[array.dtype])

    class Plugin(trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime):  # type: ignore[name-defined, misc]
        """One of ours, in TensorRT's terms; all that is particular to it is in its operation."""

        def __init__(self, operation: Operation, namespace: str) -> None:
            for base in (trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime):
                base.__init__(self)
            self.operation = operation
            self.executor = Executor(operation)
            self.kept = operation.fields  # TensorRT reads them after `get_fields_to_serialize` has returned
            self.plugin_name, self.plugin_version = operation.name, operation.version
            self.plugin_namespace, self.num_outputs = namespace, operation.outputs

        def get_capability_interface(self, kind: Any) -> Any:
            return self

        def clone(self) -> Any:
            return Plugin(self.operation, self.plugin_namespace)

        def get_output_data_types(self, input_types: Sequence[Any]) -> list[Any]:
            known = dtypes_of(trt)
            return [types[name] for name in self.operation.output_dtypes([known.get(t, "other") for t in input_types])]

        get_output_datatypes = get_output_data_types  # as TensorRT 10.0 calls it

        def get_output_shapes(self, inputs: Sequence[Any], shape_inputs: Sequence[Any], builder: Any) -> list[Any]:
            extents = [[dims[axis] for axis in range(len(dims))] for dims in inputs]
            shapes = self.operation.output_shapes(extents, _Expressions(trt, builder))
            return [trt.DimsExprs(shape) for shape in shapes]

        def supports_format_combination(self, position: int, in_out: Sequence[Any], inputs: int) -> bool:
            tensors = [tensor_of(trt, description) for description in in_out[: position + 1]]
            return self.operation.supports(position, tensors, inputs)

        def configure_plugin(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
            """Nothing: what depends on shapes is made when they are known."""

        def get_workspace_size(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
            return 0

        def get_valid_tactics(self) -> list[int]:
            return []

        def set_tactic(self, tactic: int) -> None:
            """There is one."""

        def on_shape_change(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
            """Compile now rather than in the first `enqueue`."""
            self.executor.prepare(*(tuple(tensor_of(trt, one) for one in side) for side in (inputs, outputs)))

        def attach_to_context(self, context: Any) -> Any:
            return self.clone()

        def get_fields_to_serialize(self) -> Any:
            return trt.PluginFieldCollection([field(name, array) for name, array in self.kept.items()])

        def enqueue(self, input_desc: Sequence[Any], output_desc: Sequence[Any], inputs: Sequence[int],
                    outputs: Sequence[int], workspace: int, stream: int) -> None:  # fmt: skip
            given, made = (tuple(tensor_of(trt, one) for one in side) for side in (input_desc, output_desc))
            self.executor.enqueue(given, made, [*inputs, *outputs], stream)

    class Creator(trt.IPluginCreatorV3One):  # type: ignore[name-defined, misc]
        """Makes plugins of one operation, from a network's fields or from those that an engine holds."""

        def __init__(self, operation: type[Operation], namespace: str) -> None:
            trt.IPluginCreatorV3One.__init__(self)
            self.operation = operation
            self.name, self.plugin_version, self.plugin_namespace = operation.name, operation.version, namespace
            self.kept = [np.zeros(0, kind) for kind in operation.field_types.values()]
            names = zip(operation.field_types, self.kept, strict=True)
            self.field_names = trt.PluginFieldCollection([field(name, array) for name, array in names])

        def create_plugin(self, name: str, fields: Any, phase: Any = None) -> Any:
            return Plugin(self.operation.of(read_fields(fields)), self.plugin_namespace)

    return Plugin, Creator
