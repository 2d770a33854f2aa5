"""Nsight Compute on the command line: hardware counters of chosen launches, as a report and as CSV."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from harness.record import Command, ToolRun
from harness.tools import tool as tools
from harness.tools.nvtx_range import NvtxRange
from harness.tools.tool import Recorded, Symptom, Tell, Tool, Wanted

STEM = "ncu"
WANTED = Wanted(
    "ncu", "to read the hardware counters of kernels", "apt-get install cuda-nsight-compute-13-0", floor=(2021, 1)
)  # 2020 has --units and --kernel-regex instead
SETS = ("basic", "roofline", "full")
REPLAYS = ("kernel", "application")  # those that give a row for each launch
# Sections rather than sets: their names have stayed, while the sets were renamed and one was added.
ROOFLINE = (
    "SpeedOfLight", "SpeedOfLight_RooflineChart", "SpeedOfLight_HierarchicalTensorRooflineChart", "LaunchStats",
    "Occupancy", "MemoryWorkloadAnalysis",
)  # fmt: skip
OVERHEAD = (
    "ncu runs every profiled launch several times, alone and with its caches flushed: its durations are of single kernels,"
    " not of the program"
)
HEADER = re.compile(rb'^"?ID"?,"?(?:Process ID|Thread|Process)"?', re.MULTILINE)
PROGRAM = re.compile(r"The application returned an error code \((-?\d+)\)")
SYMPTOMS = (
    Symptom(
        r"Failed to find metric (?:regex:\^?)?(?P<metric>[\w.]+)|[Ii]nvalid metric name[s]?:? (?P<named>[\w.]+)",
        "it has no metric {metric}{named} on this GPU", "ncu --query-metrics lists them; --metrics basic",
    ),
    Symptom(r"(?:Failed to find|No) section (?P<section>\S+)|Section '(?P<name>\S+)' not found",
            "it has no section {section}{name}", "--metrics basic; probe doctor shows its version"),
    Symptom(r"LibraryNotLoaded|[Dd]river is not compatible with Nsight Compute", "it and the driver do not fit each other",
            "an ncu no newer than the driver: probe doctor shows both"),
    Symptom(r"requires.{0,40}compute capability|[Nn]ot supported on (?:this |the )?(?:device|chip)|DeviceNotSupported",
            "it does not support this GPU", "ncu --list-chips; probe doctor shows its version"),
    Symptom(r"driver resource was unavailable|another (?:profiler|tool) is|ERR_NVGPUCTRPERM_BUSY|ProfilerInUse|resource[s]? (?:are )?(?:busy|in use)",
            "another program uses the GPU's counters (DCGM, another ncu, nsys with GPU metrics)",
            "sudo dcgmi profile --pause, then again, then sudo dcgmi profile --resume"),
    Symptom(r"nsight-compute-lock", "its lock file in /tmp belongs to another user", tools.OWN_TMP),
    Symptom(r"fixed frequencies|[Ff]ailed to lock clocks|[Uu]nable to lock|[Cc]annot lock GPU clock",
            "it may not lock the clocks", "--clock-control none"),
    Symptom(r"\A(?![\s\S]*ERR_NVGPUCTRPERM)[\s\S]*Failed to prepare kernel for profiling",
            "it cannot read the counters of this GPU, as when it is older than the GPU or the driver",
            "a newer ncu: probe doctor shows both versions; in a container --cap-add=SYS_ADMIN"),
)  # fmt: skip


@dataclass(frozen=True)
class Options:
    """Which launches, and what of them. `kernel` is a regular expression."""

    metrics: str = "basic"  # one of SETS
    kernel: str | None = None
    range: NvtxRange | None = None
    launch_skip: int = 0
    launch_count: int | None = None
    clock_control: str = "none"  # as found; "base" locks the clocks, which makes runs comparable and slower
    replay_mode: str = "kernel"  # one of REPLAYS: what runs again to read more counters
    timeout_s: float | None = None


def command(tool: Tool, options: Options, target: Command, report: Path) -> Command:
    """ncu around a program: the report goes to `report` (`.ncu-rep` appended), the raw page to `report` with `.csv`.

    The page goes to a file of its own, so that what the program prints is never taken for it.
    """
    words = ["--target-processes", "all", "--nvtx", "--replay-mode", options.replay_mode,
             "--clock-control", options.clock_control, *_metrics(options.metrics)]  # fmt: skip
    if options.range is not None:
        words += [word for one in options.range.for_filters for word in ("--nvtx-include", one)]
    if options.kernel is not None:
        words += ["--kernel-name", f"regex:{options.kernel}"]
    if options.launch_skip:
        words += ["--launch-skip", str(options.launch_skip)]
    if options.launch_count is not None:
        words += ["--launch-count", str(options.launch_count)]
    output = str(report.absolute())
    words += ["--csv", "--page", "raw", "--print-units", "base", "--log-file", f"{output}.csv".replace("%", "%%"),
              "--force-overwrite", "--export", output.replace("%", "%%")]  # fmt: skip
    return tools.program_command(words, tool, target, options.timeout_s)


def _metrics(name: str) -> list[str]:
    """basic is what ncu takes if nothing is asked for."""
    return {
        "basic": [],
        "roofline": [word for section in ROOFLINE for word in ("--section", section)],
        "full": ["--set", "full"],
    }[name]


def run(options: Options, target: Command, folder: Path, tell: Tell, *, stem: str = STEM) -> Recorded:
    """Profile a program's launches into `folder`.

    Raises ToolMissing; ToolTimeout; ToolFailed, with the reason where ncu gives one; ArtifactMissing if no launch was
    profiled. A program that fails after launches were profiled does not raise.
    """
    tool = tools.find(WANTED)
    report = folder / stem
    ran = tools.drive(tool, command(tool, options, target, report), report, tell)
    csv = report.with_name(f"{report.name}.csv")
    text = f"{tools.said(ran)}\n{_statements(csv)}"
    if ran.timed_out:
        raise tools.failure(tool, ran, text, SYMPTOMS)
    code = program_code(ran, text)
    if not _has_rows(csv):
        raise _nothing(tool, ran, options, text, code)
    notes = [OVERHEAD]
    if code:
        notes.append(f"under ncu the program ended with exit code {code}; the launches until then are kept")
    elif not ran.ok:
        notes.append(f"ncu {tools.ending(ran)}; the launches until then are kept")
    return Recorded(tool, ran, (csv,), code, tuple(notes))


def program_code(ran: ToolRun, text: str) -> int | None:
    """The exit code of the program under ncu, which is not ncu's own; None if it does not say."""
    if said := PROGRAM.search(text):
        return int(said[1])
    return 0 if ran.ok else None


