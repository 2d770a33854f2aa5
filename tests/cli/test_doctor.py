"""`probe doctor` on machines that have, lack or have broken tools, libraries and GPUs."""

from __future__ import annotations

import dataclasses
import getpass
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import click
import pytest

from harness.optional import LIBRARIES, Library
from probes import abilities, cli, doctoring
from probes.doctoring import Kind

SECRET, HOME = "a-value-that-nobody-may-see", "/somebodys-home"
SMI_H100 = "echo 'NVIDIA H100 80GB HBM3, 9.0, 580.159.04'"


@pytest.fixture
def bare(monkeypatch):
    """No libraries, so that a test of tools does not load them all."""
    monkeypatch.setattr(doctoring, "LIBRARIES", {})
    monkeypatch.setattr(doctoring, "BASE_LIBRARIES", ())


@pytest.fixture
def examine(tmp_path):
    """Examine a machine whose tools are those in one folder, and give the checks by name."""

    def call(folder=tmp_path / "no such folder", places=(), timeout_s=20.0):
        return {check.name: check for check in doctoring.examine(str(folder), places, timeout_s)}

    return call


# What the tools print about themselves, in their own layouts.
BANNERS = {
    "nsys": ("echo 'NVIDIA Nsight Systems version 2025.3.1.90-253135822126v0'", "2025.3.1.90"),
    "ncu": (
        "echo 'NVIDIA (R) Nsight Compute Command Line Profiler'; echo 'Version 2025.3.1.0 (build 1)'",
        "2025.3.1.0",
    ),
    "compute-sanitizer": ("echo 'NVIDIA (R) Compute Sanitizer'; echo 'Version 2025.3.1.0 (build 2)' >&2", "2025.3.1.0"),
    "cuda-memcheck": ("echo 'CUDA-MEMCHECK version 11.8.86 ID:(46)'", "11.8.86"),
    "trtexec": ("echo '&&&& RUNNING TensorRT.trtexec [TensorRT v101600] # trtexec --help'", "10.16.0"),
    "nvcc": ("echo 'Cuda compilation tools, release 13.0, V13.0.88'", "13.0.88"),
    "cuobjdump": ("echo 'Cuda compilation tools, release 12.9, V12.9.82'", "12.9.82"),
    "g++": ("echo 'g++ (Debian 12.2.0-14) 12.2.0'", "12.2.0"),
}


def test_every_tool_is_found_with_its_version(bare, examine, fake_tool):
    for name, (script, _) in BANNERS.items():
        folder = fake_tool(name, script)
    checks = examine(folder)
    assert {tool.name for tool in doctoring.TOOLS} == BANNERS.keys()
    assert {name: checks[name].version for name in BANNERS} == {name: version for name, (_, version) in BANNERS.items()}
    assert all(checks[name].works and checks[name].note == "" for name in BANNERS)


def test_a_bare_machine_lacks_every_tool_and_says_how_to_get_it(bare, examine):
    checks = examine()
    tools = [check for check in checks.values() if check.kind is Kind.TOOL]
    assert len(tools) == len(doctoring.TOOLS)
    assert not any(check.found or check.works for check in tools)
    assert all(check.purpose.startswith("to ") for check in checks.values())
    assert {name for name, check in checks.items() if not check.install} == {"cuda-memcheck"}, "nothing brings it back"
    assert not checks["gpu"].found
    assert not checks["counters"].works


@pytest.mark.parametrize(
    ("script", "works", "note"),
    [
        ("echo cannot open libcuda.so.1 >&2; exit 127", False, "exit status 127: cannot open libcuda.so.1"),
        ("kill -SEGV $$", False, "ended by signal 11"),
        ("printf '\\377\\000 \\033[31m no version here'", True, "tells no version"),
        ("echo Version 2025.1.0; exit 1", True, ""),  # some tools exit with 1 although they answer
    ],
    ids=["fails", "crashes", "prints garbage", "answers and fails"],
)
def test_a_tool_that_is_broken(bare, examine, fake_tool, script, works, note):
    check = examine(fake_tool("ncu", script))["ncu"]
    assert check.found
    assert check.works is works
    assert note in check.note
    assert check.note.isprintable()


