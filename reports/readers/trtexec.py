"""trtexec's standard output, TensorRT 7 to 11: every run of a file with its status, figures, layers and settings."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness.errors import ParseError
from reports.artifact import Artifact
from reports.columns import validate
from reports.readers import decoding, sanitizer
from reports.readers.trtexec_exports import MS, by_layer

EXPECTED = "the output of trtexec (&&&& RUNNING TensorRT.trtexec, or its performance summary)"
_TOOL = r"(?:\S*\.)?(?:trtexec|tensorrt_rtx)"
_MARK = re.compile(rf"&&&& (RUNNING|PASSED|FAILED|WAIVED|SKIPPED) {_TOOL}(?: \[(TensorRT\S*) v([\d.]+)\])?(.*)")
_LEVEL = re.compile(r"\[([VIWEF])\] ?")
_DIED = re.compile(r"Segmentation fault|core dumped|\bKilled\b|\bAborted\b|Bus error|terminate called")

_NUMBER = r"(-?(?:\d+(?:\.\d+)?(?:e[-+]?\d+)?|inf|nan))"
_SERIES = {
    "Latency": "latency",
    "Host Latency": "latency",
    "End-to-End Host Latency": "end_to_end",
    "Enqueue Time": "enqueue",
    "H2D Latency": "h2d",
    "GPU Compute Time": "compute",
    "GPU Compute": "compute",
    "D2H Latency": "d2h",
}
_ROW = re.compile(r"([A-Z][\w -]+): (min = .*)")
_STATISTIC = re.compile(rf"(min|max|mean|median|percentile\((\d+(?:\.\d+)?)%\)) = {_NUMBER} ms")
_OLD_STATISTIC = re.compile(
    rf"(min|max|mean|median|percentile): {_NUMBER} ms(?: at (\d+(?:\.\d+)?)%)?(?: \(end to end {_NUMBER} ms)?"
)
_THROUGHPUT = re.compile(rf"[Tt]hroughput: {_NUMBER} qps")
_WALLTIME = re.compile(rf"(?:Total Host Walltime|walltime): {_NUMBER} s$")
_GPU_TIME = re.compile(rf"(?:Total GPU Compute Time|total compute time): {_NUMBER} s$")
_QUERIES = re.compile(rf"Timing trace has (\d+) queries over {_NUMBER} s")
_AVERAGE = re.compile(
    rf"Average on (\d+) runs - GPU latency: {_NUMBER} ms(?: - Host latency: {_NUMBER} ms)?"
    rf"(?: \((?:end to end {_NUMBER} ms)?(?:, )?(?:enqueue {_NUMBER} ms)?\))?"
)
_OMITTED = re.compile(r"\.\.\. Omitting (\d+) lines")
_PROFILE = re.compile(r"=== Profile \((\d+) iterations ?\) ===")
_SETTING = re.compile(r"(Data transfers|Spin-wait|CUDA Graph|Selected Device|Precision|Batch): (.+)")
_VERSION = re.compile(r"TensorRT version: ([\d.]+)")


def sniff(path: Path, head: bytes) -> bool:
    """By a line with `&&&&`, or by the rows of a performance summary."""
    text = decoding.decode(head)
    return _MARK.search(text) is not None or (_THROUGHPUT.search(text) is not None and "GPU Compute" in text)


@dataclass
class Run:
    """What one start of trtexec said."""

    status: str = "killed"  # until a last line says otherwise
    tool: str = "trtexec"
    version: str | None = None
    command: str | None = None
    statistics: dict[str, dict[str, float]] = field(default_factory=dict)  # of series, in ns
    figures: dict[str, float] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    averages: list[dict[str, float]] = field(default_factory=list)
    omitted: int = 0
    layers: list[dict[str, Any]] = field(default_factory=list)
    layer_total_ns: float | None = None
    errors: list[str] = field(default_factory=list)
    warnings: int = 0
    died: str | None = None
    series: str | None = None  # which block of TensorRT 7 the next lines belong to
    columns: tuple[str, ...] | None = None  # of the table of layers that is being read

    @property
    def measured(self) -> bool:
        return "throughput_qps" in self.figures or bool(self.statistics)


# --- text -> runs --------------------------------------------------------------------------------------------------


def parse(text: str) -> tuple[list[Run], int]:
    """The runs in the order of their starts, and how many of them overlap another (their figures may be mixed up)."""
    runs: list[Run] = []
    current: Run | None = None
    overlapping = 0
    for line in decoding.lines(text):
        if mark := _MARK.search(line):
            word, command = mark.group(1), _command(mark.group(4))
            if word == "RUNNING":
                overlapping += current is not None and current.status == "killed" and current.died is None
                current = Run(tool=_tool(mark.group(2)), version=version(mark.group(3)), command=command)
                runs.append(current)
            else:
                current = _ended(runs, mark, command)
                current.status = word
            continue
        level, message = _split(line)
        if current is None and not _is_data(level, message):
            continue
        if current is None:
            current = Run()
            runs.append(current)
        _take(current, level, message, line)
    return runs, overlapping


def _tool(name: str | None) -> str:
    return "trtexec" if name in (None, "TensorRT") else "tensorrt_rtx"


def _command(rest: str) -> str | None:
    return rest.partition("# ")[2].strip() or None


def _ended(runs: list[Run], mark: re.Match[str], command: str | None) -> Run:
    """The run that a last line belongs to: the latest open one with its command line, else the latest open one."""
    going = [run for run in runs if run.status == "killed"]
    same = [run for run in going if run.command == command]
    if same or going:
        return (same or going)[-1]
    runs.append(Run(tool=_tool(mark.group(2)), version=version(mark.group(3)), command=command))
    return runs[-1]


def version(digits: str | None) -> str | None:
    """`8600` -> 8.6.0, `101401` -> 10.14.1, `8.2.3` as it is."""
    if not digits or "." in digits:
        return digits or None
    number = int(digits)
    if number < 10000:
        return f"{number // 1000}.{number // 100 % 10}.{number % 100}"
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"


def _split(line: str) -> tuple[str | None, str]:
    """(level, message); verbose lines are prose that repeats the words of the figures."""
    found = _LEVEL.search(line[:200])
    return (found.group(1), line[found.end() :]) if found else (None, line.strip())


def _is_data(level: str | None, message: str) -> bool:
    """Whether a line that no start precedes belongs to a run all the same (the log was cut at its head)."""
    if level == "V":
        return False
    return bool(_THROUGHPUT.match(message) or _ROW.match(message) or _AVERAGE.match(message) or _PROFILE.match(message))


def _take(run: Run, level: str | None, message: str, line: str) -> None:
    """Let a run have one line."""
    if level == "V":
        return
    if level in ("E", "F"):
        run.errors.append(message.strip())
    run.warnings += level == "W"
    if level is None and (died := _DIED.search(line)):
        run.died = died.group()
    if not (_layer_line(run, message) or _statistics_line(run, message)):
        _figure_line(run, message)


def _statistics_line(run: Run, message: str) -> bool:
    """A row `GPU Compute Time: min = .., ...`, or one line of a block of TensorRT 7."""
    if (row := _ROW.match(message)) and row.group(1) in _SERIES:
        found = {_key(name, percent): nanoseconds(value) for name, percent, value in _STATISTIC.findall(row.group(2))}
        run.statistics.setdefault(_SERIES[row.group(1)], {}).update(found)
        return True
    if message.strip() in _SERIES:
        run.series = _SERIES[message.strip()]
        return True
    if run.series and (old := _OLD_STATISTIC.match(message)):
        name, value, percent, end_to_end = old.groups()
        key = _key(name, percent)
        run.statistics.setdefault(run.series, {})[key] = nanoseconds(value)
        if end_to_end:
            run.statistics.setdefault("end_to_end", {})[key] = nanoseconds(end_to_end)
        return True
    return False


def nanoseconds(milliseconds: str) -> float:
    """Six printed digits in ms, in ns without the noise of binary fractions."""
    return round(float(milliseconds) * MS, 3)


def _key(name: str, percent: str | None) -> str:
    return f"p{float(percent):g}" if percent else name


def _figure_line(run: Run, message: str) -> None:
    for name, pattern in (("throughput_qps", _THROUGHPUT), ("walltime_s", _WALLTIME), ("gpu_time_s", _GPU_TIME)):
        if found := pattern.match(message):
            run.figures[name] = float(found.group(1))
            return
    if found := _QUERIES.match(message):
        run.figures["queries"] = int(found.group(1))
    elif found := _AVERAGE.match(message):
        values = [nanoseconds(value) if value else np.nan for value in found.groups()[1:]]
        names = ("compute_ns", "latency_ns", "end_to_end_ns", "enqueue_ns")
        run.averages.append({"iterations": int(found.group(1)), **dict(zip(names, values, strict=True))})
    elif found := _OMITTED.match(message):
        run.omitted += int(found.group(1))
    elif found := _SETTING.match(message):
        run.settings.setdefault(found.group(1), found.group(2).strip())
    elif run.version is None and (found := _VERSION.match(message)):
        run.version = version(found.group(1))


# --- the table of --dumpProfile ------------------------------------------------------------------------------------

_HEADINGS = (("median", "median_ns"), ("avg", "mean_ns"), ("%", "time_pct"), ("time", "total_ns"))


def _layer_line(run: Run, message: str) -> bool:
    """A line of the printed profile: the name stands first up to 8.5 and last from 8.6 on."""
    if found := _PROFILE.match(message):
        run.figures["profiled_iterations"] = int(found.group(1))
        run.columns = ()
        return True
    if run.columns is None:
        return False
    if not run.columns:
        run.columns = _headings(message)
        return bool(run.columns)
    row = _layer_row(message, run.columns)
    if row is None:
        run.columns = None
        return False
    if row["layer"] == "Total":
        run.layer_total_ns = row["total_ns"]
        run.columns = None
    else:
        run.layers.append(row)
    return True


def _headings(message: str) -> tuple[str, ...]:
    """Columns in their order, from `Time(ms)  Avg.(ms)  Median(ms)  Time(%)  Layer` or `Layer  Time (ms)  ...`."""
    words = [word.lower() for word in re.split(r"\s{2,}", message.strip())]
    if "layer" not in words:
        return ()
    named = (next((name for sign, name in _HEADINGS if sign in word), "layer") for word in words)
    return tuple(named)


def _layer_row(message: str, columns: tuple[str, ...]) -> dict[str, Any] | None:
    numbers = len(columns) - 1
    if columns[0] == "layer":
        parts = message.strip().rsplit(None, numbers)
        name, values = "".join(parts[:1]), parts[1:]
    else:
        parts = message.strip().split(None, numbers)
        name, values = "".join(parts[-1:]), parts[:-1]
    try:
        figures = dict(zip((column for column in columns if column != "layer"), map(float, values), strict=True))
    except ValueError:
        return None
    return {
        "layer": name,
        **{key: value if key == "time_pct" else round(value * MS, 3) for key, value in figures.items()},
    }


# --- what can be compared ------------------------------------------------------------------------------------------

_FLAGS = {  # setting: (flag that turns it on, flag that turns it off, default up to 10.x, default from 11 on)
    "CUDA Graph": ("--useCudaGraph", "--noCudaGraph", False, True),
    "Spin-wait": ("--useSpinWait", "--noSpinWait", False, True),
    "Data transfers": ("--includeDataTransfers", "--noDataTransfers", True, False),
}


def generation(run: Run) -> str:
    """TensorRT 11 changed what trtexec measures by default; TensorRT-RTX counts its versions anew."""
    major = run.version.partition(".")[0] if run.version else ""
    if run.tool != "trtexec":
        return "RTX"
    if not major.isdigit():
        return "of unknown version"
    return "11 or later" if int(major) >= 11 else "7 to 10"


def comparable_group(run: Run, under: str | None = None) -> str:
    """Times of two runs measure the same thing only if this is the same text."""
    modern = generation(run) == "11 or later"
    words, flags = [f"TensorRT {generation(run)}"], options(run.command)
    for name, (on, off, old_default, new_default) in _FLAGS.items():
        state = new_default if modern else old_default
        state = True if on in flags else False if off in flags else state
        if (printed := run.settings.get(name, "")) in ("Enabled", "Disabled"):
            state = printed == "Enabled"
        words.append(f"{name} {'on' if state else 'off'}")
    return ", ".join(words + ([f"under {under}"] if under else []))


def options(command: str | None) -> dict[str, str]:
    """The options of a command line; a line with unbalanced quotes is split at blanks."""
    try:
        words = shlex.split(command or "")
    except ValueError:
        words = (command or "").split()
    return {word.partition("=")[0]: word.partition("=")[2] for word in words if word.startswith("--")}


# --- runs -> artifact ----------------------------------------------------------------------------------------------


def read(path: Path) -> Artifact:
    """All runs of a log; what compute-sanitizer said around them is read with them."""
    text, notes = decoding.read_text(path, EXPECTED)
    runs, overlapping = parse(text)
    if not runs:
        raise ParseError(path, "content", EXPECTED, repr(text[:60]))
    checked = sanitizer.from_text(path, text) if sanitizer.is_text(text) else None
    under = checked.tool if checked else None
    described = [describe(run, under) for run in runs]
    summary = {**_whole(described), "runs": described, **(checked.summary | {"runs": described} if checked else {})}
    tables = {"runs": _runs_table(described), **_layers_table(runs), **_averages_table(runs)}
    if "layers" in tables:
        summary["by_layer"] = by_layer(tables["layers"])
    if checked:
        tables |= checked.tables
    remarks = [*notes, *_notes(runs, described, overlapping, under), *(checked.notes if checked else ())]
    versions = sorted({run.version for run in runs if run.version})
    tool = runs[0].tool + (f" under {under}" if under else "")
    return Artifact(path, "trtexec-log", tool, ", ".join(versions) or None, tables, summary, tuple(remarks))


def describe(run: Run, under: str | None = None) -> dict[str, Any]:
    """A run for the summary: JSON values alone."""
    flags = options(run.command)
    return {
        "status": run.status,
        "tool_version": run.version,
        "command": run.command,
        "throughput_qps": run.figures.get("throughput_qps"),
        "compute_ns": _finite(run.statistics.get("compute")),
        **{f"{name}_ns": _finite(stats) for name, stats in run.statistics.items() if name != "compute"},
        **{name: value for name, value in run.figures.items() if name != "throughput_qps"},
        "comparable_group": comparable_group(run, under),
        "settings": run.settings,
        "errors": run.errors[:20],
        "error_count": len(run.errors),
        "warning_count": run.warnings,
        "exports": {kind: flags[flag] for kind, flag in _EXPORTS.items() if flags.get(flag)},
        "counts_images": _counts_images(run),
        "layer_count": len(run.layers),
    }


_EXPORTS = {"times": "--exportTimes", "profile": "--exportProfile", "layers": "--exportLayerInfo"}


def _finite(stats: Mapping[str, float] | None) -> dict[str, float] | None:
    """Statistics without `inf` and `nan`, which trtexec prints of an empty series."""
    return {name: value for name, value in stats.items() if np.isfinite(value)} or None if stats else None


def _counts_images(run: Run) -> bool:
    """With an implicit batch (`--batch`, before 10.0) queries are counted once an image."""
    batch = options(run.command).get("--batch", "")
    return batch.isdigit() and int(batch) > 1 and generation(run) == "7 to 10"


def _whole(described: list[dict[str, Any]]) -> dict[str, Any]:
    """The summary of a file: of its only run, or of several what they have in common."""
    if len(described) == 1:
        return described[0]
    statuses = [run["status"] for run in described]
    worst = next((status for status in ("killed", "FAILED", "WAIVED", "SKIPPED") if status in statuses), "PASSED")
    groups = {run["comparable_group"] for run in described}
    return {
        "status": worst,
        "by_status": {status: statuses.count(status) for status in dict.fromkeys(statuses)},
        "throughput_qps": None,
        "compute_ns": None,
        "comparable_group": groups.pop() if len(groups) == 1 else None,
    }


def _runs_table(described: list[dict[str, Any]]) -> pd.DataFrame:
    rows = []
    for number, run in enumerate(described):
        stats = run["compute_ns"] or {}
        row = {name: run[name] for name in ("status", "tool_version", "command", "comparable_group", "throughput_qps")}
        names = ("min", "mean", "median", "p90", "p95", "p99", "max")
        rows.append({"run": number, **row, **{f"compute_{name}_ns": stats.get(name) for name in names}})
    return validate("runs", pd.DataFrame(rows))


def _layers_table(runs: list[Run]) -> dict[str, pd.DataFrame]:
    """The printed profile, of the last run that has one."""
    rows = next((run.layers for run in reversed(runs) if run.layers), None)
    return {"layers": validate("layers", pd.DataFrame(rows))} if rows else {}


def _averages_table(runs: list[Run]) -> dict[str, pd.DataFrame]:
    rows = [
        {"run": number, "position": position, **row}
        for number, run in enumerate(runs)
        for position, row in enumerate(run.averages)
    ]
    return {"averages": validate("averages", pd.DataFrame(rows))} if rows else {}


def _notes(runs: list[Run], described: list[dict[str, Any]], overlapping: int, under: str | None) -> list[str]:
    notes = []
    if len(runs) > 1:
        notes.append(f"{len(runs)} runs in one file: throughput_qps and compute_ns stand with each of them")
    for number, run in enumerate(runs):
        where = f"run {number}: " if len(runs) > 1 else ""
        notes += [where + remark for remark in _remarks(run)]
    if ended := sum(run.status != "killed" for run in runs) if overlapping else 0:
        notes.append(f"{overlapping} runs began before the one before had ended ({ended} ended): figures may be mixed")
    groups = sorted({run["comparable_group"] for run in described})
    if len(groups) > 1:
        notes.append("times of these runs are not comparable: " + "; ".join(groups))
    if under:
        notes.append(f"measured under {under}: the times are not those of the engine")
    with_layers = sum(bool(run.layers) for run in runs)
    if with_layers > 1:
        notes.append(f"{with_layers} runs print layers: table `layers` is of the last")
    return notes


def _remarks(run: Run) -> list[str]:
    remarks = []
    if run.status == "killed":
        how = f"it died ({run.died})" if run.died else "it was killed, died, or still runs"
        remarks.append(f"neither PASSED nor FAILED: {how}")
    if run.status == "FAILED" and not run.errors:
        remarks.append("FAILED without a line [E]: the reason is not in the log")
    if run.status == "PASSED" and not run.measured:
        remarks.append("PASSED without figures: --skipInference, or a profile instead of end-to-end times")
    if run.figures.get("throughput_qps") == 0:
        remarks.append("the throughput is printed as 0 qps: this version counted no queries")
    if _counts_images(run):
        remarks.append("with --batch the throughput counts images, not queries")
    if any(not np.isfinite(value) for stats in run.statistics.values() for value in stats.values()):
        remarks.append("statistics of an empty series are printed as inf or nan and left out")
    if run.omitted:
        shown = sum(int(row["iterations"]) for row in run.averages)
        remarks.append(f"averages cover {shown} of {shown + run.omitted} queries: trtexec left the others out")
    if generation(run) == "11 or later" and run.measured:
        remarks.append("TensorRT 11 measures with CUDA graph and spin-wait and without data transfers by default: "
                       "not comparable with 10.x and before")  # fmt: skip
    if run.layer_total_ns is not None and run.layers:
        own = sum(layer["total_ns"] for layer in run.layers)
        if abs(own - run.layer_total_ns) > 0.01 * max(own, run.layer_total_ns) + 0.01 * MS * len(run.layers):
            remarks.append(
                f"the layers add up to {own / MS:.2f} ms, the printed total is {run.layer_total_ns / MS:.2f}"
            )
    return remarks
