"""The session folder: JSON whole or not at all, steps that survive a kill, no session grown over another."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import ArtifactMissing, ParseError, UsageError
from harness.record import Command, Outcome, Session, ToolRun, number
from reports.schema import real

NOW = datetime(2026, 3, 1, 12, 30, 5, 250_000, tzinfo=UTC)


@pytest.fixture
def session(tmp_path):
    return Session.create("bisect", tmp_path / "run")


def test_the_default_folder_tells_time_and_verb(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    session = Session.create("bisect", now=NOW)
    assert session.folder.as_posix() == "probe-runs/20260301T123005.250000Z-bisect"
    assert session.raw.is_dir()


def test_a_folder_that_holds_a_session_is_refused(session):
    session.write_json("manifest.json", {"verb": "bisect"})
    with pytest.raises(UsageError, match="already holds a session") as caught:
        Session.create("bisect", session.folder)
    assert f"--resume {session.folder}" in caught.value.hint


def test_a_folder_without_a_session_may_be_used(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    assert Session.create("bisect", tmp_path).raw.is_dir()


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_folder_that_cannot_be_made_is_said(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be made"):
        Session.create("bisect", tmp_path / name)


def test_only_a_session_folder_opens(session):
    with pytest.raises(UsageError, match=r"manifest\.json"):
        Session.open(session.folder)
    session.write_json("manifest.json", {})
    assert Session.open(session.folder).folder == session.folder


def test_json_comes_back(session):
    path = session.write_json("result.json", {"culprits": ["a"], "error": 0.5, "scopes": []})
    assert path == session.folder / "result.json"
    assert session.read_json("result.json") == {"culprits": ["a"], "error": 0.5, "scopes": []}


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 1e308, 0.0, 7, None])
def test_numbers_that_json_lacks_are_texts_that_come_back(session, value):
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    session.append_step({"value": value, "nested": [{"value": (value,)}]})
    session.write_json("result.json", {"error": value})
    for name in ("steps.jsonl", "result.json"):
        json.loads((session.folder / name).read_text(), parse_constant=refuse)
    (step,) = session.steps()
    for read in (step["value"], step["nested"][0]["value"][0], session.read_json("result.json")["error"]):
        assert repr(number(read)) == repr(value)
        assert real(read) == value or (value is not None and math.isnan(value))


def test_other_texts_stay_texts():
    assert number("inf") == "inf"
    assert number("Infinity and more") == "Infinity and more"


def test_json_that_cannot_be_written_leaves_the_old_file_and_no_other(session):
    session.write_json("result.json", {"round": 1})
    before = sorted(session.folder.iterdir())
    with pytest.raises(TypeError):
        session.write_json("result.json", {"round": object()})
    assert session.read_json("result.json") == {"round": 1}
    assert sorted(session.folder.iterdir()) == before


def test_a_full_disk_leaves_the_old_file_and_no_other(session, monkeypatch):
    session.write_json("result.json", {"round": 1})
    before = sorted(session.folder.iterdir())

    def torn(path, text, encoding):
        path.open("w").write(text[:3])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", torn)
    with pytest.raises(OSError, match="No space"):
        session.write_json("result.json", {"round": 2})
    assert session.read_json("result.json") == {"round": 1}
    assert sorted(session.folder.iterdir()) == before


@pytest.mark.parametrize(("content", "got"), [(b"{", "Expecting"), (b"\xff", "decode"), (b"[]", "list")])
def test_json_that_is_none_says_which_file(session, content, got):
    (session.folder / "result.json").write_bytes(content)
    with pytest.raises(ParseError, match=got) as caught:
        session.read_json("result.json")
    assert caught.value.path == session.folder / "result.json"


def test_json_that_is_missing_says_so(session):
    with pytest.raises(ArtifactMissing, match=r"result\.json does not exist"):
        session.read_json("result.json")


def test_no_steps_at_first(session):
    assert list(session.steps()) == []


STEPS = st.lists(
    st.dictionaries(
        st.text(), st.text() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.none()
    ),
    max_size=6,
)


@settings(max_examples=60)
@given(steps=STEPS, more=STEPS, cut=st.integers(0, 200))
def test_a_kill_at_any_byte_loses_only_the_unfinished_step(steps, more, cut):
    with tempfile.TemporaryDirectory() as folder:
        check_a_cut(Session.create("bisect", Path(folder)), steps, more, cut)


def check_a_cut(session, steps, more, cut):
    path = session.folder / "steps.jsonl"
    for step in steps:
        session.append_step(step)
    whole = path.read_bytes() if path.exists() else b""
    path.write_bytes(whole[: max(0, len(whole) - cut)])
    left = steps[: path.read_bytes().count(b"\n")]
    assert list(session.steps()) == left  # what was finished is there
    for step in more:
        session.append_step(step)
    assert list(session.steps()) == left + more  # and nothing grew onto the torn line


def test_a_step_is_on_disk_before_append_returns(tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path; from harness.record import Session\n"
        "session = Session.create('bisect', Path(sys.argv[1]))\n"
        "for step in range(1000):\n"
        "    session.append_step({'step': step})\n"
        "    if step == 7: os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )
    assert done.returncode == -signal.SIGKILL
    assert [row["step"] for row in Session(tmp_path).steps()] == list(range(8))


@pytest.mark.parametrize("line", [b"nonsense\n", b"\xff\xfe\n", b"[1]\n"])
def test_a_finished_line_that_is_no_step_is_an_error_with_its_number(session, line):
    session.append_step({"step": 1})
    with (session.folder / "steps.jsonl").open("ab") as stream:
        stream.write(line)
    with pytest.raises(ParseError, match="line 2"):
        list(session.steps())


def test_steps_are_plain_json_lines(session):
    session.append_step({"candidate": "ä\n", "value": 0.5})
    lines = (session.folder / "steps.jsonl").read_text(encoding="ascii").splitlines()
    assert [json.loads(line) for line in lines] == [{"candidate": "ä\n", "value": 0.5}]


def test_outcomes_are_their_own_words():
    assert [str(outcome) for outcome in Outcome] == ["pass", "fail", "unresolved"]


@pytest.mark.parametrize(("code", "ok"), [(0, True), (1, False), (None, False), (-11, False)])
def test_a_tool_run_is_ok_only_with_exit_status_zero(tmp_path, code, ok):
    assert ToolRun(Command(("x",)), code, None, code is None, 0.0, tmp_path, tmp_path).ok is ok