def test_a_tool_that_hangs_is_stopped(bare, examine, fake_tool, tmp_path, gone):
    check = examine(fake_tool("ncu", f"echo $$ > {tmp_path}/pid; exec /bin/sleep 600"), timeout_s=0.5)["ncu"]
    assert check.found
    assert not check.works
    assert "no answer in 0.5 s" in check.note
    assert gone(tmp_path / "pid")


def test_a_file_that_is_no_program(bare, examine, fake_tool):
    folder = fake_tool("ncu", "")
    (folder / "ncu").write_bytes(b"\x7fELF for another machine")
    check = examine(folder)["ncu"]
    assert check.found
    assert "cannot be started" in check.note


def test_a_tool_that_is_too_old_is_told(bare, examine, fake_tool):
    check = examine(fake_tool("nsys", "echo NVIDIA Nsight Systems version 2020.3.1.72"))["nsys"]
    assert check.works
    assert check.note == "older than 2021.1, the oldest that probe drives"


def test_the_newest_in_the_usual_places_is_taken_and_said(bare, examine, tmp_path):
    for version in ("2024.9.1", "2025.3.1", "2025.10.0"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "ncu").write_text(f"#!/bin/sh\necho Version {version}\n")
        (tmp_path / version / "ncu").chmod(0o755)
    check = examine(places=[f"{tmp_path}/absent", f"{tmp_path}/*"])["ncu"]
    assert check.version == "2025.10.0"  # as numbers: 10 is after 3
    assert check.note == f"not on PATH: {tmp_path}/2025.10.0/ncu"


@pytest.mark.parametrize(
    ("script", "gpus"),
    [
        (SMI_H100, "NVIDIA H100 80GB HBM3 (compute capability 9.0)"),
        (f"{SMI_H100}; {SMI_H100}", "NVIDIA H100 80GB HBM3 (compute capability 9.0), " * 2),
        ("echo 'A, with comma, 8.9, 550.1'", "A, with comma (compute capability 8.9)"),
    ],
    ids=["one", "two", "a comma in the name"],
)
def test_gpus(bare, examine, fake_tool, script, gpus):
    check = examine(fake_tool("nvidia-smi", script))["gpu"]
    assert check.works
    assert check.note == gpus.removesuffix(", ")
    assert check.version.startswith("driver 5")


@pytest.mark.parametrize(
    "script",
    ["echo 'NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver.'; exit 9", "echo No devices",
     "exit 0"],
)  # fmt: skip
def test_a_driver_without_a_gpu(bare, examine, fake_tool, script):
    checks = examine(fake_tool("nvidia-smi", script))
    assert not checks["gpu"].found
    assert "nvidia-smi found no GPU" in checks["gpu"].note
    assert not checks["counters"].works


ADMIN, USER, RESTRICTED, FREE = "CapEff:\t000001ffffffffff", "CapEff:\t0000000000000000", "1", "0"


@pytest.mark.parametrize(
    ("only_admin", "status", "allowed"),
    [(RESTRICTED, ADMIN, True), (RESTRICTED, USER, False), (FREE, USER, True), (FREE, ADMIN, True)],
)
def test_permission_for_counters(only_admin, status, allowed):
    parameters = f"ResmanDebugLevel: 4294967295\nRmProfilingAdminOnly: {only_admin}\nEnableMSI: 1\n"
    assert doctoring.counters_allowed(parameters, f"Name:\tx\n{status}\n") is allowed


def test_permission_for_counters_is_not_guessed():
    assert doctoring.counters_allowed("EnableMSI: 1\n", ADMIN) is None
    assert doctoring.counters_allowed("RmProfilingAdminOnly: 1\n", "no capabilities here") is False


