"""What TensorRT says while it works: collected, and turned into errors that name the cause and the next step."""

from __future__ import annotations

import functools
import re
from collections import deque
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from harness.engines.building import NOISE
from harness.errors import BuildFailed, ProbeError, UsageError

MOST_LINES = 1000  # errors kept

_PLUGIN = re.compile(
    r"could not find plugin:?\s*(\S+?)(?:,| version:?| Version:?|$)\s*(?:version:?\s*)?(\d+)?", re.IGNORECASE
)
_NO_IMPORTER = re.compile(r"No importer registered for op: (\w+)|Plugin not found", re.IGNORECASE)
_NO_GPU = re.compile(
    r"no CUDA-capable device|CUDA driver version is insufficient|CUDA initialization failure", re.IGNORECASE
)
_MEMORY = re.compile(r"out ?of ?memory|OutOfMemory|insufficient memory|cudaErrorMemoryAllocation", re.IGNORECASE)
_VERSION = re.compile(
    r"version tag|(?:serialization|engine|plan).{0,60}version|magic tag|incompatible.{0,40}(?:compute|device)",
    re.IGNORECASE,
)
_CUDA = re.compile(
    r"illegal memory access|cudaError\w*[ (:]*(7\d\d)|misaligned address|an illegal instruction", re.IGNORECASE
)


class Log:
    """What was logged since this was made (or cleared), oldest first; hand `logger` to TensorRT."""

    def __init__(self, trt: ModuleType) -> None:
        self.logger = shared_logger(trt)
        self.clear()

    def clear(self) -> None:
        self._since = self.logger.count

    @property
    def errors(self) -> list[str]:
        return [message for number, message in self.logger.lines if number >= self._since]


@functools.cache
def shared_logger(trt: ModuleType) -> Any:
    """The one logger of a process: TensorRT keeps a pointer to the first that it is given, for as long as it is loaded."""
    severity = trt.ILogger.Severity
    severe = (severity.INTERNAL_ERROR, severity.ERROR)

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]  # the base is known at run time only
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: deque[tuple[int, str]] = deque(maxlen=MOST_LINES)
            self.count = 0

        def log(self, level: Any, message: str) -> None:
            if level in severe:
                self.lines.append((self.count, message))
                self.count += 1

    return Logger()


def failure(what: str, errors: Sequence[str], *, hint: str | None = None, usage: bool = False) -> ProbeError:
    """The error for `what` did not work, by what TensorRT said: a cause that is known becomes the message and its hint."""
    said = [line for line in errors if not NOISE.search(line)] or list(errors)
    first = _first_line(said[0]) if said else "TensorRT gave no reason"
    text = "\n".join(errors)
    if found := _PLUGIN.search(text):
        name, version = found.group(1).strip("'\""), found.group(2)
        of = f" version {version}" if version else ""
        return UsageError(
            f"{what}: plugin {name}{of} is not registered", hint="--plugin LIBRARY.so, the library that has it"
        )
    if found := _NO_IMPORTER.search(text):
        name = found.group(1) or "of the node above"
        return UsageError(f"{what}: TensorRT has neither an importer nor a plugin for op {name}: {first}",
                          hint="--plugin LIBRARY.so, the library that has it")  # fmt: skip
    if _MEMORY.search(text):
        return BuildFailed(
            f"{what}: out of memory: {first}", hint="smaller shapes, or less workspace (memory pool WORKSPACE)"
        )
    if _CUDA.search(text):
        return BuildFailed(f"{what}: a kernel failed, and the CUDA context of this process is lost: {first}",
                           hint="probe sanitize TARGET names the kernel that did it")  # fmt: skip
    if errors and all(_NO_GPU.search(line) for line in errors):
        return UsageError(f"{what}: no GPU, or its driver is too old for this TensorRT: {first}", hint="probe doctor")
    if usage and _VERSION.search(text):
        return UsageError(
            f"{what}: {first}", hint=hint or "build the engine again with the TensorRT and on the GPU that are here"
        )
    kind = UsageError if usage else BuildFailed
    return kind(f"{what}: {first}", hint=hint)


def _first_line(message: str) -> str:
    return message.strip().splitlines()[0][:500] if message.strip() else "TensorRT gave no reason"
