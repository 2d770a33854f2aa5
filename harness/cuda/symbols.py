"""What a compiled image (a cubin) holds: its kernels, by the names that C++ gave them, and their machine code."""

from __future__ import annotations

import re
from struct import unpack_from

from harness.errors import UsageError

_ELF = b"\x7fELF"
_CODE = ".text."
_PART = re.compile(r"(\d+)(?=[A-Za-z_])")


def machine_code(image: bytes) -> dict[str, bytes]:
    """The code of each section that holds some, by the kernel's name as the linker sees it; nothing for what is no ELF."""
    if not image.startswith(_ELF):
        return {}
    (table,), (size, count, names) = unpack_from("<Q", image, 40), unpack_from("<HHH", image, 58)
    if not count:
        return {}
    headers = [unpack_from("<IIQQQQ", image, table + size * number) for number in range(count)]
    text = headers[names][4]
    found = {}
    for name, _, _, _, offset, length in headers:
        at = text + name
        title = image[at : image.index(b"\0", at)].decode("ascii", "replace")
        if title.startswith(_CODE):
            found[title.removeprefix(_CODE)] = image[offset : offset + length]
    return found


def symbol_of(image: bytes, entry: str) -> str:
    """The linker's name of the kernel `name` or `space::name<...>`: its own where it has C linkage.

    Raises UsageError where there are several of that name.
    """
    there = list(machine_code(image))
    if not there or entry in there:
        return entry
    path = entry.partition("<")[0].removeprefix("::").split("::")
    found = [name for name in there if _path(name)[-len(path) :] == path]
    if len(found) > 1:
        raise UsageError(
            f"{len(found)} kernels are called {entry}: {', '.join(found)}", hint="give them names of their own"
        )
    return found[0] if found else entry


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
