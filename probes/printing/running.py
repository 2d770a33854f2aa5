"""`probe printf`: chosen values of chosen threads of one kernel, as a table, with nothing lost."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from harness.cuda import driver as cuda
from harness.cuda import source as cuda_source
from harness.cuda.source import Entry, Source
from harness.device_log import traced, tracepoints
from harness.device_log.layout import Recorded, Selection
from harness.device_log.traced import Job, Traced
from harness.device_log.tracepoints import Instrumented
from harness.errors import EXIT_CLEAN, EXIT_DEFECT, EXIT_INTERRUPTED, BuildFailed, UsageError
from harness.record import Session, to_json
from kernels.plan import Extent, Launch, Pointer
from probes.targets import arguments, driving
from probes.targets.arguments import Inputs
from reports import units
from reports.pages import page, printed

Tell = Callable[[str], None]
MOST_JSON_ROWS = 100_000  # in result.json, 30 MB of it: more are only in the tables


@dataclass(frozen=True)
class Settings:
    """What was asked for; texts of selections are as on the command line."""

    source: Path
    entry: str | None = None
    points: tuple[tuple[int, str], ...] = ()
    condition: str | None = None
    watch: bool = False
    thread: str | None = None
    in_block: str | None = None
    warp: str | None = None
    grid: Extent | None = None
    block: Extent | None = None
    shared_bytes: int | None = None
    arguments: Path | None = None
    defines: tuple[tuple[str, str], ...] = ()
    from_session: Path | None = None
    emulate: bool | None = None
    checks: str = "none"
    records: int = 1_000_000
    grow: bool = False
    timeout_s: float = 60.0

    def command(self) -> list[str]:
        """The command line again, without the folders of this machine."""
        words = ["printf", self.source.name]
        for line, text in self.points:
            words += ["--at", str(line), "--print", text]
        pairs: list[tuple[str, Any]] = [
            ("--entry", self.entry), ("--if", self.condition), ("--thread", self.thread), ("--in-block", self.in_block),
            ("--warp", self.warp), ("--grid", _shown(self.grid)), ("--block", _shown(self.block)),
            ("--smem", self.shared_bytes), ("--args", self.arguments and self.arguments.name),
            ("--from-session", self.from_session and self.from_session.name),
            ("--check", None if self.checks == "none" else self.checks),
        ]  # fmt: skip
        words += [word for name, value in self.defines for word in ("-D", f"{name}={value}")]
        words += [word for name, value in pairs if value is not None for word in (name, str(value))]
        flags = [
            ("--watch-nan", self.watch),
            ("--grow", self.grow),
            ("--emulate", self.emulate),
            ("--gpu", self.emulate is False),
        ]
        return words + [name for name, wanted in flags if wanted]


@dataclass(frozen=True)
class Printing:
    """What came of it: the session and the result, which is result.json."""

    session: Session
    result: dict[str, Any]

    @property
    def exit_code(self) -> int:
        if self.result["ended"] == "interrupted":
            return EXIT_INTERRUPTED
        return EXIT_DEFECT if self.result["defects"] else EXIT_CLEAN


@dataclass(frozen=True)
class _Subject:
    """A kernel and what it is launched with."""

    source: Source
    folder: Path
    entry: Entry
    inputs: Inputs
    grid: Extent
    block: Extent
    shared_bytes: int


def run(settings: Settings, out: Path | None = None, tell: Tell = lambda _: None) -> Printing:
    """Log what is asked for and write the session; everything that can be refused is refused before it is made."""
    points = tuple(tracepoints.parse_print(line, text, settings.condition) for line, text in settings.points)
    if settings.condition is not None and not points:
        raise UsageError("--if needs a line", hint="--at 57 --print 'mean' --if 'mean > 10.f'")
    subject = _subject(settings)
    selection = Selection.of(settings.in_block, settings.thread, settings.warp)
    selection.check(subject.grid, subject.block)
    made = tracepoints.instrument(
        subject.source, points, watch=settings.watch, folder=subject.folder, entry=subject.entry
    )
    emulate = not has_gpu() if settings.emulate is None else settings.emulate
    session = Session.create("printf", out)
    more = {"source": subject.source.name, "entry": subject.entry.name, "backend": "emulation" if emulate else "gpu"}
    session.write_json("manifest.json", driving.manifest("printf", settings.command(), more))
    _keep_inputs(session, subject)
    tell("compiling and running")
    try:
        done, notes = _trace(settings, subject, made, selection, session, emulate)
    except (BuildFailed, UsageError):
        _discard(session)
        raise
    result = _result(settings, subject, made, done, notes)
    _write(session, result, done)
    tell("drawing the page")
    page.write(session)
    return Printing(session, result)


def has_gpu() -> bool:
    try:
        cuda.driver()
    except UsageError:
        return False
    return True


# ---- what is run


def _subject(settings: Settings) -> _Subject:
    source = cuda_source.read(settings.source)
    earlier = _earlier(settings.from_session) if settings.from_session else {}
    entry = cuda_source.entry_of(source, settings.entry or earlier.get("entry"))
    given = dict.fromkeys(earlier.get("null", ()))
    if settings.from_session is not None:
        given |= arguments.read(settings.from_session / "raw" / "arguments.npz")
    if settings.arguments is not None:
        given |= arguments.read(settings.arguments)
    inputs = arguments.bind(arguments.wanted_by(source, entry, dict(settings.defines)), given)
    grid, block = settings.grid or earlier.get("grid"), settings.block or earlier.get("block")
    if grid is None or block is None:
        missing = "--grid" if grid is None else "--block"
        raise UsageError(f"the launch is not known: no {missing}", hint="--grid 4 --block 128")
    shared = settings.shared_bytes if settings.shared_bytes is not None else earlier.get("shared_bytes", 0)
    return _Subject(source, settings.source.resolve().parent, entry, inputs, grid, block, shared)


def _earlier(folder: Path) -> dict[str, Any]:
    """The launch of an earlier session."""
    path = folder / "raw" / "launch.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"--from-session {folder}: it holds no captured launch (raw/launch.json)",
            hint="the folder of an earlier `probe printf`: ls probe-runs",
        ) from error
    return {**content, "grid": tuple(content["grid"]), "block": tuple(content["block"])}


def _keep_inputs(session: Session, subject: _Subject) -> None:
    """What `--from-session` takes, and the source for the page."""
    subject.inputs.save(session.raw / "arguments.npz")
    inputs = subject.inputs
    null = [
        name
        for name, one in zip(inputs.names, inputs.arguments, strict=True)
        if isinstance(one, Pointer) and one.buffer is None
    ]
    launch = {"entry": subject.entry.name, "grid": subject.grid, "block": subject.block,
              "shared_bytes": subject.shared_bytes, "null": null}  # fmt: skip
    (session.raw / "launch.json").write_text(json.dumps(launch), encoding="utf-8")
    (session.raw / "source.cu").write_bytes(subject.source.text)


def _discard(session: Session) -> None:
    """Nothing was run: the same --out may be given again."""
    (session.folder / "manifest.json").unlink(missing_ok=True)
    shutil.rmtree(session.raw, ignore_errors=True)
    with suppress(OSError):  # there is something else in it
        session.folder.rmdir()


def _trace(
    settings: Settings, subject: _Subject, made: Instrumented, selection: Selection, session: Session, emulate: bool
) -> tuple[Traced, list[str]]:
    """Compile and run; a source that its own macros spoil for the watch or for counting printf is tried without."""
    prints = not emulate and b"printf" in subject.source.text

    def attempt(copy: Instrumented, count: bool) -> Traced:
        return traced.run(_job(settings, subject, copy, selection, session, count), emulate=emulate, grow=settings.grow)

    attempts: list[tuple[Callable[[], Instrumented], bool, str]] = [(lambda: made, prints, "")]
    if settings.watch:
        attempts.append((lambda: tracepoints.instrument(subject.source, made.points, watch=True, operands=False, folder=subject.folder, entry=subject.entry), prints,
                         "the operands of watched assignments could not be logged"))  # fmt: skip
    if prints:
        attempts.append((lambda: made, False, "calls of printf could not be counted"))
    first: BuildFailed | None = None
    for copy, count, note in attempts:
        try:
            return attempt(copy(), count), [note] if note else []
        except BuildFailed as error:
            explained = tracepoints.explain(error, made.points)
            if isinstance(explained, UsageError):
                raise explained from None
            first = first or _of_the_source(error, subject.source.name)
    assert first is not None
    if settings.points and not settings.watch and (misplaced := _misplaced(settings, subject, attempt, first)):
        raise misplaced
    raise first


def _misplaced(
    settings: Settings, subject: _Subject, attempt: Callable[[Instrumented, bool], Traced], error: BuildFailed
) -> UsageError | None:
    """If the source compiles without its tracepoints, a line is one where none can stand: which the parser did not see."""
    try:
        attempt(tracepoints.instrument(subject.source, folder=subject.folder, entry=subject.entry), False)
    except BuildFailed:
        return None
    lines = ", ".join(f"{subject.source.name}:{line}" for line, _ in settings.points)
    said = next((row for row in str(error).splitlines() if "error" in row), str(error))
    return UsageError(
        f"nothing can be logged at {lines}: without it the source compiles, with it\n  {said}",
        hint="a line before or after it: macros may stand there that the parser cannot see through",
    )


def _of_the_source(error: BuildFailed, name: str) -> BuildFailed:
    """The copy that was compiled lies among caches; its lines are those of the source."""
    folder = re.escape(str(traced.copies()))
    return BuildFailed(re.sub(rf"{folder}/\w+/{re.escape(name)}", name, str(error)), hint=error.hint)


def _job(
    settings: Settings, subject: _Subject, copy: Instrumented, selection: Selection, session: Session, count: bool
) -> Job:
    path = traced.place(copy.text, subject.source.name)
    launch = Launch(path, subject.entry.name, subject.grid, subject.block, subject.inputs.arguments, subject.shared_bytes,
                    traced.defines_of(settings.defines), subject.inputs.names,
                    variables=subject.inputs.contents)  # fmt: skip
    return Job(launch, subject.inputs.arrays, session.raw, selection, settings.records, settings.timeout_s,
               settings.checks, count)  # fmt: skip


# ---- what came of it


def _result(
    settings: Settings,
    subject: _Subject,
    made: Instrumented,
    done: Traced,
    notes: list[str],
) -> dict[str, Any]:
    records, kernel = len(done.recorded), subject.entry.name
    watched = done.recorded.watched(kernel)
    defects = len(watched) + len(done.findings) + (done.ended in ("crashed", "timed out") and not done.findings)
    if records > MOST_JSON_ROWS:
        notes = [*notes, f"result.json and the page have the first {MOST_JSON_ROWS} values; all are in device_log.csv"]
    return {
        "kernel": kernel, "source": subject.source.name, "grid": subject.grid, "block": subject.block,
        "records": records, "lost": done.recorded.lost, "torn": done.recorded.torn, "ended": done.ended,
        "message": done.message, "defects": defects, "watched": made.watched,
        "not_finite": [_place(row) for row in watched], "rows": done.recorded.part(0, MOST_JSON_ROWS).rows(kernel),
        "printed": [_printed(one) for one in done.printed], "printed_lost": done.printed_lost,
        "findings": list(done.findings), "notes": [*notes, *_advice(settings, made, done, records)],
    }  # fmt: skip


def _place(row: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: row[key] for key in ("sequence", "file", "line", "block", "thread", "type", "value")}
    return {**kept, "assigned": row["tag"].removeprefix("watch-nan: ")}


def _printed(one: Any) -> dict[str, Any]:
    return {"launch_id": one.launch_id, "kernel": one.kernel, "range": one.range, "text": one.text,
            "block": list(one.block) if one.block else None, "thread": list(one.thread) if one.thread else None}  # fmt: skip


def _advice(settings: Settings, made: Instrumented, done: Traced, rows: int) -> list[str]:
    notes = []
    if done.recorded.lost is None:
        notes.append("the kernel died with a full buffer: how many values were lost is not known; more room: --records")
    elif done.recorded.lost:
        notes.append(
            f"{units.plural(done.recorded.lost, 'value')} found no room: --grow, or --records {done.recorded.needed}"
        )
    if done.recorded.torn:
        notes.append(f"{units.plural(done.recorded.torn, 'value')} left out: being written when the kernel died")
    if done.printed_lost:
        lost = units.plural(done.printed_lost, "output")
        notes.append(f"{lost} of printf overwritten in CUDA's buffer: log with PROBE instead")
    if done.printed_lost is None and done.printed:
        notes.append("whether printf lost outputs is not known")
    if not rows and made.points and done.ended == "finished":
        notes.append("no chosen thread came by the lines")
    if settings.watch and not any(name.startswith("watch-nan") for name in done.recorded.tags()):
        where = " in the chosen threads" if settings.thread or settings.in_block or settings.warp else ""
        notes.append(f"{units.plural(made.watched, 'assignment')} watched{where}: no NaN, no Inf")
    return notes


def _write(session: Session, result: Mapping[str, Any], done: Traced) -> None:
    """result.json, the tables, and the log as `probe report` reads it."""
    if len(done.recorded):
        _write_tables(session, done.recorded, str(result["kernel"]))
    if done.printed:
        text = "".join(f"{one.text}\n" for one in done.printed)
        (session.raw / "printed.txt").write_text(text, encoding="utf-8")
    session.write_json("result.json", result)


def _write_tables(session: Session, recorded: Recorded, kernel: str) -> None:
    """The table device_log; without pandas, whose import takes as long as all the rest."""
    path = session.folder / "device_log.csv"
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        for part in recorded.parts():
            writer.writerows(_flat(part, kernel))
    if find_spec("pyarrow") is not None:
        _to_parquet(path, session.raw / "device_log.parquet")
    else:
        with (session.raw / "device_log.jsonl").open("w", encoding="utf-8") as stream:
            for part in recorded.parts():
                stream.writelines(to_json(dict(zip(COLUMNS, row, strict=True))) + "\n" for row in _flat(part, kernel))


def _to_parquet(table: Path, path: Path) -> None:
    """By way of the CSV: what pyarrow makes of Python's objects has it import pandas. Names are few: each is kept once."""
    import pyarrow  # type: ignore[import-untyped]
    from pyarrow import csv as arrow_csv
    from pyarrow import parquet

    types = {name: pyarrow.string() if name in _TEXTS else pyarrow.int64() for name in COLUMNS}
    options = arrow_csv.ConvertOptions(column_types=types, strings_can_be_null=False)
    parsing = arrow_csv.ParseOptions(newlines_in_values=True)
    with (
        arrow_csv.open_csv(table, parse_options=parsing, convert_options=options) as parts,
        parquet.ParquetWriter(path, parts.schema) as writer,
    ):
        for part in parts:
            writer.write_batch(part)


COLUMNS = ("sequence", "launch_id", "kernel", "tag", "file", "line", "block_x", "block_y", "block_z", "thread_x",
           "thread_y", "thread_z", "type", "value")  # fmt: skip
_TEXTS = {"kernel", "tag", "file", "type", "value"}


def _flat(part: Recorded, kernel: str) -> Iterator[tuple[Any, ...]]:
    """The rows of the table device_log."""
    columns = {name: column.tolist() for name, column in part.columns.items()}
    places = part.places
    at = zip(columns["site"], columns["value_index"], strict=True)
    axes = zip(*(columns[f"{what}_{axis}"] for what in ("block", "thread") for axis in "xyz"), strict=True)
    for sequence, launch, place, where, (kind, value) in zip(
        columns["sequence"], columns["launch_id"], at, axes, part.values(), strict=True
    ):
        yield sequence, launch, kernel, *places[place], *where, kind, printed.value_text(value)


def _shown(size: Extent | None) -> str | None:
    return None if size is None else ",".join(map(str, size))
