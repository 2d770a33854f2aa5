"""Evaluate queries on a dask.distributed cluster. Workers need probe installed and the session's files at the same path."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any

from harness import optional
from harness.errors import ProbeError
from harness.record import Answer, Outcome
from harness.workers import Done, Evaluate, Query, Recipe

CONNECT_S = 10
PREPARE_S = 120  # a worker loads the model with its first query; that is not counted against the query


class DaskPool:
    """A cluster's workers, as many queries at a time as it has threads (at least two: both halves of a split)."""

    def __init__(self, recipe: Recipe, address: str, *, timeout_s: float | None) -> None:
        distributed = optional.load("distributed")
        try:
            self._client = distributed.Client(address, timeout=CONNECT_S, set_as_default=False)
        except (OSError, TimeoutError, ValueError) as error:
            raise ProbeError(
                f"no dask scheduler answers at {address}: {error}", hint="dask scheduler; dask worker ADDRESS"
            ) from error
        threads = sum(self._client.nthreads().values())
        if threads == 0:
            self._client.close()
            raise ProbeError(f"the scheduler at {address} has no workers", hint=f"dask worker {address}")
        self.width = max(2, threads)
        self._recipe, self._timeout_s = recipe, timeout_s
        self._wait = distributed.wait
        self._running: dict[Any, tuple[Query, float]] = {}  # future -> its query, when it was sent

    def submit(self, query: Query) -> None:
        future = self._client.submit(evaluate_remotely, self._recipe, tuple(sorted(query)), pure=False, retries=0)
        self._running[future] = query, time.monotonic()

    def next_done(self) -> Done:
        while True:
            with contextlib.suppress(TimeoutError), self._client.as_current():
                self._wait(list(self._running), timeout=self._seconds_left(), return_when="FIRST_COMPLETED")
            for future, (query, sent) in self._running.items():
                if future.done() or time.monotonic() - sent > self._allowed_s():
                    del self._running[future]
                    return self._collect(future, query, time.monotonic() - sent)

    def _allowed_s(self) -> float:
        return float("inf") if self._timeout_s is None else self._timeout_s + PREPARE_S

    def _seconds_left(self) -> float | None:
        if self._timeout_s is None:
            return None
        oldest = min(sent for _, sent in self._running.values())
        return max(0.0, oldest + self._allowed_s() - time.monotonic())

    def _collect(self, future: Any, query: Query, waited_s: float) -> Done:
        if not future.done():
            future.cancel()  # a thread of a dask worker cannot be stopped: it is left behind
            return Done(query, Answer(Outcome.UNRESOLVED, None, f"timeout after {self._timeout_s:g} s"), waited_s)
        if future.status != "finished":
            if isinstance(error := future.exception(), ProbeError):
                raise error
            return Done(query, Answer(Outcome.UNRESOLVED, None, f"the worker failed: {type(error).__name__}"), waited_s)
        answer, duration = future.result()
        if self._timeout_s is not None and duration > self._timeout_s:
            answer = Answer(Outcome.UNRESOLVED, None, f"timeout after {self._timeout_s:g} s")
        return Done(query, answer, duration)

    def close(self) -> None:
        self._client.close()


_prepared: dict[Any, Evaluate] = {}
_preparing = threading.Lock()


def evaluate_remotely(recipe: Recipe, query: tuple[int, ...]) -> tuple[Answer, float]:
    """Runs on a worker: prepares the recipe once per process, answers one query, says the seconds it took."""
    with _preparing:
        if recipe not in _prepared:
            _prepared.clear()  # one model at a time
            _prepared[recipe] = recipe.prepare()
        evaluate = _prepared[recipe]
    start = time.perf_counter()
    answer = evaluate(frozenset(query))
    return answer, time.perf_counter() - start
