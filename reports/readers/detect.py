"""Which reader a file is for: by its content, never by its name."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from harness.errors import ArtifactMissing, ParseError
from reports.artifact import Artifact
from reports.columns import Misfit
from reports.readers import (
    emulation,
    graph,
    kernel_bench,
    ncu,
    ncu_rep,
    nsys,
    ort,
    ours,
    polygraphy,
    sanitizer,
    trtexec,
    trtexec_exports,
)

HEAD = 64 * 1024
MUCH = 64 * 1024 * 1024  # how far into a log the first word of a tool is looked for


class Reader(Protocol):
    """A module of this package."""

    def sniff(self, path: Path, head: bytes) -> bool: ...

    def read(self, path: Path) -> Artifact: ...


# Name for people -> reader. Those with a signature first; logs last, where much else may stand around the words.
READERS: dict[str, Reader] = {
    "nsys SQLite, .nsys-rep, .qdrep": nsys,
    "ncu .ncu-rep": ncu_rep,
    "trtexec's JSON exports": trtexec_exports,
    "an ONNX Runtime profile": ort,
    "Polygraphy's inputs or outputs": polygraphy,
    "findings of the emulation": emulation,
    "probe's kernel benchmark": kernel_bench,
    "probe's graph of a model": graph,
    "probe's steps, device log, measurement or sweep": ours,
    "compute-sanitizer XML or text": sanitizer,
    "ncu CSV": ncu,
    "trtexec's output": trtexec,
}
EMPTY = "run the tool again: it was stopped before it wrote anything, or wrote elsewhere"
UNKNOWN = "nsys export --type sqlite REPORT, ncu --import REPORT --csv --page raw, or trtexec's output in a file"
_LOGS = ("trtexec's output", "compute-sanitizer XML or text")


# What people have at hand and no reader takes: how it begins, what it is, and the way to something that is read.
RECORD = "nsys export --type sqlite REPORT, and the SQLite file that it writes"
FOREIGN = (
    (rb"\x1f\x8b", "a file packed by gzip", "gunzip --keep {name}"),
    (rb"\xfd7zXZ\0", "a file packed by xz", "unxz --keep {name}"),
    (rb"BZh\d1AY", "a file packed by bzip2", "bunzip2 --keep {name}"),
    (rb"\x28\xb5\x2f\xfd", "a file packed by zstd", "unzstd {name}"),
    (rb"PK\x03\x04", "a zip archive", "unzip {name}, then the files in it"),
    (rb"PAR1|ARROW1|\x89HDF\r\n", "a table in Parquet, Arrow or HDF5", RECORD),
    (rb'\s*\{"[^\n]{0,2000}"(?:TraceProcessEvent|CudaEvent|NvtxEvent)"', "nsys export --type json", RECORD),
    (rb'(?:[^\n]{0,200}\n){0,30}"?(?:Time \(%\)|Start \([num]?s(?:ec)?\))"?,', "a table of nsys stats", RECORD),
    (rb'\s*\{.{0,20000}"traceEvents"', "a Chrome trace, as PyTorch's profiler writes it",
     "ui.perfetto.dev draws it; for a report: nsys profile --trace cuda,nvtx ..."),
)  # fmt: skip


def detect(path: Path) -> Reader:
    """The reader of a file; ParseError names all that was looked for, or what the file is instead."""
    head = _head(path, HEAD)
    name = _claiming(path, head, READERS)
    if name is None and len(head) == HEAD and b"\0" not in head[:4096].strip(b"\0"):
        name = _claiming(path, _head(path, MUCH), _LOGS)  # a long output of the program itself came first
    if name is None:
        for beginning, what, way in FOREIGN:
            if re.match(beginning, head, re.DOTALL):
                raise ParseError(path, "content", "a file that a reader knows", what, hint=way.format(name=path.name))
        hint = UNKNOWN if head.strip(b"\0 \r\n\t") else EMPTY
        raise ParseError(path, "content", f"one of: {'; '.join(READERS)}", _shown(head), hint=hint)
    return READERS[name]


def _claiming(path: Path, head: bytes, names: Iterable[str]) -> str | None:
    """The first reader that knows the file; around trtexec other tools print their lines too."""
    names = tuple(names)
    claimed = next((name for name in names if READERS[name].sniff(path, head)), None)
    if claimed == "compute-sanitizer XML or text" and trtexec.sniff(path, head):
        return "trtexec's output"  # which reads what the sanitizer said around it
    return claimed


def _head(path: Path, size: int) -> bytes:
    if path.is_fifo() or path.is_char_device() or path.is_socket():
        raise ParseError(path, "file", "a file", "a pipe or a device", hint="write it to a file first, then name that")
    try:
        with path.open("rb") as stream:
            return stream.read(size)
    except FileNotFoundError as error:
        raise ArtifactMissing(f"{path} does not exist") from error
    except OSError as error:
        raise ParseError(path, "file", "a file that can be read", error.strerror or type(error).__name__) from error


def _shown(head: bytes) -> str:
    return f"{head[:40]!r}" if head.strip(b"\0 \r\n\t") else "nothing: the file is empty" if not head else "blanks"


def read(path: Path) -> Artifact:
    """A file, read by the reader that knows it."""
    try:
        return detect(path).read(path)
    except Misfit as error:
        raise ParseError(path, "values", "what a table can hold", str(error)) from error
