"""The programs that probe drives: where each is, its version and options, and how a run of it is told about when it fails.

Which options a program has is read from its own help: both Nsight tools and compute-sanitizer have renamed theirs more
than once. Where that says nothing, the version tells.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import process
from harness.errors import ArtifactMissing, ToolFailed, ToolMissing, ToolTimeout
from harness.record import Command, ToolRun
from harness.tools import leftovers, versions

Tell = Callable[[str], None]
VERSION_TIMEOUT_S = 60.0  # the first start of a tool from a cold disk takes long
TELL_EVERY_S = 0.5

# Folders that CUDA, Nsight and TensorRT install to without touching PATH; the newest version is taken first.
USUAL_PLACES = (
    "/usr/local/cuda/bin", "/usr/local/cuda-*/bin",
    "/opt/nvidia/nsight-compute/*", "/opt/nvidia/nsight-systems/*/bin", "/opt/nvidia/nsight-systems/*/target-linux-*",
    "/usr/src/tensorrt/bin", "/usr/lib/wsl/lib",
)  # fmt: skip


@dataclass(frozen=True)
class Wanted:
    """A program that probe can drive: what for, what installs it, the oldest version whose options are known here."""

    name: str
    purpose: str
    install: str
    floor: tuple[int, ...]
    version: tuple[str, ...] = ("--version",)  # arguments that make it tell its version
    help: tuple[str, ...] = ("--help",)  # arguments that make it list its options


@dataclass(frozen=True)
class Tool:
    """A program as it is here. `options` are those that its help names; empty if it names none."""

    name: str
    path: Path
    version: tuple[int, ...] = ()
    options: frozenset[str] = frozenset()

    def has(self, option: str) -> bool:
        """Whether it knows a long option: by its help or, if that says nothing, by its version."""
        return option in self.options if self.options else versions.has(self.name, self.version, option)

    @property
    def version_text(self) -> str:
        return ".".join(map(str, self.version))


@dataclass(frozen=True)
class Symptom:
    """Words in a tool's output, what they mean, and what to do about it. A named group in the words fills both texts."""

    words: str
    meaning: str
    hint: str = ""


@dataclass(frozen=True)
class Recorded:
    """What a run of a tool left: its files, and how the program under it ended (None: not known), in words `notes`."""

    tool: Tool
    run: ToolRun
    artifacts: tuple[Path, ...]
    program_code: int | None = None
    notes: tuple[str, ...] = ()


COUNTERS = (
    "as root (sudo), in a container with --cap-add=SYS_ADMIN, or for all users:"
    " echo 'options nvidia NVreg_RestrictProfilingToAdminUsers=0' | sudo tee /etc/modprobe.d/nvidia-profiling.conf,"
    " then reboot"
)
OWN_TMP = "mkdir -p ~/tmp; TMPDIR=~/tmp probe profile ..."  # where the tools keep what is not yet a report
DISK_FULL = Symptom(
    r"[Nn]o space left on device|ENOSPC|disk (?:is )?full", "the disk is full",
    "--out FOLDER on a disk with more space; TMPDIR=FOLDER before it, if /tmp is what is full",
)  # fmt: skip
SYMPTOMS = (
    DISK_FULL,
    Symptom(r"ERR_NVGPUCTRPERM", "the driver keeps the GPU's counters for administrators (ERR_NVGPUCTRPERM)", COUNTERS),
    Symptom(
        r"CUDA driver version is insufficient|forward compatibility was attempted|cudaErrorInsufficientDriver"
        r"|CUDA initialization failure with error: (?:35|803)",
        "the driver is too old for this CUDA", "probe doctor",
    ),
    Symptom(r"error while loading shared libraries: (?P<library>[^:\s]+)", "{library} is not found",
            "export LD_LIBRARY_PATH=FOLDER with the folder that holds it"),
    Symptom(
        r"[Nn]o CUDA-capable device|cudaErrorNoDevice|CUDA_ERROR_NO_DEVICE|failed to connect to the CUDA driver"
        r"|libcuda\.so\S*: cannot open|no supported GPUs",
        "there is no GPU here that CUDA can use", "probe doctor; or --ort, which needs no GPU",
    ),
    Symptom(r"[Oo]ut of memory|OutOfMemory|std::bad_alloc|CUDA_ERROR_OUT_OF_MEMORY|GPU memory .{0,40}could not be allocated", "memory ran out", "smaller shapes, or fewer iterations"),
    Symptom(r"unrecognised option '?(?P<what>[^'\n]+)|unrecognized option '?(?P<which>[^'\n]+)",
            "it does not know the option {what}{which}", "probe doctor shows its version"),
)  # fmt: skip


