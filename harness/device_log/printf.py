"""What kernels print with printf: caught at the file descriptor, tied to launches, with the count of what was lost."""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from harness.cuda.device import Device

PRINTF_FIFO = 1  # of CUlimit
FIFO_BYTES = 256 << 20  # CUDA's own default is 1 MiB: a ring, whose oldest lines are overwritten without a word
MARK = "\x1e"  # before each output, where the calls are counted (PROBE_COUNT_PRINTF)
STDOUT = 1


@dataclass(frozen=True)
class Printed:
    """One output of printf; `range` is the NVTX range of its launch. Only the emulation knows block and thread."""

    launch_id: int
    kernel: str
    range: str
    text: str
    block: tuple[int, int, int] | None = None
    thread: tuple[int, int, int] | None = None


@dataclass
class Captured:
    """What was printed while a `capture` lasts."""

    rows: list[Printed] = field(default_factory=list)
    file: int = -1
    read_to: int = 0

    def launched(self, launch_id: int, kernel: str, range_name: str | None = None) -> None:
        """All that was printed since the last call belongs to this launch, which must be done (synchronised)."""
        flush()
        size = os.fstat(self.file).st_size
        text = os.pread(self.file, size - self.read_to, self.read_to).decode("utf-8", "replace")
        self.read_to = size
        self.rows += split(text, launch_id, kernel, range_name or kernel)


def split(text: str, launch_id: int, kernel: str, range_name: str) -> list[Printed]:
    """The outputs in a text: those of single calls where they are marked, else lines."""
    parts = text.split(MARK)[1:] if MARK in text else text.splitlines()
    return [Printed(launch_id, kernel, range_name, part.removesuffix("\n")) for part in parts]


def raise_limit(device: Device, size: int = FIFO_BYTES) -> bool:
    """Make room for printf's output; False if the driver refuses, because a kernel that prints has run before."""
    return device.driver.try_call("cuCtxSetLimit", PRINTF_FIFO, size) == 0


def flush() -> None:
    """Write out what C's own stdout holds back: CUDA prints through it."""
    sys.stdout.flush()
    ctypes.CDLL(None).fflush(None)


@contextmanager
def capture() -> Iterator[Captured]:
    """Send standard output, the file descriptor and not only Python's, into a file for as long as the block runs."""
    with tempfile.TemporaryFile() as file:
        flush()
        before = os.dup(STDOUT)
        try:
            os.dup2(file.fileno(), STDOUT)
            yield Captured(file=file.fileno())
        finally:
            flush()
            os.dup2(before, STDOUT)
            os.close(before)
