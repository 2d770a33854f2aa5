"""NVTX ranges in the domain "probe": what a profiler's timeline calls a stretch of work; nothing without nvtx.

`with ranges.range("parse"):` marks a stretch of work once. What runs often is prepared once, `marked =
ranges.prepare("skip_layernorm", {"grid_x": 4})`, and entered each time, `with marked:`, for the price of one call.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Mapping
from itertools import repeat
from typing import Any, Protocol

import numpy as np

from harness.errors import DependencyMissing
from harness.optional import load

DOMAIN = "probe"
Payload = int | float | Mapping[str, int | float | str]


class Marked(Protocol):
    """A stretch of work with a name; may be entered any number of times."""

    def __enter__(self) -> object: ...

    def __exit__(self, *error: object) -> object: ...


class _Range:
    """A range whose name, category and payload were handed to NVTX when it was made: entering it is one call."""

    __slots__ = ("attributes", "pop_range", "push_range")

    def __init__(self, domain: Any, attributes: Any) -> None:
        self.push_range, self.pop_range, self.attributes = domain.push_range, domain.pop_range, attributes

    def __enter__(self) -> None:
        self.push_range(self.attributes)

    def __exit__(self, *error: object) -> None:
        self.pop_range()


class _Nothing:
    """What takes the place of a range where no tool listens: both methods are functions in C that return nothing true,
    which halves the cost of a Python method called around every launch."""

    __slots__ = ()
    __enter__ = "".format
    __exit__ = "".format


NOTHING = _Nothing()


@functools.cache
def _domain() -> Any:
    """NVTX's domain; None without nvtx, and where no tool is attached to this process (they attach as it starts)."""
    try:
        nvtx = load("nvtx")
    except DependencyMissing:
        return None
    domain = nvtx.get_domain(DOMAIN)
    return domain if type(domain).__name__ != "DummyDomain" else None


def prepare(name: str, payload: Payload | None = None, *, category: str | None = None) -> Marked:
    """A range to enter many times. `payload`: a number, or numbers and texts by name (a launch's parameters).

    An nvtx too old for named payloads gets them in the range's name, behind it, in brackets.
    """
    domain = _domain()
    if domain is None:
        return NOTHING
    if isinstance(payload, Mapping):
        try:
            attributes = domain.get_event_attributes(message=name, category=category, payload=structure(payload))
        except (TypeError, ValueError):  # nvtx before named payloads takes numbers alone
            listed = ", ".join(f"{key}={value}" for key, value in payload.items())
            attributes = domain.get_event_attributes(message=f"{name} [{listed}]", category=category)
    else:
        attributes = domain.get_event_attributes(message=name, category=category, payload=payload)
    return _Range(domain, attributes)


def range(name: str, payload: Payload | None = None, *, category: str | None = None) -> Marked:  # noqa: A001
    """A range to enter once: `with ranges.range("parse"): ...`."""
    return prepare(name, payload, category=category) if _domain() is not None else NOTHING


def push(name: str, payload: Payload | None = None) -> None:
    """Begin a range that `pop` ends, on the same thread."""
    range(name, payload).__enter__()


def pop() -> None:
    """End the range of this thread that was pushed last."""
    domain = _domain()
    if domain is not None:
        domain.pop_range()


def structure(payload: Mapping[str, int | float | str]) -> np.ndarray[Any, Any]:
    """A mapping as the structured scalar that NVTX describes to the tool: 64-bit numbers, texts of fixed length."""
    kinds = [(key, _kind(value)) for key, value in payload.items()]
    return np.array(tuple(payload.values()), dtype=kinds)


def _kind(value: int | float | str) -> str:
    if isinstance(value, str):
        return f"U{max(1, len(value))}"
    if isinstance(value, int):
        return "i8" if value < 1 << 63 else "u8"
    return "f8"


def cost_ns(repeats: int = 20_000, rounds: int = 7) -> dict[str, float]:
    """Nanoseconds that a range costs in this process as it is, tool attached or not: medians over `rounds`.

    `prepared`: a range made once and entered again; `named`: made and entered each time. The loop is taken off.
    """
    prepared = prepare("cost of a range")

    def enter_prepared() -> None:
        with prepared:
            pass

    def enter_named() -> None:
        with range("cost of a range"):
            pass

    empty = _loop_ns(_do_nothing, repeats, rounds)
    costs = {"prepared": enter_prepared, "named": enter_named}
    return {name: max(0.0, _loop_ns(enter, repeats, rounds) - empty) for name, enter in costs.items()}


def listening() -> bool:
    """Whether a tool receives this process's ranges."""
    return _domain() is not None


def _do_nothing() -> None:
    pass


def _loop_ns(enter: Callable[[], None], repeats: int, rounds: int) -> float:
    times = []
    for _ in repeat(None, rounds):
        start = time.perf_counter_ns()
        for _ in repeat(None, repeats):
            enter()
        times.append((time.perf_counter_ns() - start) / repeats)
    return statistics.median(times)