def _statements(csv: Path) -> str:
    """What ncu itself says in its log, wherever that stands among the rows: its lines begin with ==."""
    if not csv.is_file():
        return ""
    with csv.open("rb") as stream:
        return b"".join(line for line in stream if line.startswith(b"==")).decode("utf-8", "replace")


def _has_rows(csv: Path) -> bool:
    """Whether a page of launches was begun and at least one whole row of it written, below names and units."""
    if not csv.is_file():
        return False
    data = csv.read_bytes()
    begun = HEADER.search(data)
    return begun is not None and data[begun.start() :].count(b"\n") > 2


def _nothing(tool: Tool, ran: ToolRun, options: Options, text: str, code: int | None) -> Exception:
    """The error for a run without launches: what ncu says of itself first, then the program's failure, then filters."""
    if tools.diagnose(text, SYMPTOMS) is not None or ran.signal is not None:
        return tools.failure(tool, ran, text, SYMPTOMS)
    if code:
        failed = Symptom(r"error code", f"the program itself failed, with exit code {code}, before a launch was profiled",
                         "run the program alone first")  # fmt: skip
        return tools.failure(tool, ran, text, (failed,))
    if "No kernels were profiled" not in text:
        return (
            tools.failure(tool, ran, text)
            if not ran.ok
            else tools.empty(tool, "wrote no page of launches", "probe doctor", text)
        )
    if options.kernel or options.range or options.launch_skip:
        return tools.empty(tool, "no launch was profiled: none matched --kernel, --range and --launch-skip",
                           "probe profile --nsys lists the kernels and ranges of a program")  # fmt: skip
    return tools.empty(tool, "no launch was profiled: the program launches no kernel", "is the program on a GPU?")