def test_counters_that_are_kept_from_us_name_the_error(bare, examine, fake_tool, monkeypatch, tmp_path):
    (tmp_path / "params").write_text("RmProfilingAdminOnly: 1\n")
    monkeypatch.setattr(doctoring, "DRIVER_PARAMETERS", tmp_path / "params")
    monkeypatch.setattr(doctoring, "CAP_SYS_ADMIN", 0)  # as if we had no capability
    check = examine(fake_tool("nvidia-smi", SMI_H100))["counters"]
    assert not check.works
    assert "ERR_NVGPUCTRPERM" in check.note
    assert "NVreg_RestrictProfilingToAdminUsers=0" in check.install


@pytest.fixture
def library(tmp_path, monkeypatch):
    """Make doctor look for one library, a module of the given text; `base` makes it one that probe cannot do without."""

    def make(text: str | None, base: bool = False) -> str:
        name = "probe_doctored_library"
        if text is not None:
            (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        entry = Library(name, "to test doctor", "pip install it")
        monkeypatch.setattr(doctoring, "BASE_LIBRARIES", (entry,) if base else ())
        monkeypatch.setattr(doctoring, "LIBRARIES", {} if base else {name: entry})
        monkeypatch.setattr(doctoring, "REQUIRED", {name} if base else set())
        return name

    return make


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("raise ImportError('libcuda.so.1: cannot open')", "exit status 1: ImportError: libcuda.so.1: cannot open"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "ended by signal 11"),
        ("import time; time.sleep(600)", "no answer in 1.5 s"),
    ],
    ids=["raises", "crashes", "hangs"],
)
@pytest.mark.parametrize("base", [False, True])
def test_a_library_that_does_not_load(library, examine, text, note, base):
    name = library(text, base)
    check = examine(timeout_s=1.5)[name]
    assert (check.found, check.works) == (True, False)
    assert check.note.startswith("does not load")
    assert note in check.note
    assert doctoring.healthy([check]) is not base


@pytest.mark.parametrize("base", [False, True])
def test_a_library_that_is_absent(library, examine, base):
    name = library(None, base)
    check = examine()[name]
    assert (check.found, check.works, check.version, check.note) == (False, False, None, "")
    assert doctoring.healthy([check]) is not base


