"""Run a program: argument list, own process group, time-out, output streamed to files, no process left behind."""

from __future__ import annotations

import math
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from harness.errors import ToolMissing, UsageError
from harness.record import Command, ToolRun

GRACE_S = 3.0  # between the polite signal and the final one
LOOK_S = 0.1  # how often we look whether an interruption has come
TICK_S = 0.2
OURS = Path(__file__).resolve().parents[1]  # where our packages lie, installed or not


def module_words(module: str, *arguments: str) -> tuple[str, ...]:
    """The argument list that runs a module of ours. -P: a folder of its name where the user stands is not meant."""
    return (sys.executable, "-P", "-m", module, *arguments)


def module_environment() -> dict[str, str]:
    """What such a process needs to find our packages, however probe was started: ours first."""
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(OURS), os.environ.get("PYTHONPATH"))))}


def run(command: Command, log_stem: Path, *, on_tick: Callable[[float], None] | None = None) -> ToolRun:
    """Run `command`; its output goes to `<log_stem>.out` and `<log_stem>.err`, readable while it runs.

    The program leads a process group of its own. When it ends, when its time is up, or when we are interrupted,
    whatever is left of that group is ended: SIGTERM, a short grace, SIGKILL.
    `on_tick` is called about five times a second with the seconds since the start.
    Raises ToolMissing if there is no such program, UsageError if `command.cwd` is no folder.
    """
    if command.cwd is not None and not command.cwd.is_dir():
        raise UsageError(f"cannot run {command.argv[0]} in {command.cwd}: no such folder")
    stdout, stderr = Path(f"{log_stem}.out"), Path(f"{log_stem}.err")
    stdout.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    with stdout.open("wb") as out, stderr.open("wb") as err, _held_back() as came:
        process = _start(command, out, err)
        timed_out = False
        try:
            timed_out = not _wait(process, command.timeout_s, start, on_tick, came)
        finally:
            _stop_group(process, came)
    duration = time.monotonic() - start
    code = process.returncode
    return ToolRun(
        command=command, returncode=None if timed_out else code, signal=-code if code is not None and code < 0 else None,
        timed_out=timed_out, duration_s=duration, stdout=stdout, stderr=stderr,
    )  # fmt: skip


def _start(command: Command, out: IO[bytes], err: IO[bytes]) -> subprocess.Popen[bytes]:
    shown = shlex.join(command.argv)
    try:
        return subprocess.Popen(
            command.argv, stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=command.cwd,
            env={**os.environ, **command.environment}, start_new_session=True,
        )  # fmt: skip
    except FileNotFoundError as error:
        raise ToolMissing(command.argv[0], "to go on", f"install it, or check the command: {shown}") from error
    except OSError as error:  # not executable, no program at all, an argument list too long
        detail = f"cannot be started: {error.strerror}"
        raise ToolMissing(command.argv[0], "to go on", f"check the command: {shown}", detail) from error


@contextmanager
def _held_back() -> Iterator[list[int]]:
    """Note Ctrl-C and SIGTERM in the list that is given, and pass on the first at the end.

    Raised wherever they come they would, once in a while, leave the program running for ever: before we know its pid; or
    between two instructions of `Popen.wait`, which then keeps its own lock and is never done.
    """
    came: list[int] = []
    before = {}
    if threading.current_thread() is threading.main_thread():
        handled = (number for number in (signal.SIGINT, signal.SIGTERM) if callable(signal.getsignal(number)))
        before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in handled}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


def tail(path: Path, lines: int = 20, limit: int = 16_384) -> str:
    """The last lines of a log, however large the file and whatever its encoding."""
    if not path.exists():
        return ""
    with path.open("rb") as stream:
        stream.seek(0, os.SEEK_END)
        stream.seek(max(0, stream.tell() - limit))
        text = stream.read().decode("utf-8", errors="replace")
    return "\n".join(text.splitlines()[-lines:])


def _wait(
    process: subprocess.Popen[bytes], timeout_s: float | None, start: float,
    on_tick: Callable[[float], None] | None, came: list[int],
) -> bool:  # fmt: skip
    """Wait for the end, or for an interruption; False if the time was up first."""
    ends = math.inf if timeout_s is None else start + timeout_s
    tick = math.inf if on_tick is None else start + TICK_S
    while not came:
        now = time.monotonic()
        if now >= ends:
            return False
        if on_tick is not None and now >= tick:
            on_tick(now - start)
            tick = now + TICK_S
        try:
            process.wait(min(LOOK_S, ends - now))
            return True
        except subprocess.TimeoutExpired:
            continue
    return True


def _stop_group(process: subprocess.Popen[bytes], came: list[int]) -> None:
    """End what is left of the group, whose id is its leader's pid because of `start_new_session`."""
    known = max(len(came), 1)  # a second Ctrl-C cuts the grace short
    try:
        if _signal_group(process.pid, signal.SIGTERM):
            deadline = time.monotonic() + GRACE_S
            while time.monotonic() < deadline and len(came) <= known and _group_alive(process):
                time.sleep(0.02)
    finally:
        _signal_group(process.pid, signal.SIGKILL)
        process.wait()


def _group_alive(process: subprocess.Popen[bytes]) -> bool:
    process.poll()  # reap the leader, or its zombie keeps the group alive
    return _signal_group(process.pid, 0)


def _signal_group(group: int, number: int) -> bool:
    """Send a signal to a group; False if nobody is left in it."""
    try:
        os.killpg(group, number)
        return True
    except (ProcessLookupError, PermissionError):
        return False
