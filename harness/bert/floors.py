"""What memory and arithmetic need at the least for an encoder's plan, operation by operation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from harness.bert.plan import BertPlan, Operation
from kernels.plan import Launch, Step

TILE = 128  # rows and columns of a product that a multiprocessor takes at a time, about


class Peaks(Protocol):
    """What a card reaches: bytes a second of a copy, FLOP/s of a large product, by precision."""

    @property
    def bytes_per_s(self) -> float: ...

    @property
    def flop_per_s(self) -> Mapping[str, float]: ...


@dataclass(frozen=True)
class Floor:
    """All operations of a name: `count` of them, `launches` in all, `blocks` in a launch of the last (tiles of 128 x 128
    where it is a product), bytes and FLOPs of all together, and the nanoseconds that they need, None without peaks."""

    operation: str
    count: int
    launches: int
    blocks: int
    bytes: int
    flops: int
    bound_ns: float | None

    def as_row(self) -> dict[str, Any]:
        return asdict(self)


def floors(made: BertPlan, peaks: Peaks | None) -> tuple[Floor, ...]:
    """A row for each name, in the order of their first use."""
    alike: dict[str, list[Operation]] = {}
    for one in made.operations:
        alike.setdefault(one.name, []).append(one)
    return tuple(_floor(made, some, peaks) for some in alike.values())


def bound_ns(made: BertPlan, peaks: Peaks | None) -> float | None:
    """Nanoseconds of the whole plan, were every operation as fast as memory or arithmetic lets it."""
    return None if peaks is None else sum(_bound_ns(one, peaks) for one in made.operations)


def _floor(made: BertPlan, some: list[Operation], peaks: Peaks | None) -> Floor:
    steps = [step for one in some for step in one.steps]
    return Floor(
        some[0].name, len(some), len(steps), blocks(made.plan.steps[steps[-1]]), sum(one.bytes for one in some),
        sum(one.flops for one in some), None if peaks is None else sum(_bound_ns(one, peaks) for one in some),
    )  # fmt: skip


def _bound_ns(one: Operation, peaks: Peaks) -> float:
    """TF32 has half of FP16's rate where it was not measured, BF16 the same."""
    known = peaks.flop_per_s
    rate = known.get(one.precision) or known["fp16"] / (2 if one.precision == "tf32" else 1)
    return max(one.bytes / peaks.bytes_per_s, one.flops / rate) * 1e9


def blocks(step: Step) -> int:
    """Blocks of a launch, or tiles of a product: what is spread over the multiprocessors."""
    return math.prod(step.grid) if isinstance(step, Launch) else math.ceil(step.m / TILE) * math.ceil(step.n / TILE)
