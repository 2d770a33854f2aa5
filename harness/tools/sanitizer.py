"""compute-sanitizer on the command line: one of its checkers around a program, its records as XML and as text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from harness.errors import UsageError
from harness.record import Command, ToolRun
from harness.tools import tool as tools
from harness.tools.nvtx_range import NvtxRange
from harness.tools.tool import Recorded, Symptom, Tell, Tool, Wanted

CHECKERS = ("memcheck", "racecheck", "initcheck", "synccheck")
FOUND_CODE = 86  # how the tool is asked to end when it found something and the program ended well; rare in programs
BARE_XML = (2023, 3)  # from here on --xml takes no value
WANTED = Wanted(
    "compute-sanitizer", "to find bad accesses, races and uninitialised reads in kernels",
    "apt-get install cuda-sanitizer-13-0", floor=(2021, 1),
)  # fmt: skip
NO_CUDA = re.compile(r"terminated before first instrumented API call|No attachable process found|does not use CUDA")
PROGRAM_FAILED = re.compile(r"Target application returned an error|process didn't terminate successfully")
# What it says of kernels that do nothing wrong. One made for clusters, and launched with one block in each, writes to its
# own shared memory by the address that the cluster has for it: TensorRT's and cuBLAS's products on sm_90 (seen with 2025.3).
FALSE_ALARM = re.compile(r"Cluster needs to have at least 2 blocks")
UNTRACKED = re.compile(r"didn't track the launch")
SUMMARY = re.compile(r"={9} +(?:\w+ )?SUMMARY: \d")
NOT_HERE = Symptom(r"Device not supported|device is not supported|Unsupported (?:GPU|device)|Failed to initialize WDDM debugger",
                   "it does not support this GPU, or not on this system", "probe doctor shows its version")  # fmt: skip
SYMPTOMS = (
    NOT_HERE,
    Symptom(r"Unable to find injection library|injection library.{0,40}not found",
            "its own libraries are not beside it, as with the packages of Debian and Ubuntu",
            "export PATH=/usr/local/cuda/bin:$PATH, where NVIDIA's own is; else apt-get install cuda-sanitizer-13-0"),
    Symptom(r"Internal Sanitizer Error|Internal error", "it failed in itself", "a newer compute-sanitizer"),
)  # fmt: skip


@dataclass(frozen=True)
class Options:
    """One checker, and which launches it looks at. The counts are of launches that the kernel filter lets pass."""

    checker: str = "memcheck"
    leaks: bool = False  # memcheck alone
    kernels: tuple[str, ...] = ()  # parts of mangled names; none: all kernels
    without: tuple[str, ...] = ()  # the same of kernels that are not looked at
    launch_skip: int = 0
    launch_count: int = 0  # 0: all
    range: NvtxRange | None = None
    print_limit: int = 100  # records; the summary counts on
    timeout_s: float | None = None


def command(tool: Tool, options: Options, target: Command, xml: Path) -> Command:
    """compute-sanitizer around a program, its records in `xml`.

    The exit code that says "found something" is one of our choice, so that it is not taken for the program's own.
    """
    words = ["--tool", options.checker, "--target-processes", "all", "--error-exitcode", str(FOUND_CODE),
             "--print-limit", str(options.print_limit)]  # fmt: skip
    if tool.has("--launch-timeout"):  # else it looks no more after a minute without a CUDA call, however slow the start
        words += ["--launch-timeout", "0"]
    if options.leaks and options.checker == "memcheck":
        words += ["--leak-check", "full"]
    if options.checker == "memcheck":  # 2026.1 and newer would list what libraries try in vain, too
        words += ["--report-api-errors", "explicit"]
        if tool.has("--ignore-getprocaddress-notfound"):
            words.append("--ignore-getprocaddress-notfound")  # libraries ask the driver for what it may not have
    words += [word for part in options.kernels for word in (kernel_option(tool), f"kns={part}")]
    words += [word for part in options.without for word in (f"{kernel_option(tool)}-exclude", f"kns={part}")]
    if options.launch_skip:
        words += ["--launch-skip", str(options.launch_skip)]
    if options.launch_count:
        words += ["--launch-count", str(options.launch_count)]
    if options.range is not None:
        words += [word for one in options.range.for_filters for word in ("--nvtx-include", one)]
    words += ["--xml"] if not tool.version or tool.version >= BARE_XML else ["--xml", "yes"]
    words += ["--save", str(xml.absolute())]
    return tools.program_command(words, tool, target, options.timeout_s)


def kernel_option(tool: Tool) -> str:
    """What the filter by kernel is called: it was renamed twice."""
    names = ("--kernel-name", "--kernel-regex", "--filter")
    return next((name for name in names if tool.has(name)), names[0])


def check_ranges(tool: Tool) -> None:
    """Raise UsageError if it cannot be told to look at the launches of an NVTX range alone."""
    if not tool.has("--nvtx-include"):
        raise UsageError(
            f"--range needs compute-sanitizer 2026.4 or newer, and {tool.version_text} is here", hint="--kernel PART"
        )


def counts_launches(tool: Tool) -> bool:
    """Whether it can skip and count launches (2021.2 and newer)."""
    return tool.has("--launch-count") and tool.has("--launch-skip")


def run(options: Options, target: Command, folder: Path, tell: Tell, *, stem: str) -> Recorded:
    """Run one checker; records, log and what the program printed go to `folder`.

    Findings do not raise, nor does a program that fails. Raises ToolMissing; ToolTimeout; ToolFailed if the checker
    itself failed; ArtifactMissing if the program made no CUDA call, so that nothing was checked.
    """
    tool = tools.find(WANTED)
    xml = folder / f"{stem}.xml"
    ran = tools.drive(tool, command(tool, options, target, xml), folder / stem, tell)
    text = tools.said(ran)
    if ran.timed_out:
        raise tools.failure(tool, ran, text, SYMPTOMS)
    there = xml.is_file() and xml.stat().st_size > 0
    finished = SUMMARY.search(text) is not None
    if NO_CUDA.search(text) and not finished:
        raise tools.empty(tool, f"the program {_ended(ran)} without a CUDA call: nothing was checked",
                          "is the program on a GPU? run it alone first", text)  # fmt: skip
    if re.search(NOT_HERE.words, text):  # which it counts as errors of the program
        raise tools.failure(tool, ran, text, SYMPTOMS)
    if not (there or finished):
        if ran.ok and tools.diagnose(text, SYMPTOMS) is None:
            raise tools.empty(tool, f"wrote neither records nor a summary{_version(tool)}", "probe doctor", text)
        raise tools.failure(tool, ran, text, SYMPTOMS)
    artifacts = (xml,) if there else (ran.stdout,)
    return Recorded(tool, ran, artifacts, program_code(ran, text), _notes(ran, text))


def program_code(ran: ToolRun, text: str) -> int | None:
    """The exit code of the program, which the tool hands on unless it puts its own in its place; None: not known."""
    if ran.signal is not None or ran.returncode is None:
        return None
    if ran.returncode == FOUND_CODE and not PROGRAM_FAILED.search(text):
        return 0
    return ran.returncode


def untracked(ran: ToolRun) -> int:
    """How many launches it says that it could not check, for want of memory as a rule."""
    with ran.stdout.open(encoding="utf-8", errors="replace") as lines:
        return sum(UNTRACKED.search(line) is not None for line in lines)


def _notes(ran: ToolRun, text: str) -> tuple[str, ...]:
    if PROGRAM_FAILED.search(text) or ran.signal is not None:
        return (
            f"under the checker the program failed ({tools.ending(ran)}): what comes after its end was not checked",
        )
    return ()


def _ended(ran: ToolRun) -> str:
    return "ended" if ran.ok or ran.returncode == FOUND_CODE else tools.ending(ran)


def _version(tool: Tool) -> str:
    return f" (version {tool.version_text})" if tool.version else ""
