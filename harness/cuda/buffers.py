"""Arrays on the device: named, poisoned before they are written, with guard zones around them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.cuda.device import Device, Memory
from harness.errors import UsageError

Array = np.ndarray[Any, Any]

POISON = 0xFF  # NaN in every floating-point type, -1 in every signed integer
GUARD_BYTE = 0xA5
GUARD_BYTES = 4096  # on each side; a multiple of the allocator's alignment, so that the data stays aligned


@dataclass(frozen=True)
class Overrun:
    """A guard zone that was written to. `start` counts bytes from the buffer's first one, negative before it."""

    buffer: str
    start: int
    changed_bytes: int
    address: int


@dataclass(frozen=True)
class _Place:
    memory: Memory
    guard: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    size: int

    @property
    def address(self) -> int:
        return self.memory.address + self.guard


class Buffers:
    """Copies of arrays in device memory, by name.

    `poison` names those whose content is replaced by 0xFF bytes; `guard` is the number of bytes around each.
    """

    def __init__(
        self, device: Device, arrays: Mapping[str, Array], *, poison: Iterable[str] = (), guard: int = 0
    ) -> None:
        poisoned = set(poison)
        if unknown := poisoned - arrays.keys():
            raise UsageError(f"no array to poison named {', '.join(sorted(unknown))}; there are {', '.join(arrays)}")
        if guard % 256:
            raise UsageError(f"a guard zone of {guard} bytes would move the data off its alignment of 256")
        self.device = device
        self._places = {name: self._place(array, name in poisoned, guard) for name, array in arrays.items()}
        device.synchronize()  # a stream of its own would not wait for what fills them

    @property
    def addresses(self) -> dict[str, int]:
        """Where each array begins."""
        return {name: place.address for name, place in self._places.items()}

    @property
    def nbytes(self) -> int:
        return sum(place.size for place in self._places.values())

    def read(self) -> dict[str, Array]:
        """What the arrays hold now; all that was launched is waited for."""
        self.device.synchronize()
        return {name: self._read(place) for name, place in self._places.items()}

    def overruns(self) -> list[Overrun]:
        """Guard zones written to since the last look, each repaired, so that the next look finds only what is new."""
        found = [overrun for name, place in self._places.items() for overrun in self._look(name, place)]
        for name in {overrun.buffer for overrun in found}:
            self._draw_guards(self._places[name])
        return found

    def _place(self, array: Array, poisoned: bool, guard: int) -> _Place:
        memory = self.device.allocate(array.nbytes + 2 * guard)
        place = _Place(memory, guard, array.shape, array.dtype, array.nbytes)
        self._draw_guards(place)
        if poisoned:
            self.device.fill(place.address, POISON, place.size)
        else:
            self.device.write(place.address, array)
        return place

    def _draw_guards(self, place: _Place) -> None:
        for start in (-place.guard, place.size):
            self.device.fill(place.address + start, GUARD_BYTE, place.guard)

    def _read(self, place: _Place) -> Array:
        array = np.empty(place.shape, place.dtype)
        self.device.read(place.address, array)
        return array

    def _look(self, name: str, place: _Place) -> list[Overrun]:
        found = []
        for start in (-place.guard, place.size):
            zone = np.empty(place.guard, np.uint8)
            self.device.read(place.address + start, zone)
            changed = np.flatnonzero(zone != GUARD_BYTE)
            if len(changed):
                first = start + int(changed[0])
                found.append(Overrun(name, first, len(changed), place.address + first))
        return found
