"""Running programs: output to files, how they ended, and nothing left behind whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from harness import process
from harness.errors import ToolMissing, UsageError
from harness.record import Command


@pytest.fixture
def run(tmp_path, fake):
    """Run the fake program in one of its modes."""

    def call(*arguments, timeout_s=20.0, on_tick=None, **options):
        return process.run(Command(fake(*arguments), timeout_s=timeout_s, **options), tmp_path / "log", on_tick=on_tick)

    return call


@pytest.fixture
def short_grace(monkeypatch):
    monkeypatch.setattr(process, "GRACE_S", 0.2)


@pytest.mark.parametrize("code", [0, 1, 125])
def test_output_and_exit_status(run, code):
    done = run("say", "to out", "to err", code)
    assert (done.returncode, done.signal, done.timed_out, done.ok) == (code, None, False, code == 0)
    assert (done.stdout.read_text(), done.stderr.read_text()) == ("to out\n", "to err\n")
    assert 0 < done.duration_s < 20


def test_a_crash_is_told_by_its_signal(run):
    done = run("crash")
    assert (done.returncode, done.signal, done.timed_out) == (-signal.SIGSEGV, signal.SIGSEGV, False)


def test_folder_environment_and_no_input(run, tmp_path, monkeypatch):
    monkeypatch.setenv("PROBE_TEST_OURS", "kept")
    done = run("show", "PROBE_TEST", cwd=tmp_path, environment={"PROBE_TEST": "added"})
    assert done.stdout.read_text().splitlines() == [str(tmp_path), "added", "''"]
    assert run("show", "PROBE_TEST_OURS").stdout.read_text().splitlines()[1] == "kept"


def test_output_can_be_read_while_the_program_runs(run, tmp_path):
    seen = []

    def look(elapsed):
        seen.append((elapsed, (tmp_path / "log.out").read_text()))

    code = "import time; print('half way', flush=True); time.sleep(0.7)"
    process.run(Command((sys.executable, "-c", code)), tmp_path / "log", on_tick=look)
    assert seen[-1][1] == "half way\n"
    assert [elapsed for elapsed, _ in seen] == sorted(elapsed for elapsed, _ in seen)


def test_much_output_on_both_streams_blocks_nobody(run):
    size = 8 * 2**20
    done = run("flood", size)
    assert done.ok
    assert done.stdout.stat().st_size == done.stderr.stat().st_size == size


def test_time_out(run):
    done = run("hang", timeout_s=0.3)
    assert (done.returncode, done.timed_out, done.ok) == (None, True, False)
    assert 0.3 <= done.duration_s < 3


def test_a_time_out_longer_than_the_operating_system_can_wait(run):
    assert run("say", "a", "b", 0, timeout_s=1e12).ok


def test_a_time_out_ends_the_whole_tree_even_where_sigterm_is_ignored(run, tmp_path, gone, short_grace):
    pids = tmp_path / "pids"

    def stop_once_up(elapsed):
        if pids.exists() and pids.read_text().count("\n") == 2:
            raise TimeoutError  # as a time-out, but not before the family is complete

    with pytest.raises(TimeoutError):
        run("family", pids, "hang", on_tick=stop_once_up)
    assert gone(pids)


def test_the_polite_signal_comes_first(tmp_path):
    """A program that tidies up on SIGTERM gets the time to do so."""
    code = (
        "import signal, sys, time; from pathlib import Path\n"
        "signal.signal(signal.SIGTERM, lambda *_: (Path('tidy').touch(), sys.exit(3)))\n"
        "Path('up').touch(); time.sleep(600)"
    )

    def stop_once_up(elapsed):
        if (tmp_path / "up").exists():
            raise TimeoutError

    with pytest.raises(TimeoutError):
        process.run(Command((sys.executable, "-c", code), cwd=tmp_path), tmp_path / "log", on_tick=stop_once_up)
    assert (tmp_path / "tidy").exists()


def test_what_a_program_leaves_running_is_ended_with_it(run, tmp_path, gone, short_grace):
    done = run("family", tmp_path / "pids", "leave")
    assert done.ok
    assert gone(tmp_path / "pids")


CALLER = """
import sys
from pathlib import Path
from harness import process
from harness.record import Command
process.GRACE_S = float(sys.argv[1])
try:
    process.run(Command(tuple(sys.argv[3:])), Path(sys.argv[2]))
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize(("grace", "signals"), [(0.2, 1), (60, 2)], ids=["Ctrl-C", "an impatient second Ctrl-C"])
def test_an_interrupt_ends_the_tree(tmp_path, fake, gone, wait_for, grace, signals):
    pids = tmp_path / "pids"
    argv = [sys.executable, "-c", CALLER, str(grace), str(tmp_path / "log"), *fake("family", pids, "hang")]
    caller = subprocess.Popen(argv, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    try:
        wait_for(lambda: pids.exists() and pids.read_text().count("\n") == 2)
        for _ in range(signals):
            caller.send_signal(signal.SIGINT)
            time.sleep(0.5)  # the first one has to be in hand before the second comes
        assert caller.wait(timeout=10) == 130
    finally:
        caller.kill()
    assert gone(pids)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_while_the_program_starts_leaves_none_running(tmp_path, monkeypatch, gone, number):
    """It comes when the program is there, and Popen has not told us its pid yet."""
    start = subprocess.Popen
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)

    def interrupted(*arguments, **words):
        process = start(*arguments, **words)
        (tmp_path / "pids").write_text(f"{process.pid}\n")
        signal.raise_signal(number)
        return process

    monkeypatch.setattr(process.subprocess, "Popen", interrupted)
    try:
        with pytest.raises(KeyboardInterrupt):
            process.run(Command(("/bin/sleep", "600")), tmp_path / "log")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert gone(tmp_path / "pids")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


