"""A BERT plugin as an operation: fields, shapes, formats, and the plan that does its work.

Versions are IPluginV3's (NVIDIA's legacy numbers are in each kernel's spec). Tensors have NVIDIA's shapes: fixed length
[S, B, E, 1, 1], variable length [T, E, 1, 1], INT8 interleaved [1, E, T, 1]. INT8 is in the format CHW32, which of a
tensor whose last two extents are 1 is the row-major order: 32 channels of a token, then its next 32.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import numpy as np

from harness.errors import UsageError
from kernels.plan import Plan
from kernels.spec import KernelSpec, Refused, checked

Array = np.ndarray[Any, Any]
Fields = Mapping[str, Array]
FieldTypes = Mapping[str, type[np.generic]]
Format = Literal["linear", "chw32", "other"]

TYPE_IDS = {0: "float32", 1: "float16", 2: "int8", 7: "bfloat16"}  # TensorRT's own numbers of its data types


@dataclass(frozen=True)
class Tensor:
    """An input or output: NumPy's dtype name (or "bfloat16"), shape (-1: not known yet), format, INT8 scale."""

    dtype: str
    shape: tuple[int, ...]
    format: Format = "linear"
    scale: float = 1.0


def fields_of(ints: str = "", floats: str = "") -> FieldTypes:
    """The types of fields whose names are given with spaces between."""
    return {**dict.fromkeys(ints.split(), np.int32), **dict.fromkeys(floats.split(), np.float32)}


class Sizes(Protocol):
    """Arithmetic on extents, which are TensorRT's expressions while a network is built and ints in tests."""

    def constant(self, value: int) -> Any: ...

    def minus(self, extent: Any, value: int) -> Any: ...


@dataclass(frozen=True)
class Call:
    """Tensors of certain shapes on a device; `capability` is its compute capability, by default what all kernels need."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    capability: tuple[int, int] = (8, 0)


@dataclass(frozen=True)
class Work:
    """A plan; which of its buffers each input and output is (None: not read); arrays for the rest."""

    plan: Plan
    inputs: tuple[str | None, ...]
    outputs: tuple[str, ...]
    constants: Mapping[str, Array]


@dataclass(frozen=True)
class Operation(ABC):
    """A configured plugin. Equal fields make equal operations, so that serialising loses nothing."""

    name: ClassVar[str]
    version: ClassVar[str]
    field_types: ClassVar[FieldTypes]  # of all that may be given
    needed: ClassVar[tuple[str, ...]] = ()
    outputs: ClassVar[int] = 1

    values: tuple[tuple[str, tuple[int, ...], bytes], ...]  # name, shape, little-endian bytes: hashable

    @classmethod
    def of(cls, fields: Fields) -> Operation:
        """Raises UsageError for a field that is missing, unknown or out of range."""
        title = f"{cls.name} version {cls.version}"
        if unknown := sorted(fields.keys() - cls.field_types.keys()):
            raise UsageError(
                f"{title}: no such field: {', '.join(unknown)}", hint=f"one of {', '.join(cls.field_types)}"
            )
        if missing := [name for name in cls.needed if name not in fields or fields[name].size == 0]:
            raise UsageError(f"{title}: expected the field {', '.join(missing)}, got {', '.join(fields) or 'none'}")
        kept = {
            name: np.ascontiguousarray(array, cls.field_types[name]) for name, array in fields.items() if array.size
        }
        made = cls(tuple((name, array.shape, array.tobytes()) for name, array in sorted(kept.items())))
        if message := made.refuse():
            raise UsageError(f"{title}: {message}")
        return made

    @property
    def fields(self) -> dict[str, Array]:
        """What `of` takes: the plugin's state, as it is serialised."""
        return {name: np.frombuffer(held, self.field_types[name]).reshape(shape) for name, shape, held in self.values}

    def number(self, name: str, default: float = 0) -> float:
        array = self.fields.get(name)
        return default if array is None else float(array.reshape(-1)[0])

    def vector(self, name: str) -> Array:
        return self.fields[name].reshape(-1)

    @property
    def dtype(self) -> str:
        """Of the main tensors, by `type_id`."""
        return TYPE_IDS[int(self.number("type_id"))]

    @property
    def format(self) -> Format:
        """Of the main tensors."""
        return "chw32" if self.dtype == "int8" else "linear"

    def refuse(self) -> str | None:
        """Why these fields cannot be served, or None."""
        type_id = int(self.number("type_id"))
        return None if type_id in TYPE_IDS else f"type_id: expected one of {sorted(TYPE_IDS)}, got {type_id}"

    def output_dtypes(self, inputs: Sequence[str]) -> list[str]:
        return [self.dtype]

    def output_shapes(self, inputs: Sequence[Sequence[Any]], sizes: Sizes) -> list[list[Any]]:
        """Extents of each output; by default those of the first input."""
        return [list(inputs[0]) for _ in range(self.outputs)]

    def supports(self, position: int, tensors: Sequence[Tensor], inputs: int) -> bool:
        """Whether the tensor at `position` may be what it is, given those before it."""
        here = tensors[position]
        return here.dtype == self.dtype and here.format == self.format

    @abstractmethod
    def work(self, call: Call) -> Work:
        """What is to be run. Raises UsageError for what no kernel does."""


def plan_of(spec: KernelSpec[Any], case: Any) -> Plan:
    try:
        return checked(spec, case)
    except Refused as error:
        raise UsageError(str(error)) from error
