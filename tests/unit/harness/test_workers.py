"""Worker processes: what is under test may crash, hang or refuse, and the search goes on."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass

import pytest

from harness.errors import ProbeError, UsageError
from harness.record import Answer, Outcome
from harness.workers import Inline, LocalPool, Query


@dataclass(frozen=True)
class Misbehaving:
    """Answers PASS, except to the queries {1}: dies, {2}: hangs, {3}: raises; `broken` fails while it is prepared."""

    broken: str = ""

    def prepare(self):
        if self.broken == "refuses":
            raise UsageError("this model is not for me", hint="another one")
        if self.broken == "bug":
            raise RuntimeError("something nobody thought of")
        if self.broken == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        return self.answer

    def answer(self, query: Query) -> Answer:
        if query == {1}:
            os.kill(os.getpid(), signal.SIGSEGV)
        if query == {2}:
            time.sleep(600)
        if query == {3}:
            raise UsageError("a question that cannot be asked")
        return Answer(Outcome.PASS, float(sum(query)))


@pytest.fixture
def pool(tmp_path):
    pools = []

    def make(recipe=Misbehaving(), jobs=1, timeout_s=None) -> LocalPool:
        pools.append(LocalPool(recipe, jobs, timeout_s=timeout_s, log_folder=tmp_path))
        return pools[-1]

    yield make
    for each in pools:
        each.close()


def ask(pool: LocalPool, *query: int) -> Answer:
    pool.submit(frozenset(query))
    return pool.next_done().answer


def test_answers_come_back(pool):
    assert ask(pool(), 4, 5) == Answer(Outcome.PASS, 9.0)


def test_a_crash_is_unresolved_and_the_next_question_is_answered(pool):
    crashing = pool()
    answer = ask(crashing, 1)
    assert answer.outcome is Outcome.UNRESOLVED
    assert "SIGSEGV" in answer.signature
    assert ask(crashing, 7).outcome is Outcome.PASS


def test_a_hang_is_unresolved_after_the_time_out(pool):
    hanging = pool(timeout_s=0.5)
    assert ask(hanging, 5).outcome is Outcome.PASS
    start = time.monotonic()
    answer = ask(hanging, 2)
    assert time.monotonic() - start < 5
    assert (answer.outcome, answer.signature) == (Outcome.UNRESOLVED, "timeout after 0.5 s")
    assert ask(hanging, 7).outcome is Outcome.PASS


def test_loading_is_not_counted_against_the_time_out(pool):
    """Starting a worker takes longer than this limit; answering does not."""
    assert ask(pool(timeout_s=0.1), 5).outcome is Outcome.PASS


def test_several_workers_answer_at_once(pool):
    busy = pool(jobs=2)
    busy.submit(frozenset({2}))
    busy.submit(frozenset({6}))
    assert busy.next_done().query == {6}, "the second one answers while the first one hangs"


def test_errors_of_a_worker_are_raised_here(pool):
    with pytest.raises(ProbeError, match="cannot be asked") as caught:
        ask(pool(), 3)
    assert caught.value.exit_code == 2
    with pytest.raises(ProbeError, match="not for me") as caught:
        ask(pool(Misbehaving("refuses")), 5)
    assert caught.value.hint == "another one"


@pytest.mark.parametrize("how,said", [("bug", "something nobody thought of"), ("dies", "SIGKILL")])
def test_a_worker_that_cannot_start_ends_the_search_with_its_log(pool, tmp_path, how, said):
    with pytest.raises(ProbeError, match=said) as caught:
        ask(pool(Misbehaving(how)), 5)
    assert "worker-0.err" in caught.value.hint
    if how == "bug":
        deadline = time.monotonic() + 5
        while "Traceback" not in (tmp_path / "worker-0.err").read_text() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert "Traceback" in (tmp_path / "worker-0.err").read_text()


def test_closing_leaves_no_process(pool, gone, tmp_path):
    closing = pool(jobs=2)
    ask(closing, 5)
    pids = tmp_path / "pids"
    pids.write_text("\n".join(str(worker._process.pid) for worker in closing._workers))
    closing.close()
    assert gone(pids)


def test_inline_is_the_same_without_processes():
    inline = Inline(Misbehaving())
    inline.submit(frozenset({4}))
    assert inline.next_done().answer == Answer(Outcome.PASS, 4.0)
