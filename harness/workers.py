"""Evaluate queries in worker processes: a crash or a hang of what is under test is an answer, never our end.

A recipe is a picklable description of how to answer queries; each worker prepares it once (loads the model, makes the
session) and then answers one query at a time over a pipe.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

from harness.errors import EXIT_INTERNAL, ProbeError
from harness.models.runtime import share_threads
from harness.record import Answer, Outcome

Query = frozenset[int]
Evaluate = Callable[[Query], Answer]


class Recipe(Protocol):
    """How to answer queries; immutable, and small enough to be sent to another process or machine."""

    def prepare(self) -> Evaluate: ...


@dataclass(frozen=True)
class Done:
    """One answered query and the seconds that it took."""

    query: Query
    answer: Answer
    duration_s: float


class Pool(Protocol):
    """Where queries are answered: `submit` up to `width` of them, then `next_done` returns one, in any order."""

    width: int

    def submit(self, query: Query) -> None: ...
    def next_done(self) -> Done: ...
    def close(self) -> None: ...


class Inline:
    """Answers in this process, for tests and benchmarks."""

    width = 1

    def __init__(self, recipe: Recipe) -> None:
        self._evaluate = recipe.prepare()
        self._waiting: list[Query] = []

    def submit(self, query: Query) -> None:
        self._waiting.append(query)

    def next_done(self) -> Done:
        query, start = self._waiting.pop(0), time.perf_counter()
        answer = self._evaluate(query)
        return Done(query, answer, time.perf_counter() - start)

    def close(self) -> None:
        pass


class LocalPool:
    """`jobs` worker processes, each with `threads` for ONNX Runtime (0: one a core). A query that kills its worker or outlasts `timeout_s` is UNRESOLVED; the worker is replaced."""

    def __init__(
        self, recipe: Recipe, jobs: int, *, timeout_s: float | None, log_folder: Path, threads: int = 1
    ) -> None:
        self.width = jobs
        self._timeout_s = timeout_s
        self._workers = [_Worker(recipe, log_folder / f"worker-{n}.err", threads) for n in range(jobs)]

    def submit(self, query: Query) -> None:
        idle = next(worker for worker in self._workers if worker.query is None)
        idle.take(query, self._timeout_s)

    def next_done(self) -> Done:
        while True:
            busy = [worker for worker in self._workers if worker.query is not None]
            wait(
                [worker.pipe for worker in busy], timeout=min((worker.seconds_left() for worker in busy), default=None)
            )
            for worker in busy:
                if (done := worker.collect(self._timeout_s)) is not None:
                    return done

    def close(self) -> None:
        for worker in self._workers:
            worker.stop()


class _Worker:
    """One process and our end of its pipe."""

    def __init__(self, recipe: Recipe, log: Path, threads: int) -> None:
        self._recipe, self._log, self._threads = recipe, log, threads
        self.query: Query | None = None
        self._started_at = self._deadline = 0.0
        self._ready = False
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, self._recipe, self._log, self._threads), daemon=True
        )
        self._process.start()
        theirs.close()
        self._ready = False

    def take(self, query: Query, timeout_s: float | None) -> None:
        self.query = query
        self._restart_clock(timeout_s)
        with contextlib.suppress(OSError):  # a worker that is dead by now is told by `collect`
            self.pipe.send(query)

    def _restart_clock(self, timeout_s: float | None) -> None:
        self._started_at = time.monotonic()
        self._deadline = self._started_at + timeout_s if timeout_s is not None and self._ready else float("inf")

    def seconds_left(self) -> float:
        return min(max(0.0, self._deadline - time.monotonic()), 3600.0)

    def collect(self, timeout_s: float | None) -> Done | None:
        """The answer if it is there; an UNRESOLVED one if the worker died or its time is up; else None."""
        assert self.query is not None
        try:
            if self.pipe.poll():
                return self._receive(self.pipe.recv(), timeout_s)
        except (EOFError, OSError):
            self._process.join()
            return self._replace(f"the worker died of {_how(self._process.exitcode)}")
        if time.monotonic() >= self._deadline:
            return self._replace(f"timeout after {timeout_s:g} s")
        return None

    def _receive(self, message: Any, timeout_s: float | None) -> Done | None:
        kind, content = message
        if kind == "ready":  # preparing is not counted against the time of an evaluation
            self._ready = True
            self._restart_clock(timeout_s)
            return None
        if kind == "error":
            error = ProbeError(content[0], hint=content[1])
            error.exit_code = content[2]
            raise error
        query, self.query = self.query, None
        assert query is not None
        return Done(query, content[0], content[1])

    def _replace(self, why: str) -> Done:
        if not self._ready:
            raise ProbeError(f"a worker ended while it loaded the model: {why}", hint=f"see {self._log}")
        query, self.query = self.query, None
        assert query is not None
        duration = time.monotonic() - self._started_at
        self.stop()
        self._start()
        return Done(query, Answer(Outcome.UNRESOLVED, None, why), duration)

    def stop(self) -> None:
        self._process.kill()
        self._process.join()
        self.pipe.close()


def _how(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        return signal.Signals(-exitcode).name
    return f"exit code {exitcode}"


def _serve(pipe: Connection, recipe: Recipe, log: Path, threads: int) -> None:
    """A worker's life: prepare, then answer until the pipe closes (our process ended, even by kill -9)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which stops us
    with log.open("ab") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    try:
        share_threads(threads)
        evaluate = recipe.prepare()
    except ProbeError as error:
        pipe.send(("error", (str(error), error.hint, error.exit_code)))
        return
    except Exception as error:
        pipe.send(
            ("error", (f"loading the model failed: {type(error).__name__}: {error}", f"see {log}", EXIT_INTERNAL))
        )
        raise  # the traceback goes to the worker's log
    pipe.send(("ready", None))
    while True:
        try:
            query = pipe.recv()
        except (EOFError, OSError):
            return
        start = time.perf_counter()
        try:
            answer = evaluate(query)
        except ProbeError as error:
            pipe.send(("error", (str(error), error.hint, error.exit_code)))
            return
        pipe.send(("done", (answer, time.perf_counter() - start)))
