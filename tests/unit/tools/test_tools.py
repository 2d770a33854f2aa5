"""Finding programs, reading their help, telling why they failed, and leaving none of their processes behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.cuda import smi
from harness.errors import ToolMissing
from harness.record import Command, ToolRun
from harness.tools import leftovers
from harness.tools import tool as tools
from harness.tools.tool import Symptom, Tool, Wanted

WANTED = Wanted("mytool", "to test", "apt-get install mytool", floor=(2021, 2))


def there(fake_tool, monkeypatch, script: str) -> None:
    monkeypatch.setenv("PATH", str(fake_tool("mytool", script)))


def test_version_and_options_come_from_the_tool_itself(fake_tool, monkeypatch):
    there(
        fake_tool,
        monkeypatch,
        "echo 'mytool version 2025.3.2.1'; echo '  -o [ --output ] arg   where'; echo '      --sample=none'",
    )
    tool = tools.find(WANTED)
    assert (tool.version, tool.version_text) == ((2025, 3, 2), "2025.3.2")
    assert tool.options == {"--output", "--sample"}
    assert (tool.has("--output"), tool.has("--nothing")) == (True, False)


def test_a_help_that_says_nothing_is_taken_for_a_current_version(fake_tool, monkeypatch):
    there(fake_tool, monkeypatch, "echo 'mytool version 2025.3.2'")
    assert tools.find(WANTED).has("--whatever")


def test_the_floor_is_compared_as_numbers(fake_tool, monkeypatch):
    there(fake_tool, monkeypatch, "echo 'mytool version 2021.10.1'")
    assert tools.here(WANTED)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'mytool version 2021.1.9'", "2021.1.9 is here: version 2021.2 or newer is driven"),
        ("kill -SEGV $$", "died of signal 11"),
    ],
    ids=["too old", "crashes"],
)
def test_a_tool_that_cannot_be_driven(fake_tool, monkeypatch, script, said):
    there(fake_tool, monkeypatch, script)
    with pytest.raises(ToolMissing, match=said):
        tools.find(WANTED)


def test_a_tool_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolMissing, match="mytool is needed to test, and is not on PATH"):
        tools.find(WANTED)


@pytest.mark.parametrize(
    ("text", "meaning", "hint"),
    [
        ("==ERROR== ERR_NVGPUCTRPERM - no permission", "ERR_NVGPUCTRPERM", "NVreg_RestrictProfilingToAdminUsers=0"),
        ("write failed: No space left on device", "the disk is full", "--out FOLDER"),
        ("CUDA driver version is insufficient for CUDA runtime version", "driver is too old", "probe doctor"),
        ("CUDA error: no CUDA-capable device is detected", "no GPU here", "probe doctor"),
        ("unrecognised option '--foo'", "does not know the option --foo", "version"),
    ],
)
def test_what_all_tools_fail_of(text, meaning, hint):
    found = tools.diagnose(text, ())
    assert found is not None
    assert meaning in found[0]
    assert hint in found[1]


def test_a_tool_s_own_symptom_comes_first():
    own = Symptom(r"disk is full of (?P<what>\w+)", "too many {what}", "remove {what}")
    assert tools.diagnose("the disk is full of logs", (own,)) == ("too many logs", "remove logs")
    assert tools.diagnose("all is well", (own,)) is None


def test_the_message_quotes_the_end_of_the_log_in_printable_signs(tmp_path):
    run = ToolRun(Command(("t",)), 3, None, False, 1.0, tmp_path / "o", tmp_path / "e")
    error = tools.failure(Tool("t", Path("t")), run, "".join(f"line {n}\n" for n in range(50)) + "\x1b[31mred\0")
    lines = str(error).splitlines()
    assert lines[0] == "t ended with exit code 3"
    assert lines[1:] == ["  | line 46", "  | line 47", "  | line 48", "  | line 49", "  | ?[31mred?"]


def test_what_left_the_process_group_is_ended_too(tmp_path, gone):
    code = "import os, sys, time; os.setsid(); open(sys.argv[1], 'w').write(f'{os.getpid()}\\n'); time.sleep(600)"
    pids = tmp_path / "pids"
    with leftovers.swept() as marked:
        child = subprocess.Popen([sys.executable, "-S", "-c", code, str(pids)], env={**os.environ, **marked})
        while not pids.exists() or not pids.read_text():
            assert child.poll() is None
    child.wait(5)
    assert gone(pids)


def test_processes_without_the_mark_are_left_alone():
    bystander = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
    try:
        with leftovers.swept():
            pass
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_gpus_whose_names_hold_commas():
    assert smi.parse("A, with comma, 8.9, 550.1\n", ("name", "cc", "driver")) == [
        {"name": "A, with comma", "cc": "8.9", "driver": "550.1"}
    ]
    assert smi.parse("No devices were found\n", ("name", "cc", "driver")) == []
