"""Plans put together: buffers renamed so that one operation's output is the next one's input."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from kernels.plan import Argument, Buffer, Gemm, Plan, Pointer, Role, Step


def renamed(plan: Plan, names: Mapping[str, str]) -> Plan:
    """The plan over buffers of other names; those that `names` leaves out keep theirs."""
    buffers = tuple(replace(buffer, name=names.get(buffer.name, buffer.name)) for buffer in plan.buffers)
    return Plan(buffers, tuple(_renamed(step, names) for step in plan.steps))


def composed(parts: Iterable[Plan], roles: Mapping[str, Role]) -> Plan:
    """The steps of all parts in order. A buffer's role is that of `roles`, and "scratch" where it is not named.

    A scratch buffer that parts give different sizes is as large as the largest asks for. Raises ValueError if a name
    stands for different types, or a buffer that is not scratch for different sizes.
    """
    found: dict[str, Buffer] = {}
    steps: list[Step] = []
    for part in parts:
        steps += part.steps
        for buffer in part.buffers:
            found[buffer.name] = _larger(
                found.get(buffer.name), replace(buffer, role=roles.get(buffer.name, "scratch"))
            )
    return Plan(tuple(found.values()), tuple(steps))


def _larger(known: Buffer | None, buffer: Buffer) -> Buffer:
    if known is None:
        return buffer
    sizes = [int(np.prod(one.shape, dtype=np.int64)) for one in (known, buffer)]
    if known.dtype != buffer.dtype or (buffer.role != "scratch" and sizes[0] != sizes[1]):
        raise ValueError(f"buffer {buffer.name}: {known.dtype} {known.shape} in one part, "
                         f"{buffer.dtype} {buffer.shape} in another")  # fmt: skip
    return known if sizes[0] >= sizes[1] else buffer


def _renamed(step: Step, names: Mapping[str, str]) -> Step:
    if isinstance(step, Gemm):
        bias, c = (None if one is None else _pointer(one, names) for one in (step.bias, step.c))
        a, b, d = (_pointer(one, names) for one in (step.a, step.b, step.d))
        return replace(step, a=a, b=b, c=c, d=d, bias=bias)
    return replace(step, arguments=tuple(_argument(argument, names) for argument in step.arguments))


def _argument(argument: Argument, names: Mapping[str, str]) -> Argument:
    return _pointer(argument, names) if isinstance(argument, Pointer) else argument


def _pointer(pointer: Pointer, names: Mapping[str, str]) -> Pointer:
    return pointer if pointer.buffer is None else replace(pointer, buffer=names.get(pointer.buffer, pointer.buffer))
