"""What a kernel takes on the GPU (registers, shared memory, spills), as ptxas tells; no GPU is needed."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from harness.cuda.compile import Unit, build

ENTRY = re.compile(r"Compiling entry function '(?P<entry>[^']+)' for '(?P<arch>[^']+)'")
FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")
AMOUNTS = {"barriers": re.compile(r"used (\d+) barriers"), "shared_bytes": re.compile(r"(\d+) bytes smem")}


@dataclass(frozen=True)
class Resources:
    """One entry point on one architecture: registers a thread, bytes a thread (stack, spills), bytes a block (shared)."""

    source: str
    entry: str
    arch: str
    registers: int
    stack_bytes: int
    spill_store_bytes: int
    spill_load_bytes: int
    shared_bytes: int  # static
    barriers: int


def resources(
    source: Path, archs: Iterable[str], defines: tuple[tuple[str, str], ...] = (), *, cache: Path | None = None
) -> list[Resources]:
    """Compile a source with nvcc for each architecture and list what its kernels take.

    Raises BuildFailed, or ToolMissing without nvcc.
    """
    built = (build(Unit(source, arch, defines=defines), "nvcc", cache=cache) for arch in archs)
    return [row for one in built for row in parse(one.log, source.name)]


def parse(log: str, source: str) -> list[Resources]:
    """The rows in what `ptxas -v` wrote: a block of lines for each entry point, device functions left out."""
    ends = [match.start() for match in ENTRY.finditer(log)] + [len(log)]
    return [_row(log[start:end], source) for start, end in itertools.pairwise(ends)]


def _row(block: str, source: str) -> Resources:
    entry, frame, used = ENTRY.search(block), FRAME.search(block), USED.search(block)
    assert entry is not None  # a block begins with one
    stack, stores, loads = (int(number) for number in frame.groups()) if frame else (0, 0, 0)
    line = block[used.start():].partition("\n")[0] if used else ""  # fmt: skip
    amounts = {name: int(found[1]) if (found := pattern.search(line)) else 0 for name, pattern in AMOUNTS.items()}
    return Resources(
        source, entry["entry"], entry["arch"], int(used[1]) if used else 0, stack, stores, loads, **amounts
    )