def find(wanted: Wanted) -> Tool:
    """The program on PATH, else in the usual places. Raises ToolMissing if it is not there, too old, or does not start."""
    program, _ = find_tool(wanted.name, os.environ.get("PATH"), USUAL_PLACES)
    if program is None:
        raise ToolMissing(wanted.name, wanted.purpose, wanted.install)
    version, options = _examine(program, wanted.version, wanted.help)
    if version and version < wanted.floor:
        raise ToolMissing(
            wanted.name, wanted.purpose, wanted.install,
            f"{_text(version)} is here: version {_text(wanted.floor)} or newer is driven",
        )  # fmt: skip
    return Tool(wanted.name, program, version, options)


def here(wanted: Wanted) -> bool:
    """Whether a program that can be driven is here."""
    try:
        find(wanted)
    except ToolMissing:
        return False
    return True


def find_tool(name: str, path: str | None, places: Sequence[str]) -> tuple[Path | None, bool]:
    """Where a program lies, and whether PATH leads to it."""
    if on_path := shutil.which(name, path=path or ""):
        return Path(on_path), True
    for place in places:
        found = Path("/").glob(f"{place.lstrip('/')}/{name}")
        runnable = [file for file in found if file.is_file() and os.access(file, os.X_OK)]
        if runnable:
            return max(runnable, key=lambda file: [int(n) for n in re.findall(r"\d+", str(file))]), False
    return None, False


def parse_version(text: str) -> str | None:
    """The version in what a tool prints about itself; None if there is none to be seen.

    Tools say `Version 2025.3.1.0 (build 1)`, `release 13.0, V13.0.88`, `(Debian 12.2.0-14) 12.2.0`; trtexec's banner
    says `[TensorRT v8601]` or `[TensorRT v101600]`.
    """
    if packed := re.search(r"\[TensorRT v(\d{4,6})\]", text):
        number = int(packed[1])
        base = 10_000 if number >= 10_000 else 1_000
        return f"{number // base}.{number % base // 100}.{number % 100}"
    named = re.search(r"release [\d.]+, V(\d+(?:\.\d+)+)", text)
    named = named or re.search(r"(?:version|release)[ :]+v?(\d+(?:\.\d+)+)", text, re.IGNORECASE)
    plain = re.search(r"(?<![\w.(-])v?(\d+(?:\.\d+)+)(?![\w.-])", re.sub(r"\([^)]*\)", "", text))
    match = named or plain
    return match[1] if match else None


def parse_options(text: str) -> frozenset[str]:
    """The long options that a help text names, with their dashes."""
    return frozenset(re.findall(r"(?<![\w-])--[A-Za-z][\w-]*", text))


def drive(tool: Tool, command: Command, stem: Path, tell: Tell) -> ToolRun:
    """Run a tool, telling how long it has run and what it said last; nothing that it started is left behind."""
    told = -TELL_EVERY_S
    logs = (Path(f"{stem}.out"), Path(f"{stem}.err"))

    def tick(elapsed: float) -> None:
        nonlocal told
        if elapsed - told >= TELL_EVERY_S:
            told = elapsed
            tell(f"{tool.name}, {elapsed:.0f} s  {_last_line(logs)}".rstrip())

    with leftovers.swept() as marked:
        environment = {**command.environment, **marked}
        return process.run(Command(command.argv, command.timeout_s, environment, command.cwd), stem, on_tick=tick)


def said(run: ToolRun, *files: Path, lines: int = 200) -> str:
    """The end of all that a run printed, and of the further logs that it wrote."""
    return "\n".join(filter(None, (process.tail(path, lines, 65_536) for path in (*files, run.stdout, run.stderr))))


