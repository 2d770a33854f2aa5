"""Run one kernel that logs, on the GPU or under emulation, in a process of its own, and read what it left behind."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from harness import process
from harness.device_log import layout as device_log
from harness.device_log.layout import DEFINE, EVERYTHING, Recorded, Selection
from harness.device_log.printf import FIFO_BYTES, Printed, split
from harness.emulation import run as emulated
from harness.emulation.build import cache
from harness.errors import BuildFailed, ToolFailed
from harness.record import Command
from kernels.plan import Launch, Pointer

GRACE_S = 60.0  # until the worker is there and has compiled, on a machine with other work
MOST_GROWTH = 4  # runs
Ended = Literal["finished", "crashed", "timed out", "interrupted"]
Row = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """A launch to run; its source is a copy with the log in it (`place`). `folder` takes the logs and the buffer."""

    launch: Launch
    arrays: Mapping[str, np.ndarray[Any, Any]]
    folder: Path
    selection: Selection = EVERYTHING
    records: int = 1_000_000
    timeout_s: float = 60.0
    checks: str = "none"  # of the emulation
    count_printf: bool = False  # on the GPU, where the source calls printf


@dataclass(frozen=True)
class Traced:
    """What came of a job. `printed_lost` counts outputs of printf that CUDA overwrote (None: not known)."""

    recorded: Recorded
    printed: tuple[Printed, ...]
    findings: tuple[Row, ...]
    arrays: Mapping[str, np.ndarray[Any, Any]]
    ended: Ended
    message: str = ""
    printed_lost: int | None = 0


def copies() -> Path:
    """Where changed copies of sources lie."""
    return cache().parent / "traced"


def place(text: bytes, name: str) -> Path:
    """Write a changed copy where an equal one always lies, so that what was compiled from it is found again."""
    folder = copies() / hashlib.sha256(text).hexdigest()[:20]
    path = folder / name
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f".{name}.{os.getpid()}.part"
        part.write_bytes(text)
        part.replace(path)
    return path


def run(job: Job, *, emulate: bool, grow: bool = False) -> Traced:
    """Run a job; with `grow` again, with room for all, for as long as values are lost.

    Raises BuildFailed, UsageError for a launch that does not fit; a kernel that crashes or hangs is a result.
    """
    once = run_emulated if emulate else run_on_gpu
    traced = once(job)
    for _ in range(MOST_GROWTH):
        if not grow or not traced.recorded.lost or traced.ended == "interrupted":
            break
        job = replace(job, records=traced.recorded.needed)
        traced = once(job)
    return traced


def run_emulated(job: Job) -> Traced:
    path = device_log.create(job.folder / "device_log.bin", job.records, job.selection)
    try:
        with _environment(device_log.VARIABLE, str(path.resolve())):
            done = emulated.run(
                [job.launch], job.arrays, checks=job.checks, timeout_s=job.timeout_s, folder=job.folder,
            )  # fmt: skip
    except KeyboardInterrupt:  # whoever has waited long enough for a kernel that hangs, wants to see what it logged
        recorded = device_log.read(path)
        if not recorded.needed:
            raise
        device_log.shrink(path, recorded)
        return Traced(recorded, (), (), job.arrays, "interrupted")
    printed = tuple(Printed(row.launch, row.kernel, row.kernel, row.text.removesuffix("\n"), row.block, row.thread)
                    for row in done.printed)  # fmt: skip
    recorded = device_log.read(path)
    device_log.shrink(path, recorded)
    ended, message = _ending(done)
    return Traced(recorded, printed, done.findings, done.arrays, ended, message)


def _ending(done: emulated.Emulated) -> tuple[Ended, str]:
    if done.complete:
        return "finished", ""
    last = done.findings[-1] if done.findings else {}
    ended: Ended = "timed out" if last.get("kind") == "Hang" else "crashed"
    return ended, str(last.get("message") or "the kernel died")


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """A variable for the programs that are started meanwhile."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