def test_the_home_folder_is_not_told(library, examine, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    name = library("raise ImportError('/home/somebody/lib/x.so: wrong ELF class')")
    assert "~/lib/x.so" in examine()[name].note


def here(*names: str) -> list[doctoring.Check]:
    return [doctoring.Check(name, Kind.LIBRARY, True, True, "1", "", "") for name in names]


def test_what_each_verb_lacks_is_told():
    lacks = {
        ability.command: missed for ability, missed in doctoring.lacking(here("onnxruntime", "gpu", "cupy")).items()
    }
    assert lacks["bisect MODEL.onnx"] == ()
    assert lacks["bisect --backend trt"] == ("tensorrt",)
    assert lacks["printf --gpu"] == (), "one of the two compilers is enough"
    assert lacks["profile --ncu"] == ("ncu", "counters")


def test_the_summary_counts_what_can_be_done():
    some, more = (doctoring.summarise(here(*names)) for names in (["onnxruntime"], ["onnxruntime", "gpu", "nvcc"]))
    assert some.startswith("without a GPU, 3 of the ")
    assert more.startswith("with this GPU, 7 of the ")


def test_every_verb_has_an_ability():
    named = {word.strip(",") for ability in abilities.ABILITIES for word in ability.command.split()}
    assert set(cli.probe.commands) - {"doctor"} <= named


def test_abilities_rest_on_things_that_doctor_looks_for():
    known = {"gpu", "counters", *LIBRARIES, *(tool.name for tool in doctoring.TOOLS)}
    assert {name for ability in abilities.ABILITIES for need in ability.needs for name in need.split("|")} <= known


def test_options_of_abilities_are_those_of_the_verbs():
    for ability in abilities.ABILITIES:
        options = {
            name for one in options_of(cli.probe.commands[ability.command.split()[0].strip(",")]) for name in one.opts
        }
        assert {word for word in ability.command.replace("=", " ").split() if word.startswith("--")} <= options | {
            "--gpu"
        }


def options_of(command: click.Command) -> list[click.Parameter]:
    commands = command.commands.values() if isinstance(command, click.Group) else [command]
    return [one for each in commands for one in each.params]


def test_one_line_brings_all_that_it_brings():
    gone = [
        dataclasses.replace(one, works=False, install="pip install 'probe-trt[gpu]'") for one in here("cupy", "pycuda")
    ]
    assert doctoring.missing([*gone, *here("onnx")]) == {"pip install 'probe-trt[gpu]'": ["cupy", "pycuda"]}


# The whole command, in a process of its own.


@pytest.fixture(scope="module")
def reported(probe, tmp_path_factory):
    """What the command did with --json FILE: (the process, the document)."""
    file = tmp_path_factory.mktemp("doctor") / "doctor.json"
    done = probe("doctor", "--json", file, environment={"PROBE_TEST_SECRET": SECRET, "HOME": HOME})
    return done, json.loads(file.read_text(encoding="utf-8"))


def test_the_table_and_the_file(reported):
    done, document = reported
    assert (done.returncode, done.stderr) == (0, "")
    for check in document["checks"]:
        assert check["name"] in done.stdout
    assert done.stdout.endswith(f"{document['summary']}\n")
    assert all(ability["command"].removeprefix("probe ") in done.stdout for ability in document["abilities"])
    assert all(ability["here"] is (ability["lacks"] == []) for ability in document["abilities"])
    assert document["healthy"] is True


def test_the_document_has_every_field_of_every_check(reported):
    fields = {field.name for field in dataclasses.fields(doctoring.Check)}
    assert all(check.keys() == fields for check in reported[1]["checks"])
    names = [check["name"] for check in reported[1]["checks"]]
    assert len(names) == len(set(names))
    assert {"python", "nsys", "ncu", "compute-sanitizer", "gpu", "counters", *LIBRARIES} <= set(names)


def test_nothing_of_the_environment_is_told(reported):
    done, document = reported
    text = done.stdout + json.dumps(document)
    assert SECRET not in text
    assert HOME.strip("/") not in text
    words = set(re.findall(r"[\w.-]+", text))
    assert socket.gethostname() not in words
    assert getpass.getuser() not in words - {"root"}  # "run as root" is advice


# The same, without the libraries: loading them all takes seconds.

BARE = """
import sys
sys.path.insert(0, {root!r})
from probes import doctoring
doctoring.LIBRARIES, doctoring.BASE_LIBRARIES = {{}}, ()
from probes.cli import main
main()
"""


@pytest.fixture(scope="module")
def bare_argv(root):
    return (sys.executable, "-c", BARE.format(root=str(root)))


def test_json_on_standard_output_is_alone_there(bare_argv, tmp_path):
    done = subprocess.run([*bare_argv, "doctor", "--json", "-"], cwd=tmp_path, capture_output=True, check=True)
    assert json.loads(done.stdout)["schema_version"] == 1
    assert list(tmp_path.iterdir()) == []


def test_a_broken_base_is_exit_code_1(root, tmp_path):
    (tmp_path / "jinja2.py").write_text("raise ImportError('broken')")
    script = BARE.format(root=str(root)).replace(", doctoring.BASE_LIBRARIES = {}, ()", " = {}")
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script, "doctor"], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert [line.split()[1] for line in lines if line.split()[:1] == ["jinja2"]] == ["broken"]
    assert any(line.startswith("jinja2: does not load") and "ImportError: broken" in line for line in lines)
    assert any(line.split() == ["pip", "install", "jinja2", "#", "jinja2"] for line in lines)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_stops_the_tool_that_hangs(bare_argv, fake_tool, tmp_path, gone, wait_for, number):
    pid = tmp_path / "pid"
    folder = fake_tool("nsys", f"echo $$ > {pid}; exec /bin/sleep 600")
    env = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    process = subprocess.Popen(
        [*bare_argv, "doctor"], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        wait_for(lambda: pid.exists() and pid.read_text().endswith("\n"))
        process.send_signal(number)
        _, stderr = process.communicate(timeout=15)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "probe: error: interrupted" in stderr
    assert gone(pid)


@pytest.mark.parametrize("options", [(), ("--json", "-")])
def test_a_reader_that_goes_away_is_no_defect(bare_argv, options):
    argv = [*bare_argv, "doctor", *options]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 141
    assert stderr == ""


# The shell around the verbs: errors become messages and exit codes.

RAISING = """
import sys
sys.path.insert(0, {root!r})
import click
from harness import errors
from probes import cli

@cli.probe.command(sections={{"Options": ()}})
def stumble():
    {statement}

sys.argv = ["probe", "stumble"]
cli.main()
"""


@pytest.mark.parametrize(
    ("statement", "code", "stderr"),
    [
        (
            "raise errors.UsageError('no such file', hint='give another')",
            2,
            "probe: error: no such file\ntry: give another\n",
        ),
        ("raise errors.BuildFailed('out of memory')", 125, "probe: error: out of memory\n"),
        ("raise errors.SearchStopped('enough', set(), interrupted=True)", 130, "probe: error: enough\n"),
        ("raise KeyboardInterrupt", 130, "interrupted"),
        (
            "raise click.UsageError('that does not go together')",
            2,
            "probe: error: that does not go together\ntry: probe",
        ),
        ("raise click.FileError('x', hint='unreadable')", 2, "unreadable"),
        (
            "raise OSError(28, 'No space left on device', 'run/raw/log')",
            125,
            "run/raw/log cannot be written: No space left",
        ),
        ("raise OSError(5, 'Input/output error')", 70, "OSError"),
        ("1 / 0", 70, "ZeroDivisionError"),
        ("return 1", 1, ""),
        ("return None", 0, ""),
    ],
)
def test_how_a_verb_ends(root: Path, statement, code, stderr):
    script = RAISING.format(root=str(root), statement=statement)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (code, "")
    assert stderr in done.stderr
    assert ("Traceback" in done.stderr) == (code == 70)


@pytest.mark.parametrize(
    ("arguments", "code"), [(["--help"], 0), (["--version"], 0), (["no-such-verb"], 2), (["doctor", "--no"], 2)]
)
def test_usage(probe, arguments, code):
    done = probe(*arguments)
    assert done.returncode == code
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("group", [(), ("ladder",), ("kernels",)])
def test_the_help_names_every_verb_under_a_title(group):
    command = cli.probe
    for name in group:
        command = command.commands[name]
    listed = [name for texts in command.titles.values() for name in texts]
    assert sorted(listed) == sorted(command.commands)


@pytest.mark.parametrize("width", [60, 110])
def test_the_help_of_a_verb_shows_every_option_once_under_its_heading(width):
    context = click.Context(cli.bisect, info_name="probe bisect", terminal_width=width)
    text = cli.bisect.get_help(context)
    for title, parameters in cli.bisect.sections.items():
        part = text.partition(f"\n{title}:\n")[2].partition("\n\n")[0]
        assert all(f"  {one.opts[0]}" in part for one in parameters if isinstance(one, click.Option))
    assert "--help" in text.rpartition("Results:")[2]
    assert max(map(len, text[text.index("What to look for") :].splitlines())) <= width


@pytest.mark.parametrize("words", [(), ("ladder",), ("kernels",)])
def test_a_group_alone_shows_its_help(probe, words):
    done = probe(*words)
    assert done.returncode == 2
    assert "Usage: probe" in done.stderr + done.stdout
    assert "probe: error" not in done.stderr


EARLY = """
import os, signal, sys
sys.path.insert(0, {root!r})

class Interrupter:
    def find_spec(self, name, *_):
        if name == "probes.cli":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupter())
from probes.__main__ import main
main()
"""


def test_ctrl_c_before_anything_is_loaded_ends_it_without_a_word(root):
    done = subprocess.run(
        [sys.executable, "-c", EARLY.format(root=str(root))], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_a_json_file_that_cannot_be_written_is_refused_before_any_work(probe, tmp_path):
    done = probe("doctor", "--json", tmp_path / "absent" / "doctor.json")
    assert done.returncode == 2
    assert "does not exist" in done.stderr
