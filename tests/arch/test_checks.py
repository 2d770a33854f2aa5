"""The checks that `nox -s lint types` runs, as tests: so the tests alone say whether a change is fit."""

from __future__ import annotations

import subprocess
import sys

import pytest

from places import ROOT


@pytest.mark.slow
@pytest.mark.parametrize("command", ["ruff check", "ruff format --check", "mypy"])
def test_it_has_nothing_to_say(command):
    done = subprocess.run(
        [sys.executable, "-m", *command.split()], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
