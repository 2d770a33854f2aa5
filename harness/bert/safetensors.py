"""Read a safetensors file: 8 bytes of header length, a JSON header, then raw data, which is memory-mapped."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from harness.errors import ParseError, UsageError

HEADER_LIMIT = 100 << 20  # bytes; the format's own limit, so that a damaged length does not ask for all memory

DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(kind)
    for name, kind in {
        "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2",
        "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
        "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?",
    }.items()
}  # fmt: skip


def read(path: Path | str) -> dict[str, np.ndarray]:
    """Tensor name -> array of the stored shape and dtype, a read-only view of the mapped file (BF16: a float32 copy).

    Raises UsageError if there is no such file, ParseError if the header is damaged or data is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"{path} does not exist", hint="give the path of a .safetensors file")
    header, start = _read_header(path)
    data: np.ndarray = (
        np.memmap(path, dtype=np.uint8, mode="r", offset=start)
        if path.stat().st_size > start
        else np.empty(0, np.uint8)
    )
    return {name: _view(path, name, entry, data) for name, entry in header.items() if name != "__metadata__"}


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The JSON header, and the offset at which the data begins."""
    with path.open("rb") as stream:
        first = stream.read(8)
        length = int.from_bytes(first, "little")
        if len(first) < 8 or length > min(HEADER_LIMIT, path.stat().st_size - 8):
            raise ParseError(path, "header length", f"at most {path.stat().st_size - 8} bytes", length)
        try:
            header = json.loads(stream.read(length))
        except ValueError as error:
            raise ParseError(path, "header", "JSON", str(error)) from error
    if not isinstance(header, dict):
        raise ParseError(path, "header", "a JSON object", type(header).__name__)
    return header, 8 + length


def _view(path: Path, name: str, entry: Any, data: np.ndarray) -> np.ndarray:
    """One tensor as a view of `data`, after its dtype, shape and offsets have been checked."""
    try:
        dtype, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
        begin, end = entry["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise ParseError(path, repr(name), f"a dtype of {', '.join(DTYPES)}, a shape and two offsets", entry) from error
    if not all(isinstance(number, int) and number >= 0 for number in (*shape, begin, end)):
        raise ParseError(path, repr(name), "a shape and offsets of whole numbers >= 0", entry)
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise ParseError(
            path,
            repr(name),
            f"{math.prod(shape) * dtype.itemsize} bytes for {entry['dtype']} {list(shape)}",
            end - begin,
        )
    if end > data.size:
        raise ParseError(
            path, repr(name), f"data up to byte {end}", f"a file with {data.size} bytes of data (cut off?)"
        )
    array = data[begin:end].view(dtype).reshape(shape)
    if entry["dtype"] == "BF16":  # the upper half of a float32; NumPy has no such type
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array
