"""A program that behaves as it is told: `program.py MODE [ARGUMENT]...`, for tests of whoever runs programs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def say(out: str, err: str, code: str) -> None:
    """Print one line to each stream; exit with `code`."""
    print(out)
    print(err, file=sys.stderr)
    sys.exit(int(code))


def crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def hang() -> None:
    time.sleep(600)


def stubborn(pids: str) -> None:
    """Ignore SIGTERM, say so by writing our pid, and hang."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with Path(pids).open("a", encoding="ascii") as stream:
        stream.write(f"{os.getpid()}\n")
    hang()


def family(pids: str, ending: str) -> None:
    """Start a child that starts a stubborn grandchild; once it is up, `hang` with it or `leave` it behind."""
    code = "import subprocess, sys; subprocess.Popen(sys.argv[1:]).wait()"
    subprocess.Popen([sys.executable, "-c", code, sys.executable, __file__, "stubborn", pids])
    while not Path(pids).exists() or not Path(pids).read_text(encoding="ascii").endswith("\n"):
        time.sleep(0.01)
    with Path(pids).open("a", encoding="ascii") as stream:
        stream.write(f"{os.getpid()}\n")
    if ending == "hang":
        hang()


def flood(size: str) -> None:
    """Write `size` bytes to both streams at once, in lines, as a program does that nobody may block."""
    line = b"x" * 1023 + b"\n"
    for _ in range(int(size) // len(line)):
        sys.stdout.buffer.write(line)
        sys.stderr.buffer.write(line)


def show(name: str) -> None:
    """Print the working folder, an environment variable and what standard input gives."""
    print(Path.cwd(), os.environ.get(name), repr(sys.stdin.read()), sep="\n")


if __name__ == "__main__":
    mode, *arguments = sys.argv[1:]
    {f.__name__: f for f in (say, crash, hang, stubborn, family, flood, show)}[mode](*arguments)
