"""The buffers of an emulated plan in one file, with guard zones around each, so that they outlive a program."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.errors import UsageError

GUARD = 16 * 1024  # bytes between buffers: a stray write up to here touches no other buffer
GUARD_BYTE = 0xCB
ALIGNMENT = 256  # as of cudaMalloc

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Place:
    """Where a buffer lies in the arena, in bytes."""

    name: str
    offset: int
    size: int


class Arena:
    """A file that holds all arrays; the emulated programs map the same file.

    `undefined` are the buffers that hold nothing until they are written. Beside the file stands another, `marks`, with a
    byte for each of its bytes: not 0 where an undefined buffer has been written, by a program or by a matrix product.
    """

    def __init__(self, path: Path, arrays: Mapping[str, Array], undefined: Collection[str] = ()) -> None:
        self.path = path
        self.places = tuple(_places(arrays))
        self.index = {place.name: number for number, place in enumerate(self.places)}
        self.bytes = arena_bytes(arrays)
        _reserve(path, self.bytes)
        self._memory = np.memmap(path, dtype=np.uint8, mode="r+", shape=(self.bytes,))
        self._fill_guards()
        self._shapes = {name: (array.dtype, array.shape) for name, array in arrays.items()}
        for name, array in arrays.items():
            self[name][...] = array
        self.undefined = frozenset(undefined) & self.index.keys()
        self.marks = path.with_suffix(".marks") if self.undefined else None
        if self.marks is not None:
            self._written = np.memmap(self.marks, dtype=np.uint8, mode="w+", shape=(self.bytes,))  # zeros take no room

    def _fill_guards(self) -> None:
        begin = 0
        for place in self.places:
            self._memory[begin : place.offset] = GUARD_BYTE
            begin = place.offset + place.size
        self._memory[begin:] = GUARD_BYTE

    def __getitem__(self, name: str) -> Array:
        """A view of a buffer, as the array that it was given as."""
        place = self.places[self.index[name]]
        dtype, shape = self._shapes[name]
        return np.asarray(self._memory[place.offset : place.offset + place.size]).view(dtype).reshape(shape)

    def mark(self, name: str, begin: int, size: int) -> None:
        """So many bytes of a buffer, from `begin`, have been written."""
        if name in self.undefined:
            self._marks_of(name, begin, size)[...] = 1

    def first_undefined(self, name: str, begin: int, size: int) -> int | None:
        """The first of so many bytes of a buffer that nothing has written."""
        if name not in self.undefined or self._marks_of(name, begin, size).all():
            return None
        return begin + int(np.argmin(self._marks_of(name, begin, size)))

    def _marks_of(self, name: str, begin: int, size: int) -> Array:
        start = self.places[self.index[name]].offset + begin
        return self._written[start : start + size]

    def copies(self) -> dict[str, Array]:
        return {place.name: self[place.name].copy() for place in self.places}


def arena_bytes(arrays: Mapping[str, Array]) -> int:
    """The size of the file: all buffers with their guard zones, in whole pages."""
    places = _places(arrays)
    last = places[-1] if places else Place("", 0, 0)
    return -(-(last.offset + last.size + GUARD) // 4096) * 4096


def _reserve(path: Path, size: int) -> None:
    """Take the space at once: a disk that is full later would end the process that touches the mapping."""
    try:
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        raise UsageError(
            f"there is no room for {size} bytes of buffers: {error.strerror}", hint="TMPDIR=FOLDER, on a disk with room"
        ) from error


def _places(arrays: Mapping[str, Array]) -> list[Place]:
    places, at = [], GUARD
    for name, array in arrays.items():
        places.append(Place(name, at, array.nbytes))
        at = -(-(at + array.nbytes + GUARD) // ALIGNMENT) * ALIGNMENT
    return places
