"""Reading an nsys export: loading, attribution and the whole way to the summary, against pandas and nsys-ai.

Run: `python -m benchmarks.nsys_read` (`--kernels 200000 1000000 --repeat 3`; the columns of nsys-ai need
`pip install nsys-ai==0.3.0`). Every measurement is a process of its own; the time is its CPU time, less the start.
nsys-ai is asked for its breakdown by range, and reads SQLite itself: its Parquet cache needs a download.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import math
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.nsys_generator import Shape, write

KERNEL, RUNTIME, NVTX = "CUPTI_ACTIVITY_KIND_KERNEL", "CUPTI_ACTIVITY_KIND_RUNTIME", "NVTX_EVENTS"
COLUMNS = {
    KERNEL: "start end deviceId contextId streamId correlationId globalPid demangledName shortName mangledName"
    " registersPerThread gridX gridY gridZ blockX blockY blockZ staticSharedMemory dynamicSharedMemory graphNodeId"
    " graphId",
    RUNTIME: "start end globalTid correlationId nameId",
    NVTX: "start end eventType category globalTid endGlobalTid textId domainId",
}
HAS_PEER = importlib.util.find_spec("nsys_ai") is not None


def load_ours(path: Path) -> Callable[[], object]:
    from reports.readers._sqlite import Database

    def run() -> object:
        with Database(path) as database:
            return [database.read(table, names.split()) for table, names in COLUMNS.items()]

    return run


def load_pandas(path: Path) -> Callable[[], object]:
    import pandas as pd

    def run() -> object:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            return [
                pd.read_sql("SELECT {} FROM {}".format(", ".join(f'"{n}"' for n in names.split()), table), connection)
                for table, names in COLUMNS.items()
            ]

    return run


def attribute_ours(path: Path) -> Callable[[], object]:
    """The arrays in memory to the innermost range of each kernel, and to parent and depth of each range."""
    from reports.readers import nsys_events as events
    from reports.readers._sqlite import Database
    from reports.readers.nsys_launches import Launches, Moments

    with Database(path) as database:
        strings = events.Strings(database)
        calls, kernels = events.read_calls(database, strings), events.read_kernels(database, strings)
        captures, (spans, _) = events.read_captures(database), events.read_nvtx(database, strings)

    def run() -> object:
        moments = Moments.of(calls, captures, spans)
        return Launches.of(kernels, calls, captures, moments), moments.ranges.parents, moments.ranges.depths

    return run


def attribute_peer(path: Path) -> Callable[[], object]:
    from nsys_ai.nvtx_attribution import _sort_merge_attribute

    return lambda: _sort_merge_attribute(sqlite3.connect(path))


def attribute_rtree(path: Path) -> Callable[[], object]:
    """The innermost range of each kernel by SQL over an R-tree of the ranges, as nsys's own NVTX reports go about it."""

    def run() -> object:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            for statement in RTREE:
                rows = connection.execute(statement).fetchall()
            return rows

    return run


RTREE = (
    f"CREATE TEMP TABLE calls AS SELECT correlationId, globalTid, start, end FROM {RUNTIME}",
    "CREATE INDEX temp.by_id ON calls(correlationId)",
    "CREATE VIRTUAL TABLE temp.spans USING rtree(id, first, last)",
    f"INSERT INTO temp.spans SELECT rowid, start, end FROM {NVTX} WHERE eventType IN (59, 60) AND end IS NOT NULL",
    f"""SELECT k.rowid, n.rowid, max(n.start) FROM {KERNEL} k
        JOIN temp.calls c ON c.correlationId = k.correlationId AND c.globalTid / 0x1000000 = k.globalPid / 0x1000000
        JOIN temp.spans s ON s.first <= c.start AND s.last >= c.end
        JOIN {NVTX} n ON n.rowid = s.id AND n.globalTid = c.globalTid AND n.start <= c.start AND n.end >= c.end
        GROUP BY k.rowid""",
)


def summary_ours(path: Path) -> Callable[[], object]:
    from reports.readers import nsys

    return lambda: json.dumps(nsys.read(path).summary)


def summary_peer(path: Path) -> Callable[[], object]:
    from nsys_ai.skills.registry import get_skill

    skill = get_skill("nvtx_layer_breakdown")
    return lambda: json.dumps(skill.execute(sqlite3.connect(path)))


TASKS = {
    f"{task} {who}": function
    for task, who, function in (
        ("load", "probe", load_ours),
        ("load", "pandas.read_sql", load_pandas),
        ("attribute", "probe", attribute_ours),
        ("attribute", "nsys-ai", attribute_peer),
        ("attribute", "SQL with an R-tree", attribute_rtree),
        ("summary", "probe", summary_ours),
        ("summary", "nsys-ai", summary_peer),
    )
}


RTREE_TASK = "attribute SQL with an R-tree"


def child(task: str, path: Path) -> None:
    """Do one thing, and print what it took."""
    prepared = TASKS[task](path)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak so far
    before, began = resident("VmRSS"), time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        kept = prepared()
    took, peak = time.process_time() - began, resident("VmHWM")
    print(json.dumps([took, peak - before, bool(kept)]))


def resident(what: str) -> float:
    """Memory of this process in MB, as Linux counts it."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(what))


def measure(task: str, path: Path, repeat: int) -> tuple[float, float]:
    """Median CPU seconds, and the most memory in MB that it needed above what was there before."""
    runs = []
    for _ in range(repeat):
        argv = [sys.executable, "-m", "benchmarks.nsys_read", "--child", task, str(path)]
        done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=900)
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    return statistics.median(run[0] for run in runs), max(run[1] for run in runs)


def compare(path: Path, label: str, tasks: list[str], repeat: int, table: Table) -> dict[str, float]:
    found: dict[str, float] = {}
    for task in tasks:
        name, who = task.split(" ", 1)
        if who == "nsys-ai" and not HAS_PEER:
            table.add_row(label, name, who, "-", "-", "")
            continue
        seconds, memory = measure(task, path, repeat)
        found[task] = seconds
        ours = found.get(f"{name} probe", math.nan)
        times = "" if who == "probe" else f"{seconds / ours:.1f}x"
        table.add_row(label, name, who, f"{seconds:.2f}", f"{memory:.0f}", times)
    return found


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kernels", type=int, nargs="+", default=[100_000, 200_000])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


def main(kernels: list[int], repeat: int) -> None:
    table = Table("export", "task", "who", "CPU s", "memory MB", "probe is faster", title="nsys exports")
    summaries: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "export.sqlite"
        write(path, Shape(10_000))  # the R-tree takes minutes from 50,000 on
        compare(path, "10,000 kernels", ["attribute probe", RTREE_TASK], 1, table)
        for count in sorted(kernels):
            write(path, Shape(count))
            found = compare(path, f"{count:,} kernels", [task for task in TASKS if task != RTREE_TASK], repeat, table)
            summaries[count] = found["summary probe"]
        for kind in ("siblings", "nested"):
            write(path, Shape(20_000), kind)
            compare(path, f"20,000 {kind}", ["attribute probe", "attribute nsys-ai"], repeat, table)
    Console(width=110).print(table)
    if len(summaries) > 1:
        (least, low), (most, high) = min(summaries.items()), max(summaries.items())
        exponent: Any = math.log(high / low) / math.log(most / least)
        print(f"the time to the summary grows with the {exponent:.2f}th power of the kernels, {least:,} to {most:,}")


if __name__ == "__main__":
    options = arguments()
    if options.child:
        child(options.child[0], Path(options.child[1]))
    else:
        main(options.kernels, options.repeat)
