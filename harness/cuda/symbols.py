"""What a compiled image (a cubin) holds: kernels and variables, by the names that C++ gave them, and machine code."""

from __future__ import annotations

import re
from struct import iter_unpack, unpack_from
from typing import NamedTuple

from harness.errors import UsageError

_ELF = b"\x7fELF"
_CODE = ".text."
_SYMBOLS, _OBJECT = 2, 1  # the type of a section that is a table of symbols, and of a symbol that is a variable
_PART = re.compile(r"(\d+)(?=[A-Za-z_])")


def machine_code(image: bytes) -> dict[str, bytes]:
    """The code of each section that holds some, by the kernel's name as the linker sees it; nothing for what is no ELF."""
    return {one.name.removeprefix(_CODE): one.of(image) for one in _sections(image) if one.name.startswith(_CODE)}


def variables(image: bytes) -> tuple[str, ...]:
    """The linker's names of the variables in a GPU's memory; nothing for what is no ELF."""
    sections = _sections(image)
    return tuple(
        _text(image, sections[one.link].offset + name)
        for one in sections if one.kind == _SYMBOLS
        for name, info, _, _, _, size in iter_unpack("<IBBHQQ", one.of(image)) if info & 15 == _OBJECT and size
    )  # fmt: skip


class _Section(NamedTuple):
    name: str
    kind: int
    offset: int
    size: int
    link: int  # the section that belongs to it: a table's texts

    def of(self, image: bytes) -> bytes:
        return image[self.offset : self.offset + self.size]


def _sections(image: bytes) -> list[_Section]:
    if not image.startswith(_ELF):
        return []
    (table,), (size, count, names) = unpack_from("<Q", image, 40), unpack_from("<HHH", image, 58)
    headers = [unpack_from("<IIQQQQI", image, table + size * number) for number in range(count)]
    return [_Section(_text(image, headers[names][4] + name), kind, offset, length, link)
            for name, kind, _, _, offset, length, link in headers]  # fmt: skip


def _text(image: bytes, at: int) -> str:
    return image[at : image.index(b"\0", at)].decode("ascii", "replace")


def symbol_of(image: bytes, entry: str) -> str:
    """The linker's name of the kernel `name` or `space::name<...>`: its own where it has C linkage.

    Raises UsageError where there are several of that name.
    """
    return _named(list(machine_code(image)), entry, "kernels")


def variable_of(image: bytes, name: str) -> str:
    """The same of a `__constant__` or `__device__` variable."""
    return _named(list(variables(image)), name, "variables")


def _named(there: list[str], wanted: str, what: str) -> str:
    if not there or wanted in there:
        return wanted
    path = wanted.partition("<")[0].removeprefix("::").split("::")
    found = [name for name in there if _path(name)[-len(path) :] == path]
    if len(found) > 1:
        raise UsageError(
            f"{len(found)} {what} are called {wanted}: {', '.join(found)}", hint="give them names of their own"
        )
    return found[0] if found else wanted


def _path(symbol: str) -> list[str]:
    """The name in a mangled one, with its namespaces: `_ZN4acme4normIfEEvPT_` is acme::norm."""
    prefix = re.match(r"_Z(?:N|L|NL)?", symbol)
    at = prefix.end() if prefix else len(symbol)
    parts = []
    while found := _PART.match(symbol, at):
        at = found.end() + int(found[1])
        parts.append(symbol[found.end() : at])
        if not symbol.startswith("_ZN"):  # one name alone; what follows are the parameters
            break
    return parts
