"""Nsight Systems on the command line: a timeline recorded, and its reports exported to SQLite, which is what can be read."""

from __future__ import annotations

import re
import shutil
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from harness import process
from harness.errors import ArtifactMissing, ToolFailed, ToolMissing, ToolTimeout
from harness.record import Command, ToolRun
from harness.tools import tool as tools
from harness.tools.nvtx_range import ANY, NvtxRange
from harness.tools.tool import Recorded, Symptom, Tell, Tool, Wanted

REPORTS = (".nsys-rep", ".qdrep")
EXPORT_TIMEOUT_S = 1800.0  # gigabytes of report take minutes
STEM = "nsys"
WANTED = Wanted(
    "nsys", "to record a timeline of kernels, copies and ranges", "apt-get install cuda-nsight-systems-13-0",
    floor=(2021, 1), help=("profile", "--help"),
)  # fmt: skip
RAN = ("CUPTI_ACTIVITY_KIND_KERNEL", "CUPTI_ACTIVITY_KIND_GRAPH_TRACE")
LAUNCHES = (
    "SELECT count(DISTINCT correlationId) FROM CUPTI_ACTIVITY_KIND_RUNTIME WHERE nameId IN"
    " (SELECT id FROM StringIds WHERE value LIKE 'cu%Launch%' AND value NOT LIKE '%HostFunc%')"
)
SYNCHRONISE = "synchronise before the range closes; or leave --range out, kernels are tied to ranges all the same"
TRACES = ("cuda", "nvtx", "cublas", "cudnn")
OVERHEAD = (
    "nsys adds host time to every traced call and range, and with CUDA graphs traced node by node also device time:"
    " kernel durations hold, gaps and latencies under it are longer than without"
)
SYMPTOMS = (
    Symptom(r"Illegal --trace argument '(?P<trace>[^'\n]*)|[Uu]nrecognized (?:trace )?(?:value|argument|event)[^\n]*",
            "it does not know one of the traces {trace}", "nsys profile --help lists them; --trace cuda,nvtx"),
    Symptom(r"Failed to create directory \"(?P<folder>[^\"\n]*)\": (?P<why>[^\n]*)",
            "it cannot write to {folder} ({why}), where another user's files may lie", tools.OWN_TMP),
    Symptom(r"importer binary and its dependencies were not found",
            "it was installed without what makes a report of a recording (as in the packages of Debian and Ubuntu)",
            "apt-get install cuda-nsight-systems-13-0 from NVIDIA's repository; or open the .qdstrm with nsys-ui"),
    Symptom(r"Wrong event order", "its importer stumbles over what it recorded, a fault of this version", "a newer nsys; or --trace cuda,nvtx"),
    Symptom(r"Importer error|QdstrmImporter|importation? (?:failed|error)",
            "its importer could not make a report of what it recorded",
            "apt-get install libdw1 libelf1; a newer nsys; or open the .qdstrm with nsys-ui"),
    Symptom(r"Failed to connect to the agent|[Aa]gent (?:launcher|process) failed|Timeout reached",
            "its agent did not start", "nsys status --environment"),
)  # fmt: skip


LET_SAMPLE = "sudo sysctl kernel.perf_event_paranoid=2; nsys status --environment tells more"
NO_SAMPLES = re.compile(r"CPU (?:IP/backtrace sampling|context switch tracing) not supported")


@dataclass(frozen=True)
class Options:
    """What to record. Of `capture` only the first range is recorded; None: all."""

    trace: tuple[str, ...] = TRACES
    cpu: bool = False  # sample the program's threads, and trace when they run
    graph_nodes: bool = True  # each kernel of a CUDA graph, not the graph as a whole
    capture: NvtxRange | None = None
    kernels: bool = True  # a timeline without any is no use
    timeout_s: float | None = None


