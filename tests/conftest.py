"""What several tests need: where the checkout is, fake programs, and whether a process is still alive."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# The same examples in every run, and no deadline: the machine may be shared. Change both to go exploring.
settings.register_profile("probe", derandomize=True, deadline=None)
settings.load_profile("probe")

# A program started in the background is told to ignore Ctrl-C, and hands that on; the tests of Ctrl-C need it obeyed.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent
FAKE_PROGRAM = ROOT / "tests" / "fakes" / "program.py"


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def fake() -> Callable[..., tuple[str, ...]]:
    """The argument list of the fake program in one of its modes: `fake("say", "out", "err", 3)`."""
    return lambda *arguments: (sys.executable, str(FAKE_PROGRAM), *map(str, arguments))


@pytest.fixture
def fake_tool(tmp_path: Path) -> Callable[[str, str], Path]:
    """Make an executable shell script `NAME` in a folder of its own and return that folder, to be used as PATH."""
    folder = tmp_path / "bin"

    def make(name: str, script: str) -> Path:
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        (folder / name).chmod(0o755)
        return folder

    return make


@pytest.fixture(scope="session")
def probe_argv() -> tuple[str, ...]:
    """What the console script runs, with this interpreter, whether or not the script is installed."""
    return (
        sys.executable,
        "-c",
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from probes.__main__ import main; main()",
    )


@pytest.fixture(scope="session")
def probe(probe_argv: tuple[str, ...]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `probe` with arguments in a process of its own; `environment` is added, `cwd` is where."""

    def run(*arguments: object, environment: dict[str, str] | None = None, cwd: Path | None = None) -> Any:
        argv, env = [*probe_argv, *map(str, arguments)], {**os.environ, **(environment or {})}
        return subprocess.run(argv, env=env, cwd=cwd, capture_output=True, text=True, check=False, timeout=120)

    return run


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie that its new parent has not collected yet does not."""
    try:
        os.kill(pid, 0)
        stat = Path(f"/proc/{pid}/stat")
        return not stat.exists() or stat.read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


@pytest.fixture(scope="session")
def gone() -> Callable[[Path], bool]:
    """Whether every process listed in a file (one pid a line) ends within seconds."""

    def check(pids: Path) -> bool:
        listed = [int(line) for line in pids.read_text(encoding="ascii").split()]
        assert listed, "no process was started, so nothing was tested"
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline and any(map(is_alive, listed)):
            time.sleep(0.01)
        return not any(map(is_alive, listed))

    return check


@pytest.fixture(scope="session")
def wait_for() -> Callable[[Callable[[], bool]], None]:
    """Wait until a condition holds; fail after half a minute."""

    def wait(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < deadline, "the condition never held"
            time.sleep(0.01)

    return wait
