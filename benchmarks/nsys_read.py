"""Reading an nsys export: loading, attribution and the whole way to the summary, against pandas, connectorx, ADBC, nsys-ai.

Run: `python -m benchmarks.nsys_read` (`--kernels 100000 1000000 --repeat 3`, `--alone 5000000` without the peers: 1 GB on
disk, 3 GB of memory). A peer that is not installed is left out: `pip install nsys-ai==0.3.0 connectorx pyarrow
adbc-driver-sqlite`; `--peers PYTHON` asks those of another environment. Every measurement is a process of its own; the
time is its CPU time, less the start. nsys-ai is asked for its breakdown by range, and reads SQLite itself: its Parquet
cache needs a download.
"""

from __future__ import annotations

import argparse
import contextlib
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
from dataclasses import dataclass
from pathlib import Path

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
PEERS = {"nsys-ai": "nsys_ai", "connectorx": "connectorx", "ADBC": "adbc_driver_sqlite"}  # and the module of each


def load_ours(path: Path) -> Callable[[], object]:
    from reports.readers._sqlite import Database

    def run() -> object:
        with Database(path) as database:
            return [database.read(table, names.split()) for table, names in COLUMNS.items()]

    return run


def queries(path: Path) -> list[str]:
    """What all peers are asked: the same columns as ours, as far as the export has them."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        known = {table: {row[1] for row in connection.execute(f"PRAGMA table_info({table})")} for table in COLUMNS}
    return [
        "SELECT {} FROM {}".format(", ".join(f'"{name}"' for name in names.split() if name in known[table]), table)
        for table, names in COLUMNS.items()
    ]


def load_pandas(path: Path) -> Callable[[], object]:
    import pandas as pd

    def run() -> object:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            return [pd.read_sql(query, connection) for query in queries(path)]

    return run


def load_connectorx(path: Path) -> Callable[[], object]:
    import connectorx

    return lambda: [
        connectorx.read_sql(f"sqlite://{path.resolve()}", query, return_type="arrow").to_pandas()
        for query in queries(path)
    ]  # fmt: skip


def load_adbc(path: Path) -> Callable[[], object]:
    from adbc_driver_sqlite import dbapi

    def run() -> object:
        with dbapi.connect(str(path)) as connection, connection.cursor() as cursor:
            return [cursor.execute(query).fetch_arrow_table().to_pandas() for query in queries(path)]

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
        ("load", "connectorx", load_connectorx),
        ("load", "ADBC", load_adbc),
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


@dataclass(frozen=True)
class Took:
    """Median CPU seconds, and the most memory in MB that it needed above what was there before."""

    seconds: float
    memory: float


def has(python: str, module: str) -> bool:
    """Whether an interpreter finds a module."""
    search = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    return subprocess.run([python, "-c", search], check=False, timeout=60).returncode == 0


def measure(task: str, path: Path, repeat: int, python: str) -> Took:
    runs = []
    for _ in range(repeat):
        argv = [python, "-m", "benchmarks.nsys_read", "--child", task, str(path)]
        done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=900)
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    return Took(statistics.median(run[0] for run in runs), max(run[1] for run in runs))


@dataclass(frozen=True)
class Bench:
    """How often, with which interpreter for the peers, and where the rows go."""

    repeat: int
    python: str
    table: Table

    def compare(self, path: Path, label: str, tasks: list[str]) -> dict[str, Took]:
        found: dict[str, Took] = {}
        for task in tasks:
            name, who = task.split(" ", 1)
            if who in PEERS and not has(self.python, PEERS[who]):
                self.table.add_row(label, name, who, "-", "-", "", "")
                continue
            took = found[task] = measure(task, path, self.repeat, self.python if who in PEERS else sys.executable)
            ours = found.get(f"{name} probe", took)
            ratios = (
                ("", "")
                if ours is took
                else (f"{took.seconds / ours.seconds:.1f}x", f"{ours.memory / took.memory:.2f}")
            )
            self.table.add_row(label, name, who, f"{took.seconds:.2f}", f"{took.memory:.0f}", *ratios)
        return found


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kernels", type=int, nargs="+", default=[100_000, 200_000])
    parser.add_argument("--alone", type=int, nargs="*", default=[], metavar="KERNELS", help="sizes without the peers")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--peers", default=sys.executable, metavar="PYTHON", help="an interpreter that has the peers")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


def main(options: argparse.Namespace) -> None:
    table = Table("export", "task", "who", "CPU s", "memory MB", "probe is faster", "and takes", title="nsys exports")
    bench = Bench(options.repeat, options.peers, table)
    sizes: dict[int, dict[str, Took]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "export.sqlite"
        write(path, Shape(10_000))  # the R-tree takes minutes from 50,000 on
        bench.compare(path, "10,000 kernels", ["attribute probe", RTREE_TASK])
        for count in sorted({*options.kernels, *options.alone}):
            write(path, Shape(count))
            peers = count in options.kernels
            tasks = [task for task in TASKS if task != RTREE_TASK and (peers or task.endswith(" probe"))]
            sizes[count] = bench.compare(path, f"{count:,} kernels", tasks)
        for kind in ("siblings", "nested"):
            write(path, Shape(20_000), kind)
            bench.compare(path, f"20,000 {kind}", ["attribute probe", "attribute nsys-ai"])
    Console(width=120).print(table)
    if len(sizes) > 1:
        least, most = min(sizes), max(sizes)
        print(f"from {least:,} to {most:,} kernels grow, as this power of their number:")
        for task in (task for task in TASKS if task.endswith(" probe")):
            low, high, times = sizes[least][task], sizes[most][task], math.log(most / least)
            print(f"{task:>16}: time {math.log(high.seconds / low.seconds) / times:.2f}, "
                  f"memory {math.log(high.memory / low.memory) / times:.2f}")  # fmt: skip


if __name__ == "__main__":
    given = arguments()
    if given.child:
        child(given.child[0], Path(given.child[1]))
    else:
        main(given)
