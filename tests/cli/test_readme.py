"""The README's commands do what they promise, pasted word for word on a fresh clone, and its claims match the code."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from harness import errors
from probes import cli

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = dict(re.findall(r"<!-- command: (\w+) -->\n```bash\n(.*?)\n```\n", README, re.DOTALL))
EXPECTED = {"use": 1, "test": 0}  # the model in the first one does lose accuracy: a defect is found


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    """A repository of what stands in this checkout, committed or not, to be cloned from."""
    folder = tmp_path_factory.mktemp("origin")
    listed = git(ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    for name in filter(None, listed):
        source, target = ROOT / name, folder / name
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
            target.chmod(source.stat().st_mode)
    git(folder, "init", "-q")
    git(folder, "add", "--all")
    git(folder, "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-q", "-m", "snapshot")
    return folder


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True, text=True).stdout


def test_there_are_two_commands_and_each_is_one_line():
    assert COMMANDS.keys() == EXPECTED.keys()
    assert all("\n" not in command for command in COMMANDS.values())


def test_the_address_of_the_repository_is_to_be_filled_in_at_one_place():
    assert len(re.findall(r"^export REPO=", README, re.MULTILINE)) == 1
    assert all(command.startswith('git clone "$REPO" probe && cd probe && ') for command in COMMANDS.values())
    assert re.findall(r"\w+://\S+", README) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPECTED)
def test_the_command_works_on_a_fresh_clone(repository, tmp_path, name):
    if os.environ.get("PROBE_README_RUNS") == name:
        pytest.skip("this command is what is running these tests")
    # A fresh machine: no environment active, no options for pytest.
    ours = ("VIRTUAL_ENV", "PYTHONPATH", "PYTEST_ADDOPTS", "PYTEST_CURRENT_TEST", "PROBE_README_RUNS")
    env = {key: value for key, value in os.environ.items() if key not in ours}
    done = subprocess.run(
        ["bash", "-c", COMMANDS[name]], cwd=tmp_path, env=env | {"REPO": str(repository)},
        capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == EXPECTED[name], f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    if name == "use":
        check_base_install(tmp_path)


def check_base_install(folder: Path) -> None:
    """What the first command installed is the base alone: everything imports there, doctor and bisect work."""
    argv = [folder / "probe" / ".venv" / "bin" / "python", "-P", ROOT / "tests" / "cli" / "nodeps.py"]
    (folder / "away").mkdir()  # from the checkout, so that what is imported is what was installed
    done = subprocess.run(argv, cwd=folder / "away", capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"


def test_every_verb_is_in_the_table_and_no_other_is_said_to_work():
    rows = dict(re.findall(r"^\| `probe (\w+)` \| (\w+)", README, re.MULTILINE))
    assert {verb for verb, state in rows.items() if state == "works"} == set(cli.probe.commands)


def test_the_exit_codes_are_those_of_the_code():
    rows = {int(code) for code in re.findall(r"^\| (\d+) \|", README, re.MULTILINE)}
    codes = {value for name, value in vars(errors).items() if name.startswith("EXIT_")}
    assert rows == codes | {cli.EXIT_BROKEN_PIPE}


def test_what_is_linked_exists():
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_every_extra_in_the_table_exists():
    import configparser

    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert set(re.findall(r"^\| `\[([\w-]+)\]` \|", README, re.MULTILINE)) == set(setup["options.extras_require"])