WORST_MOMENT = """
import signal, subprocess, sys, threading
from pathlib import Path
class Lock:
    def __init__(self):
        self.lock, self.calls = threading.Lock(), 0
        self.release = self.lock.release
    def acquire(self, *words):
        got, self.calls = self.lock.acquire(*words), self.calls + 1
        if self.calls == 3:
            signal.raise_signal(signal.SIGINT)
        return got
    def __enter__(self):
        self.acquire()
    def __exit__(self, *_):
        self.release()
start = subprocess.Popen.__init__
def begin(self, *words, **more):
    start(self, *words, **more)
    self._waitpid_lock = Lock()
    Path(sys.argv[2]).with_name("pids").write_text(f"{self.pid}\\n")
subprocess.Popen.__init__ = begin
"""


def test_an_interrupt_between_two_instructions_of_the_wait_ends_the_program(tmp_path, fake, gone):
    """When `Popen.wait` has just taken its lock: raised there, it would stay locked for ever."""
    argv = [sys.executable, "-c", WORST_MOMENT + CALLER, "0.2", str(tmp_path / "log"), *fake("hang")]
    caller = subprocess.Popen(argv, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    try:
        assert caller.wait(timeout=20) == 130
    finally:
        caller.kill()
    assert gone(tmp_path / "pids")


def test_a_failing_tick_ends_the_program(run, tmp_path, gone, short_grace):
    def fail(elapsed):
        if (tmp_path / "pids").exists():
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run("stubborn", tmp_path / "pids", on_tick=fail)
    assert gone(tmp_path / "pids")


def test_several_at_once(tmp_path, fake):
    """Runs in threads do not stop one another's programs."""
    runs = {}

    def one(code):
        runs[code] = process.run(Command(fake("say", code, "", code)), tmp_path / str(code))

    threads = [threading.Thread(target=one, args=(code,)) for code in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {code: (done.returncode, done.stdout.read_text()) for code, done in runs.items()} == {
        code: (code, f"{code}\n") for code in range(6)
    }


def test_a_missing_program_is_said(tmp_path):
    with pytest.raises(ToolMissing, match=r"no-such-tool is needed .* not on PATH") as caught:
        process.run(Command(("no-such-tool", "two words")), tmp_path / "log")
    assert "no-such-tool 'two words'" in caught.value.hint


@pytest.mark.parametrize(("mode", "reason"), [(0o644, "Permission denied"), (0o755, "Exec format error")])
def test_a_file_that_is_no_program_is_said(tmp_path, mode, reason):
    (tmp_path / "tool").write_bytes(b"\x7fELF no such format")
    (tmp_path / "tool").chmod(mode)
    with pytest.raises(ToolMissing, match=f"cannot be started: {reason}"):
        process.run(Command((str(tmp_path / "tool"),)), tmp_path / "log")


def test_a_missing_working_folder_is_not_taken_for_a_missing_program(run, tmp_path):
    with pytest.raises(UsageError, match="no such folder"):
        run("say", "a", "b", 0, cwd=tmp_path / "absent")


def test_tail_of_a_large_log_with_any_bytes(tmp_path):
    log = tmp_path / "log"
    log.write_bytes(b"".join(b"line %d \xff\n" % n for n in range(100_000)))
    assert process.tail(log, lines=2) == "line 99998 \ufffd\nline 99999 \ufffd"
    assert len(process.tail(log, lines=10**9, limit=1000)) <= 1000


def test_tail_of_nothing(tmp_path):
    (tmp_path / "empty").touch()
    assert process.tail(tmp_path / "empty") == process.tail(Path("no such file")) == ""