def command(tool: Tool, options: Options, target: Command, report: Path) -> Command:
    """`nsys profile` around a program; the report is written to `report` with `.nsys-rep` and `.sqlite` appended.

    The program goes on when the captured range ends: by default nsys would end it there.
    """
    sampled = ("process-tree" if tool.version >= (2022, 1) or not tool.version else "cpu") if options.cpu else "none"
    words = ["profile", f"--trace={','.join(options.trace)}", f"--sample={sampled}"]
    if tool.has("--cpuctxsw"):
        words.append(f"--cpuctxsw={'process-tree' if options.cpu else 'none'}")
    if options.graph_nodes and tool.has("--cuda-graph-trace"):
        words.append("--cuda-graph-trace=node")
    if options.capture is not None:
        # Ranges of the nvtx package are registered strings only where it caches them: let any string match.
        words += ["--capture-range=nvtx", f"--nvtx-capture={options.capture.for_nsys}",
                  "--env-var=NSYS_NVTX_PROFILER_REGISTER_ONLY=0", _range_end(tool)]  # fmt: skip
    output = str(report.absolute()).replace("%", "%%")  # nsys fills in %h, %p, %q{NAME}
    words += ["--export=sqlite", "--force-overwrite=true", f"--output={output}"]
    return tools.program_command(words, tool, target, options.timeout_s)


def _range_end(tool: Tool) -> str:
    return "--capture-range-end=stop" if tool.has("--capture-range-end") else "--stop-on-range-end=true"


def run(options: Options, target: Command, folder: Path, tell: Tell, *, stem: str = STEM) -> Recorded:
    """Record a program's timeline into `folder`: a report, its SQLite export, and what was printed.

    Raises ToolMissing; ToolTimeout; ToolFailed if nothing was recorded; ArtifactMissing if the captured range was never
    entered, or no kernel ran (unless more than the GPU was traced). A program that fails on its own does not raise.
    """
    tool = tools.find(WANTED)
    report = folder / stem
    ran = tools.drive(tool, command(tool, options, target, report), report, tell)
    text = tools.said(ran)
    if ran.timed_out:
        raise tools.failure(tool, ran, text, SYMPTOMS)
    sqlite = _sqlite(tool, ran, options, report, text, tell)
    launched = launches(sqlite)
    if launched is None:
        raise tools.empty(tool, f"{sqlite.name} is no SQLite file", "nsys export --type sqlite on the .nsys-rep", text)
    notes = _notes(ran, launched, text, options)
    if not launched and options.kernels and (lost := unfinished(sqlite)):
        raise _lost(tool, lost, options.capture, text)
    if not launched and options.kernels and not (options.cpu or "osrt" in options.trace):
        raise tools.empty(tool, "no kernel ran while it recorded", "is the program on a GPU? --cpu or --osrt to record its"
                          " threads all the same", text)  # fmt: skip
    return Recorded(tool, ran, (sqlite,), ran.returncode, notes)


def _sqlite(tool: Tool, ran: ToolRun, options: Options, report: Path, text: str, tell: Tell) -> Path:
    """The export that a run wrote, or one made now from its report."""
    sqlite = report.with_name(f"{report.name}.sqlite")
    if sqlite.is_file() and sqlite.stat().st_size:
        return sqlite
    for suffix in REPORTS:
        written = report.with_name(f"{report.name}{suffix}")
        if written.is_file() and written.stat().st_size:
            tell(f"exporting {written.name}")
            return export(written, report.parent, tool)
    if report.with_name(f"{report.name}.qdstrm").is_file():
        why, hint = tools.diagnose(text, SYMPTOMS) or ("", "a newer nsys; or open the .qdstrm with nsys-ui")
        raise ToolFailed(f"nsys wrote {report.name}.qdstrm and could not make a report of it{why and f': {why}'}", ran,
                         hint=hint)  # fmt: skip
    if ran.ok and options.capture is not None:
        raise tools.empty(tool, f"the range {options.capture} was never entered: nothing was recorded",
                          _never_entered(options.capture), text)  # fmt: skip
    if ran.ok:
        raise tools.empty(tool, f"wrote no {sqlite.name}", "probe doctor shows the version of nsys", text)
    raise tools.failure(tool, ran, text, SYMPTOMS)