# ---- on the GPU: the worker is harness/device_log/traced_worker.py


def run_on_gpu(job: Job) -> Traced:
    """In a process of its own: whatever the kernel does there, what it logged is read from pinned memory and kept."""
    (job.folder / "job.json").write_text(json.dumps(_described(job)), encoding="utf-8")
    np.savez(job.folder / "arrays_in.npz", **job.arrays)  # type: ignore[arg-type]
    words = process.module_words("harness.device_log.traced_worker", str(job.folder.resolve()))
    command = Command(words, job.timeout_s + GRACE_S, process.module_environment())
    done = process.run(command, job.folder / "worker")
    try:
        told = json.loads((job.folder / "outcome.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ToolFailed(f"the process of the kernel died: {process.tail(done.stderr) or 'no message'}", done) from None
    if told["ended"] == "build failed":
        raise BuildFailed(told["message"])
    if told["ended"] == "refused":
        raise ToolFailed(told["message"], done, hint=told["hint"])
    recorded = device_log.read(job.folder / "device_log.bin")
    printed = split(done.stdout.read_text(encoding="utf-8", errors="replace"), 0, job.launch.entry, job.launch.entry)
    lost = None if recorded.printed is None else recorded.printed - len(printed) if job.count_printf else None
    arrays = {}
    if (job.folder / "arrays_out.npz").is_file():
        with np.load(job.folder / "arrays_out.npz") as content:
            arrays = dict(content)
    return Traced(recorded, tuple(printed), tuple(told["findings"]), arrays, told["ended"], told["message"], lost)


def _described(job: Job) -> dict[str, Any]:
    launch = job.launch
    defines = [*launch.defines, *([("PROBE_COUNT_PRINTF", "1")] if job.count_printf else [])]
    return {
        "source": str(launch.source.resolve()), "entry": launch.entry, "grid": launch.grid, "block": launch.block,
        "shared_bytes": launch.shared_bytes, "names": launch.names, "defines": defines,
        "arguments": [_argument(argument) for argument in launch.arguments],
        "variables": {name: content.hex() for name, content in launch.variables},
        "selection": [job.selection.block, job.selection.thread, job.selection.warp],
        "records": job.records, "timeout_s": job.timeout_s, "fifo_bytes": FIFO_BYTES,
    }  # fmt: skip


def _argument(argument: Pointer | np.generic) -> dict[str, Any]:
    if isinstance(argument, Pointer):
        return {"buffer": argument.buffer, "offset": argument.offset}
    return {"dtype": argument.dtype.str, "bytes": argument.tobytes().hex()}


def load(described: Mapping[str, Any]) -> tuple[Launch, Selection]:
    """The launch and the selection of a job, as `_described` wrote them."""
    arguments = tuple(
        Pointer(one["buffer"], one["offset"]) if "buffer" in one
        else np.frombuffer(bytes.fromhex(one["bytes"]), one["dtype"])[0]
        for one in described["arguments"]
    )  # fmt: skip
    launch = Launch(
        Path(described["source"]), described["entry"], _three(described["grid"]), _three(described["block"]), arguments,
        described["shared_bytes"], tuple((name, value) for name, value in described["defines"]), tuple(described["names"]),
        variables=tuple((name, bytes.fromhex(content)) for name, content in described["variables"].items()),
    )  # fmt: skip
    block, thread, warp = described["selection"]
    axes = [tuple((low, high) for low, high in ranges) for ranges in (block, thread)]
    return launch, Selection(axes[0], axes[1], tuple(warp))  # type: ignore[arg-type]


def _three(numbers: list[int]) -> tuple[int, int, int]:
    x, y, z = numbers
    return x, y, z


def defines_of(more: tuple[tuple[str, str], ...] = ()) -> tuple[tuple[str, str], ...]:
    """Macros of a kernel that logs."""
    return (DEFINE, *more)
