"""A search that is cut short says how to go on, however early it was."""

from __future__ import annotations

import pytest

from harness.errors import EXIT_INTERRUPTED, SearchStopped
from harness.record import Session
from probes.bisecting.concluding import Asked
from probes.bisecting.evaluating import Effort
from probes.bisecting.searching import search_session


def test_an_interruption_before_the_first_evaluation_names_the_session_to_resume(tmp_path) -> None:
    session = Session.create("bisect", tmp_path / "run")

    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SearchStopped, match="before the first evaluation") as stopped:
        search_session(session, interrupted, Effort(), Asked("nan", "", 0.0), lambda _: [], lambda _: None)
    assert stopped.value.exit_code == EXIT_INTERRUPTED
    assert stopped.value.hint == f"probe bisect --resume {session.folder}"