def _lost(tool: Tool, launches: int, capture: NvtxRange | None, text: str) -> ArtifactMissing:
    """The error for calls that launched kernels of which none was recorded."""
    if capture is None:
        return tools.empty(tool, f"saw {launches} launches and not one of their kernels: it does not fit the driver, or all"
                           " of them failed", "a newer nsys: probe doctor shows both; or probe sanitize", text)  # fmt: skip
    return tools.empty(tool, f"none of the {launches} kernels that the range {capture} launched ended before it closed:"
                       " what runs on is not recorded", SYNCHRONISE, text)  # fmt: skip


def _never_entered(capture: NvtxRange) -> str:
    if capture.domain is None:
        return f"--range '{capture}@{ANY}', in whatever domain it is; without one, the default domain is meant"
    return "without --range all is recorded, and the page names the program's ranges and their domains"


def _notes(ran: ToolRun, launched: int, text: str, options: Options) -> tuple[str, ...]:
    notes = [OVERHEAD]
    if options.cpu and NO_SAMPLES.search(text):
        notes.append(f"the system does not let nsys sample threads: {LET_SAMPLE}")
    if not launched:
        notes.append("nsys saw no kernel")
    if not ran.ok:
        notes.append(f"under nsys the program {tools.ending(ran)}; what was recorded until then is kept")
    return tuple(notes)


def launches(sqlite: Path) -> int | None:
    """How many kernels and whole CUDA graphs an export holds; None if it is no SQLite file."""
    total = 0
    try:
        with closing(sqlite3.connect(f"{sqlite.absolute().as_uri()}?mode=ro", uri=True)) as database:
            there = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            for table in RAN:
                if table in there:
                    total += database.execute(f'SELECT count(*) FROM "{table}"').fetchone()[0]
    except sqlite3.DatabaseError:
        return None
    return total


def unfinished(sqlite: Path) -> int:
    """How many launches an export holds that came to no kernel: it ended after the recording did, or failed."""
    try:
        with closing(sqlite3.connect(f"{sqlite.absolute().as_uri()}?mode=ro", uri=True)) as database:
            there = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            ran = " UNION ".join(f'SELECT correlationId FROM "{table}"' for table in RAN if table in there)
            words = f"{LAUNCHES} {f'AND correlationId NOT IN ({ran})' if ran else ''}"
            return int(database.execute(words).fetchone()[0])
    except sqlite3.DatabaseError:  # no calls were traced
        return 0


def export_command(report: Path, sqlite: Path, program: str = "nsys") -> Command:
    """`nsys export` with options that 2021 to 2026 have in common."""
    words = (program, "export", "--type", "sqlite", "--force-overwrite", "true", "--output", str(sqlite), str(report))
    return Command(words, EXPORT_TIMEOUT_S)


def export(report: Path, folder: Path, tool: Tool | None = None) -> Path:
    """Export a report into `folder`; returns the SQLite file.

    Raises ToolMissing without nsys on PATH, ToolFailed or ToolTimeout with what nsys said, ArtifactMissing if it ended
    well and wrote nothing.
    """
    sqlite = folder / f"{report.stem}.sqlite"
    command = export_command(report.absolute(), sqlite, "nsys" if tool is None else str(tool.path))
    if tool is None and shutil.which("nsys") is None:
        raise ToolMissing("nsys", f"to export {report.name} to SQLite",
                          f"where nsys is: nsys export --type sqlite {report.name}; then probe report {sqlite.name}")  # fmt: skip
    run = process.run(command, folder / f"{report.stem}.export")
    if run.timed_out:
        raise ToolTimeout(f"nsys export of {report.name} was stopped after {EXPORT_TIMEOUT_S:g} s", run)
    if not run.ok:
        said = process.tail(run.stderr, 5) or process.tail(run.stdout, 5)
        how = f"signal {run.signal}" if run.signal is not None else f"exit code {run.returncode}"
        raise ToolFailed(
            f"nsys export of {report.name} failed ({how}): {said}", run, hint="probe doctor shows the version of nsys"
        )
    if not sqlite.is_file():
        raise ArtifactMissing(f"nsys export of {report.name} ended well but wrote no {sqlite.name}")
    return sqlite
