"""Processes that a tool started and that left its process group: found by a mark in their environment, and ended."""

from __future__ import annotations

import os
import secrets
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

MARK = "PROBE_RUN"  # inherited by whatever a tool starts, agents in sessions of their own among it
GRACE_S = 1.0
PROC = Path("/proc")


@contextmanager
def swept() -> Iterator[Mapping[str, str]]:
    """Give the environment to start a program with; on leaving, whatever still carries its mark is ended.

    Needs /proc (Linux); elsewhere it does nothing. A process that clears its environment is not found.
    """
    value = f"{os.getpid()}-{secrets.token_hex(8)}"
    try:
        yield {MARK: value}
    finally:
        _end(f"{MARK}={value}".encode())


def _end(mark: bytes) -> None:
    left = _marked(mark)
    for pid in left:
        _send(pid, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_S
    try:
        while left and time.monotonic() < deadline:
            time.sleep(0.02)
            left = _marked(mark)
    finally:  # also when a second Ctrl-C cuts the grace short
        for pid in _marked(mark):
            _send(pid, signal.SIGKILL)


def _marked(mark: bytes) -> list[int]:
    """Processes of ours that carry the mark; those of other users cannot be read, and are not ours."""
    found = []
    for folder in PROC.glob("[0-9]*"):
        try:
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:  # gone, or not ours
            continue
    return found


def _send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return
