"""The README's commands do what they promise, pasted word for word on a fresh clone; what the documentation says is so."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import click
import pytest

from harness import errors
from places import ROOT
from probes import cli

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


DOCUMENTS = ["README.md", "tests/gpu/README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]


def commands_in(text: str) -> list[str]:
    """Every `probe ...` of a block of code, without what is said beside it; lines that go on are one."""
    blocks = "\n".join(re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)).replace("\\\n", " ")
    lines = re.findall(r"^(?:\S+/)?probe (.*)$", blocks, re.MULTILINE)
    return [re.split(r"\s{2,}(?![-'])|\s# ", re.sub(r"\[(--[^]]*)\]", r"\1", line))[0] for line in lines]


def commands_in_help() -> list[str]:
    """Every command of the examples of every verb."""
    commands = [each for one in cli.probe.commands.values() for each in getattr(one, "commands", {"": one}).values()]
    lines = "\n".join(command.help or "" for command in commands)
    return [re.split(r"\s{2,}", line)[0] for line in re.findall(r"\bprobe (\w+ .*[-/=.].*)$", lines, re.MULTILINE)]


@pytest.fixture
def parse(monkeypatch):
    """Do what click does before it calls the verb; files that are named need not be there."""

    def call(words: list[str]) -> None:
        command, context = cli.probe, click.Context(cli.probe)
        while isinstance(command, click.Group):
            _, command, words = command.resolve_command(context, words)
        for parameter in command.params:
            if isinstance(parameter.type, click.Path):
                monkeypatch.setattr(parameter.type, "exists", False)
        command.make_context(command.name, list(words))

    return call


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_of_the_documentation_is_one_that_probe_understands(parse, document):
    found = commands_in((ROOT / document).read_text(encoding="utf-8"))
    for command in found:
        parse(shlex.split(command))


def test_every_example_of_the_help_is_one_that_probe_understands(parse):
    found = commands_in_help()
    assert len(found) > 30
    for command in found:
        parse(shlex.split(command))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_options_in_the_text_exist(document):
    text = re.sub(r"^```.*?^```", "", (ROOT / document).read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for code in re.findall(r"`probe ([^`]+)`", text):
        verb, *words = re.sub(r"[\[\]]", "", code).split()
        if verb in cli.probe.commands and "..." not in code and "," not in verb:
            command = cli.probe.commands[verb]
            commands = getattr(command, "commands", {"": command}).values()
            known = {name for one in commands for parameter in one.params for name in parameter.opts} | {
                "--help",
                "--gpu",
            }
            assert {word.split("=")[0] for word in words if word.startswith("--") and word != "--"} <= known, code


@pytest.mark.parametrize("document", DOCUMENTS)
def test_what_a_document_links_to_exists(document):
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / document).read_text(encoding="utf-8"))
    assert [target for target in targets if not ((ROOT / document).parent / target).exists()] == []


def test_every_extra_in_the_table_exists():
    import configparser

    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert set(re.findall(r"^\| `\[([\w-]+)\]` \|", README, re.MULTILINE)) == set(setup["options.extras_require"])
