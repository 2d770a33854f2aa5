"""What is known of one operation: plugin, cases, the plan that runs it, its float64 twin, and when it is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from kernels import numbers
from kernels.plan import Buffer, Plan

Arrays = dict[str, np.ndarray]  # by buffer name; bfloat16 as uint16


class Case(Protocol):
    """One problem to solve: a frozen dataclass of shapes, dtype and options, made by the operation's own module."""

    @property
    def label(self) -> str:
        """Short and unique among the operation's cases: "4096x768 float16 bias"."""
        ...

    @property
    def dtype(self) -> str:
        """NumPy's name of the main element type, or "bfloat16"."""
        ...


C = TypeVar("C", bound=Case)


@dataclass(frozen=True)
class KernelSpec(Generic[C]):
    """An operation. Every callable is pure, and takes a case that `refuse` let pass.

    `inputs` makes the arrays of all buffers that are read ("in", "inout") from fresh random numbers. `reference` takes
    those and gives every output in float64. `bound` is the largest absolute error that each element of each output may
    have: what its dtype and float32 sums explain, given the inputs. `peer`, where there is one, is the formula as it is
    usually written, in float32 or narrower: its error stands beside ours.
    """

    name: str  # what `probe kernels test NAME` takes
    summary: str
    dtypes: tuple[str, ...]
    cases: tuple[C, ...]  # what `probe kernels test` runs
    bench: tuple[C, ...]  # what `probe kernels bench` runs
    plan: Callable[[C], Plan]
    inputs: Callable[[C, np.random.Generator], Arrays]
    reference: Callable[[C, Arrays], Arrays]
    bound: Callable[[C, Arrays, Arrays], Arrays]  # (case, inputs, reference's outputs)
    refuse: Callable[[C], str | None]  # why a case cannot be computed, or None
    flops: Callable[[C], int]  # what the definition asks for, not what a kernel happens to do
    plugin: str | None = None  # NVIDIA's name
    versions: Mapping[str, str] = field(default_factory=dict)  # legacy plugin version -> IPluginV3's
    fields: tuple[str, ...] = ()  # of the plugin
    peer: Callable[[C, Arrays], Arrays] | None = None
    bytes: Callable[[C], int] | None = None  # least memory traffic; None: every input and output once

    def traffic(self, case: C) -> int:
        """The least that has to go through memory, in bytes."""
        return self.bytes(case) if self.bytes else traffic(self.plan(case))

    def outputs(self, case: C) -> tuple[Buffer, ...]:
        return tuple(buffer for buffer in self.plan(case).buffers if buffer.role in ("out", "inout"))


class Refused(ValueError):
    """A case that is not computed; the message says why and what would be."""


def checked(spec: KernelSpec[Any], case: Any) -> Plan:
    """The plan of a case; Refused if the operation has none for it."""
    if message := spec.refuse(case):
        raise Refused(f"{spec.name}, {case.label}: {message}")
    return spec.plan(case)


def traffic(plan: Plan) -> int:
    """Bytes of all inputs and outputs, each once; scratch could stay in a cache."""
    return sum(size_bytes(b) * (2 if b.role == "inout" else 1) for b in plan.buffers if b.role != "scratch")


def size_bytes(buffer: Buffer) -> int:
    return int(np.prod(buffer.shape, dtype=np.int64)) * numbers.storage(buffer.dtype).itemsize