def program_command(words: Sequence[str], tool: Tool, target: Command, timeout_s: float | None) -> Command:
    """The tool's words and the program behind them; environment and folder are the program's."""
    return Command((str(tool.path), *words, *target.argv), timeout_s, target.environment, target.cwd)


def diagnose(text: str, symptoms: Sequence[Symptom]) -> tuple[str, str] | None:
    """What is wrong and what to do, by the first symptom that a text shows: the tool's own first, then the common ones."""
    for symptom in (*symptoms, *SYMPTOMS):
        if match := re.search(symptom.words, text):
            parts = {name: (value or "").strip() for name, value in match.groupdict().items()}
            return symptom.meaning.format(**parts), symptom.hint.format(**parts)
    return None


def failure(tool: Tool, run: ToolRun, text: str, symptoms: Sequence[Symptom] = (), *, quoted: str = "") -> ToolFailed:
    """The error that says how a run ended, why (as far as its words tell), its last lines, and what to do next."""
    shown = _quoted(quoted or text)
    if run.timed_out:
        limit = run.command.timeout_s or run.duration_s
        return ToolTimeout(f"{tool.name} was stopped after {limit:g} s, with all it had started{shown}", run,
                           hint="--timeout SECONDS; or fewer --iterations, a --kernel, a --range")  # fmt: skip
    why, hint = diagnose(text, symptoms) or ("", "")
    if not why and run.signal == 9:
        why, hint = "the system killed it, for want of memory as a rule", "fewer --iterations, a --kernel, a --range"
    return ToolFailed(f"{tool.name} {ending(run)}{f': {why}' if why else ''}{shown}", run, hint=hint or where(run))


def where(run: ToolRun) -> str:
    """What to type to read all that a run printed, in the session's folder."""
    folder = run.stdout.parent.name
    return f"less {folder}/{run.stdout.name} {folder}/{run.stderr.name}"


def empty(tool: Tool, what: str, hint: str, text: str = "") -> ArtifactMissing:
    """The error for a run that ended well and left nothing to read."""
    return ArtifactMissing(f"{tool.name} ended, and {what}{_quoted(text)}", hint=hint)


def ending(run: ToolRun) -> str:
    """How a run ended, in words."""
    if run.signal is not None:
        return f"was ended by signal {run.signal}"
    return "ended well" if run.ok else f"ended with exit code {run.returncode}"


def _quoted(text: str) -> str:
    """The last few lines that say something, under the message."""
    lines = [line.rstrip() for line in text.splitlines() if line.strip()][-5:]
    printable = ("".join(sign if sign.isprintable() else "?" for sign in line)[:300] for line in lines)
    return "".join(f"\n  | {line}" for line in printable)


def _last_line(logs: Sequence[Path]) -> str:
    newest = max((log for log in logs if log.exists()), key=lambda log: log.stat().st_mtime_ns, default=None)
    text = "" if newest is None else process.tail(newest, 1, 4096).strip()
    return "".join(sign if sign.isprintable() else " " for sign in text)[:100]


@functools.lru_cache
def _examine(program: Path, version: tuple[str, ...], help_: tuple[str, ...]) -> tuple[tuple[int, ...], frozenset[str]]:
    """The version and the options of a program, asked once. Raises ToolMissing if it cannot be started or hangs."""
    told = _ask(program, version)
    listed = told if help_ == version else _ask(program, help_)
    number = parse_version(told)
    return tuple(int(part) for part in number.split(".")[:3]) if number else (), parse_options(listed)


def _ask(program: Path, arguments: tuple[str, ...]) -> str:
    with tempfile.TemporaryDirectory(prefix="probe-tool-") as folder, leftovers.swept() as marked:
        command = Command((str(program), *arguments), VERSION_TIMEOUT_S, marked, Path(folder))
        run = process.run(command, Path(folder) / "log")
        text = "\n".join(path.read_text("utf-8", "replace") for path in (run.stdout, run.stderr))
    if run.timed_out or run.signal is not None:
        how = f"gave no answer in {VERSION_TIMEOUT_S:g} s" if run.timed_out else f"died of signal {run.signal}"
        raise ToolMissing(program.name, "to go on", "probe doctor", f"{program} {how} when asked {' '.join(arguments)}")
    return text


def _text(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
